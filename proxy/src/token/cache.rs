//! Tokens that were verified a moment ago: a signature costs more than all else of a request.

use std::collections::HashMap;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use foldhash::fast::RandomState;
use tulle_certs::jwks::KeySet;

use super::{Found, Issuer};
use crate::policy::Claims;

/// Tokens of one worker. Two halves: what is used moves to the new one, and when that is full the old one is forgotten.
#[derive(Debug, Default)]
pub struct Cache {
    new: Half,
    old: Half,
}

#[derive(Debug, Default)]
struct Half {
    tokens: HashMap<Hash, Verified, RandomState>,
    /// Of the tokens.
    bytes: usize,
}

type Hash = [u8; 32];

/// A token that was verified.
#[derive(Clone, Debug)]
pub(super) struct Verified {
    claims: Arc<Claims>,
    issuer: Arc<Issuer>,
    /// By which it was.
    keys: Arc<KeySet>,
    /// Seconds since 1970.
    until: f64,
    length: usize,
}

/// How many tokens a half may hold, and how long they may be together.
const MOST: usize = 2048;
const MOST_BYTES: usize = 2 * 1024 * 1024;

// === impl Cache ===

impl Cache {
    /// What a token says, if it was verified for one of the issuers that take it, by the keys that these have still, and is valid `now`.
    pub fn get<'f>(&mut self, found: &'f Found<'_>, now: f64) -> Option<(&'f Arc<Issuer>, Arc<Claims>)> {
        if self.new.tokens.is_empty() && self.old.tokens.is_empty() {
            return None;
        }
        let hash = hash(&found.text);
        let known = match self.new.tokens.get(&hash) {
            Some(known) => known.clone(),
            None => {
                let known = self.old.tokens.remove(&hash)?;
                self.old.bytes -= known.length;
                self.put(hash, known.clone());
                known
            }
        };
        let issuer = found.issuers.iter().find(|issuer| Arc::ptr_eq(issuer, &known.issuer))?;
        let holds = now < known.until && issuer.current().is_some_and(|keys| Arc::ptr_eq(&keys, &known.keys));
        holds.then_some((*issuer, known.claims))
    }

    /// Remembers a token that was verified by `keys`, for as long as it is valid.
    pub fn insert(
        &mut self,
        text: &[u8],
        claims: &Arc<Claims>,
        issuer: &Arc<Issuer>,
        keys: &Arc<KeySet>,
        until: f64,
    ) {
        let (claims, issuer, keys) = (Arc::clone(claims), Arc::clone(issuer), Arc::clone(keys));
        self.put(hash(text), Verified { claims, issuer, keys, until, length: text.len() });
    }

    fn put(&mut self, hash: Hash, verified: Verified) {
        if self.new.tokens.len() >= MOST || self.new.bytes + verified.length > MOST_BYTES {
            self.old = std::mem::take(&mut self.new);
        }
        self.new.bytes += verified.length;
        if let Some(before) = self.new.tokens.insert(hash, verified) {
            self.new.bytes -= before.length;
        }
    }
}

/// What a token is told by: nobody makes another of the same.
fn hash(text: &[u8]) -> Hash {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, text).as_ref());
    hash
}

#[cfg(test)]
mod tests {
    use super::super::tests::{claims, inline, issuer};
    use super::*;

    fn found<'a>(text: &str, issuer: &'a Arc<Issuer>) -> Found<'a> {
        Found::of(text, [issuer])
    }

    #[test]
    fn a_token_is_remembered_for_its_issuer_its_keys_and_its_time() {
        let (one, other) = (issuer(inline()), issuer(inline()));
        let (mut cache, claims) = (Cache::default(), claims());
        assert!(cache.get(&found("token", &one), 1.0).is_none());
        cache.insert(b"token", &claims, &one, &one.current().unwrap(), 10.0);
        assert!(cache.get(&found("token", &one), 9.9).is_some_and(|(_, said)| Arc::ptr_eq(&said, &claims)));
        assert!(cache.get(&found("token", &one), 10.0).is_none(), "expired");
        assert!(cache.get(&found("token", &other), 9.0).is_none(), "another issuer's");
        assert!(cache.get(&found("tokem", &one), 9.0).is_none());
        cache.insert(b"old", &claims, &one, &other.current().unwrap(), 10.0);
        assert!(cache.get(&found("old", &one), 9.0).is_none(), "its keys have been replaced");
    }

    #[test]
    fn it_has_bounds_and_keeps_what_is_used() {
        let one = issuer(inline());
        let (mut cache, claims, keys) = (Cache::default(), claims(), one.current().unwrap());
        cache.insert(b"used", &claims, &one, &keys, 1e9);
        for n in 0..5 * MOST {
            cache.insert(format!("{n}").as_bytes(), &claims, &one, &keys, 1e9);
            if n % (MOST / 4) == 0 {
                assert!(cache.get(&found("used", &one), 1.0).is_some(), "{n}");
            }
        }
        assert!(cache.new.tokens.len() + cache.old.tokens.len() <= 2 * MOST);
        let long = vec![b'a'; 16 * 1024];
        for n in 0..1000_u32 {
            let text = [&n.to_be_bytes()[..], &long].concat();
            cache.insert(&text, &claims, &one, &keys, 1e9);
        }
        assert!(cache.new.bytes <= MOST_BYTES && cache.old.bytes <= MOST_BYTES);
    }
}
