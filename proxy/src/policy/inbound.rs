//! The compiled inbound policy of one workload.
//!
//! What it says is asked thrice: whether a connection may stay, that is, whether there could be a request that passes
//! ([`Inbound::evaluate`]); of each request ([`Inbound::evaluate_request`]); and of a connection that turns out to carry none
//! ([`Inbound::evaluate_bytes`]).

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use foldhash::fast::RandomState;
use ipnet::IpNet;
use tulle_certs::{SpiffeId, TrustDomain};

use super::access::AccessPolicy;
use super::external::{ExternalSpec, Externals};
use super::path::Unclear;
use super::rules::{Access, Requested, What};
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
    /// Of several that let a connection in, the first is named. Not looked at where there are `policies`.
    pub rules: Vec<Allow>,
    /// Of several that say the same, the first is named.
    pub policies: Vec<AccessPolicy>,
    /// The mesh's, in which namespaces and service accounts are named. `None`: that of whoever has proven an identity, which is no
    /// other as long as there is one mesh.
    pub trust_domain: Option<TrustDomain>,
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
    /// Who else is asked about requests, one after the other; all must agree.
    pub external: Vec<ExternalSpec>,
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

/// What becomes of a connection or request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// `rule` is the one that let it in, or `default` where no rule speaks of the port.
    Allow { rule: Arc<str> },
    /// As `Allow`, and it is to be told.
    Audit { rule: Arc<str> },
    /// `rule` is the one that denies it, where there is such a rule; rules that only allow refuse nobody by name, unless they
    /// let nobody in at all.
    Deny { reason: Denial, rule: Option<Arc<str>> },
}

/// What becomes of a connection or request, and what else is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judged {
    pub verdict: Verdict,
    /// Of what may go on, the rule in dry run that would have refused it; or the policy, which only allows, and not this.
    pub would_deny: Option<Arc<str>>,
}

/// Why a connection or request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// The port takes only the mesh's mutual TLS.
    MtlsRequired,
    /// A rule denies it; or there are rules for the port that allow, and none describes it.
    PolicyDenied,
    /// Policies look at what nobody can tell of the request.
    Unclear(Unclear),
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
    access: Access,
    rate_limits: Option<RateLimits>,
    authentications: Option<Authentications>,
    externals: Option<Arc<Externals>>,
    generation: u64,
}

/// The name in place of a rule's where no rule speaks of the port.
static DEFAULT: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from("default"));

