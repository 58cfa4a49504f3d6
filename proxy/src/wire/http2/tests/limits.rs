//! What a client may not do, and what it may.

use std::sync::Arc;

use http::{Request, Response, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::*;
use super::pair;
use crate::drain;
use crate::io::{Io, Meter};
use crate::wire::Body;

const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

/// A client of a server that answers everything at once.
struct Client {
    stream: TcpStream,
    /// What the server has had of it.
    meter: Arc<Meter>,
    serving: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Client {
    async fn new() -> Self {
        let (stream, server) = pair().await;
        let mut io = Io::tcp(server);
        let meter = io.meter();
        let serving = tokio::spawn(async move {
            let (_signal, drain) = drain::channel();
            let answer = |_| async { Response::new(Body::empty()) };
            serve(io, &Limits::default(), answer, drain.draining()).await
        });
        let mut client = Self { stream, meter, serving };
        client.say(HELLO).await;
        client
    }

    /// Time that is paused does not go on before the server has read it.
    async fn say(&mut self, bytes: &[u8]) {
        let due = self.meter.received() + bytes.len() as u64;
        self.stream.write_all(bytes).await.unwrap();
        while self.meter.received() < due && !self.serving.is_finished() {
            tokio::task::yield_now().await;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Kinds and payloads of all that these bytes are.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        frames.push((head[3], &rest[..length]));
        bytes = &rest[length..];
    }
    frames
}

/// `:method: GET`, `:scheme: http`, `:path: /`.
const GET: [u8; 3] = [0x82, 0x86, 0x84];

#[tokio::test]
async fn floods_that_cost_us_more_than_their_sender_end_the_connection() {
    // CVE-2023-44487.
    let asked_and_reset: Vec<u8> = (0..200)
        .flat_map(|i| {
            let stream = 1 + 2 * i;
            [frame(HEADERS, 0x5, stream, &GET), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
        })
        .collect();
    // CVE-2024-27316.
    let mut heads_without_end = frame(HEADERS, 0x1, 1, &GET);
    heads_without_end.extend(frame(CONTINUATION, 0, 1, &[]).repeat(1000));
    for flood in [asked_and_reset, heads_without_end] {
        let Client { mut stream, serving, .. } = Client::new().await;
        stream.write_all(&flood).await.unwrap();
        let mut said = Vec::new();
        // What it did not read has the kernel reset the connection after its last word.
        drop(stream.read_to_end(&mut said).await);
        assert!(serving.await.unwrap().is_err());
        let last = frames(&said).pop();
        // ENHANCE_YOUR_CALM.
        assert!(matches!(last, Some((GOAWAY, [_, _, _, _, 0, 0, 0, 11, ..]))), "{last:?}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_large_is_answered_and_its_connection_goes_on() {
    let (client, server) = pair().await;
    tokio::spawn(async move {
        let (_signal, drain) = drain::channel();
        let answer = |_| async { Response::new(Body::empty()) };
        serve(Io::tcp(server), &Limits::default(), answer, drain.draining()).await
    });
    let (mut requests, connection) = h2::client::handshake(client).await.unwrap();
    tokio::spawn(connection);
    for (fields, status) in [(200, 431), (100, 200)] {
        let mut request = Request::get("http://orders/").version(Version::HTTP_2).body(()).unwrap();
        for i in 0..fields {
            let name: http::HeaderName = format!("field-{i}").parse().unwrap();
            request.headers_mut().insert(name, "a".repeat(1024).parse().unwrap());
        }
        let (response, _) = requests.send_request(request, true).unwrap();
        assert_eq!(response.await.unwrap().status(), status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_is_asked_whether_it_is_there_only_when_it_says_nothing() {
    let every = Limits::default().keep_alive;
    let mut client = Client::new().await;
    let mut said = vec![0; 4096];
    for _ in 0..30 {
        tokio::time::sleep(every.mul_f64(0.6)).await;
        client.say(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])).await;
    }
    let before = client.stream.read(&mut said).await.unwrap();
    assert!(frames(&said[..before]).iter().all(|(kind, _)| *kind != PING));
    tokio::time::sleep(every.mul_f64(1.9)).await;
    let asked = client.stream.read(&mut said).await.unwrap();
    let pings: Vec<_> = frames(&said[..asked]).into_iter().filter(|(kind, _)| *kind == PING).collect();
    assert_eq!(pings.len(), 1);
    // An answer keeps it, for as long as that was not too long ago.
    client.say(&frame(PING, 1, 0, pings[0].1)).await;
    let answered = tokio::time::Instant::now();
    assert!(matches!(client.serving.await.unwrap(), Err(Error::Silent(_))));
    assert!(answered.elapsed() > every && answered.elapsed() <= every * 3);
}
