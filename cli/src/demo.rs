//! `tulle demo`: a mesh of three services on this machine, its traffic in a table, and a verdict at the end.
//!
//! One thread: it starts the processes ([`mesh`]), drives traffic ([`driver`]), reads what the proxies count
//! ([`edges`]) and draws ([`table`]). However it ends, no process stays, and no file: after `kill -9`
//! until the next demo or `tulle run` ([`Folder`]).

mod driver;
mod edges;
mod histogram;
mod jaeger;
mod mesh;
mod report;
pub(crate) mod scrape;
mod table;
mod topology;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;

use self::driver::Driver;
use self::edges::History;
use self::jaeger::Jaeger;
use self::mesh::{Folders, Mesh};
use self::report::Report;
use crate::duration;
use crate::folder::Folder;
use crate::http::Origin;
use crate::output::{self, Format};
use crate::screen::{Screen, milliseconds};

/// How often the proxies' counters are read: twice within the second in which a changed weight is to show.
const SCRAPE_INTERVAL: Duration = Duration::from_millis(500);
/// How often the table is printed where it cannot be redrawn.
const PRINT_INTERVAL: Duration = Duration::from_secs(5);

const EXAMPLES: &str = "\
Examples:
  tulle demo                          until Ctrl-C; edit its YAML and watch
  tulle demo --for 10s                ends by itself, with a verdict
  tulle demo --for 5s --output json   one JSON object on standard output
  tulle demo --rps 500 --keep-dir     more traffic; YAML and logs stay
  tulle demo --jaeger 127.0.0.1:4317  every request's way as a trace

Exit status:
  0    every edge carried traffic over mutual TLS and no request failed;
       without --for: it was ended by you
  1    it did not start, or an edge failed; the last lines say why
  2    wrong arguments
  130  ended by you before it had started";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DemoArgs {
    /// End after so long, with a summary and a verdict; without it the demo goes on until Ctrl-C.
    #[arg(long = "for", value_name = "DURATION", value_parser = duration::parse)]
    end_after: Option<Duration>,
    /// How to show what flows: a table, redrawn in a terminal, or one JSON object at the end.
    #[arg(long, short, value_enum, default_value = "table")]
    output: Format,
    /// Requests per second to `web`.
    #[arg(long, value_name = "N", default_value = "50", value_parser = clap::value_parser!(u32).range(1..=20_000))]
    rps: u32,
    /// Send a trace of every request to where Jaeger, or any other collector, takes OTLP: over gRPC at `<host>:<port>`
    /// (Jaeger's port is 4317), over HTTP at `http://<host>:<port>` (4318).
    #[arg(long, value_name = "ADDRESS")]
    jaeger: Option<Jaeger>,
    /// Leave the folder of YAML, state and logs behind.
    #[arg(long)]
    keep_dir: bool,
}

/// Runs the demo to its end.
///
/// # Errors
/// The mesh did not start.
pub(crate) fn run(arguments: &DemoArgs) -> Result<ExitCode> {
    // One thread: the kernel ends the children when the thread that started them ends.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("the runtime")?;
    // Before there is anything to clean up.
    let stop = {
        let _entered = runtime.enter();
        Stop::new()?
    };
    let folder = Folder::of_demo(arguments.keep_dir)?;
    let result = runtime.block_on(demo(arguments, &folder, stop));
    if arguments.keep_dir {
        eprintln!("kept: {}", folder.path().display());
    } else if let Err(error) = folder.close() {
        eprintln!("{error:#}");
    }
    result
}

