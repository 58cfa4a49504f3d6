//! Where a connection was going, and which endpoint of it takes the next request.
//!
//! Decides from the original destination alone, never from what a client says in its request; what is not known yet is
//! asked of the control plane ([`Going::find`]). Called by `outbound`.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::again::Failing;
use super::asked::Asked;
use super::context::Worker;
use super::fault::Fault;
use crate::accept::Destination;
use crate::balance::{self, Candidate, Seen};
use crate::endpoint::{Endpoint, Member, Port};
use crate::route::{Budget, Streams};
use crate::state::{AddressTarget, First, ObjectName, Peer, Protocol, ServiceState, Traffic};
use crate::telemetry::Reason;

/// Something that requests and connections can be sent to.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// A port of a service.
    Service(Arc<ServiceState>, u16),
    /// The same, of a session that goes to this endpoint for as long as it answers.
    Session(Arc<ServiceState>, u16, Arc<Endpoint>),
    /// A workload's address as such: a pod's.
    Address(Arc<Endpoint>),
    /// An address, or a port of a workload's, of which the mesh knows nothing.
    Outside(Arc<Endpoint>),
}

/// Where one connection was going.
#[derive(Debug)]
pub(super) struct Going {
    destination: Destination,
    /// What was found when it came, or why nothing was, which its first request is told.
    found: Result<Target, Mutex<Option<Fault>>>,
}

// === impl Going ===

impl Going {
    /// Finds where a connection was going, asking the control plane if it is the first to go there; and what is spoken
    /// there, as far as it is declared.
    pub(super) async fn find(worker: &Worker, destination: Destination) -> (Self, Protocol) {
        match find(worker, &destination).await {
            Ok((target, protocol)) => (Self { destination, found: Ok(target) }, protocol),
            Err(fault) => (Self { destination, found: Err(Mutex::new(Some(fault))) }, Protocol::Detect),
        }
    }

    /// What the next request goes to. One to a service that has just come waits for its routes, as the first use of a service does.
    pub(super) async fn target(&self, worker: &Worker) -> Result<Target, Fault> {
        match &self.found {
            Ok(target) => {
                if let Target::Service(known, _) | Target::Session(known, ..) = target
                    && known.awaits_routes()
                {
                    service(worker, &known.name).await?;
                }
                return Ok(target.clone());
            }
            Err(fault) => {
                if let Some(fault) = fault.lock().take() {
                    return Err(fault);
                }
            }
        }
        Ok(find(worker, &self.destination).await?.0)
    }

    /// What a connection goes to whose bytes nobody looks into, and that no route takes as a whole.
    ///
    /// # Errors
    /// Also when such a route has come meanwhile.
    pub(super) async fn whole(&self, worker: &Worker) -> Result<Target, Fault> {
        let target = self.target(worker).await?;
        if let Target::Service(service, port) = &target
            && service.routes().is_some_and(|routes| routes.streams(*port).is_some())
        {
            return Err(rerouted(service, *port));
        }
        Ok(target)
    }

    /// Who was last seen to speak first there.
    pub(super) fn first(&self, worker: &Worker) -> Option<First> {
        match self.found.as_ref().ok()? {
            Target::Service(service, port) | Target::Session(service, port, _) => service.spoken.first(*port),
            Target::Address(endpoint) | Target::Outside(endpoint) => {
                worker.proxy.spoken.first(endpoint.address)
            }
        }
    }

    /// Remembers who was seen to.
    pub(super) fn saw(&self, worker: &Worker, first: First) {
        match &self.found {
            Ok(Target::Service(service, port) | Target::Session(service, port, _)) => {
                service.spoken.saw(*port, first);
            }
            Ok(Target::Address(endpoint) | Target::Outside(endpoint)) => {
                worker.proxy.spoken.saw(endpoint.address, first);
            }
            Err(_) => {}
        }
    }

    /// `<namespace>/<name>:<port>`, for metrics and logs; empty when no service was dialled, as far as is known.
    pub(super) fn service(&self) -> Arc<str> {
        match &self.found {
            Ok(Target::Service(service, port) | Target::Session(service, port, _)) => {
                format!("{}:{port}", service.name).into()
            }
            Ok(Target::Address(_) | Target::Outside(_)) | Err(_) => Arc::from(""),
        }
    }

