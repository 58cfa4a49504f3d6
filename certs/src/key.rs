//! Private keys and certificate signing requests.
//!
//! A key never leaves this type but as PEM that someone asked for, to store it. `Debug` shows the kind of key
//! and the pin of its public half. What is stored is wiped when the last clone is dropped.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
};
use rcgen::{CertificateParams, DistinguishedName, PublicKeyData, SanType, SignatureAlgorithm};
use rustls::sign::SigningKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::bundle::Pin;
use crate::id::SpiffeId;
use crate::pem::{self, PemError};

/// The most that a PEM key or request may measure.
pub(crate) const MAX_PEM: usize = 64 * 1024;

/// Why a key could not be made or read. Never quotes the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text is not what PEM should be.
    #[error("private key: {0}")]
    Pem(#[from] PemError),
    /// A kind of key that is not supported.
    #[error(
        "private key: {0} is not supported; use an ECDSA key on P-256 or P-384, or Ed25519, unencrypted PKCS#8 or SEC1"
    )]
    Unsupported(&'static str),
    /// The random number generator or the library refused.
    #[error("private key: {0}")]
    Crypto(&'static str),
}

/// An ECDSA private key on P-256 (what we make) or P-384, or one of Ed25519 (what may be given). Cheap to clone.
#[derive(Clone)]
pub struct PrivateKey(Arc<Inner>);

enum Pair {
    Ecdsa(EcdsaKeyPair),
    Ed25519(Ed25519KeyPair),
}

struct Inner {
    pair: Pair,
    pkcs8: Zeroizing<Vec<u8>>,
    algorithm: &'static SignatureAlgorithm,
}

// === impl PrivateKey ===

impl PrivateKey {
    /// A new key on P-256.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
            .map_err(|_| KeyError::Crypto("generating a key failed"))?;
        Self::from_pair(pair, &rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Reads PKCS#8 (`PRIVATE KEY`) or SEC1 (`EC PRIVATE KEY`) PEM; other blocks around it are passed over.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        let blocks = pem::blocks(text)?;
        for block in &blocks {
            match block.label.as_str() {
                "PRIVATE KEY" | "EC PRIVATE KEY" => return Self::from_der(&block.der),
                "RSA PRIVATE KEY" => return Err(KeyError::Unsupported("an RSA key")),
                "ENCRYPTED PRIVATE KEY" => return Err(KeyError::Unsupported("an encrypted key")),
                _ => {}
            }
        }
        Err(pem::missing("PRIVATE KEY", &blocks).into())
    }

    /// Reads PKCS#8 or SEC1 DER.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, der) {
            return Self::from_pair(pair, &rcgen::PKCS_ECDSA_P256_SHA256);
        }
        if let Ok(pair) = EcdsaKeyPair::from_private_key_der(&ECDSA_P384_SHA384_ASN1_SIGNING, der) {
            return Self::from_pair(pair, &rcgen::PKCS_ECDSA_P384_SHA384);
        }
        if let Ok(pair) = Ed25519KeyPair::from_pkcs8(der) {
            let document = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto("encoding the key failed"))?;
            let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
            return Ok(Self(Arc::new(Inner {
                pair: Pair::Ed25519(pair),
                pkcs8,
                algorithm: &rcgen::PKCS_ED25519,
            })));
        }
        Err(KeyError::Unsupported("this key"))
    }

    fn from_pair(pair: EcdsaKeyPair, algorithm: &'static SignatureAlgorithm) -> Result<Self, KeyError> {
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::Crypto("encoding the key failed"))?;
        let pkcs8 = Zeroizing::new(document.as_ref().to_vec());
        Ok(Self(Arc::new(Inner { pair: Pair::Ecdsa(pair), pkcs8, algorithm })))
    }

    /// PKCS#8 PEM, to store it in a file of mode 0600. Wiped when dropped.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem::encode("PRIVATE KEY", &self.0.pkcs8))
    }

    /// The public half as SubjectPublicKeyInfo DER.
    pub fn public_key(&self) -> Vec<u8> {
        self.subject_public_key_info()
    }

    /// The public half: of ECDSA as an uncompressed point.
    pub(crate) fn point(&self) -> &[u8] {
        match &self.0.pair {
            Pair::Ecdsa(pair) => pair.public_key().as_ref(),
            Pair::Ed25519(pair) => pair.public_key().as_ref(),
        }
    }

    /// PKCS#8 DER.
    pub(crate) fn pkcs8(&self) -> &[u8] {
        &self.0.pkcs8
    }

    pub(crate) fn is_p256(&self) -> bool {
        self.0.algorithm == &rcgen::PKCS_ECDSA_P256_SHA256
    }

    /// The key as rustls signs with it.
    pub(crate) fn signer(&self) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.pkcs8.as_slice()));
        rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0.pair {
            Pair::Ecdsa(_) if self.is_p256() => "P-256",
            Pair::Ecdsa(_) => "P-384",
            Pair::Ed25519(_) => "Ed25519",
        };
        write!(f, "PrivateKey({kind}, public key {})", Pin::of_spki(&self.public_key()))
    }
}

