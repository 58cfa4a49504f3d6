//! Whether something is let in to the application beside this proxy: policy's verdict, and what is told of it.
//!
//! A connection is registered, then judged by the policy of that moment: whether there could be a request that passes ([`may_open`]), and once it
//! is known to carry none, as bytes ([`judge_bytes`]). Each request is judged by itself ([`judge_request`]). What stays open ends when a
//! change of policy no longer allows it: the connection ([`revoked`], [`revoked_for_long`]), or of one that stays the requests
//! that may not ([`no_longer`]). The verdict itself is [`policy`]'s. Called by `inbound`, and by `outbound` and `mirror` for what
//! goes to their own workload ([`own`]).

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::{Method, Request};

use super::authenticate;
use super::context::Worker;
use super::egress;
use super::exchange::Failed;
use super::fault::Fault;
use super::filters;
use super::headers;
use super::record::Record;
use crate::endpoint::Endpoint;
use crate::policy::{self, Claims, Denial, Inbound, Judged, Kept, Open, Requested, Verdict};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{VerdictKind, VerdictLabels};
use crate::wire::{Body, Processed};

/// How long requests under way have to end after a change of policy no longer allows them or their connection.
const REVOKED: Duration = Duration::from_secs(1);

/// The way to the application beside this proxy, for what its own workload asks of itself.
#[derive(Debug)]
pub(super) struct Own {
    pub application: Arc<Endpoint>,
    pub guard: Arc<policy::Guard>,
    pub passed: Passed,
    /// What the request's token says, where one was verified.
    pub claims: Option<Arc<Claims>>,
}

/// What may go on.
#[derive(Debug)]
pub(super) struct Passed {
    /// The rule that lets it in.
    pub rule: Arc<str>,
    /// That in dry run which would not.
    pub would_deny: Option<Arc<str>>,
}

/// What is kept of a request that was let in, for as long as it is under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    kept: Kept,
    /// That of the policy that let it in.
    generation: u64,
}

/// Whether there could be a request that passes on what is registered, so that its application may be opened. A denial is counted here; what
/// may go on, once it is known what it is.
pub(super) fn may_open(worker: &Worker, guard: &policy::Guard) -> Result<(), Fault> {
    let verdict = match &worker.proxy.store.load().inbound {
        Some(inbound) => guard.judge(inbound),
        None => Verdict::Deny { reason: Denial::NoPolicy, rule: None },
    };
    match verdict {
        Verdict::Allow { .. } | Verdict::Audit { .. } => Ok(()),
        verdict => tell(worker, guard, Judged { verdict, would_deny: None }, None).map(drop),
    }
}

/// Judges what is registered, and carries no HTTP, by the policy of this moment.
pub(super) fn judge_bytes(worker: &Worker, guard: &policy::Guard) -> Result<Passed, Fault> {
    guard.relays();
    let judged = match &worker.proxy.store.load().inbound {
        Some(inbound) => guard.judge_bytes(inbound),
        None => Judged::denied(Denial::NoPolicy, None),
    };
    tell(worker, guard, judged, None)
}

/// Judges a request on what is registered by the policy of this moment, and by what is known of its token. Where its client has no identity, and
/// there is a policy, a probe that the pod declares is let in by exactly its port and path (R25); looked for only where the answer would be no.
pub(super) fn judge_request(
    worker: &Worker,
    guard: &policy::Guard,
    record: &mut Record,
    request: &Request<Body>,
    claims: Option<&Arc<Claims>>,
) -> Result<(), Fault> {
    let snapshot = worker.proxy.store.load();
    let inbound = snapshot.inbound.as_deref();
    let grpc = record.grpc;
    let mut judged = judged(inbound, guard, request, (grpc, claims))?;
    // Nor would it be refused were all in force.
    if judged.would_deny.is_some() && is_probe(worker, guard.open(), request) {
        judged.would_deny = None;
    }
    if let Verdict::Deny { rule, reason } = &judged.verdict {
        if *reason != Denial::NoPolicy && is_probe(worker, guard.open(), request) {
            let excused = Judged { verdict: Verdict::Allow { rule: PROBE.clone() }, would_deny: None };
            let Passed { rule, .. } = tell(worker, guard, excused, None)?;
            record.rule = Some(rule);
            return Ok(());
        }
        (record.rule, record.would_deny) = (rule.clone(), None);
    }
    let Passed { rule, would_deny } = tell(worker, guard, judged, Some(request))?;
    record.rule = Some(rule);
    // A policy of tokens in dry run may have said so before.
    if would_deny.is_some() {
        record.would_deny = would_deny;
    }
    let generation = inbound.map_or(0, Inbound::generation);
    record.under_way = Some(UnderWay { kept: kept(request, grpc, claims), generation });
    Ok(())
}

