//! Lines of text on their way out of the process, without ever waiting for whoever reads them.
//!
//! Workers append to a queue in memory; the control thread writes it out a moment later, or as soon as there is much. Where the reader is
//! too slow, lines are dropped and counted: neither a request nor the control plane's stream may wait for a full pipe.
//! No thread is spent on it, and standard error is never made non-blocking, since others may share it: each write says for itself that it
//! must not wait (`RWF_NOWAIT`, pwritev2(2)). Where the kernel cannot do that, for terminals or for pipes before Linux 6.4, a
//! pipe that polls as writable takes `PIPE_BUF` bytes at once (pipe(7)), and no more than that is written.

use std::fmt;
use std::io::IoSlice;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::Notify;

/// How many bytes of lines a queue holds.
const CAPACITY: usize = 256 * 1024;
/// So many bytes are written without gathering more: what was written long ago has left the processor's cache.
const ENOUGH: usize = 64 * 1024;
/// How long lines are gathered before they are written. Waking the control thread costs as much as serving a request, so that where few
/// come, each of several should not do it.
const GATHER: Duration = Duration::from_millis(50);
/// The same of lines that people wait for, of which few come.
const PROMPT: Duration = Duration::from_millis(10);
/// How long a destination is left alone whose reader is behind.
const BEHIND: Duration = Duration::from_millis(20);
/// For how long no line comes until buffers are given back.
const IDLE: Duration = Duration::from_secs(1);
/// What is kept of a buffer of a busier time.
const KEPT: usize = 32 * 1024;
/// What a writable pipe takes at once.
const PIPE_BUF: usize = 4096;

/// Where lines are appended. One per worker thread, so that appending waits for nobody.
pub struct Lines {
    buffer: Mutex<Vec<u8>>,
    dropped: AtomicU64,
    wake: Arc<Wake>,
}

/// What the control thread waits for.
#[derive(Default)]
struct Wake {
    /// There are lines where there were none.
    some: Notify,
    /// There are enough of them.
    enough: Notify,
}

/// One destination and the queues that lead to it. Cheap to clone.
#[derive(Clone)]
pub struct LineOutput(Arc<Inner>);

struct Inner {
    destination: Box<dyn AsFd + Send + Sync>,
    /// The destination takes any amount without waiting for anybody.
    is_file: bool,
    gather: Duration,
    /// As far as is known, a write to the destination can say that it must not wait.
    takes_nowait: AtomicBool,
    queues: Mutex<Vec<Arc<Lines>>>,
    pending: Mutex<Pending>,
    wake: Arc<Wake>,
}

/// Taken from a queue and not written yet.
#[derive(Default)]
struct Pending {
    bytes: Vec<u8>,
    written: usize,
    lost: u64,
    /// The line that was written last is not whole, and the rest of it is lost.
    torn: bool,
}

// === impl Lines ===

impl Lines {
    /// Appends what `write` writes, which must end in a line feed; drops and counts it if the queue is full.
    pub fn append(&self, write: impl FnOnce(&mut Vec<u8>)) {
        let mut buffer = self.buffer.lock();
        if buffer.len() >= CAPACITY {
            self.dropped.fetch_add(1, Relaxed);
            return;
        }
        let before = buffer.len();
        write(&mut buffer);
        let after = buffer.len();
        drop(buffer);
        if before == 0 {
            self.wake.some.notify_one();
        }
        if before < ENOUGH && after >= ENOUGH {
            self.wake.enough.notify_one();
        }
    }

    /// Takes what there is, if anything is, in exchange for an empty buffer.
    fn take(&self, empty: &mut Vec<u8>) {
        let mut buffer = self.buffer.lock();
        if !buffer.is_empty() {
            mem::swap(&mut *buffer, empty);
        }
    }

    /// Gives back a buffer that holds nothing.
    fn rest(&self) {
        let mut buffer = self.buffer.lock();
        if buffer.is_empty() {
            *buffer = Vec::new();
        }
    }
}

// === impl LineOutput ===

impl LineOutput {
    /// To `destination`: standard output or error, or a file.
    pub fn new(destination: impl AsFd + Send + Sync + 'static) -> Self {
        Self::gathering(destination, GATHER)
    }

    /// The same for lines that are few, and are not to be late.
    pub fn prompt(destination: impl AsFd + Send + Sync + 'static) -> Self {
        Self::gathering(destination, PROMPT)
    }

