//! HTTP/2 (RFC 9113): frames, header compression and flow control by `h2`; what is above them, here.
//!
//! A stream of a client is one task, in which its request is handled and the answer's body passed on ([`serve`]); a request to a
//! server has no task of its own, its answer wakes whoever asked ([`Sender`]). Only a body that is still being sent when the
//! answer's head comes goes on in a task ([`pipe`]). Decides nothing about where requests go; `forward` calls it.

mod alive;
mod client;
mod heard;
mod incoming;
mod pipe;
mod server;
mod tunnel;

use std::io;
use std::time::Duration;

pub use client::{SendError, Sender, connect};
pub use incoming::Incoming;
pub use pipe::{Outgoing, is_reset};
pub use server::serve;
pub use tunnel::{OnTunnel, Tunnel};

/// What a connection may ask of us.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a decoded header block.
    pub max_header_list: u32,
    pub max_concurrent_streams: u32,
    /// Bytes in flight for one stream: the bound on what a slow reader costs.
    pub stream_window: u32,
    /// Streams that may have as much in flight before they wait for each other on one connection; of our own, no more share
    /// one.
    pub shared_by: u32,
    /// Bytes that one stream may have waiting to be written, however much its receiver allows.
    pub send_buffer: usize,
    /// A peer that has said nothing for this long is asked whether it is there; if it says nothing for as long again, it is gone.
    pub keep_alive: Duration,
}

/// What ended a connection, or a request on it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("HTTP/2: {0}")]
    Http2(#[source] h2::Error),
    #[error("the connection broke: {0}")]
    Io(#[source] io::Error),
    #[error("the peer was asked whether it is there, and has said nothing for {0:?}")]
    Silent(Duration),
    #[error("the server does not take extended CONNECT, by which WebSockets are opened in HTTP/2 (RFC 8441)")]
    NoExtendedConnect,
}

/// Streams that we may reset because of the peer's errors before the connection is given up (the defence against a peer that
/// provokes resets, as hyper has it).
const MAX_ERROR_RESETS: usize = 1024;

// === impl Limits ===

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_header_list: 128 * 1024,
            max_concurrent_streams: 1024,
            stream_window: 128 * 1024,
            shared_by: 100,
            send_buffer: 64 * 1024,
            keep_alive: Duration::from_secs(30),
        }
    }
}

impl Limits {
    fn connection_window(&self) -> u32 {
        self.stream_window.saturating_mul(self.shared_by)
    }
}

// === impl Error ===

impl Error {
    /// Whether it is the request's own fault, so that it would fail anywhere.
    pub fn is_of_request(&self) -> bool {
        match self {
            Self::Http2(error) => !error.is_go_away() && !error.is_reset() && error.reason().is_none(),
            Self::NoExtendedConnect => true,
            Self::Io(_) | Self::Silent(_) => false,
        }
    }

    /// Whether the peer did what the protocol forbids (RFC 9113 §5.4), or said more than we take.
    pub fn is_of_peer(&self) -> bool {
        matches!(self, Self::Http2(error) if error.is_library())
    }
}

impl From<h2::Error> for Error {
    fn from(error: h2::Error) -> Self {
        if !error.is_io() {
            return Self::Http2(error);
        }
        Self::Io(error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into()))
    }
}

#[cfg(test)]
mod tests;
