//! Sets of public keys by which tokens of others are verified (JWK sets, RFC 7517).
//!
//! Decides which keys of a set are used at all, and for which algorithms: a key is used as its own type says, never as a token
//! says (RFC 8725 §3.1). A key that cannot be used is left out and the others stay (RFC 7517 §5); a set of which nothing is left is an error.
//! Symmetric keys are never used: who knows a set could make tokens with them.

use std::fmt;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

/// Longer sets are refused unread; bytes.
pub const MAX_SET: usize = 1024 * 1024;
/// Sets of more keys are refused.
pub const MAX_KEYS: usize = 100;
/// RSA moduli of fewer or more bits are not used (NIST SP 800-131A; what the library verifies at most).
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeySetError {
    /// It is longer than [`MAX_SET`].
    #[error("the set of keys is {0} bytes long: more than {MAX_SET}")]
    TooLong(usize),
    /// It is not JSON, or not an object with a list `keys`.
    #[error("it is not a JWK set (RFC 7517): {0}")]
    Malformed(String),
    /// It has more than [`MAX_KEYS`].
    #[error("the set has {0} keys: more than {MAX_KEYS}")]
    TooMany(usize),
    /// Not one of its keys verifies anything; why, of each.
    #[error("no key in it can be used: {0}")]
    Unusable(String),
}

/// Keys that can be used, as one set had them.
#[derive(Clone)]
pub struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<String>,
    /// Of the text.
    hash: [u8; 32],
}

/// One key, and what it verifies.
#[derive(Clone)]
pub(crate) struct Key {
    id: Option<Box<str>>,
    algorithms: Vec<Algorithm>,
    pub(crate) key: DecodingKey,
}

// === impl KeySet ===

impl KeySet {
    /// Reads a set.
    ///
    /// # Errors
    /// Where nothing of it can be used.
    pub fn read(text: &[u8]) -> Result<Self, KeySetError> {
        if text.len() > MAX_SET {
            return Err(KeySetError::TooLong(text.len()));
        }
        let set: Value =
            serde_json::from_slice(text).map_err(|error| KeySetError::Malformed(error.to_string()))?;
        let Some(listed) = set.get("keys").and_then(Value::as_array) else {
            return Err(KeySetError::Malformed("it has no list `keys`".to_owned()));
        };
        if listed.len() > MAX_KEYS {
            return Err(KeySetError::TooMany(listed.len()));
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, key) in listed.iter().enumerate() {
            match Key::read(key) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(format!("keys[{index}] {why}")),
            }
        }
        if keys.is_empty() {
            let why = if skipped.is_empty() { "there is none".to_owned() } else { skipped.join("; ") };
            return Err(KeySetError::Unusable(why));
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, text).as_ref());
        Ok(Self { keys, skipped, hash })
    }

    /// How many keys it has that can be used; at least one.
    pub fn count(&self) -> usize {
        self.keys.len()
    }

    /// What was left out of it, and why, for people.
    pub fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Those that may have signed what says this of its key (RFC 7515 §4.1.4); without an ID, all that fit.
    pub(crate) fn fitting(&self, algorithm: Algorithm, id: Option<&str>) -> impl Iterator<Item = &Key> {
        self.keys.iter().filter(move |key| {
            key.algorithms.contains(&algorithm) && id.is_none_or(|id| key.id.as_deref() == Some(id))
        })
    }
}

/// Whether two are of the same text.
impl PartialEq for KeySet {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash
    }
}

impl Eq for KeySet {}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ids: Vec<_> = self.keys.iter().map(|key| key.id.as_deref().unwrap_or("-")).collect();
        f.debug_struct("KeySet").field("ids", &ids).finish_non_exhaustive()
    }
}

/// Whether a text that may be a set of keys has anything in it that only their owner may know: what makes signatures, or symmetric keys.
pub fn has_secrets(text: &str) -> bool {
    let set: Option<Value> = serde_json::from_str(text).ok();
    let keys = set.as_ref().and_then(|set| set.get("keys")?.as_array());
    keys.is_some_and(|keys| {
        keys.iter().any(|key| ["d", "p", "q", "k"].iter().any(|part| key.get(part).is_some()))
    })
}

// === impl Key ===

