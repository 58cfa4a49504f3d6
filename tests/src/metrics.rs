//! Reading `/metrics`.

use std::collections::BTreeMap;

/// What a process counted at one moment.
#[derive(Clone, Debug)]
pub struct Metrics(Vec<Sample>);

#[derive(Clone, Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

// === impl Metrics ===

impl Metrics {
    /// Of the Prometheus text format.
    ///
    /// # Panics
    /// On a line that is none.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self(
            lines.map(|line| Sample::parse(line).unwrap_or_else(|| panic!("not a sample: {line}"))).collect(),
        )
    }

    /// The sum of all samples of `name` that have these labels.
    pub fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let has = |sample: &&Sample| {
            sample.name == name
                && labels
                    .iter()
                    .all(|(label, value)| sample.labels.get(*label).is_some_and(|had| had == value))
        };
        self.0.iter().filter(has).map(|sample| sample.value).sum()
    }

    /// Whether there is a sample of `name`.
    pub fn has(&self, name: &str) -> bool {
        self.0.iter().any(|sample| sample.name == name)
    }

    /// How many samples there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Sample ===

impl Sample {
    fn parse(line: &str) -> Option<Self> {
        let (name, rest) = line.split_at(line.find(['{', ' '])?);
        let mut labels = BTreeMap::new();
        let mut rest = rest;
        if let Some(mut inner) = rest.strip_prefix('{') {
            loop {
                inner = inner.trim_start_matches([',', ' ']);
                if let Some(after) = inner.strip_prefix('}') {
                    rest = after;
                    break;
                }
                let (label, after) = inner.split_once("=\"")?;
                let (value, after) = quoted(after)?;
                labels.insert(label.to_owned(), value);
                inner = after;
            }
        }
        let value = rest.split_whitespace().next()?.parse().ok()?;
        Some(Self { name: name.to_owned(), labels, value })
    }
}

/// A label's value and what follows its closing quote.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[index + 1..])),
            '\\' => value.push(match characters.next()?.1 {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_what_has_the_labels() {
        let metrics = Metrics::parse(
            "# TYPE a_total counter\na_total{x=\"1\",y=\"b\\\"},\"} 2\na_total{x=\"1\",y=\"c\"} 3 1700\na_total 4\nb 1e3\n",
        );
        assert!((metrics.sum("a_total", &[]) - 9.0).abs() < f64::EPSILON);
        assert!((metrics.sum("a_total", &[("x", "1")]) - 5.0).abs() < f64::EPSILON);
        assert!((metrics.sum("a_total", &[("y", "b\"},")]) - 2.0).abs() < f64::EPSILON);
        assert!((metrics.sum("b", &[]) - 1000.0).abs() < f64::EPSILON);
        assert!(!metrics.has("c"));
    }
}
