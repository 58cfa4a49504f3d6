//! What both programs' log level understands.

use tracing_subscriber::filter::{LevelFilter, Targets};

/// A log level or directive that says nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no log level; expected off, error, warn, info, debug, trace, or directives such as \
     info,tulle_proxy::tls=debug"
)]
pub struct InvalidLogLevel(String);

/// What is logged by `directives`: a level, and levels of single targets, between commas: `info,tulle_proxy::tls=debug`.
/// Where no level stands alone, targets that are not named are silent.
///
/// # Errors
/// The directive that is none. A word by itself that is no level is one of these, not a target of which everything is
/// wanted: it is a level mistyped.
pub fn log_filter(directives: &str) -> Result<Targets, InvalidLogLevel> {
    let mut targets = Targets::new();
    for directive in directives.split(',').map(str::trim) {
        let invalid = || InvalidLogLevel(directive.to_owned());
        let (target, level) = match directive.split_once('=') {
            Some((target, level)) => (Some(target.trim()), level.trim()),
            None => (None, directive),
        };
        // An empty word would be read as the highest level.
        let level = Some(level).filter(|level| !level.is_empty()).ok_or_else(invalid)?;
        let level: LevelFilter = level.parse().map_err(|_| invalid())?;
        targets = match target {
            None => targets.with_default(level),
            Some(target) if is_path(target) => targets.with_target(target, level),
            Some(_) => return Err(invalid()),
        };
    }
    Ok(targets)
}

/// Whether `target` may be a module's path; spans and fields cannot be named.
fn is_path(target: &str) -> bool {
    !target.is_empty()
        && target.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b':' | b'-'))
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_and_levels_of_targets_are_understood() {
        let filter = log_filter("warn, tulle_proxy::tls=debug,h2=off").unwrap();
        for (target, level, expected) in [
            ("tulle_proxy", Level::WARN, true),
            ("tulle_proxy", Level::INFO, false),
            ("tulle_proxy::tls::leaf", Level::DEBUG, true),
            ("tulle_proxy::tls", Level::TRACE, false),
            ("h2", Level::ERROR, false),
        ] {
            assert_eq!(filter.would_enable(target, &level), expected, "{target} {level}");
        }
        assert!(!log_filter("off").unwrap().would_enable("tulle_proxy", &Level::ERROR));
        assert!(!log_filter("tulle_proxy=info").unwrap().would_enable("h2", &Level::ERROR));
    }

    #[test]
    fn what_is_mistyped_is_named() {
        for (directives, named) in [
            ("", ""),
            ("inffo", "inffo"),
            ("info,", ""),
            ("info,tulle_proxy", "tulle_proxy"),
            ("a=b=c", "a=b=c"),
            ("tulle_proxy=", "tulle_proxy="),
            ("=info", "=info"),
            ("info,[request{path=/x}]=debug", "[request{path=/x}]=debug"),
        ] {
            assert_eq!(log_filter(directives), Err(InvalidLogLevel(named.to_owned())), "{directives:?}");
        }
    }
}
