//! `tulle identity`: which certificate a running proxy has; and the mesh's root, rotated (`rotate`) or repaired (`repair`).
//!
//! Asks the proxy's loopback admin listener; no private key is ever there to be shown.

mod repair;
mod rotate;

use std::net::SocketAddr;
use std::time::Duration;

use ::http::HeaderMap;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::http::Origin;
use crate::output::{self, Format};

const TIMEOUT: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  tulle identity                             the proxy on this machine, at its usual port
  tulle identity --admin 127.0.0.1:40001 -o json
  tulle identity rotate-root --dry-run       what a rotation of the mesh's root would take
  tulle identity repair --state-dir state    a new root in the place of one that has expired

Exit status:
  0  the proxy has a certificate
  1  it has none (yet), or there is no proxy at that address
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct IdentityArgs {
    #[command(subcommand)]
    command: Option<IdentityCommand>,
    #[command(flatten)]
    show: ShowArgs,
}

#[derive(Debug, clap::Subcommand)]
enum IdentityCommand {
    /// Let a new root take the place of the mesh's present one, with no connection refused meanwhile.
    RotateRoot(rotate::RotateArgs),
    /// Put a new root in the place of one that has expired, at once: workloads have to join again.
    Repair(repair::RepairArgs),
}

#[derive(Debug, clap::Args)]
struct ShowArgs {
    /// The proxy's admin listener.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// The `identity` verb.
///
/// # Errors
/// No answer, or no certificate; of the subcommands their own.
pub(crate) fn run(arguments: &IdentityArgs) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match &arguments.command {
        None => show(&runtime, &arguments.show),
        Some(IdentityCommand::RotateRoot(arguments)) => runtime.block_on(rotate::run(arguments)),
        Some(IdentityCommand::Repair(arguments)) => runtime.block_on(repair::run(arguments)),
    }
}

/// Asks and prints.
fn show(runtime: &tokio::runtime::Runtime, arguments: &ShowArgs) -> Result<()> {
    let certificates = runtime.block_on(ask(arguments.admin))?;
    match arguments.output {
        Format::Json => output::print_json(&certificates),
        Format::Table => output::print(&lines(&certificates)),
    }
}

async fn ask(admin: SocketAddr) -> Result<Value> {
    let answer = Origin::new(admin, None)?.get("/certs", &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| format!("no proxy's admin listener at {admin} (see --admin)"))?;
    let text = String::from_utf8_lossy(answer.body());
    if !answer.status().is_success() {
        bail!("{admin} answers /certs with {}; is it a proxy's admin listener?", answer.status());
    }
    let not_json = || format!("{admin} is not a proxy's admin listener: its /certs is not JSON");
    let certificates: Value = serde_json::from_str(&text).with_context(not_json)?;
    if certificates.is_null() {
        bail!(
            "the proxy at {admin} has no certificate (yet); its log says why: is its control plane there, its join token good, or its other source there?"
        );
    }
    Ok(certificates)
}

/// A line for each fact; the object's shape is `tulle_proxy::admin::certs`.
fn lines(certificates: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
    let leaf = &certificates["chain"][0];
    let mut facts = vec![
        ("identity", text(&certificates["identity"])),
        ("source", text(&certificates["source"])),
        ("issuer", text(&leaf["issuer"])),
        ("serial", text(&leaf["serial"])),
        ("valid from", text(&certificates["not_before"])),
        (
            "valid until",
            format!("{} ({})", text(&certificates["not_after"]), left(&certificates["expires_in_seconds"])),
        ),
        ("renewal", renewal(&certificates["renews_at"], &certificates["renews_in_seconds"])),
        ("key", text(&leaf["pin"])),
    ];
    for bundle in certificates["trust_bundles"].as_array().into_iter().flatten() {
        for root in bundle["roots"].as_array().into_iter().flatten() {
            let (domain, pin, until) =
                (text(&bundle["trust_domain"]), text(&root["pin"]), text(&root["not_after"]));
            facts.push(("trusts", format!("{domain} by {pin}, valid until {until}")));
        }
    }
    let lines = facts.iter().map(|(name, value)| format!("{name:<11}  {value}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// When the proxy asks for the next certificate.
fn renewal(at: &Value, seconds: &Value) -> String {
    let Some(at) = at.as_str() else { return "when its source has a new one".to_owned() };
    match seconds.as_i64() {
        Some(seconds @ 1..) => format!("{at} (in {})", duration(seconds.unsigned_abs())),
        _ => format!("{at} (now)"),
    }
}

/// How long the certificate still lasts.
fn left(seconds: &Value) -> String {
    let Some(seconds) = seconds.as_i64() else { return "unknown".to_owned() };
    let long = duration(seconds.unsigned_abs());
    if seconds < 0 { format!("expired {long} ago") } else { format!("{long} left") }
}

pub(super) fn duration(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    match seconds {
        ..60 => format!("{seconds} s"),
        60..3600 => format!("{minutes} min"),
        _ => format!("{hours} h {minutes} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_for_each_fact() {
        let root = json!({ "pin": "sha256:00", "not_after": "2036-11-19T00:00:00.000Z" });
        let certificates = json!({
            "identity": "spiffe://td/ns/a/sa/b",
            "source": "the control plane at cp:15012",
            "not_before": "2026-11-21T00:00:00.000Z",
            "not_after": "2026-11-22T00:00:00.000Z",
            "expires_in_seconds": 86_100,
            "renews_at": "2026-11-21T15:30:00.000Z",
            "renews_in_seconds": 55_500,
            "chain": [{ "issuer": "CN=td root", "serial": "01:02", "pin": "sha256:11" }],
            "trust_bundles": [{ "trust_domain": "td", "roots": [root] }],
        });
        let expected = "\
identity     spiffe://td/ns/a/sa/b
source       the control plane at cp:15012
issuer       CN=td root
serial       01:02
valid from   2026-11-21T00:00:00.000Z
valid until  2026-11-22T00:00:00.000Z (23 h 55 min left)
renewal      2026-11-21T15:30:00.000Z (in 15 h 25 min)
key          sha256:11
trusts       td by sha256:00, valid until 2036-11-19T00:00:00.000Z";
        assert_eq!(lines(&certificates), expected);
    }

    #[test]
    fn a_renewal_is_told_where_the_proxy_does_it() {
        assert_eq!(renewal(&json!("then"), &json!(3_599)), "then (in 59 min)");
        assert_eq!(renewal(&json!("then"), &json!(-3)), "then (now)");
        assert_eq!(renewal(&Value::Null, &Value::Null), "when its source has a new one");
    }

    #[test]
    fn what_is_left_is_told_in_the_largest_unit_that_matters() {
        let cases = [
            (59, "59 s left"),
            (60, "1 min left"),
            (3_660, "1 h 1 min left"),
            (-7_200, "expired 2 h 0 min ago"),
            (-7, "expired 7 s ago"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(left(&json!(seconds)), expected);
        }
        assert_eq!(left(&Value::Null), "unknown");
    }
}
