use zeroize::Zeroizing;

use super::super::record::Next;
use super::*;

const HOUR: u64 = 3600;
const YEAR: u64 = 365 * 24 * HOUR;
const START: u64 = 1_800_000_000;

/// A control plane that steps once a second, by clocks of its own, and what it keeps.
struct Stage {
    machine: Machine,
    kept: String,
    seen: Seen,
    now: SystemTime,
    tick: Instant,
    events: Vec<Event>,
    /// How many roots were made.
    made: u32,
    /// Killed after everything that is kept.
    killed: bool,
}

fn root(pin: &str) -> Root {
    let validity = (time(START - YEAR), time(START + 9 * YEAR));
    Root { pin: pin.to_owned(), validity, can_follow: true, ours: true }
}

impl Stage {
    fn new() -> Self {
        let lifetime = Duration::from_secs(60);
        let seen = Seen {
            root: root("root 0"),
            lifetime,
            longest: lifetime,
            waits: false,
            before: Duration::from_secs(90 * 24 * HOUR),
            void: false,
        };
        let kept = Record { lifetime: 60, ..Record::default() }.to_text();
        let (now, tick) = (time(START), Instant::now());
        Self {
            machine: Machine::default(),
            kept,
            seen,
            now,
            tick,
            events: Vec::new(),
            made: 0,
            killed: false,
        }
    }

    fn record(&self) -> Record {
        Record::read(Some(&self.kept)).unwrap()
    }

    fn phase(&self) -> &'static str {
        self.record().state.word()
    }

    fn keep(&mut self, record: &Record) {
        self.kept = record.to_text();
        if self.killed {
            self.machine = Machine::default();
        }
    }

    fn want(&mut self, wanted: Wanted) {
        self.kept = Record { wanted: Some(wanted), ..self.record() }.to_text();
    }

    /// One second.
    fn step(&mut self) -> Step {
        self.now += Duration::from_secs(1);
        self.tick += Duration::from_secs(1);
        let record = self.record();
        let step = self.machine.step(&record, &self.seen, self.now, self.tick);
        match &step {
            Step::Wait => {}
            Step::Begin(why) => {
                self.made += 1;
                let next = Next {
                    pin: format!("root {}", self.made),
                    key: Zeroizing::new(format!("key {}", self.made)),
                    certificate: format!("certificate {}", self.made),
                    bridge: Some(format!("bridge {}", self.made)),
                };
                let from = self.seen.root.pin.clone();
                let root = format!("certificate of {from}");
                self.keep(&record.published((from, root), next, *why, self.now));
            }
            Step::Keep(next, event) => {
                self.events.push(*event);
                self.keep(next);
            }
            Step::Replace => {
                let pin = record.change().unwrap().next.pin.clone();
                self.seen.root =
                    Root { validity: (self.now, self.now + Duration::from_secs(10 * YEAR)), ..root(&pin) };
                self.keep(&record.completed(self.now));
            }
        }
        step
    }

    fn steps(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.step();
        }
    }

    /// Until a state, at most this many seconds; how many it took.
    fn until(&mut self, phase: &str, at_most: u64) -> u64 {
        for second in 0..=at_most {
            if self.phase() == phase {
                return second;
            }
            self.step();
        }
        panic!("{} and not {phase} after {at_most} s: {:?}", self.phase(), self.events);
    }
}

#[test]
fn a_rotation_goes_through_every_state_and_makes_one_root() {
    for killed in [false, true] {
        let mut stage = Stage { killed, ..Stage::new() };
        for round in 1..=3 {
            stage.want(Wanted::Rotation);
            stage.until("published", 1);
            let key = stage.record().change().unwrap().next.key.clone();
            // A quarter of the leaves' life without anybody who is waited for.
            let took = stage.until("switched", 30);
            assert!((15..=17).contains(&took), "{took}");
            stage.until("draining", 2);
            let took = stage.until("retired", 200);
            assert!((75..=77).contains(&took), "a life and its slack: {took}");
            assert_eq!(stage.record().change().unwrap().next.key, key, "the same key all the way");
            stage.until("idle", 2);
            assert_eq!((stage.made, stage.seen.root.pin.clone()), (round, format!("root {round}")));
            stage.steps(300);
            assert_eq!(stage.phase(), "idle");
            assert_eq!(stage.record().former.len(), usize::try_from(round).unwrap());
        }
        assert_eq!(stage.events, [[Event::Switched, Event::Draining, Event::Retired]; 3].concat());
    }
}

