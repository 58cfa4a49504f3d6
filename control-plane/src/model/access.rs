//! What becomes of policies that are about what comes in, and of EgressPolicies, at each of their targets: GEP-713's conditions, and what is
//! found wrong.
//!
//! Pure, and silent of policies that are refused, as [`super::policies`].

use std::collections::BTreeSet;

use tulle_api::{PATTERNS, v1};

use super::authentication;
use super::external;
use super::modes;
use super::policies::{AncestorRef, AncestorStatus, PolicyStatus};
use super::status::Condition;
use super::targets::{arriving, without_room};
use crate::finding::Notes;
use crate::index::Index;
use crate::object::{
    Access, AccessTarget, Authorization, Identity, Kind, NamespacedName, ObjectKey, PolicyTarget, Port,
    Protocol, Route, Subject,
};

/// The longest name that an ancestor may have.
const LONGEST: usize = 253;

/// What becomes of a policy at a target.
enum Outcome<'i> {
    /// There is no such Service or route, or no such port or rule of it: the field, and which, in words.
    NotThere(&'static str, String),
    /// Nothing of it is in the policy's namespace: why, in words.
    Abroad(String),
    /// Another policy comes first there.
    Conflicted(&'i Access),
    /// It holds, but for what is said here.
    Holds(Partly),
}

/// What a policy does not do at a route as it is written, in words.
#[derive(Default)]
struct Partly {
    /// What is not judged at all, since it is not the policy's namespace's.
    abroad: Vec<String>,
    /// Rules whose requests cannot be told from others.
    blurred: Vec<String>,
    /// Rules whose requests look otherwise on arrival.
    rewritten: Vec<String>,
}

/// The state of every policy about what comes in, then of every EgressPolicy.
pub fn access_statuses(index: &Index) -> Vec<PolicyStatus> {
    let access = index.access_policies().map(|stored| {
        let policy = &stored.object;
        let ancestors = policy.targets.iter().map(|target| AncestorStatus {
            ancestor_ref: ancestor(target),
            conditions: conditions(index, policy, target),
        });
        status(policy.kind, &policy.name, policy.generation, ancestors.collect())
    });
    let egress = index.egress_policies().map(|stored| {
        let policy = &stored.object;
        let mut ancestors: Vec<AncestorStatus> =
            policy.targets.iter().map(|target| at_service(index, target)).collect();
        if policy.targets.is_empty() {
            let ancestor_ref = of_namespace(&policy.name.namespace);
            ancestors.push(AncestorStatus { ancestor_ref, conditions: vec![accepted()] });
        }
        status(Kind::EgressPolicy, &policy.name, policy.generation, ancestors)
    });
    access.chain(egress).collect()
}

fn status(
    kind: Kind,
    name: &NamespacedName,
    generation: Option<i64>,
    ancestors: Vec<AncestorStatus>,
) -> PolicyStatus {
    PolicyStatus {
        kind: kind.to_string(),
        namespace: name.namespace.to_string(),
        name: name.name.to_string(),
        ancestors,
        generation,
    }
}

/// What is wrong with a policy at its targets, and with what it says of them.
pub(super) fn findings(index: &Index, policy: &Access, trust_domain: &str) -> Notes {
    let mut notes = Notes::default();
    for target in &policy.targets {
        let at = format!("spec.targetRefs[{}]", target.index);
        match outcome(index, policy, target) {
            Outcome::NotThere(field, message) => notes.error(
                format!("{at}.{field}"),
                format!("{message}; the policy is not attached there"),
                "write what it refers to, or correct the reference",
            ),
            Outcome::Abroad(message) => notes.error(
                at.as_str(),
                format!("{message}; nothing of the policy holds there"),
                "write the policy in the namespace of the Service",
            ),
            Outcome::Conflicted(winner) => notes.error(
                if target.object.kind == Kind::Namespace { "spec" } else { at.as_str() },
                format!("{}; nothing of this policy holds there", conflict(policy, winner, target)),
                "remove one of the two",
            ),
            Outcome::Holds(partly) => partly.tell(policy, &at, &mut notes),
        }
        if target.is_by_labels() && !index.knows_pods() {
            notes.warn(
                format!("{at}.selector"),
                "labels are of Pods, and a folder has none: nobody is meant here, though somebody may be in a cluster",
                "in a folder, name workloads or Services",
            );
        }
    }
    if let [first, rest @ ..] = &without_room(index, policy)[..] {
        let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        notes.error(
            "spec.targetRefs",
            format!(
                "at {first}{others} there is no room for the regular expressions of the routes, of which a proxy takes {PATTERNS}: requests \
                 are judged without them; {}",
                instead(policy)
            ),
            "use exact values and prefixes in the routes where they serve",
        );
    }
    if let Some(says) = policy.authorization() {
        ports(index, policy, says, &mut notes);
        opaque(index, policy, says, &mut notes);
        strangers(says, trust_domain, &mut notes);
    }
    if policy.mtls().is_some() {
        modes::disagreements(index, policy, &mut notes);
    }
    if let Some(says) = policy.external() {
        external::findings(index, policy, says, &mut notes);
    }
    if let Some(says) = policy.authentication() {
        authentication::findings(index, says, &mut notes);
    }
    notes
}

/// Tells of ports that no targeted Service has, where all targets are Services.
fn ports(index: &Index, policy: &Access, says: &Authorization, notes: &mut Notes) {
    let services = policy.targets.iter().filter(|target| target.object.kind == Kind::Service);
    let known: Vec<_> = services.filter_map(|target| index.service(&target.object.name)).collect();
    if known.is_empty() || policy.targets.iter().any(|target| target.object.kind != Kind::Service) {
        return;
    }
    let mut check = |field: String, number: u16| {
        if known.iter().all(|service| service.port(number).is_none()) {
            notes.error(
                field,
                format!("no targeted Service has a port {number}"),
                "ports here are the Service's, not those that the program listens on",
            );
        }
    };
    for (at, rule) in says.rules.iter().enumerate() {
        for (index, port) in rule.ports.iter().enumerate() {
            check(format!("spec.rules[{at}].toPorts[{index}]"), *port);
        }
        for (to, operation) in rule.to.iter().enumerate() {
            for (index, port) in operation.ports.iter().enumerate() {
                let number = u16::try_from(*port).unwrap_or_default();
                check(format!("spec.rules[{at}].to[{to}].ports[{index}]"), number);
            }
        }
    }
}

/// Tells of rules about requests where no port that is meant carries any, by what the Services declare.
fn opaque(index: &Index, policy: &Access, says: &Authorization, notes: &mut Notes) {
    let services = policy.targets.iter().filter(|target| target.object.kind == Kind::Service);
    if services.clone().count() < policy.targets.len() {
        return;
    }
    let ports: Vec<&Port> = services
        .flat_map(|target| {
            let ports = index.service(&target.object.name).into_iter().flat_map(|service| &service.ports);
            ports.filter(move |port| target.is_about(&port.name))
        })
        .collect();
    if ports.is_empty() || !ports.iter().all(|port| matches!(port.protocol, Protocol::Tcp | Protocol::Tls)) {
        return;
    }
    let comes_to = match says.action {
        v1::AccessAction::Deny => "it describes all of them that its other parts fit",
        _ => "it describes nothing",
    };
    for (at, rule) in says.rules.iter().enumerate().filter(|(_, rule)| rule.is_of_requests()) {
        notes.warn(
            format!("spec.rules[{at}]"),
            format!(
                "`{}` looks at requests, and no port of the targets carries any, by what the Services declare: of bytes, {comes_to}",
                rule.name
            ),
            "declare what the port speaks, by `appProtocol`, or name identities and ports only",
        );
    }
}

/// Tells of identities that nobody can prove.
fn strangers(says: &Authorization, trust_domain: &str, notes: &mut Notes) {
    let own = format!("spiffe://{trust_domain}/");
    for (at, rule) in says.rules.iter().enumerate() {
        for who in rule.from.iter().flat_map(|source| &source.identities) {
            if let Subject::Exact(Identity::Spiffe(id)) = who
                && !id.starts_with(&own)
            {
                notes.warn(
                    format!("spec.rules[{at}].from"),
                    format!("`{id}` is of another trust domain than `{trust_domain}`, so nobody can prove to be it"),
                    "",
                );
            }
        }
    }
}

// === impl Partly ===

impl Partly {
    fn of(index: &Index, policy: &Access, target: &AccessTarget, route: &Route) -> Self {
        let mut partly = Self::default();
        let rules = route.rules.iter().filter(|rule| target.is_about(&rule.name));
        let mut abroad: BTreeSet<&NamespacedName> = BTreeSet::new();
        for rule in rules {
            let backends = rule.backends.iter().filter(|backend| backend.is_service);
            let ends = backends.map(|backend| &backend.service).chain(route.services());
            abroad.extend(ends.filter(|service| {
                service.namespace != policy.name.namespace && index.service(service).is_some()
            }));
            let Some(arriving) = arriving(rule) else { continue };
            let of_rule = |what: &String| format!("rule {}: {what}", rule.index);
            partly.blurred.extend(arriving.blurred.iter().map(of_rule));
            if arriving.is_rewritten {
                partly.rewritten.push(format!("rule {}", rule.index));
            }
        }
        let abroad = abroad.into_iter();
        partly.abroad.extend(
            abroad.map(|service| format!("requests that arrive at Service {service} are not judged")),
        );
        partly
    }

    fn tell(&self, policy: &Access, at: &str, notes: &mut Notes) {
        if !self.abroad.is_empty() {
            notes.warn(
                at,
                format!("{}: a policy has no say in another namespace", self.abroad.join("; ")),
                "write a policy in the namespace of the Service",
            );
        }
        if !self.blurred.is_empty() {
            notes.error(
                at,
                format!(
                    "{}, so that its requests cannot be told from others where they arrive; {}",
                    self.blurred.join("; "),
                    instead(policy)
                ),
                "attach the policy to the Service, and say what it is about by `to` and `when`",
            );
        }
        if !self.rewritten.is_empty() {
            notes.warn(
                at,
                format!(
                    "{} rewrites the path: where requests are judged they have the rewritten one, and so have others that ask for it",
                    self.rewritten.join(", ")
                ),
                "",
            );
        }
    }
}

/// What holds where a policy's requests cannot be told from others.
fn instead(policy: &Access) -> &'static str {
    if policy.external().is_some() {
        return "the authorizer is asked about the others, too";
    }
    if policy.authentication().is_some() {
        return "the others are asked for a token, too";
    }
    match policy.authorization().map(|says| (says.action, says.dry_run)) {
        Some((v1::AccessAction::Allow, false)) => "nobody is allowed by the policy there",
        Some((v1::AccessAction::Deny, false)) => "the others are denied, too",
        _ => "nothing of the policy holds there",
    }
}

