//! The streams of a connection as plain state: what came and was not read, what may be sent, what is to be written.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use foldhash::fast::RandomState;
use tokio::io::ReadBuf;

use super::{MAX_STREAMS, Unseen, WINDOW};

/// Of a frame, before its payload.
const HEAD: usize = 7;
/// With so much waiting to be written, no stream may add to it but [`SHARE`].
const FULL: usize = 64 * 1024;
/// What each stream may add in any case, so that what is short never waits behind what is long.
const SHARE: usize = 2 * 1024;
/// A peer that has so much more waiting for it, by its own doing, is given up.
const FLOOD: usize = 1024 * 1024;
/// Space that a stream, or a connection, keeps while it waits.
const KEEP: usize = 2 * 1024;
const KEEP_OUT: usize = 16 * 1024;

const DATA: u8 = 0;
const END: u8 = 1;
const RESET: u8 = 2;
const CREDIT: u8 = 3;
const GO_AWAY: u8 = 4;

#[derive(Debug)]
pub(super) struct State {
    /// Ours is the side that opens streams.
    opens: bool,
    /// The highest number of a stream so far.
    last: u32,
    streams: HashMap<u32, Entry, RandomState>,
    /// Opened by the peer and not taken yet.
    opened: VecDeque<u32>,
    out: Vec<u8>,
    /// Woken when there is something to be done for it.
    driver: Option<Waker>,
    /// How often `out` was taken.
    round: u32,
    /// Streams whose writer waits for room in `out` and has had little of it in this round: they come first in the next.
    starved: Vec<u32>,
    /// Those that have had much.
    blocked: Vec<u32>,
    /// The peer takes no more streams.
    gone: bool,
    /// It ends with its last stream.
    finishing: bool,
    /// The connection is over, and why.
    failed: Option<Arc<io::Error>>,
}

#[derive(Debug)]
struct Entry {
    /// Came and was not read: `inbox[read..]`.
    inbox: Vec<u8>,
    read: usize,
    /// Read and not granted anew.
    ungranted: u32,
    /// What we may still send.
    credit: u32,
    /// So much was added to `out` in that round.
    added: (u32, usize),
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// It is among those that wait for room.
    queued: bool,
    /// The peer has sent its end.
    ended: bool,
    /// The peer has no use for it any more.
    reset: bool,
    /// Since it was going, and has never looked at it.
    unseen: bool,
    ours: Ours,
    /// Somebody here has the stream.
    held: bool,
}

/// How far we are in sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ours {
    Open,
    Ended,
    Reset,
}

/// The connection's error, as each stream sees it.
#[derive(Debug)]
struct Shared(Arc<io::Error>);

// === impl State ===

