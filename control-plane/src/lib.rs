//! Tulle's control plane: what people write, as what proxies need to know.
//!
//! One direction: `source → index → model → ads`. Beside it the certificate authority and the registrations; `app`
//! wires them. See docs/architecture.md.

pub mod admin;
pub mod ads;
pub mod app;
pub mod asking;
pub mod ca;
pub mod cluster;
pub mod config;
pub mod diagnostics;
pub mod ending;
pub mod finding;
pub mod index;
pub mod inject;
pub mod kinds;
pub mod load;
pub mod metrics;
pub mod model;
pub mod object;
pub mod pulse;
pub mod registration;
pub mod report;
pub mod server;
pub mod source;
pub mod state_dir;
pub mod tap;
#[cfg(test)]
#[path = "../../tests/allocations.rs"]
mod testing;
pub mod trust;
mod youngest;