    fn gathering(destination: impl AsFd + Send + Sync + 'static, gather: Duration) -> Self {
        let is_file = rustix::fs::fstat(&destination)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile);
        Self(Arc::new(Inner {
            destination: Box::new(destination),
            is_file,
            gather,
            takes_nowait: AtomicBool::new(true),
            queues: Mutex::default(),
            pending: Mutex::default(),
            wake: Arc::default(),
        }))
    }

    /// A new queue to this destination.
    pub fn queue(&self) -> Arc<Lines> {
        let (buffer, dropped) = (Mutex::default(), AtomicU64::default());
        let lines = Arc::new(Lines { buffer, dropped, wake: self.0.wake.clone() });
        self.0.queues.lock().push(lines.clone());
        lines
    }

    /// How many lines were dropped so far.
    pub fn dropped(&self) -> u64 {
        let queues: u64 = self.0.queues.lock().iter().map(|lines| lines.dropped.load(Relaxed)).sum();
        queues + self.0.pending.lock().lost
    }

    /// Writes what is appended, for ever. For the control thread; never waits for the destination's reader.
    pub async fn run(&self) {
        let Wake { some, enough } = &*self.0.wake;
        loop {
            if tokio::time::timeout(IDLE, some.notified()).await.is_err() {
                self.0.rest();
                some.notified().await;
            }
            // Whichever it is: more lines come, or time is up.
            drop(tokio::time::timeout(self.0.gather, enough.notified()).await);
            while !self.0.write_some(None) {
                tokio::time::sleep(BEHIND).await;
            }
        }
    }

    /// Writes what is there, waiting at most `limit` for the reader. For the end of the process.
    pub fn flush(&self, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.0.write_some(Some(end)) {
            if Instant::now() >= end {
                return;
            }
        }
    }
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("dropped", &self.dropped).finish_non_exhaustive()
    }
}

impl fmt::Debug for LineOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LineOutput").field("is_file", &self.0.is_file).finish_non_exhaustive()
    }
}

// === impl Inner ===

impl Inner {
    /// Takes what is in the queues and writes it, waiting for the reader until `end` at most, and without one not at all. False: the reader
    /// is behind.
    fn write_some(&self, end: Option<Instant>) -> bool {
        let mut pending = self.pending.lock();
        if !self.write_pending(&mut pending, end) {
            return false;
        }
        // Only those that there are now: whoever writes on and on is not waited for.
        let queues = self.queues.lock();
        queues.iter().all(|lines| {
            lines.take(&mut pending.bytes);
            pending.mend();
            self.write_pending(&mut pending, end)
        })
    }

    /// As of [`Self::write_some`], of what is taken already.
    fn write_pending(&self, pending: &mut Pending, end: Option<Instant>) -> bool {
        while !pending.is_empty() {
            let rest = &pending.bytes[pending.written..];
            // Anew for each piece: a reader that takes a little now and then must not make it last.
            let wait = end.map_or(Duration::ZERO, |end| end.saturating_duration_since(Instant::now()));
            match self.write(rest, wait) {
                Ok(0) => return false,
                Ok(written) => {
                    pending.written += written;
                    pending.torn = false;
                }
                Err(Errno::INTR | Errno::AGAIN) => return false,
                // Nobody reads it any more, or the disk is full.
                Err(_) => pending.lose(),
            }
        }
        pending.clear();
        true
    }

    /// Gives back buffers that hold nothing.
    fn rest(&self) {
        let mut pending = self.pending.lock();
        if pending.is_empty() {
            pending.bytes = Vec::new();
        }
        self.queues.lock().iter().for_each(|lines| lines.rest());
    }

    /// Writes some of it, waiting so long for the reader; [`Errno::AGAIN`]: it is behind.
    fn write(&self, bytes: &[u8], wait: Duration) -> Result<usize, Errno> {
        if self.is_file {
            return rustix::io::write(&*self.destination, bytes);
        }
        // At its current position.
        const HERE: u64 = u64::MAX;
        let nowait =
            || rustix::io::pwritev2(&*self.destination, &[IoSlice::new(bytes)], HERE, ReadWriteFlags::NOWAIT);
        if self.takes_nowait.load(Relaxed) {
            match nowait() {
                Err(Errno::AGAIN) if !wait.is_zero() && self.writable(wait) => return nowait(),
                written @ (Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::PIPE)) => return written,
                // The kernel cannot, or a sandbox does not allow it: a plain write tells what is really wrong, if anything is.
                Err(_) => self.takes_nowait.store(false, Relaxed),
            }
        }
        if !self.writable(wait) {
            return Err(Errno::AGAIN);
        }
        rustix::io::write(&*self.destination, &bytes[..bytes.len().min(PIPE_BUF)])
    }

    fn writable(&self, wait: Duration) -> bool {
        let mut fds = [PollFd::new(&self.destination, PollFlags::OUT)];
        let wait = Timespec::try_from(wait).ok();
        // An error counts as writable: writing then tells which.
        rustix::event::poll(&mut fds, wait.as_ref()).is_ok_and(|ready| ready > 0)
    }
}

