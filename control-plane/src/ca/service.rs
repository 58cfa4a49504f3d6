//! `istio.v1.auth.IstioCertificateService`: who is asking, and for which identity.
//!
//! A bearer token (a join token, or one of a service account of Kubernetes) counts before a client certificate, and both together must agree. Nothing of the signing
//! request but its public key has a say. Every refusal has a status that tells whose fault it is:
//! `UNAUTHENTICATED` (no or bad proof), `PERMISSION_DENIED` (a proof of something else), `INVALID_ARGUMENT` (a bad
//! request), `UNAVAILABLE` (the authority itself cannot issue).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use tonic::{Request, Response, Status};
use tulle_api::ca::istio_certificate_service_server::IstioCertificateService;
use tulle_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_certs::id::{CONTROL_PLANE_NAMESPACE, CONTROL_PLANE_SERVICE_ACCOUNT};
use tulle_certs::issue::IssueError;
use tulle_certs::token::Claims;
use tulle_certs::{Lineage, Refusal, SpiffeId, peer_id, validity};

use super::joining::used;
use super::{Bearer, Ca, ReviewError};
use crate::cluster::is_of_kubernetes;

/// Who is behind a request, by the client certificate that the TLS port has verified. The server puts it into the
/// extensions of every request of such a connection; a request without it comes from an unknown caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The verified identity.
    pub id: SpiffeId,
    /// When its certificate expires: a connection may live longer.
    pub not_after: SystemTime,
    /// The join token that its certificate goes back to, if it does to one.
    pub lineage: Option<Lineage>,
}

/// Where a request comes from. The server puts it into the extensions of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client(pub IpAddr);

impl Caller {
    /// Of the certificates that a completed handshake has verified, the leaf first; `None` if there were none.
    pub fn of(
        certificates: Option<&[rustls::pki_types::CertificateDer<'_>]>,
    ) -> Result<Option<Self>, Refusal> {
        let Some(leaf) = certificates.and_then(<[_]>::first) else { return Ok(None) };
        let id = peer_id(std::slice::from_ref(leaf))?;
        let (_, not_after) = validity(leaf).map_err(|_| Refusal::Malformed)?;
        Ok(Some(Self { id, not_after, lineage: Lineage::of_certificate(leaf) }))
    }
}

/// What proved an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Proof {
    /// A join token.
    Token,
    /// The token of a pod's service account.
    ServiceAccount,
    /// A client certificate of the same identity.
    Certificate,
}

/// Who asks, and what of it goes into the certificate.
struct Proven {
    id: SpiffeId,
    proof: Proof,
    /// What a join token says.
    token: Option<Claims>,
    lineage: Option<Lineage>,
}

fn revoked(why: String) -> (Status, Outcome) {
    (Status::unauthenticated(why), Outcome::Revoked)
}

fn replayed(token: &Claims) -> (Status, Outcome) {
    (Status::unauthenticated(used(token)), Outcome::Replayed)
}

/// How a request for a certificate ended; the words are metric labels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// A certificate was issued.
    Issued(Proof),
    /// No proof of any identity, or a bad one.
    Unauthenticated,
    /// A proof of something else than what is asked for.
    Denied,
    /// A join token that was revoked, or a certificate that goes back to one.
    Revoked,
    /// A join token that is good for one time, and was used.
    Replayed,
    /// The signing request is bad.
    BadRequest,
    /// The authority could not issue.
    Failed,
}

impl Outcome {
    /// The word for metrics.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Issued(Proof::Token) => "issued_by_token",
            Self::Issued(Proof::ServiceAccount) => "issued_by_service_account",
            Self::Issued(Proof::Certificate) => "issued_by_certificate",
            Self::Unauthenticated => "unauthenticated",
            Self::Denied => "denied",
            Self::Revoked => "revoked",
            Self::Replayed => "replayed",
            Self::BadRequest => "bad_request",
            Self::Failed => "failed",
        }
    }
}

