//! Messages that are nearly right, by seed: never a panic, never laxer than httparse, and what is taken is written so
//! that it is read the same once more.

use bytes::BytesMut;
use http::{HeaderMap, Method};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::super::coding::{Decoder, Step};
use super::super::head::{Length, Limits, Scan};
use super::super::original::{Fields, Told, write_request_line, write_status_line};

const REQUESTS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a/b?c=d HTTP/1.1\r\nHost: a:80\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "POST / HTTP/1.1\r\nHost: [::1]:1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA: b\r\n\r\n",
    "CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nExpect: 100-continue\r\n\r\n",
    "GET http://a/b HTTP/1.0\r\nX-A:  b c \r\nX-a: d\r\nCookie: e=f; g=\"h\"\r\n\r\n",
];

const RESPONSES: &[&str] = &[
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nKeep-Alive: timeout=5\r\n\r\nhello",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    "HTTP/1.0 404 Nicht gefunden\r\nConnection: close\r\nX-A: \r\n\r\ngone",
    "HTTP/1.1 200\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n0\r\n\r\n",
];

/// Bytes that mean something.
const PIECES: &[&[u8]] = &[
    b"\r",
    b"\n",
    b"\r\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"0",
    b"9",
    b"-",
    b"+",
    b"#",
    b"%",
    b"@",
    b"/",
    b"*",
    b"HTTP/1.1",
    b"HTTP/1.0",
    b"Host: b\r\n",
    b"Content-Length: 4\r\n",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding",
    b"Content-Length",
    b"GET ",
    b"CONNECT ",
    b" x\r\n",
];

fn mutated(message: &str, rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = message.as_bytes().to_vec();
    for _ in 0..rng.random_range(0..4) {
        let at = rng.random_range(0..=bytes.len());
        let to = (at + rng.random_range(0..6)).min(bytes.len());
        match rng.random_range(0..4) {
            0 => drop(bytes.drain(at..to)),
            1 => drop(bytes.splice(at..at, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
            2 => drop(bytes.splice(at..to, PIECES[rng.random_range(0..PIECES.len())].iter().copied())),
            _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = rng.random()),
        }
    }
    bytes
}

/// The fields as httparse reads them; `None`: it refuses.
fn by_httparse(head: &[u8], request: bool) -> Option<Vec<(String, Vec<u8>)>> {
    let mut fields = [httparse::EMPTY_HEADER; 64];
    let (complete, fields) = if request {
        let mut parsed = httparse::Request::new(&mut fields);
        (parsed.parse(head).ok()?.is_complete(), parsed.headers.to_vec())
    } else {
        let mut parsed = httparse::Response::new(&mut fields);
        (parsed.parse(head).ok()?.is_complete(), parsed.headers.to_vec())
    };
    complete.then(|| fields.iter().map(|f| (f.name.to_ascii_lowercase(), f.value.to_vec())).collect())
}

fn sorted(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    let mut fields: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    fields.sort();
    fields
}

/// What may stand in no head that was taken.
fn assert_strict(head: &[u8], context: &str) {
    for (i, byte) in head.iter().enumerate() {
        match byte {
            b'\n' => assert!(i > 0 && head[i - 1] == b'\r', "bare LF: {context}"),
            b'\r' => assert_eq!(head.get(i + 1), Some(&b'\n'), "bare CR: {context}"),
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => panic!("control character {byte}: {context}"),
        }
    }
}

#[test]
fn requests_that_are_nearly_right_are_read_strictly_or_not_at_all() {
    let mut taken = 0;
    for seed in 0..5_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes = mutated(REQUESTS[rng.random_range(0..REQUESTS.len())], &mut rng);
        let context = format!("seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        let mut buf = BytesMut::from(bytes.as_slice());
        let Ok(Some(head)) = Scan::default().request(&mut buf, &Limits::default()) else { continue };
        taken += 1;
        let read = &bytes[..bytes.len() - buf.len()];
        assert_strict(read, &context);
        let mut fields = by_httparse(read, true).unwrap_or_else(|| panic!("laxer than httparse: {context}"));
        let lengths = fields.iter().filter(|(name, _)| name == "content-length").count();
        if lengths > 1 {
            // Equal ones are folded.
            let first = fields.iter().position(|(name, _)| name == "content-length").unwrap();
            let kept = fields.remove(first);
            fields.retain(|(name, _)| name != "content-length");
            fields.push(kept);
        }
        fields.sort();
        assert_eq!(sorted(&head.headers), fields, "{context}");
        let codings = head.headers.get_all("transfer-encoding").iter().count();
        let lengths = head.headers.get_all("content-length").iter().count();
        assert!(codings + lengths <= 1, "{context}");
        assert_eq!(head.length == Length::Chunked, codings == 1, "{context}");

        // Written and read again it is the same.
        let mut written = Vec::new();
        write_request_line(&mut written, &head.method, &head.uri, head.version);
        let told = match head.length {
            Length::Chunked => Told::Chunked,
            Length::Exact(0) if lengths == 0 => Told::Nothing,
            Length::Exact(length) => Told::Exact(length),
            Length::UntilEof => panic!("{context}"),
        };
        Fields { original: Some(&head.original), headers: &head.headers, told, connection: None }
            .write(&mut written);
        let mut buf = BytesMut::from(written.as_slice());
        let again = Scan::default().request(&mut buf, &Limits::default());
        let again = again.unwrap_or_else(|error| panic!("{error}: {context}")).unwrap();
        assert!(buf.is_empty(), "{context}");
        assert_eq!(
            (&again.method, &again.uri, again.version),
            (&head.method, &head.uri, head.version),
            "{context}"
        );
        assert_eq!(again.length, head.length, "{context}");
        let numeric = |mut fields: Vec<(String, Vec<u8>)>| {
            fields.retain(|(name, _)| name != "content-length" && name != "transfer-encoding");
            fields
        };
        assert_eq!(numeric(sorted(&again.headers)), numeric(sorted(&head.headers)), "{context}");
    }
    assert!(taken > 1000, "only {taken} were taken: the mutations are too wild to tell anything");
}

#[test]
fn responses_that_are_nearly_right_are_read_strictly_or_not_at_all() {
    let mut taken = 0;
    for seed in 0..5_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes = mutated(RESPONSES[rng.random_range(0..RESPONSES.len())], &mut rng);
        let context = format!("seed {seed}: {:?}", String::from_utf8_lossy(&bytes));
        let mut buf = BytesMut::from(bytes.as_slice());
        let Ok(Some(head)) = Scan::default().response(&mut buf, &Method::GET, &Limits::default()) else {
            continue;
        };
        taken += 1;
        let read = &bytes[..bytes.len() - buf.len()];
        assert_strict(read, &context);
        assert!(by_httparse(read, false).is_some(), "laxer than httparse: {context}");
        let mut written = Vec::new();
        write_status_line(&mut written, head.status, head.version, Some(&head.original));
        Fields {
            original: Some(&head.original),
            headers: &head.headers,
            told: Told::Nothing,
            connection: None,
        }
        .write(&mut written);
        assert_strict(&written, &context);
        let mut buf = BytesMut::from(written.as_slice());
        let again = Scan::default().response(&mut buf, &Method::GET, &Limits::default());
        let again = again.unwrap_or_else(|error| panic!("{error}: {context}")).unwrap();
        assert_eq!((again.status, again.version), (head.status, head.version), "{context}");
    }
    assert!(taken > 1000, "only {taken} were taken");
}

