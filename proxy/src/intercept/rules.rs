//! Which rules there are: a pure function from the configuration to chains, in one order that everything else follows.
//!
//! Knows nothing of how rules get into the kernel. Read from top to bottom: what is never intercepted, what is skipped
//! by configuration, then what leads to the proxy.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::config::{Config, DNS_PORT, Intercept, RESERVED_PORTS};

/// Where connections of an enclosed network namespace are led.
pub const ENCLOSED_PORT: u16 = 15001;

/// Everything in our table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    pub chains: Vec<Chain>,
}

/// Rules at one hook of the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub name: &'static str,
    pub kind: Kind,
    pub hook: Hook,
    pub rules: Vec<Rule>,
}

/// What a chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Decide where a new connection leads.
    Nat,
    /// Let packets pass or not.
    Filter,
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// As they leave a program.
    Output,
    /// As they come from elsewhere.
    Prerouting,
}

/// What all of `matches` hold for is treated by `action`; the rules after it are not asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    /// For people, in the kernel's listing and in errors; at most 120 bytes.
    pub comment: &'static str,
}

/// What a packet is told by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// Of a process of this user.
    Uid(u32),
    /// Of a process of this group.
    Gid(u32),
    /// Of a socket with this mark.
    Mark(u32),
    /// Came over the loopback interface.
    FromLoopback,
    /// To an address in this network.
    To(IpNet),
    /// To an address of this network namespace's own, or not.
    ToOwn(bool),
    /// Of this protocol.
    Protocol(Transport),
    /// Of this protocol and to one of these ports.
    Ports(Transport, RangeInclusive<u16>),
}

/// The protocols that have ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes where it was going.
    Return,
    /// Goes to this port of this network namespace.
    Redirect(u16),
    /// Goes nowhere.
    Drop,
    /// Goes nowhere, and is told to whoever listens to [`REFUSED_GROUP`].
    Refuse,
}

/// The group of the kernel's packet log that hears of what is refused.
pub(super) const REFUSED_GROUP: u16 = 15001;

/// The rules that a configuration asks for.
pub fn rules(config: &Config) -> Ruleset {
    let intercept = &config.intercept;
    let mut chains = Vec::new();
    let outbound = outbound(intercept, port(&config.outbound_listen));
    if !outbound.is_empty() {
        let mut rules = never(intercept);
        rules.extend(skipped(intercept));
        rules.extend(outbound);
        chains.push(Chain { name: "outbound", kind: Kind::Nat, hook: Hook::Output, rules });
    }
    if let Some(to) = port(&config.inbound_listen) {
        let rules = inbound(intercept, to);
        chains.push(Chain { name: "inbound", kind: Kind::Nat, hook: Hook::Prerouting, rules });
    }
    if intercept.drop_quic {
        let mut rules = never(intercept);
        rules.extend(skipped(intercept));
        let quic = Match::Ports(Transport::Udp, 443..=443);
        rules.push(rule([quic], Action::Drop, "QUIC: clients fall back to TCP"));
        chains.push(Chain { name: "quic", kind: Kind::Filter, hook: Hook::Output, rules });
    }
    Ruleset { chains }
}

/// The rules for a network namespace in which every address is the namespace's own and which nothing leaves: TCP and
/// queries of names lead to listeners within whose holder is outside. No process within is the proxy.
pub(super) fn enclosed() -> Ruleset {
    let mut rules = loopback();
    rules.extend(queries());
    rules.push(rule([Match::Protocol(Transport::Tcp)], Action::Redirect(ENCLOSED_PORT), "to the proxy"));
    let outbound = Chain { name: "outbound", kind: Kind::Nat, hook: Hook::Output, rules };
    let mut rules = loopback();
    rules.push(rule([Match::Protocol(Transport::Tcp)], Action::Return, "led to the proxy"));
    rules.push(rule([], Action::Refuse, "leads nowhere"));
    let refused = Chain { name: "refused", kind: Kind::Filter, hook: Hook::Output, rules };
    Ruleset { chains: vec![outbound, refused] }
}

/// The port of a list of listeners; they differ in their addresses only.
fn port(listeners: &[std::net::SocketAddr]) -> Option<u16> {
    listeners.first().map(std::net::SocketAddr::port)
}

