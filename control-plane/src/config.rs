//! Every setting of the control plane: a flag, and a variable `TULLE_CONTROL_PLANE_<NAME>`; the flag wins.
//!
//! A bad value stops the start and names the setting. Nothing else in the control plane reads the environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser};
use tracing_subscriber::filter::Targets;
use tulle_certs::{TrustDomain, control_plane_id};
use tulle_identity::{Address, AddressError, Files, Given, WorkloadApi};

use crate::cluster::SECRET;
use crate::inject::keys;

/// What a control plane is told at its start.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Where Services, EndpointSlices, routes and policies come from: a folder of YAML, or the API server of a Kubernetes cluster, found as kubectl finds it.
    #[arg(long, env = "TULLE_CONTROL_PLANE_SOURCE", value_name = "SOURCE", default_value = "folder")]
    pub source: SourceKind,
    /// The folder of YAML to serve: Services, EndpointSlices, HTTPRoutes, Mesh, AuthorizationPolicies. Needed where the source is a folder.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_CONFIG_DIR",
        value_name = "DIR",
        required_unless_present = "source",
        required_if_eq("source", "folder")
    )]
    pub config_dir: Option<PathBuf>,
    /// Where the CA's keys and the registrations are kept; made if it is not there, and locked. Needed where the source is a folder. In a cluster
    /// the keys are in the Secret `tulle-identity`, which all replicas share; with a folder this control plane stands alone, and writes nothing to the API server.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_STATE_DIR",
        value_name = "DIR",
        required_unless_present = "source",
        required_if_eq("source", "folder")
    )]
    pub state_dir: Option<PathBuf>,
    /// The control plane's own namespace in a cluster, with its Lease, its Secret and its ConfigMap.
    #[arg(long, env = "TULLE_CONTROL_PLANE_NAMESPACE", value_name = "NAME", default_value = "tulle-system")]
    pub namespace: String,
    /// The name of the control plane's own pod in a cluster, by which its Lease says who holds it. Not set: the host's name.
    #[arg(long, env = "TULLE_CONTROL_PLANE_POD", value_name = "NAME")]
    pub pod: Option<String>,
    /// The Secret of the control plane's own namespace in which cert-manager keeps the issuing certificate (`tls.crt`), its key (`tls.key`) and its root
    /// (`ca.crt`); waited for at the start, and taken up anew whenever it is renewed. Not set: the control plane makes a root of its own. Only in a cluster.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_ISSUER_SECRET",
        value_name = "NAME",
        value_parser = issuer_secret
    )]
    pub issuer_secret: Option<String>,
    /// A SPIFFE Workload API, such as that of SPIRE's agent (`unix:///path` or `tcp://ip:port`), for a mesh whose identities come from there: it gives the control plane's own
    /// certificate and the roots that all trust. Then nothing is issued here. Only with a state folder.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_IDENTITY_WORKLOAD_API",
        value_name = "ADDRESS",
        conflicts_with_all = ["issuer_secret", "identity_cert_file"],
        requires = "state_dir",
        value_parser = workload_api
    )]
    pub identity_workload_api: Option<Address>,
    /// The control plane's own PEM certificate chain, for a mesh whose identities others issue, such as cert-manager; looked at every second, as are its key and the
    /// roots. Then nothing is issued here. Needs both, and a state folder.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_IDENTITY_CERT_FILE",
        value_name = "FILE",
        conflicts_with = "issuer_secret",
        requires = "state_dir",
        requires = "identity_key_file",
        requires = "identity_trust_bundle_file"
    )]
    pub identity_cert_file: Option<PathBuf>,
    /// The PEM private key of that certificate.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_IDENTITY_KEY_FILE",
        value_name = "FILE",
        requires = "identity_cert_file"
    )]
    pub identity_key_file: Option<PathBuf>,
    /// The PEM roots that all of the mesh trust, beside that certificate.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_IDENTITY_TRUST_BUNDLE_FILE",
        value_name = "FILE",
        requires = "identity_cert_file"
    )]
    pub identity_trust_bundle_file: Option<PathBuf>,
    /// A file with the Mesh that holds for as long as the source has none: what the Helm chart's values say.
    #[arg(long, env = "TULLE_CONTROL_PLANE_MESH_FILE", value_name = "FILE")]
    pub mesh_file: Option<PathBuf>,
    /// The TLS port of ADS, registrations and the certificate service.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_GRPC_ADDRESS",
        value_name = "IP:PORT",
        default_value = "[::]:15012"
    )]
    pub grpc_address: SocketAddr,
    /// The HTTP port of /metrics, /ready, /live and, on this host, /resources, /endpoints, /load, /identity and /tap.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_METRICS_ADDRESS",
        value_name = "IP:PORT",
        default_value = "[::]:15014"
    )]
    pub metrics_address: SocketAddr,
    /// The HTTPS port of the injector, which the API server asks about new pods; only in a cluster.
    #[arg(
        long,
        env = "TULLE_CONTROL_PLANE_WEBHOOK_ADDRESS",
        value_name = "IP:PORT",
        default_value = "[::]:15017"
    )]
    pub webhook_address: SocketAddr,
    /// A file of JSON that says what injected proxies are like; what it leaves out has its default, and so has everything without it.
    #[arg(long, env = "TULLE_CONTROL_PLANE_INJECTION_FILE", value_name = "FILE")]
    pub injection_file: Option<PathBuf>,
    /// The trust domain of every identity of the mesh.
    #[arg(long, env = "TULLE_CONTROL_PLANE_TRUST_DOMAIN", value_name = "NAME", default_value = "cluster.local", value_parser = trust_domain)]
    pub trust_domain: TrustDomain,
    /// How long leaf certificates live.
    #[arg(long, env = "TULLE_CONTROL_PLANE_LEAF_LIFETIME", value_name = "DURATION", default_value = "24h", value_parser = lifetime)]
    pub leaf_lifetime: Duration,
    /// A root of the control plane's own making that ends within this is rotated by itself (docs/identity.md), or once there is a third of its life left, if that is shorter; `0s`:
    /// only when somebody asks.
    #[arg(long, env = "TULLE_CONTROL_PLANE_ROOT_ROTATE_BEFORE", value_name = "DURATION", default_value = "90d", value_parser = duration)]
    pub root_rotate_before: Duration,
    /// After a restart or a standstill, how long known registrations are served before their workloads must have come back.
    #[arg(long, env = "TULLE_CONTROL_PLANE_REGISTRATION_GRACE", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub registration_grace: Duration,
    /// A file that the addresses of all listeners are written to once they are bound, as JSON.
    #[arg(long, env = "TULLE_CONTROL_PLANE_ADDRESSES_FILE", value_name = "FILE")]
    pub addresses_file: Option<PathBuf>,
    /// What is logged: a level, or directives such as `info,tulle_control_plane::ads=debug`.
    #[arg(long, env = "TULLE_CONTROL_PLANE_LOG_LEVEL", value_name = "LEVEL", default_value = "info", value_parser = tulle_api::log_filter)]
    pub log_level: Targets,
    /// How it is logged, on standard output.
    #[arg(long, env = "TULLE_CONTROL_PLANE_LOG_FORMAT", value_name = "FORMAT", default_value = "json")]
    pub log_format: LogFormat,
}

