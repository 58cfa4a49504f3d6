//! Files that a certificate is asked for with: tokens, roots. Read whenever they are needed, since others write them.

use std::path::Path;

use tulle_certs::{TrustBundle, TrustDomain, pem};
use zeroize::Zeroizing;

use super::source::IdentityError;

pub(super) fn error(path: &Path, why: impl ToString) -> IdentityError {
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
