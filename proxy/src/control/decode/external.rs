//! `ExternalAuthorization`: who else is asked about requests.

use std::time::Duration;

use http::HeaderName;
use tulle_api::v1;

use super::access::scopes;
use super::rule::{Patterns, header_name};
use super::{Result, duration, each, fault, object, port};
use crate::policy::{ExternalSpec, Text};
use crate::state::ObjectName;

/// How long an answer may take where nothing is said.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Those at `at`.
pub(super) fn external(messages: Vec<v1::ExternalAuthorization>, at: &str) -> Result<Vec<ExternalSpec>> {
    let mut patterns = Patterns::default();
    each(messages, at, |message, at| one(message, &mut patterns, at))
}

fn one(message: v1::ExternalAuthorization, patterns: &mut Patterns, at: &str) -> Result<ExternalSpec> {
    if message.name.is_empty() {
        return Err(fault(format!("{at}.name"), "is missing"));
    }
    let invalid: Option<Box<str>> = (!message.invalid.is_empty()).then(|| message.invalid.into());
    let (service, service_port) = match &invalid {
        // What does not resolve need not be named.
        Some(_) => (ObjectName::new("-", "-"), 0),
        None => {
            let service = object(message.service, &format!("{at}.service"))?;
            (service, port(message.service_port, &format!("{at}.service_port"))?)
        }
    };
    Ok(ExternalSpec {
        name: message.name.into(),
        ports: each(message.ports, &format!("{at}.ports"), port)?,
        not_ports: each(message.not_ports, &format!("{at}.not_ports"), port)?,
        routes: scopes(message.routes, patterns, &format!("{at}.routes"))?,
        service,
        service_port,
        invalid,
        timeout: duration(message.timeout, &format!("{at}.timeout"))?.unwrap_or(TIMEOUT),
        failure_allows: message.failure_allows,
        headers: each(message.headers, &format!("{at}.headers"), name)?,
        body_bytes: message.body_bytes,
        partial_body: message.partial_body,
        context: message.context.into_iter().map(|one| (one.name, one.value)).collect(),
        cache: duration(message.cache, &format!("{at}.cache"))?,
        cache_headers: each(message.cache_headers, &format!("{at}.cache_headers"), header)?,
        dry_run: message.dry_run,
        allowed_headers: each(message.allowed_headers, &format!("{at}.allowed_headers"), header)?,
    })
}

fn header(text: String, at: &str) -> Result<HeaderName> {
    header_name(&text, at)
}

fn name(message: v1::TextMatch, at: &str) -> Result<Text> {
    use v1::text_match::Match;
    Ok(match message.r#match.ok_or_else(|| fault(format!("{at}.match"), "is missing"))? {
        Match::Exact(text) => Text::Exact(text.into()),
        Match::Prefix(text) => Text::Prefix(text.into()),
        Match::Suffix(text) => Text::Suffix(text.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::route::PathMatch;

    fn message() -> v1::ExternalAuthorization {
        let object =
            |name: &str| Some(v1::ObjectName { namespace: "shop".to_owned(), name: name.to_owned() });
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let prefix = Some(v1::text_match::Match::Prefix("x-".to_owned()));
        let path = Some(v1::http_match::Path::Prefix("/admin".to_owned()));
        v1::ExternalAuthorization {
            name: "shop/opa".to_owned(),
            ports: vec![80, 81],
            not_ports: vec![81],
            routes: vec![v1::RouteScope {
                hostnames: vec!["*.example".to_owned()],
                matches: vec![v1::HttpMatch { path, ..Default::default() }],
            }],
            service: object("opa"),
            service_port: 9191,
            timeout: seconds(2),
            failure_allows: true,
            headers: vec![v1::TextMatch { r#match: prefix }],
            body_bytes: 8192,
            partial_body: true,
            context: vec![v1::Header { name: "tier".to_owned(), value: "gold".to_owned() }],
            cache: seconds(30),
            cache_headers: vec!["authorization".to_owned()],
            dry_run: true,
            allowed_headers: vec!["cookie".to_owned()],
            invalid: String::new(),
        }
    }

    #[test]
    fn one_is_decoded_as_a_whole_and_with_its_defaults() {
        let read = external(vec![message()], "external").unwrap().remove(0);
        assert_eq!((&*read.name, &read.ports, &read.not_ports), ("shop/opa", &vec![80, 81], &vec![81]));
        assert_eq!((read.service.to_string(), read.service_port), ("shop/opa".to_owned(), 9191));
        assert_eq!((read.timeout, read.cache), (Duration::from_secs(2), Some(Duration::from_secs(30))));
        assert_eq!(read.routes[0].matches[0].path, PathMatch::Prefix("/admin".into()));
        assert_eq!(read.headers, [Text::Prefix("x-".into())]);
        assert_eq!(read.context, [("tier".to_owned(), "gold".to_owned())]);
        assert_eq!(
            (&read.cache_headers[0], &read.allowed_headers[0]),
            (&http::header::AUTHORIZATION, &http::header::COOKIE)
        );
        assert!(read.failure_allows && read.partial_body && read.dry_run && read.body_bytes == 8192);
        let bare = v1::ExternalAuthorization { timeout: None, cache: None, ..message() };
        let read = external(vec![bare], "external").unwrap().remove(0);
        assert_eq!((read.timeout, read.cache), (TIMEOUT, None));
    }

    #[test]
    fn what_makes_none_is_rejected_where_it_stands() {
        let of = |change: fn(&mut v1::ExternalAuthorization)| {
            let mut message = message();
            change(&mut message);
            external(vec![message], "external").unwrap_err().field
        };
        for (change, field) in [
            ((|one| one.name.clear()) as fn(&mut v1::ExternalAuthorization), "name"),
            (|one| one.ports[1] = 0, "ports[1]"),
            (|one| one.not_ports[0] = 70_000, "not_ports[0]"),
            (|one| one.service = None, "service"),
            (|one| one.service_port = 0, "service_port"),
            (|one| one.headers[0].r#match = None, "headers[0].match"),
            (|one| one.cache_headers[0] = " ".to_owned(), "cache_headers[0]"),
            (|one| one.allowed_headers[0] = "ä".to_owned(), "allowed_headers[0]"),
            (|one| one.routes[0].hostnames[0] = "*".to_owned(), "routes[0].hostnames[0]"),
            (|one| one.routes[0].matches[0].path = None, "routes[0].matches[0].path"),
        ] {
            assert_eq!(of(change), format!("external[0].{field}"));
        }
        let invalid = v1::ExternalAuthorization { invalid: "why".to_owned(), service: None, ..message() };
        let read = external(vec![invalid], "external").unwrap().remove(0);
        assert_eq!(read.invalid.as_deref(), Some("why"));
    }
}
