//! Connections that follow a route as a whole: those to a port with a TLSRoute or a TCPRoute.
//!
//! Decides to which Service such a connection goes, once, when it comes: by the server name of its TLS ClientHello if any
//! of the port's routes is about one, then by weight. What it carries is relayed as it is: TLS is never terminated, HTTP
//! never looked into, and without TLSRoutes nothing is waited for, so that servers may speak first. Whoever has no route is refused, never sent to the Service itself.
//! Called by `outbound`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;

use super::context::Worker;
use super::fault::Fault;
use super::outbound::{self, Connected};
use super::record::ConnectionRecord;
use super::sniff::{self, Sniffed};
use super::target::{self, Target};
use crate::detect::{self, Detection};
use crate::io::{Io, Replay};
use crate::policy::Name;
use crate::route::{Backend, Streams};
use crate::telemetry::Reason;
use crate::telemetry::metrics::{DetectResult, Direction};

/// Serves one connection to `service`, `<namespace>/<name>:<port>`, until it ends; it was accepted `at`.
pub(super) async fn serve(
    worker: &Arc<Worker>,
    mut stream: TcpStream,
    (client, at): (SocketAddr, Instant),
    streams: &Streams,
    service: &str,
) {
    let mut record =
        ConnectionRecord { service, ..ConnectionRecord::new(worker, Direction::Outbound, client, at) };
    let sniffed = if streams.ask_for_names() {
        let patience = Some(worker.proxy.settings.http1.head_timeout);
        match sniff::sniff(&mut stream, detect::detect_tls_alone, patience, worker.last_word()).await {
            Ok(sniffed) => sniffed,
            Err(_) => return,
        }
    } else {
        Sniffed { detection: Detection::Opaque, result: DetectResult::Declared, head: Bytes::new() }
    };
    worker.metrics.detect(sniffed.result, sniff::protocol(&sniffed.detection), record.started.elapsed());
    record.detected = Some(sniffed.result);
    if sniffed.result == DetectResult::Drained {
        return record.given_up(worker, sniffed.head.len());
    }
    // Opened ahead of need, or to see whether the port is open.
    if sniffed.is_nothing() {
        return;
    }
    let server_name = match &sniffed.detection {
        Detection::Tls(hello) => hello.sni.as_deref(),
        _ => None,
    };
    record.authority = server_name.unwrap_or_default();
    let io = Io::replay(Replay::new(sniffed.head.clone(), stream));
    // Held as long as the connection lives, so that the backend is not forgotten.
    let mut to = None;
    let (route, server) = match streams.find(server_name) {
        None => (None, Err(nobody(&sniffed))),
        Some(route) => match outbound::choose(&route.name, &route.backends) {
            Err(fault) => (Some((route, None)), Err(fault)),
            Ok(backend) => (Some((route, Some(backend))), connect(worker, client, backend, &mut to).await),
        },
    };
    if let Some((route, backend)) = route {
        record.route = &route.label;
        record.backend = backend.map_or("", |backend| &backend.label);
    }
    outbound::relay(worker, io, record, server).await;
}

/// Why no route takes a connection.
fn nobody(sniffed: &Sniffed) -> Fault {
    let what = match &sniffed.detection {
        Detection::Tls(hello) => match &hello.sni {
            Some(name) => format!("no TLSRoute is for the server name {name}"),
            None => "the client's TLS names no server, and TLSRoutes go by that".to_owned(),
        },
        _ if sniffed.result == DetectResult::Timeout => {
            return Fault::unsent(
                Reason::DetectTimeout,
                "no TLS ClientHello, by whose server name TLSRoutes go",
            );
        }
        _ => "it is not TLS, by whose server name TLSRoutes go".to_owned(),
    };
    Fault::unsent(Reason::RouteNotFound, what)
}

async fn connect(
    worker: &Arc<Worker>,
    client: SocketAddr,
    backend: &Backend,
    to: &mut Option<Target>,
) -> Result<Connected, Fault> {
    let service = target::service(worker, &backend.service).await?;
    outbound::connect(worker, client, to.insert(Target::Service(service, backend.port)), Name::None).await
}

#[cfg(test)]
mod tests;
