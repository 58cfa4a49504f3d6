//! A body of which something is looked at before it passes.
//!
//! What was read ahead is kept as one piece, however small those were in which it came, and passes before the rest.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::body::{Body, BodyError};

/// What is known of a body's beginning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beginning {
    /// No more than was asked for.
    pub data: Bytes,
    /// There is nothing else.
    pub is_whole: bool,
}

/// The body itself.
#[derive(Debug)]
pub(super) struct Ahead {
    data: Bytes,
    /// They came with what was read.
    trailers: Option<HeaderMap>,
    rest: Body,
}

/// Reads as much of `body` as tells its first `limit` bytes, and whether there are more.
///
/// # Errors
/// The body's own; then it is lost.
pub(super) async fn read(mut body: Body, limit: usize) -> Result<(Ahead, Beginning), BodyError> {
    let (mut data, mut trailers, mut ended) = (BytesMut::new(), None, false);
    while !ended && data.len() <= limit && !body.is_end_stream() {
        match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => ended = true,
            Some(frame) => match frame?.into_data() {
                Ok(piece) => data.extend_from_slice(&piece),
                Err(frame) => {
                    trailers = frame.into_trailers().ok();
                    ended = true;
                }
            },
        }
    }
    let data = data.freeze();
    let beginning = Beginning { data: data.slice(..data.len().min(limit)), is_whole: data.len() <= limit };
    Ok((Ahead { data, trailers, rest: body }, beginning))
}

// === impl Ahead ===

impl Ahead {
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.data)))));
        }
        match self.trailers.take() {
            Some(trailers) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            None => Pin::new(&mut self.rest).poll_frame(cx),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none() && self.rest.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        let (read, rest) = (self.data.len() as u64, self.rest.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(read));
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper.saturating_add(read));
        }
        hint
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn the_beginning_is_told_and_all_of_it_passes() {
        for (limit, told, is_whole) in [(0, "", false), (2, "ab", false), (3, "abc", true), (9, "abc", true)]
        {
            let mut body = Body::full(Bytes::from_static(b"abc"));
            let beginning = body.read_ahead(limit).await.unwrap();
            assert_eq!(
                beginning,
                Beginning { data: Bytes::from_static(told.as_bytes()), is_whole },
                "{limit}"
            );
            assert_eq!(body.size_hint().exact(), Some(3), "{limit}");
            assert!(!body.is_end_stream());
            assert_eq!(body.collect().await.unwrap().to_bytes(), "abc", "{limit}");
        }
        let mut body = Body::empty();
        let beginning = body.read_ahead(5).await.unwrap();
        assert_eq!(beginning, Beginning { data: Bytes::new(), is_whole: true });
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn trailers_pass_too() {
        let trailers = HeaderMap::from_iter([(http::header::ETAG, "a".parse().unwrap())]);
        let mut body = Body::trailers(trailers.clone());
        assert!(body.read_ahead(5).await.unwrap().is_whole);
        assert!(!body.is_end_stream());
        assert_eq!(body.collect().await.unwrap().trailers(), Some(&trailers));
    }

    #[tokio::test]
    async fn what_is_kept_to_be_sent_again_can_be_read_ahead() {
        let mut body = Body::full(Bytes::from_static(b"abc"));
        let spare = body.keep(10);
        assert!(body.read_ahead(10).await.unwrap().is_whole);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        let again = spare.body().unwrap();
        assert_eq!(again.collect().await.unwrap().to_bytes(), "abc");
    }
}
