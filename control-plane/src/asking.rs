//! Asking the connected proxies which endpoints they use, for people who compare (`tulle diagnostics endpoints`).
//!
//! Decides whom to ask and how long to wait. It must never hold up a proxy or be held up by one: each gets at most one question
//! at a time, and who does not answer in time is said not to have. Called by [`crate::admin`]; the streams that carry questions and
//! answers are [`crate::report`]'s.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tulle_api::v1;

/// A proxy answers at once; a network is given this long.
const PATIENCE: Duration = Duration::from_secs(2);

/// The proxies with an open Report stream. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reporters(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    streams: AtomicU64,
    connected: Mutex<BTreeMap<u64, Reporter>>,
}

/// One proxy that can be asked.
#[derive(Debug, Clone)]
struct Reporter {
    node: String,
    identity: String,
    questions: mpsc::Sender<Question>,
}

/// To be put to one proxy.
#[derive(Debug)]
pub(crate) struct Question {
    /// `<namespace>/<name>`; empty: every service in use.
    pub(crate) service: String,
    pub(crate) answer: oneshot::Sender<v1::EndpointsInUse>,
}

/// What a proxy has answered.
#[derive(Debug)]
pub struct Answered {
    /// `<namespace>/<workload>`.
    pub node: String,
    /// From its certificate.
    pub identity: String,
    /// `None`: nothing came in time.
    pub in_use: Option<v1::EndpointsInUse>,
}

/// A stream's place among those that are asked; gives it up when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    reporters: Reporters,
    id: u64,
}

// === impl Reporters ===

impl Reporters {
    /// A proxy that can be asked from now on, and the questions to it.
    pub(crate) fn enter(&self, node: &str, identity: &str) -> (Place, mpsc::Receiver<Question>) {
        let (questions, asked) = mpsc::channel(1);
        let reporter = Reporter { node: node.to_owned(), identity: identity.to_owned(), questions };
        let id = self.0.streams.fetch_add(1, Ordering::Relaxed);
        self.0.connected.lock().insert(id, reporter);
        (Place { reporters: self.clone(), id }, asked)
    }

    /// Asks everybody at once; by name, then in the order in which they came.
    pub async fn ask(&self, service: &str) -> Vec<Answered> {
        let reporters: Vec<Reporter> = self.0.connected.lock().values().cloned().collect();
        let mut answers = join_all(reporters.into_iter().map(|reporter| reporter.ask(service))).await;
        answers.sort_by(|a, b| a.node.cmp(&b.node));
        answers
    }
}

// === impl Reporter ===

impl Reporter {
    async fn ask(self, service: &str) -> Answered {
        let Self { node, identity, questions } = self;
        let (answer, answered) = oneshot::channel();
        let question = Question { service: service.to_owned(), answer };
        let asked = async {
            questions.send(question).await.ok()?;
            answered.await.ok()
        };
        let in_use = tokio::time::timeout(PATIENCE, asked).await.ok().flatten();
        Answered { node, identity, in_use }
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        self.reporters.0.connected.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn everybody_is_asked_and_who_says_nothing_is_named() {
        let reporters = Reporters::default();
        let (_silent, _unread) = reporters.enter("shop/web", "spiffe://a/ns/shop/sa/web");
        let (gone, _) = reporters.enter("shop/gone", "spiffe://a/ns/shop/sa/gone");
        drop(gone);
        let (_place, mut questions) = reporters.enter("shop/cart", "spiffe://a/ns/shop/sa/cart");
        let answering = async {
            let Question { service, answer } = questions.recv().await.unwrap();
            let services = vec![v1::ServiceEndpoints { service, endpoints: Vec::new() }];
            answer.send(v1::EndpointsInUse { services, ..Default::default() }).unwrap();
        };
        let (answers, ()) = tokio::join!(reporters.ask("shop/orders"), answering);
        let said = |answered: &Answered| {
            let services = answered.in_use.as_ref().map(|in_use| in_use.services.len());
            (answered.node.clone(), services)
        };
        let answers: Vec<_> = answers.iter().map(said).collect();
        assert_eq!(answers, [("shop/cart".to_owned(), Some(1)), ("shop/web".to_owned(), None)]);
    }
}
