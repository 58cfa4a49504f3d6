//! Everything at once, by chance: endpoints that misbehave beside good ones, and clients of HTTP/1, HTTP/2 and gRPC. What they
//! do follows from a number, which a failure prints and `TULLE_SEED` replays; the order in which it happens is the machine's.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinSet;
use tulle_tests::app::App;
use tulle_tests::fleet::Random;
use tulle_tests::frames::{END_STREAM, Frames, PING, SETTINGS, data, frame, goaway, headers, rst_stream};
use tulle_tests::{Wire, Workload, World, deep, eventually, within};

use super::super::mtls::endpoint_slice;
use super::{Kind, ask1, ask2, connect2};

/// How often each request was processed, by its body.
#[derive(Debug, Default)]
struct Log {
    processed: Mutex<BTreeMap<String, usize>>,
    /// Connections so far, over all rounds: each has a chance of its own.
    connections: AtomicU64,
    seed: AtomicU64,
}

/// The answer to a request with this body.
fn text(id: &str) -> String {
    format!("<{id}{}>", "x".repeat(200))
}

// === impl Log ===

impl Log {
    fn random(&self) -> Random {
        let connection = self.connections.fetch_add(1, Ordering::Relaxed);
        Random(self.seed.load(Ordering::Relaxed) << 32 | connection)
    }

    fn processed(&self, id: &str) {
        *self.processed.lock().unwrap().entry(id.to_owned()).or_default() += 1;
    }
}

/// A server of HTTP/1; `good`: one that does nothing wrong.
async fn serve1(mut wire: Wire, log: Arc<Log>, good: bool) {
    let mut random = log.random();
    if !good && random.below(12) == 0 {
        return;
    }
    while let Some(head) = super::http1::request(&mut wire).await {
        let id = head.line.split(' ').nth(1).unwrap().trim_start_matches('/').to_owned();
        log.processed(&id);
        let text = text(&id);
        let length = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", text.len());
        let whole = format!("{length}{text}");
        let half = &text[..text.len() / 2];
        let chunks = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        // What is said, whether the connection goes on, and if not, whether it is reset.
        let (says, goes_on, reset) = match if good { 0 } else { random.below(20) } {
            0..6 => (whole, true, false),
            6 => (format!("{chunks}{:x}\r\n{text}\r\n0\r\n\r\n", text.len()), true, false),
            7 => (format!("HTTP/1.1 200 OK\r\n\r\n{text}"), false, false),
            8 => (String::new(), false, false),
            9 => (String::new(), false, true),
            10 => (length, false, true),
            11 => (format!("{length}{half}"), false, false),
            12 => (format!("{chunks}{:x}\r\n{half}\r\n", half.len()), false, false),
            13 => (format!("HTTP/1.1 200 OK\r\n\r\n{half}"), false, true),
            14 => ("what is this?\r\n\r\n".to_owned(), true, false),
            15 => (format!("HTTP/1.1 103 Early\r\n\r\n{whole}"), true, false),
            16 => (format!("{whole}{whole}"), true, false),
            17 => (whole, false, false),
            18 => (whole, false, true),
            _ => {
                while wire.try_exactly(1).await.is_some() {}
                return;
            }
        };
        if wire.try_send(says).await.is_err() {
            return;
        }
        if reset {
            return wire.reset();
        }
        if !goes_on {
            return;
        }
    }
}

