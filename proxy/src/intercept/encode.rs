//! The rules as one transaction of nf_tables (`linux/netfilter/nf_tables.h`): what was there before goes, what is asked for
//! comes, or nothing changes. Pure.

use std::net::IpAddr;

use ipnet::IpNet;

use super::TABLE;
use super::netlink::{Message, Writer, attributes, flag, netfilter};
use super::rules::{Action, Chain, Hook, Kind, Match, REFUSED_GROUP, Rule, Ruleset, Transport};
use super::survey::Found;

/// Bytes for the kernel, and what each of their messages is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Transaction {
    pub(super) bytes: Vec<u8>,
    /// By sequence number.
    pub(super) steps: Vec<String>,
}

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;

/// `NFPROTO_INET`: IPv4 and IPv6.
const INET: [u8; 4] = netfilter(1, 0);
/// Of a batch: for whom it is.
const BATCH: [u8; 4] = netfilter(0, SUBSYSTEM);

/// `enum nf_tables_msg_types`
mod message {
    pub(super) const NEW_TABLE: u16 = 0;
    pub(super) const DELETE_TABLE: u16 = 2;
    pub(super) const NEW_CHAIN: u16 = 3;
    pub(super) const GET_CHAIN: u16 = 4;
    pub(super) const NEW_RULE: u16 = 6;
}

/// The one register that rules need (`NFT_REG_1`), and that of verdicts.
const REGISTER: u32 = 1;
const VERDICT: u32 = 0;

/// Replaces our table by these rules.
pub(super) fn replace(rules: &Ruleset) -> Transaction {
    let mut steps = vec![Step::NewTable, Step::DeleteTable, Step::NewTable];
    for chain in &rules.chains {
        steps.push(Step::Chain(chain));
        steps.extend(chain.rules.iter().map(|rule| Step::Rule(chain, rule)));
    }
    transaction(&steps)
}

/// Removes our table, if it is there.
pub(super) fn remove() -> Transaction {
    // Deleting what is not there would be refused: it is made first.
    transaction(&[Step::NewTable, Step::DeleteTable])
}

/// Asks for every chain of every table.
pub(super) fn list() -> Transaction {
    let mut writer = Writer::default();
    let all = netfilter(0, 0);
    writer.message(SUBSYSTEM << 8 | message::GET_CHAIN, flag::REQUEST | flag::DUMP, 0, all, |_| {});
    Transaction { bytes: writer.into_bytes(), steps: vec!["the question which chains there are".to_owned()] }
}

/// The chain that a message of the answer to [`list`] tells of (`enum nft_chain_attributes`).
pub(super) fn chain(message: &Message<'_>) -> Option<Found> {
    if message.kind != SUBSYSTEM << 8 | message::NEW_CHAIN {
        return None;
    }
    let (family, body) = (message.body.first()?, message.body.get(4..)?);
    let family = match family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "",
    };
    let value = |kind| attributes(body).find_map(|(found, value)| (found == kind).then_some(value));
    let text = |kind| {
        let bytes = value(kind)?;
        Some(String::from_utf8_lossy(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into_owned())
    };
    let used = value(6).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_be_bytes);
    Some(Found {
        place: format!("the table `{family} {}`", text(1)?),
        name: text(3)?,
        rules: usize::try_from(used).unwrap_or(usize::MAX),
        asked: value(4).is_some(),
    })
}

enum Step<'a> {
    NewTable,
    DeleteTable,
    Chain(&'a Chain),
    Rule(&'a Chain, &'a Rule),
}

