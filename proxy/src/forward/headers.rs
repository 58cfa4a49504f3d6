//! Header fields of ours and of the hop.

use std::fmt::Write as _;

use http::{HeaderMap, HeaderName, HeaderValue, Request, Uri, Version, header};
use http_body::Body as _;
use tulle_certs::SpiffeId;

use super::fault::Fault;
use crate::policy::is_taken_for;
use crate::state::Peer;
use crate::telemetry::Reason;
use crate::wire::Body;

pub(super) const ERROR: HeaderName = HeaderName::from_static("x-tulle-error");
pub(super) const ERROR_BY: HeaderName = HeaderName::from_static("x-tulle-error-by");
pub(super) const PROCESSED: HeaderName = HeaderName::from_static("x-tulle-processed");
/// Whose certificate a client has shown, as Envoy tells servers.
pub(super) const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");

/// Removes every field under a name of ours: nobody but a proxy of the mesh may say these things.
pub(super) fn strip_ours(fields: &mut HeaderMap) {
    while let Some(name) = fields.keys().find(|name| is_ours(name)).cloned() {
        fields.remove(name);
    }
}

/// Removes from a request to the application what only its proxy may say: names of ours, and who its client is. `proven` is said in place of
/// what came, where the application is to be told.
pub(super) fn take_claims(fields: &mut HeaderMap, proven: Option<&HeaderValue>) {
    strip_claims(fields);
    if let Some(proven) = proven {
        fields.insert(CLIENT_CERT, proven.clone());
    }
}

/// Removes them, and says nothing: of trailers too, which some servers add to the fields.
pub(super) fn strip_claims(fields: &mut HeaderMap) {
    while let Some(name) = fields.keys().find(|name| is_ours(name) || is_client_cert(name)).cloned() {
        fields.remove(name);
    }
}

/// Who has proven to be the client, in Envoy's form; no SPIFFE ID has a character that would have to be quoted.
pub(super) fn client_cert(own: &SpiffeId, client: &SpiffeId, certificate: &[u8]) -> Option<HeaderValue> {
    let mut told = format!("By={own};Hash=");
    for byte in certificate {
        let _ = write!(told, "{byte:02x}");
    }
    let _ = write!(told, ";URI={client}");
    HeaderValue::try_from(told).ok()
}

/// Removes every field that some server takes for the one that is called so.
pub(super) fn strip_named(fields: &mut HeaderMap, called: &HeaderName) {
    while let Some(name) = fields.keys().find(|name| is_taken_for(name, called)).cloned() {
        fields.remove(name);
    }
}

/// The same, but for the one that is spelled so.
pub(super) fn strip_likenesses(fields: &mut HeaderMap, called: &HeaderName) {
    while let Some(name) = fields.keys().find(|name| *name != called && is_taken_for(name, called)).cloned() {
        fields.remove(name);
    }
}

/// As [`strip_named`], of trailers that are still to come, for each of these names: some servers add them to the fields.
pub(super) fn strip_named_trailers(body: &mut Body, called: Vec<HeaderName>) {
    if !called.is_empty() && !body.is_end_stream() {
        body.trimmed_by(move |trailers| called.iter().for_each(|called| strip_named(trailers, called)));
    }
}

fn is_ours(name: &HeaderName) -> bool {
    begins(name, "x-tulle-")
}

fn is_client_cert(name: &HeaderName) -> bool {
    is_taken_for(name, &CLIENT_CERT)
}

/// To servers too that take `_` for `-`, as CGI has them (RFC 3875 §4.1.18).
fn begins(name: &HeaderName, prefix: &str) -> bool {
    let name = name.as_str().as_bytes();
    let is_dash = |byte: u8| matches!(byte, b'-' | b'_');
    let same = |(byte, wanted): (&u8, &u8)| byte == wanted || (is_dash(*byte) && is_dash(*wanted));
    name.len() >= prefix.len() && name.iter().zip(prefix.as_bytes()).all(same)
}

/// What a proxy says to another before it closes a connection that is idle: the answer to a request that has crossed this on
/// its way, and is not read any more.
pub(super) const FAREWELL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nx-tulle-error: draining\r\n\
    x-tulle-processed: no\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Whether an answer, of which [`take_ours`] has said that the request is unprocessed, says that the connection has left it behind:
/// a new one to the same endpoint may take it.
pub(super) fn has_left<B>(answer: &http::Response<B>) -> bool {
    let error = answer.headers().get(ERROR);
    error.is_some_and(|error| error == Reason::Draining.code() || error == Reason::UpstreamReset.code())
}

/// What a response says in fields of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Said {
    Nothing,
    Something,
    /// The other proxy answered itself, for want of its application: the request is provably unprocessed.
    Unprocessed,
}

