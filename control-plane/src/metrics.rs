//! What the control plane counts. Counters are counted where it happens; gauges that follow from other state are
//! read when they are asked for ([`Gauges`]).

use std::collections::BTreeMap;
use std::time::SystemTime;

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use tulle_api::ResourceType;

use crate::ads::Connected;
use crate::ca::rotation::{State, Waited};
use crate::finding::{Finding, Severity};
use crate::model::Model;
use crate::object::Kind;

/// All of it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// ADS streams that are open.
    proxies: IntGauge,
    /// TLS connections that are open.
    pub connections: IntGauge,
    /// Report streams that hold a registration.
    pub registrations: IntGauge,
    /// Resources sent, by type.
    pub resources_sent: IntCounterVec,
    /// Names told as absent, by type.
    pub removals_sent: IntCounterVec,
    /// Responses accepted, by type.
    pub acks: IntCounterVec,
    /// Responses refused in part, by type.
    pub nacks: IntCounterVec,
    /// From a change's being taken in to its being sent to a proxy that uses what changed, in seconds.
    pub push: Histogram,
    /// From there to that proxy's answer, in seconds.
    pub convergence: Histogram,
    /// What came of proxies' comparing what they hold with the model, by result.
    pub comparisons: IntCounterVec,
    /// Names answered as absent although asked for, by reason.
    pub refused_names: IntCounterVec,
    /// Streams and connections that were refused, by reason.
    pub refused: IntCounterVec,
    /// Requests for certificates, by outcome.
    pub certificates: IntCounterVec,
    /// Whether this replica holds the lease.
    pub lease_held: IntGauge,
    /// Writes of the authority's keys where they were missing or destroyed, by outcome.
    pub identity_writes: IntCounterVec,
    /// Writes of the status of routes and policies, by outcome.
    pub status_writes: IntCounterVec,
    /// Writes of registrations to the API server, by outcome.
    pub registration_writes: IntCounterVec,
    /// Reviews of service accounts' tokens, by outcome.
    pub token_reviews: IntCounterVec,
    /// Snapshots published.
    pub models: IntCounter,
    /// Taps that run.
    pub taps: IntGauge,
    /// Lines that their readers did not take in time.
    pub tap_lines_dropped: IntCounter,
    /// Whether a kind is watched at a Kubernetes API server, by kind.
    pub watch_connected: IntGaugeVec,
    /// When a watch last told anything, in seconds of Unix time, by kind.
    pub watch_events: IntGaugeVec,
    /// How often all objects of a kind were asked for, by kind.
    pub lists: IntCounterVec,
    /// What kept a kind from being read, by kind and reason.
    pub watch_errors: IntCounterVec,
    /// What became of Pods that the API server asked about, by outcome and reason.
    pub injections: IntCounterVec,
    /// How long the answer took, in seconds.
    pub injection_duration: Histogram,
    /// Pods that should have a proxy and have none, by reason.
    pub unmeshed: IntGaugeVec,
    findings: IntGaugeVec,
    objects: IntGaugeVec,
    /// Resources that connected proxies have rejected and not accepted since, by type.
    rejected: IntGaugeVec,
    /// What can be asked for, by type.
    resources: IntGaugeVec,
    /// When a certificate expires, in seconds of Unix time, by kind.
    expiration: IntGaugeVec,
    /// How far a rotation of the root is, by phase.
    rotation: IntGaugeVec,
    /// Who is waited for, by kind.
    rotation_waits: IntGaugeVec,
    /// Steps of rotations that this control plane has taken.
    pub rotation_steps: IntCounterVec,
}

/// What is read when metrics are asked for.
pub struct Gauges<'a> {
    /// The newest snapshot.
    pub model: &'a Model,
    /// What is wrong with what people wrote.
    pub findings: &'a [Finding],
    /// What people wrote, by kind and status.
    pub objects: BTreeMap<(Kind, &'static str), usize>,
    /// Who is connected.
    pub proxies: &'a [Connected],
    /// When the control plane's own certificate expires.
    pub leaf_expires: SystemTime,
    /// When the issuing chain expires.
    pub issuer_expires: SystemTime,
    /// When the root expires that it ends in.
    pub root_expires: SystemTime,
}

/// Registers families, and remembers what each is for the reference page.
struct Families {
    registry: Registry,
    rows: String,
}

/// What a change takes from the sources to proxies: on one host milliseconds; in seconds it is slow, and in minutes a proxy hangs.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];

// === impl Families ===

