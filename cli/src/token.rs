//! `tulle token create`: what a workload outside Kubernetes joins the mesh with.
//!
//! Signs with the control plane's own key, read from its state folder: who may read that key may let workloads in. Makes
//! nothing in the folder. The demo mints its workloads' tokens here too.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use tulle_certs::token::TokenFile;
use tulle_certs::{SpiffeId, TrustDomain};
use tulle_control_plane::ca;
use tulle_control_plane::object::{NamespacedName, is_label};

use crate::{duration, output};

const EXAMPLES: &str = "\
Examples:
  tulle token create --state-dir state --workload-identity shop/orders \\
      --service orders --out orders.token
  tulle token create --state-dir state --workload-identity shop/payments-v2 \\
      --service payments --service payments-v2 --lifetime 1h

The file is for the proxy's --identity-token-file. Its first line is the token,
a secret until it expires; its second line pins the control plane's root.

Exit status:
  0  the token was written
  1  the state folder, the identity or the file cannot be used; standard error says why
  2  wrong arguments";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a join token.
    #[command(after_help = EXAMPLES)]
    Create(CreateArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// The control plane's state folder, with its keys.
    #[arg(long, value_name = "DIR")]
    state_dir: PathBuf,
    /// Who the workload becomes: its namespace and service account.
    #[arg(long, value_name = "NAMESPACE/SERVICE-ACCOUNT")]
    workload_identity: String,
    /// A service that the workload may register itself for; may be repeated.
    #[arg(long = "service", value_name = "NAME")]
    services: Vec<String>,
    /// How long a workload may join with it.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse)]
    lifetime: Duration,
    /// The mesh's trust domain. By default the one that the control plane's root was made for.
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// Write it here, readable by you alone, in place of standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Whom to let in.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) state_dir: &'a Path,
    /// None: the one of the root.
    pub(crate) trust_domain: Option<&'a str>,
    /// `<namespace>/<service account>`.
    pub(crate) identity: &'a str,
    pub(crate) services: &'a [String],
    pub(crate) lifetime: Duration,
}

/// The `token` verb.
///
/// # Errors
/// As [`create()`] and [`write()`].
pub(crate) fn run(command: &TokenCommand) -> Result<()> {
    let TokenCommand::Create(arguments) = command;
    let file = create(&Request {
        state_dir: &arguments.state_dir,
        trust_domain: arguments.trust_domain.as_deref(),
        identity: &arguments.workload_identity,
        services: &arguments.services,
        lifetime: arguments.lifetime,
    })?;
    match &arguments.out {
        Some(path) => write(&file, path),
        None => output::print(file.to_text().trim_end()),
    }
}

/// Mints a token with the key in the state folder.
///
/// # Errors
/// No key there, or one that others may read; a name that is none; a trust domain that is not the root's.
pub(crate) fn create(request: &Request<'_>) -> Result<TokenFile> {
    let account = NamespacedName::parse(request.identity).with_context(|| {
        format!(
            "--workload-identity `{}`: expected <namespace>/<service account>, such as shop/orders, in lower-case letters, digits and `-`",
            request.identity
        )
    })?;
    if let Some(bad) = request.services.iter().find(|name| !is_label(name)) {
        bail!(
            "--service `{bad}`: expected the name of a Service: lower-case letters, digits and `-`, at most 63"
        );
    }
    let asked = request.trust_domain.map(TrustDomain::new).transpose().context("--trust-domain")?;
    let stored = ca::stored_tokens(request.state_dir).with_context(|| {
        format!(
            "no join token can be signed with {} (is it the control plane's state folder?)",
            request.state_dir.display()
        )
    })?;
    let domain = match (asked, stored.trust_domain) {
        (Some(asked), Some(made_for)) if asked != made_for => {
            bail!(
                "--trust-domain `{asked}`: the control plane's root was made for `{made_for}`; leave the flag out"
            )
        }
        (Some(domain), _) | (None, Some(domain)) => domain,
        (None, None) => TrustDomain::default(),
    };
    let id = SpiffeId::new(&domain, &account.namespace, &account.name).context("--workload-identity")?;
    let token = stored.tokens.mint(&id, request.services, request.lifetime, SystemTime::now())?;
    Ok(TokenFile::new(token, stored.pin))
}

/// Writes the token file with mode 0600, in place of what was there.
///
/// # Errors
/// Those of the file system.
pub(crate) fn write(file: &TokenFile, path: &Path) -> Result<()> {
    // A new file every time: an old one may be readable by others, or a link.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot replace {}", path.display()));
        }
        _ => {}
    }
    let mut out = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    out.write_all(file.to_text().as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}
