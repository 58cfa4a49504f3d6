use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use http::{HeaderMap, HeaderValue, Method};
use serde_json::{Map, Value, json};

use super::*;
use crate::policy::{Claims, RouteScope};
use crate::route::{PathMatch, RequestMatch};

/// Keys that differ with `n`, and verify nothing.
pub(super) fn set(n: u8) -> KeySet {
    let key = json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode([n; 32]) });
    KeySet::read(json!({ "keys": [key] }).to_string().as_bytes()).unwrap()
}

pub(super) fn inline() -> IssuerSpec {
    IssuerSpec {
        issuer: "https://issuer".into(),
        audiences: Vec::new(),
        keys: KeysSpec::Inline(Arc::new(set(1))),
        from: vec![Place::bearer()],
        claims_to_headers: Vec::new(),
        forward: false,
        leeway: Duration::from_secs(60),
    }
}

pub(super) fn remote() -> RemoteSpec {
    RemoteSpec {
        url: "https://issuer/keys".parse().unwrap(),
        refresh: Duration::from_secs(300),
        timeout: Duration::from_secs(5),
        service: None,
        roots: "".into(),
    }
}

fn policy(issuers: Vec<IssuerSpec>) -> AuthenticationSpec {
    let (name, ports, routes) = ("shop/tokens".into(), Vec::new(), Vec::new());
    AuthenticationSpec { name, ports, routes, issuers, required: true, dry_run: false }
}

pub(super) fn issuer(spec: IssuerSpec) -> Arc<Issuer> {
    let all = Authentications::after(None, &[policy(vec![spec])]).unwrap();
    Arc::clone(&all.0[0].issuers()[0])
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(object) = value else { panic!("{value}") };
    object
}

pub(super) fn claims() -> Arc<Claims> {
    Arc::new(Claims::verified("https://issuer", object(json!({ "sub": "ann" }))))
}

fn headers(lines: &[(&str, &str)]) -> HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
    };
    lines.iter().map(line).collect()
}

fn asked<'a>(path: &'a str, headers: &'a HeaderMap) -> Asked<'a> {
    Asked { method: &Method::GET, authority: "web", path, query: "", headers }
}

#[test]
fn times_hold_up_to_the_leeway_and_not_at_its_end() {
    const NOW: f64 = 1_000_000.0;
    let issuer = issuer(inline());
    let check = |claims: Value| issuer.check(&object(claims), NOW).map(drop);
    for (claims, comes_to) in [
        (json!({ "exp": 1_000_001 }), Ok(())),
        (json!({ "exp": 999_941 }), Ok(())),
        (json!({ "exp": 999_940.5 }), Ok(())),
        (json!({ "exp": 999_940 }), Err(Refusal::Expired)),
        (json!({ "exp": 0 }), Err(Refusal::Expired)),
        (json!({ "exp": -5 }), Err(Refusal::Expired)),
        (json!({ "exp": 1e300 }), Ok(())),
        (json!({ "exp": "1000001" }), Err(Refusal::Time)),
        (json!({ "exp": null }), Err(Refusal::Time)),
        (json!({ "exp": [1_000_001] }), Err(Refusal::Time)),
        (json!({}), Err(Refusal::Endless)),
        (json!({ "exp": 2e6, "nbf": 1_000_060 }), Ok(())),
        (json!({ "exp": 2e6, "nbf": 1_000_060.5 }), Err(Refusal::NotYet)),
        (json!({ "exp": 2e6, "nbf": "0" }), Err(Refusal::Time)),
        (json!({ "exp": 2e6, "iat": 1_000_060 }), Ok(())),
        (json!({ "exp": 2e6, "iat": 1_000_061 }), Err(Refusal::NotYet)),
        (json!({ "exp": 2e6, "iat": -1, "nbf": 0 }), Ok(())),
    ] {
        assert_eq!(check(claims.clone()), comes_to, "{claims}");
    }
    let until = issuer.check(&object(json!({ "exp": 1_000_001 })), NOW);
    assert_eq!(until, Ok(1_000_061.0), "for as long as it is remembered");
}

