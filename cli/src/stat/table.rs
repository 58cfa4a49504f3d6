//! The lines that are shown, as text and as JSON. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;
use tulle_api::Latencies;
use tulle_control_plane::load::{Row, Seen};

use crate::screen::milliseconds;

/// What is printed.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    /// How far back is looked.
    window_seconds: u64,
    pub(super) rows: Vec<Line>,
    /// Workloads of whose proxies not everything is known, or not everything told apart.
    incomplete: BTreeSet<String>,
    /// Workloads whose proxies do not tell apart by these labels, as they were told to.
    untold: BTreeMap<String, BTreeSet<String>>,
    /// Control planes that did not answer, and why.
    pub(super) unreachable: Vec<String>,
    #[serde(skip)]
    columns: Columns,
    #[serde(skip)]
    when_empty: &'static str,
}

/// What stands before the golden metrics and, in the wide form, behind them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Columns {
    pub(super) about: &'static [&'static str],
    pub(super) wide: &'static [&'static str],
}

/// One line: what it is about, and the golden metrics of it.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    #[serde(flatten)]
    pub(super) about: BTreeMap<&'static str, String>,
    #[serde(flatten)]
    pub(super) golden: Golden,
}

#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Golden {
    pub(super) requests: u64,
    pub(super) failures: u64,
    /// 0 to 1; null without requests.
    success_rate: Option<f64>,
    pub(super) rps: f64,
    latency_p50_ms: Option<f64>,
    latency_p95_ms: Option<f64>,
    latency_p99_ms: Option<f64>,
    pub(super) open_connections: u64,
    /// On connections without HTTP, from whom opened them.
    read_bytes: u64,
    read_bytes_per_second: f64,
    /// To whom opened them.
    write_bytes: u64,
    write_bytes_per_second: f64,
}

/// What is added up.
#[derive(Debug, Default)]
pub(super) struct Sum {
    requests: u64,
    failures: u64,
    rps: f64,
    latencies: Latencies,
    open_connections: u64,
    bytes: [u64; 2],
    bytes_per_second: [f64; 2],
}

