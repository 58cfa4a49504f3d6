//! `tulle authz`: which policies a running proxy has in force for what comes in, and what they would make of a request.
//!
//! Asks the proxy's loopback admin listener: the verdict is that of the very policies that judge there, and nothing is sent to the
//! application.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use ::http::{HeaderMap, StatusCode};
use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::http::Origin;
use crate::output::{self, Format};

const TIMEOUT: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  tulle authz                                the proxy on this machine, at its usual port
  tulle authz --admin 127.0.0.1:40001 -o json
  tulle authz check --port 8080 --identity shop/web --method GET --path /cart

Exit status:
  0  the proxy has policies to show
  1  it has none (yet), or there is no proxy at that address
  2  wrong arguments";

const CHECK_EXAMPLES: &str = "\
Examples:
  tulle authz check --port 8080 --identity shop/web --path /cart
  tulle authz check --port 8080 --method POST --path /orders --header x-track:beta
  tulle authz check --port 8080 --path / --claims '{\"iss\": \"https://example.com\", \"sub\": \"ann\"}'
  tulle authz check --port 5432 --identity shop/web      bytes that are no HTTP

Exit status:
  0  it would be let in
  1  it would be refused, or there is no proxy at that address
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct AuthzArgs {
    #[command(subcommand)]
    verb: Option<AuthzVerb>,
    #[command(flatten)]
    of: Of,
}

#[derive(Debug, clap::Subcommand)]
enum AuthzVerb {
    /// Say whether a request would be let in, and by which rule, without sending it.
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct Of {
    /// The proxy's admin listener.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000")]
    admin: SocketAddr,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

#[derive(Debug, clap::Args)]
#[command(after_help = CHECK_EXAMPLES)]
struct CheckArgs {
    /// The port of the workload that the client dials.
    #[arg(long)]
    port: u16,
    /// The client's identity: a SPIFFE ID, or NAMESPACE/SERVICE_ACCOUNT; without it the client comes in plain text.
    #[arg(long, value_name = "IDENTITY")]
    identity: Option<String>,
    /// The client's address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    client: IpAddr,
    /// The request's method; GET where only a path is said. Without method and path: bytes that are no HTTP.
    #[arg(long)]
    method: Option<String>,
    /// The request's path, as a client sends it.
    #[arg(long)]
    path: Option<String>,
    /// The request's host.
    #[arg(long)]
    host: Option<String>,
    /// A header of the request, as NAME:VALUE.
    #[arg(long, value_name = "HEADER")]
    header: Vec<String>,
    /// The claims of a verified token, as a JSON object with an `iss`.
    #[arg(long, value_name = "JSON")]
    claims: Option<String>,
    #[command(flatten)]
    of: Of,
}

/// Asks and prints.
///
/// # Errors
/// No answer, or the question is none.
pub(crate) fn run(arguments: &AuthzArgs) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match &arguments.verb {
        None => {
            let Of { admin, output } = &arguments.of;
            let shown = runtime.block_on(ask(*admin, "/authz"))?;
            match output {
                Format::Json => output::print_json(&shown)?,
                Format::Table => output::print(&policies(&shown))?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Some(AuthzVerb::Check(check)) => {
            let answer = runtime.block_on(ask(check.of.admin, &check.question()))?;
            match check.of.output {
                Format::Json => output::print_json(&answer)?,
                Format::Table => output::print(&verdict(&answer))?,
            }
            let is_denied = answer["verdict"] == "deny";
            Ok(if is_denied { ExitCode::FAILURE } else { ExitCode::SUCCESS })
        }
    }
}

async fn ask(admin: SocketAddr, path: &str) -> Result<Value> {
    let answer = Origin::new(admin, None)?.get(path, &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| format!("no proxy's admin listener at {admin} (see --admin)"))?;
    let text = String::from_utf8_lossy(answer.body());
    match answer.status() {
        StatusCode::OK => {}
        StatusCode::BAD_REQUEST => bail!("{}", text.trim()),
        status => bail!(
            "{admin} answers /authz with {status}; is it the admin listener of a proxy of this version?"
        ),
    }
    let not_json = || format!("{admin} is not a proxy's admin listener: its /authz is not JSON");
    let value: Value = serde_json::from_str(&text).with_context(not_json)?;
    if value.is_null() {
        bail!("the proxy at {admin} has no policy (yet), and lets nobody in: is its control plane there?");
    }
    Ok(value)
}

// === impl CheckArgs ===

impl CheckArgs {
    /// The path of the admin listener that says it.
    fn question(&self) -> String {
        let mut path = format!("/authz?port={}&client={}", self.port, encoded(&self.client.to_string()));
        let one = [
            ("identity", &self.identity),
            ("method", &self.method),
            ("path", &self.path),
            ("host", &self.host),
            ("claims", &self.claims),
        ];
        let one = one.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?)));
        for (name, value) in one.chain(self.header.iter().map(|header| ("header", header))) {
            let _ = write!(path, "&{name}={}", encoded(value));
        }
        path
    }
}

