//! `tulle.v1.Proxy/Report`: workloads make themselves endpoints, for as long as their streams live.
//!
//! For which services is limited by the join tokens of the caller's identity ([`Ca::may_register`]); a registration that
//! names another one is refused as a whole. What is registered is also kept in the state folder. After a restart it is served until the workload registers
//! again or the grace period is over, so that a control plane that was killed does not take endpoints away.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt};
use parking_lot::Mutex;
use prost::Message;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tulle_api::v1::proxy_server::Proxy;
use tulle_api::v1::{self, ReportRequest, ReportResponse, report_request, report_response};
use tulle_certs::SpiffeId;

use crate::ca::{self, Ca};
use crate::index::Registration;
use crate::metrics::Metrics;
use crate::model::{Publisher, Registered};
use crate::object::NamespacedName;
use crate::state_dir::StateDir;

const FILE: &str = "registrations.json";

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Reports {
    publisher: Arc<Publisher>,
    ca: Ca,
    metrics: Metrics,
    kept: Arc<Mutex<Kept>>,
}

/// What is registered, as it is kept in the state folder.
struct Kept {
    folder: Arc<StateDir>,
    workloads: BTreeMap<String, KeptWorkload>,
}

#[derive(Clone, Serialize, Deserialize)]
struct KeptWorkload {
    spiffe_id: String,
    /// The registration's bytes, in hex.
    registration: String,
}

type Responses = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

// === impl Reports ===

impl Reports {
    /// Takes up what was registered before a restart, for `grace` at most.
    pub async fn open(
        publisher: Arc<Publisher>,
        ca: Ca,
        metrics: Metrics,
        folder: Arc<StateDir>,
        grace: Duration,
    ) -> Self {
        let workloads = read(&folder);
        let mut restored = Vec::new();
        for (name, kept) in &workloads {
            match kept.registration(name) {
                Some(registration) => {
                    let workload = registration.workload.clone();
                    restored.push((workload, publisher.register(registration).await.id));
                }
                None => tracing::warn!(workload = name, "left out an unreadable registration of {FILE}"),
            }
        }
        if !restored.is_empty() {
            tracing::info!(
                workloads = restored.len(),
                ?grace,
                "serving registrations from before the restart"
            );
            let publisher = Arc::clone(&publisher);
            tokio::spawn(async move {
                tokio::time::sleep(grace).await;
                for (workload, id) in restored {
                    // Whoever has come back has another registration by now, which stays.
                    publisher.unregister(&workload, id);
                }
            });
        }
        Self { publisher, ca, metrics, kept: Arc::new(Mutex::new(Kept { folder, workloads })) }
    }
}

#[tonic::async_trait]
impl Proxy for Reports {
    type ReportStream = Responses;

