//! The state folder: made for us alone, and held by one control plane at a time.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

/// The folder, locked until it is released or dropped.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// `None`: released.
    lock: Mutex<Option<File>>,
}

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateDirError {
    #[error(
        "the state folder {path} is locked by another control plane{}: stop that one, or give this one a folder of its own (--state-dir)",
        holder(pid)
    )]
    Locked { path: PathBuf, pid: String },
    #[error("cannot use the state folder {path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

fn holder(pid: &str) -> String {
    if pid.is_empty() { String::new() } else { format!(" (process {pid})") }
}

impl StateDir {
    /// Makes the folder (mode 0700) unless it is there, and locks it.
    ///
    /// # Errors
    /// When another control plane has it, or it cannot be made or written.
    pub fn open(path: &Path) -> Result<Self, StateDirError> {
        let failed = |source| StateDirError::Io { path: path.to_owned(), source };
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        }
        let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o7777;
        if mode & 0o022 != 0 {
            tracing::warn!(
                path = %path.display(),
                mode = format_args!("{mode:04o}"),
                "others can write into the state folder, and so replace the mesh's keys; chmod 700 it"
            );
        }
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path.join("lock"))
            .map_err(failed)?;
        if let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            let mut pid = String::new();
            // Who holds it is said as far as it is known.
            drop(lock.read_to_string(&mut pid));
            return Err(StateDirError::Locked { path: path.to_owned(), pid: pid.trim().to_owned() });
        }
        lock.set_len(0).map_err(failed)?;
        lock.rewind().map_err(failed)?;
        writeln!(lock, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { path: path.to_owned(), lock: Mutex::new(Some(lock)) })
    }

    /// Lets another control plane have the folder, whoever else still holds on to this; nothing is written from here on.
    pub fn release(&self) {
        *self.lock.lock() = None;
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file so that it is there whole or not at all; only we can read it.
    ///
    /// # Errors
    /// When it cannot be written, or the folder has been released.
    pub fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let lock = self.lock.lock();
        if lock.is_none() {
            return Err(io::Error::other("the state folder has been released"));
        }
        let temporary = self.path.join(format!(".{name}.new"));
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path.join(name))
    }

    /// Reads a file; `None` if it is not there.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match fs::read(self.path.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_control_plane_is_told_who_has_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state");
        let first = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        first.release();
        let second = StateDir::open(&path).unwrap();
        assert!(first.write("x", b"late").is_err(), "it is the other one's now");
        drop(second);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn what_is_written_is_read_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(&folder.path().join("state")).unwrap();
        assert_eq!(state.read("x").unwrap(), None);
        state.write("x", b"1").unwrap();
        assert_eq!(state.read("x").unwrap().unwrap(), b"1");
        let mode = fs::metadata(state.path().join("x")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
