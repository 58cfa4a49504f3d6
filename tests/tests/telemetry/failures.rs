//! What the rules and dashboards for Prometheus take for a failure, by the cases of `tests/rules/failures.txt`: read as Prometheus reads
//! selectors, so that it needs none.

use std::collections::BTreeMap;
use std::path::Path;

use regex::Regex;

/// Labels by which a failure is told, and whether it is one.
type Case = (BTreeMap<&'static str, &'static str>, bool);

const LABELS: [&str; 4] = ["method", "status", "grpc_status", "reason"];

fn cases() -> Vec<Case> {
    let lines = include_str!("../../rules/failures.txt").lines();
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
    let case = |line: &'static str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words.len(), 5, "{line}");
        // To Prometheus an empty label is one that is not there.
        let labels = LABELS.into_iter().zip(words.iter().map(|word| if *word == "-" { "" } else { *word }));
        (labels.collect(), words[4] == "failed")
    };
    lines.map(case).collect()
}

/// The selectors of `tulle_requests_total`; those together that are added up with `or`.
fn selectors(text: &str) -> Vec<Vec<&str>> {
    let mut pieces = text.split("rate(tulle_requests_total{");
    let (mut all, mut before) = (Vec::<Vec<&str>>::new(), pieces.next().unwrap_or_default());
    for piece in pieces {
        let (selector, after) = piece.split_once('}').unwrap();
        let is_next =
            before.trim_end().strip_suffix("or").is_some_and(|before| before.trim_end().ends_with("])"));
        match all.last_mut().filter(|_| is_next) {
            Some(same) => same.push(selector),
            None => all.push(vec![selector]),
        }
        before = after;
    }
    all
}

/// Whether a selector takes a case's series; labels that the case does not have say nothing.
fn takes(selector: &str, labels: &BTreeMap<&str, &str>) -> bool {
    let matcher = Regex::new(r#"(\w+)(=~|!~|!=|=)"([^"]*)""#).unwrap();
    matcher.captures_iter(selector).all(|captures| {
        let (_, [name, operator, wanted]) = captures.extract();
        let Some(value) = labels.get(name) else { return true };
        let is_like = || Regex::new(&format!("^(?:{wanted})$")).unwrap().is_match(value);
        match operator {
            "=" => *value == wanted,
            "!=" => *value != wanted,
            "=~" => is_like(),
            _ => !is_like(),
        }
    })
}

#[test]
fn rules_and_dashboards_take_for_a_failure_what_tulle_stat_does() {
    let files = Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tulle/files");
    let mut seen = 0;
    for folder in ["rules", "dashboards"] {
        for file in std::fs::read_dir(files.join(folder)).unwrap() {
            let path = file.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap().replace("\\\"", "\"");
            let all = selectors(&text);
            for failures in all.iter().filter(|all| all.iter().any(|one| one.contains("grpc_status=~"))) {
                seen += 1;
                for (labels, failed) in cases() {
                    let taken = failures.iter().any(|selector| takes(selector, &labels));
                    assert_eq!(taken, failed, "{}: {labels:?} by {failures:#?}", path.display());
                }
            }
        }
    }
    assert_eq!(seen, 7, "of services and edges in the rules, and five panels");
}
