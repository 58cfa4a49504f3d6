//! `tulle run`: programs that know nothing of the mesh, in it, as ordinary users and as root.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use tulle_tests::netns::{has_users, in_a_node, shell};
use tulle_tests::{binary, copy_executable, eventually};

use crate::names::answers_names;

const YAML: &str = "\
apiVersion: policy.tulle.dev/v1alpha1
kind: Mesh
metadata: {name: mesh}
spec: {mtls: strict}
---
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: default}
spec:
  ports: [{name: http, port: 8080}]
";

/// A folder of YAML, and a user who runs programs in its mesh.
struct Mesh {
    folder: TempDir,
    user: Option<u32>,
}

/// Somebody who is not root, where there is anybody.
const NOBODY: u32 = 65534;

impl Mesh {
    /// For whoever runs the tests.
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("tulle-test-run.").tempdir().unwrap();
        // Others may not search where the binaries are built.
        copy_executable(&binary("tulle"), &folder.path().join("tulle"));
        fs::create_dir(folder.path().join("mesh")).unwrap();
        fs::write(folder.path().join("mesh/mesh.yaml"), YAML).unwrap();
        let mesh = Self { folder, user: None };
        for open in ["", "own"] {
            fs::create_dir_all(mesh.path(open)).unwrap();
            fs::set_permissions(mesh.path(open), Permissions::from_mode(0o777)).unwrap();
        }
        mesh
    }

    /// For an ordinary user: another one where there are others.
    fn of_an_ordinary_user() -> Self {
        let mesh = Self { user: has_users().then_some(NOBODY), ..Self::new() };
        if mesh.user.is_some() {
            let searchable = |path: &&Path| fs::metadata(path).unwrap().permissions().mode() & 0o001 != 0;
            let closed = mesh.folder.path().ancestors().skip(1).find(|path| !searchable(path));
            assert_eq!(closed, None, "TMPDIR must be where another user may go (chmod o+x)");
        }
        mesh
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `tulle` with these arguments; all its files are in the mesh's folder.
    fn tulle(&self, arguments: &[&str]) -> Command {
        let mut command = self.program(&self.path("tulle"));
        command.args(arguments);
        command
    }

    /// A program of the user's.
    fn program(&self, program: &Path) -> Command {
        let mut command = match self.user {
            Some(user) => {
                let mut command = Command::new("setpriv");
                let id = user.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command
            .current_dir(self.path("own"))
            .env("TMPDIR", self.path("own"))
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::null());
        command
    }

    /// A program in the mesh.
    fn command(&self, flags: &[&str], program: &[&str]) -> Command {
        let folder = self.path("mesh").display().to_string();
        let mut arguments = vec!["run", "--config-dir", &folder];
        arguments.extend(flags);
        arguments.push("--");
        arguments.extend(program);
        self.tulle(&arguments)
    }

    /// Runs a program to its end; `input` is what it reads.
    fn run(&self, flags: &[&str], program: &[&str], input: &str) -> Ended {
        let mut command = self.command(flags, program);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        Ended::of(child)
    }

    /// `orders`, that says its name to whoever calls it, on one loopback address.
    fn orders(&self, flags: &[&str], address: &str) -> Running {
        let port = address.rsplit_once(':').unwrap().1;
        let port = format!("8080:{port}");
        let flags = [&["--service", "orders", "--port", &port], flags].concat();
        let tulle = self.path("tulle").display().to_string();
        let program =
            [&tulle, "internal", "service", "--name", "orders", "--version", "v1", "--listen", address];
        Running(
            self.command(&flags, &program).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn().unwrap(),
        )
    }

    /// Waits until `orders` answers a program without knowledge of the mesh.
    async fn reaches_orders(&self) {
        eventually("orders is reached", async || {
            let ended = self.run(&[], &["curl", "-sS", "--fail", "http://orders:8080/cart"], "");
            let said: Value = serde_json::from_str(&ended.out).map_err(|_| format!("{ended:?}"))?;
            assert_eq!((&said["service"], &said["path"]), (&"orders".into(), &"/cart".into()));
            Ok(())
        })
        .await;
    }

    /// What there is in the folder for temporary files.
    fn left(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("own")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// Waits until no process of the mesh's is left.
    async fn is_gone(&self, network: Option<&str>) {
        eventually("everything is gone", async || {
            let ours: Vec<_> = processes()
                .filter(|process| {
                    let namespace = fs::read_link(process.join("ns/net"));
                    let command = fs::read(process.join("cmdline")).unwrap_or_default();
                    String::from_utf8_lossy(&command).contains(&*self.folder.path().to_string_lossy())
                        || network.is_some_and(|own| namespace.is_ok_and(|it| it == Path::new(own)))
                })
                .map(|process| fs::read_to_string(process.join("cmdline")))
                .collect();
            if ours.is_empty() { Ok(()) } else { Err(format!("{ours:?}")) }
        })
        .await;
    }
}

fn processes() -> impl Iterator<Item = PathBuf> {
    let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| path.file_name().unwrap().as_encoded_bytes().iter().all(u8::is_ascii_digit))
}

/// What a program came to.
#[derive(Debug)]
struct Ended {
    status: ExitStatus,
    out: String,
    err: String,
}

impl Ended {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Self { status: output.status, out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Is told to end when it is dropped, and waited for.
struct Running(Child);

impl Running {
    fn signal(&self, signal: &str) {
        shell(&format!("kill -s {signal} {}", self.0.id()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            self.signal("TERM");
        }
        let _ = self.0.wait();
    }
}

/// A program by name, in a strict mesh, with the identity that its caller sees.
async fn calls_orders(mesh: &Mesh, address: &str) {
    let orders = mesh.orders(&["--log-dir", "logs"], address);
    mesh.reaches_orders().await;
    drop(orders);
    let log = fs::read_to_string(mesh.path("own/logs/proxy.log")).unwrap();
    let records: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let is_from_curl = |record: &&Value| {
        record["tls"] == "mtls" && record["source"] == "spiffe://cluster.local/ns/default/sa/curl"
    };
    assert!(records.iter().any(|record| is_from_curl(&record)), "{log}");
    mesh.is_gone(None).await;
}

#[test]
fn run_lets_a_program_of_an_ordinary_user_call_a_service_over_mutual_tls() {
    in_a_node(async || calls_orders(&Mesh::of_an_ordinary_user(), "127.0.0.1:9000").await);
}

#[test]
fn run_lets_a_program_of_root_call_a_service_that_listens_on_ipv6_only() {
    in_a_node(async || calls_orders(&Mesh::new(), "[::1]:9000").await);
}

#[test]
fn run_passes_on_what_a_program_reads_writes_and_says_at_its_end() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let script = "cat; pwd; id -u; echo \"$0 $1 $KEPT\" >&2; exit 7";
        let mut command = mesh.command(&[], &["sh", "-c", script, "--two words", "-x"]);
        command.env("KEPT", "variable").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"input\n").unwrap();
        let ended = Ended::of(child);
        let user = mesh.user.unwrap_or_default();
        assert_eq!(ended.out, format!("input\n{}\n{user}\n", mesh.path("own").display()));
        assert_eq!(ended.err, "--two words -x variable\n");
        assert_eq!(ended.status.code(), Some(7));
        assert_eq!(mesh.run(&[], &["sh", "-c", "kill -9 $$"], "").status.code(), Some(137));
        mesh.is_gone(None).await;
        assert_eq!(mesh.left(), [format!("tulle-{user}")], "only the mesh's keys stay");
    });
}

