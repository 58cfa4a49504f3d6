//! Where spans go: what the proxy's variables say of tracing, and where they say nothing, policies and the mesh; and the way to the collector.
//!
//! Decides when tracing begins, changes and ends ([`Sender::keep`]); what is sent and how is [`trace`](crate::telemetry::trace)'s. A connection to a
//! collector is the proxy's own, outside the mesh: by name and address, with TLS by public roots where its address says `https`. These are
//! read anew when their file has changed, for connections from then on ([`Roots`]).

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use super::channel;
use crate::config::Tracing;
use crate::state::{ObjectName, Store};
use crate::telemetry::Telemetry;
use crate::telemetry::trace::export::Stream;
use crate::telemetry::trace::{Collector, Connect, Exporter, How, Limits, Protocol, Spans};

/// How long dialling, TLS included, may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long what is left may take when the proxy ends.
const LAST: Duration = Duration::from_secs(2);
/// When a file of roots is looked for again that could not be read.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Where systems keep the roots that they trust.
const SYSTEM_ROOTS: [&str; 3] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];

/// Whose spans are sent, and by whom.
#[derive(Debug)]
pub struct Sender {
    telemetry: Telemetry,
    workload: Option<ObjectName>,
    host: String,
    mark: Option<u32>,
    /// In force.
    now: Option<Tracing>,
    /// Where spans go, and those that wait to.
    to: Option<(To, Arc<Spans>)>,
    /// What waits for spans of requests that began before a change.
    retired: Vec<Weak<Spans>>,
    exporters: JoinSet<()>,
}

/// What a queue of spans and its connection depend on.
#[derive(Debug, PartialEq)]
struct To {
    collector: Collector,
    limits: Limits,
    roots: Option<PathBuf>,
}

// === impl Sender ===

impl Sender {
    /// Of this workload; nothing is traced yet. `mark`: of the proxy's own connections.
    pub fn new(telemetry: Telemetry, workload: Option<ObjectName>, mark: Option<u32>) -> Self {
        // In a pod, its name.
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host = host.trim().to_owned();
        let (retired, exporters) = (Vec::new(), JoinSet::new());
        Self { telemetry, workload, host, mark, now: None, to: None, retired, exporters }
    }

    /// From now on requests are traced as `tracing` says. What has been recorded, or is under way, still goes where it was to go. Must be
    /// called within a runtime.
    ///
    /// # Errors
    /// What cannot be used of it; then nothing is traced, and it may be tried again.
    pub fn set(&mut self, tracing: &Tracing) -> Result<(), String> {
        if self.now.as_ref() == Some(tracing) {
            return Ok(());
        }
        self.now = None;
        self.change(tracing)?;
        self.now = Some(tracing.clone());
        Ok(())
    }

    fn change(&mut self, tracing: &Tracing) -> Result<(), String> {
        let collector = tracing.collector(self.workload.as_ref(), &self.host);
        let roots = tracing.certificate.clone();
        let to = collector.map(|collector| To { collector, limits: tracing.limits(), roots });
        let same = self.to.take_if(|(now, _)| to.as_ref() == Some(&*now));
        if let Some((_, before)) = self.to.take() {
            self.telemetry.trace(None);
            before.retire();
            self.retired.retain(|spans| spans.strong_count() > 0);
            self.retired.push(Arc::downgrade(&before));
        }
        let Some(to) = to else { return Ok(()) };
        let how = How {
            sampler: tracing.sampling(),
            keeps_sampler: tracing.keeps_sampler,
            propagation: tracing.forms(),
            connections: tracing.connections.unwrap_or(false),
        };
        let spans = match same {
            Some((_, spans)) => spans,
            None => {
                let connect = connect(&to.collector, to.roots.as_deref(), self.mark)?;
                let spans = self.telemetry.spans(to.limits);
                let exporter = Exporter::new(&to.collector, Arc::clone(&spans), connect)?;
                self.exporters.spawn(exporter.run());
                spans
            }
        };
        self.telemetry.trace(Some((how, Arc::clone(&spans))));
        tracing::info!(collector = to.collector.shown(), ?how, "requests are traced");
        self.to = Some((to, spans));
        Ok(())
    }

