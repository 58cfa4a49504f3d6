use std::net::Ipv4Addr;
use std::time::Instant;

use http::{HeaderName, HeaderValue, Method};
use serde_json::json;

use super::super::{
    AccessAction, AccessPolicy, AccessRule, Condition, Connection, Denial, GrpcMethod, Inbound, InboundSpec,
    Judged, Operation, PathText, RouteScope, Source, Subject, TlsKind, Unclear, Unspoken, Verdict,
};
use super::*;
use crate::route::{HeaderMatch, ValueMatch};
use crate::state::Mode;
use crate::testing::allocations;

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

fn exact(text: &str) -> Text {
    Text::Exact(text.into())
}

fn from(accounts: &[&str]) -> Source {
    let identities = accounts.iter().map(|account| exact(id(account).as_str())).collect();
    Source { identities, ..Source::default() }
}

fn to(paths: &[PathText]) -> Operation {
    Operation { paths: paths.to_vec(), ..Operation::default() }
}

fn rule(name: &str, from: Option<Source>, to: Option<Operation>) -> AccessRule {
    let (from, to) = (from.into_iter().collect(), to.into_iter().collect());
    AccessRule { name: name.into(), from, to, when: Vec::new() }
}

fn policy(action: AccessAction, rules: Vec<AccessRule>) -> AccessPolicy {
    AccessPolicy { name: "shop/p".into(), action, dry_run: false, ports: vec![], routes: vec![], rules }
}

fn inbound(policies: Vec<AccessPolicy>) -> Inbound {
    Inbound::new(
        InboundSpec {
            workload: ObjectName::new("shop", "orders"),
            mode: Mode::Permissive,
            ports: Vec::new(),
            rules: Vec::new(),
            policies,
            trust_domain: Some(TrustDomain::default()),
            unspoken: Unspoken::default(),
            rate_limits: Vec::new(),
            connection_ages: Vec::new(),
            access_logs: Vec::new(),
            samplings: Vec::new(),
            access_log: None,
            sampling: Default::default(),
            authentications: Vec::new(),
            external: Vec::new(),
        },
        Instant::now(),
    )
}

/// Who asks: `web`, or nobody where it is empty; from `10.0.0.1`, to port 80.
fn with<R>(account: &str, judge: impl FnOnce(&Connection<'_>) -> R) -> R {
    let peer = (!account.is_empty()).then(|| id(account));
    let tls = if peer.is_some() { TlsKind::Mesh } else { TlsKind::None };
    judge(&Connection { port: 80, peer: peer.as_ref(), tls, client: Ipv4Addr::new(10, 0, 0, 1).into() })
}

fn said(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Allow { rule } => format!("allow {rule}"),
        Verdict::Audit { rule } => format!("audit {rule}"),
        Verdict::Deny { reason, rule } => format!("{reason} {}", rule.as_deref().unwrap_or("-")),
    }
}

/// A request `METHOD path`, `host: orders`, with these fields.
struct Ask<'a> {
    method: Method,
    path: &'a str,
    authority: &'a str,
    headers: HeaderMap,
    grpc: bool,
    claims: Option<Claims>,
    headless: bool,
}

impl<'a> Ask<'a> {
    fn new(asked: &'a str) -> Self {
        let mut words = asked.split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut headers = HeaderMap::new();
        for (name, value) in words.map(|word| word.split_once(':').unwrap()) {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_str(value).unwrap());
        }
        let (method, authority) = (Method::from_bytes(method.as_bytes()).unwrap(), "orders");
        Self { method, path, authority, headers, grpc: false, claims: None, headless: false }
    }

    fn of(&self, policy: &Inbound, account: &str) -> Judged {
        let Self { method, path, authority, headers, grpc, claims, headless } = self;
        let asked = Asked { method, authority, path, query: "", headers };
        let requested = Requested { asked, grpc: *grpc, claims: claims.as_ref(), headless: *headless };
        with(account, |connection| policy.evaluate_request(connection, &requested))
    }
}

fn ask(policy: &Inbound, account: &str, asked: &str) -> String {
    said(&Ask::new(asked).of(policy, account).verdict)
}

