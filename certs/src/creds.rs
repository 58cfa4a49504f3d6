//! One identity: its certificate chain, its key and the bundle it trusts, as TLS configurations.
//!
//! Built once per rotation (of the certificate or of the bundle) and checked against itself first, so that a
//! bad certificate never replaces a good one. A connection takes a ready configuration from here and builds
//! none. Used by the proxy on both sides and by the control plane's gRPC port.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::alpn::{self, Alpn};
use crate::bundle::TrustBundle;
use crate::id::SpiffeId;
use crate::key::PrivateKey;
use crate::refusal::{Refusal, Refused};
use crate::tls;
use crate::verify::{ClientVerifier, Expected, Role, ServerVerifier, verify_peer};
use crate::x509;

/// So many peers' configurations are kept; when there are more, the map starts anew.
const MAX_CACHED: usize = 10_000;

/// Why a certificate, key and bundle do not make credentials.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CredsError {
    /// The chain is empty.
    #[error("credentials: there is no certificate")]
    Empty,
    /// The leaf does not pass the checks that peers will make.
    #[error("credentials: peers would refuse this certificate as {}: {}", .0.refusal, .0.detail)]
    Refused(Refused),
    /// The leaf is that of another key.
    #[error("credentials: the certificate of {0} was not issued for this private key")]
    OtherKey(SpiffeId),
    /// The certificate's dates cannot be read.
    #[error("credentials: {0}")]
    Unreadable(String),
    /// rustls would not take it.
    #[error("credentials: {0}")]
    Tls(#[from] rustls::Error),
}

/// A checked identity. Held in an `Arc`, replaced whole.
pub struct Creds {
    id: SpiffeId,
    not_before: SystemTime,
    not_after: SystemTime,
    key: PrivateKey,
    certified: Arc<CertifiedKey>,
    bundle: Arc<TrustBundle>,
    clock: Arc<dyn TimeProvider>,
    provider: Arc<CryptoProvider>,
    inbound: Arc<ServerConfig>,
    control_plane: Arc<ServerConfig>,
    /// What every client configuration is a copy of; its verifier refuses everyone but ourselves.
    client: ClientConfig,
    clients: Mutex<HashMap<(SpiffeId, Alpn), Arc<ClientConfig>, foldhash::fast::RandomState>>,
}

// === impl Creds ===

