//! Which path a request asks for, though many spellings may ask for one path.
//!
//! Decides as what applications may read the path of a request ([`Readings`]), or that nobody can tell ([`Unclear`]): where a policy looks
//! at paths, such a request is refused. Applications differ: some merge slashes, some resolve `..`, some leave out `;parameters`. What is
//! passed on is the path as it came, and policy holds for whatever of these an application does: **what is denied, in one reading at
//! least; what is allowed, in all**. Pure.
//!
//! - Percent-encoding is undone, once and whole, as applications do (RFC 3986, section 2.4): `/%61dmin` is `/admin`.
//! - Nobody can tell what an encoded slash, a backslash (also encoded), an encoded control character such as NUL, a `%` without two digits,
//!   what is still encoded when it was decoded (`%252f`) and what is not UTF-8 then (such as the overlong `%c0%af`) come to.
//! - Empty segments are one reading, and left out another (`//admin`). Likewise `.` and `..` (RFC 3986, section 5.2.4), and `;parameters`
//!   of segments.
//! - Where the order of these would make a difference, nobody can tell: `..` beside empty segments or parameters (`/a//../b`, `/..;/b`).
//! - Case counts: `/Admin` is not `/admin`. A slash at the end tells paths apart for what is allowed, and not for what is denied.
//!
//! After Envoy's `normalize_path`, `merge_slashes` and `path_with_escaped_slashes_action`, and what went around them (CVE-2019-9901,
//! CVE-2021-29492, CVE-2021-31920, CVE-2021-39156), Tomcat's and Spring's parameters, and double decoding.

use std::borrow::Cow;
use std::fmt;

/// Why nobody can tell what a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unclear {
    /// An encoded slash, or a backslash.
    Slash,
    /// A control character, encoded or not.
    Control,
    /// A `%` without two hexadecimal digits.
    Encoding,
    /// Decoded, it is encoded still.
    Twice,
    NotUtf8,
    /// `..` beside empty segments or parameters.
    Dots,
    /// Of the host: a user, or what is no host's name and no address.
    Host,
}

/// As what applications may read a path.
#[derive(Debug)]
pub(super) struct Readings<'p> {
    /// Decoded, and else as it is.
    written: Cow<'p, str>,
    /// Without empty segments, `.` and `..`, where that is another path.
    plain: Option<String>,
    /// Without parameters besides, where there are any.
    bare: Option<String>,
}

/// What paths must be like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathText {
    Exact(Box<str>),
    Prefix(Box<str>),
    Suffix(Box<str>),
    Template(Template),
}

/// A path of whose segments some may be any: `/a/{*}/b`, `/a/{**}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    text: Box<str>,
    /// `None`: any that is not empty.
    segments: Box<[Option<Box<str>>]>,
    /// Any number of others may follow.
    open: bool,
}

/// Text that is no template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a template: {why}")]
pub struct InvalidTemplate {
    text: String,
    why: &'static str,
}

// === impl Readings ===

impl<'p> Readings<'p> {
    /// Those of a path without its query; `*`, and CONNECT's empty one, are what they are. Allocates only where it is not written plainly.
    ///
    /// # Errors
    /// Why nobody can tell.
    pub(super) fn of(path: &'p str) -> Result<Self, Unclear> {
        if is_plain(path) {
            return Ok(Self { written: Cow::Borrowed(path), plain: None, bare: None });
        }
        let written = decoded(path)?;
        let found = Found::of(&written)?;
        let segments = || written.get(1..).unwrap_or_default().split('/');
        let plain = found.resolves.then(|| resolved(segments()));
        let bare = found.parameters.then(|| resolved(segments().map(without_parameters)));
        Ok(Self { plain, bare, written })
    }

    /// Every one.
    pub(super) fn all(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&*self.written).chain(self.others())
    }

    /// Those that differ from the path by more than its spelling.
    pub(super) fn others(&self) -> impl Iterator<Item = &str> {
        [&self.plain, &self.bare].into_iter().flatten().map(String::as_str)
    }
}

