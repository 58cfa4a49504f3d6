use bytes::BytesMut;
use http::{HeaderValue, Method, StatusCode, Version};

use super::super::head::{HeadError, Length, Limits, RequestHead, ResponseHead, Scan};
use super::super::original::{Fields, Told, write_request_line, write_status_line};

fn request(bytes: &[u8]) -> Result<Option<RequestHead>, HeadError> {
    Scan::default().request(&mut BytesMut::from(bytes), &Limits::default())
}

fn complete(bytes: &str) -> RequestHead {
    request(bytes.as_bytes()).unwrap().unwrap()
}

fn response(method: &Method, bytes: &str) -> Result<Option<ResponseHead>, HeadError> {
    Scan::default().response(&mut BytesMut::from(bytes), method, &Limits::default())
}

fn refused(bytes: impl AsRef<[u8]>) -> &'static str {
    match request(bytes.as_ref()) {
        Err(HeadError::Malformed(what)) => what,
        other => panic!("{:?}: {other:?}", String::from_utf8_lossy(bytes.as_ref())),
    }
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let ambiguous = [
        ("both Content-Length and Transfer-Encoding", "Content-Length: 3\r\nTransfer-Encoding: chunked"),
        ("both Content-Length and Transfer-Encoding", "Transfer-Encoding: chunked\r\nContent-Length: 3"),
        ("differing Content-Lengths", "Content-Length: 3\r\nContent-Length: 4"),
        ("Content-Length is not a plain number", "Content-Length: 3, 3"),
        ("Content-Length is not a plain number", "Content-Length: +5"),
        ("Content-Length is not a plain number", "Content-Length: -5"),
        ("Content-Length is not a plain number", "Content-Length: 0x5"),
        ("Content-Length is not a plain number", "Content-Length: 5 5"),
        ("Content-Length is not a plain number", "Content-Length:"),
        ("Content-Length is not a plain number", "Content-Length: 18446744073709551616"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: identity"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: gzip, chunked"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: chunked, chunked"),
        (
            "Transfer-Encoding is not exactly `chunked`",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        ),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: xchunked"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: chunkedx"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: \"chunked\""),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding: chunked;q=1"),
        ("Transfer-Encoding is not exactly `chunked`", "Transfer-Encoding:"),
        ("a field's value has a control character", "Transfer-Encoding: \x0bchunked"),
        ("a field's value has a control character", "X: a\0b"),
        ("a field's value has a control character", "X: a\x7fb"),
        ("a field's value has a control character", "X: a\rb"),
        ("obsolete line folding", "X: a\r\n b"),
        ("obsolete line folding", "X: a\r\n\tb"),
        ("whitespace before a colon", "X : a"),
        ("whitespace before a colon", "Transfer-Encoding\t: chunked"),
        ("a field without a name", ": a"),
        ("a field's name", "X\x01: a"),
        ("a field's name", "X[]: a"),
        ("a field's name", "nothing"),
        ("more than one Host", "Host: b"),
    ];
    for (what, field) in ambiguous {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\n{field}\r\n\r\n");
        assert_eq!(refused(&head), what, "{field:?}");
    }
}

#[test]
fn start_lines_are_exactly_as_they_should_be() {
    for line in [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET / HTTP/1.1 ",
        "GET / http/1.1",
        "GET / HTTP/2.0",
        "GET / HTTP/1.2",
        "GET / HTTP/0.9",
        "GET /",
        "GET",
        "G@T / HTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET /a#b HTTP/1.1",
        "GET /a\x01 HTTP/1.1",
        "GET a HTTP/1.1",
        "GET a:80 HTTP/1.1",
        "GET * HTTP/1.1",
        "GET ?q HTTP/1.1",
        "CONNECT / HTTP/1.1",
        "CONNECT a HTTP/1.1",
        "CONNECT http://a/ HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        let head = format!("{line}\r\nHost: a\r\n\r\n");
        assert!(request(head.as_bytes()).is_err(), "{line:?}");
    }
}

