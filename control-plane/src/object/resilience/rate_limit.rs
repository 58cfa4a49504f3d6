//! RateLimitPolicy: how often requests may be sent.

use std::collections::BTreeSet;
use std::time::Duration;

use tulle_api::v1;

use super::traffic::MIN_TIME;
use super::{
    Identity, Kind, MAX_LIST, NamespacedName, Target, at_most, check_header_value, check_name,
    check_patterns, on_the_wire, read_headers, time_from, within,
};
use crate::finding::Notes;
use crate::kinds::{self, Direction, PolicyMode};
use crate::object::policy::{IDENTITY_HINT, read_name};

/// How many overrides a limit may have, and values each of them.
const MAX_OVERRIDES: usize = 64;
const MAX_VALUES: usize = 256;

/// One limit.
#[derive(Debug, Clone, PartialEq)]
pub struct Limit {
    /// As the wire has it, named, without ports; the overrides have no values where `identities` has them.
    limit: v1::RateLimit,
    /// Whose the overrides are, one list for each, where the limit is by identity.
    identities: Vec<Vec<Identity>>,
}

// === impl Limit ===

impl Limit {
    /// What requests must have to be counted.
    pub(super) fn headers(&self) -> &[v1::ValueMatch] {
        &self.limit.headers
    }

    /// As a proxy of this trust domain is told.
    pub fn on_the_wire(&self, trust_domain: &str) -> v1::RateLimit {
        let mut limit = self.limit.clone();
        let overrides = match &mut limit.dry_run {
            Some(dry_run) => &mut dry_run.overrides,
            None => &mut limit.overrides,
        };
        for (one, identities) in overrides.iter_mut().zip(&self.identities) {
            one.values = identities.iter().map(|identity| identity.spiffe_id(trust_domain)).collect();
        }
        limit
    }
}

/// What the whole policy says.
pub(super) fn read(
    policy: &NamespacedName,
    spec: &kinds::RateLimitPolicySpec,
    targets: &[Target],
    notes: &mut Notes,
) -> Vec<Limit> {
    if spec.limits.is_empty() {
        let hint = "write at least one: `limits: [{rate: {requests: 100}}]`";
        notes.refuse("spec.limits", "the policy limits nothing", hint);
    }
    at_most(MAX_LIST, spec.limits.len(), "spec.limits", notes);
    let mut names = BTreeSet::new();
    let mut limits = Vec::with_capacity(spec.limits.len());
    for (index, written) in spec.limits.iter().enumerate() {
        let at = format!("spec.limits[{index}]");
        let name = read_name(&at, index, written.name.as_deref(), &mut names, notes);
        let outbound = match spec.direction {
            Some(direction) => direction == Direction::Outbound,
            // As `Resilience::direction` says.
            None => targets.iter().all(|target| target.object.kind != Kind::Service),
        };
        limits.push(read_limit(&at, format!("{policy}/{name}"), written, outbound, notes));
    }
    check_patterns("spec.limits", limits.iter().flat_map(Limit::headers), notes);
    limits
}

