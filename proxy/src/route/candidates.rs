//! The rules that one path leads to, in their order of precedence, and the first among them that takes a request.
//!
//! Where many are told apart by one header or query parameter, a hash of its values leads to those that can match at all.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use http::HeaderName;

use super::condition::{self, Asked, Conditions, Scratch, Value, ValueMatch};
use super::pattern::Pattern;

/// A rule that may take a request.
#[derive(Debug)]
pub(super) struct Candidate {
    pub(super) rule: u32,
    /// Of the path by which it matches, as written: the longer comes first.
    pub(super) length: u32,
    /// How many bytes of the request's path its prefix takes.
    pub(super) prefix: u32,
    /// How many all paths that match have in common.
    pub(super) common: u32,
    /// What the whole path must be like besides.
    pub(super) path: Option<Pattern>,
    pub(super) when: Option<Arc<Conditions>>,
}

/// Candidates of equal paths.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    sorted: Vec<Candidate>,
    index: Option<Index>,
}

/// The candidates by the value of what tells most of them apart.
#[derive(Debug)]
struct Index {
    by: Key,
    /// Each in order.
    values: HashMap<Box<[u8]>, Vec<u32>, RandomState>,
    /// Those that ask for no one value, in order.
    others: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Header(HeaderName),
    Query(Box<str>),
}

/// Fewer are looked at one after the other.
const INDEXED: usize = 8;

// === impl Candidate ===

impl Candidate {
    fn takes(&self, asked: &Asked<'_>) -> bool {
        self.path.as_ref().is_none_or(|path| path.is_match(asked.path.as_bytes()))
            && self.when.as_ref().is_none_or(|when| when.hold(asked))
    }

    /// Gateway API's order of what leads to one path; those that are equal stay as they were added.
    fn order(&self) -> impl Ord + use<> {
        let when = self.when.as_deref();
        let (method, headers, query) =
            when.map_or((false, 0, 0), |when| (when.method.is_some(), when.headers.len(), when.query.len()));
        Reverse((self.length, method, headers, query))
    }

    /// The exact values that it asks for.
    fn values(&self) -> impl Iterator<Item = (Key, &[u8])> {
        let when = self.when.as_deref();
        let headers = when.map_or(&[][..], |when| &when.headers);
        let query = when.map_or(&[][..], |when| &when.query);
        let headers = headers.iter().map(|one| (Key::Header(one.name.clone()), &one.value));
        let query = query.iter().map(|one| (Key::Query(one.name.clone()), &one.value));
        headers.chain(query).filter_map(|(key, value)| match value {
            ValueMatch::Exact(value) => Some((key, &**value)),
            ValueMatch::Pattern(_) => None,
        })
    }
}

// === impl Candidates ===

impl Candidates {
    pub(super) fn push(&mut self, candidate: Candidate) {
        self.sorted.push(candidate);
    }

    /// Once all are added.
    pub(super) fn sort(&mut self) {
        self.sorted.sort_by_cached_key(Candidate::order);
        // Nothing comes past one that takes everything.
        let last = self.sorted.iter().position(|one| one.path.is_none() && one.when.is_none());
        self.sorted.truncate(last.map_or(usize::MAX, |last| last + 1));
        self.index = Index::new(&self.sorted);
    }

    /// The first that takes the request.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<&Candidate> {
        let Some(index) = &self.index else {
            return self.sorted.iter().find(|candidate| candidate.takes(asked));
        };
        let mut here = index.with_value(asked);
        let mut others = &index.others[..];
        loop {
            let next = match (here, others) {
                ([], []) => return None,
                ([a, rest @ ..], []) => {
                    here = rest;
                    a
                }
                ([a, rest @ ..], [b, ..]) if a < b => {
                    here = rest;
                    a
                }
                (_, [b, rest @ ..]) => {
                    others = rest;
                    b
                }
            };
            let candidate = self.sorted.get(*next as usize)?;
            if candidate.takes(asked) {
                return Some(candidate);
            }
        }
    }
}

// === impl Index ===

impl Index {
    /// By the key that has the most values; `None` where it would not help.
    fn new(sorted: &[Candidate]) -> Option<Self> {
        if sorted.len() <= INDEXED {
            return None;
        }
        let mut keys: HashMap<Key, HashSet<&[u8]>> = HashMap::new();
        for (key, value) in sorted.iter().flat_map(Candidate::values) {
            keys.entry(key).or_default().insert(value);
        }
        let (by, values) = keys.into_iter().max_by_key(|(_, values)| values.len())?;
        if values.len() < INDEXED / 2 {
            return None;
        }
        let mut index = Self { by, values: HashMap::default(), others: Vec::new() };
        for (number, candidate) in (0_u32..).zip(sorted) {
            match candidate.values().find(|(key, _)| *key == index.by) {
                Some((_, value)) => index.values.entry(value.into()).or_default().push(number),
                None => index.others.push(number),
            }
        }
        Some(index)
    }

    /// The candidates that ask for the value that the request has.
    fn with_value(&self, asked: &Asked<'_>) -> &[u32] {
        let mut scratch = Scratch::new();
        let value = match &self.by {
            Key::Header(name) => condition::header(asked, name, &mut scratch),
            Key::Query(name) => condition::parameter(asked.query, name, &mut scratch),
        };
        let value = match value {
            None => return &[],
            Some(Value::There(value)) => value,
            Some(Value::Made) => &scratch,
        };
        self.values.get(value).map_or(&[], |numbers| numbers)
    }
}
