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
mod text;

use std::ffi::OsString;
use std::io::Write as _;

use clap::{Arg, ArgAction, ArgMatches, Command};

pub use self::check::Missing;
pub use self::enclose::{Enclosed, NotEnclosed, enclose};
pub use self::iptables::{Failed, Family, restore};
pub use self::kernel::Refused;
pub use self::refused::{Packet, Refusals};
pub use self::rules::{ENCLOSED_PORT, Kind, Ruleset, rules};
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
    Missing(#[from] Missing),
    #[error(transparent)]
    NotEnclosed(#[from] NotEnclosed),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] std::io::Error),
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
            with("install", "Write the rules, in place of those of an earlier installation").arg(dry_run()),
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
        remove()?;
        writeln!(out, "removed the table `inet {TABLE}`")?;
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
    install(&rules)?;
    let count: usize = rules.chains.iter().map(|chain| chain.rules.len()).sum();
    writeln!(out, "installed {count} rules in the table `inet {TABLE}`")?;
    Ok(())
}

/// Puts rules in force, in place of whatever was there of ours: all of them or, on an error, none.
///
/// # Errors
/// What the kernel refuses, and why.
pub fn install(rules: &Ruleset) -> Result<(), Error> {
    match kernel::commit(&encode::replace(rules)) {
        Err(Refused::NoNfTables) => Ok(iptables::apply(rules)?),
        done => Ok(done?),
    }
}

/// Takes away whatever there is of ours; nothing is no error.
///
/// # Errors
/// What the kernel refuses, and why.
pub fn remove() -> Result<(), Error> {
    match kernel::commit(&encode::remove()) {
        Err(Refused::NoNfTables) => Ok(iptables::apply(&Ruleset { chains: Vec::new() })?),
        done => Ok(done?),
    }
}

#[cfg(test)]
mod tests;