/// The service; made by [`Ca::service`].
#[derive(Debug, Clone)]
pub struct CertificateService {
    ca: Ca,
}

impl CertificateService {
    pub(super) fn new(ca: Ca) -> Self {
        Self { ca }
    }

    /// The whole decision, with the time passed in.
    pub(super) async fn answer(
        &self,
        request: &Request<IstioCertificateRequest>,
        now: SystemTime,
    ) -> Result<IstioCertificateResponse, Status> {
        let result = self.decide(request, now).await;
        let outcome = match &result {
            Ok((_, outcome)) | Err((_, outcome)) => *outcome,
        };
        (self.ca.0.observer)(outcome);
        match result {
            Ok((response, _)) => Ok(response),
            Err((status, _)) => {
                tracing::warn!(outcome = outcome.word(), reason = status.message(), "no certificate issued");
                Err(status)
            }
        }
    }

    async fn decide(
        &self,
        request: &Request<IstioCertificateRequest>,
        now: SystemTime,
    ) -> Result<(IstioCertificateResponse, Outcome), (Status, Outcome)> {
        self.ca.look_at_tokens().await;
        let Proven { id, proof, token, lineage } = self.authenticate(request, now).await?;
        self.permit(&id)?;
        let body = request.get_ref();
        let wanted = match body.validity_duration {
            0 => None,
            seconds => Some(Duration::from_secs(u64::try_from(seconds).map_err(|_| {
                (Status::invalid_argument("validity_duration is negative"), Outcome::BadRequest)
            })?)),
        };
        let issued = self.ca.issue(&body.csr, &id, wanted, lineage, now).map_err(|error| {
            if error.is_callers_fault() {
                (Status::invalid_argument(error.to_string()), Outcome::BadRequest)
            } else {
                tracing::error!(%error, "the certificate authority cannot issue");
                (Status::unavailable(error.to_string()), Outcome::Failed)
            }
        })?;
        // Before the certificate is used: whoever has it registers at once.
        if let Some(token) = &token {
            self.ca.grant_by(token).await.map_err(|error| {
                tracing::error!(%error, "cannot keep what a join token grants");
                (Status::unavailable(error.to_string()), Outcome::Failed)
            })?;
        }
        if let Some(token) = token.as_ref().filter(|token| token.once) {
            self.spend(token, now).await?;
        }
        tracing::info!(%id, ?proof, "issued a certificate");
        Ok((IstioCertificateResponse { cert_chain: issued.to_pem() }, Outcome::Issued(proof)))
    }

