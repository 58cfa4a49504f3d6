//! Versions as programs write them: `v1.31.2-eks-1234`, `1.29+`, `5.15.0-91-generic`.

use std::fmt;

/// Major, minor and patch; what follows is not compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) patch: u32,
}

// === impl Version ===

impl Version {
    pub(super) const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, patch: 0 }
    }

    /// What is missing at the end is 0; a text without a minor version is none.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim().trim_start_matches('v').splitn(3, '.');
        let mut number = || {
            let part = numbers.next()?;
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
            part[..end].parse().ok()
        };
        Some(Self { major: number()?, minor: number()?, patch: number().unwrap_or(0) })
    }

    /// Whether the two are neighbours, or the same: those work together.
    pub(super) fn is_next_to(self, other: Self) -> bool {
        self.major == other.major && self.minor.abs_diff(other.minor) <= 1
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch == 0 { Ok(()) } else { write!(f, ".{}", self.patch) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_write_is_read() {
        for (text, expected) in [
            ("v1.31.2", (1, 31, 2)),
            ("v1.29.0-eks-036c24b", (1, 29, 0)),
            ("1.29+", (1, 29, 0)),
            ("5.15.0-91-generic", (5, 15, 0)),
            ("4.18.0-553.el8_10.x86_64", (4, 18, 0)),
            ("v1.6.0-rc.1", (1, 6, 0)),
        ] {
            let version = Version::parse(text).unwrap();
            assert_eq!((version.major, version.minor, version.patch), expected, "{text}");
        }
        for text in ["", "v1", "latest", "1.x", "sha256:12"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
        assert!(Version::new(0, 2).is_next_to(Version::new(0, 1)));
        assert!(!Version::new(0, 3).is_next_to(Version::new(0, 1)));
        assert!(!Version::new(1, 0).is_next_to(Version::new(0, 0)));
    }
}
