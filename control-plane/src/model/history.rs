//! What the last snapshots changed, so that a stream looks only at that, however much it has subscribed to.

use std::collections::VecDeque;
use std::sync::Arc;

use tulle_api::ResourceType;

/// A stream that is behind by more snapshots than this looks at everything; they come 5 ms apart at least.
const KEPT: usize = 128;

/// Of one snapshot: types and names; `None`: it may be everything.
type Changed = Option<Arc<[(ResourceType, Arc<str>)]>>;

/// Kept by each snapshot of the ones before it, and of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct History {
    /// Of the newest.
    number: u64,
    /// The newest last.
    recent: VecDeque<Changed>,
}

// === impl History ===

impl History {
    /// A snapshot follows.
    pub(super) fn push(&mut self, changed: Option<Vec<(ResourceType, Arc<str>)>>) {
        self.number += 1;
        if self.recent.len() == KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(changed.map(Arc::from));
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// See [`super::Model::changed_since`].
    pub(super) fn since(&self, number: u64) -> Option<impl Iterator<Item = (ResourceType, &str)>> {
        let behind = usize::try_from(self.number.checked_sub(number)?).ok()?;
        let first = self.recent.len().checked_sub(behind)?;
        let news = self.recent.range(first..);
        if news.clone().any(Option::is_none) {
            return None;
        }
        let names = news.flatten().flat_map(|changed| changed.iter());
        Some(names.map(|(resource_type, name)| (*resource_type, &**name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(history: &History, number: u64) -> Option<Vec<&str>> {
        Some(history.since(number)?.map(|(_, name)| name).collect())
    }

    #[test]
    fn what_came_since_is_told_as_far_as_it_is_known() {
        let mut history = History::default();
        history.push(None);
        let change = |history: &mut History, name: &str| {
            history.push(Some(vec![(ResourceType::Service, name.into())]));
        };
        change(&mut history, "a");
        change(&mut history, "b");
        assert_eq!(names(&history, 3), Some(vec![]));
        assert_eq!(names(&history, 2), Some(vec!["b"]));
        assert_eq!(names(&history, 1), Some(vec!["a", "b"]));
        assert_eq!(names(&history, 0), None, "everything may have changed");
        assert_eq!(names(&history, 4), None, "of another line");
        for _ in 0..KEPT {
            change(&mut history, "c");
        }
        assert_eq!(names(&history, 3).map(|names| names.len()), Some(KEPT));
        assert_eq!(names(&history, 2), None, "too long ago");
    }
}
