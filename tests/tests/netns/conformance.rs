//! The Gateway API's conformance cases for meshes, as programs in pods meet them: they dial virtual IPs, and pods' own addresses.

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};

use http::Request;
use hyper::body::Incoming;
use tulle_tests::app::App;
use tulle_tests::conformance::{self, CASES, CLIENTS, PORTS, SERVICES};
use tulle_tests::echo;
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod};

const VERSIONS: [&str; 2] = ["echo-v1", "echo-v2"];

fn virtual_ip(service: &str) -> Ipv4Addr {
    let number = SERVICES.iter().position(|known| *known == service).expect("a Service of the suite");
    Ipv4Addr::new(10, 96, 1, number as u8 + 1)
}

/// The Services, and a slice for each pod behind each.
fn yaml(versions: &[Pod; 2]) -> String {
    let mut yaml = String::new();
    let ports = |told: fn((u16, &str, &str, u16)) -> String| PORTS.map(told).join(", ");
    for service in SERVICES {
        let dialled = ports(|(port, name, protocol, _)| {
            format!("{{name: {name}, port: {port}, appProtocol: {protocol}}}")
        });
        let ip = virtual_ip(service);
        writeln!(
            yaml,
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {service}}}\nspec: {{clusterIP: {ip}, ports: [{dialled}]}}"
        )
        .unwrap();
        for pod in versions.iter().filter(|pod| service == "echo" || service == pod.name()) {
            let listened = ports(|(_, name, _, target)| format!("{{name: {name}, port: {target}}}"));
            writeln!(
                yaml,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{0}\n  \
                 labels: {{kubernetes.io/service-name: {service}}}\n  annotations: {{tulle.dev/identity: default/{0}}}\n\
                 addressType: IPv4\nports: [{listened}]\nendpoints: [{{addresses: [{1}], targetRef: {{kind: Pod, name: {0}, \
                 namespace: default}}}}]",
                pod.name(),
                pod.v4()
            )
            .unwrap();
        }
    }
    yaml
}

#[test]
fn every_case_of_the_suite() {
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let versions = [cluster.meshed(VERSIONS[0]).await, cluster.meshed(VERSIONS[1]).await];
        cluster.world().yaml("services.yaml", &yaml(&versions));
        let _apps: Vec<_> = VERSIONS
            .into_iter()
            .zip(&versions)
            .map(|(name, pod)| {
                let answer = async move |request: Request<Incoming>| echo::mirror(name, &request);
                let (http, grpc) = (pod.listen("0.0.0.0:8080"), pod.listen("0.0.0.0:7070"));
                (App::http1_on(http, answer), App::http2_on(grpc, answer))
            })
            .collect();
        let clients =
            [cluster.meshed("client").await, cluster.meshed(&format!("{}/caller", CLIENTS[1])).await];
        for case in CASES {
            conformance::run(case, cluster.world(), async |from, to| {
                let client = &clients[CLIENTS.iter().position(|known| *known == from).expect("a client")];
                let (name, port) = to.trim_start_matches("pod ").rsplit_once(':').expect("a port");
                let pod = versions.iter().find(|pod| to.starts_with("pod ") && pod.name() == name);
                let ip = pod.map_or_else(|| virtual_ip(name), Pod::v4);
                Some(client.stream(SocketAddr::new(ip.into(), port.parse().expect("a port"))))
            })
            .await;
        }
    });
}
