//! What namespaces and Pods say of injection, by labels and annotations: one table of keys, from which the reference is made.
//!
//! A namespace's annotations hold for its Pods, and a Pod's own win. One of a Pod's that cannot be read refuses the Pod: its author is told at once, and
//! the Pods from before go on. One of a namespace's is left out and told: it must not keep every Pod from starting. An unknown key is
//! told, with the nearest.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;
use serde_json::Value;
use tulle_api::{AccessLogFormat, InvalidAccessLog, nearest, port_range};

use super::image::{image, tag};
use super::quantity::Quantity;
use super::shape::{short, shorter};
use super::{CONFIG, INJECT, Namespace, Resources, STATUS, Settings, Status};
use crate::object::DefaultInbound;

/// Whether a proxy is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    Yes,
    No,
    Nothing,
}

/// The settings that hold for one Pod.
#[derive(Clone, Debug)]
pub(super) struct Effective {
    pub(super) settings: Settings,
    /// In place of the settings'.
    pub(super) image: Option<String>,
    /// In place of 15020.
    pub(super) metrics_port: u16,
    /// What becomes of `x-forwarded-client-cert`.
    pub(super) client_cert_header: Option<String>,
    /// Who is let in where no policy says it.
    default_inbound: Option<String>,
    /// What others read of the Pod's annotations, and it does not say itself.
    pub(super) inherited: BTreeMap<String, String>,
}

/// One annotation.
pub struct Key {
    /// Without [`CONFIG`].
    pub name: &'static str,
    /// What it takes.
    pub form: &'static str,
    /// One or two sentences.
    pub meaning: &'static str,
    set: fn(&mut Effective, &str) -> Result<(), String>,
}

/// Where the proxy serves metrics and probes unless it is said.
pub(super) const METRICS_PORT: u16 = 15020;

const PORTS: &str = "`4222,6379-6380`";
const CPU: &str = "a quantity, such as `100m` or `2`";
const MEMORY: &str = "a quantity, such as `64Mi`";
const MEMORY_LIMIT: &str = "a quantity of at least `20Mi`, such as `64Mi`";
/// What a proxy takes that has nothing to do, and by default requests.
const LEAST_MEMORY: &str = "20Mi";
/// Of what is wrong with a value.
const PROBLEM: usize = 240;

macro_rules! keys {
    ($($name:literal, $form:expr, $meaning:literal, |$effective:ident, $value:ident| $set:expr;)*) => {
        /// Every annotation `config.tulle.dev/…`, in the order of the reference.
        pub const KEYS: &[Key] = &[$(Key {
            name: $name, form: $form, meaning: $meaning,
            set: |$effective, $value| { $set; Ok(()) },
        }),*];
    };
}

