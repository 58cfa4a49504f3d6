//! Detection: never undecided twice, the same for every split, decided within its limit, and of one mind with rustls about
//! every ClientHello that rustls takes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tulle_proxy::detect::{Detection, MAX, MeshAlpn, detect};

fuzz_target!(|data: &[u8]| {
    let whole = detect(data, false);
    let mut decided = false;
    for end in 0..data.len() {
        match detect(&data[..end], false) {
            Detection::NeedMore => assert!(!decided, "undecided again after {end} bytes"),
            early => {
                assert_eq!(early, whole, "after {end} bytes");
                decided = true;
                assert_eq!(detect(&data[..end], true), whole, "the end of the stream changes it");
            }
        }
    }
    assert_ne!(detect(data, true), Detection::NeedMore);
    if whole == Detection::NeedMore {
        assert_eq!(detect(data, true), Detection::Opaque);
        if !data.is_empty() {
            let long: Vec<u8> = data.iter().copied().cycle().take(MAX).collect();
            assert_ne!(detect(&long, false), Detection::NeedMore);
        }
    }
    if let Detection::Tls(hello) = &whole {
        let ours = hello.alpn.iter().find_map(|name| MeshAlpn::from_bytes(name));
        assert_eq!(hello.is_mesh, ours);
        assert!(hello.sni.as_ref().is_none_or(|name| **name == *name.to_ascii_lowercase()));
    }
    agrees_with_rustls(data, &whole);
});

/// Were it to see another name or protocol than the handshake does, a connection would be judged as what it is not.
fn agrees_with_rustls(data: &[u8], whole: &Detection) {
    let mut acceptor = rustls::server::Acceptor::default();
    let mut bytes = data;
    while !bytes.is_empty() {
        match acceptor.read_tls(&mut bytes) {
            Ok(1..) => {}
            Ok(0) | Err(_) => return,
        }
        match acceptor.accept() {
            Ok(None) => {}
            Err(_) => return,
            Ok(Some(accepted)) => {
                let theirs = accepted.client_hello();
                let Detection::Tls(ours) = whole else { panic!("{whole:?} to us, TLS to rustls") };
                let names: Vec<&[u8]> = theirs.alpn().into_iter().flatten().collect();
                assert_eq!(ours.alpn.iter().map(|name| &**name).collect::<Vec<_>>(), names);
                assert_eq!(
                    ours.sni.as_deref().map(str::to_owned),
                    theirs.server_name().map(str::to_ascii_lowercase)
                );
                return;
            }
        }
    }
}
