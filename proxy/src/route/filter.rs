//! What a rule does to requests and answers beside sending them somewhere.
//!
//! Pure: changes heads, makes the `Location` of a redirect. Of fields, it changes those alone that are the message's own:
//! what frames it or belongs to the hop, its host, and names of ours are no filter's to change ([`tulle_api::is_protected_header`]): they are left out
//! where filters are decoded. Called by `forward/filters.rs`.

use std::sync::Arc;

use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};

use super::condition::Asked;
use super::cors::Cors;
use super::host::host_of;
use crate::state::ObjectName;

/// The filters of a rule, or of one of its backends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    pub request: HeaderModifier,
    pub response: HeaderModifier,
    /// The answer, in place of any backend's.
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub cors: Option<Cors>,
    pub mirrors: Vec<Mirror>,
}

/// Where a copy of a share of the requests goes, whose answers nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    pub service: ObjectName,
    pub port: u16,
    /// The share is `numerator` of `denominator`.
    pub numerator: u32,
    pub denominator: u32,
    /// Why nobody gets copies.
    pub invalid: Option<Arc<str>>,
}

/// First removes, then sets, then adds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// In place of every line of the name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside them.
    pub add: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// An answer that leads to the request's own URL but for what is said here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    pub scheme: Option<Scheme>,
    pub hostname: Option<Box<str>>,
    pub path: Option<PathModifier>,
    pub port: Option<u16>,
    pub status: StatusCode,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// What the backend sees in place of the request's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    pub hostname: Option<Authority>,
    pub path: Option<PathModifier>,
}

/// What a rewrite makes, where that is no target of a request.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTarget {
    #[error("the path and query have {0} bytes, more than {MAX_TARGET}")]
    TooLong(usize),
    #[error(transparent)]
    Malformed(#[from] http::Error),
}

/// The longest path and query that `http` takes.
const MAX_TARGET: usize = u16::MAX as usize - 1;

/// A path in another's place; the query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// Begins with a slash.
    Full(Box<str>),
    /// In place of the prefix by which the rule matched; begins with a slash or is empty.
    Prefix(Box<str>),
}

// === impl Mirror ===

impl Mirror {
    /// Whether a request is copied, from a uniformly random number.
    pub fn takes(&self, random: u64) -> bool {
        self.invalid.is_none()
            && (u128::from(random) * u128::from(self.denominator)) >> 64 < u128::from(self.numerator)
    }
}

// === impl HeaderModifier ===

impl HeaderModifier {
    pub fn apply(&self, fields: &mut HeaderMap) {
        for name in &self.remove {
            fields.remove(name);
        }
        for (name, value) in &self.set {
            fields.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            fields.append(name, value.clone());
        }
    }
}

// === impl PathModifier ===

impl PathModifier {
    /// `path` with what is said in the place of all of it, or of its first `prefix` bytes. Of the slashes where the parts meet,
    /// one stays (Gateway API, `HTTPPathModifier.replacePrefixMatch`).
    fn apply(&self, path: &str, prefix: usize) -> String {
        let (new, rest) = match self {
            Self::Full(full) => return full.to_string(),
            Self::Prefix(new) => (&**new, path.get(prefix..).unwrap_or_default()),
        };
        match (new, rest) {
            ("", "") => "/".to_owned(),
            (new, "") => new.to_owned(),
            (new, rest) => format!("{}{rest}", new.strip_suffix('/').unwrap_or(new)),
        }
    }
}

// === impl Redirect ===

impl Redirect {
    /// The `Location` for a request to `port` of the service, whose first `prefix` bytes of path the rule's prefix took.
    pub fn location(&self, asked: &Asked<'_>, prefix: usize, port: u16) -> String {
        // What a proxy sees of its application is never TLS.
        let (scheme, usual) = match self.scheme {
            None | Some(Scheme::Http) => ("http", 80),
            Some(Scheme::Https) => ("https", 443),
        };
        let own = if self.scheme.is_some() { usual } else { port };
        let port = self.port.unwrap_or(own);
        let host = self.hostname.as_deref().unwrap_or_else(|| host_of(asked.authority));
        let path = if asked.path.starts_with('/') { asked.path } else { "/" };
        let path = self.path.as_ref().map_or_else(|| path.to_owned(), |new| new.apply(path, prefix));
        let mut location = match (host, port) {
            // Without a host, two slashes would begin one.
            ("", _) => format!("/{}", path.trim_start_matches('/')),
            (host, port) if port == usual => format!("{scheme}://{host}{path}"),
            (host, port) => format!("{scheme}://{host}:{port}{path}"),
        };
        if !asked.query.is_empty() {
            location.push('?');
            location.push_str(asked.query);
        }
        location
    }
}

