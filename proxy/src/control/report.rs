//! What this proxy tells its control plane beside ADS: that its workload is an endpoint, for as long as the stream lives, and
//! which endpoints it uses itself, when it is asked ([`in_use`]), what it carries, every few seconds ([`super::load`]), and what it shows
//! to who looks on ([`super::taps`]).
//!
//! At first a registration says that it is not ready, since its policy exists only from then on ([`super::gate`]); that it is ready
//! once that policy is in force; and while it drains, that it is not. A lost stream is opened again, and the
//! registration with it. When the proxy ends, it says what it has carried since the last report.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tulle_api::discovery::Node;
use tulle_api::v1::proxy_client::ProxyClient;
use tulle_api::v1::{self, Registration, ReportRequest, report_request, report_response};
use tulle_certs::pem;

use super::ads::{STALLED, describe};
use super::channel::reconnect_delay;
use super::identity::Identity;
use super::load::Loads;
use super::taps::Tapping;
use crate::state::Store;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::tap::Taps;

/// What is reported, and over what.
pub struct Report {
    pub channel: Channel,
    pub node: Node,
    pub identity: Arc<Identity>,
    /// What is in use.
    pub store: Arc<Store>,
    /// The registration as it should stand; `None`: not yet, or nothing is to be registered.
    pub registration: watch::Receiver<Option<Registration>>,
    /// What became of it.
    pub registered: watch::Sender<Registered>,
    /// A join token that grants what is registered, beside a certificate from elsewhere.
    pub token_file: Option<PathBuf>,
    pub metrics: Metrics,
    /// How often it is told what is carried; `None`: never.
    pub load_interval: Option<Duration>,
    /// Who looks on at requests.
    pub taps: Arc<Taps>,
}

/// What became of a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Counts the streams over which it was taken in.
    pub streams: u64,
    /// The services, or ports of them, that it is for and that no source has yet.
    pub pending: Vec<String>,
}

/// What a join token is shown as; read anew each time, since another may have been put there.
fn join_token(path: &Path) -> Option<MetadataValue<Ascii>> {
    let text = pem::read_file(path);
    let shown = text.map_err(|error| error.to_string()).and_then(|text| {
        let mut lines = text.lines().map(str::trim);
        let token = lines.find(|line| !line.is_empty() && !line.starts_with('#'));
        let token = token.ok_or_else(|| "there is no token in it".to_owned())?;
        format!("Bearer {token}").parse::<MetadataValue<Ascii>>().map_err(|_| "it is not ASCII".to_owned())
    });
    match shown {
        Ok(mut shown) => {
            shown.set_sensitive(true);
            Some(shown)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), error, "the join token for the registration is not shown");
            None
        }
    }
}

/// Endpoints that an answer names, at most: so it stays below a megabyte, whatever is in use.
const MAX_TOLD: usize = 4096;

/// What waits to be sent.
const QUEUE: usize = 16;

