//! The ADS stream: connects, carries the [`Session`]'s messages, and connects again.
//!
//! Runs on the control thread. While the control plane is away, what was applied stays in use; the applier's
//! questions wait in the session and are asked when a stream is up. Twice a minute both ends compare what is held
//! ([`super::session::Compared`]); where they differ, or the comparison itself is not answered, the stream is opened anew.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tulle_api::ResourceType;
use tulle_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use super::apply::Applier;
use super::channel::reconnect_delay;
use super::identity::Identity;
use super::report::Registered;
use super::session::{Compared, ResourceName, Session};
use crate::state::Want;
use crate::telemetry::metrics::ControlMetrics;

/// Largest response that is taken, in bytes.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;
/// Unused services and addresses are looked for so often.
const FORGET: Duration = Duration::from_secs(60);
/// A control plane that has not answered the call, or not read what it is told, for so long is given up and tried anew.
pub(super) const STALLED: Duration = Duration::from_secs(10);

/// Both ends compare so often, less up to a quarter that spreads the proxies.
const COMPARE: Duration = Duration::from_secs(28);
/// The first time on a stream, less up to three quarters: soon, since a reconnect is when most is told at once.
const COMPARE_FIRST: Duration = Duration::from_secs(4);
/// While too much is under way to tell.
const COMPARE_AGAIN: Duration = Duration::from_secs(1);
/// What has been told of a control plane that is away is told again so often.
const TOLD_AGAIN: Duration = Duration::from_secs(60);
/// For so long what is said last may still be on its way when a stream is given up.
const LAST_WORDS: Duration = Duration::from_millis(250);

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

