//! Whether this process itself has stood still: stopped by a signal, frozen with its container, without CPU for seconds.
//!
//! Decides nothing about others. Who takes a peer's silence or leaving for its end asks here first: while nobody ran here, every peer
//! heard nothing, gave up, and will be back.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How often it is looked.
const BEAT: Duration = Duration::from_millis(500);
/// So late a look means that nothing ran. Peers wait for longer than that before they give up.
const LATE: Duration = Duration::from_secs(3);
/// For so long afterwards, what has ended is told by what is read.
const AFTERWARDS: Duration = Duration::from_secs(5);

/// The process's pulse.
#[derive(Debug)]
pub struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last: Instant,
    /// When the last standstill was over.
    over: Option<Instant>,
}

impl Default for Pulse {
    /// It begins to beat with [`Pulse::run`].
    fn default() -> Self {
        Self(Mutex::new(Beats { last: Instant::now(), over: None }))
    }
}

// === impl Pulse ===

impl Pulse {
    /// Beats until it is dropped.
    pub async fn run(&self) {
        self.0.lock().last = Instant::now();
        loop {
            tokio::time::sleep(BEAT).await;
            self.beat(Instant::now());
        }
    }

    /// Whether nothing ran until a moment ago.
    pub fn stood_still(&self) -> bool {
        self.beat(Instant::now());
        self.0.lock().over.is_some_and(|over| over.elapsed() < AFTERWARDS)
    }

    /// Returns once `patience` has passed, and since the last standstill as much and at least `grace`: whoever is waited for
    /// heard nothing either while nothing ran here, and begins to come back only afterwards.
    pub async fn wait(&self, patience: Duration, grace: Duration) {
        tokio::time::sleep(patience).await;
        loop {
            self.beat(Instant::now());
            let over = self.0.lock().over;
            let Some(until) = over.map(|over| over + patience.max(grace)) else { return };
            if until <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// Whoever asks may be there before the next look.
    fn beat(&self, now: Instant) {
        let mut beats = self.0.lock();
        let silence = now.saturating_duration_since(beats.last);
        beats.last = now.max(beats.last);
        if silence >= LATE {
            beats.over = Some(now);
            drop(beats);
            tracing::warn!(?silence, "this process stood still: its peers have given it up meanwhile");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_standstill_is_one_for_a_moment_afterwards_whoever_looks_first() {
        let pulse = std::sync::Arc::new(Pulse::default());
        let running = std::sync::Arc::clone(&pulse);
        tokio::spawn(async move { running.run().await });
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!pulse.stood_still(), "it ran all the while");
        // Nothing runs while the clock is advanced.
        tokio::time::advance(LATE).await;
        assert!(pulse.stood_still());
        tokio::time::sleep(AFTERWARDS / 2).await;
        assert!(pulse.stood_still());
        tokio::time::sleep(AFTERWARDS / 2).await;
        assert!(!pulse.stood_still());
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_begins_anew_with_every_standstill() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let pulse = std::sync::Arc::new(Pulse::default());
        let running = std::sync::Arc::clone(&pulse);
        tokio::spawn(async move { running.run().await });
        for (grace, expected) in [(Duration::from_secs(30), 30), (Duration::from_secs(1), 10)] {
            let begun = Instant::now();
            pulse.wait(PATIENCE, Duration::ZERO).await;
            assert_eq!(begun.elapsed(), PATIENCE, "it ran all the while");
            let waiting = std::sync::Arc::clone(&pulse);
            let waited = tokio::spawn(async move { waiting.wait(PATIENCE, grace).await });
            let mut over = Instant::now();
            // One within the patience, and not at its end; one while the grace after that runs.
            for _ in 0..2 {
                tokio::time::sleep(Duration::from_millis(900)).await;
                tokio::time::advance(LATE * 2).await;
                over = Instant::now();
            }
            waited.await.unwrap();
            assert_eq!(over.elapsed(), Duration::from_secs(expected));
            // So that this standstill is none of the next wait's.
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }
}
