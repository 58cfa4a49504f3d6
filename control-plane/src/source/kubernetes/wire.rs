//! What is asked of an API server, what it answers, and what its refusals mean.
//!
//! Decides how an answer is read, never what is done about it. Everything that comes is bounded: in time, and in size.

use std::cmp::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use kube::Client;
use kube::client::Body;
use kube::core::params::{ListParams, WatchParams};
use kube::core::request::Request as Query;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::decode::{Decoded, decode_object, decode_pod};
use super::resource::{Resource, version_path};
use super::{CONNECT, words};
use crate::finding::Note;
use crate::object::{Kind, PodForm};

/// Objects in one answer.
const PAGE: u32 = 500;
/// Such an answer may be large, but not without end.
const LARGEST_PAGE: usize = 256 << 20;
/// An object is 1.5 MiB at most (etcd's limit), and an event holds one.
const LARGEST_EVENT: usize = 16 << 20;
/// What is read of a refusal.
const LARGEST_REFUSAL: usize = 64 << 10;
/// What an answer may take.
const ANSWER: Duration = Duration::from_secs(60);
/// What is shown of what nobody understands.
const SHOWN: usize = 200;

/// An object of an API server.
pub(super) trait Item: DeserializeOwned + Send + 'static {
    /// Its `resourceVersion`.
    fn version(&self) -> Option<&str>;
    /// What it means; a note where it is not even known what it is called.
    fn decode(self, kind: Kind) -> Result<Decoded, Note>;
}

/// A part of all objects of a kind.
#[derive(Debug, Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
pub(super) struct Page<T> {
    pub(super) metadata: PageMetadata,
    /// Needed: a list without them must not pass for one of nothing.
    #[serde(deserialize_with = "null_is_empty")]
    pub(super) items: Vec<T>,
}

/// As Go writes an empty list.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de>>(reader: D) -> Result<Vec<T>, D::Error> {
    Option::deserialize(reader).map(Option::unwrap_or_default)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PageMetadata {
    /// As of which all of it is; empty: this is no list.
    pub(super) resource_version: String,
    /// Asks for the next part; empty: that was all.
    #[serde(rename = "continue")]
    pub(super) token: String,
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event<T> {
    Applied(T),
    Deleted(T),
    /// Nothing has happened up to this version.
    Bookmark(String),
}

/// A watch that is open.
pub(super) struct Events {
    body: Body,
    buffer: Vec<u8>,
    /// So much of it has no end of a line.
    searched: usize,
}

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Failure {
    #[error("the API server no longer knows what has changed since ({0})")]
    Gone(String),
    #[error("the API server does not allow it: {0}")]
    Forbidden(String),
    #[error("the API server does not accept who is asking: {0}")]
    Unauthorized(String),
    #[error("the API server knows nothing there: {0}")]
    NotFound(String),
    /// It is installed, and in no version that is read.
    #[error("the API server has them only as {0}, which this version of the control plane does not read")]
    OtherVersion(String),
    #[error("the API server has too much to do: {message}")]
    TooMany { message: String, wait: Option<Duration> },
    #[error("the API server answers {code}: {message}")]
    Refused { code: u16, message: String },
    #[error("the API server cannot be reached: {0}")]
    Unreachable(String),
    #[error("the API server did not answer in {} s", .0.as_secs())]
    Late(Duration),
    #[error("the API server closed the watch as soon as it was open")]
    Short,
    /// Its store was emptied, or is a backup: what was read may never have been, and what is there now would never be told.
    #[error("the API server was put back to an older state: it is at version {now}, and was at {read}")]
    Rewound { read: String, now: String },
    #[error("what the API server says cannot be understood: {0}")]
    Garbage(String),
}

/// What an API server says of a failure (`v1` Status).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
    details: Option<StatusDetails>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusDetails {
    retry_after_seconds: Option<u32>,
}

/// What a version of a group has.
#[derive(Debug, Deserialize)]
struct ResourceList {
    resources: Vec<ResourceName>,
}

/// A group, whatever versions it has.
#[derive(Debug, Deserialize)]
struct Group {
    versions: Vec<GroupVersion>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct GroupVersion {
    group_version: String,
}

#[derive(Debug, Deserialize)]
struct ResourceName {
    name: String,
}

#[derive(Deserialize)]
struct EventType {
    #[serde(rename = "type")]
    name: String,
}

#[derive(Deserialize)]
#[serde(bound(deserialize = "T: DeserializeOwned"))]
struct EventObject<T> {
    object: T,
}

#[derive(Deserialize)]
struct Versioned {
    metadata: PageMetadata,
}

// === impl Item ===

impl Item for Value {
    fn version(&self) -> Option<&str> {
        self.get("metadata")?.get("resourceVersion")?.as_str()
    }

    fn decode(self, kind: Kind) -> Result<Decoded, Note> {
        decode_object(kind, self)
    }
}

impl Item for PodForm {
    fn version(&self) -> Option<&str> {
        Self::version(self)
    }

    fn decode(self, _: Kind) -> Result<Decoded, Note> {
        decode_pod(&self)
    }
}

// === impl Failure ===

impl Failure {
    /// The word for metrics.
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::Forbidden(_) => "forbidden",
            Self::Unauthorized(_) => "unauthorized",
            Self::NotFound(_) => "not_found",
            Self::OtherVersion(_) => "other_version",
            Self::TooMany { .. } => "too_many_requests",
            Self::Refused { .. } => "refused",
            Self::Unreachable(_) => "unreachable",
            Self::Late(_) => "late",
            Self::Short => "short",
            Self::Rewound { .. } => "rewound",
            Self::Garbage(_) => "garbage",
        }
    }

    /// Whether there may be another state behind the API server when it answers again.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Late(_) => true,
            Self::Refused { code, .. } => *code >= 500,
            _ => false,
        }
    }

    fn of_status(code: u16, message: String, wait: Option<Duration>) -> Self {
        match code {
            401 => Self::Unauthorized(message),
            403 => Self::Forbidden(message),
            404 => Self::NotFound(message),
            410 => Self::Gone(message),
            429 => Self::TooMany { message, wait },
            _ => Self::Refused { code, message },
        }
    }

    fn of_kube(error: &kube::Error) -> Self {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(error);
        while let Some(error) = cause {
            let said = words(error, CONNECT);
            if !text.contains(&said) {
                text = format!("{text}: {said}");
            }
            cause = error.source();
        }
        match error {
            // What its token or its certificate comes from.
            kube::Error::Auth(_) => Self::Unauthorized(text),
            _ => Self::Unreachable(text),
        }
    }

    fn garbage(error: &serde_json::Error, text: &[u8]) -> Self {
        let shown = String::from_utf8_lossy(text.get(..SHOWN).unwrap_or(text));
        Self::Garbage(format!("{error} in `{}`", shown.escape_debug()))
    }
}

