//! Bytes that are nobody's business: both directions relayed, half-close and reset passed on as what they are.

use std::io;

use tokio::io::copy_bidirectional_with_sizes;

use super::admit;
use crate::io::Io;
use crate::policy;

/// How a relayed connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides finished.
    Closed,
    /// One side broke; so did we, towards the other.
    Reset(io::Error),
    /// Policy no longer allows it.
    Revoked,
}

const BUFFER: usize = 16 * 1024;

/// Relays until both sides are done, or until `guard` is revoked.
pub(super) async fn relay(mut client: Io, mut server: Io, guard: Option<&policy::Guard>) -> Ended {
    let ended = tokio::select! {
        copied = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER) => match copied {
            Ok(_) => Ended::Closed,
            Err(error) => Ended::Reset(error),
        },
        () = admit::revoked(guard) => Ended::Revoked,
    };
    if !matches!(ended, Ended::Closed) {
        client.reset_on_drop();
        server.reset_on_drop();
    }
    ended
}
