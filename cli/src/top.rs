//! `tulle top`: what is asked most, live, by who asks whom, method and path.
//!
//! The same stream as `tulle tap`'s ([`Stream`]), added up here: counts are of what was shown, and what was not is said below the table.

use std::collections::{BTreeMap, HashMap};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior};
use tulle_control_plane::tap::{Line, Question, Request, Side, printable, question};

use crate::output::Format;
use crate::screen::{Screen, milliseconds};
use crate::tap::{Looking, Missed, Stream, ends, is_broken_pipe};

const EXAMPLES: &str = "\
Examples:
  tulle top                                what all workloads are asked
  tulle top shop/orders --path /api
  tulle top shop/web --direction outbound  what a workload asks others
  tulle top -n shop --status 5xx --for 30s

Columns:
  SOURCE, DESTINATION  who asked whom: workloads by their service accounts, others by their IP
  COUNT                requests since it began
  BEST, WORST, LAST    what they took, to the end of the answer
  SUCCESS              requests that did not fail: as `tulle stat` has it

Requests without an end are not in it, nor are connections without HTTP. What is too much to be
shown is not counted, and is told below.

Exit status:
  0  ended by Ctrl-C or --for
  1  the control plane cannot be asked, has ended, or knows nothing of that name
  2  wrong arguments";

/// How often it is drawn.
const DRAW: Duration = Duration::from_secs(1);
/// What is told apart; the rest is one row.
const MAX_ROWS: usize = 1000;
/// Where there is no terminal whose height would say it.
const SHOWN: usize = 50;
const REST: &str = "…";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TopArgs {
    #[command(flatten)]
    looking: Looking,
    /// How to print it; JSON is an object on a line, once a second, each of all that was counted until then.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// What was counted.
#[derive(Debug, Default)]
struct Counted {
    rows: HashMap<Key, Row>,
    missed: u64,
}

/// What is told apart.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
struct Key {
    source: String,
    destination: String,
    method: String,
    path: String,
}

#[derive(Debug, Clone, Default)]
struct Row {
    count: u64,
    failures: u64,
    best: Duration,
    worst: Duration,
    last: Duration,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Told<'a> {
    /// Since it began.
    seconds: f64,
    requests: u64,
    /// Those that proxies or the control plane left out.
    not_shown: u64,
    rows: Vec<ToldRow<'a>>,
}

#[derive(Debug, Serialize)]
struct ToldRow<'a> {
    #[serde(flatten)]
    key: &'a Key,
    count: u64,
    failures: u64,
    success_rate: f64,
    best_ms: f64,
    worst_ms: f64,
    last_ms: f64,
}

