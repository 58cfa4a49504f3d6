//! What a request's end tells about the endpoint that it was sent to, where its port ejects those that do not serve.
//!
//! Decides what counts and what is nobody's fault: that of the client (it left, its own body broke or is not all there yet, its own deadline was too
//! short, it does not read), what the proxies decided themselves (policy, draining, a fault on purpose), and what this proxy lacks itself (a valid
//! certificate, room under its own limits, descriptors, ports), and the end of a connection that had served others, as connections end. None of
//! that counts in the endpoint's latency either. An answer that
//! looks well counts only once it is over: a body may break, and gRPC tells its status last. Called by `outbound`, by `inbound` and
//! `mirror` for the latency alone, and by the record of the response.

use http::Response;

use super::again::Cause;
use super::exchange::Failed;
use super::fault::GRPC_STATUS;
use super::headers;
use super::in_flight::InFlight;
use crate::balance::Outcome;
use crate::endpoint;
use crate::telemetry::Reason;
use crate::wire::Body;

/// What is known once there is a head, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Now(Outcome),
    /// If the body comes to its end, unless trailers say otherwise.
    AtTheEnd(Outcome),
    Nothing,
}

// === impl InFlight ===

impl InFlight {
    /// It failed `now`, by the proxy's clock: the endpoint's load hears of it, if it tells anything of the endpoint; what it tells.
    pub(super) fn failed(&mut self, failed: &Failed, now: u64) -> Option<Outcome> {
        // Late for what its client has not sent yet.
        let early = failed.again == Some(Cause::Late) && self.waits_for_client();
        let told = of_failure(failed, self.endpoint().room.is_short()).filter(|_| !early);
        match told {
            Some(_) => self.answered(false, now),
            None => self.withdrawn = true,
        }
        told
    }

    /// What the request came to so far. `grpc`: it is one of gRPC. Fields of ours are there only where the endpoint's own
    /// proxy has set them.
    pub(super) fn came_to(&mut self, response: &Response<Body>, grpc: bool) {
        if !self.is_watched() {
            return;
        }
        match of_answer(response, grpc) {
            Told::Now(outcome) => self.tell(outcome),
            Told::AtTheEnd(outcome) => self.later = Some(outcome),
            Told::Nothing => {}
        }
    }

    /// The answer is over; `grpc`: the status that it ended with.
    pub(super) fn is_over(&mut self, grpc: Option<u32>) {
        if let Some(outcome) = self.later.take() {
            self.tell(grpc.map_or(outcome, Outcome::Grpc));
        }
    }

    /// The answer took too long; `waits`: for its endpoint, and not for its reader.
    pub(super) fn is_late(&mut self, waits: bool) {
        if waits && !self.waits_for_client() {
            self.broke();
        }
    }

    /// The answer broke off, and not by anybody's will.
    pub(super) fn broke(&mut self) {
        if self.later.take().is_some() {
            self.tell(Outcome::NoAnswer);
        }
    }

    /// It is given up without an answer.
    pub(super) fn given_up(&self) {
        if self.until <= self.now() && self.is_watched() {
            self.tell(Outcome::NoAnswer);
        }
    }

    /// The server of a connection that nobody looks into has said something.
    pub(super) fn spoke(&self) {
        self.tell(Outcome::Status(200));
    }

    /// The server's side broke such a connection off before it said anything: so does a proxy that cannot reach its application.
    pub(super) fn never_spoke(&self) {
        if self.disappointed() {
            self.tell(Outcome::ConnectFailed);
        }
    }

    fn is_watched(&self) -> bool {
        self.endpoint().group.as_ref().is_some_and(|group| group.is_watched())
    }

    pub(super) fn tell(&self, outcome: Outcome) {
        tell(self.endpoint(), outcome, self.now());
    }
}

/// Something came to this at an endpoint.
pub(super) fn tell(endpoint: &endpoint::Endpoint, outcome: Outcome, now: u64) {
    let Some(group) = endpoint.group.as_ref().filter(|group| group.is_watched()) else { return };
    if let Some(change) = group.record(&endpoint.standing, outcome, now) {
        endpoint::tell(endpoint, change);
    }
}

/// `None`: nothing. `is_short`: connections to the endpoint are waited for, since our own limits do not allow more.
fn of_failure(failed: &Failed, is_short: bool) -> Option<Outcome> {
    let reason = failed.fault.reason;
    // It may not even have met the endpoint.
    if reason == Reason::BackendTimeout && failed.whole && is_short {
        return None;
    }
    // A connection that idled too long, or is as old as its server lets any be. Should there be more to it, the next one tells.
    if matches!(failed.again, Some(Cause::Ended | Cause::Stale)) {
        return None;
    }
    of_reason(reason)
}

/// What a proxy's own answer tells about the endpoint behind it; `None`: nothing, also what is [our own](crate::endpoint::ConnectError::is_our_own).
pub(super) fn of_reason(reason: Reason) -> Option<Outcome> {
    match reason {
        Reason::ConnectFailed
        | Reason::ConnectTimeout
        | Reason::TlsFailed
        | Reason::PeerIdentityMismatch
        | Reason::PeerRefusedTls => Some(Outcome::ConnectFailed),
        Reason::UpstreamReset
        | Reason::UpstreamMalformed
        | Reason::RequestTimeout
        | Reason::BackendTimeout => Some(Outcome::NoAnswer),
        _ => None,
    }
}

