//! HTTP/2 frame by frame (RFC 9113 §4), for servers that do what no library lets them do.
//!
//! What is said is made by functions that give bytes, so that a test can say it in any order and cut it anywhere.

use std::collections::HashMap;

use crate::Wire;

/// Frame types (RFC 9113 §6).
pub const DATA: u8 = 0;
/// See [`DATA`].
pub const HEADERS: u8 = 1;
/// See [`DATA`].
pub const RST_STREAM: u8 = 3;
/// See [`DATA`].
pub const SETTINGS: u8 = 4;
/// See [`DATA`].
pub const PUSH_PROMISE: u8 = 5;
/// See [`DATA`].
pub const PING: u8 = 6;
/// See [`DATA`].
pub const GOAWAY: u8 = 7;
/// See [`DATA`].
pub const WINDOW_UPDATE: u8 = 8;
/// See [`DATA`].
pub const CONTINUATION: u8 = 9;

/// Of DATA and HEADERS: the last frame of its stream.
pub const END_STREAM: u8 = 0x1;
/// Of SETTINGS and PING: the answer to one.
pub const ACK: u8 = 0x1;
/// Of HEADERS and CONTINUATION: the last frame of its block.
pub const END_HEADERS: u8 = 0x4;

/// `SETTINGS_MAX_CONCURRENT_STREAMS`.
pub const MAX_CONCURRENT_STREAMS: u16 = 3;
/// `SETTINGS_INITIAL_WINDOW_SIZE`.
pub const INITIAL_WINDOW_SIZE: u16 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame as it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// A type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// 0: the connection.
    pub stream: u32,
    /// What follows the frame's head.
    pub payload: Vec<u8>,
}

/// The server's end of a connection.
#[derive(Debug)]
pub struct Frames {
    wire: Wire,
    /// Requests that have begun and not ended.
    open: HashMap<u32, Vec<u8>>,
}

/// A frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: impl AsRef<[u8]>) -> Vec<u8> {
    let payload = payload.as_ref();
    let length = u32::try_from(payload.len()).expect("a frame's length");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// SETTINGS with these values.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> = values
        .iter()
        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
        .collect();
    frame(SETTINGS, 0, 0, payload)
}

/// HEADERS, whole: a response's head, or trailers. With `END_STREAM` in `flags` nothing follows.
pub fn headers(flags: u8, stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    frame(HEADERS, flags | END_HEADERS, stream, block(fields))
}

/// DATA.
pub fn data(flags: u8, stream: u32, data: impl AsRef<[u8]>) -> Vec<u8> {
    frame(DATA, flags, stream, data)
}

/// RST_STREAM with a code (RFC 9113 §7).
pub fn rst_stream(stream: u32, code: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, code.to_be_bytes())
}

/// GOAWAY with the last stream that was looked at, and a code.
pub fn goaway(last: u32, code: u32) -> Vec<u8> {
    frame(GOAWAY, 0, 0, [last.to_be_bytes(), code.to_be_bytes()].concat())
}

/// A field block (RFC 7541): every field a literal that is not indexed, and nothing by Huffman's code.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            length(text.len(), &mut block);
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A string's length, with a prefix of seven bits (RFC 7541 §5.1).
fn length(length: usize, to: &mut Vec<u8>) {
    let byte = |value: usize| u8::try_from(value).expect("a byte");
    if length < 0x7f {
        return to.push(byte(length));
    }
    to.push(0x7f);
    let mut rest = length - 0x7f;
    while rest >= 0x80 {
        to.push(byte(rest & 0x7f) | 0x80);
        rest >>= 7;
    }
    to.push(byte(rest));
}

// === impl Frames ===

impl Frames {
    /// Of a client that connected: waits for its preface, and says these settings. `None`: it went away.
    pub async fn accept(mut wire: Wire, values: &[(u16, u32)]) -> Option<Self> {
        let preface = wire.try_exactly(PREFACE.len()).await?;
        assert_eq!(preface, PREFACE, "a client of HTTP/2");
        wire.try_send(settings(values)).await.ok()?;
        Some(Self { wire, open: HashMap::new() })
    }

    /// The next frame; `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        let head = self.wire.try_exactly(9).await?;
        let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        let length = usize::try_from(number(&head[..3])).expect("a length");
        let payload = self.wire.try_exactly(length).await?;
        Some(Frame { kind: head[3], flags: head[4], stream: number(&head[5..]), payload })
    }

    /// The next request that has come whole: its stream, and its body. Meanwhile it answers what must be answered, and lets
    /// the client send as much as it likes.
    pub async fn request(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let Frame { kind, flags, stream, payload } = self.next().await?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.try_send(frame(SETTINGS, ACK, 0, [])).await?,
                PING if flags & ACK == 0 => self.try_send(frame(PING, ACK, 0, payload)).await?,
                HEADERS => drop(self.open.entry(stream).or_default()),
                DATA => {
                    let more = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
                    if !payload.is_empty() {
                        let windows = [0, stream].map(|stream| frame(WINDOW_UPDATE, 0, stream, more));
                        self.try_send(windows.concat()).await?;
                    }
                    self.open.entry(stream).or_default().extend(payload);
                }
                RST_STREAM => drop(self.open.remove(&stream)),
                _ => {}
            }
            if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                return Some((stream, self.open.remove(&stream).unwrap_or_default()));
            }
        }
    }

    /// Writes bytes; `None` if nobody takes them.
    pub async fn try_send(&mut self, bytes: impl AsRef<[u8]>) -> Option<()> {
        self.wire.try_send(bytes).await.ok()
    }

    /// Shuts the reading side: whatever comes from now on is not read.
    pub fn deafen(&mut self) {
        self.wire.deafen();
    }

    /// The connection itself.
    pub fn into_wire(self) -> Wire {
        self.wire
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_beyond_the_prefix_go_on_in_further_bytes() {
        // RFC 7541 §C.1.3 has 1337 with a prefix of five bits; with seven it is 127 + 1210.
        for (of, bytes) in [(5, &[5][..]), (126, &[126]), (127, &[127, 0]), (1337, &[127, 0xba, 0x09])] {
            let mut had = Vec::new();
            length(of, &mut had);
            assert_eq!(had, bytes, "{of}");
        }
    }
}
