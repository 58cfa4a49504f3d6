//! The access log: one line per request, or per connection that is not HTTP, on standard error.
//!
//! Decides which records are written, and in which form ([`tulle_api::AccessLogFormat`]), by what is said of it ([`Said`]): by the
//! process's own settings, before the policies that hold for a request, before the mesh. Whether a record is written is decided before anything of it is. Written by hand into the worker's queue
//! ([`Lines`]): no allocation per record and no detour through `tracing`. The queue never waits for a reader; see there. What
//! is logged never holds headers, bodies or the query of a path, which may be secret, and no form lets a value end its line
//! or its field.

mod apache;
mod ecs;
mod filter;
mod json;
mod template;
mod ways;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tulle_api::AccessLogFormat;

use self::filter::Holds;
pub use self::filter::{Errors, Said, Share, Statuses};
use self::ways::Ways;
use super::lines::Lines;
use super::metrics::{Direction, TlsKind};
use super::reason::Reason;
use super::trace::{SpanId, TraceId};

/// The access log of one worker thread. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct AccessLog(Option<Arc<Log>>);

#[derive(Debug)]
struct Log {
    lines: Arc<Lines>,
    /// What the process's own settings say, if anything.
    own: Option<Said>,
    /// The sequence that samples are drawn by.
    draws: AtomicU64,
    /// Locked by its own worker only.
    ways: Mutex<Ways>,
}

/// One request, or one connection that is not HTTP. What is empty, `None` or unknown is left out.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// When it ended.
    pub time: SystemTime,
    /// Which side.
    pub direction: Direction,
    /// `HTTP/1.1`, `HTTP/2`, `gRPC`, `TCP` or `TLS`.
    pub protocol: &'a str,
    /// That of HTTP, if it is HTTP.
    pub version: Option<http::Version>,
    /// The request's method, as it came.
    pub method: &'a str,
    /// The request's path; a query is cut off.
    pub path: &'a str,
    /// The request's Host or `:authority`.
    pub authority: &'a str,
    /// The response's status; `None` if there was none.
    pub status: Option<u16>,
    /// The `grpc-status`.
    pub grpc_status: Option<u32>,
    /// If the proxy made the answer, refused, or gave up.
    pub reason: Option<Reason>,
    /// Who did, as in `x-tulle-error-by`; may be the other proxy.
    pub by: &'a str,
    /// Details for people, such as the error that lies behind the reason.
    pub detail: &'a str,
    /// The trace that it belongs to.
    pub trace_id: Option<TraceId>,
    /// The proxy's own span in it.
    pub span_id: Option<SpanId>,
    /// Who opened the connection.
    pub client: Option<SocketAddr>,
    /// The client's SPIFFE ID.
    pub source: &'a str,
    /// The server's SPIFFE ID.
    pub destination: &'a str,
    /// `<namespace>/<name>:<port>` of the service that was dialled.
    pub service: &'a str,
    /// `<namespace>/<name>` of the route that matched.
    pub route: &'a str,
    /// `<namespace>/<name>:<port>` of the backend that was chosen.
    pub backend: &'a str,
    /// What became of the request's session, as in `tulle_sessions_total`.
    pub session: &'a str,
    /// How it was found that a connection is not HTTP, as in `tulle_detect_total`.
    pub detected: &'a str,
    /// Where it was sent.
    pub endpoint: Option<SocketAddr>,
    /// The rule that decided, `<namespace>/<policy>/<rule>`.
    pub rule: &'a str,
    /// The rule in dry run that would have refused what was let in, or the policy where no rule of it would have let it in.
    pub would_deny: &'a str,
    /// Whose token it brought, where that was taken.
    pub issuer: &'a str,
    /// On the leg between workloads.
    pub tls: TlsKind,
    /// Body bytes (connections: all bytes) from the client.
    pub bytes_in: u64,
    /// Body bytes (connections: all bytes) to the client.
    pub bytes_out: u64,
    /// From the first byte of the head, or accept, until the end.
    pub duration: Duration,
    /// The proxy's own part of it, if known.
    pub processing: Option<Duration>,
    /// How often it was sent; 0 if never.
    pub attempts: u32,
    /// The accepted connection, unique in this process.
    pub connection: u64,
}

// === impl AccessLog ===

impl AccessLog {
    pub(super) fn new(lines: Arc<Lines>, own: Said) -> Self {
        let (own, draws) = ((!own.is_empty()).then_some(own), AtomicU64::new(0));
        Self(Some(Arc::new(Log { lines, own, draws, ways: Mutex::default() })))
    }

    /// One that writes nothing.
    pub fn disabled() -> Self {
        Self(None)
    }

    /// Whether a record might be written: lets the caller spare the work of gathering one.
    pub fn is_enabled(&self) -> bool {
        self.0.is_some()
    }