/// Reasons are GEP-713's.
fn conditions(index: &Index, policy: &Access, target: &AccessTarget) -> Vec<Condition> {
    let not = |reason, message| vec![Condition { condition: "Accepted", status: "False", reason, message }];
    match outcome(index, policy, target) {
        Outcome::NotThere(_, message) => not("TargetNotFound", message),
        Outcome::Abroad(message) => not("Invalid", message),
        Outcome::Conflicted(winner) => not("Conflicted", conflict(policy, winner, target)),
        Outcome::Holds(Partly { abroad, mut blurred, .. }) => {
            if !blurred.is_empty() {
                blurred.push(instead(policy).to_owned());
            }
            let messages: Vec<String> = abroad.into_iter().chain(blurred).collect();
            let partly = (!messages.is_empty()).then(|| Condition {
                condition: "Programmed",
                status: "True",
                reason: "PartiallyProgrammed",
                message: messages.join("; "),
            });
            let unasked = policy.external().and_then(|says| {
                let (_, message, _) = external::unresolved(index, policy, says)?;
                let message = format!("{message}: {}", external::meanwhile(says));
                Some(Condition { condition: "Programmed", status: "False", reason: "Invalid", message })
            });
            std::iter::once(accepted()).chain(unasked.or(partly)).collect()
        }
    }
}

