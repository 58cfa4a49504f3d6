//! Independent implementations at both ends of the mesh, and of what gives identities: grpcio and websockets, from PyPI; and an authorizer on the published
//! protobufs.
//!
//! They need Python. On a machine without it, each test says so loudly and passes; under `CI` it fails.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

#[path = "peers/identity_sources.rs"]
mod identity_sources;

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::app::App;
use tulle_tests::echo;
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
async fn an_authorizer_on_the_published_protobufs_is_told_and_obeyed() {
    let world = World::strict().await;
    let Some((_server, address)) = server("authz_server.py", &world, &[]).await else { return };
    let app = App::http1(|request| async move { echo::mirror("orders", &request) }).await;
    world.yaml(
        "policy.yaml",
        "apiVersion: policy.tulle.dev/v1alpha1\nkind: ExternalAuthorization\nmetadata: {name: ask}\nspec:\n  \
         targetRefs: [{kind: Service, name: orders}]\n  service: {name: authorizer, port: 8080}\n  timeout: 20s\n",
    );
    world.service("authorizer", "grpc");
    world.service("orders", "http");
    let authorizer = world.workload("authorizer").serves("authorizer", address).start().await;
    authorizer.counts("tulle_registered", &[], 1.0).await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").calls("orders").start().await;
    let ask = async |grpc: bool, asked: &str| {
        let stream = tokio::net::TcpStream::connect(web.outbound("orders")).await.unwrap();
        echo::ask(stream, grpc, "orders", asked).await
    };

    let asked = "GET /cart?token=1&a=b x-ask:allow authorization:secret x-present:own accept:a";
    let answer = ask(false, asked).await;
    assert_eq!((&*answer.by(), answer.saw("target")), ("orders", "/cart?a=b&user=a%20b"), "{answer:?}");
    for (field, seen) in [("authorization", "-"), ("x-absent", "set"), ("x-present", "set")] {
        assert_eq!(answer.saw_field(field), seen, "{field}");
    }
    assert_eq!(answer.field("x-decided"), "allow");
    let told: Value = serde_json::from_str(answer.saw_field("x-told")).unwrap();
    let (source, destination) = (&told["attributes"]["source"], &told["attributes"]["destination"]);
    assert_eq!(
        (&source["principal"], &destination["principal"]),
        (&json!(web.identity()), &json!(orders.identity()))
    );
    assert_eq!(source["address"]["socketAddress"]["address"], json!("127.0.0.1"), "{told}");
    assert!(source["address"]["socketAddress"]["portValue"].is_u64(), "{told}");
    let http = &told["attributes"]["request"]["http"];
    for (field, value) in [
        ("method", "GET"),
        ("path", "/cart?token=1&a=b"),
        ("host", "orders"),
        ("scheme", "http"),
        ("protocol", "HTTP/1.1"),
    ] {
        assert_eq!(http[field], json!(value), "{told}");
    }
    assert_eq!(
        (&http["headers"]["authorization"], &http["headers"][":path"]),
        (&json!("secret"), &http["path"])
    );
    assert!(told["attributes"]["request"]["time"].is_string() && http["id"].is_string(), "{told}");

    assert_eq!(ask(false, "GET / x-ask:deny").await.by(), "403 denied_externally");
    let login = ask(false, "GET / x-ask:login").await;
    assert_eq!(
        (login.status, &*login.field("location"), &*login.field("set-cookie")),
        (302, "/login", "a=1,b=2")
    );
    let denied = ask(true, "POST /shop.Orders/Place x-ask:deny").await;
    assert_eq!((&*denied.field("grpc-status"), &*denied.field("grpc-message")), ("7", "not you"));
    assert_eq!(ask(false, "GET / x-ask:fail").await.by(), "503 authorizer_unavailable");
    let record = orders.logs(&[("reason", json!("authorizer_unavailable"))]).await;
    assert!(record["detail"].as_str().unwrap().contains("gRPC status 13"), "{record}");
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
