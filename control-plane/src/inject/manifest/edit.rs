//! Changes in a text of YAML by where its values stand, line by line. Whether the text then says what it should is for the caller to see.
//!
//! What is written in block style can be changed; at anything else (several values in a line) it gives up, and never guesses.

use std::cmp::Reverse;
use std::ops::Range;

use serde_json::{Map, Value};

use super::super::patch::{aligned, gone};
use super::text;
use crate::finding::{Positions, push_index, push_key};
use crate::source::yaml::split_lines;

/// Line and column, from 0; the column in characters.
type Place = (usize, usize);

/// A value's place: that of its key, or of what stands first in a list's item.
struct Node {
    at: Place,
    /// Of all that is in it, the last.
    last: Place,
    /// In the order of the value's own entries or items.
    inner: Vec<Self>,
}

/// What a value is to what it is in.
#[derive(Clone, Copy)]
enum Step<'a> {
    Document,
    Key(&'a str),
    Item,
}

/// Lines that others take the place of.
struct Change {
    old: Range<usize>,
    new: Vec<String>,
    /// Of what is new: what is deeper goes first, where both go to one place.
    column: usize,
    is_item: bool,
}

/// Where everything stands in a text.
struct Layout<'a> {
    /// With their ends.
    lines: Vec<&'a str>,
    /// In the order of the text.
    places: Vec<Place>,
}

/// `text`, whose first line is called `first_line` in `positions` and which says `from`, changed so that it should say `to`.
pub(super) fn edited(
    text: &str,
    first_line: u32,
    positions: &Positions,
    from: &Value,
    to: &Value,
) -> Option<String> {
    let mut places = Vec::new();
    let root = node(from, &mut String::new(), first_line, positions, &mut places)?;
    places.sort_unstable();
    let layout = Layout { lines: split_lines(text).collect(), places };
    let mut changes = Vec::new();
    layout.differ(&root, Step::Document, from, to, &mut changes)?;
    layout.changed(changes)
}

/// A value with its place and all that is in it.
fn node(
    value: &Value,
    path: &mut String,
    first_line: u32,
    positions: &Positions,
    places: &mut Vec<Place>,
) -> Option<Node> {
    let mark = positions.find(path)?;
    let number = |number: u32| usize::try_from(number).ok();
    let at = (number(mark.line.checked_sub(first_line)?)?, number(mark.column.checked_sub(1)?)?);
    places.push(at);
    let (length, mut inner) = (path.len(), Vec::new());
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                push_key(path, key);
                inner.push(node(value, path, first_line, positions, places)?);
                path.truncate(length);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                push_index(path, index);
                inner.push(node(value, path, first_line, positions, places)?);
                path.truncate(length);
            }
        }
        _ => {}
    }
    let last = inner.iter().map(|node| node.last).fold(at, Place::max);
    Some(Node { at, last, inner })
}

// === impl Layout ===

