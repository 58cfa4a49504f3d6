//! A message's body as it comes from a stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};

/// The data and trailers of one stream. Its window is opened again by what is taken.
#[derive(Debug)]
pub struct Incoming {
    stream: RecvStream,
    /// What is still to come, as far as `content-length` says; `h2` holds the peer to it.
    length: Option<u64>,
    /// There are only trailers left.
    data_over: bool,
}

// === impl Incoming ===

impl Incoming {
    /// Of a message with these fields.
    pub(super) fn new(stream: RecvStream, fields: &HeaderMap) -> Self {
        let stated = fields.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = stated.and_then(|value| value.parse().ok());
        Self { stream, length, data_over: false }
    }

    pub(in crate::wire) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_over {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails when the stream is over, and then it does not matter.
                    drop(self.stream.flow_control().release_capacity(data.len()));
                    self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_over = true,
            }
        }
        self.stream.poll_trailers(cx).map(|trailers| trailers.transpose().map(|all| all.map(Frame::trailers)))
    }

    pub(in crate::wire) fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    pub(in crate::wire) fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}
