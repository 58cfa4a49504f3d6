//! What runs in the mesh, or should: pods and their proxies.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;
use tulle_control_plane::inject::unmeshed::{misspelt_labels, on_our_ports, unmeshed};
use tulle_control_plane::inject::{INJECT, Namespace, PROXY, Settings, is_injected, status};

use super::super::seen::{Seen, Unread, list, name, namespace, place, said, text};
use super::super::version::Version;
use super::control_plane::{ailment, pages, values, versions};
use super::{Judged, error, ok, parts, warning};
use crate::check::count;

/// A proxy may take so long to start.
const STARTING: Duration = Duration::from_secs(120);
/// What is asked for the proxies' own pages, at most: up to so many are judged one by one, and of more some name who is meant.
const ASKED: usize = 100;

/// What the injector goes by. The defaults serve where its settings cannot be read: nearly nothing depends on them here.
fn settings(seen: &Seen) -> Settings {
    let settings = seen.settings.clone().unwrap_or_default();
    Settings { namespace: seen.namespace.clone(), ..settings }
}

/// The Pods that have a proxy and run.
fn meshed(seen: &Seen) -> Result<Vec<&Value>, Unread> {
    let pods = seen.pods.as_ref()?.iter();
    Ok(pods
        .filter(|pod| is_injected(pod) && text(pod, "/metadata/deletionTimestamp").is_empty())
        .filter(|pod| !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed"))
        .collect())
}

/// Whether a Pod's proxy is up: as its status says, or else as the Pod is.
fn is_up(pod: &Value) -> bool {
    let statuses = list(pod, "/status/initContainerStatuses");
    match statuses.iter().find(|status| text(status, "/name") == PROXY) {
        Some(status) => status["ready"] == true || status["started"] == true,
        None => text(pod, "/status/phase") == "Running",
    }
}

fn age(pod: &Value, now: SystemTime) -> Duration {
    let made = text(pod, "/metadata/creationTimestamp").parse::<Timestamp>();
    made.map(|made| now.duration_since(made.into()).unwrap_or_default()).unwrap_or_default()
}

/// The proxies whose own pages are to be looked at. What the control plane counts is a sum, in which a workload outside the cluster stands for a pod
/// that is lost: each pod says it itself where there are few, or where the sum is not theirs.
pub(crate) fn to_ask(seen: &Seen) -> Vec<String> {
    let Ok(meshed) = meshed(seen) else { return Vec::new() };
    let up: Vec<_> = meshed.into_iter().filter(|pod| is_up(pod)).collect();
    let Ok(Some(pages)) = pages(seen) else { return Vec::new() };
    let connected: f64 = values(&pages, "tulle_control_plane_proxies", "").map(|(_, _, value)| value).sum();
    let rejected: f64 =
        values(&pages, "tulle_control_plane_rejected_resources", "type").map(|(_, _, value)| value).sum();
    if up.len() > ASKED && connected == up.len() as f64 && rejected == 0.0 {
        return Vec::new();
    }
    up.into_iter().take(ASKED).map(place).collect()
}

pub(crate) fn connected(seen: &Seen) -> Judged {
    let meshed = meshed(seen)?;
    let (up, down): (Vec<_>, Vec<_>) = meshed.into_iter().partition(|pod| is_up(pod));
    let late: Vec<String> = down
        .into_iter()
        .filter(|pod| age(pod, seen.now) > STARTING)
        .map(|pod| format!("{}/{}", text(pod, "/metadata/namespace"), ailment(pod)))
        .collect();
    if !late.is_empty() {
        return error(format!("{} not ready after two minutes", count(late.len(), "proxy")))
            .details(late)
            .some();
    }
    let Some(pages) = pages(seen)? else { return Ok(None) };
    let (read, _) = parts(&seen.pages);
    if read.len() < seen.pages.len() {
        return warning("not every replica says who is connected to it").some();
    }
    let connected: f64 = values(&pages, "tulle_control_plane_proxies", "").map(|(_, _, value)| value).sum();
    let lost = of_proxies(seen, |lines| {
        lines.iter().any(|line| line.name == "tulle_ads_connected" && line.value == 0.0).then(String::new)
    });
    if connected >= up.len() as f64 && lost.is_empty() {
        return ok(format!("all {} of pods", up.len())).some();
    }
    // Others may be connected in the place of those that say they are not.
    let connected = connected.min(up.len().saturating_sub(lost.len()) as f64);
    let message = format!(
        "{connected} of {} pods are connected to a control plane; the others go on with what they have",
        up.len()
    );
    warning(message).details(lost).some()
}

/// The proxies whose own pages say something.
fn of_proxies(seen: &Seen, says: impl Fn(&Vec<crate::demo::scrape::Line>) -> Option<String>) -> Vec<String> {
    let (read, _) = parts(&seen.proxies);
    let told = read.into_iter().filter_map(|(pod, lines)| {
        let what = says(lines)?;
        Some(if what.is_empty() { pod.to_owned() } else { format!("{pod}: {what}") })
    });
    told.collect()
}

pub(crate) fn in_step(seen: &Seen) -> Judged {
    let Some(pages) = pages(seen)? else { return Ok(None) };
    let mut rejected: BTreeMap<&str, f64> = BTreeMap::new();
    for (_, kind, value) in
        values(&pages, "tulle_control_plane_rejected_resources", "type").filter(|(.., value)| *value > 0.0)
    {
        *rejected.entry(kind).or_default() += value;
    }
    if rejected.is_empty() {
        return ok("no proxy rejects what it is told").some();
    }
    let said: Vec<String> = rejected.iter().map(|(kind, number)| format!("{number} of {kind}")).collect();
    let who = of_proxies(seen, |lines| {
        let lines =
            lines.iter().filter(|line| line.name == "tulle_ads_rejected_resources" && line.value > 0.0);
        let kinds: Vec<String> =
            lines.map(|line| format!("{} of {}", line.value, line.label("type"))).collect();
        (!kinds.is_empty()).then(|| kinds.join(", "))
    });
    error(format!("proxies reject resources, and go on with older ones: {}", said.join(", ")))
        .details(who)
        .some()
}

pub(crate) fn skew(seen: &Seen) -> Judged {
    let own = env!("CARGO_PKG_VERSION");
    let of_control_plane = versions(seen);
    let mut of_proxies: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in meshed(seen)? {
        let version = status(pod).map(|status| status.version).unwrap_or_default();
        of_proxies.entry(version).or_default().push(place(pod));
    }
    let Some(control_plane) = of_control_plane.keys().next() else { return Ok(None) };
    let far = |one: &str, other: &str| match (Version::parse(one), Version::parse(other)) {
        (Some(one), Some(other)) => !one.is_next_to(other),
        _ => one != other,
    };
    let mut details = Vec::new();
    for (version, pods) in of_proxies.iter().filter(|(version, _)| far(version, control_plane)) {
        details.extend(pods.iter().map(|pod| format!("{pod}: {version}")));
    }
    let of_all = of_control_plane.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    if !details.is_empty() {
        let message =
            format!("the control plane is {of_all}, and {} not next to it", count(details.len(), "proxy"));
        return error(message).details(details).some();
    }
    if of_control_plane.len() > 1 {
        return warning(format!("the control plane is of several versions: {of_all}"))
            .hint("wait until the upgrade is over, or look why it does not go on")
            .some();
    }
    if control_plane != own {
        let hint = "use the command of the control plane's version, or `tulle upgrade`";
        return warning(format!("the control plane is {control_plane}, and this command {own}"))
            .hint(hint)
            .some();
    }
    let old: usize =
        of_proxies.iter().filter(|(version, _)| *version != control_plane).map(|(_, pods)| pods.len()).sum();
    match old {
        0 => ok(format!("everything is {own}")).some(),
        old => ok(format!(
            "the control plane is {own}; {} of a version next to it, until their pods are made anew",
            count(old, "proxy")
        ))
        .some(),
    }
}

pub(crate) fn without_proxy(seen: &Seen) -> Judged {
    let (settings, namespaces) = (settings(seen), namespaces(seen)?);
    let mut found = Vec::new();
    for pod in seen.pods.as_ref()? {
        let Some(namespace) = namespaces.get(text(pod, "/metadata/namespace")) else { continue };
        if let Some(one) = unmeshed(pod, namespace, &settings) {
            found.push((
                one.reason,
                format!("{}/{}: {}: {}", one.namespace, one.pod, one.reason, one.message),
            ));
        }
    }
    found.sort();
    let misspelt: Vec<String> = namespaces.values().flat_map(misspelt_labels).collect();
    if found.is_empty() && misspelt.is_empty() {
        let asking = namespaces.values().filter(|namespace| asks(namespace)).count();
        return ok(format!("every pod that should have a proxy has one; {} for proxies", ask(asking))).some();
    }
    let message = match found.len() {
        0 => "a namespace says something of proxies that says nothing".to_owned(),
        number => format!("{} without the proxy that is asked for", count(number, "pod")),
    };
    let details = [found.into_iter().map(|(_, said)| said).collect(), misspelt].concat();
    warning(message).details(details).some()
}

fn ask(number: usize) -> String {
    if number == 1 { "1 namespace asks".to_owned() } else { format!("{number} namespaces ask") }
}

/// By its label: an annotation of a namespace says nothing.
pub(crate) fn asks(namespace: &Namespace) -> bool {
    namespace.labels.get(INJECT).is_some_and(|said| said == "enabled")
}

fn namespaces(seen: &Seen) -> Result<BTreeMap<String, Namespace>, Unread> {
    Ok(seen.namespaces.as_ref()?.iter().map(|object| (name(object).to_owned(), namespace(object))).collect())
}

pub(crate) fn ports(seen: &Seen) -> Judged {
    let mut found = BTreeSet::new();
    let is_out =
        |pod: &&Value| ["labels", "annotations"].iter().any(|of| said(pod, of, INJECT) == "disabled");
    for pod in seen.pods.as_ref()?.iter().filter(|pod| !is_out(pod)) {
        // Hundreds of Pods of one workload would say the same.
        let owner = text(pod, "/metadata/ownerReferences/0/name");
        let who = if owner.is_empty() { name(pod) } else { owner };
        for (container, port) in on_our_ports(pod) {
            found.insert(format!(
                "{}/{who}: the container {container} listens on {port}",
                text(pod, "/metadata/namespace")
            ));
        }
    }
    match found.len() {
        0 => ok("no application is on 15000–15090").some(),
        number => warning(format!("{} of applications that never come by the proxy", count(number, "port")))
            .details(found.into_iter().collect())
            .some(),
    }
}

pub(crate) fn bundles(seen: &Seen) -> Judged {
    let bundles = seen.bundles.as_ref()?;
    let roots = |of: &str| {
        let found = bundles.iter().find(|bundle| text(bundle, "/metadata/namespace") == of);
        found.map(|bundle| text(bundle, "/data/ca.crt"))
    };
    // That there is none at all is said of certificates.
    let Some(own) = roots(&seen.namespace) else { return Ok(None) };
    let mut wrong = Vec::new();
    let mut asking = 0;
    // A Pod may ask by itself, where its namespace does not.
    let of_pods: BTreeSet<&str> =
        meshed(seen).unwrap_or_default().into_iter().map(|pod| text(pod, "/metadata/namespace")).collect();
    for object in seen.namespaces.as_ref()? {
        let asks = said(object, "labels", INJECT) == "enabled" || of_pods.contains(name(object));
        if !asks || name(object) == seen.namespace {
            continue;
        }
        asking += 1;
        match roots(name(object)) {
            None => wrong.push(format!("{}: has none, so that its new pods do not start", name(object))),
            Some(other) if other != own => wrong.push(format!("{}: has other roots", name(object))),
            Some(_) => {}
        }
    }
    match wrong.is_empty() {
        true => ok(format!("the roots are in {}", count(asking, "namespace"))).some(),
        false => error(format!("{} without the mesh's roots", count(wrong.len(), "namespace")))
            .details(wrong)
            .some(),
    }
}