/// Where configuration comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SourceKind {
    /// A folder of YAML.
    Folder,
    /// The API server of a Kubernetes cluster.
    Kubernetes,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Lines for people.
    Text,
}

#[derive(Parser)]
#[command(
    name = "tulle-control-plane",
    version,
    about = "Tulle's control plane: tells proxies what they use"
)]
struct Command {
    #[command(flatten)]
    config: Config,
}

impl Config {
    /// Where identities come from, if not from here. The control plane's own must be of the name that proxies look for.
    pub fn identity(&self) -> Option<Given> {
        let wanted = Some(control_plane_id(&self.trust_domain));
        if let Some(address) = self.identity_workload_api.clone() {
            return Some(Given::WorkloadApi(WorkloadApi { address, wanted, hint: None }));
        }
        let (cert, key) = (self.identity_cert_file.clone()?, self.identity_key_file.clone()?);
        let bundle = self.identity_trust_bundle_file.clone()?;
        Some(Given::Files(Files { cert, key, bundle, wanted }))
    }

    /// Of flags (the program's name first) and the environment.
    ///
    /// # Errors
    /// The first setting that is bad, by its flag and its variable; also `--help` and `--version`, for
    /// `clap::Error::exit`.
    pub fn load(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Self, clap::Error> {
        // Set to nothing is the same as not set.
        let command = Command::command().mut_args(|argument| match argument.get_env() {
            Some(name) if std::env::var_os(name).is_some_and(|value| value.is_empty()) => {
                argument.env(Resettable::Reset)
            }
            _ => argument,
        });
        let parsed = command.clone().try_get_matches_from(arguments);
        let parsed = parsed.and_then(|matches| Command::from_arg_matches(&matches));
        let config = parsed.map(|command| command.config).map_err(|error| name_variable(error, &command))?;
        match config.conflict() {
            Some(why) => Err(command.clone().error(ErrorKind::ArgumentConflict, why)),
            None => Ok(config),
        }
    }

    /// What does not go together.
    fn conflict(&self) -> Option<&'static str> {
        self.issuer_secret.as_ref()?;
        if self.source == SourceKind::Folder {
            return Some(
                "--issuer-secret (variable TULLE_CONTROL_PLANE_ISSUER_SECRET) names a Secret of a cluster, and the source is a folder, whose control plane makes a root of its own \
                 in --state-dir: leave it out, or set --source kubernetes (variable TULLE_CONTROL_PLANE_SOURCE)",
            );
        }
        let both = self.state_dir.is_some();
        both.then_some(
            "--issuer-secret (variable TULLE_CONTROL_PLANE_ISSUER_SECRET) and --state-dir (variable TULLE_CONTROL_PLANE_STATE_DIR) each say where the keys are: leave out --state-dir, \
             and what is kept beside the issuing certificate is in the Secret tulle-identity",
        )
    }
}