#[test]
fn run_leaves_files_as_its_user_makes_them_and_denies_what_its_user_may_not() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let ended = mesh.run(&[], &["sh", "-c", "touch made; cat /etc/shadow"], "");
        let made = fs::metadata(mesh.path("own/made")).unwrap();
        assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), mesh.user.unwrap_or_default());
        if mesh.user.is_some() {
            assert!(ended.err.contains("Permission denied"), "{ended:?}");
        }
    });
}

#[test]
fn run_passes_signals_on_and_ends_when_the_program_does() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let script =
            "trap 'echo told; exit 9' TERM; trap 'echo hup' HUP; echo up; while :; do sleep 0.05; done";
        let mut command = mesh.command(&[], &["sh", "-c", script]);
        let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut out = child.0.stdout.take().unwrap();
        let mut says = |what: &str| {
            let mut said = vec![0; what.len()];
            out.read_exact(&mut said).unwrap();
            assert_eq!(String::from_utf8_lossy(&said), what);
        };
        says("up\n");
        child.signal("HUP");
        says("hup\n");
        child.signal("TERM");
        says("told\n");
        assert_eq!(child.0.wait().unwrap().code(), Some(9));
        mesh.is_gone(None).await;
    });
}

/// Ctrl-C, Ctrl-Z and `fg`, a program that stops itself, a shell with jobs of its own, the window's size.
#[test]
fn run_is_at_a_terminal_what_the_program_is() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let script = mesh.path("terminal.py");
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/terminal.py"), &script).unwrap();
        // A shell that has let its privileges go finds the Python that the user may run.
        let mut command = mesh.program(Path::new("sh"));
        command.args(["-c", "exec python3 \"$@\"", "sh"]).arg(script);
        command.arg(mesh.path("tulle")).args(["run", "--config-dir"]).arg(mesh.path("mesh"));
        let ended = Ended::of(command.arg("--").stderr(Stdio::piped()).spawn().unwrap());
        assert!(ended.status.success(), "{}", ended.err);
        mesh.is_gone(None).await;
    });
}

