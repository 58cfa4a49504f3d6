//! Places of which there are so many, and those who wait for one. Pure: the time is the caller's.
//!
//! Shared by all workers: whoever gives a place up wakes the one who waits longest, on whichever worker that is. How many there are
//! is said at each take, so that it may change at any time: what is taken stays taken. Nothing is handed over: only the first in line
//! looks whether there is room, and who leaves the line, for whatever reason, has the next one look; so nothing is lost when somebody
//! stops waiting.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// See the module. It only counts: who takes must [give](Seats::give), best when dropped.
#[derive(Debug, Default)]
pub struct Seats {
    taken: AtomicU32,
    line: Line,
}

/// Who waits, in order of coming.
#[derive(Debug, Default)]
struct Line {
    waiting: AtomicUsize,
    queue: Mutex<VecDeque<Arc<Notify>>>,
}

/// A place in line.
struct Waiting<'a> {
    line: &'a Line,
    woken: Arc<Notify>,
}

// === impl Seats ===

impl Seats {
    /// How many are taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(SeqCst)
    }

    /// How many wait.
    pub fn waiting(&self) -> usize {
        self.line.waiting.load(SeqCst)
    }

    /// Whether one more could be taken of `most`; 0: of any number.
    pub fn has_room(&self, most: u32) -> bool {
        most == 0 || self.taken() < most
    }

    /// Takes one, if fewer than `most` are taken; 0: in any case. Who waits is passed over.
    pub fn take(&self, most: u32) -> bool {
        let more = |taken: u32| (most == 0 || taken < most).then(|| taken.saturating_add(1));
        self.taken.fetch_update(SeqCst, SeqCst, more).is_ok()
    }

    /// Gives one back that was taken.
    pub fn give(&self) {
        let fewer = |taken: u32| Some(taken.saturating_sub(1));
        let _ = self.taken.fetch_update(SeqCst, SeqCst, fewer);
        self.wake();
    }

    /// Has the first who waits look again: there may be room, here or wherever else `take` looks.
    pub fn wake(&self) {
        if self.waiting() > 0 {
            self.line.wake();
        }
    }

    /// Waits in line until `take` gives something. Dropping it leaves the line.
    pub async fn wait<T>(&self, mut take: impl FnMut() -> Option<T>) -> T {
        let waiting = Waiting::enter(&self.line);
        loop {
            if waiting.is_first()
                && let Some(taken) = take()
            {
                return taken;
            }
            waiting.woken.notified().await;
        }
    }
}

// === impl Line ===

impl Line {
    fn wake(&self) {
        let first = self.queue.lock().front().cloned();
        if let Some(first) = first {
            first.notify_one();
        }
    }
}

// === impl Waiting ===

impl<'a> Waiting<'a> {
    fn enter(line: &'a Line) -> Self {
        let woken = Arc::new(Notify::new());
        line.queue.lock().push_back(Arc::clone(&woken));
        // Before it looks for the first time: who gives back afterwards sees that somebody waits.
        line.waiting.fetch_add(1, SeqCst);
        Self { line, woken }
    }