impl Layout<'_> {
    fn differ(
        &self,
        node: &Node,
        step: Step<'_>,
        from: &Value,
        to: &Value,
        changes: &mut Vec<Change>,
    ) -> Option<()> {
        match (from, to) {
            _ if from == to => Some(()),
            // Of nothing there are no lines among which more could stand, and nothing has no lines.
            (Value::Object(from), Value::Object(to)) if !from.is_empty() && !to.is_empty() => {
                self.objects(node, from, to, changes)
            }
            (Value::Array(before), Value::Array(after)) if !before.is_empty() && !after.is_empty() => {
                match aligned(before, after).or_else(|| one_by_one(before, after)) {
                    Some(known) => self.lists(node, before, after, &known, changes),
                    None => self.replace(node, step, to, changes),
                }
            }
            _ => self.replace(node, step, to, changes),
        }
    }

    fn objects(
        &self,
        node: &Node,
        from: &Map<String, Value>,
        to: &Map<String, Value>,
        changes: &mut Vec<Change>,
    ) -> Option<()> {
        for ((key, value), inner) in from.iter().zip(&node.inner) {
            match to.get(key) {
                Some(now) => self.differ(inner, Step::Key(key), value, now, changes)?,
                // What stands behind a dash would take that along.
                None if self.dash(inner.at).is_some() => return None,
                None => changes.push(Change::remove(self.extent(inner)?)),
            }
        }
        let mut added = to.iter().filter(|(key, _)| !from.contains_key(*key)).peekable();
        if added.peek().is_none() {
            return Some(());
        }
        let (first, last) = ends(node)?;
        let column = first.at.1;
        if !node.inner.iter().all(|inner| inner.at.1 == column && self.is_plain(inner.at)) {
            return None;
        }
        let end = self.extent(last)?.end;
        let containers = from.keys().zip(&node.inner).find(|(key, _)| *key == "containers");
        for (key, value) in added {
            // Containers that start first are read first.
            let before = containers.filter(|(_, at)| key == "initContainers" && self.dash(at.at).is_none());
            let at = before.map_or(end, |(_, containers)| containers.at.0);
            changes.push(Change {
                old: at..at,
                new: text::entry(key, value, column),
                column,
                is_item: false,
            });
        }
        Some(())
    }

    /// `known`: which item of `to` stands where in `from`.
    fn lists(
        &self,
        node: &Node,
        from: &[Value],
        to: &[Value],
        known: &[Option<usize>],
        changes: &mut Vec<Change>,
    ) -> Option<()> {
        let (first, last) = ends(node)?;
        let column = self.dash(first.at)?;
        for index in gone(from, known) {
            let inner = node.inner.get(index)?;
            self.dash(inner.at)?;
            changes.push(Change::remove(self.extent(inner)?));
        }
        // What is new goes before the next that stays.
        let mut places = Vec::with_capacity(known.len());
        let mut at = self.extent(last)?.end;
        for index in known.iter().rev() {
            if let Some(index) = index {
                at = node.inner.get(*index)?.at.0;
            }
            places.push(at);
        }
        for ((item, index), at) in to.iter().zip(known).zip(places.into_iter().rev()) {
            match index {
                Some(index) => {
                    self.differ(node.inner.get(*index)?, Step::Item, from.get(*index)?, item, changes)?;
                }
                None => {
                    let new = text::item(item, column);
                    changes.push(Change { old: at..at, new, column, is_item: true });
                }
            }
        }
        Some(())
    }

    /// A value of another kind, at the place of the old one.
    fn replace(&self, node: &Node, step: Step<'_>, to: &Value, changes: &mut Vec<Change>) -> Option<()> {
        let column = node.at.1;
        let new = match step {
            Step::Document => return None,
            Step::Item => text::item(to, self.dash(node.at)?),
            Step::Key(key) if self.is_plain(node.at) => {
                let mut new = text::entry(key, to, column);
                // What it stands behind stays: a dash, or blanks.
                new.first_mut()?.replace_range(..column, &self.before(node.at)?);
                new
            }
            Step::Key(_) => return None,
        };
        let is_item = matches!(step, Step::Item);
        changes.push(Change { old: self.extent(node)?, new, column, is_item });
        Some(())
    }

    /// The lines of a value. Comments and blank lines before what follows belong to that.
    fn extent(&self, node: &Node) -> Option<Range<usize>> {
        let line = node.at.0;
        let next = self.places.get(self.places.partition_point(|place| *place <= node.last));
        let next = next.map(|place| place.0);
        if next == Some(line) {
            return None;
        }
        let is_end = |line: &str| {
            line.trim().is_empty() || line.trim_start().starts_with('#') || line.starts_with("...")
        };
        let lines = self.lines.get(line..next.unwrap_or(self.lines.len()))?;
        let end = lines.iter().rposition(|line| !is_end(line)).unwrap_or_default();
        Some(line..line + end + 1)
    }

    /// What stands before a place in its line.
    fn before(&self, (line, column): Place) -> Option<String> {
        Some(self.lines.get(line)?.chars().take(column).collect())
    }

    /// The column of the dash before a list's item, if nothing else is there.
    fn dash(&self, at: Place) -> Option<usize> {
        let before = self.before(at)?;
        let dash = before.trim_end();
        (dash.trim_start() == "-").then(|| dash.chars().count() - 1)
    }

    /// Whether nothing but a dash is before it.
    fn is_plain(&self, at: Place) -> bool {
        self.before(at).is_some_and(|before| matches!(before.trim(), "" | "-"))
    }

    /// The text after all changes; `None` where two are of the same lines.
    fn changed(&self, mut changes: Vec<Change>) -> Option<String> {
        changes.sort_by_key(|change| {
            (change.old.start, change.old.end, Reverse(change.column), !change.is_item)
        });
        let end = self.lines.first().map_or("\n", |line| match line {
            line if line.ends_with("\r\n") => "\r\n",
            line if line.ends_with('\r') => "\r",
            _ => "\n",
        });
        let (mut out, mut at) = (String::new(), 0);
        for Change { old, new, .. } in changes {
            out.extend(self.lines.get(at..old.start)?.iter().copied());
            // The last line may have no end.
            if !new.is_empty() && !out.is_empty() && !out.ends_with(['\n', '\r']) {
                out.push_str(end);
            }
            for line in new {
                out.push_str(&line);
                out.push_str(end);
            }
            at = old.end;
        }
        out.extend(self.lines.get(at..)?.iter().copied());
        Some(out)
    }
}

/// Objects without names, as many as before: those of a List.
fn one_by_one(from: &[Value], to: &[Value]) -> Option<Vec<Option<usize>>> {
    let is_so = from.len() == to.len() && from.iter().chain(to).all(Value::is_object);
    is_so.then(|| (0..from.len()).map(Some).collect())
}

/// What of the things in a value stands first, and what last.
fn ends(node: &Node) -> Option<(&Node, &Node)> {
    let place = |node: &&Node| node.at;
    Some((node.inner.iter().min_by_key(place)?, node.inner.iter().max_by_key(place)?))
}

// === impl Change ===

impl Change {
    fn remove(old: Range<usize>) -> Self {
        Self { old, new: Vec::new(), column: 0, is_item: false }
    }
}
