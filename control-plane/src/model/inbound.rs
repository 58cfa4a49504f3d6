//! How a workload's proxy treats what comes in, put together from all that is said of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tulle_api::{ResourceType, v1};

use super::Encoded;
use super::authorization::{Ports, Told, unite};
use super::build::{Context, NO_POD, Serving, encode, nobody, object_name, serving_of};
use crate::object::{DefaultInbound, NamespacedName, PRIVATE_NETWORKS, Telemetry};

// === impl Context ===

impl Context<'_> {
    /// `said`: what is said of all workloads of its namespace. None if nobody knows the workload, and no policy names it.
    pub(super) fn inbound(&self, name: &NamespacedName, said: Option<&Telemetry>) -> Option<Arc<Encoded>> {
        let serving = serving_of(self.index, name);
        let serving = serving.or_else(|| self.index.names_workload(name).then(Vec::new))?;
        let whole = self.workload_telemetry(name, said);
        let message = v1::InboundPolicy {
            workload: Some(object_name(name)),
            rate_limits: self.inbound_limits(&serving),
            access_log: whole.logged(),
            sampling: whole.sampled(),
            ..self.judging(name, &serving)
        };
        encode(ResourceType::InboundPolicy, &message)
    }

    /// What holds for workloads of a namespace that nobody knows yet, without their names and what they tell; none where nothing is said
    /// of all of them.
    pub(super) fn inbound_of_namespace(&self, namespace: &str) -> Option<Arc<v1::InboundPolicy>> {
        // No workload is called so, so that only what is for all of them holds.
        let unnamed = NamespacedName::new(namespace, "");
        let policy = self.judging(&unnamed, &[]);
        let closed = (!self.is_there(&unnamed)).then(|| nobody(namespace, NO_POD));
        let unsaid = v1::InboundPolicy {
            mode: self.mode.into(),
            rules: closed.into_iter().collect(),
            ..v1::InboundPolicy::default()
        };
        (policy != unsaid).then(|| Arc::new(policy))
    }

    /// What decides who is let in.
    fn judging(&self, name: &NamespacedName, serving: &[Serving]) -> v1::InboundPolicy {
        let pod = self.index.pod(name);
        let default = pod.and_then(|pod| pod.default_inbound);
        let modes = self.modes(name, serving);
        let (authentications, external) = (self.authentications(name, serving), self.external(name, serving));
        let told = if self.is_there(name) {
            let beyond = beyond_older_proxies(&authentications, &external);
            let dry = self.modes_in_dry_run(name, serving, &modes);
            self.authorization(name, serving, default == Some(DefaultInbound::Deny), (beyond, dry))
        } else {
            Told { policies: Vec::new(), rules: vec![nobody(&name.namespace, NO_POD)] }
        };
        let mut ports: BTreeMap<u16, v1::Protocol> = BTreeMap::new();
        for one in serving {
            let protocol = self.protocol(&one.service, one.service_port);
            let slot = ports.entry(one.port).or_insert(protocol);
            if *slot == v1::Protocol::Unspecified {
                *slot = protocol;
            }
        }
        if let Some(pod) = pod {
            for (port, protocol) in &mut ports {
                if pod.is_opaque_at(*port) {
                    *protocol = v1::Protocol::Tcp;
                }
            }
        }
        let ports = ports.into_iter().map(|(port, protocol)| {
            let told = self.inbound_telemetry(serving, port).unwrap_or_default();
            v1::InboundPort {
                port: port.into(),
                protocol: protocol.into(),
                mode: modes.at(port).into(),
                maximum_connection_age: self.maximum_age(serving, port),
                access_log: told.logged(),
                sampling: told.sampled(),
            }
        });
        v1::InboundPolicy {
            mode: modes.base.into(),
            ports: ports.collect(),
            rules: told.rules,
            policies: told.policies,
            authentications,
            external,
            default_networks: default.map(|default| self.default_networks(default)).unwrap_or_default(),
            default_audited: default == Some(DefaultInbound::Audit),
            ..v1::InboundPolicy::default()
        }
    }

    /// Whether a workload is what it must be in a cluster: a Pod with a proxy, or registered. That a slice names it says nothing of who may come.
    fn is_there(&self, workload: &NamespacedName) -> bool {
        let is_meshed = || self.index.pod(workload).is_some_and(|pod| pod.meshed);
        let has_registered = || self.index.registrations_of_workload(workload).next().is_some();
        !self.index.knows_pods() || is_meshed() || has_registered()
    }

    /// From where clients are let in; none: from everywhere.
    fn default_networks(&self, default: DefaultInbound) -> Vec<String> {
        if !default.is_of_cluster() {
            return Vec::new();
        }
        let mesh = self.index.mesh();
        let of_mesh = mesh.map(|mesh| mesh.object.networks.as_slice()).unwrap_or_default();
        match of_mesh.is_empty() {
            true => PRIVATE_NETWORKS.map(str::to_owned).to_vec(),
            false => of_mesh.iter().map(ToString::to_string).collect(),
        }
    }
}

/// What must agree to a request and is not known to proxies that know no `policies`: by name, and at which ports. A policy of tokens that requires none is
/// among them: such a proxy would pass on a token that is not valid, and headers of claims that the client made up.
fn beyond_older_proxies(
    authentications: &[v1::Authentication],
    external: &[v1::ExternalAuthorization],
) -> BTreeMap<String, Ports> {
    let authentications = authentications.iter().filter(|one| !one.dry_run);
    let external = external.iter().filter(|one| !one.dry_run);
    let all = authentications
        .map(|one| (format!("{}/request-authentication", one.name), &one.ports))
        // Rules cannot say all ports but some: those of authorizers are closed with the others.
        .chain(external.map(|one| (format!("{}/external-authorization", one.name), &one.ports)));
    let mut beyond: BTreeMap<String, Ports> = BTreeMap::new();
    for (name, ports) in all {
        let known = beyond.entry(name).or_insert_with(|| Some(BTreeSet::new()));
        let numbers = ports.iter().filter_map(|port| u16::try_from(*port).ok());
        unite(known, &(!ports.is_empty()).then(|| numbers.collect()));
    }
    beyond
}
