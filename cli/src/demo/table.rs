//! The table of edges as text.

use super::edges::Row;
use crate::screen::milliseconds;

const HEADINGS: [&str; 8] = ["EDGE", "SUCCESS", "REQ/S", "SHARE", "P50", "P99", "MTLS", "IDENTITY"];
/// Numbers are set to the right.
const RIGHT: [bool; 8] = [false, true, true, true, true, true, false, false];

/// The heading and a line per edge.
pub(crate) fn lines(rows: &[Row]) -> Vec<String> {
    let mut cells: Vec<[String; 8]> = vec![HEADINGS.map(str::to_owned)];
    cells.extend(rows.iter().map(self::cells));
    let mut widths = [0; 8];
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    cells.iter().map(|row| line(row, &widths)).collect()
}

fn line(row: &[String; 8], widths: &[usize; 8]) -> String {
    let mut text = String::new();
    for ((cell, &width), right) in row.iter().zip(widths).zip(RIGHT) {
        let cell = if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
        text.push_str(&cell);
        text.push_str("  ");
    }
    text.trim_end().to_owned()
}

fn cells(row: &Row) -> [String; 8] {
    let none = || "–".to_owned();
    [
        format!("{} → {}", row.from, row.to),
        row.success_rate.map_or_else(none, success),
        format!("{:.1}", row.rps),
        row.share.map_or_else(none, |share| format!("{:.0} %", share * 100.0)),
        row.p50.map_or_else(none, milliseconds),
        row.p99.map_or_else(none, milliseconds),
        if row.mtls { "yes" } else { "no" }.to_owned(),
        if row.identity.is_empty() { none() } else { row.identity.clone() },
    ]
}

/// Only a success without exception is 100 %.
fn success(rate: f64) -> String {
    let percent = if rate < 1.0 { (rate * 100.0).min(99.99) } else { 100.0 };
    format!("{percent:.2} %")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row() -> Row {
        Row {
            from: "orders".to_owned(),
            to: "payments-v1".to_owned(),
            requests: 450,
            failed: 0,
            success_rate: Some(1.0),
            rps: 45.04,
            share: Some(0.9008),
            p50: Some(Duration::from_micros(912)),
            p99: Some(Duration::from_micros(12_345)),
            mtls: true,
            identity: "spiffe://cluster.local/ns/demo/sa/payments-v1".to_owned(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn columns_stand_below_their_headings() {
        let idle = Row {
            from: "web".to_owned(),
            to: "orders".to_owned(),
            success_rate: None,
            rps: 0.0,
            share: None,
            p50: None,
            p99: None,
            mtls: false,
            identity: String::new(),
            ..row()
        };
        let expected = "\
EDGE                   SUCCESS  REQ/S  SHARE      P50      P99  MTLS  IDENTITY
web → orders                 –    0.0      –        –        –  no    –
orders → payments-v1  100.00 %   45.0   90 %  0.91 ms  12.3 ms  yes   spiffe://cluster.local/ns/demo/sa/payments-v1";
        assert_eq!(lines(&[idle, row()]).join("\n"), expected);
    }

    #[test]
    fn one_failure_in_a_million_is_not_all_success() {
        assert_eq!(success(1.0), "100.00 %");
        assert_eq!(success(0.999_999), "99.99 %");
        assert_eq!(success(0.5), "50.00 %");
    }
}
