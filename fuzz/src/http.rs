//! What a head is compared with, and how one is passed on.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, header};
use http_body::{Body, Frame, SizeHint};
use tulle_proxy::wire::h1::{Length, Limits};

/// Small enough to be met.
pub const LIMITS: Limits = Limits { head: 2048, fields: 24, trailers: 256, extensions: 64 };

/// Names in lower case and values, by name; values of one name stay in their order.
pub type Fields = Vec<(String, Vec<u8>)>;

/// Fields that each hop makes anew.
pub const FRAMING: [HeaderName; 2] = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];

/// The fields but for `names`.
pub fn fields_without(headers: &HeaderMap, names: &[HeaderName]) -> Fields {
    let fields = headers.iter().filter(|(name, _)| !names.contains(*name));
    let mut fields: Fields =
        fields.map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec())).collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields
}

/// The fields of a head as httparse reads them, but for repetitions of Content-Length; `None`: it refuses.
pub fn fields_by_httparse(head: &[u8], is_request: bool) -> Option<Fields> {
    let mut space = [httparse::EMPTY_HEADER; 64];
    let (read, fields) = if is_request {
        let mut parsed = httparse::Request::new(&mut space);
        (parsed.parse(head), &*parsed.headers)
    } else {
        let mut parsed = httparse::Response::new(&mut space);
        (parsed.parse(head), &*parsed.headers)
    };
    if read.ok()? != httparse::Status::Complete(head.len()) {
        return None;
    }
    let mut fields: Fields =
        fields.iter().map(|field| (field.name.to_ascii_lowercase(), field.value.to_vec())).collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    fields.dedup_by(|(again, _), (name, _)| name == "content-length" && again == name);
    Some(fields)
}

/// Panics at what may stand in no head that is taken or written: bare CR or LF, other control characters.
pub fn assert_strict(head: &[u8]) {
    for (i, byte) in head.iter().enumerate() {
        match byte {
            b'\n' => assert!(i > 0 && head[i - 1] == b'\r', "bare LF at {i}"),
            b'\r' => assert_eq!(head.get(i + 1), Some(&b'\n'), "bare CR at {i}"),
            b'\t' | b' '..=b'~' | 0x80.. => {}
            _ => panic!("control character {byte} at {i}"),
        }
    }
}

/// A body of which nothing has come yet.
pub enum Unread {
    None,
    Some,
}

// === impl Unread ===

impl Unread {
    /// That of a message whose head says this of its length.
    pub fn of(length: Length) -> Self {
        if length == Length::Exact(0) { Self::None } else { Self::Some }
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match *self {
            Self::None => Poll::Ready(None),
            Self::Some => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::None)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::None => SizeHint::with_exact(0),
            Self::Some => SizeHint::default(),
        }
    }
}
