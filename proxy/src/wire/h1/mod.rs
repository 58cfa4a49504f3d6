//! HTTP/1, ours: a codec that does no I/O under two thin shells that do.
//!
//! [`head`] and [`coding`] turn bytes into heads and bodies, `original` and `outgoing` turn them back; [`serve`] and
//! [`Client`] are the two ends of a connection. There is no task, channel or queue: whoever polls a body polls its
//! connection. Called by `forward` and `endpoint`.
//!
//! # What passes as it came
//! The order and spelling of fields, reason phrases, interim responses (all 1xx), trailers (announced or not; their names
//! in lower case), absolute-form targets beside a different `Host`, obs-text in values.
//!
//! # What is made anew for each hop
//! `Content-Length` and `Transfer-Encoding` (from the body that is sent), the `close` and `keep-alive` of `Connection`,
//! where chunks begin and end; chunk extensions are dropped.
//!
//! # What is refused
//! With 400: `Content-Length` beside `Transfer-Encoding`, differing `Content-Length`s, one that is not digits;
//! `Transfer-Encoding` that is not exactly `chunked`, or in HTTP/1.0; line folding, whitespace before a colon or before
//! the first field, empty names, bare CR, bare LF, NUL and other control characters; no `Host` in HTTP/1.1, several, or
//! one that is no host; a target with a fragment or with characters that URIs have not; CONNECT without a port or
//! with a body; versions other than 1.0 and 1.1. With 431: heads over [`Limits`]. A response with any of these, where
//! they apply, is not passed on; neither is a body whose chunks are not exactly as in RFC 9112 §7.1.

mod buf;
mod client;
mod coding;
mod head;
mod incoming;
mod original;
mod outgoing;
mod reuse;
mod server;
mod shared;
mod upgrade;

#[cfg(test)]
mod tests;

pub use crate::io::Transport;
pub use client::{Client, Failure, SendError};
pub use coding::{BodyError, Decoder, Step};
pub use head::{HeadError, Length, Limits, RequestHead, ResponseHead, Scan};
pub use incoming::{Body, Exchange};
pub use original::OriginalHead;
pub use reuse::done_with;
pub use server::{Closed, Settings, serve};
pub use upgrade::{OnUpgrade, Switched, Upgraded};
