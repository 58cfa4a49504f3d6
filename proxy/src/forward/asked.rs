//! What a request is placed by where endpoints are chosen by hash: the first of the named parts that it has.
//!
//! Looks only, and only where a policy names such parts. Called by `target`.

use std::net::SocketAddr;

use http::{HeaderMap, Request, header};

use super::filters;
use crate::balance::{self, HashKey};
use crate::wire::Body;

/// Something that goes to an endpoint.
pub(super) struct Asked<'a> {
    pub client: SocketAddr,
    /// `None`: a connection as a whole.
    pub request: Option<&'a Request<Body>>,
}

// === impl Asked ===

impl Asked<'_> {
    /// The hash of the first of `keys` that this has; `None`: any endpoint will do.
    pub(super) fn key(&self, keys: &[HashKey]) -> Option<u64> {
        keys.iter().find_map(|key| {
            let request = self.request;
            Some(match key {
                HashKey::Header(name) => {
                    filters::asked(request?).with_header(name, |value| value.map(balance::hash))?
                }
                HashKey::Cookie(name) => balance::hash(cookie(request?.headers(), name)?),
                HashKey::Query(name) => balance::hash(query(request?.uri().query()?, name)?.as_bytes()),
                HashKey::Source => match self.client.ip() {
                    std::net::IpAddr::V4(ip) => balance::hash(&ip.octets()),
                    std::net::IpAddr::V6(ip) => balance::hash(&ip.octets()),
                },
            })
        })
    }
}

/// The value of the first cookie of that name (RFC 6265 §4.2.1).
fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a [u8]> {
    let fields = headers.get_all(header::COOKIE).into_iter().map(|field| field.as_bytes());
    let mut pairs = fields.flat_map(|field| field.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs.find_map(|pair| pair.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// The value of the first parameter of that name, as it is written.
fn query<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_part_that_a_request_has_is_its_key() {
        let header = HashKey::Header(http::HeaderName::from_static("x-user"));
        let keys = [header, HashKey::Cookie("id".into()), HashKey::Query("q".into()), HashKey::Source];
        let hash = |text: &str| Some(balance::hash(text.as_bytes()));
        let source = Some(balance::hash(&[10, 0, 0, 9]));
        let of = |uri: &str, fields: &[(&str, &str)], keys: &[HashKey]| {
            let request = fields
                .iter()
                .fold(Request::builder().uri(uri), |request, (name, value)| request.header(*name, *value));
            let request = request.body(Body::empty()).unwrap();
            Asked { client: ([10, 0, 0, 9], 7).into(), request: Some(&request) }.key(keys)
        };
        for (uri, fields, key) in [
            ("/?q=3", &[("x-user", "1"), ("cookie", "id=2")] as &[_], hash("1")),
            ("/?q=3", &[("cookie", "other=5; id=2"), ("cookie", "id=9")], hash("2")),
            ("/?qq=4&q=3&q=4", &[("cookie", "xid=5")], hash("3")),
            ("/?qq=4", &[], source),
            ("/", &[], source),
        ] {
            assert_eq!(of(uri, fields, &keys), key, "{uri} {fields:?}");
        }
        assert_eq!(of("/", &[], &keys[..3]), None);
        // As routes see a header: all of its lines, and of HTTP/2 the authority.
        let users = of("/", &[("x-user", "1"), ("x-user", "2")], &keys);
        assert!(users.is_some() && ![hash("1"), hash("2"), source].contains(&users));
        let host = [HashKey::Header(header::HOST)];
        assert_eq!(of("http://shop/", &[], &host), hash("shop"));
        assert_eq!(of("/", &[("host", "shop")], &host), hash("shop"));
        assert_eq!(of("/", &[], &host), None);
        assert_eq!(Asked { client: ([10, 0, 0, 9], 8).into(), request: None }.key(&keys), source);
    }
}