fn transaction(steps: &[Step<'_>]) -> Transaction {
    let mut writer = Writer::default();
    let mut names = vec!["the transaction".to_owned()];
    let mut sequence = 0;
    writer.message(BATCH_BEGIN, flag::REQUEST, sequence, BATCH, |_| {});
    for (index, step) in steps.iter().enumerate() {
        sequence += 1;
        // One acknowledgement for all: with many, the kernel could run out of room for them.
        let ack = if index + 1 == steps.len() { flag::ACK } else { 0 };
        let (kind, flags) = match step {
            Step::NewTable => (message::NEW_TABLE, flag::CREATE),
            Step::DeleteTable => (message::DELETE_TABLE, 0),
            Step::Chain(_) => (message::NEW_CHAIN, flag::CREATE),
            Step::Rule(..) => (message::NEW_RULE, flag::CREATE | flag::APPEND),
        };
        let kind = SUBSYSTEM << 8 | kind;
        writer.message(kind, flag::REQUEST | flags | ack, sequence, INET, |writer| step.write(writer));
        names.push(step.name());
    }
    writer.message(BATCH_END, flag::REQUEST, sequence + 1, BATCH, |_| {});
    names.push("the transaction's end".to_owned());
    Transaction { bytes: writer.into_bytes(), steps: names }
}

impl Step<'_> {
    fn name(&self) -> String {
        match self {
            Step::NewTable => format!("the table `inet {TABLE}`"),
            Step::DeleteTable => format!("the removal of the table `inet {TABLE}`"),
            Step::Chain(chain) => format!("the chain `{}`", chain.name),
            Step::Rule(chain, rule) => format!("the rule `{rule}` of the chain `{}`", chain.name),
        }
    }

    fn write(&self, writer: &mut Writer) {
        match self {
            Step::NewTable | Step::DeleteTable => writer.text(1, TABLE),
            Step::Chain(chain) => write_chain(writer, chain),
            Step::Rule(chain, rule) => write_rule(writer, chain, rule),
        }
    }
}

/// `enum nft_chain_attributes`
fn write_chain(writer: &mut Writer, chain: &Chain) {
    const ACCEPT: u32 = 1;
    let (hook, kind) = match (chain.hook, chain.kind) {
        (Hook::Prerouting, kind) => (0, kind),
        (Hook::Output, kind) => (3, kind),
    };
    writer.text(1, TABLE);
    writer.text(3, chain.name);
    writer.nested(4, |writer| {
        writer.number(1, hook);
        writer.attribute(2, &chain.priority().to_be_bytes());
    });
    writer.number(5, ACCEPT);
    writer.text(
        7,
        match kind {
            Kind::Nat => "nat",
            Kind::Filter => "filter",
        },
    );
}

/// `enum nft_rule_attributes`
fn write_rule(writer: &mut Writer, chain: &Chain, rule: &Rule) {
    writer.text(1, TABLE);
    writer.text(2, chain.name);
    writer.nested(4, |writer| {
        for condition in &rule.matches {
            write_match(writer, condition);
        }
        write_action(writer, rule.action);
    });
    // A comment, as `nft` writes and reads them: type, length, text and zero.
    let mut comment = vec![0, u8::try_from(rule.comment.len() + 1).unwrap_or(u8::MAX)];
    comment.extend(rule.comment.as_bytes());
    comment.push(0);
    writer.attribute(7, &comment);
}

/// `enum nft_expr_attributes`, in a list.
fn expression(writer: &mut Writer, name: &str, body: impl FnOnce(&mut Writer)) {
    writer.nested(1, |writer| {
        writer.text(1, name);
        writer.nested(2, body);
    });
}

/// `enum nft_meta_keys`
#[derive(Clone, Copy)]
enum Meta {
    Mark = 3,
    InputName = 6,
    Uid = 10,
    Gid = 11,
    Family = 15,
    Protocol = 16,
}

/// `enum nft_cmp_ops`
#[derive(Clone, Copy)]
enum Compare {
    Equal = 0,
    NotEqual = 1,
    AtMost = 3,
    AtLeast = 5,
}

