//! TrafficPolicy, RateLimitPolicy, FaultPolicy and TelemetryPolicy: how Services, and requests that follow routes, are treated, and what
//! is told of them.
//!
//! Each is read straight into what a proxy is told, with every default filled in; [`crate::model`] only puts together what
//! several policies say. What an API server would refuse by the schema, or by rules over one object's fields (unknown values, bounds,
//! two fields that cannot be together), refuses the policy, whose last good version then holds.
//!
//! - `traffic`, `requests`, `rate_limit`, `fault`, `telemetry`: what is said; here: of what, and by whom.

mod fault;
mod rate_limit;
mod requests;
mod telemetry;
mod traffic;

use std::ops::RangeInclusive;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tulle_api::v1;

pub(super) use self::fault::millionths;
pub use self::rate_limit::Limit;
pub use self::telemetry::Telemetry;
pub(super) use self::telemetry::access_log;
pub use self::traffic::zones_by_default;
use super::policy::{foreign, refuse_foreign};
use super::route::{REGEX_HINT, check_header_value, check_name, created, read_duration, regex_fault};
use super::{Identity, Kind, NamespacedName, ObjectKey, is_label, is_subdomain};
use crate::finding::Notes;
use crate::kinds::{self, Direction, HeaderMatch, MatchType, SectionTargetRef};

/// How many targets a policy may have.
const MAX_TARGETS: usize = 16;
/// How many rules or limits a policy may have, and headers each of them.
const MAX_LIST: usize = 16;
/// How many regular expressions a policy may have: each may need 128 KiB in every proxy.
const MAX_PATTERNS: usize = 16;
/// The group of routes.
const GATEWAY: &str = "gateway.networking.k8s.io";
/// The group of workloads, and of the policies themselves.
const OWN: &str = "policy.tulle.dev";

/// A TrafficPolicy, a RateLimitPolicy, a FaultPolicy or a TelemetryPolicy, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Resilience {
    /// Which of the four.
    pub kind: Kind,
    /// Its own name; targets share its namespace.
    pub name: NamespacedName,
    /// Seconds since 1970; none (newest of all) unless the object says.
    pub created: Option<i64>,
    /// Of the spec that this is, where an API server counts them.
    pub generation: Option<i64>,
    /// Each once.
    pub targets: Vec<Target>,
    /// What holds there.
    pub says: Says,
}

/// What a policy is attached to; it may not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// A Service, a workload, an HTTPRoute or a GRPCRoute in the policy's namespace; or that, with all of its workloads.
    pub object: ObjectKey,
    /// Only the Service's port, or the route's rule, of this name.
    pub section: Option<String>,
    /// Its place in `targetRefs`.
    pub index: usize,
}

/// What a policy says. On the wire's terms, so that there is one form of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Says {
    /// Of a route, `requests` only.
    Traffic(Box<v1::Traffic>),
    /// Who counts, where it is said, and what.
    Limits(Option<Direction>, Vec<Limit>),
    /// Named as on the wire.
    Faults(Vec<v1::Fault>),
    /// Of the access log, and of traces.
    Telemetry(Box<Telemetry>),
}

/// `targetRefs`, as they are written.
#[derive(Clone, Copy)]
struct Refs<'a> {
    written: &'a [SectionTargetRef],
    /// Whether they may name workloads, and none at all stands for all those of the namespace.
    of_workloads: bool,
}

// === impl Resilience ===

impl Resilience {
    pub(super) fn read_traffic(object: &kinds::TrafficPolicy, notes: &mut Notes) -> Self {
        let says = |_: &NamespacedName, _: &[Target], notes: &mut Notes| {
            Says::Traffic(Box::new(traffic::read(&object.spec, notes)))
        };
        let refs = Refs { written: &object.spec.target_refs, of_workloads: false };
        Self::read(Kind::TrafficPolicy, &object.metadata, refs, says, notes)
    }

