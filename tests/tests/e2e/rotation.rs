//! The mesh's root is rotated under load, and one that has expired is repaired.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::Signal;
use tulle_certs::issue::Authority;
use tulle_certs::{Pin, TrustDomain};
use tulle_tests::app::App;
use tulle_tests::load::{Load, Orders, Pace, Seen, Speech, Tally};
use tulle_tests::{Mode, Process, Program, Wire, Workload, World, binary, deep, eventually, long};

/// How the root is rotated under load.
struct Form {
    /// How often.
    rotations: usize,
    /// How many seconds leaves live. A rotation waits for one and a half times as long, and for some seconds more.
    lifetime: u64,
    /// Requests a second of each protocol.
    rate: u32,
}

/// That of the requirement takes three and a half minutes: 500 requests a second of all three protocols.
fn form() -> Form {
    if deep() || long() {
        Form { rotations: 2, lifetime: 60, rate: 167 }
    } else {
        Form { rotations: 1, lifetime: 15, rate: 30 }
    }
}

fn of_this_form(program: Program) -> Program {
    program.flag("--leaf-lifetime", format!("{}s", form().lifetime))
}

fn short(program: Program) -> Program {
    program.flag("--leaf-lifetime", "15s")
}

fn trust_domain() -> TrustDomain {
    TrustDomain::new("cluster.local").unwrap()
}

/// `tulle identity …` at the world's control plane.
fn identity(world: &World, name: &str, verb: &str) -> Program {
    let program = Program::new(name, binary("tulle")).arg("identity").arg(verb);
    program.flag("--control-plane", world.metrics_address().to_string())
}

fn rotate(world: &World, name: &str) -> Program {
    identity(world, name, "rotate-root").flag("--state-dir", world.state_folder())
}

/// The pin of the root that issues, as join tokens are made with it.
fn pin(world: &World) -> Pin {
    let state = tulle_control_plane::ca::stored_tokens(&world.state_folder());
    state.unwrap().pin
}

