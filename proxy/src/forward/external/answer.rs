//! What an authorizer has answered, and what that changes: Envoy's `CheckResponse`.
//!
//! Pure. What cannot be read in an answer that lets in makes it no answer, since it says less than was meant; in a denial it is left out.
//! Where an answer does not say whether a header is added or put in the place of what is there, it is put there, as the published API has
//! it for these messages (`OkHttpResponse.headers`): whoever asks cannot keep a header of their own beside the authorizer's.

use std::sync::Arc;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri};
use tulle_api::ext_authz::check_response::HttpResponse;
use tulle_api::ext_authz::header_value_option::HeaderAppendAction;
use tulle_api::ext_authz::{
    CheckResponse, DeniedHttpResponse, HeaderValueOption, OkHttpResponse, QueryParameter,
};
use tulle_api::is_protected_header;

use crate::forward::fault::Reply;
use crate::forward::headers;
use crate::policy::External;
use crate::route::is_parameter;
use crate::wire::Body;

/// What it has said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    Allowed(Arc<Changes>),
    Denied {
        reply: Reply,
        /// Why, for people; may be empty.
        message: String,
    },
}

/// What an answer that lets in changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::forward) struct Changes {
    request: Vec<Change>,
    remove: Vec<HeaderName>,
    query: Vec<(String, String)>,
    query_remove: Vec<String>,
    response: Vec<Change>,
}

/// One line of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Change {
    name: HeaderName,
    value: HeaderValue,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Append,
    IfAbsent,
    Overwrite,
    IfPresent,
}

// === impl Decision ===

impl Decision {
    /// # Errors
    /// What of it cannot be read, for people.
    pub(super) fn read(answer: CheckResponse, external: &External) -> Result<Self, String> {
        let (code, message) = match answer.status {
            Some(status) => (Some(status.code), status.message),
            None => (None, String::new()),
        };
        match (code, answer.http_response) {
            (_, Some(HttpResponse::ErrorResponse(_))) => Err(format!("it could not decide: {message}")),
            (Some(0), None) => Ok(Self::Allowed(Arc::default())),
            (Some(0) | None, Some(HttpResponse::OkResponse(ok))) => {
                Ok(Self::Allowed(Arc::new(Changes::read(ok, external)?)))
            }
            (None, None) => Err("it says neither yes nor no".to_owned()),
            (Some(0) | None, Some(HttpResponse::DeniedResponse(_))) => {
                Err("it says yes, and how it would say no".to_owned())
            }
            (Some(_), Some(HttpResponse::DeniedResponse(denied))) => {
                Ok(Self::Denied { reply: reply(denied), message })
            }
            (Some(_), Some(HttpResponse::OkResponse(_)) | None) => {
                Ok(Self::Denied { reply: reply(DeniedHttpResponse::default()), message })
            }
        }
    }
}

/// 403, unless it says a status that an answer may end with.
fn reply(denied: DeniedHttpResponse) -> Reply {
    let DeniedHttpResponse { status, headers, body } = denied;
    let status = status.and_then(|status| u16::try_from(status.code).ok());
    let status = status.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.filter(|status| (200..600).contains(&status.as_u16()));
    let headers = headers.into_iter().filter_map(|one| Change::read(one).ok());
    let headers = headers.filter(|one| !is_protected_header(one.name.as_str()));
    Reply {
        status: status.unwrap_or(StatusCode::FORBIDDEN),
        headers: headers.map(|Change { name, value, .. }| (name, value)).collect(),
        body,
    }
}

// === impl Change ===

impl Change {
    fn read(option: HeaderValueOption) -> Result<Self, String> {
        let header = option.header.ok_or("a header has neither name nor value")?;
        let name = HeaderName::from_bytes(header.key.as_bytes())
            .map_err(|_| format!("{:?} is not a header's name", header.key))?;
        let value = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
        let value =
            HeaderValue::from_bytes(value).map_err(|_| format!("what it says of {name} is not a value"))?;
        let action = HeaderAppendAction::try_from(option.append_action)
            .map_err(|unknown| format!("what becomes of {name} is not known: {unknown}"))?;
        let how = match (option.append, action) {
            (Some(true), _) => How::Append,
            (Some(false), _) => How::Overwrite,
            (None, HeaderAppendAction::AddIfAbsent) => How::IfAbsent,
            (None, HeaderAppendAction::OverwriteIfExists) => How::IfPresent,
            // The first is also what stands there where nothing is said.
            (None, HeaderAppendAction::AppendIfExistsOrAdd | HeaderAppendAction::OverwriteIfExistsOrAdd) => {
                How::Overwrite
            }
        };
        Ok(Self { name, value, how })
    }
}

