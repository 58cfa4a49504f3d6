//! Where telemetry goes: real programs that read what proxies and the control plane tell of themselves.
//!
//! Ignored by `cargo test`: they need Jaeger, which `.ci/run telemetry` builds and this is run by, and root. A program that
//! is missing fails its test. See docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod jaeger;
