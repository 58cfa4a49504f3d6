use tokio::io::{DuplexStream, duplex};

use super::*;

/// What the application, the server and the decision between them look like to a test.
struct Scene {
    client: DuplexStream,
    near: DuplexStream,
    server: Option<(DuplexStream, DuplexStream)>,
}

/// The time since the race began at which the server was opened, if it was.
type OpenedAt = Option<Duration>;

const REST: Duration = Duration::from_secs(2);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n";

fn scene() -> Scene {
    let (client, near) = duplex(1024);
    Scene { client, near, server: Some(duplex(1024)) }
}

/// Races until somebody is heard; the client and the server do as `act` says.
async fn races(
    first: Option<First>,
    scene: &mut Scene,
    act: impl AsyncFnOnce(&mut DuplexStream, DuplexStream),
) -> (Heard<DuplexStream, ()>, OpenedAt) {
    races_while(false, first, scene, act).await
}

/// The same, while the proxy drains or not.
async fn races_while(
    draining: bool,
    first: Option<First>,
    scene: &mut Scene,
    act: impl AsyncFnOnce(&mut DuplexStream, DuplexStream),
) -> (Heard<DuplexStream, ()>, OpenedAt) {
    let (signal, drain) = drain::channel();
    if draining {
        signal.start();
    }
    let (begun, mut opened_at) = (tokio::time::Instant::now(), None);
    let Scene { client, near, server } = scene;
    let (far, server) = server.take().unzip();
    let open = async {
        opened_at = Some(begun.elapsed());
        server.map(|server| (server, ())).ok_or_else(|| Fault::unsent(Reason::ConnectFailed, "nobody there"))
    };
    let opaque = |detection: &Detection| sniff::framing(detection).is_none();
    let heard =
        race(near, Times::accepted(first), (REST, &drain), detect::detect_undeclared, opaque, (open, drop));
    let far = far.unwrap_or_else(|| duplex(1).0);
    let (heard, ()) = tokio::join!(heard, act(client, far));
    (heard.unwrap(), opened_at)
}

