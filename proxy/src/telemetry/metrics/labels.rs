//! Labels, and how a set of them becomes a key.

use smallvec::SmallVec;

use super::SeriesLabels;
use crate::telemetry::Reason;

/// Which of the proxy's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the application.
    Inbound,
    /// From the application.
    Outbound,
}

/// How the bytes are protected on the way between workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TlsKind {
    /// Mutual TLS of the mesh.
    Mtls,
    /// Plain text.
    None,
    /// The application's own TLS, which the proxy does not look into.
    App,
    /// There is no such way: a workload asks itself.
    Own,
    /// Not known, or not yet: no endpoint was chosen, or requests go to many.
    Unknown,
}

/// What policy said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VerdictKind {
    /// It may go on.
    Allow,
    /// It may, and is told.
    Audit,
    /// It may not.
    Deny,
    /// It may, and would not if what is in dry run were in force.
    WouldDeny,
}

/// What goes out of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EgressProtocol {
    /// A request in plain text; its name is the host.
    Http,
    /// A connection with TLS of the application's own; its name is the server name.
    Tls,
    /// Any other connection; it has no name.
    Tcp,
}

/// Of whom, to whom and by which way. Empty: unknown, or does not apply; the label is left out.
#[derive(Clone, Copy, Debug)]
pub struct RequestLabels<'a> {
    /// Which side.
    pub direction: Direction,
    /// On the leg between workloads.
    pub tls: TlsKind,
    /// The SPIFFE ID of the other workload: inbound the client's, outbound the server's.
    pub peer: &'a str,
    /// `<namespace>/<name>:<port>` of the service that was dialled. Never the Host header.
    pub service: &'a str,
    /// `<namespace>/<name>` of the route that matched.
    pub route: &'a str,
    /// `<namespace>/<name>:<port>` of the backend that was chosen.
    pub backend: &'a str,
}

/// Of whom and to whom. Empty: unknown, or does not apply; the label is left out.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLabels<'a> {
    /// Which side.
    pub direction: Direction,
    /// On the leg between workloads.
    pub tls: TlsKind,
    /// The SPIFFE ID of the other workload.
    pub peer: &'a str,
    /// `<namespace>/<name>:<port>` of the service that was dialled.
    pub service: &'a str,
    /// `<namespace>/<name>` of the TLSRoute or TCPRoute that the connection follows.
    pub route: &'a str,
    /// `<namespace>/<name>:<port>` of the backend that it chose.
    pub backend: &'a str,
}

/// What policy said.
#[derive(Clone, Copy, Debug)]
pub struct VerdictLabels<'a> {
    /// Whether the connection or request went on.
    pub verdict: VerdictKind,
    /// The rule that decided, `<namespace>/<policy>/<rule>`; empty if none did.
    pub rule: &'a str,
    /// Why it did not go on.
    pub reason: Option<Reason>,
}

/// What leaves the mesh, or would.
#[derive(Clone, Copy, Debug)]
pub struct EgressLabels<'a> {
    /// Whether it went on.
    pub verdict: VerdictKind,
    /// What the client speaks.
    pub protocol: EgressProtocol,
    /// Whom the client says that it wants to reach; empty if it does not.
    pub name: &'a str,
}

/// What came of asking an authorizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// It lets the request in.
    Allowed,
    /// It does not.
    Denied,
    /// There was no answer, or none that can be read.
    Failed,
    /// There was none in time.
    TimedOut,
    /// Nobody was asked: the body is longer than may be told.
    TooLarge,
}

/// What came of asking an authorizer about a request.
#[derive(Clone, Copy, Debug)]
pub struct ExternalLabels<'a> {
    /// `<namespace>/<name>` of the ExternalAuthorization.
    pub policy: &'a str,
    /// What it said.
    pub result: CheckResult,
    /// To the same question, before.
    pub cached: bool,
    /// That holds.
    pub enforced: bool,
}

/// What became of somebody who met a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitOutcome {
    /// It was let through after a while.
    Waited,
    /// No place was free in time.
    Refused,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The request's method.
    pub method: Method,
    /// The response's status; 0 if there was none.
    pub status: u16,
    /// The `grpc-status` of headers or trailers, if the request was gRPC.
    pub grpc_status: Option<u32>,
    /// Set if a proxy made the answer, or gave up.
    pub reason: Option<Reason>,
    /// That proxy was the other workload's.
    pub by_peer: bool,
}