/// Leaves of our fields in a response only what another proxy may say to the application; nothing of what anybody else
/// says.
pub(super) fn take_ours(fields: &mut HeaderMap, peer: &Peer) -> Said {
    if *peer == Peer::Plaintext {
        strip_ours(fields);
        return Said::Nothing;
    }
    // Most say nothing: one walk spares the look-ups, here and of the record.
    if !fields.keys().any(is_ours) {
        return Said::Nothing;
    }
    let told = fields.remove(PROCESSED).is_some_and(|processed| processed == "no");
    let elsewhere = [
        Reason::ConnectFailed,
        Reason::ConnectTimeout,
        Reason::NotReady,
        Reason::PolicyUnavailable,
        Reason::Draining,
        Reason::Overloaded,
        Reason::UpstreamReset,
    ];
    match fields.get(ERROR) {
        Some(error) if told && elsewhere.iter().any(|reason| error == reason.code()) => Said::Unprocessed,
        _ => Said::Something,
    }
}

/// Removes what belongs to the hop it came over (RFC 9110 §7.6.1) and is made anew for the next: the fields that
/// `Connection` names, and those that are always the hop's. `Upgrade` stays where the message is an upgrade.
pub(super) fn strip_hop(fields: &mut HeaderMap, upgrade: bool) {
    if !upgrade && !has_hops(fields) {
        return;
    }
    let named: Vec<HeaderName> = list(fields, header::CONNECTION)
        .filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok())
        .collect();
    for name in named {
        // Framing is the codec's; a client must not talk it out of the length by naming the field here.
        if name != header::CONTENT_LENGTH && name != header::HOST && !(upgrade && name == header::UPGRADE) {
            fields.remove(name);
        }
    }
    let spelled = fields.remove(header::CONNECTION);
    for name in [KEEP_ALIVE, PROXY_CONNECTION] {
        fields.remove(name);
    }
    if list(fields, header::TE).any(|coding| coding != "trailers") {
        let trailers = list(fields, header::TE).any(|coding| coding == "trailers");
        fields.remove(header::TE);
        if trailers {
            fields.insert(header::TE, HeaderValue::from_static("trailers"));
        }
    }
    if upgrade {
        let spelled = spelled.filter(|value| value.as_bytes().eq_ignore_ascii_case(b"upgrade"));
        let value = spelled.unwrap_or_else(|| HeaderValue::from_static("upgrade"));
        fields.insert(header::CONNECTION, value);
    } else {
        fields.remove(header::UPGRADE);
    }
}

/// The same of a request; whether it asks for another protocol, if it `may`.
pub(super) fn strip_requests_hop(fields: &mut HeaderMap, may: bool) -> bool {
    if !has_hops(fields) {
        return false;
    }
    let upgrade = may && is_upgrade(fields);
    strip_hop(fields, upgrade);
    upgrade
}

/// Whether there is anything to remove. Most messages have nothing, and those of gRPC a `TE` that passes: one walk over the names spares a
/// look-up for each.
fn has_hops(fields: &HeaderMap) -> bool {
    let mut hops = fields.keys().filter(|name| is_hops(name));
    match (hops.next(), hops.next()) {
        (None, _) => false,
        (Some(only), None) => {
            *only != header::TE || fields.get_all(header::TE).iter().any(|codings| codings != "trailers")
        }
        (Some(_), Some(_)) => true,
    }
}

fn is_hops(name: &HeaderName) -> bool {
    matches!(*name, header::CONNECTION | header::TE | header::UPGRADE)
        || *name == KEEP_ALIVE
        || *name == PROXY_CONNECTION
}

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Whether a request asks for another protocol (RFC 9110 §7.8): `Connection` names `Upgrade`. HTTP/2 is not one to ask for:
/// behind it, requests would pass that nobody judges (and RFC 9113 §3.1 has dropped it).
pub(super) fn is_upgrade(fields: &HeaderMap) -> bool {
    let mut offered = list(fields, header::UPGRADE).peekable();
    offered.peek().is_some()
        && !offered.any(|protocol| protocol.eq_ignore_ascii_case("h2c"))
        && list(fields, header::CONNECTION).any(|name| name.eq_ignore_ascii_case("upgrade"))
}

