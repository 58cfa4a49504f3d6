//! Bytes → heads. Pure.
//!
//! Decides what a well-formed HTTP/1 head is, and refuses everything else: a head that two parties could read in two
//! ways is how requests are smuggled (RFC 9112 §11.2). It must never repair, guess or pick one of two readings. Called
//! by the shells, [`super::server`] and [`super::client`].

use std::mem::MaybeUninit;

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, header};
use httparse::{Header, ParserConfig, Status};

use super::original::{Line, OriginalHead};
use super::reuse;

/// Bounds on what a peer may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a head, its start line and the empty line included.
    pub head: usize,
    /// Fields of a head.
    pub fields: usize,
    /// Bytes of all of a body's trailers.
    pub trailers: usize,
    /// Bytes of all of a body's chunk extensions, which are dropped.
    pub extensions: usize,
}

/// Why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeadError {
    #[error("malformed HTTP/1 head: {0}")]
    Malformed(&'static str),
    #[error("the head is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the head has more than {0} fields")]
    TooManyFields(usize),
}

/// How the end of a message's body is told (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Exactly so many bytes; 0 where there is no body.
    Exact(u64),
    Chunked,
    /// Until the connection ends; only responses.
    UntilEof,
}

/// A request's head.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub uri: Uri,
    pub version: Version,
    pub headers: HeaderMap,
    pub original: OriginalHead,
    pub length: Length,
    pub keep_alive: bool,
    /// `Expect: 100-continue` (RFC 9110 §10.1.1).
    pub expects_continue: bool,
}

/// A response's head.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    pub version: Version,
    pub headers: HeaderMap,
    pub original: OriginalHead,
    pub length: Length,
    pub keep_alive: bool,
}

/// Which message a head belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Response,
}

/// Looks for the end of a head in a buffer that grows, without looking at anything twice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scan {
    /// Bytes in which there is no end.
    seen: usize,
    /// Bytes that were parsed to see early whether they can become a head.
    tried: usize,
    skipped_line: bool,
}

/// Fields that are parsed without allocating.
const USUAL_FIELDS: usize = 256;

/// What `http` can hold of a request's target.
const MAX_TARGET: usize = u16::MAX as usize - 1;

impl Default for Limits {
    fn default() -> Self {
        Self { head: 128 * 1024, fields: 256, trailers: 16 * 1024, extensions: 16 * 1024 }
    }
}

// === impl HeadError ===

impl HeadError {
    /// The status of the answer, if there is one to give.
    pub fn status(self) -> StatusCode {
        match self {
            Self::Malformed(_) => StatusCode::BAD_REQUEST,
            Self::TooLarge(_) | Self::TooManyFields(_) => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        }
    }
}

// === impl Scan ===

impl Scan {
    /// Takes a request's head off the front of `buf`; `None`: more bytes are needed.
    ///
    /// # Errors
    /// As soon as `buf` cannot become a head.
    pub fn request(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Option<RequestHead>, HeadError> {
        // One empty line may precede a request (RFC 9112 §2.2).
        if !self.skipped_line && buf.starts_with(b"\r\n") {
            buf.advance(2);
            *self = Self { skipped_line: true, ..Self::default() };
        }
        match self.end(buf, limits, Kind::Request)? {
            Some(end) => parse_request(buf.split_to(end).freeze(), limits).map(Some),
            None => Ok(None),
        }
    }

    /// Takes a response's head off the front of `buf`; `method` is that of the request it answers.
    ///
    /// # Errors
    /// As soon as `buf` cannot become a head.
    pub fn response(
        &mut self,
        buf: &mut BytesMut,
        method: &Method,
        limits: &Limits,
    ) -> Result<Option<ResponseHead>, HeadError> {
        match self.end(buf, limits, Kind::Response)? {
            Some(end) => parse_response(buf.split_to(end).freeze(), method, limits).map(Some),
            None => Ok(None),
        }
    }

    fn end(&mut self, buf: &[u8], limits: &Limits, kind: Kind) -> Result<Option<usize>, HeadError> {
        for at in memchr::memchr_iter(b'\n', &buf[self.seen..]).map(|at| at + self.seen) {
            if at == 0 || buf[at - 1] != b'\r' {
                return Err(HeadError::Malformed("a line ends with LF alone"));
            }
            if at == 1 {
                return Err(HeadError::Malformed("empty start line"));
            }
            if at >= 3 && buf[at - 2] == b'\n' {
                let end = at + 1;
                *self = Self::default();
                return if end > limits.head { Err(HeadError::TooLarge(limits.head)) } else { Ok(Some(end)) };
            }
        }
        self.seen = buf.len();
        if buf.len() >= limits.head {
            return Err(HeadError::TooLarge(limits.head));
        }
        // Garbage is refused early, at a cost that stays linear.
        if buf.len() >= 2 * self.tried.max(4) {
            self.tried = buf.len();
            with_fields(limits, |fields| match kind {
                Kind::Request => {
                    let mut request = httparse::Request::new(&mut []);
                    parser().parse_request_with_uninit_headers(&mut request, buf, fields).map(drop)
                }
                Kind::Response => {
                    let mut response = httparse::Response::new(&mut []);
                    parser().parse_response_with_uninit_headers(&mut response, buf, fields).map(drop)
                }
            })
            .map_err(|error| refusal(error, buf, limits))?;
        }
        Ok(None)
    }
}

fn parser() -> ParserConfig {
    // Its defaults are the strict choices.
    ParserConfig::default()
}

fn with_fields<'b, T>(limits: &Limits, parse: impl FnOnce(&mut [MaybeUninit<Header<'b>>]) -> T) -> T {
    if limits.fields <= USUAL_FIELDS {
        let mut fields = [const { MaybeUninit::uninit() }; USUAL_FIELDS];
        parse(&mut fields[..limits.fields])
    } else {
        let mut fields: Vec<_> = (0..limits.fields).map(|_| MaybeUninit::uninit()).collect();
        parse(&mut fields)
    }
}

