//! What goes wrong around a mesh that works: the API server on bad days, rights that somebody takes away, a webhook that does not answer, pods
//! and labels that are not as they are meant, definitions of another version.
//!
//! All the while requests flow between injected pods. None is lost and none doubled; what is wrong is told, by its name; and when it is over,
//! what was applied meanwhile arrives, without anybody's help. Here a fault lasts for seconds, and all connections are cut when it ends; who
//! falls silent for good is given up by the watches' own deadlines, which `control-plane/src/source/kubernetes` tests in paused time.

use std::net::SocketAddr;
use std::sync::Arc;

use rustix::process::Signal;
use serde_json::{Value, json};
use tulle_tests::app::App;
use tulle_tests::cluster::Says;
use tulle_tests::load::{Load, Orders, Seen, Speech, Tally};
use tulle_tests::netns::in_a_node;
use tulle_tests::{Metrics, Wire, eventually, scrape};

use crate::chart::{CONTROL_PLANE, SYSTEM};
use crate::check::{Said, own_definition};
use crate::gateway_api;
use crate::mesh::{Mesh, Running, SHOP, load, route};

/// `web` asks `orders`, for as long as this lives.
struct Shop {
    web: Running,
    next: Running,
    _orders: Running,
    _apps: [App; 2],
    to: SocketAddr,
    load: Load,
    tally: Arc<Tally>,
    seen: Seen,
}

// === impl Shop ===

impl Shop {
    async fn open(mesh: &Mesh) -> Self {
        let (web, orders, next) =
            futures_util::future::join3(mesh.app("web"), mesh.app("orders"), mesh.app("next")).await;
        let seen = Seen::default();
        let apps = [&orders, &next]
            .map(|running| Orders::start_on(running.pod.listen("[::]:8080"), Speech::Http1, &seen));
        let to = mesh.service("orders", &[&orders]).await;
        mesh.service("next", &[&next]).await;
        eventually("web reaches orders", async || web.pod.curl_port(to).await.map(drop)).await;
        let tally = Arc::<Tally>::default();
        let load = load(&web, to, &tally);
        Self { web, next, _orders: orders, _apps: apps, to, load, tally, seen }
    }

    /// Waits until so many more requests were made.
    async fn goes_on(&self, more: u64) {
        let asked = self.tally.asked();
        eventually("requests go on", async || match self.tally.asked() {
            now if now > asked + more => Ok(()),
            now => Err(now.to_string()),
        })
        .await;
    }

    /// What the route says that `web`'s proxy obeys, if there is one.
    async fn by(&self) -> Result<Option<String>, String> {
        let dialled = self.web.pod.namespace().dial(self.to).connect().await;
        let mut wire = Wire::new(dialled.map_err(|error| error.to_string())?);
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        let (head, _) = wire.response().await;
        Ok(head.get("x-by").map(str::to_owned))
    }

