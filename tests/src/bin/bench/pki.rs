//! The peers' certificates: one root, one leaf for each side, ECDSA P-256. Tulle's come from its own control plane.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};

/// The name in both leaves, beside a SPIFFE ID.
pub(crate) const NAME: &str = "peer.bench";

/// Which half of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Side {
    Outbound,
    Inbound,
}

/// A folder with `ca.pem`, and for each side `.crt`, `.key` and both in `.pem`.
#[derive(Clone, Debug)]
pub(crate) struct Pki(PathBuf);

// === impl Side ===

impl Side {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

// === impl Pki ===

impl Pki {
    pub(crate) fn generate(folder: &Path) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).expect("a root");
        let write = |name: String, text: &str| fs::write(folder.join(name), text).expect("a file");
        write("ca.pem".to_owned(), &root.pem());
        let issuer = Issuer::new(params, key);
        for side in [Side::Outbound, Side::Inbound] {
            let own = KeyPair::generate().expect("a key");
            let mut params = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
            let id = format!("spiffe://bench/ns/default/sa/{}", side.name());
            params.subject_alt_names.push(SanType::URI(id.try_into().expect("ASCII")));
            // Not the root's default name, or it would pass for its own issuer.
            params.distinguished_name.push(DnType::CommonName, side.name());
            params.extended_key_usages =
                vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let leaf = params.signed_by(&own, &issuer).expect("a certificate");
            write(format!("{}.crt", side.name()), &leaf.pem());
            write(format!("{}.key", side.name()), &own.serialize_pem());
            write(format!("{}.pem", side.name()), &(leaf.pem() + &own.serialize_pem()));
        }
        Self(folder.to_owned())
    }

    pub(crate) fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.0
    }

    pub(crate) fn ca(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    /// `ending`: `crt`, `key`, or `pem` for both.
    pub(crate) fn file(&self, side: Side, ending: &str) -> PathBuf {
        self.0.join(format!("{}.{ending}", side.name()))
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.ca()).expect("a certificate")).expect("a root");
        Arc::new(roots)
    }

    fn own(&self, side: Side) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let leaf = CertificateDer::from_pem_file(self.file(side, "crt")).expect("a certificate");
        (vec![leaf], PrivateKeyDer::from_pem_file(self.file(side, "key")).expect("a key"))
    }

    /// What the bare outbound half connects with.
    pub(crate) fn client(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let (chain, key) = self.own(Side::Outbound);
        #[allow(clippy::disallowed_methods, reason = "the bare pair is not ours: that is the point")]
        let builder = ClientConfig::builder_with_provider(provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(self.roots())
            .with_client_auth_cert(chain, key)
            .expect("a certificate and its key");
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }

    /// What the bare inbound half accepts with: a client certificate is required.
    pub(crate) fn server(&self, alpn: &[u8]) -> Arc<ServerConfig> {
        let (chain, key) = self.own(Side::Inbound);
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider()).build();
        #[allow(clippy::disallowed_methods, reason = "the bare pair is not ours: that is the point")]
        let builder = ServerConfig::builder_with_provider(provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(chain, key)
            .expect("a certificate and its key");
        config.alpn_protocols = vec![alpn.to_vec()];
        Arc::new(config)
    }
}

/// AES-128 first, as peers have it: the others take the same by default.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}
