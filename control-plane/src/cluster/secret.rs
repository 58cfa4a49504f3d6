//! The authority's keys in the Secret `tulle-identity`, which all replicas share, in place of the state folder.
//!
//! It is made exactly once: of several control planes that start together one makes it, and the others read what that one has made. What is
//! written later is written to the version that was read, or read again. [`Secret::watch`] tells every replica what another has written; who deletes the Secret
//! while the mesh runs, empties it or destroys a part of it, takes nothing away from it: the holder of the lease writes it again, since with the root every identity would be lost,
//! but for what may be somebody's own ([`Ca::restored`]). For the same reason no new root is made while the ConfigMap `tulle-trust-bundle` beside it says that there is one.
//!
//! Where cert-manager makes the issuing certificate (`issuer`), it holds the rest: the key of join tokens, what they have granted, and the roots there have been.

use std::collections::BTreeMap;
use std::time::SystemTime;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};
use prometheus::IntCounterVec;
use tulle_certs::TrustDomain;
use zeroize::Zeroizing;

use super::bundle::{BUNDLE, KEY};
use super::lease::Holder;
use super::{ApiError, WatchFailures, asked, backoff, follow_object, maker, put_secret};
use crate::ca::rotation::{self, Anew, Need, RepairError, Repaired};
use crate::ca::{
    BESIDE_ISSUER, CA_CERTIFICATES, CA_KEY, Ca, CaError, Change, Condition, Kept, NAMES, ROOTS, Store,
    StoredTokens, complete, complete_tokens, stored_tokens_of, stored_tokens_under, unusable,
};

/// What the Secret is called.
pub const SECRET: &str = "tulle-identity";
/// So often a write is tried that others come before.
const TRIES: u32 = 20;
/// What it means that there is another key of join tokens than before, beside an issuer.
const LOST: &str = "what was kept there is lost, and was made anew: join tokens of before are not taken any more, nor are workloads outside the cluster known that have joined by them, \
                    unless its grants.json is still there, and former roots are trusted no more, unless its roots.json is; restore the Secret from its backup, or give those workloads \
                    new tokens (`tulle token create`)";
/// What helps where a replica that runs does not mend it.
const MENDS: &str = "a replica of the control plane that runs has all of it in memory, and the one that holds the lease writes it again within seconds; where none runs, restore the Secret \
                     from its backup";
/// For so long the API server is waited for, at the start.
const PATIENCE: u32 = 6;

/// The Secret. Cheap to clone.
#[derive(Clone)]
pub struct Secret {
    secrets: Api<core::Secret>,
    /// Where the roots are told.
    bundles: Api<core::ConfigMap>,
    namespace: String,
    /// What is kept in it; whatever else it holds is left as it is.
    names: &'static [&'static str],
    /// As whom it makes the Secret: of several who do at once one has made it, and the others conflict with that one's fields.
    maker: String,
    /// Told when it was written again, by outcome.
    again: Option<IntCounterVec>,
}

// === impl Secret ===

