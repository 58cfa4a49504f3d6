//! Carries out what [`Machine`] decides, says of this replica what the others need to know, and warns of certificates that end.
//!
//! Runs in every control plane; only the one that leads takes steps. A step that fails is tried again: what is kept then still holds.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
use tulle_api::{ResourceType, v1};

use super::agreement::{Heard, Lacks, Report, Waited, waited_for};
use super::expiry::{Warning, Warnings};
use super::machine::{Event, Machine, Seen, Step};
use super::record::{Record, State, time};
use super::status::shown;
use crate::ads::Proxies;
use crate::ca::store::ROTATION;
use crate::ca::{Ca, CaError};
use crate::metrics::Metrics;
use crate::model::Publisher;

/// Between two looks while somebody is waited for …
const ACTIVE: Duration = Duration::from_secs(1);
/// … while only time is …
const DRAINING: Duration = Duration::from_secs(5);
/// … and while nothing is under way.
const IDLE: Duration = Duration::from_secs(30);
/// After what failed.
const AGAIN: Duration = Duration::from_secs(3);
/// A replica says at least so often how it is with it: three times as often as what it says counts for.
const REPORT: Duration = Duration::from_secs(10);
/// How long it is believed which replicas there are.
const MEMBERS: Duration = Duration::from_secs(5);

/// The other control planes, where there may be some.
#[tonic::async_trait]
pub trait Replicas: Send + Sync {
    /// By what name this one reports.
    fn name(&self) -> &str;

    /// Whether this one takes the steps.
    fn leads(&self) -> bool;

    /// Told when that changes.
    fn leading(&self) -> watch::Receiver<bool>;

    /// The names of those that run, this one among them or not.
    ///
    /// # Errors
    /// Why that is not known.
    async fn running(&self) -> Result<Vec<String>, String>;
}

/// See the module.
pub struct Keeper {
    ca: Ca,
    publisher: Arc<Publisher>,
    proxies: Proxies,
    /// None: this is the only control plane.
    replicas: Option<Arc<dyn Replicas>>,
    /// A root that ends within this is rotated; zero: none is.
    before: Duration,
    metrics: Metrics,
    progress: Progress,
    machine: Machine,
    heard: Heard,
    warnings: Warnings,
    members: Option<(Vec<String>, Instant)>,
    /// What was last said, and when.
    said: Option<(Report, Instant)>,
    /// So that an outage is logged once.
    failing: bool,
}

/// How far a keeper is, for who asks. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<Mutex<Now>>);

/// What a keeper has last seen.
#[derive(Clone, Debug, Default)]
pub(super) struct Now {
    /// Who is waited for.
    pub(super) waits_for: Vec<Waited>,
    /// Whether this control plane takes the steps.
    pub(super) leads: bool,
    /// The schedule.
    pub(super) before: Duration,
}

// === impl Progress ===

impl Progress {
    /// What was last seen.
    pub(super) fn seen(&self) -> Now {
        self.0.lock().clone()
    }
}

// === impl Keeper ===

impl Keeper {
    /// Of `ca`, whose roots `publisher` tells `proxies`; a root that ends within `before` is rotated.
    pub fn new(
        ca: Ca,
        publisher: Arc<Publisher>,
        proxies: Proxies,
        before: Duration,
        metrics: Metrics,
        progress: Progress,
    ) -> Self {
        progress.0.lock().before = before;
        Self {
            ca,
            publisher,
            proxies,
            replicas: None,
            before,
            metrics,
            progress,
            machine: Machine::default(),
            heard: Heard::default(),
            warnings: Warnings::default(),
            members: None,
            said: None,
            failing: false,
        }
    }

    /// Beside others.
    pub fn beside(self, replicas: Arc<dyn Replicas>) -> Self {
        Self { replicas: Some(replicas), ..self }
    }

