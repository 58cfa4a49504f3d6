//! What changes under load: routes, endpoints, policies. No request fails of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tulle_tests::app::App;
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::{Workload, World, deep, eventually};

/// Streams are under way at every change.
const PACE: Pace = Pace { lanes: 6, rate: 60, stream: Duration::from_millis(700) };

fn changes() -> usize {
    if deep() { 60 } else { 12 }
}

/// The load of all three protocols.
fn load(tally: &Arc<Tally>, web: &Workload) -> Vec<Load> {
    let start = |speech: Speech| Load::start(tally, speech, web.outbound(speech.service()), "web", PACE);
    Speech::ALL.map(start).into()
}

async fn ends_well(load: Vec<Load>, tally: &Tally, seen: &[Seen]) {
    for load in load {
        load.leave_after(1).await;
    }
    tally.assert_nothing_lost();
    for seen in seen {
        assert_eq!(seen.twice(), <[String; 0]>::default());
    }
}

/// Waits until somebody has been asked more often than now.
async fn is_asked(what: &str, seen: &Seen) {
    let before = seen.count();
    eventually(what, async || {
        let now = seen.count();
        if now > before + 3 { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}

fn web_to_all(world: &World) -> tulle_tests::WorkloadBuilder<'_> {
    Speech::ALL.iter().fold(world.workload("web"), |web, speech| web.calls(speech.service()))
}

/// Applications for all three protocols behind one proxy, as endpoints of services with this suffix.
async fn server(world: &World, name: &str, suffix: &str) -> (Seen, Workload, Vec<App>) {
    let (seen, mut apps) = (Seen::default(), Vec::new());
    let mut builder = world.workload(name);
    for speech in Speech::ALL {
        let app = Orders::start(speech, &seen).await;
        builder = builder.serves(&format!("{}{suffix}", speech.service()), app.address());
        apps.push(app);
    }
    let workload = builder.start().await;
    workload.counts("tulle_registered", &[], 1.0).await;
    (seen, workload, apps)
}

fn services(world: &World, suffix: &str) {
    for speech in Speech::ALL {
        world.service(&format!("{}{suffix}", speech.service()), speech.app_protocol());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_routes_that_flip_under_load_fail_no_request() {
    let world = World::strict().await;
    let sides = ["-blue", "-green"];
    for suffix in ["", sides[0], sides[1]] {
        services(&world, suffix);
    }
    let route = |suffix: &str| {
        for speech in Speech::ALL {
            let name = speech.service();
            let kind = if speech == Speech::Grpc { "GRPCRoute" } else { "HTTPRoute" };
            world.yaml(
                &format!("route-{name}.yaml"),
                &format!(
                    "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
                     parentRefs: [{{group: \"\", kind: Service, name: {name}}}]\n  rules:\n    - backendRefs: [{{name: \
                     {name}{suffix}, port: 8080}}]\n"
                ),
            );
        }
    };
    route(sides[0]);
    let servers = [server(&world, "blue", sides[0]).await, server(&world, "green", sides[1]).await];
    let web = web_to_all(&world).start().await;
    web.reaches("one").await;
    let tally = Arc::<Tally>::default();
    let load = load(&tally, &web);
    for change in 1..=changes() {
        route(sides[change % 2]);
        is_asked(sides[change % 2], &servers[change % 2].0).await;
    }
    let seen = [0, 1].map(|side: usize| servers[side].0.clone());
    ends_well(load, &tally, &seen).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_endpoints_that_come_and_go_under_load_fail_no_request() {
    let world = World::strict().await;
    services(&world, "");
    // Without proxies, so that nothing but their slices tells of them.
    let seen = [Seen::default(), Seen::default()];
    let mut apps: Vec<[App; 2]> = Vec::new();
    for speech in Speech::ALL {
        apps.push([Orders::start(speech, &seen[0]).await, Orders::start(speech, &seen[1]).await]);
    }
    let slices = |sides: &[usize]| {
        for (speech, apps) in Speech::ALL.iter().zip(&apps) {
            let addresses: Vec<_> = sides.iter().map(|side| apps[*side].address()).collect();
            world
                .yaml(&format!("slices-{}.yaml", speech.service()), &slices_of(speech.service(), &addresses));
        }
    };
    slices(&[0]);
    let web = web_to_all(&world).start().await;
    web.reaches("one").await;
    let tally = Arc::<Tally>::default();
    let load = load(&tally, &web);
    for change in 1..=changes() {
        // Both, and then the new one alone.
        slices(&[0, 1]);
        is_asked("the new one", &seen[change % 2]).await;
        slices(&[change % 2]);
        is_asked("the one that is left", &seen[change % 2]).await;
    }
    ends_well(load, &tally, &seen).await;
}

/// An EndpointSlice for each address.
fn slices_of(service: &str, addresses: &[SocketAddr]) -> String {
    let slice = |address: &SocketAddr| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {service}-{port}\n  namespace: default\n  labels: \
             {{kubernetes.io/service-name: {service}}}\naddressType: IPv4\nports: [{{name: main, port: {port}}}]\nendpoints:\n  - \
             addresses: [{ip}]\n    conditions: {{ready: true}}\n",
            port = address.port(),
            ip = address.ip()
        )
    };
    addresses.iter().map(slice).collect::<Vec<_>>().join("---\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_a_policy_that_changes_under_load_and_still_allows_fails_no_request() {
    let world = World::strict().await;
    services(&world, "");
    let policy = |name: &str, others: usize| {
        let identities: Vec<_> = (0..others).map(|n| format!("default/other-{n}")).collect();
        let identities = [identities, vec!["default/web".to_owned()]].concat().join(", ");
        for speech in Speech::ALL {
            let service = speech.service();
            world.yaml(
                &format!("policy-{service}.yaml"),
                &format!(
                    "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: allow-{service}, namespace: \
                     default}}\nspec:\n  targetRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  action: ALLOW\n  rules:\n    - \
                     name: {name}\n      from: [{{identities: [{identities}]}}]\n"
                ),
            );
        }
    };
    policy("rule-0", 0);
    let (seen, orders, _apps) = server(&world, "orders", "").await;
    let web = web_to_all(&world).start().await;
    web.reaches("one").await;
    let tally = Arc::<Tally>::default();
    let load = load(&tally, &web);
    for change in 1..=changes() {
        let rule = format!("rule-{change}");
        policy(&rule, change);
        eventually("the rule lets somebody in", async || {
            let log = orders.access_log();
            let let_in =
                log.iter().any(|record| record["rule"].as_str().is_some_and(|by| by.contains(&rule)));
            if let_in { Ok(()) } else { Err(format!("{:?}", log.last())) }
        })
        .await;
    }
    ends_well(load, &tally, &[seen]).await;
}
