//! A connection that is made of bytes: what will be read is given, what is written is kept.

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tulle_proxy::wire::h1::Transport;

/// Gives out its pieces, one for each read, and then the end of the stream, or nothing more.
pub struct Wire {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
    written: Written,
}

/// What was written to a [`Wire`].
#[derive(Clone, Default)]
pub struct Written(Arc<Mutex<Vec<u8>>>);

// === impl Wire ===

impl Wire {
    pub fn new<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, ends: bool) -> (Self, Written) {
        let written = Written::default();
        let pieces = pieces.into_iter().map(<[u8]>::to_vec).collect();
        (Self { pieces, ends, written: written.clone() }, written)
    }
}

impl Transport for Wire {}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Some(mut piece) = self.pieces.pop_front() else {
            return if self.ends { Poll::Ready(Ok(())) } else { Poll::Pending };
        };
        let rest = piece.split_off(piece.len().min(buf.remaining()));
        buf.put_slice(&piece);
        if !rest.is_empty() {
            self.pieces.push_front(rest);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.written.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

// === impl Written ===

impl Written {
    /// All of it so far.
    pub fn take(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().expect("nobody panics with it"))
    }
}

// === Driving ===

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls `future` for as long as it wakes itself; `None`: it waits for something that never comes.
///
/// There are timers, so that they can be made, but their time does not come.
pub fn run<F: Future>(future: F) -> Option<F::Output> {
    static RUNTIME: LazyLock<tokio::runtime::Runtime> = LazyLock::new(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .expect("there is room for a timer")
    });
    let _guard = RUNTIME.enter();
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
    }
    None
}
