//! Chains that were verified lately.
//!
//! A workload shows the same chain at every handshake until it is renewed, and half of a handshake's work on signatures is
//! to verify it once more. What is remembered is that these bytes, and no others, verified against the roots of one bundle, for
//! a role, and between which times that holds; never a refusal, and never that the peer has the key, which it
//! proves at every handshake. A bundle of other roots remembers nothing of this one's. Called by `verify` only.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::id::SpiffeId;
use crate::verify::Role;
use crate::x509;

/// How many chains are remembered; then all are forgotten.
const MOST: usize = 256;
/// How long one may be in DER, its intermediates included; who shows more is verified each time.
const LONGEST: usize = 8 * 1024;

/// By the leaf's DER. Only what the mesh's own authority has signed gets in, so the hash need not withstand anybody.
type Chains = HashMap<Vec<u8>, Chain, RandomState>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Verified {
    clients: Mutex<Chains>,
    servers: Mutex<Chains>,
}

#[derive(Debug)]
struct Chain {
    intermediates: Vec<CertificateDer<'static>>,
    /// Seconds since 1970 at which every certificate of it is valid.
    valid: RangeInclusive<u64>,
    id: SpiffeId,
}

// === impl Verified ===

impl Verified {
    /// Whose leaf it is, if this chain was verified for this role and is valid now.
    pub(crate) fn find(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        now: UnixTime,
    ) -> Option<SpiffeId> {
        let chains = self.of(role).lock();
        let chain = chains.get(leaf.as_ref())?;
        (chain.intermediates == intermediates && chain.valid.contains(&now.as_secs()))
            .then(|| chain.id.clone())
    }

    /// Remembers a chain that was verified.
    pub(crate) fn add(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        role: Role,
        id: &SpiffeId,
    ) {
        if leaf.len() + intermediates.iter().map(|one| one.len()).sum::<usize>() > LONGEST {
            return;
        }
        // One whose times cannot be read is verified each time.
        let Some(valid) = valid(leaf, intermediates) else { return };
        let intermediates = intermediates.iter().map(|one| one.clone().into_owned()).collect();
        let chain = Chain { intermediates, valid, id: id.clone() };
        let mut chains = self.of(role).lock();
        if chains.len() >= MOST {
            chains.clear();
        }
        chains.insert(leaf.to_vec(), chain);
    }

    fn of(&self, role: Role) -> &Mutex<Chains> {
        match role {
            Role::Client => &self.clients,
            Role::Server => &self.servers,
        }
    }
}

/// When all of them are valid.
fn valid(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Option<RangeInclusive<u64>> {
    let seconds = |time: std::time::SystemTime| {
        time.duration_since(std::time::UNIX_EPOCH).ok().map(|since| since.as_secs())
    };
    let (mut from, mut to) = (0, u64::MAX);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        let (not_before, not_after) = x509::validity(certificate).ok()?;
        from = from.max(seconds(not_before)?);
        to = to.min(seconds(not_after)?);
    }
    Some(from..=to)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::id::TrustDomain;
    use crate::issue::Authority;
    use crate::key::{PrivateKey, csr};

    #[test]
    fn what_is_found_is_what_was_added_and_not_more_than_there_is_room_for() {
        let (now, domain) = (SystemTime::now(), TrustDomain::default());
        let authority = Authority::generate(&domain, Duration::from_secs(86_400), now).unwrap();
        let id = SpiffeId::new(&domain, "shop", "web").unwrap();
        let request = csr(&PrivateKey::generate().unwrap(), None).unwrap();
        let chain = authority.issue(&request, &id, Duration::from_secs(3600), now).unwrap().chain;
        let (leaf, issuers) = chain.split_first().unwrap();
        let at = UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(now)));
        let verified = Verified::default();
        verified.add(leaf, issuers, Role::Client, &id);
        assert_eq!(verified.find(leaf, issuers, Role::Client, at), Some(id.clone()));
        assert_eq!(verified.find(leaf, issuers, Role::Server, at), None);
        assert_eq!(verified.find(leaf, std::slice::from_ref(leaf), Role::Client, at), None);
        assert_eq!(verified.find(&authority.bundle().roots()[0], issuers, Role::Client, at), None);
        let mut changed = leaf.to_vec();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(verified.find(&changed.into(), issuers, Role::Client, at), None);
        let padding = CertificateDer::from(vec![0; LONGEST]);
        verified.add(leaf, std::slice::from_ref(&padding), Role::Server, &id);
        assert_eq!(verified.find(leaf, std::slice::from_ref(&padding), Role::Server, at), None);
        for extra in 0..=MOST {
            let chain = Chain { intermediates: Vec::new(), valid: 0..=1, id: id.clone() };
            verified.clients.lock().insert(extra.to_be_bytes().to_vec(), chain);
        }
        verified.add(leaf, issuers, Role::Client, &id);
        assert_eq!(verified.clients.lock().len(), 1);
    }
}
