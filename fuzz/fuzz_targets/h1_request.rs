//! Request heads. However the bytes arrive, they are read the same; what is taken, httparse and hyper take too, and read the
//! same; and what is passed on is read like what came.
#![no_main]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use http::{Request, Response, Uri};
use http_body::Body as _;
use http_body_util::Empty;
use libfuzzer_sys::fuzz_target;
use tulle_fuzz::{FRAMING, Unread, Wire, assert_strict, fields_by_httparse, fields_without, pieces, run};
use tulle_fuzz::{Fields, LIMITS};
use tulle_proxy::wire::h1::{Client, HeadError, Length, RequestHead, Scan};

fuzz_target!(|data: &[u8]| {
    let whole = read([data]);
    for cut in [read(data.chunks(1)), read(pieces(data))] {
        match (&whole, &cut) {
            (Ok(Some((head, rest))), Ok(Some((cut, cut_rest)))) => {
                assert_eq!((said(head), rest), (said(cut), cut_rest));
            }
            (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
            // What cannot become a head need not be seen at once.
            (Err(_), Ok(None)) => {}
            (whole, cut) => panic!("in one piece {whole:?}, cut up {cut:?}"),
        }
    }
    let hyper = by_hyper(data);
    match whole {
        Ok(Some((head, rest))) => taken(head, &data[..data.len() - rest], &hyper),
        Ok(None) => assert!(!matches!(hyper, ByHyper::Taken { .. }), "hyper takes what we wait for"),
        Err(_) => {}
    }
});

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Option<(RequestHead, usize)>, HeadError> {
    let (mut scan, mut buf) = (Scan::default(), BytesMut::new());
    let mut pieces = pieces.into_iter();
    while let Some(piece) = pieces.next() {
        buf.extend_from_slice(piece);
        if let Some(head) = scan.request(&mut buf, &LIMITS)? {
            let rest = buf.len() + pieces.map(<[u8]>::len).sum::<usize>();
            return Ok(Some((head, rest)));
        }
    }
    Ok(None)
}

/// All that a head says, but for the fields that frame it.
fn said(head: &RequestHead) -> (String, Fields, Vec<Vec<u8>>, Length, bool, bool) {
    let line = format!("{} {} {:?}", head.method, head.uri, head.version);
    let framing = |name: &&[u8]| FRAMING.iter().any(|own| name.eq_ignore_ascii_case(own.as_str().as_bytes()));
    let names = head.original.names().filter(|name| !framing(name)).map(<[u8]>::to_vec);
    let fields = fields_without(&head.headers, &FRAMING);
    (line, fields, names.collect(), head.length, head.keep_alive, head.expects_continue)
}

fn taken(head: RequestHead, bytes: &[u8], hyper: &ByHyper) {
    assert_strict(bytes);
    let fields = fields_without(&head.headers, &[]);
    assert_eq!(Some(&fields), fields_by_httparse(bytes, true).as_ref());
    let framing = fields.iter().filter(|(name, _)| FRAMING.iter().any(|own| own == name.as_str())).count();
    assert!(framing <= 1, "the body's length is told in two ways");
    let ByHyper::Taken { line, fields: theirs, length } = hyper else {
        panic!("hyper refuses it: {hyper:?}")
    };
    assert_eq!(*line, (head.method.to_string(), head.uri.clone()));
    assert_eq!(*theirs, fields);
    assert_eq!(*length, head.length);

    let before = said(&head);
    let passed = pass_on(head);
    assert_strict(&passed);
    let (again, rest) = read([&*passed]).expect("is well-formed").expect("is whole");
    assert_eq!(rest, 0);
    assert_eq!(said(&again), before);
}

/// What a proxy that changes nothing sends.
fn pass_on(head: RequestHead) -> Vec<u8> {
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = head.uri;
    *request.version_mut() = head.version;
    *request.headers_mut() = head.headers;
    request.extensions_mut().insert(head.original);
    let (wire, written) = Wire::new([], false);
    let sent = run(Client::new(wire, LIMITS).send(&mut request, Unread::of(head.length), |_| {}, |_| {}));
    assert!(sent.is_none(), "nobody has answered");
    written.take()
}

#[derive(Debug)]
enum ByHyper {
    Taken { line: (String, Uri), fields: Fields, length: Length },
    Refused,
    Waits,
}

fn by_hyper(data: &[u8]) -> ByHyper {
    let seen = Arc::new(Mutex::new(None));
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
        let length = match request.body().size_hint().exact() {
            Some(length) => Length::Exact(length),
            None => Length::Chunked,
        };
        let line = (request.method().to_string(), request.uri().clone());
        let fields = fields_without(request.headers(), &[]);
        *seen.lock().expect("one thread") = Some(ByHyper::Taken { line, fields, length });
        std::future::pending::<Result<Response<Empty<Bytes>>, Infallible>>()
    });
    let (wire, written) = Wire::new([data], false);
    let io = hyper_util::rt::TokioIo::new(wire);
    let over = run(hyper::server::conn::http1::Builder::new().serve_connection(io, service));
    match seen.lock().expect("one thread").take() {
        Some(taken) => taken,
        None if over.is_some() || !written.take().is_empty() => ByHyper::Refused,
        None => ByHyper::Waits,
    }
}
