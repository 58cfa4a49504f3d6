//! The mesh as the chart installs it on a real API server: replicas of the control plane from the chart's Deployment, pods that the server
//! itself has had injected by our webhook, and proxies started from what came back, in network namespaces
//! (`tulle_tests::cluster::kubelet`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tulle_tests::app::{App, full};
use tulle_tests::cluster::kubelet::{Containers, Kubelet};
use tulle_tests::cluster::{ApiServer, Between};
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Network, Pod};
use tulle_tests::{Folder, Process, eventually};

use crate::chart::{CONTROL_PLANE, SYSTEM, install};
use crate::gateway_api;

/// Where applications are.
pub(crate) const SHOP: &str = "shop";
/// The node's own address, at which the API server listens.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// A cluster with the mesh in it.
pub(crate) struct Mesh {
    pub(crate) replicas: Vec<Running>,
    network: Network,
    pub(crate) server: ApiServer,
    /// Names that every pod started from now on knows, and where they are.
    pub(crate) names: Vec<(IpAddr, String)>,
    /// Through whom the control plane asks it.
    between: Option<Between>,
    /// The Deployment's template.
    template: Value,
    /// The API server was away meanwhile.
    restarted: bool,
}

/// A pod that runs.
pub(crate) struct Running {
    pub(crate) containers: Containers,
    pub(crate) pod: Pod,
}

impl Mesh {
    /// In strict mode, with so many replicas of the control plane.
    pub(crate) async fn start(replicas: usize) -> Self {
        Self::start_with(replicas, &[], json!({})).await
    }

    /// With one replica, and somebody between it and the API server.
    pub(crate) async fn start_through() -> Self {
        Self::begin(1, true, &[], json!({})).await
    }

    /// Who is between.
    pub(crate) fn between(&self) -> &Between {
        self.between.as_ref().unwrap()
    }

    /// Beside other definitions, and with more of the chart's values.
    pub(crate) async fn start_with(replicas: usize, definitions: &[Value], more: Value) -> Self {
        Self::begin(replicas, false, definitions, more).await
    }

    async fn begin(replicas: usize, through: bool, definitions: &[Value], more: Value) -> Self {
        let network = Network::start(&Folder::new());
        let server = ApiServer::start_at(NODE).await;
        server.define(&gateway_api("standard")).await;
        server.define(definitions).await;
        let mut values = json!({
            "mesh": {"mtls": "strict", "networks": ["10.77.0.0/24", "10.96.0.0/16", "fd77::/64", "fd96::/64"]},
            "controlPlane": {"replicas": replicas, "logFormat": "text"},
        });
        values.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let objects = install(&server, &values).await;
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let template = deployment["spec"]["template"].clone();
        let between = if through { Some(Between::start(&server).await) } else { None };
        let mut mesh = Self {
            replicas: Vec::new(),
            network,
            server,
            names: Vec::new(),
            between,
            template,
            restarted: false,
        };
        for number in 0..replicas {
            let name = format!("{CONTROL_PLANE}-{number}");
            let replica = mesh.run(&mesh.template, SYSTEM, &name).await;
            mesh.replicas.push(replica);
        }
        mesh.announce().await;
        mesh.server.namespace(SHOP, json!({"tulle.dev/inject": "enabled"})).await;
        mesh
    }

