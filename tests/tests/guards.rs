//! Guards that read the source: what the compiler does not say, and review forgets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms of the proxy that every room may use.
const FOR_ALL: &[&str] = &["config", "state", "telemetry", "io"];

/// Room → the rooms beside [`FOR_ALL`] that it may use. Who is not here may use none. What calls the rooms (`forward`) and
/// what wires them (`app`, `main`, `lib`) comes last and may use what it lists.
const EDGES: &[(&str, &[&str])] = &[
    ("state", &["balance", "endpoint", "limit", "policy", "route"]),
    ("accept", &["drain"]),
    // accept: for the options that every socket gets.
    ("endpoint", &["accept", "balance", "drain", "limit", "tls", "wire"]),
    ("balance", &["endpoint"]),
    // route: host names mean the same in both.
    ("policy", &["drain", "limit", "route", "token"]),
    // policy: what a token says is judged there. route: requests of routes are told as these do.
    ("token", &["policy", "route"]),
    // limit: what a rule says of its requests has their rates.
    ("route", &["limit"]),
    // route: headers are looked at as routes do.
    ("limit", &["route"]),
    ("wire", &["drain"]),
    // wire: keys of issuers in the mesh are fetched as requests are sent.
    ("control", &["drain", "limit", "policy", "route", "balance", "endpoint", "tls", "token", "wire"]),
    ("health", &["endpoint", "wire"]),
    // accept: to listen as the proxy will.
    ("intercept", &["accept"]),
    // endpoint: a service without a virtual IP is answered by its endpoints.
    ("dns", &["endpoint"]),
    ("admin", &["control", "drain", "policy"]),
    (
        "forward",
        &[
            "accept", "balance", "detect", "drain", "endpoint", "limit", "policy", "route", "tls", "token",
            "wire",
        ],
    ),
];

/// Rooms that import nobody but the standard library, crates and these.
const LEAVES: &[(&str, &[&str])] =
    &[("telemetry", &["config"]), ("io", &[]), ("drain", &[]), ("config", &["state", "telemetry"])];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every file of the tree that git would keep, with `extensions`.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "target" && (!name.starts_with('.') || name == ".ci") {
                    folders.push(path);
                }
            } else if extensions.contains(&path.extension().unwrap_or_default().to_string_lossy().as_ref()) {
                found.push(path);
            }
        }
    }
    assert!(!found.is_empty());
    found.sort();
    found
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

/// Code without comments, and without what `#[cfg(test)] mod tests {` begins at the end of a file.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| {
        let trimmed = line.trim_start();
        if trimmed.starts_with("//") { "" } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The room of the proxy that a file belongs to.
fn room(path: &Path) -> String {
    let within = path.strip_prefix(root().join("proxy/src")).unwrap();
    let first = within.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The names that follow `crate::`, also inside braces, and what of each is used.
fn imports(code: &str) -> BTreeSet<(String, Vec<String>)> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|character| character.is_alphanumeric() || matches!(character, '_' | '$' | ':'))
        {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        let paths = match rest.strip_prefix('{') {
            Some(list) => list[..list.find("};").unwrap_or(list.len())].split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for path in paths {
            let end =
                path.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | ':'))).unwrap_or(path.len());
            let mut names = path[..end].split("::").filter(|name| !name.is_empty()).map(str::to_owned);
            if let Some(room) = names.next() {
                found.insert((room, names.collect()));
            }
        }
    }
    found
}

