//! What a connection speaks, told from its first bytes.
//!
//! Decides between TLS (with the ClientHello's server name and ALPN), HTTP/2 with prior knowledge, HTTP/1 and
//! opaque bytes. Pure: the accept path reads into a buffer, asks [`detect`] after each read, and replays the
//! buffer to whatever comes next. It must never consume, never guess ahead of the evidence (every split of the
//! same bytes ends in the same answer), and never look past [`MAX`] bytes. Called by `forward`.
//!
//! | bytes | answer |
//! | --- | --- |
//! | a whole TLS ClientHello (RFC 8446 §4.1.2), over as many records as it takes | [`Detection::Tls`] |
//! | the HTTP/2 connection preface (RFC 9113 §3.4) | [`Detection::Http2`] |
//! | a request line of HTTP/1.0 or 1.1 (RFC 9112 §3), after at most one empty line | [`Detection::Http1`] |
//! | the beginning of one of these | [`Detection::NeedMore`] |
//! | anything else, or no answer within [`MAX`] bytes or before the end of the stream | [`Detection::Opaque`] |

use std::borrow::Cow;

use smallvec::SmallVec;

/// The most bytes that are looked at; what is undecided then is opaque.
pub const MAX: usize = 16 * 1024;

/// The HTTP/2 connection preface (RFC 9113 §3.4).
pub const HTTP2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a connection are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detection {
    /// Read more and ask again with all the bytes so far.
    NeedMore,
    Tls(ClientHello),
    Http2,
    Http1,
    Opaque,
}

/// What matters to us of a TLS ClientHello.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name, in lower case; none if it was not sent or is not a host name.
    pub sni: Option<Box<str>>,
    /// Protocol names, in the order the client prefers them.
    pub alpn: SmallVec<[Box<[u8]>; 2]>,
    /// Set when any of `alpn` is ours: the connection is another proxy's, and is terminated. The first of ours
    /// in the client's order; what is spoken is what the handshake then chooses.
    pub is_mesh: Option<MeshAlpn>,
}

/// Our own protocol names between two proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MeshAlpn {
    H2,
    Http1,
    Streams,
    Tcp,
}

/// Tells what a connection speaks from all its bytes so far; `eof` when no more will come.
///
/// Once the answer is not [`Detection::NeedMore`], more bytes do not change it.
pub fn detect(bytes: &[u8], eof: bool) -> Detection {
    decide(bytes, eof, detect_http)
}

/// As [`detect`], where nothing says that it is HTTP: a method with a lower-case letter, which none that is registered
/// has, is none, so that `ruok` or `JDWP-Handshake` is not taken for the beginning of a request.
pub fn detect_undeclared(bytes: &[u8], eof: bool) -> Detection {
    let detect_http = |seen: &[u8]| {
        let mut method = after_empty_line(seen).unwrap_or_default().iter().take_while(|b| is_token(**b));
        if method.any(u8::is_ascii_lowercase) { Detection::Opaque } else { detect_http(seen) }
    };
    decide(bytes, eof, detect_http)
}

/// As [`detect`], where nothing but TLS is asked for.
pub fn detect_tls_alone(bytes: &[u8], eof: bool) -> Detection {
    decide(bytes, eof, |_| Detection::Opaque)
}

fn decide(bytes: &[u8], eof: bool, detect_http: impl Fn(&[u8]) -> Detection) -> Detection {
    let seen = &bytes[..bytes.len().min(MAX)];
    let detection = match seen.first() {
        None => Detection::NeedMore,
        Some(&HANDSHAKE_RECORD) => detect_tls(seen),
        Some(_) => detect_http(seen),
    };
    match detection {
        Detection::NeedMore if eof || bytes.len() >= MAX => Detection::Opaque,
        detection => detection,
    }
}

// === impl MeshAlpn ===

impl MeshAlpn {
    /// In the order in which inbound prefers them.
    pub const ALL: [Self; 4] = [Self::H2, Self::Http1, Self::Streams, Self::Tcp];

