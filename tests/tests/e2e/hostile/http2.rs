//! What a server of HTTP/2 may do wrong with its answer, frame by frame.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::io::AsyncWriteExt;
use tulle_tests::Wire;
use tulle_tests::app::App;
use tulle_tests::frames::{
    self, CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, PUSH_PROMISE, SETTINGS,
    WINDOW_UPDATE, block, data, frame, goaway, headers, rst_stream,
};

use super::{Kind, LEGS, Neighbours, Stage, ask2, connect2};

/// What a server does once it has said what it says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Then {
    Close,
    Reset,
    /// Says that nothing more comes, and goes on reading.
    Half,
    /// Serves the next request, if the proxy sends one.
    Wait,
    /// Reads no more, before it says anything.
    Deaf,
}

use Then::{Close, Deaf, Half, Reset, Wait};

/// How often a request may come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Once,
    /// The connection broke before anything of an answer, and may have served another request before: what is idempotent may be sent
    /// once more.
    Stale,
    /// It was said each time that nobody had looked at it, so that it may be sent once more.
    Unprocessed,
}

use Came::{Once, Stale, Unprocessed};

/// What is said to a request on a stream, how it ends, how often it may come, and what the client is told; `{by}` stands for the
/// proxy next to the server. A gRPC call is told of a proxy's answer as status 14.
struct Case {
    what: &'static str,
    says: fn(u32) -> Vec<u8>,
    then: Then,
    came: Came,
    told: &'static str,
}

const BROKEN: &str = "502 upstream_reset by {by}";
const NONSENSE: &str = "502 upstream_malformed by {by}";
const CUT: &str = "cut INTERNAL_ERROR";

const fn case(what: &'static str, says: fn(u32) -> Vec<u8>, then: Then, told: &'static str) -> Case {
    Case { what, says, then, came: Once, told }
}

const fn stale(what: &'static str, says: fn(u32) -> Vec<u8>, then: Then) -> Case {
    Case { what, says, then, came: Stale, told: BROKEN }
}

const fn unprocessed(what: &'static str, says: fn(u32) -> Vec<u8>, then: Then) -> Case {
    Case { what, says, then, came: Unprocessed, told: BROKEN }
}

/// The head of a success.
fn ok(stream: u32) -> Vec<u8> {
    headers(0, stream, &[(":status", "200")])
}

/// The head, some of a body, and then this.
fn begun(stream: u32, then: Vec<u8>) -> Vec<u8> {
    [ok(stream), data(0, stream, "hel"), then].concat()
}

