//! The source against an API server in the test: what is known, and what is asked for it.

mod server;

use std::time::Duration;

use prost::Message;
use serde_json::{Value, json};
use tulle_api::{ResourceType, v1};

use self::server::{Asked, Fault, Server};
use super::*;
use crate::finding::Severity;
use crate::index::Index;
use crate::model::Settings;

const SERVICES: &str = "v1/services";
const PODS: &str = "v1/pods";
const SLICES: &str = "discovery.k8s.io/v1/endpointslices";
const ROUTES: &str = "gateway.networking.k8s.io/v1/httproutes";
const POLICIES: &str = "policy.tulle.dev/v1alpha1/authorizationpolicies";
const MESHES: &str = "policy.tulle.dev/v1alpha1/meshes";

/// Everything quick, but silence.
const PACE: Pace = Pace {
    first: Duration::from_millis(2),
    longest: Duration::from_millis(40),
    look_again: Duration::from_millis(5),
    silence: Duration::from_secs(60),
    lifetime: Duration::from_secs(60),
};

/// A control plane's half that reads.
struct Reading {
    server: Server,
    publisher: Arc<Publisher>,
    metrics: Metrics,
    cluster: Cluster,
    _runs: JoinSet<()>,
}

// === impl Reading ===

impl Reading {
    fn begin(server: &Server) -> Self {
        let publisher = Publisher::new(Index::of_cluster(), Settings::default(), Vec::new());
        let metrics = Metrics::new().unwrap();
        let running = Arc::clone(&publisher);
        let mut runs = JoinSet::new();
        runs.spawn(async move { running.run().await });
        let cluster = Cluster::start(server.client(), Arc::clone(&publisher), &metrics, PACE);
        Self { server: server.clone(), publisher, metrics, cluster, _runs: runs }
    }

    /// Once everything has been read, and is watched.
    async fn start(server: &Server) -> Self {
        let reading = Self::begin(server);
        tokio::time::timeout(Duration::from_secs(60), reading.cluster.read())
            .await
            .expect("everything is read");
        for definition in [SERVICES, PODS, SLICES] {
            eventually("it is watched", || server.watches(definition) == 1).await;
        }
        reading
    }

    fn has(&self, resource_type: ResourceType, name: &str) -> bool {
        self.publisher.model().get(resource_type, name).is_some()
    }

    fn service(&self, name: &str) -> bool {
        self.has(ResourceType::Service, name)
    }

    /// (address, whom to expect; empty: nobody).
    fn endpoints(&self, name: &str) -> Vec<(String, String)> {
        let Some(encoded) = self.publisher.model().get(ResourceType::Endpoints, name) else {
            return Vec::new();
        };
        let endpoints = v1::Endpoints::decode(encoded.bytes.clone()).unwrap().endpoints.into_iter();
        let ports = endpoints.map(|one| {
            let peer = one.ports[0].peer.clone().unwrap().peer.unwrap();
            let id = match peer {
                v1::peer::Peer::SpiffeId(id) => id,
                v1::peer::Peer::Plaintext(_) => String::new(),
            };
            (one.address, id)
        });
        ports.collect()
    }

    fn errors(&self, kind: &str, reason: &str) -> u64 {
        self.metrics.watch_errors.with_label_values(&[kind, reason]).get()
    }

    fn lists(&self, kind: &str) -> u64 {
        self.metrics.lists.with_label_values(&[kind]).get()
    }

    /// Returns when what has been written so far has been read: a Service is written last, and read.
    async fn caught_up(&self, mark: &str) {
        self.server.apply(SERVICES, service("marks", mark));
        eventually("the mark is read", || self.service(&format!("marks/{mark}"))).await;
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..30_000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    panic!("not so: {what}");
}

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"clusterIP": "None", "selector": {"app": name}, "ports": [{"name": "http", "port": 80}]},
    })
}