/// Changes a head. Of several that are put in the place of what was there, all are.
fn apply(changes: &[Change], fields: &mut HeaderMap) {
    let mut mine: Vec<&HeaderName> = Vec::new();
    for Change { name, value, how } in changes {
        let is_there = fields.contains_key(name);
        let (applies, appends) = match how {
            How::Append => (true, true),
            How::IfAbsent => (!is_there, false),
            How::Overwrite => (true, mine.contains(&name)),
            How::IfPresent => (is_there, mine.contains(&name)),
        };
        if applies && appends {
            fields.append(name, value.clone());
        } else if applies {
            fields.insert(name, value.clone());
            mine.push(name);
        }
    }
}

// === impl Changes ===

impl Changes {
    fn read(ok: OkHttpResponse, external: &External) -> Result<Self, String> {
        let name = &external.spec().name;
        let mut request = Vec::with_capacity(ok.headers.len());
        for one in ok.headers {
            let change = Change::read(one)?;
            match external.may_change(&change.name) {
                true => request.push(change),
                false => left_out(name, &change.name),
            }
        }
        let mut response = Vec::with_capacity(ok.response_headers_to_add.len());
        for one in ok.response_headers_to_add {
            let change = Change::read(one)?;
            match is_protected_header(change.name.as_str()) {
                false => response.push(change),
                true => left_out(name, &change.name),
            }
        }
        let mut remove = Vec::with_capacity(ok.headers_to_remove.len());
        for one in ok.headers_to_remove {
            match HeaderName::from_bytes(one.as_bytes()) {
                Ok(header) if external.may_change(&header) => remove.push(header),
                Ok(header) => left_out(name, &header),
                // A pseudo-header, say: nothing of that name is there.
                Err(_) => {}
            }
        }
        let query = ok.query_parameters_to_set.into_iter();
        let query = query.map(|QueryParameter { key, value }| (key, value)).collect();
        Ok(Self { request, remove, query, query_remove: ok.query_parameters_to_remove, response })
    }

    /// The headers that it may set on the request.
    pub(super) fn sets(&self) -> impl Iterator<Item = &HeaderName> {
        self.request.iter().map(|change| &change.name)
    }

    /// Changes the request. What is to be removed is, whatever was set. What the client says under these names in trailers, or
    /// in a spelling that some server takes for one of them, is removed.
    ///
    /// # Errors
    /// Where its target cannot be what the answer makes of it, for people.
    pub(super) fn change(&self, request: &mut Request<Body>) -> Result<(), String> {
        let called = self.sets().chain(&self.remove).cloned().collect();
        headers::strip_named_trailers(request.body_mut(), called);
        let fields = request.headers_mut();
        let replaces = |change: &&Change| matches!(change.how, How::Overwrite | How::IfPresent);
        for Change { name, .. } in self.request.iter().filter(replaces) {
            headers::strip_likenesses(fields, name);
        }
        apply(&self.request, fields);
        self.remove.iter().for_each(|name| headers::strip_named(fields, name));
        if self.query.is_empty() && self.query_remove.is_empty() {
            return Ok(());
        }
        let Some(target) = request.uri().path_and_query() else { return Ok(()) };
        let target = self.target(target).map_err(|error| format!("the query that it makes: {error}"))?;
        let mut parts = request.uri().clone().into_parts();
        parts.path_and_query = Some(target);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|error| error.to_string())?;
        Ok(())
    }

    /// With the query that is made of this one's.
    fn target(&self, target: &PathAndQuery) -> Result<PathAndQuery, http::Error> {
        let goes = |pair: &&str| {
            let mut names = self.query.iter().map(|(name, _)| name).chain(&self.query_remove);
            names.any(|name| is_parameter(pair, name))
        };
        let stays = target.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        let stays = stays.filter(|pair| !goes(pair)).map(str::to_owned);
        let set = self.query.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value)));
        let query: Vec<String> = stays.chain(set).collect();
        let path = target.path();
        let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        Ok(PathAndQuery::try_from(text)?)
    }

    /// Changes the response, unless a proxy says in it what went wrong.
    pub(in crate::forward) fn answer(&self, response: &mut Response<Body>) {
        if !response.headers().contains_key(headers::ERROR) {
            apply(&self.response, response.headers_mut());
        }
    }
}

fn left_out(policy: &str, name: &HeaderName) {
    tracing::debug!(policy, %name, "an authorizer may not change this header; see allowedHeaders");
}

/// Percent-encoded but for what RFC 3986 §2.3 has unreserved.
fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

#[cfg(test)]
mod tests;
