//! What is said of the access log: by a TelemetryPolicy, and by the Mesh.

use tulle_api::{AccessLogFormat, InvalidAccessLog, access_log_statuses, v1};

use super::fault::millionths;
use super::{MAX_LIST, at_most, on_the_wire, time};
use crate::finding::Notes;
use crate::kinds::{self, LoggedErrors};

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
    at_most(MAX_LIST, written.statuses.len(), &format!("{at}.statuses"), notes);
    let mut statuses = Vec::with_capacity(written.statuses.len());
    for (index, text) in written.statuses.iter().enumerate() {
        match access_log_statuses(text) {
            Ok(range) => {
                statuses.push(v1::StatusRange { first: (*range.start()).into(), last: (*range.end()).into() })
            }
            Err(error) => notes.refuse(
                format!("{at}.statuses[{index}]"),
                error.to_string(),
                "write `404`, `500-599` or `5xx`",
            ),
        }
    }
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

/// What the whole policy says.
pub(super) fn read(spec: &kinds::TelemetryPolicySpec, notes: &mut Notes) -> v1::AccessLog {
    let said = spec.access_log.as_ref().map(|written| access_log("spec.accessLog", written, notes));
    let said = said.unwrap_or_default();
    if said == v1::AccessLog::default() {
        notes.warn("spec", "the policy says nothing", "write at least one field of `accessLog`");
    }
    said
}
