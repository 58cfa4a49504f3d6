use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use super::folder::{Bytes, Folder};
use super::yaml;
use super::{Read, Watch, check};
use crate::finding::{Finding, Severity};
use crate::index::{Change, Index};
use crate::object::{Egress, Kind, NamespacedName, Object, Policy, PolicyTarget, Says};

/// A folder that exists only here, with the index that follows it.
struct World {
    folder: Folder,
    index: Index,
    files: BTreeMap<String, String>,
}

impl World {
    fn new(files: &[(&str, &str)]) -> (Self, Vec<Finding>) {
        let mut world = Self {
            folder: Folder::empty(Path::new("conf")),
            index: Index::default(),
            files: BTreeMap::new(),
        };
        for (name, text) in files {
            world.files.insert((*name).to_owned(), (*text).to_owned());
        }
        let found = world.update();
        (world, found)
    }

    fn write(&mut self, name: &str, text: &str) -> Vec<Finding> {
        self.files.insert(name.to_owned(), text.to_owned());
        self.update()
    }

    fn remove(&mut self, name: &str) -> Vec<Finding> {
        self.files.remove(name);
        self.update()
    }

    fn update(&mut self) -> Vec<Finding> {
        let files = self.files.iter();
        let files = files.map(|(name, text)| (name.clone(), Ok(text.clone().into_bytes())));
        self.take_in(files.collect())
    }

    fn take_in(&mut self, files: BTreeMap<String, Bytes>) -> Vec<Finding> {
        let Read { changes, findings } = self.folder.update(files);
        self.index.change(changes);
        findings
    }

    /// The first port of the Service `default/<name>`: what the tests change to tell versions apart.
    fn port(&self, name: &str) -> Option<u16> {
        let service = self.index.service(&NamespacedName::new("default", name))?;
        service.ports.first().map(|port| port.number)
    }
}

fn service(name: &str, port: u16) -> String {
    format!("apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n  ports:\n  - port: {port}\n")
}

fn lines(found: &[Finding]) -> Vec<(&str, u32)> {
    found.iter().map(|finding| (finding.field.as_deref().unwrap_or(""), finding.line.unwrap_or(0))).collect()
}

#[test]
fn a_broken_document_keeps_its_last_good_version_and_its_neighbours() {
    let text = |web: &str| format!("{}---\n{web}---\n{}", service("orders", 1), service("payments", 1));
    let (mut world, found) = World::new(&[("conf/a.yaml", &text(&service("web", 1)))]);
    assert_eq!(found, []);

    // The text is no YAML; the documents around it are read on.
    let broken = format!("{}---\nkind: [\n---\n{}", service("orders", 2), service("payments", 2));
    let found = world.write("conf/a.yaml", &broken);
    assert_eq!(lines(&found), [("", 9)]);
    assert_eq!(
        (world.port("orders"), world.port("web"), world.port("payments")),
        (Some(2), Some(1), Some(2))
    );

    // The YAML is fine, the type is not.
    let found = world.write("conf/a.yaml", &text(&service("web", 3).replace("port: 3", "port: three")));
    assert_eq!(lines(&found), [("spec.ports[0].port", 15)]);
    assert_eq!((world.port("orders"), world.port("web")), (Some(1), Some(1)));

    // The type is fine, the value is not.
    let found = world.write("conf/a.yaml", &text(&service("web", 3).replace("port: 3", "port: 70000")));
    assert_eq!(lines(&found), [("spec.ports[0].port", 15)]);
    assert_eq!(world.port("web"), Some(1));

    // Mended, then removed.
    assert_eq!(world.write("conf/a.yaml", &text(&service("web", 3))), []);
    assert_eq!(world.port("web"), Some(3));
    assert_eq!(world.write("conf/a.yaml", &service("orders", 1)), []);
    assert_eq!((world.port("web"), world.port("payments")), (None, None));
}

#[test]
fn a_file_that_cannot_be_read_keeps_everything_last_read_from_it() {
    let (mut world, _) =
        World::new(&[("conf/a.yaml", &service("web", 1)), ("conf/b.yaml", &service("orders", 1))]);
    let refused = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let found = world.take_in(BTreeMap::from([
        ("conf/a.yaml".to_owned(), refused()),
        ("conf/b.yaml".to_owned(), Ok(service("orders", 2).into_bytes())),
    ]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].file.as_deref(), Some("conf/a.yaml"));
    assert!(found[0].message.contains("permission denied"), "{}", found[0]);
    assert_eq!((world.port("web"), world.port("orders")), (Some(1), Some(2)));

    // Bytes that are no text, with the line where they stop being it.
    let found = world.take_in(BTreeMap::from([
        ("conf/a.yaml".to_owned(), Ok(b"kind: a\nname: \xff\n".to_vec())),
        ("conf/b.yaml".to_owned(), Ok(service("orders", 2).into_bytes())),
    ]));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].line, Some(2));
    assert_eq!(world.port("web"), Some(1));

    assert_eq!(world.update(), []);
    assert_eq!(world.remove("conf/a.yaml"), []);
    assert_eq!(world.port("web"), None);
}

