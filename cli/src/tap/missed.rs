//! What is said beside the requests: who is asked, and what is not shown. At most once a second, since a busy proxy leaves out much.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tulle_control_plane::tap::{Line, printable};

const OFTEN: Duration = Duration::from_secs(1);

/// What was not said yet.
#[derive(Debug)]
pub(crate) struct Missed {
    per_second: u32,
    /// By proxy: over the rate, and without room.
    proxies: BTreeMap<String, (u64, u64)>,
    unread: u64,
    /// To be said at once.
    notes: Vec<String>,
    said: Option<Instant>,
}

// === impl Missed ===

impl Missed {
    pub(crate) fn new(per_second: u32) -> Self {
        Self { per_second, proxies: BTreeMap::new(), unread: 0, notes: Vec::new(), said: None }
    }

    pub(crate) fn take(&mut self, line: Line) {
        match line {
            Line::Missed { proxy, over_rate, dropped } => {
                let missed = self.proxies.entry(proxy).or_default();
                missed.0 += over_rate;
                missed.1 += dropped;
            }
            Line::Unread { lines } => self.unread += lines,
            Line::Watching { proxies: 0, .. } => {
                self.notes.push("no proxy is watched; one is as soon as it connects".to_owned());
            }
            Line::Watching { proxies, names } => {
                let proxy = if proxies == 1 { "proxy" } else { "proxies" };
                let rest = if proxies > names.len() { ", …" } else { "" };
                self.notes.push(format!("watching {proxies} {proxy}: {}{rest}", names.join(", ")));
            }
            Line::Refused { proxy, why } => {
                self.notes
                    .push(format!("{proxy} shows nothing: {}; is it another version?", printable(&why)));
            }
            Line::Request(_) | Line::Over { .. } => {}
        }
    }

    /// What is to be said now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<String> {
        let is_due = self.said.is_none_or(|said| now.saturating_duration_since(said) >= OFTEN);
        if is_due && !(self.proxies.is_empty() && self.unread == 0) {
            self.said = Some(now);
            return self.rest();
        }
        std::mem::take(&mut self.notes)
    }

    /// All that was not said yet.
    pub(crate) fn rest(&mut self) -> Vec<String> {
        let mut notes = std::mem::take(&mut self.notes);
        for (proxy, (over_rate, dropped)) in std::mem::take(&mut self.proxies) {
            let mut parts = Vec::new();
            if over_rate > 0 {
                parts.push(format!("{over_rate} beyond {} a second (--max-rps)", self.per_second));
            }
            if dropped > 0 {
                parts.push(format!("{dropped} for which there was no room on the way"));
            }
            notes.push(format!("not shown of {proxy}: {}", parts.join(", ")));
        }
        let unread = std::mem::take(&mut self.unread);
        if unread > 0 {
            notes.push(format!("not shown: {unread} that were not read in time"));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(proxy: &str, over_rate: u64, dropped: u64) -> Line {
        Line::Missed { proxy: proxy.to_owned(), over_rate, dropped }
    }

    #[test]
    fn what_is_missing_is_added_up_and_said_once_a_second() {
        let (mut notes, start) = (Missed::new(100), Instant::now());
        assert!(notes.due(start).is_empty());
        notes.take(Line::Watching { proxies: 9, names: vec!["shop/a".to_owned(), "shop/b".to_owned()] });
        assert_eq!(notes.due(start), ["watching 9 proxies: shop/a, shop/b, …"]);
        notes.take(missed("shop/a", 3, 0));
        assert_eq!(notes.due(start), ["not shown of shop/a: 3 beyond 100 a second (--max-rps)"]);
        notes.take(missed("shop/a", 3, 0));
        notes.take(missed("shop/a", 4, 5));
        notes.take(Line::Unread { lines: 7 });
        notes.take(Line::Watching { proxies: 0, names: Vec::new() });
        assert_eq!(notes.due(start), ["no proxy is watched; one is as soon as it connects"]);
        assert_eq!(
            notes.due(start + OFTEN),
            [
                "not shown of shop/a: 7 beyond 100 a second (--max-rps), 5 for which there was no room on the way",
                "not shown: 7 that were not read in time"
            ]
        );
        assert!(notes.rest().is_empty());
    }
}
