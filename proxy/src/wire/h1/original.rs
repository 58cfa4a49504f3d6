//! Heads as they came, and how a head is written so that it looks as it came.
//!
//! Decides order and spelling: lines that nobody changed are written byte for byte, in their order; a line whose value
//! was changed keeps its place and the spelling of its name; removed ones are left out; new ones come last. It must never
//! change what a head *means*: only what is in the [`HeaderMap`], and the framing that the codec says, is written.
//! Called by the shells, [`super::server`] and [`super::client`].

use bytes::{BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use smallvec::SmallVec;

/// A head as it came, kept in the extensions of the message that was made of it.
#[derive(Clone, Debug)]
pub struct OriginalHead {
    bytes: Bytes,
    lines: SmallVec<[Line; 16]>,
    chunked: bool,
}

/// Where a field stands in the head's bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    pub(super) start: u32,
    pub(super) value: u32,
    pub(super) name_len: u16,
}

/// What the head says about the length of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing.
    Nothing,
    /// What the message's own fields say: of a body that is not sent (HEAD, 304).
    AsGiven,
    Exact(u64),
    Chunked,
}

/// What becomes of an original line.
#[derive(Clone, Copy)]
enum Slot<'a> {
    Gone,
    Same,
    Changed(&'a [u8]),
}

/// A head to be written.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    pub(super) original: Option<&'a OriginalHead>,
    pub(super) headers: &'a HeaderMap,
    pub(super) told: Told,
    /// Takes the place of the message's own `Connection`.
    pub(super) connection: Option<&'static str>,
}

// === impl OriginalHead ===

impl OriginalHead {
    pub(super) fn new(bytes: Bytes, lines: SmallVec<[Line; 16]>, chunked: bool) -> Self {
        Self { bytes, lines, chunked }
    }

    /// Lets go of what it holds; whether nothing stays behind that is allocated.
    pub(super) fn clear(&mut self) -> bool {
        self.bytes = Bytes::new();
        self.lines.clear();
        !self.lines.spilled()
    }

    /// How many fields came.
    pub(super) fn lines(&self) -> usize {
        self.lines.len()
    }

    /// Bytes that it came in.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether the body came in chunks.
    pub fn is_chunked(&self) -> bool {
        self.chunked
    }

    /// The names of the fields, spelled and ordered as they came.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(|line| self.name(line))
    }

    /// A response's reason phrase; empty when there is none.
    fn reason(&self, status: StatusCode) -> Option<&[u8]> {
        let line = self.bytes.get(..memchr::memchr(b'\r', &self.bytes)?)?;
        let (code, reason) = (line.get(9..12)?, line.get(12..)?);
        (code == status.as_str().as_bytes()).then(|| reason.strip_prefix(b" ").unwrap_or(reason))
    }

    fn name(&self, line: &Line) -> &[u8] {
        let start = line.start as usize;
        self.bytes.get(start..start + usize::from(line.name_len)).unwrap_or_default()
    }

    /// The value of the line at `i`, without the whitespace around it.
    fn value(&self, i: usize) -> &[u8] {
        let Some(line) = self.lines.get(i) else { return &[] };
        let start = line.start as usize + usize::from(line.name_len) + 1;
        self.bytes.get(start..self.end(i)).unwrap_or_default().trim_ascii()
    }

    /// Where the line at `i` ends, its CRLF included.
    fn end(&self, i: usize) -> usize {
        match self.lines.get(i + 1) {
            Some(next) => next.start as usize,
            None => self.bytes.len().saturating_sub(2),
        }
    }

    /// Whether `value` is the very bytes of the line at `i`, under its name.
    fn is_line(&self, i: usize, name: &str, value: &[u8]) -> bool {
        let Some(line) = self.lines.get(i) else { return false };
        let at = value.as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        at == line.value as usize
            && self.bytes.get(at..self.end(i)).and_then(|rest| rest.strip_prefix(value)) == Some(b"\r\n")
            && is_name(self.name(line), name.as_bytes())
    }

    /// All lines of fields.
    fn fields(&self) -> &[u8] {
        let end = self.bytes.len().saturating_sub(2);
        let start = self.lines.first().map_or(end, |line| line.start as usize);
        self.bytes.get(start..end).unwrap_or_default()
    }

    /// The line that `value` is a part of, if it is a whole line's value.
    fn line_of(&self, value: &[u8], guess: usize) -> Option<usize> {
        let at = value.as_ptr().addr().wrapping_sub(self.bytes.as_ptr().addr());
        if value.is_empty() || at >= self.bytes.len() {
            return None;
        }
        let is = |i: usize| self.lines.get(i).is_some_and(|line| line.value as usize == at);
        let i = if is(guess) {
            guess
        } else {
            self.lines.partition_point(|line| line.start as usize <= at).checked_sub(1)?
        };
        (is(i) && self.value(i).len() == value.len()).then_some(i)
    }
}

