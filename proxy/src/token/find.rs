//! Which token a request carries, and which issuers take one from there.

use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use smallvec::SmallVec;

use super::{Authentication, Issuer, Place, Refusal};

/// What several policies say together of one request: all their issuers are taken, and a token must be there if any of them wants one.
#[derive(Debug, Default)]
pub struct Pool<'a> {
    issuers: SmallVec<[&'a Arc<Issuer>; 8]>,
    /// The first policy that wants a token.
    pub required: Option<&'a Authentication>,
    is_any: bool,
}

/// The one token of a request.
#[derive(Debug)]
pub struct Found<'a> {
    pub text: Box<[u8]>,
    /// Where it was.
    places: SmallVec<[&'a Place; 2]>,
    /// Who takes tokens from there.
    pub issuers: SmallVec<[&'a Arc<Issuer>; 8]>,
}

// === impl Pool ===

impl<'a> Pool<'a> {
    pub fn of(policies: impl Iterator<Item = &'a Authentication>) -> Self {
        let mut pool = Self::default();
        for policy in policies {
            pool.is_any = true;
            pool.issuers.extend(policy.issuers());
            if policy.required {
                pool.required.get_or_insert(policy);
            }
        }
        pool
    }

    /// Whether no policy is in it.
    pub fn is_empty(&self) -> bool {
        !self.is_any
    }

    /// The token that a request brings; `None`: it brings none.
    ///
    /// # Errors
    /// [`Refusal::Several`]: it brings different ones, and what is behind could take the other.
    pub fn find(&self, headers: &HeaderMap) -> Result<Option<Found<'a>>, Refusal> {
        let mut found: Option<Found<'a>> = None;
        for issuer in self.issuers.iter().copied() {
            let mut takes = false;
            for place in &issuer.spec.from {
                for token in
                    headers.get_all(&place.header).iter().filter_map(|value| place.token(value.as_bytes()))
                {
                    let known = found.get_or_insert_with(|| Found {
                        text: token.into(),
                        places: SmallVec::new(),
                        issuers: SmallVec::new(),
                    });
                    if *known.text != *token {
                        return Err(Refusal::Several);
                    }
                    if !known.places.contains(&place) {
                        known.places.push(place);
                    }
                    takes = true;
                }
            }
            if let Some(found) = found.as_mut().filter(|_| takes) {
                found.issuers.push(issuer);
            }
        }
        Ok(found)
    }
}

// === impl Found ===

#[cfg(test)]
impl<'a> Found<'a> {
    pub(super) fn of(text: &str, issuers: impl IntoIterator<Item = &'a Arc<Issuer>>) -> Self {
        let (text, issuers) = (text.as_bytes().into(), issuers.into_iter().collect());
        Self { text, places: SmallVec::new(), issuers }
    }
}

impl Found<'_> {
    /// Removes the token from where it was; what else is in these headers stays.
    pub fn remove(&self, headers: &mut HeaderMap) {
        for place in &self.places {
            let is_it =
                |value: &HeaderValue| place.token(value.as_bytes()).is_some_and(|token| *token == *self.text);
            let others: Vec<HeaderValue> =
                headers.get_all(&place.header).iter().filter(|value| !is_it(value)).cloned().collect();
            headers.remove(&place.header);
            for other in others {
                headers.append(place.header.clone(), other);
            }
        }
    }
}
