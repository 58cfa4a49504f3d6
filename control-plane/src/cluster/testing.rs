//! An API server in memory, for tests: objects as JSON, with versions, conflicts, merge patches, lists and watches as the real one has
//! them, and with failures as a test wants them. It knows no schema.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

/// What becomes of a request that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is never an answer.
    Silence,
    /// An answer that is no JSON.
    Garbage,
    /// An error.
    Status(u16),
}

type Fails = Box<dyn Fn(&Method, &str) -> Option<Failure> + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// The server.
pub(crate) struct ApiServer {
    state: Mutex<State>,
    fails: Mutex<Option<Fails>>,
    /// The number of the newest event.
    events: watch::Sender<usize>,
}

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    version: u64,
    /// Goes up when everything is taken away.
    life: u64,
    log: Vec<Event>,
    requests: Vec<(Method, String)>,
    /// Kinds and their plurals, by group and version.
    served: BTreeMap<String, Vec<(String, String)>>,
    /// The status of a TokenReview, by token.
    tokens: BTreeMap<String, Value>,
}

#[derive(Clone)]
struct Event {
    version: u64,
    path: String,
    before: Option<Value>,
    after: Option<Value>,
}

/// A path taken apart.
#[derive(Debug, Clone)]
struct Place {
    /// `/api/v1` or `/apis/<group>/<version>`.
    base: String,
    namespace: Option<String>,
    resource: String,
    name: Option<String>,
    sub: Option<String>,
}

/// What a list or watch is about.
#[derive(Clone)]
struct Wanted {
    place: Place,
    name: Option<String>,
    labels: Vec<(String, String)>,
}

// === impl ApiServer ===

impl ApiServer {
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), fails: Mutex::new(None), events: watch::Sender::new(0) })
    }

    pub(crate) fn client(self: &Arc<Self>) -> Client {
        let server = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    /// Lets requests fail from here on.
    pub(crate) fn fail(&self, fails: impl Fn(&Method, &str) -> Option<Failure> + Send + Sync + 'static) {
        *self.fails.lock() = Some(Box::new(fails));
    }

    pub(crate) fn mend(&self) {
        *self.fails.lock() = None;
    }

    /// What a review of a token says.
    pub(crate) fn token(&self, token: &str, status: Value) {
        self.state.lock().tokens.insert(token.to_owned(), status);
    }

    /// Has these kinds, each with its plural, at `/apis/<group>/<version>`.
    pub(crate) fn serve(&self, base: &str, kinds: &[(&str, &str)]) {
        let kinds = kinds.iter().map(|(kind, plural)| ((*kind).to_owned(), (*plural).to_owned()));
        self.state.lock().served.insert(base.to_owned(), kinds.collect());
    }

    pub(crate) fn object(&self, path: &str) -> Option<Value> {
        self.state.lock().objects.get(path).cloned()
    }

    /// All objects below a path, by theirs.
    pub(super) fn objects(&self, below: &str) -> Vec<(String, Value)> {
        let state = self.state.lock();
        let objects = state.objects.iter().filter(|(path, _)| path.starts_with(below));
        objects.map(|(path, object)| (path.clone(), object.clone())).collect()
    }

    /// How often what fits was asked for.
    pub(crate) fn asked(&self, method: &Method, part: &str) -> usize {
        let state = self.state.lock();
        state.requests.iter().filter(|(was, path)| was == method && path.contains(part)).count()
    }

    /// Puts an object there, or another in its place, as somebody else would.
    pub(crate) fn put(&self, path: &str, object: Value) {
        let mut state = self.state.lock();
        state.store(path, Some(object));
        self.events.send_replace(state.log.len());
    }

    pub(crate) fn delete(&self, path: &str) {
        let mut state = self.state.lock();
        state.store(path, None);
        self.events.send_replace(state.log.len());
    }

    /// Has nothing any more, as if its etcd had been emptied: versions begin anew, and watches end.
    pub(crate) fn empty(&self) {
        let mut state = self.state.lock();
        state.objects.clear();
        state.log.clear();
        (state.version, state.life) = (1, state.life + 1);
        self.events.send_replace(0);
    }

    async fn answer(self: Arc<Self>, request: Request<Body>) -> Answer {
        let (head, body) = request.into_parts();
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default().replace("%3D", "=").replace("%2F", "/");
        self.state.lock().requests.push((head.method.clone(), path.clone()));
        let failure = self.fails.lock().as_ref().and_then(|fails| fails(&head.method, &path));
        match failure {
            Some(Failure::Silence) => return std::future::pending().await,
            Some(Failure::Garbage) => return full(200, Bytes::from_static(b"<html>")),
            Some(Failure::Status(code)) => {
                let reason = match code {
                    403 => "Forbidden",
                    404 => "NotFound",
                    409 => "Conflict",
                    _ => "InternalError",
                };
                return error(code, reason);
            }
            None => {}
        }
        let body = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        if path.ends_with("/tokenreviews") {
            return self.review(body);
        }
        let place = Place::parse(&path);
        if place.resource.is_empty() {
            return self.resources(&path);
        }
        if place.name.is_none() && head.method == Method::GET {
            let wanted = Wanted::of(place, &query);
            return if query.contains("watch=true") {
                self.watch(wanted, &query)
            } else {
                self.list(&wanted)
            };
        }
        let mut state = self.state.lock();
        let answer = state.carry_out(&head.method, &place, body, &query);
        self.events.send_replace(state.log.len());
        answer
    }

    fn review(&self, mut review: Value) -> Answer {
        let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
        let unknown = json!({"authenticated": false, "error": "invalid bearer token"});
        review["status"] = self.state.lock().tokens.get(&token).cloned().unwrap_or(unknown);
        json_answer(201, &review)
    }

    fn resources(&self, base: &str) -> Answer {
        let served = self.state.lock().served.get(base).cloned();
        let Some(served) = served else { return error(404, "NotFound") };
        let resources = served.iter().map(|(kind, plural)| {
            json!({"name": plural, "singularName": "", "namespaced": true, "kind": kind, "verbs": []})
        });
        let list = json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": base.trim_start_matches("/apis/"),
            "resources": resources.collect::<Vec<_>>(),
        });
        json_answer(200, &list)
    }

    fn list(&self, wanted: &Wanted) -> Answer {
        let state = self.state.lock();
        let items = state.objects.iter().filter(|(path, object)| wanted.fits(path, object));
        let items: Vec<&Value> = items.map(|(_, object)| object).collect();
        let version = state.version.to_string();
        let list = json!({
            "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": version}, "items": items
        });
        json_answer(200, &list)
    }

    fn watch(self: &Arc<Self>, wanted: Wanted, query: &str) -> Answer {
        let since = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
        let since: u64 = since.and_then(|since| since.parse().ok()).unwrap_or_default();
        let (next, life) = {
            let state = self.state.lock();
            let next = state.log.iter().position(|event| event.version > since);
            (next.unwrap_or(state.log.len()), state.life)
        };
        let (server, events) = (Arc::clone(self), self.events.subscribe());
        let follow = Follow { server, next, since, life, wanted, events };
        Response::new(StreamBody::new(stream::unfold(follow, Follow::next_line)).boxed_unsync())
    }
}

