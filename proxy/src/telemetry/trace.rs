//! Distributed tracing: a span for each recorded request, and for connections that carry none, sent by OTLP.
//!
//! [`context`] is what headers say, [`sampler`] which traces are recorded, [`span`] what a span holds: all pure. [`tracer`] is what
//! `forward` calls on the workers; [`export`] is the queue between them and the control thread, which sends. Tracing must never make a
//! request wait or fail: what finds the queue full is dropped and counted, whatever the collector does.

pub mod context;
pub mod export;
pub mod sampler;
mod span;
pub mod tracer;

pub use opentelemetry::KeyValue;
pub use opentelemetry::trace::{SpanId, TraceId};

pub use self::context::{Context, Digits, Forms, Propagation, Values, name_once};
pub use self::export::{Collector, Connect, Exporter, Limits, Protocol, Spans};
pub use self::sampler::{Sampler, Sampling};
pub(crate) use self::span::grpc_name;
pub use self::tracer::{Child, How, Tracer, Traces, Tracing, heard};
