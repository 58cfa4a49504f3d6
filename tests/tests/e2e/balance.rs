//! Which endpoint takes a request, by what a TrafficPolicy says, through the real binaries.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::task::JoinSet;
use tulle_tests::named::{Counts, Named, ask, call, counts, http2, places};
use tulle_tests::{Workload, World, eventually};

mod hashes;
mod outliers;
mod spread;
mod zones;

/// `web`, which calls `shop`, whose endpoints, outside the mesh, say who they are.
struct Shop {
    world: World,
    web: Workload,
    servers: BTreeMap<String, Named>,
}

// === impl Shop ===

impl Shop {
    async fn start(http2: bool, names: &[&str]) -> Self {
        let world = World::strict().await;
        world.service("shop", if http2 { "kubernetes.io/h2c" } else { "http" });
        let web = world.workload("web").calls("shop").setting("--locality", "here/a").start().await;
        let mut shop = Self { world, web, servers: BTreeMap::new() };
        for name in names {
            shop.add(name, http2, 100, "a").await;
        }
        shop
    }

    async fn add(&mut self, name: &str, http2: bool, weight: u32, zone: &str) {
        let server = Named::start(TcpListener::bind("127.0.0.1:0").unwrap(), http2, name);
        let port = server.app.address().port();
        let slice = format!(
            "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: shop-{name}
  namespace: default
  labels: {{kubernetes.io/service-name: shop}}
  annotations: {{tulle.dev/weight: \"{weight}\"}}
addressType: IPv4
ports: [{{name: main, port: {port}}}]
endpoints: [{{addresses: [127.0.0.1], zone: {zone}, conditions: {{ready: true}}}}]
"
        );
        self.world.yaml(&format!("slice-{name}.yaml"), &slice);
        self.servers.insert(name.to_owned(), server);
    }

    fn remove(&mut self, name: &str) {
        self.world.remove_yaml(&format!("slice-{name}.yaml"));
        self.servers.remove(name);
    }

    /// Writes a policy, and waits until the proxy holds to it: the dump shows `seen`.
    async fn policy(&self, spec: &str, seen: &str) {
        // Asked for at the first use.
        self.ask("/", "").await;
        self.policy_of(spec, seen).await;
    }

    /// Likewise, of a service in use.
    async fn policy_of(&self, spec: &str, seen: &str) {
        let text = format!(
            "
apiVersion: policy.tulle.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: shop, namespace: default}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: shop}}]
{spec}
"
        );
        self.world.yaml("policy.yaml", &text);
        eventually(&format!("{seen} is in force"), async || {
            let dump = self.web.config_dump().await;
            if dump.contains(seen) { Ok(()) } else { Err(dump) }
        })
        .await;
    }

    /// Waits until the proxy counts so many endpoints in a state.
    async fn endpoints(&self, state: &str, count: usize) {
        eventually(&format!("{count} endpoints are {state}"), async || {
            let labels = [("service", "default/shop:8080"), ("state", state)];
            let shown = self.web.metrics().await.sum("tulle_balancer_endpoints", &labels);
            if shown == count as f64 { Ok(()) } else { Err(format!("{shown}")) }
        })
        .await;
    }

    /// Who answers a GET, and with which status.
    async fn ask(&self, path: &str, fields: &str) -> (u16, String) {
        let mut wire = self.web.connect("shop").await;
        ask(&mut wire, path, fields).await
    }

    /// One after the other, on one connection.
    async fn counts(&self, requests: usize) -> Counts {
        counts(&mut self.web.connect("shop").await, requests).await
    }

    /// Where so many users are.
    async fn places(&self, users: usize) -> Vec<String> {
        places(&mut self.web.connect("shop").await, users).await
    }

    fn answers(&self, name: &str, status: u16) {
        self.answers_each(name, 1, status);
    }

    /// Each so manieth answer has the status.
    fn answers_each(&self, name: &str, each: u64, status: u16) {
        let how = &self.servers[name].how;
        how.each.store(each, Relaxed);
        how.status.store(status, Relaxed);
    }

    /// The sum of a metric of the client's proxy.
    async fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.web.metrics().await.sum(name, labels)
    }
}