#[test]
fn a_line_ends_with_crlf_and_nothing_else() {
    for head in [
        "GET / HTTP/1.1\nHost: a\n\n",
        "GET / HTTP/1.1\r\nHost: a\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: b\n\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\r\nHost: a\r\n\r\n",
    ] {
        assert!(request(head.as_bytes()).is_err(), "{head:?}");
    }
    assert!(request(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap().is_some());
}

#[test]
fn a_host_is_asked_for_as_rfc_9112_says() {
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), "no Host");
    assert!(request(b"GET / HTTP/1.0\r\n\r\n").unwrap().is_some());
    for bad in [
        "a b", "a/b", "a@b", "a?b", "a:b", "a:1:2", "[::1", "[]", "[::1]x", "a\\b", "a<b", "\u{e4}",
        "a:123456",
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: {bad}\r\n\r\n");
        assert_eq!(refused(&head), "Host is not a host and port", "{bad:?}");
    }
    for good in
        ["a", "a:80", "a.b-c_d:8080", "[::1]", "[::1]:80", "[fe80::1%25eth0]:1", "127.0.0.1:1", "", "a:"]
    {
        complete(&format!("GET / HTTP/1.1\r\nHost: {good}\r\n\r\n"));
    }
}

#[test]
fn targets_have_four_forms() {
    for (method, target) in [
        ("GET", "/"),
        ("GET", "/a/b?c=d&e=%20"),
        ("GET", "//a"),
        ("GET", "http://b.example:81/x?y"),
        ("OPTIONS", "*"),
        ("CONNECT", "a.example:443"),
        ("CONNECT", "[::1]:443"),
        ("GET", "/caf\u{e9}"),
    ] {
        let head = complete(&format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        let mut line = Vec::new();
        write_request_line(&mut line, &head.method, &head.uri, head.version);
        assert_eq!(String::from_utf8(line).unwrap(), format!("{method} {target} HTTP/1.1\r\n"));
        assert_eq!(head.headers["host"], "a");
    }
}

#[test]
fn lengths_and_connections_are_told_from_their_fields() {
    let head = |version: &str, fields: &str| {
        let head = complete(&format!("POST / HTTP/{version}\r\nHost: a\r\n{fields}\r\n"));
        (head.length, head.keep_alive)
    };
    assert_eq!(head("1.1", ""), (Length::Exact(0), true));
    assert_eq!(head("1.1", "Content-Length: 007\r\nConnection: close\r\n"), (Length::Exact(7), false));
    assert_eq!(head("1.1", "content-length: 7 \r\nCONTENT-LENGTH:7\r\n"), (Length::Exact(7), true));
    assert_eq!(head("1.1", "transfer-encoding: Chunked\r\n"), (Length::Chunked, true));
    assert_eq!(head("1.0", ""), (Length::Exact(0), false));
    assert_eq!(head("1.0", "Connection: x, Keep-Alive\r\n"), (Length::Exact(0), true));
    assert_eq!(head("1.1", "Connection: keep-alive\r\nConnection: x , CLOSE\r\n"), (Length::Exact(0), false));
    assert_eq!(
        refused("GET / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"),
        "Transfer-Encoding in HTTP/1.0"
    );
    let folded = complete("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nContent-Length: 7\r\n\r\n");
    assert_eq!(folded.headers.get_all("content-length").iter().count(), 1);
    assert_eq!(
        refused("CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\n"),
        "CONNECT with a body"
    );
}

#[test]
fn responses_without_a_body_have_none_whatever_they_say() {
    let length = |method: Method, head: &str| response(&method, head).unwrap().unwrap().length;
    assert_eq!(length(Method::HEAD, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"), Length::Exact(0));
    assert_eq!(
        length(Method::HEAD, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        Length::Exact(0)
    );
    assert_eq!(length(Method::GET, "HTTP/1.1 204 No\r\nContent-Length: 7\r\n\r\n"), Length::Exact(0));
    assert_eq!(length(Method::GET, "HTTP/1.1 304 No\r\nContent-Length: 7\r\n\r\n"), Length::Exact(0));
    assert_eq!(length(Method::CONNECT, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n"), Length::Exact(0));
    assert_eq!(length(Method::CONNECT, "HTTP/1.1 403 No\r\nContent-Length: 7\r\n\r\n"), Length::Exact(7));
    assert_eq!(length(Method::GET, "HTTP/1.1 200\r\n\r\n"), Length::UntilEof);
    assert_eq!(length(Method::GET, "HTTP/1.0 200 OK\r\n\r\n"), Length::UntilEof);
}

#[test]
fn malformed_responses_are_refused() {
    for head in [
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "HTTP/1.1 20 OK\r\n\r\n",
        "HTTP/1.1 099 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1  200 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n",
        "HTTP/1.1 200 OK\nX: a\n\n",
        "HTTP/1.1 200 O\0K\r\n\r\n",
        "SSH-2.0-OpenSSH_9.2\r\n",
        "220 mail ESMTP ready\r\n",
        "\r\nHTTP/1.1 200 OK\r\n\r\n",
    ] {
        assert!(response(&Method::GET, head).is_err(), "{head:?}");
    }
}

#[test]
fn limits_are_answered_with_431() {
    let limits = Limits { head: 1000, fields: 10, ..Limits::default() };
    let scan = |bytes: &str| Scan::default().request(&mut BytesMut::from(bytes), &limits);
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "x".repeat(2000));
    for head in [long.clone(), format!("{long}\r\n\r\n")] {
        let error = scan(&head).unwrap_err();
        assert_eq!(error, HeadError::TooLarge(1000));
        assert_eq!(error.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    }
    let many = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(10));
    assert_eq!(scan(&many).unwrap_err(), HeadError::TooManyFields(10));
    let just = format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(9));
    assert!(scan(&just).unwrap().is_some());
    // The defaults take a block of 64 KiB, in one field or in many.
    complete(&format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(64 << 10)));
    let many: String = (0..250).map(|i| format!("X-{i}: {}\r\n", "y".repeat(256))).collect();
    complete(&format!("GET / HTTP/1.1\r\nHost: a\r\n{many}\r\n"));
}

#[test]
fn a_large_head_that_comes_byte_by_byte_costs_no_square() {
    let head = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let mut scan = Scan::default();
    let mut buf = BytesMut::new();
    let mut found = None;
    for byte in head.bytes() {
        buf.extend_from_slice(&[byte]);
        found = scan.request(&mut buf, &Limits::default()).unwrap();
    }
    assert_eq!(found.unwrap().headers["x"].len(), 64 << 10);
}

#[test]
fn garbage_is_refused_before_its_end_comes() {
    assert!(request(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").is_err());
    assert!(request(b"GET / SIP/2.0\r\nVia: x").is_err());
    assert!(response(&Method::GET, "SSH-2.0-OpenSSH_9.2p1").is_err());
}

fn rewritten(head: &RequestHead, told: Told, connection: Option<&'static str>) -> String {
    let mut out = Vec::new();
    Fields { original: Some(&head.original), headers: &head.headers, told, connection }.write(&mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn fields_are_written_in_the_order_and_spelling_in_which_they_came() {
    let fields = "HOST: a\r\nX-b:1\r\nx-B:   2  \r\nEmpty:\r\nAccept: */*\r\ncOOkie: c=d\r\nX-B: 3\r\n";
    let mut head = complete(&format!("GET / HTTP/1.1\r\n{fields}\r\n"));
    assert_eq!(rewritten(&head, Told::Nothing, None), format!("{fields}\r\n"));

    head.headers.insert("cookie", HeaderValue::from_static("e=f"));
    head.headers.remove("accept");
    head.headers.append("x-b", HeaderValue::from_static("4"));
    head.headers.insert("x-new", HeaderValue::from_static("5"));
    let changed =
        "HOST: a\r\nX-b:1\r\nx-B:   2  \r\nEmpty:\r\ncOOkie: e=f\r\nX-B: 3\r\nx-b: 4\r\nx-new: 5\r\n\r\n";
    assert_eq!(rewritten(&head, Told::Nothing, None), changed);
}

#[test]
fn what_is_only_added_comes_last_and_never_frames() {
    let mut head = complete("GET / HTTP/1.1\r\nHOST: a\r\nX-b:1\r\n\r\n");
    head.headers.insert("traceparent", HeaderValue::from_static("00-1"));
    head.headers.insert("b3", HeaderValue::from_static("0"));
    let added = "HOST: a\r\nX-b:1\r\ntraceparent: 00-1\r\nb3: 0\r\n\r\n";
    assert_eq!(rewritten(&head, Told::Nothing, None), added);
    let closing = added.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    assert_eq!(rewritten(&head, Told::Nothing, Some("close")), closing);
    let counted = added.replace("\r\n\r\n", "\r\ncontent-length: 3\r\n\r\n");
    assert_eq!(rewritten(&head, Told::Exact(3), None), counted);
    // Whatever the message says of its framing, only the codec's word is written.
    for name in ["content-length", "transfer-encoding"] {
        head.headers.insert(name, HeaderValue::from_static("7"));
        assert_eq!(rewritten(&head, Told::Nothing, None), added);
        assert_eq!(rewritten(&head, Told::Exact(3), None), counted);
        head.headers.remove(name);
    }
    // A second value of a name that came stands by its name.
    head.headers.append("x-b", HeaderValue::from_static("2"));
    let written = rewritten(&head, Told::Nothing, None);
    assert!(
        written.starts_with("HOST: a\r\nX-b:1\r\nx-b: 2\r\n") && written.ends_with("b3: 0\r\n\r\n"),
        "{written}"
    );
    let mut bare = complete("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(rewritten(&bare, Told::Nothing, None), "\r\n");
    bare.headers.insert("traceparent", HeaderValue::from_static("00-1"));
    assert_eq!(rewritten(&bare, Told::Nothing, None), "traceparent: 00-1\r\n\r\n");
}

#[test]
fn framing_is_told_in_its_old_place() {
    let head = complete("POST / HTTP/1.1\r\nTransfer-encoding: chunked\r\nHost: a\r\nCONNECTION: x\r\n\r\n");
    let same = "Transfer-encoding: chunked\r\nHost: a\r\nCONNECTION: x\r\n\r\n";
    assert_eq!(rewritten(&head, Told::Chunked, None), same);
    let closing = "Transfer-encoding: chunked\r\nHost: a\r\nCONNECTION: close\r\n\r\n";
    assert_eq!(rewritten(&head, Told::Chunked, Some("close")), closing);
    let counted = "Host: a\r\nCONNECTION: x\r\ncontent-length: 12\r\n\r\n";
    assert_eq!(rewritten(&head, Told::Exact(12), None), counted);
    assert_eq!(rewritten(&head, Told::Nothing, None), "Host: a\r\nCONNECTION: x\r\n\r\n");
}

#[test]
fn a_value_moved_to_another_name_is_not_written_twice() {
    let mut head = complete("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n");
    let host = head.headers["host"].clone();
    head.headers.insert("x-forwarded-host", host.clone());
    head.headers.insert("x", HeaderValue::from_static("2"));
    assert_eq!(rewritten(&head, Told::Nothing, None), "Host: a\r\nX: 2\r\nx-forwarded-host: a\r\n\r\n");
    // Values of one name keep their new order.
    let mut head = complete("GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\nX: 2\r\n\r\n");
    let values: Vec<_> = head.headers.get_all("x").iter().rev().cloned().collect();
    head.headers.remove("x");
    for value in values {
        head.headers.append("x", value);
    }
    assert_eq!(rewritten(&head, Told::Nothing, None), "Host: a\r\nX: 2\r\nx: 1\r\n\r\n");
}

#[test]
fn a_reason_phrase_stays_with_its_status() {
    let head = response(&Method::GET, "HTTP/1.1 200 Alles gut\r\n\r\n").unwrap().unwrap();
    let line = |status| {
        let mut out = Vec::new();
        write_status_line(&mut out, status, Version::HTTP_11, Some(&head.original));
        String::from_utf8(out).unwrap()
    };
    assert_eq!(line(StatusCode::OK), "HTTP/1.1 200 Alles gut\r\n");
    assert_eq!(line(StatusCode::NOT_FOUND), "HTTP/1.1 404 Not Found\r\n");
}

#[test]
fn every_split_of_a_head_is_read_the_same() {
    let heads = [
        "\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nX: y\r\n\r\nabcGET",
        "GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
    ];
    for head in heads {
        let whole = outcome(&[head.as_bytes()]);
        for at in 0..head.len() {
            let (one, two) = head.as_bytes().split_at(at);
            assert_eq!(outcome(&[one, two]), whole, "{head:?} at {at}");
        }
        let bytes: Vec<_> = head.as_bytes().chunks(1).collect();
        assert_eq!(outcome(&bytes), whole, "{head:?} byte by byte");
    }
}

fn outcome(parts: &[&[u8]]) -> String {
    let mut scan = Scan::default();
    let mut buf = BytesMut::new();
    let mut left = parts.iter();
    loop {
        match scan.request(&mut buf, &Limits::default()) {
            Err(_) => return "refused".to_owned(),
            Ok(Some(head)) => {
                left.for_each(|part| buf.extend_from_slice(part));
                return format!("{} {} {:?} {:?} {buf:?}", head.method, head.uri, head.headers, head.length);
            }
            Ok(None) => match left.next() {
                Some(part) => buf.extend_from_slice(part),
                None => return "more".to_owned(),
            },
        }
    }
}