/// As a control plane says it where what it tells older proxies is not for us.
#[test]
fn an_audit_without_rules_stands_in_the_place_of_what_is_for_older_proxies_and_does_nothing() {
    let spec = |policies| {
        let closed = super::super::Allow { name: "shop/p/tokens".into(), ports: vec![], identities: vec![] };
        InboundSpec { rules: vec![closed], ..inbound(policies).spec().clone() }
    };
    let judge = |policies| {
        let policy = Inbound::new(spec(policies), Instant::now());
        let client = Ipv4Addr::LOCALHOST.into();
        policy.evaluate(&Connection { port: 80, peer: None, tls: TlsKind::None, client })
    };
    assert!(!judge(Vec::new()).is_allowed());
    let nothing = policy(AccessAction::Audit, Vec::new());
    assert_eq!(judge(vec![nothing]), Verdict::Allow { rule: "default".into() });
}

#[test]
fn what_is_denied_is_not_allowed_by_another_and_what_nobody_speaks_of_is() {
    let both = inbound(vec![
        policy(AccessAction::Allow, vec![rule("a", Some(from(&["web"])), None)]),
        policy(AccessAction::Deny, vec![rule("d", None, Some(to(&[PathText::prefix("/admin/")])))]),
    ]);
    assert_eq!(ask(&both, "web", "GET /"), "allow a");
    assert_eq!(ask(&both, "web", "GET /admin/x"), "policy_denied d");
    assert_eq!(ask(&both, "other", "GET /"), "policy_denied -");
    assert_eq!(ask(&both, "", "GET /"), "policy_denied -");
    let denies = inbound(vec![policy(AccessAction::Deny, vec![rule("d", Some(from(&["web"])), None)])]);
    assert_eq!(
        (ask(&denies, "web", "GET /"), ask(&denies, "", "GET /")),
        ("policy_denied d".to_owned(), "allow default".to_owned())
    );
    // One that allows, and has no rules, lets nobody in.
    let nobody = inbound(vec![policy(AccessAction::Allow, Vec::new())]);
    assert_eq!(ask(&nobody, "web", "GET /"), "policy_denied shop/p");
}

#[test]
fn a_connection_stays_as_long_as_some_request_could_pass_and_bytes_are_no_request() {
    let admin = || Some(to(&[PathText::exact("/admin")]));
    let at = |policy: &Inbound, account: &str| {
        with(account, |it| (said(&policy.evaluate(it)), said(&policy.evaluate_bytes(it).verdict)))
    };
    let pair = |some: &str, bytes: &str| (some.to_owned(), bytes.to_owned());
    let allows = inbound(vec![policy(AccessAction::Allow, vec![rule("a", Some(from(&["web"])), admin())])]);
    assert_eq!(at(&allows, "web"), pair("allow a", "policy_denied -"));
    assert_eq!(at(&allows, "other"), pair("policy_denied -", "policy_denied -"));
    let denies = inbound(vec![policy(AccessAction::Deny, vec![rule("d", Some(from(&["web"])), admin())])]);
    assert_eq!(at(&denies, "web"), pair("allow default", "policy_denied d"));
    assert_eq!(at(&denies, "other"), pair("allow default", "allow default"));
    let condition =
        Condition { of: Subject::Header("x".parse().unwrap()), values: vec![], not_values: vec![] };
    let when = |action| {
        inbound(vec![policy(
            action,
            vec![AccessRule { when: vec![condition.clone()], ..rule("w", None, None) }],
        )])
    };
    assert_eq!(at(&when(AccessAction::Allow), "web"), pair("allow w", "policy_denied -"));
    assert_eq!(at(&when(AccessAction::Deny), "web"), pair("allow default", "policy_denied w"));
    // Of the connection alone.
    let whom = inbound(vec![policy(AccessAction::Deny, vec![rule("d", Some(from(&["web"])), None)])]);
    assert_eq!(at(&whom, "web"), pair("policy_denied d", "policy_denied d"));
}

