//! The demo's mesh: which workloads there are, who calls whom, and the YAML that says so.
//!
//! `web` → `orders` → `payments`, which is served by `payments-v1` and `payments-v2` in the proportion that an
//! HTTPRoute gives. Plain data; [`super::run`] starts it.

use std::fs;
use std::io;
use std::path::Path;

use super::edges::Edge;

/// The namespace of everything in the demo.
pub(crate) const NAMESPACE: &str = "demo";
/// The port of every service; an application listens wherever it may.
pub(crate) const PORT: u16 = 8080;
/// Where the weights are, within the folder of YAML.
pub(crate) const ROUTE_FILE: &str = "payments-route.yaml";

/// As the YAML says.
pub(crate) const TRUST_DOMAIN: &str = "cluster.local";

/// One small service with its proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Workload {
    /// Also its service account.
    pub(crate) name: &'static str,
    /// What its application calls itself.
    pub(crate) application: &'static str,
    pub(crate) version: &'static str,
    /// The services that it is an endpoint of.
    pub(crate) services: &'static [&'static str],
    /// The service that it calls.
    pub(crate) upstream: Option<&'static str>,
}

/// The front comes first.
pub(crate) const WORKLOADS: [Workload; 4] = [
    Workload { name: "web", application: "web", version: "v1", services: &["web"], upstream: Some("orders") },
    Workload {
        name: "orders",
        application: "orders",
        version: "v1",
        services: &["orders"],
        upstream: Some("payments"),
    },
    Workload {
        name: "payments-v1",
        application: "payments",
        version: "v1",
        services: &["payments", "payments-v1"],
        upstream: None,
    },
    Workload {
        name: "payments-v2",
        application: "payments",
        version: "v2",
        services: &["payments", "payments-v2"],
        upstream: None,
    },
];

/// Every edge that carries traffic when all is well.
pub(crate) fn edges() -> Vec<Edge> {
    let edge = |from: &str, to: &str| Edge {
        from: from.to_owned(),
        to: to.to_owned(),
        backend: format!("{NAMESPACE}/{to}:{PORT}"),
        identity: format!("spiffe://{TRUST_DOMAIN}/ns/{NAMESPACE}/sa/{to}"),
    };
    vec![edge("web", "orders"), edge("orders", "payments-v1"), edge("orders", "payments-v2")]
}

/// Writes the YAML that the control plane serves.
pub(crate) fn write_yaml(folder: &Path) -> io::Result<()> {
    fs::create_dir(folder)?;
    fs::write(folder.join("mesh.yaml"), MESH)?;
    fs::write(folder.join("services.yaml"), services())?;
    fs::write(folder.join(ROUTE_FILE), ROUTE)?;
    fs::write(folder.join("policy.yaml"), policies())
}

fn services() -> String {
    let services = ["web", "orders", "payments", "payments-v1", "payments-v2"];
    let documents = services.map(|name| {
        format!(
            "apiVersion: v1
kind: Service
metadata:
  name: {name}
  namespace: {NAMESPACE}
spec:
  ports:
    - name: http
      port: {PORT}
      appProtocol: http
"
        )
    });
    format!("# Endpoints are the workloads that registered with a join token.\n{}", documents.join("---\n"))
}

fn policies() -> String {
    let policy = |service: &str, caller: &str| {
        format!(
            "apiVersion: policy.tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata:
  name: {service}-callers
  namespace: {NAMESPACE}
spec:
  targetRefs:
    - group: \"\"
      kind: Service
      name: {service}
  action: ALLOW
  rules:
    - name: {caller}
      from:
        - identities: [\"{NAMESPACE}/{caller}\"]
"
        )
    };
    format!("# Who may call whom.\n{}---\n{}", policy("orders", "web"), policy("payments", "orders"))
}

const MESH: &str = "\
# strict: whoever shows no certificate of the mesh is refused.
apiVersion: policy.tulle.dev/v1alpha1
kind: Mesh
metadata:
  name: mesh
spec:
  mtls: strict
  trustDomain: cluster.local
  networks: [127.0.0.0/8]
";

const ROUTE: &str = "\
# Change the weights and save: the table of `tulle demo` follows within a second.
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata:
  name: payments
  namespace: demo
spec:
  parentRefs:
    - group: \"\"
      kind: Service
      name: payments
      port: 8080
  rules:
    - backendRefs:
        - name: payments-v1
          port: 8080
          weight: 90
        - name: payments-v2
          port: 8080
          weight: 10
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edge_is_between_workloads_that_are_there() {
        for edge in edges() {
            let from = WORKLOADS.iter().find(|workload| workload.name == edge.from).unwrap();
            let to = WORKLOADS.iter().find(|workload| workload.name == edge.to).unwrap();
            assert!(to.services.contains(&from.upstream.unwrap()), "{edge:?}");
        }
    }

    #[test]
    fn the_control_plane_finds_nothing_wrong_with_the_yaml() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config");
        write_yaml(&config).unwrap();
        let findings = tulle_control_plane::source::check(&config).unwrap().findings;
        assert!(findings.is_empty(), "{findings:#?}");
    }
}
