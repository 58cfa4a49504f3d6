//! Join tokens that were made, those that are revoked, and those that are good for one time and were used.
//!
//! A token proves itself; that it is in the book only lets people see what they have handed out. That it is revoked holds for the token, for what it has granted, and for
//! every certificate that goes back to it ([`Lineage`]): it is not renewed any more. Kept in the [`Store`] as JSON by the tokens' IDs, written by `tulle token` beside the running
//! control plane, and read by every replica. What is revoked stays so: what the token has granted is kept for as long as the identity is, and how long certificates live may
//! have been set anew since.
//!
//! That a token was used is written before its bearer gets a certificate, and whoever writes it second is refused: of several replicas that are shown a token at once one takes it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tulle_certs::Lineage;
use tulle_certs::token::{Claims, LEEWAY};
use zeroize::Zeroizing;

use super::CaError;
use super::store::{Store, TOKENS};

/// A token stays in the book for so long after it has expired, for people; of one that is revoked its ID stays.
const SHOWN: Duration = Duration::from_secs(30 * 24 * 3600);

/// One token. Times in seconds since the epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The SPIFFE ID that it gives; empty: it was revoked by its ID alone.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub identity: String,
    /// Services that it may register for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// When it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<u64>,
    /// When nobody can join with it any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<u64>,
    /// When it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<u64>,
    /// It is good for one time.
    #[serde(default, skip_serializing_if = "is_false")]
    pub once: bool,
    /// When that one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used: Option<u64>,
}

fn is_false(once: &bool) -> bool {
    !*once
}

/// Tokens by their IDs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Ledger(BTreeMap<String, Entry>);

// === impl Ledger ===

impl Ledger {
    /// Of what is kept, if anything is.
    ///
    /// # Errors
    /// When it is damaged: who was revoked must not be let in because nobody knows it any more.
    pub fn read(text: Option<&str>, place: &str) -> Result<Self, CaError> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(Self::default()) };
        serde_json::from_str(text).map_err(|error| CaError::Store {
            place: place.to_owned(),
            why: format!(
                "the book of join tokens is damaged ({error}); mend it, or remove it, if no token that is revoked can still be valid"
            ),
        })
    }

    /// As it is kept.
    pub fn to_text(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// All, by ID.
    pub fn entries(&self) -> impl Iterator<Item = (&str, &Entry)> {
        self.0.iter().map(|(jti, entry)| (jti.as_str(), entry))
    }

    /// With a token that was made now.
    #[must_use]
    pub fn with_made(mut self, claims: &Claims, now: SystemTime) -> Self {
        let entry = self.0.entry(claims.jti.clone()).or_default();
        entry.tell(claims);
        entry.created = Some(seconds(now));
        self
    }

    /// With a token revoked: one that is in the book, or of which the `claims` are known, or of which nothing is but its ID. It stays revoked since when it was
    /// first.
    #[must_use]
    pub fn with_revoked(mut self, jti: &str, claims: Option<&Claims>, now: SystemTime) -> Self {
        let entry = self.0.entry(jti.to_owned()).or_default();
        if let Some(claims) = claims {
            entry.tell(claims);
        }
        entry.revoked.get_or_insert_with(|| seconds(now));
        self
    }

    /// With a token that is good for one time used now; `None`: it was before.
    #[must_use]
    pub fn with_used(mut self, claims: &Claims, now: SystemTime) -> Option<Self> {
        let entry = self.0.entry(claims.jti.clone()).or_default();
        entry.tell(claims);
        if entry.used.is_some() {
            return None;
        }
        entry.used = Some(seconds(now));
        Some(self)
    }

    /// Without what does not matter any more. Who was revoked must never be taken for somebody who was not: of that the ID stays.
    #[must_use]
    pub fn without_past(mut self, now: SystemTime) -> Self {
        let now = seconds(now);
        let is_past = |entry: &Entry| {
            entry.expires.is_some_and(|expires| expires.saturating_add((SHOWN + LEEWAY).as_secs()) < now)
        };
        self.0.retain(|_, entry| entry.revoked.is_some() || !is_past(entry));
        for entry in self.0.values_mut().filter(|entry| is_past(entry)) {
            *entry = Entry { revoked: entry.revoked, ..Entry::default() };
        }
        self
    }

    fn revoked(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, entry)| entry.revoked.is_some()).map(|(jti, _)| jti.as_str())
    }

    fn used(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter(|(_, entry)| entry.used.is_some()).map(|(jti, _)| jti.as_str())
    }
}

