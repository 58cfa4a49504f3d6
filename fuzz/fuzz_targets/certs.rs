//! What proves who someone is, in whatever bytes it comes: PEM, certificates, requests, SPIFFE IDs, join tokens, pins.
//!
//! The first byte chooses which.
#![no_main]

use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use tulle_certs::issue::{Authority, split_chain};
use tulle_certs::token::{JoinTokens, TokenFile};
use tulle_certs::{Pin, PrivateKey, SpiffeId, TrustBundle, TrustDomain, names, peer_id, pem, validity};
use tulle_fuzz::Reader;

const DAY: Duration = Duration::from_secs(24 * 3600);

fuzz_target!(|data: &[u8]| {
    let mut reader = Reader(data);
    let choice = reader.byte();
    match (choice % 8, std::str::from_utf8(reader.0)) {
        (0, Ok(text)) => blocks(text),
        (1, Ok(text)) => certificates(text),
        (2, Ok(text)) => spiffe_id(text),
        (3, Ok(text)) => token_file(text),
        (4, Ok(text)) => token(text),
        (5, _) => altered_token(reader),
        (6, _) => certificate(reader.0),
        (7, _) => request(reader.0),
        _ => {}
    }
});

fn blocks(text: &str) {
    // Neither what the lines end with nor what stands around them matters.
    let crlf = text.replace("\r\n", "\n").replace('\n', "\r\n");
    let same = |text: &str| {
        pem::blocks(text)
            .map(|blocks| blocks.into_iter().map(|b| (b.label, b.der, b.line)).collect::<Vec<_>>())
    };
    assert_eq!(same(text), same(&crlf));
    assert_eq!(same(text), same(&format!("\u{feff}{text}")));
    if let Ok(blocks) = pem::blocks(text) {
        let lines = text.lines().count();
        let again: String = blocks.iter().map(|block| pem::encode(&block.label, &block.der)).collect();
        let again = pem::blocks(&again).expect("is well-formed");
        assert_eq!(blocks.len(), again.len());
        for (i, (block, again)) in blocks.iter().zip(&again).enumerate() {
            assert_eq!((&block.label, &block.der, block.index), (&again.label, &again.der, again.index));
            assert!(block.index == i + 1 && (1..=lines).contains(&block.line) && !block.der.is_empty());
        }
    }
    let _ = PrivateKey::from_pem(text).map(|key| assert!(PrivateKey::from_pem(&key.to_pem()).is_ok()));
}

fn certificates(text: &str) {
    if let Ok(found) = pem::certificates(text) {
        let again: String = found.iter().map(|one| pem::encode_certificate(one)).collect();
        assert_eq!(pem::certificates(&again).as_ref(), Ok(&found));
        if let Ok(chain) = pem::order_chain(found.clone()) {
            assert!(
                chain.iter().all(|one| found.contains(one)) && found.iter().all(|one| chain.contains(one))
            );
            assert_eq!(pem::order_chain(chain.clone()), Ok(chain), "what is in order stays as it is");
        }
    }
    let domain = TrustDomain::default();
    if let Ok(bundle) = TrustBundle::from_pem(domain.clone(), text) {
        assert!(!bundle.roots().is_empty());
        assert_eq!(bundle.pins().len(), bundle.roots().len());
        assert_eq!(TrustBundle::from_pem(domain.clone(), &bundle.to_pem()), Ok(bundle));
    }
    let _ = split_chain(&[text], &domain)
        .map(|(chain, bundle)| assert!(!chain.is_empty() && !bundle.roots().is_empty()));
}

fn certificate(der: &[u8]) {
    let certificate = der.to_vec().into();
    assert_eq!(names(&certificate).is_ok(), validity(&certificate).is_ok());
    assert_eq!(names(&certificate).is_ok(), Pin::of(&certificate).is_ok());
    if let Ok(id) = peer_id(std::slice::from_ref(&certificate)) {
        assert_eq!(SpiffeId::parse(id.as_str()), Ok(id));
    }
    let _ = TrustBundle::from_der(TrustDomain::default(), &[der]);
    let _ = PrivateKey::from_der(der);
}

