//! `tulle stat | edges | routes`: what flows now, by Service or workload, by who calls whom, and by route.
//!
//! Control planes are asked ([`Seen`]), whom each proxy tells every few seconds what it carried; here that is added up
//! ([`rows`]) and shown ([`table`]). No Prometheus is needed, and nothing is remembered for longer than a minute.

mod rows;
mod table;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, StatusCode};
use tulle_control_plane::app::describe;
use tulle_control_plane::load::Seen;
use tulle_proxy::state::is_label;

use self::rows::Wanted;
use self::table::Table;
use crate::http::Origin;
use crate::screen::Screen;

const STAT_EXAMPLES: &str = "\
Examples:
  tulle stat                            every Service
  tulle stat services -n shop --watch
  tulle stat services shop/orders --from shop/web
  tulle stat workloads -o json
  tulle stat workloads --to shop/orders

Columns:
  MESHED       of a Service, its endpoints in the mesh of all; of a workload, its proxies that are
               connected of those that were at once in the last minute
  SUCCESS      requests that did not fail. It is a failure when there is no answer, though the
               client waits for it, or none to the end; a status of 500 or more; of gRPC UNKNOWN,
               DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE and DATA_LOSS
  RPS          requests per second, of proxies that are connected, over the last minute
  LATENCY_P50  what half of the requests took at most, to the end of the answer; P95, P99 likewise
  TCP_CONN     connections that are open
  READ_BYTES/SEC, WRITE_BYTES/SEC (-o wide)
               of connections without HTTP, from who opened them and to there

A Service's numbers are those of its clients' proxies, a workload's those of its own proxy about
what it serves or, with --to, sends.";

const EDGES_EXAMPLES: &str = "\
Examples:
  tulle edges
  tulle edges -n shop --watch
  tulle edges --to shop/orders -o wide

SRC is a workload; `unknown` one without a proxy. DST is what it calls: the Service or the backend
of a route that leads elsewhere; of what `unknown` calls, the workload. SECURED says how the
connections between the two are protected: mtls, of the mesh, with certificates on both sides; app,
the application's own TLS; none; `-`, not known: of what has reached no server.
`-o wide` adds both SPIFFE IDs. The other columns are those of `tulle stat`. The application's
connections count as TCP_CONN where all of their requests go by one edge.";

const ROUTES_EXAMPLES: &str = "\
Examples:
  tulle routes                    of every Service
  tulle routes shop/orders
  tulle routes orders -n shop --from shop/web -o json

A line for each route, and each backend that it leads to, that had requests in the last minute;
[default] are those that no route takes. The other columns are those of `tulle stat`.";

const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks; reports come more rarely.
const LOOK: Duration = Duration::from_secs(2);

/// What all three take.
#[derive(Debug, clap::Args)]
struct Looking {
    /// Only what is of this namespace.
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// Only what this workload sends, as NAMESPACE/NAME, or NAME with --namespace.
    #[arg(long, value_name = "WORKLOAD", value_parser = name)]
    from: Option<String>,
    /// Look again every two seconds, until Ctrl-C.
    #[arg(long, short)]
    watch: bool,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there. Of several
    /// replicas, repeat it for each: a proxy reports to the one that it is connected to.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    control_plane: Vec<SocketAddr>,
    /// How to print it; with --watch, JSON is one object on each line.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Shape,
}

/// How numbers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shape {
    /// For people.
    Table,
    /// With columns that few need.
    Wide,
    /// One JSON object, with everything.
    Json,
}

/// What a line stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Of {
    /// Services, by what their clients' proxies see.
    #[value(aliases = ["service", "svc"])]
    Services,
    /// Workloads, by what they serve.
    #[value(aliases = ["workload", "wl"])]
    Workloads,
}

#[derive(Debug, clap::Args)]
#[command(after_help = STAT_EXAMPLES)]
pub(crate) struct StatArgs {
    /// What a line stands for.
    #[arg(value_enum, default_value = "services")]
    of: Of,
    /// Only this one, as NAMESPACE/NAME, or NAME with --namespace.
    #[arg(value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// Of workloads: what they send to this Service, in place of what they serve.
    #[arg(long, value_name = "SERVICE", value_parser = name, conflicts_with = "from")]
    to: Option<String>,
    #[command(flatten)]
    looking: Looking,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EDGES_EXAMPLES)]
pub(crate) struct EdgesArgs {
    /// Only what is sent to this Service or workload, as NAMESPACE/NAME, or NAME with --namespace.
    #[arg(long, value_name = "NAME", value_parser = name)]
    to: Option<String>,
    #[command(flatten)]
    looking: Looking,
}

