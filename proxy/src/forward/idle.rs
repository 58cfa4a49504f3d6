//! A request of whose bodies nothing has passed for too long, in neither direction.
//!
//! What passes is counted anyway; here it is looked at now and then whether that has grown. It never says so too early, and at most an
//! eighth of the time too late. Called by `deadline` until there is an answer, then by the answer's body.

use std::sync::Arc;
use std::time::Duration;

use super::fault::Fault;
use crate::telemetry::Reason;
use crate::wire::Transfer;

/// What is watched of one request.
#[derive(Clone, Debug)]
pub(super) struct Idle {
    limit: Duration,
    /// `None`: the request has no body.
    up: Option<Arc<Transfer>>,
    down: Arc<Transfer>,
}

/// How often it is looked at within the time.
const LOOKS: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(1);

// === impl Idle ===

impl Idle {
    /// `up`: what passes of the request's body.
    pub(super) fn new(limit: Duration, up: Option<Arc<Transfer>>) -> Self {
        Self { limit, up, down: Arc::default() }
    }

    /// Where what passes of the response's body is to be counted.
    pub(super) fn down(&self) -> Arc<Transfer> {
        Arc::clone(&self.down)
    }

    /// Resolves when nothing has passed for so long.
    pub(super) async fn over(&self) -> Fault {
        let look = (self.limit / LOOKS).max(SHORTEST);
        let (mut known, mut looked) = (self.passed(), 0);
        while looked < LOOKS {
            tokio::time::sleep(look).await;
            let passed = self.passed();
            looked = if passed == known { looked + 1 } else { 0 };
            known = passed;
        }
        Fault::maybe(Reason::IdleTimeout, format!("nothing of a body for {:?}", self.limit))
    }

    fn passed(&self) -> [u64; 2] {
        [self.up.as_ref().map_or(0, |up| up.bytes()), self.down.bytes()]
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::*;
    use crate::wire::Body;

    async fn pass(transfer: &Arc<Transfer>) {
        let body = Body::full(Bytes::from_static(b"x")).counted(Arc::clone(transfer));
        body.collect().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_moves_is_never_idle_whichever_side_it_is() {
        let up = Arc::<Transfer>::default();
        let idle = Idle::new(Duration::from_secs(8), Some(Arc::clone(&up)));
        let started = Instant::now();
        let over = {
            let idle = idle.clone();
            tokio::spawn(async move {
                idle.over().await;
                Instant::now()
            })
        };
        for round in 0..20 {
            tokio::time::sleep(Duration::from_millis(7900)).await;
            pass(if round % 2 == 0 { &up } else { &idle.down }).await;
        }
        let silent = started + Duration::from_millis(7900 * 20);
        let waited = over.await.unwrap() - silent;
        assert!((8000..=9000).contains(&waited.as_millis()), "{waited:?}");
    }
}