/// The members of a field that is a list (RFC 9110 §5.6.1).
fn list(fields: &HeaderMap, name: HeaderName) -> impl Iterator<Item = &str> {
    let values = fields.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

/// Whether a message is gRPC's: `application/grpc`, with a format or parameters after it (gRPC over HTTP/2, "Requests").
pub fn is_grpc(fields: &HeaderMap) -> bool {
    let kind = fields.get(header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
    kind.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
}

/// The host that a request names, without its port: from its target, else from `Host`. Empty when there is none.
pub(super) fn host<B>(request: &Request<B>) -> &str {
    without_port(authority(request))
}

/// The same as it was sent, port and all.
pub(super) fn authority<B>(request: &Request<B>) -> &str {
    authority_of(request.uri(), || request.headers().get(header::HOST))
}

/// `Host`, where the target does not name it.
pub(super) fn needed_host<B>(request: &Request<B>) -> Option<&HeaderValue> {
    if request.uri().authority().is_some() { None } else { request.headers().get(header::HOST) }
}

/// The same of a request's target and its `Host`.
pub(super) fn needed_of<'a>(target: &Uri, host: Option<&'a HeaderValue>) -> Option<&'a HeaderValue> {
    host.filter(|_| target.authority().is_none())
}

/// As [`host`], of a request's target and its `Host`.
pub(super) fn host_of<'a>(target: &'a Uri, host: Option<&'a HeaderValue>) -> &'a str {
    without_port(authority_of(target, || host))
}

fn authority_of<'a>(target: &'a Uri, host: impl FnOnce() -> Option<&'a HeaderValue>) -> &'a str {
    match target.authority() {
        Some(authority) => authority.as_str(),
        None => host().and_then(|host| host.to_str().ok()).unwrap_or(""),
    }
}

/// Refuses a request of HTTP/2 that names its host twice and differently: whoever judges it by one would be passed by with the
/// other (RFC 9113 §8.3.1).
///
/// # Errors
/// [`Reason::MalformedRequest`].
pub(super) fn check_host<B>(request: &Request<B>) -> Result<(), Fault> {
    if request.version() == Version::HTTP_2 { check_only_host(request) } else { Ok(()) }
}

/// The same of any version, where [`host`] is what the server is told apart by: outside the mesh, servers that share an address
/// may go by `Host`, though the target names another (RFC 9112 §3.2.2 has them not to).
///
/// # Errors
/// [`Reason::MalformedRequest`].
pub(super) fn check_only_host<B>(request: &Request<B>) -> Result<(), Fault> {
    let Some(authority) = request.uri().authority() else { return Ok(()) };
    let same = |host: &HeaderValue| {
        let host = host.to_str().map(without_port);
        host.is_ok_and(|host| host.eq_ignore_ascii_case(without_port(authority.as_str())))
    };
    if request.headers().get_all(header::HOST).iter().all(same) {
        return Ok(());
    }
    Err(Fault::unsent(Reason::MalformedRequest, "`Host` and the target's authority differ"))
}

