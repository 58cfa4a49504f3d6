//! Which header fields a tap shows, and what of their values: no secrets.
//!
//! What a field means cannot be known in general, so its name decides, and rather once too often: who looks for a secret in a tap looks in the wrong place.

use http::{HeaderMap, HeaderName};
use tulle_api::v1;

use super::{InvalidTap, cut};

/// Names that one tap may ask for.
const MAX_NAMES: usize = 32;
/// Fields that are shown of one head.
const MAX_SHOWN: usize = 64;
/// Bytes of names and values that are shown of one head.
const MAX_BYTES: usize = 2048;
/// In place of a secret.
pub(super) const REDACTED: &str = "[redacted]";
/// What has one of these in its name is a secret.
const SECRET: [&str; 13] = [
    "auth",
    "cookie",
    "token",
    "secret",
    "passw",
    "api-key",
    "apikey",
    "access-key",
    "credential",
    "session",
    "csrf",
    "xsrf",
    "signature",
];
/// Their values are targets: a query is cut off, as that of a path is.
const TARGETS: [&str; 5] = ["location", "content-location", "referer", "x-original-url", "x-rewrite-url"];

/// The fields that were asked for.
#[derive(Debug)]
pub(super) enum Fields {
    All,
    Of(Vec<HeaderName>),
}

// === impl Fields ===

impl Fields {
    pub(super) fn new(names: &[String]) -> Result<Self, InvalidTap> {
        if names.iter().any(|name| name == "*") {
            return Ok(Self::All);
        }
        if names.len() > MAX_NAMES {
            return Err(InvalidTap::new("fields", format!("{} are more than {MAX_NAMES}", names.len())));
        }
        let names: Result<_, InvalidTap> = names
            .iter()
            .map(|name| {
                let parsed = HeaderName::from_bytes(name.as_bytes());
                parsed.map_err(|_| InvalidTap::new("fields", format!("{name:?} is no field's name")))
            })
            .collect();
        Ok(Self::Of(names?))
    }

    /// What is shown of a head.
    pub(super) fn read(&self, head: &HeaderMap) -> Vec<v1::TappedField> {
        let mut shown = Vec::new();
        let mut room = MAX_BYTES;
        let mut add = |name: &HeaderName, value: &http::HeaderValue| {
            let field = told(name, value);
            let size = field.name.len() + field.value.len();
            if shown.len() < MAX_SHOWN && size <= room {
                room -= size;
                shown.push(field);
            }
        };
        match self {
            Self::All => head.iter().for_each(|(name, value)| add(name, value)),
            Self::Of(names) => {
                for name in names {
                    head.get_all(name).iter().for_each(|value| add(name, value));
                }
            }
        }
        shown
    }
}

fn told(name: &HeaderName, value: &http::HeaderValue) -> v1::TappedField {
    let value = if is_secret(name.as_str()) || value.is_sensitive() {
        REDACTED.to_owned()
    } else {
        let text = String::from_utf8_lossy(value.as_bytes());
        let is_target = TARGETS.contains(&name.as_str());
        let end = text.find(['?', '#']).filter(|_| is_target);
        cut(&text[..end.unwrap_or(text.len())])
    };
    v1::TappedField { name: cut(name.as_str()), value }
}

/// `name` in lower case.
fn is_secret(name: &str) -> bool {
    SECRET.iter().any(|part| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&str, &str)]) -> HeaderMap {
        let parse = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap())
        };
        fields.iter().map(parse).collect()
    }

    fn read(names: &[&str], fields: &[(&str, &str)]) -> Vec<(String, String)> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let shown = Fields::new(&names).unwrap().read(&head(fields));
        shown.into_iter().map(|field| (field.name, field.value)).collect()
    }

    #[test]
    fn no_secret_is_told_however_it_is_asked_for() {
        for name in [
            "authorization",
            "Proxy-Authorization",
            "cookie",
            "Set-Cookie",
            "x-api-key",
            "X-Auth-Request",
            "x-amz-security-token",
            "x-my-secret",
            "x-password",
            "x-session-id",
            "x-csrf",
            "x-hub-signature-256",
            "x-goog-credential",
        ] {
            for asked in [name, "*"] {
                let shown = read(&[asked], &[(name, "s3cr3t")]);
                assert_eq!(shown, [(name.to_ascii_lowercase(), REDACTED.to_owned())], "{asked}");
            }
        }
    }

    #[test]
    fn what_was_asked_for_is_told_each_value_and_nothing_else() {
        let fields = [("x-a", "1"), ("X-B", "2"), ("x-a", "3"), ("accept", "*/*")];
        let text = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        assert_eq!(read(&["X-A", "x-none"], &fields), text(&[("x-a", "1"), ("x-a", "3")]));
        assert_eq!(read(&["*"], &fields).len(), 4);
        assert!(read(&[], &fields).is_empty());
    }

    #[test]
    fn a_query_is_not_told_in_a_field_either() {
        let target = [("location", "https://a/b?code=4711"), ("x-a", "b?c")];
        assert_eq!(read(&["location"], &target)[0].1, "https://a/b");
        assert_eq!(read(&["x-a"], &target)[0].1, "b?c");
    }

    #[test]
    fn what_is_told_of_one_head_is_bounded() {
        let long = "x".repeat(3000);
        let fields: Vec<(String, &str)> = (0..100).map(|n| (format!("x-{n}"), "y")).collect();
        let fields: Vec<(&str, &str)> = fields.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        assert_eq!(read(&["*"], &fields).len(), MAX_SHOWN);
        let shown = read(&["*"], &[("a", &long), ("b", &long), ("c", &long), ("d", &long), ("e", "1")]);
        assert_eq!(shown.iter().map(|(_, value)| value.len()).collect::<Vec<_>>(), [512, 512, 512, 1]);
        let many = vec!["x-a".to_owned(); MAX_NAMES + 1];
        assert_eq!(Fields::new(&many).unwrap_err().to_string(), "fields: 33 are more than 32");
        let wrong = Fields::new(&["a b".to_owned()]).unwrap_err().to_string();
        assert_eq!(wrong, "fields: \"a b\" is no field's name");
    }
}