/// Of the environment's variables those that look like settings and are none: after a slip of the pen the default would
/// be in force unseen.
pub fn unknown_variables(names: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<String> {
    let command = Command::command();
    let known =
        |name: &str| command.get_arguments().any(|argument| argument.get_env() == Some(name.as_ref()));
    // What Kubernetes sets for a Service called `tulle-control-plane`.
    let kubernetes = |rest: &str| rest.starts_with("SERVICE_") || rest == "PORT" || rest.starts_with("PORT_");
    let names = names.into_iter().filter_map(|name| name.into_string().ok());
    names
        .filter(|name| {
            let rest = name.strip_prefix("TULLE_CONTROL_PLANE_");
            rest.is_some_and(|rest| !kubernetes(rest) && !known(name))
        })
        .collect()
}

/// The table of `docs/reference/control-plane.md`, made from the flags.
pub fn reference() -> String {
    let mut out = String::from("| variable | takes | default | meaning |\n| --- | --- | --- | --- |\n");
    for argument in Command::command().get_arguments() {
        let Some(variable) = argument.get_env() else { continue };
        let values = argument.get_possible_values();
        let values: Vec<String> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
        let names = argument.get_value_names().unwrap_or_default();
        let form = match (values.is_empty(), names.first()) {
            (false, _) => values.join(" or "),
            (true, name) => name.map(|name| name.to_lowercase()).unwrap_or_default(),
        };
        let default = argument.get_default_values().first();
        let default = match default {
            Some(default) => format!("`{}`", default.to_string_lossy()),
            None if argument.is_required_set() => "needed".to_owned(),
            None => "—".to_owned(),
        };
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        out.push_str(&format!(
            "| `{}` | {form} | {default} | {} |\n",
            variable.to_string_lossy(),
            help.trim_end_matches('.').to_owned() + "."
        ));
    }
    out
}

/// Adds the variable to an error that names only the flag.
fn name_variable(mut error: clap::Error, command: &clap::Command) -> clap::Error {
    let Some(ContextValue::String(said)) = error.get(ContextKind::InvalidArg) else { return error };
    let flag = said.trim_start_matches("--").split([' ', '=']).next().unwrap_or_default();
    let variable = command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(flag))
        .and_then(|argument| argument.get_env())
        .map(|variable| variable.to_string_lossy().into_owned());
    if let Some(variable) = variable {
        let said = ContextValue::String(format!("{said} (variable {variable})"));
        error.insert(ContextKind::InvalidArg, said);
    }
    error
}

fn issuer_secret(text: &str) -> Result<String, String> {
    match text {
        SECRET | keys::NAME => Err(format!(
            "{text} is a Secret that the control plane itself writes; name the one in which cert-manager keeps the issuing certificate (secretName of its Certificate)"
        )),
        _ => Ok(text.to_owned()),
    }
}

fn workload_api(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: AddressError| format!("{error}; expected {}", Address::FORM))
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = duration(text)?;
    if lifetime < Duration::from_secs(10) {
        return Err("shorter than 10s: certificates could not be renewed in time".to_owned());
    }
    Ok(lifetime)
}