    /// The routes that connections there follow as a whole, and the service's port as text; `None`: there are none.
    pub(super) fn streams(&self) -> Option<(Arc<Streams>, Arc<str>)> {
        let Ok(Target::Service(service, port)) = &self.found else { return None };
        let streams = Arc::clone(service.routes()?.streams(*port)?);
        Some((streams, self.service()))
    }

    /// The address, if it is known to lie outside the mesh.
    pub(super) fn outside(&self) -> Option<SocketAddr> {
        match &self.found {
            Ok(Target::Outside(endpoint)) => Some(endpoint.address),
            Ok(Target::Service(..) | Target::Session(..) | Target::Address(_)) | Err(_) => None,
        }
    }
}

/// Why nothing more goes the old way to a port whose connections have got routes as a whole.
pub(super) fn rerouted(service: &ServiceState, port: u16) -> Fault {
    let what = format!("{}:{port} has got a TLSRoute or a TCPRoute", service.name);
    Fault::unsent(Reason::RouteChanged, what)
}

async fn find(worker: &Worker, destination: &Destination) -> Result<(Target, Protocol), Fault> {
    match destination {
        Destination::Service { service, port } => of_service(worker, service, *port).await,
        Destination::Address(address) => of_address(worker, *address).await,
        Destination::Application { application, .. } => Err(Fault::unsent(
            Reason::LoopDetected,
            format!("{application} is an inbound destination on an outbound listener"),
        )),
    }
}

async fn of_service(worker: &Worker, name: &ObjectName, port: u16) -> Result<(Target, Protocol), Fault> {
    let service = service(worker, name).await?;
    let protocol = service.info().and_then(|info| info.port(port).map(|port| port.protocol));
    let protocol = worker.proxy.settings.protocol(protocol.unwrap_or(Protocol::Detect), port);
    Ok((Target::Service(service, port), protocol))
}

/// The service of that name, asked for if nobody has used it yet.
pub(super) async fn service(worker: &Worker, name: &ObjectName) -> Result<Arc<ServiceState>, Fault> {
    let found = worker.service(name).await;
    found.map_err(|unanswered| Fault::unsent(Reason::DiscoveryUnavailable, unanswered.to_string()))
}

async fn of_address(worker: &Worker, address: SocketAddr) -> Result<(Target, Protocol), Fault> {
    let port = address.port();
    let known = match worker.address(address.ip()).await {
        Ok(Some(info)) => match &info.target {
            AddressTarget::Service(name) => return of_service(worker, name, port).await,
            AddressTarget::Host(host) => {
                let known = host.port(port);
                known.map(|(peer, protocol)| (worker.loose_endpoint(address, peer), protocol))
            }
        },
        Ok(None) => None,
        Err(unanswered) => {
            return Err(Fault::unsent(Reason::DiscoveryUnavailable, unanswered.to_string()));
        }
    };
    let (target, declared) = match known {
        Some((endpoint, protocol)) => (Target::Address(endpoint), protocol),
        None => (Target::Outside(worker.loose_endpoint(address, &Peer::Plaintext)), Protocol::Detect),
    };
    Ok((target, worker.proxy.settings.protocol(declared, port)))
}

// === impl Target ===

impl Target {
    /// The endpoint that takes the next request: one that is ready, by the balancer, and none of those that have `failed` it already
    /// unless there is no other; then any but the last of them. One that is not ready comes after those that are ready and were reached.
    pub(super) fn pick(
        &self,
        worker: &Worker,
        failed: &[Failing],
        asked: &Asked<'_>,
    ) -> Result<Arc<Endpoint>, Fault> {
        let (service, port) = match self {
            Self::Address(endpoint) | Self::Outside(endpoint) => return Ok(Arc::clone(endpoint)),
            Self::Session(.., endpoint) if failed.is_empty() => return Ok(Arc::clone(endpoint)),
            Self::Service(service, port) | Self::Session(service, port, _) => (service, *port),
        };
        let none = || Fault::unsent(Reason::NoHealthyEndpoint, format!("{}:{port}", service.name));
        let endpoints = service.serving(port).ok_or_else(none)?;
        let port = endpoints.port(port).ok_or_else(none)?;
        choose(port, failed, asked, || worker.proxy.now())
            .map(|one| Arc::clone(&one.endpoint))
            .ok_or_else(none)
    }

