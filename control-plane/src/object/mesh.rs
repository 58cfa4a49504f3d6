//! The Mesh: what everybody shares.

use ipnet::IpNet;
use tulle_api::{MESH, v1};

use super::NamespacedName;
use crate::finding::Notes;
use crate::kinds::{self, EgressAction, Mtls};

/// The trust domain unless one is set.
pub const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

/// The Mesh, read.
#[derive(Debug, Clone, PartialEq, Eq)]
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
        }
    }

    /// As a proxy is told.
    pub fn mode(&self) -> v1::MtlsMode {
        match self.mtls {
            Mtls::Permissive => v1::MtlsMode::Permissive,
            Mtls::Strict => v1::MtlsMode::Strict,
            Mtls::Off => v1::MtlsMode::Off,
        }
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
        }
    }
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
