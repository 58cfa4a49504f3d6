//! The endpoints of a service, by port; what has not changed is carried over an update.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use foldhash::fast::RandomState;

use super::{Endpoint, Gate};
use crate::balance::{self, Change, Group, Plan, Policy, Seen, State};
use crate::state::{EndpointsInfo, ObjectName, Peer, ServiceInfo, Traffic};

/// A service's endpoints at one moment.
#[derive(Debug, Default)]
pub struct EndpointSet {
    ports: Vec<Port>,
    /// Where a port's endpoint stands, by its address; made when it is first asked for.
    by_address: OnceLock<HashMap<(u16, SocketAddr), usize, RandomState>>,
}

/// The endpoints of one port, and how they are balanced.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    pub members: Vec<Member>,
    pub group: Arc<Group>,
    /// `None`: as it is done by default.
    pub plan: Option<Plan>,
}

/// One endpoint and what may change about it without making it another.
#[derive(Clone, Debug)]
pub struct Member {
    pub endpoint: Arc<Endpoint>,
    /// False while it starts or drains.
    pub ready: bool,
    /// Its share beside the others', which is 100 by default.
    pub weight: u32,
    pub zone: Option<Arc<str>>,
}

/// What decides, beside the endpoints, how they are balanced.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    pub service: Option<&'a ServiceInfo>,
    /// The proxy's own, where it is known.
    pub zone: Option<&'a str>,
    /// Nanoseconds of the clock that [`balance`] goes by.
    pub now: u64,
    /// Any number.
    pub random: u64,
    pub workers: usize,
}

// === impl How ===

impl How<'_> {
    /// By default, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self { service: None, zone: None, now: 0, random: 0, workers }
    }

    fn policy(&self, port: u16, zoned: bool) -> Policy {
        let traffic = self.service.and_then(|service| service.port(port)).map(|port| &*port.traffic);
        let Some(Traffic { load_balancer, outlier_detection, health_check, .. }) = traffic else {
            return Policy::default();
        };
        let mut balancer = load_balancer.clone().unwrap_or_default();
        if !zoned || self.zone.is_none() {
            balancer.zones = None;
        }
        Policy { balancer, outliers: outlier_detection.clone(), checked: health_check.is_some() }
    }
}

// === impl EndpointSet ===

impl EndpointSet {
    /// As [`EndpointSet::applied`], balanced by default.
    pub fn apply(old: Option<&Self>, info: &EndpointsInfo, workers: usize) -> Self {
        Self::applied(old, info, &How::new(workers))
    }

    /// The set that `info` describes. An endpoint with the address, port and peer of one in `old` is that one,
    /// with its load, its standing and its connections.
    pub fn applied(old: Option<&Self>, info: &EndpointsInfo, how: &How<'_>) -> Self {
        let mut known: HashMap<(u16, SocketAddr, &Peer), &Arc<Endpoint>, RandomState> = HashMap::default();
        for port in old.into_iter().flat_map(|set| &set.ports) {
            let endpoints = port.members.iter().map(|member| &member.endpoint);
            known.extend(endpoints.map(|one| ((port.number, one.address, &one.peer), one)));
        }
        let mut ports: Vec<Port> = Vec::new();
        // An address may be told twice, by two slices with different ports, say: it is one endpoint of a port, and ready if one says so.
        let mut places: HashMap<(u16, SocketAddr), usize, RandomState> = HashMap::default();
        for told in &info.endpoints {
            let number = told.service_port;
            let at = ports.iter().position(|port| port.number == number).unwrap_or_else(|| {
                let group = old.and_then(|old| old.of(number)).map(|port| Arc::clone(&port.group));
                let group = group.unwrap_or_else(|| Arc::new(Group::new(how.random as usize)));
                ports.push(Port { number, members: Vec::new(), group, plan: None });
                ports.len() - 1
            });
            let Port { members, group, .. } = &mut ports[at];
            let place = *places.entry((number, told.addr)).or_insert(members.len());
            if members.get(place).is_some_and(|member| member.ready || !told.ready) {
                continue;
            }
            let endpoint = match known.get(&(number, told.addr, &told.peer)) {
                Some(known) => Arc::clone(known),
                None => {
                    let (peer, workload) = (told.peer.clone(), told.workload.clone());
                    let service = service(members, number, &info.name);
                    let group = Some(Arc::clone(group));
                    Endpoint::grouped(told.addr, peer, workload, service, how.workers, group)
                }
            };
            let member = Member { endpoint, ready: told.ready, weight: told.weight, zone: told.zone.clone() };
            match members.get_mut(place) {
                Some(known) => *known = member,
                None => members.push(member),
            }
        }
        Self::balanced_as(old, ports, how)
    }

