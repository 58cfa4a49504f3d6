use super::*;

fn name(namespace: &str, name: &str) -> Option<v1::ObjectName> {
    Some(v1::ObjectName { namespace: namespace.to_owned(), name: name.to_owned() })
}

fn plaintext() -> Option<v1::Peer> {
    Some(v1::Peer { peer: Some(v1::peer::Peer::Plaintext(v1::Plaintext {})) })
}

fn endpoints() -> v1::Endpoints {
    let port = v1::EndpointPort { service_port: 80, port: 8080, peer: plaintext() };
    v1::Endpoints {
        name: name("shop", "orders"),
        endpoints: vec![v1::Endpoint {
            address: "10.0.0.1".to_owned(),
            ports: vec![port],
            ready: true,
            ..v1::Endpoint::default()
        }],
    }
}

fn routes() -> v1::Routes {
    let backend =
        v1::WeightedBackend { service: name("shop", "v1"), port: 80, weight: 1, invalid: String::new() };
    let path = Some(v1::http_match::Path::Prefix("/a".to_owned()));
    v1::Routes {
        client_namespace: String::new(),
        service: name("shop", "orders"),
        http: vec![v1::HttpRoute {
            name: name("shop", "split"),
            rules: vec![v1::HttpRule {
                matches: vec![v1::HttpMatch { path }],
                backends: vec![backend],
                ..v1::HttpRule::default()
            }],
            ..v1::HttpRoute::default()
        }],
    }
}

fn rejected<M: Name>(message: &M, name: &str) -> (String, String) {
    let rejection = decode(&M::type_url(), name, &message.encode_to_vec()).expect_err("is rejected");
    assert_eq!(rejection.resource, name);
    (rejection.field, rejection.reason)
}

#[test]
fn endpoints_are_decoded() {
    let bytes = endpoints().encode_to_vec();
    let decoded = decode(&v1::Endpoints::type_url(), "shop/orders", &bytes).unwrap();
    let Decoded::Endpoints(decoded) = decoded else { panic!("{decoded:?}") };
    assert_eq!(decoded.endpoints[0].addr, "10.0.0.1:8080".parse().unwrap());
    assert_eq!(decoded.endpoints[0].peer, Peer::Plaintext);
}

#[test]
fn a_missing_peer_is_never_taken_for_plaintext() {
    let mut message = endpoints();
    message.endpoints[0].ports[0].peer = None;
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].ports[0].peer");
}

#[test]
fn each_fault_is_named_by_its_path() {
    let mut message = endpoints();
    message.endpoints[0].ports[0].port = 70_000;
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].ports[0].port");
    let mut message = endpoints();
    message.endpoints[0].address = "orders".to_owned();
    assert_eq!(rejected(&message, "shop/orders").0, "endpoints[0].address");
    assert_eq!(rejected(&endpoints(), "shop/web").0, "name");
    let mut message = routes();
    message.http[0].rules[0].matches[0].path = Some(v1::http_match::Path::Exact("a".to_owned()));
    assert_eq!(rejected(&message, "web/shop/orders").0, "http[0].rules[0].matches[0].exact");
    let mut message = routes();
    message.http[0].rules[0].backends[0].weight = 1_000_001;
    assert_eq!(rejected(&message, "web/shop/orders").0, "http[0].rules[0].backends[0].weight");
    let message = v1::InboundPolicy { workload: name("shop", "web"), ..v1::InboundPolicy::default() };
    assert_eq!(rejected(&message, "shop/web"), ("mode".to_owned(), "is not set".to_owned()));
}

#[test]
fn routes_of_all_clients_and_of_one_are_decoded_and_anothers_are_not() {
    let url = v1::Routes::type_url();
    assert!(decode(&url, "web/shop/orders", &routes().encode_to_vec()).is_ok());
    let mut message = routes();
    message.client_namespace = "web".to_owned();
    assert!(decode(&url, "web/shop/orders", &message.encode_to_vec()).is_ok());
    assert_eq!(rejected(&message, "other/shop/orders").0, "client_namespace");
}

#[test]
fn no_bytes_make_it_panic() {
    let seeds: Vec<(String, &str, Vec<u8>)> = vec![
        (v1::Endpoints::type_url(), "shop/orders", endpoints().encode_to_vec()),
        (v1::Routes::type_url(), "web/shop/orders", routes().encode_to_vec()),
    ];
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for round in 0..20_000 {
        let (url, name, bytes) = &seeds[round % seeds.len()];
        let mut bytes = bytes.clone();
        for _ in 0..=next() % 4 {
            let at = usize::try_from(next()).unwrap_or(0) % bytes.len();
            match next() % 3 {
                0 => bytes[at] = next().to_le_bytes()[0],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, next().to_le_bytes()[0]),
            }
            if bytes.is_empty() {
                break;
            }
        }
        if let Err(rejection) = decode(url, name, &bytes) {
            assert!(!rejection.reason.is_empty());
        }
    }
}
