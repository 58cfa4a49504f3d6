use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::trace::TraceId;

use super::*;
use crate::telemetry::metrics::TlsKind;

fn span(record: &Record<'_>) -> SpanData {
    let context = Context { trace: TraceId::from(1), span: SpanId::from(2) };
    let started = UNIX_EPOCH + Duration::from_secs(97);
    let known = Known { context, parent: None, started, state: TraceState::NONE, events: Vec::new() };
    finished(record, known, &InstrumentationScope::builder("test").build())
}

fn outbound() -> Record<'static> {
    Record {
        time: UNIX_EPOCH + Duration::from_secs(100),
        duration: Duration::from_secs(3),
        direction: Direction::Outbound,
        protocol: "HTTP/1.1",
        method: "GET",
        path: "/pay?card=4111",
        authority: "payments",
        status: Some(200),
        client: Some("127.0.0.1:4000".parse().unwrap()),
        service: "default/payments:8080",
        endpoint: Some("10.0.0.7:5000".parse().unwrap()),
        destination: "spiffe://cluster.local/ns/default/sa/payments",
        tls: TlsKind::Mtls,
        attempts: 1,
        ..Record::default()
    }
}

fn inbound() -> Record<'static> {
    Record { direction: Direction::Inbound, service: "", rule: "default/allow/web", ..outbound() }
}

/// The attribute, as text.
fn get(span: &SpanData, key: &str) -> Option<String> {
    let found: Vec<_> = span.attributes.iter().filter(|of| of.key.as_str() == key).collect();
    assert!(found.len() < 2, "{key} twice");
    found.first().map(|found| found.value.to_string())
}

#[test]
fn a_request_is_a_client_span_where_it_goes_out_and_a_server_span_where_it_comes_in() {
    let out = span(&outbound());
    assert_eq!((out.span_kind.clone(), &*out.name), (SpanKind::Client, "GET"));
    assert_eq!(out.end_time, UNIX_EPOCH + Duration::from_secs(100));
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("url.full", "http://payments:8080/pay"),
        ("server.address", "payments"),
        ("server.port", "8080"),
        ("network.peer.address", "10.0.0.7"),
        ("network.peer.port", "5000"),
        ("network.protocol.version", "1.1"),
        ("tulle.destination", "spiffe://cluster.local/ns/default/sa/payments"),
        ("tulle.tls", "mtls"),
    ] {
        assert_eq!(get(&out, key).as_deref(), Some(value), "{key}");
    }
    let absent = ["url.path", "error.type", "tulle.reason", "http.request.resend_count", "tulle.verdict"];
    for key in absent {
        assert_eq!(get(&out, key), None, "{key}");
    }
    let into = span(&inbound());
    assert_eq!(into.span_kind, SpanKind::Server);
    for (key, value) in [
        ("url.path", "/pay"),
        ("url.scheme", "http"),
        ("client.address", "127.0.0.1"),
        ("network.peer.port", "4000"),
        ("server.port", "5000"),
        ("tulle.verdict", "allow"),
        ("tulle.rule", "default/allow/web"),
    ] {
        assert_eq!(get(&into, key).as_deref(), Some(value), "{key}");
    }
    let all = format!("{out:?}{into:?}");
    assert!(!all.contains("4111"), "a query may be secret");
}

#[test]
fn what_is_an_error_depends_on_whose_span_it_is() {
    let is_error = |record: &Record<'_>| matches!(span(record).status, Status::Error { .. });
    for (status, client, server) in
        [(200, false, false), (302, false, false), (404, true, false), (429, true, false), (500, true, true)]
    {
        assert_eq!(is_error(&Record { status: Some(status), ..outbound() }), client, "{status}");
        assert_eq!(is_error(&Record { status: Some(status), ..inbound() }), server, "{status}");
    }
    for code in 0..17 {
        let grpc = |record| Record { protocol: "gRPC", grpc_status: Some(code), ..record };
        assert_eq!(is_error(&grpc(outbound())), code != 0, "{code}");
        assert_eq!(is_error(&grpc(inbound())), [2, 4, 12, 13, 14, 15].contains(&code), "{code}");
    }
    let gone = Record { status: None, reason: Some(Reason::ClientClosed), ..outbound() };
    assert!(!is_error(&gone));
    let broken = Record { reason: Some(Reason::UpstreamReset), ..inbound() };
    assert!(is_error(&broken));
    let not_found = Record { status: Some(404), reason: Some(Reason::RouteNotFound), ..outbound() };
    assert_eq!(get(&span(&not_found), "error.type").as_deref(), Some("route_not_found"));
    assert_eq!(get(&span(&Record { status: Some(503), ..inbound() }), "error.type").as_deref(), Some("503"));
}