macro_rules! label_enum {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label's value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

label_enum! {
    /// Methods that are told apart (RFC 9110 §9, RFC 5789); any other is `_OTHER`, since clients choose it.
    Method {
        /// RFC 9110 §9.3.1
        Get = "GET",
        /// RFC 9110 §9.3.3
        Post = "POST",
        /// RFC 9110 §9.3.4
        Put = "PUT",
        /// RFC 9110 §9.3.5
        Delete = "DELETE",
        /// RFC 9110 §9.3.2
        Head = "HEAD",
        /// RFC 9110 §9.3.7
        Options = "OPTIONS",
        /// RFC 9110 §9.3.6
        Connect = "CONNECT",
        /// RFC 9110 §9.3.8
        Trace = "TRACE",
        /// RFC 5789
        Patch = "PATCH",
        /// Anything else.
        Other = "_OTHER",
    }
}

label_enum! {
    /// How detection of a connection's protocol ended.
    DetectResult {
        /// Told from the first bytes.
        Detected = "detected",
        /// Declared by configuration; nothing was waited for.
        Declared = "declared",
        /// The server spoke first, or closed before its client had spoken.
        ServerFirst = "server_first",
        /// Too little came in time.
        Timeout = "timeout",
        /// The client closed before.
        Closed = "closed",
        /// The buffer was full.
        Limit = "limit",
        /// The proxy drains, and the client had its time; it was closed.
        Drained = "drained",
    }
}

label_enum! {
    /// What became of a server that was opened before its client had spoken.
    EarlyOpen {
        /// The connection was relayed to it.
        Used = "used",
        /// It was closed: the client spoke HTTP, or the mesh's TLS.
        Unused = "unused",
        /// It could not be opened, or broke.
        Failed = "failed",
    }
}

label_enum! {
    /// What a connection speaks, as far as the proxy looks.
    DetectProtocol {
        /// HTTP/1.0 or 1.1
        Http1 = "http1",
        /// HTTP/2 with prior knowledge
        Http2 = "http2",
        /// TLS of the mesh
        MeshTls = "mesh_tls",
        /// The application's own TLS
        AppTls = "app_tls",
        /// Anything else
        Opaque = "opaque",
    }
}

label_enum! {
    /// Why a connection left its pool.
    PoolClose {
        /// It had idled for too long.
        Idle = "idle",
        /// The server closed it while it was idle or, a shared HTTP/2 connection, at any time.
        Peer = "peer",
        /// Its exchange was the last: it failed, was given up or upgraded, or its answer forbids another.
        Ended = "ended",
        /// Its endpoint went away.
        Retired = "retired",
        /// It was idle, and another was to be made that limits leave no room for.
        Limit = "limit",
        /// It had reached the age that is allowed.
        Age = "age",
    }
}

label_enum! {
    /// How the first use of an address or service ended.
    DiscoveryResult {
        /// The control plane knows it.
        Found = "found",
        /// It does not: passed through as off-mesh.
        Absent = "absent",
        /// No answer in time: refused, the address being in the mesh's networks.
        Refused = "refused",
        /// No answer in time: passed through.
        PassedThrough = "passed_through",
    }
}

label_enum! {
    /// What became of a question about a name.
    DnsResult {
        /// Answered from what the mesh has.
        Mesh = "mesh",
        /// The cluster's domain has no such name.
        Absent = "absent",
        /// Answered by the name servers, also when there is no such name.
        Forwarded = "forwarded",
        /// Nobody answered.
        Failed = "failed",
        /// Not a kind of question that is answered.
        Refused = "refused",
        /// Not a question.
        Malformed = "malformed",
    }
}

label_enum! {
    /// What became of a copy of a request.
    MirrorResult {
        /// It got an answer, whichever.
        Answered = "answered",
        /// It got none.
        Failed = "failed",
        /// It got none in time.
        TimedOut = "timed_out",
        /// It was not made: too many were under way.
        Dropped = "dropped",
    }
}

label_enum! {
    /// What became of a request's session.
    SessionResult {
        /// The endpoint that it goes to answered.
        Kept = "kept",
        /// The client brought no token; it has one now.
        New = "new",
        /// Its endpoint is gone, not ready or did not answer; it goes to another now.
        Moved = "moved",
        /// Its time was over; it began anew.
        Expired = "expired",
        /// The token was damaged, forged or another rule's; a session began.
        Invalid = "invalid",
    }
}

label_enum! {
    /// What became of a request's token, where a policy speaks of tokens.
    TokenResult {
        /// Its signature was verified, and its claims hold.
        Verified = "verified",
        /// It was verified a moment ago.
        Cached = "cached",
        /// There is none, and none is needed.
        Absent = "absent",
        /// There is none, and one is needed.
        Missing = "missing",
        /// There are several that differ.
        Several = "several",
        /// It is longer than is read.
        TooLong = "too_long",
        /// It is no token.
        Malformed = "malformed",
        /// Its algorithm is not accepted.
        Algorithm = "algorithm",
        /// Nobody's whose tokens are taken.
        Issuer = "issuer",
        /// For somebody else.
        Audience = "audience",
        /// Its time is over, or it does not say when that is.
        Expired = "expired",
        /// Its time has not begun.
        NotYet = "not_yet",
        /// None of its issuer's keys fits it.
        Key = "key",
        /// Those that fit have not signed it.
        Signature = "signature",
        /// A claim of it cannot be a header's value.
        Claim = "claim",
        /// Its issuer's keys are not there.
        NoKeys = "no_keys",
    }
}

label_enum! {
    /// Why a request was sent once more.
    ReplayCause {
        /// The first try was provably not processed.
        Unprocessed = "unprocessed",
        /// It is idempotent, and a reused connection failed before any response byte.
        Idempotent = "idempotent",
    }
}

label_enum! {
    /// Why a request was sent again, as a rule or policy says.
    RetryCause {
        /// It was provably not processed.
        Unprocessed = "unprocessed",
        /// It got no answer, or none that could be read, and is idempotent.
        Broken = "broken",
        /// It got none within `timeouts.backendRequest`, and is idempotent.
        Late = "late",
        /// The answer's status is one of `codes`, or of gRPC's.
        Status = "status",
    }
}

label_enum! {
    /// What became of a request that was sent again.
    RetryOutcome {
        /// Its answer was taken.
        Answered = "answered",
        /// It failed too, or its answer was not taken either.
        Failed = "failed",
        /// Its time was over or its client gone before.
        Unfinished = "unfinished",
    }
}

label_enum! {
    /// What was done to a try on purpose.
    FaultKind {
        /// It was held.
        Delay = "delay",
        /// It was answered.
        Abort = "abort",
    }
}

label_enum! {
    /// Why a request was not sent again that a rule or policy wants to be.
    Unretried {
        /// It has been as often as is allowed.
        Attempts = "attempts",
        /// More of its body had passed than is kept.
        Body = "body",
        /// It would have begun after the request's time.
        Time = "time",
        /// Its method is not idempotent, and it may have been processed.
        Method = "method",
        /// So many had been sent again lately.
        Budget = "budget",
        /// The server does not want it, or not for so long.
        Pushback = "pushback",
    }
}

// === impl Direction ===

impl Direction {
    pub(super) const ALL: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

// === impl TlsKind ===

impl TlsKind {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::None => "none",
            Self::App => "app",
            Self::Own => "own",
            Self::Unknown => "",
        }
    }
}

