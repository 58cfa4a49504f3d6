//! What the mesh tells of itself, taken in by the very programs that people read it with.
//!
//! What needs one of them is ignored by `cargo test`; `.ci/run telemetry` installs or builds them and runs all, as root. A program that
//! is missing fails its test. See docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

mod failures;
mod jaeger;
mod prometheus;
