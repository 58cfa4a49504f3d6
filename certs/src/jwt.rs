//! Tokens of others that requests carry (JWT, RFC 7519), in compact serialization and signed (JWS, RFC 7515 §7.1).
//!
//! Decides whether a text is such a token, and whether a key of a set has signed it; what its claims mean is the caller's. By RFC 8725: only
//! asymmetric algorithms, each by keys of its own type; nothing that the token itself says of keys (`jku`, `jwk`, `x5c`) is looked at; what it
//! declares critical and this does not know is refused; names that come twice are refused, since two readers could see two
//! tokens. No `Debug` and no error shows a token or a claim.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, AlgorithmFamily, crypto};
use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::jwks::KeySet;

/// Longer tokens are refused unread; bytes.
pub const MAX_TOKEN: usize = 16 * 1024;
/// So many keys are tried for a token that does not say which one has signed it.
pub const MOST_TRIED: usize = 8;

/// Why a text is not a token that can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// It is longer than [`MAX_TOKEN`].
    #[error("the token is longer than 16 KiB")]
    TooLong,
    /// Something else than three parts, or one that is not what it should be.
    #[error("{0}")]
    Malformed(&'static str),
    /// `none`, a symmetric one, or one that is not known.
    #[error("the token's algorithm is not one that is accepted")]
    Algorithm,
}

/// Why no key of a set has signed a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The set has none of that ID, or none that fits the algorithm.
    #[error("no key of the issuer fits the token")]
    NoKey,
    /// The keys that fit have not signed it.
    #[error("the token's signature is wrong")]
    Wrong,
}

/// A token that was read, and is not verified.
pub struct Token<'t> {
    /// Header and payload, as they were signed.
    signed: &'t str,
    signature: &'t str,
    algorithm: Algorithm,
    key_id: Option<String>,
    claims: Map<String, Value>,
}

// === impl Token ===

impl<'t> Token<'t> {
    /// Reads a token.
    ///
    /// # Errors
    /// Where it is none that could be verified by any key.
    pub fn read(text: &'t str) -> Result<Self, ReadError> {
        use ReadError::Malformed;
        if text.len() > MAX_TOKEN {
            return Err(ReadError::TooLong);
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature)) = (parts.next(), parts.next(), parts.next())
        else {
            return Err(Malformed("the token does not have three parts"));
        };
        match parts.count() {
            0 => {}
            2 => return Err(Malformed("the token is encrypted (JWE), which is not supported")),
            _ => return Err(Malformed("the token does not have three parts")),
        }
        let object = |part: &str, what: &'static str| match json(part) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err(Malformed(what)),
        };
        let header = object(
            header,
            "the token's header is not base64url of a JSON object whose names are all different",
        )?;
        // RFC 7515 §4.1.11: what is critical must be understood, and we understand none of it.
        if header.contains_key("crit") {
            return Err(Malformed("the token's header declares something critical (`crit`)"));
        }
        let algorithm =
            header.get("alg").and_then(Value::as_str).and_then(|name| name.parse::<Algorithm>().ok());
        let algorithm = algorithm.filter(|algorithm| algorithm.family() != AlgorithmFamily::Hmac);
        let algorithm = algorithm.ok_or(ReadError::Algorithm)?;
        let key_id = match header.get("kid") {
            None => None,
            Some(Value::String(id)) => Some(id.clone()),
            Some(_) => return Err(Malformed("the token's `kid` is not text")),
        };
        let claims = object(
            payload,
            "the token's claims are not base64url of a JSON object whose names are all different",
        )?;
        let signed = &text[..text.len() - signature.len() - 1];
        Ok(Self { signed, signature, algorithm, key_id, claims })
    }

    /// What it says, which nobody has verified.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// What it says; the caller has verified it.
    pub fn into_claims(self) -> Map<String, Value> {
        self.claims
    }

    /// Verifies its signature by a key of the set: the one that it names, else by those that fit, [`MOST_TRIED`] at most.
    ///
    /// # Errors
    /// Where none of them has signed it.
    pub fn verify(&self, keys: &KeySet) -> Result<(), SignatureError> {
        let mut error = SignatureError::NoKey;
        for key in keys.fitting(self.algorithm, self.key_id.as_deref()).take(MOST_TRIED) {
            let verified = crypto::verify(self.signature, self.signed.as_bytes(), &key.key, self.algorithm);
            if verified.is_ok_and(|verified| verified) {
                return Ok(());
            }
            error = SignatureError::Wrong;
        }
        Err(error)
    }
}

impl fmt::Debug for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// The JSON that a part encodes (RFC 7515 §2: base64url without padding).
fn json(part: &str) -> Option<Value> {
    let bytes = URL_SAFE_NO_PAD.decode(part).ok()?;
    let Strict(value) = serde_json::from_slice(&bytes).ok()?;
    Some(value)
}

/// JSON in which no object has a name twice (RFC 7519 §4, RFC 7515 §4). How deep it may be is bounded by the reader.
struct Strict(Value);

struct StrictVisitor;

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::from(value))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("not a number"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((name, Strict(value))) = entries.next_entry::<String, Strict>()? {
            if object.insert(name, value).is_some() {
                return Err(de::Error::custom("a name comes twice"));
            }
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests;