keys! {
    "skip-inbound-ports", PORTS,
        "TCP ports of the application that are reached without the proxy.",
        |effective, value| { effective.settings.skip_inbound_ports = Some(ports(value)?) };
    "skip-outbound-ports", PORTS,
        "TCP ports elsewhere that the application reaches without the proxy.",
        |effective, value| { effective.settings.skip_outbound_ports = Some(ports(value)?) };
    "skip-subnets", "`10.0.0.0/8,2001:db8::/32`",
        "Destinations that the application reaches without the proxy.",
        |effective, value| { effective.settings.skip_subnets = Some(subnets(value)?) };
    "opaque-ports", PORTS,
        "Ports whose bytes are relayed without being looked into, in place of the proxy's default list.",
        |effective, value| { effective.settings.opaque_ports = Some(ports(value)?) };
    "proxy-log-level", "`error`, `warn`, `info`, `debug`, `trace`, or directives",
        "What the proxy logs.",
        |effective, value| { log_level(value)?; effective.settings.log_level = value.to_owned() };
    "proxy-log-format", "`json` or `text`",
        "How the proxy logs.",
        |effective, value| { log_format(value)?; effective.settings.log_format = value.to_owned() };
    "access-log", "`json`, `apache`, `ecs`, `none`, or a template",
        "How requests are logged; it wins over what the mesh says.",
        |effective, value| { access_log(value)?; effective.settings.access_log = Some(value.to_owned()) };
    "proxy-cpu-request", CPU,
        "The CPU that the proxy's container requests; rounded up, also its threads where there is no limit.",
        |effective, value| { cpu(value)?; effective.settings.resources.cpu_request = Some(value.to_owned()) };
    "proxy-cpu-limit", CPU,
        "The CPU that the proxy's container may use; rounded up, also its threads.",
        |effective, value| { cpu(value)?; effective.settings.resources.cpu_limit = Some(value.to_owned()) };
    "proxy-memory-request", MEMORY,
        "The memory that the proxy's container requests.",
        |effective, value| { quantity(value)?; effective.settings.resources.memory_request = Some(value.to_owned()) };
    "proxy-memory-limit", MEMORY_LIMIT,
        "The memory that the proxy's container may use.",
        |effective, value| { memory_limit(value)?; effective.settings.resources.memory_limit = Some(value.to_owned()) };
    "proxy-image", "an image with its tag or digest",
        "The proxy's image.",
        |effective, value| { image(value)?; effective.image = Some(value.to_owned()) };
    "proxy-version", "a tag",
        "The tag of the proxy's image.",
        |effective, value| {
            tag(value)?;
            effective.settings.image_tag = value.to_owned();
            effective.settings.image_digest = None;
        };
    "default-inbound-policy", "one of `all-unauthenticated`, `all-authenticated`, `cluster-unauthenticated`, `cluster-authenticated`, `deny`, `audit`",
        "Who is let in at ports of which no AuthorizationPolicy speaks ([below](#the-default-policy)).",
        |effective, value| { policy(value)?; effective.default_inbound = Some(value.to_owned()) };
    "shutdown-grace-period", "a duration, such as `30s`",
        "How long the proxy's connections may go on once it is told to drain, if that is longer than the pod's `terminationGracePeriodSeconds`, which they always may.",
        |effective, value| { duration(value)?; effective.settings.shutdown_grace_period = value.to_owned() };
    "metrics-port", "a port",
        "Where the proxy serves `/metrics`, `/ready` and probes, in place of 15020.",
        |effective, value| effective.metrics_port = metrics_port(value)?;
    "client-cert-header", "`remove` or `set`",
        "What becomes of `x-forwarded-client-cert` in requests to the application: removed, or set to who a client of the mesh has proven to be. What a client says there never arrives.",
        |effective, value| { client_cert_header(value)?; effective.client_cert_header = Some(value.to_owned()) };
}

/// Keys under [`CONFIG`] that others than the injector read: Services have them.
const ELSEWHERE: [&str; 1] = ["opaque-ports"];
/// Keys of Pods that are read by others, so that what a namespace says is written on the Pod.
const READ_BY_OTHERS: [&str; 4] = ["skip-inbound-ports", "opaque-ports", "metrics-port", DEFAULT_INBOUND];
/// The one of which nothing that says nothing is left out: whom it was to keep out is not known.
const DEFAULT_INBOUND: &str = "default-inbound-policy";

// === impl Asked ===

impl Asked {
    /// Of a Pod's metadata, and what is wrong there. A label wins over an annotation.
    pub(super) fn of_pod(metadata: &Value) -> (Self, Vec<String>) {
        let (labels, annotations) = (texts(metadata, "labels"), texts(metadata, "annotations"));
        let mut warnings = misspelt("the pod", &labels, &annotations);
        if let (Some(label), Some(annotation)) = (labels.get(INJECT), annotations.get(INJECT))
            && label != annotation
        {
            warnings.push(format!(
                "the pod's label {INJECT} says `{}`, and its annotation `{}`: the label holds",
                short(label),
                short(annotation)
            ));
        }
        (Self::of(&labels, &annotations), warnings)
    }

    pub(super) fn of_namespace(namespace: &Namespace) -> Self {
        Self::of(&namespace.labels, &BTreeMap::new())
    }

    fn of(labels: &BTreeMap<String, String>, annotations: &BTreeMap<String, String>) -> Self {
        match labels.get(INJECT).or_else(|| annotations.get(INJECT)).map(String::as_str) {
            Some("enabled") => Self::Yes,
            Some("disabled") => Self::No,
            Some(_) | None => Self::Nothing,
        }
    }
}

