//! `tulle.v1.Proxy/Report`: the stream by which a workload makes itself an endpoint, for as long as the stream lives, and by which
//! its proxy is asked what it uses and to show requests, and says what it carries.
//!
//! Decides nothing but who speaks; [`Registrations`] decides what is taken, [`Reporters`] who asks, [`Taps`] what is shown to whom, [`Loads`]
//! what is kept of loads. A registration that is refused ends the
//! stream, since nothing that the proxy could say next would mend it, and the status says what is wrong.

use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tulle_api::v1::proxy_server::Proxy;
use tulle_api::v1::{self, ReportRequest, ReportResponse, report_request, report_response};
use tulle_certs::SpiffeId;
use tulle_certs::token::TokenError;
use zeroize::Zeroizing;

use crate::ads::session::Refusal as NodeRefusal;
use crate::ads::{Caller, Nodes};
use crate::asking::{Place, Question, Reporters};
use crate::ca::{self, GrantError};
use crate::ending::Ending;
use crate::index::{Registration, RegistrationId};
use crate::load::{self, Loads};
use crate::metrics::Metrics;
use crate::model::Publisher;
use crate::registration::{Refusal, Registrations};
use crate::server;
use crate::tap::{self, Taps};
use crate::trust::Trust;

/// The service; cheap to clone.
#[derive(Clone)]
pub struct Reports {
    registrations: Arc<Registrations>,
    publisher: Arc<Publisher>,
    reporters: Reporters,
    loads: Loads,
    taps: Taps,
    metrics: Metrics,
    nodes: Nodes,
    /// Where join tokens count, beside certificates.
    trust: Option<Trust>,
    ending: Ending,
}

type Responses = Pin<Box<dyn Stream<Item = Result<ReportResponse, Status>> + Send>>;

/// One proxy's stream.
struct ReportStream {
    reports: Reports,
    id: SpiffeId,
    /// When the certificate does, and with it the connection.
    expires: SystemTime,
    caller: Option<Caller>,
    asked: Option<Asked>,
    held: Option<Held>,
    /// Changes with what is pending.
    services: watch::Receiver<u64>,
    responses: mpsc::Sender<Result<ReportResponse, Status>>,
}

/// What the proxy is asked.
struct Asked {
    /// Held for as long as it can be.
    _place: Place,
    /// Where it says what it carries.
    load: load::Place,
    /// What it is to show.
    tap: tap::Place,
    questions: mpsc::Receiver<Question>,
    /// The question that it has not answered, by its number. Who asks another has given up on this one.
    open: Option<(u64, oneshot::Sender<v1::EndpointsInUse>)>,
    last: u64,
}

/// What happens first.
enum Next {
    Ask(Question),
    /// Something may have to be told about taps.
    Tap,
}

/// How a stream ends that nobody refused.
enum Ended {
    /// The proxy has said all that it had to say.
    Orderly,
    /// It is gone; it may come back.
    Broken,
}

/// What the stream has registered.
struct Held {
    id: RegistrationId,
    registration: Registration,
    /// As last told.
    pending: Vec<String>,
}

// === impl Reports ===

impl Reports {
    /// Streams end with the control plane.
    pub fn new(
        registrations: Arc<Registrations>,
        publisher: Arc<Publisher>,
        reporters: Reporters,
        loads: Loads,
        taps: Taps,
        metrics: Metrics,
        ending: Ending,
    ) -> Self {
        let nodes = Nodes::default();
        Self { registrations, publisher, reporters, loads, taps, metrics, nodes, trust: None, ending }
    }

    /// Takes join tokens for what they grant, beside certificates.
    pub fn granting(self, trust: Trust) -> Self {
        Self { trust: Some(trust), ..self }
    }

    /// Serves only those whose nodes are theirs.
    pub fn checking(self, nodes: Nodes) -> Self {
        Self { nodes, ..self }
    }

