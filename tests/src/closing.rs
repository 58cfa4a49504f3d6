//! A server that closes connections which have idled for a second, and clients that come back after about that time (R3).
//!
//! A proxy takes 80 % of that second, from when it has seen the end of an answer. What of a POST comes to a server at the moment when it closes is
//! lost by the rules of HTTP, whoever sends it, so that a proxy which the machine keeps from the processor for a fifth of a second between the
//! server's answer and its own look at that would lose one, and rightly. Therefore the server's second begins when its client has the
//! answer ([`Closing`]): by then both proxies have seen it, however late.

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::Wire;
use crate::app::App;
use crate::load::{Dial, Seen};

/// Clients and rounds in full: 20,000 POSTs and more GETs.
pub const LONG: (u64, u64) = (800, 52);
/// In short.
pub const SHORT: (u64, u64) = (64, 8);

/// What the server and its clients know of each other.
#[derive(Clone, Debug, Default)]
pub struct Closing {
    /// The POSTs that the server has seen.
    seen: Seen,
    /// By client, how many answers it has.
    answered: Arc<Mutex<HashMap<u64, watch::Sender<u64>>>>,
}

// === impl Closing ===

impl Closing {
    fn answers(&self, lane: u64) -> watch::Sender<u64> {
        self.answered.lock().expect("no panic").entry(lane).or_default().clone()
    }

    /// Returns a second after the client that asked for this has its answer; a second from now where nobody tells.
    async fn over(&self, path: &str) {
        let mut numbers = path.split('/').skip(1).map(str::parse::<u64>);
        if let (Some(Ok(lane)), Some(Ok(round))) = (numbers.next(), numbers.next()) {
            let mut answers = self.answers(lane).subscribe();
            // The sender lives in self.
            let _closed = answers.wait_for(|answers| *answers > round).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// The server.
pub fn closes_after_a_second(listener: TcpListener, closing: &Closing) -> App {
    let closing = closing.clone();
    App::tcp_on(listener, move |stream| {
        let (closing, mut wire) = (closing.clone(), Wire::new(stream));
        async move {
            let mut path = String::new();
            loop {
                let head = tokio::select! {
                    biased;
                    head = wire.try_head() => head,
                    () = closing.over(&path) => None,
                };
                let Some(head) = head else { return };
                wire.body(&head).await;
                let mut words = head.line.split(' ');
                let method = words.next().unwrap();
                words.next().unwrap().clone_into(&mut path);
                closing.seen.note(method, &path);
                if wire.try_send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
                    return;
                }
            }
        }
    })
}

/// So many clients ask so often, each on a connection of its own.
///
/// # Panics
/// If one is not answered, or a POST was served twice or not at all.
pub async fn around_the_end(to: &Dial, closing: &Closing, lanes: u64, rounds: u64) {
    let mut tasks = JoinSet::new();
    for lane in 0..lanes {
        let (mut wire, answers) =
            (Wire::new(to.connect().await.expect("a connection")), closing.answers(lane));
        tasks.spawn(async move {
            let mut posts = 0;
            for round in 0..rounds {
                // POSTs from the third on: by then it is known when the server closes.
                let (method, rest) = if round < 2 || lane % 2 == 0 {
                    ("GET", "\r\n")
                } else {
                    posts += 1;
                    ("POST", "content-length: 5\r\n\r\nhello")
                };
                wire.send(format!("{method} /{lane}/{round} HTTP/1.1\r\nhost: orders\r\n{rest}")).await;
                let (head, body) = wire.response().await;
                assert_eq!(
                    (head.status(), &body[..]),
                    (200, &b"ok"[..]),
                    "{method} {lane} {round}: {head:?}"
                );
                answers.send_replace(round + 1);
                tokio::time::sleep(Duration::from_millis(950 + (lane * 7 + round * 31) % 100)).await;
            }
            posts
        });
    }
    let posts: usize = tasks.join_all().await.into_iter().sum();
    let seen = &closing.seen;
    assert_eq!((seen.count(), seen.twice()), (posts, Vec::new()));
}
