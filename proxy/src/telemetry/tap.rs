//! Requests as they end, for people who look on (`tulle tap`).
//!
//! Decides which records a tap shows ([`filter`]), what of their fields ([`fields`]), and how many. While nobody looks on, a request pays one branch for
//! it. While somebody does it never waits for them: what finds no room is left out and counted. The control thread begins and ends
//! taps and takes what they show ([`Taps::set`], [`Tap::new`]); `forward` calls the rest on the workers, with the record that the access log reads.

mod fields;
mod filter;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::UNIX_EPOCH;

use arc_swap::ArcSwap;
use http::HeaderMap;
use tokio::sync::mpsc;
use tulle_api::v1;

use self::fields::Fields;
use self::filter::Filter;
use super::access::Record;
use super::metrics::Direction;
use super::timestamp::rfc3339;
use super::trace::Digits;

/// Taps that run at the same time; one more is refused.
pub const MAX_TAPS: usize = 8;
/// What a tap may show in a second, whatever it asks for.
pub const MAX_PER_SECOND: u32 = 1000;
/// Bytes of a value that are shown.
const MAX_TEXT: usize = 512;

/// The taps of one proxy.
#[derive(Debug, Default)]
pub struct Taps {
    /// Spares requests all but one branch while nobody looks on.
    on: AtomicBool,
    were_on: AtomicBool,
    running: ArcSwap<Vec<Arc<Tap>>>,
    counts: Arc<Counts>,
}

/// What became of all that taps were to show.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) shown: AtomicU64,
    pub(super) over_rate: AtomicU64,
    pub(super) dropped: AtomicU64,
}

/// One tap.
#[derive(Debug)]
pub struct Tap {
    id: u64,
    filter: Filter,
    fields: Fields,
    rate: Rate,
    queue: mpsc::Sender<Shown>,
    missed: Missed,
    counts: Arc<Counts>,
}

/// A request that a tap shows.
#[derive(Debug)]
pub struct Shown {
    /// The tap's.
    pub tap: u64,
    /// What is told.
    pub request: v1::TappedRequest,
}

/// What a tap left out.
#[derive(Debug, Default)]
struct Missed {
    over_rate: AtomicU64,
    dropped: AtomicU64,
}

/// So many a second, by the seconds of the clock.
#[derive(Debug)]
struct Rate {
    per_second: u32,
    /// A second, and how many there were in it.
    window: AtomicU64,
}

/// A request that somebody looks on at.
#[derive(Debug)]
pub struct Watched(Vec<Watch>);

#[derive(Debug)]
struct Watch {
    tap: Arc<Tap>,
    request: Vec<v1::TappedField>,
    response: Vec<v1::TappedField>,
}

/// Why a tap cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {wrong}")]
pub struct InvalidTap {
    field: &'static str,
    wrong: String,
}

// === impl Taps ===

impl Taps {
    /// From now on these.
    pub fn set(&self, taps: Vec<Arc<Tap>>) {
        let on = !taps.is_empty();
        self.running.store(Arc::new(taps));
        self.on.store(on, Relaxed);
        self.were_on.fetch_or(on, Relaxed);
    }

    /// How many run.
    pub fn count(&self) -> usize {
        self.running.load().len()
    }

    /// What became of what they were to show; `None` if there never was a tap.
    pub(super) fn counts(&self) -> Option<&Counts> {
        self.were_on.load(Relaxed).then_some(&*self.counts)
    }

    /// A request has begun: who looks on at it, if anybody may.
    #[inline]
    pub fn begin<B>(&self, direction: Direction, request: &http::Request<B>) -> Option<Box<Watched>> {
        if self.on.load(Relaxed) { self.watch(direction, request) } else { None }
    }

    #[cold]
    fn watch<B>(&self, direction: Direction, request: &http::Request<B>) -> Option<Box<Watched>> {
        let running = self.running.load();
        let may = running
            .iter()
            .filter(|tap| tap.filter.may(direction, request.method().as_str(), request.uri().path()));
        let watches: Vec<Watch> = may
            .map(|tap| Watch {
                tap: Arc::clone(tap),
                request: tap.fields.read(request.headers()),
                response: Vec::new(),
            })
            .collect();
        (!watches.is_empty()).then(|| Box::new(Watched(watches)))
    }

