//! Why the proxy answered by itself, refused or gave up: one stable table.
//!
//! The code of a [`Reason`] is the value of the header `x-tulle-error`, of the metric label `reason` and of the
//! log field `reason`, so that a user who sees one finds the others. Codes are never renamed. This module holds
//! data only: who decides on a reason is `forward`, `tls`, `policy` and `accept`. `docs/reference/errors.md` is
//! made from this table ([`reference()`]), and a test compares the two.

use std::fmt;

use tulle_certs::Refusal;

/// gRPC status codes that the table uses (<https://grpc.io/docs/guides/status-codes/>).
mod grpc {
    pub(super) const CANCELLED: u8 = 1;
    pub(super) const DEADLINE_EXCEEDED: u8 = 4;
    pub(super) const PERMISSION_DENIED: u8 = 7;
    pub(super) const RESOURCE_EXHAUSTED: u8 = 8;
    pub(super) const UNIMPLEMENTED: u8 = 12;
    pub(super) const INTERNAL: u8 = 13;
    pub(super) const UNAVAILABLE: u8 = 14;
    pub(super) const UNAUTHENTICATED: u8 = 16;
}

struct Entry {
    code: &'static str,
    status: Option<u16>,
    grpc: u8,
    grpc_name: &'static str,
    message: &'static str,
    cause: &'static str,
    remedy: &'static str,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $code:literal $status:tt $grpc:ident $message:literal $cause:literal $remedy:literal;)*) => {
        /// A stable reason; see the module.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Reason {
            $(#[doc = $cause] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];
        }

        static TABLE: &[Entry] = &[$(Entry {
            code: $code, status: reasons!(@status $status), grpc: grpc::$grpc,
            grpc_name: stringify!($grpc), message: $message, cause: $cause, remedy: $remedy,
        }),*];
    };
    (@status none) => { None };
    (@status $status:literal) => { Some($status) };
}

