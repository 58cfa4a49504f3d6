//! What `forward` sees of tracing: a request's span from its head to the end of its answer.
//!
//! [`Tracing::begin`] reads what the head says and decides whether the request is recorded, [`Tracing::sample`] decides anew where a policy
//! speaks of it, [`Tracing::pass_on`] says to whoever is next
//! what that is to be the child of, and [`Tracing::end`] hands the span over. A request that is not recorded costs no allocation
//! but that of its header. Without a collector there is no [`Tracer`]: then nothing is read, and no header is touched.

mod child;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwapOption;
use http::HeaderMap;
use opentelemetry::trace::{Event, SpanId, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use rand::RngExt as _;

pub use self::child::Child;

use super::context::{self, Context, Forms, Heard, Propagation, Told, Values};
use super::export::Spans;
use super::sampler::{Sampler, Sampling};
use super::span::{self, Known};
use crate::telemetry::access::Record;

/// Where the tracer of the moment is found, if there is one.
#[derive(Debug, Default)]
pub struct Traces {
    /// Spares whoever does not trace all but one branch.
    on: AtomicBool,
    were_on: AtomicBool,
    tracer: ArcSwapOption<Tracer>,
}

/// What is traced, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct How {
    /// Which traces are recorded.
    pub sampler: Sampler,
    /// Whether no policy says otherwise.
    pub keeps_sampler: bool,
    /// Which headers are read and written.
    pub propagation: Propagation,
    /// Connections that carry no requests are traced too.
    pub connections: bool,
}

/// How requests are traced.
#[derive(Debug)]
pub struct Tracer {
    sampler: Sampler,
    keeps_sampler: bool,
    propagation: Propagation,
    connections: bool,
    spans: Arc<Spans>,
    scope: InstrumentationScope,
}

/// A request's place in its trace.
#[derive(Debug)]
pub struct Tracing {
    tracer: Arc<Tracer>,
    heard: Heard,
    /// Its own span.
    context: Context,
    /// What is only there where it is recorded.
    recorded: Option<Box<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    started: SystemTime,
    state: TraceState,
    events: Vec<Event>,
}

/// How many bytes of `tracestate` are told by a span: as many as whoever passes it on must keep (W3C Trace Context §3.3.1.5).
const MAX_STATE: usize = 512;
/// How many things that happen to one request are told.
const MAX_EVENTS: usize = 32;

// === impl Traces ===

impl Traces {
    /// From now on; what has begun ends as it began.
    pub fn set(&self, tracer: Option<Arc<Tracer>>) {
        let on = tracer.is_some();
        self.tracer.store(tracer);
        self.on.store(on, Relaxed);
        self.were_on.fetch_or(on, Relaxed);
    }

    /// Whether there ever was one.
    pub fn were_on(&self) -> bool {
        self.were_on.load(Relaxed)
    }

    /// The tracer, if there is one.
    #[inline]
    pub fn get(&self) -> Option<Arc<Tracer>> {
        if self.on.load(Relaxed) { self.tracer.load_full() } else { None }
    }
}

/// The trace that a request says it belongs to, where nothing is traced.
pub fn heard(values: &Values<'_>) -> Option<TraceId> {
    Propagation::AsItComes.read(values).context.map(|context| context.trace)
}

// === impl Tracer ===

impl Tracer {
    /// Its spans go there.
    pub fn new(how: How, spans: Arc<Spans>) -> Self {
        let How { sampler, keeps_sampler, propagation, connections } = how;
        let scope =
            InstrumentationScope::builder("tulle-proxy").with_version(env!("CARGO_PKG_VERSION")).build();
        spans.begun();
        Self { sampler, keeps_sampler, propagation, connections, spans, scope }
    }

    /// Says in the fields of a request of the proxy's own that its trace is not recorded, so that nobody who gets it begins one that is.
    pub fn decline(&self, fields: &mut HeaderMap) {
        let context = begun(None);
        let told = Told { context, parent: None, sampled: false, debug: false, short: false, random: false };
        told.write(self.propagation.forms(Forms::default()), fields);
    }

    /// The sampler for what policies say this of; `None`: what was decided holds.
    fn sampler(&self, said: Sampling) -> Option<Sampler> {
        (!said.is_empty() && !self.keeps_sampler).then(|| self.sampler.said(said))
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        self.spans.ended();
    }
}

// === impl Tracing ===