/// Counts until it is ended.
///
/// # Errors
/// The control plane cannot be asked, ends, or knows nothing of that name.
pub(crate) fn run(arguments: &TopArgs) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(count(arguments)) {
        // Nobody looks on.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

async fn count(arguments: &TopArgs) -> Result<()> {
    let mut question = arguments.looking.question(question::MAX_PER_SECOND)?;
    if arguments.looking.in_any_direction() {
        // Of both its proxies a request would be counted twice.
        question = Question { side: Some(Side::Inbound), ..question };
    }
    let mut stream = Stream::open(&arguments.looking, &question).await?;
    let mut screen = match arguments.output {
        Format::Table => Screen::new(),
        Format::Json => Screen::plain(),
    };
    let (mut counted, mut notes) = (Counted::default(), Missed::new(question.per_second));
    let mut watching = Vec::new();
    let begun = Instant::now();
    let mut draw = tokio::time::interval(DRAW);
    draw.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let ended = loop {
        let line = tokio::select! {
            line = stream.next() => line,
            _ = draw.tick() => {
                match arguments.output {
                    Format::Json => screen.draw(&[counted.json(begun.elapsed())?])?,
                    Format::Table if screen.is_live() => screen.draw(&counted.lines(&watching))?,
                    Format::Table => {}
                }
                continue;
            }
        };
        match line {
            Ok(Some(Some(Line::Request(request)))) => counted.add(&request),
            Ok(Some(Some(line))) => {
                counted.miss(&line);
                if !matches!(line, Line::Missed { .. } | Line::Unread { .. }) {
                    notes.take(line);
                    watching = notes.rest();
                }
            }
            // Nothing happens.
            Ok(Some(None)) => {}
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    match arguments.output {
        Format::Json => screen.draw(&[counted.json(begun.elapsed())?])?,
        Format::Table => screen.finish(&counted.lines(&watching))?,
    }
    ended
}

// === impl Counted ===

impl Counted {
    fn add(&mut self, request: &Request) {
        if request.method.is_empty() {
            return;
        }
        let mut key = Key::of(request);
        if self.rows.len() >= MAX_ROWS && !self.rows.contains_key(&key) {
            key = Key::rest();
        }
        let took = Duration::from_nanos(request.duration_ns);
        let row = self.rows.entry(key).or_default();
        row.best = if row.count == 0 { took } else { row.best.min(took) };
        row.worst = row.worst.max(took);
        row.last = took;
        row.count += 1;
        row.failures += u64::from(request.is_failure());
    }

    fn miss(&mut self, line: &Line) {
        self.missed += match line {
            Line::Missed { over_rate, dropped, .. } => over_rate + dropped,
            Line::Unread { lines } => *lines,
            _ => 0,
        };
    }

    /// The most first.
    fn sorted(&self) -> Vec<(&Key, &Row)> {
        let mut rows: Vec<(&Key, &Row)> = self.rows.iter().collect();
        rows.sort_by(|(a, first), (b, second)| second.count.cmp(&first.count).then(a.cmp(b)));
        rows
    }

    fn json(&self, elapsed: Duration) -> Result<String> {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let rows = self.sorted().into_iter().map(|(key, row)| ToldRow {
            key,
            count: row.count,
            failures: row.failures,
            success_rate: row.success(),
            best_ms: milliseconds(row.best),
            worst_ms: milliseconds(row.worst),
            last_ms: milliseconds(row.last),
        });
        let told = Told {
            seconds: elapsed.as_secs_f64(),
            requests: self.rows.values().map(|row| row.count).sum(),
            not_shown: self.missed,
            rows: rows.collect(),
        };
        Ok(printable(&serde_json::to_string(&told).context("JSON")?))
    }

    fn lines(&self, watching: &[String]) -> Vec<String> {
        const HEADINGS: [&str; 9] =
            ["SOURCE", "DESTINATION", "METHOD", "PATH", "COUNT", "BEST", "WORST", "LAST", "SUCCESS"];
        let mut table = vec![HEADINGS.map(str::to_owned)];
        let rows = self.sorted();
        table.extend(rows.iter().take(SHOWN).map(|(key, row)| {
            [
                printable(&key.source),
                printable(&key.destination),
                printable(&key.method),
                printable(&key.path),
                row.count.to_string(),
                milliseconds(row.best),
                milliseconds(row.worst),
                milliseconds(row.last),
                format!("{:.2}%", row.success() * 100.0),
            ]
        }));
        let mut widths = BTreeMap::new();
        for (column, cell) in table.iter().flat_map(|row| row.iter().enumerate()) {
            let width = widths.entry(column).or_insert(0);
            *width = cell.chars().count().max(*width);
        }
        let line = |row: &[String; 9]| {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = widths.get(&column).copied().unwrap_or_default();
                if column < 4 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        let mut lines: Vec<String> = table.iter().map(line).collect();
        if rows.len() > SHOWN {
            lines.push(format!("and {} more", rows.len() - SHOWN));
        }
        if rows.is_empty() {
            lines.push("no request has ended yet".to_owned());
        }
        if self.missed > 0 {
            lines.push(format!("not counted: {}, which were too many to be shown", self.missed));
        }
        lines.extend(watching.iter().cloned());
        lines
    }
}

// === impl Key ===

impl Key {
    fn of(request: &Request) -> Self {
        let (source, destination) = ends(request);
        // Each connection has a port of its own.
        let source = source.parse().map_or(source, |address: std::net::SocketAddr| address.ip().to_string());
        Self { source, destination, method: request.method.clone(), path: request.path.clone() }
    }

    fn rest() -> Self {
        let rest = || REST.to_owned();
        Self { source: rest(), destination: rest(), method: rest(), path: rest() }
    }
}

// === impl Row ===

impl Row {
    fn success(&self) -> f64 {
        (self.count - self.failures) as f64 / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, millis: u64, status: u32) -> Request {
        Request {
            workload: "shop/orders".to_owned(),
            direction: "inbound".to_owned(),
            source: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
            method: "GET".to_owned(),
            path: path.to_owned(),
            status: Some(status),
            duration_ns: millis * 1_000_000,
            ..Request::default()
        }
    }

    #[test]
    fn requests_add_up_by_path_and_the_most_come_first() {
        let mut counted = Counted::default();
        for (path, millis, status) in
            [("/b", 5, 200), ("/a", 3, 200), ("/a", 9, 500), ("/a", 4, 404), ("/a", 4, 200)]
        {
            counted.add(&request(path, millis, status));
        }
        counted.add(&Request { method: String::new(), ..request("", 1, 200) });
        counted.miss(&Line::Missed { proxy: "shop/orders".to_owned(), over_rate: 2, dropped: 3 });
        counted.miss(&Line::Unread { lines: 1 });
        let expected = "\
SOURCE    DESTINATION  METHOD  PATH  COUNT     BEST    WORST     LAST  SUCCESS
shop/web  shop/orders  GET     /a        4  3.00 ms  9.00 ms  4.00 ms   75.00%
shop/web  shop/orders  GET     /b        1  5.00 ms  5.00 ms  5.00 ms  100.00%
not counted: 6, which were too many to be shown
watching";
        assert_eq!(counted.lines(&["watching".to_owned()]).join("\n"), expected);
        let json: serde_json::Value =
            serde_json::from_str(&counted.json(Duration::from_secs(2)).unwrap()).unwrap();
        assert_eq!((&json["requests"], &json["not_shown"]), (&5.into(), &6.into()));
        assert_eq!((&json["rows"][0]["path"], &json["rows"][0]["failures"]), (&"/a".into(), &1.into()));
        assert_eq!((&json["rows"][0]["best_ms"], &json["rows"][0]["worst_ms"]), (&3.0.into(), &9.0.into()));
    }

    #[test]
    fn rows_are_bounded_whatever_paths_and_ports_there_are() {
        let mut counted = Counted::default();
        for n in 0..3000 {
            let client = format!("10.1.0.4:{n}");
            counted.add(&Request { source: String::new(), client, ..request("/same", 1, 200) });
            counted.add(&request(&format!("/{n}"), 1, 200));
        }
        assert_eq!(counted.rows.len(), MAX_ROWS + 1);
        let sorted = counted.sorted();
        assert_eq!((&*sorted[0].0.source, sorted[0].1.count), ("10.1.0.4", 3000));
        assert_eq!((sorted[1].0, sorted[1].1.count), (&Key::rest(), 3000 - (MAX_ROWS as u64 - 1)));
        assert!(counted.lines(&[]).contains(&format!("and {} more", MAX_ROWS + 1 - SHOWN)));
    }
}
