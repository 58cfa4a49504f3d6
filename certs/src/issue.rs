//! The certificate authority: signs leaves for SPIFFE IDs that its caller has established.
//!
//! The caller says who; the request only brings a public key and the proof that its sender holds the private
//! one. Nothing else of a request is used, so no request can ask for more. Pure: time is passed in, and
//! where keys are kept is the control plane's business. How one root follows another is `succession`'s.

mod succession;

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose,
    PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;

use crate::bundle::{BundleError, Pin, TrustBundle};
use crate::id::{SpiffeId, TrustDomain};
use crate::key::{KeyError, MAX_PEM, PrivateKey};
use crate::lineage::Lineage;
use crate::pem::{self, PemError};
use crate::refusal::Refused;
use crate::verify::{Role, verify_peer};
use crate::{tls, x509};

pub use succession::{roots_in, stored_roots};

/// Leaves are valid from so long before they are issued, for peers whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_secs(5 * 60);
/// How long a leaf lives where nothing else is said.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long a root of our own lives where nothing else is said: ten years.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Nothing shorter is issued: the certificate would expire on its way.
pub const MIN_LIFETIME: Duration = Duration::from_secs(10);
/// Our own root is valid from so long before it is made.
const ROOT_BACKDATE: Duration = Duration::from_secs(3600);

/// Why an authority cannot be made of what was given.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthorityError {
    /// The key is bad.
    #[error("certificate authority: {0}")]
    Key(#[from] KeyError),
    /// The certificates are bad.
    #[error("certificate authority: {0}")]
    Pem(#[from] PemError),
    /// The roots are bad.
    #[error("certificate authority: {0}")]
    Bundle(#[from] BundleError),
    /// No certificate was issued for the key.
    #[error("certificate authority: none of the {0} certificates was issued for the private key")]
    OtherKey(usize),
    /// The issuing certificate may not issue.
    #[error("certificate authority: the certificate {0} is not that of a CA (CA:TRUE, keyCertSign)")]
    NotCa(String),
    /// One of those above the issuing certificate does not allow it to issue. Not everybody looks at a root's; who does must find it right.
    #[error(
        "certificate authority: the path length of {subject} allows {allowed} CAs below it, and there are {below}; have it issued with a longer one, or by another"
    )]
    PathLength {
        /// Whose.
        subject: String,
        /// How many may be between it and a leaf.
        allowed: usize,
        /// How many are.
        below: usize,
    },
    /// There is no root above the issuing certificate.
    #[error("certificate authority: the root of {0} is missing; add it to the certificates")]
    NoRoot(String),
    /// One of the chain has expired or is not valid yet.
    #[error(
        "certificate authority: the certificate {subject} is valid from {not_before} to {not_after}, not now; renew it or mend the clock"
    )]
    NotValidNow {
        /// Whose.
        subject: String,
        /// First valid moment.
        not_before: String,
        /// Last valid moment.
        not_after: String,
    },
    /// A root of our own making that was made for another trust domain.
    #[error(
        "certificate authority: its root was made for the trust domain {made_for}, not for {wanted}; keep to that one, or begin with another root"
    )]
    OtherTrustDomain {
        /// What the root says.
        made_for: TrustDomain,
        /// What was asked for.
        wanted: TrustDomain,
    },
    /// A trial leaf was refused by our own verifier.
    #[error("certificate authority: what it issues would be refused as {}: {}", .0.refusal, .0.detail)]
    Unusable(Refused),
    /// Signing failed.
    #[error("certificate authority: {0}")]
    Issue(#[from] IssueError),
}

