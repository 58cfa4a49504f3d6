//! The taps that the control plane asks for over one stream of reports: which run, for how long, and what is told of them.
//!
//! Decides when a tap is over: when it is said to be, when it has not been said again in time, and with the stream, since nobody would hear
//! of it any more. What the workers show waits in a queue with so much room and no more; the stream takes from it what it
//! can send, so that neither the workers nor what else is reported wait for it. Called by [`super::report`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior};
use tulle_api::v1;

use crate::telemetry::tap::{MAX_TAPS, Shown, Tap, Taps};

/// What waits to be told, of all taps.
const ROOM: usize = 1024;
/// Requests in a message, which then has less than 800 KiB at most.
const BATCH: usize = 64;
/// How often is told what there is.
const OFTEN: Duration = Duration::from_millis(50);
/// No tap goes on for longer without being said again.
const LONGEST: Duration = Duration::from_secs(60);

/// The taps of one stream. They are over when it is dropped.
pub(super) struct Tapping {
    taps: Arc<Taps>,
    running: BTreeMap<u64, Running>,
    queue: mpsc::Sender<Shown>,
    shown: mpsc::Receiver<Shown>,
    /// Taken from there already, by tap: requests that several taps show come by turns, and each message is of one.
    taken: BTreeMap<u64, Vec<v1::TappedRequest>>,
    look: Interval,
}

struct Running {
    tap: Arc<Tap>,
    until: Instant,
}

// === impl Tapping ===

impl Tapping {
    pub(super) fn new(taps: Arc<Taps>) -> Self {
        let (queue, shown) = mpsc::channel(ROOM);
        let mut look = tokio::time::interval(OFTEN);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { taps, running: BTreeMap::new(), queue, shown, taken: BTreeMap::new(), look }
    }

    /// Begins a tap, or lets it go on. What is returned is to be told: it cannot run.
    pub(super) fn begin(&mut self, said: &v1::Tap, now: Instant) -> Option<v1::Tapped> {
        let until = now + Duration::from_millis(said.lifetime_milliseconds).min(LONGEST);
        if let Some(running) = self.running.get_mut(&said.id) {
            running.until = until;
            return None;
        }
        self.forget(now);
        let refused = |why: String| Some(v1::Tapped { id: said.id, refused: why, ..v1::Tapped::default() });
        if self.running.len() >= MAX_TAPS {
            return refused(format!("{MAX_TAPS} taps run here already"));
        }
        match Tap::new(said, &self.taps, self.queue.clone()) {
            Ok(tap) => {
                self.running.insert(said.id, Running { tap: Arc::new(tap), until });
                self.put();
                tracing::info!(id = said.id, filter = ?said.filter, "requests are being watched (tulle tap)");
                None
            }
            Err(error) => refused(error.to_string()),
        }
    }

    /// A tap is over.
    pub(super) fn end(&mut self, id: u64) {
        if self.running.remove(&id).is_some() {
            self.put();
        }
    }

    /// Waits until it is time to look what there is; for ever while nobody looks on.
    pub(super) async fn wait(&mut self) {
        if self.running.is_empty() {
            std::future::pending::<()>().await;
        }
        self.look.tick().await;
    }

    /// Lets go of taps that nobody has asked for again.
    pub(super) fn forget(&mut self, now: Instant) {
        let before = self.running.len();
        self.running.retain(|id, running| {
            let over = running.until <= now;
            if over {
                tracing::info!(id, "nobody asks for a tap any more: it is over");
            }
            !over
        });
        if self.running.len() != before {
            self.put();
        }
    }

    /// What is to be told next; `None`: nothing, for now.
    pub(super) fn next(&mut self) -> Option<v1::Tapped> {
        if let Some((id, requests)) = self.batch() {
            return Some(v1::Tapped { id, requests, ..v1::Tapped::default() });
        }
        self.running.iter().find_map(|(id, running)| {
            let (over_rate, dropped) = running.tap.take_missed();
            let any = over_rate > 0 || dropped > 0;
            any.then(|| v1::Tapped { id: *id, over_rate, dropped, ..v1::Tapped::default() })
        })
    }

    /// As much of one tap as a message takes; less once nothing else waits.
    fn batch(&mut self) -> Option<(u64, Vec<v1::TappedRequest>)> {
        while let Ok(Shown { tap, request }) = self.shown.try_recv() {
            // What a tap that is over had shown is nobody's.
            if !self.running.contains_key(&tap) {
                continue;
            }
            let requests = self.taken.entry(tap).or_default();
            requests.push(request);
            if requests.len() >= BATCH {
                return self.taken.remove_entry(&tap);
            }
        }
        self.taken.retain(|tap, _| self.running.contains_key(tap));
        self.taken.pop_first()
    }

    fn put(&self) {
        self.taps.set(self.running.values().map(|running| Arc::clone(&running.tap)).collect());
    }
}

