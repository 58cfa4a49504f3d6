//! The control plane: whether it runs, may do what it must, reads everything, and has certificates that last.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use tulle_certs::serving::{split_pem, validity_of_pem};

use super::super::seen::{Seen, list, name, said, text};
use super::{Judged, Level, Named, Verdict, error, ok, parts, warning};
use crate::check::count;
use crate::demo::scrape::Line;

const DAY: u64 = 86_400;
/// Whoever changes a root wants to plan it …
const PLAN: Duration = Duration::from_secs(60 * DAY);
/// … by now it presses …
const SOON: Duration = Duration::from_secs(30 * DAY);
/// … and now it is an emergency.
const NOW: Duration = Duration::from_secs(7 * DAY);

/// What the control plane's own certificate is called.
const LEAF: &str = "leaf of the control plane";

pub(crate) fn ready(seen: &Seen) -> Judged {
    let Some(deployment) = seen.deployment.as_ref()? else {
        let hint = "`tulle install` installs it; --namespace says where it is, if it is elsewhere";
        return error(format!("there is no control plane in the namespace {}", seen.namespace))
            .hint(hint)
            .some();
    };
    let wanted = deployment.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    let replicas = seen.replicas.as_ref()?;
    let up = replicas.iter().filter(|pod| is_ready(pod)).count();
    let message = format!("{up} of {} ready", count(usize::try_from(wanted).unwrap_or_default(), "replica"));
    let ailing: Vec<String> = replicas.iter().filter(|pod| !is_ready(pod)).map(ailment).collect();
    match (up as u64, wanted) {
        (_, 0) => error("it is scaled to none")
            .hint("kubectl -n tulle-system scale deployment/tulle-control-plane --replicas=2")
            .some(),
        (0, _) => error(message).details(ailing).some(),
        (up, wanted) if up < wanted => warning(message).details(ailing).some(),
        _ => ok(message).some(),
    }
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    text(pod, "/metadata/deletionTimestamp").is_empty()
        && list(pod, "/status/conditions")
            .iter()
            .any(|condition| text(condition, "/type") == "Ready" && text(condition, "/status") == "True")
}

/// Why a Pod is not ready, as far as its status says.
pub(super) fn ailment(pod: &Value) -> String {
    let statuses =
        list(pod, "/status/initContainerStatuses").iter().chain(list(pod, "/status/containerStatuses"));
    for status in statuses {
        let container = text(status, "/name");
        let restarts = status["restartCount"].as_u64().unwrap_or_default();
        let waiting = text(status, "/state/waiting/reason");
        // Those that wait for another say nothing of why.
        if !matches!(waiting, "" | "PodInitializing" | "ContainerCreating") {
            let message = text(status, "/state/waiting/message");
            return format!("{}: {container}: {waiting} ({restarts} restarts) {message}", name(pod))
                .trim()
                .to_owned();
        }
        if status["ready"] == false && status.pointer("/state/running").is_some() {
            return format!("{}: {container} runs, and is not ready ({restarts} restarts)", name(pod));
        }
    }
    let unscheduled =
        list(pod, "/status/conditions").iter().find(|condition| text(condition, "/status") == "False");
    let message = unscheduled.map(|condition| text(condition, "/message")).unwrap_or_default();
    format!("{}: {} {message}", name(pod), text(pod, "/status/phase")).trim().to_owned()
}

pub(crate) fn rights(seen: &Seen) -> Judged {
    let rights = seen.rights.as_ref()?;
    let lacking: Vec<String> =
        rights.iter().filter(|(_, may)| !may).map(|(right, _)| right.said(&seen.namespace)).collect();
    match lacking.is_empty() {
        true => {
            ok(format!("its service account may do all {} things that were asked about", rights.len())).some()
        }
        false => {
            let message = format!("its service account lacks {}", count(lacking.len(), "right"));
            error(message).details(lacking).some()
        }
    }
}

/// What the replicas count; nothing to look at if there are none.
pub(super) fn pages(seen: &Seen) -> Result<Option<Named<'_, Vec<Line>>>, super::Unread> {
    let (read, unread) = parts(&seen.pages);
    match unread {
        Some((_, unread)) if read.is_empty() => Err(unread.clone()),
        _ => Ok((!read.is_empty()).then_some(read)),
    }
}