    /// Keeps to `own` settings, and where they say nothing to what is said of the workload and the mesh, until `stop` is told or gone; then sends what is left.
    pub async fn keep(mut self, own: Tracing, store: Arc<Store>, mut stop: oneshot::Receiver<()>) {
        let mut changes = store.changes();
        let mut failed: Option<String> = None;
        loop {
            let snapshot = store.load();
            let mesh = snapshot.mesh.as_ref().and_then(|mesh| mesh.tracing.clone());
            let said = snapshot.inbound.as_ref().map(|policy| policy.spec().sampling);
            drop(snapshot);
            let tracing = own.over(&mesh.unwrap_or_default()).sampled(said.unwrap_or_default());
            let error = self.set(&tracing).err();
            if let Some(error) = error.as_ref().filter(|error| failed.as_ref() != Some(*error)) {
                tracing::error!(error, "nothing is traced");
            }
            failed = error;
            let again = async {
                match failed {
                    Some(_) => tokio::time::sleep(LOOK_AGAIN).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = &mut stop => break,
                changed = changes.changed() => if changed.is_err() { break },
                () = again => {}
            }
        }
        self.end().await;
    }

    /// Sends what is left, as far as that is quickly done. Nothing is traced any more.
    async fn end(&mut self) {
        self.telemetry.trace(None);
        let now = self.to.take().map(|(_, spans)| spans);
        now.into_iter()
            .chain(self.retired.drain(..).filter_map(|spans| spans.upgrade()))
            .for_each(|spans| spans.close());
        let all = async { while self.exporters.join_next().await.is_some() {} };
        if tokio::time::timeout(LAST, all).await.is_err() {
            tracing::warn!("the last spans could not be exported in time");
        }
    }
}

/// What opens connections to a collector.
fn connect(collector: &Collector, roots: Option<&Path>, mark: Option<u32>) -> Result<Connect, String> {
    let uri = &collector.endpoint;
    let host = uri.host().ok_or("the collector's address names no host")?;
    let host: Arc<str> = host.trim_start_matches('[').trim_end_matches(']').into();
    let is_tls = uri.scheme_str() == Some("https");
    let port = uri.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
    let tls = match is_tls {
        false => None,
        true => {
            let name =
                ServerName::try_from(host.to_string()).map_err(|error| format!("`{host}`: {error}"))?;
            Some((Arc::new(Roots::read(trusted(roots)?, collector.protocol)?), name))
        }
    };
    Ok(Arc::new(move || {
        let (host, tls) = (Arc::clone(&host), tls.clone());
        Box::pin(async move {
            let open = async {
                let stream = reach(&host, port, mark).await?;
                Ok(match tls {
                    None => Box::new(stream) as Box<dyn Stream>,
                    Some((roots, name)) => {
                        let stream = TlsConnector::from(roots.client()).connect(name, stream).await;
                        Box::new(stream.map_err(|error| refused(&error, &roots.path))?)
                    }
                })
            };
            tokio::time::timeout(CONNECT_TIMEOUT, open).await.map_err(|_| io::ErrorKind::TimedOut)?
        })
    }))
}

/// Dials every address of the name in turn.
pub(super) async fn reach(host: &str, port: u16, mark: Option<u32>) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("`{host}` has no address"));
    let resolved = channel::resolve(host, mark).await;
    for ip in resolved.map_err(|why| io::Error::other(format!("`{host}` cannot be resolved: {why}")))? {
        match crate::io::connect(SocketAddr::new(ip, port), mark).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What the TLS of a collector fails by, and what it is judged by.
fn refused(error: &io::Error, roots: &Path) -> io::Error {
    let roots = roots.display();
    io::Error::other(format!(
        "TLS: {error}; it is known by the roots in {roots}, and OTEL_EXPORTER_OTLP_CERTIFICATE may name others"
    ))
}

/// The file of the roots by which a collector is known: that which is named, else the system's.
fn trusted(named: Option<&Path>) -> Result<PathBuf, String> {
    named.map(Path::to_path_buf).or_else(system_roots).ok_or_else(|| {
        "the collector is reached by https, and this system has no roots to trust it by: set OTEL_EXPORTER_OTLP_CERTIFICATE".to_owned()
    })
}

/// The file of the roots that this system trusts.
pub(super) fn system_roots() -> Option<PathBuf> {
    SYSTEM_ROOTS.iter().map(PathBuf::from).find(|path| path.exists())
}

/// The roots by which a collector is known, as their file has them.
struct Roots {
    path: PathBuf,
    protocol: Protocol,
    known: Mutex<Known>,
}

struct Known {
    client: Arc<ClientConfig>,
    /// Of the file that was read last, be it that it could not be used.
    of: Option<Stamp>,
}

/// What is different of a file once it has changed: device, number, length, and when it was written. Through links, such as those by which
/// a cluster replaces the files of a volume.
type Stamp = [i128; 5];

impl Roots {
    fn read(path: PathBuf, protocol: Protocol) -> Result<Self, String> {
        // Before it is read: what is written meanwhile is noticed.
        let of = stamp(&path);
        let client = client(protocol, &path)?;
        Ok(Self { path, protocol, known: Mutex::new(Known { client, of }) })
    }

    /// For a connection that is made now. Roots that cannot be used do not take the place of those before.
    fn client(&self) -> Arc<ClientConfig> {
        let mut known = self.known.lock();
        let of = stamp(&self.path);
        if of != known.of {
            known.of = of;
            match client(self.protocol, &self.path) {
                Ok(client) => {
                    tracing::info!(roots = %self.path.display(), "the collector's roots have changed");
                    known.client = client;
                }
                Err(error) => tracing::warn!(error, "the roots before are kept"),
            }
        }
        Arc::clone(&known.client)
    }
}

/// `None`: there is no such file.
fn stamp(path: &Path) -> Option<Stamp> {
    let file = std::fs::metadata(path).ok()?;
    Some([
        file.dev().into(),
        file.ino().into(),
        file.len().into(),
        file.mtime().into(),
        file.mtime_nsec().into(),
    ])
}

/// Trusts the roots in that file.
fn client(protocol: Protocol, roots: &Path) -> Result<Arc<ClientConfig>, String> {
    let of = |error: &dyn std::fmt::Display| {
        format!("the roots of the collector (OTEL_EXPORTER_OTLP_CERTIFICATE), {}: {error}", roots.display())
    };
    let text = std::fs::read_to_string(roots).map_err(|error| of(&error))?;
    let certificates = tulle_certs::pem::certificates(&text).map_err(|error| of(&error))?;
    let alpn: &[u8] = match protocol {
        Protocol::Grpc => b"h2",
        Protocol::Http => b"http/1.1",
    };
    tulle_certs::outside::client(certificates, &[alpn]).map_err(|error| of(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::otel::Endpoint;

    fn to(collector: &str, ratio: f64) -> Tracing {
        let endpoint = Endpoint { uri: collector.parse().unwrap(), is_whole: false };
        Tracing { endpoint: Some(endpoint), ratio: Some(ratio), ..Tracing::default() }
    }

    fn root() -> String {
        let (domain, day) = (tulle_certs::TrustDomain::default(), Duration::from_secs(24 * 3600));
        tulle_certs::issue::Authority::generate(&domain, day, std::time::SystemTime::now()).unwrap().to_pem()
    }

    #[test]
    fn roots_are_read_anew_once_they_have_changed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        // As a whole, as who keeps such files does.
        let write = |text: &str| {
            let new = folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, &path).unwrap();
        };
        let read = || Roots::read(path.clone(), Protocol::Grpc);
        assert!(read().is_err_and(|error| error.contains("roots.pem")));
        write(&root());
        let roots = read().unwrap();
        let first = roots.client();
        assert!(Arc::ptr_eq(&first, &roots.client()), "not at each connection");
        write(&root());
        let second = roots.client();
        assert!(!Arc::ptr_eq(&first, &second));
        // What cannot be used, and no file at all.
        write("no certificate");
        assert!(Arc::ptr_eq(&second, &roots.client()));
        std::fs::remove_file(&path).unwrap();
        assert!(Arc::ptr_eq(&second, &roots.client()));
        write(&root());
        assert!(!Arc::ptr_eq(&second, &roots.client()));
    }

    #[tokio::test]
    async fn what_could_not_be_used_is_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roots.pem");
        let mut sender =
            Sender::new(Telemetry::with_access_output(&Config::default(), 1, None, None), None, None);
        let tracing = Tracing { certificate: Some(path.clone()), ..to("https://127.0.0.1:9", 1.0) };
        assert!(sender.set(&tracing).is_err() && sender.set(&tracing).is_err());
        std::fs::write(&path, root()).unwrap();
        sender.set(&tracing).unwrap();
        assert!(sender.to.is_some());
    }

    #[tokio::test]
    async fn a_change_of_what_is_recorded_loses_nothing_that_waits() {
        let telemetry = Telemetry::with_access_output(&Config::default(), 1, None, None);
        let mut sender = Sender::new(telemetry, None, None);
        let mut spans = |tracing: &Tracing| {
            sender.set(tracing).unwrap();
            (sender.to.as_ref().map(|(_, spans)| Arc::clone(spans)), sender.exporters.len())
        };
        let (first, exporters) = spans(&to("http://127.0.0.1:9", 1.0));
        assert_eq!(exporters, 1);
        let (second, exporters) = spans(&to("http://127.0.0.1:9", 0.5));
        assert!(Arc::ptr_eq(first.as_ref().unwrap(), second.as_ref().unwrap()));
        assert_eq!(exporters, 1, "it goes where it went");
        let (third, exporters) = spans(&to("http://127.0.0.1:10", 0.5));
        assert!(!Arc::ptr_eq(first.as_ref().unwrap(), third.as_ref().unwrap()));
        assert_eq!(exporters, 2);
        let (none, _) = spans(&Tracing { disabled: true, ..to("http://127.0.0.1:10", 0.5) });
        assert!(none.is_none());
    }
}
