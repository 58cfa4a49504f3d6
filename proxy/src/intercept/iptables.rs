//! The same rules for `iptables-restore`, where the kernel has no nf_tables.
//!
//! [`restore`] is pure: from the rules and what `iptables-save` says to what `iptables-restore --noflush` is to be told.
//! Each family and table is a transaction of its own there, so what has been done is undone when a later one fails.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use ipnet::IpNet;

use super::rules::{Action, Chain, Kind, Match, Rule, Ruleset};
use super::survey::Found;
use super::text;

/// Why the rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error(
        "the kernel has no nf_tables, and neither `iptables-legacy-restore` nor `iptables-restore` can be run: load nf_tables \
         on the host, or use an image with iptables"
    )]
    NoProgram,
    #[error("the kernel has no nf_tables, and `{program}` fails: {said}")]
    Program { program: String, said: String },
}

/// An address family, by the names of its programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// Our chains: name, table, and the hook that leads to it.
const CHAINS: [(&str, Kind, &str); 3] = [
    ("outbound", Kind::Nat, "OUTPUT"),
    ("inbound", Kind::Nat, "PREROUTING"),
    ("quic", Kind::Filter, "OUTPUT"),
];

/// Puts `rules` in force, in place of what was there; without rules, takes away what was there.
pub(super) fn apply(rules: &Ruleset) -> Result<(), Failed> {
    let flavour = ["-legacy", ""].into_iter().find(|flavour| {
        let program = format!("iptables{flavour}-save");
        Command::new(program).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
    });
    let flavour = flavour.ok_or(Failed::NoProgram)?;
    let done = apply_to(rules, flavour);
    if done.is_err() && !rules.chains.is_empty() {
        // What is wrong has been said already.
        drop(apply_to(&Ruleset { chains: Vec::new() }, flavour));
    }
    done
}

fn apply_to(rules: &Ruleset, flavour: &str) -> Result<(), Failed> {
    for family in [Family::V4, Family::V6] {
        // A kernel without IPv6 has nothing to intercept there.
        if family == Family::V6 && !Path::new("/proc/net/if_inet6").exists() {
            continue;
        }
        let base = format!("{}{flavour}", if family == Family::V4 { "iptables" } else { "ip6tables" });
        for table in [Kind::Nat, Kind::Filter] {
            let saved = run(&format!("{base}-save"), &["-t", table_name(table)], "")?;
            let script = restore(rules, family, table, &saved);
            if !script.is_empty() {
                run(&format!("{base}-restore"), &["--noflush"], &script)?;
            }
        }
    }
    Ok(())
}

/// The chains of iptables of its own kind, beside nf_tables; none where its tables or its program are not there.
pub(super) fn chains() -> Vec<Found> {
    let families = [("/proc/net/ip_tables_names", "iptables"), ("/proc/net/ip6_tables_names", "ip6tables")];
    let used = families.iter().filter(|(tables, _)| {
        // Where none is in use, to list them would make them.
        std::fs::read_to_string(tables).is_ok_and(|tables| !tables.trim().is_empty())
    });
    let saved =
        used.filter_map(|(_, name)| Some(parse(name, &run(&format!("{name}-legacy-save"), &[], "").ok()?)));
    saved.flatten().collect()
}

/// What `iptables-save` lists, without what the kernel has by itself.
pub(super) fn parse(name: &str, saved: &str) -> Vec<Found> {
    let mut found = Vec::new();
    let mut table = "";
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        }
        let chain = line.strip_prefix(':').and_then(|rest| rest.split_once(" - ["));
        if let Some((chain, _)) = chain {
            let place = format!("the table `{table}` of {name}");
            found.push(Found { place, name: chain.to_owned(), rules: 0, asked: false });
        }
        let Some(rule) = line.strip_prefix("-A ") else { continue };
        for chain in found.iter_mut().rev().filter(|found| found.place.contains(&format!("`{table}`"))) {
            chain.rules += usize::from(rule.starts_with(&format!("{} ", chain.name)));
            chain.asked |= rule.ends_with(&format!("-j {}", chain.name));
        }
    }
    found
}

