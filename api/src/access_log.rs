//! What people write about an access log, read once for both halves: the control plane refuses what a proxy could not carry out.

use std::fmt;
use std::ops::RangeInclusive;

/// The fields of a record, in the order in which the JSON form has them: what a template may name.
pub const ACCESS_LOG_FIELDS: &[&str] = &[
    "timestamp",
    "direction",
    "protocol",
    "method",
    "path",
    "authority",
    "status",
    "grpc_status",
    "reason",
    "by",
    "detail",
    "trace_id",
    "span_id",
    "client",
    "source",
    "destination",
    "service",
    "route",
    "backend",
    "session",
    "detected",
    "endpoint",
    "rule",
    "would_deny",
    "issuer",
    "tls",
    "bytes_in",
    "bytes_out",
    "duration_ns",
    "processing_ns",
    "attempts",
    "connection",
];

/// In place of statuses: all of them, and what has none.
pub const ACCESS_LOG_ALL: &str = "all";

/// How long a template may be, in bytes.
pub const ACCESS_LOG_TEMPLATE: usize = 4096;

/// How records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLogFormat {
    /// Not at all.
    None,
    /// One JSON object a line.
    Json,
    /// The combined log format of Apache's httpd.
    Apache,
    /// One JSON object a line, by the Elastic Common Schema.
    Ecs,
    /// A line of the user's own.
    Template(Vec<TemplatePiece>),
}

/// A piece of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TemplatePiece {
    /// As it is written.
    Text(Box<str>),
    /// The value of a field: its place in [`ACCESS_LOG_FIELDS`].
    Field(usize),
}

/// What is written is nothing that an access log can be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidAccessLog(String);

// === impl AccessLogFormat ===