/// What looks like [`INJECT`] and is not, or says what it cannot say.
pub(super) fn misspelt(
    whose: &str,
    labels: &BTreeMap<String, String>,
    annotations: &BTreeMap<String, String>,
) -> Vec<String> {
    let mut wrong = Vec::new();
    for (what, pairs) in [("label", labels), ("annotation", annotations)] {
        for (key, value) in pairs {
            if key == INJECT {
                if !matches!(value.as_str(), "enabled" | "disabled") {
                    wrong.push(format!(
                        "{whose} has the {what} {INJECT}: `{}`, which says nothing; it takes `enabled` or `disabled` (did you mean `{}`?)",
                        short(value),
                        meant(value)
                    ));
                }
            } else if is_like_inject(key) {
                wrong.push(format!(
                    "{whose} has the {what} {}, which says nothing; did you mean {INJECT}?",
                    short(key)
                ));
            }
        }
    }
    wrong
}

/// The word that is probably meant.
fn meant(value: &str) -> &'static str {
    match value.trim().to_ascii_lowercase().as_str() {
        "disabled" | "disable" | "false" | "no" | "off" | "never" | "0" => "disabled",
        // Also one that is misspelt.
        value => nearest(value, ["disabled", "enabled"]).unwrap_or("enabled"),
    }
}

/// What of ours is no text, in a manifest that no API server has seen: it would be refused there.
pub(super) fn no_text(metadata: &Value) -> Option<String> {
    [("label", "labels"), ("annotation", "annotations")].into_iter().find_map(|(what, field)| {
        let pairs = metadata.get(field).and_then(Value::as_object).into_iter().flatten();
        let mut ours = pairs.filter(|(key, value)| {
            !value.is_string() && (*key == INJECT || *key == STATUS || key.starts_with(CONFIG))
        });
        let (key, value) = ours.next()?;
        let mend = match value {
            Value::Bool(said) if key == INJECT => {
                format!("write {INJECT}: {}", if *said { "enabled" } else { "disabled" })
            }
            Value::Bool(_) | Value::Number(_) => format!("write it in quotes: '{value}'"),
            _ => "give it a text, or take it out".to_owned(),
        };
        let value = value.to_string();
        Some(format!(
            "the pod's {what} {} is {}, which is no text, and Kubernetes takes none such; {mend}",
            short(key),
            short(&value)
        ))
    })
}

fn is_like_inject(key: &str) -> bool {
    let lower = key.to_ascii_lowercase();
    nearest(key, [INJECT]).is_some()
        || (lower.contains("tulle") && lower.contains("inject"))
        || lower == format!("{CONFIG}inject")
}

// === impl Effective ===

