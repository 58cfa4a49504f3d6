//! The webhook's certificates: a small authority of its own, since the mesh's may be foreign, and the certificate that replicas serve with.
//!
//! What is stored ([`Stored`], in the Secret `tulle-webhook`) is read by every replica; one, the lease holder, goes on with it step by step ([`step`],
//! pure): an authority is made where there is none or at two thirds of the old one's life, *then* told to the API server beside the old one
//! (`caBundle`), *then* used, so that there is no moment at which the API server meets a certificate that it does not trust. Old ones
//! are taken away once they have expired. Where the Secret is lost or damaged, what the API server trusts stays beside the new authority: replicas serve with
//! the certificate from before until they have read the new one.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use tokio::sync::watch;
use tulle_certs::serving::{Serving, ServingAuthority, ServingError, split_pem, validity_of_pem};
use zeroize::Zeroizing;

/// The Secret, and the MutatingWebhookConfiguration.
pub const NAME: &str = "tulle-webhook";
/// How long an authority lives.
pub const AUTHORITY: Duration = Duration::from_secs(365 * 86_400);
/// How long a certificate lives.
pub const CERTIFICATE: Duration = Duration::from_secs(90 * 86_400);
/// What the webhook speaks.
const ALPN: [&[u8]; 2] = [b"h2", b"http/1.1"];
/// How often everybody looks.
const LOOK: Duration = Duration::from_secs(5);
/// How long what was told to the API server has to reach every one of it.
const SPREAD: Duration = Duration::from_secs(60);
/// Of what the API server trusted before the Secret was lost, so many are kept.
const KEPT: usize = 3;
/// After a failure.
const RETRY: Duration = Duration::from_secs(5);

/// What is stored: PEM throughout.
#[derive(Clone, PartialEq, Eq)]
pub struct Stored {
    /// The authorities that are to be trusted, newest first (`ca.crt`).
    pub authorities: String,
    /// The key of the newest (`ca.key`).
    pub authority_key: Zeroizing<String>,
    /// What replicas serve with (`tls.crt`).
    pub certificate: String,
    /// Its key (`tls.key`).
    pub key: Zeroizing<String>,
}

/// What is to be done next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// This is to be stored in place of what is.
    Store(Stored),
    /// The API server is to trust this.
    Publish(String),
    /// Nothing for now.
    Rest,
}

/// Where it is stored, and where the API server is told. Conflicting writes fail: the next look sees what has come of it.
pub trait Store: Send + Sync {
    /// What is stored, with its version.
    fn read(&self) -> impl Future<Output = Result<Option<(Stored, String)>, String>> + Send;

