use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tulle_certs::SpiffeId;

use super::*;
use crate::route::{Asked, HeaderMatch, ValueMatch};

const USER: HeaderName = HeaderName::from_static("x-user");
const HOUR: Duration = Duration::from_secs(3600);

fn limit(name: &str, key: Key, requests: u32, per: Duration, burst: u32) -> RateLimit {
    RateLimit {
        name: name.into(),
        headers: Vec::new(),
        key,
        rate: Rate { requests, per, burst },
        overrides: Vec::new(),
        ports: Vec::new(),
        dry_run: false,
    }
}

/// What is asked, once.
struct Client<'a> {
    limits: &'a RateLimits,
    headers: HeaderMap,
    identity: Option<SpiffeId>,
    port: u16,
}

impl<'a> Client<'a> {
    fn new(limits: &'a RateLimits) -> Self {
        Self { limits, headers: HeaderMap::new(), identity: None, port: 80 }
    }

    fn user(mut self, user: &str) -> Self {
        self.headers.insert(USER, HeaderValue::from_str(user).unwrap());
        self
    }

    fn account(mut self, account: &str) -> Self {
        self.identity =
            Some(SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap());
        self
    }

    fn ask(&self, now: Instant) -> Result<(), Refused> {
        let asked =
            Asked { method: &Method::GET, authority: "web", path: "/", query: "", headers: &self.headers };
        let asking = Asking { asked, identity: self.identity.as_ref(), port: self.port };
        self.limits.take(&asking, now, |_, _| {})
    }

    /// How many of `count` pass.
    fn passed(&self, count: usize, now: Instant) -> usize {
        (0..count).filter(|_| self.ask(now).is_ok()).count()
    }
}

/// R16: ±2 % of the limit over 10 s at four times as many, over all workers.
#[test]
fn r16_the_rate_holds_exactly_over_many_threads_at_four_times_as_many() {
    const RATE: u32 = 1000;
    let start = Instant::now();
    let said = limit("n/p/all", Key::All, RATE, Duration::from_secs(1), 10);
    let limits = RateLimits::new(&[said], None, start).unwrap();
    let passed = AtomicU64::new(0);
    // Each tick of the clock is one that all threads see; each asks at it as often as makes four times the rate.
    const THREADS: u32 = 8;
    const TICKS: u32 = 1000;
    let barrier = std::sync::Barrier::new(THREADS as usize);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                let client = Client::new(&limits);
                for tick in 0..TICKS {
                    barrier.wait();
                    let now = start + Duration::from_millis(10) * tick;
                    passed.fetch_add(client.passed(5, now) as u64, Ordering::Relaxed);
                }
            });
        }
    });
    // 40 at each of 1000 moments over 10 s, of which 10 fit: the burst at the first, and what 10 ms bring at each other.
    assert_eq!(passed.into_inner(), u64::from(RATE * 10));
}

#[test]
fn who_is_refused_by_one_limit_uses_up_no_other() {
    let now = Instant::now();
    let said = [
        limit("n/p/all", Key::All, 10, HOUR, 10),
        limit("n/p/user", Key::Header(USER), 2, HOUR, 2),
        limit("n/p/rest", Key::All, 100, HOUR, 100),
    ];
    let limits = RateLimits::new(&said, None, now).unwrap();
    assert_eq!(Client::new(&limits).user("a").passed(20, now), 2);
    let refused = Client::new(&limits).user("a").ask(now).unwrap_err();
    assert_eq!((&*refused.name, refused.wait), ("n/p/user", HOUR / 2));
    assert_eq!(Client::new(&limits).user("b").passed(20, now), 2);
    assert_eq!(Client::new(&limits).user("c").passed(1, now), 1);
    // Those without the header are one.
    assert_eq!(Client::new(&limits).passed(20, now), 2);
    assert_eq!(Client::new(&limits).user("d").passed(20, now), 2);
    assert_eq!(Client::new(&limits).user("c").passed(20, now), 1, "ten in all");
    let refused = Client::new(&limits).user("a").ask(now).unwrap_err();
    assert_eq!(&*refused.name, "n/p/user", "of two, that in which it takes longer");
}

