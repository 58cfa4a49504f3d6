//! From the application into the mesh.
//!
//! A connection: where was it going ([`target`])? What does it speak ([`serve`])? Opaque bytes get an endpoint and
//! are relayed. Each HTTP request goes `route → balance → endpoint → wire` ([`Connection::request`]): the route picks
//! a backend, the balancer an endpoint, and [`exchange`] sends it there and brings the answer back; what is provably
//! unprocessed is sent once more. Whatever fails is answered by the proxy itself, with its reason.

use std::net::SocketAddr;
use std::slice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Request, Response};
use parking_lot::Mutex;

use super::context::Worker;
use super::exchange::{self, Failed, Leg, Tunnels};
use super::fault::Fault;
use super::headers;
use super::opaque::{self, Ended};
use super::record::{ConnectionRecord, InFlight, Record, Tracked};
use super::sniff::{self, Sniffed};
use crate::accept::{Accepted, Destination};
use crate::balance::{self, Candidate};
use crate::detect::Detection;
use crate::endpoint::{Endpoint, Member};
use crate::io::{Io, Meter, Replay};
use crate::route::{Backend, Match, Rule};
use crate::state::{AddressTarget, ObjectName, Peer, Protocol, ServiceState};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{ConnectionLabels, DetectResult, Direction, ReplayCause, TlsKind};
use crate::wire::{Body, Framing};

/// Where a connection was going.
#[derive(Debug)]
enum Target {
    Service {
        service: Arc<ServiceState>,
        port: u16,
    },
    /// To an address as such: a pod's, or one outside the mesh.
    Address(Arc<Endpoint>),
    /// Not known when the connection came, for a reason that its first request is told. Later ones ask again.
    Unknown(Destination, Mutex<Option<Fault>>),
}

/// One connection from the application.
#[derive(Debug)]
struct Connection {
    worker: Arc<Worker>,
    id: u64,
    client: SocketAddr,
    target: Target,
    /// `<namespace>/<name>:<port>`, for metrics and logs.
    service: Arc<str>,
    framing: Framing,
    tunnels: Tunnels,
}

/// Serves one connection of the application until it ends.
pub async fn serve(worker: &Arc<Worker>, accepted: Accepted) {
    let Accepted { mut stream, client, destination } = accepted;
    let (target, protocol) = match target(worker, &destination).await {
        Ok(found) => found,
        Err(fault) => (Target::Unknown(destination, Mutex::new(Some(fault))), Protocol::Detect),
    };
    let Ok(sniffed) = speaks(worker, &mut stream, protocol).await else { return };
    let http = matches!(protocol, Protocol::Http | Protocol::Http2 | Protocol::Grpc);
    if http && sniffed.result == DetectResult::Closed && sniffed.head.is_empty() {
        // Opened ahead of need, or to see whether the port is open: no endpoint is troubled with it.
        return;
    }
    let service: Arc<str> = match &target {
        Target::Service { service, port } => format!("{}:{port}", service.name).into(),
        Target::Address(_) | Target::Unknown(..) => Arc::from(""),
    };
    let framing = match sniffed.detection {
        Detection::Http1 => Some(Framing::Http1),
        Detection::Http2 => Some(Framing::Http2),
        Detection::Tls(_) | Detection::Opaque | Detection::NeedMore => None,
    };
    let io = Io::replay(Replay::new(sniffed.head, stream));
    let id = worker.proxy.connection_id();
    let worker = Arc::clone(worker);
    match framing {
        Some(framing) => {
            let tunnels = Tunnels::default();
            let connection = Connection { worker, id, client, target, service, framing, tunnels };
            Arc::new(connection).serve(io).await;
        }
        None => relay(&worker, io, client, &target, &service).await,
    }
}

/// Finds where a connection was going, asking the control plane if it is the first to go there.
async fn target(worker: &Worker, destination: &Destination) -> Result<(Target, Protocol), Fault> {
    let proxy = &worker.proxy;
    match destination {
        Destination::Service { service, port } => service_target(worker, service, *port).await,
        Destination::Application { application, .. } => Err(Fault::unsent(
            Reason::LoopDetected,
            format!("{application} is an inbound destination on an outbound listener"),
        )),
        Destination::Address(address) => {
            let port = address.port();
            match worker.address(address.ip()).await {
                Ok(Some(info)) => match &info.target {
                    AddressTarget::Service(name) => service_target(worker, name, port).await,
                    AddressTarget::Host(ports) => {
                        let known = ports.iter().find(|known| known.port == port);
                        let (peer, protocol) = known.map_or((&Peer::Plaintext, Protocol::Detect), |known| {
                            (&known.peer, known.protocol)
                        });
                        let protocol = proxy.settings.protocol(protocol, port);
                        Ok((Target::Address(worker.loose_endpoint(*address, peer)), protocol))
                    }
                },
                Ok(None) => Ok(off_mesh(worker, *address)),
                Err(unanswered) => Err(Fault::unsent(Reason::DiscoveryUnavailable, unanswered.to_string())),
            }
        }
    }
}