impl Effective {
    /// What holds for a Pod; what is wrong with it is told in `warnings`.
    ///
    /// # Errors
    /// An annotation of the Pod's own that cannot be read.
    pub(super) fn of(
        metadata: &Value,
        namespace: &Namespace,
        settings: &Settings,
        warnings: &mut Vec<String>,
    ) -> Result<Self, String> {
        let mut effective = Self {
            settings: as_the_proxy_takes_them(settings),
            image: None,
            metrics_port: METRICS_PORT,
            client_cert_header: None,
            default_inbound: None,
            inherited: BTreeMap::new(),
        };
        for (key, value) in said(&namespace.annotations) {
            let known = KEYS.iter().find(|known| known.name == key);
            match known.map(|known| (known.set)(&mut effective, value.trim())) {
                Some(Ok(())) => {}
                // Who was to be kept out is not known: as the pod says it then, nobody is let in.
                Some(Err(problem)) if key == DEFAULT_INBOUND => {
                    effective.default_inbound = Some(value.trim().to_owned());
                    warnings.push(format!(
                        "the namespace's annotation {} lets nobody in",
                        bad(&key, value, &problem)
                    ));
                }
                Some(Err(problem)) => warnings.push(format!(
                    "the namespace's annotation {} is left out, as it says nothing",
                    bad(&key, value, &problem)
                )),
                None => warnings.push(unknown("the namespace", &key)),
            }
        }
        let own = texts(metadata, "annotations");
        let added = super::annotation(STATUS);
        let added = metadata.pointer(added.trim_start_matches("/metadata")).and_then(Value::as_str);
        let added = added.and_then(|text| serde_json::from_str::<Status>(text).ok()).unwrap_or_default();
        for (key, value) in said(&own) {
            if added.annotations.iter().any(|ours| ours.strip_prefix(CONFIG) == Some(&key)) {
                continue;
            }
            match KEYS.iter().find(|known| known.name == key) {
                Some(known) => (known.set)(&mut effective, value.trim())
                    .map_err(|problem| format!("the annotation {}", bad(&key, value, &problem)))?,
                None => warnings.push(unknown("the pod", &key)),
            }
        }
        within_limits(&mut effective.settings.resources, warnings);
        let Settings { skip_inbound_ports, opaque_ports, .. } = &effective.settings;
        let port = (effective.metrics_port != METRICS_PORT).then(|| effective.metrics_port.to_string());
        let of_pod =
            [skip_inbound_ports.clone(), opaque_ports.clone(), port, effective.default_inbound.clone()];
        let holds = READ_BY_OTHERS.iter().zip(of_pod).filter_map(|(key, value)| Some((key, value?)));
        // No list and one of nothing are the same to who reads it.
        let holds = holds.filter(|(key, value)| value != "none" || **key == DEFAULT_INBOUND);
        effective.inherited = holds.map(|(key, value)| (format!("{CONFIG}{key}"), value)).collect();
        Ok(effective)
    }

    /// The proxy's image.
    pub(super) fn image(&self) -> String {
        self.image.clone().unwrap_or_else(|| self.settings.image())
    }

    /// Whether connections to the port come by the proxy.
    pub(super) fn is_led(&self, port: u16) -> bool {
        let skipped = self.settings.skip_inbound_ports.as_deref().is_some_and(|ports| contains(ports, port));
        !skipped && port != self.metrics_port && !super::conflicts::RESERVED.contains(&port)
    }

    /// Whether the bytes of the port are not looked into.
    pub(super) fn is_opaque(&self, port: u16) -> bool {
        contains(self.settings.opaque_ports.as_deref().unwrap_or(OPAQUE), port)
    }
}

/// A request above its limit would keep the Pod from being made: it is the limit then, which may be somebody else's word.
fn within_limits(resources: &mut Resources, warnings: &mut Vec<String>) {
    let Resources { cpu_request, cpu_limit, memory_request, memory_limit } = resources;
    for (what, request, limit) in [("CPU", cpu_request, cpu_limit), ("memory", memory_request, memory_limit)]
    {
        let (Some(asked), Some(most)) = (request.as_deref(), limit.as_deref()) else { continue };
        let both = Quantity::parse(asked).zip(Quantity::parse(most));
        if both.is_some_and(|(asked, most)| asked.is_more_than(&most)) {
            warnings.push(format!(
                "the proxy would request more {what} (`{}`) than its limit (`{}`), which Kubernetes refuses: it requests as much as that",
                short(asked),
                short(most)
            ));
            request.clone_from(limit);
        }
    }
}

/// The proxy's default list.
const OPAQUE: &str = tulle_api::OPAQUE_PORTS;

