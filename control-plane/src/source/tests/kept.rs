//! What holds where something cannot be read, is written twice or changes its place: one broken document takes nothing down.

use std::collections::BTreeMap;
use std::io;

use tulle_api::v1;

use super::*;
use crate::finding::Severity;
use crate::object::{Access, Egress, PolicyTarget, Says};

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
    let rules = |world: &World| -> Vec<(v1::AccessAction, bool, usize)> {
        let policies = world.index.access_policies().filter_map(|stored| stored.object.authorization());
        policies.map(|says| (says.action, says.is_unreadable, says.rules.len())).collect()
    };
    let (allow, deny) = (v1::AccessAction::Allow, v1::AccessAction::Deny);
    assert_eq!(rules(&world), [(allow, true, 0)], "nobody is allowed");
    // Still broken, but attached elsewhere: that is what is closed now.
    let target = |world: &World| {
        let policy = world.index.access_policies().next().unwrap();
        policy.object.targets[0].object.to_string()
    };
    assert_eq!(target(&world), "Service default/web");
    world.write("conf/a.yaml", &broken.replace("name: web", "name: api"));
    assert_eq!(target(&world), "Service default/api");
    // All that a policy is attached to that names nothing is its namespace.
    world.write("conf/a.yaml", &broken.replace("  targetRefs: [{kind: Service, name: web}]\n", ""));
    assert_eq!((target(&world), rules(&world)), ("Namespace default".to_owned(), vec![(allow, true, 0)]));
    // What was to be denied is not known, nor what is to be done by an action that is none.
    for action in ["DENY", "REFUSE"] {
        world.write("conf/a.yaml", &broken.replace("spec:\n", &format!("spec:\n  action: {action}\n")));
        assert_eq!(rules(&world), [(deny, true, 1)], "everything is denied: {action}");
    }
    for harmless in ["action: AUDIT", "action: DENY\n  mode: DryRun"] {
        let text = broken.replace("spec:\n", &format!("spec:\n  {harmless}\n"));
        let (fresh, found) = World::new(&[("conf/a.yaml", &text)]);
        assert_eq!(rules(&fresh), [], "{harmless} would have refused nothing: {found:#?}");
    }
    world.write("conf/a.yaml", policy);
    assert_eq!(rules(&world), [(allow, false, 1)]);
    // Broken again, but now there is a last good version.
    world.write("conf/a.yaml", &broken);
    assert_eq!(rules(&world), [(allow, false, 1)]);
}

#[test]
fn what_is_not_known_of_a_policy_that_lets_in_may_be_what_narrows_it() {
    let policy = "apiVersion: policy.tulle.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: p}\nspec:\n  rules: [{from: [{identities: [default/client]}], too: [{paths: [/a]}]}]\n";
    let (mut world, found) = World::new(&[("conf/a.yaml", policy)]);
    let refused = |found: &[Finding]| -> Vec<String> {
        let errors = found.iter().filter(|one| one.severity == Severity::Error);
        errors.filter_map(|one| one.field.clone()).filter(|field| !field.is_empty()).collect()
    };
    let is_read = |world: &World| {
        let policies = world.index.access_policies().filter_map(|stored| stored.object.authorization());
        policies.map(|says| !says.is_unreadable).collect::<Vec<_>>()
    };
    assert_eq!((refused(&found), is_read(&world)), (vec!["spec.rules[0].too".to_owned()], vec![false]));
    let found = world.write("conf/a.yaml", &policy.replace("too", "to"));
    assert_eq!((refused(&found), is_read(&world)), (vec![], vec![true]));
    // Beside the spec it is what somebody has meant to be in it.
    let found = world.write("conf/a.yaml", &format!("{policy}action: DENY\n").replace("too", "to"));
    assert_eq!(refused(&found), ["action"]);
    // What others write into the metadata says nothing of the policy.
    let labelled = policy.replace("too", "to").replace("{name: p}", "{name: p, mark: 1}");
    assert_eq!(refused(&world.write("conf/a.yaml", &labelled)), [""; 0]);
}

#[test]
fn a_peer_authentication_that_never_could_be_read_is_strict() {
    let policy = "apiVersion: policy.tulle.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {name: p}\nspec:\n  mtls: 'off'\n";
    let modes = |world: &World| -> Vec<(String, v1::MtlsMode)> {
        let policies = world.index.access_policies().map(|stored| &stored.object);
        policies.map(|one| (one.targets[0].object.to_string(), one.mtls().unwrap())).collect()
    };
    let everywhere = "Namespace default".to_owned();
    let (mut world, found) = World::new(&[("conf/a.yaml", &policy.replace("off", "of"))]);
    assert!(
        found.iter().any(|one| one.message.ends_with("its targets take mutual TLS alone, as by `strict`"))
    );
    assert_eq!(modes(&world), [(everywhere.clone(), v1::MtlsMode::Strict)]);
    world.write("conf/a.yaml", policy);
    assert_eq!(modes(&world), [(everywhere, v1::MtlsMode::Off)]);
    // One that would have refused nobody holds nothing closed.
    let dry = policy.replace("mtls: 'off'", "mtls: 'of'\n  mode: DryRun");
    let (world, found) = World::new(&[("conf/a.yaml", &dry)]);
    assert!(found.iter().any(|one| one.message.ends_with("it would have refused nothing")), "{found:#?}");
    assert_eq!(modes(&world), []);
}

#[test]
fn a_request_authentication_that_never_could_be_read_takes_nobodys_token() {
    let policy = "apiVersion: policy.tulle.dev/v1alpha1\nkind: RequestAuthentication\nmetadata: {name: p}\nspec:\n  required: false\n  issuers: [{issuer: 'https://a', audiences: [b], jwks: {url: 'https://a/keys'}}]\n";
    let held = |world: &World| -> Vec<(usize, bool)> {
        let says = world.index.access_policies().filter_map(|stored| stored.object.authentication());
        says.map(|one| (one.issuers.len(), one.required)).collect()
    };
    let broken = policy.replace("https://a/keys", "ftp://a/keys");
    let (mut world, found) = World::new(&[("conf/a.yaml", &broken)]);
    let said = "nobody's token is taken at its targets, and each request needs one";
    assert!(found.iter().any(|one| one.message.ends_with(said)), "{found:#?}");
    assert_eq!(held(&world), [(0, true)]);
    world.write("conf/a.yaml", policy);
    assert_eq!(held(&world), [(1, false)]);
    world.write("conf/a.yaml", &broken);
    assert_eq!(held(&world), [(1, false)], "as it last was");
    // What is surely in dry run would have refused nothing.
    let (world, _) = World::new(&[("conf/a.yaml", &broken.replace("required: false", "mode: DryRun"))]);
    assert_eq!(held(&world), []);
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
            let policies = world.index.access_policies().map(|stored| &stored.object);
            let names = |one: &Access| one.targets.iter().map(|one| one.object.name.to_string()).collect();
            let rules = |one: &Access| {
                let is_unreadable = one.authorization().unwrap().is_unreadable;
                is_unreadable.then(|| "unreadable".to_owned()).into_iter().collect()
            };
            policies.map(|one| (names(one), rules(one))).collect()
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