reasons! {
    MalformedRequest "malformed_request" 400 INTERNAL
        "the request's head is malformed or ambiguous"
        "The client sent a head that RFC 9112 or RFC 9113 forbids, or whose length can be read in two ways (conflicting Content-Length and Transfer-Encoding, obsolete line folding, space before a colon, bare CR, NUL). Or a policy looks at paths or hosts, and nobody can tell which path or host an application would take the request for: its path has an encoded slash or backslash, an encoded control character, a `%` without two digits, is encoded twice or not UTF-8, or has `..` beside empty segments or `;parameters`; it names two hosts, or none that is a name or an address."
        "Mend the client. If the port does not speak HTTP, declare it opaque.";
    RouteNotFound "route_not_found" 404 UNIMPLEMENTED
        "no route matches the request"
        "The service has routes, and none of them matches the request's host and path."
        "Add a rule that matches, or one without matches as a default; `tulle check` shows what the routes say.";
    RouteWithoutBackend "route_without_backend" 500 UNAVAILABLE
        "the matching route has no backend"
        "The rule that matches names no backend, or only backends of weight 0."
        "Name a backend with a weight above 0 in the rule.";
    RouteInvalid "route_invalid" 500 UNAVAILABLE
        "the matching rule cannot be carried out"
        "The rule that matches asks for what this version cannot do, or for what its proxy, of an older version than the control plane, does not know. It is not served as if it asked for less."
        "See what `tulle check` says of the route, and the answer's own text; bring the proxies to the control plane's version.";
    RouteChanged "route_changed" 503 UNAVAILABLE
        "the connection is older than the routes of its port"
        "Since the connection came, its port has got a TLSRoute or a TCPRoute, which whole connections follow. The request was not sent anywhere, and the connection closes."
        "Repeat the request: the next connection follows the route.";
    BackendNotFound "backend_not_found" 500 UNAVAILABLE
        "the route's backend does not exist"
        "The rule names a Service, or a port of it, that does not exist or may not be referred to."
        "Create the Service or its port, or correct the reference; `tulle check` names the line.";
    NoHealthyEndpoint "no_healthy_endpoint" 503 UNAVAILABLE
        "the backend has no endpoint that can be used"
        "The Service exists, but has no endpoint, or none of them is ready."
        "Start the workload, or see why it is not ready. With registration: see whether its proxy runs and is connected to the control plane.";
    ConnectFailed "connect_failed" 503 UNAVAILABLE
        "the connection could not be made"
        "The endpoint or the application refused the connection, or cannot be reached."
        "See whether the application listens on the port, on the address that was dialled, and whether a firewall is between.";
    ConnectTimeout "connect_timeout" 503 UNAVAILABLE
        "the connection was not made in time"
        "The endpoint did not answer within the connect timeout."
        "See whether the endpoint's address can be reached; raise TULLE_PROXY_CONNECT_TIMEOUT if the network is slow.";
    TlsFailed "tls_failed" 503 UNAVAILABLE
        "the TLS handshake with the endpoint failed"
        "The endpoint's certificate is not from the mesh's roots or not valid now, or the endpoint does not speak TLS."
        "See the log of both proxies; compare their clocks and, with `tulle identity`, their certificates and roots.";
    PeerIdentityMismatch "peer_identity_mismatch" 503 UNAVAILABLE
        "the endpoint is not who it should be"
        "The endpoint's certificate is of the mesh, but names another identity than the control plane says lives at this address."
        "Usually an address that was given to another workload a moment ago. If it lasts, see who listens there.";
    PeerRefusedTls "peer_refused_tls" 503 UNAVAILABLE
        "the endpoint's proxy refused our certificate"
        "The endpoint's proxy ended the handshake with an alert: our certificate is expired, or from a root that it does not know."
        "See the other proxy's log for `tls_…`; compare clocks and, with `tulle identity`, the roots on both sides.";
    UpstreamReset "upstream_reset" 502 UNAVAILABLE
        "the connection was reset before the response"
        "The endpoint or the application closed the connection after the request was sent and before its response, so that nobody can say whether it was processed."
        "See the application's log for a crash or a restart. Repeat the request if it may be repeated.";
    UpstreamMalformed "upstream_malformed" 502 UNAVAILABLE
        "the response is malformed"
        "The application answered with something that is not a response of the protocol that it was asked in."
        "See what the application speaks on the port; declare the port's protocol (`appProtocol`).";
    RequestTimeout "request_timeout" 504 DEADLINE_EXCEEDED
        "the request took longer than its policy allows"
        "The `timeouts.request` of the route, or of a TrafficPolicy, passed before the response was complete."
        "See why the application is slow, or raise the timeout.";
    BackendTimeout "backend_timeout" 504 DEADLINE_EXCEEDED
        "the backend did not respond within its timeout"
        "The `timeouts.backendRequest` of the route, or of a TrafficPolicy, passed before the response's head came."
        "See why the application is slow, or raise the timeout.";
    DeadlineExceeded "deadline_exceeded" 504 DEADLINE_EXCEEDED
        "the request took longer than its client waits"
        "What the client said in `grpc-timeout`, or in the header that a TrafficPolicy names as its deadline, passed before the response was complete; or it had passed before the request was sent."
        "See why the application is slow, or what the client's deadline was spent on before; raise it there.";
    IdleTimeout "idle_timeout" 504 UNAVAILABLE
        "nothing has passed of the request's bodies for too long"
        "For the `timeouts.idle` of a TrafficPolicy, neither the client nor the backend has sent anything of its body. An answer that had begun is broken off; gRPC's ends with the status in its trailers."
        "See who is silent; have streams say something now and then, or raise the timeout.";
    FaultInjected "fault_injected" 503 UNAVAILABLE
        "a fault was injected"
        "A FaultPolicy answers some of the requests in their backend's place; which one is in the message. The status is the policy's."
        "Delete the FaultPolicy when the experiment is over.";
    PolicyDenied "policy_denied" 403 PERMISSION_DENIED
        "policy does not allow this client, or what it asks"
        "The workload has AuthorizationPolicies for this port: one denies what is asked, which is named in the message; or some allow, and none of these describes the client and what it asks. Or there are none, and the pod's `config.tulle.dev/default-inbound-policy` lets in others only. A client without an identity is told nothing of this: the access log of the workload's proxy has it as `detail`. Where nobody is let in, whoever it is, the message names the rule; `…/control-plane:no-pod-with-a-proxy/nobody` is in force where the control plane knows of no such pod: once the pod is gone; on a machine outside the cluster until it registers; and in a pod whose proxy is not the injector's, or whose annotation `tulle.dev/status` was taken away, until it is made anew."
        "Allow the identity that the access log shows as `source`, and what it asks, if that should be allowed; no rule helps against one that denies. `tulle authz check` says what a proxy would make of a request, and by which rule.";
    EgressDenied "egress_denied" 403 PERMISSION_DENIED
        "policy does not allow this destination outside the mesh"
        "The destination belongs to no Service and no workload of the mesh, and an EgressPolicy of the namespace, or the Mesh's `egress`, denies it; which one is in the message. A connection that is not HTTP is reset."
        "Allow the destination with a rule of an EgressPolicy, if it should be allowed; no rule helps against a rule that denies it.";
    MtlsRequired "mtls_required" 403 PERMISSION_DENIED
        "this port takes connections from the mesh only"
        "The port is in strict mode, and the connection came in plain text or with TLS that is not the mesh's."
        "Give the client a proxy, or set the mode to permissive while clients are being moved.";
    IdentityRequired "identity_required" 403 PERMISSION_DENIED
        "policy asks for an identity and the client has none"
        "The workload has AuthorizationPolicies for this port that allow identities, and the connection came without a certificate of the mesh (permissive mode)."
        "Give the client a proxy.";
    DeniedExternally "denied_externally" 403 PERMISSION_DENIED
        "the authorizer that is asked does not allow the request"
        "An ExternalAuthorization has the Service that it names asked about the request, and that said no; which one is in the message. Status, headers and body are the authorizer's, where it gives any, and so is the gRPC status that is made of its HTTP status."
        "See the authorizer's own log. What it was told of the request is in docs/external-authorization.md.";
    AuthorizerUnavailable "authorizer_unavailable" 503 UNAVAILABLE
        "the authorizer that must be asked gave no answer"
        "An ExternalAuthorization has the Service that it names asked about the request, and there was no answer within its `timeout`, or none that can be read: why is in the message. Its `failureMode` is `Deny`."
        "See whether the authorizer runs, is ready and speaks Envoy's gRPC Check on that port; raise `timeout` if it is slow. `failureMode: Allow` lets in whatever cannot be asked about.";
    BodyTooLarge "body_too_large" 413 RESOURCE_EXHAUSTED
        "the body is longer than the authorizer may be told"
        "An ExternalAuthorization has its authorizer told the request's body, which is longer than `body.maxBytes`."
        "Raise `body.maxBytes`, or have the authorizer told the beginning of longer bodies: `body.partial: true`.";
    TokenRequired "token_required" 401 UNAUTHENTICATED
        "the request needs a token and has none"
        "A RequestAuthentication of the workload asks each request for a token (JWT), and where it looks for one there is none. The answer's `www-authenticate` asks for one."
        "Send the token as `authorization: Bearer …`, or in the header that the policy names. Set `required: false` in the policy if requests without one should go on, to be judged by an AuthorizationPolicy.";
    TokenInvalid "token_invalid" 401 UNAUTHENTICATED
        "the request's token is not valid here"
        "A RequestAuthentication of the workload does not take the token: it is malformed, has expired or is not valid yet, is from an issuer or for an audience that the policy does not name, is signed with an algorithm or a key that is not accepted, or there are two that differ. Which it was is in the message and in `error_description`."
        "Get a new token for this audience. Compare the policy's `issuer` and `audiences` with the token's `iss` and `aud`, letter by letter, and the clocks; `tulle_tokens_total` counts what tokens were refused for.";
    JwksUnavailable "jwks_unavailable" 503 UNAVAILABLE
        "the keys of the token's issuer are not known yet"
        "The RequestAuthentication names a URL for its issuer's keys, and they have not been fetched once since the proxy knows the policy. Nothing is let in on trust. Keys that were fetched before stay in use, however often a later fetch fails."
        "See the proxy's log for why `jwks.url` could not be fetched: its name, its certificate and the roots, the time-out, or a redirect, which is not followed. `tulle_jwks_fetches_total` counts the tries.";
    DiscoveryUnavailable "discovery_unavailable" 503 UNAVAILABLE
        "the control plane did not say in time who lives at this address"
        "The address is within the mesh's networks, was used for the first time, and the control plane did not answer."
        "See whether the control plane runs (`tulle check`); what was used before goes on working.";
    PolicyUnavailable "policy_unavailable" 503 UNAVAILABLE
        "the policy of this workload is not known yet"
        "The proxy has not received the workload's policy, for what comes in or for what leaves the mesh, and does not guess it."
        "See whether the control plane runs, and the proxy's log for a rejected InboundPolicy or EgressPolicy.";
    NotReady "not_ready" 503 UNAVAILABLE
        "the proxy has no configuration yet, or no valid certificate"
        "The proxy has just started, and is not connected to the control plane yet, or has no certificate; or the one that it had has expired, and it could not get another."
        "See `/ready` on port 15020 for what is missing, `/certs` on port 15000 for how long the certificate is valid, and the proxy's log.";
    Overloaded "overloaded" 503 UNAVAILABLE
        "a limit of the proxy is reached"
        "The proxy holds as many connections as TULLE_PROXY_MAX_CONNECTIONS or its file descriptors allow; or as much is under way to a service's port, or to one of its endpoints, as its TrafficPolicy allows, and nothing ended within `queueTimeout`: then the message names the limit; or it has no file descriptor, memory or local port left for a connection to the endpoint: then the message says so. The request was not passed on."
        "Add workloads, or raise the limit (and `ulimit -n`); see `tulle_limit_used` and `tulle_limit_waiting` for which it is.";
    RateLimited "rate_limited" 429 RESOURCE_EXHAUSTED
        "a rate limit is reached"
        "A limit of a RateLimitPolicy has no room for the request; which one, and how long it takes until it has, is in the message. It was not passed on, and the limits that had room do not count it."
        "Ask again after the time that `retry-after` says (gRPC: `grpc-retry-pushback-ms`). Raise the limit, its burst, or the rate of this client with an override, if it is meant to ask as often.";
    HeadTooLarge "head_too_large" 431 RESOURCE_EXHAUSTED
        "the request's head is too large"
        "The request line and headers are larger than TULLE_PROXY_MAX_HEAD_BYTES."
        "Usually a cookie that grows. Raise the limit if such heads are meant.";
    LoopDetected "loop_detected" 508 INTERNAL
        "the connection leads back to the proxy itself"
        "The destination is one of the proxy's own listeners, or one of the ports 15000 to 15090."
        "Dial the application's port. Without interception: use the listener that is configured for the service.";
    DetectTimeout "detect_timeout" none UNAVAILABLE
        "the client sent too little to tell the protocol"
        "Where the client must speak first, it did not: under strict mutual TLS and on ports declared as TLS for 30 seconds, on ports declared as HTTP for 10 minutes, on the way out to ports with a TLSRoute for TULLE_PROXY_HEADER_READ_TIMEOUT."
        "See what the client waits for. If it is the server, declare the port's protocol (`appProtocol: tcp`, or `config.tulle.dev/opaque-ports`); under strict mutual TLS, give the client a proxy.";
    Draining "draining" 503 UNAVAILABLE
        "the proxy is shutting down"
        "The proxy was told to drain, and closed the connection before it had read the request; no endpoint could take it instead."
        "Repeat the request. Run a second endpoint, which is ready before the first one drains.";
    ClientClosed "client_closed" none CANCELLED
        "the client went away"
        "The client closed or reset before the response was complete. No answer was made; the reason stands in log and metrics only."
        "Usually the client's own timeout.";
    TlsNoCertificate "tls_no_certificate" none UNAVAILABLE
        "the client sent no certificate"
        "The client asked for TLS of the mesh (ALPN `tulle-…`) without a certificate. The handshake was refused."
        "See who the client is: no Tulle proxy does this.";
    TlsUnknownRoot "tls_unknown_root" none UNAVAILABLE
        "the client's certificate is from an unknown root"
        "The client's certificate does not lead to any root of the trust domain. The handshake was refused."
        "See with `tulle identity` which roots both sides know; the client may belong to another mesh.";
    TlsOtherTrustDomain "tls_other_trust_domain" none UNAVAILABLE
        "the client is of another trust domain"
        "The client's SPIFFE ID is of a trust domain that this mesh does not trust. The handshake was refused."
        "Give both meshes the same trust domain and root if they should be one.";
    TlsExpired "tls_expired" none UNAVAILABLE
        "the client's certificate has expired"
        "The client's certificate, or one above it, has expired. The handshake was refused."
        "See why the client's proxy could not renew (`tulle identity` there), and compare the clocks.";
    TlsNotYetValid "tls_not_yet_valid" none UNAVAILABLE
        "the client's certificate is not valid yet"
        "The client's certificate, or one above it, begins to be valid only later. The handshake was refused."
        "Compare the clocks of both sides and of the control plane: leaves are back-dated by five minutes.";
    TlsNoSpiffeId "tls_no_spiffe_id" none UNAVAILABLE
        "the client's certificate names no SPIFFE ID"
        "The certificate is from the right root, but carries no SPIFFE ID of the form `spiffe://<trust domain>/ns/<namespace>/sa/<account>`. The handshake was refused."
        "See who issued it: Tulle's certificate authority and SPIFFE implementations put one in.";
    TlsSeveralUris "tls_several_uris" none UNAVAILABLE
        "the client's certificate names several URIs"
        "An X.509-SVID has exactly one URI (X509-SVID, section 2). The handshake was refused."
        "See who issued it.";
    TlsWeakKey "tls_weak_key" none UNAVAILABLE
        "the client's certificate has a weak key"
        "The client's key, or that of a certificate above it, is too weak to prove anybody (RSA under 2048 bits, a curve other than P-256, P-384 and P-521), or one of the signatures is by way of SHA-1 or MD5. The handshake was refused."
        "Have whoever issues such certificates use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits or more, with SHA-256 or better.";
    TlsBadSignature "tls_bad_signature" none UNAVAILABLE
        "the client could not prove that it holds its certificate's key"
        "The handshake's signature does not fit the certificate. The handshake was refused."
        "See whether the client's key belongs to its certificate; otherwise somebody shows a certificate that is not theirs.";
    TlsMalformed "tls_malformed" none UNAVAILABLE
        "the TLS handshake is malformed"
        "The bytes are not a TLS 1.3 handshake, or its certificate cannot be read. The connection was closed."
        "See who the client is, and whether something between changes the bytes.";
}