/// Of the annotations those under [`CONFIG`], without it.
fn said(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (String, &str)> {
    annotations.iter().filter_map(|(key, value)| Some((key.strip_prefix(CONFIG)?.to_owned(), value.as_str())))
}

fn bad(key: &str, value: &str, problem: &str) -> String {
    let form = KEYS.iter().find(|known| known.name == key).map_or("", |known| known.form);
    format!("{CONFIG}{key}: {} (got `{}`; it takes {form})", shorter(problem, PROBLEM), short(value))
}

fn unknown(whose: &str, key: &str) -> String {
    let known = KEYS.iter().map(|known| known.name).chain(ELSEWHERE);
    let meant = nearest(key, known).map(|near| format!("; did you mean {CONFIG}{near}?")).unwrap_or_default();
    format!("{whose} has the annotation {CONFIG}{}, which is not known{meant}", short(key))
}

/// Labels or annotations.
fn texts(metadata: &Value, field: &str) -> BTreeMap<String, String> {
    let object = metadata.get(field).and_then(Value::as_object);
    let pairs = object.into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The table of `docs/injection.md`.
pub fn reference() -> String {
    let mut out = String::from("| annotation | takes | meaning |\n| --- | --- | --- |\n");
    for Key { name, form, meaning, .. } in KEYS {
        let _ = writeln!(out, "| `{CONFIG}{name}` | {form} | {meaning} |");
    }
    out
}

/// Settings whose lists are written so that the proxy takes them.
fn as_the_proxy_takes_them(settings: &Settings) -> Settings {
    let list = |said: &Option<String>, read: fn(&str) -> Result<String, String>| {
        // They were checked when they were read.
        said.as_ref().map(|said| read(said).unwrap_or_else(|_| said.clone()))
    };
    Settings {
        skip_inbound_ports: list(&settings.skip_inbound_ports, ports),
        skip_outbound_ports: list(&settings.skip_outbound_ports, ports),
        skip_subnets: list(&settings.skip_subnets, subnets),
        opaque_ports: list(&settings.opaque_ports, ports),
        ..settings.clone()
    }
}

// Values, as the proxy takes them.

/// A list of ports and ranges; without the blanks that only people read over.
pub(super) fn ports(value: &str) -> Result<String, String> {
    listed(value, |part| {
        let range = port_range(part).map_err(|error| error.to_string())?;
        Ok(match range.start() == range.end() {
            true => range.start().to_string(),
            false => format!("{}-{}", range.start(), range.end()),
        })
    })
}

/// Items between commas, one after the last too; `none` for none.
fn listed(value: &str, item: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let value = value.trim();
    if value == "none" {
        return Ok(value.to_owned());
    }
    let items: Result<Vec<String>, String> =
        value.trim_end_matches(',').split(',').map(|part| item(part.trim())).collect();
    Ok(items?.join(","))
}

/// Whether a list that is good has the port.
pub(super) fn contains(list: &str, port: u16) -> bool {
    list.split(',').filter_map(|part| port_range(part.trim()).ok()).any(|range| range.contains(&port))
}

/// A list of subnets and addresses.
pub(super) fn subnets(value: &str) -> Result<String, String> {
    listed(value, |part| {
        if part.parse::<std::net::IpAddr>().is_ok() {
            return Ok(part.to_owned());
        }
        let subnet = part.parse::<IpNet>().map_err(|_| format!("`{part}` is not a subnet"))?;
        match subnet.trunc() == subnet {
            true => Ok(part.to_owned()),
            false => Err(format!("`{part}` has bits after its prefix; did you mean `{}`?", subnet.trunc())),
        }
    })
}

pub(super) fn log_level(value: &str) -> Result<(), String> {
    tulle_api::log_filter(value).map(drop).map_err(|error| error.to_string())
}

pub(super) fn log_format(value: &str) -> Result<(), String> {
    one_of(value, &["json", "text"])
}

pub(super) fn pull_policy(value: &str) -> Result<(), String> {
    one_of(value, &["IfNotPresent", "Always", "Never"])
}

fn policy(value: &str) -> Result<(), String> {
    let choices = DefaultInbound::ALL.map(|(name, _)| name);
    one_of(value, &choices)
}

fn one_of(value: &str, choices: &[&str]) -> Result<(), String> {
    match choices.contains(&value) {
        true => Ok(()),
        false => Err("it is none of the choices".to_owned()),
    }
}

fn client_cert_header(value: &str) -> Result<(), String> {
    one_of(value, &["remove", "set"])
}

pub(super) fn access_log(value: &str) -> Result<(), String> {
    value.parse::<AccessLogFormat>().map(drop).map_err(|error: InvalidAccessLog| error.to_string())
}

/// `2`, `0.5` or `500m`, from a thousandth to 1024: what else Kubernetes takes for CPU (`1k`) the proxy does not.
pub(super) fn cpu(value: &str) -> Result<(), String> {
    let thousandths = match value.strip_suffix('m') {
        Some(millis) if millis.bytes().all(|b| b.is_ascii_digit()) => millis.parse::<u64>().ok(),
        Some(_) => None,
        None => {
            let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
            let digits = |text: &str| text.len() <= 6 && text.bytes().all(|b| b.is_ascii_digit());
            let is_number = !whole.is_empty() && digits(whole) && digits(fraction);
            let thousandths = is_number.then(|| format!("{whole}{}", &format!("{fraction:0<3}")[..3]));
            thousandths.and_then(|text| text.parse::<u64>().ok())
        }
    };
    match thousandths {
        Some(1..=1_024_000) => Ok(()),
        Some(_) => Err("it is not between 1m and 1024 cores".to_owned()),
        None => Err("it is no number of cores".to_owned()),
    }
}

/// An amount of Kubernetes' ([`Quantity`]), greater than nothing.
pub(super) fn quantity(value: &str) -> Result<(), String> {
    match Quantity::parse(value).filter(Quantity::is_positive) {
        Some(_) => Ok(()),
        None => Err("it is no quantity".to_owned()),
    }
}

/// As the proxy reads durations.
pub(super) fn duration(value: &str) -> Result<(), String> {
    seconds(value).map(drop)
}

/// `30s`, `1m30s`, `500ms`; at most a day.
pub(super) fn seconds(value: &str) -> Result<f64, String> {
    let (mut total, mut rest) = (0.0, value);
    if rest.is_empty() {
        return Err("it is empty".to_owned());
    }
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit()).ok_or("there is no unit")?;
        let (number, tail) = rest.split_at(unit_at);
        let number: u32 = number.parse().map_err(|_| "there is no whole number before a unit")?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let one = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(format!("`{unit}` is not a unit (ms, s, m, h)")),
        };
        total += f64::from(number) * one;
        rest = tail;
    }
    if total > 86_400.0 { Err("it is more than a day".to_owned()) } else { Ok(total) }
}