fn write_match(writer: &mut Writer, condition: &Match) {
    match condition {
        // What the kernel takes from its own structures is in its own byte order.
        Match::Uid(uid) => meta(writer, Meta::Uid, &uid.to_ne_bytes()),
        Match::Gid(gid) => meta(writer, Meta::Gid, &gid.to_ne_bytes()),
        Match::Mark(mark) => meta(writer, Meta::Mark, &mark.to_ne_bytes()),
        Match::FromLoopback => meta(writer, Meta::InputName, b"lo\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        Match::To(net) => destination(writer, net),
        Match::ToOwn(own) => {
            const LOCAL: u32 = 2;
            expression(writer, "fib", |writer| {
                writer.number(1, REGISTER);
                // The type of the destination's address.
                writer.number(2, 3);
                writer.number(3, 1 << 1);
            });
            let how = if *own { Compare::Equal } else { Compare::NotEqual };
            compare(writer, how, &LOCAL.to_ne_bytes());
        }
        Match::Protocol(transport) => protocol(writer, *transport),
        Match::Ports(transport, ports) => {
            const TRANSPORT_HEADER: u32 = 2;
            protocol(writer, *transport);
            payload(writer, TRANSPORT_HEADER, 2, 2);
            if ports.start() == ports.end() {
                compare(writer, Compare::Equal, &ports.start().to_be_bytes());
            } else {
                compare(writer, Compare::AtLeast, &ports.start().to_be_bytes());
                compare(writer, Compare::AtMost, &ports.end().to_be_bytes());
            }
        }
    }
}

fn protocol(writer: &mut Writer, transport: Transport) {
    meta(writer, Meta::Protocol, &[transport.number()]);
}

fn meta(writer: &mut Writer, key: Meta, value: &[u8]) {
    expression(writer, "meta", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, key as u32);
    });
    compare(writer, Compare::Equal, value);
}

fn payload(writer: &mut Writer, base: u32, offset: u32, length: u32) {
    expression(writer, "payload", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, base);
        writer.number(3, offset);
        writer.number(4, length);
    });
}

fn compare(writer: &mut Writer, how: Compare, value: &[u8]) {
    expression(writer, "cmp", |writer| {
        writer.number(1, REGISTER);
        writer.number(2, how as u32);
        data(writer, 3, value);
    });
}

/// `enum nft_data_attributes`
fn data(writer: &mut Writer, kind: u16, value: &[u8]) {
    writer.nested(kind, |writer| writer.attribute(1, value));
}

fn destination(writer: &mut Writer, net: &IpNet) {
    const NETWORK_HEADER: u32 = 1;
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    // NFPROTO_IPV4 and NFPROTO_IPV6, and where their headers have the destination.
    let (family, offset) = match net {
        IpNet::V4(_) => (2, 16),
        IpNet::V6(_) => (10, 24),
    };
    let address = octets(net.network());
    let length = if net.max_prefix_len() == 32 { 4 } else { 16 };
    meta(writer, Meta::Family, &[family]);
    payload(writer, NETWORK_HEADER, offset, length);
    if net.prefix_len() < net.max_prefix_len() {
        expression(writer, "bitwise", |writer| {
            writer.number(1, REGISTER);
            writer.number(2, REGISTER);
            writer.number(3, length);
            data(writer, 4, &octets(net.netmask()));
            data(writer, 5, &vec![0; address.len()]);
        });
    }
    compare(writer, Compare::Equal, &address);
}

fn write_action(writer: &mut Writer, action: Action) {
    const RETURN: u32 = -5_i32 as u32;
    const DROP: u32 = 0;
    match action {
        Action::Return => verdict(writer, RETURN),
        Action::Drop => verdict(writer, DROP),
        Action::Refuse => {
            expression(writer, "log", |writer| {
                writer.attribute(1, &REFUSED_GROUP.to_be_bytes());
                // As much of a packet as tells where it was going.
                writer.number(3, 128);
            });
            verdict(writer, DROP);
        }
        Action::Redirect(port) => {
            expression(writer, "immediate", |writer| {
                writer.number(1, REGISTER);
                data(writer, 2, &port.to_be_bytes());
            });
            expression(writer, "redir", |writer| {
                const PORT_SPECIFIED: u32 = 1 << 1;
                writer.number(1, REGISTER);
                writer.number(3, PORT_SPECIFIED);
            });
        }
    }
}

fn verdict(writer: &mut Writer, code: u32) {
    expression(writer, "immediate", |writer| {
        writer.number(1, VERDICT);
        writer.nested(2, |writer| writer.nested(2, |writer| writer.number(1, code)));
    });
}