/// Threads that meet at several limits: what one takes and gives back lets nobody else through, and nothing is left taken.
#[test]
fn seeded_several_limits_never_let_more_through_and_leave_nothing_taken() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::now();
        let (all, each) = (rng.random_range(5..40), rng.random_range(1..10));
        let said = [
            limit("n/p/all", Key::All, all, HOUR, all),
            limit("n/p/user", Key::Header(USER), each, HOUR, each),
        ];
        let limits = RateLimits::new(&said, None, now).unwrap();
        let users = ["a", "b", "c", "d"];
        let passed: Vec<AtomicU64> = users.iter().map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (limits, passed) = (&limits, &passed);
                scope.spawn(move || {
                    for i in 0..100 {
                        let user = (thread + i) % users.len();
                        let more = Client::new(limits).user(users[user]).passed(1, now);
                        passed[user].fetch_add(more as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        let passed: Vec<u64> = passed.into_iter().map(AtomicU64::into_inner).collect();
        let sum: u64 = passed.iter().sum();
        assert!(sum <= u64::from(all) && passed.iter().all(|one| *one <= u64::from(each)), "seed {seed}");
        // Whoever was refused beside others finds what is left.
        let rest: usize = users.iter().map(|user| Client::new(&limits).user(user).passed(100, now)).sum();
        assert_eq!(sum + rest as u64, u64::from(all.min(each * 4)), "seed {seed}");
    }
}

#[test]
fn identities_headers_and_ports_say_what_a_limit_is_about() {
    let now = Instant::now();
    let mut by_identity = limit("n/p/id", Key::Identity, 3, HOUR, 3);
    by_identity.overrides = vec![(
        vec!["spiffe://cluster.local/ns/shop/sa/batch".into()],
        Rate { requests: 1, per: HOUR, burst: 1 },
    )];
    by_identity.headers = vec![HeaderMatch { name: USER, value: ValueMatch::Exact(Box::from(*b"beta")) }];
    by_identity.ports = vec![80, 81];
    let limits = RateLimits::new(&[by_identity], None, now).unwrap();
    let beta = || Client::new(&limits).user("beta");
    assert_eq!(beta().account("web").passed(10, now), 3);
    assert_eq!(beta().account("cart").passed(10, now), 3, "each has a count of its own");
    assert_eq!(beta().account("batch").passed(10, now), 1, "as the override says");
    assert_eq!(beta().passed(10, now), 3, "without one, together");
    assert_eq!(Client::new(&limits).user("stable").account("web").passed(10, now), 10, "not about it");
    assert_eq!(Client { port: 82, ..beta() }.passed(10, now), 10, "another port");
}

#[test]
fn whoever_invents_values_gets_no_more_than_there_are_counts() {
    let start = Instant::now();
    let mut said = limit("n/p/user", Key::Header(USER), 1, HOUR, 1);
    said.overrides = vec![(vec!["gold".into()], Rate { requests: 2, per: HOUR, burst: 2 })];
    let limits = RateLimits::new(&[said], None, start).unwrap();
    let passed: usize =
        (0..30_000).map(|i| Client::new(&limits).user(&format!("{i}")).passed(1, start)).sum();
    let most = keyed::MAX_KEYS;
    assert!(passed <= most + 1 && passed > most * 9 / 10, "{passed} of {most}");
    assert_eq!(limits.keys(), passed - 1, "and one for all others");
    assert_eq!(Client::new(&limits).user("0").passed(5, start), 0, "who has a count keeps it");
    assert_eq!(Client::new(&limits).user("gold").passed(5, start), 2, "who is named has one always");
    // Once they are at rest, they make room.
    let later = start + HOUR;
    assert_eq!(Client::new(&limits).user("new").passed(5, later), 1);
    assert_eq!(Client::new(&limits).user("0").passed(5, later), 1);
}

#[test]
fn a_change_of_one_limit_keeps_what_is_counted() {
    let now = Instant::now();
    let said = [limit("n/p/all", Key::All, 10, HOUR, 10), limit("n/p/user", Key::Header(USER), 4, HOUR, 4)];
    let before = RateLimits::new(&said, None, now).unwrap();
    assert_eq!(Client::new(&before).user("a").passed(3, now), 3);
    // Another rate, another order, and one more.
    let mut changed = vec![limit("n/p/new", Key::All, 100, HOUR, 100)];
    changed.extend(said.iter().rev().cloned());
    changed[1].rate = Rate { requests: 10, per: Duration::from_secs(1), burst: 6 };
    let after = RateLimits::new(&changed, Some(&before), now).unwrap();
    assert_eq!(Client::new(&after).user("a").passed(20, now), 3, "of six, three were used");
    assert_eq!(Client::new(&after).user("b").passed(20, now), 4, "of ten, six were used");
    // Who counts by something else begins anew, and so does what was away.
    changed[2].key = Key::Identity;
    let anew = RateLimits::new(&changed[2..], Some(&after), now).unwrap();
    assert_eq!(Client::new(&anew).user("b").passed(20, now), 10);
    assert!(RateLimits::new(&[], Some(&anew), now).is_none());
}

#[test]
fn each_limit_is_told_of_by_name() {
    let now = Instant::now();
    let said = [limit("n/p/all", Key::All, 9, HOUR, 9), limit("n/p/user", Key::Header(USER), 1, HOUR, 1)];
    let limits = RateLimits::new(&said, None, now).unwrap();
    let headers = HeaderMap::new();
    let asked = Asked { method: &Method::GET, authority: "", path: "/", query: "", headers: &headers };
    let tell = || {
        let mut told: Vec<(Arc<str>, bool)> = Vec::new();
        let asking = Asking { asked, identity: None, port: 80 };
        let _ = limits.take(&asking, now, |name, allowed| told.push((Arc::clone(name), allowed)));
        told
    };
    assert_eq!(tell(), [("n/p/all".into(), true), ("n/p/user".into(), true)]);
    assert_eq!(tell(), [("n/p/user".into(), false)]);
}

#[test]
fn a_limit_in_dry_run_refuses_nothing_and_tells_what_it_would() {
    let start = Instant::now();
    let tried = RateLimit { dry_run: true, ..limit("n/p/tried", Key::All, 1, HOUR, 2) };
    let limits =
        RateLimits::new(&[limit("n/p/all", Key::All, 4, HOUR, 4), tried.clone()], None, start).unwrap();
    let headers = HeaderMap::new();
    let asked = Asked { method: &Method::GET, authority: "web", path: "/", query: "", headers: &headers };
    let asking = Asking { asked, identity: None, port: 80 };
    let would = || {
        let mut told = Vec::new();
        let tell = |name: &Arc<str>, allowed| told.push((name.to_string(), allowed));
        let name = limits.would_refuse(|_| true, &asking, start, tell);
        (name.as_deref().map(str::to_owned), told)
    };
    let tried_so = |allowed| vec![("n/p/tried".to_owned(), allowed)];
    for (index, refused) in [false, false, true, true].into_iter().enumerate() {
        assert!(limits.take(&asking, start, |name, _| assert_eq!(&**name, "n/p/all")).is_ok(), "{index}");
        assert_eq!(would(), (refused.then(|| "n/p/tried".to_owned()), tried_so(!refused)), "{index}");
    }
    assert!(limits.take(&asking, start, |_, _| {}).is_err(), "the other holds");
    // In force, it goes on where it was.
    let in_force = RateLimit { dry_run: false, ..tried };
    let limits = RateLimits::new(&[in_force], Some(&limits), start).unwrap();
    assert!(limits.take(&asking, start, |_, _| {}).is_err());
}