    /// Writes a record, if it is one of those that are wanted. What the process's own settings leave open is said by these,
    /// the first first.
    pub fn write(&self, record: &Record<'_>, [first, second, third, fourth]: [Option<&Said>; 4]) {
        let Some(log) = &self.0 else { return };
        let holds = Holds::of([log.own.as_ref(), first, second, third, fourth]);
        if holds.has(record, || log.draw(record)) {
            log.lines.append(|out| record.write(holds.format, out, &log.ways));
        }
    }
}

// === impl Log ===

impl Log {
    /// By chance, and the same for all records of a trace: what one proxy writes of it the others write too.
    fn draw(&self, record: &Record<'_>) -> u32 {
        // The last digits are random in every version of the header (W3C Trace Context, Level 2, section 3.2.2.3).
        let last = record.trace_id.map(|trace| u128::from_be_bytes(trace.to_bytes()) as u32);
        last.unwrap_or_else(|| {
            // SplitMix64 (Steele, Lea, Flood, “Fast splittable pseudorandom number generators”, OOPSLA 2014).
            const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
            let mut drawn = self.draws.fetch_add(GAMMA, Relaxed).wrapping_add(GAMMA);
            drawn = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            drawn = (drawn ^ (drawn >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (drawn >> 32) as u32
        })
    }
}

// === impl Record ===

impl Default for Record<'_> {
    fn default() -> Self {
        Self {
            time: UNIX_EPOCH,
            direction: Direction::Inbound,
            protocol: "",
            version: None,
            method: "",
            path: "",
            authority: "",
            status: None,
            grpc_status: None,
            reason: None,
            by: "",
            detail: "",
            trace_id: None,
            span_id: None,
            client: None,
            source: "",
            destination: "",
            service: "",
            route: "",
            backend: "",
            session: "",
            detected: "",
            endpoint: None,
            rule: "",
            would_deny: "",
            issuer: "",
            tls: TlsKind::Unknown,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            processing: None,
            attempts: 0,
            connection: 0,
        }
    }
}

impl Record<'_> {
    /// Appends the record as one line.
    fn write(&self, format: &AccessLogFormat, out: &mut Vec<u8>, ways: &Mutex<Ways>) {
        match format {
            AccessLogFormat::Json => self.write_json(out, &mut ways.lock()),
            AccessLogFormat::Apache => self.write_apache(out),
            AccessLogFormat::Ecs => self.write_ecs(out),
            AccessLogFormat::Template(pieces) => self.write_template(pieces, out),
            AccessLogFormat::None => {}
        }
    }

    /// The path without its query.
    pub(super) fn path_alone(&self) -> &str {
        memchr::memchr(b'?', self.path.as_bytes()).map_or(self.path, |query| &self.path[..query])
    }