fn outcome<'i>(index: &'i Index, policy: &Access, target: &AccessTarget) -> Outcome<'i> {
    let object = &target.object;
    let mut partly = Partly::default();
    match object.kind {
        Kind::Service => {
            let Some(service) = index.service(&object.name) else {
                return Outcome::NotThere("name", format!("there is no {object}"));
            };
            if let Some(section) = &target.section
                && service.ports.iter().all(|port| port.name != *section)
            {
                let message = format!("{object} has no port called `{section}`");
                return Outcome::NotThere("sectionName", message);
            }
        }
        // Whoever serves nothing is known to nobody.
        Kind::Workload | Kind::Namespace => {}
        _ => {
            let Some(route) = index.route(object) else {
                return Outcome::NotThere("name", format!("there is no {object}"));
            };
            if let Some(section) = &target.section
                && route.rules.iter().all(|rule| rule.name != *section)
            {
                let message = format!("{object} has no rule called `{section}`");
                return Outcome::NotThere("sectionName", message);
            }
            let mut ends = route.services().chain(route.backends());
            if !ends.any(|service| service.namespace == policy.name.namespace) {
                return Outcome::Abroad(abroad(object, route));
            }
            partly = Partly::of(index, policy, target, route);
        }
    }
    if policy.mtls().is_some()
        && let Some(winner) = index.before(policy, target)
    {
        return Outcome::Conflicted(winner);
    }
    Outcome::Holds(partly)
}

