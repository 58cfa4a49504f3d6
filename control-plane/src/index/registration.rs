//! What a workload says of itself over its Report stream.

use std::net::IpAddr;
use std::sync::Arc;

use tulle_api::v1;
use tulle_certs::SpiffeId;

use crate::object::{Identity, NamespacedName, is_label};

/// Tells a registration from every other one; a later one has a greater ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegistrationId(pub u64);

/// A workload that made itself an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Who; replicas that share a name have a registration each.
    pub workload: NamespacedName,
    /// From the certificate of the stream, never from what was said on it.
    pub spiffe_id: Arc<str>,
    /// What clients dial.
    pub address: IpAddr,
    /// Services in the workload's own namespace, with (service port, port to dial).
    pub ports: Vec<(NamespacedName, u16, u16)>,
    /// Empty when unknown.
    pub region: String,
    /// Empty when unknown.
    pub zone: String,
    /// False while draining.
    pub ready: bool,
    /// Its stream is another control plane's, whose word this is: see [`Index::register`](super::Index::register).
    pub told: bool,
}

/// A registration that cannot be taken: nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("registration: {field}: {message}")]
pub struct RegistrationError {
    /// Path of the field, such as `services[0].ports[1].port`.
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

// === impl Registration ===

impl Registration {
    /// Reads what `workload` said on a stream that proved to be `spiffe_id`.
    ///
    /// # Errors
    /// Names the first field that cannot be used.
    pub fn read(
        workload: NamespacedName,
        spiffe_id: impl Into<Arc<str>>,
        said: &v1::Registration,
    ) -> Result<Self, RegistrationError> {
        let address: IpAddr = said.address.parse().map_err(|_| RegistrationError {
            field: "address".to_owned(),
            message: format!("`{}` is not an IP address", said.address),
        })?;
        if address.is_unspecified() || address.is_multicast() {
            return Err(RegistrationError {
                field: "address".to_owned(),
                message: format!("`{address}` cannot be dialled; advertise the address that clients use"),
            });
        }
        let locality = said.locality.clone().unwrap_or_default();
        let mut ports = Vec::new();
        for (index, service) in said.services.iter().enumerate() {
            if !is_label(&service.name) {
                return Err(RegistrationError {
                    field: format!("services[{index}].name"),
                    message: format!("`{}` cannot be the name of a Service", service.name),
                });
            }
            let name = NamespacedName::new(workload.namespace.clone(), service.name.as_str());
            for (at, port) in service.ports.iter().enumerate() {
                let number = |field: &str, number: u32| {
                    u16::try_from(number).ok().filter(|number| *number > 0).ok_or_else(|| RegistrationError {
                        field: format!("services[{index}].ports[{at}].{field}"),
                        message: format!("{number} is not a port; ports are 1 to 65535"),
                    })
                };
                ports.push((
                    name.clone(),
                    number("service_port", port.service_port)?,
                    number("port", port.port)?,
                ));
            }
        }
        ports.sort();
        ports.dedup();
        Ok(Self {
            workload,
            spiffe_id: spiffe_id.into(),
            address: address.to_canonical(),
            ports,
            region: locality.region,
            zone: locality.zone,
            ready: said.ready,
            told: false,
        })
    }

    /// Whether it says of itself that it is of this service account.
    pub(super) fn is_of(&self, account: &Identity) -> bool {
        let id = SpiffeId::parse(&self.spiffe_id);
        id.is_ok_and(|id| match account {
            Identity::ServiceAccount { namespace, name } => {
                id.namespace() == namespace && id.service_account() == name
            }
            Identity::Spiffe(text) => id.as_str() == text,
        })
    }

    /// The services that it is an endpoint of; one may be named more than once.
    pub fn services(&self) -> impl Iterator<Item = &NamespacedName> {
        self.ports.iter().map(|(service, _, _)| service)
    }
}