impl Drop for Tapping {
    fn drop(&mut self) {
        self.taps.set(Vec::new());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Record;

    fn said(id: u64) -> v1::Tap {
        v1::Tap { id, lifetime_milliseconds: 10_000, per_second: 1000, ..v1::Tap::default() }
    }

    #[tokio::test]
    async fn a_tap_goes_on_for_as_long_as_it_is_asked_for_and_no_longer_than_its_stream() {
        let taps = Arc::new(Taps::default());
        let mut tapping = Tapping::new(Arc::clone(&taps));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(tapping.begin(&said(1), start), None);
        taps.connection(&Record::default());
        assert_eq!(tapping.next().unwrap().requests.len(), 1);
        assert_eq!(tapping.next(), None);
        // Asked for again, it goes on.
        assert_eq!(tapping.begin(&said(1), at(9)), None);
        tapping.forget(at(18));
        taps.connection(&Record::default());
        tapping.forget(at(19));
        taps.connection(&Record::default());
        assert_eq!(tapping.next(), None, "what a tap that is over had shown is nobody's");
        let forever = v1::Tap { lifetime_milliseconds: u64::MAX / 2, ..said(2) };
        tapping.begin(&forever, start);
        tapping.forget(at(61));
        assert!(tapping.running.is_empty());
        for id in [3, 4] {
            tapping.begin(&said(id), start);
        }
        tapping.end(3);
        taps.connection(&Record::default());
        assert_eq!(tapping.next().map(|tapped| tapped.id), Some(4));
        drop(tapping);
        assert_eq!(taps.count(), 0);
    }

    #[tokio::test]
    async fn messages_are_bounded_and_each_is_of_one_tap() {
        let taps = Arc::new(Taps::default());
        let mut tapping = Tapping::new(Arc::clone(&taps));
        let now = Instant::now();
        let field = "x".repeat(10_000);
        tapping.begin(&v1::Tap { per_second: 300, ..said(1) }, now);
        for _ in 0..200 {
            taps.connection(&Record { detail: &field, path: &field, authority: &field, ..Record::default() });
        }
        tapping.begin(&said(2), now);
        for _ in 0..2000 {
            taps.connection(&Record::default());
        }
        let (mut of_first, mut of_second, mut over_rate, mut dropped) = (0, 0, 0, 0);
        while let Some(tapped) = tapping.next() {
            assert!(tapped.requests.len() <= BATCH && prost::Message::encoded_len(&tapped) < 800 << 10);
            match tapped.id {
                1 => of_first += tapped.requests.len(),
                _ => of_second += tapped.requests.len(),
            }
            over_rate += tapped.over_rate;
            dropped += tapped.dropped;
        }
        assert_eq!(of_first + of_second, ROOM);
        assert_eq!((of_first as u64 + of_second as u64) + over_rate + dropped, 200 + 2000 + 2000);
        assert!(of_first >= 200 && dropped > 0 && over_rate > 1000, "{of_first} {dropped} {over_rate}");
    }

    #[tokio::test]
    async fn taps_that_show_the_same_requests_fill_their_messages_too() {
        let taps = Arc::new(Taps::default());
        let mut tapping = Tapping::new(Arc::clone(&taps));
        let now = Instant::now();
        for id in 0..4 {
            tapping.begin(&said(id), now);
        }
        for connection in 0..100 {
            taps.connection(&Record { connection, ..Record::default() });
        }
        tapping.end(3);
        let mut told: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut messages = 0;
        while let Some(tapped) = tapping.next() {
            messages += 1;
            told.entry(tapped.id).or_default().extend(tapped.requests.iter().map(|one| one.connection));
        }
        // In a turn of the stream there is room for eight: a message for each request would fall behind.
        assert_eq!(messages, 3 * 100_usize.div_ceil(BATCH));
        let all: Vec<u64> = (0..100).collect();
        assert_eq!(told, BTreeMap::from([0, 1, 2].map(|id| (id, all.clone()))));
    }

    #[tokio::test]
    async fn more_taps_than_there_is_room_for_and_what_is_not_known_are_refused() {
        let mut tapping = Tapping::new(Arc::default());
        let now = Instant::now();
        let filter = v1::TapFilter { reason: "new_one".to_owned(), ..v1::TapFilter::default() };
        let refused = tapping.begin(&v1::Tap { filter: Some(filter), ..said(100) }, now).unwrap();
        assert_eq!((refused.id, refused.refused.contains("knows no reason")), (100, true));
        for id in 0..MAX_TAPS as u64 {
            assert_eq!(tapping.begin(&said(id), now), None);
        }
        let refused = tapping.begin(&said(101), now).unwrap();
        assert_eq!(refused.refused, "8 taps run here already");
        // Those that nobody asks for any more make room.
        assert_eq!(tapping.begin(&said(102), now + Duration::from_secs(11)), None);
    }
}
