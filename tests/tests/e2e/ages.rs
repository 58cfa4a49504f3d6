//! Servers of gRPC that end connections by age, and more of them than before (R14).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tulle_tests::app::App;
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::{World, deep, eventually, long, within};

use super::Pair;

/// A message of gRPC, as it is framed.
const MESSAGE: &[u8] = b"\0\0\0\0\x02ok";

/// MAX_CONNECTION_AGE and MAX_CONNECTION_AGE_GRACE: GOAWAY after the one, and the connection is cut after the other.
async fn aging(age: Duration, grace: Duration) -> App {
    App::tcp(move |stream| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let (mut old, mut over) =
            (Box::pin(tokio::time::sleep(age)), Box::pin(tokio::time::sleep(age + grace)));
        let mut told = false;
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    Some(Ok((request, reply))) => drop(tokio::spawn(answer(request, reply))),
                    _ => return,
                },
                () = old.as_mut(), if !told => {
                    told = true;
                    connection.graceful_shutdown();
                }
                () = over.as_mut() => return,
            }
        }
    })
    .await
}

/// One message and the status 0, or messages for ever.
async fn answer(request: Request<RecvStream>, mut reply: SendResponse<Bytes>) {
    let endless = request.uri().path() == "/watch";
    let mut body = request.into_body();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
    }
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let Ok(mut stream) = reply.send_response(response, false) else { return };
    while stream.send_data(Bytes::from_static(MESSAGE), false).is_ok() {
        if !endless {
            let _ = stream.send_trailers(HeaderMap::from_iter([status("0")]));
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn status(code: &'static str) -> (http::HeaderName, HeaderValue) {
    (http::HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))
}

/// Watches until the server has cut it so many times; says how often a stream ended otherwise than by the status 14.
async fn watch(to: std::net::SocketAddr, times: usize) -> Vec<String> {
    let stream = within("a connection", TcpStream::connect(to)).await.unwrap();
    let (requests, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let mut wrong = Vec::new();
    for _ in 0..times {
        let mut ready = within("room", requests.clone().ready()).await.unwrap();
        let request = Request::post("http://orders/watch").header("content-type", "application/grpc");
        let (response, mut upload) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        upload.send_data(Bytes::from_static(MESSAGE), true).unwrap();
        let ended = within("a stream", async {
            let (head, mut body) = response.await.map_err(|error| format!("no head: {error}"))?.into_parts();
            if let Some(reason) = head.headers.get("x-tulle-error") {
                return Err(format!("refused: {reason:?}"));
            }
            while let Some(data) = body.data().await {
                let data = data.map_err(|error| format!("cut: {error}"))?;
                let _ = body.flow_control().release_capacity(data.len());
            }
            let trailers =
                body.trailers().await.map_err(|error| format!("cut: {error}"))?.unwrap_or_default();
            let told = trailers.get("grpc-status").cloned();
            if told.as_ref().is_some_and(|told| told == "14") { Ok(()) } else { Err(format!("{told:?}")) }
        });
        wrong.extend(ended.await.err());
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_servers_maximum_connection_age_fails_no_call_and_ends_streams_with_a_status() {
    // Age and grace in milliseconds, streams, and how often each is cut.
    let (age, grace, streams, times) = match (long(), deep()) {
        (true, _) => (2000, 1000, 20, 100),
        (false, true) => (2000, 1000, 20, 10),
        (false, false) => (500, 400, 6, 4),
    };
    let pace = Pace { lanes: 8, rate: if deep() || long() { 200 } else { 80 }, stream: Duration::ZERO };
    let app = aging(Duration::from_millis(age), Duration::from_millis(grace)).await;
    let pair = Pair::start(app, "grpc").await;
    let (to, tally) = (pair.web.outbound("orders"), Arc::<Tally>::default());
    let load = Load::start(&tally, Speech::Grpc, to, "web", pace);
    let watches: JoinSet<_> = (0..streams).map(|_| watch(to, times)).collect();
    let wrong: Vec<String> = watches.join_all().await.concat();
    load.leave_after(0).await;
    tally.assert_nothing_lost();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let cut = [("direction", "outbound"), ("grpc_status", "14")];
    let counted = pair.web.metrics().await.sum("tulle_requests_total", &cut);
    assert!(counted >= (streams * times) as f64, "{counted}");
}

const EVENLY: &str = "
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: evenly}
spec:
  targetRefs: [{group: \"\", kind: Service, name: calls}]
  loadBalancer: {algorithm: LeastRequest}
";

#[tokio::test(flavor = "multi_thread")]
async fn r14_endpoints_that_come_later_get_their_share_of_calls_on_old_connections() {
    let world = World::strict().await;
    // Shares by requests in flight: by latency too, as without a policy, who is a little quicker gets more.
    world.yaml("evenly.yaml", EVENLY);
    world.service("calls", "grpc");
    let (mut endpoints, tally) = (Vec::new(), Arc::<Tally>::default());
    let start = async |number: usize| {
        let seen = Seen::default();
        let app = Orders::start(Speech::Grpc, &seen).await;
        let workload =
            world.workload(&format!("calls-{number}")).serves("calls", app.address()).start().await;
        workload.counts("tulle_registered", &[], 1.0).await;
        (seen, app, workload)
    };
    for number in 0..2 {
        endpoints.push(start(number).await);
    }
    let web = world.workload("web").calls("calls").start().await;
    // One worker's pool is as good as another's: a connection for each lane, from the beginning to the end.
    let pace = Pace { lanes: 8, rate: 200, stream: Duration::ZERO };
    let load = Load::start(&tally, Speech::Grpc, web.outbound("calls"), "web", pace);
    for number in 2..4 {
        endpoints.push(start(number).await);
    }
    let counts = || endpoints.iter().map(|(seen, ..)| seen.count()).collect::<Vec<_>>();
    eventually("all four are asked", async || {
        let counts = counts();
        if counts.iter().all(|count| *count > 20) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    let before = counts();
    let asked = tally.asked();
    eventually("a thousand more calls", async || {
        if tally.asked() >= asked + 1000 { Ok(()) } else { Err(tally.asked().to_string()) }
    })
    .await;
    load.leave_after(0).await;
    tally.assert_nothing_lost();
    let since: Vec<_> = counts().iter().zip(before).map(|(now, before)| now - before).collect();
    let all: usize = since.iter().sum();
    // A quarter, give or take five times what chance does.
    assert!(since.iter().all(|count| (all * 18 / 100..=all * 32 / 100).contains(count)), "{since:?}");
}