    /// A connection that carried no requests is over, or was refused.
    #[inline]
    pub fn connection(&self, record: &Record<'_>) {
        if self.on.load(Relaxed) {
            self.running.load().iter().for_each(|tap| tap.show(record, Vec::new(), Vec::new()));
        }
    }
}

// === impl Tap ===

impl Tap {
    /// What it shows goes to `queue`.
    ///
    /// # Errors
    /// The control plane asked for what this proxy does not know.
    pub fn new(said: &v1::Tap, taps: &Taps, queue: mpsc::Sender<Shown>) -> Result<Self, InvalidTap> {
        let filter = said.filter.as_ref().map_or_else(|| Ok(Filter::default()), Filter::new)?;
        Ok(Self {
            id: said.id,
            filter,
            fields: Fields::new(&said.fields)?,
            rate: Rate { per_second: said.per_second.clamp(1, MAX_PER_SECOND), window: AtomicU64::new(0) },
            queue,
            missed: Missed::default(),
            counts: Arc::clone(&taps.counts),
        })
    }

    /// How many were over the rate, and for how many there was no room, since this was asked last.
    pub fn take_missed(&self) -> (u64, u64) {
        (self.missed.over_rate.swap(0, Relaxed), self.missed.dropped.swap(0, Relaxed))
    }

    fn show(&self, record: &Record<'_>, request: Vec<v1::TappedField>, response: Vec<v1::TappedField>) {
        if !self.filter.takes(record) {
            return;
        }
        let second = record.time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if !self.rate.admits(second) {
            count(&self.counts.over_rate, &self.missed.over_rate);
            return;
        }
        let Ok(place) = self.queue.try_reserve() else {
            count(&self.counts.dropped, &self.missed.dropped);
            return;
        };
        self.counts.shown.fetch_add(1, Relaxed);
        place.send(Shown { tap: self.id, request: told(record, request, response) });
    }
}

fn count(all: &AtomicU64, own: &AtomicU64) {
    all.fetch_add(1, Relaxed);
    own.fetch_add(1, Relaxed);
}

// === impl Rate ===

impl Rate {
    fn admits(&self, second: u64) -> bool {
        // What a second has beyond 32 bits tells none of ours apart.
        let second = second << 32;
        let admitted = self.window.fetch_update(Relaxed, Relaxed, |window| {
            let (at, count) = (window >> 32 << 32, window & u64::from(u32::MAX));
            match at == second {
                true => (count < self.per_second.into()).then_some(window + 1),
                false => Some(second | 1),
            }
        });
        admitted.is_ok()
    }
}

// === impl Watched ===

impl Watched {
    /// Its answer begins, with these fields.
    pub fn answered(&mut self, fields: &HeaderMap) {
        for watch in &mut self.0 {
            watch.response = watch.tap.fields.read(fields);
        }
    }

    /// It is over.
    pub fn end(self, record: &Record<'_>) {
        for Watch { tap, request, response } in self.0 {
            tap.show(record, request, response);
        }
    }
}

// === impl InvalidTap ===

impl InvalidTap {
    fn new(field: &'static str, wrong: impl Into<String>) -> Self {
        Self { field, wrong: wrong.into() }
    }
}

fn cut(text: &str) -> String {
    text[..text.floor_char_boundary(MAX_TEXT)].to_owned()
}