/// Says what is wrong in terms of RFC 9112 rather than of a parser.
fn refusal(error: httparse::Error, buf: &[u8], limits: &Limits) -> HeadError {
    let what = match error {
        httparse::Error::TooManyHeaders => return HeadError::TooManyFields(limits.fields),
        httparse::Error::HeaderName => field_name_refusal(buf),
        httparse::Error::HeaderValue => "a field's value has a control character",
        httparse::Error::NewLine => "a line does not end with CRLF",
        httparse::Error::Status => "status code",
        httparse::Error::Token => "start line",
        httparse::Error::Version => "not HTTP/1.0 or HTTP/1.1",
    };
    HeadError::Malformed(what)
}

fn field_name_refusal(buf: &[u8]) -> &'static str {
    let mut lines = buf.split(|&byte| byte == b'\n').skip(1).enumerate();
    let bad = |line: &[u8]| {
        let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
        name.is_empty() || HeaderName::from_bytes(name).is_err()
    };
    match lines.find(|(_, line)| bad(line)) {
        Some((0, line)) if line.starts_with(b" ") || line.starts_with(b"\t") => {
            "whitespace before the first field"
        }
        Some((_, line)) if line.starts_with(b" ") || line.starts_with(b"\t") => "obsolete line folding",
        Some((_, line)) if line.starts_with(b":") => "a field without a name",
        Some((_, line)) if line.windows(2).any(|pair| pair == b" :" || pair == b"\t:") => {
            "whitespace before a colon"
        }
        _ => "a field's name",
    }
}

// === Requests ===

fn parse_request(head: Bytes, limits: &Limits) -> Result<RequestHead, HeadError> {
    with_fields(limits, |fields| {
        let mut request = httparse::Request::new(&mut []);
        match parser().parse_request_with_uninit_headers(&mut request, &head, fields) {
            Ok(Status::Complete(end)) if end == head.len() => {}
            Ok(_) => return Err(HeadError::Malformed("it does not end where its lines end")),
            Err(error) => return Err(refusal(error, &head, limits)),
        }
        let version = version(request.version)?;
        let method = Method::from_bytes(request.method.unwrap_or_default().as_bytes())
            .map_err(|_| HeadError::Malformed("method"))?;
        let uri = target(&head, request.path.unwrap_or_default(), &method)?;
        let fields = Fields::read(&head, request.headers, version)?;
        fields.check_host(version)?;
        let length = match fields.framing()? {
            Some(Length::Exact(0)) | None => Length::Exact(0),
            Some(_) if method == Method::CONNECT => {
                return Err(HeadError::Malformed("CONNECT with a body"));
            }
            Some(length) => length,
        };
        Ok(RequestHead {
            method,
            uri,
            version,
            length,
            keep_alive: fields.keep_alive(version),
            expects_continue: fields.expects_continue && version == Version::HTTP_11,
            headers: fields.map,
            original: OriginalHead::new(head.clone(), fields.lines, fields.chunked),
        })
    })
}

