//! Where a request stands in a trace, as its headers say, and as they say it to whoever is next.
//!
//! Pure: header fields ↔ [`Context`]. `traceparent` is read in every version and written in 00 (W3C Trace Context §3.2, and
//! §3.2.4 for versions to come); B3 is read and written as one field and as many, also with trace IDs of 64 bits. What is
//! malformed is as if it were not there, never an error. `tracestate` and `baggage` are never touched: they are the applications'.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::trace::{SpanId, TraceId};

/// A span that is the parent of what follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The trace.
    pub trace: TraceId,
    /// The span in it.
    pub span: SpanId,
}

/// The forms in which a context is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forms {
    /// `traceparent`.
    pub w3c: bool,
    /// `b3`.
    pub b3: bool,
    /// `x-b3-traceid` and so on.
    pub b3_multi: bool,
}

/// What a request's headers say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The span that the request belongs to, if any.
    pub context: Option<Context>,
    /// Whether its trace is recorded; `None`: that is left to whoever comes next.
    pub sampled: Option<bool>,
    /// B3's debug flag: recorded, whatever anybody's sampling says.
    pub debug: bool,
    /// The trace's ID was told with 64 bits, and is told on so in B3.
    pub short: bool,
    /// W3C's flag that the trace's ID is random (Trace Context Level 2 §3.2.2.5.2).
    pub random: bool,
    /// What of it came in which form.
    pub came: Forms,
}

/// Which forms are read and written: `OTEL_PROPAGATORS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// All are read; W3C's is always written, and B3 as it came.
    AsItComes,
    /// These are read, and each is always written.
    Only(Forms),
}

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3: HeaderName = HeaderName::from_static("b3");
const TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");
const SPAN_ID: HeaderName = HeaderName::from_static("x-b3-spanid");
const PARENT_SPAN_ID: HeaderName = HeaderName::from_static("x-b3-parentspanid");
const SAMPLED: HeaderName = HeaderName::from_static("x-b3-sampled");
const FLAGS: HeaderName = HeaderName::from_static("x-b3-flags");

/// An ID in hexadecimal, which the access log and metrics take without an allocation: 32 digits of a trace, 16 of a span.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digits<const N: usize>([u8; N]);

/// What a head has of the fields that are read.
#[derive(Debug, Default)]
pub struct Values<'a> {
    any: bool,
    any_b3: bool,
    traceparent: Came<'a>,
    b3: Came<'a>,
    trace_id: Came<'a>,
    span_id: Came<'a>,
    sampled: Came<'a>,
    flags: Came<'a>,
}

/// How often a field came.
#[derive(Debug, Default)]
enum Came<'a> {
    #[default]
    Never,
    Once(&'a [u8]),
    Often,
}

/// What is written of a context.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// The parent of what follows.
    pub context: Context,
    /// The parent of that, if there is one.
    pub parent: Option<SpanId>,
    /// Whether it is recorded.
    pub sampled: bool,
    /// As of [`Heard`].
    pub debug: bool,
    /// As of [`Heard`].
    pub short: bool,
    /// As of [`Heard`].
    pub random: bool,
}

// === impl Propagation ===

impl Propagation {
    /// What a request's headers say. Of several forms W3C's holds, then B3's single field.
    pub fn read(&self, values: &Values<'_>) -> Heard {
        if !values.any {
            // As in most requests.
            return Heard::default();
        }
        let all = Forms { w3c: true, b3: true, b3_multi: true };
        let read = if let Self::Only(forms) = self { *forms } else { all };
        let w3c = if read.w3c { w3c(values) } else { Heard::default() };
        if !values.any_b3 {
            return w3c;
        }
        let b3 = if read.b3 { b3_single(values) } else { Heard::default() };
        let multi = if read.b3_multi { b3_multi(values) } else { Heard::default() };
        let came = Forms { w3c: w3c.came.w3c, b3: b3.came.b3, b3_multi: multi.came.b3_multi };
        let said = [w3c, b3, multi];
        let heard = said.iter().find(|heard| heard.context.is_some());
        // B3 may say without IDs that a trace is not recorded, or is.
        let heard = heard.or_else(|| said.iter().find(|heard| heard.sampled.is_some()));
        let mut heard = Heard { came, ..heard.copied().unwrap_or_default() };
        // `traceparent` cannot say this: the proxy before, which adds that, leaves it to the form in which it came.
        let trace = |heard: &Heard| heard.context.map(|context| context.trace);
        let own = trace(&heard);
        for same in [b3, multi].iter().filter(|said| own.is_some() && trace(said) == own) {
            heard.debug |= same.debug;
            heard.short |= same.short;
        }
        heard
    }

