//! Independent implementations at both ends of the mesh, and of what gives identities: grpcio and websockets, from PyPI.
//!
//! They need Python. On a machine without it, each test says so loudly and passes; under `CI` it fails.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

#[path = "peers/identity_sources.rs"]
mod identity_sources;

use std::net::SocketAddr;

use serde_json::json;
use tulle_tests::{Process, World, deep, eventually, peer, within};

/// Starts a server of `tests/peers`, and waits for the port that it prints.
async fn server(script: &str, world: &World, arguments: &[&str]) -> Option<(Process, SocketAddr)> {
    let program = arguments.iter().fold(peer::python(script)?, |program, argument| program.arg(*argument));
    let mut process = Process::start(program, world.folder());
    let port: u16 = eventually(&format!("{script} prints its port"), async || {
        if let Some(status) = process.ended() {
            panic!("{script} ended: {status}\n{}", process.tail());
        }
        process.stdout().trim().parse().map_err(|_| "not yet".to_owned())
    })
    .await;
    Some((process, SocketAddr::from(([127, 0, 0, 1], port))))
}

/// Runs a client of `tests/peers` to its end.
async fn client(script: &str, world: &World, address: SocketAddr, arguments: &[usize]) -> String {
    let mut program = peer::python(script).unwrap().arg(address.to_string());
    for argument in arguments {
        program = program.arg(argument.to_string());
    }
    let mut process = Process::start(program, world.folder());
    let status = within(script, process.wait()).await;
    assert!(status.success(), "{status}\n{}", process.tail());
    process.stdout()
}

#[tokio::test(flavor = "multi_thread")]
async fn grpcio_calls_grpcio_in_all_four_kinds() {
    for protocol in ["kubernetes.io/h2c", ""] {
        let world = World::strict().await;
        let Some((_server, address)) = server("grpc_server.py", &world, &[]).await else { return };
        world.service("echo", protocol);
        let echo = world.workload("echo").serves("echo", address).start().await;
        let web = world.workload("web").calls("echo").start().await;
        echo.counts("tulle_registered", &[], 1.0).await;

        let (rounds, size) = if deep() { (10, 8 << 20) } else { (3, 4 << 20) };
        let said = client("grpc_client.py", &world, web.outbound("echo"), &[rounds, size]).await;
        assert_eq!(said.trim(), "all four kinds");

        let path = json!("/tulle.test.Echo/Unary");
        let record = echo.logs(&[("path", path.clone()), ("grpc_status", json!(9))]).await;
        assert_eq!((&record["tls"], &record["source"]), (&json!("mtls"), &json!(web.identity())), "{record}");
        web.logs(&[("path", path), ("grpc_status", json!(0))]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r14_grpcio_that_ends_connections_by_age_fails_no_call_and_its_streams_are_cut_with_a_status() {
    let world = World::strict().await;
    let Some((_server, address)) = server("grpc_server.py", &world, &["2000", "1000"]).await else { return };
    world.service("echo", "grpc");
    let echo = world.workload("echo").serves("echo", address).start().await;
    let web = world.workload("web").calls("echo").start().await;
    echo.counts("tulle_registered", &[], 1.0).await;

    let times = if deep() { 20 } else { 2 };
    let said = client("grpc_ages.py", &world, web.outbound("echo"), &[times]).await;
    assert_eq!(said.trim(), "no call failed");
    let cut = [("direction", "outbound"), ("grpc_status", "14")];
    let counted = web.metrics().await.sum("tulle_requests_total", &cut);
    assert!((counted - 4.0 * times as f64).abs() < 0.5, "{counted}");
}

#[tokio::test(flavor = "multi_thread")]
async fn websockets_speaks_with_websockets() {
    for protocol in ["kubernetes.io/ws", ""] {
        let world = World::strict().await;
        let Some((_server, address)) = server("websocket_server.py", &world, &[]).await else { return };
        world.service("chat", protocol);
        let chat = world.workload("chat").serves("chat", address).start().await;
        let web = world.workload("web").calls("chat").start().await;
        chat.counts("tulle_registered", &[], 1.0).await;

        let (count, size) = if deep() { (2000, 16 << 20) } else { (200, 4 << 20) };
        let said = client("websocket_client.py", &world, web.outbound("chat"), &[count, size]).await;
        assert_eq!(said.trim(), "closed in order");

        let record = chat.logs(&[("path", json!("/chat")), ("status", json!(101))]).await;
        assert_eq!((&record["tls"], &record["source"]), (&json!("mtls"), &json!(web.identity())), "{record}");
    }
}