    /// What the request is placed by, where endpoints are chosen by hash.
    pub(super) fn key(&self, asked: &Asked<'_>) -> Option<u64> {
        let (Self::Service(service, port) | Self::Session(service, port, _)) = self else { return None };
        asked.key(service.endpoints()?.port(*port)?.plan.as_ref()?.keys())
    }

    /// The balancer's pick of the endpoints that have room under their limits, of those that have not `failed` the request if there
    /// are any. `key`: what [`Target::key`] says of the request.
    pub(super) fn with_room(
        &self,
        worker: &Worker,
        failed: &[Failing],
        key: Option<u64>,
    ) -> Option<Arc<Endpoint>> {
        let (Self::Service(service, port) | Self::Session(service, port, _)) = self else { return None };
        let endpoints = service.serving(*port)?;
        let port = endpoints.port(*port)?;
        let has_failed =
            |member: &Member| failed.iter().any(|one| Arc::ptr_eq(&one.endpoint, &member.endpoint));
        let now = worker.proxy.now();
        let of = |again: bool| {
            let fits = |member: &Member| {
                port.may_take(member)
                    && member.endpoint.room.has_room()
                    && has_failed(member) == again
                    && !port.holds_back(member, now)
            };
            // Nobody is drawn of none: that would take somebody's turn.
            port.members
                .iter()
                .any(fits)
                .then(|| draw(port, key, now, |member| fits(member).then_some(member.ready)))
        };
        let picked = of(false).or_else(|| of(true)).flatten();
        picked.map(|member| Arc::clone(&member.endpoint))
    }

    /// How what goes there is treated, as far as anything is said of it.
    pub(super) fn traffic(&self) -> Option<Arc<Traffic>> {
        match self {
            Self::Service(service, port) | Self::Session(service, port, _) => service.traffic(*port),
            Self::Address(_) | Self::Outside(_) => None,
        }
    }

    /// The budget for what is sent there again.
    pub(super) fn retry_budget(&self) -> Option<Arc<Budget>> {
        match self {
            Self::Service(service, port) | Self::Session(service, port, _) => {
                Some(service.retry_budget(*port))
            }
            Self::Address(_) | Self::Outside(_) => None,
        }
    }

    /// Whether another endpoint than this one could take the request.
    pub(super) fn has_other(&self, than: &Arc<Endpoint>) -> bool {
        let (Self::Service(service, port) | Self::Session(service, port, _)) = self else { return false };
        let other = |member: &Member| !Arc::ptr_eq(&member.endpoint, than);
        let endpoints = service.serving(*port);
        endpoints
            .is_some_and(|endpoints| endpoints.port(*port).is_some_and(|port| port.members.iter().any(other)))
    }
}

/// The one of a port's endpoints that [`Target::pick`] says.
fn choose<'a>(
    port: &'a Port,
    failed: &[Failing],
    asked: &Asked<'_>,
    now: impl FnOnce() -> u64,
) -> Option<&'a Member> {
    if let [only] = &*port.members {
        // With nobody else left, one that has failed is better than none.
        return Some(only);
    }
    let now = now();
    let key = port.plan.as_ref().and_then(|plan| asked.key(plan.keys()));
    if failed.is_empty() {
        return draw(port, key, now, |member| Some(member.ready));
    }
    let draw = |rank: &dyn Fn(&'a Member) -> Option<bool>| draw(port, key, now, rank);
    // How many have failed since.
    let failing =
        |member: &Member| failed.iter().rev().position(|one| Arc::ptr_eq(&one.endpoint, &member.endpoint));
    let new = draw(&|member| failing(member).is_none().then_some(member.ready));
    if new.is_some_and(|one| port.may_take(one)) {
        return new;
    }
    let reached = || {
        draw(&|member| {
            let since = failing(member).filter(|_| member.ready)?;
            failed.iter().nth_back(since)?.reached.then_some(since > 0)
        })
    };
    let any = || draw(&|member| failing(member).filter(|since| *since > 0).map(|_| member.ready));
    reached().or(new).or_else(any).or_else(|| port.members.first())
}

