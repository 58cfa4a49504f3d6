//! What `tulle tap` and `tulle top` ask for, and the lines that come.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use bytes::{Buf as _, BytesMut};
use http::StatusCode;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tulle_control_plane::tap::{Line, Of, Question, Side, question};
use tulle_proxy::telemetry::Reason;

use crate::duration;
use crate::http::Origin;

/// For the head of the answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The control plane says something every five seconds, though it be nothing.
const SILENCE: Duration = Duration::from_secs(20);
/// No line of ours is longer.
const MAX_LINE: usize = 256 << 10;
/// How much is read of why not.
const MAX_ERROR: usize = 4 << 10;

/// Whose requests, and which.
#[derive(Debug, clap::Args)]
pub(crate) struct Looking {
    /// Whose requests: a workload as NAMESPACE/NAME, or NAME with --namespace; or workload/…, service/… (of the workloads that
    /// are its endpoints) or namespace/NAME. Without it, those of all, or of --namespace.
    #[arg(value_name = "WHOSE")]
    whose: Option<String>,
    /// The namespace of names that say none.
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// Only what the workloads send, or only what they get.
    #[arg(long, value_enum, value_name = "DIRECTION")]
    direction: Option<Direction>,
    /// Only to this Service or backend: NAMESPACE/NAME or NAME, with `:PORT` only to that port. As the client's proxy knows it.
    #[arg(long, value_name = "SERVICE")]
    to: Option<String>,
    /// Only with this workload or service account (NAMESPACE/NAME or NAME) or SPIFFE ID at the other end.
    #[arg(long, value_name = "WHO")]
    peer: Option<String>,
    /// Only requests with this method.
    #[arg(long, value_name = "METHOD", value_parser = question::method)]
    method: Option<String>,
    /// Only requests whose path begins so.
    #[arg(long, value_name = "PREFIX", value_parser = question::path)]
    path: Option<String>,
    /// Only requests that this route took: NAMESPACE/NAME or NAME.
    #[arg(long, value_name = "ROUTE")]
    route: Option<String>,
    /// Only requests that were answered so: `404`, `5xx`, `500-504`; of gRPC, what its status stands for in HTTP.
    #[arg(long, value_name = "STATUS", value_delimiter = ',', value_parser = question::status)]
    status: Vec<String>,
    /// Only what a proxy answered, refused or gave up by itself, for this reason; `any`: for any.
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Option<String>,
    /// What each proxy shows in a second, at most: 1 to 1000; by default 100, of `top` 1000.
    #[arg(long, value_name = "NUMBER", value_parser = question::per_second)]
    max_rps: Option<u32>,
    /// End after so long.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    duration: Option<Duration>,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    control_plane: SocketAddr,
}

/// Where requests go, seen from the workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Direction {
    /// To it.
    #[value(alias = "in")]
    Inbound,
    /// From it.
    #[value(alias = "out")]
    Outbound,
    /// Both.
    Both,
}

/// The lines of a tap, until it is ended.
pub(crate) struct Stream {
    address: String,
    body: Incoming,
    read: BytesMut,
    until: Option<Instant>,
    /// When something was heard last.
    heard: Instant,
    interrupt: Signal,
    terminate: Signal,
}

fn namespace(text: &str) -> Result<String, String> {
    question::object(&format!("{text}/x")).map(|_| text.to_owned())
}

fn reason(text: &str) -> Result<String, String> {
    if text == "any" {
        return Ok("*".to_owned());
    }
    if Reason::from_code(text).is_some() {
        return Ok(text.to_owned());
    }
    let near = tulle_api::nearest(text, Reason::ALL.iter().map(|reason| reason.code()));
    let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
    Err(format!("there is no reason {text:?}{near}"))
}

// === impl Looking ===

impl Looking {
    /// As the control plane is asked; `per_second`: unless another rate is said.
    ///
    /// # Errors
    /// A name is none, or says no namespace.
    pub(crate) fn question(&self, per_second: u32) -> Result<Question> {
        let side = match self.direction {
            None | Some(Direction::Both) => None,
            Some(Direction::Inbound) => Some(Side::Inbound),
            Some(Direction::Outbound) => Some(Side::Outbound),
        };
        Ok(Question {
            of: self.of()?,
            side,
            method: self.method.clone(),
            path: self.path.clone(),
            service: self.named(self.to.as_deref(), "--to", question::service)?,
            route: self.named(self.route.as_deref(), "--route", question::object)?,
            peer: self.named(self.peer.as_deref(), "--peer", question::peer)?,
            statuses: self.status.clone(),
            reason: self.reason.clone(),
            fields: Vec::new(),
            per_second: self.max_rps.unwrap_or(per_second),
        })
    }