    /// The name on the wire.
    pub const fn as_bytes(self) -> &'static [u8] {
        match self {
            Self::H2 => b"tulle-h2",
            Self::Http1 => b"tulle-http/1.1",
            Self::Streams => b"tulle-streams",
            Self::Tcp => b"tulle-tcp",
        }
    }

    /// The protocol of this name, if it is one of ours.
    pub fn from_bytes(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|alpn| alpn.as_bytes() == name)
    }
}

// === HTTP ===

fn detect_http(bytes: &[u8]) -> Detection {
    if bytes.starts_with(HTTP2_PREFACE) {
        return Detection::Http2;
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Detection::NeedMore;
    }
    match request_line(bytes) {
        None => Detection::NeedMore,
        Some(true) => Detection::Http1,
        Some(false) => Detection::Opaque,
    }
}

/// Whether `bytes` begin with a request line; `None` while they may yet.
fn request_line(bytes: &[u8]) -> Option<bool> {
    let rest = after_empty_line(bytes)?;
    let method = rest.iter().take_while(|b| is_token(**b)).count();
    match rest.get(method) {
        None => return None,
        Some(b' ') if method > 0 => {}
        Some(_) => return Some(false),
    }
    let rest = &rest[method + 1..];
    let target = rest.iter().take_while(|b| is_target(**b)).count();
    match rest.get(target) {
        None => return None,
        Some(b' ') if target > 0 => {}
        Some(_) => return Some(false),
    }
    // Only the versions that the codec behind can speak, so that another is relayed, not answered with 400.
    const VERSION: &[u8] = b"HTTP/1.";
    let rest = &rest[target + 1..];
    let known = rest.len().min(VERSION.len());
    if rest[..known] != VERSION[..known] {
        return Some(false);
    }
    match &rest[known..] {
        [] | [b'0' | b'1'] | [b'0' | b'1', b'\r'] => None,
        [b'0' | b'1', b'\r', b'\n', ..] | [b'0' | b'1', b'\n', ..] => Some(true),
        _ => Some(false),
    }
}

