//! Regular expressions, compiled when they arrive.
//!
//! They are matched in linear time, against the whole of a value and against bytes: whatever a client sends costs in
//! proportion to its length. Equal ones are compiled once and shared for as long as any table uses them, so that an update
//! compiles only what is new.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Weak};

use foldhash::fast::RandomState;
use parking_lot::Mutex;
use regex::bytes::{Regex, RegexBuilder};

/// A regular expression in the syntax of RE2, which describes whole values. Equal by its text.
#[derive(Clone)]
pub struct Pattern(Arc<Compiled>);

struct Compiled {
    text: Box<str>,
    regex: Regex,
}

/// Text that is not a regular expression, or one that is too large.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPattern {
    #[error("{text:?} is not a regular expression: {reason}")]
    Syntax { text: String, reason: String },
    #[error("the regular expression {0:?} needs more than {max} bytes when compiled", max = tulle_api::PATTERN_SIZE)]
    TooLarge(String),
}

/// What is compiled and still used by somebody.
#[derive(Default)]
struct Known {
    patterns: HashMap<Box<str>, Weak<Compiled>, RandomState>,
    /// At so many, those that nobody uses any more are forgotten.
    sweep_at: usize,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

// === impl Pattern ===

impl Pattern {
    /// # Errors
    /// Where `text` is no regular expression, or needs too much memory.
    pub fn new(text: &str) -> Result<Self, InvalidPattern> {
        if let Some(known) = KNOWN.lock().patterns.get(text).and_then(Weak::upgrade) {
            return Ok(Self(known));
        }
        let compiled = Arc::new(Compiled { text: text.into(), regex: compile(text)? });
        KNOWN.lock().insert(&compiled);
        Ok(Self(compiled))
    }

    pub fn as_str(&self) -> &str {
        &self.0.text
    }

    /// Whether it describes the whole of `value`.
    pub(super) fn is_match(&self, value: &[u8]) -> bool {
        self.0.regex.is_match(value)
    }
}

impl Known {
    fn insert(&mut self, compiled: &Arc<Compiled>) {
        if self.patterns.len() >= self.sweep_at {
            self.patterns.retain(|_, pattern| pattern.strong_count() > 0);
            self.sweep_at = 64.max(self.patterns.len() * 2);
        }
        self.patterns.insert(compiled.text.clone(), Arc::downgrade(compiled));
    }
}

/// RE2's classes are ASCII's, and small; a pattern that names other characters is compiled with Unicode's.
fn compile(text: &str) -> Result<Regex, InvalidPattern> {
    let build = |text: &str, unicode| {
        RegexBuilder::new(text)
            .unicode(unicode)
            .size_limit(tulle_api::PATTERN_SIZE)
            .dfa_size_limit(tulle_api::PATTERN_SIZE)
            .build()
    };
    // By itself first: `a)|(?:b` must not become sound by what is put around it.
    let unicode = build(text, false).is_err();
    let built = if unicode { build(text, true).map(drop) } else { Ok(()) };
    built.and_then(|()| build(&format!(r"\A(?:{text})\z"), unicode)).map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => InvalidPattern::TooLarge(text.to_owned()),
        error => {
            // The last line tells what is wrong; those before point at where.
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            InvalidPattern::Syntax { text: text.to_owned(), reason }
        }
    })
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_describes_whole_values() {
        for (pattern, value, expected) in [
            ("a|ab", "ab", true),
            ("a", "ab", false),
            ("a", "ba", false),
            ("(?m)a$", "a\nb", false),
            ("", "", true),
            (r"\d+", "12", true),
            (r"\d", "٣", false),
            ("[äö]+", "äö", true),
            (r"\pL", "ß", true),
            (r"[\w-]{1,255}", "a-b", true),
            ("(?i)Curl/.*", "cURL/8", true),
        ] {
            assert_eq!(
                Pattern::new(pattern).unwrap().is_match(value.as_bytes()),
                expected,
                "{pattern} {value}"
            );
        }
        assert!(Pattern::new("a.*").unwrap().is_match(b"a\xff"), "any bytes");
    }

    #[test]
    fn what_is_no_pattern_or_too_large_is_refused() {
        for text in ["(", "a)|(?:b", "(?x)a # (", r"(a)\1", "(?=a)", "a**{"] {
            let error = Pattern::new(text).unwrap_err();
            assert!(matches!(error, InvalidPattern::Syntax { .. }), "{error}");
        }
        let text = "(a{1000}){1000}";
        assert_eq!(Pattern::new(text).unwrap_err(), InvalidPattern::TooLarge(text.to_owned()));
    }

    #[test]
    fn equal_patterns_are_one_and_unused_ones_are_forgotten() {
        let [a, b] = [(); 2].map(|()| Pattern::new("shared-[ab]").unwrap());
        assert!(Arc::ptr_eq(&a.0, &b.0));
        for i in 0..1_000 {
            Pattern::new(&format!("unused-{i}")).unwrap();
        }
        assert!(KNOWN.lock().patterns.len() < 500);
        assert!(Arc::ptr_eq(&a.0, &Pattern::new("shared-[ab]").unwrap().0));
    }
}
