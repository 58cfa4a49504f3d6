//! Both ends of ADS against each other, without I/O, by seed: the proxy's session and the control plane's, over a link
//! that delays, breaks in the middle of anything and comes back, while the model and the proxy's wants change and some
//! of what is sent cannot be used. In the second test messages are lost besides, the control plane forgets to tell of changes or is
//! another that is behind, and the proxy loses what it had: one comparison must find and mend all of it (R7).
//!
//! `TULLE_TESTS_SEED=17 cargo test -p tulle-tests --test ads_simulation` runs one seed again.

#![allow(clippy::expect_used, reason = "a test says what went wrong by failing")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use prost::Message;
use tulle_api::ResourceType;
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tulle_api::v1::{ObjectName, Rejection};
use tulle_control_plane::ads::session::{Refusal, Verdict};
use tulle_control_plane::ads::{self, View};
use tulle_control_plane::model::Encoded;
use tulle_proxy::control::session::{Compared, ResourceName, Session};

const SEEDS: u64 = 400;
const STEPS: usize = 300;
const TYPES: [ResourceType; 3] = [ResourceType::Service, ResourceType::Endpoints, ResourceType::Routes];

type Key = (ResourceType, String);

#[test]
fn both_ends_agree_with_the_model_after_whatever_happened() {
    let (seen, all) = run_seeds(run);
    if all {
        // A simulation in which nothing happens proves nothing.
        assert!(seen.nacks > 1000 && seen.drops > 1000 && seen.resumed > 1000, "{seen:?}");
        assert!(seen.removals > 1000 && seen.resources > 1000 && seen.equal > 400, "{seen:?}");
    }
    assert_eq!(seen.different, 0, "nothing was lost");
}

#[test]
fn r07_one_comparison_mends_whatever_was_lost_or_forgotten() {
    let (seen, all) = run_seeds(run_with_faults);
    if all {
        assert!(seen.lost > 1000 && seen.forgotten > 1000 && seen.behind > 100, "{seen:?}");
        assert!(seen.different > 300 && seen.equal > 300 && seen.nacks > 1000, "{seen:?}");
    }
}

