//! OpenMetrics 1.0, for whoever asks `/metrics` for it: the same samples as in the Prometheus text format, by the stricter form's
//! rules. Both halves write the text format with the `prometheus` crate, which knows no other.

use std::fmt::{Display, Write as _};

/// The `Content-Type` of [`from_text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whether who sent this `Accept` wants OpenMetrics at least as much as plain text (RFC 9110 §12.5.1).
pub fn is_wanted(accept: &str) -> bool {
    let (mut open, mut plain) = (0.0_f32, 0.0_f32);
    for range in accept.split(',') {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let (mut weight, mut known) = (1.0, true);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim() {
                "q" => weight = value.trim().parse().unwrap_or(0.0),
                "version" => known = matches!(value.trim().trim_matches('"'), "1.0.0" | "0.0.1"),
                _ => {}
            }
        }
        if kind.eq_ignore_ascii_case("application/openmetrics-text") && known {
            open = open.max(weight);
        } else if kind.eq_ignore_ascii_case("text/plain") {
            plain = plain.max(weight);
        }
    }
    open > 0.0 && open >= plain
}

/// A page of the text format 0.0.4, all of whose counters and nothing else are named `…_total`, as OpenMetrics. A family's unit is
/// the end of its name. `_created` is left out: no counter begins anew before its process does, and
/// `process_start_time_seconds` says when that was.
pub fn from_text(text: &str) -> String {
    with_exemplars(text, |_| None::<&str>)
}

/// The same, with what `exemplar` says of each bucket of histograms, which are asked about in their order: labels, value and time as
/// OpenMetrics has them. It is given the family's name.
pub fn with_exemplars<E: Display>(text: &str, mut exemplar: impl FnMut(&str) -> Option<E>) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for line in text.lines() {
        let family = line.strip_prefix("# ").and_then(|rest| rest.split_once(' '));
        match family {
            Some(("HELP", rest)) => {
                let (name, help) = rest.split_once(' ').unwrap_or((rest, ""));
                let help = help.replace('"', "\\\"");
                push(&mut out, &["# HELP ", base(name), " ", &help]);
            }
            Some(("TYPE", rest)) => {
                let (name, kind) = rest.split_once(' ').unwrap_or((rest, "unknown"));
                push(&mut out, &["# TYPE ", base(name), " ", kind]);
                let unit = ["seconds", "bytes"]
                    .into_iter()
                    .find(|unit| base(name).strip_suffix(unit).is_some_and(|before| before.ends_with('_')));
                if let Some(unit) = unit {
                    push(&mut out, &["# UNIT ", base(name), " ", unit]);
                }
            }
            _ if line.is_empty() || line.starts_with('#') => {}
            _ => {
                sample(&mut out, line);
                let name = line.split(['{', ' ']).next().unwrap_or_default();
                if let Some(exemplar) = name.strip_suffix("_bucket").and_then(&mut exemplar) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, " # {exemplar}");
                }
                out.push('\n');
            }
        }
    }
    out.push_str("# EOF\n");
    out
}

fn base(name: &str) -> &str {
    name.strip_suffix("_total").unwrap_or(name)
}

fn push(out: &mut String, parts: &[&str]) {
    parts.iter().for_each(|part| out.push_str(part));
    out.push('\n');
}

/// Without the end of its line. A bucket's bound is a number with a point, so that every exposer writes the same label.
fn sample(out: &mut String, line: &str) {
    // In a label's value the quote would be behind a backslash.
    let bound = line.find("le=\"").filter(|at| line[..*at].ends_with(['{', ','])).map(|at| at + 4);
    let Some((bound, end)) = bound.and_then(|at| Some((at, at + line[at..].find('"')?))) else {
        return out.push_str(line);
    };
    let is_whole = line[bound..end].bytes().all(|byte| byte.is_ascii_digit());
    [&line[..end], if is_whole { ".0" } else { "" }, &line[end..]].iter().for_each(|part| out.push_str(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asks_for_it_gets_it() {
        for (accept, wanted) in [
            ("application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", true),
            ("application/openmetrics-text; version=0.0.1; q=0.75, text/plain; q=0.5", true),
            ("Application/OpenMetrics-Text", true),
            ("application/openmetrics-text; version=1.0.0; escaping=allow-utf-8", true),
            ("application/openmetrics-text; version=2.0.0, text/plain", false),
            ("application/openmetrics-text;q=0.2, text/plain;q=0.5", false),
            ("application/openmetrics-text;q=0", false),
            ("application/openmetrics-text;q=much", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
            (";;,=,;q=", false),
        ] {
            assert_eq!(is_wanted(accept), wanted, "{accept}");
        }
    }

    #[test]
    fn counters_lose_their_ending_and_the_page_has_its_end() {
        let text = "# HELP a_bytes_total Called \"a\".\n# TYPE a_bytes_total counter\n\
                    a_bytes_total{x=\",le=\\\"1\\\"\",y=\"2\"} 3\n\
                    # HELP b_seconds B.\n# TYPE b_seconds histogram\n\
                    b_seconds_bucket{x=\"y\",le=\"0.5\"} 1\nb_seconds_bucket{x=\"y\",le=\"10\"} 2\n\
                    b_seconds_bucket{le=\"+Inf\"} 2\nb_seconds_sum 4\nb_seconds_count 2\n\
                    # HELP nanoseconds C.\n# TYPE nanoseconds gauge\nnanoseconds 1\n";
        let expected = "# HELP a_bytes Called \\\"a\\\".\n# TYPE a_bytes counter\n# UNIT a_bytes bytes\n\
                        a_bytes_total{x=\",le=\\\"1\\\"\",y=\"2\"} 3\n\
                        # HELP b_seconds B.\n# TYPE b_seconds histogram\n# UNIT b_seconds seconds\n\
                        b_seconds_bucket{x=\"y\",le=\"0.5\"} 1\nb_seconds_bucket{x=\"y\",le=\"10.0\"} 2\n\
                        b_seconds_bucket{le=\"+Inf\"} 2\nb_seconds_sum 4\nb_seconds_count 2\n\
                        # HELP nanoseconds C.\n# TYPE nanoseconds gauge\nnanoseconds 1\n# EOF\n";
        assert_eq!(from_text(text), expected);
        assert_eq!(from_text(""), "# EOF\n");
    }

    #[test]
    fn an_exemplar_follows_the_sample_of_its_bucket_and_nothing_else() {
        let text = "# TYPE a_seconds histogram\na_seconds_bucket{le=\"1\"} 1\na_seconds_bucket{le=\"+Inf\"} 2\na_seconds_sum 4\n\
                    a_seconds_count 2\n# TYPE b_bucket gauge\nb 1\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n";
        let mut of_a = [None, Some("{trace_id=\"x\"} 3 1.5")].into_iter();
        let mut asked = Vec::new();
        let open = with_exemplars(text, |family| {
            asked.push(family.to_owned());
            if family == "a_seconds" { of_a.next()? } else { None }
        });
        let expected = "# TYPE a_seconds histogram\n# UNIT a_seconds seconds\na_seconds_bucket{le=\"1.0\"} 1\n\
                        a_seconds_bucket{le=\"+Inf\"} 2 # {trace_id=\"x\"} 3 1.5\na_seconds_sum 4\na_seconds_count 2\n\
                        # TYPE b_bucket gauge\nb 1\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\n# EOF\n";
        assert_eq!(open, expected);
        assert_eq!(asked, ["a_seconds", "a_seconds", "c"]);
    }
}