/// The values of a metric, with the replica and a label's value of each.
pub(super) fn values<'a>(
    pages: &'a [(&'a str, &'a Vec<Line>)],
    metric: &'a str,
    label: &'a str,
) -> impl Iterator<Item = (&'a str, &'a str, f64)> {
    pages.iter().flat_map(move |(replica, lines)| {
        let lines = lines.iter().filter(move |line| line.name == metric);
        lines.map(move |line| (*replica, line.label(label), line.value))
    })
}

pub(crate) fn watches(seen: &Seen) -> Judged {
    let Some(pages) = pages(seen)? else { return Ok(None) };
    let watched: Vec<_> = values(&pages, "tulle_control_plane_watch_connected", "kind").collect();
    let broken: Vec<String> = watched
        .iter()
        .filter(|(_, _, value)| *value == 0.0)
        .map(|(replica, kind, _)| format!("{replica}: {kind}"))
        .collect();
    if watched.is_empty() {
        return warning("it counts no kind that it reads")
            .hint("is it started with --source=kubernetes?")
            .some();
    }
    match broken.is_empty() {
        true => ok("every kind is watched").some(),
        false => {
            let message =
                format!("{} not watched: what changes there reaches no proxy", count(broken.len(), "kind"));
            error(message).details(broken).some()
        }
    }
}

pub(crate) fn lease(seen: &Seen) -> Judged {
    let Some(lease) = seen.lease.as_ref()? else {
        return error("there is no Lease: nobody writes status, roots and certificates of the webhook")
            .some();
    };
    if lease.holder.is_empty() {
        return error("nobody holds it: nobody writes status, roots and certificates of the webhook").some();
    }
    // A replica's name is its Pod's, and some chance.
    let pod = lease.holder.rsplit_once('_').map_or(lease.holder.as_str(), |(pod, _)| pod);
    if lease.is_fresh(seen.now) {
        return ok(format!("{pod} holds it")).some();
    }
    if lease.moves {
        let message = format!("{pod} holds and renews it, by a clock that differs from this machine's");
        return warning(message).hint("set the clocks right: certificates go by them").some();
    }
    error(format!("{pod} holds it and does not renew it")).some()
}

pub(crate) fn certificates(seen: &Seen) -> Judged {
    let mut lives: BTreeMap<&str, SystemTime> = BTreeMap::new();
    let roots =
        seen.bundles.as_ref()?.iter().find(|bundle| text(bundle, "/metadata/namespace") == seen.namespace);
    let Some(roots) = roots else {
        return match &seen.deployment {
            Ok(Some(_)) => {
                error("there is no ConfigMap tulle-trust-bundle: the control plane has made no root yet")
                    .some()
            }
            _ => Ok(None),
        };
    };
    let certificates = split_pem(text(roots, "/data/ca.crt"))
        .map_err(|why| super::Unread::Failed(format!("ca.crt of the ConfigMap tulle-trust-bundle: {why}")))?;
    let mut early = false;
    for root in &certificates {
        let (from, until) = validity_of_pem(root).map_err(|why| {
            super::Unread::Failed(format!("ca.crt of the ConfigMap tulle-trust-bundle: {why}"))
        })?;
        early |= from > seen.now;
        // While one root follows another, the one that lasts counts.
        let last = lives.entry("root").or_insert(until);
        *last = (*last).max(until);
    }
    if early {
        let hint = "the clocks of this machine and of the control plane differ; set them right";
        return error("a root is of the future").hint(hint).some();
    }
    let pages = pages(seen);
    if let Ok(Some(pages)) = &pages {
        let told = values(pages, "tulle_identity_cert_expiration_timestamp_seconds", "kind");
        for (_, kind, value) in told.filter(|(_, kind, _)| matches!(*kind, "issuer" | "leaf")) {
            let until = SystemTime::UNIX_EPOCH + Duration::from_secs(value.clamp(0.0, 1e11) as u64);
            let kind = if kind == "leaf" { LEAF } else { "issuer" };
            let first = lives.entry(kind).or_insert(until);
            *first = (*first).min(until);
        }
    }
    let mut worst = ok("");
    let mut said = Vec::new();
    for (what, until) in lives {
        let (level, text) = life(what, until, seen.now);
        if level > worst.level {
            worst.level = level;
        }
        said.push(text);
    }
    if let Err(unread) = &pages {
        said.push(format!("the issuer was not looked at: {unread}"));
    }
    Verdict { message: said.join("; "), ..worst }.some()
}

