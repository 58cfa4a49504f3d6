//! An API server in the test itself: objects by path, versions, pages, watches that begin where they are asked to, and what goes wrong
//! when it is told to.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::StreamBody;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Objects in a page, whatever is asked for.
const PAGE: usize = 3;

/// The server; clones are the same.
#[derive(Clone, Default)]
pub(super) struct Server(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    version: u64,
    /// By `<group>/<version>`, what it has: plural → objects by namespace and name.
    groups: BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>>,
    history: Vec<(u64, String, &'static str, Value)>,
    /// Versions before this one are forgotten.
    oldest: u64,
    /// Each with the version after which it is told.
    watches: BTreeMap<String, Vec<(u64, mpsc::UnboundedSender<Bytes>)>>,
    /// What is answered next in place of what would be, by what is asked.
    faults: BTreeMap<(Asked, String), VecDeque<Fault>>,
    /// Nobody answers.
    away: bool,
    log: Vec<(Asked, String)>,
}

/// What a server had at some time.
pub(super) struct Backup(State);

/// What is asked of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asked {
    What,
    List,
    /// Of which version all is.
    Version,
    /// A further page.
    More,
    Watch,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub(super) enum Fault {
    /// A refusal, and when to come back.
    Status(u16, Option<u32>),
    /// Answered, with this.
    Says(&'static str),
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

// === impl Server ===

impl Server {
    /// One that has the kinds that every one has, and those of these definitions: `<group>/<version>/<plural>`.
    pub(super) fn with(definitions: &[&str]) -> Self {
        let server = Self::default();
        for always in ["v1/services", "v1/pods", "discovery.k8s.io/v1/endpointslices"] {
            server.install(always);
        }
        for definition in definitions {
            server.install(definition);
        }
        server
    }

    pub(super) fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { server.answer(&request) }
        });
        Client::new(service, "default")
    }

    pub(super) fn install(&self, definition: &str) {
        let (version, plural) = definition.rsplit_once('/').unwrap();
        let mut state = self.0.lock();
        state.groups.entry(version.to_owned()).or_default().insert(plural.to_owned(), BTreeMap::new());
    }

    pub(super) fn uninstall(&self, definition: &str) {
        let (version, plural) = definition.rsplit_once('/').unwrap();
        let mut state = self.0.lock();
        state.groups.get_mut(version).unwrap().remove(plural);
        state.watches.remove(definition);
    }

    /// Writes an object of a definition, and tells who watches.
    pub(super) fn apply(&self, definition: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        let objects = state.objects(definition);
        let known = objects.insert(key(&object), object.clone()).is_some();
        state.tell(definition, if known { "MODIFIED" } else { "ADDED" }, object);
    }

    pub(super) fn delete(&self, definition: &str, name: &str) {
        let mut state = self.0.lock();
        state.version += 1;
        let mut object = state.objects(definition).remove(name).expect("it is there");
        object["metadata"]["resourceVersion"] = state.version.to_string().into();
        state.tell(definition, "DELETED", object);
    }

    /// Sends this to who watches, as it is.
    pub(super) fn say(&self, definition: &str, text: &str) {
        let mut state = self.0.lock();
        let line = Bytes::from(format!("{text}\n"));
        state
            .watches
            .entry(definition.to_owned())
            .or_default()
            .retain(|(_, watch)| watch.send(line.clone()).is_ok());
    }

    /// Ends every watch of a definition, in order.
    pub(super) fn cut(&self, definition: &str) {
        self.0.lock().watches.remove(definition);
    }

    /// Forgets what has happened so far.
    pub(super) fn compact(&self) {
        let mut state = self.0.lock();
        state.version += 1;
        state.oldest = state.version;
        state.history.clear();
    }

    /// The version of what was written last.
    pub(super) fn version(&self) -> u64 {
        self.0.lock().version
    }

    /// What it has now.
    pub(super) fn backup(&self) -> Backup {
        let state = self.0.lock();
        Backup(State {
            version: state.version,
            groups: state.groups.clone(),
            history: state.history.clone(),
            oldest: state.oldest,
            ..State::default()
        })
    }

    /// Has what it had then, and nothing else.
    pub(super) fn restore(&self, Backup(then): Backup) {
        let mut state = self.0.lock();
        state.watches.clear();
        // An empty list is of a version too.
        (state.version, state.oldest) = (then.version.max(1), then.oldest);
        (state.groups, state.history) = (then.groups, then.history);
    }

    /// Goes away, or comes back.
    pub(super) fn is_away(&self, away: bool) {
        let mut state = self.0.lock();
        state.away = away;
        if away {
            state.watches.clear();
        }
    }

    pub(super) fn fail(&self, asked: Asked, definition: &str, fault: Fault) {
        let mut state = self.0.lock();
        state.faults.entry((asked, definition.to_owned())).or_default().push_back(fault);
    }

    /// How often that was asked.
    pub(super) fn asked(&self, asked: Asked, definition: &str) -> usize {
        let state = self.0.lock();
        state.log.iter().filter(|(how, what)| *how == asked && what == definition).count()
    }

    /// How many watches are open.
    pub(super) fn watches(&self, definition: &str) -> usize {
        let mut state = self.0.lock();
        let watches = state.watches.entry(definition.to_owned()).or_default();
        watches.retain(|(_, watch)| !watch.is_closed());
        watches.len()
    }

    fn answer(&self, request: &Request<Body>) -> Result<Answer, std::io::Error> {
        let mut state = self.0.lock();
        if state.away {
            return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
        }
        let path = request.uri().path();
        let definition = path.trim_start_matches("/apis/").trim_start_matches("/api/").to_owned();
        let query: BTreeMap<&str, &str> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .collect();
        let asked = if query.contains_key("watch") {
            Asked::Watch
        } else if query.contains_key("continue") {
            Asked::More
        } else if query.get("limit") == Some(&"1") {
            Asked::Version
        } else if query.contains_key("limit") {
            Asked::List
        } else {
            Asked::What
        };
        state.log.push((asked, definition.clone()));
        let fault = state.faults.get_mut(&(asked, definition.clone())).and_then(VecDeque::pop_front);
        match fault {
            Some(Fault::Status(code, wait)) => return Ok(refusal(code, wait)),
            Some(Fault::Says(text)) => return Ok(Response::new(full(text.to_owned()))),
            None => {}
        }
        Ok(match asked {
            Asked::What => match state.groups.get(&definition) {
                Some(plurals) => {
                    let names: Vec<Value> = plurals.keys().map(|name| json!({"name": name})).collect();
                    Response::new(full(json!({"kind": "APIResourceList", "resources": names}).to_string()))
                }
                None => state.group(&definition),
            },
            Asked::List | Asked::More | Asked::Version => state.list(&definition, query.get("continue")),
            Asked::Watch => {
                assert_eq!(query.get("allowWatchBookmarks"), Some(&"true"));
                state.watch(&definition, query["resourceVersion"].parse().unwrap())
            }
        })
    }
}

