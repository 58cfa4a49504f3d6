//! The chart, rendered by Helm's own engine: what it makes of its values, and what it refuses.
//!
//! Ignored by `cargo test`, but for what needs only the files: the engine comes with a Python package
//! (`tests/peers/requirements.txt`), and `.ci/run test` runs them. See docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};
use tulle_tests::{binary, peer};

const NAMESPACE: &str = "tulle-system";

/// What Helm makes of one set of values.
struct Rendered {
    objects: Vec<Value>,
    notes: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn chart() -> PathBuf {
    root().join("helm/tulle")
}

/// What Helm has to say of the chart, and of each set of values.
fn helm(values: &[Value]) -> Value {
    let script =
        peer::python("helm_chart.py").expect("the Python of TULLE_TEST_PYTHON, with helm-python-sdk");
    let mut python = Command::new(&script.path)
        .args(&script.arguments)
        .arg(chart())
        .args(["tulle", NAMESPACE])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin.write_all(&serde_json::to_vec(values).unwrap()).unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn render(values: &Value) -> Rendered {
    let told = helm(std::slice::from_ref(values));
    let rendered = &told["rendered"][0];
    assert!(rendered["error"].is_null(), "{values}: {}", rendered["error"]);
    let files = rendered["files"].as_object().unwrap();
    let objects = files.values().flat_map(|objects| objects.as_array().unwrap()).cloned().collect();
    Rendered { objects, notes: rendered["notes"].as_str().unwrap().to_owned() }
}

/// values-ha.yaml, as Helm reads it.
fn high_availability() -> Value {
    let text = fs::read_to_string(chart().join("values-ha.yaml")).unwrap();
    let python = std::env::var_os("TULLE_TEST_PYTHON").unwrap();
    let read = "import helm_python, json, sys; print(json.dumps(helm_python.values_from_yaml(sys.argv[1])))";
    let output = Command::new(python).args(["-c", read, &text]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Values with everything on, and otherwise than by default.
fn everything() -> Value {
    json!({
        "image": {
            "repository": "registry.example/tulle", "digest": format!("sha256:{}", "a".repeat(64)),
            "pullPolicy": "Always", "pullSecrets": [{"name": "registry"}],
        },
        "identity": {"trustDomain": "example.org", "leafLifetime": "1h"},
        "mesh": {
            "mtls": "strict", "networks": ["10.0.0.0/8", "fd00::/8"], "egress": "audit",
            "accessLog": {
                "format": "ecs", "statuses": ["5xx"], "minDuration": "300ms", "samplePercent": 0.5, "errors": "Filtered",
            },
        },
        "tracing": {
            "collector": {"endpoint": "http://collector.observability:4317", "protocol": "grpc"},
            "sampling": {"percent": 0.1, "parentBased": false}, "connections": true,
        },
        "controlPlane": {
            "replicas": 5, "logLevel": "info,tulle_control_plane::ads=debug", "logFormat": "text",
            "extraArguments": ["--registration-grace=1m"], "antiAffinity": "none", "zoneSpread": "required",
            "tolerations": [{"operator": "Exists"}], "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"example.org/a": "b"}, "podLabels": {"example.org/c": "d"},
            "serviceAccount": {"annotations": {"example.org/role": "e"}},
        },
        "podDisruptionBudget": {"enabled": true, "maxUnavailable": "40%"},
        "networkPolicy": {"enabled": true, "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]},
        "webhook": {
            "failurePolicy": "Fail", "timeoutSeconds": 10, "excludedNamespaces": ["legacy"],
            "annotations": {"example.org/f": "g"},
        },
        "monitoring": {
            "namespace": "monitoring", "labels": {"release": "prometheus"}, "interval": "30s",
            "serviceMonitor": {"enabled": true}, "podMonitor": {"enabled": true}, "prometheusRule": {"enabled": true},
            "dashboards": {"enabled": true, "annotations": {"grafana_folder": "Tulle"}},
        },
    })
}

// === impl Rendered ===

impl Rendered {
    fn all(&self, kind: &str) -> std::vec::IntoIter<&Value> {
        self.objects.iter().filter(|object| object["kind"] == kind).collect::<Vec<_>>().into_iter()
    }

    /// The only one of its kind.
    fn one(&self, kind: &str) -> &Value {
        let all: Vec<&Value> = self.all(kind).collect();
        assert_eq!(all.len(), 1, "{kind}");
        all[0]
    }

    /// Kind and name of each object, in order.
    fn names(&self) -> BTreeSet<String> {
        let name =
            |object: &Value| format!("{} {}", text(&object["kind"]), text(&object["metadata"]["name"]));
        self.objects.iter().map(name).collect()
    }

    fn container(&self) -> &Value {
        &self.one("Deployment")["spec"]["template"]["spec"]["containers"][0]
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().unwrap_or(&Vec::new()).iter().map(text).collect()
}

/// Whether a selector fits labels, as Kubernetes has it: what is not there is in no set.
fn fits(selector: &Value, labels: &Value) -> bool {
    let expressions = selector["matchExpressions"].as_array().into_iter().flatten();
    expressions.into_iter().all(|expression| {
        let value = labels.get(expression["key"].as_str().unwrap());
        let within = value.is_some_and(|value| expression["values"].as_array().unwrap().contains(value));
        match expression["operator"].as_str().unwrap() {
            "In" => within,
            "NotIn" => !within,
            other => panic!("{other}"),
        }
    })
}

/// Whether the API server asks a webhook about a pod.
fn is_asked(webhook: &Value, namespace: &Value, pod: &Value) -> bool {
    let env = Arc::new(cel::Env::stdlib());
    let conditions = webhook["matchConditions"].as_array().unwrap().iter().all(|condition| {
        let program = env.compile(condition["expression"].as_str().unwrap()).unwrap();
        let mut context = cel::Context::with_env(Arc::clone(&env));
        context.add_variable("object", pod.clone()).unwrap();
        match program.execute(&context) {
            Ok(cel::Value::Bool(holds)) => holds,
            other => panic!("{condition} of {pod}: {other:?}"),
        }
    });
    conditions
        && fits(&webhook["namespaceSelector"], namespace)
        && fits(&webhook["objectSelector"], &pod["metadata"]["labels"])
}

/// What is in the chart's folder, by name.
fn files(folder: &str) -> Vec<(String, String)> {
    let mut found: Vec<_> = fs::read_dir(chart().join("files").join(folder))
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap())
        })
        .collect();
    found.sort();
    found
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn by_default_there_is_what_the_mesh_needs_and_nothing_else() {
    let told = helm(&[json!({})]);
    assert_eq!(told["lint"]["errors"], json!([]));
    for message in told["lint"]["messages"].as_array().unwrap() {
        // A chart without a picture.
        assert!(message["severity"].as_i64().unwrap() < 2, "{message}");
    }
    assert_eq!(told["metadata"]["kubeVersion"], ">= 1.29.0-0");

    let rendered = render(&json!({}));
    let ours =
        ["ClusterRole", "ClusterRoleBinding", "ConfigMap", "Deployment", "PodDisruptionBudget", "Role"];
    let ours = ours.into_iter().chain(["RoleBinding", "Service", "ServiceAccount"]);
    let mut expected: BTreeSet<String> = ours.map(|kind| format!("{kind} tulle-control-plane")).collect();
    expected.insert("MutatingWebhookConfiguration tulle-webhook".to_owned());
    for (file, _) in files("crds") {
        let plural = file.trim_end_matches(".yaml");
        expected.insert(format!("CustomResourceDefinition {plural}.policy.tulle.dev"));
    }
    assert_eq!(rendered.names(), expected);
    assert!(rendered.notes.contains("kubectl label namespace NAMESPACE tulle.dev/inject=enabled"));
    assert!(rendered.notes.contains("values-ha.yaml"), "{}", rendered.notes);
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn every_object_is_labelled_and_where_it_belongs() {
    const OF_THE_CLUSTER: [&str; 4] =
        ["ClusterRole", "ClusterRoleBinding", "CustomResourceDefinition", "MutatingWebhookConfiguration"];
    let all = everything();
    for values in [json!({}), high_availability(), all.clone()] {
        let rendered = render(&values);
        let mut seen = BTreeSet::new();
        for object in &rendered.objects {
            let (kind, metadata) = (text(&object["kind"]), &object["metadata"]);
            let name = format!("{kind} {} {}", metadata["namespace"], text(&metadata["name"]));
            assert!(object["apiVersion"].is_string() && seen.insert(name.clone()), "{name}");
            let labels = &metadata["labels"];
            for (label, value) in [
                ("app.kubernetes.io/part-of", "tulle"),
                ("app.kubernetes.io/managed-by", "Helm"),
                ("app.kubernetes.io/instance", "tulle"),
                ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
            ] {
                assert_eq!(labels[label], value, "{name}: {label}");
            }
            assert!(text(&labels["app.kubernetes.io/name"]).starts_with("tulle"), "{name}");
            let watched =
                kind.ends_with("Monitor") || kind == "PrometheusRule" || name.contains("-dashboard");
            let expected = match watched && values == all {
                _ if OF_THE_CLUSTER.contains(&&*kind) => Value::Null,
                true => json!("monitoring"),
                false => json!(NAMESPACE),
            };
            assert_eq!(metadata["namespace"], expected, "{name}");
            // A hook runs beside the release: GitOps tools would run it at each synchronization, or never.
            let annotations = metadata["annotations"].as_object();
            assert!(
                !annotations.into_iter().flatten().any(|(key, _)| key.starts_with("helm.sh/hook")),
                "{name}"
            );
        }
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn two_renderings_are_the_same() {
    let all = everything();
    let told = helm(&[json!({}), json!({}), all.clone(), all.clone()]);
    // In another process too: maps are walked in another order there.
    let again = helm(&[json!({}), json!({}), all.clone(), all]);
    assert_eq!(told["rendered"], again["rendered"]);
    for first in [0, 2] {
        assert_eq!(told["rendered"][first], told["rendered"][first + 1]);
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn the_control_plane_runs_as_nobody_with_nothing_to_write_to() {
    for values in [json!({}), high_availability(), everything()] {
        let rendered = render(&values);
        let deployment = rendered.one("Deployment");
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        let context = &rendered.container()["securityContext"];
        assert_eq!(
            context,
            &json!({
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true,
            })
        );
        for field in ["hostNetwork", "hostPID", "hostIPC"] {
            assert!(pod[field].is_null(), "{field}");
        }
        for volume in pod["volumes"].as_array().unwrap() {
            assert!(volume["hostPath"].is_null(), "{volume}");
        }
        // Never injected, whatever its namespace is labelled.
        let labels = &deployment["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["tulle.dev/inject"], "disabled");
        let selector = deployment["spec"]["selector"]["matchLabels"].as_object().unwrap();
        assert!(selector.iter().all(|(label, value)| labels[label] == *value), "{selector:?}");
        assert_eq!(&json!(selector), &rendered.one("Service")["spec"]["selector"]);
        assert_eq!(rendered.one("ServiceAccount")["automountServiceAccountToken"], false);
        for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
            assert_eq!(rendered.container()[probe]["httpGet"]["port"], "metrics", "{probe}");
        }
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn replicas_are_kept_apart_where_that_is_asked() {
    let rendered = render(&high_availability());
    let spec = &rendered.one("Deployment")["spec"];
    assert_eq!(spec["replicas"], 3);
    let pod = &spec["template"]["spec"];
    let apart = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    assert_eq!(apart[0]["topologyKey"], "kubernetes.io/hostname");
    assert_eq!(apart[0]["labelSelector"]["matchLabels"], spec["selector"]["matchLabels"]);
    assert_eq!(pod["topologySpreadConstraints"][0]["topologyKey"], "topology.kubernetes.io/zone");
    assert_eq!(pod["priorityClassName"], "system-cluster-critical");
    // With as many nodes as replicas there is none for one more.
    assert_eq!(spec["strategy"]["rollingUpdate"], json!({"maxSurge": 0, "maxUnavailable": 1}));
    let budget = &rendered.one("PodDisruptionBudget")["spec"];
    assert_eq!(budget["maxUnavailable"], 1);
    assert_eq!(budget["selector"], spec["selector"]);
    assert!(!rendered.notes.contains("There is one control plane"), "{}", rendered.notes);

    let rendered = render(&everything());
    let pod = &rendered.one("Deployment")["spec"]["template"]["spec"];
    assert!(pod["affinity"].is_null());
    assert_eq!(pod["topologySpreadConstraints"][0]["whenUnsatisfiable"], "DoNotSchedule");
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn labels_of_the_values_do_not_stand_beside_ours_of_the_same_name() {
    let labels = json!({"tulle.dev/inject": "enabled", "app.kubernetes.io/name": "mine", "mine": "yes"});
    let values = json!({"controlPlane": {"podLabels": labels, "podAnnotations": {"tulle.dev/config-hash": "x", "a": "b"}}});
    let rendered = render(&values);
    let metadata = &rendered.one("Deployment")["spec"]["template"]["metadata"];
    let labels = &metadata["labels"];
    let said = ["tulle.dev/inject", "app.kubernetes.io/name", "mine"].map(|key| text(&labels[key]));
    assert_eq!(said, ["disabled", "tulle-control-plane", "yes"]);
    let annotations = &metadata["annotations"];
    assert_eq!((text(&annotations["tulle.dev/config-hash"]).len(), &annotations["a"]), (32, &json!("b")));
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn the_binary_knows_every_flag_and_port_of_the_deployment() {
    let help = Command::new(binary("tulle-control-plane")).arg("--help").output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    for values in [json!({}), high_availability(), everything()] {
        let rendered = render(&values);
        let container = rendered.container();
        let arguments = texts(&container["args"]);
        assert!(arguments.contains(&"--source=kubernetes".to_owned()), "{arguments:?}");
        for argument in &arguments {
            let flag = argument.split('=').next().unwrap();
            let known = help.lines().any(|line| line.trim_start().split([' ', '=']).next() == Some(flag));
            assert!(known, "the control plane has no {flag}:\n{help}");
        }
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = text(&variable["name"]);
            let known = help.contains(&format!("[env: {name}="));
            assert!(known, "the control plane has no {name}:\n{help}");
        }
        let ports = container["ports"].as_array().unwrap();
        for port in ports {
            let number = port["containerPort"].to_string();
            let known = help.contains(&format!("]:{number}]"));
            assert!(known, "no port {number} by default:\n{help}");
        }
        let served = rendered.one("Service")["spec"]["ports"].as_array().unwrap();
        let of_container: Vec<_> =
            ports.iter().map(|port| (port["name"].clone(), port["containerPort"].clone())).collect();
        let of_service: Vec<_> =
            served.iter().map(|port| (port["targetPort"].clone(), port["port"].clone())).collect();
        assert_eq!(of_container, of_service);
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn the_mesh_of_the_values_is_one_that_the_control_plane_takes() {
    let all = everything();
    for (values, parts) in [
        (json!({}), vec!["mtls: \"permissive\"", "trustDomain: \"cluster.local\"", "egress: allow"]),
        (json!({"mesh": {"mtls": false}}), vec!["mtls: \"off\""]),
        (all, vec!["mtls: \"strict\"", "- fd00::/8", "collector: \"http://collector.observability:4317\""]),
    ] {
        let rendered = render(&values);
        let config = rendered.all("ConfigMap").find(|map| map["metadata"]["name"] == "tulle-control-plane");
        let mesh = text(&config.unwrap()["data"]["mesh.yaml"]);
        for part in parts {
            assert!(mesh.contains(part), "{mesh}");
        }
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mesh.yaml"), &mesh).unwrap();
        let checked = tulle_control_plane::source::check(folder.path()).unwrap();
        assert_eq!(checked.findings, [], "{mesh}");
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn pods_are_asked_for_by_their_namespace_or_by_themselves() {
    let rendered = render(&json!({"webhook": {"excludedNamespaces": ["legacy", "kube-system"]}}));
    let webhooks = rendered.one("MutatingWebhookConfiguration")["webhooks"].as_array().unwrap().clone();
    let names: Vec<String> = webhooks.iter().map(|webhook| text(&webhook["name"])).collect();
    assert_eq!(names, ["namespace.inject.tulle.dev", "pod.inject.tulle.dev"]);
    for webhook in &webhooks {
        // Written by the control plane; said here, every upgrade would undo it.
        assert!(webhook["clientConfig"].get("caBundle").is_none(), "{webhook}");
        let service =
            json!({"name": "tulle-control-plane", "namespace": NAMESPACE, "path": "/inject", "port": 15017});
        assert_eq!(webhook["clientConfig"]["service"], service);
        assert_eq!(webhook["failurePolicy"], "Ignore");
        assert_eq!(
            (&webhook["sideEffects"], &webhook["reinvocationPolicy"]),
            (&json!("None"), &json!("IfNeeded"))
        );
        assert!(webhook["timeoutSeconds"].as_u64().unwrap() <= 10);
        let excluded = &webhook["namespaceSelector"]["matchExpressions"][1];
        assert_eq!(
            (&excluded["key"], &excluded["operator"]),
            (&json!("kubernetes.io/metadata.name"), &json!("NotIn"))
        );
        assert_eq!(
            texts(&excluded["values"]),
            ["kube-system", "kube-public", "kube-node-lease", NAMESPACE, "legacy"]
        );
        assert_eq!(webhook["matchConditions"].as_array().unwrap().len(), 1);
    }
    let by_namespace = &webhooks[0];
    assert_eq!(
        by_namespace["namespaceSelector"]["matchExpressions"][0],
        json!({"key": "tulle.dev/inject", "operator": "In", "values": ["enabled"]})
    );
    assert_eq!(
        by_namespace["objectSelector"]["matchExpressions"],
        json!([{"key": "tulle.dev/inject", "operator": "NotIn", "values": ["disabled"]}])
    );
    let rendered = render(&everything());
    for webhook in rendered.one("MutatingWebhookConfiguration")["webhooks"].as_array().unwrap() {
        assert_eq!((&webhook["failurePolicy"], &webhook["timeoutSeconds"]), (&json!("Fail"), &json!(10)));
    }
}

/// The table of docs/kubernetes.md; never by two webhooks, which would inject twice.
#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn a_pod_is_asked_about_once_or_not_at_all() {
    let rendered = render(&json!({}));
    let webhooks = rendered.one("MutatingWebhookConfiguration")["webhooks"].as_array().unwrap().clone();
    let plain = json!({});
    let said = |value: &str| json!({"tulle.dev/inject": value, "app": "web"});
    for (label, pod, asked) in [
        ("enabled", "", true),
        ("enabled", "enabled", true),
        ("enabled", "disabled", false),
        ("", "", false),
        ("", "enabled", true),
        ("", "disabled", false),
        ("disabled", "", false),
        ("disabled", "enabled", true),
        ("disabled", "disabled", false),
        // A slip of the pen is not `enabled`.
        ("yes", "", false),
        ("yes", "enabled", true),
    ] {
        let mut namespace = if label.is_empty() { json!({}) } else { said(label) };
        namespace["kubernetes.io/metadata.name"] = json!("shop");
        let pods = match pod {
            "" => vec![json!({}), json!({"labels": {"app": "web"}, "annotations": {"a": "b"}})],
            value => vec![
                json!({"labels": said(value)}),
                json!({"annotations": said(value)}),
                json!({"labels": {"app": "web"}, "annotations": said(value)}),
            ],
        };
        for metadata in pods {
            let pod = json!({ "metadata": metadata });
            let count = webhooks.iter().filter(|webhook| is_asked(webhook, &namespace, &pod)).count();
            assert_eq!(count, usize::from(asked), "namespace {label:?}: {pod}");
            for excluded in ["kube-system", NAMESPACE] {
                let mut namespace = namespace.clone();
                namespace["kubernetes.io/metadata.name"] = json!(excluded);
                assert!(
                    !webhooks.iter().any(|webhook| is_asked(webhook, &namespace, &pod)),
                    "{excluded}: {pod}"
                );
            }
        }
    }
    // A pod's label wins over its annotation.
    let both = json!({"metadata": {"labels": said("enabled"), "annotations": said("disabled")}});
    let asking =
        |namespace: &Value| webhooks.iter().filter(|webhook| is_asked(webhook, namespace, &both)).count();
    assert_eq!((asking(&said("enabled")), asking(&plain)), (1, 1));
    assert!(!fits(&webhooks[0]["namespaceSelector"], &plain));
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn definitions_rules_and_dashboards_are_those_of_the_files() {
    let rendered = render(&everything());
    let dashboards = files("dashboards");
    assert_eq!(dashboards.len(), 5);
    for (file, written) in dashboards {
        let map = rendered.all("ConfigMap").find(|map| map["data"].get(&file).is_some()).unwrap();
        let shown: Value = serde_json::from_str(map["data"][&file].as_str().unwrap()).unwrap();
        assert_eq!(shown, serde_json::from_str::<Value>(&written).unwrap(), "{file}");
        assert_eq!(map["metadata"]["labels"]["grafana_dashboard"], "1");
        assert_eq!(map["metadata"]["annotations"]["grafana_folder"], "Tulle");
    }
    let groups = rendered.one("PrometheusRule")["spec"]["groups"].as_array().unwrap();
    let (mut shown, mut written) = (BTreeSet::new(), BTreeSet::new());
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        shown.insert(text(rule.get("alert").unwrap_or_else(|| &rule["record"])));
    }
    for (_, rules) in files("rules") {
        let names = rules.lines().filter_map(|line| line.trim_start().strip_prefix("- "));
        let names =
            names.filter_map(|line| line.strip_prefix("alert: ").or_else(|| line.strip_prefix("record: ")));
        written.extend(names.map(str::to_owned));
    }
    assert_eq!(shown, written);

    let definitions: Vec<_> = rendered.all("CustomResourceDefinition").collect();
    assert_eq!(definitions.len(), files("crds").len());
    for definition in definitions {
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        let version = &definition["spec"]["versions"][0];
        assert!(version["schema"]["openAPIV3Schema"]["properties"]["spec"].is_object(), "{definition}");
    }
    let rendered = render(&json!({"crds": {"install": false}}));
    assert_eq!(rendered.all("CustomResourceDefinition").count(), 0);
    let rendered = render(&json!({"crds": {"keep": false}}));
    assert!(rendered.all("CustomResourceDefinition").all(|one| one["metadata"]["annotations"].is_null()));
}

/// What is allowed: API group, resource, verb, place, name.
type Allowed = BTreeSet<[String; 5]>;

/// The table of docs/kubernetes.md.
fn documented() -> Allowed {
    let page = fs::read_to_string(root().join("docs/kubernetes.md")).unwrap();
    let (_, section) = page.split_once("\n## What the control plane may do\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    let quoted =
        |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut allowed = Allowed::new();
    for row in section.lines().filter(|line| line.starts_with("| ")).skip(2) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [group, resources, verbs, place, names, why] = cells[..] else { panic!("six cells: {row}") };
        assert!(!why.is_empty() && ["cluster", "namespace"].contains(&place), "{row}");
        let group = if group == "core" { String::new() } else { quoted(group).concat() };
        let names = if names == "—" { vec![String::new()] } else { quoted(names) };
        for resource in quoted(resources) {
            for verb in quoted(verbs) {
                for name in &names {
                    let new = [&group, &resource, &verb, place, name].map(|part| part.to_string());
                    assert!(allowed.insert(new.clone()), "twice: {new:?}");
                }
            }
        }
    }
    assert!(allowed.len() > 30, "{allowed:?}");
    allowed
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn the_control_plane_may_do_what_its_table_says_and_no_more() {
    for values in [json!({}), everything()] {
        let rendered = render(&values);
        let mut allowed = Allowed::new();
        for (kind, place) in [("ClusterRole", "cluster"), ("Role", "namespace")] {
            for rule in rendered.one(kind)["rules"].as_array().unwrap() {
                let mut names = texts(&rule["resourceNames"]);
                if names.is_empty() {
                    names.push(String::new());
                }
                for group in texts(&rule["apiGroups"]) {
                    for resource in texts(&rule["resources"]) {
                        for verb in texts(&rule["verbs"]) {
                            for name in &names {
                                assert!(![&group, &resource, &verb].contains(&&"*".to_owned()), "{rule}");
                                let one =
                                    [&group, &resource, &verb, place, name].map(|part| part.to_string());
                                allowed.insert(one);
                            }
                        }
                    }
                }
            }
        }
        let documented = documented();
        let undocumented: Vec<_> = allowed.difference(&documented).collect();
        let missing: Vec<_> = documented.difference(&allowed).collect();
        assert!(
            undocumented.is_empty() && missing.is_empty(),
            "docs/kubernetes.md and helm/tulle/templates/rbac.yaml differ\nonly in the chart: {undocumented:#?}\nonly in the table: {missing:#?}"
        );
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            let binding = rendered.one(kind);
            let account =
                json!([{"kind": "ServiceAccount", "name": "tulle-control-plane", "namespace": NAMESPACE}]);
            assert_eq!(binding["subjects"], account);
            assert_eq!(binding["roleRef"]["name"], "tulle-control-plane");
        }
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn cert_manager_is_asked_for_an_issuing_certificate_that_the_control_plane_may_only_read() {
    let secret = "tulle-identity-issuer";
    let flag = |rendered: &Rendered| {
        let arguments = texts(&rendered.container()["args"]);
        arguments.into_iter().find(|argument| argument.starts_with("--issuer-secret"))
    };
    let ours = render(&json!({}));
    assert_eq!((ours.all("Certificate").count(), flag(&ours)), (0, None));

    let reference = json!({"name": "company", "kind": "ClusterIssuer", "group": "cert-manager.io"});
    let given = json!({"issuerRef": {"name": "company", "kind": "ClusterIssuer"}, "renewBefore": "240h"});
    let theirs = render(&json!({"identity": {"issuer": "cert-manager", "certManager": given}}));
    let certificate = theirs.one("Certificate");
    assert_eq!(certificate["apiVersion"], "cert-manager.io/v1");
    assert_eq!(certificate["metadata"]["name"], secret);
    assert_eq!(
        certificate["spec"],
        json!({
            "secretName": secret, "commonName": "Tulle issuer", "isCA": true,
            "usages": ["cert sign", "crl sign", "digital signature"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "encoding": "PKCS8", "rotationPolicy": "Always"},
            "duration": "2160h", "renewBefore": "240h", "issuerRef": reference,
        })
    );
    assert_eq!(flag(&theirs).unwrap(), format!("--issuer-secret={secret}"));
    assert!(theirs.notes.contains("describe certificate tulle-identity-issuer"), "{}", theirs.notes);

    // Beside what it may do anyway.
    let rules = |rendered: &Rendered| rendered.one("Role")["rules"].as_array().unwrap().clone();
    let mut more = rules(&theirs);
    more.retain(|rule| !rules(&ours).contains(rule));
    let read = json!({
        "apiGroups": [""], "resources": ["secrets"], "resourceNames": [secret], "verbs": ["get", "list", "watch"],
    });
    assert_eq!((more, rules(&theirs).len()), (vec![read], rules(&ours).len() + 1));
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn what_no_value_is_is_refused_by_its_name() {
    let cases = [
        (json!({"colour": 1}), "'colour'"),
        (json!({"controlPlane": {"replica": 2}}), "'/controlPlane': additional properties 'replica'"),
        (json!({"controlPlane": {"replicas": 0}}), "/controlPlane/replicas"),
        (json!({"controlPlane": {"replicas": "two"}}), "/controlPlane/replicas"),
        (json!({"controlPlane": {"antiAffinity": "always"}}), "/controlPlane/antiAffinity"),
        (json!({"controlPlane": {"extraArguments": ["log-level=debug"]}}), "/controlPlane/extraArguments/0"),
        (
            json!({"controlPlane": {"resources": {"limit": {}}}}),
            "'/controlPlane/resources': additional properties 'limit'",
        ),
        (
            json!({"controlPlane": {"resources": {"limits": {"memory": "lots"}}}}),
            "/controlPlane/resources/limits/memory",
        ),
        (json!({"controlPlane": {"podLabels": {"a": 1}}}), "/controlPlane/podLabels/a"),
        (json!({"image": {"digest": "sha256:abc"}}), "/image/digest"),
        (json!({"image": {"repository": ""}}), "/image/repository"),
        (json!({"identity": {"issuer": "vault"}}), "/identity/issuer"),
        (json!({"identity": {"issuer": "cert-manager"}}), "/identity/certManager/issuerRef/name"),
        (json!({"identity": {"certManager": {"duration": "90d"}}}), "/identity/certManager/duration"),
        (json!({"identity": {"trustDomain": "Not A Domain"}}), "/identity/trustDomain"),
        (json!({"identity": {"leafLifetime": "soon"}}), "/identity/leafLifetime"),
        (json!({"mesh": {"mtls": "maybe"}}), "/mesh/mtls"),
        (json!({"mesh": {"networks": ["10.0.0.0"]}}), "/mesh/networks/0"),
        (json!({"mesh": {"accessLog": {"samplePercent": 101}}}), "/mesh/accessLog/samplePercent"),
        (json!({"tracing": {"collector": {"endpoint": "collector:4317"}}}), "/tracing/collector/endpoint"),
        (json!({"tracing": {"sampling": {"percent": -1}}}), "/tracing/sampling/percent"),
        (json!({"webhook": {"failurePolicy": "ignore"}}), "/webhook/failurePolicy"),
        (json!({"webhook": {"timeoutSeconds": 31}}), "/webhook/timeoutSeconds"),
        (json!({"podDisruptionBudget": {"maxUnavailable": 0}}), "/podDisruptionBudget/maxUnavailable"),
        (
            json!({"monitoring": {"serviceMonitor": {"on": true}}}),
            "'/monitoring/serviceMonitor': additional properties 'on'",
        ),
        (json!({"monitoring": {"interval": "often"}}), "/monitoring/interval"),
        (json!({"crds": {"install": "yes"}}), "/crds/install"),
    ];
    let values: Vec<Value> = cases.iter().map(|(values, _)| values.clone()).collect();
    let told = helm(&values);
    for ((values, name), rendered) in cases.iter().zip(told["rendered"].as_array().unwrap()) {
        let error = rendered["error"].as_str().unwrap_or_else(|| panic!("taken: {values}"));
        assert!(error.contains(name), "{values}: {error}");
    }
}

#[test]
#[ignore = "needs the Python of TULLE_TEST_PYTHON, with helm-python-sdk; `.ci/run test` runs it"]
fn the_schema_knows_the_values_and_nothing_else() {
    fn compare(values: &Value, schema: &Value, path: &str) {
        let Some(known) = schema["properties"].as_object() else { return };
        assert_eq!(schema["additionalProperties"], false, "{path}");
        for (key, schema) in known.iter().filter(|(key, _)| *key != "global") {
            match values.get(key) {
                Some(value) => compare(value, schema, &format!("{path}.{key}")),
                // What has no default is a part of something that is empty by default.
                None => assert_eq!(values, &json!({}), "{path}.{key} is not in values.yaml"),
            }
        }
    }
    let told = helm(&[]);
    compare(&told["values"], &told["schema"], "");
}

#[test]
fn every_value_says_what_it_is() {
    // What is in these is Kubernetes's own, and said above them.
    const OTHERS: [&str; 4] = ["requests:", "limits:", "nodeSelector:", "labels:"];
    let written = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let lines: Vec<&str> = written.lines().collect();
    let depth = |line: &str| line.len() - line.trim_start().len();
    let is_comment = |line: &str| line.trim_start().starts_with('#');
    let mut silent = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let leaf = line.split_once(": ").is_some_and(|(_, value)| !value.is_empty()) && !is_comment(line);
        let parent = lines[..at].iter().rfind(|above| !above.is_empty() && depth(above) < depth(line));
        let others = parent.is_some_and(|parent| OTHERS.contains(&parent.trim()));
        if leaf && !others && !(at > 0 && is_comment(lines[at - 1]) && depth(lines[at - 1]) == depth(line)) {
            silent.push(format!("line {}: {line}", at + 1));
        }
    }
    assert_eq!(silent, [""; 0]);
}

#[test]
fn the_chart_has_the_version_of_the_binaries() {
    let written = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        let line = format!("{field}: {}", env!("CARGO_PKG_VERSION"));
        assert!(written.lines().any(|written| written == line), "Chart.yaml lacks `{line}`");
    }
}
