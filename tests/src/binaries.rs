//! The binaries under test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The path of one of the workspace's binaries, built beforehand if need be.
///
/// `TULLE_TEST_BIN_DIR` names a folder of binaries to test as they are. Without it, those of the profile that the test
/// itself was built with are brought up to date, once per test process; cargo's lock keeps test processes apart.
pub fn binary(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let path = FOLDER.get_or_init(folder).join(name);
    assert!(path.is_file(), "there is no {}; the workspace's binaries are built there", path.display());
    path
}

/// Copies a file to where it may be executed, as everybody.
///
/// Another process does it: a child that some thread forks while this one writes holds the file open for writing until it
/// executes its own program, and whoever executes the file meanwhile is told `Text file busy` (execve(2), `ETXTBSY`).
pub fn copy_executable(from: &Path, to: &Path) {
    let copied = Command::new("install").args(["-m", "755"]).args([from, to]).output().expect("install runs");
    assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
}

fn folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("TULLE_TEST_BIN_DIR") {
        return folder.into();
    }
    let test = std::env::current_exe().expect("the path of the test itself");
    // target/<profile>/deps/<test>
    let folder = test.ancestors().nth(2).expect("the folder of the profile").to_owned();
    build(&folder);
    folder
}

fn build(folder: &Path) {
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        None | Some("debug") => "dev",
        Some(profile) => profile,
    };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let built = Command::new(cargo)
        .args(["build", "--quiet", "--locked", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(folder.parent().expect("the target folder"))
        .current_dir(root)
        .output()
        .expect("cargo runs");
    assert!(built.status.success(), "the binaries do not build:\n{}", String::from_utf8_lossy(&built.stderr));
}
