//! A message's body as it comes from a stream.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};
use tokio::runtime::Handle;

/// The data and trailers of one stream. Its window is opened again by what is taken.
#[derive(Debug)]
pub struct Incoming {
    /// `None`: it is being dropped.
    stream: Option<RecvStream>,
    /// What is still to come, as far as `content-length` says; `h2` holds the peer to it.
    length: Option<u64>,
    /// There are only trailers left.
    data_over: bool,
    /// It is a request's.
    lingers: bool,
}

/// What is read of a request's body that nobody wants, and how long its client may go on sending it.
pub(super) const LEFTOVER: usize = 64 * 1024;
const LINGER: Duration = Duration::from_secs(2);

// === impl Incoming ===

impl Incoming {
    /// Of a response with these fields.
    pub(super) fn of_response(stream: RecvStream, fields: &HeaderMap) -> Self {
        Self::new(stream, fields, false)
    }

    /// Of a request with these fields.
    pub(super) fn of_request(stream: RecvStream, fields: &HeaderMap) -> Self {
        Self::new(stream, fields, true)
    }

    fn new(stream: RecvStream, fields: &HeaderMap, lingers: bool) -> Self {
        let stated = fields.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        let length = stated.and_then(|value| value.parse().ok());
        Self { stream: Some(stream), length, data_over: false, lingers }
    }

    pub(in crate::wire) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        if !self.data_over {
            match ready!(stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    release(stream, data.len());
                    self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_over = true,
            }
        }
        stream.poll_trailers(cx).map(|trailers| trailers.transpose().map(|all| all.map(Frame::trailers)))
    }

    /// Whether data is here that nobody has taken yet.
    pub(in crate::wire) fn has_arrived(&mut self) -> bool {
        // What is taken is released at once.
        self.stream.as_mut().is_some_and(|stream| stream.flow_control().used_capacity() > 0)
    }

    pub(in crate::wire) fn is_end_stream(&self) -> bool {
        self.stream.as_ref().is_none_or(RecvStream::is_end_stream)
    }

    pub(in crate::wire) fn size_hint(&self) -> SizeHint {
        match self.length {
            Some(length) => SizeHint::with_exact(length),
            None if self.is_end_stream() => SizeHint::with_exact(0),
            None => SizeHint::default(),
        }
    }
}

impl Drop for Incoming {
    /// Nobody wants what is left, and once nobody has the stream, its client is told so by a reset (RFC 9113 §8.1). Right behind an answer
    /// that has made some lose the answer (curl 7.88), so that a client may go on for a while.
    fn drop(&mut self) {
        if self.lingers
            && let Some(stream) = self.stream.take().filter(|stream| !stream.is_end_stream())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(LINGER, linger(stream)));
        }
    }
}

/// Reads a little, and after that no more than the window allows, until the client has ended or reset the stream.
async fn linger(mut stream: RecvStream) {
    let mut left = LEFTOVER;
    while let Some(Ok(data)) = stream.data().await {
        if let Some(less) = left.checked_sub(data.len()) {
            left = less;
            release(&mut stream, data.len());
        }
    }
}

fn release(stream: &mut RecvStream, bytes: usize) {
    // Fails when the stream is over, and then it does not matter.
    drop(stream.flow_control().release_capacity(bytes));
}
