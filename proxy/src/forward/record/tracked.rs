//! A response's body on its way to the client: it ends the request's record, and is broken off when its time is over.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use super::{Record, grpc_status};
use crate::forward::admit::{self, UnderWay};
use crate::forward::context::Worker;
use crate::forward::exchange::Bounds;
use crate::forward::fault;
use crate::forward::in_flight::InFlight;
use crate::policy;
use crate::telemetry::Reason;
use crate::wire::http2::{self, Outgoing};
use crate::wire::{Body, BodyError};

/// A response's body that ends its [`Record`] when it ends, breaks, or is dropped.
#[derive(Debug)]
pub(in crate::forward) struct Tracked {
    pub(super) body: Body,
    pub(super) downloaded: u64,
    pub(super) record: Option<Box<Record>>,
    /// What may break it off.
    pub(super) until: Option<Until>,
    pub(super) in_flight: Option<InFlight>,
    /// More of it was asked for and has not come.
    pub(super) waits: bool,
}

/// Resolves, with the reason, when a response that is under way must be broken off.
pub(super) struct Until(Pin<Box<dyn Future<Output = Reason> + Send>>);

// === impl Until ===

impl Until {
    /// `guard`: what it is registered as; `under_way`: what it is judged by once more, and the connection that it came on.
    pub(super) fn new(
        worker: &Arc<Worker>,
        bounds: Option<Box<Bounds>>,
        guard: Option<Arc<policy::Guard>>,
        under_way: Option<(Arc<policy::Guard>, UnderWay)>,
    ) -> Option<Self> {
        if bounds.is_none() && guard.is_none() && under_way.is_none() {
            return None;
        }
        let worker = Arc::clone(worker);
        let (deadline, idle) = bounds.map_or((None, None), |bounds| (bounds.deadline, bounds.idle));
        Some(Self(Box::pin(async move {
            let late = async {
                match deadline {
                    Some((at, reason)) => {
                        tokio::time::sleep_until(at.into()).await;
                        reason
                    }
                    None => std::future::pending().await,
                }
            };
            let idle = async {
                match &idle {
                    Some(idle) => idle.over().await.reason,
                    None => std::future::pending().await,
                }
            };
            let no_longer = async {
                match &under_way {
                    Some((guard, under_way)) => admit::no_longer(&worker, guard, under_way).await.reason,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                reason = late => reason,
                reason = idle => reason,
                reason = no_longer => reason,
                fault = admit::revoked_for_long(&worker, guard.as_deref()) => fault.reason,
            }
        })))
    }
}

impl std::fmt::Debug for Until {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Until")
    }
}

// === impl Tracked ===

impl Tracked {
    /// Whether its client is told in trailers why it is broken off. More data may have been promised by `content-length`: then they
    /// would be malformed (RFC 9113 §8.1.1), and only a reset can end it.
    fn may_end_by_status(&self) -> bool {
        let promised = || self.body.size_hint().exact().is_some_and(|left| left > 0);
        self.record.as_ref().is_some_and(|record| record.ends_with_a_status()) && !promised()
    }

    /// Why it must be broken off, once it must.
    fn poll_reason(&mut self, cx: &mut Context<'_>) -> Poll<Reason> {
        let Some(Until(until)) = &mut self.until else { return Poll::Pending };
        let reason = ready!(until.as_mut().poll(cx));
        self.until = None;
        if let Some(record) = self.record.as_mut().filter(|record| record.grpc) {
            record.grpc_status = Some(u16::from(reason.grpc_status()).into());
        }
        if reason == Reason::RequestTimeout {
            let waits = self.waits;
            self.in_flight.iter_mut().for_each(|in_flight| in_flight.is_late(waits));
        }
        self.end(Some(reason));
        Poll::Ready(reason)
    }

    /// It takes its time: from now on a change of policy may end it. Most are over before, and need not wait for that.
    fn lasts(&mut self, cx: &Context<'_>) {
        let Some(record) = &mut self.record else { return };
        let Some(under_way) = record.lasts() else { return };
        self.until = Until::new(&record.worker, None, None, Some(under_way));
        // Once more, so that it is waited for.
        cx.waker().wake_by_ref();
    }

    fn end(&mut self, reason: Option<Reason>) {
        if let Some(mut record) = self.record.take() {
            if reason.is_none() {
                self.in_flight.iter_mut().for_each(|in_flight| in_flight.is_over(None));
            }
            if record.reason.is_none() {
                record.reason = reason;
            }
            record.end(self.downloaded);
        }
    }
}

impl http_body::Body for Tracked {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let by_status = self.may_end_by_status();
        if let Poll::Ready(reason) = self.poll_reason(cx) {
            if by_status {
                // What its backend would still send is given up.
                self.body = Body::empty();
                return Poll::Ready(Some(Ok(Frame::trailers(fault::grpc_trailers(reason)))));
            }
            return Poll::Ready(Some(Err(BodyError::new(reason.message()))));
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.waits = polled.is_pending();
        if self.waits && self.until.is_none() {
            self.lasts(cx);
        }
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                self.downloaded += frame.data_ref().map_or(0, |data| data.len() as u64);
                if let (Some(trailers), Some(record)) = (frame.trailers_ref(), &mut self.record)
                    && record.grpc
                {
                    record.grpc_status = grpc_status(trailers);
                    let status = record.grpc_status;
                    self.in_flight.iter_mut().for_each(|in_flight| in_flight.is_over(status));
                }
            }
            Some(Err(error)) => {
                self.in_flight.iter_mut().for_each(InFlight::broke);
                let reason = Reason::UpstreamReset;
                // A reset is passed on as what it is; nothing else would tell the client whose fault it is.
                let ends = by_status && !http2::is_reset(error);
                let last = ends.then(|| fault::grpc_trailers(reason));
                if let (Some(_), Some(record)) = (&last, &mut self.record) {
                    record.grpc_status = Some(u16::from(reason.grpc_status()).into());
                }
                self.end(Some(reason));
                if let Some(trailers) = last {
                    self.body = Body::empty();
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
            }
            None => self.end(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Outgoing for Tracked {
    fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<BodyError> {
        self.poll_reason(cx).map(|reason| BodyError::new(reason.message()))
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        // A codec that knows the length need not ask for the end.
        let over = self.body.is_end_stream() || self.body.size_hint().exact() == Some(0);
        let gone = self.record.as_ref().map(|record| record.gone());
        self.end(gone.filter(|_| !over));
    }
}