/// Runs each seed, or the one that is asked for; says what happened, and whether it was all of them.
fn run_seeds(run: impl Fn(u64) -> Seen + std::panic::RefUnwindSafe) -> (Seen, bool) {
    let seeds = match std::env::var_os("TULLE_TESTS_SEED") {
        Some(seed) => {
            let seed = seed.to_str().and_then(|seed| seed.parse().ok()).expect("a number");
            seed..seed + 1
        }
        None => 0..SEEDS,
    };
    let mut seen = Seen::default();
    for seed in seeds.clone() {
        match std::panic::catch_unwind(|| run(seed)) {
            Ok(one) => seen.add(&one),
            Err(panic) => {
                eprintln!("seed {seed}: run it again with TULLE_TESTS_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    (seen, seeds.end - seeds.start > 1)
}

fn run(seed: u64) -> Seen {
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        simulation.step();
    }
    simulation.settle();
    simulation.agree();
    simulation.compare_once();
    // Once more, with nothing changed: a reconnect finds everything where it was.
    let before = simulation.seen.resources;
    let refused = simulation.refused();
    simulation.drop_link();
    simulation.settle();
    simulation.agree();
    let sent = simulation.seen.resources - before;
    assert_eq!(sent, refused, "only what was refused is offered again after a reconnect");
    simulation.seen
}

fn run_with_faults(seed: u64) -> Seen {
    let mut simulation = Simulation::new(seed);
    for _ in 0..STEPS {
        if simulation.random.below(12) == 0 {
            simulation.go_wrong();
        } else {
            simulation.step();
        }
    }
    // From here on nothing goes wrong any more, but nothing is told that has been forgotten either.
    simulation.catch_up();
    simulation.settle();
    simulation.compare_once();
    simulation.agree();
    let before = simulation.seen.different;
    simulation.compare_once();
    assert_eq!(
        simulation.seen.different, before,
        "what is mended stays so, and what is refused is no difference"
    );
    simulation.agree();
    simulation.seen
}

/// What happened, to see that enough did.
#[derive(Debug, Default)]
struct Seen {
    resources: usize,
    removals: usize,
    nacks: usize,
    drops: usize,
    /// Subscriptions that a reconnect renewed without the resource being sent.
    resumed: usize,
    /// Comparisons, by what they came to.
    equal: usize,
    different: usize,
    /// Messages, and resources of the proxy, that were lost.
    lost: usize,
    /// Changes that the control plane did not tell of.
    forgotten: usize,
    /// Streams to a control plane that was behind.
    behind: usize,
}

/// splitmix64: small, and the same everywhere.
struct Random(u64);

/// The truth: content by name. Every fifth content cannot be used by the proxy.
#[derive(Clone, Default)]
struct World(BTreeMap<Key, Arc<Encoded>>);

/// One stream: the server's end, and what is under way.
struct Link {
    server: ads::Session,
    requests: VecDeque<DeltaDiscoveryRequest>,
    responses: VecDeque<DeltaDiscoveryResponse>,
    /// What the server may take the client to hold, by what has passed: `None` for absent. A name that is not here has
    /// to be answered.
    told: BTreeMap<Key, Option<String>>,
    subscribed: BTreeSet<Key>,
    /// What this control plane knows, if it is behind.
    behind: Option<World>,
}

struct Simulation {
    random: Random,
    world: World,
    client: Session,
    link: Option<Link>,
    wanted: BTreeSet<Key>,
    /// What the proxy runs on.
    state: BTreeMap<Key, Arc<str>>,
    /// Both ends compare, and have not come to an end yet.
    is_asked: bool,
    /// The world as it was some time ago.
    before: World,
    seen: Seen,
}

// === impl Simulation ===

impl Simulation {
    fn new(seed: u64) -> Self {
        let node = Node { id: "shop/web".to_owned(), ..Node::default() };
        Self {
            random: Random(seed),
            world: World::default(),
            client: Session::new(node),
            link: None,
            wanted: BTreeSet::new(),
            state: BTreeMap::new(),
            is_asked: false,
            before: World::default(),
            seen: Seen::default(),
        }
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0..4 => self.change_model(),
            4..6 => self.want(),
            6 => self.want_no_more(),
            7 if self.random.below(2) == 0 => self.ask(),
            7 => self.subscribe_again(),
            8 if self.random.below(4) == 0 => self.drop_link(),
            8 | 9 => self.connect(),
            10..13 => drop(self.client_speaks()),
            13..16 => drop(self.server_hears()),
            _ => drop(self.client_hears()),
        }
    }

    fn key(&mut self) -> Key {
        let resource_type = TYPES[self.random.below(TYPES.len())];
        let name = format!("shop/n{}", self.random.below(6));
        match resource_type {
            ResourceType::Routes => (resource_type, format!("shop/{name}")),
            _ => (resource_type, name),
        }
    }

    /// Several changes count as one when the server has not looked in between.
    fn change_model(&mut self) {
        let mut changed = Vec::new();
        for _ in 0..=self.random.below(3) {
            let key = self.key();
            changed.push(key.clone());
            match self.random.below(4) {
                0 => drop(self.world.0.remove(&key)),
                _ => {
                    let content = self.random.below(8);
                    self.world.set(key, content);
                }
            }
        }
        let told_all = self.random.below(4) == 0;
        if let Some(link) = self.link.as_mut().filter(|link| link.behind.is_none()) {
            if told_all {
                link.server.model_changed();
            }
            for (resource_type, name) in &changed {
                // Routes by their service.
                let name = if *resource_type == ResourceType::Routes {
                    name.strip_prefix("shop/")
                } else {
                    Some(&**name)
                };
                link.server.changed(*resource_type, name.expect("routes of a client in shop"));
            }
        }
        self.server_speaks();
    }

    /// Something that must not happen, and does.
    fn go_wrong(&mut self) {
        match self.random.below(8) {
            0 | 1 => {
                let lost = self.link.as_mut().and_then(|link| link.requests.pop_front());
                self.seen.lost += usize::from(lost.is_some());
            }
            2 | 3 => {
                let lost = self.link.as_mut().and_then(|link| link.responses.pop_front());
                self.seen.lost += usize::from(lost.is_some());
            }
            // The model changes, and the session hears nothing of it.
            4 | 5 => {
                let (key, content) = (self.key(), self.random.below(9));
                if content == 8 {
                    self.world.0.remove(&key);
                } else {
                    self.world.set(key, content);
                }
                self.seen.forgotten += 1;
            }
            6 => {
                let key = self.key();
                self.seen.lost += usize::from(self.state.remove(&key).is_some());
            }
            // Killed; the next to answer is one that is behind.
            _ => {
                self.drop_link();
                self.connect();
                let behind = std::mem::replace(&mut self.before, self.world.clone());
                if let Some(link) = &mut self.link {
                    link.behind = Some(behind);
                    self.seen.behind += 1;
                }
            }
        }
    }

    /// A control plane that was behind hears what has happened.
    fn catch_up(&mut self) {
        if let Some(link) = &mut self.link
            && link.behind.take().is_some()
        {
            link.server.model_changed();
            self.server_speaks();
        }
    }

    /// Asks the control plane what should be held, unless it is asked already; what is not there any more is asked for first.
    fn ask(&mut self) {
        if std::mem::replace(&mut self.is_asked, self.link.is_some()) || self.link.is_none() {
            return;
        }
        let told = self.client.told().map(|(type_url, name, held)| (named_as(type_url, name), held));
        let lost = told.filter(|((resource_type, name), held)| {
            *held != self.state.contains_key(&(*resource_type, name.clone()))
        });
        let lost: Vec<Key> = lost.map(|(key, _)| key).collect();
        for key in lost {
            self.client.lost(named(&key));
        }
        self.client.ask_view();
    }

    /// One comparison, with what it leads to.
    fn compare_once(&mut self) {
        if self.is_asked {
            // Asked, and never answered: that is a difference.
            self.repair();
            self.settle();
            return;
        }
        let before = self.seen.equal + self.seen.different;
        while self.seen.equal + self.seen.different == before {
            self.ask();
            self.settle();
        }
    }

    fn repair(&mut self) {
        self.seen.different += 1;
        self.link = None;
        self.is_asked = false;
        self.connect();
    }

    fn want(&mut self) {
        let key = self.key();
        self.client.subscribe(named(&key));
        self.wanted.insert(key);
    }

    fn want_no_more(&mut self) {
        let key = self.key();
        self.client.unsubscribe(&named(&key));
        self.wanted.remove(&key);
        self.state.remove(&key);
    }

    fn subscribe_again(&mut self) {
        let key = self.key();
        self.client.subscribe_again(named(&key));
        self.wanted.insert(key);
    }

    fn drop_link(&mut self) {
        // Whatever was under way is lost, an answer that was applied and never acknowledged among it.
        self.seen.drops += usize::from(self.link.take().is_some());
        self.is_asked = false;
    }

    fn connect(&mut self) {
        if self.link.is_none() {
            self.client.open();
            self.link = Some(Link {
                server: ads::Session::new("shop"),
                requests: VecDeque::new(),
                responses: VecDeque::new(),
                told: BTreeMap::new(),
                subscribed: BTreeSet::new(),
                behind: None,
            });
        }
    }

    fn client_speaks(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let requests = self.client.requests();
        let any = !requests.is_empty();
        link.requests.extend(requests);
        any
    }

    fn server_hears(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let Some(request) = link.requests.pop_front() else { return false };
        link.note_request(&request, &mut self.seen);
        let nack = request.error_detail.is_some();
        let answers = !request.response_nonce.is_empty() && !is_view(&request.type_url);
        let received = match link.server.receive(request) {
            Ok(received) => received,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::NodeMissing, "the client keeps to the protocol");
                assert!(self.seen.lost > 0, "only if the first message was lost");
                self.drop_link();
                return true;
            }
        };
        assert_eq!(received.refused, []);
        let verdict = match (answers, nack) {
            (true, true) => Verdict::Nack,
            (true, false) => Verdict::Ack,
            (false, _) => Verdict::None,
        };
        assert_eq!(received.verdict, verdict, "on one stream no answer is stale");
        self.server_speaks();
        true
    }

    fn server_speaks(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some(response) = link.server.poll(link.behind.as_ref().unwrap_or(&self.world)) {
            link.note_response(&response, &mut self.seen);
            link.responses.push_back(response);
            let under_way = link.responses.iter().filter(|response| !is_view(&response.type_url)).count();
            assert!(under_way <= TYPES.len(), "one response of a type is under way");
        }
    }

    fn client_hears(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        let Some(response) = link.responses.pop_front() else { return false };
        if let Some(compared) = self.client.compare(&response) {
            link.requests.extend(self.client.answer_view(&response, &compared));
            self.is_asked = false;
            match compared {
                Compared::Equal => self.seen.equal += 1,
                Compared::Unsettled => {}
                Compared::Different(_) => self.repair(),
                Compared::Unsupported => panic!("it is supported"),
            }
            return true;
        }
        let resource_type = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        let update = self.client.receive(response);
        let mut rejected = Vec::new();
        for received in &update.resources {
            let content = Content::decode(&*received.resource.value).expect("what was encoded");
            if content.is_bad() {
                rejected.push(Rejection {
                    resource: received.name.clone(),
                    field: "namespace".to_owned(),
                    reason: content.namespace,
                });
            } else {
                let key = (resource_type, received.name.clone());
                assert!(self.wanted.contains(&key), "{key:?} is not wanted");
                self.state.insert(key, content.namespace.into());
            }
        }
        for name in &update.removed {
            self.state.remove(&(resource_type, name.clone()));
        }
        self.seen.nacks += usize::from(!rejected.is_empty());
        link.requests.push_back(self.client.answer(&update, &rejected));
        true
    }

    /// Lets everything that is under way arrive.
    fn settle(&mut self) {
        self.connect();
        let mut rounds = 0;
        while self.client_speaks() | self.server_hears() | self.client_hears() {
            rounds += 1;
            assert!(rounds < 10_000, "both ends talk for ever");
            self.connect();
        }
    }

    /// How many wanted resources are such that the proxy refuses them.
    fn refused(&self) -> usize {
        self.wanted.iter().filter(|key| self.world.content(key).is_some_and(|c| c.is_bad())).count()
    }

    fn agree(&self) {
        let server = &self.link.as_ref().expect("is connected").server;
        assert!(!server.awaits_answer());
        for key in &self.wanted {
            let state = self.state.get(key).map(|state| &**state);
            match self.world.content(key) {
                None => assert_eq!(state, None, "{key:?} is gone"),
                Some(content) if content.is_bad() => {
                    assert_ne!(state, Some(&*content.namespace), "{key:?} is the last good one or nothing");
                }
                Some(content) => assert_eq!(state, Some(&*content.namespace), "{key:?} is as it should be"),
            }
            // What is said to be held is what is run on.
            let held = self.client.held(key.0.type_url(), &key.1).map(str::to_owned);
            assert_eq!(held, state.map(|state| version(key.0, state)), "{key:?}");
        }
        assert!(self.state.keys().all(|key| self.wanted.contains(key)), "nothing unwanted is kept");

        let mut subscribed = BTreeSet::new();
        for (resource_type, name, acked) in server.subscriptions() {
            let key = (resource_type, name.to_owned());
            let held = self.client.held(resource_type.type_url(), name);
            // What was asked for again over a reconnect is not said to be held; refused then, it stays unsaid.
            let unsaid = acked.is_none() && self.world.content(&key).is_some_and(|content| content.is_bad());
            assert!(acked == held || unsaid, "{key:?}: the server knows what the proxy runs on");
            subscribed.insert(key);
        }
        assert_eq!(subscribed, self.wanted);

        let mut refused = 0;
        for rejected in server.rejected() {
            let key = (rejected.resource_type, rejected.name.to_owned());
            let content = self.world.content(&key).expect("what is gone is not refused");
            assert!(content.is_bad(), "{key:?} is refused although it is good");
            assert_eq!(rejected.version, version(key.0, &content.namespace));
            assert_eq!(rejected.faults[0].reason, content.namespace);
            refused += 1;
        }
        assert_eq!(refused, self.refused(), "every refusal is known");
    }
}

