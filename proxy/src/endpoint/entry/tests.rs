use std::cell::{Cell, RefCell};
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::*;

/// What became of a waiter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Waits,
    Has { connection: u32, fresh: bool },
    Failed,
    Gone,
}

#[derive(Debug, Clone)]
struct Request(Rc<Cell<Fate>>);

impl Request {
    fn new() -> Self {
        Self(Rc::new(Cell::new(Fate::Waits)))
    }
}

impl Waiter for Request {
    type Connection = u32;

    fn give(self, connection: u32, fresh: bool) -> Result<(), u32> {
        if self.is_gone() {
            return Err(connection);
        }
        assert_eq!(self.0.replace(Fate::Has { connection, fresh }), Fate::Waits, "told twice");
        Ok(())
    }

    fn is_gone(&self) -> bool {
        self.0.get() == Fate::Gone
    }
}

fn wait(entry: &mut Entry<Request>) -> (Request, Option<Ticket>) {
    let request = Request::new();
    let ticket = entry.wait(request.clone(), Instant::now());
    (request, ticket)
}

#[test]
fn the_connection_used_last_is_taken_first() {
    let mut entry = Entry::<Request>::default();
    let now = Instant::now();
    entry.give(1, now);
    entry.give(2, now);
    assert_eq!(entry.take().map(|idle| idle.connection), Some(2));
    assert_eq!(entry.idle(), 1);
}

#[test]
fn a_connection_that_comes_back_serves_whoever_waits_longest_before_its_dial_is_done() {
    let mut entry = Entry::default();
    let now = Instant::now();
    let (first, ticket) = wait(&mut entry);
    let (second, other) = wait(&mut entry);
    entry.give(7, now);
    assert_eq!(first.0.get(), Fate::Has { connection: 7, fresh: false });
    assert_eq!(entry.dialled(ticket.unwrap(), 8, now), [None; 2]);
    assert_eq!(second.0.get(), Fate::Has { connection: 8, fresh: true });
    assert_eq!(entry.dialled(other.unwrap(), 9, now), [None; 2]);
    assert_eq!(entry.idle(), 1, "what nobody waits for any more is kept");
}

#[test]
fn a_burst_dials_no_more_than_the_limit_at_a_time_and_everyone_is_served() {
    let mut entry = Entry::default();
    let now = Instant::now();
    let (requests, tickets): (Vec<_>, Vec<_>) = (0..2_000).map(|_| wait(&mut entry)).unzip();
    let mut tickets: Vec<_> = tickets.into_iter().flatten().collect();
    assert_eq!(tickets.len(), FIRST_DIALS);
    let (mut connection, mut most) = (0, 0);
    while let Some(ticket) = tickets.pop() {
        connection += 1;
        tickets.extend(entry.dialled(ticket, connection, now).into_iter().flatten());
        most = most.max(tickets.len());
    }
    assert_eq!(most, MAX_DIALS);
    assert!(requests.iter().all(|request| matches!(request.0.get(), Fate::Has { fresh: true, .. })));
}

#[test]
fn an_error_reaches_everyone_who_waited_when_the_dial_began_and_nobody_else() {
    let mut entry = Entry::default();
    let (early, ticket) = wait(&mut entry);
    let (late, second) = wait(&mut entry);
    let (told, more) = entry.failed(ticket.unwrap(), None);
    assert_eq!(told.len(), 1);
    assert!(Rc::ptr_eq(&told[0].0, &early.0));
    assert_eq!(more, None, "the late one's own dial is under way");
    let (told, more) = entry.failed(second.unwrap(), None);
    assert!(Rc::ptr_eq(&told[0].0, &late.0));
    assert_eq!(more, None);
}

#[test]
fn who_came_later_waits_on_where_it_is_our_own_limits_that_leave_no_room() {
    let (mut entry, now) = (Entry::default(), Instant::now());
    let ms = |ms| now + std::time::Duration::from_millis(ms);
    let requests = [Request::new(), Request::new(), Request::new()];
    let tickets = [0, 1, 2].map(|i| entry.wait(requests[i as usize].clone(), ms(i * 100)).unwrap());
    assert_eq!(entry.first_came(), Some(now));
    // The time of the first two is over, though a connection has come for somebody since.
    entry.came += 1;
    let (told, more) = entry.failed(tickets[0], Some(ms(100)));
    assert_eq!(told.len(), 2);
    assert!(Rc::ptr_eq(&told[1].0, &requests[1].0) && more.is_none(), "more are dialled already");
    let (told, more) = entry.failed(tickets[1], Some(ms(199)));
    assert!(told.is_empty() && more.is_none());
    let (told, more) = entry.failed(tickets[2], Some(ms(199)));
    assert!(told.is_empty() && more.is_some());
    assert_eq!(entry.first_came(), Some(ms(200)));
}