impl Families {
    fn register<C: Collector + Clone + 'static>(
        &mut self,
        kind: &str,
        collector: prometheus::Result<C>,
    ) -> prometheus::Result<C> {
        let collector = collector?;
        for family in collector.desc() {
            let mut labels: Vec<&str> = family.variable_labels.iter().map(String::as_str).collect();
            labels.sort_unstable();
            let labels: Vec<String> = labels.into_iter().map(|label| format!("`{label}`")).collect();
            let labels = if labels.is_empty() { "—".to_owned() } else { labels.join(", ") };
            self.rows.push_str(&format!("| `{}` | {kind} | {labels} | {}. |\n", family.fq_name, family.help));
        }
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&mut self, name: &str, help: &str) -> prometheus::Result<IntCounter> {
        self.register("counter", IntCounter::new(name, help))
    }

    fn counters(&mut self, name: &str, label: &str, help: &str) -> prometheus::Result<IntCounterVec> {
        self.register("counter", IntCounterVec::new(Opts::new(name, help), &[label]))
    }

    /// Of durations.
    fn histogram(&mut self, name: &str, help: &str) -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
        self.register("histogram", Histogram::with_opts(options))
    }

    fn gauge(&mut self, name: &str, help: &str) -> prometheus::Result<IntGauge> {
        self.register("gauge", IntGauge::new(name, help))
    }

    fn gauges(&mut self, name: &str, labels: &[&str], help: &str) -> prometheus::Result<IntGaugeVec> {
        self.register("gauge", IntGaugeVec::new(Opts::new(name, help), labels))
    }
}

/// The table of `docs/reference/control-plane.md`.
///
/// # Errors
/// As [`Metrics::new`].
pub fn reference() -> prometheus::Result<String> {
    let (_, rows) = Metrics::with_rows()?;
    Ok(format!("| metric | kind | labels | meaning |\n| --- | --- | --- | --- |\n{rows}"))
}

// === impl Metrics ===

impl Metrics {
    /// # Errors
    /// When two metrics of ours have one name: never.
    pub fn new() -> prometheus::Result<Self> {
        Self::with_rows().map(|(metrics, _)| metrics)
    }

