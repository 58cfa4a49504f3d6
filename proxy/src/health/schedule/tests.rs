use super::*;
use crate::state::Question;
use crate::testing::{Rng, seeds};

fn check(interval: u64, healthy: u32, unhealthy: u32) -> HealthCheck {
    HealthCheck {
        question: Question::Tcp,
        interval: Duration::from_millis(interval),
        timeout: Duration::from_secs(1),
        healthy_threshold: healthy,
        unhealthy_threshold: unhealthy,
    }
}

/// Asks the only endpoint when it is due, at once with what it answers; what has changed.
fn ask(schedule: &mut Schedule, now: &mut Instant, passed: bool) -> Option<bool> {
    *now = schedule.wake().unwrap();
    let ticket = schedule.next(*now).unwrap();
    assert!(schedule.next(*now).is_none(), "nobody is asked twice");
    schedule.answered(ticket, Some(passed), *now, 0)
}

#[test]
fn only_so_many_answers_in_a_row_change_the_health() {
    let (mut schedule, mut now) = (Schedule::default(), Instant::now());
    schedule.put(7, &check(1000, 2, 3), now, 0);
    let answers = [
        (true, None),
        (false, None),
        (false, None),
        // Begins anew.
        (true, None),
        (false, None),
        (false, None),
        (false, Some(false)),
        (false, None),
        (true, None),
        (false, None),
        (true, None),
        (true, Some(true)),
        (true, None),
    ];
    for (i, (passed, changed)) in answers.into_iter().enumerate() {
        assert_eq!(ask(&mut schedule, &mut now, passed), changed, "answer {i}");
    }
    assert!(!schedule.remove(7));
    assert!(schedule.endpoints.is_empty() && schedule.wake().is_none());
}

#[test]
fn what_is_no_verdict_neither_counts_nor_begins_anew() {
    let (mut schedule, mut now) = (Schedule::default(), Instant::now());
    schedule.put(1, &check(1000, 1, 2), now, 0);
    assert_eq!(ask(&mut schedule, &mut now, false), None);
    for _ in 0..5 {
        now = schedule.wake().unwrap();
        let ticket = schedule.next(now).unwrap();
        assert_eq!(schedule.answered(ticket, None, now, 0), None);
        assert!(schedule.wake() > Some(now), "it is asked again, at its own pace");
    }
    assert_eq!(ask(&mut schedule, &mut now, false), Some(false), "the second in a row");
}

#[test]
fn another_check_is_made_soon_keeps_the_health_and_forgets_the_answers() {
    let (mut schedule, mut now) = (Schedule::default(), Instant::now());
    schedule.put(1, &check(60_000, 1, 2), now, 0);
    assert_eq!(ask(&mut schedule, &mut now, false), None);
    // Asked by the check before, and answered after it was replaced.
    now = schedule.wake().unwrap();
    let late = schedule.next(now).unwrap();
    schedule.put(1, &check(60_000, 1, 2), now, 0);
    assert_eq!(schedule.wake(), Some(now));
    assert_eq!(schedule.answered(late, Some(false), now, 0), None, "of the check before");
    assert_eq!(ask(&mut schedule, &mut now, false), None, "the first of this one");
    assert_eq!(ask(&mut schedule, &mut now, false), Some(false));
    schedule.put(1, &check(60_000, 2, 2), now, 0);
    assert_eq!(ask(&mut schedule, &mut now, true), None);
    assert_eq!(ask(&mut schedule, &mut now, true), Some(true), "it was unhealthy");
    assert_eq!(ask(&mut schedule, &mut now, false), None);
    assert_eq!(ask(&mut schedule, &mut now, false), Some(false));
    assert!(schedule.remove(1), "it was unhealthy");
}

#[test]
fn checks_that_take_longer_than_the_interval_do_not_overlap() {
    let (mut schedule, start) = (Schedule::default(), Instant::now());
    schedule.put(1, &check(100, 1, 1), start, 0);
    let ticket = schedule.next(start).unwrap();
    assert_eq!(schedule.wake(), None);
    let end = start + Duration::from_secs(1);
    assert!(schedule.next(end).is_none());
    assert_eq!(schedule.answered(ticket, Some(false), end, 0), Some(false));
    assert_eq!(schedule.wake(), Some(end));
}

#[test]
fn an_interval_without_end_is_no_harm() {
    let (mut schedule, now) = (Schedule::default(), Instant::now());
    schedule.put(1, &HealthCheck { interval: Duration::MAX, ..check(0, 1, 1) }, now, u64::MAX);
    let ticket = schedule.next(now + FIRST).unwrap();
    assert_eq!(schedule.answered(ticket, Some(true), now + FIRST, u64::MAX), None);
    assert!(schedule.wake().is_some_and(|at| at > now + LONGEST));
}

/// An endpoint of the simulation as it should be, told the simple way.
struct Model {
    check: HealthCheck,
    up: bool,
    answers: Vec<bool>,
    healthy: bool,
    asked: Option<Instant>,
    last: Option<Instant>,
}

impl Model {
    fn new(check: HealthCheck) -> Self {
        Self { check, up: true, answers: Vec::new(), healthy: true, asked: None, last: None }
    }

    fn answered(&mut self, passed: bool) -> Option<bool> {
        self.answers.push(passed);
        let needed = if self.healthy { self.check.unhealthy_threshold } else { self.check.healthy_threshold };
        let last = self.answers.iter().rev().take(needed as usize);
        let all = last.clone().count() == needed as usize && last.clone().all(|one| *one != self.healthy);
        all.then(|| {
            self.healthy = !self.healthy;
            self.answers.clear();
            self.healthy
        })
    }
}

