//! The Mesh: what everybody shares.

use ipnet::IpNet;
use tulle_api::{MESH, v1};

use super::NamespacedName;
use super::access::mode;
use super::resilience::{access_log, millionths};
use crate::finding::Notes;
use crate::kinds::{self, EgressAction, Mtls};

/// The trust domain unless one is set.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The Mesh, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Mesh {
    /// Always `mesh`.
    pub name: NamespacedName,
    /// How plaintext is treated.
    pub mtls: Mtls,
    /// As written.
    pub trust_domain: Option<String>,
    /// Sorted, without host bits.
    pub networks: Vec<IpNet>,
    /// For destinations outside the mesh, where no EgressPolicy says so.
    pub egress: EgressAction,
    /// As a proxy is told; none: nothing is traced.
    pub tracing: Option<v1::Tracing>,
    /// As the wire has it.
    pub access_log: v1::AccessLog,
}

// === impl Mesh ===

impl Mesh {
    pub(super) fn read(object: &kinds::Mesh, notes: &mut Notes) -> Self {
        let spec = &object.spec;
        let name = object.metadata.name.as_deref().unwrap_or_default();
        if name != MESH {
            notes.refuse(
                "metadata.name",
                format!("there is one Mesh, named `{MESH}`; `{name}` is ignored"),
                &format!("rename it to `{MESH}`"),
            );
        }
        if object.metadata.namespace.is_some() {
            notes.warn(
                "metadata.namespace",
                "a Mesh belongs to no namespace; this is ignored",
                "remove the field",
            );
        }
        if let Some(domain) = &spec.trust_domain
            && !is_trust_domain(domain)
        {
            notes.refuse(
                "spec.trustDomain",
                format!("`{domain}` is not a trust domain"),
                "up to 255 of a-z, 0-9, `.`, `-` and `_`, such as `example.org` (SPIFFE ID, section 2.1)",
            );
        }
        Self {
            name: NamespacedName::new("", MESH),
            mtls: spec.mtls,
            trust_domain: spec.trust_domain.clone(),
            networks: read_networks("spec.networks", &spec.networks, notes),
            egress: spec.egress,
            tracing: spec.tracing.as_ref().and_then(|tracing| read_tracing(tracing, notes)),
            access_log: spec
                .access_log
                .as_ref()
                .map(|written| access_log("spec.accessLog", written, notes))
                .unwrap_or_default(),
        }
    }

    /// As a proxy is told.
    pub fn mode(&self) -> v1::MtlsMode {
        mode(self.mtls)
    }
}

impl Default for Mesh {
    /// What is in force where no Mesh is written.
    fn default() -> Self {
        Self {
            name: NamespacedName::new("", MESH),
            mtls: Mtls::default(),
            trust_domain: None,
            networks: Vec::new(),
            egress: EgressAction::default(),
            tracing: None,
            access_log: v1::AccessLog::default(),
        }
    }
}

fn read_tracing(tracing: &kinds::Tracing, notes: &mut Notes) -> Option<v1::Tracing> {
    let collector = tracing.collector.as_str();
    if holds_user(collector) {
        notes.refuse(
            "spec.tracing.collector",
            "the address holds a user or a password, which all who may read the Mesh would see, and so would the proxies' logs",
            "leave it out, and give each proxy the header: OTEL_EXPORTER_OTLP_HEADERS=authorization=Basic%20<user:password in Base64>",
        );
        return None;
    }
    if !is_collector(collector) {
        notes.refuse(
            "spec.tracing.collector",
            format!("`{collector}` is not the address of a collector"),
            "a scheme, a host and mostly a port, such as `http://otel-collector.observability:4317`",
        );
        return None;
    }
    let protocol = match tracing.protocol {
        None => v1::OtlpProtocol::Unspecified,
        Some(kinds::OtlpProtocol::Grpc) => v1::OtlpProtocol::Grpc,
        Some(kinds::OtlpProtocol::Http) => v1::OtlpProtocol::Http,
    };
    let sampling = tracing.sampling.as_ref().map(|sampling| v1::Sampling {
        millionths: Some(millionths("spec.tracing.sampling.percent".to_owned(), sampling.percent, notes)),
        ignores_parent: Some(!sampling.parent_based),
    });
    let connections = tracing.connections;
    Some(v1::Tracing { collector: collector.to_owned(), protocol: protocol.into(), sampling, connections })
}

