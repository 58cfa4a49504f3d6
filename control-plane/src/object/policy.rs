//! AuthorizationPolicy: who may connect.

use std::collections::BTreeSet;

use tulle_certs::SpiffeId;

use super::{NamespacedName, is_label, is_subdomain, port};
use crate::finding::Notes;
use crate::kinds::{self, PolicyTargetRef};

/// An AuthorizationPolicy, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Its own name; targets share its namespace.
    pub name: NamespacedName,
    /// Of the spec that this is, where an API server counts them.
    pub generation: Option<i64>,
    /// Names of Services in the policy's namespace, each once.
    pub targets: Vec<PolicyTarget>,
    /// None: nobody is allowed.
    pub rules: Vec<Rule>,
}

/// A targeted Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyTarget {
    /// In the policy's namespace.
    pub service: NamespacedName,
    /// Its place in `targetRefs`.
    pub index: usize,
}

/// One rule of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The rule's own name, or its index.
    pub name: String,
    /// Service ports; empty: every port.
    pub ports: Vec<u16>,
    /// Who is allowed.
    pub identities: Vec<Identity>,
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

// === impl Policy ===

impl Policy {
    pub(super) fn read(object: &kinds::AuthorizationPolicy, notes: &mut Notes) -> Self {
        let name = NamespacedName::of(&object.metadata);
        if object.spec.target_refs.is_empty() {
            notes.refuse(
                "spec.targetRefs",
                "the policy is attached to nothing",
                "name at least one Service: `targetRefs: [{group: \"\", kind: Service, name: …}]`",
            );
        }
        Self {
            targets: read_targets(&name, &object.spec.target_refs, notes),
            rules: read_rules(&object.spec.rules, notes),
            generation: object.metadata.generation,
            name,
        }
    }

    /// A policy that allows nobody: in force in place of one that cannot be read and never could, since who was to
    /// be kept out is not known.
    pub fn closed(name: NamespacedName, target_refs: &[PolicyTargetRef]) -> Self {
        Self {
            targets: read_targets(&name, target_refs, &mut Notes::default()),
            rules: vec![Rule { name: "unreadable".to_owned(), ports: Vec::new(), identities: Vec::new() }],
            generation: None,
            name,
        }
    }
}

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

fn read_rules(rules: &[kinds::PolicyRule], notes: &mut Notes) -> Vec<Rule> {
    let mut names = BTreeSet::new();
    let mut read = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let name = read_name(&at, index, rule.name.as_deref(), &mut names, notes);
        if rule.from.iter().all(|source| source.identities.is_empty()) {
            notes.refuse(
                format!("{at}.from"),
                "the rule names no identity, so it would allow nobody",
                "list identities, or remove the rule",
            );
        }
        read.push(Rule {
            name,
            ports: read_ports(&format!("{at}.toPorts"), &rule.to_ports, notes),
            identities: read_identities(&at, &rule.from, notes),
        });
    }
    read
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

fn read_identities(at: &str, from: &[kinds::PolicySource], notes: &mut Notes) -> Vec<Identity> {
    let mut identities = Vec::new();
    for (source_index, source) in from.iter().enumerate() {
        for (index, text) in source.identities.iter().enumerate() {
            match Identity::parse(text) {
                Some(identity) => identities.push(identity),
                None => notes.refuse(
                    format!("{at}.from[{source_index}].identities[{index}]"),
                    format!("`{text}` is not an identity"),
                    IDENTITY_HINT,
                ),
            }
        }
    }
    identities
}
