//! Another server of `istio.v1.auth.IstioCertificateService` than the control plane: cert-manager's istio-csr, behind which stand Vault and the
//! authorities of clouds.
//!
//! It is known by its host name and by roots of its own, since its certificate is none of the mesh's, and is asked in the form that istio-csr wants: the one URI of
//! the request is the identity that the token is of, and there is nothing else in it. The token is shown each time. What it issues is
//! checked as what the control plane issues is: the identity must be the one that was asked for.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use tulle_certs::bundle::BundleError;
use tulle_certs::issue::split_chain_under;
use tulle_certs::{PodToken, SpiffeId, TrustDomain, alpn, outside, pem};
use zeroize::Zeroizing;

use super::files;
use super::source::{Answer, IdentityError, Obtained, ask};
use crate::config::Config;
use crate::control::channel;

/// cert-manager has a minute to have a request signed.
const PATIENCE: Duration = Duration::from_secs(70);
/// How long certificates should live, in seconds; the server may say less.
const LIFETIME: i64 = 24 * 3600;

/// Such a server, and what it is asked with. Files are read whenever it is asked.
#[derive(Debug, Clone)]
pub struct Service {
    /// Where it is.
    pub way: channel::Way,
    /// What its certificate must be for.
    pub name: ServerName<'static>,
    /// PEM roots of that certificate.
    pub roots_file: PathBuf,
    /// What proves who we are; on its first line.
    pub token_file: PathBuf,
    /// Who we are; `None`: the service account that the token names.
    pub wanted: Option<SpiffeId>,
    /// PEM roots that its certificates end in, where it does not tell them; and to know the control plane by.
    pub bundle_file: Option<PathBuf>,
    /// Of the service account that the token names.
    pub trust_domain: Option<TrustDomain>,
}

// === impl Service ===

impl Service {
    /// Of the configuration, which names one.
    ///
    /// # Errors
    /// What is missing, or no name.
    pub(super) fn of(config: &Config) -> Result<Self, &'static str> {
        let from = &config.identity_from;
        let address = from.ca_address.clone().ok_or("IDENTITY_CA_ADDRESS is not set")?;
        let name = from.ca_server_name.as_ref().unwrap_or(&address.host);
        let name = ServerName::try_from(name.clone());
        Ok(Self {
            name: name
                .map_err(|_| "IDENTITY_CA_ADDRESS: its host is no name that a certificate can be for")?,
            way: channel::Way { address, mark: config.intercept.proxy_mark },
            roots_file: from
                .ca_roots_file
                .clone()
                .ok_or("IDENTITY_CA_ADDRESS needs IDENTITY_CA_ROOTS_FILE")?,
            token_file: config
                .identity_token_file
                .clone()
                .ok_or("IDENTITY_CA_ADDRESS needs IDENTITY_TOKEN_FILE")?,
            wanted: from.spiffe_id.clone(),
            bundle_file: config.identity_trust_bundle_file.clone(),
            trust_domain: config.identity_trust_domain.clone(),
        })
    }

    /// One try.
    pub(super) async fn obtain(&self) -> Result<Obtained, IdentityError> {
        let text = files::read(&self.token_file)?;
        let token = text.lines().map(str::trim).find(|line| !line.is_empty());
        let token = Zeroizing::new(
            token.ok_or_else(|| files::error(&self.token_file, "there is no token in it"))?.to_owned(),
        );
        let id = self.id(&token)?;
        let roots = pem::certificates(&files::read(&self.roots_file)?);
        let roots = roots.map_err(|error| files::error(&self.roots_file, error))?;
        let tls = outside::client(roots, &[alpn::GRPC]);
        let tls = tls.map_err(|error| files::error(&self.roots_file, error))?;
        let channel = channel::named(&self.way, "the certificate service", self.name.clone(), move || {
            Some(Arc::clone(&tls))
        });
        let channel = channel.map_err(|error| self.error(format!("its address is not usable: {error}")))?;
        let answer = ask(channel, Some(&token), &id, LIFETIME, PATIENCE).await;
        let Answer { key, texts } = answer.map_err(|error| self.told(error, &id))?;
        let domain = id.trust_domain();
        let given = self.bundle_file.as_deref().map(|path| files::bundle(path, &domain)).transpose()?;
        let split = split_chain_under(&texts, &domain, given.as_ref());
        let (chain, bundle) = split.map_err(|why| match why {
            BundleError::Empty(_) => self.error(
                "its answer has no root, so that peers could not be judged; set TULLE_PROXY_IDENTITY_TRUST_BUNDLE_FILE to the roots that its certificates end in",
            ),
            why => self.error(why.to_string()),
        })?;
        Ok(Obtained { chain, key, bundle, expected: Some(id), keep_roots: true })
    }

    fn id(&self, token: &str) -> Result<SpiffeId, IdentityError> {
        if let Some(wanted) = &self.wanted {
            return Ok(wanted.clone());
        }
        let pod = PodToken::parse(token).ok_or_else(|| {
            files::error(
                &self.token_file,
                "it is not the token of a service account of Kubernetes, which would say who this is; set TULLE_PROXY_IDENTITY_SPIFFE_ID",
            )
        })?;
        let domain = match (&self.trust_domain, &self.bundle_file) {
            (Some(domain), _) => domain.clone(),
            (None, Some(path)) => files::trust_domain(path)?.unwrap_or_default(),
            (None, None) => TrustDomain::default(),
        };
        pod.id(&domain).map_err(|why| IdentityError::PodToken { path: self.token_file.clone(), why })
    }

    /// What [`ask`] says of the control plane, of this server.
    fn told(&self, error: IdentityError, id: &SpiffeId) -> IdentityError {
        match error {
            IdentityError::Refused(why) => self.error(format!(
                "it issued no certificate for {id}: {why}; does it take tokens of that audience, and is that the identity of the token in {}?",
                self.token_file.display()
            )),
            IdentityError::Unreachable { why, .. } => self.error(why),
            IdentityError::TimedOut => self.error(format!("it did not answer within {PATIENCE:?}")),
            other => other,
        }
    }

    fn error(&self, why: impl Into<String>) -> IdentityError {
        IdentityError::Service { address: self.way.address.to_string(), why: why.into() }
    }
}