/// A server should ignore at least one empty line before the request line (RFC 9112 §2.2). `None`: it is not whole.
fn after_empty_line(bytes: &[u8]) -> Option<&[u8]> {
    match bytes {
        [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => Some(rest),
        [b'\r'] => None,
        _ => Some(bytes),
    }
}

/// RFC 9110 §5.6.2.
const fn is_token(b: u8) -> bool {
    matches!(b, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z')
}

/// Visible, or not ASCII: what servers take in a request target in practice.
const fn is_target(b: u8) -> bool {
    matches!(b, 0x21..=0x7e | 0x80..)
}

// === TLS ===

/// `ContentType.handshake` (RFC 8446 §5.1).
const HANDSHAKE_RECORD: u8 = 22;
/// `HandshakeType.client_hello` (RFC 8446 §4).
const CLIENT_HELLO: u8 = 1;
/// The largest plaintext fragment of a record (RFC 8446 §5.1).
const MAX_FRAGMENT: usize = 1 << 14;
const HANDSHAKE_HEADER: usize = 4;

const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;

fn detect_tls(bytes: &[u8]) -> Detection {
    match handshake_message(bytes) {
        Ok(message) => client_hello(&message[HANDSHAKE_HEADER..]).map_or(Detection::Opaque, Detection::Tls),
        Err(undecided) => undecided,
    }
}

/// The first handshake message, put together from the records that it spans; else `NeedMore` or `Opaque`.
fn handshake_message(bytes: &[u8]) -> Result<Cow<'_, [u8]>, Detection> {
    let mut message: Cow<'_, [u8]> = Cow::Borrowed(&[]);
    let mut rest = bytes;
    loop {
        // Each byte is judged as soon as it is there, so that garbage is not waited for.
        match rest {
            [kind, ..] if *kind != HANDSHAKE_RECORD => return Err(Detection::Opaque),
            // The minor version says nothing (RFC 8446 §5.1), and other implementations do not look at it.
            [_, major, ..] if *major != 3 => return Err(Detection::Opaque),
            _ => {}
        }
        let [_, _, _, high, low, body @ ..] = rest else {
            return Err(Detection::NeedMore);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        // Handshake messages have no empty fragments (RFC 8446 §5.1).
        if length == 0 || length > MAX_FRAGMENT {
            return Err(Detection::Opaque);
        }
        let (fragment, next) = body.split_at(length.min(body.len()));
        if message.is_empty() {
            message = Cow::Borrowed(fragment);
        } else {
            message.to_mut().extend_from_slice(fragment);
        }
        if let Some(whole) = message_length(&message)? {
            return Ok(match message {
                Cow::Borrowed(all) => Cow::Borrowed(&all[..whole]),
                Cow::Owned(mut all) => {
                    all.truncate(whole);
                    Cow::Owned(all)
                }
            });
        }
        if fragment.len() < length {
            return Err(Detection::NeedMore);
        }
        rest = next;
    }
}

/// How long the ClientHello at the start of `message` is, once all of it is there.
fn message_length(message: &[u8]) -> Result<Option<usize>, Detection> {
    match *message {
        [kind, ..] if kind != CLIENT_HELLO => Err(Detection::Opaque),
        [_, a, b, c, ..] => {
            let whole =
                HANDSHAKE_HEADER + usize::from(a) * 0x1_0000 + usize::from(b) * 0x100 + usize::from(c);
            if whole > MAX {
                return Err(Detection::Opaque);
            }
            Ok((message.len() >= whole).then_some(whole))
        }
        _ => Ok(None),
    }
}

/// The body of a ClientHello (RFC 8446 §4.1.2); `None` if it is not one.
fn client_hello(body: &[u8]) -> Option<ClientHello> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // legacy_version, random
    let session_id = body.block8()?;
    let cipher_suites = body.block16()?;
    let compression_methods = body.block8()?;
    if session_id.0.len() > 32 || !cipher_suites.0.len().is_multiple_of(2) || compression_methods.0.is_empty()
    {
        return None;
    }
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        // Before TLS 1.3, a hello may have no extensions at all.
        return Some(hello);
    }
    let mut extensions = body.block16()?;
    if !body.0.is_empty() {
        return None;
    }
    let (mut named, mut negotiates) = (false, false);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let mut data = extensions.block16()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                // "There MUST NOT be more than one extension of the same type."
                if std::mem::replace(&mut named, true) {
                    return None;
                }
                hello.sni = server_name(data);
            }
            EXTENSION_ALPN => {
                if std::mem::replace(&mut negotiates, true) {
                    return None;
                }
                let mut names = data.block16()?;
                while !names.0.is_empty() {
                    hello.alpn.push(names.block8()?.0.into());
                }
            }
            _ => {}
        }
    }
    hello.is_mesh = hello.alpn.iter().find_map(|name| MeshAlpn::from_bytes(name));
    Some(hello)
}

/// The host name in a `server_name` extension (RFC 6066 §3), if there is a sane one.
fn server_name(mut data: Reader<'_>) -> Option<Box<str>> {
    const HOST_NAME: u8 = 0;
    let mut names = data.block16()?;
    while !names.0.is_empty() {
        let kind = names.take(1)?[0];
        let name = names.block16()?.0;
        if kind == HOST_NAME {
            let sane = !name.is_empty()
                && name.len() <= 255
                && name.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
            let name = std::str::from_utf8(name).ok().filter(|_| sane)?;
            return Some(name.to_ascii_lowercase().into_boxed_str());
        }
    }
    None
}

/// Reads TLS's presentation language; `None` where the bytes end too soon.
struct Reader<'a>(&'a [u8]);

// === impl Reader ===

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u16(&mut self) -> Option<u16> {
        let bytes = self.take(2)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// What follows a length of one byte.
    fn block8(&mut self) -> Option<Self> {
        let length = self.take(1)?[0];
        self.take(usize::from(length)).map(Self)
    }

    /// What follows a length of two bytes.
    fn block16(&mut self) -> Option<Self> {
        let length = self.u16()?;
        self.take(usize::from(length)).map(Self)
    }
}

#[cfg(test)]
mod tests;