/// A watch that is open.
struct Follow {
    server: Arc<ApiServer>,
    next: usize,
    /// Only what is later is told.
    since: u64,
    life: u64,
    wanted: Wanted,
    events: watch::Receiver<usize>,
}

impl Follow {
    async fn next_line(mut self) -> Option<(Result<Frame<Bytes>, Infallible>, Self)> {
        loop {
            let event = {
                let state = self.server.state.lock();
                if state.life != self.life {
                    return None;
                }
                state.log.get(self.next).cloned()
            };
            let Some(event) = event else {
                self.events.changed().await.ok()?;
                continue;
            };
            self.next += 1;
            if event.version <= self.since {
                continue;
            }
            if let Some(line) = self.wanted.told(&event) {
                return Some((Ok(Frame::data(line)), self));
            }
        }
    }
}

// === impl State ===

impl State {
    fn carry_out(&mut self, method: &Method, place: &Place, body: Value, query: &str) -> Answer {
        let name = place.name.clone().or_else(|| Some(body["metadata"]["name"].as_str()?.to_owned()));
        let Some(name) = name else { return error(422, "Invalid") };
        let path = place.path_of(&name);
        let before = self.objects.get(&path).cloned();
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let seen = version(&body);
        let current = before.as_ref().and_then(version);
        let is_apply = *method == Method::PATCH && body["apiVersion"].is_string();
        let manager =
            query.split('&').find_map(|part| part.strip_prefix("fieldManager=")).unwrap_or_default();
        let is_forced = query.contains("force=true");
        match (method.as_str(), &before) {
            ("PATCH", Some(before))
                if is_apply && !is_forced && before["metadata"]["annotations"]["test/manager"] != manager =>
            {
                return error(409, "Conflict");
            }
            ("POST", Some(_)) => return error(409, "AlreadyExists"),
            ("GET" | "PUT" | "DELETE", None) => return error(404, "NotFound"),
            ("PATCH", None) if !is_apply => return error(404, "NotFound"),
            ("PUT" | "PATCH", Some(_)) if seen.is_some() && seen != current => {
                return error(409, "Conflict");
            }
            ("DELETE", Some(_)) => {
                let expected = body["preconditions"]["resourceVersion"].as_str();
                if expected.is_some() && expected != current.as_deref() {
                    return error(409, "Conflict");
                }
            }
            _ => {}
        }
        let mut after = before.clone().unwrap_or_else(|| json!({}));
        match (method.as_str(), place.sub.as_deref()) {
            ("GET", _) => return json_answer(200, &after),
            ("DELETE", _) => {
                self.store(&path, None);
                return json_answer(200, &after);
            }
            ("PATCH", Some("status")) => merge(&mut after["status"], &body["status"]),
            ("PUT", Some("status")) => after["status"] = body["status"].clone(),
            ("PATCH", _) => merge(&mut after, &body),
            _ => {
                after = body;
                if let (Some(before), Some(object)) = (&before, after.as_object_mut())
                    && let Some(status) = before.get("status")
                {
                    object.insert("status".to_owned(), status.clone());
                }
            }
        }
        if before.is_none() {
            after["metadata"]["annotations"]["test/manager"] = json!(manager);
        }
        if let Some(namespace) = &place.namespace {
            after["metadata"]["namespace"] = json!(namespace);
        }
        let stored = self.store(&path, Some(after));
        json_answer(if before.is_none() { 201 } else { 200 }, &stored)
    }

