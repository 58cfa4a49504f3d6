//! The mesh from end to end: real binaries, strict mode, one module for each theme.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

mod access_log;
mod ages;
mod authz_cases;
mod bad_input;
mod bad_policies;
mod balance;
mod burst;
mod changes;
mod clocks;
mod conformance;
mod connections;
mod control_plane;
mod dns;
mod doc_examples;
mod draining;
mod explain;
mod ext_authz;
mod first;
mod health;
mod hostile;
mod http1;
mod http2;
mod jwt;
mod limits;
mod live;
mod memory;
mod metrics;
mod mtls;
mod opaque;
mod own;
mod policy;
mod probes;
mod rates;
mod reasons;
mod records;
mod replay;
mod requests;
mod rolling;
mod rotation;
mod routing;
mod routing_cases;
mod routing_kinds;
mod scripted;
mod shared;
mod spoofing;
mod stale;
mod start;
mod stat;
mod tap;
mod tokens;
mod traces;

use tulle_tests::app::App;
use tulle_tests::{Workload, World};

/// `web` → `orders`, both in the mesh; what `orders` speaks is declared, or nothing if empty.
struct Pair {
    world: World,
    web: Workload,
    orders: Workload,
    /// Keeps the application running.
    _app: App,
}

impl Pair {
    async fn start(app: App, protocol: &str) -> Self {
        let world = World::strict().await;
        world.service("orders", protocol);
        let orders = world.workload("orders").serves("orders", app.address()).start().await;
        let web = world.workload("web").calls("orders").start().await;
        let pair = Self { world, web, orders, _app: app };
        pair.connected().await;
        pair
    }

    /// Waits until `orders` is an endpoint: from then on nothing may fail, since `web` has not asked before.
    async fn connected(&self) {
        self.orders.counts("tulle_registered", &[], 1.0).await;
    }
}
