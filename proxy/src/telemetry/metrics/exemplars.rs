//! Exemplars: of each bucket of a histogram of requests the last recorded request that was counted there, by its trace and span.
//!
//! They lie where the histogram does, on the worker that served the request, and are made with the first of them: what is not recorded
//! pays nothing, and no more is held than one for each bucket that is shown. The worker writes and a scrape reads, and neither waits for the
//! other: a reader sees by a cell's version that it was written meanwhile, and looks again.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId};

use crate::telemetry::trace::{Context, Digits};

/// One for each bucket, the endless one included.
#[derive(Debug)]
pub(super) struct Exemplars(Box<[Cell]>);

/// A recorded request, as OpenMetrics links to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exemplar {
    pub(super) of: Context,
    /// How long it took.
    pub(super) nanos: u64,
    /// When it ended, since 1970.
    pub(super) at: Duration,
}

#[derive(Debug, Default)]
struct Cell {
    /// 0: there is none; odd: one is being written.
    version: AtomicU64,
    words: [AtomicU64; 5],
}

/// How often a reader looks that finds one half written; writing takes nanoseconds.
const LOOKS: usize = 8;

// === impl Exemplars ===

impl Exemplars {
    pub(super) fn new(buckets: usize) -> Self {
        Self((0..buckets).map(|_| Cell::default()).collect())
    }

    /// In place of the last one of that bucket. Only the owning thread may.
    pub(super) fn put(&self, bucket: usize, exemplar: &Exemplar) {
        if let Some(cell) = self.0.get(bucket) {
            cell.put(exemplar);
        }
    }

    /// By bucket, from any thread.
    pub(super) fn read(&self) -> impl Iterator<Item = Option<Exemplar>> {
        self.0.iter().map(|cell| (0..LOOKS).find_map(|_| cell.look()).flatten())
    }
}

// === impl Cell ===

impl Cell {
    fn put(&self, exemplar: &Exemplar) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version + 1, Ordering::Relaxed);
        // No word is seen before the odd version is, nor the even one before the words are.
        fence(Ordering::Release);
        for (word, value) in self.words.iter().zip(exemplar.words()) {
            word.store(value, Ordering::Relaxed);
        }
        self.version.store(version + 2, Ordering::Release);
    }

    /// `None`: it was written meanwhile.
    fn look(&self) -> Option<Option<Exemplar>> {
        let version = self.version.load(Ordering::Acquire);
        if version == 0 {
            return Some(None);
        }
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        is_whole.then(|| Some(Exemplar::of_words(words)))
    }
}

// === impl Exemplar ===

impl Exemplar {
    fn words(&self) -> [u64; 5] {
        let trace = u128::from_be_bytes(self.of.trace.to_bytes());
        let span = u64::from_be_bytes(self.of.span.to_bytes());
        let at = u64::try_from(self.at.as_millis()).unwrap_or(u64::MAX);
        [(trace >> 64) as u64, trace as u64, span, self.nanos, at]
    }

    fn of_words([high, low, span, nanos, at]: [u64; 5]) -> Self {
        let trace = u128::from(high) << 64 | u128::from(low);
        let of = Context { trace: TraceId::from(trace), span: SpanId::from(span) };
        Self { of, nanos, at: Duration::from_millis(at) }
    }
}

impl fmt::Display for Exemplar {
    /// As it follows a sample. OpenMetrics allows a set of labels 128 characters; these are 63.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (Digits::from(self.of.trace), Digits::from(self.of.span));
        let (seconds, at) = (self.nanos as f64 / 1e9, self.at);
        write!(f, "{{trace_id=\"{}\",span_id=\"{}\"}} {seconds}", trace.as_str(), span.as_str())?;
        write!(f, " {}.{:03}", at.as_secs(), at.subsec_millis())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn exemplar(number: u64) -> Exemplar {
        let of = Context { trace: TraceId::from(u128::from(number) << 64 | 1), span: SpanId::from(number) };
        Exemplar { of, nanos: number, at: Duration::from_millis(number) }
    }

    #[test]
    fn the_last_of_each_bucket_is_read_as_it_was_put() {
        let all = Exemplars::new(3);
        assert!(all.read().all(|one| one.is_none()));
        for (bucket, number) in [(0, 1), (2, 2), (0, u64::MAX / 3), (3, 9)] {
            all.put(bucket, &exemplar(number));
        }
        let read: Vec<_> = all.read().collect();
        assert_eq!(read, [Some(exemplar(u64::MAX / 3)), None, Some(exemplar(2))]);
    }

    #[test]
    fn a_reader_never_sees_half_of_one() {
        let (all, over) = (Arc::new(Exemplars::new(1)), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (all, over) = (Arc::clone(&all), Arc::clone(&over));
            std::thread::spawn(move || {
                let mut number = 1;
                while !over.load(Ordering::Relaxed) {
                    all.put(0, &exemplar(number));
                    number += 1;
                }
            })
        };
        let mut seen = 0;
        while seen < 100_000 {
            if let Some(read) = all.read().next().flatten() {
                assert_eq!(read, exemplar(read.nanos));
                seen += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
        writer.join().unwrap();
    }

    #[test]
    fn what_is_shown_is_within_what_openmetrics_allows() {
        let one =
            Exemplar { nanos: 12_345_678, at: Duration::from_micros(1_795_237_299_012_999), ..exemplar(7) };
        let text = one.to_string();
        assert_eq!(
            text,
            "{trace_id=\"00000000000000070000000000000001\",span_id=\"0000000000000007\"} 0.012345678 1795237299.012"
        );
        let labels = text.split('}').next().unwrap();
        assert!(labels.bytes().filter(u8::is_ascii_alphanumeric).count() + "__".len() <= 128, "{labels}");
    }
}
