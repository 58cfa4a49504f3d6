//! Which requests have failed: one definition for `tulle stat`, `tulle top`, and the rules and dashboards for Prometheus, which say it once
//! more in PromQL. `tests/rules/failures.txt` has the cases by which all of them are tested.

/// The reason of whom nobody is to blame but the client.
const CLIENT_CLOSED: &str = "client_closed";

/// Whether a request has failed that is over, by what the metrics' labels say of it: its method; the status, if there was an answer; the
/// status of gRPC, if it was a call of that; and the proxies' reason, empty where there is none. It has if
///
/// - there was no answer;
/// - its status is 500 or more (a status beyond 599 counts as 5xx, RFC 9110 §15);
/// - gRPC's status blames the server: UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE or DATA_LOSS;
/// - its answer did not come to its end: below 400, no call of gRPC, and a proxy gives a reason. With 4xx the reason is why a proxy
///   refused it. A tunnel (101, or CONNECT) has no end that could be missed.
///
/// It never has if its client went away.
pub fn request_failed(method: &str, status: Option<u16>, grpc_status: Option<u32>, reason: &str) -> bool {
    match (grpc_status, status) {
        _ if reason == CLIENT_CLOSED => false,
        (Some(2 | 4 | 12..=15), _) | (_, None | Some(500..)) => true,
        (None, Some(101)) => false,
        (None, Some(..400)) => !reason.is_empty() && method != "CONNECT",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_fail_as_the_cases_say() {
        let cases = include_str!("../../tests/rules/failures.txt").lines();
        let cases = cases.filter(|line| !line.is_empty() && !line.starts_with('#'));
        for case in cases {
            let words: Vec<&str> = case.split_whitespace().collect();
            let [method, status, grpc_status, reason, expected] = words[..] else { panic!("{case}") };
            let reason = if reason == "-" { "" } else { reason };
            let failed = request_failed(method, status.parse().ok(), grpc_status.parse().ok(), reason);
            assert_eq!(failed, expected == "failed", "{case}");
        }
    }
}