/// Whether a name is spelled so, in whichever case: most are in lower case, and compared at once.
fn is_name(spelled: &[u8], name: &[u8]) -> bool {
    spelled == name || spelled.eq_ignore_ascii_case(name)
}

// === Writing ===

pub(super) fn write_request_line(out: &mut Vec<u8>, method: &Method, uri: &Uri, version: Version) {
    out.reserve(512);
    out.put_slice(method.as_str().as_bytes());
    out.put_u8(b' ');
    if let Some(scheme) = uri.scheme_str() {
        out.put_slice(scheme.as_bytes());
        out.put_slice(b"://");
    }
    match (uri.authority(), uri.path_and_query()) {
        (Some(authority), path) if *method == Method::CONNECT || uri.scheme().is_some() => {
            out.put_slice(authority.as_str().as_bytes());
            if *method != Method::CONNECT {
                out.put_slice(path.map_or("/", |path| path.as_str()).as_bytes());
            }
        }
        (_, Some(path)) if !path.as_str().is_empty() => {
            // `http` allows a query without a path.
            if path.as_str().starts_with('?') {
                out.put_u8(b'/');
            }
            out.put_slice(path.as_str().as_bytes());
        }
        _ => out.put_u8(b'/'),
    }
    out.put_slice(if version == Version::HTTP_10 { b" HTTP/1.0\r\n" } else { b" HTTP/1.1\r\n" });
}