/// As [`quantity`], of what a proxy can live with: less is a slip, such as `64m`, thousandths of a byte.
pub(super) fn memory_limit(value: &str) -> Result<(), String> {
    quantity(value)?;
    let is_less = Quantity::parse(value).zip(Quantity::parse(LEAST_MEMORY));
    match is_less.is_some_and(|(said, least)| least.is_more_than(&said)) {
        true => Err(format!("it is less than {LEAST_MEMORY}, which a proxy needs")),
        false => Ok(()),
    }
}

fn metrics_port(value: &str) -> Result<u16, String> {
    match tulle_api::port(value).map_err(|error| error.to_string())? {
        15000 | 15001 | 15006 | 15053 => Err("the proxy listens there for something else".to_owned()),
        port if port < 1024 => Err("the proxy is no root, and may not listen below 1024".to_owned()),
        port => Ok(port),
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_written_as_the_proxy_reads_them() {
        for (said, written) in [
            ("9100 - 9110", Ok("9100-9110")),
            (" 80,  443 ,", Ok("80,443")),
            ("7-7", Ok("7")),
            (" none ", Ok("none")),
            ("none,80", Err("`none` is not a port")),
            ("9-3", Err("backwards")),
            ("", Err("not a port")),
        ] {
            match (ports(said), written) {
                (Ok(list), Ok(written)) => assert_eq!(list, written, "{said}"),
                (Err(error), Err(part)) => assert!(error.contains(part), "{said}: {error}"),
                (got, _) => panic!("{said}: {got:?}"),
            }
        }
        assert_eq!(subnets("10.0.0.0/8 , 10.1.2.3").as_deref(), Ok("10.0.0.0/8,10.1.2.3"));
        assert!(subnets("10.0.0.1/8").unwrap_err().contains("did you mean"));
    }

    #[test]
    fn what_the_proxy_refuses_of_cpu_is_refused() {
        for good in ["2", "0.5", "500m", "1.25", "0.0015", "1m", "1024"] {
            assert_eq!(cpu(good), Ok(()), "{good}");
        }
        for bad in ["", "m", "1k", "1Ki", "0.0005", "0", "0m", "1.5m", "+1", "-1", "1e3", ".5", "1025", "1 "]
        {
            assert!(cpu(bad).is_err(), "{bad}");
        }
    }
}
