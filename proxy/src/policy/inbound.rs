//! The compiled inbound policy of one workload.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use ipnet::IpNet;
use tulle_certs::SpiffeId;

use crate::limit::{RateLimit, RateLimits};
use crate::state::{Mode, ObjectName, Protocol};
use crate::telemetry::access;
use crate::telemetry::trace::Sampling;
use crate::token::{AuthenticationSpec, Authentications};

/// What a policy says, before it is compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundSpec {
    pub workload: ObjectName,
    /// For ports that `ports` does not name.
    pub mode: Mode,
    pub ports: Vec<(u16, PortPolicy)>,
    /// Of several that let a connection in, the first is named.
    pub rules: Vec<Allow>,
    /// What holds at ports of which no rule speaks.
    pub unspoken: Unspoken,
    /// All of them hold.
    pub rate_limits: Vec<RateLimit>,
    /// When clients outside the mesh are asked to open another connection, give or take a tenth, by port.
    pub connection_ages: Vec<(u16, Duration)>,
    /// What is logged of what comes in, by port; of other ports nothing is said.
    pub access_logs: Vec<(u16, access::Said)>,
    /// Which traces of what comes in are recorded, by port; of other ports nothing is said.
    pub samplings: Vec<(u16, Sampling)>,
    /// What is logged of all that goes out and comes in, where nothing more specific says it.
    pub access_log: Option<access::Said>,
    /// Which traces of it are recorded, likewise.
    pub sampling: Sampling,
    /// Which tokens requests may carry.
    pub authentications: Vec<AuthenticationSpec>,
}

/// What holds, after the mode, at ports of which no rule speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unspoken {
    /// Where clients must be; empty: anywhere.
    pub networks: Vec<IpNet>,
    /// Who is let in is told.
    pub audited: bool,
}

/// How connections to one port are treated before any rule is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPolicy {
    pub protocol: Protocol,
    pub mode: Mode,
}

/// Lets identities in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// `<namespace>/<policy>/<rule>`.
    pub name: Arc<str>,
    /// The ports that it speaks of; empty: every port.
    pub ports: Vec<u16>,
    /// Whom it lets in; empty: nobody.
    pub identities: Vec<SpiffeId>,
}

/// What policy may know of an inbound connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection<'a> {
    /// The port that the client dialled on the workload's address.
    pub port: u16,
    /// Who the client has proven to be.
    pub peer: Option<&'a SpiffeId>,
    pub tls: TlsKind,
    pub client: IpAddr,
}

/// How a connection is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsKind {
    /// The mesh's mutual TLS, terminated by this proxy; also the way from a pod to itself.
    Mesh,
    /// Plaintext.
    None,
    /// The application's own TLS, passed on as it is: to policy, without identity.
    ApplicationTls,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `rule` is the one that let it in, or `default` where no rule speaks of the port.
    Allow { rule: Arc<str> },
    /// As `Allow`, and it is to be told.
    Audit { rule: Arc<str> },
    /// `rule` is the one that refused it, where there is such a rule; rules that only allow refuse nobody by name.
    Deny { reason: Denial, rule: Option<Arc<str>> },
}

/// Why a connection is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// The port takes only the mesh's mutual TLS.
    MtlsRequired,
    /// There are rules for the port, and none lets this client in.
    PolicyDenied,
    /// No rule speaks of the port, and the client is in none of the networks that may reach such ports.
    NetworkDenied,
    /// There is no policy (any more).
    NoPolicy,
    /// The destination lies outside the mesh and may not be reached.
    EgressDenied,
}

/// A workload's policy for inbound connections, compiled.
#[derive(Debug)]
pub struct Inbound {
    spec: InboundSpec,
    ports: HashMap<u16, PortPolicy, RandomState>,
    /// The rules of ports that some rule names, those of every port included.
    named: HashMap<u16, Rules, RandomState>,
    /// The rules of all other ports.
    every: Rules,
    rate_limits: Option<RateLimits>,
    authentications: Option<Authentications>,
}

/// The rules of one port.
#[derive(Debug, Default)]
struct Rules {
    /// Whether there is any, if only one that lets nobody in.
    any: bool,
    /// Who is let in, and by which rule.
    identities: HashMap<SpiffeId, Arc<str>, RandomState>,
}

/// The name in place of a rule's where no rule speaks of the port.
static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("default"));

// === impl Inbound ===

impl Inbound {
    /// One after none.
    pub fn new(spec: InboundSpec, now: Instant) -> Self {
        Self::after(None, spec, now)
    }

