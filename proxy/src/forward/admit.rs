//! Whether something is let in to the application beside this proxy: policy's verdict, and what is told of it.
//!
//! A connection is registered, then judged ([`judge`]) by the policy of that moment; what stays open ends when a change of
//! policy no longer allows it ([`revoked`], [`revoked_for_long`]). The verdict itself is [`policy`]'s. Called by `inbound`,
//! and by `outbound` for what goes to its own workload ([`own`]).

use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::Request;

use super::context::Worker;
use super::egress;
use super::exchange::Failed;
use super::fault::Fault;
use crate::endpoint::Endpoint;
use crate::policy::{self, Denial, Open, Verdict};
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::telemetry::metrics::{VerdictKind, VerdictLabels};

/// How long requests under way have to end after a change of policy no longer allows their connection.
const REVOKED: Duration = Duration::from_secs(1);

/// The way to the application beside this proxy, for what its own workload asks of itself.
#[derive(Debug)]
pub(super) struct Own {
    pub application: Arc<Endpoint>,
    pub guard: Arc<policy::Guard>,
    pub rule: Arc<str>,
}

/// Judges what is registered by the policy of this moment; names the rule that let it in.
pub(super) fn judge(worker: &Worker, guard: &policy::Guard) -> Result<Arc<str>, Fault> {
    judge_unless(worker, guard, |_| false)
}

/// As [`judge`], a request on what is registered: where its client has no identity, and there is a policy, a probe that the pod declares is let in
/// by exactly its port and path (R25). Looked for only where the answer would be no.
pub(super) fn judge_request<B: http_body::Body>(
    worker: &Worker,
    guard: &policy::Guard,
    request: &Request<B>,
) -> Result<Arc<str>, Fault> {
    judge_unless(worker, guard, |denial| {
        let open = guard.open();
        let probes = &worker.proxy.settings.probes;
        denial != Denial::NoPolicy
            && open.tls == policy::TlsKind::None
            && probes.iter().any(|probe| probe.is(open.port, request))
    })
}

/// What says that clients must be in the Mesh's networks.
const DEFAULT_INBOUND: &str = "config.tulle.dev/default-inbound-policy";

/// The name in place of a rule's where the pod's declaration has let a probe in.
static PROBE: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("probe"));

fn judge_unless(
    worker: &Worker,
    guard: &policy::Guard,
    excused: impl FnOnce(Denial) -> bool,
) -> Result<Arc<str>, Fault> {
    let verdict = match &worker.proxy.store.load().inbound {
        Some(inbound) => guard.judge(inbound),
        None => Verdict::Deny { reason: Denial::NoPolicy, rule: None },
    };
    let verdict = match verdict {
        Verdict::Deny { reason, .. } if excused(reason) => Verdict::Allow { rule: PROBE.clone() },
        verdict => verdict,
    };
    match verdict {
        Verdict::Audit { rule } => {
            let verdict = VerdictKind::Audit;
            worker.metrics.verdicts(&VerdictLabels { verdict, rule: &rule, reason: None }).inc();
            // Each request is judged; its connection is told of once.
            if guard.let_in_by(&rule) {
                let Open { port, peer, client, .. } = guard.open();
                let peer = peer.as_ref().map(tracing::field::display);
                tracing::info!(%client, port, peer, rule = &*rule, "audited what is let in");
            }
            Ok(rule)
        }
        Verdict::Allow { rule } => {
            let verdict = VerdictKind::Allow;
            worker.metrics.verdicts(&VerdictLabels { verdict, rule: &rule, reason: None }).inc();
            Ok(rule)
        }
        Verdict::Deny { reason, rule } => {
            let rule = rule.as_deref();
            let fault = denied(worker, reason, rule, guard.open());
            let (verdict, reason) = (VerdictKind::Deny, Some(fault.reason));
            worker.metrics.verdicts(&VerdictLabels { verdict, rule: rule.unwrap_or(""), reason }).inc();
            Err(fault)
        }
    }
}

fn denied(worker: &Worker, denial: Denial, rule: Option<&str>, open: &Open) -> Fault {
    if let Some(outside) = &open.outside {
        return egress::denied(denial, rule, outside.address, outside.name.as_str().unwrap_or(""));
    }
    let port = format!("port {} of {}", open.port, worker.proxy.workload().unwrap_or("this workload"));
    match (denial, rule, &open.peer) {
        (Denial::NoPolicy, ..) => Fault::unsent(Reason::PolicyUnavailable, "no InboundPolicy is in force"),
        (Denial::MtlsRequired, ..) => Fault::unsent(Reason::MtlsRequired, port),
        (Denial::NetworkDenied, ..) => {
            let client = open.client;
            Fault::unsent(
                Reason::PolicyDenied,
                format!(
                    "{client} is in none of the networks that {DEFAULT_INBOUND} lets in at {port}: those of the Mesh's spec.networks, or where it names none, \
                     those of private use; add the client's there"
                ),
            )
        }
        // Whoever it is: an identity would change nothing.
        (Denial::PolicyDenied | Denial::EgressDenied, Some(rule), _) => {
            Fault::unsent(Reason::PolicyDenied, format!("the rule {rule} lets nobody in at {port}"))
        }
        (Denial::PolicyDenied | Denial::EgressDenied, None, Some(peer)) => {
            Fault::unsent(Reason::PolicyDenied, format!("no rule of {port} allows {peer}"))
        }
        (Denial::PolicyDenied | Denial::EgressDenied, None, None) => {
            Fault::unsent(Reason::IdentityRequired, format!("the rules of {port} name identities"))
        }
    }
}

/// What a change of policy that has revoked `guard` means for what is under way there.
pub(super) fn revocation(worker: &Worker, guard: &policy::Guard) -> Fault {
    let (denial, rule) = match guard.revoked_by() {
        Some(Verdict::Deny { reason, rule }) => (*reason, rule.as_deref()),
        Some(Verdict::Allow { .. } | Verdict::Audit { .. }) | None => (Denial::PolicyDenied, None),
    };
    let Fault { reason, detail, .. } = denied(worker, denial, rule, guard.open());
    Fault::maybe(reason, format!("policy has changed: {detail}"))
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
/// side lets others in. `None`: `endpoint` is not this workload's, there is no own `application` behind it.
pub(super) async fn own(
    worker: &Worker,
    endpoint: &Endpoint,
    application: Option<SocketAddr>,
    client: SocketAddr,
) -> Result<Option<Own>, Fault> {
    let Some(application) = application else { return Ok(None) };
    // Awaited only; `judge` loads what is in force once it is registered.
    drop(worker.proxy.store.inbound().await);
    let guard = Arc::new(worker.proxy.connections.register(Open {
        port: endpoint.address.port(),
        peer: endpoint.identity().cloned(),
        tls: policy::TlsKind::Mesh,
        client: client.ip(),
        outside: None,
    }));
    let rule = judge(worker, &guard)?;
    let application = worker.loose_endpoint(application, &Peer::Plaintext);
    Ok(Some(Own { application, guard, rule }))
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
