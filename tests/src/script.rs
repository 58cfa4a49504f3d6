//! An application that does what requests ask of it, step by step, and tells how often it was asked (R4).

use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::Wire;
use crate::app::App;

/// When each request was seen, by its path, and what its `grpc-timeout` or `x-deadline` said.
pub type Seen = Arc<Mutex<HashMap<String, Vec<(Instant, String)>>>>;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// Takes a visit down, and tells which step of the script it is for.
pub fn step(seen: &Seen, path: &str, script: &str, told: Option<&str>) -> String {
    let mut all = seen.lock().unwrap();
    let visits = all.entry(path.to_owned()).or_default();
    let step = script.split(',').nth(visits.len()).unwrap_or("200").to_owned();
    visits.push((Instant::now(), told.unwrap_or_default().to_owned()));
    step
}

/// All visits for a path.
pub fn visits(seen: &Seen, path: &str) -> Vec<(Instant, String)> {
    seen.lock().unwrap().get(path).cloned().unwrap_or_default()
}

/// Does with the nth request for a path what is nth in its field `x-script`.
pub fn scripted(listener: TcpListener, seen: &Seen) -> App {
    let seen = Arc::clone(seen);
    App::tcp_on(listener, move |stream| {
        let (seen, mut wire) = (Arc::clone(&seen), Wire::new(stream));
        async move {
            while let Some(head) = wire.try_head().await {
                let path = head.line.split(' ').nth(1).unwrap().to_owned();
                let step = step(&seen, &path, head.get("x-script").unwrap_or("200"), head.get("x-deadline"));
                if step == "echo" {
                    echo(&mut wire).await;
                    continue;
                }
                wire.body(&head).await;
                let answer = match &*step {
                    // With a byte of an answer, so that it is not for its own proxy to send it again.
                    "reset" => return wire.send("H").await,
                    "silent" => return drop(wire.to_end_or_reset().await),
                    "stalls" => {
                        wire.send(format!("{CHUNKED}2\r\nok\r\n")).await;
                        return drop(wire.to_end_or_reset().await);
                    }
                    "drips" => {
                        wire.send(CHUNKED).await;
                        for _ in 0..6 {
                            tokio::time::sleep(Duration::from_millis(500)).await;
                            wire.send("1\r\nx\r\n").await;
                        }
                        "0\r\n\r\n".to_owned()
                    }
                    status => {
                        let (status, after) = status.split_once('+').unwrap_or((status, ""));
                        let after = if after.is_empty() {
                            String::new()
                        } else {
                            format!("retry-after: {after}\r\n")
                        };
                        format!("HTTP/1.1 {status} Said\r\n{after}content-length: 0\r\n\r\n")
                    }
                };
                if wire.try_send(answer).await.is_err() {
                    return;
                }
            }
        }
    })
}

/// Sends each chunk back as soon as it has come.
async fn echo(wire: &mut Wire) {
    wire.send(CHUNKED).await;
    loop {
        let size = wire.line().await;
        let length = usize::from_str_radix(size.trim(), 16).unwrap();
        let rest = wire.exactly(length + 2).await;
        wire.send([size.trim().as_bytes(), b"\r\n", &rest].concat()).await;
        if length == 0 {
            return;
        }
    }
}