#[test]
fn sources_describe_by_all_of_their_fields() {
    let text = |text: &str| match (text.strip_prefix('*'), text.strip_suffix('*')) {
        (Some(rest), _) => Text::Suffix(rest.into()),
        (_, Some(rest)) => Text::Prefix(rest.into()),
        _ => exact(text),
    };
    let of = |texts: &[&str]| texts.iter().map(|one| text(one)).collect::<Vec<_>>();
    let net = |text: &str| vec![text.parse().unwrap()];
    let none = Source::default;
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    for (source, web_is, nobody_is) in [
        (none(), true, true),
        (Source { any_identity: true, ..none() }, true, false),
        (Source { identities: of(&[web]), ..none() }, true, false),
        (Source { identities: of(&["*/web"]), ..none() }, true, false),
        (Source { identities: of(&["spiffe://other*"]), ..none() }, false, false),
        (Source { not_identities: of(&[web]), ..none() }, false, true),
        (Source { namespaces: of(&["shop"]), ..none() }, true, false),
        (Source { namespaces: of(&["sho*", "x"]), ..none() }, true, false),
        (Source { namespaces: of(&["shop2"]), ..none() }, false, false),
        (Source { not_namespaces: of(&["shop"]), ..none() }, false, true),
        (Source { service_accounts: of(&["shop/web"]), ..none() }, true, false),
        (Source { service_accounts: of(&["shop/*"]), ..none() }, true, false),
        (Source { service_accounts: of(&["*/web"]), ..none() }, true, false),
        (Source { service_accounts: of(&["*p/web"]), ..none() }, true, false),
        (Source { service_accounts: of(&["other/web"]), ..none() }, false, false),
        (Source { not_service_accounts: of(&["shop/*"]), ..none() }, false, true),
        (Source { networks: net("10.0.0.0/8"), ..none() }, true, true),
        (Source { networks: net("192.0.2.0/24"), ..none() }, false, false),
        (Source { not_networks: net("10.0.0.1/32"), ..none() }, false, false),
        (Source { networks: net("10.0.0.0/8"), identities: of(&[web]), ..none() }, true, false),
        (Source { namespaces: of(&["shop"]), not_service_accounts: of(&["*/web"]), ..none() }, false, false),
    ] {
        let policy = inbound(vec![policy(AccessAction::Allow, vec![rule("r", Some(source.clone()), None)])]);
        let is = |account| ask(&policy, account, "GET /") == "allow r";
        assert_eq!((is("web"), is("")), (web_is, nobody_is), "{source:?}");
    }
}

#[test]
fn another_trust_domain_has_namespaces_of_its_own() {
    let source = Source { namespaces: vec![exact("shop")], ..Source::default() };
    let policy = inbound(vec![policy(AccessAction::Allow, vec![rule("r", Some(source), None)])]);
    let stranger = SpiffeId::parse("spiffe://elsewhere/ns/shop/sa/web").unwrap();
    let connection = Connection {
        port: 80,
        peer: Some(&stranger),
        tls: TlsKind::Mesh,
        client: Ipv4Addr::LOCALHOST.into(),
    };
    assert_eq!(said(&policy.evaluate(&connection)), "policy_denied -");
}