/// # Errors
/// [`Reason::MalformedRequest`], where policies look at hosts and the request names two.
fn judged(
    inbound: Option<&Inbound>,
    guard: &policy::Guard,
    request: &Request<Body>,
    (grpc, claims): (bool, Option<&Arc<Claims>>),
) -> Result<Judged, Fault> {
    let Some(inbound) = inbound else { return Ok(Judged::denied(Denial::NoPolicy, None)) };
    let requested = Requested {
        asked: filters::asked(request),
        grpc,
        claims: claims.map(|claims| &**claims),
        headless: false,
    };
    let judged = guard.judge_request(inbound, &requested);
    if judged.verdict.is_allowed() && inbound.looks_at_hosts(guard.open().port) {
        headers::check_only_host(request)?;
    }
    Ok(judged)
}

fn kept(request: &Request<Body>, grpc: bool, claims: Option<&Arc<Claims>>) -> Kept {
    Kept {
        method: request.method().clone(),
        target: request.uri().clone(),
        host: headers::needed_host(request).cloned(),
        grpc,
        claims: claims.cloned(),
    }
}

/// Whether it is a probe that the pod declares, from whoever has no identity.
pub(super) fn is_probe(worker: &Worker, open: &Open, request: &Request<Body>) -> bool {
    let probes = &worker.proxy.settings.probes;
    open.tls == policy::TlsKind::None && probes.iter().any(|probe| probe.is(open.port, request))
}

/// What says that clients must be in the Mesh's networks.
const DEFAULT_INBOUND: &str = "config.tulle.dev/default-inbound-policy";

/// The name in place of a rule's where the pod's declaration has let a probe in.
static PROBE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("probe"));

/// Tells what policy has said of a connection, or of a request on it.
fn tell(
    worker: &Worker,
    guard: &policy::Guard,
    judged: Judged,
    request: Option<&Request<Body>>,
) -> Result<Passed, Fault> {
    let open = guard.open();
    let Judged { verdict, would_deny } = judged;
    let count = |verdict, rule: &str, reason| {
        worker.metrics.verdicts(&VerdictLabels { verdict, rule, reason }).inc();
    };
    let rule = match verdict {
        Verdict::Audit { rule } => {
            // Of bytes, a change of policy may have had it told already.
            if request.is_some() || guard.audits(&rule) {
                count(VerdictKind::Audit, &rule, None);
                // That everybody is let in by default is told of a connection once, though each request is judged.
                if !policy::is_default(&rule) || guard.is_first_audit() {
                    log(open, &rule, AUDITED);
                }
            }
            rule
        }
        Verdict::Allow { rule } => {
            count(VerdictKind::Allow, &rule, None);
            rule
        }
        Verdict::Deny { reason, rule } => {
            let rule = rule.as_deref();
            let asked = request.map(|request| (request.method(), request.uri().path()));
            let fault = denied(worker, (reason, rule), open, asked);
            count(VerdictKind::Deny, rule.unwrap_or(""), Some(fault.reason));
            return Err(fault);
        }
    };
    if let Some(rule) = &would_deny {
        count(VerdictKind::WouldDeny, rule, None);
        log(open, rule, "a policy in dry run would have refused what is let in");
    }
    Ok(Passed { rule, would_deny })
}

