//! One simulated proxy: it joins, subscribes, registers and reconnects as a real one does, with the real one's end of
//! ADS, and looks at every resource; it has no listeners.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures_util::StreamExt;
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tulle_api::ca::IstioCertificateRequest;
use tulle_api::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use tulle_api::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use tulle_api::discovery::{DeltaDiscoveryResponse, Node};
use tulle_api::v1::proxy_client::ProxyClient;
use tulle_api::v1::report_request::Report;
use tulle_api::v1::{self, ReportRequest};
use tulle_api::{MESH, ResourceType};
use tulle_certs::issue::split_chain;
use tulle_certs::key::csr;
use tulle_certs::token::TokenFile;
use tulle_certs::{Alpn, Creds, PrivateKey, bootstrap, control_plane_id};
use tulle_proxy::control::channel::reconnect_delay;
use tulle_proxy::control::session::{ResourceName, Session};

use super::connection::channel;
use super::ledger::{Counts, Ledger};
use super::plan::{Plan, Random, service_name, service_of, workload_name};
use crate::world::NAMESPACE;

/// As a proxy's.
const MAX_MESSAGE: usize = 64 << 20;

/// What one proxy is made of.
pub(super) struct Proxy {
    pub(super) index: usize,
    pub(super) plan: Plan,
    pub(super) control_plane: SocketAddr,
    pub(super) token: TokenFile,
    pub(super) registration: watch::Receiver<v1::Registration>,
    pub(super) ledger: Arc<Ledger>,
}

/// What both streams tell each other.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Progress {
    subscribed: bool,
    registered: bool,
}

/// The ADS half.
struct Subscriber<'a> {
    proxy: &'a Proxy,
    uses: Vec<usize>,
    session: Session,
    /// Names that have been answered since the stream was opened; those that are held count as answered.
    answered: HashSet<(ResourceType, String)>,
    /// By used service: the generation of each endpoint; `None`: not known yet.
    seen: Vec<Vec<Option<u32>>>,
}

// === impl Proxy ===

