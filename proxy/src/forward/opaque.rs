//! Bytes that are nobody's business: both directions relayed, half-close and reset passed on as what they are.

use super::admit;
use crate::io::{Broken, Io};
use crate::policy;

/// How a relayed connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// Both sides finished.
    Closed,
    /// One side broke; so did we, towards the other.
    Reset(Broken),
    /// Policy no longer allows it.
    Revoked,
}

/// Relays until both sides are done, or until `guard` is revoked.
pub(super) async fn relay(client: Io, server: Io, guard: Option<&policy::Guard>) -> Ended {
    tokio::select! {
        // First: it may have been revoked before there was anything to relay.
        biased;
        () = admit::revoked(guard) => Ended::Revoked,
        relayed = crate::io::relay(client, server) => match relayed {
            Ok(()) => Ended::Closed,
            Err(broken) => Ended::Reset(broken),
        },
    }
}
