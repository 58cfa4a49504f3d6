use serde_json::{Value, json};

use super::*;
use crate::finding::{Note, Severity};

/// A set of one key, which verifies nothing.
const SET: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","kid":"a"}]}"#;

fn read(spec: Value) -> (Authentication, Vec<Note>) {
    let spec: RequestAuthenticationSpec = serde_json::from_value(spec).unwrap();
    let mut notes = Notes::default();
    let read = Authentication::read(&NamespacedName::new("shop", "p"), &spec, &mut notes);
    (read, notes.into_inner())
}

fn one(issuer: Value) -> Value {
    json!({ "issuers": [issuer] })
}

fn fetched() -> Value {
    json!({ "issuer": "https://a", "audiences": ["orders"], "jwks": { "url": "https://a/keys" } })
}

#[test]
fn what_is_written_goes_on_the_wire() {
    let (read, notes) = read(json!({
        "mode": "DryRun",
        "required": false,
        "issuers": [
            {
                "issuer": "https://a",
                "audiences": ["orders"],
                "jwks": { "inline": SET },
                "from": [{ "header": "X-Token" }, { "header": "Authorization", "prefix": "Token " }],
                "claimsToHeaders": [
                    { "header": "X-User", "claim": "sub" },
                    { "header": "x-roles", "claim": "realm_access.roles" },
                    { "header": "x-org", "claimPath": ["https://a/org"] },
                ],
                "forward": true,
                "leeway": "0s",
            },
            {
                "issuer": "https://b",
                "audiences": ["orders"],
                "jwks": {
                    "url": "http://keycloak.auth:8080/keys",
                    "service": { "namespace": "auth", "name": "keycloak", "port": 8080 },
                    "refresh": "1m",
                    "timeout": "2s",
                },
            },
        ],
    }));
    assert_eq!(notes, []);
    assert_eq!((read.required, read.dry_run), (false, true));
    let [first, second] = &read.issuers[..] else { panic!() };
    let places: Vec<_> = first.from.iter().map(|place| (&*place.header, &*place.prefix)).collect();
    assert_eq!(places, [("x-token", ""), ("authorization", "Token ")]);
    let claims: Vec<_> = first
        .claims_to_headers
        .iter()
        .map(|one| (&*one.header, one.claim.as_ref().unwrap().elements.join("|")))
        .collect();
    let expected = [
        ("x-user", "sub".to_owned()),
        ("x-roles", "realm_access|roles".to_owned()),
        ("x-org", "https://a/org".to_owned()),
    ];
    assert_eq!(claims, expected);
    assert_eq!((first.forward, first.leeway), (true, Some(prost_types::Duration { seconds: 0, nanos: 0 })));
    assert_eq!((second.forward, second.leeway, &second.from[..]), (false, None, &[][..]));
    let services: Vec<_> = read.services().collect();
    assert_eq!(services, [(1, NamespacedName::new("auth", "keycloak"), 8080)]);
}

#[test]
fn a_token_is_needed_unless_it_is_said_that_it_is_not() {
    let (read, notes) = read(one(fetched()));
    assert_eq!((read.required, read.dry_run, notes.len()), (true, false, 0));
    let closed = Authentication::closed();
    assert!(closed.required && !closed.dry_run && closed.issuers.is_empty());
}

#[test]
fn whose_tokens_are_for_anybody_is_told() {
    let (_, notes) = read(one(json!({ "issuer": "https://a", "jwks": { "url": "https://a/keys" } })));
    assert!(
        matches!(&notes[..], [one] if one.severity == Severity::Warning && one.field == "spec.issuers[0].audiences")
    );
}

