//! What a route's filters do to a request before it is sent, and to the answer that comes back.
//!
//! What is changed, and how, is [`route`](crate::route)'s; here is where. A rule without filters costs a look at two empty
//! options. Answers that a proxy makes itself to say what went wrong are not changed. Called by `outbound`.

use http::{HeaderValue, Request, Response, StatusCode, header};

use super::exchange::Answer;
use super::fault::Fault;
use super::headers::{self, Said};
use crate::route::{Asked, Backend, Cors, CorsInPlace, CorsRequest, Filters, Found, InvalidTarget};
use crate::telemetry::Reason;
use crate::wire::{Body, Framing};

/// Those of the rule, then those of the backend.
fn all<'a>(found: &Found<'a>, backend: &'a Backend) -> impl Iterator<Item = &'a Filters> + use<'a> {
    [&found.rule.filters, &backend.filters].into_iter().flatten().map(|filters| &**filters)
}

/// What a rule with CORS says in the answers to one request.
pub(super) struct Asking<'a> {
    cors: &'a Cors,
    /// `None`: it is not from a page of some origin.
    from: Option<CorsRequest>,
}

/// What goes into the answer to a request; `None` where the rule says nothing of other origins.
pub(super) fn cors<'a>(found: &Found<'a>, request: &mut Request<Body>) -> Option<Box<Asking<'a>>> {
    let cors = found.rule.filters.as_deref()?.cors.as_ref()?;
    request.extensions_mut().insert(CorsInPlace);
    Some(Box::new(Asking { cors, from: cors.request(request.headers()) }))
}

/// The answer of a rule that redirects, or that says which pages of other origins may ask for what, to a request to `port` of the
/// service.
pub(super) fn answer(
    found: &Found<'_>,
    request: &Request<Body>,
    port: u16,
    cors: Option<&Asking<'_>>,
) -> Option<Result<Answer, Fault>> {
    let filters = found.rule.filters.as_deref()?;
    let asked = asked(request);
    let mut response = Response::new(Body::empty());
    let preflight = cors.filter(|_| Cors::is_preflight(&asked));
    if let Some((cors, from)) = preflight.and_then(|asking| Some((asking.cors, asking.from.as_ref()?))) {
        *response.status_mut() = StatusCode::NO_CONTENT;
        filters.response.apply(response.headers_mut());
        cors.preflight(from, request.headers(), response.headers_mut());
    } else {
        let redirect = filters.redirect.as_ref()?;
        let Ok(location) = HeaderValue::try_from(redirect.location(&asked, found.prefix, port)) else {
            let why = "the host is not one to be redirected to";
            return Some(Err(Fault::unsent(Reason::MalformedRequest, why)));
        };
        *response.status_mut() = redirect.status;
        response.headers_mut().insert(header::LOCATION, location);
        filters.response.apply(response.headers_mut());
        if let Some(Asking { cors, from }) = cors {
            cors.answer(from.as_ref(), response.headers_mut());
        }
    }
    Some(Ok(Answer { response, in_flight: None, said: Said::Nothing, bounds: None, guard: None }))
}

/// Changes a request as `filters`, the rule's or a backend's, say.
///
/// # Errors
/// [`Reason::HeadTooLarge`], where its target grows longer than any may be; [`Reason::MalformedRequest`], where it is none.
pub(super) fn request(
    found: &Found<'_>,
    filters: Option<&Filters>,
    framing: Framing,
    request: &mut Request<Body>,
) -> Result<(), Fault> {
    let Some(filters) = filters else { return Ok(()) };
    // First, so that a client's `Connection` cannot name, and so take away, what is set here.
    let upgrade = framing == Framing::Http1 && headers::is_upgrade(request.headers());
    headers::strip_hop(request.headers_mut(), upgrade);
    filters.request.apply(request.headers_mut());
    let Some(rewrite) = &filters.rewrite else { return Ok(()) };
    rewrite.apply(request, found.prefix).map_err(|error| {
        let reason = match error {
            InvalidTarget::TooLong(_) => Reason::HeadTooLarge,
            InvalidTarget::Malformed(_) => Reason::MalformedRequest,
        };
        Fault::unsent(reason, format!("as route {} rewrites it: {error}", found.rule.route))
    })
}

/// Changes the answer, unless another proxy says in it what went wrong.
pub(super) fn response(
    found: &Found<'_>,
    backend: &Backend,
    cors: Option<&Asking<'_>>,
    response: &mut Response<Body>,
) {
    if response.headers().contains_key(headers::ERROR) {
        return;
    }
    for filters in all(found, backend) {
        filters.response.apply(response.headers_mut());
    }
    if let Some(Asking { cors, from }) = cors {
        cors.answer(from.as_ref(), response.headers_mut());
    }
}

/// What routes look at.
pub(super) fn asked(request: &Request<Body>) -> Asked<'_> {
    Asked {
        method: request.method(),
        authority: headers::authority(request),
        path: request.uri().path(),
        query: request.uri().query().unwrap_or(""),
        headers: request.headers(),
    }
}

#[cfg(test)]
mod tests;