#[test]
fn r02_one_dial_that_fails_beside_others_that_succeed_is_nobodys_error() {
    let mut entry = Entry::default();
    let now = Instant::now();
    let (requests, tickets): (Vec<_>, Vec<_>) = (0..100).map(|_| wait(&mut entry)).unzip();
    let mut tickets: Vec<_> = tickets.into_iter().flatten().collect();
    let slow = tickets.remove(0);
    let more = entry.dialled(tickets.remove(0), 1, now);
    tickets.extend(more.into_iter().flatten());
    let (told, more) = entry.failed(slow, None);
    tickets.extend(more);
    assert!(told.is_empty(), "the endpoint serves");

    // From here on nothing comes any more: everybody is told, at the latest by the dials that began after.
    while let Some(ticket) = tickets.pop() {
        let (told, more) = entry.failed(ticket, None);
        for request in told {
            request.0.set(Fate::Failed);
        }
        tickets.extend(more);
    }
    let served = Fate::Has { connection: 1, fresh: true };
    assert!(requests.iter().all(|request| [served, Fate::Failed].contains(&request.0.get())));
}

#[test]
fn dials_that_time_out_together_are_not_begun_again_together() {
    let mut entry = Entry::default();
    let mut tickets: Vec<_> = (0..FIRST_DIALS).filter_map(|_| wait(&mut entry).1).collect();
    let late: Vec<_> = (0..100).map(|_| wait(&mut entry).0).collect();
    while tickets.len() > 1 || entry.limit > 1 {
        let ticket = tickets.remove(0);
        tickets.extend(entry.failed(ticket, None).1);
    }
    assert_eq!(tickets.len(), 1, "one at a time for those who came later");
    assert!(late.iter().all(|request| request.0.get() == Fate::Waits));
}

#[test]
fn a_connection_is_not_lost_on_a_request_that_has_gone() {
    let mut entry = Entry::default();
    let now = Instant::now();
    let (gone, ticket) = wait(&mut entry);
    let (there, _) = wait(&mut entry);
    gone.0.set(Fate::Gone);
    assert_eq!(entry.dialled(ticket.unwrap(), 1, now), [None; 2]);
    assert_eq!(there.0.get(), Fate::Has { connection: 1, fresh: true });
}

/// Everything that the world may do, in any order.
struct World {
    entry: Entry<Request>,
    tickets: Vec<Ticket>,
    waiting: RefCell<Vec<Request>>,
    in_use: Vec<u32>,
    made: u32,
}

impl World {
    fn step(&mut self, rng: &mut StdRng, now: Instant) {
        match rng.random_range(0..10) {
            0..4 => match self.entry.take() {
                Some(idle) => self.in_use.push(idle.connection),
                None => {
                    let (request, ticket) = wait(&mut self.entry);
                    self.tickets.extend(ticket);
                    self.waiting.get_mut().push(request);
                }
            },
            4..6 if !self.in_use.is_empty() => {
                let connection = self.in_use.swap_remove(rng.random_range(0..self.in_use.len()));
                // One in eight breaks in use.
                if rng.random_range(0..8) > 0 {
                    self.entry.give(connection, now);
                }
            }
            6..8 if !self.tickets.is_empty() => {
                let ticket = self.tickets.swap_remove(rng.random_range(0..self.tickets.len()));
                if rng.random_bool(0.8) {
                    self.made += 1;
                    self.tickets.extend(self.entry.dialled(ticket, self.made, now).into_iter().flatten());
                } else {
                    let (told, more) = self.entry.failed(ticket, None);
                    for request in told.iter().filter(|request| !request.is_gone()) {
                        assert_eq!(request.0.replace(Fate::Failed), Fate::Waits, "told twice");
                    }
                    self.tickets.extend(more);
                }
            }
            8 => {
                let waiting = self.waiting.get_mut();
                if !waiting.is_empty() {
                    let index = rng.random_range(0..waiting.len());
                    let request = &waiting[index];
                    if request.0.get() == Fate::Waits {
                        request.0.set(Fate::Gone);
                    }
                }
            }
            _ => self.entry.retain(|idle| idle.connection % 5 != 0),
        }
        let in_use = &mut self.in_use;
        self.waiting.get_mut().retain(|request| match request.0.get() {
            Fate::Waits => true,
            Fate::Has { connection, .. } => {
                assert!(!in_use.contains(&connection), "one connection, two requests");
                in_use.push(connection);
                false
            }
            Fate::Failed | Fate::Gone => false,
        });
    }

    fn check(&self) {
        let waiting = self.waiting.borrow().iter().filter(|request| !request.is_gone()).count();
        assert_eq!(self.tickets.len(), self.entry.dialling);
        assert!((1..=MAX_DIALS).contains(&self.entry.limit));
        assert!(waiting == 0 || self.entry.dialling > 0, "{waiting} wait for nothing");
        assert!(waiting == 0 || self.entry.idle() == 0, "{waiting} wait beside idle connections");
    }
}

#[test]
fn simulation_nobody_waits_for_nothing_and_no_connection_serves_two() {
    let seeds = std::env::var_os("TULLE_TEST_SEEDS").and_then(|seeds| seeds.to_str()?.parse().ok());
    for seed in 0..seeds.unwrap_or(300) {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now();
        let mut world = World {
            entry: Entry::default(),
            tickets: Vec::new(),
            waiting: RefCell::default(),
            in_use: Vec::new(),
            made: 0,
        };
        let steps = rng.random_range(10..500);
        let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..steps {
                world.step(&mut rng, now);
                world.check();
            }
        }));
        assert!(played.is_ok(), "seed {seed}");
    }
}
