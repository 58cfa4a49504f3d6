//! What flows through does not stay: bodies of any length, readers and writers of any slowness.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tulle_tests::app::App;
use tulle_tests::memory::resident;
use tulle_tests::{NAMESPACE, Wire, World, deep, eventually, within};

use super::Pair;

const MIB: u64 = 1 << 20;

/// How much a body of any length may add to a proxy.
const BOUND: u64 = 16 * MIB;

/// An application that counts what it is sent, and sends as much as it is asked for.
async fn counting() -> App {
    App::wire(async move |mut wire: Wire| {
        while let Some(head) = wire.try_head().await {
            let size: u64 = head.line.split(['/', ' ']).nth(2).unwrap_or_default().parse().unwrap_or(0);
            let length: u64 = head.get("content-length").unwrap_or("0").parse().unwrap();
            let mut left = length;
            let mut buffer = vec![0; 256 * 1024];
            // What came with the head.
            while left > 0 {
                let count = read(&mut wire, &mut buffer, left).await;
                left -= count;
            }
            wire.send(format!("HTTP/1.1 200 OK\r\nx-took: {length}\r\ncontent-length: {size}\r\n\r\n")).await;
            let mut left = size;
            while left > 0 {
                let count = left.min(buffer.len() as u64) as usize;
                if wire.stream().write_all(&buffer[..count]).await.is_err() {
                    return;
                }
                left -= count as u64;
            }
        }
    })
    .await
}

