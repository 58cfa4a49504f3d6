//! HTTP framing: heads, bodies and trailers on a byte stream, and nothing above them.
//!
//! The seam behind which HTTP/1 (ours, in `h1`) and HTTP/2 (over `h2`, in [`http2`]) stand. It decides nothing about
//! where a request goes; `forward` calls it on both sides and sees only [`http`] types and [`Body`].

mod ahead;
mod body;
pub mod h1;
pub mod http2;
mod kept;
mod tee;
mod trimmed;
mod upgrade;

pub use ahead::Beginning;
pub use body::{Body, BodyError, Transfer};
pub use kept::Spare;
pub use upgrade::{Upgrade, tunnel};

/// How HTTP is framed on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Framing {
    Http1,
    Http2,
}

/// What is known about how far a failed request got (`x-tulle-processed`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Processed {
    /// Provably not looked at by the server: safe to send again.
    No,
    /// The server may have acted on it.
    Maybe,
}
