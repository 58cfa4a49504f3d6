use super::*;
use crate::testing::{Rng, seeds};

/// A ClientHello message with these extensions.
fn hello(extensions: &[(u16, Vec<u8>)]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0]); // session_id
    body.extend([0, 2, 0x13, 0x01]);
    body.extend([1, 0]);
    let mut all = Vec::new();
    for (kind, data) in extensions {
        all.extend(kind.to_be_bytes());
        all.extend((data.len() as u16).to_be_bytes());
        all.extend(data);
    }
    body.extend((all.len() as u16).to_be_bytes());
    body.extend(all);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    message
}

/// `message` in records with fragments of at most `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for fragment in message.chunks(size) {
        bytes.extend([22, 3, 1]);
        bytes.extend((fragment.len() as u16).to_be_bytes());
        bytes.extend(fragment);
    }
    bytes
}

fn sni(name: &[u8]) -> (u16, Vec<u8>) {
    let mut data = ((name.len() + 3) as u16).to_be_bytes().to_vec();
    data.push(0);
    data.extend((name.len() as u16).to_be_bytes());
    data.extend(name);
    (EXTENSION_SERVER_NAME, data)
}

fn alpn(names: &[&[u8]]) -> (u16, Vec<u8>) {
    let mut list = Vec::new();
    for name in names {
        list.push(name.len() as u8);
        list.extend(*name);
    }
    let mut data = (list.len() as u16).to_be_bytes().to_vec();
    data.extend(list);
    (EXTENSION_ALPN, data)
}

fn tls(bytes: &[u8]) -> ClientHello {
    match detect(bytes, false) {
        Detection::Tls(hello) => hello,
        other => panic!("{other:?}"),
    }
}

/// What [`detect`] answers for the whole, and for every beginning of it either that or `NeedMore`.
fn split(bytes: &[u8]) -> Detection {
    let whole = detect(bytes, false);
    let mut decided = false;
    // Every byte of what is short, some of what is long.
    let step = (bytes.len() / 512).max(1);
    for end in (0..bytes.len()).step_by(step) {
        match detect(&bytes[..end], false) {
            Detection::NeedMore => assert!(!decided, "undecided again after {end} bytes"),
            early => {
                decided = true;
                assert_eq!(early, whole, "after {end} bytes of {bytes:?}");
            }
        }
        assert_ne!(detect(&bytes[..end], true), Detection::NeedMore);
    }
    whole
}

#[test]
fn first_bytes_are_told() {
    use Detection::{Http1, Http2, NeedMore, Opaque};
    let long = [b"GET /".as_slice(), &[b'a'; MAX], b" HTTP/1.1\r\n"].concat();
    for (bytes, expected) in [
        (b"".as_slice(), NeedMore),
        (b"GET / HTTP/1.1\r\n", Http1),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Http1),
        (b"GET / HTTP/1.0\n", Http1),
        (b"GET / HTTP/1.1\r", NeedMore),
        (b"GET / HTTP/1.1", NeedMore),
        (b"GET / HTTP/1.", NeedMore),
        (b"GET / HT", NeedMore),
        (b"GET", NeedMore),
        (b"\r", NeedMore),
        (b"\r\n", NeedMore),
        (b"\r\nGET / HTTP/1.1\r\n", Http1),
        (b"\r\n\r\nGET / HTTP/1.1\r\n", Opaque),
        (b"OPTIONS * HTTP/1.1\r\n", Http1),
        (b"CONNECT a.example:443 HTTP/1.1\r\n", Http1),
        (b"GET http://a.example/b?c HTTP/1.1\r\n", Http1),
        (b"M-SEARCH * HTTP/1.1\r\n", Http1),
        (b"PRI / HTTP/1.1\r\n", Http1),
        (b"P", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Http2),
        (b"PRI * HTTP/2.0\r\nHost", Opaque),
        (b"GET / HTTP/2.0\r\n", Opaque),
        (b"GET / HTTP/1.2\r\n", Opaque),
        (b"GET / HTTP/1.1 \r\n", Opaque),
        (b"GET  / HTTP/1.1\r\n", Opaque),
        (b"GET /\r\n", Opaque),
        (b" GET / HTTP/1.1\r\n", Opaque),
        (b"G(T / HTTP/1.1\r\n", Opaque),
        (b"GET /\0 HTTP/1.1\r\n", Opaque),
        (b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Opaque),
        (b"EHLO a.example\r\n", Opaque),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Opaque),
        (b"\x16", NeedMore),
        (b"\x16\x03\x01", NeedMore),
        (b"\x16\x02\x01", Opaque),
        (b"\x16\x03\x01\x00\x00", Opaque),
        (b"\x16\x03\x01\x40\x01", Opaque),
        (b"\x16\x03\x01\x00\x04\x02", Opaque),
        (b"\x15\x03\x01\x00\x02\x02\x28", Opaque),
        (&long, Opaque),
        (&long[..MAX - 1], NeedMore),
    ] {
        assert_eq!(split(bytes), expected, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(80)]));
    }
}

