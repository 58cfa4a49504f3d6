//! Starts that cannot succeed say what is wrong and what to do; ends leave nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tulle_tests::app::App;
use tulle_tests::{Process, Program, World, binary, within};

use super::Pair;

/// Runs a program that should not start; what it said.
async fn fails(program: Program, world: &World) -> String {
    let mut process = Process::start(program, world.folder());
    let status = within("the program ends", process.wait()).await;
    assert!(!status.success(), "it should not have started");
    format!("{}{}", process.stdout(), process.stderr())
}

fn second_control_plane(world: &World) -> Program {
    Program::new("second", binary("tulle-control-plane"))
        .flag("--config-dir", world.config_folder())
        .flag("--state-dir", world.folder().path("other-state"))
        .flag("--grpc-address", "127.0.0.1:0")
        .flag("--metrics-address", "127.0.0.1:0")
}

fn proxy(name: &str) -> Program {
    Program::new(name, binary("tulle-proxy"))
        .flag("--outbound-listen", "none")
        .flag("--inbound-listen", "none")
        .flag("--admin-address", "none")
        .flag("--metrics-address", "127.0.0.1:0")
}

fn says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "no `{word}` in: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_control_plane_on_the_same_state_folder_does_not_start() {
    let world = World::strict().await;
    let program =
        second_control_plane(&world).without("--state-dir").flag("--state-dir", world.state_folder());
    let said = fails(program, &world).await;
    says(&said, &[&world.state_folder().display().to_string()]);
    says(&said, &["another control plane"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() {
    let world = World::strict().await;
    let taken = world.grpc().to_string();
    let said =
        fails(second_control_plane(&world).without("--grpc-address").flag("--grpc-address", &taken), &world)
            .await;
    says(&said, &[&taken]);
    let said =
        fails(proxy("proxy").without("--metrics-address").flag("--metrics-address", &taken), &world).await;
    says(&said, &[&taken]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_is_not_there_is_named() {
    let world = World::strict().await;
    let missing = world.folder().path("missing");
    let said =
        fails(second_control_plane(&world).without("--config-dir").flag("--config-dir", &missing), &world)
            .await;
    says(&said, &[&missing.display().to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_others_may_read_are_not_used() {
    let world = World::strict().await;
    let state = world.folder().path("copied-state");
    fs::create_dir(&state).unwrap();
    for file in ["ca-key.pem", "ca.pem", "token-key.pem"] {
        fs::copy(world.state_folder().join(file), state.join(file)).unwrap();
    }
    let key = state.join("ca-key.pem");
    assert_eq!(
        fs::metadata(&key).unwrap().permissions().mode() & 0o777,
        0o600,
        "as the control plane made it"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let said =
        fails(second_control_plane(&world).without("--state-dir").flag("--state-dir", &state), &world).await;
    says(&said, &["ca-key.pem", "644"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_setting_is_named_with_its_form() {
    let world = World::strict().await;
    let said = fails(proxy("proxy").env("TULLE_PROXY_CONNECT_TIMEOUT", "soon"), &world).await;
    says(&said, &["TULLE_PROXY_CONNECT_TIMEOUT", "soon", "300ms"]);
    let said = fails(proxy("flag").flag("--workers", "many"), &world).await;
    says(&said, &["--workers", "many"]);
    let said = fails(proxy("unfinished").flag("--control-plane-address", "127.0.0.1:1"), &world).await;
    says(&said, &["TULLE_PROXY_WORKLOAD"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_none_and_a_token_of_another_mesh_are_refused() {
    let world = World::strict().await;
    let other = World::strict().await;
    let foreign = other.token("web", &[]);
    let web = world
        .workload("web")
        .setting("--identity-token-file", &foreign.display().to_string())
        .start_unready()
        .await;
    // The pin of the other mesh's root does not fit: nothing is asked of this control plane.
    tulle_tests::eventually("the proxy says that the root is another", async || {
        let said = web.diagnostics().to_lowercase();
        if said.contains("pin") || said.contains("root") { Ok(()) } else { Err(said) }
    })
    .await;
    let path = world.folder().path("nonsense.token");
    fs::write(&path, "not a token\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // Whoever provides the file may still mend it: the proxy says so, and is not ready.
    let nonsense = world
        .workload("nonsense")
        .setting("--identity-token-file", &path.display().to_string())
        .start_unready()
        .await;
    tulle_tests::eventually("the proxy names the file", async || {
        let said = nonsense.diagnostics();
        if said.contains("nonsense.token") && said.contains("line 1") { Ok(()) } else { Err(said) }
    })
    .await;
    nonsense.unready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_a_proxy_finishes_what_it_has_begun() {
    let (arrived, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    let (release, released) = tokio::sync::watch::channel(false);
    let app = App::wire(move |mut wire| {
        let (arrived, mut released) = (arrived.clone(), released.clone());
        async move {
            while wire.try_head().await.is_some() {
                arrived.send(()).unwrap();
                released.wait_for(|released| *released).await.unwrap();
                if wire.try_send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    let mut pair = Pair::start(app, "http").await;
    let mut wire = pair.web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    within("the request arrives", arrivals.recv()).await.unwrap();
    for workload in [&mut pair.web, &mut pair.orders] {
        workload.process().signal(rustix::process::Signal::TERM);
        workload.unready().await;
    }
    release.send(true).unwrap();
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), body.as_slice()), (200, b"ok".as_slice()));
    assert!(head.has("connection", "close"), "{head:?}");
    for workload in [&mut pair.web, &mut pair.orders] {
        let status = workload.process().wait().await;
        assert!(status.success(), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_told_to_end_ends_well() {
    let mut world = World::strict().await;
    let _web = world.workload("web").start().await;
    let status = world.control_plane().stop().await;
    assert!(status.success(), "{status}");
}
