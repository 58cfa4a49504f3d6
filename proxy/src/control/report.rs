//! Telling the control plane that this workload is an endpoint, for as long as the stream lives.
//!
//! At first it says that it is not ready, since its policy exists only from then on ([`super::gate`]); that it is ready
//! once that policy is in force; and while it drains, that it is not. A lost stream is opened again, and the
//! registration with it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tulle_api::discovery::Node;
use tulle_api::v1::proxy_client::ProxyClient;
use tulle_api::v1::{Registration, ReportRequest, report_request, report_response};

use super::ads::{STALLED, describe};
use super::channel::reconnect_delay;
use crate::telemetry::metrics::ControlMetrics;

/// What is reported, and over what.
pub struct Report {
    pub channel: Channel,
    pub node: Node,
    /// The registration as it should stand; `None`: not yet.
    pub registration: watch::Receiver<Option<Registration>>,
    /// What became of it.
    pub registered: watch::Sender<Registered>,
    pub metrics: Arc<ControlMetrics>,
}

/// What became of a registration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Registered {
    /// Counts the streams over which it was taken in.
    pub streams: u64,
    /// The services, or ports of them, that it is for and that no source has yet.
    pub pending: Vec<String>,
}

impl Report {
    /// Keeps the registration up, for ever.
    pub async fn run(mut self) {
        let mut failures = 0;
        loop {
            if self.registration.wait_for(Option::is_some).await.is_err() {
                return;
            }
            let ended = self.stream(&mut failures).await;
            self.metrics.registered(false);
            failures += 1;
            let wait = reconnect_delay(failures, rand::random());
            tracing::warn!(error = %describe(&ended), retry_in = ?wait, "the registration's stream is down");
            tokio::time::sleep(wait).await;
        }
    }

    async fn stream(&mut self, failures: &mut u32) -> tonic::Status {
        let (requests, outgoing) = mpsc::channel(4);
        let mut node = Some(self.node.clone());
        let mut next = |registration: Option<Registration>| {
            registration.map(|registration| ReportRequest {
                node: node.take(),
                report: Some(report_request::Report::Registration(registration)),
            })
        };
        let registration = self.registration.borrow_and_update().clone();
        if let Some(first) = next(registration) {
            drop(requests.send(first).await);
        }
        let mut first = true;
        let mut client = ProxyClient::new(self.channel.clone());
        let call = client.report(ReceiverStream::new(outgoing));
        let mut responses = match tokio::time::timeout(STALLED, call).await {
            Ok(Ok(responses)) => responses.into_inner(),
            Ok(Err(status)) => return status,
            Err(_) => return tonic::Status::deadline_exceeded("the control plane does not answer"),
        };
        let mut pending = None;
        loop {
            tokio::select! {
                response = responses.next() => match response {
                    Some(Ok(response)) => {
                        *failures = 0;
                        if let Some(report_response::Response::Registered(registered)) = response.response {
                            if first {
                                self.metrics.registered(true);
                            }
                            self.registered.send_if_modified(|known| {
                                known.pending.clone_from(&registered.pending);
                                known.streams += u64::from(first);
                                std::mem::take(&mut first)
                            });
                            if pending.replace(registered.pending.clone()) == Some(registered.pending.clone()) {
                                continue;
                            }
                            if registered.pending.is_empty() {
                                tracing::info!("registered");
                            } else {
                                tracing::warn!(pending = ?registered.pending, "registered for services, or ports of them, that no source has yet");
                            }
                        }
                    }
                    Some(Err(status)) => return status,
                    None => return tonic::Status::unavailable("the control plane ended the stream"),
                },
                changed = self.registration.changed() => {
                    if changed.is_err() {
                        return tonic::Status::cancelled("the proxy is going");
                    }
                    let registration = self.registration.borrow_and_update().clone();
                    let request = next(registration);
                    if let Some(request) = request {
                        drop(tokio::time::timeout(Duration::from_secs(1), requests.send(request)).await);
                    }
                }
            }
        }
    }
}
