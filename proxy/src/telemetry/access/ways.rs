//! The fields that say between whom a record was and by which way, remembered as text: most records differ from one before in none of them.

use std::net::SocketAddr;

use super::Record;
use super::json::{MAX_VALUE, address, quoted, text, word};
use crate::telemetry::metrics::{Direction, TlsKind};

/// One worker's.
#[derive(Debug, Default)]
pub(super) struct Ways {
    ways: [Way; COUNT],
    kinds: [Kind; KINDS],
}

/// How many are remembered of what a record is of: a few methods at a time.
const KINDS: usize = 8;

/// The first fields, up to the method.
#[derive(Debug, Default)]
struct Kind {
    /// `None`: nothing is remembered.
    direction: Option<Direction>,
    protocol: String,
    method: String,
    text: Vec<u8>,
}

/// How many are remembered: a few endpoints' at a time.
const COUNT: usize = 16;
/// A way whose values are longer than this together is written anew each time.
const MAX_BYTES: usize = 2 * MAX_VALUE;

#[derive(Debug, Default)]
struct Way {
    names: [String; 8],
    lengths: [usize; 8],
    endpoint: Option<SocketAddr>,
    /// `None`: nothing is remembered.
    tls: Option<TlsKind>,
    text: Vec<u8>,
}

// === impl Ways ===

impl Ways {
    /// Appends the fields from `source` to `tls`.
    pub(super) fn write(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        let names = names(record);
        let way = &mut self.ways[slot(record)];
        if !way.is(record, &names) {
            if names.iter().map(|name| name.len()).sum::<usize>() > MAX_BYTES {
                return record.write_way(out);
            }
            way.remember(record, &names);
        }
        out.extend_from_slice(&way.text);
    }

    /// Ends the timestamp, and appends the fields up to `method`.
    pub(super) fn write_kind(&mut self, record: &Record<'_>, out: &mut Vec<u8>) {
        let Record { direction, protocol, method, .. } = *record;
        let at = method.len() ^ protocol.len() ^ usize::from(direction == Direction::Inbound);
        let kind = &mut self.kinds[at % KINDS];
        if kind.direction != Some(direction) || kind.method != method || kind.protocol != protocol {
            if method.len() + protocol.len() > MAX_BYTES {
                return record.write_kind(out);
            }
            kind.direction = Some(direction);
            protocol.clone_into(&mut kind.protocol);
            method.clone_into(&mut kind.method);
            kind.text.clear();
            record.write_kind(&mut kind.text);
        }
        out.extend_from_slice(&kind.text);
    }
}

// === impl Way ===

impl Way {
    fn is(&self, record: &Record<'_>, names: &[&str; 8]) -> bool {
        // All lengths first: no two that are compared then need be told apart by theirs.
        self.tls == Some(record.tls)
            && self.endpoint == record.endpoint
            && self.lengths == names.map(str::len)
            && self.names.iter().zip(names).all(|(own, name)| name.is_empty() || own == name)
    }

    fn remember(&mut self, record: &Record<'_>, names: &[&str; 8]) {
        (self.tls, self.endpoint, self.lengths) = (Some(record.tls), record.endpoint, names.map(str::len));
        for (own, name) in self.names.iter_mut().zip(names) {
            own.clear();
            own.push_str(name);
        }
        self.text.clear();
        record.write_way(&mut self.text);
    }
}

// === impl Record ===

impl Record<'_> {
    fn write_kind(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\",\"target\":\"access\"");
        word(out, quoted!("direction"), self.direction.as_str());
        text(out, quoted!("protocol"), self.protocol);
        text(out, quoted!("method"), self.method);
    }

    fn write_way(&self, out: &mut Vec<u8>) {
        text(out, quoted!("source"), self.source);
        text(out, quoted!("destination"), self.destination);
        text(out, quoted!("service"), self.service);
        text(out, quoted!("route"), self.route);
        text(out, quoted!("backend"), self.backend);
        word(out, quoted!("session"), self.session);
        text(out, quoted!("detected"), self.detected);
        address(out, quoted!("endpoint"), self.endpoint);
        text(out, quoted!("rule"), self.rule);
        word(out, quoted!("tls"), self.tls.as_str());
    }
}

