use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;
use crate::balance::{Algorithm, HashKey, LoadBalancer, Outcome, Outliers, State};
use crate::endpoint::{EndpointSet, How};
use crate::forward::asked::Asked;
use crate::forward::in_flight::InFlight;
use crate::forward::tests;
use crate::state::{Connections, EndpointInfo, EndpointsInfo, Limits, Peer, ServiceState, Traffic};

const LONG: Duration = Duration::from_secs(3600);

/// A service of so many endpoints that nobody dials.
fn service(worker: &Worker, endpoints: u16, limits: Limits) -> (Arc<ServiceState>, Arc<Gate>) {
    let addresses: Vec<SocketAddr> = (1..=endpoints).map(|port| ([10, 0, 0, 1], port).into()).collect();
    let state = tests::knows(worker, "orders", &addresses);
    let gate =
        Arc::clone(state.endpoints().unwrap().port(80).unwrap().members[0].endpoint.room.gate().unwrap());
    gate.say(Some(limits), Connections::default());
    (state, gate)
}

type Picked = Result<(Arc<Endpoint>, Option<RequestSeat>), Fault>;

async fn pick(worker: &Worker, target: &Target) -> Picked {
    let asked = || Asked { client: ([127, 0, 0, 1], 1).into(), request: None };
    let endpoint = target.pick(worker, &[], &asked())?;
    let Some(gate) = endpoint.room.limited().cloned() else { return Ok((endpoint, None)) };
    let key = target.key(&asked());
    seated(worker, target, &[], endpoint, key, gate).await
}

/// A service with one endpoint, which takes one request at a time, and what holds its place.
async fn taken(
    worker: &Worker,
) -> (Arc<ServiceState>, Arc<Gate>, Target, (Arc<Endpoint>, Option<RequestSeat>)) {
    let limits = Limits { requests_per_endpoint: 1, queue_timeout: LONG, ..Limits::default() };
    let (state, gate) = service(worker, 1, limits);
    let target = Target::Service(Arc::clone(&state), 80);
    let held = pick(worker, &target).await.unwrap();
    (state, gate, target, held)
}

#[tokio::test]
async fn endpoints_with_room_come_before_those_without_and_then_requests_wait_or_are_refused() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 1, ..Limits::default() };
    let (state, gate) = service(&worker, 3, limits);
    let target = Target::Service(Arc::clone(&state), 80);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(pick(&worker, &target).await.unwrap());
    }
    let mut ports: Vec<_> = held.iter().map(|(endpoint, _)| endpoint.address.port()).collect();
    ports.sort_unstable();
    assert_eq!(ports, [1, 2, 3], "each has its one");
    let refused = pick(&worker, &target).await.unwrap_err();
    assert_eq!(refused.reason, Reason::Overloaded);
    assert!(refused.detail.contains("requests_per_endpoint of default/orders:80 is 1"), "{}", refused.detail);
    // A session waits for its own, though another has room.
    gate.say(Some(Limits { queue_timeout: LONG, ..limits }), Connections::default());
    let (own, seat) = held.remove(0);
    let session = Target::Session(Arc::clone(&state), 80, Arc::clone(&own));
    drop(held.pop());
    let (got, ()) = tokio::join!(pick(&worker, &session), async {
        tokio::task::yield_now().await;
        drop(seat);
    });
    assert_eq!(got.unwrap().0.address, own.address);
}

#[tokio::test]
async fn nobody_gets_past_a_limit_to_endpoints_that_are_told_before_their_service() {
    let worker = tests::lone_worker("web");
    let state = tests::knows(&worker, "orders", &[([10, 0, 0, 1], 1).into()]);
    let target = Target::Service(Arc::clone(&state), 80);
    let mut info = (*state.info().unwrap()).clone();
    // There was none when it was asked about, and its endpoints come first once there is.
    state.set_info(None);
    now_at(&state, &[1]);
    assert_eq!(pick(&worker, &target).await.unwrap_err().reason, Reason::NoHealthyEndpoint);
    let limits = Some(Limits { requests: 1, ..Limits::default() });
    info.ports[0].traffic = Arc::new(Traffic { limits, ..Traffic::default() });
    state.set_info(Some(Arc::new(info)));
    let held = pick(&worker, &target).await.unwrap();
    assert!(held.1.is_some(), "it has the place");
    assert_eq!(pick(&worker, &target).await.unwrap_err().reason, Reason::Overloaded);
    // A port that the service does not have (yet) is the same.
    let other = Target::Service(Arc::clone(&state), 81);
    assert_eq!(pick(&worker, &other).await.unwrap_err().reason, Reason::NoHealthyEndpoint);
}

