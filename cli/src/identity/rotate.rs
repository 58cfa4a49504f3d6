//! `tulle identity rotate-root`: asks the control plane for a rotation of the mesh's root, and says how far it is.
//!
//! The control plane takes the steps, whether anybody looks on or not. Where it keeps its keys in a state folder, who asks must be able to read that: the
//! request carries a token that the key of join tokens in it has signed, good for a minute.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tulle_certs::{TrustDomain, control_plane_id};
use tulle_control_plane::ca;
use tulle_control_plane::ca::rotation::{Lacks, Status, Waited};

use super::duration;
use crate::http::Origin;
use crate::output::{self, Format};

const TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);
/// A control plane that starts anew comes back within this; it goes on where it was.
const PATIENCE: Duration = Duration::from_secs(60);

const EXAMPLES: &str = "\
Examples:
  tulle identity rotate-root --dry-run              what would happen, and who would be waited for
  tulle identity rotate-root --state-dir state      where the control plane has a state folder
  kubectl -n tulle-system port-forward deployment/tulle-control-plane 15014 &
  tulle identity rotate-root                        in a cluster, at any of its replicas
  tulle identity rotate-root --wait -o json         until the old root is retired
  tulle identity rotate-root --abort                while nothing is issued under the new root yet

The new root is told beside the present one; once every connected proxy of every replica has it,
certificates are issued under it; once the last one under the old root has run out, the old
root is retired. The control plane does all of that by itself: this command may be left, and
asked again. docs/identity.md says what becomes of join tokens, and of proxies that are away.

Exit status:
  0  the rotation goes its way (with --wait: it is complete), or was given up as asked
  1  the control plane cannot be asked, or says that it cannot be done; standard error says why
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct RotateArgs {
    /// Say what would be done and who would be waited for, and do nothing.
    #[arg(long)]
    dry_run: bool,
    /// Give up a rotation that is under way: possible until certificates are issued under the new root.
    #[arg(long, conflicts_with = "dry_run")]
    abort: bool,
    /// Wait until the old root is retired, and not only until what it has issued runs out.
    #[arg(long, conflicts_with_all = ["dry_run", "abort"])]
    wait: bool,
    /// The control plane's state folder, where it has one: who can read it may change the root.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    control_plane: SocketAddr,
    /// How to print it; JSON is printed once, at the end.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// Asks, and follows.
///
/// # Errors
/// No answer, or a refusal.
pub(super) async fn run(arguments: &RotateArgs) -> Result<()> {
    let origin = Origin::new(arguments.control_plane, None)?;
    let status = ask(&origin).await?;
    if arguments.dry_run {
        return match arguments.output {
            Format::Json => output::print_json(&status),
            Format::Table => output::print(&plan(&status)),
        };
    }
    if let Some(why) = &status.not_rotated_here {
        bail!("{why}");
    }
    let idle = status.rotation.phase == "idle" && status.rotation.wanted.is_none();
    let path = match (arguments.abort, idle) {
        (true, _) => "/identity/abort-rotation",
        (false, true) => "/identity/rotate-root",
        (false, false) => {
            eprintln!("tulle: a rotation is under way already");
            return follow(arguments, &origin, &status).await;
        }
    };
    want(arguments, &origin, path, &status.trust_domain).await?;
    follow(arguments, &origin, &status).await
}

/// How it is.
async fn ask(origin: &Origin) -> Result<Status> {
    let address = origin.address();
    let answer = origin.get("/identity", &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| {
        format!("no control plane at {address} (see --control-plane; in a cluster: `kubectl -n tulle-system port-forward deployment/tulle-control-plane 15014`)")
    })?;
    if answer.status() != StatusCode::OK {
        bail!("{address} answers /identity with {}: {}", answer.status(), said(answer.body()));
    }
    serde_json::from_slice(answer.body())
        .with_context(|| format!("what {address} answers to /identity is not a control plane's"))
}

/// Asks for something to be done.
async fn want(arguments: &RotateArgs, origin: &Origin, path: &str, domain: &str) -> Result<()> {
    let mut headers = HeaderMap::new();
    if let Some(state_dir) = &arguments.state_dir {
        headers.insert(header::AUTHORIZATION, proof(state_dir, domain)?);
    }
    let answer = origin.post(path, &headers, TIMEOUT).await?;
    match answer.status() {
        StatusCode::ACCEPTED => Ok(()),
        _ => bail!("the control plane says no: {}", said(answer.body())),
    }
}

/// That whoever asks can read the state folder.
fn proof(state_dir: &Path, domain: &str) -> Result<HeaderValue> {
    let stored = ca::stored_tokens(state_dir)
        .with_context(|| format!("{} (is it the control plane's state folder?)", state_dir.display()))?;
    let id = control_plane_id(&TrustDomain::new(domain).context("the control plane's trust domain")?);
    let token = stored.tokens.mint(&id, &[], Duration::from_secs(60), SystemTime::now())?;
    let mut value = HeaderValue::try_from(format!("Bearer {token}")).context("the token")?;
    value.set_sensitive(true);
    Ok(value)
}

/// Says what changes, until there is nothing more to be seen soon.
async fn follow(arguments: &RotateArgs, origin: &Origin, before: &Status) -> Result<()> {
    let people = arguments.output == Format::Table;
    let mut told = Vec::new();
    let mut silent: Option<Instant> = None;
    loop {
        let status = match ask(origin).await {
            Ok(status) => {
                silent = None;
                status
            }
            Err(error) => {
                if silent.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
                    return Err(error);
                }
                tokio::time::sleep(LOOK).await;
                continue;
            }
        };
        let lines = progress(&status);
        if people {
            for line in lines.iter().filter(|line| !told.contains(*line)) {
                output::print(line)?;
            }
        }
        told = lines;
        match end(arguments, before, &status) {
            None => tokio::time::sleep(LOOK).await,
            Some(Ok(last)) if people => return output::print(&last),
            Some(Ok(_)) => return output::print_json(&status),
            Some(Err(why)) => bail!("{why}"),
        }
    }
}