// === impl VerdictKind ===

impl VerdictKind {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Audit => "audit",
            Self::Deny => "deny",
            Self::WouldDeny => "would_deny",
        }
    }
}

// === impl CheckResult ===

impl CheckResult {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::TimedOut => "timed_out",
            Self::TooLarge => "too_large",
        }
    }
}

// === impl EgressProtocol ===

impl EgressProtocol {
    /// The label's value.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Tcp => "tcp",
        }
    }
}

// === impl Method ===

impl From<&http::Method> for Method {
    fn from(method: &http::Method) -> Self {
        Self::ALL.iter().copied().find(|known| known.as_str() == method.as_str()).unwrap_or(Self::Other)
    }
}

// === impl Outcome ===

impl Outcome {
    /// One number for each outcome that is told apart. `grpc-status` beyond 16 is no status of gRPC: 17, `_OTHER`.
    #[inline]
    pub(super) fn pack(self) -> u64 {
        let grpc = self.grpc_status.map_or(0, |status| u64::from(status.min(17)) + 1);
        let reason = self.reason.map_or(0, |reason| reason.index() as u64 + 1);
        self.duration_key() | u64::from(self.by_peer) << 40 | grpc << 8 | reason
    }

    /// The part of [`Outcome::pack`] by which durations are told apart.
    #[inline]
    pub(super) fn duration_key(self) -> u64 {
        (self.method as u64) << 32 | u64::from(self.status) << 16
    }

    pub(super) fn unpack(packed: u64) -> Self {
        let byte = |shift: u32| (packed >> shift & 0xff) as usize;
        Self {
            method: Method::ALL.get(byte(32)).copied().unwrap_or(Method::Other),
            status: (packed >> 16 & 0xffff) as u16,
            grpc_status: byte(8).checked_sub(1).map(|status| status as u32),
            reason: byte(0).checked_sub(1).and_then(Reason::from_index),
            by_peer: byte(40) == 1,
        }
    }
}

/// A label set as bytes: values with a separator behind each.
pub(super) type Key = SmallVec<[u8; 256]>;

