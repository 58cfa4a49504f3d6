//! The Gateway API's conformance cases for meshes, on listeners of our own for each port of each Service.

use std::fmt::Write as _;

use http::Request;
use hyper::body::Incoming;
use tokio::net::TcpStream;
use tulle_tests::app::App;
use tulle_tests::conformance::{self, CASES, CLIENTS, PORTS, SERVICES};
use tulle_tests::{Workload, World, echo};

/// Both applications of a version, and its proxy.
async fn version(world: &World, name: &'static str) -> ([App; 2], Workload) {
    let answer = async move |request: Request<Incoming>| echo::mirror(name, &request);
    let (http, grpc) = (App::http1(answer).await, App::http2(answer).await);
    let mut workload = world.workload(name);
    for service in ["echo", name] {
        for (port, called, ..) in PORTS {
            let app = if called == "grpc" { &grpc } else { &http };
            workload = workload.serves(&format!("{service}:{port}"), app.address());
        }
    }
    ([http, grpc], workload.start().await)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_case_of_the_suite() {
    let world = World::strict().await;
    let mut yaml = String::new();
    for service in SERVICES {
        let ports = PORTS.map(|(port, name, protocol, _)| {
            format!("{{name: {name}, port: {port}, appProtocol: {protocol}}}")
        });
        writeln!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}}}\nspec: {{clusterIP: None, ports: [{}]}}",
            ports.join(", ")
        )
        .unwrap();
    }
    world.yaml("services.yaml", &yaml);
    let _versions = [version(&world, "echo-v1").await, version(&world, "echo-v2").await];
    let mut clients = Vec::new();
    for namespace in CLIENTS {
        let mut client = world.workload(&format!("{namespace}/client"));
        for (service, (port, ..)) in SERVICES.iter().flat_map(|service| PORTS.map(|port| (service, port))) {
            client = client.calls(&format!("{service}:{port}"));
        }
        clients.push(client.start().await);
    }
    for case in CASES {
        conformance::run(case, &world, async |from, to| {
            let client = &clients[CLIENTS.iter().position(|known| *known == from).unwrap()];
            // A listener of our own stands for a Service.
            (!to.starts_with("pod ")).then_some(())?;
            Some(TcpStream::connect(client.outbound(to)).await.unwrap())
        })
        .await;
    }
}
