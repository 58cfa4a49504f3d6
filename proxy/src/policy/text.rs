//! How texts are compared: whole, by their beginning or by their end, case and all; and names of headers, as servers take them.

use http::HeaderName;

/// What a text must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
}

// === impl Text ===

impl Text {
    /// Whether `value` is as this says.
    pub(super) fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(text) => text.as_bytes() == value,
            Self::Prefix(text) => value.starts_with(text.as_bytes()),
            Self::Suffix(text) => value.ends_with(text.as_bytes()),
        }
    }

    /// Whether `<first>/<second>` is, which is put together nowhere.
    pub(super) fn is_pair(&self, first: &str, second: &str) -> bool {
        let (first, second) = (first.as_bytes(), second.as_bytes());
        match self {
            Self::Exact(text) => {
                let rest = text.as_bytes().strip_prefix(first);
                rest.and_then(|rest| rest.strip_prefix(b"/")) == Some(second)
            }
            Self::Prefix(text) if text.len() <= first.len() => first.starts_with(text.as_bytes()),
            Self::Prefix(text) => {
                let rest = text.as_bytes().strip_prefix(first);
                rest.and_then(|rest| rest.strip_prefix(b"/")).is_some_and(|rest| second.starts_with(rest))
            }
            Self::Suffix(text) if text.len() <= second.len() => second.ends_with(text.as_bytes()),
            Self::Suffix(text) => {
                let rest = text.as_bytes().strip_suffix(second);
                rest.and_then(|rest| rest.strip_suffix(b"/")).is_some_and(|rest| first.ends_with(rest))
            }
        }
    }

    /// The text itself, made anew by `change`.
    pub(super) fn map(self, change: impl FnOnce(&str) -> Box<str>) -> Self {
        match self {
            Self::Exact(text) => Self::Exact(change(&text)),
            Self::Prefix(text) => Self::Prefix(change(&text)),
            Self::Suffix(text) => Self::Suffix(change(&text)),
        }
    }
}

impl std::fmt::Display for Text {
    /// As policies are written.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
        }
    }
}

/// Whether some server takes a header of this name for the one that is called so: in the manner of CGI, `_` is `-` (RFC 3875 §4.1.18).
pub fn is_taken_for(name: &HeaderName, called: &HeaderName) -> bool {
    let (name, called) = (name.as_str().as_bytes(), called.as_str().as_bytes());
    let is_dash = |byte: u8| matches!(byte, b'-' | b'_');
    let same = |(byte, wanted): (&u8, &u8)| byte == wanted || (is_dash(*byte) && is_dash(*wanted));
    name.len() == called.len() && name.iter().zip(called).all(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_compared_as_if_it_were_put_together() {
        let texts =
            ["", "a", "ab", "/", "ab/", "ab/c", "b/c", "/c", "ab/cd", "b/cd", "xab/cd", "ab/cdx", "a/b/cd"];
        for (first, second) in [("ab", "cd"), ("", ""), ("a", "b/cd"), ("a/b", "cd")] {
            let whole = format!("{first}/{second}");
            for text in texts {
                for text in [Text::Exact(text.into()), Text::Prefix(text.into()), Text::Suffix(text.into())] {
                    assert_eq!(text.is_pair(first, second), text.is(whole.as_bytes()), "{text:?} {whole}");
                }
            }
        }
    }
}
