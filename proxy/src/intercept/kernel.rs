//! Carries transactions to the kernel, and questions: one socket, one message, one answer. Decides nothing but what an errno means.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with,
};

use super::encode::{self, Transaction};
use super::netlink;
use super::survey::Found;

/// Why the kernel has not taken a transaction. It took nothing of it.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error(
        "the kernel does not let us change rules: grant CAP_NET_ADMIN (in Kubernetes `securityContext.capabilities.add: \
         [NET_ADMIN]`, in a shell root or `unshare -Urn`)"
    )]
    NotPermitted,
    #[error("the kernel has no nf_tables")]
    NoNfTables,
    #[error(
        "the rules are {0} bytes, more than the kernel takes at once; write fewer ports, subnets, users or groups, as ranges"
    )]
    TooLarge(usize),
    #[error("the kernel refuses {what}: {errno}{}", hint(*.errno))]
    Step { what: String, errno: Errno },
    #[error("cannot speak with the kernel's netfilter: {0}")]
    Socket(Errno),
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::OPNOTSUPP | Errno::INVAL => {
            "; it may lack a module (nft_redir, nft_fib_inet, nft_chain_nat, nf_nat, nft_log) that the host can load"
        }
        Errno::NOMEM | Errno::NOBUFS => "; there is too little memory",
        _ => "",
    }
}

/// Has the kernel carry out a transaction: all of it or nothing.
pub(super) fn commit(transaction: &Transaction) -> Result<(), Refused> {
    let socket = send(transaction)?;
    // The kernel has done it when `sendto` returns, and the answers lie there.
    let mut acknowledged = false;
    let mut buffer = vec![0; 64 << 10];
    loop {
        match recv(&socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((length, _)) => acknowledged |= read(&buffer[..length], &transaction.steps)?,
            Err(Errno::AGAIN) if acknowledged => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Refused::Socket(errno)),
        }
    }
}

/// A socket for a part of the kernel; `None` is routing.
pub(super) fn socket(protocol: Option<Protocol>) -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)
}

/// Asks for one thing that is to be acknowledged. What comes before the acknowledgement is left out.
pub(super) fn ask(socket: &OwnedFd, message: &[u8]) -> Result<(), Errno> {
    sendto(socket, message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
        match netlink::messages(&buffer[..length]).find_map(|message| message.error()) {
            Some(0) => return Ok(()),
            Some(error) => return Err(Errno::from_raw_os_error(error)),
            None => {}
        }
    }
}

/// Every chain that there is, of all tables.
pub(super) fn chains() -> Result<Vec<Found>, Refused> {
    let question = encode::list();
    let socket = send(&question)?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match recv(&socket, &mut buffer[..], RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(Refused::Socket(errno)),
        };
        read(&buffer[..length], &question.steps)?;
        for message in netlink::messages(&buffer[..length]) {
            if message.kind == netlink::DONE {
                return Ok(found);
            }
            found.extend(encode::chain(&message));
        }
    }
}

/// A socket to the kernel, with the answers to a transaction on it.
fn send(transaction: &Transaction) -> Result<OwnedFd, Refused> {
    let socket = socket(Some(NETFILTER)).map_err(|errno| match errno {
        Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => Refused::NoNfTables,
        errno => Refused::Socket(errno),
    })?;
    let kernel = SocketAddrNetlink::new(0, 0);
    sendto(&socket, &transaction.bytes, SendFlags::empty(), &kernel).map_err(|errno| match errno {
        Errno::MSGSIZE | Errno::NOBUFS => Refused::TooLarge(transaction.bytes.len()),
        Errno::PERM => Refused::NotPermitted,
        errno => Refused::Socket(errno),
    })?;
    Ok(socket)
}

/// Whether all is done, by what the kernel has answered.
fn read(bytes: &[u8], steps: &[String]) -> Result<bool, Refused> {
    let mut acknowledged = false;
    for message in netlink::messages(bytes) {
        let Some(error) = message.error() else { continue };
        if error == 0 {
            acknowledged = true;
            continue;
        }
        let errno = Errno::from_raw_os_error(error);
        let index = usize::try_from(message.sequence).unwrap_or(usize::MAX);
        return Err(match errno {
            Errno::PERM => Refused::NotPermitted,
            // Nobody takes transactions of this kind.
            Errno::OPNOTSUPP | Errno::INVAL if index == 0 => Refused::NoNfTables,
            errno => {
                let what = steps.get(index).map_or("the transaction", String::as_str).to_owned();
                Refused::Step { what, errno }
            }
        });
    }
    Ok(acknowledged)
}

#[cfg(test)]
mod tests {
    use super::super::netlink::{ERROR, Writer, netfilter};
    use super::*;

    /// What the kernel answers to the message `sequence`.
    fn answer(sequence: u32, errno: i32) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.message(ERROR, 0, sequence, netfilter(0, 0), |_| {});
        let mut bytes = writer.into_bytes();
        bytes[16..20].copy_from_slice(&(-errno).to_ne_bytes());
        bytes
    }

    fn steps() -> Vec<String> {
        ["the transaction", "the table", "the rule `udp dport 443 drop`"].map(str::to_owned).to_vec()
    }

    #[test]
    fn a_refusal_names_the_rule() {
        let text = read(&answer(2, 22), &steps()).unwrap_err().to_string();
        assert!(text.contains("udp dport 443 drop") && text.contains("nft_redir"), "{text}");
    }

    #[test]
    fn a_missing_capability_is_said() {
        let refused = read(&answer(0, 1), &steps()).unwrap_err();
        assert!(matches!(refused, Refused::NotPermitted) && refused.to_string().contains("CAP_NET_ADMIN"));
    }

    #[test]
    fn a_kernel_without_nf_tables_is_told_from_one_that_refuses_a_rule() {
        assert!(matches!(read(&answer(0, 95), &steps()), Err(Refused::NoNfTables)));
        assert!(matches!(read(&answer(1, 95), &steps()), Err(Refused::Step { .. })));
    }

    #[test]
    fn only_an_acknowledgement_is_success() {
        assert_eq!(read(&answer(2, 0), &steps()).ok(), Some(true));
        assert_eq!(read(&[], &steps()).ok(), Some(false));
        assert_eq!(read(&answer(2, 0)[..15], &steps()).ok(), Some(false));
    }
}
