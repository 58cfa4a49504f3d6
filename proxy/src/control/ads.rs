//! The ADS stream: connects, carries the [`Session`]'s messages, and connects again.
//!
//! Runs on the control thread. While the control plane is away, what was applied stays in use; the applier's
//! questions wait in the session and are asked when a stream is up.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tulle_api::ResourceType;
use tulle_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::apply::Applier;
use super::channel::reconnect_delay;
use super::identity::Identity;
use super::report::Registered;
use super::session::Session;
use crate::state::Want;
use crate::telemetry::metrics::ControlMetrics;

/// Largest response that is taken, in bytes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Unused services and addresses are looked for so often.
const FORGET: Duration = Duration::from_secs(60);
/// A control plane that has not answered the call, or not read what it is told, for so long is given up and tried anew.
pub(super) const STALLED: Duration = Duration::from_secs(10);

/// Everything that the stream needs, over all its reconnects.
pub struct Ads {
    pub channel: Channel,
    pub identity: Arc<Identity>,
    pub session: Session,
    pub applier: Applier,
    pub wants: mpsc::UnboundedReceiver<Want>,
    /// Changes whenever the workload has been registered ([`super::report`]).
    pub registered: watch::Receiver<Registered>,
    pub metrics: Arc<ControlMetrics>,
}

type Responses =
    Pin<Box<dyn futures_util::Stream<Item = Result<DeltaDiscoveryResponse, tonic::Status>> + Send>>;

impl Ads {
    /// Keeps the stream up, for ever.
    pub async fn run(mut self) {
        let identity = Arc::clone(&self.identity);
        let creds = identity.ready();
        tokio::pin!(creds);
        let creds = loop {
            // What is asked for meanwhile must not pile up.
            tokio::select! {
                creds = &mut creds => break creds,
                Some(want) = self.wants.recv() => self.want(want),
            }
        };
        for resource in self.applier.always(creds.id().trust_domain().to_string()) {
            self.session.subscribe(resource);
        }
        let mut failures = 0;
        loop {
            let ended = match self.open().await {
                Ok((requests, responses)) => {
                    self.metrics.ads_connected(true);
                    tracing::info!("connected to the control plane");
                    let heard = self.carry(&requests, responses, &mut failures).await;
                    self.metrics.ads_connected(false);
                    heard
                }
                Err(status) => status,
            };
            failures += 1;
            let wait = reconnect_delay(failures, rand::random());
            tracing::warn!(error = %describe(&ended), retry_in = ?wait, "the control plane is away; what is known stays in use");
            self.wait(wait).await;
        }
    }

    async fn open(&mut self) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Responses), tonic::Status> {
        let (requests, outgoing) = mpsc::channel(64);
        self.session.open();
        // The server may answer only once it has heard who asks.
        for request in self.session.requests() {
            drop(requests.send(request).await);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE);
        let call = client.delta_aggregated_resources(ReceiverStream::new(outgoing));
        let responses = tokio::time::timeout(STALLED, call)
            .await
            .map_err(|_| tonic::Status::deadline_exceeded("the control plane does not answer"))??;
        Ok((requests, Box::pin(responses.into_inner())))
    }

    /// Carries messages both ways until the stream ends; returns why it did.
    async fn carry(
        &mut self,
        requests: &mpsc::Sender<DeltaDiscoveryRequest>,
        mut responses: Responses,
        failures: &mut u32,
    ) -> tonic::Status {
        let mut forget = tokio::time::interval(FORGET);
        loop {
            for request in self.session.requests() {
                if let Err(status) = say(requests, request).await {
                    return status;
                }
            }
            self.count();
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        *failures = 0;
                        let answer = self.apply(response);
                        if let Err(status) = say(requests, answer).await {
                            return status;
                        }
                    }
                    Some(Err(status)) => return status,
                    None => return tonic::Status::unavailable("the control plane ended the stream"),
                },
                Some(want) = self.wants.recv() => self.want(want),
                Ok(()) = self.registered.changed() => {
                    for again in self.applier.registered() {
                        self.session.subscribe_again(again);
                    }
                }
                _ = forget.tick() => self.forget(),
            }
        }
    }

    fn apply(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        let update = self.session.receive(response);
        let applied = self.applier.apply(&update);
        for resource in &applied.wanted {
            self.session.subscribe(resource.clone());
        }
        for resource in &applied.unwanted {
            self.session.unsubscribe(resource);
        }
        // The server chooses the type; a label must not be its to choose.
        let kind = ResourceType::from_type_url(&update.type_url)
            .and_then(|known| known.type_url().rsplit('.').next())
            .unwrap_or("other");
        if applied.rejected.is_empty() {
            self.metrics.ads_acked(kind);
        } else {
            self.metrics.ads_nacked(kind);
            for rejection in &applied.rejected {
                let (resource, field, reason) = (&rejection.resource, &rejection.field, &rejection.reason);
                tracing::error!(kind, resource, field, reason, "{}", applied.meanwhile(resource));
            }
        }
        self.session.answer(&update, &applied.rejected)
    }

    /// Shows what is wanted and held.
    fn count(&self) {
        for kind in ResourceType::ALL {
            let (wanted, held) = (self.session.wanted(kind.type_url()), self.session.holds(kind.type_url()));
            self.metrics.ads_subscriptions(kind.as_str(), wanted);
            self.metrics.ads_resources(kind.as_str(), held);
        }
    }

    fn want(&mut self, want: Want) {
        for resource in self.applier.want(&want) {
            self.session.subscribe(resource);
        }
    }

    fn forget(&mut self) {
        for resource in self.applier.forget() {
            self.session.unsubscribe(&resource);
        }
    }

    /// Waits before the next try, noting what is asked for in the meantime.
    async fn wait(&mut self, wait: Duration) {
        let timer = tokio::time::sleep(wait);
        tokio::pin!(timer);
        loop {
            tokio::select! {
                () = &mut timer => return,
                Some(want) = self.wants.recv() => self.want(want),
            }
        }
    }
}

async fn say(
    requests: &mpsc::Sender<DeltaDiscoveryRequest>,
    request: DeltaDiscoveryRequest,
) -> Result<(), tonic::Status> {
    match tokio::time::timeout(STALLED, requests.send(request)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(tonic::Status::unavailable("the stream was closed")),
        Err(_) => Err(tonic::Status::deadline_exceeded("the control plane does not read what it is told")),
    }
}

/// A status with the causes that tonic hides behind "transport error".
pub(super) fn describe(status: &tonic::Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
