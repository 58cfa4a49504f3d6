//! Paths compiled for look-up: a hash map of the exact ones, a tree of elements for prefixes, and between the two, tried
//! one after the other, regular expressions.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use regex_syntax::ParserBuilder;
use regex_syntax::hir::{Hir, HirKind, Literal};

use super::candidates::{Candidate, Candidates};
use super::condition::Asked;
use super::table::{PathMatch, RequestMatch};

/// The rules of one host, by path.
#[derive(Debug, Default)]
pub(super) struct Paths {
    exact: HashMap<Box<str>, Candidates, RandomState>,
    patterns: Candidates,
    /// Node 0 is the root: the prefix `/`, which matches everything.
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    children: HashMap<Box<str>, u32, RandomState>,
    /// `None` at the root.
    parent: Option<u32>,
    /// `/a/` and `/a` end at the same node, and the longer takes precedence.
    candidates: Candidates,
}

// === impl Paths ===

impl Paths {
    /// Adds a rule by its number.
    pub(super) fn insert(&mut self, one: &RequestMatch, rule: u32) {
        let when = one.when.clone();
        let mut candidate = Candidate { rule, length: 0, prefix: 0, common: 0, path: None, when };
        let candidates = match &one.path {
            PathMatch::Exact(path) => {
                candidate.common = path.len() as u32;
                self.exact.entry(path.clone()).or_default()
            }
            PathMatch::Pattern(pattern) => {
                candidate.common = literal(pattern.as_str()) as u32;
                candidate.path = Some(pattern.clone());
                &mut self.patterns
            }
            PathMatch::Prefix(prefix) => {
                candidate.length = prefix.len() as u32;
                let prefix = prefix.strip_suffix('/').unwrap_or(prefix);
                candidate.prefix = prefix.len() as u32;
                candidate.common = candidate.prefix;
                &mut self.grow(prefix).candidates
            }
            PathMatch::Method(pattern) => {
                // Of every service, so after all that name one; before `/`, which names no method either.
                candidate.length = 1 + pattern.as_str().len() as u32;
                candidate.path = Some(pattern.clone());
                &mut self.grow("").candidates
            }
        };
        candidates.push(candidate);
    }

    /// Once all are added.
    pub(super) fn sort(&mut self) {
        self.exact.values_mut().for_each(Candidates::sort);
        self.patterns.sort();
        self.nodes.iter_mut().for_each(|node| node.candidates.sort());
    }

    /// Who takes the request.
    pub(super) fn find(&self, asked: &Asked<'_>) -> Option<&Candidate> {
        if !self.exact.is_empty()
            && let Some(exact) = self.exact.get(asked.path)
            && let Some(found) = exact.find(asked)
        {
            return Some(found);
        }
        self.patterns.find(asked).or_else(|| self.find_prefix(asked))
    }

    fn find_prefix(&self, asked: &Asked<'_>) -> Option<&Candidate> {
        let mut node = self.nodes.first()?;
        // `*` and CONNECT's empty path have no elements; only the root matches them.
        let mut rest = asked.path.strip_prefix('/');
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
            rest = after;
        }
        // From the longest back to the root.
        loop {
            if let Some(found) = node.candidates.find(asked) {
                return Some(found);
            }
            node = self.nodes.get(node.parent? as usize)?;
        }
    }

    /// The node where `prefix`, without a slash at its end, ends; made if need be.
    fn grow(&mut self, prefix: &str) -> &mut Node {
        if self.nodes.is_empty() {
            self.nodes.push(Node::default());
        }
        let mut at = 0;
        for element in prefix.split('/').skip(1) {
            let next = self.nodes.len();
            at = match self.nodes[at].children.get(element) {
                Some(child) => *child as usize,
                None => {
                    self.nodes[at].children.insert(element.into(), next as u32);
                    self.nodes.push(Node { parent: Some(at as u32), ..Node::default() });
                    next
                }
            };
        }
        &mut self.nodes[at]
    }
}

/// How many bytes of whole elements every path described by a regular expression begins with, as far as its syntax tells.
fn literal(pattern: &str) -> usize {
    let mut parser = ParserBuilder::new().utf8(false).unicode(false).build();
    // One that asks for Unicode tells nothing.
    let Ok(parsed) = parser.parse(pattern) else { return 0 };
    let first = match parsed.kind() {
        HirKind::Concat(parts) => parts.first().map(Hir::kind),
        kind => Some(kind),
    };
    match first {
        Some(HirKind::Literal(Literal(bytes))) => bytes.iter().rposition(|byte| *byte == b'/').unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_paths_of_a_pattern_begin_with() {
        for (pattern, expected) in [
            ("/p1/p2/[^/]+/p3", "/p1/p2"),
            ("/v[0-9]+/items", ""),
            ("/api/(v1|v2)/x", "/api"),
            ("/api/v1|/b", ""),
            (r"/api/a\|b", "/api"),
            (r"/api/[(]x|/", ""),
            (r"/a/[|]b", "/a"),
            ("/ä/b", "/ä"),
            (r"/a/\pL", ""),
            ("/a/?b", ""),
            ("/a/b/*", "/a"),
            ("(?i)/a/b", ""),
            ("/a/b/c", "/a/b"),
            ("", ""),
        ] {
            assert_eq!(literal(pattern), expected.len(), "{pattern}");
        }
    }
}
