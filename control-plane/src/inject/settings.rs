//! What the injector is told once, for all Pods: the chart's values, in a file of JSON (`--injection-file`).
//!
//! Annotations of a namespace or a Pod win over it, as far as there are any for a setting ([`super::annotations`]).

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Settings of the injector. Fields that are left out have their defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Settings {
    /// The control plane's namespace, whose Pods never get a proxy.
    pub namespace: String,
    /// Further namespaces whose Pods never get one, whoever asks; beside Kubernetes' own.
    pub excluded_namespaces: Vec<String>,
    /// `host:port` of the control plane; by default, of its Service.
    pub control_plane_address: Option<String>,
    /// What the full names of Services end in.
    pub cluster_domain: String,
    /// Of every identity.
    pub trust_domain: String,
    /// The image of the proxy, without tag and digest.
    pub image_repository: String,
    /// Its tag.
    pub image_tag: String,
    /// Its digest, which wins over the tag.
    pub image_digest: Option<String>,
    /// `IfNotPresent`, `Always` or `Never`.
    pub image_pull_policy: String,
    /// Of the proxy's container.
    pub resources: Resources,
    /// The user and group that the proxy runs as.
    pub uid: u32,
    /// What the proxy logs; a level, or directives.
    pub log_level: String,
    /// `json` or `text`.
    pub log_format: String,
    /// The form of the access log; what the Mesh says, if it is left out.
    pub access_log: Option<String>,
    /// How long a proxy that is told to end goes on, if that is longer than its Pod may take.
    pub shutdown_grace_period: String,
    /// Ports of applications that are reached without the proxy.
    pub skip_inbound_ports: Option<String>,
    /// Ports elsewhere that are reached without the proxy.
    pub skip_outbound_ports: Option<String>,
    /// Destinations that are reached without the proxy.
    pub skip_subnets: Option<String>,
    /// Ports whose bytes are not looked into; the proxy's default, if it is left out.
    pub opaque_ports: Option<String>,
    /// Whether queries of names lead to the proxy.
    pub dns: bool,
    /// Whether UDP to port 443 is dropped, so that clients of HTTP/3 fall back.
    pub drop_quic: bool,
    /// How many seconds a Pod's proxy may take to be ready before the kubelet starts it anew.
    pub startup_seconds: u32,
}

/// Quantities, as Kubernetes writes them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Also how many threads the proxy has, where there is no limit.
    pub cpu_request: Option<String>,
    /// Also how many threads the proxy has.
    pub cpu_limit: Option<String>,
    /// What the proxy is expected to use.
    pub memory_request: Option<String>,
    /// What the kubelet ends it for.
    pub memory_limit: Option<String>,
}

/// Why the settings cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file.
    #[error("cannot read the settings of injection in {path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is in it.
    #[error("the settings of injection in {path} are none: {source}", path = path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Where, and what is wrong.
        source: serde_json::Error,
    },
    /// A value.
    #[error("the settings of injection in {path}: {problem}", path = path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// The field, and what is wrong.
        problem: String,
    },
}

// === impl Settings ===

impl Settings {
    /// Of a file of JSON.
    ///
    /// # Errors
    /// What keeps them from being read, or a value that no proxy would start with.
    pub fn read(path: &Path) -> Result<Self, SettingsError> {
        let text =
            std::fs::read(path).map_err(|source| SettingsError::File { path: path.to_owned(), source })?;
        let settings: Self = serde_json::from_slice(&text)
            .map_err(|source| SettingsError::Content { path: path.to_owned(), source })?;
        settings.check().map_err(|problem| SettingsError::Value { path: path.to_owned(), problem })?;
        Ok(settings)
    }