impl Secret {
    /// In the control plane's namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        let (secrets, bundles) =
            (Api::namespaced(client.clone(), namespace), Api::namespaced(client, namespace));
        Self { secrets, bundles, namespace: namespace.to_owned(), names: &NAMES, maker: maker(), again: None }
    }

    /// Counts by outcome how often it was written again.
    pub(super) fn counting(self, again: IntCounterVec) -> Self {
        Self { again: Some(again), ..self }
    }

    /// Without the authority's key and certificates, which are in the Secret of an issuer.
    pub(super) fn beside_issuer(self) -> Self {
        Self { names: &BESIDE_ISSUER, ..self }
    }

    /// The certificates of an authority of our own that is in it all the same.
    pub(super) async fn certificates_of_our_own(&self) -> Result<Option<String>, CaError> {
        let found = asked(self.secrets.get_opt(SECRET)).await.map_err(|error| self.failed(&error))?;
        let text = found.and_then(|found| found.data?.remove(CA_CERTIFICATES));
        Ok(text.map(|ByteString(bytes)| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// What was kept of another issuer's roots says nothing of those that we issue under from now on.
    pub(super) async fn forget_roots(&self) -> Result<(), CaError> {
        self.change(ROOTS, &|kept| kept.map(|_| String::new())).await
    }

    fn holds_the_root(&self) -> bool {
        self.names.contains(&CA_KEY)
    }

    /// What it holds, after what is missing was made.
    ///
    /// # Errors
    /// When the API server cannot be asked, or what is there cannot be used.
    pub async fn open(&self, domain: &TrustDomain, now: SystemTime) -> Result<Kept, CaError> {
        let mut failures = 0;
        loop {
            match self.try_open(domain, now).await? {
                Ok(kept) => return Ok(kept),
                // Another was quicker.
                Err(error) if error.is_conflict() => {}
                Err(error) => {
                    failures += 1;
                    if failures >= PATIENCE || matches!(error, ApiError::Forbidden(_)) {
                        return Err(self.failed(&error));
                    }
                    tracing::warn!(%error, "cannot open the Secret {SECRET}; trying again");
                    tokio::time::sleep(backoff(failures)).await;
                }
            }
        }
    }

    async fn try_open(
        &self,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Result<Kept, ApiError>, CaError> {
        let found = match asked(self.secrets.get_opt(SECRET)).await {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let place = |name: &str| self.place(name);
        let left = found.as_ref().map(|found| self.left(found)).unwrap_or_default();
        // A replica that runs may be about to write it again.
        let why = self.holds_the_root().then(|| unusable(&left, &place, domain, now)).flatten();
        if let Some(why) = why
            && let Err(error) = self.is_new(&why, Ca::is_begun(&left)).await
        {
            return Ok(Err(error));
        }
        let mut kept = found.as_ref().map(|found| self.read(found)).transpose()?.unwrap_or_default();
        let made = match self.holds_the_root() {
            true => complete(&mut kept, &place, domain, now)?,
            false => complete_tokens(&mut kept, &place)?,
        };
        if made.is_empty() {
            return Ok(Ok(kept));
        }
        // Beside an issuer there is a root all the same; once it was told, there was a key too.
        let lost = !self.holds_the_root() && matches!(self.is_new("", false).await, Err(ApiError::Lost(_)));
        let written = self.put(found, &kept).await;
        if written.is_ok() && lost {
            tracing::warn!(secret = %self.place(""), ?made, "{LOST}");
        } else if written.is_ok() {
            tracing::info!(secret = %self.place(""), ?made, "made what the certificate authority is opened with");
        }
        Ok(written.map(|()| kept))
    }

    /// Whether no root was ever told to proxies; what to do if one was is said after `why`. `is_begun`: a part of an authority is there.
    async fn is_new(&self, why: &str, is_begun: bool) -> Result<(), ApiError> {
        let told = asked(self.bundles.get_opt(BUNDLE)).await?;
        let roots = told.and_then(|told| told.data?.remove(KEY)).filter(|roots| !roots.trim().is_empty());
        if roots.is_none() {
            return Ok(());
        }
        let anew = if is_begun { "`tulle identity repair --force`" } else { "delete that ConfigMap" };
        Err(ApiError::Lost(format!(
            "{why}, and the ConfigMap {}/{BUNDLE} holds the root that proxies trust: {MENDS}. Without a backup, begin with a new root, by which every pod of the mesh must be \
             started anew: {anew}",
            self.namespace
        )))
    }

    /// Writes everything, in place of what was found.
    async fn put(&self, found: Option<core::Secret>, kept: &Kept) -> Result<(), ApiError> {
        let kept = kept.iter().filter(|(name, _)| self.names.contains(name));
        let data = kept.map(|(name, text)| ((*name).to_owned(), ByteString(text.as_bytes().to_vec())));
        let data: BTreeMap<String, ByteString> = data.collect();
        let version = found.map(|found| found.metadata.resource_version.unwrap_or_default());
        put_secret(&self.secrets, SECRET, data, version.as_deref(), &self.maker).await
    }

    fn read(&self, secret: &core::Secret) -> Result<Kept, CaError> {
        let none = BTreeMap::new();
        let data = secret.data.as_ref().unwrap_or(&none);
        let mut kept = Kept::new();
        for &name in self.names {
            // What was emptied is not there.
            let Some(ByteString(bytes)) = data.get(name).filter(|text| !text.0.is_empty()) else { continue };
            let text = String::from_utf8(bytes.clone()).map_err(|error| CaError::Store {
                place: self.place(name),
                why: error.utf8_error().to_string(),
            })?;
            kept.insert(name, Zeroizing::new(text));
        }
        Ok(kept)
    }

    /// What can be read of it, and of what cannot as much as shows that it cannot.
    fn left(&self, secret: &core::Secret) -> Kept {
        let data = secret.data.iter().flatten().filter(|(_, text)| !text.0.is_empty());
        let left = data.filter_map(|(name, ByteString(bytes))| {
            let name = self.names.iter().find(|known| **known == name.as_str())?;
            Some((*name, Zeroizing::new(String::from_utf8_lossy(bytes).into_owned())))
        });
        left.collect()
    }

    /// Tells `ca` what others write. Runs until it is dropped.
    pub async fn watch(self, ca: Ca, mut holder: Holder) {
        let seen = follow_object(self.secrets.clone(), SECRET);
        pin_mut!(seen);
        let mut failures = WatchFailures::of("the Secret tulle-identity");
        // What is there in its place: nothing, or too little.
        let mut lost: Option<Option<core::Secret>> = None;
        loop {
            tokio::select! {
                next = seen.next() => match next {
                    Some(Ok(Some(secret))) => {
                        failures.worked();
                        lost = self.take_in(&ca, &secret).then_some(Some(secret));
                    }
                    Some(Ok(None)) => {
                        failures.worked();
                        lost = Some(None);
                        tracing::error!(
                            secret = %self.place(""),
                            "the Secret with keys of the mesh's authority is gone; what is in use stays, and the holder of the lease writes it again"
                        );
                    }
                    Some(Err(error)) => failures.tell(&error),
                    None => return,
                },
                () = holder.held(), if lost.is_some() => {
                    // Should the lease be lost meanwhile, the next one finds it made.
                    if self.write_again(&ca, lost.clone().flatten()).await {
                        lost = None;
                    } else {
                        tokio::time::sleep(backoff(3)).await;
                    }
                },
            }
        }
    }

    /// Says whether something of what is in use lacks there, which is to be written again.
    fn take_in(&self, ca: &Ca, secret: &core::Secret) -> bool {
        if ca.restored(&self.left(secret), self.names).is_some() {
            tracing::error!(
                secret = %self.place(""),
                "keys of the mesh's authority are missing in the Secret, or destroyed; what is in use stays, and the holder of the lease writes them again"
            );
            return true;
        }
        let taken = self.read(secret).and_then(|kept| ca.take_in(kept, self.names, SystemTime::now()));
        if let Err(error) = taken {
            tracing::error!(
                %error,
                "what was written into the Secret cannot be used; what is in use stays, and is written again by the holder of the lease once {CA_KEY} and {CA_CERTIFICATES} are deleted there"
            );
        }
        false
    }

    /// Says whether there is nothing more to do.
    async fn write_again(&self, ca: &Ca, found: Option<core::Secret>) -> bool {
        let kept = match &found {
            None => Some(ca.kept()),
            Some(found) => ca.restored(&self.left(found), self.names),
        };
        // What is in use has changed meanwhile.
        let Some(kept) = kept else { return true };
        let outcome = match self.put(found, &kept).await {
            Ok(()) => {
                tracing::warn!(secret = %self.place(""), "wrote the keys of the mesh's authority again, which were missing or destroyed");
                "written"
            }
            // Somebody else has written it: what that is will be told, and is not written over.
            Err(error) if error.is_conflict() => "conflict",
            Err(error) => {
                tracing::error!(%error, "cannot write the Secret {SECRET} again; trying again");
                "failed"
            }
        };
        if let Some(again) = &self.again {
            again.with_label_values(&[outcome]).inc();
        }
        outcome != "failed"
    }

    /// A new root in the place of one that has ended, for every replica at once: what is written is taken up by those that run. `domain`: of the new root, where the old
    /// one does not say it. `insists`: also where it is good, or could be mended otherwise.
    ///
    /// # Errors
    /// Why nothing was done.
    pub async fn repair(
        &self,
        domain: Option<&TrustDomain>,
        insists: bool,
        now: SystemTime,
    ) -> Result<Repaired, RepairError> {
        let place = |name: &str| self.place(name);
        for _ in 0..TRIES {
            let found = asked(self.secrets.get_opt(SECRET)).await.map_err(|error| self.failed(&error))?;
            let mut kept = found.as_ref().map(|found| self.left(found)).unwrap_or_default();
            let domain = domain.cloned().or_else(|| rotation::domain_of(&kept)).unwrap_or_default();
            let need = match rotation::need(&kept, &place, &domain, now) {
                Need::Unusable(why) => Need::Unusable(format!("{why}; {MENDS}")),
                need => need,
            };
            rotation::admit(need, self.place(""), insists)?;
            let Anew { done, steps } = rotation::made_anew(&kept, &place, &domain, now)?;
            // At once: of what comes twice, the last.
            kept.extend(steps);
            match self.put(found, &kept).await {
                Ok(()) => return Ok(done),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(self.failed(&error).into()),
            }
        }
        Err(self.busy("").into())
    }

    /// What join tokens are made with, for `tulle token create` beside running control planes. Nothing is made that is not there.
    ///
    /// # Errors
    /// When the API server cannot be asked, or what is there cannot be used.
    pub async fn stored_tokens(&self) -> Result<StoredTokens, CaError> {
        let found = asked(self.secrets.get(SECRET)).await.map_err(|error| self.failed(&error))?;
        let kept = self.read(&found)?;
        let place = |name: &str| self.place(name);
        if Ca::is_begun(&kept) {
            return stored_tokens_of(&kept, &place);
        }
        // Somebody else makes the issuing certificate; proxies are told what it is under.
        let told = asked(self.bundles.get(BUNDLE)).await.map_err(|error| self.failed(&error))?;
        let roots = told.data.and_then(|mut data| data.remove(KEY)).unwrap_or_default();
        let at = format!("ConfigMap {}/{BUNDLE}, key {KEY}", self.namespace);
        stored_tokens_under(&kept, &place, (roots.as_str(), at))
    }

    fn busy(&self, name: &str) -> CaError {
        CaError::Store { place: self.place(name), why: "others write it all the time".to_owned() }
    }

    fn failed(&self, error: &ApiError) -> CaError {
        CaError::Store { place: format!("Secret {}/{SECRET}", self.namespace), why: error.to_string() }
    }
}

#[tonic::async_trait]
impl Store for Secret {
    fn place(&self, name: &str) -> String {
        let key = if name.is_empty() { String::new() } else { format!(", key {name}") };
        format!("Secret {}/{SECRET}{key}", self.namespace)
    }

    async fn change(&self, name: &'static str, change: &Change<'_>) -> Result<(), CaError> {
        for _ in 0..TRIES {
            let found = asked(self.secrets.get(SECRET)).await.map_err(|error| self.failed(&error))?;
            let mut kept = self.read(&found)?;
            let Some(text) = change(kept.get(name).map(|text| text.as_str())) else { return Ok(()) };
            kept.insert(name, Zeroizing::new(text));
            match self.put(Some(found), &kept).await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(self.busy(name))
    }

    async fn replace(
        &self,
        texts: &[(&'static str, Zeroizing<String>)],
        name: &'static str,
        fits: &Condition<'_>,
    ) -> Result<bool, CaError> {
        for _ in 0..TRIES {
            let found = asked(self.secrets.get(SECRET)).await.map_err(|error| self.failed(&error))?;
            let mut kept = self.read(&found)?;
            if !fits(kept.get(name).map(|text| text.as_str())) {
                return Ok(false);
            }
            kept.extend(texts.iter().cloned());
            match self.put(Some(found), &kept).await {
                Ok(()) => return Ok(true),
                Err(error) if error.is_conflict() => {}
                Err(error) => return Err(self.failed(&error)),
            }
        }
        Err(self.busy(name))
    }
}

#[cfg(test)]
mod tests;
