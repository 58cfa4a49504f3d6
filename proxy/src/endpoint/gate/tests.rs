use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;

use super::super::pool::SharedConnection;
use super::super::{ConnectError, Dial, Http1, Http2, Preferred, Way};
use super::*;
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::Metrics;
use crate::wire::{h1, http2};

const OWN: Preferred = Preferred { way: Way::Own, or_other: false };
const LONG: Duration = Duration::from_secs(60);

/// Accepts, and says nothing.
async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move { while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} });
        }
    });
    address
}

fn dial(metrics: &Metrics) -> Dial {
    Dial {
        creds: Arc::default(),
        timeout: Duration::from_secs(10),
        mark: None,
        namespace: None,
        http1: h1::Limits::default(),
        http2: http2::Limits::default(),
        metrics: metrics.worker(0),
    }
}

/// An endpoint of a port on two workers, and another of the same.
async fn port(limits: Limits, connections: Connections) -> ([Arc<Endpoint>; 2], Arc<Gate>, Metrics) {
    let gate = Gate::new("default/orders:80");
    gate.say(Some(limits), connections);
    let make = async || {
        let service = "default/orders:80".into();
        let endpoint = Endpoint::new(server().await, Peer::Plaintext, None, service, 2);
        gate.joined(&endpoint);
        endpoint
    };
    ([make().await, make().await], Arc::clone(&gate), Metrics::new(1, 2000, &[]))
}

async fn connect(
    endpoint: &Arc<Endpoint>,
    worker: usize,
    metrics: &Metrics,
) -> Result<Http1, Arc<ConnectError>> {
    endpoint.http1(worker, OWN, Some(LONG), || dial(metrics)).await
}

fn counted(metrics: &Metrics, limit: &str, outcome: &str) -> bool {
    let labels = format!("service=\"default/orders:80\",limit=\"{limit}\",outcome=\"{outcome}\"");
    metrics.render().contains(&format!("tulle_limit_reached_total{{{labels}}} 1\n"))
}

#[tokio::test]
async fn beyond_the_limit_a_connection_is_waited_for_and_refused_in_time() {
    let limits = Limits { connections_per_endpoint: 1, ..Limits::default() };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let first = connect(&one, 0, &metrics).await.unwrap();
    let refused = connect(&one, 1, &metrics).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::Overloaded);
    assert!(refused.to_string().contains("connections_per_endpoint of default/orders:80 is 1"), "{refused}");
    assert!(counted(&metrics, "connections_per_endpoint", "refused"));
    // Another endpoint has room.
    let second = connect(&other, 0, &metrics).await.unwrap();
    // With time, it is got once one ends, on another worker.
    gate.say(Some(Limits { queue_timeout: LONG, ..limits }), Connections::default());
    let (third, ()) = tokio::join!(connect(&one, 1, &metrics), async {
        while one.room.connections.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        drop(first);
    });
    assert!(counted(&metrics, "connections_per_endpoint", "waited"));
    // A dial that was begun for nobody else's sake must not be left.
    drop((second, third));
    assert_eq!((one.room.connections.taken(), one.room.connections.waiting()), (0, 0));
    assert_eq!((gate.connections.taken(), gate.connections.waiting()), (0, 0));
}

#[tokio::test]
async fn a_dial_is_timed_without_what_it_waited_for_its_place() {
    let limits = Limits { connections: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, _], gate, metrics) = port(limits, Connections::default()).await;
    let timed = |series: &str| {
        let (text, series) = (metrics.render(), format!("tulle_pool_dial_duration_seconds_{series} "));
        let line = text.lines().find_map(|line| line.strip_prefix(&*series));
        line.map_or(0.0, |value| value.parse::<f64>().unwrap())
    };
    let first = connect(&one, 0, &metrics).await.unwrap();
    let wait = Duration::from_secs(2);
    let (second, ()) = tokio::join!(connect(&one, 1, &metrics), async {
        while gate.connections.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(wait).await;
        drop(first);
    });
    let _second = second.unwrap();
    let (count, sum) = (timed("count"), timed("sum"));
    assert!((count - 2.0).abs() < 0.1 && sum < wait.as_secs_f64(), "{count} dials took {sum} s");
    // Of what is not dialled at all there is no time.
    gate.say(Some(Limits { queue_timeout: Duration::ZERO, ..limits }), Connections::default());
    assert_eq!(connect(&one, 0, &metrics).await.unwrap_err().reason(), Reason::Overloaded);
    assert!((timed("count") - 2.0).abs() < 0.1);
    let refused = "tulle_pool_dials_total{result=\"failed\",reason=\"overloaded\"} 1\n";
    assert!(metrics.render().contains(refused), "{}", metrics.render());
}

