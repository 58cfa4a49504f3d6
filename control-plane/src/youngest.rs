//! Tasks for connections that have proved nothing yet, so many and no more: for one more, the oldest ends.
//!
//! So who opens many and says nothing holds up nobody who does what is to be done at once. A task that goes on after its connection has proved itself
//! ([`Proof`]) ends only where all others have too.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The tasks. They go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Youngest {
    tasks: VecDeque<Task>,
    most: usize,
    grace: Duration,
}

#[derive(Debug)]
struct Task {
    begun: Instant,
    handle: AbortHandle,
    proof: Proof,
}

/// Whether a connection has done what connections are there for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proof(Arc<AtomicBool>);

/// How often it is looked whether a task has ended.
const LOOK: Duration = Duration::from_millis(10);

// === impl Youngest ===

impl Youngest {
    /// `most` tasks, each of which has `grace` at least.
    pub(crate) fn new(most: usize, grace: Duration) -> Self {
        Self { tasks: VecDeque::new(), most, grace }
    }

    /// Waits until there is room for one more. True if the oldest had to end for it.
    pub(crate) async fn room(&mut self) -> bool {
        loop {
            if self.tasks.len() >= self.most {
                self.tasks.retain(|task| !task.handle.is_finished());
            }
            if self.tasks.len() < self.most {
                return false;
            }
            let oldest = self.tasks.iter().position(|task| !task.proof.is_given()).unwrap_or(0);
            let spent = self.tasks.get(oldest).is_some_and(|task| task.begun.elapsed() >= self.grace);
            if spent && let Some(oldest) = self.tasks.remove(oldest) {
                oldest.handle.abort();
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.spawn_proving(task, Proof::default());
    }

    /// A task that may give a proof.
    pub(crate) fn spawn_proving(&mut self, task: impl Future<Output = ()> + Send + 'static, proof: Proof) {
        let handle = tokio::spawn(task).abort_handle();
        self.tasks.push_back(Task { begun: Instant::now(), handle, proof });
    }
}

// === impl Proof ===

impl Proof {
    pub(crate) fn give(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    /// Ends when the task does.
    fn hang(tasks: &mut Youngest) -> oneshot::Receiver<()> {
        let (alive, ended) = oneshot::channel::<()>();
        tasks.spawn(async move {
            let _alive = alive;
            std::future::pending().await
        });
        ended
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_proved_something_ends_only_where_all_have() {
        let mut tasks = Youngest::new(2, Duration::from_secs(1));
        let proof = Proof::default();
        proof.give();
        let (alive, mut oldest) = oneshot::channel::<()>();
        let task = async move {
            let _alive = alive;
            std::future::pending().await
        };
        tasks.spawn_proving(task, proof.clone());
        let younger = hang(&mut tasks);
        assert!(tasks.room().await);
        assert!(younger.await.is_err(), "it was aborted");
        assert_eq!(oldest.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        tasks.spawn_proving(std::future::pending(), proof);
        assert!(tasks.room().await);
        assert!(oldest.await.is_err(), "the oldest of equals");
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_that_is_not_done_ends_for_one_more_once_it_has_had_its_time() {
        let mut tasks = Youngest::new(2, Duration::from_secs(1));
        tasks.spawn(async {});
        let oldest = hang(&mut tasks);
        assert!(!tasks.room().await, "the one that is done leaves room");
        let mut younger = hang(&mut tasks);
        let begun = Instant::now();
        assert!(tasks.room().await);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        assert!(oldest.await.is_err(), "it was aborted");
        assert_eq!(younger.try_recv(), Err(oneshot::error::TryRecvError::Empty));
    }
}