/// Why a request is refused. [`is_callers_fault`](Self::is_callers_fault) tells whom to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// Not a certificate signing request.
    #[error("the signing request cannot be read: {0}")]
    Request(String),
    /// The request is not signed by the key it carries.
    #[error("the signing request's signature does not fit its public key")]
    Signature,
    /// A public key that we do not certify.
    #[error("the signing request's key is {0}; use ECDSA on P-256 or P-384")]
    WeakKey(String),
    /// An identity that is not ours to give.
    #[error("{id} is not of the trust domain {domain}")]
    OtherTrustDomain {
        /// The identity asked for.
        id: SpiffeId,
        /// The authority's trust domain.
        domain: TrustDomain,
    },
    /// Too short to be of use.
    #[error("a lifetime of {0:?} is too short; the least is {MIN_LIFETIME:?}")]
    TooShort(Duration),
    /// The issuer expires before the leaf could be of use.
    #[error("the issuing certificate expires at {0}; renew it")]
    IssuerExpires(String),
    /// Signing failed.
    #[error("signing failed: {0}")]
    Signing(String),
}

impl IssueError {
    /// True if the request was at fault (`INVALID_ARGUMENT`), false if the authority is.
    pub fn is_callers_fault(&self) -> bool {
        !matches!(self, Self::IssuerExpires(_) | Self::Signing(_))
    }
}

/// What was issued.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The leaf, then its issuers below the root: what TLS presents.
    pub chain: Vec<CertificateDer<'static>>,
    /// The root that the chain ends in.
    pub root: CertificateDer<'static>,
    /// The further roots of the trust bundle: peers' leaves may chain to these.
    pub others: Vec<CertificateDer<'static>>,
    /// First valid moment of the leaf.
    pub not_before: SystemTime,
    /// Last valid moment of the leaf.
    pub not_after: SystemTime,
}

// === impl Issued ===

impl Issued {
    /// The chain and its root: what the control plane presents, so that a pin can be checked.
    pub fn chain_with_root(&self) -> Vec<CertificateDer<'static>> {
        let mut chain = self.chain.clone();
        chain.push(self.root.clone());
        chain
    }

    /// One PEM text a certificate, the leaf first, the root last: `IstioCertificateResponse.cert_chain`. Before the root come the further ones: who
    /// joins while a root is rotated meets peers of both at once.
    pub fn to_pem(&self) -> Vec<String> {
        self.chain
            .iter()
            .chain(&self.others)
            .chain([&self.root])
            .map(|certificate| pem::encode_certificate(certificate))
            .collect()
    }
}

/// Splits what an authority answered (`IstioCertificateResponse.cert_chain`: the leaf first, the root last;
/// several certificates in one text are fine) into what TLS presents and the roots.
///
/// Errors if there is no leaf or no root.
pub fn split_chain<T: AsRef<str>>(
    texts: &[T],
    domain: &TrustDomain,
) -> Result<(Vec<CertificateDer<'static>>, TrustBundle), BundleError> {
    split_chain_under(texts, domain, None)
}

/// As [`split_chain`]; where there is no root in the answer, the `given` ones hold.
///
/// Errors if there is no leaf, or no root anywhere ([`BundleError::Empty`]).
pub fn split_chain_under<T: AsRef<str>>(
    texts: &[T],
    domain: &TrustDomain,
    given: Option<&TrustBundle>,
) -> Result<(Vec<CertificateDer<'static>>, TrustBundle), BundleError> {
    let text: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
    let ordered = pem::order_chain(pem::certificates(&text.join("\n"))?)?;
    let (roots, chain): (Vec<_>, Vec<_>) =
        ordered.into_iter().partition(|certificate| x509::is_root(certificate));
    if chain.is_empty() {
        return Err(PemError::Chain("there is only a root, no leaf".into()).into());
    }
    match given {
        Some(given) if roots.is_empty() => Ok((chain, given.clone())),
        _ => Ok((chain, TrustBundle::new(domain.clone(), roots)?)),
    }
}

/// The pin of the root that the stored issuer (PEM of key and certificates, as for [`Authority::from_pem`]) chains
/// to, whatever its dates, and the trust domain that it was made for, as far as it says: for making token files beside a
/// running control plane.
pub fn stored_root(key: &str, certificates: &str) -> Result<(Pin, Option<TrustDomain>), AuthorityError> {
    let path = IssuerPath::find(&PrivateKey::from_pem(key)?, pem::certificates(certificates)?)?;
    Ok((Pin::of(path.root()).map_err(PemError::Chain)?, path.trust_domain()))
}

