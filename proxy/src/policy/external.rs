//! Which requests another program is asked about before they are let in; what it is told of them, and what it may change.
//!
//! Pure. [`Externals`] is compiled when a policy arrives; where there is none, a request costs a look at nothing. Asking itself is
//! `forward`'s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use http::{HeaderName, header};
use smallvec::SmallVec;
use tulle_api::is_protected_header;

use super::access::RouteScope;
use super::rules::Scope;
use super::text::Text;
use crate::route::Asked;
use crate::state::ObjectName;

/// Another program that is asked, as a policy says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalSpec {
    /// `<namespace>/<policy>`.
    pub name: Arc<str>,
    /// About requests to these ports; empty: to every port.
    pub ports: Vec<u16>,
    /// Of those, not to these: an authorizer listens there, and must not be asked about being asked.
    pub not_ports: Vec<u16>,
    /// About what these match; empty: about every request.
    pub routes: Vec<RouteScope>,
    pub service: ObjectName,
    pub service_port: u16,
    /// Why nobody can be asked.
    pub invalid: Option<Box<str>>,
    /// Within which it must have answered, connecting included.
    pub timeout: Duration,
    /// No answer lets in.
    pub failure_allows: bool,
    /// Which headers it is told, in lower case; empty: all.
    pub headers: Vec<Text>,
    /// At most so many bytes of the body; 0: nothing of it.
    pub body_bytes: u32,
    /// Of a longer body, the first; else its request is refused.
    pub partial_body: bool,
    /// Told as they are.
    pub context: Vec<(String, String)>,
    /// How long an answer holds for the same question; `None`: for this one alone.
    pub cache: Option<Duration>,
    /// What, besides client, method, host, path and what is told of the body, makes a question the same; empty: `authorization` and `cookie`.
    pub cache_headers: Vec<HeaderName>,
    /// What it says is told, and not done.
    pub dry_run: bool,
    /// What it may change besides names that begin with `x-`, and `authorization`.
    pub allowed_headers: Vec<HeaderName>,
}

/// The same, compiled.
#[derive(Debug)]
pub struct External {
    spec: ExternalSpec,
    /// `None`: every request.
    scope: Option<Scope>,
}

/// All who are asked about a workload's requests.
#[derive(Debug)]
pub struct Externals {
    all: Box<[Arc<External>]>,
    generation: u64,
}

/// Those that one request is about.
pub type About = SmallVec<[Arc<External>; 2]>;

// === impl External ===

impl External {
    fn new(spec: ExternalSpec) -> Self {
        Self { scope: (!spec.routes.is_empty()).then(|| Scope::new(&spec.routes)), spec }
    }

    /// What this was compiled from.
    pub fn spec(&self) -> &ExternalSpec {
        &self.spec
    }

    fn is_about_port(&self, port: u16) -> bool {
        let ExternalSpec { ports, not_ports, .. } = &self.spec;
        (ports.is_empty() || ports.contains(&port)) && !not_ports.contains(&port)
    }

    /// Whether a request to a port that it is about may be one of those that it is about, by any way to read its path: nobody gets around it by
    /// writing a path otherwise.
    fn is_about(&self, asked: &Asked<'_>) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.may_have(asked))
    }

    /// Whether it is told a header; never one that belongs to the hop, and not `host`, which is told otherwise.
    pub fn is_told(&self, name: &HeaderName) -> bool {
        // These are not the hop's, though nobody may change them.
        let passes =
            !is_protected_header(name.as_str()) || *name == header::CONTENT_LENGTH || *name == header::EXPECT;
        let headers = &self.spec.headers;
        passes && (headers.is_empty() || headers.iter().any(|one| one.is(name.as_str().as_bytes())))
    }

    /// Whether it may set or remove a header of the request.
    pub fn may_change(&self, name: &HeaderName) -> bool {
        !is_protected_header(name.as_str())
            && (name.as_str().starts_with("x-")
                || *name == header::AUTHORIZATION
                || self.spec.allowed_headers.contains(name))
    }
}

// === impl Externals ===

impl Externals {
    /// `None`: nobody is asked. `old`: of the policy before; where nothing has changed, its answers still hold.
    pub fn new(specs: &[ExternalSpec], old: Option<&Self>) -> Option<Self> {
        static GENERATION: AtomicU64 = AtomicU64::new(1);
        if specs.is_empty() {
            return None;
        }
        let same = old.filter(|old| old.all.iter().map(|one| &one.spec).eq(specs));
        let generation = same.map_or_else(|| GENERATION.fetch_add(1, Relaxed), |old| old.generation);
        let all = match same {
            Some(old) => old.all.clone(),
            None => specs.iter().cloned().map(|spec| Arc::new(External::new(spec))).collect(),
        };
        Some(Self { all, generation })
    }

    /// Another number for each other list of programs that are asked: answers of before do not hold.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Those that are asked about a request to `port`, in the order in which they are: a policy once, however often it speaks of it.
    pub fn about(&self, port: u16, asked: &Asked<'_>) -> About {
        let mut about = About::new();
        for one in self.all.iter().filter(|one| one.is_about_port(port)) {
            let is_new = about.iter().all(|known: &Arc<External>| known.spec.name != one.spec.name);
            if is_new && one.is_about(asked) {
                about.push(Arc::clone(one));
            }
        }
        about
    }

