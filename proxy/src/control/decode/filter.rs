//! The filters of rules and of backends.

use http::uri::{Authority, PathAndQuery};
use http::{HeaderName, HeaderValue, StatusCode};
use tulle_api::{is_protected_header, v1};

use super::rule::header_name;
use super::{Result, each, fault, object, port};
use crate::route::{
    Cors, Filters, HeaderModifier, Hostname, InvalidOrigin, Listed, Mirror, PathModifier, Redirect, Rewrite,
    Scheme,
};

/// Where filters stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Of {
    Rule {
        /// Every match has a prefix.
        by_prefix: bool,
        has_backends: bool,
    },
    Backend,
}

/// `None`: there are none.
pub(super) fn filters(messages: Vec<v1::HttpFilter>, of: Of, at: &str) -> Result<Option<Box<Filters>>> {
    use v1::http_filter::Filter as F;
    if messages.is_empty() {
        return Ok(None);
    }
    let mut filters = Filters::default();
    let mut seen = Vec::new();
    for (i, message) in messages.into_iter().enumerate() {
        let at = format!("{at}.filters[{i}]");
        // A filter of a kind that this version does not know is an empty one to it: leaving it out would change what is sent.
        let filter = message
            .filter
            .ok_or_else(|| fault(&at, "asks for what this version of the proxy does not know"))?;
        let kind = std::mem::discriminant(&filter);
        if seen.contains(&kind) && !matches!(filter, F::Mirror(_)) {
            return Err(fault(at, "is there twice"));
        }
        seen.push(kind);
        match filter {
            F::RequestHeaders(message) => {
                filters.request = modifier(message, &format!("{at}.request_headers"))?
            }
            F::ResponseHeaders(message) => {
                filters.response = modifier(message, &format!("{at}.response_headers"))?
            }
            F::Redirect(message) => {
                filters.redirect = Some(redirect(message, of, &format!("{at}.redirect"))?)
            }
            F::Cors(message) => filters.cors = Some(cors(message, of, &format!("{at}.cors"))?),
            F::Mirror(message) => filters.mirrors.push(mirror(message, of, &format!("{at}.mirror"))?),
            F::Rewrite(message) => filters.rewrite = Some(rewrite(message, of, &format!("{at}.rewrite"))?),
        }
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        return Err(fault(
            format!("{at}.filters"),
            "redirect and rewrite; a request is either answered or sent",
        ));
    }
    Ok(Some(Box::new(filters)))
}

/// What is not for filters to change is left out: it would break the message, or the mesh.
fn modifier(message: v1::HeaderModifier, at: &str) -> Result<HeaderModifier> {
    let pairs = |headers: Vec<v1::Header>, field: &str| -> Result<Vec<(HeaderName, HeaderValue)>> {
        let pairs = each(headers, &format!("{at}.{field}"), |header, at| {
            let value = HeaderValue::try_from(header.value.as_str());
            let value = value.map_err(|_| fault(format!("{at}.value"), "is not a header's value"))?;
            Ok((header_name(&header.name, &format!("{at}.name"))?, value))
        })?;
        Ok(pairs.into_iter().filter(|(name, _)| !is_protected_header(name.as_str())).collect())
    };
    let remove = each(message.remove, &format!("{at}.remove"), |name, at| header_name(&name, at))?;
    Ok(HeaderModifier {
        set: pairs(message.set, "set")?,
        add: pairs(message.add, "add")?,
        remove: remove.into_iter().filter(|name| !is_protected_header(name.as_str())).collect(),
    })
}

fn redirect(message: v1::Redirect, of: Of, at: &str) -> Result<Redirect> {
    let by_prefix = match of {
        Of::Rule { by_prefix, has_backends: false } => by_prefix,
        Of::Rule { .. } => return Err(fault(at, "is there beside backends")),
        Of::Backend => return Err(fault(at, ONLY_HEADERS)),
    };
    let scheme = match &*message.scheme {
        "" => None,
        "http" => Some(Scheme::Http),
        "https" => Some(Scheme::Https),
        other => {
            return Err(fault(format!("{at}.scheme"), format!("{other:?} is neither `http` nor `https`")));
        }
    };
    let status = match message.status {
        status @ (301 | 302 | 303 | 307 | 308) => StatusCode::from_u16(status as u16).ok(),
        _ => None,
    };
    let wrong = || fault(format!("{at}.status"), format!("{} is none of a redirect", message.status));
    let new_port = match message.port {
        0 => None,
        number => Some(port(number, &format!("{at}.port"))?),
    };
    Ok(Redirect {
        scheme,
        hostname: hostname(&message.hostname, at)?.map(|name| name.as_str().into()),
        path: path(message.path, by_prefix, at)?,
        port: new_port,
        status: status.ok_or_else(wrong)?,
    })
}

