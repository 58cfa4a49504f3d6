//! `tulle explain CODE`: what a reason in an answer, a metric or a log means, and what to do about it.
//!
//! All of it is the proxy's own table ([`Reason`]), which is also the page `docs/reference/errors.md`.

use anyhow::Result;
use serde::Serialize;
use tulle_proxy::telemetry::Reason;

use crate::output::{self, Format};

#[derive(Debug, Serialize)]
struct Explained {
    reason: &'static str,
    message: &'static str,
    cause: &'static str,
    remedy: &'static str,
    /// None: no answer is made.
    status: Option<u16>,
    grpc_status: u8,
    grpc_status_name: &'static str,
}

/// The reason of that code.
///
/// # Errors
/// There is none; which may have been meant.
pub(super) fn parse(code: &str) -> Result<Reason, String> {
    let codes = || Reason::ALL.iter().map(|reason| reason.code());
    if let Some(reason) = Reason::from_code(code) {
        return Ok(reason);
    }
    let mut near: Vec<_> = tulle_api::nearest(code, codes()).into_iter().collect();
    if code.len() >= 3 {
        let word = code.to_ascii_lowercase().replace('-', "_");
        near.extend(codes().filter(|known| known.contains(&word)));
    }
    near.dedup();
    Err(match &*near {
        [] => "no such reason; docs/reference/errors.md lists them".to_owned(),
        near => format!("no such reason; did you mean {}?", near.join(" or ")),
    })
}

/// Prints what there is to say of it.
///
/// # Errors
/// Those of standard output.
pub(super) fn print(reason: Reason, format: Format) -> Result<()> {
    let explained = Explained {
        reason: reason.code(),
        message: reason.message(),
        cause: reason.cause(),
        remedy: reason.remedy(),
        status: reason.status(),
        grpc_status: reason.grpc_status(),
        grpc_status_name: reason.grpc_name(),
    };
    match format {
        Format::Json => output::print_json(&explained),
        Format::Table => output::print(&text(&explained)),
    }
}

fn text(explained: &Explained) -> String {
    let Explained { reason, message, cause, remedy, status, grpc_status, grpc_status_name } = explained;
    let status = status
        .map_or_else(|| "none; the connection is refused or closed".to_owned(), |status| status.to_string());
    format!(
        "{reason}: {message}\n\nHTTP status: {status}\ngRPC status: {grpc_status} {grpc_status_name}\n\nCause: {cause}\n\nWhat to do: {remedy}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_explained() {
        for reason in Reason::ALL {
            assert_eq!(parse(reason.code()), Ok(*reason));
        }
    }

    #[test]
    fn near_codes_are_suggested() {
        for (code, expected) in [
            ("conect_failed", "did you mean connect_failed?"),
            ("route-not-found", "did you mean route_not_found?"),
            ("timeout", "request_timeout or backend_timeout"),
            ("Denied", "policy_denied or egress_denied"),
            ("nonsense", "docs/reference/errors.md"),
            ("", "docs/reference/errors.md"),
        ] {
            let error = parse(code).unwrap_err();
            assert!(error.contains(expected), "{code}: {error}");
        }
    }
}
