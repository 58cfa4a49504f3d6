//! Whether connections are led to the proxy, by making some (R13): a pod whose rules are missing must not start.
//!
//! Listens where the proxy will, dials addresses that nobody has, and sees who answers. Runs before the proxy does, as a
//! user whose connections are intercepted. Of the way in it sees only that the rules are there, where it may. A family without a route is left out; with none left, the check fails.

use std::io::{self, ErrorKind, Read as _, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;

use super::rules::{Hook, rules};
use super::survey::{self, Found};
use super::{Refused, TABLE, iptables};
use crate::accept;
use crate::config::{Config, DNS_PORT, RESERVED_PORTS};

/// Why the check does not pass.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    #[error(
        "{what} to {to} did not come to port {port} ({why}): connections are not intercepted. Has `tulle-proxy intercept install` \
         run in this network namespace, with the same settings, and has nothing flushed the table `inet tulle` since?"
    )]
    NotRedirected { what: &'static str, to: SocketAddr, port: u16, why: String },
    #[error(
        "cannot listen on port {port}: {source}; the check runs before the proxy does, and needs the port for itself"
    )]
    Listen { port: u16, source: io::Error },
    #[error(
        "the check runs as user {0}, the proxy's, whose connections are not intercepted: run it as another user"
    )]
    AsProxy(u32),
    #[error(
        "{0}: connections to the application are not intercepted. Has `tulle-proxy intercept install` run in this network namespace, \
         with the same settings, and has nothing flushed the rules since?"
    )]
    Inbound(String),
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(
        "nothing could be checked: {0}; a pod without a route cannot show that its connections are intercepted"
    )]
    Nothing(String),
    #[error("cannot write to standard output: {0}")]
    Output(#[from] io::Error),
}

