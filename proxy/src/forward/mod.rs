//! A connection's and a request's whole way, from accept to the last byte.
//!
//! Read [`outbound`] and [`inbound`] first: they call the rooms in order. What both share lies beside them: sending a
//! request to an endpoint ([`exchange`]), finding out who speaks
//! first ([`first`]), relaying opaque bytes ([`opaque`]), what is told about a request when it is
//! over ([`record`]), copies for backends that nobody waits for ([`mirror`]), when a request must be over ([`deadline`], [`idle`]), faults on purpose ([`inject`]), sessions ([`session`]), whose token a request carries ([`authenticate`]), programs that are asked whether a request is let in ([`external`]), and what the proxy answers itself ([`fault`]). Called by `runtime`; nothing imports this room.

mod admit;
mod again;
mod asked;
mod authenticate;
mod context;
mod deadline;
mod egress;
mod exchange;
mod external;
mod fault;
mod filters;
mod first;
mod headers;
mod idle;
mod in_flight;
pub mod inbound;
mod inject;
mod limited;
mod mirror;
mod opaque;
pub mod outbound;
mod outcome;
mod pushback;
mod queue;
mod record;
mod routed;
mod session;
#[cfg(test)]
mod sizes;
mod sniff;
mod target;

pub use context::{OwnEndpoints, Proxy, Settings, Worker};
pub use exchange::refusal;
pub use headers::is_grpc;
pub use record::refused;

#[cfg(test)]
mod tests;