fn slice(namespace: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints = pods.iter().map(|(pod, address)| {
        json!({"addresses": [address], "targetRef": {"kind": "Pod", "name": pod, "namespace": namespace}})
    });
    json!({
        "metadata": {"namespace": namespace, "name": format!("{service}-1"), "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

fn pod(namespace: &str, name: &str, address: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": "orders"}, "annotations": {"tulle.dev/status": "{}"}},
        "spec": {"serviceAccountName": "orders", "nodeName": "n1", "initContainers": [{"name": "tulle-proxy"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": address}]},
    })
}

fn route(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "orders"}],
            "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}],
        },
        "status": {"parents": []},
    })
}

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

fn shop(definitions: &[&str]) -> Server {
    let server = Server::with(definitions);
    server.apply(SERVICES, service("shop", "orders"));
    server.apply(PODS, pod("shop", "orders-0", "10.0.0.1"));
    server.apply(SLICES, slice("shop", "orders", &[("orders-0", "10.0.0.1")]));
    server
}

fn expected(addresses: &[&str]) -> Vec<(String, String)> {
    addresses.iter().map(|address| ((*address).to_owned(), ORDERS.to_owned())).collect()
}

#[tokio::test]
async fn what_is_there_is_read_before_anything_is_published_and_then_what_changes() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    assert_eq!(reading.publisher.model().number(), 2, "one snapshot for all of it");
    assert_eq!(reading.endpoints("shop/orders"), expected(&["10.0.0.1"]));
    assert!(reading.has(ResourceType::Workload, "shop/orders-0"));

    server.apply(PODS, pod("shop", "orders-1", "10.0.0.2"));
    server.apply(SLICES, slice("shop", "orders", &[("orders-0", "10.0.0.1"), ("orders-1", "10.0.0.2")]));
    eventually("the new endpoint", || {
        reading.endpoints("shop/orders") == expected(&["10.0.0.1", "10.0.0.2"])
    })
    .await;
    server.delete(PODS, "shop/orders-0");
    server.apply(SLICES, slice("shop", "orders", &[("orders-1", "10.0.0.2")]));
    eventually("the old one gone", || reading.endpoints("shop/orders") == expected(&["10.0.0.2"])).await;
    server.delete(SERVICES, "shop/orders");
    eventually("the Service gone", || !reading.service("shop/orders")).await;
    assert!(server.asked(Asked::List, PODS) == 1 && server.asked(Asked::Watch, PODS) == 1);
}

#[tokio::test]
async fn r9_updates_of_a_pods_status_alone_are_sent_to_nobody() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    reading.caught_up("before").await;
    let before = reading.publisher.model().number();
    for restarts in 0..50 {
        let mut changed = pod("shop", "orders-0", "10.0.0.1");
        changed["status"]["conditions"] = json!([{"type": "Ready", "status": "True"}]);
        changed["status"]["containerStatuses"] = json!([{"name": "app", "restartCount": restarts}]);
        server.apply(PODS, changed);
    }
    // Told after them, and by another watch: what it tells is proof once the Pods' watch has told its own.
    server.apply(PODS, pod("shop", "last", "10.0.0.9"));
    eventually("the last Pod", || reading.has(ResourceType::Workload, "shop/last")).await;
    assert_eq!(reading.publisher.model().number(), before + 1, "the last Pod alone");
}

#[tokio::test]
async fn a_list_comes_in_pages_and_begins_again_where_its_token_is_too_old() {
    let server = Server::with(&[]);
    for n in 0..10 {
        server.apply(SERVICES, service("shop", &format!("s{n}")));
    }
    server.fail(Asked::More, SERVICES, Fault::Status(410, None));
    let reading = Reading::start(&server).await;
    assert!((0..10).all(|n| reading.service(&format!("shop/s{n}"))));
    assert_eq!((server.asked(Asked::List, SERVICES), server.asked(Asked::More, SERVICES)), (2, 4));
    assert_eq!(reading.errors("Service", "gone"), 1);
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_from_where_it_was() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    server.is_away(true);
    server.apply(SERVICES, service("shop", "meanwhile"));
    eventually("it is noticed", || reading.errors("Service", "unreachable") > 2).await;
    assert!(
        reading.service("shop/orders") && !reading.service("shop/meanwhile"),
        "what was read is served on"
    );
    server.is_away(false);
    eventually("what happened meanwhile", || reading.service("shop/meanwhile")).await;
    assert_eq!(reading.lists("Service"), 1, "nothing is listed again");
    assert_eq!(reading.endpoints("shop/orders"), expected(&["10.0.0.1"]));
}

