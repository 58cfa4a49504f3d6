//! The authority's files in the state folder.
//!
//! Keys are never written but with mode 0600 from the first byte on, and never read with more. The folder is locked by whoever opens it,
//! so that nobody else writes; but for the book of join tokens, which `tulle token` writes beside a running control plane, and which is locked for each change.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use zeroize::Zeroizing;

use super::{CA_CERTIFICATES, Change, Condition, GRANTS, Kept, NAMES, Store, TOKENS};
use crate::ca::CaError;

/// How often who waits for the book of join tokens tries again.
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// The folder.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    dir: PathBuf,
}

// === impl Folder ===

impl Folder {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Everything that is there.
    pub(crate) fn read(&self) -> Result<Kept, CaError> {
        let mut kept = Kept::new();
        for name in NAMES {
            let path = self.dir.join(name);
            let text = match name {
                // Its damage costs what was granted, not the start; that of the book of tokens is told by who reads it.
                GRANTS | TOKENS => read_lossy(&path)?.map(Zeroizing::new),
                CA_CERTIFICATES => read(&path)?.map(Zeroizing::new),
                _ => read_key(&path)?,
            };
            kept.extend(text.map(|text| (name, text)));
        }
        Ok(kept)
    }

    /// Writes some of what is kept, in this order.
    pub(crate) fn write(&self, kept: &Kept, names: &[&'static str]) -> Result<(), CaError> {
        if !names.is_empty() {
            make_dir(&self.dir)?;
        }
        for name in names {
            let path = self.dir.join(name);
            if let Some(text) = kept.get(name) {
                write(&path, text.as_bytes(), mode(name))?;
            }
            if *name == CA_CERTIFICATES {
                tracing::info!(path = %path.display(), "made a new root");
            }
        }
        Ok(())
    }

    /// Where a file is, for messages.
    pub(crate) fn path_of(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

#[tonic::async_trait]
impl Store for Folder {
    fn place(&self, name: &str) -> String {
        self.path_of(name)
    }

    async fn change(&self, name: &'static str, change: &Change<'_>) -> Result<(), CaError> {
        let path = self.dir.join(name);
        // Held until it is written.
        let _turn = match name {
            TOKENS => Some(lock(&self.dir).await?),
            _ => None,
        };
        let reading = path.clone();
        // The disk must not keep anybody else waiting.
        let before = on_disk(&path, move || read_lossy(&reading)).await?.map(Zeroizing::new);
        let before = before.as_ref().map(|text| text.as_str());
        let Some(text) = change(before) else { return Ok(()) };
        let writing = path.clone();
        let text = Zeroizing::new(text);
        on_disk(&path, move || write(&writing, text.as_bytes(), mode(name))).await
    }

    async fn replace(
        &self,
        texts: &[(&'static str, Zeroizing<String>)],
        name: &'static str,
        fits: &Condition<'_>,
    ) -> Result<bool, CaError> {
        // Who has locked the folder is the only one who writes these.
        let found = self.look(name).await?.map(Zeroizing::new);
        if !fits(found.as_ref().map(|text| text.as_str())) {
            return Ok(false);
        }
        for &(name, ref text) in texts {
            let change = |found: Option<&str>| (found != Some(text.as_str())).then(|| text.to_string());
            self.change(name, &change).await?;
        }
        Ok(true)
    }

    fn is_guarded(&self) -> bool {
        true
    }

    async fn look(&self, name: &'static str) -> Result<Option<String>, CaError> {
        let path = self.dir.join(name);
        let reading = path.clone();
        on_disk(&path, move || read_lossy(&reading)).await
    }
}

/// Waits until nobody else changes what several may; until what is returned is dropped.
async fn lock(dir: &Path) -> Result<fs::File, CaError> {
    let opening = dir.to_owned();
    let folder = on_disk(dir, move || fs::File::open(&opening).map_err(io(&opening))).await?;
    loop {
        // Not waited for in a thread: those who wait must not take the threads that who has it needs.
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK | Errno::INTR) => tokio::time::sleep(LOCK_AGAIN).await,
            Err(error) => return Err(io(dir)(error.into())),
        }
    }
}

async fn on_disk<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T, CaError> + Send + 'static,
) -> Result<T, CaError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panicked| Err(io(path)(std::io::Error::other(panicked))))
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> CaError + '_ {
    move |why| CaError::Io { path: path.to_owned(), why }
}

fn read(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

/// What is no text is damaged, and told when it is taken apart.
fn read_lossy(path: &Path) -> Result<Option<String>, CaError> {
    match fs::read(path) {
        // Without a copy: it may be a key.
        Ok(bytes) => Ok(Some(match String::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
        })),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io(path)(e)),
    }
}

/// Reads a key, refusing one that group or others can touch.
fn read_key(path: &Path) -> Result<Option<Zeroizing<String>>, CaError> {
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io(path)(e)),
    };
    let mode = file.metadata().map_err(io(path))?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(CaError::Permissions { path: path.to_owned(), mode });
    }
    let mut text = Zeroizing::new(String::new());
    file.read_to_string(&mut text).map_err(io(path))?;
    Ok(Some(text))
}

/// Certificates are no secret.
fn mode(name: &str) -> u32 {
    if name == CA_CERTIFICATES { 0o644 } else { 0o600 }
}

fn make_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))
}

/// Writes a file whole or not at all: beside it first, then renamed.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), CaError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(io(&beside)(e)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside).map_err(io(&beside))?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(io(&beside))?;
    own(&file, path).map_err(io(&beside))?;
    fs::rename(&beside, path).map_err(io(path))?;
    // What is written next may rest on this, also after the power has failed.
    let folder = path.parent().unwrap_or(path);
    fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))
}

/// What somebody else writes here, as root may, is the folder's owner's: a control plane must be able to read it.
fn own(file: &fs::File, path: &Path) -> std::io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    let (folder, own) = (fs::metadata(folder)?, file.metadata()?);
    if folder.uid() == own.uid() {
        return Ok(());
    }
    std::os::unix::fs::fchown(file, Some(folder.uid()), Some(folder.gid()))
}
