//! The harness of the end-to-end tests: real binaries, real sockets, free ports, nothing left behind.
//!
//! A test makes a [`World`], writes YAML into its folder, starts workloads (an application of the test's own and a real
//! proxy before it) and talks to them by [`Wire`] (bytes as they are), by hyper, or by a peer that somebody else wrote
//! ([`peer`]). Everything that a world started ends when it is dropped; when the test fails, its logs are printed.
//!
//! Nothing here waits for time to pass: [`eventually`] asks until something holds, and says what did not.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a harness says what went wrong by failing the test"
)]

pub mod ages;
pub mod app;
mod binaries;
pub mod closing;
pub mod cluster;
pub mod conformance;
pub mod echo;
pub mod fleet;
pub mod frames;
pub mod identity;
pub mod jaeger;
pub mod load;
pub mod machine;
pub mod memory;
mod metrics;
pub mod named;
pub mod netns;
pub mod peer;
pub mod pod;
mod process;
pub mod rates;
pub mod script;
pub mod tokens;
pub mod usage;
mod wait;
mod wire;
mod workload;
mod world;

pub use self::binaries::{binary, copy_executable};
pub use self::metrics::Metrics;
pub use self::process::{Folder, Process, Program};
pub use self::wait::{DEADLINE, eventually, eventually_within, within};
pub use self::wire::{Head, Wire, chunked};
pub use self::workload::{Workload, WorkloadBuilder};
pub use self::world::{Mode, NAMESPACE, World, scrape};

/// Whether long tests go to their full length: `TULLE_TEST_DEEP=full`, which `.ci/run` sets.
pub fn deep() -> bool {
    std::env::var_os("TULLE_TEST_DEEP").is_some_and(|value| value == "full")
}

/// Whether tests that have a form of many minutes take that: `TULLE_TEST_LONG=full`.
pub fn long() -> bool {
    std::env::var_os("TULLE_TEST_LONG").is_some_and(|value| value == "full")
}
