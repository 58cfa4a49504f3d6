//! The delta ADS server: [`session`] decides, the shell (`serve`) carries it out.
//!
//! Proxies subscribe by name; a resource is encoded once, when the model that holds it is built, and shared by
//! every stream that is told about it.

pub mod caller;
pub mod session;

use std::sync::Arc;

use prost_types::Any;
use tulle_api::ResourceType;

pub use session::Session;

/// A resource as it goes out.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// A hash of the bytes: equal on all replicas and across restarts.
    pub version: Arc<str>,
    /// The message with its type URL.
    pub body: Any,
}

/// The model as a stream sees it: resources by type and name.
pub trait View {
    /// `None`: there is no such resource.
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>>;
}

impl Encoded {
    /// Bytes on the wire, nearly.
    fn len(&self) -> usize {
        self.body.value.len() + self.body.type_url.len() + self.version.len()
    }
}