/// Also what the program has started, and left behind.
#[test]
fn run_leaves_nothing_when_it_ends_or_is_killed() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let script = "setsid sleep 1000 >/dev/null & readlink /proc/self/ns/net";
        let ended = mesh.run(&[], &["sh", "-c", script], "");
        mesh.is_gone(Some(ended.out.trim())).await;
        let script = format!("{script}; while :; do sleep 1; done");
        let mut command = mesh.command(&[], &["sh", "-c", &script]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut network = String::new();
        let out = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut network).unwrap();
        assert!(network.starts_with("net:["), "{network}");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        mesh.is_gone(Some(network.trim())).await;
        // Files stay until the next comes.
        assert!(mesh.left().iter().any(|name| name.starts_with("tulle-run-")), "{:?}", mesh.left());
        mesh.run(&[], &["true"], "");
        assert_eq!(mesh.left(), [format!("tulle-{}", mesh.user.unwrap_or_default())]);
    });
}

#[test]
fn run_killed_at_any_moment_of_its_start_leaves_nothing() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        for milliseconds in [1, 5, 10, 20, 40, 80, 160, 320] {
            let mut child = mesh.command(&[], &["sleep", "1000"]).spawn().unwrap();
            // Not for anything to have happened: for the moments to differ.
            std::thread::sleep(Duration::from_millis(milliseconds));
            child.kill().unwrap();
            child.wait().unwrap();
            mesh.is_gone(None).await;
        }
    });
}

/// Who is left carries the control plane on.
#[test]
fn run_starts_the_control_plane_again_that_ended_with_another() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let mut first = mesh.command(&[], &["sleep", "1000"]).spawn().unwrap();
        let _orders = {
            mesh.run(&[], &["true"], "");
            mesh.orders(&[], "127.0.0.1:9000")
        };
        mesh.reaches_orders().await;
        first.kill().unwrap();
        first.wait().unwrap();
        mesh.reaches_orders().await;
    });
}