#[test]
fn it_is_killed_at_any_moment_and_ends_all_the_same() {
    for second in 0..130 {
        let mut stage = Stage::new();
        stage.want(Wanted::Rotation);
        stage.steps(second);
        // Away for a while; its clock goes on.
        stage.machine = Machine::default();
        stage.now += Duration::from_secs(7);
        stage.tick += Duration::from_secs(1);
        for _ in 0..300 {
            stage.step();
        }
        assert_eq!((stage.phase(), stage.made), ("idle", 1), "killed after {second} s");
        assert_eq!(stage.seen.root.pin, "root 1");
    }
}

#[test]
fn nothing_is_switched_before_everybody_has_the_bundle_for_a_while() {
    let mut stage = Stage::new();
    stage.want(Wanted::Rotation);
    stage.seen.waits = true;
    stage.steps(5000);
    assert_eq!(stage.phase(), "published");
    // Somebody comes who has it not.
    for _ in 0..5 {
        stage.seen.waits = false;
        stage.steps(10);
        stage.seen.waits = true;
        stage.steps(1);
    }
    assert_eq!(stage.phase(), "published");
    stage.seen.waits = false;
    stage.until("switched", 17);
    // A replica that is not known to issue under it.
    stage.seen.waits = true;
    stage.steps(5000);
    assert_eq!(stage.phase(), "switched", "leaves of the old root may still be made");
    stage.seen.waits = false;
    stage.until("draining", 2);
    // From now on nobody is waited for but time.
    stage.seen.waits = true;
    stage.until("idle", 80);
}

#[test]
fn a_control_plane_that_has_just_come_waits_for_proxies_to_come_back() {
    let mut stage = Stage::new();
    stage.want(Wanted::Rotation);
    stage.until("published", 1);
    for _ in 0..10 {
        stage.steps(14);
        stage.machine = Machine::default();
    }
    assert_eq!(stage.phase(), "published", "nobody was seen for long enough");
    stage.machine.rest();
    stage.until("switched", 17);
}

#[test]
fn it_is_given_up_only_before_anything_is_issued_under_the_new_root() {
    let mut stage = Stage::new();
    stage.want(Wanted::Rotation);
    stage.seen.waits = true;
    stage.steps(10);
    stage.want(Wanted::Abort);
    stage.step();
    assert_eq!((stage.phase(), stage.events.as_slice()), ("idle", [Event::Aborted].as_slice()));
    assert_eq!(stage.record().wanted, None);

    for phase in ["switched", "draining"] {
        let mut stage = Stage::new();
        stage.want(Wanted::Rotation);
        stage.until("published", 1);
        stage.until(phase, 40);
        stage.want(Wanted::Abort);
        stage.seen.waits = true;
        stage.steps(2);
        assert_eq!(stage.record().wanted, None, "{phase}: forgotten");
        stage.seen.waits = false;
        stage.until("idle", 200);
        assert_eq!(stage.seen.root.pin, "root 1", "{phase}");
    }
    let mut stage = Stage::new();
    stage.want(Wanted::Abort);
    stage.step();
    assert_eq!((stage.phase(), stage.record().wanted, stage.made), ("idle", None, 0));
}

#[test]
fn a_root_whose_key_is_not_here_is_not_followed() {
    let mut stage = Stage::new();
    stage.seen.root.can_follow = false;
    stage.seen.root.validity.1 = time(START + HOUR);
    stage.want(Wanted::Rotation);
    stage.steps(100);
    assert_eq!(
        (stage.made, stage.record().wanted, stage.events.as_slice()),
        (0, None, [Event::Refused].as_slice())
    );
}

