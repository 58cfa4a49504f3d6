//! When a proxy ends: who says so, and for how long its drain goes on.
//!
//! The drain begins with SIGTERM, SIGINT, `/shutdown` or `/drain`, whichever comes first, and is over at the latest a grace
//! period after that. It ends before once nobody is served any more, and nobody new has come for a while. The first three say that
//! the application ends too, or has ended. `/drain` says only that it is about to: its last calls still leave through this proxy, so
//! that the proxy stays until nothing listens where the application did, or until it is told by one of the others. Called
//! by `app`.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::config::Config;
use crate::drain;

/// Without a connection for so long, all have heard: an endpoint that is not ready any more is known to be so within a second, and
/// applications come back sooner than that.
const LULL: Duration = Duration::from_secs(1);
/// How often it is looked whether the application is still there.
const LOOK: Duration = Duration::from_millis(500);
/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(1);

/// By whom the proxy may be told that its application ends.
#[derive(Debug)]
pub(super) struct Told {
    terminate: Signal,
    interrupt: Signal,
    /// `/shutdown`.
    stop: watch::Receiver<bool>,
}

/// Returns when the proxy is to end, whatever it still serves.
pub(super) async fn wait(config: &Config, drain: &drain::Signal, mut told: Told) {
    let ends = async {
        told.wait().await;
        drain.start();
    };
    let over = async {
        let begun = drain.started().await;
        tracing::info!(grace = ?config.drain_grace, "draining");
        tokio::time::sleep_until(begun + config.drain_grace).await;
    };
    let done = async {
        let gone = async {
            drain.started().await;
            application_gone(config).await;
        };
        tokio::select! {
            () = ends => {}
            () = gone => {}
        }
        drain.quiet(LULL).await;
    };
    tokio::select! {
        () = done => tracing::info!("drained"),
        () = over => match drain.left() {
            0 => tracing::info!("drained"),
            left => tracing::warn!(left, "the grace period is over; closing what is left"),
        },
    }
}

/// Returns once nothing listens any more where the applications are that this proxy stands before; never, where that is not known.
async fn application_gone(config: &Config) {
    let applications: Vec<SocketAddr> = config.inbound_ports.iter().map(|port| port.application).collect();
    let known = config.namespace_socket.is_none() && config.inbound_listen.is_empty();
    if !known || applications.is_empty() {
        return std::future::pending().await;
    }
    loop {
        let mut gone = true;
        for application in &applications {
            gone &= is_gone(*application, PATIENCE).await;
        }
        if gone {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether nothing listens there: a connection is refused. One that does not come about otherwise says nothing of that: the application may be
/// too busy to accept it, or this machine lack a port for it.
async fn is_gone(application: SocketAddr, patience: Duration) -> bool {
    match tokio::time::timeout(patience, TcpStream::connect(application)).await {
        Ok(Err(error)) => error.kind() == ErrorKind::ConnectionRefused,
        Ok(Ok(_)) | Err(_) => false,
    }
}

// === impl Told ===

impl Told {
    /// # Errors
    /// When the process cannot have handlers of its own for the signals.
    pub(super) fn new(stop: watch::Receiver<bool>) -> std::io::Result<Self> {
        // Who writes more into a file than it may hold is ended, unless there is a handler: then it is an error, which costs lines of a log.
        drop(signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?);
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            stop,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.stop.wait_for(|stop| *stop) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpSocket;

    /// A port that is taken, and a listener on it if it is said how many connections may wait there.
    fn bound(backlog: Option<u32>) -> (SocketAddr, Box<dyn std::any::Any>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap();
        match backlog {
            None => (address, Box::new(socket)),
            Some(backlog) => (address, Box::new(socket.listen(backlog).unwrap())),
        }
    }

    #[tokio::test]
    async fn an_application_is_gone_where_connections_are_refused() {
        let (address, _held) = bound(None);
        assert!(is_gone(address, Duration::from_secs(60)).await);
        let (address, _held) = bound(Some(1));
        assert!(!is_gone(address, Duration::from_secs(60)).await);
    }

    #[tokio::test]
    async fn an_application_that_does_not_accept_is_not_gone() {
        let (address, _held) = bound(Some(1));
        // They fill its backlog: from then on, connections are neither made nor refused.
        let mut waiting = Vec::new();
        let patience = Duration::from_millis(100);
        while let Ok(made) = tokio::time::timeout(patience, TcpStream::connect(address)).await {
            waiting.push(made.unwrap());
        }
        assert!(!is_gone(address, patience).await);
    }

    #[tokio::test]
    async fn an_application_to_which_there_is_no_way_just_now_is_not_gone() {
        // A link-local address without its link: an error of this machine's.
        let address = "[fe80::1]:80".parse().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        assert!(!is_gone(address, PATIENCE).await);
    }
}
