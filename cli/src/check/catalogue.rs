//! Every check of a cluster: one table, from which the reference is made.
//!
//! Names are stable: they are in scripts. They are taken away with a version that says so, and never mean something else.

use super::judge::{Judged, control_plane, install, mesh, platform, webhook};
use super::seen::{Seen, Stage};

/// One check.
pub(super) struct Entry {
    pub(super) name: &'static str,
    /// When it is made; always, if it does not say.
    pub(super) stage: Option<Stage>,
    /// What it looks at.
    pub(super) meaning: &'static str,
    /// What to do where nothing better is known.
    pub(super) remedy: &'static str,
    pub(super) judge: fn(&Seen) -> Judged,
}

macro_rules! checks {
    ($($name:literal $stage:expr, $judge:expr, $meaning:literal, $remedy:literal;)*) => {
        /// All of them, in the order in which they are told: what others build on comes first.
        pub(super) const CHECKS: &[Entry] = &[$(Entry {
            name: $name, stage: $stage, meaning: $meaning, remedy: $remedy, judge: $judge,
        }),*];
    };
}

const ALWAYS: Option<Stage> = None;
const BEFORE: Option<Stage> = Some(Stage::Before);
const AFTER: Option<Stage> = Some(Stage::After);

checks! {
    "api-server" ALWAYS, platform::api_server,
        "Whether the API server of the kubeconfig's context answers. Where it does not, nothing else is looked at.",
        "See what `kubectl version` says; `--context` and `--kubeconfig` name another cluster.";
    "kubernetes-version" ALWAYS, platform::kubernetes_version,
        "Whether the API server is 1.29 or newer: older ones know no native sidecars, and a pod's proxy would be an init container that never ends.",
        "Upgrade the cluster.";
    "node-versions" ALWAYS, platform::node_versions,
        "Whether each node's kubelet is 1.29 or newer, since it is the kubelet that starts sidecars, and its kernel 5.2 or newer, since the rules of interception are a table `inet` of nftables. \
         The container runtime does not matter: whatever such a kubelet works with will do.",
        "Upgrade the nodes, or keep the mesh's pods from them by a `nodeSelector`.";
    "not-installed" BEFORE, install::not_installed,
        "Whether there is a control plane in the namespace already.",
        "Use `tulle upgrade` in place of `tulle install`.";
    "rbac-install" BEFORE, install::rights,
        "Whether you may make what the chart makes, and what Helm remembers of it: asked by SelfSubjectAccessReviews, one for each kind. Whoever makes a role must have its rights, or may `escalate`.",
        "Let a cluster's administrator install, or grant what is missing.";
    "gateway-api-definitions" ALWAYS, platform::gateway_api,
        "Whether the Gateway API's definitions are there, of a bundle from v1.1 on and all of the same one, and serve versions that the control plane reads. They are the cluster's own; the mesh works \
         without them, and without routes.",
        "Install a newer bundle: https://gateway-api.sigs.k8s.io/guides/getting-started/";
    "tulle-definitions" ALWAYS, platform::ours,
        "Whether the definitions of our kinds are there, are served, and have each field that this version knows: one that is older drops or refuses the fields that it lacks. Before an install: whether \
         another release of Helm has them.",
        "Bring them to this version: `tulle upgrade`, or `kubectl apply --server-side -f helm/tulle/files/crds` where the chart does not have them.";
    "cilium-socket-lb" ALWAYS, platform::cilium,
        "Whether Cilium replaces Services' virtual IPs by pods' addresses at the socket of pods, by its ConfigMap `kube-system/cilium-config` (`kube-proxy-replacement`, `bpf-lb-sock` without \
         `bpf-lb-sock-hostns-only`). Connections are then mutual TLS all the same, and have no Service's routes and policies.",
        "Set `socketLB.hostNamespaceOnly=true` in Cilium's values, and restart its agents.";
    "other-meshes" ALWAYS, platform::other_meshes,
        "Whether another mesh puts proxies into pods here, and namespaces ask both. Two in one pod do not work; in different namespaces they do.",
        "Let each namespace ask one mesh only.";
    "control-plane-ready" AFTER, control_plane::ready,
        "Whether the Deployment `tulle-control-plane` is there, and as many of its pods are ready as it wants.",
        "See why: `kubectl -n tulle-system describe pods`, and their logs.";
    "rbac-control-plane" AFTER, control_plane::rights,
        "Whether the control plane's service account has the rights that it cannot do without: asked by SubjectAccessReviews.",
        "Bring back the chart's roles and bindings: `tulle upgrade`.";
    "control-plane-watches" AFTER, control_plane::watches,
        "Whether each replica watches every kind that the cluster has (`tulle_control_plane_watch_connected`).",
        "See why in the replica's log; `tulle_control_plane_watch_errors_total` says what kind of failure it is.";
    "control-plane-lease" AFTER, control_plane::lease,
        "Whether a replica holds the Lease `tulle-control-plane` and renews it. Traffic does not depend on it; status, roots in new namespaces and the webhook's certificates do. Where the time of its last \
         renewal is not this machine's, the check waits up to twenty seconds for the next.",
        "See the replicas' logs (`the lease`), and the Role's rights on `leases`.";
    "webhook-reachable" AFTER, webhook::reachable,
        "Whether there is a MutatingWebhookConfiguration `tulle-webhook` that leads here, and the API server reaches port 15017 of each replica (asked through its proxy of pods).",
        "Let the API server reach port 15017 of the control plane's pods: on some clouds that is a firewall rule, elsewhere a NetworkPolicy.";
    "webhook-trusted" AFTER, webhook::trusted,
        "Whether the API server believes the webhook: its `caBundle` is written and lasts, and a pod that asks for a proxy, made as a dry run, comes back with one.",
        "Let the control plane write `caBundle` again: it does so once a minute, if its role lets it and a replica holds the lease. The API server's log says why a call fails.";
    "certificates" AFTER, control_plane::certificates,
        "How long the mesh's root and its issuer are good for: a warning with 60 days left, more urgent with 30, an error with 7; and the control plane's own leaf, which is an error only once it \
         has expired. Where several roots are trusted, the one that lasts longest counts.",
        "`tulle identity rotate-root` rotates a root of the control plane's own before it expires, `tulle identity repair` replaces one that has: docs/identity.md.";
    "root-rotation" AFTER, control_plane::rotation,
        "How far a rotation of the mesh's root is (`tulle_identity_root_rotation`): a warning where it waits for replicas, or for proxies that have not taken the new root. Both roots are trusted meanwhile.",
        "`tulle identity rotate-root` says whom it waits for; the control plane's log says what a proxy has rejected.";
    "trust-bundle" AFTER, mesh::bundles,
        "Whether each namespace that asks for proxies, or has pods with one, has the ConfigMap `tulle-trust-bundle` with the mesh's roots. A pod with a proxy does not start without.",
        "See that a replica holds the lease, and may write ConfigMaps of this name: it writes them within seconds.";
    "configuration" AFTER, control_plane::configuration,
        "What is wrong with routes and policies, as the control plane counts it (`tulle_control_plane_findings`).",
        "The conditions in each object's `status` say what, and the control plane's log where; `tulle check --config-dir` looks manifests over before they are applied.";
    "proxies-connected" AFTER, mesh::connected,
        "Whether every pod's proxy is up, and is connected to a replica, as each says itself; of more than 100, as the replicas count. One that is not goes on with what it has.",
        "See the proxy's log: `kubectl logs POD -c tulle-proxy`. Port 15012 of the control plane must be reachable from every pod.";
    "proxies-in-step" AFTER, mesh::in_step,
        "Whether proxies reject what they are told (`tulle_control_plane_rejected_resources`). What one cannot use it goes on without, or with an older version.",
        "The control plane's log names proxy, resource and field; where versions differ, make the pods anew.";
    "version-skew" AFTER, mesh::skew,
        "Whether control plane, proxies and this command are of one version. Neighbouring minor versions work together, both ways.",
        "Make the pods of older proxies anew: `kubectl rollout restart`.";
    "pods-unmeshed" AFTER, mesh::without_proxy,
        "Pods that run without the proxy that is asked for, with the reason (docs/injection.md), and namespaces whose labels are misspelt.",
        "Do what is said of each; `not_injected` means to start the pod anew: `kubectl rollout restart`.";
    "port-conflicts" AFTER, mesh::ports,
        "Applications in the mesh that listen on 15000–15090: connections there are never led to the proxy, and so are outside the mesh.",
        "Let the application listen on another port.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;
    use std::path::Path;

    use super::*;

    /// The table, and a section for each that links lead to.
    fn page() -> String {
        let mut page = "# Checks of a cluster

`tulle check --pre` says whether a cluster is fit for the mesh, and whether you may install it; `tulle check` looks at the mesh that is there. Each check has a line, by a name that
stays, with `ok`, `warning` (something is probably not as it was meant, or could not be looked at) or `error` (something that is asked for is not done). What is not well comes with what to do and
where it is explained. `-o json` has the same under `checks`. The exit status is 1 if there are errors. Nothing in the cluster is changed.

What you may not read is said of the checks that need it, with the right that is missing, and the rest goes on. The control plane's and the proxies' numbers are read through the API server
(`get` of `pods/proxy`). Keys are never read: no check looks at a Secret.

This page is made from `cli/src/check/catalogue.rs`.

| check | `--pre` | after |
| --- | --- | --- |
"
        .to_owned();
        let mark =
            |entry: &Entry, stage| if entry.stage.is_none_or(|of| of == stage) { "yes" } else { "—" };
        for entry in CHECKS {
            let (name, before, after) = (entry.name, mark(entry, Stage::Before), mark(entry, Stage::After));
            let _ = writeln!(page, "| [`{name}`](#{name}) | {before} | {after} |");
        }
        for Entry { name, meaning, remedy, .. } in CHECKS {
            let _ = write!(page, "\n## {name}\n\n{meaning}\n\n**What to do.** {remedy}\n");
        }
        page
    }

    #[test]
    fn the_reference_page_is_what_the_table_says() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/checks.md");
        let page = page();
        if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == page,
            "docs/reference/checks.md is not the table; run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-cli`"
        );
    }

    #[test]
    fn names_are_unique_and_fit_for_scripts_and_links() {
        let names: BTreeSet<&str> = CHECKS.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), CHECKS.len());
        for Entry { name, meaning, remedy, .. } in CHECKS {
            assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '-'), "{name}");
            assert!(meaning.ends_with('.') && !meaning.contains("  "), "{name}: {meaning}");
            assert!(!remedy.is_empty() && !remedy.contains("  "), "{name}: {remedy}");
        }
    }
}