#[test]
fn a_root_near_its_end_is_followed_if_it_is_ours_and_was_made_for_longer() {
    let day = 24 * HOUR;
    // (first valid moment before, last after, ours, schedule in days, rotated)
    for (from, until, ours, schedule, rotated) in [
        (9 * YEAR, 91 * day, true, 90, false),
        (9 * YEAR, 89 * day, true, 90, true),
        (9 * YEAR, 89 * day, true, 0, false),
        (9 * YEAR, 89 * day, false, 90, false),
        // It never has ninety days: a third of its life counts.
        (19 * day, 41 * day, true, 90, false),
        (50 * day, 10 * day, true, 90, true),
    ] {
        let mut stage = Stage::new();
        stage.seen.before = Duration::from_secs(schedule * day);
        stage.seen.root.validity = (time(START - from), time(START + until));
        stage.seen.root.ours = ours;
        stage.steps(200);
        assert_eq!(stage.made == 1, rotated, "{from} {until} {ours} {schedule}");
        assert!(stage.made <= 1);
        if rotated {
            assert_eq!(stage.seen.root.pin, "root 1");
        }
    }
}

#[test]
fn a_clock_that_is_set_neither_shortens_nor_begins_anything() {
    for set in [YEAR as i64, -(YEAR as i64), 600, -600] {
        let mut stage = Stage::new();
        stage.want(Wanted::Rotation);
        stage.until("draining", 30);
        stage.steps(10);
        stage.now = time(seconds(stage.now).saturating_add_signed(set));
        let took = stage.until("retired", 100);
        assert!((65..=68).contains(&took), "{set}: {took}");
        assert!(stage.events.contains(&Event::ClockSet), "{set}");
    }
    // A leap of years makes a root old for a moment; it is set right again.
    let mut stage = Stage::new();
    stage.steps(5);
    stage.now += Duration::from_secs(9 * YEAR);
    stage.steps(10);
    stage.now -= Duration::from_secs(9 * YEAR);
    stage.steps(100);
    assert_eq!(stage.made, 0);
    // While proxies are waited for it only begins to wait anew.
    let mut stage = Stage::new();
    stage.want(Wanted::Rotation);
    stage.until("published", 1);
    stage.steps(10);
    stage.now += Duration::from_secs(HOUR);
    let took = stage.until("switched", 30);
    assert!(took >= 15, "{took}");
}

#[test]
fn the_longest_life_of_any_leaf_is_waited_out() {
    // Leaves lived for an hour until a minute ago.
    let mut stage = Stage::new();
    stage.kept = Record { lifetime: HOUR, ..Record::default() }.to_text();
    stage.steps(60);
    assert_eq!(stage.record().lifetime, 60);
    stage.want(Wanted::Rotation);
    stage.until("draining", 30);
    let took = stage.until("retired", 2 * HOUR);
    assert!((HOUR - 100..HOUR).contains(&took), "{took}");
    // At another replica they live for longer.
    let mut stage = Stage::new();
    stage.seen.longest = Duration::from_secs(600);
    stage.want(Wanted::Rotation);
    stage.until("draining", 30);
    let took = stage.until("retired", 2 * HOUR);
    assert!(took >= 600, "{took}");
    // What a damaged report says is no reason to fall over.
    let mut stage = Stage::new();
    stage.seen.longest = Duration::from_secs(u64::MAX);
    stage.want(Wanted::Rotation);
    stage.until("draining", 30);
    let State::Draining { until, .. } = stage.record().state else { panic!("{}", stage.phase()) };
    assert_eq!(until, seconds(stage.seen.root.validity.1) + 600);
    // None outlives the root.
    let mut stage = Stage::new();
    stage.seen.longest = Duration::from_secs(HOUR);
    stage.seen.before = Duration::ZERO;
    stage.seen.root.validity.1 = time(START + 100);
    stage.want(Wanted::Rotation);
    stage.until("published", 1);
    stage.until("idle", 600 + HOUR / 4);
    assert!(seconds(stage.now) >= START + 100);
}

#[test]
fn an_old_root_that_has_ended_waits_for_nobody() {
    let mut stage = Stage::new();
    stage.seen.before = Duration::ZERO;
    stage.want(Wanted::Rotation);
    stage.seen.waits = true;
    stage.until("published", 1);
    stage.seen.root.validity.1 = time(START + 50);
    stage.until("switched", 60);
    assert!(seconds(stage.now) >= START + 50);
}

#[test]
fn who_puts_another_root_there_ends_a_rotation() {
    let mut stage = Stage::new();
    stage.want(Wanted::Rotation);
    stage.until("draining", 30);
    stage.seen.void = true;
    stage.step();
    assert_eq!((stage.phase(), stage.events.last()), ("idle", Some(&Event::Void)));
}
