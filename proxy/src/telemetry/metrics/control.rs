//! What the control thread counts: rare events, so a lock is fine.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;

use super::families::{self, Family};
use super::labels::DnsResult;

/// A certificate whose expiry is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CertKind {
    /// This workload's.
    Leaf,
    /// That which signed it, if not the root itself.
    Issuer,
    /// The root that expires first.
    Root,
}

/// What the control thread counts. May be called from any thread.
#[derive(Debug, Default)]
pub struct ControlMetrics {
    values: Mutex<BTreeMap<(&'static str, Vec<String>), f64>>,
}

// === impl ControlMetrics ===

impl ControlMetrics {
    fn add(&self, family: &'static Family, labels: &[&str], amount: f64) {
        *self.values.lock().entry(key(family, labels)).or_default() += amount;
    }

    fn set(&self, family: &'static Family, labels: &[&str], value: f64) {
        self.values.lock().insert(key(family, labels), value);
    }

    /// The ADS stream is (or is no longer) up.
    pub fn ads_connected(&self, connected: bool) {
        self.set(&families::ADS_CONNECTED, &[], f64::from(u8::from(connected)));
        if connected {
            self.add(&families::ADS_CONNECTIONS, &[], 1.0);
        }
    }

    /// A response was applied as it is. `kind`: the message's name, such as `Endpoints`.
    pub fn ads_acked(&self, kind: &str) {
        self.add(&families::ADS_ACKS, &[kind], 1.0);
        self.set(&families::ADS_LAST_UPDATE, &[], seconds(SystemTime::now()));
    }

    /// A response held resources that were rejected; the others were applied.
    pub fn ads_nacked(&self, kind: &str) {
        self.add(&families::ADS_NACKS, &[kind], 1.0);
        self.set(&families::ADS_LAST_UPDATE, &[], seconds(SystemTime::now()));
    }

    /// How many resources of a kind are held.
    pub fn ads_resources(&self, kind: &str, count: usize) {
        self.set(&families::ADS_RESOURCES, &[kind], count as f64);
    }

    /// Of how many resources of a kind the newest version was rejected.
    pub fn ads_rejected(&self, kind: &str, count: usize) {
        self.set(&families::ADS_REJECTED, &[kind], count as f64);
    }

    /// What is held was compared with what the control plane says; `result` is of `equal`, `different`, `unsettled`.
    pub fn ads_compared(&self, result: &str) {
        self.add(&families::ADS_COMPARISONS, &[result], 1.0);
    }

    /// A resource of this kind was not in use as it had been told; it is asked for again.
    pub fn ads_lost(&self, kind: &str) {
        self.add(&families::ADS_DIFFERENCES, &[kind], 1.0);
    }

    /// Something had been lost, of these kinds as far as is known: the stream is opened anew.
    pub fn ads_repaired(&self, kinds: &[&str]) {
        self.add(&families::ADS_REPAIRS, &[], 1.0);
        kinds.iter().for_each(|kind| self.add(&families::ADS_DIFFERENCES, &[kind], 1.0));
    }

    /// How many names of a kind are subscribed to.
    pub fn ads_subscriptions(&self, kind: &str, count: usize) {
        self.set(&families::ADS_SUBSCRIPTIONS, &[kind], count as f64);
    }

    /// When a certificate in use expires.
    pub fn identity_expires(&self, kind: CertKind, at: SystemTime) {
        let kind = match kind {
            CertKind::Leaf => "leaf",
            CertKind::Issuer => "issuer",
            CertKind::Root => "root",
        };
        self.set(&families::IDENTITY_EXPIRATION, &[kind], seconds(at));
    }

    /// Certificates will be asked for: both results are shown, though they be 0. What appears as 1 is no increase to Prometheus, so that an
    /// alert could not see it.
    pub(super) fn identity_started(&self) {
        ["ok", "failed"].iter().for_each(|result| self.add(&families::IDENTITY_RENEWALS, &[result], 0.0));
    }

    /// A certificate was asked for.
    pub fn identity_renewed(&self, success: bool) {
        self.add(&families::IDENTITY_RENEWALS, &[if success { "ok" } else { "failed" }], 1.0);
    }

    /// The registration is (or is not) held by the control plane.
    pub fn registered(&self, registered: bool) {
        self.set(&families::REGISTERED, &[], f64::from(u8::from(registered)));
    }

    /// Questions about names are answered from now on: every result is shown, though it be 0.
    pub fn dns_started(&self) {
        DnsResult::ALL.iter().for_each(|result| self.add(&families::DNS_QUERIES, &[result.as_str()], 0.0));
    }

    /// A question about a name was answered, or not.
    pub fn dns_query(&self, result: DnsResult) {
        self.add(&families::DNS_QUERIES, &[result.as_str()], 1.0);
    }

    /// Keys will be fetched from there: both results are shown, though they be 0.
    pub fn jwks_begins(&self, url: &str) {
        ["ok", "failed"].iter().for_each(|result| self.add(&families::JWKS_FETCHES, &[url, result], 0.0));
    }

    /// Keys were asked for there.
    pub fn jwks_fetched(&self, url: &str, good: bool) {
        self.add(&families::JWKS_FETCHES, &[url, if good { "ok" } else { "failed" }], 1.0);
        if good {
            self.set(&families::JWKS_FETCHED, &[url], seconds(SystemTime::now()));
        }
    }

    /// No keys are fetched from there any more.
    pub fn jwks_ends(&self, url: &str) {
        let mut values = self.values.lock();
        values.remove(&key(&families::JWKS_FETCHED, &[url]));
        for result in ["ok", "failed"] {
            values.remove(&key(&families::JWKS_FETCHES, &[url, result]));
        }
    }

    /// See [`Metrics::health_checked`](super::Metrics::health_checked); without room for its labels, in the overflow.
    pub(super) fn health_checked(&self, labels: Option<[&str; 2]>) {
        let labels = labels.map_or(["", "", "true"], |[service, outcome]| [service, outcome, ""]);
        self.add(&families::HEALTH_CHECKS, &labels, 1.0);
    }

    pub(super) fn read(&self, family: &Family) -> Vec<(Vec<String>, f64)> {
        let values = self.values.lock();
        let of_family =
            values.range((family.name, Vec::new())..).take_while(|((name, _), _)| *name == family.name);
        of_family.map(|((_, labels), value)| (labels.clone(), *value)).collect()
    }
}

fn key(family: &'static Family, labels: &[&str]) -> (&'static str, Vec<String>) {
    (family.name, labels.iter().map(|label| (*label).to_owned()).collect())
}

pub(super) fn seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