fn rewrite(message: v1::Rewrite, of: Of, at: &str) -> Result<Rewrite> {
    let Of::Rule { by_prefix, .. } = of else { return Err(fault(at, ONLY_HEADERS)) };
    Ok(Rewrite { hostname: hostname(&message.hostname, at)?, path: path(message.path, by_prefix, at)? })
}

fn mirror(message: v1::Mirror, of: Of, at: &str) -> Result<Mirror> {
    let Of::Rule { .. } = of else { return Err(fault(at, ONLY_HEADERS)) };
    let v1::Mirror { service, port, numerator, denominator, invalid } = message;
    if numerator > denominator || denominator == 0 {
        return Err(fault(format!("{at}.denominator"), format!("{numerator} of {denominator} is no share")));
    }
    let service = object(service, &format!("{at}.service"))?;
    let invalid = (!invalid.is_empty()).then(|| invalid.into());
    let port = match (&invalid, port) {
        // What does not resolve need not have a port.
        (Some(_), 0) => 0,
        _ => self::port(port, &format!("{at}.port"))?,
    };
    Ok(Mirror { service, port, numerator, denominator, invalid })
}

fn cors(message: v1::Cors, of: Of, at: &str) -> Result<Cors> {
    let Of::Rule { .. } = of else { return Err(fault(at, ONLY_HEADERS)) };
    let listed = |names: &[String], field: &str| {
        Listed::new(names).ok_or_else(|| fault(format!("{at}.{field}"), "has what is not a name"))
    };
    Ok(Cors {
        origins: each(message.allow_origins, &format!("{at}.allow_origins"), |origin, at| {
            origin.parse().map_err(|error: InvalidOrigin| fault(at, error.to_string()))
        })?,
        credentials: message.allow_credentials,
        methods: listed(&message.allow_methods, "allow_methods")?,
        headers: listed(&message.allow_headers, "allow_headers")?,
        expose: listed(&message.expose_headers, "expose_headers")?,
        max_age: message.max_age,
    })
}

const ONLY_HEADERS: &str = "stands at a backend, where only headers can be modified";

fn hostname(text: &str, at: &str) -> Result<Option<Authority>> {
    if text.is_empty() {
        return Ok(None);
    }
    let exact = matches!(text.parse(), Ok(Hostname::Exact(_)));
    let name = Authority::try_from(text).ok().filter(|_| exact);
    name.map(Some).ok_or_else(|| fault(format!("{at}.hostname"), format!("{text:?} is not a host name")))
}

fn path(message: Option<v1::PathModifier>, by_prefix: bool, at: &str) -> Result<Option<PathModifier>> {
    use v1::path_modifier::Modifier;
    let Some(message) = message else { return Ok(None) };
    let modifier = message.modifier.ok_or_else(|| fault(format!("{at}.path"), "is missing"))?;
    let (text, field) = match &modifier {
        Modifier::Full(text) => (text, "full"),
        Modifier::Prefix(text) => (text, "prefix"),
    };
    let is_path = text.starts_with('/')
        && PathAndQuery::try_from(text.as_str()).is_ok_and(|it| it.query().is_none() && it.path() == text);
    let is_nothing = field == "prefix" && text.is_empty();
    if !is_path && !is_nothing {
        return Err(fault(format!("{at}.path.{field}"), format!("{text:?} is not a path")));
    }
    if field == "prefix" && !by_prefix {
        return Err(fault(format!("{at}.path.prefix"), "stands in a rule with a match that has no prefix"));
    }
    Ok(Some(match modifier {
        Modifier::Full(text) => PathModifier::Full(text.into()),
        Modifier::Prefix(text) => PathModifier::Prefix(text.into()),
    }))
}
