//! A whole HTTP/1 connection: a server that is given the bytes in pieces must see the very requests that are in them, and
//! answer each one. Two parties that divide the same bytes differently are how requests are smuggled.
#![no_main]

use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use libfuzzer_sys::fuzz_target;
use tulle_fuzz::{LIMITS, Wire, pieces, run};
use tulle_proxy::wire::h1::{Body, Closed, Decoder, HeadError, Scan, Settings, Step, serve};

/// Method, target and body of a request that was whole.
type Whole = (String, String, Vec<u8>);

/// What a server saw.
#[derive(Default)]
struct Seen {
    whole: Vec<Whole>,
    /// Requests whose bodies broke off.
    broken: usize,
}

fuzz_target!(|data: &[u8]| {
    let expected = one_by_one(data);
    for cut in [vec![data], data.chunks(1).collect(), pieces(data).collect()] {
        let (seen, closed, written) = served(&cut);
        assert_eq!(seen.whole, expected.whole);
        let answers = answers(&written, &expected.whole);
        let refused = matches!(closed, Some(Closed::Refused(_)));
        assert_eq!(answers, seen.whole.len() + seen.broken + usize::from(refused), "{closed:?}");
        if expected.refused {
            // What cannot become a head need not be seen at once.
            assert!(refused || matches!(closed, Some(Closed::Truncated)), "{closed:?}");
        }
    }
});

struct OneByOne {
    whole: Vec<Whole>,
    /// The head after the last whole request is refused.
    refused: bool,
}

/// The requests in `data`, with all of it at hand.
fn one_by_one(data: &[u8]) -> OneByOne {
    let mut buf = BytesMut::from(data);
    let mut whole = Vec::new();
    loop {
        let head = match Scan::default().request(&mut buf, &LIMITS) {
            Ok(Some(head)) => head,
            Ok(None) => return OneByOne { whole, refused: false },
            Err(_) => return OneByOne { whole, refused: true },
        };
        let (mut decoder, mut body) = (Decoder::new(head.length), Vec::new());
        loop {
            match decoder.decode(&mut buf, &LIMITS) {
                Ok(Step::Data(data)) => body.extend_from_slice(&data),
                Ok(Step::Trailers(_)) => {}
                Ok(Step::End) => break,
                Ok(Step::More) | Err(_) => return OneByOne { whole, refused: false },
            }
        }
        whole.push((head.method.to_string(), head.uri.to_string(), body));
        if !head.keep_alive || head.method == Method::CONNECT {
            return OneByOne { whole, refused: false };
        }
    }
}

/// What a server makes of them.
fn served(cut: &[&[u8]]) -> (Seen, Option<Closed>, Vec<u8>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    let (wire, written) = Wire::new(cut.iter().copied(), true);
    let handler = |request: Request<Body>| {
        let seen = Arc::clone(&seen);
        async move {
            let (parts, body) = request.into_parts();
            let Ok(body) = body.collect().await else {
                seen.lock().expect("one thread").broken += 1;
                return text(StatusCode::BAD_REQUEST);
            };
            let whole = (parts.method.to_string(), parts.uri.to_string(), body.to_bytes().to_vec());
            seen.lock().expect("one thread").whole.push(whole);
            text(StatusCode::OK)
        }
    };
    let refuse = |error: HeadError| text(error.status());
    let settings = Settings { limits: LIMITS, ..Settings::default() };
    let closed = run(serve(wire, &[], settings, handler, refuse, std::future::pending()));
    let seen = std::mem::take(&mut *seen.lock().expect("one thread"));
    (seen, closed, written.take())
}

fn text(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(b"hello")));
    *response.status_mut() = status;
    response
}

/// How many final responses there are, each as a client reads it.
fn answers(written: &[u8], requests: &[Whole]) -> usize {
    let mut buf = BytesMut::from(written);
    let mut count = 0;
    let mut methods = requests.iter().map(|(method, ..)| method.parse().expect("is one"));
    let mut method = methods.next().unwrap_or(Method::GET);
    while !buf.is_empty() {
        let head = Scan::default().response(&mut buf, &method, &LIMITS).expect("is well-formed");
        let head = head.expect("is whole");
        if head.status.is_informational() {
            continue;
        }
        let mut decoder = Decoder::new(head.length);
        loop {
            match decoder.decode(&mut buf, &LIMITS).expect("is well-formed") {
                Step::End => break,
                Step::More => panic!("the answer is not whole"),
                Step::Data(_) | Step::Trailers(_) => {}
            }
        }
        count += 1;
        method = methods.next().unwrap_or(Method::GET);
    }
    count
}
