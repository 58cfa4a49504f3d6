//! Whether a workload takes mutual TLS, plaintext or both, port by port: what the Mesh, PeerAuthentications and the Pod's
//! `default-inbound-policy` come to.
//!
//! One result, for the workload's own proxy and for its clients': these dial as it answers, and never in plaintext what takes mutual TLS.
//!
//! The most specific that says something holds: a Service's port, its Service, the workload by name, workloads by labels, the namespace, the
//! Mesh. Of two on the very same target the older holds (GEP-713). Where several are as specific (two Services in front of one port, two
//! selectors), the strictest of them holds; and no mode is looser than a `default-inbound-policy` that asks for an identity.
//!
//! One in dry run changes no mode. Proxies are told of it as of an AuthorizationPolicy in dry run that denies whoever proves no identity: that is whom
//! `strict` refuses, and they know how to tell of it.

use std::collections::{BTreeMap, BTreeSet};

use tulle_api::v1;

use super::build::{Context, Serving, serving_of};
use super::targets::spoken;
use crate::finding::Notes;
use crate::index::Index;
use crate::object::{
    Access, AccessTarget, DEFAULT_INBOUND_POLICY, DefaultInbound, Kind, NamespacedName, Pod,
};

/// How many Pods a message names.
const TOLD: usize = 5;

/// What the rule is called by which whoever proves no identity would be refused.
const STRICT: &str = "strict";

/// How specific a target is; the greater one prevails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Namespace,
    Labels,
    Workload,
    Service,
    Port,
}

/// A mode that is said of a place, by whom, and how specific that is.
type Said<'i> = (Rank, v1::MtlsMode, &'i NamespacedName);

/// What prevails of what is said of a workload's places.
#[derive(Default)]
struct Prevailing<'i> {
    /// Of the ports that are not in `ports`.
    base: Option<Said<'i>>,
    ports: BTreeMap<u16, Said<'i>>,
}

/// The modes of a workload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Modes {
    /// Of the ports that are not in `ports`.
    pub(super) base: v1::MtlsMode,
    ports: BTreeMap<u16, v1::MtlsMode>,
}

// === impl Rank ===

impl Rank {
    fn of(target: &AccessTarget) -> Self {
        match (target.object.kind, &target.section) {
            (Kind::Service, Some(_)) => Self::Port,
            (Kind::Service, None) => Self::Service,
            (Kind::Workload, _) => Self::Workload,
            _ if target.is_by_labels() => Self::Labels,
            _ => Self::Namespace,
        }
    }
}

// === impl Modes ===

impl Modes {
    pub(super) fn at(&self, port: u16) -> v1::MtlsMode {
        self.ports.get(&port).copied().unwrap_or(self.base)
    }
}

// === impl Prevailing ===

impl<'i> Prevailing<'i> {
    /// Of the PeerAuthentications that `says` reads.
    fn of(
        index: &'i Index,
        workload: &NamespacedName,
        serving: &[Serving],
        says: impl Fn(&Access) -> Option<v1::MtlsMode>,
    ) -> Self {
        let mut all = Self::default();
        for one in spoken(index, workload, serving, Kind::PeerAuthentication) {
            let Some(mode) = says(one.policy) else { continue };
            if index.before(one.policy, one.target).is_some() {
                continue;
            }
            let new = (Rank::of(one.target), mode, &one.policy.name);
            match one.ports() {
                None => all.base = Some(all.base.map_or(new, |known| prevailing(known, new))),
                Some(of) => {
                    for port in of {
                        let known = all.ports.entry(*port);
                        known.and_modify(|known| *known = prevailing(*known, new)).or_insert(new);
                    }
                }
            }
        }
        all
    }

    fn at(&self, port: u16) -> Option<Said<'i>> {
        self.ports.get(&port).copied().or(self.base)
    }
}

// === impl Context ===