impl State {
    pub(super) fn new(opens: bool) -> Self {
        Self {
            opens,
            last: 0,
            streams: HashMap::default(),
            opened: VecDeque::new(),
            out: Vec::new(),
            driver: None,
            round: 0,
            starved: Vec::new(),
            blocked: Vec::new(),
            gone: false,
            finishing: false,
            failed: None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.gone && !self.finishing && self.failed.is_none() && self.last < u32::MAX
    }

    pub(super) fn is_idle(&self) -> bool {
        self.streams.is_empty()
    }

    pub(super) fn is_unused(&self) -> bool {
        !self.streams.values().any(|entry| entry.held)
    }

    /// Whether the connection is to be closed.
    pub(super) fn is_over(&self) -> bool {
        self.finishing && self.streams.is_empty()
    }

    pub(super) fn open(&mut self) -> Option<u32> {
        if !self.is_open() || self.streams.len() >= MAX_STREAMS {
            return None;
        }
        self.last += 1;
        self.streams.insert(self.last, Entry::new());
        // At once, so that the peer sees the numbers ascend whoever has something to say first.
        self.send(DATA, self.last, &[]);
        Some(self.last)
    }

    /// The next stream that the peer has opened.
    pub(super) fn accept(&mut self) -> Option<u32> {
        self.opened.pop_front()
    }

    pub(super) fn go_away(&mut self) {
        self.send(GO_AWAY, 0, &[]);
    }

    pub(super) fn finish(&mut self) {
        let before = std::mem::replace(&mut self.finishing, true);
        if !self.opens && !before {
            self.send(GO_AWAY, 0, &self.last.to_be_bytes());
        }
        self.wake_driver();
    }

    /// The connection is over: everybody learns of it. Returns the error.
    pub(super) fn fail(&mut self, error: io::Error) -> io::Error {
        let error = Arc::clone(self.failed.get_or_insert_with(|| Arc::new(error)));
        self.streams.retain(|_, entry| entry.held);
        for entry in self.streams.values_mut() {
            entry.wake_reader();
            entry.wake_writer();
        }
        self.wake_blocked();
        Shared::error(&error)
    }

    pub(super) fn driven_by(&mut self, waker: &Waker) {
        set(&mut self.driver, waker);
    }

    /// Exchanges what is to be written for `empty`, which was.
    pub(super) fn take_out(&mut self, empty: &mut Vec<u8>) {
        if empty.capacity() > KEEP_OUT {
            *empty = Vec::new();
        }
        empty.clear();
        std::mem::swap(&mut self.out, empty);
        self.round = self.round.wrapping_add(1);
        self.wake_blocked();
    }

    fn wake_blocked(&mut self) {
        for id in self.starved.drain(..).chain(self.blocked.drain(..)) {
            if let Some(entry) = self.streams.get_mut(&id) {
                entry.queued = false;
                entry.wake_writer();
            }
        }
    }

    fn wake_driver(&mut self) {
        if let Some(driver) = &self.driver {
            driver.wake_by_ref();
        }
    }

    fn send(&mut self, kind: u8, stream: u32, payload: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        if self.out.is_empty() {
            self.wake_driver();
        }
        // Nobody gives more than the length can say.
        let length = u16::try_from(payload.len()).unwrap_or(u16::MAX);
        self.out.extend_from_slice(&length.to_be_bytes());
        self.out.push(kind);
        self.out.extend_from_slice(&stream.to_be_bytes());
        self.out.extend_from_slice(payload);
    }

    /// Takes in whole frames; returns how many bytes those were.
    ///
    /// # Errors
    /// When the peer does what it must not: the connection cannot go on.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        while let Some((head, rest)) = bytes.get(taken..).and_then(|rest| rest.split_first_chunk::<HEAD>()) {
            let [high, low, kind, stream @ ..] = *head;
            let length = usize::from(u16::from_be_bytes([high, low]));
            let Some(payload) = rest.get(..length) else { break };
            self.frame(kind, u32::from_be_bytes(stream), payload).map_err(malformed)?;
            taken += HEAD + length;
        }
        if self.out.len() > FULL + FLOOD {
            return Err(malformed("it does not read what it asks for"));
        }
        Ok(taken)
    }

    fn frame(&mut self, kind: u8, id: u32, payload: &[u8]) -> Result<(), &'static str> {
        if kind == GO_AWAY {
            self.gone = true;
            if let Ok(last) = payload.try_into() {
                self.gone_after(u32::from_be_bytes(last));
            }
            return Ok(());
        }
        if id > self.last {
            if self.finishing && !self.opens {
                // The peer has been told.
                return Ok(());
            }
            if self.opens || self.streams.len() >= MAX_STREAMS {
                return Err("a stream that may not be");
            }
            self.last = id;
            if matches!(kind, DATA | END) {
                self.streams.insert(id, Entry::new());
                self.opened.push_back(id);
            }
        }
        // What is late for a stream that is over means nothing.
        let Some(entry) = self.streams.get_mut(&id) else { return Ok(()) };
        match kind {
            DATA => entry.receive(payload)?,
            END => entry.ended = true,
            RESET => {
                entry.reset = true;
                entry.wake_writer();
            }
            CREDIT => {
                let more = payload.try_into().map(u32::from_be_bytes);
                let credit = more.ok().and_then(|more| entry.credit.checked_add(more));
                entry.credit = credit.filter(|credit| *credit <= WINDOW).ok_or("a credit that may not be")?;
                entry.wake_writer();
                return Ok(());
            }
            _ => return Err("a frame of no known kind"),
        }
        entry.wake_reader();
        self.settle(id);
        Ok(())
    }

    /// The peer has looked at no later stream than `last`, and will not.
    fn gone_after(&mut self, last: u32) {
        let unseen: Vec<u32> = self.streams.keys().copied().filter(|id| self.opens && *id > last).collect();
        for id in unseen {
            if let Some(entry) = self.streams.get_mut(&id) {
                (entry.reset, entry.unseen) = (true, true);
                entry.wake_reader();
                entry.wake_writer();
            }
            self.settle(id);
        }
    }

    /// Forgets a stream that is over.
    fn settle(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(|entry| !entry.held && (entry.ended || entry.reset)) {
            self.streams.remove(&id);
            if self.is_over() {
                self.wake_driver();
            }
        }
    }

    pub(super) fn poll_read(
        &mut self,
        id: u32,
        cx: &Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(entry) = self.streams.get_mut(&id) else { return Poll::Ready(Err(self.error(id))) };
        if entry.read(buf) {
            if let Some(grant) = entry.grant() {
                self.send(CREDIT, id, &grant.to_be_bytes());
            }
            return Poll::Ready(Ok(()));
        }
        if entry.ended {
            return Poll::Ready(Ok(()));
        }
        if entry.reset || self.failed.is_some() {
            return Poll::Ready(Err(self.error(id)));
        }
        set(&mut entry.reader, cx.waker());
        Poll::Pending
    }

    pub(super) fn poll_write(&mut self, id: u32, cx: &Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let (is_full, round, failed) = (self.out.len() >= FULL, self.round, self.failed.is_some());
        let Some(entry) = self.streams.get_mut(&id) else { return Poll::Ready(Err(self.error(id))) };
        if failed || entry.reset {
            return Poll::Ready(Err(self.error(id)));
        }
        if entry.ours != Ours::Open {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if entry.credit == 0 {
            set(&mut entry.writer, cx.waker());
            return Poll::Pending;
        }
        if entry.added.0 != round {
            entry.added = (round, 0);
        }
        let room = if is_full { SHARE.saturating_sub(entry.added.1) } else { buf.len() };
        if is_full && room == 0 {
            set(&mut entry.writer, cx.waker());
            if !std::mem::replace(&mut entry.queued, true) {
                let waiting = if entry.added.1 <= SHARE { &mut self.starved } else { &mut self.blocked };
                waiting.push(id);
            }
            return Poll::Pending;
        }
        let length = buf.len().min(room).min(usize::from(u16::MAX)).min(entry.credit as usize);
        entry.added.1 += length;
        entry.credit -= u32::try_from(length).unwrap_or(entry.credit);
        self.send(DATA, id, buf.get(..length).unwrap_or_default());
        Poll::Ready(Ok(length))
    }

    /// Ours is all that is sent.
    pub(super) fn end(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id)
            && entry.ours == Ours::Open
        {
            entry.ours = Ours::Ended;
            self.send(END, id, &[]);
        }
    }

    /// What is missing of ours will not come.
    pub(super) fn reset(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id)
            && entry.ours != Ours::Reset
        {
            entry.ours = Ours::Reset;
            self.send(RESET, id, &[]);
        }
    }

    pub(super) fn let_go(&mut self, id: u32) {
        let Some(entry) = self.streams.get_mut(&id) else { return };
        entry.held = false;
        (entry.inbox, entry.reader, entry.writer) = (Vec::new(), None, None);
        let orderly = entry.ours == Ours::Ended && (entry.ended || entry.reset);
        if self.failed.is_some() {
            // The peer will not tell its end any more.
            entry.reset = true;
        } else if !orderly {
            self.reset(id);
        }
        self.settle(id);
    }

    #[cfg(test)]
    pub(super) fn refill(&mut self, id: u32) {
        if let Some(entry) = self.streams.get_mut(&id) {
            entry.credit = WINDOW;
        }
    }

    /// Why nothing more passes on a stream.
    fn error(&self, id: u32) -> io::Error {
        if self.streams.get(&id).is_some_and(|entry| entry.unseen) {
            return io::Error::new(io::ErrorKind::ConnectionReset, Unseen);
        }
        match &self.failed {
            Some(error) => Shared::error(error),
            None => io::Error::new(io::ErrorKind::ConnectionReset, "the peer has reset the stream"),
        }
    }
}

