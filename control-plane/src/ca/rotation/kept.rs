//! The authority's side of a rotation: reading and keeping the record, and what goes with it.

use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use tokio::sync::watch;
use tulle_certs::issue::{Authority, ROOT_LIFETIME};
use tulle_certs::pem;
use zeroize::Zeroizing;

use super::agreement::{Report, Reports};
use super::issuing;
use super::machine::Root;
use super::record::{Next, Record, State, Wanted};
use crate::ca::store::{self, CA_CERTIFICATES, CA_KEY, Kept, REPORTS, ROTATION};
use crate::ca::{Ca, CaError, Issuing};

/// Why what was asked for is not done.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    /// Whose root it is.
    #[error("{0}")]
    NotOurs(String),
    /// A rotation is under way.
    #[error("a rotation is under way already: it is {0}")]
    UnderWay(&'static str),
    /// There is nothing to give up.
    #[error("no rotation is under way")]
    Idle,
    /// It is too late to give it up.
    #[error(
        "certificates are issued under the new root already: the rotation goes on to its end (it is {0}). Begin another afterwards, should the new root be unfit"
    )]
    TooLate(&'static str),
    /// What is kept cannot be written.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl Ca {
    /// How far a rotation of the root is.
    pub fn record(&self) -> Arc<Record> {
        Arc::clone(&self.0.record.borrow())
    }

    /// The same, and every later one.
    pub fn records(&self) -> watch::Receiver<Arc<Record>> {
        self.0.record.subscribe()
    }

    /// What each of several control planes has said of itself, as it was last seen.
    pub(super) fn reports(&self) -> Arc<Reports> {
        Arc::clone(&self.0.reports.lock())
    }

    /// The root that a rotation follows, or would.
    pub fn root(&self) -> Root {
        self.0.issuing.load().root.clone()
    }

    /// How long leaves live here.
    pub fn lifetime(&self) -> std::time::Duration {
        self.0.lifetime
    }

    /// Where `name` is kept, for messages.
    pub(super) fn place(&self, name: &str) -> String {
        self.0.store.place(name)
    }

    /// Whether the record is of another root than the one that is kept.
    pub(super) fn is_void(&self) -> bool {
        self.0.issuing.load().void
    }

    /// Whether who wants to change the root must show that it may read what is kept.
    pub(crate) fn is_guarded(&self) -> bool {
        self.0.store.is_guarded()
    }

    /// Whether the root can be rotated at all; if not, why, and what to do instead.
    pub fn can_rotate(&self) -> Result<(), NotNow> {
        self.0.store.rotates().map_err(NotNow::NotOurs)?;
        if !self.root().can_follow {
            return Err(NotNow::NotOurs(format!(
                "{} holds an intermediate, and the key of the root above it is not here: rotate that root where it was made, put it behind the present one in {} \
                 until every proxy has it, and then put the new issuing certificate and its key there (docs/identity.md)",
                self.place(CA_CERTIFICATES),
                self.place(CA_CERTIFICATES),
            )));
        }
        Ok(())
    }

    /// Notes what somebody asks for; whoever takes the steps does it.
    ///
    /// # Errors
    /// Why it cannot be done now.
    pub async fn want(&self, wanted: Wanted, now: SystemTime) -> Result<(), NotNow> {
        self.can_rotate()?;
        let refused = Mutex::new(None);
        let change = |record: &Record| {
            let word = record.state.word();
            let why = match (wanted, &record.state) {
                (Wanted::Rotation, State::Idle) | (Wanted::Abort, State::Published(_)) => None,
                // One that nobody has begun yet.
                (Wanted::Abort, State::Idle) if record.wanted.is_some() => None,
                (Wanted::Rotation, _) => Some(NotNow::UnderWay(word)),
                (Wanted::Abort, State::Idle) => Some(NotNow::Idle),
                (Wanted::Abort, _) => Some(NotNow::TooLate(word)),
            };
            let fits = why.is_none();
            *refused.lock() = why;
            fits.then(|| Record { wanted: Some(wanted), ..record.clone() })
        };
        self.change_record(&change, now).await?;
        match refused.into_inner() {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }

    /// Keeps `next` in the place of `record`, and goes by it. False: somebody has kept another one meanwhile.
    ///
    /// # Errors
    /// When `next` cannot be gone by, or cannot be written; then `record` holds.
    pub(super) async fn keep_record(
        &self,
        record: &Record,
        next: &Record,
        now: SystemTime,
    ) -> Result<bool, CaError> {
        // Nothing is kept that the next start would not take.
        let mut kept = self.0.issuing.load().kept.clone();
        kept.insert(ROTATION, Zeroizing::new(next.to_text()));
        Issuing::read(kept, &*self.0.store, &self.0.domain, now)?;
        let done = Mutex::new(false);
        let change = |found: &Record| {
            let same = found == record;
            *done.lock() = same;
            same.then(|| next.clone())
        };
        self.change_record(&change, now).await?;
        Ok(done.into_inner())
    }

    async fn change_record(
        &self,
        change: &(dyn Fn(&Record) -> Option<Record> + Send + Sync),
        now: SystemTime,
    ) -> Result<(), CaError> {
        let _turn = self.0.stepping.lock().await;
        let result = Mutex::new(Ok(None));
        let of_text = |text: Option<&str>| {
            let next = Record::read(text).map(|found| change(&found).map(|next| next.to_text()));
            *result.lock() = next.clone();
            next.ok().flatten()
        };
        self.0.store.change(ROTATION, &of_text).await?;
        let written =
            result.into_inner().map_err(|why| CaError::Store { place: self.place(ROTATION), why })?;
        let Some(written) = written else {
            // Somebody who was not there any more when it was written has not taken it in, and in a folder nobody else tells.
            let found = self.0.store.look(ROTATION).await?.map(Zeroizing::new);
            let found = Kept::from_iter(found.map(|text| (ROTATION, text)));
            return if found.is_empty() { Ok(()) } else { self.take_in(found, &[ROTATION], now) };
        };
        // Who has written it may be the only one who hears of it.
        self.take_in(Kept::from([(ROTATION, Zeroizing::new(written))]), &[ROTATION], now)
    }

    /// Makes a root that is to follow this one.
    pub(super) fn make_next(&self, now: SystemTime) -> Result<((String, String), Next), CaError> {
        let in_authority = |why| store::in_authority(&|name| self.place(name), why);
        let next = Authority::generate(&self.0.domain, ROOT_LIFETIME, now).map_err(in_authority)?;
        let issuing = self.0.issuing.load();
        let old = &issuing.authority;
        let bridge = match old.bridge_to(&next, now) {
            Ok(bridge) => Some(pem::encode_certificate(&bridge)),
            Err(error) => {
                tracing::warn!(%error, "the old root cannot vouch for the new one: join tokens that pin the old one end with it");
                None
            }
        };
        let pin = next.pin().map_err(in_authority)?.to_string();
        let certificate = pem::encode_certificate(next.root());
        let next = Next { pin, key: next.key().to_pem(), certificate, bridge };
        Ok(((issuing.pin.to_string(), pem::encode_certificate(old.root())), next))
    }

    /// Puts the new root of `record` in the place of the old one, once that is retired. False: somebody has kept another record meanwhile, and with it
    /// perhaps another root, which is not written over.
    pub(super) async fn replace(&self, record: &Record, now: SystemTime) -> Result<bool, CaError> {
        let Some(change) = record.change() else { return Ok(false) };
        let _turn = self.0.stepping.lock().await;
        let kept = self.0.issuing.load().kept.clone();
        let place = |name: &str| self.place(name);
        let replacement = issuing::replacement(&kept, change, &place, now)?;
        let fits = |text: Option<&str>| Record::read(text).is_ok_and(|found| found == *record);
        if !self.0.store.replace(&replacement, ROTATION, &fits).await? {
            return Ok(false);
        }
        self.take_in(Kept::from(replacement), &[CA_KEY, CA_CERTIFICATES], now)?;
        Ok(true)
    }

    /// Keeps what `name` says of itself, where the others see it; of those, what `stays` says is kept too.
    pub(super) async fn report(
        &self,
        name: &str,
        report: &Report,
        stays: &(dyn Fn(&str) -> bool + Send + Sync),
    ) -> Result<(), CaError> {
        let change = |text: Option<&str>| {
            let found = text.and_then(|text| serde_json::from_str(text).ok());
            let mut reports: Reports = found.unwrap_or_default();
            reports.retain(|other, _| stays(other));
            reports.insert(name.to_owned(), report.clone());
            serde_json::to_string(&reports).ok()
        };
        self.0.store.change(REPORTS, &change).await
    }
}
