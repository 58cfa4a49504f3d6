//! Amounts of CPU and memory, as Kubernetes reads them (`resource.Quantity`): `1`, `1000m` and `1e0` are the same, and so are `1Gi` and `1024Mi`.
//!
//! Exact: whole numbers and powers of ten, nothing that rounds but what Kubernetes itself rounds up, parts of a billionth.

use serde_json::Value;

/// `mantissa` × 10^`exponent`; the mantissa ends in no zero, and the exponent of nothing is 0, so that equal amounts are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quantity {
    mantissa: u128,
    exponent: i32,
}

/// Nothing is finer than 10 to the power of this.
const FINEST: i32 = -9;
/// More digits are no amount of anything; so many times 2^60 are below 2^128.
const DIGITS: usize = 18;
/// As far as an exponent may go: Kubernetes' largest amount is below 10^19.
const EXPONENTS: i32 = 30;

/// By what a suffix multiplies: powers of two, and of ten.
const SUFFIXES: [(&str, u32, i32); 16] = [
    ("Ki", 10, 0),
    ("Mi", 20, 0),
    ("Gi", 30, 0),
    ("Ti", 40, 0),
    ("Pi", 50, 0),
    ("Ei", 60, 0),
    ("n", 0, -9),
    ("u", 0, -6),
    ("m", 0, -3),
    ("", 0, 0),
    ("k", 0, 3),
    ("M", 0, 6),
    ("G", 0, 9),
    ("T", 0, 12),
    ("P", 0, 15),
    ("E", 0, 18),
];

// === impl Quantity ===

impl Quantity {
    /// `None`: it is none, or less than nothing.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('+').unwrap_or(text);
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, suffix) = text.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return None;
        }
        let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
        if whole.len() + fraction.len() > DIGITS {
            return None;
        }
        let digits = format!("0{whole}{fraction}");
        let (twos, tens) = scale(suffix)?;
        let mantissa = digits.parse::<u128>().ok()? << twos;
        Some(Self::normal(mantissa, tens - i32::try_from(fraction.len()).ok()?))
    }

    /// Of a Pod, where a number may stand without quotes.
    pub(super) fn of(value: &Value) -> Option<Self> {
        match value {
            Value::String(text) => Self::parse(text),
            Value::Number(number) => Self::parse(&number.to_string()),
            _ => None,
        }
    }

    pub(super) fn is_positive(&self) -> bool {
        self.mantissa > 0
    }

    pub(super) fn is_more_than(&self, other: &Self) -> bool {
        let low = self.exponent.min(other.exponent);
        // One of the two is not changed by this; what is beyond all numbers is the larger.
        let raised = |one: &Self| {
            let power = 10_u128.checked_pow((one.exponent - low).unsigned_abs())?;
            one.mantissa.checked_mul(power)
        };
        match (raised(self), raised(other)) {
            (Some(one), Some(other)) => one > other,
            (one, _) => one.is_none(),
        }
    }

    fn normal(mut mantissa: u128, mut exponent: i32) -> Self {
        while exponent < FINEST {
            // Once for each: rounded up a few times is rounded up once.
            mantissa = mantissa.div_ceil(10);
            exponent += 1;
        }
        while mantissa > 0 && mantissa.is_multiple_of(10) {
            mantissa /= 10;
            exponent += 1;
        }
        Self { mantissa, exponent: if mantissa == 0 { 0 } else { exponent } }
    }
}

/// Whether two amounts are the same; what cannot be read is the same as its own text.
pub fn same(one: &Value, other: &Value) -> bool {
    match (Quantity::of(one), Quantity::of(other)) {
        (Some(one), Some(other)) => one == other,
        _ => one == other,
    }
}

fn scale(suffix: &str) -> Option<(u32, i32)> {
    if let Some((_, twos, tens)) = SUFFIXES.iter().find(|(known, ..)| *known == suffix) {
        return Some((*twos, *tens));
    }
    // `1e3`, `1E-3`; `E` alone is a suffix.
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?;
    (-EXPONENTS..=EXPONENTS).contains(&exponent).then_some((0, exponent))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn equal_amounts_are_equal_however_they_are_written() {
        for (one, other) in [
            ("1", "1000m"),
            ("1", "1.000"),
            ("1", "+1"),
            ("0.5", "500m"),
            (".5", "500m"),
            ("1.", "1e0"),
            ("1Gi", "1024Mi"),
            ("1.5Gi", "1536Mi"),
            ("1Ei", "1024Pi"),
            ("1Pi", "1125899906842624"),
            ("2k", "2e3"),
            ("2E", "2E18"),
            ("1M", "1000000"),
            ("5u", "5000n"),
            ("0", "0m"),
            ("0Gi", "0.000"),
            // A part of a billionth is one.
            ("1e-12", "1n"),
            ("1.0000000001", "1.000000001"),
        ] {
            let read = Quantity::parse(one);
            assert!(read.is_some() && read == Quantity::parse(other), "{one} {other}");
        }
    }

    #[test]
    fn amounts_that_differ_are_told_apart() {
        for (one, other) in [
            ("1", "1001m"),
            ("1Gi", "1G"),
            ("1Mi", "1M"),
            ("1m", "1M"),
            ("1e3", "1e4"),
            // The same as floating-point numbers.
            ("9007199254740993", "9007199254740992"),
        ] {
            assert_ne!(Quantity::parse(one), Quantity::parse(other), "{one} {other}");
        }
    }

    #[test]
    fn amounts_are_compared() {
        let more = |one: &str, other: &str| {
            Quantity::parse(one).unwrap().is_more_than(&Quantity::parse(other).unwrap())
        };
        for (large, small) in [
            ("1", "999m"),
            ("1Mi", "1M"),
            ("20Mi", "64m"),
            ("1", "0"),
            ("1e30", "1n"),
            ("999999999999999999Ei", "1n"),
        ] {
            assert!(more(large, small) && !more(small, large), "{large} {small}");
        }
        assert!(!more("1", "1000m") && !more("0", "0m"));
    }

    #[test]
    fn what_is_no_amount_is_none() {
        for text in
            ["", "m", ".", "-1", "1.2.3", "1 Gi", "1KI", "1Kib", "1e", "1e3.5", "1e99", "0x1", "1_0", "inf"]
        {
            assert_eq!(Quantity::parse(text), None, "{text}");
        }
        assert_eq!(Quantity::parse("1234567890123456789"), None, "more digits than anything has");
        assert!(Quantity::parse("1n").is_some_and(|one| one.is_positive()));
        assert!(Quantity::parse("0").is_some_and(|none| !none.is_positive()));
    }

    #[test]
    fn numbers_and_texts_are_compared_as_amounts() {
        assert!(same(&json!(1), &json!("1000m")) && same(&json!(0.5), &json!("500m")));
        assert!(!same(&json!(1), &json!("1Ki")));
        assert!(same(&json!("odd"), &json!("odd")) && !same(&json!("odd"), &json!("1")));
    }
}
