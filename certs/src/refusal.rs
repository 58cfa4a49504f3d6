//! Why a peer was refused during a handshake, as a stable word for metrics and logs.
//!
//! Our verifiers answer rustls with an error that carries the reason; [`refusal_of`] finds it again in what the
//! handshake failed with. [`refused_by_peer`] is the other side: the peer refused us.

use std::fmt;
use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, OtherError};

/// The reason, stable across releases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Refusal {
    /// The peer sent no certificate where one is required.
    NoCertificate,
    /// No root of the bundle vouches for the certificate.
    UnknownRoot,
    /// Its SPIFFE ID lies in a trust domain that we hold no bundle of.
    OtherTrustDomain,
    /// The certificate, or one above it, has expired.
    Expired,
    /// The certificate, or one above it, is not valid yet; one of the clocks is wrong.
    NotYetValid,
    /// A valid certificate, but of someone else than was expected.
    WrongIdentity,
    /// The certificate carries no SPIFFE ID of our form.
    NoSpiffeId,
    /// The certificate carries several URIs, which an X.509-SVID must not (X509-SVID §2).
    SeveralUris,
    /// Its key, or that of one above it, is too weak, or a signature is by way of a hash that can be forged (RSA under 2048 bits, P-192, SHA-1).
    WeakKey,
    /// It cannot be read, or may not be used for this (a CA, other key usage, bad constraints).
    Malformed,
    /// The peer could not prove that it holds the certificate's key.
    BadSignature,
}

impl Refusal {
    /// Every reason, for registering metrics.
    pub const ALL: [Self; 11] = [
        Self::NoCertificate,
        Self::UnknownRoot,
        Self::OtherTrustDomain,
        Self::Expired,
        Self::NotYetValid,
        Self::WrongIdentity,
        Self::NoSpiffeId,
        Self::SeveralUris,
        Self::WeakKey,
        Self::Malformed,
        Self::BadSignature,
    ];

    /// The word for metrics and logs.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NoCertificate => "tls_no_certificate",
            Self::UnknownRoot => "tls_unknown_root",
            Self::OtherTrustDomain => "tls_other_trust_domain",
            Self::Expired => "tls_expired",
            Self::NotYetValid => "tls_not_yet_valid",
            Self::WrongIdentity => "tls_wrong_identity",
            Self::NoSpiffeId => "tls_no_spiffe_id",
            Self::SeveralUris => "tls_several_uris",
            Self::WeakKey => "tls_weak_key",
            Self::Malformed => "tls_malformed",
            Self::BadSignature => "tls_bad_signature",
        }
    }

    /// What to look at where a clock that is off is the probable cause; nothing elsewhere.
    pub(crate) const fn clock(self) -> &'static str {
        match self {
            Self::NotYetValid => {
                "; one of the clocks is probably wrong: compare this machine's with the peer's and the control plane's"
            }
            Self::Expired => "; if it should not have expired, compare the clocks",
            _ => "",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason())
    }
}

/// A refusal with what a human needs to know: which identity, which time.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}: {detail}")]
pub struct Refused {
    /// The reason.
    pub refusal: Refusal,
    /// What was seen, in words.
    pub detail: String,
}

impl Refused {
    pub(crate) fn new(refusal: Refusal, detail: impl Into<String>) -> Self {
        Self { refusal, detail: detail.into() }
    }

    /// An error of rustls that keeps the words, whatever the reason; the peer is sent the alert `certificate_unknown`.
    pub(crate) fn in_full(self) -> rustls::Error {
        CertificateError::Other(OtherError(Arc::new(self))).into()
    }
}

impl fmt::Debug for Refused {
    /// As `Display`: rustls shows what it carries for us by `Debug`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Refused> for rustls::Error {
    /// Keeps the alert that TLS has for the reason (RFC 8446 §6.2) where rustls can carry both, and the words where it cannot.
    fn from(refused: Refused) -> Self {
        match refused.refusal {
            Refusal::NoCertificate => Self::NoCertificatesPresented,
            Refusal::UnknownRoot => CertificateError::UnknownIssuer.into(),
            Refusal::Expired => CertificateError::Expired.into(),
            Refusal::NotYetValid => CertificateError::NotValidYet.into(),
            _ => refused.in_full(),
        }
    }
}