    /// Whether each value is one that an annotation could say too.
    ///
    /// # Errors
    /// The field, and what is wrong with it.
    pub fn check(&self) -> Result<(), String> {
        use super::annotations as said;
        type Check = fn(&str) -> Result<(), String>;
        let ports: Check = |value| said::ports(value).map(drop);
        let subnets: Check = |value| said::subnets(value).map(drop);
        let optional: [(&str, &Option<String>, Check); 9] = [
            ("accessLog", &self.access_log, said::access_log),
            ("skipInboundPorts", &self.skip_inbound_ports, ports),
            ("skipOutboundPorts", &self.skip_outbound_ports, ports),
            ("skipSubnets", &self.skip_subnets, subnets),
            ("opaquePorts", &self.opaque_ports, ports),
            ("resources.cpuRequest", &self.resources.cpu_request, said::cpu),
            ("resources.cpuLimit", &self.resources.cpu_limit, said::cpu),
            ("resources.memoryRequest", &self.resources.memory_request, said::quantity),
            ("resources.memoryLimit", &self.resources.memory_limit, said::memory_limit),
        ];
        let given =
            optional.into_iter().filter_map(|(name, value, check)| Some((name, value.as_deref()?, check)));
        let needed: [(&str, &str, Check); 4] = [
            ("logLevel", &self.log_level, said::log_level),
            ("logFormat", &self.log_format, said::log_format),
            ("shutdownGracePeriod", &self.shutdown_grace_period, said::duration),
            ("imagePullPolicy", &self.image_pull_policy, said::pull_policy),
        ];
        for (name, value, check) in given.chain(needed) {
            check(value).map_err(|problem| format!("{name}: {problem} (got `{value}`)"))?;
        }
        super::image::image(&self.image()).map_err(|problem| {
            format!("imageRepository, imageTag, imageDigest: {problem} (got `{}`)", self.image())
        })?;
        if self.startup_seconds == 0 || i32::try_from(self.startup_seconds).is_err() {
            return Err(format!(
                "startupSeconds: {} is not a number of seconds that the kubelet can wait; it takes at least 1",
                self.startup_seconds
            ));
        }
        if self.uid == 0 {
            return Err(
                "uid: the proxy does not run as root, whose connections would not be intercepted".to_owned()
            );
        }
        Ok(())
    }

    /// The proxy's image, with its tag or digest.
    pub fn image(&self) -> String {
        match &self.image_digest {
            Some(digest) if !digest.is_empty() => format!("{}@{digest}", self.image_repository),
            _ => format!("{}:{}", self.image_repository, self.image_tag),
        }
    }

    /// `host:port` of the control plane.
    pub fn control_plane(&self) -> String {
        let service = || format!("tulle-control-plane.{}.svc.{}:15012", self.namespace, self.cluster_domain);
        self.control_plane_address.clone().unwrap_or_else(service)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            namespace: "tulle-system".to_owned(),
            excluded_namespaces: Vec::new(),
            control_plane_address: None,
            cluster_domain: "cluster.local".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            image_repository: "tulle".to_owned(),
            image_tag: env!("CARGO_PKG_VERSION").to_owned(),
            image_digest: None,
            image_pull_policy: "IfNotPresent".to_owned(),
            resources: Resources::default(),
            uid: 1337,
            log_level: "info".to_owned(),
            log_format: "json".to_owned(),
            access_log: None,
            shutdown_grace_period: "30s".to_owned(),
            skip_inbound_ports: None,
            skip_outbound_ports: None,
            skip_subnets: None,
            opaque_ports: None,
            dns: false,
            drop_quic: false,
            startup_seconds: 120,
        }
    }
}

impl Default for Resources {
    /// No limit of CPU: a proxy that is throttled delays every request.
    fn default() -> Self {
        Self {
            cpu_request: Some("100m".to_owned()),
            cpu_limit: None,
            memory_request: Some("20Mi".to_owned()),
            memory_limit: Some("250Mi".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_good_and_go_round() {
        let settings = Settings::default();
        settings.check().unwrap();
        let written = serde_json::to_string(&settings).unwrap();
        assert_eq!(serde_json::from_str::<Settings>(&written).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), settings);
        assert_eq!(settings.control_plane(), "tulle-control-plane.tulle-system.svc.cluster.local:15012");
    }

    #[test]
    fn a_bad_file_is_told_with_its_field() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("injection.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Settings::read(&path).unwrap_err().to_string()
        };
        for (text, says) in [
            ("", "none"),
            (r#"{"logLevle": "info"}"#, "logLevle"),
            (r#"{"logLevel": "loud"}"#, "logLevel"),
            (r#"{"resources": {"cpuLimit": "much"}}"#, "resources.cpuLimit"),
            (r#"{"skipInboundPorts": "http"}"#, "skipInboundPorts"),
            (r#"{"imageRepository": "a b"}"#, "imageRepository"),
            (r#"{"imageTag": "-1"}"#, "imageTag"),
            (r#"{"imageDigest": "sha256:00"}"#, "imageDigest"),
            (r#"{"resources": {"memoryLimit": "64m"}}"#, "resources.memoryLimit"),
            (r#"{"uid": 0}"#, "uid"),
            (r#"{"startupSeconds": 0}"#, "startupSeconds"),
            (r#"{"resources": {"cpuRequest": "1k"}}"#, "resources.cpuRequest"),
            (r#"{"resources": {"cpuRequest": "0.0005"}}"#, "resources.cpuRequest"),
        ] {
            let error = read(text);
            assert!(error.contains(says) && error.contains("injection.json"), "{text}: {error}");
        }
        assert!(Settings::read(&folder.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let settings = Settings { image_digest: Some("sha256:abc".to_owned()), ..Settings::default() };
        assert_eq!(settings.image(), "tulle@sha256:abc");
    }
}
