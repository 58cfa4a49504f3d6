//! A new root at once, in the place of one that has ended: `tulle identity repair`.
//!
//! Nobody can verify anything by a root that has ended, so there is nothing to wait for, and nothing that could vouch for its successor: who has the old root's pin, or
//! its bundle in a file, must be given another. Decides whether that is needed, and what is written in which order, so that a repair that is
//! broken off is taken up by the next start of the control plane or by another repair. Called by the command, on a state folder that no control plane has locked, and on
//! the Secret ([`crate::cluster`]).

use std::path::Path;
use std::time::SystemTime;

use tulle_certs::issue::{Authority, ROOT_LIFETIME, roots_in, stored_root, stored_roots};
use tulle_certs::{Pin, PrivateKey, TrustDomain, pem};
use zeroize::Zeroizing;

use super::issuing;
use super::record::{Change, Next, Record, State, Why, seconds};
use crate::ca::CaError;
use crate::ca::store::folder::Folder;
use crate::ca::store::{self, CA_CERTIFICATES, CA_KEY, Kept, ROTATION};
use crate::state_dir::{StateDir, StateDirError};

/// How it is with what is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// There is no authority.
    Absent,
    /// It can be used.
    None,
    /// Its root, which is the control plane's own, has ended.
    Ended(String),
    /// It has not begun: a clock is wrong, this one as a rule.
    Early(String),
    /// It is an intermediate that has ended, or stands under a root that has: whoever made it can make another.
    Given(String),
    /// It cannot be used for another reason.
    Unusable(String),
}

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The new root's pin.
    pub pin: Pin,
    /// The old one's, as far as it is known.
    pub from: Option<Pin>,
    /// Whom the new one vouches for.
    pub trust_domain: TrustDomain,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// There is nothing to repair.
    #[error("{0}: there is no authority to repair; the control plane makes one at its first start")]
    Absent(String),
    /// It works.
    #[error(
        "{0}: the authority is good, and every workload would have to be given another root: change it by `tulle identity rotate-root`, or insist by --force"
    )]
    Unneeded(String),
    /// It may be repaired in a better way.
    #[error("{0}; if a new root of the control plane's own is to take its place, insist by --force")]
    Insist(String),
    /// The folder cannot be had.
    #[error("the control plane has to be stopped for this: {0}")]
    Folder(#[from] StateDirError),
    /// What is kept cannot be read or written.
    #[error(transparent)]
    Ca(#[from] CaError),
}

/// What is to be kept in place of what is: by name, in the order of writing.
pub(crate) struct Anew {
    pub(crate) done: Repaired,
    pub(crate) steps: [(&'static str, Zeroizing<String>); 4],
}

/// How it is with `kept`, at `now`.
pub(crate) fn need(
    kept: &Kept,
    place: &dyn Fn(&str) -> String,
    domain: &TrustDomain,
    now: SystemTime,
) -> Need {
    if !kept.contains_key(CA_KEY) && !kept.contains_key(CA_CERTIFICATES) {
        return Need::Absent;
    }
    match issuing::in_effect(kept, place, domain, now) {
        Ok(_) => Need::None,
        Err(error @ CaError::Expired { .. }) if is_root(kept) => match is_early(kept, now) {
            true => Need::Early(format!(
                "{error}. This one has not expired but is yet to begin: mend the clock, and it is good again"
            )),
            false => Need::Ended(error.to_string()),
        },
        Err(error @ CaError::Expired { .. }) => Need::Given(format!(
            "{error}; it is an intermediate, or stands under another's root: put a renewed one there, with its key and those above it"
        )),
        Err(error) => Need::Unusable(error.to_string()),
    }
}

/// Whether a root issues by itself.
fn is_root(kept: &Kept) -> bool {
    let (Some(key), Some(certificates)) = (kept.get(CA_KEY), kept.get(CA_CERTIFICATES)) else { return false };
    let issuer = PrivateKey::from_pem(key).map(|key| Pin::of_spki(&key.public_key()));
    let root = stored_root(key, certificates).map(|(pin, _)| pin);
    issuer.ok().zip(root.ok()).is_some_and(|(issuer, root)| issuer == root)
}

/// Whether the root is yet to begin.
fn is_early(kept: &Kept, now: SystemTime) -> bool {
    let (Some(key), Some(certificates)) = (kept.get(CA_KEY), kept.get(CA_CERTIFICATES)) else { return false };
    let root = stored_roots(key, certificates).ok().and_then(|roots| roots.into_iter().next());
    root.and_then(|root| tulle_certs::validity(&root).ok()).is_some_and(|(from, _)| from > now)
}

/// A new root in the place of what is kept.
///
/// # Errors
/// When no key can be made.
pub(crate) fn made_anew(
    kept: &Kept,
    place: &dyn Fn(&str) -> String,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Anew, CaError> {
    let in_authority = |why| store::in_authority(place, why);
    let authority = Authority::generate(domain, ROOT_LIFETIME, now).map_err(in_authority)?;
    let pin = authority.pin().map_err(in_authority)?;
    let certificate = pem::encode_certificate(authority.root());
    let key = authority.key().to_pem();
    let old = match (kept.get(CA_KEY), kept.get(CA_CERTIFICATES)) {
        (Some(key), Some(certificates)) => {
            stored_roots(key, certificates).or_else(|_| roots_in(certificates)).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let old = old.into_iter().next();
    let from = old.as_ref().and_then(|root| Pin::of(root).ok());
    let next =
        Next { pin: pin.to_string(), key: key.clone(), certificate: certificate.clone(), bridge: None };
    let change = Change {
        from: from.map(|pin| pin.to_string()).unwrap_or_default(),
        root: old.as_ref().map_or_else(|| certificate.clone(), pem::encode_certificate),
        next,
        since: seconds(now),
        why: Why::Repair,
    };
    let lifetime = issuing::kept_record(kept, place).map_or(0, |record| record.lifetime);
    // Nothing leads from former roots to this one.
    let begun = Record { state: State::Retired(change), lifetime, ..Record::default() };
    let steps = [
        (ROTATION, Zeroizing::new(begun.to_text())),
        (CA_KEY, key),
        (CA_CERTIFICATES, Zeroizing::new(certificate)),
        (ROTATION, Zeroizing::new(begun.completed(now).to_text())),
    ];
    Ok(Anew { done: Repaired { pin, from, trust_domain: domain.clone() }, steps })
}

/// The trust domain that the root that is kept was made for.
pub(crate) fn domain_of(kept: &Kept) -> Option<TrustDomain> {
    stored_root(kept.get(CA_KEY)?, kept.get(CA_CERTIFICATES)?).ok()?.1
}

/// Whether a repair is to be done.
///
/// # Errors
/// Why not, unless somebody insists.
pub(crate) fn admit(need: Need, place: String, insists: bool) -> Result<(), RepairError> {
    match need {
        Need::Absent => Err(RepairError::Absent(place)),
        Need::Ended(_) => Ok(()),
        _ if insists => Ok(()),
        Need::None => Err(RepairError::Unneeded(place)),
        Need::Given(why) | Need::Early(why) | Need::Unusable(why) => Err(RepairError::Insist(why)),
    }
}

/// Repairs what a state folder holds. `domain`: of the new root, where the old one does not say it. `insists`: also where it is good, or could be mended otherwise.
///
/// # Errors
/// Why nothing was done, or what could not be written; then it may be done again.
pub fn repair_folder(
    state_dir: &Path,
    domain: Option<&TrustDomain>,
    insists: bool,
    now: SystemTime,
) -> Result<Repaired, RepairError> {
    let folder = Folder::new(state_dir);
    let place = |name: &str| folder.path_of(name);
    if !state_dir.join(CA_CERTIFICATES).exists() && !state_dir.join(CA_KEY).exists() {
        return Err(RepairError::Absent(state_dir.display().to_string()));
    }
    let lock = StateDir::open(state_dir)?;
    let mut kept = folder.read()?;
    let domain = domain.cloned().or_else(|| domain_of(&kept)).unwrap_or_default();
    admit(need(&kept, &place, &domain, now), state_dir.display().to_string(), insists)?;
    let Anew { done, steps } = made_anew(&kept, &place, &domain, now)?;
    for (name, text) in steps {
        kept.insert(name, text);
        folder.write(&kept, &[name])?;
    }
    lock.release();
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::ca::Ca;

    const DAY: Duration = Duration::from_secs(86_400);

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn domain() -> TrustDomain {
        TrustDomain::new("prod.example").unwrap()
    }

    /// A state folder whose root ended a day ago.
    fn ended() -> (tempfile::TempDir, Pin) {
        made_at(now() - 2 * DAY)
    }

    /// A state folder with a root that was made then, for a day.
    fn made_at(then: SystemTime) -> (tempfile::TempDir, Pin) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::generate(&domain(), DAY, then).unwrap();
        let kept = Kept::from([
            (CA_CERTIFICATES, Zeroizing::new(authority.to_pem())),
            (CA_KEY, authority.key().to_pem()),
        ]);
        Folder::new(dir.path()).write(&kept, &[CA_CERTIFICATES, CA_KEY]).unwrap();
        (dir, authority.pin().unwrap())
    }

    #[test]
    fn a_root_that_has_ended_is_replaced_by_one_of_the_same_trust_domain() {
        let (dir, old) = ended();
        let error = Ca::open(dir.path(), &domain(), now()).unwrap_err().to_string();
        assert!(error.contains("ca.pem") && error.contains("tulle identity repair"), "{error}");
        let repaired = repair_folder(dir.path(), None, false, now()).unwrap();
        assert_eq!((repaired.from, &repaired.trust_domain), (Some(old), &domain()));
        let ca = Ca::open(dir.path(), &domain(), now()).unwrap();
        assert_eq!(ca.pin(), repaired.pin);
        assert_eq!(ca.bundle().pins(), [repaired.pin]);
        assert!(ca.record().is_idle());
        let error = repair_folder(dir.path(), None, false, now()).unwrap_err();
        assert!(matches!(error, RepairError::Unneeded(_)), "{error}");
    }

    #[test]
    fn a_clock_that_is_behind_costs_nobody_a_root() {
        let (dir, pin) = made_at(now() + 400 * DAY);
        let error = repair_folder(dir.path(), None, false, now()).unwrap_err();
        assert!(matches!(error, RepairError::Insist(_)), "{error}");
        assert!(error.to_string().contains("mend the clock, and it is good again"), "{error}");
        assert_eq!(Ca::open(dir.path(), &domain(), now() + 400 * DAY).unwrap().pin(), pin);
        assert_ne!(repair_folder(dir.path(), None, true, now()).unwrap().pin, pin);
    }

    #[test]
    fn a_repair_that_is_broken_off_is_taken_up_by_the_next_start() {
        for broken_off in 1..4 {
            let (dir, _) = ended();
            let folder = Folder::new(dir.path());
            let mut kept = folder.read().unwrap();
            let place = |name: &str| name.to_owned();
            let Anew { done, steps } = made_anew(&kept, &place, &domain(), now()).unwrap();
            for (name, text) in steps.into_iter().take(broken_off) {
                kept.insert(name, text);
                folder.write(&kept, &[name]).unwrap();
            }
            let ca = Ca::open(dir.path(), &domain(), now()).unwrap();
            assert_eq!(ca.pin(), done.pin, "after {broken_off} files");
            assert_eq!(ca.bundle().pins(), [done.pin], "after {broken_off} files");
        }
    }

    #[test]
    fn what_is_good_given_or_in_use_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let error = repair_folder(dir.path(), None, true, now()).unwrap_err();
        assert!(matches!(error, RepairError::Absent(_)), "{error}");
        Ca::open(dir.path(), &domain(), now()).unwrap();
        let error = repair_folder(dir.path(), None, false, now()).unwrap_err();
        assert!(error.to_string().contains("rotate-root"), "{error}");
        let lock = StateDir::open(dir.path()).unwrap();
        let error = repair_folder(dir.path(), None, true, now()).unwrap_err();
        assert!(matches!(error, RepairError::Folder(_)) && error.to_string().contains("stopped"), "{error}");
        lock.release();
        assert!(repair_folder(dir.path(), None, true, now()).is_ok());
        // A key of somebody else's.
        std::fs::write(dir.path().join(CA_KEY), PrivateKey::generate().unwrap().to_pem().as_bytes()).unwrap();
        let error = repair_folder(dir.path(), Some(&domain()), false, now()).unwrap_err();
        assert!(matches!(error, RepairError::Insist(_)), "{error}");
        let repaired = repair_folder(dir.path(), Some(&domain()), true, now()).unwrap();
        assert_eq!(Ca::open(dir.path(), &domain(), now()).unwrap().pin(), repaired.pin);
    }
}
