//! Whose token a request carries, before policy judges it.
//!
//! In this order: what clients send under the names of claims' headers is removed, in trailers too; the token is found, verified, and taken out of the request
//! unless its policy forwards it; its claims are told to the application. What policies in dry run would have done is told, and not done: they
//! change nothing. What a token is and what it must say is [`token`](crate::token)'s. Called by `inbound`, and by `outbound` and `mirror` for what goes to their
//! own workload.

use std::sync::Arc;
use std::time::SystemTime;

use http::{HeaderName, Request};
use smallvec::SmallVec;
use tulle_certs::jwks::KeySet;
use tulle_certs::jwt::{ReadError, SignatureError, Token};

use super::admit;
use super::context::Worker;
use super::fault::{Challenge, Fault};
use super::filters;
use super::headers;
use crate::policy::{self, Claims, Inbound};
use crate::state::Protocol;
use crate::telemetry::Reason;
use crate::telemetry::metrics::TokenResult;
use crate::token::{Authentication, Found, Issuer, Pool, Refusal};
use crate::wire::Body;

/// A token that is taken, and by whose keys.
struct Taken<'a> {
    found: Found<'a>,
    issuer: Arc<Issuer>,
    claims: Arc<Claims>,
    result: TokenResult,
}

/// What is told of a request beside what becomes of it: policies by their names.
#[derive(Debug, Default)]
pub(super) struct Named {
    /// Those that are about it, where it is refused.
    pub rule: Option<Arc<str>>,
    /// Those in dry run that would have refused it, where it is not.
    pub would_deny: Option<Arc<str>>,
}

/// Who is refused, why, and whose token it is as far as that is known.
type Refused = (Refusal, Option<Arc<Issuer>>);

/// The policy that is in force, if it says anything of tokens at the port.
pub(super) fn speaks(worker: &Worker, port: u16) -> Option<Arc<Inbound>> {
    let snapshot = worker.proxy.store.load();
    let inbound = snapshot.inbound.as_ref()?;
    inbound.authentications()?.at(port).next()?;
    Some(Arc::clone(inbound))
}

/// What the token of a request says that came on what `guard` stands for; `None`: nothing is known of who sent it. A kubelet has no token: probes that the
/// pod declares need none (R25).
///
/// # Errors
/// It needs a token and has none, has one that is not taken, or one that cannot be verified now.
pub(super) async fn request(
    worker: &Worker,
    request: &mut Request<Body>,
    guard: &policy::Guard,
    named: &mut Named,
) -> Result<Option<Arc<Claims>>, Fault> {
    let open = guard.open();
    let Some(inbound) = speaks(worker, open.port) else { return Ok(None) };
    let excused = admit::is_probe(worker, open, request);
    Box::pin(authenticate(worker, request, (open.port, excused), &inbound, named)).await
}

/// The same of a request to a port of the proxy's own workload.
///
/// # Errors
/// As [`request`].
pub(super) async fn at(
    worker: &Worker,
    request: &mut Request<Body>,
    port: u16,
    named: &mut Named,
) -> Result<Option<Arc<Claims>>, Fault> {
    match speaks(worker, port) {
        Some(inbound) => Box::pin(authenticate(worker, request, (port, false), &inbound, named)).await,
        None => Ok(None),
    }
}

/// Refuses a connection whose bytes nobody looks into, where a policy wants each request to have a token: what is taken for something else here may be
/// a request to the application. So it is where an application is told of claims, unless the port is declared not to be HTTP's: it would believe what
/// the client says under their names.
///
/// # Errors
/// It goes to a port of which such a policy speaks.
pub(super) fn opaque(worker: &Worker, guard: &policy::Guard) -> Result<(), Fault> {
    let port = guard.open().port;
    let Some(inbound) = speaks(worker, port) else { return Ok(()) };
    let Some(all) = inbound.authentications() else { return Ok(()) };
    let in_force = || all.at(port).filter(|one| !one.dry_run);
    let protocol = worker.proxy.settings.protocol(inbound.port(port).protocol, port);
    let is_declared = matches!(protocol, Protocol::Tcp | Protocol::Tls);
    let detail = match in_force().find(|one| one.required) {
        Some(one) => format!("{}: port {port} takes requests of HTTP only, which can have a token", one.name),
        None => match in_force().find(|one| !is_declared && !one.headers.is_empty()) {
            Some(one) => format!(
                "{}: what came to port {port}, whose application is told of claims, is not HTTP, and the port is not declared to be opaque",
                one.name
            ),
            None => return Ok(()),
        },
    };
    worker.metrics.token(TokenResult::Missing, false);
    Err(Fault::unsent(Reason::TokenRequired, detail))
}

