//! What each rule does to real packets: who is at the other end, the proxy's port or whom was dialled (R13).

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use tulle_tests::binary;
use tulle_tests::netns::{Namespace, in_a_node, shell};

/// Longer than anything here takes, unless nothing comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// A neighbour, and a way for it through this node to a network that the node does not have.
pub(crate) fn neighbour() -> Namespace {
    let other = Namespace::new();
    shell(&format!(
        "ip link add near type veth peer name eth0 netns {}; ip link set near up
         ip addr add 10.9.0.1/24 dev near; ip addr add fd09::1/64 dev near nodad",
        other.pid()
    ));
    other.shell(
        "ip link set eth0 up; ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0 nodad
         ip route add 10.99.0.0/24 via 10.9.0.1",
    );
    other
}

/// Listens on each port, and answers each connection with `name`, until the process ends.
pub(crate) fn answers(name: &'static str, ports: &[u16]) {
    for port in ports {
        let listener = TcpListener::bind(SocketAddr::from(([0_u16; 8], *port))).expect("a port");
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(name.as_bytes());
            }
        });
    }
}

/// Who answers at `to`.
pub(crate) fn who(to: &str, mark: Option<u32>) -> String {
    let to: SocketAddr = to.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).expect("a socket");
    if let Some(mark) = mark {
        socket.set_mark(mark).expect("may mark");
    }
    socket.connect_timeout(&to.into(), PATIENCE).unwrap_or_else(|error| panic!("{to}: {error}"));
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a socket");
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap_or_else(|error| panic!("{to}: {error}"));
    said
}

fn install(settings: &str) {
    let mut command = Command::new(binary("tulle-proxy"));
    command.args(["intercept", "install"]).args(settings.split_whitespace()).env_clear();
    let output = command.output().expect("tulle-proxy starts");
    assert!(output.status.success(), "{settings}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn r13_outbound_connections_are_led_as_configured() {
    in_a_node(async || {
        neighbour().enter(|| answers("other", &[80, 81, 15020]));
        answers("own", &[80]);
        answers("proxy", &[15001]);
        let (both, neither) = (["proxy"; 2], ["other"; 2]);
        for (settings, port, mark, expected) in [
            ("", 80, None, both),
            ("", 15020, None, neither),
            ("--proxy-uid=0", 80, None, neither),
            ("--proxy-mark=7", 80, None, both),
            ("--proxy-mark=7", 80, Some(7), neither),
            ("--proxy-mark=7", 80, Some(8), both),
            ("--skip-uids=1,0", 80, None, neither),
            ("--skip-uids=1", 80, None, both),
            ("--skip-gids=0", 80, None, neither),
            ("--skip-subnets=10.9.0.0/24", 80, None, ["other", "proxy"]),
            ("--skip-subnets=fd09::/64", 80, None, ["proxy", "other"]),
            ("--skip-subnets=10.8.0.0/16,10.9.0.2", 80, None, ["other", "proxy"]),
            ("--skip-subnets=10.9.0.0/31,fd09::/127", 80, None, both),
            ("--skip-outbound-ports=79-80", 80, None, neither),
            ("--skip-outbound-ports=79-80", 81, None, both),
            ("--only-outbound-ports=81,90-99", 80, None, neither),
            ("--only-outbound-ports=81,90-99", 81, None, both),
            ("--outbound-listen=none", 80, None, neither),
        ] {
            install(settings);
            let seen = ["10.9.0.2", "[fd09::2]"].map(|ip| who(&format!("{ip}:{port}"), mark));
            assert_eq!(seen, expected, "{settings} {port} {mark:?}");
            for own in ["127.0.0.1:80", "[::1]:80", "10.9.0.1:80", "[fd09::1]:80"] {
                assert_eq!(who(own, None), "own", "{settings}: {own}");
            }
        }
    });
}

#[test]
fn r13_inbound_connections_are_led_as_configured() {
    in_a_node(async || {
        let other = neighbour();
        answers("own", &[80, 81, 15020]);
        answers("proxy", &[15006]);
        for (settings, port, expected) in [
            ("", 80, "proxy"),
            ("", 15020, "own"),
            ("--skip-inbound-ports=79-80", 80, "own"),
            ("--skip-inbound-ports=79-80", 81, "proxy"),
            ("--only-inbound-ports=81", 80, "own"),
            ("--only-inbound-ports=81", 81, "proxy"),
            ("--inbound-listen=none", 80, "own"),
        ] {
            install(settings);
            for ip in ["10.9.0.1", "[fd09::1]"] {
                let seen = other.enter(|| who(&format!("{ip}:{port}"), None));
                assert_eq!(seen, expected, "{settings} {ip}:{port}");
            }
        }
    });
}

/// Else whoever is beside a pod could have its proxy dial for them.
#[test]
fn r13_what_is_not_for_the_pod_is_not_led_to_its_proxy() {
    in_a_node(async || {
        let other = neighbour();
        answers("proxy", &[15006]);
        install("");
        let to = SocketAddr::from(([10, 99, 0, 1], 80));
        let refused = other.enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)));
        assert!(refused.is_err(), "somebody answers for {to}");
        // Without that rule it would be.
        shell("nft insert rule inet tulle inbound tcp dport 80 redirect to :15006");
        assert_eq!(other.enter(|| who(&to.to_string(), None)), "proxy");
    });
}

#[test]
fn r13_queries_of_names_are_led_and_quic_is_dropped_on_request_only() {
    in_a_node(async || {
        let other = neighbour();
        let proxy = UdpSocket::bind("[::]:15053").expect("a port");
        answers("proxy", &[15053]);
        other.enter(|| answers("other", &[53]));
        let [dns, quic] =
            other.enter(|| [53, 443].map(|port| UdpSocket::bind(("::", port)).expect("a port")));
        let receives = |socket: &UdpSocket| {
            socket.set_read_timeout(Some(PATIENCE)).expect("a socket");
            let mut said = [0; 9];
            let (length, _) = socket.recv_from(&mut said).expect("something comes");
            String::from_utf8_lossy(&said[..length]).into_owned()
        };
        let sends = |to: &str, what: &str| {
            let any = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
            UdpSocket::bind(any).expect("a port").send_to(what.as_bytes(), to).map_err(|error| error.kind())
        };
        for ip in ["10.9.0.2", "[fd09::2]"] {
            install("--outbound-listen=none --dns=true --drop-quic=true");
            assert_eq!(who(&format!("{ip}:53"), None), "proxy");
            sends(&format!("{ip}:53"), "query").expect("may send");
            assert_eq!(receives(&proxy), "query");
            assert_eq!(sends(&format!("{ip}:443"), "hello"), Err(ErrorKind::PermissionDenied));
            install("");
            sends(&format!("{ip}:53"), "query").expect("may send");
            assert_eq!(receives(&dns), "query");
            sends(&format!("{ip}:443"), "hello").expect("may send");
            assert_eq!(receives(&quic), "hello");
        }
    });
}
