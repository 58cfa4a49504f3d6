//! Whether the peer is still there (RFC 9113 §6.7).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep};

/// Asks the peer of one connection.
pub(super) struct Alive {
    pings: PingPong,
    every: Duration,
    next: Pin<Box<Sleep>>,
    /// It has been asked, and has not answered yet.
    asked: bool,
}

// === impl Alive ===

impl Alive {
    pub(super) fn new(pings: PingPong, every: Duration) -> Self {
        Self { pings, every, next: Box::pin(tokio::time::sleep(every)), asked: false }
    }

    /// Ready when it has answered no ping for as long as it is asked again after.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.asked {
                match self.pings.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.asked = false;
                        self.later();
                    }
                    // The connection is over, and knows why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {}
                }
            }
            ready!(self.next.as_mut().poll(cx));
            if self.asked || self.pings.send_ping(Ping::opaque()).is_err() {
                return if self.asked { Poll::Ready(()) } else { Poll::Pending };
            }
            self.asked = true;
            self.later();
        }
    }

    fn later(&mut self) {
        self.next.as_mut().reset(Instant::now() + self.every);
    }
}