#[test]
fn an_audience_is_one_of_those_that_are_named() {
    let audiences = vec!["orders".into(), "shop".into()];
    let (ours, any) = (issuer(IssuerSpec { audiences, ..inline() }), issuer(inline()));
    for (audience, is_ours) in [
        (json!("orders"), true),
        (json!(["x", "shop"]), true),
        (json!([]), false),
        (json!("Orders"), false),
        (json!("orders "), false),
        (json!(["x"]), false),
        (json!([["orders"], 7, null]), false),
        (json!({ "orders": true }), false),
        (json!(null), false),
    ] {
        let claims = object(json!({ "exp": 10, "aud": audience }));
        let expected = if is_ours { Ok(70.0) } else { Err(Refusal::Audience) };
        assert_eq!(ours.check(&claims, 0.0), expected, "{audience}");
        assert_eq!(any.check(&claims, 0.0), Ok(70.0), "{audience}");
    }
    assert_eq!(ours.check(&object(json!({ "exp": 10 })), 0.0), Err(Refusal::Audience));
}

#[test]
fn a_request_has_one_token() {
    let custom = IssuerSpec {
        from: vec![Place { header: "x-token".parse().unwrap(), prefix: "".into() }],
        ..inline()
    };
    let all = Authentications::after(None, &[policy(vec![inline(), custom])]).unwrap();
    let find = |lines: &[(&str, &str)]| {
        let pool = Pool::of(all.at(80));
        let found = pool.find(&headers(lines));
        found.map(|found| {
            found.map(|found| (String::from_utf8(found.text.to_vec()).unwrap(), found.issuers.len()))
        })
    };
    let one = |text: &str, issuers| Ok(Some((text.to_owned(), issuers)));
    assert_eq!(find(&[]), Ok(None));
    assert_eq!(find(&[("authorization", "Bearer a.b.c")]), one("a.b.c", 1));
    assert_eq!(find(&[("authorization", "bEARER   a.b.c ")]), one("a.b.c", 1));
    assert_eq!(find(&[("authorization", "Basic YTpi")]), Ok(None));
    assert_eq!(find(&[("authorization", "Bearera.b.c")]), Ok(None));
    assert_eq!(find(&[("authorization", "Bearer ")]), Ok(None));
    assert_eq!(find(&[("x-token", "a.b.c")]), one("a.b.c", 1));
    assert_eq!(find(&[("authorization", "Bearer a.b.c"), ("x-token", "a.b.c")]), one("a.b.c", 2));
    assert_eq!(find(&[("authorization", "Bearer a.b.c"), ("x-token", "a.b.d")]), Err(Refusal::Several));
    assert_eq!(
        find(&[("authorization", "Bearer a.b.c"), ("authorization", "Bearer a.b.d")]),
        Err(Refusal::Several)
    );
    assert_eq!(find(&[("authorization", "Basic YTpi"), ("authorization", "Bearer a.b.c")]), one("a.b.c", 1));
}

#[test]
fn a_token_is_removed_from_everywhere_and_nothing_else_is() {
    let all = Authentications::after(None, &[policy(vec![inline()])]).unwrap();
    let pool = Pool::of(all.at(80));
    let mut fields = headers(&[
        ("authorization", "Bearer a.b.c"),
        ("authorization", "Basic YTpi"),
        ("authorization", "bearer a.b.c"),
        ("accept", "*/*"),
    ]);
    pool.find(&fields).unwrap().unwrap().remove(&mut fields);
    let left: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    assert_eq!(
        (&fields["authorization"], &fields["accept"]),
        (&"Basic YTpi".parse().unwrap(), &"*/*".parse().unwrap())
    );
}