fn off_mesh(worker: &Worker, address: SocketAddr) -> (Target, Protocol) {
    let protocol = worker.proxy.settings.protocol(Protocol::Detect, address.port());
    (Target::Address(worker.loose_endpoint(address, &Peer::Plaintext)), protocol)
}

async fn service_target(worker: &Worker, name: &ObjectName, port: u16) -> Result<(Target, Protocol), Fault> {
    let service = service(worker, name).await?;
    let protocol = service.info().and_then(|info| info.port(port).map(|port| port.protocol));
    let protocol = worker.proxy.settings.protocol(protocol.unwrap_or(Protocol::Detect), port);
    Ok((Target::Service { service, port }, protocol))
}

async fn service(worker: &Worker, name: &ObjectName) -> Result<Arc<ServiceState>, Fault> {
    let found = worker.service(name).await;
    found.map_err(|unanswered| Fault::unsent(Reason::DiscoveryUnavailable, unanswered.to_string()))
}

/// What the connection speaks: as declared, else as its first bytes tell. A declared port is never waited for longer
/// than its client takes.
async fn speaks(
    worker: &Worker,
    stream: &mut tokio::net::TcpStream,
    protocol: Protocol,
) -> std::io::Result<Sniffed> {
    let patience = match protocol {
        Protocol::Tcp | Protocol::Tls => {
            let (detection, result) = (Detection::Opaque, DetectResult::Declared);
            worker.metrics.detect(result, sniff::protocol(&detection), Duration::ZERO);
            return Ok(Sniffed { detection, result, head: bytes::Bytes::new() });
        }
        Protocol::Http | Protocol::Http2 | Protocol::Grpc => None,
        Protocol::Detect => Some(worker.proxy.settings.detect_timeout),
    };
    let started = Instant::now();
    let sniffed = sniff::sniff(stream, patience, &worker.proxy.drain).await?;
    worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), started.elapsed());
    Ok(sniffed)
}

/// Relays opaque bytes to one endpoint of the target.
async fn relay(worker: &Arc<Worker>, io: Io, client: SocketAddr, target: &Target, service: &Arc<str>) {
    let mut record =
        ConnectionRecord { service, ..ConnectionRecord::new(worker, Direction::Outbound, client) };
    let endpoint = match target {
        Target::Address(endpoint) => Ok(Arc::clone(endpoint)),
        Target::Service { service, port } => pick(worker, service, *port, &[]),
        Target::Unknown(destination, fault) => Err(unknown(destination, fault)),
    };
    let connected = match endpoint {
        Ok(endpoint) => match exchange::dial(worker).opaque(&endpoint).await {
            Ok(server) => Ok((endpoint, server)),
            Err(error) => Err(exchange::connect_fault(&error)),
        },
        Err(fault) => Err(fault),
    };
    let (endpoint, server) = match connected {
        Ok(connected) => connected,
        Err(fault) => {
            record.refused(fault.reason, &fault.detail).write(worker);
            return io.reset_on_drop();
        }
    };
    let mut in_flight = InFlight::start(worker, &endpoint);
    in_flight.answered(true);
    let meter = Arc::new(Meter::default());
    let labels = ConnectionLabels {
        direction: Direction::Outbound,
        tls: tls_kind(&endpoint),
        peer: endpoint.identity().map_or("", |id| id.as_str()),
        service,
    };
    let open = worker.metrics.connections(&labels).open();
    let ended = opaque::relay(io.metered(Arc::clone(&meter)), server, None).await;
    record.bytes = exchange::count(&open, &meter);
    record.tls = tls_kind(&endpoint);
    record.endpoint = Some(endpoint.address);
    record.destination = endpoint.identity();
    record.write(worker);
    if let Ended::Reset(error) = ended {
        tracing::debug!(%client, %service, %error, "a relayed connection was reset");
    }
}