#[tokio::test]
async fn what_went_while_it_could_not_be_followed_is_gone_at_the_next_list() {
    let server = shop(&[]);
    server.apply(SERVICES, service("shop", "old"));
    let reading = Reading::start(&server).await;
    assert!(reading.service("shop/old"));
    server.is_away(true);
    server.delete(SERVICES, "shop/old");
    server.apply(SERVICES, service("shop", "new"));
    server.compact();
    server.is_away(false);
    eventually("the new one", || reading.service("shop/new")).await;
    eventually("the old one gone", || !reading.service("shop/old")).await;
    assert!(reading.service("shop/orders"));
    assert_eq!((reading.lists("Service"), reading.errors("Service", "gone")), (2, 1));
    // What it says from then on is heard.
    reading.caught_up("after").await;
}

#[tokio::test]
async fn an_api_server_that_was_put_back_to_a_backup_is_read_anew() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    let backup = server.backup();
    server.apply(SERVICES, service("shop", "ghost"));
    for n in 0..20 {
        server.apply(SERVICES, service("shop", &format!("later{n}")));
    }
    eventually("the ghost", || reading.service("shop/ghost")).await;
    reading.caught_up("before").await;
    server.restore(backup);
    server.apply(SERVICES, service("shop", "new"));
    eventually("what is new, and of a lower version", || reading.service("shop/new")).await;
    eventually("the ghost gone", || !reading.service("shop/ghost")).await;
    assert_eq!((reading.lists("Service"), reading.errors("Service", "rewound")), (2, 1));
    assert!(reading.service("shop/orders"));
    reading.caught_up("after").await;
}

#[tokio::test]
async fn an_api_server_that_was_emptied_is_read_anew_kind_by_kind() {
    let server = shop(&[ROUTES]);
    server.apply(ROUTES, route("a"));
    let reading = Reading::start(&server).await;
    eventually("routes are watched", || server.watches(ROUTES) == 1).await;
    reading.caught_up("before").await;
    server.is_away(true);
    eventually("it is noticed", || reading.errors("Pod", "unreachable") > 2).await;
    assert_eq!(reading.endpoints("shop/orders"), expected(&["10.0.0.1"]), "what was read is served on");
    server.restore(Server::with(&[ROUTES]).backup());
    server.is_away(false);
    let routes = || reading.publisher.objects()[&(Kind::HttpRoute, "ok")];
    eventually("the Services gone", || !reading.service("shop/orders") && !reading.service("marks/before"))
        .await;
    eventually("the Pod gone", || !reading.has(ResourceType::Workload, "shop/orders-0")).await;
    eventually("the route gone", || routes() == 0).await;
    server.apply(SERVICES, service("shop", "orders"));
    eventually("what is made from then on", || reading.service("shop/orders")).await;
    reading.caught_up("after").await;
}

#[tokio::test]
async fn a_watch_that_goes_back_in_time_is_not_believed() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    reading.caught_up("before").await;
    for (told, text) in [
        ("a bookmark", r#"{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"1"}}}"#),
        (
            "an object",
            r#"{"type":"DELETED","object":{"metadata":{"namespace":"shop","name":"orders","resourceVersion":"1"}}}"#,
        ),
    ] {
        let (lists, rewound) = (reading.lists("Service"), reading.errors("Service", "rewound"));
        eventually("it is watched", || server.watches(SERVICES) == 1).await;
        server.say(SERVICES, text);
        eventually(told, || reading.errors("Service", "rewound") == rewound + 1).await;
        eventually("it is listed again", || reading.lists("Service") > lists).await;
        assert!(reading.service("shop/orders"));
    }
}

