//! What a control plane sends, whatever that is: a value, or a rejection that names the resource and the field; and what is
//! accepted can be put to use against any request or connection.
//!
//! The first byte chooses the type of resource, the second is the seed of what it is used against, the rest is the message.
#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tulle_api::{MESH, ResourceType, v1};
use tulle_certs::SpiffeId;
use tulle_fuzz::Reader;
use tulle_proxy::control::decode::{Decoded, any, decode};
use tulle_proxy::policy::{
    Action, Connection, Egress, EgressSpec, Inbound, InboundSpec, Name, Names, Outside, Requested, TlsKind,
    Verdict,
};
use tulle_proxy::route::{Asked, Found, Match, Routes, Table, pick};

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader(data);
    let resource_type = ResourceType::ALL[reader.below(ResourceType::ALL.len())];
    let choice = reader.byte();
    let bytes = reader.0;
    let url = resource_type.type_url();
    let Some(name) = own_name(resource_type, bytes) else {
        refused(url, "shop/web", bytes);
        return;
    };
    let carried = prost_types::Any { type_url: url.to_owned(), value: bytes.to_vec() };
    assert_eq!(decode(url, &name, bytes).is_ok(), any(url, &name, &carried).is_ok());
    match decode(url, &name, bytes) {
        Err(rejection) => check(&rejection, &name),
        Ok(decoded) => {
            if !matches!(resource_type, ResourceType::Routes | ResourceType::EgressPolicy) {
                refused(url, &format!("{name}x"), bytes);
            }
            use_it(resource_type, decoded, usize::from(choice));
        }
    }
});

/// The name that a message says is its own.
fn own_name(resource_type: ResourceType, bytes: &[u8]) -> Option<String> {
    let whole = |name: Option<v1::ObjectName>| {
        name.map_or_else(|| "/".to_owned(), |name| format!("{}/{}", name.namespace, name.name))
    };
    Some(match resource_type {
        ResourceType::Mesh => v1::Mesh::decode(bytes).ok().map(|_| MESH.to_owned())?,
        ResourceType::TrustBundle => v1::TrustBundle::decode(bytes).ok()?.trust_domain,
        ResourceType::Workload => whole(v1::Workload::decode(bytes).ok()?.name),
        ResourceType::InboundPolicy => whole(v1::InboundPolicy::decode(bytes).ok()?.workload),
        // It does not say whose it is.
        ResourceType::EgressPolicy => "shop/web".to_owned(),
        ResourceType::Address => v1::Address::decode(bytes).ok()?.ip,
        ResourceType::Service => whole(v1::Service::decode(bytes).ok()?.name),
        ResourceType::Endpoints => whole(v1::Endpoints::decode(bytes).ok()?.name),
        ResourceType::Routes => {
            let routes = v1::Routes::decode(bytes).ok()?;
            let client = if routes.client_namespace.is_empty() { "web" } else { &routes.client_namespace };
            format!("{client}/{}", whole(routes.service))
        }
    })
}

fn refused(url: &str, name: &str, bytes: &[u8]) {
    let rejection = decode(url, name, bytes).expect_err("is of another name, or not a message");
    check(&rejection, name);
}

/// `http[0].rules[2].matches[0].prefix`, or nothing for the whole.
fn check(rejection: &v1::Rejection, name: &str) {
    assert_eq!(rejection.resource, name);
    assert!(!rejection.reason.is_empty(), "{rejection:?}");
    let step = |step: &str| {
        let (field, index) = step.split_once('[').unwrap_or((step, "0]"));
        let index = index.strip_suffix(']').is_some_and(|index| index.parse::<usize>().is_ok());
        index
            && !field.is_empty()
            && field.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
    };
    assert!(rejection.field.is_empty() || rejection.field.split('.').all(step), "{rejection:?}");
}