fn tls_kind(endpoint: &Endpoint) -> TlsKind {
    match endpoint.peer {
        Peer::Mesh(_) => TlsKind::Mtls,
        Peer::Plaintext => TlsKind::None,
    }
}

/// Why it was not known where a connection goes.
fn unknown(destination: &Destination, fault: &Mutex<Option<Fault>>) -> Fault {
    let fault = fault.lock().take();
    fault.unwrap_or_else(|| Fault::unsent(Reason::DiscoveryUnavailable, format!("{destination:?}")))
}

/// One ready endpoint of a service's port, by the balancer.
fn pick(
    worker: &Worker,
    service: &ServiceState,
    port: u16,
    tried: &[Arc<Endpoint>],
) -> Result<Arc<Endpoint>, Fault> {
    let none = || Fault::unsent(Reason::NoHealthyEndpoint, format!("{}:{port}", service.name));
    let endpoints = service.endpoints().ok_or_else(none)?;
    let members = endpoints.port(port);
    let describe = |i: usize| {
        let Member { endpoint, ready } = &members[i];
        match ready {
            _ if tried.iter().any(|tried| Arc::ptr_eq(tried, endpoint)) => Candidate::Excluded,
            true => Candidate::Ready(&endpoint.load),
            false => Candidate::Standby(&endpoint.load),
        }
    };
    let picked = balance::pick(members.len(), describe, worker.proxy.now(), rand::random());
    // With nobody else left, one that was tried is better than none.
    let picked = picked.or_else(|| (!members.is_empty() && !tried.is_empty()).then_some(0));
    picked.map(|i| Arc::clone(&members[i].endpoint)).ok_or_else(none)
}

// === impl Connection ===

impl Connection {
    async fn serve(self: Arc<Self>, io: Io) {
        let labels = ConnectionLabels {
            direction: Direction::Outbound,
            tls: TlsKind::None,
            peer: "",
            service: &self.service,
        };
        let open = self.worker.metrics.connections(&labels).open();
        let meter = Arc::new(Meter::default());
        let io = io.metered(Arc::clone(&meter));
        let handler = |request| Arc::clone(&self).request(request);
        let refuse = |fault: &Fault| self.record(&mut Request::default()).unread().fault(fault);
        exchange::serve(
            &self.worker,
            Direction::Outbound,
            self.framing,
            io,
            handler,
            refuse,
            &self.worker.proxy.drain,
        )
        .await;
        self.tunnels.ended().await;
        exchange::count(&open, &meter);
    }

    fn record(&self, request: &mut Request<Body>) -> Box<Record> {
        let mut record = Record::new(&self.worker, Direction::Outbound, self.id, self.client, request);
        record.service = Some(Arc::clone(&self.service));
        record
    }

    /// One request of the application: its whole life.
    async fn request(self: Arc<Self>, mut request: Request<Body>) -> Response<Tracked> {
        let mut record = self.record(&mut request);
        headers::strip_ours(request.headers_mut());
        match self.forward(&mut record, request).await {
            Ok((response, in_flight, deadline)) => record.answer(response, in_flight, deadline),
            Err(fault) => record.fault(&fault),
        }
    }

