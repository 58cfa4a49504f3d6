//! Watches that list anew after each failure.
//!
//! [`watcher()`] goes on from the version that it had come to, which an API server whose etcd was emptied, or restored from a backup, has not reached: such a watch is
//! open and silent, and what is gone is never told. What is watched here is little, so after a failure, without which no store is exchanged, it is listed
//! again, and the events say so as they do at the first list. The wait between failures grows.

use std::fmt::Debug;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _, stream};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, Result, watch_object, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// What becomes of the objects of `api` that `config` selects, as [`watcher()`] tells it.
pub(crate) fn follow<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    anew(move || watcher(api.clone(), config.clone())).default_backoff()
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
    anew(move || watch_object(api.clone(), &name)).default_backoff()
}

/// What `begin` begins, and begins again after each failure.
fn anew<S, T>(begin: impl Fn() -> S + Send) -> impl Stream<Item = Result<T>> + Send
where
    S: Stream<Item = Result<T>> + Send,
{
    stream::unfold((begin, None::<Pin<Box<S>>>), |(begin, open)| async move {
        let mut open = open.unwrap_or_else(|| Box::pin(begin()));
        let next = open.next().await?;
        let goes_on = next.is_ok();
        Some((next, (begin, goes_on.then_some(open))))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn after_a_failure_it_begins_anew_and_not_before() {
        let begun = AtomicUsize::new(0);
        let begin = || {
            let number = begun.fetch_add(1, Ordering::Relaxed);
            stream::iter([Ok(number), Ok(number), Err(watcher::Error::NoResourceVersion)])
        };
        let told: Vec<Option<usize>> = anew(begin).take(7).map(|told| told.ok()).collect().await;
        assert_eq!(told, [Some(0), Some(0), None, Some(1), Some(1), None, Some(2)]);
    }
}
