use std::sync::atomic::{AtomicUsize, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
use tokio::sync::mpsc;

use super::*;

/// A connection that both sides drive: who opens, and what arrives.
fn connection(buffer: usize) -> (Opener, mpsc::UnboundedReceiver<Stream>) {
    let (near, far) = duplex(buffer);
    let (opener, mut driver) = dialled(near);
    tokio::spawn(async move { driver.next().await });
    let (sender, arrived) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut driver = accepted(far);
        while let Ok(Some(stream)) = driver.next().await {
            let _ = sender.send(stream);
        }
    });
    (opener, arrived)
}

/// One stream's two ends, after its first byte.
async fn pair(opener: &Opener, arrived: &mut mpsc::UnboundedReceiver<Stream>) -> (Stream, Stream) {
    let mut near = opener.open().unwrap();
    near.write_all(b"x").await.unwrap();
    let mut far = arrived.recv().await.unwrap();
    assert_eq!(far.read_u8().await.unwrap(), b'x');
    (near, far)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

fn bytes(seed: u64, length: usize) -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(seed);
    (0..length).map(|_| random.random()).collect()
}

#[tokio::test]
async fn each_stream_has_its_own_bytes_in_order_and_its_own_end() {
    let (opener, mut arrived) = connection(10_000);
    let mut tasks = tokio::task::JoinSet::new();
    for seed in 0..50_u64 {
        let mut stream = opener.open().unwrap();
        tasks.spawn(async move {
            let sent = bytes(seed, usize::try_from(seed * seed * 40).unwrap());
            stream.write_all(&seed.to_be_bytes()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let mut back = Vec::new();
            let send = async {
                for piece in sent.chunks(1777) {
                    write.write_all(piece).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            tokio::join!(send, async { read.read_to_end(&mut back).await.unwrap() });
            assert!(back == sent, "stream {seed}");
        });
        let mut far = arrived.recv().await.unwrap();
        tasks.spawn(async move {
            let seed = far.read_u64().await.unwrap();
            let mut came = Vec::new();
            far.read_to_end(&mut came).await.unwrap();
            assert!(came == bytes(seed, came.len()), "stream {seed}");
            far.write_all(&came).await.unwrap();
            far.shutdown().await.unwrap();
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    until(|| opener.is_idle()).await;
}

#[tokio::test]
async fn who_does_not_read_stops_his_own_stream_and_no_other() {
    let (opener, mut arrived) = connection(4096);
    let (mut stuck, mut unread) = pair(&opener, &mut arrived).await;
    let window = WINDOW as usize;
    stuck.write_all(&vec![7; window - 1]).await.unwrap();
    let mut more = std::pin::pin!(stuck.write_all(b"more"));
    assert!(futures_util::poll!(more.as_mut()).is_pending());
    let (mut near, mut far) = pair(&opener, &mut arrived).await;
    far.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    near.read_exact(&mut answer).await.unwrap();
    assert!(futures_util::poll!(more.as_mut()).is_pending());
    let mut read = vec![0; window + 3];
    let (written, read) = tokio::join!(more, unread.read_exact(&mut read));
    assert!(written.is_ok() && read.is_ok());
}

/// What `id` can write of `bytes` without waiting, which is woken as `waker` says.
fn writes(state: &mut State, id: u32, bytes: &[u8], waker: &std::task::Waker) -> usize {
    let mut written = 0;
    let cx = Context::from_waker(waker);
    while let Poll::Ready(length) = state.poll_write(id, &cx, &bytes[written..]) {
        written += length.unwrap();
        if written == bytes.len() {
            break;
        }
    }
    written
}

#[test]
fn what_is_short_does_not_wait_behind_what_is_long_and_the_long_take_turns() {
    struct Woken(u32, std::sync::mpsc::Sender<u32>);
    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.1.send(self.0).unwrap();
        }
    }
    let mut state = State::new(true);
    let (sender, woken) = std::sync::mpsc::channel();
    let ids: Vec<u32> = (0..4).map(|_| state.open().unwrap()).collect();
    let wakers: Vec<_> =
        ids.iter().map(|id| Arc::new(Woken(*id, sender.clone())).into()).collect::<Vec<std::task::Waker>>();
    let mut written = [0; 4];
    let (mut turns, mut out) = (ids[..3].to_vec(), Vec::new());
    for round in 0..12 {
        // Three always have more than there is room for.
        for id in turns {
            let at = usize::try_from(id).unwrap() - 1;
            written[at] += writes(&mut state, id, &[0; 1 << 20], &wakers[at]);
        }
        assert_eq!(writes(&mut state, ids[3], b"ping", &wakers[3]), 4, "round {round}");
        state.take_out(&mut out);
        turns = woken.try_iter().collect();
        // As if all of it had been read at once.
        for id in &ids {
            state.refill(*id);
        }
        out.clear();
    }
    let (least, most) = (written[..3].iter().min().unwrap(), written[..3].iter().max().unwrap());
    assert!(*least * 10 >= *most * 9, "{written:?}");
}

#[test]
fn whoever_asks_again_and_again_for_room_is_woken_once() {
    struct Count(AtomicUsize);
    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let mut state = State::new(true);
    let id = state.open().unwrap();
    let woken = Arc::new(Count(AtomicUsize::new(0)));
    let waker = Arc::clone(&woken).into();
    // More than fits, and the peer never lacks window.
    while writes(&mut state, id, &[0; 1024], &waker) > 0 {
        state.refill(id);
    }
    for _ in 0..100 {
        assert_eq!(writes(&mut state, id, &[0; 1024], &waker), 0);
    }
    assert_eq!(woken.0.load(Ordering::Relaxed), 0);
    state.take_out(&mut Vec::new());
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(writes(&mut state, id, &[0; 1024], &waker), 1024);
}

#[tokio::test]
async fn what_was_cut_does_not_look_ended() {
    let (opener, mut arrived) = connection(1000);
    let (mut near, far) = pair(&opener, &mut arrived).await;
    near.write_all(b"half of it").await.unwrap();
    drop(near);
    let (mut far, mut came) = (far, Vec::new());
    let error = far.read_to_end(&mut came).await.unwrap_err();
    assert_eq!((error.kind(), &came[..]), (io::ErrorKind::ConnectionReset, &b"half of it"[..]));
    assert!(far.write_all(b"x").await.is_err());
    assert!(!opener.is_idle(), "the other side still has it");
    drop(far);
    until(|| opener.is_idle()).await;
}

#[tokio::test]
async fn who_ends_and_leaves_cuts_only_what_it_does_not_read() {
    let (opener, mut arrived) = connection(1000);
    let (mut near, mut far) = pair(&opener, &mut arrived).await;
    near.write_all(b"all of it").await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut came = Vec::new();
    far.read_to_end(&mut came).await.unwrap();
    assert_eq!(came, b"all of it");
    // Nobody will ever read it: it must not wait for room.
    assert!(far.write_all(&vec![0; 2 * WINDOW as usize]).await.is_err());
    drop(far);
    until(|| opener.is_idle()).await;
}

#[tokio::test]
async fn a_stream_that_was_never_used_leaves_nothing_behind() {
    let (opener, mut arrived) = connection(1000);
    for _ in 0..MAX_STREAMS {
        drop(opener.open().unwrap());
    }
    for _ in 0..MAX_STREAMS {
        drop(arrived.recv().await.unwrap());
    }
    until(|| opener.is_idle()).await;
    pair(&opener, &mut arrived).await;
}

#[tokio::test]
async fn streams_may_be_used_in_another_order_than_they_were_opened() {
    let (opener, mut arrived) = connection(1000);
    let (mut first, mut second) = (opener.open().unwrap(), opener.open().unwrap());
    second.write_all(b"2").await.unwrap();
    first.write_all(b"1").await.unwrap();
    for said in *b"12" {
        assert_eq!(arrived.recv().await.unwrap().read_u8().await.unwrap(), said);
    }
}

#[tokio::test]
async fn there_are_only_so_many_streams() {
    let (opener, mut arrived) = connection(1000);
    let mut pairs = Vec::new();
    for _ in 0..MAX_STREAMS {
        pairs.push(pair(&opener, &mut arrived).await);
    }
    assert!(opener.open().is_none() && opener.is_open());
    pairs.pop();
    until(|| opener.open().is_some()).await;
}

#[tokio::test]
async fn the_connection_ends_with_its_last_stream_once_nobody_can_open_more() {
    let (near, far) = duplex(1000);
    let (opener, mut driver) = dialled(near);
    let dialling = tokio::spawn(async move { driver.next().await.map(|stream| stream.is_none()) });
    let mut accepting = accepted(far);
    let mut stream = opener.open().unwrap();
    drop(opener);
    stream.write_all(b"x").await.unwrap();
    let mut far = accepting.next().await.unwrap().unwrap();
    let served = tokio::spawn(async move {
        let mut came = Vec::new();
        far.read_to_end(&mut came).await.unwrap();
        far.write_all(&came).await.unwrap();
        far.shutdown().await.unwrap();
    });
    let ended = tokio::spawn(async move { accepting.next().await.map(|stream| stream.is_none()) });
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"x");
    served.await.unwrap();
    assert!(!ended.is_finished());
    drop(stream);
    assert!(dialling.await.unwrap().unwrap() && ended.await.unwrap().unwrap());
}

#[tokio::test]
async fn who_drains_gets_no_new_stream_and_finishes_those_that_there_are() {
    let (near, far) = duplex(1000);
    let (opener, mut driver) = dialled(near);
    tokio::spawn(async move { driver.next().await });
    let mut accepting = accepted(far);
    let mut stream = opener.open().unwrap();
    stream.write_all(b"x").await.unwrap();
    let mut far = accepting.next().await.unwrap().unwrap();
    accepting.go_away();
    accepting.finish();
    let ended = tokio::spawn(async move { accepting.next().await.map(|stream| stream.is_none()) });
    until(|| !opener.is_open()).await;
    assert!(opener.open().is_none());
    far.write_all(b"y").await.unwrap();
    far.shutdown().await.unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).await.unwrap();
    assert_eq!(back, b"y");
    stream.shutdown().await.unwrap();
    drop((far, stream));
    assert!(ended.await.unwrap().unwrap());
}

/// A stream that crosses the end of the drain.
#[tokio::test]
async fn what_comes_after_the_last_stream_is_told_that_nobody_has_looked_at_it() {
    let (near, far) = duplex(1000);
    let (opener, mut driver) = dialled(near);
    let mut accepting = accepted(far);
    let mut served = opener.open().unwrap();
    served.write_all(b"x").await.unwrap();
    let mut far = tokio::select! {
        stream = accepting.next() => stream.unwrap().unwrap(),
        ended = driver.next() => panic!("{ended:?}"),
    };
    let mut crossing = opener.open().unwrap();
    crossing.write_all(b"y").await.unwrap();
    accepting.finish();
    let accepted = tokio::spawn(async move { accepting.next().await.map(|stream| stream.is_none()) });
    tokio::spawn(async move { driver.next().await });
    let error = crossing.read_u8().await.unwrap_err();
    assert!(is_unseen(&error), "{error:?}");
    assert!(is_unseen(&crossing.write_all(b"z").await.unwrap_err()));
    // What was looked at goes on.
    far.write_all(b"w").await.unwrap();
    assert_eq!(served.read_u8().await.unwrap(), b'w');
    served.shutdown().await.unwrap();
    far.shutdown().await.unwrap();
    drop((served, far, crossing));
    assert!(accepted.await.unwrap().unwrap(), "none was accepted");
    until(|| opener.is_idle()).await;
}

#[tokio::test]
async fn when_the_connection_breaks_every_stream_says_why() {
    let (near, mut far) = duplex(1000);
    let (opener, mut driver) = dialled(near);
    let driven = tokio::spawn(async move { driver.next().await });
    let (mut reading, mut writing) = (opener.open().unwrap(), opener.open().unwrap());
    let read = tokio::spawn(async move { reading.read_u8().await });
    // A stream that nobody has opened.
    far.write_all(&[0, 1, 0, 0, 0, 0, 9, b'x']).await.unwrap();
    for error in [driven.await.unwrap().unwrap_err(), read.await.unwrap().unwrap_err()] {
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let cause = error.get_ref().and_then(|shared| shared.source()).unwrap();
        assert!(cause.to_string().contains("a stream that may not be"), "{cause}");
    }
    assert!(writing.write_all(b"x").await.is_err());
    assert!(opener.open().is_none() && !opener.is_open());
    drop(writing);
    until(|| opener.is_idle()).await;
}

#[tokio::test]
async fn an_end_without_notice_breaks_what_is_under_way() {
    let (near, far) = duplex(1000);
    let (opener, mut driver) = dialled(near);
    let driven = tokio::spawn(async move { driver.next().await });
    let mut stream = opener.open().unwrap();
    drop(far);
    assert!(stream.read_u8().await.is_err());
    assert!(driven.await.unwrap().is_err());
}

/// Kind, stream and payload.
type Frame<'a> = (u8, u32, &'a [u8]);

/// Frames to one side, and what it says of them.
fn received(opens: bool, frames: &[Frame<'_>]) -> io::Result<usize> {
    let mut state = State::new(opens);
    if opens {
        state.open().unwrap();
    }
    let mut input = Vec::new();
    for (kind, stream, payload) in frames {
        input.extend_from_slice(&u16::try_from(payload.len()).unwrap().to_be_bytes());
        input.push(*kind);
        input.extend_from_slice(&stream.to_be_bytes());
        input.extend_from_slice(payload);
    }
    state.receive(&input)
}

#[test]
fn a_peer_that_breaks_the_rules_is_given_up() {
    let full = vec![0; 60_000];
    let over = 1_u32.to_be_bytes();
    let broken: [(&str, bool, &[Frame<'_>]); 7] = [
        ("opens streams though it was dialled", true, &[(0, 2, b"x")]),
        ("sends after its end", false, &[(0, 1, b"x"), (1, 1, b""), (0, 1, b"x")]),
        ("sends more than was granted", false, &[(0, 1, &full), (0, 1, &full)]),
        ("grants more than the window", true, &[(3, 1, &over)]),
        ("grants nothing that is a number", true, &[(3, 1, b"abc")]),
        ("sends a frame of no kind", false, &[(0, 1, b"x"), (9, 1, b"")]),
        ("opens a stream for a frame of no kind, and uses it", false, &[(0, 1, b"x"), (7, 1, b"x")]),
    ];
    for (what, opens, frames) in broken {
        assert!(received(opens, frames).is_err(), "{what}");
    }
    let many: Vec<Frame<'_>> = (1..=300).map(|stream| (0, stream, &b"x"[..])).collect();
    assert!(received(false, &many[..MAX_STREAMS]).is_ok());
    assert!(received(false, &many).is_err());
}

#[test]
fn what_is_late_for_a_stream_that_is_over_is_nobodys_fault() {
    let mut state = State::new(true);
    let id = state.open().unwrap();
    state.end(id);
    state.let_go(id);
    let frames =
        [0, 1, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 1, b'x', 0, 0, 2, 0, 0, 0, 1];
    assert_eq!(state.receive(&frames).unwrap(), frames.len());
    assert!(state.is_idle());
}

/// No input panics, and what is kept of it is bounded; pieces mean the same as the whole.
#[test]
fn no_input_is_too_much() {
    for seed in 0..2000 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut input = Vec::new();
        for _ in 0..random.random_range(1..60) {
            let payload = random.random_range(0..9_u16);
            input.extend_from_slice(&payload.to_be_bytes());
            input.push(random.random_range(0..6));
            input.extend_from_slice(&random.random_range(0..6_u32).to_be_bytes());
            input.extend((0..payload).map(|_| random.random_range(0..3_u8)));
        }
        let mut whole = State::new(false);
        let all = whole.receive(&input);
        let (mut parts, mut from, mut failed) = (State::new(false), 0, false);
        for to in 0..=input.len() {
            match parts.receive(&input[from..to]) {
                Ok(taken) => from += taken,
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
        assert_eq!(failed, all.is_err(), "seed {seed}");
        if let Ok(taken) = all {
            assert_eq!(taken, from, "seed {seed}");
        }
    }
}
