//! What a name may mean: pure.

use std::net::IpAddr;

use hickory_resolver::proto::rr::Name;

use crate::state::{ObjectName, is_label};

/// What is asked about.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A service, in one of its usual spellings. `within`: the name ends in the cluster's domain, so that it can be
    /// nothing else; `orders` and `orders.shop` may be names of the world outside too.
    Service { name: ObjectName, within: bool },
    /// `_<port>._tcp.<service>.<namespace>.svc…` (RFC 2782).
    Port { service: ObjectName, port: String },
    /// Of the cluster's domain, and no service's.
    Within,
    /// Whose address is this (RFC 1035 §3.5)?
    Reverse(IpAddr),
    /// This host, whatever anybody else says (RFC 6761 §6.3).
    Localhost,
    /// Somebody else's business.
    Other,
}

/// `namespace` is that of whoever asks; `domain` the cluster's, such as `cluster.local`.
pub(super) fn meaning(name: &Name, namespace: &str, domain: &str) -> Meaning {
    let Some(labels) = labels(name) else { return Meaning::Other };
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let domain: Vec<&str> = domain.split('.').collect();
    if let Some(inside) = labels.strip_suffix(domain.as_slice()) {
        return inside.strip_suffix(&["svc"]).map_or(Meaning::Within, within);
    }
    match labels.as_slice() {
        [.., "localhost"] => Meaning::Localhost,
        [.., "in-addr" | "ip6", "arpa"] => {
            let host = name.parse_arpa_name().ok().filter(|net| net.prefix_len() == net.max_prefix_len());
            host.map_or(Meaning::Other, |net| Meaning::Reverse(net.addr()))
        }
        [service, namespace @ .., "svc"] if !namespace.is_empty() => {
            within(&[&[*service][..], namespace].concat())
        }
        [service] => service_name(namespace, service)
            .map_or(Meaning::Other, |name| Meaning::Service { name, within: false }),
        [service, namespace] => service_name(namespace, service)
            .map_or(Meaning::Other, |name| Meaning::Service { name, within: false }),
        _ => Meaning::Other,
    }
}

/// What stands before `svc`.
fn within(labels: &[&str]) -> Meaning {
    match labels {
        [service, namespace] => service_name(namespace, service)
            .map_or(Meaning::Within, |name| Meaning::Service { name, within: true }),
        [port, "_tcp", service, namespace] => {
            match (port.strip_prefix('_'), service_name(namespace, service)) {
                (Some(port), Some(service)) => Meaning::Port { service, port: port.to_owned() },
                _ => Meaning::Within,
            }
        }
        _ => Meaning::Within,
    }
}

/// In lower case; None if one is not text, which names of ours always are.
fn labels(name: &Name) -> Option<Vec<String>> {
    name.iter().map(|label| std::str::from_utf8(label).ok().map(str::to_ascii_lowercase)).collect()
}

/// None if Kubernetes could not have such a service (RFC 1123 §2.1), so that nobody is asked about it.
fn service_name(namespace: &str, service: &str) -> Option<ObjectName> {
    (is_label(namespace) && is_label(service)).then(|| ObjectName::new(namespace, service))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn means(name: &str) -> Meaning {
        meaning(&Name::from_ascii(name).unwrap(), "shop", "cluster.local")
    }

    #[test]
    fn a_service_is_known_in_all_its_usual_spellings() {
        let orders = |within| Meaning::Service { name: ObjectName::new("shop", "orders"), within };
        for (name, within) in [
            ("orders.", false),
            ("Orders.", false),
            ("orders.shop.", false),
            ("orders.shop.svc.", true),
            ("orders.shop.svc.cluster.local.", true),
            ("ORDERS.shop.SVC.cluster.LOCAL.", true),
        ] {
            assert_eq!(means(name), orders(within), "{name}");
        }
        let other = Meaning::Service { name: ObjectName::new("billing", "orders"), within: true };
        assert_eq!(means("orders.billing.svc.cluster.local."), other);
    }

    #[test]
    fn the_rest_is_told_apart() {
        let port = Meaning::Port { service: ObjectName::new("shop", "orders"), port: "http".to_owned() };
        for (name, expected) in [
            ("_http._tcp.orders.shop.svc.cluster.local.", port),
            ("_http._udp.orders.shop.svc.cluster.local.", Meaning::Within),
            ("http._tcp.orders.shop.svc.cluster.local.", Meaning::Within),
            // What a resolver with search domains asks first for `www.example.com`.
            ("www.example.com.shop.svc.cluster.local.", Meaning::Within),
            ("nothing.cluster.local.", Meaning::Within),
            ("cluster.local.", Meaning::Within),
            ("svc.cluster.local.", Meaning::Within),
            ("orders_1.shop.svc.cluster.local.", Meaning::Within),
            ("localhost.", Meaning::Localhost),
            ("app.LOCALHOST.", Meaning::Localhost),
            ("www.example.com.", Meaning::Other),
            ("_dmarc.", Meaning::Other),
            (".", Meaning::Other),
            ("1.18.198.in-addr.arpa.", Meaning::Other),
            ("4.1.18.198.in-addr.arpa.", Meaning::Reverse(IpAddr::from([198, 18, 1, 4]))),
        ] {
            assert_eq!(means(name), expected, "{name}");
        }
    }
}
