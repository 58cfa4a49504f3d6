//! The tonic shell around [`Session`]: one task a stream, which carries out what the session decides.
//!
//! A slow client costs one response of each type: nothing is queued for it beyond that, nothing more is read from it
//! meanwhile, and what changes in the meantime is sent as the newest state only.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{Stream, StreamExt};
use prost::Name;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tulle_api::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tulle_api::{ResourceType, v1};
use tulle_certs::SpiffeId;

use super::nodes::Nodes;
use super::proxies::{Place, Proxies};
use super::session::{Compared, Received, Refusal, RefusedName, Session, Verdict};
use crate::ca;
use crate::ending::Ending;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::server;

/// Refusals of one request that are logged one by one; all are counted.
const LOGGED: usize = 10;

/// The service; cheap to clone.
#[derive(Debug, Clone)]
pub struct Ads {
    models: watch::Receiver<Arc<Model>>,
    metrics: Metrics,
    proxies: Proxies,
    nodes: Nodes,
    ending: Ending,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

/// One proxy's stream.
struct ServedStream {
    session: Session,
    id: SpiffeId,
    identity: String,
    ads: Ads,
    /// The number of the model that the session knows of.
    seen: Option<u64>,
    changes: Changes,
    place: Place,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

/// How long this proxy has not had what has changed of what it uses: by type, when the oldest such change was taken in. What it is told
/// because it asks for it is none.
#[derive(Debug, Default)]
struct Changes {
    untold: BTreeMap<ResourceType, Instant>,
    unanswered: BTreeMap<ResourceType, Instant>,
}

// === impl Ads ===

impl Ads {
    /// Streams end with the control plane.
    pub fn new(
        models: watch::Receiver<Arc<Model>>,
        metrics: Metrics,
        proxies: Proxies,
        ending: Ending,
    ) -> Self {
        Self { models, metrics, proxies, nodes: Nodes::default(), ending }
    }

