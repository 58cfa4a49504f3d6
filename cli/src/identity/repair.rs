//! `tulle identity repair`: a new root in the place of one that has expired, in a state folder or in a cluster's Secret.

use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context as _, Result, anyhow};
use serde_json::json;
use tulle_certs::TrustDomain;
use tulle_control_plane::ca::rotation::{Repaired, repair_folder};
use tulle_control_plane::cluster::Secret;

use crate::check;
use crate::output::{self, Format};

const EXAMPLES: &str = "\
Examples:
  tulle identity repair --state-dir state      the control plane must be stopped for it
  tulle identity repair                        in the cluster of the current context
  tulle identity repair --context staging -n tulle-system

By a root that has expired nobody can verify anything, so the new one takes its place at once, and
nothing vouches for it: workloads outside a cluster need new token files (`tulle token create`);
pods get the new root by the ConfigMap tulle-trust-bundle, and join again by themselves. Until
they have, they are refused. Of a root that has not expired use `tulle identity rotate-root`.

Exit status:
  0  there is a new root; standard output says what is to be done now
  1  nothing was done; standard error says why
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RepairArgs {
    /// The control plane's state folder. Without it, the Secret tulle-identity in a cluster is repaired.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["namespace", "context", "kubeconfig"])]
    state_dir: Option<PathBuf>,
    /// The control plane's namespace.
    #[arg(long, short, value_name = "NAME", default_value = "tulle-system")]
    namespace: String,
    /// The context of the kubeconfig. By default the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig. By default as kubectl finds it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The mesh's trust domain. By default the one that the old root was made for.
    #[arg(long, value_name = "NAME", value_parser = domain)]
    trust_domain: Option<TrustDomain>,
    /// Also in the place of a root that is good, was given, or cannot be read: every workload has to join again.
    #[arg(long)]
    force: bool,
    /// How to print what was done.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

fn domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::new(text).map_err(|error| error.to_string())
}

/// Repairs, and says what is to be done now.
///
/// # Errors
/// Why nothing was done.
pub(super) async fn run(arguments: &RepairArgs) -> Result<()> {
    let (domain, now) = (arguments.trust_domain.as_ref(), SystemTime::now());
    let repaired = match &arguments.state_dir {
        Some(state_dir) => repair_folder(state_dir, domain, arguments.force, now)?,
        None => {
            let (context, kubeconfig) = (arguments.context.as_deref(), arguments.kubeconfig.as_deref());
            let (client, server) = check::client(context, kubeconfig).await.map_err(|why| anyhow!(why))?;
            let secret = Secret::new(client, &arguments.namespace);
            let repaired = secret.repair(domain, arguments.force, now).await;
            repaired.with_context(|| format!("the cluster at {server}"))?
        }
    };
    match arguments.output {
        Format::Json => output::print_json(&json!({
            "root": repaired.pin.to_string(),
            "former_root": repaired.from.map(|pin| pin.to_string()),
            "trust_domain": repaired.trust_domain.to_string(),
        })),
        Format::Table => output::print(&said(&repaired, arguments)),
    }
}

fn said(repaired: &Repaired, arguments: &RepairArgs) -> String {
    let Repaired { pin, from, trust_domain } = repaired;
    let from = from.map(|from| format!(" in the place of {from}")).unwrap_or_default();
    let done = format!("the root of {trust_domain} is {pin}{from}");
    let next = match &arguments.state_dir {
        Some(state_dir) => {
            let state_dir = state_dir.display();
            format!(
                "Now start the control plane, and give every workload a new token file:
  tulle token create --state-dir {state_dir} --workload-identity NAMESPACE/NAME --service NAME --out FILE
A proxy that runs reads its file anew at its next try; none has to be restarted. Its log says when it has joined."
            )
        }
        None => format!(
            "Replicas that run have it already; those that cannot start do now. They write the ConfigMap tulle-trust-bundle of every
namespace, which reaches pods within a minute or two; their proxies then join again by themselves. `tulle check -n {}` says when all are connected.
Workloads outside the cluster need new token files (`tulle token create`).",
            arguments.namespace
        ),
    };
    format!("{done}\n{next}")
}