/// Whether it is written in the only way: nothing is to be decoded, merged, resolved or left out.
fn is_plain(path: &str) -> bool {
    let mut before = 0;
    path.bytes().all(|byte| {
        let fits = match byte {
            b'%' | b';' | b'\\' | 0..=b' ' | 0x7f => false,
            b'/' | b'.' => before != b'/',
            _ => true,
        };
        before = byte;
        fits
    })
}

fn decoded(path: &str) -> Result<Cow<'_, str>, Unclear> {
    let mut out = Vec::new();
    let mut rest = path.as_bytes();
    let is_coded = memchr::memchr(b'%', rest).is_some();
    if is_coded {
        out.reserve(rest.len());
    }
    while let [byte, after @ ..] = rest {
        rest = after;
        let mut byte = *byte;
        if byte == b'%' {
            let [high, low, after @ ..] = after else { return Err(Unclear::Encoding) };
            let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Err(Unclear::Encoding) };
            byte = high << 4 | low;
            rest = after;
            if byte == b'/' {
                return Err(Unclear::Slash);
            }
        }
        match byte {
            b'\\' => return Err(Unclear::Slash),
            byte if byte.is_ascii_control() => return Err(Unclear::Control),
            byte if is_coded => out.push(byte),
            _ => {}
        }
    }
    if !is_coded {
        return Ok(Cow::Borrowed(path));
    }
    let again = out
        .windows(3)
        .any(|three| three[0] == b'%' && digit(three[1]).is_some() && digit(three[2]).is_some());
    if again {
        return Err(Unclear::Twice);
    }
    String::from_utf8(out).map(Cow::Owned).map_err(|_| Unclear::NotUtf8)
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| digit.try_into().ok())
}

/// What of a decoded path applications treat differently.
#[derive(Default)]
struct Found {
    /// Empty segments, `.` or `..`.
    resolves: bool,
    parameters: bool,
}

impl Found {
    fn of(path: &str) -> Result<Self, Unclear> {
        let mut found = Self::default();
        let Some(path) = path.strip_prefix('/') else { return Ok(found) };
        let (mut is_empty, mut parent) = (false, false);
        let mut segments = path.split('/').peekable();
        while let Some(segment) = segments.next() {
            match segment.split_once(';') {
                None => match segment {
                    // The last one is a slash at the end.
                    "" => is_empty |= segments.peek().is_some(),
                    "." => found.resolves = true,
                    ".." => parent = true,
                    _ => {}
                },
                Some(("." | "..", _)) => return Err(Unclear::Dots),
                Some(_) => found.parameters = true,
            }
        }
        if parent && (is_empty || found.parameters) {
            return Err(Unclear::Dots);
        }
        found.resolves |= is_empty || parent;
        Ok(found)
    }
}

fn without_parameters(segment: &str) -> &str {
    segment.split_once(';').map_or(segment, |(name, _)| name)
}

/// The path of these segments without empty ones, `.` and `..`.
fn resolved<'s>(segments: impl Iterator<Item = &'s str>) -> String {
    let (mut left, mut ends_open) = (Vec::new(), false);
    for segment in segments {
        ends_open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => drop(left.pop()),
            segment => left.push(segment),
        }
    }
    let mut path = String::new();
    for segment in &left {
        path.push('/');
        path.push_str(segment);
    }
    if ends_open || path.is_empty() {
        path.push('/');
    }
    path
}

// === impl PathText ===

impl PathText {
    /// As it is compared: decoded, as paths are. What is unclear is left as it is, and describes no path that is judged.
    fn text(text: &str) -> Box<str> {
        decoded(text).map_or_else(|_| text.into(), |text| text.into_owned().into())
    }

    pub fn exact(text: &str) -> Self {
        Self::Exact(Self::text(text))
    }