impl Context<'_> {
    /// The modes of a workload that serves these.
    pub(super) fn modes(&self, workload: &NamespacedName, serving: &[Serving]) -> Modes {
        let said = said(self.index, self.mode, workload, serving);
        let default = self.index.pod(workload).and_then(|pod| pod.default_inbound);
        if !default.is_some_and(DefaultInbound::is_authenticated) {
            return said;
        }
        Modes { base: v1::MtlsMode::Strict, ports: BTreeMap::new() }
    }

    /// What PeerAuthentications in dry run would refuse of a workload that serves these, and nothing does yet: whoever proves no identity, where
    /// one that says `strict` is no less specific than what holds.
    pub(super) fn modes_in_dry_run(
        &self,
        workload: &NamespacedName,
        serving: &[Serving],
        modes: &Modes,
    ) -> Vec<v1::AccessPolicy> {
        let dry = Prevailing::of(self.index, workload, serving, Access::mtls_in_dry_run);
        if dry.base.is_none() && dry.ports.is_empty() {
            return Vec::new();
        }
        let in_force = Prevailing::of(self.index, workload, serving, Access::mtls);
        let would = |dry: Option<Said<'_>>, in_force: Option<Said<'_>>, mode: v1::MtlsMode| {
            let (_, _, name) = dry.filter(|(rank, says, _)| {
                let prevails = in_force.is_none_or(|(known, ..)| *rank >= known);
                *says == v1::MtlsMode::Strict && mode != v1::MtlsMode::Strict && prevails
            })?;
            Some(name.to_string())
        };
        let of_base = would(dry.base, in_force.base, modes.base);
        let mut at: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        // Those that the policy of all others does not speak of.
        let mut others = BTreeSet::new();
        let served: BTreeSet<u16> = serving.iter().map(|one| one.port).collect();
        for port in served {
            let name = would(dry.at(port), in_force.at(port), modes.at(port));
            if name == of_base {
                continue;
            }
            others.insert(port);
            if let Some(name) = name {
                at.entry(name).or_default().insert(port);
            }
        }
        let of_base = of_base.map(|name| strict_in_dry_run(&name, &BTreeSet::new(), &others));
        let of_ports = at.iter().map(|(name, ports)| strict_in_dry_run(name, ports, &BTreeSet::new()));
        of_base.into_iter().chain(of_ports).collect()
    }

    /// The modes by which clients dial a workload; those of the Mesh for what has no name.
    pub(super) fn dialled(&self, workload: Option<&NamespacedName>) -> Modes {
        let of_mesh = || Modes { base: self.mode, ports: BTreeMap::new() };
        let Some(workload) = workload else {
            return of_mesh();
        };
        // Strict or permissive is all one to clients.
        if self.mode != v1::MtlsMode::Off && !self.index.has_access(Kind::PeerAuthentication) {
            return of_mesh();
        }
        self.modes(workload, &serving_of(self.index, workload).unwrap_or_default())
    }
}

/// What is said of a workload without looking at its `default-inbound-policy`.
pub(super) fn said(
    index: &Index,
    of_mesh: v1::MtlsMode,
    workload: &NamespacedName,
    serving: &[Serving],
) -> Modes {
    let all = Prevailing::of(index, workload, serving, Access::mtls);
    let ports = all.ports.into_iter().map(|(port, (_, mode, _))| (port, mode));
    Modes { base: all.base.map_or(of_mesh, |(_, mode, _)| mode), ports: ports.collect() }
}

fn prevailing<'i>(known: Said<'i>, new: Said<'i>) -> Said<'i> {
    if (new.0, strictness(new.1)) > (known.0, strictness(known.1)) { new } else { known }
}

