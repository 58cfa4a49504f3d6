//! What a request's end tells about the endpoint that it was sent to, where its port ejects those that do not serve.
//!
//! Decides what counts and what is nobody's fault: that of the client (it left, its own body broke, its own deadline was too
//! short), what the proxies decided themselves (policy, draining, a fault on purpose). An answer that looks well counts only once
//! it is over: a body may break, and gRPC tells its status last. Called by `outbound` and by the record of the response.

use http::Response;

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
    /// What the request came to so far. `grpc`: it is one of gRPC. Fields of ours are there only where the endpoint's own
    /// proxy has set them.
    pub(super) fn came_to(&mut self, sent: Result<&Response<Body>, &Failed>, grpc: bool) {
        if !self.is_watched() {
            return;
        }
        let told = match sent {
            Ok(response) => of_answer(response, grpc),
            Err(failed) => of_failure(failed, self.endpoint().room.is_short()),
        };
        match told {
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

    /// The answer broke off, and not by anybody's will.
    pub(super) fn broke(&mut self) {
        if self.later.take().is_some() {
            self.tell(Outcome::NoAnswer);
        }
    }

    /// It is given up without an answer.
    pub(super) fn given_up(&self) {
        if self.until <= self.now() && self.is_watched() && !self.endpoint().room.is_short() {
            self.tell(Outcome::NoAnswer);
        }
    }

    fn is_watched(&self) -> bool {
        self.endpoint().group.as_ref().is_some_and(|group| group.is_watched())
    }

    fn tell(&self, outcome: Outcome) {
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

/// `is_short`: connections to the endpoint are waited for, since our own limits do not allow more.
fn of_failure(failed: &Failed, is_short: bool) -> Told {
    let reason = failed.fault.reason;
    // It may not even have met the endpoint.
    if reason == Reason::BackendTimeout && failed.whole && is_short {
        return Told::Nothing;
    }
    of_reason(reason).map_or(Told::Nothing, Told::Now)
}

/// What a proxy's own answer tells about the endpoint behind it; `None`: nothing.
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
    use super::*;
    use crate::forward::fault::Fault;

    #[test]
    fn only_what_is_the_endpoints_fault_counts() {
        let failed = |reason| Failed { fault: Fault::unsent(reason, ""), again: None, whole: false };
        for (reason, told) in [
            (Reason::ConnectFailed, Told::Now(Outcome::ConnectFailed)),
            (Reason::TlsFailed, Told::Now(Outcome::ConnectFailed)),
            (Reason::UpstreamReset, Told::Now(Outcome::NoAnswer)),
            (Reason::BackendTimeout, Told::Now(Outcome::NoAnswer)),
            // The client's own body broke; our own certificate is not there yet; policy has changed.
            (Reason::MalformedRequest, Told::Nothing),
            (Reason::NotReady, Told::Nothing),
            (Reason::PolicyDenied, Told::Nothing),
        ] {
            assert_eq!(of_failure(&failed(reason), true), told, "{reason:?}");
        }
        let unsent = Failed { whole: true, ..failed(Reason::BackendTimeout) };
        assert_eq!(of_failure(&unsent, false), Told::Now(Outcome::NoAnswer));
        assert_eq!(of_failure(&unsent, true), Told::Nothing, "kept from it by our own limit");
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
