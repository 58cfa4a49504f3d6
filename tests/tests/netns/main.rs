//! Interception, in network namespaces: the rules in a real kernel, beside `nft` and `iptables`, and the mesh behind them.
//!
//! Needs iproute2, nftables, iptables, curl, Python and util-linux, and root or user namespaces: see docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod change;
mod conformance;
mod egress;
mod first;
mod lacking;
mod led;
mod limits;
mod mesh;
mod names;
mod probes;
mod resilience;
mod rules;
mod run;
mod spread;

/// The same tests once more, without privileges.
#[test]
fn everything_here_also_works_as_an_ordinary_user() {
    tulle_tests::netns::as_an_ordinary_user();
}
