//! What must outlive the authority: its keys, its certificates, and what join tokens have granted.
//!
//! | name | holds |
//! | --- | --- |
//! | `ca-key.pem` | the issuing key |
//! | `ca.pem` | the issuing certificate, those above it, every root of the trust bundle |
//! | `token-key.pem` | the key that signs join tokens |
//! | `grants.json` | the services that identities may register for |
//! | `rotation.json` | how far a rotation of the root is, and what it needs ([`super::rotation`]) |
//! | `rotation-reports.json` | meanwhile, what each of several control planes says of itself |
//! | `tokens.json` | the join tokens that were made, and which of them are revoked |
//! | `roots.json` | where somebody else makes the issuing certificate: the roots that it has had |
//!
//! Decides what is made where something is missing, and what half an authority is; where it is kept is a [`Store`]'s: files of the
//! state folder ([`folder`]), the keys of a Secret ([`crate::cluster`]), which several control planes share, or two Secrets, of which
//! cert-manager writes the one with the issuing key and its certificates.

pub(super) mod folder;

use std::collections::BTreeMap;
use std::time::SystemTime;

use tulle_certs::bundle::PinError;
use tulle_certs::issue::{self, Authority, AuthorityError, ROOT_LIFETIME};
use tulle_certs::token::JoinTokens;
use tulle_certs::{Pin, TrustBundle, TrustDomain};
use zeroize::Zeroizing;

use super::{CaError, StoredTokens, rotation};

pub(crate) const CA_KEY: &str = "ca-key.pem";
pub(crate) const CA_CERTIFICATES: &str = "ca.pem";
pub(super) const TOKEN_KEY: &str = "token-key.pem";
pub(super) const GRANTS: &str = "grants.json";
pub(super) const TOKENS: &str = "tokens.json";
pub(crate) const ROOTS: &str = "roots.json";
pub(crate) const ROTATION: &str = "rotation.json";
pub(crate) const REPORTS: &str = "rotation-reports.json";

/// Everything that is kept where the authority is our own.
pub const NAMES: [&str; 7] = [CA_KEY, CA_CERTIFICATES, TOKEN_KEY, GRANTS, TOKENS, ROTATION, REPORTS];
/// What is kept beside an issuing certificate that somebody else makes.
pub(crate) const BESIDE_ISSUER: [&str; 4] = [TOKEN_KEY, GRANTS, TOKENS, ROOTS];

/// What is kept, by name; wiped when dropped.
pub type Kept = BTreeMap<&'static str, Zeroizing<String>>;

/// What a change makes of what is kept: `None` leaves it as it is.
pub type Change<'c> = dyn Fn(Option<&str>) -> Option<String> + Send + Sync + 'c;

/// Whether what is kept is still what somebody goes by.
pub type Condition<'c> = dyn Fn(Option<&str>) -> bool + Send + Sync + 'c;

