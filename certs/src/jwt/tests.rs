use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm,
    Ed25519KeyPair, KeyPair, RsaKeyPair,
};
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header};
use serde_json::json;

use super::*;

/// A key that signs, and the same as others may have it.
struct Pair {
    signing: EncodingKey,
    public: Value,
}

fn pair(signing: EncodingKey, algorithm: Algorithm, id: &str) -> Pair {
    let mut public = serde_json::to_value(Jwk::from_encoding_key(&signing, algorithm).unwrap()).unwrap();
    // It may be used for whatever its type can do.
    public.as_object_mut().unwrap().remove("alg");
    public["kid"] = json!(id);
    Pair { signing, public }
}

fn rsa(id: &str) -> Pair {
    let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
    let der: Pkcs8V1Der<'_> = key.as_der().unwrap();
    // What is within PKCS#8 is the PKCS#1 that is signed with; of a key of 2,048 bits it begins there.
    pair(EncodingKey::from_rsa_der(&der.as_ref()[26..]), Algorithm::RS256, id)
}

fn ec(algorithm: Algorithm, id: &str) -> Pair {
    let by: &'static EcdsaSigningAlgorithm = match algorithm {
        Algorithm::ES384 => &ECDSA_P384_SHA384_FIXED_SIGNING,
        _ => &ECDSA_P256_SHA256_FIXED_SIGNING,
    };
    let key = EcdsaKeyPair::generate(by).unwrap().to_pkcs8v1().unwrap();
    pair(EncodingKey::from_ec_der(key.as_ref()), algorithm, id)
}

fn ed(id: &str) -> Pair {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
    let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
    let public = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(key.public_key().as_ref()), "kid": id });
    Pair { signing: EncodingKey::from_ed_der(document.as_ref()), public }
}

fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn set(keys: &[&Pair]) -> KeySet {
    let keys: Vec<&Value> = keys.iter().map(|pair| &pair.public).collect();
    KeySet::read(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn claims() -> Value {
    json!({ "iss": "https://issuer", "sub": "ann", "exp": 2_000_000_000 })
}

fn signed(pair: &Pair, algorithm: Algorithm, id: Option<&str>) -> String {
    let header = Header { kid: id.map(str::to_owned), ..Header::new(algorithm) };
    jsonwebtoken::encode(&header, &claims(), &pair.signing).unwrap()
}

fn verified(token: &str, keys: &KeySet) -> Result<(), SignatureError> {
    Token::read(token).unwrap().verify(keys)
}

/// A token of these parts, as they are.
fn made(header: &str, claims: &str) -> String {
    format!("{}.{}.{}", base64(header.as_bytes()), base64(claims.as_bytes()), base64(b"signature"))
}

#[test]
fn every_algorithm_verifies_by_its_own_kind_of_key() {
    let (rsa, p256, p384, ed) = (rsa("a"), ec(Algorithm::ES256, "a"), ec(Algorithm::ES384, "a"), ed("a"));
    let keys = set(&[&rsa, &p256, &p384, &ed]);
    use Algorithm as A;
    for (pair, algorithm) in [
        (&rsa, A::RS256),
        (&rsa, A::RS384),
        (&rsa, A::RS512),
        (&rsa, A::PS256),
        (&rsa, A::PS384),
        (&rsa, A::PS512),
        (&p256, A::ES256),
        (&p384, A::ES384),
        (&ed, A::EdDSA),
    ] {
        for id in [Some("a"), None] {
            let token = signed(pair, algorithm, id);
            assert_eq!(verified(&token, &keys), Ok(()), "{algorithm:?}");
            // One bit of it is another.
            let mut parts: Vec<String> = token.split('.').map(str::to_owned).collect();
            let mut signature = URL_SAFE_NO_PAD.decode(&parts[2]).unwrap();
            signature[0] ^= 1;
            parts[2] = base64(&signature);
            assert_eq!(verified(&parts.join("."), &keys), Err(SignatureError::Wrong), "{algorithm:?}");
        }
        assert_eq!(verified(&signed(pair, algorithm, Some("b")), &keys), Err(SignatureError::NoKey));
    }
    let read = Token::read(&signed(&rsa, A::RS256, None)).map(Token::into_claims).unwrap();
    assert_eq!(Value::Object(read), claims());
}

#[test]
fn a_key_is_not_what_a_token_says_that_it_is() {
    let (good, other) = (rsa("a"), rsa("a"));
    let keys = set(&[&good]);
    assert_eq!(verified(&signed(&other, Algorithm::RS256, Some("a")), &keys), Err(SignatureError::Wrong));
    // The public key as the secret of an HMAC: the confusion that RFC 8725 §2.1 tells of.
    let secret = EncodingKey::from_secret(good.public.to_string().as_bytes());
    let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims(), &secret).unwrap();
    assert_eq!(Token::read(&forged).unwrap_err(), ReadError::Algorithm);
    // A key that is for one algorithm only.
    let mut one = rsa("a");
    one.public["alg"] = json!("RS512");
    let keys = set(&[&one]);
    assert_eq!(verified(&signed(&one, Algorithm::RS512, None), &keys), Ok(()));
    assert_eq!(verified(&signed(&one, Algorithm::RS256, None), &keys), Err(SignatureError::NoKey));
    // A key that the token brings itself.
    let brought =
        Header { jwk: serde_json::from_value(other.public.clone()).ok(), ..Header::new(Algorithm::RS256) };
    let brought = jsonwebtoken::encode(&brought, &claims(), &other.signing).unwrap();
    assert_eq!(verified(&brought, &set(&[&good])), Err(SignatureError::Wrong));
}

#[test]
fn algorithms_that_are_not_accepted() {
    for alg in [
        "none", "None", "NONE", "", "HS256", "HS384", "HS512", "hs256", "rs256", "ES512", "ES256K",
        "RSA-OAEP", "dir",
    ] {
        let token = made(&json!({ "alg": alg }).to_string(), "{}");
        assert_eq!(Token::read(&token).unwrap_err(), ReadError::Algorithm, "{alg:?}");
    }
    for header in ["{}", r#"{"alg":null}"#, r#"{"alg":["RS256"]}"#, r#"{"alg":256}"#] {
        assert_eq!(Token::read(&made(header, "{}")).unwrap_err(), ReadError::Algorithm, "{header}");
    }
    // Without a signature, as RFC 7519 §6 has it.
    let bare = format!("{}.{}.", base64(br#"{"alg":"none"}"#), base64(b"{}"));
    assert_eq!(Token::read(&bare).unwrap_err(), ReadError::Algorithm);
    let bare = format!("{}.{}.", base64(br#"{"alg":"RS256"}"#), base64(b"{}"));
    assert_eq!(verified(&bare, &set(&[&rsa("a")])), Err(SignatureError::Wrong));
}

#[test]
fn what_is_no_token_is_refused() {
    let good = r#"{"alg":"RS256"}"#;
    let part = base64(good.as_bytes());
    let deep = format!("{}1{}", r#"{"a":"#.repeat(200), "}".repeat(200));
    for (token, why) in [
        (String::new(), "three parts"),
        ("a".to_owned(), "three parts"),
        (format!("{part}.{part}"), "three parts"),
        (format!("{part}.{part}.a.b"), "three parts"),
        (format!("{part}.{part}.a.b.c.d"), "three parts"),
        (format!("{part}.{part}.a.b.c"), "JWE"),
        (format!("..{part}"), "header"),
        (format!("{part}.!.a"), "claims"),
        // Padding, the other alphabet, and bits that nobody reads.
        (format!("{part}=.{part}.a"), "header"),
        (format!("{part}.e30=.a"), "claims"),
        (format!("{part}.e31.a"), "claims"),
        (format!("{part}.ey+/.a"), "claims"),
        (made("[]", "{}"), "header"),
        (made("\"RS256\"", "{}"), "header"),
        (made(good, "[]"), "claims"),
        (made(good, "{} {}"), "claims"),
        (made(good, "{"), "claims"),
        (made(good, "{\"sub\":\"\u{0}\"}"), "claims"),
        (made(good, r#"{"exp":1e999}"#), "claims"),
        (made(good, &deep), "claims"),
        (made(r#"{"alg":"none","alg":"RS256"}"#, "{}"), "different"),
        (made(good, r#"{"sub":"a","sub":"b"}"#), "different"),
        (made(good, r#"{"realm":{"role":"a","role":"b"}}"#), "different"),
        (made(r#"{"alg":"RS256","crit":["b64"],"b64":false}"#, "{}"), "critical"),
        (made(r#"{"alg":"RS256","crit":[]}"#, "{}"), "critical"),
        (made(r#"{"alg":"RS256","kid":7}"#, "{}"), "`kid`"),
    ] {
        let error = Token::read(&token).unwrap_err();
        assert!(
            matches!(error, ReadError::Malformed(_)) && error.to_string().contains(why),
            "{token}: {error}"
        );
    }
    let raw = format!("{part}.{}.a", base64(&[b'{', b'"', 0xff, b'"', b':', b'1', b'}']));
    assert!(matches!(Token::read(&raw), Err(ReadError::Malformed(_))), "not UTF-8");
    let long = "a".repeat(MAX_TOKEN + 1);
    assert_eq!(Token::read(&long).unwrap_err(), ReadError::TooLong);
}

#[test]
fn keys_are_tried_up_to_a_bound_where_the_token_names_none() {
    let pairs: Vec<Pair> = (0..=MOST_TRIED).map(|n| ec(Algorithm::ES256, &n.to_string())).collect();
    let keys = set(&pairs.iter().collect::<Vec<_>>());
    let last = signed(&pairs[MOST_TRIED], Algorithm::ES256, None);
    assert_eq!(verified(&last, &keys), Err(SignatureError::Wrong));
    assert_eq!(verified(&signed(&pairs[MOST_TRIED - 1], Algorithm::ES256, None), &keys), Ok(()));
    let named = signed(&pairs[MOST_TRIED], Algorithm::ES256, Some(&MOST_TRIED.to_string()));
    assert_eq!(verified(&named, &keys), Ok(()));
}

#[test]
fn nothing_shows_what_a_token_says() {
    let text = made(r#"{"alg":"RS256","kid":"secret-kid"}"#, r#"{"sub":"secret-sub"}"#);
    let shown = format!("{:?}", Token::read(&text).unwrap());
    assert!(!shown.contains("secret"), "{shown}");
}
