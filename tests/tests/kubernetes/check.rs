//! `tulle check` and `tulle check --pre` before a real API server: of an empty cluster, of one with the chart, as somebody who may hardly read
//! anything, and of a mesh from which parts are taken away while it runs.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tulle_tests::cluster::ApiServer;
use tulle_tests::netns::in_a_node;
use tulle_tests::{Program, binary, eventually};

use crate::chart::{CONTROL_PLANE, SYSTEM, install};
use crate::mesh::{Mesh, SHOP};
use crate::ours;

/// What `tulle check` says, and its exit status.
pub(crate) struct Said {
    status: Option<i32>,
    json: Value,
}

impl Said {
    pub(crate) fn by(kubeconfig: &Path, arguments: &[&str]) -> Self {
        let mut program = Program::new("check", binary("tulle")).arg("check").arg("--output").arg("json");
        program = program.flag("--kubeconfig", kubeconfig);
        for argument in arguments {
            program = program.arg(*argument);
        }
        let output = program.output();
        let json = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        Self { status: output.status.code(), json }
    }

    fn check(&self, name: &str) -> &Value {
        let all = self.json["checks"].as_array().unwrap();
        all.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {:#}", self.json))
    }

    /// Whether a check has this status, and somewhere in what it says this.
    pub(crate) fn is(&self, name: &str, status: &str, says: &str) -> Result<(), String> {
        let check = self.check(name);
        match check["status"] == status && check.to_string().contains(says) {
            true => Ok(()),
            false => Err(format!("{check:#}")),
        }
    }

    #[track_caller]
    pub(crate) fn must(&self, name: &str, status: &str, says: &str) {
        self.is(name, status, says).unwrap();
    }

    fn of_status(&self, status: &str) -> Vec<&str> {
        let all = self.json["checks"].as_array().unwrap().iter();
        all.filter(|check| check["status"] == status).map(|check| check["name"].as_str().unwrap()).collect()
    }
}

pub(crate) fn own_definition(name: &str) -> Value {
    ours().into_iter().find(|definition| definition["metadata"]["name"] == name).unwrap()
}

/// Without one of its fields, as an older version had it.
fn older(mut definition: Value) -> Value {
    let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    definition.pointer_mut(spec).unwrap().as_object_mut().unwrap().remove("egress").unwrap();
    definition
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn a_cluster_is_looked_at_before_and_after_the_chart_is_there() {
    let server = ApiServer::start().await;
    let administrator = server.kubeconfig("administrator", "administrator");
    let caller = server.administrator();

    let said = Said::by(&administrator, &["--pre"]);
    assert_eq!((said.status, said.of_status("error")), (Some(0), vec![]), "{:#}", said.json);
    assert_eq!(said.of_status("warning"), ["gateway-api-definitions"], "{:#}", said.json);
    said.must("kubernetes-version", "ok", "v1.");
    said.must("rbac-install", "ok", "you may do all");
    let said = Said::by(&administrator, &[]);
    assert_eq!(said.status, Some(1));
    said.must("control-plane-ready", "error", "tulle install");

    // Somebody who may read nothing is told what it would take, and what can be looked at is.
    server.namespace("elsewhere", json!({})).await;
    let nobody = server.kubeconfig("nobody", &server.token("elsewhere", "default", "", None).await);
    let said = Said::by(&nobody, &["--pre"]);
    assert_eq!(said.status, Some(1));
    said.must("kubernetes-version", "ok", "v1.");
    said.must("rbac-install", "error", "create deployments.apps in tulle-system");
    said.must("node-versions", "warning", "you may not list nodes");
    said.must("tulle-definitions", "warning", "get customresourcedefinitions");

    let objects = install(&server, &json!({})).await;
    let said = Said::by(&administrator, &["--pre"]);
    said.must("not-installed", "warning", "tulle upgrade");
    said.must("tulle-definitions", "ok", "10 from before");
    let said = Said::by(&administrator, &[]);
    assert_eq!(said.status, Some(1));
    said.must("tulle-definitions", "ok", "all 10");
    said.must("rbac-control-plane", "ok", "may do all");
    // Nobody runs the pods of the Deployment.
    said.must("control-plane-ready", "error", "0 of ");
    said.must("control-plane-lease", "error", "no Lease");
    said.must("webhook-trusted", "error", "is empty");
    let said = Said::by(&nobody, &[]);
    said.must("rbac-control-plane", "warning", "create subjectaccessreviews");
    said.must("pods-unmeshed", "warning", "you may not list");

    // A definition of an older version, and rights that somebody took away.
    caller.apply(&older(own_definition("meshes.policy.tulle.dev"))).await.unwrap();
    let binding = objects.iter().find(|object| object["kind"] == "ClusterRoleBinding").unwrap();
    caller.delete(binding).await.unwrap();
    eventually("the missing rights are told", async || {
        Said::by(&administrator, &[]).is("rbac-control-plane", "error", "watch pods")
    })
    .await;
    let said = Said::by(&administrator, &[]);
    said.must("tulle-definitions", "error", "without spec.egress");
    let webhook = objects.iter().find(|object| object["kind"] == "MutatingWebhookConfiguration").unwrap();
    caller.delete(webhook).await.unwrap();
    Said::by(&administrator, &[]).must("webhook-reachable", "error", "no MutatingWebhookConfiguration");
}

/// A root that nobody's certificate comes from.
fn another_root() -> String {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.self_signed(&key).unwrap().pem()
}

#[test]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
fn a_mesh_that_is_well_is_said_to_be_and_what_is_taken_from_it_is_told() {
    in_a_node(async || {
        let mut mesh = Mesh::start(2).await;
        let _web = mesh.app("web").await;
        let administrator = mesh.server.kubeconfig("administrator", "administrator");
        let caller = mesh.server.administrator();
        let check = || Said::by(&administrator, &[]);
        eventually("all is well", async || {
            let said = check();
            match (said.status, said.of_status("warning").is_empty()) {
                (Some(0), true) => Ok(()),
                _ => Err(format!("{:#}", said.json)),
            }
        })
        .await;
        let said = check();
        said.must("webhook-reachable", "ok", "2 replicas");
        said.must("webhook-trusted", "ok", "injected");
        said.must("proxies-connected", "ok", "all 1");
        said.must("certificates", "ok", "the issuer is good for");

        // A pod from before its namespace asked.
        mesh.server.namespace("bank", json!({})).await;
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "teller", "namespace": "bank"},
            "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 15090}]}]},
        });
        caller.create(&pod).await.unwrap();
        mesh.server.namespace("bank", json!({"tulle.dev/inject": "enabled"})).await;
        let said = check();
        said.must("pods-unmeshed", "warning", "bank/teller: not_injected");
        said.must("port-conflicts", "warning", "bank/teller: the container app listens on 15090");

        // A route that leads nowhere is no error of the mesh, and yet told.
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "lost", "namespace": SHOP},
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "nobody", "port": 80}]},
        });
        caller.apply(&route).await.unwrap();
        eventually("the route's error is told", async || {
            let said = check();
            let configuration = said.check("configuration");
            if configuration["status"] == "ok" { Err(format!("{configuration:#}")) } else { Ok(()) }
        })
        .await;
        caller.delete(&route).await.unwrap();

        // A webhook that the API server does not believe, until the control plane has mended it.
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "tulle-webhook"},
        });
        let kept = caller.now(&configuration).await.unwrap();
        eventually("the wrong caBundle is told", async || {
            let mut wrong = configuration.clone();
            let bundle = STANDARD.encode(another_root());
            wrong["webhooks"] = kept["webhooks"].clone();
            for webhook in wrong["webhooks"].as_array_mut().unwrap() {
                webhook["clientConfig"]["caBundle"] = bundle.clone().into();
            }
            caller.apply(&wrong).await.map_err(|refused| refused.to_string())?;
            check().is("webhook-trusted", "error", "does not believe it")
        })
        .await;
        eventually("the caBundle is mended", async || check().is("webhook-trusted", "ok", "injected")).await;

        // A replica that is gone, and rights that are.
        mesh.replicas[1].process_mut("control-plane").kill().await;
        eventually("the replica is missed", async || {
            check().is("webhook-reachable", "warning", "does not reach 1 of 2")
        })
        .await;
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": CONTROL_PLANE},
        });
        caller.delete(&binding).await.unwrap();
        eventually("the missing rights are told", async || {
            check().is("rbac-control-plane", "error", "watch pods")
        })
        .await;
        let said = check();
        assert_eq!(said.status, Some(1));
        assert!(
            said.json["checks"].as_array().unwrap().len() > 15,
            "the others are made too: {:#}",
            said.json
        );
        assert_eq!(SYSTEM, "tulle-system", "where `tulle check` looks by itself");
    });
}