fn of_answer(response: &Response<Body>, grpc: bool) -> Told {
    let (fields, status) = (response.headers(), response.status().as_u16());
    if let Some(code) = fields.get(headers::ERROR) {
        return match code.to_str().ok().and_then(Reason::from_code) {
            // It refuses more than it can take, on purpose.
            Some(Reason::Overloaded | Reason::RateLimited) => Told::Now(Outcome::Status(status)),
            reason => reason.and_then(of_reason).map_or(Told::Nothing, Told::Now),
        };
    }
    if status >= 400 {
        return Told::Now(Outcome::Status(status));
    }
    let said = fields.get(GRPC_STATUS).filter(|_| grpc);
    match said.and_then(|said| said.to_str().ok()?.parse().ok()) {
        Some(code) => Told::Now(Outcome::Grpc(code)),
        None => Told::AtTheEnd(Outcome::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;

    use super::*;
    use crate::endpoint::ConnectError;
    use crate::forward::exchange::connect_fault;
    use crate::forward::fault::Fault;
    use crate::tls;

    #[test]
    fn what_is_our_own_fault_counts_at_no_endpoint_and_what_is_not_does() {
        let address = SocketAddr::from(([10, 0, 0, 1], 80));
        let source = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let tls = |source| ConnectError::Tls { address, source };
        for (error, is_own) in [
            (ConnectError::NoIdentity(address), true),
            (tls(tls::ConnectError::OwnCertificateExpired), true),
            (ConnectError::Exhausted { address, source: source() }, true),
            (ConnectError::Ended(address), true),
            (ConnectError::Unwanted, true),
            (tls(tls::ConnectError::Failed(source())), false),
            (tls(tls::ConnectError::RefusedByPeer(source())), false),
            (ConnectError::Tcp { address, source: source() }, false),
            (ConnectError::TimedOut(address, std::time::Duration::ZERO), false),
            (ConnectError::Closed(address), false),
        ] {
            assert_eq!(error.is_our_own(), is_own, "{error}");
            let failed = Failed { fault: connect_fault(&error), again: None, whole: true };
            assert_eq!(of_failure(&failed, false).is_none(), is_own, "{error}");
        }
    }

    #[test]
    fn only_what_is_the_endpoints_fault_counts() {
        let failed = |reason| Failed { fault: Fault::unsent(reason, ""), again: None, whole: false };
        for (reason, told) in [
            (Reason::ConnectFailed, Some(Outcome::ConnectFailed)),
            (Reason::TlsFailed, Some(Outcome::ConnectFailed)),
            (Reason::UpstreamReset, Some(Outcome::NoAnswer)),
            (Reason::BackendTimeout, Some(Outcome::NoAnswer)),
            // The client's own body broke; our own certificate is not there yet; policy has changed.
            (Reason::MalformedRequest, None),
            (Reason::NotReady, None),
            (Reason::PolicyDenied, None),
        ] {
            assert_eq!(of_failure(&failed(reason), true), told, "{reason:?}");
        }
        let unsent = Failed { whole: true, ..failed(Reason::BackendTimeout) };
        assert_eq!(of_failure(&unsent, false), Some(Outcome::NoAnswer));
        assert_eq!(of_failure(&unsent, true), None, "kept from it by our own limit");
        for (again, told) in [
            // GOAWAY, and a server that closes what idles.
            (Cause::Ended, None),
            (Cause::Stale, None),
            // A new connection that takes nothing, or a stream of one that lives.
            (Cause::Unprocessed, Some(Outcome::NoAnswer)),
            (Cause::Broken, Some(Outcome::NoAnswer)),
        ] {
            let failed = Failed { again: Some(again), ..failed(Reason::UpstreamReset) };
            assert_eq!(of_failure(&failed, false), told, "{again:?}");
        }
        let now = |status| Told::Now(Outcome::Status(status));
        for (status, fields, grpc, told) in [
            (200, &[] as &[(&'static str, &'static str)], false, Told::AtTheEnd(Outcome::Status(200))),
            (404, &[], false, now(404)),
            (503, &[], false, now(503)),
            (200, &[("grpc-status", "14")], true, Told::Now(Outcome::Grpc(14))),
            (200, &[("grpc-status", "14")], false, Told::AtTheEnd(Outcome::Status(200))),
            (200, &[], true, Told::AtTheEnd(Outcome::Status(200))),
            (403, &[("x-tulle-error", "policy_denied")], false, Told::Nothing),
            (503, &[("x-tulle-error", "draining")], false, Told::Nothing),
            (503, &[("x-tulle-error", "overloaded")], false, now(503)),
            (429, &[("x-tulle-error", "rate_limited")], false, now(429)),
            (503, &[("x-tulle-error", "connect_failed")], false, Told::Now(Outcome::ConnectFailed)),
            (502, &[("x-tulle-error", "upstream_reset")], false, Told::Now(Outcome::NoAnswer)),
            (503, &[("x-tulle-error", "a_reason_to_come")], false, Told::Nothing),
        ] {
            let response =
                fields.iter().fold(Response::builder().status(status), |response, (name, value)| {
                    response.header(*name, *value)
                });
            assert_eq!(of_answer(&response.body(Body::empty()).unwrap(), grpc), told, "{status} {fields:?}");
        }
    }
}