/// A refusal by policy of a request whose token was taken: nothing that it says allows the request (RFC 6750 §3.1).
pub(super) fn judged(fault: Fault, claims: Option<&Claims>) -> Fault {
    match claims {
        Some(_) if fault.reason == Reason::PolicyDenied => fault.challenging(Challenge::Scope),
        _ => fault,
    }
}

/// `excused`: it needs no token.
async fn authenticate(
    worker: &Worker,
    request: &mut Request<Body>,
    (port, excused): (u16, bool),
    inbound: &Inbound,
    named: &mut Named,
) -> Result<Option<Arc<Claims>>, Fault> {
    let Some(all) = inbound.authentications() else { return Ok(None) };
    let about: SmallVec<[&Authentication; 4]> = all.about(port, &filters::asked(request)).collect();
    let in_force = Pool::of(about.iter().copied().filter(|one| !one.dry_run));
    let found = in_force.find(request.headers());
    // Also of requests that no policy is about: the application knows of the port's policies, and not of their routes.
    let claimed = all.at(port).filter(|one| !one.dry_run).flat_map(|one| &one.headers);
    let claimed: Vec<HeaderName> = claimed.cloned().collect();
    claimed.iter().for_each(|name| headers::strip_named(request.headers_mut(), name));
    headers::strip_named_trailers(request.body_mut(), claimed);
    let known = if about.iter().any(|one| one.dry_run) {
        let dry = Pool::of(about.iter().copied());
        let found = dry.find(request.headers());
        would_have(worker, &dry, found, &about, named).await
    } else {
        None
    };
    if in_force.is_empty() {
        return Ok(known);
    }
    match take(worker, &in_force, found).await {
        Ok(Some(taken)) => {
            let told = taken.issuer.told(&taken.claims);
            let told =
                told.map_err(|refusal| refused(worker, &about, refusal, Some(&*taken.issuer), named))?;
            worker.metrics.token(taken.result, false);
            if !taken.issuer.spec.forward {
                taken.found.remove(request.headers_mut());
            }
            for (name, value) in told {
                request.headers_mut().insert(name, value);
            }
            Ok(Some(taken.claims))
        }
        Ok(None) => {
            worker.metrics.token(TokenResult::Absent, false);
            Ok(None)
        }
        Err((Refusal::Missing, _)) if excused => Ok(None),
        Err((refusal, issuer)) => Err(refused(worker, &about, refusal, issuer.as_deref(), named)),
    }
}

/// Tells what would become of a request if policies in dry run were in force too; the claims of a token that would be taken.
async fn would_have<'a>(
    worker: &Worker,
    pool: &Pool<'a>,
    found: Result<Option<Found<'a>>, Refusal>,
    about: &[&Authentication],
    named: &mut Named,
) -> Option<Arc<Claims>> {
    let (refusal, issuer) = match take(worker, pool, found).await {
        Ok(Some(taken)) => {
            worker.metrics.token(taken.result, true);
            return Some(taken.claims);
        }
        Ok(None) => {
            worker.metrics.token(TokenResult::Absent, true);
            return None;
        }
        Err(refused) => refused,
    };
    worker.metrics.token(refusal.result(), true);
    let policies = names(about.iter().copied().filter(|one| one.dry_run));
    named.would_deny = Some(policies.as_str().into());
    let issuer = issuer.as_ref().map(|issuer| &*issuer.spec.issuer);
    tracing::info!(policies, issuer, %refusal, "in dry run: a request would have been refused for its token");
    None
}