#[tokio::test]
async fn what_idles_makes_room_for_who_needs_it_on_whichever_worker_and_endpoint() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let first = connect(&one, 0, &metrics).await.unwrap();
    one.keep_http1(0, first);
    let second = connect(&one, 1, &metrics).await.unwrap();
    assert!(!second.reused);
    one.keep_http1(1, second);
    let third = connect(&other, 0, &metrics).await.unwrap();
    assert_eq!((one.pooled(), gate.connections.taken()), (0, 1));
    let refused = connect(&one, 0, &metrics).await.unwrap_err();
    assert!(refused.to_string().contains("connections of default/orders:80 is 1"), "{refused}");
    drop(third);
    assert_eq!((gate.connections.taken(), one.room.connections.taken()), (0, 0));
}

#[tokio::test]
async fn no_more_wait_than_may() {
    let limits = Limits { connections: 1, pending: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let first = connect(&one, 0, &metrics).await.unwrap();
    let waiting = tokio::spawn({
        let (one, metrics) = (Arc::clone(&one), metrics.clone());
        async move { connect(&one, 0, &metrics).await }
    });
    while gate.pending.taken() == 0 {
        tokio::task::yield_now().await;
    }
    let refused = connect(&other, 0, &metrics).await.unwrap_err();
    assert!(refused.to_string().contains("pending of default/orders:80 is 1"), "{refused}");
    assert!(counted(&metrics, "pending", "refused"));
    one.keep_http1(0, first);
    assert!(waiting.await.unwrap().unwrap().reused);
    assert_eq!(gate.pending.taken(), 0);
}

#[tokio::test]
async fn an_old_connection_takes_no_new_request() {
    let said = Connections { maximum_age: Some(Duration::from_nanos(1)), ..Connections::default() };
    let ([one, _], gate, metrics) = port(Limits::default(), said).await;
    let first = connect(&one, 0, &metrics).await.unwrap();
    assert!(first.until.is_some());
    one.keep_http1(0, first);
    assert_eq!(one.pooled(), 0, "it is closed when its exchange is over");
    let young = Connections { maximum_age: Some(LONG), ..Connections::default() };
    gate.say(None, young);
    let first = connect(&one, 0, &metrics).await.unwrap();
    let left = first.until.unwrap() - std::time::Instant::now();
    assert!(left > LONG * 8 / 10 && left < LONG * 11 / 10, "{left:?}");
    one.keep_http1(0, first);
    assert!(connect(&one, 0, &metrics).await.unwrap().reused);
    // What waited when it grew too old is not taken either.
    let old = Http1 { until: Some(std::time::Instant::now()), ..connect(&one, 0, &metrics).await.unwrap() };
    let Http1 { client, pooled, way, until, .. } = old;
    let kept = super::super::Kept { client, pooled, way, until };
    one.pools[0].http1(way, |entry| entry.give(kept, std::time::Instant::now()));
    assert!(!connect(&one, 0, &metrics).await.unwrap().reused);
    let metrics = metrics.render();
    assert!(metrics.contains("tulle_pool_closed_total{cause=\"age\"} 2\n"), "{metrics}");
}

/// Lets what has been begun come to a connection, or gives up.
async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.unwrap()
}