impl Key {
    fn read(value: &Value) -> Result<Self, String> {
        let jwk: Jwk =
            serde_json::from_value(value.clone()).map_err(|error| format!("is no key: {error}"))?;
        match &jwk.common.public_key_use {
            None | Some(PublicKeyUse::Signature) => {}
            Some(PublicKeyUse::Encryption | PublicKeyUse::Other(_)) => {
                return Err("is not for signatures (`use`)".to_owned());
            }
        }
        if let Some(operations) = &jwk.common.key_operations
            && !operations.contains(&KeyOperations::Verify)
        {
            return Err("is not for verifying (`key_ops`)".to_owned());
        }
        let algorithms = algorithms(&jwk)?;
        let algorithms: Vec<Algorithm> = match jwk.common.key_algorithm {
            None => algorithms.to_vec(),
            Some(said) => algorithms.iter().copied().filter(|one| KeyAlgorithm::from(*one) == said).collect(),
        };
        if algorithms.is_empty() {
            return Err("says an `alg` that keys of its type do not have".to_owned());
        }
        let key = DecodingKey::from_jwk(&jwk).map_err(|error| format!("cannot be read: {error}"))?;
        Ok(Self { id: jwk.common.key_id.map(String::into_boxed_str), algorithms, key })
    }
}

/// What a key of its type verifies.
fn algorithms(jwk: &Jwk) -> Result<&'static [Algorithm], String> {
    use Algorithm as A;
    match &jwk.algorithm {
        AlgorithmParameters::RSA(key) => {
            let modulus = bytes(&key.n, "n")?;
            let bits = bits(&modulus);
            if !RSA_BITS.contains(&bits) {
                let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
                return Err(format!("is an RSA key of {bits} bits: not from {least} to {most}"));
            }
            let exponent = bytes(&key.e, "e")?;
            // With 1 every text is its own signature.
            if bits_of_exponent(&exponent).is_none() {
                return Err("is an RSA key with an exponent that is not odd and from 3 to 2^33".to_owned());
            }
            Ok(&[A::RS256, A::RS384, A::RS512, A::PS256, A::PS384, A::PS512])
        }
        AlgorithmParameters::EllipticCurve(key) => {
            let (length, algorithms): (usize, &[Algorithm]) = match key.curve {
                EllipticCurve::P256 => (32, &[A::ES256]),
                EllipticCurve::P384 => (48, &[A::ES384]),
                _ => return Err("is on a curve that is not P-256 or P-384".to_owned()),
            };
            if bytes(&key.x, "x")?.len() != length || bytes(&key.y, "y")?.len() != length {
                return Err(format!("has coordinates that are not {length} bytes (RFC 7518 §6.2.1.2)"));
            }
            Ok(algorithms)
        }
        AlgorithmParameters::OctetKeyPair(key) => {
            if key.curve != EllipticCurve::Ed25519 || bytes(&key.x, "x")?.len() != 32 {
                return Err("is not on the curve Ed25519".to_owned());
            }
            Ok(&[A::EdDSA])
        }
        AlgorithmParameters::OctetKey(_) => {
            Err("is symmetric: whoever has the set could make tokens".to_owned())
        }
        _ => Err("is of a type that is not RSA, EC or OKP, or lacks what its type must have".to_owned()),
    }
}

fn bytes(text: &str, field: &str) -> Result<Vec<u8>, String> {
    URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("has a `{field}` that is not base64url"))
}

/// How many a number has, which is written with its highest first.
fn bits(number: &[u8]) -> usize {
    let number = without_zeros(number);
    match number.first() {
        None => 0,
        Some(first) => number.len() * 8 - first.leading_zeros() as usize,
    }
}

/// Of one that can be used.
fn bits_of_exponent(exponent: &[u8]) -> Option<usize> {
    let bits = bits(exponent);
    let is_odd = exponent.last().is_some_and(|last| last & 1 == 1);
    (is_odd && (2..=33).contains(&bits)).then_some(bits)
}