    /// Waits until the route that says `value` is what `web`'s proxy obeys.
    async fn obeys(&self, value: &str) {
        eventually(&format!("the route `{value}` arrives"), async || match self.by().await? {
            Some(by) if by == value => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
    }

    /// The end: nothing was lost, and nothing came twice.
    async fn close(self) {
        self.load.leave_after(0).await;
        self.tally.assert_nothing_lost();
        assert_eq!(self.seen.twice(), [""; 0]);
    }
}

fn control_plane(mesh: &Mesh) -> SocketAddr {
    SocketAddr::new(mesh.replicas[0].pod.v4().into(), 15014)
}

fn log(mesh: &Mesh) -> String {
    mesh.replicas[0].process("control-plane").stdout()
}

/// Waits until the first control plane's log has a line with all of these.
async fn logs(mesh: &Mesh, all: &[&str]) {
    eventually(&format!("the log says {all:?}"), async || {
        let log = log(mesh);
        let said = log.lines().any(|line| all.iter().all(|one| line.contains(one)));
        if said { Ok(()) } else { Err(mesh.replicas[0].process("control-plane").tail()) }
    })
    .await;
}

/// Waits until the first control plane's metrics are so.
async fn counts(mesh: &Mesh, what: &str, is: impl Fn(&Metrics) -> bool) {
    eventually(what, async || {
        let metrics = scrape(control_plane(mesh)).await;
        if is(&metrics) { Ok(()) } else { Err(format!("{metrics:?}")) }
    })
    .await;
}

async fn is_ready(mesh: &Mesh) {
    let mut wire = Wire::connect(control_plane(mesh)).await;
    wire.send("GET /ready HTTP/1.1\r\nhost: control-plane\r\nconnection: close\r\n\r\n").await;
    let (head, body) = wire.response().await;
    assert_eq!(head.status(), 200, "{}", String::from_utf8_lossy(&body));
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn rights_that_are_taken_away_are_told_and_disturb_nothing() {
    in_a_node(async || {
        let mesh = Mesh::start_through().await;
        let shop = Shop::open(&mesh).await;
        let caller = mesh.server.administrator();
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": CONTROL_PLANE},
        });
        let kept = caller.now(&binding).await.unwrap();
        let own = mesh.server.caller(&mesh.server.token(SYSTEM, CONTROL_PLANE, "", None).await);
        own.get("/api/v1/pods").await.unwrap();
        caller.delete(&binding).await.unwrap();
        eventually("the rights are gone", async || match own.get("/api/v1/pods").await {
            Err(refused) if refused.code == 403 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        // An open watch is not judged anew: only the next one is forbidden.
        mesh.between().say(Says::TheTruth);
        for (kind, resource) in [("Pod", "pods"), ("HTTPRoute", "httproutes")] {
            // Before a watch is opened anew it is asked which version is current, by a list of one.
            let said = format!("cannot list resource \"{resource}\"");
            logs(&mesh, &["does not allow it", &said, "served on"]).await;
            counts(&mesh, "the forbidden watch is counted", |metrics| {
                let labels = [("kind", kind), ("reason", "forbidden")];
                metrics.sum("tulle_control_plane_watch_errors_total", &labels) >= 1.0
            })
            .await;
        }
        counts(&mesh, "what is forbidden is found wrong", |metrics| {
            metrics.sum("tulle_control_plane_findings", &[("severity", "error")]) >= 10.0
        })
        .await;
        logs(&mesh, &["may not watch EndpointSlices of ours", "ClusterRole"]).await;
        // It serves on what it has, and so do the proxies.
        is_ready(&mesh).await;
        caller.apply(&route("next", "meanwhile")).await.unwrap();
        let asked = mesh.between().asked();
        shop.goes_on(80).await;
        // Two seconds; each of some twenty that ask waits longer each time.
        let asked = mesh.between().asked() - asked;
        assert!(asked < 120, "asked {asked} times in two seconds");

        let back = json!({
            "apiVersion": kept["apiVersion"], "kind": kept["kind"],
            "metadata": {"name": CONTROL_PLANE, "labels": kept["metadata"]["labels"]},
            "roleRef": kept["roleRef"], "subjects": kept["subjects"],
        });
        caller.apply(&back).await.unwrap();
        shop.obeys("meanwhile").await;
        counts(&mesh, "nothing is wrong any more", |metrics| {
            metrics.sum("tulle_control_plane_findings", &[("severity", "error")]) < 1.0
        })
        .await;
        logs(&mesh, &["pods are read again"]).await;
        shop.close().await;
    });
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn an_api_server_on_its_bad_days_is_not_stormed_and_what_it_has_meanwhile_arrives() {
    in_a_node(async || {
        let mesh = Mesh::start_through().await;
        let shop = Shop::open(&mesh).await;
        let caller = mesh.server.administrator();
        let days = [
            (Says::TooMany, "too_many", "too_many_requests", 80),
            (Says::Gone, "gone", "gone", 300),
            (Says::Failed, "failed", "refused", 200),
            (Says::Garbage, "garbage", "garbage", 300),
            (Says::Half, "half", "unreachable", 120),
            (Says::Reset, "reset", "unreachable", 200),
        ];
        for (number, (says, word, reason, at_most)) in days.into_iter().enumerate() {
            let errors = |metrics: &Metrics| {
                metrics.sum("tulle_control_plane_watch_errors_total", &[("reason", reason)])
            };
            let before = errors(&scrape(control_plane(&mesh)).await);
            let asked = mesh.between().asked();
            mesh.between().say(says);
            let to = ["next", "orders"][number % 2];
            caller.apply(&route(to, word)).await.unwrap();
            // Two seconds.
            shop.goes_on(80).await;
            let asked = mesh.between().asked() - asked;
            eprintln!("{word}: asked {asked} times");
            assert!(asked > 0, "{word}: nobody asked");
            assert!(asked < at_most, "{word}: asked {asked} times in two seconds");
            is_ready(&mesh).await;
            mesh.between().say(Says::TheTruth);
            shop.obeys(word).await;
            counts(&mesh, &format!("{word} is counted as {reason}"), |metrics| errors(metrics) > before)
                .await;
        }
        // All of it at the end: statuses, and somebody new.
        mesh.told(&route("orders", "reset"), "parents", "Accepted", "True").await;
        let late = mesh.app("late").await;
        eventually("late reaches orders", async || late.pod.curl_port(shop.to).await.map(drop)).await;
        shop.close().await;
    });
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn an_api_server_that_is_put_back_to_a_backup_is_read_anew_and_what_it_lacks_is_written_again() {
    in_a_node(async || {
        let mut mesh = Mesh::start(1).await;
        let shop = Shop::open(&mesh).await;
        // A backup from a moment at which somebody had deleted the keys of the authority.
        let identity = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": SYSTEM, "name": "tulle-identity"},
        });
        let keys = mesh.server.administrator().now(&identity).await.unwrap()["data"].clone();
        mesh.replicas[0].process_mut("control-plane").signal(Signal::STOP);
        mesh.server.administrator().delete(&identity).await.unwrap();
        mesh.server.back_up().await;
        mesh.replicas[0].process_mut("control-plane").signal(Signal::CONT);
        has_keys(&mesh, &identity, &keys).await;

        // What happens after it, at versions that the backup reaches only long after it is put back.
        let caller = mesh.server.administrator();
        for number in 0..500 {
            let history = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": SHOP, "name": "history"},
                "data": {"number": number.to_string()},
            });
            caller.apply(&history).await.unwrap();
        }
        caller.apply(&route("next", "ghost")).await.unwrap();
        shop.obeys("ghost").await;
        let written = "tulle_control_plane_identity_writes_total";
        let before = scrape(control_plane(&mesh)).await.sum(written, &[("outcome", "written")]);

        mesh.server.restore().await;
        eventually("the route of after the backup goes", async || match shop.by().await? {
            None => Ok(()),
            Some(value) => Err(value),
        })
        .await;
        logs(&mesh, &["put back to an older state", "httproutes"]).await;
        counts(&mesh, "it is counted", |metrics| {
            let labels = [("kind", "HTTPRoute"), ("reason", "rewound")];
            metrics.sum("tulle_control_plane_watch_errors_total", &labels) >= 1.0
        })
        .await;
        is_ready(&mesh).await;
        mesh.server.administrator().apply(&route("next", "new")).await.unwrap();
        shop.obeys("new").await;
        mesh.told(&route("next", "new"), "parents", "Accepted", "True").await;
        has_keys(&mesh, &identity, &keys).await;
        counts(&mesh, "the keys were written again", |metrics| {
            metrics.sum(written, &[("outcome", "written")]) > before
        })
        .await;
        let late = mesh.app("late").await;
        eventually("late reaches orders", async || late.pod.curl_port(shop.to).await.map(drop)).await;
        shop.close().await;
    });
}

/// Waits until the authority's keys are these.
async fn has_keys(mesh: &Mesh, identity: &Value, keys: &Value) {
    eventually("the authority's keys are there", async || {
        let now = mesh.server.administrator().now(identity).await.map_err(|refused| refused.to_string())?;
        let same = ["ca.pem", "ca-key.pem", "token-key.pem"].iter().all(|key| now["data"][key] == keys[key]);
        if same { Ok(()) } else { Err("they are others".to_owned()) }
    })
    .await;
}

fn pod(name: &str, labels: &Value, port: u16, container: &str, volume: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": SHOP, "name": name, "labels": labels},
        "spec": {
            "containers": [{"name": container, "image": "app", "ports": [{"containerPort": port}]}],
            "volumes": [{"name": volume, "emptyDir": {}}],
        },
    })
}

