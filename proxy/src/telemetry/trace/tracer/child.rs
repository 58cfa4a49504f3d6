//! A call of gRPC that the proxy makes by itself for a request, as a span below the request's: what an authorizer is asked.
//!
//! Only for what is recorded. Whoever makes it says what it is, and what it came to; one that is dropped before that has been given up, and its span
//! says so: whoever was called may have spans below it.

use std::sync::Arc;
use std::time::SystemTime;

use opentelemetry::KeyValue;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use super::{Context, Tracer};

/// The call, while it is under way.
#[derive(Debug)]
pub struct Child {
    tracer: Arc<Tracer>,
    context: Context,
    parent: SpanId,
    state: TraceState,
    started: SystemTime,
    /// `package.Service/Method`.
    method: &'static str,
    attributes: Vec<KeyValue>,
    status: Status,
}

// === impl Child ===

impl Child {
    /// `context` is its own, below `parent`.
    pub(super) fn new(
        tracer: &Arc<Tracer>,
        (context, parent): (Context, SpanId),
        state: TraceState,
        method: &'static str,
        mut attributes: Vec<KeyValue>,
    ) -> Self {
        // Beside today's name of the system that of before, as other spans have it.
        attributes.extend(["rpc.system.name", "rpc.system"].map(|key| KeyValue::new(key, "grpc")));
        attributes.push(KeyValue::new("rpc.method", method));
        if let Some((service, _)) = method.split_once('/') {
            attributes.push(KeyValue::new("rpc.service", service));
        }
        Self {
            tracer: Arc::clone(tracer),
            context,
            parent,
            state,
            started: SystemTime::now(),
            method,
            attributes,
            status: Status::error("given up before there was an answer"),
        }
    }

    /// It is over, and came to `result`. `failed`: why there was no answer.
    pub fn ended(mut self, result: &'static str, failed: Option<&str>) {
        self.attributes.push(KeyValue::new("tulle.result", result));
        self.status = match failed {
            None => Status::Unset,
            Some(why) => {
                self.attributes.push(KeyValue::new("error.type", result));
                Status::error(why.to_owned())
            }
        };
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let (attributes, status) = (std::mem::take(&mut self.attributes), std::mem::take(&mut self.status));
        let state = std::mem::take(&mut self.state);
        let Context { trace, span } = self.context;
        self.tracer.spans.push(|| SpanData {
            span_context: SpanContext::new(trace, span, TraceFlags::SAMPLED, false, state),
            parent_span_id: self.parent,
            parent_span_is_remote: false,
            span_kind: SpanKind::Client,
            name: self.method.into(),
            start_time: self.started,
            end_time: SystemTime::now().max(self.started),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: self.tracer.scope.clone(),
        });
    }
}
