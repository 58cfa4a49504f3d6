//! Reading a connection's first bytes until it is clear what it speaks.
//!
//! Decides also for how long a proxy that drains still listens to who has not said it ([`drained`]).

use std::io;
use std::pin::pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::detect::{self, Detection};
use crate::drain;
use crate::telemetry::metrics::{DetectProtocol, DetectResult};
use crate::wire::Framing;

/// What a connection turned out to speak, and what was read to find out.
#[derive(Debug)]
pub(super) struct Sniffed {
    pub detection: Detection,
    pub result: DetectResult,
    /// To be replayed to whatever comes next.
    pub head: Bytes,
}

/// Tells what a connection speaks from all its bytes so far, and whether they have ended.
pub(super) type Tell = fn(&[u8], bool) -> Detection;

/// What is made room for at first.
pub(super) const FIRST_READ: usize = 4096;

/// How what was found is framed, if it is HTTP.
pub(super) fn framing(detection: &Detection) -> Option<Framing> {
    match detection {
        Detection::Http1 => Some(Framing::Http1),
        Detection::Http2 => Some(Framing::Http2),
        Detection::Tls(_) | Detection::Opaque | Detection::NeedMore => None,
    }
}

/// Reads from `stream` until its protocol is told by `tell`, for at most `patience` (`None`: as long as it takes). What
/// cannot be told is opaque. Once `drain` has begun, the client has `last_word` to begin, and as long again after its first bytes.
///
/// # Errors
/// When the connection breaks.
pub(super) async fn sniff<S>(
    stream: &mut S,
    tell: Tell,
    patience: Option<Duration>,
    (drain, last_word): (&drain::Watch, Duration),
) -> io::Result<Sniffed>
where
    S: AsyncRead + Unpin,
{
    let mut head = BytesMut::with_capacity(FIRST_READ);
    let (mut timer, timed) = (pin!(tokio::time::sleep(patience.unwrap_or_default())), patience.is_some());
    let mut over = pin!(drained(drain, last_word));
    let (detection, result) = loop {
        let begun = !head.is_empty();
        tokio::select! {
            biased;
            read = read(stream, &mut head, tell) => match read? {
                Some(told) => break told,
                // The rest is on its way.
                None if !begun => over.set(drained(drain, last_word)),
                None => {}
            },
            () = &mut timer, if timed => break (Detection::Opaque, DetectResult::Timeout),
            () = &mut over => break (Detection::Opaque, DetectResult::Drained),
        }
    };
    Ok(Sniffed { detection, result, head: head.freeze() })
}

/// Reads once, after what is in `head` already; `None`: more is needed to tell.
pub(super) async fn read<S>(
    stream: &mut S,
    head: &mut BytesMut,
    tell: Tell,
) -> io::Result<Option<(Detection, DetectResult)>>
where
    S: AsyncRead + Unpin,
{
    let eof = stream.read_buf(head).await? == 0;
    Ok(match tell(head, eof) {
        Detection::NeedMore => None,
        Detection::Opaque if eof => Some((Detection::Opaque, DetectResult::Closed)),
        Detection::Opaque if head.len() >= detect::MAX => Some((Detection::Opaque, DetectResult::Limit)),
        detection => Some((detection, DetectResult::Detected)),
    })
}

/// Resolves `last_word` after the drain has begun, or after now if that is later: then whoever has not said what it speaks is given up.
/// Most such connections were opened ahead of need; whoever comes while the proxy drains, or has a slow way, is to be served still.
pub(super) async fn drained(drain: &drain::Watch, last_word: Duration) {
    drain.draining().await;
    tokio::time::sleep(last_word).await;
}

// === impl Sniffed ===

impl Sniffed {
    /// Whether there is nothing to serve: the client has left without a word, or was given up while the proxy drains.
    pub(super) fn is_nothing(&self) -> bool {
        match self.result {
            DetectResult::Closed => self.head.is_empty(),
            result => result == DetectResult::Drained,
        }
    }
}

/// The metric's word for what was detected.
pub(super) fn protocol(detection: &Detection) -> DetectProtocol {
    match detection {
        Detection::Tls(hello) if hello.is_mesh.is_some() => DetectProtocol::MeshTls,
        Detection::Tls(_) => DetectProtocol::AppTls,
        Detection::Http1 => DetectProtocol::Http1,
        Detection::Http2 => DetectProtocol::Http2,
        Detection::NeedMore | Detection::Opaque => DetectProtocol::Opaque,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::time::{Instant, sleep};

    const LAST_WORD: Duration = Duration::from_secs(2);

    #[tokio::test]
    async fn a_request_line_in_pieces_is_told_and_replayed_whole() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let write = async {
            for piece in ["GE", "T / HT", "TP/1.1\r\n"] {
                client.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let (_signal, drain) = drain::channel();
        let ((), sniffed) =
            tokio::join!(write, sniff(&mut server, detect::detect, None, (&drain, LAST_WORD)));
        let sniffed = sniffed.unwrap();
        assert_eq!(sniffed.detection, Detection::Http1);
        assert_eq!(&sniffed.head[..], b"GET / HTTP/1.1\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_opaque_after_the_patience_and_says_so() {
        let (_client, mut server) = tokio::io::duplex(64);
        let (_signal, drain) = drain::channel();
        let patience = Some(Duration::from_secs(1));
        let sniffed = sniff(&mut server, detect::detect, patience, (&drain, LAST_WORD)).await.unwrap();
        assert_eq!((sniffed.detection, sniffed.result), (Detection::Opaque, DetectResult::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_does_not_hold_up_the_drain() {
        let (_client, mut server) = tokio::io::duplex(64);
        let (signal, drain) = drain::channel();
        signal.start();
        let begun = Instant::now();
        let sniffed = sniff(&mut server, detect::detect, None, (&drain, LAST_WORD)).await.unwrap();
        assert_eq!((begun.elapsed(), sniffed.result), (LAST_WORD, DetectResult::Drained));
        assert!(sniffed.is_nothing() && sniffed.head.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_that_comes_slowly_while_the_proxy_drains_is_told() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let (signal, drain) = drain::channel();
        signal.start();
        let write = async {
            for piece in ["GE", "T / HTTP/1.1\r\n"] {
                sleep(LAST_WORD * 9 / 10).await;
                client.write_all(piece.as_bytes()).await.unwrap();
            }
        };
        let sniff = sniff(&mut server, detect::detect, None, (&drain, LAST_WORD));
        let ((), sniffed) = tokio::join!(write, sniff);
        let sniffed = sniffed.unwrap();
        assert_eq!((sniffed.detection, &sniffed.head[..]), (Detection::Http1, &b"GET / HTTP/1.1\r\n"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_begun_and_says_no_more_does_not_hold_up_the_drain_either() {
        let (mut client, mut server) = tokio::io::duplex(64);
        let (signal, drain) = drain::channel();
        let begun = Instant::now();
        let write = async {
            client.write_all(b"G").await.unwrap();
            sleep(LAST_WORD * 9).await;
            signal.start();
            sleep(LAST_WORD / 2).await;
            client.write_all(b"E").await.unwrap();
        };
        let sniff = sniff(&mut server, detect::detect, None, (&drain, LAST_WORD));
        let ((), sniffed) = tokio::join!(write, sniff);
        let sniffed = sniffed.unwrap();
        assert_eq!((begun.elapsed(), sniffed.result), (LAST_WORD * 10, DetectResult::Drained));
        assert!(sniffed.is_nothing() && &sniffed.head[..] == b"GE");
    }
}
