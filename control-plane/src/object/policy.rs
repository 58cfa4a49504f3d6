//! What policies have in common: identities, the Services that an EgressPolicy is attached to, and the names of rules.

use std::collections::BTreeSet;

use tulle_certs::SpiffeId;

use super::{NamespacedName, is_label, is_subdomain, port};
use crate::finding::Notes;
use crate::kinds::PolicyTargetRef;

/// A targeted Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTarget {
    /// In the policy's namespace.
    pub service: NamespacedName,
    /// Its place in `targetRefs`.
    pub index: usize,
}

/// Who, as written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Identity {
    /// A whole SPIFFE ID.
    Spiffe(String),
    /// A service account of the mesh's own trust domain.
    ServiceAccount {
        /// The account's namespace.
        namespace: String,
        /// The account's name.
        name: String,
    },
}

// === impl Identity ===

impl Identity {
    /// Reads `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`, the only form that a proxy takes, or
    /// `<namespace>/<service account>`.
    pub fn parse(text: &str) -> Option<Self> {
        if text.starts_with("spiffe://") {
            return SpiffeId::parse(text).ok().map(|id| Self::Spiffe(id.into()));
        }
        let (namespace, name) = text.split_once('/')?;
        (is_label(namespace) && is_subdomain(name))
            .then(|| Self::ServiceAccount { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The whole SPIFFE ID, in `trust_domain` unless it names its own.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        match self {
            Self::Spiffe(id) => id.clone(),
            Self::ServiceAccount { namespace, name } => {
                format!("spiffe://{trust_domain}/ns/{namespace}/sa/{name}")
            }
        }
    }
}

/// What is said to do where an identity cannot be read.
pub(super) const IDENTITY_HINT: &str = "write `<namespace>/<service account>`, such as `default/web`, or `spiffe://<trust domain>/ns/<namespace>/sa/<service account>`";

/// The namespace that a target is said to be in, if that is another than its policy's.
pub(crate) fn foreign<'n>(policy: &NamespacedName, namespace: Option<&'n str>) -> Option<&'n str> {
    namespace.filter(|namespace| *namespace != &*policy.namespace)
}

/// Refuses the policy: what its author means to be in force elsewhere must not be in force here, nor pass for being in force there.
pub(super) fn refuse_foreign(index: usize, namespace: &str, notes: &mut Notes) {
    notes.refuse(
        format!("spec.targetRefs[{index}].namespace"),
        format!("the policy cannot be attached to what is in the namespace `{namespace}`, only in its own"),
        "write the policy in that namespace, and no `namespace` here",
    );
}

pub(super) fn read_targets(
    policy: &NamespacedName,
    refs: &[PolicyTargetRef],
    notes: &mut Notes,
) -> Vec<PolicyTarget> {
    let mut targets: Vec<PolicyTarget> = Vec::with_capacity(refs.len());
    for (index, target) in refs.iter().enumerate() {
        if !target.group.is_empty() || target.kind != "Service" {
            notes.refuse(
                format!("spec.targetRefs[{index}].kind"),
                format!("a policy cannot be attached to a `{}`", target.kind),
                "attach it to `kind: Service` with `group: \"\"`",
            );
            continue;
        }
        if let Some(other) = foreign(policy, target.namespace.as_deref()) {
            refuse_foreign(index, other, notes);
            continue;
        }
        let service = NamespacedName::new(policy.namespace.clone(), target.name.as_str());
        if targets.iter().all(|known| known.service != service) {
            targets.push(PolicyTarget { service, index });
        }
    }
    targets
}

/// The name of the rule at `at`, the `index`th: its own, or the index; not yet among `names`.
pub(super) fn read_name(
    at: &str,
    index: usize,
    name: Option<&str>,
    names: &mut BTreeSet<String>,
    notes: &mut Notes,
) -> String {
    let field = format!("{at}.name");
    let name = name.map_or_else(|| index.to_string(), str::to_owned);
    if name.is_empty() || name.contains('/') {
        notes.refuse(
            field.as_str(),
            format!("`{name}` cannot be a rule's name"),
            "not empty, and without `/`",
        );
    }
    if !names.insert(name.clone()) {
        notes.refuse(
            field,
            format!("two rules are called `{name}`"),
            "rules are told apart by name in logs and metrics: rename one",
        );
    }
    name
}

pub(super) fn read_ports(field: &str, ports: &[i32], notes: &mut Notes) -> Vec<u16> {
    let ports = ports.iter().enumerate();
    ports.map(|(index, number)| port(*number, format!("{field}[{index}]"), notes)).collect()
}