/// Sends a question; an answer that is a refusal is a failure.
async fn send(client: &Client, request: Request<Vec<u8>>) -> Result<Body, Failure> {
    let answered = tokio::time::timeout(ANSWER, client.send(request.map(Body::from))).await;
    let response = answered.map_err(|_| Failure::Late(ANSWER))?.map_err(|error| Failure::of_kube(&error))?;
    let code = response.status();
    if code == StatusCode::OK {
        return Ok(response.into_body());
    }
    let wait =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let body = whole(response.into_body(), LARGEST_REFUSAL).await.unwrap_or_default();
    let status: Status = serde_json::from_slice(&body).unwrap_or_default();
    let mut message = status.message;
    if message.is_empty() {
        message = String::from_utf8_lossy(body.get(..SHOWN).unwrap_or(&body)).escape_debug().to_string();
    }
    let asked = status.details.and_then(|details| details.retry_after_seconds).map(u64::from);
    Err(Failure::of_status(code.as_u16(), message, wait.or(asked).map(Duration::from_secs)))
}

async fn whole(body: Body, at_most: usize) -> Result<Bytes, Failure> {
    let collected = tokio::time::timeout(ANSWER, Limited::new(body, at_most).collect()).await;
    let collected = collected.map_err(|_| Failure::Late(ANSWER))?;
    Ok(collected.map_err(|error| Failure::Unreachable(error.to_string()))?.to_bytes())
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(text).map_err(|error| Failure::garbage(&error, text))
}

fn unasked(error: impl ToString) -> Failure {
    Failure::Garbage(error.to_string())
}

/// Whether a version of a group has a resource.
pub(super) async fn serves(client: &Client, version: &str, plural: &str) -> Result<bool, Failure> {
    let request = Request::get(version_path(version)).body(Vec::new()).map_err(unasked)?;
    let body = match send(client, request).await {
        Ok(body) => body,
        Err(Failure::NotFound(_)) => return Ok(false),
        Err(failure) => return Err(failure),
    };
    let list: ResourceList = parse(&whole(body, LARGEST_PAGE).await?)?;
    Ok(list.resources.iter().any(|resource| resource.name == plural))
}

/// The versions in which an API server has `plural`, whoever reads them: `policy.tulle.dev/v1alpha1`.
pub(super) async fn versions(client: &Client, group: &str, plural: &str) -> Result<Vec<String>, Failure> {
    let request = Request::get(version_path(group)).body(Vec::new()).map_err(unasked)?;
    let body = match send(client, request).await {
        Ok(body) => body,
        Err(Failure::NotFound(_)) => return Ok(Vec::new()),
        Err(failure) => return Err(failure),
    };
    let group: Group = parse(&whole(body, LARGEST_PAGE).await?)?;
    let mut found = Vec::new();
    for GroupVersion { group_version } in group.versions {
        if serves(client, &group_version, plural).await? {
            found.push(group_version);
        }
    }
    Ok(found)
}

