//! The delta ADS server: [`session`] decides, the shell (`serve`) carries it out.
//!
//! Proxies subscribe by name; a resource is encoded once, when the model that holds it is built, and shared by
//! every stream that is told about it.

pub mod caller;
mod nodes;
mod proxies;
mod serve;
pub mod session;

use std::sync::Arc;

use tulle_api::ResourceType;

pub use self::caller::Caller;
pub use self::nodes::{Nodes, Standing};
pub use self::proxies::{Connected, Proxies, RejectedResource};
pub use self::serve::Ads;
pub use self::session::Session;
use crate::model::{Encoded, Model};

/// The model as a stream sees it: resources by type and name.
pub trait View {
    /// `None`: there is no such resource.
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>>;
}

impl View for Model {
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        Self::get(self, resource_type, name)
    }
}
