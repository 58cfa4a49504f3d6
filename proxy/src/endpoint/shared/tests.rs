use std::cell::Cell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::*;
use crate::testing::{Rng, seeds};

/// A connection, shared with whoever closes it.
#[derive(Clone, Debug)]
struct Fake {
    number: u32,
    open: Rc<Cell<bool>>,
    streams: usize,
}

impl Connection for Fake {
    fn is_open(&mut self) -> bool {
        self.open.get()
    }

    fn max_streams(&self) -> usize {
        self.streams
    }
}

impl PartialEq for Fake {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

fn fake(number: u32, streams: usize) -> Fake {
    Fake { number, open: Rc::new(Cell::new(true)), streams }
}

fn ready(checkout: Checkout<Fake>) -> Place<Fake> {
    match checkout {
        Checkout::Ready(place) => place,
        other => panic!("{other:?}"),
    }
}

/// With one connection, which already has a stream.
fn one(connection: &Fake, now: Instant) -> (Shared<Fake, u32>, Place<Fake>) {
    let mut shared = Shared::default();
    assert_eq!(shared.checkout(None, || 0), Checkout::Dial);
    let mut dialled = shared.dialled(connection.clone(), now);
    (shared, dialled.served.remove(0).place)
}

#[test]
fn one_dial_serves_all_who_wait() {
    let mut shared = Shared::default();
    assert_eq!(shared.checkout(None, || 0), Checkout::Dial);
    assert_eq!(shared.checkout(None, || 1), Checkout::Wait);
    let dialled = shared.dialled(fake(1, 100), Instant::now());
    assert_eq!(dialled.served.iter().map(|served| served.waiter).collect::<Vec<_>>(), [0, 1]);
    assert!(!dialled.again && dialled.failed.is_empty());
    assert_eq!((shared.streams(), shared.connections()), (2, 1));
    assert_eq!(ready(shared.checkout(None, || 2)).connection, fake(1, 100));
}

#[test]
fn an_error_of_the_one_dial_reaches_all_who_wait() {
    let mut shared = Shared::<Fake, u32>::default();
    for waiter in 0..3 {
        shared.checkout(None, || waiter);
    }
    assert_eq!(shared.failed(|_| true).failed, [0, 1, 2]);
    assert_eq!(shared.checkout(None, || 3), Checkout::Dial);
}

#[test]
fn who_came_after_a_dial_began_that_fails_is_dialled_for_again() {
    let mut shared = Shared::<Fake, u32>::default();
    for waiter in 0..3 {
        shared.checkout(None, || waiter);
    }
    let dialled = shared.failed(|waiter| *waiter < 2);
    assert_eq!((dialled.failed, dialled.again), (vec![0, 1], true));
    assert_eq!(shared.first(), Some(&2));
    assert_eq!(shared.checkout(None, || 3), Checkout::Wait);
    let dialled = shared.failed(|_| true);
    assert_eq!((dialled.failed, dialled.again), (vec![2, 3], false));
}

#[test]
fn a_full_connection_is_joined_by_another_and_shared_beyond_the_last() {
    let mut shared = Shared::default();
    let now = Instant::now();
    let all = 2 * MAX_CONNECTIONS as u32 + 5;
    for waiter in 0..all {
        shared.checkout(None, || waiter);
    }
    for number in 1..MAX_CONNECTIONS as u32 {
        let dialled = shared.dialled(fake(number, 2), now);
        assert_eq!((dialled.served.len(), dialled.again), (2, true));
    }
    let dialled = shared.dialled(fake(0, 2), now);
    assert_eq!((dialled.served.len(), dialled.again), (7, false));
    assert_eq!(shared.streams(), all as usize);
    assert!(shared.connections.iter().all(|used| used.streams <= 3));
}

#[test]
fn a_failed_second_dial_leaves_the_first_connection_to_share() {
    let (mut shared, _place) = one(&fake(1, 1), Instant::now());
    assert_eq!(shared.checkout(None, || 1), Checkout::Dial);
    let dialled = shared.failed(|_| true);
    assert_eq!((dialled.served.len(), dialled.failed.len()), (1, 0));
}

#[test]
fn who_needs_a_fresh_connection_gets_no_older_one_and_dials_but_once() {
    let (old, failed) = (Instant::now(), Instant::now() + Duration::from_secs(1));
    let (mut shared, place) = one(&fake(1, 100), old);
    // It carries something else, so that it is kept.
    assert_eq!(shared.take_older(failed), []);
    assert_eq!(shared.checkout(Some(failed), || 1), Checkout::Dial);
    assert_eq!(ready(shared.checkout(None, || 2)).connection, fake(1, 100));
    assert_eq!(shared.finish(place.id, failed), None, "nor one that is free again");
    let dialled = shared.dialled(fake(2, 100), failed);
    let served: Vec<_> = dialled.served.iter().map(|one| (one.waiter, one.place.connection.number)).collect();
    assert_eq!(served, [(1, 2)]);
    // The next that needs one, and whoever needs none.
    let place = ready(shared.checkout(Some(failed), || 3));
    assert_eq!(place.connection, fake(2, 100));
    for id in [place.id, dialled.served[0].place.id] {
        shared.finish(id, failed);
    }
    assert_eq!(shared.take_older(failed), [], "it is not closed for being idle");
    assert_eq!(ready(shared.checkout(Some(failed), || 4)).connection, fake(2, 100));
}

#[test]
fn a_place_that_becomes_free_serves_who_waits() {
    let now = Instant::now();
    let (mut shared, first) = one(&fake(1, 1), now);
    assert_eq!(shared.checkout(None, || 1), Checkout::Dial);
    assert_eq!(shared.finish(first.id, now).expect("is served").waiter, 1);
}

#[test]
fn what_was_told_to_go_away_takes_nothing_new() {
    let now = Instant::now();
    let (mut shared, place) = one(&fake(1, 100), now);
    place.connection.open.set(false);
    assert_eq!(shared.checkout(None, || 1), Checkout::Dial);
    assert_eq!(shared.finish(place.id, now), None);
    assert_eq!(shared.dialled(fake(2, 100), now).served[0].place.connection, fake(2, 100));
}

#[test]
fn a_server_that_closes_at_once_is_not_dialled_in_circles() {
    let mut shared = Shared::default();
    shared.checkout(None, || 0);
    let closed = fake(1, 100);
    closed.open.set(false);
    let dialled = shared.dialled(closed, Instant::now());
    assert_eq!((dialled.failed.as_slice(), dialled.again), (&[0][..], false));
}

#[test]
fn a_connection_without_streams_is_closed_in_the_end() {
    let now = Instant::now();
    let (mut shared, place) = one(&fake(1, 100), now);
    assert!(shared.sweep(now + 2 * IDLE, None).is_empty());
    shared.finish(place.id, now + 2 * IDLE);
    assert!(shared.sweep(now + 2 * IDLE, None).is_empty());
    assert_eq!(shared.sweep(now + 3 * IDLE, None), [fake(1, 100)]);
}

/// What clients, dials and servers do, in any order.
struct World {
    shared: Shared<Fake, u32>,
    now: Instant,
    rng: Rng,
    all: Vec<Fake>,
    used: Vec<Place<Fake>>,
    waiting: BTreeSet<u32>,
    /// Left without the pool's knowledge.
    gone: BTreeSet<u32>,
    dialling: bool,
}

impl World {
    fn step(&mut self, number: u32) {
        match self.rng.below(10) {
            0..4 => match self.shared.checkout(None, || number) {
                Checkout::Ready(place) => self.take(place),
                answer => {
                    self.waiting.insert(number);
                    assert_eq!(answer == Checkout::Dial, !self.dialling, "not exactly one dial");
                    self.dialling = true;
                }
            },
            4..6 if self.dialling => {
                let dialled = self.dial();
                self.dialling = dialled.again;
                for waiter in dialled.failed {
                    assert!(self.waiting.remove(&waiter) || self.gone.remove(&waiter), "told twice");
                }
                self.serve(dialled.served);
            }
            6..8 if !self.used.is_empty() => {
                let place = self.used.swap_remove(self.rng.below(self.used.len()));
                let served = self.shared.finish(place.id, self.now);
                self.serve(served.into_iter().collect());
            }
            8 if !self.all.is_empty() && self.rng.one_in(3) => self.rng.choose(&self.all).open.set(false),
            8 => drop(self.shared.sweep(self.now, None)),
            _ => self.gone.extend(self.waiting.pop_first()),
        }
    }

