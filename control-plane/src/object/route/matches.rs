//! What requests must look like, and the Gateway API's own rules for how that is written.

use regex::bytes::RegexBuilder;
use tulle_api::PATTERN_SIZE;

use super::{Effect, Fault, MAX_LIST, at_most};
use crate::finding::Notes;

/// The longest path that the Gateway API allows, in characters.
const MAX_PATH: usize = 1024;
/// The longest name of a header that the Gateway API allows.
const MAX_NAME: usize = 256;
/// The longest header value that the Gateway API allows, in characters.
pub(super) const MAX_HEADER: usize = 4096;
/// The longest query parameter that the Gateway API allows, in characters.
const MAX_QUERY: usize = 1024;
/// How many matches a rule may have.
const MAX_MATCHES: usize = 64;
/// How many matches a route may have.
const MAX_MATCHES_OF_ROUTE: usize = 128;

/// What a request must look like, in all that is said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Match {
    /// None: any.
    pub path: Option<PathMatch>,
    /// Names in lower case, each once.
    pub headers: Vec<ValueMatch>,
    /// Names as they are, each once.
    pub query: Vec<ValueMatch>,
    /// None: any.
    pub method: Option<&'static str>,
}

/// What a path must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// By path elements.
    Prefix(String),
    /// The whole path; can be compiled.
    Regex(String),
}

/// A header or a query parameter that must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueMatch {
    /// Which.
    pub name: String,
    /// What it must be.
    pub value: ValuePattern,
}

/// What a value must look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ValuePattern {
    /// It is this.
    Exact(String),
    /// All of it; can be compiled.
    Regex(String),
}

impl Match {
    /// Its regular expressions.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        let path = match &self.path {
            Some(PathMatch::Regex(regex)) => Some(regex.as_str()),
            Some(PathMatch::Exact(_) | PathMatch::Prefix(_)) | None => None,
        };
        let values = self.headers.iter().chain(&self.query).filter_map(|one| match &one.value {
            ValuePattern::Regex(regex) => Some(regex.as_str()),
            ValuePattern::Exact(_) => None,
        });
        path.into_iter().chain(values)
    }
}

/// A header or query match as it is written, whatever the kind of route.
pub(super) struct WrittenValue<'a> {
    pub(super) name: &'a str,
    pub(super) value: &'a str,
    pub(super) is_regex: bool,
}

/// Which part of a request a [`WrittenValue`] is about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Header,
    Query,
}

/// Refuses more matches than the Gateway API allows; `lengths` are those of the rules' `matches`.
pub(super) fn check_count(lengths: impl Iterator<Item = usize>, notes: &mut Notes) {
    let mut sum = 0;
    for (index, length) in lengths.enumerate() {
        at_most(MAX_MATCHES, length, format!("spec.rules[{index}].matches"), notes);
        sum += length;
    }
    if sum > MAX_MATCHES_OF_ROUTE {
        notes.refuse(
            "spec.rules",
            format!("{sum} matches in all: more than the {MAX_MATCHES_OF_ROUTE} that are allowed"),
            "divide the rules among several routes",
        );
    }
}

/// Of several with the same name, the first counts; `field` is the list's.
pub(super) fn read_values<'a>(
    field: &str,
    part: Part,
    written: impl Iterator<Item = WrittenValue<'a>>,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Vec<ValueMatch> {
    let mut read: Vec<ValueMatch> = Vec::new();
    let mut length = 0;
    for (index, one) in written.enumerate() {
        length = index + 1;
        let at = format!("{field}[{index}]");
        if !check_name(format!("{at}.name"), one.name, notes) {
            continue;
        }
        let name = if part == Part::Header { one.name.to_ascii_lowercase() } else { one.name.to_owned() };
        if read.iter().any(|known| known.name == name) {
            notes.warn(
                format!("{at}.name"),
                format!("`{name}` is matched twice: only the first counts"),
                "remove one; a regular expression can say both",
            );
            continue;
        }
        let max = if part == Part::Header { MAX_HEADER } else { MAX_QUERY };
        let at = format!("{at}.value");
        if one.value.is_empty() || one.value.chars().count() > max {
            notes.refuse(at, format!("a value has 1 to {max} characters"), "");
            continue;
        }
        let value = if one.is_regex {
            if !check_regex(at, one.value, fault, notes) {
                continue;
            }
            ValuePattern::Regex(one.value.to_owned())
        } else {
            if part == Part::Header && !check_header_value(at, one.value, notes) {
                continue;
            }
            ValuePattern::Exact(one.value.to_owned())
        };
        read.push(ValueMatch { name, value });
    }
    at_most(MAX_LIST, length, field, notes);
    read
}

