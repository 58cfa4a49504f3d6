//! The tonic shell around [`Session`]: one task a stream, which carries out what the session decides.
//!
//! A slow client costs one response of each type: nothing is queued for it beyond that, and what changes in the
//! meantime is sent as the newest state only.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tulle_api::ResourceType;
use tulle_api::discovery::aggregated_discovery_service_server::AggregatedDiscoveryService;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::session::{Received, Refusal, Session, Verdict};
use crate::ca;
use crate::metrics::Metrics;
use crate::model::Model;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Ads {
    models: watch::Receiver<Arc<Model>>,
    metrics: Metrics,
}

type Responses = Pin<Box<dyn Stream<Item = Result<DeltaDiscoveryResponse, Status>> + Send>>;

// === impl Ads ===

impl Ads {
    pub fn new(models: watch::Receiver<Arc<Model>>, metrics: Metrics) -> Self {
        Self { models, metrics }
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
        let stream = ServedStream {
            session: Session::new(caller.id.namespace()),
            identity: caller.id.to_string(),
            models: self.models.clone(),
            metrics: self.metrics.clone(),
            responses,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

/// One proxy's stream.
struct ServedStream {
    session: Session,
    identity: String,
    models: watch::Receiver<Arc<Model>>,
    metrics: Metrics,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl ServedStream {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        self.metrics.proxies.inc();
        if let Err(status) = self.serve(&mut requests).await {
            tracing::warn!(identity = self.identity, code = ?status.code(), error = status.message(), "ended an ADS stream");
            drop(self.responses.send(Err(status)).await);
        }
        self.metrics.proxies.dec();
    }

    async fn serve(&mut self, requests: &mut Streaming<DeltaDiscoveryRequest>) -> Result<(), Status> {
        loop {
            // A model that comes with a request must not count as seen before the session knows of it.
            if self.models.has_changed().unwrap_or(false) {
                self.session.model_changed();
            }
            let model = self.models.borrow_and_update().clone();
            while let Some(response) = self.session.poll(&*model) {
                let kind = kind(&response.type_url);
                let sent = self.metrics.resources_sent.with_label_values(&[kind]);
                sent.inc_by(response.resources.len() as u64);
                if self.responses.send(Ok(response)).await.is_err() {
                    return Ok(());
                }
            }
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.receive(request)?,
                    // The client is gone; it will come back.
                    Some(Err(_)) | None => return Ok(()),
                },
                changed = self.models.changed() => match changed {
                    // `changed` marks it as seen.
                    Ok(()) => self.session.model_changed(),
                    Err(_) => return Err(Status::unavailable("the control plane is ending")),
                },
            }
        }
    }

    fn receive(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let type_url = request.type_url.clone();
        let error = request.error_detail.as_ref().map(|detail| detail.message.clone());
        let received = self.session.receive(request).map_err(|refusal| status(&refusal))?;
        let Received { verdict, refused, .. } = received;
        let node = self.session.caller().map(super::caller::Caller::node).unwrap_or_default();
        match verdict {
            Verdict::Ack => self.metrics.acks.with_label_values(&[kind(&type_url)]).inc(),
            Verdict::Nack => {
                self.metrics.nacks.with_label_values(&[kind(&type_url)]).inc();
                tracing::error!(
                    node,
                    kind = kind(&type_url),
                    error = error.unwrap_or_default(),
                    "a proxy refused a part of what it was sent"
                );
            }
            Verdict::None => {}
        }
        for name in refused {
            self.metrics.refused_names.with_label_values(&[name.reason]).inc();
            tracing::warn!(
                node,
                kind = kind(&type_url),
                name = name.name,
                reason = name.reason,
                "answered a name as absent"
            );
        }
        Ok(())
    }
}

fn status(refusal: &Refusal) -> Status {
    let text = refusal.to_string();
    match refusal {
        Refusal::NodeForeign { .. } => Status::permission_denied(text),
        Refusal::TooManySubscriptions => Status::resource_exhausted(text),
        Refusal::NodeMissing | Refusal::NodeMalformed(_) => Status::invalid_argument(text),
    }
}

/// The last part of a type URL of ours; `other` for any other, since clients choose it.
fn kind(type_url: &str) -> &'static str {
    match ResourceType::from_type_url(type_url) {
        Some(known) => known.type_url().rsplit('.').next().unwrap_or("other"),
        None => "other",
    }
}
