//! The combined log format of Apache's httpd, which log readers of all ages take apart:
//! `%h %l %u %t "%r" %>s %b "%{Referer}i" "%{User-agent}i"` (mod_log_config).
//!
//! `%u` is the client's SPIFFE ID, and `%t`, as there, the time at which the request came. No header is logged, so that the
//! last two are always `-`; what the format has no place for is left out.

use std::io::Write as _;
use std::time::UNIX_EPOCH;

use super::Record;
use super::json::bounded;
use crate::telemetry::digits::decimal;
use crate::telemetry::timestamp::write_clf;

// === impl Record ===

impl Record<'_> {
    /// Appends the record in the combined log format.
    pub(super) fn write_apache(&self, out: &mut Vec<u8>) {
        match self.client {
            // Writing to a Vec cannot fail.
            Some(client) => drop(write!(out, "{}", client.ip())),
            None => out.push(b'-'),
        }
        out.extend_from_slice(b" - ");
        text(out, self.source);
        out.extend_from_slice(b" [");
        write_clf(out, self.time.checked_sub(self.duration).unwrap_or(UNIX_EPOCH));
        out.extend_from_slice(b"] \"");
        self.write_request_line(out);
        out.extend_from_slice(b"\" ");
        match self.status {
            Some(status) => decimal(out, status.into(), 3),
            None => out.push(b'-'),
        }
        out.push(b' ');
        match self.bytes_out {
            0 => out.push(b'-'),
            bytes => decimal(out, bytes, 1),
        }
        out.extend_from_slice(b" \"-\" \"-\"\n");
    }

    fn write_request_line(&self, out: &mut Vec<u8>) {
        let version = match self.version {
            Some(http::Version::HTTP_10) => "HTTP/1.0",
            Some(http::Version::HTTP_2) => "HTTP/2.0",
            Some(_) => "HTTP/1.1",
            None => "",
        };
        // CONNECT has no path; of a head that was refused nothing is known, nor of what is not HTTP.
        let target = if self.path.is_empty() { self.authority } else { self.path_alone() };
        if self.method.is_empty() || target.is_empty() || version.is_empty() {
            return out.push(b'-');
        }
        text(out, self.method);
        out.push(b' ');
        text(out, target);
        out.push(b' ');
        out.extend_from_slice(version.as_bytes());
    }
}

/// A value, as httpd escapes it, and everything beyond ASCII with it; `-` if there is none.
pub(super) fn text(out: &mut Vec<u8>, value: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    if value.is_empty() {
        return out.push(b'-');
    }
    for byte in bounded(value).bytes() {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', byte]),
            b' '..=b'~' => out.push(byte),
            _ => {
                let (high, low) = (HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]);
                out.extend_from_slice(&[b'\\', b'x', high, low]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::full;
    use super::*;

    fn apache(record: &Record<'_>) -> String {
        let mut out = Vec::new();
        record.write_apache(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_is_a_line_of_the_combined_format() {
        assert_eq!(
            apache(&full()),
            "127.0.0.1 - spiffe://cluster.local/ns/default/sa/orders [21/Nov/2026:05:01:39 +0000] \"POST /pay HTTP/1.1\" 503 2 \"-\" \"-\"\n"
        );
    }

    #[test]
    fn what_is_not_http_has_no_request_line() {
        let client = Some("[2001:db8::1]:4000".parse().unwrap());
        let record = Record { client, bytes_out: 17, ..Record::default() };
        assert_eq!(apache(&record), "2001:db8::1 - - [01/Jan/1970:00:00:00 +0000] \"-\" - 17 \"-\" \"-\"\n");
        let refused = Record { method: "-", version: Some(http::Version::HTTP_11), ..record };
        assert!(apache(&refused).contains(" \"-\" - 17 "), "{}", apache(&refused));
    }

    #[test]
    fn connect_names_whom_it_leads_to() {
        let record = Record { method: "CONNECT", path: "", version: Some(http::Version::HTTP_2), ..full() };
        assert!(apache(&record).contains("\"CONNECT payments HTTP/2.0\""), "{}", apache(&record));
    }

    #[test]
    fn the_time_is_that_at_which_the_request_came() {
        let duration = std::time::Duration::from_secs(40);
        assert!(apache(&Record { duration, ..full() }).contains("[21/Nov/2026:05:00:59 +0000]"));
    }

    #[test]
    fn quotes_and_what_is_no_letter_are_escaped() {
        let line = apache(&Record { path: "/a\"b\\c\n\u{85}ß", ..full() });
        assert!(line.contains(r#""POST /a\"b\\c\x0a\xc2\x85\xc3\x9f HTTP/1.1""#), "{line}");
    }
}