    /// The same endpoints, balanced otherwise.
    pub fn balanced(&self, how: &How<'_>) -> Self {
        let ports = self.ports.iter().map(|port| Port {
            number: port.number,
            members: port.members.clone(),
            group: Arc::clone(&port.group),
            plan: None,
        });
        Self::balanced_as(Some(self), ports.collect(), how)
    }

    fn balanced_as(old: Option<&Self>, mut ports: Vec<Port>, how: &How<'_>) -> Self {
        for port in &mut ports {
            port.balance(old.and_then(|old| old.of(port.number)), how);
        }
        Self { ports, by_address: OnceLock::new() }
    }

    /// Has each endpoint know its port's gate.
    pub fn join(&self, gate: impl Fn(u16) -> Arc<Gate>) {
        for port in &self.ports {
            let gate = gate(port.number);
            port.members.iter().for_each(|member| gate.joined(&member.endpoint));
        }
    }

    fn of(&self, number: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// One of the service's ports; `None`: it has no endpoints.
    pub fn port(&self, number: u16) -> Option<&Port> {
        self.of(number)
    }

    pub fn ports(&self) -> &[Port] {
        &self.ports
    }

    /// The endpoint of a port that is at `address`.
    pub fn at(&self, port: u16, address: SocketAddr) -> Option<&Member> {
        let by_address = self.by_address.get_or_init(|| {
            let of = |port: &Port| {
                let addresses: Vec<_> =
                    port.members.iter().map(|member| (port.number, member.endpoint.address)).collect();
                addresses.into_iter().zip(0..)
            };
            self.ports.iter().flat_map(of).collect()
        });
        self.of(port)?.members.get(*by_address.get(&(port, address))?)
    }

    /// Every endpoint, with the service's port that it is for.
    pub fn by_port(&self) -> impl Iterator<Item = (u16, &Member)> {
        self.ports.iter().flat_map(|port| port.members.iter().map(|member| (port.number, member)))
    }

    pub fn all(&self) -> impl Iterator<Item = &Member> {
        self.ports.iter().flat_map(|port| &port.members)
    }
}

// === impl Port ===

impl Port {
    pub fn seen(&self) -> impl Iterator<Item = Seen<'_>> + Clone {
        self.members.iter().map(Member::seen)
    }

    /// Whether it is one of those that requests should go to.
    pub fn may_take(&self, member: &Member) -> bool {
        if self.group.is_panicking() { member.ready } else { member.seen().may_take() }
    }

    /// Whether it should go to one of them that is on probation and was just tried, but for there being others, full as they may be.
    pub fn holds_back(&self, member: &Member, now: u64) -> bool {
        let Endpoint { load, standing, .. } = &*member.endpoint;
        standing.is_held_back(load.in_flight() == 0, now)
            && !self.group.is_panicking()
            && self.members.iter().any(|one| self.may_take(one) && !one.endpoint.standing.is_on_probation())
    }

    /// Whether anything changes by itself as time passes.
    pub fn is_timed(&self) -> bool {
        self.plan.is_some() && self.group.policy().is_timed()
    }

    /// What health checks have found of one of its endpoints.
    pub fn set_healthy(&self, endpoint: &Endpoint, healthy: bool, now: u64) {
        self.group.set_healthy(&endpoint.standing, healthy, self.seen(), now);
        self.changed();
    }

    /// Lets time pass, and tells of what has changed.
    pub fn settle(&self, now: u64) {
        for (i, change) in self.group.settle(self.seen(), now) {
            tell(&self.members[i].endpoint, change);
        }
        self.changed();
    }

    /// Has who waits for an endpoint look again.
    fn changed(&self) {
        let gate = self.members.first().and_then(|member| member.endpoint.room.gate());
        gate.into_iter().for_each(|gate| gate.changed());
    }

