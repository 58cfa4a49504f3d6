//! The pods of `golden/`: each file is a namespace, settings and a pod as people write them; the file of the same name that ends in `.out.yaml` is
//! what becomes of it. `TULLE_UPDATE_DOCS=1` writes those anew. And what holds for whatever pods there are.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::source::parse_one;

pub(super) fn namespace() -> Namespace {
    let labels = [(INJECT.to_owned(), "enabled".to_owned())].into_iter().collect();
    Namespace { name: "shop".to_owned(), labels, annotations: BTreeMap::new() }
}

pub(super) fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"containers": [{"name": "web", "image": "web:1", "ports": [{"name": "http", "containerPort": 8080}]}]},
    })
}

pub(super) fn injected(pod: &Value) -> Value {
    match inject(pod, &namespace(), &Settings::default()) {
        Decision::Inject { pod, .. } => *pod,
        other => panic!("{other:?}"),
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/inject/golden")
}

struct Case {
    name: String,
    namespace: Namespace,
    settings: Settings,
    pod: Value,
}

fn cases() -> Vec<Case> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| !path.to_string_lossy().ends_with(".out.yaml"));
    files.sort();
    let case = |path: PathBuf| {
        let mut written = parse_one(&std::fs::read_to_string(&path).unwrap());
        let texts = |pointer: &str| -> BTreeMap<String, String> {
            written
                .pointer(pointer)
                .map(|map| serde_json::from_value(map.clone()).unwrap())
                .unwrap_or_default()
        };
        let name = written.pointer("/namespace/name").and_then(Value::as_str).unwrap_or("shop").to_owned();
        let (mut labels, annotations) = (texts("/namespace/labels"), texts("/namespace/annotations"));
        if written.get("namespace").is_none() {
            labels.insert(INJECT.to_owned(), "enabled".to_owned());
        }
        let settings = written.get("settings").cloned().unwrap_or_else(|| json!({}));
        let settings: Settings = serde_json::from_value(settings).unwrap();
        let settings = Settings { image_tag: "1.0.0".to_owned(), ..settings };
        Case {
            name: path.file_stem().unwrap().to_string_lossy().into_owned(),
            namespace: Namespace { name, labels, annotations },
            settings,
            pod: written["pod"].take(),
        }
    };
    files.into_iter().map(case).collect()
}

/// The containers that are added to a pod that says nothing.
fn usual() -> Vec<Value> {
    let settings = Settings { image_tag: "1.0.0".to_owned(), ..Settings::default() };
    let Decision::Inject { pod, .. } = inject(&pod(), &namespace(), &settings) else {
        panic!("not injected")
    };
    list(&pod, "/spec/initContainers").to_vec()
}

/// What is written of a decision: of the containers that are added, what is not as usual.
fn shown(case: &Case, usual: &[Value]) -> Value {
    match inject(&case.pod, &case.namespace, &case.settings) {
        Decision::Inject { pod, warnings } => {
            let mut operations = patch(&case.pod, &pod);
            for operation in &mut operations {
                shorten(&mut operation["value"], usual, case.name == "plain");
                if operation["value"].is_null() {
                    operation.as_object_mut().unwrap().remove("value");
                }
            }
            json!({"outcome": "injected", "warnings": warnings, "patch": operations})
        }
        Decision::Leave { reason, message, warnings } => {
            json!({"outcome": "left", "reason": reason.as_str(), "message": message, "warnings": warnings})
        }
        Decision::Refuse { reason, message } => {
            json!({"outcome": "refused", "reason": reason.as_str(), "message": message})
        }
    }
}

fn shorten(value: &mut Value, usual: &[Value], in_full: bool) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| shorten(item, usual, in_full)),
        Value::Object(object) => {
            // It is of a version of ours.
            if let Some(status) = object.get(STATUS).and_then(Value::as_str) {
                let mut status: Value = serde_json::from_str(status).unwrap();
                status["version"] = json!("…");
                status["hash"] = json!("…");
                object.insert(STATUS.to_owned(), status);
            }
            let known = usual.iter().find(|known| known.get("name") == object.get("name"));
            if let Some(known) = known.filter(|_| !in_full) {
                let mut changed = patch(known, &Value::Object(object.clone()));
                // By what stood at a place the list says nothing.
                changed.retain(|operation| {
                    operation["op"] != "remove" || !operation["path"].as_str().unwrap().starts_with("/env")
                });
                *value = json!({"name": known["name"], "other than usual": changed});
            }
        }
        Value::String(text) if text.starts_with("{\"version\"") => {
            let mut status: Value = serde_json::from_str(text).unwrap();
            status["version"] = json!("…");
            status["hash"] = json!("…");
            *value = status;
        }
        _ => {}
    }
}