// === impl Entry ===

impl Entry {
    fn new() -> Self {
        Self {
            inbox: Vec::new(),
            read: 0,
            ungranted: 0,
            credit: WINDOW,
            added: (0, 0),
            reader: None,
            writer: None,
            queued: false,
            ended: false,
            reset: false,
            unseen: false,
            ours: Ours::Open,
            held: true,
        }
    }

    fn receive(&mut self, payload: &[u8]) -> Result<(), &'static str> {
        if self.ended {
            return Err("data after the end of its stream");
        }
        if !self.held {
            return Ok(());
        }
        if self.inbox.len() - self.read + payload.len() > WINDOW as usize {
            return Err("more than was granted");
        }
        if self.read > self.inbox.len() / 2 {
            self.inbox.drain(..self.read);
            self.read = 0;
        }
        self.inbox.extend_from_slice(payload);
        Ok(())
    }

    /// Reads what there is; false if there is nothing.
    fn read(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let unread = self.inbox.get(self.read..).unwrap_or_default();
        if unread.is_empty() {
            return false;
        }
        let length = unread.len().min(buf.remaining());
        buf.put_slice(unread.get(..length).unwrap_or_default());
        self.read += length;
        if self.read == self.inbox.len() {
            self.read = 0;
            if self.inbox.capacity() > KEEP {
                self.inbox = Vec::new();
            }
            self.inbox.clear();
        }
        self.ungranted += u32::try_from(length).unwrap_or(WINDOW);
        true
    }

    /// What is to be granted anew.
    fn grant(&mut self) -> Option<u32> {
        let is_due = self.ungranted >= WINDOW / 2 && !self.ended && !self.reset;
        is_due.then(|| std::mem::take(&mut self.ungranted))
    }

    fn wake_reader(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn wake_writer(&mut self) {
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn error(error: &Arc<io::Error>) -> io::Error {
        io::Error::new(error.kind(), Self(Arc::clone(error)))
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection that the stream was on: {}", self.0)
    }
}

impl std::error::Error for Shared {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.0)
    }
}

fn malformed(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the other proxy broke the rules of streams: {what}"))
}

/// Has `place` wake whom `waker` does.
fn set(place: &mut Option<Waker>, waker: &Waker) {
    if !place.as_ref().is_some_and(|old| old.will_wake(waker)) {
        *place = Some(waker.clone());
    }
}
