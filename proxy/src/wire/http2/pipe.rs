//! A body on its way into a stream.

use std::error::Error as StdError;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};

use super::super::{Body, BodyError};

/// A body that can be told to break off also while nobody takes what it has given.
pub trait Outgoing: http_body::Body<Data = Bytes, Error = BodyError> + Unpin {
    /// Ready, with the reason, once nothing more of it may pass. Asked while the stream has no room.
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError>;
}

/// Sends a body as fast as the peer's windows and our send buffer allow.
#[derive(Debug)]
pub(super) struct Pipe<B> {
    body: B,
    stream: SendStream<Bytes>,
    /// Data that waits for room, and whether it is the last.
    waiting: Option<(Bytes, bool)>,
}

// === impl Outgoing ===

impl Outgoing for Body {
    fn poll_over(&mut self, _cx: &mut Context<'_>) -> Poll<BodyError> {
        Poll::Pending
    }
}

// === impl Pipe ===

impl<B: Outgoing> Pipe<B> {
    pub(super) fn new(body: B, stream: SendStream<Bytes>) -> Self {
        Self { body, stream, waiting: None }
    }

    /// Ready when all is sent, or the stream is over. A body that breaks off resets the stream.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Failures are those of the stream: who reads its other half, or waits for its end, learns of them.
        self.poll_sent(cx).map(drop)
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            // Asked first: while there is nothing to send, only this tells that nobody wants it any more, and a body that breaks off by
            // that is not what ended the stream.
            if let Poll::Ready(reset) = self.stream.poll_reset(cx) {
                return Poll::Ready(reset.map(drop));
            }
            if let Some((data, last)) = self.waiting.take() {
                if self.poll_room(cx)?.is_pending() {
                    self.waiting = Some((data, last));
                    let error = ready!(self.body.poll_over(cx));
                    return Poll::Ready(self.break_off(&error));
                }
                self.stream.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
            }
            let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let last = self.body.is_end_stream();
                        if data.is_empty() {
                            if last {
                                return Poll::Ready(self.stream.send_data(data, true));
                            }
                        } else {
                            // No more than one: what is asked for is kept from the connection's other streams.
                            self.stream.reserve_capacity(1);
                            self.waiting = Some((data, last));
                        }
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            return Poll::Ready(self.stream.send_trailers(trailers));
                        }
                    }
                },
                Some(Err(error)) => return Poll::Ready(self.break_off(&error)),
                None => return Poll::Ready(self.stream.send_data(Bytes::new(), true)),
            }
        }
    }

    fn break_off(&mut self, error: &BodyError) -> Result<(), h2::Error> {
        self.stream.send_reset(reason(error));
        Ok(())
    }

    /// Ready when the stream takes data.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        while self.stream.capacity() == 0 {
            match ready!(self.stream.poll_capacity(cx)) {
                Some(more) => drop(more?),
                // It no longer sends: the peer has reset it.
                None => return Poll::Ready(Err(Reason::CANCEL.into())),
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// Why the other half of the way broke off (RFC 9113 §7).
fn reason(error: &BodyError) -> Reason {
    // Two would say here what is not so: that all is well, and that the request was not looked at.
    let told = reset(error).filter(|told| !matches!(*told, Reason::NO_ERROR | Reason::REFUSED_STREAM));
    told.unwrap_or(Reason::INTERNAL_ERROR)
}

/// Whether a body broke off because its stream's peer has reset it, and nothing else of its connection.
pub fn is_reset(error: &BodyError) -> bool {
    reset(error).is_some()
}

fn reset(error: &BodyError) -> Option<Reason> {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            return error.reason().filter(|_| error.is_reset() && error.is_remote());
        }
        source = error.source();
    }
    None
}
