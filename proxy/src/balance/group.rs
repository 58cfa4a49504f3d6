//! The endpoints of one port as a whole: which of them are ejected and come back, whether too few are left, and how much
//! the own zone takes.
//!
//! Stays the same over updates. What a request's outcome and the passing of time change about an endpoint's [`Standing`]
//! is changed here, under one lock that no pick takes; what a pick reads are a few atomics.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::Load;
use super::settings::{Outliers, Policy};
use super::standing::{EJECTED, GONE, GROWING, LOCAL, PROBATION, Standing, UNHEALTHY};
use super::zones::{self, Owed, Spill};

/// See the module.
#[derive(Debug)]
pub struct Group {
    policy: ArcSwap<Policy>,
    /// Whether outcomes matter.
    watched: AtomicBool,
    /// All are used, since too few are usable.
    panicking: AtomicBool,
    /// The own zone is preferred.
    zoned: AtomicBool,
    /// What the own zone gets, of 2³².
    pub(super) local_share: AtomicU64,
    /// What it has not had of that yet.
    pub(super) owed: Owed,
    /// Whose turn it is, by side.
    pub(super) turn: [AtomicUsize; 2],
    state: Mutex<Whole>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Whole {
    endpoints: usize,
    ejected: usize,
    /// When the window began.
    window: u64,
    spill: Spill,
}

/// What is counted for metrics.
#[derive(Debug, Default)]
struct Counts {
    ejections: [AtomicU64; Cause::ALL.len()],
    withheld: AtomicU64,
    panics: AtomicU64,
    /// What went to the own zone, and to others.
    zones: [AtomicU64; 2],
    /// Answers of the own zone since it was last looked, and those of 429 and 503.
    answers: AtomicU32,
    refused: AtomicU32,
}

/// What counts failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detector {
    FiveXx,
    Gateway,
    Connect,
    Grpc,
}

/// Why an endpoint was ejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    FiveXx,
    Gateway,
    Connect,
    Grpc,
    SuccessRate,
    FailurePercentage,
    /// It failed right after it had come back.
    Probation,
}

/// What a request came to at an endpoint. What tells nothing about it is not told: a client that left, a fault on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Status(u16),
    /// The status of an answer of gRPC.
    Grpc(u32),
    /// Its connection broke, or its time was over.
    NoAnswer,
    ConnectFailed,
}

/// What has changed about an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Ejected {
        cause: Cause,
        time: Duration,
    },
    /// Its ejection is over: it is tried.
    Probation,
    /// It may not be ejected any longer, being one of fewer or no longer watched.
    Released,
}

/// An endpoint as its group and the balancer see it.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub load: &'a Load,
    pub standing: &'a Standing,
    pub ready: bool,
    pub weight: u32,
}

/// What a group has counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    pub(super) ejections: [u64; Cause::ALL.len()],
    /// Ejections that would have been too many.
    pub withheld: u64,
    /// What was sent while too few were usable.
    pub panics: u64,
    /// What went to the own zone and to others, where that one is preferred.
    pub zones: [u64; 2],
}

// === impl Cause ===

impl Cause {
    pub const ALL: [Self; 7] = [
        Self::FiveXx,
        Self::Gateway,
        Self::Connect,
        Self::Grpc,
        Self::SuccessRate,
        Self::FailurePercentage,
        Self::Probation,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::FiveXx => "consecutive_5xx",
            Self::Gateway => "consecutive_gateway_errors",
            Self::Connect => "consecutive_connect_failures",
            Self::Grpc => "consecutive_grpc_errors",
            Self::SuccessRate => "success_rate",
            Self::FailurePercentage => "failure_percentage",
            Self::Probation => "probation",
        }
    }
}

// === impl Outcome ===

impl Outcome {
    /// Whether it is a failure to each detector; `None`: it tells that one nothing.
    fn fails(self, outliers: &Outliers) -> [Option<bool>; 4] {
        match self {
            Self::Status(status) => {
                let (bad, gateway) = (status >= 500, matches!(status, 502..=504));
                [Some(bad), Some(gateway), Some(false), (!bad).then_some(false)]
            }
            Self::Grpc(status) => {
                let bad = (1..32).contains(&status) && outliers.grpc_codes & (1 << status) != 0;
                [Some(false), Some(false), Some(false), Some(bad)]
            }
            Self::NoAnswer => [Some(true), Some(true), Some(false), None],
            Self::ConnectFailed => [Some(true), Some(true), Some(true), None],
        }
    }

    fn is_refusal(self) -> bool {
        matches!(self, Self::Status(429 | 503))
    }
}