impl PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        self.point()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signature = match &self.0.pair {
            Pair::Ecdsa(pair) => pair.sign(&SystemRandom::new(), message),
            Pair::Ed25519(pair) => pair.try_sign(message),
        };
        Ok(signature.map_err(|_| rcgen::Error::RemoteKeyError)?.as_ref().to_vec())
    }
}

/// A certificate signing request as PEM (RFC 2986).
///
/// `id` is named in it because other authorities (cert-manager's istio-csr) compare it with the caller's
/// identity; our own authority takes nothing but the public key.
pub fn csr(key: &PrivateKey, id: Option<&SpiffeId>) -> Result<String, KeyError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(id) = id {
        let uri = id.as_str().try_into().map_err(|_| KeyError::Crypto("the SPIFFE ID is not ASCII"))?;
        params.subject_alt_names.push(SanType::URI(uri));
    }
    let request =
        params.serialize_request(key).map_err(|_| KeyError::Crypto("signing the request failed"))?;
    Ok(pem::encode("CERTIFICATE REQUEST", request.der()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_and_errors_show_no_key() {
        let key = PrivateKey::generate().unwrap();
        let shown = format!("{key:?} {key:#?}");
        let pem = key.to_pem();
        for line in pem.lines().filter(|line| !line.starts_with("-----")) {
            assert!(!shown.contains(line));
        }
        assert!(shown.contains("P-256") && shown.contains("sha256:"), "{shown}");
        assert!(shown.len() < 250, "{shown}");
        let broken = pem.replace("-----END", "!\n-----END");
        let error = format!("{:?} {0}", PrivateKey::from_pem(&broken).unwrap_err());
        assert!(
            pem.lines().filter(|line| line.len() > 20 && !line.starts_with('-')).all(|l| !error.contains(l))
        );
    }

    #[test]
    fn pem_goes_round() {
        let key = PrivateKey::generate().unwrap();
        let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
        assert_eq!(key.public_key(), again.public_key());
        let crlf = format!("some text\r\n{}\r\n", key.to_pem().replace('\n', "\r\n"));
        assert_eq!(PrivateKey::from_pem(&crlf).unwrap().public_key(), key.public_key());
    }

    /// Made by `openssl ecparam -name prime256v1 -genkey` for this test alone.
    const SEC1: &str = "-----BEGIN EC PARAMETERS-----
BggqhkjOPQMBBw==
-----END EC PARAMETERS-----
-----BEGIN EC PRIVATE KEY-----
MHcCAQEEIM9dJ3O3ZoG61RErtVNiKcpa3K5vO+LZl01XfhJvVZPRoAoGCCqGSM49
AwEHoUQDQgAEtC6uLttK9A300skKmCW7AeKz5/qqGP1JKqhKKakQJ2I3fOjKxdRm
Q8ePCIwlVsa3a9K04zjJ/e7b//bctVy3Mg==
-----END EC PRIVATE KEY-----";

    #[test]
    fn sec1_is_read() {
        assert!(PrivateKey::from_pem(SEC1).unwrap().is_p256());
    }

    #[test]
    fn p384_and_ed25519_are_read_and_sign() {
        for (algorithm, kind) in
            [(&rcgen::PKCS_ECDSA_P384_SHA384, "P-384"), (&rcgen::PKCS_ED25519, "Ed25519")]
        {
            let given = rcgen::KeyPair::generate_for(algorithm).unwrap();
            let key = PrivateKey::from_pem(&given.serialize_pem()).unwrap();
            assert_eq!(key.public_key(), given.subject_public_key_info(), "{kind}");
            assert!(format!("{key:?}").contains(kind) && !key.is_p256() && key.signer().is_ok());
            let again = PrivateKey::from_pem(&key.to_pem()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
            assert!(csr(&key, None).is_ok());
        }
    }

    /// What cert-manager's istio-csr asks for: the caller's URI, and nothing else but the key.
    #[test]
    fn a_request_names_the_identity_and_nothing_else() {
        use x509_parser::certification_request::X509CertificationRequest;
        use x509_parser::extensions::{GeneralName, ParsedExtension};
        use x509_parser::prelude::FromDer;
        let id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/web").unwrap();
        let text = csr(&PrivateKey::generate().unwrap(), Some(&id)).unwrap();
        let der = pem::blocks(&text).unwrap().remove(0).der;
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        let extensions: Vec<_> = request.requested_extensions().unwrap().collect();
        let [ParsedExtension::SubjectAlternativeName(names)] = extensions.as_slice() else {
            panic!("{extensions:?}")
        };
        assert_eq!(names.general_names, [GeneralName::URI(id.as_str())]);
    }

    #[test]
    fn other_keys_are_refused_with_a_remedy() {
        for (label, word) in [("RSA PRIVATE KEY", "RSA"), ("ENCRYPTED PRIVATE KEY", "encrypted")] {
            let error = PrivateKey::from_pem(&pem::encode(label, b"x")).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("P-256"), "{error}");
        }
        let error = PrivateKey::from_pem("").unwrap_err().to_string();
        assert!(error.contains("no PRIVATE KEY block"), "{error}");
        let error = PrivateKey::from_pem(&pem::encode("CERTIFICATE", b"x")).unwrap_err().to_string();
        assert!(error.contains("found CERTIFICATE"), "{error}");
        assert!(PrivateKey::from_pem(&pem::encode("PRIVATE KEY", b"x")).is_err());
    }
}