    fn balance(&mut self, old: Option<&Self>, how: &How<'_>) {
        let zoned = self.members.iter().any(|member| member.zone.is_some());
        let policy = how.policy(self.number, zoned);
        let is_even = self.members.windows(2).all(|two| two[0].weight == two[1].weight);
        if policy == Policy::default() && is_even && old.is_none_or(|old| old.plan.is_none()) {
            // Nothing is said, and nothing was, which is almost always so.
            return;
        }
        let known = old.map_or(&[][..], |old| &old.members);
        self.stand(known, &policy, how);
        let kept: std::collections::HashSet<*const Endpoint, RandomState> =
            self.members.iter().map(|member| Arc::as_ptr(&member.endpoint)).collect();
        let gone = known.iter().filter(|member| !kept.contains(&Arc::as_ptr(&member.endpoint)));
        let gone = gone.map(|member| &member.endpoint.standing);
        for (i, change) in self.group.update(&policy, self.seen(), gone, how.now) {
            tell(&self.members[i].endpoint, change);
        }
        let named = self
            .members
            .iter()
            .map(|member| (balance::hash(member.endpoint.address.to_string().as_bytes()), member.seen()));
        self.plan = Plan::new(&policy, named);
        if let (Some(plan), Some(old)) = (&self.plan, old.and_then(|old| old.plan.as_ref())) {
            plan.prepare(old);
        }
    }

    /// Who is of the own zone, and whose share begins to grow: what has become ready among others that were.
    fn stand(&self, known: &[Member], policy: &Policy, how: &How<'_>) {
        let were_ready: std::collections::HashSet<*const Endpoint, RandomState> =
            known.iter().filter(|member| member.ready).map(|member| Arc::as_ptr(&member.endpoint)).collect();
        let was_ready = |member: &&Member| were_ready.contains(&Arc::as_ptr(&member.endpoint));
        let ready = || self.members.iter().filter(|member| member.ready);
        if policy.balancer.warm_up.is_some() && ready().any(|member| was_ready(&member)) {
            ready().filter(|member| !was_ready(member)).for_each(|new| new.endpoint.standing.grow(how.now));
        }
        for member in &self.members {
            let local = policy.balancer.zones.is_some() && member.zone.as_deref() == how.zone;
            member.endpoint.standing.set_local(local);
        }
    }
}

// === impl Member ===

impl Member {
    pub fn state(&self) -> State {
        self.endpoint.standing.state(self.ready)
    }

    pub fn seen(&self) -> Seen<'_> {
        let Endpoint { load, standing, .. } = &*self.endpoint;
        Seen { load, standing, ready: self.ready, weight: self.weight }
    }
}

/// Tells people what has changed about an endpoint.
pub fn tell(endpoint: &Endpoint, change: Change) {
    let (address, service) = (endpoint.address, &*endpoint.service);
    match change {
        Change::Ejected { cause, time } => {
            let (cause, time) =
                (cause.as_str(), format!("{:?}", Duration::from_millis(time.as_millis() as u64)));
            tracing::warn!(%address, service, cause, time, "ejected an endpoint");
        }
        Change::Probation => tracing::info!(%address, service, "an endpoint's ejection is over; it is tried"),
        Change::Released => {
            tracing::info!(%address, service, "an endpoint is ejected no longer: too many would be")
        }
    }
}

/// `<namespace>/<name>:<port>`, shared by all endpoints of the port.
fn service(members: &[Member], port: u16, name: &ObjectName) -> Arc<str> {
    members.first().map_or_else(|| format!("{name}:{port}").into(), |one| Arc::clone(&one.endpoint.service))
}

#[cfg(test)]
mod tests {
    use tulle_certs::SpiffeId;

    use super::*;
    use crate::balance::{LoadBalancer, Outcome, Outliers, WarmUp, Zones};
    use crate::state::{EndpointInfo, Protocol, ServicePort};

    fn info(endpoints: &[(u16, &str, Peer)]) -> EndpointsInfo {
        let endpoints = endpoints.iter().map(|(service_port, addr, peer)| EndpointInfo {
            addr: addr.parse().unwrap(),
            service_port: *service_port,
            peer: peer.clone(),
            workload: None,
            zone: None,
            weight: 100,
            ready: true,
        });
        EndpointsInfo { name: ObjectName::new("default", "orders"), endpoints: endpoints.collect() }
    }

