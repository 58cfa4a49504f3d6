//! Another program is asked whether a request is let in: Envoy's external authorization, `envoy.service.auth.v3.Authorization/Check`.
//!
//! Once the proxy's own policies have let a request in, and before the application gets it, every ExternalAuthorization that is about it is
//! asked, one after the other; all must agree. What is told is [`question`]'s, how it gets there [`call`]'s, what comes back [`answer`]'s,
//! and what holds for the next time [`cache`]'s. Without an answer the policy's failure mode decides; a dry run decides nothing. An
//! answer may change the request and its response, never what is the hop's or ours. Called by `inbound`, and by `outbound` and `mirror` for
//! what goes to their own workload.

mod answer;
mod cache;
mod call;
mod question;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Version, header};
use http_body::Body as _;

pub(super) use self::answer::Changes;
pub(super) use self::cache::Cache;

use self::answer::Decision;
use self::question::Question;
use super::admit;
use super::context::Worker;
use super::fault::Fault;
use super::filters;
use super::headers;
use super::record::Record;
use crate::policy::{self, About, External, Externals};
use crate::state::Protocol;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{CheckResult, ExternalLabels};
use crate::telemetry::trace::KeyValue;
use crate::wire::{Beginning, Body, Framing, h1};

/// A request's way, as far as it does not stand in the request.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub worker: &'a Arc<Worker>,
    /// As what it is registered; policy has let it in.
    pub guard: &'a policy::Guard,
    pub client: SocketAddr,
    pub application: SocketAddr,
    pub framing: Framing,
}

/// Why there is no answer.
#[derive(Debug)]
enum Trouble {
    Late,
    /// In words.
    Other(String),
}

/// Who is asked about a request; `None`: nobody, as about most.
pub(super) fn about(asker: Asker<'_>, request: &Request<Body>) -> Option<(Arc<Externals>, About)> {
    let Asker { worker, guard, .. } = asker;
    let snapshot = worker.proxy.store.load();
    let externals = snapshot.inbound.as_ref()?.externals()?;
    let open = guard.open();
    let about = externals.about(open.port, &filters::asked(request));
    // A probe that the pod declares passes, as it passes the other policies (R25).
    if about.is_empty() || admit::is_probe(worker, open, request) {
        return None;
    }
    Some((Arc::clone(externals), about))
}

/// Whether anybody is asked about requests to a port of the workload.
pub(super) fn speaks(worker: &Worker, port: u16) -> bool {
    let snapshot = worker.proxy.store.load();
    let externals = snapshot.inbound.as_ref().and_then(|inbound| inbound.externals());
    externals.is_some_and(|externals| externals.speak_of(port))
}

/// Refuses what is not HTTP at a port about whose requests somebody must be asked, unless it is declared not to be HTTP's: nobody gets around
/// an authorizer by bytes of which it cannot be told.
pub(super) fn opaque(worker: &Worker, guard: &policy::Guard) -> Result<(), Fault> {
    let snapshot = worker.proxy.store.load();
    let Some(inbound) = &snapshot.inbound else { return Ok(()) };
    let port = guard.open().port;
    let Some(external) = inbound.externals().and_then(|externals| externals.must_answer(port)) else {
        return Ok(());
    };
    let protocol = worker.proxy.settings.protocol(inbound.port(port).protocol, port);
    if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
        return Ok(());
    }
    let name = &external.spec().name;
    let detail =
        format!("{name}: what came to port {port} is not HTTP, and the port is not declared to be opaque");
    Err(Fault::unsent(Reason::AuthorizerUnavailable, detail))
}

