//! What the demo came to: the verdict, the JSON object, the summary's last lines.

use std::time::Duration;

use serde::Serialize;

use super::driver::Traffic;
use super::edges::Row;

/// `--output json`: one object.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    /// Every edge carried traffic over mutual TLS and no request failed.
    ok: bool,
    /// Why not; empty when `ok`.
    problems: Vec<String>,
    /// How long traffic was looked at.
    seconds: f64,
    /// The requests that the demo itself sent to `web`'s application.
    client: Client,
    edges: Vec<EdgeReport>,
}

#[derive(Debug, Serialize)]
struct Client {
    requests: u64,
    failed: u64,
}

#[derive(Debug, Serialize)]
struct EdgeReport {
    from: String,
    to: String,
    requests: u64,
    /// 0 to 1; null without requests.
    success_rate: Option<f64>,
    rps: f64,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    mtls: bool,
    identity: String,
}

// === impl Report ===

impl Report {
    /// Judges what was seen; `also` are problems that no edge shows, such as a process that ended.
    pub(crate) fn new(rows: &[Row], traffic: &Traffic, elapsed: Duration, also: Vec<String>) -> Self {
        let mut problems = also;
        problems.extend(rows.iter().flat_map(problems_of));
        if traffic.requests == 0 {
            problems.push("no request was sent to web".to_owned());
        }
        if traffic.failed > 0 {
            let last = traffic.last_failure.as_deref().unwrap_or("unknown");
            problems.push(format!(
                "{} of {} requests to web failed; the last: {last}",
                traffic.failed, traffic.requests
            ));
        }
        if traffic.skipped > 0 {
            problems.push(format!(
                "{} requests were not sent, since too many waited for their answers; try a lower --rps",
                traffic.skipped
            ));
        }
        Self {
            ok: problems.is_empty(),
            problems,
            seconds: round(elapsed.as_secs_f64()),
            client: Client { requests: traffic.requests, failed: traffic.failed },
            edges: rows.iter().map(EdgeReport::new).collect(),
        }
    }

    /// Whether nothing was wrong.
    pub(crate) fn is_ok(&self) -> bool {
        self.ok
    }

    /// The lines below the summary's table.
    pub(crate) fn verdict(&self) -> Vec<String> {
        if self.ok {
            let requests = self.client.requests;
            return vec![format!(
                "ok: {requests} requests in {:.1} s, none failed, every edge over mutual TLS",
                self.seconds
            )];
        }
        self.problems.iter().map(|problem| format!("problem: {problem}")).collect()
    }
}

fn problems_of(row: &Row) -> Vec<String> {
    let edge = format!("{} → {}", row.from, row.to);
    if row.requests == 0 {
        return vec![format!("{edge}: carried no request")];
    }
    let mut problems = Vec::new();
    if row.failed > 0 {
        let why = row.failures.join(", ");
        problems.push(format!("{edge}: {} of {} requests failed ({why})", row.failed, row.requests));
    }
    if !row.mtls && row.failed < row.requests {
        let who = if row.identity.is_empty() { "nobody" } else { &row.identity };
        problems.push(format!(
            "{edge}: not every request went over mutual TLS to the expected identity (seen: {who})"
        ));
    }
    problems
}

fn round(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}

// === impl EdgeReport ===

impl EdgeReport {
    fn new(row: &Row) -> Self {
        let milliseconds = |duration: Duration| round(duration.as_secs_f64() * 1e3);
        Self {
            from: row.from.clone(),
            to: row.to.clone(),
            requests: row.requests,
            success_rate: row.success_rate,
            rps: round(row.rps),
            p50_ms: row.p50.map(milliseconds),
            p99_ms: row.p99.map(milliseconds),
            mtls: row.mtls,
            identity: row.identity.clone(),
        }
    }
}