#[test]
fn a_file_that_is_being_written_anew_keeps_what_it_held() {
    let (mut world, _) = World::new(&[("conf/a.yaml", &service("web", 1)), ("conf/b.yaml", "")]);
    // `kubectl get … > a.yaml`: emptied first, written a second later.
    let found = world.write("conf/a.yaml", "");
    assert_eq!(world.port("web"), Some(1));
    assert_eq!(found.iter().filter(|one| one.severity == Severity::Warning).count(), 2, "{found:?}");
    assert!(found[0].to_string().contains("conf/a.yaml: warning: the file is empty"), "{}", found[0]);
    world.write("conf/a.yaml", &service("web", 2));
    assert_eq!(world.port("web"), Some(2));
    // Nothing but a comment is meant.
    world.write("conf/a.yaml", "# nothing any more\n");
    assert_eq!(world.port("web"), None);
}

#[test]
fn a_folder_within_that_cannot_be_listed_keeps_its_files() {
    let (mut world, _) = World::new(&[("conf/sub/a.yaml", &service("web", 1))]);
    let refused = Err(io::Error::from(io::ErrorKind::PermissionDenied));
    let found = world.take_in(BTreeMap::from([("conf/sub".to_owned(), refused)]));
    assert_eq!(found.len(), 1);
    assert_eq!(world.port("web"), Some(1));
    world.take_in(BTreeMap::new());
    assert_eq!(world.port("web"), None);
}

#[test]
fn what_is_written_well_holds_where_it_is_also_written_badly_and_goes_on_holding() {
    let bad = service("web", 0);
    let (mut world, _) = World::new(&[("conf/a.yaml", &format!("{bad}---\n{}", service("web", 7)))]);
    assert_eq!(world.port("web"), Some(7));
    let files = [("conf/a.yaml".to_owned(), Ok(world.files["conf/a.yaml"].clone().into_bytes()))];
    assert!(world.folder.update(files.into()).changes.is_empty(), "nothing has changed");
}

#[test]
fn the_first_by_path_holds_of_what_is_written_twice() {
    let (mut world, found) = World::new(&[
        ("conf/a.yaml", &service("web", 1)),
        ("conf/b.yaml", &format!("# b\n---\n{}", service("web", 2))),
    ]);
    assert_eq!(lines(&found), [("metadata.name", 6)]);
    assert_eq!(found[0].file.as_deref(), Some("conf/b.yaml"));
    assert!(found[0].message.contains("conf/a.yaml:4"), "{}", found[0]);
    assert_eq!(world.port("web"), Some(1));
    assert_eq!(world.remove("conf/a.yaml"), []);
    assert_eq!(world.port("web"), Some(2));
}

#[test]
fn another_kind_of_the_same_name_is_another_object() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web\n---\n";
    let (mut world, found) = World::new(&[("conf/a.yaml", &format!("{deployment}{}", service("web", 1)))]);
    assert_eq!(lines(&found), [("kind", 2)]);
    assert_eq!(world.port("web"), Some(1));
    // Removed on purpose, though a Deployment of that name stays.
    world.write("conf/a.yaml", deployment);
    assert_eq!(world.port("web"), None);
}

#[test]
fn a_slip_in_a_version_removes_nothing() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata:\n  name: r\nspec:\n  parentRefs:\n  - {group: \"\", kind: Service, name: web}\n";
    let (mut world, _) = World::new(&[("conf/a.yaml", route)]);
    let found = world.write("conf/a.yaml", &route.replace("/v1", "/v7"));
    assert_eq!(lines(&found), [("apiVersion", 1)]);
    assert_eq!(world.index.routes().count(), 1);
    let found = world.write("conf/a.yaml", &route.replace("HTTPRoute", "HttpRoute"));
    assert_eq!(lines(&found), [("kind", 2)]);
    assert_eq!(world.index.routes().count(), 1);
}