    /// Half of them may be ejected, each by its first failure, for half a minute.
    fn first_failure() -> Outliers {
        Outliers {
            consecutive: [1, 0, 0, 0],
            grpc_codes: 0,
            success_rate: None,
            failure_percentage: None,
            interval: Duration::ZERO,
            base_ejection: Duration::from_secs(30),
            maximum_ejection: Duration::from_secs(30),
            maximum_ejected_percent: 50,
        }
    }

    #[test]
    fn an_endpoint_is_the_same_as_long_as_address_port_and_peer_are() {
        let mesh = |account: &str| {
            Peer::Mesh(SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{account}")).unwrap())
        };
        let here = "10.0.0.1:80";
        let before = EndpointSet::apply(None, &info(&[(80, here, mesh("a")), (81, here, mesh("a"))]), 1);
        let after = info(&[(80, "10.0.0.2:80", mesh("a")), (80, here, mesh("a")), (81, here, mesh("b"))]);
        let after = EndpointSet::apply(Some(&before), &after, 1);
        assert!(Arc::ptr_eq(
            &before.port(80).unwrap().members[0].endpoint,
            &after.port(80).unwrap().members[1].endpoint
        ));
        assert!(!Arc::ptr_eq(
            &before.port(80).unwrap().members[0].endpoint,
            &after.port(80).unwrap().members[0].endpoint
        ));
        assert!(
            !Arc::ptr_eq(
                &before.port(81).unwrap().members[0].endpoint,
                &after.port(81).unwrap().members[0].endpoint
            ),
            "somebody else"
        );
        for (port, at) in [(80, 0), (80, 1), (81, 0)] {
            let member = &after.port(port).unwrap().members[at];
            let found = after.at(port, member.endpoint.address).unwrap();
            assert!(Arc::ptr_eq(&found.endpoint, &member.endpoint));
        }
        assert!(after.at(81, "10.0.0.2:80".parse().unwrap()).is_none(), "another port's");
    }

    #[test]
    fn an_address_that_is_told_twice_is_one_endpoint_which_can_be_ejected_and_come_back() {
        let info = service(LoadBalancer::default(), Some(first_failure()));
        let how = How { service: Some(&info), ..How::new(1) };
        let twice = [(1, "", false), (2, "", true), (1, "", true), (1, "", false), (2, "", true)];
        let mut set = EndpointSet::applied(None, &zoned(&twice), &how);
        assert_eq!(states(&set), [State::Usable, State::Usable]);
        for round in 0..3 {
            let now = round * 100_000_000_000;
            let member = set.port(80).unwrap().members[0].clone();
            let found = set.at(80, member.endpoint.address).unwrap();
            assert!(Arc::ptr_eq(&found.endpoint, &member.endpoint));
            let group = member.endpoint.group.as_ref().unwrap();
            assert!(group.record(&member.endpoint.standing, Outcome::Status(500), now).is_some(), "{round}");
            set = EndpointSet::applied(Some(&set), &zoned(&twice), &How { now, ..how });
            assert_eq!(states(&set), [State::Ejected, State::Usable]);
            set.port(80).unwrap().settle(now + 90_000_000_000);
            assert!(group.record(&member.endpoint.standing, Outcome::Status(200), now).is_none());
        }
    }

    /// Ready ones at these ports of one address, with their zones.
    fn zoned(endpoints: &[(u16, &str, bool)]) -> EndpointsInfo {
        let endpoints = endpoints.iter().map(|(port, zone, ready)| EndpointInfo {
            addr: ([10, 0, 0, 1], *port).into(),
            service_port: 80,
            peer: Peer::Plaintext,
            workload: None,
            zone: (!zone.is_empty()).then(|| Arc::from(*zone)),
            ready: *ready,
            weight: 100,
        });
        EndpointsInfo { name: ObjectName::new("default", "orders"), endpoints: endpoints.collect() }
    }

    fn service(balancer: LoadBalancer, outliers: Option<Outliers>) -> ServiceInfo {
        let traffic =
            Traffic { load_balancer: Some(balancer), outlier_detection: outliers, ..Traffic::default() };
        ServiceInfo {
            name: ObjectName::new("default", "orders"),
            addresses: Vec::new(),
            ports: vec![ServicePort {
                port: 80,
                name: String::new(),
                protocol: Protocol::Http,
                traffic: Arc::new(traffic),
            }],
        }
    }

    fn states(set: &EndpointSet) -> Vec<State> {
        set.port(80).unwrap().members.iter().map(Member::state).collect()
    }

    #[test]
    fn what_comes_to_others_warms_up_and_what_all_come_with_does_not() {
        use State::{Unready, Usable, Warming};
        let warm_up = Some(WarmUp { duration: Duration::from_secs(10), minimum_percent: 10 });
        let info = service(LoadBalancer { warm_up, ..LoadBalancer::default() }, None);
        let how = How { service: Some(&info), ..How::new(1) };
        let first = EndpointSet::applied(None, &zoned(&[(1, "", true), (2, "", false)]), &how);
        assert_eq!(states(&first), [Usable, Unready]);
        let told = zoned(&[(1, "", true), (2, "", true), (3, "", true), (4, "", false)]);
        let second = EndpointSet::applied(Some(&first), &told, &how);
        assert_eq!(states(&second), [Usable, Warming, Warming, Unready]);
        // An update of something else begins nothing anew.
        let later = How { now: 1_000_000_000, ..how };
        assert_eq!(
            states(&EndpointSet::applied(Some(&second), &told, &later).balanced(&later)),
            states(&second)
        );
        second.port(80).unwrap().settle(10_000_000_000);
        assert_eq!(states(&second), [Usable, Usable, Usable, Unready]);
        // All of them replaced: none is better than another.
        let third = EndpointSet::applied(Some(&second), &zoned(&[(7, "", true), (8, "", true)]), &how);
        assert_eq!(states(&third), [Usable, Usable]);
    }

    #[test]
    fn an_ejection_outlives_changes_of_others_and_ends_with_its_policy() {
        let info = service(LoadBalancer::default(), Some(first_failure()));
        let how = How { service: Some(&info), ..How::new(1) };
        let first = EndpointSet::applied(None, &zoned(&[(1, "", true), (2, "", true)]), &how);
        let endpoint = Arc::clone(&first.port(80).unwrap().members[0].endpoint);
        let group = endpoint.group.as_ref().unwrap();
        assert!(group.record(&endpoint.standing, Outcome::Status(500), 0).is_some());
        let told = zoned(&[(3, "", true), (1, "", true), (4, "", false)]);
        let second = EndpointSet::applied(Some(&first), &told, &how);
        assert_eq!(states(&second), [State::Usable, State::Ejected, State::Unready]);
        assert!(second.port(80).unwrap().is_timed());
        let without = second.balanced(&How::new(1));
        assert_eq!(states(&without), [State::Usable, State::Usable, State::Unready]);
        assert!(without.port(80).unwrap().plan.is_none() && !group.is_watched());
    }

    #[test]
    fn zones_are_preferred_only_where_they_are_known() {
        let zones = Zones { maximum_load_percent: 150, latency: None, in_flight: 0, refused_percent: 0 };
        let info = service(LoadBalancer { zones: Some(zones), ..LoadBalancer::default() }, None);
        let here = How { service: Some(&info), zone: Some("a"), ..How::new(1) };
        let picks = |set: &EndpointSet| {
            let port = set.port(80).unwrap();
            let plan = port.plan.as_ref()?;
            let look = |i: usize| Some(port.members[i].seen());
            for random in 0..50 {
                let picked = plan.pick(&port.group, look, None, 0, random).unwrap();
                port.group.sent(&port.members[picked].endpoint.standing);
            }
            Some(port.group.counted().zones)
        };
        let told = zoned(&[(1, "a", true), (2, "b", true), (3, "a", true)]);
        assert_eq!(picks(&EndpointSet::applied(None, &told, &here)), Some([50, 0]));
        let elsewhere = How { zone: Some("c"), ..here };
        assert_eq!(picks(&EndpointSet::applied(None, &told, &elsewhere)), Some([0, 50]));
        // The default does where nothing is known.
        assert_eq!(picks(&EndpointSet::applied(None, &told, &How { zone: None, ..here })), None);
        assert_eq!(picks(&EndpointSet::applied(None, &zoned(&[(1, "", true), (2, "", true)]), &here)), None);
    }
}
