//! `tulle install`, `upgrade` and `uninstall` with a program in Helm's place that writes down what it is asked for. What Helm makes of
//! the chart is tested with the chart (`tests/tests/chart.rs`), and what becomes of a release at an API server (`tests/tests/kubernetes/release.rs`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;

const BEFORE: &str = "---\nkind: Deployment\nmetadata:\n  name: tulle-control-plane\nspec:\n  replicas: 1\n---\nkind: CustomResourceDefinition\nmetadata:\n  annotations:\n    helm.sh/resource-policy: keep\n  name: meshes.policy.tulle.dev\n";

/// A folder with a `helm` that answers as it is told, and copies the chart that it is given.
struct Helm {
    folder: tempfile::TempDir,
}

// === impl Helm ===

impl Helm {
    /// `before`: what `get manifest` says; none: there is no release.
    fn new(version: &str, before: Option<&str>, after: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let within = |name: &str| folder.path().join(name);
        if let Some(before) = before {
            fs::write(within("before"), before).unwrap();
        }
        fs::write(within("after"), json!({ "manifest": after }).to_string()).unwrap();
        let here = folder.path().display();
        let script = format!(
            "#!/bin/sh\n\
             echo \"$@\" >>{here}/asked\n\
             case \"$1\" in\n\
             version) echo {version} ;;\n\
             get) cat {here}/before 2>/dev/null || {{ echo 'Error: release: not found' >&2; exit 1; }} ;;\n\
             install | upgrade)\n\
                 [ -e {here}/chart ] || cp -r \"$3\" {here}/chart\n\
                 [ ! -e {here}/fails ] || {{ echo 'Error: no cluster' >&2; exit 1; }}\n\
                 case \"$*\" in *--dry-run*) cat {here}/after ;; *) echo done ;; esac ;;\n\
             esac\n"
        );
        fs::write(within("helm"), script).unwrap();
        fs::set_permissions(within("helm"), fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn tulle(&self, arguments: &[&str]) -> Output {
        let (verb, rest) = arguments.split_first().unwrap();
        tulle(&[&[*verb, "--helm", self.path("helm").to_str().unwrap()], rest].concat())
    }

    /// What it was asked, one invocation a line, without where the chart was.
    fn asked(&self) -> Vec<String> {
        let asked = fs::read_to_string(self.path("asked")).unwrap_or_default();
        let without = |line: &str| -> String {
            let words = line.split(' ').map(|word| match Path::new(word).is_absolute() {
                true => Path::new(word).file_name().unwrap().to_str().unwrap(),
                false => word,
            });
            words.collect::<Vec<_>>().join(" ")
        };
        asked.lines().map(without).filter(|line| !line.starts_with("version")).collect()
    }
}

fn tulle(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"));
    // Whoever runs the tests may have a cluster.
    command.env("KUBECONFIG", "/nowhere").env_remove("KUBERNETES_SERVICE_HOST");
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_chart_of_the_command_is_given_to_helm_with_the_values() {
    let helm = Helm::new("v3.14.0", None, "");
    let file = helm.path("mine.yaml");
    fs::write(&file, "").unwrap();
    let arguments = ["install", "--ha", "-f", file.to_str().unwrap(), "--set", "mesh.mtls=strict", "--wait"];
    let (status, out, error) = said(&helm.tulle(&[&arguments[..], &["--context", "test"]].concat()));
    assert_eq!((status, out.as_str()), (Some(0), "done\n"), "{error}");
    assert_eq!(
        helm.asked(),
        [
            "install tulle tulle --create-namespace --values values-ha.yaml --values mine.yaml --set mesh.mtls=strict \
          --wait --timeout 5m --namespace tulle-system --kube-context test"
        ]
    );
    let chart = fs::read_to_string(helm.path("chart/Chart.yaml")).unwrap();
    assert!(chart.contains(&format!("appVersion: {}\n", env!("CARGO_PKG_VERSION"))), "{chart}");
    assert!(helm.path("chart/templates/deployment.yaml").is_file());

    fs::write(helm.path("fails"), "").unwrap();
    let (status, _, error) = said(&helm.tulle(&["upgrade", "-n", "mesh"]));
    assert_eq!((status, error.as_str()), (Some(1), "Error: no cluster\n"));
    assert_eq!(helm.asked()[1], "upgrade tulle tulle --reset-then-reuse-values --namespace mesh");
    said(&helm.tulle(&["upgrade", "--reset-values"]));
    assert_eq!(helm.asked()[2], "upgrade tulle tulle --reset-values --namespace tulle-system");
}

#[test]
fn a_dry_run_says_what_would_differ_and_changes_nothing() {
    let after = BEFORE.replace("replicas: 1", "replicas: 3");
    let helm =
        Helm::new("v4.2.3", Some(BEFORE), &format!("{after}---\nkind: Service\nmetadata:\n  name: new\n"));
    let (status, out, error) = said(&helm.tulle(&["upgrade", "--dry-run"]));
    assert_eq!(status, Some(0), "{error}");
    for line in
        ["~ Deployment tulle-control-plane", "  -   replicas: 1", "  +   replicas: 3", "+ Service new"]
    {
        assert!(out.lines().any(|found| found == line), "{line}: {out}");
    }
    assert!(out.ends_with("1 new, 1 changed, 0 gone, 1 unchanged\n"), "{out}");
    let unread = out.lines().find(|line| line.starts_with("? the cluster: not looked at: "));
    assert!(unread.is_some_and(|line| line.contains("/nowhere")), "what cannot be compared is said: {out}");
    let asked = helm.asked();
    let changes = asked.iter().filter(|line| !line.starts_with("get ") && !line.contains("--dry-run=server"));
    assert_eq!(changes.count(), 0, "{asked:?}");

    // Where nothing is installed, all is new.
    let helm = Helm::new("v4.2.3", None, BEFORE);
    let (status, out, error) = said(&helm.tulle(&["install", "--dry-run"]));
    assert_eq!(status, Some(0), "{error}");
    assert!(out.ends_with("2 new, 0 changed, 0 gone, 0 unchanged\n"), "{out}");

    // What fails is told in Helm's words.
    fs::write(helm.path("fails"), "").unwrap();
    let (status, _, error) = said(&helm.tulle(&["install", "--dry-run"]));
    assert_eq!((status, error.as_str()), (Some(1), "tulle: helm install: Error: no cluster\n"));
}

#[test]
fn uninstalling_says_what_stays() {
    let helm = Helm::new("v3.14.0", Some(BEFORE), "");
    let (status, out, error) = said(&helm.tulle(&["uninstall", "--dry-run"]));
    assert_eq!(status, Some(0), "{error}");
    assert_eq!(
        out,
        "- Deployment tulle-control-plane\n  CustomResourceDefinition meshes.policy.tulle.dev stays\n"
    );
    assert!(!helm.asked().iter().any(|line| line.starts_with("uninstall")));
    let (status, out, _) = said(&helm.tulle(&["uninstall"]));
    assert_eq!(status, Some(0));
    assert!(out.contains("1 definitions stay") && out.contains("tulle-identity"), "{out}");
    assert!(helm.asked().contains(&"uninstall tulle --namespace tulle-system".to_owned()));

    let (status, _, error) = said(&Helm::new("v3.14.0", None, "").tulle(&["uninstall", "-n", "mesh"]));
    assert_eq!(status, Some(1));
    assert!(error.contains("no release `tulle` in the namespace mesh"), "{error}");
}

#[test]
fn helm_that_is_missing_or_old_is_told_with_the_remedy() {
    let (status, _, error) = said(&tulle(&["install", "--helm", "no-such-helm"]));
    assert_eq!(status, Some(1));
    assert!(
        error.contains("there is no program `no-such-helm`") && error.contains("--write-chart"),
        "{error}"
    );
    // One that says nothing: of its version, or of what it would do.
    let silent = Helm::new("v3.14.0", None, "");
    fs::write(silent.path("after"), "").unwrap();
    let (status, _, error) = said(&silent.tulle(&["install", "--dry-run"]));
    assert_eq!(status, Some(1));
    assert!(error.contains("helm install` ended well and wrote nothing"), "{error}");
    let (status, _, error) = said(&tulle(&["install", "--helm", "true"]));
    assert_eq!(status, Some(1));
    assert!(error.contains("`true version` ended well and wrote nothing"), "{error}");
    let (status, _, error) = said(&tulle(&["install", "--helm", "false"]));
    assert_eq!((status, error.as_str()), (Some(1), "tulle: helm version: exit status: 1\n"));
    let (status, _, error) = said(&Helm::new("v3.9.4", None, "").tulle(&["install"]));
    assert_eq!(status, Some(1));
    assert!(error.contains("is Helm 3.9; 3.14 or newer is needed"), "{error}");
}

#[test]
fn the_chart_can_be_written_out() {
    let folder = tempfile::tempdir().unwrap();
    let chart = folder.path().join("charts/tulle");
    let arguments = ["install", "--write-chart", chart.to_str().unwrap()];
    assert_eq!(said(&tulle(&arguments)).0, Some(0));
    assert!(chart.join("values.schema.json").is_file() && chart.join("templates/NOTES.txt").is_file());
    let (status, _, error) = said(&tulle(&arguments));
    assert_eq!(status, Some(1));
    assert!(error.contains("is there already"), "{error}");
}
