//! YAML text → JSON values, with the line and column of every field.
//!
//! Documents are split before they are parsed, so that a broken one leaves the others readable (YAML forbids a line
//! that begins with `---` inside a document, even within a block of text). Input is not trusted: nesting and the size
//! that aliases expand to are limited. YAML 1.2 core schema: `yes` and `on` are text.

use std::borrow::Cow;

use foldhash::{HashMap, HashMapExt};
use saphyr::Scalar;
use saphyr_parser::{Event, Marker, Parser, ScalarStyle, Tag};
use serde_json::{Map, Number, Value};

use crate::finding::{Mark, Positions, push_index, push_key};

/// Deeper nesting is refused.
const MAX_DEPTH: usize = 100;
/// Values and keys per document, with aliases expanded; long text, and a long path to it, counts for more than one.
const MAX_SIZE: usize = 1_000_000;
/// So many bytes of text count as one value.
const TEXT_UNIT: usize = 64;

/// A part of a file between two `---`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    /// Line of the file where `text` begins, from 1.
    pub(crate) first_line: u32,
    pub(crate) text: &'a str,
}

/// A parsed document.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) value: Value,
    pub(crate) positions: Positions,
}

/// Why a document cannot be parsed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    pub(crate) mark: Mark,
    pub(crate) message: String,
}

/// Splits a file into its documents.
pub(crate) fn split(text: &str) -> Vec<Chunk<'_>> {
    let mut chunks = Vec::new();
    let (mut start, mut first_line) = (0, 1);
    let mut at = 0;
    // Directives belong to the document that follows them.
    let mut only_directives = true;
    for (line_number, line) in (1_u32..).zip(split_lines(text)) {
        let is_marker = |marker: &str| {
            line.strip_prefix(marker)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
        };
        if is_marker("---") && !only_directives {
            chunks.push(Chunk { first_line, text: &text[start..at] });
            (start, first_line) = (at, line_number);
        }
        at += line.len();
        let blank = line.trim().is_empty() || line.starts_with(['#', '%']);
        only_directives &= blank;
        if is_marker("...") {
            chunks.push(Chunk { first_line, text: &text[start..at] });
            (start, first_line) = (at, line_number + 1);
            only_directives = true;
        }
    }
    chunks.push(Chunk { first_line, text: &text[start..] });
    chunks
}

/// Parses one document; none if there is nothing in it but comments.
pub(crate) fn parse(chunk: Chunk<'_>) -> Result<Option<Document>, Broken> {
    let mut builder = Builder {
        lines_before: chunk.first_line - 1,
        lines: lines(chunk.text),
        positions: Positions::default(),
        path: String::new(),
        frames: Vec::new(),
        anchors: HashMap::new(),
        size: 0,
        root: None,
    };
    let mut parser = Parser::new_from_str(chunk.text);
    while let Some(next) = parser.next_event() {
        match next {
            Ok((event, span)) => builder.event(event, span.start)?,
            Err(error) => {
                return Err(Broken { mark: builder.mark(*error.marker()), message: error.info().to_owned() });
            }
        }
    }
    let positions = builder.positions;
    Ok(builder.root.filter(|value| !value.is_null()).map(|value| Document { value, positions }))
}

/// The lines of a text, each with its end: LF, CR LF or a bare CR (YAML 1.2.2 §5.4).
pub(crate) fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let end = match rest.find(['\n', '\r']) {
            Some(at) if rest[at..].starts_with("\r\n") => at + 2,
            Some(at) => at + 1,
            None if rest.is_empty() => return None,
            None => rest.len(),
        };
        let (line, tail) = rest.split_at(end);
        rest = tail;
        Some(line)
    })
}

/// How many lines `text` has; a bare CR ends one too (YAML 1.2.2 §5.4).
fn lines(text: &str) -> u32 {
    let ends = text.as_bytes().windows(2).filter(|two| two[0] == b'\n' || two[0] == b'\r' && two[1] != b'\n');
    u32::try_from(ends.count()).unwrap_or(u32::MAX).saturating_add(1)
}