/// The API server's configuration of the webhook, with this failure policy.
async fn set_failure_policy(mesh: &Mesh, policy: &str) {
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "tulle-webhook"},
    });
    let caller = mesh.server.administrator();
    let mut changed = configuration.clone();
    changed["webhooks"] = caller.now(&configuration).await.unwrap()["webhooks"].clone();
    for webhook in changed["webhooks"].as_array_mut().unwrap() {
        assert_eq!(webhook["timeoutSeconds"], 5, "as the chart has it");
        webhook["failurePolicy"] = policy.into();
    }
    caller.apply(&changed).await.unwrap();
}

/// Waits until an event of this reason about this object says this.
pub(crate) async fn is_told(mesh: &Mesh, namespace: &str, name: &str, reason: &str, says: &[&str]) {
    eventually(&format!("an event says {reason} of {name}"), async || {
        let events = mesh.server.administrator().get(&format!("/api/v1/namespaces/{namespace}/events")).await;
        let events = events.map_err(|refused| refused.to_string())?;
        let told = events["items"].as_array().unwrap().iter().any(|event| {
            let message = event["message"].as_str().unwrap_or_default();
            event["involvedObject"]["name"] == name
                && event["reason"] == reason
                && event["type"] == "Warning"
                && says.iter().all(|one| message.contains(one))
        });
        if told { Ok(()) } else { Err(format!("{:#}", events["items"])) }
    })
    .await;
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn pods_that_have_no_proxy_are_named_whatever_kept_it_from_them() {
    in_a_node(async || {
        let mut mesh = Mesh::start(1).await;
        let shop = Shop::open(&mesh).await;
        mesh.server.namespace("bank", json!({"tulle.dev/inject": "enabld"})).await;

        // Pods that cannot have one as they are: refused where the pod asks by itself, and let through where its namespace does.
        let asks = json!({"tulle.dev/inject": "enabled"});
        let clashes = [
            ("port", "port_conflict", "15001", 15001, "app", "data"),
            ("name", "name_conflict", "`tulle-proxy`", 8080, "tulle-proxy", "data"),
            ("volume", "volume_conflict", "`tulle-identity`", 8080, "app", "tulle-identity"),
        ];
        let caller = mesh.server.administrator();
        for (name, reason, says, port, container, volume) in clashes {
            let refused = caller.create(&pod(name, &asks, port, container, volume)).await.unwrap_err();
            let message = &refused.message;
            assert_eq!(refused.code, 422, "{message}");
            assert!(message.contains(reason) && message.contains(says), "{name}: {message}");
            let kept = caller.create(&pod(name, &json!({}), port, container, volume)).await.unwrap();
            assert!(kept["metadata"]["annotations"]["tulle.dev/status"].is_null(), "{kept:#}");
        }

        // A webhook that says nothing: the failure policy decides, after the chart's timeout.
        mesh.replicas[0].process_mut("control-plane").signal(Signal::STOP);
        let caller = mesh.server.administrator();
        let plain = |name: &str| pod(name, &json!({}), 8080, "app", "data");
        let bare = caller.create(&plain("bare")).await.unwrap();
        assert!(bare["metadata"]["annotations"]["tulle.dev/status"].is_null(), "{bare:#}");
        set_failure_policy(&mesh, "Fail").await;
        let refused = eventually("the pod is refused", async || match caller.create(&plain("never")).await {
            Err(refused) => Ok(refused),
            Ok(kept) => {
                caller.delete(&kept).await.map_err(|refused| refused.to_string())?;
                Err("it was not".to_owned())
            }
        })
        .await;
        let message = &refused.message;
        assert!(message.contains("inject.tulle.dev") && message.contains("deadline exceeded"), "{message}");
        set_failure_policy(&mesh, "Ignore").await;
        shop.goes_on(20).await;
        // So long that it no longer believes to lead; who leads anew looks at once.
        mesh.replicas[0].process_mut("control-plane").signal(Signal::CONT);

        is_told(&mesh, SHOP, "bare", "NotInMesh", &["not_injected", "rollout restart"]).await;
        for (name, reason, says, ..) in clashes {
            is_told(&mesh, SHOP, name, "NotInMesh", &[reason, says]).await;
        }
        is_told(&mesh, "bank", "bank", "Misspelt", &["`enabld`", "did you mean `enabled`?"]).await;
        logs(&mesh, &["the namespace bank", "`enabld`"]).await;
        logs(&mesh, &["shop/bare", "not_injected"]).await;
        for reason in ["not_injected", "port_conflict", "name_conflict", "volume_conflict"] {
            counts(&mesh, "pods without a proxy are counted", |metrics| {
                metrics.sum("tulle_unmeshed_pods", &[("reason", reason)]) == 1.0
            })
            .await;
        }
        let said = Said::by(&mesh.server.kubeconfig("administrator", "administrator"), &[]);
        said.must("pods-unmeshed", "warning", "shop/bare: not_injected");
        said.must("pods-unmeshed", "warning", "the namespace bank has the label tulle.dev/inject: `enabld`");
        said.must("port-conflicts", "warning", "shop/port: the container app listens on 15001");
        // And who comes now is injected.
        let late = mesh.app("late").await;
        eventually("late reaches orders", async || late.pod.curl_port(shop.to).await.map(drop)).await;
        shop.close().await;
    });
}

/// Served in another version, and no more in its own.
fn of_another_version(mut definition: Value) -> Value {
    let versions = definition["spec"]["versions"].as_array_mut().unwrap();
    let mut other = versions[0].clone();
    versions[0]["served"] = false.into();
    other["name"] = "v1beta9".into();
    other["storage"] = false.into();
    versions.push(other);
    definition
}

/// With a schema that takes whatever is written.
fn lax(mut definition: Value) -> Value {
    let schema = &mut definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    *schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    definition
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn definitions_of_another_version_take_nothing_out_of_force() {
    in_a_node(async || {
        let mesh = Mesh::start_through().await;
        let shop = Shop::open(&mesh).await;
        let caller = mesh.server.administrator();
        let policy = |name: &str, spec: Value| {
            json!({
                "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": name, "namespace": SHOP}, "spec": spec,
            })
        };
        let only_web = policy(
            "orders",
            json!({
                "targetRefs": [{"kind": "Service", "name": "orders"}],
                "rules": [{"name": "web", "from": [{"identities": [format!("{SHOP}/web")]}]}],
            }),
        );
        caller.apply(&only_web).await.unwrap();
        let is_refused = async || {
            eventually("next is refused", async || match shop.next.pod.curl_port(shop.to).await {
                Ok(said) => Err(said),
                Err(_) => Ok(()),
            })
            .await;
        };
        is_refused().await;

        let definition = own_definition("authorizationpolicies.policy.tulle.dev");
        mesh.server.define(&[of_another_version(definition.clone())]).await;
        logs(&mesh, &["authorizationpolicies", "only as policy.tulle.dev/v1beta9", "served on"]).await;
        counts(&mesh, "another version is counted", |metrics| {
            let labels = [("kind", "AuthorizationPolicy"), ("reason", "other_version")];
            metrics.sum("tulle_control_plane_watch_errors_total", &labels) >= 1.0
                && metrics.sum("tulle_control_plane_findings", &[("severity", "error")]) >= 1.0
        })
        .await;
        is_ready(&mesh).await;
        caller.apply(&route("next", "meanwhile")).await.unwrap();
        shop.obeys("meanwhile").await;
        caller.apply(&route("orders", "back")).await.unwrap();
        shop.obeys("back").await;
        is_refused().await;

        // Back, and then with objects that nobody understands.
        mesh.server.define(&[lax(definition.clone())]).await;
        counts(&mesh, "nothing is wrong any more", |metrics| {
            metrics.sum("tulle_control_plane_findings", &[("severity", "error")]) < 1.0
        })
        .await;
        caller.apply(&policy("strange", json!({"targetRefs": "nonsense", "rules": 7}))).await.unwrap();
        logs(&mesh, &["strange"]).await;
        counts(&mesh, "the strange one is found wrong", |metrics| {
            metrics.sum("tulle_control_plane_findings", &[("severity", "error")]) >= 1.0
        })
        .await;
        is_refused().await;
        caller.delete(&policy("strange", json!({}))).await.unwrap();
        mesh.server.define(&[definition]).await;

        // Routes that go with their definition, and come again with it.
        let all = gateway_api("standard");
        let routes = all.iter().find(|one| one["metadata"]["name"] == "httproutes.gateway.networking.k8s.io");
        let routes = routes.unwrap();
        caller.delete(routes).await.unwrap();
        logs(&mesh, &["has no httproutes", "once their definition is installed"]).await;
        shop.goes_on(20).await;
        is_refused().await;
        eventually("the definition is gone", async || match caller.now(routes).await {
            Err(refused) if refused.code == 404 => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        mesh.server.define(std::slice::from_ref(routes)).await;
        caller.apply(&route("next", "again")).await.unwrap();
        shop.obeys("again").await;
        mesh.told(&route("next", "again"), "parents", "Accepted", "True").await;
        shop.close().await;
    });
}