fn holds_user(text: &str) -> bool {
    let uri = text.parse::<http::Uri>().ok();
    uri.as_ref().and_then(http::Uri::authority).is_some_and(|authority| authority.as_str().contains('@'))
}

/// A proxy reads it as a URI, and would refuse the whole Mesh where it cannot.
fn is_collector(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    })
}

/// CIDR blocks, sorted and each once; `field` is where they are written.
pub(super) fn read_networks(field: &str, networks: &[String], notes: &mut Notes) -> Vec<IpNet> {
    let mut read = Vec::with_capacity(networks.len());
    for (index, text) in networks.iter().enumerate() {
        let field = format!("{field}[{index}]");
        match text.parse::<IpNet>() {
            Ok(network) => {
                if network.trunc() != network {
                    notes.warn(
                        field,
                        format!("`{text}` has bits beyond its prefix; read as {}", network.trunc()),
                        "",
                    );
                }
                read.push(network.trunc());
            }
            Err(_) => notes.refuse(
                field,
                format!("`{text}` is not a CIDR block"),
                "an address and a prefix length, such as `10.0.0.0/8` or `fd00::/8`",
            ),
        }
    }
    read.sort_unstable();
    read.dedup();
    read
}

/// SPIFFE ID §2.1.
pub(crate) fn is_trust_domain(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(tracing: kinds::Tracing) -> (Option<v1::Tracing>, Vec<String>) {
        let spec = kinds::MeshSpec { tracing: Some(tracing), ..kinds::MeshSpec::default() };
        let mut notes = Notes::default();
        let mesh = Mesh::read(&kinds::Mesh::new(MESH, spec), &mut notes);
        (mesh.tracing, notes.into_inner().into_iter().map(|note| note.field).collect())
    }

    #[test]
    fn a_proxy_is_told_where_spans_go_and_which() {
        let collector = "http://collector.observability:4318".to_owned();
        let tracing = kinds::Tracing { collector: collector.clone(), ..kinds::Tracing::default() };
        let told = v1::Tracing { collector, ..v1::Tracing::default() };
        assert_eq!(read(tracing.clone()), (Some(told.clone()), vec![]));
        let protocol = Some(kinds::OtlpProtocol::Http);
        let sampling = |percent| Some(kinds::Sampling { percent, parent_based: false });
        let (read, notes) =
            read(kinds::Tracing { protocol, sampling: sampling(0.1), connections: true, ..tracing });
        let sampling = Some(v1::Sampling { millionths: Some(1000), ignores_parent: Some(true) });
        assert_eq!(
            (read, notes),
            (Some(v1::Tracing { protocol: 2, sampling, connections: true, ..told }), vec![])
        );
    }

    #[test]
    fn what_no_proxy_could_use_is_refused() {
        for collector in [
            "",
            "collector:4317",
            "ftp://collector",
            "http://",
            "http://a b",
            "http://user:secret@collector:4317",
        ] {
            let (tracing, notes) =
                read(kinds::Tracing { collector: collector.to_owned(), ..kinds::Tracing::default() });
            assert_eq!((tracing, notes), (None, vec!["spec.tracing.collector".to_owned()]), "{collector}");
        }
        let sampling = Some(kinds::Sampling { percent: 101.0, parent_based: true });
        let (_, notes) =
            read(kinds::Tracing { collector: "http://c".to_owned(), sampling, ..kinds::Tracing::default() });
        assert_eq!(notes, ["spec.tracing.sampling.percent"]);
    }
}