fn version(minor: Option<u8>) -> Result<Version, HeadError> {
    match minor {
        Some(0) => Ok(Version::HTTP_10),
        Some(1) => Ok(Version::HTTP_11),
        _ => Err(HeadError::Malformed("not HTTP/1.0 or HTTP/1.1")),
    }
}

/// The four forms of a request's target (RFC 9112 §3.2).
fn target(head: &Bytes, path: &str, method: &Method) -> Result<Uri, HeadError> {
    const BAD: HeadError = HeadError::Malformed("request target");
    if path.len() > MAX_TARGET {
        return Err(HeadError::TooLarge(MAX_TARGET));
    }
    if memchr::memchr(b'#', path.as_bytes()).is_some() {
        return Err(HeadError::Malformed("the request target has a fragment"));
    }
    let uri = Uri::from_maybe_shared(head.slice_ref(path.as_bytes())).map_err(|_| BAD)?;
    let fits = if *method == Method::CONNECT {
        uri.scheme().is_none() && uri.authority().is_some() && uri.port_u16().is_some()
    } else {
        match path.as_bytes() {
            [b'/', ..] => true,
            b"*" => *method == Method::OPTIONS,
            _ => uri.scheme().is_some() && uri.authority().is_some(),
        }
    };
    if fits { Ok(uri) } else { Err(BAD) }
}

// === Responses ===

fn parse_response(head: Bytes, method: &Method, limits: &Limits) -> Result<ResponseHead, HeadError> {
    with_fields(limits, |fields| {
        let mut response = httparse::Response::new(&mut []);
        match parser().parse_response_with_uninit_headers(&mut response, &head, fields) {
            Ok(Status::Complete(end)) if end == head.len() => {}
            Ok(_) => return Err(HeadError::Malformed("it does not end where its lines end")),
            Err(error) => return Err(refusal(error, &head, limits)),
        }
        let version = version(response.version)?;
        let status = StatusCode::from_u16(response.code.unwrap_or_default())
            .map_err(|_| HeadError::Malformed("status code"))?;
        let fields = Fields::read(&head, response.headers, version)?;
        let framing = fields.framing()?;
        let length =
            if has_no_body(method, status) { Length::Exact(0) } else { framing.unwrap_or(Length::UntilEof) };
        Ok(ResponseHead {
            status,
            version,
            length,
            keep_alive: fields.keep_alive(version) && length != Length::UntilEof,
            headers: fields.map,
            original: OriginalHead::new(head.clone(), fields.lines, fields.chunked),
        })
    })
}

/// Whether a response has no body whatever its fields say (RFC 9112 §6.3).
pub(super) fn has_no_body(method: &Method, status: StatusCode) -> bool {
    status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || *method == Method::HEAD
        || (*method == Method::CONNECT && status.is_success())
}

// === Fields ===

/// A head's fields and what they say about its connection and body.
#[derive(Debug, Default)]
struct Fields {
    map: HeaderMap,
    lines: smallvec::SmallVec<[Line; 16]>,
    content_length: Option<u64>,
    chunked: bool,
    hosts: usize,
    bad_host: bool,
    close: bool,
    keep: bool,
    expects_continue: bool,
}

/// A field's name. Those that `http` does not know are allocated each, but for some that come with most requests.
fn name(spelled: &[u8]) -> Option<HeaderName> {
    Some(match spelled {
        b"traceparent" => const { HeaderName::from_static("traceparent") },
        b"tracestate" => const { HeaderName::from_static("tracestate") },
        b"x-request-id" => const { HeaderName::from_static("x-request-id") },
        b"x-forwarded-for" => const { HeaderName::from_static("x-forwarded-for") },
        b"x-forwarded-proto" => const { HeaderName::from_static("x-forwarded-proto") },
        _ => HeaderName::from_bytes(spelled).ok()?,
    })
}

