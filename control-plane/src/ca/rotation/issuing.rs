//! Which authority is in use, by what is kept and by how far a rotation of the root is.
//!
//! | state | issues | trusted | shown behind the control plane's own certificate |
//! | --- | --- | --- | --- |
//! | idle | what is kept | its roots | former roots, each with its bridge |
//! | published | what is kept | its roots, the new one | the same |
//! | switched, draining | the new root, with the bridge | the same | the old root with the bridge, former ones |
//! | retired | the new root | further roots that are kept, the new one | former roots, each with its bridge |
//!
//! The order of the roots that are told does not change at the switch: proxies are told nothing new then.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use tulle_certs::issue::{Authority, AuthorityError, roots_in, stored_roots};
use tulle_certs::{Pin, TrustDomain, pem};
use zeroize::Zeroizing;

use super::machine::Root;
use super::record::{Change, Record, State, seconds};
use crate::ca::CaError;
use crate::ca::store::{self, CA_CERTIFICATES, CA_KEY, Kept, ROTATION};

/// What follows from what is kept.
pub(in crate::ca) struct InEffect {
    pub(in crate::ca) authority: Authority,
    pub(in crate::ca) record: Record,
    /// The record is of another root than the one that is kept, and says nothing.
    pub(in crate::ca) void: bool,
    /// The root that a rotation follows, or would.
    pub(in crate::ca) root: Root,
    /// What the control plane shows behind its own root.
    pub(in crate::ca) shown: Vec<CertificateDer<'static>>,
}

/// Where names are kept, for messages.
type Place<'p> = &'p dyn Fn(&str) -> String;

/// The record that is kept.
pub(in crate::ca) fn kept_record(kept: &Kept, place: Place<'_>) -> Result<Record, CaError> {
    let text = kept.get(ROTATION).map(|text| text.as_str());
    Record::read(text).map_err(|why| CaError::Store {
        place: place(ROTATION),
        why: format!(
            "damaged at {why}; it may hold the key of a new root: restore it from a backup, or take it away if no rotation of the root was under way"
        ),
    })
}

/// What is in use.
pub(in crate::ca) fn in_effect(
    kept: &Kept,
    place: Place<'_>,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<InEffect, CaError> {
    let record = kept_record(kept, place)?;
    let Some(change) = record.change() else { return plain(kept, place, domain, now, record, false) };
    let in_authority = |why: AuthorityError| store::in_authority(place, why);
    let key = store::text(kept, CA_KEY, place)?;
    let certificates = store::text(kept, CA_CERTIFICATES, place)?;
    let retired = matches!(record.state, State::Retired(_));
    // While the old one is replaced, key and certificate may be of different roots.
    let stored = match retired {
        true => roots_in(certificates).map_err(|why| in_authority(why.into()))?,
        false => stored_roots(key, certificates).map_err(in_authority)?,
    };
    let pins: Vec<String> =
        stored.iter().filter_map(|root| Pin::of(root).ok()).map(|pin| pin.to_string()).collect();
    let known = match retired {
        true => pins.iter().any(|pin| *pin == change.from || *pin == change.next.pin),
        false => pins.first() == Some(&change.from),
    };
    if !known {
        tracing::error!(
            place = place(ROTATION),
            "a rotation was under way of another root than the one that is kept: it is given up"
        );
        return plain(kept, place, domain, now, record, true);
    }
    let next = Authority::from_pem(&change.next.key, &change.next.certificate, domain, now);
    let next = next.map_err(|why| CaError::Authority { place: place(ROTATION), why })?;
    let mut roots = match retired {
        true => lasting(&stored, change, now),
        false => stored,
    };
    // As what is then kept says it.
    let at = if retired { 0 } else { roots.len() };
    roots.insert(at, next.root().clone());
    let switched = record.has_switched();
    let old = match switched {
        true => None,
        // One that has ended issues nothing, and keeps nobody from the new one.
        false => match store::authority(kept, place, domain, now) {
            Ok(old) => Some(old),
            Err(CaError::Expired { .. }) => None,
            Err(error) => return Err(error),
        },
    };
    let bridge = change.next.bridge.as_deref().map(one).transpose().map_err(in_authority)?;
    let bridges: Vec<CertificateDer<'static>> = match retired {
        true => Vec::new(),
        false => bridge.into_iter().collect(),
    };
    let authority = match old {
        Some(old) => old.trusting(roots, Vec::new()),
        None => next.trusting(roots, bridges.clone()),
    };
    let authority = authority.map_err(in_authority)?;
    let mut shown = Vec::new();
    let followed = one(&change.root).map_err(in_authority)?;
    if switched && !retired {
        shown.extend(bridges);
        shown.push(followed.clone());
    }
    shown.extend(former(&record, now).map_err(in_authority)?);
    let validity =
        tulle_certs::validity(&followed).unwrap_or((SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH));
    let root = Root { pin: change.from.clone(), validity, can_follow: true, ours: true };
    Ok(InEffect { authority, record, void: false, root, shown })
}

