//! `tulle install`, `tulle upgrade`, `tulle uninstall`: the chart that this command was built with, put into a cluster by Helm.
//!
//! The user's own `helm` renders and applies it. There is no engine for Go's templates outside Go that could be trusted to make the same
//! of a chart, and a release that Helm has not recorded is one that nobody's tools know of. So what these verbs add is the chart of the
//! very version, the values for production, and what an upgrade would change before it does: of the objects, as Helm remembers them
//! (`difference`) and as they are in the cluster (`drift`), and of the proxies that run (`restart`).

mod chart;
mod difference;
mod drift;
mod live;
mod restart;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use crate::output;

const RELEASE: &str = "tulle";
/// The first version with `--reset-then-reuse-values`.
const OLDEST_HELM: (u32, u32) = (3, 14);

const INSTALL_EXAMPLES: &str = "\
Examples:
  tulle install --set image.repository=registry.example/tulle
  tulle install --ha -f values.yaml --wait
  tulle install --ha --dry-run             what would be there then
  tulle install --write-chart charts/tulle the chart, for Argo CD, Flux or Helm

Needs Helm 3.14 or newer, and a kubeconfig as kubectl does.
What can be set: helm/tulle/values.yaml, also in the chart that is written.

Exit status: 0 done; 1 failed, standard error says why; 2 wrong arguments.";

const UPGRADE_EXAMPLES: &str = "\
Examples:
  tulle upgrade --dry-run                  what would change, object by object and pod by pod
  tulle upgrade --wait
  tulle upgrade --set mesh.mtls=strict

Values that were set before stay set. The definitions of our kinds are upgraded too.

Exit status: 0 done; 1 failed, standard error says why; 2 wrong arguments.";

const UNINSTALL_EXAMPLES: &str = "\
Examples:
  tulle uninstall --dry-run                what would go, and what would stay
  tulle uninstall

Take workloads out of the mesh first: proxies go on with what they hold until their
certificates are over. Policies, and the authority's key in the Secret tulle-identity, stay.

Exit status: 0 done; 1 failed, standard error says why; 2 wrong arguments.";

/// Which cluster, and by which program.
#[derive(Debug, clap::Args)]
struct Cluster {
    /// The control plane's namespace.
    #[arg(long, short, value_name = "NAME", default_value = "tulle-system")]
    namespace: String,
    /// The context of the kubeconfig. By default the current one.
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
    /// The kubeconfig. By default as kubectl finds it.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Helm's program.
    #[arg(long, value_name = "PROGRAM", default_value = "helm")]
    helm: PathBuf,
}

/// What is said of the values.
#[derive(Debug, clap::Args)]
struct Values {
    /// A file of values; may be repeated, a later one wins.
    #[arg(long = "values", short = 'f', value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A value, which wins over files; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// For production: three replicas on different nodes (values-ha.yaml of the chart). Files and values win over it.
    #[arg(long)]
    ha: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = INSTALL_EXAMPLES)]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    values: Values,
    /// Wait until the control plane runs, for five minutes at most.
    #[arg(long)]
    wait: bool,
    /// Say what would be there then, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Write the chart into this folder, which must not be there yet, and do nothing else.
    #[arg(long, value_name = "DIR")]
    write_chart: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = UPGRADE_EXAMPLES)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    values: Values,
    /// Forget the values of before.
    #[arg(long)]
    reset_values: bool,
    /// Wait until the new control plane runs, for five minutes at most.
    #[arg(long)]
    wait: bool,
    /// Say what would change, and what somebody changed in the cluster since, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = UNINSTALL_EXAMPLES)]
pub(crate) struct UninstallArgs {
    #[command(flatten)]
    cluster: Cluster,
    /// Say what would go and what would stay, and do nothing.
    #[arg(long)]
    dry_run: bool,
}

