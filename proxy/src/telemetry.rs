//! What the proxy tells about itself: metrics, access log, diagnostics, reasons.
//!
//! A leaf: every room may call it, and it calls none.

pub mod metrics;
pub mod reason;

#[cfg(test)]
pub(crate) mod docs;

pub use self::metrics::{Metrics, WorkerMetrics};
pub use self::reason::Reason;
