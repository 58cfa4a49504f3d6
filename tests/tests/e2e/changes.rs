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

/// Waits until somebody has been asked so many times more than now.
async fn is_asked(what: &str, seen: &Seen, more: usize) {
    let before = seen.count();
    eventually(what, async || {
        let now = seen.count();
        if now >= before + more { Ok(()) } else { Err(format!("{now}")) }
    })
    .await;
}

/// Waits until somebody is not asked any more, while another is so often that it cannot be by chance.
async fn is_left_alone(gone: &Seen, other: &Seen) {
    eventually("who is removed is not asked any more", async || {
        let before = gone.count();
        is_asked("the one that is left", other, 40).await;
        let now = gone.count();
        if now == before { Ok(()) } else { Err(format!("{before}, then {now}")) }
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
        is_asked(sides[change % 2], &servers[change % 2].0, 4).await;
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
        let (new, old) = (&seen[change % 2], &seen[(change + 1) % 2]);
        // A stream from the old one, as long as there is no other.
        let mut held = web.connect("one").await;
        held.send("GET /stream/2000/held HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let head = held.head().await;
        assert_eq!((head.status(), head.reason()), (200, None));
        // Both, and then the new one alone.
        slices(&[0, 1]);
        is_asked("the new one", new, 4).await;
        slices(&[change % 2]);
        is_left_alone(old, new).await;
        // 41 messages of 7 bytes.
        assert_eq!(held.body(&head).await.len(), 41 * 7, "what was under way ends as it would have");
    }
    ends_well(load, &tally, &seen).await;
}

const ALGORITHMS: [&str; 6] = ["PeakEwma", "LeastRequest", "RoundRobin", "Random", "RingHash", "Maglev"];

/// A TrafficPolicy, a RateLimitPolicy and a FaultPolicy for a service, another `number` of them; requests without `x-probe` are neither limited nor faulted.
fn policies(service: &str, number: usize) -> String {
    let algorithm = ALGORITHMS[number % ALGORITHMS.len()];
    let hash = if matches!(algorithm, "RingHash" | "Maglev") { ", hashOn: [{header: x-user}]" } else { "" };
    let direction = ["Inbound", "Outbound"][number % 2];
    let target = format!("targetRefs: [{{group: \"\", kind: Service, name: {service}}}]");
    let probe = "headers: [{name: x-probe, value: \"on\"}]";
    format!(
        "
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: traffic-{service}}}
spec:
  {target}
  loadBalancer: {{algorithm: {algorithm}{hash}}}
  outlierDetection: {{consecutive5xx: {}, ejectionTime: 1s}}
  limits: {{maximumRequests: {}, maximumPending: 1000}}
  timeouts: {{request: {}s, idle: 30s}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: RateLimitPolicy
metadata: {{name: often-{service}}}
spec:
  {target}
  direction: {direction}
  limits:
  - {{name: all-{number}, rate: {{requests: 100000}}}}
---
apiVersion: policy.tulle.dev/v1alpha1
kind: FaultPolicy
metadata: {{name: chaos-{service}}}
spec:
  {target}
  rules:
  - {probe}
    abort: {{httpStatus: {}}}
",
        2 + number % 5,
        1000 + number,
        request_timeout(number),
        fault(number)
    )
}

/// The timeout that the `number`th policy has, in seconds.
const fn request_timeout(number: usize) -> usize {
    1000 + number
}

/// What a request with `x-probe` is answered then.
const fn fault(number: usize) -> u16 {
    410 + (number % 80) as u16
}

/// What a request that policies mean to abort is answered by `one`.
async fn probe(web: &Workload) -> u16 {
    let mut wire = web.connect("one").await;
    wire.send("GET /probe HTTP/1.1\r\nhost: orders\r\nx-probe: on\r\nconnection: close\r\n\r\n").await;
    wire.response().await.0.status()
}

/// Waits until the `number`th policies are in force for all services, or are so no more and no others are.
async fn in_force(web: &Workload, orders: &[&Workload], number: usize, there: bool) {
    eventually(&format!("policies {number} are in force: {there}"), async || {
        let status = probe(web).await;
        let expected = if there { (fault(number), Speech::ALL.len()) } else { (200, 0) };
        let dump: serde_json::Value = serde_json::from_str(&web.config_dump().await).unwrap();
        let services = dump["services"].as_array().unwrap().iter();
        let timeout = format!("{}s", request_timeout(number));
        let have = services.filter(|one| one["service"].as_str().unwrap().contains(&timeout)).count();
        if (status, have) == expected { Ok(()) } else { Err(format!("{status}, {have}: {dump:#}")) }
    })
    .await;
    if !there {
        return;
    }
    // Where its direction says, and by every service.
    let keepers = if number % 2 == 1 { vec![web] } else { orders.to_vec() };
    for speech in Speech::ALL {
        let limit = format!("default/often-{}/all-{number}", speech.service());
        eventually(&format!("{limit} counts"), async || {
            for keeper in &keepers {
                let counted =
                    keeper.metrics().await.sum("tulle_rate_limit_requests_total", &[("limit", &limit)]);
                if counted > 0.0 {
                    return Ok(());
                }
            }
            Err("nothing".to_owned())
        })
        .await;
    }
}

/// Waits until the control plane has findings, or has none.
async fn findings(world: &World, some: bool) {
    eventually(&format!("findings: {some}"), async || {
        let found = world.metrics().await.sum("tulle_control_plane_findings", &[]);
        if (found > 0.0) == some { Ok(()) } else { Err(found.to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_policies_that_come_change_break_and_go_under_load_fail_no_request() {
    let world = World::strict().await;
    services(&world, "");
    let servers = [server(&world, "orders-1", "").await, server(&world, "orders-2", "").await];
    let orders = [&servers[0].1, &servers[1].1];
    let web = web_to_all(&world).start().await;
    web.reaches("one").await;
    let tally = Arc::<Tally>::default();
    let load = load(&tally, &web);
    let write = |text: &dyn Fn(&'static str) -> String| {
        for speech in Speech::ALL {
            world.yaml(&format!("policies-{}.yaml", speech.service()), &text(speech.service()));
        }
    };
    // A scalar that is not closed, a word that is none, a time that is none, and what contradicts itself.
    let broken = [
        ("kind: TrafficPolicy", "kind: \"TrafficPolicy"),
        ("algorithm: ", "algorithm: Best"),
        ("idle: 30s", "idle: soon"),
        ("maximumRequests: ", "maximumRequests: -"),
    ];
    for number in 1..=changes() {
        write(&|service| policies(service, number));
        in_force(&web, &orders, number, true).await;
        findings(&world, false).await;
        if number % 3 == 0 {
            for speech in Speech::ALL {
                world.remove_yaml(&format!("policies-{}.yaml", speech.service()));
            }
            in_force(&web, &orders, number, false).await;
        } else {
            let (well, ill) = broken[number % broken.len()];
            write(&|service| policies(service, number).replace(well, ill));
            findings(&world, true).await;
            is_asked("somebody", &servers[0].0, 10).await;
            in_force(&web, &orders, number, true).await;
        }
    }
    ends_well(load, &tally, &[]).await;
    // Nobody was limited, and no request came to both.
    let refused = [("outcome", "refused")];
    for workload in [&web, orders[0], orders[1]] {
        let metrics = workload.metrics().await;
        assert_eq!(metrics.sum("tulle_rate_limit_requests_total", &refused), 0.0, "{}", workload.name());
    }
    let (one, two) = (&servers[0].0, &servers[1].0);
    assert!(one.twice().is_empty() && two.twice().is_empty() && one.shares_nothing_with(two));
}

/// An EndpointSlice for each address.
pub(super) fn slices_of(service: &str, addresses: &[SocketAddr]) -> String {
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
