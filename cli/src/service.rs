//! The demo's small services: `tulle internal service`.
//!
//! One answers every GET with a JSON object of who it is and what its upstream said, so that `curl` shows the way of
//! a request. It knows nothing of the mesh: it listens where it was told and calls plain `http://orders:8080`, or its
//! proxy's port, as any application would. A failing upstream's status is passed on, never made good.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::http::Origin;

/// How long a service waits for its upstream. The demo's driver waits longer.
const UPSTREAM_TIMEOUT: Duration = Duration::from_secs(5);

/// What a service passes on to its upstream: the request's place in a trace, and who began it.
const PASSED_ON: &[&str] = &[
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "x-request-id",
    "user-agent",
];

#[derive(Debug, clap::Args)]
pub(crate) struct ServiceArgs {
    /// The name to answer with.
    #[arg(long)]
    name: String,
    /// The version to answer with.
    #[arg(long)]
    version: String,
    /// Listen here. Without it standard input is the listening socket, as from inetd.
    #[arg(long)]
    listen: Option<SocketAddr>,
    /// Standard input is a listening socket as well.
    #[arg(long, requires = "listen")]
    front: bool,
    /// The service to call for each request, by its `Host` field, and the address to dial where its name is not known.
    #[arg(long, value_name = "HOST[=ADDRESS]", value_parser = upstream)]
    upstream: Option<(String, Option<SocketAddr>)>,
}

#[derive(Debug)]
struct Service {
    name: String,
    version: String,
    upstream: Option<Origin>,
}

/// Serves until the process is ended.
pub(crate) async fn run(arguments: ServiceArgs) -> Result<()> {
    let own = listener(arguments.listen)?;
    let front = if arguments.front { Some(listener(None)?) } else { None };
    let upstream = match arguments.upstream {
        Some((host, Some(address))) => Some(Origin::new(address, Some(&host))?),
        Some((host, None)) => Some(Origin::named(&host)?),
        None => None,
    };
    let service = Arc::new(Service { name: arguments.name, version: arguments.version, upstream });
    if let Some(front) = front {
        tokio::spawn(serve(front, Arc::clone(&service)));
    }
    serve(own, service).await
}

fn upstream(text: &str) -> Result<(String, Option<SocketAddr>)> {
    let Some((host, address)) = text.split_once('=') else {
        let host = text.strip_prefix("http://").unwrap_or(text);
        return Ok((host.to_owned(), None));
    };
    let address = address.parse().with_context(|| format!("`{address}` is not an <ip>:<port>"))?;
    Ok((host.to_owned(), Some(address)))
}

fn listener(listen: Option<SocketAddr>) -> Result<tokio::net::TcpListener> {
    let listener = match listen {
        Some(address) => TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?,
        None => {
            let input = rustix::io::dup(std::io::stdin()).context("standard input is closed")?;
            TcpListener::from(input)
        }
    };
    listener.set_nonblocking(true).context("standard input is not a socket; give --listen ADDRESS")?;
    tokio::net::TcpListener::from_std(listener)
        .context("standard input is not a listening socket; give --listen ADDRESS")
}

async fn serve(listener: tokio::net::TcpListener, service: Arc<Service>) -> Result<()> {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: what is open goes on, and the next accept may succeed.
                eprintln!("{}: accept: {error}", service.name);
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let service = Arc::clone(&service);
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let answer = service_fn(|request| {
                let service = Arc::clone(&service);
                async move { Ok::<_, Infallible>(service.answer(request).await) }
            });
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                eprintln!("{}: a connection ended: {error}", service.name);
            }
        });
    }
}

// === impl Service ===

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        let (status, body) = self.status_and_body(path, request.headers()).await;
        let mut response = Response::new(Full::new(Bytes::from(format!("{body:#}\n"))));
        *response.status_mut() = status;
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        response
    }

    async fn status_and_body(&self, path: &str, headers: &HeaderMap) -> (StatusCode, Value) {
        let mut body = json!({ "service": self.name, "version": self.version, "path": path });
        let Some(upstream) = &self.upstream else { return (StatusCode::OK, body) };
        let mut passed_on = HeaderMap::new();
        for &name in PASSED_ON {
            for value in headers.get_all(name) {
                passed_on.append(HeaderName::from_static(name), value.clone());
            }
        }
        match upstream.get(path, &passed_on, UPSTREAM_TIMEOUT).await {
            Ok(answer) => {
                let text = String::from_utf8_lossy(answer.body());
                body["upstream"] = serde_json::from_str(&text).unwrap_or_else(|_| Value::from(text.trim()));
                if let Some(reason) = answer.headers().get("x-tulle-error") {
                    body["error"] = Value::from(String::from_utf8_lossy(reason.as_bytes()));
                }
                let status = answer.status();
                (if status.is_success() { StatusCode::OK } else { status }, body)
            }
            Err(error) => {
                eprintln!("{}: upstream: {error:#}", self.name);
                body["error"] = Value::from(format!("{error:#}"));
                (StatusCode::BAD_GATEWAY, body)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn start(name: &str, upstream: Option<SocketAddr>) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = upstream.map(|address| Origin::new(address, Some("next:8080")).unwrap());
        let service = Service { name: name.to_owned(), version: "v1".to_owned(), upstream };
        tokio::spawn(serve(listener, Arc::new(service)));
        address
    }

    async fn get(address: SocketAddr) -> (StatusCode, Value) {
        let origin = Origin::new(address, None).unwrap();
        let answer = origin.get("/cart?item=1", &HeaderMap::new(), Duration::from_secs(5)).await.unwrap();
        (answer.status(), serde_json::from_slice(answer.body()).unwrap())
    }

    #[tokio::test]
    async fn the_answer_names_every_service_on_the_way() {
        let payments = start("payments", None).await;
        let web = start("web", Some(payments)).await;
        let (status, body) = get(web).await;
        assert_eq!(status, 200);
        let payments = json!({ "service": "payments", "version": "v1", "path": "/cart?item=1" });
        let web = json!({ "service": "web", "version": "v1", "path": "/cart?item=1", "upstream": payments });
        assert_eq!(body, web);
    }

    #[tokio::test]
    async fn an_upstream_that_is_not_there_is_502_and_its_own_error_passes_on() {
        let unused = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let orders = start("orders", Some(unused)).await;
        let web = start("web", Some(orders)).await;
        let (status, body) = get(web).await;
        assert_eq!(status, 502);
        assert!(body["upstream"]["error"].as_str().unwrap().contains("connect"), "{body}");
    }
}