fn whole(stream: u32) -> Vec<u8> {
    [ok(stream), data(END_STREAM, stream, "hello")].concat()
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        stale("no frame, closed", |_| vec![], Close),
        stale("no frame, half-closed", |_| vec![], Half),
        stale("no frame, reset", |_| vec![], Reset),
        stale("half a frame", |s| ok(s)[..7].to_vec(), Close),
        stale("half a frame, half-closed", |s| ok(s)[..7].to_vec(), Half),
        case("a head, closed", ok, Close, CUT),
        case("a head, half-closed", ok, Half, CUT),
        case("a head, reset", ok, Reset, CUT),
        case("half a body, closed", |s| begun(s, vec![]), Close, CUT),
        case("half a body, half-closed", |s| begun(s, vec![]), Half, CUT),
        case("half a body, reset", |s| begun(s, vec![]), Reset, CUT),
        case("half a frame of the body", |s| begun(s, data(END_STREAM, s, "lo")[..10].to_vec()), Close, CUT),
        case("whole", whole, Wait, "200 whole hello"),
        case("whole, closed", whole, Close, "200 whole hello"),
        case("whole, half-closed", whole, Half, "200 whole hello"),
        case("whole, by one that reads no more", whole, Deaf, "200 whole hello"),
        case("whole, reset", whole, Reset, "200 whole hello"),
        case(
            "whole, then reset without a reason",
            |s| [whole(s), rst_stream(s, 0)].concat(),
            Wait,
            "200 whole hello",
        ),
        case(
            "whole in two interim answers",
            |s| {
                [headers(0, s, &[(":status", "103")]), headers(0, s, &[(":status", "103")]), whole(s)]
                    .concat()
            },
            Wait,
            "200 whole hello",
        ),
        case("interim answers, closed", |s| headers(0, s, &[(":status", "103")]), Close, BROKEN),
        case("interim answers, half-closed", |s| headers(0, s, &[(":status", "103")]), Half, BROKEN),
        // GOAWAY (RFC 9113 §6.8).
        unprocessed("it goes away and has looked at nothing", |_| goaway(0, 0), Wait),
        unprocessed("it goes away in anger and has looked at nothing", |_| goaway(0, 11), Close),
        case("it goes away and answers", |s| [goaway(s, 0), whole(s)].concat(), Wait, "200 whole hello"),
        case(
            "it goes away twice and answers",
            |s| [goaway(0x7fff_ffff, 0), goaway(s, 0), whole(s)].concat(),
            Wait,
            "200 whole hello",
        ),
        case(
            "it goes away and answers while it does",
            |s| begun(s, [goaway(s, 0), data(1, s, "lo")].concat()),
            Wait,
            "200 whole hello",
        ),
        stale("it goes away and closes", |s| goaway(s, 0), Close),
        stale("it goes away and half-closes", |s| goaway(s, 0), Half),
        stale("it goes away in anger", |s| goaway(s, 2), Close),
        case("it goes away in anger within a body", |s| begun(s, goaway(s, 2)), Close, CUT),
        case(
            "it looks at more after it has gone",
            |s| [goaway(s, 0), goaway(s + 2, 0), whole(s)].concat(),
            Wait,
            NONSENSE,
        ),
        // What is no HTTP/2.
        case(
            "it speaks HTTP/1",
            |_| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec(),
            Wait,
            NONSENSE,
        ),
        case("a frame larger than allowed", |s| frame(DATA, 0, s, vec![0; 20_000]), Wait, NONSENSE),
        case("a body before its head", |s| data(END_STREAM, s, "hello"), Wait, NONSENSE),
        case("data on the connection", |_| data(0, 0, "hello"), Wait, NONSENSE),
        case("data on a stream that nobody opened", |s| data(0, s + 100, "hello"), Wait, NONSENSE),
        case("a head on a stream that nobody opened", |s| ok(s + 100), Wait, NONSENSE),
        case("a head on a stream of its own", |_| ok(2), Wait, NONSENSE),
        case(
            "a push that was forbidden",
            |s| frame(PUSH_PROMISE, 4, s, [&[0, 0, 0, 2][..], &block(&[(":path", "/")])].concat()),
            Wait,
            NONSENSE,
        ),
        case("HPACK nonsense", |s| frame(HEADERS, END_HEADERS, s, [0xff; 8]), Wait, NONSENSE),
        case(
            "a block that goes on on another stream",
            |s| {
                [frame(HEADERS, 0, s, block(&[(":status", "200")])), frame(CONTINUATION, 4, s + 2, [])]
                    .concat()
            },
            Wait,
            NONSENSE,
        ),
        case(
            "a frame within a block",
            |s| [frame(HEADERS, 0, s, block(&[(":status", "200")])), data(1, s, "x")].concat(),
            Wait,
            NONSENSE,
        ),
        case("PING of a wrong length", |_| frame(PING, 0, 0, [0; 7]), Wait, NONSENSE),
        case("SETTINGS on a stream", |s| frame(SETTINGS, 0, s, []), Wait, NONSENSE),
        case("SETTINGS that may not be", |_| frames::settings(&[(4, 0x8000_0000)]), Wait, NONSENSE),
        case("a window opened by nothing", |_| frame(WINDOW_UPDATE, 0, 0, [0; 4]), Wait, NONSENSE),
        case(
            "a window that overflows",
            |_| frame(WINDOW_UPDATE, 0, 0, [0x7f, 0xff, 0xff, 0xff]).repeat(2),
            Wait,
            NONSENSE,
        ),
        case(
            "padding longer than its frame",
            |s| [ok(s), frame(DATA, 0x9, s, [200, 1, 2])].concat(),
            Wait,
            CUT,
        ),
        // What is no answer.
        case("no status", |s| headers(END_STREAM, s, &[("x-a", "1")]), Wait, NONSENSE),
        case("a status of letters", |s| headers(END_STREAM, s, &[(":status", "abc")]), Wait, NONSENSE),
        case(
            "a name in capitals",
            |s| headers(END_STREAM, s, &[(":status", "200"), ("X-A", "1")]),
            Wait,
            NONSENSE,
        ),
        case(
            "a field of HTTP/1's connections",
            |s| headers(END_STREAM, s, &[(":status", "200"), ("connection", "close")]),
            Wait,
            NONSENSE,
        ),
        case(
            "a line break in a value",
            |s| headers(END_STREAM, s, &[(":status", "200"), ("x-a", "1\r\nx-b: 2")]),
            Wait,
            NONSENSE,
        ),
        case(
            "a request for an answer",
            |s| headers(END_STREAM, s, &[(":method", "GET"), (":path", "/"), (":scheme", "http")]),
            Wait,
            NONSENSE,
        ),
        case(
            "an interim answer that is the last",
            |s| headers(END_STREAM, s, &[(":status", "103")]),
            Wait,
            NONSENSE,
        ),
        case("it switches protocols", |s| headers(END_STREAM, s, &[(":status", "101")]), Wait, NONSENSE),
        case("two answers, within the body", |s| begun(s, whole(s)), Wait, CUT),
        case("two answers", |s| [whole(s), whole(s)].concat(), Wait, "200 whole hello"),
        case(
            "shorter than it says",
            |s| {
                [headers(0, s, &[(":status", "200"), ("content-length", "9")]), data(END_STREAM, s, "hello")]
                    .concat()
            },
            Wait,
            CUT,
        ),
        case(
            "longer than it says",
            |s| {
                [headers(0, s, &[(":status", "200"), ("content-length", "3")]), data(END_STREAM, s, "hello")]
                    .concat()
            },
            Wait,
            CUT,
        ),
        case("trailers that do not end it", |s| begun(s, headers(0, s, &[("x-a", "1")])), Wait, CUT),
        // h2 lets it pass, and takes the status for nothing.
        // h2 lets it pass, and the status is nobody's.
        case(
            "trailers with a status",
            |s| begun(s, headers(END_STREAM, s, &[(":status", "200")])),
            Wait,
            "200 whole hel",
        ),
        case("huge trailers", |s| begun(s, long(s, END_STREAM, &[], 200)), Wait, CUT),
        case("a huge head", |s| long(s, 0, &[(":status", "200")], 200), Wait, NONSENSE),
    ];
    // RST_STREAM with each code (RFC 9113 §7), also one that does not exist.
    macro_rules! codes {
        ($($code:literal $name:literal),*) => { $(
            cases.push(match $code {
                7 => unprocessed(concat!("reset, ", $name), |s| rst_stream(s, $code), Wait),
                _ => case(concat!("reset, ", $name), |s| rst_stream(s, $code), Wait, BROKEN),
            });
            // Two would say what is not so: that all is well, and that nobody has looked at it.
            let told = if matches!($code, 0 | 7) { CUT } else { concat!("cut ", $name) };
            cases.push(case(concat!("a head, reset, ", $name), |s| [ok(s), rst_stream(s, $code)].concat(), Wait, told));
            cases.push(case(concat!("half a body, reset, ", $name), |s| begun(s, rst_stream(s, $code)), Wait, told));
        )* };
    }
    codes!(
        0 "NO_ERROR", 1 "PROTOCOL_ERROR", 2 "INTERNAL_ERROR", 3 "FLOW_CONTROL_ERROR", 4 "SETTINGS_TIMEOUT",
        5 "STREAM_CLOSED", 6 "FRAME_SIZE_ERROR", 7 "REFUSED_STREAM", 8 "CANCEL", 9 "COMPRESSION_ERROR",
        10 "CONNECT_ERROR", 11 "ENHANCE_YOUR_CALM", 12 "INADEQUATE_SECURITY", 13 "HTTP_1_1_REQUIRED"
    );
    cases
}

