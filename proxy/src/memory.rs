//! Memory that a burst of connections leaves behind goes back to the kernel.
//!
//! Decides when: once most of the connections of a busier time have been gone for a while. The C library keeps what is freed
//! between what is still used, which after a burst is nearly all of it, and gives it back when asked; asking costs
//! milliseconds in which a worker may have to wait, so it must never happen under load. `app` calls it once a second.

/// Finds the moment at which it is worth asking.
#[derive(Debug, Default)]
pub struct Tide {
    /// The most connections since memory was last given back.
    highest: usize,
    /// For how many looks in a row most of them have been gone.
    low: u32,
}

/// A busier time than this is worth the trouble.
const BURST: usize = 64;
/// How many looks in a row it must be over, so that what comes in waves keeps what it will need again.
const LOOKS: u32 = 10;

// === impl Tide ===

impl Tide {
    /// Takes how many connections are `open` now; whether a burst has been over for a while.
    pub fn has_ebbed(&mut self, open: usize) -> bool {
        self.highest = self.highest.max(open);
        let over = self.highest >= BURST && open <= self.highest / 2;
        self.low = if over { self.low + 1 } else { 0 };
        if self.low < LOOKS {
            return false;
        }
        *self = Self { highest: open, low: 0 };
        true
    }
}

/// Gives back what the C library keeps of freed memory, of all threads. Other C libraries than glibc keep little.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    glibc::malloc_trim(0);
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
        (1..1000).find(|_| tide.has_ebbed(open))
    }

    #[test]
    fn memory_goes_back_once_after_a_burst() {
        let mut tide = Tide::default();
        assert!(!tide.has_ebbed(2000));
        assert_eq!(looks(&mut tide, 20), Some(10));
        assert_eq!(looks(&mut tide, 20), None);
    }

    #[test]
    fn few_connections_and_load_that_stays_are_left_alone() {
        let mut tide = Tide::default();
        assert!(!tide.has_ebbed(63));
        assert_eq!(looks(&mut tide, 0), None);
        assert!(!tide.has_ebbed(2000));
        assert_eq!(looks(&mut tide, 1001), None);
    }

    #[test]
    fn waves_start_the_count_anew() {
        let mut tide = Tide::default();
        for _ in 0..20 {
            assert!(!tide.has_ebbed(500));
            assert!((0..9).all(|_| !tide.has_ebbed(10)));
        }
    }
}
