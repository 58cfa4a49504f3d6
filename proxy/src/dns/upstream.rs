//! The name servers that are asked about everything else: those of the host, or given ones.
//!
//! Decides which servers count: never this proxy itself, which would ask in circles. Those of the host are read again
//! when their file changes, as it does when a laptop changes networks. Caching, retries and TCP after truncation are
//! hickory's.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hickory_resolver::Resolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::NetError;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::Name;
use hickory_resolver::system_conf::parse_resolv_conf;
use parking_lot::Mutex;

use crate::io::resolver::Sockets;

/// Where the name servers are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// A file such as `/etc/resolv.conf` (resolv.conf(5)).
    File(PathBuf),
    /// These; none: nothing is forwarded.
    Fixed(Vec<SocketAddr>),
}

/// No more often than this is the file looked at.
const LOOK: Duration = Duration::from_secs(1);
/// For one try at one server; programs wait five seconds for their first answer.
const TIMEOUT: Duration = Duration::from_secs(2);
const CACHED_ANSWERS: u64 = 2048;

pub(super) struct Upstream {
    servers: Servers,
    /// Our own listeners.
    own: Vec<SocketAddr>,
    sockets: Sockets,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    loaded: Option<Arc<Loaded>>,
}

struct Loaded {
    resolver: Resolver<Sockets>,
    search: Vec<Name>,
}

// === impl Upstream ===

impl Upstream {
    /// `own`: where the proxy itself listens for questions; `sockets`: how it asks its own.
    pub(super) fn new(servers: Servers, own: Vec<SocketAddr>, sockets: Sockets) -> Self {
        Self { servers, own, sockets, state: Mutex::default() }
    }

    /// Asks the servers; the answer holds what a CNAME leads to.
    ///
    /// # Errors
    /// That there are no such records is one too.
    pub(super) async fn ask(&self, query: &Query) -> Result<Lookup, NetError> {
        let Some(loaded) = self.load() else { return Err(NetError::NoConnections) };
        let mut name = query.name().clone();
        // The search domains are those of whoever asks, and have been tried by them.
        name.set_fqdn(true);
        loaded.resolver.lookup(name, query.query_type()).await
    }

    /// Whether the servers are those of a cluster with this domain, which know more of it than we do.
    pub(super) fn serves(&self, domain: &Name) -> bool {
        self.load().is_some_and(|loaded| loaded.search.iter().any(|search| domain.zone_of(search)))
    }

    /// None if there is no server to ask.
    fn load(&self) -> Option<Arc<Loaded>> {
        let mut state = self.state.lock();
        match &self.servers {
            Servers::Fixed(servers) if state.looked.is_none() => {
                let config =
                    ResolverConfig::from_parts(None, Vec::new(), servers.iter().map(server).collect());
                state.looked = Some(Instant::now());
                state.loaded = self.resolver(config);
            }
            Servers::Fixed(_) => {}
            Servers::File(path) => {
                let now = Instant::now();
                if state.looked.is_some_and(|looked| now.duration_since(looked) < LOOK) {
                    return state.loaded.clone();
                }
                state.looked = Some(now);
                // A file that is gone for a moment changes nothing.
                let Ok(modified) = std::fs::metadata(path).and_then(|file| file.modified()) else {
                    return state.loaded.clone();
                };
                if state.modified != Some(modified) {
                    state.modified = Some(modified);
                    let read = std::fs::read(path).map_err(|error: io::Error| error.to_string());
                    match read.and_then(|text| parse_resolv_conf(text).map_err(|error| error.to_string())) {
                        Ok((config, _)) => state.loaded = self.resolver(config),
                        Err(error) => tracing::warn!(
                            file = %path.display(), error, "cannot read which name servers to ask; those known stay in use"
                        ),
                    }
                }
            }
        }
        state.loaded.clone()
    }

    fn resolver(&self, config: ResolverConfig) -> Option<Arc<Loaded>> {
        let (domain, search, servers) = config.into_parts();
        let own = |server: &NameServerConfig| {
            let mut at = server.connections.iter().map(|way| SocketAddr::new(server.ip, way.port));
            at.any(|at| self.own.iter().any(|own| is_same(*own, at)))
        };
        let (circular, servers): (Vec<_>, Vec<_>) = servers.into_iter().partition(own);
        for server in circular {
            tracing::warn!(server = %server.ip, "this name server is the proxy itself; it is not asked");
        }
        if servers.is_empty() {
            tracing::warn!("there is no name server to ask about names outside the mesh");
            return None;
        }
        let config = ResolverConfig::from_parts(domain, search.clone(), servers);
        let mut options = ResolverOpts::default();
        options.timeout = TIMEOUT;
        options.attempts = 2;
        options.edns0 = true;
        options.try_tcp_on_error = true;
        options.preserve_intermediates = true;
        options.cache_size = CACHED_ANSWERS;
        // Applications read their own.
        options.use_hosts_file = ResolveHosts::Never;
        let builder = Resolver::builder_with_config(config, self.sockets.clone());
        match builder.with_options(options).build() {
            Ok(resolver) => Some(Arc::new(Loaded { resolver, search })),
            Err(error) => {
                tracing::error!(%error, "names outside the mesh cannot be resolved");
                None
            }
        }
    }
}

fn server(address: &SocketAddr) -> NameServerConfig {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    for way in &mut server.connections {
        way.port = address.port();
    }
    server
}

/// Whether a question to `at` comes to the listener `own`.
fn is_same(own: SocketAddr, at: SocketAddr) -> bool {
    own.port() == at.port() && (own.ip() == at.ip() || own.ip().is_unspecified() && at.ip().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_does_not_ask_itself() {
        let own: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let other: SocketAddr = "127.0.0.2:53".parse().unwrap();
        assert!(Upstream::new(Servers::Fixed(vec![own]), vec![own], Sockets::default()).load().is_none());
        assert!(
            Upstream::new(Servers::Fixed(vec![own, other]), vec![own], Sockets::default()).load().is_some()
        );
        assert!(
            Upstream::new(Servers::Fixed(vec![own]), vec!["0.0.0.0:53".parse().unwrap()], Sockets::default())
                .load()
                .is_none()
        );
    }

    #[test]
    fn a_cluster_is_known_by_its_search_domains() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let domain = Name::from_ascii("cluster.local.").unwrap();
        let serves = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Upstream::new(Servers::File(file.clone()), Vec::new(), Sockets::default()).serves(&domain)
        };
        assert!(serves(
            "nameserver 10.96.0.10\nsearch shop.svc.cluster.local svc.cluster.local cluster.local\n"
        ));
        assert!(!serves("nameserver 192.0.2.1\nsearch example.com\n"));
        assert!(!serves("search svc.cluster.local\n"), "there is nobody to ask");
    }
}
