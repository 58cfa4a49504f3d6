//! A network namespace that nothing leaves, for a program that `tulle run` meshes: every address is the namespace's own, so
//! that every connection gets as far as the rules, and the rules lead it to a listener within.
//!
//! Speaks rtnetlink for what `ip link set lo up` and `ip route add local default dev lo` do. Called in the new namespace,
//! before anything else is; with the namespace everything goes that was done here.

use std::net::{Ipv6Addr, UdpSocket};

use rustix::io::Errno;

use super::netlink::{Writer, flag};
use super::{Error, encode, kernel, rules};

/// The loopback interface of every network namespace.
const LOOPBACK: u32 = 1;

/// Whether the namespace has a family of addresses besides IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enclosed {
    /// IPv6, which a kernel may lack.
    pub ipv6: bool,
}

/// Why a namespace cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[error("the kernel does not let us {what} in a network namespace of our own: {errno}")]
pub struct NotEnclosed {
    what: &'static str,
    errno: Errno,
}

/// Encloses the calling thread's network namespace, which must be new.
///
/// # Errors
/// What the kernel refuses.
pub fn enclose() -> Result<Enclosed, Error> {
    fn done<T>(what: &'static str, done: Result<T, Errno>) -> Result<T, NotEnclosed> {
        done.map_err(|errno| NotEnclosed { what, errno })
    }
    let routing = done("open a socket", kernel::socket(None))?;
    done("bring loopback up", kernel::ask(&routing, &up()))?;
    done("route IPv4 to loopback", kernel::ask(&routing, &route(2, 254, &[127, 0, 0, 1])))?;
    let ipv6 = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).is_ok();
    if ipv6 {
        let source = Ipv6Addr::LOCALHOST.octets();
        done("route IPv6 to loopback", kernel::ask(&routing, &route(10, 0, &source)))?;
    }
    kernel::commit(&encode::replace(&rules::enclosed()))?;
    Ok(Enclosed { ipv6 })
}

/// `ip link set lo up`
fn up() -> Vec<u8> {
    const NEW_LINK: u16 = 16;
    const UP: u32 = 1;
    let mut fixed = vec![0; 4];
    fixed.extend([LOOPBACK, UP, UP].iter().flat_map(|value| value.to_ne_bytes()));
    let mut writer = Writer::default();
    writer.message(NEW_LINK, flag::REQUEST | flag::ACK, 1, fixed, |_| {});
    writer.into_bytes()
}

/// `ip route add local default dev lo src <source>`: programs see themselves at a loopback address, so that an answer
/// to them is never taken for something that leaves.
fn route(family: u8, scope: u8, source: &[u8]) -> Vec<u8> {
    const NEW_ROUTE: u16 = 24;
    /// `RT_TABLE_LOCAL`, `RTPROT_STATIC`, `RTN_LOCAL`
    const TABLE: u8 = 255;
    const PROTOCOL: u8 = 4;
    const LOCAL: u8 = 2;
    let fixed = [family, 0, 0, 0, TABLE, PROTOCOL, scope, LOCAL, 0, 0, 0, 0];
    let mut writer = Writer::default();
    writer.message(NEW_ROUTE, flag::REQUEST | flag::ACK | flag::CREATE, 1, fixed, |writer| {
        writer.attribute(4, &LOOPBACK.to_ne_bytes());
        writer.attribute(7, source);
    });
    writer.into_bytes()
}
