//! Issuers of tokens (JWT): keys, sets of them, and what they sign.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

/// A key of an issuer, for ES256.
pub struct TokenKey {
    /// Its `kid`.
    pub id: String,
    signing: EncodingKey,
}

// === impl TokenKey ===

impl TokenKey {
    /// A new one.
    pub fn new(id: &str) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        Self { id: id.to_owned(), signing: EncodingKey::from_ec_der(&key.serialize_der()) }
    }

    /// As a set of keys has it.
    pub fn public(&self) -> Value {
        let key = Jwk::from_encoding_key(&self.signing, Algorithm::ES256).expect("a key on P-256");
        let mut key = serde_json::to_value(key).expect("JSON");
        key["kid"] = json!(self.id);
        key["use"] = json!("sig");
        key
    }

    /// A token that says this.
    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.id.clone()), ..Header::new(Algorithm::ES256) };
        jsonwebtoken::encode(&header, claims, &self.signing).expect("a token")
    }
}

/// A set of keys.
pub fn set(keys: &[&TokenKey]) -> String {
    let keys: Vec<Value> = keys.iter().map(|key| key.public()).collect();
    json!({ "keys": keys }).to_string()
}

/// Seconds since 1970, so many from now.
pub fn in_seconds(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    i64::try_from(now).expect("a time") + seconds
}
