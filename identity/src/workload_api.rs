//! X.509-SVIDs from a SPIFFE Workload API, such as that of SPIRE's agent on the same host.
//!
//! One stream, on which whatever changes is told as it does; where it breaks, another is opened, ever more slowly while that fails, and what was good
//! serves on (SPIFFE Workload API §5.1). Of several SVIDs one is taken: the one that is asked for, else the first (§5.3). Bundles of
//! other trust domains are not used, and that is told: the mesh is one.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status};
use tulle_api::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tulle_api::workload::{X509svid, X509svidRequest, X509svidResponse};
use tulle_certs::{Creds, PrivateKey, SpiffeId, TrustBundle, der_certificates, renewal};

use crate::{Follower, Parts, SourceError, is_same};

/// The variable by which workloads are told where the endpoint is (SPIFFE Workload Endpoint §4).
pub const ENDPOINT_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";
/// Without it the server answers nothing (SPIFFE Workload Endpoint §5): a request that was forged through something else lacks it.
const SECURITY_HEADER: &str = "workload.spiffe.io";
/// How long it may take to connect, and then for the first response.
const PATIENCE: Duration = Duration::from_secs(10);
/// When so much of a certificate's life is left and nothing new was told, the stream is taken for dead.
const LAST_PART: u32 = 10;

/// Where the Workload API is served: `unix:///path` or `tcp://<ip>:<port>` (SPIFFE Workload Endpoint §4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// An address, of this host as a rule: the connection is not encrypted.
    Tcp(SocketAddr),
}

/// A text is no address of a Workload API; whoever tells it says [the form](Address::FORM).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AddressError(&'static str);

/// A Workload API, and which of its identities is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadApi {
    /// Where it is.
    pub address: Address,
    /// The SVID of this ID, where there are several; another is not taken.
    pub wanted: Option<SpiffeId>,
    /// The SVID with this hint, where there are several.
    pub hint: Option<String>,
}

// === impl Address ===

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(rest) = text.strip_prefix("unix:") {
            // `unix:///path`, and `unix:/path`, which is the same URI without its empty authority.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            return match path {
                _ if path.contains(['?', '#']) => Err(AddressError("it has a query or a fragment")),
                _ if !path.starts_with('/') || path.len() == 1 => {
                    Err(AddressError("the path of the socket must be absolute, with no host before it"))
                }
                _ => Ok(Self::Unix(path.into())),
            };
        }
        let Some(rest) = text.strip_prefix("tcp://") else {
            return Err(AddressError("it begins neither with unix: nor with tcp://"));
        };
        let address: SocketAddr =
            rest.parse().map_err(|_| AddressError("what follows tcp:// is not an IP address and a port"))?;
        if address.port() == 0 {
            return Err(AddressError("the port is 0"));
        }
        Ok(Self::Tcp(address))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}

impl Address {
    /// What is accepted.
    pub const FORM: &str = "unix:///<path> or tcp://<ip>:<port>";

    /// Connects when it is first used.
    fn channel(&self) -> Channel {
        // Who answers is known by the address; the name in the URI goes into a header that nobody looks at.
        let endpoint = Endpoint::from_static("http://localhost");
        match self.clone() {
            Self::Unix(path) => endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
                let path = path.clone();
                async move { in_time(UnixStream::connect(path)).await.map(TokioIo::new) }
            })),
            Self::Tcp(address) => {
                endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| async move {
                    in_time(TcpStream::connect(address)).await.map(TokioIo::new)
                }))
            }
        }
    }

    /// Whether what is said can be heard on its way.
    fn is_of_another_host(&self) -> bool {
        matches!(self, Self::Tcp(address) if !is_loopback(address.ip()))
    }
}

/// A limit of ours, since tonic's own does not say how long it is.
async fn in_time<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {PATIENCE:?}"));
    tokio::time::timeout(PATIENCE, connecting).await.map_err(late)?
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

