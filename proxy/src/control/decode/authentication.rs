//! `Authentication`: which tokens requests may carry, by whose keys.

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Scheme;
use tulle_api::v1;
use tulle_certs::jwks::KeySet;

use super::rule::{Patterns, header_name};
use super::{Result, access, duration, each, fault, object, port};
use crate::token::{AuthenticationSpec, ClaimHeader, IssuerSpec, KeysSpec, Place, RemoteSpec};

/// How far clocks may differ where that is not said.
const LEEWAY: Duration = Duration::from_secs(60);
/// How long a set of keys is used, and how long one may take to come.
const REFRESH: Duration = Duration::from_secs(300);
const TIMEOUT: Duration = Duration::from_secs(5);
/// Nobody is asked more often.
const LEAST_REFRESH: Duration = Duration::from_secs(10);

/// Those at `at`.
pub(super) fn authentications(
    messages: Vec<v1::Authentication>,
    at: &str,
) -> Result<Vec<AuthenticationSpec>> {
    // One name may come several times: a policy has several targets.
    let mut patterns = Patterns::default();
    each(messages, at, |message, at| authentication(message, &mut patterns, at))
}

fn authentication(
    message: v1::Authentication,
    patterns: &mut Patterns,
    at: &str,
) -> Result<AuthenticationSpec> {
    if message.name.is_empty() {
        return Err(fault(format!("{at}.name"), "is missing"));
    }
    let name: Arc<str> = message.name.into();
    let routes = access::scopes(message.routes, patterns, &format!("{at}.routes"))?;
    Ok(AuthenticationSpec {
        name,
        ports: each(message.ports, &format!("{at}.ports"), port)?,
        routes,
        issuers: each(message.issuers, &format!("{at}.issuers"), issuer)?,
        required: message.required,
        dry_run: message.dry_run,
    })
}

fn issuer(message: v1::TokenIssuer, at: &str) -> Result<IssuerSpec> {
    use v1::token_issuer::Keys;
    if message.issuer.is_empty() {
        return Err(fault(format!("{at}.issuer"), "is missing"));
    }
    let keys = match message.keys.ok_or_else(|| fault(format!("{at}.keys"), "is missing"))? {
        Keys::Inline(text) => {
            let keys = KeySet::read(text.as_bytes());
            KeysSpec::Inline(Arc::new(
                keys.map_err(|error| fault(format!("{at}.inline"), error.to_string()))?,
            ))
        }
        Keys::Remote(message) => KeysSpec::Remote(remote(message, &format!("{at}.remote"))?),
    };
    let mut from = each(message.from, &format!("{at}.from"), |place, at| {
        Ok(Place {
            header: header_name(&place.header, &format!("{at}.header"))?,
            prefix: place.prefix.into(),
        })
    })?;
    if from.is_empty() {
        from.push(Place::bearer());
    }
    let leeway_at = format!("{at}.leeway");
    // No leeway is said, too.
    let is_said = message.leeway.is_some();
    let leeway =
        duration(message.leeway, &leeway_at)?.unwrap_or(if is_said { Duration::ZERO } else { LEEWAY });
    Ok(IssuerSpec {
        issuer: message.issuer.into(),
        audiences: message.audiences.into_iter().map(String::into_boxed_str).collect(),
        keys,
        from,
        claims_to_headers: each(message.claims_to_headers, &format!("{at}.claims_to_headers"), claim_header)?,
        forward: message.forward,
        leeway,
    })
}

fn claim_header(message: v1::ClaimHeader, at: &str) -> Result<ClaimHeader> {
    let claim = message.claim.unwrap_or_default().elements;
    if claim.is_empty() {
        return Err(fault(format!("{at}.claim"), "is missing"));
    }
    let claim = claim.into_iter().map(String::into_boxed_str).collect();
    Ok(ClaimHeader { header: header_name(&message.header, &format!("{at}.header"))?, claim })
}