    /// Puts an object in place of what is there, or takes that away; what is not changed keeps its version.
    fn store(&mut self, path: &str, object: Option<Value>) -> Value {
        let before = self.objects.get(path).cloned();
        let Some(mut object) = object else {
            self.objects.remove(path);
            self.version += 1;
            let event = Event { version: self.version, path: path.to_owned(), before, after: None };
            self.log.push(event);
            return Value::Null;
        };
        if let Some(before) = &before {
            object["metadata"]["resourceVersion"] = before["metadata"]["resourceVersion"].clone();
            object["metadata"]["uid"] = before["metadata"]["uid"].clone();
            let generation = before["metadata"]["generation"].as_i64().unwrap_or(1);
            let changed = before["spec"] != object["spec"];
            object["metadata"]["generation"] = json!(generation + i64::from(changed));
            if *before == object {
                return object;
            }
        } else {
            object["metadata"]["generation"] = json!(1);
        }
        self.version += 1;
        if before.is_none() {
            object["metadata"]["uid"] = json!(format!("uid-{}", self.version));
        }
        object["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(path.to_owned(), object.clone());
        let event =
            Event { version: self.version, path: path.to_owned(), before, after: Some(object.clone()) };
        self.log.push(event);
        object
    }
}

/// JSON merge patch (RFC 7396), which is what applying comes to where there is one owner of each field.
fn merge(into: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *into = patch.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            into.as_object_mut().unwrap().remove(name);
        } else {
            merge(&mut into[name], value);
        }
    }
}

// === impl Place ===

impl Place {
    fn parse(path: &str) -> Self {
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let (base, rest) = parts.split_at(if parts[0] == "api" { 2 } else { 3 });
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some(*namespace), rest),
            _ => (None, rest),
        };
        let part = |at: usize| rest.get(at).map(|part| (*part).to_owned());
        Self {
            base: format!("/{}", base.join("/")),
            namespace: namespace.map(str::to_owned),
            resource: part(0).unwrap_or_default(),
            name: part(1),
            sub: part(2),
        }
    }

    fn path_of(&self, name: &str) -> String {
        let namespace = self.namespace.as_ref().map(|namespace| format!("/namespaces/{namespace}"));
        format!("{}{}/{}/{name}", self.base, namespace.unwrap_or_default(), self.resource)
    }
}

// === impl Wanted ===

impl Wanted {
    fn of(place: Place, query: &str) -> Self {
        let of =
            |wanted: &str| query.split('&').find_map(|part| part.strip_prefix(wanted)).map(str::to_owned);
        let name =
            of("fieldSelector=").and_then(|fields| Some(fields.strip_prefix("metadata.name=")?.to_owned()));
        let labels = of("labelSelector=").unwrap_or_default();
        let labels = labels.split(',').filter_map(|label| label.split_once('='));
        let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        Self { place, name, labels }
    }

    fn fits(&self, path: &str, object: &Value) -> bool {
        let place = Place::parse(path);
        place.base == self.place.base
            && place.resource == self.place.resource
            && (self.place.namespace.is_none() || place.namespace == self.place.namespace)
            && self.name.as_ref().is_none_or(|name| place.name.as_ref() == Some(name))
            && self.labels.iter().all(|(key, value)| object["metadata"]["labels"][key] == json!(value))
    }

    /// As this watch is told of it: what no longer fits is gone.
    fn told(&self, event: &Event) -> Option<Bytes> {
        let fits = |object: &&Value| self.fits(&event.path, object);
        let (before, after) = (event.before.as_ref().filter(fits), event.after.as_ref().filter(fits));
        let (kind, object) = match (before, after) {
            (None, None) => return None,
            (None, Some(after)) => ("ADDED", after),
            (Some(_), Some(after)) => ("MODIFIED", after),
            (Some(before), None) => ("DELETED", before),
        };
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(event.version.to_string());
        Some(Bytes::from(format!("{}\n", json!({"type": kind, "object": object}))))
    }
}

fn full(code: u16, body: Bytes) -> Answer {
    Response::builder().status(code).body(Full::new(body).boxed_unsync()).unwrap()
}

fn json_answer(code: u16, body: &Value) -> Answer {
    full(code, Bytes::from(body.to_string()))
}

fn error(code: u16, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": format!("the test's API server says {code} {reason}")
    });
    json_answer(code, &status)
}
