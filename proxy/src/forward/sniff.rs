//! Reading a connection's first bytes until it is clear what it speaks.

use std::io;
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

/// When draining, how long whoever has not said what it speaks may still say it.
const LAST_WORD: Duration = Duration::from_secs(1);

/// How what was found is framed, if it is HTTP.
pub(super) fn framing(detection: &Detection) -> Option<Framing> {
    match detection {
        Detection::Http1 => Some(Framing::Http1),
        Detection::Http2 => Some(Framing::Http2),
        Detection::Tls(_) | Detection::Opaque | Detection::NeedMore => None,
    }
}

/// Reads from `stream` until its protocol is told by `tell`, for at most `patience` (`None`: as long as it takes). What
/// cannot be told is opaque.
///
/// # Errors
/// When the connection breaks, or says nothing while `drain` begins.
pub(super) async fn sniff<S>(
    stream: &mut S,
    tell: Tell,
    patience: Option<Duration>,
    drain: &drain::Watch,
) -> io::Result<Sniffed>
where
    S: AsyncRead + Unpin,
{
    let mut head = BytesMut::with_capacity(FIRST_READ);
    let read = async {
        let read = async {
            loop {
                if let Some(told) = read(stream, &mut head, tell).await? {
                    return io::Result::Ok(told);
                }
            }
        };
        match patience {
            None => read.await,
            Some(patience) => match tokio::time::timeout(patience, read).await {
                Ok(read) => read,
                Err(_) => Ok((Detection::Opaque, DetectResult::Timeout)),
            },
        }
    };
    let (detection, result) = tokio::select! {
        read = read => read?,
        () = drained(drain) => return Err(io::ErrorKind::ConnectionAborted.into()),
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

/// Resolves when whoever has not said what it speaks is to be given up.
pub(super) async fn drained(drain: &drain::Watch) {
    drain.draining().await;
    tokio::time::sleep(LAST_WORD).await;
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
        let ((), sniffed) = tokio::join!(write, sniff(&mut server, detect::detect, None, &drain));
        let sniffed = sniffed.unwrap();
        assert_eq!(sniffed.detection, Detection::Http1);
        assert_eq!(&sniffed.head[..], b"GET / HTTP/1.1\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_opaque_after_the_patience_and_says_so() {
        let (_client, mut server) = tokio::io::duplex(64);
        let (_signal, drain) = drain::channel();
        let patience = Some(Duration::from_secs(1));
        let sniffed = sniff(&mut server, detect::detect, patience, &drain).await.unwrap();
        assert_eq!((sniffed.detection, sniffed.result), (Detection::Opaque, DetectResult::Timeout));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_does_not_hold_up_the_drain() {
        let (_client, mut server) = tokio::io::duplex(64);
        let (signal, drain) = drain::channel();
        signal.start();
        let sniffed = sniff(&mut server, detect::detect, None, &drain);
        let sniffed = tokio::time::timeout(Duration::from_secs(2), sniffed).await.expect("it is given up");
        assert_eq!(sniffed.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }
}