fn use_it(resource_type: ResourceType, decoded: Decoded, choice: usize) {
    match (resource_type, decoded) {
        (ResourceType::Routes, Decoded::Routes(routes)) => route(routes, choice),
        (ResourceType::InboundPolicy, Decoded::InboundPolicy(spec)) => judge(*spec, choice),
        (ResourceType::EgressPolicy, Decoded::EgressPolicy { spec, .. }) => let_out(spec, choice),
        (ResourceType::Endpoints, Decoded::Endpoints(info)) => {
            for endpoint in &info.endpoints {
                assert!(endpoint.addr.port() != 0 && endpoint.service_port != 0);
                assert!(!endpoint.addr.ip().is_unspecified());
            }
        }
        (ResourceType::Address, Decoded::Address(_))
        | (ResourceType::Service, Decoded::Service(_))
        | (ResourceType::Workload, Decoded::Workload(_))
        | (ResourceType::Mesh, Decoded::Mesh(_))
        | (ResourceType::TrustBundle, Decoded::TrustBundle(_)) => {}
        (_, decoded) => panic!("a {resource_type} becomes {decoded:?}"),
    }
}

fn route(routes: Routes, choice: usize) {
    let rules: Vec<_> = routes.routes.iter().flat_map(|route| &route.rules).map(|rule| &rule.rule).collect();
    let ports = [80, 443].into_iter().chain(routes.routes.iter().flat_map(|route| route.ports.clone()));
    let hosts = routes
        .routes
        .iter()
        .flat_map(|route| &route.hostnames)
        .map(|host| host.to_string().replace('*', "a"));
    let hosts = hosts.chain(["", "a", "a.b:80", "[::1]:80", "é."].map(str::to_owned));
    let table = Table::new(routes.clone());
    let hosts: Vec<String> = hosts.collect();
    let host = &hosts[choice % hosts.len()];
    let headers = http::HeaderMap::new();
    for port in ports {
        for path in ["", "*", "/", "//", "/a/b", "/a/"] {
            let asked = Asked {
                method: &http::Method::GET,
                authority: host,
                path,
                query: "a=%41&b",
                headers: &headers,
            };
            match table.find(port, &asked) {
                Match::NoRoutes => {
                    assert!(
                        routes
                            .routes
                            .iter()
                            .all(|route| !route.ports.is_empty() && !route.ports.contains(&port))
                    );
                }
                Match::NotFound | Match::TooLong(_) => {}
                Match::Rule(Found { rule, prefix, .. }) => {
                    assert!(rules.contains(&rule));
                    assert!(prefix <= path.len());
                    for random in [0, u64::MAX / 2, u64::MAX, choice as u64] {
                        let weighted = rule.backends.iter().any(|backend| backend.weight > 0);
                        let picked = pick(&rule.backends, random);
                        assert_eq!(picked.is_some(), weighted);
                        assert!(picked.is_none_or(|backend| backend.weight > 0));
                    }
                }
            }
        }
    }
}

fn let_out(spec: EgressSpec, choice: usize) {
    let names = spec.rules.iter().flat_map(|rule| match &rule.names {
        Names::Any => Vec::new(),
        Names::Sni(names) | Names::Host(names) => {
            names.iter().map(|name| name.to_string().replace('*', "a")).collect()
        }
    });
    let names: Vec<String> = names.chain(["", ".", "a.b", "é."].map(str::to_owned)).collect();
    let name = names[choice % names.len()].as_str();
    let networks = spec.rules.iter().flat_map(|rule| &rule.networks).map(|network| network.addr());
    let ips: Vec<IpAddr> = networks.chain([IpAddr::from([192, 0, 2, 1])]).collect();
    let ports = spec.rules.iter().flat_map(|rule| rule.ports.clone()).chain([443]);
    let address = SocketAddr::new(ips[choice % ips.len()], ports.max().unwrap_or(443));
    let policy = Egress::new(spec.clone());
    for name in [Name::None, Name::Tls(None), Name::Tls(Some(name.into())), Name::Http(name.into())] {
        // Whatever describes it, nothing stricter than what is said does.
        let verdict = policy.evaluate(&Outside { address, name });
        let (rule, action) = match &verdict {
            Verdict::Allow { rule } => (Some(rule), Action::Allow),
            Verdict::Audit { rule } => (Some(rule), Action::Audit),
            Verdict::Deny { rule, .. } => (rule.as_ref(), Action::Deny),
        };
        let said = spec.rules.iter().any(|one| Some(&one.name) == rule && one.action == action);
        assert!(said || (Some(&spec.action_name) == rule && action == spec.action), "{verdict:?}");
    }
}

