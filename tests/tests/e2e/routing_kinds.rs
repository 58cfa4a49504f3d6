//! Whose routes hold for whom, and routes for whole connections: TCPRoutes by weight, TLSRoutes by server name.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tulle_tests::app::App;
use tulle_tests::{Program, Wire, Workload, World, binary, echo, eventually, identity};

/// Services, `[<namespace>/]<name>`, whose one port is 8080.
fn services(world: &World, names: &[&str], declared: &str) {
    let yaml = names.iter().map(|name| {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{clusterIP: None, \
             ports: [{{name: main, port: 8080{declared}}}]}}\n"
        )
    });
    world.yaml("services.yaml", &yaml.collect::<String>());
}

/// A route of `namespace` to `default/shop` with this one rule.
fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: \
         {{parentRefs: [{{group: '', kind: Service, name: shop, namespace: default}}], {spec}}}\n"
    )
}

/// `Accepted` and `ResolvedRefs` of a route, as `tulle check` tells them: their reasons.
fn reasons(world: &World, name: &str) -> [String; 2] {
    let program =
        Program::new("check", binary("tulle")).arg("check").flag("--config-dir", world.config_folder());
    let said: Value =
        serde_json::from_slice(&program.flag("--output", "json").output().stdout).expect("JSON");
    let routes = said["routes"].as_array().expect("routes");
    let route =
        routes.iter().find(|route| route["name"] == name).unwrap_or_else(|| panic!("no {name}: {said}"));
    let conditions = route["parents"][0]["conditions"].as_array().expect("conditions");
    ["Accepted", "ResolvedRefs"].map(|condition| {
        let found = conditions.iter().find(|one| one["type"] == condition).expect("a condition");
        found["reason"].as_str().expect("a reason").to_owned()
    })
}

/// An application that answers over HTTP with its name, and its proxy.
async fn serving(world: &World, workload: &str, name: &'static str) -> (App, Workload) {
    let app = App::http1(async move |request| echo::mirror(name, &request)).await;
    let service = workload.rsplit('/').next().unwrap_or(workload);
    let workload = world.workload(workload).serves(service, app.address()).start().await;
    (app, workload)
}

async fn by(client: &Workload) -> String {
    let stream = TcpStream::connect(client.outbound("shop")).await.unwrap();
    echo::ask(stream, false, "shop", "GET /").await.by()
}

async fn becomes(client: &Workload, expected: &str) {
    eventually(&format!("{} is answered by {expected}", client.identity()), async || {
        let by = by(client).await;
        if by == expected { Ok(()) } else { Err(by) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumers_route_holds_for_its_namespace_and_in_place_of_the_producers() {
    let world = World::strict().await;
    services(&world, &["shop", "v1", "cafe/own", "store/far"], ", appProtocol: http");
    let to = |backend: &str| format!("rules: [{{backendRefs: [{{{backend}, port: 8080}}]}}]");
    let produced = route("HTTPRoute", "default", "produced", &to("name: v1"));
    world.yaml("produced.yaml", &produced);
    let _running = [
        serving(&world, "shop", "shop").await,
        serving(&world, "v1", "v1").await,
        serving(&world, "cafe/own", "own").await,
        serving(&world, "store/far", "far").await,
    ];
    let web = world.workload("web").calls("shop").start().await;
    let till = world.workload("cafe/till").calls("shop").start().await;
    // The producer's is everybody's.
    becomes(&web, "v1").await;
    becomes(&till, "v1").await;

    world.yaml("consumed.yaml", &route("HTTPRoute", "cafe", "consumed", &to("name: own")));
    becomes(&till, "own").await;
    assert_eq!(by(&web).await, "v1");
    assert_eq!(reasons(&world, "consumed"), ["Accepted", "ResolvedRefs"]);
    // Back to the Service itself, past the producer's route; no grant is needed for what the client has dialled.
    world.yaml(
        "consumed.yaml",
        &route("HTTPRoute", "cafe", "consumed", &to("name: shop, namespace: default")),
    );
    becomes(&till, "shop").await;

    // Into a third namespace only if that lets it.
    world.yaml("consumed.yaml", &route("HTTPRoute", "cafe", "consumed", &to("name: far, namespace: store")));
    becomes(&till, "500 backend_not_found").await;
    assert_eq!(reasons(&world, "consumed"), ["Accepted", "RefNotPermitted"]);
    let grant = |from: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: in, namespace: store}}\nspec:\n  \
             from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {from}}}]\n  \
             to: [{{group: '', kind: Service, name: far}}]\n"
        )
    };
    world.yaml("grant.yaml", &grant("cafe"));
    becomes(&till, "far").await;
    assert_eq!(reasons(&world, "consumed"), ["Accepted", "ResolvedRefs"]);
    assert_eq!(by(&web).await, "v1");
    // A grant for others is none, and one that is taken back holds no more.
    world.yaml("grant.yaml", &grant("default"));
    becomes(&till, "500 backend_not_found").await;
    // The share of what is refused is its weight's; the rest goes on.
    let half = "rules: [{backendRefs: [{name: far, namespace: store, port: 8080}, {name: own, port: 8080}]}]";
    world.yaml("consumed.yaml", &route("HTTPRoute", "cafe", "consumed", half));
    becomes(&till, "own").await;
    let mut refused = 0;
    for _ in 0..100 {
        match &*by(&till).await {
            "500 backend_not_found" => refused += 1,
            other => assert_eq!(other, "own"),
        }
    }
    // Binomial with p = 0.5: five standard deviations are 25.
    assert!((25..=75).contains(&refused), "{refused} of 100 were refused");

    world.remove_yaml("consumed.yaml");
    becomes(&till, "v1").await;
}