    /// The forms in which a context is passed on that came so.
    pub fn forms(&self, came: Forms) -> Forms {
        match self {
            Self::AsItComes => Forms { w3c: true, ..came },
            Self::Only(forms) => *forms,
        }
    }
}

// === impl Values ===

impl<'a> Values<'a> {
    /// One walk spares a look-up for each.
    pub fn of(fields: &'a HeaderMap) -> Self {
        let mut values = Self::default();
        fields.iter().for_each(|(name, value)| values.take(name, value));
        values
    }

    /// One more field of the head, whichever it is.
    #[inline]
    pub fn take(&mut self, name: &HeaderName, value: &'a HeaderValue) {
        if let name @ ([b'b', b'3'] | [b'x', b'-', b'b', b'3', b'-', ..] | [b't', b'r', ..]) =
            name.as_str().as_bytes()
        {
            self.take_one(name, value);
        }
    }

    fn take_one(&mut self, name: &[u8], value: &'a HeaderValue) {
        let slot = match name {
            b"traceparent" => &mut self.traceparent,
            b"b3" => &mut self.b3,
            b"x-b3-traceid" => &mut self.trace_id,
            b"x-b3-spanid" => &mut self.span_id,
            b"x-b3-sampled" => &mut self.sampled,
            b"x-b3-flags" => &mut self.flags,
            _ => return,
        };
        *slot = match slot {
            Came::Never => Came::Once(value.as_bytes()),
            Came::Once(_) | Came::Often => Came::Often,
        };
        self.any = true;
        self.any_b3 |= name[0] != b't';
    }
}

// === impl Came ===

impl<'a> Came<'a> {
    /// RFC 9110 §5.2: a field that is no list and comes more than once is malformed.
    fn only(&self) -> Option<&'a [u8]> {
        if let Self::Once(value) = *self { Some(value) } else { None }
    }
}

fn w3c(values: &Values<'_>) -> Heard {
    values.traceparent.only().and_then(traceparent).unwrap_or_default()
}

/// `<version>-<trace>-<parent>-<flags>`, and in later versions perhaps more.
fn traceparent(value: &[u8]) -> Option<Heard> {
    if let [b'0', b'0', b'-', ids @ .., b'-', high, low] = value
        && let Some((trace, [b'-', span @ ..])) = ids.split_at_checked(32)
    {
        return said([trace, span, &[*high, *low]]);
    }
    let (known, rest) = value.split_at_checked(55)?;
    let [version, trace, span, flags] = fields_of(known, [2, 32, 16, 2])?;
    let [version] = hex::<1>(version)?;
    match version {
        0xff => return None,
        0 if !rest.is_empty() => return None,
        _ if !matches!(rest, [] | [b'-', ..]) => return None,
        _ => {}
    }
    said([trace, span, flags])
}

fn said([trace, span, flags]: [&[u8]; 3]) -> Option<Heard> {
    let [flags] = hex::<1>(flags)?;
    let context = context(u128::from_be_bytes(hex(trace)?), u64::from_be_bytes(hex(span)?))?;
    Some(Heard {
        context: Some(context),
        sampled: Some(flags & 1 != 0),
        random: flags & 2 != 0,
        came: Forms { w3c: true, ..Forms::default() },
        ..Heard::default()
    })
}

/// Parts of these lengths, with a dash between each two.
fn fields_of<const N: usize>(mut value: &[u8], lengths: [usize; N]) -> Option<[&[u8]; N]> {
    let mut parts = [&b""[..]; N];
    for (index, (part, length)) in parts.iter_mut().zip(lengths).enumerate() {
        if index > 0 {
            value = value.strip_prefix(b"-")?;
        }
        (*part, value) = value.split_at_checked(length)?;
    }
    value.is_empty().then_some(parts)
}

/// `{trace}-{span}[-{sampled}[-{parent}]]`, or `{sampled}` alone.
fn b3_single(values: &Values<'_>) -> Heard {
    values.b3.only().and_then(b3).unwrap_or_default()
}

