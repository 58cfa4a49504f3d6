//! TLS to the control plane for a proxy that has no certificate yet.
//!
//! Who has a pin (the join token file) or a bundle (a ConfigMap, a file) trusts the control plane that proves
//! it; there is no trust on first use. The client shows no certificate: its token speaks for it.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};

use crate::alpn;
use crate::bundle::{Pin, TrustBundle};
use crate::id::{TrustDomain, control_plane_id};
use crate::tls;
use crate::verify::{Expected, ServerVerifier};

/// Trusts a server whose presented chain ends in a root with the pinned public key, which is valid now and
/// carries the control plane's SPIFFE ID in `domain`. Offers `h2`.
pub fn pinned(pin: Pin, domain: &TrustDomain) -> Result<Arc<ClientConfig>, rustls::Error> {
    config(Expected::Pinned(pin, domain.clone()), Arc::new(DefaultTimeProvider))
}

/// Trusts the control plane of the bundle's trust domain. Offers `h2`.
pub fn with_bundle(bundle: Arc<TrustBundle>) -> Result<Arc<ClientConfig>, rustls::Error> {
    let id = control_plane_id(bundle.trust_domain());
    config(Expected::Peer(bundle, id), Arc::new(DefaultTimeProvider))
}

pub(crate) fn config(
    expected: Expected,
    clock: Arc<dyn TimeProvider>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let provider = tls::provider();
    let verifier = Arc::new(ServerVerifier::new(expected, &provider));
    Ok(Arc::new(tls::client(provider, clock, None, verifier, &[alpn::GRPC])?))
}