impl Tracing {
    /// Of a request whose head has these fields, among them these values.
    pub fn begin(tracer: Arc<Tracer>, fields: &HeaderMap, values: &Values<'_>) -> Self {
        let heard = tracer.propagation.read(values);
        let context = begun(heard.context);
        let sampled = tracer.sampler.samples(&heard, context.trace);
        let recorded = sampled.then(|| Recorded::new(fields, &heard));
        Self { tracer, heard, context, recorded }
    }

    /// Decides anew whether it is recorded, as policies say of it; to be called before anybody is told ([`Tracing::pass_on`]). `fields`
    /// are those of its head, which came at `began`.
    pub fn sample(&mut self, said: Sampling, fields: &HeaderMap, began: Instant) {
        let Some(sampler) = self.tracer.sampler(said) else { return };
        let sampled = sampler.samples(&self.heard, self.context.trace);
        if sampled == self.recorded.is_some() {
            return;
        }
        self.recorded = sampled.then(|| {
            let mut recorded = Recorded::new(fields, &self.heard);
            let began = recorded.started.checked_sub(began.elapsed());
            recorded.started = began.unwrap_or(recorded.started);
            recorded
        });
    }

    /// Of a connection that carries no requests, and is over: a trace of its own, sampled as policies say. It began then.
    pub fn connection(tracer: Arc<Tracer>, said: Sampling, began: Instant) -> Option<Self> {
        let connections = tracer.connections;
        let fields = HeaderMap::new();
        let mut tracing = connections.then(|| Self::begin(tracer, &fields, &Values::default()))?;
        tracing.sample(said, &fields, began);
        let recorded = tracing.recorded.as_mut()?;
        recorded.started = SystemTime::now().checked_sub(began.elapsed())?;
        Some(tracing)
    }

    /// Whether it is recorded.
    pub fn is_recorded(&self) -> bool {
        self.recorded.is_some()
    }

    /// The trace that it belongs to, recorded or not: what whoever is next is told.
    pub fn trace(&self) -> TraceId {
        self.context.trace
    }

    /// Its own span, where that is recorded.
    pub fn span(&self) -> Option<Context> {
        self.recorded.as_ref().map(|_| self.context)
    }

    /// Says in the fields that go on what follows is the child of: this span, or its parent where it is not recorded. They came in that version
    /// of HTTP.
    pub fn pass_on(&self, fields: &mut HeaderMap, version: http::Version) {
        let Self { tracer, heard, context: own, recorded } = self;
        let (sampled, forms) = (recorded.is_some(), tracer.propagation.forms(heard.came));
        let parent = heard.context;
        if !sampled && heard.sampled == Some(false) && parent.is_some() && forms == heard.came {
            // It says so already.
            if version == http::Version::HTTP_2 {
                context::spare_tables(fields);
            }
            return;
        }
        let (context, parent) = match parent {
            Some(parent) if !sampled => (parent, None),
            parent => (*own, parent.map(|parent| parent.span)),
        };
        let Heard { debug, short, random, .. } = *heard;
        Told { context, parent, sampled, debug: debug && sampled, short, random }.write(forms, fields);
    }

    /// Something has happened to it.
    pub fn event(&mut self, name: &'static str, attributes: impl FnOnce() -> Vec<KeyValue>) {
        if let Some(recorded) = self.recorded.as_mut().filter(|recorded| recorded.events.len() < MAX_EVENTS) {
            recorded.events.push(Event::new(name, SystemTime::now(), attributes(), 0));
        }
    }

    /// A call of gRPC that is made for it, where it is recorded: a span of its own below this one, which `fields` say to whoever is called.
    pub fn child(
        &self,
        method: &'static str,
        attributes: impl FnOnce() -> Vec<KeyValue>,
        fields: &mut HeaderMap,
    ) -> Option<Child> {
        let Self { tracer, heard, context: own, recorded } = self;
        let recorded = recorded.as_ref()?;
        let context = begun(Some(*own));
        let Heard { debug, short, random, .. } = *heard;
        let told = Told { context, parent: Some(own.span), sampled: true, debug, short, random };
        told.write(tracer.propagation.forms(heard.came), fields);
        Some(Child::new(tracer, (context, own.span), recorded.state.clone(), method, attributes()))
    }

    /// It is over, as `record` tells.
    pub fn end(&mut self, record: &Record<'_>) {
        let Some(recorded) = self.recorded.take() else { return };
        let Recorded { started, state, events } = *recorded;
        let parent = self.heard.context.map(|parent| parent.span);
        let known = Known { context: self.context, parent, started, state, events };
        self.tracer.spans.push(|| span::finished(record, known, &self.tracer.scope));
    }
}