// === impl Group ===

impl Group {
    /// `turn`: any number; proxies with different ones begin at different endpoints.
    pub fn new(turn: usize) -> Self {
        Self {
            policy: ArcSwap::default(),
            watched: AtomicBool::new(false),
            panicking: AtomicBool::new(false),
            zoned: AtomicBool::new(false),
            local_share: AtomicU64::new(0),
            owed: Owed::default(),
            turn: [AtomicUsize::new(turn), AtomicUsize::new(turn)],
            state: Mutex::default(),
            counts: Counts::default(),
        }
    }

    pub fn policy(&self) -> Arc<Policy> {
        self.policy.load_full()
    }

    /// Whether outcomes matter: [`Group::record`] need not be called otherwise.
    pub fn is_watched(&self) -> bool {
        self.watched.load(Relaxed)
    }

    pub fn is_panicking(&self) -> bool {
        self.panicking.load(Relaxed)
    }

    /// Other endpoints, or another policy. `gone`: those that are no longer of it.
    pub fn update<'a>(
        &self,
        policy: &Policy,
        members: impl Iterator<Item = Seen<'a>> + Clone,
        gone: impl Iterator<Item = &'a Standing>,
        now: u64,
    ) -> Vec<(usize, Change)> {
        let mut whole = self.state.lock();
        if **self.policy.load() != *policy {
            self.policy.store(Arc::new(policy.clone()));
        }
        self.zoned.store(policy.balancer.zones.is_some(), Relaxed);
        self.watched.store(policy.outliers.is_some() || policy.balancer.zones.is_some(), Relaxed);
        for standing in gone {
            standing.set(GONE);
        }
        whole.endpoints = members.clone().count();
        let mut ejected: Vec<(u64, usize, Seen<'_>)> = members
            .clone()
            .enumerate()
            .filter(|(_, seen)| seen.standing.has(EJECTED))
            .map(|(i, seen)| (seen.standing.until.load(Relaxed), i, seen))
            .collect();
        // Those whose time would be over first.
        ejected.sort_unstable_by_key(|(until, i, _)| (*until, *i));
        let most = policy.outliers.as_ref().map_or(0, |outliers| outliers.most(whole.endpoints));
        let over = ejected.len().saturating_sub(most);
        let released = ejected.drain(..over).map(|(_, i, seen)| {
            seen.standing.clear(EJECTED | PROBATION);
            (i, Change::Released)
        });
        let released = released.collect();
        whole.ejected = ejected.len();
        if !policy.checked {
            members.clone().for_each(|seen| seen.standing.clear(UNHEALTHY));
        }
        if policy.outliers.is_none() {
            members.clone().for_each(|seen| seen.standing.clear(PROBATION));
        }
        self.look(policy, &mut whole, members, now);
        released
    }

    /// The share of an endpoint grows from now on: it is new, or ready or healthy again, among others that serve already.
    pub fn grow(&self, standing: &Standing, now: u64) {
        if self.policy.load().balancer.warm_up.is_some() {
            standing.grow(now);
        }
    }

    /// What active checks have found; `members` as of [`Group::update`].
    pub fn set_healthy<'a>(
        &self,
        standing: &Standing,
        healthy: bool,
        members: impl Iterator<Item = Seen<'a>> + Clone,
        now: u64,
    ) {
        let mut whole = self.state.lock();
        if healthy && standing.has(UNHEALTHY) {
            self.grow(standing, now);
        }
        standing.put(UNHEALTHY, !healthy);
        self.look(&self.policy.load(), &mut whole, members, now);
    }

    /// What a request came to; the endpoint is ejected for it, if that is returned.
    pub fn record(&self, standing: &Standing, outcome: Outcome, now: u64) -> Option<Change> {
        let policy = self.policy.load();
        if policy.balancer.zones.is_some() && standing.has(LOCAL) {
            self.counts.answers.fetch_add(1, Relaxed);
            if outcome.is_refusal() {
                self.counts.refused.fetch_add(1, Relaxed);
            }
        }
        let outliers = policy.outliers.as_ref()?;
        let fails = outcome.fails(outliers);
        let failed = fails.contains(&Some(true));
        // What the criteria that there are say of it: each of the windows goes by every failure.
        let windowed = outliers.has_window().then_some(failed);
        let (mut cause, mut judged) = (None, windowed);
        for (i, fails) in fails.into_iter().enumerate() {
            let (count, most) = (&standing.in_a_row[i], outliers.consecutive[i]);
            if most > 0 {
                judged = judged.max(fails);
            }
            match fails {
                Some(true) if most > 0 => {
                    let counted = count.fetch_add(1, Relaxed) + 1;
                    cause = cause.or_else(|| (counted >= most).then(|| Cause::ALL[i]));
                }
                Some(false) if count.load(Relaxed) > 0 => count.store(0, Relaxed),
                _ => {}
            }
        }
        if let Some(failed) = windowed {
            standing.requests.fetch_add(1, Relaxed);
            standing.failures.fetch_add(u32::from(failed), Relaxed);
        }
        if standing.has(PROBATION) {
            match judged {
                Some(true) => cause = Some(Cause::Probation),
                Some(false) => {
                    let _whole = self.state.lock();
                    if standing.has(PROBATION) && !standing.has(EJECTED) {
                        standing.grow(now);
                        standing.clear(PROBATION);
                    }
                }
                // It stays to be tried.
                None => {}
            }
        }
        let cause = cause?;
        self.eject(&mut self.state.lock(), outliers, standing, cause, now)
    }

    fn eject(
        &self,
        whole: &mut Whole,
        outliers: &Outliers,
        standing: &Standing,
        cause: Cause,
        now: u64,
    ) -> Option<Change> {
        if standing.has(EJECTED | GONE) || (cause == Cause::Probation && !standing.has(PROBATION)) {
            return None;
        }
        if whole.ejected >= outliers.most(whole.endpoints) {
            self.counts.withheld.fetch_add(1, Relaxed);
            return None;
        }
        whole.ejected += 1;
        let times = standing.times.load(Relaxed).saturating_add(1);
        standing.times.store(times, Relaxed);
        let time = outliers.base_ejection.saturating_mul(times).min(outliers.longest());
        standing.until.store(now.saturating_add(nanos(time)), Relaxed);
        standing.in_a_row.iter().for_each(|count| count.store(0, Relaxed));
        standing.set(EJECTED);
        standing.clear(PROBATION | GROWING);
        self.counts.ejections[cause as usize].fetch_add(1, Relaxed);
        // The exact share of those that are left is seen by the next `settle`.
        Some(Change::Ejected { cause, time })
    }

    /// Lets time pass: called every tenth of a second or so. What has changed, by the number of the endpoint.
    pub fn settle<'a>(
        &self,
        members: impl Iterator<Item = Seen<'a>> + Clone,
        now: u64,
    ) -> Vec<(usize, Change)> {
        let policy = self.policy.load();
        let mut whole = self.state.lock();
        let mut changes = Vec::new();
        let growth = policy.growth();
        for (i, Seen { standing, .. }) in members.clone().enumerate() {
            let flags = standing.flags();
            if flags & GROWING != 0 && standing.share(flags, now, growth) >= 1.0 {
                standing.clear(GROWING);
            }
            let Some(outliers) = &policy.outliers else { continue };
            let until = standing.until.load(Relaxed);
            if flags & EJECTED != 0 {
                if now >= until {
                    standing.set(PROBATION);
                    standing.clear(EJECTED);
                    standing.requests.store(0, Relaxed);
                    standing.failures.store(0, Relaxed);
                    whole.ejected = whole.ejected.saturating_sub(1);
                    changes.push((i, Change::Probation));
                }
            } else if flags & PROBATION == 0
                && standing.times.load(Relaxed) > 0
                && now.saturating_sub(until) >= nanos(outliers.base_ejection)
            {
                // It has behaved for as long as a first ejection takes.
                standing.times.fetch_sub(1, Relaxed);
                standing.until.store(now, Relaxed);
            }
        }
        if let Some(outliers) = &policy.outliers
            && outliers.has_window()
            && now.saturating_sub(whole.window) >= nanos(outliers.interval)
        {
            whole.window = now;
            self.window(outliers, &mut whole, members.clone(), now, &mut changes);
        }
        if let Some(zones) = policy.balancer.zones {
            let answers = self.counts.answers.swap(0, Relaxed);
            let refused = self.counts.refused.swap(0, Relaxed);
            let local = members.clone().filter(|seen| seen.standing.has(LOCAL) && seen.may_take());
            whole.spill.settle(&zones, local, answers, refused, now);
        }
        self.look(&policy, &mut whole, members, now);
        changes
    }

    /// Ejects those that stand out in the window that ends.
    fn window<'a>(
        &self,
        outliers: &Outliers,
        whole: &mut Whole,
        members: impl Iterator<Item = Seen<'a>>,
        now: u64,
        changes: &mut Vec<(usize, Change)>,
    ) {
        let counted: Vec<_> = members
            .enumerate()
            .map(|(i, Seen { standing, .. })| {
                (standing.requests.swap(0, Relaxed), standing.failures.swap(0, Relaxed), i, standing)
            })
            .collect();
        let mut out: Vec<(f64, usize, &Standing, Cause)> = Vec::new();
        if let Some(rule) = &outliers.success_rate {
            let rates = counted.iter().filter(|(requests, ..)| *requests >= rule.minimum_requests.max(1));
            let rates: Vec<_> = rates.map(|one| (success(one.0, one.1), one.2, one.3)).collect();
            if rates.len() >= rule.minimum_endpoints.max(2) as usize {
                let n = rates.len() as f64;
                let mean = rates.iter().map(|(rate, ..)| rate).sum::<f64>() / n;
                let variance = rates.iter().map(|(rate, ..)| (rate - mean).powi(2)).sum::<f64>() / n;
                let least = mean - variance.sqrt() * f64::from(rule.deviations) / 1000.0;
                // All the same is nobody's fault, whatever rounding says.
                let below = rates.into_iter().filter(|(rate, ..)| *rate < least - 1e-9);
                out.extend(below.map(|(rate, i, standing)| (rate, i, standing, Cause::SuccessRate)));
            }
        }
        if let Some(rule) = &outliers.failure_percentage {
            let failing = counted.iter().filter(|(requests, failures, ..)| {
                *requests >= rule.minimum_requests.max(1)
                    && u64::from(*failures) * 100 >= u64::from(rule.threshold_percent) * u64::from(*requests)
            });
            out.extend(failing.map(|one| (success(one.0, one.1), one.2, one.3, Cause::FailurePercentage)));
        }
        // The worst first, as long as any may be.
        out.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (_, i, standing, cause) in out {
            changes.extend(self.eject(whole, outliers, standing, cause, now).map(|change| (i, change)));
        }
    }

    /// Whether too few are left, and how much the own zone gets.
    fn look<'a>(
        &self,
        policy: &Policy,
        whole: &mut Whole,
        members: impl Iterator<Item = Seen<'a>> + Clone,
        now: u64,
    ) {
        let usable = members.clone().filter(Seen::may_take).count();
        let panic = policy.balancer.panic_percent.min(100) as usize;
        self.panicking.store(usable == 0 || usable * 100 < whole.endpoints * panic, Relaxed);
        let share = match policy.balancer.zones {
            None => 0.0,
            Some(zones) => {
                let panics = self.is_panicking();
                let taking = members.filter(|seen| seen.may_take() || (panics && seen.ready));
                zones::local_share(&zones, &whole.spill, taking, now, policy.growth())
            }
        };
        self.local_share.store((share * zones::WHOLE) as u64, Relaxed);
    }

    /// A request or a connection goes to an endpoint. A pick alone is not counted: it may be made again, where there is no room.
    #[inline]
    pub fn sent(&self, standing: &Standing) {
        if self.is_panicking() {
            self.counts.panics.fetch_add(1, Relaxed);
        }
        if self.zoned.load(Relaxed) {
            let local = standing.has(LOCAL);
            self.counts.zones[usize::from(!local)].fetch_add(1, Relaxed);
            self.owed.sent(self.local_share.load(Relaxed), local);
        }
    }

    pub fn counted(&self) -> Counted {
        Counted {
            ejections: self.counts.ejections.each_ref().map(|count| count.load(Relaxed)),
            withheld: self.counts.withheld.load(Relaxed),
            panics: self.counts.panics.load(Relaxed),
            zones: self.counts.zones.each_ref().map(|count| count.load(Relaxed)),
        }
    }
}

// === impl Counted ===

impl Counted {
    /// By cause.
    pub fn ejections(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Cause::ALL.iter().map(|cause| cause.as_str()).zip(self.ejections)
    }
}

// === impl Seen ===

impl Seen<'_> {
    /// Whether it is one of those that requests should go to.
    pub fn may_take(&self) -> bool {
        self.ready && self.standing.is_usable()
    }
}

// === impl Outliers ===

impl Outliers {
    /// How many of `endpoints` may be ejected at a time.
    pub(super) fn most(&self, endpoints: usize) -> usize {
        let share = endpoints * (self.maximum_ejected_percent as usize).min(100) / 100;
        share.max(usize::from(endpoints >= 2))
    }

    fn has_window(&self) -> bool {
        self.success_rate.is_some() || self.failure_percentage.is_some()
    }

    fn longest(&self) -> Duration {
        self.maximum_ejection.max(self.base_ejection)
    }
}

fn success(requests: u32, failures: u32) -> f64 {
    1.0 - f64::from(failures) / f64::from(requests.max(1))
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
