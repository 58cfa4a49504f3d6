//! Whose the token of a service account is: a `TokenReview` of the API server (`authentication.k8s.io/v1`).
//!
//! A token counts if the API server says that it is valid for our audience, and is bound to a pod (which the API server finds to exist):
//! without that a token that was copied out of a pod would be as good for years. Positive answers are remembered for [`REMEMBERED`] by a
//! hash of the token; negative ones for [`REFUSED`] only, since the next try may find what was not there yet: long enough that whoever shows
//! the same bad token again and again asks the API server nothing. What cannot be meant for us is refused
//! without asking, and of one address only [`EACH`] questions are open at a time: what a token says of itself anybody can write, and nobody is to keep the API
//! server busy through this port, or others from being answered. An API server that is away is not a refusal: who asks is told to ask again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use aws_lc_rs::digest::{SHA256, digest};
use foldhash::HashMap;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use prometheus::IntCounterVec;
use tokio::sync::Semaphore;
use tulle_certs::PodToken;
use tulle_certs::token::AUDIENCE;

use super::asked;
use crate::ca::{Bearer, ReviewError, Reviewer};

/// How long a positive answer holds.
const REMEMBERED: Duration = Duration::from_secs(30);
/// How long a negative one holds.
const REFUSED: Duration = Duration::from_secs(3);
/// So many of each are remembered; when there are more, they are forgotten.
const MOST: usize = 10_000;
/// So many questions may be open at the API server; others wait for their turn …
const AT_ONCE: usize = 32;
/// … for so long …
const TURN: Duration = Duration::from_secs(10);
/// … and no more than so many.
const WAITING: usize = 512;
/// So many of them may be of one address: a proxy asks one at a time.
const EACH: usize = 8;
/// Longer tokens are no tokens.
const LONGEST: usize = 16 << 10;

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Asks, and remembers for a while. Shared by all requests.
pub struct Reviews {
    reviews: Api<TokenReview>,
    remembered: Memory<Bearer>,
    /// Why, of tokens that the API server does not vouch for.
    refused: Memory<String>,
    open: Semaphore,
    /// How many questions are open or wait, by where they come from.
    asking: Mutex<HashMap<Option<IpAddr>, usize>>,
    outcomes: IntCounterVec,
}

/// A hash that stands for a token, which is nowhere kept.
type Hash = [u8; 32];

/// What the API server has said of tokens.
struct Memory<T> {
    known: Mutex<HashMap<Hash, (T, Instant)>>,
    lasts: Duration,
}

/// A question that is open or waits.
struct Asking<'r> {
    of: &'r Mutex<HashMap<Option<IpAddr>, usize>>,
    client: Option<IpAddr>,
}

// === impl Reviews ===

impl Reviews {
    /// `outcomes` is told how each ends.
    pub fn new(client: Client, outcomes: IntCounterVec) -> Self {
        for outcome in ["accepted", "remembered", "refused", "unavailable"] {
            outcomes.with_label_values(&[outcome]);
        }
        let open = Semaphore::new(AT_ONCE);
        let asking = Mutex::default();
        let (remembered, refused) = (Memory::lasting(REMEMBERED), Memory::lasting(REFUSED));
        Self { reviews: Api::all(client), remembered, refused, open, asking, outcomes }
    }

    /// The whole of it, at a given time.
    async fn review_at(
        &self,
        token: &str,
        client: Option<IpAddr>,
        now: Instant,
    ) -> Result<Bearer, ReviewError> {
        check(token).map_err(ReviewError::Refused)?;
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(bearer) = self.remembered.get(&hash, now) {
            self.count("remembered");
            return Ok(bearer);
        }
        if let Some(why) = self.refused.get(&hash, now) {
            return Err(ReviewError::Refused(why));
        }
        let status = self.ask(token, client).await.map_err(ReviewError::Unavailable)?;
        match read(&status) {
            Ok(bearer) => {
                self.count("accepted");
                self.remembered.put(hash, bearer.clone(), now);
                Ok(bearer)
            }
            Err(why) => {
                self.refused.put(hash, why.clone(), now);
                Err(ReviewError::Refused(why))
            }
        }
    }