/// Whether it is the name in place of a rule's.
pub fn is_default(rule: &str) -> bool {
    *rule == **DEFAULT
}

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
        let asked = old.and_then(|old| old.externals.as_deref());
        let externals = Externals::new(&spec.external, asked).map(Arc::new);
        let known = old.and_then(|old| old.authentications.as_ref());
        let authentications = Authentications::after(known, &spec.authentications);
        let ports = spec.ports.iter().copied().collect();
        let access = match &*spec.policies {
            [] => {
                let rules = spec.rules.iter();
                let policies: Vec<_> = rules
                    .map(|rule| AccessPolicy::allowing(&rule.name, &rule.ports, &rule.identities))
                    .collect();
                Access::new(&policies, spec.trust_domain.as_ref())
            }
            policies => Access::new(policies, spec.trust_domain.as_ref()),
        };
        let generation = GENERATIONS.fetch_add(1, Ordering::Relaxed);
        Self { spec, ports, access, rate_limits, authentications, externals, generation }
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

    /// Tells it from every other: what was judged by it need not be judged by it again.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether any policy speaks of `port`.
    pub fn has_rules(&self, port: u16) -> bool {
        self.access.port(port).speaks()
    }

    /// The first of the policies that allow at `port`, where there are some and they let nobody in, whoever it is.
    pub fn letting_nobody_in(&self, port: u16) -> Option<&str> {
        self.access.port(port).allow.letting_nobody_in().map(|name| &**name)
    }

    /// Whether some rule that allows at `port` asks for an identity.
    pub fn names_identities(&self, port: u16) -> bool {
        self.access.port(port).names_identities
    }

    /// Whether policies at `port` look at the hosts of requests, so that a request must not name two.
    pub fn looks_at_hosts(&self, port: u16) -> bool {
        self.access.port(port).in_force.at_hosts
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

    /// Who else is asked about requests; `None`: nobody.
    pub fn externals(&self) -> Option<&Arc<Externals>> {
        self.externals.as_ref()
    }

    /// Judges a connection that may carry requests, each of which is judged again: whether any of them could be let in.
    ///
    /// Where policies that allow speak of the port and let nobody in, whoever it is, the first of them refuses by its name: nobody is asked for an identity
    /// in vain. Else first the port's mode: `strict` refuses all but the mesh's mutual TLS with a proven identity. Then the policies: what one denies is
    /// refused; where none that allows speaks of what is asked, whoever got this far is let in, from the networks of [`Unspoken`]; else
    /// only what one of these describes.
    pub fn evaluate(&self, connection: &Connection<'_>) -> Verdict {
        self.judge(connection, What::Some).verdict
    }

    /// Judges a connection that carries no HTTP.
    pub fn evaluate_bytes(&self, connection: &Connection<'_>) -> Judged {
        self.judge(connection, What::Bytes)
    }

    /// Judges a request on a connection, by all that is said of both.
    pub fn evaluate_request(&self, connection: &Connection<'_>, requested: &Requested<'_>) -> Judged {
        self.judge(connection, What::Request(requested))
    }

    fn judge(&self, connection: &Connection<'_>, what: What<'_>) -> Judged {
        let identity = match connection.tls {
            TlsKind::Mesh => connection.peer,
            // Nothing was proven, whatever the caller believes.
            TlsKind::None | TlsKind::ApplicationTls => None,
        };
        let port = self.access.port(connection.port);
        if let Some(rule) = port.allow.letting_nobody_in() {
            return Judged::denied(Denial::PolicyDenied, Some(Arc::clone(rule)));
        }
        let mode = self.port(connection.port).mode;
        // Mesh TLS without an identity cannot be; were it to, it would not be let in.
        let proven = connection.tls != TlsKind::Mesh || identity.is_some();
        if !proven || (mode == Mode::Strict && identity.is_none()) {
            return Judged::denied(Denial::MtlsRequired, None);
        }
        let domain = self.spec.trust_domain.as_ref();
        let facts = match port.facts((connection.port, identity, connection.client), domain, what) {
            Ok(facts) => facts,
            Err(unclear) => return Judged::denied(Denial::Unclear(unclear), None),
        };
        if let Some(rule) = port.deny.find(&facts, true) {
            return Judged::denied(Denial::PolicyDenied, Some(Arc::clone(rule)));
        }
        let is_spoken_of = port.allow.speaker(&facts).is_some();
        // Some request may be one that only a policy of its route speaks of, and so may one whose headers are no longer known.
        let is_asked = match what {
            What::Some => true,
            What::Bytes => is_spoken_of,
            What::Request(requested) => is_spoken_of || requested.headless,
        };
        let found = if is_asked { port.allow.find(&facts, false) } else { None };
        let verdict = match found {
            Some(rule) => Verdict::Allow { rule: Arc::clone(rule) },
            None if is_spoken_of => return Judged::denied(Denial::PolicyDenied, None),
            None => self.unspoken(connection.client),
        };
        if !verdict.is_allowed() || matches!(what, What::Some) {
            return Judged { verdict, would_deny: None };
        }
        let audited = port.audit.find(&facts, true).map(|rule| Verdict::Audit { rule: Arc::clone(rule) });
        let would_deny = port.dry_deny.find(&facts, true).or_else(|| {
            // Where one that is in force has let it in, another that allows besides would refuse nothing.
            let speaker = if is_spoken_of { None } else { port.dry_allow.speaker(&facts) };
            speaker.filter(|_| port.dry_allow.find(&facts, false).is_none())
        });
        Judged { verdict: audited.unwrap_or(verdict), would_deny: would_deny.cloned() }
    }

    /// What holds where no policy that allows speaks of what is asked.
    fn unspoken(&self, client: IpAddr) -> Verdict {
        let Unspoken { networks, audited } = &self.spec.unspoken;
        let client = client.to_canonical();
        if !networks.is_empty() && !networks.iter().any(|network| network.contains(&client)) {
            return Verdict::Deny { reason: Denial::NetworkDenied, rule: None };
        }
        let rule = DEFAULT.clone();
        if *audited { Verdict::Audit { rule } } else { Verdict::Allow { rule } }
    }
}

/// How many there have been.
static GENERATIONS: AtomicU64 = AtomicU64::new(1);

// === impl Judged ===

impl Judged {
    /// It may not go on, for this reason and by that rule, if it is one's.
    pub fn denied(reason: Denial, rule: Option<Arc<str>>) -> Self {
        Self { verdict: Verdict::Deny { reason, rule }, would_deny: None }
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
            Self::Unclear(_) => "malformed_request",
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
