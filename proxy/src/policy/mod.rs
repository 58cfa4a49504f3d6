//! Who may connect.
//!
//! Decides, for one inbound connection, whether this workload's policy lets it in, and names the rule that did or
//! the reason that did not. [`Inbound`] is compiled when a policy arrives and evaluated without allocation;
//! [`Connections`] holds every open connection, so that each is judged anew when the policy changes. It must never
//! do I/O, and never decide on anything but what it is handed: identities were proven by `tls`, ports by `accept`.
//! Called by `forward/inbound.rs`, by `forward/outbound.rs` for a request to its own pod, and by other programs.

mod connections;
mod inbound;

pub use connections::{Connections, Guard, Open};
pub use inbound::{Allow, Connection, Denial, Inbound, InboundSpec, PortPolicy, TlsKind, Verdict};

#[cfg(test)]
mod tests;
