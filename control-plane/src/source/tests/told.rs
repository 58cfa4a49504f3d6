//! What people are told of what is wrong, and where.

use super::*;

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
