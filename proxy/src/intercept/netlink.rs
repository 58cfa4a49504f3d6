//! Netlink messages, to bytes and back (netlink(7), `linux/netlink.h`, `linux/netfilter/nfnetlink.h`): no I/O, no meaning.
//!
//! A message is a header and attributes; an attribute is length, type and value, padded to four bytes. Lengths and types
//! are in the machine's byte order, values of nf_tables in the network's.

/// A length, a type, flags, a sequence number and a port.
const HEADER: usize = 16;
const ALIGN: usize = 4;
/// Of an attribute that holds attributes.
const NESTED: u16 = 1 << 15;

/// `NLMSG_ERROR`: an error, or with 0 an acknowledgement.
pub(super) const ERROR: u16 = 2;
/// `NLMSG_DONE`: the last of several.
pub(super) const DONE: u16 = 3;

/// Flags of a message.
pub(super) mod flag {
    /// `NLM_F_REQUEST`
    pub(in super::super) const REQUEST: u16 = 0x001;
    /// `NLM_F_ACK`
    pub(in super::super) const ACK: u16 = 0x004;
    /// `NLM_F_DUMP`
    pub(in super::super) const DUMP: u16 = 0x300;
    /// `NLM_F_CREATE`
    pub(in super::super) const CREATE: u16 = 0x400;
    /// `NLM_F_APPEND`
    pub(in super::super) const APPEND: u16 = 0x800;
}

/// Bytes of messages, one after the other.
#[derive(Debug, Default)]
pub(super) struct Writer {
    bytes: Vec<u8>,
}

/// What stands before a netfilter message's attributes (`struct nfgenmsg`).
pub(super) const fn netfilter(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// A message that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// What follows the header.
    pub(super) body: &'a [u8],
}

// === impl Writer ===

impl Writer {
    /// What was written.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a message whose attributes `body` writes, after the `fixed` part that its kind has.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        sequence: u32,
        fixed: impl AsRef<[u8]>,
        body: impl FnOnce(&mut Self),
    ) {
        let start = self.bytes.len();
        self.bytes.extend([0; 4]);
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(sequence.to_ne_bytes());
        // From whichever port: the kernel knows.
        self.bytes.extend([0; 4]);
        self.bytes.extend(fixed.as_ref());
        body(self);
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Writes an attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        self.within(kind, |writer| writer.bytes.extend(value));
    }

    /// Writes an attribute that is a number of four bytes.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    /// Writes an attribute that is text with a zero behind it.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        self.within(kind, |writer| {
            writer.bytes.extend(value.as_bytes());
            writer.bytes.push(0);
        });
    }

    /// Writes an attribute of the attributes that `body` writes.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        self.within(kind | NESTED, body);
    }

    fn within(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.bytes.extend([0; 2]);
        self.bytes.extend(kind.to_ne_bytes());
        body(self);
        // The kernel refuses what is longer than it says; nothing of ours comes near.
        let length = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }
}

/// The attributes in `bytes`, each its type and value. What is cut short ends them.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(array(bytes, 0)?));
        let kind = u16::from_ne_bytes(array(bytes, 2)?) & !NESTED;
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The messages in what was received. What is cut short ends them.
pub(super) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(array(bytes, 0)?)).ok()?;
        let body = bytes.get(HEADER..length)?;
        let message = Message {
            kind: u16::from_ne_bytes(array(bytes, 4)?),
            flags: u16::from_ne_bytes(array(bytes, 6)?),
            sequence: u32::from_ne_bytes(array(bytes, 8)?),
            body,
        };
        bytes = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    })
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

// === impl Message ===

impl Message<'_> {
    /// The errno of an [`ERROR`] message, positive; 0 for an acknowledgement.
    pub(super) fn error(&self) -> Option<i32> {
        if self.kind != ERROR {
            return None;
        }
        Some(i32::from_ne_bytes(array(self.body, 0)?).saturating_neg())
    }
}