#[test]
fn what_becomes_of_pods_is_what_is_written() {
    let (usual, update) = (usual(), std::env::var_os("TULLE_UPDATE_DOCS").is_some());
    let cases = cases();
    assert!(cases.len() >= 25, "{}", cases.len());
    let mut wrong = Vec::new();
    for case in &cases {
        let path = folder().join(format!("{}.out.yaml", case.name));
        let text = text::yaml(&shown(case, &usual));
        if update {
            std::fs::write(&path, &text).unwrap();
        }
        if std::fs::read_to_string(&path).unwrap_or_default() != text {
            wrong.push(format!("{}:\n{text}", path.display()));
        }
    }
    let anew = "if that is right, run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-control-plane --lib inject`";
    assert!(wrong.is_empty(), "{anew}\n{}", wrong.join("\n"));
}

/// The pods of `golden/`, and many made of parts of them by chance.
pub(super) fn many() -> Vec<(String, Namespace, Settings, Value)> {
    let cases = cases();
    let mut many: Vec<_> = cases
        .iter()
        .map(|case| (case.name.clone(), case.namespace.clone(), case.settings.clone(), case.pod.clone()))
        .collect();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    for number in 0..500 {
        let mut pod = cases[draw(cases.len())].pod.clone();
        for _ in 0..draw(4) {
            let other = &cases[draw(cases.len())].pod;
            for pointer in ["/spec", "/metadata"] {
                let Some(parts) = other.pointer(pointer).and_then(Value::as_object) else { continue };
                for (key, value) in parts {
                    let object = object(&mut pod, &[pointer.trim_start_matches('/')]);
                    match draw(4) {
                        0 => drop(object.insert(key.clone(), value.clone())),
                        1 if key != "containers" => drop(object.remove(key)),
                        _ => {}
                    }
                }
            }
        }
        let case = &cases[draw(cases.len())];
        many.push((format!("by chance {number}"), case.namespace.clone(), case.settings.clone(), pod));
    }
    many
}

#[test]
fn injecting_twice_is_injecting_once_and_the_way_back_leads_back() {
    let mut count = 0;
    for (name, namespace, settings, pod) in many() {
        let Decision::Inject { pod: with_proxy, .. } = inject(&pod, &namespace, &settings) else { continue };
        count += 1;
        assert!(is_injected(&with_proxy), "{name}");
        let again = inject(&with_proxy, &namespace, &settings);
        assert!(
            matches!(again, Decision::Leave { reason: Reason::AlreadyInjected, .. }),
            "{name}: {again:?}"
        );
        let back = uninject(&with_proxy).unwrap();
        // A status that speaks of nothing is taken away too.
        let mut before = uninject(&pod).unwrap_or_else(|| pod.clone());
        // Nothing in it is as good as none.
        if before["metadata"] == json!({}) {
            before.as_object_mut().unwrap().remove("metadata");
        }
        assert_eq!(back, before, "{name}");
        assert_eq!(uninject(&back), None, "{name}");
        let Decision::Inject { pod: once_more, .. } = inject(&back, &namespace, &settings) else {
            panic!("{name}: not injected again");
        };
        assert_eq!(once_more, with_proxy, "{name}");
        let operations = Value::Array(patch(&pod, &with_proxy));
        let operations: json_patch::Patch = serde_json::from_value(operations).unwrap();
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &operations).unwrap();
        assert_eq!(patched, *with_proxy, "{name}");
    }
    assert!(count > 100, "{count} were injected");
}