    fn with_rows() -> prometheus::Result<(Self, String)> {
        let mut families = Families { registry: Registry::new(), rows: String::new() };
        let f = &mut families;
        let metrics = Self {
            proxies: f.gauge("tulle_control_plane_proxies", "ADS streams that are open")?,
            resources_sent: f.counters(
                "tulle_control_plane_resources_sent_total",
                "type",
                "Resources sent to proxies",
            )?,
            removals_sent: f.counters(
                "tulle_control_plane_removals_sent_total",
                "type",
                "Names told to proxies as absent",
            )?,
            acks: f.counters(
                "tulle_control_plane_acks_total",
                "type",
                "Responses that a proxy accepted whole",
            )?,
            nacks: f.counters(
                "tulle_control_plane_nacks_total",
                "type",
                "Responses of which a proxy rejected a part",
            )?,
            push: f.histogram(
                "tulle_control_plane_push_duration_seconds",
                "From the moment when a change is taken in until it is sent to a proxy that uses what changed; what a proxy is told because it asks is not counted",
            )?,
            convergence: f.histogram(
                "tulle_control_plane_convergence_duration_seconds",
                "From the same moment until that proxy has answered that it has the change in use, or rejects it",
            )?,
            comparisons: f.counters(
                "tulle_control_plane_comparisons_total",
                "result",
                "Comparisons of what a proxy holds with what the model says: `equal`, `different` (the proxy has opened its stream anew)",
            )?,
            rejected: f.gauges(
                "tulle_control_plane_rejected_resources",
                &["type"],
                "Resources that connected proxies have rejected and not accepted since",
            )?,
            refused_names: f.counters(
                "tulle_control_plane_refused_names_total",
                "reason",
                "Names answered as absent because the caller may not, or nobody can, ask for them: `not_permitted`, `wildcard`, `name_too_long`, `unknown_type`",
            )?,
            registrations: f.gauge(
                "tulle_control_plane_registrations",
                "Registrations whose streams are open",
            )?,
            connections: f.gauge("tulle_control_plane_connections", "Open connections of the gRPC port")?,
            refused: f.counters(
                "tulle_control_plane_refused_total",
                "reason",
                "Connections and streams that the gRPC port refused: `tls_…` as in errors.md, `tls_no_protocol`, `tls_failed`, `tls_timeout`, `overloaded`, `no_identity`, `malformed_message`, `node_missing`, `node_malformed`, `node_foreign`, `node_not_yours`, `node_unknown`, `too_many_subscriptions`, `registration_not_granted`, `registration_workload_taken`, `registration_malformed`",
            )?,
            certificates: f.counters(
                "tulle_control_plane_certificate_requests_total",
                "outcome",
                "Requests for certificates: `issued_by_token`, `issued_by_service_account`, `issued_by_certificate`, `unauthenticated`, `denied`, `revoked`, `replayed`, `bad_request`, `failed`",
            )?,
            lease_held: f.gauge(
                "tulle_control_plane_lease_held",
                "Whether this is the replica that writes to the API server: 1 or 0. Always 0 without one",
            )?,
            identity_writes: f.counters(
                "tulle_control_plane_identity_writes_total",
                "outcome",
                "Writes of the authority's keys into the Secret `tulle-identity` again, by the holder of the lease, where they were missing or destroyed: `written`, `conflict` (somebody else had written it), `failed` (tried again)",
            )?,
            status_writes: f.counters(
                "tulle_control_plane_status_writes_total",
                "outcome",
                "Writes of the status of routes and policies to the API server: `written`, `conflict` (read again and tried again), `gone`, `failed` (tried again later)",
            )?,
            registration_writes: f.counters(
                "tulle_control_plane_registration_writes_total",
                "outcome",
                "Writes of registrations to the API server, as EndpointSlices: `written`, `deleted`, `conflict` (another replica was quicker), `failed` (tried again)",
            )?,
            token_reviews: f.counters(
                "tulle_control_plane_token_reviews_total",
                "outcome",
                "Tokens of service accounts: `accepted` by the API server, `remembered` from less than half a minute ago, `refused`, `unavailable` (the API server could not say)",
            )?,
            models: f
                .counter("tulle_control_plane_models_total", "Snapshots of the model that were published")?,
            resources: f.gauges(
                "tulle_control_plane_resources",
                &["type"],
                "Resources that proxies can ask for; of `Routes`, the services that they lead to",
            )?,
            taps: f.gauge("tulle_control_plane_taps", "Taps that run (`tulle tap`, `tulle top`)")?,
            tap_lines_dropped: f.counter(
                "tulle_control_plane_tap_lines_dropped_total",
                "Lines of taps that were dropped because nobody read them fast enough",
            )?,
            watch_connected: f.gauges(
                "tulle_control_plane_watch_connected",
                &["kind"],
                "Whether a kind is watched at the Kubernetes API server, now: 1 or 0; none for a kind that it does not have",
            )?,
            watch_events: f.gauges(
                "tulle_control_plane_watch_last_event_timestamp_seconds",
                &["kind"],
                "When the Kubernetes API server last told anything of a kind: about once a minute it says that nothing has happened",
            )?,
            lists: f.counters(
                "tulle_control_plane_lists_total",
                "kind",
                "How often all objects of a kind were asked for: once at the start, where what had changed since could not be followed, and once after an outage of the API server",
            )?,
            watch_errors: f.register(
                "counter",
                IntCounterVec::new(
                    Opts::new(
                        "tulle_control_plane_watch_errors_total",
                        "What kept a kind from being read: `gone` (it is listed again), `forbidden`, `unauthorized`, `not_found`, `other_version` (the definition is of none that is read), `too_many_requests`, `refused`, `unreachable`, `late`, `short` (closed as soon as it was open), `rewound` (put back to an older state: it is listed again), `garbage`",
                    ),
                    &["kind", "reason"],
                ),
            )?,
            injections: f.register(
                "counter",
                IntCounterVec::new(
                    Opts::new(
                        "tulle_injections_total",
                        "New pods that the API server asked the injector about: `injected`, `left` as they were or `refused`, with the reason (injection.md); `failed`, `busy` (too many at once), `too_large`: the failure policy decided; `malformed`: what was no question",
                    ),
                    &["outcome", "reason"],
                ),
            )?,
            injection_duration: f.histogram(
                "tulle_injection_duration_seconds",
                "How long the injector took to answer the API server",
            )?,
            unmeshed: f.gauges(
                "tulle_unmeshed_pods",
                &["reason"],
                "Pods that run without the proxy that is asked for, by reason (injection.md); told by the replica that leads",
            )?,
            findings: f.gauges(
                "tulle_control_plane_findings",
                &["severity"],
                "What is wrong with what people wrote, now: `error`, `warning`",
            )?,
            objects: f.gauges(
                "tulle_control_plane_objects",
                &["kind", "status"],
                "What people wrote, by kind and by the worst that is found wrong with an object, now: `ok`, `warning`, `error`",
            )?,
            expiration: f.gauges(
                "tulle_identity_cert_expiration_timestamp_seconds",
                &["kind"],
                "When a certificate in use expires: `leaf` (the control plane's own), `issuer` (and what is above it), `root`",
            )?,
            rotation: f.gauges(
                "tulle_identity_root_rotation",
                &["phase"],
                "How far a rotation of the root is: 1 for the phase that it is in, of `idle`, `published`, `switched`, `draining` and `retired` (identity.md), else 0",
            )?,
            rotation_waits: f.gauges(
                "tulle_identity_root_rotation_waits",
                &["for"],
                "Who keeps a rotation of the root from going on, as far as this replica knows: `replicas`, `proxies`",
            )?,
            rotation_steps: f.counters(
                "tulle_identity_root_rotation_steps_total",
                "step",
                "Steps of rotations of the root that this replica has taken: `published`, `switched`, `draining`, `retired`, `completed`; `aborted`, `refused` (what was asked for cannot be done), `void` (somebody has put another root there), `clock_set`",
            )?,
            registry: f.registry.clone(),
        };
        let build = f.gauges("tulle_build_info", &["component", "version"], "Always 1")?;
        build.with_label_values(&["control-plane", env!("CARGO_PKG_VERSION")]).set(1);
        for resource_type in ResourceType::ALL {
            // So that a rate begins at nothing and not with the first event.
            for family in [&metrics.resources_sent, &metrics.removals_sent, &metrics.acks, &metrics.nacks] {
                family.with_label_values(&[resource_type.as_str()]);
            }
        }
        for outcome in [
            "issued_by_token",
            "issued_by_service_account",
            "issued_by_certificate",
            "unauthenticated",
            "denied",
            "bad_request",
            "failed",
        ] {
            metrics.certificates.with_label_values(&[outcome]);
        }
        for step in ["published", "switched", "draining", "retired", "completed", "aborted"] {
            metrics.rotation_steps.with_label_values(&[step]);
        }
        metrics.show_rotation(State::default().word(), &[]);
        for result in ["equal", "different"] {
            metrics.comparisons.with_label_values(&[result]);
        }
        Ok((metrics, families.rows))
    }