    pub(super) fn read_limits(object: &kinds::RateLimitPolicy, notes: &mut Notes) -> Self {
        let says = |name: &NamespacedName, targets: &[Target], notes: &mut Notes| {
            Says::Limits(object.spec.direction, rate_limit::read(name, &object.spec, targets, notes))
        };
        let refs = Refs { written: &object.spec.target_refs, of_workloads: false };
        Self::read(Kind::RateLimitPolicy, &object.metadata, refs, says, notes)
    }

    pub(super) fn read_faults(object: &kinds::FaultPolicy, notes: &mut Notes) -> Self {
        let says = |name: &NamespacedName, _: &[Target], notes: &mut Notes| {
            Says::Faults(fault::read(name, &object.spec, notes))
        };
        let refs = Refs { written: &object.spec.target_refs, of_workloads: false };
        Self::read(Kind::FaultPolicy, &object.metadata, refs, says, notes)
    }

    pub(super) fn read_telemetry(object: &kinds::TelemetryPolicy, notes: &mut Notes) -> Self {
        let says = |_: &NamespacedName, _: &[Target], notes: &mut Notes| {
            Says::Telemetry(Box::new(telemetry::read(&object.spec, notes)))
        };
        let refs = Refs { written: &object.spec.target_refs, of_workloads: true };
        Self::read(Kind::TelemetryPolicy, &object.metadata, refs, says, notes)
    }

    fn read(
        kind: Kind,
        metadata: &ObjectMeta,
        refs: Refs<'_>,
        says: impl FnOnce(&NamespacedName, &[Target], &mut Notes) -> Says,
        notes: &mut Notes,
    ) -> Self {
        let name = NamespacedName::of(metadata);
        let targets = read_targets(&name, refs, notes);
        let says = says(&name, &targets, notes);
        let generation = metadata.generation;
        let policy = Self { kind, created: created(metadata), generation, targets, says, name };
        policy.check_routes(notes);
        policy
    }

    /// Which object it is.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, name: self.name.clone() }
    }

    /// The order in which policies on the same target win: oldest first, then by `<namespace>/<name>` (GEP-713).
    pub fn precedence(&self) -> impl Ord + use<> {
        (self.created.is_none(), self.created, self.name.to_string())
    }

    /// Its regular expressions.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        let (limits, faults) = match &self.says {
            Says::Traffic(_) | Says::Telemetry(_) => (&[] as &[Limit], &[] as &[v1::Fault]),
            Says::Limits(_, limits) => (&limits[..], &[] as &[v1::Fault]),
            Says::Faults(faults) => (&[] as &[Limit], &faults[..]),
        };
        let headers =
            limits.iter().flat_map(Limit::headers).chain(faults.iter().flat_map(|one| &one.headers));
        headers.filter_map(|header| match &header.value {
            Some(v1::value_match::Value::Regex(regex)) => Some(regex.as_str()),
            _ => None,
        })
    }

    /// Who does what it says of `target`; where both sides do, the client.
    pub fn direction(&self, target: &Target) -> Direction {
        match &self.says {
            Says::Limits(direction, _) if target.object.kind == Kind::Service => {
                direction.unwrap_or(Direction::Inbound)
            }
            _ => Direction::Outbound,
        }
    }

    /// What says something of Services only is refused where a target is a route.
    fn check_routes(&self, notes: &mut Notes) {
        let is_route = |target: &&Target| matches!(target.object.kind, Kind::HttpRoute | Kind::GrpcRoute);
        let Some(route) = self.targets.iter().find(is_route) else {
            return;
        };
        let refuse = |field: &str, hint: &str, notes: &mut Notes| {
            notes.refuse(
                format!("spec.{field}"),
                format!(
                    "`{field}` cannot be said of requests that follow a route (spec.targetRefs[{}] is a {})",
                    route.index, route.object.kind
                ),
                hint,
            );
        };
        match &self.says {
            Says::Traffic(traffic) => {
                for field in traffic::of_services_only(traffic) {
                    refuse(field, "write it in a TrafficPolicy whose targets are Services", notes);
                }
            }
            Says::Limits(Some(Direction::Inbound), _) => {
                refuse("direction", "`Outbound`, or attach the policy to a Service", notes);
            }
            Says::Limits(..) | Says::Faults(_) | Says::Telemetry(_) => {}
        }
    }
}

