//! What the control plane says beside what each proxy uses: the answer of `/endpoints`, as JSON.
//!
//! Decides only how the two are laid side by side, in the same words; whoever reads it compares ([`Seen`], which `tulle
//! diagnostics endpoints` reads back).

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use serde::{Deserialize, Serialize};
use tulle_api::{ResourceType, v1};

use crate::ads::Connected;
use crate::asking::Answered;
use crate::model::Model;

/// Both views.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The control plane's, by service (`<namespace>/<name>`); `None`: it knows no such service.
    pub control_plane: BTreeMap<String, Option<BTreeSet<Endpoint>>>,
    /// Each proxy's own, by name.
    pub proxies: Vec<ProxyView>,
}

/// What one proxy uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyView {
    /// `<namespace>/<workload>`.
    pub proxy: String,
    /// Its SPIFFE ID.
    pub identity: String,
    /// By service; services that it does not use are not here. `None`: it did not answer.
    pub services: Option<BTreeMap<String, BTreeSet<Endpoint>>>,
    /// It uses more than it could tell at once.
    pub is_cut: bool,
}

/// One endpoint of one port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// The service's port.
    pub port: u32,
    /// `IP:port`.
    pub address: String,
    /// The SPIFFE ID to expect; empty: plain text.
    pub identity: String,
    /// Whether it is to be picked.
    pub ready: bool,
}

/// The endpoints of `service`, or of each that anybody uses.
pub(crate) fn endpoints(
    model: &Model,
    service: &str,
    connected: &[Connected],
    answers: Vec<Answered>,
) -> Seen {
    let mut seen = Seen::default();
    let mut unasked: Vec<(&str, &str)> = connected
        .iter()
        .map(|one| (&*one.node, &*one.identity))
        .filter(|(node, _)| !node.is_empty())
        .collect();
    for Answered { node, identity, in_use } in answers {
        if let Some(at) = unasked.iter().position(|one| *one == (&*node, &*identity)) {
            unasked.swap_remove(at);
        }
        let is_cut = in_use.as_ref().is_some_and(|in_use| in_use.is_cut);
        let services = in_use.map(|in_use| {
            let services = in_use.services.into_iter();
            services
                .map(|one| (one.service, one.endpoints.into_iter().map(Endpoint::from).collect()))
                .collect()
        });
        seen.proxies.push(ProxyView { proxy: node, identity, services, is_cut });
    }
    // Older ones hold a stream of resources and no other.
    seen.proxies.extend(unasked.into_iter().map(|(node, identity)| {
        let (proxy, identity) = (node.to_owned(), identity.to_owned());
        ProxyView { proxy, identity, services: None, is_cut: false }
    }));
    let in_use = seen.proxies.iter().filter_map(|proxy| proxy.services.as_ref());
    let mut names: BTreeSet<String> = in_use.flat_map(|services| services.keys().cloned()).collect();
    if !service.is_empty() {
        names = BTreeSet::from([service.to_owned()]);
    }
    seen.control_plane = names.into_iter().map(|name| (name.clone(), of_model(model, &name))).collect();
    seen
}

fn of_model(model: &Model, service: &str) -> Option<BTreeSet<Endpoint>> {
    model.get(ResourceType::Service, service)?;
    // Without endpoints there is no such resource, or an empty one.
    let encoded = model.get(ResourceType::Endpoints, service);
    let told = encoded.and_then(|encoded| v1::Endpoints::decode(&*encoded.bytes).ok()).unwrap_or_default();
    let of_endpoint = |endpoint: v1::Endpoint| {
        let v1::Endpoint { address, ports, ready, .. } = endpoint;
        ports.into_iter().map(move |port| Endpoint::of_port(&address, port, ready))
    };
    Some(told.endpoints.into_iter().flat_map(of_endpoint).collect())
}

// === impl Seen ===

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| std::fmt::Error)?)
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn of_port(address: &str, port: v1::EndpointPort, ready: bool) -> Self {
        let identity = match port.peer.and_then(|peer| peer.peer) {
            Some(v1::peer::Peer::SpiffeId(id)) => id,
            Some(v1::peer::Peer::Plaintext(_)) | None => String::new(),
        };
        let at = match address.parse() {
            Ok(std::net::IpAddr::V6(ip)) => format!("[{ip}]:{}", port.port),
            _ => format!("{address}:{}", port.port),
        };
        Self { port: port.service_port, address: at, identity, ready }
    }
}

impl From<v1::EndpointInUse> for Endpoint {
    fn from(told: v1::EndpointInUse) -> Self {
        let v1::EndpointInUse { service_port, address, identity, ready } = told;
        Self { port: service_port, address, identity, ready }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_say_the_same_of_the_same_endpoint() {
        let identity = "spiffe://cluster.local/ns/shop/sa/orders";
        for (address, said) in [("10.0.0.1", "10.0.0.1:80"), ("fd00::1", "[fd00::1]:80")] {
            let peer = Some(v1::Peer { peer: Some(v1::peer::Peer::SpiffeId(identity.to_owned())) });
            let ours =
                Endpoint::of_port(address, v1::EndpointPort { service_port: 8080, port: 80, peer }, true);
            let told = v1::EndpointInUse {
                service_port: 8080,
                address: said.to_owned(),
                identity: identity.to_owned(),
                ready: true,
            };
            assert_eq!(ours, Endpoint::from(told));
        }
    }

    #[test]
    fn who_cannot_be_asked_is_named_too_and_nobody_twice() {
        let connected = |node: &str| Connected {
            node: node.to_owned(),
            identity: "i".to_owned(),
            since: std::time::SystemTime::UNIX_EPOCH,
            bundle: None,
            rejected: Vec::new(),
        };
        let model = Model::build(&crate::index::Index::default(), crate::model::Settings::default());
        let in_use = Some(v1::EndpointsInUse::default());
        let answers = vec![Answered { node: "shop/web".to_owned(), identity: "i".to_owned(), in_use }];
        let both = [connected("shop/web"), connected("shop/web"), connected("")];
        let seen = endpoints(&model, "shop/orders", &both, answers);
        assert_eq!(seen.control_plane, BTreeMap::from([("shop/orders".to_owned(), None)]));
        let said: Vec<bool> = seen.proxies.iter().map(|proxy| proxy.services.is_some()).collect();
        assert_eq!(said, [true, false]);
        let text = seen.to_string();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen, "{text}");
    }
}