    fn is_first(&self) -> bool {
        self.line.queue.lock().front().is_some_and(|first| Arc::ptr_eq(first, &self.woken))
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let next = {
            let mut queue = self.line.queue.lock();
            let at = queue.iter().position(|one| Arc::ptr_eq(one, &self.woken));
            drop(at.and_then(|at| queue.remove(at)));
            // There may be room for it too; or what woke this one was meant for the next.
            queue.front().filter(|_| at == Some(0)).cloned()
        };
        self.line.waiting.fetch_sub(1, SeqCst);
        if let Some(next) = next {
            next.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::time::Duration;

    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};
    use tokio::time::{sleep, timeout};

    use super::*;

    struct Taken(Arc<Seats>);

    impl Drop for Taken {
        fn drop(&mut self) {
            self.0.give();
        }
    }

    async fn take(seats: &Arc<Seats>, most: &AtomicU32) -> Taken {
        let take = || seats.take(most.load(SeqCst)).then(|| Taken(Arc::clone(seats)));
        match take().filter(|_| seats.waiting() == 0) {
            Some(taken) => taken,
            None => seats.wait(take).await,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_longest_is_first() {
        let (seats, most) = (Arc::new(Seats::default()), Arc::new(AtomicU32::new(2)));
        let served = Arc::new(Mutex::new(Vec::new()));
        let first = [take(&seats, &most).await, take(&seats, &most).await];
        let mut all = Vec::new();
        for i in 0..10 {
            let (seats, most, served) = (Arc::clone(&seats), Arc::clone(&most), Arc::clone(&served));
            all.push(tokio::spawn(async move {
                let _taken = take(&seats, &most).await;
                served.lock().push(i);
                sleep(Duration::from_secs(1)).await;
            }));
            tokio::task::yield_now().await;
        }
        // One that leaves takes nobody's turn away.
        all.remove(3).abort();
        drop(first);
        for one in all {
            one.await.unwrap();
        }
        assert_eq!(*served.lock(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!((seats.taken(), seats.waiting()), (0, 0));
    }

    /// Never more than there are, and nothing is left after cancels, timeouts and changes of how many there are.
    #[tokio::test(start_paused = true)]
    async fn seeded_places_are_never_exceeded_and_never_lost() {
        for seed in 0..100 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (seats, most) =
                (Arc::new(Seats::default()), Arc::new(AtomicU32::new(rng.random_range(1..6))));
            let mut tasks = Vec::new();
            for _ in 0..60 {
                let (seats, most) = (Arc::clone(&seats), Arc::clone(&most));
                let millis = |rng: &mut StdRng| Duration::from_millis(rng.random_range(0..50));
                let (begin, patience, hold) = (millis(&mut rng), millis(&mut rng), millis(&mut rng));
                tasks.push(tokio::spawn(async move {
                    sleep(begin).await;
                    let Ok(taken) = timeout(patience, take(&seats, &most)).await else { return };
                    let now = seats.taken();
                    // After a change to fewer, those that are there may stay.
                    assert!(now <= 6, "seed {seed}: {now}");
                    sleep(hold).await;
                    drop(taken);
                }));
            }
            for _ in 0..10 {
                sleep(Duration::from_millis(rng.random_range(1..10))).await;
                most.store(rng.random_range(1..6), SeqCst);
                seats.wake();
                let at = rng.random_range(0..tasks.len());
                tasks[at].abort();
            }
            most.store(1, SeqCst);
            for task in tasks {
                if let Err(error) = task.await {
                    assert!(error.is_cancelled(), "seed {seed}: {error}");
                }
            }
            assert_eq!((seats.taken(), seats.waiting()), (0, 0), "seed {seed}");
        }
    }

    /// On many threads: exactly so many at once, all are served, and nobody is forgotten.
    #[test]
    fn workers_wake_each_other() {
        const MOST: u32 = 3;
        let seats = Arc::new(Seats::default());
        let exceeded = Arc::new(AtomicBool::new(false));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (seats, exceeded) = (Arc::clone(&seats), Arc::clone(&exceeded));
                scope.spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    let local = async {
                        let mut tasks = Vec::new();
                        for _ in 0..50 {
                            let (seats, exceeded) = (Arc::clone(&seats), Arc::clone(&exceeded));
                            tasks.push(tokio::spawn(async move {
                                for _ in 0..20 {
                                    let most = AtomicU32::new(MOST);
                                    let taken = take(&seats, &most).await;
                                    if seats.taken() > MOST {
                                        exceeded.store(true, SeqCst);
                                    }
                                    tokio::task::yield_now().await;
                                    drop(taken);
                                }
                            }));
                        }
                        for task in tasks {
                            task.await.unwrap();
                        }
                    };
                    runtime.block_on(local);
                });
            }
        });
        assert!(!exceeded.load(SeqCst));
        assert_eq!((seats.taken(), seats.waiting()), (0, 0));
    }
}
