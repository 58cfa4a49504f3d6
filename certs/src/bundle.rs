//! The roots that vouch for a trust domain, and pins of their public keys.
//!
//! A bundle holds several roots while a rotation is under way. Which bundle counts is decided by the trust
//! domain in the peer's own SPIFFE ID, never by who signed it.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use rustls_pki_types::{CertificateDer, TrustAnchor};

use crate::id::TrustDomain;
use crate::pem::{self, PemError};
use crate::verified::Verified;
use crate::x509;

/// Why a bundle is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Bad PEM.
    #[error("trust bundle: {0}")]
    Pem(#[from] PemError),
    /// No root at all: everything would be refused.
    #[error("trust bundle of {0}: it holds no root certificate")]
    Empty(TrustDomain),
    /// One of the certificates cannot be a root.
    #[error("trust bundle: certificate {index} ({subject}): {why}")]
    Certificate {
        /// Which one, from 1.
        index: usize,
        /// Its subject.
        subject: String,
        /// What is wrong with it.
        why: String,
    },
    /// Two bundles of different trust domains cannot be merged.
    #[error("trust bundle: that of {theirs} cannot be merged into that of {ours}")]
    OtherTrustDomain {
        /// The bundle merged into.
        ours: TrustDomain,
        /// The bundle merged.
        theirs: TrustDomain,
    },
}

/// The roots of one trust domain; at least one.
pub struct TrustBundle {
    domain: TrustDomain,
    roots: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    verified: Verified,
}

// === impl TrustBundle ===

impl TrustBundle {
    /// A bundle of CA certificates in DER; duplicates are dropped. Expired ones are kept: a rotation removes
    /// them, and a leaf never outlives its issuer.
    pub fn new(domain: TrustDomain, certificates: Vec<CertificateDer<'static>>) -> Result<Self, BundleError> {
        let mut bundle =
            Self { domain, roots: Vec::new(), anchors: Vec::new(), verified: Verified::default() };
        for (at, certificate) in certificates.into_iter().enumerate() {
            let error =
                |subject: String, why: String| BundleError::Certificate { index: at + 1, subject, why };
            let parsed = x509::parse(&certificate).map_err(|why| error("unreadable".into(), why))?;
            if !parsed.is_ca() {
                return Err(error(parsed.subject(), "it is not a CA certificate".into()));
            }
            let anchor = webpki::anchor_from_trusted_cert(&certificate)
                .map_err(|e| error(parsed.subject(), e.to_string()))?
                .to_owned();
            drop(parsed);
            bundle.push(certificate, anchor);
        }
        if bundle.roots.is_empty() {
            return Err(BundleError::Empty(bundle.domain));
        }
        Ok(bundle)
    }

    /// A bundle from PEM with any number of CA certificates.
    pub fn from_pem(domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        Self::new(domain, pem::certificates(text)?)
    }

    /// A bundle of raw DER, as the `TrustBundle` resource carries it.
    pub fn from_der<T: AsRef<[u8]>>(domain: TrustDomain, certificates: &[T]) -> Result<Self, BundleError> {
        Self::new(domain, certificates.iter().map(|der| der.as_ref().to_vec().into()).collect())
    }

    /// The trust domain that the roots in a PEM text say that they are for (X509-SVID §3.2); `None` if none of them says so, or not all the same.
    pub fn trust_domain_in(text: &str) -> Result<Option<TrustDomain>, BundleError> {
        let roots = pem::certificates(text)?;
        let mut said = roots.iter().filter_map(x509::trust_domain);
        let first = said.next();
        Ok(first.filter(|first| said.all(|other| other == *first)))
    }

    fn push(&mut self, certificate: CertificateDer<'static>, anchor: TrustAnchor<'static>) {
        if !self.roots.contains(&certificate) {
            self.roots.push(certificate);
            self.anchors.push(anchor);
        }
    }

    /// Adds the roots of `other` that are not there yet.
    pub fn merge(&mut self, other: &Self) -> Result<(), BundleError> {
        if self.domain != other.domain {
            return Err(BundleError::OtherTrustDomain {
                ours: self.domain.clone(),
                theirs: other.domain.clone(),
            });
        }
        for (root, anchor) in other.roots.iter().zip(&other.anchors) {
            self.push(root.clone(), anchor.clone());
        }
        Ok(())
    }

    /// Whom these roots vouch for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.domain
    }

    /// The roots in DER.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots as PEM.
    pub fn to_pem(&self) -> String {
        self.roots.iter().map(|root| pem::encode_certificate(root)).collect()
    }

    /// The pins of all roots.
    pub fn pins(&self) -> Vec<Pin> {
        self.roots.iter().filter_map(|root| Pin::of(root).ok()).collect()
    }

    /// Chains that these roots have vouched for.
    pub(crate) fn verified(&self) -> &Verified {
        &self.verified
    }

    pub(crate) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

impl Clone for TrustBundle {
    /// What was verified is not taken along: the copy may get other roots.
    fn clone(&self) -> Self {
        let (domain, roots, anchors) = (self.domain.clone(), self.roots.clone(), self.anchors.clone());
        Self { domain, roots, anchors, verified: Verified::default() }
    }
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.domain == other.domain && self.roots == other.roots
    }
}

impl Eq for TrustBundle {}

impl fmt::Debug for TrustBundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrustBundle").field("domain", &self.domain).field("pins", &self.pins()).finish()
    }
}

/// The SHA-256 of a certificate's SubjectPublicKeyInfo; `sha256:<64 hexadecimal digits>` as text. It survives a
/// renewal of the root with the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

/// A text is no pin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pin {0:?} is not of the form sha256:<64 hexadecimal digits>")]
pub struct PinError(String);

// === impl Pin ===

impl Pin {
    /// The pin of a certificate's public key; an error if it is no certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, String> {
        Ok(Self::of_spki(x509::parse(certificate)?.spki()))
    }

    /// The pin of a SubjectPublicKeyInfo in DER.
    pub fn of_spki(spki: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, spki).as_ref());
        Self(hash)
    }
}

impl FromStr for Pin {
    type Err = PinError;
    fn from_str(text: &str) -> Result<Self, PinError> {
        let error = || PinError(text.chars().take(100).collect());
        let hex = text.strip_prefix("sha256:").ok_or_else(error)?;
        if hex.len() != 64 || !hex.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(error());
        }
        let mut hash = [0; 32];
        for (at, byte) in hash.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(hash))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_go_round_and_bad_ones_are_told() {
        let pin = Pin::of_spki(b"x");
        assert_eq!(pin.to_string().parse::<Pin>().unwrap(), pin);
        assert_eq!(pin.to_string().to_uppercase().replace("SHA256", "sha256").parse::<Pin>().unwrap(), pin);
        for bad in
            ["", "sha256:", "sha1:00", &pin.to_string()[..70], "sha256:zz", &format!("{pin}0"), "sha256:é"]
        {
            assert!(bad.parse::<Pin>().is_err(), "{bad}");
        }
    }
}