/// A number with a unit: `300ms`, `10s`, `5m`, `24h`, `30d`.
fn duration(text: &str) -> Result<Duration, String> {
    let form = "is not a number with a unit, such as 300ms, 10s, 5m, 24h or 30d";
    let end = text.find(|c: char| !c.is_ascii_digit()).ok_or(form)?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().map_err(|_| form)?;
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(form.to_owned()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(|| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(arguments: &[&str]) -> Result<Config, clap::Error> {
        let program = ["control-plane", "--config-dir", "a", "--state-dir", "b"];
        Config::load(program.iter().chain(arguments).map(std::ffi::OsString::from))
    }

    #[test]
    fn defaults_are_the_conventions() {
        let config = load(&[]).unwrap();
        assert_eq!(config.grpc_address.port(), 15012);
        assert_eq!(config.metrics_address.port(), 15014);
        assert_eq!(config.trust_domain.as_str(), "cluster.local");
        assert_eq!(config.leaf_lifetime, Duration::from_secs(24 * 3600));
    }

    #[test]
    fn a_folder_is_needed_where_the_source_is_one() {
        let load = |arguments: &[&str]| {
            let program = ["control-plane", "--state-dir", "b"];
            Config::load(program.iter().chain(arguments).map(std::ffi::OsString::from))
        };
        for arguments in [&[][..], &["--source", "folder"]] {
            let error = load(arguments).unwrap_err().to_string();
            assert!(error.contains("--config-dir"), "{error}");
        }
        assert_eq!(load(&["--config-dir", "a"]).unwrap().source, SourceKind::Folder);
        let cluster = load(&["--source", "kubernetes"]).unwrap();
        assert_eq!((cluster.source, cluster.config_dir), (SourceKind::Kubernetes, None));
    }

    #[test]
    fn a_secret_of_an_issuer_is_for_clusters_and_not_our_own() {
        let load = |arguments: &[&str]| {
            let source: &[&str] =
                if arguments.contains(&"--source") { &[] } else { &["--source", "kubernetes"] };
            let program = ["control-plane"].iter().chain(source);
            Config::load(program.chain(arguments).map(std::ffi::OsString::from))
        };
        assert_eq!(load(&[]).unwrap().issuer_secret, None);
        assert_eq!(load(&["--issuer-secret", "issuer"]).unwrap().issuer_secret.as_deref(), Some("issuer"));
        for (arguments, remedy) in [
            (&["--issuer-secret", "tulle-identity"][..], "secretName of its Certificate"),
            (&["--issuer-secret", "tulle-webhook"][..], "secretName of its Certificate"),
            (&["--issuer-secret", "a", "--state-dir", "b"][..], "leave out --state-dir"),
            (
                &["--issuer-secret", "a", "--source", "folder", "--config-dir", "c", "--state-dir", "b"][..],
                "leave it out, or set --source kubernetes",
            ),
        ] {
            let error = load(arguments).unwrap_err().to_string();
            let named = ["--issuer-secret", "TULLE_CONTROL_PLANE_ISSUER_SECRET", remedy];
            assert!(named.iter().all(|name| error.contains(name)), "{error}");
        }
    }

    #[test]
    fn identities_come_from_one_place_that_is_told_whole() {
        let id = |config: Config| config.identity().map(|given| given.to_string());
        assert_eq!(id(load(&[]).unwrap()), None);
        let api = load(&["--identity-workload-api", "unix:///run/agent.sock"]).unwrap();
        assert_eq!(id(api).as_deref(), Some("the Workload API at unix:///run/agent.sock"));
        let files = ["--identity-cert-file", "c", "--identity-key-file", "k"];
        let bundle = ["--identity-trust-bundle-file", "r"];
        let all = load(&[&files[..], &bundle].concat()).unwrap();
        assert_eq!(id(all).as_deref(), Some("the files c, k and r"));
        let both = [&files[..], &bundle, &["--identity-workload-api", "unix:///a"]].concat();
        for (arguments, word) in [
            (&files[..], "--identity-trust-bundle-file"),
            (&bundle[..], "--identity-cert-file"),
            (&both[..], "--identity-workload-api"),
            (&["--identity-workload-api", "/run/agent.sock"][..], "unix:///<path>"),
        ] {
            let error = load(arguments).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_bad_value_names_its_flag_and_its_variable() {
        for (flag, value) in [
            ("--leaf-lifetime", "soon"),
            ("--leaf-lifetime", "1s"),
            ("--grpc-address", "15012"),
            ("--trust-domain", "Not A Domain"),
        ] {
            let error = load(&[flag, value]).unwrap_err().to_string();
            let variable = flag.trim_start_matches("--").replace('-', "_").to_uppercase();
            assert!(error.contains(flag) && error.contains(&variable), "{error}");
        }
    }

    #[test]
    fn the_reference_page_holds_the_tables() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/reference/control-plane.md");
        let page = std::fs::read_to_string(path).unwrap();
        for table in [reference(), crate::metrics::reference().unwrap()] {
            assert!(page.contains(&table), "docs/reference/control-plane.md lacks:\n{table}");
        }
    }
}