/// Asks those, and changes the request as they say; what they say of its response.
///
/// # Errors
/// One of them does not let it in, or cannot be asked; or the body is not as it should be.
pub(super) async fn ask(
    asker: Asker<'_>,
    (externals, about): (Arc<Externals>, About),
    mut record: Option<&mut Record>,
    request: &mut Request<Body>,
) -> Result<Vec<Arc<Changes>>, Fault> {
    // An application that takes its host from `Host`, as many do, would serve another than its authorizer is told of.
    headers::check_only_host(request)?;
    let is_upgrade = asker.framing == Framing::Http1 && headers::is_upgrade(request.headers());
    // First, so that a client's `Connection` cannot name, and so take away, what was told or is set.
    headers::strip_hop(request.headers_mut(), is_upgrade);
    let body = body(&about, request).await?;
    let (mut changes, mut made) = (Vec::new(), claimed(asker));
    for external in &about {
        let spec = external.spec();
        let asked = match question::told_of(external, &body) {
            Err(question::TooLong) => {
                let detail = format!("{}: more than {} bytes", spec.name, spec.body_bytes);
                let fault = Fault::unsent(Reason::BodyTooLarge, detail);
                Asked { result: CheckResult::TooLarge, cached: false, outcome: Err(fault) }
            }
            Ok(told) => {
                let question =
                    Question::new(asker, external, externals.generation(), request, (told, &made[..]));
                if let Some(record) = record.as_deref_mut() {
                    record.waits(asker.worker.proxy.now());
                }
                let fields = request.headers();
                let asked = decide(asker, external, &question, fields, record.as_deref_mut()).await;
                if let Some(record) = record.as_deref_mut() {
                    record.waited(asker.worker.proxy.now());
                }
                asked
            }
        };
        tell(asker, external, &asked, record.as_deref_mut());
        match asked.outcome {
            _ if spec.dry_run => {}
            Ok(decided) => {
                if let Some(decided) = decided {
                    decided.change(request).map_err(|why| unavailable(external, &why))?;
                    made.extend(decided.sets().cloned());
                    changes.push(decided);
                }
            }
            Err(fault) => {
                if let Some(record) = record {
                    record.rule = Some(Arc::clone(&spec.name));
                }
                return Err(fault);
            }
        }
    }
    Ok(changes)
}

/// The headers that claims go to. The token that they are of may be gone by now, and is told to nobody; they are.
fn claimed(asker: Asker<'_>) -> Vec<HeaderName> {
    let snapshot = asker.worker.proxy.store.load();
    let all = snapshot.inbound.as_ref().and_then(|inbound| inbound.authentications());
    let at_port = all.into_iter().flat_map(|all| all.at(asker.guard.open().port));
    at_port.flat_map(|one| &one.headers).cloned().collect()
}

/// As much of the body as any of them is told; the client is told to send it.
async fn body(about: &About, request: &mut Request<Body>) -> Result<Option<Beginning>, Fault> {
    let most = about.iter().map(|external| external.spec().body_bytes).max().unwrap_or_default();
    if most == 0 || is_stream(request) {
        return Ok(None);
    }
    if !request.body().is_end_stream() && request.headers().contains_key(header::EXPECT) {
        if let Some(exchange) = request.extensions().get::<h1::Exchange>() {
            let mut go_on = Response::new(());
            *go_on.status_mut() = StatusCode::CONTINUE;
            exchange.interim(&go_on);
        }
        // It was, and need not be asked again.
        request.headers_mut().remove(header::EXPECT);
    }
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    let beginning = request.body_mut().read_ahead(most).await;
    let beginning = beginning.map_err(|error| Fault::unsent(Reason::MalformedRequest, error.to_string()))?;
    Ok(Some(beginning))
}

/// Whether what follows its head is no body that could be waited for: a tunnel's bytes, or a stream of gRPC, which may begin with its answer, and go
/// on for days. A request that asks for another protocol is none, since an application that does not know that reads its body; nor is gRPC's
/// content type over HTTP/1: a client could keep its body from the authorizer by either.
fn is_stream(request: &Request<Body>) -> bool {
    let is_grpc = request.version() == Version::HTTP_2 && headers::is_grpc(request.headers());
    is_grpc || *request.method() == Method::CONNECT
}

/// What came of asking one.
struct Asked {
    result: CheckResult,
    cached: bool,
    /// `None`: it is let in though nobody could say so.
    outcome: Result<Option<Arc<Changes>>, Fault>,
}

