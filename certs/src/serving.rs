//! A small authority for one HTTPS server of our own that others than the mesh call, by DNS names: the admission webhook.
//!
//! The mesh's authority may be foreign, and what it signs is for the mesh; this one's root is trusted by nobody but who is given it, the API
//! server. Nothing that it signs is an identity. Pure: the time is passed in, and where keys are kept is the control plane's business.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls::ServerConfig;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;

use crate::bundle::Pin;
use crate::issue::{IssueError, serial};
use crate::key::{KeyError, PrivateKey};
use crate::pem::{self, PemError};
use crate::{tls, x509};

/// Valid from so long before it is made. The one who calls is the API server, whose clock may be hours behind: while it takes the certificate for one of times to come, no pod is
/// injected. There is nothing in that time that anybody could be deceived about, since the key did not exist.
const BEFORE: Duration = Duration::from_secs(24 * 3600);

/// Why there is no such authority or certificate.
#[derive(Debug, thiserror::Error)]
pub enum ServingError {
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A certificate.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// Signing.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Key and certificate are not of each other.
    #[error("the certificate is not of the private key")]
    OtherKey,
    /// There is no certificate where there should be one.
    #[error("there is no certificate")]
    Empty,
    /// TLS.
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
}

/// Signs certificates for servers.
pub struct ServingAuthority {
    issuer: Issuer<'static, PrivateKey>,
    certificate: CertificateDer<'static>,
}

/// A server's certificate and key.
#[derive(Clone, Debug)]
pub struct Serving {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
}

// === impl ServingAuthority ===

impl ServingAuthority {
    /// A new one, called `name`, valid for `lifetime`.
    ///
    /// # Errors
    /// When there are no random numbers.
    pub fn generate(name: &str, lifetime: Duration, now: SystemTime) -> Result<Self, ServingError> {
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        let pin = Pin::of_spki(&key.public_key()).to_string();
        let short = pin.trim_start_matches("sha256:").get(..8).unwrap_or_default().to_owned();
        params.distinguished_name = DistinguishedName::new();
        // The key is part of the name, so that the two of a rotation are told apart.
        params.distinguished_name.push(DnType::CommonName, format!("{name} {short}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial()?);
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + lifetime).into();
        let signed = params.self_signed(&key).map_err(|error| IssueError::Signing(error.to_string()))?;
        Self::new(key, signed.der().clone())
    }

    /// Of what was stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(key: &str, certificate: &str) -> Result<Self, ServingError> {
        let first = pem::certificates(certificate)?.into_iter().next().ok_or(ServingError::Empty)?;
        Self::new(PrivateKey::from_pem(key)?, first)
    }

    fn new(key: PrivateKey, certificate: CertificateDer<'static>) -> Result<Self, ServingError> {
        let spki = x509::parse(&certificate).map_err(PemError::Chain)?.spki().to_vec();
        if spki != key.public_key() {
            return Err(ServingError::OtherKey);
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key);
        Ok(Self { issuer: issuer.map_err(|error| IssueError::Signing(error.to_string()))?, certificate })
    }

    /// A certificate for a server with these DNS names, with a new key; valid no longer than the authority.
    ///
    /// # Errors
    /// When a name is none, or the authority has expired.
    pub fn issue(
        &self,
        names: &[String],
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Serving, ServingError> {
        let signing = |error: rcgen::Error| IssueError::Signing(error.to_string());
        let (_, ends) = x509::validity(&self.certificate).map_err(PemError::Chain)?;
        if ends <= now {
            return Err(IssueError::IssuerExpires(x509::show(ends)).into());
        }
        let key = PrivateKey::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(signing)?));
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial()?);
        params.not_before = (now - BEFORE).into();
        params.not_after = (now + lifetime).min(ends).into();
        let leaf = params.signed_by(&key, &self.issuer).map_err(signing)?.der().clone();
        Ok(Serving { chain: vec![leaf], key })
    }

    /// Its certificate, which whoever calls the server is to trust.
    pub fn certificate_pem(&self) -> String {
        pem::encode_certificate(&self.certificate)
    }

    /// Its key, to store it.
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        self.issuer.key().to_pem()
    }

    /// Whether it has signed the server's certificate.
    pub fn has_issued(&self, serving: &Serving) -> bool {
        serving.chain.first().is_some_and(|leaf| x509::issued(&self.certificate, leaf))
    }
}

impl std::fmt::Debug for ServingAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServingAuthority").field("key", self.issuer.key()).finish_non_exhaustive()
    }
}

// === impl Serving ===