#[derive(Debug, clap::Args)]
#[command(after_help = ROUTES_EXAMPLES)]
pub(crate) struct RoutesArgs {
    /// Only of this Service, as NAMESPACE/NAME, or NAME with --namespace.
    #[arg(value_name = "SERVICE", value_parser = name)]
    service: Option<String>,
    #[command(flatten)]
    looking: Looking,
}

fn namespace(text: &str) -> Result<String> {
    if is_label(text) {
        return Ok(text.to_owned());
    }
    bail!("{text:?} is not the name of a namespace: lower case letters, digits, `-`");
}

fn name(text: &str) -> Result<String> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    // Pods' names may have dots (RFC 1123 §2.1).
    if is_label(namespace) && name.split('.').all(is_label) {
        return Ok(text.to_owned());
    }
    bail!("{text:?} is not NAMESPACE/NAME or NAME: lower case letters, digits, `-`");
}

/// `tulle stat`.
///
/// # Errors
/// No control plane can be asked, nothing has been reported, or there is nothing of that name.
pub(crate) fn stat(arguments: &StatArgs) -> Result<ExitCode> {
    let (looking, name, to) = (&arguments.looking, arguments.name.as_deref(), arguments.to.as_deref());
    if arguments.of == Of::Services && to.is_some() {
        bail!("--to is for `tulle stat workloads`; of Services, say the NAME: `tulle stat services NAME`");
    }
    look(looking, [name, to], |seen, wanted| match arguments.of {
        Of::Services => rows::services(seen, wanted),
        Of::Workloads => rows::workloads(seen, wanted),
    })
}

/// `tulle edges`.
///
/// # Errors
/// As [`stat`].
pub(crate) fn edges(arguments: &EdgesArgs) -> Result<ExitCode> {
    look(&arguments.looking, [None, arguments.to.as_deref()], rows::edges)
}

/// `tulle routes`.
///
/// # Errors
/// As [`stat`].
pub(crate) fn routes(arguments: &RoutesArgs) -> Result<ExitCode> {
    look(&arguments.looking, [arguments.service.as_deref(), None], rows::routes)
}

/// The full name of what is asked about.
fn qualified(name: Option<&str>, namespace: Option<&str>) -> Result<Option<String>> {
    Ok(match (name, namespace) {
        (None, _) => None,
        (Some(name), _) if name.contains('/') => Some(name.to_owned()),
        (Some(name), Some(namespace)) => Some(format!("{namespace}/{name}")),
        (Some(name), None) => bail!("of which namespace? say NAMESPACE/{name}, or add --namespace"),
    })
}

type AddUp<'a> = dyn Fn(&Seen) -> Result<Table> + 'a;