/// Where it is kept. It is read whole when the authority is opened; from then on only what may change is written.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// Where `name` is, for messages.
    fn place(&self, name: &str) -> String;

    /// Puts what `change` makes of it in the place of what is kept by `name`, whole or not at all. What somebody else has written
    /// meanwhile is not lost: `change` may be asked again.
    async fn change(&self, name: &'static str, change: &Change<'_>) -> Result<(), CaError>;

    /// Puts these texts in the place of what is kept by their names, in this order, if what is kept by `name` fits; where several may write, all at once or not at all. False: it does
    /// not fit, and nothing was written.
    async fn replace(
        &self,
        texts: &[(&'static str, Zeroizing<String>)],
        name: &'static str,
        fits: &Condition<'_>,
    ) -> Result<bool, CaError>;

    /// Whether the root is ours to rotate; if not, why, and what to do instead.
    fn rotates(&self) -> Result<(), String> {
        Ok(())
    }

    /// Whether whoever can reach the control plane's own host must also show that it may read what is kept, before it may change the root. In a
    /// cluster only who may forward ports to the control plane's pods gets there.
    fn is_guarded(&self) -> bool {
        false
    }

    /// What is kept by `name` now, where others write it and nobody tells; `None`: nothing is, or [`Ca::take_in`](super::Ca::take_in) tells it.
    async fn look(&self, _name: &'static str) -> Result<Option<String>, CaError> {
        Ok(None)
    }
}

/// Makes what is missing of `kept`, and says what that is, in the order in which it should be written.
///
/// # Errors
/// Key without certificate or certificate without key is not made whole: the other half may only be mislaid.
pub fn complete(
    kept: &mut Kept,
    place: &dyn Fn(&str) -> String,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Vec<&'static str>, CaError> {
    let mut made = Vec::new();
    match (kept.contains_key(CA_KEY), kept.contains_key(CA_CERTIFICATES)) {
        (true, true) => {}
        (true, false) => {
            return Err(CaError::Half { present: place(CA_KEY), missing: place(CA_CERTIFICATES) });
        }
        (false, true) => {
            return Err(CaError::Half { present: place(CA_CERTIFICATES), missing: place(CA_KEY) });
        }
        (false, false) => {
            let authority =
                Authority::generate(domain, ROOT_LIFETIME, now).map_err(|why| in_authority(place, why))?;
            kept.insert(CA_CERTIFICATES, Zeroizing::new(authority.to_pem()));
            kept.insert(CA_KEY, authority.key().to_pem());
            made.extend([CA_CERTIFICATES, CA_KEY]);
        }
    }
    made.extend(complete_tokens(kept, place)?);
    Ok(made)
}

/// The same of what is kept beside an issuing certificate that somebody else makes.
///
/// # Errors
/// When no key can be made.
pub(crate) fn complete_tokens(
    kept: &mut Kept,
    place: &dyn Fn(&str) -> String,
) -> Result<Vec<&'static str>, CaError> {
    if kept.contains_key(TOKEN_KEY) {
        return Ok(Vec::new());
    }
    let in_tokens = |why| CaError::Tokens { place: place(TOKEN_KEY), why };
    let tokens = JoinTokens::generate().map_err(in_tokens)?;
    kept.insert(TOKEN_KEY, tokens.key().to_pem());
    Ok(vec![TOKEN_KEY])
}

/// The authority that is kept.
pub(super) fn authority(
    kept: &Kept,
    place: &dyn Fn(&str) -> String,
    domain: &TrustDomain,
    now: SystemTime,
) -> Result<Authority, CaError> {
    let (key, certificates) = (text(kept, CA_KEY, place)?, text(kept, CA_CERTIFICATES, place)?);
    Authority::from_pem(key, certificates, domain, now).map_err(|why| in_authority(place, why))
}

/// What signs join tokens.
pub(super) fn tokens(kept: &Kept, place: &dyn Fn(&str) -> String) -> Result<JoinTokens, CaError> {
    let key = text(kept, TOKEN_KEY, place)?;
    JoinTokens::from_pem(key).map_err(|why| CaError::Tokens { place: place(TOKEN_KEY), why })
}

/// What minting needs.
pub(super) fn stored_tokens(kept: &Kept, place: &dyn Fn(&str) -> String) -> Result<StoredTokens, CaError> {
    let tokens = tokens(kept, place)?;
    let (key, certificates) = (text(kept, CA_KEY, place)?, text(kept, CA_CERTIFICATES, place)?);
    let stored = issue::stored_root(key, certificates).map_err(|why| in_authority(place, why));
    let record = rotation::kept_record(kept, place)?;
    let (pin, trust_domain) = match record.change().filter(|_| record.has_switched()) {
        None => stored?,
        // Where one root takes another's place, what is stored may not fit for a moment.
        Some(change) => {
            let why = |why: String| CaError::Store { place: place(ROTATION), why };
            let pin = change.next.pin.parse::<Pin>().map_err(|error: PinError| why(error.to_string()))?;
            let domain = TrustBundle::trust_domain_in(&change.next.certificate);
            (pin, domain.map_err(|error| why(error.to_string()))?)
        }
    };
    Ok(StoredTokens { tokens, pin, trust_domain })
}

pub(super) fn text<'k>(
    kept: &'k Kept,
    name: &str,
    place: &dyn Fn(&str) -> String,
) -> Result<&'k str, CaError> {
    kept.get(name).map(|text| text.as_str()).ok_or_else(|| CaError::Absent { place: place(name) })
}

pub(super) fn in_authority(place: &dyn Fn(&str) -> String, why: AuthorityError) -> CaError {
    let name = if matches!(why, AuthorityError::Key(_)) { CA_KEY } else { CA_CERTIFICATES };
    match why {
        why @ AuthorityError::NotValidNow { .. } => CaError::Expired { place: place(name), why },
        why => CaError::Authority { place: place(name), why },
    }
}