/// The `install` verb.
///
/// # Errors
/// Helm is missing, too old or failed; the file system's.
pub(crate) fn install(arguments: &InstallArgs) -> Result<ExitCode> {
    if let Some(folder) = &arguments.write_chart {
        if folder.exists() {
            bail!("--write-chart {}: is there already; name a new folder", folder.display());
        }
        chart::write(folder)?;
        output::print(&format!("the chart is in {}", folder.display()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let how = ["--create-namespace"];
    apply("install", &arguments.cluster, &arguments.values, &how, arguments.wait, arguments.dry_run)
}

/// The `upgrade` verb.
///
/// # Errors
/// As [`install()`].
pub(crate) fn upgrade(arguments: &UpgradeArgs) -> Result<ExitCode> {
    let how = [if arguments.reset_values { "--reset-values" } else { "--reset-then-reuse-values" }];
    apply("upgrade", &arguments.cluster, &arguments.values, &how, arguments.wait, arguments.dry_run)
}

/// The `uninstall` verb.
///
/// # Errors
/// Helm is missing, too old or failed.
pub(crate) fn uninstall(arguments: &UninstallArgs) -> Result<ExitCode> {
    let helm = Helm::find(&arguments.cluster)?;
    let manifest = helm.manifest()?.ok_or_else(|| {
        anyhow!(
            "there is no release `{RELEASE}` in the namespace {}; `helm list --all-namespaces` says where it is",
            arguments.cluster.namespace
        )
    })?;
    let (kept, taken) = difference::kept_and_taken(&manifest);
    if arguments.dry_run {
        let lines = taken
            .iter()
            .map(|name| format!("- {name}"))
            .chain(kept.iter().map(|name| format!("  {name} stays")));
        output::print(&lines.collect::<Vec<_>>().join("\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = helm.show(&["uninstall".into(), RELEASE.into()])?;
    if status == ExitCode::SUCCESS {
        let namespace = &arguments.cluster.namespace;
        output::print(&format!(
            "{} definitions stay, with every policy, the Secrets tulle-identity and tulle-webhook, and in every namespace of the mesh the ConfigMap \
             tulle-trust-bundle. To be rid of all:\n  kubectl delete crd -l app.kubernetes.io/part-of=tulle\n  kubectl delete configmap \
             tulle-trust-bundle -n <each of those namespaces>\n  kubectl delete namespace {namespace}",
            kept.len()
        ))?;
    }
    Ok(status)
}

fn apply(
    verb: &str,
    cluster: &Cluster,
    values: &Values,
    how: &[&str],
    wait: bool,
    dry_run: bool,
) -> Result<ExitCode> {
    let helm = Helm::find(cluster)?;
    let folder = tempfile::tempdir().context("no temporary folder for the chart")?;
    let chart = folder.path().join(RELEASE);
    chart::write(&chart)?;
    let mut arguments: Vec<OsString> = vec![verb.into(), RELEASE.into(), chart.clone().into()];
    arguments.extend(how.iter().map(Into::into));
    if values.ha {
        arguments.extend(["--values".into(), chart.join(chart::HIGH_AVAILABILITY).into()]);
    }
    for file in &values.files {
        arguments.extend(["--values".into(), file.into()]);
    }
    for value in &values.set {
        arguments.extend(["--set".into(), value.into()]);
    }
    if !dry_run {
        if wait {
            arguments.extend(["--wait".into(), "--timeout".into(), "5m".into()]);
        }
        return helm.show(&arguments);
    }
    arguments.extend(["--dry-run=server".into(), "--output".into(), "json".into()]);
    let release: Release = serde_json::from_str(&helm.tell(&arguments)?)
        .context("what Helm said of the release is not the JSON that is expected of it")?;
    let before = helm.manifest()?.unwrap_or_default();
    let difference = difference::between(&before, &release.manifest);
    let found = look(&live::Asked {
        context: cluster.context.as_deref(),
        kubeconfig: cluster.kubeconfig.as_deref(),
        namespace: &cluster.namespace,
        before: &before,
        after: &release.manifest,
    })?;
    output::print(&format!("{}{found}{}", difference.text, difference.summary()))?;
    Ok(ExitCode::SUCCESS)
}

/// What the cluster itself says.
fn look(asked: &live::Asked<'_>) -> Result<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    let found = runtime.block_on(live::read(asked));
    // A connection that never came about must not keep the command from ending.
    runtime.shutdown_background();
    Ok(found)
}

/// What Helm says of a release.
#[derive(Deserialize)]
struct Release {
    manifest: String,
}

/// The user's Helm.
struct Helm<'a> {
    cluster: &'a Cluster,
}

// === impl Helm ===

impl<'a> Helm<'a> {
    /// Helm, if it is there and new enough.
    fn find(cluster: &'a Cluster) -> Result<Self> {
        let helm = Self { cluster };
        let version = helm.tell(&["version".into(), "--template".into(), "{{.Version}}".into()])?;
        // A version that cannot be read is of one who built it; Helm itself will say what it does not know.
        let old = read_version(&version).filter(|version| *version < OLDEST_HELM);
        match old {
            Some((major, minor)) => bail!(
                "{} is Helm {major}.{minor}; {}.{} or newer is needed (https://helm.sh/docs/intro/install)",
                cluster.helm.display(),
                OLDEST_HELM.0,
                OLDEST_HELM.1
            ),
            None => Ok(helm),
        }
    }

    /// The manifest that is there; none if there is no release.
    fn manifest(&self) -> Result<Option<String>> {
        let output = self.output(&["get".into(), "manifest".into(), RELEASE.into()])?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(Some(String::from_utf8_lossy(&output.stdout).into_owned())),
            false if said.contains("not found") => Ok(None),
            false => bail!("helm get manifest: {}{}", said.trim(), remedy(&said)),
        }
    }

    /// What it writes, which is something.
    fn tell(&self, arguments: &[OsString]) -> Result<String> {
        let output = self.output(arguments)?;
        let verb = arguments.first().map(|verb| verb.to_string_lossy()).unwrap_or_default();
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = if said.trim().is_empty() { output.status.to_string() } else { said.trim().to_owned() };
            bail!("helm {verb}: {why}{}", remedy(&said));
        }
        if output.stdout.trim_ascii().is_empty() {
            let program = self.cluster.helm.display();
            bail!(
                "`{program} {verb}` ended well and wrote nothing, so that there is nothing to go by: see that it is Helm, and no script that keeps \
                 back what it says; --helm names another"
            );
        }
        String::from_utf8(output.stdout).context("what Helm wrote is not UTF-8")
    }

    fn output(&self, arguments: &[OsString]) -> Result<Output> {
        self.command(arguments).stdin(Stdio::null()).output().map_err(|error| self.missing(&error))
    }

    /// Lets it speak for itself.
    fn show(&self, arguments: &[OsString]) -> Result<ExitCode> {
        let status = self.command(arguments).status().map_err(|error| self.missing(&error))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn command(&self, arguments: &[OsString]) -> Command {
        let mut command = Command::new(&self.cluster.helm);
        command.args(arguments).arg("--namespace").arg(&self.cluster.namespace);
        if let Some(context) = &self.cluster.context {
            command.arg("--kube-context").arg(context);
        }
        if let Some(file) = &self.cluster.kubeconfig {
            command.arg("--kubeconfig").arg(file);
        }
        command
    }

    fn missing(&self, error: &std::io::Error) -> anyhow::Error {
        let program: &Path = &self.cluster.helm;
        match error.kind() {
            ErrorKind::NotFound => anyhow!(
                "there is no program `{}`: the chart is applied by Helm, 3.14 or newer (https://helm.sh/docs/intro/install), which --helm \
                 names where it is not on the path; `tulle install --write-chart DIR` writes the chart for other tools",
                program.display()
            ),
            _ => anyhow!("{}: {error}", program.display()),
        }
    }
}

/// What to do about what Helm says of a cluster that it does not reach; empty for all else.
fn remedy(said: &str) -> &'static str {
    let unreached = ["cluster unreachable", "connection refused", "no such host", "i/o timeout"];
    match unreached.iter().any(|words| said.to_ascii_lowercase().contains(words)) {
        true => {
            "; see that the API server runs and that `kubectl cluster-info` reaches it, or name another by --kubeconfig or --context \
             (`tulle install --write-chart DIR` needs no cluster)"
        }
        false => "",
    }
}

/// `v3.14.2`, or with more behind it: major and minor.
fn read_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim().trim_start_matches('v').split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_is_not_reached_is_told_with_the_remedy() {
        let said = "Error: INSTALLATION FAILED: Kubernetes cluster unreachable: Get \"http://localhost:8080/version\": dial tcp";
        assert!(remedy(said).contains("--kubeconfig"), "{}", remedy(said));
        assert_eq!(remedy("Error: release: not found"), "");
    }

    #[test]
    fn versions_of_helm_are_read() {
        assert_eq!(read_version("v3.14.2\n"), Some((3, 14)));
        assert_eq!(read_version("v4.2.3+g1234"), Some((4, 2)));
        assert_eq!(read_version("canary"), None);
        assert!((3, 9) < OLDEST_HELM && (4, 0) > OLDEST_HELM);
    }
}