fn told(
    record: &Record<'_>,
    request_fields: Vec<v1::TappedField>,
    response_fields: Vec<v1::TappedField>,
) -> v1::TappedRequest {
    let nanos = |duration: std::time::Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    let address =
        |address: Option<std::net::SocketAddr>| address.map_or_else(String::new, |at| at.to_string());
    v1::TappedRequest {
        timestamp: rfc3339(record.time),
        inbound: record.direction == Direction::Inbound,
        protocol: record.protocol.to_owned(),
        method: cut(record.method),
        path: cut(record.path_alone()),
        authority: cut(record.authority),
        status: record.status.unwrap_or_default().into(),
        grpc_status: record.grpc_status,
        reason: record.reason.map_or("", |reason| reason.code()).to_owned(),
        by: cut(record.by),
        detail: cut(record.detail),
        trace_id: record.trace_id.map_or_else(String::new, |id| Digits::from(id).as_str().to_owned()),
        client: address(record.client),
        source: cut(record.source),
        destination: cut(record.destination),
        service: cut(record.service),
        route: cut(record.route),
        backend: cut(record.backend),
        endpoint: address(record.endpoint),
        rule: cut(record.rule),
        tls: record.tls.as_str().to_owned(),
        bytes_in: record.bytes_in,
        bytes_out: record.bytes_out,
        duration_ns: nanos(record.duration),
        processing_ns: record.processing.map(nanos),
        attempts: record.attempts,
        connection: record.connection,
        request_fields,
        response_fields,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    fn tap(taps: &Taps, said: &v1::Tap, room: usize) -> (Arc<Tap>, mpsc::Receiver<Shown>) {
        let (queue, shown) = mpsc::channel(room);
        let tap = Arc::new(Tap::new(said, taps, queue).unwrap());
        taps.set(vec![Arc::clone(&tap)]);
        (tap, shown)
    }

    fn request(method: &str, path: &str) -> http::Request<()> {
        http::Request::builder().method(method).uri(path).header("x-a", "b").body(()).unwrap()
    }

    fn record(second: u64) -> Record<'static> {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Record { time, method: "GET", path: "/a?token=secret", status: Some(200), ..Record::default() }
    }

    #[test]
    fn nothing_is_watched_while_nobody_looks_on_and_everything_that_fits_while_somebody_does() {
        let taps = Taps::default();
        assert!(taps.begin(Direction::Inbound, &request("GET", "/a")).is_none());
        assert!(taps.counts().is_none());
        let filter = v1::TapFilter { path_prefix: "/a".to_owned(), ..v1::TapFilter::default() };
        let fields = vec!["x-a".to_owned()];
        let said = v1::Tap { id: 7, per_second: 5, filter: Some(filter), fields, ..v1::Tap::default() };
        let (_tap, mut shown) = tap(&taps, &said, 8);
        assert!(taps.begin(Direction::Inbound, &request("GET", "/b")).is_none(), "another path");
        let mut watched = taps.begin(Direction::Inbound, &request("GET", "/a?token=secret")).unwrap();
        watched.answered(&HeaderMap::new());
        watched.end(&record(1));
        let Shown { tap, request: told } = shown.try_recv().unwrap();
        assert_eq!((tap, &*told.path, told.status, told.inbound), (7, "/a", 200, true));
        assert_eq!(told.request_fields, [v1::TappedField { name: "x-a".to_owned(), value: "b".to_owned() }]);
        assert!(told.response_fields.is_empty() && told.timestamp.starts_with("1970-01-01T00:00:01"));
        taps.set(Vec::new());
        assert!(taps.begin(Direction::Inbound, &request("GET", "/a")).is_none());
        assert_eq!(taps.counts().unwrap().shown.load(Relaxed), 1);
    }

    #[test]
    fn what_is_over_the_rate_or_finds_no_room_is_left_out_and_counted() {
        let taps = Taps::default();
        let (tap, mut shown) = tap(&taps, &v1::Tap { per_second: 3, ..v1::Tap::default() }, 4);
        for second in [1, 1, 1, 1, 1, 2, 2, 2, 2] {
            taps.connection(&record(second));
        }
        // Of nine, two and then one were over the rate, and of the second second's three two found no room.
        assert_eq!(tap.take_missed(), (3, 2));
        assert_eq!(tap.take_missed(), (0, 0));
        assert_eq!(std::iter::from_fn(|| shown.try_recv().ok()).count(), 4);
        let counts = taps.counts().unwrap();
        let read = |count: &AtomicU64| count.load(Relaxed);
        assert_eq!([&counts.shown, &counts.over_rate, &counts.dropped].map(read), [4, 3, 2]);
        // Nobody reads any more, and nobody minds.
        drop(shown);
        taps.connection(&record(3));
        assert_eq!(tap.take_missed(), (0, 1));
    }

    #[test]
    fn a_rate_is_within_bounds_whatever_is_asked_for() {
        let taps = Taps::default();
        for (asked, expected) in [(0, 1), (7, 7), (u32::MAX, MAX_PER_SECOND)] {
            let (tap, _shown) = tap(&taps, &v1::Tap { per_second: asked, ..v1::Tap::default() }, 1);
            assert_eq!((0..2000).filter(|_| tap.rate.admits(9)).count(), expected as usize);
            assert!(tap.rate.admits(10), "another second");
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let long = "ß".repeat(2000);
        let told = told(&Record { path: &format!("/{long}"), ..Record::default() }, Vec::new(), Vec::new());
        assert_eq!(told.path.len(), MAX_TEXT - 1);
    }
}
