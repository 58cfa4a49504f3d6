//! Identities that the mesh gave to nobody, and TLS clients and servers that use them against it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tulle_certs::issue::Authority;
use tulle_certs::key::csr;
use tulle_certs::{PrivateKey, SpiffeId, TrustDomain};

use crate::Wire;
use crate::wait::within;

/// A certificate chain and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKey,
}

/// The mesh's trust domain in tests.
pub fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").expect("a trust domain")
}

/// A root that nobody trusts.
pub fn authority(domain: &TrustDomain) -> Authority {
    Authority::generate(domain, Duration::from_secs(86_400), SystemTime::now()).expect("a root")
}

/// `spiffe://<domain>/ns/default/sa/<name>`.
pub fn spiffe_id(domain: &TrustDomain, name: &str) -> SpiffeId {
    SpiffeId::new(domain, crate::NAMESPACE, name).expect("a SPIFFE ID")
}

// === impl Identity ===

impl Identity {
    /// Valid for an hour.
    pub fn issue(authority: &Authority, name: &str) -> Self {
        Self::issue_at(authority, name, SystemTime::now(), Duration::from_secs(3600))
    }

    /// Valid from five minutes before `at` to `lifetime` after it.
    pub fn issue_at(authority: &Authority, name: &str, at: SystemTime, lifetime: Duration) -> Self {
        let key = PrivateKey::generate().expect("a key");
        let id = spiffe_id(authority.trust_domain(), name);
        let request = csr(&key, Some(&id)).expect("a request");
        let issued = authority.issue(&request, &id, lifetime, at).expect("a certificate");
        Self { chain: issued.chain, key }
    }

    /// Signed by the authority of this key and certificate, for TLS clients, naming these URIs and nobody else.
    pub fn naming(authority_key: &str, authority: &str, uris: &[&str]) -> Self {
        let signer = rcgen::KeyPair::from_pem(authority_key).expect("the authority's key");
        let issuer = rcgen::Issuer::from_ca_cert_pem(authority, signer).expect("the authority's certificate");
        let own = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::new(vec!["nobody.example".to_owned()]).expect("a name");
        let uris = uris.iter().map(|uri| rcgen::SanType::URI((*uri).try_into().expect("a URI")));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&own, &issuer).expect("a certificate");
        let key = PrivateKey::from_pem(&own.serialize_pem()).expect("a key of ours");
        Self { chain: vec![certificate.der().clone()], key }
    }

    /// Signed by the authority of this key and certificate, for a client whose key is of RSA with 1024 bits, which nobody has.
    pub fn of_a_weak_key(authority_key: &str, authority: &str, uri: &str) -> Self {
        let signer = rcgen::KeyPair::from_pem(authority_key).expect("the authority's key");
        let issuer = rcgen::Issuer::from_ca_cert_pem(authority, signer).expect("the authority's certificate");
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri.try_into().expect("a URI"))];
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&WeakKey::new(), &issuer).expect("a certificate");
        Self { chain: vec![certificate.der().clone()], key: PrivateKey::generate().expect("a key") }
    }

    fn key_der(&self) -> PrivateKeyDer<'static> {
        let pem = self.key.to_pem();
        let block = tulle_certs::pem::blocks(&pem).expect("PEM").remove(0);
        PrivateKeyDer::Pkcs8(block.der.to_vec().into())
    }

    /// A TLS 1.3 server configuration that asks clients for nothing: what a stranger at an endpoint's address has.
    pub fn server(&self, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
        let builder = ServerConfig::builder_with_provider(provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(self.chain.clone(), self.key_der())
            .expect("a certificate and its key");
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// As [`Identity::server`], of one that takes nobody but clients of another root.
    pub fn server_for_clients_of(&self, root: &Authority, alpn: &[&[u8]]) -> Arc<ServerConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root.root().clone()).expect("a root");
        #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
        #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
        let builder = ServerConfig::builder_with_provider(provider());
        let mut config = builder
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_client_cert_verifier(verifier.build().expect("a verifier"))
            .with_single_cert(self.chain.clone(), self.key_der())
            .expect("a certificate and its key");
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }

    /// Its certificate, with a key that is not the certificate's.
    fn stolen(&self) -> CertifiedKey {
        let thief = PrivateKey::generate().expect("a key");
        let key = Self { key: thief, ..self.clone() }.key_der();
        let key = aws_lc_rs::sign::any_supported_type(&key).expect("a key that signs");
        CertifiedKey::new(self.chain.clone(), key)
    }
}

/// An RSA key of 1024 bits, the public half.
struct WeakKey(Vec<u8>);

impl WeakKey {
    /// RSAPublicKey (RFC 8017 §A.1.1): the modulus, and 65537.
    fn new() -> Self {
        let modulus = [&[0x02, 0x81, 0x81, 0x00][..], &[0xc3; 128]].concat();
        Self([&[0x30, 0x81, 0x89][..], &modulus, &[0x02, 0x03, 0x01, 0x00, 0x01]].concat())
    }
}

impl rcgen::PublicKeyData for WeakKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// A TLS client configuration that takes any server, and shows `identity` if there is one.
pub fn client(identity: Option<&Identity>, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    #[allow(clippy::disallowed_methods, reason = "not one of ours: that is the point")]
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())));
    let mut config = match identity {
        Some(identity) => builder
            .with_client_auth_cert(identity.chain.clone(), identity.key_der())
            .expect("a certificate and its key"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Arc::new(config)
}

/// A TLS connection to a proxy's inbound listener.
///
/// # Errors
/// The handshake's. In TLS 1.3 a server's refusal of the client's certificate comes after the client's handshake, with
/// the first read.
pub async fn connect(
    address: SocketAddr,
    identity: Option<&Identity>,
    alpn: &[&[u8]],
) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
    handshake(TcpStream::connect(address).await?, "peer.invalid", client(identity, alpn)).await
}

/// As [`connect`], of a client that shows `identity`'s certificate and has not its key.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as_a_thief(
    address: SocketAddr,
    identity: &Identity,
    alpn: &[&[u8]],
) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
    let mut config = ClientConfig::clone(&client(None, alpn));
    config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(identity.stolen()));
    handshake(TcpStream::connect(address).await?, "peer.invalid", Arc::new(config)).await
}

/// A TLS connection, over this one, of a client that asks for the server `name`.
///
/// # Errors
/// The handshake's.
pub async fn connect_as(stream: TcpStream, name: &str) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
    handshake(stream, name, client(None, &[])).await
}

async fn handshake(
    stream: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let connector = TlsConnector::from(config);
    Ok(Wire::new(within("a TLS handshake", connector.connect(name, stream)).await?))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Takes any certificate, but its holder must have the key.
#[derive(Debug)]
struct AnyServer(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