// === impl Reason ===

impl Reason {
    /// How many reasons there are: the size of a table indexed by [`Reason::index`].
    pub const COUNT: usize = Self::ALL.len();

    fn entry(self) -> &'static Entry {
        // One entry for each variant, by construction of the macro.
        &TABLE[self as usize]
    }

    /// Its place in [`Reason::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The reason at `index` of [`Reason::ALL`].
    pub fn from_index(index: usize) -> Option<Self> {
        Self::ALL.get(index).copied()
    }

    /// The stable string: header `x-tulle-error`, metric label and log field `reason`.
    pub fn code(self) -> &'static str {
        self.entry().code
    }

    /// The reason whose code is `code`.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.code() == code)
    }

    /// The status of the HTTP answer; `None` where no HTTP answer is made (the connection is closed or refused).
    pub fn status(self) -> Option<u16> {
        self.entry().status
    }

    /// The gRPC status that a gRPC client gets (with HTTP status 200 and trailers only).
    pub fn grpc_status(self) -> u8 {
        self.entry().grpc
    }

    /// What gRPC calls that status.
    pub fn grpc_name(self) -> &'static str {
        self.entry().grpc_name
    }

    /// One line in lower case, for `grpc-message`, bodies and logs. ASCII without `%`: needs no percent-encoding.
    pub fn message(self) -> &'static str {
        self.entry().message
    }

    /// What happened, for people.
    pub fn cause(self) -> &'static str {
        self.entry().cause
    }

    /// What to do, for people.
    pub fn remedy(self) -> &'static str {
        self.entry().remedy
    }
}

