//! The protobufs that Tulle's halves speak, generated at build time without `protoc`.
//!
//! - [`discovery`]: the delta ADS envelope, byte for byte that of xDS v3.
//! - [`ext_authz`]: the question whether a request is let in, byte for byte that of Envoy's external authorization.
//! - [`v1`]: our resources, and what proxies report.
//! - [`ca`]: Istio's certificate service.
//! - [`workload`]: the SPIFFE Workload API.
//!
//! And the few rules that both must read alike: [`log_filter`], [`openmetrics`], [`is_from_a_page`], [`port_range`], [`OPAQUE_PORTS`],
//! [`PROXY_PORTS`].

/// Laid out by package, since generated code of one package refers to another's by relative path.
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all)]
mod generated {
    pub mod envoy {
        pub mod service {
            pub mod auth {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.auth.v3");
                }
            }
            pub mod discovery {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.discovery.v3");
                }
            }
        }
    }
    pub mod istio {
        pub mod v1 {
            pub mod auth {
                tonic::include_proto!("istio.v1.auth");
            }
        }
    }
    pub mod tulle {
        pub mod v1 {
            tonic::include_proto!("tulle.v1");
        }
    }
    /// Of no package: prost calls that file `_.rs`.
    pub mod workload {
        tonic::include_proto!("_");
    }
}

mod access_log;
mod digest;
mod failure;
mod latency;
mod log;
pub mod openmetrics;
mod page;
mod ports;
mod resource_type;

pub use access_log::{
    ACCESS_LOG_ALL, ACCESS_LOG_FIELDS, ACCESS_LOG_TEMPLATE, AccessLogFormat, InvalidAccessLog, TemplatePiece,
    access_log_statuses, nearest,
};
pub use digest::Digest;
pub use failure::request_failed;
pub use generated::envoy::service::auth::v3 as ext_authz;
pub use generated::envoy::service::discovery::v3 as discovery;
pub use generated::istio::v1::auth as ca;
pub use generated::tulle::v1;
pub use generated::workload;
pub use latency::{LATENCY_BOUNDS, Latencies};
pub use log::{InvalidLogLevel, log_filter};
pub use page::is_from_a_page;
pub use ports::{InvalidPorts, port, port_range};
pub use resource_type::ResourceType;

use prost::Name;

/// Ports of protocols in which the server speaks first, or that are not HTTP for sure: what goes there is not looked into, unless somebody says otherwise.
pub const OPAQUE_PORTS: &str = "25,587,3306,4444,5432,6379,9300,11211";

/// The ports of proxies, and some to spare: never an inbound destination, never led to a proxy.
pub const PROXY_PORTS: std::ops::RangeInclusive<u16> = 15_000..=15_090;

/// The one name of the [`v1::Mesh`] resource.
pub const MESH: &str = "mesh";

/// The one name of the [`v1::View`] of a stream.
pub const VIEW: &str = "view";

/// What a regular expression of a route may need when it is compiled, in bytes; and as much again for what is cached as it is matched.
pub const PATTERN_SIZE: usize = 128 * 1024;

/// How many different regular expressions the routes to one service may have.
pub const PATTERNS: usize = 128;

/// The longest path, header or query parameter that regular expressions are tried on, in bytes: what a request costs must not be its
/// client's to choose.
pub const PATTERN_INPUT: usize = 8 * 1024;

/// Whether no filter may change the header of this name, in any case: it frames the message (RFC 9112 §6) or says when its body is
/// sent (RFC 9110 §10.1.1), belongs to the hop (RFC 9110 §7.6.1), says who is asked, which is a rewrite's to change, or is
/// under a name of ours.
pub fn is_protected_header(name: &str) -> bool {
    const PROTECTED: [&str; 10] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    let ours = || name.get(..8).is_some_and(|start| start.eq_ignore_ascii_case("x-tulle-"));
    PROTECTED.iter().any(|one| name.eq_ignore_ascii_case(one)) || ours()
}

/// `type.googleapis.com/<message>`: the type URL that ADS and `google.protobuf.Any` use for `M`.
pub fn type_url<M: Name>() -> String {
    M::type_url()
}
