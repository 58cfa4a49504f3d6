//! The roots that certificates in use may chain to: those of now, and former ones until the last leaf under them has run out.
//!
//! Pure; kept as JSON (`roots.json`), so that a control plane that starts anew, or another replica, tells proxies the same.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tulle_certs::pem;

/// The roots, those of now first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Roots(Vec<Root>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Root {
    /// PEM.
    certificate: String,
    /// In seconds since the epoch, of one that is not used any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    until: Option<u64>,
}

// === impl Roots ===

impl Roots {
    /// What was kept. What cannot be read costs the former roots, and nothing else.
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_else(|error| {
            tracing::warn!(%error, "what is kept of former roots cannot be read; certificates under them are trusted no more");
            Self::default()
        })
    }

    /// As if these certificates (PEM) were in use now.
    pub(super) fn in_use(certificates: &str) -> Self {
        let read = pem::certificates(certificates).unwrap_or_default();
        let roots = read.iter().map(|der| Root { certificate: pem::encode_certificate(der), until: None });
        Self(roots.collect())
    }

    /// Whether there is none, and so never was.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one of `own` is among them, by which what is issued under these is trusted.
    pub(super) fn know(&self, own: &[String]) -> bool {
        self.0.iter().any(|root| own.contains(&root.certificate))
    }

    /// Once `own` are in use: those that were until then stay until `until`.
    pub(super) fn with(&self, own: &[String], until: SystemTime, now: SystemTime) -> Self {
        let (until, now) = (seconds(until), seconds(now));
        let current = own.iter().map(|certificate| Root { certificate: certificate.clone(), until: None });
        let former = self.0.iter().filter(|root| !own.contains(&root.certificate));
        let former = former.map(|root| Root { until: root.until.or(Some(until)), ..root.clone() });
        Self(current.chain(former.filter(|root| root.until.is_some_and(|until| until > now))).collect())
    }

    /// Those that are not used any more, as PEM.
    pub(super) fn former(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|root| root.until.is_some()).map(|root| root.certificate.as_str())
    }

    /// When the next of them runs out.
    pub(super) fn next_end(&self) -> Option<SystemTime> {
        let next = self.0.iter().filter_map(|root| root.until).min()?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(next))
    }

    pub(super) fn to_text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_former_root_stays_until_the_leaves_under_it_have_run_out() {
        let (old, new) = (["old".to_owned()], ["new".to_owned()]);
        let first = Roots::default().with(&old, at(200), at(100));
        assert_eq!((first.former().count(), first.next_end()), (0, None));
        let second = first.with(&new, at(300), at(200));
        assert_eq!(second.former().collect::<Vec<_>>(), ["old"]);
        assert_eq!(second.next_end(), Some(at(300)));
        assert!(second.know(&old) && second.know(&new) && !first.know(&new) && !first.is_empty());
        // Told once more, it stays no longer.
        let again = Roots::read(&second.to_text()).with(&new, at(400), at(299));
        assert_eq!(again, second);
        assert_eq!(again.with(&new, at(400), at(300)).former().count(), 0);
        // Back again, it is in use.
        assert_eq!(second.with(&old, at(400), at(250)).former().collect::<Vec<_>>(), ["new"]);
    }

    #[test]
    fn what_was_kept_and_is_damaged_is_as_nothing() {
        assert_eq!(Roots::read("{"), Roots::default());
        assert_eq!(Roots::in_use("no certificate"), Roots::default());
    }
}