/// An issuing certificate, those above it, its root, and further roots after it.
struct IssuerPath {
    ordered: Vec<CertificateDer<'static>>,
    /// Where the root of the path is.
    end: usize,
}

impl IssuerPath {
    fn find(key: &PrivateKey, certificates: Vec<CertificateDer<'static>>) -> Result<Self, AuthorityError> {
        let spki = key.public_key();
        let own = certificates.iter().find(|der| x509::parse(der).is_ok_and(|parsed| parsed.spki() == spki));
        let own = own.cloned().ok_or(AuthorityError::OtherKey(certificates.len()))?;
        let subject = x509::parse(&own).map_err(PemError::Chain)?.subject();
        let ordered = pem::chain_from(own, certificates);
        let end = ordered.iter().position(|certificate| x509::is_root(certificate));
        match end.filter(|end| ordered[..=*end].windows(2).all(|pair| x509::issued(&pair[1], &pair[0]))) {
            Some(end) => Ok(Self { ordered, end }),
            None => Err(AuthorityError::NoRoot(subject)),
        }
    }

    fn issuer(&self) -> &CertificateDer<'static> {
        &self.ordered[0]
    }

    fn root(&self) -> &CertificateDer<'static> {
        &self.ordered[self.end]
    }

    /// What a root that issues by itself was made for. One above an intermediate may be of another trust domain.
    fn trust_domain(&self) -> Option<TrustDomain> {
        (self.end == 0).then(|| x509::trust_domain(self.root())).flatten()
    }

    /// The root first, then the further ones.
    fn roots(&self) -> Vec<CertificateDer<'static>> {
        self.ordered[self.end..].iter().filter(|der| x509::is_root(der)).cloned().collect()
    }
}

/// A certificate authority for one trust domain.
pub struct Authority {
    issuer: Issuer<'static, PrivateKey>,
    /// The issuing certificate and those above it, below the root; empty if the root issues.
    intermediates: Vec<CertificateDer<'static>>,
    /// What is presented after those, for peers that know only a former root (`succession`).
    bridges: Vec<CertificateDer<'static>>,
    root: CertificateDer<'static>,
    bundle: TrustBundle,
    not_before: SystemTime,
    not_after: SystemTime,
}

// === impl Authority ===

impl Authority {
    /// A new root of our own, on P-256, valid for at most 100 years.
    pub fn generate(
        domain: &TrustDomain,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let key = PrivateKey::generate()?;
        let mut params = succession::root_of(domain, &key)?;
        params.not_before = (now - ROOT_BACKDATE).into();
        params.not_after = (now + lifetime.min(ROOT_LIFETIME * 10)).into();
        let root = params.self_signed(&key).map_err(signing)?.der().clone();
        Self::new(key, vec![root], domain, now)
    }

    /// An authority of a stored or given key (PKCS#8 or SEC1 PEM) and certificates: that of the key, any between it
    /// and the root, the root, in any order; further roots join the trust bundle.
    ///
    /// Checked before it is believed: key and certificate fit, CA:TRUE, valid at `now`, and a leaf issued on
    /// trial verifies.
    pub fn from_pem(
        key: &str,
        certificates: &str,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        Self::new(PrivateKey::from_pem(key)?, pem::certificates(certificates)?, domain, now)
    }

