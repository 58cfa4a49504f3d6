//! The mesh on a real node (`tulle_tests::cluster::node`): the kubelet runs the chart's control plane and the pods that it had injected,
//! in the order, with the probes, hooks and restarts that a kubelet has.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use tulle_tests::cluster::ApiServer;
use tulle_tests::cluster::node::{APPLICATION, Node, condition};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::Network;
use tulle_tests::{Folder, eventually};

use crate::chart::{CONTROL_PLANE, SYSTEM, install};
use crate::gateway_api;
use crate::mesh::SHOP;

/// Answers with its pod's name, and slowly at `/cgi-bin/slow`; lives until somebody asks for `/cgi-bin/die`.
const ORDERS: &str = r#"
mkdir -p /tmp/www/cgi-bin
cd /tmp/www
echo "$HOSTNAME" >index.html
echo lives >live
printf '#!/bin/sh\nrm /tmp/www/live\nprintf "Content-Type: text/plain\\r\\n\\r\\ndying\\n"\n' >cgi-bin/die
printf '#!/bin/sh\necho begun >/proc/1/fd/1\nsleep 6\nprintf "Content-Type: text/plain\\r\\n\\r\\nslow\\n"\n' >cgi-bin/slow
chmod 755 cgi-bin/*
exec httpd -f -p 8080 -h /tmp/www
"#;

/// A cluster of one node, with the mesh.
struct Real {
    node: Node,
    server: ApiServer,
    _network: Network,
    /// Where the control plane is.
    control_plane: Value,
}

impl Real {
    async fn start() -> Self {
        let network = Network::start(&Folder::new());
        let server = ApiServer::start_at(Ipv4Addr::new(10, 77, 0, 1)).await;
        let node = Node::start(&server).await;
        server.define(&gateway_api("standard")).await;
        let values = json!({
            "mesh": {"mtls": "strict", "networks": ["10.77.0.0/24", "10.96.0.0/16", "fd77::/64", "fd96::/64"]},
            "controlPlane": {"replicas": 1},
        });
        let objects = install(&server, &values).await;
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        let mut pod = deployment["spec"]["template"].clone();
        name(&mut pod, SYSTEM, CONTROL_PLANE);
        node.place(&mut pod);
        server.administrator().create(&pod).await.unwrap();
        let mut real = Self { node, server, _network: network, control_plane: pod };
        real.control_plane = real.ready(&real.control_plane).await;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": SYSTEM, "name": CONTROL_PLANE},
        });
        let service = real.server.administrator().now(&service).await.unwrap();
        real.server.endpoints(&service, &[&real.control_plane]).await;
        real.server.namespace(SHOP, json!({"tulle.dev/inject": "enabled"})).await;
        real
    }

    /// Creates a pod in the mesh, of one container that runs a script.
    async fn create(&self, pod: &str, account: &str, script: &str, more: Value) -> Value {
        self.server.account(SHOP, account).await;
        let mut app = json!({
            "name": "app", "image": APPLICATION, "command": ["/bin/sh", "-c", script],
        });
        let mut spec = json!({
            "serviceAccountName": account, "terminationGracePeriodSeconds": 10,
            // There is no DNS.
            "hostAliases": array(&self.control_plane["status"]["podIPs"]).iter().map(|one| json!({
                "ip": one["ip"], "hostnames": ["tulle-control-plane.tulle-system.svc.cluster.local"],
            })).collect::<Vec<_>>(),
        });
        merge(&mut app, &more["container"]);
        merge(&mut spec, &more["spec"]);
        spec["containers"] = json!([app]);
        let mut object = json!({"metadata": {"labels": {"app": account}}, "spec": spec});
        name(&mut object, SHOP, pod);
        self.node.place(&mut object);
        let caller = self.server.administrator();
        eventually(&format!("{pod} is created, and injected"), async || {
            let kept = caller.create(&object).await.map_err(|refused| refused.to_string())?;
            if kept["metadata"]["annotations"]["tulle.dev/status"].is_string() {
                return Ok(kept);
            }
            caller.delete(&kept).await.map_err(|refused| refused.to_string())?;
            Err(format!("{:#}", kept["metadata"]["annotations"]))
        })
        .await
    }

    async fn orders(&self, pod: &str) -> Value {
        let more = json!({"container": {
            "ports": [{"name": "main", "containerPort": 8080}],
            "readinessProbe": {"httpGet": {"path": "/", "port": "main"}, "periodSeconds": 1},
            "livenessProbe": {"httpGet": {"path": "/live", "port": "main"}, "periodSeconds": 1, "failureThreshold": 3, "timeoutSeconds": 20},
        }});
        let created = self.create(pod, "orders", ORDERS, more).await;
        self.ready(&created).await
    }

    /// Waits until a pod is as wanted; gives it as it is then.
    async fn until(&self, what: &str, pod: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
        let caller = self.server.administrator();
        eventually(&format!("{} {what}", pod["metadata"]["name"]), async || {
            let now = caller.now(pod).await.map_err(|refused| refused.to_string())?;
            if wanted(&now) { Ok(now) } else { Err(self.described(&now)) }
        })
        .await
    }

    async fn ready(&self, pod: &Value) -> Value {
        self.until("is ready", pod, |now| condition(now, "Ready")).await
    }

    /// What a job's pod was answered, once it has succeeded.
    async fn succeeded(&self, pod: &Value) -> String {
        let now = self.until("succeeds", pod, |now| {
            assert_ne!(now["status"]["phase"], "Failed", "{}", self.described(now));
            now["status"]["phase"] == "Succeeded"
        });
        self.node.log(&now.await, "app")
    }

    fn described(&self, pod: &Value) -> String {
        let logs = ["tulle-init", "tulle-proxy", "app", "control-plane"].map(|name| self.node.log(pod, name));
        format!("{:#}\n{}", pod["status"], logs.concat())
    }

    /// A Service with these pods behind it; its virtual IP.
    async fn service(&self, pods: &[&Value]) -> String {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "orders", "namespace": SHOP},
            "spec": {
                "selector": {"app": "orders"}, "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "main", "port": 80, "targetPort": "main", "appProtocol": "http"}],
            },
        });
        let service = self.server.administrator().apply(&service).await.unwrap();
        self.server.endpoints(&service, pods).await;
        service["spec"]["clusterIP"].as_str().unwrap().to_owned()
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn name(pod: &mut Value, namespace: &str, name: &str) {
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = name.into();
    pod["metadata"]["namespace"] = namespace.into();
}

fn merge(into: &mut Value, more: &Value) {
    for (key, value) in more.as_object().into_iter().flatten() {
        into[key] = value.clone();
    }
}

/// What the kubelet says of a container.
fn status<'a>(pod: &'a Value, container: &str) -> &'a Value {
    let all = [&pod["status"]["initContainerStatuses"], &pod["status"]["containerStatuses"]];
    let mut all = all.into_iter().flat_map(array);
    all.find(|one| one["name"] == container)
        .unwrap_or_else(|| panic!("no {container} in {:#}", pod["status"]))
}

#[test]
#[ignore = "needs kube-apiserver, etcd, a kubelet and containerd; `.ci/run kubernetes` builds and installs them"]
fn a_kubelet_starts_restarts_and_ends_injected_pods_as_the_pages_say() {
    in_a_node(async || {
        let real = Real::start().await;
        let old = real.orders("orders-old").await;
        let to = real.service(&[&old]).await;

        // In order: each has ended, or started, before the next.
        let init = &status(&old, "tulle-init")["state"]["terminated"];
        assert_eq!(init["exitCode"], 0, "{:#}", old["status"]);
        let proxy = status(&old, "tulle-proxy");
        assert_eq!(proxy["started"], true, "{proxy:#}");
        let times = [
            &init["finishedAt"],
            &proxy["state"]["running"]["startedAt"],
            &status(&old, "app")["state"]["running"]["startedAt"],
        ]
        .map(|time| time.as_str().unwrap_or_else(|| panic!("{:#}", old["status"])));
        assert!(times.is_sorted(), "{times:?}");

        // A Job's pod has the mesh from its first line on, and ends though the proxy would not.
        let never = json!({"spec": {"restartPolicy": "Never"}});
        let get = |path: &str| format!("exec wget -q -O - http://{to}{path}");
        let job = real.create("job", "web", &get("/"), never.clone()).await;
        assert!(real.succeeded(&job).await.contains("orders-old"), "{}", real.described(&job));
        let ended = real.server.administrator().now(&job).await.unwrap();
        assert_eq!(
            status(&ended, "tulle-proxy")["state"]["terminated"]["exitCode"],
            0,
            "{:#}",
            ended["status"]
        );

        // An application that no longer lives is started again, and its proxy goes on.
        let proxy = status(&old, "tulle-proxy")["containerID"].clone();
        let killer = real.create("killer", "web", &get("/cgi-bin/die"), never.clone()).await;
        real.succeeded(&killer).await;
        real.until("is started again", &old, |now| status(now, "app")["restartCount"] == 1).await;
        let old = real.ready(&old).await;
        let same = status(&old, "tulle-proxy");
        assert_eq!((&same["containerID"], &same["restartCount"]), (&proxy, &json!(0)), "{:#}", old["status"]);

        // A rolling restart: requests go on, and what the old pod has begun it finishes.
        let forever = format!(
            "touch /tmp/go; while [ -e /tmp/go ]; do wget -q -O - http://{to}/ || echo lost; sleep 0.1; done"
        );
        let client = real.create("client", "web", &forever, json!({})).await;
        let client = real.ready(&client).await;
        let answered = |by: &str| real.node.log(&client, "app").matches(by).count();
        let more = async |by: &str| {
            let before = answered(by);
            eventually(&format!("{by} answers"), async || {
                if answered(by) > before + 5 { Ok(()) } else { Err(real.node.log(&client, "app")) }
            })
            .await;
        };
        more("orders-old").await;
        let new = real.orders("orders-new").await;
        let slow = real.create("slow", "web", &get("/cgi-bin/slow"), never).await;
        eventually("the slow request has arrived", async || {
            if real.node.log(&old, "app").contains("begun") { Ok(()) } else { Err(real.described(&slow)) }
        })
        .await;
        real.server.administrator().begin_delete(&old).await.unwrap();
        real.service(&[&new]).await;
        more("orders-new").await;
        assert!(real.succeeded(&slow).await.contains("slow"), "{}", real.described(&slow));
        eventually("the old pod has gone", async || match real.server.administrator().now(&old).await {
            Ok(now) if now["metadata"]["uid"] == old["metadata"]["uid"] => Err(real.described(&now)),
            _ => Ok(()),
        })
        .await;
        more("orders-new").await;
        assert_eq!(answered("lost"), 0, "{}", real.node.log(&client, "app"));
        // The proxy's hook ran: a kubelet says where one does not.
        let events =
            real.server.administrator().get(&format!("/api/v1/namespaces/{SHOP}/events")).await.unwrap();
        let failed: Vec<&Value> =
            array(&events["items"]).iter().filter(|one| one["reason"] == "FailedPreStopHook").collect();
        assert!(failed.is_empty(), "{failed:#?}");
    });
}