fn b3(value: &[u8]) -> Option<Heard> {
    let came = Forms { b3: true, ..Forms::default() };
    if let Some((sampled, debug)) = decision(value) {
        return Some(Heard { sampled: Some(sampled), debug, came, ..Heard::default() });
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let (trace, span) = (parts.next()?, parts.next()?);
    let (trace, short) = b3_trace(trace)?;
    let span = u64::from_be_bytes(hex(span)?);
    let decided = match parts.next() {
        None => None,
        Some(state) => Some(decision(state)?),
    };
    if parts.next().is_some_and(|parent| hex::<8>(parent).is_none()) || parts.next().is_some() {
        return None;
    }
    let (sampled, debug) = decided.unzip();
    let debug = debug.unwrap_or(false);
    Some(Heard { context: Some(context(trace, span)?), sampled, debug, short, came, random: false })
}

fn decision(state: &[u8]) -> Option<(bool, bool)> {
    match state {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

fn b3_multi(values: &Values<'_>) -> Heard {
    let debug = values.flags.only() == Some(b"1");
    let sampled = match values.sampled.only() {
        _ if debug => Some(true),
        // Old libraries say it in words.
        Some(b"1" | b"true") => Some(true),
        Some(b"0" | b"false") => Some(false),
        _ => None,
    };
    let ids = || {
        let (trace, short) = b3_trace(values.trace_id.only()?)?;
        let span = u64::from_be_bytes(hex(values.span_id.only()?)?);
        Some((context(trace, span)?, short))
    };
    let (context, short) = ids().unzip();
    let came = Forms { b3_multi: context.is_some() || sampled.is_some(), ..Forms::default() };
    Heard { context, sampled, debug, short: short.unwrap_or(false), came, random: false }
}

fn b3_trace(value: &[u8]) -> Option<(u128, bool)> {
    match value.len() {
        16 => Some((u64::from_be_bytes(hex(value)?).into(), true)),
        _ => Some((u128::from_be_bytes(hex(value)?), false)),
    }
}

/// Neither ID may be all zeros.
fn context(trace: u128, span: u64) -> Option<Context> {
    let context = Context { trace: trace.into(), span: span.into() };
    (trace != 0 && span != 0).then_some(context)
}

const ONES: u64 = u64::from_ne_bytes([1; 8]);

/// The values of eight digits, one in each byte, as digits.
fn spelled(values: u64) -> u64 {
    // What is more than nine is a letter.
    let letters = (values + 6 * ONES) >> 4 & ONES;
    values + u64::from(b'0') * ONES + u64::from(b'a' - b'9' - 1) * letters
}

/// The digits of four bytes, in lower case.
fn digits(bytes: [u8; 4]) -> [u8; 8] {
    let mut values = u64::from(u32::from_be_bytes(bytes));
    values = (values | values << 16) & 0x0000_ffff_0000_ffff;
    values = (values | values << 8) & 0x00ff_00ff_00ff_00ff;
    values = (values | values << 4) & 0x0f0f_0f0f_0f0f_0f0f;
    spelled(values).to_be_bytes()
}

/// Four bytes of lower-case hexadecimal.
fn four(text: [u8; 8]) -> Option<[u8; 4]> {
    let text = u64::from_be_bytes(text);
    // Of a digit its value, of a letter that less nine; what else there is, is not spelled so.
    let mut values = (text & (0xf * ONES)) + 9 * (text >> 6 & ONES);
    if spelled(values) != text || values & (0xf0 * ONES) != 0 {
        return None;
    }
    values = (values | values >> 4) & 0x00ff_00ff_00ff_00ff;
    values = (values | values >> 8) & 0x0000_ffff_0000_ffff;
    values |= values >> 16;
    Some((values as u32).to_be_bytes())
}

/// N bytes of lower-case hexadecimal.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    let (eights, rest) = text.as_chunks::<8>();
    let (fours, last) = bytes.as_chunks_mut::<4>();
    for (bytes, text) in fours.iter_mut().zip(eights) {
        *bytes = four(*text)?;
    }
    if !rest.is_empty() {
        let mut padded = [b'0'; 8];
        padded[8 - rest.len()..].copy_from_slice(rest);
        last.copy_from_slice(&four(padded)?[4 - last.len()..]);
    }
    Some(bytes)
}

// === impl Digits ===

impl<const N: usize> Digits<N> {
    fn of(bytes: &[u8]) -> Self {
        let mut all = [b'0'; N];
        for (eight, four) in all.as_chunks_mut::<8>().0.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *eight = digits(*four);
        }
        Self(all)
    }

    /// As bytes of ASCII.
    pub fn as_bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // They are hexadecimal.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<TraceId> for Digits<32> {
    fn from(id: TraceId) -> Self {
        Self::of(&id.to_bytes())
    }
}

impl From<SpanId> for Digits<16> {
    fn from(id: SpanId) -> Self {
        Self::of(&id.to_bytes())
    }
}

impl<const N: usize> std::fmt::Debug for Digits<N> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Told ===

impl Told {
    /// Says it in a request's headers, in place of what they said in the same form.
    pub fn write(&self, forms: Forms, fields: &mut HeaderMap) {
        let (trace, span) = (Digits::from(self.context.trace), Digits::from(self.context.span));
        if forms.w3c {
            // Of one length: every request that goes on has it. Allocated once, also where its fields are copied.
            let mut text = *b"00-................................-................-00";
            text[3..35].copy_from_slice(trace.as_bytes());
            text[36..52].copy_from_slice(span.as_bytes());
            text[54] += u8::from(self.sampled) | u8::from(self.random) << 1;
            fields.insert(TRACEPARENT, kept_out(HeaderValue::from_maybe_shared(Bytes::from_owner(text))));
        }
        if !forms.b3 && !forms.b3_multi {
            return;
        }
        let trace = &trace.as_str()[if self.short { 16 } else { 0 }..];
        let parent = self.parent.map(Digits::from);
        if forms.b3 {
            let state = match (self.debug, self.sampled) {
                (true, _) => "-d",
                (false, true) => "-1",
                (false, false) => "-0",
            };
            let value = match &parent {
                Some(parent) => value(&[trace, "-", span.as_str(), state, "-", parent.as_str()]),
                None => value(&[trace, "-", span.as_str(), state]),
            };
            fields.insert(B3, value);
        }
        if forms.b3_multi {
            fields.insert(TRACE_ID, value(&[trace]));
            fields.insert(SPAN_ID, value(&[span.as_str()]));
            match &parent {
                Some(parent) => fields.insert(PARENT_SPAN_ID, value(&[parent.as_str()])),
                None => fields.remove(PARENT_SPAN_ID),
            };
            if self.debug {
                // The flag says so already, and then nothing else may (B3, "Debug Flag").
                fields.insert(FLAGS, HeaderValue::from_static("1"));
                fields.remove(SAMPLED);
            } else {
                fields.insert(SAMPLED, HeaderValue::from_static(if self.sampled { "1" } else { "0" }));
                // Of another trace.
                fields.remove(FLAGS);
            }
        }
    }
}

fn value(parts: &[&str]) -> HeaderValue {
    kept_out(HeaderValue::try_from(parts.concat()))
}

/// Tells HTTP/2 not to keep the IDs for later fields to refer to (RFC 7541 §7.1.3): none comes twice, and a table full of them has each
/// new one compared with all.
fn kept_out<E>(value: Result<HeaderValue, E>) -> HeaderValue {
    // Hexadecimal, dashes and words of ours are a header's value.
    let mut value = value.unwrap_or(HeaderValue::from_static(""));
    value.set_sensitive(true);
    value
}

/// The same of a `traceparent` that passes as it came. Found by how it looks, which spares a look-up by its name: of whatever else looks so,
/// hardly any comes twice either.
pub(super) fn spare_tables(fields: &mut HeaderMap) {
    for value in fields.values_mut() {
        if value.len() == 55 && value.as_bytes()[2] == b'-' && value.as_bytes()[35] == b'-' {
            value.set_sensitive(true);
        }
    }
}

/// Lets the tables of a new connection of HTTP/2 have the first `traceparent` that goes over it: those that follow need not spell the name.
pub fn name_once(fields: &mut HeaderMap) -> bool {
    let value = fields.get_mut(TRACEPARENT);
    value.map(|value| value.set_sensitive(false)).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn fields(lines: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            fields.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        fields
    }

    fn read(lines: &[(&str, &str)]) -> Heard {
        Propagation::AsItComes.read(&Values::of(&fields(lines)))
    }

    fn known() -> Option<Context> {
        context(0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7)
    }

    #[test]
    fn a_traceparent_is_read_in_every_version() {
        let ids = format!("{TRACE}-{SPAN}");
        for (value, sampled) in [
            (format!("00-{ids}-01"), true),
            (format!("00-{ids}-00"), false),
            (format!("00-{ids}-03"), true),
            (format!("00-{ids}-fe"), false),
            (format!("01-{ids}-01"), true),
            (format!("cc-{ids}-01-what-comes-later"), true),
            (format!("cc-{ids}-01-"), true),
        ] {
            let heard = read(&[("traceparent", &value)]);
            assert_eq!((heard.context, heard.sampled), (known(), Some(sampled)), "{value}");
            assert!(heard.came.w3c && !heard.came.b3 && !heard.came.b3_multi);
        }
    }

    #[test]
    fn a_malformed_traceparent_is_as_if_it_were_not_there() {
        let upper = TRACE.to_uppercase();
        let zeros = "0".repeat(32);
        for value in [
            String::new(),
            "00".to_owned(),
            "garbage".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("cc-{TRACE}-{SPAN}-01more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0g-{TRACE}-{SPAN}-01"),
            format!("00-{upper}-{SPAN}-01"),
            format!("00-{zeros}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{TRACE}-{SPAN}-0x"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[..31]),
            format!("00-{TRACE}ß-{SPAN}-01"),
        ] {
            assert_eq!(read(&[("traceparent", &value)]), Heard::default(), "{value}");
        }
        let valid = format!("00-{TRACE}-{SPAN}-01");
        let twice = read(&[("traceparent", &valid), ("traceparent", &valid)]);
        assert_eq!(twice, Heard::default());
    }

    #[test]
    fn b3_is_read_as_one_field() {
        let parent = "05e3ac9a4f6e3b90";
        for (value, sampled, debug) in [
            (format!("{TRACE}-{SPAN}"), None, false),
            (format!("{TRACE}-{SPAN}-0"), Some(false), false),
            (format!("{TRACE}-{SPAN}-1"), Some(true), false),
            (format!("{TRACE}-{SPAN}-d"), Some(true), true),
            (format!("{TRACE}-{SPAN}-1-{parent}"), Some(true), false),
        ] {
            let heard = read(&[("b3", &value)]);
            assert_eq!((heard.context, heard.sampled, heard.debug), (known(), sampled, debug), "{value}");
            assert!(heard.came.b3 && !heard.came.w3c && !heard.short);
        }
        for (value, sampled, debug) in [("0", false, false), ("1", true, false), ("d", true, true)] {
            let heard = read(&[("b3", value)]);
            assert_eq!((heard.context, heard.sampled, heard.debug), (None, Some(sampled), debug), "{value}");
        }
        let short = read(&[("b3", &format!("a3ce929d0e0e4736-{SPAN}-1"))]);
        assert_eq!(short.context, context(0xa3ce_929d_0e0e_4736, 0x00f0_67aa_0ba9_02b7));
        assert!(short.short);
        for value in [
            "",
            "2",
            "-",
            TRACE,
            &format!("{TRACE}-"),
            &format!("{TRACE}-{SPAN}-"),
            &format!("{TRACE}-{SPAN}-2"),
            &format!("{TRACE}-{SPAN}-1-"),
            &format!("{TRACE}-{SPAN}-1-{parent}-more"),
            &format!("{TRACE}-{SPAN}-1-{TRACE}"),
            &format!("{}-{SPAN}-1", &TRACE[..24]),
            &format!("{}-{SPAN}-1", "0".repeat(16)),
            &format!("{TRACE}-0000000000000000-1"),
        ] {
            assert_eq!(read(&[("b3", value)]), Heard::default(), "{value}");
        }
    }

    #[test]
    fn b3_is_read_as_many_fields() {
        let ids = [("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN)];
        let with = |more: &[(&'static str, &'static str)]| read(&[&ids[..], more].concat());
        assert_eq!((with(&[]).context, with(&[]).sampled), (known(), None));
        for (more, sampled, debug) in [
            (("X-B3-Sampled", "1"), Some(true), false),
            (("X-B3-Sampled", "true"), Some(true), false),
            (("X-B3-Sampled", "0"), Some(false), false),
            (("X-B3-Sampled", "maybe"), None, false),
            (("X-B3-Flags", "1"), Some(true), true),
            (("X-B3-Flags", "0"), None, false),
        ] {
            let heard = with(&[more]);
            assert_eq!((heard.context, heard.sampled, heard.debug), (known(), sampled, debug), "{more:?}");
        }
        let only = read(&[("X-B3-Sampled", "0")]);
        assert_eq!((only.context, only.sampled, only.came.b3_multi), (None, Some(false), true));
        let half = read(&[("X-B3-TraceId", TRACE)]);
        assert_eq!(half, Heard::default());
    }

    #[test]
    fn of_several_forms_w3cs_holds_unless_it_is_malformed() {
        let other = "1111111111111111";
        let b3 = format!("{other}-{other}-0");
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let both = read(&[("traceparent", &traceparent), ("b3", &b3)]);
        assert_eq!((both.context, both.sampled), (known(), Some(true)));
        assert!(both.came.w3c && both.came.b3);
        let one = read(&[("traceparent", "malformed"), ("b3", &b3)]);
        assert_eq!(one.context, context(0x1111_1111_1111_1111, 0x1111_1111_1111_1111));
        assert!(!one.came.w3c && one.came.b3);
        let forms = Forms { b3: true, ..Forms::default() };
        let narrowed = Propagation::Only(forms)
            .read(&Values::of(&fields(&[("traceparent", &traceparent), ("b3", &b3)])));
        assert_eq!(
            (narrowed.context, narrowed.sampled, narrowed.came.w3c),
            (one.context, Some(false), false)
        );
    }

    #[test]
    fn what_only_b3_can_say_is_heard_beside_a_traceparent_of_the_same_trace() {
        let short = &TRACE[16..];
        let of = |trace: &str| format!("00-{trace:0>32}-{SPAN}-01");
        for (lines, debug, is_short) in [
            (vec![("traceparent", of(TRACE)), ("b3", format!("{TRACE}-{SPAN}-d"))], true, false),
            (vec![("traceparent", of(short)), ("b3", format!("{short}-{SPAN}-d"))], true, true),
            (vec![("traceparent", of(short)), ("b3", format!("{short}-{SPAN}-1"))], false, true),
            (
                vec![
                    ("traceparent", of(short)),
                    ("x-b3-traceid", short.to_owned()),
                    ("x-b3-spanid", SPAN.to_owned()),
                    ("x-b3-flags", "1".to_owned()),
                ],
                true,
                true,
            ),
            // Of another trace.
            (vec![("traceparent", of(TRACE)), ("b3", format!("{short}-{SPAN}-d"))], false, false),
            (vec![("traceparent", of(TRACE)), ("b3", "d".to_owned())], false, false),
        ] {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let heard = read(&lines);
            assert_eq!((heard.debug, heard.short), (debug, is_short), "{lines:?}");
            assert!(heard.came.w3c && heard.sampled == Some(true), "{lines:?}");
        }
    }

    #[test]
    fn of_b3s_many_fields_one_says_whether_it_is_recorded() {
        let context = known().unwrap();
        let multi = Forms { b3_multi: true, ..Forms::default() };
        for (debug, told) in [(true, "x-b3-flags"), (false, "x-b3-sampled")] {
            let mut fields = fields(&[("x-b3-flags", "1"), ("x-b3-sampled", "1")]);
            Told { context, parent: None, sampled: true, debug, short: false, random: false }
                .write(multi, &mut fields);
            let said: Vec<_> =
                [FLAGS, SAMPLED].into_iter().filter(|name| fields.contains_key(name)).collect();
            assert_eq!(said, [told]);
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_in_every_form() {
        let came =
            fields(&[("b3", "0"), ("tracestate", "a=1"), ("baggage", "b=2"), ("x-b3-parentspanid", SPAN)]);
        for (sampled, debug, short) in
            [(true, false, false), (false, false, false), (true, true, false), (true, false, true)]
        {
            let trace = if short { 0xa3ce_929d_0e0e_4736 } else { 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736 };
            let context = context(trace, 0x00f0_67aa_0ba9_02b7).unwrap();
            for parent in [None, Some(SpanId::from(7))] {
                let told = Told { context, parent, sampled, debug, short, random: false };
                for forms in [
                    Forms { w3c: true, ..Forms::default() },
                    Forms { b3: true, ..Forms::default() },
                    Forms { b3_multi: true, ..Forms::default() },
                ] {
                    let mut fields = came.clone();
                    fields.remove(B3);
                    told.write(forms, &mut fields);
                    let heard = Propagation::AsItComes.read(&Values::of(&fields));
                    let debug = debug && !forms.w3c;
                    assert_eq!(heard.context, Some(context), "{fields:?}");
                    assert_eq!((heard.sampled, heard.debug), (Some(sampled), debug), "{fields:?}");
                    assert_eq!(heard.short, short && !forms.w3c, "{fields:?}");
                    assert_eq!(
                        (&fields["tracestate"], &fields["baggage"]),
                        (&came["tracestate"], &came["baggage"])
                    );
                    if forms.b3_multi {
                        let said = fields.get(PARENT_SPAN_ID).map(|value| value.to_str().unwrap().to_owned());
                        assert_eq!(said, parent.map(|parent| parent.to_string()));
                    }
                }
            }
        }
    }

    #[test]
    fn digits_are_those_of_the_sdk() {
        for Context { trace, span } in [known().unwrap(), context(1, 0xab << 56).unwrap()] {
            assert_eq!(Digits::from(trace).as_str(), trace.to_string());
            assert_eq!(Digits::from(span).as_str(), span.to_string());
        }
    }

    #[test]
    fn each_field_is_found_among_others() {
        for (name, value) in [("traceparent", "a"), ("b3", "0"), ("x-b3-flags", "1"), ("x-b3-sampled", "0")] {
            let others = [("accept", "*/*"), ("x-b4-traceid", TRACE), ("tracestate", "a=1"), (name, value)];
            assert_eq!(read(&others), read(&others[3..]), "{name}");
            assert!(Values::of(&fields(&others)).any && !Values::of(&fields(&others[..3])).any);
        }
        assert_eq!(read(&[("accept", "*/*"), ("x-b3-sampled", "0")]).sampled, Some(false));
        let multi = [("x-b3-traceid", TRACE), ("accept", "*/*"), ("x-b3-spanid", SPAN)];
        assert_eq!(read(&multi).context, known());
        assert_eq!(read(&[multi[0], multi[2], multi[2]]).context, None, "it came twice");
    }

    #[test]
    fn an_id_is_never_kept_in_a_table_of_fields() {
        let context = known().unwrap();
        let told = Told { context, parent: None, sampled: true, debug: false, short: false, random: false };
        let mut written = fields(&[]);
        told.write(Forms { w3c: true, b3: true, b3_multi: true }, &mut written);
        for name in [TRACEPARENT, B3, TRACE_ID, SPAN_ID] {
            assert!(written[name].is_sensitive());
        }
        let whole = format!("00-{TRACE}-{SPAN}-01");
        let mut came = fields(&[("traceparent", &whole), ("accept", "*/*")]);
        spare_tables(&mut came);
        assert!(came[TRACEPARENT].is_sensitive() && !came["accept"].is_sensitive());
        assert!(name_once(&mut came) && !came[TRACEPARENT].is_sensitive());
        came.remove(TRACEPARENT);
        assert!(!name_once(&mut came));
    }

    #[test]
    fn hexadecimal_is_what_is_spelled_so_and_nothing_else() {
        for at in 0..8 {
            for byte in 0..=u8::MAX {
                let mut text = *b"0123abcf";
                text[at] = byte;
                let known = matches!(byte, b'0'..=b'9' | b'a'..=b'f');
                let number =
                    known.then(|| u32::from_str_radix(std::str::from_utf8(&text).unwrap(), 16).unwrap());
                assert_eq!(hex::<4>(&text).map(u32::from_be_bytes), number, "{byte} at {at}");
                assert_eq!(four(text).map(digits), known.then_some(text));
            }
        }
        assert_eq!([hex::<1>(b"ff"), hex::<1>(b"0a")], [Some([255]), Some([10])]);
        assert_eq!([hex::<1>(b"0"), hex::<1>(b"0g"), hex::<1>(b"000")], [None; 3]);
        assert_eq!(hex::<6>(b"0123456789ab"), Some([1, 0x23, 0x45, 0x67, 0x89, 0xab]));
    }

    #[test]
    fn b3_goes_on_in_the_form_in_which_it_came_and_w3c_always() {
        let came = Forms { b3_multi: true, ..Forms::default() };
        assert_eq!(Propagation::AsItComes.forms(came), Forms { w3c: true, ..came });
        let only = Forms { b3: true, ..Forms::default() };
        assert_eq!(Propagation::Only(only).forms(came), only);
    }
}
