//! Sessions: what of `sessionPersistence` is passed on, and what is wrong with it.

use super::*;

const BACKEND: &str = "backendRefs: [{name: orders, port: 80}]";

fn read(rules: &str) -> (v1::Routes, Vec<Finding>) {
    let (index, found) = index(&format!("{ORDERS}{}", route("default", "r", "", rules)));
    (routes(&Model::build(&index, Settings::default()), "x/default/orders"), found)
}

#[test]
fn a_session_is_passed_on_with_a_name_that_stays() {
    let rules = format!(
        "
  - {BACKEND}
    sessionPersistence: {{sessionName: JSESSIONID, absoluteTimeout: 24h, idleTimeout: 1h30m, cookieConfig: {{lifetimeType: Permanent}}}}
  - {BACKEND}
    sessionPersistence: {{type: Header, sessionName: X-Session, cookieConfig: null}}
  - {BACKEND}
    sessionPersistence: {{}}
  - name: named
    {BACKEND}
    sessionPersistence: {{type: Cookie, cookieConfig: {{lifetimeType: Session}}}}
  - {BACKEND}
"
    );
    let (routes, found) = read(&rules);
    assert_eq!(found, []);
    let kept: Vec<_> =
        routes.http[0].rules.iter().filter_map(|rule| rule.session_persistence.clone()).collect();
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let (cookie, header) = (v1::SessionTokenPlace::Cookie.into(), v1::SessionTokenPlace::Header.into());
    let first = v1::SessionPersistence {
        name: "JSESSIONID".to_owned(),
        place: cookie,
        scope: "HTTPRoute/default/r/0".to_owned(),
        absolute_timeout: seconds(86_400),
        idle_timeout: seconds(5400),
        permanent: true,
    };
    assert_eq!(kept[0], first);
    assert_eq!((kept[1].name.as_str(), kept[1].place), ("x-session", header));
    let made: Vec<_> = kept[2..].iter().map(|one| (one.name.as_str(), one.scope.as_str())).collect();
    // These names are in clients' cookies: a change ends every session.
    let expected = [
        ("tulle-session-070f38dc819fe200", "HTTPRoute/default/r/2"),
        ("tulle-session-28598b04ec2bb19f", "HTTPRoute/default/r/named"),
    ];
    assert_eq!(made, expected);
}

/// What is said of the session, the fields that are found wrong, and whether the route is served, and its rule.
#[test]
fn a_session_that_cannot_be_kept_is_told_and_never_left_out() {
    let long = "x".repeat(129);
    let cases: &[(&str, &[&str], Option<bool>)] = &[
        ("sessionName: ''", &[], Some(true)),
        ("sessionName: 'a b'", &["sessionName"], Some(false)),
        ("sessionName: 'a=b'", &["sessionName"], Some(false)),
        ("sessionName: Host, type: Header", &["sessionName"], Some(false)),
        ("sessionName: x-tulle-id, type: Header", &["sessionName"], Some(false)),
        ("sessionName: Cookie, type: Header", &["sessionName"], Some(false)),
        ("sessionName: Host", &[], Some(true)),
        ("sessionName: __Host-shop", &["sessionName"], Some(false)),
        ("sessionName: __secure-shop, type: Cookie", &["sessionName"], Some(false)),
        ("sessionName: __Host-shop, type: Header", &[], Some(true)),
        ("sessionName: __Host", &[], Some(true)),
        (&format!("sessionName: {long}"), &["sessionName"], None),
        ("absoluteTimeout: 0s", &["absoluteTimeout"], Some(false)),
        ("absoluteTimeout: 1d", &["absoluteTimeout"], None),
        ("idleTimeout: '1.5h'", &["idleTimeout"], None),
        ("idleTimeout: 2h, absoluteTimeout: 1h", &["idleTimeout"], Some(true)),
        ("cookieConfig: {lifetimeType: Permanent}", &["absoluteTimeout"], None),
        ("cookieConfig: {lifetimeType: Permanent}, idleTimeout: 1h", &["absoluteTimeout"], None),
        ("cookieConfig: {lifetimeType: Session}, type: Header", &["cookieConfig"], None),
        ("cookieConfig: {lifetimeType: Forever}", &["cookieConfig.lifetimeType"], None),
        ("type: Query", &["type"], None),
    ];
    for (said, fields, served) in cases {
        let (routes, found) = read(&format!("[{{{BACKEND}, sessionPersistence: {{{said}}}}}]"));
        let seen: Vec<_> = found.iter().map(|finding| finding.field.clone().unwrap_or_default()).collect();
        let expected: Vec<_> =
            fields.iter().map(|field| format!("spec.rules[0].sessionPersistence.{field}")).collect();
        assert_eq!(seen, expected, "{said}: {found:#?}");
        let rule = routes.http.first().map(|route| &route.rules[0]);
        assert_eq!(rule.map(|rule| rule.invalid.is_empty()), *served, "{said}");
    }
    let (_, found) = read(&format!(
        "[{{{BACKEND}, sessionPersistence: {{sessionName: a}}}}, {{{BACKEND}, sessionPersistence: {{sessionName: a}}}}]"
    ));
    let fields: Vec<_> = found.iter().map(|finding| finding.field.as_deref()).collect();
    assert_eq!(fields, [Some("spec.rules[1].sessionPersistence.sessionName")]);
}