#[tokio::test]
async fn an_http2_connection_that_falls_idle_makes_room_for_who_waits() {
    let limits = Limits { connections: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let first = one.http2(0, None, || dial(&metrics)).await.unwrap();
    let (second, ()) = soon(async {
        tokio::join!(connect(&other, 1, &metrics), async {
            while gate.connections.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            drop(first);
        })
    })
    .await;
    assert_eq!((second.is_ok(), one.pooled(), gate.connections.taken()), (true, 0, 1));
}

#[tokio::test]
async fn who_waits_makes_room_when_it_looks_again() {
    let limits = Limits { connections: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let Http1 { client, pooled, way, until, .. } = connect(&one, 0, &metrics).await.unwrap();
    let kept = super::super::Kept { client, pooled, way, until };
    let (second, ()) = soon(async {
        tokio::join!(connect(&other, 1, &metrics), async {
            while gate.connections.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            one.pools[0].http1(way, |entry| entry.give(kept, std::time::Instant::now()));
            gate.connections.wake();
        })
    })
    .await;
    assert_eq!((second.is_ok(), one.pooled(), gate.connections.taken()), (true, 0, 1));
}

#[tokio::test]
async fn a_connection_whose_streams_all_idle_makes_room() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = "default/orders:80".into();
    let one = Endpoint::new(listener.local_addr().unwrap(), Peer::Plaintext, None, service, 1);
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let mut driver = crate::io::streams::accepted(crate::io::Io::tcp(stream));
        // Lets go of each once its client has.
        while let Ok(Some(mut stream)) = driver.next().await {
            tokio::spawn(async move { stream.read(&mut [0; 64]).await });
        }
    });
    let limits = Limits { connections: 1, ..Limits::default() };
    let ([other, _], gate, metrics) = port(limits, Connections::default()).await;
    gate.joined(&one);
    let shared = Preferred { way: Way::Shared, or_other: false };
    let first = one.http1(0, shared, Some(LONG), || dial(&metrics)).await.unwrap();
    assert!(connect(&other, 0, &metrics).await.is_err(), "a stream is in use");
    one.keep_http1(0, first);
    assert!(connect(&other, 0, &metrics).await.is_ok(), "its server need not have let go of the stream");
    assert_eq!(one.pooled(), 0);
    assert!(metrics.render().contains("tulle_pool_closed_total{cause=\"limit\"} 1\n"));
}

#[tokio::test]
async fn a_patience_without_end_is_no_panic() {
    let limits = Limits { requests: 1, queue_timeout: Duration::MAX, ..Limits::default() };
    let (_, gate, metrics) = port(limits, Connections::default()).await;
    let metrics = metrics.worker(0);
    let first = gate.request(&gate.patience(&metrics)).await.unwrap();
    let patience = gate.patience(&metrics);
    let (second, ()) = soon(async { tokio::join!(gate.request(&patience), async { drop(first) }) }).await;
    assert!(second.is_ok());
}