/// The reason why *we* refused the peer, if a handshake failed for its certificate. `None` for everything else:
/// no TLS at all, no common version, an alert from the peer.
pub fn refusal_of(error: &rustls::Error) -> Option<Refusal> {
    use CertificateError as C;
    match error {
        rustls::Error::NoCertificatesPresented => Some(Refusal::NoCertificate),
        rustls::Error::InvalidCertificate(certificate) => Some(match certificate {
            C::Other(OtherError(other)) => {
                other.downcast_ref::<Refused>().map_or(Refusal::Malformed, |refused| refused.refusal)
            }
            C::UnknownIssuer => Refusal::UnknownRoot,
            C::Expired | C::ExpiredContext { .. } => Refusal::Expired,
            C::NotValidYet | C::NotValidYetContext { .. } => Refusal::NotYetValid,
            C::NotValidForName | C::NotValidForNameContext { .. } => Refusal::WrongIdentity,
            C::BadSignature => Refusal::BadSignature,
            _ => Refusal::Malformed,
        }),
        _ => None,
    }
}

/// [`refusal_of`] for the `io::Error` that a TLS stream over tokio fails with.
pub fn refusal_of_io(error: &io::Error) -> Option<Refusal> {
    tls_error(error).and_then(refusal_of)
}

/// A handshake's failure for humans: the stable word first if we refused the peer, then what was seen.
pub fn describe_io(error: &io::Error) -> String {
    let Some(tls) = tls_error(error) else { return error.to_string() };
    match (tls, refusal_of(tls)) {
        (rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))), Some(_)) => {
            other.to_string()
        }
        (_, Some(refusal)) => format!("{refusal}: {tls}{}", refusal.clock()),
        (_, None) => tls.to_string(),
    }
}

/// The TLS error inside an `io::Error`, if there is one.
pub fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref::<rustls::Error>()
}

/// Whether the *peer* refused us with a fatal alert that TLS 1.3 servers and clients send only while the
/// handshake lasts (RFC 8446 §6.2). Before any application byte has been received it proves that nothing of
/// ours was processed: `peer_refused_tls`.
pub fn refused_by_peer(error: &rustls::Error) -> bool {
    use AlertDescription as A;
    matches!(
        error,
        rustls::Error::AlertReceived(
            A::HandshakeFailure
                | A::BadCertificate
                | A::UnsupportedCertificate
                | A::CertificateRevoked
                | A::CertificateExpired
                | A::CertificateUnknown
                | A::CertificateRequired
                | A::UnknownCA
                | A::AccessDenied
                | A::DecryptError
                | A::ProtocolVersion
                | A::InsufficientSecurity
                | A::MissingExtension
                | A::UnsupportedExtension
                | A::UnrecognisedName
                | A::BadCertificateStatusResponse
                | A::NoApplicationProtocol
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_survives_the_way_through_rustls() {
        for refusal in Refusal::ALL {
            let error = rustls::Error::from(Refused::new(refusal, "detail"));
            assert_eq!(refusal_of(&error), Some(refusal));
            assert_eq!(refusal_of_io(&io::Error::new(io::ErrorKind::InvalidData, error)), Some(refusal));
        }
        assert_eq!(refusal_of(&rustls::Error::HandshakeNotComplete), None);
        assert_eq!(refusal_of_io(&io::Error::from(io::ErrorKind::UnexpectedEof)), None);
        assert_eq!(refusal_of_io(&io::Error::other("x")), None);
    }

    #[test]
    fn descriptions_begin_with_the_word() {
        for refusal in Refusal::ALL {
            let error = io::Error::other(rustls::Error::from(Refused::new(refusal, "this and that")));
            let text = describe_io(&error);
            assert!(text.starts_with(refusal.reason()) && !text.contains("OtherError"), "{text}");
            let of_time = matches!(refusal, Refusal::Expired | Refusal::NotYetValid);
            assert_eq!(text.contains("clock"), of_time, "{text}");
        }
        assert_eq!(describe_io(&io::Error::other("x")), "x");
    }

    #[test]
    fn reasons_are_distinct() {
        let mut reasons = Refusal::ALL.map(Refusal::reason).to_vec();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), Refusal::ALL.len());
        assert!(reasons.iter().all(|reason| reason.starts_with("tls_")));
    }

    #[test]
    fn alerts_that_can_come_later_prove_nothing() {
        let alert = |description| refused_by_peer(&rustls::Error::AlertReceived(description));
        assert!(alert(AlertDescription::CertificateUnknown));
        assert!(alert(AlertDescription::CertificateRequired));
        assert!(!alert(AlertDescription::InternalError));
        assert!(!alert(AlertDescription::CloseNotify));
        assert!(!alert(AlertDescription::BadRecordMac));
    }
}