#[tokio::test(start_paused = true)]
async fn who_waits_while_the_service_goes_is_given_no_endpoint_that_is_told_before_the_next() {
    let worker = tests::lone_worker("web");
    let (state, gate, target, held) = taken(&worker).await;
    let (got, ()) = tokio::join!(pick(&worker, &target), async {
        one_waits(&gate).await;
        state.set_info(None);
        now_at(&state, &[1, 2]);
        // Time enough to take what has room.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        drop(held);
    });
    assert_eq!(got.unwrap().0.address.port(), 1);
    assert!(!target.has_other(&state.endpoints().unwrap().port(80).unwrap().members[0].endpoint));
}

/// The service's endpoints are at these ports from now on.
fn now_at(state: &ServiceState, ports: &[u16]) {
    let endpoints = ports.iter().map(|port| EndpointInfo {
        service_port: 80,
        addr: ([10, 0, 0, 1], *port).into(),
        peer: Peer::Plaintext,
        workload: None,
        zone: None,
        ready: true,
        weight: 100,
    });
    let info = EndpointsInfo { name: state.name.clone(), endpoints: endpoints.collect() };
    state.set_endpoints(EndpointSet::apply(state.endpoints().as_deref(), &info, 1));
}

/// Until somebody waits for any endpoint.
async fn one_waits(gate: &Gate) {
    while gate.read().iter().all(|limit| limit.waiting == 0) {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_to_an_endpoint_that_comes_or_is_well_again() {
    let worker = tests::lone_worker("web");
    let (state, gate, target, held) = taken(&worker).await;
    let (got, ()) = tokio::join!(pick(&worker, &target), async {
        one_waits(&gate).await;
        now_at(&state, &[1, 2]);
    });
    let second = got.unwrap();
    assert_eq!((held.0.address.port(), second.0.address.port()), (1, 2));
    // One of them becomes free, but is not well.
    let healthy = |healthy| state.endpoints().unwrap().port(80).unwrap().set_healthy(&second.0, healthy, 0);
    healthy(false);
    drop(second.1);
    let (got, ()) = tokio::join!(pick(&worker, &target), async {
        one_waits(&gate).await;
        healthy(true);
    });
    assert_eq!(got.unwrap().0.address.port(), 2);
}

#[tokio::test(start_paused = true)]
async fn who_waited_does_not_go_to_an_endpoint_that_is_gone() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 1, queue_timeout: LONG, ..Limits::default() };
    let (state, gate) = service(&worker, 2, limits);
    let target = Target::Service(Arc::clone(&state), 80);
    let (held, stays) = (pick(&worker, &target).await.unwrap(), pick(&worker, &target).await.unwrap());
    let gone = Arc::clone(&held.0);
    let (got, ()) =
        tokio::join!(seated(&worker, &target, &[], Arc::clone(&gone), None, Arc::clone(&gate)), async {
            one_waits(&gate).await;
            now_at(&state, &[stays.0.address.port()]);
            drop(held);
            (0..10).for_each(|_| gate.changed());
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(gone.room.requests(), 0);
            drop(stays.1);
        });
    assert_eq!(got.unwrap().0.address, stays.0.address);
}

#[tokio::test]
async fn what_an_endpoint_has_no_room_for_goes_where_its_hash_says_next() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 1, ..Limits::default() };
    let (state, gate) = service(&worker, 5, limits);
    let balancer = LoadBalancer {
        algorithm: Algorithm::Maglev,
        hash: [HashKey::Source].into(),
        ..LoadBalancer::default()
    };
    let traffic = Traffic { load_balancer: Some(balancer), ..Traffic::default() };
    let mut info = (*state.info().unwrap()).clone();
    info.ports[0].traffic = Arc::new(traffic);
    let set = state.endpoints().unwrap().balanced(&How { service: Some(&info), ..How::new(1) });
    state.set_endpoints(set);
    let target = Target::Service(Arc::clone(&state), 80);
    for client in 0..20 {
        let asked = || Asked { client: ([127, 0, 0, client], 1).into(), request: None };
        let first = target.pick(&worker, &[], &asked()).unwrap();
        let held = seated(&worker, &target, &[], Arc::clone(&first), None, Arc::clone(&gate)).await.unwrap();
        assert!(Arc::ptr_eq(&held.0, &first));
        let without = [Failing { endpoint: Arc::clone(&first), reached: true }];
        let next = target.pick(&worker, &without, &asked()).unwrap();
        let key = target.key(&asked());
        let second = seated(&worker, &target, &[], first, key, Arc::clone(&gate)).await.unwrap();
        assert_eq!(second.0.address, next.address, "client {client}");
    }
}

