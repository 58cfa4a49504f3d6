//! What leaves the mesh: EgressPolicy's verdict, and what is told of it.
//!
//! A connection, or each request of an HTTP connection, is registered, then judged by the policy of that moment
//! ([`let_out`]), before its destination hears of it; what stays open ends when a change of policy no longer allows it, as
//! [`admit`](super::admit) has it for what is let in. The verdict itself is [`policy`]'s. Where it goes was decided by the
//! original destination alone: a name that a client gives is judged, never followed. Called by `outbound`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::context::Worker;
use super::fault::Fault;
use super::first::Times;
use crate::detect::Detection;
use crate::policy::{self, Denial, Name, Open, Outside, Verdict};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{EgressLabels, EgressProtocol, VerdictKind, VerdictLabels};

/// How long a client may take to name whom it wants to reach, where everybody who names nobody is denied.
const NAMED: Duration = Duration::from_secs(10);

/// What may leave the mesh.
#[derive(Debug)]
pub(super) struct Out {
    pub guard: Arc<policy::Guard>,
    pub rule: Arc<str>,
    verdict: VerdictKind,
}

/// How long a client may be silent towards `to`, outside the mesh. Elsewhere a silent client is soon taken for one whose
/// server speaks first; here that would deny one that is merely late.
pub(super) fn times(worker: &Worker, to: SocketAddr, times: Times) -> Times {
    let snapshot = worker.proxy.store.load();
    let awaited = snapshot.egress.as_ref().is_some_and(|policy| policy.awaits_a_name(to));
    if awaited { Times { wait: NAMED, ..times } } else { times }
}

/// The name that the first bytes of a connection give, if it is not HTTP.
pub(super) fn name(detection: &Detection) -> Name {
    match detection {
        Detection::Tls(hello) => Name::Tls(hello.sni.clone()),
        _ => Name::None,
    }
}

/// Judges what goes to `address`, outside the mesh, under `name`. A denial is counted here; what may leave, by
/// [`Out::leaves`].
///
/// # Errors
/// [`Reason::EgressDenied`]; [`Reason::PolicyUnavailable`] where no policy is known yet.
pub(super) async fn let_out(
    worker: &Worker,
    address: SocketAddr,
    client: SocketAddr,
    name: Name,
) -> Result<Out, Fault> {
    // Awaited only; what is in force once it is registered judges.
    drop(worker.proxy.store.egress().await);
    let tls = match &name {
        Name::None | Name::Http(_) => policy::TlsKind::None,
        Name::Tls(_) => policy::TlsKind::ApplicationTls,
    };
    let guard = worker.proxy.connections.register(Open {
        port: address.port(),
        peer: None,
        tls,
        client: client.ip(),
        outside: Some(Box::new(Outside { address, name })),
    });
    let verdict = match &worker.proxy.store.load().egress {
        Some(policy) => guard.judge_egress(policy),
        None => Verdict::Deny { reason: Denial::NoPolicy, rule: None },
    };
    let (verdict, rule) = match verdict {
        Verdict::Allow { rule } => (VerdictKind::Allow, rule),
        Verdict::Audit { rule } => (VerdictKind::Audit, rule),
        Verdict::Deny { reason, rule } => {
            let rule = rule.as_deref();
            let fault = denied(reason, rule, address, named(guard.open()));
            count(worker, guard.open(), VerdictKind::Deny, rule.unwrap_or(""), Some(fault.reason));
            return Err(fault);
        }
    };
    Ok(Out { guard: Arc::new(guard), rule, verdict })
}

/// The name that the client gave; empty if it gave none.
fn named(open: &Open) -> &str {
    open.outside.as_ref().and_then(|outside| outside.name.as_str()).unwrap_or("")
}

fn count(worker: &Worker, open: &Open, verdict: VerdictKind, rule: &str, reason: Option<Reason>) {
    let protocol = match open.outside.as_ref().map(|outside| &outside.name) {
        None | Some(Name::None) => EgressProtocol::Tcp,
        Some(Name::Tls(_)) => EgressProtocol::Tls,
        Some(Name::Http(_)) => EgressProtocol::Http,
    };
    worker.metrics.egress(&EgressLabels { verdict, protocol, name: named(open) }).inc();
    worker.metrics.verdicts(&VerdictLabels { verdict, rule, reason }).inc();
}

// === impl Out ===

impl Out {
    /// Tells that it leaves. What was opened for a silent client that then gave a name is judged anew, and never did.
    pub(super) fn leaves(&self, worker: &Worker, client: SocketAddr) {
        let (open, rule) = (self.guard.open(), &*self.rule);
        count(worker, open, self.verdict, rule, None);
        if self.verdict == VerdictKind::Audit {
            let destination = open.outside.as_ref().map(|outside| tracing::field::display(outside.address));
            tracing::info!(%client, destination, name = named(open), rule, "audited what leaves the mesh");
        }
    }
}

/// Why `address` may not be reached under `name`, by which rule.
pub(super) fn denied(denial: Denial, rule: Option<&str>, address: SocketAddr, name: &str) -> Fault {
    if denial == Denial::NoPolicy {
        return Fault::unsent(Reason::PolicyUnavailable, "no EgressPolicy is in force");
    }
    let named = if name.is_empty() { String::new() } else { format!(" ({name})") };
    let rule = rule.unwrap_or("nobody");
    Fault::unsent(Reason::EgressDenied, format!("{address}{named} is outside the mesh, and denied by {rule}"))
}

#[cfg(test)]
mod tests;