/// A block with so many KiB of fields, in as many frames as it takes.
fn long(stream: u32, flags: u8, fields: &[(&str, &str)], kib: usize) -> Vec<u8> {
    let value = "v".repeat(1000);
    let fields: Vec<_> = fields.iter().copied().chain((0..kib).map(|_| ("x-large", &*value))).collect();
    let block = block(&fields);
    let mut parts: Vec<_> = block.chunks(16_000).map(|part| (CONTINUATION, 0, part)).collect();
    parts[0] = (HEADERS, flags, parts[0].2);
    parts.last_mut().unwrap().1 |= END_HEADERS;
    parts.into_iter().flat_map(|(kind, flags, part)| frame(kind, flags, stream, part)).collect()
}

/// How often each request came.
type Seen = Arc<Mutex<BTreeMap<usize, usize>>>;

/// A server that does to each request what `now` says, and counts it there.
async fn server(now: &Arc<AtomicUsize>, seen: &Seen) -> App {
    let (now, seen) = (Arc::clone(now), Arc::clone(seen));
    App::wire(move |wire| serve(wire, Arc::clone(&now), Arc::clone(&seen))).await
}

async fn serve(wire: Wire, now: Arc<AtomicUsize>, seen: Seen) {
    let cases = cases();
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    while let Some((stream, _)) = frames.request().await {
        let now = now.load(Ordering::SeqCst);
        *seen.lock().unwrap().entry(now).or_default() += 1;
        let Case { says, then, .. } = cases[now % cases.len()];
        if then == Deaf {
            frames.deafen();
        }
        if frames.try_send(says(stream)).await.is_none() {
            return;
        }
        match then {
            Close => return,
            Reset => return frames.into_wire().reset(),
            Half => {
                let mut wire = frames.into_wire();
                // The other side may have closed it by then.
                let _ = wire.stream().shutdown().await;
                return drop(wire.to_end_or_reset().await);
            }
            Wait | Deaf => {}
        }
    }
}