// === impl WorkloadApi ===

impl WorkloadApi {
    /// See [`Given::follow`](crate::Given::follow).
    pub(crate) async fn follow(&self, follower: &mut dyn Follower) -> Infallible {
        let mut current = None;
        let mut failures = 0_u32;
        let mut foreign = BTreeSet::new();
        if self.address.is_of_another_host() {
            tracing::warn!(address = %self.address, "the Workload API is not on this host: keys come over the network without encryption");
        }
        loop {
            let error = self.stream(follower, &mut current, &mut failures, &mut foreign).await;
            failures = failures.saturating_add(1);
            follower.failed(&error, failures);
            // Without an identity nothing works: then at most 4 s between tries.
            let counted = if current.is_some() { failures } else { failures.min(3) };
            tokio::time::sleep(renewal::backoff(counted, rand::random())).await;
        }
    }

    /// One stream, until it breaks. A response of which nothing can be used does not end it: the next one may be better.
    async fn stream(
        &self,
        follower: &mut dyn Follower,
        current: &mut Option<Arc<Creds>>,
        failures: &mut u32,
        foreign: &mut BTreeSet<String>,
    ) -> SourceError {
        let mut request = Request::new(X509svidRequest {});
        request.metadata_mut().insert(SECURITY_HEADER, MetadataValue::from_static("true"));
        let mut client = SpiffeWorkloadApiClient::new(self.address.channel());
        let opening = async {
            let mut responses = client.fetch_x509svid(request).await?.into_inner();
            let first = responses.message().await?;
            Ok::<_, Status>((responses, first))
        };
        let (mut responses, mut next) = match tokio::time::timeout(PATIENCE, opening).await {
            Ok(Ok(opened)) => opened,
            Ok(Err(status)) => return self.error(said(&status)),
            Err(_) => return self.error(format!("it gave no identity within {PATIENCE:?}")),
        };
        loop {
            let Some(response) = next else { return self.error("it has ended the stream") };
            self.pass_over(&response, foreign);
            match self.read(&response, current.as_deref(), SystemTime::now()) {
                Ok(read) => {
                    *failures = 0;
                    if let Some(creds) = read.map(Arc::new) {
                        *current = Some(Arc::clone(&creds));
                        follower.take(creds);
                    }
                }
                Err(error) => {
                    *failures = failures.saturating_add(1);
                    follower.failed(&error, *failures);
                }
            }
            next = tokio::select! {
                message = responses.message() => match message {
                    Ok(message) => message,
                    Err(status) => return self.error(said(&status)),
                },
                () = overdue(current.as_deref()) => {
                    return self.error("the certificate has nearly run out, and it has told no new one");
                }
            };
        }
    }

    /// Tells of bundles of other trust domains, once for as long as these are the same: nobody must believe that their workloads are let in. Says whether
    /// it did.
    fn pass_over(&self, response: &X509svidResponse, known: &mut BTreeSet<String>) -> bool {
        let domains: BTreeSet<String> = response.federated_bundles.keys().cloned().collect();
        if domains == *known {
            return false;
        }
        let is_told = !domains.is_empty();
        if is_told {
            tracing::warn!(
                ?domains,
                address = %self.address,
                "the Workload API tells bundles of other trust domains, which are not used: a mesh is one trust domain, and workloads of others are refused \
                 (tls_other_trust_domain), whatever policies name"
            );
        }
        *known = domains;
        is_told
    }

