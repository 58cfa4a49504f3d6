//! A request as a line of text, and its header fields as lines below.

use std::time::Duration;

use tulle_control_plane::tap::{Request, printable};

use crate::screen::milliseconds;

/// In one line, or more where header fields were asked for; `wide`: with more in it. Nothing in it steers a terminal.
pub(super) fn lines(request: &Request, wide: bool) -> String {
    let (from, to) = ends(request);
    let side = if request.direction == "inbound" { "in " } else { "out" };
    let status = match (request.status, request.grpc_status) {
        (None, _) => "-".to_owned(),
        (Some(status), None) => status.to_string(),
        (Some(status), Some(grpc)) => format!("{status}/{grpc}"),
    };
    let took = milliseconds(Duration::from_nanos(request.duration_ns));
    let mut text = format!(
        "{} {side} {status:<6} {took:>8}  {from} → {to}  {}",
        time(&request.timestamp),
        asked(request)
    );
    if !request.reason.is_empty() {
        let by = if request.by.is_empty() { String::new() } else { format!(" by {}", request.by) };
        let detail = if request.detail.is_empty() { String::new() } else { format!(": {}", request.detail) };
        text.push_str(&format!("  {}{by}{detail}", request.reason));
    }
    if wide {
        let own =
            request.processing_ns.map(|nanos| milliseconds(Duration::from_nanos(nanos)).replace(' ', ""));
        let parts = [
            ("tls", request.tls.clone()),
            ("host", request.authority.clone()),
            ("route", request.route.clone()),
            ("backend", request.backend.clone()),
            ("endpoint", request.endpoint.clone()),
            ("client", request.client.clone()),
            ("rule", request.rule.clone()),
            ("bytes", format!("{}/{}", request.bytes_in, request.bytes_out)),
            ("own", own.unwrap_or_default()),
            ("attempts", request.attempts.to_string()),
            ("trace", request.trace_id.clone()),
        ];
        let parts = parts.into_iter().filter(|(_, value)| !value.is_empty());
        text.extend(parts.map(|(name, value)| format!("  {name}={value}")));
    }
    let mut text = printable(&text);
    for (sign, fields) in [('>', &request.request_headers), ('<', &request.response_headers)] {
        for field in fields {
            text.push_str(&format!("\n    {sign} {}: {}", printable(&field.name), printable(&field.value)));
        }
    }
    text
}

/// Who asked whom, as the proxy that tells of it knows them.
pub(crate) fn ends(request: &Request) -> (String, String) {
    if request.direction == "inbound" {
        return (name(&request.source).unwrap_or_else(|| request.client.clone()), request.workload.clone());
    }
    let to = [&request.service, &request.endpoint].into_iter().find(|name| !name.is_empty()).cloned();
    (request.workload.clone(), to.or_else(|| name(&request.destination)).unwrap_or_else(|| "?".to_owned()))
}

/// `<namespace>/<service account>`, the short form of an identity.
fn name(id: &str) -> Option<String> {
    let (namespace, account) = id.split_once("/ns/")?.1.split_once("/sa/")?;
    Some(format!("{namespace}/{account}"))
}

fn asked(request: &Request) -> String {
    match request.method.is_empty() {
        true => request.protocol.clone(),
        false => format!("{} {}", request.method, request.path),
    }
}

/// `05:01:39.123` of RFC 3339.
fn time(timestamp: &str) -> &str {
    timestamp.get(11..23).unwrap_or(timestamp)
}

#[cfg(test)]
mod tests {
    use tulle_control_plane::tap::Field;

    use super::*;

    fn request() -> Request {
        Request {
            timestamp: "2026-11-21T05:01:39.123456Z".to_owned(),
            workload: "shop/web".to_owned(),
            direction: "outbound".to_owned(),
            method: "GET".to_owned(),
            path: "/pay".to_owned(),
            status: Some(200),
            service: "shop/orders:80".to_owned(),
            source: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            client: "10.1.0.4:41000".to_owned(),
            tls: "mtls".to_owned(),
            duration_ns: 1_234_000,
            attempts: 1,
            ..Request::default()
        }
    }

    #[test]
    fn a_line_says_who_asked_whom_and_what_became_of_it() {
        assert_eq!(
            lines(&request(), false),
            "05:01:39.123 out 200     1.23 ms  shop/web → shop/orders:80  GET /pay"
        );
        let inbound = Request {
            direction: "inbound".to_owned(),
            workload: "shop/orders".to_owned(),
            grpc_status: Some(14),
            reason: "connect_failed".to_owned(),
            by: "shop/orders/inbound".to_owned(),
            detail: "connection refused".to_owned(),
            ..request()
        };
        let text = lines(&inbound, false);
        let expected = "05:01:39.123 in  200/14  1.23 ms  shop/web → shop/orders  GET /pay  connect_failed by shop/orders/inbound: \
                        connection refused";
        assert_eq!(text, expected);
        let stranger = Request { source: String::new(), ..inbound };
        assert!(lines(&stranger, false).contains("  10.1.0.4:41000 → shop/orders  "));
        let wide = lines(&request(), true);
        assert!(wide.ends_with("GET /pay  tls=mtls  client=10.1.0.4:41000  bytes=0/0  attempts=1"), "{wide}");
        let connection =
            Request { method: String::new(), protocol: "TCP".to_owned(), status: None, ..request() };
        assert!(lines(&connection, false).ends_with("out -       1.23 ms  shop/web → shop/orders:80  TCP"));
    }

    #[test]
    fn fields_have_lines_of_their_own_and_nothing_steers_the_terminal() {
        let field = |name: &str, value: &str| vec![Field { name: name.to_owned(), value: value.to_owned() }];
        let request = Request {
            path: "/\u{1b}[2J\n\u{9b}31m\u{202e}".to_owned(),
            request_headers: field("x-a", "\u{1b}]0;title\u{7}"),
            response_headers: field("set-cookie", "[redacted]"),
            ..request()
        };
        let text = lines(&request, true);
        let lines: Vec<&str> = text.split('\n').collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].contains("GET /\\u001b[2J\\u000a\\u009b31m\\u202e"), "{text}");
        assert_eq!(lines[1..], ["    > x-a: \\u001b]0;title\\u0007", "    < set-cookie: [redacted]"]);
        assert!(lines.iter().all(|line| line.chars().all(|c| !c.is_control())));
    }
}
