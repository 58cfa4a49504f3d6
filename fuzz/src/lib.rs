//! What the targets share: how bytes are cut up, a connection that is made of them, and a future driven without a runtime.
//!
//! Decides nothing about what is right; each target says what must hold in its own head. Everything here is a function of
//! the input alone, so that a crash's file is all that it takes to see the crash again.

mod bytes;
mod http;
mod wire;

pub use self::bytes::{Reader, pieces};
pub use self::http::{FRAMING, Fields, LIMITS, Unread, assert_strict, fields_by_httparse, fields_without};
pub use self::wire::{Wire, Written, run};
