//! `tulle tap`: requests as they happen.
//!
//! The control plane is asked, which asks the proxies; here what comes is shown, line by line, until nobody wants it any more. What is not shown
//! is said, on standard error, so that standard output is requests and nothing else.

mod missed;
mod stream;
mod text;

use std::io::{self, ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use tulle_control_plane::tap::{Line, Question, printable, question};

pub(crate) use self::missed::Missed;
pub(crate) use self::stream::{Looking, Stream};
pub(crate) use self::text::ends;

const EXAMPLES: &str = "\
Examples:
  tulle tap                                     of all workloads
  tulle tap shop/web --to shop/orders           what a workload sends to a Service
  tulle tap service/shop/orders --status 5xx,404
  tulle tap namespace/shop --reason any         what proxies refused or gave up
  tulle tap shop/orders --peer shop/web --path /api --header user-agent --header set-cookie
  tulle tap -n shop -o json | jq .duration_ns

A request is shown when it is over, once by each workload's proxy that it passed: out, as its
client sent it, and in, as its server got it. Connections without HTTP are shown when they are
closed. No query of a path, no body, and no secret is ever shown.

Columns:
  time (UTC), out or in, status (of gRPC: HTTP's/gRPC's), duration, client → server, method and
  path, and why a proxy answered, refused or gave up by itself (`tulle explain REASON`)

What is too much to be shown is left out, counted, and told on standard error.

Exit status:
  0  ended by Ctrl-C or --for
  1  the control plane cannot be asked, has ended, or knows nothing of that name
  2  wrong arguments";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TapArgs {
    #[command(flatten)]
    looking: Looking,
    /// Show this header field of requests and responses; `*`: all. The values of what may be secret are `[redacted]`.
    #[arg(long = "header", value_name = "NAME", value_parser = question::field)]
    headers: Vec<String>,
    /// How to print it.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
}

/// How requests are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A line for each.
    Table,
    /// A line for each, with more in it.
    Wide,
    /// A JSON object on a line for each, with the fields of the access log.
    Json,
}

/// Shows requests until it is ended.
///
/// # Errors
/// The control plane cannot be asked, ends, or knows nothing of that name.
pub(crate) fn run(arguments: &TapArgs) -> Result<ExitCode> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    match runtime.block_on(show(arguments)) {
        // Nobody looks on.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

pub(crate) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

async fn show(arguments: &TapArgs) -> Result<()> {
    let question =
        Question { fields: arguments.headers.clone(), ..arguments.looking.question(question::PER_SECOND)? };
    let mut stream = Stream::open(&arguments.looking, &question).await?;
    let mut missed = Missed::new(question.per_second);
    let ended = loop {
        let line = match stream.next().await {
            Ok(Some(line)) => line,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        match line {
            Some(Line::Request(request)) => {
                let text = match arguments.output {
                    Format::Table => text::lines(&request, false),
                    Format::Wide => text::lines(&request, true),
                    Format::Json => printable(&serde_json::to_string(&request).context("JSON")?),
                };
                let mut out = io::stdout().lock();
                // At once, so that who reads on gets whole lines.
                out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush())?;
            }
            Some(line) => missed.take(line),
            // Nothing happens.
            None => {}
        }
        for note in missed.due(std::time::Instant::now()) {
            eprintln!("tulle: {note}");
        }
    };
    for note in missed.rest() {
        eprintln!("tulle: {note}");
    }
    ended
}