struct Simulation {
    rng: Rng,
    now: Instant,
    schedule: Schedule,
    endpoints: HashMap<Id, Model>,
    /// Everybody answers at once, and nobody is late any more.
    prompt: bool,
    /// What is under way, and whether it is of the check that holds.
    asked: Vec<(Ticket, bool)>,
}

impl Simulation {
    fn check(&mut self) -> HealthCheck {
        let interval = 200 + 100 * self.rng.below(20) as u64;
        check(interval, 1 + self.rng.below(3) as u32, 1 + self.rng.below(3) as u32)
    }

    /// Something happens.
    fn step(&mut self) {
        self.now += Duration::from_millis(self.rng.below(40) as u64);
        let id = self.rng.below(200);
        match self.rng.below(20) {
            0 | 1 => self.put(id),
            2 if self.rng.one_in(4) => {
                let model = self.endpoints.remove(&id);
                let unhealthy = self.schedule.remove(id);
                assert_eq!(unhealthy, model.is_some_and(|model| !model.healthy));
                self.outdated(id);
            }
            3..8 => {
                if let Some(model) = self.endpoints.get_mut(&id) {
                    model.up = !model.up;
                }
            }
            8..14 if !self.asked.is_empty() => self.answer(),
            _ => self.begin(),
        }
        assert!(self.asked.len() <= MAX_ASKED);
        let waits = self.schedule.wake().is_some_and(|at| at <= self.now);
        assert!(!waits || self.asked.len() < MAX_ASKED);
    }

    fn put(&mut self, id: Id) {
        let check = self.check();
        self.schedule.put(id, &check, self.now, self.rng.next());
        let healthy = self.endpoints.get(&id).is_none_or(|model| model.healthy);
        self.endpoints.insert(id, Model { healthy, ..Model::new(check) });
        self.outdated(id);
    }

    fn outdated(&mut self, id: Id) {
        self.asked.iter_mut().filter(|(ticket, _)| ticket.id == id).for_each(|(_, holds)| *holds = false);
    }

    fn begin(&mut self) {
        while let Some(ticket) = self.schedule.next(self.now) {
            let model = self.endpoints.get_mut(&ticket.id).unwrap();
            assert!(model.asked.is_none(), "asked twice at a time");
            if let Some(last) = model.last {
                assert!(self.now - last >= model.check.interval.mul_f64(0.899), "too soon");
                let late = self.prompt && self.now - last > model.check.interval.mul_f64(1.101);
                assert!(!late, "too late");
            }
            (model.asked, model.last) = (Some(self.now), Some(self.now));
            self.asked.push((ticket, true));
        }
    }

    fn answer(&mut self) {
        let at = self.rng.below(self.asked.len());
        let (ticket, holds) = self.asked.swap_remove(at);
        let id = ticket.id;
        let passed = self.endpoints.get(&id).is_some_and(|model| model.up);
        let changed = self.schedule.answered(ticket, Some(passed), self.now, self.rng.next());
        let expected = match self.endpoints.get_mut(&id).filter(|_| holds) {
            Some(model) => {
                model.asked = None;
                model.answered(passed)
            }
            None => None,
        };
        assert_eq!(changed, expected);
    }

    /// With everything answered at once, everybody is asked in every interval, give or take a tenth.
    fn settle(&mut self) {
        while !self.asked.is_empty() {
            self.answer();
        }
        for model in self.endpoints.values_mut() {
            model.up = true;
        }
        let end = self.now + Duration::from_secs(10);
        while self.now < end {
            self.begin();
            while !self.asked.is_empty() {
                self.answer();
            }
            match self.schedule.wake() {
                // What was late has had its turn.
                Some(at) if at > self.now => (self.now, self.prompt) = (at, true),
                Some(_) => {}
                None => break,
            }
        }
        assert_eq!(self.schedule.endpoints.is_empty(), self.endpoints.is_empty());
        for (id, model) in &self.endpoints {
            let late = model.last.is_none_or(|last| self.now - last > model.check.interval.mul_f64(1.101));
            assert!(!late, "{id} is forgotten");
            assert!(model.healthy, "{id} is up");
            assert!(!self.schedule.remove(*id));
        }
        assert!(
            self.schedule.endpoints.is_empty() && self.schedule.asked == 0 && self.schedule.due.is_empty()
        );
    }
}

#[test]
fn every_endpoint_is_asked_in_time_and_its_health_is_what_its_answers_say() {
    seeds(100, |_, rng| {
        let (now, schedule) = (Instant::now(), Schedule::default());
        let mut simulation = Simulation {
            rng,
            now,
            schedule,
            endpoints: HashMap::default(),
            prompt: false,
            asked: Vec::new(),
        };
        for _ in 0..3_000 {
            simulation.step();
        }
        simulation.settle();
    });
}

#[test]
fn the_first_checks_are_spread_and_begin_within_a_second() {
    seeds(10, |_, mut rng| {
        let (mut schedule, start) = (Schedule::default(), Instant::now());
        (0..1_000).for_each(|id| schedule.put(id, &check(60_000, 1, 1), start, rng.next()));
        let times: BTreeSet<Instant> = schedule.due.iter().map(|(at, _)| *at).collect();
        assert!(times.len() > 990, "{} different times", times.len());
        assert!(times.last().is_some_and(|last| *last <= start + FIRST));
        let early = times.iter().filter(|at| **at < start + FIRST / 2).count();
        assert!((400..600).contains(&early), "{early} in the first half");
    });
}
