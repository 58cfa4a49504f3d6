//! The record as a JSON object of our own fields: the default form, which every other name for them follows.

use std::net::SocketAddr;
use std::time::Duration;

use super::Record;
use super::ways::Ways;
use crate::telemetry::digits;
use crate::telemetry::reason::Reason;
use crate::telemetry::timestamp::write_rfc3339;
use crate::telemetry::trace::Digits;

/// How many bytes of a value are written: a path can be as long as a head.
pub(super) const MAX_VALUE: usize = 1024;

/// What comes before a field's value.
macro_rules! named {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// The same before text.
macro_rules! quoted {
    ($name:literal) => {
        concat!(",\"", $name, "\":\"").as_bytes()
    };
}
pub(super) use quoted;

// === impl Record ===

impl Record<'_> {
    /// Appends the record as one JSON object; `ways` are those of records before.
    pub(super) fn write_json(&self, out: &mut Vec<u8>, ways: &mut Ways) {
        // It seldom has more: what follows need not look for space again and again.
        out.reserve(1024);
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_rfc3339(out, self.time);
        ways.write_kind(self, out);
        text(out, quoted!("path"), self.path_alone());
        text(out, quoted!("authority"), self.authority);
        number(out, named!("status"), self.status.map(u64::from));
        number(out, named!("grpc_status"), self.grpc_status.map(u64::from));
        if self.reason.is_some() {
            word(out, quoted!("reason"), self.reason.map_or("", Reason::code));
        }
        text(out, quoted!("by"), self.by);
        text(out, quoted!("detail"), self.detail);
        id(out, quoted!("trace_id"), self.trace_id.map(Digits::from));
        id(out, quoted!("span_id"), self.span_id.map(Digits::from));
        address(out, quoted!("client"), self.client);
        ways.write(self, out);
        text(out, quoted!("would_deny"), self.would_deny);
        text(out, quoted!("issuer"), self.issuer);
        number(out, named!("bytes_in"), Some(self.bytes_in));
        number(out, named!("bytes_out"), Some(self.bytes_out));
        number(out, named!("duration_ns"), Some(nanos(self.duration)));
        number(out, named!("processing_ns"), self.processing.map(nanos));
        number(out, named!("attempts"), Some(self.attempts.into()));
        number(out, named!("connection"), Some(self.connection));
        out.extend_from_slice(b"}\n");
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

// A field's name is a constant, and so is its length where these are inlined: some moves in place of a call.

/// A word of ours, which needs no escapes.
#[inline(always)]
pub(super) fn word(out: &mut Vec<u8>, name: &[u8], value: &str) {
    if !value.is_empty() {
        out.extend_from_slice(name);
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    }
}

/// Digits, whose number is a constant too.
#[inline(always)]
fn id<const N: usize>(out: &mut Vec<u8>, name: &[u8], value: Option<Digits<N>>) {
    if let Some(value) = value {
        out.extend_from_slice(name);
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
    }
}

#[inline(always)]
pub(super) fn text(out: &mut Vec<u8>, name: &[u8], value: &str) {
    if !value.is_empty() {
        out.extend_from_slice(name);
        escape(out, bounded(value));
        out.push(b'"');
    }
}

#[inline(always)]
fn number(out: &mut Vec<u8>, name: &[u8], value: Option<u64>) {
    if let Some(value) = value {
        out.extend_from_slice(name);
        digits::decimal(out, value, 1);
    }
}

#[inline(always)]
pub(super) fn address(out: &mut Vec<u8>, name: &[u8], value: Option<SocketAddr>) {
    if let Some(value) = value {
        out.extend_from_slice(name);
        digits::address(out, value);
        out.push(b'"');
    }
}

/// What is written of a value.
pub(super) fn bounded(value: &str) -> &str {
    if value.len() <= MAX_VALUE { value } else { &value[..value.floor_char_boundary(MAX_VALUE)] }
}

/// RFC 8259 §7.
pub(super) fn escape(out: &mut Vec<u8>, value: &str) {
    if is_plain(value.as_bytes()) {
        out.extend_from_slice(value.as_bytes());
    } else {
        escape_each(out, value.as_bytes());
    }
}

/// Whether nothing of it needs an escape; told by words, since nearly nothing ever does.
fn is_plain(bytes: &[u8]) -> bool {
    let Some(last) = bytes.last_chunk::<8>() else {
        return bytes.iter().copied().all(is_plain_byte);
    };
    // The last one overlaps the one before it. All of them, rather than up to the first that is not: that one hardly ever comes.
    let of = |word: &[u8; 8]| escapes(u64::from_ne_bytes(*word));
    bytes.as_chunks::<8>().0.iter().fold(of(last), |all, word| all | of(word)) & HIGHS == 0
}

fn is_plain_byte(byte: u8) -> bool {
    byte >= b' ' && byte != b'"' && byte != b'\\' && byte != 0x7f
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGHS: u64 = ONES << 7;

/// Which of eight bytes are not [plain](is_plain_byte): if any is, a highest bit is set (Anderson, “Bit Twiddling Hacks”: “Determine if a word has a byte less than n”).
fn escapes(word: u64) -> u64 {
    let zero = |word: u64| word.wrapping_sub(ONES) & !word;
    let is = |byte: u8| zero(word ^ (ONES * u64::from(byte)));
    let control = word.wrapping_sub(ONES * u64::from(b' ')) & !word;
    control | is(b'"') | is(b'\\') | is(0x7f)
}

#[cold]
fn escape_each(out: &mut Vec<u8>, bytes: &[u8]) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut plain = 0;
    for (index, b) in bytes.iter().copied().enumerate() {
        if is_plain_byte(b) {
            continue;
        }
        out.extend_from_slice(&bytes[plain..index]);
        plain = index + 1;
        match b {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', b]),
            _ => {
                let (high, low) = (HEX[usize::from(b >> 4)], HEX[usize::from(b & 15)]);
                out.extend_from_slice(&[b'\\', b'u', b'0', b'0', high, low]);
            }
        }
    }
    out.extend_from_slice(&bytes[plain..]);
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;
    use crate::telemetry::access::Record;

    fn json(record: &Record<'_>) -> serde_json::Value {
        let mut out = Vec::new();
        record.write_json(&mut out, &mut Ways::default());
        assert_eq!(out.iter().filter(|b| **b == b'\n').count(), 1);
        assert_eq!(out.last(), Some(&b'\n'));
        serde_json::from_slice(&out).unwrap()
    }

    #[test]
    fn a_full_record_has_every_field() {
        let record = full();
        assert_eq!(
            json(&record),
            serde_json::json!({
                "timestamp": "2026-11-21T05:01:39.123456Z", "target": "access", "direction": "outbound", "protocol": "HTTP/1.1",
                "method": "POST", "path": "/pay", "authority": "payments", "status": 503, "grpc_status": 14,
                "reason": "connect_failed", "by": "default/orders/outbound", "detail": "connection refused",
                "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7",
                "client": "127.0.0.1:4000", "source": "spiffe://cluster.local/ns/default/sa/orders",
                "destination": "spiffe://cluster.local/ns/default/sa/payments", "service": "default/payments:80",
                "route": "default/split", "backend": "default/payments-v1:80", "session": "kept", "detected": "server_first", "endpoint": "[::1]:5000",
                "rule": "default/allow/web", "would_deny": "default/trial/admin", "issuer": "https://issuer.example", "tls": "mtls", "bytes_in": 1, "bytes_out": 2, "duration_ns": 3_000_000,
                "processing_ns": 4000, "attempts": 1, "connection": 7,
            })
        );
    }

    #[test]
    fn what_clients_send_cannot_break_the_line() {
        let nasty: String = (0..=0x7f_u8)
            .map(char::from)
            .chain(['\u{2028}', 'ß', '\u{10ffff}'])
            .filter(|c| *c != '?')
            .collect();
        let value = json(&Record { path: &nasty, authority: "\"}\n{\"", ..Record::default() });
        assert_eq!(value["path"], nasty);
        assert_eq!(value["authority"], "\"}\n{\"");
    }

    #[test]
    fn each_byte_that_needs_an_escape_is_found_wherever_it_stands() {
        for length in 0..20 {
            assert!(is_plain(&vec![b'x'; length]), "{length}");
            for (at, byte) in (0..length).flat_map(|at| (0..=u8::MAX).map(move |byte| (at, byte))) {
                for beside in [b' ', b'!', b'~', 0x80, 0xff] {
                    let mut bytes = vec![beside; length];
                    bytes[at] = byte;
                    assert_eq!(is_plain(&bytes), is_plain_byte(byte), "{byte} at {at} of {bytes:?}");
                }
            }
        }
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        let long = "ß".repeat(MAX_VALUE);
        let value = json(&Record { path: &long, ..Record::default() });
        assert_eq!(value["path"].as_str().unwrap().len(), MAX_VALUE);
        let value = json(&Record { path: &format!("x{long}"), ..Record::default() });
        assert_eq!(value["path"].as_str().unwrap().len(), MAX_VALUE - 1);
    }

    #[test]
    fn what_is_unknown_is_left_out() {
        let value = json(&Record::default());
        for field in ["method", "status", "grpc_status", "reason", "client", "endpoint", "processing_ns"] {
            assert!(value.get(field).is_none(), "{field}");
        }
    }
}
