//! What the control plane counts.

use prometheus::{Encoder, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};

use crate::finding::{Finding, Severity};

/// All of it; cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// ADS streams that are open.
    pub proxies: IntGauge,
    /// Report streams that hold a registration.
    pub registrations: IntGauge,
    /// Resources sent, by type.
    pub resources_sent: IntCounterVec,
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
    /// When the issuing chain expires, in seconds of Unix time.
    pub issuer_expires: IntGauge,
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
        let findings = IntGaugeVec::new(
            Opts::new("tulle_control_plane_findings", "What is wrong with what people wrote, now"),
            &["severity"],
        )?;
        registry.register(Box::new(findings.clone()))?;
        let models = IntCounter::new(
            "tulle_control_plane_models_total",
            "Snapshots of the model that were published",
        )?;
        registry.register(Box::new(models.clone()))?;
        let build = IntGaugeVec::new(Opts::new("tulle_build_info", "The version that runs"), &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);
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
            issuer_expires: gauge(
                "tulle_control_plane_issuer_expiration_timestamp_seconds",
                "When the issuing chain expires",
            )?,
            models,
            findings,
            registry,
        })
    }

    /// Shows how many findings there are.
    pub fn set_findings(&self, findings: &[Finding]) {
        for (severity, word) in [(Severity::Error, "error"), (Severity::Warning, "warning")] {
            let count = findings.iter().filter(|finding| finding.severity == severity).count();
            self.findings.with_label_values(&[word]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    /// In the Prometheus text format.
    ///
    /// # Errors
    /// When a metric cannot be encoded: never.
    pub fn render(&self) -> prometheus::Result<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}