#[test]
fn operations_describe_by_all_of_their_fields_and_differ_by_what_is_done() {
    let none = Operation::default;
    let call = |text: &str| {
        let (service, method) = text.split_once('/').unwrap();
        let part = |part: &str| (part != "*").then(|| part.into());
        vec![GrpcMethod { service: part(service), method: part(method) }]
    };
    let get = || vec![Method::GET];
    for (operation, asked, allowed, denied) in [
        (Operation { ports: vec![80], ..none() }, "GET /", true, true),
        (Operation { ports: vec![81], ..none() }, "GET /", false, false),
        (Operation { not_ports: vec![80], ..none() }, "GET /", false, false),
        (Operation { methods: get(), ..none() }, "GET /", true, true),
        (Operation { methods: get(), ..none() }, "POST /", false, false),
        (Operation { methods: get(), ..none() }, "get /", false, true),
        (Operation { not_methods: get(), ..none() }, "POST /", true, true),
        (Operation { not_methods: get(), ..none() }, "GET /", false, false),
        (Operation { not_methods: get(), ..none() }, "get /", false, true),
        (Operation { hosts: vec![exact("Orders.")], ..none() }, "GET /", true, true),
        (Operation { hosts: vec![exact("admin")], ..none() }, "GET /", false, false),
        (Operation { not_hosts: vec![exact("orders")], ..none() }, "GET /", false, false),
        (Operation { not_hosts: vec![exact("admin")], ..none() }, "GET /", true, true),
        (Operation { not_paths: vec![PathText::exact("/a")], ..none() }, "GET /b", true, true),
        (Operation { not_paths: vec![PathText::exact("/a")], ..none() }, "GET /a", false, false),
        // May be the path that is left out, and may be not.
        (Operation { not_paths: vec![PathText::exact("/a")], ..none() }, "GET //a", false, true),
        (Operation { not_paths: vec![PathText::exact("/a")], ..none() }, "GET /a/", false, true),
        (Operation { methods: get(), ..to(&[PathText::exact("/a")]) }, "POST /a", false, false),
        (
            Operation { grpc_methods: call("shop.Orders/Place"), ..none() },
            "POST /shop.Orders/Place",
            false,
            true,
        ),
        (Operation { grpc_methods: call("shop.Orders/*"), ..none() }, "POST /shop.Orders/List", false, true),
        (Operation { grpc_methods: call("*/Place"), ..none() }, "POST /shop.Orders/List", false, false),
    ] {
        let by = |action| inbound(vec![policy(action, vec![rule("r", None, Some(operation.clone()))])]);
        let is_allowed = ask(&by(AccessAction::Allow), "web", asked) == "allow r";
        let is_denied = ask(&by(AccessAction::Deny), "web", asked) == "policy_denied r";
        assert_eq!((is_allowed, is_denied), (allowed, denied), "{asked} {operation:?}");
    }
    let operation = Operation { grpc_methods: call("*/Place"), ..none() };
    let policy = inbound(vec![policy(AccessAction::Allow, vec![rule("r", None, Some(operation))])]);
    let called = Ask { grpc: true, ..Ask::new("POST /shop.Orders/Place") };
    assert_eq!(said(&called.of(&policy, "web").verdict), "allow r");
}

#[test]
fn who_names_no_host_is_not_let_in_by_one_and_not_past_a_denial() {
    let hosts = || Some(Operation { hosts: vec![Text::Suffix(".shop".into())], ..Operation::default() });
    for (authority, allowed, denied) in [
        ("orders.shop", "allow r", "policy_denied r"),
        ("Orders.SHOP.:80", "allow r", "policy_denied r"),
        ("orders", "policy_denied -", "allow default"),
        ("", "policy_denied -", "policy_denied r"),
        ("x@orders.shop", "malformed_request -", "malformed_request -"),
        ("orders.shop:80:80", "malformed_request -", "malformed_request -"),
    ] {
        let by = |action| {
            let policy = inbound(vec![policy(action, vec![rule("r", None, hosts())])]);
            said(&Ask { authority, ..Ask::new("GET /") }.of(&policy, "web").verdict)
        };
        assert_eq!((&*by(AccessAction::Allow), &*by(AccessAction::Deny)), (allowed, denied), "{authority}");
    }
}

