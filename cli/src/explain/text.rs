//! An explanation for people.

use super::answer::{
    Answer, Endpoint, Failure, From, Handled, Injected, Logged, NotTaken, Retried, RuleName, Session, Share,
    Taken,
};

/// So many endpoints of a backend.
const SHOWN: usize = 16;

/// From the request to who serves it, then what was passed by.
pub(super) fn lines(answer: &Answer) -> String {
    let to = &answer.to;
    let mut lines = vec![
        answer.request.clone(),
        format!("from  {}", answer.from.shown()),
        format!("to    Service {} port {} ({})", to.service, to.port, to.protocol),
    ];
    match (&answer.taken, &answer.fails) {
        (Some(taken), _) => rule(taken, &mut lines),
        (None, None) => lines.push("no route is attached to this port: the Service itself".to_owned()),
        (None, Some(_)) if answer.backends.is_empty() => lines.push("no rule takes it".to_owned()),
        (None, Some(_)) => lines.push("no route is attached to this port: the Service itself".to_owned()),
    }
    if answer.backends.iter().any(|share| share.fails.is_none()) {
        handled(&answer.requests, &mut lines);
    }
    for share in &answer.backends {
        backend(share, &mut lines);
    }
    if answer.cannot_tell {
        lines.push("cannot be told: rules name whom they let in, and the client's identity is not known (--identity)".to_owned());
    }
    lines.extend(answer.notes.iter().map(|note| format!("note: {note}")));
    if let Some(failure) = &answer.fails {
        lines.push(format!("fails: {}", failure.shown()));
        lines.push(format!("  {}", failure.remedy));
    }
    if !answer.not_taken.is_empty() {
        lines.push("not taken:".to_owned());
        lines.extend(answer.not_taken.iter().map(other));
    }
    lines.join("\n")
}

fn rule(taken: &Taken, lines: &mut Vec<String>) {
    let because = match &*taken.because {
        [] => "every request".to_owned(),
        all => all.join(", "),
    };
    lines.push(format!("{}: {because}", taken.rule.shown()));
    lines.extend(taken.filters.iter().map(|filter| format!("  {filter}")));
    if let Some(redirect) = &taken.redirect {
        lines.push(format!("  answers {} with Location: {}", redirect.status, redirect.location));
    }
    lines.extend(taken.session.as_ref().map(kept));
}

fn handled(requests: &Handled, lines: &mut Vec<String>) {
    let by = |field: &str| match field {
        field if requests.by_route.contains(&field) => "the route",
        field if requests.by_workload.contains(&field) => "the workload or its namespace",
        _ => "the Service",
    };
    let timeouts = [
        ("request", "request_timeout", &requests.request_timeout),
        ("each try", "backend_timeout", &requests.backend_timeout),
    ];
    for (of, field, timeout) in timeouts {
        let by = by(field);
        lines.extend(timeout.as_ref().map(|timeout| format!("  within {timeout} ({of}; by {by})")));
    }
    let (idle, by_whom) = (requests.idle_timeout.as_ref(), by("idle_timeout"));
    lines.extend(
        idle.map(|idle| format!("  until nothing has passed of its bodies for {idle} (by {by_whom})")),
    );
    let (header, by_whom) = (requests.deadline_header.as_ref(), by("deadline_header"));
    lines.extend(header.map(|header| format!("  within what {header} says, in milliseconds (by {by_whom})")));
    let (retry, by_whom) = (requests.retry.as_ref(), by("retry"));
    lines.extend(retry.map(|retry| format!("  {} (by {by_whom})", retry.shown())));
    if let Some(Injected { rule, delay, abort }) = &requests.fault {
        let delay =
            delay.as_ref().map(|(percent, long)| format!("{percent} % of the tries are held for {long}"));
        let abort =
            abort.as_ref().map(|(percent, with)| format!("{percent} % of the tries are answered {with}"));
        let all: Vec<_> = delay.into_iter().chain(abort).collect();
        lines.push(format!("  on purpose (fault {rule}): {}", all.join(", ")));
    }
    let (percent, by_whom) = (requests.sampling_percent, by("sampling_percent"));
    lines.extend(percent.map(|of| format!("  where it begins a trace, {of} % are recorded (by {by_whom})")));
    let (parent_based, by_whom) = (requests.sampling_parent_based, by("sampling_parent_based"));
    lines.extend(parent_based.map(|parent_based| {
        let whose = if parent_based { "as" } else { "whatever" };
        format!("  its trace is recorded {whose} its headers say (by {by_whom})")
    }));
    let Logged { format, statuses, min_duration, sample_percent, filters_errors } = &requests.access_log;
    let logged = [
        ("format", format.as_ref().map(|format| format!("as {format}"))),
        ("statuses", statuses.as_ref().map(|statuses| format!("if it is answered {statuses}"))),
        ("min_duration", min_duration.as_ref().map(|least| format!("if it takes {least} or longer"))),
        ("sample_percent", sample_percent.map(|of| format!("{of} % of the times"))),
        (
            "filters_errors",
            filters_errors.map(|filters| match filters {
                true => "where a proxy fails it only as all else is".to_owned(),
                false => "always where a proxy fails it".to_owned(),
            }),
        ),
    ];
    for (field, how) in logged {
        let by = by(&format!("access_log.{field}"));
        lines.extend(how.map(|how| format!("  is logged {how} (by {by})")));
    }
}

