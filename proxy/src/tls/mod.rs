//! Mutual TLS between proxies: terminate, connect, and know the peer before anything may use the stream.
//!
//! The configurations are built once per rotation, in `tulle-certs`, whose verifiers compare the peer's SPIFFE ID
//! within the handshake. Nothing here ever falls back to plaintext.

use std::io;
use std::time::SystemTime;

use aws_lc_rs::digest;
use tokio::net::TcpStream;
use tulle_certs::{Alpn, Creds, Refusal, SpiffeId, creds, refusal};

use crate::io::{Io, Replay, TlsStream};

/// A connection from another proxy.
#[derive(Debug)]
pub struct Terminated {
    pub io: Io,
    pub peer: SpiffeId,
    /// SHA-256 of its certificate.
    pub certificate: [u8; 32],
    pub alpn: Alpn,
}

/// Why a connection from outside was refused.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("refused the peer: {refusal}: {source}")]
    Refused { refusal: Refusal, source: io::Error },
    #[error("TLS handshake failed: {0}")]
    Failed(#[source] io::Error),
    #[error("the TLS handshake chose none of the mesh's protocols")]
    NoProtocol,
}

/// Why an endpoint could not be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("refused the server: expected {expected}: {refusal}: {source}")]
    Refused { expected: SpiffeId, refusal: Refusal, source: io::Error },
    #[error("the server refused us: {0}")]
    RefusedByPeer(#[source] io::Error),
    #[error("TLS handshake failed: {0}")]
    Failed(#[source] io::Error),
    #[error("our certificate has expired")]
    OwnCertificateExpired,
}

/// Terminates TLS that a proxy has begun; a client certificate of the mesh is always required.
///
/// # Errors
/// When the peer is refused or breaks the handshake off.
pub async fn accept(stream: Replay<TcpStream>, creds: &Creds) -> Result<Terminated, AcceptError> {
    let stream = TlsStream::accept(creds.inbound(), stream).await.map_err(|source| {
        match refusal::refusal_of_io(&source) {
            Some(refusal) => AcceptError::Refused { refusal, source },
            None => AcceptError::Failed(source),
        }
    })?;
    let alpn =
        stream.alpn().and_then(Alpn::of).filter(|alpn| alpn.is_mesh()).ok_or(AcceptError::NoProtocol)?;
    let certificates = stream.peer_certificates();
    let certificate = certificates
        .first()
        .map(|leaf| digest::digest(&digest::SHA256, leaf))
        .and_then(|digest| digest.as_ref().first_chunk().copied())
        .unwrap_or_default();
    let peer = tulle_certs::peer_id(certificates).map_err(|refusal| AcceptError::Refused {
        refusal,
        source: io::Error::new(io::ErrorKind::InvalidData, refusal.reason()),
    })?;
    Ok(Terminated { io: Io::tls(stream), peer, certificate, alpn })
}

/// Opens TLS to an endpoint that must prove to be `expected`.
///
/// The server may still refuse us after this returns (TLS 1.3): see [`refused_by_peer`].
///
/// # Errors
/// When the server is somebody else, refuses us, or breaks the handshake off.
pub async fn connect(
    stream: TcpStream,
    creds: &Creds,
    expected: &SpiffeId,
    alpn: Alpn,
) -> Result<Io, ConnectError> {
    if creds.is_expired(SystemTime::now()) {
        return Err(ConnectError::OwnCertificateExpired);
    }
    let stream = Replay::new(bytes::Bytes::new(), stream);
    let stream = TlsStream::connect(creds.client(expected, alpn), creds::server_name(), stream)
        .await
        .map_err(|source| match (refusal::refusal_of_io(&source), refused_by_peer(&source)) {
            (Some(refusal), _) => ConnectError::Refused { expected: expected.clone(), refusal, source },
            (None, true) => ConnectError::RefusedByPeer(source),
            (None, false) => ConnectError::Failed(source),
        })?;
    Ok(Io::tls(stream))
}

/// Whether an error on a stream, seen before any byte of an answer, says that the peer refused our certificate:
/// then nothing of what we sent was looked at.
pub fn refused_by_peer(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return tulle_certs::refused_by_peer(tls);
        }
        // An io::Error's `source` is its inner error's source: the inner error itself must be asked for.
        source = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}