pub(super) fn write_status_line(
    out: &mut Vec<u8>,
    status: StatusCode,
    version: Version,
    original: Option<&OriginalHead>,
) {
    out.reserve(512);
    out.put_slice(if version == Version::HTTP_10 { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.put_slice(status.as_str().as_bytes());
    out.put_u8(b' ');
    let usual = || status.canonical_reason().unwrap_or("").as_bytes();
    out.put_slice(original.and_then(|original| original.reason(status)).unwrap_or_else(usual));
    out.put_slice(b"\r\n");
}

impl Fields<'_> {
    /// Writes the fields and the empty line after them.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let mut digits = [0; 20];
        let length = match self.told {
            Told::Exact(length) => Some((header::CONTENT_LENGTH, decimal(length, &mut digits))),
            Told::Chunked => Some((header::TRANSFER_ENCODING, &b"chunked"[..])),
            Told::Nothing | Told::AsGiven => None,
        };
        if let Some((came, added)) = self.original.and_then(|original| self.as_it_came(original, &length)) {
            out.put_slice(came);
            added.for_each(|(name, value)| write_line(name.as_str().as_bytes(), value.as_bytes(), out));
            return out.put_slice(b"\r\n");
        }
        let connection = self.connection.map(|value| (header::CONNECTION, value.as_bytes()));
        let own = [length, connection];
        let given = self.headers.iter().filter(|(name, _)| match **name {
            header::CONTENT_LENGTH => self.told == Told::AsGiven,
            header::TRANSFER_ENCODING => false,
            header::CONNECTION => self.connection.is_none(),
            _ => true,
        });
        let own = own.iter().flatten().map(|(name, value)| (name.as_str(), *value));
        let all = given.map(|(name, value)| (name.as_str(), value.as_bytes())).chain(own);
        match self.original {
            Some(original) => write_like(original, all, out),
            None => all.for_each(|(name, value)| write_line(name.as_bytes(), value, out)),
        }
        out.put_slice(b"\r\n");
    }

    /// All lines that came, where the fields begin with exactly these, in that order, `length` included, and those that were added: as of
    /// most heads. `None` where it is not told at a glance.
    fn as_it_came<'a>(
        &'a self,
        original: &'a OriginalHead,
        length: &Option<(HeaderName, &[u8])>,
    ) -> Option<(&'a [u8], header::Iter<'a, HeaderValue>)> {
        if self.connection.is_some() || self.headers.len() < original.lines.len() {
            return None;
        }
        let mut is_told = length.is_none();
        let mut fields = self.headers.iter();
        for (i, (name, value)) in fields.by_ref().take(original.lines.len()).enumerate() {
            match *name {
                header::CONTENT_LENGTH | header::TRANSFER_ENCODING => match length {
                    Some((told, length)) if told == name && *length == value.as_bytes() => is_told = true,
                    None if self.told == Told::AsGiven && *name == header::CONTENT_LENGTH => {}
                    _ => return None,
                },
                _ => {}
            }
            if !original.is_line(i, name.as_str(), value.as_bytes()) {
                return None;
            }
        }
        let framing = |name: &HeaderName| matches!(*name, header::CONTENT_LENGTH | header::TRANSFER_ENCODING);
        let added = self.headers.len() - original.lines.len();
        let plain =
            added == 0 || !self.headers.iter().skip(original.lines.len()).any(|(name, _)| framing(name));
        (is_told && plain).then(|| (original.fields(), fields))
    }
}

fn write_like<'a>(
    original: &OriginalHead,
    fields: impl Iterator<Item = (&'a str, &'a [u8])>,
    out: &mut Vec<u8>,
) {
    let lines = &original.lines;
    let mut slots: SmallVec<[Slot<'a>; 32]> = SmallVec::from_elem(Slot::Gone, lines.len());
    let mut added: SmallVec<[(&'a str, &'a [u8]); 8]> = SmallVec::new();
    let mut guess = 0;
    // Values of one name come together and keep their order.
    let (mut name_before, mut from) = ("", 0);
    for (name, value) in fields {
        if name != name_before {
            (name_before, from) = (name, 0);
        }
        let is_free = |slots: &[Slot<'_>], i: usize| {
            i >= from
                && matches!(slots.get(i), Some(Slot::Gone))
                && lines.get(i).is_some_and(|line| original.name(line).eq_ignore_ascii_case(name.as_bytes()))
        };
        let same = original.line_of(value, guess).filter(|&i| is_free(&slots, i));
        let place = same.or_else(|| (from..lines.len()).find(|&i| is_free(&slots, i)));
        let Some(i) = place else {
            added.push((name, value));
            from = lines.len();
            continue;
        };
        if let Some(slot) = slots.get_mut(i) {
            let unchanged = same.is_some() || original.value(i) == value;
            *slot = if unchanged { Slot::Same } else { Slot::Changed(value) };
        }
        from = i + 1;
        guess = i + 1;
    }
    let mut i = 0;
    while let (Some(slot), Some(line)) = (slots.get(i), lines.get(i)) {
        match slot {
            Slot::Gone => {}
            Slot::Changed(value) => write_line(original.name(line), value, out),
            Slot::Same => {
                // Neighbours go in one copy.
                while matches!(slots.get(i + 1), Some(Slot::Same)) {
                    i += 1;
                }
                out.put_slice(original.bytes.get(line.start as usize..original.end(i)).unwrap_or_default());
            }
        }
        i += 1;
    }
    added.into_iter().for_each(|(name, value)| write_line(name.as_bytes(), value, out));
}

pub(super) fn write_line(name: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

pub(super) fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        // A remainder of ten fits.
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}