    /// Takes a join token that is shown beside a certificate. One that has expired grants nothing more, but takes nothing away: a stream that is opened anew shows
    /// the token of long ago, and what that has granted is kept. Whether it is enough is asked when somebody registers.
    async fn grant(&self, trust: &Trust, id: &SpiffeId, token: &str) -> Result<(), Status> {
        match trust.grant_to(id, token, SystemTime::now()).await {
            Ok(()) => Ok(()),
            Err(GrantError::Token(error @ TokenError::Expired(_))) => {
                tracing::debug!(caller = %id, %error, "what a join token has granted before holds");
                Ok(())
            }
            Err(error @ GrantError::Kept(_)) => {
                tracing::error!(caller = %id, %error, "a join token cannot be taken");
                Err(Status::unavailable(error.to_string()))
            }
            Err(error) => {
                self.metrics.refused.with_label_values(&["registration_not_granted"]).inc();
                tracing::warn!(caller = %id, %error, "a join token grants nothing");
                Err(Status::permission_denied(error.to_string()))
            }
        }
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
        let token = request.metadata().get("authorization").map(|value| {
            let value = value.to_str().unwrap_or_default();
            Zeroizing::new(value.split_once(' ').map_or("", |(_, token)| token).to_owned())
        });
        if let (Some(trust), Some(token)) = (&self.trust, token) {
            self.grant(trust, &caller.id, &token).await?;
        }
        let (responses, outgoing) = mpsc::channel(4);
        let stream = ReportStream {
            reports: self.clone(),
            id: caller.id,
            expires: caller.not_after,
            caller: None,
            asked: None,
            held: None,
            services: self.publisher.services(),
            responses,
        };
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(outgoing))))
    }
}

// === impl ReportStream ===