/// How long a redirected connection may take: it does not leave the machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// Addresses that nobody has (RFC 5737, RFC 3849).
const NOBODY: [&str; 6] =
    ["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "2001:db8:1::1", "2001:db8:2::1"];

/// Opens a connection of each kind that should be intercepted.
///
/// # Errors
/// The first that is not.
pub(super) fn check(config: &Config, out: &mut impl Write) -> Result<(), Missing> {
    let uid = rustix::process::geteuid().as_raw();
    if config.intercept.proxy_mark.is_none() && uid == config.intercept.proxy_uid {
        return Err(Missing::AsProxy(uid));
    }
    inbound(config, out)?;
    let mut checked = 0;
    let mut left_out = Vec::new();
    for v6 in [false, true] {
        let family = if v6 { "IPv6" } else { "IPv4" };
        let Some(ip) = probe_address(config, v6) else {
            left_out.push(format!("every {family} address is skipped"));
            continue;
        };
        let mut results = Vec::new();
        if let Some(port) = config.outbound_listen.first().map(SocketAddr::port) {
            let to = SocketAddr::new(ip, probe_port(config));
            results.push(("a connection", tcp("a connection", to, port)?));
        }
        if config.intercept.dns {
            let to = SocketAddr::new(ip, 53);
            results.push(("DNS over UDP", udp(to)?));
            results.push(("DNS over TCP", tcp("DNS over TCP", to, DNS_PORT)?));
        }
        if results.is_empty() {
            left_out.push(format!("{family}: there is no outbound listener"));
        }
        for (what, result) in results {
            match result {
                Seen::Redirected => {
                    checked += 1;
                    writeln!(out, "{family}: {what} leads to the proxy")?;
                }
                Seen::NoRoute(error) => {
                    writeln!(out, "{family}: not checked: {error}")?;
                    left_out.push(format!("{family}: {error}"));
                    break;
                }
            }
        }
    }
    if checked == 0 {
        return Err(Missing::Nothing(left_out.join(", ")));
    }
    Ok(())
}

/// Nobody can dial into its own pod from outside: what can be seen is that the rules are there, by who may look.
fn inbound(config: &Config, out: &mut impl Write) -> Result<(), Missing> {
    let rules = rules(config);
    let Some(wanted) = rules.chains.iter().find(|chain| chain.hook == Hook::Prerouting) else {
        return Ok(());
    };
    let chains = match survey::chains() {
        Ok(chains) => chains,
        Err(Refused::NotPermitted) => {
            writeln!(out, "inbound: not checked: to see the rules takes CAP_NET_ADMIN")?;
            return Ok(());
        }
        Err(refused) => return Err(refused.into()),
    };
    if let Some(stranger) = survey::stranger(&chains) {
        writeln!(out, "beside ours: {stranger}")?;
    }
    let table = format!("the table `inet {TABLE}`");
    let by_iptables = iptables::own_name(wanted.name);
    let ours =
        |found: &&Found| (found.place == table && found.name == wanted.name) || found.name == by_iptables;
    let mut ours = chains.iter().filter(ours).peekable();
    if ours.peek().is_none() {
        return Err(Missing::Inbound(format!("there is no chain `{}` in {table}", wanted.name)));
    }
    for found in ours {
        let Found { place, name, rules, asked } = found;
        if !asked || *rules != wanted.rules.len() {
            let are = format!("{rules} rules in the chain `{name}` of {place}");
            return Err(Missing::Inbound(format!("there are {are}, not {}", wanted.rules.len())));
        }
        writeln!(out, "inbound: {rules} rules are in force in {place}")?;
    }
    Ok(())
}

enum Seen {
    Redirected,
    /// The kernel knows no way, and asks no rule.
    NoRoute(io::Error),
}

fn probe_address(config: &Config, v6: bool) -> Option<IpAddr> {
    let candidates = NOBODY.iter().filter_map(|text| text.parse::<IpAddr>().ok());
    candidates
        .filter(|ip| ip.is_ipv6() == v6)
        .find(|ip| !config.intercept.skip_subnets.iter().any(|subnet| subnet.contains(ip)))
}

/// A port that the rules do not leave out.
fn probe_port(config: &Config) -> u16 {
    let intercept = &config.intercept;
    let left_out = |port: &u16| {
        RESERVED_PORTS.contains(port)
            || intercept.skip_outbound_ports.contains(*port)
            || (intercept.dns && *port == 53)
    };
    let only = intercept.only_outbound_ports.ranges().flatten();
    only.chain(80..=u16::MAX).find(|port| !left_out(port)).unwrap_or(80)
}

fn is_no_route(error: &io::Error) -> bool {
    let kinds = [ErrorKind::NetworkUnreachable, ErrorKind::HostUnreachable, ErrorKind::AddrNotAvailable];
    kinds.contains(&error.kind()) || accept::is_no_family(error)
}

/// Listens on every address of the family.
fn any(ip: IpAddr, port: u16) -> SocketAddr {
    match ip {
        IpAddr::V4(_) => SocketAddr::from(([0, 0, 0, 0], port)),
        IpAddr::V6(_) => SocketAddr::from(([0_u16; 8], port)),
    }
}

fn tcp(what: &'static str, to: SocketAddr, port: u16) -> Result<Seen, Missing> {
    let missing = |why: String| Missing::NotRedirected { what, to, port, why };
    let listener = accept::bind(any(to.ip(), port), 1, 16, "check")
        .map_err(io::Error::from)
        .and_then(|mut sockets| sockets.pop().ok_or_else(|| io::Error::other("no socket")));
    let listener = match listener {
        Ok(listener) => listener,
        Err(source) => return Err(Missing::Listen { port, source }),
    };
    let client = match TcpStream::connect_timeout(&to, PATIENCE) {
        Ok(client) => client,
        Err(error) if is_no_route(&error) => return Ok(Seen::NoRoute(error)),
        Err(error) => return Err(missing(error.to_string())),
    };
    let server = accept_within(&listener).map_err(|error| missing(error.to_string()))?;
    let known = match to {
        SocketAddr::V4(_) => SockRef::from(&server).original_dst_v4(),
        SocketAddr::V6(_) => SockRef::from(&server).original_dst_v6(),
    };
    let known = known.map_err(|error| missing(error.to_string()))?.as_socket();
    if known != Some(to) {
        return Err(missing(format!("another connection came, to {known:?}")));
    }
    // Somebody else may answer to the address that we dialled: what we say here must come out there.
    let token: [u8; 16] = rand::random();
    let said = (|| {
        let (mut server, mut client, mut read) = (server, client, [0; 16]);
        server.write_all(&token)?;
        client.set_read_timeout(Some(PATIENCE))?;
        client.read_exact(&mut read)?;
        Ok::<_, io::Error>(read)
    })();
    match said {
        Ok(read) if read == token => Ok(Seen::Redirected),
        Ok(_) => Err(missing("somebody else answered".to_owned())),
        Err(error) => Err(missing(error.to_string())),
    }
}

fn accept_within(listener: &TcpListener) -> io::Result<TcpStream> {
    let patience = Timespec::try_from(PATIENCE).map_err(io::Error::other)?;
    if poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&patience))? == 0 {
        return Err(io::Error::new(ErrorKind::TimedOut, "somebody else took it"));
    }
    let (stream, _) = listener.accept()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn udp(to: SocketAddr) -> Result<Seen, Missing> {
    let what = "DNS over UDP";
    let missing = |why: String| Missing::NotRedirected { what, to, port: DNS_PORT, why };
    let server = match UdpSocket::bind(any(to.ip(), DNS_PORT)) {
        Ok(server) => server,
        Err(error) if accept::is_no_family(&error) => return Ok(Seen::NoRoute(error)),
        Err(source) => return Err(Missing::Listen { port: DNS_PORT, source }),
    };
    let token: [u8; 16] = rand::random();
    let sent = UdpSocket::bind(any(to.ip(), 0)).and_then(|client| client.send_to(&token, to));
    match sent {
        Ok(_) => {}
        Err(error) if is_no_route(&error) => return Ok(Seen::NoRoute(error)),
        Err(error) => return Err(missing(error.to_string())),
    }
    let mut read = [0; 64];
    let received = server.set_read_timeout(Some(PATIENCE)).and_then(|()| server.recv(&mut read));
    match received {
        Ok(length) if read[..length] == token => Ok(Seen::Redirected),
        Ok(_) => Err(missing("something else came".to_owned())),
        Err(error) => Err(missing(error.to_string())),
    }
}