    /// `spec` in place of `old`, whose limits go on counting where they stay, and whose keys are kept.
    pub fn after(old: Option<&Self>, spec: InboundSpec, now: Instant) -> Self {
        let counted = old.and_then(|old| old.rate_limits.as_ref());
        let rate_limits = RateLimits::new(&spec.rate_limits, counted, now);
        let known = old.and_then(|old| old.authentications.as_ref());
        let authentications = Authentications::after(known, &spec.authentications);
        let ports = spec.ports.iter().copied().collect();
        let every = Rules::new(&spec.rules, |rule| rule.ports.is_empty());
        let mut named: HashMap<u16, Rules, RandomState> = HashMap::default();
        for port in spec.rules.iter().flat_map(|rule| &rule.ports) {
            named.entry(*port).or_insert_with(|| {
                Rules::new(&spec.rules, |rule| rule.ports.is_empty() || rule.ports.contains(port))
            });
        }
        Self { spec, ports, named, every, rate_limits, authentications }
    }

    /// What this was compiled from.
    pub fn spec(&self) -> &InboundSpec {
        &self.spec
    }

    pub fn workload(&self) -> &ObjectName {
        &self.spec.workload
    }

    /// How `port` is treated; a port that the policy does not name is [`Protocol::Detect`] in the policy's mode.
    pub fn port(&self, port: u16) -> PortPolicy {
        let unnamed = PortPolicy { protocol: Protocol::Detect, mode: self.spec.mode };
        self.ports.get(&port).copied().unwrap_or(unnamed)
    }

    /// Whether any rule speaks of `port`.
    pub fn has_rules(&self, port: u16) -> bool {
        self.rules(port).any
    }

    /// When clients of the port outside the mesh are asked to open another connection; `None`: never.
    pub fn connection_age(&self, port: u16) -> Option<Duration> {
        self.spec.connection_ages.iter().find(|(of, _)| *of == port).map(|(_, age)| *age)
    }

    /// What is said of the log of what comes to the port.
    pub fn access_log(&self, port: u16) -> Option<&access::Said> {
        self.spec.access_logs.iter().find(|(of, _)| *of == port).map(|(_, said)| said)
    }

    /// What is said of the traces of what comes to the port.
    pub fn sampling(&self, port: u16) -> Sampling {
        let said = self.spec.samplings.iter().find(|(of, _)| *of == port);
        said.map(|(_, said)| *said).unwrap_or_default()
    }

    /// How often requests are let in; `None`: without limit.
    pub fn rate_limits(&self) -> Option<&RateLimits> {
        self.rate_limits.as_ref()
    }

    /// Which tokens requests may carry; `None`: nothing is said of any.
    pub fn authentications(&self) -> Option<&Authentications> {
        self.authentications.as_ref()
    }

    /// Judges a connection.
    ///
    /// First the port's mode: `strict` refuses all but the mesh's mutual TLS with a proven identity. Then the rules: if
    /// none speaks of the port, whoever got this far is let in, from the networks of [`Unspoken`]; else only identities that a rule names.
    pub fn evaluate(&self, connection: &Connection<'_>) -> Verdict {
        let identity = match connection.tls {
            TlsKind::Mesh => connection.peer,
            // Nothing was proven, whatever the caller believes.
            TlsKind::None | TlsKind::ApplicationTls => None,
        };
        let mode = self.port(connection.port).mode;
        // Mesh TLS without an identity cannot be; were it to, it would not be let in.
        let proven = connection.tls != TlsKind::Mesh || identity.is_some();
        if !proven || (mode == Mode::Strict && identity.is_none()) {
            return Verdict::Deny { reason: Denial::MtlsRequired, rule: None };
        }
        let rules = self.rules(connection.port);
        if !rules.any {
            let Unspoken { networks, audited } = &self.spec.unspoken;
            let client = connection.client.to_canonical();
            if !networks.is_empty() && !networks.iter().any(|network| network.contains(&client)) {
                return Verdict::Deny { reason: Denial::NetworkDenied, rule: None };
            }
            let rule = DEFAULT.clone();
            return if *audited { Verdict::Audit { rule } } else { Verdict::Allow { rule } };
        }
        match identity.and_then(|id| rules.identities.get(id)) {
            Some(rule) => Verdict::Allow { rule: rule.clone() },
            None => Verdict::Deny { reason: Denial::PolicyDenied, rule: None },
        }
    }

    fn rules(&self, port: u16) -> &Rules {
        self.named.get(&port).unwrap_or(&self.every)
    }
}

// === impl Rules ===

impl Rules {
    fn new(rules: &[Allow], speaks: impl Fn(&Allow) -> bool) -> Self {
        let mut compiled = Self::default();
        for rule in rules.iter().filter(|rule| speaks(rule)) {
            compiled.any = true;
            for identity in &rule.identities {
                compiled.identities.entry(identity.clone()).or_insert_with(|| rule.name.clone());
            }
        }
        compiled
    }
}

// === impl Verdict ===

impl Verdict {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::Allow { .. } | Self::Audit { .. })
    }
}

// === impl Denial ===

impl Denial {
    /// The stable reason in headers, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MtlsRequired => "mtls_required",
            Self::PolicyDenied | Self::NetworkDenied => "policy_denied",
            Self::NoPolicy => "policy_unavailable",
            Self::EgressDenied => "egress_denied",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