/// The Gateway API's own rules for `HTTPHeaderName`, which names query parameters too. False, told, if broken.
pub(in crate::object) fn check_name(field: String, name: &str, notes: &mut Notes) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(token);
    if !is_name {
        notes.refuse(
            field,
            format!("`{name}` cannot be a name here"),
            "letters, digits and !#$%&'*+-.^_`|~, at most 256",
        );
    }
    is_name
}

/// The Gateway API's own rules for a header's value. False, told, if broken.
pub(in crate::object) fn check_header_value(field: String, value: &str, notes: &mut Notes) -> bool {
    let ends = [value.bytes().next(), value.bytes().last()];
    let is_value = (1..=MAX_HEADER).contains(&value.len())
        && value.bytes().all(|byte| byte.is_ascii_graphic() || matches!(byte, b' ' | b'\t'))
        && ends.into_iter().flatten().all(|byte| byte.is_ascii_graphic());
    if !is_value {
        notes.refuse(
            field,
            format!("`{value}` cannot be the value of a header"),
            "printable ASCII, 1 to 4096 characters, with blanks only between them",
        );
    }
    is_value
}

/// The Gateway API's own rules for `HTTPPathMatch.value`, of a path that is no regular expression.
pub(super) fn check_path(field: String, value: &str, notes: &mut Notes) {
    if !value.starts_with('/') {
        notes.refuse(field, format!("`{value}` does not begin with `/`"), &format!("write `/{value}`"));
        return;
    }
    if value.chars().count() > MAX_PATH {
        notes.refuse(field, format!("longer than {MAX_PATH} characters"), "");
        return;
    }
    let inside = ["//", "/./", "/../", "%2f", "%2F", "#"];
    let at_end = ["/..", "/."];
    let wrong = inside
        .iter()
        .find(|part| value.contains(**part))
        .or_else(|| at_end.iter().find(|part| value.ends_with(**part)));
    if let Some(part) = wrong {
        notes.refuse(
            field,
            format!("`{value}` contains `{part}`, which no normal path does"),
            "write the path as a server sees it",
        );
    } else if let Some(other) = no_path_character(value) {
        notes.refuse(
            field,
            format!("`{value}` contains `{other}`, which no path does"),
            "write the path as it is sent: other characters as `%` and two hexadecimal digits, and no query",
        );
    }
}

/// What in the text is not of RFC 3986's `pchar` or `/`, if anything.
pub(super) fn no_path_character(text: &str) -> Option<char> {
    let mut rest = text.chars();
    while let Some(one) = rest.next() {
        let hex = |digit: Option<char>| digit.is_some_and(|digit| digit.is_ascii_hexdigit());
        let fits = match one {
            '%' => hex(rest.next()) && hex(rest.next()),
            _ => one.is_ascii_alphanumeric() || "-/._~!$&'()*+,;=:@".contains(one),
        };
        if !fits {
            return Some(one);
        }
    }
    None
}

/// Longest paths are for plain ones; a regular expression is bounded likewise.
pub(super) fn check_path_regex(
    field: String,
    regex: &str,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> bool {
    if regex.chars().count() > MAX_PATH {
        notes.refuse(field, format!("longer than {MAX_PATH} characters"), "");
        return false;
    }
    check_regex(field, regex, fault, notes)
}

/// Whether the proxy can compile it; if not, it is told and becomes the rule's fault.
pub(super) fn check_regex(field: String, regex: &str, fault: &mut Option<Fault>, notes: &mut Notes) -> bool {
    let Some(message) = regex_fault(regex) else {
        return true;
    };
    Fault { effect: Effect::LeftOut, field, message }.tell(fault, REGEX_HINT, notes);
    false
}

/// What is said to do where a regular expression cannot be used.
pub(in crate::object) const REGEX_HINT: &str = "the syntax is RE2's, without look-around and back-references";

/// Why the proxy cannot compile it; none if it can.
pub(in crate::object) fn regex_fault(regex: &str) -> Option<String> {
    let error = compile(regex).err()?;
    let why = match &error {
        regex::Error::CompiledTooBig(_) => "it is too big".to_owned(),
        error => {
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    };
    Some(format!("`{regex}` cannot be used as a regular expression ({why})"))
}

/// As the proxy does: RE2's classes are ASCII's; a pattern that names other characters is compiled with Unicode's.
fn compile(regex: &str) -> Result<(), regex::Error> {
    let build = |text: &str, unicode| {
        let mut builder = RegexBuilder::new(text);
        builder.unicode(unicode).size_limit(PATTERN_SIZE).dfa_size_limit(PATTERN_SIZE).build().map(drop)
    };
    // By itself first: `a)|(?:b` must not become sound by what is put around it.
    let unicode = build(regex, false).is_err();
    if unicode {
        build(regex, true)?;
    }
    build(&format!(r"\A(?:{regex})\z"), unicode)
}