impl From<Refusal> for Reason {
    /// Of a peer that *we* refused.
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NoCertificate => Self::TlsNoCertificate,
            Refusal::UnknownRoot => Self::TlsUnknownRoot,
            Refusal::OtherTrustDomain => Self::TlsOtherTrustDomain,
            Refusal::Expired => Self::TlsExpired,
            Refusal::NotYetValid => Self::TlsNotYetValid,
            // Clients are expected to be nobody in particular: it is always an endpoint.
            Refusal::WrongIdentity => Self::PeerIdentityMismatch,
            Refusal::NoSpiffeId => Self::TlsNoSpiffeId,
            Refusal::SeveralUris => Self::TlsSeveralUris,
            Refusal::WeakKey => Self::TlsWeakKey,
            Refusal::Malformed => Self::TlsMalformed,
            Refusal::BadSignature => Self::TlsBadSignature,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// The text of `docs/reference/errors.md`.
pub fn reference() -> String {
    use fmt::Write as _;
    let mut out = String::from(
        "# Error reasons\n\n\
         Every answer that a proxy makes itself carries two headers: `x-tulle-error` with a reason of this table,\n\
         and `x-tulle-error-by` with `<namespace>/<workload>/<inbound|outbound>`, the proxy that made it. An answer without\n\
         them is the application's. The same reason stands in the access log (`reason`) and in the metrics\n\
         (`tulle_requests_total{reason=…}`, `tulle_refused_total{reason=…}`). A gRPC client gets HTTP status 200 with\n\
         the gRPC status of the table, and the message in `grpc-message`. Where there is no HTTP status, no answer is made:\n\
         the connection is refused or closed. `tulle explain REASON` prints what stands here of one of them.\n\n\
         This page is made from `proxy/src/telemetry/reason.rs`.\n\n\
         | reason | HTTP | gRPC |\n| --- | --- | --- |\n",
    );
    for reason in Reason::ALL {
        let status = reason.status().map_or_else(|| "—".to_owned(), |status| status.to_string());
        let _ = writeln!(
            out,
            "| [`{0}`](#{0}) | {status} | {1} {2} |",
            reason.code(),
            reason.grpc_status(),
            reason.grpc_name()
        );
    }
    for reason in Reason::ALL {
        let (code, message, cause, remedy) =
            (reason.code(), reason.message(), reason.cause(), reason.remedy());
        let _ = write!(
            out,
            "\n## {code}\n\nMessage: “{message}”.\n\n**Cause.** {cause}\n\n**What to do.** {remedy}\n"
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_plain_and_found_again() {
        for (index, reason) in Reason::ALL.iter().copied().enumerate() {
            assert_eq!(reason.index(), index);
            assert_eq!(Reason::from_code(reason.code()), Some(reason));
            assert!(reason.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{reason}");
        }
        assert_eq!(Reason::from_code("nonsense"), None);
    }

    #[test]
    fn remedies_name_settings_that_there_are() {
        for reason in Reason::ALL {
            let words = reason.cause().split(' ').chain(reason.remedy().split(' '));
            for word in words.filter_map(|word| word.strip_prefix(crate::config::PREFIX)) {
                let name = word.trim_end_matches(|c: char| !c.is_ascii_uppercase());
                assert!(crate::config::VARIABLES.iter().any(|known| known.name == name), "{reason}: {name}");
            }
        }
    }

    #[test]
    fn refusals_keep_their_words() {
        for refusal in Refusal::ALL.into_iter().filter(|refusal| *refusal != Refusal::WrongIdentity) {
            assert_eq!(Reason::from(refusal).code(), refusal.reason());
        }
    }

    #[test]
    fn a_message_can_be_a_header_value_as_it_is() {
        for reason in Reason::ALL {
            assert!(reason.message().bytes().all(|b| (b' '..=b'~').contains(&b) && b != b'%'), "{reason}");
        }
    }

    #[test]
    fn statuses_are_errors() {
        for reason in Reason::ALL {
            assert!(reason.status().is_none_or(|status| (400..600).contains(&status)), "{reason}");
            assert!((1..=16).contains(&reason.grpc_status()), "{reason}");
        }
    }

    #[test]
    fn the_reference_page_says_what_the_table_says() {
        crate::telemetry::docs::compare("errors.md", &reference());
    }
}