impl Report {
    /// Keeps the stream up, and the registration with it, until `stop` is told or gone; then says what was carried last, if there is a
    /// stream, and returns once the control plane has it. For how long that may take is the caller's to say.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let identity = Arc::clone(&self.identity);
        tokio::select! {
            _creds = identity.ready() => {}
            _ = &mut stop => return,
        }
        let mut failures = 0;
        loop {
            let opened = Instant::now();
            let Some(ended) = self.stream(&mut failures, &mut stop).await else { return };
            self.metrics.control().registered(false);
            // Who registers nothing is rarely told anything.
            failures = if opened.elapsed() > STALLED { 1 } else { failures + 1 };
            let wait = reconnect_delay(failures, rand::random());
            if self.registration.borrow().is_some() {
                tracing::warn!(error = %describe(&ended), retry_in = ?wait, "the registration's stream is down");
            } else {
                tracing::debug!(error = %describe(&ended), retry_in = ?wait, "the stream of reports is down");
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = &mut stop => return,
            }
        }
    }

    /// Why the stream has ended; `None`: it was to stop.
    async fn stream(
        &mut self,
        failures: &mut u32,
        stop: &mut oneshot::Receiver<()>,
    ) -> Option<tonic::Status> {
        let (requests, outgoing) = mpsc::channel(QUEUE);
        let registration = self.registration.borrow_and_update().clone();
        let report = registration.map(report_request::Report::Registration);
        drop(requests.send(ReportRequest { node: Some(self.node.clone()), report }).await);
        let mut client = ProxyClient::new(self.channel.clone());
        let mut call = tonic::Request::new(ReceiverStream::new(outgoing));
        if let Some(token) = self.token_file.as_deref().and_then(join_token) {
            call.metadata_mut().insert("authorization", token);
        }
        let call = client.report(call);
        let called = tokio::select! {
            called = tokio::time::timeout(STALLED, call) => called,
            _ = &mut *stop => return None,
        };
        let mut responses = match called {
            Ok(Ok(responses)) => responses.into_inner(),
            Ok(Err(status)) => return Some(status),
            Err(_) => return Some(tonic::Status::deadline_exceeded("the control plane does not answer")),
        };
        let mut told = None;
        let mut tapping = Tapping::new(Arc::clone(&self.taps));
        // Nobody may go on to register, and nobody does twice at once.
        let mut may_register = true;
        let mut loads = Loads::new(&self.metrics, self.load_interval);
        loop {
            let report = tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        *failures = 0;
                        match response.response {
                            Some(report_response::Response::Registered(registered)) => {
                                self.note(registered, &mut told);
                                continue;
                            }
                            Some(report_response::Response::Endpoints(question)) => {
                                report_request::Report::Endpoints(in_use(&self.store, &question))
                            }
                            Some(report_response::Response::Tap(tap)) => {
                                match tapping.begin(&tap, Instant::now()) {
                                    Some(refused) => report_request::Report::Tapped(refused),
                                    None => continue,
                                }
                            }
                            Some(report_response::Response::TapOver(id)) => {
                                tapping.end(id);
                                continue;
                            }
                            // Something newer than this proxy.
                            None => continue,
                        }
                    }
                    Some(Err(status)) => return Some(status),
                    None => return Some(tonic::Status::unavailable("the control plane ended the stream")),
                },
                _ = &mut *stop => {
                    if let Some(load) = loads.last() {
                        let report = Some(report_request::Report::Load(load));
                        drop(requests.send(ReportRequest { node: None, report }).await);
                    }
                    // The control plane ends its side once it has read ours to the end.
                    drop(requests);
                    while let Some(Ok(_)) = responses.next().await {}
                    return None;
                }
                changed = self.registration.changed(), if may_register => {
                    may_register = changed.is_ok();
                    let registration = self.registration.borrow_and_update().clone();
                    match registration.filter(|_| may_register) {
                        Some(registration) => report_request::Report::Registration(registration),
                        None => continue,
                    }
                }
                load = loads.next() => report_request::Report::Load(load),
                () = tapping.wait() => {
                    tapping.forget(Instant::now());
                    // What else is to be said need not wait for it.
                    while requests.capacity() > QUEUE / 2 && let Some(tapped) = tapping.next() {
                        let report = Some(report_request::Report::Tapped(tapped));
                        drop(requests.try_send(ReportRequest { node: None, report }));
                    }
                    continue;
                }
            };
            let request = ReportRequest { node: None, report: Some(report) };
            drop(tokio::time::timeout(Duration::from_secs(1), requests.send(request)).await);
        }
    }

    /// What became of the registration; `told`: as it was last logged on this stream.
    fn note(&self, registered: v1::Registered, told: &mut Option<Vec<String>>) {
        let first = told.is_none();
        if first {
            self.metrics.control().registered(true);
        }
        self.registered.send_if_modified(|known| {
            known.pending.clone_from(&registered.pending);
            known.streams += u64::from(first);
            first
        });
        let pending = registered.pending;
        if told.as_ref() == Some(&pending) {
            return;
        }
        if pending.is_empty() {
            tracing::info!("registered");
        } else {
            tracing::warn!(?pending, "registered for services, or ports of them, that no source has yet");
        }
        *told = Some(pending);
    }
}

/// The endpoints in use, of the service that is asked about or of all that are used here.
fn in_use(store: &Store, question: &v1::EndpointsQuestion) -> v1::EndpointsInUse {
    let snapshot = store.load();
    let mut answer = v1::EndpointsInUse { id: question.id, ..v1::EndpointsInUse::default() };
    let mut room = MAX_TOLD;
    for (name, service) in &snapshot.services {
        let service_name = name.to_string();
        if !question.service.is_empty() && question.service != service_name {
            continue;
        }
        // Nothing is known yet, so nothing is used.
        let Some(set) = service.endpoints() else { continue };
        if room == 0 {
            answer.is_cut = true;
            break;
        }
        let members = set.by_port().map(|(service_port, member)| v1::EndpointInUse {
            service_port: u32::from(service_port),
            address: member.endpoint.address.to_string(),
            identity: member.endpoint.identity().map(ToString::to_string).unwrap_or_default(),
            ready: member.ready,
        });
        let endpoints: Vec<v1::EndpointInUse> = members.take(room).collect();
        answer.is_cut |= endpoints.len() < set.all().count();
        room -= endpoints.len();
        answer.services.push(v1::ServiceEndpoints { service: service_name, endpoints });
    }
    answer
}
