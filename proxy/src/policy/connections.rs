//! Every open connection that policy judges, so that a change of policy reaches the old ones too: inbound ones, and what
//! goes out of the mesh.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, OnceLock};

use foldhash::fast::RandomState;
use http::{HeaderMap, HeaderValue, Method, Uri};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};
use tulle_certs::SpiffeId;

use super::{Claims, Connection, Denial, Egress, Inbound, Judged, Outside, Requested, TlsKind, Verdict};
use crate::route::Asked;

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

/// What is kept of a request that is under way, to judge it once more: all that policies look at but its headers.
#[derive(Clone, Debug)]
pub struct Kept {
    pub method: Method,
    pub target: Uri,
    /// Where the target does not name it.
    pub host: Option<HeaderValue>,
    pub grpc: bool,
    pub claims: Option<Arc<Claims>>,
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
    /// Told of each change of the policy for what comes in; several, so that who waits for it seldom meets others.
    changed: [Notify; SHARDS],
    /// What a change has had audited, with the rule, and nobody has been told of yet.
    audited: Mutex<Vec<(Open, Arc<str>)>>,
}

type Shard = HashMap<u64, Arc<Registered>, RandomState>;

#[derive(Debug)]
struct Registered {
    open: Open,
    /// `None`: it is a connection.
    request: Option<Box<Kept>>,
    /// It is a connection that carries no HTTP.
    is_relayed: AtomicBool,
    /// It was told of as audited.
    is_audited: AtomicBool,
    /// Of one that carries no HTTP: the rule by which it is audited, which was told of.
    audited: Mutex<Option<Arc<str>>>,
    revoked: CancellationToken,
    /// Why it was revoked; set before the token fires.
    verdict: OnceLock<Verdict>,
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
        self.add(open, None)
    }

    /// Registers one request on a connection, which a change of policy may reach by itself.
    pub fn register_request(&self, open: Open, request: Kept) -> Guard {
        self.add(open, Some(Box::new(request)))
    }

    fn add(&self, open: Open, request: Option<Box<Kept>>) -> Guard {
        let id = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let registered = Arc::new(Registered {
            open,
            request,
            is_relayed: AtomicBool::new(false),
            is_audited: AtomicBool::new(false),
            audited: Mutex::default(),
            revoked: CancellationToken::new(),
            verdict: OnceLock::new(),
        });
        self.shared.shard(id).lock().insert(id, registered.clone());
        Guard { id, registered, shared: self.shared.clone() }
    }

    /// Judges every registered connection by `policy`, which is already published, and revokes those that it no
    /// longer allows. Returns how many. Whoever waits for a [change](Self::changed) is told then. Those that carry no HTTP, and are audited from now on,
    /// are [remembered](Self::newly_audited): nothing else would judge them again.
    pub fn rejudge(&self, policy: &Inbound) -> usize {
        let of = |it: &Registered| {
            let verdict = it.open.outside.is_none().then(|| it.evaluate(policy))?;
            let rule = match &verdict {
                Verdict::Audit { rule } => Some(rule),
                Verdict::Allow { .. } | Verdict::Deny { .. } => None,
            };
            if it.is_relayed.load(Ordering::Relaxed) && it.audits(rule) && !it.revoked.is_cancelled() {
                let told = rule.map(|rule| (it.open.clone(), Arc::clone(rule)));
                self.shared.audited.lock().extend(told);
            }
            Some(verdict)
        };
        let revoked = self.rejudge_with(of);
        self.shared.changed.iter().for_each(Notify::notify_waiters);
        revoked
    }

    /// Where each change of the policy for what comes in is told, after it is published and connections were judged by it. Workers wait at
    /// places of their own.
    pub fn changed(&self, worker: usize) -> &Notify {
        &self.shared.changed[worker % SHARDS]
    }

    /// What a change of policy has had audited since this was last asked, with the rule.
    pub fn newly_audited(&self) -> Vec<(Open, Arc<str>)> {
        std::mem::take(&mut *self.shared.audited.lock())
    }

    /// As [`Connections::rejudge`], for what goes out of the mesh.
    pub fn rejudge_egress(&self, policy: &Egress) -> usize {
        self.rejudge_with(|it| it.open.outside.as_ref().map(|outside| policy.evaluate(outside)))
    }

    /// Revokes every registered inbound connection, for there is no policy any more; that is already published. Returns
    /// how many.
    pub fn revoke_all(&self) -> usize {
        let verdict = Verdict::Deny { reason: Denial::NoPolicy, rule: None };
        self.rejudge_with(|it| it.open.outside.is_none().then(|| verdict.clone()))
    }

    /// `judge` gives none for what is not its business.
    fn rejudge_with(&self, judge: impl Fn(&Registered) -> Option<Verdict>) -> usize {
        let mut revoked = 0;
        for shard in &self.shared.shards {
            // Wakers run outside the lock.
            let all: Vec<_> = shard.lock().values().cloned().collect();
            for registered in all {
                let verdict = judge(&registered).filter(|verdict| !verdict.is_allowed());
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

    /// The open connections, oldest first, without what is registered of requests.
    pub fn list(&self) -> Vec<Open> {
        let mut all = Vec::new();
        for shard in &self.shared.shards {
            let shard = shard.lock();
            let connections = shard.iter().filter(|(_, registered)| registered.request.is_none());
            all.extend(connections.map(|(id, registered)| (*id, registered.open.clone())));
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

// === impl Kept ===

impl Kept {
    /// As it is judged.
    pub fn requested(&self) -> Requested<'_> {
        static NONE: LazyLock<HeaderMap> = LazyLock::new(HeaderMap::new);
        let authority = match (self.target.authority(), &self.host) {
            (Some(authority), _) => authority.as_str(),
            (None, Some(host)) => host.to_str().unwrap_or(""),
            (None, None) => "",
        };
        let asked = Asked {
            method: &self.method,
            authority,
            path: self.target.path(),
            query: self.target.query().unwrap_or(""),
            headers: &NONE,
        };
        Requested { asked, grpc: self.grpc, claims: self.claims.as_deref(), headless: true }
    }
}

// === impl Registered ===

impl Registered {
    fn evaluate(&self, policy: &Inbound) -> Verdict {
        let connection = self.open.as_connection();
        match &self.request {
            Some(request) => policy.evaluate_request(&connection, &request.requested()).verdict,
            None if self.is_relayed.load(Ordering::Relaxed) => policy.evaluate_bytes(&connection).verdict,
            None => policy.evaluate(&connection),
        }
    }

    /// Whether it is to be told of, being audited by this rule, if by any, and not by the same before.
    fn audits(&self, rule: Option<&Arc<str>>) -> bool {
        let mut audited = self.audited.lock();
        let is_new = rule.is_some() && audited.as_ref() != rule;
        *audited = rule.cloned();
        is_new
    }

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
        self.registered.evaluate(policy)
    }

    /// From now on it is known to carry no HTTP, and judged so. Only after this may the policy that judges it so be loaded.
    pub fn relays(&self) {
        // The lock is what orders it with a change: who judges all either finds this, or has published before it was set.
        let _shard = self.shared.shard(self.id).lock();
        self.registered.is_relayed.store(true, Ordering::Relaxed);
    }

    /// As [`Guard::judge`], of bytes that are no HTTP.
    pub fn judge_bytes(&self, policy: &Inbound) -> Judged {
        policy.evaluate_bytes(&self.open().as_connection())
    }

    /// As [`Guard::judge`], of a request on it.
    pub fn judge_request(&self, policy: &Inbound, requested: &Requested<'_>) -> Judged {
        policy.evaluate_request(&self.open().as_connection(), requested)
    }

    /// As [`Guard::judge`], for what goes out of the mesh.
    pub fn judge_egress(&self, policy: &Egress) -> Verdict {
        match &self.open().outside {
            Some(outside) => policy.evaluate(outside),
            // Registered as inbound; nothing is let out under its name.
            None => Verdict::Deny { reason: Denial::EgressDenied, rule: None },
        }
    }

    /// Whether this is asked for the first time: what is audited is told of once.
    pub fn is_first_audit(&self) -> bool {
        !self.registered.is_audited.swap(true, Ordering::Relaxed)
    }

    /// Whether what carries no HTTP is to be told of as audited by this rule: nobody has done so, nor [will](Connections::newly_audited).
    pub fn audits(&self, rule: &Arc<str>) -> bool {
        self.registered.audits(Some(rule))
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
