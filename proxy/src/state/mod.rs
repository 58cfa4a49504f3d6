//! Plain data that the rooms read: what the control plane has told this proxy, as a snapshot.
//!
//! `control` is the only writer; everything here is replaced, never changed in place, except what a
//! service and its endpoints must carry across updates.

mod info;
mod name;

pub use info::{
    AddressInfo, AddressTarget, EndpointInfo, EndpointsInfo, HostPort, MeshInfo, Mode, Peer, Protocol,
    ServiceInfo, ServicePort, WorkloadInfo,
};
pub use name::{InvalidName, ObjectName};
