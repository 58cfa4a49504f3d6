//! Bodies ↔ bytes (RFC 9112 §6, §7). Pure.
//!
//! Decides where a body ends, and refuses chunks that could be read in two ways. It must never hand out a byte beyond the
//! end, nor let an encoded body be longer or shorter than its head says. Called by [`super::server`] and
//! [`super::client`].

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;

use super::buf::Output;
use super::head::{self, HeadError, Length, Limits};
use super::original::write_line;

/// Why a body breaks off.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("malformed chunked body: {0}")]
    Malformed(&'static str),
    #[error("malformed trailers: {0}")]
    Trailers(HeadError),
    #[error("the connection ended before the body did")]
    Truncated,
    #[error("the body is {0} than its Content-Length says")]
    WrongLength(&'static str),
    #[error("the exchange that the body belongs to is over")]
    Abandoned,
    #[error("reading the body: {0}")]
    Io(#[from] std::io::Error),
    /// The other half of the exchange failed: the request's body, seen from its response.
    #[error("{0}")]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// What a decoder found next.
#[derive(Debug)]
pub enum Step {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
    /// More bytes are needed.
    More,
}

/// Takes a body out of the bytes that carry it.
#[derive(Debug)]
pub enum Decoder {
    Exact(u64),
    Chunked(Chunks),
    UntilEof,
}

/// A chunked body's state.
#[derive(Debug)]
pub struct Chunks {
    at: At,
    /// Bytes that were looked at and hold no line's end.
    seen: usize,
    /// Bytes of extensions so far.
    extensions: usize,
}

#[derive(Debug)]
enum At {
    /// Before a line that tells a chunk's size.
    Size,
    /// So many bytes before a chunk's end.
    Data(u64),
    /// Before the CRLF after a chunk.
    DataEnd,
    Trailers,
    End,
}

/// Puts a body into bytes as its head has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoder {
    /// So much is left.
    Exact(u64),
    Chunked,
    UntilEof,
    /// The head speaks of a body that is not sent (HEAD, 304).
    Discard,
}

// === impl Decoder ===

impl Decoder {
    pub fn new(length: Length) -> Self {
        match length {
            Length::Exact(length) => Self::Exact(length),
            Length::Chunked => Self::Chunked(Chunks { at: At::Size, seen: 0, extensions: 0 }),
            Length::UntilEof => Self::UntilEof,
        }
    }

    /// Whether the body, its trailers included, is over.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Exact(0) | Self::Chunked(Chunks { at: At::End, .. }))
    }

    /// Takes the next part off the front of `buf`.
    ///
    /// # Errors
    /// When `buf` cannot be the body that the head has told of. The connection is lost.
    pub fn decode(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Step, BodyError> {
        match self {
            Self::Exact(0) => Ok(Step::End),
            _ if buf.is_empty() => Ok(if self.is_done() { Step::End } else { Step::More }),
            Self::Exact(left) => Ok(Step::Data(take(buf, left))),
            Self::UntilEof => Ok(Step::Data(buf.split().freeze())),
            Self::Chunked(chunks) => chunks.decode(buf, limits),
        }
    }

    /// Moves over the end of the body if it is all that is left of it, so that it is known to be over.
    pub fn settle(&mut self, buf: &mut BytesMut) {
        const LAST: &[u8] = b"\r\n0\r\n\r\n";
        if let Self::Chunked(chunks) = self
            && matches!(chunks.at, At::DataEnd)
            && buf.starts_with(LAST)
        {
            buf.advance(LAST.len());
            chunks.at = At::End;
        }
    }

    /// The bytes have ended; true: and so has the body.
    pub fn ends_at_eof(&self) -> bool {
        self.is_done() || matches!(self, Self::UntilEof)
    }
}

fn take(buf: &mut BytesMut, left: &mut u64) -> Bytes {
    let n = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
    *left -= n as u64;
    buf.split_to(n).freeze()
}

// === impl Chunks ===

impl Chunks {
    fn decode(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Step, BodyError> {
        loop {
            match &mut self.at {
                At::Size => match self.size(buf, limits)? {
                    None => return Ok(Step::More),
                    Some(0) => self.at = At::Trailers,
                    Some(size) => self.at = At::Data(size),
                },
                At::Data(_) if buf.is_empty() => return Ok(Step::More),
                At::Data(left) => {
                    let data = take(buf, left);
                    if *left == 0 {
                        self.at = At::DataEnd;
                    }
                    return Ok(Step::Data(data));
                }
                At::DataEnd => match buf.as_ref() {
                    [b'\r', b'\n', ..] => {
                        buf.advance(2);
                        self.at = At::Size;
                    }
                    [] | [b'\r'] => return Ok(Step::More),
                    _ => return Err(BodyError::Malformed("a chunk is longer than its size")),
                },
                At::Trailers => return self.trailers(buf, limits),
                At::End => return Ok(Step::End),
            }
        }
    }

    /// The line with a chunk's size; `None`: it is not all there yet.
    fn size(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Option<u64>, BodyError> {
        const SIZE: BodyError = BodyError::Malformed("a chunk's size is not a plain hexadecimal number");
        if buf.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
            return Err(SIZE);
        }
        let unseen = buf.get(self.seen..).unwrap_or_default();
        let Some(end) = memchr::memchr(b'\n', unseen).map(|at| at + self.seen) else {
            self.seen = buf.len();
            // Sixteen digits before, a CR after.
            let most = limits.extensions - self.extensions + 17;
            return if buf.len() > most { Err(TOO_MANY_EXTENSIONS) } else { Ok(None) };
        };
        let line = buf.get(..end).and_then(|line| line.strip_suffix(b"\r"));
        let line = line.ok_or(BodyError::Malformed("a chunk's line ends with LF alone"))?;
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (digits, extension) = line.split_at(digits);
        if digits.len() > 16 || !matches!(extension, [] | [b';', ..]) {
            return Err(SIZE);
        }
        if extension.iter().any(|&byte| byte < b' ' && byte != b'\t' || byte == 0x7f) {
            return Err(BodyError::Malformed("a control character in a chunk's extension"));
        }
        self.extensions += extension.len();
        if self.extensions > limits.extensions {
            return Err(TOO_MANY_EXTENSIONS);
        }
        let size = digits.iter().fold(0_u64, |size, &digit| {
            let value = char::from(digit).to_digit(16).unwrap_or_default();
            (size << 4) | u64::from(value)
        });
        buf.advance(end + 1);
        self.seen = 0;
        Ok(Some(size))
    }

    fn trailers(&mut self, buf: &mut BytesMut, limits: &Limits) -> Result<Step, BodyError> {
        if buf.starts_with(b"\r\n") {
            buf.advance(2);
            self.at = At::End;
            return Ok(Step::End);
        }
        let unseen = buf.get(self.seen..).unwrap_or_default();
        for at in memchr::memchr_iter(b'\n', unseen).map(|at| at + self.seen) {
            if at == 0 || buf[at - 1] != b'\r' {
                return Err(BodyError::Malformed("a trailer's line ends with LF alone"));
            }
            if at >= 3 && buf[at - 2] == b'\n' {
                if at >= limits.trailers {
                    break;
                }
                let block = buf.split_to(at + 1).freeze();
                self.at = At::End;
                let trailers = head::parse_trailers(&block, limits).map_err(BodyError::Trailers)?;
                return Ok(Step::Trailers(trailers));
            }
        }
        self.seen = buf.len();
        if buf.len() >= limits.trailers {
            return Err(BodyError::Trailers(HeadError::TooLarge(limits.trailers)));
        }
        Ok(Step::More)
    }
}

const TOO_MANY_EXTENSIONS: BodyError = BodyError::Malformed("too many chunk extensions");

// === impl Encoder ===

impl Encoder {
    /// # Errors
    /// When the body is longer than was told.
    pub(super) fn data(&mut self, data: Bytes, out: &mut Output) -> Result<(), BodyError> {
        if data.is_empty() {
            return Ok(());
        }
        match self {
            Self::Discard => {}
            Self::UntilEof => out.put(data),
            Self::Exact(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(BodyError::WrongLength("longer"))?;
                out.put(data);
            }
            Self::Chunked => {
                write_size(data.len(), out.small());
                out.put(data);
                out.small().extend_from_slice(b"\r\n");
            }
        }
        Ok(())
    }

    /// The body is over, with these trailers.
    ///
    /// # Errors
    /// When the body was shorter than was told.
    pub(super) fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut Output) -> Result<(), BodyError> {
        match *self {
            Self::Exact(1..) => return Err(BodyError::WrongLength("shorter")),
            Self::Chunked => {
                let small = out.small();
                small.extend_from_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    write_line(name.as_str().as_bytes(), value.as_bytes(), small);
                }
                small.extend_from_slice(b"\r\n");
            }
            Self::Exact(0) | Self::UntilEof | Self::Discard => {}
        }
        *self = Self::Discard;
        Ok(())
    }
}

fn write_size(size: usize, out: &mut Vec<u8>) {
    let digits = (usize::BITS - size.leading_zeros()).div_ceil(4).max(1);
    for digit in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(size >> (digit * 4)) & 15]);
    }
    out.extend_from_slice(b"\r\n");
}