#[test]
fn what_no_proxy_could_use_is_refused_where_it_stands() {
    let with = |field: &str, value: Value| {
        let mut issuer = fetched();
        issuer[field] = value;
        one(issuer)
    };
    let jwks = |jwks: Value| with("jwks", jwks);
    let url = |url: &str| jwks(json!({ "url": url }));
    let private = SET.replace("\"kid\"", "\"d\":\"AQ\",\"kid\"");
    let service = json!({ "name": "keycloak", "port": 80 });
    for (spec, field) in [
        (json!({ "issuers": [] }), "spec.issuers"),
        (json!({ "issuers": [fetched(), fetched()] }), "spec.issuers[1]"),
        (with("issuer", json!("")), "spec.issuers[0].issuer"),
        (with("audiences", json!(["a", ""])), "spec.issuers[0].audiences[1]"),
        (with("leeway", json!("10m")), "spec.issuers[0].leeway"),
        (with("leeway", json!("soon")), "spec.issuers[0].leeway"),
        (with("from", json!([{ "header": "a b" }])), "spec.issuers[0].from[0].header"),
        (with("from", json!([{ "header": "a", "prefix": "a\nb" }])), "spec.issuers[0].from[0].prefix"),
        (with("from", json!([{ "header": "a", "prefix": " a" }])), "spec.issuers[0].from[0].prefix"),
        (with("claimsToHeaders", json!([{ "header": "x" }])), "spec.issuers[0].claimsToHeaders[0]"),
        (
            with("claimsToHeaders", json!([{ "header": "x", "claim": "a", "claimPath": ["b"] }])),
            "spec.issuers[0].claimsToHeaders[0]",
        ),
        (
            with("claimsToHeaders", json!([{ "header": "x", "claim": "a..b" }])),
            "spec.issuers[0].claimsToHeaders[0].claim",
        ),
        (
            with("claimsToHeaders", json!([{ "header": "x", "claimPath": [] }])),
            "spec.issuers[0].claimsToHeaders[0].claimPath",
        ),
        (
            with("claimsToHeaders", json!([{ "header": "Host", "claim": "a" }])),
            "spec.issuers[0].claimsToHeaders[0].header",
        ),
        (
            with("claimsToHeaders", json!([{ "header": "x-tulle-error", "claim": "a" }])),
            "spec.issuers[0].claimsToHeaders[0].header",
        ),
        (
            with(
                "claimsToHeaders",
                json!([{ "header": "x", "claim": "a" }, { "header": "X", "claim": "b" }]),
            ),
            "spec.issuers[0].claimsToHeaders[1].header",
        ),
        (jwks(json!({})), "spec.issuers[0].jwks"),
        (jwks(json!({ "inline": SET, "url": "https://a/keys" })), "spec.issuers[0].jwks"),
        (jwks(json!({ "inline": SET, "refresh": "1m" })), "spec.issuers[0].jwks.refresh"),
        (jwks(json!({ "inline": "{}" })), "spec.issuers[0].jwks.inline"),
        (jwks(json!({ "inline": "keys" })), "spec.issuers[0].jwks.inline"),
        (jwks(json!({ "inline": private })), "spec.issuers[0].jwks.inline"),
        (jwks(json!({ "inline": r#"{"keys":[{"kty":"oct","k":"AQ"}]}"# })), "spec.issuers[0].jwks.inline"),
        (url(""), "spec.issuers[0].jwks.url"),
        (url("keys"), "spec.issuers[0].jwks.url"),
        (url("/keys"), "spec.issuers[0].jwks.url"),
        (url("ftp://a/keys"), "spec.issuers[0].jwks.url"),
        (url("http://a/keys"), "spec.issuers[0].jwks.url"),
        (url("https://u:p@a/keys"), "spec.issuers[0].jwks.url"),
        (jwks(json!({ "url": "https://a/keys", "service": service })), "spec.issuers[0].jwks.url"),
        (
            jwks(json!({ "url": "http://a/keys", "service": { "name": "A", "port": 80 } })),
            "spec.issuers[0].jwks.service.name",
        ),
        (
            jwks(json!({ "url": "http://a/keys", "service": { "name": "a", "port": 0 } })),
            "spec.issuers[0].jwks.service.port",
        ),
        (
            jwks(json!({ "url": "http://a/keys", "service": service, "roots": "x" })),
            "spec.issuers[0].jwks.roots",
        ),
        (jwks(json!({ "url": "https://a/keys", "roots": "no certificate" })), "spec.issuers[0].jwks.roots"),
        (jwks(json!({ "url": "https://a/keys", "refresh": "1s" })), "spec.issuers[0].jwks.refresh"),
        (jwks(json!({ "url": "https://a/keys", "timeout": "0s" })), "spec.issuers[0].jwks.timeout"),
        (jwks(json!({ "url": "https://a/keys", "timeout": "1m" })), "spec.issuers[0].jwks.timeout"),
    ] {
        let (_, notes) = read(spec.clone());
        let errors: Vec<&Note> = notes.iter().filter(|note| note.severity == Severity::Error).collect();
        assert!(matches!(&errors[..], [one] if one.field == field), "{spec}: {notes:?}");
    }
}

#[test]
fn a_key_that_is_not_used_is_told() {
    let set = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"},{"kty":"RSA","n":"AQ","e":"AQAB"}]}"#;
    let mut issuer = fetched();
    issuer["jwks"] = json!({ "inline": set });
    let (_, notes) = read(one(issuer));
    assert!(
        matches!(&notes[..], [one] if one.severity == Severity::Warning && one.message.contains("keys[1]"))
    );
}
