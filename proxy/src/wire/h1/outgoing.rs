//! Messages on their way out: how the length of a body is told, and moving it from whoever has it to the connection.
//!
//! Decides the framing, anew for each hop. It must never write both `Content-Length` and `Transfer-Encoding`, nor
//! neither where that would be read as something else. Called by [`super::server`] and [`super::client`].

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, Version, header, response};
use http_body::Body;

use super::buf::Output;
use super::coding::{BodyError, Encoder};
use super::head::{self, has_no_body};
use super::original::{Fields, OriginalHead, Told, write_request_line, write_status_line};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body on its way out.
#[derive(Debug)]
pub(super) struct Sending {
    encoder: Encoder,
    /// All of it is in the output.
    pub(super) ended: bool,
    /// Something was taken out of the body.
    pub(super) taken: bool,
}

/// What a response must obey.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) version: Version,
    /// The client is ready for another exchange.
    pub(super) keep_alive: bool,
}

/// What is known of a body before it is sent.
#[derive(Clone, Copy, Debug)]
struct Known {
    exact: Option<u64>,
    /// `Content-Length`, as the message says it.
    said: Option<u64>,
    chunked: bool,
    ended: bool,
}

impl Known {
    fn of(body: &impl Body, headers: &HeaderMap, original: Option<&OriginalHead>) -> Self {
        let mut said = headers.get_all(header::CONTENT_LENGTH).iter();
        let said = match (said.next(), said.next()) {
            (Some(one), None) => head::decimal(one.as_bytes()),
            _ => None,
        };
        Self {
            exact: body.size_hint().exact(),
            said,
            chunked: original.is_some_and(OriginalHead::is_chunked),
            ended: body.is_end_stream(),
        }
    }

    /// `None`: neither is the length known, nor may there be chunks.
    fn framing(self, version: Version) -> Option<(Told, Encoder)> {
        let chunks = version != Version::HTTP_10;
        // Without data there may still be trailers.
        let trailers = self.exact == Some(0) && !self.ended && self.said.is_none();
        match self.exact.or(self.said) {
            Some(length) if !(chunks && (self.chunked || trailers)) => {
                Some((Told::Exact(length), Encoder::Exact(length)))
            }
            _ => chunks.then_some((Told::Chunked, Encoder::Chunked)),
        }
    }
}

/// Writes a request's head.
///
/// # Errors
/// When the length of its body cannot be told.
pub(super) fn request<T, B: Body>(
    request: &Request<T>,
    body: &B,
    out: &mut Output,
) -> Result<Sending, BodyError> {
    let (method, version, headers) = (request.method(), request.version(), request.headers());
    let original = request.extensions().get::<OriginalHead>();
    let known = Known::of(body, headers, original);
    let bodiless = known.exact == Some(0) && known.ended && !known.chunked;
    let (told, encoder) = if *method == Method::CONNECT || (bodiless && known.said.is_none()) {
        (Told::Nothing, Encoder::Discard)
    } else {
        known.framing(version).ok_or(BodyError::WrongLength("less certain"))?
    };
    write_request_line(out.small(), method, request.uri(), version);
    Fields { original, headers, told, connection: None }.write(out.small());
    let mut sending = Sending { encoder, ended: false, taken: false };
    if known.ended {
        sending.end(None, out)?;
    }
    Ok(sending)
}

/// Writes a response's head; also tells whether the connection can serve another exchange.
pub(super) fn response<B: Body>(
    parts: &response::Parts,
    body: &B,
    asked: &Asked,
    out: &mut Output,
) -> Result<(Sending, bool), BodyError> {
    let original = parts.extensions.get::<OriginalHead>();
    let known = Known::of(body, &parts.headers, original);
    let upgrade = is_upgrade(&asked.method, parts.status);
    let mut keep_alive = asked.keep_alive && !says_close(&parts.headers);
    let chunks = asked.version == Version::HTTP_11;
    let (told, encoder) = if upgrade || parts.status == StatusCode::NO_CONTENT {
        (Told::Nothing, Encoder::Discard)
    } else if has_no_body(&asked.method, parts.status) {
        let told = match (known.said, known.exact) {
            (Some(_), _) => Told::AsGiven,
            (None, Some(length @ 1..)) => Told::Exact(length),
            _ if known.chunked && chunks => Told::Chunked,
            _ => Told::Nothing,
        };
        (told, Encoder::Discard)
    } else {
        known.framing(asked.version).unwrap_or_else(|| {
            keep_alive = false;
            (Told::Nothing, Encoder::UntilEof)
        })
    };
    let connection = match (keep_alive, asked.version) {
        _ if upgrade => None,
        (false, _) => Some("close"),
        (true, Version::HTTP_10) => Some("keep-alive"),
        (true, _) => None,
    };
    write_status_line(out.small(), parts.status, asked.version, original);
    Fields { original, headers: &parts.headers, told, connection }.write(out.small());
    let mut sending = Sending { encoder, ended: false, taken: false };
    if known.ended || upgrade {
        sending.end(None, out)?;
    }
    Ok((sending, keep_alive))
}

/// Whether a response ends HTTP on its connection.
pub(super) fn is_upgrade(method: &Method, status: StatusCode) -> bool {
    status == StatusCode::SWITCHING_PROTOCOLS || (*method == Method::CONNECT && status.is_success())
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    values
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|option| option.trim_ascii().eq_ignore_ascii_case(b"close"))
}

// === impl Sending ===

impl Sending {
    /// Takes in what `body` has ready and there is room for. Pending: only because the body has nothing ready.
    ///
    /// # Errors
    /// The body's own, and [`BodyError::WrongLength`].
    pub(super) fn poll_take<B>(
        &mut self,
        mut body: Pin<&mut B>,
        out: &mut Output,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>>
    where
        B: Body<Data = Bytes> + ?Sized,
        B::Error: Into<BoxError>,
    {
        while !self.ended && out.has_room() {
            match body.as_mut().poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Err(error))) => {
                    // What is left of it is not the body that was meant: it must not be sent again.
                    self.taken = true;
                    return Poll::Ready(Err(BodyError::Other(error.into())));
                }
                Poll::Ready(None) => self.end(None, out)?,
                Poll::Ready(Some(Ok(frame))) => {
                    self.taken = true;
                    match frame.into_data() {
                        Ok(data) => {
                            self.encoder.data(data, out)?;
                            if body.is_end_stream() {
                                self.end(None, out)?;
                            }
                        }
                        Err(frame) => self.end(frame.into_trailers().ok().as_ref(), out)?,
                    }
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn end(&mut self, trailers: Option<&HeaderMap>, out: &mut Output) -> Result<(), BodyError> {
        self.ended = true;
        self.encoder.end(trailers, out)
    }
}
