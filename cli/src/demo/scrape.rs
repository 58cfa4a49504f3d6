//! Reads the Prometheus text exposition, version 0.0.4, as far as a proxy's `/metrics` uses it.
//!
//! Total: a line that cannot be read is skipped, since what is around it still tells the truth.

/// One line: a metric's name, its labels and its value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    labels: Vec<(String, String)>,
    pub(crate) value: f64,
}

/// Every readable line, in the text's order.
pub(crate) fn parse(text: &str) -> Vec<Line> {
    text.lines().filter_map(line).collect()
}

fn line(text: &str) -> Option<Line> {
    let text = text.trim();
    if text.is_empty() || text.starts_with('#') {
        return None;
    }
    let end_of_name = text.find(|c: char| c == '{' || c.is_ascii_whitespace())?;
    let (name, rest) = text.split_at(end_of_name);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    // A timestamp or an exemplar may follow the value.
    let value = rest.split_ascii_whitespace().next()?.parse().ok()?;
    Some(Line { name: name.to_owned(), labels, value })
}

/// The labels up to and with the closing brace, and what follows it.
fn labels(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut labels = Vec::new();
    loop {
        rest = rest.trim_start_matches([',', ' ']);
        if let Some(rest) = rest.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, after) = rest.split_once("=\"")?;
        let (value, after) = quoted(after)?;
        labels.push((name.trim().to_owned(), value));
        rest = after;
    }
}

/// A label's value up to the closing quote, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => match characters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

// === impl Line ===

impl Line {
    /// The label's value; empty when it is absent, as Prometheus has it.
    pub(crate) fn label(&self, name: &str) -> &str {
        self.labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_labels_values_escapes_exemplars_and_timestamps() {
        let text = r#"
# HELP requests_total Requests.
# TYPE requests_total counter
requests_total 12
requests_total{a="1",b="with \"quotes\", a \\ and a }"} 3.5 1700000000000
duration_bucket{le="+Inf",} 7 # {trace_id="abc"} 0.2
up{} +Inf
"#;
        let lines = parse(text);
        assert_eq!(lines.len(), 4);
        assert_eq!((lines[0].name.as_str(), lines[0].value), ("requests_total", 12.0));
        assert_eq!(lines[1].label("b"), "with \"quotes\", a \\ and a }");
        assert_eq!(lines[1].label("absent"), "");
        assert_eq!(lines[1].value, 3.5);
        assert_eq!((lines[2].label("le"), lines[2].value), ("+Inf", 7.0));
        assert!(lines[3].value.is_infinite());
    }

    #[test]
    fn garbage_is_skipped_and_never_a_panic() {
        for text in [
            "a",
            "a{",
            "a{b",
            "a{b=\"",
            "a{b=\"\\",
            "a{b=\"c\"",
            "a{b=\"c\"}",
            "a{b=\"c\"} x",
            "{",
            "\u{1f980}",
        ] {
            assert_eq!(parse(text), [], "{text}");
        }
        assert_eq!(parse("a{b=\"\n\nc 1\n").len(), 1);
    }
}