/// What is told of a proxy's answer, by the kind of request.
fn of(kind: Kind, told: &str) -> String {
    match told.strip_prefix("502 ") {
        Some(reason) if kind == Kind::Grpc => format!("grpc 14 {reason}"),
        _ => told.to_owned(),
    }
}

/// A call of gRPC that has begun ends with a status, unless it was its stream that the server has reset, or it had said how long it is.
fn cut(kind: Kind, what: &str, told: String) -> String {
    let by_reset = what.contains("reset, ") || what.ends_with("than it says");
    if kind == Kind::Grpc && told == CUT && !by_reset { "cut grpc 14".to_owned() } else { told }
}

/// A stream that was reset, whether or not its head came before.
fn alike(told: String) -> String {
    if let Some(code) = told.strip_prefix("nothing ") {
        return format!("cut {code}");
    }
    if told.starts_with("200 whole") && told.ends_with(" grpc 14") {
        return "cut grpc 14".to_owned();
    }
    match told.strip_prefix("200 ") {
        Some(cut) if cut.starts_with("cut") => cut.to_owned(),
        _ => told,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http2_or_grpc_is_told_what_became_of_its_answer_and_never_of_a_success_that_was_none() {
    let (now, seen) = (Arc::<AtomicUsize>::default(), Seen::default());
    let mut stage = Stage::new(server(&now, &seen).await, "kubernetes.io/h2c").await;
    stage.web.reaches("good").await;
    let neighbours = Neighbours::of(&stage);
    let (cases, mut wrong) = (cases(), Vec::new());
    let mut round = 0;
    for (service, by) in LEGS {
        // What servers do is never to end the client's connection.
        let mut requests = connect2(stage.web.outbound(service)).await;
        for kind in [Kind::Get, Kind::Post, Kind::Grpc] {
            for (number, Case { what, told: expected, came, .. }) in cases.iter().enumerate() {
                let at = round * cases.len() + number;
                now.store(at, Ordering::SeqCst);
                let told = ask2(&mut requests, kind, "hello", None).await;
                let expected = expected.replace("{by}", by);
                let (told, expected) = (alike(told), cut(kind, what, of(kind, &expected)));
                let times = seen.lock().unwrap().get(&at).copied().unwrap_or_default();
                let allowed = match came {
                    // As the connection had served before or not: that such a one is sent again is `r03_what_is_idempotent_…`'s to show.
                    Stale if kind == Kind::Get => 1..=2,
                    Once | Stale => 1..=1,
                    Unprocessed => 2..=2,
                };
                // What breaks off at once may take its head with it, and then the other proxy has none to pass on.
                let headless = of(kind, "502 upstream_reset by default/web/outbound");
                // A call is told in its trailers.
                let in_trailers = kind == Kind::Grpc && told.ends_with(" grpc 14");
                let is_right =
                    told == expected || (expected.starts_with("cut") && (told == headless || in_trailers));
                if !is_right || !allowed.contains(&times) {
                    wrong.push(format!("{service} {kind:?} {what}: {told}, came {times} times; {expected}"));
                }
            }
            round += 1;
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    neighbours.are_well().await;
    stage.is_at_rest().await;
}

/// A server that answers every other request, and of those between closes the connection on which one comes for the first time.
async fn leaves(wire: Wire, now: Arc<AtomicUsize>, seen: Seen) {
    let Some(mut frames) = Frames::accept(wire, &[]).await else { return };
    while let Some((stream, _)) = frames.request().await {
        let now = now.load(Ordering::SeqCst);
        let times = {
            let mut seen = seen.lock().unwrap();
            let times = seen.entry(now).or_default();
            *times += 1;
            *times
        };
        if (now % 2 == 1 && times == 1) || frames.try_send(whole(stream)).await.is_none() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r03_what_is_idempotent_is_sent_once_more_when_a_connection_that_had_served_breaks_without_goaway() {
    let (now, seen) = (Arc::<AtomicUsize>::default(), Seen::default());
    let app = {
        let (now, seen) = (Arc::clone(&now), Arc::clone(&seen));
        App::wire(move |wire| leaves(wire, Arc::clone(&now), Arc::clone(&seen))).await
    };
    let mut stage = Stage::new(app, "kubernetes.io/h2c").await;
    let mut step = 0;
    for (service, by) in LEGS {
        let broken = BROKEN.replace("{by}", by);
        let mut requests = connect2(stage.web.outbound(service)).await;
        // What is asked on a connection that has served, or on a new one; what is told, and how often it came.
        for (kind, reused, expected, times) in [
            (Kind::Get, true, "200 whole hello", 2),
            (Kind::Post, true, &*broken, 1),
            (Kind::Get, false, &*broken, 1),
            (Kind::Grpc, true, &*broken, 1),
        ] {
            step += 2;
            if reused {
                now.store(step, Ordering::SeqCst);
                assert_eq!(ask2(&mut requests, Kind::Post, "warm", None).await, "200 whole hello");
            }
            let at = step + 1;
            now.store(at, Ordering::SeqCst);
            let told = ask2(&mut requests, kind, "hello", None).await;
            assert_eq!(told, of(kind, expected), "{service} {kind:?} {reused}");
            assert_eq!(seen.lock().unwrap()[&at], times, "{service} {kind:?} {reused}");
        }
    }
    stage.is_at_rest().await;
}