// === impl Rewrite ===

impl Rewrite {
    /// # Errors
    /// When the target gets longer than any may be, or is none.
    pub fn apply<B>(&self, request: &mut Request<B>, prefix: usize) -> Result<(), InvalidTarget> {
        if *request.method() == Method::CONNECT {
            // It names a connection, not something on a host.
            return Ok(());
        }
        let mut parts = request.uri().clone().into_parts();
        if let Some(hostname) = &self.hostname {
            let is_named = parts.authority.is_some();
            if is_named {
                parts.authority = Some(hostname.clone());
            }
            if !is_named || request.headers().contains_key(header::HOST) {
                let value = HeaderValue::from_str(hostname.as_str()).map_err(http::Error::from)?;
                request.headers_mut().insert(header::HOST, value);
            }
        }
        let path = request.uri().path();
        if let Some(new) = self.path.as_ref().filter(|_| path.starts_with('/')) {
            let mut target = new.apply(path, prefix);
            if let Some(query) = request.uri().query() {
                target.push('?');
                target.push_str(query);
            }
            if target.len() > MAX_TARGET {
                return Err(InvalidTarget::TooLong(target.len()));
            }
            parts.path_and_query = Some(PathAndQuery::try_from(target).map_err(http::Error::from)?);
        }
        *request.uri_mut() = Uri::from_parts(parts).map_err(http::Error::from)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(new: &str) -> Option<PathModifier> {
        Some(PathModifier::Prefix(new.into()))
    }

    /// The table of `HTTPPathModifier.replacePrefixMatch`; the length is that of the prefix without a slash at its end.
    #[test]
    fn a_prefix_is_replaced_without_doubling_or_losing_a_slash() {
        for (path, matched, new, expected) in [
            ("/foo/bar", 4, "/xyz", "/xyz/bar"),
            ("/foo/bar", 4, "/xyz/", "/xyz/bar"),
            ("/foo", 4, "/xyz", "/xyz"),
            ("/foo", 4, "/xyz/", "/xyz/"),
            ("/foo/", 4, "/xyz", "/xyz/"),
            ("/foo/bar", 4, "", "/bar"),
            ("/foo/bar", 4, "/", "/bar"),
            ("/foo/", 4, "", "/"),
            ("/foo", 4, "", "/"),
            ("/foo/", 4, "/", "/"),
            ("/foo", 4, "/", "/"),
            ("/foo", 0, "/xyz", "/xyz/foo"),
            ("/", 0, "/xyz", "/xyz/"),
        ] {
            assert_eq!(PathModifier::Prefix(new.into()).apply(path, matched), expected, "{path} {new}");
        }
    }

    #[test]
    fn a_location_is_the_requests_own_url_but_for_what_is_said() {
        let same =
            Redirect { scheme: None, hostname: None, path: None, port: None, status: StatusCode::FOUND };
        let host = Some("example.org".into());
        let https = Some(Scheme::Https);
        let headers = HeaderMap::new();
        for (redirect, authority, port, expected) in [
            (same.clone(), "shop:8080", 8080, "http://shop:8080/a/b?q=1"),
            (same.clone(), "shop:8080", 80, "http://shop/a/b?q=1"),
            (same.clone(), "[::1]:8080", 8080, "http://[::1]:8080/a/b?q=1"),
            (same.clone(), "", 80, "/a/b?q=1"),
            (Redirect { hostname: host.clone(), ..same.clone() }, "shop", 80, "http://example.org/a/b?q=1"),
            (Redirect { scheme: https, ..same.clone() }, "shop:8080", 8080, "https://shop/a/b?q=1"),
            (Redirect { scheme: Some(Scheme::Http), ..same.clone() }, "shop", 8080, "http://shop/a/b?q=1"),
            (
                Redirect { scheme: https, port: Some(8443), ..same.clone() },
                "shop",
                80,
                "https://shop:8443/a/b?q=1",
            ),
            (Redirect { scheme: https, port: Some(443), ..same.clone() }, "shop", 80, "https://shop/a/b?q=1"),
            (Redirect { port: Some(80), ..same.clone() }, "shop:8080", 8080, "http://shop/a/b?q=1"),
            (Redirect { port: Some(443), ..same.clone() }, "shop", 80, "http://shop:443/a/b?q=1"),
            (Redirect { path: prefix("/"), ..same.clone() }, "shop", 80, "http://shop/b?q=1"),
            (
                Redirect { path: Some(PathModifier::Full("/c".into())), ..same.clone() },
                "shop",
                80,
                "http://shop/c?q=1",
            ),
        ] {
            let asked =
                Asked { method: &Method::GET, authority, path: "/a/b", query: "q=1", headers: &headers };
            assert_eq!(redirect.location(&asked, 2, port), expected, "{redirect:?}");
        }
        let asked =
            Asked { method: &Method::GET, authority: "", path: "//evil/", query: "", headers: &headers };
        assert_eq!(same.location(&asked, 0, 80), "/evil/", "no host of the client's making");
    }

    #[test]
    fn a_rewrite_changes_host_and_path_and_leaves_the_query() {
        let rewrite = |target: &str, host: Option<&str>, new: &Rewrite| {
            let request = host.into_iter().fold(Request::get(target), |it, host| it.header("host", host));
            let mut request = request.body(()).unwrap();
            new.apply(&mut request, 2).unwrap();
            let host = request.headers().get("host").map_or("-", |host| host.to_str().unwrap()).to_owned();
            (request.uri().to_string(), host)
        };
        let both = Rewrite { hostname: Some(Authority::from_static("in.ner")), path: prefix("/z") };
        for (target, host, expected) in [
            ("/a/b?q=1", Some("shop:80"), ("/z/b?q=1", "in.ner")),
            ("http://shop/a/b?q", None, ("http://in.ner/z/b?q", "-")),
            ("http://shop/a", Some("shop"), ("http://in.ner/z", "in.ner")),
            ("*", Some("shop"), ("*", "in.ner")),
        ] {
            let (uri, host) = rewrite(target, host, &both);
            assert_eq!((&*uri, &*host), expected, "{target}");
        }
        let long = PathModifier::Full(format!("/{}", "a".repeat(70_000)).into());
        let long = Rewrite { hostname: None, path: Some(long) };
        let error = long.apply(&mut Request::new(()), 0).unwrap_err();
        assert!(matches!(error, InvalidTarget::TooLong(70_001)), "{error}");
        let longest = PathModifier::Full(format!("/{}", "a".repeat(MAX_TARGET - 1)).into());
        let longest = Rewrite { hostname: None, path: Some(longest) };
        longest.apply(&mut Request::new(()), 0).unwrap();
    }

    #[test]
    fn a_mirror_takes_its_share() {
        let share = |numerator, denominator| {
            let service = ObjectName::new("a", "b");
            let mirror = Mirror { service, port: 80, numerator, denominator, invalid: None };
            (0..1000).filter(|i| mirror.takes(u64::MAX / 1000 * i)).count()
        };
        assert_eq!([share(0, 100), share(100, 100), share(7, 7), share(1, u32::MAX)], [0, 1000, 1000, 1]);
        assert!((249..=251).contains(&share(25, 100)) && (332..=334).contains(&share(1, 3)));
    }

    #[test]
    fn headers_are_removed_then_set_then_added() {
        let pair =
            |name: &'static str, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let modifier = HeaderModifier {
            set: vec![pair("a", "2"), pair("b", "1")],
            add: vec![pair("a", "3"), pair("c", "1")],
            remove: vec![HeaderName::from_static("c"), HeaderName::from_static("none")],
        };
        let mut fields = HeaderMap::from_iter([pair("a", "0"), pair("a", "1"), pair("c", "0")]);
        modifier.apply(&mut fields);
        let expected = HeaderMap::from_iter([pair("a", "2"), pair("b", "1"), pair("c", "1")]);
        let mut left = fields.clone();
        left.insert("a", HeaderValue::from_static("2"));
        assert_eq!(left, expected);
        assert_eq!(fields.get_all("a").iter().collect::<Vec<_>>(), ["2", "3"]);
    }
}
