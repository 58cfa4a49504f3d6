//! Collectors that are reached by TLS (R20): by which roots they are known, and what becomes of spans where they are not.

use std::net::{SocketAddr, TcpListener as StdListener};

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tulle_certs::PrivateKey;
use tulle_tests::app::App;
use tulle_tests::identity::Identity;
use tulle_tests::{Folder, Program, Workload, World, binary, eventually};

use super::collector::Collector;
use super::{ALWAYS, slowest, traced};

/// An authority outside the mesh.
struct Root {
    key: String,
    pem: String,
}

impl Root {
    /// By name, since one of the same name would be taken for it, and fail by its signature.
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { key: key.serialize_pem(), pem }
    }

    /// A server of these names.
    fn signs(&self, names: &[&str]) -> Identity {
        let key = rcgen::KeyPair::from_pem(&self.key).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&self.pem, key).unwrap();
        let own = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().signed_by(&own, &issuer).unwrap();
        let key = PrivateKey::from_pem(&own.serialize_pem()).unwrap();
        Identity { chain: vec![certificate.der().clone()], key }
    }
}

/// TLS before what listens at `to`.
async fn before(to: SocketAddr, identity: &Identity, alpn: &[u8]) -> App {
    let acceptor = TlsAcceptor::from(identity.server(&[alpn]));
    App::tcp(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // A client that does not trust it goes away.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut on = TcpStream::connect(to).await.unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut on).await;
        }
    })
    .await
}

/// A workload that sends its spans by this protocol to this host and port, and trusts the roots in this file.
async fn sending(
    world: &World,
    name: &str,
    protocol: &str,
    (host, port): (&str, u16),
    roots: &str,
) -> Workload {
    let url = format!("https://{host}:{port}");
    let settings = [
        ALWAYS,
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", roots),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "3000"),
    ];
    traced(world, name, &settings, |it| it.calls("orders")).await
}

/// Spans are dropped and counted, the log says why in these words, and requests are served all the same.
async fn refused(web: &Workload, what: &str, words: &[&str]) {
    slowest(web, 5).await;
    web.counts("tulle_trace_spans_dropped_total", &[("cause", "exporter")], 5.0).await;
    web.counts("tulle_trace_export_failures_total", &[], 1.0).await;
    let exported = web.metrics().await.sum("tulle_trace_spans_exported_total", &[]);
    assert!(exported.abs() < 0.1, "{what}: {exported}");
    eventually(&format!("{what}: the log says why"), async || {
        let said = web.diagnostics();
        let line = said.lines().find(|line| line.contains("spans cannot be exported"));
        let line = line.ok_or_else(|| said.clone())?;
        let missing: Vec<_> = words.iter().filter(|word| !line.contains(**word)).collect();
        if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}: {line}")) }
    })
    .await;
    slowest(web, 5).await;
}

async fn by_https(protocol: &str, alpn: &[u8]) {
    let collector = if protocol == "grpc" { Collector::grpc().await } else { Collector::http().await };
    let (root, folder) = (Root::new("right"), Folder::new());
    let file = |name: &str, pem: &str| {
        let path = folder.path(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (right, wrong) = (file("right.pem", &root.pem), file("wrong.pem", &Root::new("wrong").pem));
    let front = before(collector.address, &root.signs(&["localhost", "127.0.0.1"]), alpn).await;
    let other = before(collector.address, &root.signs(&["other.example"]), alpn).await;
    let mute = StdListener::bind("127.0.0.1:0").unwrap();
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = traced(&world, "orders", &[], |it| it.serves("orders", app.address())).await;
    orders.counts("tulle_registered", &[], 1.0).await;
    for (times, host) in ["127.0.0.1", "localhost"].into_iter().enumerate() {
        let web =
            sending(&world, &format!("known-{times}"), protocol, (host, front.address().port()), &right)
                .await;
        slowest(&web, 3).await;
        let spans = collector.collected.spans(3 * (times + 1)).await;
        assert!(spans.iter().all(|span| span.service.starts_with("known-")), "{spans:#?}");
        web.counts("tulle_trace_spans_exported_total", &[], 3.0).await;
        let metrics = web.metrics().await;
        assert!(metrics.sum("tulle_trace_spans_dropped_total", &[]).abs() < 0.1, "{host}: {metrics:?}");
    }
    // A server of HTTP/1 waits for the rest of what it takes for a line.
    let without_tls = if protocol == "grpc" { &["TLS"][..] } else { &["no answer within 3s"] };
    for (what, to, roots, words) in [
        (
            "another-root",
            front.address(),
            &wrong,
            &["UnknownIssuer", &*wrong, "OTEL_EXPORTER_OTLP_CERTIFICATE"][..],
        ),
        ("another-name", other.address(), &right, &["127.0.0.1", "other.example"]),
        ("no-tls", collector.address, &right, without_tls),
        ("no-answer", mute.local_addr().unwrap(), &right, &["no answer within 3s"]),
    ] {
        let web = sending(&world, what, protocol, ("127.0.0.1", to.port()), roots).await;
        refused(&web, what, words).await;
    }
    assert_eq!(collector.collected.all().len(), 6, "nothing has gone to whom it does not trust");
    // Roots that are replaced hold from the next connection on.
    let replaced = file("replaced.pem", &Root::new("wrong").pem);
    let to = ("127.0.0.1", front.address().port());
    let web = sending(&world, "replaced", protocol, to, &replaced).await;
    refused(&web, "replaced", &["UnknownIssuer", &*replaced]).await;
    std::fs::rename(file("new.pem", &root.pem), &replaced).unwrap();
    eventually("spans are exported by the new roots", async || {
        slowest(&web, 1).await;
        let exported = web.metrics().await.sum("tulle_trace_spans_exported_total", &[]);
        if exported > 0.0 { Ok(()) } else { Err(web.diagnostics()) }
    })
    .await;
    eventually("the log says so", async || {
        let said = web.diagnostics();
        if said.contains("the collector's roots have changed") { Ok(()) } else { Err(said) }
    })
    .await;
    // A file that is not there: the proxy does not start, as with any setting that cannot be.
    let absent = folder.path("absent.pem").to_str().unwrap().to_owned();
    let program = Program::new("rootless", binary("tulle-proxy"))
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("https://{}", front.address()))
        .env("OTEL_EXPORTER_OTLP_CERTIFICATE", &*absent);
    let output = program.output();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for word in [&*absent, "OTEL_EXPORTER_OTLP_CERTIFICATE"] {
        assert!(said.contains(word), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_collector_of_grpc_by_https_is_known_by_the_roots_that_are_named_and_others_get_nothing() {
    by_https("grpc", b"h2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r20_a_collector_of_http_by_https_is_known_by_the_roots_that_are_named_and_others_get_nothing() {
    by_https("http/protobuf", b"http/1.1").await;
}