    /// Keeps at it until it is dropped.
    pub async fn run(mut self) {
        let mut records = self.ca.records();
        let mut leading = self.replicas.as_ref().map(|replicas| replicas.leading());
        loop {
            let record = records.borrow_and_update().clone();
            let pause = self.turn(&record, SystemTime::now(), Instant::now()).await;
            let led = async {
                match &mut leading {
                    // One whose sender has gone is never told again.
                    Some(leading) => match leading.changed().await {
                        Ok(()) => {}
                        Err(_) => std::future::pending().await,
                    },
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = led => {}
                changed = records.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// One look at everything; how long until the next.
    async fn turn(&mut self, record: &Record, now: SystemTime, tick: Instant) -> Duration {
        self.warn(now);
        let counts = matches!(record.state, State::Published(_) | State::Switched(_));
        let own = self.own();
        if counts {
            self.report(&own, now, tick).await;
        } else {
            self.said = None;
        }
        let waits_for = if counts { self.waits_for(record, &own, tick).await } else { Vec::new() };
        let waits = !waits_for.is_empty();
        // Last: the API server may have taken long to answer, and the lease may be another's by now.
        let leads = self.replicas.as_ref().is_none_or(|replicas| replicas.leads());
        self.metrics.show_rotation(record.state.word(), &waits_for);
        {
            let mut progress = self.progress.0.lock();
            progress.waits_for = waits_for;
            progress.leads = leads;
        }
        if !leads || self.ca.can_rotate().is_err() && record.is_idle() && record.wanted.is_none() {
            self.machine.rest();
            return pause(record);
        }
        let reports = self.ca.reports();
        let longest = reports.values().map(|report| report.lifetime).max().unwrap_or_default();
        let seen = Seen {
            root: self.ca.root(),
            lifetime: self.ca.lifetime(),
            longest: Duration::from_secs(longest).max(self.ca.lifetime()),
            waits,
            before: self.before,
            void: self.ca.is_void(),
        };
        let step = self.machine.step(record, &seen, now, tick);
        match self.carry_out(record, step, now).await {
            Ok(()) => {
                self.failing = false;
                pause(record)
            }
            Err(error) => {
                let phase = record.state.word();
                match std::mem::replace(&mut self.failing, true) {
                    false => {
                        tracing::error!(%error, phase, "what becomes of the root cannot be kept; trying again, and what is kept holds");
                    }
                    true => tracing::debug!(%error, phase, "what becomes of the root still cannot be kept"),
                }
                AGAIN
            }
        }
    }

    /// What this control plane has to say of itself.
    fn own(&self) -> Report {
        let model = self.publisher.model();
        let domain = self.ca.trust_domain().as_str();
        let roots = self.ca.bundle();
        // Nobody has accepted what is not told yet.
        let told = model.get(ResourceType::TrustBundle, domain).filter(|encoded| {
            v1::TrustBundle::decode(encoded.bytes.clone()).is_ok_and(|told| {
                let authorities = told.x509_authorities.iter().map(|der| &der[..]);
                authorities.eq(roots.roots().iter().map(|root| &root[..]))
            })
        });
        let version = told.map(|encoded| encoded.version.to_string()).unwrap_or_default();
        Report::of(self.ca.pin().to_string(), &version, &self.proxies.list(), self.ca.lifetime())
    }

    /// Says so to the others, if there is news or it was long ago.
    async fn report(&mut self, own: &Report, now: SystemTime, tick: Instant) {
        let Some(replicas) = self.replicas.clone() else { return };
        let is_old = |at: &Instant| tick.saturating_duration_since(*at) >= REPORT;
        let due = self.said.as_ref().is_none_or(|(said, at)| said != own || is_old(at));
        if !due {
            return;
        }
        // Those of replicas that have gone go too, where it is known which there are.
        let running = if replicas.leads() { self.running(tick).await.ok() } else { None };
        let heard = &self.heard;
        let stays = |name: &str| {
            running
                .as_ref()
                .is_none_or(|running| running.iter().any(|one| one == name) || heard.counts(name, tick))
        };
        let number = super::record::nanoseconds(now);
        let report = Report { number, ..own.clone() };
        match self.ca.report(replicas.name(), &report, &stays).await {
            Ok(()) => self.said = Some((own.clone(), tick)),
            Err(error) => {
                tracing::warn!(%error, "cannot tell the other control planes which roots proxies have here; trying again");
            }
        }
    }

    async fn waits_for(&mut self, record: &Record, own: &Report, tick: Instant) -> Vec<Waited> {
        let reports = self.ca.reports();
        self.heard.hear(&reports, tick);
        let Some(replicas) = self.replicas.clone() else {
            return waited_for(record, ("", own), &[], &reports, &self.heard, tick);
        };
        let running = self.running(tick).await;
        let mut others = running.as_ref().cloned().unwrap_or_default();
        // Who reports is there, though it be no pod.
        let reporting =
            reports.keys().filter(|name| self.heard.counts(name, tick) || self.heard.is_new(name, tick));
        others.extend(reporting.cloned());
        others.sort();
        others.dedup();
        let mut waits_for = waited_for(record, (replicas.name(), own), &others, &reports, &self.heard, tick);
        if let Err(why) = running {
            tracing::debug!(why, "it is not known which control planes there are");
            let unknown =
                Waited { replica: String::new(), why: Lacks::Unknown, proxies: Vec::new(), more: 0 };
            waits_for.push(unknown);
        }
        waits_for
    }

    /// The control planes that there are.
    async fn running(&mut self, tick: Instant) -> Result<Vec<String>, String> {
        if let Some((members, at)) = &self.members
            && tick.saturating_duration_since(*at) < MEMBERS
        {
            return Ok(members.clone());
        }
        let Some(replicas) = &self.replicas else { return Ok(Vec::new()) };
        let members = replicas.running().await?;
        self.members = Some((members.clone(), tick));
        Ok(members)
    }

    async fn carry_out(&mut self, record: &Record, step: Step, now: SystemTime) -> Result<(), CaError> {
        match step {
            Step::Wait => Ok(()),
            Step::Begin(why) => {
                let (old, next) = self.ca.make_next(now)?;
                let (from, to) = (old.0.clone(), next.pin.clone());
                if self.ca.keep_record(record, &record.published(old, next, why, now), now).await? {
                    self.metrics.rotation_steps.with_label_values(&["published"]).inc();
                    tracing::info!(
                        from,
                        to,
                        why = why.word(),
                        kept = self.ca.place(ROTATION),
                        "a rotation of the root has begun: proxies are told the new root, and certificates are issued under the old one until all have it"
                    );
                }
                Ok(())
            }
            Step::Keep(next, event) => {
                if self.ca.keep_record(record, &next, now).await? {
                    if let Some(word) = event.word() {
                        self.metrics.rotation_steps.with_label_values(&[word]).inc();
                    }
                    tell(record, &next, event);
                }
                Ok(())
            }
            Step::Replace => {
                if self.ca.replace(record, now).await?
                    && self.ca.keep_record(record, &record.completed(now), now).await?
                {
                    self.metrics.rotation_steps.with_label_values(&["completed"]).inc();
                    let root = record.change().map(|change| change.next.pin.as_str());
                    tracing::info!(root, "the rotation of the root is complete");
                }
                Ok(())
            }
        }
    }

    /// Says of certificates that end that they do.
    fn warn(&mut self, now: SystemTime) {
        let creds = self.ca.creds_at(now);
        let leaf = (creds.not_before(), creds.not_after());
        for (kind, validity) in
            [("root", self.ca.root_validity()), ("issuer", self.ca.validity()), ("leaf", leaf)]
        {
            let Some(Warning { days, presses }) = self.warnings.due(kind, validity, now) else { continue };
            let not_after = shown(validity.1);
            let remedy = match (kind, days) {
                ("leaf", _) => "the control plane renews it by itself; the log says why that fails",
                (_, None) => "`tulle identity repair` makes a new root (docs/identity.md)",
                _ if self.ca.can_rotate().is_err() => "have it renewed where it was made (docs/identity.md)",
                _ => "`tulle identity rotate-root` rotates it (docs/identity.md)",
            };
            match (days, presses) {
                (None, _) => {
                    tracing::error!(kind, not_after, remedy, "a certificate of the control plane has expired")
                }
                (Some(days), true) => {
                    tracing::error!(
                        kind,
                        not_after,
                        days,
                        remedy,
                        "a certificate of the control plane expires within days"
                    );
                }
                (Some(days), false) => {
                    tracing::warn!(
                        kind,
                        not_after,
                        days,
                        remedy,
                        "a certificate of the control plane expires"
                    );
                }
            }
        }
    }
}

/// Says what a step has come to.
fn tell(before: &Record, after: &Record, event: Event) {
    let change = after.change().or_else(|| before.change());
    let (from, to) =
        change.map(|change| (change.from.as_str(), change.next.pin.as_str())).unwrap_or_default();
    match event {
        Event::Switched => tracing::info!(
            from,
            to,
            "every connected proxy has the new root: certificates are issued under it from now on"
        ),
        Event::Draining => {
            let until = match &after.state {
                State::Draining { until, .. } => shown(time(*until)),
                _ => String::new(),
            };
            tracing::info!(
                from,
                to,
                until,
                "every control plane issues under the new root: the old one is retired once what it has issued has run out"
            );
        }
        Event::Retired => tracing::info!(from, to, "the old root is trusted no more"),
        Event::Aborted => {
            tracing::warn!(from, to, "the rotation of the root was given up: the old one stays")
        }
        Event::Void => tracing::error!(
            from,
            to,
            "the rotation of the root was given up: another root has been put in its place"
        ),
        Event::Refused => {
            tracing::warn!(phase = before.state.word(), "what was asked for of the root cannot be done now")
        }
        Event::ClockSet => tracing::warn!(
            phase = before.state.word(),
            "the clock was set, or the machine has slept: what is waited for is reckoned anew"
        ),
        Event::Lifetime => tracing::debug!(lifetime = after.lifetime, "how long certificates live is kept"),
    }
}

fn pause(record: &Record) -> Duration {
    match record.state {
        State::Idle => IDLE,
        State::Draining { .. } => DRAINING,
        _ => ACTIVE,
    }
}

#[cfg(test)]
mod tests;