#[test]
fn rooms_of_the_proxy_use_only_the_rooms_that_they_may() {
    let rooms: BTreeSet<String> = fs::read_dir(root().join("proxy/src"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().trim_end_matches(".rs").to_owned())
        .collect();
    let mut wrong = Vec::new();
    for path in files(&["rs"]).iter().filter(|path| path.starts_with(root().join("proxy/src"))) {
        let own = room(path);
        if matches!(own.as_str(), "main" | "lib" | "app" | "runtime" | "testing") || is_test(path) {
            continue;
        }
        let leaf = LEAVES.iter().find(|(leaf, _)| *leaf == own).map(|(_, may)| *may);
        let may = EDGES.iter().find(|(from, _)| *from == own).map_or(&[] as &[&str], |(_, may)| may);
        for (other, _) in imports(&code(&fs::read_to_string(path).unwrap())) {
            if other == own || !rooms.contains(&other) {
                continue;
            }
            let allowed = match leaf {
                Some(may) => may.contains(&other.as_str()),
                None => FOR_ALL.contains(&other.as_str()) || may.contains(&other.as_str()),
            };
            if !allowed {
                wrong.push(format!("{}: {own} → {other}", shown(path)));
            }
        }
    }
    assert!(wrong.is_empty(), "not among the allowed edges (tests/tests/guards.rs):\n{}", wrong.join("\n"));
}

fn is_test(path: &Path) -> bool {
    let text = path.display().to_string();
    text.ends_with("/tests.rs") || text.contains("/tests/") || text.contains("/simulation")
}

#[test]
fn the_proxy_does_not_know_kubernetes() {
    let manifest = fs::read_to_string(root().join("proxy/Cargo.toml")).unwrap();
    for dependency in ["kube", "k8s-openapi", "gateway-api", "tulle-control-plane"] {
        assert!(!manifest.contains(&format!("\n{dependency}.")), "proxy depends on {dependency}");
    }
}

/// Limits, budgets, ejections, deadlines and ages go by a clock that nobody sets; these know what time of day it is, for what others wrote down,
/// certificates and logs.
#[test]
fn only_these_of_the_proxy_know_the_time_of_day() {
    const KNOW: &[&str] =
        &["admin/", "app", "control/apply", "control/identity", "dns/upstream", "telemetry/", "tls/"];
    const OF_FORWARD: &[&str] = &[
        "forward/again",
        "forward/authenticate",
        "forward/external/question",
        "forward/pushback",
        "forward/record",
        "forward/session",
    ];
    let proxy = root().join("proxy/src");
    let mut wrong = Vec::new();
    for path in files(&["rs"]).iter().filter(|path| path.starts_with(&proxy) && !is_test(path)) {
        let within = path.strip_prefix(&proxy).unwrap().display().to_string();
        let may = KNOW.iter().chain(OF_FORWARD).any(|known| within.starts_with(known));
        if !may && code(&fs::read_to_string(path).unwrap()).contains("SystemTime") {
            wrong.push(shown(path));
        }
    }
    assert!(wrong.is_empty(), "a jump of the clock would be felt here:\n{}", wrong.join("\n"));
}

#[test]
fn no_file_of_code_is_longer_than_800_lines() {
    let mut long = Vec::new();
    for path in files(&["rs", "py", "proto"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        if lines > 800 {
            long.push(format!("{}: {lines} lines", shown(&path)));
        }
    }
    assert!(long.is_empty(), "asking to be split:\n{}", long.join("\n"));
}

#[test]
fn nothing_is_left_to_be_done() {
    // In two halves, so that this file does not find itself.
    let forbidden = [("todo", "!("), ("unimplemented", "!("), ("dbg", "!("), ("FIX", "ME"), ("XX", "X:")];
    let mut found = Vec::new();
    for path in files(&["rs", "py", "proto", "toml", "md"]) {
        let text = fs::read_to_string(&path).unwrap();
        for (index, line) in text.lines().enumerate() {
            for (first, second) in forbidden {
                if line.contains(&format!("{first}{second}")) {
                    found.push(format!("{}: line {}: {}", shown(&path), index + 1, line.trim()));
                }
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn no_path_of_somebodys_machine_is_in_the_tree() {
    let forbidden = [("/ho", "me/"), ("/ro", "ot/"), ("/Us", "ers/"), ("/wo", "rk/"), ("/tmp", "/h/")];
    let mut found = Vec::new();
    for path in files(&["rs", "py", "proto", "toml", "md", "yaml", "yml", "sh", "lock", "json"]) {
        let text = fs::read_to_string(&path).unwrap();
        for (first, second) in forbidden {
            if text.contains(&format!("{first}{second}")) {
                found.push(format!("{}: {first}{second}", shown(&path)));
            }
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn every_module_says_what_it_is_for() {
    let mut silent = Vec::new();
    for path in files(&["rs"]) {
        let text = fs::read_to_string(&path).unwrap();
        if !is_test(&path) && !text.starts_with("//!") {
            silent.push(shown(&path));
        }
    }
    assert!(silent.is_empty(), "no module documentation:\n{}", silent.join("\n"));
}

#[test]
fn every_version_of_a_dependency_is_in_the_workspaces_table() {
    let mut wrong = Vec::new();
    for path in files(&["toml"]).iter().filter(|path| path.ends_with("Cargo.toml")) {
        // The fuzz targets are no member; see the next test.
        if path.parent() == Some(&root()) || path.parent() == Some(&root().join("fuzz")) {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let mut dependencies = false;
        for line in text.lines() {
            if line.starts_with('[') {
                dependencies = line.contains("dependencies");
            } else if dependencies
                && !line.trim().is_empty()
                && !line.contains("workspace = true")
                && !line.starts_with('#')
            {
                wrong.push(format!("{}: {line}", shown(path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_fuzz_targets_are_built_with_the_workspaces_versions() {
    let packages = |path: &str| -> BTreeSet<String> {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let packages = text.split("[[package]]\n").skip(1);
        packages.map(|package| package.lines().take(2).collect::<Vec<_>>().join(" ")).collect()
    };
    let (ours, theirs) = (packages("Cargo.lock"), packages("fuzz/Cargo.lock"));
    let own = ["arbitrary", "libfuzzer-sys", "tulle-fuzz"].map(|name| format!("name = \"{name}\""));
    let other: Vec<_> =
        theirs.difference(&ours).filter(|p| !own.iter().any(|name| p.starts_with(name))).collect();
    let remedy = "cp Cargo.lock fuzz/ && cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null";
    assert!(other.is_empty(), "fuzz/Cargo.lock differs; `{remedy}` mends it:\n{other:#?}");
}

#[test]
fn the_images_are_built_by_a_rust_that_is_named_and_not_older_than_the_workspaces() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let number = |text: &str| -> Vec<u32> { text.split('.').map(|part| part.parse().unwrap()).collect() };
    let least = manifest.lines().find_map(|line| line.strip_prefix("rust-version = ")).unwrap();
    let least = number(least.trim_matches('"'));
    for path in ["Dockerfile", "docs/examples/compose/Dockerfile"] {
        let text = fs::read_to_string(root().join(path)).unwrap();
        let tag = text.lines().find_map(|line| line.strip_prefix("FROM rust:")?.strip_suffix(" AS build"));
        let (version, system) =
            tag.and_then(|tag| tag.split_once('-')).unwrap_or_else(|| panic!("{path}: no tag"));
        assert!(version.contains('.') && !system.is_empty(), "{path}: whichever Rust there is: {version}");
        assert!(number(version) >= least, "{path}: {version} is older than {least:?}");
    }
}

/// The metrics of the proxy and of the control plane with their labels, from the references, which are made from what is registered.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::<String, BTreeSet<String>>::new();
    for page in ["metrics.md", "control-plane.md"] {
        let reference = fs::read_to_string(root().join("docs/reference").join(page)).unwrap();
        for row in reference.lines().filter_map(|line| line.strip_prefix("| `")) {
            let Some((name, rest)) = row.split_once("` | ") else { continue };
            let labels = rest.split(" | ").nth(1).unwrap_or_default().split(", ");
            let labels = labels.map(|label| label.trim_matches('`').to_owned());
            all.entry(name.to_owned()).or_default().extend(labels);
        }
    }
    all
}

#[test]
fn the_metrics_that_the_pages_name_are_there_with_those_labels() {
    let known = metrics();
    assert!(known.contains_key("tulle_requests_total") && known.contains_key("tulle_control_plane_findings"));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for page in files(&["md"]).into_iter().filter(|page| !page.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(&page).unwrap();
        for code in text.split('`').skip(1).step_by(2).filter(|code| code.starts_with("tulle_")) {
            let (name, labels) =
                code.split_once('{').map_or((code, ""), |(name, rest)| (name, rest.trim_end_matches('}')));
            // `tulle_ads_*` and the like name many, and `_bucket` and the like are parts of one.
            let parts = ["", "_bucket", "_sum", "_count"].map(|part| name.strip_suffix(part));
            let Some(found) = parts.into_iter().flatten().find_map(|name| known.get(name)) else {
                let some =
                    name.strip_suffix('*').is_some_and(|some| known.keys().any(|one| one.starts_with(some)));
                let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_' || c == '*');
                if is_name && !some {
                    wrong.push(format!("{}: there is no {name}", shown(&page)));
                }
                continue;
            };
            seen += 1;
            let labels =
                labels.split(',').map(|label| label.split(['=', '!']).next().unwrap_or_default().trim());
            let unknown = labels.filter(|label| !label.is_empty() && !found.contains(*label));
            wrong.extend(unknown.map(|label| format!("{}: {name} has no label {label}", shown(&page))));
        }
    }
    assert!(seen > 50, "{seen}");
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn each_mechanism_of_resilience_says_how_to_see_and_how_to_choose_it() {
    let page = fs::read_to_string(root().join("docs/resilience.md")).unwrap();
    let sections: Vec<&str> = page.split("\n## ").skip(1).collect();
    let asked_for = sections.iter().filter(|section| section.contains("```yaml"));
    let mut count = 0;
    for section in asked_for {
        let title = section.lines().next().unwrap();
        for said in ["**How to see it**", "**How to choose**"] {
            assert!(section.contains(said), "{title}: {said}");
        }
        assert!(
            page.contains(&format!("](#{})", title.to_lowercase().replace(' ', "-"))),
            "{title} is not in the table"
        );
        count += 1;
    }
    assert!(count >= 8, "{count}");
}

/// A claim whose test was renamed or removed is nobody's any more.
#[test]
fn each_claim_of_the_security_page_names_tests_that_are_there() {
    let page = fs::read_to_string(root().join("docs/security.md")).unwrap();
    let (mut wrong, mut count) = (Vec::new(), 0);
    for row in page.lines().filter_map(|line| line.strip_prefix("| S")) {
        count += 1;
        let cells: Vec<&str> = row.trim_end_matches('|').split(" | ").map(str::trim).collect();
        let [number, _, proof] = cells[..] else {
            wrong.push(format!("| S{row}: it has not three cells"));
            continue;
        };
        if number != count.to_string() {
            wrong.push(format!("S{number} stands where S{count} should"));
        }
        let tests: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() && !proof.starts_with("not testable: ") {
            wrong.push(format!("S{number} names no test, and not why"));
        }
        let gone = tests.into_iter().filter(|test| !is_there(test));
        wrong.extend(gone.map(|test| format!("S{number}: there is no test {test}")));
    }
    assert!(count >= 50, "{count} claims");
    assert_eq!(wrong, [""; 0]);
}

/// Whether `<file>::<function>` is a test.
fn is_there(test: &str) -> bool {
    let Some((file, name)) = test.split_once("::") else { return false };
    let Ok(text) = fs::read_to_string(root().join(file)) else { return false };
    let Some(at) = text.find(&format!("fn {name}()")) else { return false };
    let before = text[..at].rsplit("\n\n").next().unwrap_or_default();
    before.contains("#[test]") || before.contains("#[tokio::test")
}

/// A test with a longer form that CI never runs in that form is one that nobody runs.
#[test]
fn the_deep_stage_runs_every_module_that_has_a_longer_form() {
    let run = fs::read_to_string(root().join(".ci/run")).unwrap();
    let listed = run.lines().find_map(|line| line.strip_prefix("LONGER=(")?.strip_suffix(')')).unwrap();
    let listed: BTreeSet<&str> = listed.split(' ').collect();
    let tests = root().join("tests/tests/e2e");
    let longer: BTreeSet<String> = files(&["rs"])
        .into_iter()
        .filter(|file| fs::read_to_string(file).unwrap().contains("deep()"))
        .filter_map(|file| {
            let module = file.strip_prefix(&tests).ok()?.components().next()?;
            Some(module.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned())
        })
        .collect();
    assert_eq!(longer.iter().map(String::as_str).collect::<BTreeSet<_>>(), listed);
}