#[test]
fn claims_are_told_as_text() {
    let way = |header: &str, claim: &[&str]| ClaimHeader {
        header: header.parse().unwrap(),
        claim: claim.iter().map(|element| (*element).into()).collect(),
    };
    let names = ["text", "number", "float", "truth", "list", "object", "nothing", "absent"];
    let claims_to_headers =
        names.iter().map(|name| way(&format!("x-{name}"), &[name])).chain([way("x-deep", &["object", "a"])]);
    let told = issuer(IssuerSpec { claims_to_headers: claims_to_headers.collect(), ..inline() });
    let said = object(json!({
        "text": "Zoë, ann@example.com", "number": -7, "float": 1.5, "truth": true, "list": ["a", "b"],
        "object": { "a": "b" }, "nothing": null
    }));
    let fields: HeaderMap = told.told(&Claims::verified("i", said)).unwrap().into_iter().collect();
    let text = |name: &str| std::str::from_utf8(fields[name].as_bytes()).unwrap().to_owned();
    assert_eq!(text("x-text"), "Zoë, ann@example.com");
    assert_eq!([text("x-number"), text("x-float"), text("x-truth")], ["-7", "1.5", "true"]);
    assert_eq!(text("x-list"), STANDARD.encode(r#"["a","b"]"#));
    assert_eq!([text("x-object"), text("x-deep")], [STANDARD.encode(r#"{"a":"b"}"#), "b".to_owned()]);
    assert_eq!(fields.len(), 7);
    for text in ["a\nb", "a\r\nx-admin: 1", "\u{0}", "a\tb", "a\u{7f}", "\u{85}", " a", "a "] {
        let said = object(json!({ "text": text }));
        assert_eq!(told.told(&Claims::verified("i", said)), Err(Refusal::Claim), "{text:?}");
    }
}

#[test]
fn policies_speak_of_their_ports_and_of_their_routes_requests() {
    let matches = vec![RequestMatch { path: PathMatch::Prefix("/admin".into()), when: None }];
    let route = RouteScope { hostnames: vec!["web".parse().unwrap()], matches };
    let specs = [
        AuthenticationSpec { ports: vec![80], required: false, ..policy(vec![inline()]) },
        AuthenticationSpec { routes: vec![route], ..policy(vec![inline()]) },
    ];
    let all = Authentications::after(None, &specs).unwrap();
    let none = HeaderMap::new();
    let about = |port, path| {
        let about: Vec<_> = all.about(port, &asked(path, &none)).collect();
        let pool = Pool::of(about.iter().copied());
        (about.len(), pool.required.is_some())
    };
    assert_eq!(about(80, "/"), (1, false));
    assert_eq!(about(80, "/admin/x"), (2, true));
    assert_eq!(about(81, "/admin"), (1, true));
    assert_eq!(about(81, "/"), (0, false));
    // Whatever the application makes of it.
    for path in ["//admin", "/%61dmin", "/./admin", "/x/../admin", "/admin;a=b", "/x%2Fadmin", "/a\\admin"] {
        assert_eq!(about(81, path), (1, true), "{path}");
    }
    assert!(Pool::of(std::iter::empty()).is_empty());
    assert!(Authentications::after(None, &[]).is_none());
}

#[test]
fn what_stays_the_same_keeps_its_keys() {
    let fetched = |audience: &str| IssuerSpec {
        keys: KeysSpec::Remote(remote()),
        audiences: vec![audience.into()],
        ..inline()
    };
    let first = Authentications::after(None, &[policy(vec![fetched("a"), fetched("b")])]).unwrap();
    let sources: Vec<_> = first.sources().cloned().collect();
    assert_eq!(sources.len(), 1, "one place is asked once");
    sources[0].put(Some(set(1)));
    let second = Authentications::after(Some(&first), &[policy(vec![fetched("a"), fetched("c")])]).unwrap();
    assert!(Arc::ptr_eq(&first.0[0].issuers()[0], &second.0[0].issuers()[0]));
    assert!(second.0[0].issuers().iter().all(|issuer| issuer.current().is_some()));
    let other = RemoteSpec { url: "https://other/keys".parse().unwrap(), ..remote() };
    let other = IssuerSpec { keys: KeysSpec::Remote(other), ..inline() };
    let third = Authentications::after(Some(&second), &[policy(vec![other])]).unwrap();
    assert!(third.0[0].issuers()[0].current().is_none());
}