fn run(program: &str, arguments: &[&str], input: &str) -> Result<String, Failed> {
    let failed = |said: String| Failed::Program { program: program.to_owned(), said };
    let start = || -> io::Result<std::process::Output> {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    };
    let output = start().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What brings one table of one family from `saved` to `rules`; empty if nothing is to be done.
pub fn restore(rules: &Ruleset, family: Family, table: Kind, saved: &str) -> String {
    let mut body = String::new();
    for (name, _, hook) in CHAINS.iter().filter(|(_, kind, _)| *kind == table) {
        let own = own_name(name);
        let wanted = rules.chains.iter().find(|chain| chain.name == *name);
        let jump = format!("{hook} -j {own}");
        let jumps = saved.lines().any(|line| line == format!("-A {jump}"));
        let there = saved.lines().any(|line| line.starts_with(&format!(":{own} ")));
        match wanted {
            Some(chain) => {
                // Makes it, or empties it.
                let _ = writeln!(body, ":{own} - [0:0]");
                write_rules(&mut body, &own, chain, family);
                if !jumps {
                    let _ = writeln!(body, "-I {hook} 1 -j {own}");
                }
            }
            None => {
                if jumps {
                    let _ = writeln!(body, "-D {jump}");
                }
                if there {
                    let _ = writeln!(body, "-F {own}\n-X {own}");
                }
            }
        }
    }
    if body.is_empty() { body } else { format!("*{}\n{body}COMMIT\n", table_name(table)) }
}

/// What a chain of ours is called there.
pub(super) fn own_name(chain: &str) -> String {
    format!("TULLE_{}", chain.to_ascii_uppercase())
}

fn table_name(table: Kind) -> &'static str {
    match table {
        Kind::Nat => "nat",
        Kind::Filter => "filter",
    }
}

fn write_rules(out: &mut String, own: &str, chain: &Chain, family: Family) {
    for rule in chain.rules.iter().filter(|rule| speaks_of(rule, family)) {
        let _ = write!(out, "-A {own}");
        for condition in &rule.matches {
            write_match(out, condition);
        }
        let _ = write!(out, " -m comment --comment \"{}\"", rule.comment);
        let _ = match rule.action {
            Action::Return => writeln!(out, " -j RETURN"),
            Action::Redirect(port) => writeln!(out, " -j REDIRECT --to-ports {port}"),
            Action::Drop | Action::Refuse => writeln!(out, " -j DROP"),
        };
    }
}

fn speaks_of(rule: &Rule, family: Family) -> bool {
    rule.matches.iter().all(|condition| match condition {
        Match::To(IpNet::V4(_)) => family == Family::V4,
        Match::To(IpNet::V6(_)) => family == Family::V6,
        _ => true,
    })
}

fn write_match(out: &mut String, condition: &Match) {
    let _ = match condition {
        Match::Uid(uid) => write!(out, " -m owner --uid-owner {uid}"),
        Match::Gid(gid) => write!(out, " -m owner --gid-owner {gid}"),
        Match::Mark(mark) => write!(out, " -m mark --mark {mark:#x}"),
        Match::FromLoopback => write!(out, " -i lo"),
        Match::To(net) => write!(out, " -d {net}"),
        Match::ToOwn(true) => write!(out, " -m addrtype --dst-type LOCAL"),
        Match::ToOwn(false) => write!(out, " -m addrtype ! --dst-type LOCAL"),
        Match::Protocol(transport) => write!(out, " -p {}", transport.name()),
        Match::Ports(transport, ports) => {
            let name = transport.name();
            write!(out, " -p {name} -m {name} --dport {}", text::range(ports, ":"))
        }
    };
}
