//! Waiting for something to hold.

use std::time::Duration;

use tokio::time::Instant;

/// How long anything may take that is bound to happen. Generous: a debug build on a busy machine is meant too.
pub const DEADLINE: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(10);

/// Asks `check` until it is `Ok`.
///
/// # Panics
/// After [`DEADLINE`], with `what` and the last error.
#[track_caller]
pub fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<T, String>) -> impl Future<Output = T> {
    eventually_within(DEADLINE, what, check)
}

/// As [`eventually`], for what takes long by itself: such as the end of a lease.
///
/// # Panics
/// After `limit`, with `what` and the last error.
#[track_caller]
pub fn eventually_within<T>(
    limit: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Result<T, String>,
) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        let begun = Instant::now();
        loop {
            match check().await {
                Ok(value) => return value,
                Err(error) if begun.elapsed() > limit => {
                    panic!("{caller}: {what}: not within {limit:?}; at last: {error}")
                }
                Err(_) => tokio::time::sleep(POLL).await,
            }
        }
    }
}

/// What `future` comes to.
///
/// # Panics
/// After [`DEADLINE`], with `what`.
#[track_caller]
pub fn within<T>(what: &str, future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    let what = what.to_owned();
    async move {
        match tokio::time::timeout(DEADLINE, future).await {
            Ok(value) => value,
            Err(_) => panic!("{caller}: {what}: not within {DEADLINE:?}"),
        }
    }
}
