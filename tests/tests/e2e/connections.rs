//! Connections to a Service's endpoints, as a TrafficPolicy says: how many, for how long, how old.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tulle_tests::app::{App, full};
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::{Head, Mode, Wire, Workload, World, eventually, within};

use super::changes::slices_of;
use super::limits::traffic;

const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// `web` → `orders`, whose endpoints are outside the mesh, so that each connection is one to an application.
async fn plain(
    endpoints: &[SocketAddr],
    protocol: &str,
    policy: &str,
    settings: &[(&str, &str)],
) -> (World, Workload) {
    let world = World::strict().await;
    // Before the Service, so that nobody hears of that one without it.
    world.yaml("policy.yaml", &traffic(policy));
    world.yaml("slices.yaml", &slices_of("orders", endpoints));
    world.service("orders", protocol);
    let web = world.workload("web").calls("orders");
    let web = settings.iter().fold(web, |web, (flag, value)| web.setting(flag, value)).start().await;
    (world, web)
}

async fn ask(to: SocketAddr) -> (Head, String) {
    let mut wire = Wire::connect(to).await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
    let (head, body) = wire.response().await;
    (head, String::from_utf8_lossy(&body).into_owned())
}

/// Answers each request once it is let.
#[derive(Clone)]
struct Held {
    permits: Arc<Semaphore>,
    arrived: Arc<AtomicUsize>,
}

