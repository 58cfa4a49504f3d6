//! How the endpoints of a port are asked whether they serve.

use std::time::Duration;

use http::uri::{Authority, PathAndQuery};

/// An active health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    pub question: Question,
    /// From the begin of one check to that of the next, give or take a tenth; more than 0.
    pub interval: Duration,
    /// How long one may take as a whole; more than 0.
    pub timeout: Duration,
    /// How many in a row must pass until an unhealthy endpoint is healthy; at least 1.
    pub healthy_threshold: u32,
    /// How many in a row must fail until a healthy endpoint is unhealthy; at least 1.
    pub unhealthy_threshold: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// GET; an answer of 200–399 passes.
    Http {
        path: PathAndQuery,
        /// `None`: `<service>.<namespace>`.
        host: Option<Authority>,
    },
    /// `grpc.health.v1.Health/Check` about a service, or the whole server if that is empty; SERVING passes.
    Grpc { service: Box<str> },
    /// A connection, with its handshake where the endpoint is in the mesh.
    Tcp,
}
