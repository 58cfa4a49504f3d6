//! What is held back so that nobody is asked for more than they can do.
//!
//! Decides whether a request still fits a rate ([`RateLimits`]), and who is next when so many may do something at once ([`Seats`]),
//! over all workers of the proxy. The clock is handed in. It must never do I/O, and its memory must not depend on what clients send.
//! Compiled when a policy arrives; asked by `forward` for each request, by `endpoint` for each connection.

mod keyed;
mod pace;
mod rate;
mod seats;

#[cfg(test)]
mod tests;

pub use pace::Rate;
pub use rate::{Asking, Key, RateLimit, RateLimits, Refused};
pub use seats::Seats;
