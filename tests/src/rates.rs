//! Clients that ask more often than a rate limit lets them, and how much passes (R16).

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::load::Dial;
use crate::{Head, Wire};

/// What they ask.
pub const GET: &str = "GET / HTTP/1.1\r\nhost: orders\r\n\r\n";

/// Seconds' worth of the rate that the burst must be: a machine that sleeps for less loses nothing.
pub const BURST: u32 = 5;

/// Whether it passed; else it must be refused by a limit, which says when to come back.
///
/// # Panics
/// If it is not, or does not.
pub fn passed(head: &Head) -> bool {
    match (head.status(), head.reason()) {
        (200, None) => true,
        (429, Some("rate_limited")) => {
            let wait: u64 = head.get("retry-after").unwrap().parse().unwrap();
            let (left, limit) = (head.get("ratelimit").unwrap(), head.get("ratelimit-policy").unwrap());
            assert!(wait >= 1 && left.contains(";r=0;t=") && limit.contains(";q="), "{head:?}");
            false
        }
        _ => panic!("{head:?}"),
    }
}

async fn connect(to: &Dial) -> Wire {
    Wire::new(to.connect().await.expect("a connection"))
}

/// Asks, one after the other, until one is refused; how many passed, and when that was, at the earliest and at the latest.
async fn until_refused(to: &Dial) -> (u64, [Instant; 2]) {
    let (mut wire, mut count) = (connect(to).await, 0);
    loop {
        let sent = Instant::now();
        wire.send(GET).await;
        if !passed(&wire.response().await.0) {
            return (count, [sent, Instant::now()]);
        }
        count += 1;
    }
}

/// `requests` a second, each `lanes` by turns, for so long; how many passed, and how many did not.
async fn overload(to: &Dial, lanes: u32, requests: u32, lasts: Duration) -> (u64, u64) {
    let begun = Instant::now();
    let lane = |number: u32| {
        let to = to.clone();
        async move {
            let (mut wire, mut counts) = (connect(&to).await, (0, 0));
            let every = Duration::from_secs(1) * lanes / requests;
            let mut pace = tokio::time::interval_at(begun + every * number / lanes, every);
            while begun.elapsed() < lasts {
                pace.tick().await;
                wire.send(GET).await;
                match passed(&wire.response().await.0) {
                    true => counts.0 += 1,
                    false => counts.1 += 1,
                }
            }
            counts
        }
    };
    let lanes: JoinSet<(u64, u64)> = (0..lanes).map(lane).collect();
    lanes.join_all().await.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Asks for ten seconds four times as often as a limit of `rate` a second, with [`BURST`], lets them. From one moment at which there is
/// no room to another exactly so many pass as the time between brings, however the requests came, as long as the burst is never whole again
/// between.
///
/// # Panics
/// If it is out by more than 2 %, and by more than one request.
pub async fn is_kept_to(what: &str, to: &Dial, rate: u32) {
    let (_, [begun, began]) = until_refused(to).await;
    let (mut count, refused) = overload(to, 10, rate * 4, Duration::from_secs(10)).await;
    let (more, [ending, ended]) = until_refused(to).await;
    count += more;
    let brings = |time: Duration| f64::from(rate) * time.as_secs_f64();
    let (least, most) = (brings(ending - began), brings(ended - begun));
    assert!(
        count as f64 >= least * 0.98 - 1.0 && count as f64 <= most * 1.02 + 1.0,
        "{what}: {count} passed, and neither {least:.1} nor {most:.1}; {refused} were refused"
    );
    assert!(refused > 0, "{what}: nothing was too much");
}