#[test]
fn chunks_that_are_nearly_right_never_panic_and_never_differ_by_their_split() {
    let body = "5\r\nhello\r\n6;a=\"b\"\r\n world\r\n1F\r\n0123456789012345678901234567890\r\n0\r\nA: b\r\nC: d\r\n\r\nGET";
    for seed in 0..5_000 {
        let mut rng = StdRng::seed_from_u64(seed);
        let bytes = mutated(body, &mut rng);
        let size = rng.random_range(1..8);
        let whole = decoded(&bytes, bytes.len());
        assert_eq!(
            decoded(&bytes, size),
            whole,
            "seed {seed}, by {size}: {:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

/// The data, and whether the body ended, wants more (`None`) or is refused.
fn decoded(bytes: &[u8], size: usize) -> Option<(Vec<u8>, String, Option<Vec<u8>>)> {
    let mut decoder = Decoder::new(Length::Chunked);
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), String::new());
    let mut parts = bytes.chunks(size.max(1));
    loop {
        match decoder.decode(&mut buf, &Limits::default()) {
            Err(_) => return None,
            Ok(Step::Data(more)) => {
                data.extend_from_slice(&more);
                decoder.settle(&mut buf);
            }
            Ok(Step::Trailers(fields)) => trailers = format!("{fields:?}"),
            Ok(Step::End) => {
                parts.for_each(|part| buf.extend_from_slice(part));
                return Some((data, trailers, Some(buf.to_vec())));
            }
            Ok(Step::More) => match parts.next() {
                Some(part) => buf.extend_from_slice(part),
                None => return Some((data, trailers, None)),
            },
        }
    }
}