#[test]
fn a_call_of_grpc_is_told_by_the_conventions_of_rpc() {
    let call = Record {
        protocol: "gRPC",
        method: "POST",
        path: "/shop.v1.Orders/Place",
        grpc_status: Some(14),
        ..outbound()
    };
    let span = span(&call);
    assert_eq!(span.name, "shop.v1.Orders/Place");
    for (key, value) in [
        ("rpc.system.name", "grpc"),
        ("rpc.method", "shop.v1.Orders/Place"),
        ("rpc.response.status_code", "UNAVAILABLE"),
        ("error.type", "UNAVAILABLE"),
        // As it was named before.
        ("rpc.system", "grpc"),
        ("rpc.service", "shop.v1.Orders"),
        ("rpc.grpc.status_code", "14"),
    ] {
        assert_eq!(get(&span, key).as_deref(), Some(value), "{key}");
    }
    assert_eq!((get(&span, "http.request.method"), get(&span, "rpc.method_original")), (None, None));
}

#[test]
fn a_method_that_is_none_or_that_nobody_knows_is_no_name_of_a_span() {
    for (path, grpc_status) in [
        ("/shop.v1.Orders/Place", 12),
        ("/", 0),
        ("//", 0),
        ("/Orders", 0),
        ("/Orders/", 0),
        ("/Orders/Place/more", 0),
        ("/Orders/%2e%2e", 0),
        ("*", 0),
    ] {
        let call = Record { protocol: "gRPC", path, grpc_status: Some(grpc_status), ..outbound() };
        let span = span(&call);
        assert_eq!((&*span.name, get(&span, "rpc.method").as_deref()), ("grpc", Some("_OTHER")), "{path}");
        let original = path.trim_start_matches('/');
        assert_eq!(get(&span, "rpc.method_original").unwrap_or_default(), original);
        assert_eq!(get(&span, "rpc.service"), None, "{path}");
    }
    let gone = Record { protocol: "gRPC", path: "/a.B/C", reason: Some(Reason::ClientClosed), ..outbound() };
    let span = span(&gone);
    assert_eq!(get(&span, "rpc.response.status_code").as_deref(), Some("CANCELLED"));
    assert_eq!((get(&span, "error.type"), span.status), (None, Status::Unset));
}

#[test]
fn what_clients_choose_freely_is_no_name_and_no_longer_than_is_told() {
    let long = format!("/{}", "ß".repeat(2000));
    let record = Record { method: "BREW", path: &long, ..outbound() };
    let span = span(&record);
    assert_eq!(span.name, "HTTP");
    assert_eq!(get(&span, "http.request.method").as_deref(), Some("_OTHER"));
    assert_eq!(get(&span, "http.request.method_original").as_deref(), Some("BREW"));
    assert!(get(&span, "url.full").unwrap().len() <= MAX_VALUE);
}

#[test]
fn retries_and_refusals_are_told() {
    let record = Record {
        attempts: 3,
        status: Some(403),
        reason: Some(Reason::PolicyDenied),
        by: "default/payments/inbound",
        ..inbound()
    };
    let span = span(&record);
    for (key, value) in [
        ("http.request.resend_count", "2"),
        ("tulle.reason", "policy_denied"),
        ("tulle.reason_by", "default/payments/inbound"),
        ("tulle.verdict", "deny"),
    ] {
        assert_eq!(get(&span, key).as_deref(), Some(value), "{key}");
    }
}

#[test]
fn what_policy_or_a_limit_of_this_proxy_refuses_is_denied() {
    let verdict = |reason, by, rule| {
        get(&span(&Record { status: Some(403), reason, by, rule, ..inbound() }), "tulle.verdict")
    };
    let (own, other) = ("default/payments/inbound", "default/web/outbound");
    for reason in [
        Reason::PolicyDenied,
        Reason::EgressDenied,
        Reason::MtlsRequired,
        Reason::IdentityRequired,
        Reason::PolicyUnavailable,
        Reason::RateLimited,
        Reason::DeniedExternally,
        Reason::TokenRequired,
        Reason::TokenInvalid,
        Reason::JwksUnavailable,
        Reason::AuthorizerUnavailable,
        Reason::BodyTooLarge,
    ] {
        assert_eq!(verdict(Some(reason), own, "a/limit").as_deref(), Some("deny"), "{reason:?}");
        assert_eq!(
            verdict(Some(reason), other, "a/rule").as_deref(),
            Some("allow"),
            "{reason:?}: it let it through"
        );
        assert_eq!(verdict(Some(reason), other, ""), None, "{reason:?}: it was not asked");
    }
    assert_eq!(verdict(Some(Reason::UpstreamReset), own, "a/rule").as_deref(), Some("allow"));
}

#[test]
fn a_connection_is_named_by_its_service() {
    let record = Record { protocol: "TCP", method: "", path: "", authority: "", status: None, ..outbound() };
    let span = span(&record);
    assert_eq!(span.name, "TCP default/payments:8080");
    assert_eq!(get(&span, "server.address").as_deref(), Some("default/payments"));
    assert_eq!(get(&span, "network.transport").as_deref(), Some("tcp"));
    assert_eq!(get(&span, "http.request.method"), None);
    assert_eq!(span.status, Status::Unset);
}