#[tokio::test]
async fn after_an_outage_all_is_listed_once_more_when_the_watch_has_lasted() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    let backup = server.backup();
    server.apply(SERVICES, service("shop", "ghost"));
    reading.caught_up("before").await;
    server.is_away(true);
    eventually("it is noticed", || reading.errors("Service", "unreachable") > 2).await;
    server.restore(backup);
    // It has overtaken what was read before anybody looks.
    for n in 0..20 {
        server.apply(PODS, pod("shop", &format!("p{n}"), "10.0.0.9"));
    }
    server.is_away(false);
    eventually("it is watched", || server.watches(SERVICES) == 1).await;
    reading.caught_up("between").await;
    assert_eq!(reading.lists("Service"), 1, "not at once: all kinds would be");
    assert!(reading.service("shop/ghost"));
    server.cut(SERVICES);
    eventually("the ghost gone", || !reading.service("shop/ghost")).await;
    for mark in ["again", "more"] {
        eventually("it is watched", || server.watches(SERVICES) == 1).await;
        reading.caught_up(mark).await;
        server.cut(SERVICES);
    }
    assert_eq!(reading.lists("Service"), 2, "once");
}

#[tokio::test]
async fn garbage_is_never_taken_for_news() {
    let server = shop(&[]);
    server.fail(Asked::List, SERVICES, Fault::Says("<html>a proxy's page</html>"));
    server.fail(Asked::List, SERVICES, Fault::Says("{}"));
    server.fail(Asked::List, PODS, Fault::Says(r#"{"metadata":{},"items":[]}"#));
    let reading = Reading::start(&server).await;
    assert_eq!((reading.errors("Service", "garbage"), reading.errors("Pod", "garbage")), (2, 1));
    assert_eq!(reading.endpoints("shop/orders"), expected(&["10.0.0.1"]));

    for text in ["{\"type\":\"ADDED\",\"obj", "{\"type\":\"NEWS\",\"object\":{}}", "\u{0}", "[]"] {
        let (garbage, lists) = (reading.errors("Service", "garbage"), reading.lists("Service"));
        eventually("it is watched", || server.watches(SERVICES) == 1).await;
        server.say(SERVICES, text);
        eventually("it is noticed", || reading.errors("Service", "garbage") == garbage + 1).await;
        eventually("it is listed again", || reading.lists("Service") > lists).await;
        assert!(reading.service("shop/orders"));
    }
    // An object without a name is nobody's.
    eventually("it is watched", || server.watches(SERVICES) == 1).await;
    server.say(SERVICES, r#"{"type":"ADDED","object":{"metadata":{"resourceVersion":"3"}}}"#);
    server.say(SERVICES, "");
    reading.caught_up("after").await;
}

#[tokio::test]
async fn who_is_busy_is_left_alone_and_who_closes_at_once_is_not_asked_ever_faster() {
    let server = shop(&[]);
    server.fail(Asked::List, SLICES, Fault::Status(429, Some(1)));
    let began = tokio::time::Instant::now();
    let reading = Reading::start(&server).await;
    assert!(began.elapsed() >= Duration::from_secs(1), "as long as it asks for");
    assert_eq!(reading.errors("EndpointSlice", "too_many_requests"), 1);
    let lists = reading.lists("EndpointSlice");
    for _ in 0..8 {
        server.fail(Asked::Watch, SLICES, Fault::Says(""));
    }
    server.cut(SLICES);
    eventually("all of them", || reading.errors("EndpointSlice", "short") == 8).await;
    assert_eq!(reading.lists("EndpointSlice"), lists, "it is resumed, and not listed again");
}

#[tokio::test]
async fn a_kind_that_is_installed_later_is_read_and_one_that_is_removed_is_gone() {
    let server = shop(&[]);
    let reading = Reading::start(&server).await;
    assert_eq!(reading.lists("HTTPRoute"), 0);
    let routes = || {
        let encoded = reading.publisher.model().get(ResourceType::Routes, "shop/shop/orders").unwrap();
        v1::Routes::decode(encoded.bytes.clone()).unwrap().http.len()
    };
    assert_eq!(routes(), 0);
    server.install(ROUTES);
    server.apply(ROUTES, route("a"));
    eventually("the route", || routes() == 1).await;
    server.apply(ROUTES, route("b"));
    eventually("both routes", || routes() == 2).await;
    server.uninstall(ROUTES);
    eventually("no route", || routes() == 0).await;
    assert!(reading.service("shop/orders"));
}

#[tokio::test]
async fn an_older_version_of_a_kind_is_read_where_there_is_no_newer_one() {
    let older = "gateway.networking.k8s.io/v1beta1/httproutes";
    let server = shop(&[older]);
    server.apply(older, route("a"));
    let reading = Reading::start(&server).await;
    assert_eq!(reading.lists("HTTPRoute"), 1);
    let counts = reading.publisher.objects();
    assert_eq!(counts.get(&(Kind::HttpRoute, "ok")), Some(&1));
}

#[tokio::test]
async fn a_kind_of_another_version_is_named_and_what_was_read_of_it_holds() {
    let server = shop(&[ROUTES]);
    server.apply(ROUTES, route("a"));
    let reading = Reading::start(&server).await;
    let count = || reading.publisher.objects().get(&(Kind::HttpRoute, "ok")).copied();
    assert_eq!(count(), Some(1));
    server.install("gateway.networking.k8s.io/v9/httproutes");
    server.uninstall(ROUTES);
    eventually("it is counted", || reading.errors("HTTPRoute", "other_version") > 0).await;
    let mut findings = reading.publisher.findings();
    let found = findings.wait_for(|found| !found.is_empty()).await.unwrap()[0].clone();
    assert!(found.message.contains("only as gateway.networking.k8s.io/v9,"), "{found}");
    assert_eq!(count(), Some(1), "it is in force still");
    server.install(ROUTES);
    server.apply(ROUTES, route("b"));
    findings.wait_for(|found| found.is_empty()).await.unwrap();
    eventually("what is there now", || reading.lists("HTTPRoute") == 2).await;

    // Who starts now reads the others.
    let server = shop(&["gateway.networking.k8s.io/v9/httproutes"]);
    Reading::start(&server).await;
}

#[tokio::test]
async fn what_the_control_plane_may_not_read_is_named_with_the_remedy() {
    let server = shop(&[]);
    for _ in 0..5 {
        server.fail(Asked::List, PODS, Fault::Status(403, None));
    }
    let reading = Reading::begin(&server);
    let mut findings = reading.publisher.findings();
    let found =
        tokio::time::timeout(Duration::from_secs(60), findings.wait_for(|found| !found.is_empty())).await;
    let found = found.unwrap().unwrap()[0].clone();
    assert_eq!(found.severity, Severity::Error);
    assert!(found.message.contains("may not read pods: said 403"), "{found}");
    let hint = found.hint.unwrap();
    assert!(hint.contains("`list` and `watch` the resource `pods` of the core API group"), "{hint}");
    reading.cluster.read().await;
    eventually("it is mended", || reading.publisher.findings().borrow().is_empty()).await;
    assert_eq!(reading.endpoints("shop/orders"), expected(&["10.0.0.1"]));

    // Taken away while it runs: what was read is served on, and nothing is listed again when it is given back.
    let forbidden = reading.errors("Service", "forbidden");
    eventually("it is watched", || server.watches(SERVICES) == 1).await;
    for _ in 0..3 {
        server.fail(Asked::Watch, SERVICES, Fault::Status(403, None));
    }
    server.cut(SERVICES);
    eventually("it is refused", || reading.errors("Service", "forbidden") > forbidden).await;
    assert!(reading.service("shop/orders"));
    reading.caught_up("after").await;
    eventually("it is mended", || reading.publisher.findings().borrow().is_empty()).await;
}

#[tokio::test]
async fn an_object_that_cannot_be_read_keeps_its_last_good_version_and_says_where_it_is() {
    let server = shop(&[POLICIES, MESHES]);
    let policy = |identities: Value| {
        json!({
            "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"namespace": "shop", "name": "p"},
            "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "rules": [{"from": [{"identities": identities}]}]},
        })
    };
    server.apply(POLICIES, policy(json!(["shop/web"])));
    let reading = Reading::start(&server).await;
    let identities = || {
        let encoded = reading.publisher.model().get(ResourceType::InboundPolicy, "shop/orders-0").unwrap();
        v1::InboundPolicy::decode(encoded.bytes.clone()).unwrap().rules[0].identities.clone()
    };
    let web = ["spiffe://cluster.local/ns/shop/sa/web"];
    assert_eq!(identities(), web);
    eventually("it is watched", || server.watches(POLICIES) == 1).await;
    server.apply(POLICIES, policy(json!("shop/web")));
    eventually("it is told", || !reading.publisher.findings().borrow().is_empty()).await;
    let found: Vec<Finding> = reading.publisher.findings().borrow().to_vec();
    assert!(
        found.iter().any(|found| found.object.as_deref() == Some("AuthorizationPolicy shop/p")
            && found.field.as_deref() == Some("spec.rules[0].from[0].identities")
            && found.file.is_none()),
        "{found:#?}"
    );
    assert_eq!(identities(), web, "the last good version holds");
    server.apply(POLICIES, policy(json!(["shop/other"])));
    eventually("it is mended", || reading.publisher.findings().borrow().is_empty()).await;
    eventually("the new one holds", || identities() == ["spiffe://cluster.local/ns/shop/sa/other"]).await;
    // Refused from the start, it is closed to everybody rather than open.
    server.delete(POLICIES, "shop/p");
    server.apply(POLICIES, policy(json!("shop/web")));
    eventually("nobody is let in", || identities().is_empty()).await;
    server.delete(POLICIES, "shop/p");
    eventually("nothing is wrong", || reading.publisher.findings().borrow().is_empty()).await;
}

#[tokio::test]
async fn a_field_that_only_a_newer_api_server_knows_is_nobodys_mistake() {
    let server = Server::with(&[]);
    let mut newer = service("shop", "orders");
    newer["spec"]["somethingNew"] = json!(true);
    server.apply(SERVICES, newer);
    let reading = Reading::start(&server).await;
    assert!(reading.service("shop/orders"));
    assert_eq!(
        reading.publisher.findings().borrow().len(),
        0,
        "{:#?}",
        reading.publisher.findings().borrow()
    );
}

#[tokio::test]
async fn metrics_say_what_is_watched_and_since_when_nothing_was_heard() {
    let server = shop(&[ROUTES]);
    let reading = Reading::start(&server).await;
    let connected = |kind: &str| reading.metrics.watch_connected.with_label_values(&[kind]).get();
    eventually("routes are watched", || connected("HTTPRoute") == 1).await;
    assert_eq!(connected("Pod"), 1);
    let bookmark = json!({"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": server.version().to_string()}}});
    server.say(PODS, &bookmark.to_string());
    let last = || reading.metrics.watch_events.with_label_values(&["Pod"]).get();
    eventually("the bookmark", || last() > 0).await;
    // It is resumed from there.
    server.cut(PODS);
    eventually("it is watched again", || server.watches(PODS) == 1).await;
    server.is_away(true);
    eventually("it is noticed", || connected("Pod") == 0).await;
}

#[tokio::test]
async fn of_a_connection_that_takes_too_long_it_is_said_how_long() {
    let elapsed = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
    let late = kube::Error::Service(Box::new(io::Error::new(io::ErrorKind::TimedOut, elapsed)));
    assert_eq!(innermost(&late, Duration::from_secs(5)), "no connection within 5s");
    let refused = kube::Error::Service(Box::new(io::Error::other("refused")));
    assert_eq!(innermost(&refused, Duration::from_secs(5)), "refused");
}
