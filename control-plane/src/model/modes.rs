//! Whether a workload takes mutual TLS, plaintext or both, port by port: what the Mesh, PeerAuthentications and the Pod's
//! `default-inbound-policy` come to.
//!
//! One result, for the workload's own proxy and for its clients': these dial as it answers, and never in plaintext what takes mutual TLS.
//!
//! The most specific that says something holds: a Service's port, its Service, the workload by name, workloads by labels, the namespace, the
//! Mesh. Of two on the very same target the older holds (GEP-713). Where several are as specific (two Services in front of one port, two
//! selectors), the strictest of them holds; and no mode is looser than a `default-inbound-policy` that asks for an identity.

use std::collections::BTreeMap;

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

/// How specific a target is; the greater one prevails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Namespace,
    Labels,
    Workload,
    Service,
    Port,
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
    let mut base: Option<(Rank, v1::MtlsMode)> = None;
    let mut ports: BTreeMap<u16, (Rank, v1::MtlsMode)> = BTreeMap::new();
    for one in spoken(index, workload, serving, Kind::PeerAuthentication) {
        let Some(mode) = one.policy.mtls() else { continue };
        if index.before(one.policy, one.target).is_some() {
            continue;
        }
        let new = (Rank::of(one.target), mode);
        match one.ports() {
            None => base = Some(base.map_or(new, |known| prevailing(known, new))),
            Some(of) => {
                for port in of {
                    ports.entry(*port).and_modify(|known| *known = prevailing(*known, new)).or_insert(new);
                }
            }
        }
    }
    let ports = ports.into_iter().map(|(port, (_, mode))| (port, mode));
    Modes { base: base.map_or(of_mesh, |(_, mode)| mode), ports: ports.collect() }
}

fn prevailing(known: (Rank, v1::MtlsMode), new: (Rank, v1::MtlsMode)) -> (Rank, v1::MtlsMode) {
    if (new.0, strictness(new.1)) > (known.0, strictness(known.1)) { new } else { known }
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
