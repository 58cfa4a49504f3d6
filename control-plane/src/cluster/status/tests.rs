use http::Method;
use prometheus::Opts;
use tokio::sync::watch;

use super::said::{Entry, Said};
use super::*;
use crate::cluster::testing::{ApiServer, Failure};
use crate::finding::Severity;
use crate::index::Index;
use crate::model::Settings;
use crate::source::read_text;

const ROUTES: &str = "/apis/gateway.networking.k8s.io/v1";
const POLICIES: &str = "/apis/policy.tulle.dev/v1alpha1";
const ORDERS: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80}]}\n---\n";

fn form(kind: Kind) -> Form {
    Form::of(kind).unwrap()
}

fn about(name: &str) -> Value {
    json!({"group": "", "kind": "Service", "namespace": "shop", "name": name})
}

fn entry(name: &str, status: &'static str) -> Entry {
    let said = Said { condition: "Accepted", status, reason: "Because", message: "so".into() };
    Entry { about: about(name), conditions: vec![said] }
}

fn theirs(name: &str) -> Value {
    json!({"parentRef": about(name), "controllerName": "other.example/x", "conditions": [], "extra": 1})
}

#[test]
fn what_others_have_said_stays_as_it_is_and_where_it_is() {
    let form = form(Kind::HttpRoute);
    let status = json!({ "parents": [theirs("orders")] });
    let first = form.put(&status, &[entry("orders", "True")], 3, "t1").unwrap();
    assert_eq!((first.as_array().unwrap().len(), &first[0]), (2, &theirs("orders")));
    assert_eq!(first[1]["controllerName"], CONTROLLER);
    assert_eq!(first[1]["conditions"][0]["observedGeneration"], 3);

    // Ours first, theirs after it: neither side moves the other's.
    let status = json!({ "parents": [first[1], theirs("orders")] });
    assert_eq!(form.put(&status, &[entry("orders", "True")], 3, "t2"), None, "nothing to say");
    let gone = form.put(&status, &[], 3, "t2").unwrap();
    assert_eq!(gone, json!([theirs("orders")]), "a parent that is no longer referred to");
    assert_eq!(form.put(&json!({ "parents": [theirs("orders")] }), &[], 3, "t2"), None);
    assert_eq!(form.put(&Value::Null, &[], 3, "t2"), None, "an object without any status");
}

#[test]
fn a_condition_keeps_its_time_until_its_status_changes() {
    let form = form(Kind::HttpRoute);
    let put = |status: &Value, wanted: &Entry, generation, now| {
        form.put(&json!({ "parents": status }), std::slice::from_ref(wanted), generation, now).unwrap()
    };
    let first = put(&json!([]), &entry("orders", "True"), 1, "t1");
    let mut reworded = entry("orders", "True");
    reworded.conditions[0].message = "otherwise".into();
    let second = put(&first, &reworded, 2, "t2");
    let condition = &second[0]["conditions"][0];
    assert_eq!(
        (&condition["lastTransitionTime"], &condition["observedGeneration"]),
        (&json!("t1"), &json!(2))
    );
    let third = put(&second, &entry("orders", "False"), 2, "t3");
    assert_eq!(third[0]["conditions"][0]["lastTransitionTime"], "t3");
}

#[test]
fn there_is_never_more_than_the_api_server_takes() {
    let many: Vec<Entry> = (0..20).map(|number| entry(&format!("s{number}"), "True")).collect();
    let others: Vec<Value> = (0..3)
        .map(|number| json!({"ancestorRef": about(&format!("o{number}")), "controllerName": "other.example/x"}))
        .collect();
    let status = json!({ "ancestors": others });
    let list = form(Kind::TrafficPolicy).put(&status, &many, 1, "t").unwrap();
    assert_eq!(list.as_array().unwrap().len(), 16);
    assert_eq!(list[0], others[0]);
}

#[test]
fn what_a_refused_object_is_attached_to_is_read_as_far_as_it_can_be() {
    let spec = json!({"parentRefs": [
        {"group": "", "kind": "Service", "name": "orders", "port": 80},
        {"name": "a-gateway"},
        {"group": "", "kind": "Service"},
        "nonsense",
        {"group": "", "kind": "Service", "name": "far", "namespace": "bank"},
    ]});
    let mut orders = about("orders");
    orders["port"] = json!(80);
    let far = json!({"group": "", "kind": "Service", "namespace": "bank", "name": "far"});
    assert_eq!(form(Kind::HttpRoute).refs("shop", &spec), [orders, far]);
    let none = form(Kind::EgressPolicy).refs("shop", &json!({}));
    assert_eq!(none, [json!({"group": "", "kind": "Namespace", "name": "shop"})]);
}

/// A control plane whose source is the test, beside an API server that has what the source has.
struct World {
    server: Arc<ApiServer>,
    publisher: Arc<Publisher>,
    held: watch::Sender<bool>,
    outcomes: IntCounterVec,
    tasks: JoinSet<()>,
}

