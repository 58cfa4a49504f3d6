//! What we read of a certificate besides verifying it: validity, CA or not, self-issued, public key.
//!
//! Never decides trust; that is `verify`.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;

use crate::id::TrustDomain;

/// The parsed parts of one certificate.
pub(crate) struct Parsed<'a>(X509Certificate<'a>);

/// Parses one certificate; the error is a phrase.
pub(crate) fn parse(der: &[u8]) -> Result<Parsed<'_>, String> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(Parsed(certificate)),
        Ok((rest, _)) => Err(format!("{} bytes follow the certificate", rest.len())),
        Err(e) => Err(format!("not an X.509 certificate: {e}")),
    }
}

impl Parsed<'_> {
    pub(crate) fn not_before(&self) -> SystemTime {
        system_time(self.0.validity().not_before.timestamp())
    }

    pub(crate) fn not_after(&self) -> SystemTime {
        system_time(self.0.validity().not_after.timestamp())
    }

    /// Basic constraints say CA, and key usage (if any) allows signing certificates.
    pub(crate) fn is_ca(&self) -> bool {
        let signs = match self.0.key_usage() {
            Ok(Some(usage)) => usage.value.key_cert_sign(),
            Ok(None) => true,
            Err(_) => false,
        };
        self.0.is_ca() && signs
    }

    /// How many other CAs there may be between it and a leaf, if it says.
    pub(crate) fn path_length(&self) -> Option<usize> {
        let constraints = self.0.basic_constraints().ok()??;
        usize::try_from(constraints.value.path_len_constraint?).ok()
    }

    /// Subject and issuer are the same: a root.
    pub(crate) fn is_self_issued(&self) -> bool {
        self.0.subject().as_raw() == self.0.issuer().as_raw()
    }

    /// The serial number, as it is encoded.
    pub(crate) fn serial(&self) -> &[u8] {
        self.0.raw_serial()
    }

    /// The SubjectPublicKeyInfo in DER, tag and length included.
    pub(crate) fn spki(&self) -> &[u8] {
        self.0.public_key().raw
    }

    /// A name for messages.
    pub(crate) fn subject(&self) -> String {
        self.0.subject().to_string().chars().take(200).collect()
    }
}

/// First and last valid moment of a certificate; the error is a phrase.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(SystemTime, SystemTime), String> {
    let parsed = parse(certificate)?;
    Ok((parsed.not_before(), parsed.not_after()))
}

/// How many URIs a certificate carries, readable or not: who reads only those that are text would take several for one. The error is a phrase.
pub(crate) fn uri_count(certificate: &CertificateDer<'_>) -> Result<usize, String> {
    let parsed = parse(certificate)?;
    let names = parsed.0.subject_alternative_name();
    let Some(names) = names.map_err(|error| format!("its alternative names: {error}"))? else { return Ok(0) };
    let is_uri = |name: &&GeneralName<'_>| match name {
        GeneralName::URI(_) => true,
        // RFC 5280 §4.2.1.6: uniformResourceIdentifier [6], in bytes that are no text.
        GeneralName::Invalid(tag, _) => tag.0 == 6,
        _ => false,
    };
    Ok(names.value.general_names.iter().filter(is_uri).count())
}

/// What makes a certificate's key too weak to prove anybody by, in words; `None`: nothing, or it cannot be read.
pub(crate) fn weak_key(certificate: &CertificateDer<'_>) -> Option<String> {
    /// P-256, P-384 and P-521.
    const CURVES: [&str; 3] = ["1.2.840.10045.3.1.7", "1.3.132.0.34", "1.3.132.0.35"];
    /// Ed25519, and ML-DSA of its three sizes.
    const OTHERS: [&str; 4] =
        ["1.3.101.112", "2.16.840.1.101.3.4.3.17", "2.16.840.1.101.3.4.3.18", "2.16.840.1.101.3.4.3.19"];
    const LEAST_RSA: usize = 2048;
    let parsed = parse(certificate).ok()?;
    let spki = parsed.0.public_key();
    match spki.parsed() {
        Ok(PublicKey::RSA(key)) => (key.key_size() < LEAST_RSA)
            .then(|| format!("an RSA key of {} bits; it needs {LEAST_RSA} at least", key.key_size())),
        Ok(PublicKey::EC(_)) => {
            let curve = spki.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
            let curve = curve.map(|curve| curve.to_id_string()).unwrap_or_default();
            (!CURVES.contains(&curve.as_str()))
                .then(|| format!("a key on the curve {curve}; it must be P-256, P-384 or P-521"))
        }
        _ => {
            let kind = spki.algorithm.algorithm.to_id_string();
            (!OTHERS.contains(&kind.as_str()))
                .then(|| format!("a key of the kind {kind}; it must be ECDSA, Ed25519, ML-DSA or RSA"))
        }
    }
}

