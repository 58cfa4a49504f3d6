//! EgressPolicy: what may be reached outside the mesh.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::NamespacedName;
use super::mesh::read_networks;
use super::policy::{PolicyTarget, read_name, read_ports, read_targets};
use super::resilience::at_most;
use super::route::read_hostnames;
use crate::finding::Notes;
use crate::kinds::{self, EgressAction, PolicyTargetRef};

/// How many Services an API server takes, and how many rules.
const MAX_TARGETS: usize = 16;
const MAX_RULES: usize = 128;

/// An EgressPolicy, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Egress {
    /// Its own name; it is for workloads of its namespace.
    pub name: NamespacedName,
    /// Of the spec that this is, where an API server counts them.
    pub generation: Option<i64>,
    /// Services in its namespace, each once: it is for the workloads behind them. None: for every workload.
    pub targets: Vec<PolicyTarget>,
    /// What becomes of destinations that no rule describes; none: the policy does not say.
    pub action: Option<EgressAction>,
    /// In the order in which they are written.
    pub rules: Vec<EgressRule>,
}

/// One rule: destinations that fit every field that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressRule {
    /// The rule's own name, or its index.
    pub name: String,
    /// What becomes of the destinations.
    pub action: EgressAction,
    /// Where they are; sorted, without host bits.
    pub networks: Vec<IpNet>,
    /// The ports dialled there.
    pub ports: Vec<u16>,
    /// Server names of TLS; `*.` prefix allowed.
    pub sni: Vec<String>,
    /// Hosts of HTTP in plain text; `*.` prefix allowed.
    pub hosts: Vec<String>,
}

// === impl Egress ===

impl Egress {
    pub(super) fn read(object: &kinds::EgressPolicy, notes: &mut Notes) -> Self {
        let spec = &object.spec;
        let name = NamespacedName::of(&object.metadata);
        if spec.action.is_none() && spec.rules.is_empty() {
            notes.warn(
                "spec",
                "the policy has neither an action nor a rule, so it does nothing",
                "write `action: allow`, `audit` or `deny`, or rules",
            );
        }
        at_most(MAX_TARGETS, spec.target_refs.len(), "spec.targetRefs", notes);
        at_most(MAX_RULES, spec.rules.len(), "spec.rules", notes);
        Self {
            targets: read_targets(&name, &spec.target_refs, notes),
            action: spec.action,
            rules: read_rules(&spec.rules, notes),
            generation: object.metadata.generation,
            name,
        }
    }

    /// A policy by which nothing outside is reached: in force in place of one that cannot be read and never could, since
    /// what was to be denied is not known.
    pub fn closed(name: NamespacedName, target_refs: &[PolicyTargetRef]) -> Self {
        let rule = EgressRule {
            name: "unreadable".to_owned(),
            action: EgressAction::Deny,
            networks: Vec::new(),
            ports: Vec::new(),
            sni: Vec::new(),
            hosts: Vec::new(),
        };
        Self {
            targets: read_targets(&name, target_refs, &mut Notes::default()),
            action: None,
            rules: vec![rule],
            generation: None,
            name,
        }
    }
}

fn read_rules(rules: &[kinds::EgressRule], notes: &mut Notes) -> Vec<EgressRule> {
    let mut names = BTreeSet::new();
    let mut read = Vec::with_capacity(rules.len());
    for (index, rule) in rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let name = read_name(&at, index, rule.name.as_deref(), &mut names, notes);
        if rule.cidrs.is_empty() && rule.ports.is_empty() && rule.sni.is_empty() && rule.hosts.is_empty() {
            notes.refuse(
                at.as_str(),
                "the rule describes no destination, so it would be about every one",
                "add `cidrs`, `ports`, `sni` or `hosts`; what is to hold for all the rest is the policy's `action`",
            );
        }
        if !rule.sni.is_empty() && !rule.hosts.is_empty() {
            notes.refuse(
                format!("{at}.hosts"),
                "no connection has both a TLS server name (`sni`) and an HTTP host in plain text (`hosts`), so the rule would describe nothing",
                "write two rules",
            );
        }
        read.push(EgressRule {
            name,
            action: rule.action,
            networks: read_networks(&format!("{at}.cidrs"), &rule.cidrs, notes),
            ports: read_ports(&format!("{at}.ports"), &rule.ports, notes),
            sni: read_hostnames(&format!("{at}.sni"), &rule.sni, notes),
            hosts: read_hostnames(&format!("{at}.hosts"), &rule.hosts, notes),
        });
    }
    read
}
