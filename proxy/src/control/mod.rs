//! Everything that comes from the control plane; the only writer of `state`.
//!
//! Runs on the control thread: the certificate ([`identity`]), the ADS stream ([`ads`] carries what [`session`] says,
//! [`decode`] compiles what comes, [`apply`] puts it to use, as far as [`gate`] lets it), the registration ([`report`]), and where spans go, which
//! the mesh may say ([`collector`]), and the keys of tokens' issuers ([`jwks`]).

pub mod ads;
pub mod apply;
pub mod balancers;
pub mod channel;
pub mod collector;
pub mod decode;
pub mod gate;
pub mod identity;
pub mod jwks;
mod load;
pub mod report;
pub mod session;
mod taps;