fn without_port(authority: &str) -> &str {
    // By bytes, and once: these are short.
    let (mut begin, mut colon) = (0, authority.len());
    for (at, byte) in authority.bytes().enumerate() {
        match byte {
            b'@' => (begin, colon) = (at + 1, authority.len()),
            b':' => colon = colon.min(at),
            _ => {}
        }
    }
    let host = &authority[begin..];
    if let Some(end) = host.strip_prefix('[').and_then(|rest| rest.find(']')) {
        return &host[1..=end];
    }
    &authority[begin..colon]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&str, &str)]) -> HeaderMap {
        lines
            .iter()
            .map(|(name, value)| {
                (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
            })
            .collect()
    }

    #[test]
    fn the_hops_own_fields_do_not_reach_the_next_hop() {
        let mut fields = fields(&[
            ("connection", "close, X-Mine, content-length"),
            ("x-mine", "1"),
            ("content-length", "3"),
            ("keep-alive", "timeout=5"),
            ("te", "gzip"),
            ("upgrade", "h2c"),
            ("accept", "*/*"),
        ]);
        strip_hop(&mut fields, false);
        let mut left: Vec<_> = fields.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["accept", "content-length"]);
    }

    #[test]
    fn an_upgrade_keeps_what_it_needs() {
        let mut fields = fields(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]);
        assert!(is_upgrade(&fields));
        strip_hop(&mut fields, true);
        assert_eq!(fields["connection"], "upgrade");
        assert_eq!(fields["upgrade"], "websocket");
    }

    #[test]
    fn http_2_is_not_offered_to_servers() {
        let mut fields = fields(&[
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", "websocket, H2C"),
            ("http2-settings", "AAMAAABkAAQAAP__"),
        ]);
        assert!(!is_upgrade(&fields));
        strip_hop(&mut fields, false);
        assert!(fields.is_empty(), "{fields:?}");
    }

    #[test]
    fn grpc_web_is_not_grpc() {
        let is = |kind| is_grpc(&fields(&[("content-type", kind)]));
        assert!(
            is("application/grpc") && is("application/grpc+proto") && is("application/grpc;charset=utf-8")
        );
        assert!(!is("application/grpc-web") && !is("application/json"));
    }

    #[test]
    fn names_of_ours_are_removed_however_often_they_come() {
        let mut fields = fields(&[("x-tulle-error", "a"), ("x-tulle-error", "b"), ("x-tulle-x", "c")]);
        strip_ours(&mut fields);
        assert!(fields.is_empty());
    }

    #[test]
    fn who_the_client_is_nobody_says_but_the_proxy_however_it_is_spelt() {
        let claimed = [
            ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/default/sa/admin"),
            ("X-Forwarded-Client-Cert", "URI=spiffe://cluster.local/ns/default/sa/root"),
            ("x_forwarded_client_cert", "URI=spiffe://cluster.local/ns/default/sa/admin"),
            ("x-forwarded_client-cert", "a"),
            ("x_tulle_peer", "a"),
            ("x-tulle-peer", "a"),
        ];
        let mut stripped = fields(&claimed);
        take_claims(&mut stripped, None);
        assert!(stripped.is_empty(), "{stripped:?}");

        let id =
            |name: &str| SpiffeId::parse(&format!("spiffe://cluster.local/ns/default/sa/{name}")).unwrap();
        let proven = client_cert(&id("orders"), &id("web"), &[0x0f; 32]).unwrap();
        let mut told = fields(&claimed);
        take_claims(&mut told, Some(&proven));
        assert_eq!(told.len(), 1, "{told:?}");
        let expected = format!(
            "By=spiffe://cluster.local/ns/default/sa/orders;Hash={};URI=spiffe://cluster.local/ns/default/sa/web",
            "0f".repeat(32)
        );
        assert_eq!(told["x-forwarded-client-cert"], expected);

        let near = [("x-forwarded-client-certs", "1"), ("x-forwarded-client", "1"), ("x-forwarded-for", "1")];
        let mut others = fields(&near);
        take_claims(&mut others, None);
        assert_eq!(others.len(), near.len(), "names of others stay");
    }

    #[test]
    fn only_another_proxy_may_speak_of_errors_and_of_what_was_processed_only_to_us() {
        let answer =
            [("x-tulle-error", "connect_failed"), ("x-tulle-error-by", "a"), ("x-tulle-processed", "no")];
        let mut outside = fields(&answer);
        assert_eq!(take_ours(&mut outside, &Peer::Plaintext), Said::Nothing);
        assert!(outside.is_empty());
        let id = "spiffe://cluster.local/ns/default/sa/orders".parse().unwrap();
        let mut meshed = fields(&answer);
        assert_eq!(take_ours(&mut meshed, &Peer::Mesh(id)), Said::Unprocessed);
        assert_eq!(meshed.len(), 2);
        let denied = [("x-tulle-error", "policy_denied"), ("x-tulle-processed", "no")];
        let id = "spiffe://cluster.local/ns/default/sa/orders".parse().unwrap();
        let peer = Peer::Mesh(id);
        assert_eq!(take_ours(&mut fields(&denied), &peer), Said::Something, "another would deny it too");
        assert_eq!(take_ours(&mut fields(&[("server", "x-tulle-error")]), &peer), Said::Nothing);
    }

    #[test]
    fn a_stream_that_names_two_hosts_is_refused() {
        let check = |version, host: &str| {
            let request = Request::get("http://orders:80/").version(version).header("host", host);
            check_host(&request.body(()).unwrap()).map_err(|fault| fault.reason)
        };
        assert_eq!(check(Version::HTTP_2, "Orders"), Ok(()));
        assert_eq!(check(Version::HTTP_2, "admin"), Err(Reason::MalformedRequest));
        assert_eq!(check(Version::HTTP_11, "admin"), Ok(()), "applications tell these apart themselves");
    }

    #[test]
    fn r18_outside_the_mesh_no_request_names_two_hosts() {
        let check = |target: &str, host: Option<&str>| {
            let request = host.into_iter().fold(Request::get(target), |it, host| it.header("host", host));
            check_only_host(&request.body(()).unwrap()).map_err(|fault| fault.reason)
        };
        for (target, host) in [
            ("http://good.example:80/", Some("Good.Example")),
            ("http://good.example/", None),
            ("/", Some("good.example")),
        ] {
            assert_eq!(check(target, host), Ok(()), "{target} {host:?}");
        }
        for host in ["other.example", "", "good.example.other"] {
            let checked = check("http://good.example/", Some(host));
            assert_eq!(checked, Err(Reason::MalformedRequest), "{host}");
        }
    }

    #[test]
    fn a_host_is_told_without_its_port() {
        for (authority, host) in
            [("a:80", "a"), ("a", "a"), ("[::1]:80", "::1"), ("[::1]", "::1"), ("u:p@a:1", "a"), ("", "")]
        {
            assert_eq!(without_port(authority), host, "{authority}");
        }
    }
}
