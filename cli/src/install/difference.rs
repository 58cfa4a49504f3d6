//! What an upgrade would change, object by object: two manifests of the chart, the one of before and the one to come.
//!
//! Pure. Reads only as much of YAML as the chart writes: documents, and in each the kind, the namespace and the name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Lines that are shown around those that differ.
const AROUND: usize = 2;

/// An object of a manifest: kind, and `<namespace>/<name>` or `<name>`.
type Key = (String, String);

/// What differs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// As it is shown.
    pub(super) text: String,
    pub(super) new: usize,
    pub(super) changed: usize,
    pub(super) gone: usize,
    pub(super) unchanged: usize,
}

// === impl Difference ===

impl Difference {
    /// In one line.
    pub(super) fn summary(&self) -> String {
        let Self { new, changed, gone, unchanged, .. } = self;
        format!("{new} new, {changed} changed, {gone} gone, {unchanged} unchanged")
    }
}

/// Compares two manifests.
pub(super) fn between(before: &str, after: &str) -> Difference {
    let (before, after) = (objects(before), objects(after));
    let keys: BTreeSet<&Key> = before.keys().chain(after.keys()).collect();
    let mut difference = Difference::default();
    for key in keys {
        let (kind, name) = key;
        let out = &mut difference.text;
        match (before.get(key), after.get(key)) {
            (None, _) => {
                difference.new += 1;
                let _ = writeln!(out, "+ {kind} {name}");
            }
            (_, None) => {
                difference.gone += 1;
                let _ = writeln!(out, "- {kind} {name}");
            }
            (Some(old), Some(new)) if old == new => difference.unchanged += 1,
            (Some(old), Some(new)) => {
                difference.changed += 1;
                let _ = writeln!(out, "~ {kind} {name}");
                write_lines(out, &old.lines().collect::<Vec<_>>(), &new.lines().collect::<Vec<_>>());
            }
        }
    }
    difference
}

/// Kind and name of each object of a manifest that `helm uninstall` leaves, and of each that it takes away.
pub(super) fn kept_and_taken(manifest: &str) -> (Vec<String>, Vec<String>) {
    let shown = |(kind, name): Key| format!("{kind} {name}");
    let keeps = |text: &str| text.lines().any(|line| line.trim() == "helm.sh/resource-policy: keep");
    let (kept, taken): (Vec<_>, Vec<_>) = objects(manifest).into_iter().partition(|(_, text)| keeps(text));
    let names = |objects: Vec<(Key, String)>| objects.into_iter().map(|(key, _)| shown(key)).collect();
    (names(kept), names(taken))
}

/// The documents of a manifest, without comments, by what they are.
fn objects(manifest: &str) -> BTreeMap<Key, String> {
    let mut found = BTreeMap::new();
    let mut document = String::new();
    for line in manifest.lines().chain(["---"]) {
        if line.trim_end() != "---" {
            // Helm's own: which template it comes from.
            if !line.starts_with('#') {
                document.push_str(line.trim_end());
                document.push('\n');
            }
            continue;
        }
        let text = std::mem::take(&mut document);
        let text = text.trim();
        if !text.is_empty() {
            found.insert(key(text), text.to_owned());
        }
    }
    found
}

fn key(document: &str) -> Key {
    let value = |text: &str| text.trim().trim_matches(['"', '\'']).to_owned();
    let (mut kind, mut namespace, mut name) = (String::new(), String::new(), String::new());
    let mut in_metadata = false;
    for line in document.lines() {
        if !line.starts_with(' ') {
            in_metadata = line == "metadata:";
            if let Some(rest) = line.strip_prefix("kind:") {
                kind = value(rest);
            }
        } else if in_metadata {
            if let Some(rest) = line.strip_prefix("  namespace:") {
                namespace = format!("{}/", value(rest));
            } else if let Some(rest) = line.strip_prefix("  name:") {
                name = value(rest);
            }
        }
    }
    (kind, format!("{namespace}{name}"))
}

/// The lines that differ, each after `-` or `+`, with some around them.
fn write_lines(out: &mut String, old: &[&str], new: &[&str]) {
    let lines = aligned(old, new);
    let shown = |at: usize| {
        let around = at.saturating_sub(AROUND)..(at + AROUND + 1).min(lines.len());
        lines[around].iter().any(|(sign, _)| *sign != ' ')
    };
    let mut skipped = false;
    for (at, (sign, line)) in lines.iter().enumerate() {
        if !shown(at) {
            skipped = true;
            continue;
        }
        if std::mem::take(&mut skipped) {
            out.push_str("    …\n");
        }
        let _ = writeln!(out, "  {sign} {line}");
    }
}

