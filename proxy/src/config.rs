//! Every setting of the proxy, in one table: name, form, default, meaning.
//!
//! A setting is the variable `TULLE_PROXY_<NAME>` or the flag `--<name>`; the flag wins. A bad value stops the
//! start, and the message names the setting, what it had and which form it takes. A variable with our prefix that
//! no setting has is warned about, with the nearest name. Nothing else in the proxy reads the environment.
//!
//! [`Config`] is plain data: `main`, the `tulle` binary and tests make one, and `app` starts a proxy from it.
//! `docs/reference/proxy.md` is made from the table ([`reference()`]), and a test compares the two.

mod addresses;
mod identity;
mod intercept;
pub mod otel;
mod parse;
mod probes;
mod table;
mod workers;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use tulle_certs::TrustDomain;

pub use self::addresses::BoundAddresses;
pub use self::identity::IdentityFrom;
pub use self::intercept::{DNS_PORT, Intercept};
pub use self::otel::{OTEL_VARIABLES, Tracing};
pub use self::probes::{AllowedProbe, Hook, MadeProbe, ProbeQuestion, Probes};
pub use self::table::{VARIABLES, Variable, reference};
pub use self::workers::{CpuLimits, worker_count};
use crate::state::ObjectName;
use crate::telemetry::access::Said;

/// What every variable's name begins with.
pub const PREFIX: &str = "TULLE_PROXY_";

/// What the names of OpenTelemetry's own variables begin with.
const OTEL_PREFIX: &str = "OTEL_";

/// The ports of the proxy and of its admin listeners: never an inbound destination (`loop_detected`).
pub const RESERVED_PORTS: std::ops::RangeInclusive<u16> = tulle_api::PROXY_PORTS;

/// Everything that a proxy can be told at its start. The meaning of each field is in [`VARIABLES`].
#[derive(Clone, Debug)]
pub struct Config {
    /// Whose proxy this is. `None` only where there is no control plane (fixed configuration, tests).
    pub workload: Option<ObjectName>,
    /// `region` and `region/zone`, told to the control plane with the registration.
    pub locality: Locality,
    /// `host:port` of the control plane. `None`: the proxy runs on what its state was given (tests).
    pub control_plane_address: Option<HostPort>,
    /// The join token, for the first certificate.
    pub identity_token_file: Option<PathBuf>,
    /// PEM roots to know the control plane by, in place of the pin in the token file; with
    /// [`Config::identity_cert_file`], the roots to trust peers by.
    pub identity_trust_bundle_file: Option<PathBuf>,
    /// The trust domain, where neither the token nor the roots say it.
    pub identity_trust_domain: Option<TrustDomain>,
    /// PEM chain, leaf first, given from outside in place of the certificate authority.
    pub identity_cert_file: Option<PathBuf>,
    /// PEM private key of [`Config::identity_cert_file`].
    pub identity_key_file: Option<PathBuf>,
    /// Other sources of an identity, and what they are asked for.
    pub identity_from: IdentityFrom,
    /// Intercepting listeners: the destination comes from the kernel.
    pub outbound_listen: Vec<SocketAddr>,
    /// Listeners that each lead to one port of one service.
    pub outbound_services: Vec<OutboundService>,
    /// Intercepting listeners for what comes in.
    pub inbound_listen: Vec<SocketAddr>,
    /// Listeners that each lead to one address of the application.
    pub inbound_ports: Vec<InboundPort>,
    /// What becomes of `x-forwarded-client-cert` in requests to the application.
    pub inbound_client_cert_header: ClientCert,
    /// The address that other workloads dial. `None`: that of the inbound listener.
    pub register_address: Option<IpAddr>,
    /// A join token that grants the registration, beside a certificate that is not the control plane's.
    pub register_token_file: Option<PathBuf>,
    /// Where questions about names are answered.
    pub dns_listen: Vec<SocketAddr>,
    /// The unix socket of another network namespace ([`crate::accept::Namespace`]), in which applications connect.
    pub namespace_socket: Option<PathBuf>,
    /// Who is asked about names outside the mesh. `None`: the servers in `/etc/resolv.conf`.
    pub dns_servers: Option<Vec<SocketAddr>>,
    /// What the full names of services end in, in lower case, without a dot at either end.
    pub cluster_domain: String,
    /// Ports whose bytes are never looked at.
    pub opaque_ports: PortSet,
    /// What leads through the proxy in a pod.
    pub intercept: Intercept,
    /// How many worker threads. `None`: see [`worker_count`].
    pub workers: Option<usize>,
    /// The CPU request of the container, in thousandths of a core.
    pub cpu_request_millis: Option<u64>,
    /// How long a connect may take, TLS handshake included.
    pub connect_timeout: Duration,
    /// How long a pooled HTTP/1 connection may idle.
    pub idle_timeout: Duration,
    /// How long detection waits for the rest, once it has the first bytes.
    pub detect_timeout: Duration,
    /// How long a request's head may take, from its first byte.
    pub header_read_timeout: Duration,
    /// How large a request's or response's head may be, in bytes.
    pub max_head_bytes: usize,
    /// How many accepted connections the proxy holds, over all workers. `None`: half of what its file
    /// descriptors allow.
    pub max_connections: Option<usize>,
    /// The listen backlog.
    pub listen_backlog: u32,
    /// How long a drain may take before what is left is cut.
    pub drain_grace: Duration,
    /// How long the first use of an address is held for the control plane's answer.
    pub discovery_timeout: Duration,
    /// How often the control plane is told what the proxy carries; `None`: never.
    pub load_report_interval: Option<Duration>,
    /// The loopback admin listener. `None`: none.
    pub admin_address: Option<SocketAddr>,
    /// A unix socket that serves what [`Config::admin_address`] does.
    pub admin_socket: Option<PathBuf>,
    /// The public listener: metrics and probes. `None`: none.
    pub metrics_address: Option<SocketAddr>,
    /// The kubelet's probes.
    pub probes: Probes,
    /// Where the application is for those that the proxy makes.
    pub probes_address: IpAddr,
    /// How many lines `/metrics` may have.
    pub metrics_max_series: usize,
    /// What requests and connections are told apart by on `/metrics`.
    pub metrics_labels: SeriesLabels,
    /// Upper bounds of the latency histograms' buckets, ascending.
    pub metrics_latency_buckets: Vec<Duration>,
    /// Where [`BoundAddresses`] are written.
    pub addresses_file: Option<PathBuf>,
    /// What diagnostics are written: a level, or directives as of [`tulle_api::log_filter`].
    pub log_level: String,
    /// How diagnostics are written.
    pub log_format: LogFormat,
    /// What the process's own settings say of the access log.
    pub access_log: Said,
    /// What OpenTelemetry's own variables say.
    pub tracing: Tracing,
}