/// A collection that is still open.
struct Frame {
    kind: FrameKind,
    /// 0: no anchor.
    anchor: usize,
    /// Size of everything before the collection.
    size_before: usize,
    /// Length of the path of the collection itself.
    path_length: usize,
}

enum FrameKind {
    Map {
        entries: Map<String, Value>,
        lines: HashMap<String, u32>,
        /// The key whose value comes next.
        key: Option<String>,
        /// Values of `<<`, which fill in what is not said.
        merges: Vec<Value>,
    },
    List(Vec<Value>),
}

/// The key that merges another mapping in (YAML 1.1, which Kubernetes reads too).
const MERGE: &str = "<<";

struct Builder {
    lines_before: u32,
    /// How many lines the document has.
    lines: u32,
    positions: Positions,
    path: String,
    frames: Vec<Frame>,
    anchors: HashMap<usize, (Value, usize)>,
    size: usize,
    root: Option<Value>,
}

// === impl Builder ===

impl Builder {
    fn event(&mut self, event: Event<'_>, start: Marker) -> Result<(), Broken> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                if self.awaits_key() {
                    return self.key(text, style, tag.as_ref(), start);
                }
                let size = 1 + text.len() / TEXT_UNIT;
                let value = self.scalar(text, style, tag.as_ref(), start)?;
                self.grow(size, start)?;
                if anchor > 0 {
                    self.anchors.insert(anchor, (value.clone(), size));
                }
                self.begin_value(start)?;
                self.end_value(value);
                Ok(())
            }
            Event::Alias(anchor) => {
                if self.awaits_key() {
                    return self.broken(start, "an alias cannot be a key");
                }
                let Some((value, size)) = self.anchors.get(&anchor).cloned() else {
                    return self.broken(start, "the alias refers to something that is not complete");
                };
                self.grow(size, start)?;
                self.begin_value(start)?;
                self.end_value(value);
                Ok(())
            }
            Event::MappingStart(anchor, _) => {
                let kind = FrameKind::Map {
                    entries: Map::new(),
                    lines: HashMap::new(),
                    key: None,
                    merges: Vec::new(),
                };
                self.open(kind, anchor, start)
            }
            Event::SequenceStart(anchor, _) => self.open(FrameKind::List(Vec::new()), anchor, start),
            Event::MappingEnd | Event::SequenceEnd => {
                self.close();
                Ok(())
            }
            Event::DocumentStart(_) if self.root.is_some() => {
                self.broken(start, "a second document begins here without `---`")
            }
            Event::Nothing
            | Event::StreamStart
            | Event::StreamEnd
            | Event::DocumentStart(_)
            | Event::DocumentEnd => Ok(()),
        }
    }

    fn awaits_key(&self) -> bool {
        matches!(self.frames.last().map(|frame| &frame.kind), Some(FrameKind::Map { key: None, .. }))
    }

    fn key(
        &mut self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Cow<'_, Tag>>,
        start: Marker,
    ) -> Result<(), Broken> {
        let mark = self.mark(start);
        if style == ScalarStyle::Plain && tag.is_none() && matches!(&*text, "" | "~" | "null") {
            return self.broken(start, "a key is missing");
        }
        let Some(FrameKind::Map { key, lines, .. }) = self.frames.last_mut().map(|f| &mut f.kind) else {
            return Ok(());
        };
        let text = text.into_owned();
        if text != MERGE
            && let Some(first) = lines.insert(text.clone(), mark.line)
        {
            let message = format!("`{text}` is there twice; the first is in line {first}");
            return self.broken(start, &message);
        }
        let size = 1 + text.len() / TEXT_UNIT;
        push_key(&mut self.path, &text);
        *key = Some(text);
        self.grow(size, start)?;
        self.place(mark, start)
    }

    fn scalar(
        &self,
        text: Cow<'_, str>,
        style: ScalarStyle,
        tag: Option<&Cow<'_, Tag>>,
        start: Marker,
    ) -> Result<Value, Broken> {
        let unread = text.to_string();
        match Scalar::parse_from_cow_and_metadata(text, style, tag) {
            Some(Scalar::Null) => Ok(Value::Null),
            Some(Scalar::Boolean(value)) => Ok(Value::Bool(value)),
            Some(Scalar::Integer(value)) => Ok(Value::Number(value.into())),
            Some(Scalar::FloatingPoint(value)) => {
                Ok(Number::from_f64(value.0).map_or(Value::String(unread), Value::Number))
            }
            Some(Scalar::String(value)) => Ok(Value::String(value.into_owned())),
            None => self.broken(start, &format!("`{unread}` is not what its tag says")),
        }
    }

    fn open(&mut self, kind: FrameKind, anchor: usize, start: Marker) -> Result<(), Broken> {
        if self.awaits_key() {
            return self.broken(start, "a key must be text; if `{{ … }}` was meant as text, quote it");
        }
        if self.frames.len() >= MAX_DEPTH {
            return self.broken(start, &format!("nested deeper than {MAX_DEPTH}"));
        }
        self.begin_value(start)?;
        let size_before = self.size;
        self.grow(1, start)?;
        self.frames.push(Frame { kind, anchor, size_before, path_length: self.path.len() });
        Ok(())
    }

    fn close(&mut self) {
        let Some(frame) = self.frames.pop() else {
            return;
        };
        let value = match frame.kind {
            FrameKind::List(items) => Value::Array(items),
            FrameKind::Map { mut entries, merges, .. } => {
                for (key, value) in merges.into_iter().flat_map(merged) {
                    entries.entry(key).or_insert(value);
                }
                Value::Object(entries)
            }
        };
        self.path.truncate(frame.path_length);
        if frame.anchor > 0 {
            let size = self.size - frame.size_before;
            self.anchors.insert(frame.anchor, (value.clone(), size));
        }
        self.end_value(value);
    }

    /// Steps into a list's next item, or the document itself; a key has been stepped into already.
    fn begin_value(&mut self, start: Marker) -> Result<(), Broken> {
        match self.frames.last().map(|frame| &frame.kind) {
            Some(FrameKind::List(items)) => push_index(&mut self.path, items.len()),
            Some(FrameKind::Map { .. }) => return Ok(()),
            None => {}
        }
        self.place(self.mark(start), start)
    }

    /// Remembers where the present path stands, which costs as much as the path is long.
    fn place(&mut self, mark: Mark, start: Marker) -> Result<(), Broken> {
        self.grow(self.path.len() / TEXT_UNIT, start)?;
        self.positions.insert(&self.path, mark);
        Ok(())
    }

    fn end_value(&mut self, value: Value) {
        let Some(frame) = self.frames.last_mut() else {
            self.root = Some(value);
            return;
        };
        self.path.truncate(frame.path_length);
        match &mut frame.kind {
            FrameKind::List(items) => items.push(value),
            FrameKind::Map { entries, key, merges, .. } => match key.take() {
                Some(key) if key == MERGE => merges.push(value),
                Some(key) => {
                    entries.insert(key, value);
                }
                None => {}
            },
        }
    }

    fn grow(&mut self, by: usize, start: Marker) -> Result<(), Broken> {
        self.size = self.size.saturating_add(by);
        if self.size > MAX_SIZE {
            return self.broken(start, "too large, with its aliases expanded");
        }
        Ok(())
    }

    fn mark(&self, marker: Marker) -> Mark {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Mark {
            // What is missing at the end is missed there, and not in the next document.
            line: self.lines_before.saturating_add(number(marker.line()).min(self.lines)),
            column: number(marker.col().saturating_add(1)),
        }
    }

    fn broken<T>(&self, at: Marker, message: &str) -> Result<T, Broken> {
        Err(Broken { mark: self.mark(at), message: message.to_owned() })
    }
}

/// What `<<` merges in: a mapping, or several of which the first to say something counts.
fn merged(value: Value) -> Vec<(String, Value)> {
    match value {
        Value::Object(entries) => entries.into_iter().collect(),
        Value::Array(items) => items.into_iter().flat_map(merged).collect(),
        _ => Vec::new(),
    }
}