impl Held {
    fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(0)), arrived: Arc::default() }
    }

    async fn app(&self) -> App {
        let held = self.clone();
        App::http1(move |_| {
            let held = held.clone();
            async move {
                held.arrived.fetch_add(1, Ordering::SeqCst);
                held.permits.acquire().await.unwrap().forget();
                Response::new(full("ok"))
            }
        })
        .await
    }

    /// Of those that are held, all that came since `before`.
    fn arrived(&self, before: usize) -> usize {
        self.arrived.load(Ordering::SeqCst) - before
    }

    /// One is let through, so that nothing is unknown to `web` any more.
    async fn begin(&self, web: &Workload) -> usize {
        self.permits.add_permits(1);
        web.reaches("orders").await;
        self.arrived(0)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_under_way_than_limits_say_over_all_workers() {
    for (limit, name, most, used) in [
        ("maximumRequests: 3", "requests", 3, 3.0),
        ("maximumRequestsPerEndpoint: 2", "requests_per_endpoint", 4, 2.0),
        ("maximumConnections: 3", "connections", 3, 3.0),
        ("maximumConnectionsPerEndpoint: 2", "connections_per_endpoint", 4, 2.0),
    ] {
        let held = Held::new();
        let apps = [held.app().await, held.app().await];
        let policy = format!("limits: {{{limit}, queueTimeout: 1h}}");
        let endpoints = [apps[0].address(), apps[1].address()];
        let (_world, web) = plain(&endpoints, "http", &policy, &[("--workers", "3")]).await;
        let before = held.begin(&web).await;
        let to = web.outbound("orders");
        let asked: JoinSet<_> = (0..24).map(|_| async move { ask(to).await.0.status() }).collect();
        let labels = [("service", "default/orders:8080"), ("limit", name)];
        eventually("as many are there as may, and others wait", async || {
            let (arrived, metrics) = (held.arrived(before), web.metrics().await);
            assert!(arrived <= most, "{limit}: {arrived} are there");
            let waiting = metrics.sum("tulle_limit_waiting", &labels);
            match arrived == most && waiting >= 1.0 {
                true => Ok(()),
                false => Err(format!("{arrived} are there, {waiting} wait")),
            }
        })
        .await;
        assert!((web.metrics().await.sum("tulle_limit_used", &labels) - used).abs() < 0.1, "{limit}");
        held.permits.add_permits(24);
        assert_eq!(asked.join_all().await, [200; 24], "{limit}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_requests_wait_than_maximum_pending_says() {
    let held = Held::new();
    let app = held.app().await;
    let policy = "limits: {maximumConnections: 1, maximumPending: 2, queueTimeout: 1h}";
    let (_world, web) = plain(&[app.address()], "http", policy, &[]).await;
    let before = held.begin(&web).await;
    let to = web.outbound("orders");
    let mut asked = JoinSet::new();
    asked.spawn(async move { ask(to).await.0.status() });
    eventually("it is there", async || match held.arrived(before) {
        1 => Ok(()),
        other => Err(other.to_string()),
    })
    .await;
    let labels = [("service", "default/orders:8080"), ("limit", "pending")];
    for waiting in [1.0, 2.0] {
        asked.spawn(async move { ask(to).await.0.status() });
        web.counts("tulle_limit_used", &labels, waiting).await;
    }
    let (head, body) = ask(to).await;
    assert_eq!((head.status(), head.reason()), (503, Some("overloaded")), "{head:?}");
    assert!(body.contains("pending of default/orders:8080 is 2"), "{body}");
    held.permits.add_permits(3);
    assert_eq!(asked.join_all().await, [200; 3]);
    let metrics = web.metrics().await;
    let refused = metrics.sum("tulle_limit_reached_total", &[labels[0], labels[1], ("outcome", "refused")]);
    assert!((refused - 1.0).abs() < 0.1, "{refused}");
    assert!(metrics.sum("tulle_limit_used", &labels) < 0.1, "nobody waits any more");
}

/// Each limit of one, and its name.
const LIMITS: [(&str, &str); 4] = [
    ("maximumRequests: 1", "requests"),
    ("maximumRequestsPerEndpoint: 1", "requests_per_endpoint"),
    ("maximumConnections: 1", "connections"),
    ("maximumConnectionsPerEndpoint: 1", "connections_per_endpoint"),
];

/// A request that has the only place there is, under a limit with this `queueTimeout`.
struct Occupied {
    held: Held,
    web: Workload,
    first: JoinSet<u16>,
    _world: World,
    _app: App,
}

impl Occupied {
    async fn start(limit: &str, queue_timeout: &str) -> Self {
        let held = Held::new();
        let app = held.app().await;
        let policy = format!("limits: {{{limit}, queueTimeout: {queue_timeout}}}");
        let (world, web) = plain(&[app.address()], "http", &policy, &[]).await;
        let before = held.begin(&web).await;
        let (to, mut first) = (web.outbound("orders"), JoinSet::new());
        eventually("it is there", async || match held.arrived(before) {
            1 => Ok(()),
            other => {
                // The place of whoever came before may not be free yet.
                if first.try_join_next().is_some() || first.is_empty() {
                    first.spawn(async move { ask(to).await.0.status() });
                }
                Err(other.to_string())
            }
        })
        .await;
        Self { held, web, first, _world: world, _app: app }
    }

    /// Of those who came to the limit.
    async fn came_to(&self, name: &str, outcome: &str) -> f64 {
        let labels = [("service", "default/orders:8080"), ("limit", name), ("outcome", outcome)];
        self.web.metrics().await.sum("tulle_limit_reached_total", &labels)
    }

    /// Asks, and is refused.
    async fn is_refused(&self, name: &str, within: &str) {
        let (head, body) = ask(self.web.outbound("orders")).await;
        assert_eq!((head.status(), head.reason()), (503, Some("overloaded")), "{name}: {head:?}");
        let told = format!("{name} of default/orders:8080 is 1, and none was free within {within}");
        assert!(body.contains(&told), "{name}: {body}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_is_told_after_queue_timeout_and_who_gets_a_place_before_is_served() {
    const TIME: Duration = Duration::from_millis(300);
    for (limit, name) in LIMITS {
        let occupied = Occupied::start(limit, "300ms").await;
        let (arrived, refused) = (occupied.held.arrived(0), occupied.came_to(name, "refused").await);
        let asked = tokio::time::Instant::now();
        occupied.is_refused(name, "300ms").await;
        assert!(asked.elapsed() >= TIME, "{limit}: {:?}", asked.elapsed());
        assert_eq!(occupied.held.arrived(arrived), 0, "{limit}: it was sent nowhere");
        assert_eq!(occupied.came_to(name, "refused").await, refused + 1.0, "{limit}");
        // The place is free again for whoever comes then, and has not been lost to who waited.
        occupied.held.permits.add_permits(2);
        assert_eq!(occupied.first.join_all().await, [200], "{limit}");
        occupied.web.reaches("orders").await;

        let mut occupied = Occupied::start(limit, "10m").await;
        // The first may have waited too, for the place of whoever came before.
        let waited = occupied.came_to(name, "waited").await;
        let to = occupied.web.outbound("orders");
        occupied.first.spawn(async move { ask(to).await.0.status() });
        let labels = [("service", "default/orders:8080"), ("limit", name)];
        eventually("the second waits", async || {
            let metrics = occupied.web.metrics().await;
            let of = |metric| metrics.sum(metric, &labels);
            let (waiting, used) = (of("tulle_limit_waiting"), of("tulle_limit_used"));
            if waiting >= 1.0 {
                return Ok(());
            }
            // 3 there: it was let through, and if one place is taken, beside a first that came before the limit was known.
            let arrived = occupied.held.arrived(0);
            Err(format!("{limit}: {waiting} wait, {used} places are taken, {arrived} are there or were"))
        })
        .await;
        // It waits still when that was much longer than the other's time.
        tokio::time::sleep(TIME * 2).await;
        assert!(occupied.first.try_join_next().is_none(), "{limit}: it waits");
        occupied.held.permits.add_permits(2);
        assert_eq!(std::mem::take(&mut occupied.first).join_all().await, [200; 2], "{limit}");
        assert_eq!(occupied.came_to(name, "refused").await, 0.0, "{limit}");
        // Who waited for a connection may have got the first's, which idles, and not one more.
        if name.starts_with("requests") {
            assert_eq!(occupied.came_to(name, "waited").await, waited + 1.0, "{limit}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_time_to_wait_nobody_does_for_connections_either() {
    for (limit, name) in LIMITS {
        let occupied = Occupied::start(limit, "0s").await;
        for _ in 0..3 {
            let refused = occupied.came_to(name, "refused").await;
            occupied.is_refused(name, "0ns").await;
            assert_eq!(occupied.came_to(name, "refused").await, refused + 1.0, "{limit}");
        }
        assert_eq!(occupied.came_to(name, "waited").await, 0.0, "{limit}");
        occupied.held.permits.add_permits(2);
        assert_eq!(occupied.first.join_all().await, [200], "{limit}");
        // There is a place, or an idle connection that makes room: nobody has to wait for it.
        occupied.web.idle().await;
        occupied.web.reaches("orders").await;
    }
}

/// An opaque connection on which this was said; `None`: it was closed before that.
async fn saying(to: SocketAddr, said: &str) -> Option<Wire> {
    // The reset may come before the caller has looked.
    let mut wire = Wire::new(TcpStream::connect(to).await.ok()?);
    wire.try_send(said).await.ok()?;
    Some(wire)
}

#[tokio::test(flavor = "multi_thread")]
async fn opaque_connections_wait_for_a_place_too_or_are_closed() {
    for (queue_timeout, told, least) in [("0s", "0ns", 0), ("300ms", "300ms", 300), ("10m", "", 0)] {
        let app = App::echo().await;
        let policy = format!("limits: {{maximumConnections: 1, queueTimeout: {queue_timeout}}}");
        let (_world, web) = plain(&[app.address()], "tcp", &policy, &[]).await;
        let to = web.outbound("orders");
        let mut first = eventually("an echo", async || {
            let mut wire = saying(to, "ping").await.ok_or("it is closed")?;
            wire.try_exactly(4).await.ok_or("no echo")?;
            Ok(wire)
        })
        .await;
        let asked = tokio::time::Instant::now();
        let mut second = saying(to, "pong").await;
        if told.is_empty() {
            let labels = [("service", "default/orders:8080"), ("limit", "connections")];
            web.counts("tulle_limit_waiting", &labels, 1.0).await;
            first.send("more").await;
            assert_eq!(first.exactly(4).await, b"more");
            drop(first);
            assert_eq!(second.unwrap().exactly(4).await, b"pong");
            continue;
        }
        if let Some(second) = &mut second {
            assert_eq!(second.to_end_or_reset().await, b"", "{queue_timeout}");
        }
        assert!(asked.elapsed() >= Duration::from_millis(least), "{queue_timeout}: {:?}", asked.elapsed());
        let record = web.logs(&[("reason", json!("overloaded")), ("protocol", json!("TCP"))]).await;
        let told = format!("connections of default/orders:8080 is 1, and none was free within {told}");
        assert!(record["detail"].as_str().is_some_and(|detail| detail.contains(&told)), "{record}");
        first.send("more").await;
        assert_eq!(first.exactly(4).await, b"more");
    }
}

/// A listener whose queue is full: connections to it are neither made nor refused.
async fn deaf() -> (TcpListener, Vec<TcpStream>) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let listener = socket.listen(1).unwrap();
    let (address, mut waiting) = (listener.local_addr().unwrap(), Vec::new());
    while let Ok(made) = tokio::time::timeout(Duration::from_secs(2), TcpStream::connect(address)).await {
        waiting.push(made.unwrap());
    }
    (listener, waiting)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_waited_for_as_long_as_connect_timeout_says() {
    let (listener, waiting) = deaf().await;
    let address = listener.local_addr().unwrap();
    let (world, web) = plain(&[address], "http", "connections: {connectTimeout: 300ms}", &[]).await;
    let to = web.outbound("orders");
    // The Service may be known before its endpoints are.
    eventually("a connect timeout", async || {
        let (head, body) = ask(to).await;
        let told = body.contains(&format!("no connection to {address} within 300ms"));
        let is_it = (head.status(), head.reason()) == (503, Some("connect_timeout")) && told;
        if is_it { Ok(()) } else { Err(format!("{head:?}: {body}")) }
    })
    .await;
    world.yaml("policy.yaml", &traffic("connections: {connectTimeout: 350ms}"));
    eventually("the change holds", async || {
        let (_, body) = ask(to).await;
        if body.contains("within 350ms") { Ok(()) } else { Err(body) }
    })
    .await;

    // As long as it takes: longer than the second that is the default.
    world.yaml("policy.yaml", &traffic("connections: {connectTimeout: 0s}"));
    let patient = eventually("the change holds", async || {
        let mut wire = Wire::connect(to).await;
        wire.send(GET).await;
        match tokio::time::timeout(Duration::from_millis(2500), wire.response()).await {
            Ok((head, body)) => Err(format!("{head:?}: {}", String::from_utf8_lossy(&body))),
            Err(_) => Ok(wire),
        }
    });
    let mut wire = patient.await;
    drop(waiting);
    let app = App::http1_on(listener.into_std().unwrap(), |_| async { Response::new(full("ok")) });
    assert_eq!(wire.response().await.0.status(), 200);
    drop(app);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_idle_for_no_longer_than_idle_timeout_says() {
    for http2 in [false, true] {
        let answer = |_| async { Response::new(full("ok")) };
        let app = if http2 { App::http2(answer).await } else { App::http1(answer).await };
        let protocol = if http2 { "kubernetes.io/h2c" } else { "http" };
        let settings = [("--idle-timeout", "1h")];
        let policy = "connections: {idleTimeout: 200ms}";
        let (_world, web) = plain(&[app.address()], protocol, policy, &settings).await;
        let asked = tokio::time::Instant::now();
        match http2 {
            false => web.reaches("orders").await,
            true => h2_get(web.outbound("orders")).await,
        }
        web.counts("tulle_pool_closed_total", &[("cause", "idle")], 1.0).await;
        // A shared connection without a policy: 60 s.
        assert!(asked.elapsed() < Duration::from_secs(50), "HTTP/2: {http2}");
        assert!(web.metrics().await.sum("tulle_pool_connections", &[]) < 0.1, "HTTP/2: {http2}");
    }
}

/// Asks until it is answered.
async fn h2_get(to: SocketAddr) {
    let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    eventually("an answer", async || {
        let mut ready = requests.clone().ready().await.map_err(|error| error.to_string())?;
        let request = Request::get("http://orders/").body(()).unwrap();
        let (response, _) = ready.send_request(request, true).map_err(|error| error.to_string())?;
        let status = response.await.map_err(|error| error.to_string())?.status();
        if status == 200 { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    connection.abort();
}

/// How long the kernel waits before it asks whether the peer of connections to `port` is there, in ticks of which 100 are a second
/// (proc_pid_net(5): the timer 2, and when it expires).
fn keep_alive_of(port: u16) -> Option<u64> {
    let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let remote = format!("0100007F:{port:04X}");
    connections.lines().skip(1).find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (is_open, timer) = (fields[2] == remote && fields[3] == "01", fields[5].strip_prefix("02:")?);
        if is_open { u64::from_str_radix(timer, 16).ok() } else { None }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn keep_alive_reaches_the_kernel() {
    for (policy, most) in [("keepAlive: {time: 10m}", 60_000), ("keepAlive: {}", 3000)] {
        let app = App::saying("ok").await;
        let settings = [("--idle-timeout", "1h")];
        let (_world, web) =
            plain(&[app.address()], "http", &format!("connections: {{{policy}}}"), &settings).await;
        web.reaches("orders").await;
        eventually("the kernel's timer runs", async || match keep_alive_of(app.address().port()) {
            Some(ticks) if ticks <= most && ticks > most / 2 => Ok(()),
            other => Err(format!("{policy}: {other:?}")),
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_clients_outside_the_mesh_are_asked_to_open_new_connections_and_lose_nothing() {
    let world = World::start(Mode::Permissive).await;
    world.yaml("policy.yaml", &traffic("connections: {maximumAge: 1s}").replace("orders", "one"));
    for (name, service) in [("two.yaml", "two"), ("calls.yaml", "calls")] {
        world.yaml(
            name,
            &traffic("connections: {maximumAge: 1s}")
                .replace("orders", service)
                .replace("name: much", &format!("name: {service}")),
        );
    }
    let tally = Arc::<Tally>::default();
    let mut all = Vec::new();
    for speech in Speech::ALL {
        world.service(speech.service(), speech.app_protocol());
        let seen = Seen::default();
        let app = Orders::start(speech, &seen).await;
        let builder = world.workload(&format!("serves-{}", speech.service()));
        let workload = builder.serves(speech.service(), app.address()).start().await;
        workload.counts("tulle_registered", &[], 1.0).await;
        all.push((speech, seen, app, workload));
    }
    for (speech, .., workload) in &all {
        is_asked_to_go(workload.inbound(), *speech == Speech::Http1).await;
    }
    let pace = Pace { lanes: 4, rate: 40, stream: Duration::from_millis(300) };
    let mut loads = Vec::new();
    for (speech, .., workload) in &all {
        loads.push(Load::start(&tally, *speech, workload.inbound(), "outside", pace));
    }
    for (.., workload) in &all {
        let labels = [("direction", "inbound")];
        let before = workload.metrics().await.sum("tulle_connections_total", &labels);
        // Each lane, and the stream's, three times.
        workload.counts("tulle_connections_total", &labels, before + 15.0).await;
    }
    for load in loads {
        load.leave_after(2).await;
    }
    tally.assert_nothing_lost();
    for (_, seen, ..) in &all {
        assert_eq!(seen.twice(), <[String; 0]>::default());
    }
}

/// Opens connections until one is asked to go, as one is whose policy is in force when it begins: by `connection: close`, or by GOAWAY.
async fn is_asked_to_go(to: SocketAddr, http1: bool) {
    const LONG: Duration = Duration::from_secs(5);
    eventually("a connection grows old", async || {
        if !http1 {
            let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
            let (_requests, connection) = h2::client::handshake(stream).await.unwrap();
            let ended = tokio::time::timeout(LONG, connection).await.map_err(|_| "no GOAWAY".to_owned())?;
            ended.expect("NO_ERROR, and then the end");
            return Ok(());
        }
        let (mut wire, begun) = (Wire::connect(to).await, tokio::time::Instant::now());
        while begun.elapsed() < LONG {
            wire.send(GET).await;
            let (head, _) = wire.response().await;
            assert_eq!(head.status(), 200, "{head:?}");
            if head.has("connection", "close") {
                assert!(wire.to_end().await.is_empty());
                return Ok(());
            }
        }
        Err("no `connection: close`".to_owned())
    })
    .await;
}

/// Says GOAWAY after each first request of a connection, and ends streams to `/watch` never.
async fn leaving(connections: &Arc<AtomicUsize>) -> App {
    let connections = Arc::clone(connections);
    App::tcp(move |stream| {
        let connections = Arc::clone(&connections);
        async move {
            connections.fetch_add(1, Ordering::SeqCst);
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            let mut watches = Vec::new();
            while let Some(Ok((request, mut reply))) = connection.accept().await {
                let watch = request.uri().path() == "/watch";
                let Ok(mut body) = reply.send_response(Response::new(()), false) else { return };
                let _ = body.send_data(Bytes::from_static(b"ok"), !watch);
                watches.extend(watch.then_some(body));
                connection.graceful_shutdown();
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_stream_on_a_connection_that_goes_keeps_nobody_out_under_a_limit() {
    let connections = Arc::default();
    let app = leaving(&connections).await;
    let policy = "limits: {maximumConnections: 1, queueTimeout: 1h}";
    let (_world, web) = plain(&[app.address()], "kubernetes.io/h2c", policy, &[]).await;
    let to = web.outbound("orders");
    h2_get(to).await;
    let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
    let (mut requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://orders/watch").body(()).unwrap();
    let (response, _) = requests.send_request(request, true).unwrap();
    let mut watch = within("a stream", response).await.unwrap();
    assert_eq!(watch.status(), 200);
    assert_eq!(within("its begin", watch.body_mut().data()).await.unwrap().unwrap(), "ok");
    for _ in 0..3 {
        h2_get(to).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 5, "one for each");
    // It has not ended.
    let more = tokio::time::timeout(Duration::from_millis(100), watch.body_mut().data()).await;
    assert!(more.is_err(), "{more:?}");
}

/// An application that has each request come on a connection of its own.
async fn forgetful() -> App {
    App::http1(|_| async {
        let mut answer = Response::new(full("ok"));
        answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        answer
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_has_no_descriptors_left_ejects_no_endpoint() {
    let apps = [forgetful().await, forgetful().await];
    let policy =
        "outlierDetection: {consecutive5xx: 1, consecutiveConnectFailures: 1, maximumEjectedPercent: 100}";
    let (_world, mut web) = plain(&[apps[0].address(), apps[1].address()], "http", policy, &[]).await;
    let mut wire = web.connect("orders").await;
    wire.send(GET).await;
    assert_eq!(wire.response().await.0.status(), 200);
    let pid = i32::try_from(web.process().pid()).ok().and_then(Pid::from_raw);
    // The hard limit is that of the test, whose child it is. It has more than three.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let had = prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), maximum }).unwrap();
    for _ in 0..10 {
        wire.send(GET).await;
        let (head, body) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (503, Some("overloaded")), "{head:?}");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("this proxy has nothing left to do it with: Too many open files"), "{body}");
    }
    prlimit(pid, Resource::Nofile, had).unwrap();
    for _ in 0..10 {
        wire.send(GET).await;
        assert_eq!(wire.response().await.0.status(), 200);
    }
    let metrics = web.metrics().await;
    let endpoints = |state| metrics.sum("tulle_balancer_endpoints", &[("state", state)]);
    assert_eq!((endpoints("usable"), metrics.sum("tulle_balancer_ejections_total", &[])), (2.0, 0.0));
    let refused = metrics.sum("tulle_pool_dials_total", &[("result", "failed"), ("reason", "overloaded")]);
    assert!(refused >= 10.0, "{refused}");
}
