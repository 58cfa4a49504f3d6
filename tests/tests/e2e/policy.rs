//! What the proxy does while it has no policy: at its start, and after its policy is gone. Nothing is let in.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tulle_api::v1;
use tulle_certs::alpn::{HTTP1, TCP};
use tulle_certs::issue::Authority;
use tulle_tests::app::App;
use tulle_tests::identity::{self, Identity};
use tulle_tests::{Folder, Process, Wire, World, eventually, scrape};

use super::scripted::{self, Fake};

const GET: &str = "GET /cart HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n";

/// A proxy of `default/web` before an application that echoes, under a control plane that the test plays.
struct Scripted {
    fake: Fake,
    authority: Authority,
    process: Process,
    inbound: SocketAddr,
    metrics: SocketAddr,
    _app: App,
    _folder: Folder,
}

impl Scripted {
    /// `services` as in `--inbound-ports`: what is to be registered, which nobody here takes in.
    async fn start(services: &str, ports: Vec<v1::InboundPort>) -> Self {
        let authority = identity::authority(&identity::trust_domain());
        let fake = Fake::new();
        scripted::mesh(&fake, &authority);
        let app = App::echo().await;
        let address = scripted::serve(fake.clone(), &authority).await;
        let folder = Folder::new();
        let inbound = format!("127.0.0.1:0={}{services}", app.address());
        let program = scripted::proxy(&folder, address, &authority)
            .without("--outbound-services")
            .flag("--outbound-services", "none")
            .flag("--inbound-ports", inbound)
            .flag("--log-level", "debug");
        let mut process = Process::start(program, &folder);
        let addresses = process.addresses().await;
        let (inbound, metrics) = (addresses[&format!("inbound/{}", app.address())], addresses["metrics"]);
        let scripted = Self { fake, authority, process, inbound, metrics, _app: app, _folder: folder };
        scripted.allow(ports);
        scripted
    }

    fn allow(&self, ports: Vec<v1::InboundPort>) {
        let mode = v1::MtlsMode::Strict as i32;
        let policy = v1::InboundPolicy { workload: scripted::name("web"), mode, ports, ..Default::default() };
        self.fake.set("default/web", &policy);
    }

    async fn connect(&self, alpn: &[u8]) -> Wire<impl AsyncRead + AsyncWrite + Unpin> {
        let caller = Identity::issue(&self.authority, "billing");
        identity::connect(self.inbound, Some(&caller), &[alpn])
            .await
            .expect("the handshake is not the policy")
    }

    /// Whether opaque bytes come back.
    async fn echoes(&self) -> Result<(), String> {
        let mut wire = self.connect(TCP).await;
        let _ = wire.try_send("ping\n").await;
        let _ = wire.stream().shutdown().await;
        match wire.to_end_or_reset().await.as_slice() {
            b"ping\n" => Ok(()),
            other => Err(String::from_utf8_lossy(other).into_owned()),
        }
    }

    async fn refuses(&self) {
        let mut wire = self.connect(HTTP1).await;
        wire.send(GET).await;
        let (head, _) = wire.response().await;
        assert_eq!((head.status(), head.reason()), (503, Some("policy_unavailable")), "{head:?}");
        assert_eq!(self.echoes().await, Err(String::new()));
        let count = self.refused().await;
        assert!(count >= 2.0, "{count} were counted");
    }

    async fn refused(&self) -> f64 {
        let labels = [("direction", "inbound"), ("reason", "policy_unavailable")];
        scrape(self.metrics).await.sum("tulle_refused_total", &labels)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_policy_a_proxy_cuts_what_is_open_and_lets_nothing_in() {
    let proxy = Scripted::start("", Vec::new()).await;
    eventually("the policy is in force", || proxy.echoes()).await;
    let mut open = proxy.connect(TCP).await;
    open.send("ping").await;
    assert_eq!(open.exactly(4).await, b"ping");

    let before = proxy.refused().await;
    proxy.fake.remove::<v1::InboundPolicy>("default/web");
    assert_eq!(open.to_end_or_reset().await, b"");
    let cut = proxy.refused().await - before;
    assert!(cut >= 1.0, "{cut} were counted");
    proxy.refuses().await;

    proxy.allow(Vec::new());
    eventually("the policy is in force again", || proxy.echoes()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_from_before_the_registration_lets_nobody_in() {
    // The control plane sends a policy that would let everybody in, and takes no registration.
    let mut proxy = Scripted::start("/orders:8080", Vec::new()).await;
    let port = v1::InboundPort {
        port: u32::from(proxy.inbound.port()),
        protocol: v1::Protocol::Tcp as i32,
        mode: v1::MtlsMode::Strict as i32,
        ..Default::default()
    };
    proxy.allow(vec![port]);
    eventually("the policy has come", async || {
        let said = proxy.process.stdout();
        if said.contains("held back an InboundPolicy") { Ok(()) } else { Err(said) }
    })
    .await;
    proxy.refuses().await;
    assert!(proxy.process.ended().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_before_its_control_plane_refuses_until_it_is_configured() {
    let mut world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    world.kill_control_plane().await;
    let orders = world.workload("orders").serves("orders", app.address()).start_unready().await;
    let web = world.workload("web").calls("orders").start_unready().await;
    orders.unready().await;

    // In HTTP it is said why, however the client came.
    let mut wire = Wire::connect(orders.inbound()).await;
    wire.send(GET).await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (503, Some("policy_unavailable")), "{head:?}");
    assert_eq!(head.get("x-tulle-error-by"), Some("default/orders/inbound"));
    // Opaque bytes end.
    let mut wire = Wire::connect(orders.inbound()).await;
    wire.send("no HTTP at all\n").await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    // The mesh's TLS cannot even be answered: there is no certificate.
    let caller = Identity::issue(&world.authority(), "web");
    let connected = identity::connect(orders.inbound(), Some(&caller), &[HTTP1]).await;
    assert!(connected.is_err(), "nobody can have answered the ClientHello");
    for (reason, least) in [("policy_unavailable", 2.0), ("not_ready", 1.0)] {
        orders.counts("tulle_refused_total", &[("direction", "inbound"), ("reason", reason)], least).await;
        orders.logs(&[("reason", json!(reason)), ("direction", json!("inbound"))]).await;
    }
    let mut wire = web.connect("orders").await;
    wire.send(GET).await;
    let (head, _) = wire.response().await;
    assert_eq!((head.status(), head.reason()), (503, Some("discovery_unavailable")), "{head:?}");

    world.restart_control_plane().await;
    web.reaches("orders").await;
    orders.logs(&[("status", json!(200)), ("source", json!(web.identity())), ("tls", json!("mtls"))]).await;
}