impl Fields {
    fn read(head: &Bytes, fields: &[Header<'_>], version: Version) -> Result<Self, HeadError> {
        let mut read = Self { map: reuse::headers(fields.len()), ..Self::default() };
        let start = head.as_ptr().addr();
        for field in fields {
            let name = name(field.name.as_bytes()).ok_or(HeadError::Malformed("a field's name"))?;
            let value = HeaderValue::from_maybe_shared(head.slice_ref(field.value))
                .map_err(|_| HeadError::Malformed("a field's value has a control character"))?;
            read.lines.push(Line {
                start: u32::try_from(field.name.as_ptr().addr() - start).unwrap_or(u32::MAX),
                name_len: u16::try_from(field.name.len()).unwrap_or(u16::MAX),
                value: u32::try_from(field.value.as_ptr().addr().wrapping_sub(start)).unwrap_or(u32::MAX),
            });
            if read.note(&name, field.value, version)? {
                read.map.append(name, value);
            }
        }
        Ok(read)
    }

    /// Takes in what a field says about the connection or the body; false: it is a repetition to leave out.
    fn note(&mut self, name: &HeaderName, value: &[u8], version: Version) -> Result<bool, HeadError> {
        match *name {
            header::CONTENT_LENGTH => {
                let length =
                    decimal(value).ok_or(HeadError::Malformed("Content-Length is not a plain number"))?;
                match self.content_length.replace(length) {
                    Some(other) if other != length => {
                        return Err(HeadError::Malformed("differing Content-Lengths"));
                    }
                    Some(_) => return Ok(false),
                    None => {}
                }
            }
            header::TRANSFER_ENCODING => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(HeadError::Malformed("Transfer-Encoding is not exactly `chunked`"));
                }
                if version == Version::HTTP_10 {
                    return Err(HeadError::Malformed("Transfer-Encoding in HTTP/1.0"));
                }
                self.chunked = true;
            }
            header::HOST => {
                self.hosts += 1;
                self.bad_host |= !is_host(value);
            }
            header::CONNECTION => {
                for option in value.split(|&byte| byte == b',') {
                    let option = option.trim_ascii();
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            header::EXPECT => self.expects_continue |= value.eq_ignore_ascii_case(b"100-continue"),
            _ => {}
        }
        Ok(true)
    }

    /// RFC 9112 §3.2.
    fn check_host(&self, version: Version) -> Result<(), HeadError> {
        match self.hosts {
            0 if version == Version::HTTP_11 => Err(HeadError::Malformed("no Host")),
            2.. => Err(HeadError::Malformed("more than one Host")),
            _ if self.bad_host => Err(HeadError::Malformed("Host is not a host and port")),
            _ => Ok(()),
        }
    }

    fn framing(&self) -> Result<Option<Length>, HeadError> {
        match (self.content_length, self.chunked) {
            (Some(_), true) => Err(HeadError::Malformed("both Content-Length and Transfer-Encoding")),
            (Some(length), false) => Ok(Some(Length::Exact(length))),
            (None, true) => Ok(Some(Length::Chunked)),
            (None, false) => Ok(None),
        }
    }

    /// RFC 9112 §9.3.
    fn keep_alive(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep)
    }
}

/// Digits only; no sign, list or whitespace, and nothing that overflows.
pub(super) fn decimal(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    value.iter().try_fold(0_u64, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        sum.checked_mul(10)?.checked_add(digit)
    })
}

/// `uri-host [ ":" port ]` (RFC 9110 §7.2); an empty one is allowed.
fn is_host(value: &[u8]) -> bool {
    let (host, port) = match value {
        [b'[', ..] => match memchr::memchr(b']', value) {
            Some(end) => {
                let address = &value[1..end];
                let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b":.-_~%".contains(byte);
                if address.is_empty() || !address.iter().all(valid) {
                    return false;
                }
                (&b""[..], &value[end + 1..])
            }
            None => return false,
        },
        _ => value.split_at(memchr::memchr(b':', value).unwrap_or(value.len())),
    };
    let port_fits = match port {
        [] => true,
        [b':', digits @ ..] => digits.len() <= 5 && digits.iter().all(u8::is_ascii_digit),
        _ => false,
    };
    port_fits && host.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(byte))
}

/// Reads trailers: the lines after the last chunk, the empty line included.
pub(super) fn parse_trailers(block: &Bytes, limits: &Limits) -> Result<HeaderMap, HeadError> {
    let mut fields = vec![httparse::EMPTY_HEADER; limits.fields];
    let fields = match httparse::parse_headers(block, &mut fields) {
        Ok(Status::Complete((end, fields))) if end == block.len() => fields,
        Ok(_) => return Err(HeadError::Malformed("the trailers do not end where their lines end")),
        Err(error) => return Err(refusal(error, block, limits)),
    };
    let mut trailers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| HeadError::Malformed("a trailer's name"))?;
        // RFC 9110 §6.5.1: what frames or routes a message comes too late here.
        if matches!(
            name,
            header::CONTENT_LENGTH | header::TRANSFER_ENCODING | header::HOST | header::CONNECTION
        ) {
            return Err(HeadError::Malformed("a trailer that frames or routes the message"));
        }
        let value = HeaderValue::from_maybe_shared(block.slice_ref(field.value))
            .map_err(|_| HeadError::Malformed("a trailer's value has a control character"))?;
        trailers.append(name, value);
    }
    Ok(trailers)
}
