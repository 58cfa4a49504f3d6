//! A pair that an executable from elsewhere starts: proxies that run only under a control plane of their own, such as
//! linkerd2-proxy and ztunnel, with whatever they need of it.
//!
//! The executable finds its task in the environment, starts both proxies, writes their process ids, outbound first, as two
//! words into `BENCH_PIDS`, and stays. All that descends from it is ended with the pair.

use std::path::Path;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use tulle_tests::{Process, Program, usage};

use crate::pair::{PATIENCE, Pair, Proxies, Purpose, Site, free_address};

/// The executable and its family, which end when this is dropped.
struct Started(Process);

pub(super) async fn start(
    name: &str,
    executable: &Path,
    purpose: Purpose,
    site: &Site,
) -> Result<Pair, String> {
    let front = free_address();
    let pids = site.folder.path(&format!("{name}.pids"));
    let _ = std::fs::remove_file(&pids);
    let program = Program::new(name, executable)
        .env("BENCH_FRONT", front.to_string())
        .env("BENCH_BACKEND", site.backend(purpose.speaks).to_string())
        .env("BENCH_SPEAKS", purpose.speaks.name())
        .env("BENCH_PKI", site.pki.folder())
        .env("BENCH_CONNECTIONS", site.connections().to_string())
        .env("BENCH_PIDS", &pids);
    let mut started = Started(site.start(program));
    let begun = Instant::now();
    loop {
        if let Some([outbound, inbound]) = read(&pids)? {
            return Ok(Pair::new(front, Some(Proxies { outbound, inbound }), started));
        }
        if let Some(status) = started.0.ended() {
            let why = started.0.stderr();
            return Err(format!("{}: {status}: {}", executable.display(), why.trim()));
        }
        if begun.elapsed() > PATIENCE {
            return Err(format!("{}: wrote no process ids into BENCH_PIDS", executable.display()));
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
}

/// The two ids, once both are there.
fn read(pids: &Path) -> Result<Option<[u32; 2]>, String> {
    let text = std::fs::read_to_string(pids).unwrap_or_default();
    // Its end tells that it is whole.
    let Some(line) = text.strip_suffix('\n') else { return Ok(None) };
    let bad =
        || format!("BENCH_PIDS holds {line:?}, not the process ids of the outbound and the inbound proxy");
    let ids: Vec<u32> =
        line.split_whitespace().map(str::parse).collect::<Result<_, _>>().map_err(|_| bad())?;
    <[u32; 2]>::try_from(ids).map(Some).map_err(|_| bad())
}

// === impl Started ===

impl Drop for Started {
    fn drop(&mut self) {
        for pid in usage::family(self.0.pid()) {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}
