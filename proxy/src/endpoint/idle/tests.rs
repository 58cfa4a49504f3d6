use super::*;
use crate::testing::{Rng, seeds};

const MS: Duration = Duration::from_millis(1);
const IDLE: Duration = Duration::from_secs(3);

#[test]
fn what_the_server_says_is_used_to_four_fifths_where_it_is_less() {
    let now = Instant::now();
    let mut limit = IdleLimit::default();
    assert_eq!(limit.at(now, IDLE), IDLE);
    limit.state(Duration::from_secs(5));
    assert_eq!(limit.at(now, IDLE), IDLE);
    limit.state(Duration::from_secs(1));
    assert_eq!(limit.at(now, IDLE), 800 * MS);
    limit.state(Duration::ZERO);
    assert_eq!(limit.at(now, IDLE), Duration::ZERO);
    limit.state(Duration::from_secs(60));
    assert_eq!(limit.at(now, IDLE), IDLE);
}

#[test]
fn a_server_that_keeps_connections_for_ever_stops_nobody() {
    let now = Instant::now();
    let mut limit = IdleLimit::default();
    for timeout in [Duration::from_secs(u64::MAX), Duration::MAX] {
        limit.state(timeout);
        for configured in [IDLE, Duration::MAX] {
            assert!(limit.at(now, configured) >= IDLE);
        }
    }
}

#[test]
fn two_closes_after_the_same_time_are_a_limit_and_one_is_a_suspicion() {
    let now = Instant::now();
    let mut limit = IdleLimit::default();
    limit.observe(now, 1000 * MS);
    assert_eq!(limit.at(now, IDLE), 800 * MS);
    assert_eq!(limit.at(now + Duration::from_secs(61), IDLE), IDLE);
    let later = now + Duration::from_secs(90);
    limit.observe(later, 1040 * MS);
    assert_eq!(limit.at(later + Duration::from_secs(3600), IDLE), 800 * MS);
}

#[test]
fn a_restart_that_closes_all_at_once_is_forgotten() {
    let now = Instant::now();
    let mut limit = IdleLimit::default();
    for age in [400, 410, 420, 90, 2000] {
        limit.observe(now, age * MS);
    }
    assert_eq!(limit.at(now, IDLE), 72 * MS);
    assert_eq!(limit.at(now + Duration::from_secs(61), IDLE), IDLE);
    // As is a close right after a response.
    let mut limit = IdleLimit::default();
    limit.observe(now, MS);
    limit.observe(now + 100 * MS, MS);
    assert_eq!(limit.at(now + 100 * MS, IDLE), IDLE);
}

/// Whatever the limit of the server: once it is learned, no connection is used when it may just be closing.
#[test]
fn r03_a_learned_limit_keeps_clear_of_the_servers() {
    seeds(300, |_, mut rng: Rng| {
        let server = MS * (100 + rng.below(2800) as u32);
        let mut limit = IdleLimit::default();
        let mut now = Instant::now();
        let mut races = 0;
        for _ in 0..20_000 {
            // A request comes when the connection has idled for nearly as long as the server allows, or longer.
            let idle = server * (90 + rng.below(20) as u32) / 100;
            now += idle;
            // Else we have closed it ourselves.
            if limit.at(now, IDLE) > idle.min(server) {
                races += 1;
                if idle >= server {
                    limit.observe(now - (idle - server), server);
                }
            }
        }
        // Until the first close, and once more until the second, which comes when the suspicion has lapsed.
        assert!(races < 60, "{races} races with a limit of {server:?}");
        assert_eq!(limit.at(now, IDLE), server * 4 / 5);
    });
}
