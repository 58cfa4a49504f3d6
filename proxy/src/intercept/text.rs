//! The rules in the syntax of `nft`, for people: what `--dry-run` prints, and errors quote. Never sent anywhere.

use std::fmt;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::TABLE;
use super::rules::{Action, Chain, Hook, Kind, Match, REFUSED_GROUP, Rule, Ruleset};

/// A whole script: what was there before goes with it.
pub(super) fn script(rules: &Ruleset) -> String {
    use std::fmt::Write as _;
    let mut out = format!("table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n");
    for (index, chain) in rules.chains.iter().enumerate() {
        let gap = if index == 0 { "" } else { "\n" };
        let _ = write!(out, "{gap}{chain}");
    }
    out.push_str("}\n");
    out
}

/// What removes it all.
pub(super) fn removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
        };
        let hook = match self.hook {
            Hook::Output => "output",
            Hook::Prerouting => "prerouting",
        };
        writeln!(f, "\tchain {} {{", self.name)?;
        writeln!(f, "\t\ttype {kind} hook {hook} priority {}; policy accept;", self.priority())?;
        for rule in &self.rules {
            writeln!(f, "\t\t{rule} comment \"{}\"", rule.comment)?;
        }
        writeln!(f, "\t}}")
    }
}

/// Without its comment.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        match self.action {
            Action::Return => write!(f, "return"),
            Action::Redirect(port) => write!(f, "redirect to :{port}"),
            Action::Drop => write!(f, "drop"),
            Action::Refuse => write!(f, "log group {REFUSED_GROUP} drop"),
        }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "meta skuid {uid}"),
            Self::Gid(gid) => write!(f, "meta skgid {gid}"),
            Self::Mark(mark) => write!(f, "meta mark {mark:#010x}"),
            Self::FromLoopback => write!(f, "iifname \"lo\""),
            Self::To(net) => write!(f, "{} daddr {}", family(net), net_text(net)),
            Self::ToOwn(true) => write!(f, "fib daddr type local"),
            Self::ToOwn(false) => write!(f, "fib daddr type != local"),
            Self::Protocol(transport) => write!(f, "meta l4proto {}", transport.name()),
            Self::Ports(transport, ports) => {
                write!(f, "{} dport {}", transport.name(), range(ports, "-"))
            }
        }
    }
}

fn family(net: &IpNet) -> &'static str {
    match net {
        IpNet::V4(_) => "ip",
        IpNet::V6(_) => "ip6",
    }
}

/// Without the prefix where it is a single address, as `nft` lists it.
fn net_text(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// `80` or `80-90`.
pub(super) fn range(ports: &RangeInclusive<u16>, dash: &str) -> String {
    if ports.start() == ports.end() {
        ports.start().to_string()
    } else {
        format!("{}{dash}{}", ports.start(), ports.end())
    }
}