/// Describes whoever proves no identity, at these ports; none: at every port but `not_ports`.
fn strict_in_dry_run(policy: &str, ports: &BTreeSet<u16>, not_ports: &BTreeSet<u16>) -> v1::AccessPolicy {
    let numbers = |ports: &BTreeSet<u16>| ports.iter().copied().map(u32::from).collect();
    let anybody = v1::TextMatch { r#match: Some(v1::text_match::Match::Prefix(String::new())) };
    let nobody = v1::AccessSource { not_identities: vec![anybody], ..v1::AccessSource::default() };
    let elsewhere = v1::AccessOperation { not_ports: numbers(not_ports), ..v1::AccessOperation::default() };
    let rule = v1::AccessRule {
        name: STRICT.to_owned(),
        from: vec![nobody],
        to: if not_ports.is_empty() { Vec::new() } else { vec![elsewhere] },
        when: Vec::new(),
    };
    v1::AccessPolicy {
        name: policy.to_owned(),
        action: v1::AccessAction::Deny.into(),
        dry_run: true,
        ports: numbers(ports),
        routes: Vec::new(),
        rules: vec![rule],
    }
}

/// The greater, the more is refused.
pub(super) fn strictness(mode: v1::MtlsMode) -> u8 {
    match mode {
        v1::MtlsMode::Unspecified | v1::MtlsMode::Off => 0,
        v1::MtlsMode::Permissive => 1,
        v1::MtlsMode::Strict => 2,
    }
}

/// Where a Pod's `default-inbound-policy` and a mode that is said of it differ, and the stricter of the two holds: told of a PeerAuthentication.
pub(super) fn disagreements(index: &Index, policy: &Access, notes: &mut Notes) {
    let Some(mode) = policy.mtls() else { return };
    let differs = |pod: &&Pod| {
        pod.meshed
            && pod.name.namespace == policy.name.namespace
            && pod.default_inbound.is_some_and(|default| {
                differ(mode, default) || mode != v1::MtlsMode::Strict && default.is_authenticated()
            })
            && {
                let serving = serving_of(index, &pod.name).unwrap_or_default();
                let spoken = spoken(index, &pod.name, &serving, Kind::PeerAuthentication);
                spoken.iter().any(|one| one.policy.name == policy.name)
            }
    };
    tell(mode, index.pods().filter(differs), notes);
}

/// The same of the Mesh, where no PeerAuthentication is beside it.
pub(super) fn disagreements_with_mesh(index: &Index, mode: v1::MtlsMode, notes: &mut Notes) {
    let differs = |pod: &&Pod| {
        pod.meshed
            && pod.default_inbound.is_some_and(|default| differ(mode, default))
            && said(index, mode, &pod.name, &[]).base == mode
    };
    tell(mode, index.pods().filter(differs), notes);
}

/// Whether one of the two asks for an identity, and the other says that none is needed.
fn differ(mode: v1::MtlsMode, default: DefaultInbound) -> bool {
    match default {
        DefaultInbound::AllAuthenticated | DefaultInbound::ClusterAuthenticated => mode == v1::MtlsMode::Off,
        DefaultInbound::AllUnauthenticated | DefaultInbound::ClusterUnauthenticated => {
            mode == v1::MtlsMode::Strict
        }
        DefaultInbound::Deny | DefaultInbound::Audit => false,
    }
}

fn tell<'i>(mode: v1::MtlsMode, pods: impl Iterator<Item = &'i Pod>, notes: &mut Notes) {
    let names: Vec<String> = pods.map(|pod| pod.name.to_string()).collect();
    if names.is_empty() {
        return;
    }
    let more = match names.len().saturating_sub(TOLD) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    let pods = names.iter().take(TOLD).map(String::as_str).collect::<Vec<_>>().join(", ");
    let message = match mode {
        v1::MtlsMode::Strict => format!(
            "{pods}{more} say by `{DEFAULT_INBOUND_POLICY}` that no identity is needed; `strict` holds, being stricter"
        ),
        _ => format!(
            "{pods}{more} ask for an identity by `{DEFAULT_INBOUND_POLICY}`; `strict` holds there, being stricter"
        ),
    };
    notes.warn("spec.mtls", message, "let both say the same");
}
