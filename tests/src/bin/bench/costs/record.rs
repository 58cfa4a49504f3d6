//! The figures on record, and whether others are within what they allow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use serde::{Deserialize, Serialize};
use tulle_tests::machine;

/// What a request costs one proxy.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Figures {
    pub(crate) instructions: f64,
    /// By name.
    pub(crate) system_calls: BTreeMap<String, f64>,
}

/// Figures by scenario and side.
pub(crate) type Table = BTreeMap<String, BTreeMap<String, Figures>>;

/// The file [`PATH`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    /// What the figures were taken with; another compiler may make others of the same source.
    taken_with: String,
    allowed_growth: Growth,
    figures: BTreeMap<String, BTreeMap<String, Recorded>>,
}

/// Parts of what is on record by which figures may be above it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Growth {
    instructions: f64,
    system_calls: f64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Recorded {
    instructions: f64,
    system_calls: f64,
}

/// System calls whose number hangs on how the kernel schedules client, proxies and backend: shown, not held.
const WAITS: &[&str] = &["epoll_wait", "futex", "sched_yield"];
/// System calls a request that are no growth: lines of the log are gathered by time, streams of HTTP/2 by chance.
const SLACK: f64 = 0.15;
/// A scenario, how many times the instructions of another it may cost, both sides together, and that other. Fifty rules on a port: the budget is 1.25 times the
/// CPU of the better bare pair; without rules it is 0.86 of that, of which more than half is instructions, so that these could grow by four fifths.
const BUDGETS: [(&str, f64, &str); 1] = [("rules-50", 1.6, "http1-32")];
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/costs.json");

// === impl Figures ===

impl Figures {
    /// All but waits.
    fn calls(&self) -> f64 {
        let calls = self.system_calls.iter().filter(|(name, _)| !WAITS.contains(&name.as_str()));
        calls.map(|(_, count)| count).sum()
    }

    fn least(self, other: &Self) -> Self {
        let system_calls =
            if other.calls() < self.calls() { other.system_calls.clone() } else { self.system_calls };
        Self { instructions: self.instructions.min(other.instructions), system_calls }
    }
}

/// The least of several rounds, figure by figure.
pub(crate) fn least(rounds: Vec<BTreeMap<String, Figures>>) -> BTreeMap<String, Figures> {
    let least = rounds.into_iter().reduce(|least, other| {
        let less = |(side, figures): (String, Figures)| {
            let figures = figures.least(&other[&side]);
            (side, figures)
        };
        least.into_iter().map(less).collect()
    });
    least.unwrap_or_default()
}

/// A line for each side.
pub(crate) fn shown(scenario: &str, figures: &BTreeMap<String, Figures>) -> String {
    let mut text = String::new();
    for (side, figures) in figures {
        let mut calls: Vec<_> = figures.system_calls.iter().filter(|(_, count)| **count >= 0.005).collect();
        calls.sort_by(|(_, one), (_, other)| other.total_cmp(one));
        let calls: Vec<_> = calls.into_iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
        let _ = writeln!(
            text,
            "{scenario:<10} {side:<8} {:>9.0} instructions {:>6.2} system calls beside waits ({})",
            figures.instructions,
            figures.calls(),
            calls.join(", ")
        );
    }
    text
}

// === impl Record ===

impl Default for Record {
    fn default() -> Self {
        let allowed_growth = Growth { instructions: 0.03, system_calls: 0.05 };
        Self { taken_with: String::new(), allowed_growth, figures: BTreeMap::new() }
    }
}

impl Record {
    pub(crate) fn read() -> Result<Self, String> {
        let text = fs::read_to_string(PATH).map_err(|error| format!("{PATH}: {error}; --record makes it"))?;
        serde_json::from_str(&text).map_err(|error| format!("{PATH}: {error}"))
    }

    /// With other figures of the scenarios that `table` has. `tools`: what counted.
    pub(crate) fn with(mut self, table: &Table, tools: &str) -> Self {
        self.taken_with = taken_with(tools);
        for (scenario, sides) in table {
            let recorded = |figures: &Figures| Recorded {
                instructions: figures.instructions.round(),
                system_calls: (figures.calls() * 100.0).round() / 100.0,
            };
            let sides = sides.iter().map(|(side, figures)| (side.clone(), recorded(figures))).collect();
            self.figures.insert(scenario.clone(), sides);
        }
        self
    }

