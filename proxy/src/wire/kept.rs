//! A body that may have to be sent again.
//!
//! What passes of it is kept while it is short and its [`Spare`] lives. From the spare comes a new reader, which begins
//! with what was kept and goes on where the one before has stopped; that one can read no more. All readers share one body, so that the
//! thousandth weighs no more than the second; and what has broken off never ends well for any of them.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;

use super::body::{Body, BodyError};

/// The means to have a body a second time, from its beginning.
#[derive(Debug)]
pub enum Spare {
    /// There is no body.
    Empty,
    /// It is too long to be kept.
    Lost,
    /// All of it has come already.
    Full(Bytes),
    Kept(Kept),
}

/// What is shared with the body's reader.
#[derive(Debug)]
pub struct Kept(Arc<Mutex<Shared>>);

#[derive(Debug)]
struct Shared {
    /// `None`: too much has passed.
    passed: Option<Vec<Part>>,
    bytes: u64,
    /// At most so many bytes are kept.
    limit: u64,
    /// The number of the one reader that may read.
    reader: u64,
    /// Of that reader, if it waits.
    waits: Option<Waker>,
    /// The rest broke off. It says so once only, and then that it is at its end.
    broken: bool,
    rest: Body,
}

#[derive(Clone, Debug)]
enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// One of those that may read the body, one after the other.
#[derive(Debug)]
pub(super) struct Reader {
    shared: Arc<Mutex<Shared>>,
    number: u64,
    /// How many of the kept parts it has read.
    read: usize,
}

// === impl Spare ===

impl Spare {
    /// How much of the body is kept, which can be had from its beginning; `None`: it cannot. That may change while it is being read.
    pub fn bytes(&self) -> Option<u64> {
        match self {
            Self::Empty => Some(0),
            Self::Full(bytes) => Some(bytes.len() as u64),
            Self::Lost => None,
            Self::Kept(Kept(shared)) => {
                let shared = shared.lock();
                shared.passed.is_some().then_some(shared.bytes)
            }
        }
    }

    /// The body from its beginning; `None` if that is lost, or the body has broken off. Whoever still reads it is told so.
    pub fn body(self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::empty()),
            Self::Lost => None,
            Self::Full(bytes) => Some(Body::full(bytes)),
            Self::Kept(Kept(shared)) => {
                let (number, waits) = {
                    let mut shared = shared.lock();
                    shared.passed.as_ref()?;
                    shared.reader += 1;
                    (shared.reader, shared.waits.take())
                };
                if let Some(waker) = waits {
                    waker.wake();
                }
                Some(Body::reader(Reader { shared, number, read: 0 }))
            }
        }
    }
}

// === impl Reader ===

impl Reader {
    /// Of `body`, of which `come` was taken already.
    pub(super) fn first(body: Body, come: Option<Frame<Bytes>>, limit: u64) -> (Self, Spare) {
        let mut shared = Shared {
            passed: Some(Vec::new()),
            bytes: 0,
            limit,
            reader: 0,
            waits: None,
            broken: false,
            rest: body,
        };
        if let Some(frame) = come {
            // It is to be read in any case.
            shared.limit = u64::MAX;
            shared.keep(&frame);
            shared.limit = limit;
        }
        let is_lost = shared.bytes > limit;
        let shared = Arc::new(Mutex::new(shared));
        let spare = if is_lost { Spare::Lost } else { Spare::Kept(Kept(Arc::clone(&shared))) };
        (Self { shared, number: 0, read: 0 }, spare)
    }

    /// The means to have once more what this one has all of still; `None`: it has not.
    pub(super) fn spare(&self, limit: u64) -> Option<Spare> {
        {
            let mut shared = self.shared.lock();
            let has_all = self.read == 0 && self.number == shared.reader && shared.passed.is_some();
            let has_all = has_all && shared.bytes <= limit;
            if !has_all {
                return None;
            }
            shared.limit = limit;
        }
        Some(Spare::Kept(Kept(Arc::clone(&self.shared))))
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // Nobody holds the spare any more.
        let alone = Arc::strong_count(&self.shared) == 1;
        let mut shared = self.shared.lock();
        if self.number != shared.reader {
            return Poll::Ready(Some(Err(BodyError::new("the request was sent elsewhere"))));
        }
        if let Some(part) = shared.passed.as_ref().and_then(|passed| passed.get(self.read)) {
            self.read += 1;
            return Poll::Ready(Some(Ok(part.clone().into())));
        }
        if shared.broken {
            return Poll::Ready(Some(Err(BodyError::new("it had broken off before"))));
        }
        let Poll::Ready(frame) = std::pin::Pin::new(&mut shared.rest).poll_frame(cx) else {
            shared.waits = Some(cx.waker().clone());
            return Poll::Pending;
        };
        if alone {
            shared.passed = None;
        }
        match &frame {
            Some(Ok(frame)) => {
                shared.keep(frame);
                self.read += 1;
            }
            Some(Err(_)) => {
                shared.passed = None;
                shared.broken = true;
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let shared = self.shared.lock();
        !shared.broken && self.ahead(&shared).is_empty() && shared.rest.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let shared = self.shared.lock();
        let kept: u64 = self.ahead(&shared).iter().map(Part::bytes).sum();
        let rest = shared.rest.size_hint();
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower() + kept);
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint
    }

    /// What was kept and is still to be read.
    fn ahead<'a>(&self, shared: &'a Shared) -> &'a [Part] {
        shared.passed.as_deref().and_then(|passed| passed.get(self.read..)).unwrap_or_default()
    }
}

// === impl Shared ===