/// Verifies the token of a request; `None`: it has none, and needs none.
async fn take<'a>(
    worker: &Worker,
    pool: &Pool<'a>,
    found: Result<Option<Found<'a>>, Refusal>,
) -> Result<Option<Taken<'a>>, Refused> {
    let found = match found {
        Err(refusal) => return Err((refusal, None)),
        Ok(None) if pool.required.is_some() => return Err((Refusal::Missing, None)),
        Ok(None) => return Ok(None),
        Ok(Some(found)) => found,
    };
    let now = seconds(SystemTime::now());
    let known = worker.tokens.lock().get(&found, now).map(|(issuer, claims)| (Arc::clone(issuer), claims));
    if let Some((issuer, claims)) = known {
        return Ok(Some(Taken { found, issuer, claims, result: TokenResult::Cached }));
    }
    let (issuer, claims) = verify(worker, &found, now).await?;
    Ok(Some(Taken { found, issuer, claims, result: TokenResult::Verified }))
}

/// Verifies a token by one of the issuers that take it from where it was.
async fn verify(worker: &Worker, found: &Found<'_>, now: f64) -> Result<(Arc<Issuer>, Arc<Claims>), Refused> {
    let text = std::str::from_utf8(&found.text);
    let text = text.map_err(|_| nobodys(ReadError::Malformed("the token is not text").into()))?;
    let token = Token::read(text).map_err(|error| nobodys(error.into()))?;
    let says = token.claims().get("iss").and_then(|issuer| issuer.as_str());
    let is_its = |issuer: &&Arc<Issuer>| says == Some(&*issuer.spec.issuer);
    let issuers: SmallVec<[&Arc<Issuer>; 4]> = found.issuers.iter().copied().filter(is_its).collect();
    let mut last = nobodys(Refusal::Issuer);
    for issuer in issuers {
        match signed(issuer, &token, now).await {
            Ok((keys, until)) => {
                let claims = Arc::new(Claims::verified(&issuer.spec.issuer, token.into_claims()));
                worker.tokens.lock().insert(&found.text, &claims, issuer, &keys, until);
                return Ok((Arc::clone(issuer), claims));
            }
            Err(refusal) => last = (refusal, Some(Arc::clone(issuer))),
        }
    }
    Err(last)
}

fn nobodys(refusal: Refusal) -> Refused {
    (refusal, None)
}

/// Whether a token holds, and which keys have verified it; what it says of its times first, which costs less than its signature.
async fn signed(issuer: &Issuer, token: &Token<'_>, now: f64) -> Result<(Arc<KeySet>, f64), Refusal> {
    let until = issuer.check(token.claims(), now)?;
    let keys = issuer.keys().await.ok_or(Refusal::NoKeys)?;
    match token.verify(&keys) {
        Ok(()) => Ok((keys, until)),
        // Its issuer may have others since they were fetched.
        Err(SignatureError::NoKey) => match issuer.newer(&keys).await {
            Some(newer) => {
                token.verify(&newer)?;
                Ok((newer, until))
            }
            None => Err(Refusal::Unsigned(SignatureError::NoKey)),
        },
        Err(wrong) => Err(wrong.into()),
    }
}

/// The end of a request, by the policies in force of those that are `about` it. Its token is told of in nothing.
fn refused(
    worker: &Worker,
    about: &[&Authentication],
    refusal: Refusal,
    issuer: Option<&Issuer>,
    named: &mut Named,
) -> Fault {
    worker.metrics.token(refusal.result(), false);
    let policies = names(about.iter().copied().filter(|one| !one.dry_run));
    *named = Named { rule: Some(policies.as_str().into()), would_deny: None };
    let detail = match issuer {
        Some(issuer) => format!("{policies}: {refusal} (issuer {})", issuer.spec.issuer),
        None => format!("{policies}: {refusal}"),
    };
    let fault = Fault::unsent(refusal.reason(), detail);
    match refusal {
        Refusal::Missing => fault.challenging(Challenge::Token),
        Refusal::NoKeys => fault,
        refusal => fault.challenging(Challenge::Invalid(refusal)),
    }
}

fn names<'a>(policies: impl Iterator<Item = &'a Authentication>) -> String {
    let names: Vec<&str> = policies.map(|one| &*one.name).collect();
    names.join(", ")
}

/// As tokens have it (RFC 7519 §2).
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