#[test]
fn a_policy_that_never_could_be_read_allows_nobody() {
    let policy = "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  targetRefs: [{kind: Service, name: web}]\n  rules: [{from: [{identities: [default/client]}]}]\n";
    let broken = policy.replace("identities", "identity");
    let (mut world, found) = World::new(&[("conf/a.yaml", &broken)]);
    assert!(found.iter().any(|finding| finding.field.as_deref() == Some("spec.rules[0].from[0]")));
    let rules = |world: &World| -> Vec<(String, usize)> {
        let policies = world.index.policies();
        policies
            .flat_map(|stored| stored.object.rules.iter())
            .map(|rule| (rule.name.clone(), rule.identities.len()))
            .collect()
    };
    assert_eq!(rules(&world), [("unreadable".to_owned(), 0)]);
    // Still broken, but attached elsewhere: that is what is closed now.
    let target =
        |world: &World| world.index.policies().next().unwrap().object.targets[0].service.name.to_string();
    assert_eq!(target(&world), "web");
    world.write("conf/a.yaml", &broken.replace("name: web", "name: api"));
    assert_eq!(target(&world), "api");
    world.write("conf/a.yaml", policy);
    assert_eq!(rules(&world), [("0".to_owned(), 1)]);
    // Broken again, but now there is a last good version.
    world.write("conf/a.yaml", &broken);
    assert_eq!(rules(&world), [("0".to_owned(), 1)]);
}

#[test]
fn a_policy_about_traffic_that_is_broken_holds_as_it_last_was_and_without_that_not_at_all() {
    let policy = |kind: &str, says: &str| {
        format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p}}\nspec:\n  targetRefs: [{{kind: Service, name: web}}]\n  {says}\n"
        )
    };
    let cases = [
        ("TrafficPolicy", "limits: {maximumRequests: 3}", "limits: {maximumRequests: 0}"),
        ("TrafficPolicy", "retry: {attempts: 2}", "retry: {attempts: many}"),
        ("RateLimitPolicy", "limits: [{rate: {requests: 3}}]", "limits: [{rate: 3}]"),
        ("FaultPolicy", "rules: [{abort: {httpStatus: 503}}]", "rules: [{abort: {httpStatus: 1}}]"),
    ];
    for (kind, good, broken) in cases {
        let says = |world: &World| -> Vec<Says> {
            world.index.resilience().map(|stored| stored.object.says.clone()).collect()
        };
        let (mut world, found) = World::new(&[("conf/a.yaml", &policy(kind, broken))]);
        let told = found.iter().filter(|one| one.severity == Severity::Error).count();
        // What is wrong, and what holds meanwhile.
        assert_eq!((told, says(&world)), (2, Vec::new()), "{broken}: {found:#?}");
        world.write("conf/a.yaml", &policy(kind, good));
        let held = says(&world);
        assert_eq!(held.len(), 1, "{good}");
        world.write("conf/a.yaml", &policy(kind, broken));
        assert_eq!(says(&world), held, "{broken}");
        world.remove("conf/a.yaml");
        assert_eq!(says(&world), []);
    }
}

#[test]
fn an_egress_policy_that_never_could_be_read_lets_nothing_out() {
    let policy = "apiVersion: policy.tulle.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {name: p}\nspec:\n  rules: [{action: allow, hosts: [example.com]}]\n";
    let broken = policy.replace("action: allow", "action: let");
    let (mut world, found) = World::new(&[("conf/a.yaml", &broken)]);
    assert!(
        found.iter().any(|finding| finding.field.as_deref() == Some("spec.rules[0].action")),
        "{found:#?}"
    );
    assert!(
        found.iter().any(|finding| finding.message.contains("reaches anything outside the mesh")),
        "{found:#?}"
    );
    let rules = |world: &World| -> Vec<String> {
        let policies = world.index.egress_policies().flat_map(|stored| stored.object.rules.iter());
        policies.map(|rule| format!("{}: {:?}", rule.name, rule.action)).collect()
    };
    assert_eq!(rules(&world), ["unreadable: Deny"]);
    world.write("conf/a.yaml", policy);
    assert_eq!(rules(&world), ["0: Allow"]);
    // Broken again, but now there is a last good version.
    world.write("conf/a.yaml", &broken);
    assert_eq!(rules(&world), ["0: Allow"]);
}