// === impl Entry ===

impl Entry {
    fn tell(&mut self, claims: &Claims) {
        self.identity = claims.sub.to_string();
        self.services.clone_from(&claims.services);
        self.expires = Some(seconds(claims.exp));
        self.once = claims.once;
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What is revoked or used, as an authority asks it. The last good book holds.
pub(super) struct Revoked {
    store: Arc<dyn Store>,
    now: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    text: String,
    /// What was told since, and cannot be read.
    damaged: String,
    tokens: BTreeSet<String>,
    lineages: BTreeSet<Lineage>,
    used: BTreeSet<String>,
}

// === impl Revoked ===

impl Revoked {
    /// With what is kept.
    ///
    /// # Errors
    /// When it is damaged.
    pub(super) fn open(store: Arc<dyn Store>, text: Option<&str>) -> Result<Self, CaError> {
        let ledger = Ledger::read(text, &store.place(TOKENS))?;
        let now = Mutex::new(Known::of(text.unwrap_or_default(), &ledger));
        Ok(Self { store, now })
    }

    /// Takes in what somebody has written.
    pub(super) fn take_in(&self, text: &str) {
        let mut now = self.now.lock();
        if now.text == text || now.damaged == text {
            return;
        }
        match Ledger::read(Some(text), &self.store.place(TOKENS)) {
            Ok(ledger) => {
                let known = Known::of(text, &ledger);
                for jti in known.tokens.difference(&now.tokens) {
                    tracing::info!(jti, "a join token is revoked");
                }
                *now = known;
            }
            Err(error) => {
                tracing::error!(%error, "what was known to be revoked stays so, and nothing new is taken");
                text.clone_into(&mut now.damaged);
            }
        }
    }

    /// Looks whether somebody has written, where nobody tells.
    pub(super) async fn look(&self) -> Result<(), CaError> {
        if let Some(text) = self.store.look(TOKENS).await? {
            self.take_in(&text);
        }
        Ok(())
    }

    /// Forgets what does not matter any more.
    pub(super) async fn forget(&self, now: SystemTime) -> Result<(), CaError> {
        let past = |text: Option<&str>| {
            let ledger = Ledger::read(text, "").ok()?;
            let left = ledger.clone().without_past(now);
            (left != ledger).then(|| left.to_text())
        };
        let text = self.now.lock().text.clone();
        if past(Some(&text)).is_none() {
            return Ok(());
        }
        self.store.change(TOKENS, &past).await
    }

    /// As it is kept; `None` if nothing is.
    pub(super) fn text(&self) -> Option<Zeroizing<String>> {
        let now = self.now.lock();
        (!now.text.is_empty()).then(|| Zeroizing::new(now.text.clone()))
    }

    pub(super) fn is_token(&self, jti: &str) -> bool {
        self.now.lock().tokens.contains(jti)
    }

    /// Whether a token that is good for one time was used, as far as is known here. [`spend`](Self::spend) decides.
    pub(super) fn is_used(&self, jti: &str) -> bool {
        self.now.lock().used.contains(jti)
    }

    /// Uses a token that is good for one time; says whether it still was. It is written when this returns, for all replicas.
    ///
    /// # Errors
    /// When the book cannot be read or written; then nobody may be let in by the token.
    pub(super) async fn spend(&self, claims: &Claims, now: SystemTime) -> Result<bool, CaError> {
        let place = self.store.place(TOKENS);
        let is_first = Mutex::new(Ok(false));
        let change = |text: Option<&str>| {
            let (first, text) = match Ledger::read(text, &place) {
                Err(damaged) => (Err(damaged), None),
                Ok(ledger) => match ledger.with_used(claims, now) {
                    Some(ledger) => (Ok(true), Some(ledger.to_text())),
                    None => (Ok(false), None),
                },
            };
            *is_first.lock() = first;
            text
        };
        self.store.change(TOKENS, &change).await?;
        let is_first = is_first.into_inner()?;
        self.now.lock().used.insert(claims.jti.clone());
        Ok(is_first)
    }

    pub(super) fn is_lineage(&self, lineage: Lineage) -> bool {
        self.now.lock().lineages.contains(&lineage)
    }
}

// === impl Known ===

impl Known {
    fn of(text: &str, ledger: &Ledger) -> Self {
        let tokens: BTreeSet<String> = ledger.revoked().map(str::to_owned).collect();
        let lineages = tokens.iter().map(|jti| Lineage::of_token(jti)).collect();
        let used = ledger.used().map(str::to_owned).collect();
        Self { text: text.to_owned(), damaged: String::new(), tokens, lineages, used }
    }
}

#[cfg(test)]
mod tests {
    use tulle_certs::{SpiffeId, TrustDomain};

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn at(days: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + DAY * (20_000 + days)
    }

    fn claims(jti: &str, exp: SystemTime) -> Claims {
        let sub = SpiffeId::new(&TrustDomain::default(), "shop", "web").unwrap();
        Claims { sub, services: vec!["web".into()], exp, jti: jti.into(), once: false }
    }

    #[test]
    fn a_book_is_read_as_it_was_written_and_a_damaged_one_is_not_taken_for_an_empty_one() {
        let book = Ledger::default().with_made(&claims("a", at(1)), at(0)).with_revoked("b", None, at(0));
        assert_eq!(Ledger::read(Some(&book.to_text()), "x").unwrap(), book);
        assert_eq!(Ledger::read(Some("\n"), "x").unwrap(), Ledger::default());
        assert_eq!(book.revoked().collect::<Vec<_>>(), ["b"]);
        for damaged in ["{", "[]", "{\"a\": 1}"] {
            let error = Ledger::read(Some(damaged), "tokens.json").unwrap_err().to_string();
            assert!(error.starts_with("tokens.json: ") && error.contains("damaged"), "{error}");
        }
    }

    #[test]
    fn what_is_revoked_is_never_forgotten_and_of_the_past_only_its_id_is_left() {
        let book = Ledger::default()
            .with_revoked("short", Some(&claims("short", at(1))), at(0))
            .with_revoked("late", Some(&claims("late", at(1))), at(50))
            .with_revoked("unknown", None, at(0))
            .with_made(&claims("made", at(1)), at(0));
        let left = |now| {
            let left = book.clone().without_past(now);
            let name = |(jti, entry): (&str, &Entry)| match entry.identity.is_empty() {
                true => format!("({jti})"),
                false => jti.to_owned(),
            };
            left.entries().map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(left(at(31)), "late made short (unknown)");
        assert_eq!(left(at(32)), "(late) (short) (unknown)", "thirty days after they have expired");
        let much_later = book.clone().without_past(at(4000));
        assert_eq!(much_later.revoked().collect::<Vec<_>>(), ["late", "short", "unknown"]);
        assert_eq!(much_later.clone().without_past(at(5000)), much_later);
        // Revoked once more, it is so since the first time.
        assert_eq!(book.clone().with_revoked("short", None, at(5)), book);
    }

    #[test]
    fn what_is_good_for_one_time_is_used_once_and_known_to_be_for_as_long_as_it_could_be_shown() {
        let once = Claims { once: true, ..claims("a", at(10)) };
        let book = Ledger::default().with_made(&once, at(0));
        assert_eq!(book.used().count(), 0);
        let used = book.with_used(&once, at(1)).unwrap();
        assert_eq!(used.used().collect::<Vec<_>>(), ["a"]);
        assert_eq!(Ledger::read(Some(&used.to_text()), "x").unwrap(), used);
        assert_eq!(used.clone().with_used(&once, at(2)), None);
        assert_eq!(used.clone().without_past(at(10)), used);
        // Also one that is in no book, and one that is revoked besides.
        assert!(Ledger::default().with_used(&once, at(1)).is_some_and(|book| book.used().count() == 1));
        let revoked = used.with_revoked("a", None, at(2)).without_past(at(10));
        assert_eq!((revoked.used().count(), revoked.revoked().count()), (1, 1));
    }
}