    fn new(
        key: PrivateKey,
        certificates: Vec<CertificateDer<'static>>,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        let path = IssuerPath::find(&key, certificates)?;
        if let Some(made_for) = path.trust_domain().filter(|made_for| made_for != domain) {
            return Err(AuthorityError::OtherTrustDomain { made_for, wanted: domain.clone() });
        }
        let (mut not_before, mut not_after) = (SystemTime::UNIX_EPOCH, now + ROOT_LIFETIME * 10);
        let mut below = 0;
        for certificate in &path.ordered[..=path.end] {
            let parsed = x509::parse(certificate).map_err(PemError::Chain)?;
            if !parsed.is_ca() {
                return Err(AuthorityError::NotCa(parsed.subject()));
            }
            if let Some(allowed) = parsed.path_length().filter(|allowed| below > *allowed) {
                return Err(AuthorityError::PathLength { subject: parsed.subject(), allowed, below });
            }
            // RFC 5280 §4.2.1.9: one under a CA of its own name is no step down.
            below += usize::from(!parsed.is_self_issued());
            not_before = not_before.max(parsed.not_before());
            not_after = not_after.min(parsed.not_after());
            if parsed.not_before() > now || parsed.not_after() <= now {
                return Err(AuthorityError::NotValidNow {
                    subject: parsed.subject(),
                    not_before: x509::show(parsed.not_before()),
                    not_after: x509::show(parsed.not_after()),
                });
            }
        }
        let authority = Self {
            issuer: Issuer::from_ca_cert_der(path.issuer(), key).map_err(signing)?,
            intermediates: path.ordered[..path.end].to_vec(),
            bridges: Vec::new(),
            root: path.root().clone(),
            bundle: TrustBundle::new(domain.clone(), path.roots())?,
            not_before,
            not_after,
        };
        authority.try_out(now)?;
        Ok(authority)
    }

    /// Issues a leaf for nobody and verifies it: finds path lengths, name constraints and key usages that would
    /// make every leaf useless.
    fn try_out(&self, now: SystemTime) -> Result<(), AuthorityError> {
        let key = PrivateKey::generate()?;
        let id = crate::id::control_plane_id(self.bundle.trust_domain());
        let issued = self.sign(&key, &id, DEFAULT_LIFETIME, now)?;
        let (leaf, issuers) = issued.chain.split_first().ok_or(AuthorityError::OtherKey(0))?;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(now)));
        let algorithms = tls::provider().signature_verification_algorithms;
        verify_peer(&self.bundle, leaf, issuers, Role::Server, &algorithms, at)
            .map(|_| ())
            .map_err(AuthorityError::Unusable)
    }

    /// Signs a leaf for `id`, which the caller has authenticated, over the public key of `csr` (PEM).
    ///
    /// Valid from 5 minutes ago, for `lifetime`, but never longer than the issuer. For TLS servers and clients
    /// alike. The control plane's own certificate is issued the same way.
    pub fn issue(
        &self,
        csr: &str,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        self.sign(&requested_key(csr)?, id, lifetime, now)
    }

    /// As [`issue`](Self::issue); the leaf says that it goes back to a join token.
    pub fn issue_of(
        &self,
        csr: &str,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
        lineage: Option<Lineage>,
    ) -> Result<Issued, IssueError> {
        let serial = lineage.map_or_else(serial, Lineage::serial)?;
        self.sign_as(&requested_key(csr)?, id, lifetime, now, serial)
    }

    fn sign(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Issued, IssueError> {
        self.sign_as(key, id, lifetime, now, serial()?)
    }

    fn sign_as(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        lifetime: Duration,
        now: SystemTime,
        serial: SerialNumber,
    ) -> Result<Issued, IssueError> {
        let domain = self.bundle.trust_domain();
        if id.trust_domain_str() != domain.as_str() {
            return Err(IssueError::OtherTrustDomain { id: id.clone(), domain: domain.clone() });
        }
        if lifetime < MIN_LIFETIME {
            return Err(IssueError::TooShort(lifetime));
        }
        // X.509 counts whole seconds.
        let now = x509::system_time(i64::try_from(x509::seconds(now)).unwrap_or(i64::MAX));
        let not_before = now.checked_sub(BACKDATE).unwrap_or(now).max(self.not_before);
        let not_after = now.checked_add(lifetime).map_or(self.not_after, |end| end.min(self.not_after));
        if not_after < now + MIN_LIFETIME {
            return Err(IssueError::IssuerExpires(x509::show(self.not_after)));
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(uri(id.as_str())?);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial);
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let leaf = params.signed_by(key, &self.issuer).map_err(signing)?.der().clone();
        let mut chain = vec![leaf];
        chain.extend(self.intermediates.iter().chain(&self.bridges).cloned());
        let others = self.bundle.roots().iter().filter(|root| **root != self.root).cloned().collect();
        Ok(Issued { chain, root: self.root.clone(), others, not_before, not_after })
    }

    /// Whom it issues for.
    pub fn trust_domain(&self) -> &TrustDomain {
        self.bundle.trust_domain()
    }

    /// The roots that peers should trust.
    pub fn bundle(&self) -> &TrustBundle {
        &self.bundle
    }

    /// The root that what it issues chains to.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The pin of that root, for join token files.
    pub fn pin(&self) -> Result<Pin, AuthorityError> {
        Ok(Pin::of(&self.root).map_err(PemError::Chain)?)
    }

    /// The last moment at which all of the issuing chain is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The issuing key, to store it.
    pub fn key(&self) -> &PrivateKey {
        self.issuer.key()
    }

    /// Issuing certificate, intermediates and roots as PEM, to store them.
    pub fn to_pem(&self) -> String {
        let above = self.intermediates.iter().map(|der| pem::encode_certificate(der)).collect::<String>();
        above + &self.bundle.to_pem()
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("bundle", &self.bundle)
            .field("intermediates", &self.intermediates.len())
            .field("not_after", &x509::show(self.not_after))
            .finish_non_exhaustive()
    }
}