const AUDITED: &str = "audited what is let in";

fn log(open: &Open, rule: &str, told: &str) {
    let Open { port, peer, client, .. } = open;
    let peer = peer.as_ref().map(tracing::field::display);
    tracing::info!(%client, port, peer, rule, "{told}");
}

/// Tells of open connections that carry no HTTP and that a change of policy has had audited, as of those that come. The worker calls it once a second.
pub(super) fn tell_of_audited(worker: &Worker) {
    for (open, rule) in worker.proxy.connections.newly_audited() {
        let labels = VerdictLabels { verdict: VerdictKind::Audit, rule: &rule, reason: None };
        worker.metrics.verdicts(&labels).inc();
        log(&open, &rule, AUDITED);
    }
}

/// Whoever has proven no identity is told that it is denied, and no more: which policies there are is nobody's business outside the mesh.
fn denied(
    worker: &Worker,
    (denial, rule): (Denial, Option<&str>),
    open: &Open,
    asked: Option<(&Method, &str)>,
) -> Fault {
    if let Some(outside) = &open.outside {
        return egress::denied(denial, rule, outside.address, outside.name.as_str().unwrap_or(""));
    }
    let fault = refused(worker, (denial, rule), open, asked);
    match open.peer.is_none() && fault.reason == Reason::PolicyDenied {
        true => fault.in_confidence(),
        false => fault,
    }
}

/// Why what comes in is refused, in full.
fn refused(
    worker: &Worker,
    (denial, rule): (Denial, Option<&str>),
    open: &Open,
    asked: Option<(&Method, &str)>,
) -> Fault {
    let port = format!("port {} of {}", open.port, worker.proxy.workload().unwrap_or("this workload"));
    let what = asked.map(|(method, path)| format!(" to {method} {path}")).unwrap_or_default();
    let whom = || open.peer.as_ref().map_or("clients without identity", |peer| peer.as_str());
    let snapshot = worker.proxy.store.load();
    let inbound = snapshot.inbound.as_ref();
    match (denial, rule) {
        (Denial::NoPolicy, _) => Fault::unsent(Reason::PolicyUnavailable, "no InboundPolicy is in force"),
        (Denial::MtlsRequired, _) => Fault::unsent(Reason::MtlsRequired, port),
        (Denial::NetworkDenied, _) => {
            let client = open.client;
            Fault::unsent(
                Reason::PolicyDenied,
                format!(
                    "{client} is in none of the networks that {DEFAULT_INBOUND} lets in at {port}: those of the Mesh's spec.networks, or where it names none, \
                     those of private use; add the client's there"
                ),
            )
        }
        (Denial::Unclear(why), _) => {
            let why = format!("{why}, and policies of {port} look at it");
            Fault::unsent(Reason::MalformedRequest, why)
        }
        // Whoever it is: an identity would change nothing.
        (Denial::PolicyDenied | Denial::EgressDenied, Some(rule))
            if inbound.is_some_and(|inbound| inbound.letting_nobody_in(open.port) == Some(rule)) =>
        {
            Fault::unsent(Reason::PolicyDenied, format!("the rule {rule} lets nobody in at {port}"))
        }
        (Denial::PolicyDenied | Denial::EgressDenied, Some(rule)) => {
            Fault::unsent(Reason::PolicyDenied, format!("{rule} of {port} denies {}{what}", whom()))
        }
        (Denial::PolicyDenied | Denial::EgressDenied, None) => {
            let names = inbound.is_some_and(|inbound| inbound.names_identities(open.port));
            match open.peer.is_none() && names {
                true => {
                    Fault::unsent(Reason::IdentityRequired, format!("the rules of {port} name identities"))
                }
                false => {
                    Fault::unsent(Reason::PolicyDenied, format!("no rule of {port} allows {}{what}", whom()))
                }
            }
        }
    }
}

