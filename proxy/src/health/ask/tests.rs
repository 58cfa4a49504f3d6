use std::net::SocketAddr;
use std::sync::Arc;

use http_body_util::{Either, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::health::tests::dial;
use crate::state::Peer;
use crate::telemetry::trace::{self, How, Propagation, Sampler, Spans};

fn check(question: Question, framing: Framing, timeout: Duration) -> Check {
    Check {
        check: HealthCheck {
            question,
            interval: Duration::from_secs(1),
            timeout,
            healthy_threshold: 1,
            unhealthy_threshold: 1,
        },
        framing,
        host: Authority::from_static("orders.shop"),
    }
}

const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

fn http(path: &'static str) -> Question {
    Question::Http { path: PathAndQuery::from_static(path), host: None }
}

async fn asked(address: SocketAddr, check: &Check) -> Result<(), Failure> {
    traced(address, check, None).await
}

async fn traced(address: SocketAddr, check: &Check, tracer: Option<&Tracer>) -> Result<(), Failure> {
    ask(&dial(), &Endpoint::new(address, Peer::Plaintext, None, "".into(), 0), check, tracer).await
}

fn outcome(result: &Result<(), Failure>) -> &'static str {
    result.as_ref().err().map_or("passed", Failure::outcome)
}

/// A server that reads a request's head, and answers each connection with these bytes; ends the connection where `ends`.
/// What it has read.
async fn says(
    answer: &'static [u8],
    ends: bool,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            let _ = heard.send(String::from_utf8(head).unwrap());
            let _ = stream.write_all(answer).await;
            if !ends {
                open.push(stream);
            }
        }
    });
    (address, hears)
}

#[tokio::test]
async fn answers_of_http_pass_from_200_to_399() {
    let cases: &[(&[u8], bool, &str)] = &[
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", false, "passed"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", false, "passed"),
        (b"HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n", false, "passed"),
        (b"HTTP/1.1 399 Odd\r\ncontent-length: 0\r\n\r\n", false, "passed"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false, "passed"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", true, "passed"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nbroken", true, "passed"),
        (b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", false, "refused"),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", false, "refused"),
        (b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", false, "refused"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false, "broken"),
        (b"", true, "broken"),
    ];
    for (answer, ends, expected) in cases {
        let (address, mut heard) = says(answer, *ends).await;
        let result = asked(address, &check(http("/healthz?full"), Framing::Http1, LONG)).await;
        assert_eq!(outcome(&result), *expected, "{}: {result:?}", String::from_utf8_lossy(answer));
        let head = heard.recv().await.unwrap();
        let expected = "GET /healthz?full HTTP/1.1\r\nhost: orders.shop\r\nuser-agent: tulle-health-check\r\nconnection: \
                        close\r\n\r\n";
        assert_eq!(head, expected);
    }
}

#[tokio::test]
async fn a_host_of_its_own_is_sent() {
    let (address, mut heard) = says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let question = Question::Http {
        path: PathAndQuery::from_static("/"),
        host: Some(Authority::from_static("admin.example:8080")),
    };
    asked(address, &check(question, Framing::Http1, LONG)).await.unwrap();
    assert!(heard.recv().await.unwrap().contains("\r\nhost: admin.example:8080\r\n"));
}

#[tokio::test]
async fn what_does_not_answer_in_time_fails_and_what_has_said_enough_does_not() {
    let (silent, _heard) = says(b"", false).await;
    let result = asked(silent, &check(http("/"), Framing::Http1, SHORT)).await;
    assert!(matches!(result, Err(Failure::Late(SHORT))), "{result:?}");
    let (endless, _heard) = says(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nmore", false).await;
    asked(endless, &check(http("/"), Framing::Http1, SHORT)).await.unwrap();
}

#[tokio::test]
async fn a_connection_is_all_that_tcp_asks_for() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    asked(address, &check(Question::Tcp, Framing::Http1, LONG)).await.unwrap();
    let (mut stream, _) = listener.accept().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "an orderly end, without a byte");
    drop(listener);
    let result = asked(address, &check(Question::Tcp, Framing::Http1, LONG)).await;
    assert_eq!(outcome(&result), "connect_failed", "{result:?}");
    // Without a certificate of our own, nobody of the mesh is reached, least of all in plain text.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let id = tulle_certs::SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap();
    let meshed = Endpoint::new(listener.local_addr().unwrap(), Peer::Mesh(id), None, "".into(), 0);
    let result = ask(&dial(), &meshed, &check(Question::Tcp, Framing::Http1, LONG), None).await;
    assert!(matches!(result, Err(Failure::Connect(ConnectError::NoIdentity(_)))), "{result:?}");
    assert_eq!(outcome(&result), "not_asked");
}

/// What a server of HTTP/2 answers to everything.
#[derive(Clone)]
struct Says {
    status: u16,
    headers: &'static [(&'static str, &'static str)],
    body: Option<Vec<u8>>,
    trailers: &'static [(&'static str, &'static str)],
}