// === impl State ===

impl State {
    fn objects(&mut self, definition: &str) -> &mut BTreeMap<String, Value> {
        let (version, plural) = definition.rsplit_once('/').unwrap();
        self.groups.get_mut(version).and_then(|group| group.get_mut(plural)).expect("it is installed")
    }

    /// The versions of a group.
    fn group(&self, name: &str) -> Answer {
        let of_it = self
            .groups
            .keys()
            .filter(|version| version.split_once('/').is_some_and(|(group, _)| group == name));
        let versions: Vec<Value> = of_it.map(|version| json!({"groupVersion": version})).collect();
        if versions.is_empty() {
            return refusal(404, None);
        }
        Response::new(full(json!({"kind": "APIGroup", "versions": versions}).to_string()))
    }

    fn is_served(&self, definition: &str) -> bool {
        let (version, plural) = definition.rsplit_once('/').unwrap();
        self.groups.get(version).is_some_and(|group| group.contains_key(plural))
    }

    fn tell(&mut self, definition: &str, what: &'static str, object: Value) {
        let line = event(what, &object);
        let version = self.version;
        self.history.push((version, definition.to_owned(), what, object));
        // Of what is not later than where it began, a watch hears nothing, as with a real one.
        self.watches
            .entry(definition.to_owned())
            .or_default()
            .retain(|(from, watch)| version <= *from || watch.send(line.clone()).is_ok());
    }

    fn list(&mut self, definition: &str, token: Option<&&str>) -> Answer {
        if !self.is_served(definition) {
            return refusal(404, None);
        }
        let version = self.version;
        let from = token.map_or(0, |token| token.parse::<usize>().unwrap());
        let objects: Vec<Value> = self.objects(definition).values().cloned().collect();
        let page: Vec<&Value> = objects.iter().skip(from).take(PAGE).collect();
        let mut metadata = json!({"resourceVersion": version.max(1).to_string()});
        if from + PAGE < objects.len() {
            metadata["continue"] = (from + PAGE).to_string().into();
        }
        Response::new(full(json!({"kind": "List", "metadata": metadata, "items": page}).to_string()))
    }

    fn watch(&mut self, definition: &str, from: u64) -> Answer {
        if !self.is_served(definition) {
            return refusal(404, None);
        }
        let (tell, told) = mpsc::unbounded_channel();
        if from < self.oldest {
            // In the body, as API servers do.
            let status = json!({"kind": "Status", "code": 410, "message": "too old resource version"});
            tell.send(event("ERROR", &status)).unwrap();
        } else {
            let since =
                self.history.iter().filter(|(version, what, ..)| *version > from && what == definition);
            for (_, _, what, object) in since {
                tell.send(event(what, object)).unwrap();
            }
            self.watches.entry(definition.to_owned()).or_default().push((from, tell));
        }
        let frames = UnboundedReceiverStream::new(told).map(|line| Ok(Frame::data(line)));
        Response::new(BodyExt::boxed(StreamBody::new(frames)))
    }
}

fn key(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    format!("{}/{}", text("namespace"), text("name"))
}

fn event(what: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{}\n", json!({"type": what, "object": object})))
}

fn full(text: String) -> BoxBody<Bytes, Infallible> {
    Full::new(Bytes::from(text)).boxed()
}

fn refusal(code: u16, wait: Option<u32>) -> Answer {
    let status =
        json!({"kind": "Status", "status": "Failure", "code": code, "message": format!("said {code}")});
    let mut response = Response::new(full(status.to_string()));
    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
    if let Some(seconds) = wait {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}