impl World {
    fn start() -> Self {
        let server = ApiServer::start();
        server.serve(ROUTES, &[("HTTPRoute", "httproutes"), ("GRPCRoute", "grpcroutes")]);
        server.serve(POLICIES, &[("TrafficPolicy", "trafficpolicies"), ("EgressPolicy", "egresspolicies")]);
        let publisher = Publisher::new(Index::default(), Settings::default(), Vec::new());
        let outcomes = IntCounterVec::new(Opts::new("writes", "x"), &["outcome"]).unwrap();
        let held = watch::Sender::new(true);
        let statuses = Statuses::new(server.client(), Arc::clone(&publisher), outcomes.clone());
        let mut tasks = JoinSet::new();
        let running = Arc::clone(&publisher);
        tasks.spawn(async move { running.run().await });
        tasks.spawn(statuses.keep(Holder::of(held.subscribe())));
        Self { server, publisher, held, outcomes, tasks }
    }

    /// What the source reads.
    fn source(&self, text: &str) {
        let read = read_text(text);
        self.publisher.apply(read.changes, read.findings);
    }

    fn written(&self) -> u64 {
        self.outcomes.with_label_values(&["written"]).get()
    }

    async fn says(&self, path: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..6000 {
            if let Some(object) = self.server.object(path)
                && holds(&object["status"])
            {
                return object["status"].clone();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{what}: {:?}", self.server.object(path));
    }
}

fn route(generation: i64, port: u16) -> (String, Value) {
    let spec = json!({
        "parentRefs": [{"group": "", "kind": "Service", "name": "orders", "port": port}],
        "rules": [{"backendRefs": [{"name": "orders", "port": 80}]}],
    });
    let metadata = json!({"name": "r", "namespace": "shop", "generation": generation});
    let object = json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": spec});
    (format!("{object}\n"), object)
}

fn path(kind: &str, name: &str) -> String {
    let base = if kind.ends_with("routes") { ROUTES } else { POLICIES };
    format!("{base}/namespaces/shop/{kind}/{name}")
}

fn accepted(list: &str) -> impl Fn(&Value) -> Option<(String, i64)> {
    move |status| {
        let ours = status[list].as_array()?.iter().find(|entry| entry["controllerName"] == CONTROLLER)?;
        let condition = ours["conditions"].as_array()?.iter().find(|one| one["type"] == "Accepted")?;
        Some((condition["status"].as_str()?.to_owned(), condition["observedGeneration"].as_i64()?))
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_is_told_what_has_become_of_it_once() {
    let world = World::start();
    let (text, object) = route(1, 80);
    world.server.put(&path("httproutes", "r"), object);
    world.source(&format!("{ORDERS}{text}"));
    let accepted = accepted("parents");
    let is = |status: &'static str, generation: i64| {
        move |said: Option<(String, i64)>| said == Some((String::from(status), generation))
    };
    world.says(&path("httproutes", "r"), "accepted", |status| is("True", 1)(accepted(status))).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.written(), 1, "our own write is no reason for another");

    // The object changes; until the source has read it nothing is said of it.
    let (text, object) = route(2, 81);
    let mut changed = world.server.object(&path("httproutes", "r")).unwrap();
    changed["spec"] = object["spec"].clone();
    world.server.put(&path("httproutes", "r"), changed);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.written(), 1);
    world.source(&text);
    world.says(&path("httproutes", "r"), "not accepted", |status| is("False", 2)(accepted(status))).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_refused_is_told_why() {
    let world = World::start();
    let spec = json!({"targetRefs": [{"group": "", "kind": "Service", "name": "orders"}], "retry": {"attempts": -1}});
    let object = json!({
        "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": "p", "namespace": "shop", "generation": 1}, "spec": spec,
    });
    world.server.put(&path("trafficpolicies", "p"), object.clone());
    world.source(&format!("{ORDERS}{object}\n"));
    assert!(read_text(&object.to_string()).findings.iter().any(|one| one.severity == Severity::Error));
    let accepted = accepted("ancestors");
    let status = world
        .says(&path("trafficpolicies", "p"), "refused", |status| {
            accepted(status) == Some(("False".into(), 1))
        })
        .await;
    let condition = &status["ancestors"][0]["conditions"][0];
    assert_eq!(condition["reason"], "Invalid");
    assert!(condition["message"].as_str().unwrap().contains("spec.retry"), "{condition}");
    assert_eq!(status["ancestors"][0]["ancestorRef"], about("orders"));
}

#[tokio::test(start_paused = true)]
async fn an_egress_policy_of_a_whole_namespace_is_told_so() {
    let world = World::start();
    let object = json!({
        "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "EgressPolicy",
        "metadata": {"name": "p", "namespace": "shop", "generation": 1}, "spec": {"action": "deny"},
    });
    world.server.put(&path("egresspolicies", "p"), object.clone());
    world.source(&object.to_string());
    let accepted = accepted("ancestors");
    let status = world
        .says(&path("egresspolicies", "p"), "accepted", |status| accepted(status) == Some(("True".into(), 1)))
        .await;
    let expected = json!({"group": "", "kind": "Namespace", "name": "shop"});
    assert_eq!(status["ancestors"][0]["ancestorRef"], expected);
}

#[tokio::test(start_paused = true)]
async fn who_does_not_hold_the_lease_does_not_write() {
    let world = World::start();
    world.held.send_replace(false);
    let (text, object) = route(1, 80);
    world.server.put(&path("httproutes", "r"), object);
    world.source(&format!("{ORDERS}{text}"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.written(), 0);
    world.held.send_replace(true);
    let accepted = accepted("parents");
    world.says(&path("httproutes", "r"), "accepted", |status| accepted(status).is_some()).await;
}

#[tokio::test(start_paused = true)]
async fn conflicts_failures_and_objects_that_are_gone_cost_nobody_else_a_status() {
    let world = World::start();
    let (text, object) = route(1, 80);
    let other = |value: &Value| {
        let mut value = value.clone();
        value["metadata"]["name"] = json!("s");
        value
    };
    let conflicts = std::sync::atomic::AtomicUsize::new(0);
    world.server.fail(move |method, path| {
        if *method != Method::PATCH {
            return None;
        }
        if path.contains("/s/") {
            return Some(Failure::Status(404));
        }
        match conflicts.fetch_add(1, std::sync::atomic::Ordering::Relaxed) {
            0 | 1 => Some(Failure::Status(409)),
            2 => Some(Failure::Status(500)),
            3 => Some(Failure::Silence),
            _ => None,
        }
    });
    world.server.put(&path("httproutes", "r"), object.clone());
    world.server.put(&path("httproutes", "s"), other(&object));
    world.source(&format!("{ORDERS}{text}---\n{}\n", other(&object)));
    let accepted = accepted("parents");
    world.says(&path("httproutes", "r"), "accepted", |status| accepted(status).is_some()).await;
    for (outcome, times) in [("conflict", 2), ("failed", 2), ("written", 1), ("gone", 1)] {
        assert_eq!(world.outcomes.with_label_values(&[outcome]).get(), times, "{outcome}");
    }
    assert!(!world.tasks.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_others_write_does_not_make_an_object_younger() {
    let told = |generation: i64, version: &str| {
        let metadata =
            json!({"name": "p", "namespace": "shop", "generation": generation, "resourceVersion": version});
        let object = serde_json::from_value(json!({
            "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": metadata, "spec": {},
        }));
        let resource = ApiResource {
            group: "policy.tulle.dev".into(),
            version: "v1alpha1".into(),
            api_version: "policy.tulle.dev/v1alpha1".into(),
            kind: "TrafficPolicy".into(),
            plural: "trafficpolicies".into(),
        };
        Told { kind: Kind::TrafficPolicy, resource, event: Event::Apply(object.unwrap()) }
    };
    let mut objects = Objects::default();
    let since = |objects: &Objects| {
        objects.of[&Kind::TrafficPolicy].1.all().values().map(|live| live.since).next().unwrap()
    };
    objects.take_in(told(1, "1"));
    let first = since(&objects);
    for version in ["2", "3", "4"] {
        tokio::time::sleep(Duration::from_secs(1)).await;
        objects.take_in(told(1, version));
    }
    assert_eq!(since(&objects), first);
    objects.take_in(told(2, "5"));
    assert!(since(&objects) > first, "another generation has not been judged yet");
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_stored_otherwise_is_not_written_again_at_once() {
    let live = Live {
        generation: 1,
        version: "1".into(),
        status: json!({}),
        refs: Vec::new(),
        since: Instant::now(),
    };
    let resource = ApiResource {
        group: String::new(),
        version: "v1".into(),
        api_version: "v1".into(),
        kind: "HTTPRoute".into(),
        plural: "httproutes".into(),
    };
    let write = Write {
        key: ObjectKey::parse("HTTPRoute shop/r").unwrap(),
        resource,
        form: form(Kind::HttpRoute),
        live: live.clone(),
        judgement: Judgement { generation: Some(1), entries: vec![entry("orders", "True")] },
    };
    let mut objects = Objects::default();
    // As if it had not been written at all.
    let mut waits = Vec::new();
    for _ in 0..4 {
        let again = objects.written(&write, Written::Stored(Some(live.clone()))).unwrap();
        waits.push(again - Instant::now());
    }
    assert!(waits[0] > Duration::ZERO && waits[3] > waits[0], "{waits:?}");
    let list = write.form.put(&json!({}), &write.judgement.entries, 1, "t").unwrap();
    let right = Live { status: json!({ "parents": list }), ..live };
    assert_eq!(objects.written(&write, Written::Stored(Some(right))), None);
    assert!(objects.retry.is_empty());
}