/// Percent-encoded, but for what needs not be (RFC 3986, section 2.3).
fn encoded(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            byte => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
        out
    })
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What the proxy would say.
fn verdict(answer: &Value) -> String {
    let mut said = match (text(&answer["verdict"]), text(&answer["rule"])) {
        ("deny", "") => format!("denied: {}", text(&answer["reason"])),
        ("deny", rule) => format!("denied by {rule}: {}", text(&answer["reason"])),
        ("audit", rule) => format!("allowed, and audited by {rule}"),
        (_, rule) => format!("allowed by {rule}"),
    };
    if let Some(detail) = answer["detail"].as_str() {
        let _ = write!(said, " ({detail})");
    }
    if let Some(rule) = answer["wouldDeny"].as_str() {
        let _ = write!(said, "\nin dry run, {rule} would deny it");
    }
    said
}

/// The policies, their rules, and how often each has decided.
fn policies(shown: &Value) -> String {
    let mut lines = vec![format!("{}: mutual TLS {}", text(&shown["workload"]), text(&shown["mtls"]))];
    for (port, mode) in shown["portsMtls"].as_object().into_iter().flatten() {
        lines.push(format!("  port {port}: mutual TLS {}", text(mode)));
    }
    for policy in list(&shown["policies"]) {
        lines.push(headed(text(&policy["action"]), policy));
        let rules = list(&policy["rules"]);
        if rules.is_empty() {
            lines.push("  no rule: it describes nothing".to_owned());
        }
        for rule in rules {
            lines.push(format!("  {}{}", text(&rule["name"]), counted(shown, &rule["name"])));
            for part in ["from", "to", "when"] {
                lines.extend(list(&rule[part]).iter().map(|one| format!("    {part} {}", fields(one))));
            }
        }
    }
    for policy in list(&shown["tokens"]) {
        lines.push(headed("TOKENS", policy));
        let issuers: Vec<_> = list(&policy["issuers"]).iter().map(text).collect();
        let whose = if issuers.is_empty() { "nobody".to_owned() } else { issuers.join(", ") };
        let required = if policy["required"] == true { "needed" } else { "not needed" };
        lines.push(format!("  of {whose}; a token is {required}"));
    }
    for policy in list(&shown["authorizers"]) {
        lines.push(headed("AUTHORIZER", policy));
        let otherwise = if policy["failureAllows"] == true { "allowed" } else { "denied" };
        let asked = match policy["invalid"].as_str() {
            Some(why) => format!("nobody can be asked ({why})"),
            None => format!("{} is asked", text(&policy["service"])),
        };
        lines.push(format!("  {asked}; without an answer it is {otherwise}"));
    }
    let networks: Vec<_> = list(&shown["default"]["networks"]).iter().map(text).collect();
    let whom = if networks.is_empty() { "everybody".to_owned() } else { networks.join(", ") };
    let audited = if shown["default"]["audited"] == true { ", audited" } else { "" };
    lines.push(format!(
        "where no policy that allows speaks: {whom}{audited}{}",
        counted(shown, &Value::from("default"))
    ));
    let unnamed = counted(shown, &Value::from(""));
    if !unnamed.is_empty() {
        lines.push(format!("by no rule{unnamed}"));
    }
    lines.join("\n")
}