fn look(
    looking: &Looking,
    [name, to]: [Option<&str>; 2],
    add_up: impl Fn(&Seen, &Wanted<'_>) -> Result<Table>,
) -> Result<ExitCode> {
    let namespace = looking.namespace.as_deref();
    let name = qualified(name, namespace)?;
    if let (Some(name), Some(namespace)) = (&name, namespace)
        && name.split_once('/').is_some_and(|(of, _)| of != namespace)
    {
        bail!("{name} is not in the namespace {namespace}");
    }
    // `unknown` is no workload's name; see [`rows::edges`].
    let from = match looking.from.as_deref() {
        Some(rows::UNKNOWN) => Some(rows::UNKNOWN.to_owned()),
        from => qualified(from, namespace)?,
    };
    let to = qualified(to, namespace)?;
    // Who says both names wants what is between them, whichever namespace they are of.
    let wanted = Wanted { namespace, name: name.as_deref(), from: from.as_deref(), to: to.as_deref() };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(look_on(looking, &|seen| add_up(seen, &wanted))) {
        // Nobody looks on.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

async fn look_on(looking: &Looking, add_up: &AddUp<'_>) -> Result<()> {
    let origins = looking.control_plane.iter().map(|address| Origin::new(*address, None));
    let origins: Vec<Origin> = origins.collect::<Result<_>>()?;
    let mut screen = match looking.output {
        Shape::Table | Shape::Wide => Screen::new(),
        Shape::Json => Screen::plain(),
    };
    let mut has_shown = false;
    loop {
        let lines = match ask_all(&origins).await {
            Ok((seen, unreachable)) => {
                // Who watches may have come first; of a name that is not there no watching makes one.
                if !looking.watch && !seen.proxies.iter().any(|proxy| proxy.has_reported) {
                    bail!(nothing_yet(&seen, &origins, &unreachable));
                }
                let mut table = add_up(&seen)?;
                table.unreachable = unreachable;
                lines(&table, looking)?
            }
            // Who watches waits for a control plane that is restarted.
            Err(error) if has_shown && looking.output == Shape::Json => {
                eprintln!("tulle: {}", describe(&error));
                Vec::new()
            }
            Err(error) if has_shown => vec![describe(&error)],
            Err(error) => return Err(error),
        };
        has_shown = true;
        if !looking.watch {
            screen.finish(&lines)?;
            return Ok(());
        }
        screen.draw(&lines)?;
        tokio::time::sleep(LOOK).await;
    }
}

fn lines(table: &Table, looking: &Looking) -> Result<Vec<String>> {
    Ok(match (looking.output, looking.watch) {
        (Shape::Json, false) => vec![serde_json::to_string_pretty(table).context("JSON")?],
        (Shape::Json, true) => vec![serde_json::to_string(table).context("JSON")?],
        (shape, _) => table.lines(shape == Shape::Wide),
    })
}

fn nothing_yet(seen: &Seen, origins: &[Origin], unreachable: &[String]) -> String {
    let addresses: Vec<&str> = origins.iter().map(Origin::address).collect();
    let addresses = addresses.join(", ");
    let mut text = match seen.proxies.iter().map(|proxy| proxy.connected).sum::<u64>() {
        0 => format!(
            "no proxy reports to the control plane at {addresses}; one does once it has its certificate and its \
             TULLE_PROXY_CONTROL_PLANE_ADDRESS leads there"
        ),
        count => format!(
            "nothing has been reported to the control plane at {addresses} yet: {count} connected, and each reports every \
             TULLE_PROXY_LOAD_REPORT_INTERVAL (5s); ask again in some seconds, or with --watch"
        ),
    };
    for why in unreachable {
        text.push_str("; ");
        text.push_str(why);
    }
    text
}

/// What those who answer know, and why the others do not.
async fn ask_all(origins: &[Origin]) -> Result<(Seen, Vec<String>)> {
    let (mut seen, mut unreachable) = (None::<Seen>, Vec::new());
    for origin in origins {
        match (ask(origin).await, &mut seen) {
            (Ok(more), Some(seen)) => {
                seen.proxies.extend(more.proxies);
                for (service, meshed) in more.services {
                    // One may not have heard of an endpoint yet.
                    let known = seen.services.entry(service).or_default();
                    *known = if meshed.endpoints > known.endpoints { meshed } else { *known };
                }
            }
            (Ok(first), seen) => *seen = Some(first),
            (Err(error), _) => unreachable.push(error),
        }
    }
    match (seen, unreachable) {
        (Some(seen), unreachable) => Ok((seen, unreachable.iter().map(describe).collect())),
        (None, unreachable) => match unreachable.into_iter().next() {
            Some(error) => Err(error),
            None => bail!("say which control plane to ask: --control-plane ADDRESS"),
        },
    }
}

async fn ask(origin: &Origin) -> Result<Seen> {
    let answer = origin.get("/load", &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| {
        format!(
            "no control plane's metrics port at {}; --control-plane ADDRESS says where it is, and in a cluster \
             `kubectl port-forward` leads there",
            origin.address()
        )
    })?;
    if answer.status() != StatusCode::OK {
        let text = String::from_utf8_lossy(answer.body()).trim().to_owned();
        bail!("{} answers /load with {}: {text}", origin.address(), answer.status());
    }
    serde_json::from_slice(answer.body()).with_context(|| {
        format!(
            "{} answers /load with what this `tulle` does not understand; is it another version?",
            origin.address()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_namespace() {
        let full = |name, namespace| qualified(Some(name), namespace).map_err(|error| error.to_string());
        assert_eq!(full("shop/web", None), Ok(Some("shop/web".to_owned())));
        assert_eq!(full("shop/web", Some("bank")), Ok(Some("shop/web".to_owned())));
        assert_eq!(full("web", Some("shop")), Ok(Some("shop/web".to_owned())));
        let error = full("web", None).unwrap_err();
        assert_eq!(error, "of which namespace? say NAMESPACE/web, or add --namespace");
        for wrong in ["", "/", "a/", "/a", "a/b/c", "A", "a b", "\x1b", "-a", "a..b"] {
            assert!(name(wrong).is_err(), "{wrong:?}");
        }
        assert!(name("shop/web.v2").is_ok() && namespace("a.b").is_err());
    }
}