fn read_limit(
    at: &str,
    name: String,
    written: &kinds::RateLimit,
    outbound: bool,
    notes: &mut Notes,
) -> Limit {
    let key = written.by.as_ref().and_then(|by| read_key(&format!("{at}.by"), by, notes));
    let by_identity = matches!(key, Some(v1::rate_limit::Key::Identity(_)));
    if by_identity && outbound {
        notes.warn(
            format!("{at}.by"),
            "a client's proxy sends for one identity only, so that this counts all requests together",
            "leave it out, or let the proxies behind the Service count: attach the policy to that, with `direction: Inbound`",
        );
    }
    if key.is_none() && !written.overrides.is_empty() && !notes.refused() {
        notes.refuse(
            format!("{at}.overrides"),
            "all requests are counted together, so that there is nothing to tell apart",
            "write `by: {identity: {}}` or `by: {header: …}`, or remove the overrides",
        );
    }
    at_most(MAX_OVERRIDES, written.overrides.len(), &format!("{at}.overrides"), notes);
    let mut identities = Vec::new();
    let mut overrides = Vec::with_capacity(written.overrides.len());
    for (index, one) in written.overrides.iter().enumerate() {
        let at = format!("{at}.overrides[{index}]");
        let field = format!("{at}.values");
        at_most(MAX_VALUES, one.values.len(), &field, notes);
        if one.values.is_empty() {
            notes.refuse(field.as_str(), "it is for nobody", "name a value, or remove the override");
        }
        let values = if by_identity {
            identities.push(read_identities(&field, &one.values, notes));
            Vec::new()
        } else {
            for (index, value) in one.values.iter().enumerate() {
                check_header_value(format!("{field}[{index}]"), value, notes);
            }
            one.values.clone()
        };
        overrides.push(v1::RateOverride {
            values,
            rate: Some(read_rate(&format!("{at}.rate"), &one.rate, notes)),
        });
    }
    let headers = read_headers(&format!("{at}.headers"), &written.headers, notes);
    let rate = Some(read_rate(&format!("{at}.rate"), &written.rate, notes));
    let (rate, overrides, dry_run) = match written.mode {
        PolicyMode::Enforce => (rate, overrides, None),
        PolicyMode::DryRun => (Some(everything()), Vec::new(), Some(v1::DryRunRate { rate, overrides })),
    };
    let limit = v1::RateLimit { name, headers, key, rate, overrides, ports: Vec::new(), dry_run };
    Limit { limit, identities }
}

/// A rate that no proxy reaches.
fn everything() -> v1::Rate {
    let burst = i32::MAX.unsigned_abs();
    v1::Rate { requests: 1_000_000_000, per: on_the_wire(Some(Duration::from_secs(1))), burst }
}

fn read_key(at: &str, by: &kinds::CountBy, notes: &mut Notes) -> Option<v1::rate_limit::Key> {
    use v1::rate_limit::Key;

    match (&by.identity, &by.header) {
        (Some(_), None) => Some(Key::Identity(v1::IdentityKey {})),
        (None, Some(header)) => {
            check_name(format!("{at}.header"), header, notes);
            Some(Key::Header(header.to_ascii_lowercase()))
        }
        _ => {
            let hint = "write exactly one of `identity: {}` and `header: …`, or leave `by` out to count all together";
            notes.refuse(at, "it is not clear what has a count of its own", hint);
            None
        }
    }
}

fn read_identities(field: &str, values: &[String], notes: &mut Notes) -> Vec<Identity> {
    let mut identities = Vec::with_capacity(values.len());
    for (index, text) in values.iter().enumerate() {
        match Identity::parse(text) {
            Some(identity) => identities.push(identity),
            None => {
                let message = format!("`{text}` is not an identity");
                notes.refuse(format!("{field}[{index}]"), message, IDENTITY_HINT);
            }
        }
    }
    identities
}

fn read_rate(at: &str, written: &kinds::Rate, notes: &mut Notes) -> v1::Rate {
    let field = format!("{at}.requests");
    if written.requests < 1 {
        notes.refuse(
            field.as_str(),
            format!("{} would let nothing through", written.requests),
            "1 or more; who may not call at all is an AuthorizationPolicy's business",
        );
    }
    let requests = u32::try_from(written.requests).unwrap_or_default();
    let per = time_from(MIN_TIME, &format!("{at}.per"), &written.per, notes);
    if per.is_some_and(|per| per.as_nanos() < u128::from(requests)) {
        let message = format!("{requests} requests in `{}` are more than one each nanosecond", written.per.0);
        notes.refuse(field, message, "leave the limit out, or write fewer");
    }
    let burst = written.burst.unwrap_or_else(|| written.requests.max(1));
    v1::Rate {
        requests,
        per: on_the_wire(per),
        burst: within(format!("{at}.burst"), burst, 1..=i32::MAX, notes),
    }
}
