//! What the API server is asked whether somebody may do it: who installs, and the control plane once it is installed.

use serde_json::{Value, json};

/// One thing that somebody may do, or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) verb: &'static str,
    /// Empty for the core.
    pub(super) group: &'static str,
    pub(super) resource: &'static str,
    /// Of the only object that it is about; empty: any.
    pub(super) name: &'static str,
    /// Whether it is about the control plane's namespace; else about the cluster.
    pub(super) at_home: bool,
}

const fn cluster(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, name: "", at_home: false }
}

const fn home(verb: &'static str, group: &'static str, resource: &'static str) -> Right {
    Right { verb, group, resource, name: "", at_home: true }
}

const RBAC: &str = "rbac.authorization.k8s.io";
const GATEWAY: &str = "gateway.networking.k8s.io";
const POLICY: &str = "policy.tulle.dev";

/// To make what the chart makes by default, and what Helm remembers of it.
pub(super) const INSTALL: &[Right] = &[
    cluster("create", "", "namespaces"),
    home("create", "", "secrets"),
    home("create", "", "serviceaccounts"),
    home("create", "", "configmaps"),
    home("create", "", "services"),
    home("create", "apps", "deployments"),
    home("create", "policy", "poddisruptionbudgets"),
    home("create", RBAC, "roles"),
    home("create", RBAC, "rolebindings"),
    cluster("create", RBAC, "clusterroles"),
    cluster("create", RBAC, "clusterrolebindings"),
    cluster("create", "admissionregistration.k8s.io", "mutatingwebhookconfigurations"),
    cluster("create", "apiextensions.k8s.io", "customresourcedefinitions"),
];

/// To give away rights that one does not have.
pub(super) const ESCALATE: Right = cluster("escalate", RBAC, "clusterroles");

/// What the control plane cannot do without.
pub(super) const CONTROL_PLANE: &[Right] = &[
    cluster("watch", "", "namespaces"),
    cluster("watch", "", "pods"),
    cluster("watch", "", "services"),
    cluster("watch", "discovery.k8s.io", "endpointslices"),
    cluster("watch", GATEWAY, "grpcroutes"),
    cluster("watch", GATEWAY, "httproutes"),
    cluster("watch", GATEWAY, "referencegrants"),
    cluster("watch", GATEWAY, "tcproutes"),
    cluster("watch", GATEWAY, "tlsroutes"),
    cluster("watch", POLICY, "authorizationpolicies"),
    cluster("watch", POLICY, "egresspolicies"),
    cluster("watch", POLICY, "externalauthorizations"),
    cluster("watch", POLICY, "faultpolicies"),
    cluster("watch", POLICY, "meshes"),
    cluster("watch", POLICY, "peerauthentications"),
    cluster("watch", POLICY, "ratelimitpolicies"),
    cluster("watch", POLICY, "requestauthentications"),
    cluster("watch", POLICY, "telemetrypolicies"),
    cluster("watch", POLICY, "trafficpolicies"),
    cluster("patch", GATEWAY, "httproutes/status"),
    cluster("patch", POLICY, "trafficpolicies/status"),
    cluster("create", "authentication.k8s.io", "tokenreviews"),
    cluster("create", "", "events"),
    Right { name: "tulle-trust-bundle", ..cluster("patch", "", "configmaps") },
    Right {
        name: "tulle-webhook",
        ..cluster("patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations")
    },
    Right { name: "tulle-control-plane", ..home("patch", "coordination.k8s.io", "leases") },
    Right { name: "tulle-identity", ..home("get", "", "secrets") },
    Right { name: "tulle-webhook", ..home("get", "", "secrets") },
];

// === impl Right ===

impl Right {
    /// As people say it: `create deployments.apps in tulle-system`.
    pub(super) fn said(&self, namespace: &str) -> String {
        let dot = if self.group.is_empty() { "" } else { "." };
        let name = if self.name.is_empty() { String::new() } else { format!(" {}", self.name) };
        let place = if self.at_home { format!(" in {namespace}") } else { String::new() };
        format!("{} {}{dot}{}{name}{place}", self.verb, self.resource, self.group)
    }

    /// The question whether whoever asks may.
    pub(super) fn mine(&self, namespace: &str) -> Value {
        self.review("SelfSubjectAccessReview", json!({"resourceAttributes": self.attributes(namespace)}))
    }