/// What there is to say at the end; `None`: it is not there yet.
fn end(arguments: &RotateArgs, before: &Status, now: &Status) -> Option<Result<String, String>> {
    if now.rotation.wanted.is_some() {
        return None;
    }
    let until = now.rotation.until.as_deref().unwrap_or("an unknown time");
    match (now.rotation.phase.as_str(), arguments.abort) {
        ("idle", true) => Some(Ok(format!("given up: the root is still {}", now.root.pin))),
        ("idle", false) if now.rotation.completed != before.rotation.completed => {
            Some(Ok(format!("complete: the root is {}", now.root.pin)))
        }
        ("idle", false) => {
            Some(Err("the rotation was given up; the control plane's log says why".to_owned()))
        }
        ("draining", false) if !arguments.wait => {
            Some(Ok(format!("the old root is retired at {until}; the control plane does that by itself")))
        }
        (phase, true) => Some(Err(format!("it was too late to give the rotation up: it is {phase}"))),
        _ => None,
    }
}

/// A line for the phase, and one for each who is waited for.
fn progress(status: &Status) -> Vec<String> {
    let rotation = &status.rotation;
    let (from, to) = (rotation.from.as_deref().unwrap_or("?"), rotation.to.as_deref().unwrap_or("?"));
    let line = match rotation.phase.as_str() {
        "published" => format!("published: proxies are told {to} beside {from}"),
        "switched" => format!("switched: certificates are issued under {to}"),
        "draining" => format!("draining: what {from} has issued runs out"),
        "retired" => format!("retired: {from} is trusted no more"),
        _ => return Vec::new(),
    };
    let mut lines = vec![line];
    lines.extend(rotation.waits_for.iter().map(waited));
    lines
}

fn waited(waited: &Waited) -> String {
    let at = match waited.replica.is_empty() {
        true => String::new(),
        false => format!(" of {}", waited.replica),
    };
    let replica = match waited.replica.is_empty() {
        true => "the control plane",
        false => waited.replica.as_str(),
    };
    match waited.why {
        Lacks::Proxies => {
            format!("  waiting for proxies{at}: {}", named(&waited.proxies, waited.more))
        }
        Lacks::Silent => format!(
            "  waiting for {replica}: it has said nothing for half a minute (is its node gone for good, delete the pod)"
        ),
        Lacks::OldBundle => format!("  waiting for {replica}: it does not tell the new root yet"),
        Lacks::OldIssuer => format!("  waiting for {replica}: it does not issue under the new root yet"),
        Lacks::Unknown => "  waiting: the API server does not say which replicas there are".to_owned(),
    }
}

fn named(names: &[String], more: usize) -> String {
    match (names.is_empty(), more) {
        (true, 0) => "none".to_owned(),
        (_, 0) => names.join(", "),
        (_, more) => format!("{} and {more} more", names.join(", ")),
    }
}