fn names<'a>(record: &Record<'a>) -> [&'a str; 8] {
    let Record { source, destination, service, route, backend, session, detected, rule, .. } = *record;
    [source, destination, service, route, backend, session, detected, rule]
}

/// Where a record's way is remembered, if it is: endpoints differ in their ports or in the last of their addresses' bytes.
fn slot(record: &Record<'_>) -> usize {
    let endpoint = record.endpoint.map_or(0, |endpoint| {
        let last = match endpoint {
            SocketAddr::V4(endpoint) => endpoint.ip().octets()[3].into(),
            SocketAddr::V6(endpoint) => endpoint.ip().segments()[7],
        };
        usize::from(endpoint.port() ^ last)
    });
    (endpoint ^ record.source.len() ^ record.route.len()) % COUNT
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;

    fn written(ways: &mut Ways, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        ways.write(record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_remembered_is_what_would_be_written() {
        let long = "x".repeat(MAX_BYTES);
        let full = full();
        let records = [
            full,
            Record { source: "", ..full },
            Record { destination: "spiffe://cluster.local/ns/default/sa/others", ..full },
            Record { service: "default/\"quoted\"\n", ..full },
            Record { route: "default/tilps", ..full },
            Record { backend: "default/payments-v2:80", ..full },
            Record { session: "new", ..full },
            Record { detected: "", ..full },
            Record { endpoint: None, ..full },
            Record { endpoint: Some("[::1]:5016".parse().unwrap()), ..full },
            Record { endpoint: Some("127.0.0.1:5000".parse().unwrap()), ..full },
            Record { rule: "", ..full },
            Record { rule: &long, ..full },
            Record { tls: TlsKind::None, ..full },
            // What is beside them does not matter.
            Record { path: "/other", status: None, ..full },
            Record::default(),
        ];
        let mut ways = Ways::default();
        for before in &records {
            for record in &records {
                for record in [before, record, record] {
                    let mut anew = Vec::new();
                    record.write_way(&mut anew);
                    assert_eq!(written(&mut ways, record).into_bytes(), anew);
                }
            }
        }
        assert!(ways.ways.iter().map(|way| way.text.capacity()).sum::<usize>() < COUNT * 4 * MAX_BYTES);
    }

    #[test]
    fn what_a_record_is_of_is_remembered_as_it_would_be_written() {
        let (long, full) = ("x".repeat(MAX_BYTES), full());
        let records = [
            full,
            Record { method: "PUT", ..full },
            Record { method: "PU\"", ..full },
            Record { method: &long, ..full },
            Record { protocol: "gRPC", ..full },
            Record { direction: Direction::Inbound, ..full },
            Record::default(),
        ];
        let mut ways = Ways::default();
        for before in &records {
            for record in &records {
                for record in [before, record, record] {
                    let (mut out, mut anew) = (Vec::new(), Vec::new());
                    ways.write_kind(record, &mut out);
                    record.write_kind(&mut anew);
                    assert_eq!(out, anew);
                }
            }
        }
    }

    #[test]
    fn endpoints_of_one_service_are_remembered_beside_each_other() {
        let mut ways = Ways::default();
        let endpoints = (0..8).map(|port| SocketAddr::from(([10, 0, 0, 1], 8000 + port)));
        let endpoints: Vec<_> =
            endpoints.chain((0..4).map(|host| SocketAddr::from(([10, 0, 1, host], 9)))).collect();
        for endpoints in endpoints.chunks(8) {
            let records = endpoints.iter().map(|endpoint| Record { endpoint: Some(*endpoint), ..full() });
            let records: Vec<_> = records.collect();
            records.iter().for_each(|record| drop(written(&mut ways, record)));
            assert!(records.iter().all(|record| ways.ways[slot(record)].is(record, &names(record))));
        }
    }
}
