//! `tulle stat | edges | routes`: what flows now, by Service or workload, by who calls whom, and by route.
//!
//! The control plane is asked ([`Seen`]), whom each proxy tells every few seconds what it carried; here that is added up
//! ([`rows`]) and shown. No Prometheus is needed, and nothing is remembered for longer than a minute.

mod rows;

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use http::{HeaderMap, StatusCode};
use tulle_control_plane::load::Seen;
use tulle_proxy::state::is_label;

use self::rows::Table;
use crate::http::Origin;
use crate::output::Format;
use crate::screen::Screen;

const STAT_EXAMPLES: &str = "\
Examples:
  tulle stat                            every Service
  tulle stat services -n shop --watch
  tulle stat services shop/orders
  tulle stat workloads -o json

Columns:
  MESHED       of a Service, its endpoints in the mesh; of a workload, its proxies that are connected
  SUCCESS      requests that did not fail. It is a failure when there is no answer, though the client waits for it, or none to
               the end; a status of 500 or more; of gRPC UNKNOWN, DEADLINE_EXCEEDED, PERMISSION_DENIED, INTERNAL,
               UNAVAILABLE and DATA_LOSS
  RPS          requests per second, over the last minute
  LATENCY_P50  what half of the requests took at most, to the end of the answer; P95, P99 likewise
  TCP_CONN     connections that are open

A Service's numbers are those of its clients' proxies, a workload's those of its own proxy about what it serves.";

const EDGES_EXAMPLES: &str = "\
Examples:
  tulle edges
  tulle edges -n shop --watch

SECURED says how the connections between the two are protected: mtls, of the mesh, with certificates on both sides; app, the
application's own TLS; none. The other columns are those of `tulle stat`.";

const ROUTES_EXAMPLES: &str = "\
Examples:
  tulle routes                    of every Service
  tulle routes shop/orders
  tulle routes orders -n shop -o json

A line for each route, and each backend that it leads to, that had requests in the last minute; [default] are those that no
route takes. The other columns are those of `tulle stat`.";

const TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks; reports come more rarely.
const LOOK: Duration = Duration::from_secs(2);

/// What all three take.
#[derive(Debug, clap::Args)]
struct Looking {
    /// Only what is of this namespace.
    #[arg(long, short, value_name = "NAMESPACE", value_parser = namespace)]
    namespace: Option<String>,
    /// Look again every two seconds, until Ctrl-C.
    #[arg(long, short)]
    watch: bool,
    /// The metrics port of the running control plane that is asked. In a cluster: `kubectl port-forward` leads there.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    control_plane: SocketAddr,
    /// How to print it; with --watch, JSON is one object on each line.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
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
    #[command(flatten)]
    looking: Looking,
}

#[derive(Debug, clap::Args)]
#[command(after_help = EDGES_EXAMPLES)]
pub(crate) struct EdgesArgs {
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
/// The control plane cannot be asked, nothing has been reported, or there is nothing of that name.
pub(crate) fn stat(arguments: &StatArgs) -> Result<ExitCode> {
    let name = qualified(arguments.name.as_deref(), &arguments.looking)?;
    look(&arguments.looking, |seen, namespace| match arguments.of {
        Of::Services => rows::services(seen, namespace, name.as_deref()),
        Of::Workloads => rows::workloads(seen, namespace, name.as_deref()),
    })
}

/// `tulle edges`.
///
/// # Errors
/// As [`stat`].
pub(crate) fn edges(arguments: &EdgesArgs) -> Result<ExitCode> {
    look(&arguments.looking, |seen, namespace| Ok(rows::edges(seen, namespace)))
}

/// `tulle routes`.
///
/// # Errors
/// As [`stat`].
pub(crate) fn routes(arguments: &RoutesArgs) -> Result<ExitCode> {
    let service = qualified(arguments.service.as_deref(), &arguments.looking)?;
    look(&arguments.looking, |seen, namespace| rows::routes(seen, namespace, service.as_deref()))
}

/// The full name of what is asked about.
fn qualified(name: Option<&str>, looking: &Looking) -> Result<Option<String>> {
    Ok(match (name, &looking.namespace) {
        (None, _) => None,
        (Some(name), Some(namespace)) => match name.split_once('/') {
            Some((of, _)) if of != namespace => bail!("{name} is not in the namespace {namespace}"),
            Some(_) => Some(name.to_owned()),
            None => Some(format!("{namespace}/{name}")),
        },
        (Some(name), None) if name.contains('/') => Some(name.to_owned()),
        (Some(name), None) => bail!("of which namespace? say NAMESPACE/{name}, or add --namespace"),
    })
}

type AddUp<'a> = dyn Fn(&Seen, Option<&str>) -> Result<Table> + 'a;

fn look(looking: &Looking, add_up: impl Fn(&Seen, Option<&str>) -> Result<Table>) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(look_on(looking, &add_up)) {
        // Nobody looks on.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

async fn look_on(looking: &Looking, add_up: &AddUp<'_>) -> Result<()> {
    let origin = Origin::new(looking.control_plane, None)?;
    let mut screen = match looking.output {
        Format::Table => Screen::new(),
        Format::Json => Screen::plain(),
    };
    loop {
        let seen = ask(&origin).await?;
        // Who watches may have come first; of a name that is not there no watching makes one.
        if !looking.watch && seen.proxies.iter().all(|proxy| proxy.seconds <= 0.0) {
            bail!(nothing_yet(&seen, origin.address()));
        }
        let table = add_up(&seen, looking.namespace.as_deref())?;
        let lines = match (looking.output, looking.watch) {
            (Format::Json, false) => vec![serde_json::to_string_pretty(&table).context("JSON")?],
            (Format::Json, true) => vec![serde_json::to_string(&table).context("JSON")?],
            (Format::Table, _) => table.lines(),
        };
        if !looking.watch {
            screen.finish(&lines)?;
            return Ok(());
        }
        screen.draw(&lines)?;
        tokio::time::sleep(LOOK).await;
    }
}

fn nothing_yet(seen: &Seen, address: &str) -> String {
    match seen.proxies.len() {
        0 => format!(
            "no proxy reports to the control plane at {address}; one does once it has its certificate and its \
             TULLE_PROXY_CONTROL_PLANE_ADDRESS leads there"
        ),
        count => format!(
            "nothing has been reported to the control plane at {address} yet: {count} connected, and each reports every \
             TULLE_PROXY_LOAD_REPORT_INTERVAL (5s); ask again in some seconds, or with --watch"
        ),
    }
}

async fn ask(origin: &Origin) -> Result<Seen> {
    let answer = origin.get("/load", &HeaderMap::new(), TIMEOUT).await;
    let answer = answer.with_context(|| {
        format!("no control plane's metrics port at {} (see --control-plane)", origin.address())
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
