//! What `/certs` and `tulle identity` show of a proxy's credentials. Never a key.

use std::time::SystemTime;

use serde_json::{Value, json};
use tulle_certs::{Creds, Pin};

use crate::telemetry::timestamp::rfc3339;

/// The identity, its chain (leaf first) and the roots it trusts, each certificate by the SHA-256 of its public key
/// and its dates. `now` only tells how long the leaf still lasts: `expires_in_seconds`, negative once it has expired.
pub fn certs(creds: &Creds, now: SystemTime) -> Value {
    let expires_in = match creds.not_after().duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
    };
    let bundle = creds.bundle();
    json!({
        "identity": creds.id().to_string(),
        "not_before": rfc3339(creds.not_before()),
        "not_after": rfc3339(creds.not_after()),
        "expires_in_seconds": expires_in,
        "chain": creds.chain().iter().map(certificate).collect::<Vec<_>>(),
        "trust_bundles": [{
            "trust_domain": bundle.trust_domain().to_string(),
            "roots": bundle.roots().iter().map(certificate).collect::<Vec<_>>(),
        }],
    })
}

fn certificate(certificate: &rustls::pki_types::CertificateDer<'_>) -> Value {
    let dates = tulle_certs::validity(certificate).ok();
    json!({
        "pin": Pin::of(certificate).ok().map(|pin| pin.to_string()),
        "not_before": dates.map(|(not_before, _)| rfc3339(not_before)),
        "not_after": dates.map(|(_, not_after)| rfc3339(not_after)),
    })
}