/// One of the members, by the balancer; `rank`: whether one is preferred, `None`: it is out of the question.
fn draw<'a>(
    port: &'a Port,
    key: Option<u64>,
    now: u64,
    rank: impl Fn(&'a Member) -> Option<bool>,
) -> Option<&'a Member> {
    let members = &*port.members;
    let picked = match &port.plan {
        None => {
            let candidate = |i: usize| match rank(&members[i]) {
                None => Candidate::Excluded,
                Some(true) => Candidate::Ready(&members[i].endpoint.load),
                Some(false) => Candidate::Standby(&members[i].endpoint.load),
            };
            balance::pick(members.len(), candidate, now, rand::random())
        }
        Some(plan) => {
            let look = |i: usize| rank(&members[i]).map(|ready| Seen { ready, ..members[i].seen() });
            plan.pick(&port.group, look, key, now, rand::random())
        }
    };
    picked.map(|i| &members[i])
}

#[cfg(test)]
mod tests {
    use super::super::tests;
    use super::*;
    use crate::endpoint::EndpointSet;
    use crate::state::{EndpointInfo, EndpointsInfo};

    #[tokio::test(start_paused = true)]
    async fn an_open_connection_waits_for_the_routes_of_a_service_that_has_come_as_a_new_one_does() {
        let worker = tests::lone_worker("web");
        let state = tests::knows(&worker, "orders", &[([10, 0, 0, 1], 1).into()]);
        let routes = state.routes();
        let destination = Destination::Service { service: state.name.clone(), port: 80 };
        let (open, _) = Going::find(&worker, destination).await;
        state.set_routes(None);
        let told = async {
            tokio::task::yield_now().await;
            state.set_routes(routes.clone());
            worker.proxy.store.announce();
        };
        let (target, ()) = tokio::join!(open.target(&worker), told);
        let asked = Asked { client: ([10, 0, 0, 9], 1).into(), request: None };
        assert_eq!(target.unwrap().pick(&worker, &[], &asked).unwrap().address.port(), 1);
        // Not for ever, and not for a service that is gone.
        state.set_routes(None);
        assert_eq!(open.target(&worker).await.unwrap_err().reason, Reason::DiscoveryUnavailable);
        state.set_info(None);
        assert!(open.target(&worker).await.is_ok());
    }

    #[test]
    fn what_was_reached_and_failed_comes_before_what_is_not_ready() {
        // Which members are ready, which have failed in what order and whether they were reached, and which may be next.
        type Case = (&'static [bool], &'static [(usize, bool)], &'static [usize]);
        let cases: &[Case] = &[
            (&[true, false], &[], &[0]),
            (&[true, false], &[(0, true)], &[0]),
            (&[true, false], &[(0, false)], &[1]),
            (&[true, false], &[(0, false), (1, true)], &[0]),
            (&[true, true, false], &[(0, true)], &[1]),
            (&[true, true, false], &[(0, true), (1, true)], &[0]),
            (&[true, true, false], &[(0, false), (1, true)], &[1]),
            (&[true, true, false], &[(0, false), (1, false)], &[2]),
            (&[true, true, false], &[(0, false), (2, true), (1, false)], &[0]),
            (&[false, false], &[(0, true)], &[1]),
            (&[true], &[(0, false)], &[0]),
        ];
        for (ready, failed, next) in cases {
            let endpoints = ready.iter().zip(1..).map(|(ready, port)| EndpointInfo {
                service_port: 80,
                addr: ([10, 0, 0, 1], port).into(),
                peer: Peer::Plaintext,
                workload: None,
                zone: None,
                ready: *ready,
                weight: 100,
            });
            let name = ObjectName::new("default", "orders");
            let info = EndpointsInfo { name, endpoints: endpoints.collect() };
            let set = EndpointSet::apply(None, &info, 1);
            let port = set.port(80).unwrap();
            let members = &port.members;
            let failed: Vec<_> = failed
                .iter()
                .map(|(i, reached)| Failing {
                    endpoint: Arc::clone(&members[*i].endpoint),
                    reached: *reached,
                })
                .collect();
            for _ in 0..20 {
                let asked = Asked { client: ([10, 0, 0, 9], 1).into(), request: None };
                let chosen = choose(port, &failed, &asked, || 0).unwrap();
                let i = members.iter().position(|member| std::ptr::eq(member, chosen)).unwrap();
                assert!(next.contains(&i), "{ready:?} {failed:?}: {i}");
            }
        }
    }
}