/// Answers no request, and says GOAWAY on the first connection once it has one.
async fn leaving() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut leaves = true;
        while let Ok((stream, _)) = listener.accept().await {
            let leaves = std::mem::take(&mut leaves);
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut held = Vec::new();
                while let Some(Ok(request)) = connection.accept().await {
                    held.push(request);
                    if leaves {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_connection_that_takes_nothing_new_gives_its_place_up_before_its_last_stream_ends() {
    let limits = Limits { connections: 1, connections_per_endpoint: 1, ..Limits::default() };
    for age in [None, Some(LONG)] {
        let connections = Connections { maximum_age: age, ..Connections::default() };
        let ([_, other], gate, metrics) = port(limits, connections).await;
        let service = "default/orders:80".into();
        let one = Endpoint::new(leaving().await, Peer::Plaintext, None, service, 1);
        gate.joined(&one);
        let Http2 { mut sender, place, .. } = one.http2(0, None, || dial(&metrics)).await.unwrap();
        if age.is_some() {
            let old = |connection: &mut SharedConnection| connection.until = Some(std::time::Instant::now());
            one.pools[0].http2(|shared| shared.all_mut().for_each(old));
        } else {
            let request = http::Request::get("http://orders/").body(crate::wire::Body::empty()).unwrap();
            tokio::spawn(async move { drop(sender.send(request, ()).await) });
        }
        assert!(age.is_some() || connect(&other, 0, &metrics).await.is_err(), "it is used");
        soon(async {
            while gate.connections.taken() > 0 {
                one.sweep(0, LONG);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        // Here, and elsewhere.
        let second = soon(one.http2(0, None, || dial(&metrics))).await.unwrap();
        assert_eq!((gate.connections.taken(), one.room.connections.taken()), (1, 1));
        drop(second);
        gate.say(Some(Limits { queue_timeout: LONG, ..limits }), connections);
        assert!(soon(connect(&other, 0, &metrics)).await.is_ok());
        drop(place);
        assert_eq!((gate.connections.taken(), one.room.connections.taken()), (0, 0), "given once");
    }
}

/// A rolling update: the old pod says GOAWAY to its long streams, and is not among the endpoints any more.
#[tokio::test]
async fn a_connection_to_an_endpoint_that_was_removed_gives_its_place_up_when_it_is_wanted() {
    // To who comes then, and to who waits.
    for waits in [false, true] {
        let queue_timeout = if waits { LONG } else { Duration::ZERO };
        let limits = Limits { connections: 1, queue_timeout, ..Limits::default() };
        let ([other, _], gate, metrics) = port(limits, Connections::default()).await;
        let service = "default/orders:80".into();
        let one = Endpoint::new(leaving().await, Peer::Plaintext, None, service, 1);
        gate.joined(&one);
        let Http2 { mut sender, place, .. } = one.http2(0, None, || dial(&metrics)).await.unwrap();
        // It has its stream, and that its place at the endpoint.
        drop(one);
        let mut goes = sender.clone();
        let goaway = async {
            while waits && gate.connections.waiting() == 0 {
                tokio::task::yield_now().await;
            }
            let request = http::Request::get("http://orders/").body(crate::wire::Body::empty()).unwrap();
            tokio::spawn(async move { drop(sender.send(request, place).await) });
            while goes.is_open() {
                tokio::task::yield_now().await;
            }
            assert_eq!(gate.connections.taken(), 1, "nobody has looked");
            gate.sweep();
        };
        let connected = if waits {
            soon(async { tokio::join!(connect(&other, 0, &metrics), goaway).0 }).await
        } else {
            soon(goaway).await;
            soon(connect(&other, 0, &metrics)).await
        };
        drop(connected.unwrap());
        assert_eq!(gate.connections.taken(), 0, "given once");
    }
}

#[tokio::test]
async fn a_connection_of_streams_that_is_too_old_gives_its_place_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let service = "default/orders:80".into();
    let one = Endpoint::new(listener.local_addr().unwrap(), Peer::Plaintext, None, service, 1);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut driver = crate::io::streams::accepted(crate::io::Io::tcp(stream));
            tokio::spawn(async move { while let Ok(Some(_)) = driver.next().await {} });
        }
    });
    let limits = Limits { connections: 1, ..Limits::default() };
    let said = Connections { maximum_age: Some(Duration::from_millis(1)), ..Connections::default() };
    let (_, gate, metrics) = port(limits, said).await;
    gate.joined(&one);
    let shared = Preferred { way: Way::Shared, or_other: false };
    let first = one.http1(0, shared, Some(LONG), || dial(&metrics)).await.unwrap();
    assert_eq!(gate.connections.taken(), 1);
    soon(async {
        while gate.connections.taken() > 0 {
            one.sweep(0, LONG);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    let second = soon(one.http1(0, shared, Some(LONG), || dial(&metrics))).await.unwrap();
    assert_eq!(gate.connections.taken(), 1);
    drop((first, second));
}

#[tokio::test]
async fn what_is_taken_of_each_limit_is_told() {
    let limits = Limits {
        connections: 9,
        connections_per_endpoint: 9,
        requests: 9,
        requests_per_endpoint: 2,
        pending: 9,
        queue_timeout: LONG,
    };
    let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
    let mut held = Vec::new();
    for endpoint in [&one, &one, &other] {
        held.push(connect(endpoint, 0, &metrics).await.unwrap());
    }
    let worker = metrics.worker(0);
    let mut seats = Vec::new();
    for endpoint in [&one, &one, &other] {
        let seat = gate.request(&gate.patience(&worker)).await.unwrap();
        seats.push(endpoint.room.request(seat).unwrap());
    }
    // One waits for this endpoint and no other, and one for any.
    let patience = gate.patience(&worker);
    let nothing = || None::<()>;
    let waiting = async {
        tokio::join!(
            gate.endpoint(Some(&one.room), &patience, nothing),
            gate.endpoint(None, &patience, nothing)
        )
    };
    let told = async {
        let told: Vec<_> = gate.read().iter().map(|one| (one.limit, one.used, one.waiting)).collect();
        let expected = [
            ("requests", 3, 0),
            ("requests_per_endpoint", 2, 2),
            ("connections", 3, 0),
            ("connections_per_endpoint", 2, 0),
            ("pending", 2, 0),
        ];
        assert_eq!(told, expected);
    };
    tokio::select! {
        biased;
        _ = waiting => unreachable!("there is nothing to be had"),
        () = told => {}
    }
    gate.say(None, Connections::default());
    assert_eq!(gate.read(), [], "what is not limited is not shown");
}

/// Dials that wait for a place while all who waited for them are served otherwise.
#[tokio::test]
async fn dials_that_nobody_wants_any_more_take_no_place_from_another_worker() {
    let limits = Limits { connections_per_endpoint: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, _], _, metrics) = port(limits, Connections::default()).await;
    let mut held = Some(connect(&one, 0, &metrics).await.unwrap());
    let own: tokio::task::JoinSet<_> = (0..4)
        .map(|_| {
            let (one, metrics) = (Arc::clone(&one), metrics.clone());
            async move { connect(&one, 0, &metrics).await.map(|got| one.keep_http1(0, got)).is_ok() }
        })
        .collect();
    while one.room.connections.waiting() < 4 {
        tokio::task::yield_now().await;
    }
    let other = tokio::spawn({
        let (one, metrics) = (Arc::clone(&one), metrics.clone());
        async move { connect(&one, 1, &metrics).await.is_ok() }
    });
    while one.room.connections.waiting() < 5 {
        tokio::task::yield_now().await;
    }
    // It goes from hand to hand, and then to whom it does not reach so.
    one.keep_http1(0, held.take().unwrap());
    assert_eq!(soon(own.join_all()).await, [true; 4]);
    assert!(soon(other).await.unwrap());
    assert_eq!(one.room.connections.waiting(), 0);
    assert!(metrics.render().contains("tulle_pool_dials_total{result=\"ok\"} 2\n"), "{}", metrics.render());
    // The others have left the line, and were neither let through nor refused.
    assert!(counted(&metrics, "connections_per_endpoint", "waited"), "{}", metrics.render());
    assert!(!metrics.render().contains("outcome=\"refused\""));
}

#[tokio::test]
async fn an_idle_http2_connection_makes_room_at_once_for_who_may_not_wait() {
    for limits in [
        Limits { connections: 1, ..Limits::default() },
        Limits { connections_per_endpoint: 1, ..Limits::default() },
    ] {
        let ([one, other], gate, metrics) = port(limits, Connections::default()).await;
        let who_comes = if limits.connections > 0 { &other } else { &one };
        drop(one.http2(0, None, || dial(&metrics)).await.unwrap());
        let second = connect(who_comes, 0, &metrics).await.unwrap();
        assert_eq!((one.pooled(), who_comes.room.connections.taken(), gate.connections.taken()), (0, 1, 1));
        drop(second);
        soon(async {
            // Its task ends, and gives back nothing more.
            tokio::task::yield_now().await;
        })
        .await;
        assert_eq!((one.room.connections.taken(), gate.connections.taken()), (0, 0));
    }
}

#[tokio::test]
async fn a_limit_that_is_taken_away_refuses_nobody_while_the_line_wakes() {
    let limits = Limits { connections_per_endpoint: 1, queue_timeout: LONG, ..Limits::default() };
    let ([one, _], gate, metrics) = port(limits, Connections::default()).await;
    let _first = connect(&one, 0, &metrics).await.unwrap();
    let mut waits = std::pin::pin!(connect(&one, 1, &metrics));
    while one.room.connections.waiting() == 0 {
        assert!(futures_util::poll!(waits.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    gate.say(None, Connections::default());
    // Who waits has not looked yet.
    let of_worker = metrics.worker(0);
    let mut comes = std::pin::pin!(one.seat(&of_worker, std::time::Instant::now(), || true));
    assert!(matches!(futures_util::poll!(comes.as_mut()), std::task::Poll::Ready(Ok(Some(_)))));
    assert_eq!(one.room.connections.waiting(), 1);
    waits.await.unwrap();
}

#[tokio::test]
async fn nobody_waits_longer_or_less_than_the_limits_let_him() {
    const PATIENCE: Duration = Duration::from_millis(1000);
    let limits = Limits { connections_per_endpoint: 1, queue_timeout: PATIENCE, ..Limits::default() };
    let ([one, _], gate, metrics) = port(limits, Connections::default()).await;
    let _held = connect(&one, 1, &metrics).await.unwrap();
    let after = async |millis: u64, http2: bool| {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        let came = Instant::now();
        let error = match http2 {
            true => one.http2(0, None, || dial(&metrics)).await.map(drop).unwrap_err(),
            false => connect(&one, 0, &metrics).await.map(drop).unwrap_err(),
        };
        assert!(matches!(&*error, ConnectError::Limited(_)), "{error}");
        let waited = came.elapsed();
        // Twice as long where a dial of its own began once the one before it had failed.
        assert!(
            waited >= PATIENCE && waited < PATIENCE * 3 / 2,
            "{waited:?}, came at {millis}, HTTP/2: {http2}"
        );
    };
    for http2 in [false, true] {
        tokio::join!(after(0, http2), after(100, http2), after(200, http2), after(700, http2));
    }
    assert_eq!((one.room.connections.waiting(), gate.connections.waiting()), (0, 0));
}