/// A page of all objects at `path`: the first, or the one that `token` asks for.
pub(super) async fn list<T: Item>(
    client: &Client,
    path: &str,
    resource: &Resource,
    token: &str,
) -> Result<Page<T>, Failure> {
    let mut params = ListParams::default().limit(PAGE);
    if !resource.fields.is_empty() {
        params = params.fields(resource.fields);
    }
    if !resource.labels.is_empty() {
        params = params.labels(resource.labels);
    }
    if !token.is_empty() {
        params = params.continue_token(token);
    }
    let request = Query::new(path).list(&params).map_err(unasked)?;
    let page: Page<T> = parse(&whole(send(client, request).await?, LARGEST_PAGE).await?)?;
    if page.metadata.resource_version.is_empty() {
        return Err(Failure::Garbage("a list without a resourceVersion".to_owned()));
    }
    Ok(page)
}

/// The version of all that is at `path` now, as the store itself has it, not what the API server remembers of it.
pub(super) async fn version(client: &Client, path: &str) -> Result<String, Failure> {
    // With no version, the answer is as of now; of the objects none is wanted.
    let params = ListParams::default().limit(1);
    let request = Query::new(path).list(&params).map_err(unasked)?;
    let Versioned { metadata } = parse(&whole(send(client, request).await?, LARGEST_EVENT).await?)?;
    Ok(metadata.resource_version)
}

/// Which of two versions of one kind is the later: they are decimal numbers of any length (KEP-5504). `None` where one is something else, of which
/// nothing can be said but whether it is the same.
pub(super) fn order(one: &str, other: &str) -> Option<Ordering> {
    let is_number = |text: &str| {
        !text.is_empty() && !text.starts_with('0') && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    (is_number(one) && is_number(other)).then(|| one.len().cmp(&other.len()).then_with(|| one.cmp(other)))
}

/// Opens a watch of what changes at `path` after `version`.
pub(super) async fn watch(
    client: &Client,
    path: &str,
    resource: &Resource,
    version: &str,
    lifetime: Duration,
) -> Result<Events, Failure> {
    let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(1).clamp(1, 294);
    let mut params = WatchParams::default().timeout(seconds);
    if !resource.fields.is_empty() {
        params = params.fields(resource.fields);
    }
    if !resource.labels.is_empty() {
        params = params.labels(resource.labels);
    }
    let request = Query::new(path).watch(&params, version).map_err(unasked)?;
    Ok(Events { body: send(client, request).await?, buffer: Vec::new(), searched: 0 })
}

// === impl Events ===

impl Events {
    /// The next event; none: the watch has ended in order. Nothing is lost if it is dropped while it waits.
    pub(super) async fn next<T: Item>(&mut self) -> Result<Option<Event<T>>, Failure> {
        loop {
            while let Some(line) = self.line() {
                if !line.iter().all(u8::is_ascii_whitespace) {
                    return read(&line).map(Some);
                }
            }
            if self.buffer.len() > LARGEST_EVENT {
                return Err(Failure::Garbage(format!("an event of more than {LARGEST_EVENT} bytes")));
            }
            match self.body.frame().await {
                // What has begun and not ended will come again.
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(Failure::Unreachable(error.to_string())),
            }
        }
    }

    /// Takes the first whole line off the buffer.
    fn line(&mut self) -> Option<Vec<u8>> {
        let unsearched = self.buffer.get(self.searched..)?;
        let Some(at) = unsearched.iter().position(|byte| *byte == b'\n') else {
            self.searched = self.buffer.len();
            return None;
        };
        let rest = self.buffer.split_off(self.searched + at + 1);
        self.searched = 0;
        Some(std::mem::replace(&mut self.buffer, rest))
    }
}

fn read<T: Item>(line: &[u8]) -> Result<Event<T>, Failure> {
    let EventType { name } = parse(line)?;
    match name.as_str() {
        "ADDED" | "MODIFIED" => parse(line).map(|EventObject { object }| Event::Applied(object)),
        "DELETED" => parse(line).map(|EventObject { object }| Event::Deleted(object)),
        "BOOKMARK" => {
            let EventObject { object: Versioned { metadata } } = parse(line)?;
            Ok(Event::Bookmark(metadata.resource_version))
        }
        "ERROR" => {
            let EventObject { object: Status { code, message, details } } = parse(line)?;
            let wait = details.and_then(|details| details.retry_after_seconds);
            let wait = wait.map(|seconds| Duration::from_secs(seconds.into()));
            Err(Failure::of_status(code, message, wait))
        }
        _ => Err(Failure::Garbage(format!("an event of the type `{}`", name.escape_debug()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers_of_any_length_and_nothing_else_is() {
        for (one, other, expected) in [
            ("9", "10", Some(Ordering::Less)),
            ("10", "10", Some(Ordering::Equal)),
            ("340282366920938463463374607431768211457", "99", Some(Ordering::Greater)),
            ("a", "10", None),
            ("10", "", None),
            ("010", "10", None),
            ("-1", "10", None),
        ] {
            assert_eq!(order(one, other), expected, "{one} {other}");
        }
    }
}
