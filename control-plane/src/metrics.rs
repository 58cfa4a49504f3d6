//! What the control plane counts. Counters are counted where it happens; gauges that follow from other state are
//! read when they are asked for ([`Gauges`]).

use std::time::SystemTime;

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use tulle_api::ResourceType;

use crate::ads::Connected;
use crate::finding::{Finding, Severity};
use crate::model::Model;

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
    /// Names answered as absent although asked for, by reason.
    pub refused_names: IntCounterVec,
    /// Streams and connections that were refused, by reason.
    pub refused: IntCounterVec,
    /// Requests for certificates, by outcome.
    pub certificates: IntCounterVec,
    /// Snapshots published.
    pub models: IntCounter,
    findings: IntGaugeVec,
    /// Resources that connected proxies have rejected and not accepted since, by type.
    rejected: IntGaugeVec,
    /// What can be asked for, by type.
    resources: IntGaugeVec,
    /// When a certificate expires, in seconds of Unix time, by kind.
    expiration: IntGaugeVec,
}

/// What is read when metrics are asked for.
pub struct Gauges<'a> {
    /// The newest snapshot.
    pub model: &'a Model,
    /// What is wrong with what people wrote.
    pub findings: &'a [Finding],
    /// Who is connected.
    pub proxies: &'a [Connected],
    /// When the control plane's own certificate expires.
    pub leaf_expires: SystemTime,
    /// When the issuing chain expires.
    pub issuer_expires: SystemTime,
}

impl Metrics {
    /// # Errors
    /// When two metrics of ours have one name: never.
    pub fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, label: &str| {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            prometheus::Result::Ok(counters)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            prometheus::Result::Ok(gauge)
        };
        let gauges = |name: &str, help: &str, label: &str| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(gauges.clone()))?;
            prometheus::Result::Ok(gauges)
        };
        let models = IntCounter::new(
            "tulle_control_plane_models_total",
            "Snapshots of the model that were published",
        )?;
        registry.register(Box::new(models.clone()))?;
        let build = IntGaugeVec::new(Opts::new("tulle_build_info", "Always 1"), &["component", "version"])?;
        build.with_label_values(&["control-plane", env!("CARGO_PKG_VERSION")]).set(1);
        registry.register(Box::new(build))?;
        Ok(Self {
            proxies: gauge("tulle_control_plane_proxies", "ADS streams that are open")?,
            registrations: gauge(
                "tulle_control_plane_registrations",
                "Workloads that are registered by their stream",
            )?,
            resources_sent: counters(
                "tulle_control_plane_resources_sent_total",
                "Resources sent to proxies",
                "type",
            )?,
            removals_sent: counters(
                "tulle_control_plane_removals_sent_total",
                "Names told to proxies as absent",
                "type",
            )?,
            connections: gauge("tulle_control_plane_connections", "Connections of the gRPC port")?,
            acks: counters("tulle_control_plane_acks_total", "Responses that a proxy accepted", "type")?,
            nacks: counters(
                "tulle_control_plane_nacks_total",
                "Responses of which a proxy refused a part",
                "type",
            )?,
            refused_names: counters(
                "tulle_control_plane_refused_names_total",
                "Names answered as absent because the caller may not ask for them",
                "reason",
            )?,
            refused: counters(
                "tulle_control_plane_refused_total",
                "Connections and streams that were refused",
                "reason",
            )?,
            certificates: counters(
                "tulle_control_plane_certificate_requests_total",
                "Requests for certificates",
                "outcome",
            )?,
            findings: gauges(
                "tulle_control_plane_findings",
                "What is wrong with what people wrote, now",
                "severity",
            )?,
            rejected: gauges(
                "tulle_control_plane_rejected_resources",
                "Resources that connected proxies have rejected and not accepted since",
                "type",
            )?,
            resources: gauges(
                "tulle_control_plane_resources",
                "Resources that proxies can ask for; of Routes, the services that they lead to",
                "type",
            )?,
            expiration: gauges(
                "tulle_identity_cert_expiration_timestamp_seconds",
                "When a certificate in use expires: leaf (the control plane's own), issuer",
                "kind",
            )?,
            models,
            registry,
        })
    }

    /// In the Prometheus text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded: never.
    pub fn render(&self, now: &Gauges<'_>) -> prometheus::Result<Vec<u8>> {
        for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let count = now.findings.iter().filter(|finding| finding.severity == severity).count();
            set(&self.findings, word, count);
        }
        self.proxies.set(i64::try_from(now.proxies.len()).unwrap_or(i64::MAX));
        for resource_type in ResourceType::ALL {
            let rejected = now.proxies.iter().flat_map(|proxy| &proxy.rejected);
            let rejected = rejected.filter(|rejected| rejected.resource_type == resource_type).count();
            set(&self.rejected, resource_type.as_str(), rejected);
            set(&self.resources, resource_type.as_str(), now.model.names(resource_type).len());
        }
        for (kind, expires) in [("leaf", now.leaf_expires), ("issuer", now.issuer_expires)] {
            let seconds = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
            self.expiration.with_label_values(&[kind]).set(i64::try_from(seconds).unwrap_or(i64::MAX));
        }
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn set(family: &IntGaugeVec, label: &str, count: usize) {
    family.with_label_values(&[label]).set(i64::try_from(count).unwrap_or(i64::MAX));
}
