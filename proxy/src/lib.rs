//! Tulle's data plane: a small proxy beside every service.
//!
//! One way through, one room for each concern:
//! `accept → detect → tls → policy → route → balance → endpoint → wire`, called in that order from
//! `forward/outbound.rs` and `forward/inbound.rs`, the two files to read first. See docs/architecture.md.

pub mod accept;
pub mod admin;
pub mod app;
pub mod balance;
pub mod config;
pub mod control;
pub mod detect;
pub mod dns;
pub mod drain;
pub mod endpoint;
pub mod forward;
pub mod health;
pub mod intercept;
pub mod io;
pub mod limit;
pub mod memory;
pub mod policy;
pub mod route;
pub mod runtime;
pub mod state;
pub mod telemetry;
#[cfg(test)]
mod testing;
pub mod tls;
pub mod token;
pub mod wire;