impl Serving {
    /// Of what was stored.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(key: &str, chain: &str) -> Result<Self, ServingError> {
        let (key, chain) = (PrivateKey::from_pem(key)?, pem::certificates(chain)?);
        let leaf = chain.first().ok_or(ServingError::Empty)?;
        if x509::parse(leaf).map_err(PemError::Chain)?.spki() != key.public_key() {
            return Err(ServingError::OtherKey);
        }
        Ok(Self { chain, key })
    }

    /// Its chain, leaf first, to store it.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(pem::encode_certificate).collect()
    }

    /// Its key, to store it.
    pub fn key_pem(&self) -> zeroize::Zeroizing<String> {
        self.key.to_pem()
    }

    /// From when until when it is valid.
    pub fn validity(&self) -> Option<(SystemTime, SystemTime)> {
        x509::validity(self.chain.first()?).ok()
    }

    /// The names that it is for.
    pub fn names(&self) -> Vec<String> {
        self.chain.first().map(x509::dns_names).unwrap_or_default()
    }

    /// TLS of a server that shows it, to whoever comes: what callers may do is not told by TLS.
    ///
    /// # Errors
    /// When the provider cannot do what is asked.
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<Arc<ServerConfig>, ServingError> {
        let key = CertifiedKey::new(self.chain.clone(), self.key.signer()?);
        Ok(tls::plain_server(Arc::new(key), alpn)?)
    }
}

/// From when until when the first certificate of a PEM text is valid.
///
/// # Errors
/// When it is none.
pub fn validity_of_pem(text: &str) -> Result<(SystemTime, SystemTime), ServingError> {
    let first = pem::certificates(text)?.into_iter().next().ok_or(ServingError::Empty)?;
    Ok(x509::validity(&first).map_err(PemError::Chain)?)
}

/// Each certificate of a PEM text as a text of its own.
///
/// # Errors
/// When there is none.
pub fn split_pem(text: &str) -> Result<Vec<String>, ServingError> {
    Ok(pem::certificates(text)?.iter().map(pem::encode_certificate).collect())
}

/// Whether the authority of this certificate has signed the server's.
pub fn issued_by_pem(authority: &str, serving: &Serving) -> bool {
    let authority = pem::certificates(authority).ok().and_then(|all| all.into_iter().next());
    authority.zip(serving.chain.first()).is_some_and(|(authority, leaf)| x509::issued(&authority, leaf))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn what_is_stored_is_read_again_and_belongs_together() {
        let now = SystemTime::now();
        let authority = ServingAuthority::generate("Tulle webhook", DAY * 365, now).unwrap();
        let other = ServingAuthority::generate("Tulle webhook", DAY * 365, now).unwrap();
        let names = ["tulle-control-plane.tulle-system.svc".to_owned()];
        let serving = authority.issue(&names, DAY * 30, now).unwrap();
        assert!(authority.has_issued(&serving) && !other.has_issued(&serving));
        assert_eq!(serving.names(), names);
        let (from, until) = serving.validity().unwrap();
        assert!(from <= now && until > now + DAY * 29);
        let again = Serving::from_pem(&serving.key_pem(), &serving.chain_pem()).unwrap();
        assert!(authority.has_issued(&again));
        again.server_config(&[b"http/1.1"]).unwrap();
        let stored = ServingAuthority::from_pem(&authority.key_pem(), &authority.certificate_pem()).unwrap();
        assert!(stored.has_issued(&serving) && stored.has_issued(&stored.issue(&names, DAY, now).unwrap()));
        assert!(matches!(
            ServingAuthority::from_pem(&other.key_pem(), &authority.certificate_pem()),
            Err(ServingError::OtherKey)
        ));
        assert!(matches!(
            Serving::from_pem(&other.key_pem(), &serving.chain_pem()),
            Err(ServingError::OtherKey)
        ));
    }

    #[test]
    fn nothing_outlives_its_authority() {
        let now = SystemTime::now();
        let authority = ServingAuthority::generate("x", DAY, now).unwrap();
        let (_, until) = authority.issue(&["a.svc".to_owned()], DAY * 30, now).unwrap().validity().unwrap();
        assert!(until <= now + DAY);
        assert!(authority.issue(&["a.svc".to_owned()], DAY, now + DAY * 2).is_err());
    }

    #[test]
    fn nothing_shows_a_key() {
        let authority = ServingAuthority::generate("x", DAY, SystemTime::now()).unwrap();
        let serving = authority.issue(&["a.svc".to_owned()], DAY, SystemTime::now()).unwrap();
        let shown = format!("{authority:?} {serving:?}");
        for key in [authority.key_pem(), serving.key_pem()] {
            assert!(key.lines().filter(|line| !line.starts_with('-')).all(|line| !shown.contains(line)));
        }
    }
}
