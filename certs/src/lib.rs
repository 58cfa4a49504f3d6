//! Identities and what proves them: SPIFFE IDs, keys, certificates, trust bundles, TLS configurations,
//! join tokens.
//!
//! Decides who a peer is and whether it may speak at all. Never does I/O, never keeps a clock of its own
//! (times are passed in; a handshake asks the time provider it was given), and never shows a private key:
//! not in `Debug`, not in an error, not in a log. Used by the proxy (both ends of mTLS, bootstrap), by the
//! control plane (the certificate authority, its TLS port) and by the command line.
//!
//! | module | holds |
//! | --- | --- |
//! | [`id`] | trust domains and SPIFFE IDs |
//! | [`key`] | ECDSA private keys and certificate signing requests |
//! | [`pem`] | tolerant PEM reading, chain order |
//! | [`bundle`] | the roots of a trust domain, and pins of a root's public key |
//! | [`issue`] | the certificate authority |
//! | [`lineage`] | which join token a certificate goes back to |
//! | [`creds`] | one identity's certificate, key and bundle as checked TLS configurations |
//! | [`bootstrap`] | TLS to the control plane before there is an identity |
//! | [`outside`] | TLS to servers outside the mesh |
//! | [`refusal`] | why a peer was refused, as a stable word |
//! | [`alpn`] | the protocol names that mesh TLS is told by |
//! | [`renewal`] | when to renew |
//! | [`serving`] | a small authority for HTTPS servers of our own that others than the mesh call |
//! | [`token`] | join tokens and the token file |
//! | [`pod_token`] | the tokens of service accounts of Kubernetes, unverified |
//! | [`jwt`] | the tokens of others that requests carry, and their signatures |
//! | [`jwks`] | the sets of keys by which those are verified |
#![warn(missing_docs)]

pub mod alpn;
pub mod bootstrap;
pub mod bundle;
pub mod creds;
pub mod id;
pub mod issue;
pub mod jwks;
pub mod jwt;
pub mod key;
pub mod lineage;
pub mod outside;
pub mod pem;
pub mod pod_token;
pub mod refusal;
pub mod renewal;
pub mod serving;
pub mod token;

#[cfg(test)]
mod hygiene;
mod tls;
mod verified;
mod verify;
mod x509;

pub use alpn::Alpn;
pub use bundle::{Pin, TrustBundle};
pub use creds::Creds;
pub use id::{SpiffeId, TrustDomain, control_plane_id};
pub use key::PrivateKey;
pub use lineage::Lineage;
pub use pod_token::PodToken;
pub use refusal::{Refusal, refusal_of, refusal_of_io, refused_by_peer};
pub use verify::peer_id;
pub use x509::{Names, der_certificates, names, validity};