/// The public key of a request, its algorithm as rcgen knows it.
struct RequestedKey {
    point: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for RequestedKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

/// Reads a PEM request, verifies its signature and takes its public key.
fn requested_key(csr: &str) -> Result<RequestedKey, IssueError> {
    if csr.len() > MAX_PEM {
        return Err(IssueError::Request(format!("it is longer than {MAX_PEM} bytes")));
    }
    let blocks = pem::blocks(csr).map_err(|e| IssueError::Request(e.to_string()))?;
    let wanted = |label: &str| matches!(label, "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST");
    let block = blocks
        .iter()
        .find(|block| wanted(&block.label))
        .ok_or_else(|| IssueError::Request(pem::missing("CERTIFICATE REQUEST", &blocks).to_string()))?;
    let (rest, request) = X509CertificationRequest::from_der(&block.der)
        .map_err(|e| IssueError::Request(block.error(format!("not PKCS#10: {e}")).to_string()))?;
    if !rest.is_empty() {
        return Err(IssueError::Request(block.error("bytes follow the request").to_string()));
    }
    let spki = &request.certification_request_info.subject_pki;
    if spki.algorithm.algorithm != OID_KEY_TYPE_EC_PUBLIC_KEY {
        return Err(IssueError::WeakKey(format!("of the kind {}", spki.algorithm.algorithm)));
    }
    let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let algorithm = match curve {
        Some(curve) if curve == OID_EC_P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        Some(curve) if curve == OID_NIST_EC_P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
        Some(curve) => return Err(IssueError::WeakKey(format!("on the curve {curve}"))),
        None => return Err(IssueError::WeakKey("on no named curve".into())),
    };
    request.verify_signature().map_err(|_| IssueError::Signature)?;
    Ok(RequestedKey { point: spki.subject_public_key.data.to_vec(), algorithm })
}

fn uri(text: &str) -> Result<SanType, IssueError> {
    Ok(SanType::URI(text.try_into().map_err(signing)?))
}

/// 16 random bytes, positive.
pub(crate) fn serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| IssueError::Signing("no random numbers".into()))?;
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn signing(error: rcgen::Error) -> IssueError {
    IssueError::Signing(error.to_string())
}

#[cfg(test)]
mod tests;
