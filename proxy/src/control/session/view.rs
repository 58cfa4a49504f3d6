//! Whether both ends agree: the proxy's side of the comparison that [`v1::View`] describes.
//!
//! Decides whether what this proxy was told of everything that it wants is what the control plane says of it now. The question
//! and the answer travel on the ADS stream itself, so their place in it says what either end can know:
//! - what was said before the question has been heard before the answer was made: a response that the control plane still
//!   waits to have answered, although it was answered before the question, shows that the answer was lost;
//! - what was told before the view has been read before it: a response in flight that never came was lost;
//! - what was said after the question is not in the answer: then, and while a response is rightly under way, nothing can be
//!   concluded of the type, and the question is to be asked again.
//!
//! A resource that was rejected counts with the version that was: it has been told, and telling it again would not mend it.

use std::fmt;

use prost::{Message, Name};
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Status};
use tulle_api::{Digest, VIEW, v1};

use super::{INVALID_ARGUMENT, Session, Subscription};

/// What a comparison came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compared {
    Equal,
    /// Too much was under way; to be asked again.
    Unsettled,
    /// By type; something was lost. The stream is to be opened anew.
    Different(Vec<Difference>),
    /// The control plane does not know of views.
    Unsupported,
}

/// In what both ends differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    pub type_url: String,
    why: Why,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Why {
    ResponseLost,
    AnswerLost,
    Unanswered,
    Versions { ours: Digest, theirs: Digest },
    Unreadable,
}

// === impl Session ===

impl Session {
    /// Asks what the control plane has to say of everything that is wanted; said after all else that is to be said.
    pub fn ask_view(&mut self) {
        self.ask_view = true;
    }

    /// Compares, if the response is a view. Nothing else is to be done with it then than what [`Self::answer_view`] says.
    pub fn compare(&mut self, response: &DeltaDiscoveryResponse) -> Option<Compared> {
        if response.type_url != v1::View::type_url() {
            return None;
        }
        if response.removed_resources.iter().any(|name| name == VIEW) {
            return Some(Compared::Unsupported);
        }
        let body = response.resources.first().and_then(|view| view.resource.as_ref());
        let Some(view) = body.and_then(|body| v1::View::decode(&*body.value).ok()) else {
            let difference = Difference { type_url: v1::View::type_url(), why: Why::Unreadable };
            return Some(Compared::Different(vec![difference]));
        };
        let mut differences = Vec::new();
        let mut is_settled = true;
        let nothing = v1::TypeView::default();
        let of_type = |type_url: &str| view.types.iter().find(|one| one.type_url == type_url);
        for (type_url, subscription) in &self.types {
            match subscription.compare(of_type(type_url).unwrap_or(&nothing)) {
                Ok(()) => {}
                Err(Some(why)) => differences.push(Difference { type_url: type_url.clone(), why }),
                Err(None) => is_settled = false,
            }
        }
        for theirs in view.types.iter().filter(|one| !self.types.contains_key(&one.type_url)) {
            let (ours, theirs_digest) = (Digest::default(), digest(theirs));
            let why = Why::Versions { ours, theirs: theirs_digest };
            differences.push(Difference { type_url: theirs.type_url.clone(), why });
        }
        Some(match (differences.is_empty(), is_settled) {
            (false, _) => Compared::Different(differences),
            (true, false) => Compared::Unsettled,
            (true, true) => Compared::Equal,
        })
    }

    /// What the control plane is told of a comparison: an ACK, a NACK, or nothing yet.
    pub fn answer_view(
        &self,
        response: &DeltaDiscoveryResponse,
        compared: &Compared,
    ) -> Option<DeltaDiscoveryRequest> {
        let error_detail = match compared {
            Compared::Equal => None,
            Compared::Unsettled | Compared::Unsupported => return None,
            Compared::Different(differences) => {
                let message = differences.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                Some(Status { code: INVALID_ARGUMENT, message, details: Vec::new() })
            }
        };
        Some(DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail,
            ..DeltaDiscoveryRequest::default()
        })
    }

    /// The question, if it is due; what is said from now on comes after it.
    pub(super) fn view_request(&mut self) -> Option<DeltaDiscoveryRequest> {
        if !std::mem::take(&mut self.ask_view) {
            return None;
        }
        for subscription in self.types.values_mut() {
            subscription.said_since = false;
            subscription.answered_since = false;
        }
        Some(DeltaDiscoveryRequest {
            node: std::mem::take(&mut self.first).then(|| self.node.clone()),
            type_url: v1::View::type_url(),
            resource_names_subscribe: vec![VIEW.to_owned()],
            ..DeltaDiscoveryRequest::default()
        })
    }
}

// === impl Subscription ===

impl Subscription {
    /// `Err(None)`: cannot be said yet.
    fn compare(&self, theirs: &v1::TypeView) -> Result<(), Option<Why>> {
        if !theirs.in_flight.is_empty() {
            return Err(match (self.heard == theirs.in_flight, self.answered_since) {
                (false, _) => Some(Why::ResponseLost),
                (true, false) => Some(Why::AnswerLost),
                (true, true) => None,
            });
        }
        if self.said_since || !self.subscribe.is_empty() || !self.unsubscribe.is_empty() {
            return Err(None);
        }
        let mut ours = Digest::default();
        for name in &self.wanted {
            if self.unanswered.contains(name) || self.again.contains(name) {
                return Err(Some(Why::Unanswered));
            }
            let told = self.rejected.get(name).or_else(|| self.held.get(name));
            ours.add(name, told.map(String::as_str));
        }
        let theirs = digest(theirs);
        if ours == theirs { Ok(()) } else { Err(Some(Why::Versions { ours, theirs })) }
    }
}

fn digest(view: &v1::TypeView) -> Digest {
    Digest { names: view.names, hash: view.hash }
}

// === impl Difference ===

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.type_url.rsplit('.').next().unwrap_or(&self.type_url);
        match &self.why {
            Why::ResponseLost => write!(f, "{kind}: a response never came"),
            Why::AnswerLost => write!(f, "{kind}: the answer to a response never arrived"),
            Why::Unanswered => write!(f, "{kind}: a question has not been answered"),
            Why::Versions { ours, theirs } if ours.names != theirs.names => {
                write!(f, "{kind}: {} names here, {} there", ours.names, theirs.names)
            }
            Why::Versions { ours, .. } => write!(f, "{kind}: other versions of {} names", ours.names),
            Why::Unreadable => write!(f, "{kind}: cannot be read"),
        }
    }
}