impl Shared {
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let part = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => Part::Data(data.clone()),
            (None, Some(trailers)) => Part::Trailers(trailers.clone()),
            (None, None) => return,
        };
        self.bytes += part.bytes();
        match &mut self.passed {
            Some(passed) if self.bytes <= self.limit => passed.push(part),
            passed => *passed = None,
        }
    }
}

// === impl Part ===

impl Part {
    fn bytes(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Trailers(_) => 0,
        }
    }
}

impl From<Part> for Frame<Bytes> {
    fn from(part: Part) -> Self {
        match part {
            Part::Data(data) => Self::data(data),
            Part::Trailers(trailers) => Self::trailers(trailers),
        }
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const LIMIT: u64 = 16 * 1024;

    fn kept(mut body: Body) -> (Body, Spare) {
        let spare = body.keep(LIMIT);
        (body, spare)
    }

    #[tokio::test]
    async fn a_short_body_can_be_had_again_and_only_one_reads_it() {
        let (mut first, spare) = kept(Body::full(Bytes::from_static(b"hello")));
        assert_eq!(first.size_hint().exact(), Some(5));
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
        assert!(first.is_end_stream());
        let second = spare.body().expect("it is kept");
        assert_eq!(second.size_hint().exact(), Some(5));
        assert!(first.frame().await.unwrap().is_err());
        assert_eq!(second.collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn what_is_had_again_can_be_had_yet_again() {
        let (mut first, spare) = kept(Body::full(Bytes::from_static(b"hello")));
        first.frame().await.unwrap().unwrap();
        let (mut second, spare) = kept(spare.body().expect("it is kept"));
        second.frame().await.unwrap().unwrap();
        let (third, spare) = kept(spare.body().expect("it is kept"));
        assert_eq!(third.size_hint().exact(), Some(5));
        drop(third);
        assert_eq!(spare.body().unwrap().collect().await.unwrap().to_bytes(), "hello");
    }

    /// On the stack of a test's thread, which layers of readers would overflow.
    #[tokio::test]
    async fn the_hundred_thousandth_reader_weighs_no_more_than_the_second() {
        let mut body = Body::full(Bytes::from_static(b"hello"));
        for round in 0..100_000 {
            let (mut reader, spare) = kept(body);
            assert_eq!(reader.size_hint().exact(), Some(5));
            body = if round % 2 == 0 {
                assert_eq!(reader.frame().await.unwrap().unwrap().into_data().unwrap(), "hello");
                assert!(reader.frame().await.is_none());
                spare.body().expect("it is kept")
            } else {
                // No connection: nothing was read, and the reader itself comes back.
                reader
            };
        }
        assert_eq!(body.collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn what_has_broken_off_ends_well_for_nobody() {
        // Of what is dropped, a copy breaks off, says so once, and then is at its end.
        let broken = || Body::full(Bytes::from_static(b"hello")).copied().1;
        let mut without = broken();
        assert!(without.frame().await.unwrap().is_err() && without.is_end_stream());
        let (mut first, spare) = kept(broken());
        assert!(first.frame().await.unwrap().is_err());
        assert!(spare.body().is_none());
        let (mut again, spare) = kept(first);
        assert!(!again.is_end_stream());
        assert!(again.frame().await.unwrap().is_err() && again.frame().await.unwrap().is_err());
        assert!(spare.body().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_hears_that_it_can_read_no_more() {
        // A copy of what nobody reads waits.
        let (_source, copy) = Body::full(Bytes::from_static(b"hello")).copied();
        let (mut first, spare) = kept(copy);
        let upload = tokio::spawn(async move { first.frame().await });
        tokio::task::yield_now().await;
        let mut second = spare.body().expect("nothing of it has passed");
        // It waits in the first one's place.
        assert!(futures_util::poll!(second.frame()).is_pending());
        let told = tokio::time::timeout(std::time::Duration::from_secs(60), upload).await;
        assert!(told.expect("it is woken").unwrap().unwrap().is_err());
    }

    #[tokio::test]
    async fn trailers_come_again_too() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, http::HeaderValue::from_static("a"))]);
        let (first, spare) = kept(Body::trailers(trailers.clone()));
        assert_eq!(first.collect().await.unwrap().trailers(), Some(&trailers));
        let again = spare.body().expect("they are kept").collect().await.unwrap();
        assert_eq!(again.trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn a_body_that_nobody_has_touched_goes_to_the_second_reader_as_it_is() {
        let (first, spare) = kept(Body::full(Bytes::from_static(b"hello")));
        drop(first);
        assert_eq!(spare.body().unwrap().collect().await.unwrap().to_bytes(), "hello");
    }

    #[tokio::test]
    async fn a_long_body_is_not_kept_and_passes_all_the_same() {
        let long = Bytes::from(vec![7; 20_000]);
        let (first, spare) = kept(Body::full(long.clone()));
        assert!(spare.body().is_none());
        assert_eq!(first.collect().await.unwrap().to_bytes(), long);
        // Of unknown length: found out on the way.
        let (reader, _spare) = Reader::first(Body::empty(), None, LIMIT);
        let mut shared = reader.shared.lock();
        shared.keep(&Frame::data(long));
        assert!(shared.passed.is_none());
    }

    #[tokio::test]
    async fn nothing_is_kept_once_nobody_can_ask_for_it() {
        let (Kept(shared), mut first) = match kept(Body::full(Bytes::from_static(b"hello"))) {
            (first, Spare::Kept(kept)) => (kept, first),
            other => panic!("{other:?}"),
        };
        let weak = Arc::downgrade(&shared);
        drop(shared);
        first.frame().await.unwrap().unwrap();
        assert!(weak.upgrade().unwrap().lock().passed.is_none());
    }

    #[test]
    fn without_a_body_there_is_nothing_to_lose() {
        let (_, spare) = kept(Body::empty());
        assert!(spare.body().unwrap().is_end_stream());
    }
}