    /// Whether anybody is asked about requests to `port`.
    pub fn speak_of(&self, port: u16) -> bool {
        self.all.iter().any(|one| one.is_about_port(port))
    }

    /// One without whose answer no request to `port` is let in, as far as it is about it.
    pub fn must_answer(&self, port: u16) -> Option<&External> {
        let must =
            |one: &&Arc<External>| one.is_about_port(port) && !one.spec.dry_run && !one.spec.failure_allows;
        self.all.iter().find(must).map(|one| &**one)
    }
}

#[cfg(test)]
pub(crate) fn example(name: &str) -> ExternalSpec {
    ExternalSpec {
        name: name.into(),
        ports: Vec::new(),
        not_ports: Vec::new(),
        routes: Vec::new(),
        service: ObjectName::new("shop", "opa"),
        service_port: 9191,
        invalid: None,
        timeout: Duration::from_secs(1),
        failure_allows: false,
        headers: Vec::new(),
        body_bytes: 0,
        partial_body: false,
        context: Vec::new(),
        cache: None,
        cache_headers: Vec::new(),
        dry_run: false,
        allowed_headers: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method};

    use super::*;
    use crate::route::{PathMatch, RequestMatch};

    fn names(about: &About) -> Vec<&str> {
        about.iter().map(|one| &*one.spec().name).collect()
    }

    #[test]
    fn who_is_asked_goes_by_port_and_by_what_the_routes_match() {
        let path = PathMatch::Prefix("/admin".into());
        let admin = RouteScope { hostnames: Vec::new(), matches: vec![RequestMatch { path, when: None }] };
        let specs = [
            example("shop/all"),
            ExternalSpec { ports: vec![80], ..example("shop/port") },
            ExternalSpec { not_ports: vec![9191], ..example("shop/not") },
            ExternalSpec { routes: vec![admin], ..example("shop/admin") },
            ExternalSpec { ports: vec![81], ..example("shop/admin") },
        ];
        let externals = Externals::new(&specs, None).unwrap();
        let headers = HeaderMap::new();
        let about = |port, path| {
            let asked = Asked { method: &Method::GET, authority: "", path, query: "", headers: &headers };
            externals.about(port, &asked)
        };
        assert_eq!(names(&about(80, "/")), ["shop/all", "shop/port", "shop/not"]);
        assert_eq!(names(&about(81, "/admin/x")), ["shop/all", "shop/not", "shop/admin"]);
        for evasion in ["//admin", "/%61dmin", "/x/../admin", "/./admin", "/x/%2e%2e/admin"] {
            assert_eq!(names(&about(81, evasion)), ["shop/all", "shop/not", "shop/admin"], "{evasion}");
        }
        assert_eq!(names(&about(9191, "/")), ["shop/all"]);
        assert!(Externals::new(&[], Some(&externals)).is_none());
        let may = ExternalSpec { failure_allows: true, ..example("shop/may") };
        let tries = ExternalSpec { dry_run: true, ..example("shop/tries") };
        let must = ExternalSpec { ports: vec![80], ..example("shop/must") };
        let externals = Externals::new(&[may, tries, must], None).unwrap();
        let must = |port| externals.must_answer(port).map(|one| one.spec().name.to_string());
        assert_eq!((must(80), must(81)), (Some("shop/must".to_owned()), None));
    }

    #[test]
    fn answers_hold_only_for_as_long_as_nothing_changes() {
        let first = Externals::new(&[example("shop/a")], None).unwrap();
        let same = Externals::new(&[example("shop/a")], Some(&first)).unwrap();
        assert_eq!(first.generation(), same.generation());
        let other = ExternalSpec { service_port: 1, ..example("shop/a") };
        let other = Externals::new(&[other], Some(&same)).unwrap();
        assert_ne!(first.generation(), other.generation());
        let back = Externals::new(&[example("shop/a")], Some(&other)).unwrap();
        assert_ne!(first.generation(), back.generation());
    }

    #[test]
    fn what_is_told_and_what_may_be_changed_are_told_apart() {
        let external = External::new(ExternalSpec {
            headers: vec![
                Text::Exact("authorization".into()),
                Text::Prefix("x-".into()),
                Text::Suffix("-id".into()),
            ],
            allowed_headers: vec![header::COOKIE],
            ..example("shop/a")
        });
        let all = External::new(example("shop/a"));
        let name = |text: &str| HeaderName::try_from(text).unwrap();
        for (text, told, told_by_default, changed) in [
            ("authorization", true, true, true),
            ("x-user", true, true, true),
            ("trace-id", true, true, false),
            ("cookie", false, true, true),
            ("accept", false, true, false),
            ("content-length", false, true, false),
            ("host", false, false, false),
            ("connection", false, false, false),
            ("transfer-encoding", false, false, false),
            ("x-tulle-error", false, false, false),
        ] {
            assert_eq!(external.is_told(&name(text)), told, "{text}");
            assert_eq!(all.is_told(&name(text)), told_by_default, "{text}");
            assert_eq!(external.may_change(&name(text)), changed, "{text}");
        }
    }
}