    /// Says where the control plane's replicas are, as the controller of EndpointSlices does.
    pub(crate) async fn announce(&self) {
        let reference = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": SYSTEM, "name": CONTROL_PLANE},
        });
        let service = self.server.administrator().now(&reference).await.unwrap();
        let pods: Vec<&Value> = self.replicas.iter().map(|replica| &replica.containers.object).collect();
        self.server.endpoints(&service, &pods).await;
    }

    /// Creates a pod of a template, and runs what came back from the API server.
    pub(crate) async fn run(&self, template: &Value, namespace: &str, name: &str) -> Running {
        let mut object = template.clone();
        object["apiVersion"] = "v1".into();
        object["kind"] = "Pod".into();
        object["metadata"]["name"] = name.into();
        object["metadata"]["namespace"] = namespace.into();
        let caller = self.server.administrator();
        let meshed = namespace == SHOP;
        let kept = eventually(&format!("{name} is created, and injected where it should be"), async || {
            let kept = caller.create(&object).await.map_err(|refused| refused.to_string())?;
            if kept["metadata"]["annotations"]["tulle.dev/status"].is_string() == meshed {
                return Ok(kept);
            }
            caller.delete(&kept).await.map_err(|refused| refused.to_string())?;
            Err(format!("{:#}", kept["metadata"]["annotations"]))
        })
        .await;
        let pod = self.network.pod(&format!("{namespace}/{name}"));
        let hosts: Vec<(IpAddr, &str)> = self
            .replicas
            .iter()
            // Both families: what is not in the file is asked of DNS, and there is none.
            .flat_map(|replica| [replica.pod.v4().into(), replica.pod.v6().into()])
            .map(|ip| (ip, "tulle-control-plane.tulle-system.svc.cluster.local"))
            .chain(self.names.iter().map(|(ip, name)| (*ip, name.as_str())))
            .collect();
        let mut kubelet = Kubelet::new(&self.server, &hosts);
        if let Some(between) = &self.between {
            kubelet = kubelet.through(between.address());
        }
        let containers = kubelet.start(&pod, &kept).await;
        Running { containers, pod }
    }

    /// A machine on the pods' network that the API server does not know of.
    pub(crate) fn outside(&self, name: &str) -> Pod {
        self.network.pod(name)
    }

    /// A pod of the application `name`, in the mesh.
    pub(crate) async fn app(&self, name: &str) -> Running {
        self.server.account(SHOP, name).await;
        let template = json!({
            "metadata": {"labels": {"app": name}},
            "spec": {
                "serviceAccountName": name,
                "containers": [{
                    "name": "app", "image": "app", "ports": [{"name": "main", "containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/", "port": "main"}},
                }],
            },
        });
        self.run(&template, SHOP, name).await
    }

    /// A Service with these pods behind it; says where it is.
    pub(crate) async fn service(&self, name: &str, pods: &[&Running]) -> SocketAddr {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
            "spec": {
                "selector": {"app": name}, "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "main", "port": 80, "targetPort": "main", "appProtocol": "http"}],
            },
        });
        let service = self.server.administrator().apply(&service).await.unwrap();
        let pods: Vec<&Value> = pods.iter().map(|running| &running.containers.object).collect();
        self.server.endpoints(&service, &pods).await;
        SocketAddr::new(service["spec"]["clusterIP"].as_str().unwrap().parse().unwrap(), 80)
    }

    /// Waits until the first condition of this type that some control plane of ours wrote has this status.
    pub(crate) async fn told(&self, object: &Value, list: &str, condition: &str, status: &str) {
        let caller = self.server.administrator();
        eventually(&format!("{} is told to be {condition}", object["metadata"]["name"]), async || {
            let now = caller.now(object).await.map_err(|refused| refused.to_string())?;
            let all = now["status"][list].as_array().cloned().unwrap_or_default();
            let ours = all.iter().filter(|one| {
                one["controllerName"].as_str().is_some_and(|name| name.starts_with("tulle.dev/"))
            });
            let mut conditions =
                ours.flat_map(|one| one["conditions"].as_array().cloned().unwrap_or_default());
            let is = conditions.any(|one| {
                one["type"] == condition
                    && one["status"] == status
                    && one["observedGeneration"] == now["metadata"]["generation"]
            });
            if is { Ok(()) } else { Err(format!("{:#}", now["status"])) }
        })
        .await;
    }

    /// Nobody was denied anything: what the chart grants is enough.
    pub(crate) fn nothing_was_forbidden(&self) {
        for replica in &self.replicas {
            let log = replica.process("control-plane").stdout();
            // A server that has just started denies everybody for a moment, until it has read its own roles; whoever asks then tells.
            let passing = |line: &str| {
                ["kube_runtime::watcher", "; trying again error="].iter().any(|one| line.contains(one))
            };
            let is_told = |line: &&str| !(self.restarted && passing(line));
            let denied: Vec<&str> =
                log.lines().filter(|line| line.contains("forbid")).filter(is_told).collect();
            assert!(denied.is_empty(), "{}", denied.join("\n"));
        }
    }
}

impl Running {
    pub(crate) fn process(&self, container: &str) -> &Process {
        &self.containers.running[container]
    }

    pub(crate) fn process_mut(&mut self, container: &str) -> &mut Process {
        self.containers.running.get_mut(container).unwrap()
    }

    /// Waits until curl in this pod is answered `what`.
    pub(crate) async fn gets(&self, to: SocketAddr, what: &str) {
        eventually(&format!("{} is answered by {to}", self.pod.name()), async || {
            match self.pod.curl_port(to).await {
                Ok(said) if said == what => Ok(()),
                Ok(said) | Err(said) => Err(said),
            }
        })
        .await;
    }
}

fn saying(running: &Running, text: &'static str) -> App {
    App::http1_on(running.pod.listen("[::]:8080"), move |_| async move { http::Response::new(full(text)) })
}

