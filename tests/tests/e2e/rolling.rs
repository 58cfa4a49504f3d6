//! Rolling restarts of both sides under load: nothing is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tulle_tests::app::App;
use tulle_tests::load::{Load, Orders, Restarts, Seen, Speech, Tally};
use tulle_tests::{Wire, Workload, World, within};

/// The server's side: an application for each protocol, behind one proxy.
struct Server {
    proxy: Workload,
    _apps: Vec<App>,
}

/// The client's.
struct Client {
    proxy: Workload,
    load: Vec<Load>,
}

async fn server(world: &World, number: usize, seen: &Seen, form: Restarts) -> Server {
    let mut apps = Vec::new();
    let mut builder = world.workload(&format!("orders-{number}")).setting("--drain-grace", form.grace);
    for speech in Speech::ALL {
        let app = Orders::start(speech, seen).await;
        builder = builder.serves(speech.service(), app.address());
        apps.push(app);
    }
    let proxy = builder.start().await;
    proxy.counts("tulle_registered", &[], 1.0).await;
    Server { proxy, _apps: apps }
}

async fn client(world: &World, number: usize, tally: &Arc<Tally>, form: Restarts) -> Client {
    let builder = world.workload(&format!("web-{number}")).setting("--drain-grace", form.grace);
    let builder = Speech::ALL.iter().fold(builder, |builder, speech| builder.calls(speech.service()));
    let proxy = builder.start().await;
    let name = format!("web-{number}");
    let load = Speech::ALL
        .map(|speech| Load::start(tally, speech, proxy.outbound(speech.service()), &name, form.pace));
    Client { proxy, load: load.into() }
}

/// `POST /drain`, as a `preStop` hook does.
pub(super) async fn drain(workload: &Workload) {
    let mut admin = Wire::connect(workload.admin()).await;
    admin.send("POST /drain HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert!(admin.head().await.status() < 300);
}

/// Waits for the end, which comes because there is nothing left.
pub(super) async fn ends(mut workload: Workload) {
    let status = within("the end of a drain", workload.process().wait()).await;
    assert!(status.success(), "{status}");
    let said = workload.diagnostics();
    assert!(said.contains("drained") && !said.contains("the grace period is over"), "{said}");
}

impl Server {
    /// The application goes on until its proxy has ended.
    async fn stop(mut self, drained_first: bool) {
        if drained_first {
            drain(&self.proxy).await;
            self.proxy.unready().await;
        }
        self.proxy.process().signal(Signal::TERM);
        ends(self.proxy).await;
    }
}

impl Client {
    /// The application is told together with its proxy, and has something left to do.
    async fn stop(mut self, drained_first: bool) {
        if drained_first {
            drain(&self.proxy).await;
        } else {
            self.proxy.process().signal(Signal::TERM);
        }
        futures_util::future::join_all(self.load.into_iter().map(|load| load.leave_after(5))).await;
        self.proxy.process().signal(Signal::TERM);
        ends(self.proxy).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_rolling_restarts_of_both_sides_lose_nothing() {
    let form = Restarts::of_this_run(2, "30s");
    let world = World::strict().await;
    for speech in Speech::ALL {
        world.service(speech.service(), speech.app_protocol());
    }
    let (seen, tally) = (Seen::default(), Arc::<Tally>::default());
    let mut orders = server(&world, 0, &seen, form).await;
    let begun = Instant::now();
    let mut web = client(&world, 0, &tally, form).await;
    for number in 1..=form.number {
        let next = server(&world, number, &seen, form).await;
        std::mem::replace(&mut orders, next).stop(number % 2 == 0).await;
        let next = client(&world, number, &tally, form).await;
        std::mem::replace(&mut web, next).stop(number % 2 == 0).await;
    }
    // The last ones too: nobody waits for anybody.
    web.stop(false).await;
    form.pace.assert_kept(&tally, Speech::ALL.len(), begun.elapsed());
    orders.stop(true).await;
    tally.assert_nothing_lost();
    assert_eq!(seen.twice(), <[String; 0]>::default());
    assert!(seen.count() > 100, "{}", seen.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_a_drain_that_was_begun_by_the_admin_listener_is_not_made_longer_by_a_signal() {
    let world = World::strict().await;
    world.service("orders", "tcp");
    let app = App::echo().await;
    let grace = Duration::from_secs(20);
    let orders = world.workload("orders").serves("orders", app.address()).setting("--drain-grace", "20s");
    let mut orders = orders.start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    // It goes on for ever.
    let mut wire = web.connect("orders").await;
    wire.send("ping").await;
    assert_eq!(wire.exactly(4).await, b"ping");
    let begun = Instant::now();
    drain(&orders).await;
    // Still there, and the application's bytes pass: for most of the grace.
    tokio::time::sleep(Duration::from_secs(12)).await;
    wire.send("ping").await;
    assert_eq!(wire.exactly(4).await, b"ping");
    let signalled = Instant::now();
    orders.process().signal(Signal::TERM);
    assert_eq!(wire.to_end_or_reset().await, b"");
    let (lasted, since) = (begun.elapsed(), signalled.elapsed());
    assert!(within("the end of the grace", orders.process().wait()).await.success());
    assert!(lasted >= grace - Duration::from_millis(100), "{lasted:?}");
    // Where the signal had begun it, it would have lasted as long again.
    assert!(since < grace, "{since:?}");
    assert!(orders.diagnostics().contains("the grace period is over"));
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_after_drain_the_proxy_stays_for_its_application_and_goes_with_it() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).setting("--drain-grace", "1h");
    let mut orders = orders.start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    drain(&orders).await;
    orders.unready().await;
    // New connections, for longer than a lull.
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        let mut wire = web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\nconnection: close\r\n\r\n").await;
        assert_eq!(wire.response().await.0.reason(), None);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(orders.process().ended(), None, "the application is still there");
    app.stop().await;
    // Long before the grace is over.
    assert!(within("the end of the application's proxy", orders.process().wait()).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_while_it_drains_a_proxy_takes_connections_of_both_directions() {
    let world = World::strict().await;
    world.service("orders", "http");
    let app = App::saying("hello").await;
    let orders = world.workload("orders").serves("orders", app.address()).start().await;
    let web = world.workload("web").calls("orders").start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    web.reaches("orders").await;
    drain(&orders).await;
    drain(&web).await;
    web.unready().await;
    for _ in 0..20 {
        let mut wire = web.connect("orders").await;
        wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
        let (head, body) = wire.response().await;
        assert_eq!((head.reason(), &body[..]), (None, &b"hello"[..]));
        assert!(head.has("connection", "close"), "{head:?}");
    }
}
