//! A line of the user's own: values of the fields that the template names, under the names that the JSON form has for them.
//!
//! A value that there is none of is `-`. Text is escaped as in the combined log format, so that a template that puts a field in
//! quotes gets one that ends where the template says.

use std::net::SocketAddr;

use tulle_api::TemplatePiece;

use super::Record;
use super::apache::text;
use super::json::nanos;
use crate::telemetry::digits::{self, decimal};
use crate::telemetry::reason::Reason;
use crate::telemetry::timestamp::write_rfc3339;
use crate::telemetry::trace::Digits;

/// Appends the value of a field.
type Write = fn(&Record<'_>, &mut Vec<u8>);

/// As [`tulle_api::ACCESS_LOG_FIELDS`] has them.
const FIELDS: &[(&str, Write)] = &[
    ("timestamp", |record, out| write_rfc3339(out, record.time)),
    ("direction", |record, out| text(out, record.direction.as_str())),
    ("protocol", |record, out| text(out, record.protocol)),
    ("method", |record, out| text(out, record.method)),
    ("path", |record, out| text(out, record.path_alone())),
    ("authority", |record, out| text(out, record.authority)),
    ("status", |record, out| number(out, record.status.map(u64::from))),
    ("grpc_status", |record, out| number(out, record.grpc_status.map(u64::from))),
    ("reason", |record, out| text(out, record.reason.map_or("", Reason::code))),
    ("by", |record, out| text(out, record.by)),
    ("detail", |record, out| text(out, record.detail)),
    ("trace_id", |record, out| digits_of(out, record.trace_id.map(Digits::from))),
    ("span_id", |record, out| digits_of(out, record.span_id.map(Digits::from))),
    ("client", |record, out| address(out, record.client)),
    ("source", |record, out| text(out, record.source)),
    ("destination", |record, out| text(out, record.destination)),
    ("service", |record, out| text(out, record.service)),
    ("route", |record, out| text(out, record.route)),
    ("backend", |record, out| text(out, record.backend)),
    ("session", |record, out| text(out, record.session)),
    ("detected", |record, out| text(out, record.detected)),
    ("endpoint", |record, out| address(out, record.endpoint)),
    ("rule", |record, out| text(out, record.rule)),
    ("would_deny", |record, out| text(out, record.would_deny)),
    ("issuer", |record, out| text(out, record.issuer)),
    ("tls", |record, out| text(out, record.tls.as_str())),
    ("bytes_in", |record, out| number(out, Some(record.bytes_in))),
    ("bytes_out", |record, out| number(out, Some(record.bytes_out))),
    ("duration_ns", |record, out| number(out, Some(nanos(record.duration)))),
    ("processing_ns", |record, out| number(out, record.processing.map(nanos))),
    ("attempts", |record, out| number(out, Some(record.attempts.into()))),
    ("connection", |record, out| number(out, Some(record.connection))),
];

fn digits_of<const N: usize>(out: &mut Vec<u8>, digits: Option<Digits<N>>) {
    text(out, digits.as_ref().map_or("", Digits::as_str));
}

fn number(out: &mut Vec<u8>, value: Option<u64>) {
    match value {
        Some(value) => decimal(out, value, 1),
        None => out.push(b'-'),
    }
}

fn address(out: &mut Vec<u8>, value: Option<SocketAddr>) {
    match value {
        Some(value) => digits::address(out, value),
        None => out.push(b'-'),
    }
}

// === impl Record ===

impl Record<'_> {
    /// Appends the record as the template says.
    pub(super) fn write_template(&self, pieces: &[TemplatePiece], out: &mut Vec<u8>) {
        for piece in pieces {
            match piece {
                TemplatePiece::Text(text) => out.extend_from_slice(text.as_bytes()),
                TemplatePiece::Field(field) => {
                    if let Some((_, write)) = FIELDS.get(*field) {
                        write(self, out);
                    }
                }
            }
        }
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use tulle_api::{ACCESS_LOG_FIELDS, AccessLogFormat};

    use super::super::tests::full;
    use super::super::ways::Ways;
    use super::*;

    fn written(template: &str, record: &Record<'_>) -> String {
        let Ok(AccessLogFormat::Template(pieces)) = template.parse() else { panic!("{template}") };
        let mut out = Vec::new();
        record.write_template(&pieces, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_template_has_the_fields_of_the_json_form() {
        let names: Vec<_> = FIELDS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ACCESS_LOG_FIELDS);
        let mut json = Vec::new();
        full().write_json(&mut json, &mut Ways::default());
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        for name in ACCESS_LOG_FIELDS {
            let value = match &json[*name] {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            assert_eq!(written(&format!("{{{name}}}"), &full()), format!("{value}\n"), "{name}");
        }
        // `target` tells lines of ours from others, which a template does by itself.
        assert_eq!(json.as_object().unwrap().len(), names.len() + 1);
    }

    #[test]
    fn text_stands_as_it_is_and_what_is_missing_is_a_dash() {
        let template = "{{{status}}} \"{detail}\"\t{client} {processing_ns} ß";
        assert_eq!(written(template, &full()), "{503} \"connection refused\"\t127.0.0.1:4000 4000 ß\n");
        assert_eq!(written(template, &Record::default()), "{-} \"-\"\t- - ß\n");
        let forged = Record { detail: "a\" b\n\"c", ..Record::default() };
        assert_eq!(written("\"{detail}\" {status}", &forged), "\"a\\\" b\\x0a\\\"c\" -\n");
    }
}
