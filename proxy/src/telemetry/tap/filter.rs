//! Which records a tap shows. All that is said must hold.

use tulle_api::v1;

use super::InvalidTap;
use crate::telemetry::Reason;
use crate::telemetry::access::{Record, Statuses};
use crate::telemetry::metrics::Direction;

/// Peers that one tap may name.
const MAX_PEERS: usize = 256;

/// What is said; what is empty or `None` says nothing.
#[derive(Debug, Default)]
pub(super) struct Filter {
    side: Option<Direction>,
    method: Box<str>,
    path_prefix: Box<str>,
    service: Box<str>,
    route: Box<str>,
    peers: Vec<Box<str>>,
    statuses: Option<Statuses>,
    reason: Option<Because>,
}

#[derive(Debug)]
enum Because {
    Any,
    Of(Reason),
}

// === impl Filter ===

impl Filter {
    pub(super) fn new(said: &v1::TapFilter) -> Result<Self, InvalidTap> {
        let side = match v1::TapSide::try_from(said.side) {
            Ok(v1::TapSide::Either) => None,
            Ok(v1::TapSide::Inbound) => Some(Direction::Inbound),
            Ok(v1::TapSide::Outbound) => Some(Direction::Outbound),
            Err(_) => return Err(InvalidTap::new("side", format!("{} is none", said.side))),
        };
        if said.peers.len() > MAX_PEERS {
            return Err(InvalidTap::new("peers", format!("{} are more than {MAX_PEERS}", said.peers.len())));
        }
        let status = |status: u32| u16::try_from(status).ok();
        let ranges = said.statuses.iter().map(|range| Some(status(range.first)?..=status(range.last)?));
        let statuses: Option<Vec<_>> = ranges.collect();
        let statuses = statuses.ok_or_else(|| InvalidTap::new("statuses", "not of HTTP"))?;
        let reason =
            match &*said.reason {
                "" => None,
                "*" => Some(Because::Any),
                code => Some(Because::Of(Reason::from_code(code).ok_or_else(|| {
                    InvalidTap::new("reason", format!("this proxy knows no reason {code:?}"))
                })?)),
            };
        Ok(Self {
            side,
            method: said.method.as_str().into(),
            path_prefix: said.path_prefix.as_str().into(),
            service: said.service.as_str().into(),
            route: said.route.as_str().into(),
            peers: said.peers.iter().map(|peer| peer.as_str().into()).collect(),
            statuses: (!statuses.is_empty()).then(|| statuses.into_iter().collect()),
            reason,
        })
    }

    /// Whether a request may be shown of which this much is known.
    pub(super) fn may(&self, direction: Direction, method: &str, path: &str) -> bool {
        self.side.is_none_or(|side| side == direction)
            && (self.method.is_empty() || *self.method == *method)
            && path.starts_with(&*self.path_prefix)
    }

    /// Whether a record is shown.
    pub(super) fn takes(&self, record: &Record<'_>) -> bool {
        let peer = match record.direction {
            Direction::Inbound => record.source,
            Direction::Outbound => record.destination,
        };
        self.may(record.direction, record.method, record.path_alone())
            && (is_of(&self.service, record.service) || is_of(&self.service, record.backend))
            && (self.route.is_empty() || *self.route == *record.route)
            && (self.peers.is_empty() || self.peers.iter().any(|known| **known == *peer))
            && self
                .statuses
                .as_ref()
                .is_none_or(|statuses| record.common_status().is_some_and(|status| statuses.has(status)))
            && match (&self.reason, record.reason) {
                (None, _) | (Some(Because::Any), Some(_)) => true,
                (Some(Because::Of(wanted)), Some(reason)) => *wanted == reason,
                (Some(_), None) => false,
            }
    }
}

