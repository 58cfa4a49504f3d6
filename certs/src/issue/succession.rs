//! How one root follows another: a certificate of the new root that the old one has signed (a bridge), and authorities that trust both.
//!
//! With a bridge in its chain a leaf under the new root is good for who trusts the old one alone, or has its pin: a proxy that has not heard of
//! the new root yet, a join token from before. It is good for as long as both roots are. Which root is in use when is the control plane's to say.

use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{Authority, AuthorityError, DEFAULT_LIFETIME, IssuerPath, serial, signing, uri};
use crate::bundle::{Pin, TrustBundle};
use crate::id::{TrustDomain, control_plane_id};
use crate::key::PrivateKey;
use crate::pem::{self, PemError};
use crate::verify::{Role, verify_peer};
use crate::{tls, x509};

/// What the names of roots of our own making begin with.
const NAME: &str = "Tulle root ";

/// What a root of our own says of itself, but for its dates.
pub(super) fn root_of(domain: &TrustDomain, key: &PrivateKey) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::default();
    let pin = Pin::of_spki(&key.public_key()).to_string();
    let short = pin.trim_start_matches("sha256:").get(..8).unwrap_or_default().to_owned();
    params.distinguished_name = DistinguishedName::new();
    // The key is part of the name, so that the roots of a rotation are told apart.
    params.distinguished_name.push(DnType::CommonName, format!("{NAME}{short}"));
    params.subject_alt_names.push(uri(&domain.uri())?);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial()?);
    Ok(params)
}

impl Authority {
    /// Whether the root itself issues, so that its key is here. Where an intermediate does, the root is somebody else's.
    pub fn is_root(&self) -> bool {
        self.intermediates.is_empty()
    }

    /// Whether the root was made by [`Authority::generate`], and not given.
    pub fn is_of_our_making(&self) -> bool {
        let named = x509::parse(&self.root).is_ok_and(|root| root.subject().contains(NAME));
        self.is_root() && named && x509::trust_domain(&self.root).is_some()
    }

    /// First and last moment at which all of the issuing chain is valid.
    pub fn validity(&self) -> (SystemTime, SystemTime) {
        (self.not_before, self.not_after)
    }

    /// First and last valid moment of the root.
    pub fn root_validity(&self) -> Result<(SystemTime, SystemTime), AuthorityError> {
        Ok(x509::validity(&self.root).map_err(PemError::Chain)?)
    }

    /// A certificate for the root of `next`, signed by this one: valid for as long as both are.
    ///
    /// # Errors
    /// If this one is no root, or if who trusts it alone would refuse what `next` issues all the same (a path length, name constraints).
    pub fn bridge_to(&self, next: &Self, now: SystemTime) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = root_of(next.trust_domain(), next.key())?;
        params.use_authority_key_identifier_extension = true;
        params.not_before = self.not_before.max(next.not_before).into();
        params.not_after = self.not_after.min(next.not_after).into();
        let bridge = params.signed_by(next.key(), &self.issuer).map_err(signing)?.der().clone();

        let key = PrivateKey::generate()?;
        let id = control_plane_id(next.trust_domain());
        let issued = next.sign(&key, &id, DEFAULT_LIFETIME, now)?;
        let leaf = issued.chain.first().ok_or(AuthorityError::OtherKey(0))?;
        let alone = TrustBundle::new(self.trust_domain().clone(), vec![self.root.clone()])?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(now)));
        let algorithms = tls::provider().signature_verification_algorithms;
        verify_peer(&alone, leaf, std::slice::from_ref(&bridge), Role::Server, &algorithms, at)
            .map_err(AuthorityError::Unusable)?;
        Ok(bridge)
    }

    /// The same authority, which has peers trust `roots` (the one of its own is to be among them), and presents `bridges` with what it issues.
    ///
    /// # Errors
    /// If one of them is no CA.
    pub fn trusting(
        self,
        roots: Vec<CertificateDer<'static>>,
        bridges: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AuthorityError> {
        let bundle = TrustBundle::new(self.trust_domain().clone(), roots)?;
        Ok(Self { bundle, bridges, ..self })
    }
}