    async fn ask(&self, token: &str, client: Option<IpAddr>) -> Result<TokenReviewStatus, String> {
        let _asking = self.admit(client).ok_or("too many such questions are open")?;
        // Not of the time that the API server has.
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN, self.open.acquire()).await else {
            return Err("too many such questions come before".to_owned());
        };
        let review = TokenReview {
            spec: TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) },
            ..TokenReview::default()
        };
        let answer = asked(self.reviews.create(&PostParams::default(), &review)).await;
        answer.map(|review| review.status.unwrap_or_default()).map_err(|error| error.to_string())
    }

    /// `None`: as many are asking.
    fn admit(&self, client: Option<IpAddr>) -> Option<Asking<'_>> {
        let mut asking = self.asking.lock();
        let all: usize = asking.values().sum();
        let each = asking.get(&client).copied().unwrap_or_default();
        if all >= WAITING || each >= EACH {
            return None;
        }
        asking.insert(client, each + 1);
        Some(Asking { of: &self.asking, client })
    }

    fn count(&self, outcome: &str) {
        self.outcomes.with_label_values(&[outcome]).inc();
    }
}

// === impl Memory ===

impl<T: Clone> Memory<T> {
    fn lasting(lasts: Duration) -> Self {
        Self { known: Mutex::default(), lasts }
    }

    fn get(&self, hash: &Hash, now: Instant) -> Option<T> {
        let known = self.known.lock();
        known.get(hash).filter(|(_, until)| *until > now).map(|(said, _)| said.clone())
    }

    fn put(&self, hash: Hash, said: T, now: Instant) {
        let mut known = self.known.lock();
        if known.len() >= MOST {
            known.retain(|_, (_, until)| *until > now);
        }
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(hash, (said, now + self.lasts));
    }
}

// === impl Asking ===

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut asking = self.of.lock();
        if let Some(count) = asking.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                asking.remove(&self.client);
            }
        }
    }
}

#[tonic::async_trait]
impl Reviewer for Reviews {
    async fn review(&self, token: &str, client: Option<IpAddr>) -> Result<Bearer, ReviewError> {
        let answer = self.review_at(token, client, tokio::time::Instant::now().into_std()).await;
        match &answer {
            Ok(_) => {}
            Err(ReviewError::Refused(_)) => self.count("refused"),
            Err(ReviewError::Unavailable(why)) => {
                self.count("unavailable");
                tracing::warn!(why, "cannot review the token of a service account");
            }
        }
        answer
    }
}

/// Whether a token says that it is of a service account of Kubernetes, and so is none of ours.
pub fn is_of_kubernetes(token: &str) -> bool {
    token.len() <= LONGEST && PodToken::parse(token).is_some()
}

/// What can be said against a token without asking.
fn check(token: &str) -> Result<(), String> {
    if token.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    let token = PodToken::parse(token).ok_or("it is malformed")?;
    if !token.is_for(AUDIENCE) {
        return Err(foreign());
    }
    if token.is_bound_to_a_pod() { Ok(()) } else { Err(unbound()) }
}

fn foreign() -> String {
    format!(
        "its audience is not {AUDIENCE:?}; project one with that audience (`serviceAccountToken`) into the pod"
    )
}

fn unbound() -> String {
    "it is bound to no pod; use the token that is projected into the pod (`serviceAccountToken`)".to_owned()
}

/// Whose the token is, by what the API server says.
fn read(status: &TokenReviewStatus) -> Result<Bearer, String> {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().filter(|why| !why.is_empty());
        return Err(format!("the API server says: {}", why.unwrap_or("it is not valid")));
    }
    // An API server that knows nothing of audiences says none, and then the token is for itself.
    if !status.audiences.iter().flatten().any(|one| one == AUDIENCE) {
        return Err(foreign());
    }
    let user = status.user.clone().unwrap_or_default();
    let name = user.username.clone().unwrap_or_default();
    let account = name.strip_prefix(SERVICE_ACCOUNT).and_then(|account| account.split_once(':'));
    let (namespace, service_account) =
        account.ok_or_else(|| format!("it is that of {name:?}, which is no service account"))?;
    let (Some(pod), Some(_)) = (extra(&user, POD_NAME), extra(&user, POD_UID)) else {
        return Err(unbound());
    };
    Ok(Bearer { namespace: namespace.to_owned(), service_account: service_account.to_owned(), pod })
}

fn extra(user: &UserInfo, key: &str) -> Option<String> {
    let values = user.extra.as_ref()?.get(key)?;
    values.first().filter(|value| !value.is_empty()).cloned()
}

#[cfg(test)]
mod tests;