#[test]
fn a_policy_that_is_meant_for_another_namespace_holds_in_none() {
    let policy = |kind: &str, targets: &str| {
        format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p, namespace: shop}}\nspec:\n  targetRefs: [{targets}]\n  rules: []\n"
        )
    };
    let (own, theirs) =
        ("{kind: Service, name: own, namespace: shop}", "{kind: Service, name: web, namespace: billing}");
    let closed = |world: &World, kind: &str| -> Vec<(Vec<String>, Vec<String>)> {
        let names = |targets: &[PolicyTarget]| targets.iter().map(|one| one.service.to_string()).collect();
        if kind == "AuthorizationPolicy" {
            let policies = world.index.policies().map(|stored| &stored.object);
            let rules = |one: &Policy| one.rules.iter().map(|rule| rule.name.clone()).collect();
            policies.map(|one| (names(&one.targets), rules(one))).collect()
        } else {
            let policies = world.index.egress_policies().map(|stored| &stored.object);
            let rules = |one: &Egress| one.rules.iter().map(|rule| rule.name.clone()).collect();
            policies.map(|one| (names(&one.targets), rules(one))).collect()
        }
    };
    let shop_own = || vec!["shop/own".to_owned()];
    for kind in ["AuthorizationPolicy", "EgressPolicy"] {
        let (mut world, found) = World::new(&[("conf/a.yaml", &policy(kind, theirs))]);
        let told = found.iter().find(|one| one.field.as_deref() == Some("spec.targetRefs[0].namespace"));
        assert_eq!(told.map(|one| one.severity), Some(Severity::Error), "{found:#?}");
        let meanwhile =
            if kind == "AuthorizationPolicy" { "it protects nothing" } else { "it denies nothing" };
        assert!(found.iter().any(|one| one.message.ends_with(meanwhile)), "{found:#?}");
        // Neither for the Service of that name here, nor, being attached to nothing, for the whole namespace.
        assert_eq!(closed(&world, kind), []);
        // What it names here besides is closed: it was never good.
        world.write("conf/a.yaml", &policy(kind, &format!("{theirs}, {own}")));
        assert_eq!(closed(&world, kind), [(shop_own(), vec!["unreadable".to_owned()])]);
        let found = world.write("conf/a.yaml", &policy(kind, own));
        assert!(found.iter().all(|one| one.severity != Severity::Error), "{found:#?}");
        assert_eq!(closed(&world, kind), [(shop_own(), vec![])]);
        // And its last good version holds on.
        world.write("conf/a.yaml", &policy(kind, theirs));
        assert_eq!(closed(&world, kind), [(shop_own(), vec![])]);
    }
    // Who is meant cannot be told of one that cannot be read: then it is for everybody.
    let broken = policy("EgressPolicy", &format!("{theirs}, 7"));
    let (world, _) = World::new(&[("conf/a.yaml", &broken)]);
    assert_eq!(closed(&world, "EgressPolicy"), [(vec![], vec!["unreadable".to_owned()])]);
}

#[test]
fn an_unchanged_folder_changes_nothing() {
    let (mut world, _) = World::new(&[("conf/a.yaml", &service("web", 1)), ("conf/b.yaml", "kind: [")]);
    let files = world.files.iter();
    let files: BTreeMap<String, Bytes> =
        files.map(|(name, text)| (name.clone(), Ok(text.clone().into_bytes()))).collect();
    let read = world.folder.update(files);
    assert!(read.changes.is_empty());
    assert_eq!(read.findings.len(), 1);
}