fn remote(message: v1::RemoteKeys, at: &str) -> Result<RemoteSpec> {
    let url_at = format!("{at}.url");
    let url: Uri =
        message.url.parse().map_err(|error| fault(&*url_at, format!("{:?}: {error}", message.url)))?;
    let Some(authority) = url.authority() else {
        return Err(fault(url_at, format!("{:?} names no host", message.url)));
    };
    if authority.as_str().contains('@') {
        return Err(fault(url_at, "has a user or a password in it"));
    }
    let service = match message.service {
        None => None,
        Some(_) => {
            let service = object(message.service, &format!("{at}.service"))?;
            Some((service, port(message.service_port, &format!("{at}.service_port"))?))
        }
    };
    let expected = if service.is_some() { Scheme::HTTP } else { Scheme::HTTPS };
    if url.scheme() != Some(&expected) {
        return Err(fault(url_at, format!("{:?} is not {expected}://…", message.url)));
    }
    let refresh = duration(message.refresh, &format!("{at}.refresh"))?.unwrap_or(REFRESH);
    Ok(RemoteSpec {
        url,
        refresh: refresh.max(LEAST_REFRESH),
        timeout: duration(message.timeout, &format!("{at}.timeout"))?.unwrap_or(TIMEOUT),
        service,
        roots: message.roots.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SET: &str =
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE"}]}"#;

    fn path(prefix: &str) -> v1::HttpMatch {
        v1::HttpMatch { path: Some(v1::http_match::Path::Prefix(prefix.to_owned())), ..Default::default() }
    }

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    fn fetched() -> v1::RemoteKeys {
        v1::RemoteKeys { url: "https://issuer.example/keys".to_owned(), ..Default::default() }
    }

    fn message() -> v1::Authentication {
        let claim = Some(v1::ClaimPath { elements: vec!["realm_access".to_owned(), "roles".to_owned()] });
        let issuer = |issuer: &str, keys| v1::TokenIssuer {
            issuer: issuer.to_owned(),
            keys: Some(keys),
            ..Default::default()
        };
        let first = v1::TokenIssuer {
            audiences: vec!["orders".to_owned()],
            from: vec![v1::TokenPlace { header: "x-token".to_owned(), prefix: String::new() }],
            claims_to_headers: vec![v1::ClaimHeader { header: "x-roles".to_owned(), claim }],
            forward: true,
            leeway: seconds(0),
            ..issuer("https://a", v1::token_issuer::Keys::Inline(SET.to_owned()))
        };
        v1::Authentication {
            name: "shop/tokens".to_owned(),
            ports: vec![80],
            routes: vec![v1::RouteScope {
                hostnames: vec!["*.shop".to_owned()],
                matches: vec![path("/admin")],
            }],
            issuers: vec![first, issuer("https://b", v1::token_issuer::Keys::Remote(fetched()))],
            required: true,
            dry_run: true,
        }
    }

    #[test]
    fn a_policy_is_decoded_as_a_whole() {
        let one = authentications(vec![message()], "at").unwrap().remove(0);
        assert_eq!(
            (&*one.name, &one.ports, one.required, one.dry_run),
            ("shop/tokens", &vec![80], true, true)
        );
        assert_eq!((one.routes.len(), one.routes[0].hostnames.len(), one.routes[0].matches.len()), (1, 1, 1));
        let [first, second] = &one.issuers[..] else { panic!() };
        assert_eq!((&*first.issuer, first.leeway, first.forward), ("https://a", Duration::ZERO, true));
        assert_eq!(first.from, [Place { header: "x-token".parse().unwrap(), prefix: "".into() }]);
        assert_eq!(first.claims_to_headers[0].claim, ["realm_access".into(), "roles".into()]);
        assert_eq!((second.leeway, &second.from[..]), (LEEWAY, &[Place::bearer()][..]));
        let KeysSpec::Remote(remote) = &second.keys else { panic!() };
        assert_eq!((remote.refresh, remote.timeout, &remote.service), (REFRESH, TIMEOUT, &None));
    }

    #[test]
    fn what_makes_none_is_rejected_where_it_stands() {
        type Change = fn(&mut v1::Authentication);
        fn keys(message: &mut v1::Authentication, change: impl FnOnce(&mut v1::RemoteKeys)) {
            let mut remote = fetched();
            change(&mut remote);
            message.issuers[1].keys = Some(v1::token_issuer::Keys::Remote(remote));
        }
        let changes: &[(Change, &str)] = &[
            (|one| one.name.clear(), "name"),
            (|one| one.ports[0] = 0, "ports[0]"),
            (|one| one.routes[0].hostnames[0] = "a b".to_owned(), "routes[0].hostnames[0]"),
            (|one| one.routes[0].matches[0].path = None, "routes[0].matches[0].path"),
            (|one| one.issuers[0].issuer.clear(), "issuers[0].issuer"),
            (|one| one.issuers[0].keys = None, "issuers[0].keys"),
            (
                |one| one.issuers[0].keys = Some(v1::token_issuer::Keys::Inline("{}".to_owned())),
                "issuers[0].inline",
            ),
            (|one| one.issuers[0].from[0].header = " ".to_owned(), "issuers[0].from[0].header"),
            (|one| one.issuers[0].leeway = seconds(-1), "issuers[0].leeway"),
            (|one| one.issuers[0].claims_to_headers[0].claim = None, "issuers[0].claims_to_headers[0].claim"),
            (
                |one| one.issuers[0].claims_to_headers[0].header.clear(),
                "issuers[0].claims_to_headers[0].header",
            ),
            (|one| keys(one, |remote| remote.url.clear()), "issuers[1].remote.url"),
            (|one| keys(one, |remote| remote.url = "/keys".to_owned()), "issuers[1].remote.url"),
            (
                |one| keys(one, |remote| remote.url = "http://issuer.example/keys".to_owned()),
                "issuers[1].remote.url",
            ),
            (
                |one| keys(one, |remote| remote.url = "https://u:p@issuer.example/".to_owned()),
                "issuers[1].remote.url",
            ),
            (|one| keys(one, |remote| remote.timeout = seconds(-1)), "issuers[1].remote.timeout"),
            (
                |one| {
                    keys(one, |remote| {
                        let (namespace, name) = ("auth".to_owned(), "keycloak".to_owned());
                        remote.url = "http://keycloak.auth/keys".to_owned();
                        remote.service = Some(v1::ObjectName { namespace, name });
                    });
                },
                "issuers[1].remote.service_port",
            ),
        ];
        for (change, field) in changes {
            let mut message = message();
            change(&mut message);
            let error = authentications(vec![message], "at").unwrap_err();
            assert_eq!(error.field, format!("at[0].{field}"));
        }
    }
}