/// Waits until a rotation is in this phase.
async fn phase(world: &World, wanted: &str) {
    let at_most = Duration::from_secs(90 + 2 * form().lifetime);
    let begun = Instant::now();
    while world.metrics().await.sum("tulle_identity_root_rotation", &[("phase", wanted)]) < 0.5 {
        assert!(begun.elapsed() < at_most, "not {wanted} within {at_most:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn killed(world: &mut World) {
    world.kill_control_plane().await;
    world.restart_control_plane_with(of_this_form).await;
}

/// One rotation by the command, with the control plane killed in the middle of each phase that lasts.
async fn rotation(world: &mut World, number: usize) {
    let before = pin(world);
    let program = rotate(world, &format!("rotate-{number}")).arg("--wait");
    let mut command = Process::start(program, world.folder());
    for wanted in ["published", "draining"] {
        phase(world, wanted).await;
        killed(world).await;
    }
    assert_ne!(pin(world), before, "tokens are made for the new root once it issues");
    phase(world, "idle").await;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = command.ended() {
            break status;
        }
        assert!(begun.elapsed() < Duration::from_secs(30), "the command does not end: {}", command.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert!(status.success(), "{}", command.tail());
    assert!(
        command.stdout().contains(&format!("complete: the root is {}", pin(world))),
        "{}",
        command.tail()
    );
    assert_eq!(world.authority().bundle().pins(), [pin(world)], "the new root alone");
}

/// What a proxy says of its certificate and of the roots that it trusts.
async fn certificates(proxy: &Workload) -> String {
    let mut admin = Wire::connect(proxy.admin()).await;
    admin.send("GET /certs HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    String::from_utf8(admin.response().await.1).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_two_root_rotations_lose_nothing() {
    let Form { rotations, rate, .. } = form();
    let mut world = World::start_with(Mode::Strict, of_this_form).await;
    let (seen, tally) = (Seen::default(), Arc::<Tally>::default());
    let pace = Pace { lanes: 4, rate, stream: Duration::from_secs(2) };
    let (mut server, mut client, mut apps) = (world.workload("orders"), world.workload("web"), Vec::new());
    for speech in Speech::ALL {
        world.service(speech.service(), speech.app_protocol());
        let app = Orders::start(speech, &seen).await;
        server = server.serves(speech.service(), app.address());
        client = client.calls(speech.service());
        apps.push(app);
    }
    let orders = server.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = client.start().await;
    let first = pin(&world);
    // One that has joined, and is away from before the first rotation until after the last, with the token of then; and one that stands still meanwhile.
    let service = Speech::Http1.service();
    let token = world.token("away", &[]);
    let token = token.to_str().unwrap();
    let away = || world.workload("away").calls(service).setting("--identity-token-file", token);
    let mut gone = away().start().await;
    gone.reaches(service).await;
    gone.process().stop().await;
    drop(gone);
    let mut frozen = world.workload("frozen").calls(service).start().await;
    frozen.reaches(service).await;
    frozen.process().signal(Signal::STOP);

    let begun = Instant::now();
    let load =
        Speech::ALL.map(|speech| Load::start(&tally, speech, web.outbound(speech.service()), "web", pace));
    let mut pins = vec![first];
    for number in 1..=rotations {
        rotation(&mut world, number).await;
        pins.push(pin(&world));
        if number == 1 {
            frozen.process().signal(Signal::CONT);
            frozen.reaches(service).await;
        }
    }
    pins.dedup();
    assert_eq!(pins.len(), rotations + 1, "{pins:?}");
    let back = world.workload("away").calls(service).setting("--identity-token-file", token).start().await;
    back.reaches(service).await;
    futures_util::future::join_all(load.into_iter().map(|load| load.leave_after(5))).await;
    pace.assert_kept(&tally, Speech::ALL.len(), begun.elapsed());
    // A machine that does other things besides falls behind that, but is under load still.
    let (asked, due) = (tally.asked() as f64, f64::from(3 * rate) * begun.elapsed().as_secs_f64());
    assert!(asked > due / 5.0, "{asked} requests of {due}");
    tally.assert_nothing_lost();
    assert_eq!(seen.twice(), <[String; 0]>::default());
    assert!(seen.count() > 100, "{}", seen.count());
    for proxy in [&web, &orders] {
        eventually("the last root alone is trusted", async || {
            let shown = certificates(proxy).await;
            let trusts = |pin: &Pin| shown.contains(&pin.to_string());
            let (last, former) = pins.split_last().unwrap();
            if trusts(last) && !former.iter().any(trusts) { Ok(()) } else { Err(shown) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_a_rotation_waits_for_proxies_says_for_whom_and_is_given_up_when_asked() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let mut web = world.workload("web").calls("orders").start().await;
    web.reaches("orders").await;
    let before = pin(&world);

    let plan = rotate(&world, "plan").arg("--dry-run").output();
    let text = String::from_utf8(plan.stdout).unwrap();
    assert!(plan.status.success() && text.contains("Nothing was changed"), "{text}");
    assert!(text.contains(&before.to_string()) && text.contains("default/web"), "{text}");
    let stranger = identity(&world, "stranger", "rotate-root").output();
    assert!(!stranger.status.success());
    assert!(String::from_utf8_lossy(&stranger.stderr).contains("state folder"), "{stranger:?}");
    assert_eq!(world.metrics().await.sum("tulle_identity_root_rotation", &[("phase", "idle")]), 1.0);

    // It is connected, and takes nothing.
    web.process().signal(Signal::STOP);
    let mut command = Process::start(rotate(&world, "rotate"), world.folder());
    eventually("the command says whom it waits for", async || {
        let said = command.stdout();
        if said.contains("waiting for proxies: default/web") { Ok(()) } else { Err(said) }
    })
    .await;
    let abort = rotate(&world, "abort").arg("--abort").output();
    assert!(abort.status.success(), "{abort:?}");
    let status = command.wait().await;
    assert!(!status.success() && command.stderr().contains("given up"), "{}", command.tail());
    web.process().signal(Signal::CONT);
    web.reaches("orders").await;
    assert_eq!(pin(&world), before);
    assert_eq!(world.authority().bundle().pins(), [before]);
    drop(orders);
}

#[tokio::test(flavor = "multi_thread")]
async fn r10_an_expired_root_is_repaired_by_one_command() {
    let mut world = World::start_with(Mode::Strict, short).await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    web.reaches("orders").await;

    // As if an hour had passed since the root's end.
    world.control_plane().stop().await;
    let (hour, now) = (Duration::from_secs(3600), SystemTime::now());
    let ended = Authority::generate(&trust_domain(), hour, now - 2 * hour).unwrap();
    let state = world.state_folder();
    fs::write(state.join("ca.pem"), ended.to_pem()).unwrap();
    fs::write(state.join("ca-key.pem"), ended.key().to_pem().as_bytes()).unwrap();
    let refused = world.control_plane().program().clone().output();
    assert!(!refused.status.success());
    let said =
        format!("{}{}", String::from_utf8_lossy(&refused.stdout), String::from_utf8_lossy(&refused.stderr));
    assert!(said.contains("tulle identity repair") && said.contains("ca.pem"), "{said}");

    let repair = Program::new("repair", binary("tulle")).arg("identity").arg("repair");
    let repair = repair.flag("--state-dir", &state).output();
    let text = String::from_utf8(repair.stdout).unwrap();
    assert!(repair.status.success(), "{text}{}", String::from_utf8_lossy(&repair.stderr));
    assert!(text.contains(&pin(&world).to_string()) && text.contains("tulle token create"), "{text}");
    world.restart_control_plane_with(short).await;
    // Its proxies say what they need.
    eventually("web says what it needs", async || {
        let said = web.diagnostics();
        if said.contains("join by a new token file") { Ok(()) } else { Err(said) }
    })
    .await;
    // They read it from where the old one was.
    world.token("web", &[]);
    world.token("orders", &["orders".to_owned()]);
    web.reaches("orders").await;
    drop(orders);
}