// === impl Link ===

impl Link {
    fn note_request(&mut self, request: &DeltaDiscoveryRequest, seen: &mut Seen) {
        if is_view(&request.type_url) {
            return;
        }
        let resource_type = ResourceType::from_type_url(&request.type_url).expect("a type of ours");
        for name in &request.resource_names_unsubscribe {
            let key = (resource_type, name.clone());
            self.told.remove(&key);
            self.subscribed.remove(&key);
        }
        for name in &request.resource_names_subscribe {
            let key = (resource_type, name.clone());
            self.told.remove(&key);
            let held = request.initial_resource_versions.get(name);
            if let (true, Some(version)) = (self.subscribed.insert(key.clone()), held) {
                self.told.insert(key, Some(version.clone()));
                seen.resumed += 1;
            }
        }
    }

    fn note_response(&mut self, response: &DeltaDiscoveryResponse, seen: &mut Seen) {
        if is_view(&response.type_url) {
            return;
        }
        let resource_type = ResourceType::from_type_url(&response.type_url).expect("a type of ours");
        let sent = response.resources.iter().map(|sent| (&sent.name, Some(sent.version.clone())));
        for (name, version) in sent.chain(response.removed_resources.iter().map(|name| (name, None))) {
            let key = (resource_type, name.clone());
            assert!(self.subscribed.contains(&key), "{key:?} was not asked for");
            let before = self.told.insert(key.clone(), version.clone());
            assert_ne!(before, Some(version), "{key:?} has not changed since it was told");
        }
        seen.resources += response.resources.len();
        seen.removals += response.removed_resources.len();
    }
}