async fn demo(arguments: &DemoArgs, folder: &Folder, mut stop: Stop) -> Result<ExitCode> {
    let mut screen = Screen::new();
    let table = arguments.output == Format::Table;
    if table {
        screen.draw(&["Starting a control plane, four services and a proxy beside each…".to_owned()])?;
    }
    let folders = Folders::create(folder.path())?;
    let started = tokio::select! {
        started = Mesh::start(folders, arguments.jaeger.as_ref()) => started?,
        () = stop.wait() => return Ok(ExitCode::from(130)),
    };
    let mut run = Run::new(started, arguments.rps).await?;
    let problem = run.watch(arguments, &mut screen, &mut stop).await;
    let report = run.end(problem).await;
    let verdict_counts = arguments.end_after.is_some() || run.problem.is_some();
    match arguments.output {
        Format::Json => output::print_json(&report)?,
        Format::Table => {
            let mut lines = table::lines(&run.history.total());
            lines.push(String::new());
            lines.extend(report.verdict());
            // A reader that has gone wants no summary.
            let _ = screen.finish(&lines);
        }
    }
    Ok(if report.is_ok() || !verdict_counts { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A mesh with traffic in it.
struct Run {
    mesh: Mesh,
    history: History,
    driver: Arc<Driver>,
    stop_driver: Option<oneshot::Sender<()>>,
    driving: tokio::task::JoinHandle<()>,
    rps: u32,
    problem: Option<String>,
}

// === impl Run ===

impl Run {
    /// Takes the counters as they are, then starts the traffic.
    async fn new(mesh: Mesh, rps: u32) -> Result<Self> {
        let history = History::new(topology::edges(), Instant::now(), &mesh.settled().await?);
        let driver = Arc::new(Driver::new(Origin::new(mesh.front, None)?, f64::from(rps))?);
        let (stop_driver, stopped) = oneshot::channel();
        let driving = tokio::spawn({
            let driver = Arc::clone(&driver);
            async move {
                driver
                    .run(async {
                        let _ = stopped.await;
                    })
                    .await;
            }
        });
        Ok(Self { mesh, history, driver, stop_driver: Some(stop_driver), driving, rps, problem: None })
    }

    /// Looks on until the time is over, a signal comes, or something breaks: then the problem is returned.
    async fn watch(&mut self, arguments: &DemoArgs, screen: &mut Screen, stop: &mut Stop) -> Option<String> {
        let mut ticks = tokio::time::interval(SCRAPE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let end = async {
            match arguments.end_after {
                Some(duration) => tokio::time::sleep(duration).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(end);
        // Where nothing can be redrawn, what does not change is said once.
        let mut printed = Instant::now();
        if arguments.output == Format::Table
            && !screen.is_live()
            && screen.draw(&self.hints(arguments)).is_err()
        {
            return None;
        }
        loop {
            tokio::select! {
                biased;
                () = stop.wait() => return None,
                () = &mut end => return None,
                _ = ticks.tick() => {}
            }
            if let Err(error) = self.look().await {
                return Some(format!("{error:#}"));
            }
            if arguments.output == Format::Json || !screen.is_live() && printed.elapsed() < PRINT_INTERVAL {
                continue;
            }
            printed = Instant::now();
            let mut lines = self.lines();
            if screen.is_live() {
                lines.push(String::new());
                lines.extend(self.hints(arguments));
            }
            if screen.draw(&lines).is_err() {
                // Nobody looks on.
                return None;
            }
        }
    }

    async fn look(&mut self) -> Result<()> {
        self.mesh.watch()?;
        let scrapes = self.mesh.scrape().await?;
        self.history.push(Instant::now(), &scrapes);
        Ok(())
    }

    async fn look_at_last(&mut self) -> Result<()> {
        self.mesh.watch()?;
        let scrapes = self.mesh.settled().await?;
        self.history.push(Instant::now(), &scrapes);
        Ok(())
    }

    /// Stops the traffic, waits for the last answers and judges.
    async fn end(&mut self, problem: Option<String>) -> Report {
        if let Some(stop) = self.stop_driver.take() {
            let _ = stop.send(());
        }
        let _ = (&mut self.driving).await;
        self.problem = match problem {
            Some(problem) => Some(problem),
            None => self.look_at_last().await.err().map(|error| format!("{error:#}")),
        };
        let problems = self.problem.iter().cloned().collect();
        Report::new(&self.history.total(), &self.driver.traffic(), self.history.elapsed(), problems)
    }

    /// What flows now.
    fn lines(&self) -> Vec<String> {
        let traffic = self.driver.traffic();
        let latency = |q| traffic.quantile(q).map_or_else(|| "–".to_owned(), milliseconds);
        let mut lines = vec![
            format!(
                "{} requests/s for {} s: {} answered, {} failed, p50 {}, p99 {}",
                self.rps,
                self.history.elapsed().as_secs(),
                traffic.requests - traffic.failed,
                traffic.failed,
                latency(0.5),
                latency(0.99)
            ),
            String::new(),
        ];
        lines.extend(table::lines(&self.history.live()));
        lines.extend(self.mesh.notices.iter().rev().take(3).map(|notice| format!("note: {notice}")));
        lines
    }

    /// What can be done meanwhile.
    fn hints(&self, arguments: &DemoArgs) -> Vec<String> {
        let mut lines = vec![
            format!("web       curl http://{}/", self.mesh.front),
            format!("YAML      {}    change the weights", self.mesh.folders.route().display()),
            format!("check     tulle check --config-dir {}", self.mesh.folders.config.display()),
        ];
        if let Some(address) = self.mesh.admin_of("orders") {
            lines.push(format!("identity  tulle identity --admin {address}    of orders"));
        }
        if let Some(address) = self.mesh.inbound_of("payments-v1") {
            lines.push(format!("refused   curl http://{address}/    payments-v1 without a certificate"));
        }
        if let Some(jaeger) = &arguments.jaeger {
            lines.push(format!("traces    {}    Jaeger's page, unless it was told otherwise", jaeger.page()));
        }
        lines.push(format!(
            "live      tulle stat --watch --control-plane {}    also edges, routes",
            self.mesh.control_plane_metrics()
        ));
        let pid = self.mesh.control_plane_pid();
        lines.push(format!("control   kill -9 {pid}    the control plane: traffic goes on"));
        lines.push(format!("logs      {}", self.mesh.folders.logs.display()));
        lines
    }
}

/// What asks the demo to end: Ctrl-C, `kill`, a closed terminal.
struct Stop {
    signals: [Signal; 3],
}

// === impl Stop ===

impl Stop {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("signals cannot be handled");
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(listen);
        Ok(Self { signals: [interrupt?, terminate?, hangup?] })
    }

    async fn wait(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.signals;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