fn abroad(object: &ObjectKey, route: &Route) -> String {
    let services: BTreeSet<String> =
        route.services().chain(route.backends()).map(|service| format!("Service {service}")).collect();
    let services: Vec<String> = services.into_iter().collect();
    match services.is_empty() {
        true => format!("{object} is attached to no Service"),
        false => format!(
            "what follows {object} arrives in other namespaces only ({}), where a policy of this one has no say",
            services.join(", ")
        ),
    }
}

fn conflict(policy: &Access, winner: &Access, target: &AccessTarget) -> String {
    let section = target.section.as_ref().map(|name| format!(", `{name}`,")).unwrap_or_default();
    let because = if winner.created == policy.created { "the first by name" } else { "older" };
    let labels = if target.is_by_labels() { " by the same labels" } else { "" };
    format!(
        "{} is attached to {}{section}{labels} too and holds, being {because}",
        winner.key(),
        target.object
    )
}

fn ancestor(target: &AccessTarget) -> AncestorRef {
    if target.is_by_labels() {
        let labels = target.labels.iter().map(|(key, value)| format!("{key}={value}"));
        let name = labels.collect::<Vec<_>>().join(",");
        return AncestorRef {
            group: "policy.tulle.dev",
            kind: Kind::Workload.as_str(),
            namespace: target.object.name.name.to_string(),
            name: name.chars().take(LONGEST).collect(),
            section_name: None,
        };
    }
    if target.object.kind == Kind::Namespace {
        return of_namespace(&target.object.name.name);
    }
    AncestorRef {
        group: match target.object.kind {
            Kind::Service => "",
            Kind::Workload => "policy.tulle.dev",
            _ => "gateway.networking.k8s.io",
        },
        kind: target.object.kind.as_str(),
        namespace: target.object.name.namespace.to_string(),
        name: target.object.name.name.to_string(),
        section_name: target.section.clone(),
    }
}

fn of_namespace(name: &str) -> AncestorRef {
    AncestorRef {
        group: "",
        kind: Kind::Namespace.as_str(),
        namespace: String::new(),
        name: name.to_owned(),
        section_name: None,
    }
}

fn at_service(index: &Index, target: &PolicyTarget) -> AncestorStatus {
    let condition = if index.service(&target.service).is_some() {
        accepted()
    } else {
        Condition {
            condition: "Accepted",
            status: "False",
            reason: "TargetNotFound",
            message: format!("there is no Service {}", target.service),
        }
    };
    let ancestor_ref = AncestorRef {
        group: "",
        kind: Kind::Service.as_str(),
        namespace: target.service.namespace.to_string(),
        name: target.service.name.to_string(),
        section_name: None,
    };
    AncestorStatus { ancestor_ref, conditions: vec![condition] }
}

fn accepted() -> Condition {
    Condition { condition: "Accepted", status: "True", reason: "Accepted", message: String::new() }
}