#[test]
fn every_reason_has_a_pod_and_a_row_in_the_guide() {
    let cases = cases();
    let mut seen: Vec<Reason> = Vec::new();
    for case in &cases {
        match inject(&case.pod, &case.namespace, &case.settings) {
            Decision::Leave { reason, .. } | Decision::Refuse { reason, .. } => seen.push(reason),
            Decision::Inject { .. } => {}
        }
    }
    // By the webhook alone, and of a pod that is too large for a file.
    let elsewhere = [Reason::NamespaceUnknown, Reason::TooLarge];
    let unseen: Vec<_> =
        Reason::ALL.iter().filter(|reason| !seen.contains(reason) && !elsewhere.contains(reason)).collect();
    assert!(unseen.is_empty(), "no pod of golden/ has the reason {unseen:?}");
}

#[test]
fn the_guide_holds_the_tables() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/injection.md");
    let mut page = std::fs::read_to_string(path).unwrap();
    let mut reasons = String::from("| reason | meaning |\n| --- | --- |\n");
    for reason in Reason::ALL {
        reasons.push_str(&format!("| `{reason}` | {} |\n", reason.meaning()));
    }
    for (name, table) in [("annotations", reference()), ("reasons", reasons)] {
        let (begin, end) =
            (format!("<!-- {name}: made from the code -->\n"), format!("<!-- end of {name} -->\n"));
        let from = page.find(&begin).expect("the table's place") + begin.len();
        let until = page.find(&end).expect("the table's end");
        if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
            page.replace_range(from..until, &table);
            std::fs::write(path, &page).unwrap();
        } else {
            assert_eq!(
                &page[from..until],
                table,
                "run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-control-plane --lib inject`"
            );
        }
    }
}

#[test]
fn what_is_told_to_the_proxy_is_what_the_pod_says() {
    let mut pod = pod();
    pod["spec"]["containers"][0]["livenessProbe"] =
        json!({"tcpSocket": {"port": "http"}, "timeoutSeconds": 3});
    pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"port": 8080, "path": "/ready?a=b"}});
    pod["metadata"]["annotations"]["config.tulle.dev/client-cert-header"] = json!("set");
    let with_proxy = injected(&pod);
    let proxy = &with_proxy["spec"]["initContainers"][1];
    let variable = |name: &str| {
        let found = list(proxy, "/env").iter().find(|variable| name_of(variable) == Some(name));
        found.and_then(|variable| variable["value"].as_str()).unwrap_or_default().to_owned()
    };
    let declared: Value = serde_json::from_str(&variable("TULLE_PROXY_PROBES")).unwrap();
    let made = json!([{"container": "web", "kind": "liveness", "port": 8080, "tcp": {}, "timeout": 3}]);
    assert_eq!(declared, json!({"made": made, "allowed": [{"port": 8080, "path": "/ready?a=b"}]}));
    assert_eq!(variable("TULLE_PROXY_INBOUND_CLIENT_CERT_HEADER"), "set");
    assert_eq!(variable("TULLE_PROXY_WORKLOAD"), "$(TULLE_POD_NAMESPACE)/$(TULLE_POD_NAME)");
    assert_eq!(proxy["restartPolicy"], "Always");
    let web = &with_proxy["spec"]["containers"][0];
    let now = json!({"httpGet": {"path": "/probe/web/liveness", "port": 15020, "scheme": "HTTP"}, "timeoutSeconds": 3});
    assert_eq!(web["livenessProbe"], now);
    assert_eq!(web["readinessProbe"], pod["spec"]["containers"][0]["readinessProbe"]);
}

#[test]
fn the_proxy_goes_on_for_as_long_as_its_application_may() {
    for (of_pod, wanted, grace) in [
        (json!(null), "10s", "30s"),
        (json!(null), "1m30s", "1m30s"),
        (json!(600), "30s", "600s"),
        (json!(30), "30s", "30s"),
        (json!(0), "30s", "30s"),
        (json!(100_000_000_000_u64), "30s", "86400s"),
    ] {
        let mut pod = pod();
        pod["spec"]["terminationGracePeriodSeconds"] = of_pod.clone();
        let settings = Settings { shutdown_grace_period: wanted.to_owned(), ..Settings::default() };
        let Decision::Inject { pod, .. } = inject(&pod, &namespace(), &settings) else {
            panic!("not injected")
        };
        let env = list(&pod, "/spec/initContainers/1/env").to_vec();
        let said = env.iter().find(|variable| name_of(variable) == Some("TULLE_PROXY_DRAIN_GRACE")).unwrap();
        assert_eq!(said["value"], grace, "{of_pod} {wanted}");
    }
}

