//! Filters on the way of requests through the outbound side, to an application without a proxy that answers what it was sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderName, Response, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::accept::{Accepted, Destination};
use crate::forward::outbound;
use crate::forward::tests;
use crate::route::{
    Asked, Backend, Cors, Filters, HeaderModifier, Listed, Match, PathMatch, PathModifier, Redirect,
    RequestMatch, Rewrite, Route, RouteKind, RouteRule, Routes, Rule, Table,
};
use crate::state::ObjectName;
use crate::wire::Body;

fn orders() -> ObjectName {
    ObjectName::new("default", "orders")
}

/// Answers with the head that it was sent, after an interim response if that wants to have hints.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (mut space, mut filled) = ([0; 4096], 0);
        while !space[..filled].ends_with(b"\r\n\r\n") {
            filled += stream.read(&mut space[filled..]).await.unwrap();
        }
        if String::from_utf8_lossy(&space[..filled]).contains("X-Hints") {
            let hints = "HTTP/1.1 103 Early Hints\r\nAccess-Control-Allow-Origin: *\r\nLink: a\r\n\r\n";
            stream.write_all(hints.as_bytes()).await.unwrap();
        }
        let head = format!("HTTP/1.1 200 OK\r\nX-Old: 1\r\nContent-Length: {filled}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&space[..filled]).await.unwrap();
    });
    address
}

fn headers(set: &'static str, remove: &'static str) -> HeaderModifier {
    HeaderModifier {
        set: vec![(HeaderName::from_static(set), "new".parse().unwrap())],
        add: Vec::new(),
        remove: vec![HeaderName::from_static(remove)],
    }
}

fn table(kind: RouteKind, rule: Filters, backend: Filters) -> Table {
    let backend = Backend {
        service: orders(),
        port: 80,
        label: "default/orders:80".into(),
        weight: u32::from(rule.redirect.is_none()),
        invalid: None,
        filters: Some(Box::new(backend)),
    };
    let name = ObjectName::new("default", "route");
    let rule = Rule {
        name: "".into(),
        route: name.clone(),
        label: "default/route".into(),
        kind,
        invalid: None,
        filters: Some(Box::new(rule)),
        backends: [backend].into(),
        requests: None,
        session: None,
    };
    let matches = vec![RequestMatch { path: PathMatch::Prefix("/v1".into()), when: None }];
    let rules = vec![RouteRule { matches, rule: Arc::new(rule) }];
    let route = Route { name, ports: vec![], hostnames: vec![], rules };
    Table::new(Routes {
        client_namespace: "default".into(),
        service: orders(),
        routes: vec![route],
        streams: Vec::new(),
    })
}

