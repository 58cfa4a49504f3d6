//! An issuing certificate that cert-manager makes and renews: in a Secret of the type `kubernetes.io/tls`, beside `tulle-identity`, which keeps the rest.
//!
//! | field | holds |
//! | --- | --- |
//! | `tls.crt` | the issuing certificate, and those above it |
//! | `tls.key` | its key |
//! | `ca.crt` | the root, or several |
//!
//! The Secret is never written, only read; cert-manager may be slower than the control plane, which waits for it. What is written there later is taken up at once,
//! by every replica, if it can be used; else what was good stays in use, and the log says which field is wrong and what to do. A root that is new is told to proxies
//! for a while before anything is issued under it; one that is not there any more stays among the roots until the last leaf under it has run out ([`Roots`]).

mod roots;

use std::time::{Duration, SystemTime};

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1 as core;
use kube::{Api, Client};
use parking_lot::Mutex;
use tokio::time::Instant;
use tulle_certs::issue::{Authority, AuthorityError};
use tulle_certs::{TrustDomain, pem};
use zeroize::Zeroizing;

use self::roots::Roots;
use super::secret::Secret;
use super::{WatchFailures, asked, backoff, follow_object};
use crate::ca::{CA_CERTIFICATES, CA_KEY, Ca, CaError, Change, Condition, Kept, ROOTS, Store};

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOT: &str = "ca.crt";

/// How often it is looked for at the start.
const LOOK: Duration = Duration::from_secs(1);
/// How often it is said that it is not there.
const SAY: Duration = Duration::from_secs(60);
/// How long proxies know a new root before anybody shows them a certificate under it.
const SETTLE: Duration = Duration::from_secs(30);
/// A former root stays for this much longer than the leaves under it: replicas do not change at the same moment, nor have all the same time.
const SLACK: Duration = Duration::from_secs(600);
/// It is looked after this whether a former root has run out.
const LONGEST: Duration = Duration::from_secs(3600);

/// The Secret. Cheap to clone.
#[derive(Clone)]
pub struct Issuer {
    secrets: Api<core::Secret>,
    namespace: String,
    name: String,
    /// What is kept beside it.
    beside: Secret,
    /// How long leaves live.
    lifetime: Duration,
    settle: Duration,
}

/// What the Secret holds, found good.
struct Material {
    key: Zeroizing<String>,
    /// `tls.crt` and `ca.crt`.
    certificates: String,
    /// As PEM, each.
    roots: Vec<String>,
}

// === impl Issuer ===

impl Issuer {
    /// The Secret `name` in the control plane's namespace, under whose certificate leaves live for `lifetime`.
    pub fn new(client: Client, namespace: &str, name: &str, lifetime: Duration) -> Self {
        Self {
            secrets: Api::namespaced(client.clone(), namespace),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            beside: Secret::new(client, namespace).beside_issuer(),
            lifetime,
            settle: SETTLE,
        }
    }

    /// The Secret of our own that keeps the rest.
    pub(super) fn beside(&self) -> &Secret {
        &self.beside
    }

    /// What both hold. Waits for as long as there is no issuing certificate that can be used, and says so.
    ///
    /// # Errors
    /// When the Secret of our own cannot be read or made.
    pub async fn open(&self, domain: &TrustDomain) -> Result<Kept, CaError> {
        let mut kept = self.beside.open(domain, SystemTime::now()).await?;
        // Before this issuer there may have been an authority of our own, whose leaves live on.
        let before = match kept.get(ROOTS) {
            Some(text) => Roots::read(text),
            None => {
                let own = self.beside.certificates_of_our_own().await?;
                own.map(|text| Roots::in_use(&text)).unwrap_or_default()
            }
        };
        let material = self.wait(domain).await;
        if !before.is_empty() && !before.know(&material.roots) {
            tracing::warn!(
                secret = %self.place_of(ROOT),
                "its root is not yet one that proxies have been told of. Certificates are issued under it at once, and until a proxy has learnt it (ConfigMap \
                 tulle-trust-bundle, within some minutes), it refuses them and the control plane's own; change roots while a control plane runs, which tells \
                 the new one first"
            );
        }
        let roots = self.remember(&material, &before, SystemTime::now()).await?;
        kept.extend(material.kept(&roots));
        Ok(kept)
    }