    /// Stores in place of the version that was read; none: there is nothing yet.
    fn write(
        &self,
        stored: &Stored,
        version: Option<&str>,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// What the API server trusts; `None` if there is no webhook configuration.
    fn published(&self) -> impl Future<Output = Result<Option<String>, String>> + Send;

    /// Tells it.
    fn publish(&self, bundle: &str) -> impl Future<Output = Result<(), String>> + Send;
}

/// What goes on, given what is stored and what the API server trusts (`None`: it calls no webhook yet). `names`: those by which it calls.
///
/// # Errors
/// When no certificate can be made.
pub fn step(
    stored: Option<&Stored>,
    published: Option<&str>,
    names: &[String],
    now: SystemTime,
) -> Result<Step, ServingError> {
    let Some(read) = stored.and_then(|stored| Read::of(stored, now)) else {
        let authority = ServingAuthority::generate("Tulle webhook", AUTHORITY, now)?;
        let serving = authority.issue(names, CERTIFICATE, now)?;
        let mut authorities = vec![authority.certificate_pem()];
        authorities.extend(valid(published.unwrap_or_default(), now).into_iter().take(KEPT));
        return Ok(Step::Store(Stored::of(&authorities, &authority, &serving)));
    };
    let trusted = read.authorities.concat();
    if let Some(published) = published
        && published != trusted
    {
        return Ok(Step::Publish(trusted));
    }
    if read.is_expired {
        return Ok(Step::Store(Stored::of(&read.authorities, &read.authority, &read.serving)));
    }
    if is_due(read.authority_life, now) {
        let authority = ServingAuthority::generate("Tulle webhook", AUTHORITY, now)?;
        let mut authorities = vec![authority.certificate_pem()];
        authorities.extend(read.authorities);
        // What is served stays the old one's until the API server trusts the new one.
        return Ok(Step::Store(Stored::of(&authorities, &authority, &read.serving)));
    }
    let is_good = read.authority.has_issued(&read.serving)
        && read.serving.names() == names
        && read.serving.validity().is_some_and(|life| !is_due(life, now));
    if is_good || published.is_none() {
        return Ok(Step::Rest);
    }
    let serving = read.authority.issue(names, CERTIFICATE, now)?;
    Ok(Step::Store(Stored::of(&read.authorities, &read.authority, &serving)))
}

/// Of certificates those that have not expired.
fn valid(pem: &str, now: SystemTime) -> Vec<String> {
    let mut all = split_pem(pem).unwrap_or_default();
    all.retain(|pem| validity_of_pem(pem).is_ok_and(|(_, until)| until > now));
    all
}

/// At two thirds of its life.
fn is_due((from, until): (SystemTime, SystemTime), now: SystemTime) -> bool {
    let life = until.duration_since(from).unwrap_or_default();
    now >= from + life * 2 / 3
}

/// The names by which the API server calls the control plane's Service.
pub fn names(namespace: &str) -> Vec<String> {
    vec![format!("tulle-control-plane.{namespace}.svc")]
}

struct Read {
    /// Those that have not expired.
    authorities: Vec<String>,
    /// One has.
    is_expired: bool,
    authority: ServingAuthority,
    authority_life: (SystemTime, SystemTime),
    serving: Serving,
}

// === impl Read ===

impl Read {
    /// `None`: it cannot be used any more, or never could.
    fn of(stored: &Stored, now: SystemTime) -> Option<Self> {
        let all = split_pem(&stored.authorities).ok()?;
        let life = |pem: &String| validity_of_pem(pem).ok();
        let authority_life = life(all.first()?).filter(|(_, until)| *until > now)?;
        let kept = all.iter().filter(|pem| life(pem).is_some_and(|(_, until)| until > now));
        let authorities: Vec<String> = kept.cloned().collect();
        Some(Self {
            is_expired: authorities.len() < all.len(),
            authority: ServingAuthority::from_pem(&stored.authority_key, all.first()?).ok()?,
            authorities,
            authority_life,
            serving: Serving::from_pem(&stored.key, &stored.certificate).ok()?,
        })
    }
}

// === impl Stored ===

impl Stored {
    fn of(authorities: &[String], authority: &ServingAuthority, serving: &Serving) -> Self {
        Self {
            authorities: authorities.concat(),
            authority_key: authority.key_pem(),
            certificate: serving.chain_pem(),
            key: serving.key_pem(),
        }
    }

    /// TLS of the webhook.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn server_config(&self) -> Result<Arc<ServerConfig>, ServingError> {
        Serving::from_pem(&self.key, &self.certificate)?.server_config(&ALPN)
    }
}

