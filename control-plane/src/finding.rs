//! What is wrong with what people wrote, and where.
//!
//! Decides how a complaint is worded and ordered, so that the log, the metrics and `tulle check` say the same.
//! Holds no configuration and never stops anything: a finding is told, and the rest is served on. Made by
//! [`crate::source`] (text, types, single objects) and by [`crate::model`] (how objects fit together).

use std::fmt;
use std::sync::Arc;

use foldhash::HashMap;

use serde::Serialize;

use crate::object::ObjectKey;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Something that was asked for is not done; `tulle check` exits with 1.
    Error,
    /// Served as written, but probably not as meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One complaint: what was wrong, where, and what to do.
///
/// Findings order by file, line and column, so a sorted list reads like the folder does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Finding {
    /// The file, as reached from the folder's own path; none for what came from no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// From 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// From 1, in characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<u32>,
    /// How bad it is.
    pub severity: Severity,
    /// `<Kind> <namespace>/<name>`, where that much could be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// Path of the field, such as `spec.rules[0].backendRefs[1].weight`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What is wrong, and what is done about it meanwhile.
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl fmt::Display for Finding {
    /// `file:line:column: error: Kind ns/name: field: message (hint)`, the shape that editors jump from: one line, whatever
    /// was written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;

        let f = &mut OneLine(f);
        if let Some(file) = &self.file {
            f.write_str(file)?;
            for number in [self.line, self.column].into_iter().flatten() {
                write!(f, ":{number}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}: ", self.severity)?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, " ({hint})")?;
        }
        Ok(())
    }
}

/// A complaint about one object, before it is known where the object is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the field within the object; empty for the object as a whole.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// Where the fields of one document stand.
///
/// Paths read as in [`Finding::field`]: `spec.rules[0].weight`, and `metadata.annotations["a.b/c"]` for a key that is
/// not a plain word.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Positions {
    marks: HashMap<String, Mark>,
}

/// A place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark {
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}

/// Where an object is written.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The file.
    pub file: Arc<str>,
    /// Path of the object within its document: empty, or `items[3]` in a list.
    pub base: Arc<str>,
    /// Of the whole document.
    pub positions: Arc<Positions>,
}

/// Complaints gathered while one object is looked through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Notes {
    notes: Vec<Note>,
    refused: bool,
}

/// Writes control characters as Rust does (`\n`, `\u{1b}`), so that nothing that people wrote ends a line or moves a cursor.
struct OneLine<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            write!(self.0, "{}", part[plain.len()..].escape_default())?;
        }
        Ok(())
    }
}

// === impl Finding ===

impl Finding {
    /// Says where `note` about the object stands, as far as that is known.
    pub fn new(note: Note, object: Option<&ObjectKey>, origin: Option<&Origin>) -> Self {
        let mark = origin.and_then(|origin| origin.find(&note.field));
        Self {
            file: origin.map(|origin| origin.file.to_string()),
            line: mark.map(|mark| mark.line),
            column: mark.map(|mark| mark.column),
            severity: note.severity,
            object: object.map(ToString::to_string),
            field: Some(note.field).filter(|field| !field.is_empty()),
            message: note.message,
            hint: note.hint,
        }
    }
}

// === impl Positions ===

impl Positions {
    /// Remembers where `field` stands; the first place wins.
    pub fn insert(&mut self, field: &str, mark: Mark) {
        if !self.marks.contains_key(field) {
            self.marks.insert(field.to_owned(), mark);
        }
    }

    /// Where `field` stands, or else the nearest field around it that is written.
    pub fn find(&self, field: &str) -> Option<Mark> {
        let mut path = field;
        loop {
            if let Some(mark) = self.marks.get(path) {
                return Some(*mark);
            }
            if path.is_empty() {
                return None;
            }
            path = parent(path);
        }
    }
}

/// The path without its last step.
fn parent(path: &str) -> &str {
    if let Some(rest) = path.strip_suffix("\"]") {
        return rest.rfind("[\"").map_or("", |at| &rest[..at]);
    }
    path.rfind(['.', '[']).map_or("", |at| &path[..at])
}

/// `path` with the step into `key` added: `.key`, or `["key"]` where the key is not a plain word.
pub(crate) fn push_key(path: &mut String, key: &str) {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'$');
    if !key.is_empty() && key.bytes().all(plain) {
        if !path.is_empty() {
            path.push('.');
        }
        path.push_str(key);
    } else {
        path.push_str("[\"");
        path.push_str(key);
        path.push_str("\"]");
    }
}

/// `path` with the step into a list's item added.
pub(crate) fn push_index(path: &mut String, index: usize) {
    path.push('[');
    path.push_str(&index.to_string());
    path.push(']');
}

// === impl Origin ===

impl Origin {
    /// Where a field of the object stands, or else the nearest field around it that is written.
    pub fn find(&self, field: &str) -> Option<Mark> {
        if self.base.is_empty() {
            return self.positions.find(field);
        }
        let dot = if field.is_empty() || field.starts_with('[') { "" } else { "." };
        self.positions.find(&format!("{}{dot}{field}", self.base))
    }
}

// === impl Notes ===

impl Notes {
    /// The object cannot be used at all, as a Kubernetes API server would refuse it: its last good version stays.
    pub fn refuse(&mut self, field: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.refused = true;
        self.push(Severity::Error, field, message, hint);
    }

    /// A part of the object is not served, and what is done in its place is in the message.
    pub fn error(&mut self, field: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.push(Severity::Error, field, message, hint);
    }

    /// Served, but probably not as meant.
    pub fn warn(&mut self, field: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.push(Severity::Warning, field, message, hint);
    }

    /// Whether the object as a whole was refused.
    pub fn refused(&self) -> bool {
        self.refused
    }

    /// What was gathered, in the order in which it was seen.
    pub fn into_inner(self) -> Vec<Note> {
        self.notes
    }

    fn push(&mut self, severity: Severity, field: impl Into<String>, message: impl Into<String>, hint: &str) {
        self.notes.push(Note {
            severity,
            field: field.into(),
            message: message.into(),
            hint: (!hint.is_empty()).then(|| hint.to_owned()),
        });
    }
}