#[tokio::test]
async fn what_is_sent_counts_once_in_the_balancer_however_often_it_is_picked_for() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 1, ..Limits::default() };
    let (state, _) = service(&worker, 3, limits);
    let balancer =
        LoadBalancer { algorithm: Algorithm::RoundRobin, panic_percent: 50, ..LoadBalancer::default() };
    let traffic = Traffic { load_balancer: Some(balancer), ..Traffic::default() };
    let mut info = (*state.info().unwrap()).clone();
    info.ports[0].traffic = Arc::new(traffic);
    state.set_endpoints(state.endpoints().unwrap().balanced(&How { service: Some(&info), ..How::new(1) }));
    let endpoints = state.endpoints().unwrap();
    let port = endpoints.port(80).unwrap();
    port.members[1..].iter().for_each(|member| port.set_healthy(&member.endpoint, false, 0));
    let panics = || port.group.counted().panics;
    assert!(port.group.is_panicking());
    let (target, mut sent) = (Target::Service(Arc::clone(&state), 80), Vec::new());
    for so_far in 0..3 {
        assert_eq!(panics(), so_far);
        // The balancer's pick has no room, but for the first.
        let first = sent.first().map(|(endpoint, _): &(Arc<Endpoint>, InFlight)| Arc::clone(endpoint));
        let gate = Arc::clone(port.members[0].endpoint.room.gate().unwrap());
        let (endpoint, seat) = match first {
            None => pick(&worker, &target).await.unwrap(),
            Some(full) => seated(&worker, &target, &[], full, None, gate).await.unwrap(),
        };
        let in_flight = InFlight::start(&worker, &endpoint, 0).seated(seat);
        sent.push((endpoint, in_flight));
    }
    assert!(pick(&worker, &target).await.is_err(), "there is no room");
    assert_eq!(panics(), 3);
}

/// Never more than may be, everybody is served or refused, and all counts are 0 in the end, though requests leave, wait too long, and
/// limits change.
#[tokio::test(start_paused = true)]
async fn seeded_places_are_never_exceeded_and_all_come_back() {
    for seed in 0..60 {
        let mut rng = StdRng::seed_from_u64(seed);
        let worker = tests::lone_worker("web");
        let draw = |rng: &mut StdRng| Limits {
            requests: rng.random_range(0..8),
            requests_per_endpoint: rng.random_range(1..4),
            pending: [0, 20][rng.random_range(0..2)],
            queue_timeout: Duration::from_millis(rng.random_range(0..40)),
            ..Limits::default()
        };
        let limits = draw(&mut rng);
        let (state, gate) = service(&worker, 3, limits);
        let (served, refused) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let most = Arc::new(AtomicU32::new(limits.requests_per_endpoint));
        let mut tasks = Vec::new();
        for _ in 0..80 {
            let (worker, state) = (Arc::clone(&worker), Arc::clone(&state));
            let (served, refused, most) = (Arc::clone(&served), Arc::clone(&refused), Arc::clone(&most));
            let [begin, hold] = [0; 2].map(|_: i32| Duration::from_millis(rng.random_range(0..30)));
            let in_session = rng.random_range(0..4) == 0;
            tasks.push(tokio::spawn(async move {
                tokio::time::sleep(begin).await;
                let target = match in_session {
                    true => {
                        let only =
                            Arc::clone(&state.endpoints().unwrap().port(80).unwrap().members[0].endpoint);
                        Target::Session(state, 80, only)
                    }
                    false => Target::Service(state, 80),
                };
                let Ok((endpoint, seat)) = pick(&worker, &target).await else {
                    refused.fetch_add(1, Ordering::Relaxed);
                    return;
                };
                let now = endpoint.room.requests();
                assert!(now <= most.load(Ordering::Relaxed), "seed {seed}: {now}");
                tokio::time::sleep(hold).await;
                drop(seat);
                served.fetch_add(1, Ordering::Relaxed);
            }));
        }
        let mut gone = 0;
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(rng.random_range(1..20))).await;
            tasks[rng.random_range(0..80)].abort();
            let limits = draw(&mut rng);
            // What is under way stays.
            most.fetch_max(limits.requests_per_endpoint, Ordering::Relaxed);
            gate.say(Some(limits), Connections::default());
        }
        for task in tasks {
            match task.await {
                Ok(()) => {}
                Err(error) => {
                    assert!(error.is_cancelled(), "seed {seed}: {error}");
                    gone += 1;
                }
            }
        }
        let (served, refused) = (served.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
        assert_eq!(served + refused + gone, 80, "seed {seed}");
        assert!(gate.read().iter().all(|limit| (limit.used, limit.waiting) == (0, 0)), "seed {seed}");
        for member in &state.endpoints().unwrap().port(80).unwrap().members {
            assert_eq!(member.endpoint.room.requests(), 0, "seed {seed}");
        }
    }
}

