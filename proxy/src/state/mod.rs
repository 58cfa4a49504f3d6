//! Plain data that the rooms read: what the control plane has told this proxy, as a snapshot.
//!
//! `control` is the only writer. A snapshot is replaced, never changed in place; what must survive an update (a
//! service's endpoints with their load and connections) lives in [`ServiceState`], which stays the same object.

mod connections;
mod first;
mod health;
mod info;
mod name;
mod service;
mod store;
mod traffic;

pub use connections::{Connections, KeepAlive, Limits};
pub use first::{First, Spoken};
pub use health::{HealthCheck, Question};
pub use info::{
    AddressInfo, AddressTarget, EndpointInfo, EndpointsInfo, HostInfo, HostPort, MeshInfo, Mode, OtherPorts,
    Peer, Protocol, ServiceInfo, ServicePort, WorkloadInfo,
};
pub use name::{InvalidName, ObjectName, is_label, is_subdomain};
pub use service::{Answer, ServiceState};
pub use store::{KnownAddress, Snapshot, Store, Unanswered, Want};
pub use traffic::Traffic;