/// A host name or IP address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Without brackets where it is an IPv6 address.
    pub host: String,
    /// 1–65535.
    pub port: u16,
}

/// Where a workload runs; empty when unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// As of `topology.kubernetes.io/region`.
    pub region: String,
    /// As of `topology.kubernetes.io/zone`.
    pub zone: String,
}

/// `listen=namespace/service:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutboundService {
    /// Where applications dial; port 0 for any free one.
    pub listen: SocketAddr,
    /// The service that the listener leads to.
    pub service: ObjectName,
    /// The service's port.
    pub port: u16,
}

/// `listen=application[/service:port]…`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundPort {
    /// Where other workloads dial, and what is registered; port 0 for any free one.
    pub listen: SocketAddr,
    /// Where the application listens.
    pub application: SocketAddr,
    /// The services, in the workload's own namespace, and their ports, that this port is registered for.
    pub services: Vec<ServicePort>,
}

/// A service of the workload's own namespace, and one of its ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// A DNS label.
    pub service: String,
    /// 1–65535.
    pub port: u16,
}

/// A list of ports and ranges of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortSet(Vec<std::ops::RangeInclusive<u16>>);

/// What becomes of `x-forwarded-client-cert`, which applications believe. What a client says there never arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCert {
    /// The application is told nothing.
    Remove,
    /// It is told who a client of the mesh has proven to be.
    Set,
}

/// How diagnostics are written to standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// For people.
    Text,
}

/// Of the labels in [`SeriesLabels::NAMES`], in their order, those that series of requests and connections have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeriesLabels(pub [bool; 4]);

// === impl SeriesLabels ===

impl SeriesLabels {
    /// Labels with as many values as there are peers, services, routes and backends.
    pub const NAMES: [&'static str; 4] = ["peer", "service", "route", "backend"];

    /// These values, and nothing in place of those that are not to be shown.
    #[inline]
    pub fn of(self, values: [&str; 4]) -> [&str; 4] {
        let mut shown = values;
        for (value, is_shown) in shown.iter_mut().zip(self.0) {
            if !is_shown {
                *value = "";
            }
        }
        shown
    }
}

impl Default for SeriesLabels {
    /// All.
    fn default() -> Self {
        Self([true; 4])
    }
}

/// What [`load`] came to.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Variables with our prefix that no setting has; to be logged once logging is there.
    pub warnings: Vec<String>,
}