/// What a change of policy that has revoked `guard` means for what is under way there.
pub(super) fn revocation(worker: &Worker, guard: &policy::Guard) -> Fault {
    let (denial, rule) = match guard.revoked_by() {
        Some(Verdict::Deny { reason, rule }) => (*reason, rule.as_deref()),
        Some(Verdict::Allow { .. } | Verdict::Audit { .. }) | None => (Denial::PolicyDenied, None),
    };
    changed(denied(worker, (denial, rule), guard.open(), None))
}

/// The same for what a change of policy ends.
fn changed(fault: Fault) -> Fault {
    let detail = format!("policy has changed: {}", fault.detail).into();
    Fault { processed: Processed::Maybe, detail, ..fault }
}

/// Resolves when a change of policy no longer allows a request that is under way on a connection that stays, and it has had time to end; with what
/// that means for it.
pub(super) async fn no_longer(worker: &Worker, guard: &policy::Guard, under_way: &UnderWay) -> Fault {
    let mut judged = under_way.generation;
    loop {
        // There before policy is looked at, so that no change slips between.
        let next = worker.proxy.connections.changed(worker.index).notified();
        if let Some(fault) = judge_again(worker, guard, under_way, &mut judged) {
            // In a box, since every request has room for this.
            Box::pin(tokio::time::sleep(REVOKED)).await;
            return fault;
        }
        next.await;
    }
}

/// Why a request may no longer go on, by the policy of this moment, unless it is that of the generation `judged`.
fn judge_again(
    worker: &Worker,
    guard: &policy::Guard,
    under_way: &UnderWay,
    judged: &mut u64,
) -> Option<Fault> {
    let snapshot = worker.proxy.store.load();
    let inbound = snapshot.inbound.as_deref().filter(|inbound| inbound.generation() != *judged)?;
    *judged = inbound.generation();
    // Its whole connection ends.
    if guard.is_revoked() {
        return None;
    }
    why_no_more(worker, guard, inbound, under_way)
}

/// Why a policy refuses what another has let in.
fn why_no_more(
    worker: &Worker,
    guard: &policy::Guard,
    inbound: &Inbound,
    under_way: &UnderWay,
) -> Option<Fault> {
    let requested = under_way.kept.requested();
    match guard.judge_request(inbound, &requested).verdict {
        Verdict::Allow { .. } | Verdict::Audit { .. } => None,
        Verdict::Deny { reason, rule } => {
            let asked = Some((requested.asked.method, requested.asked.path));
            Some(changed(denied(worker, (reason, rule.as_deref()), guard.open(), asked)))
        }
    }
}

/// What `sent` comes to, unless a change of policy ends it first; `under_way` is of its request, which has come on what `guard` stands for.
pub(super) async fn unless_changed<T>(
    worker: &Worker,
    guard: &policy::Guard,
    under_way: Option<&UnderWay>,
    sent: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let Some(under_way) = under_way else { return sent.await };
    tokio::select! {
        biased;
        sent = sent => sent,
        fault = no_longer(worker, guard, under_way) => Err(Failed { fault, again: None, whole: false }),
    }
}

/// Judges once more what has waited since it was let in, for an authorizer or for its client's body, by the policy of this moment: it is not sent yet,
/// and has no time to end.
fn still(worker: &Worker, guard: &policy::Guard, under_way: &UnderWay) -> Result<(), Fault> {
    let snapshot = worker.proxy.store.load();
    let refused = match snapshot.inbound.as_deref() {
        Some(inbound) if inbound.generation() == under_way.generation => None,
        Some(inbound) => why_no_more(worker, guard, inbound, under_way),
        None => Some(changed(denied(worker, (Denial::NoPolicy, None), guard.open(), None))),
    };
    refused.map_or(Ok(()), |fault| Err(Fault { processed: Processed::No, ..fault }))
}