const GOLDEN: [&str; 6] = ["SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "TCP_CONN"];
const BYTES: [&str; 2] = ["READ_BYTES/SEC", "WRITE_BYTES/SEC"];
/// Workloads that a note names.
const NAMED: usize = 5;

// === impl Sum ===

impl Sum {
    pub(super) fn add(&mut self, row: &Row) {
        self.requests = self.requests.saturating_add(row.requests);
        self.failures = self.failures.saturating_add(row.failures);
        self.rps += row.requests_per_second;
        self.latencies.merge(&row.latencies());
        self.open_connections = self.open_connections.saturating_add(row.open_connections);
        for (sum, bytes) in self.bytes.iter_mut().zip([row.bytes_received, row.bytes_sent]) {
            *sum = sum.saturating_add(bytes);
        }
        let [sent, received] = row.bytes_per_second;
        self.bytes_per_second[0] += received;
        self.bytes_per_second[1] += sent;
    }

    pub(super) fn golden(self) -> Golden {
        let thousandths = |value: f64| (value * 1e3).round() / 1e3;
        let milliseconds = |q| self.latencies.quantile(q).map(|at| thousandths(at.as_secs_f64() * 1e3));
        let ok = self.requests.saturating_sub(self.failures);
        Golden {
            requests: self.requests,
            failures: self.failures,
            success_rate: (self.requests > 0).then(|| ok as f64 / self.requests as f64),
            rps: thousandths(self.rps),
            latency_p50_ms: milliseconds(0.5),
            latency_p95_ms: milliseconds(0.95),
            latency_p99_ms: milliseconds(0.99),
            open_connections: self.open_connections,
            read_bytes: self.bytes[0],
            read_bytes_per_second: thousandths(self.bytes_per_second[0]),
            write_bytes: self.bytes[1],
            write_bytes_per_second: thousandths(self.bytes_per_second[1]),
        }
    }
}

// === impl Golden ===

impl Golden {
    fn cells(&self) -> [String; 6] {
        let none = || "-".to_owned();
        let latency = |latency: Option<f64>| {
            latency.map_or_else(none, |latency| milliseconds(Duration::from_secs_f64(latency / 1e3)))
        };
        // Only a success without exception is 100 %.
        let success =
            |rate: f64| format!("{:.2}%", if rate < 1.0 { (rate * 100.0).min(99.99) } else { 100.0 });
        [
            self.success_rate.map_or_else(none, success),
            if self.requests == 0 { none() } else { format!("{:.1}", self.rps) },
            latency(self.latency_p50_ms),
            latency(self.latency_p95_ms),
            latency(self.latency_p99_ms),
            self.open_connections.to_string(),
        ]
    }

    fn bytes(&self) -> [String; 2] {
        [self.read_bytes_per_second, self.write_bytes_per_second].map(bytes)
    }
}

/// So many bytes, with three digits that count.
fn bytes(count: f64) -> String {
    let mut count = count;
    for unit in ["B", "KiB", "MiB"] {
        if count < 1000.0 {
            let digits = if unit == "B" || count >= 100.0 { 0 } else { 1 };
            return format!("{count:.digits$} {unit}");
        }
        count /= 1024.0;
    }
    format!("{count:.1} GiB")
}

// === impl Table ===

impl Table {
    pub(super) fn new(seen: &Seen, rows: Vec<Line>, columns: Columns, when_empty: &'static str) -> Self {
        let incomplete = seen.proxies.iter().filter(|proxy| proxy.is_cut);
        let incomplete = incomplete.map(|proxy| proxy.proxy.clone()).collect();
        let mut untold: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for proxy in seen.proxies.iter().filter(|proxy| !proxy.untold.is_empty()) {
            untold.entry(proxy.proxy.clone()).or_default().extend(proxy.untold.iter().cloned());
        }
        let window_seconds = seen.window_seconds;
        Self { window_seconds, rows, incomplete, untold, unreachable: Vec::new(), columns, when_empty }
    }

    /// As text.
    pub(super) fn lines(&self, is_wide: bool) -> Vec<String> {
        let about = self.columns.about;
        // What is longest stands last, where a narrow terminal cuts it.
        let (bytes, wide) = if is_wide { (&BYTES[..], self.columns.wide) } else { (&[][..], &[][..]) };
        let headings = about.iter().chain(&GOLDEN).chain(bytes).chain(wide);
        let mut cells: Vec<Vec<String>> = vec![headings.map(|heading| (*heading).to_owned()).collect()];
        for Line { about: texts, golden } in &self.rows {
            let text = |heading: &&str| match texts.get(&*heading.to_ascii_lowercase()) {
                Some(text) if !text.is_empty() => text.clone(),
                _ => "-".to_owned(),
            };
            let numbers = golden.cells().into_iter().chain(golden.bytes().into_iter().take(bytes.len()));
            cells.push(about.iter().map(text).chain(numbers).chain(wide.iter().map(text)).collect());
        }
        let count = cells[0].len();
        let width = |at: usize| cells.iter().map(|row| row[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..count).map(width).collect();
        let line = |row: &Vec<String>| {
            let mut text = String::new();
            for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
                // Numbers are set to the right.
                let is_number = (about.len()..count - wide.len()).contains(&at);
                text.push_str(&if is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") });
                text.push_str("   ");
            }
            text.trim_end().to_owned()
        };
        let mut lines: Vec<String> = match self.rows.is_empty() {
            true => vec![self.when_empty.to_owned()],
            false => cells.iter().map(line).collect(),
        };
        lines.extend(self.notes());
        lines
    }

    /// What the table does not show, and why.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.incomplete.is_empty() {
            let of = named(self.incomplete.iter());
            notes.push(format!("not all is here of {of}: there is more than their reports tell apart"));
        }
        if !self.untold.is_empty() {
            let labels: BTreeSet<&str> = self.untold.values().flatten().map(String::as_str).collect();
            let labels: Vec<&str> = labels.into_iter().collect();
            let of = named(self.untold.keys());
            notes.push(format!(
                "not told apart by {}, as TULLE_PROXY_METRICS_LABELS says there: {of}",
                labels.join(", ")
            ));
        }
        notes.extend(self.unreachable.iter().map(|why| format!("what its proxies carry is not here: {why}")));
        notes
    }
}

fn named<'a>(workloads: impl ExactSizeIterator<Item = &'a String>) -> String {
    let more = workloads.len().saturating_sub(NAMED);
    let names: Vec<&str> = workloads.take(NAMED).map(String::as_str).collect();
    match more {
        0 => names.join(", "),
        more => format!("{} and {more} more", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let said = [0.0, 12.4, 999.0, 1000.0, 150_000.0, 3e6, 5e9].map(bytes);
        assert_eq!(said, ["0 B", "12 B", "999 B", "1.0 KiB", "146 KiB", "2.9 MiB", "4.7 GiB"]);
    }
}