#[test]
fn headers_are_one_value_for_what_allows_and_each_line_for_what_denies() {
    let of = || Subject::Header("x-role".parse().unwrap());
    let is = || Condition { of: of(), values: vec![exact("admin")], not_values: vec![] };
    let is_not = || Condition { of: of(), values: vec![], not_values: vec![exact("admin")] };
    let is_there = || Condition { of: of(), values: vec![], not_values: vec![] };
    for (condition, asked, allowed, denied) in [
        (is(), "GET / x-role:admin", true, true),
        (is(), "GET / x-role:user", false, false),
        (is(), "GET /", false, false),
        (is(), "GET / x-role:user x-role:admin", false, true),
        (is_not(), "GET /", true, true),
        (is_not(), "GET / x-role:admin", false, false),
        (is_not(), "GET / x-role:user x-role:admin", false, true),
        (is_there(), "GET / x-role:user", true, true),
        (is_there(), "GET /", false, false),
        // Servers in the manner of CGI take it for the same.
        (is(), "GET / x_role:admin", false, true),
        (is_not(), "GET / x_role:admin", false, true),
        (is_there(), "GET / x_role:user", false, true),
    ] {
        let by = |action, headless| {
            let rule = AccessRule { when: vec![condition.clone()], ..rule("r", None, None) };
            let policy = inbound(vec![policy(action, vec![rule])]);
            said(&Ask { headless, ..Ask::new(asked) }.of(&policy, "web").verdict)
        };
        assert_eq!(by(AccessAction::Allow, false) == "allow r", allowed, "{asked} {condition:?}");
        assert_eq!(by(AccessAction::Deny, false) == "policy_denied r", denied, "{asked} {condition:?}");
        // What is no longer known ends nothing.
        assert_eq!(
            (&*by(AccessAction::Allow, true), &*by(AccessAction::Deny, true)),
            ("allow r", "allow default")
        );
    }
}

#[test]
fn what_a_route_asks_of_headers_that_are_no_longer_known_ends_nothing() {
    let x_beta = HeaderMatch { name: "x-beta".parse().unwrap(), value: ValueMatch::Exact((*b"1").into()) };
    let when = Conditions { headers: vec![x_beta], ..Conditions::default() };
    let matches = vec![RequestMatch { path: PathMatch::Prefix("/a".into()), when: Some(Arc::new(when)) }];
    let routes = vec![RouteScope { hostnames: vec![], matches }];
    let scoped = |action| AccessPolicy {
        routes: routes.clone(),
        ..policy(action, vec![rule("r", Some(from(&["web"])), None)])
    };
    let others = policy(AccessAction::Allow, vec![rule("o", Some(from(&["batch"])), None)]);
    let by = |policies, asked, headless, account| {
        said(&Ask { headless, ..Ask::new(asked) }.of(&inbound(policies), account).verdict)
    };
    let both = || vec![scoped(AccessAction::Allow), others.clone()];
    assert_eq!(by(both(), "GET /a x-beta:1", false, "web"), "allow r");
    assert_eq!(by(both(), "GET /a", false, "web"), "policy_denied -");
    assert_eq!(by(both(), "GET /a", true, "web"), "allow r", "it had the header, as far as is known");
    assert_eq!(by(both(), "GET /b", true, "web"), "policy_denied -");
    let alone = || vec![scoped(AccessAction::Allow)];
    assert_eq!(by(alone(), "GET /a", true, "batch"), "allow default", "or had not");
    assert_eq!(by(vec![scoped(AccessAction::Deny)], "GET /a", true, "web"), "allow default");
}

#[test]
fn who_asks_for_the_header_host_looks_at_hosts() {
    for (name, expected) in [("host", true), ("x-host", false)] {
        let when = vec![Condition {
            of: Subject::Header(name.parse().unwrap()),
            values: vec![],
            not_values: vec![],
        }];
        let rule = AccessRule { when, ..rule("r", None, None) };
        let policy = inbound(vec![policy(AccessAction::Deny, vec![rule])]);
        assert_eq!(policy.looks_at_hosts(80), expected, "{name}");
    }
}