/// An application that greets each connection with its name before it has heard anything, and its proxy.
async fn greeting(world: &World, name: &'static str) -> (App, Workload) {
    let app = App::wire(move |mut wire: Wire| async move {
        wire.send(format!("{name}\n")).await;
        wire.to_end_or_reset().await;
    })
    .await;
    let workload = world.workload(name).serves(name, app.address()).start().await;
    (app, workload)
}

/// What the server says first to a client that says nothing, or that the connection was refused.
async fn greeted(client: &Workload) -> String {
    // The reset may come before the caller has looked.
    let Ok(mut stream) = TcpStream::connect(client.outbound("shop")).await else {
        return "refused".to_owned();
    };
    let mut said = [0; 3];
    match tulle_tests::within("a greeting", stream.read_exact(&mut said)).await {
        Ok(_) => String::from_utf8_lossy(&said).trim_end().to_owned(),
        Err(_) => "refused".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_route_divides_connections_by_weight_and_waits_for_nobody() {
    let world = World::strict().await;
    services(&world, &["shop", "v1", "v2"], "");
    world.yaml(
        "route.yaml",
        &route(
            "TCPRoute",
            "default",
            "split",
            "rules: [{backendRefs: [{name: v1, port: 8080, weight: 3}, {name: v2, port: 8080, weight: 1}]}]",
        ),
    );
    let _versions = [greeting(&world, "v1").await, greeting(&world, "v2").await];
    let web = world.workload("web").calls("shop").start().await;
    eventually("both are heard", async || {
        let mut heard = Vec::new();
        for _ in 0..30 {
            heard.push(greeted(&web).await);
        }
        let both = ["v1", "v2"].iter().all(|name| heard.iter().any(|one| one == name));
        if both && !heard.contains(&"refused".to_owned()) { Ok(()) } else { Err(format!("{heard:?}")) }
    })
    .await;
    let mut seconds = 0;
    for _ in 0..200 {
        let name = greeted(&web).await;
        assert!(name == "v1" || name == "v2", "{name}");
        seconds += usize::from(name == "v2");
    }
    // Binomial with p = 0.25: five standard deviations are 31.
    assert!((19..=81).contains(&seconds), "{seconds} of 200 went to the quarter");
    let named = [
        ("route", json!("default/split")),
        ("backend", json!("default/v2:8080")),
        ("protocol", json!("TCP")),
    ];
    let record = web.logs(&named).await;
    assert_eq!(
        (&record["service"], &record["tls"]),
        (&json!("default/shop:8080"), &json!("mtls")),
        "{record}"
    );
    let labels = [("direction", "outbound"), ("route", "default/split"), ("backend", "default/v2:8080")];
    web.counts("tulle_connections_total", &labels, seconds as f64).await;
    assert_eq!(reasons(&world, "split"), ["Accepted", "ResolvedRefs"]);

    // Whoever speaks first follows it too: it is the connection that is routed.
    let mut wire = web.connect("shop").await;
    wire.send("HELO shop\r\n").await;
    assert_eq!(wire.exactly(1).await, b"v");

    for (rule, reason, resolved) in [
        ("rules: [{backendRefs: [{name: gone, port: 8080}]}]", "backend_not_found", "BackendNotFound"),
        (
            "rules: [{backendRefs: [{name: v1, port: 8080, weight: 0}]}]",
            "route_without_backend",
            "ResolvedRefs",
        ),
    ] {
        world.yaml("route.yaml", &route("TCPRoute", "default", "split", rule));
        // What is refused may still be so for the reason before.
        let asked = async {
            loop {
                greeted(&web).await;
            }
        };
        let told = [("reason", json!(reason)), ("route", json!("default/split"))];
        tokio::select! {
            _ = web.logs(&told) => {}
            () = asked => {}
        }
        assert_eq!(greeted(&web).await, "refused");
        assert_eq!(reasons(&world, "split"), ["Accepted", resolved]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http_client_of_a_tcp_route_may_end_its_side_and_wait() {
    let world = World::strict().await;
    // What the port speaks is told from the bytes at the application, by the client at its proxy not at all.
    services(&world, &["shop", "v1"], "");
    world.yaml(
        "route.yaml",
        &route("TCPRoute", "default", "all", "rules: [{backendRefs: [{name: v1, port: 8080}]}]"),
    );
    // Answers when the client's proxy has long passed on that its client has ended its side.
    let app = App::http1(async move |request| {
        tokio::time::sleep(Duration::from_secs(1)).await;
        echo::mirror("v1", &request)
    })
    .await;
    let served = world.workload("v1").serves("v1", app.address()).start().await;
    let web = world.workload("web").calls("shop").start().await;
    let mut said = String::new();
    eventually("the route is followed", async || {
        said = answered(&web, &[b"GET /slow HTTP/1.1\r\nhost: shop\r\nconnection: close\r\n\r\n"]).await;
        if said == "refused" { Err(said.clone()) } else { Ok(()) }
    })
    .await;
    assert!(said.starts_with("HTTP/1.1 200 "), "{said}");
    let record = served.logs(&[("direction", json!("inbound")), ("path", json!("/slow"))]).await;
    assert_eq!((&record["status"], &record["tls"]), (&json!(200), &json!("mtls")), "{record}");
}

/// The first bytes of a TLS client that wants to reach `server_name`, or no server by name.
pub(super) fn client_hello(server_name: Option<&str>) -> Vec<u8> {
    let name = server_name.unwrap_or("127.0.0.1").to_owned();
    let name = rustls::pki_types::ServerName::try_from(name).expect("a server's name");
    let mut session = rustls::ClientConnection::new(identity::client(None, &[]), name).expect("a client");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a buffer");
    hello
}

/// An application that counts what it is sent, says so with its name, and its proxy.
async fn naming(world: &World, name: &'static str) -> (App, Workload) {
    let app = App::wire(move |mut wire: Wire| async move {
        let said = wire.to_end().await;
        wire.send(format!("{name} {}", said.len())).await;
        wire.finish().await;
    })
    .await;
    let workload = world.workload(name).serves(name, app.address()).start().await;
    (app, workload)
}

/// What is answered to these bytes; `refused` if the connection was reset.
async fn answered(client: &Workload, bytes: &[&[u8]]) -> String {
    let mut wire = client.connect("shop").await;
    for piece in bytes {
        if wire.try_send(piece).await.is_err() {
            return "refused".to_owned();
        }
    }
    wire.finish().await;
    let said = wire.to_end_or_reset().await;
    if said.is_empty() { "refused".to_owned() } else { String::from_utf8(said).expect("text") }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tls_route_goes_by_the_server_name_and_ends_no_tls() {
    let world = World::strict().await;
    services(&world, &["shop", "v1", "v2", "v3"], "");
    let tls = |name: &str, names: &str, backend: &str| {
        let spec = format!("hostnames: {names}, rules: [{{backendRefs: [{{name: {backend}, port: 8080}}]}}]");
        route("TLSRoute", "default", name, &spec)
    };
    let routes = [
        tls("wide", "['*.example.com']", "v1"),
        tls("exact", "[a.example.com]", "v2"),
        tls("narrow", "['*.b.example.com']", "v3"),
        tls("lost", "[gone.example.com]", "gone"),
        // Of another kind, for a port that has a kind which comes first.
        route("TCPRoute", "default", "outranked", "rules: [{backendRefs: [{name: v3, port: 8080}]}]"),
    ];
    world.yaml("routes.yaml", &routes.concat());
    let _running = [naming(&world, "v1").await, naming(&world, "v2").await, naming(&world, "v3").await];
    let web = world.workload("web").calls("shop").start().await;
    for (server_name, expected, route, reason) in [
        (Some("a.example.com"), Some("v2"), "default/exact", None),
        (Some("x.example.com"), Some("v1"), "default/wide", None),
        (Some("x.b.example.com"), Some("v3"), "default/narrow", None),
        (Some("y.x.b.example.com"), Some("v3"), "default/narrow", None),
        (Some("b.example.com"), Some("v1"), "default/wide", None),
        (Some("example.com"), None, "", Some("route_not_found")),
        (Some("other.test"), None, "", Some("route_not_found")),
        (None, None, "", Some("route_not_found")),
        (Some("gone.example.com"), None, "default/lost", Some("backend_not_found")),
    ] {
        let hello = client_hello(server_name);
        // Every byte arrives, those by which it was decided included.
        let expected =
            expected.map_or_else(|| "refused".to_owned(), |name| format!("{name} {}", hello.len()));
        eventually(&format!("{server_name:?} is answered by {expected}"), async || {
            let said = answered(&web, &[&hello]).await;
            if said == expected { Ok(()) } else { Err(said) }
        })
        .await;
        let mut fields = vec![];
        fields.extend(server_name.map(|name| ("authority", json!(name))));
        fields.extend((!route.is_empty()).then(|| ("route", json!(route))));
        fields.extend(reason.map(|reason| ("reason", json!(reason))));
        if server_name.is_none() {
            fields.push(("detail", json!("the client's TLS names no server, and TLSRoutes go by that")));
        }
        web.logs(&fields).await;
    }
    // In pieces, as a large ClientHello comes.
    let hello = client_hello(Some("a.example.com"));
    let (first, rest) = hello.split_at(hello.len() / 2);
    assert_eq!(answered(&web, &[first, rest]).await, format!("v2 {}", hello.len()));
    // What is no TLS names nobody.
    assert_eq!(answered(&web, &[b"GET / HTTP/1.1\r\nhost: a.example.com\r\n\r\n"]).await, "refused");
    web.counts("tulle_connections_total", &[("route", "default/exact"), ("backend", "default/v2:8080")], 2.0)
        .await;
    assert_eq!(reasons(&world, "exact"), ["Accepted", "ResolvedRefs"]);
    assert_eq!(reasons(&world, "lost"), ["Accepted", "BackendNotFound"]);
    assert_eq!(reasons(&world, "outranked"), ["Conflicted", "ResolvedRefs"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_never_finishes_a_client_hello_is_not_waited_for_without_end() {
    let world = World::strict().await;
    services(&world, &["shop", "v1"], "");
    let spec = "hostnames: [a.example.com], rules: [{backendRefs: [{name: v1, port: 8080}]}]";
    world.yaml("routes.yaml", &route("TLSRoute", "default", "exact", spec));
    let _running = naming(&world, "v1").await;
    let web = world.workload("web").calls("shop").setting("--header-read-timeout", "300ms").start().await;
    let hello = client_hello(Some("a.example.com"));
    eventually("the route is in force", async || {
        let said = answered(&web, &[&hello]).await;
        if said.starts_with("v1") { Ok(()) } else { Err(said) }
    })
    .await;
    let refused = async |reason: &str| web.metrics().await.sum("tulle_refused_total", &[("reason", reason)]);
    // In time.
    let mut wire = web.connect("shop").await;
    wire.send(&hello[..100]).await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    web.logs(&[("reason", json!("detect_timeout"))]).await;
    let (late, lost) = (refused("detect_timeout").await, refused("route_not_found").await);
    // In bytes: one record after the other of a handshake that does not end.
    let mut wire = web.connect("shop").await;
    let record = [&b"\x16\x03\x01\x10\x00"[..], &[0; 4096]].concat();
    let mut endless = [&b"\x16\x03\x01\x10\x00\x01\x00\xff\xff\x03\x03"[..], &[0; 4090]].concat();
    while endless.len() < 16 * 1024 {
        endless.extend_from_slice(&record);
    }
    let _ = wire.try_send(&endless).await;
    assert_eq!(wire.to_end_or_reset().await, b"");
    web.counts("tulle_refused_total", &[("reason", "route_not_found")], lost + 1.0).await;
    assert_eq!(refused("detect_timeout").await, late, "it was not for its time");
}