async fn http2(
    says: Says,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<(http::request::Parts, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (heard, hears) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (says, heard) = (says.clone(), heard.clone());
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let (says, heard) = (says.clone(), heard.clone());
                async move {
                    let (head, body) = request.into_parts();
                    let _ = heard.send((head, body.collect().await?.to_bytes()));
                    let fields = |fields: &[(&'static str, &'static str)]| -> HeaderMap {
                        let fields = fields.iter().map(|(name, value)| {
                            (HeaderName::from_static(name), HeaderValue::from_static(value))
                        });
                        fields.collect()
                    };
                    let body = match says.body {
                        None => Either::Left(Full::default()),
                        Some(body) => {
                            let trailers = fields(says.trailers);
                            let body = Full::new(Bytes::from(body));
                            Either::Right(body.with_trailers(async move { Some(Ok(trailers)) }))
                        }
                    };
                    let mut answer = Response::new(body);
                    *answer.status_mut() = StatusCode::from_u16(says.status).unwrap();
                    *answer.headers_mut() = fields(says.headers);
                    Ok::<_, hyper::Error>(answer)
                }
            });
            let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, hears)
}

#[tokio::test]
async fn only_serving_passes_of_what_grpc_says() {
    let said = |status: i32| Some(frame(&HealthCheckResponse { status }).to_vec());
    let ok = Says {
        status: 200,
        headers: &[("content-type", "application/grpc")],
        body: said(1),
        trailers: &[("grpc-status", "0")],
    };
    let cases = [
        (ok.clone(), "passed", ""),
        (Says { body: said(0), ..ok.clone() }, "refused", "it answered that it is UNKNOWN"),
        (Says { body: said(2), ..ok.clone() }, "refused", "it answered that it is NOT_SERVING"),
        (Says { body: said(3), ..ok.clone() }, "refused", "it answered that it is SERVICE_UNKNOWN"),
        (Says { body: said(7), ..ok.clone() }, "refused", "it answered that it is UNKNOWN"),
        (
            Says { headers: &[("grpc-status", "12")], body: None, ..ok.clone() },
            "refused",
            "it answered with gRPC status 12",
        ),
        (
            Says { trailers: &[("grpc-status", "5")], ..ok.clone() },
            "refused",
            "it answered with gRPC status 5",
        ),
        (Says { status: 404, body: None, ..ok.clone() }, "refused", "it answered 404 Not Found"),
        (Says { trailers: &[], ..ok.clone() }, "refused", "no grpc-status"),
        (Says { body: Some(vec![0, 0, 0, 0, 9, 8]), ..ok.clone() }, "refused", "it has no message"),
        (Says { body: Some(vec![0, 0]), ..ok.clone() }, "refused", "it has no message"),
        (Says { body: Some(vec![1, 0, 0, 0, 2, 8, 1]), ..ok.clone() }, "refused", "it has no message"),
        (Says { body: Some(vec![0, 0, 0, 0, 1, 8]), ..ok.clone() }, "refused", "not one of grpc.health"),
    ];
    for (says, expected, cause) in cases {
        let (address, mut heard) = http2(says).await;
        let question = Question::Grpc { service: "shop.Orders".into() };
        // What the port speaks otherwise does not matter.
        let result = asked(address, &check(question, Framing::Http1, LONG)).await;
        assert_eq!(outcome(&result), expected, "{result:?}");
        assert!(result.err().map_or(String::new(), |error| error.to_string()).contains(cause));
        let (head, body) = heard.recv().await.unwrap();
        assert_eq!(head.uri, "http://orders.shop/grpc.health.v1.Health/Check");
        assert_eq!(head.method, Method::POST);
        assert_eq!(head.headers["te"], "trailers");
        assert_eq!(head.headers["content-type"], "application/grpc");
        assert_eq!(head.headers["user-agent"], "tulle-health-check");
        assert_eq!(&body[..], b"\0\0\0\0\x0d\x0a\x0bshop.Orders");
    }
}

#[tokio::test]
async fn where_requests_are_traced_checks_say_that_they_are_not() {
    let how = How {
        sampler: Sampler::named("always_on", 1.0).unwrap(),
        keeps_sampler: false,
        propagation: Propagation::AsItComes,
        connections: true,
    };
    let tracer = Tracer::new(how, Arc::new(Spans::new(trace::Limits::default(), Arc::default())));
    let is_declined = |value: &str| value.starts_with("00-") && value.ends_with("-00") && value.len() == 55;

    let (address, mut heard) = says(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", false).await;
    let plain = check(http("/"), Framing::Http1, LONG);
    let mut said = Vec::new();
    for _ in 0..2 {
        traced(address, &plain, Some(&tracer)).await.unwrap();
        let head = heard.recv().await.unwrap();
        let value = head.lines().find_map(|line| line.strip_prefix("traceparent: ")).unwrap().to_owned();
        assert!(is_declined(&value), "{head}");
        said.push(value);
    }
    assert_ne!(said[0], said[1], "each is of a trace of its own");

    let answer = Says { status: 200, headers: &[], body: None, trailers: &[] };
    let (address, mut heard) = http2(answer).await;
    for question in [http("/"), Question::Grpc { service: "".into() }] {
        drop(traced(address, &check(question, Framing::Http2, LONG), Some(&tracer)).await);
        let (head, _) = heard.recv().await.unwrap();
        assert!(is_declined(head.headers["traceparent"].to_str().unwrap()), "{head:?}");
    }
}

#[tokio::test]
async fn a_port_of_http2_is_asked_in_http2() {
    for (status, expected) in [(200, "passed"), (503, "refused")] {
        let (address, mut heard) = http2(Says { status, headers: &[], body: None, trailers: &[] }).await;
        let result = asked(address, &check(http("/healthz"), Framing::Http2, LONG)).await;
        assert_eq!(outcome(&result), expected, "{result:?}");
        assert_eq!(heard.recv().await.unwrap().0.uri, "http://orders.shop/healthz");
    }
}
