use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue};
use rand::rngs::StdRng;
use rand::{Rng, RngExt, SeedableRng};

use super::super::buf::Output;
use super::super::coding::{BodyError, Decoder, Encoder, Step};
use super::super::head::{Length, Limits};

/// What a decoder makes of `parts`: the data, the trailers, and what is left over.
fn decode<'a>(
    length: Length,
    parts: impl IntoIterator<Item = &'a [u8]>,
) -> Result<(Vec<u8>, HeaderMap, Vec<u8>, bool), BodyError> {
    let limits = Limits { extensions: 64, trailers: 512, ..Limits::default() };
    let mut decoder = Decoder::new(length);
    let (mut buf, mut data, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
    let mut parts = parts.into_iter();
    loop {
        match decoder.decode(&mut buf, &limits)? {
            Step::Data(more) => {
                assert!(!more.is_empty());
                data.extend_from_slice(&more);
                decoder.settle(&mut buf);
            }
            Step::Trailers(fields) => trailers = fields,
            Step::End => {
                parts.for_each(|part| buf.extend_from_slice(part));
                return Ok((data, trailers, buf.to_vec(), true));
            }
            Step::More => match parts.next() {
                Some(part) => buf.extend_from_slice(part),
                None => return Ok((data, trailers, buf.to_vec(), decoder.ends_at_eof())),
            },
        }
    }
}

fn chunked(bytes: &str) -> Result<(Vec<u8>, HeaderMap, Vec<u8>, bool), BodyError> {
    decode(Length::Chunked, [bytes.as_bytes()])
}

#[test]
fn chunks_are_put_together() {
    let (data, trailers, left, ended) =
        chunked("5\r\nhello\r\n6;ext=\"a b\"\r\n world\r\n000\r\nA: b\r\nA: c\r\n\r\nGET").unwrap();
    assert_eq!((data.as_slice(), left.as_slice(), ended), (&b"hello world"[..], &b"GET"[..], true));
    assert_eq!(trailers.get_all("a").iter().collect::<Vec<_>>(), ["b", "c"]);
    let (data, _, _, ended) = chunked("A\r\n0123456789\r\n0;x\r\n\r\n").unwrap();
    assert_eq!((data.len(), ended), (10, true));
}

#[test]
fn an_extension_of_the_limit_is_taken_wherever_its_line_is_cut() {
    let body = format!("0000000000000003;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(63));
    for at in 0..body.len() {
        let (a, b) = body.as_bytes().split_at(at);
        let (data, _, _, ended) = decode(Length::Chunked, [a, b]).unwrap();
        assert_eq!((data.as_slice(), ended), (&b"abc"[..], true), "cut at {at}");
    }
    let longer = body.replacen(';', ";x", 1);
    assert!(matches!(chunked(&longer), Err(BodyError::Malformed("too many chunk extensions"))));
}

#[test]
fn chunks_that_could_be_read_in_two_ways_are_refused() {
    let many = format!("1;{}\r\na\r\n", "x".repeat(40)).repeat(3);
    for bytes in [
        "+5\r\nhello\r\n",
        "-1\r\n",
        " 5\r\nhello\r\n",
        "5 \r\nhello\r\n",
        "5\t;a\r\nhello\r\n",
        "0x5\r\nhello\r\n",
        "5_0\r\n",
        "\r\n",
        "g\r\n",
        ";a\r\n",
        "5\nhello\r\n",
        "5\r\nhello!\r\n",
        "5\r\nhello\n0\r\n\r\n",
        "5\r\nhello\rx",
        "5;a\nb\r\nhello\r\n",
        "5;a\rb\r\nhello\r\n",
        "5;a\0b\r\nhello\r\n",
        "10000000000000000\r\n",
        "00000000000000001\r\n",
        "0\r\nA: b\n\r\n",
        "0\r\nA : b\r\n\r\n",
        "0\r\n A: b\r\n\r\n",
        "0\r\nA: b\r\n c\r\n\r\n",
        "0\r\nA: b\0\r\n\r\n",
        "0\r\nContent-Length: 5\r\n\r\n",
        "0\r\nTransfer-Encoding: chunked\r\n\r\n",
        "0\r\nHost: a\r\n\r\n",
        "0\r\nnothing\r\n\r\n",
        &format!("0\r\nA: {}", "x".repeat(600)),
        &format!("0\r\nA: {}\r\n\r\n", "x".repeat(600)),
        &format!("1;{}", "x".repeat(100)),
        &format!("1;{}\r\na", "x".repeat(100)),
        &many,
    ] {
        assert!(chunked(bytes).is_err(), "{bytes:?}: {:?}", chunked(bytes));
    }
}

#[test]
fn a_body_is_over_where_its_head_said() {
    let (data, _, left, ended) = decode(Length::Exact(3), [&b"abcdef"[..]]).unwrap();
    assert_eq!((data.as_slice(), left.as_slice(), ended), (&b"abc"[..], &b"def"[..], true));
    let (data, .., ended) = decode(Length::Exact(9), [&b"abc"[..]]).unwrap();
    assert_eq!((data.as_slice(), ended), (&b"abc"[..], false));
    let (data, .., ended) = decode(Length::UntilEof, [&b"abc"[..], b"def"]).unwrap();
    assert_eq!((data.as_slice(), ended), (&b"abcdef"[..], true));
    let (.., ended) = decode(Length::Chunked, [&b"3\r\nabc\r\n"[..]]).unwrap();
    assert!(!ended);
}

#[test]
fn a_body_of_another_length_than_its_head_told_is_not_sent() {
    let mut out = Output::default();
    assert!(Encoder::Exact(3).data(Bytes::from_static(b"abcd"), &mut out).is_err());
    let mut encoder = Encoder::Exact(3);
    encoder.data(Bytes::from_static(b"ab"), &mut out).unwrap();
    assert!(encoder.end(None, &mut out).is_err());
}

#[test]
fn what_is_encoded_is_decoded_however_it_is_cut() {
    for seed in 0..300 {
        let mut rng = StdRng::seed_from_u64(seed);
        let pieces: Vec<Bytes> = (0..rng.random_range(0..6))
            .map(|_| {
                let len =
                    if rng.random_bool(0.2) { rng.random_range(0..9000) } else { rng.random_range(0..40) };
                let mut piece = vec![0; len];
                rng.fill_bytes(&mut piece);
                piece.into()
            })
            .collect();
        let whole = pieces.concat();
        let mut trailers = HeaderMap::new();
        if rng.random_bool(0.3) {
            trailers.insert("x-sum", HeaderValue::from(rng.random_range(0..1000_u32)));
        }
        for (length, mut encoder) in [
            (Length::Chunked, Encoder::Chunked),
            (Length::Exact(whole.len() as u64), Encoder::Exact(whole.len() as u64)),
        ] {
            let bytes = encode(&mut encoder, &pieces, &trailers);
            let cuts = cut(&bytes, &mut rng);
            let (data, got, left, ended) = decode(length, cuts).unwrap();
            assert!(ended && left.is_empty() && data == whole, "seed {seed}, {length:?}");
            if length == Length::Chunked {
                assert_eq!(got, trailers, "seed {seed}");
            }
        }
    }
}

fn encode(encoder: &mut Encoder, pieces: &[Bytes], trailers: &HeaderMap) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut out = Output::default();
    for piece in pieces {
        if !out.has_room() {
            flush(&mut out, &mut bytes);
        }
        encoder.data(piece.clone(), &mut out).unwrap();
    }
    encoder.end(Some(trailers).filter(|trailers| !trailers.is_empty()), &mut out).unwrap();
    flush(&mut out, &mut bytes);
    bytes
}

fn flush(out: &mut Output, bytes: &mut Vec<u8>) {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(out.poll_write(bytes, &mut cx).is_ready());
}

fn cut<'a>(mut bytes: &'a [u8], rng: &mut StdRng) -> Vec<&'a [u8]> {
    let most = if rng.random_bool(0.3) { 1 } else { rng.random_range(1..2000) };
    let mut cuts = Vec::new();
    while !bytes.is_empty() {
        let (one, rest) = bytes.split_at(rng.random_range(1..=most).min(bytes.len()));
        cuts.push(one);
        bytes = rest;
    }
    cuts
}