    pub fn prefix(text: &str) -> Self {
        Self::Prefix(Self::text(text))
    }

    pub fn suffix(text: &str) -> Self {
        Self::Suffix(Self::text(text))
    }

    /// # Errors
    /// Where `text` is no template.
    pub fn template(text: &str) -> Result<Self, InvalidTemplate> {
        Template::new(text).map(Self::Template)
    }

    /// Whether it describes `path`.
    fn is(&self, path: &str) -> bool {
        match self {
            Self::Exact(text) => **text == *path,
            Self::Prefix(text) => path.starts_with(&**text),
            Self::Suffix(text) => path.ends_with(&**text),
            Self::Template(template) => template.is(path, false),
        }
    }

    /// Whether it describes `path`, or would with a slash more or less at its end.
    fn is_nearly(&self, path: &str) -> bool {
        let with_slash = || match self {
            Self::Exact(text) | Self::Prefix(text) => text.strip_suffix('/') == Some(path),
            Self::Suffix(text) => text.strip_suffix('/').is_some_and(|text| path.ends_with(text)),
            Self::Template(template) => template.is(path, true),
        };
        self.is(path) || path.strip_suffix('/').is_some_and(|path| self.is(path)) || with_slash()
    }
}

impl fmt::Display for PathText {
    /// As policies are written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Template(template) => f.write_str(&template.text),
        }
    }
}

/// Whether some of `paths` describes what is asked for: for sure, in each reading; or else in any, and but for a slash at the end.
pub(super) fn describe(paths: &[PathText], readings: &Readings<'_>, for_sure: bool) -> bool {
    match for_sure {
        true => readings.all().all(|reading| paths.iter().any(|path| path.is(reading))),
        false => readings.all().any(|reading| paths.iter().any(|path| path.is_nearly(reading))),
    }
}

// === impl Template ===

impl Template {
    fn new(text: &str) -> Result<Self, InvalidTemplate> {
        let wrong = |why| InvalidTemplate { text: text.to_owned(), why };
        let path = text.strip_prefix('/').ok_or_else(|| wrong("it does not begin with a slash"))?;
        let (path, open) = match path.strip_suffix("{**}") {
            Some("") => ("", true),
            Some(path) => {
                (path.strip_suffix('/').ok_or_else(|| wrong("`{**}` is not a whole segment"))?, true)
            }
            None => (path, false),
        };
        let segment = |segment: &str| match segment {
            "{*}" => Ok(None),
            segment if segment.contains(['{', '}']) => {
                Err(wrong("only `{*}` as a whole segment and `{**}` at the end stand for others"))
            }
            segment => Ok(Some(PathText::text(segment))),
        };
        let segments = match path {
            "" if open => Vec::new(),
            path => path.split('/').map(segment).collect::<Result<_, _>>()?,
        };
        Ok(Self { text: text.into(), segments: segments.into(), open })
    }

    /// Whether it describes `path`; with a slash more at its end.
    fn is(&self, path: &str, slash: bool) -> bool {
        let Some(path) = path.strip_prefix('/') else { return false };
        let mut given = path.split('/').chain(slash.then_some(""));
        let all = self.segments.iter().all(|segment| match (segment, given.next()) {
            (Some(segment), Some(given)) => **segment == *given,
            (None, Some(given)) => !given.is_empty(),
            (_, None) => false,
        });
        all && (self.open || given.next().is_none())
    }
}

// === impl Unclear ===

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Slash => "its path has an encoded slash or a backslash",
            Self::Control => "its path has a control character",
            Self::Encoding => "its path has a `%` without two hexadecimal digits",
            Self::Twice => "its path is encoded twice",
            Self::NotUtf8 => "its path is not UTF-8",
            Self::Dots => "its path has `..` beside empty segments or parameters",
            Self::Host => "its host is neither a name nor an address",
        })
    }
}

#[cfg(test)]
mod tests;
