//! The chart, rendered by Helm's own engine, on a real API server: everything is taken, twice, and the control plane's service account
//! may do what the pages say, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tulle_tests::cluster::{ApiServer, Caller};
use tulle_tests::peer::python;

use crate::root;

/// Where the control plane is.
pub(crate) const SYSTEM: &str = "tulle-system";
/// Its service account, Service and Deployment.
pub(crate) const CONTROL_PLANE: &str = "tulle-control-plane";

/// The order in which Helm installs kinds, as far as the chart has them; what is not here comes last.
const ORDER: [&str; 14] = [
    "Namespace",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServiceAccount",
    "Secret",
    "ConfigMap",
    "CustomResourceDefinition",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "Service",
    "Deployment",
    "MutatingWebhookConfiguration",
];

/// A right: group, resource, the one name that it is about (any if empty), and verb.
type Right = (String, String, String, String);

/// What Helm makes of the chart with these values, in the order in which it installs it.
pub(crate) fn rendered(values: &Value) -> Vec<Value> {
    let script = python("helm_chart.py").expect("a Python with helm-python-sdk; `.ci/run install` makes one");
    let mut command = Command::new(&script.path);
    command.args(&script.arguments).arg(root().join("helm/tulle")).args(["tulle", SYSTEM]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python starts");
    child.stdin.take().unwrap().write_all(json!([values]).to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{script:?}: {}", output.status);
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rendering = &told["rendered"][0];
    assert!(rendering["error"].is_null(), "{}", rendering["error"]);
    let files = rendering["files"].as_object().unwrap().values();
    let mut objects: Vec<Value> = files.flat_map(|file| file.as_array().unwrap()).cloned().collect();
    objects
        .sort_by_key(|object| ORDER.iter().position(|kind| object["kind"] == *kind).unwrap_or(ORDER.len()));
    objects
}

/// Installs the chart, as `helm install --create-namespace` does.
pub(crate) async fn install(server: &ApiServer, values: &Value) -> Vec<Value> {
    server.namespace(SYSTEM, json!({})).await;
    let objects = rendered(values);
    server.define(&objects).await;
    objects
}

/// What somebody may do in a namespace beyond what everybody may.
async fn rights(server: &ApiServer, caller: &Caller, namespace: &str) -> BTreeSet<Right> {
    let nobody = server.caller(&server.token(namespace, "default", "", None).await);
    let all = all_rights(caller, namespace).await;
    let of_all = all_rights(&nobody, namespace).await;
    all.difference(&of_all).cloned().collect()
}

async fn all_rights(caller: &Caller, namespace: &str) -> BTreeSet<Right> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectRulesReview", "spec": {"namespace": namespace},
    });
    let answer = caller.post("/apis/authorization.k8s.io/v1/selfsubjectrulesreviews", &review).await.unwrap();
    let status = &answer["status"];
    assert_eq!(
        (&status["incomplete"], &status["evaluationError"]),
        (&json!(false), &Value::Null),
        "{answer:#}"
    );
    let rules = status["resourceRules"].as_array().unwrap();
    rules.iter().flat_map(flattened).collect()
}

/// Each right of a rule by itself.
fn flattened(rule: &Value) -> Vec<Right> {
    let list = |field: &str| -> Vec<String> {
        let all = rule[field].as_array().into_iter().flatten();
        all.map(|one| one.as_str().unwrap().to_owned()).collect()
    };
    let mut names = list("resourceNames");
    if names.is_empty() {
        names.push(String::new());
    }
    let mut rights = Vec::new();
    for group in list("apiGroups") {
        for resource in list("resources") {
            for name in &names {
                for verb in list("verbs") {
                    rights.push((group.clone(), resource.clone(), name.clone(), verb));
                }
            }
        }
    }
    rights
}

/// What the page says of a place: the rows of its table.
fn said(place: &str) -> BTreeSet<Right> {
    let page = include_str!("../../../docs/kubernetes.md");
    let (_, section) = page.split_once("## What the control plane may do").expect("the section");
    let section = section.split("\n## ").next().unwrap_or_default();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")).skip(2);
    let mut rights = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let [group, resources, verbs, at, names, ..] = cells[..] else { panic!("{row}") };
        let list =
            |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
        let group = list(group).pop().unwrap_or_default();
        let rule = json!({
            "apiGroups": [group], "resources": list(resources), "verbs": list(verbs), "resourceNames": list(names),
        });
        if at == place {
            rights.extend(flattened(&rule));
        }
    }
    assert!(!rights.is_empty(), "{place}");
    rights
}

/// What an installed object is, without what the server or another upgrade adds to it.
fn essence(object: &Value) -> [Value; 2] {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().unwrap();
    let generation = metadata.remove("generation").unwrap_or_default();
    metadata.remove("managedFields");
    metadata.remove("resourceVersion");
    object.as_object_mut().unwrap().remove("status");
    [object, generation]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn the_chart_installs_and_grants_what_the_pages_say_and_nothing_else() {
    let server = ApiServer::start().await;
    let objects = install(&server, &json!({})).await;
    let caller = server.administrator();
    let mut first = BTreeMap::new();
    for object in &objects {
        let kept = caller.now(object).await.unwrap();
        first.insert(format!("{} {}", object["kind"], object["metadata"]["name"]), essence(&kept));
    }
    // The same once more changes nothing; another number of replicas changes that.
    for object in rendered(&json!({})) {
        let kept = caller.apply(&object).await.unwrap();
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        assert_eq!(essence(&kept), first[&name], "{name}");
    }
    let two = rendered(&json!({"controlPlane": {"replicas": 2}}));
    let deployment = two.iter().find(|object| object["kind"] == "Deployment").unwrap();
    assert_eq!(caller.apply(deployment).await.unwrap()["spec"]["replicas"], 2);

    let own = server.caller(&server.token(SYSTEM, CONTROL_PLANE, "", None).await);
    server.namespace("elsewhere", json!({})).await;
    assert_eq!(rights(&server, &own, "elsewhere").await, said("cluster"));
    let at_home = &said("cluster") | &said("namespace");
    assert_eq!(rights(&server, &own, SYSTEM).await, at_home);
    for (group, resource, name, verb) in &at_home {
        assert!(![group, resource, verb].contains(&&"*".to_owned()), "{group}/{resource} {name}: {verb}");
        // Whoever may read every Secret of the cluster is the cluster's administrator.
        assert!(resource != "secrets" || !name.is_empty(), "{group}/{resource}: {verb}");
    }
}