    /// Serves only those whose nodes are theirs.
    pub fn checking(self, nodes: Nodes) -> Self {
        Self { nodes, ..self }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Ads {
    type DeltaAggregatedResourcesStream = Responses;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Responses>, Status> {
        let Some(caller) = request.extensions().get::<ca::Caller>() else {
            self.metrics.refused.with_label_values(&["no_identity"]).inc();
            return Err(Status::unauthenticated("ADS needs a client certificate of the mesh"));
        };
        let (responses, outgoing) = mpsc::channel(4);
        let identity = caller.id.to_string();
        let stream = ServedStream {
            session: Session::new(caller.id.namespace()),
            place: self.proxies.enter(&identity),
            id: caller.id.clone(),
            identity,
            ads: self.clone(),
            seen: None,
            changes: Changes::default(),
            responses,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

// === impl ServedStream ===

impl ServedStream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        if let Err(status) = self.serve(&mut requests).await {
            tracing::info!(
                identity = self.identity, code = ?status.code(), error = status.message(), "ended an ADS stream"
            );
            // Who has gone needs no answer.
            let _gone = self.responses.send(Err(status)).await;
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        let mut ending = self.ads.ending.clone();
        loop {
            let model = self.ads.models.borrow_and_update().clone();
            self.see(&model);
            while let Some(response) = self.session.poll(&*model) {
                self.count(&response);
                tokio::select! {
                    sent = self.responses.send(Ok(response)) => if sent.is_err() {
                        return Ok(());
                    },
                    () = ending.wait() => return Err(ends()),
                }
            }
            self.changes.told(&self.session);
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.receive(request).await?,
                    Some(Err(status)) if server::is_malformed(&status) => {
                        self.ads.metrics.refused.with_label_values(&["malformed_message"]).inc();
                        return Err(Status::invalid_argument(status.message()));
                    }
                    // The client is gone; it will come back.
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = self.ads.models.changed() => if changed.is_err() {
                    return Err(ends());
                },
                () = ending.wait() => return Err(ends()),
            }
        }
    }

    /// Tells the session what is new in a model.
    fn see(&mut self, model: &Model) {
        if self.seen == Some(model.number()) {
            return;
        }
        let seen = self.seen.replace(model.number());
        match seen.and_then(|seen| model.changed_since(seen)) {
            Some(changed) => {
                for (resource_type, name) in changed {
                    if self.session.changed(resource_type, name) {
                        self.changes.begun(resource_type, model.taken_in());
                    }
                }
            }
            None => self.session.model_changed(),
        }
    }

    async fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let introduced = self.session.caller().is_some();
        let mut received = self.session.receive(request);
        // Before anything is answered.
        if !introduced
            && received.is_ok()
            && let Some(caller) = self.session.caller()
        {
            let mut ending = self.ads.ending.clone();
            let admitted = tokio::select! {
                admitted = self.ads.nodes.admit(&self.id, caller) => admitted,
                () = ending.wait() => return Err(ends()),
            };
            if let Err(refusal) = admitted {
                received = Err(refusal);
            }
        }
        let received = received.map_err(|refusal| {
            self.ads.metrics.refused.with_label_values(&[refusal.reason()]).inc();
            tracing::warn!(
                identity = self.identity, reason = refusal.reason(), error = %refusal, "refused an ADS stream"
            );
            Status::from(&refusal)
        })?;
        if !introduced && let Some(caller) = self.session.caller() {
            self.place.introduce(caller.node());
        }
        let Received { resource_type, verdict, refused, compared } = received;
        if let Some(compared) = compared {
            self.note_compared(&compared);
        }
        let kind = label(resource_type);
        if verdict != Verdict::None {
            self.changes.answered(resource_type, &self.ads.metrics);
        }
        match verdict {
            Verdict::Ack => self.ads.metrics.acks.with_label_values(&[kind]).inc(),
            Verdict::Nack => {
                self.ads.metrics.nacks.with_label_values(&[kind]).inc();
                self.log_rejected(resource_type);
            }
            Verdict::None => {}
        }
        self.place.note(&self.session, verdict == Verdict::Nack);
        let roots = self.session.accepted(ResourceType::TrustBundle, self.id.trust_domain_str());
        self.place.note_bundle(roots);
        self.log_refused(kind, &refused);
        Ok(())
    }

    fn note_compared(&self, compared: &Compared) {
        let result = match compared {
            Compared::Equal => "equal",
            Compared::Different(in_what) => {
                tracing::warn!(
                    node = self.node(),
                    in_what,
                    "a proxy does not hold what it should; it opens its stream anew"
                );
                "different"
            }
        };
        self.ads.metrics.comparisons.with_label_values(&[result]).inc();
    }

    fn node(&self) -> &str {
        self.session.caller().map(super::Caller::node).unwrap_or_default()
    }

    fn log_rejected(&self, resource_type: Option<ResourceType>) {
        let rejected = self.session.rejected().filter(|one| Some(one.resource_type) == resource_type);
        for one in rejected.take(LOGGED) {
            let (field, reason) = one.faults.first().map_or(("", ""), |fault| (&fault.field, &fault.reason));
            tracing::error!(
                node = self.node(),
                kind = one.resource_type.as_str(),
                resource = one.name,
                field,
                reason,
                running = one.running,
                "a proxy rejected a resource"
            );
        }
    }

    fn log_refused(&self, kind: &str, refused: &[RefusedName]) {
        for name in refused {
            self.ads.metrics.refused_names.with_label_values(&[name.reason]).inc();
        }
        for RefusedName { name, reason } in refused.iter().take(LOGGED) {
            tracing::warn!(node = self.node(), kind, name, reason, "answered a name as absent");
        }
    }

    fn count(&mut self, response: &DeltaDiscoveryResponse) {
        if response.type_url == v1::View::type_url() {
            return;
        }
        let resource_type = ResourceType::from_type_url(&response.type_url);
        let kind = label(resource_type);
        let metrics = &self.ads.metrics;
        self.changes.sent(resource_type, metrics);
        metrics.resources_sent.with_label_values(&[kind]).inc_by(response.resources.len() as u64);
        metrics.removals_sent.with_label_values(&[kind]).inc_by(response.removed_resources.len() as u64);
    }
}

// === impl Changes ===

impl Changes {
    fn begun(&mut self, resource_type: ResourceType, at: Option<Instant>) {
        if let Some(at) = at {
            self.untold.entry(resource_type).or_insert(at);
        }
    }

    /// A response is on its way, which tells all that is known of the type.
    fn sent(&mut self, resource_type: Option<ResourceType>, metrics: &Metrics) {
        if let Some((resource_type, begun)) = resource_type.and_then(|one| self.untold.remove_entry(&one)) {
            metrics.push.observe(begun.elapsed().as_secs_f64());
            self.unanswered.insert(resource_type, begun);
        }
    }

    /// All is said that may be said now: what is left of types that nothing more can be said of was no change to this proxy.
    fn told(&mut self, session: &Session) {
        self.untold.retain(|resource_type, _| session.awaits_answer_of(*resource_type));
    }

    fn answered(&mut self, resource_type: Option<ResourceType>, metrics: &Metrics) {
        if let Some(begun) = resource_type.and_then(|one| self.unanswered.remove(&one)) {
            metrics.convergence.observe(begun.elapsed().as_secs_f64());
        }
    }
}

impl From<&Refusal> for Status {
    fn from(refusal: &Refusal) -> Self {
        let text = refusal.to_string();
        match refusal {
            Refusal::NodeForeign { .. } | Refusal::NodeNotYours { .. } => Self::permission_denied(text),
            Refusal::NodeUnknown(_) => Self::unavailable(text),
            Refusal::TooManySubscriptions => Self::resource_exhausted(text),
            Refusal::NodeMissing | Refusal::NodeMalformed(_) => Self::invalid_argument(text),
        }
    }
}

fn ends() -> Status {
    Status::unavailable("the control plane is ending; connect again")
}

/// `other` for a type that is not ours, since clients choose it.
fn label(resource_type: Option<ResourceType>) -> &'static str {
    resource_type.map_or("other", ResourceType::as_str)
}