/// What is kept, as it is.
fn plain(
    kept: &Kept,
    place: Place<'_>,
    domain: &TrustDomain,
    now: SystemTime,
    record: Record,
    void: bool,
) -> Result<InEffect, CaError> {
    let in_authority = |why: AuthorityError| store::in_authority(place, why);
    let authority = store::authority(kept, place, domain, now)?;
    let root = Root {
        pin: authority.pin().map_err(in_authority)?.to_string(),
        validity: authority.root_validity().map_err(in_authority)?,
        can_follow: authority.is_root(),
        ours: authority.is_of_our_making(),
    };
    let shown = if void { Vec::new() } else { former(&record, now).map_err(in_authority)? };
    Ok(InEffect { authority, record, void, root, shown })
}

/// Of the roots that are kept, those that stay: neither the one that is retired nor what has ended.
fn lasting(
    stored: &[CertificateDer<'static>],
    change: &Change,
    now: SystemTime,
) -> Vec<CertificateDer<'static>> {
    let stays = |root: &&CertificateDer<'static>| {
        let pin = Pin::of(root).map(|pin| pin.to_string()).unwrap_or_default();
        let ends = tulle_certs::validity(root).map_or(SystemTime::UNIX_EPOCH, |(_, until)| until);
        pin != change.from && pin != change.next.pin && ends > now
    };
    stored.iter().filter(stays).cloned().collect()
}

/// The roots that there have been, each behind the certificate that it has signed for its successor.
fn former(record: &Record, now: SystemTime) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    let mut all = Vec::new();
    for former in record.former.iter().rev().filter(|former| former.until > seconds(now)) {
        all.push(one(&former.bridge)?);
        all.push(one(&former.root)?);
    }
    Ok(all)
}

/// The certificate of a text that holds one.
fn one(text: &str) -> Result<CertificateDer<'static>, AuthorityError> {
    let first = pem::certificates(text)?.into_iter().next();
    first.ok_or_else(|| {
        AuthorityError::Pem(pem::PemError::Missing { wanted: "CERTIFICATE", hint: String::new() })
    })
}

/// What takes the old root's place, once that is retired: key, then certificates.
pub(in crate::ca) fn replacement(
    kept: &Kept,
    change: &Change,
    place: Place<'_>,
    now: SystemTime,
) -> Result<[(&'static str, Zeroizing<String>); 2], CaError> {
    let stored = roots_in(store::text(kept, CA_CERTIFICATES, place)?);
    let stored = stored.map_err(|why| store::in_authority(place, why.into()))?;
    let further: String = lasting(&stored, change, now).iter().map(pem::encode_certificate).collect();
    let certificates = Zeroizing::new(format!("{}{further}", change.next.certificate));
    Ok([(CA_KEY, change.next.key.clone()), (CA_CERTIFICATES, certificates)])
}
