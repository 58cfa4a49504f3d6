//! FaultPolicy: what goes wrong on purpose.

use std::collections::BTreeSet;

use tulle_api::v1;

use super::traffic::MIN_TIME;
use super::{
    MAX_LIST, NamespacedName, at_most, check_patterns, on_the_wire, read_headers, time_from, within,
};
use crate::finding::Notes;
use crate::kinds;
use crate::object::policy::read_name;

/// What the whole policy says.
pub(super) fn read(
    policy: &NamespacedName,
    spec: &kinds::FaultPolicySpec,
    notes: &mut Notes,
) -> Vec<v1::Fault> {
    if spec.rules.is_empty() {
        let hint = "write at least one: `rules: [{abort: {percent: 5, httpStatus: 503}}]`";
        notes.refuse("spec.rules", "nothing goes wrong by this policy", hint);
    }
    at_most(MAX_LIST, spec.rules.len(), "spec.rules", notes);
    let mut names = BTreeSet::new();
    let mut faults = Vec::with_capacity(spec.rules.len());
    for (index, written) in spec.rules.iter().enumerate() {
        let at = format!("spec.rules[{index}]");
        let name = read_name(&at, index, written.name.as_deref(), &mut names, notes);
        faults.push(read_rule(&at, format!("{policy}/{name}"), written, notes));
    }
    check_patterns("spec.rules", faults.iter().flat_map(|one| &one.headers), notes);
    faults
}

fn read_rule(at: &str, name: String, written: &kinds::FaultRule, notes: &mut Notes) -> v1::Fault {
    if written.delay.is_none() && written.abort.is_none() {
        let hint = "write `delay: {duration: 1s}`, or `abort: {httpStatus: 503}`, or both";
        notes.refuse(at, "nothing goes wrong by this rule", hint);
    }
    let mut fault = v1::Fault {
        name,
        headers: read_headers(&format!("{at}.headers"), &written.headers, notes),
        ..Default::default()
    };
    if let Some(delay) = &written.delay {
        let at = format!("{at}.delay");
        fault.delayed = millionths(format!("{at}.percent"), delay.percent, notes);
        fault.delay = on_the_wire(time_from(MIN_TIME, &format!("{at}.duration"), &delay.duration, notes));
    }
    if let Some(abort) = &written.abort {
        let at = format!("{at}.abort");
        fault.aborted = millionths(format!("{at}.percent"), abort.percent, notes);
        fault.abort = match (abort.http_status, abort.grpc_status) {
            (Some(status), None) => {
                let status = within(format!("{at}.httpStatus"), status, 200..=599, notes);
                Some(v1::fault::Abort::HttpStatus(status))
            }
            (None, Some(status)) => Some(v1::fault::Abort::GrpcStatus(status as u32)),
            _ => {
                let hint = "write exactly one of `httpStatus` and `grpcStatus`";
                notes.refuse(at, "it is not clear what the answer is", hint);
                None
            }
        };
    }
    fault
}

/// A percentage, of a million.
pub(in crate::object) fn millionths(field: String, percent: f64, notes: &mut Notes) -> u32 {
    if !(0.0..=100.0).contains(&percent) {
        notes.refuse(field.as_str(), format!("{percent} is out of bounds"), "0 to 100");
    }
    // In bounds where it counts; the cast saturates elsewhere.
    let read = (percent * 10_000.0).round() as u32;
    if read == 0 && percent > 0.0 {
        notes.refuse(field, format!("{percent} is so little that it is never"), "0.0001 or more, or 0");
    }
    read
}
