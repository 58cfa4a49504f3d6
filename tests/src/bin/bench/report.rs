//! The tables: medians of all rounds with their spread, as Markdown and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::Options;
use crate::peers::Peer;
use crate::scenario::{Kind, Scenario};

/// What one measurement found, by name.
pub(crate) type Sample = BTreeMap<&'static str, f64>;

/// Everything that was found.
#[derive(Debug)]
pub(crate) struct Report {
    machine: String,
    rounds: usize,
    seconds: f64,
    scenarios: Vec<Scenario>,
    peers: Vec<(Peer, Result<String, String>)>,
    found: BTreeMap<(Scenario, &'static str), Vec<Sample>>,
    lacks: BTreeMap<(Scenario, &'static str), String>,
}

/// A column: what it shows, its heading, and decimals.
type Column = (&'static str, &'static str, usize);

/// A spread of the cost beyond which a run is not to be trusted.
const BOUND: f64 = 0.15;
/// Cores that others may use beside a run.
const OTHERS: f64 = 0.25;

const LOAD: &[Column] = &[
    ("each", "µs per request and proxy", 1),
    ("out", "outbound µs", 1),
    ("out_system", "of it kernel", 1),
    ("in", "inbound µs", 1),
    ("in_system", "of it kernel", 1),
    ("rps", "requests/s", 0),
    ("p50", "p50 ms", 3),
    ("p99", "p99 ms", 3),
    ("p999", "p99.9 ms", 3),
    ("added_p50", "added p50", 3),
    ("added_p99", "added p99", 3),
    ("loaded", "MiB", 1),
];
const BODY: &[Column] = &[
    ("gib_out", "outbound CPU s/GiB", 3),
    ("gib_in", "inbound CPU s/GiB", 3),
    ("gib_s", "GiB/s", 2),
    ("loaded", "MiB", 1),
];
const IDLE: &[Column] = &[
    ("idle_out", "outbound KiB each", 2),
    ("idle_in", "inbound KiB each", 2),
    ("connections", "connections", 0),
    ("after", "MiB when they are gone", 1),
];
const QUOTA: &[Column] = &[
    ("p50", "p50 ms", 3),
    ("p99", "p99 ms", 3),
    ("p999", "p99.9 ms", 3),
    ("each", "µs per request and proxy", 1),
];
const BURST: &[Column] = &[
    ("fresh", "MiB idle", 1),
    ("before", "MiB with 20 connections", 1),
    ("loaded", "MiB with 2,000", 1),
    ("after", "MiB a minute later", 1),
];
const START: &[Column] =
    &[("ready", "ms from start to ready", 1), ("fresh", "MiB then", 1), ("binary", "MB of executable", 2)];

// === impl Report ===

impl Report {
    pub(crate) fn new(machine: String, options: &Options) -> Self {
        Self {
            machine,
            rounds: options.rounds,
            seconds: options.seconds,
            scenarios: options.scenarios.clone(),
            peers: Vec::new(),
            found: BTreeMap::new(),
            lacks: BTreeMap::new(),
        }
    }

    pub(crate) fn version(&mut self, peer: Peer, version: String) {
        self.peers.push((peer, Ok(version)));
    }

    pub(crate) fn missing(&mut self, peer: Peer, why: String) {
        self.peers.push((peer, Err(why)));
    }

    pub(crate) fn lacks(&mut self, scenario: Scenario, peer: Peer, why: String) {
        self.lacks.insert((scenario, peer.name()), why);
    }

    pub(crate) fn add(&mut self, scenario: Scenario, peer: Peer, sample: Sample) {
        self.found.entry((scenario, peer.name())).or_default().push(sample);
    }

    /// Writes both files.
    pub(crate) fn save(&self, output: &Path) -> Result<(), String> {
        let write = |path: &Path, text: &str| {
            if let Some(folder) = path.parent() {
                let _ = std::fs::create_dir_all(folder);
            }
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
        };
        write(output, &self.markdown())?;
        write(&output.with_extension("json"), &format!("{:#}\n", self.json()))
    }

    fn values(&self, scenario: Scenario, peer: Peer, name: &str) -> Vec<f64> {
        let samples = self.found.get(&(scenario, peer.name())).map_or(&[] as &[Sample], Vec::as_slice);
        let mut values: Vec<f64> = samples.iter().filter_map(|sample| sample.get(name).copied()).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "{}. {} rounds of {} s; medians, and half the distance between the lowest and the highest round.\n",
            self.machine, self.rounds, self.seconds
        );
        for warning in self.warnings() {
            let _ = write!(text, "\n**{warning}**\n");
        }
        text.push('\n');
        for (peer, version) in &self.peers {
            let _ = match version {
                Ok(version) => writeln!(text, "- {}: {version}", peer.name()),
                Err(why) => writeln!(text, "- {}: **missing**: {why}", peer.name()),
            };
        }
        for scenario in &self.scenarios {
            self.table(*scenario, &mut text);
        }
        text
    }

    fn table(&self, scenario: Scenario, text: &mut String) {
        let columns = match scenario.kind() {
            Kind::Load(..) => LOAD,
            Kind::Body(_) => BODY,
            Kind::Idle(_) => IDLE,
            Kind::Quota(..) => QUOTA,
            Kind::Burst(_) => BURST,
            Kind::Start => START,
        };
        let _ = write!(text, "\n### {}: {}\n\n| |", scenario.name(), scenario.title());
        columns.iter().for_each(|(_, heading, _)| {
            let _ = write!(text, " {heading} |");
        });
        text.push_str("\n| --- |");
        columns.iter().for_each(|_| text.push_str(" ---: |"));
        text.push('\n');
        for (peer, version) in &self.peers {
            let _ = write!(text, "| {} |", peer.name());
            let lacks = self.lacks.get(&(scenario, peer.name()));
            if let (Err(why), _) | (_, Some(why)) = (version, lacks) {
                let why = if version.is_err() { "missing" } else { why.lines().next().unwrap_or_default() };
                let _ = writeln!(text, " {} |{}", why.replace('|', "/"), " |".repeat(columns.len() - 1));
                continue;
            }
            for (name, _, decimals) in columns {
                if let Some(of) = name.strip_prefix("added_") {
                    let _ = match self.added(scenario, *peer, of) {
                        None => write!(text, " |"),
                        Some(added) => write!(text, " {added:.decimals$} |"),
                    };
                    continue;
                }
                let _ = match median(&self.values(scenario, *peer, name)) {
                    None => write!(text, " |"),
                    Some(value) if self.rounds == 1 => write!(text, " {value:.decimals$} |"),
                    Some(value) => {
                        let half = spread(&self.values(scenario, *peer, name)) / 2.0 * value;
                        write!(text, " {value:.decimals$} ± {half:.decimals$} |")
                    }
                };
            }
            text.push('\n');
        }
    }

    /// What a pair adds to the figure of no proxy in the same run.
    fn added(&self, scenario: Scenario, peer: Peer, name: &str) -> Option<f64> {
        let of = |peer| median(&self.values(scenario, peer, name));
        (peer != Peer::None).then(|| Some(of(peer)? - of(Peer::None)?)).flatten()
    }

    /// Why figures may not be what they seem.
    fn warnings(&self) -> Vec<String> {
        let mut wide = Vec::new();
        let (mut others, mut stolen) = (Vec::new(), Vec::new());
        for scenario in &self.scenarios {
            for (peer, _) in &self.peers {
                let spread = spread(&self.values(*scenario, *peer, "each"));
                if spread > BOUND {
                    wide.push(format!("{} in {} ({:.0} %)", peer.name(), scenario.name(), spread * 100.0));
                }
                others.extend(self.values(*scenario, *peer, "others"));
                stolen.extend(self.values(*scenario, *peer, "stolen"));
            }
        }
        let mut warnings = Vec::new();
        for (mut used, by) in [(others, "other programs"), (stolen, "the hypervisor")] {
            used.sort_by(f64::total_cmp);
            if let Some(cores) = median(&used).filter(|cores| *cores > OTHERS) {
                warnings.push(format!(
                    "The machine was busy: {by} took {cores:.2} cores meanwhile. Only ratios within this run count."
                ));
            }
        }
        if !wide.is_empty() {
            warnings.push(format!(
                "The cost spread by more than {:.0} %: {}.",
                BOUND * 100.0,
                wide.join(", ")
            ));
        }
        warnings
    }

    fn json(&self) -> Value {
        let peers: Vec<Value> = self
            .peers
            .iter()
            .map(|(peer, version)| match version {
                Ok(version) => json!({ "name": peer.name(), "version": version }),
                Err(why) => json!({ "name": peer.name(), "missing": why }),
            })
            .collect();
        let found: Vec<Value> = self
            .found
            .iter()
            .map(|((scenario, peer), samples)| {
                json!({ "scenario": scenario.name(), "peer": peer, "samples": samples })
            })
            .collect();
        let lacks: Vec<Value> = self
            .lacks
            .iter()
            .map(|((scenario, peer), why)| json!({ "scenario": scenario.name(), "peer": peer, "why": why }))
            .collect();
        json!({
            "machine": self.machine, "rounds": self.rounds, "seconds": self.seconds, "warnings": self.warnings(),
            "peers": peers, "found": found, "lacks": lacks,
        })
    }
}

/// Of sorted values.
fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        count if count % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// How far sorted values lie apart, as a part of their median.
fn spread(values: &[f64]) -> f64 {
    match (values.first(), values.last(), median(values)) {
        (Some(lowest), Some(highest), Some(median)) if median > 0.0 => (highest - lowest) / median,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[1.0, 2.0, 9.0]), Some(2.0));
        assert_eq!(median(&[1.0, 3.0]), Some(2.0));
        assert!((spread(&[1.0, 2.0, 4.0]) - 1.5).abs() < 1e-9);
        assert!(spread(&[]).abs() < 1e-9);
    }
}
