//! When to renew a certificate: pure arithmetic on times.
//!
//! When two thirds of the life that was left have passed, up to 5 % of the lifetime earlier by chance, so that proxies started together
//! do not come together; after a failure with a growing, jittered delay. The current certificate serves on
//! meanwhile.

use std::time::{Duration, SystemTime};

/// The first delay after a failure.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest delay between tries.
const MAX_BACKOFF: Duration = Duration::from_secs(60);

/// How long to wait from `now` before the next try.
///
/// `since` is when the certificate was obtained, not its first valid moment: leaves are back-dated, and a short life
/// would seem to be over at once. `failures` counts those since the last success; `jitter` is a random number in 0..1 (others are clamped).
/// Without failures: the time until two thirds of the lifetime, less up to 5 % of it; zero when past.
/// With failures: 1 s, 2 s, 4 s … 60 s, of which between half and all by `jitter`.
pub fn next(
    since: SystemTime,
    not_after: SystemTime,
    now: SystemTime,
    failures: u32,
    jitter: f64,
) -> Duration {
    if failures > 0 {
        return backoff(failures, jitter);
    }
    let lifetime = not_after.duration_since(since).unwrap_or_default();
    let share = 2.0 / 3.0 - 0.05 * clamp(jitter);
    (since + lifetime.mul_f64(share)).duration_since(now).unwrap_or_default()
}

/// The delay after so many failures (at least one).
pub fn backoff(failures: u32, jitter: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(6);
    let whole = (FIRST_BACKOFF * (1 << doublings)).min(MAX_BACKOFF);
    whole.mul_f64(0.5 + 0.5 * clamp(jitter))
}

fn clamp(jitter: f64) -> f64 {
    if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let at = |seconds| start + Duration::from_secs(seconds);
        let end = at(90_000);
        // (now after start, failures, jitter, expected seconds)
        let table: &[(u64, u32, f64, f64)] = &[
            (0, 0, 0.0, 60_000.0),
            (0, 0, 1.0, 55_500.0),
            (0, 0, 0.5, 57_750.0),
            (300, 0, 0.0, 59_700.0),
            (59_999, 0, 0.0, 1.0),
            (60_000, 0, 0.0, 0.0),
            (95_000, 0, 0.0, 0.0),
            (60_000, 1, 1.0, 1.0),
            (60_000, 1, 0.0, 0.5),
            (60_000, 2, 1.0, 2.0),
            (60_000, 6, 1.0, 32.0),
            (60_000, 7, 1.0, 60.0),
            (60_000, 7, 0.0, 30.0),
            (60_000, u32::MAX, 1.0, 60.0),
            (60_000, 1, f64::NAN, 0.5),
            (60_000, 1, 9.0, 1.0),
        ];
        for &(now, failures, jitter, expected) in table {
            let wait = next(start, end, at(now), failures, jitter).as_secs_f64();
            assert!((wait - expected).abs() < 0.001, "{now} {failures} {jitter}: {wait}");
        }
    }

    #[test]
    fn nonsense_dates_do_not_panic() {
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(100);
        assert_eq!(next(start, SystemTime::UNIX_EPOCH, start, 0, 0.3), Duration::ZERO);
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(70_000_000_000);
        assert!(next(start, far, start, 0, 0.3) > Duration::ZERO);
    }
}