pub(crate) fn route(to: &str, value: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "orders", "namespace": SHOP},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "orders", "port": 80}],
            "rules": [{
                "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-by", "value": value}]}}],
                "backendRefs": [{"name": to, "port": 80}],
            }],
        },
    })
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn pods_that_the_api_server_had_injected_speak_mutual_tls_and_obey_what_is_applied() {
    in_a_node(async || {
        let mesh = Mesh::start(2).await;
        let (web, orders, next) =
            futures_util::future::join3(mesh.app("web"), mesh.app("orders"), mesh.app("next")).await;
        let _apps = (saying(&orders, "orders"), saying(&next, "next"));
        let to = mesh.service("orders", &[&orders]).await;
        mesh.service("next", &[&next]).await;
        web.gets(to, "orders").await;
        let id = |account: &str| json!(format!("spiffe://cluster.local/ns/{SHOP}/sa/{account}"));
        let went = [
            ("direction", json!("outbound")),
            ("status", json!(200)),
            ("destination", id("orders")),
            ("tls", json!("mtls")),
        ];
        web.process("tulle-proxy").logs(&went).await;
        let came = [
            ("direction", json!("inbound")),
            ("status", json!(200)),
            ("source", id("web")),
            ("tls", json!("mtls")),
        ];
        orders.process("tulle-proxy").logs(&came).await;

        // Routes and policies, and what is told of them.
        let caller = mesh.server.administrator();
        caller.apply(&route("next", "next")).await.unwrap();
        web.gets(to, "next").await;
        mesh.told(&route("next", "next"), "parents", "Accepted", "True").await;
        caller.apply(&route("nobody", "nobody")).await.unwrap();
        mesh.told(&route("next", "next"), "parents", "ResolvedRefs", "False").await;
        caller.apply(&route("orders", "orders")).await.unwrap();
        web.gets(to, "orders").await;
        mesh.told(&route("orders", "orders"), "parents", "ResolvedRefs", "True").await;
        let policy = json!({
            "apiVersion": "policy.tulle.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "orders", "namespace": SHOP},
            "spec": {
                "targetRefs": [{"kind": "Service", "name": "orders"}],
                "rules": [{"name": "next", "from": [{"identities": [format!("{SHOP}/next")]}]}],
            },
        });
        caller.apply(&policy).await.unwrap();
        next.gets(to, "orders").await;
        eventually("web is refused", async || match web.pod.curl_port(to).await {
            Ok(said) => Err(said),
            Err(_) => Ok(()),
        })
        .await;
        caller.delete(&policy).await.unwrap();
        web.gets(to, "orders").await;
        mesh.nothing_was_forbidden();
    });
}

/// Steady requests of `web` to the Service.
pub(crate) fn load(web: &Running, to: SocketAddr, tally: &Arc<Tally>) -> Load {
    let pace = Pace { lanes: 4, rate: 40, stream: Duration::ZERO };
    Load::start(tally, Speech::Http1, web.pod.namespace().dial(to), "web", pace)
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn the_end_of_either_replica_and_of_the_api_server_disturbs_no_traffic() {
    in_a_node(async || {
        let mut mesh = Mesh::start(2).await;
        let (web, orders, next) =
            futures_util::future::join3(mesh.app("web"), mesh.app("orders"), mesh.app("next")).await;
        let seen = Seen::default();
        let _apps = [&orders, &next]
            .map(|running| Orders::start_on(running.pod.listen("[::]:8080"), Speech::Http1, &seen));
        let to = mesh.service("orders", &[&orders]).await;
        mesh.service("next", &[&next]).await;
        eventually("web reaches orders", async || web.pod.curl_port(to).await.map(drop)).await;
        let tally = Arc::<Tally>::default();
        let load = load(&web, to, &tally);

        // The API server goes away under load, and comes back; what is applied then arrives.
        mesh.server.kill().await;
        let asked = tally.asked();
        eventually("requests go on", async || {
            if tally.asked() > asked + 40 { Ok(()) } else { Err(tally.asked().to_string()) }
        })
        .await;
        mesh.server.start_again().await;
        mesh.restarted = true;
        let caller = mesh.server.administrator();
        caller.apply(&route("next", "after")).await.unwrap();
        mesh.told(&route("next", "after"), "parents", "Accepted", "True").await;

        // Then the replica that writes, and its successor writes on.
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"namespace": SYSTEM, "name": CONTROL_PLANE},
        });
        let holder = caller.now(&lease).await.unwrap()["spec"]["holderIdentity"].as_str().unwrap().to_owned();
        let number = usize::from(holder.contains(&format!("{CONTROL_PLANE}-1")));
        mesh.replicas[number].process_mut("control-plane").kill().await;
        mesh.replicas.remove(number);
        mesh.announce().await;
        caller.apply(&route("orders", "last")).await.unwrap();
        mesh.told(&route("orders", "last"), "parents", "Accepted", "True").await;
        // A new pod is injected, and joins.
        let late = mesh.app("late").await;
        eventually("late reaches orders", async || late.pod.curl_port(to).await.map(drop)).await;
        load.leave_after(0).await;
        tally.assert_nothing_lost();
        assert_eq!(seen.twice(), [""; 0]);
        mesh.nothing_was_forbidden();
    });
}