#[test]
fn claims_are_texts_or_lists_of_them() {
    let Value::Object(all) = json!({
        "sub": "ann", "scope": "read write", "groups": ["a", "b"], "level": 3, "admin": true,
        "realm": { "roles": ["x"] }, "nothing": null,
    }) else {
        unreachable!()
    };
    let claims = Claims::verified("https://issuer", all);
    let of = |path: &[&str]| Subject::Claim(path.iter().map(|&part| part.into()).collect());
    for (path, value, expected) in [
        (&["sub"][..], "ann", true),
        (&["sub"], "bob", false),
        (&["scope"], "read", true),
        (&["scope"], "read write", true),
        (&["scope"], "rea", false),
        (&["groups"], "b", true),
        (&["groups"], "a b", false),
        (&["level"], "3", true),
        (&["admin"], "true", true),
        (&["realm", "roles"], "x", true),
        (&["realm"], "x", false),
        (&["nothing"], "", false),
        (&["none"], "", false),
    ] {
        let condition = Condition { of: of(path), values: vec![exact(value)], not_values: vec![] };
        let rule = AccessRule { when: vec![condition], ..rule("r", None, None) };
        let policy = inbound(vec![policy(AccessAction::Allow, vec![rule])]);
        let asked = Ask { claims: Some(claims.clone()), ..Ask::new("GET /") };
        assert_eq!(asked.of(&policy, "web").verdict.is_allowed(), expected, "{path:?} {value}");
        assert!(!Ask::new("GET /").of(&policy, "web").verdict.is_allowed(), "without a token");
    }
    let source = Source { request_principals: vec![exact("https://issuer/ann")], ..Source::default() };
    let policy = inbound(vec![policy(AccessAction::Allow, vec![rule("r", Some(source), None)])]);
    let asked = Ask { claims: Some(claims), ..Ask::new("GET /") };
    assert_eq!(said(&asked.of(&policy, "web").verdict), "allow r");
    assert_eq!(ask(&policy, "web", "GET /"), "policy_denied -");
}

#[test]
fn what_nobody_can_tell_is_refused_only_where_paths_are_looked_at() {
    let path = |ports: Vec<u16>| AccessPolicy {
        ports,
        ..policy(AccessAction::Deny, vec![rule("d", None, Some(to(&[PathText::exact("/admin")])))])
    };
    let judged = Ask::new("GET /a%2Fb").of(&inbound(vec![path(vec![])]), "web").verdict;
    assert_eq!(judged, Verdict::Deny { reason: Denial::Unclear(Unclear::Slash), rule: None });
    assert_eq!(ask(&inbound(vec![path(vec![81])]), "web", "GET /a%2Fb"), "allow default");
    // What is not in force refuses nothing, and says that it might.
    let dry = inbound(vec![AccessPolicy { dry_run: true, ..path(vec![]) }]);
    let judged = Ask::new("GET /a%2Fb").of(&dry, "web");
    assert_eq!((&*said(&judged.verdict), judged.would_deny.as_deref()), ("allow default", Some("d")));
}

#[test]
fn a_policy_of_a_route_speaks_of_its_requests_only() {
    let scope = |path: &str| RouteScope {
        hostnames: vec!["orders".parse().unwrap()],
        matches: vec![RequestMatch { path: PathMatch::Prefix(path.into()), when: None }],
    };
    let scoped = |action, path: &str, accounts: &[&str]| AccessPolicy {
        routes: vec![scope(path)],
        ..policy(action, vec![rule("r", Some(from(accounts)), None)])
    };
    let allows = inbound(vec![scoped(AccessAction::Allow, "/admin", &["web"])]);
    for (account, asked, expected) in [
        ("web", "GET /admin/x", "allow r"),
        ("other", "GET /admin/x", "policy_denied -"),
        ("other", "GET /cart", "allow default"),
        // Whoever may mean it is spoken of.
        ("other", "GET //admin/x", "policy_denied -"),
        ("other", "GET /%61dmin/x", "policy_denied -"),
        ("other", "GET /cart/../admin", "policy_denied -"),
        ("other", "GET /admin;x", "policy_denied -"),
        // And let in only if it is so for sure.
        ("web", "GET /admin/../cart", "policy_denied -"),
    ] {
        assert_eq!(ask(&allows, account, asked), expected, "{account} {asked}");
    }
    with("other", |it| {
        assert_eq!(said(&allows.evaluate(it)), "allow default", "for other requests");
        assert_eq!(said(&allows.evaluate_bytes(it).verdict), "allow default");
    });
    let networks = Unspoken { networks: vec!["192.0.2.0/24".parse().unwrap()], audited: false };
    let spec = InboundSpec { unspoken: networks, ..allows.spec().clone() };
    let allows = Inbound::new(spec, Instant::now());
    with("web", |it| assert_eq!(said(&allows.evaluate(it)), "allow r", "for those of the route"));
    let denies = inbound(vec![scoped(AccessAction::Deny, "/admin", &["web"])]);
    assert_eq!(ask(&denies, "web", "GET /cart/../admin"), "policy_denied r");
    assert_eq!(ask(&denies, "web", "GET /cart"), "allow default");
}