impl Proxy {
    /// Runs for ever.
    pub(super) async fn run(self) {
        let mut random = Random(!(self.index as u64));
        let mut failures = 0;
        let creds = loop {
            match self.join().await {
                Ok(creds) => break creds,
                Err(_) => self.pause(&mut failures, &mut random).await,
            }
        };
        let tls = creds.client(&control_plane_id(&creds.id().trust_domain()), Alpn::Grpc);
        let channel = channel(self.control_plane, tls, Arc::clone(&self.ledger));
        let progress = watch::Sender::new(Progress::default());
        let ready = async {
            let mut changes = progress.subscribe();
            let mut was = false;
            loop {
                let is = *changes.borrow_and_update() == Progress { subscribed: true, registered: true };
                match (was, is) {
                    (false, true) => drop(self.ledger.counts.ready.fetch_add(1, Ordering::Relaxed)),
                    (true, false) => drop(self.ledger.counts.ready.fetch_sub(1, Ordering::Relaxed)),
                    _ => {}
                }
                was = is;
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::join!(self.subscribe(&channel, &progress), self.register(&channel, &progress), ready);
    }

    async fn join(&self) -> Result<Creds, Status> {
        let failed = |error: &dyn std::fmt::Display| Status::unknown(error.to_string());
        let id = self.token.claims().map_err(|error| failed(&error))?.sub;
        let domain = id.trust_domain();
        let tls = bootstrap::pinned(self.token.pin, &domain).map_err(|error| failed(&error))?;
        let key = PrivateKey::generate().map_err(|error| failed(&error))?;
        let request = IstioCertificateRequest {
            csr: csr(&key, Some(&id)).map_err(|error| failed(&error))?,
            ..Default::default()
        };
        let mut request = Request::new(request);
        let bearer = format!("Bearer {}", &*self.token.token).parse();
        request.metadata_mut().insert("authorization", bearer.map_err(|_| failed(&"not ASCII"))?);
        let channel = channel(self.control_plane, tls, Arc::clone(&self.ledger));
        let answer =
            IstioCertificateServiceClient::new(channel).create_certificate(request).await?.into_inner();
        let (chain, bundle) = split_chain(&answer.cert_chain, &domain).map_err(|error| failed(&error))?;
        Creds::new(chain, key, Arc::new(bundle), SystemTime::now()).map_err(|error| failed(&error))
    }

    async fn pause(&self, failures: &mut u32, random: &mut Random) {
        Counts::add(&self.ledger.counts.failures, 1);
        *failures += 1;
        tokio::time::sleep(reconnect_delay(*failures, random.below(1000) as f64 / 1000.0)).await;
    }

    fn node(&self) -> Node {
        Node { id: format!("{NAMESPACE}/{}", workload_name(self.index)), ..Node::default() }
    }

    async fn subscribe(&self, channel: &Channel, progress: &watch::Sender<Progress>) {
        let mut subscriber = Subscriber::new(self);
        let mut random = Random(self.index as u64 ^ 0xad5);
        let mut failures = 0;
        loop {
            let _ended = subscriber.stream(channel, progress, &mut failures).await;
            progress.send_modify(|progress| progress.subscribed = false);
            self.pause(&mut failures, &mut random).await;
        }
    }

    async fn register(&self, channel: &Channel, progress: &watch::Sender<Progress>) {
        if self.registration.borrow().services.is_empty() {
            progress.send_modify(|progress| progress.registered = true);
            return;
        }
        let mut random = Random(self.index as u64 ^ 0x4e9);
        let mut failures = 0;
        loop {
            let _ended = self.report(channel, progress, &mut failures).await;
            progress.send_modify(|progress| progress.registered = false);
            self.pause(&mut failures, &mut random).await;
        }
    }

    async fn report(
        &self,
        channel: &Channel,
        progress: &watch::Sender<Progress>,
        failures: &mut u32,
    ) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(4);
        let mut registration = self.registration.clone();
        let mut node = Some(self.node());
        let mut next = |registration: v1::Registration| ReportRequest {
            node: node.take(),
            report: Some(Report::Registration(registration)),
        };
        let first = next(registration.borrow_and_update().clone());
        drop(requests.send(first).await);
        let mut client = ProxyClient::new(channel.clone());
        let mut responses = client.report(ReceiverStream::new(outgoing)).await?.into_inner();
        loop {
            tokio::select! {
                response = responses.next() => {
                    response.unwrap_or_else(|| Err(Status::unavailable("ended")))?;
                    *failures = 0;
                    progress.send_if_modified(|progress| !std::mem::replace(&mut progress.registered, true));
                }
                changed = registration.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let request = next(registration.borrow_and_update().clone());
                    drop(requests.send(request).await);
                }
            }
        }
    }
}

// === impl Subscriber ===

impl<'a> Subscriber<'a> {
    fn new(proxy: &'a Proxy) -> Self {
        let mut session = Session::new(proxy.node());
        let own = proxy.node().id;
        let mut want = |resource_type: ResourceType, name: String| {
            session.subscribe(ResourceName { type_url: resource_type.type_url().to_owned(), name });
        };
        want(ResourceType::Mesh, MESH.to_owned());
        want(ResourceType::TrustBundle, "cluster.local".to_owned());
        want(ResourceType::Workload, own.clone());
        want(ResourceType::InboundPolicy, own);
        let uses = proxy.plan.used_by(proxy.index);
        for service in &uses {
            let name = format!("{NAMESPACE}/{}", service_name(*service));
            want(ResourceType::Routes, format!("{NAMESPACE}/{name}"));
            want(ResourceType::Service, name.clone());
            want(ResourceType::Endpoints, name);
        }
        let seen = vec![vec![None; proxy.plan.endpoints]; uses.len()];
        Self { proxy, uses, session, answered: HashSet::new(), seen }
    }