fn life(what: &str, until: SystemTime, now: SystemTime) -> (Level, String) {
    let Ok(left) = until.duration_since(now) else {
        return (Level::Error, format!("the {what} has expired"));
    };
    // A leaf lives for a day or so, and is renewed by itself.
    if what == LEAF {
        let hours = usize::try_from(left.as_secs() / 3600).unwrap_or(usize::MAX);
        return (Level::Ok, format!("the {what} is good for {}", count(hours, "hour")));
    }
    let days = left.as_secs() / DAY;
    let level = match left {
        left if left < NOW => Level::Error,
        left if left < PLAN => Level::Warning,
        _ => Level::Ok,
    };
    let haste = if left < SOON && left >= NOW { ": change it this month" } else { "" };
    (
        level,
        format!(
            "the {what} is good for {}{haste}",
            count(usize::try_from(days).unwrap_or(usize::MAX), "day")
        ),
    )
}

/// How far a rotation of the root is. While one goes on, that it waits for somebody is told.
pub(crate) fn rotation(seen: &Seen) -> Judged {
    let Some(pages) = pages(seen)? else { return Ok(None) };
    // Of replicas that differ for a moment, one that has gone further is right.
    let phases = ["retired", "draining", "switched", "published"];
    let now: Vec<&str> = values(&pages, "tulle_identity_root_rotation", "phase")
        .filter(|(_, _, value)| *value > 0.0)
        .map(|(_, phase, _)| phase)
        .collect();
    let Some(phase) = phases.into_iter().find(|phase| now.contains(phase)) else {
        return match now.is_empty() {
            // An older version, which rotates nothing.
            true => Ok(None),
            false => ok("no rotation of the root is under way").some(),
        };
    };
    let waits = |kind: &str| {
        let all = values(&pages, "tulle_identity_root_rotation_waits", "for");
        all.filter(|(_, of, _)| *of == kind).map(|(_, _, value)| value).fold(0.0, f64::max)
    };
    let (replicas, proxies) = (waits("replicas"), waits("proxies"));
    if replicas > 0.0 {
        let message = format!(
            "a rotation of the root is {phase}, and waits for {} with {}",
            count(replicas as usize, "replica"),
            count(proxies as usize, "proxy")
        );
        return warning(message).some();
    }
    ok(format!("a rotation of the root is {phase}")).some()
}

pub(crate) fn configuration(seen: &Seen) -> Judged {
    let Some(pages) = pages(seen)? else { return Ok(None) };
    // Every replica reads the same.
    let most = |severity: &str| {
        let all = values(&pages, "tulle_control_plane_findings", "severity");
        all.filter(|(_, found, _)| *found == severity).map(|(_, _, value)| value).fold(0.0, f64::max)
    };
    let (errors, warnings) = (most("error"), most("warning"));
    let mut objects: BTreeMap<(String, String), f64> = BTreeMap::new();
    for (_, lines) in &pages {
        for line in lines.iter().filter(|line| line.name == "tulle_control_plane_objects") {
            let key = (line.label("status").to_owned(), line.label("kind").to_owned());
            let most = objects.entry(key).or_default();
            *most = most.max(line.value);
        }
    }
    let wrong = |status: &str| {
        let all = objects.iter().filter(|((of, _), number)| of == status && **number > 0.0);
        all.map(|((_, kind), number)| format!("{kind}: {number} with {status}s")).collect::<Vec<_>>()
    };
    let said = |number: f64, noun: &str| count(number as usize, noun);
    if errors > 0.0 {
        return error(said(errors, "error")).details(wrong("error")).some();
    }
    if warnings > 0.0 {
        return warning(said(warnings, "warning")).details(wrong("warning")).some();
    }
    ok("nothing is wrong with routes and policies").some()
}

/// Of the control plane, as its replicas say, or else its Deployment.
pub(super) fn versions(seen: &Seen) -> BTreeMap<String, usize> {
    let mut versions: BTreeMap<String, usize> = BTreeMap::new();
    if let Ok(Some(pages)) = pages(seen) {
        for (_, version, _) in values(&pages, "tulle_build_info", "version") {
            *versions.entry(version.to_owned()).or_default() += 1;
        }
    }
    if let (true, Ok(Some(deployment))) = (versions.is_empty(), &seen.deployment) {
        let version = said(deployment, "labels", "app.kubernetes.io/version");
        if !version.is_empty() {
            versions.insert(version.to_owned(), 1);
        }
    }
    versions
}
