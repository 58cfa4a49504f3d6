//! A server that closes connections which have idled for a second, and clients that come back after about that time (R3).

use std::net::TcpListener;
use std::time::Duration;

use tokio::task::JoinSet;

use crate::Wire;
use crate::app::App;
use crate::load::{Dial, Seen};

/// Clients and rounds in full: 20,000 POSTs and more GETs.
pub const LONG: (u64, u64) = (800, 52);
/// In short.
pub const SHORT: (u64, u64) = (64, 8);

/// The server; `seen` is told of its POSTs.
pub fn closes_after_a_second(listener: TcpListener, seen: &Seen) -> App {
    let seen = seen.clone();
    App::tcp_on(listener, move |stream| {
        let (seen, mut wire) = (seen.clone(), Wire::new(stream));
        async move {
            while let Ok(Some(head)) = tokio::time::timeout(Duration::from_secs(1), wire.try_head()).await {
                wire.body(&head).await;
                let mut words = head.line.split(' ');
                seen.note(words.next().unwrap(), words.next().unwrap());
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
pub async fn around_the_end(to: &Dial, seen: &Seen, lanes: u64, rounds: u64) {
    let mut tasks = JoinSet::new();
    for lane in 0..lanes {
        let mut wire = Wire::new(to.connect().await.expect("a connection"));
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
                tokio::time::sleep(Duration::from_millis(950 + (lane * 7 + round * 31) % 100)).await;
            }
            posts
        });
    }
    let posts: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!((seen.count(), seen.twice()), (posts, Vec::new()));
}
