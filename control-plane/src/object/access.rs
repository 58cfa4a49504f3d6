//! The policies that are about what comes in at workloads: their name, their age, what they are attached to, and what they say.
//!
//! All kinds of them are kept, found and judged alike; what each says is read in a room of its own.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_api::v1;

use super::authentication::Authentication;
use super::authorization::Authorization;
use super::external::External;
use super::route::created;
use super::target::{AccessTarget, Attachable, read_targets};
use super::{Kind, NamespacedName, ObjectKey};
use crate::finding::Notes;
use crate::kinds::{self, AccessTargetRef, Mtls, PolicyMode};

/// A policy about what comes in at workloads, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Access {
    /// Which kind of them it is.
    pub kind: Kind,
    /// Its own name; targets share its namespace, and it is for workloads of that alone.
    pub name: NamespacedName,
    /// Seconds since 1970; none (newest of all) unless the object says.
    pub created: Option<i64>,
    /// Of the spec that this is, where an API server counts them.
    pub generation: Option<i64>,
    /// Each once, in the order of `targetRefs`.
    pub targets: Vec<AccessTarget>,
    /// What holds there.
    pub says: AccessSays,
}

/// What a policy says.
#[derive(Debug, Clone, PartialEq)]
pub enum AccessSays {
    /// An AuthorizationPolicy: who may do what.
    Authorization(Box<Authorization>),
    /// A PeerAuthentication: whether clients must prove who they are.
    Mtls(v1::MtlsMode),
    /// One in dry run: whether they would have to.
    MtlsDryRun(v1::MtlsMode),
    /// An ExternalAuthorization: who else is asked.
    External(Box<External>),
    /// A RequestAuthentication: whose tokens are taken.
    Tokens(Authentication),
}

// === impl Access ===

impl Access {
    pub(super) fn read_authorization(object: &kinds::AuthorizationPolicy, notes: &mut Notes) -> Self {
        let refs = &object.spec.target_refs;
        let says = |name: &NamespacedName, notes: &mut Notes| {
            AccessSays::Authorization(Box::new(Authorization::read(name, &object.spec, notes)))
        };
        Self::read(Kind::AuthorizationPolicy, &object.metadata, refs, Attachable::Routes, says, notes)
    }

    pub(super) fn read_peers(object: &kinds::PeerAuthentication, notes: &mut Notes) -> Self {
        let refs = &object.spec.target_refs;
        let mode = mode(object.spec.mtls);
        let says = |_: &NamespacedName, _: &mut Notes| match object.spec.mode {
            PolicyMode::Enforce => AccessSays::Mtls(mode),
            PolicyMode::DryRun => AccessSays::MtlsDryRun(mode),
        };
        Self::read(Kind::PeerAuthentication, &object.metadata, refs, Attachable::NoRoutes, says, notes)
    }

    pub(super) fn read_external(object: &kinds::ExternalAuthorization, notes: &mut Notes) -> Self {
        let refs = &object.spec.target_refs;
        let says = |name: &NamespacedName, notes: &mut Notes| {
            AccessSays::External(Box::new(External::read(name, &object.spec, notes)))
        };
        Self::read(Kind::ExternalAuthorization, &object.metadata, refs, Attachable::Routes, says, notes)
    }

    pub(super) fn read_tokens(object: &kinds::RequestAuthentication, notes: &mut Notes) -> Self {
        let refs = &object.spec.target_refs;
        let says = |name: &NamespacedName, notes: &mut Notes| {
            AccessSays::Tokens(Authentication::read(name, &object.spec, notes))
        };
        Self::read(Kind::RequestAuthentication, &object.metadata, refs, Attachable::Routes, says, notes)
    }

    fn read(
        kind: Kind,
        metadata: &ObjectMeta,
        refs: &[AccessTargetRef],
        attachable: Attachable,
        says: impl FnOnce(&NamespacedName, &mut Notes) -> AccessSays,
        notes: &mut Notes,
    ) -> Self {
        let name = NamespacedName::of(metadata);
        let targets = read_targets(&name, refs, attachable, notes);
        let says = says(&name, notes);
        Self { kind, created: created(metadata), generation: metadata.generation, targets, says, name }
    }

    /// What is in force in place of a policy of that kind that cannot be read and never could, as far as it can be told what it is attached
    /// to; none, if nothing is. `says` gives what holds there. `refs` are those of its own namespace that can be read, and `written` is
    /// whether it names any at all.
    pub(crate) fn closed(
        kind: Kind,
        name: NamespacedName,
        refs: &[AccessTargetRef],
        written: bool,
        says: AccessSays,
    ) -> Option<Self> {
        let mut notes = Notes::default();
        let targets = match refs {
            [] if written => Vec::new(),
            refs => {
                let mut targets = read_targets(&name, refs, Attachable::Routes, &mut notes);
                // Whose labels cannot be read may be anybody.
                let is_lost = |one: &AccessTargetRef| {
                    one.kind == "Workload"
                        && one.selector.is_some()
                        && read_targets(
                            &name,
                            std::slice::from_ref(one),
                            Attachable::Routes,
                            &mut Notes::default(),
                        )
                        .is_empty()
                };
                if refs.iter().any(is_lost) {
                    targets.push(AccessTarget::namespace(&name));
                }
                targets
            }
        };
        (!targets.is_empty()).then_some(Self { kind, created: None, generation: None, targets, says, name })
    }

    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, name: self.name.clone() }
    }

    /// The order in which policies on the same target win: oldest first, then by `<namespace>/<name>` (GEP-713).
    pub fn precedence(&self) -> impl Ord + use<> {
        (self.created.is_none(), self.created, self.name.to_string())
    }

    /// What it says, of an AuthorizationPolicy.
    pub fn authorization(&self) -> Option<&Authorization> {
        match &self.says {
            AccessSays::Authorization(says) => Some(says),
            _ => None,
        }
    }

    /// What it says, of a PeerAuthentication that is in force.
    pub fn mtls(&self) -> Option<v1::MtlsMode> {
        match self.says {
            AccessSays::Mtls(mode) => Some(mode),
            _ => None,
        }
    }

    /// What it says, of a PeerAuthentication in dry run.
    pub fn mtls_in_dry_run(&self) -> Option<v1::MtlsMode> {
        match self.says {
            AccessSays::MtlsDryRun(mode) => Some(mode),
            _ => None,
        }
    }

    /// What it says, of an ExternalAuthorization.
    pub fn external(&self) -> Option<&External> {
        match &self.says {
            AccessSays::External(says) => Some(says),
            _ => None,
        }
    }

    /// What it says, of a RequestAuthentication.
    pub fn authentication(&self) -> Option<&Authentication> {
        match &self.says {
            AccessSays::Tokens(says) => Some(says),
            _ => None,
        }
    }

    /// Whether one of the two holds where both are attached: both are of one kind, and neither or each is in dry run.
    pub(crate) fn rivals(&self, other: &Self) -> bool {
        self.kind == other.kind && std::mem::discriminant(&self.says) == std::mem::discriminant(&other.says)
    }
}

/// As the wire has it.
pub(super) fn mode(written: Mtls) -> v1::MtlsMode {
    match written {
        Mtls::Permissive => v1::MtlsMode::Permissive,
        Mtls::Strict => v1::MtlsMode::Strict,
        Mtls::Off => v1::MtlsMode::Off,
    }
}