/// What a request that asks for a tunnel is registered as, since what passes there is judged no more; called when a request is about to be sent.
///
/// # Errors
/// Where policy has changed since the request was let in, and no longer allows it.
pub(super) fn tunnel(
    worker: &Worker,
    guard: &policy::Guard,
    under_way: Option<&UnderWay>,
    request: &Request<Body>,
) -> Result<Option<Arc<policy::Guard>>, Fault> {
    let Some(under_way) = under_way else { return Ok(None) };
    let is_tunnel = *request.method() == Method::CONNECT || headers::is_upgrade(request.headers());
    // Registered first, so that no change slips between.
    let tunnel = is_tunnel.then(|| {
        let (open, kept) = (guard.open().clone(), under_way.kept.clone());
        Arc::new(worker.proxy.connections.register_request(open, kept))
    });
    still(worker, guard, under_way)?;
    Ok(tunnel)
}

/// Resolves when a change of policy no longer allows what `guard` stands for; never without one.
pub(super) async fn revoked(guard: Option<&policy::Guard>) {
    match guard {
        Some(guard) => guard.revoked().await,
        None => std::future::pending().await,
    }
}

/// As [`revoked`], and requests under way have had time to end; what that means for them.
pub(super) async fn revoked_for_long(worker: &Worker, guard: Option<&policy::Guard>) -> Fault {
    match guard {
        Some(guard) => {
            guard.revoked().await;
            tokio::time::sleep(REVOKED).await;
            revocation(worker, guard)
        }
        None => std::future::pending().await,
    }
}

/// Lets in what goes to this very workload: its application is dialled directly, but by the rules by which its inbound
/// side lets others in. `request`: what is asked, where it is HTTP. `None`: `endpoint` is not this workload's, there is no own `application`
/// behind it.
pub(super) async fn own(
    worker: &Worker,
    endpoint: &Endpoint,
    application: Option<SocketAddr>,
    client: SocketAddr,
    request: Option<&mut Request<Body>>,
) -> Result<Option<Box<Own>>, Fault> {
    let Some(application) = application else { return Ok(None) };
    // Awaited only; what is in force once it is registered judges.
    drop(worker.proxy.store.inbound().await);
    let connections = &worker.proxy.connections;
    let open = Open {
        port: endpoint.address.port(),
        peer: endpoint.identity().cloned(),
        tls: policy::TlsKind::Mesh,
        client: client.ip(),
        outside: None,
    };
    let (guard, passed, claims) = match request {
        Some(request) => {
            let mut named = authenticate::Named::default();
            let claims = authenticate::at(worker, request, open.port, &mut named).await?;
            let request = &*request;
            let grpc = headers::is_grpc(request.headers());
            let guard = connections.register_request(open, kept(request, grpc, claims.as_ref()));
            let judged = {
                let snapshot = worker.proxy.store.load();
                judged(snapshot.inbound.as_deref(), &guard, request, (grpc, claims.as_ref()))?
            };
            let passed = tell(worker, &guard, judged, Some(request));
            let mut passed = passed.map_err(|fault| authenticate::judged(fault, claims.as_deref()))?;
            passed.would_deny = passed.would_deny.or(named.would_deny);
            (guard, passed, claims)
        }
        None => {
            let guard = connections.register(open);
            let passed = judge_bytes(worker, &guard)?;
            authenticate::opaque(worker, &guard)?;
            (guard, passed, None)
        }
    };
    let application = worker.loose_endpoint(application, &Peer::Plaintext);
    Ok(Some(Box::new(Own { application, guard: Arc::new(guard), passed, claims })))
}

/// What `sent` comes to, unless a change of policy ends it first.
pub(super) async fn unless_revoked<T>(
    worker: &Worker,
    guard: Option<&Arc<policy::Guard>>,
    sent: impl Future<Output = Result<T, Failed>>,
) -> Result<T, Failed> {
    let Some(guard) = guard else { return sent.await };
    tokio::select! {
        biased;
        sent = sent => sent,
        fault = revoked_for_long(worker, Some(guard)) => {
            Err(Failed { fault, again: None, whole: false })
        }
    }
}