/// Why a stream is over.
enum Ended {
    /// The control plane, or the way to it, is gone.
    Away(tonic::Status),
    /// What is held is not what it should be: by type, and in words.
    Differs { types: Vec<&'static str>, in_what: String },
}

/// What was last said of a control plane that is away: the same again only once a minute, so that an hour of it is no flood.
#[derive(Default)]
struct Told(Option<(String, Instant)>);

/// When both ends of a stream compare.
struct Comparing {
    at: Instant,
    asked: bool,
    /// An older control plane knows nothing of it.
    is_supported: bool,
}

// === impl Told ===

impl Told {
    fn tell(&mut self, error: String, retry_in: Duration) {
        const SAYS: &str = "the control plane is away; what is known stays in use";
        let is_news = self.0.as_ref().is_none_or(|(said, at)| *said != error || at.elapsed() >= TOLD_AGAIN);
        if is_news {
            tracing::warn!(error, ?retry_in, "{SAYS}");
            self.0 = Some((error, Instant::now()));
        } else {
            tracing::debug!(error, ?retry_in, "{SAYS}");
        }
    }
}

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
        let mut repairs = false;
        let mut told = Told::default();
        loop {
            let ended = match self.open().await {
                Ok((requests, mut responses)) => {
                    self.metrics.ads_connected(true);
                    told = Told::default();
                    tracing::info!("connected to the control plane");
                    let comparing = Comparing::of_stream(repairs);
                    let ended = self.carry(&requests, &mut responses, comparing, &mut failures).await;
                    self.metrics.ads_connected(false);
                    if matches!(ended, Ended::Differs { .. }) {
                        drop(requests);
                        say_last(responses).await;
                    }
                    ended
                }
                Err(status) => Ended::Away(status),
            };
            repairs = matches!(ended, Ended::Differs { .. });
            let ended = match ended {
                Ended::Differs { types, in_what } => {
                    tracing::warn!(
                        in_what,
                        "what is held is not what the control plane says; asking for it anew"
                    );
                    self.metrics.ads_repaired(&types);
                    continue;
                }
                Ended::Away(status) => status,
            };
            failures += 1;
            let wait = reconnect_delay(failures, rand::random());
            told.tell(describe(&ended), wait);
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
        responses: &mut Responses,
        mut comparing: Comparing,
        failures: &mut u32,
    ) -> Ended {
        let mut forget = tokio::time::interval(FORGET);
        let identity = Arc::clone(&self.identity);
        loop {
            for request in self.session.requests() {
                if let Err(status) = say(requests, request).await {
                    return Ended::Away(status);
                }
            }
            self.count();
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        *failures = 0;
                        let (answer, compared) = self.take(response);
                        if let Some(answer) = answer
                            && let Err(status) = say(requests, answer).await
                        {
                            return Ended::Away(status);
                        }
                        if let Some(Err(differs)) = compared.map(|compared| comparing.note(compared)) {
                            return differs;
                        }
                    }
                    Some(Err(status)) => return Ended::Away(status),
                    None => {
                        let status = tonic::Status::unavailable("the control plane ended the stream");
                        return Ended::Away(status);
                    }
                },
                () = tokio::time::sleep_until(comparing.at), if comparing.is_supported => {
                    if let Err(differs) = comparing.ask() {
                        return differs;
                    }
                    self.ask_view();
                }
                Some(want) = self.wants.recv() => self.want(want),
                Ok(()) = self.registered.changed() => {
                    for again in self.applier.registered() {
                        self.session.subscribe_again(again);
                    }
                }
                () = identity.other_roots() => {
                    if let Some(creds) = identity.current() {
                        let roots = self.applier.roots(creds.id().trust_domain().to_string());
                        self.session.subscribe_again(roots);
                    }
                }
                _ = forget.tick() => self.forget(),
            }
        }
    }

    /// Asks what should be held, and again for what should be in use here and is not.
    fn ask_view(&mut self) {
        for lost in self.applier.lost(&self.session) {
            let ResourceName { type_url, name } = &lost;
            tracing::error!(
                kind = label(type_url),
                name,
                "a resource was told and is not in use as it was; asking for it again"
            );
            self.metrics.ads_lost(label(type_url));
            self.session.lost(lost);
        }
        self.session.ask_view();
    }

    /// Takes a response in; returns the answer to it, and what a comparison came to if it is one.
    fn take(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> (Option<DeltaDiscoveryRequest>, Option<Compared>) {
        let Some(compared) = self.session.compare(&response) else {
            return (Some(self.apply(response)), None);
        };
        match &compared {
            Compared::Equal => self.metrics.ads_compared("equal"),
            Compared::Different(_) => self.metrics.ads_compared("different"),
            Compared::Unsettled => self.metrics.ads_compared("unsettled"),
            Compared::Unsupported => {}
        }
        (self.session.answer_view(&response, &compared), Some(compared))
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
        let kind = label(&update.type_url);
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
            self.metrics.ads_rejected(kind.as_str(), self.session.rejects(kind.type_url()));
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

// === impl Comparing ===

impl Comparing {
    /// Right after a repair there is time: should it not have helped, it must not become all that both ends do.
    fn of_stream(repairs: bool) -> Self {
        let first = if repairs { between(COMPARE, 0.25) } else { between(COMPARE_FIRST, 0.75) };
        Self { at: Instant::now() + first, asked: false, is_supported: true }
    }

    /// It is time to ask; an error if the last question was not answered.
    fn ask(&mut self) -> Result<(), Ended> {
        if std::mem::replace(&mut self.asked, true) {
            let in_what = "the last question what should be held was not answered".to_owned();
            return Err(Ended::Differs { types: Vec::new(), in_what });
        }
        self.at = Instant::now() + between(COMPARE, 0.25);
        Ok(())
    }

    fn note(&mut self, compared: Compared) -> Result<(), Ended> {
        self.asked = false;
        match compared {
            Compared::Equal => {}
            Compared::Unsettled => self.at = Instant::now() + COMPARE_AGAIN,
            Compared::Unsupported => self.is_supported = false,
            Compared::Different(differences) => {
                let in_what: Vec<String> = differences.iter().map(ToString::to_string).collect();
                let types = differences.iter().map(|difference| label(&difference.type_url)).collect();
                return Err(Ended::Differs { types, in_what: in_what.join("; ") });
            }
        }
        Ok(())
    }
}

/// `most`, less up to `part` of it.
fn between(most: Duration, part: f64) -> Duration {
    most.mul_f64(1.0 - part * rand::random::<f64>())
}

/// The name of a type; the server chooses it, and a label must not be its to choose.
fn label(type_url: &str) -> &'static str {
    ResourceType::from_type_url(type_url).map_or("other", ResourceType::as_str)
}

/// Lets what was said last arrive, on a stream whose requests have ended.
async fn say_last(mut responses: Responses) {
    let rest = async { while responses.next().await.is_some_and(|response| response.is_ok()) {} };
    // A control plane that does not end the stream is left.
    drop(tokio::time::timeout(LAST_WORDS, rest).await);
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