/// Each text, and the field and line of everything that is found wrong with it.
#[test]
fn findings_name_field_and_line() {
    let mesh = "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\n";
    type Case<'a> = (&'a str, &'a str, &'a [(&'a str, u32)]);
    let cases: &[Case<'_>] = &[
        ("comments before", "# one\n\n# two\nkind: Service\nmetadata: {name: a}\n", &[("apiVersion", 4)]),
        ("a bare value", "just text\n", &[("apiVersion", 1)]),
        ("no name", "apiVersion: v1\nkind: Service\nmetadata:\n  labels: {}\n", &[("metadata.name", 3)]),
        (
            "a name that is a number",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: 7\n",
            &[("metadata.name", 4)],
        ),
        (
            "a name with a slash",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a/b\n",
            &[("metadata.name", 4)],
        ),
        (
            "a bad namespace",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  namespace: a.b\n",
            &[("metadata.namespace", 5)],
        ),
        (
            "unknown fields",
            &format!("{mesh}spec:\n  mtls: strict\n  mtsl: off\nextra: 1\n"),
            &[("spec.mtsl", 6), ("extra", 7)],
        ),
        ("a bad mode", &format!("{mesh}spec:\n  # how\n  mtls: strikt\n"), &[("spec.mtls", 6)]),
        (
            "bad networks",
            &format!("{mesh}spec:\n  networks:\n  - 10.0.0.0/8\n  - 10.0.0.0/99\n  - 10.1.0.0/8\n"),
            &[("spec.networks[1]", 7), ("spec.networks[2]", 8)],
        ),
        ("a key twice", "apiVersion: v1\nkind: Service\nkind: Mesh\n", &[("", 3)]),
        ("a tab", "apiVersion: v1\nkind:\n\tService\n", &[("", 3)]),
        (
            "the second document, CRLF",
            "apiVersion: v1\r\nkind: Service\r\nmetadata: {name: a}\r\n---\r\n# c\r\nkind: [\r\n",
            &[("", 6)],
        ),
        (
            "through an alias",
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports:\n  - &p\n    port: 0\n  - *p\n",
            &[
                ("spec.ports[0].port", 7),
                ("spec.ports[1].port", 8),
                ("spec.ports[1].port", 8),
                ("spec.ports[1]", 8),
            ],
        ),
        (
            "in a list",
            "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n  spec:\n    ports:\n    - port: 1\n      nodeport: 2\n",
            &[("spec.ports[0].nodeport", 10)],
        ),
        ("templates", "apiVersion: v1\nkind: Service\nmetadata:\n  name: {{ .Values.name }}\n", &[("", 4)]),
        (
            "a version that is not read",
            "apiVersion: v2\nkind: Service\nmetadata: {name: a}\n",
            &[("apiVersion", 1)],
        ),
        (
            "annotations of ours",
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  annotations:\n    config.tulle.dev/opaque-ports: \"1,9-3,x\"\n    tulle.dev/indentity: a/b\n",
            &[
                ("metadata.annotations[\"config.tulle.dev/opaque-ports\"]", 6),
                ("metadata.annotations[\"config.tulle.dev/opaque-ports\"]", 6),
                ("metadata.annotations[\"tulle.dev/indentity\"]", 7),
            ],
        ),
    ];
    for (name, text, expected) in cases {
        let (_, found) = World::new(&[("conf/a.yaml", text)]);
        assert_eq!(lines(&found), *expected, "{name}: {found:#?}");
    }
}

#[test]
fn a_finding_reads_like_a_compilers() {
    let (_, found) = World::new(&[("conf/a.yaml", &service("web", 1).replace("port: 1", "port: 0"))]);
    assert_eq!(
        found[0].to_string(),
        "conf/a.yaml:7:5: error: Service default/web: spec.ports[0].port: 0 is not a port (ports are 1 to 65535)"
    );
    let json = serde_json::to_value(&found[0]).unwrap();
    assert_eq!(json["severity"], "error");
    assert_eq!(json["line"], 7);
}

#[test]
fn json_that_breaks_at_the_end_of_a_line_has_a_column_that_an_editor_knows() {
    let (_, found) = World::new(&[("conf/a.json", "{\"a\": \"b\n\"}")]);
    assert_eq!((found[0].line, found[0].column), (Some(2), Some(1)), "{found:?}");
}

#[test]
fn json_is_read_with_its_escapes_and_positions() {
    let text = "{\n \"apiVersion\": \"v1\", \"kind\": \"Service\",\n \"metadata\": {\"name\": \"web\", \"annotations\": {\"a\": \"\\ud83d\\ude00\"}},\n \"spec\": {\"ports\": [\n  {\"port\": 0}]}\n}";
    let (mut world, found) = World::new(&[("conf/a.json", text)]);
    assert_eq!(lines(&found), [("spec.ports[0].port", 5)]);
    assert_eq!(world.write("conf/a.json", &text.replace("\"port\": 0", "\"port\": 7")), []);
    assert_eq!(world.port("web"), Some(7));
    let found = world.write("conf/a.json", "{\n\"a\": }");
    assert_eq!(lines(&found), [("", 2)]);
    assert_eq!(world.port("web"), Some(7));
}

#[test]
fn documents_are_split_where_yaml_splits_them() {
    let cases: &[(&str, &[u32])] = &[
        ("a: 1\n---\nb: 2\n", &[1, 2]),
        ("---\na: 1\n--- # c\nb: 2", &[1, 3]),
        ("%YAML 1.2\n---\na: 1\n", &[1]),
        ("a: |\n  ---\n  text\n---x: 1\n", &[1]),
        ("a: 1\n...\n---\nb: 2\n", &[1, 3]),
        ("a: 1\r\n---\r\nb: 2\r\n", &[1, 2]),
        ("", &[1]),
    ];
    for (text, first_lines) in cases {
        let chunks = yaml::split(text);
        let seen: Vec<u32> = chunks.iter().map(|chunk| chunk.first_line).collect();
        assert_eq!(seen, *first_lines, "{text:?}");
        let whole: String = chunks.iter().map(|chunk| chunk.text).collect();
        assert_eq!(whole, *text);
    }
}

#[test]
fn merge_keys_fill_in_what_is_not_said() {
    let text = "base: &b {x: 1, y: 2}\nmore: {<<: *b, y: 3}\n";
    let document = yaml::parse(yaml::split(text)[0]).unwrap().unwrap();
    assert_eq!(document.value["more"], serde_json::json!({"x": 1, "y": 3}));
}

#[test]
fn aliases_that_multiply_and_deep_nesting_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let before = level - 1;
        let items = vec![format!("*a{before}"); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{items}]\n"));
    }
    let broken = yaml::parse(yaml::split(&bomb)[0]).unwrap_err();
    assert!(broken.message.contains("too large"), "{}", broken.message);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(yaml::parse(yaml::split(&deep)[0]).is_err());
    // What a key is long counts as well, once for each alias and once for each place below it.
    let key = "k".repeat(1 << 18);
    let aliases = format!("a: &a\n  ? {key}\n  : 1\nb: [{}]", "*a,".repeat(1000));
    let nested = format!("? {key}\n: [{}]", "1,".repeat(1000));
    for text in [aliases, nested] {
        let broken = yaml::parse(yaml::Chunk { first_line: 1, text: &text }).unwrap_err();
        assert!(broken.message.contains("too large"), "{}", broken.message);
    }
}

