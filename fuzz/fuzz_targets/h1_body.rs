//! Chunked bodies, against a decoder that is plain and slow, and however the bytes arrive.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use tulle_fuzz::{Fields, LIMITS, assert_strict, fields_without, pieces};
use tulle_proxy::wire::h1::{Decoder, Length, Step};

/// What a body comes to.
#[derive(Debug, PartialEq, Eq)]
enum Read {
    /// Data, trailers, and how much comes after it.
    Whole(Vec<u8>, Fields, usize),
    /// So far.
    Part(Vec<u8>),
    Refused,
}

fuzz_target!(|data: &[u8]| {
    let whole = read([data], data.len());
    for cut in [read(data.chunks(1), data.len()), read(pieces(data), data.len())] {
        match (&whole, &cut) {
            (Read::Part(whole), Read::Part(cut)) => assert_eq!(whole, cut),
            (whole, cut) => assert_eq!(whole, cut),
        }
    }
    match (plainly(data), whole) {
        (Plain::Whole(data, trailers, rest), whole) => assert_eq!(whole, Read::Whole(data, trailers, rest)),
        (Plain::Cut(data), whole) => assert_eq!(whole, Read::Part(data)),
        (Plain::Wrong, Read::Whole(..)) => panic!("taken although it is not well-formed"),
        // An unfinished line need not be looked at.
        (Plain::Wrong, Read::Part(_) | Read::Refused) => {}
        (Plain::TooLarge, _) => {}
    }
});

fn read<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, length: usize) -> Read {
    let mut decoder = Decoder::new(Length::Chunked);
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), Fields::new());
    let (mut pieces, mut given) = (pieces.into_iter(), 0);
    loop {
        assert!(!decoder.ends_at_eof() || decoder.is_done());
        match decoder.decode(&mut buf, &LIMITS) {
            Err(_) => return Read::Refused,
            Ok(Step::Data(more)) => {
                assert!(!more.is_empty(), "nothing is no progress");
                data.extend_from_slice(&more);
                decoder.settle(&mut buf);
            }
            Ok(Step::Trailers(fields)) => trailers = fields_without(&fields, &[]),
            Ok(Step::End) => {
                assert!(decoder.is_done());
                return Read::Whole(data, trailers, length - given + buf.len());
            }
            Ok(Step::More) => match pieces.next() {
                Some(piece) => {
                    given += piece.len();
                    buf.extend_from_slice(piece);
                }
                None => return Read::Part(data),
            },
        }
    }
}

enum Plain {
    Whole(Vec<u8>, Fields, usize),
    /// The beginning of one.
    Cut(Vec<u8>),
    Wrong,
    /// Over a limit, whatever else it is.
    TooLarge,
}

/// RFC 9112 §7.1 by the letter, from the first byte.
fn plainly(mut bytes: &[u8]) -> Plain {
    let (mut data, mut extensions) = (Vec::new(), 0);
    loop {
        let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
            return if bytes.len() > 16 { Plain::TooLarge } else { unfinished(bytes, data) };
        };
        let Some(line) = bytes[..end].strip_suffix(b"\r") else { return Plain::Wrong };
        bytes = &bytes[end + 1..];
        let (size, extension) = match line.iter().position(|byte| *byte == b';') {
            Some(at) => line.split_at(at),
            None => (line, &[][..]),
        };
        let Some(size) = number(size) else { return Plain::Wrong };
        if extension.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Plain::Wrong;
        }
        extensions += extension.len();
        if extensions > LIMITS.extensions {
            return Plain::TooLarge;
        }
        if size == 0 {
            return trailers(bytes, data);
        }
        let here = bytes.len().min(usize::try_from(size).unwrap_or(usize::MAX));
        data.extend_from_slice(&bytes[..here]);
        bytes = &bytes[here..];
        match bytes {
            [] | [b'\r'] => return Plain::Cut(data),
            [b'\r', b'\n', rest @ ..] => bytes = rest,
            _ => return Plain::Wrong,
        }
    }
}

/// At most 16 hexadecimal digits, at least one.
fn number(digits: &[u8]) -> Option<u64> {
    let plain = (1..=16).contains(&digits.len()) && digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    u64::from_str_radix(digits, 16).ok()
}

/// A line with a chunk's size that is not all there.
fn unfinished(line: &[u8], data: Vec<u8>) -> Plain {
    let size = line.strip_suffix(b"\r").unwrap_or(line);
    if size.is_empty() && line.is_empty() || number(size).is_some() { Plain::Cut(data) } else { Plain::Wrong }
}

fn trailers(bytes: &[u8], data: Vec<u8>) -> Plain {
    let mut fields = Fields::new();
    let mut rest = bytes;
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            // Whether it is well-formed so far is seen when it is whole.
            return if bytes.contains(&b'\n') || bytes.len() > 16 { Plain::Wrong } else { Plain::Cut(data) };
        };
        let line = &rest[..end];
        rest = &rest[end + 2..];
        if bytes.len() - rest.len() > LIMITS.trailers || fields.len() > LIMITS.fields {
            return Plain::TooLarge;
        }
        if line.is_empty() {
            assert_strict(&bytes[..bytes.len() - rest.len()]);
            fields.sort_by(|(a, _): &(String, _), (b, _)| a.cmp(b));
            return Plain::Whole(data, fields, rest.len());
        }
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Plain::Wrong };
        let name = line[..colon].to_ascii_lowercase();
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if name.is_empty() || !name.iter().all(token) {
            return Plain::Wrong;
        }
        let value = &line[colon + 1..];
        if value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Plain::Wrong;
        }
        let name = String::from_utf8(name).expect("a token is ASCII");
        if matches!(&*name, "content-length" | "transfer-encoding" | "host" | "connection") {
            return Plain::Wrong;
        }
        fields.push((name, value.trim_ascii().to_vec()));
    }
}
