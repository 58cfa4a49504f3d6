//! Servers of gRPC that end connections by age, and more of them than before (R14).

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tulle_tests::ages::{aging, watch};
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::{World, deep, eventually, long};

use super::Pair;

#[tokio::test(flavor = "multi_thread")]
async fn r14_a_servers_maximum_connection_age_fails_no_call_and_ends_streams_with_a_status() {
    // Age and grace in milliseconds, streams, and how often each is cut.
    let (age, grace, streams, times) = match (long(), deep()) {
        (true, _) => (2000, 1000, 20, 150),
        (false, true) => (2000, 1000, 20, 10),
        (false, false) => (500, 400, 6, 4),
    };
    let pace = Pace { lanes: 8, rate: if deep() || long() { 200 } else { 80 }, stream: Duration::ZERO };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let app = aging(listener, Duration::from_millis(age), Duration::from_millis(grace));
    let pair = Pair::start(app, "grpc").await;
    let (to, tally) = (pair.web.outbound("orders"), Arc::<Tally>::default());
    let load = Load::start(&tally, Speech::Grpc, to, "web", pace);
    let watches: JoinSet<_> = (0..streams).map(|_| watch(to.into(), times)).collect();
    let wrong: Vec<String> = watches.join_all().await.concat();
    load.leave_after(0).await;
    tally.assert_nothing_lost();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let cut = [("direction", "outbound"), ("grpc_status", "14")];
    let counted = pair.web.metrics().await.sum("tulle_requests_total", &cut);
    assert!(counted >= (streams * times) as f64, "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_endpoints_that_come_later_get_their_share_of_calls_on_old_connections() {
    let world = World::strict().await;
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
    let pace = Pace { lanes: 8, rate: 1000, stream: Duration::ZERO };
    let load = Load::start(&tally, Speech::Grpc, web.outbound("calls"), "web", pace);
    for number in 2..4 {
        endpoints.push(start(number).await);
    }
    let counts = || endpoints.iter().map(|(seen, ..)| seen.count()).collect::<Vec<_>>();
    // A thousand each but for 27 by chance alone: none is out by five times that. What else there may be is a machine that is held up.
    eventually("4,000 calls are spread within 15 %", async || {
        let (before, asked) = (counts(), tally.asked());
        eventually("4,000 more calls", async || {
            if tally.asked() >= asked + 4_000 { Ok(()) } else { Err(tally.asked().to_string()) }
        })
        .await;
        let since: Vec<_> = counts().iter().zip(before).map(|(now, before)| now - before).collect();
        let all: usize = since.iter().sum();
        let is_even = since.iter().all(|count| (all * 85 / 400..=all * 115 / 400).contains(count));
        if is_even { Ok(()) } else { Err(format!("{since:?}")) }
    })
    .await;
    load.leave_after(0).await;
    tally.assert_nothing_lost();
}