/// A server of HTTP/2.
async fn serve2(wire: Wire, log: Arc<Log>, good: bool) {
    let mut random = log.random();
    if !good && random.below(12) == 0 {
        return;
    }
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    // The last stream that was processed: no GOAWAY may say otherwise.
    let (mut last, mut gone) = (0, false);
    while let Some((stream, body)) = frames.request().await {
        if gone && stream > last {
            // It was on its way when its client was told that nobody would look at it.
            continue;
        }
        let id = String::from_utf8(body).unwrap();
        let chance = if good { 0 } else { random.below(24) };
        let code = u32::try_from(random.below(14)).unwrap();
        // Before it is processed.
        let refused = match chance {
            20 => Some((rst_stream(stream, 7), true)),
            21 if stream > last => Some((goaway(last, 0), false)),
            22 if stream > last => Some((goaway(last, 11), false)),
            _ => None,
        };
        if let Some((says, goes_on)) = refused {
            if frames.try_send(says).await.is_none() || !goes_on {
                return;
            }
            continue;
        }
        log.processed(&id);
        last = last.max(stream);
        let text = text(&id);
        let half = data(0, stream, &text[..text.len() / 2]);
        let head = headers(0, stream, &[(":status", "200")]);
        let end = match id.starts_with("grpc") {
            true => headers(END_STREAM, stream, &[("grpc-status", "0")]),
            false => data(END_STREAM, stream, ""),
        };
        let whole = [head.clone(), data(0, stream, &text), end].concat();
        // Not what was refused unread: it has been processed.
        let code = if code == 7 { 2 } else { code };
        gone |= matches!(chance, 9..=11);
        let (says, goes_on, reset) = match chance {
            0..6 => (whole, true, false),
            6 => ([frame(SETTINGS, 0, 0, []), frame(PING, 0, 0, [0; 8]), whole].concat(), true, false),
            7 => (rst_stream(stream, code), true, false),
            8 => ([head, half, rst_stream(stream, code)].concat(), true, false),
            9 => ([goaway(last, 0), whole].concat(), true, false),
            10 => ([goaway(0x7fff_ffff, 0), whole, goaway(last, 0)].concat(), true, false),
            11 => (goaway(last, code), false, false),
            12 => ([head, half].concat(), false, false),
            13 => ([head, half].concat(), false, true),
            14 => (Vec::new(), false, true),
            15 => (b"what is this?".repeat(10), true, false),
            16 => ([whole.clone(), whole].concat(), true, false),
            17 => (headers(0, stream, &[(":status", "200"), ("content-length", "3")]), false, false),
            18 => (whole, false, false),
            19 => ([headers(0, stream, &[(":status", "103")]), whole].concat(), true, false),
            // Never answered.
            _ => (Vec::new(), true, false),
        };
        if frames.try_send(says).await.is_none() {
            return;
        }
        if reset {
            return frames.into_wire().reset();
        }
        if !goes_on {
            return;
        }
    }
}

/// What clients were told, by protocol: how often, and whether of a whole success.
#[derive(Debug, Default)]
struct Told {
    asked: usize,
    whole: usize,
    by_proxy: usize,
    left: usize,
    other: usize,
}

/// How long a client waits.
const PATIENCE: Duration = Duration::from_secs(1);

// === impl Told ===

impl Told {
    fn count(&mut self, id: &str, told: Option<String>) {
        self.asked += 1;
        let Some(told) = told else { return self.left += 1 };
        let expected = match id.starts_with("grpc") {
            true => format!("200 whole {} grpc 0", text(id)),
            false => format!("200 whole {}", text(id)),
        };
        if told == expected {
            self.whole += 1;
        } else if id.starts_with("grpc") && told.ends_with(" grpc 14") {
            // Broken off, which its trailers tell.
            self.other += 1;
        } else if [" upstream_reset ", " upstream_malformed ", " connect_failed "]
            .iter()
            .any(|one| told.contains(one))
        {
            self.by_proxy += 1;
        } else {
            assert!(told.starts_with("200 cut") || told.starts_with("nothing"), "{id}: {told}");
            self.other += 1;
        }
    }

    fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.whole += other.whole;
        self.by_proxy += other.by_proxy;
        self.left += other.left;
        self.other += other.other;
    }
}

/// So many requests, one after the other.
async fn client(to: std::net::SocketAddr, kind: Option<Kind>, name: String, count: usize) -> Told {
    let mut told = Told::default();
    // What servers do never ends the connection of a client.
    let mut requests = match kind {
        Some(_) => Some(connect2(to).await),
        None => None,
    };
    for number in 0..count {
        let method = ["GET", "POST"][number % 2];
        let word = match kind {
            Some(Kind::Grpc) => "grpc",
            Some(_) => "POST",
            None => method,
        };
        let id = format!("{word}-{name}-{number}");
        let asked = async {
            match (&mut requests, kind) {
                (Some(requests), Some(kind)) => ask2(requests, kind, &id, None).await,
                _ => ask1(to, method, &format!("/{id}"), "", "").await,
            }
        };
        let answer =
            within("a request ends", async { tokio::time::timeout(PATIENCE, asked).await.ok() }).await;
        told.count(&id, answer);
    }
    told
}

/// The services of the storm: by HTTP/1 and HTTP/2, behind proxies and plain.
const SERVICES: [(&str, &str, bool); 4] = [
    ("one", "http", true),
    ("two", "kubernetes.io/h2c", true),
    ("plain-one", "http", false),
    ("plain-two", "kubernetes.io/h2c", false),
];