    /// The status by which requests of all protocols are compared: gRPC's, where it says one, as HTTP has it
    /// (google.rpc.Code, "HTTP Mapping").
    pub(super) fn common_status(&self) -> Option<u16> {
        match self.grpc_status {
            None | Some(0) => self.status,
            Some(1) => Some(499),
            Some(3 | 9 | 11) => Some(400),
            Some(4) => Some(504),
            Some(5) => Some(404),
            Some(6 | 10) => Some(409),
            Some(7) => Some(403),
            Some(8) => Some(429),
            Some(12) => Some(501),
            Some(14) => Some(503),
            Some(16) => Some(401),
            // UNKNOWN, INTERNAL, DATA_LOSS, and what has no name.
            Some(_) => Some(500),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::lines::LineOutput;

    /// A record that has everything.
    pub(super) fn full() -> Record<'static> {
        Record {
            time: UNIX_EPOCH + Duration::from_micros(1_795_237_299_123_456),
            direction: Direction::Outbound,
            protocol: "HTTP/1.1",
            version: Some(http::Version::HTTP_11),
            method: "POST",
            path: "/pay?card=4111",
            authority: "payments",
            status: Some(503),
            grpc_status: Some(14),
            reason: Some(Reason::ConnectFailed),
            by: "default/orders/outbound",
            detail: "connection refused",
            trace_id: TraceId::from_hex("4bf92f3577b34da6a3ce929d0e0e4736").ok(),
            span_id: SpanId::from_hex("00f067aa0ba902b7").ok(),
            client: Some("127.0.0.1:4000".parse().unwrap()),
            source: "spiffe://cluster.local/ns/default/sa/orders",
            destination: "spiffe://cluster.local/ns/default/sa/payments",
            service: "default/payments:80",
            route: "default/split",
            backend: "default/payments-v1:80",
            session: "kept",
            detected: "server_first",
            endpoint: Some("[::1]:5000".parse().unwrap()),
            rule: "default/allow/web",
            would_deny: "default/trial/admin",
            issuer: "https://issuer.example",
            tls: TlsKind::Mtls,
            bytes_in: 1,
            bytes_out: 2,
            duration: Duration::from_millis(3),
            processing: Some(Duration::from_micros(4)),
            attempts: 1,
            connection: 7,
        }
    }

    /// What clients can send, and what other programs say in errors.
    pub(super) fn nasty() -> String {
        let all = (0..=0x7f_u8).map(char::from).chain(['\u{85}', '\u{2028}', 'ß', '\u{10ffff}']);
        all.filter(|c| *c != '?').collect()
    }

    fn forms() -> Vec<AccessLogFormat> {
        let template = "{path} {authority} {detail} {service} {source}";
        ["json", "apache", "ecs", template].iter().map(|form| form.parse().unwrap()).collect()
    }

    #[test]
    fn no_value_ends_its_line_in_any_form() {
        let nasty = nasty();
        let text = nasty.as_str();
        let (method, path, authority, detail) = (text, text, text, text);
        let (source, service, by, route) = (text, text, text, text);
        for form in forms() {
            let record = Record {
                method,
                path,
                authority,
                detail,
                source,
                service,
                by,
                route,
                reason: None,
                ..full()
            };
            let mut out = Vec::new();
            record.write(&form, &mut out, &Mutex::default());
            assert_eq!(out.pop(), Some(b'\n'), "{form:?}");
            assert!(
                out.iter().all(|byte| *byte >= b' ' && *byte != 0x7f),
                "{form:?}: {}",
                out.escape_ascii()
            );
        }
    }

    #[test]
    fn the_documents_examples_are_what_is_written() {
        let page = include_str!("../../../docs/observability.md");
        let template =
            "{timestamp} {direction} {status} {duration_ns} \"{method} {path}\" {reason} {trace_id}";
        assert!(page.contains(template));
        let record = Record {
            grpc_status: None,
            by: "shop/payments/inbound",
            detail: "",
            trace_id: None,
            span_id: None,
            client: Some("10.1.0.4:41000".parse().unwrap()),
            source: "",
            destination: "spiffe://cluster.local/ns/shop/sa/payments",
            service: "shop/payments:80",
            route: "shop/split",
            backend: "shop/payments-v1:80",
            session: "",
            detected: "",
            endpoint: Some("10.1.0.7:8080".parse().unwrap()),
            rule: "",
            would_deny: "",
            issuer: "",
            bytes_in: 12,
            bytes_out: 56,
            processing: Some(Duration::from_micros(40)),
            ..full()
        };
        for form in ["json", "apache", "ecs", template] {
            let mut out = Vec::new();
            record.write(&form.parse().unwrap(), &mut out, &Mutex::default());
            let line = String::from_utf8(out).unwrap();
            assert!(page.contains(&line), "docs/observability.md has no {line}");
        }
    }

    #[test]
    fn an_empty_record_is_a_line_in_every_form() {
        for form in forms() {
            let mut out = Vec::new();
            Record::default().write(&form, &mut out, &Mutex::default());
            assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1, "{form:?}");
        }
    }

    #[test]
    fn a_disabled_log_writes_nothing() {
        assert!(!AccessLog::disabled().is_enabled());
        AccessLog::disabled().write(&Record::default(), [None; 4]);
    }

    fn log(said: Said) -> (AccessLog, impl FnMut() -> usize) {
        use std::io::{Read as _, Seek as _};
        let mut file = tempfile::tempfile().unwrap();
        let output = LineOutput::new(file.try_clone().unwrap());
        let log = AccessLog::new(output.queue(), said);
        let written = move || {
            output.flush(Duration::ZERO);
            let mut text = String::new();
            file.rewind().unwrap();
            file.read_to_string(&mut text).unwrap();
            text.lines().count()
        };
        (log, written)
    }

    #[test]
    fn a_sample_is_of_its_share() {
        let (log, mut written) = log(Said { sample: Share::percent(10.0), ..Said::default() });
        for _ in 0..10_000 {
            log.write(&Record::default(), [None; 4]);
        }
        let written = written();
        assert!((900..1100).contains(&written), "{written}");
    }

    #[test]
    fn a_trace_is_sampled_by_every_proxy_or_by_none() {
        let trace_ids =
            (0..200_u64).map(|n| TraceId::from(u128::from(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))));
        let mut counts = Vec::new();
        for trace_id in trace_ids.map(Some) {
            let (log, mut written) = log(Said { sample: Share::percent(50.0), ..Said::default() });
            for _ in 0..10 {
                log.write(&Record { trace_id, ..Record::default() }, [None; 4]);
            }
            counts.push(written());
        }
        assert!(counts.iter().all(|count| [0, 10].contains(count)), "{counts:?}");
        let taken = counts.iter().filter(|count| **count == 10).count();
        assert!((60..140).contains(&taken), "{taken}");
    }

    #[test]
    fn grpc_is_compared_by_what_its_status_stands_for() {
        for (grpc_status, status) in
            [(None, 200), (Some(0), 200), (Some(14), 503), (Some(5), 404), (Some(99), 500)]
        {
            let record = Record { status: Some(200), grpc_status, ..Record::default() };
            assert_eq!(record.common_status(), Some(status), "{grpc_status:?}");
        }
    }
}