/// Whatever is done to a file's bytes, reading it ends, and what stood in other files is untouched.
#[test]
fn seeded_damage_never_panics_and_never_spreads() {
    let good = format!(
        "{}---\napiVersion: v1\nkind: List\nitems:\n- &x {{apiVersion: v1, kind: Service, metadata: {{name: b}}}}\n- <<: *x\n  metadata: {{name: \"c\\u00e9\"}}\n---\nkey: |\n  block\n? a\n: !!int \"3\"\n",
        service("a", 1)
    );
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(below).unwrap()).unwrap()
    };
    let alphabet = b" \n\r\t-:[]{}\"'|>&*!%#?,~\\x0\xc3\xff";
    for _ in 0..3000 {
        let mut bytes = good.clone().into_bytes();
        for _ in 0..=random(6) {
            let at = random(bytes.len());
            match random(3) {
                0 => bytes[at] = alphabet[random(alphabet.len())],
                1 => bytes.insert(at, alphabet[random(alphabet.len())]),
                _ => {
                    bytes.truncate(at + 1);
                }
            }
        }
        let (mut world, _) = World::new(&[("conf/b.yaml", &service("web", 1))]);
        world.take_in(BTreeMap::from([
            ("conf/a.yaml".to_owned(), Ok(bytes)),
            ("conf/b.yaml".to_owned(), Ok(service("web", 1).into_bytes())),
        ]));
        assert_eq!(world.port("web"), Some(1));
    }
}

#[test]
fn a_missing_folder_is_an_error_that_names_it() {
    let error = check(Path::new("/nowhere/at/all")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}

#[test]
fn only_configuration_is_read_from_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    for inner in ["sub", ".hidden"] {
        std::fs::create_dir(dir.path().join(inner)).unwrap();
    }
    write("a.yaml", &service("a", 1));
    write("sub/b.yml", &service("b", 1));
    for ignored in [".c.yaml", "c.yaml~", ".c.yaml.swp", "#c.yaml#", "README.md", ".hidden/c.yaml"] {
        write(ignored, "kind: [");
    }
    assert_eq!(check(dir.path()).unwrap().findings, []);
    assert_eq!(check(&dir.path().join(".hidden")).unwrap().findings.len(), 1);
    let empty = tempfile::tempdir().unwrap();
    assert!(check(empty.path()).unwrap().findings[0].message.contains("no configuration"));
    std::os::unix::fs::symlink("nowhere.yaml", dir.path().join("broken.yaml")).unwrap();
    let found = check(dir.path()).unwrap().findings;
    assert_eq!(found.len(), 1, "{found:#?}");
}

/// The names of Services that were applied and deleted, as they come from a real folder.
fn watched(dir: &Path) -> (Watch, mpsc::Receiver<Vec<(String, bool)>>) {
    let (folder, _) = Folder::open(dir).unwrap();
    let (sender, receiver) = mpsc::channel();
    let watch = Watch::start(folder, move |read| {
        let changes = read.changes.iter().map(|change| match change {
            Change::Apply(object, _) => {
                assert!(matches!(**object, Object::Service(_)));
                (object.key().name.to_string(), true)
            }
            Change::Delete(key) => {
                assert_eq!(key.kind, Kind::Service);
                (key.name.to_string(), false)
            }
        });
        let _test_over = sender.send(changes.collect());
    })
    .unwrap();
    // The first reading after the watch is in place.
    assert_eq!(receiver.recv_timeout(Duration::from_secs(20)).unwrap(), []);
    (watch, receiver)
}

