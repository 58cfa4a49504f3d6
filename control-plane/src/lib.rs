//! See docs/architecture.md.
pub mod ca;
pub mod finding;
pub mod index;
pub mod kinds;
pub mod model;
pub mod object;
pub mod source;