    /// A kind is watched no more: the API server does not have it.
    pub fn forget_watch(&self, kind: &str) {
        for family in [&self.watch_connected, &self.watch_events] {
            // Fails where there is no such series.
            let _none = family.remove_label_values(&[kind]);
        }
    }

    /// How far a rotation of the root is, and who is waited for.
    pub fn show_rotation(&self, phase: &str, waits_for: &[Waited]) {
        for word in State::WORDS {
            set(&self.rotation, word, usize::from(word == phase));
        }
        let proxies: usize = waits_for.iter().map(|waited| waited.proxies.len() + waited.more).sum();
        set(&self.rotation_waits, "proxies", proxies);
        set(&self.rotation_waits, "replicas", waits_for.len());
    }

    /// In the Prometheus text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded: never.
    pub fn render(&self, now: &Gauges<'_>) -> prometheus::Result<String> {
        for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let count = now.findings.iter().filter(|finding| finding.severity == severity).count();
            set(&self.findings, word, count);
        }
        // A status that an object no longer has must not stay.
        self.objects.reset();
        for ((kind, status), count) in &now.objects {
            let count = i64::try_from(*count).unwrap_or(i64::MAX);
            self.objects.with_label_values(&[kind.as_str(), status]).set(count);
        }
        self.proxies.set(i64::try_from(now.proxies.len()).unwrap_or(i64::MAX));
        for resource_type in ResourceType::ALL {
            let rejected = now.proxies.iter().flat_map(|proxy| &proxy.rejected);
            let rejected = rejected.filter(|rejected| rejected.resource_type == resource_type).count();
            set(&self.rejected, resource_type.as_str(), rejected);
            set(&self.resources, resource_type.as_str(), now.model.names(resource_type).len());
        }
        let (leaf, issuer, root) = (now.leaf_expires, now.issuer_expires, now.root_expires);
        for (kind, expires) in [("leaf", leaf), ("issuer", issuer), ("root", root)] {
            let seconds = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            self.expiration.with_label_values(&[kind]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

fn set(family: &IntGaugeVec, label: &str, count: usize) {
    family.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
}
