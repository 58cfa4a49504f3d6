//! `tulle`: the command that makes the mesh pleasant, and a whole mesh in one binary for the demo.
//!
//! Decides nothing about the mesh: each verb is a module that asks the libraries (`tulle-certs`, `tulle-control-plane`,
//! `tulle-proxy`) or a running proxy. Exit status: 0 done, 1 failed or found something wrong, 2 wrong arguments.

mod authz;
mod brief;
mod check;
mod demo;
mod diagnostics;
mod duration;
mod explain;
mod folder;
mod http;
mod identity;
mod inject;
mod install;
mod internal;
mod interrupt;
mod output;
mod process;
mod run;
mod screen;
mod service;
mod stat;
mod tap;
mod token;
mod top;
mod version;

use std::process::ExitCode;

use anyhow::Result;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;

use self::brief::brief;

const EXAMPLES: &str = "\
Examples:
  tulle demo                        a mesh of three services on this machine, live
  tulle demo --for 10s              the same with an end and a verdict
  tulle run --config-dir mesh/ -- curl http://orders:8080
  tulle check --config-dir mesh/    look over a folder of YAML
  tulle check --pre                 is this Kubernetes cluster fit for the mesh? Without --pre: is the mesh well?
  tulle explain --config-dir mesh/ --from shop/web --to http://orders:8080/v2
  tulle explain no_healthy_endpoint
  tulle stat --watch                what flows now
  tulle tap shop/web --status 5xx   requests as they happen
  tulle install --ha                the control plane, in a Kubernetes cluster
  source <(tulle completion bash)

Exit status: 0 done; 1 failed, or something is wrong; 2 wrong arguments.";

#[derive(Debug, Parser)]
#[command(name = "tulle", version, about = "A service mesh at the weight of a library", after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = true)]
struct Tulle {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a control plane and three small services with their proxies on this machine, with traffic.
    Demo(demo::DemoArgs),
    /// Run a program in the mesh, as it is: its connections and names lead through a proxy of its own.
    Run(run::RunArgs),
    /// Say what is wrong: with the mesh in a Kubernetes cluster, or what would be before an install, or in a folder of YAML.
    Check(check::CheckArgs),
    /// Put a proxy into the pods of manifests, as the webhook does in a cluster.
    Inject(inject::InjectArgs),
    /// Take the proxy out of the pods of manifests.
    Uninject(inject::UninjectArgs),
    /// Say what would become of a request, and why, without sending it; or what a reason in an answer means.
    Explain(explain::ExplainArgs),
    /// Show success, rate and latencies by Service or workload, as the proxies report them.
    Stat(stat::StatArgs),
    /// Show who calls whom, with which identities and how well.
    Edges(stat::EdgesArgs),
    /// Show success, rate and latencies by route and backend of Services.
    Routes(stat::RoutesArgs),
    /// Show requests as they happen.
    Tap(tap::TapArgs),
    /// Show what is asked most, live: by who asks whom, method and path.
    Top(top::TopArgs),
    /// Put the control plane into a Kubernetes cluster.
    Install(install::InstallArgs),
    /// Bring the control plane in a cluster to this command's version, or change its values.
    Upgrade(install::UpgradeArgs),
    /// Take the control plane out of a cluster.
    Uninstall(install::UninstallArgs),
    /// Look into a running mesh.
    #[command(subcommand)]
    Diagnostics(diagnostics::DiagnosticsCommand),
    /// Show the certificate of a running proxy, and when it is renewed.
    Identity(identity::IdentityArgs),
    /// Show which policies a running proxy has in force, or say whether they would let a request in.
    Authz(authz::AuthzArgs),
    /// Make, list and revoke what workloads outside Kubernetes join with.
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Print the version.
    Version(version::VersionArgs),
    /// Print a shell's completion script.
    #[command(
        after_help = "Examples:\n  source <(tulle completion bash)\n  tulle completion fish > ~/.config/fish/completions/tulle.fish"
    )]
    Completion {
        /// For which shell.
        #[arg(value_enum)]
        shell: Shell,
    },
    /// The demo's own processes.
    #[command(hide = true)]
    Internal(internal::InternalArgs),
}

fn main() -> ExitCode {
    let verb = match Tulle::try_parse() {
        Ok(arguments) => arguments.verb,
        Err(refused) => return refuse(&refused),
    };
    match run(verb) {
        Ok(status) => status,
        Err(error) => {
            let told = tulle_control_plane::app::describe(&error);
            eprintln!("tulle: {}", brief(&told, std::env::args_os()));
            ExitCode::FAILURE
        }
    }
}

/// As clap does, but for long arguments. What was asked for is told as it is: help, the version.
fn refuse(refused: &clap::Error) -> ExitCode {
    let said = refused.render().to_string();
    let told = brief(&said, std::env::args_os());
    if !refused.use_stderr() || told == said {
        refused.exit();
    }
    eprint!("{told}");
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(2))
}

fn run(verb: Verb) -> Result<ExitCode> {
    let done = |()| ExitCode::SUCCESS;
    match verb {
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Run(arguments) => run::run(&arguments),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Inject(arguments) => inject::run(&arguments),
        Verb::Uninject(arguments) => inject::run_uninject(&arguments),
        Verb::Explain(arguments) => explain::run(&arguments),
        Verb::Stat(arguments) => stat::stat(&arguments),
        Verb::Edges(arguments) => stat::edges(&arguments),
        Verb::Routes(arguments) => stat::routes(&arguments),
        Verb::Tap(arguments) => tap::run(&arguments),
        Verb::Top(arguments) => top::run(&arguments),
        Verb::Install(arguments) => install::install(&arguments),
        Verb::Upgrade(arguments) => install::upgrade(&arguments),
        Verb::Uninstall(arguments) => install::uninstall(&arguments),
        Verb::Diagnostics(command) => diagnostics::run(&command),
        Verb::Identity(arguments) => identity::run(&arguments).map(done),
        Verb::Authz(arguments) => authz::run(&arguments),
        Verb::Token(command) => token::run(&command).map(done),
        Verb::Version(arguments) => version::run(&arguments).map(done),
        Verb::Completion { shell } => completion(shell).map(done),
        Verb::Internal(arguments) => internal::run(arguments),
    }
}

fn completion(shell: Shell) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Tulle::command(), "tulle", &mut script);
    output::print(String::from_utf8_lossy(&script).trim_end())
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    #[test]
    fn the_arguments_fit_together() {
        Tulle::command().debug_assert();
    }

    fn reference(command: &mut clap::Command, path: &str, out: &mut String) {
        let help = command.clone().term_width(100).render_long_help().to_string();
        let help: Vec<_> = help.lines().map(str::trim_end).collect();
        let _ = write!(out, "\n## {path}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
        for verb in
            command.get_subcommands_mut().filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
        {
            let path = format!("{path} {}", verb.get_name());
            reference(verb, &path, out);
        }
    }

    #[test]
    fn the_reference_page_is_what_help_says() {
        let mut text =
            "# tulle: verbs and flags\n\nWhat `--help` says; this page is made from it.\n".to_owned();
        let mut command = Tulle::command();
        command.build();
        reference(&mut command, "tulle", &mut text);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/tulle.md");
        if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == text,
            "docs/reference/tulle.md is not what --help says; run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-cli`"
        );
    }
}