// === impl Pending ===

impl Pending {
    fn is_empty(&self) -> bool {
        self.written >= self.bytes.len()
    }

    fn lose(&mut self) {
        // What ends a torn line is no line.
        let first = self.written.max(usize::from(self.torn));
        let rest = self.bytes.get(first..).unwrap_or_default();
        self.lost += rest.iter().filter(|b| **b == b'\n').count() as u64;
        self.torn |= self.written > 0 && self.bytes[self.written - 1] != b'\n';
        self.written = self.bytes.len();
    }

    /// Ends a torn line before the next one begins.
    fn mend(&mut self) {
        if self.torn && !self.bytes.is_empty() {
            self.bytes.insert(0, b'\n');
        }
    }

    fn clear(&mut self) {
        let filled = self.bytes.len();
        self.bytes.clear();
        self.written = 0;
        // To grow it anew for each write would cost page faults.
        if filled > 0 && filled < self.bytes.capacity() / 8 {
            self.bytes.shrink_to(KEPT.max(2 * filled));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Read as _};

    use super::*;

    fn line(text: &str) -> impl FnOnce(&mut Vec<u8>) {
        move |out| out.extend_from_slice(format!("{text}\n").as_bytes())
    }

    #[tokio::test]
    async fn lines_of_all_queues_come_out_whole() {
        let (reader, writer) = std::io::pipe().unwrap();
        let output = LineOutput::new(writer);
        let (first, second) = (output.queue(), output.queue());
        let run = tokio::spawn({
            let output = output.clone();
            async move { output.run().await }
        });
        for n in 0..100 {
            first.append(line(&format!("first {n}")));
            second.append(line(&format!("second {n}")));
        }
        let read = tokio::task::spawn_blocking(move || {
            let lines: Vec<_> = BufReader::new(reader).lines().take(200).map(Result::unwrap).collect();
            lines
        });
        let read = read.await.unwrap();
        let of =
            |queue: &str| read.iter().filter(|line| line.starts_with(queue)).cloned().collect::<Vec<_>>();
        assert_eq!(of("first"), (0..100).map(|n| format!("first {n}")).collect::<Vec<_>>());
        assert_eq!(of("second").len(), 100);
        run.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn much_is_written_at_once_and_little_a_moment_later() {
        use std::io::{Seek as _, SeekFrom};
        let mut file = tempfile::tempfile().unwrap();
        let output = LineOutput::new(file.try_clone().unwrap());
        let lines = output.queue();
        let run = tokio::spawn({
            let output = output.clone();
            async move { output.run().await }
        });
        let mut told = move || file.seek(SeekFrom::End(0)).unwrap() as usize;
        for (length, at_most) in
            [(ENOUGH, Duration::ZERO), (10, GATHER), (2 * ENOUGH, Duration::ZERO), (10, GATHER)]
        {
            let (before, begun) = (told(), tokio::time::Instant::now());
            lines.append(line(&"x".repeat(length - 1)));
            while told() == before {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(told(), before + length);
            let took = begun.elapsed();
            assert!(took <= at_most + Duration::from_millis(5) && took >= at_most / 2, "{length}: {took:?}");
        }
        run.abort();
    }

    #[test]
    fn buffers_are_not_grown_anew_for_each_write() {
        let output = LineOutput::new(tempfile::tempfile().unwrap());
        let (lines, _idle) = (output.queue(), output.queue());
        let held = || [lines.buffer.lock().capacity(), output.0.pending.lock().bytes.capacity()];
        for _ in 0..10 {
            lines.append(line(&"x".repeat(ENOUGH)));
            output.0.write_some(None);
        }
        let before = held();
        assert!(before.iter().all(|capacity| *capacity > ENOUGH), "{before:?}");
        lines.append(line(&"x".repeat(ENOUGH)));
        output.0.write_some(None);
        output.0.write_some(None);
        assert_eq!(held().iter().sum::<usize>(), before.iter().sum::<usize>());
    }

    #[tokio::test(start_paused = true)]
    async fn buffers_of_a_busier_time_are_given_back() {
        let output = LineOutput::new(tempfile::tempfile().unwrap());
        let lines = output.queue();
        let run = tokio::spawn({
            let output = output.clone();
            async move { output.run().await }
        });
        let held = || lines.buffer.lock().capacity() + output.0.pending.lock().bytes.capacity();
        // Both of the two that change places.
        for _ in 0..2 {
            lines.append(line(&"x".repeat(CAPACITY)));
            tokio::time::sleep(GATHER).await;
        }
        assert!(held() > CAPACITY);
        for _ in 0..4 {
            lines.append(line("x"));
            tokio::time::sleep(2 * GATHER).await;
        }
        assert!(held() <= 2 * KEPT, "{}", held());
        tokio::time::sleep(2 * IDLE).await;
        assert_eq!(held(), 0);
        lines.append(line("x"));
        tokio::time::sleep(2 * GATHER).await;
        assert!(lines.buffer.lock().is_empty());
        run.abort();
    }

    #[test]
    fn r21_a_reader_that_never_reads_costs_lines_and_nothing_else() {
        for nowait in [true, false] {
            let (mut reader, writer) = std::io::pipe().unwrap();
            let output = LineOutput::new(writer);
            output.0.takes_nowait.store(nowait, Relaxed);
            let lines = output.queue();
            let text = "x".repeat(999);
            let before = Instant::now();
            for _ in 0..2000 {
                lines.append(line(&text));
                output.0.write_some(None);
            }
            assert!(before.elapsed() < Duration::from_secs(30), "it never waited");
            let dropped = output.dropped();
            assert!(dropped > 1000, "{dropped}");
            // Whatever was not dropped comes out whole once somebody reads.
            let drain = std::thread::spawn(move || {
                let mut all = String::new();
                reader.read_to_string(&mut all).unwrap();
                all
            });
            output.flush(Duration::from_secs(30));
            output.flush(Duration::from_secs(30));
            drop((output, lines));
            let all = drain.join().unwrap();
            assert_eq!(all.lines().count() as u64, 2000 - dropped);
            assert!(all.lines().all(|line| line == text));
        }
    }

    #[test]
    fn a_reader_that_takes_a_little_now_and_then_does_not_hold_up_the_end() {
        for nowait in [true, false] {
            const LIMIT: Duration = Duration::from_secs(1);
            let (mut reader, writer) = std::io::pipe().unwrap();
            let output = LineOutput::new(writer);
            output.0.takes_nowait.store(nowait, Relaxed);
            let lines = output.queue();
            // At this pace all of it would take a quarter of a minute.
            (0..250).for_each(|_| lines.append(line(&"x".repeat(999))));
            let slow = std::thread::spawn(move || {
                let mut piece = vec![0; PIPE_BUF];
                while reader.read(&mut piece).is_ok_and(|count| count > 0) {
                    std::thread::sleep(LIMIT / 4);
                }
            });
            let begun = Instant::now();
            output.flush(LIMIT);
            let took = begun.elapsed();
            assert!(took < 4 * LIMIT, "{took:?}");
            drop((output, lines));
            slow.join().unwrap();
        }
    }

    #[test]
    fn a_reader_that_is_gone_is_counted() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = LineOutput::new(writer);
        let lines = output.queue();
        lines.append(line("one"));
        lines.append(line("two"));
        output.flush(Duration::from_secs(1));
        assert_eq!(output.dropped(), 2);
    }

    #[test]
    fn a_reader_that_comes_back_gets_whole_lines_after_a_torn_one() {
        for nowait in [true, false] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("log");
            rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RWXU).unwrap();
            let reading = || {
                use rustix::fs::OFlags;
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                std::fs::File::from(rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap())
            };
            let mut first = reading();
            let output = LineOutput::new(std::fs::File::options().write(true).open(&path).unwrap());
            output.0.takes_nowait.store(nowait, Relaxed);
            let lines = output.queue();
            // More than a pipe holds: a part is written.
            lines.append(line(&"x".repeat(200_000)));
            assert!(!output.0.write_some(None));
            let mut read = vec![0; 1 << 20];
            while first.read(&mut read).is_ok_and(|count| count > 0) {}
            drop(first);
            assert!(output.0.write_some(None));
            lines.append(line("lost as well"));
            assert!(output.0.write_some(None));
            assert_eq!(output.dropped(), 2);
            let mut second = reading();
            lines.append(line("whole"));
            lines.append(line("too"));
            assert!(output.0.write_some(None));
            let count = second.read(&mut read).unwrap();
            assert_eq!(String::from_utf8_lossy(&read[..count]), "\nwhole\ntoo\n");
            assert_eq!(output.dropped(), 2);
        }
    }

    #[test]
    fn a_file_takes_everything_at_once() {
        let mut file = tempfile::tempfile().unwrap();
        let output = LineOutput::new(file.try_clone().unwrap());
        let lines = output.queue();
        let text = "y".repeat(10_000);
        lines.append(line(&text));
        output.flush(Duration::ZERO);
        let mut read = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, format!("{text}\n"));
    }
}