    /// Uses a token that is good for one time. At last: what cannot be signed, or kept, must not cost it.
    async fn spend(&self, token: &Claims, now: SystemTime) -> Result<(), (Status, Outcome)> {
        match self.ca.spend(token, now).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(replayed(token)),
            Err(error) => {
                tracing::error!(%error, "cannot keep that a join token is used, so nobody joins by it");
                Err((Status::unavailable(error.to_string()), Outcome::Failed))
            }
        }
    }

    /// Who is asking, and how that is known.
    async fn authenticate(
        &self,
        request: &Request<IstioCertificateRequest>,
        now: SystemTime,
    ) -> Result<Proven, (Status, Outcome)> {
        let unauthenticated = |why: String| (Status::unauthenticated(why), Outcome::Unauthenticated);
        let caller = request.extensions().get::<Caller>();
        let Some(authorization) = request.metadata().get("authorization") else {
            let caller = caller.ok_or_else(|| {
                unauthenticated(
                    "a token (authorization: Bearer …) or a client certificate is required".into(),
                )
            })?;
            if caller.not_after < now {
                return Err(unauthenticated(format!(
                    "the client certificate of {} has expired; join again with a token",
                    caller.id
                )));
            }
            // A certificate that renewed itself would outlive the pod it was taken out of. What is no pod has joined with a token, and has nothing else to show; a pod of
            // the same identity has not.
            let by_token = caller.lineage.is_some() && self.ca.has_joined(&caller.id);
            if self.ca.0.reviewer.is_some() && !by_token {
                return Err(unauthenticated(format!(
                    "the certificate of {} is renewed with the token of its pod, and none was shown; the proxy reads it at TULLE_PROXY_IDENTITY_TOKEN_FILE",
                    caller.id
                )));
            }
            if caller.lineage.is_some_and(|lineage| self.ca.is_revoked_lineage(lineage)) {
                return Err(revoked(format!(
                    "the certificate of {} was obtained with a join token that is revoked since; join by another",
                    caller.id
                )));
            }
            let (id, proof) = (caller.id.clone(), Proof::Certificate);
            return Ok(Proven { id, proof, token: None, lineage: caller.lineage });
        };
        let token = authorization
            .to_str()
            .ok()
            .and_then(|value| value.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token)
            .ok_or_else(|| unauthenticated("the authorization is not of the form Bearer <token>".into()))?;
        let proven = if is_of_kubernetes(token) {
            let client = request.extensions().get::<Client>().map(|client| client.0);
            let id = self.review(token, client).await?;
            Proven { id, proof: Proof::ServiceAccount, token: None, lineage: None }
        } else {
            let claims = self.ca.tokens().verify(token, now).map_err(|e| unauthenticated(e.to_string()))?;
            if self.ca.is_revoked(&claims.jti) {
                let (jti, id) = (&claims.jti, &claims.sub);
                return Err(revoked(format!("the join token {jti} of {id} is revoked; join by another")));
            }
            if claims.once && self.ca.is_used(&claims.jti) {
                return Err(replayed(&claims));
            }
            let lineage = Some(Lineage::of_token(&claims.jti));
            Proven { id: claims.sub.clone(), proof: Proof::Token, token: Some(claims), lineage }
        };
        match caller {
            Some(caller) if caller.id != proven.id => Err((
                Status::permission_denied(format!(
                    "the token is for {}, the client certificate for {}",
                    proven.id, caller.id
                )),
                Outcome::Denied,
            )),
            _ => Ok(proven),
        }
    }

    /// Whose a pod's token is, by the word of the API server.
    async fn review(&self, token: &str, client: Option<IpAddr>) -> Result<SpiffeId, (Status, Outcome)> {
        let unauthenticated = |why: String| (Status::unauthenticated(why), Outcome::Unauthenticated);
        let Some(reviewer) = &self.ca.0.reviewer else {
            return Err(unauthenticated(
                "this is the token of a service account of Kubernetes, and this control plane does not run with --source kubernetes; make a token with `tulle token create`".into(),
            ));
        };
        let bearer = reviewer.review(token, client).await.map_err(|error| match error {
            ReviewError::Refused(_) => unauthenticated(error.to_string()),
            ReviewError::Unavailable(_) => (Status::unavailable(error.to_string()), Outcome::Failed),
        })?;
        let Bearer { namespace, service_account, pod } = &bearer;
        let id = SpiffeId::new(self.ca.trust_domain(), namespace, service_account);
        let id = id.map_err(|error| unauthenticated(error.to_string()))?;
        tracing::debug!(%id, pod, "the API server vouches for a pod");
        Ok(id)
    }

    /// Identities that nobody is given.
    fn permit(&self, id: &SpiffeId) -> Result<(), (Status, Outcome)> {
        let denied = |why: String| Err((Status::permission_denied(why), Outcome::Denied));
        let domain = self.ca.trust_domain();
        if id.trust_domain_str() != domain.as_str() {
            let error = IssueError::OtherTrustDomain { id: id.clone(), domain: domain.clone() };
            return denied(error.to_string());
        }
        if id.namespace() == CONTROL_PLANE_NAMESPACE && id.service_account() == CONTROL_PLANE_SERVICE_ACCOUNT
        {
            return denied("the control plane's own identity is given to nobody".into());
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CertificateService {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.answer(&request, SystemTime::now()).await.map(Response::new)
    }
}
