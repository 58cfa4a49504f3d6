//! A body some of whose trailers are taken out as they pass.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::body::{Body, BodyError};

/// The body itself.
pub(super) struct Trimmed {
    body: Body,
    trim: Box<dyn Fn(&mut HeaderMap) + Send>,
}

// === impl Trimmed ===

impl Trimmed {
    pub(super) fn new(body: Body, trim: impl Fn(&mut HeaderMap) + Send + 'static) -> Self {
        Self { body, trim: Box::new(trim) }
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
        {
            (self.trim)(trailers);
        }
        Poll::Ready(frame)
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Trimmed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trimmed").field("body", &self.body).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn what_is_taken_out_does_not_pass_and_all_else_does() {
        let line = |name, value| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value));
        let trailers = HeaderMap::from_iter([line("x-user", "eve"), line("x-sum", "1")]);
        let mut body = Body::trailers(trailers);
        body.trimmed_by(|trailers| drop(trailers.remove("x-user")));
        let passed = body.collect().await.unwrap();
        assert_eq!(passed.trailers().map(HeaderMap::len), Some(1));
        assert!(passed.trailers().is_some_and(|trailers| trailers.contains_key("x-sum")));

        let mut body = Body::full(Bytes::from_static(b"abc"));
        body.trimmed_by(HeaderMap::clear);
        assert_eq!(body.size_hint().exact(), Some(3));
        // What is looked at before it passes is trimmed all the same.
        assert!(body.read_ahead(5).await.unwrap().is_whole);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
    }
}