    pub(crate) fn write(&self) -> Result<(), String> {
        let text = serde_json::to_string_pretty(self).map_err(|error| error.to_string())?;
        fs::write(PATH, text + "\n").map_err(|error| format!("{PATH}: {error}"))?;
        eprintln!("recorded in {PATH}");
        Ok(())
    }

    /// `Err` names each scenario of `table` that costs more than its budget beside another, which is of `table` if it is there, else on record.
    pub(crate) fn keeps_budgets(&self, table: &Table) -> Result<(), String> {
        let counted = |scenario: &str| {
            table.get(scenario).map(|sides| sides.values().map(|side| side.instructions).sum::<f64>())
        };
        let recorded = |scenario: &str| {
            self.figures.get(scenario).map(|sides| sides.values().map(|side| side.instructions).sum::<f64>())
        };
        for (scenario, times, beside) in BUDGETS {
            let Some(now) = counted(scenario) else { continue };
            let Some(other) = counted(beside).or_else(|| recorded(beside)) else { continue };
            if now > other * times {
                return Err(format!(
                    "{scenario} costs {} instructions a request, {beside} {}: {:.2} times as much, where {times} is the budget (docs/performance.md)",
                    number(now),
                    number(other),
                    now / other
                ));
            }
        }
        Ok(())
    }

    /// `Err` names each figure that grew by more than is allowed, and says what to do about it. Tells of those that fell.
    pub(crate) fn allows(&self, table: &Table, tools: &str) -> Result<(), String> {
        self.keeps_budgets(table)?;
        let (mut grown, mut fallen) = (String::new(), String::new());
        for (scenario, sides) in table {
            for (side, now) in sides {
                let before = self.figures.get(scenario).and_then(|sides| sides.get(side));
                let before =
                    before.ok_or_else(|| format!("{PATH} has no {scenario}, {side}; --record adds it"))?;
                let both = [
                    (
                        "instructions",
                        before.instructions,
                        now.instructions,
                        self.allowed_growth.instructions,
                        0.0,
                    ),
                    (
                        "system calls",
                        before.system_calls,
                        now.calls(),
                        self.allowed_growth.system_calls,
                        SLACK,
                    ),
                ];
                for (what, before, now, allowed, slack) in both {
                    let growth = now / before - 1.0;
                    let line = format!(
                        "  {scenario}, {side}: {} {what} a request, {} on record: {:+.1} %\n",
                        number(now),
                        number(before),
                        growth * 100.0
                    );
                    if now - before > before * allowed + slack {
                        grown.push_str(&line);
                    } else if before - now > before * allowed + slack {
                        fallen.push_str(&line);
                    }
                }
            }
        }
        if !fallen.is_empty() {
            eprintln!("less than on record; {RECORD} keeps it so:\n{fallen}");
        }
        if grown.is_empty() {
            return Ok(());
        }
        let Growth { instructions, system_calls } = self.allowed_growth;
        Err(format!(
            "a request costs more than tests/costs.json allows ({:.0} % of instructions, {:.0} % of system calls):\n{grown}\
             Where it goes: --keep DIR, then callgrind_annotate on a file of this build and of the one before. If it is worth it:\n\
             {RECORD}, and commit the file with the reason.\n\
             On record from: {}\nnow:            {}",
            instructions * 100.0,
            system_calls * 100.0,
            self.taken_with,
            taken_with(tools)
        ))
    }
}

/// How to put new figures on record, of binaries that are linked as those of the guard are.
const RECORD: &str = "`.ci/run costs-record`";

fn taken_with(tools: &str) -> String {
    let rustc = Command::new("rustc").arg("--version").output().ok();
    let rustc = rustc.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    // This program is built together with those that it counts.
    let linked = if cfg!(target_feature = "crt-static") { "statically" } else { "dynamically" };
    format!("{}, linked {linked}, {tools}, {}", rustc.unwrap_or_default(), machine::describe())
}

/// Instructions as whole numbers, system calls with their fractions.
fn number(value: f64) -> String {
    if value >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
