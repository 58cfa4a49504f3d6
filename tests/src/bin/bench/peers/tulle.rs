//! Tulle as shipped, by its own control plane and explicit ports.

use std::net::SocketAddr;
use std::time::Duration;

use tulle_tests::{Mode, Program, Wire, Workload, World};

use crate::bare::Speaks;
use crate::pair::{Pair, Proxies, Purpose, Site, leashed};

/// A pair, once both are ready. `wrapped` is what starts each proxy.
pub(crate) async fn start(purpose: Purpose, site: &Site, wrapped: impl Fn(Program) -> Program) -> Pair {
    let world = World::start_with(Mode::Strict, leashed).await;
    let declared = match purpose.speaks {
        Speaks::Http1 => "http",
        Speaks::Http2 => "kubernetes.io/h2c",
        Speaks::Tcp => "tcp",
    };
    world.service("orders", declared);
    for (at, rules) in (0..purpose.routes).collect::<Vec<_>>().chunks(10).enumerate() {
        world.yaml(&format!("route-{at}.yaml"), &route(at, rules));
    }
    if purpose.rules > 0 {
        world.yaml("policy.yaml", &policy(purpose.rules));
    }
    let inbound = world.workload("orders").serves("orders", site.backend(purpose.speaks));
    let mut inbound = inbound.setting("--workers", "1").program(&wrapped).start_unready().await;
    let first = ready(&mut inbound).await;
    let outbound = world.workload("web").calls("orders").setting("--workers", "1").program(&wrapped);
    let mut outbound = outbound.start_unready().await;
    let second = ready(&mut outbound).await;
    let proxies = Proxies { outbound: outbound.process().pid(), inbound: inbound.process().pid() };
    let (front, folder, judged) = (outbound.outbound("orders"), world.folder().clone(), inbound.public());
    let mut pair = Pair::new(front, Some(proxies), (outbound, inbound, world));
    pair.folder = Some(folder);
    pair.judged = (purpose.rules > 0).then_some((judged, LAST));
    pair.ready = Some(first.max(second));
    pair
}

/// Without the access log.
pub(crate) fn silent(program: Program) -> Program {
    program.env("TULLE_PROXY_ACCESS_LOG", "none")
}

/// One trace in a hundred goes to a collector: the backend, which answers every call of gRPC.
pub(crate) fn traced(program: Program, site: &Site) -> Program {
    program
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://{}", site.backend.http2))
        .env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0.01")
}

/// Waits until the proxy says that it is ready; how long that took from its start on.
async fn ready(workload: &mut Workload) -> Duration {
    let metrics = workload.public();
    while !is_ready(metrics).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    workload.process().running()
}

async fn is_ready(metrics: SocketAddr) -> bool {
    let mut wire = Wire::connect(metrics).await;
    wire.send("GET /ready HTTP/1.1\r\nhost: ready\r\nconnection: close\r\n\r\n").await;
    wire.try_head().await.is_some_and(|head| head.status() == 200)
}

/// The rule that lets the benchmark's requests in, as metrics name it.
const LAST: &str = "default/bench/web";

/// A policy of so many rules, all of which are asked about each request of the benchmark's, in their order: no client's identity leaves one out.
/// The last lets in. All others hold but for what is looked at last, of three kinds in turns: paths as they are and by their beginning, a path's
/// last segment after any, and a header.
fn policy(rules: usize) -> String {
    use std::fmt::Write as _;
    let mut text = "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: bench, namespace: default}\nspec:\n  \
         targetRefs: [{group: \"\", kind: Service, name: orders}]\n  action: ALLOW\n  rules:\n"
        .to_owned();
    for number in 1..rules {
        let says = match number % 3 {
            0 => format!(
                r#"to: [{{methods: [GET], paths: ["/api/v1/orders/team-{number}", "/api/v1/orders/team-{number}/*"]}}]"#
            ),
            1 => format!(r#"to: [{{methods: [GET], paths: ["/api/v1/{{*}}/team-{number}"]}}]"#),
            _ => format!(
                r#"to: [{{methods: [GET], paths: ["/api/v1/orders/*"]}}], when: [{{header: accept, values: ["application/team-{number}"]}}]"#
            ),
        };
        let _ = writeln!(text, "  - {{name: team-{number}, from: [{{namespaces: [default]}}], {says}}}");
    }
    text + "  - {name: web, from: [{serviceAccounts: [default/web]}]}\n"
}

/// A route of rules that the benchmark's requests do not match; the first also has the rule that they do.
fn route(at: usize, rules: &[usize]) -> String {
    use std::fmt::Write as _;
    let mut text = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: route-{at}\n  \
         namespace: default\nspec:\n  parentRefs:\n    - group: \"\"\n      kind: Service\n      name: orders\n      \
         port: 8080\n  rules:\n"
    );
    let own =
        rules.iter().map(|number| format!("/route-{number}")).chain((at == 0).then(|| "/api".to_owned()));
    for path in own {
        let _ = write!(
            text,
            "    - matches:\n        - path:\n            type: PathPrefix\n            value: {path}\n      \
             backendRefs:\n        - name: orders\n          port: 8080\n"
        );
    }
    text
}
