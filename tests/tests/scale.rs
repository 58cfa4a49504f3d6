//! Many proxies at one control plane: what changes reaches everybody whom it concerns, and nobody else. No times: those are
//! `simulate`'s.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

use tulle_tests::fleet::{Fleet, Plan, Random, Source};
use tulle_tests::{DEADLINE, World};

const CHANGES: usize = 200;

async fn start(source: Source) -> Fleet {
    let plan = Plan { proxies: 20, services: 50, endpoints: 4, uses: 8, source };
    let fleet = Fleet::start(plan, World::strict().await);
    fleet.ready(DEADLINE).await.unwrap();
    fleet
}

/// Changes, and looks at what was sent for them.
async fn change(fleet: &Fleet, random: &mut Random) {
    let before = fleet.ledger().counted();
    for _ in 0..CHANGES {
        fleet.change(random);
        // A model of its own for some, one together for others.
        if random.below(4) == 0 {
            fleet.converge(DEADLINE).await.unwrap();
        }
    }
    fleet.converge(DEADLINE).await.unwrap();
    let sent = fleet.ledger().counted() - before;
    assert!(fleet.ledger().take_latencies().len() > CHANGES as u64, "nobody heard of anything");
    assert_eq!((sent.unasked, sent.repeated), (0, 0), "sent to who does not use it, or for nothing");
    assert!(sent.endpoints_bytes <= sent.least_bytes, "more than each change once: {sent:?}");
    // Beside them go the own workloads' policies, and what HTTP/2 and TLS add to small messages.
    assert!(sent.wire_in < 3 * sent.least_bytes, "{sent:?}");
    assert_eq!(sent.failures, 0, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_changes_reaches_who_uses_the_service_and_nobody_else() {
    let fleet = start(Source::Reports).await;
    change(&fleet, &mut Random(1)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slice_that_changes_reaches_who_uses_the_service_and_nobody_else() {
    let fleet = start(Source::Files).await;
    change(&fleet, &mut Random(2)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everybody_returns_to_a_control_plane_that_was_killed_and_is_sent_only_what_is_new() {
    let mut fleet = start(Source::Reports).await;
    change(&fleet, &mut Random(3)).await;
    fleet.world().kill_control_plane().await;
    fleet.disturbed(DEADLINE).await.unwrap();
    let before = fleet.ledger().counted();
    fleet.world().restart_control_plane().await;
    fleet.ready(DEADLINE).await.unwrap();
    let sent = fleet.ledger().counted() - before;
    // What is held is not sent again, even though every workload registers anew.
    assert_eq!((sent.unasked, sent.repeated), (0, 0), "{sent:?}");
    change(&fleet, &mut Random(4)).await;
}