fn spiffe_id(text: &str) {
    match SpiffeId::parse(text) {
        Err(error) => assert!(error.to_string().len() < 2000, "an error that quotes all of it"),
        Ok(id) => {
            assert_eq!(id.to_string(), text);
            let domain = TrustDomain::new(id.trust_domain_str()).expect("is one");
            assert_eq!(SpiffeId::new(&domain, id.namespace(), id.service_account()), Ok(id.clone()));
            for part in [id.trust_domain_str(), id.namespace(), id.service_account()] {
                assert!(
                    !part.is_empty() && !part.contains(['/', '%', ':', '@', '?', '#']) && part.is_ascii()
                );
            }
        }
    }
    if let Ok(domain) = TrustDomain::new(text) {
        assert_eq!(domain.as_str(), text);
        assert!(SpiffeId::new(&domain, "a", "b").is_ok());
    }
    if let Ok(pin) = text.parse::<Pin>() {
        assert_eq!(pin.to_string(), text.to_ascii_lowercase());
    }
    // What is put together of two parts is what those parts say, or nothing.
    if let Some((namespace, account)) = text.split_once(' ')
        && let Ok(id) = SpiffeId::new(&TrustDomain::default(), namespace, account)
    {
        assert_eq!((id.namespace(), id.service_account()), (namespace, account));
        assert_eq!(id.trust_domain(), TrustDomain::default());
    }
}

fn token_file(text: &str) {
    if let Ok(file) = TokenFile::parse(text) {
        assert!(TokenFile::parse(&file.to_text()).is_ok_and(|again| again == file));
        assert!(!format!("{file:?}").contains(file.token.as_str()), "a token is a secret");
        drop(file.claims());
    }
}

static TOKENS: LazyLock<JoinTokens> = LazyLock::new(|| JoinTokens::generate().expect("there is randomness"));
static NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn token(text: &str) {
    assert!(TOKENS.verify(text, NOW).is_err(), "nobody has signed it");
}

/// Of a token that is good, nothing can be changed.
fn altered_token(mut reader: Reader<'_>) {
    static GOOD: LazyLock<String> = LazyLock::new(|| {
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("is one");
        TOKENS.mint(&id, &["orders".to_owned()], DAY, NOW).expect("can be signed")
    });
    let mut token = GOOD.as_bytes().to_vec();
    while !reader.is_empty() {
        let (at, byte) = (usize::from(reader.byte()) * 2 + usize::from(reader.byte() & 1), reader.byte());
        let length = token.len();
        token[at % length] = byte;
    }
    let Ok(token) = String::from_utf8(token) else { return };
    match TOKENS.verify(&token, NOW) {
        Ok(claims) => {
            assert_eq!(claims.sub.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
            // Only what cannot be told from it: whitespace around it, and bits that base64 does not use.
            assert_eq!(claims.services, ["orders"]);
            assert_eq!(claims.exp, NOW + DAY);
        }
        Err(error) => assert_ne!(token, *GOOD, "{error}"),
    }
}

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    Authority::generate(&TrustDomain::default(), 365 * DAY, SystemTime::now()).expect("there is randomness")
});

/// Whatever a request asks for, the certificate says what its caller was proven to be, and no more.
fn request(bytes: &[u8]) {
    let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").expect("is one");
    let text = match std::str::from_utf8(bytes) {
        Ok(text) if text.contains("-----") => text.to_owned(),
        _ => pem::encode("CERTIFICATE REQUEST", bytes),
    };
    let Ok(issued) = AUTHORITY.issue(&text, &id, DAY, SystemTime::now()) else { return };
    assert_eq!(peer_id(&issued.chain), Ok(id));
    assert!(TrustBundle::new(TrustDomain::default(), issued.chain).is_err(), "a leaf is no authority");
}