fn kept(session: &Session) -> String {
    let Session { place, name, path, absolute_timeout, idle_timeout, permanent } = session;
    let path = path.as_ref().map(|path| format!(" for {path}")).unwrap_or_default();
    let absolute = absolute_timeout.as_ref().map(|long| {
        let kept = if *permanent { ", for which clients keep it" } else { "" };
        format!(", for {long} at most{kept}")
    });
    let idle = idle_timeout.as_ref().map(|long| format!(", until idle for {long}"));
    format!(
        "  with a session's token in the {place} {name}{path}: to the session's endpoint while it is ready, whatever the shares are{}{}",
        absolute.unwrap_or_default(),
        idle.unwrap_or_default()
    )
}

fn backend(share: &Share, lines: &mut Vec<String>) {
    lines.push(format!("  {:>5.1} %  {}", share.percent, share.service));
    lines.extend(share.filters.iter().map(|filter| format!("           {filter}")));
    lines.extend(share.sees.iter().map(|seen| format!("           sees {seen}")));
    lines.extend(share.endpoints.iter().take(SHOWN).map(|one| format!("           {}", one.shown())));
    if let more @ 1.. = share.endpoints.len().saturating_sub(SHOWN) {
        lines.push(format!("           and {more} more (-o json)"));
    }
    lines.extend(share.fails.iter().map(|failure| format!("           fails: {}", failure.shown())));
}

fn other(not: &NotTaken) -> String {
    format!("  {}: {}", not.rule.shown(), not.because.join("; or "))
}

// === impl From ===

impl From {
    pub(super) fn shown(&self) -> String {
        match &self.identity {
            Some(identity) => format!("{} ({identity})", self.workload),
            None => format!("{} (its identity is not known; see --identity)", self.workload),
        }
    }
}

// === impl Retried ===

impl Retried {
    fn shown(&self) -> String {
        let times = match self.attempts {
            0 => return "is never sent again".to_owned(),
            1 => "once".to_owned(),
            more => format!("up to {more} times"),
        };
        let codes = self.codes.iter().map(u16::to_string);
        let answered =
            (!self.codes.is_empty()).then(|| format!("answered {}", codes.collect::<Vec<_>>().join(", ")));
        let grpc = self.grpc_codes.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
        let grpc = (!grpc.is_empty()).then(|| format!("answered with gRPC's status {grpc}"));
        let unanswered = self.unanswered.then(|| "not answered".to_owned());
        let when = ["not processed".to_owned()].into_iter().chain(unanswered).chain(answered).chain(grpc);
        let when = when.collect::<Vec<_>>().join(" or ");
        format!("is sent again {times}, after {} or more, where it was {when}", self.backoff)
    }
}

// === impl RuleName ===

impl RuleName {
    fn shown(&self) -> String {
        let name = if self.name.is_empty() { String::new() } else { format!(" ({})", self.name) };
        format!("{} {} rules[{}]{name}", self.kind, self.route, self.index)
    }
}

// === impl Failure ===

impl Failure {
    fn shown(&self) -> String {
        let status = match (self.status, self.grpc_status) {
            (_, Some(grpc)) => format!("gRPC status {grpc} "),
            (Some(status), None) => format!("{status} "),
            (None, None) => String::new(),
        };
        format!("{status}{}: {}", self.reason, self.detail)
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn shown(&self) -> String {
        let workload = self.workload.as_ref().map(|name| format!(" {name}")).unwrap_or_default();
        let peer = match &self.identity {
            Some(identity) => format!("mTLS with {identity}"),
            None => "plaintext".to_owned(),
        };
        let ready = if self.ready { "" } else { ", not ready" };
        let policy = match &self.policy {
            None => String::new(),
            Some(judged) => {
                let rule = judged.rule.as_ref().map(|rule| format!(" by {rule}")).unwrap_or_default();
                match (judged.allowed, judged.reason) {
                    (None, _) => ", lets in whom its rules name".to_owned(),
                    (Some(_), None) => format!(", let in{rule}"),
                    (Some(_), Some(reason)) => format!(", refused{rule}: {reason}"),
                }
            }
        };
        format!("{}{workload}: {peer}{ready}{policy}", self.address)
    }
}
