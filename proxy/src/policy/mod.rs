//! Who may connect, and what may be reached outside the mesh.
//!
//! Decides, for one inbound connection and for each request on it, whether this workload's policy lets it in, and names the rule that did or
//! the reason that did not; and likewise for a connection or request that leaves the mesh. [`Inbound`] and [`Egress`] are
//! compiled when a policy arrives and evaluated without allocation, but for requests whose path is not written plainly; [`Externals`] says who else
//! is asked about a request; [`Connections`] holds every open connection, so that each is judged anew when the policy changes. It must never do I/O,
//! and never decide on anything but what it is handed:
//! identities were proven by `tls`, ports and original destinations by `accept`. Called by `forward/inbound.rs`, by
//! `forward/outbound.rs` for a request to its own pod or out of the mesh, and by other programs.

mod access;
mod claims;
mod connections;
mod egress;
mod external;
mod host;
mod inbound;
mod path;
mod rules;
mod shown;
mod text;

pub use access::{
    AccessAction, AccessPolicy, AccessRule, Condition, GrpcMethod, Operation, RouteScope, Source, Subject,
};
pub use claims::Claims;
pub use connections::{Connections, Guard, Kept, Open};
pub use egress::{Action, Egress, EgressRule, EgressSpec, Name, Names, Outside};
#[cfg(test)]
pub(crate) use external::example as external_example;
pub use external::{About, External, ExternalSpec, Externals};
pub use inbound::{
    Allow, Connection, Denial, Inbound, InboundSpec, Judged, PortPolicy, TlsKind, Unspoken, Verdict,
    is_default,
};
pub use path::{InvalidTemplate, PathText, Template, Unclear};
pub use rules::{Requested, Scope};
pub use shown::{Question, in_force};
pub use text::{Text, is_taken_for};

#[cfg(test)]
mod tests;