impl Creds {
    /// Checks and builds. `chain` is what TLS presents, the leaf first (see
    /// [`order_chain`](crate::pem::order_chain)); it must verify against `bundle` at `now` in both roles, carry one
    /// SPIFFE ID of the bundle's trust domain, and fit `key`.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        bundle: Arc<TrustBundle>,
        now: SystemTime,
    ) -> Result<Self, CredsError> {
        Self::with_clock(chain, key, bundle, now, Arc::new(DefaultTimeProvider))
    }

    /// As [`new`](Self::new); handshakes ask `clock` for the time.
    pub fn with_clock(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKey,
        bundle: Arc<TrustBundle>,
        now: SystemTime,
        clock: Arc<dyn TimeProvider>,
    ) -> Result<Self, CredsError> {
        let (leaf, issuers) = chain.split_first().ok_or(CredsError::Empty)?;
        let provider = tls::provider();
        let algorithms = provider.signature_verification_algorithms;
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(x509::seconds(now)));
        let mut id = None;
        for role in [Role::Server, Role::Client] {
            let verified = verify_peer(&bundle, leaf, issuers, role, &algorithms, at);
            id = Some(verified.map_err(CredsError::Refused)?);
        }
        let id = id.ok_or(CredsError::Empty)?;
        let parsed = x509::parse(leaf).map_err(CredsError::Unreadable)?;
        if parsed.spki() != key.public_key() {
            return Err(CredsError::OtherKey(id));
        }
        let (not_before, not_after) = (parsed.not_before(), parsed.not_after());
        drop(parsed);
        let certified = Arc::new(CertifiedKey::new(chain, key.signer()?));
        let server = |required, names: &[&[u8]]| {
            let clients = ClientVerifier { bundle: bundle.clone(), required, algorithms };
            tls::server(provider.clone(), clock.clone(), certified.clone(), clients, names)
        };
        let inbound = server(true, &alpn::MESH)?;
        let control_plane = server(false, &[alpn::GRPC])?;
        let own = ServerVerifier::new(Expected::Peer(bundle.clone(), id.clone()), &provider);
        let client =
            tls::client(provider.clone(), clock.clone(), Some(certified.clone()), Arc::new(own), &[])?;
        Ok(Self {
            id,
            not_before,
            not_after,
            key,
            certified,
            bundle,
            clock,
            provider,
            inbound,
            control_plane,
            client,
            clients: Mutex::default(),
        })
    }

    /// The same certificate and key with another bundle, checked anew.
    pub fn with_bundle(&self, bundle: Arc<TrustBundle>, now: SystemTime) -> Result<Self, CredsError> {
        Self::with_clock(self.certified.cert.clone(), self.key.clone(), bundle, now, self.clock.clone())
    }

    /// Who we are.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The leaf's first valid moment.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The leaf's last valid moment.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether the leaf has expired at `now`. Expired credentials still serve; peers refuse them.
    pub fn is_expired(&self, now: SystemTime) -> bool {
        self.not_after < now
    }

    /// What is presented, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// The roots trusted.
    pub fn bundle(&self) -> &Arc<TrustBundle> {
        &self.bundle
    }

    /// The private key, to store it or to ask for the next certificate with it.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// The server side between proxies: ALPN [`alpn::MESH`], a client certificate of our trust domain required.
    pub fn inbound(&self) -> Arc<ServerConfig> {
        self.inbound.clone()
    }

    /// The control plane's gRPC port: ALPN `h2`, a client certificate optional but, if there is one, verified.
    /// Who may do what without one is the caller's business.
    pub fn control_plane(&self) -> Arc<ServerConfig> {
        self.control_plane.clone()
    }

    /// The client side towards `expected`, offering `alpn` alone; with it comes [`server_name`]. The same peer
    /// and protocol give the same configuration until the next rotation.
    pub fn client(&self, expected: &SpiffeId, alpn: Alpn) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock();
        let key = (expected.clone(), alpn);
        if let Some(config) = clients.get(&key) {
            return config.clone();
        }
        let expected = Expected::Peer(self.bundle.clone(), expected.clone());
        let mut config = self.client.clone();
        config.dangerous().set_certificate_verifier(Arc::new(ServerVerifier::new(expected, &self.provider)));
        config.alpn_protocols = vec![alpn.name().to_vec()];
        let config = Arc::new(config);
        if clients.len() >= MAX_CACHED {
            clients.clear();
        }
        clients.insert(key, config.clone());
        config
    }

    /// Whether a peer's certificate would be accepted now, without a handshake: for checks and tests.
    pub fn check_peer(&self, chain: &[CertificateDer<'_>], now: SystemTime) -> Result<SpiffeId, Refused> {
        let Some((leaf, issuers)) = chain.split_first() else {
            return Err(Refused::new(Refusal::NoCertificate, "there is no certificate"));
        };
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(x509::seconds(now)));
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_peer(&self.bundle, leaf, issuers, Role::Client, algorithms, at)
    }
}

impl fmt::Debug for Creds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Creds")
            .field("id", &self.id)
            .field("not_before", &x509::show(self.not_before))
            .field("not_after", &x509::show(self.not_after))
            .field("bundle", &self.bundle)
            .finish_non_exhaustive()
    }
}

/// The name that rustls wants for every client connection. It is neither sent (SNI is off, since a mesh peer is
/// told by ALPN) nor compared (the SPIFFE ID is).
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::UNSPECIFIED).into())
}

#[cfg(test)]
mod tests;