fn next(receiver: &mpsc::Receiver<Vec<(String, bool)>>) -> Vec<(String, bool)> {
    receiver.recv_timeout(Duration::from_secs(20)).unwrap()
}

#[test]
fn an_edit_is_seen_and_so_is_a_new_folder() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    std::fs::create_dir(&conf).unwrap();
    let (watch, changes) = watched(&conf);
    std::fs::write(conf.join("a.yaml"), service("a", 1)).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    // Written beside and renamed, as editors do.
    std::fs::write(conf.join(".a.yaml.new"), service("a", 2)).unwrap();
    std::fs::rename(conf.join(".a.yaml.new"), conf.join("a.yaml")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    std::fs::create_dir(conf.join("sub")).unwrap();
    std::fs::write(conf.join("sub/b.yaml"), service("b", 1)).unwrap();
    assert_eq!(next(&changes), [("default/b".to_owned(), true)]);
    std::fs::write(conf.join("sub/b.yaml"), service("b", 2)).unwrap();
    assert_eq!(next(&changes), [("default/b".to_owned(), true)]);
    std::fs::remove_file(conf.join("a.yaml")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), false)]);
    drop(watch);
}

#[test]
fn a_mounted_configmap_that_is_swapped_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, conf.join(name)).unwrap();
    for (version, port) in [("..v1", 1), ("..v2", 2)] {
        std::fs::create_dir(conf.join(version)).unwrap();
        std::fs::write(conf.join(version).join("a.yaml"), service("a", port)).unwrap();
    }
    link("..v1", "..data");
    link("..data/a.yaml", "a.yaml");
    let (watch, changes) = watched(conf);
    link("..v2", "..data_tmp");
    std::fs::rename(conf.join("..data_tmp"), conf.join("..data")).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    drop(watch);
}

#[test]
fn a_folder_that_is_replaced_is_followed_and_one_that_is_gone_is_served_on() {
    let dir = tempfile::tempdir().unwrap();
    let conf = dir.path().join("conf");
    for (name, port) in [("one", 1), ("two", 2)] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        std::fs::write(dir.path().join(name).join("a.yaml"), service("a", port)).unwrap();
    }
    std::os::unix::fs::symlink("one", &conf).unwrap();
    let (watch, changes) = watched(&conf);
    std::os::unix::fs::symlink("two", dir.path().join("new")).unwrap();
    std::fs::rename(dir.path().join("new"), &conf).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    // Gone: told, and nothing is deleted.
    std::fs::remove_file(&conf).unwrap();
    assert_eq!(next(&changes), []);
    // Back, with other contents.
    std::fs::write(dir.path().join("one/a.yaml"), service("a", 3)).unwrap();
    std::os::unix::fs::symlink("one", &conf).unwrap();
    assert_eq!(next(&changes), [("default/a".to_owned(), true)]);
    drop(watch);
}

fn yaml_blocks(page: &str) -> Vec<&str> {
    let blocks = page.split("```yaml\n").skip(1).filter_map(|rest| rest.split_once("```"));
    blocks.map(|(text, _)| text).collect()
}

#[test]
fn the_examples_of_the_reference_are_without_fault() {
    let texts = yaml_blocks(include_str!("../../../docs/reference/yaml.md"));
    assert_eq!(texts.len(), 8);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("all.yaml"), texts.join("---\n")).unwrap();
    assert_eq!(check(dir.path()).unwrap().findings, []);
}

#[test]
fn each_example_of_routing_is_without_fault_beside_its_services() {
    let texts = yaml_blocks(include_str!("../../../docs/routing.md"));
    assert!(texts.len() > 15);
    for example in &texts[1..] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("services.yaml"), texts[0]).unwrap();
        std::fs::write(dir.path().join("example.yaml"), example).unwrap();
        let checked = check(dir.path()).unwrap();
        assert_eq!(checked.findings, [], "{example}");
        assert_eq!(checked.routes.is_empty(), example.contains("kind: ReferenceGrant"), "{example}");
    }
}

#[test]
fn a_finding_is_one_line_whatever_is_written() {
    let (_, found) =
        World::new(&[("a.yaml", "apiVersion: v1\nkind: \"A\\n\\e[2JB\"\nmetadata: {name: a}\n")]);
    let [finding] = &found[..] else { panic!("{found:?}") };
    let told = finding.to_string();
    assert!(told.contains(r"`A\n\u{1b}[2JB` means nothing to the mesh"), "{told}");
}

