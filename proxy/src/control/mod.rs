//! Everything that comes from the control plane; the only writer of `state`.

pub mod channel;
pub mod identity;
pub mod session;