/// Both texts as one: what is in both, what only in the old, what only in the new. By the longest common subsequence.
fn aligned<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    let same = old.iter().zip(new).take_while(|(old, new)| old == new).count();
    let (old_rest, new_rest) = (&old[same..], &new[same..]);
    let ends = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(old, new)| old == new).count();
    let (old_rest, end) = old_rest.split_at(old_rest.len() - ends);
    let new_rest = &new_rest[..new_rest.len() - ends];

    // `common[i][j]`: how many lines `old_rest[i..]` and `new_rest[j..]` have in common.
    let mut common = vec![vec![0_u32; new_rest.len() + 1]; old_rest.len() + 1];
    for i in (0..old_rest.len()).rev() {
        for j in (0..new_rest.len()).rev() {
            common[i][j] = match old_rest[i] == new_rest[j] {
                true => common[i + 1][j + 1] + 1,
                false => common[i + 1][j].max(common[i][j + 1]),
            };
        }
    }
    let mut lines: Vec<(char, &str)> = old[..same].iter().map(|line| (' ', *line)).collect();
    let (mut i, mut j) = (0, 0);
    while i < old_rest.len() || j < new_rest.len() {
        if i < old_rest.len() && j < new_rest.len() && old_rest[i] == new_rest[j] {
            lines.push((' ', old_rest[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old_rest.len() && (j == new_rest.len() || common[i + 1][j] >= common[i][j + 1]) {
            lines.push(('-', old_rest[i]));
            i += 1;
        } else {
            lines.push(('+', new_rest[j]));
            j += 1;
        }
    }
    lines.extend(end.iter().map(|line| (' ', *line)));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: &str = "\
---
# Source: tulle/templates/deployment.yaml
apiVersion: apps/v1
kind: Deployment
metadata:
  name: tulle-control-plane
  namespace: tulle-system
spec:
  replicas: 1
  template:
    metadata:
      name: another
    spec:
      a: 1
      b: 2
---
apiVersion: v1
kind: Service
metadata:
  name: \"old\"
";

    const UNCHANGED: Difference =
        Difference { text: String::new(), new: 0, changed: 0, gone: 0, unchanged: 2 };

    #[test]
    fn objects_are_new_changed_gone_or_not_mentioned() {
        assert_eq!(between(BEFORE, BEFORE), UNCHANGED);
        let after = BEFORE.replace("replicas: 1", "replicas: 3").replace("\"old\"", "new");
        let difference = between(BEFORE, &after);
        assert_eq!(difference.summary(), "1 new, 1 changed, 1 gone, 0 unchanged");
        let expected = [
            "~ Deployment tulle-system/tulle-control-plane",
            "    …",
            "      namespace: tulle-system",
            "    spec:",
            "  -   replicas: 1",
            "  +   replicas: 3",
            "      template:",
            "        metadata:",
            "+ Service new",
            "- Service old",
        ];
        assert_eq!(difference.text.lines().collect::<Vec<_>>(), expected);
        let from_nothing = between("", BEFORE);
        assert_eq!((from_nothing.new, from_nothing.changed, from_nothing.gone), (2, 0, 0));
    }

    #[test]
    fn where_a_template_comes_from_and_the_order_are_no_difference() {
        let mut documents: Vec<&str> = BEFORE.split("---\n").collect();
        documents.reverse();
        let after = documents.join("---\n").replace("# Source: tulle/templates/deployment.yaml\n", "");
        assert_eq!(between(BEFORE, &after), UNCHANGED);
    }

    #[test]
    fn both_texts_come_back_from_their_alignment() {
        let texts = ["", "a", "a b c", "b c d", "a c e b", "x y", "a a b a", "c b a"];
        for old in texts {
            for new in texts {
                let (old, new): (Vec<_>, Vec<_>) = (old.split(' ').collect(), new.split(' ').collect());
                let lines = aligned(&old, &new);
                let of = |sign: char| -> Vec<&str> {
                    lines
                        .iter()
                        .filter(|(other, _)| [' ', sign].contains(other))
                        .map(|(_, line)| *line)
                        .collect()
                };
                assert_eq!((of('-'), of('+')), (old, new), "{lines:?}");
            }
        }
    }

    #[test]
    fn what_helm_leaves_is_told_from_what_it_takes() {
        let kept = "kind: CustomResourceDefinition\nmetadata:\n  annotations:\n    helm.sh/resource-policy: keep\n  name: meshes.policy.tulle.dev\n";
        let (kept, taken) = kept_and_taken(&format!("{BEFORE}---\n{kept}"));
        assert_eq!(kept, ["CustomResourceDefinition meshes.policy.tulle.dev"]);
        assert_eq!(taken, ["Deployment tulle-system/tulle-control-plane", "Service old"]);
    }
}