#[tokio::test]
async fn an_endpoint_on_probation_does_not_get_all_that_others_have_no_room_for() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 10, ..Limits::default() };
    let (state, _) = service(&worker, 2, limits);
    let outliers = Outliers {
        consecutive: [1, 0, 0, 0],
        grpc_codes: 0,
        success_rate: None,
        failure_percentage: None,
        interval: LONG,
        base_ejection: Duration::ZERO,
        maximum_ejection: Duration::ZERO,
        maximum_ejected_percent: 50,
    };
    let mut info = (*state.info().unwrap()).clone();
    info.ports[0].traffic = Arc::new(Traffic { outlier_detection: Some(outliers), ..Traffic::default() });
    state.set_endpoints(state.endpoints().unwrap().balanced(&How { service: Some(&info), ..How::new(1) }));
    let endpoints = state.endpoints().unwrap();
    let port = endpoints.port(80).unwrap();
    let tried = &port.members[0];
    let began = Instant::now();
    let now = worker.proxy.now();
    assert!(port.group.record(&tried.endpoint.standing, Outcome::Status(500), now).is_some());
    port.settle(now);
    assert_eq!(tried.state(), State::Probation);
    let (target, mut sent) = (Target::Service(Arc::clone(&state), 80), Vec::new());
    while let Ok((endpoint, seat)) = pick(&worker, &target).await {
        sent.push(InFlight::start(&worker, &endpoint, worker.proxy.now()).seated(seat));
    }
    assert_eq!(port.members[1].endpoint.room.requests(), 10);
    // One at a time, or one a second.
    let most = 1 + began.elapsed().as_secs();
    assert!(u64::from(tried.endpoint.room.requests()) <= most, "{}", tried.endpoint.room.requests());
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_the_endpoint_of_a_session_is_not_overtaken_and_lets_others_by_when_it_leaves() {
    let worker = tests::lone_worker("web");
    let limits = Limits { requests_per_endpoint: 1, queue_timeout: LONG, ..Limits::default() };
    let (state, gate) = service(&worker, 1, limits);
    let (only, seat) = pick(&worker, &Target::Service(Arc::clone(&state), 80)).await.unwrap();
    let (target, session) =
        (Target::Service(Arc::clone(&state), 80), Target::Session(Arc::clone(&state), 80, Arc::clone(&only)));
    let waits = async |count: usize| {
        while gate.read().iter().map(|limit| limit.waiting).sum::<usize>() != count {
            tokio::task::yield_now().await;
        }
    };
    // Others wait for any endpoint, before it and after it.
    let order = parking_lot::Mutex::new(Vec::new());
    let comes = async |name: &'static str, target: &Target, after: usize| {
        waits(after).await;
        let got = pick(&worker, target).await.unwrap();
        order.lock().push(name);
        tokio::time::sleep(Duration::from_secs(1)).await;
        drop(got);
    };
    let release = async {
        waits(3).await;
        drop(seat);
    };
    tokio::join!(
        comes("before", &target, 0),
        comes("session", &session, 1),
        comes("after", &target, 2),
        release
    );
    assert_eq!(*order.lock(), ["session", "before", "after"]);

    // It leaves while there is room, which is somebody's then.
    let (only, seat) = pick(&worker, &target).await.unwrap();
    let mut leaves = Box::pin(pick(&worker, &session));
    assert!(futures_util::poll!(leaves.as_mut()).is_pending());
    let mut next = Box::pin(pick(&worker, &target));
    assert!(futures_util::poll!(next.as_mut()).is_pending());
    drop(seat);
    assert!(futures_util::poll!(next.as_mut()).is_pending(), "it is the other's turn");
    drop(leaves);
    let got = tokio::time::timeout(LONG / 2, next).await.expect("it is woken").unwrap();
    assert!(Arc::ptr_eq(&got.0, &only));
}