/// What a client gets for `request`.
async fn answer(table: Table, request: &str) -> String {
    let worker = tests::lone_worker("web");
    tests::knows(&worker, "orders", &[application().await]).set_routes(Some(Arc::new(table)));
    let near = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(near.local_addr().unwrap()).await.unwrap();
    tokio::spawn(async move {
        let (stream, client) = near.accept().await.unwrap();
        let destination = Destination::Service { service: orders(), port: 80 };
        outbound::serve(&worker, Accepted { stream, client, destination, at: Instant::now() }).await;
    });
    client.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn filters_change_what_they_name_and_leave_the_rest_of_a_head_as_it_came() {
    let rule = Filters {
        request: headers("x-rule", "x-gone"),
        response: headers("x-answer", "x-old"),
        redirect: None,
        rewrite: Some(Rewrite {
            hostname: Some("in.ner".parse().unwrap()),
            path: Some(PathModifier::Prefix("/".into())),
        }),
        cors: None,
        mirrors: Vec::new(),
    };
    let backend = Filters { request: headers("x-backend", "none"), ..Filters::default() };
    // What the client's `Connection` names would be taken away, were it set before.
    let request = "GET /v1/a%20b?q=1&q HTTP/1.1\r\nACCEPT:  a\r\nHOST: shop\r\nX-Gone: 1\r\nx-Rule: old\r\n\
                   Connection: close, x-backend\r\nlast: 1\r\n\r\n";
    let answer = answer(table(RouteKind::Http, rule, backend), request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("\r\nx-answer: new"), "{head}");
    assert!(!head.contains("X-Old"), "{head}");
    let expected = "GET /a%20b?q=1&q HTTP/1.1\r\nACCEPT:  a\r\nHOST: in.ner\r\nx-Rule: new\r\nlast: 1\r\n\
                    x-backend: new\r\n\r\n";
    assert_eq!(body, expected);
}

#[tokio::test]
async fn a_redirect_is_answered_without_a_backend() {
    let redirect = Redirect {
        scheme: None,
        hostname: Some("example.org".into()),
        path: Some(PathModifier::Prefix("/v2".into())),
        port: Some(8080),
        status: StatusCode::PERMANENT_REDIRECT,
    };
    let rule =
        Filters { redirect: Some(redirect), response: headers("x-answer", "x-old"), ..Filters::default() };
    let request = "GET /v1/a?q=1 HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n";
    let answer = answer(table(RouteKind::Http, rule, Filters::default()), request).await;
    assert!(answer.starts_with("HTTP/1.1 308 Permanent Redirect\r\n"), "{answer}");
    assert!(answer.contains("\r\nlocation: http://example.org:8080/v2/a?q=1\r\n"), "{answer}");
    assert!(
        answer.contains("\r\ncontent-length: 0\r\n") && answer.contains("\r\nx-answer: new\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("x-tulle-error"), "{answer}");
}

#[tokio::test]
async fn a_grpc_route_answers_its_own_errors_as_grpc_does() {
    let mut routes = table(RouteKind::Grpc, Filters::default(), Filters::default()).routes().clone();
    let rule = &mut routes.routes[0].rules[0].rule;
    *rule = Arc::new(Rule { backends: Box::default(), ..Rule::clone(rule) });
    let request = "POST /v1/Get HTTP/1.1\r\nHost: shop\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = answer(Table::new(routes), request).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.contains("\r\ngrpc-status: "), "{answer}");
    assert!(answer.contains("x-tulle-error: route_without_backend"), "{answer}");
}

#[test]
fn what_another_proxy_says_went_wrong_is_not_changed() {
    let rule = Filters { response: headers("x-answer", "x-tulle-error"), ..Filters::default() };
    let table = table(RouteKind::Http, rule, Filters::default());
    let fields = http::HeaderMap::new();
    let asked =
        Asked { method: &http::Method::GET, authority: "shop", path: "/v1", query: "", headers: &fields };
    let Match::Rule(found) = table.find(80, &asked) else { panic!("the rule takes it") };
    for (told, expected) in [(true, false), (false, true)] {
        let mut response = Response::new(Body::empty());
        if told {
            response.headers_mut().insert("x-tulle-error", "connect_failed".parse().unwrap());
        }
        super::response(&found, &found.rule.backends[0], None, &mut response);
        assert_eq!(response.headers().contains_key("x-answer"), expected);
    }
}

#[tokio::test]
async fn the_application_says_in_no_response_who_may_read_it_where_the_route_does() {
    let none = || Listed::These(None);
    let cors = Cors {
        origins: vec!["https://a.example".parse().unwrap()],
        credentials: false,
        methods: none(),
        headers: none(),
        expose: none(),
        max_age: 5,
    };
    let request = "GET /v1/x HTTP/1.1\r\nHost: orders\r\nX-Hints: 1\r\nConnection: close\r\n\r\n";
    for (cors, expected) in [
        (Some(cors), "HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\n"),
        (None, "HTTP/1.1 103 Early Hints\r\nAccess-Control-Allow-Origin: *\r\nLink: a\r\n\r\n"),
    ] {
        let filters = Filters { cors, ..Filters::default() };
        let said = answer(table(RouteKind::Http, filters, Filters::default()), request).await;
        assert!(said.starts_with(expected), "{said}");
    }
}