/// Whether `name`, `<namespace>/<name>:<port>`, is the wanted one, which may say no port.
fn is_of(wanted: &str, name: &str) -> bool {
    name.strip_prefix(wanted)
        .is_some_and(|rest| wanted.is_empty() || rest.is_empty() || rest.starts_with(':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";

    fn record() -> Record<'static> {
        Record {
            direction: Direction::Outbound,
            method: "GET",
            path: "/api/orders?card=4111",
            status: Some(503),
            reason: Some(Reason::ConnectFailed),
            source: WEB,
            destination: ORDERS,
            service: "shop/orders:80",
            route: "shop/split",
            backend: "shop/orders-v2:8080",
            ..Record::default()
        }
    }

    fn said() -> v1::TapFilter {
        v1::TapFilter::default()
    }

    fn takes(said: &v1::TapFilter, record: &Record<'_>) -> bool {
        Filter::new(said).unwrap().takes(record)
    }

    #[test]
    fn each_thing_that_is_said_must_hold() {
        let text = str::to_owned;
        let statuses = |first, last| vec![v1::StatusRange { first, last }];
        let cases = [
            (said(), true),
            (v1::TapFilter { side: v1::TapSide::Outbound.into(), ..said() }, true),
            (v1::TapFilter { side: v1::TapSide::Inbound.into(), ..said() }, false),
            (v1::TapFilter { method: text("GET"), ..said() }, true),
            (v1::TapFilter { method: text("POST"), ..said() }, false),
            (v1::TapFilter { path_prefix: text("/api"), ..said() }, true),
            (v1::TapFilter { path_prefix: text("/api/orders?"), ..said() }, false),
            (v1::TapFilter { path_prefix: text("/other"), ..said() }, false),
            (v1::TapFilter { service: text("shop/orders"), ..said() }, true),
            (v1::TapFilter { service: text("shop/orders:80"), ..said() }, true),
            (v1::TapFilter { service: text("shop/orders:8"), ..said() }, false),
            (v1::TapFilter { service: text("shop/order"), ..said() }, false),
            (v1::TapFilter { service: text("shop/orders-v2"), ..said() }, true),
            (v1::TapFilter { route: text("shop/split"), ..said() }, true),
            (v1::TapFilter { route: text("shop/other"), ..said() }, false),
            (v1::TapFilter { peers: vec![text(WEB), text(ORDERS)], ..said() }, true),
            // It is this proxy's own.
            (v1::TapFilter { peers: vec![text(WEB)], ..said() }, false),
            (v1::TapFilter { statuses: statuses(500, 599), ..said() }, true),
            (v1::TapFilter { statuses: statuses(200, 299), ..said() }, false),
            (v1::TapFilter { reason: text("*"), ..said() }, true),
            (v1::TapFilter { reason: text("connect_failed"), ..said() }, true),
            (v1::TapFilter { reason: text("policy_denied"), ..said() }, false),
            (v1::TapFilter { method: text("GET"), path_prefix: text("/other"), ..said() }, false),
        ];
        for (said, expected) in cases {
            assert_eq!(takes(&said, &record()), expected, "{said:?}");
        }
        let inbound = Record { direction: Direction::Inbound, reason: None, ..record() };
        assert!(takes(&v1::TapFilter { peers: vec![text(WEB)], ..said() }, &inbound));
        assert!(!takes(&v1::TapFilter { reason: text("*"), ..said() }, &inbound));
        // gRPC by what its status stands for, and what has none is of none.
        let grpc = Record { status: Some(200), grpc_status: Some(14), ..record() };
        assert!(takes(&v1::TapFilter { statuses: statuses(503, 503), ..said() }, &grpc));
        let none = Record { status: None, ..record() };
        assert!(!takes(&v1::TapFilter { statuses: statuses(100, 599), ..said() }, &none));
    }

    #[test]
    fn what_a_newer_control_plane_says_is_refused_and_named() {
        let wrong = |said: v1::TapFilter| Filter::new(&said).unwrap_err().to_string();
        assert_eq!(wrong(v1::TapFilter { side: 9, ..said() }), "side: 9 is none");
        let reason = wrong(v1::TapFilter { reason: "new_one".to_owned(), ..said() });
        assert_eq!(reason, "reason: this proxy knows no reason \"new_one\"");
        let statuses = vec![v1::StatusRange { first: 70_000, last: 70_000 }];
        assert_eq!(wrong(v1::TapFilter { statuses, ..said() }), "statuses: not of HTTP");
        let peers = vec![WEB.to_owned(); MAX_PEERS + 1];
        assert_eq!(wrong(v1::TapFilter { peers, ..said() }), "peers: 257 are more than 256");
    }
}