#[test]
fn run_lets_a_program_reach_what_is_outside_the_mesh_by_address_and_by_name() {
    in_a_node(async || {
        let outside = Ipv4Addr::new(10, 9, 9, 9);
        let resolver = fs::read_to_string("/etc/resolv.conf").unwrap();
        let server =
            resolver.lines().find_map(|line| line.strip_prefix("nameserver ")).expect("a name server");
        shell(&format!("ip addr add {outside}/32 dev lo; ip addr add {server} dev lo || true"));
        let _names = answers_names(UdpSocket::bind("[::]:53").unwrap(), outside.octets());
        let listener = TcpListener::bind((outside, 80)).unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 7\r\n\r\noutside");
            }
        });
        let mesh = Mesh::of_an_ordinary_user();
        for url in ["http://10.9.9.9", "http://shop.example"] {
            let curl = ["curl", "-sS", "--max-time", "20", url];
            let mut command = mesh.command(&[], &curl);
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            // The name server answers on this thread.
            let ended = async || child.try_wait().unwrap().map(drop).ok_or_else(|| "it runs".to_owned());
            eventually("curl ends", ended).await;
            let ended = Ended::of(child);
            assert_eq!(ended.out, "outside", "{url}: {ended:?}");
        }
    });
}

#[test]
fn run_refuses_all_but_tcp_and_names_and_says_so() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        // bash sends a datagram for each line.
        let script = "echo x >/dev/udp/192.0.2.1/443; echo x >/dev/udp/192.0.2.1/443; echo x >'/dev/udp/2001:db8::1/123'";
        let ended = mesh.run(&[], &["bash", "-c", script], "");
        let told: Vec<_> = ended.err.lines().filter(|line| line.starts_with("tulle: refused ")).collect();
        assert_eq!(told.len(), 2, "{ended:?}");
        assert!(told[0].contains("UDP to 192.0.2.1:443: only TCP"), "{told:?}");
        assert!(told[1].contains("UDP to [2001:db8::1]:123: only TCP"), "{told:?}");
        assert!(ended.err.contains("Operation not permitted"), "{ended:?}");
        // The program's own is its own.
        let ended = mesh.run(&[], &["bash", "-c", "echo x >/dev/udp/127.0.0.1/443; exit 0"], "");
        assert_eq!(ended.err, "");
    });
}

/// Of a program without privileges, which `ping` is on most systems.
#[test]
fn run_refuses_icmp_and_says_so() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let script = "import socket
for family, protocol, request, to in [
    (socket.AF_INET, socket.IPPROTO_ICMP, 8, '192.0.2.1'),
    (socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, '2001:db8::1'),
    (socket.AF_INET, socket.IPPROTO_ICMP, 8, '127.0.0.1'),
]:
    ping = socket.socket(family, socket.SOCK_DGRAM, protocol)
    try:
        ping.sendto(bytes([request]) + bytes(7), (to, 0))
    except PermissionError as error:
        print(to, error.errno)
print(ping.recv(1) == bytes([0]))";
        let ended = mesh.run(&[], &["python3", "-c", script], "");
        // The kernel tells the sender in IPv4 only; the program's own is its own.
        assert_eq!(ended.out, "192.0.2.1 1\nTrue\n", "{ended:?}");
        let refused = |to: &str| {
            format!("tulle: refused ICMP to {to}: only TCP and questions about names leave `tulle run`\n")
        };
        assert_eq!(ended.err, refused("192.0.2.1") + &refused("2001:db8::1"), "{ended:?}");
    });
}