    async fn wait(&self, domain: &TrustDomain) -> Material {
        let mut told: Option<(String, Instant)> = None;
        loop {
            let why = match asked(self.secrets.get_opt(&self.name)).await {
                Ok(Some(secret)) => match self.read(&secret, domain, SystemTime::now()) {
                    Ok(material) => return material,
                    Err(error) => error.to_string(),
                },
                Ok(None) => format!(
                    "{}: there is none yet; cert-manager makes it for a Certificate with this secretName: `kubectl -n {} describe certificate` says what \
                     keeps it from that",
                    self.place_of(""),
                    self.namespace
                ),
                Err(error) => format!("{}: {error}", self.place_of("")),
            };
            if told.as_ref().is_none_or(|(said, at)| *said != why || at.elapsed() >= SAY) {
                tracing::warn!(%why, "no certificates can be issued yet: waiting for the issuing certificate");
                told = Some((why, Instant::now()));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What is in the Secret, if it can be used as it is.
    fn read(
        &self,
        secret: &core::Secret,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Material, CaError> {
        let key = self.field(secret, KEY)?.ok_or_else(|| self.refused(KEY, "it is missing", MADE_ANEW))?;
        let key = Zeroizing::new(key);
        let chain = self.certificates(secret, CERTIFICATE)?;
        let chain = chain.ok_or_else(|| self.refused(CERTIFICATE, "it is missing", MADE_ANEW))?;
        let certificates = format!("{chain}\n{}", self.certificates(secret, ROOT)?.unwrap_or_default());
        let authority = Authority::from_pem(&key, &certificates, domain, now);
        let authority = authority.map_err(|why| self.unusable(&why))?;
        let roots = authority.bundle().roots().iter().map(pem::encode_certificate).collect();
        Ok(Material { key, certificates, roots })
    }

    /// `None` if it is not there, or empty.
    fn field(&self, secret: &core::Secret, field: &str) -> Result<Option<String>, CaError> {
        let found = secret.data.as_ref().and_then(|data| data.get(field));
        let Some(ByteString(bytes)) = found.filter(|found| !found.0.is_empty()) else { return Ok(None) };
        let text = std::str::from_utf8(bytes).map_err(|error| self.refused(field, error, MADE_ANEW))?;
        Ok(Some(text.to_owned()))
    }

    fn certificates(&self, secret: &core::Secret, field: &str) -> Result<Option<String>, CaError> {
        let text = self.field(secret, field)?;
        if let Some(text) = &text {
            pem::certificates(text).map_err(|error| self.refused(field, error, MADE_ANEW))?;
        }
        Ok(text)
    }

    /// Whose fault it is, and what helps.
    fn unusable(&self, why: &AuthorityError) -> CaError {
        let (field, remedy) = match why {
            AuthorityError::Key(_) => {
                (KEY, "give the Certificate a privateKey of the algorithm ECDSA, of the size 256 or 384")
            }
            AuthorityError::OtherKey(_) => (CERTIFICATE, MADE_ANEW),
            AuthorityError::NotCa(_) => (
                CERTIFICATE,
                "give the Certificate isCA: true and the usage \"cert sign\", and an issuer that grants them",
            ),
            AuthorityError::NoRoot(_) => (
                ROOT,
                "it must hold the self-signed root, and tls.crt all between: put the whole chain into the Secret of the issuer, or take an issuer that tells its root",
            ),
            AuthorityError::NotValidNow { .. } => (
                CERTIFICATE,
                "`kubectl describe certificate` says what keeps cert-manager from renewing it; a certificate of the issuer's own is renewed where it was made",
            ),
            AuthorityError::PathLength { .. } => {
                (CERTIFICATE, "then delete the Secret, and cert-manager makes it anew")
            }
            AuthorityError::Unusable(_) => (
                CERTIFICATE,
                "what stands above it must allow it to issue: look at name constraints and extended key usages, the issuer's own too",
            ),
            _ => (CERTIFICATE, MADE_ANEW),
        };
        self.refused(field, why, remedy)
    }

    fn refused(&self, field: &str, why: impl std::fmt::Display, remedy: &str) -> CaError {
        CaError::Store { place: self.place_of(field), why: format!("{why}; {remedy}") }
    }

    fn place_of(&self, field: &str) -> String {
        let field = if field.is_empty() { String::new() } else { format!(", key {field}") };
        format!("Secret {}/{}{field}", self.namespace, self.name)
    }

    /// Keeps in mind which roots there are, for every replica and the next start; `before` is for when nothing has been kept yet.
    async fn remember(&self, material: &Material, before: &Roots, now: SystemTime) -> Result<Roots, CaError> {
        let until = now + self.lifetime + SLACK;
        let seen = Mutex::new(Roots::default());
        let change = |kept: Option<&str>| {
            let known = kept.map_or_else(|| before.clone(), Roots::read);
            let next = known.with(&material.roots, until, now);
            let text = (kept.is_none() || next != known).then(|| next.to_text());
            *seen.lock() = next;
            text
        };
        self.beside.change(ROOTS, &change).await?;
        Ok(seen.into_inner())
    }

    /// Tells `ca` what cert-manager writes. Runs until it is dropped.
    pub async fn watch(self, ca: Ca) {
        let seen = follow_object(self.secrets.clone(), &self.name);
        pin_mut!(seen);
        let mut refused = WatchFailures::of(format!("the {}", self.place_of("")));
        let mut good: Option<Material> = None;
        // When there is something to do, though nothing is seen.
        let mut due = Instant::now();
        let (mut settled, mut failures) = (due, 0);
        loop {
            tokio::select! {
                next = seen.next() => match next {
                    Some(Ok(Some(secret))) => {
                        refused.worked();
                        match self.read(&secret, ca.trust_domain(), SystemTime::now()) {
                            Ok(material) => {
                                good = Some(material);
                                due = Instant::now();
                            }
                            Err(error) => {
                                tracing::error!(%error, "the issuing certificate cannot be used; what is in use stays");
                            }
                        }
                    }
                    Some(Ok(None)) => {
                        refused.worked();
                        tracing::error!(
                            secret = %self.place_of(""),
                            "the Secret with the issuing certificate is gone; what is in use stays, and cert-manager makes another while there is a Certificate for it"
                        );
                    }
                    Some(Err(error)) => refused.tell(&error),
                    None => return,
                },
                () = tokio::time::sleep_until(due), if good.is_some() => {
                    let Some(material) = &good else { continue };
                    match self.take_up(&ca, material, &mut settled).await {
                        Ok(next) => {
                            failures = 0;
                            due = next;
                        }
                        Err(error) => {
                            failures += 1;
                            tracing::error!(%error, "cannot take up the issuing certificate; what is in use stays, and it is tried again");
                            due = Instant::now() + backoff(failures);
                        }
                    }
                },
            }
        }
    }

    /// Has `ca` issue with it, but not before its root has been told until `settled`. Says when there is more to do.
    async fn take_up(&self, ca: &Ca, material: &Material, settled: &mut Instant) -> Result<Instant, CaError> {
        let now = SystemTime::now();
        // What somebody has taken away meanwhile is known here.
        let before = ca.kept().get(ROOTS).map(|text| Roots::read(text)).unwrap_or_default();
        let roots = self.remember(material, &before, now).await?;
        let told: Vec<String> = ca.bundle().roots().iter().map(pem::encode_certificate).collect();
        let more: Vec<&str> =
            material.roots.iter().filter(|root| !told.contains(root)).map(String::as_str).collect();
        if !more.is_empty() {
            let certificates = ca.kept().remove(CA_CERTIFICATES).unwrap_or_default();
            let certificates = Zeroizing::new(format!("{}\n{}", certificates.as_str(), more.concat()));
            let both = Kept::from([(CA_CERTIFICATES, certificates)]);
            match ca.take_in(both, &[CA_CERTIFICATES], now) {
                Ok(()) => {
                    tracing::info!(secret = %self.place_of(""), "its root is new: it is told now, and certificates are issued under it in {:?}", self.settle);
                    *settled = Instant::now() + self.settle;
                }
                // What was in use is so no more.
                Err(error) => {
                    tracing::warn!(%error, "its root is new, and certificates are issued under it at once")
                }
            }
        }
        if *settled > Instant::now() {
            return Ok(*settled);
        }
        ca.take_in(material.kept(&roots), &[CA_KEY, CA_CERTIFICATES, ROOTS], now)?;
        let next = roots.next_end().and_then(|end| end.duration_since(now).ok()).unwrap_or(LONGEST);
        Ok(Instant::now() + next.min(LONGEST) + Duration::from_secs(1))
    }
}

/// What helps where the parts do not fit.
const MADE_ANEW: &str = "delete the Secret, and cert-manager makes it anew";

#[tonic::async_trait]
impl Store for Issuer {
    fn place(&self, name: &str) -> String {
        match name {
            CA_KEY => self.place_of(KEY),
            CA_CERTIFICATES => self.place_of(CERTIFICATE),
            _ => self.beside.place(name),
        }
    }

    async fn change(&self, name: &'static str, change: &Change<'_>) -> Result<(), CaError> {
        self.beside.change(name, change).await
    }

    async fn replace(
        &self,
        texts: &[(&'static str, Zeroizing<String>)],
        name: &'static str,
        fits: &Condition<'_>,
    ) -> Result<bool, CaError> {
        self.beside.replace(texts, name, fits).await
    }

    fn rotates(&self) -> Result<(), String> {
        Err(format!(
            "cert-manager makes the issuing certificate, in the {}: change the root at its issuer, and both are trusted for as long as certificates under the old one live \
             (docs/kubernetes.md, \"An issuing certificate from cert-manager\")",
            self.place_of("")
        ))
    }
}

// === impl Material ===

impl Material {
    /// As the authority keeps it, with the roots that were before.
    fn kept(&self, roots: &Roots) -> Kept {
        let former: String = roots.former().collect();
        Kept::from([
            (CA_KEY, self.key.clone()),
            (CA_CERTIFICATES, Zeroizing::new(format!("{}\n{former}", self.certificates))),
            (ROOTS, Zeroizing::new(roots.to_text())),
        ])
    }
}

#[cfg(test)]
mod tests;
