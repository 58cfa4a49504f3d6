//! Paths compiled for look-up: a hash map of the exact ones, a tree of elements for prefixes.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::table::PathMatch;

/// The rules of one host, by path.
#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: HashMap<Box<str>, u32, RandomState>,
    /// Node 0 is the root: the prefix `/`, which matches everything.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, u32, RandomState>,
    prefix: Option<Prefix>,
}

/// The rule of a prefix that ends at a node.
#[derive(Clone, Copy, Debug)]
struct Prefix {
    rule: u32,
    /// Its length as written: `/a/` and `/a` end at the same node, and the longer takes precedence.
    length: usize,
}

// === impl Paths ===

impl Paths {
    /// Adds a rule by its number. Of two with the same match, the one that is added first stays.
    pub(super) fn insert(&mut self, path: &PathMatch, rule: u32) {
        match path {
            PathMatch::Exact(path) => {
                self.exact.entry(path.clone()).or_insert(rule);
            }
            PathMatch::Prefix(prefix) => {
                let node = self.grow(prefix);
                let length = prefix.len();
                if node.prefix.is_none_or(|earlier| earlier.length < length) {
                    node.prefix = Some(Prefix { rule, length });
                }
            }
        }
    }

    /// The number of the rule that takes `path` (without a query).
    pub(super) fn find(&self, path: &str) -> Option<u32> {
        if !self.exact.is_empty()
            && let Some(rule) = self.exact.get(path)
        {
            return Some(*rule);
        }
        let mut node = self.nodes.first()?;
        let mut longest = node.prefix;
        // `*` and CONNECT's empty path have no elements; only the root matches them.
        let mut rest = path.strip_prefix('/');
        while let Some(elements) = rest
            && !node.children.is_empty()
        {
            let (element, after) = match elements.split_once('/') {
                Some((element, after)) => (element, Some(after)),
                None => (elements, None),
            };
            let Some(child) = node.children.get(element).and_then(|child| self.nodes.get(*child as usize))
            else {
                break;
            };
            node = child;
            longest = node.prefix.or(longest);
            rest = after;
        }
        longest.map(|prefix| prefix.rule)
    }

    /// The node where `prefix` ends, made if need be.
    fn grow(&mut self, prefix: &str) -> &mut Node {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
        let mut at = 0;
        for element in prefix.split('/').skip(1) {
            let next = self.nodes.len();
            at = match self.nodes[at].children.get(element) {
                Some(child) => *child as usize,
                None => {
                    self.nodes[at].children.insert(element.into(), next as u32);
                    self.nodes.push(Node::default());
                    next
                }
            };
        }
        &mut self.nodes[at]
    }
}
