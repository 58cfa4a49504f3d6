//! What the rules of an enclosed namespace refuse, as the kernel's packet log tells it (`linux/netfilter/nfnetlink_log.h`):
//! so that somebody can be told why their program waits in vain.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netlink::NETFILTER;
use rustix::net::{RecvFlags, recv};

use super::kernel;
use super::netlink::{Writer, attributes, flag, messages, netfilter};
use super::rules::REFUSED_GROUP;

/// `NFNL_SUBSYS_ULOG`
const SUBSYSTEM: u16 = 4;

/// Hears of what is refused in the network namespace that it was made in.
#[derive(Debug)]
pub struct Refusals {
    socket: OwnedFd,
    buffer: Vec<u8>,
}

/// A packet that went nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// As of `/etc/protocols`.
    pub protocol: u8,
    pub to: IpAddr,
    /// Of UDP.
    pub port: Option<u16>,
}

// === impl Refusals ===

impl Refusals {
    /// Listens, from now on.
    ///
    /// # Errors
    /// What the kernel says; `PERM` without CAP_NET_ADMIN.
    pub fn listen() -> Result<Self, Errno> {
        let socket = kernel::socket(Some(NETFILTER))?;
        kernel::ask(&socket, &bind())?;
        Ok(Self { socket, buffer: vec![0; 64 << 10] })
    }

    /// What was refused and not told yet, or some of it, without waiting.
    ///
    /// # Errors
    /// `AGAIN` if there is nothing; else what the kernel says, and some packets may be missing.
    pub fn read(&mut self) -> Result<Vec<Packet>, Errno> {
        let (length, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT)?;
        Ok(packets(&self.buffer[..length]))
    }
}

/// Readable when there is something.
impl AsFd for Refusals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Tells the kernel to send the beginning of each packet of the group, at once.
fn bind() -> Vec<u8> {
    const CONFIGURE: u16 = SUBSYSTEM << 8 | 1;
    const BIND: u8 = 1;
    const COPY_PACKET: u8 = 2;
    let mut writer = Writer::default();
    let fixed = netfilter(0, REFUSED_GROUP);
    writer.message(CONFIGURE, flag::REQUEST | flag::ACK, 1, fixed, |writer| {
        writer.attribute(1, &[BIND]);
        writer.attribute(2, &[0, 0, 0, 128, COPY_PACKET, 0]);
        writer.number(5, 1);
    });
    writer.into_bytes()
}

fn packets(bytes: &[u8]) -> Vec<Packet> {
    const PACKET: u16 = SUBSYSTEM << 8;
    const PAYLOAD: u16 = 9;
    let logged = messages(bytes).filter(|message| message.kind == PACKET);
    // After `struct nfgenmsg`.
    let attributes = logged.flat_map(|message| attributes(message.body.get(4..).unwrap_or_default()));
    attributes.filter(|(kind, _)| *kind == PAYLOAD).filter_map(|(_, packet)| Packet::read(packet)).collect()
}

// === impl Packet ===

impl Packet {
    const UDP: u8 = 17;

    /// From its first bytes (RFC 791 §3.1, RFC 8200 §3); extension headers of IPv6 hide a port.
    fn read(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let (protocol, to, transport) = if first >> 4 == 4 {
            let to: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
            (*bytes.get(9)?, IpAddr::from(Ipv4Addr::from(to)), usize::from(first & 0xf) * 4)
        } else {
            let to: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
            (*bytes.get(6)?, IpAddr::from(Ipv6Addr::from(to)), 40)
        };
        let port = bytes.get(transport + 2..transport + 4).and_then(|port| port.try_into().ok());
        let port = port.filter(|_| protocol == Self::UDP).map(u16::from_be_bytes);
        Some(Self { protocol, to, port })
    }
}

/// `UDP to 192.0.2.1:443`
impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.protocol {
            Self::UDP => write!(f, "UDP")?,
            1 | 58 => write!(f, "ICMP")?,
            other => write!(f, "IP protocol {other}")?,
        }
        match self.port {
            Some(port) => write!(f, " to {}", std::net::SocketAddr::new(self.to, port)),
            None => write!(f, " to {}", self.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(packet: &[u8]) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(SUBSYSTEM << 8, 0, 0, netfilter(2, REFUSED_GROUP), |writer| {
            writer.number(1, 7);
            writer.attribute(9, packet);
        });
        writer.into_bytes()
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        packets(bytes).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_packet_is_told_by_protocol_address_and_port() {
        let mut v4 = vec![0x46; 1];
        v4.resize(28, 0);
        (v4[9], v4[16], v4[19]) = (17, 192, 1);
        v4[26..28].copy_from_slice(&443_u16.to_be_bytes());
        assert_eq!(texts(&logged(&v4)), ["UDP to 192.0.0.1:443"]);
        v4[9] = 1;
        assert_eq!(texts(&logged(&v4)), ["ICMP to 192.0.0.1"]);
        let mut v6 = vec![0x60; 1];
        v6.resize(48, 0);
        (v6[6], v6[24], v6[39]) = (132, 0xfd, 9);
        assert_eq!(texts(&logged(&v6)), ["IP protocol 132 to fd00::9"]);
    }

    #[test]
    fn what_is_cut_short_is_left_out() {
        let mut packet = vec![0x45; 20];
        packet[9] = 17;
        let whole = logged(&packet);
        assert_eq!(texts(&whole), ["UDP to 69.69.69.69"]);
        for length in 0..whole.len() {
            let _ = texts(&whole[..length]);
        }
        assert!(texts(&logged(&packet[..19])).is_empty());
    }
}
