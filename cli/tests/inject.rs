//! `tulle inject` and `tulle uninject` as people call them: texts in, texts out.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

const SHOP: &str = "\
# The shop, as its people keep it.
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  annotations:
    config.tulle.dev/proxy-log-level: debug
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop   # where it belongs
spec:
  replicas: 2
  template:
    metadata:
      labels:
        app: web
    spec:
      # One container, for now.
      containers:
      - name: web
        image: web:1   # pinned
        livenessProbe:
          tcpSocket:
            port: 8080
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{port: 80}]}
---
apiVersion: batch/v1
kind: CronJob
metadata:
  name: report
spec:
  schedule: '0 * * * *'
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          containers:
          - name: report
            image: report:1
---
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: agent
spec:
  template:
    metadata:
      labels: {app: agent}
    spec:
      hostNetwork: true
      containers:
      - name: agent
        image: agent:1
";

fn tulle(arguments: &[&str], stdin: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = stdin.to_owned();
    let writer = std::thread::spawn(move || drop(input.write_all(text.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

#[test]
fn proxies_are_put_in_and_what_else_there_is_stays_as_it_was() {
    let output = tulle(&["inject"], SHOP);
    let (text, said) = (out(&output), said(&output));
    assert!(output.status.success(), "{said}");
    for kept in [
        "# The shop, as its people keep it.",
        "  namespace: shop   # where it belongs\n",
        "      # One container, for now.\n",
        "        image: web:1   # pinned\n",
        "metadata: {name: web, namespace: shop}\nspec: {ports: [{port: 80}]}\n",
    ] {
        assert!(text.contains(kept), "{kept}: {text}");
    }
    assert_eq!(text.matches("name: tulle-proxy\n").count(), 2, "{text}");
    // The namespace among the manifests says it.
    let level = "- name: TULLE_PROXY_LOG_LEVEL\n          value: debug\n";
    assert_eq!(text.matches(level).count(), 1, "{text}");
    assert!(text.contains("path: /probe/web/liveness"), "{text}");
    for line in [
        "Deployment shop/web: has a proxy",
        "CronJob default/report: has a proxy",
        "DaemonSet default/agent: left as it is (host_network)",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // Once more is the same, and the way back leads to what there was.
    let again = tulle(&["inject", "-"], &text);
    assert_eq!(out(&again), text, "{}", self::said(&again));
    let back = tulle(&["uninject"], &text);
    assert_eq!(out(&back), SHOP, "{}", self::said(&back));
}

#[test]
fn another_image_or_version_takes_the_place_of_the_old() {
    let first = out(&tulle(&["inject", "--proxy-image", "registry.example:5000/tulle:1"], SHOP));
    assert_eq!(first.matches("image: 'registry.example:5000/tulle:1'\n").count(), 4, "{first}");
    let digest = format!("registry.example:5000/tulle@sha256:{}", "00".repeat(32));
    let second = out(&tulle(&["inject", "--proxy-image", &digest], &first));
    assert!(!second.contains("tulle:1"), "{second}");
    assert_eq!(second.matches(&format!("image: '{digest}'\n")).count(), 4, "{second}");
}

#[test]
fn json_stays_json_and_flow_style_is_written_anew_and_told() {
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containers": [{"name": "a"}]}}"#;
    let output = tulle(&["inject"], pod);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["spec"]["initContainers"][1]["name"], "tulle-proxy");
    let flow = "kind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let output = tulle(&["inject"], flow);
    assert!(
        said(&output).contains("standard input:1: warning: the document is written anew"),
        "{}",
        said(&output)
    );
    assert!(out(&output).contains("tulle-proxy"));
}

#[test]
fn what_cannot_be_is_told_and_fails() {
    for (text, status, says) in [
        ("a: [\n", 1, "standard input: line"),
        (
            "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    config.tulle.dev/metrics-port: '80'\nspec:\n  containers:\n  - name: a\n",
            1,
            "bad_annotation",
        ),
        ("kind: Service\n", 0, "there is no pod"),
        ("", 0, "there is no pod"),
    ] {
        let output = tulle(&["inject"], text);
        assert_eq!(output.status.code(), Some(status), "{text}: {}", said(&output));
        assert!(said(&output).contains(says), "{text}: {}", said(&output));
    }
    let output = tulle(&["inject", "/nonexistent/x.yaml"], "");
    assert!(!output.status.success() && said(&output).contains("/nonexistent/x.yaml"));
    let output = tulle(&["inject", "--proxy-image", "a b"], "");
    assert!(!output.status.success() && said(&output).contains("imageRepository"), "{}", said(&output));
}

#[test]
fn lists_and_templates_have_their_pods_changed_and_what_is_of_another_group_stays() {
    let text = "\
apiVersion: v1
kind: PodList
items:
- metadata:
    name: a
  spec:
    containers:
    - name: a
---
apiVersion: v1
kind: PodTemplate
metadata:
  name: b
template:
  spec:
    containers:
    - name: b
---
apiVersion: example.dev/v1
kind: Pod
metadata:
  name: c
spec:
  containers:
  - name: c
";
    let output = tulle(&["inject"], text);
    let said = said(&output);
    assert!(
        said.contains("Pod default/a: has a proxy") && said.contains("PodTemplate default/b: has a proxy"),
        "{said}"
    );
    assert!(!said.contains("default/c"), "{said}");
    assert_eq!(out(&output).matches("name: tulle-proxy\n").count(), 2, "{}", out(&output));
    assert_eq!(out(&tulle(&["uninject"], &out(&output))), text);
}

#[test]
fn a_word_without_quotes_is_told_and_not_passed_over() {
    let text = "kind: Pod\nmetadata:\n  name: a\n  annotations:\n    tulle.dev/inject: false\nspec:\n  containers:\n  - name: a\n";
    let output = tulle(&["inject"], text);
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("write tulle.dev/inject: disabled"), "{}", said(&output));
}