// === impl Recorded ===

impl Recorded {
    fn new(fields: &HeaderMap, heard: &Heard) -> Box<Self> {
        // Told by the span as it came; what is in it that the SDK cannot read passes on all the same, and so does what is too long: a span
        // waits in memory.
        let state = if heard.came.w3c { fields.get("tracestate") } else { None };
        let state = state.filter(|state| state.len() <= MAX_STATE);
        let state = state.and_then(|state| state.to_str().ok()).and_then(|state| state.parse().ok());
        Box::new(Self { started: SystemTime::now(), state: state.unwrap_or_default(), events: Vec::new() })
    }
}

/// A new span, in its parent's trace or in one of its own.
fn begun(parent: Option<Context>) -> Context {
    let mut random = rand::rng();
    let span = SpanId::from(random.random::<u64>().max(1));
    let trace = parent.map(|parent| parent.trace);
    Context { trace: trace.unwrap_or_else(|| TraceId::from(random.random::<u128>().max(1))), span }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::telemetry::trace::export::Limits;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    fn how(sampler: Sampler, propagation: Propagation) -> How {
        How { sampler, keeps_sampler: false, propagation, connections: false }
    }

    fn tracer(sampler: &str) -> (Arc<Tracer>, Arc<Spans>) {
        let spans = Arc::new(Spans::new(Limits::default(), Arc::default()));
        let sampler = Sampler::named(sampler, 0.5).unwrap();
        (Arc::new(Tracer::new(how(sampler, Propagation::AsItComes), Arc::clone(&spans))), spans)
    }

    fn begin(tracer: Arc<Tracer>, fields: &HeaderMap) -> Tracing {
        Tracing::begin(tracer, fields, &Values::of(fields))
    }

    fn fields(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn what_follows_a_recorded_request_is_the_child_of_its_span() {
        let (tracer, spans) = tracer("parentbased_always_on");
        let mut fields = fields(&[
            ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
            ("tracestate", "vendor=1"),
            ("x-b3-traceid", TRACE),
            ("x-b3-spanid", SPAN),
            ("x-b3-sampled", "1"),
        ]);
        let mut tracing = begin(tracer, &fields);
        tracing.pass_on(&mut fields, http::Version::HTTP_11);
        let own = tracing.span().unwrap();
        assert_eq!(own.trace.to_string(), TRACE);
        assert_ne!(own.span.to_string(), SPAN);
        assert_eq!(fields["traceparent"], format!("00-{TRACE}-{}-01", own.span));
        assert_eq!(fields["x-b3-spanid"], own.span.to_string());
        assert_eq!(fields["x-b3-parentspanid"], SPAN);
        assert_eq!(fields["tracestate"], "vendor=1");
        assert!(!fields.contains_key("b3"), "only as it came");
        tracing.event("retry", Vec::new);
        tracing.end(&Record::default());
        tracing.end(&Record::default());
        let taken = spans.take();
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].parent_span_id.to_string(), SPAN);
        assert!(taken[0].parent_span_is_remote);
        assert_eq!(taken[0].span_context.span_id(), own.span);
        assert_eq!(taken[0].span_context.trace_state().header(), "vendor=1");
        assert_eq!(taken[0].events.len(), 1);
    }

    #[test]
    fn a_call_that_is_made_for_a_recorded_request_is_a_span_below_its_own() {
        let (recorded, spans) = tracer("parentbased_always_on");
        let mut fields = fields(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("tracestate", "a=1")]);
        let tracing = begin(recorded, &fields);
        let own = tracing.span().unwrap();
        let asks = || vec![KeyValue::new("tulle.policy", "shop/opa")];
        let child = tracing.child("a.B/C", asks, &mut fields).unwrap();
        assert!(spans.take().is_empty(), "it is under way");
        child.ended("allowed", None);
        let late = tracing.child("a.B/C", asks, &mut fields).unwrap();
        late.ended("timed_out", Some("no answer"));
        drop(tracing.child("a.B/C", asks, &mut fields));
        let taken = spans.take();
        let [first, late, given_up] = &taken[..] else { panic!("three spans") };
        for span in [first, late, given_up] {
            assert_eq!((span.parent_span_id, span.parent_span_is_remote), (own.span, false));
            assert_eq!((span.span_context.trace_id(), &*span.name), (own.trace, "a.B/C"));
            assert!(span.end_time >= span.start_time && span.span_context.trace_state().header() == "a=1");
        }
        let told = format!("00-{TRACE}-{}-01", given_up.span_context.span_id());
        assert_eq!(fields["traceparent"], told, "whoever is called is told of the call's own span");
        let statuses = [first, late, given_up].map(|span| span.status.clone());
        assert_eq!(statuses[0], opentelemetry::trace::Status::Unset);
        assert_eq!(statuses[1], opentelemetry::trace::Status::error("no answer"));
        assert!(
            matches!(&statuses[2], opentelemetry::trace::Status::Error { description } if description.contains("given up"))
        );
        let has = |key: &str, value: &str| {
            late.attributes.iter().any(|one| one.key.as_str() == key && one.value.as_str() == value)
        };
        assert!(
            has("tulle.policy", "shop/opa") && has("rpc.method", "a.B/C") && has("error.type", "timed_out")
        );
        // Of what is not recorded nothing is made, and nothing said.
        let (silent, spans) = tracer("always_off");
        let mut fields = HeaderMap::new();
        let tracing = begin(silent, &fields);
        assert!(tracing.child("a.B/C", || unreachable!("nobody will see it"), &mut fields).is_none());
        assert!(fields.is_empty() && spans.take().is_empty());
    }

    #[test]
    fn a_long_tracestate_passes_on_and_is_not_told_by_the_span() {
        let (tracer, spans) = tracer("always_on");
        for (length, told) in [(512, true), (513, false), (16_000, false)] {
            let state = format!("a={}", "x".repeat(length / 2 - 3))
                + &format!(",b={}", "y".repeat(length.div_ceil(2) - 2));
            assert_eq!(state.len(), length);
            let traceparent = format!("00-{TRACE}-{SPAN}-01");
            let mut fields = fields(&[("traceparent", &traceparent), ("tracestate", &state)]);
            let mut tracing = begin(Arc::clone(&tracer), &fields);
            tracing.pass_on(&mut fields, http::Version::HTTP_11);
            assert_eq!(fields["tracestate"], state);
            tracing.end(&Record::default());
            let expected = if told { &*state } else { "" };
            assert_eq!(spans.take()[0].span_context.trace_state().header(), expected);
        }
    }

    #[test]
    fn a_request_of_the_proxys_own_says_that_it_is_not_recorded() {
        let spans = Arc::new(Spans::new(Limits::default(), Arc::default()));
        let declined = |propagation| {
            let sampler = Sampler::named("always_on", 1.0).unwrap();
            let mut fields = HeaderMap::new();
            Tracer::new(how(sampler, propagation), Arc::clone(&spans)).decline(&mut fields);
            (Propagation::AsItComes.read(&Values::of(&fields)), fields.len())
        };
        let (heard, _) = declined(Propagation::AsItComes);
        assert!(heard.context.is_some());
        assert_eq!((heard.sampled, heard.came), (Some(false), Forms { w3c: true, ..Forms::default() }));
        let b3 = Forms { b3: true, ..Forms::default() };
        let (heard, _) = declined(Propagation::Only(b3));
        assert_eq!((heard.sampled, heard.came), (Some(false), b3));
        assert_eq!(declined(Propagation::Only(Forms::default())).1, 0, "nobody would read it");
        assert!(spans.take().is_empty());
    }

    #[test]
    fn a_request_without_headers_begins_a_trace() {
        let (tracer, spans) = tracer("always_on");
        let mut fields = HeaderMap::new();
        let mut tracing = begin(tracer, &fields);
        tracing.pass_on(&mut fields, http::Version::HTTP_11);
        let own = tracing.span().unwrap();
        assert_eq!(fields["traceparent"], format!("00-{}-{}-01", own.trace, own.span));
        assert_eq!(fields.len(), 1);
        tracing.end(&Record::default());
        assert_eq!(spans.take()[0].parent_span_id, SpanId::INVALID);
    }

    #[test]
    fn what_is_not_recorded_goes_on_as_it_came() {
        let (tracer, spans) = tracer("parentbased_always_on");
        for lines in [
            vec![("traceparent", format!("00-{TRACE}-{SPAN}-00"))],
            vec![("traceparent", format!("00-{TRACE}-{SPAN}-02")), ("b3", format!("{TRACE}-{SPAN}-0"))],
        ] {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let mut passed = fields(&lines);
            let mut tracing = begin(Arc::clone(&tracer), &passed);
            tracing.event("retry", || unreachable!("nobody will see it"));
            tracing.pass_on(&mut passed, http::Version::HTTP_11);
            tracing.end(&Record::default());
            assert_eq!(passed, fields(&lines));
        }
        assert!(spans.take().is_empty());
    }

    #[test]
    fn whoever_is_next_is_told_that_a_trace_is_not_recorded() {
        let (tracer, _) = tracer("always_off");
        let flags = |lines: &[(&'static str, &str)]| {
            let mut fields = fields(lines);
            let tracing = begin(Arc::clone(&tracer), &fields);
            tracing.pass_on(&mut fields, http::Version::HTTP_11);
            fields
        };
        assert!(flags(&[])["traceparent"].to_str().unwrap().ends_with("-00"));
        let parent = flags(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01"))]);
        assert_eq!(parent["traceparent"], format!("00-{TRACE}-{SPAN}-00"), "there is no span between");
        let b3 = flags(&[("b3", &format!("{TRACE}-{SPAN}"))]);
        assert_eq!(b3["b3"], format!("{TRACE}-{SPAN}-0"));
    }

    #[test]
    fn a_trace_is_named_alike_whether_it_is_recorded_or_not_or_nothing_is_traced() {
        let short = &TRACE[16..];
        for (name, value, trace) in [
            ("traceparent", format!("00-{TRACE}-{SPAN}-01"), Some(TRACE.to_owned())),
            ("b3", format!("{TRACE}-{SPAN}-0"), Some(TRACE.to_owned())),
            ("b3", format!("{short}-{SPAN}-1"), Some(format!("{:0>32}", short))),
            // Malformed: a trace begins, and that is another one.
            ("traceparent", format!("00-{TRACE}-{SPAN}"), None),
            ("traceparent", format!("00-{TRACE}-{}-01", "0".repeat(16)), None),
            ("x-b3-traceid", TRACE.to_owned(), None),
        ] {
            let fields = fields(&[(name, &value)]);
            assert_eq!(heard(&Values::of(&fields)).map(|trace| trace.to_string()), trace, "{value}");
            for sampler in ["always_on", "always_off"] {
                let tracing = begin(tracer(sampler).0, &fields);
                let named = tracing.trace().to_string();
                match &trace {
                    Some(trace) => assert_eq!(named, *trace, "{sampler} {value}"),
                    None => assert_ne!(named, TRACE, "{sampler} {value}"),
                }
                assert!(tracing.span().is_none_or(|span| span.trace == tracing.trace()));
            }
        }
        let multi = fields(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN)]);
        assert_eq!(heard(&Values::of(&multi)).map(|trace| trace.to_string()).as_deref(), Some(TRACE));
    }

    #[test]
    fn b3_says_no_without_ids() {
        let (tracer, _) = tracer("parentbased_always_on");
        let mut fields = fields(&[("b3", "0")]);
        let tracing = begin(tracer, &fields);
        assert!(!tracing.is_recorded());
        tracing.pass_on(&mut fields, http::Version::HTTP_11);
        assert!(fields["b3"].to_str().unwrap().ends_with("-0"));
        assert!(fields["traceparent"].to_str().unwrap().ends_with("-00"));
    }

    #[test]
    fn a_policy_decides_anew_for_traces_that_begin_here_and_for_others_where_it_says_so() {
        let said = |percent: u32, parent_based| Sampling { millionths: Some(percent * 10_000), parent_based };
        let [none, no, yes] = [None, Some("00"), Some("01")];
        // The sampler, what is said, what came, and whether it is recorded.
        for (sampler, said, flags, expected) in [
            ("parentbased_always_off", said(100, None), none, true),
            ("parentbased_always_off", said(100, None), no, false),
            ("parentbased_always_off", said(100, Some(false)), no, true),
            ("parentbased_always_on", said(0, None), none, false),
            ("parentbased_always_on", said(0, None), yes, true),
            ("parentbased_always_on", said(0, Some(false)), yes, false),
            ("always_off", said(0, Some(true)), yes, true),
            ("always_on", said(0, Some(true)), no, false),
            ("always_on", Sampling::default(), no, true),
        ] {
            let (tracer, spans) = tracer(sampler);
            let traceparent = flags.map(|flags| format!("00-{TRACE}-{SPAN}-{flags}"));
            let lines: Vec<_> = traceparent.iter().map(|value| ("traceparent", &**value)).collect();
            let mut passed = fields(&lines);
            let mut tracing = begin(tracer, &passed);
            let began = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
            tracing.sample(said, &passed, began);
            assert_eq!(tracing.is_recorded(), expected, "{sampler} {said:?} {flags:?}");
            tracing.pass_on(&mut passed, http::Version::HTTP_11);
            let told = passed["traceparent"].to_str().unwrap();
            assert!(told.ends_with(if expected { "-01" } else { "-00" }), "{told}");
            tracing.end(&Record::default());
            assert_eq!(spans.take().len(), usize::from(expected));
        }
    }

    #[test]
    fn a_request_that_a_policy_has_recorded_began_when_its_head_came() {
        let (tracer, spans) = tracer("always_off");
        let fields = fields(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("tracestate", "vendor=1")]);
        let mut tracing = begin(tracer, &fields);
        let began = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        tracing.sample(Sampling { parent_based: Some(true), millionths: None }, &fields, began);
        tracing.end(&Record::default());
        let taken = spans.take();
        assert!(SystemTime::now().duration_since(taken[0].start_time).unwrap() >= Duration::from_secs(60));
        assert_eq!(taken[0].span_context.trace_state().header(), "vendor=1");
        assert_eq!(taken[0].parent_span_id.to_string(), SPAN);
    }

    #[test]
    fn no_policy_changes_what_keeps_its_sampler_nor_what_is_debugged() {
        let spans = Arc::new(Spans::new(Limits::default(), Arc::default()));
        let never = Sampling { parent_based: Some(false), millionths: Some(0) };
        let keeps = How {
            keeps_sampler: true,
            ..how(Sampler::named("always_on", 1.0).unwrap(), Propagation::AsItComes)
        };
        let (free, _) = tracer("parentbased_always_on");
        for (tracer, lines) in
            [(Arc::new(Tracer::new(keeps, spans)), vec![]), (free, vec![("b3", format!("{TRACE}-{SPAN}-d"))])]
        {
            let lines: Vec<_> = lines.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let fields = fields(&lines);
            let mut tracing = begin(tracer, &fields);
            tracing.sample(never, &fields, Instant::now());
            assert!(tracing.is_recorded(), "{lines:?}");
        }
    }

    #[test]
    fn forms_that_are_not_asked_for_are_not_touched() {
        let spans = Arc::new(Spans::new(Limits::default(), Arc::default()));
        let only = Propagation::Only(Forms { b3: true, ..Forms::default() });
        let sampler = Sampler::named("always_on", 1.0).unwrap();
        let tracer = Arc::new(Tracer::new(how(sampler, only), spans));
        let traceparent = format!("00-{TRACE}-{SPAN}-01");
        let mut fields = fields(&[("traceparent", &traceparent)]);
        let tracing = begin(tracer, &fields);
        tracing.pass_on(&mut fields, http::Version::HTTP_11);
        assert_eq!(fields["traceparent"], traceparent);
        assert!(fields.contains_key("b3"));
        assert_ne!(tracing.span().unwrap().trace.to_string(), TRACE);
    }

    #[test]
    fn connections_are_traced_only_where_that_is_asked_for() {
        let (without, _) = tracer("always_on");
        let began = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        assert!(Tracing::connection(without, Sampling::default(), began).is_none());
        let said = |millionths| Sampling { millionths, ..Sampling::default() };
        for (sampler, millionths, count) in [
            ("always_on", None, 1),
            ("always_off", None, 0),
            ("always_on", Some(0), 0),
            ("always_off", Some(1_000_000), 1),
        ] {
            let spans = Arc::new(Spans::new(Limits::default(), Arc::default()));
            let sampler = Sampler::named(sampler, 1.0).unwrap();
            let how = How { connections: true, ..how(sampler, Propagation::AsItComes) };
            let tracer = Arc::new(Tracer::new(how, Arc::clone(&spans)));
            let tracing = Tracing::connection(tracer, said(millionths), began);
            tracing.into_iter().for_each(|mut tracing| tracing.end(&Record::default()));
            let taken = spans.take();
            assert_eq!(taken.len(), count);
            let now = SystemTime::now();
            assert!(
                taken
                    .iter()
                    .all(|span| now.duration_since(span.start_time).unwrap() >= Duration::from_secs(60))
            );
        }
    }

    #[test]
    fn without_a_tracer_there_is_none() {
        let traces = Traces::default();
        assert!(traces.get().is_none());
        traces.set(Some(tracer("always_on").0));
        assert!(traces.get().is_some());
        traces.set(None);
        assert!(traces.get().is_none());
    }
}
