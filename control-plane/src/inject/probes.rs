//! The kubelet's probes and hooks of a Pod: which lead to the proxy, and which are declared to it.
//!
//! A connection that the kernel leads to the proxy always comes about, so that a `tcpSocket` probe would always pass; and one with TLS of the
//! application's own has no identity, which strict mutual TLS asks for. Both become `GET /probe/<container>/<kind>` of the proxy, which asks the
//! application itself. HTTP and gRPC stay as they are, and are let in by exactly their port and path. Ports that are not led to the proxy,
//! hosts elsewhere and commands are none of our business.
//!
//! A hook does something, where a probe only asks (`GET /shutdown`): it always leads to the proxy, which makes it once for each start of the application,
//! and one of the end only once it drains. Let in by its path, anybody who reaches the Pod could call it as often as they like.

use serde_json::{Map, Value, json};

use super::annotations::Effective;
use super::shape::short;
use super::{Rewritten, list, name_of, stays};

/// What has become of a Pod's probes.
#[derive(Debug, Default)]
pub(super) struct Probes {
    /// As `TULLE_PROXY_PROBES` has them.
    made: Vec<Value>,
    allowed: Vec<Value>,
    pub(super) rewritten: Vec<Rewritten>,
}

/// The fields of a container, and how the proxy calls them.
const FIELDS: [(&str, &str); 5] = [
    ("livenessProbe", "liveness"),
    ("readinessProbe", "readiness"),
    ("startupProbe", "startup"),
    ("lifecycle.postStart", "post-start"),
    ("lifecycle.preStop", "pre-stop"),
];
/// How long a hook may take where the Pod does not say how long it has to end: the kubelet gives it as long as that.
const HOOK_SECONDS: u64 = 30;

// === impl Probes ===

impl Probes {
    /// What the proxy is told; `None`: there are none.
    pub(super) fn declared(&self) -> Option<String> {
        let declared = [("made", &self.made), ("allowed", &self.allowed)];
        let object: Map<String, Value> = declared
            .into_iter()
            .filter(|(_, probes)| !probes.is_empty())
            .map(|(key, probes)| (key.to_owned(), Value::Array(probes.clone())))
            .collect();
        (!object.is_empty()).then(|| Value::Object(object).to_string())
    }
}

/// Changes the probes that must lead to the proxy.
pub(super) fn lead_to_proxy(pod: &mut Value, effective: &Effective, warnings: &mut Vec<String>) -> Probes {
    let mut probes = Probes::default();
    let grace = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_u64);
    let grace = grace.unwrap_or(HOOK_SECONDS).clamp(1, 3600);
    // A probe may name a port of its own container only.
    for pointer in ["/spec/initContainers", "/spec/containers"] {
        let Some(containers) = pod.pointer_mut(pointer).and_then(Value::as_array_mut) else { continue };
        for container in containers {
            if pointer == "/spec/containers" || stays(container) {
                of_container(container, grace, effective, &mut probes, warnings);
            }
        }
    }
    probes.allowed.sort_by_cached_key(Value::to_string);
    probes.allowed.dedup();
    probes
}

/// Where a field of a container is.
pub(super) fn field<'a>(container: &'a mut Value, field: &str) -> Option<&'a mut Map<String, Value>> {
    container.pointer_mut(&format!("/{}", field.replace('.', "/")))?.as_object_mut()
}

fn of_container(
    container: &mut Value,
    grace: u64,
    effective: &Effective,
    probes: &mut Probes,
    warnings: &mut Vec<String>,
) {
    let name = name_of(container).unwrap_or_default().to_owned();
    let ports: Vec<(String, u64)> = list(container, "/ports")
        .iter()
        .filter_map(|port| Some((name_of(port)?.to_owned(), port.get("containerPort")?.as_u64()?)))
        .collect();
    for (path, kind) in FIELDS {
        let Some(handler) = field(container, path) else { continue };
        let is_hook = path.starts_with("lifecycle");
        let Some((what, said)) = ["httpGet", "tcpSocket", "grpc"]
            .into_iter()
            .find_map(|what| Some((what, handler.get(what)?.clone())))
        else {
            continue;
        };
        // A hook that only connects does nothing (Kubernetes keeps the field for the sake of old manifests).
        let elsewhere = said.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty());
        if elsewhere || (is_hook && what != "httpGet") {
            continue;
        }
        let port = match port_of(&said, &ports) {
            Ok(port) => port,
            Err(problem) => {
                warnings.push(format!("the {path} of the container `{}` {problem}", short(&name)));
                continue;
            }
        };
        if !effective.is_led(port) {
            continue;
        }
        let timeout = match is_hook {
            true => grace,
            false => handler.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(1).clamp(1, 3600),
        };
        let mut made = json!({ "container": name.as_str(), "kind": kind, "port": port, "timeout": timeout });
        let is_https = said.get("scheme").and_then(Value::as_str) == Some("HTTPS");
        match what {
            "httpGet" if is_hook || is_https || effective.is_opaque(port) => {
                let scheme = if is_https { "https" } else { "http" };
                made[scheme] = http(&said);
            }
            "httpGet" => {
                probes.allowed.push(json!({ "port": port, "path": asked(&said) }));
                continue;
            }
            "tcpSocket" => made["tcp"] = json!({}),
            _ => {
                if effective.is_opaque(port) {
                    warnings.push(format!(
                        "the {path} of the container `{}` is gRPC at port {port}, which is opaque: under strict mutual TLS it is refused; \
                         take the port out of config.tulle.dev/opaque-ports",
                        short(&name)
                    ));
                }
                probes.allowed.push(json!({ "port": port, "grpc": true }));
                continue;
            }
        }
        probes.made.push(made);
        handler.remove(what);
        let path_to = format!("/probe/{name}/{kind}");
        let now = json!({ "path": path_to, "port": effective.metrics_port, "scheme": "HTTP" });
        handler.insert("httpGet".to_owned(), now);
        let was = Value::Object([(what.to_owned(), said)].into_iter().collect());
        probes.rewritten.push(Rewritten { container: name.clone(), field: path.to_owned(), was });
    }
}

