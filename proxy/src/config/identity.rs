//! Where the workload's identity comes from, as settings: which go together, and which of several sources it is.
//!
//! What each gives, and when it is asked, is the business of `control::identity`.

use std::path::PathBuf;

use tulle_certs::SpiffeId;
use tulle_identity::{Address, ENDPOINT_VARIABLE};

use super::{Config, ConfigError, HostPort, PREFIX};

/// Sources beside the control plane's own certificate service and files, and whose identity is asked for.
#[derive(Clone, Debug, Default)]
pub struct IdentityFrom {
    /// Another server of `istio.v1.auth.IstioCertificateService`.
    pub ca_address: Option<HostPort>,
    /// PEM roots of that server's certificate.
    pub ca_roots_file: Option<PathBuf>,
    /// The name that its certificate is for, where that is not the host in its address.
    pub ca_server_name: Option<String>,
    /// A SPIFFE Workload API.
    pub workload_api: Option<Address>,
    /// Who this workload is, where the source has several or does not say it.
    pub spiffe_id: Option<SpiffeId>,
    /// Of several of a Workload API, the one with this hint.
    pub svid_hint: Option<String>,
    /// `SPIFFE_ENDPOINT_SOCKET`, as it is.
    pub endpoint_socket: Option<String>,
}

impl Config {
    /// Where nothing else is said of the identity, what every workload is told by `SPIFFE_ENDPOINT_SOCKET` holds.
    pub(super) fn take_endpoint_socket(&mut self) -> Result<(), ConfigError> {
        let from = &self.identity_from;
        let Some(value) = &from.endpoint_socket else { return Ok(()) };
        let said = from.workload_api.is_some()
            || from.ca_address.is_some()
            || self.identity_cert_file.is_some()
            || self.identity_token_file.is_some();
        if said || value.trim().is_empty() {
            return Ok(());
        }
        let address = value.trim().parse::<Address>().map_err(|error| ConfigError::Bad {
            setting: ENDPOINT_VARIABLE.to_owned(),
            value: value.clone(),
            problem: error.to_string(),
            form: Address::FORM,
        })?;
        self.identity_from.workload_api = Some(address);
        Ok(())
    }

    pub(super) fn validate_identity(&self) -> Result<(), ConfigError> {
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        let from = &self.identity_from;
        let sources = [
            ("IDENTITY_CERT_FILE", self.identity_cert_file.is_some()),
            ("IDENTITY_WORKLOAD_API", from.workload_api.is_some()),
            ("IDENTITY_CA_ADDRESS", from.ca_address.is_some()),
            ("IDENTITY_TOKEN_FILE", self.identity_token_file.is_some() && from.ca_address.is_none()),
        ];
        let mut set = sources.iter().filter(|(_, set)| *set).map(|(name, _)| *name);
        let source = set.next();
        if let (Some(first), Some(second)) = (source, set.next()) {
            return conflict(format!(
                "{PREFIX}{first} and {PREFIX}{second} are two sources of one identity; set one of them"
            ));
        }
        if self.identity_cert_file.is_some() != self.identity_key_file.is_some() {
            return conflict(format!(
                "{PREFIX}IDENTITY_CERT_FILE and {PREFIX}IDENTITY_KEY_FILE go together; set both or none"
            ));
        }
        if self.identity_cert_file.is_some() && self.identity_trust_bundle_file.is_none() {
            return conflict(format!(
                "{PREFIX}IDENTITY_CERT_FILE needs {PREFIX}IDENTITY_TRUST_BUNDLE_FILE, the roots to trust peers by"
            ));
        }
        let needs = [
            (
                "IDENTITY_CA_ROOTS_FILE",
                from.ca_roots_file.is_some(),
                "the roots of that server's certificate",
            ),
            ("IDENTITY_TOKEN_FILE", self.identity_token_file.is_some(), "the token that it is shown"),
        ];
        for (name, set, what) in needs {
            if from.ca_address.is_some() && !set {
                return conflict(format!("{PREFIX}IDENTITY_CA_ADDRESS needs {PREFIX}{name}, {what}"));
            }
        }
        let only: [(&str, bool, &[&str]); 4] = [
            ("IDENTITY_CA_ROOTS_FILE", from.ca_roots_file.is_some(), &["IDENTITY_CA_ADDRESS"]),
            ("IDENTITY_CA_SERVER_NAME", from.ca_server_name.is_some(), &["IDENTITY_CA_ADDRESS"]),
            ("IDENTITY_SVID_HINT", from.svid_hint.is_some(), &["IDENTITY_WORKLOAD_API"]),
            (
                "IDENTITY_SPIFFE_ID",
                from.spiffe_id.is_some(),
                &["IDENTITY_CA_ADDRESS", "IDENTITY_WORKLOAD_API", "IDENTITY_CERT_FILE"],
            ),
        ];
        for (name, set, with) in only {
            if set && !source.is_some_and(|source| with.contains(&source)) {
                let with: Vec<String> = with.iter().map(|name| format!("{PREFIX}{name}")).collect();
                return conflict(format!("{PREFIX}{name} says something only beside {}", with.join(" or ")));
            }
        }
        if self.control_plane_address.is_some() && source.is_none() {
            return conflict(format!(
                "no identity: set {PREFIX}IDENTITY_TOKEN_FILE (a token of `tulle token create`), {PREFIX}IDENTITY_CERT_FILE, \
                 {PREFIX}IDENTITY_WORKLOAD_API or {PREFIX}IDENTITY_CA_ADDRESS"
            ));
        }
        Ok(())
    }
}
