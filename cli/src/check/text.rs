//! Checks for people: a line of each, and below what is not well what to do.

use super::count;
use super::judge::{Check, Level};
use super::seen::Stage;

/// All of it; the last line says what it came to.
pub(super) fn table(checks: &[Check], stage: Stage) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for check in checks {
        lines.push(format!("{:<7}  {:<width$}  {}", word(check.status), check.name, check.message));
        if check.status == Level::Ok {
            continue;
        }
        let below = check.details.iter().cloned();
        let hint = check.hint.iter().map(|hint| format!("→ {hint}"));
        let link = std::iter::once(format!("→ {}", check.link));
        lines.extend(below.chain(hint).chain(link).map(|text| format!("{:9}{text}", "")));
    }
    lines.push(summary(checks, stage));
    lines.join("\n")
}

fn word(level: Level) -> &'static str {
    match level {
        Level::Ok => "ok",
        Level::Warning => "warning",
        Level::Error => "error",
    }
}

fn summary(checks: &[Check], stage: Stage) -> String {
    let number = |level| checks.iter().filter(|check| check.status == level).count();
    let (errors, warnings) = (number(Level::Error), number(Level::Warning));
    match (errors, warnings) {
        (0, 0) if stage == Stage::Before => "ok: the mesh can be installed".to_owned(),
        (0, 0) => format!("ok: {}", count(checks.len(), "check")),
        (0, _) => format!("ok: no errors, {}", count(warnings, "warning")),
        _ => format!("{}, {}", count(errors, "error"), count(warnings, "warning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &'static str, status: Level, details: &[&str]) -> Check {
        let hint = (status != Level::Ok).then(|| "do it".to_owned());
        Check {
            name,
            meaning: "",
            status,
            message: "so it is".to_owned(),
            details: details.iter().map(|&text| text.to_owned()).collect(),
            hint,
            link: format!("docs/reference/checks.md#{name}"),
        }
    }

    #[test]
    fn what_is_well_has_a_line_and_what_is_not_says_what_to_do() {
        let checks = [check("a", Level::Ok, &[]), check("certificates", Level::Warning, &["one"])];
        let expected = "ok       a             so it is
warning  certificates  so it is
         one
         → do it
         → docs/reference/checks.md#certificates
ok: no errors, 1 warning";
        assert_eq!(table(&checks, Stage::After), expected);
        assert!(table(&checks[..1], Stage::Before).ends_with("\nok: the mesh can be installed"));
        assert!(table(&checks[..1], Stage::After).ends_with("\nok: 1 check"));
        assert!(table(&[check("a", Level::Error, &[])], Stage::After).ends_with("\n1 error, 0 warnings"));
    }
}
