//! What is said of what proxies tell of requests: by a TelemetryPolicy, and of the access log by the Mesh.

use tulle_api::{ACCESS_LOG_ALL, AccessLogFormat, InvalidAccessLog, access_log_statuses, v1};

use super::fault::millionths;
use super::{MAX_LIST, at_most, on_the_wire, time};
use crate::finding::Notes;
use crate::kinds::{self, LoggedErrors};

/// What a TelemetryPolicy says. On the wire's terms; what is empty or absent is not said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telemetry {
    /// What is logged.
    pub access_log: v1::AccessLog,
    /// Which traces are recorded.
    pub sampling: v1::Sampling,
}

/// What `written` at `at` says.
pub(in crate::object) fn access_log(
    at: &str,
    written: &kinds::AccessLog,
    notes: &mut Notes,
) -> v1::AccessLog {
    if let Some(format) = &written.format
        && let Err(error) = format.parse::<AccessLogFormat>()
    {
        let hint = "write `json`, `apache`, `ecs`, `none`, or a template such as `{status} {path}`";
        notes.refuse(format!("{at}.format"), InvalidAccessLog::to_string(&error), hint);
    }
    let said = written.statuses.as_deref();
    let statuses = said.map(|written| statuses(&format!("{at}.statuses"), written, notes));
    let min_duration = written.min_duration.as_ref();
    v1::AccessLog {
        format: written.format.clone().unwrap_or_default(),
        statuses,
        min_duration: on_the_wire(
            min_duration.and_then(|least| time(&format!("{at}.minDuration"), least, notes)),
        ),
        sampled: written
            .sample_percent
            .map(|percent| millionths(format!("{at}.samplePercent"), percent, notes)),
        filters_errors: written.errors.map(|errors| errors == LoggedErrors::Filtered),
    }
}

/// Those that `written` at `at` names; an empty list is said too.
fn statuses(at: &str, written: &[String], notes: &mut Notes) -> v1::LoggedStatuses {
    at_most(MAX_LIST, written.len(), at, notes);
    let mut said = v1::LoggedStatuses::default();
    for (index, text) in written.iter().enumerate() {
        match access_log_statuses(text) {
            _ if text == ACCESS_LOG_ALL => said.all = true,
            Ok(range) => {
                let range = v1::StatusRange { first: (*range.start()).into(), last: (*range.end()).into() };
                said.ranges.push(range);
            }
            Err(error) => notes.refuse(
                format!("{at}[{index}]"),
                error.to_string(),
                "write `404`, `500-599`, `5xx` or `all`",
            ),
        }
    }
    said
}

/// What the whole policy says.
pub(super) fn read(spec: &kinds::TelemetryPolicySpec, notes: &mut Notes) -> Telemetry {
    let logged = spec.access_log.as_ref().map(|written| access_log("spec.accessLog", written, notes));
    let sampled = spec.tracing.as_ref().and_then(|tracing| tracing.sampling.as_ref());
    let sampled = sampled.map(|written| v1::Sampling {
        millionths: written
            .percent
            .map(|percent| millionths("spec.tracing.sampling.percent".to_owned(), percent, notes)),
        ignores_parent: written.parent_based.map(|parent_based| !parent_based),
    });
    let said = Telemetry { access_log: logged.unwrap_or_default(), sampling: sampled.unwrap_or_default() };
    // What is refused may be all that it says.
    if said == Telemetry::default() && !notes.refused() {
        let hint = "write at least one field of `accessLog` or of `tracing.sampling`";
        notes.warn("spec", "the policy says nothing", hint);
    }
    said
}

// === impl Telemetry ===

impl Telemetry {
    /// What this does not say is said by `general`.
    #[must_use]
    pub fn over(self, general: Self) -> Self {
        let (logged, its) = (self.access_log, general.access_log);
        Self {
            access_log: v1::AccessLog {
                format: if logged.format.is_empty() { its.format } else { logged.format },
                statuses: logged.statuses.or(its.statuses),
                min_duration: logged.min_duration.or(its.min_duration),
                sampled: logged.sampled.or(its.sampled),
                filters_errors: logged.filters_errors.or(its.filters_errors),
            },
            sampling: v1::Sampling {
                millionths: self.sampling.millionths.or(general.sampling.millionths),
                ignores_parent: self.sampling.ignores_parent.or(general.sampling.ignores_parent),
            },
        }
    }

    /// The fields that it says something in, by the names that they have in YAML.
    pub fn fields(&self) -> Vec<&'static str> {
        let Self { access_log, sampling } = self;
        let fields = [
            ("accessLog.format", !access_log.format.is_empty()),
            ("accessLog.statuses", access_log.statuses.is_some()),
            ("accessLog.minDuration", access_log.min_duration.is_some()),
            ("accessLog.samplePercent", access_log.sampled.is_some()),
            ("accessLog.errors", access_log.filters_errors.is_some()),
            ("tracing.sampling.percent", sampling.millionths.is_some()),
            ("tracing.sampling.parentBased", sampling.ignores_parent.is_some()),
        ];
        fields.into_iter().filter(|(_, is_there)| *is_there).map(|(field, _)| field).collect()
    }

    /// What it says of the access log, if anything.
    pub fn logged(&self) -> Option<v1::AccessLog> {
        (self.access_log != v1::AccessLog::default()).then(|| self.access_log.clone())
    }

    /// What it says of traces, if anything.
    pub fn sampled(&self) -> Option<v1::Sampling> {
        (self.sampling != v1::Sampling::default()).then_some(self.sampling)
    }
}
