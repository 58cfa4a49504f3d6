//! Network namespaces: each test gets a machine's worth of network of its own.
//!
//! [`in_a_node`] runs a test on a thread that has moved into a new namespace. Programs that the thread starts are in it,
//! and sockets that it opens; [`Namespace::enter`] moves it into another for as long as a closure takes. Works as root
//! and, where the kernel lets users make namespaces, as anybody: [`as_an_ordinary_user`] runs a test program's tests so.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpSocket;

use crate::load::Dial;

/// A network namespace with its loopback interface up. It goes when dropped.
#[derive(Debug)]
pub struct Namespace {
    /// Stays in it, so that it stays.
    holder: Child,
    entrance: Arc<File>,
}

/// Set where tests run in a user namespace.
const IN_USER_NAMESPACE: &str = "TULLE_TEST_IN_USER_NAMESPACE";

/// The programs that tests in namespaces need, and Debian's packages that have them.
const PROGRAMS: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("iptables-legacy-restore", "iptables"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
];

/// Runs `test` in a new namespace, on a thread and runtime of its own; says loudly that it did not where it cannot.
///
/// # Panics
/// As the test does; and with `CI` set, where it cannot run.
pub fn in_a_node<F>(test: impl FnOnce() -> F + Send)
where
    F: Future<Output = ()>,
{
    if let Err(why) = possible() {
        return refused(&why);
    }
    let namespace = Namespace::new();
    std::thread::scope(|scope| {
        let body = || {
            namespace.move_in();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(test());
        };
        let ended = scope.spawn(body).join();
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Runs all other tests of the calling program in a user namespace with only one user, as somebody without privileges
/// does.
///
/// # Panics
/// If one fails; and with `CI` set, where the kernel does not allow it.
pub fn as_an_ordinary_user() {
    if std::env::var_os(IN_USER_NAMESPACE).is_some() {
        return;
    }
    let tried = Command::new("unshare").args(["-Urn", "true"]).output();
    let tried = tried.map_err(|error| format!("unshare: {error}"));
    match tried {
        Ok(output) if output.status.success() => {}
        Ok(output) => return refused(&String::from_utf8_lossy(&output.stderr)),
        Err(error) => return refused(&error),
    }
    let program = std::env::current_exe().expect("the test program");
    let output = Command::new("unshare")
        .arg("-Ur")
        .arg(program)
        .args(["--test-threads", "2"])
        .env(IN_USER_NAMESPACE, "1")
        .output()
        .expect("unshare starts");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "in a user namespace:\n{said}");
    println!("{said}");
}

/// Whether there is more than one user: rules can tell the proxy by its user only then.
pub fn has_users() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace()
        .nth(2)
        .and_then(|count| count.parse::<u32>().ok())
        .is_some_and(|count| count > 65536)
}

fn possible() -> Result<(), String> {
    for (program, package) in PROGRAMS {
        let found =
            Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        found
            .map_err(|error| format!("{program} does not start ({error}); it is in the package {package}"))?;
    }
    if !rustix::process::geteuid().is_root() {
        return Err("not root; `as_an_ordinary_user` runs this test in a user namespace".to_owned());
    }
    let tried = Command::new("unshare").args(["-n", "true"]).output().map_err(|error| error.to_string())?;
    if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).into_owned()) }
}

fn refused(why: &str) {
    let ordinary = !rustix::process::geteuid().is_root();
    eprintln!("\n*** NOTHING WAS TESTED: no network namespaces here: {}\n", why.trim());
    assert!(
        std::env::var_os("CI").is_none() || ordinary,
        "CI must be able to make network namespaces: {why}"
    );
}

// === impl Namespace ===

impl Namespace {
    /// A new one.
    ///
    /// # Panics
    /// If the kernel refuses.
    #[expect(clippy::new_without_default, reason = "a default makes no namespace")]
    pub fn new() -> Self {
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-ec", "ip link set lo up; echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut up = [0; 3];
        holder.stdout.as_mut().expect("a pipe").read_exact(&mut up).expect("a network namespace");
        let entrance = File::open(format!("/proc/{}/ns/net", holder.id())).expect("its entrance");
        Self { holder, entrance: Arc::new(entrance) }
    }

    /// A process in it.
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// Moves the calling thread into it for as long as `body` takes.
    pub fn enter<R>(&self, body: impl FnOnce() -> R) -> R {
        visit(&self.entrance, body)
    }

    /// Whom a program in it dials by `to`; it stays for as long as somebody may.
    pub fn dial(&self, to: SocketAddr) -> Dial {
        let entrance = Arc::clone(&self.entrance);
        let new = if to.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        // A socket is where it was made.
        Dial::new(to, move || visit(&entrance, new))
    }

    fn move_in(&self) {
        move_to(&self.entrance);
    }

    /// Runs a line of shell in it.
    ///
    /// # Panics
    /// If it fails.
    pub fn shell(&self, line: &str) -> String {
        self.enter(|| shell(line))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Moves the calling thread into a namespace for as long as `body` takes.
fn visit<R>(namespace: &File, body: impl FnOnce() -> R) -> R {
    let home = File::open("/proc/thread-self/ns/net").expect("where we are");
    move_to(namespace);
    let result = body();
    move_to(&home);
    result
}

fn move_to(namespace: &File) {
    move_into_link_name_space(std::os::fd::AsFd::as_fd(namespace), Some(LinkNameSpaceType::Network))
        .expect("may move into a network namespace of ours");
}

/// Runs a line of shell where the calling thread is, and says what it wrote.
///
/// # Panics
/// If it fails.
pub fn shell(line: &str) -> String {
    let output = Command::new("sh").args(["-ec", line]).stdin(Stdio::null()).output().expect("a shell");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {}: {error}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