    async fn report(
        &self,
        request: Request<Streaming<ReportRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let Some(caller) = request.extensions().get::<ca::Caller>().cloned() else {
            self.metrics.refused.with_label_values(&["no_identity"]).inc();
            return Err(Status::unauthenticated("Report needs a client certificate of the mesh"));
        };
        let (responses, outgoing) = mpsc::channel(4);
        let reports = self.clone();
        tokio::spawn(async move {
            let mut stream = ReportStream { reports, id: caller.id, workload: None, held: None, responses };
            if let Err(status) = stream.serve(request.into_inner()).await {
                stream.reports.metrics.refused.with_label_values(&["registration"]).inc();
                tracing::warn!(identity = %stream.id, error = status.message(), "refused a registration");
                drop(stream.responses.send(Err(status)).await);
            }
            stream.end();
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// One proxy's stream.
struct ReportStream {
    reports: Reports,
    id: SpiffeId,
    workload: Option<NamespacedName>,
    held: Option<Registered>,
    responses: mpsc::Sender<Result<ReportResponse, Status>>,
}

impl ReportStream {
    async fn serve(&mut self, mut requests: Streaming<ReportRequest>) -> Result<(), Status> {
        while let Some(Ok(request)) = requests.next().await {
            if self.workload.is_none() {
                let node = request.node.ok_or_else(|| {
                    Status::invalid_argument(
                        "the first message carries no `node`: set node.id to <namespace>/<workload>",
                    )
                })?;
                self.workload = Some(self.workload_of(&node.id)?);
            }
            if let (Some(report_request::Report::Registration(said)), Some(workload)) =
                (request.report, self.workload.clone())
            {
                self.register(workload, &said).await?;
            }
        }
        Ok(())
    }

    fn workload_of(&self, node: &str) -> Result<NamespacedName, Status> {
        let (namespace, name) = node.split_once('/').unwrap_or_default();
        if namespace.is_empty() || name.is_empty() {
            return Err(Status::invalid_argument(format!("node.id {node:?} is not <namespace>/<workload>")));
        }
        if namespace != self.id.namespace() {
            return Err(Status::permission_denied(format!(
                "node.id {node:?} is not in {:?}, the namespace of the caller's certificate",
                self.id.namespace()
            )));
        }
        Ok(NamespacedName::new(namespace, name))
    }

    async fn register(&mut self, workload: NamespacedName, said: &v1::Registration) -> Result<(), Status> {
        let registration = Registration::read(workload.clone(), self.id.as_str(), said)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        for service in registration.services() {
            let granted = self.reports.ca.may_register(&self.id, &service.name);
            granted.map_err(|error| Status::permission_denied(error.to_string()))?;
        }
        let first = self.held.is_none();
        let registered = self.reports.publisher.register(registration).await;
        tracing::info!(%workload, identity = %self.id, ready = said.ready, pending = ?registered.pending, "registered a workload");
        let pending = registered.pending.clone();
        self.held = Some(registered);
        if first {
            self.reports.metrics.registrations.inc();
        }
        let kept = KeptWorkload { spiffe_id: self.id.to_string(), registration: hex(&said.encode_to_vec()) };
        self.reports.kept.lock().put(&workload.to_string(), Some(kept));
        let response = report_response::Response::Registered(v1::Registered { pending });
        // A caller that is gone needs no answer.
        drop(self.responses.send(Ok(ReportResponse { response: Some(response) })).await);
        Ok(())
    }

    /// The stream is over, and with it the registration.
    fn end(self) {
        if let (Some(workload), Some(held)) = (self.workload, self.held) {
            tracing::info!(%workload, "a workload's registration has ended");
            self.reports.metrics.registrations.dec();
            self.reports.publisher.unregister(&workload, held.id);
            self.reports.kept.lock().put(&workload.to_string(), None);
        }
    }
}

// === impl Kept ===

impl Kept {
    fn put(&mut self, workload: &str, kept: Option<KeptWorkload>) {
        match kept {
            Some(kept) => drop(self.workloads.insert(workload.to_owned(), kept)),
            None => drop(self.workloads.remove(workload)),
        }
        let written = serde_json::to_vec_pretty(&self.workloads)
            .map_err(std::io::Error::other)
            .and_then(|bytes| self.folder.write(FILE, &bytes));
        if let Err(error) = written {
            tracing::error!(%error, "cannot keep the registrations in {FILE}; a restart would forget them");
        }
    }
}

fn read(folder: &StateDir) -> BTreeMap<String, KeptWorkload> {
    let bytes = match folder.read(FILE) {
        Ok(bytes) => bytes.unwrap_or_default(),
        Err(error) => {
            tracing::warn!(%error, "cannot read {FILE}; workloads must register again");
            return BTreeMap::new();
        }
    };
    if bytes.is_empty() {
        return BTreeMap::new();
    }
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::warn!(%error, "{FILE} is damaged; workloads must register again");
        BTreeMap::new()
    })
}

impl KeptWorkload {
    fn registration(&self, workload: &str) -> Option<Registration> {
        let (namespace, name) = workload.split_once('/')?;
        let said = v1::Registration::decode(&unhex(&self.registration)?[..]).ok()?;
        Registration::read(NamespacedName::new(namespace, name), self.spiffe_id.as_str(), &said).ok()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(text.get(i..i + 2)?, 16).ok()).collect()
}
