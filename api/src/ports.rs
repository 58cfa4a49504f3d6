//! Ports and ranges of ports as people write them: in annotations, in variables of the proxy, and for the rules of interception. Whoever
//! reads them reads them here, so that a list means the same everywhere.

use std::ops::RangeInclusive;

/// What is neither a port nor a range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPorts {
    /// Not a number, or one that no port has.
    #[error("`{0}` is not a port from 1 to 65535")]
    NoPort(String),
    /// The last comes before the first.
    #[error("`{0}` runs backwards")]
    Backwards(String),
}

/// A port from 1 to 65535.
///
/// # Errors
/// It is none.
pub fn port(text: &str) -> Result<u16, InvalidPorts> {
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(InvalidPorts::NoPort(text.to_owned())),
    }
}

/// One item of a list: `4222`, or `6379-6380`, blanks around the dash or not.
///
/// # Errors
/// It is neither a port nor a range.
pub fn port_range(text: &str) -> Result<RangeInclusive<u16>, InvalidPorts> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first.trim())?, port(last.trim())?);
    if first > last { Err(InvalidPorts::Backwards(text.to_owned())) } else { Ok(first..=last) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_ranges_are_read() {
        for (text, range) in
            [("80", 80..=80), ("6379-6380", 6379..=6380), ("1 - 65535", 1..=65535), ("7-7", 7..=7)]
        {
            assert_eq!(port_range(text), Ok(range), "{text}");
        }
    }

    #[test]
    fn what_is_no_port_is_named() {
        for text in ["", "0", "65536", "-1", "http", "80-", "1-2-3", "0-80"] {
            assert!(matches!(port_range(text), Err(InvalidPorts::NoPort(_))), "{text}");
        }
        let backwards = port_range("9-3").unwrap_err();
        assert_eq!(backwards.to_string(), "`9-3` runs backwards");
        assert_eq!(port_range("80-x").unwrap_err().to_string(), "`x` is not a port from 1 to 65535");
    }
}
