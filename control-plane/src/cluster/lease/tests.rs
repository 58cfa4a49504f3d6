use std::sync::Arc;

use http::Method;
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::cluster::testing::{ApiServer, Failure};
use crate::ending;

fn record(holder: &str, renewed: &str, version: &str) -> Record {
    Record {
        holder: holder.to_owned(),
        renewed: renewed.to_owned(),
        duration: DURATION,
        transitions: 3,
        version: version.to_owned(),
    }
}

fn at(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn a_lease_that_nobody_has_is_made_or_taken() {
    let start = Instant::now();
    let mut first = Candidate::new("a", start);
    assert_eq!(first.step(start), Step::Read);
    first.read(start, None);
    assert_eq!(first.step(start), Step::Create);
    assert_eq!(first.holds_until(start), None, "not before it is written");
    first.written(start, record("a", "x", "1"));
    assert_eq!(first.holds_until(start), Some(start + HOLDS));
    assert_eq!(first.step(at(start, 1)), Step::Wait(start + RENEW));

    let mut second = Candidate::new("b", start);
    assert_eq!(second.step(start), Step::Read);
    second.read(start, Some(record("", "x", "2")));
    let step = second.step(start);
    assert_eq!(step, Step::Write { version: "2".into(), transitions: 4, renewal: false });
}

#[test]
fn anothers_lease_ends_when_it_has_not_changed_for_as_long_as_it_lasts_whatever_its_clock_says() {
    // A holder whose clock is an hour ahead, one whose clock is an hour behind, and one whose clock jumps between.
    for times in [["2031", "2031"], ["1971", "1971"], ["2031", "1971"]] {
        let start = Instant::now();
        let mut waiting = Candidate::new("b", start);
        let mut now = start;
        for (version, renewed) in times.iter().cycle().take(10).enumerate() {
            assert_eq!(waiting.step(now), Step::Read);
            waiting.read(now, Some(record("a", renewed, &version.to_string())));
            assert!(matches!(waiting.step(now), Step::Wait(_)), "it is renewed");
            now += RENEW;
        }
        let last_seen = now - RENEW;
        while now < last_seen + DURATION {
            assert_eq!(waiting.step(now), Step::Read);
            waiting.read(now, Some(record("a", times[1], "9")));
            assert!(
                matches!(waiting.step(now), Step::Wait(_)),
                "{:?} after it was last seen to change",
                now - last_seen
            );
            now += LOOK;
        }
        assert_eq!(waiting.step(now), Step::Read);
        waiting.read(now, Some(record("a", times[1], "9")));
        assert!(matches!(waiting.step(now), Step::Write { renewal: false, .. }), "the holder is gone");
    }
}

#[test]
fn anothers_lease_counts_neither_for_years_nor_for_no_time_whatever_it_says() {
    for (seconds, lasts) in [
        (u64::from(i32::MAX.unsigned_abs()), LONGEST),
        (20, Duration::from_secs(20)),
        (1, DURATION),
        (0, DURATION),
    ] {
        let start = Instant::now();
        let mut waiting = Candidate::new("b", start);
        let claimed = Record { duration: Duration::from_secs(seconds), ..record("a", "2099", "1") };
        waiting.read(start, Some(claimed.clone()));
        let before = start + lasts - Duration::from_secs(1);
        assert!(matches!(waiting.step(before), Step::Wait(_)), "{seconds} s");
        waiting.read(before, Some(claimed));
        let step = waiting.step(start + lasts + LOOK);
        assert!(matches!(step, Step::Write { renewal: false, .. }), "{seconds} s: {step:?}");
    }
}

#[test]
fn that_another_asks_for_years_is_told_each_minute_for_as_long_as_it_does() {
    let start = Instant::now();
    let mut waiting = Candidate::new("b", start);
    let years =
        |renewed: &str| Record { duration: Duration::from_secs(1 << 30), ..record("a", renewed, renewed) };
    let mut told = 0;
    for second in 0..150 {
        waiting.read(at(start, second), Some(years(&second.to_string())));
        told += usize::from(waiting.excessive(at(start, second)).is_some());
    }
    assert_eq!(told, 3, "at once, after one minute and after two");
    waiting.read(at(start, 150), Some(record("a", "x", "x")));
    assert_eq!(waiting.excessive(at(start, 150)), None);
    waiting.read(at(start, 151), Some(years("y")));
    assert_eq!(waiting.excessive(at(start, 151)).map(|record| record.holder.as_str()), Some("a"));
}

#[test]
fn who_cannot_renew_stops_before_anybody_else_may_begin() {
    let start = Instant::now();
    let mut holder = Candidate::new("a", start);
    holder.read(start, None);
    holder.step(start);
    holder.written(start, record("a", "x", "1"));
    // The other sees it the moment that it is written: nobody can see it earlier.
    let mut other = Candidate::new("b", start);
    other.read(start, Some(record("a", "x", "1")));
    for second in 0..DURATION.as_secs() {
        let now = at(start, second);
        if second >= RENEW.as_secs() {
            holder.failed(now);
        }
        other.read(now, Some(record("a", "x", "1")));
        let begins = matches!(other.step(now), Step::Write { .. });
        assert!(!(begins && holder.holds_until(now).is_some()), "both after {second} s");
    }
    assert_eq!(holder.holds_until(start + HOLDS), None);
    // Its first answer after the outage says whose it is now.
    let now = at(start, 20);
    assert_eq!(holder.step(now), Step::Read);
    holder.read(now, Some(record("b", "y", "2")));
    assert!(matches!(holder.step(now), Step::Wait(_)));
}

#[test]
fn a_lease_that_somebody_else_has_written_or_removed_is_read_again() {
    let start = Instant::now();
    let mut candidate = Candidate::new("a", start);
    candidate.read(start, Some(record("", "x", "1")));
    assert!(matches!(candidate.step(start), Step::Write { .. }));
    candidate.outrun(start);
    assert_eq!(candidate.step(start + AGAIN), Step::Read);
    candidate.read(start + AGAIN, Some(record("b", "y", "2")));
    assert!(matches!(candidate.step(start + AGAIN), Step::Wait(_)));

    candidate.written(start, record("a", "x", "3"));
    candidate.outrun(start);
    candidate.read(start, None);
    assert_eq!(candidate.holds_until(start), None, "somebody has deleted it: nobody holds it");
    assert_eq!(candidate.step(start + RENEW), Step::Create);
}

/// A replica that asks for the lease.
struct Replica {
    held: watch::Receiver<bool>,
    end: ending::End,
    task: tokio::task::JoinHandle<()>,
}

impl Replica {
    fn start(server: &Arc<ApiServer>, name: &str) -> Self {
        let (sender, held) = watch::channel(false);
        let (end, ending) = ending::channel();
        let task =
            tokio::spawn(campaign(server.client(), "tulle-system".into(), name.into(), sender, ending));
        Self { held, end, task }
    }

    async fn holds(&mut self, wanted: bool) {
        self.held.wait_for(|held| *held == wanted).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_holds_it_and_the_other_takes_over_at_once_when_it_ends_in_order() {
    let server = ApiServer::start();
    let mut first = Replica::start(&server, "a");
    first.holds(true).await;
    let mut second = Replica::start(&server, "b");
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(*first.held.borrow() && !*second.held.borrow());
    let lease =
        server.object("/apis/coordination.k8s.io/v1/namespaces/tulle-system/leases/tulle-control-plane");
    assert_eq!(lease.unwrap()["spec"]["holderIdentity"], "a");

    first.end.begin();
    first.task.await.unwrap();
    let begun = tokio::time::Instant::now();
    second.holds(true).await;
    assert!(begun.elapsed() <= LOOK + RETRY, "{:?}: it was given back", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_nobody_that_claims_years_is_taken_over() {
    let path = "/apis/coordination.k8s.io/v1/namespaces/tulle-system/leases/tulle-control-plane";
    let server = ApiServer::start();
    let spec = json!({
        "holderIdentity": "nobody", "leaseDurationSeconds": i32::MAX, "leaseTransitions": 1,
        "renewTime": "2099-01-01T00:00:00.000000Z",
    });
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": LEASE}, "spec": spec,
    });
    server.put(path, lease);
    let begun = tokio::time::Instant::now();
    let mut first = Replica::start(&server, "a");
    first.holds(true).await;
    let waited = begun.elapsed();
    assert!(waited >= LONGEST && waited <= LONGEST + LOOK + RETRY, "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_the_api_server_costs_the_lease_and_it_is_taken_again_after_it() {
    let server = ApiServer::start();
    let mut first = Replica::start(&server, "a");
    first.holds(true).await;
    for failure in [Failure::Silence, Failure::Status(503), Failure::Status(403), Failure::Garbage] {
        server.fail(move |_, _| Some(failure));
        let begun = tokio::time::Instant::now();
        first.holds(false).await;
        assert!(begun.elapsed() <= HOLDS + RETRY, "{failure:?}: {:?}", begun.elapsed());
        server.mend();
        first.holds(true).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_at_a_renewal_does_not_cost_the_lease() {
    let server = ApiServer::start();
    let mut first = Replica::start(&server, "a");
    first.holds(true).await;
    server.fail(|method, _| (*method == Method::PATCH).then_some(Failure::Status(409)));
    tokio::time::sleep(Duration::from_secs(6)).await;
    server.mend();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(*first.held.borrow());
    assert!(!first.held.has_changed().unwrap(), "it was held all the time");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_renewed_meanwhile_is_given_back_all_the_same() {
    let path = "/apis/coordination.k8s.io/v1/namespaces/tulle-system/leases/tulle-control-plane";
    let server = ApiServer::start();
    let mut first = Replica::start(&server, "a");
    first.holds(true).await;
    // As a renewal leaves it whose answer has not come yet.
    let mut renewed = server.object(path).unwrap();
    renewed["spec"]["renewTime"] = "2026-01-01T00:00:00.000000Z".into();
    server.put(path, renewed);
    first.end.begin();
    first.task.await.unwrap();
    let lease = server.object(path).unwrap();
    assert!(lease["spec"]["holderIdentity"].as_str().unwrap_or_default().is_empty(), "{lease}");

    // Not if it is another's by then.
    let mut second = Replica::start(&server, "b");
    second.holds(true).await;
    let mut taken = server.object(path).unwrap();
    taken["spec"]["holderIdentity"] = "c".into();
    server.put(path, taken);
    second.end.begin();
    second.task.await.unwrap();
    assert_eq!(server.object(path).unwrap()["spec"]["holderIdentity"], "c");
}