pub(super) const SEPARATOR: u8 = 0x1f;
/// No name of ours is longer; a value that is, is cut.
const MAX_VALUE: usize = 512;

/// A label set's values as the bytes that they are told apart by.
pub(super) fn key<const N: usize>(values: [&str; N]) -> Key {
    let mut key = Key::new();
    for value in values {
        let value = value.as_bytes();
        key.extend(value.iter().take(MAX_VALUE).map(|b| if b.is_ascii_control() { b'_' } else { *b }));
        key.push(SEPARATOR);
    }
    key
}

/// The values of a key.
pub(super) fn values(key: &[u8]) -> impl Iterator<Item = std::borrow::Cow<'_, str>> {
    parts(key).map(String::from_utf8_lossy)
}

/// The values of a key, as bytes.
pub(super) fn parts(key: &[u8]) -> impl Iterator<Item = &[u8]> {
    key.strip_suffix(&[SEPARATOR]).into_iter().flat_map(|key| key.split(|b| *b == SEPARATOR))
}

impl RequestLabels<'_> {
    pub(super) const NAMES: [&'static str; 6] = ["direction", "tls", "peer", "service", "route", "backend"];

    /// Without those that are not to be shown.
    pub(super) fn shown(&self, shown: SeriesLabels) -> Self {
        let [peer, service, route, backend] = shown.of([self.peer, self.service, self.route, self.backend]);
        Self { peer, service, route, backend, ..*self }
    }

    pub(super) fn values(&self) -> [&str; 6] {
        [self.direction.as_str(), self.tls.as_str(), self.peer, self.service, self.route, self.backend]
    }
}

impl ConnectionLabels<'_> {
    pub(super) const NAMES: [&'static str; 6] = ["direction", "tls", "peer", "service", "route", "backend"];

    /// Without those that are not to be shown.
    pub(super) fn shown(&self, shown: SeriesLabels) -> Self {
        let [peer, service, route, backend] = shown.of([self.peer, self.service, self.route, self.backend]);
        Self { peer, service, route, backend, ..*self }
    }

    pub(super) fn values(&self) -> [&str; 6] {
        [self.direction.as_str(), self.tls.as_str(), self.peer, self.service, self.route, self.backend]
    }
}

impl VerdictLabels<'_> {
    pub(super) const NAMES: [&'static str; 3] = ["verdict", "rule", "reason"];

    pub(super) fn values(&self) -> [&str; 3] {
        [self.verdict.as_str(), self.rule, self.reason.map_or("", Reason::code)]
    }
}

impl EgressLabels<'_> {
    pub(super) const NAMES: [&'static str; 3] = ["verdict", "protocol", "name"];

    pub(super) fn values(&self) -> [&str; 3] {
        [self.verdict.as_str(), self.protocol.as_str(), self.name]
    }
}

impl ExternalLabels<'_> {
    pub(super) const NAMES: [&'static str; 4] = ["policy", "result", "cached", "enforced"];

    pub(super) fn values(&self) -> [&str; 4] {
        let text = |is: bool| if is { "true" } else { "false" };
        [self.policy, self.result.as_str(), text(self.cached), text(self.enforced)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_survive_packing() {
        for reason in Reason::ALL.iter().copied().map(Some).chain([None]) {
            for grpc_status in [None, Some(0), Some(16)] {
                for by_peer in [false, true] {
                    let outcome =
                        Outcome { method: Method::Other, status: 599, grpc_status, reason, by_peer };
                    assert_eq!(Outcome::unpack(outcome.pack()), outcome);
                }
            }
        }
        let strange = Outcome {
            method: Method::Get,
            status: 0,
            grpc_status: Some(u32::MAX),
            reason: None,
            by_peer: false,
        };
        assert_eq!(Outcome::unpack(strange.pack()).grpc_status, Some(17));
    }

    #[test]
    fn methods_outside_the_set_are_other() {
        assert_eq!(Method::from(&http::Method::PATCH), Method::Patch);
        assert_eq!(Method::from(&http::Method::from_bytes(b"BREW").unwrap()), Method::Other);
        assert_eq!(Method::from(&http::Method::from_bytes(b"get").unwrap()), Method::Other);
    }

    #[test]
    fn a_value_cannot_shift_the_others() {
        let labels = ConnectionLabels {
            direction: Direction::Inbound,
            tls: TlsKind::Mtls,
            peer: "a\u{1f}b",
            service: "s",
            route: "",
            backend: "b",
        };
        let key = key(labels.values());
        assert_eq!(values(&key).collect::<Vec<_>>(), ["inbound", "mtls", "a_b", "s", "", "b"]);
    }
}
