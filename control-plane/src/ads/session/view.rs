//! What a client is told to compare: everything that it is subscribed to, as the model has it now.
//!
//! Decides what the digest covers: the model's own word on each name, never what was told before, since that is what may be
//! wrong. It must stay cheap: every proxy asks twice a minute. Called by [`Session::poll`] when there is nothing else to say.

use prost::{Message, Name};
use prost_types::Any;
use tulle_api::discovery::{DeltaDiscoveryResponse, Resource, Status};
use tulle_api::{Digest, VIEW, v1};

use super::{MAX_FAULT_BYTES, Session, View, cut};

/// A client's verdict on a [`v1::View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compared {
    /// It holds what the model says.
    Equal,
    /// It does not, in its own words, and will open its stream anew.
    Different(String),
}

// === impl Compared ===

impl Compared {
    pub(super) fn read(error: Option<&Status>) -> Self {
        error.map_or(Self::Equal, |error| Self::Different(cut(&error.message, MAX_FAULT_BYTES).to_owned()))
    }
}

// === impl Session ===

impl Session {
    /// What this stream's client ought to hold.
    pub(super) fn view(&mut self, view: &impl View) -> DeltaDiscoveryResponse {
        let types = self.channels.iter().filter(|(_, channel)| !channel.subscriptions.is_empty());
        let types = types.map(|(resource_type, channel)| {
            let mut digest = Digest::default();
            for (name, subscription) in &channel.subscriptions {
                let encoded = if subscription.permitted { view.get(*resource_type, name) } else { None };
                digest.add(name, encoded.as_ref().map(|encoded| &*encoded.version));
            }
            v1::TypeView {
                type_url: resource_type.type_url().to_owned(),
                names: digest.names,
                hash: digest.hash,
                in_flight: channel
                    .in_flight
                    .as_ref()
                    .map(|in_flight| in_flight.nonce.to_string())
                    .unwrap_or_default(),
            }
        });
        let value = v1::View { types: types.collect() }.encode_to_vec();
        self.last_nonce += 1;
        let resource = Resource {
            name: VIEW.to_owned(),
            // Each is another: it says when it was made.
            version: self.last_nonce.to_string(),
            resource: Some(Any { type_url: v1::View::type_url(), value }),
            aliases: Vec::new(),
        };
        DeltaDiscoveryResponse {
            resources: vec![resource],
            type_url: v1::View::type_url(),
            nonce: self.last_nonce.to_string(),
            ..DeltaDiscoveryResponse::default()
        }
    }
}
