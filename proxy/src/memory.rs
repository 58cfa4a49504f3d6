//! Memory that a burst of connections, or the start, leaves behind goes back to the kernel.
//!
//! Decides when: once the proxy is ready, since most of the code that it has run by then never runs again; and once most of the
//! connections of a busier time have been gone for a while. The C library keeps what is freed
//! between what is still used, which after a burst is nearly all of it, and gives it back when asked; asking costs
//! milliseconds in which a worker may have to wait, so it must never happen under load. Code is dropped only at the start, for the
//! same reason. Must never drop a page that holds more than the file it came from. `app` calls it once a second.

use std::ops::Range;

/// Finds the moment at which it is worth asking.
#[derive(Debug, Default)]
pub struct Tide {
    /// Whether what the start has left behind has been given back.
    started: bool,
    /// The most connections since memory was last given back.
    highest: usize,
    /// For how many looks in a row most of them have been gone.
    low: u32,
}

/// What is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ebb {
    Start,
    Burst,
}

/// A busier time than this is worth the trouble.
const BURST: usize = 64;
/// How many looks in a row it must be over, so that what comes in waves keeps what it will need again.
const LOOKS: u32 = 10;

// === impl Tide ===

impl Tide {
    /// Takes how many connections are `open` now, and whether the proxy is `ready`; whether the start, or a burst, has been over
    /// for a while.
    pub fn look(&mut self, open: usize, ready: bool) -> Option<Ebb> {
        if ready && !self.started {
            self.started = true;
            return Some(Ebb::Start);
        }
        self.highest = self.highest.max(open);
        let over = self.highest >= BURST && open <= self.highest / 2;
        self.low = if over { self.low + 1 } else { 0 };
        if self.low < LOOKS {
            return None;
        }
        (self.highest, self.low) = (open, 0);
        Some(Ebb::Burst)
    }
}

/// Gives back what the C library keeps of freed memory, of all threads (other C libraries than glibc keep little), and after the
/// start the program's code and constants: what of them is used comes back from the page cache when it is, without reading the disk.
pub fn give_back(ebb: Ebb) {
    #[cfg(target_env = "gnu")]
    glibc::malloc_trim(0);
    if ebb == Ebb::Start {
        // Without /proc they stay.
        let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
        kernel::forget_own(&mappings);
    }
}

/// The mappings that hold nothing but what is in their files: private ones that cannot be written, and of which no page has
/// been copied, by relocation or by a debugger. From `/proc/PID/smaps`, see proc_pid_smaps(5).
fn unmodified(smaps: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    // Of the mapping whose fields are being read.
    let (mut range, mut pages_of_its_own) = (None, 0);
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        match first {
            "Anonymous:" | "Swap:" => pages_of_its_own += usize::from(second != "0"),
            // The last field of each.
            "VmFlags:" => found.extend(range.take().filter(|_| pages_of_its_own == 0)),
            _ if !first.ends_with(':') => {
                let of_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
                let unwritten = matches!(second, "r--p" | "r-xp");
                range = (of_file && unwritten).then(|| addresses(first)).flatten();
                pages_of_its_own = 0;
            }
            _ => {}
        }
    }
    found
}

/// `5555-7777`, in hexadecimal.
fn addresses(text: &str) -> Option<Range<usize>> {
    let (start, end) = text.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some(address(start)?..address(end)?)
}

/// What the kernel is asked of pages that are the program's.
#[allow(
    unsafe_code,
    reason = "MADV_DONTNEED on a private mapping that cannot be written and of which no page was copied: the next access finds \
              the file's page again, which is what was there, see madvise(2)"
)]
mod kernel {
    use rustix::mm::{Advice, madvise};

    /// Something among the program's constants.
    static CONSTANT: [u8; 64] = [1; 64];

    /// Takes the program's own code and constants out of the process, as far as nobody has changed them.
    pub(super) fn forget_own(smaps: &str) {
        let code = (forget_own as *const ()).addr();
        let own = [code, std::hint::black_box(&CONSTANT).as_ptr().addr()];
        for range in
            super::unmodified(smaps).into_iter().filter(|range| own.iter().any(|it| range.contains(it)))
        {
            let start = std::ptr::with_exposed_provenance_mut(range.start);
            // SAFETY: the program's own segments, since they hold this code and that constant, are never unmapped, so the range
            // is what it was when it was read; no page of it differed from the file, and none is written while it
            // cannot be. Pages that are locked in memory stay, and that is all that an error can mean.
            let _locked = unsafe { madvise(start, range.len(), Advice::LinuxDontNeed) };
        }
    }
}

