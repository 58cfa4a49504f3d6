//! What `/certs` and `tulle identity` show of a proxy's credentials. Never a key.

use std::time::SystemTime;

use serde_json::{Value, json};
use tulle_certs::{Creds, Pin};

use crate::telemetry::timestamp::rfc3339;

/// The identity, its chain (leaf first) and the roots it trusts, each certificate by its names, the SHA-256 of its
/// public key and its dates. `now` only tells how long the leaf still lasts: `expires_in_seconds`, negative once it has expired.
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
    let names = tulle_certs::names(certificate).ok();
    json!({
        "subject": names.as_ref().map(|names| &names.subject),
        "issuer": names.as_ref().map(|names| &names.issuer),
        "serial": names.as_ref().map(|names| &names.serial),
        "pin": Pin::of(certificate).ok().map(|pin| pin.to_string()),
        "not_before": dates.map(|(not_before, _)| rfc3339(not_before)),
        "not_after": dates.map(|(_, not_after)| rfc3339(not_after)),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tulle_certs::issue::Authority;
    use tulle_certs::key::csr;
    use tulle_certs::{PrivateKey, SpiffeId, TrustDomain};

    use super::*;

    #[test]
    fn everything_is_shown_but_the_key() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let day = Duration::from_secs(86_400);
        let domain = TrustDomain::default();
        let authority = Authority::generate(&domain, day * 365, now).unwrap();
        let id = SpiffeId::new(&domain, "shop", "web").unwrap();
        let key = PrivateKey::generate().unwrap();
        let issued = authority.issue(&csr(&key, None).unwrap(), &id, day, now).unwrap();
        let key_pem = key.to_pem();
        let creds = Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), now).unwrap();

        let shown = certs(&creds, now);
        assert_eq!(shown["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(shown["expires_in_seconds"], 86_400);
        assert!(shown["not_after"].as_str().unwrap().starts_with("2027-01-16T08:00:00"), "{shown}");
        let root = &shown["trust_bundles"][0]["roots"][0];
        assert_eq!(root["pin"].as_str().unwrap(), authority.bundle().pins()[0].to_string());
        assert_eq!(shown["chain"][0]["issuer"], root["subject"]);
        assert!(shown["chain"][0]["serial"].as_str().unwrap().contains(':'), "{shown}");
        let text = shown.to_string();
        assert!(key_pem.lines().filter(|line| line.len() > 40).all(|line| !text.contains(line)));
        assert_eq!(certs(&creds, now + day * 2)["expires_in_seconds"], -86_400);
    }
}
