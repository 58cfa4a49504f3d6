//! Every open connection that policy judges, so that a change of policy reaches the old ones too: inbound ones, and what
//! goes out of the mesh.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tulle_certs::SpiffeId;

use super::{Connection, Denial, Egress, Inbound, Outside, TlsKind, Verdict};

/// Connections are spread over this many locks, so that workers seldom meet.
const SHARDS: usize = 16;

/// What is registered of a connection: an owned [`Connection`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    pub port: u16,
    pub peer: Option<SpiffeId>,
    pub tls: TlsKind,
    pub client: IpAddr,
    /// Where it goes outside the mesh: then [`Egress`] judges it, else [`Inbound`].
    pub outside: Option<Box<Outside>>,
}

/// The open connections of this proxy that policy judges. Cheap to clone.
///
/// The order on both sides is what lets no change slip between:
/// - a connection is first registered ([`Connections::register`]), then judged by the policy that is *then* current
///   ([`Guard::judge`] with what was loaded after registering);
/// - a new policy is first published, then every registered connection is judged by it ([`Connections::rejudge`]).
///
/// So a connection either was registered when the change was made, and is judged by it here; or registers
/// afterwards, and loads the new policy itself.
#[derive(Clone, Debug, Default)]
pub struct Connections {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    next: AtomicU64,
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<u64, Arc<Registered>, RandomState>;

#[derive(Debug)]
struct Registered {
    open: Open,
    revoked: CancellationToken,
    /// Why it was revoked; set before the token fires.
    verdict: OnceLock<Verdict>,
    /// What let it in first, where that is told of the connection.
    rule: OnceLock<Arc<str>>,
}

/// Keeps a connection registered; dropping it ends that.
#[derive(Debug)]
#[must_use = "the connection is registered only while the guard lives"]
pub struct Guard {
    id: u64,
    registered: Arc<Registered>,
    shared: Arc<Shared>,
}

// === impl Connections ===

impl Connections {
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers a connection. Only after this may the policy that judges it be loaded.
    pub fn register(&self, open: Open) -> Guard {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let (revoked, verdict, rule) = (CancellationToken::new(), OnceLock::new(), OnceLock::new());
        let registered = Arc::new(Registered { open, revoked, verdict, rule });
        self.shared.shard(id).lock().insert(id, registered.clone());
        Guard { id, registered, shared: self.shared.clone() }
    }

    /// Judges every registered connection by `policy`, which is already published, and revokes those that it no
    /// longer allows. Returns how many.
    pub fn rejudge(&self, policy: &Inbound) -> usize {
        self.rejudge_with(|open| open.outside.is_none().then(|| policy.evaluate(&open.as_connection())))
    }

    /// As [`Connections::rejudge`], for what goes out of the mesh.
    pub fn rejudge_egress(&self, policy: &Egress) -> usize {
        self.rejudge_with(|open| open.outside.as_ref().map(|outside| policy.evaluate(outside)))
    }

    /// Revokes every registered inbound connection, for there is no policy any more; that is already published. Returns
    /// how many.
    pub fn revoke_all(&self) -> usize {
        let verdict = Verdict::Deny { reason: Denial::NoPolicy, rule: None };
        self.rejudge_with(|open| open.outside.is_none().then(|| verdict.clone()))
    }

    /// `judge` gives none for what is not its business.
    fn rejudge_with(&self, judge: impl Fn(&Open) -> Option<Verdict>) -> usize {
        let mut revoked = 0;
        for shard in &self.shared.shards {
            // Wakers run outside the lock.
            let all: Vec<_> = shard.lock().values().cloned().collect();
            for registered in all {
                let verdict = judge(&registered.open).filter(|verdict| !verdict.is_allowed());
                if verdict.is_some_and(|verdict| registered.revoke(verdict)) {
                    revoked += 1;
                }
            }
        }
        revoked
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.shared.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The open connections, oldest first.
    pub fn list(&self) -> Vec<Open> {
        let mut all = Vec::new();
        for shard in &self.shared.shards {
            all.extend(shard.lock().iter().map(|(id, registered)| (*id, registered.open.clone())));
        }
        all.sort_unstable_by_key(|(id, _)| *id);
        all.into_iter().map(|(_, open)| open).collect()
    }
}

// === impl Shared ===

impl Shared {
    fn shard(&self, id: u64) -> &Mutex<Shard> {
        &self.shards[id as usize % SHARDS]
    }
}

// === impl Open ===

impl Open {
    pub fn as_connection(&self) -> Connection<'_> {
        Connection { port: self.port, peer: self.peer.as_ref(), tls: self.tls, client: self.client }
    }
}

// === impl Registered ===

impl Registered {
    /// Whether this was the first to revoke it.
    fn revoke(&self, verdict: Verdict) -> bool {
        let first = self.verdict.set(verdict).is_ok();
        self.revoked.cancel();
        first
    }
}

// === impl Guard ===

impl Guard {
    pub fn open(&self) -> &Open {
        &self.registered.open
    }

    /// `policy`'s verdict on this connection; it must have been loaded after registering.
    ///
    /// Asked for each request anew, so that a connection that was revoked and is allowed again serves again. What is
    /// judged once and then relayed ends by [`Guard::revoked`], also when that came before the verdict.
    pub fn judge(&self, policy: &Inbound) -> Verdict {
        policy.evaluate(&self.open().as_connection())
    }

    /// As [`Guard::judge`], for what goes out of the mesh.
    pub fn judge_egress(&self, policy: &Egress) -> Verdict {
        match &self.open().outside {
            Some(outside) => policy.evaluate(outside),
            // Registered as inbound; nothing is let out under its name.
            None => Verdict::Deny { reason: Denial::EgressDenied, rule: None },
        }
    }

    /// Keeps the rule that has let the connection in, unless one is kept already. Whether it is the first.
    pub fn let_in_by(&self, rule: &Arc<str>) -> bool {
        self.registered.rule.get().is_none() && self.registered.rule.set(Arc::clone(rule)).is_ok()
    }

    /// The rule that was [kept](Self::let_in_by).
    pub fn rule(&self) -> Option<&str> {
        self.registered.rule.get().map(|rule| &**rule)
    }

    /// Resolves when a change of policy no longer allows the connection.
    pub fn revoked(&self) -> WaitForCancellationFuture<'_> {
        self.registered.revoked.cancelled()
    }

    pub fn is_revoked(&self) -> bool {
        self.registered.revoked.is_cancelled()
    }

    /// The verdict that revoked the connection.
    pub fn revoked_by(&self) -> Option<&Verdict> {
        self.registered.verdict.get()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.shard(self.id).lock().remove(&self.id);
    }
}