/// A setting that the proxy cannot start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The value does not parse.
    #[error("{setting}: {problem} (got `{value}`); expected {form}")]
    Bad {
        /// The variable or the flag, whichever held the value.
        setting: String,
        /// What it held.
        value: String,
        /// What is wrong with it.
        problem: String,
        /// The accepted form.
        form: &'static str,
    },
    /// Settings that each parse and do not go together.
    #[error("{0}")]
    Conflict(String),
    /// The arguments are not ours, or are `--help` or `--version`: to be printed as clap prints it.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
}

/// Reads the settings from the process's arguments and environment.
///
/// `command` is what is run, with its own arguments taken off: `tulle-proxy`, or a subcommand of `tulle`.
///
/// # Errors
/// [`ConfigError::Arguments`] also for `--help`: call `clap::Error::exit` on it.
pub fn load(
    command: clap::Command,
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Loaded, ConfigError> {
    let matches = with_flags(command).try_get_matches_from(arguments)?;
    from_matches(&matches, environment)
}

static FLAGS: LazyLock<Vec<String>> = LazyLock::new(|| VARIABLES.iter().map(Variable::flag).collect());

/// `command` with a flag for every setting.
pub fn with_flags(command: clap::Command) -> clap::Command {
    let flags = FLAGS.iter().map(String::as_str);
    command.args(VARIABLES.iter().zip(flags).map(|(variable, flag)| argument(variable, flag)))
}

/// `command` with a flag for every setting that rules of interception are made from: `--skip-outbound-ports` is
/// `--intercept-skip-outbound-ports` of the proxy.
pub fn with_intercept_flags(command: clap::Command) -> clap::Command {
    let flags = VARIABLES.iter().zip(FLAGS.iter()).filter_map(|(variable, flag)| match variable.name {
        "OUTBOUND_LISTEN" | "INBOUND_LISTEN" => Some((variable, flag.as_str())),
        _ => flag.strip_prefix("intercept-").map(|flag| (variable, flag)),
    });
    command.args(flags.map(|(variable, flag)| argument(variable, flag)))
}

/// `command` with the flags that say where the loopback admin listener is.
pub fn with_admin_flags(command: clap::Command) -> clap::Command {
    let flags = VARIABLES.iter().zip(FLAGS.iter());
    let flags = flags.filter(|(variable, _)| matches!(variable.name, "ADMIN_ADDRESS" | "ADMIN_SOCKET"));
    command.args(flags.map(|(variable, flag)| argument(variable, flag)))
}

fn argument(variable: &Variable, flag: &'static str) -> clap::Arg {
    let help =
        format!("{} [default: {}; {}]", variable.meaning, variable.default_text(), variable.variable());
    clap::Arg::new(variable.name).long(flag).value_name(variable.form).help(help)
}

/// Reads the settings from the matches of a command made by [`with_flags`], and from `environment`.
///
/// # Errors
/// The first setting that is bad, or a pair that does not go together.
pub fn from_matches(
    matches: &clap::ArgMatches,
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Loaded, ConfigError> {
    let mut loaded = read(matches, environment, |flag| flag)?;
    loaded.config.take_endpoint_socket()?;
    loaded.config.validate()?;
    Ok(loaded)
}

/// As [`from_matches`], of a command made by [`with_intercept_flags`]: what the proxy needs besides rules may be missing.
///
/// # Errors
/// The first setting that is bad, or a pair that does not go together.
pub fn intercept_from_matches(
    matches: &clap::ArgMatches,
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Loaded, ConfigError> {
    let loaded = read(matches, environment, intercept_flag)?;
    loaded.config.intercept.validate()?;
    Ok(loaded)
}

/// As [`from_matches`], of a command made by [`with_admin_flags`]: only where the admin listener is matters.
///
/// # Errors
/// The first setting that is bad.
pub fn admin_from_matches(
    matches: &clap::ArgMatches,
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Result<Config, ConfigError> {
    Ok(read(matches, environment, |flag| flag)?.config)
}

/// What a flag of the proxy is called where all flags are of interception.
fn intercept_flag(flag: &str) -> &str {
    flag.strip_prefix("intercept-").unwrap_or(flag)
}

/// `called` is what a flag of the proxy is called in the command.
fn read(
    matches: &clap::ArgMatches,
    environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    called: fn(&str) -> &str,
) -> Result<Loaded, ConfigError> {
    let mut warnings = Vec::new();
    let mut from_environment: Vec<Option<String>> = vec![None; VARIABLES.len()];
    let mut of_otel: Vec<Option<String>> = vec![None; OTEL_VARIABLES.len()];
    let mut endpoint_socket = None;
    for (name, value) in environment {
        if let Some(index) = OTEL_VARIABLES.iter().position(|variable| name == variable.name) {
            of_otel[index] = Some(value.to_string_lossy().into_owned());
        }
        if name == tulle_identity::ENDPOINT_VARIABLE {
            endpoint_socket = Some(value.to_string_lossy().into_owned());
        }
        let Some(name) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        match VARIABLES.iter().position(|variable| variable.name == name) {
            Some(index) => from_environment[index] = Some(value.to_string_lossy().into_owned()),
            None => warnings.push(unknown_variable(name)),
        }
    }
    let mut config = Config::default();
    config.identity_from.endpoint_socket = endpoint_socket;
    for (variable, from_environment) in VARIABLES.iter().zip(from_environment) {
        // A subcommand has only some of the flags.
        let (setting, value) = match matches.try_get_one::<String>(variable.name).ok().flatten() {
            Some(value) => (format!("--{}", called(&variable.flag())), value.clone()),
            // Set to nothing means not set: what a template leaves behind.
            None => match from_environment.filter(|value| !value.trim().is_empty()) {
                Some(value) => (variable.variable(), value),
                None => continue,
            },
        };
        (variable.set)(&mut config, value.trim()).map_err(|problem| ConfigError::Bad {
            setting,
            value,
            problem,
            form: variable.form,
        })?;
    }
    for (variable, value) in OTEL_VARIABLES.iter().zip(of_otel) {
        let Some(value) = value.filter(|value| !value.trim().is_empty()) else { continue };
        (variable.set)(&mut config, value.trim()).map_err(|problem| ConfigError::Bad {
            setting: variable.variable(),
            // They may hold a key, or a password.
            value: match variable.name.ends_with("_HEADERS") || value.contains('@') {
                true => "…".to_owned(),
                false => value,
            },
            problem,
            form: variable.form,
        })?;
    }
    warnings.extend(config.tracing.warnings());
    warnings.sort();
    Ok(Loaded { config, warnings })
}

fn unknown_variable(name: &str) -> String {
    match tulle_api::nearest(name, VARIABLES.iter().map(|variable| variable.name)) {
        Some(nearest) => format!(
            "{PREFIX}{name} is no setting of this proxy and is ignored; did you mean {PREFIX}{nearest}?"
        ),
        None => format!("{PREFIX}{name} is no setting of this proxy and is ignored; `--help` lists them"),
    }
}

// === impl Config ===

impl Default for Config {
    /// The table's defaults.
    fn default() -> Self {
        let mut config = Self {
            workload: None,
            locality: Locality::default(),
            control_plane_address: None,
            identity_token_file: None,
            identity_trust_bundle_file: None,
            identity_trust_domain: None,
            identity_cert_file: None,
            identity_key_file: None,
            identity_from: IdentityFrom::default(),
            outbound_listen: Vec::new(),
            dns_listen: Vec::new(),
            namespace_socket: None,
            dns_servers: None,
            cluster_domain: String::new(),
            outbound_services: Vec::new(),
            inbound_listen: Vec::new(),
            inbound_ports: Vec::new(),
            inbound_client_cert_header: ClientCert::Remove,
            register_address: None,
            register_token_file: None,
            opaque_ports: PortSet::default(),
            intercept: Intercept::default(),
            workers: None,
            cpu_request_millis: None,
            connect_timeout: Duration::ZERO,
            idle_timeout: Duration::ZERO,
            detect_timeout: Duration::ZERO,
            header_read_timeout: Duration::ZERO,
            max_head_bytes: 0,
            max_connections: None,
            listen_backlog: 0,
            drain_grace: Duration::ZERO,
            discovery_timeout: Duration::ZERO,
            load_report_interval: None,
            admin_address: None,
            admin_socket: None,
            metrics_address: None,
            probes: Probes::default(),
            probes_address: IpAddr::from([127, 0, 0, 1]),
            metrics_max_series: 0,
            metrics_labels: SeriesLabels::default(),
            metrics_latency_buckets: Vec::new(),
            addresses_file: None,
            log_level: String::new(),
            log_format: LogFormat::Text,
            access_log: Said::default(),
            tracing: Tracing::default(),
        };
        for variable in VARIABLES {
            // That every default parses is a test's business.
            let _ = variable.default.map(|default| (variable.set)(&mut config, default));
        }
        config
    }
}

impl Config {
    /// What no single setting can know.
    ///
    /// # Errors
    /// The settings that do not go together, and what to do.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        if self.control_plane_address.is_some() && self.workload.is_none() {
            return conflict(format!(
                "{PREFIX}WORKLOAD is not set; with a control plane it must be, as <namespace>/<name>"
            ));
        }
        self.validate_identity()?;
        self.intercept.validate()?;
        self.validate_listeners()
    }

    fn validate_listeners(&self) -> Result<(), ConfigError> {
        let conflict = |text: String| Err(ConfigError::Conflict(text));
        if let Some(address) = self.admin_address
            && !address.ip().is_loopback()
        {
            return conflict(format!(
                "{PREFIX}ADMIN_ADDRESS={address} is not a loopback address; what that listener serves is for this host only"
            ));
        }
        for port in &self.inbound_ports {
            if port.application.ip().is_unspecified() && self.namespace_socket.is_none() {
                return conflict(format!(
                    "{PREFIX}INBOUND_PORTS: {} is no address that an application can be dialled at; give the one that it listens \
                     on, or 127.0.0.1",
                    port.application
                ));
            }
            if port.application == port.listen && port.listen.port() != 0 {
                return conflict(format!(
                    "{PREFIX}INBOUND_PORTS: {} would lead to itself; the application and the proxy need different ports",
                    port.listen
                ));
            }
            if !port.services.is_empty() && self.advertised_ip(port).is_none() {
                return conflict(format!(
                    "{PREFIX}INBOUND_PORTS: {} is registered, and listens on every address; set {PREFIX}REGISTER_ADDRESS to the \
                     one that other workloads dial",
                    port.listen
                ));
            }
        }
        let mut bound: Vec<(&'static str, SocketAddr)> = Vec::new();
        bound.extend(self.dns_listen.iter().map(|listen| ("DNS_LISTEN", *listen)));
        bound.extend(self.outbound_listen.iter().map(|listen| ("OUTBOUND_LISTEN", *listen)));
        bound.extend(self.inbound_listen.iter().map(|listen| ("INBOUND_LISTEN", *listen)));
        bound.extend(self.outbound_services.iter().map(|service| ("OUTBOUND_SERVICES", service.listen)));
        bound.extend(self.inbound_ports.iter().map(|port| ("INBOUND_PORTS", port.listen)));
        bound.extend(self.admin_address.map(|address| ("ADMIN_ADDRESS", address)));
        bound.extend(self.metrics_address.map(|address| ("METRICS_ADDRESS", address)));
        bound.retain(|(_, address)| address.port() != 0);
        for (index, (first, address)) in bound.iter().enumerate() {
            if let Some((second, _)) = bound[index + 1..].iter().find(|(_, other)| other == address) {
                return conflict(format!("{PREFIX}{first} and {PREFIX}{second} both listen on {address}"));
            }
        }
        Ok(())
    }

    /// The address that other workloads dial to reach `port`; `None` if it is registered nowhere sensible.
    pub fn advertised_ip(&self, port: &InboundPort) -> Option<IpAddr> {
        self.register_address.or_else(|| Some(port.listen.ip()).filter(|ip| !ip.is_unspecified()))
    }

    /// How many worker threads to start: as set, else as the machine allows.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or_else(|| worker_count(&CpuLimits::read(), self.cpu_request_millis))
    }

    /// How many connections the proxy holds: as set, else half of `file_limit` less a reserve for the proxy
    /// itself, since every connection has another one behind it.
    pub fn connection_limit(&self, file_limit: u64) -> usize {
        const RESERVE: u64 = 128;
        self.max_connections.unwrap_or_else(|| {
            usize::try_from(file_limit.saturating_sub(RESERVE) / 2).unwrap_or(usize::MAX).max(16)
        })
    }
}

// === impl HostPort ===

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

// === impl PortSet ===

impl PortSet {
    /// Whether `port` is in the list.
    pub fn contains(&self, port: u16) -> bool {
        self.0.iter().any(|range| range.contains(&port))
    }

    /// Whether there is no port in the list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ports and ranges, as they were written.
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::RangeInclusive<u16>> + '_ {
        self.0.iter().cloned()
    }
}

#[cfg(test)]
mod tests;