/// The root that a stored key and its certificates (PEM, as for [`Authority::from_pem`]) chain to, and then the further roots, whatever their dates.
///
/// # Errors
/// What is wrong with them.
pub fn stored_roots(key: &str, certificates: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    Ok(IssuerPath::find(&PrivateKey::from_pem(key)?, pem::certificates(certificates)?)?.roots())
}

/// The certificates of a PEM text that sign themselves, whatever their dates and keys.
///
/// # Errors
/// What is no PEM.
pub fn roots_in(certificates: &str) -> Result<Vec<CertificateDer<'static>>, PemError> {
    Ok(pem::certificates(certificates)?.into_iter().filter(|der| x509::is_root(der)).collect())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::ROOT_LIFETIME;
    use super::*;
    use crate::creds::Creds;
    use crate::id::SpiffeId;
    use crate::issue::split_chain;
    use crate::key::csr;

    const HOUR: Duration = Duration::from_secs(3600);

    fn domain() -> TrustDomain {
        TrustDomain::default()
    }

    fn authority(now: SystemTime) -> Authority {
        Authority::generate(&domain(), ROOT_LIFETIME, now).unwrap()
    }

    fn web() -> SpiffeId {
        SpiffeId::new(&domain(), "shop", "web").unwrap()
    }

    fn alone(authority: &Authority) -> Arc<TrustBundle> {
        Arc::new(TrustBundle::new(domain(), vec![authority.root().clone()]).unwrap())
    }

    #[test]
    fn who_knows_only_the_old_root_takes_what_the_new_one_issues_by_the_bridge() {
        let now = SystemTime::now();
        let (old, new) = (authority(now), authority(now));
        let bridge = old.bridge_to(&new, now).unwrap();
        assert!(!x509::is_root(&bridge) && x509::issued(old.root(), &bridge));
        let roots = vec![old.root().clone(), new.root().clone()];
        let (old_root, new_alone) = (alone(&old), alone(&new));
        let key = PrivateKey::generate().unwrap();
        let request = csr(&key, None).unwrap();
        let plain = new.issue(&request, &web(), HOUR, now).unwrap();
        assert!(Creds::new(plain.chain, key.clone(), Arc::clone(&old_root), now).is_err());

        let new = new.trusting(roots.clone(), vec![bridge.clone()]).unwrap();
        let issued = new.issue(&request, &web(), HOUR, now).unwrap();
        assert_eq!(issued.chain.len(), 2);
        for bundle in [old_root, new_alone] {
            assert!(Creds::new(issued.chain.clone(), key.clone(), bundle, now).is_ok());
        }
        // As a proxy takes the answer apart: both roots, and none of them in the chain.
        let (chain, bundle) = split_chain(&issued.to_pem(), &domain()).unwrap();
        assert_eq!(chain, issued.chain);
        assert_eq!(bundle.roots().len(), 2);
        assert!(roots.iter().all(|root| bundle.roots().contains(root)));
        assert!(issued.to_pem().last().unwrap().contains(&pem::encode_certificate(new.root())));
    }

    #[test]
    fn a_bridge_lasts_as_long_as_both_and_no_longer() {
        let now = SystemTime::now();
        let old = Authority::generate(&domain(), HOUR, now).unwrap();
        let bridge = old.bridge_to(&authority(now), now).unwrap();
        let (_, until) = x509::validity(&bridge).unwrap();
        assert!(until <= now + HOUR, "{}", x509::show(until));
    }

    #[test]
    fn roots_of_our_making_are_told_from_given_ones() {
        let now = SystemTime::now();
        assert!(authority(now).is_of_our_making() && authority(now).is_root());
        let key = PrivateKey::generate().unwrap();
        let mut params = root_of(&domain(), &key).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Company root");
        params.not_before = (now - HOUR).into();
        params.not_after = (now + HOUR).into();
        let root = params.self_signed(&key).unwrap().der().clone();
        let given =
            Authority::from_pem(&key.to_pem(), &pem::encode_certificate(&root), &domain(), now).unwrap();
        assert!(given.is_root() && !given.is_of_our_making());
    }
}
