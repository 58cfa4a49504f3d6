//! RequestAuthentications, as the proxy of a workload is told of them, and what is found wrong of what they name.

use std::collections::BTreeSet;

use tulle_api::v1;

use super::build::{Context, Serving};
use super::targets::spoken;
use crate::finding::Notes;
use crate::index::Index;
use crate::object::{Authentication, Kind, NamespacedName};

// === impl Context ===

impl Context<'_> {
    /// What RequestAuthentications say of a workload that serves these. Where a rule's requests cannot be told from others on arrival, these
    /// others need a token too: never fewer than were meant.
    pub(super) fn authentications(
        &self,
        workload: &NamespacedName,
        serving: &[Serving],
    ) -> Vec<v1::Authentication> {
        let mut all: Vec<v1::Authentication> = Vec::new();
        for one in spoken(self.index, workload, serving, Kind::RequestAuthentication) {
            let Some(says) = one.policy.authentication() else { continue };
            let new = v1::Authentication {
                name: one.policy.name.to_string(),
                ports: one.ports_on_the_wire(),
                routes: one.routes.clone(),
                issuers: says.issuers.clone(),
                required: says.required,
                dry_run: says.dry_run,
            };
            put(&mut all, new);
        }
        all
    }
}

/// Beside those that are there; one that differs in its ports alone is put together with them.
fn put(all: &mut Vec<v1::Authentication>, new: v1::Authentication) {
    let is_same = |known: &&mut v1::Authentication| known.name == new.name && known.routes == new.routes;
    match all.iter_mut().find(is_same) {
        Some(known) if known.ports.is_empty() || new.ports.is_empty() => known.ports.clear(),
        Some(known) => {
            let both: BTreeSet<u32> = known.ports.iter().chain(&new.ports).copied().collect();
            known.ports = both.into_iter().collect();
        }
        None => all.push(new),
    }
}

/// Tells of Services that are to serve keys and are not there.
pub(super) fn findings(index: &Index, says: &Authentication, notes: &mut Notes) {
    for (at, name, number) in says.services() {
        let at = format!("spec.issuers[{at}].jwks.service");
        match index.service(&name) {
            None => notes.error(
                format!("{at}.name"),
                format!("there is no Service {name}: the keys cannot be fetched, and who brings a token of the issuer gets 503"),
                "write the Service, or correct its name and namespace",
            ),
            Some(service) if service.port(number).is_none() => notes.error(
                format!("{at}.port"),
                format!("Service {name} has no port {number}: the keys cannot be fetched"),
                "the Service's own port, not that which the program listens on",
            ),
            Some(_) => {}
        }
    }
}