/// The one function of the C library that nobody wraps.
#[cfg(target_env = "gnu")]
#[allow(
    unsafe_code,
    reason = "a declaration as in malloc.h; the function may be called at any time, from any thread (MT-Safe)"
)]
mod glibc {
    use std::ffi::c_int;

    unsafe extern "C" {
        /// `malloc_trim(3)`: gives whole free pages of every arena back; `pad` bytes are kept at the top of the heap.
        pub(super) safe fn malloc_trim(pad: usize) -> c_int;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many looks it takes, at `open` connections, until memory is given back.
    fn looks(tide: &mut Tide, open: usize) -> Option<usize> {
        (1..1000).find(|_| tide.look(open, true) == Some(Ebb::Burst))
    }

    #[test]
    fn memory_goes_back_once_after_a_burst() {
        let mut tide = Tide { started: true, ..Tide::default() };
        assert_eq!(tide.look(2000, true), None);
        assert_eq!(looks(&mut tide, 20), Some(10));
        assert_eq!(looks(&mut tide, 20), None);
    }

    #[test]
    fn few_connections_and_load_that_stays_are_left_alone() {
        let mut tide = Tide { started: true, ..Tide::default() };
        assert_eq!(tide.look(63, true), None);
        assert_eq!(looks(&mut tide, 0), None);
        assert_eq!(tide.look(2000, true), None);
        assert_eq!(looks(&mut tide, 1001), None);
    }

    #[test]
    fn waves_start_the_count_anew() {
        let mut tide = Tide { started: true, ..Tide::default() };
        for _ in 0..20 {
            assert_eq!(tide.look(500, true), None);
            assert!((0..9).all(|_| tide.look(10, true).is_none()));
        }
    }

    #[test]
    fn what_the_start_leaves_behind_goes_back_once_when_the_proxy_is_ready() {
        let mut tide = Tide::default();
        let looks = [false, true, false, true].map(|ready| tide.look(0, ready));
        assert_eq!(looks, [None, Some(Ebb::Start), None, None]);
    }

    #[test]
    fn only_what_the_file_holds_and_nobody_has_changed_is_forgotten() {
        let mapping = |line: &str, anonymous: u32, swapped: u32| {
            format!(
                "{line}\nSize: 8 kB\nRss: 8 kB\nAnonymous: {anonymous} kB\nSwap: {swapped} kB\nVmFlags: rd ex mr mw me\n"
            )
        };
        let smaps = [
            mapping("1000-3000 r--p 00000000 fe:00 77 /opt/tulle proxy", 0, 0),
            mapping("3000-5000 r-xp 00002000 fe:00 77 /opt/tulle proxy", 0, 0),
            mapping("5000-7000 r-xp 00002000 fe:00 77 /a/breakpoint/in/it", 4, 0),
            mapping("7000-9000 r--p 00004000 fe:00 77 /relocated/and/swapped/out", 0, 8),
            mapping("9000-b000 rw-p 00006000 fe:00 77 /data", 0, 0),
            mapping("b000-d000 r--s 00000000 fe:00 78 /shared", 0, 0),
            mapping("d000-f000 r--p 00000000 00:00 0", 0, 0),
            mapping("f000-11000 r-xp 00000000 00:00 0 [vdso]", 0, 0),
            mapping("7f0000000000-7f0000002000 r-xp 00000000 fe:00 79 /lib/libc.so.6", 0, 0),
        ];
        assert_eq!(
            unmodified(&smaps.concat()),
            [0x1000..0x3000, 0x3000..0x5000, 0x7f00_0000_0000..0x7f00_0000_2000]
        );
        for cut_or_odd in
            ["1000-3000 r--p 0 fe:00 77 /x\nAnonymous: 0 kB\n", "-1 r--p 0 0 0 /x\nVmFlags: rd\n", "\n-\n"]
        {
            assert!(unmodified(cut_or_odd).is_empty(), "{cut_or_odd}");
        }
    }

    #[test]
    fn a_program_runs_on_without_its_code_in_memory() {
        let own = || std::fs::read_to_string("/proc/self/smaps").unwrap();
        let found = unmodified(&own());
        let code = a_program_runs_on_without_its_code_in_memory as fn();
        let code = (code as *const ()).addr();
        assert!(found.iter().any(|range| range.contains(&code)), "{found:x?}");
        give_back(Ebb::Start);
        assert_eq!(addresses("10-ff"), Some(0x10..0xff));
    }
}
