//! Watches that list anew after each failure.
//!
//! [`watcher()`] goes on from the version that it had come to, which an API server whose etcd was emptied, or restored from a backup, has not reached: such a watch is
//! open and silent, and what is gone is never told. What is watched here is little, so after a failure, without which no store is exchanged, it is listed
//! again, and the events say so as they do at the first list. The wait between failures grows.

use std::fmt::Debug;
use std::pin::Pin;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use kube::runtime::watcher::{self, Event, Result, watch_object, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::{backoff, chance};

/// Who has not failed for so long begins with a short wait again.
const LONG: Duration = Duration::from_secs(120);

/// What becomes of the objects of `api` that `config` selects, as [`watcher()`] tells it.
pub(crate) fn follow<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    Anew::of(move || watcher(api.clone(), config.clone())).stream()
}

/// What becomes of one object; `None`: it is not there.
pub(crate) fn follow_object<K>(
    api: Api<K>,
    name: &str,
) -> impl Stream<Item = Result<Option<K>>> + Send + use<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let name = name.to_owned();
    Anew::of(move || watch_object(api.clone(), &name)).stream()
}

/// What `begin` begins, and begins again after each failure and a wait.
struct Anew<F, S> {
    begin: F,
    open: Option<Pin<Box<S>>>,
    /// So many in a row.
    failures: u32,
    failed: Option<Instant>,
}

// === impl Anew ===

impl<F, S, T> Anew<F, S>
where
    F: Fn() -> S + Send,
    S: Stream<Item = Result<T>> + Send,
{
    fn of(begin: F) -> Self {
        Self { begin, open: None, failures: 0, failed: None }
    }

    fn stream(self) -> impl Stream<Item = Result<T>> + Send {
        stream::unfold(self, Self::next)
    }

    async fn next(mut self) -> Option<(Result<T>, Self)> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => {
                if self.failures > 0 {
                    // Between half and all of it, so that what failed together does not come back together.
                    let part = 1.0 - f64::from(chance()) / f64::from(u32::MAX) / 2.0;
                    tokio::time::sleep(backoff(self.failures).mul_f64(part)).await;
                }
                Box::pin((self.begin)())
            }
        };
        let next = open.next().await?;
        if next.is_ok() {
            self.open = Some(open);
        } else {
            // Not what it tells in between says that it works again: a list may work, and what follows not.
            if self.failed.is_some_and(|failed| failed.elapsed() >= LONG) {
                self.failures = 0;
            }
            self.failures = self.failures.saturating_add(1);
            self.failed = Some(Instant::now());
        }
        Some((next, self))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn after_a_failure_it_begins_anew_and_each_time_later() {
        let begun = AtomicUsize::new(0);
        let begin = || {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            stream::iter([Ok(number), Ok(number), Err(watcher::Error::NoResourceVersion)])
        };
        let started = Instant::now();
        let told = Anew::of(begin).stream().take(19).map(|told| (told.ok(), started.elapsed()));
        let told: Vec<(Option<usize>, Duration)> = told.collect().await;
        let said: Vec<Option<usize>> = told.iter().take(7).map(|(said, _)| *said).collect();
        assert_eq!(said, [Some(0), Some(0), None, Some(1), Some(1), None, Some(2)]);
        // The begin of each: after at most 0.5, 1, 2 … s, and half of that at least.
        let begun: Vec<Duration> = told.iter().step_by(3).map(|(_, at)| *at).collect();
        for (number, pair) in begun.windows(2).enumerate() {
            let (waited, most) = (pair[1] - pair[0], Duration::from_millis(500 << number));
            let slack = Duration::from_millis(5);
            assert!(waited + slack >= most / 2 && waited <= most + slack, "{number}: {waited:?}");
        }
    }
}
