//! Manifests as people keep them: pods and what makes pods, in texts of YAML or JSON with many documents.
//!
//! What is changed in a document is changed in its text, so that comments, order and style of the rest stay. All changes are made at once, by where
//! things stood: a document is read once, and its new text once, however much changes. That is only used if it says exactly what it should. Where
//! it does not (flow style, anchors), the document is written anew, and that is told.

mod edit;

use serde_json::Value;

use super::{list, text};
use crate::finding::Positions;
use crate::source::yaml::{self, Chunk};

/// API groups, as `apiVersion` begins; the core has only a version.
const CORE: &[&str] = &["v1"];
/// The second from before there was the first.
const APPS: &[&str] = &["apps", "extensions"];
const BATCH: &[&str] = &["batch"];

/// A part of a text between two `---`.
#[derive(Debug)]
pub struct Document {
    /// With the line that it begins in, from 1.
    pub first_line: u32,
    text: String,
    /// What it says; `None`: nothing but comments.
    pub value: Option<Value>,
    /// Of what it says.
    positions: Positions,
}

/// A text that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct Unreadable {
    /// From 1.
    pub line: u32,
    /// From 1.
    pub column: u32,
    /// What is wrong.
    pub message: String,
}

/// Where pods are in an object, as JSON pointers: the object itself, what it makes pods of, or those of a list. Of other API groups nothing is known, whatever a
/// kind there is called.
pub fn pods(object: &Value) -> Vec<String> {
    let mut found = Vec::new();
    find(object, None, String::new(), &mut found);
    found
}

/// `kind`: what the items of the list are that it is in, where they do not say it themselves; its group is the list's.
fn find(object: &Value, kind: Option<&str>, at: String, found: &mut Vec<String>) {
    let text = |field: &str| object.get(field).and_then(Value::as_str);
    let Some(kind) = text("kind").or(kind) else { return };
    let (item, is_list) = match kind.strip_suffix("List") {
        Some(item) => (item, true),
        None => (kind, false),
    };
    let (groups, pod) = match item {
        // A `List`, whose items say what they are.
        "" if is_list => (CORE, ""),
        "Pod" => (CORE, ""),
        "PodTemplate" => (CORE, "/template"),
        "ReplicationController" => (CORE, "/spec/template"),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => (APPS, "/spec/template"),
        "Job" => (BATCH, "/spec/template"),
        "CronJob" => (BATCH, "/spec/jobTemplate/spec/template"),
        _ => return,
    };
    // As people write it: with the group, or of the core the version alone.
    let is_of_it = text("apiVersion").is_none_or(|version| {
        let group = version.split_once('/').map_or(version, |(group, _)| group);
        groups.contains(&group)
    });
    if !is_of_it {
        return;
    }
    if !is_list {
        found.push(format!("{at}{pod}"));
        return;
    }
    let item = Some(item).filter(|item| !item.is_empty());
    for (index, value) in list(object, "/items").iter().enumerate() {
        find(value, item, format!("{at}/items/{index}"), found);
    }
}

/// The documents of a text.
///
/// # Errors
/// The first that cannot be read, and where.
pub fn documents(text: &str) -> Result<Vec<Document>, Unreadable> {
    let chunks = yaml::split(text).into_iter();
    chunks
        .map(|chunk| {
            let parsed = yaml::parse(chunk).map_err(|broken| Unreadable {
                line: broken.mark.line,
                column: broken.mark.column,
                message: broken.message,
            })?;
            let (value, positions) =
                parsed.map(|document| (Some(document.value), document.positions)).unwrap_or_default();
            Ok(Document { first_line: chunk.first_line, text: chunk.text.to_owned(), value, positions })
        })
        .collect()
}

// === impl Document ===

impl Document {
    /// Its text as it was.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text that says `wanted`, and whether all else stayed as it was.
    pub fn saying(&self, wanted: &Value) -> (String, bool) {
        let Some(value) = &self.value else { return (self.text.clone(), true) };
        if value == wanted {
            return (self.text.clone(), true);
        }
        if self.text.trim_start().starts_with(['{', '[']) {
            return (format!("{wanted:#}\n"), true);
        }
        let edited = edit::edited(&self.text, self.first_line, &self.positions, value, wanted);
        if let Some(edited) = edited.filter(|edited| read(edited).as_ref() == Some(wanted)) {
            return (edited, true);
        }
        let marker =
            self.text.lines().find(|line| line.starts_with("---")).map(|_| "---\n").unwrap_or_default();
        (format!("{marker}{}", text::yaml(wanted)), false)
    }
}