// === impl Target ===

impl Target {
    /// Whether the port or rule of this name is meant.
    pub fn is_about(&self, name: &str) -> bool {
        self.section.as_deref().is_none_or(|section| section == name)
    }
}

fn read_targets(policy: &NamespacedName, refs: Refs<'_>, notes: &mut Notes) -> Vec<Target> {
    const HINT: &str = "name at least one: `targetRefs: [{group: \"\", kind: Service, name: …}]`";

    let Refs { written: refs, of_workloads } = refs;
    if refs.is_empty() {
        if of_workloads {
            let name = NamespacedName::new("", policy.namespace.clone());
            let object = ObjectKey { kind: Kind::Namespace, name };
            return vec![Target { object, section: None, index: 0 }];
        }
        notes.refuse("spec.targetRefs", "the policy is attached to nothing", HINT);
    }
    at_most(MAX_TARGETS, refs.len(), "spec.targetRefs", notes);
    let mut targets: Vec<Target> = Vec::with_capacity(refs.len());
    for (index, written) in refs.iter().enumerate() {
        let at = format!("spec.targetRefs[{index}]");
        let kind = match (written.group.as_str(), written.kind.as_str()) {
            ("" | "core", "Service") => Kind::Service,
            (GATEWAY, "HTTPRoute") => Kind::HttpRoute,
            (GATEWAY, "GRPCRoute") => Kind::GrpcRoute,
            (OWN, "Workload") if of_workloads => Kind::Workload,
            (group, kind)
                if matches!(kind, "Service" | "HTTPRoute" | "GRPCRoute")
                    || of_workloads && kind == "Workload" =>
            {
                let right = match kind {
                    "Service" => "",
                    "Workload" => OWN,
                    _ => GATEWAY,
                };
                notes.refuse(
                    format!("{at}.group"),
                    format!("`{group}` has no kind {kind}"),
                    &format!("write `group: \"{right}\"`"),
                );
                continue;
            }
            (_, kind) => {
                notes.refuse(
                    format!("{at}.kind"),
                    format!("the policy cannot be attached to a `{kind}`"),
                    match of_workloads {
                        true => "attach it to a Service, a Workload, an HTTPRoute or a GRPCRoute",
                        false => "attach it to a Service, an HTTPRoute or a GRPCRoute",
                    },
                );
                continue;
            }
        };
        let valid = if kind == Kind::Service { is_label(&written.name) } else { is_subdomain(&written.name) };
        if !valid {
            let message = format!("`{}` cannot be the name of a {kind}", written.name);
            notes.refuse(format!("{at}.name"), message, "lower case letters, digits and `-`");
        }
        if let Some(other) = foreign(policy, written.namespace.as_deref()) {
            refuse_foreign(index, other, notes);
        }
        let object =
            ObjectKey { kind, name: NamespacedName::new(policy.namespace.clone(), written.name.as_str()) };
        let section = written.section_name.clone().filter(|name| !name.is_empty());
        if kind == Kind::Workload && section.is_some() {
            notes.refuse(
                format!("{at}.sectionName"),
                "a workload has neither ports nor rules that could be named",
                "remove it, or attach the policy to a Service's port",
            );
        }
        let target = Target { object, section, index };
        let same = |known: &Target| (&known.object, &known.section) == (&target.object, &target.section);
        if targets.iter().any(same) {
            notes.refuse(at, format!("{} is a target twice", target.object), "remove one");
        } else {
            targets.push(target);
        }
    }
    targets
}

