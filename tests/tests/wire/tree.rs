//! A message as the fields that are on the wire, and what a version that does not exist yet might make of it.
//!
//! Written by hand, from the descriptors and not by the generated code: so nothing is lost of what that does not know.

use protox::prost_reflect::{DescriptorPool, Kind, MessageDescriptor};

/// What a newer version might add to any message: numbers that no message of ours uses, of each kind that there is on the wire.
const NEW: [(u32, Value); 4] = [
    (1901, Value::Varint(7)),
    (1902, Value::Fixed64([7; 8])),
    (1903, Value::Bytes(Vec::new())),
    (1904, Value::Fixed32([7; 4])),
];
/// An enum's value that no version of ours has.
const NEW_VALUE: u64 = 1000;

/// A message.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tree {
    descriptor: MessageDescriptor,
    fields: Vec<(u32, Value)>,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Varint(u64),
    Fixed64([u8; 8]),
    Fixed32([u8; 4]),
    Bytes(Vec<u8>),
    Message(Box<Tree>),
}

/// A message that one thing was made newer in.
#[derive(Debug)]
pub(crate) struct Newer {
    /// The full name of the `oneof`, or of the field of an enum.
    pub(crate) place: String,
    pub(crate) bytes: Vec<u8>,
}

/// The descriptors of `api/proto`.
pub(crate) fn descriptors() -> DescriptorPool {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/proto");
    let files = [
        "envoy/service/discovery/v3/discovery.proto",
        "istio/v1/auth/ca.proto",
        "tulle/v1/resources.proto",
        "tulle/v1/policy.proto",
        "tulle/v1/proxy.proto",
        "tulle/v1/view.proto",
    ];
    let compiled = protox::compile(files, [root]).expect("what the crates are built from");
    DescriptorPool::from_file_descriptor_set(compiled).expect("what the crates are built from")
}

// === impl Tree ===

impl Tree {
    /// Reads a message of this type.
    pub(crate) fn read(descriptor: &MessageDescriptor, bytes: &[u8]) -> Self {
        let mut fields = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let tag = varint(&mut rest);
            let (number, kind) = (u32::try_from(tag >> 3).expect("a number of a field"), tag & 7);
            let value = match kind {
                0 => Value::Varint(varint(&mut rest)),
                1 => Value::Fixed64(take(&mut rest, 8).try_into().expect("eight bytes")),
                5 => Value::Fixed32(take(&mut rest, 4).try_into().expect("four bytes")),
                2 => {
                    let length = usize::try_from(varint(&mut rest)).expect("a length");
                    let bytes = take(&mut rest, length);
                    match descriptor.get_field(number).map(|field| field.kind()) {
                        Some(Kind::Message(inner)) => Value::Message(Box::new(Self::read(&inner, bytes))),
                        _ => Value::Bytes(bytes.to_vec()),
                    }
                }
                other => panic!("{}.{number}: wire type {other}", descriptor.full_name()),
            };
            fields.push((number, value));
        }
        Self { descriptor: descriptor.clone(), fields }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, value) in &self.fields {
            let mut tag = |kind: u64| put(&mut bytes, u64::from(*number) << 3 | kind);
            match value {
                Value::Varint(value) => {
                    tag(0);
                    put(&mut bytes, *value);
                }
                Value::Fixed64(value) => {
                    tag(1);
                    bytes.extend_from_slice(value);
                }
                Value::Fixed32(value) => {
                    tag(5);
                    bytes.extend_from_slice(value);
                }
                Value::Bytes(value) => {
                    tag(2);
                    put(&mut bytes, value.len() as u64);
                    bytes.extend_from_slice(value);
                }
                Value::Message(message) => {
                    tag(2);
                    let inner = message.bytes();
                    put(&mut bytes, inner.len() as u64);
                    bytes.extend_from_slice(&inner);
                }
            }
        }
        bytes
    }

    /// With fields in every message of it, however deep, that nobody knows yet.
    pub(crate) fn with_new_fields(&self) -> Self {
        let fields = self.fields.iter().map(|(number, value)| {
            let value = match value {
                Value::Message(message) => Value::Message(Box::new(message.with_new_fields())),
                other => other.clone(),
            };
            (*number, value)
        });
        // Before and behind: a decoder must not stop at one.
        let new = || NEW.into_iter();
        Self { descriptor: self.descriptor.clone(), fields: new().chain(fields).chain(new()).collect() }
    }

    /// Without these fields, by their full names, however deep: as a version says it, or reads it, that does not know them.
    pub(crate) fn without(&self, names: &[&str]) -> Self {
        let is_known = |number: u32| {
            let field = self.descriptor.get_field(number);
            field.is_none_or(|field| !names.contains(&field.full_name()))
        };
        let fields = self.fields.iter().filter(|(number, _)| is_known(*number)).map(|(number, value)| {
            let value = match value {
                Value::Message(message) => Value::Message(Box::new(message.without(names))),
                other => other.clone(),
            };
            (*number, value)
        });
        Self { descriptor: self.descriptor.clone(), fields: fields.collect() }
    }

    /// One for each `oneof` that says something, in which a member that nobody knows yet says it; and one for each enum, with a value that
    /// nobody knows yet.
    pub(crate) fn newer(&self) -> Vec<Newer> {
        let mut all = Vec::new();
        for at in 0..self.fields.len() {
            let (number, value) = &self.fields[at];
            let Some(field) = self.descriptor.get_field(*number) else { continue };
            // What `optional` makes is no choice.
            let choice = field.containing_oneof().filter(|oneof| oneof.fields().len() > 1);
            if let Some(oneof) = choice {
                let new = self.but(at, 1903, Value::Bytes(b"new".to_vec()));
                all.push(Newer { place: oneof.full_name().to_owned(), bytes: new.bytes() });
            }
            match (field.kind(), value) {
                (Kind::Enum(_), Value::Varint(_)) => {
                    let new = self.but(at, *number, Value::Varint(NEW_VALUE));
                    all.push(Newer { place: field.full_name().to_owned(), bytes: new.bytes() });
                }
                // Packed, as lists of them are.
                (Kind::Enum(_), Value::Bytes(packed)) => {
                    let mut packed = packed.clone();
                    put(&mut packed, NEW_VALUE);
                    let new = self.but(at, *number, Value::Bytes(packed));
                    all.push(Newer { place: field.full_name().to_owned(), bytes: new.bytes() });
                }
                (_, Value::Message(inner)) => {
                    for Newer { place, bytes } in inner.newer() {
                        let new = self.but(at, *number, Value::Bytes(bytes));
                        all.push(Newer { place, bytes: new.bytes() });
                    }
                }
                _ => {}
            }
        }
        all
    }

    /// The full names of all fields that it says, however deep.
    pub(crate) fn says(&self, said: &mut std::collections::BTreeSet<String>) {
        for (number, value) in &self.fields {
            let Some(field) = self.descriptor.get_field(*number) else { continue };
            said.insert(field.full_name().to_owned());
            if let Value::Message(inner) = value {
                inner.says(said);
            }
        }
    }

    fn but(&self, at: usize, number: u32, value: Value) -> Self {
        let mut new = self.clone();
        new.fields[at] = (number, value);
        new
    }
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = take(bytes, 1)[0];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a number of more than ten bytes");
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> &'b [u8] {
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}
