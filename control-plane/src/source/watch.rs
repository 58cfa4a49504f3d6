//! The thread that looks at a folder when something happens there, and now and then anyway.
//!
//! Decides only *when* to look; [`Folder::reread`] decides what is seen. Events are hints: whatever they say, the whole
//! folder is read again, so a lost event costs at most [`RESCAN`]. Changes are gathered for a moment, since editors
//! write a file in several steps.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, Event, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Folder;
use super::folder::{Read, is_visible};

/// The folder is read once nothing has happened for this long …
const QUIET: Duration = Duration::from_millis(20);
/// … or after this long at most.
const PATIENCE: Duration = Duration::from_millis(100);
/// How often the folder is read though nothing seems to have happened.
const RESCAN: Duration = Duration::from_secs(30);
/// The same where the kernel cannot tell what happens.
const POLL: Duration = Duration::from_secs(1);

/// A folder that is watched for as long as this lives.
#[derive(Debug)]
pub struct Watch {
    signals: Sender<Signal>,
    thread: Option<thread::JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// Something in the folder may have changed.
    Changed,
    /// A watched folder itself may have been replaced, or events have been lost.
    Moved,
    Stop,
}

// === impl Watch ===

impl Watch {
    /// Watches; `on_read` is called on the watching thread with every difference, and must not block for long.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(folder: Folder, on_read: impl FnMut(Read) + Send + 'static) -> io::Result<Self> {
        let (signals, received) = mpsc::channel();
        let for_events = signals.clone();
        let thread = thread::Builder::new()
            .name("folder".to_owned())
            .spawn(move || run(folder, on_read, for_events, &received))?;
        Ok(Self { signals, thread: Some(thread) })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only if the thread has ended.
        let _ended = self.signals.send(Signal::Stop);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

fn run(
    mut folder: Folder,
    mut on_read: impl FnMut(Read),
    signals: Sender<Signal>,
    received: &Receiver<Signal>,
) {
    let mut watches = Watches::new(folder.path(), signals);
    let mut told = None;
    loop {
        // Watches first: what happens while the folder is read is then seen afterwards.
        let complete = watches.renew();
        let read = folder.reread();
        if !read.changes.is_empty() || told.as_ref() != Some(&read.findings) {
            told = Some(read.findings.clone());
            on_read(read);
        }
        match wait(received, if complete { RESCAN } else { POLL }) {
            Signal::Stop => return,
            Signal::Moved => watches.forget(),
            Signal::Changed => {}
        }
    }
}

/// Waits until something has happened and it is quiet again, or for `at_most`.
fn wait(received: &Receiver<Signal>, at_most: Duration) -> Signal {
    let mut signal = match received.recv_timeout(at_most) {
        Ok(signal) => signal,
        Err(RecvTimeoutError::Timeout) => return Signal::Moved,
        Err(RecvTimeoutError::Disconnected) => return Signal::Stop,
    };
    let end = Instant::now() + PATIENCE;
    while signal != Signal::Stop {
        let left = end.saturating_duration_since(Instant::now()).min(QUIET);
        match received.recv_timeout(left) {
            Ok(Signal::Changed) if !left.is_zero() => {}
            Ok(Signal::Changed) => break,
            Ok(other) => signal = other,
            Err(RecvTimeoutError::Timeout) => break,
            Err(RecvTimeoutError::Disconnected) => return Signal::Stop,
        }
    }
    signal
}

/// What the kernel was asked to tell.
struct Watches {
    /// Absolute; not canonical, so that a link that is swapped is seen.
    folder: PathBuf,
    watcher: Option<RecommendedWatcher>,
    /// Device and inode of each watched folder.
    watched: BTreeMap<PathBuf, (u64, u64)>,
}

// === impl Watches ===

impl Watches {
    fn new(folder: &Path, signals: Sender<Signal>) -> Self {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        let inside = folder.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            if let Some(signal) = meaning(&inside, event) {
                // Fails only while everything ends.
                let _ended = signals.send(signal);
            }
        });
        if let Err(error) = &watcher {
            tracing::warn!(
                folder = %folder.display(),
                "the folder cannot be watched ({error}); it is read once a second in place of that"
            );
        }
        Self { folder, watcher: watcher.ok(), watched: BTreeMap::new() }
    }

    /// Watches every folder that is not watched yet; false if one of them cannot be.
    fn renew(&mut self) -> bool {
        let Some(watcher) = &mut self.watcher else {
            return false;
        };
        let mut wanted = BTreeMap::new();
        // The parent tells when the folder itself is replaced. It comes last: where a link in the folder leads to it too, it is watched by
        // that name, under which its files are read.
        let parent = self.folder.parent().map(Path::to_path_buf);
        let inner = folders_in(&self.folder);
        // The kernel has one watch for a folder, whatever its names: a link to one that is watched already would take that watch along
        // when it goes.
        let mut known = BTreeSet::new();
        for path in [self.folder.clone()].into_iter().chain(inner).chain(parent) {
            if let Ok(metadata) = fs::metadata(&path) {
                let id = (metadata.dev(), metadata.ino());
                if known.insert(id) {
                    wanted.insert(path, id);
                }
            }
        }
        let stale: Vec<PathBuf> = self
            .watched
            .iter()
            .filter(|(path, id)| wanted.get(*path) != Some(*id))
            .map(|(path, _)| path.clone())
            .collect();
        for path in stale {
            // The kernel has often forgotten it already.
            let _gone = watcher.unwatch(&path);
            self.watched.remove(&path);
        }
        let mut complete = wanted.contains_key(&self.folder);
        for (path, id) in wanted {
            if self.watched.contains_key(&path) {
                continue;
            }
            match watcher.watch(&path, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    self.watched.insert(path, id);
                }
                // Without the parent only a replaced folder is seen late.
                Err(_) if !path.starts_with(&self.folder) => {}
                Err(_) => complete = false,
            }
        }
        complete
    }

    /// Trusts no watch any more; the next [`Watches::renew`] makes them anew.
    fn forget(&mut self) {
        for id in self.watched.values_mut() {
            *id = (0, 0);
        }
    }
}

fn folders_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(is_visible))
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect()
}

/// What an event means for `folder`; none if it is none of its concern (such as our own reading).
fn meaning(folder: &Path, event: notify::Result<Event>) -> Option<Signal> {
    let Ok(event) = event else {
        return Some(Signal::Moved);
    };
    if event.need_rescan() {
        return Some(Signal::Moved);
    }
    if matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write)) {
        return None;
    }
    if event.paths.iter().any(|path| path == folder) {
        return Some(Signal::Moved);
    }
    let inside = event.paths.iter().any(|path| path.starts_with(folder));
    inside.then_some(Signal::Changed)
}
