//! The control plane of a folder of YAML, for all who `tulle run` with it.
//!
//! The first that comes starts it, with its keys in a folder of the user's that is found by the YAML's folder; those who
//! come later find it there. When whoever started it ends, it ends too, and one of the others starts it again with the
//! same keys and ports: the proxies carry on meanwhile. The lock on its state folder decides who.

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rustix::process::geteuid;

use crate::http::Origin;
use crate::process::{Addresses, POLL, Process, Program, READY_WITHIN, is_ready, strings};

/// How often it is seen to that there is one.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// A running control plane, ours or another's.
#[derive(Debug)]
pub(super) struct ControlPlane {
    config: PathBuf,
    state: PathBuf,
    logs: PathBuf,
    addresses: Addresses,
    metrics: Origin,
    own: Option<Process>,
}

// === impl ControlPlane ===

impl ControlPlane {
    /// Finds the folder's control plane, or starts it.
    ///
    /// # Errors
    /// It does not start, with the end of its log.
    pub(super) async fn join(config: &Path, state: Option<&Path>, logs: &Path) -> Result<Self> {
        let named = || format!("--config-dir {}", config.display());
        let found = fs::metadata(config).with_context(named)?;
        if !found.is_dir() {
            bail!("{} is no folder; name the one with the mesh's YAML", named());
        }
        let state = match state {
            Some(state) => state.to_owned(),
            None => user_folder()?.join(format!("mesh-{:x}-{:x}", found.dev(), found.ino())),
        };
        private(&state)?;
        let (mut own, begun) = (None, Instant::now());
        loop {
            if let Some(addresses) = Addresses::read(&addresses_file(&state))? {
                let metrics = Origin::new(addresses.get("metrics")?, None)?;
                if is_ready(&metrics).await.is_ok() {
                    let (config, logs) = (config.to_owned(), logs.to_owned());
                    return Ok(Self { config, state, logs, addresses, metrics, own });
                }
            }
            match own.as_mut().map(Process::ended) {
                None => own = Some(start(config, &state, logs, own_addresses(&state)?)?),
                Some(None) => {}
                // Somebody else starts it, or has not quite ended.
                Some(Some(_)) if own.as_ref().is_some_and(is_locked_out) => {
                    own = None;
                    tokio::time::sleep(POLL * 4).await;
                }
                Some(Some(status)) => {
                    let tail = own.map(|process| process.log_tail()).unwrap_or_default();
                    bail!("the control plane ended ({status}); {tail}");
                }
            }
            if begun.elapsed() > READY_WITHIN {
                let tail = own.map(|process| process.log_tail()).unwrap_or_default();
                bail!("the control plane is not ready after {READY_WITHIN:?}; {tail}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Its gRPC port.
    pub(super) fn grpc(&self) -> Result<SocketAddr> {
        self.addresses.get("grpc")
    }

    /// Its folder of keys.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// Sees to it that there is one.
    pub(super) async fn tend(&mut self) {
        let runs = self.own.as_mut().is_some_and(|process| process.ended().is_none());
        if runs || is_ready(&self.metrics).await.is_ok() {
            return;
        }
        // Who does not get the lock looks again. That it cannot be started is said by the log of the proxy, which misses it.
        let addresses = [&self.addresses.get("grpc"), &self.addresses.get("metrics")]
            .map(|address| address.as_ref().copied().unwrap_or(ANY));
        self.own = start(&self.config, &self.state, &self.logs, addresses).ok();
    }
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Where it was before, so that the proxies of others find it; else anywhere.
fn own_addresses(state: &Path) -> Result<[SocketAddr; 2]> {
    Ok(match Addresses::read(&addresses_file(state))? {
        Some(addresses) => [addresses.get("grpc")?, addresses.get("metrics")?]
            .map(|address| if std::net::TcpListener::bind(address).is_ok() { address } else { ANY }),
        None => [ANY; 2],
    })
}

fn start(config: &Path, state: &Path, logs: &Path, [grpc, metrics]: [SocketAddr; 2]) -> Result<Process> {
    let arguments = strings(&[
        "control-plane",
        "--config-dir",
        &config.to_string_lossy(),
        "--state-dir",
        &state.to_string_lossy(),
        "--grpc-address",
        &grpc.to_string(),
        "--metrics-address",
        &metrics.to_string(),
        "--addresses-file",
        &addresses_file(state).to_string_lossy(),
        "--log-format",
        "text",
    ]);
    let program = Program { name: "control-plane".to_owned(), arguments, environment: Vec::new() };
    Process::start(program, Stdio::null(), logs)
}

fn addresses_file(state: &Path) -> PathBuf {
    state.join("addresses.json")
}

fn is_locked_out(process: &Process) -> bool {
    let log = process.log_text();
    log.lines().last().is_some_and(|line| line.contains("is locked by another control plane"))
}

/// Where this user's state is that a restart of the machine may take.
fn user_folder() -> Result<PathBuf> {
    let user = geteuid().as_raw();
    let is_own = |path: &PathBuf| fs::metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == user);
    // Another user's after `su`.
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(is_own);
    let folder = match runtime {
        Some(runtime) => runtime.join("tulle"),
        None => std::env::temp_dir().join(format!("tulle-{user}")),
    };
    private(&folder)?;
    Ok(folder)
}

/// Makes a folder that is this user's alone, or sees that it is one.
fn private(folder: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot make {}", folder.display()));
        }
        _ => {}
    }
    let found = fs::symlink_metadata(folder).with_context(|| folder.display().to_string())?;
    if !found.is_dir() || found.uid() != geteuid().as_raw() || found.mode() & 0o077 != 0 {
        bail!(
            "{} is to hold the mesh's keys, and is not a folder of this user's alone; remove it, or name another (--state-dir)",
            folder.display()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_of_keys_that_others_may_open_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("keys");
        private(&folder).unwrap();
        private(&folder).unwrap();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(private(&folder).unwrap_err().to_string().contains("--state-dir"));
        let link = root.path().join("link");
        std::os::unix::fs::symlink(root.path(), &link).unwrap();
        assert!(private(&link).is_err());
    }
}
