//! What `/certs` and `tulle identity` show of a proxy's credentials. Never a key.

use std::time::SystemTime;

use serde_json::{Value, json};
use tulle_certs::{Creds, Pin};

use crate::telemetry::timestamp::rfc3339;

/// The identity, its chain (leaf first) and the roots it trusts, each certificate by its names, the SHA-256 of its
/// public key and its dates. `source` is where it comes from, for people. `renews_at` is when the next one is asked for, null where the source
/// tells it by itself: files, a Workload API. `now` only tells how long that is: `expires_in_seconds` and `renews_in_seconds`, negative once past.
pub fn certs(creds: &Creds, source: &str, renews_at: Option<SystemTime>, now: SystemTime) -> Value {
    let bundle = creds.bundle();
    json!({
        "identity": creds.id().to_string(),
        "source": (!source.is_empty()).then_some(source),
        "not_before": rfc3339(creds.not_before()),
        "not_after": rfc3339(creds.not_after()),
        "expires_in_seconds": seconds_from(now, creds.not_after()),
        "renews_at": renews_at.map(rfc3339),
        "renews_in_seconds": renews_at.map(|at| seconds_from(now, at)),
        "chain": creds.chain().iter().map(certificate).collect::<Vec<_>>(),
        "trust_bundles": [{
            "trust_domain": bundle.trust_domain().to_string(),
            "roots": bundle.roots().iter().map(certificate).collect::<Vec<_>>(),
        }],
    })
}

/// Whole seconds from `now` until `then`.
fn seconds_from(now: SystemTime, then: SystemTime) -> i64 {
    match then.duration_since(now) {
        Ok(left) => i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        Err(past) => -i64::try_from(past.duration().as_secs()).unwrap_or(i64::MAX),
    }
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

        let shown = certs(&creds, "the control plane at cp:15012", Some(now + day / 2), now);
        assert_eq!(shown["identity"], "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(shown["source"], "the control plane at cp:15012");
        assert_eq!(shown["expires_in_seconds"], 86_400);
        assert!(shown["renews_at"].as_str().unwrap().starts_with("2027-01-15T20:00:00"), "{shown}");
        assert_eq!(shown["renews_in_seconds"], 43_200);
        assert!(shown["not_after"].as_str().unwrap().starts_with("2027-01-16T08:00:00"), "{shown}");
        let root = &shown["trust_bundles"][0]["roots"][0];
        assert_eq!(root["pin"].as_str().unwrap(), authority.bundle().pins()[0].to_string());
        assert_eq!(shown["chain"][0]["issuer"], root["subject"]);
        assert!(shown["chain"][0]["serial"].as_str().unwrap().contains(':'), "{shown}");
        let text = shown.to_string();
        assert!(key_pem.lines().filter(|line| line.len() > 40).all(|line| !text.contains(line)));
        let expired = certs(&creds, "", None, now + day * 2);
        assert_eq!(expired["source"], Value::Null);
        assert_eq!((&expired["expires_in_seconds"], &expired["renews_at"]), (&json!(-86_400), &Value::Null));
    }
}
