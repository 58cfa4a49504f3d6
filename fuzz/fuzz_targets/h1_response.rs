//! Response heads. However the bytes arrive, they are read the same; what is taken, httparse takes too and reads the same;
//! and what is passed on is read like what came.
#![no_main]

use bytes::{Bytes, BytesMut};
use http::{Method, Request, Response, header};
use http_body_util::Empty;
use libfuzzer_sys::fuzz_target;
use tulle_fuzz::{FRAMING, Unread, Wire, assert_strict, fields_by_httparse, fields_without, pieces, run};
use tulle_fuzz::{Fields, LIMITS};
use tulle_proxy::wire::h1::{HeadError, Length, Limits, ResponseHead, Scan, Settings, serve};

fuzz_target!(|data: &[u8]| {
    for method in [Method::GET, Method::HEAD, Method::CONNECT] {
        let whole = read([data], &method, &LIMITS);
        for cut in [read(data.chunks(1), &method, &LIMITS), read(pieces(data), &method, &LIMITS)] {
            match (&whole, &cut) {
                (Ok(Some((head, rest))), Ok(Some((cut, cut_rest)))) => {
                    assert_eq!((said(head), head.length, rest), (said(cut), cut.length, cut_rest));
                    assert_eq!(head.keep_alive, cut.keep_alive);
                }
                (Ok(None), Ok(None)) | (Err(_), Err(_)) => {}
                // What cannot become a head need not be seen at once.
                (Err(_), Ok(None)) => {}
                (whole, cut) => panic!("in one piece {whole:?}, cut up {cut:?}"),
            }
        }
        if let Ok(Some((head, rest))) = whole {
            taken(head, &data[..data.len() - rest], &method);
        }
    }
});

fn read<'a>(
    pieces: impl IntoIterator<Item = &'a [u8]>,
    method: &Method,
    limits: &Limits,
) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    let (mut scan, mut buf) = (Scan::default(), BytesMut::new());
    let mut pieces = pieces.into_iter();
    while let Some(piece) = pieces.next() {
        buf.extend_from_slice(piece);
        if let Some(head) = scan.response(&mut buf, method, limits)? {
            let rest = buf.len() + pieces.map(<[u8]>::len).sum::<usize>();
            return Ok(Some((head, rest)));
        }
    }
    Ok(None)
}

/// All that a head says, but for the fields that each hop makes anew.
fn said(head: &ResponseHead) -> (u16, Fields) {
    let own = [&FRAMING[..], &[header::CONNECTION]].concat();
    (head.status.as_u16(), fields_without(&head.headers, &own))
}

fn taken(head: ResponseHead, bytes: &[u8], method: &Method) {
    assert_strict(bytes);
    let fields = fields_without(&head.headers, &[]);
    assert_eq!(Some(&fields), fields_by_httparse(bytes, false).as_ref());
    let framing = fields.iter().filter(|(name, _)| FRAMING.iter().any(|own| own == name.as_str())).count();
    assert!(framing <= 1, "the body's length is told in two ways");
    if head.length == Length::UntilEof {
        assert!(!head.keep_alive && framing == 0);
    }
    // Interim responses take another way; and these two are not answers but the end of HTTP.
    if head.status.is_informational() || (*method == Method::CONNECT && head.status.is_success()) {
        return;
    }

    let (before, length) = (said(&head), head.length);
    let reason = |bytes: &[u8]| {
        let line = bytes.split(|byte| *byte == b'\r').next().unwrap_or_default();
        line.get(13..).unwrap_or_default().to_vec()
    };
    let passed = pass_on(head, method);
    assert_strict(&passed);
    assert_eq!(reason(&passed), reason(bytes));
    // Chunks are told in a field that did not come.
    let limits = Limits { head: 2 * LIMITS.head, fields: LIMITS.fields + 1, ..LIMITS };
    let (again, rest) = read([&*passed], method, &limits).expect("is well-formed").expect("is whole");
    assert_eq!((said(&again), rest), (before, 0));
    // What ends with its connection is put in chunks, so that it can be seen to be whole.
    let expected = if length == Length::UntilEof { Length::Chunked } else { length };
    assert_eq!(again.length, expected);
}

/// What a proxy that changes nothing answers.
fn pass_on(head: ResponseHead, method: &Method) -> Vec<u8> {
    let mut response = Response::new(Unread::of(head.length));
    *response.status_mut() = head.status;
    *response.version_mut() = head.version;
    *response.headers_mut() = head.headers;
    response.extensions_mut().insert(head.original);
    let mut response = Some(response);
    let target = if *method == Method::CONNECT { "a:1" } else { "/" };
    let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
    let (wire, written) = Wire::new([], false);
    let handler = |_: Request<_>| std::future::ready(response.take().expect("is asked for once"));
    let refuse = |_| Response::new(Empty::<Bytes>::new());
    let settings = Settings { limits: LIMITS, ..Settings::default() };
    run(serve(wire, request.as_bytes(), settings, handler, refuse, std::future::pending()));
    written.take()
}