#[test]
fn what_is_missing_at_the_end_is_missed_in_the_last_line() {
    for text in ["? #", "a: [", "a: [\n", "a: b\r? #"] {
        let (_, found) = World::new(&[("a.yaml", text)]);
        let [finding] = &found[..] else { panic!("{text:?}: {found:?}") };
        let lines = if text.contains('\r') { 2 } else { 1 };
        assert_eq!(finding.line, Some(lines), "{text:?}: {finding}");
    }
}

#[test]
fn an_endpoint_of_what_cannot_be_a_pod_is_served_without_its_name() {
    let slice = |pod: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s, labels: {{kubernetes.io/service-name: web}}}}\n\
             addressType: IPv4\nports: [{{port: 80}}]\nendpoints:\n- {{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: {pod}}}}}\n"
        )
    };
    let (mut world, found) = World::new(&[("s.yaml", &slice("web-1"))]);
    assert_eq!(found, []);
    let found = world.write("s.yaml", &slice("web/1"));
    let [finding] = &found[..] else { panic!("{found:?}") };
    assert_eq!((finding.severity, finding.line), (Severity::Warning, Some(7)));
    assert_eq!(finding.field.as_deref(), Some("endpoints[0].targetRef"));
    let service = NamespacedName::new("default", "web");
    let served: Vec<_> = world.index.slices_of(&service).flat_map(|slice| &slice.endpoints).collect();
    assert!(matches!(&served[..], [endpoint] if endpoint.workload.is_none()), "{served:?}");
}

/// What a document's author reads of a field that does not fit.
#[test]
fn what_does_not_fit_is_told_by_what_is_written_and_what_is_wanted() {
    let route = |spec: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r}}\nspec:\n  \
             parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules: {spec}\n"
        )
    };
    let service =
        |spec: &str| format!("apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec: {spec}\n");
    let cases = [
        (
            route("[[[{name: web, port: 80}]]]"),
            "spec.rules[0]: here must be a mapping, and there is a list (write `name: value` for each field, without `- ` before it)",
        ),
        (
            route("{backendRefs: []}"),
            "spec.rules: here must be a list, and there is a mapping (put `- ` before each entry, also if there is only one)",
        ),
        (
            route("[{backendRefs: {name: web, port: 80}}]"),
            "spec.rules[0].backendRefs: here must be a list, and there is a mapping (put `- ` before each entry, also if there is only one)",
        ),
        (
            route("[{backendRefs: [{name: 7, port: 80}]}]"),
            "spec.rules[0].backendRefs[0].name: here must be text, and there is the number 7 (put it between quotes)",
        ),
        (
            route("[{backendRefs: [{name: web, port: '80'}]}]"),
            "spec.rules[0].backendRefs[0].port: here must be a whole number, and there is the text `80` (write it without quotes)",
        ),
        (
            route("[{backendRefs: [{name: web, port: 99999999999}]}]"),
            "spec.rules[0].backendRefs[0].port: the number 99999999999 is none that can stand here (the reference has the bounds of each number)",
        ),
        (route("[{backendRefs: [{port: 80}]}]"), "spec.rules[0].backendRefs[0]: `name` is missing (every one of these has it)"),
        (
            route("[{matches: [{path: {type: exact, value: /}}]}]"),
            "spec.rules[0].matches[0].path.type: `exact` is none of the values that there are: `Exact`, `PathPrefix`, `RegularExpression` (mind capitals)",
        ),
        (service("[80]"), "spec: here must be a mapping, and there is a list (write `name: value` for each field, without `- ` before it)"),
        (
            service("{ports: 80}"),
            "spec.ports: here must be a list, and there is the number 80 (put `- ` before each entry, also if there is only one)",
        ),
        (
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  \
             targetRefs: [['', Service, web]]\n  rules: []\n"
                .to_owned(),
            "spec.targetRefs[0]: here must be a mapping, and there is a list (write `name: value` for each field, without `- ` before it)",
        ),
    ];
    for (text, expected) in cases {
        let (_, found) = World::new(&[("conf/a.yaml", &text)]);
        let told = found.iter().map(ToString::to_string).find(|told| told.ends_with(expected));
        assert!(told.is_some(), "{expected}: {found:#?}");
    }
    // A list in place of a mapping at the very top is no object.
    let (_, found) = World::new(&[("conf/a.yaml", "apiVersion: v1\nkind: Service\nmetadata: [web]\n")]);
    assert!(found[0].message.contains("has no name"), "{found:#?}");
}