#[test]
fn audit_and_dry_runs_tell_and_do_nothing() {
    let dry = |policy: AccessPolicy| AccessPolicy { dry_run: true, ..policy };
    let one =
        |action, name: &str, account: &str| policy(action, vec![rule(name, Some(from(&[account])), None)]);
    let at = |policies: Vec<AccessPolicy>, account: &str| {
        let judged = Ask::new("GET /").of(&inbound(policies), account);
        (said(&judged.verdict), judged.would_deny.as_deref().unwrap_or("-").to_owned())
    };
    let pair = |verdict: &str, would_deny: &str| (verdict.to_owned(), would_deny.to_owned());
    let (allow, deny, audit) = (AccessAction::Allow, AccessAction::Deny, AccessAction::Audit);
    assert_eq!(at(vec![one(audit, "x", "web")], "web"), pair("audit x", "-"));
    assert_eq!(at(vec![one(audit, "x", "web"), one(allow, "a", "web")], "web"), pair("audit x", "-"));
    assert_eq!(at(vec![one(audit, "x", "web")], "other"), pair("allow default", "-"));
    assert_eq!(at(vec![dry(one(deny, "d", "web"))], "web"), pair("allow default", "d"));
    assert_eq!(at(vec![dry(one(deny, "d", "web"))], "other"), pair("allow default", "-"));
    assert_eq!(at(vec![dry(one(allow, "a", "web"))], "web"), pair("allow default", "-"));
    assert_eq!(at(vec![dry(one(allow, "a", "web"))], "other"), pair("allow default", "shop/p"));
    assert_eq!(at(vec![dry(policy(allow, vec![]))], "web"), pair("allow default", "shop/p"));
    // What is in force has let it in.
    assert_eq!(
        at(vec![one(allow, "b", "other"), dry(one(allow, "a", "web"))], "other"),
        pair("allow b", "-")
    );
    assert_eq!(
        at(vec![one(allow, "b", "other"), dry(one(allow, "a", "web"))], "web"),
        pair("policy_denied -", "-")
    );
}

/// Rules found by the client's identity are those that would be found one after the other, and cost nothing that is allocated.
#[test]
fn of_many_rules_the_first_is_found_and_nothing_is_allocated() {
    let domain = TrustDomain::default();
    let rules = (0..50).map(|number| {
        let path = PathText::prefix(&format!("/{}/", number % 25));
        let source = match number % 3 {
            0 => from(&[&format!("web-{}", number % 10)]),
            1 => Source {
                service_accounts: vec![exact(&format!("shop/web-{}", number % 10))],
                ..Source::default()
            },
            _ => Source { namespaces: vec![Text::Prefix("sh".into())], ..Source::default() },
        };
        rule(&format!("r{number}"), Some(source), Some(to(&[path])))
    });
    let said = policy(AccessAction::Allow, rules.collect());
    let policy = inbound(vec![said.clone()]);
    for number in 0..12 {
        let account = format!("web-{number}");
        for path in 0..27 {
            let path = format!("/{path}/x");
            let asked = format!("GET {path}");
            let mut one_by_one = said.rules.iter().filter(|rule| {
                let only = only(rule, Some(&domain));
                let names = only.is_none_or(|only| only.contains(&id(&account)));
                names && rule.to[0].paths[0] == PathText::prefix(&format!("{}/", &path[..path.len() - 2]))
            });
            let expected = one_by_one.next().map(|rule| &*rule.name);
            let asked = Ask::new(&asked);
            let before = allocations();
            let judged = asked.of(&policy, &account);
            // Twice for the test's own identity: its text, and that once more to be kept.
            assert!(allocations() - before <= 3, "{}", allocations() - before);
            let found = match &judged.verdict {
                Verdict::Allow { rule } => Some(&**rule),
                _ => None,
            };
            assert_eq!(found, expected, "{account} {path}");
        }
    }
}
