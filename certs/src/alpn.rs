//! The protocol names by which mesh TLS is told from any other TLS.
//!
//! They choose framing only (DESIGN.md, "The wire between us" 1): what a port speaks is decided by the
//! inbound proxy, never by what a peer offered.

use std::fmt;

/// HTTP/2 between proxies.
pub const H2: &[u8] = b"tulle-h2";
/// HTTP/1.1 between proxies.
pub const HTTP1: &[u8] = b"tulle-http/1.1";
/// Many HTTP/1.1 connections between proxies on one.
pub const STREAMS: &[u8] = b"tulle-streams";
/// Opaque bytes between proxies.
pub const TCP: &[u8] = b"tulle-tcp";
/// Plain HTTP/2: gRPC to the control plane.
pub const GRPC: &[u8] = b"h2";

/// What inbound proxies accept, in order of preference.
pub const MESH: [&[u8]; 4] = [H2, HTTP1, STREAMS, TCP];

/// A protocol that TLS of ours can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Alpn {
    /// [`H2`].
    H2,
    /// [`HTTP1`].
    Http1,
    /// [`STREAMS`].
    Streams,
    /// [`TCP`].
    Tcp,
    /// [`GRPC`], to the control plane only.
    Grpc,
}

impl Alpn {
    /// The protocol that a negotiated or offered name means; `None` for any name that is not ours.
    pub fn of(name: &[u8]) -> Option<Self> {
        [Self::H2, Self::Http1, Self::Streams, Self::Tcp, Self::Grpc]
            .into_iter()
            .find(|alpn| alpn.name() == name)
    }

    /// The name on the wire.
    pub const fn name(self) -> &'static [u8] {
        match self {
            Self::H2 => H2,
            Self::Http1 => HTTP1,
            Self::Streams => STREAMS,
            Self::Tcp => TCP,
            Self::Grpc => GRPC,
        }
    }

    /// True for the names that only proxies of the mesh use among themselves: inbound terminates such TLS
    /// and relays any other.
    pub const fn is_mesh(self) -> bool {
        !matches!(self, Self::Grpc)
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::H2 => "tulle-h2",
            Self::Http1 => "tulle-http/1.1",
            Self::Streams => "tulle-streams",
            Self::Tcp => "tulle-tcp",
            Self::Grpc => "h2",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_back() {
        for alpn in [Alpn::H2, Alpn::Http1, Alpn::Streams, Alpn::Tcp, Alpn::Grpc] {
            assert_eq!(Alpn::of(alpn.name()), Some(alpn));
            assert_eq!(alpn.to_string().as_bytes(), alpn.name());
        }
        assert_eq!(Alpn::of(b"http/1.1"), None);
        assert_eq!(MESH.map(|name| Alpn::of(name).is_some_and(Alpn::is_mesh)), [true; 4]);
        assert!(!Alpn::Grpc.is_mesh());
    }
}
