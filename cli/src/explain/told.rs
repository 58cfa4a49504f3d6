//! What the client's proxy tells of such a request, by what policies say: which of its traces it records, and what it logs.
//!
//! Said of the rule, of the port, and of the client's workload or its namespace, field by field in this order, as the proxy asks. What
//! none of them says the Mesh says; and before all of them the proxy's own variables, which nobody knows here.

use tulle_proxy::policy::InboundSpec;
use tulle_proxy::route::{MILLION, RequestPolicy, Requests};
use tulle_proxy::telemetry::access::{Errors, Said, Share};
use tulle_proxy::telemetry::trace::Sampling;

use super::answer::{Handled, Logged};

/// Whoever may say something, in order; the rule, the port, the workload.
struct Places<'a, S> {
    places: [Option<&'a S>; 3],
    by_route: Vec<&'static str>,
    by_workload: Vec<&'static str>,
}

/// Adds it to what is done for the request. `workload`: what is said of the client's.
pub(super) fn add(handled: &mut Handled, said: &Requests<'_>, workload: Option<&InboundSpec>) {
    let of = |policy: Option<&RequestPolicy>| policy.map(|policy| policy.sampling);
    let [rule, port] = [of(said.rule), of(said.port)];
    let workloads = workload.map(|said| said.sampling);
    let mut traced = Places::new([rule.as_ref(), port.as_ref(), workloads.as_ref()]);
    handled.sampling_percent = traced.first("sampling_percent", |said: &Sampling| {
        said.millionths.map(|of| f64::from(of) / f64::from(MILLION / 100))
    });
    handled.sampling_parent_based = traced.first("sampling_parent_based", |said| said.parent_based);

    let log = |policy: Option<&RequestPolicy>| policy.and_then(|policy| policy.access_log.clone());
    let [rule, port] = [log(said.rule), log(said.port)];
    let mut logged =
        Places::new([rule.as_deref(), port.as_deref(), workload.and_then(|said| said.access_log.as_ref())]);
    handled.access_log = Logged {
        format: logged
            .first("access_log.format", |said: &Said| said.format.as_ref().map(ToString::to_string)),
        statuses: logged.first("access_log.statuses", |said| said.statuses.as_ref().map(ToString::to_string)),
        min_duration: logged
            .first("access_log.min_duration", |said| said.min_duration.map(|least| format!("{least:?}"))),
        sample_percent: logged.first("access_log.sample_percent", |said| said.sample.map(Share::as_percent)),
        filters_errors: logged
            .first("access_log.filters_errors", |said| said.errors.map(|errors| errors == Errors::Filtered)),
    };
    for (by_route, by_workload) in
        [(traced.by_route, traced.by_workload), (logged.by_route, logged.by_workload)]
    {
        handled.by_route.extend(by_route);
        handled.by_workload.extend(by_workload);
    }
}

// === impl Places ===

impl<'a, S> Places<'a, S> {
    fn new(places: [Option<&'a S>; 3]) -> Self {
        Self { places, by_route: Vec::new(), by_workload: Vec::new() }
    }

    /// What the first says that says it; `field` is noted as its.
    fn first<T>(&mut self, field: &'static str, of: impl Fn(&S) -> Option<T>) -> Option<T> {
        let said = |(at, place): (usize, &Option<&S>)| Some((at, of((*place)?)?));
        let (at, value) = self.places.iter().enumerate().find_map(said)?;
        match at {
            0 => self.by_route.push(field),
            2 => self.by_workload.push(field),
            _ => {}
        }
        Some(value)
    }
}