#[test]
fn a_method_in_lower_case_is_a_request_only_where_http_is_declared() {
    for (bytes, declared, undeclared) in [
        (b"ruok".as_slice(), Detection::NeedMore, Detection::Opaque),
        (b"JDWP-Handshake", Detection::NeedMore, Detection::Opaque),
        (b"\r\nget", Detection::NeedMore, Detection::Opaque),
        (b"get / HTTP/1.1\r\n", Detection::Http1, Detection::Opaque),
        (b"\r", Detection::NeedMore, Detection::NeedMore),
        (b"JDWP", Detection::NeedMore, Detection::NeedMore),
        (b"M-SEARCH /a HTTP/1.1\r\n", Detection::Http1, Detection::Http1),
        (HTTP2_PREFACE, Detection::Http2, Detection::Http2),
    ] {
        let told = (detect(bytes, false), detect_undeclared(bytes, false));
        assert_eq!(told, (declared, undeclared), "{:?}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn where_only_tls_is_asked_for_the_first_byte_of_anything_else_decides() {
    for bytes in [b"P".as_slice(), b"GET / HTTP/1.1\r\n", HTTP2_PREFACE, b"\0"] {
        assert_eq!(detect_tls_alone(bytes, false), Detection::Opaque);
    }
    assert_eq!(detect_tls_alone(b"\x16\x03", false), Detection::NeedMore);
    let hello = records(&hello(&[alpn(&[b"tulle-tcp"])]), 9000);
    assert!(matches!(detect_tls_alone(&hello, false), Detection::Tls(hello) if hello.is_mesh.is_some()));
}

#[test]
fn the_end_of_the_stream_decides() {
    for bytes in [b"".as_slice(), b"GET", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n"] {
        assert_eq!(detect(bytes, true), Detection::Opaque);
    }
    assert_eq!(detect(b"GET / HTTP/1.1\r\n", true), Detection::Http1);
}

#[test]
fn a_hello_tells_its_name_and_protocols() {
    let message = hello(&[(51, vec![0; 40]), sni(b"Orders.Shop"), alpn(&[b"h2", b"http/1.1"])]);
    let told = tls(&records(&message, 9000));
    assert_eq!(told.sni.as_deref(), Some("orders.shop"));
    assert_eq!(told.alpn.iter().map(|name| &**name).collect::<Vec<_>>(), [b"h2".as_slice(), b"http/1.1"]);
    assert_eq!(told.is_mesh, None);
    for ours in MeshAlpn::ALL {
        let message = hello(&[alpn(&[b"h2", ours.as_bytes()])]);
        assert_eq!(tls(&records(&message, 9000)).is_mesh, Some(ours));
    }
    assert_eq!(tls(&records(&hello(&[]), 9000)), ClientHello::default());
}

#[test]
fn a_hello_in_records_of_an_unheard_of_minor_version_is_not_taken_for_opaque_bytes() {
    let mut bytes = records(&hello(&[alpn(&[b"tulle-tcp"])]), 40);
    bytes[2] = 5;
    assert_eq!(tls(&bytes).is_mesh, Some(MeshAlpn::Tcp));
}

#[test]
fn our_protocol_names_are_those_that_certs_negotiates() {
    use tulle_certs::Alpn;
    for (ours, theirs) in MeshAlpn::ALL.into_iter().zip([Alpn::H2, Alpn::Http1, Alpn::Streams, Alpn::Tcp]) {
        assert_eq!(ours.as_bytes(), theirs.name());
    }
}

#[test]
fn a_post_quantum_hello_spans_segments_and_records() {
    let message = hello(&[(51, vec![9; 1300]), sni(b"a.example"), alpn(&[b"tulle-tcp"])]);
    for size in [1, 2, 3, 5, 100, 1400, 9000] {
        let told = split(&records(&message, size));
        let Detection::Tls(told) = told else { panic!("{told:?} with fragments of {size}") };
        assert_eq!((told.sni.as_deref(), told.is_mesh), (Some("a.example"), Some(MeshAlpn::Tcp)));
    }
}

#[test]
fn a_hello_that_is_too_long_or_not_sound_is_opaque() {
    let oversize = hello(&[(51, vec![9; MAX])]);
    let twice = hello(&[sni(b"a"), sni(b"b")]);
    let mut loose = hello(&[sni(b"a")]);
    let last = loose.len() - 1;
    loose[last - 1] = 200; // the name is longer than its extension
    let mut trailing = hello(&[]);
    trailing.push(0);
    trailing[3] += 1;
    for message in [&oversize, &twice, &trailing] {
        assert_eq!(split(&records(message, 16_000)), Detection::Opaque);
    }
    // A name that makes no sense is no reason not to see TLS.
    assert_eq!(tls(&records(&loose, 9000)).sni, None);
    assert_eq!(tls(&records(&hello(&[sni(b"a b")]), 9000)).sni, None);
    assert_eq!(tls(&records(&hello(&[sni(b"")]), 9000)).sni, None);
    assert_eq!(tls(&records(&hello(&[sni(b"\xff\xfe")]), 9000)).sni, None);
}

#[test]
fn a_hello_of_rustls_is_read() {
    use std::sync::Arc;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    #[allow(clippy::disallowed_methods, reason = "only its first bytes are wanted")]
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"tulle-http/1.1".to_vec()];
    let mut client =
        rustls::ClientConnection::new(Arc::new(config), "web.example".try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    assert!(bytes.len() > 1000, "no post-quantum key share: {}", bytes.len());
    let Detection::Tls(told) = split(&bytes) else { panic!("not TLS") };
    assert_eq!((told.sni.as_deref(), told.is_mesh), (Some("web.example"), Some(MeshAlpn::Http1)));
}

#[test]
fn every_split_of_mutated_bytes_ends_in_the_same_answer() {
    let samples: Vec<Vec<u8>> = vec![
        records(&hello(&[sni(b"a.example"), alpn(&[b"h2", b"tulle-h2"]), (51, vec![1; 200])]), 9000),
        records(&hello(&[sni(b"a.example"), alpn(&[b"tulle-tcp"])]), 7),
        records(&hello(&[]), 20),
        b"GET /a/b?c=d HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(),
        b"\r\nPOST http://a/ HTTP/1.0\n".to_vec(),
        HTTP2_PREFACE.to_vec(),
    ];
    seeds(600, |_, mut rng: Rng| {
        let mut bytes = rng.choose(&samples).clone();
        rng.mutate(&mut bytes);
        split(&bytes);
    });
}
