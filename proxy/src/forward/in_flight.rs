//! What an endpoint's load knows of a request or connection that is under way there.
//!
//! It is counted from its beginning to its end, whichever way it ends. What it came to is told by [`outcome`](super::outcome). Called
//! by `outbound`, `inbound` and `mirror`, and kept by the response's body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::context::Worker;
use crate::balance;
use crate::endpoint::{Endpoint, RequestSeat};
use crate::wire::Transfer;

/// What breaks off later than that, in nanoseconds, without having said a word may have served all the same, as who keeps logs does.
const SOON: u64 = 10_000_000_000;

/// A request under way at an endpoint: its load counts it until this is dropped.
#[derive(Debug)]
pub(super) struct InFlight {
    endpoint: Arc<Endpoint>,
    worker: Arc<Worker>,
    started: u64,
    answered: bool,
    /// What it came to tells nothing of the endpoint.
    pub(super) withdrawn: bool,
    /// There is a connection for it: until then it may not even have met the endpoint.
    pub(super) begun: Begun,
    /// What it came to, if the answer is whole.
    pub(super) later: Option<balance::Outcome>,
    /// When there must be an answer, by the proxy's clock: without one by then, it is the endpoint's fault.
    pub(super) until: u64,
    /// What passes of its body, if it has one.
    upload: Option<Arc<Transfer>>,
    /// Its place, where these are limited.
    _seat: Option<RequestSeat>,
}

/// Whether a request has got a connection, and since when its endpoint has it: 0: it has none; 1: since it was sent; else the time.
#[derive(Debug, Default)]
pub(super) struct Begun(AtomicU64);

// === impl Begun ===

impl Begun {
    /// It has, and waited for nothing but the endpoint.
    #[inline]
    pub(super) fn at_once(&self) {
        self.0.store(1, Relaxed);
    }

    /// It has, and waited for our own limits until then, by the proxy's clock.
    pub(super) fn at(&self, since: u64) {
        self.0.store(since.max(1), Relaxed);
    }

    pub(super) fn is_so(&self) -> bool {
        self.0.load(Relaxed) > 0
    }
}

// === impl InFlight ===

impl InFlight {
    /// Where it is.
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// It begins `now`, by the proxy's clock.
    pub(super) fn start(worker: &Arc<Worker>, endpoint: &Arc<Endpoint>, now: u64) -> Self {
        endpoint.load.start(now);
        if let Some(group) = &endpoint.group {
            group.sent(&endpoint.standing);
        }
        Self {
            endpoint: Arc::clone(endpoint),
            worker: Arc::clone(worker),
            started: now,
            answered: false,
            withdrawn: false,
            begun: Begun::default(),
            later: None,
            until: u64::MAX,
            upload: None,
            _seat: None,
        }
    }

    /// Keeps its place until it is over.
    pub(super) fn seated(mut self, seat: Option<RequestSeat>) -> Self {
        self._seat = seat;
        self
    }

    /// What passes of its body is counted there.
    pub(super) fn uploading(mut self, upload: Option<Arc<Transfer>>) -> Self {
        self.upload = upload;
        self
    }

    /// Whether it is the client that is waited for, which owes more of its request's body: whatever takes long then says nothing of the endpoint.
    pub(super) fn waits_for_client(&self) -> bool {
        self.upload.as_ref().is_some_and(|upload| upload.is_owed())
    }

    pub(super) fn now(&self) -> u64 {
        self.worker.proxy.now()
    }

    /// The response's head is there `now`, by the proxy's clock, or the request failed.
    pub(super) fn answered(&mut self, success: bool, now: u64) {
        if !std::mem::replace(&mut self.answered, true) {
            self.endpoint.load.answer(now, now.saturating_sub(self.since()), success);
        }
    }

    /// Since when it is the endpoint's: how long our own limits kept it from there tells nothing of that.
    fn since(&self) -> u64 {
        match self.begun.0.load(Relaxed) {
            0 => {
                let seated = self.endpoint.room.seated().map(|seated| self.worker.proxy.nanos(seated));
                self.started.max(seated.unwrap_or_default())
            }
            since => self.started.max(since),
        }
    }
}

impl InFlight {
    /// What was taken for an answer was none; false: it is too long ago to tell.
    pub(super) fn disappointed(&self) -> bool {
        let now = self.now();
        let waited = now.saturating_sub(self.started);
        if waited <= SOON {
            self.endpoint.load.disappoint(now, waited);
        }
        waited <= SOON
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        // Connections are waited for, since our own limits do not allow more.
        let kept_from_it = || !self.begun.is_so() && self.endpoint.room.is_short();
        if self.answered {
            self.endpoint.load.end();
        } else if self.withdrawn || kept_from_it() || self.waits_for_client() {
            self.endpoint.load.withdraw();
        } else {
            self.given_up();
            let now = self.worker.proxy.now();
            self.endpoint.load.abandon(now, now.saturating_sub(self.since()));
        }
    }
}
