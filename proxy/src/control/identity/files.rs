//! Certificate, key and roots from files that something else keeps (cert-manager, SPIRE, an operator).

use std::path::Path;

use tulle_certs::{Creds, PrivateKey, TrustBundle, TrustDomain, peer_id, pem};
use zeroize::Zeroizing;

use super::source::{IdentityError, Obtained};

fn error(path: &Path, why: impl ToString) -> IdentityError {
    IdentityError::File { path: path.to_owned(), why: why.to_string() }
}

pub(super) fn read(path: &Path) -> Result<Zeroizing<String>, IdentityError> {
    pem::read_file(path).map_err(|e| error(path, e))
}

/// The roots in a PEM file.
pub(super) fn bundle(path: &Path, domain: &TrustDomain) -> Result<TrustBundle, IdentityError> {
    TrustBundle::from_pem(domain.clone(), &read(path)?).map_err(|e| error(path, e))
}

/// The trust domain that the roots in a PEM file say that they are for, if they do.
pub(super) fn trust_domain(path: &Path) -> Result<Option<TrustDomain>, IdentityError> {
    TrustBundle::trust_domain_in(&read(path)?).map_err(|e| error(path, e))
}

/// Reads all three; `None` if they say what `current` already holds. The identity is that in the certificate.
pub(super) fn load(
    cert: &Path,
    key: &Path,
    roots: &Path,
    current: Option<&Creds>,
) -> Result<Option<Obtained>, IdentityError> {
    let chain = pem::certificates(&read(cert)?).and_then(pem::order_chain).map_err(|e| error(cert, e))?;
    let id = peer_id(&chain).map_err(|refusal| error(cert, refusal))?;
    let bundle = bundle(roots, &id.trust_domain())?;
    if current.is_some_and(|current| current.chain() == chain && **current.bundle() == bundle) {
        return Ok(None);
    }
    let key = PrivateKey::from_pem(&read(key)?).map_err(|e| error(key, e))?;
    Ok(Some(Obtained { chain, key, bundle, expected: None, keep_roots: false }))
}