    /// Whether nothing is said of the direction.
    pub(crate) fn in_any_direction(&self) -> bool {
        self.direction.is_none()
    }

    /// When it ends.
    fn until(&self) -> Option<Instant> {
        self.duration.map(|duration| Instant::now() + duration)
    }

    fn of(&self) -> Result<Of> {
        let Some(whose) = &self.whose else {
            return Ok(self.namespace.clone().map_or(Of::All, Of::Namespace));
        };
        let (kind, name) = match whose.split_once('/') {
            Some((kind @ ("workload" | "wl" | "service" | "svc" | "namespace" | "ns"), name)) => (kind, name),
            _ => ("workload", whose.as_str()),
        };
        let qualified = |name| self.named(Some(name), kind, question::object).map(Option::unwrap_or_default);
        Ok(match kind {
            "namespace" | "ns" => Of::Namespace(namespace(name).map_err(anyhow::Error::msg)?),
            "service" | "svc" => Of::Service(qualified(name)?),
            _ => Of::Workload(qualified(name)?),
        })
    }

    /// A name in full.
    fn named(
        &self,
        name: Option<&str>,
        what: &str,
        parse: impl Fn(&str) -> Result<String, String>,
    ) -> Result<Option<String>> {
        let Some(name) = name else { return Ok(None) };
        let name = match (&self.namespace, name.contains('/')) {
            (_, true) => name.to_owned(),
            (Some(namespace), false) => format!("{namespace}/{name}"),
            (None, false) => bail!("{what}: of which namespace? say NAMESPACE/{name}, or add --namespace"),
        };
        parse(&name).map(Some).map_err(|error| anyhow::anyhow!("{what}: {error}"))
    }
}

// === impl Stream ===

impl Stream {
    /// Asks the control plane.
    ///
    /// # Errors
    /// It is not there, or refuses.
    pub(crate) async fn open(looking: &Looking, question: &Question) -> Result<Self> {
        let origin = Origin::new(looking.control_plane, None)?;
        let address = origin.address().to_owned();
        let answer = origin.open(&format!("/tap?{}", question.query()), TIMEOUT).await;
        let answer = answer
            .with_context(|| format!("no control plane's metrics port at {address} (see --control-plane)"))?;
        let (head, body) = answer.into_parts();
        if head.status != StatusCode::OK {
            let text = http_body_util::Limited::new(body, MAX_ERROR).collect().await;
            let text = text.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            bail!("{}", String::from_utf8_lossy(&text).trim());
        }
        Ok(Self {
            address,
            body,
            read: BytesMut::new(),
            until: looking.until(),
            heard: Instant::now(),
            interrupt: signal(SignalKind::interrupt()).context("SIGINT")?,
            terminate: signal(SignalKind::terminate()).context("SIGTERM")?,
        })
    }

    /// The next line; `Some(None)`: nothing has happened for a while. `None`: it was ended here. May be dropped and called again.
    ///
    /// # Errors
    /// The control plane ended it, is gone, or says what is not understood.
    pub(crate) async fn next(&mut self) -> Result<Option<Option<Line>>> {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line = self.read.split_to(end);
                self.read.advance(1);
                return self.line(&line).map(Some);
            }
            if self.read.len() > MAX_LINE {
                bail!("{} says what this `tulle` does not understand: a line without an end", self.address);
            }
            let until = self.until;
            let time_is_over = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let frame = tokio::select! {
                frame = tokio::time::timeout_at(self.heard + SILENCE, self.body.frame()) => frame,
                _ = self.interrupt.recv() => return Ok(None),
                _ = self.terminate.recv() => return Ok(None),
                () = time_is_over => return Ok(None),
            };
            match frame {
                Ok(Some(Ok(frame))) => {
                    self.heard = Instant::now();
                    if let Ok(data) = frame.into_data() {
                        self.read.extend_from_slice(&data);
                    }
                }
                Ok(Some(Err(_)) | None) => bail!(
                    "the control plane at {} has gone, and with it the tap; ask again once it is back",
                    self.address
                ),
                Err(_) => bail!(
                    "the control plane at {} has said nothing for {SILENCE:?}; does it hang, or the network?",
                    self.address
                ),
            }
        }
    }

    fn line(&self, line: &[u8]) -> Result<Option<Line>> {
        if line.is_empty() {
            return Ok(None);
        }
        match serde_json::from_slice(line) {
            Ok(Line::Over { why }) => {
                bail!("the control plane at {} ended the tap: {why}; ask again once it is back", self.address)
            }
            Ok(line) => Ok(Some(line)),
            Err(_) => bail!(
                "{} answers with what this `tulle` does not understand; is it another version?",
                self.address
            ),
        }
    }
}
