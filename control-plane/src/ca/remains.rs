//! What is left of an authority's keys where somebody has taken away or destroyed a part of them, and what is to be written then.
//!
//! A replica that runs has all of it in memory. It may write it where nothing else can be meant: where something is missing or cannot be read, and all that can be read is
//! of the authority in use. What is somebody's own, whole or half, is never written over.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tulle_certs::issue::stored_root;
use tulle_certs::token::JoinTokens;
use tulle_certs::{PrivateKey, TrustDomain, pem};

use super::rotation::{self, Need, Record};
use super::store::{CA_CERTIFICATES, CA_KEY, Kept, ROTATION, TOKEN_KEY};
use super::{Ca, CaError};

/// A beginning of a text says whose it is from this length on: before it, in characters of PEM, all keys are alike, and certificates of one root.
const TELLING: usize = 160;

/// What is left of one of the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Missing,
    /// As it is in use.
    Ours,
    /// Of what is in use, and not all of it.
    Piece,
    /// Nobody can read it.
    Damaged,
    /// Something else, which can be read.
    Other,
}

// === impl Part ===

impl Part {
    fn of(name: &str, left: Option<&str>, ours: Option<&str>) -> Self {
        let Some(left) = left else { return Self::Missing };
        if ours == Some(left) {
            return Self::Ours;
        }
        let ours = ours.unwrap_or_default();
        let begun = left.trim_end();
        let unread = match begun.len() >= TELLING && ours.starts_with(begun) {
            true => Self::Piece,
            false => Self::Damaged,
        };
        match name {
            CA_KEY => match PrivateKey::from_pem(left) {
                Ok(key)
                    if PrivateKey::from_pem(ours).is_ok_and(|own| own.public_key() == key.public_key()) =>
                {
                    Self::Ours
                }
                Ok(_) => Self::Other,
                Err(_) => unread,
            },
            CA_CERTIFICATES => {
                let (found, known) = (readable(left), readable(ours));
                match found.iter().all(|certificate| known.contains(certificate)) {
                    false => Self::Other,
                    true if found.is_empty() => unread,
                    true => Self::Piece,
                }
            }
            TOKEN_KEY if JoinTokens::from_pem(left).is_err() => unread,
            ROTATION if Record::read(Some(left)).is_err() => unread,
            _ => Self::Other,
        }
    }

    /// It has to be written.
    fn is_lacking(self) -> bool {
        matches!(self, Self::Missing | Self::Piece | Self::Damaged)
    }
}

/// The certificates of a text that can be read, whatever else is in it.
fn readable(text: &str) -> Vec<CertificateDer<'static>> {
    let mut starts: Vec<usize> = text.match_indices("-----BEGIN ").map(|(at, _)| at).collect();
    starts.push(text.len());
    let blocks = starts.windows(2).filter_map(|pair| text.get(pair[0]..pair[1]));
    blocks.filter_map(|block| pem::certificates(block).ok()).flatten().collect()
}

fn text<'k>(kept: &'k Kept, name: &str) -> Option<&'k str> {
    kept.get(name).map(|text| text.as_str())
}

fn is_of_authority(name: &str) -> bool {
    matches!(name, CA_KEY | CA_CERTIFICATES)
}

/// Whether key and certificates fit, whatever their dates.
fn is_whole(kept: &Kept) -> bool {
    let (key, certificates) = (kept.get(CA_KEY), kept.get(CA_CERTIFICATES));
    key.zip(certificates).is_some_and(|(key, certificates)| stored_root(key, certificates).is_ok())
}