fn rule<const N: usize>(matches: [Match; N], action: Action, comment: &'static str) -> Rule {
    Rule { matches: matches.into(), action, comment }
}

/// What the proxy itself sends, and what stays in the pod: otherwise it would meet itself.
fn never(intercept: &Intercept) -> Vec<Rule> {
    let own = intercept.proxy_mark.map_or(Match::Uid(intercept.proxy_uid), Match::Mark);
    let mut rules = vec![rule([own], Action::Return, "the proxy's own")];
    rules.extend(loopback());
    rules.push(rule([Match::ToOwn(true)], Action::Return, "the pod's own addresses"));
    rules
}

fn loopback() -> Vec<Rule> {
    let v4 = IpNet::from(Ipv4Net::new_assert(Ipv4Addr::new(127, 0, 0, 0), 8));
    let v6 = IpNet::from(Ipv6Net::from(Ipv6Addr::LOCALHOST));
    [v4, v6].map(|net| rule([Match::To(net)], Action::Return, "loopback")).into()
}

fn queries() -> [Rule; 2] {
    [Transport::Udp, Transport::Tcp].map(|transport| {
        let names = Match::Ports(transport, 53..=53);
        rule([names], Action::Redirect(DNS_PORT), "queries of names")
    })
}

fn skipped(intercept: &Intercept) -> Vec<Rule> {
    let uids = intercept.skip_uids.iter().map(|uid| rule([Match::Uid(*uid)], Action::Return, "skipped user"));
    let gids =
        intercept.skip_gids.iter().map(|gid| rule([Match::Gid(*gid)], Action::Return, "skipped group"));
    let subnets =
        intercept.skip_subnets.iter().map(|net| rule([Match::To(*net)], Action::Return, "skipped subnet"));
    uids.chain(gids).chain(subnets).collect()
}

fn tcp(ports: RangeInclusive<u16>) -> [Match; 1] {
    [Match::Ports(Transport::Tcp, ports)]
}

/// What leads to `to`, and what does not by its port; nothing if nothing leads anywhere.
fn outbound(intercept: &Intercept, to: Option<u16>) -> Vec<Rule> {
    let mut rules = Vec::new();
    if intercept.dns {
        rules.extend(queries());
    }
    let Some(to) = to else { return rules };
    let skips = intercept.skip_outbound_ports.ranges();
    let mut before = vec![rule(tcp(RESERVED_PORTS), Action::Return, "ports of proxies")];
    before.extend(skips.map(|ports| rule(tcp(ports), Action::Return, "skipped port")));
    before.append(&mut rules);
    before.extend(led(&intercept.only_outbound_ports, to));
    before
}

/// Only what is for this pod: whatever it would forward, it would dial as the proxy.
fn inbound(intercept: &Intercept, to: u16) -> Vec<Rule> {
    let mut rules = vec![
        rule([Match::FromLoopback], Action::Return, "loopback"),
        rule([Match::ToOwn(false)], Action::Return, "not for this pod"),
        rule(tcp(RESERVED_PORTS), Action::Return, "ports of the proxy"),
    ];
    let skips = intercept.skip_inbound_ports.ranges();
    rules.extend(skips.map(|ports| rule(tcp(ports), Action::Return, "skipped port")));
    rules.extend(led(&intercept.only_inbound_ports, to));
    rules
}

/// `only` these ports, or all if there are none, lead to `to`.
fn led(only: &crate::config::PortSet, to: u16) -> Vec<Rule> {
    if only.is_empty() {
        return vec![rule([Match::Protocol(Transport::Tcp)], Action::Redirect(to), "to the proxy")];
    }
    only.ranges().map(|ports| rule(tcp(ports), Action::Redirect(to), "to the proxy")).collect()
}

// === impl Chain ===

impl Chain {
    /// Before others' chains of the same kind, which would otherwise decide by the order of installation.
    pub fn priority(&self) -> i32 {
        match self.kind {
            Kind::Nat => -110,
            Kind::Filter => -10,
        }
    }
}

// === impl Transport ===

impl Transport {
    /// As of `/etc/protocols`.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// As of `/etc/protocols`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}