impl std::fmt::Debug for Stored {
    /// Without keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stored").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Reads what is stored, for ever, and serves with it; goes on with it while `leads` says so.
pub async fn keep(
    store: impl Store,
    names: Vec<String>,
    mut leads: watch::Receiver<bool>,
    serves: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let mut current = None;
    loop {
        let leading = *leads.borrow_and_update();
        let wait = match turn(&store, &names, leading, &serves, &mut current).await {
            Ok(Done::Stored) => continue,
            Ok(Done::Published) => SPREAD,
            Ok(Done::Nothing) => LOOK,
            Err(error) => {
                tracing::warn!(%error, "the webhook's certificates cannot be kept; trying again");
                RETRY
            }
        };
        // Until there is one, replicas wait for the one that leads.
        let wait = if current.is_some() { wait } else { RETRY.min(wait) };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            changed = leads.changed() => if changed.is_err() {
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// What came of one look.
enum Done {
    /// There may be more to do at once.
    Stored,
    /// What follows waits until every API server knows.
    Published,
    Nothing,
}

/// One look.
async fn turn(
    store: &impl Store,
    names: &[String],
    leads: bool,
    serves: &watch::Sender<Option<Arc<ServerConfig>>>,
    current: &mut Option<Stored>,
) -> Result<Done, String> {
    let read = store.read().await?;
    let (stored, version) = read.map_or((None, None), |(stored, version)| (Some(stored), Some(version)));
    if stored.is_some() && stored != *current {
        match stored.as_ref().map(Stored::server_config) {
            Some(Ok(config)) => {
                serves.send_replace(Some(config));
                tracing::info!("the webhook serves with a new certificate");
                current.clone_from(&stored);
            }
            Some(Err(error)) => {
                tracing::error!(%error, "the Secret {NAME} holds no certificate that can be served with");
            }
            None => {}
        }
    }
    if !leads {
        return Ok(Done::Nothing);
    }
    let published = store.published().await?;
    let next = step(stored.as_ref(), published.as_deref(), names, SystemTime::now());
    match next.map_err(|error| error.to_string())? {
        Step::Store(next) => {
            store.write(&next, version.as_deref()).await?;
            Ok(Done::Stored)
        }
        Step::Publish(bundle) => {
            store.publish(&bundle).await?;
            tracing::info!("the API server is told whom to trust as the webhook");
            Ok(Done::Published)
        }
        Step::Rest => Ok(Done::Nothing),
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    /// Goes on until there is nothing to do; what is stored and told then. Each intermediate state must be one in which what is served is trusted.
    fn settle(stored: &mut Option<Stored>, published: &mut String, now: SystemTime) -> usize {
        let names = names("tulle-system");
        for steps in 0.. {
            match step(stored.as_ref(), Some(published), &names, now).unwrap() {
                Step::Store(next) => *stored = Some(next),
                Step::Publish(bundle) => *published = bundle,
                Step::Rest => return steps,
            }
            let read = Read::of(stored.as_ref().unwrap(), now).unwrap();
            let trusted = split_pem(published).unwrap_or_default();
            let is_trusted = trusted.iter().any(|pem| {
                let authority = read.authorities.iter().find(|known| *known == pem);
                authority.is_some() && issued_by(pem, &read.serving)
            });
            assert!(is_trusted || published.is_empty(), "step {steps}");
            assert!(steps < 10, "it never rests");
        }
        unreachable!("the range has no end")
    }

    fn issued_by(authority: &str, serving: &Serving) -> bool {
        use tulle_certs::serving::issued_by_pem;
        issued_by_pem(authority, serving)
    }

    #[test]
    fn an_authority_is_made_told_and_used_in_this_order() {
        let now = SystemTime::now();
        let (mut stored, mut published) = (None, String::new());
        assert_eq!(settle(&mut stored, &mut published, now), 2);
        let first = stored.clone().unwrap();
        assert_eq!(published, first.authorities);
        first.server_config().unwrap();
        // Nothing changes for a while.
        assert_eq!(settle(&mut stored, &mut published, now + DAY * 50), 0);
        // The certificate is renewed, by the same authority.
        assert_eq!(settle(&mut stored, &mut published, now + DAY * 61), 1);
        assert_eq!(stored.as_ref().unwrap().authorities, first.authorities);
        assert_ne!(stored.as_ref().unwrap().certificate, first.certificate);
        // Two authorities, and the newer one's certificate.
        let later = now + DAY * 244;
        settle(&mut stored, &mut published, later);
        assert_eq!(split_pem(&published).unwrap().len(), 2);
        // And the old one goes once it has expired.
        settle(&mut stored, &mut published, now + DAY * 366);
        assert_eq!(split_pem(&published).unwrap().len(), 1);
        assert!(!published.contains(&first.authorities));
    }

    #[test]
    fn what_a_replica_makes_whose_clock_is_hours_off_is_valid_by_the_api_servers_clock() {
        let now = SystemTime::now();
        for (what, made) in [("ahead", now + DAY / 2), ("ahead", now + DAY / 24), ("behind", now - DAY / 2)] {
            let (mut stored, mut published) = (None, String::new());
            settle(&mut stored, &mut published, made);
            let read = Read::of(stored.as_ref().unwrap(), made).unwrap();
            let lives = [read.authority_life, read.serving.validity().unwrap()];
            assert!(lives.iter().all(|(from, until)| *from < now && now < *until), "{what}: {lives:?}");
            // And a replica whose clock is right has nothing to change.
            assert_eq!(settle(&mut stored, &mut published, now), 0, "{what}");
        }
    }

    #[test]
    fn what_is_broken_missing_or_long_expired_is_made_anew() {
        let now = SystemTime::now();
        let (mut stored, mut published) = (None, String::new());
        settle(&mut stored, &mut published, now);
        let good = stored.clone().unwrap();
        for broken in [
            Stored { authorities: "rubbish".to_owned(), ..good.clone() },
            Stored { authority_key: good.key.clone(), ..good.clone() },
            Stored { certificate: String::new(), ..good.clone() },
            Stored { key: Zeroizing::new(String::new()), ..good.clone() },
        ] {
            let (mut stored, mut published) = (Some(broken), good.authorities.clone());
            assert_eq!(settle_anew(&mut stored, &mut published, now), 2);
            stored.unwrap().server_config().unwrap();
            assert!(published.ends_with(&good.authorities), "replicas still serve with what it has issued");
        }
        let (mut stored, mut published) = (Some(good.clone()), good.authorities.clone());
        settle_anew(&mut stored, &mut published, now + DAY * 1000);
        assert_ne!(published, good.authorities);
    }

    /// As [`settle`], where nothing that was served before can be kept.
    fn settle_anew(stored: &mut Option<Stored>, published: &mut String, now: SystemTime) -> usize {
        let names = names("tulle-system");
        let Step::Store(next) = step(stored.as_ref(), Some(published), &names, now).unwrap() else {
            panic!("nothing is made")
        };
        *stored = Some(next);
        let Step::Publish(bundle) = step(stored.as_ref(), Some(published), &names, now).unwrap() else {
            panic!("nothing is told")
        };
        *published = bundle;
        2 + settle(stored, published, now)
    }

    #[test]
    fn other_names_get_another_certificate_and_no_configuration_waits() {
        let now = SystemTime::now();
        let (mut stored, mut published) = (None, String::new());
        settle(&mut stored, &mut published, now);
        let other = names("elsewhere");
        assert_eq!(step(stored.as_ref(), None, &other, now).unwrap(), Step::Rest);
        let Step::Store(next) = step(stored.as_ref(), Some(&published), &other, now).unwrap() else {
            panic!("the certificate is of other names")
        };
        assert_eq!(Serving::from_pem(&next.key, &next.certificate).unwrap().names(), other);
    }

    #[derive(Default)]
    struct Memory {
        stored: Mutex<Option<(Stored, u64)>>,
        published: Mutex<String>,
        fails: Mutex<u32>,
    }

    impl Store for Arc<Memory> {
        async fn read(&self) -> Result<Option<(Stored, String)>, String> {
            let mut fails = self.fails.lock();
            if *fails > 0 {
                *fails -= 1;
                return Err("the API server is away".to_owned());
            }
            Ok(self.stored.lock().clone().map(|(stored, version)| (stored, version.to_string())))
        }
        async fn write(&self, stored: &Stored, version: Option<&str>) -> Result<(), String> {
            let mut known = self.stored.lock();
            if known.as_ref().map(|(_, version)| version.to_string()).as_deref() != version {
                return Err("conflict".to_owned());
            }
            let next = known.as_ref().map_or(0, |(_, version)| version + 1);
            *known = Some((stored.clone(), next));
            Ok(())
        }
        async fn published(&self) -> Result<Option<String>, String> {
            Ok(Some(self.published.lock().clone()))
        }
        async fn publish(&self, bundle: &str) -> Result<(), String> {
            *self.published.lock() = bundle.to_owned();
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_leads_writes_and_everybody_serves() {
        let memory = Arc::new(Memory::default());
        *memory.fails.lock() = 3;
        let mut seen = Vec::new();
        let mut lead = Vec::new();
        for _ in 0..2 {
            let (leads, led) = watch::channel(false);
            let (serves, served) = watch::channel(None);
            tokio::spawn(keep(Arc::clone(&memory), names("tulle-system"), led, serves));
            seen.push(served);
            lead.push(leads);
        }
        tokio::time::sleep(Duration::from_secs(300)).await;
        assert!(memory.stored.lock().is_none(), "nobody leads");
        lead[1].send_replace(true);
        for served in &mut seen {
            served.wait_for(Option::is_some).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(*memory.published.lock(), memory.stored.lock().as_ref().unwrap().0.authorities);
        assert_eq!(memory.stored.lock().as_ref().unwrap().1, 0, "written once");
    }
}