impl ReportStream {
    async fn run(mut self, mut requests: Streaming<ReportRequest>) {
        let ended = self.serve(&mut requests).await;
        if let Some(held) = self.held.take() {
            tracing::info!(workload = %held.registration.workload, "a workload's registration has ended");
            let registrations = &self.reports.registrations;
            match ended {
                _ if SystemTime::now() >= self.expires => registrations.expired(held.id),
                Ok(Ended::Broken) => registrations.broken(held.id),
                Ok(Ended::Orderly) | Err(_) => registrations.ended(held.id),
            }
        }
        if let Err(status) = ended {
            // Who has gone needs no answer.
            let _gone = self.responses.send(Err(status)).await;
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<ReportRequest>) -> Result<Ended, Status> {
        let mut ending = self.reports.ending.clone();
        loop {
            tokio::select! {
                request = requests.next() => match request {
                    Some(Ok(request)) => self.receive(request).await?,
                    Some(Err(status)) if server::is_malformed(&status) => {
                        return Err(self.refuse("malformed_message", Status::invalid_argument(status.message())));
                    }
                    Some(Err(_)) => return Ok(Ended::Broken),
                    None => return Ok(Ended::Orderly),
                },
                next = next(&mut self.asked) => match next {
                    Next::Ask(question) => self.ask(question).await,
                    Next::Tap => self.tap().await,
                },
                changed = self.services.changed() => match changed {
                    Ok(()) => self.tell_pending().await,
                    Err(_) => return Err(Status::unavailable("the control plane is ending")),
                },
                () = ending.wait() => {
                    return Err(Status::unavailable("the control plane is ending"));
                }
            }
        }
    }

    async fn receive(&mut self, request: ReportRequest) -> Result<(), Status> {
        let caller = match &self.caller {
            Some(caller) => caller.clone(),
            None => {
                let node = request.node.ok_or(NodeRefusal::NodeMissing);
                let caller = node.and_then(|node| Caller::new(self.id.namespace(), &node.id));
                let admitted = match caller {
                    Ok(caller) => self.reports.nodes.admit(&self.id, &caller).await.map(|()| caller),
                    Err(refusal) => Err(refusal),
                };
                let caller =
                    admitted.map_err(|refusal| self.refuse(refusal.reason(), Status::from(&refusal)))?;
                let (place, questions) = self.reporters().enter(caller.node(), self.id.as_ref());
                let load = self.reports.loads.enter(caller.node(), self.id.as_ref(), Instant::now());
                let tap = self.reports.taps.enter(caller.node(), self.id.as_ref());
                self.asked = Some(Asked { _place: place, load, tap, questions, open: None, last: 0 });
                self.caller.insert(caller).clone()
            }
        };
        match request.report {
            Some(report_request::Report::Registration(said)) => self.register(&caller, &said).await,
            Some(report_request::Report::Endpoints(in_use)) => {
                let open =
                    self.asked.as_mut().and_then(|asked| asked.open.take_if(|(id, _)| *id == in_use.id));
                if let Some((_, answer)) = open {
                    // Who asked may have left.
                    let _left = answer.send(in_use);
                }
                Ok(())
            }
            Some(report_request::Report::Load(load)) => {
                if let Some(asked) = &self.asked {
                    asked.load.take(load, Instant::now());
                }
                Ok(())
            }
            Some(report_request::Report::Tapped(tapped)) => {
                if let Some(asked) = &self.asked {
                    asked.tap.take(tapped);
                }
                Ok(())
            }
            // Who he is, and nothing else; or something newer than this control plane.
            None => Ok(()),
        }
    }

    /// Puts a question to the proxy.
    async fn ask(&mut self, question: Question) {
        let Some(asked) = &mut self.asked else { return };
        asked.last += 1;
        let Question { service, answer } = question;
        asked.open = Some((asked.last, answer));
        let question = v1::EndpointsQuestion { id: asked.last, service };
        self.say(report_response::Response::Endpoints(question)).await;
    }

    /// Begins and ends the proxy's taps.
    async fn tap(&mut self) {
        let due = self.asked.as_mut().map(|asked| asked.tap.due()).unwrap_or_default();
        for response in due {
            self.say(response).await;
        }
    }

    fn reporters(&self) -> &Reporters {
        &self.reports.reporters
    }

    async fn register(&mut self, caller: &Caller, said: &v1::Registration) -> Result<(), Status> {
        let replaces = self.held.as_ref().map(|held| held.id);
        let registrations = Arc::clone(&self.reports.registrations);
        let taken = registrations.register(caller.workload(), &self.id, said, replaces).await;
        let (registration, registered) = taken.map_err(|refusal| {
            let text = refusal.to_string();
            match refusal {
                Refusal::NotGranted(_) => {
                    self.refuse("registration_not_granted", Status::permission_denied(text))
                }
                Refusal::Taken { .. } => {
                    self.refuse("registration_workload_taken", Status::permission_denied(text))
                }
                Refusal::Malformed(_) | Refusal::TooLarge => {
                    self.refuse("registration_malformed", Status::invalid_argument(text))
                }
            }
        })?;
        tracing::info!(
            workload = caller.node(), identity = %self.id, address = %registration.address, ready = said.ready,
            pending = ?registered.pending, "registered a workload"
        );
        self.held = Some(Held { id: registered.id, registration, pending: registered.pending.clone() });
        self.answer(registered.pending).await;
        Ok(())
    }

    /// Says so when a service that the workload waits for has come, or one that was there has gone.
    async fn tell_pending(&mut self) {
        let Some(held) = &mut self.held else { return };
        let pending = self.reports.publisher.pending(&held.registration);
        if pending != held.pending {
            held.pending.clone_from(&pending);
            self.answer(pending).await;
        }
    }

    async fn answer(&self, pending: Vec<String>) {
        self.say(report_response::Response::Registered(v1::Registered { pending })).await;
    }

    async fn say(&self, response: report_response::Response) {
        // A caller that is gone needs no answer.
        let _gone = self.responses.send(Ok(ReportResponse { response: Some(response) })).await;
    }

    fn refuse(&self, reason: &str, status: Status) -> Status {
        self.reports.metrics.refused.with_label_values(&[reason]).inc();
        tracing::warn!(identity = %self.id, reason, error = status.message(), "refused a registration");
        status
    }
}

/// What is to be asked of the proxy next; never, while it has not said who it is.
async fn next(asked: &mut Option<Asked>) -> Next {
    let Some(Asked { questions, tap, .. }) = asked else { return std::future::pending().await };
    tokio::select! {
        Some(question) = questions.recv() => Next::Ask(question),
        () = tap.wait() => Next::Tap,
    }
}