#[test]
fn beside_a_services_own_affinity_the_route_is_rejected() {
    let service = ORDERS.replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n");
    let rules = format!("[{{{BACKEND}, sessionPersistence: {{}}}}, {{{BACKEND}}}]");
    let (index, found) = index(&format!("{service}{}", route("default", "r", "", &rules)));
    let fields: Vec<_> = found.iter().map(|finding| finding.field.as_deref()).collect();
    assert_eq!(fields, [Some("spec.rules[0].sessionPersistence")], "{found:#?}");
    let all = routes(&Model::build(&index, Settings::default()), "x/default/orders");
    let invalid: Vec<_> = all.http[0].rules.iter().map(|rule| !rule.invalid.is_empty()).collect();
    assert_eq!(invalid, [true, true]);
    let conditions = &route_statuses(&index)[0].parents[0].conditions;
    let accepted = conditions.iter().find(|one| one.condition == "Accepted").unwrap();
    assert_eq!((accepted.status, accepted.reason), ("False", "UnsupportedValue"));
    let expected = "spec.rules[0].sessionPersistence: Service default/orders has ";
    assert!(accepted.message.starts_with(expected), "{}", accepted.message);
    assert!(conditions.iter().all(|one| one.condition != "PartiallyInvalid"), "{conditions:?}");
}

#[test]
fn an_affinity_that_comes_to_one_parent_rejects_the_route_at_the_other_too() {
    let carts = format!("---{}", ORDERS.replace("orders", "carts"));
    let route = route("default", "r", "", &format!("[{{{BACKEND}, sessionPersistence: {{}}}}]"));
    let both = "namespace: default}, {group: '', kind: Service, name: carts}]";
    let (mut index, _) = index(&format!("{ORDERS}{carts}{}", route.replace("namespace: default}]", both)));
    let model = Model::build(&index, Settings::default());
    let is_served = |model: &Model| routes(model, "x/default/orders").http[0].rules[0].invalid.is_empty();
    assert!(is_served(&model));
    index.change(read_text(&carts.replace("spec:\n", "spec:\n  sessionAffinity: ClientIP\n")).changes);
    let dirty = index.take_dirty();
    assert!(!is_served(&model.next(&index, &dirty)));
}

#[test]
fn every_proxy_is_told_the_same_key_and_a_restart_keeps_it() {
    let key = |secret: &[u8]| {
        let session_key = Some(SessionKey::derive(secret));
        let model = Model::build(&Index::default(), Settings { session_key, ..Settings::default() });
        get::<v1::Mesh>(&model, "mesh").unwrap().session_key
    };
    assert_eq!((key(b"a").len(), key(b"a")), (32, key(b"a")));
    assert_ne!(key(b"a"), key(b"b"));
    assert_eq!(format!("{:?}", SessionKey::derive(b"a")), "SessionKey");
    let none = Model::build(&Index::default(), Settings::default());
    assert!(get::<v1::Mesh>(&none, "mesh").unwrap().session_key.is_empty());
}
