//! Join tokens over their life: made, listed, revoked, while a workload lives by one.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tulle_tests::app::App;
use tulle_tests::{Mode, Program, World, binary, eventually};

fn token(world: &World, arguments: &[&str]) -> String {
    let program = Program::new("token", binary("tulle")).arg("token");
    let program = arguments.iter().fold(program, |program, one| program.arg(*one));
    let output = program.flag("--state-dir", world.state_folder()).output();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn listed(world: &World) -> Value {
    serde_json::from_str(&token(world, &["list", "-o", "json"])).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_token_ends_the_workload_that_lives_by_it_and_no_other() {
    let world = World::start_with(Mode::Strict, |program| program.flag("--leaf-lifetime", "12s")).await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    let thief = world.workload("thief").calls("orders");
    let thief = thief.setting("--idle-timeout", "1s").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    thief.reaches("orders").await;

    let all = listed(&world);
    let of = |name: &str| {
        let found = all.as_object().unwrap().iter().find(|(_, entry)| {
            entry["identity"].as_str().is_some_and(|identity| identity.ends_with(&format!("/sa/{name}")))
        });
        found.unwrap_or_else(|| panic!("{name} in {all}")).0.clone()
    };
    assert_eq!(all.as_object().unwrap().len(), 3, "{all}");
    let said = token(&world, &["revoke", &of("thief")]);
    assert!(said.contains("revoked the join token") && said.contains("sa/thief"), "{said}");
    assert!(
        token(&world, &["list"]).lines().any(|line| line.contains("sa/thief") && line.contains("revoked"))
    );

    eventually("the thief's certificate is not renewed", async || {
        let refused = [("outcome", "revoked")];
        let count = world.metrics().await.sum("tulle_control_plane_certificate_requests_total", &refused);
        if count >= 1.0 { Ok(()) } else { Err(count.to_string()) }
    })
    .await;
    eventually("the thief says why", async || {
        let said = thief.diagnostics();
        if said.contains("revoked since") || said.contains("is revoked") { Ok(()) } else { Err(said) }
    })
    .await;
    // Connections that are open stay so for as long as they are used.
    eventually("the thief's certificate has run out", async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let mut wire = thief.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        let (head, _) = wire.response().await;
        if head.status() == 503 { Ok(()) } else { Err(head.line) }
    })
    .await;
    // The others have renewed theirs meanwhile.
    web.counts("tulle_identity_renewals_total", &[("result", "ok")], 2.0).await;
    web.reaches("orders").await;

    // By the file, for what nobody has joined with yet.
    let path = world.token("unused", &[]);
    let file = |path: &Path| path.to_str().unwrap().to_owned();
    assert!(token(&world, &["revoke", &file(&path)]).contains("sa/unused"));
    assert!(token(&world, &["revoke", &file(&path)]).contains("was revoked before"));
    let late = world.workload("unused").setting("--identity-token-file", &file(&path));
    let late = late.start_unready().await;
    eventually("it does not join", async || {
        let said = late.diagnostics();
        if said.contains("is revoked; join by another") { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_good_for_one_time_lets_in_one_workload_which_stays() {
    let world = World::start_with(Mode::Strict, |program| program.flag("--leaf-lifetime", "12s")).await;
    let path = world.state_folder().join("once.token");
    let file = path.to_str().unwrap();
    token(&world, &["create", "--workload-identity", "default/once", "--once", "--out", file]);
    assert!(
        token(&world, &["list"]).lines().any(|line| line.contains("sa/once") && line.ends_with("valid once"))
    );
    let first = world.workload("once").setting("--identity-token-file", file).start().await;
    assert!(token(&world, &["list"]).lines().any(|line| line.contains("sa/once") && line.contains("used")));
    let second = world.workload("second").setting("--identity-token-file", file).start_unready().await;
    eventually("it does not join", async || {
        let said = second.diagnostics();
        if said.contains("good for one time, and was used") { Ok(()) } else { Err(said) }
    })
    .await;
    let refused = [("outcome", "replayed")];
    let count = world.metrics().await.sum("tulle_control_plane_certificate_requests_total", &refused);
    assert!(count >= 1.0, "{count}");
    first.counts("tulle_identity_renewals_total", &[("result", "ok")], 2.0).await;
}
