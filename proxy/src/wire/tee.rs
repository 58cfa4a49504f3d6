//! A copy of a body, made while that passes.
//!
//! The body itself never waits for its copy: what the copy's reader has not taken yet is kept, up to [`LIMIT`] bytes, and beyond that
//! the copy breaks off. So it does where the body does.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use tokio::sync::mpsc;

use super::body::{Body, BodyError};

/// At most so many bytes wait for a copy's reader, each piece counted with what it costs itself.
const LIMIT: usize = 64 * 1024;
const PIECE: usize = size_of::<Piece>();

/// A body of which a copy is made.
#[derive(Debug)]
pub(super) struct Copied {
    body: Body,
    /// `None`: the copy is whole, or has broken off.
    copy: Option<mpsc::UnboundedSender<Piece>>,
    waiting: Arc<AtomicUsize>,
}

/// The copy.
#[derive(Debug)]
pub(super) struct Copy {
    pieces: mpsc::UnboundedReceiver<Piece>,
    waiting: Arc<AtomicUsize>,
    left: SizeHint,
    /// Its length is known beforehand, so that it has ended with its last byte.
    is_sized: bool,
    ended: bool,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

/// Both, of a body.
pub(super) fn copied(body: Body) -> (Copied, Copy) {
    let (copy, pieces) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    let left = body.size_hint();
    let is_sized = left.exact().is_some_and(|bytes| bytes > 0);
    (
        Copied { body, copy: Some(copy), waiting: Arc::clone(&waiting) },
        Copy { pieces, waiting, left, is_sized, ended: false },
    )
}

// === impl Piece ===

impl Piece {
    fn weight(&self) -> usize {
        PIECE
            + match self {
                Self::Data(data) => data.len(),
                Self::Trailers(_) | Self::End => 0,
            }
    }
}

// === impl Copied ===

impl Copied {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let piece = match &frame {
            None => Some(Piece::End),
            Some(Err(_)) => None,
            Some(Ok(frame)) => match (frame.data_ref(), frame.trailers_ref()) {
                (Some(data), _) => Some(Piece::Data(data.clone())),
                (None, Some(trailers)) => Some(Piece::Trailers(trailers.clone())),
                (None, None) => None,
            },
        };
        self.pass(piece);
        // Whoever reads it need not ask again.
        if self.copy.is_some() && self.body.is_end_stream() {
            self.pass(Some(Piece::End));
        }
        Poll::Ready(frame)
    }

    fn pass(&mut self, piece: Option<Piece>) {
        let Some(copy) = self.copy.take() else { return };
        let Some(piece) = piece else { return };
        let (bytes, is_end) = (piece.weight(), matches!(piece, Piece::End));
        let waiting = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let passed = (is_end || waiting <= LIMIT) && copy.send(piece).is_ok();
        if passed && !is_end {
            self.copy = Some(copy);
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Copy ===

impl Copy {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_recv(cx));
        self.waiting.fetch_sub(piece.as_ref().map_or(0, Piece::weight), Ordering::Relaxed);
        let frame = match piece {
            Some(Piece::Data(data)) => {
                self.took(data.len() as u64);
                Ok(Frame::data(data))
            }
            Some(Piece::Trailers(trailers)) => Ok(Frame::trailers(trailers)),
            Some(Piece::End) => {
                self.ended = true;
                return Poll::Ready(None);
            }
            None => {
                self.ended = true;
                Err(BodyError::new("the body that it is copied from broke off, or was faster"))
            }
        };
        Poll::Ready(Some(frame))
    }

    fn took(&mut self, bytes: u64) {
        let (lower, upper) = (self.left.lower(), self.left.upper());
        let mut left = SizeHint::new();
        left.set_lower(lower.saturating_sub(bytes));
        if let Some(upper) = upper {
            left.set_upper(upper.saturating_sub(bytes));
        }
        self.left = left;
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ended || self.is_sized && self.left.exact() == Some(0)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.left
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::super::body::Kind;
    use super::*;

    async fn next(body: &mut Body) -> Option<Result<Bytes, ()>> {
        let frame = body.frame().await?;
        Some(frame.map_err(drop).map(|frame| frame.into_data().unwrap_or_default()))
    }

    #[tokio::test]
    async fn a_copy_has_what_passes_and_its_length() {
        let (mut body, mut copy) = Body::full(Bytes::from_static(b"abc")).copied();
        assert_eq!(copy.size_hint().exact(), Some(3));
        assert_eq!(next(&mut body).await, Some(Ok(Bytes::from_static(b"abc"))));
        assert_eq!(next(&mut copy).await, Some(Ok(Bytes::from_static(b"abc"))));
        assert!(copy.is_end_stream());
        let (body, copy) = Body::empty().copied();
        assert!(body.is_end_stream() && copy.is_end_stream());
    }

    #[tokio::test]
    async fn trailers_are_copied() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "a".parse().unwrap())]);
        let (body, copy) = Body::trailers(trailers.clone()).copied();
        assert_eq!(body.collect().await.unwrap().trailers(), Some(&trailers));
        assert_eq!(copy.collect().await.unwrap().trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn a_copy_that_nobody_reads_in_time_breaks_off_and_the_body_does_not() {
        let (mut body, mut copy) = Body::full(Bytes::from(vec![0; LIMIT + 1])).copied();
        assert_eq!(next(&mut body).await.map(|data| data.unwrap().len()), Some(LIMIT + 1));
        assert_eq!(next(&mut copy).await, Some(Err(())));
        assert_eq!(next(&mut copy).await, None);
    }

    #[tokio::test]
    async fn many_small_pieces_are_copied_and_those_without_end_break_off() {
        let copy = |pieces| {
            let (mut body, copy) = copied(Body::empty());
            for _ in 0..pieces {
                body.pass(Some(Piece::Data(Bytes::from_static(b"a"))));
            }
            body.pass(Some(Piece::End));
            Body::of(Kind::Copy(Box::new(copy))).collect()
        };
        assert_eq!(copy(500).await.unwrap().to_bytes().len(), 500);
        assert!(copy(LIMIT).await.is_err(), "what waits is bounded, however small the pieces");
        // What was read makes room.
        let (mut body, mut copy) = copied(Body::empty());
        for _ in 0..LIMIT {
            body.pass(Some(Piece::Data(Bytes::from_static(b"a"))));
            assert!(std::future::poll_fn(|cx| copy.poll_frame(cx)).await.unwrap().is_ok());
        }
    }

    #[tokio::test]
    async fn a_copy_of_what_is_dropped_breaks_off_and_of_what_is_not_wanted_is_no_matter() {
        let (body, mut copy) = Body::full(Bytes::from_static(b"abc")).copied();
        drop(body);
        assert_eq!(next(&mut copy).await, Some(Err(())));
        let (mut body, copy) = Body::full(Bytes::from_static(b"abc")).copied();
        drop(copy);
        assert_eq!(next(&mut body).await, Some(Ok(Bytes::from_static(b"abc"))));
    }
}