/// What it said to the same question, or says now.
async fn decide(
    asker: Asker<'_>,
    external: &External,
    question: &Question,
    fields: &HeaderMap,
    record: Option<&mut Record>,
) -> Asked {
    let (worker, spec) = (asker.worker, external.spec());
    if let Some(key) = &question.key
        && let Some(decision) = worker.external.get(key, question.generation, Instant::now())
    {
        return decided(external, &decision, true);
    }
    if let Some(why) = &spec.invalid {
        return unanswered(worker, external, CheckResult::Failed, why);
    }
    let mut fields = call::trace(fields);
    let tells = || {
        vec![
            KeyValue::new("server.address", format!("{}.{}", spec.service.name, spec.service.namespace)),
            KeyValue::new("server.port", i64::from(spec.service_port)),
            KeyValue::new("tulle.policy", spec.name.to_string()),
            KeyValue::new("tulle.enforced", !spec.dry_run),
        ]
    };
    let span = record.and_then(|record| record.calls(call::METHOD, tells, &mut fields));
    let asked = Instant::now();
    let answered = {
        let called = Box::pin(call::check(asker, spec, &question.message, &fields));
        match tokio::time::timeout(spec.timeout, called).await {
            Ok(answered) => {
                answered.and_then(|answer| Decision::read(answer, external).map_err(Trouble::Other))
            }
            Err(_) => Err(Trouble::Late),
        }
    };
    worker.metrics.external_checked(asked.elapsed());
    match answered {
        Ok(decision) => {
            let decision = Arc::new(decision);
            let until = spec.cache.and_then(|holds| Instant::now().checked_add(holds));
            if let (Some(key), Some(until)) = (question.key, until) {
                worker.external.put(key, question.generation, until, Arc::clone(&decision));
            }
            let decided = decided(external, &decision, false);
            if let Some(span) = span {
                span.ended(decided.result.as_str(), None);
            }
            decided
        }
        Err(trouble) => {
            let (result, why) = match trouble {
                Trouble::Late => (CheckResult::TimedOut, format!("no answer within {:?}", spec.timeout)),
                Trouble::Other(why) => (CheckResult::Failed, why),
            };
            if let Some(span) = span {
                span.ended(result.as_str(), Some(&why));
            }
            unanswered(worker, external, result, &why)
        }
    }
}

/// What comes of a question to which there is no answer.
fn unanswered(worker: &Worker, external: &External, result: CheckResult, why: &str) -> Asked {
    let (fault, spec) = (unavailable(external, why), external.spec());
    worker.external.complain(&spec.name, &fault.detail, worker.proxy.now());
    let outcome = if spec.failure_allows { Ok(None) } else { Err(fault) };
    Asked { result, cached: false, outcome }
}

fn decided(external: &External, decision: &Decision, cached: bool) -> Asked {
    match decision {
        Decision::Allowed(changes) => {
            Asked { result: CheckResult::Allowed, cached, outcome: Ok(Some(Arc::clone(changes))) }
        }
        Decision::Denied { reply, message } => {
            let name = &external.spec().name;
            let detail = if message.is_empty() { name.to_string() } else { format!("{name}: {message}") };
            let fault = Fault::unsent(Reason::DeniedExternally, detail).replying(reply.clone());
            Asked { result: CheckResult::Denied, cached, outcome: Err(fault) }
        }
    }
}

fn unavailable(external: &External, why: &str) -> Fault {
    let spec = external.spec();
    let detail = match spec.invalid {
        Some(_) => format!("{}: {why}", spec.name),
        None => format!("{}: {}:{}: {why}", spec.name, spec.service, spec.service_port),
    };
    Fault::unsent(Reason::AuthorizerUnavailable, detail)
}

/// Counts it, notes it in the request's span, and says in the log what a dry run would have come to.
fn tell(asker: Asker<'_>, external: &External, asked: &Asked, mut record: Option<&mut Record>) {
    let Asked { result, cached, outcome } = asked;
    let (result, cached, spec) = (*result, *cached, external.spec());
    let enforced = !spec.dry_run;
    let labels = ExternalLabels { policy: &spec.name, result, cached, enforced };
    asker.worker.metrics.external_check(&labels);
    if let Some(record) = record.as_deref_mut() {
        record.happened("tulle.external_check", || {
            vec![
                KeyValue::new("tulle.policy", spec.name.to_string()),
                KeyValue::new("tulle.result", result.as_str()),
                KeyValue::new("tulle.cached", cached),
                KeyValue::new("tulle.enforced", enforced),
            ]
        });
    }
    if spec.dry_run
        && let Err(Fault { reason, detail, .. }) = outcome
    {
        if let Some(record) = record {
            record.would_deny.get_or_insert_with(|| Arc::clone(&spec.name));
        }
        let (client, policy, reason) = (asker.client, &*spec.name, reason.code());
        tracing::info!(%client, policy, reason, detail = &**detail, "a dry run would have refused a request");
    }
}

#[cfg(test)]
mod tests;