async fn read(wire: &mut Wire, buffer: &mut [u8], most: u64) -> u64 {
    let most = most.min(buffer.len() as u64) as usize;
    let count = wire.take_or_read(&mut buffer[..most]).await;
    assert!(count > 0, "the connection ended within the body");
    count as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_of_a_gibibyte_is_streamed_in_constant_memory() {
    let size = if deep() { 1024 * MIB } else { 256 * MIB };
    let mut pair = Pair::start(counting().await, "http").await;
    let mut wire = pair.web.connect("orders").await;
    // The same once with little, so that what a first request needs is there.
    exchange(&mut wire, MIB).await;
    let before = (resident(pair.web.process()), resident(pair.orders.process()));
    exchange(&mut wire, size).await;
    let after = (resident(pair.web.process()), resident(pair.orders.process()));
    assert!(after.0 < before.0 + BOUND, "web: {} → {} KiB", before.0 >> 10, after.0 >> 10);
    assert!(after.1 < before.1 + BOUND, "orders: {} → {} KiB", before.1 >> 10, after.1 >> 10);
}

/// Sends so many bytes, and gets as many.
async fn exchange(wire: &mut Wire, size: u64) {
    wire.send(format!("PUT /{size} HTTP/1.1\r\nhost: orders\r\ncontent-length: {size}\r\n\r\n")).await;
    let buffer = vec![7; 256 * 1024];
    let mut left = size;
    while left > 0 {
        let count = left.min(buffer.len() as u64) as usize;
        wire.send(&buffer[..count]).await;
        left -= count as u64;
    }
    let head = wire.head().await;
    assert_eq!((head.status(), head.get("x-took")), (200, Some(size.to_string().as_str())), "{head:?}");
    let mut buffer = buffer;
    let mut left = size;
    while left > 0 {
        left -= read(wire, &mut buffer, left).await;
    }
}

/// Writes until the other side has taken nothing for a while; says how much it took.
async fn fill(stream: &mut tokio::net::TcpStream) -> u64 {
    let buffer = vec![7; 64 * 1024];
    let mut written = 0;
    let stalled = std::time::Duration::from_millis(700);
    while let Ok(count) = tokio::time::timeout(stalled, stream.write(&buffer)).await {
        written += count.unwrap() as u64;
        assert!(written < 512 * MIB, "nobody reads, and {written} bytes were taken");
    }
    written
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_reading_stops_the_writer_and_not_the_proxies() {
    let mut pair = Pair::start(counting().await, "http").await;
    let mut warm = pair.web.connect("orders").await;
    exchange(&mut warm, MIB).await;
    let before = (resident(pair.web.process()), resident(pair.orders.process()));
    let mut readers = Vec::new();
    for _ in 0..8 {
        let mut wire = pair.web.connect("orders").await;
        wire.send(format!("GET /{} HTTP/1.1\r\nhost: orders\r\n\r\n", 256 * MIB)).await;
        wire.head().await;
        readers.push(wire);
    }
    settled(&mut pair).await;
    let after = (resident(pair.web.process()), resident(pair.orders.process()));
    assert!(after.0 < before.0 + BOUND, "web: {} → {} KiB", before.0 >> 10, after.0 >> 10);
    assert!(after.1 < before.1 + BOUND, "orders: {} → {} KiB", before.1 >> 10, after.1 >> 10);
    drop(readers);
}

/// Waits until neither proxy takes or gives any more bytes.
async fn settled(pair: &mut Pair) {
    let mut last = (0, 0);
    let mut same = 0;
    within("memory settles", async {
        while same < 5 {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            let now = (resident(pair.web.process()) >> 16, resident(pair.orders.process()) >> 16);
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_stops_reading_stops_the_client_and_not_the_proxies() {
    let app = App::tcp(async move |mut stream: tokio::net::TcpStream| {
        let mut head = [0; 16];
        let _ = stream.read(&mut head).await;
        std::future::pending::<()>().await;
    })
    .await;
    for protocol in ["http", "tcp"] {
        let mut pair = Pair::start(App::saying("ok").await, protocol).await;
        pair.world.service("sink", protocol);
        let _sink = pair.world.workload("sink").serves("sink", app.address()).start().await;
        let client = pair.world.workload("client").calls("sink").start().await;
        let before = resident(pair.web.process());
        let mut client = client;
        let client_before = resident(client.process());
        let mut wire = client.connect("sink").await;
        wire.send("PUT / HTTP/1.1\r\nhost: sink\r\ncontent-length: 1000000000000\r\n\r\n").await;
        let mut stream = wire.into_stream();
        fill(&mut stream).await;
        let after = resident(client.process());
        assert!(after < client_before + BOUND, "{protocol}: {} → {} KiB", client_before >> 10, after >> 10);
        assert!(resident(pair.web.process()) < before + BOUND);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_came_and_went_leave_nothing() {
    let mut pair = Pair::start(App::saying("ok").await, "http").await;
    let round = async |pair: &Pair, count: usize| {
        let mut wires = Vec::new();
        for _ in 0..count {
            let mut wire = pair.web.connect("orders").await;
            wire.send("GET / HTTP/1.1\r\nhost: orders\r\n\r\n").await;
            assert_eq!(wire.head().await.status(), 200);
            wires.push(wire);
        }
    };
    let count = if deep() { 300 } else { 100 };
    round(&pair, count).await;
    let before = resident(pair.web.process());
    for _ in 0..if deep() { 20 } else { 5 } {
        round(&pair, count).await;
    }
    let after = resident(pair.web.process());
    assert!(after < before + BOUND, "{} → {} KiB", before >> 10, after >> 10);
    eventually("no connection is open", async || {
        let open = pair.web.metrics().await.sum("tulle_connections_active", &[("direction", "outbound")]);
        if open < 0.5 { Ok(()) } else { Err(open.to_string()) }
    })
    .await;
}

/// What a proxy holds that uses ten services of a mesh of so many.
async fn using_ten_of(services: usize) -> u64 {
    let world = World::strict().await;
    let service = |number: usize| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: {NAMESPACE}}}\nspec: {{ports: [{{name: main, port: 8080}}]}}\n"
        )
    };
    let services: Vec<String> = (0..services).map(service).collect();
    world.yaml("services.yaml", &services.join("---\n"));
    let used: Vec<String> = (0..10).map(|number| format!("s{number}")).collect();
    let web = used.iter().fold(world.workload("web"), |web, service| web.calls(service));
    let mut web = web.start().await;
    for service in &used {
        eventually(&format!("{service} is known"), async || {
            let mut wire = web.connect(service).await;
            wire.send("GET / HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n").await;
            let head = wire.head().await;
            // It is there, and has no endpoints.
            match head.get("x-tulle-error") {
                Some("no_healthy_endpoint") => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }
    resident(web.process())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_holds_what_it_uses_however_large_the_mesh_is() {
    let small = using_ten_of(10).await;
    let large = using_ten_of(if deep() { 10_000 } else { 1000 }).await;
    assert!(large < small + 2 * MIB, "{} → {} KiB", small >> 10, large >> 10);
    eprintln!("{} KiB in a mesh of ten services, {} KiB in the large one", small >> 10, large >> 10);
}
