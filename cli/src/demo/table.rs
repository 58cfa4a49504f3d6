//! The table of edges as text, and the terminal that it is redrawn in.
//!
//! Lines never wrap, but for the last drawing's: what is wider than the terminal is cut, so that the cursor finds the top of the table again. No
//! alternate screen: what was printed last stays when the demo has ended.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use super::edges::Row;

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

/// Milliseconds with three digits that count.
pub(crate) fn milliseconds(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1e3;
    match milliseconds {
        ..10.0 => format!("{milliseconds:.2} ms"),
        ..100.0 => format!("{milliseconds:.1} ms"),
        _ => format!("{milliseconds:.0} ms"),
    }
}

/// Standard output, redrawn in place where it is a terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    terminal: bool,
    /// Lines that the next drawing replaces.
    drawn: usize,
}

// === impl Screen ===

impl Screen {
    pub(crate) fn new() -> Self {
        Self { terminal: io::stdout().is_terminal(), drawn: 0 }
    }

    /// Whether drawings replace each other; where they do not, they should be few.
    pub(crate) fn is_live(&self) -> bool {
        self.terminal
    }

    /// Prints `lines` in place of what was drawn before.
    ///
    /// # Errors
    /// Those of standard output: the reader has gone, most likely.
    pub(crate) fn draw(&mut self, lines: &[String]) -> io::Result<()> {
        let size = self.terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten();
        // A terminal that does not say its size (0) is taken to be as wide as need be.
        let size = size.filter(|size| size.ws_col > 0 && size.ws_row > 1);
        let height = size.map_or(usize::MAX, |size| usize::from(size.ws_row) - 1);
        let width = size.map_or(usize::MAX, |size| usize::from(size.ws_col));
        self.write(lines, width, height)
    }

    /// The last drawing: all of it, since none follows that would have to find its top.
    ///
    /// # Errors
    /// As [`Screen::draw`].
    pub(crate) fn finish(&mut self, lines: &[String]) -> io::Result<()> {
        self.write(lines, usize::MAX, usize::MAX)
    }

    fn write(&mut self, lines: &[String], width: usize, height: usize) -> io::Result<()> {
        let text = drawing(self.drawn, self.terminal, lines, width, height);
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        self.drawn = if self.terminal { lines.len().min(height) } else { 0 };
        Ok(())
    }
}

/// The text that replaces `drawn` lines by `lines`: up, then each line followed by "erase to its end", then what was
/// below erased. One write, so that nothing flickers.
fn drawing(drawn: usize, terminal: bool, lines: &[String], width: usize, height: usize) -> String {
    let mut text = String::new();
    if terminal && drawn > 0 {
        text.push_str(&format!("\x1b[{drawn}A\r"));
    }
    for line in lines.iter().take(height) {
        text.extend(line.chars().take(width));
        text.push_str(if terminal { "\x1b[K\n" } else { "\n" });
    }
    if terminal {
        text.push_str("\x1b[J");
    }
    text
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn a_drawing_replaces_the_last_and_leaves_no_codes_in_a_file() {
        let lines = ["wide line".to_owned(), "x".to_owned(), "below".to_owned()];
        assert_eq!(drawing(0, true, &lines[..2], 4, 10), "wide\x1b[K\nx\x1b[K\n\x1b[J");
        assert_eq!(drawing(2, true, &lines, 80, 2), "\x1b[2A\rwide line\x1b[K\nx\x1b[K\n\x1b[J");
        assert_eq!(drawing(2, false, &lines[..2], usize::MAX, usize::MAX), "wide line\nx\n");
    }
}