/// What a text says; `None` where it cannot be read, or says nothing.
fn read(text: &str) -> Option<Value> {
    Some(yaml::parse(Chunk { first_line: 1, text }).ok()??.value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const WRITTEN: &str = "\
# What it is.
apiVersion: v1   # the version
kind: Pod

metadata:
  name: a
  labels: {app: a}   # in a line
spec:
  # first things first
  containers:
  - name: web          # the web
    image: web:1
    args: [a, b]
    livenessProbe:
      # is it up?
      tcpSocket:
        port: 80
      periodSeconds: 5   # often
  - image: db
    name: db

  # the end
  nodeSelector:
    x: |
      # no comment
      y
";

    fn edited(text: &str, change: impl Fn(&mut Value)) -> (String, bool) {
        let documents = documents(text).unwrap();
        let [document] = &documents[..] else { panic!("{documents:?}") };
        let mut wanted = document.value.clone().unwrap();
        change(&mut wanted);
        let (text, kept) = document.saying(&wanted);
        assert_eq!(read(&text).unwrap(), wanted, "{text}");
        (text, kept)
    }

    #[test]
    fn what_is_changed_is_changed_in_the_text_and_the_rest_stays() {
        let (text, kept) = edited(WRITTEN, |pod| {
            pod["metadata"]["annotations"] = json!({"tulle.dev/status": "{\"a\": 1}"});
            pod["spec"]["initContainers"] = json!([{"name": "i", "command": ["x", "1"]}]);
            pod["spec"]["volumes"] = json!([{"name": "v"}]);
            let probe = pod["spec"]["containers"][0]["livenessProbe"].as_object_mut().unwrap();
            probe.remove("tcpSocket");
            probe.insert("httpGet".to_owned(), json!({"path": "/probe/web/liveness", "port": 15020}));
        });
        assert!(kept, "{text}");
        let expected = "\
# What it is.
apiVersion: v1   # the version
kind: Pod

metadata:
  name: a
  labels: {app: a}   # in a line
  annotations:
    tulle.dev/status: '{\"a\": 1}'
spec:
  # first things first
  initContainers:
  - name: i
    command:
    - x
    - '1'
  containers:
  - name: web          # the web
    image: web:1
    args: [a, b]
    livenessProbe:
      # is it up?
      periodSeconds: 5   # often
      httpGet:
        path: /probe/web/liveness
        port: 15020
  - image: db
    name: db

  # the end
  nodeSelector:
    x: |
      # no comment
      y
  volumes:
  - name: v
";
        assert_eq!(text, expected);
    }

    #[test]
    fn items_come_and_go_by_their_names() {
        let (text, kept) = edited(WRITTEN, |pod| {
            let containers = pod["spec"]["containers"].as_array_mut().unwrap();
            containers.insert(0, json!({"name": "first"}));
            containers.remove(2);
        });
        assert!(kept, "{text}");
        assert!(
            text.contains("  containers:\n  - name: first\n  - name: web          # the web\n"),
            "{text}"
        );
        assert!(!text.contains("db") && text.contains("# the end"), "{text}");
    }

    #[test]
    fn what_cannot_be_changed_in_place_is_written_anew() {
        for text in [
            "{kind: Pod, spec: {containers: [{name: a}]}}\n",
            "kind: Pod\nspec: {containers: [{name: a}]}\n",
            "kind: Pod\nx: &x {y: 1}\nspec:\n  <<: *x\n  containers: [{name: a}]\n",
            "---\nkind: Pod\nspec: {}\n",
            "{\n  \"kind\": \"Pod\",\n  \"spec\": {\"containers\": []}\n}\n",
        ] {
            edited(text, |pod| {
                pod["spec"]["volumes"] = json!([{"name": "v"}]);
            });
        }
    }

    #[test]
    fn lines_may_end_in_whatever_yaml_ends_lines_with() {
        for end in ["\r", "\r\n"] {
            let written = WRITTEN.replace('\n', end);
            let (text, kept) = edited(&written, |pod| {
                pod["spec"]["volumes"] = json!([{"name": "v"}]);
                pod["spec"]["containers"].as_array_mut().unwrap().remove(1);
            });
            assert!(kept && text.contains(&format!("# the web{end}")), "{text:?}");
            assert!(text.ends_with(&format!("  volumes:{end}  - name: v{end}")), "{text:?}");
        }
        // Of all kinds, and one within a comment or a text.
        for text in [
            "kind: Pod\rspec:\n  containers:\r\n  - name: a\r",
            "kind: Pod # a\r# b\nspec:\n  containers:\n  - name: a\n    x: |\n      y\r      z\n",
            "\r\r\rkind: Pod\nspec:\n  containers:\n  - name: 'a\r\r      b'\n",
            "kind: Pod\nspec:\n  containers:\n  - name: a\n    x: \"b\r     c\"\r",
        ] {
            edited(text, |pod| pod["spec"]["volumes"] = json!([{"name": "v"}]));
            edited(text, |pod| pod["spec"]["containers"] = json!([]));
        }
    }

    #[test]
    fn a_text_without_an_end_of_its_last_line_gets_one_before_what_is_new() {
        let (text, kept) = edited("kind: Pod\nspec:\n  containers:\n  - name: a", |pod| {
            pod["spec"]["volumes"] = json!([{"name": "v"}]);
        });
        assert!(kept);
        assert_eq!(text, "kind: Pod\nspec:\n  containers:\n  - name: a\n  volumes:\n  - name: v\n");
    }

    #[test]
    fn what_goes_to_one_line_goes_there_from_the_inside_out() {
        let (text, kept) = edited("a:\n- name: x\n  y:\n    z: 1\nb: 1\n", |value| {
            value["a"][0]["y"]["q"] = json!(1);
            value["a"][0]["y"]["r"] = json!(1);
            value["a"][0]["z"] = json!(1);
            value["a"].as_array_mut().unwrap().extend([json!({"name": "k"}), json!({"name": "m"})]);
            value["a"].as_array_mut().unwrap().insert(0, json!({"name": "f"}));
        });
        assert!(kept, "{text}");
        let expected = "a:\n- name: f\n- name: x\n  y:\n    z: 1\n    q: 1\n    r: 1\n  z: 1\n- name: k\n- name: m\nb: 1\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_objects_of_a_list_stay_where_nothing_changes() {
        let text = "kind: List\nitems:\n# one\n- kind: Pod   # a pod\n  spec:\n    containers:\n    - name: a\n# two\n- kind: Service\n";
        let (changed, kept) = edited(text, |list| {
            list["items"][0]["spec"]["volumes"] = json!([{"name": "v"}]);
        });
        assert!(kept);
        assert_eq!(changed, text.replace("- name: a\n", "- name: a\n    volumes:\n    - name: v\n"));
    }

    /// Once for each change, as it once was, would have no end at this size.
    #[test]
    fn however_much_changes_the_text_is_read_once() {
        let probe = "    livenessProbe:\n      tcpSocket:\n        port: 1\n";
        let containers: String = (0..3000).map(|n| format!("  - name: c{n} # of {n}\n{probe}")).collect();
        let text = format!("kind: Pod\nspec:\n  containers:\n{containers}");
        let (changed, kept) = edited(&text, |pod| {
            for container in pod["spec"]["containers"].as_array_mut().unwrap() {
                container["livenessProbe"] = json!({"httpGet": {"port": 2}});
            }
        });
        assert!(kept);
        assert_eq!(changed, text.replace("tcpSocket:\n        port: 1", "httpGet:\n        port: 2"));
    }

    #[test]
    fn pods_are_found_in_what_makes_them() {
        let kind = |kind: &str| pods(&json!({ "kind": kind }));
        assert_eq!(kind("Pod"), [""]);
        assert_eq!(kind("StatefulSet"), ["/spec/template"]);
        assert_eq!(kind("CronJob"), ["/spec/jobTemplate/spec/template"]);
        assert!(kind("Service").is_empty() && pods(&json!(1)).is_empty());
        let list = json!({"kind": "List", "items": [{"kind": "Service"}, {"kind": "Job"}, {"kind": "Pod"}]});
        assert_eq!(pods(&list), ["/items/1/spec/template", "/items/2"]);
        assert_eq!(kind("PodTemplate"), ["/template"]);
        // As an API server answers: its items do not say what they are.
        let pods_alone =
            json!({"kind": "PodList", "apiVersion": "v1", "items": [{"metadata": {}}, {"spec": {}}]});
        assert_eq!(pods(&pods_alone), ["/items/0", "/items/1"]);
        let templates = json!({"kind": "PodTemplateList", "apiVersion": "v1", "items": [{}]});
        assert_eq!(pods(&templates), ["/items/0/template"]);
        let jobs = json!({"kind": "CronJobList", "apiVersion": "batch/v1", "items": [{}]});
        assert_eq!(pods(&jobs), ["/items/0/spec/jobTemplate/spec/template"]);
        let nested = json!({"kind": "List", "apiVersion": "v1", "items": [list]});
        assert_eq!(pods(&nested), ["/items/0/items/1/spec/template", "/items/0/items/2"]);
    }

    #[test]
    fn what_is_called_the_same_in_another_api_group_is_something_else() {
        let of = |version: &str, kind: &str| pods(&json!({"apiVersion": version, "kind": kind}));
        for (version, kind) in [
            ("example.dev/v1", "Pod"),
            ("apps/v1", "Pod"),
            ("v1", "Deployment"),
            ("batch.volcano.sh/v1alpha1", "Job"),
            ("apps.kruise.io/v1alpha1", "StatefulSet"),
            ("example.dev/v1", "PodList"),
        ] {
            assert!(of(version, kind).is_empty(), "{version} {kind}");
        }
        for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("batch/v1beta1", "CronJob")] {
            assert_eq!(of(version, kind).len(), 1, "{version} {kind}");
        }
    }

    #[test]
    fn a_text_that_cannot_be_read_is_told_with_its_place() {
        let error = documents("a: 1\n---\nb: [\n").unwrap_err();
        assert!(error.line >= 3, "{error}");
    }
}
