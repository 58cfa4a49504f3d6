//! The temporary folder of a `tulle run` or `tulle demo`, which goes when that ends; after `kill -9`, when the next of
//! the same user comes by.
//!
//! Who has a folder holds the lock of a file in it for as long as it lives. The kernel lets go of the lock however the
//! process ends, so a lock that can be had says that the folder is nobody's any more.

use std::env;
use std::fs::{self, DirEntry, File, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use rustix::process::geteuid;
use tempfile::TempDir;

/// What the names of the folders begin with, and nobody else's.
const PREFIXES: [&str; 2] = ["tulle-run-", "tulle-demo-"];
const LOCK: &str = "lock";

/// A folder that only this user may open.
#[derive(Debug)]
pub(crate) struct Folder {
    folder: TempDir,
    /// `None`: the folder stays for ever.
    _lock: Option<File>,
}

// === impl Folder ===

impl Folder {
    /// Of `tulle run`.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn of_run() -> Result<Self> {
        Self::create(&env::temp_dir(), PREFIXES[0], false)
    }

    /// Of the demo; with `keep` it stays.
    ///
    /// # Errors
    /// It cannot be made.
    pub(crate) fn of_demo(keep: bool) -> Result<Self> {
        Self::create(&env::temp_dir(), PREFIXES[1], keep)
    }

    fn create(within: &Path, prefix: &str, keep: bool) -> Result<Self> {
        sweep(within);
        let mut builder = tempfile::Builder::new();
        builder.prefix(prefix).permissions(Permissions::from_mode(0o700)).disable_cleanup(keep);
        let folder = builder.tempdir_in(within).context("no temporary folder")?;
        let lock =
            if keep { None } else { Some(lock(folder.path()).context("the temporary folder's lock")?) };
        Ok(Self { folder, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Removes it with all that is in it.
    ///
    /// # Errors
    /// Something in it cannot be removed.
    pub(crate) fn close(self) -> Result<()> {
        self.folder.close().context("the temporary folder cannot be removed")
    }
}

/// The file is locked before it has its name: nobody finds it unlocked while we live.
fn lock(folder: &Path) -> Result<File> {
    let new = folder.join("lock.new");
    let file = File::create_new(&new)?;
    file.try_lock()?;
    fs::rename(new, folder.join(LOCK))?;
    Ok(file)
}

/// Removes the folders of this user whose owners have gone. What stands in the way of that is not worth a word.
fn sweep(within: &Path) {
    let Ok(entries) = fs::read_dir(within) else { return };
    for entry in entries.flatten().filter(is_folder_of_ours) {
        let folder = entry.path();
        let Ok(file) = File::open(folder.join(LOCK)) else { continue };
        if file.try_lock().is_ok() {
            let _ = fs::remove_dir_all(folder);
        }
    }
}

fn is_folder_of_ours(entry: &DirEntry) -> bool {
    let name = entry.file_name();
    let is_named = PREFIXES.iter().any(|prefix| name.as_encoded_bytes().starts_with(prefix.as_bytes()));
    // Of the entry itself, not of what it links to.
    let is_own = |found: fs::Metadata| found.is_dir() && found.uid() == geteuid().as_raw();
    is_named && entry.metadata().is_ok_and(is_own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_its_users_alone_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::create(root.path(), PREFIXES[0], false).unwrap();
        assert_eq!(fs::metadata(folder.path()).unwrap().mode() & 0o777, 0o700);
        let path = folder.path().to_owned();
        folder.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_nobody_holds_any_more_is_removed_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let held = Folder::create(root.path(), PREFIXES[0], false).unwrap();
        let kept = Folder::create(root.path(), PREFIXES[1], true).unwrap().path().to_owned();
        let left = |name: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.join("deep")).unwrap();
            fs::write(path.join(LOCK), "").unwrap();
            path
        };
        let (of_run, of_demo, of_others) =
            (left("tulle-run-gone"), left("tulle-demo-gone"), left("tulle-65534"));
        let link = root.path().join("tulle-run-link");
        std::os::unix::fs::symlink(&of_others, &link).unwrap();
        sweep(root.path());
        assert!(!of_run.exists() && !of_demo.exists());
        assert!(held.path().exists() && kept.exists() && of_others.exists() && link.exists());
    }
}
