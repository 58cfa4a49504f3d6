//! `tulle internal namespace`: the network namespace that a program is in, and what must be done within it.
//!
//! Makes the namespace, as the caller it is: in a user namespace of its own with the caller as its only user where the
//! kernel asks for a privilege, without one where the caller has it. Nothing leaves the namespace but by the sockets that are
//! passed out of it ([`tulle_proxy::accept::serve_namespace`]). Tells on standard output that it is ready, then what is
//! refused. When its standard input ends, because `tulle run` lets go of it or has died, it ends every process within
//! and then itself, and the namespace with them.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, getegid, geteuid, getpid, kill_process};
use rustix::thread::UnshareFlags;
use tulle_proxy::accept::serve_namespace;
use tulle_proxy::intercept::{Refusals, enclose};

/// What begins the line that says that all is set.
pub(super) const READY: &str = "ready";
/// What the line says besides where the namespace has IPv6.
pub(super) const IPV6: &str = "ipv6";

/// Different destinations that are told of.
const MAX_TOLD: usize = 100;
/// How long the processes within may take to die.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub(crate) struct NamespaceArgs {
    /// The unix socket at which sockets of the namespace are passed out.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// Holds a new namespace until standard input ends.
///
/// # Errors
/// It cannot be made, and what to do about it.
pub(crate) fn run(arguments: &NamespaceArgs) -> Result<()> {
    isolate()?;
    let enclosed = enclose().with_context(hint)?;
    allow_echo();
    let mut refusals = Refusals::listen().context("cannot listen to what is refused")?;
    let listener = UnixListener::bind(&arguments.socket)
        .with_context(|| format!("cannot listen on {}", arguments.socket.display()))?;
    std::thread::spawn(move || serve_namespace(&listener));
    say(&if enclosed.ipv6 { format!("{READY} {IPV6}") } else { READY.to_owned() });
    watch(&mut refusals);
    end_all();
    Ok(())
}

/// Moves into a new network namespace.
fn isolate() -> Result<()> {
    match unshare(UnshareFlags::NEWNET) {
        Err(Errno::PERM) => {}
        result => return result.with_context(hint),
    }
    // As seen from outside.
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).with_context(hint)?;
    let write = |file: &str, text: &str| fs::write(format!("/proc/self/{file}"), text).with_context(hint);
    // Who may set groups could drop one that a file denies something to: the kernel wants that given up.
    write("setgroups", "deny")?;
    write("uid_map", &format!("{user} {user} 1"))?;
    write("gid_map", &format!("{group} {group} 1"))
}

/// Lets anybody within make the sockets that `ping` needs, as most systems do, so that what it sends is refused by our rules,
/// and told of, rather than unheard.
fn allow_echo() {
    const GROUPS: &str = "/proc/sys/net/ipv4/ping_group_range";
    let group = getegid().as_raw();
    // The kernel takes groups that there are. Where it takes none, `ping` has to say itself what it lacks.
    let _ = fs::write(GROUPS, "0 2147483647").or_else(|_| fs::write(GROUPS, format!("{group} {group}")));
}

/// As `unshare(2)`.
pub(super) fn unshare(what: UnshareFlags) -> Result<(), Errno> {
    #[expect(deprecated, reason = "it is unsafe for descriptors only, which are never asked for here")]
    rustix::thread::unshare(what)
}

/// Why the kernel may forbid namespaces, by what it says of itself.
pub(super) fn hint() -> String {
    let is = |file: &str, value: &str| {
        fs::read_to_string(format!("/proc/sys/{file}")).is_ok_and(|text| text.trim() == value)
    };
    let why = if is("user/max_user_namespaces", "0") || is("user/max_net_namespaces", "0") {
        "; `sysctl user.max_user_namespaces=10000 user.max_net_namespaces=10000` allows them"
    } else if is("kernel/unprivileged_userns_clone", "0") {
        "; `sysctl kernel.unprivileged_userns_clone=1` allows them"
    } else if is("kernel/apparmor_restrict_unprivileged_userns", "1") {
        "; `sysctl kernel.apparmor_restrict_unprivileged_userns=0` allows them, or an AppArmor profile for tulle with `userns,`"
    } else {
        "; in a container its seccomp and AppArmor profiles must allow them, elsewhere root may make them"
    };
    format!("the kernel does not let this user make user and network namespaces{why}")
}

/// Tells of refused packets, once for each destination, until standard input ends.
fn watch(refusals: &mut Refusals) {
    let mut told = HashSet::new();
    let mut tell = |refusals: &mut Refusals| {
        while let Ok(packets) = refusals.read() {
            for packet in packets {
                if told.len() < MAX_TOLD && told.insert(packet.clone()) {
                    say(&packet.to_string());
                }
            }
        }
    };
    let mut input = io::stdin();
    loop {
        let ready = {
            let mut on = [PollFd::new(&input, PollFlags::IN), PollFd::new(refusals, PollFlags::IN)];
            poll(&mut on, None).map(|_| !on[0].revents().is_empty())
        };
        tell(refusals);
        // Nobody ever writes: it ends, or stays silent.
        if ready.unwrap_or_default() && !matches!(input.read(&mut [0]), Ok(1)) {
            return;
        }
    }
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    // Nobody listens any more: then nobody is to be told.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Kills every other process of this network namespace; what they start meanwhile, too.
fn end_all() {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let within = others();
        if within.is_empty() {
            return;
        }
        for pid in within {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn others() -> Vec<Pid> {
    let Ok(own) = fs::read_link("/proc/self/ns/net") else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = processes.filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok());
    pids.filter_map(Pid::from_raw)
        .filter(|pid| *pid != getpid())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|namespace| namespace == own))
        .collect()
}