/// Why nothing can be opened with what is kept, where something is missing or cannot be read; not where it has only ended.
pub(crate) fn unusable(
    kept: &Kept,
    place: &dyn Fn(&str) -> String,
    domain: &TrustDomain,
    now: SystemTime,
) -> Option<String> {
    let missing = |name| Some(format!("{} is missing", place(name)));
    match (kept.contains_key(CA_KEY), kept.contains_key(CA_CERTIFICATES)) {
        (false, false) => return Some("there is no root in it".to_owned()),
        (false, true) => return missing(CA_KEY),
        (true, false) => return missing(CA_CERTIFICATES),
        (true, true) => {}
    }
    if let Need::Unusable(why) = rotation::need(kept, place, domain, now) {
        return Some(why);
    }
    let why = JoinTokens::from_pem(kept.get(TOKEN_KEY)?).err()?;
    Some(CaError::Tokens { place: place(TOKEN_KEY), why }.to_string())
}

// === impl Ca ===

impl Ca {
    /// What is to be written where somebody has taken something away of what is kept by these `names`, or destroyed it: `kept` with what is lacking of it.
    /// `None` if nothing is, or if something is there of an authority that is not in use, but for a whole one. Beside that, ours or somebody's new root, the key of join tokens and
    /// the grants stay: they are of no root. So does a rotation that is under way: without its record its keys would be lost.
    pub fn restored(&self, kept: &Kept, names: &[&'static str]) -> Option<Kept> {
        let rotates = !self.record().is_idle() || kept.contains_key(ROTATION);
        let needed = [CA_KEY, CA_CERTIFICATES, TOKEN_KEY].into_iter().chain(rotates.then_some(ROTATION));
        let mut all = self.kept();
        all.retain(|name, _| names.contains(name));
        let parts = needed.filter(|name| names.contains(name));
        let parts = parts.map(|name| (name, Part::of(name, text(kept, name), text(&all, name))));
        let parts: Vec<(&'static str, Part)> = parts.collect();
        let is_whole = !names.contains(&CA_KEY) || is_whole(kept);
        let lacking = parts.iter().filter(|(name, part)| {
            let is_good = is_whole && is_of_authority(name);
            part.is_lacking() && !is_good
        });
        let lacking: Vec<&'static str> = lacking.map(|(name, _)| *name).collect();
        if lacking.is_empty() {
            return None;
        }
        if !is_whole {
            let mut halves = parts.iter().filter(|(name, _)| is_of_authority(name)).map(|(_, part)| *part);
            let is_damaged = halves.clone().any(|part| part == Part::Damaged);
            let is_known = halves.any(|part| matches!(part, Part::Ours | Part::Piece));
            let has_other = parts.iter().any(|(_, part)| *part == Part::Other);
            // What nobody can read may be somebody's own, unless what is beside it is ours.
            if has_other || (is_damaged && !is_known) {
                return None;
            }
        }
        all.extend(
            kept.iter().filter(|(name, _)| !lacking.contains(name)).map(|(name, text)| (*name, text.clone())),
        );
        // What cannot be read and is not in use is emptied, which is as if it were not there.
        for name in lacking {
            all.entry(name).or_default();
        }
        Some(all)
    }
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::ca::NAMES;

    fn now() -> SystemTime {
        SystemTime::now()
    }

    fn opened() -> (tempfile::TempDir, Ca) {
        let dir = tempfile::tempdir().unwrap();
        let ca = Ca::open(dir.path(), &TrustDomain::default(), now()).unwrap();
        (dir, ca)
    }

    /// What is in use, but that this is by these names; `None`: it is missing.
    fn with(ca: &Ca, changes: &[(&'static str, Option<String>)]) -> Kept {
        let mut kept = ca.kept();
        for (name, text) in changes {
            let name = *name;
            match text {
                Some(text) => drop(kept.insert(name, Zeroizing::new(text.clone()))),
                None => drop(kept.remove(name)),
            }
        }
        kept
    }

    #[test]
    fn what_is_taken_away_or_destroyed_is_written_again_where_the_rest_is_ours() {
        let (_dir, ca) = opened();
        let ours = ca.kept();
        let half = |name: &str, tenths: usize| {
            let text = ours[name].as_str();
            Some(text[..text.len() * tenths / 10].to_owned())
        };
        let garbage = || Some("x".to_owned());
        let (key, certificates, tokens) = (CA_KEY, CA_CERTIFICATES, TOKEN_KEY);
        for (what, changes) in [
            ("everything is missing", &[(key, None), (certificates, None), (tokens, None)][..]),
            ("the key is missing", &[(key, None)]),
            ("the certificates are missing", &[(certificates, None)]),
            ("the key is cut off", &[(key, half(key, 9))]),
            ("of the key its header is left", &[(key, half(key, 2))]),
            ("the certificates are cut off", &[(certificates, half(certificates, 9))]),
            ("the certificates are garbage", &[(certificates, garbage())]),
            (
                "the certificates are cut off, and the key is missing",
                &[(certificates, half(certificates, 9)), (key, None)],
            ),
            ("the key of join tokens is garbage", &[(tokens, garbage())]),
            ("the key of join tokens is missing", &[(tokens, None)]),
        ] {
            let restored = ca.restored(&with(&ca, changes), &NAMES);
            assert_eq!(restored.as_ref(), Some(&ours), "{what}");
        }
        // A record that nobody can read, though no rotation is under way.
        let restored = ca.restored(&with(&ca, &[(ROTATION, garbage())]), &NAMES).unwrap();
        assert_eq!(restored[ROTATION].as_str(), "");
        assert_eq!(ca.restored(&ours, &NAMES), None, "nothing is lacking");
    }

    #[test]
    fn what_may_be_somebodys_own_is_left_as_it_is() {
        let ((_dir, ca), (_other_dir, other)) = (opened(), opened());
        let theirs = other.kept();
        let their = |name: &str| Some(theirs[name].to_string());
        let garbage = || Some("x".to_owned());
        let (key, certificates) = (CA_KEY, CA_CERTIFICATES);
        let both = format!("{}{}", ca.kept()[certificates].as_str(), theirs[certificates].as_str());
        for (what, changes) in [
            ("their key, and no certificates", &[(key, their(key)), (certificates, None)][..]),
            ("their key beside our certificates", &[(key, their(key))]),
            ("their certificates, and no key", &[(key, None), (certificates, their(certificates))]),
            ("their certificates beside our key", &[(certificates, their(certificates))]),
            ("their certificates beside ours, and no key", &[(key, None), (certificates, Some(both))]),
            ("garbage, and no key", &[(key, None), (certificates, garbage())]),
            ("garbage", &[(key, garbage()), (certificates, garbage())]),
            ("a whole one of theirs", &[(key, their(key)), (certificates, their(certificates))]),
        ] {
            assert_eq!(ca.restored(&with(&ca, changes), &NAMES), None, "{what}");
        }
        // Beside a whole one of theirs, the key of join tokens in use.
        let changes = [(key, their(key)), (certificates, their(certificates)), (TOKEN_KEY, None)];
        let restored = ca.restored(&with(&ca, &changes), &NAMES).unwrap();
        assert_eq!(restored[key], theirs[key]);
        assert_eq!(restored[TOKEN_KEY], ca.kept()[TOKEN_KEY]);
    }

    #[test]
    fn what_is_unusable_is_said_with_its_place() {
        let (_dir, ca) = opened();
        let place = |name: &str| format!("the Secret, key {name}");
        let why = |changes: &[(&'static str, Option<String>)]| {
            unusable(&with(&ca, changes), &place, ca.trust_domain(), now())
        };
        assert_eq!(why(&[]), None);
        for name in [CA_KEY, CA_CERTIFICATES] {
            assert_eq!(why(&[(name, None)]).unwrap(), format!("the Secret, key {name} is missing"));
        }
        for name in [CA_KEY, CA_CERTIFICATES, TOKEN_KEY] {
            let said = why(&[(name, Some("x".to_owned()))]).unwrap();
            assert!(said.starts_with(&place(name)), "{said}");
        }
    }
}
