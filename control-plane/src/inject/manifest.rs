//! Manifests as people keep them: pods and what makes pods, in texts of YAML or JSON with many documents.
//!
//! What is changed in a document is changed in its text, so that comments, order and style of the rest stay; the text is read again, and only used
//! if it says exactly what it should. Where it does not (JSON, flow style, anchors), the document is written anew, and that is told.

use serde_json::Value;

use super::patch::patch;
use super::{list, text};
use crate::finding::{Positions, push_index, push_key};
use crate::source::yaml::{self, Chunk};

/// A part of a text between two `---`.
#[derive(Debug)]
pub struct Document {
    /// With the line that it begins in, from 1.
    pub first_line: u32,
    text: String,
    /// What it says; `None`: nothing but comments.
    pub value: Option<Value>,
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

/// Where pods are in an object, as JSON pointers: the object itself, what it makes pods of, or those of a list.
pub fn pods(object: &Value) -> Vec<String> {
    match object.get("kind").and_then(Value::as_str).unwrap_or_default() {
        "Pod" => vec![String::new()],
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "Job" | "ReplicationController" => {
            vec!["/spec/template".to_owned()]
        }
        "CronJob" => vec!["/spec/jobTemplate/spec/template".to_owned()],
        "List" | "PodList" | "DeploymentList" => {
            let items = list(object, "/items").iter().enumerate();
            items
                .flat_map(|(index, item)| pods(item).into_iter().map(move |at| format!("/items/{index}{at}")))
                .collect()
        }
        _ => Vec::new(),
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
            let value = parsed.map(|document| document.value);
            Ok(Document { first_line: chunk.first_line, text: chunk.text.to_owned(), value })
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
        if let Some(edited) = edit(&self.text, value, wanted) {
            return (edited, true);
        }
        if self.text.trim_start().starts_with(['{', '[']) {
            return (format!("{wanted:#}\n"), true);
        }
        let marker =
            self.text.lines().find(|line| line.starts_with("---")).map(|_| "---\n").unwrap_or_default();
        (format!("{marker}{}", text::yaml(wanted)), false)
    }
}

/// `text`, which says `from`, changed so that it says `to`.
fn edit(text: &str, from: &Value, to: &Value) -> Option<String> {
    let (mut text, mut value) = (text.to_owned(), from.clone());
    for operation in patch(from, to) {
        text = Layout::of(&text, &value)?.apply(&operation)?;
        value = read(&text)?.0;
    }
    (value == *to).then_some(text)
}

fn read(text: &str) -> Option<(Value, Positions)> {
    let document = yaml::parse(Chunk { first_line: 1, text }).ok()??;
    Some((document.value, document.positions))
}

/// Where everything stands in a text.
struct Layout<'a> {
    lines: Vec<&'a str>,
    /// In the order of the text.
    nodes: Vec<Node>,
}

struct Node {
    pointer: String,
    /// From 0: of the key, or of a list's item.
    line: usize,
    /// From 0, in characters.
    column: usize,
}

// === impl Layout ===

impl<'a> Layout<'a> {
    fn of(text: &'a str, value: &Value) -> Option<Self> {
        let (read, positions) = read(text)?;
        if read != *value {
            return None;
        }
        let mut nodes = Vec::new();
        walk(value, String::new(), &mut String::new(), &positions, &mut nodes)?;
        nodes.sort_by_key(|node: &Node| (node.line, node.column));
        Some(Self { lines: text.split('\n').collect(), nodes })
    }

    /// The text after one operation of a patch.
    fn apply(&self, operation: &Value) -> Option<String> {
        let path = operation.get("path")?.as_str()?;
        let value = operation.get("value");
        let (parent, key) = path.rsplit_once('/')?;
        let key = key.replace("~1", "/").replace("~0", "~");
        let (at, until, new) = match operation.get("op")?.as_str()? {
            "remove" => {
                let (from, until) = self.extent(path)?;
                // What stands behind a dash takes that along.
                if self.dash(from, self.node(path)?.column).is_some() != self.is_item(path) {
                    return None;
                }
                (from, until, Vec::new())
            }
            "replace" => {
                let (from, until) = self.extent(path)?;
                (from, until, self.written(path, &key, value?)?)
            }
            "add" => {
                let at = self.place(parent, &key)?;
                (at.0, at.0, if at.2 { text::item(value?, at.1) } else { text::entry(&key, value?, at.1) })
            }
            _ => return None,
        };
        let mut lines: Vec<String> = self.lines[..at].iter().map(|line| (*line).to_owned()).collect();
        lines.extend(new);
        lines.extend(self.lines[until..].iter().map(|line| (*line).to_owned()));
        Some(lines.join("\n"))
    }