/// A number, or the name of one of the container's ports; a number may be written as text. Or what is wrong with it.
fn port_of(said: &Value, ports: &[(String, u64)]) -> Result<u16, String> {
    let number = match said.get("port") {
        None | Some(Value::Null) => return Err("has no port".to_owned()),
        Some(Value::String(name)) => {
            let named = ports.iter().find(|(known, _)| known == name).map(|(_, number)| *number);
            let known = ports.iter().map(|(known, _)| format!("`{known}`")).collect::<Vec<_>>().join(", ");
            let has = if known.is_empty() { "no port with a name".to_owned() } else { known };
            named.or_else(|| name.parse().ok()).ok_or_else(|| {
                format!("names the port `{}`, and the container declares {}", short(name), short(&has))
            })?
        }
        Some(port) => port.as_u64().ok_or_else(|| out_of_range(&port.to_string()))?,
    };
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| out_of_range(&number.to_string()))
}

fn out_of_range(port: &str) -> String {
    format!("has the port `{}`, which is none of 1 to 65535", short(port))
}

/// The path and headers of a probe that the proxy makes.
fn http(said: &Value) -> Value {
    let mut http = json!({ "path": asked(said) });
    let headers: Vec<Value> = list(said, "/httpHeaders")
        .iter()
        .filter_map(|header| Some(json!([name_of(header)?, header.get("value")?.as_str()?])))
        .collect();
    if !headers.is_empty() {
        http["headers"] = Value::Array(headers);
    }
    http
}

/// What the kubelet asks for: the path with its query, what no request line can hold escaped, without a fragment.
fn asked(said: &Value) -> String {
    let path = said.get("path").and_then(Value::as_str).unwrap_or("/");
    let path = path.split('#').next().unwrap_or_default();
    let mut out = String::new();
    if !path.starts_with('/') {
        out.push('/');
    }
    let mut in_query = false;
    for byte in path.bytes() {
        in_query |= byte == b'?';
        let plain = byte.is_ascii_graphic()
            && (!br#""<>\^`{|}"#.contains(&byte)
                || (in_query && byte != b'"' && byte != b'<' && byte != b'>'));
        match plain {
            true => out.push(char::from(byte)),
            false => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_as_the_kubelet_asks_for_it() {
        for (written, asked_for) in [
            (json!({"path": "/ready"}), "/ready"),
            (json!({"path": "ready"}), "/ready"),
            (json!({}), "/"),
            (json!({"path": ""}), "/"),
            (json!({"path": "/a?b=c&d=%20#e"}), "/a?b=c&d=%20"),
            (json!({"path": "/a b/ü"}), "/a%20b/%C3%BC"),
            (json!({"path": "/a?x={1}"}), "/a?x={1}"),
            (json!({"path": "?x=1"}), "/?x=1"),
        ] {
            assert_eq!(asked(&written), asked_for, "{written}");
        }
    }

    #[test]
    fn a_port_is_a_number_or_a_name_of_the_container() {
        let ports = [("http".to_owned(), 8080)];
        for (port, number) in [
            (json!(80), Some(80)),
            (json!("http"), Some(8080)),
            (json!("81"), Some(81)),
            (json!("https"), None),
            (json!(0), None),
            (json!(70000), None),
            (json!(null), None),
        ] {
            assert_eq!(port_of(&json!({ "port": port }), &ports).ok(), number, "{port}");
        }
        for (said, problem) in [
            (json!({}), "has no port"),
            (json!({"port": 70000}), "has the port `70000`, which is none of 1 to 65535"),
            (json!({"port": "70000"}), "has the port `70000`, which is none of 1 to 65535"),
            (json!({"port": -1}), "has the port `-1`, which is none of 1 to 65535"),
            (json!({"port": "https"}), "names the port `https`, and the container declares `http`"),
        ] {
            assert_eq!(port_of(&said, &ports), Err(problem.to_owned()));
        }
    }
}
