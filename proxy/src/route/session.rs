//! Sessions: where a rule's clients carry their tokens, and for how long (GEP-1619).
//!
//! Decides which of a request's cookies or header values is the session's, takes it out, and writes the new one into an answer. Whatever else is
//! called the same, the application's own cookie too, is left alone. What is in a token is [`token`](super::token)'s.

use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::token::{SessionKey, Token};

/// How a rule keeps a client at one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    pub place: TokenPlace,
    /// What its tokens are good for: this rule only.
    pub scope: Box<str>,
    /// How long a session lasts.
    pub absolute_timeout: Option<Duration>,
    /// How long it lasts without a request.
    pub idle_timeout: Option<Duration>,
    /// [`backend_id`](super::backend_id) of each of the rule's backends, in their order.
    pub backends: Box<[u32]>,
}

/// Where clients carry their tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenPlace {
    /// The name is a token of RFC 9110.
    Cookie {
        name: Box<str>,
        /// Kept for the absolute timeout, and not until the client ends.
        permanent: bool,
    },
    Header(HeaderName),
}

/// What a client presents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presented {
    Nothing,
    /// Damaged, forged, or another rule's.
    Invalid,
    /// May be too old, which [`Session::is_over`] tells.
    Token(Token),
}

/// So many values of the name are looked into: a browser sends one for each path that the request is below.
const TRIED: usize = 4;

// === impl Session ===

impl Session {
    /// The client's token, which is taken out of the request.
    pub fn take(&self, key: &SessionKey, fields: &mut HeaderMap) -> Presented {
        let mut opener = Opener { session: self, key, tried: 0, token: None };
        match &self.place {
            TokenPlace::Header(name) => {
                let others = fields.get_all(name).iter().filter(|value| !opener.opens(value.as_bytes()));
                let others: Vec<HeaderValue> = others.cloned().collect();
                if opener.token.is_some() {
                    replace(fields, name, others);
                }
            }
            TokenPlace::Cookie { name, .. } => {
                let values = fields.get_all(header::COOKIE).iter();
                let others = values.filter_map(|value| {
                    let mut changed = false;
                    let mut left: Vec<&[u8]> = Vec::new();
                    for pair in value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                        let token =
                            pair.strip_prefix(name.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
                        match token.is_some_and(|token| opener.opens(token)) {
                            true => changed = true,
                            false => left.push(pair),
                        }
                    }
                    match (changed, &*left) {
                        (false, _) => Some(value.clone()),
                        (true, []) => None,
                        (true, left) => HeaderValue::from_bytes(&left.join(&b"; "[..])).ok(),
                    }
                });
                let others: Vec<HeaderValue> = others.collect();
                if opener.token.is_some() {
                    replace(fields, &header::COOKIE, others);
                }
            }
        }
        match opener {
            Opener { token: Some(token), .. } => Presented::Token(token),
            Opener { tried: 0, .. } => Presented::Nothing,
            Opener { .. } => Presented::Invalid,
        }
    }

    /// Whether the session has ended by its timeouts. `now`: milliseconds since 1970; where clocks differ, what lies ahead is now.
    pub fn is_over(&self, token: &Token, now: u64) -> bool {
        let past = |since: u64, limit: Option<Duration>| {
            limit.is_some_and(|limit| u128::from(now.saturating_sub(since)) >= limit.as_millis())
        };
        past(token.began, self.absolute_timeout) || past(token.seen, self.idle_timeout)
    }

    /// Gives the client its token, with the answer to a request below `path`. An application that says something of that name
    /// itself is not contradicted: false.
    pub fn put(&self, key: &SessionKey, token: &Token, path: &str, now: u64, fields: &mut HeaderMap) -> bool {
        let Some(text) = key.seal(&self.scope, token) else { return false };
        match &self.place {
            TokenPlace::Header(name) => {
                let value = HeaderValue::try_from(text).ok().filter(|_| !fields.contains_key(name));
                value.map(|value| fields.insert(name, value)).is_some()
            }
            TokenPlace::Cookie { name, permanent } => {
                let own = |value: &HeaderValue| {
                    let rest = value.as_bytes().strip_prefix(name.as_bytes());
                    rest.is_some_and(|rest| rest.starts_with(b"="))
                };
                if fields.get_all(header::SET_COOKIE).iter().any(own) {
                    return false;
                }
                let limit = self.absolute_timeout.filter(|_| *permanent);
                let ends = limit.map(|limit| {
                    let over = u128::from(now.saturating_sub(token.began));
                    let left = limit.as_millis().saturating_sub(over);
                    format!("; Max-Age={}", left.div_ceil(1000))
                });
                let (path, ends) = (cookie_path(path), ends.unwrap_or_default());
                // No `Secure`: the application speaks to its proxy without TLS. The token vouches for nobody, so that `Strict`
                // would protect nothing, and end the session of whoever follows a link.
                let cookie = format!("{name}={text}; Path={path}; HttpOnly; SameSite=Lax{ends}");
                let value = HeaderValue::try_from(cookie).ok();
                value.map(|value| fields.append(header::SET_COOKIE, value)).is_some()
            }
        }
    }
}

/// Opens values of a session's name.
struct Opener<'a> {
    session: &'a Session,
    key: &'a SessionKey,
    tried: usize,
    token: Option<Token>,
}

impl Opener<'_> {
    /// Whether the value is a token of the session's; the first counts.
    fn opens(&mut self, value: &[u8]) -> bool {
        self.tried += 1;
        let token = (self.tried <= TRIED).then(|| self.key.open(&self.session.scope, value)).flatten();
        self.token = self.token.or(token);
        token.is_some()
    }
}

fn replace(fields: &mut HeaderMap, name: &HeaderName, values: Vec<HeaderValue>) {
    fields.remove(name);
    for value in values {
        fields.append(name, value);
    }
}

/// The path as a cookie can have it: without what would end it (RFC 6265 §4.1.1), up to the element before.
pub fn cookie_path(path: &str) -> &str {
    let end = path.find(|c: char| c == ';' || !c.is_ascii_graphic());
    let path = match end.map(|end| &path[..end]) {
        None => path,
        Some(whole) => &whole[..whole.rfind('/').unwrap_or(0)],
    };
    if path.starts_with('/') { path } else { "/" }
}

#[cfg(test)]
mod tests;