    /// What a response says, checked; `None`: nothing that `current` does not hold already.
    fn read(
        &self,
        response: &X509svidResponse,
        current: Option<&Creds>,
        now: SystemTime,
    ) -> Result<Option<Creds>, SourceError> {
        let svid = self.choose(&response.svids)?;
        let id = SpiffeId::parse(&svid.spiffe_id).map_err(|error| {
            self.error(format!("{error}; register the workload under an ID of that form"))
        })?;
        if let Some(wanted) = self.wanted.as_ref().filter(|wanted| **wanted != id) {
            return Err(SourceError::OtherIdentity {
                place: format!("the Workload API at {}", self.address),
                got: id,
                wanted: wanted.clone(),
                remedy: "register the workload under that ID",
            });
        }
        let bad = |what: &str, why: &dyn fmt::Display| self.error(format!("{what} of {id}: {why}"));
        let chain = der_certificates(&svid.x509_svid).map_err(|why| bad("the certificates", &why))?;
        let roots = der_certificates(&svid.bundle).map_err(|why| bad("the bundle", &why))?;
        let bundle = TrustBundle::new(id.trust_domain(), roots).map_err(|why| bad("the bundle", &why))?;
        if current.is_some_and(|current| is_same(current, &chain, &bundle)) {
            return Ok(None);
        }
        let key = PrivateKey::from_der(&svid.x509_svid_key).map_err(|why| bad("the key", &why))?;
        let place = || format!("the Workload API at {}", self.address);
        let creds = Parts { chain, key, bundle }.creds(now);
        let creds = creds.map_err(|why| SourceError::Unusable { place: place(), why })?;
        if *creds.id() != id {
            return Err(self.error(format!("it calls {id} what is the certificate of {}", creds.id())));
        }
        Ok(Some(creds))
    }

    fn choose<'a>(&self, svids: &'a [X509svid]) -> Result<&'a X509svid, SourceError> {
        let names = || svids.iter().map(|svid| svid.spiffe_id.as_str()).collect::<Vec<_>>().join(", ");
        let mut those = svids.iter().filter(|svid| {
            self.wanted.as_ref().is_none_or(|wanted| wanted.as_str() == svid.spiffe_id)
                && self.hint.as_ref().is_none_or(|hint| *hint == svid.hint)
        });
        match (those.next(), svids) {
            (Some(svid), _) => Ok(svid),
            (None, []) => Err(self.error("it has no identity for this process")),
            (None, _) => {
                let wanted = self.wanted.as_ref().map(|id| format!(" is {id}"));
                let hint = self.hint.as_ref().map(|hint| format!(" has the hint {hint:?}"));
                let asked = [wanted, hint].into_iter().flatten().collect::<Vec<_>>().join(" and");
                Err(self.error(format!(
                    "none of its identities{asked}; it has {}: register the workload so, or ask for another",
                    names()
                )))
            }
        }
    }

    fn error(&self, why: impl Into<String>) -> SourceError {
        SourceError::WorkloadApi { at: self.address.clone(), why: why.into() }
    }
}

/// Returns when little of the certificate's life is left.
async fn overdue(current: Option<&Creds>) {
    let Some(creds) = current else { return std::future::pending().await };
    let life = creds.not_after().duration_since(creds.not_before()).unwrap_or_default();
    let from = creds.not_after() - life / LAST_PART;
    let left = from.duration_since(SystemTime::now()).unwrap_or_default();
    if left.is_zero() {
        // It was so when the stream was opened: once more after a while, and not at once.
        return tokio::time::sleep(PATIENCE).await;
    }
    tokio::time::sleep(left).await;
}

/// What a status says, with what to do; the reason why there was no answer is at the end of its sources.
fn said(status: &Status) -> String {
    match status.code() {
        Code::PermissionDenied => format!(
            "it has no identity for this process ({}); register it, by the selectors of its user, pod or container",
            status.message()
        ),
        Code::InvalidArgument => format!("it refuses the request: {}", status.message()),
        Code::Unimplemented => format!("what answers there is no Workload API ({})", status.message()),
        _ => {
            let mut why = status.message().to_owned();
            let mut source = std::error::Error::source(status);
            while let Some(error) = source {
                why = error.to_string();
                source = error.source();
            }
            format!("it cannot be asked: {why}")
        }
    }
}

#[cfg(test)]
mod tests;
