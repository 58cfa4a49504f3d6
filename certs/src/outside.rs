//! TLS to servers outside the mesh, such as a collector of traces: told by their host names, by roots that the caller trusts.
//!
//! Nothing of the mesh's is shown to them, and nothing that they show is an identity. One client trusts whoever answers ([`unverified`]): that
//! of probes, which ask whether a server answers and not who it is.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;

use crate::tls;

/// Why there is no such configuration.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// Of what was given, nothing is a root.
    #[error("no certificate in it can be used as a root")]
    NoRoots,
    /// The provider cannot do what is asked.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

/// A client that trusts what these roots have signed; `alpn`: what it will speak.
///
/// # Errors
/// Without a root that can be used; some may be of a kind that is not known, as a system's are.
pub fn client(
    roots: Vec<CertificateDer<'static>>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, OutsideError> {
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(roots);
    if store.is_empty() {
        return Err(OutsideError::NoRoots);
    }
    Ok(tls::outside(store, alpn)?)
}

/// A client that believes whatever certificate a server shows, as the kubelet's probes do. Nothing may be told to such a server that is not
/// for everybody, and nothing that it says be taken for more than that it answers.
///
/// # Errors
/// When the provider cannot do what is asked.
pub fn unverified(alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, OutsideError> {
    Ok(tls::unverified(alpn)?)
}
