//! `tulle identity`: which certificate a running proxy has.
//!
//! Asks the proxy's loopback admin listener; no private key is ever there to be shown.

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

Exit status:
  0  the proxy has a certificate
  1  it has none (yet), or there is no proxy at that address
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct IdentityArgs {
    /// The proxy's admin listener.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// Asks and prints.
///
/// # Errors
/// No answer, or no certificate.
pub(crate) fn run(arguments: &IdentityArgs) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
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
        bail!("the proxy at {admin} answers {}: {}", answer.status(), text.trim());
    }
    serde_json::from_str(&text)
        .with_context(|| format!("{admin} is not a proxy's admin listener: /certs is not JSON"))
}

/// A line for each fact, in the proxy's order.
fn lines(certificates: &Value) -> String {
    let mut lines = Vec::new();
    flatten("", certificates, &mut lines);
    let width = lines.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect::<Vec<_>>().join("\n")
}

fn flatten(name: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    let below = |part: &str| if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") };
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(field, value)| flatten(&below(field), value, lines))
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| flatten(&below(&index.to_string()), value, lines));
        }
        Value::String(text) => lines.push((name.to_owned(), text.clone())),
        other => lines.push((name.to_owned(), other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_for_each_fact() {
        let certificates = json!({ "spiffe_id": "spiffe://td/ns/a/sa/b", "roots": [{ "serial": 7 }] });
        assert_eq!(lines(&certificates), "roots.0.serial  7\nspiffe_id       spiffe://td/ns/a/sa/b");
    }
}