#[test]
fn a_hook_leads_to_the_proxy_and_is_open_to_nobody() {
    let mut pod = pod();
    let stop = json!({"httpGet": {"port": "http", "path": "/shutdown", "httpHeaders": [{"name": "x-a", "value": "b"}]}});
    let start = json!({"httpGet": {"port": 8080, "path": "/warm-up"}});
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": stop, "postStart": start});
    pod["spec"]["terminationGracePeriodSeconds"] = json!(90);
    let with_proxy = injected(&pod);
    let variables = list(&with_proxy["spec"]["initContainers"][1], "/env");
    let declared = variables.iter().find(|variable| name_of(variable) == Some("TULLE_PROXY_PROBES")).unwrap();
    let declared: Value = serde_json::from_str(declared["value"].as_str().unwrap()).unwrap();
    let made = json!([
        {"container": "web", "kind": "post-start", "port": 8080, "timeout": 90, "http": {"path": "/warm-up"}},
        {"container": "web", "kind": "pre-stop", "port": 8080, "timeout": 90,
         "http": {"path": "/shutdown", "headers": [["x-a", "b"]]}},
    ]);
    assert_eq!(declared, json!({ "made": made }));
    let lifecycle = &with_proxy["spec"]["containers"][0]["lifecycle"];
    for (field, kind) in [("postStart", "post-start"), ("preStop", "pre-stop")] {
        let now = json!({"path": format!("/probe/web/{kind}"), "port": 15020, "scheme": "HTTP"});
        assert_eq!(lifecycle[field], json!({ "httpGet": now }));
    }
}

#[test]
fn what_others_read_of_a_pod_is_written_on_it() {
    let said = |key: &str, value: &str| (format!("{CONFIG}{key}"), value.to_owned());
    let settings = Settings { opaque_ports: Some(" 7000 - 7002 ,7010,".to_owned()), ..Settings::default() };
    let annotations = [said("skip-inbound-ports", "none"), said("metrics-port", "9999")];
    let namespace = Namespace { annotations: annotations.into(), ..namespace() };
    let Decision::Inject { pod: with_proxy, .. } = inject(&pod(), &namespace, &settings) else {
        panic!("not injected")
    };
    let annotations = &with_proxy["metadata"]["annotations"];
    assert_eq!(annotations["config.tulle.dev/metrics-port"], "9999");
    assert_eq!(annotations["config.tulle.dev/opaque-ports"], "7000-7002,7010");
    assert_eq!(annotations.get("config.tulle.dev/skip-inbound-ports"), None, "that is nothing");
    assert_eq!(uninject(&with_proxy), Some(pod()));
}

#[test]
fn the_image_and_the_trusted_bundle_are_those_of_the_settings() {
    let settings = Settings { image_digest: Some("sha256:ab".to_owned()), uid: 4444, ..Settings::default() };
    let Decision::Inject { pod, .. } = inject(&pod(), &namespace(), &settings) else {
        panic!("not injected")
    };
    for container in list(&pod, "/spec/initContainers") {
        assert_eq!(container["image"], "tulle@sha256:ab");
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    }
    assert_eq!(pod["spec"]["initContainers"][1]["securityContext"]["runAsUser"], 4444);
    assert!(pod["spec"]["initContainers"][1]["securityContext"]["capabilities"].get("add").is_none());
    let sources = list(&pod, "/spec/volumes/0/projected/sources");
    assert_eq!(sources[0]["serviceAccountToken"]["audience"], "tulle");
    assert_eq!(sources[1]["configMap"]["name"], "tulle-trust-bundle");
}

#[test]
fn nothing_that_is_no_pod_is_touched() {
    for value in [
        json!(null),
        json!(1),
        json!([]),
        json!({}),
        json!({"spec": {"containers": []}}),
        json!({"metadata": {}, "spec": 1}),
    ] {
        let decision = inject(&value, &namespace(), &Settings::default());
        assert!(
            matches!(decision, Decision::Leave { reason: Reason::Malformed, .. }),
            "{value}: {decision:?}"
        );
        assert_eq!(uninject(&value), None);
    }
}
