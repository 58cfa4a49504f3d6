//! `tulle internal enter`: from a process of `tulle run`'s to the program, within its namespace.
//!
//! Joins the network namespace, and puts files in place of those of `/etc` that say how names are looked up, in a mount
//! namespace of the program's own: nobody else sees them. All else stays as it is: the user, the working folder, the
//! terminal and its process group, descriptors, variables. What it was becomes the program, so that `tulle run` is the
//! program's parent.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::namespace::unshare;
use crate::process::follow_parent;

/// As of shells: the program was found and cannot be run.
pub(super) const NOT_EXECUTABLE: u8 = 126;
/// As of shells: there is no such program.
pub(super) const NOT_FOUND: u8 = 127;

#[derive(Debug, clap::Args)]
pub(crate) struct EnterArgs {
    /// End with this process.
    #[arg(long, value_name = "PID")]
    with: i32,
    /// A process in the network namespace to join.
    #[arg(long, value_name = "PID")]
    namespace: u32,
    /// A file to see in place of another; may be repeated.
    #[arg(long, value_name = "FILE=IN-PLACE-OF", value_parser = replacement)]
    replace: Vec<(PathBuf, PathBuf)>,
    /// The program, and its arguments.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    program: Vec<OsString>,
}

fn replacement(text: &str) -> Result<(PathBuf, PathBuf)> {
    let (file, place) = text.split_once('=').context("expected FILE=IN-PLACE-OF")?;
    Ok((file.into(), place.into()))
}

/// Becomes the program.
///
/// # Errors
/// A namespace cannot be entered. That the program cannot be run is not one, but an exit status.
pub(crate) fn run(arguments: &EnterArgs) -> Result<ExitCode> {
    join(arguments.namespace).context("cannot enter the network namespace")?;
    if !arguments.replace.is_empty() {
        replace(&arguments.replace)?;
    }
    // Entering a user namespace may have cleared it: last.
    follow_parent(arguments.with)?;
    let [program, rest @ ..] = arguments.program.as_slice() else { return Ok(ExitCode::FAILURE) };
    let error = Command::new(program).args(rest).exec();
    eprintln!("tulle: {}: {error}", Path::new(program).display());
    Ok(match error.kind() {
        ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
    .into())
}

fn join(pid: u32) -> Result<()> {
    let entrance = |kind: &str| format!("/proc/{pid}/ns/{kind}");
    let network = File::open(entrance("net")).with_context(|| entrance("net"))?;
    let is_own = fs::read_link(entrance("user"))? == fs::read_link("/proc/self/ns/user")?;
    if !is_own {
        let user = File::open(entrance("user")).with_context(|| entrance("user"))?;
        move_into_link_name_space(user.as_fd(), Some(LinkNameSpaceType::User))?;
    }
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
    Ok(())
}

/// In a mount namespace of this process's own.
fn replace(files: &[(PathBuf, PathBuf)]) -> Result<()> {
    unshare(UnshareFlags::NEWNS).context("cannot make a mount namespace")?;
    // What is mounted from here on shows nowhere else; what is mounted elsewhere still shows here.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .context("cannot keep what is mounted for the program to itself")?;
    for (file, place) in files {
        mount_bind(file, place)
            .with_context(|| format!("cannot put {} in place of {}", file.display(), place.display()))?;
    }
    Ok(())
}
