//! Header maps and extensions of messages that are over, for the next ones of the same thread.
//!
//! Decides how many are kept. It must never keep anything that a message held, least of all a connection or the bytes of
//! its head. Called by [`super::head`], the shells, [`super::server`] and
//! [`super::client`], and `forward`.

use std::cell::RefCell;

use http::{Extensions, HeaderMap, Request};

use super::incoming::Exchange;
use super::original::OriginalHead;

thread_local! {
    static KEPT: RefCell<Kept> = const { RefCell::new(Kept { headers: Vec::new(), extensions: Vec::new() }) };
}

struct Kept {
    headers: Vec<HeaderMap>,
    extensions: Vec<Extensions>,
}

/// How many of each a thread keeps: for so many requests at a time, in some 80 KiB.
const MOST: usize = 64;
/// A map that has grown larger is not kept.
const MAX_FIELDS: usize = 32;

/// A map without fields, and most often with room for `fields`.
pub(super) fn headers(fields: usize) -> HeaderMap {
    let kept = KEPT.with_borrow_mut(|kept| kept.headers.pop());
    kept.unwrap_or_else(|| HeaderMap::with_capacity(fields))
}

/// Extensions that hold `original` and nothing else.
pub(super) fn extensions(original: OriginalHead) -> Extensions {
    let mut extensions = KEPT.with_borrow_mut(|kept| kept.extensions.pop()).unwrap_or_default();
    match extensions.get_mut::<OriginalHead>() {
        Some(place) => *place = original,
        None => drop(extensions.insert(original)),
    }
    extensions
}

/// Takes what is left of the head of a request that will not be sent again.
pub fn done_with<T>(request: &mut Request<T>) {
    give(std::mem::take(request.headers_mut()), std::mem::take(request.extensions_mut()));
}

/// Takes what is left of a message.
pub(super) fn give(mut headers: HeaderMap, mut extensions: Extensions) {
    let lines = extensions.get::<OriginalHead>().map_or(0, OriginalHead::lines);
    // A map does not tell how much room it has for further lines of a name: it has seen no more than came and are left.
    let is_small = lines.max(headers.len()) <= MAX_FIELDS && (1..=MAX_FIELDS).contains(&headers.capacity());
    // A value may be anybody's, and its drop anything: not while what is kept is borrowed.
    headers.clear();
    drop(extensions.remove::<Exchange>());
    let has_place = extensions.get_mut().is_some_and(OriginalHead::clear);
    if !has_place || extensions.len() > 1 {
        extensions.clear();
    }
    let has_place = !extensions.is_empty();
    KEPT.with_borrow_mut(|kept| {
        if is_small && kept.headers.len() < MOST {
            kept.headers.push(headers);
        }
        if has_place && kept.extensions.len() < MOST {
            kept.extensions.push(extensions);
        }
    });
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use smallvec::SmallVec;

    use super::*;

    fn original(bytes: &Bytes) -> OriginalHead {
        OriginalHead::new(bytes.clone(), SmallVec::new(), true)
    }

    #[test]
    fn nothing_of_a_message_is_kept() {
        let bytes = Bytes::from(vec![b'x'; 100]);
        let (mut map, mut found) = (headers(4), extensions(original(&bytes)));
        map.insert("host", "a".parse().unwrap());
        found.insert("anything else");
        give(map, found);
        assert!(bytes.is_unique(), "its bytes are free");
        let next = Bytes::from_static(b"y");
        assert!(headers(4).is_empty());
        give(headers(4), extensions(original(&next)));
        let found = extensions(original(&next));
        assert_eq!((found.len(), found.get::<OriginalHead>().map(OriginalHead::len)), (1, Some(1)));
    }

    #[test]
    fn what_is_large_or_too_much_is_not_kept() {
        give(HeaderMap::with_capacity(1000), Extensions::new());
        assert!(headers(1).capacity() <= MAX_FIELDS);
        for _ in 0..2 * MOST {
            give(HeaderMap::with_capacity(1), Extensions::new());
        }
        let kept = std::iter::from_fn(|| Some(headers(0).capacity())).take_while(|capacity| *capacity > 0);
        assert_eq!(kept.count(), MOST);
    }

    #[test]
    fn what_many_lines_have_grown_is_not_kept() {
        while KEPT.with_borrow_mut(|kept| kept.headers.pop()).is_some() {}
        while KEPT.with_borrow_mut(|kept| kept.extensions.pop()).is_some() {}
        let mut map = headers(1);
        for _ in 0..=MAX_FIELDS {
            map.append("a", "b".parse().unwrap());
        }
        let line = super::super::original::Line { start: 0, value: 0, name_len: 0 };
        let lines = SmallVec::from_elem(line, MAX_FIELDS + 1);
        assert!(map.capacity() <= MAX_FIELDS && lines.spilled());
        // Removed again on the way, as what belongs to the hop is.
        let mut found = extensions(OriginalHead::new(Bytes::new(), lines, true));
        found.insert("anything else");
        give(map.clone(), Extensions::new());
        map.clear();
        give(map, found);
        KEPT.with_borrow(|kept| assert!(kept.headers.is_empty() && kept.extensions.is_empty()));
    }

    /// Gives a message away as it is dropped.
    #[derive(Clone)]
    struct Giving;

    impl Drop for Giving {
        fn drop(&mut self) {
            give(HeaderMap::with_capacity(1), Extensions::new());
        }
    }

    #[test]
    fn somebody_elses_only_extension_may_give_while_it_is_dropped() {
        let mut foreign = Extensions::new();
        foreign.insert(Giving);
        give(HeaderMap::new(), foreign);
    }
}
