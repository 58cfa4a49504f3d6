//! Tasks for connections that have proved nothing yet, so many and no more: for one more, the oldest ends.
//!
//! So who opens many and says nothing holds up nobody who does what is to be done at once.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The tasks. They go on when this is dropped.
#[derive(Debug)]
pub(crate) struct Youngest {
    tasks: VecDeque<(Instant, AbortHandle)>,
    most: usize,
    grace: Duration,
}

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
                self.tasks.retain(|(_, task)| !task.is_finished());
            }
            if self.tasks.len() < self.most {
                return false;
            }
            let spent = self.tasks.front().is_some_and(|(begun, _)| begun.elapsed() >= self.grace);
            if spent && let Some((_, oldest)) = self.tasks.pop_front() {
                oldest.abort();
                return true;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.push_back((Instant::now(), tokio::spawn(task).abort_handle()));
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