fn without_zeros(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    &number[zeros..]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn base64(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Of which only its length counts.
    fn rsa(bits: usize) -> Value {
        let mut modulus = vec![0xff; bits.div_ceil(8)];
        modulus[0] >>= (8 - bits % 8) % 8;
        json!({ "kty": "RSA", "n": base64(&modulus), "e": "AQAB" })
    }

    fn with(mut key: Value, field: &str, value: Value) -> Value {
        key[field] = value;
        key
    }

    fn read(keys: &[Value]) -> Result<KeySet, KeySetError> {
        KeySet::read(json!({ "keys": keys }).to_string().as_bytes())
    }

    #[test]
    fn a_key_is_used_for_what_its_own_type_says() {
        let ec = |curve: &str, length| {
            let half = base64(&vec![1; length]);
            json!({ "kty": "EC", "crv": curve, "x": half, "y": half })
        };
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 32]) });
        for (key, fits) in [
            (rsa(2048), "RS256 RS384 RS512 PS256 PS384 PS512"),
            (with(rsa(2048), "alg", json!("PS384")), "PS384"),
            (with(rsa(2048), "use", json!("sig")), "RS256 RS384 RS512 PS256 PS384 PS512"),
            (ec("P-256", 32), "ES256"),
            (ec("P-384", 48), "ES384"),
            (ed, "EdDSA"),
        ] {
            let set = read(std::slice::from_ref(&key)).unwrap();
            let fits: Vec<Algorithm> = fits.split(' ').map(|name| name.parse().unwrap()).collect();
            for algorithm in
                ["HS256", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"]
            {
                let algorithm: Algorithm = algorithm.parse().unwrap();
                let found = set.fitting(algorithm, None).count();
                assert_eq!(found == 1, fits.contains(&algorithm), "{key} {algorithm:?}");
            }
        }
    }

    #[test]
    fn what_must_not_be_used_is_left_out_with_its_reason() {
        let oct = json!({ "kty": "oct", "k": "c2VjcmV0" });
        let short = json!({ "kty": "EC", "crv": "P-256", "x": base64(&[1; 31]), "y": base64(&[1; 32]) });
        let k1 = json!({ "kty": "EC", "crv": "secp256k1", "x": base64(&[1; 32]), "y": base64(&[1; 32]) });
        for (key, why) in [
            (rsa(1024), "1024 bits"),
            (rsa(2047), "2047 bits"),
            (rsa(8200), "8200 bits"),
            (with(rsa(2048), "e", json!("AQ")), "exponent"),
            (with(rsa(2048), "e", json!("")), "exponent"),
            (with(rsa(2048), "n", json!("a b")), "`n`"),
            (with(rsa(2048), "use", json!("enc")), "`use`"),
            (with(rsa(2048), "key_ops", json!(["sign"])), "`key_ops`"),
            (with(rsa(2048), "alg", json!("HS256")), "`alg`"),
            (with(rsa(2048), "alg", json!("ES256")), "`alg`"),
            (with(rsa(2048), "alg", json!("none")), "`alg`"),
            (with(rsa(2048), "kid", json!(7)), "is no key"),
            (short, "coordinates"),
            (k1, "type"),
            (oct, "symmetric"),
            (json!({ "kty": "OKP", "crv": "X25519", "x": base64(&[1; 32]) }), "type"),
            (json!("text"), "is no key"),
        ] {
            match read(std::slice::from_ref(&key)) {
                Err(KeySetError::Unusable(said)) => assert!(said.contains(why), "{key}: {said}"),
                other => panic!("{key}: {other:?}"),
            }
            let set = read(&[key.clone(), rsa(2048)]).unwrap();
            assert_eq!((set.count(), set.skipped().len()), (1, 1), "{key}: the other stays");
        }
    }

    #[test]
    fn a_set_has_bounds() {
        let most = vec![rsa(2048); MAX_KEYS];
        assert_eq!(read(&most).unwrap().count(), MAX_KEYS);
        let more = vec![rsa(2048); MAX_KEYS + 1];
        assert_eq!(read(&more), Err(KeySetError::TooMany(MAX_KEYS + 1)));
        let long = vec![b' '; MAX_SET + 1];
        assert_eq!(KeySet::read(&long), Err(KeySetError::TooLong(MAX_SET + 1)));
        assert!(matches!(read(&[]), Err(KeySetError::Unusable(_))));
        for text in ["", "[]", "{}", "{\"keys\": 1}", "<html>", &"[".repeat(10_000)] {
            assert!(matches!(KeySet::read(text.as_bytes()), Err(KeySetError::Malformed(_))), "{text}");
        }
    }

    #[test]
    fn an_id_chooses_a_key_and_two_may_share_it() {
        let ed = json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(&[1; 32]), "kid": "a" });
        let set =
            read(&[with(rsa(2048), "kid", json!("a")), with(rsa(2048), "kid", json!("b")), rsa(2048), ed])
                .unwrap();
        let count = |algorithm, id| set.fitting(algorithm, id).count();
        assert_eq!(count(Algorithm::RS256, Some("a")), 1);
        assert_eq!(count(Algorithm::EdDSA, Some("a")), 1);
        assert_eq!(count(Algorithm::RS256, Some("c")), 0);
        assert_eq!(count(Algorithm::RS256, None), 3);
    }

    #[test]
    fn secrets_are_seen() {
        let set = |key: Value| json!({ "keys": [rsa(2048), key] }).to_string();
        assert!(has_secrets(&set(with(rsa(2048), "d", json!("AQ")))));
        assert!(has_secrets(&set(json!({ "kty": "oct", "k": "AQ" }))));
        assert!(!has_secrets(&set(rsa(2048))) && !has_secrets("nonsense"));
    }
}