    fn node(&self, pointer: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.pointer == pointer)
    }

    fn children(&self, parent: &str) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(move |node| {
            node.pointer.rsplit_once('/').is_some_and(|(above, _)| above == parent)
                && !node.pointer.is_empty()
        })
    }

    /// Whether the node is in a list.
    fn is_item(&self, pointer: &str) -> bool {
        let key = pointer.rsplit_once('/').map(|(_, key)| key).unwrap_or_default();
        let node = self.node(pointer);
        key.parse::<usize>().is_ok() && node.is_some_and(|node| self.dash(node.line, node.column).is_some())
    }

    /// The column of the dash before a list's item, if nothing else is there.
    fn dash(&self, line: usize, column: usize) -> Option<usize> {
        let before: String = self.lines.get(line)?.chars().take(column).collect();
        let dash = before.trim_end();
        (dash.trim_start() == "-").then(|| dash.chars().count() - 1)
    }

    /// The lines of a node: from which, and the one after it. Comments and blank lines before what follows belong to that.
    fn extent(&self, pointer: &str) -> Option<(usize, usize)> {
        let node = self.node(pointer)?;
        let within = format!("{pointer}/");
        let is_after = |other: &&Node| {
            (other.line, other.column) > (node.line, node.column)
                && !other.pointer.starts_with(&within)
                && other.pointer != pointer
        };
        let next = self.nodes.iter().find(is_after).map(|other| other.line);
        if next == Some(node.line) {
            return None;
        }
        let mut until = next.unwrap_or(self.lines.len());
        let is_end = |line: &str| {
            line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with("...")
        };
        while until > node.line + 1 && is_end(self.lines[until - 1]) {
            until -= 1;
        }
        Some((node.line, until))
    }

    /// Where a new entry goes: before which line, at which column, whether in a list.
    fn place(&self, parent: &str, key: &str) -> Option<(usize, usize, bool)> {
        let mut children: Vec<&Node> = self.children(parent).collect();
        children.sort_by_key(|node| (node.line, node.column));
        let (first, last) = (children.first()?, children.last()?);
        if self.is_item(&first.pointer) {
            let column = self.dash(first.line, first.column)?;
            let at = match children.get(key.parse::<usize>().ok()?) {
                Some(node) => node.line,
                None => self.extent(&last.pointer)?.1,
            };
            return Some((at, column, true));
        }
        // Containers that start first are read first.
        let behind = children.iter().find(|node| {
            key == "initContainers"
                && node.pointer.ends_with("/containers")
                && self.dash(node.line, node.column).is_none()
        });
        let is_plain = |node: &Node| {
            let before: String = self.lines[node.line].chars().take(node.column).collect();
            before.trim().is_empty() || self.dash(node.line, node.column).is_some()
        };
        if !children.iter().all(|node| is_plain(node) && node.column == first.column) {
            return None;
        }
        let at = match behind {
            Some(node) => node.line,
            None => self.extent(&last.pointer)?.1,
        };
        Some((at, first.column, false))
    }

    /// A node with another value, at its place.
    fn written(&self, pointer: &str, key: &str, value: &Value) -> Option<Vec<String>> {
        let node = self.node(pointer)?;
        let before: String = self.lines[node.line].chars().take(node.column).collect();
        if self.is_item(pointer) {
            return Some(text::item(value, self.dash(node.line, node.column)?));
        }
        let mut lines = text::entry(key, value, node.column);
        match before.trim() {
            "" => {}
            "-" => {
                let first = lines.first_mut()?;
                first.replace_range(..node.column, &before);
            }
            _ => return None,
        }
        Some(lines)
    }
}

/// Every node with its place.
fn walk(
    value: &Value,
    pointer: String,
    path: &mut String,
    positions: &Positions,
    out: &mut Vec<Node>,
) -> Option<()> {
    if !pointer.is_empty() {
        let mark = positions.find(path)?;
        let (line, column) = (mark.line.checked_sub(1)?, mark.column.checked_sub(1)?);
        let place = (usize::try_from(line).ok()?, usize::try_from(column).ok()?);
        out.push(Node { pointer: pointer.clone(), line: place.0, column: place.1 });
    }
    let length = path.len();
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                push_key(path, key);
                let pointer = format!("{pointer}/{}", key.replace('~', "~0").replace('/', "~1"));
                walk(value, pointer, path, positions, out)?;
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                push_index(path, index);
                walk(value, format!("{pointer}/{index}"), path, positions, out)?;
                path.truncate(length);
            }
        }
        _ => {}
    }
    Some(())
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
        assert_eq!(read(&text).unwrap().0, wanted, "{text}");
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
    fn pods_are_found_in_what_makes_them() {
        let kind = |kind: &str| pods(&json!({ "kind": kind }));
        assert_eq!(kind("Pod"), [""]);
        assert_eq!(kind("StatefulSet"), ["/spec/template"]);
        assert_eq!(kind("CronJob"), ["/spec/jobTemplate/spec/template"]);
        assert!(kind("Service").is_empty() && pods(&json!(1)).is_empty());
        let list = json!({"kind": "List", "items": [{"kind": "Service"}, {"kind": "Job"}, {"kind": "Pod"}]});
        assert_eq!(pods(&list), ["/items/1/spec/template", "/items/2"]);
    }

    #[test]
    fn a_text_that_cannot_be_read_is_told_with_its_place() {
        let error = documents("a: 1\n---\nb: [\n").unwrap_err();
        assert!(error.line >= 3, "{error}");
    }
}
