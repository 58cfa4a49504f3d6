//! Routes for whole connections: TLSRoutes, by the server name that the client says, and TCPRoutes.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::fast::RandomState;

use super::host::{Hostname, RequestHost};
use super::table::Backend;
use crate::state::ObjectName;

/// One `TLSRoute` or `TCPRoute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRoute {
    pub name: ObjectName,
    /// The same as text, for metrics and logs.
    pub label: Arc<str>,
    /// The service's ports that it is attached to; empty: every port.
    pub ports: Vec<u16>,
    /// Empty: every connection, whatever it carries.
    pub server_names: Vec<Hostname>,
    /// Their filters are none.
    pub backends: Box<[Backend]>,
}

/// The routes for the connections to one port, compiled.
#[derive(Debug, Default)]
pub struct Streams {
    exact: HashMap<Box<str>, Arc<StreamRoute>, RandomState>,
    suffixes: HashMap<Box<str>, Arc<StreamRoute>, RandomState>,
    any: Option<Arc<StreamRoute>>,
}

/// Of each port that some route names, and of all others; `None` where there are no routes.
#[derive(Debug)]
pub(super) struct Ports {
    named: HashMap<u16, Option<Arc<Streams>>, RandomState>,
    every: Option<Arc<Streams>>,
}

// === impl Streams ===

impl Streams {
    /// `None` if no route is attached. Of routes that say the same name, the first holds.
    fn new<'a>(routes: impl Iterator<Item = &'a StreamRoute>) -> Option<Arc<Self>> {
        let mut routes = routes.peekable();
        routes.peek()?;
        let mut streams = Self::default();
        for route in routes {
            let route = Arc::new(route.clone());
            for name in &route.server_names {
                let (names, name) = match name {
                    Hostname::Exact(name) => (&mut streams.exact, name),
                    Hostname::Suffix(name) => (&mut streams.suffixes, name),
                };
                names.entry(name.clone()).or_insert_with(|| Arc::clone(&route));
            }
            if route.server_names.is_empty() {
                streams.any.get_or_insert(route);
            }
        }
        Some(Arc::new(streams))
    }

    /// Whether a connection's server name must be known to find its route.
    pub fn ask_for_names(&self) -> bool {
        !self.exact.is_empty() || !self.suffixes.is_empty()
    }

    /// The route of a connection: that of its very server name, else of the longest wildcard, else the one for all.
    pub fn find(&self, server_name: Option<&str>) -> Option<&Arc<StreamRoute>> {
        let host = server_name.and_then(RequestHost::new);
        let named = host.as_ref().and_then(|host| {
            let host = host.as_str();
            // From the longest: everything after the first dot, after the second, and so on.
            let mut ends = host.match_indices('.').filter(|(dot, _)| *dot > 0);
            self.exact.get(host).or_else(|| ends.find_map(|(dot, _)| self.suffixes.get(&host[dot + 1..])))
        });
        named.or(self.any.as_ref())
    }
}

// === impl Ports ===

impl Ports {
    pub(super) fn new(routes: &[StreamRoute]) -> Self {
        let every = Streams::new(routes.iter().filter(|route| route.ports.is_empty()));
        let ports = routes.iter().flat_map(|route| &route.ports);
        let attached = |port: &u16| {
            Streams::new(routes.iter().filter(|route| route.ports.is_empty() || route.ports.contains(port)))
        };
        let mut named: HashMap<u16, Option<Arc<Streams>>, RandomState> = HashMap::default();
        for port in ports {
            named.entry(*port).or_insert_with(|| attached(port));
        }
        Self { named, every }
    }

    pub(super) fn at(&self, port: u16) -> Option<&Arc<Streams>> {
        self.named.get(&port).unwrap_or(&self.every).as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(name: &str, ports: &[u16], server_names: &[&str]) -> StreamRoute {
        StreamRoute {
            name: ObjectName::new("shop", name),
            label: name.into(),
            ports: ports.to_vec(),
            server_names: server_names.iter().map(|name| name.parse().unwrap()).collect(),
            backends: Box::default(),
        }
    }

    fn found(ports: &Ports, port: u16, server_name: Option<&str>) -> Option<Arc<str>> {
        Some(Arc::clone(&ports.at(port)?.find(server_name)?.label))
    }

    #[test]
    fn the_most_specific_server_name_decides_then_the_older_route() {
        let ports = Ports::new(&[
            route("wide", &[], &["*.example.com"]),
            route("exact", &[], &["a.example.com", "x.a.example.com"]),
            route("narrow", &[], &["*.a.example.com", "*.example.com"]),
            route("late", &[], &["a.example.com"]),
        ]);
        for (server_name, expected) in [
            (Some("a.example.com"), Some("exact")),
            (Some("A.Example.COM."), Some("exact")),
            (Some("b.example.com"), Some("wide")),
            (Some("b.a.example.com"), Some("narrow")),
            (Some("c.b.a.example.com"), Some("narrow")),
            (Some("x.a.example.com"), Some("exact")),
            (Some("example.com"), None),
            (Some(".example.com"), None),
            (Some("notexample.com"), None),
            (Some(""), None),
            (None, None),
        ] {
            assert_eq!(found(&ports, 443, server_name).as_deref(), expected, "{server_name:?}");
        }
        assert!(ports.at(443).unwrap().ask_for_names());
    }

    #[test]
    fn a_route_without_names_takes_every_connection_of_its_ports() {
        let ports = Ports::new(&[route("one", &[1], &[]), route("two", &[1, 2], &[])]);
        assert_eq!(found(&ports, 1, None).as_deref(), Some("one"));
        assert_eq!(found(&ports, 2, Some("a.example.com")).as_deref(), Some("two"));
        assert!(ports.at(3).is_none());
        assert!(!ports.at(1).unwrap().ask_for_names());
    }
}