/// Whoever lets in a request, or bytes, lets in their connection; and what nobody can tell is let in by nothing that looks at it.
fn judge_requests(spec: InboundSpec, choice: usize) {
    let paths = ["/", "*", "", "/a/b", "//a", "/a/../b;c", "/%61", "/a%2fb", "/shop.Orders/Place"];
    let hosts = ["", "orders", "a@b", "[::1]:80", "A.example.com."];
    let stranger = SpiffeId::parse("spiffe://elsewhere/ns/a/sa/b").expect("is one");
    let peer = [None, Some(&stranger)][choice % 2];
    let tls = if peer.is_some() { TlsKind::Mesh } else { TlsKind::None };
    let (host, grpc, client) = (hosts[choice % hosts.len()], choice % 3 == 0, IpAddr::from([10, 0, 0, 1]));
    let ports = spec.policies.iter().flat_map(|policy| policy.ports.clone()).chain([80]);
    let ports: Vec<u16> = ports.collect();
    let inbound = Inbound::new(spec, std::time::Instant::now());
    let headers = http::HeaderMap::from_iter([(http::header::ACCEPT, http::HeaderValue::from_static("a"))]);
    for port in ports {
        let connection = Connection { port, peer, tls, client };
        let stays = inbound.evaluate(&connection).is_allowed();
        assert!(stays || !inbound.evaluate_bytes(&connection).verdict.is_allowed());
        for path in paths {
            let method = &http::Method::GET;
            let asked = Asked { method, authority: host, path, query: "", headers: &headers };
            let requested = Requested { asked, grpc, claims: None, headless: choice % 5 == 0 };
            let judged = inbound.evaluate_request(&connection, &requested);
            assert!(stays || !judged.verdict.is_allowed(), "{connection:?} {requested:?}");
        }
    }
}

fn judge(spec: InboundSpec, choice: usize) {
    if !spec.policies.is_empty() {
        return judge_requests(spec, choice);
    }
    let ids: Vec<SpiffeId> = spec.rules.iter().flat_map(|rule| rule.identities.clone()).collect();
    let stranger = SpiffeId::parse("spiffe://elsewhere/ns/a/sa/b").expect("is one");
    let peers: Vec<Option<&SpiffeId>> = ids.iter().map(Some).chain([None, Some(&stranger)]).collect();
    let peer = peers[choice % peers.len()];
    let ports = [80, 65535].into_iter().chain(spec.rules.iter().flat_map(|rule| rule.ports.clone()));
    let ports: Vec<u16> = ports.chain(spec.ports.iter().map(|(port, _)| *port)).collect();
    let inbound = Inbound::new(spec.clone(), std::time::Instant::now());
    for port in ports {
        for tls in [TlsKind::Mesh, TlsKind::None, TlsKind::ApplicationTls] {
            let client = IpAddr::from([127, 0, 0, 1]);
            let verdict = inbound.evaluate(&Connection { port, peer, tls, client });
            // Said again, plainly.
            let speaks: Vec<_> = spec
                .rules
                .iter()
                .filter(|rule| rule.ports.is_empty() || rule.ports.contains(&port))
                .collect();
            let named = |id| speaks.iter().any(|rule| rule.identities.contains(id));
            let proven = peer.filter(|_| tls == TlsKind::Mesh);
            let strict = inbound.port(port).mode == tulle_proxy::state::Mode::Strict;
            let admitted = if tls == TlsKind::Mesh { proven.is_some() } else { !strict };
            let networks = &spec.unspoken.networks;
            let from_there = networks.is_empty() || networks.iter().any(|network| network.contains(&client));
            let allowed = admitted && if speaks.is_empty() { from_there } else { proven.is_some_and(named) };
            let told = speaks.is_empty() && spec.unspoken.audited;
            let expected = match (&verdict, told) {
                (Verdict::Allow { .. }, false) | (Verdict::Audit { .. }, true) => true,
                (Verdict::Deny { .. }, _) => false,
                _ => panic!("{port} {tls:?} {peer:?} {verdict:?}"),
            };
            assert_eq!(expected, allowed, "{port} {tls:?} {peer:?} {verdict:?}");
        }
    }
}
