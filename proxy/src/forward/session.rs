//! Keeps the requests of a session at one endpoint (GEP-1619).
//!
//! Decides where a request with a session's token goes: to the endpoint that the token names, as long as that is a ready one of a
//! backend of the rule, neither ejected nor unhealthy, whatever the backend's weight is now. Nothing is remembered here: the token says it all. A rule without a session costs a look at an empty option. Called by `outbound`.

use std::time::{SystemTime, UNIX_EPOCH};

use http::Request;

use super::context::Worker;
use super::exchange::Answer;
use super::fault::Fault;
use super::headers;
use super::target::{self, Target};
use crate::route::{self, Backend, Found, Presented, SessionKey, Token, TokenPlace};
use crate::telemetry::metrics::SessionResult;
use crate::wire::Body;

/// The session of one request.
pub(super) struct Session<'a> {
    rule: &'a route::Rule,
    session: &'a route::Session,
    key: SessionKey,
    /// Where it goes, and by what; `None`: wherever the balancer says.
    kept: Option<(&'a Backend, Target, Token)>,
    /// What became of it, if it is not kept.
    otherwise: SessionResult,
    /// What its cookie is for.
    path: Box<str>,
}

/// Takes the token out of a request; `None` where the rule keeps no sessions.
///
/// # Errors
/// The Service that the session goes to cannot be asked for.
pub(super) async fn begin<'a>(
    worker: &Worker,
    found: &Found<'a>,
    request: &mut Request<Body>,
) -> Result<Option<Box<Session<'a>>>, Fault> {
    match found.rule.session.as_deref() {
        None => Ok(None),
        Some(session) => Box::pin(read(worker, found, session, request)).await,
    }
}

async fn read<'a>(
    worker: &Worker,
    found: &Found<'a>,
    session: &'a route::Session,
    request: &mut Request<Body>,
) -> Result<Option<Box<Session<'a>>>, Fault> {
    let key = worker.proxy.store.load().mesh.as_ref().and_then(|mesh| mesh.session_key.clone());
    let Some(key) = key else { return Ok(None) };
    let path = match session.place {
        TokenPlace::Cookie { .. } => request.uri().path().get(..found.common).unwrap_or_default(),
        TokenPlace::Header(_) => "",
    };
    let mut begun = Session {
        rule: found.rule,
        session,
        kept: None,
        otherwise: SessionResult::New,
        path: path.into(),
        key,
    };
    match session.take(&begun.key, request.headers_mut()) {
        Presented::Nothing => {}
        Presented::Invalid => begun.otherwise = SessionResult::Invalid,
        Presented::Token(token) if session.is_over(&token, now()) => begun.otherwise = SessionResult::Expired,
        Presented::Token(token) => {
            begun.otherwise = SessionResult::Moved;
            begun.kept = begun.endpoint(worker, token).await?;
        }
    }
    Ok(Some(Box::new(begun)))
}

/// Milliseconds since 1970.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

// === impl Session ===

impl<'a> Session<'a> {
    /// The endpoint that a token names, if it can take requests.
    async fn endpoint(
        &self,
        worker: &Worker,
        token: Token,
    ) -> Result<Option<(&'a Backend, Target, Token)>, Fault> {
        let mut backends = self.session.backends.iter().zip(&self.rule.backends);
        let named = backends.find(|(id, backend)| **id == token.backend && backend.invalid.is_none());
        let Some((_, backend)) = named else { return Ok(None) };
        let service = target::service(worker, &backend.service).await?;
        let endpoint = service.serving(backend.port).and_then(|endpoints| {
            let member = endpoints.at(backend.port, token.address)?;
            let port = endpoints.port(backend.port)?;
            // What is not ready takes what it must, as without a session; so does what is ejected, or unhealthy.
            let takes = port.may_take(member) || !port.members.iter().any(|other| port.may_take(other));
            takes.then(|| member.endpoint.clone())
        });
        Ok(endpoint.map(|endpoint| (backend, Target::Session(service, backend.port, endpoint), token)))
    }

    /// Where the request goes, if that is said.
    pub(super) fn kept(&self) -> Option<(&'a Backend, Target)> {
        self.kept.as_ref().map(|(backend, target, _)| (*backend, target.clone()))
    }

    /// Gives the client its token, if it needs another than it has. `None`: it is a proxy that answers, and nobody's session.
    pub(super) fn answer(
        &self,
        worker: &Worker,
        backend: &Backend,
        answer: &mut Answer,
    ) -> Option<SessionResult> {
        let address = answer.in_flight.as_ref()?.endpoint().address;
        let fields = answer.response.headers_mut();
        if fields.contains_key(headers::ERROR) {
            return None;
        }
        let now = now();
        let kept = self.kept.as_ref().map(|(.., token)| *token).filter(|token| token.address == address);
        let token = match kept {
            Some(token) => self.session.idle_timeout.is_some().then_some(Token { seen: now, ..token }),
            None => {
                let backend = route::backend_id(&backend.label);
                Some(Token { backend, address, began: now, seen: now })
            }
        };
        if let Some(token) = token {
            self.session.put(&self.key, &token, &self.path, now, fields);
        }
        let result = if kept.is_some() { SessionResult::Kept } else { self.otherwise };
        worker.metrics.session(result);
        Some(result)
    }
}