impl fmt::Display for AccessLogFormat {
    /// As it is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = match self {
            Self::None => return f.write_str("none"),
            Self::Json => return f.write_str("json"),
            Self::Apache => return f.write_str("apache"),
            Self::Ecs => return f.write_str("ecs"),
            Self::Template(pieces) => pieces,
        };
        for piece in pieces {
            match piece {
                TemplatePiece::Text(text) => f.write_str(&text.replace('{', "{{").replace('}', "}}"))?,
                TemplatePiece::Field(at) => {
                    write!(f, "{{{}}}", ACCESS_LOG_FIELDS.get(*at).copied().unwrap_or_default())?;
                }
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for AccessLogFormat {
    type Err = InvalidAccessLog;

    /// A template is what has a brace; every other form is a word.
    fn from_str(text: &str) -> Result<Self, InvalidAccessLog> {
        match text {
            "none" => Ok(Self::None),
            "json" => Ok(Self::Json),
            "apache" => Ok(Self::Apache),
            "ecs" => Ok(Self::Ecs),
            template if template.contains(['{', '}']) => pieces(template).map(Self::Template),
            other => Err(InvalidAccessLog(format!(
                "`{other}` is none of json, apache, ecs and none, and no template, which names at least one field in braces, such as `{{status}}`"
            ))),
        }
    }
}

/// `{field}` is a field's value, `{{` and `}}` are braces.
fn pieces(template: &str) -> Result<Vec<TemplatePiece>, InvalidAccessLog> {
    let refuse = |why: String| Err(InvalidAccessLog(why));
    if template.len() > ACCESS_LOG_TEMPLATE {
        return refuse(format!("the template has more than {ACCESS_LOG_TEMPLATE} bytes"));
    }
    if let Some(control) = template.chars().find(|c| c.is_control() && *c != '\t') {
        return refuse(format!("the template has the control character {control:?}; a record is one line"));
    }
    let (mut pieces, mut text, mut rest) = (Vec::new(), String::new(), template);
    while let Some(at) = rest.find(['{', '}']) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{{") {
            text.push('{');
            rest = after;
        } else if let Some(after) = rest.strip_prefix("}}") {
            text.push('}');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let Some((name, after)) = after.split_once('}') else {
                return refuse(format!("the brace before `{after}` is not closed; `{{{{` is a brace itself"));
            };
            let Some(field) = ACCESS_LOG_FIELDS.iter().position(|field| *field == name) else {
                let nearest = nearest(name, ACCESS_LOG_FIELDS.iter().copied());
                return refuse(match nearest {
                    Some(nearest) => format!("`{{{name}}}` is no field; did you mean `{{{nearest}}}`?"),
                    None => {
                        format!("`{{{name}}}` is no field; there are {}", ACCESS_LOG_FIELDS.join(", "))
                    }
                });
            };
            if !text.is_empty() {
                pieces.push(TemplatePiece::Text(std::mem::take(&mut text).into()));
            }
            pieces.push(TemplatePiece::Field(field));
            rest = after;
        } else {
            return refuse(format!("there is no brace that `{rest}` closes; `}}}}` is a brace itself"));
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        pieces.push(TemplatePiece::Text(text.into()));
    }
    if !pieces.iter().any(|piece| matches!(piece, TemplatePiece::Field(_))) {
        return refuse("the template names no field".to_owned());
    }
    Ok(pieces)
}

/// One status (`404`), a range of them (`500-599`) or a class (`5xx`).
///
/// # Errors
/// It is none of these.
pub fn access_log_statuses(text: &str) -> Result<RangeInclusive<u16>, InvalidAccessLog> {
    let status = |text: &str| text.parse::<u16>().ok().filter(|status| (100..=599).contains(status));
    let class = text.strip_suffix("xx").and_then(|class| status(&format!("{class}00")));
    let range = match (class, text.split_once('-')) {
        (Some(first), _) => Some(first..=first + 99),
        (None, Some((first, last))) => status(first).zip(status(last)).map(|(first, last)| first..=last),
        (None, None) => status(text).map(|status| status..=status),
    };
    range.filter(|range| !range.is_empty()).ok_or_else(|| {
        InvalidAccessLog(format!(
            "`{text}` is no status from 100 to 599, range of them (`500-599`) or class (`5xx`)"
        ))
    })
}

/// Of the names that are known, the one that was probably meant.
pub fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let most = (wanted.chars().count() / 3).clamp(1, 3);
    let near = known.into_iter().map(|name| (distance(name, wanted), name)).min()?;
    (near.0 <= most).then_some(near.1)
}

/// How many single-character edits lead from `a` to `b` (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().take(64).enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<AccessLogFormat, String> {
        text.parse().map_err(|error: InvalidAccessLog| error.to_string())
    }

    #[test]
    fn forms_are_words_or_templates() {
        assert_eq!(read("none"), Ok(AccessLogFormat::None));
        assert_eq!(read("json"), Ok(AccessLogFormat::Json));
        assert_eq!(read("apache"), Ok(AccessLogFormat::Apache));
        assert_eq!(read("ecs"), Ok(AccessLogFormat::Ecs));
        let field =
            |name| TemplatePiece::Field(ACCESS_LOG_FIELDS.iter().position(|field| *field == name).unwrap());
        let pieces = vec![
            field("status"),
            TemplatePiece::Text(" {".into()),
            field("path"),
            TemplatePiece::Text("}\tß".into()),
        ];
        assert_eq!(read("{status} {{{path}}}\tß"), Ok(AccessLogFormat::Template(pieces)));
        for text in ["none", "json", "apache", "ecs", "{status} {{{path}}}\tß"] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_a_template_cannot_say_is_named() {
        for (text, said) in [
            ("yes", "`yes` is none of json"),
            ("{statsu}", "`{statsu}` is no field; did you mean `{status}`?"),
            ("{user-agent}", "`{user-agent}` is no field; there are timestamp, direction,"),
            ("{}", "`{}` is no field"),
            ("{status", "the brace before `status` is not closed"),
            ("status} {path}", "no brace that `} {path}` closes"),
            ("{{status}}", "names no field"),
            ("{status}\n{path}", "control character '\\n'"),
            ("{status}\u{85}", "control character"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
        assert!(read(&format!("{{status}}{}", "x".repeat(ACCESS_LOG_TEMPLATE))).is_err());
    }

    #[test]
    fn statuses_are_read() {
        let read = |text| access_log_statuses(text).ok();
        assert_eq!(read("404"), Some(404..=404));
        assert_eq!(read("500-599"), Some(500..=599));
        assert_eq!(read("4xx"), Some(400..=499));
        for text in ["", "99", "600", "6xx", "0xx", "xx", "500-", "-500", "599-500", "5XX", "500-700"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn a_name_that_was_meant_is_near() {
        let known = ["route_not_found", "connect_failed", "connect_timeout"];
        assert_eq!(nearest("conect_failed", known), Some("connect_failed"));
        assert_eq!(nearest("route-not-found", known), Some("route_not_found"));
        assert_eq!(nearest("nonsense", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
