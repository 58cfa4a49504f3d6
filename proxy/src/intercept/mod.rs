//! Interception: the rules by which the kernel leads a pod's connections through the proxy, and the command
//! `tulle-proxy intercept install | remove | check` that an init container runs.
//!
//! Decides which connections are led where ([`rules`]), and nothing about them afterwards: that is `accept`'s and
//! `forward`'s. Everything is in one table of ours, `inet tulle`, written in one transaction and removed with it; other
//! tables are never touched. Called by `main`, and by `tulle run` for a namespace of its own; runs in no proxy.

mod check;
mod enclose;
mod encode;
mod iptables;
mod kernel;
mod netlink;
mod refused;
mod rules;
mod survey;
mod text;

use std::ffi::OsString;
use std::fmt;
use std::io::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub use self::check::Missing;
pub use self::enclose::{Enclosed, NotEnclosed, enclose};
pub use self::iptables::{Failed, Family, restore};
pub use self::kernel::Refused;
pub use self::refused::{Packet, Refusals};
pub use self::rules::{ENCLOSED_PORT, Kind, Ruleset, rules};
pub use self::survey::Stranger;
use crate::config::{self, ConfigError};

/// The name of our table.
pub const TABLE: &str = "tulle";

/// Why interception is not as it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(
        "nothing to intercept: there is no outbound and no inbound listener, DNS is not asked for, and QUIC not dropped"
    )]
    Nothing,
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    Iptables(#[from] Failed),
    #[error(transparent)]
    Stranger(#[from] Stranger),
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error(transparent)]
    NotEnclosed(#[from] NotEnclosed),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
}

/// How rules got into the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    NfTables,
    /// Since the kernel has no nf_tables.
    Iptables,
}

/// `intercept`, with its own subcommands and flags.
pub fn command() -> Command {
    let dry_run = || {
        Arg::new("dry-run")
            .long("dry-run")
            .action(ArgAction::SetTrue)
            .help("Print the rules in the syntax of nft, and do nothing")
    };
    let with = |name: &'static str, about: &'static str| {
        config::with_intercept_flags(Command::new(name).about(about))
    };
    Command::new("intercept")
        .about(
            "Lead a network namespace's connections through the proxy, or no longer, or see whether they are",
        )
        .subcommand_required(true)
        .subcommand(
            with("install", "Write the rules, in place of those of an earlier installation")
                .arg(dry_run())
                .arg(
                    Arg::new("force")
                        .long("force")
                        .action(ArgAction::SetTrue)
                        .help("Also where rules of another mesh, or of a host of containers, are in force"),
                )
                .arg(
                    Arg::new("check")
                        .long("check")
                        .action(ArgAction::SetTrue)
                        .help("Then open connections as `check` does, and fail unless they are led to the proxy's ports"),
                ),
        )
        .subcommand(Command::new("remove").about("Remove the rules").arg(dry_run()))
        .subcommand(with("check", "Open connections, and fail unless they are led to the proxy's ports"))
}

/// Runs what `matches`, of [`command`], ask for.
///
/// # Errors
/// When what was asked for is not so; then nothing has been changed.
pub fn run(
    matches: &ArgMatches,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<(), Error> {
    let mut out = std::io::stdout();
    let Some((verb, matches)) = matches.subcommand() else { return Ok(()) };
    if verb == "remove" {
        if matches.get_flag("dry-run") {
            write!(out, "{}", text::removal())?;
            return Ok(());
        }
        let before = survey::chains()?;
        let means = remove()?;
        if before.iter().any(|found| means.has(found)) {
            writeln!(out, "removed {means}")?;
        } else {
            writeln!(out, "there was nothing of ours to remove")?;
        }
        return Ok(());
    }
    let loaded = config::intercept_from_matches(matches, environment)?;
    for warning in loaded.warnings {
        eprintln!("tulle-proxy: {warning}");
    }
    if verb == "check" {
        check::check(&loaded.config, &mut out)?;
        return Ok(());
    }
    let rules = rules(&loaded.config);
    if rules.chains.is_empty() {
        return Err(Error::Nothing);
    }
    if matches.get_flag("dry-run") {
        write!(out, "{}", text::script(&rules))?;
        return Ok(());
    }
    if !matches.get_flag("force")
        && let Some(stranger) = survey::stranger(&survey::chains()?)
    {
        return Err(stranger.into());
    }
    let means = install(&rules)?;
    let count: usize = rules.chains.iter().map(|chain| chain.rules.len()).sum();
    writeln!(out, "installed {count} rules in {means}")?;
    if matches.get_flag("check") {
        check::check(&loaded.config, &mut out)?;
    }
    Ok(())
}

/// Puts rules in force, in place of whatever was there of ours: all of them or, on an error, none.
///
/// # Errors
/// What the kernel refuses, and why.
pub fn install(rules: &Ruleset) -> Result<Means, Error> {
    carry_out(&encode::replace(rules), rules)
}

/// Takes away whatever there is of ours; nothing is no error.
///
/// # Errors
/// What the kernel refuses, and why.
pub fn remove() -> Result<Means, Error> {
    carry_out(&encode::remove(), &Ruleset { chains: Vec::new() })
}

/// As a transaction of nf_tables where the kernel has it, else by iptables so that there are these rules.
fn carry_out(transaction: &encode::Transaction, rules: &Ruleset) -> Result<Means, Error> {
    match kernel::commit(transaction) {
        Ok(()) => Ok(Means::NfTables),
        Err(Refused::NoNfTables) => {
            iptables::apply(rules)?;
            Ok(Means::Iptables)
        }
        Err(refused) => Err(refused.into()),
    }
}

// === impl Means ===

impl Means {
    /// Whether the chain is of rules of ours that got there so.
    fn has(self, found: &survey::Found) -> bool {
        match self {
            Self::NfTables => found.place == format!("the table `inet {TABLE}`"),
            Self::Iptables => found.name.starts_with("TULLE_"),
        }
    }
}

impl fmt::Display for Means {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NfTables => write!(f, "the table `inet {TABLE}`"),
            Self::Iptables => f.write_str("chains of iptables, `TULLE_…`, since the kernel has no nf_tables"),
        }
    }
}

#[cfg(test)]
mod tests;