    /// The question whether a service account of the control plane's namespace may.
    pub(super) fn of_account(&self, namespace: &str, account: &str) -> Value {
        let groups = [
            "system:serviceaccounts".to_owned(),
            format!("system:serviceaccounts:{namespace}"),
            "system:authenticated".to_owned(),
        ];
        let spec = json!({
            "user": format!("system:serviceaccount:{namespace}:{account}"),
            "groups": groups,
            "resourceAttributes": self.attributes(namespace),
        });
        self.review("SubjectAccessReview", spec)
    }

    fn review(&self, kind: &str, spec: Value) -> Value {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec})
    }

    fn attributes(&self, namespace: &str) -> Value {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let namespace = if self.at_home { namespace } else { "" };
        json!({
            "verb": self.verb, "group": self.group, "resource": resource, "subresource": subresource,
            "name": self.name, "namespace": namespace,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn file(path: &str) -> String {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        std::fs::read_to_string(root.join(path)).unwrap()
    }

    #[test]
    fn whoever_installs_is_asked_about_each_kind_of_the_chart() {
        // Off by default: who turns them on is told by Helm.
        const OPTIONAL: [&str; 3] = ["networkpolicy.yaml", "monitoring.yaml", "certificate.yaml"];
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../helm/tulle/templates");
        let mut made = BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.ends_with(".yaml") || OPTIONAL.contains(&name.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let mut version = "";
            for line in text.lines() {
                if let Some(said) = line.strip_prefix("apiVersion: ") {
                    version = said;
                } else if let Some(kind) = line.strip_prefix("kind: ") {
                    let group = version.split_once('/').map_or("", |(group, _)| group);
                    made.insert((group.to_owned(), format!("{}s", kind.to_lowercase())));
                }
            }
        }
        assert!(made.len() > 8, "{made:?}");
        let asked: BTreeSet<_> =
            INSTALL.iter().map(|right| (right.group.to_owned(), right.resource.to_owned())).collect();
        assert_eq!(made.difference(&asked).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        // Made by Helm, or of a list of files.
        let beside: Vec<_> = asked.difference(&made).map(|(_, resource)| resource.as_str()).collect();
        assert_eq!(beside, ["namespaces", "secrets", "customresourcedefinitions"]);
    }

    #[test]
    fn what_is_asked_of_the_control_plane_is_in_the_table_of_the_page() {
        let page = file("docs/kubernetes.md");
        let (_, section) = page.split_once("## What the control plane may do").unwrap();
        let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).collect();
        for right in CONTROL_PLANE {
            let group = if right.group.is_empty() { "core".to_owned() } else { format!("`{}`", right.group) };
            let place = if right.at_home { "namespace" } else { "cluster" };
            let quoted = |text: &str| format!("`{text}`");
            let found = rows.iter().any(|row| {
                let cells: Vec<&str> = row.trim_start_matches("| ").split(" | ").collect();
                cells.len() > 5
                    && cells[0] == group
                    && cells[1].contains(&quoted(right.resource))
                    && cells[2].contains(&quoted(right.verb))
                    && cells[3] == place
                    && (right.name.is_empty() || cells[4].contains(&quoted(right.name)))
            });
            assert!(found, "docs/kubernetes.md does not give the control plane: {}", right.said("NAMESPACE"));
        }
    }

    #[test]
    fn a_right_is_said_and_asked_for() {
        let lease = CONTROL_PLANE.iter().find(|right| right.resource == "leases").unwrap();
        assert_eq!(
            lease.said("tulle-system"),
            "patch leases.coordination.k8s.io tulle-control-plane in tulle-system"
        );
        let asked = lease.of_account("mesh", "tulle-control-plane");
        assert_eq!(asked["spec"]["user"], "system:serviceaccount:mesh:tulle-control-plane");
        assert_eq!(asked["spec"]["resourceAttributes"]["namespace"], "mesh");
        let status = CONTROL_PLANE.iter().find(|right| right.resource == "httproutes/status").unwrap();
        let asked = status.mine("mesh");
        assert_eq!(asked["kind"], "SelfSubjectAccessReview");
        let attributes = &asked["spec"]["resourceAttributes"];
        assert_eq!(
            (&attributes["resource"], &attributes["subresource"]),
            (&json!("httproutes"), &json!("status"))
        );
        assert_eq!(attributes["namespace"], "");
    }
}