/// Whether a certificate is signed by way of a hash that can be forged: MD5, SHA-1.
pub(crate) fn has_weak_signature(certificate: &CertificateDer<'_>) -> bool {
    /// RSA with MD5 and SHA-1, ECDSA with SHA-1, DSA with SHA-1.
    const FORGEABLE: [&str; 4] =
        ["1.2.840.113549.1.1.4", "1.2.840.113549.1.1.5", "1.2.840.10045.4.1", "1.2.840.10040.4.3"];
    parse(certificate).is_ok_and(|parsed| {
        FORGEABLE.contains(&parsed.0.signature_algorithm.algorithm.to_id_string().as_str())
    })
}

/// The certificates in DER that stand one after the other, as the SPIFFE Workload API tells them; at least one. The error is a phrase.
pub fn der_certificates(der: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let mut found = Vec::new();
    let mut rest = der;
    while !rest.is_empty() {
        let (after, _) = X509Certificate::from_der(rest)
            .map_err(|error| format!("certificate {}: not an X.509 certificate: {error}", found.len() + 1))?;
        found.push(CertificateDer::from(rest[..rest.len() - after.len()].to_vec()));
        rest = after;
    }
    if found.is_empty() { Err("there is no certificate".to_owned()) } else { Ok(found) }
}

/// Who a certificate names, for people: nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    /// Distinguished name of the issuer (RFC 4514).
    pub issuer: String,
    /// Distinguished name of the subject; often empty in an SVID, which is named by its SAN.
    pub subject: String,
    /// Hexadecimal, two digits per byte, with colons.
    pub serial: String,
}

/// The names in a certificate, cut at 200 characters; the error is a phrase.
pub fn names(certificate: &CertificateDer<'_>) -> Result<Names, String> {
    let parsed = parse(certificate)?;
    let issuer = parsed.0.issuer().to_string().chars().take(200).collect();
    Ok(Names { issuer, subject: parsed.subject(), serial: parsed.0.raw_serial_as_string() })
}

/// The DNS names that a certificate is for.
pub(crate) fn dns_names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok(parsed) = parse(certificate) else { return Vec::new() };
    let Ok(Some(names)) = parsed.0.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    names.collect()
}

/// Whether `issuer` signed `certificate` (by name and by signature). A root is not counted as its own issuer.
pub(crate) fn issued(issuer: &CertificateDer<'_>, certificate: &CertificateDer<'_>) -> bool {
    let (Ok(Parsed(issuer)), Ok(Parsed(certificate))) = (parse(issuer), parse(certificate)) else {
        return false;
    };
    issuer.subject().as_raw() == certificate.issuer().as_raw()
        && issuer.tbs_certificate.as_ref() != certificate.tbs_certificate.as_ref()
        && certificate.verify_signature(Some(issuer.public_key())).is_ok()
}

/// The trust domain that a signing certificate says it belongs to: its one URI is a SPIFFE ID without a path (X509-SVID §3.2).
pub(crate) fn trust_domain(certificate: &CertificateDer<'_>) -> Option<TrustDomain> {
    let parsed = parse(certificate).ok()?;
    let names = parsed.0.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(uri.strip_prefix("spiffe://")),
        _ => None,
    });
    let (one, None) = (uris.next()?, uris.next()) else { return None };
    TrustDomain::new(one?).ok()
}

/// Whether the certificate is signed with its own key.
pub(crate) fn is_root(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|parsed| parsed.is_self_issued() && parsed.0.verify_signature(None).is_ok())
}

/// Seconds since the epoch as a time; years outside of what the platform can say are clamped.
pub(crate) fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    let time = if seconds < 0 {
        SystemTime::UNIX_EPOCH.checked_sub(distance)
    } else {
        SystemTime::UNIX_EPOCH.checked_add(distance)
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Seconds since the epoch; 0 for earlier times.
pub(crate) fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// `2026-03-01T12:00:00Z`, for messages.
pub(crate) fn show(time: SystemTime) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(i64::try_from(seconds(time)).unwrap_or(i64::MAX))
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (time.date(), time.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}
