//! What is intercepted: settings of `tulle-proxy intercept` and of the proxy behind its rules.

use ipnet::IpNet;

use super::{ConfigError, PREFIX, PortSet};

/// Which of a pod's connections lead through the proxy. Where they lead to are the ports of
/// [`Config::outbound_listen`](super::Config::outbound_listen) and
/// [`Config::inbound_listen`](super::Config::inbound_listen).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Intercept {
    /// The proxy's user, whose connections are left alone.
    pub proxy_uid: u32,
    /// The mark of the proxy's connections, in place of its user where there is only one. The proxy sets it on every
    /// socket that it dials.
    pub proxy_mark: Option<u32>,
    /// TCP ports of the application that are reached without the proxy.
    pub skip_inbound_ports: PortSet,
    /// TCP ports elsewhere that are reached without the proxy.
    pub skip_outbound_ports: PortSet,
    /// Empty: every port that is not skipped.
    pub only_inbound_ports: PortSet,
    /// Empty: every port that is not skipped.
    pub only_outbound_ports: PortSet,
    /// Destinations that are reached without the proxy.
    pub skip_subnets: Vec<IpNet>,
    /// Users whose connections are left alone.
    pub skip_uids: Vec<u32>,
    /// Groups whose connections are left alone.
    pub skip_gids: Vec<u32>,
    /// Whether queries of names lead to the proxy.
    pub dns: bool,
    /// Whether UDP to port 443 is dropped.
    pub drop_quic: bool,
}

/// The port on which the proxy answers DNS.
pub const DNS_PORT: u16 = 15053;

impl Intercept {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (direction, skip, only) in [
            ("INBOUND", &self.skip_inbound_ports, &self.only_inbound_ports),
            ("OUTBOUND", &self.skip_outbound_ports, &self.only_outbound_ports),
        ] {
            if !skip.is_empty() && !only.is_empty() {
                return Err(ConfigError::Conflict(format!(
                    "{PREFIX}INTERCEPT_SKIP_{direction}_PORTS and {PREFIX}INTERCEPT_ONLY_{direction}_PORTS say the same in \
                     two ways; set one of them"
                )));
            }
        }
        Ok(())
    }
}