async fn start(log: &Arc<Log>) -> (World, Workload, Vec<Workload>, Vec<App>) {
    let world = World::strict().await;
    for (service, protocol, _) in SERVICES {
        world.service(service, protocol);
    }
    let (mut workloads, mut apps) = (Vec::new(), Vec::new());
    for number in 0..3 {
        let good = number == 0;
        let (first, second) = (Arc::clone(log), Arc::clone(log));
        let first = App::wire(move |wire| serve1(wire, Arc::clone(&first), good)).await;
        let second = App::wire(move |wire| serve2(wire, Arc::clone(&second), good)).await;
        let workload = world.workload(&format!("orders-{number}"));
        workloads.push(workload.serves("one", first.address()).serves("two", second.address()).start().await);
        for (service, app) in [("plain-one", &first), ("plain-two", &second)] {
            let slice = endpoint_slice(service, app.address(), None);
            world.yaml(&format!("{service}-{number}.yaml"), &slice.replace("-1\n", &format!("-{number}\n")));
        }
        apps.extend([first, second]);
    }
    let web = SERVICES.iter().fold(world.workload("web"), |web, (service, ..)| web.calls(service));
    for workload in &workloads {
        workload.counts("tulle_registered", &[], 1.0).await;
    }
    let web = web.start().await;
    (world, web, workloads, apps)
}

fn seeds() -> std::ops::Range<u64> {
    let seed = std::env::var_os("TULLE_SEED").and_then(|seed| seed.to_str()?.parse::<u64>().ok());
    let rounds = if deep() { 30 } else { 1 };
    seed.map_or(0..rounds, |seed| seed..seed + 1)
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_storm_every_request_ends_no_success_is_made_up_and_none_is_processed_twice() {
    let log = Arc::<Log>::default();
    let (_world, web, workloads, _apps) = start(&log).await;
    let mut sums = BTreeMap::<&str, Told>::new();
    for seed in seeds() {
        eprintln!("TULLE_SEED={seed}");
        log.seed.store(seed, Ordering::Relaxed);
        let mut clients = JoinSet::new();
        for (service, protocol, _) in SERVICES {
            let kinds: [Option<Kind>; 3] = match protocol {
                "http" => [None; 3],
                _ => [Some(Kind::Post), Some(Kind::Grpc), Some(Kind::Post)],
            };
            for (lane, kind) in kinds.into_iter().enumerate() {
                let (to, name) = (web.outbound(service), format!("{service}-{seed}-{lane}"));
                clients.spawn(async move { (service, client(to, kind, name, 40).await) });
            }
        }
        for (service, told) in clients.join_all().await {
            sums.entry(service).or_default().add(&told);
        }
    }
    // What must not be done twice was not, whatever became of its answer.
    let processed = log.processed.lock().unwrap().clone();
    let twice: Vec<_> =
        processed.iter().filter(|(id, times)| !id.starts_with("GET") && **times > 1).collect();
    assert!(twice.is_empty(), "{twice:?}");
    for (service, told) in &sums {
        assert!(told.whole * 10 > told.asked, "{service}: {told:?}");
        // Each was counted once, and those that a proxy answered by their reasons.
        let label = format!("default/{service}:8080");
        let of = [("direction", "outbound"), ("service", &*label)];
        eventually(&format!("the requests to {service} are counted"), async || {
            let metrics = web.metrics().await;
            let counted = metrics.sum("tulle_requests_total", &of);
            let same = (counted - told.asked as f64).abs() < 0.5;
            if same { Ok(()) } else { Err(format!("{counted}; {told:?}")) }
        })
        .await;
        let of_service =
            |id: &str| id.split_once('-').is_some_and(|(_, rest)| rest.starts_with(&format!("{service}-")));
        let came = processed.keys().filter(|id| of_service(id)).count();
        assert!(came >= told.whole && came <= told.asked, "{service}: {came} came; {told:?}");
    }
    for proxy in workloads.iter().chain([&web]) {
        eventually(&format!("{} has nothing under way", proxy.name()), async || {
            let active = proxy.metrics().await.sum("tulle_requests_active", &[]);
            if active < 0.5 { Ok(()) } else { Err(active.to_string()) }
        })
        .await;
    }
}