async fn later(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

#[test]
fn r01_the_wait_is_by_who_was_seen_to_speak_first() {
    let millis = |times: Times| (times.wait.as_millis(), times.chance.as_millis());
    for (first, accepted, plain, waited) in
        [(None, 20, 20, 0), (Some(First::Server), 0, 20, 0), (Some(First::Client), 1000, 1000, 1000)]
    {
        assert_eq!(millis(Times::accepted(first)), (accepted, 1000), "{first:?}");
        assert_eq!(millis(Times::accepted_plain(first)), (plain, 1000), "{first:?}");
        assert_eq!(millis(Times::waited(first)), (waited, 0), "{first:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn r01_a_client_that_speaks_in_time_opens_no_server() {
    for (said, framed) in [(REQUEST, true), (b"\0binary", false)] {
        let act = async |client: &mut DuplexStream, _| client.write_all(said).await.unwrap();
        let (heard, opened_at) = races(None, &mut scene(), act).await;
        assert_eq!((opened_at, heard.early, heard.first), (None, None, Some(First::Client)));
        assert_eq!(sniff::framing(&heard.sniffed.detection).is_some(), framed);
        assert_eq!(heard.sniffed.head, said);
        assert!(heard.server.is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn r01_a_server_that_speaks_first_is_opened_after_the_wait_and_heard() {
    let act = async |_: &mut DuplexStream, mut far: DuplexStream| far.write_all(b"220 hi").await.unwrap();
    let (heard, opened_at) = races(None, &mut scene(), act).await;
    assert_eq!(opened_at, Some(HEAD_START));
    assert_eq!((heard.early, heard.first), (Some(EarlyOpen::Used), Some(First::Server)));
    assert_eq!(heard.sniffed.result, DetectResult::ServerFirst);
    assert_eq!(heard.server.unwrap().unwrap().said, &b"220 hi"[..]);
}

#[tokio::test(start_paused = true)]
async fn r01_a_request_that_comes_late_is_http_and_the_unused_server_is_closed_in_order() {
    let act = async |client: &mut DuplexStream, mut far: DuplexStream| {
        for piece in REQUEST.chunks(3) {
            later(100).await;
            client.write_all(piece).await.unwrap();
        }
        assert_eq!(far.read(&mut [0; 16]).await.unwrap(), 0, "nothing is said, and it ends");
    };
    let (heard, _) = races(None, &mut scene(), act).await;
    assert_eq!((heard.early, heard.first), (Some(EarlyOpen::Unused), Some(First::Client)));
    assert_eq!((heard.sniffed.detection, heard.sniffed.head), (Detection::Http1, REQUEST.into()));
    assert!(heard.server.is_none());
}

#[tokio::test(start_paused = true)]
async fn r01_other_bytes_that_come_late_go_to_the_server_that_is_open() {
    // The second might be the beginning of a request, and is waited for; its server does not answer what it has not got.
    for (said, result) in [(&b"\0late"[..], DetectResult::Detected), (b"HELLO", DetectResult::Timeout)] {
        let act = async |client: &mut DuplexStream, far: DuplexStream| {
            later(100).await;
            client.write_all(said).await.unwrap();
            later(3000).await;
            drop(far);
        };
        let (heard, _) = races(None, &mut scene(), act).await;
        assert_eq!((heard.sniffed.result, heard.first), (result, Some(First::Client)));
        assert_eq!((&heard.sniffed.head[..], heard.early), (said, Some(EarlyOpen::Used)));
        assert!(heard.server.unwrap().is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn r01_a_server_that_speaks_while_its_client_has_only_begun_gets_what_was_begun() {
    let act = async |client: &mut DuplexStream, mut far: DuplexStream| {
        later(100).await;
        client.write_all(b"HEL").await.unwrap();
        later(1).await;
        far.write_all(b"220 hi").await.unwrap();
    };
    let (heard, _) = races(None, &mut scene(), act).await;
    assert_eq!((&heard.sniffed.head[..], heard.first), (&b"HEL"[..], Some(First::Server)));
    assert_eq!(heard.server.unwrap().unwrap().said, &b"220 hi"[..]);
}

#[tokio::test(start_paused = true)]
async fn r01_a_client_that_leaves_within_the_wait_opens_no_server_and_proves_nothing() {
    let act = async |client: &mut DuplexStream, _| {
        later(900).await;
        client.shutdown().await.unwrap();
    };
    let (heard, opened_at) = races(Some(First::Client), &mut scene(), act).await;
    assert_eq!((opened_at, heard.first, heard.early), (None, None, None));
    assert_eq!(heard.sniffed.result, DetectResult::Closed);
}

#[tokio::test(start_paused = true)]
async fn r01_where_servers_speak_first_one_is_opened_for_a_client_that_has_ended_what_it_says() {
    let act = async |client: &mut DuplexStream, mut far: DuplexStream| {
        client.shutdown().await.unwrap();
        far.write_all(b"220 hi").await.unwrap();
    };
    let (heard, _) = races(Some(First::Server), &mut scene(), act).await;
    assert_eq!((heard.sniffed.result, heard.first), (DetectResult::Closed, None));
    let mut greeting = [0; 6];
    heard.server.unwrap().unwrap().stream.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"220 hi");
}

/// What a server of hyper's says before it has heard its client.
const SETTINGS: &[u8] = b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\xc8\0\0\x04\x08\0\0\0\0\0\0\x0f\0\x01";

#[tokio::test(start_paused = true)]
async fn r01_the_settings_of_an_http2_server_decide_nothing() {
    for (said, framed) in [(&detect::HTTP2_PREFACE[..], true), (b"\0binary", false)] {
        let act = async |client: &mut DuplexStream, mut far: DuplexStream| {
            far.write_all(SETTINGS).await.unwrap();
            later(500).await;
            client.write_all(said).await.unwrap();
            later(1).await;
        };
        let (heard, _) = races(None, &mut scene(), act).await;
        assert_eq!((&heard.sniffed.head[..], heard.first), (said, Some(First::Client)));
        assert_eq!(sniff::framing(&heard.sniffed.detection).is_some(), framed);
        assert_eq!(heard.server.map(|opened| opened.unwrap().said), (!framed).then(|| SETTINGS.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn r01_an_http2_server_that_gives_up_on_its_client_is_relayed_and_not_remembered() {
    let act = async |_: &mut DuplexStream, mut far: DuplexStream| {
        far.write_all(SETTINGS).await.unwrap();
        later(5000).await;
    };
    let (heard, _) = races(None, &mut scene(), act).await;
    assert_eq!((heard.first, heard.sniffed.result), (None, DetectResult::ServerFirst));
    assert_eq!(heard.server.unwrap().unwrap().said, SETTINGS);
}

#[tokio::test(start_paused = true)]
async fn r01_where_nobody_can_be_opened_a_request_that_comes_late_is_still_http() {
    let mut scene = Scene { server: None, ..scene() };
    let act = async |client: &mut DuplexStream, _| {
        later(500).await;
        client.write_all(REQUEST).await.unwrap();
    };
    let (heard, _) = races(None, &mut scene, act).await;
    assert_eq!((heard.sniffed.detection, heard.early), (Detection::Http1, Some(EarlyOpen::Failed)));
    assert!(heard.server.is_none());
}

#[tokio::test(start_paused = true)]
async fn r01_where_nobody_can_be_opened_a_silent_client_is_told_why_after_a_second() {
    let mut scene = Scene { server: None, ..scene() };
    let begun = tokio::time::Instant::now();
    let (heard, _) = races(None, &mut scene, async |_, _| ()).await;
    assert_eq!(begun.elapsed(), HEAD_START + PATIENCE);
    assert_eq!(heard.server.unwrap().unwrap_err().reason, Reason::ConnectFailed);
    assert_eq!(heard.first, None);
}

#[tokio::test(start_paused = true)]
async fn r01_a_server_that_gives_up_on_its_client_is_relayed_and_not_taken_for_one_that_speaks_first() {
    for word in [&b"HTTP/1.1 408 Request Timeout\r\n\r\n"[..], b""] {
        let act = async |_: &mut DuplexStream, mut far: DuplexStream| {
            later(5000).await;
            far.write_all(word).await.unwrap();
            far.shutdown().await.unwrap();
        };
        let (heard, _) = races(None, &mut scene(), act).await;
        assert_eq!((heard.first, heard.sniffed.result), (None, DetectResult::ServerFirst));
        assert_eq!(heard.server.unwrap().unwrap().said, word);
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_of_a_silent_server_does_not_hold_up_the_drain() {
    let begun = tokio::time::Instant::now();
    let act = async |_: &mut DuplexStream, mut far: DuplexStream| {
        assert_eq!(far.read(&mut [0; 16]).await.unwrap(), 0, "nothing is said, and it ends");
    };
    let (heard, _) = races_while(true, None, &mut scene(), act).await;
    assert_eq!((begun.elapsed(), heard.sniffed.result), (REST, DetectResult::Drained));
    assert_eq!((heard.early, heard.first), (Some(EarlyOpen::Unused), None));
    assert!(heard.sniffed.is_nothing() && heard.server.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_first_request_that_comes_slowly_while_the_proxy_drains_is_http() {
    let act = async |client: &mut DuplexStream, _| {
        for piece in REQUEST.chunks(REQUEST.len() / 2) {
            later(1900).await;
            client.write_all(piece).await.unwrap();
        }
    };
    let (heard, _) = races_while(true, None, &mut scene(), act).await;
    assert_eq!((heard.sniffed.detection, heard.sniffed.head), (Detection::Http1, REQUEST.into()));
}