    async fn forward(
        &self,
        record: &mut Record,
        request: Request<Body>,
    ) -> Result<(Response<Body>, InFlight, Option<Instant>), Fault> {
        headers::check_host(&request)?;
        let found;
        let target = match &self.target {
            Target::Unknown(destination, fault) if fault.lock().is_some() => {
                return Err(unknown(destination, fault));
            }
            Target::Unknown(destination, _) => {
                found = target(&self.worker, destination).await?.0;
                &found
            }
            known => known,
        };
        let (service, port) = match target {
            Target::Unknown(destination, fault) => return Err(unknown(destination, fault)),
            Target::Address(endpoint) => {
                let endpoint = Arc::clone(endpoint);
                let (response, in_flight) =
                    self.attempts(record, request, None, |_| Ok(endpoint.clone())).await?;
                return Ok((response, in_flight, None));
            }
            Target::Service { service, port } => (service, *port),
        };
        // Routes are looked at anew for each request, so that connections which live long obey changes.
        let routes = service.routes();
        let rule = match routes.as_deref().map(|table| find(table, port, &request)) {
            None | Some(Match::NoRoutes) => None,
            Some(Match::Rule(rule)) => Some(rule),
            Some(Match::NotFound) => {
                let what =
                    format!("{} {} to {}:{port}", request.method(), request.uri().path(), service.name);
                return Err(Fault::unsent(Reason::RouteNotFound, what));
            }
        };
        let Some(rule) = rule else {
            let send = self.attempts(record, request, None, |tried| pick(&self.worker, service, port, tried));
            let (response, in_flight) = send.await?;
            return Ok((response, in_flight, None));
        };
        record.route = Some(Arc::clone(&rule.label));
        let backend = choose(rule)?;
        record.backend = Some(Arc::clone(&backend.label));
        let deadline = rule.request_timeout.map(|limit| record.started() + limit);
        let send = async {
            let service = self::service(&self.worker, &backend.service).await?;
            let pick = |tried: &[Arc<Endpoint>]| pick(&self.worker, &service, backend.port, tried);
            self.attempts(record, request, rule.backend_timeout, pick).await
        };
        let (response, in_flight) = match deadline {
            None => send.await?,
            Some(at) => tokio::time::timeout_at(at.into(), send).await.unwrap_or_else(|_| {
                let limit = rule.request_timeout.unwrap_or_default();
                Err(Fault::maybe(Reason::RequestTimeout, format!("{limit:?}, by route {}", rule.route)))
            })?,
        };
        Ok((response, in_flight, deadline))
    }

    /// Sends the request to an endpoint; once more, preferably to another, if nobody can have acted on it.
    async fn attempts(
        &self,
        record: &mut Record,
        mut request: Request<Body>,
        limit: Option<Duration>,
        pick: impl Fn(&[Arc<Endpoint>]) -> Result<Arc<Endpoint>, Fault>,
    ) -> Result<(Response<Body>, InFlight), Fault> {
        let mut tried: Vec<Arc<Endpoint>> = Vec::new();
        loop {
            let endpoint = pick(&tried)?;
            record.endpoint = Some(endpoint.address);
            record.destination = endpoint.identity().cloned();
            record.tls = tls_kind(&endpoint);
            record.attempts += 1;
            let mut in_flight = InFlight::start(&self.worker, &endpoint);
            // What another proxy cannot pass on may go to another endpoint, if there is one.
            let other = |tried: &_| pick(tried).is_ok_and(|other| !Arc::ptr_eq(&other, &endpoint));
            let replayable = tried.is_empty() && endpoint.identity().is_some();
            let spare = (replayable && other(slice::from_ref(&endpoint)))
                .then(|| exchange::spare(&request))
                .flatten();
            let asked = Instant::now();
            let leg = Leg {
                endpoint: &endpoint,
                framing: self.framing,
                limit,
                tunnels: &self.tunnels,
                guard: None,
            };
            let sent = exchange::send(&self.worker, leg, request).await;
            record.waited(asked.elapsed());
            match sent {
                Ok(mut response) => {
                    in_flight.answered(!response.status().is_server_error());
                    let unprocessed = headers::take_ours(response.headers_mut(), &endpoint.peer);
                    match spare.filter(|_| unprocessed) {
                        None => return Ok((response, in_flight)),
                        // The endpoint's proxy could not reach its application: another's may.
                        Some(spare) => {
                            self.worker.metrics.replayed(ReplayCause::Unprocessed);
                            request = spare;
                            tried.push(endpoint);
                        }
                    }
                }
                Err(Failed { fault, again }) => {
                    in_flight.answered(false);
                    match again {
                        Some(again) if tried.is_empty() => {
                            self.worker.metrics.replayed(again.cause);
                            request = *again.request;
                            tried.push(endpoint);
                        }
                        _ => return Err(fault),
                    }
                }
            }
        }
    }
}

fn find<'a>(table: &'a crate::route::Table, port: u16, request: &Request<Body>) -> Match<'a> {
    table.find(port, headers::host(request), request.uri().path())
}

/// The rule's backend for one request, by weight.
fn choose(rule: &Rule) -> Result<&Backend, Fault> {
    let backend = rule
        .pick(rand::random())
        .ok_or_else(|| Fault::unsent(Reason::RouteWithoutBackend, format!("route {}", rule.route)))?;
    match &backend.invalid {
        None => Ok(backend),
        Some(why) => Err(Fault::unsent(Reason::BackendNotFound, format!("route {}: {why}", rule.route))),
    }
}