    async fn stream(
        &mut self,
        channel: &Channel,
        progress: &watch::Sender<Progress>,
        failures: &mut u32,
    ) -> Result<(), Status> {
        let (requests, outgoing) = mpsc::channel(64);
        self.session.open();
        for request in self.session.requests() {
            drop(requests.send(request).await);
        }
        let client = AggregatedDiscoveryServiceClient::new(channel.clone());
        let call = client.max_decoding_message_size(MAX_MESSAGE);
        let responses = { call }.delta_aggregated_resources(ReceiverStream::new(outgoing)).await?;
        let mut responses = responses.into_inner();
        let mut changes = progress.subscribe();
        let mut registered = false;
        loop {
            let wanted = ResourceType::ALL.map(|known| self.session.wanted(known.type_url()));
            if self.answered.len() == wanted.iter().sum::<usize>() {
                progress.send_if_modified(|progress| !std::mem::replace(&mut progress.subscribed, true));
            }
            tokio::select! {
                response = responses.next() => {
                    let response = response.unwrap_or_else(|| Err(Status::unavailable("ended")))?;
                    *failures = 0;
                    drop(requests.send(self.take(response)).await);
                }
                _ = changes.changed() => {
                    let now = changes.borrow_and_update().registered;
                    // Only what comes after the registration counts.
                    if now && !std::mem::replace(&mut registered, now) {
                        let (type_url, name) = (ResourceType::InboundPolicy.type_url().to_owned(), self.proxy.node().id);
                        self.session.subscribe_again(ResourceName { type_url, name });
                        for request in self.session.requests() {
                            drop(requests.send(request).await);
                        }
                    }
                    registered = now;
                }
            }
        }
    }

    /// Takes a response in, and answers it.
    fn take(&mut self, response: DeltaDiscoveryResponse) -> tulle_api::discovery::DeltaDiscoveryRequest {
        let counts = &self.proxy.ledger.counts;
        Counts::add(&counts.responses, 1);
        Counts::add(&counts.resources, response.resources.len());
        let resource_type = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        for resource in &response.resources {
            let body = resource.resource.as_ref().map(|body| &body.value[..]).unwrap_or_default();
            Counts::add(&counts.resource_bytes, body.len());
            let held = self.session.held(&response.type_url, &resource.name);
            // The own policy is asked for again on purpose.
            let again = resource_type == ResourceType::InboundPolicy;
            Counts::add(&counts.repeated, usize::from(held == Some(&resource.version) && !again));
        }
        let offered = response.resources.len() + response.removed_resources.len();
        let update = self.session.receive(response);
        Counts::add(&counts.unasked, offered - update.resources.len() - update.removed.len());
        for resource in &update.resources {
            if resource_type == ResourceType::Endpoints {
                self.endpoints(&resource.name, &resource.resource.value);
            }
        }
        let names = update.resources.iter().map(|resource| &resource.name).chain(&update.removed);
        for name in names {
            if !self.answered.contains(&(resource_type, name.clone())) {
                self.answered.insert((resource_type, name.clone()));
            }
        }
        self.session.answer(&update, &[])
    }

    fn endpoints(&mut self, name: &str, body: &[u8]) {
        let ledger = &self.proxy.ledger;
        Counts::add(&ledger.counts.endpoints_bytes, body.len());
        let service = service_of(name).expect("a service of the plan");
        ledger.size(service, body.len());
        let endpoints = v1::Endpoints::decode(body).expect("endpoints").endpoints;
        let at = self.uses.binary_search(&service).expect("a service that is used");
        let seen = &mut self.seen[at];
        let was_whole = seen.iter().all(Option::is_some);
        let mut now = vec![None; seen.len()];
        for endpoint in &endpoints {
            let (one, generation) =
                self.proxy.plan.place(service, endpoint).expect("an endpoint of the plan");
            now[one] = now[one].max(Some(generation));
        }
        for (one, (was, now)) in seen.iter_mut().zip(now).enumerate() {
            if let Some(generation) = now.filter(|now| *now > was.unwrap_or(0)) {
                ledger.seen(service, one, was.unwrap_or(0), generation);
            }
            // One that goes and comes back has not forgotten its changes.
            *was = now.max(*was);
        }
        let is_whole = seen.iter().all(Option::is_some);
        ledger.counts.whole.fetch_add(i64::from(is_whole) - i64::from(was_whole), Ordering::Relaxed);
    }
}