#[test]
fn run_says_what_is_wrong_and_what_to_do_and_leaves_nothing() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let folder = mesh.path("mesh").display().to_string();
        let (state, token) = (mesh.path("own/state").display().to_string(), mesh.path("own/token"));
        // Makes the keys.
        assert!(mesh.run(&["--state-dir", &state], &["true"], "").status.success());
        let token = token.display().to_string();
        let make = ["token", "create", "--state-dir", &state, "--workload-identity", "default/web"];
        let make = [&make[..], &["--lifetime", "1ms", "--out", &token]].concat();
        assert!(mesh.tulle(&make).status().unwrap().success());
        std::thread::sleep(Duration::from_millis(2));
        fs::write(mesh.path("own/data"), "no program").unwrap();
        let here = ["run", "--config-dir", &folder];
        let there = ["run", "--control-plane", "127.0.0.1:1", "--token", &token];
        for (arguments, status, words) in [
            (
                [&here[..], &["--", "no-such-program"]].concat(),
                127,
                "no-such-program: there is no such program",
            ),
            ([&here[..], &["--", "./data"]].concat(), 126, "chmod +x"),
            ([&here[..], &["--service", "billing", "--port", "80", "--", "true"]].concat(), 125, "billing"),
            ([&here[..], &["--service", "orders", "--port", "81", "--", "true"]].concat(), 125, "orders"),
            (
                [&here[..], &["--service", "orders", "--port", "15001", "--", "true"]].concat(),
                2,
                "the proxy's",
            ),
            ([&here[..], &["--service", "orders", "--", "true"]].concat(), 2, "--port"),
            (vec!["run", "--config-dir", "nowhere", "--", "true"], 125, "nowhere"),
            (vec!["run", "--", "true"], 2, "--config-dir"),
            ([&there[..], &["--", "true"]].concat(), 125, "tulle token create"),
            (vec!["run", "--control-plane", "127.0.0.1:1", "--token", "none", "--", "true"], 125, "none"),
        ] {
            let child = mesh.tulle(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let ended = Ended::of(child);
            assert_eq!(ended.status.code(), Some(status), "{arguments:?}: {ended:?}");
            assert!(ended.err.contains(words) && ended.out.is_empty(), "{arguments:?}: {ended:?}");
            mesh.is_gone(None).await;
        }
    });
}

#[test]
fn run_says_that_a_port_to_listen_on_is_in_use() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let flags = ["--service", "orders", "--port", "8080", "--listen", &address];
        let ended = mesh.run(&flags, &["true"], "");
        assert_eq!(ended.status.code(), Some(125), "{ended:?}");
        assert!(
            ended.err.contains(&address) && ended.err.contains("another program has the port"),
            "{ended:?}"
        );
        mesh.is_gone(None).await;
    });
}

#[test]
fn run_says_what_to_do_where_namespaces_are_forbidden() {
    in_a_node(async || {
        let mesh = Mesh::new();
        let folder = mesh.path("mesh");
        let script =
            "echo 0 > /proc/sys/user/max_net_namespaces; exec \"$0\" run --config-dir \"$1\" -- true";
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c", script]).arg(mesh.path("tulle")).arg(&folder);
        command.env("TMPDIR", mesh.path("own")).env_remove("XDG_RUNTIME_DIR");
        let ended = Ended::of(command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
        assert_eq!(ended.status.code(), Some(125), "{ended:?}");
        assert!(ended.err.contains("sysctl user.max_user_namespaces"), "{ended:?}");
        mesh.is_gone(None).await;
    });
}

/// The demo's verdict on three seconds, and what it said of itself.
fn demo(mesh: &Mesh, command: &mut Command) -> (Value, String) {
    // So many that one of ten goes to the tenth: it is all but sure that some do.
    command.args(["demo", "--for", "3s", "--rps", "50", "--output", "json"]).env("TMPDIR", mesh.path("own"));
    let ended = Ended::of(command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    assert!(ended.status.success(), "{ended:?}");
    (serde_json::from_str(&ended.out).unwrap(), ended.err)
}

#[test]
fn run_is_how_the_demo_starts_its_services() {
    in_a_node(async || {
        let mesh = Mesh::of_an_ordinary_user();
        let (report, said) = demo(&mesh, &mut mesh.tulle(&[]));
        assert_eq!(report["edges"].as_array().map(Vec::len), Some(3), "{report}");
        assert_eq!(said, "");
        mesh.is_gone(None).await;
    });
}

#[test]
fn run_is_done_without_by_the_demo_where_namespaces_are_forbidden() {
    in_a_node(async || {
        let mesh = Mesh::new();
        let script = "echo 0 > /proc/sys/user/max_net_namespaces; exec \"$0\" \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["-Ur", "sh", "-c", script]).arg(mesh.path("tulle"));
        let (report, said) = demo(&mesh, &mut command);
        assert_eq!(report["edges"].as_array().map(Vec::len), Some(3), "{report}");
        assert!(said.contains("explicit ports, since the kernel does not let this user"), "{said}");
        mesh.is_gone(None).await;
    });
}