/// What a policy is, and of what it speaks.
fn headed(kind: &str, policy: &Value) -> String {
    let mut line = format!("{kind} {}", text(&policy["name"]));
    if policy["dryRun"] == true {
        line.push_str(" (dry run)");
    }
    for (ports, word) in [("ports", "port"), ("notPorts", "not port")] {
        let ports: Vec<_> = list(&policy[ports]).iter().map(Value::to_string).collect();
        if !ports.is_empty() {
            let _ = write!(line, ", {word} {}", ports.join(", "));
        }
    }
    if !list(&policy["routes"]).is_empty() {
        line.push_str(", for requests of its routes");
    }
    line
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// How often a rule has decided, and what.
fn counted(shown: &Value, rule: &Value) -> String {
    let of_rule = list(&shown["verdicts"]).iter().filter(|one| one["rule"] == *rule);
    let told: Vec<_> = of_rule
        .map(|one| match text(&one["reason"]) {
            "" => format!("{} {}", text(&one["verdict"]), one["count"]),
            reason => format!("{} {} ({reason})", text(&one["verdict"]), one["count"]),
        })
        .collect();
    if told.is_empty() { String::new() } else { format!(": {}", told.join(", ")) }
}

/// `paths: /a, /b; methods: GET`
fn fields(value: &Value) -> String {
    let fields = value.as_object().into_iter().flatten().map(|(name, values)| {
        let values: Vec<_> = list(values).iter().map(text).collect();
        format!("{name}: {}", values.join(if name == "claim" { "." } else { ", " }))
    });
    let fields: Vec<_> = fields.collect();
    if fields.is_empty() { "anybody".to_owned() } else { fields.join("; ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn policies_are_shown_with_what_they_have_said() {
        let shown = json!({
            "workload": "shop/orders",
            "mtls": "strict",
            "portsMtls": { "80": "permissive" },
            "policies": [
                {
                    "name": "shop/p", "action": "ALLOW", "dryRun": false, "ports": [80, 81], "routes": [],
                    "rules": [{
                        "name": "shop/p/cart", "from": [{ "namespaces": ["shop"] }],
                        "to": [{ "methods": ["GET", "HEAD"], "paths": ["/cart/*"] }],
                        "when": [{ "claim": ["realm", "role"], "values": ["a"] }],
                    }],
                },
                { "name": "shop/t", "action": "DENY", "dryRun": true, "ports": [], "routes": [{}], "rules": [] },
            ],
            "tokens": [{
                "name": "shop/k", "dryRun": true, "ports": [80], "routes": [], "required": false, "issuers": ["https://a"],
            }],
            "authorizers": [
                { "name": "shop/o", "ports": [], "notPorts": [9191], "service": "shop/opa:9191", "invalid": null },
                { "name": "shop/x", "ports": [], "service": "/:0", "failureAllows": true, "invalid": "no Service" },
            ],
            "default": { "networks": [], "audited": true },
            "verdicts": [
                { "verdict": "allow", "rule": "shop/p/cart", "reason": "", "count": 3 },
                { "verdict": "deny", "rule": "", "reason": "policy_denied", "count": 2 },
            ],
        });
        let expected = "\
shop/orders: mutual TLS strict
  port 80: mutual TLS permissive
ALLOW shop/p, port 80, 81
  shop/p/cart: allow 3
    from namespaces: shop
    to methods: GET, HEAD; paths: /cart/*
    when claim: realm.role; values: a
DENY shop/t (dry run), for requests of its routes
  no rule: it describes nothing
TOKENS shop/k (dry run), port 80
  of https://a; a token is not needed
AUTHORIZER shop/o, not port 9191
  shop/opa:9191 is asked; without an answer it is denied
AUTHORIZER shop/x
  nobody can be asked (no Service); without an answer it is allowed
where no policy that allows speaks: everybody, audited
by no rule: deny 2 (policy_denied)";
        assert_eq!(policies(&shown), expected);
    }

    #[test]
    fn a_verdict_is_a_line() {
        for (answer, expected) in [
            (json!({ "verdict": "allow", "rule": "a/b/c", "wouldDeny": null }), "allowed by a/b/c"),
            (json!({ "verdict": "audit", "rule": "a/b/c" }), "allowed, and audited by a/b/c"),
            (json!({ "verdict": "deny", "rule": null, "reason": "policy_denied" }), "denied: policy_denied"),
            (
                json!({ "verdict": "deny", "rule": "r", "reason": "policy_denied" }),
                "denied by r: policy_denied",
            ),
            (
                json!({ "verdict": "deny", "reason": "malformed_request", "detail": "why" }),
                "denied: malformed_request (why)",
            ),
            (
                json!({ "verdict": "allow", "rule": "r", "wouldDeny": "d" }),
                "allowed by r\nin dry run, d would deny it",
            ),
        ] {
            assert_eq!(verdict(&answer), expected);
        }
    }

    #[test]
    fn a_question_says_all_that_is_known() {
        let check = CheckArgs {
            port: 80,
            identity: Some("shop/web".to_owned()),
            client: IpAddr::from([10, 0, 0, 1]),
            method: None,
            path: Some("/a%2F?b=c&d".to_owned()),
            host: None,
            header: vec!["x-a: 1".to_owned(), "x-b:2".to_owned()],
            claims: None,
            of: Of { admin: SocketAddr::from(([127, 0, 0, 1], 15_000)), output: Format::Table },
        };
        let expected = "/authz?port=80&client=10.0.0.1&identity=shop%2Fweb&path=%2Fa%252F%3Fb%3Dc%26d&header=x-a%3A%201\
                        &header=x-b%3A2";
        assert_eq!(check.question(), expected);
    }
}
