//! The verifiers that rustls asks during a handshake.
//!
//! They decide chain, trust domain and identity, in that way: the one SPIFFE ID in the leaf says the trust
//! domain; its bundle (and no other) must vouch for the chain, now; and a client compares the ID with the one
//! it expects. All of it happens before the handshake completes. Built by `creds` and `bootstrap` only.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::bundle::{Pin, TrustBundle};
use crate::id::{SpiffeId, TrustDomain, control_plane_id};
use crate::refusal::{Refusal, Refused};
use crate::x509;

/// The SPIFFE ID of a peer whose handshake is complete: the one URI of its leaf certificate.
///
/// `certificates` as rustls's `peer_certificates` gives them. Without one: [`Refusal::NoCertificate`].
pub fn peer_id(certificates: &[CertificateDer<'_>]) -> Result<SpiffeId, Refusal> {
    let leaf = certificates.first().ok_or(Refusal::NoCertificate)?;
    let leaf = EndEntityCert::try_from(leaf).map_err(|_| Refusal::Malformed)?;
    id_of(&leaf).map_err(|refused| refused.refusal)
}

/// X509-SVID §2: exactly one URI, and it is the SPIFFE ID.
fn id_of(leaf: &EndEntityCert<'_>) -> Result<SpiffeId, Refused> {
    let mut uris = leaf.valid_uri_names();
    let Some(uri) = uris.next() else {
        return Err(Refused::new(Refusal::NoSpiffeId, "the certificate carries no URI"));
    };
    if uris.next().is_some() {
        return Err(Refused::new(Refusal::SeveralUris, "the certificate carries several URIs"));
    }
    SpiffeId::parse(uri).map_err(|e| Refused::new(Refusal::NoSpiffeId, e.to_string()))
}

#[derive(Clone, Copy)]
pub(crate) enum Role {
    Client,
    Server,
}

/// What the library does not look at: URIs that are no text, and whether the leaf's own key proves anything.
fn check_leaf(leaf: &CertificateDer<'_>) -> Result<(), Refused> {
    // What the library can read and we cannot is not believed unseen.
    let unread =
        |why: String| Refused::new(Refusal::Malformed, format!("the certificate cannot be read: {why}"));
    match x509::uri_count(leaf).map_err(unread)? {
        0 | 1 => {}
        count => {
            return Err(Refused::new(
                Refusal::SeveralUris,
                format!("the certificate carries {count} URIs, some of which are no text"),
            ));
        }
    }
    match x509::weak_key(leaf) {
        Some(why) => Err(Refused::new(Refusal::WeakKey, format!("the certificate has {why}"))),
        None => Ok(()),
    }
}

/// Whether what the library refuses is refused for a key or a hash of those above the leaf.
fn weak_above(presented: &[CertificateDer<'_>]) -> Option<Refused> {
    presented.iter().find_map(|certificate| {
        let subject = || x509::parse(certificate).map(|parsed| parsed.subject()).unwrap_or_default();
        let why = match x509::weak_key(certificate) {
            Some(why) => why,
            None if x509::has_weak_signature(certificate) && !x509::is_root(certificate) => {
                "a signature by MD5 or SHA-1".to_owned()
            }
            None => return None,
        };
        Some(Refused::new(Refusal::WeakKey, format!("the certificate of {} has {why}", subject())))
    })
}

/// Reads the leaf, its ID, and verifies the chain up to one of `anchors`.
fn verify_chain(
    leaf: &EndEntityCert<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    role: Role,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<(), Refused> {
    let usage = match role {
        Role::Client => KeyUsage::client_auth(),
        Role::Server => KeyUsage::server_auth(),
    };
    leaf.verify_for_usage(algorithms.all, anchors, intermediates, now, usage, None, None)
        .map(|_| ())
        .map_err(|error| weak_above(intermediates).unwrap_or_else(|| refused_by_webpki(error)))
}

/// Verifies a peer of the bundle's trust domain and says who it is.
pub(crate) fn verify_peer(
    bundle: &TrustBundle,
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    role: Role,
    algorithms: &WebPkiSupportedAlgorithms,
    now: UnixTime,
) -> Result<SpiffeId, Refused> {
    if let Some(id) = bundle.verified().find(end_entity, intermediates, role, now) {
        return Ok(id);
    }
    let leaf = EndEntityCert::try_from(end_entity).map_err(refused_by_webpki)?;
    let id = id_of(&leaf)?;
    check_leaf(end_entity)?;
    same_domain(&id, bundle.trust_domain())?;
    verify_chain(&leaf, intermediates, bundle.anchors(), role, algorithms, now)?;
    bundle.verified().add(end_entity, intermediates, role, &id);
    Ok(id)
}

fn same_domain(id: &SpiffeId, domain: &TrustDomain) -> Result<(), Refused> {
    if id.trust_domain_str() == domain.as_str() {
        return Ok(());
    }
    Err(Refused::new(Refusal::OtherTrustDomain, format!("{id} is not of the trust domain {domain}")))
}

fn expect(expected: &SpiffeId, presented: &SpiffeId) -> Result<(), Refused> {
    if expected == presented {
        return Ok(());
    }
    Err(Refused::new(Refusal::WrongIdentity, format!("expected {expected}, the peer is {presented}")))
}

fn refused_by_webpki(error: webpki::Error) -> Refused {
    let refusal = match &error {
        webpki::Error::CertExpired { .. } => Refusal::Expired,
        webpki::Error::CertNotValidYet { .. } => Refusal::NotYetValid,
        // A signature that does not fit is that of another root of the same name.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Refusal::UnknownRoot,
        _ => Refusal::Malformed,
    };
    Refused::new(refusal, format!("{error}{}", refusal.clock()))
}

/// Verifies clients of an inbound proxy (certificate required) or of the control plane (optional).
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    pub(crate) bundle: Arc<TrustBundle>,
    pub(crate) required: bool,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.required
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        verify_peer(&self.bundle, end_entity, intermediates, Role::Client, &self.algorithms, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// What a client wants of its server.
#[derive(Debug)]
pub(crate) enum Expected {
    /// Exactly this peer, vouched for by the bundle.
    Peer(Arc<TrustBundle>, SpiffeId),
    /// The control plane of this trust domain, its chain ending in a root whose key fits the pin.
    Pinned(Pin, TrustDomain),
}

/// Verifies servers.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    expected: Expected,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(crate) fn new(expected: Expected, provider: &CryptoProvider) -> Self {
        Self { expected, algorithms: provider.signature_verification_algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refused> {
        match &self.expected {
            Expected::Peer(bundle, id) => {
                let peer =
                    verify_peer(bundle, end_entity, intermediates, Role::Server, &self.algorithms, now)?;
                expect(id, &peer)
            }
            Expected::Pinned(pin, domain) => self.verify_pinned(*pin, domain, end_entity, intermediates, now),
        }
    }

    fn verify_pinned(
        &self,
        pin: Pin,
        domain: &TrustDomain,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Refused> {
        let leaf = EndEntityCert::try_from(end_entity).map_err(refused_by_webpki)?;
        let id = id_of(&leaf)?;
        check_leaf(end_entity)?;
        same_domain(&id, domain)?;
        let root = pinned_root(pin, intermediates, now)?;
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(refused_by_webpki)?;
        verify_chain(&leaf, intermediates, &[anchor], Role::Server, &self.algorithms, now)?;
        expect(&control_plane_id(domain), &id)
    }
}

/// What the peer presented in place of the root that has the pin, and what to do.
fn other_root(pin: Pin, presented: &[CertificateDer<'_>]) -> String {
    const REMEDY: &str = "if the control plane has another root now, join by a new token file (`tulle token create`); if not, \
                          this is not the control plane that the token is for";
    // The root follows what it has issued (RFC 8446 §4.4.2), and former ones come behind it.
    let root = presented.iter().find(|one| x509::is_root(one)).and_then(|root| Pin::of(root).ok());
    match root {
        Some(root) => format!(
            "the pin of the token file is {pin}, and that of the control plane's root is {root}: {REMEDY}"
        ),
        None => format!("the pin of the token file is {pin}, and the control plane shows no root: {REMEDY}"),
    }
}

/// The CA certificate that the peer presented whose key has the pin.
fn pinned_root<'a>(
    pin: Pin,
    presented: &'a [CertificateDer<'a>],
    now: UnixTime,
) -> Result<&'a CertificateDer<'a>, Refused> {
    let Some(root) = presented.iter().find(|certificate| Pin::of(certificate).is_ok_and(|of| of == pin))
    else {
        return Err(Refused::new(Refusal::UnknownRoot, other_root(pin, presented)));
    };
    let parsed = x509::parse(root).map_err(|why| Refused::new(Refusal::Malformed, why))?;
    if !parsed.is_ca() {
        return Err(Refused::new(Refusal::Malformed, "the certificate with the pinned key is no CA"));
    }
    let now = x509::system_time(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
    if parsed.not_after() < now {
        let detail = format!(
            "the root that the token file pins expired at {}: join by a new token file (`tulle token create`), once the control plane has another root (`tulle identity repair`){}",
            x509::show(parsed.not_after()),
            Refusal::Expired.clock()
        );
        return Err(Refused::new(Refusal::Expired, detail));
    }
    if now < parsed.not_before() {
        let (at, clock) = (x509::show(parsed.not_before()), Refusal::NotYetValid.clock());
        return Err(Refused::new(
            Refusal::NotYetValid,
            format!("the pinned root is valid from {at} on{clock}"),
        ));
    }
    Ok(root)
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match (self.verify(end_entity, intermediates, now), &self.expected) {
            (Ok(()), _) => Ok(ServerCertVerified::assertion()),
            // Somebody has just set this up, and is to be told what does not fit; which alert the control plane gets helps nobody.
            (Err(refused), Expected::Pinned(..)) => Err(refused.in_full()),
            (Err(refused), Expected::Peer(..)) => Err(refused.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
