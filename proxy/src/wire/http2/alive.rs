//! Whether the peer is still there (RFC 9113 §6.7).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

use crate::io::Meter;

/// Asks the peer of one connection, when nothing has come from it for a while.
pub(super) struct Alive {
    pings: PingPong,
    every: Duration,
    next: Pin<Box<Sleep>>,
    meter: Arc<Meter>,
    /// Bytes that had come when `next` was set.
    received: u64,
    /// It has been asked, and nothing has come since.
    asked: bool,
}

// === impl Alive ===

impl Alive {
    /// `meter`: of what comes on the connection.
    pub(super) fn new(pings: PingPong, every: Duration, meter: Arc<Meter>) -> Self {
        let next = Box::pin(tokio::time::sleep(every));
        Self { pings, every, next, meter, received: 0, asked: false }
    }

    /// Ready when nothing has come for as long as it is asked again after, though it was asked. To be polled after the connection:
    /// what waits to be read has come.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.next.as_mut().poll(cx));
            let received = self.meter.received();
            if received != std::mem::replace(&mut self.received, received) {
                self.asked = false;
            } else if self.asked {
                return Poll::Ready(());
            } else {
                self.asked = true;
                // An answer that has come makes room for the next question. One that has not is still owed, and serves.
                let _ = self.pings.poll_pong(cx);
                drop(self.pings.send_ping(Ping::opaque()));
            }
            self.next.as_mut().reset(Instant::now() + self.every);
        }
    }
}