    fn dial(&mut self) -> Dialled<Fake, u32> {
        if self.rng.one_in(3) {
            // Those who came before it began; or whose time is over.
            let before = self.rng.below(400) as u32;
            return self.shared.failed(|waiter| *waiter < before);
        }
        let connection = fake(self.all.len() as u32, 1 + self.rng.below(3));
        connection.open.set(!self.rng.one_in(10));
        self.all.push(connection.clone());
        self.shared.dialled(connection, self.now)
    }

    fn serve(&mut self, mut served: Vec<Served<Fake, u32>>) {
        while let Some(Served { waiter, place }) = served.pop() {
            if self.gone.remove(&waiter) {
                served.extend(self.shared.finish(place.id, self.now));
            } else {
                assert!(self.waiting.remove(&waiter), "served twice");
                self.take(place);
            }
        }
    }

    fn take(&mut self, place: Place<Fake>) {
        assert!(place.connection.open.get(), "a closed connection was handed out");
        self.used.push(place);
    }

    fn check(&mut self) {
        assert_eq!(self.shared.dialling, self.dialling);
        assert!(self.shared.connections() <= MAX_CONNECTIONS);
        let waiting = self.shared.waiting.len();
        assert_eq!(waiting, self.waiting.len() + self.gone.len(), "somebody was forgotten");
        assert!(waiting == 0 || self.dialling, "somebody waits for nothing");
        drop(self.shared.sweep(self.now, None));
        let on_open = self.used.iter().filter(|place| place.connection.open.get()).count();
        assert_eq!(self.shared.streams(), on_open, "a stream leaked");
    }
}

#[test]
fn streams_are_never_lost_and_whoever_waits_is_always_answered() {
    seeds(500, |_, rng| {
        let mut world = World {
            shared: Shared::default(),
            now: Instant::now(),
            rng,
            all: Vec::new(),
            used: Vec::new(),
            waiting: BTreeSet::new(),
            gone: BTreeSet::new(),
            dialling: false,
        };
        for number in 0..400 {
            world.now += Duration::from_secs(world.rng.below(10) as u64);
            world.step(number);
            world.check();
        }
    });
}
