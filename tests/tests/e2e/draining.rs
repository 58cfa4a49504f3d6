//! Drains that begin at a bad moment: within a handshake, before a body that was asked for, under tunnels, and more than once.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tulle_tests::app::App;
use tulle_tests::{Wire, Workload, World, eventually, within};

use super::live::echoing_upgrade;
use super::mtls::endpoint_slice;
use super::rolling::{drain, ends};

/// Longer than any test waits: what ends before it has ended by itself.
const GRACE: &str = "1h";

/// Asks for a body of four bytes, and answers once it has come.
async fn asks_for_the_body() -> App {
    App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            if head.get("expect").is_some() {
                wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
                assert_eq!(wire.exactly(4).await, b"body");
            }
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_what_is_under_way_goes_on_however_often_and_by_whomever_the_drain_is_begun() {
    let world = World::strict().await;
    let (chat, bytes, posts) = (echoing_upgrade().await, App::echo().await, asks_for_the_body().await);
    for (service, protocol) in [("chat", "http"), ("bytes", "tcp"), ("posts", "http")] {
        world.service(service, protocol);
    }
    let orders = world.workload("orders").setting("--drain-grace", GRACE);
    let orders = orders.serves("chat", chat.address()).serves("bytes", bytes.address());
    let mut orders = orders.serves("posts", posts.address()).start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let web = world.workload("web").setting("--drain-grace", GRACE);
    let mut web = web.calls("chat").calls("bytes").calls("posts").start().await;

    let mut upgraded = web.connect("chat").await;
    upgraded.send("GET /chat HTTP/1.1\r\nhost: chat\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    assert_eq!(upgraded.head().await.status(), 101);
    let mut tunnel = web.connect("chat").await;
    tunnel.send("CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n").await;
    assert_eq!(tunnel.head().await.status(), 200);
    let mut opaque = web.connect("bytes").await;
    let mut post = web.connect("posts").await;
    post.send("POST / HTTP/1.1\r\nhost: posts\r\nexpect: 100-continue\r\ncontent-length: 4\r\n\r\n").await;
    assert_eq!(post.head().await.status(), 100);
    // Nothing has been said on it yet.
    let mut silent = web.connect("posts").await;
    let mut pass = async || {
        for wire in [&mut upgraded, &mut tunnel, &mut opaque] {
            wire.send("ping\n").await;
            assert_eq!(wire.exactly(5).await, b"ping\n");
        }
    };
    pass().await;
    for step in 0..4 {
        for proxy in [&mut orders, &mut web] {
            if step < 2 {
                drain(proxy).await;
            } else {
                proxy.process().signal(Signal::TERM);
            }
            proxy.unready().await;
        }
        if step == 0 {
            silent.send("GET / HTTP/1.1\r\nhost: posts\r\n\r\n").await;
            let (head, body) = silent.response().await;
            assert_eq!((head.status(), head.reason(), &body[..]), (200, None, &b"ok"[..]));
            assert!(head.has("connection", "close"), "{head:?}");
        }
        pass().await;
    }
    post.send("body").await;
    let (head, body) = post.response().await;
    assert_eq!((head.status(), head.reason(), &body[..]), (200, None, &b"ok"[..]));
    assert!(head.has("connection", "close"), "{head:?}");
    for proxy in [&mut orders, &mut web] {
        assert_eq!(proxy.process().ended(), None, "there are tunnels");
    }
    drop((upgraded, tunnel, opaque, post, silent));
    ends(orders).await;
    ends(web).await;
}

/// Passes connections on to `to`, but for what a client says after its ClientHello: that waits until it is let go. Counts those that wait.
async fn holding(
    to: std::net::SocketAddr,
    go: &watch::Sender<bool>,
    held: &Arc<watch::Sender<usize>>,
) -> App {
    let (go, held) = (go.subscribe(), Arc::clone(held));
    App::tcp(move |mut client: TcpStream| {
        let (mut go, held) = (go.clone(), Arc::clone(&held));
        async move {
            let mut server = TcpStream::connect(to).await.unwrap();
            let (mut from_client, mut to_client) = client.split();
            let (mut from_server, mut to_server) = server.split();
            let there = async {
                let mut buffer = vec![0; 1 << 16];
                for first in [true, false] {
                    let Ok(read @ 1..) = from_client.read(&mut buffer).await else { return };
                    if !first {
                        held.send_modify(|held| *held += 1);
                        let _ = go.wait_for(|go| *go).await;
                    }
                    if to_server.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
                let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
            };
            let back = tokio::io::copy(&mut from_server, &mut to_client);
            tokio::select! {
                () = there => {}
                _ = back => {}
            }
        }
    })
    .await
}

/// `orders`, whose only way there is held up, and `web`.
async fn held_up(
    world: &World,
    go: &watch::Sender<bool>,
    held: &Arc<watch::Sender<usize>>,
) -> (Workload, Workload, [App; 2]) {
    let app = App::saying("hello").await;
    for service in ["orders", "direct"] {
        world.service(service, "http");
    }
    let orders = world.workload("orders").serves("direct", app.address()).setting("--drain-grace", GRACE);
    let orders = orders.start().await;
    orders.counts("tulle_registered", &[], 1.0).await;
    let way = holding(orders.inbound(), go, held).await;
    world.yaml("slice.yaml", &endpoint_slice("orders", way.address(), Some("default/orders")));
    let web = world
        .workload("web")
        .calls("orders")
        .calls("direct")
        .setting("--connect-timeout", "1m")
        .start()
        .await;
    web.reaches("direct").await;
    eventually("the way is known", async || {
        let dump = web.config_dump().await;
        if dump.contains(&way.address().to_string()) {
            return Ok(());
        }
        // It is asked for on the first use.
        let _ = TcpStream::connect(web.outbound("orders")).await;
        Err(dump)
    })
    .await;
    (orders, web, [app, way])
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_a_handshake_that_is_under_way_when_the_drain_begins_is_ended_and_its_request_served() {
    let world = World::strict().await;
    let (go, held) = (watch::Sender::new(false), Arc::new(watch::Sender::new(0)));
    let (mut orders, web, _apps) = held_up(&world, &go, &held).await;
    let mut wire = web.connect("orders").await;
    wire.send("POST / HTTP/1.1\r\nhost: orders\r\ncontent-length: 4\r\n\r\nbody").await;
    within("a handshake", held.subscribe().wait_for(|held| *held > 0)).await.unwrap();
    orders.process().signal(Signal::TERM);
    orders.unready().await;
    go.send_replace(true);
    let (head, body) = wire.response().await;
    assert_eq!((head.status(), head.reason(), &body[..]), (200, None, &b"hello"[..]));
    ends(orders).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn r06_handshakes_that_never_end_do_not_keep_a_proxy_that_drains() {
    let world = World::strict().await;
    let (go, held) = (watch::Sender::new(false), Arc::new(watch::Sender::new(0)));
    let (mut orders, web, _apps) = held_up(&world, &go, &held).await;
    let mut wire = web.connect("orders").await;
    wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
    within("a handshake", held.subscribe().wait_for(|held| *held > 0)).await.unwrap();
    // Nothing, and the beginning of a ClientHello.
    let _silent = Wire::connect(orders.inbound()).await;
    let mut begun = Wire::connect(orders.inbound()).await;
    begun.send(b"\x16\x03\x01\x02\x00\x01").await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    orders.process().signal(Signal::TERM);
    ends(orders).await;
}
