//! Durations as people write them: a whole number and a unit.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// `300ms`, `10s`, `5m`, `24h`; more than zero, at most ten years.
pub(crate) fn parse(text: &str) -> Result<Duration> {
    const FORM: &str = "expected a number with a unit, such as `300ms`, `10s`, `5m` or `24h`";
    let digits = text.find(|c: char| !c.is_ascii_digit()).context(FORM)?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().context(FORM)?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => bail!(FORM),
    };
    match number.checked_mul(milliseconds) {
        Some(0) => bail!("must be more than zero"),
        Some(total) if total <= 3_650 * 86_400_000 => Ok(Duration::from_millis(total)),
        _ => bail!("must be at most ten years"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_unit() {
        let cases =
            [("300ms", 300), ("10s", 10_000), ("5m", 300_000), ("24h", 86_400_000), ("1d", 86_400_000)];
        for (text, milliseconds) in cases {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(milliseconds), "{text}");
        }
        for text in
            ["", "10", "s", "-1s", "1.5s", "0s", "10 s", "10x", "99999999999999999999s", "9999999999999999h"]
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
