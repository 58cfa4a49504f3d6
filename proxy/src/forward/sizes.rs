//! What a connection's task weighs, which most of a mesh's connections do for nothing but being open.

use std::sync::Arc;

use super::{Worker, inbound, outbound};
use crate::accept::Accepted;
use crate::io::{Io, Replay, TlsStream};

fn of<'a, F: Future>(_: impl Fn(&'a Arc<Worker>, Accepted) -> F) -> usize {
    size_of::<F>()
}

#[test]
fn an_idle_connections_task_is_small() {
    let (outbound, inbound) = (of(outbound::serve), of(inbound::serve));
    // A few bytes more are no matter; a stream or a request's state in it is, and belongs into a box.
    assert!(outbound <= 1664, "{outbound} bytes");
    assert!(inbound <= 1296, "{inbound} bytes");
    let tls = size_of::<TlsStream<Replay<tokio::net::TcpStream>>>();
    assert!(tls <= 1280, "{tls} bytes: rustls's session is 1088 of them");
    assert_eq!(size_of::<Io>(), size_of::<usize>());
}