// === impl World ===

/// Any message does; its first field carries the content.
type Content = ObjectName;

trait IsBad {
    fn is_bad(&self) -> bool;
}

impl IsBad for Content {
    fn is_bad(&self) -> bool {
        matches!(&*self.namespace, "0" | "5")
    }
}

fn encoded(resource_type: ResourceType, content: &str) -> Encoded {
    Encoded::new(resource_type, &Content { namespace: content.to_owned(), name: String::new() })
}

fn version(resource_type: ResourceType, content: &str) -> String {
    encoded(resource_type, content).version.to_string()
}

fn named((resource_type, name): &Key) -> ResourceName {
    ResourceName { type_url: resource_type.type_url().to_owned(), name: name.clone() }
}

fn named_as(type_url: &str, name: &str) -> Key {
    (ResourceType::from_type_url(type_url).expect("a type of ours"), name.to_owned())
}

fn is_view(type_url: &str) -> bool {
    type_url == tulle_api::type_url::<tulle_api::v1::View>()
}

impl World {
    fn set(&mut self, key: Key, content: usize) {
        let resource = encoded(key.0, &content.to_string());
        self.0.insert(key, Arc::new(resource));
    }

    fn content(&self, key: &Key) -> Option<Content> {
        Some(Content::decode(&*self.0.get(key)?.bytes).expect("what was encoded"))
    }
}

impl View for World {
    fn get(&self, resource_type: ResourceType, name: &str) -> Option<Arc<Encoded>> {
        self.0.get(&(resource_type, name.to_owned())).cloned()
    }
}

// === impl Random ===

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }
}

// === impl Seen ===

impl Seen {
    fn add(&mut self, other: &Self) {
        self.resources += other.resources;
        self.removals += other.removals;
        self.nacks += other.nacks;
        self.drops += other.drops;
        self.resumed += other.resumed;
        self.equal += other.equal;
        self.different += other.different;
        self.lost += other.lost;
        self.forgotten += other.forgotten;
        self.behind += other.behind;
    }
}