/// What a rotation takes.
fn plan(status: &Status) -> String {
    let Status { root, rotation, plan, .. } = status;
    let left = u64::try_from(root.expires_in_seconds).unwrap_or_default();
    let mut lines = vec![
        format!("root       {}", root.pin),
        format!("valid to   {} ({} left)", root.not_after, duration(left)),
        format!("now        {}", rotation.phase),
    ];
    lines.extend(status.scheduled_at.iter().map(|at| format!("by itself  at {at}")));
    if let Some(why) = &status.not_rotated_here {
        lines.push(format!("cannot be rotated here: {why}"));
        return lines.join("\n");
    }
    let lifetime = duration(status.leaf_lifetime_seconds);
    lines.extend([
        String::new(),
        "published  a new root is made, and told to proxies beside the present one".to_owned(),
        format!(
            "           for {} nobody must be connected who has not taken it; here and now: {}",
            duration(plan.settle_seconds),
            named(&plan.proxies, plan.more)
        ),
        "switched   certificates are issued under the new root, and are good for who knows only the old one too".to_owned(),
        format!(
            "draining   {}: certificates live for {lifetime}, and clocks differ",
            duration(plan.drain_seconds)
        ),
        "retired    the new root alone is trusted".to_owned(),
        String::new(),
        "Nothing was changed.".to_owned(),
    ]);
    lines.join("\n")
}

/// What an answer that is no success says.
fn said(body: &[u8]) -> String {
    String::from_utf8_lossy(body).trim().chars().take(1000).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn status(rotation: Value) -> Status {
        let mut whole = json!({
            "phase": "idle", "waits_for": [], "connected": 2, "leads": true,
        });
        whole.as_object_mut().unwrap().extend(rotation.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "trust_domain": "td",
            "root": {"pin": "sha256:aa", "not_after": "2036-11-19T00:00:00Z", "expires_in_seconds": 7200},
            "issuer": {"not_after": "2036-11-19T00:00:00Z", "expires_in_seconds": 7200},
            "trusted": ["sha256:aa"],
            "leaf_lifetime_seconds": 86_400,
            "rotation": whole,
            "plan": {"settle_seconds": 30, "drain_seconds": 87_000, "proxies": ["shop/web"], "more": 3},
        }))
        .unwrap()
    }

    fn arguments(abort: bool, wait: bool) -> RotateArgs {
        RotateArgs {
            dry_run: false,
            abort,
            wait,
            state_dir: None,
            control_plane: "127.0.0.1:1".parse().unwrap(),
            output: Format::Table,
        }
    }

    #[test]
    fn who_is_waited_for_is_named() {
        let status = status(json!({
            "phase": "published", "from": "sha256:aa", "to": "sha256:bb",
            "waits_for": [
                {"replica": "", "why": "proxies", "proxies": ["shop/web", "shop/orders"], "more": 4},
                {"replica": "pod-2", "why": "silent"},
            ],
        }));
        assert_eq!(
            progress(&status),
            [
                "published: proxies are told sha256:bb beside sha256:aa",
                "  waiting for proxies: shop/web, shop/orders and 4 more",
                "  waiting for pod-2: it has said nothing for half a minute (is its node gone for good, delete the pod)",
            ]
        );
    }

    #[test]
    fn it_is_left_when_only_time_is_waited_for_unless_all_of_it_is_wanted() {
        let before = status(json!({}));
        let draining = status(json!({"phase": "draining", "until": "2026-11-23T00:00:00Z"}));
        let end_of = |abort, wait, now: &Status| end(&arguments(abort, wait), &before, now);
        assert!(end_of(false, false, &draining).unwrap().unwrap().contains("2026-11-23"));
        assert_eq!(end_of(false, true, &draining), None);
        assert_eq!(end_of(false, false, &status(json!({"wanted": "rotation"}))), None);
        assert_eq!(end_of(false, false, &status(json!({"phase": "published"}))), None);
        let complete = status(json!({"completed": "2026-11-23T00:00:00Z"}));
        assert!(end_of(false, true, &complete).unwrap().unwrap().contains("complete"));
        assert!(end_of(false, true, &before).unwrap().is_err(), "it began, and is no more");
        assert!(end_of(true, false, &before).unwrap().unwrap().contains("given up"));
        assert!(end_of(true, false, &draining).unwrap().unwrap_err().contains("too late"));
    }

    #[test]
    fn a_plan_says_how_long_and_for_whom() {
        let text = plan(&status(json!({})));
        for part in
            ["sha256:aa", "2 h 0 min left", "shop/web and 3 more", "24 h 10 min", "Nothing was changed"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        let mut elsewhere = status(json!({}));
        elsewhere.not_rotated_here = Some("cert-manager makes it".to_owned());
        assert!(plan(&elsewhere).ends_with("cannot be rotated here: cert-manager makes it"));
    }
}
