//! See docs/architecture.md.
pub mod finding;
pub mod kinds;
pub mod object;