// What every kind has. `field` is always the whole path.

/// Refuses a list that is longer than the schema allows.
pub(super) fn at_most(max: usize, length: usize, field: &str, notes: &mut Notes) {
    if length > max {
        let hint = "leave some out, or write several policies on targets of their own";
        notes.refuse(field, format!("{length} entries: more than the {max} that are allowed"), hint);
    }
}

/// A number; refused outside the schema's bounds.
fn within(field: String, number: i32, bounds: RangeInclusive<i32>, notes: &mut Notes) -> u32 {
    if !bounds.contains(&number) {
        let hint = match *bounds.end() {
            i32::MAX => format!("{} or more", bounds.start()),
            end => format!("{} to {end}", bounds.start()),
        };
        notes.refuse(field, format!("{number} is out of bounds"), &hint);
    }
    u32::try_from(number).unwrap_or_default()
}

/// A time that may be 0.
fn time(field: &str, written: &kinds::Duration, notes: &mut Notes) -> Option<Duration> {
    read_duration(field, &written.0, notes)
}

/// A time; refused below `least`.
fn time_from(least: Duration, field: &str, written: &kinds::Duration, notes: &mut Notes) -> Option<Duration> {
    let read = time(field, written, notes)?;
    if read < least {
        let hint =
            if least.as_millis() == 0 { "more than 0s".to_owned() } else { format!("{least:?} or more") };
        notes.refuse(field, format!("`{}` is too short", written.0), &hint);
    }
    Some(read)
}

/// As the wire has it.
fn on_the_wire(read: Option<Duration>) -> Option<prost_types::Duration> {
    read.and_then(|duration| duration.try_into().ok())
}

/// What `headers` at `field` ask for.
fn read_headers(field: &str, headers: &[HeaderMatch], notes: &mut Notes) -> Vec<v1::ValueMatch> {
    at_most(MAX_LIST, headers.len(), field, notes);
    let mut read: Vec<v1::ValueMatch> = Vec::with_capacity(headers.len());
    for (index, header) in headers.iter().enumerate() {
        let at = format!("{field}[{index}]");
        if !check_name(format!("{at}.name"), &header.name, notes) {
            continue;
        }
        let name = header.name.to_ascii_lowercase();
        if read.iter().any(|known| known.name == name) {
            let hint = "remove one; a regular expression can say both";
            notes.refuse(format!("{at}.name"), format!("`{name}` is matched twice"), hint);
        }
        let at = format!("{at}.value");
        let value = match header.r#type {
            MatchType::Exact => {
                check_header_value(at, &header.value, notes);
                v1::value_match::Value::Exact(header.value.clone())
            }
            MatchType::RegularExpression => {
                if let Some(message) = regex_fault(&header.value) {
                    notes.refuse(at, message, REGEX_HINT);
                }
                v1::value_match::Value::Regex(header.value.clone())
            }
        };
        read.push(v1::ValueMatch { name, value: Some(value) });
    }
    read
}

/// Refuses a policy with more regular expressions than a proxy is asked to bear.
fn check_patterns<'m>(field: &str, matches: impl Iterator<Item = &'m v1::ValueMatch>, notes: &mut Notes) {
    let is_regex = |one: &&v1::ValueMatch| matches!(one.value, Some(v1::value_match::Value::Regex(_)));
    let count = matches.filter(is_regex).count();
    if count > MAX_PATTERNS {
        notes.refuse(
            field,
            format!("{count} regular expressions: more than the {MAX_PATTERNS} that are allowed"),
            "use exact values where they serve, or several policies",
        );
    }
}

fn grpc_codes(codes: &[kinds::GrpcCode]) -> Vec<u32> {
    let mut codes: Vec<u32> = codes.iter().map(|code| *code as u32).collect();
    codes.sort_unstable();
    codes.dedup();
    codes
}
