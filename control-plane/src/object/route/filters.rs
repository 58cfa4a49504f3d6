//! What is done to requests and answers, and the Gateway API's own rules for which filters go together.

use super::cors::{self, Cors, WrittenCors};
use super::matches::{Match, PathMatch, check_header_value, check_name, no_path_character};
use super::{Backend, Effect, Fault, MAX_LIST, WrittenBackend, at_most, is_hostname, read_backend};
use crate::finding::Notes;
use crate::object::{NamespacedName, port};

/// The longest path that the Gateway API allows to put in another's place, in characters.
const MAX_PATH: usize = 1024;

/// One thing that is done to a request or to its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// To the request's headers.
    RequestHeaders(HeaderModifier),
    /// To the answer's headers.
    ResponseHeaders(HeaderModifier),
    /// The answer is a redirect; there are no backends.
    Redirect(Redirect),
    /// To the request's host and path.
    Rewrite(Rewrite),
    /// Which pages of other origins may read the answers.
    Cors(Cors),
    /// Copies of requests for somebody else.
    Mirror(Box<Mirror>),
}

/// Where a copy of a share of the requests goes, whose answers nobody waits for (GEP-3171).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// Its place in `filters`.
    pub index: usize,
    /// The reference may not resolve.
    pub backend: Backend,
    /// The share is `numerator` of `denominator`.
    pub numerator: u32,
    /// Not 0.
    pub denominator: u32,
}

/// First `remove`, then `set`, then `add`; names are as they are written.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// In place of every header of that name; each name once.
    pub set: Vec<(String, String)>,
    /// Beside them; each name once.
    pub add: Vec<(String, String)>,
    /// Every header of these names.
    pub remove: Vec<String>,
}

/// The request's own URL, but for what is said here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<&'static str>,
    /// Without a port.
    pub hostname: Option<String>,
    /// In place of the path or of its beginning.
    pub path: Option<PathModifier>,
    /// In place of the port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// What the backend sees in place of the request's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrite {
    /// Without a port.
    pub hostname: Option<String>,
    /// In place of the path or of its beginning.
    pub path: Option<PathModifier>,
}

/// What becomes of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PathModifier {
    /// It is this; begins with `/`.
    Full(String),
    /// The prefix that was matched is this; the rule's only match is by prefix.
    Prefix(String),
}

/// A filter as it is written, whatever the kind of route and the place in it.
pub(super) struct Written<'a> {
    pub(super) filter: FilterType,
    /// Which of the filters' fields are there.
    pub(super) fields: Vec<FilterType>,
    pub(super) request_headers: Option<WrittenHeaders<'a>>,
    pub(super) response_headers: Option<WrittenHeaders<'a>>,
    pub(super) redirect: Option<WrittenRedirect<'a>>,
    pub(super) rewrite: Option<(Option<&'a str>, Option<WrittenPath<'a>>)>,
    pub(super) cors: Option<WrittenCors<'a>>,
    pub(super) mirror: Option<WrittenMirror<'a>>,
}

/// A mirror as it is written.
pub(super) struct WrittenMirror<'a> {
    pub(super) backend: WrittenBackend<'a>,
    pub(super) fraction: Option<(i32, Option<i32>)>,
    pub(super) percent: Option<i32>,
}

/// A header modifier as it is written.
pub(super) struct WrittenHeaders<'a> {
    pub(super) set: Vec<(&'a str, &'a str)>,
    pub(super) add: Vec<(&'a str, &'a str)>,
    pub(super) remove: &'a [String],
}

/// A redirect as it is written.
pub(super) struct WrittenRedirect<'a> {
    pub(super) scheme: Option<&'static str>,
    pub(super) hostname: Option<&'a str>,
    pub(super) path: Option<WrittenPath<'a>>,
    pub(super) port: Option<i32>,
    pub(super) status: Option<i64>,
}

/// A path modifier as it is written.
pub(super) struct WrittenPath<'a> {
    pub(super) is_full: bool,
    pub(super) full: Option<&'a str>,
    pub(super) prefix: Option<&'a str>,
}

/// The values of `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestMirror,
    RequestRedirect,
    UrlRewrite,
    ExtensionRef,
    Cors,
    ExternalAuth,
}

/// The generated types differ by name only.
macro_rules! written_headers {
    ($modifier:expr) => {
        $modifier.as_ref().map(|one| $crate::object::route::filters::WrittenHeaders {
            set: one.set.iter().flatten().map(|one| (one.name.as_str(), one.value.as_str())).collect(),
            add: one.add.iter().flatten().map(|one| (one.name.as_str(), one.value.as_str())).collect(),
            remove: one.remove.as_deref().unwrap_or_default(),
        })
    };
}
pub(super) use written_headers;

/// As [`written_headers`].
macro_rules! written_mirror {
    ($mirror:expr) => {
        $mirror.as_ref().map(|one| $crate::object::route::filters::WrittenMirror {
            backend: $crate::object::route::WrittenBackend {
                group: one.backend_ref.group.as_deref(),
                kind: one.backend_ref.kind.as_deref(),
                namespace: one.backend_ref.namespace.as_deref(),
                name: &one.backend_ref.name,
                port: one.backend_ref.port,
                weight: None,
                filters: Vec::new(),
            },
            fraction: one.fraction.as_ref().map(|one| (one.numerator, one.denominator)),
            percent: one.percent,
        })
    };
}
pub(super) use written_mirror;

// === impl FilterType ===

impl FilterType {
    /// As written in `type`.
    fn as_str(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "RequestHeaderModifier",
            Self::ResponseHeaderModifier => "ResponseHeaderModifier",
            Self::RequestMirror => "RequestMirror",
            Self::RequestRedirect => "RequestRedirect",
            Self::UrlRewrite => "URLRewrite",
            Self::ExtensionRef => "ExtensionRef",
            Self::Cors => "CORS",
            Self::ExternalAuth => "ExternalAuth",
        }
    }

    /// The field that goes with it.
    fn field(self) -> &'static str {
        match self {
            Self::RequestHeaderModifier => "requestHeaderModifier",
            Self::ResponseHeaderModifier => "responseHeaderModifier",
            Self::RequestMirror => "requestMirror",
            Self::RequestRedirect => "requestRedirect",
            Self::UrlRewrite => "urlRewrite",
            Self::ExtensionRef => "extensionRef",
            Self::Cors => "cors",
            Self::ExternalAuth => "externalAuth",
        }
    }

    fn may_be_repeated(self) -> bool {
        matches!(self, Self::RequestMirror | Self::ExtensionRef)
    }
}

/// A rule's filters; `at` is the rule, `backends` how many it has.
pub(super) fn read_of_rule(
    route: &NamespacedName,
    at: &str,
    written: &[Written<'_>],
    matches: &[Match],
    backends: usize,
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Vec<Filter> {
    let at = format!("{at}.filters");
    check_together(&at, written, notes);
    let redirect = written.iter().position(|one| one.filter == FilterType::RequestRedirect);
    if let Some(index) = redirect
        && backends > 0
    {
        notes.refuse(
            format!("{at}[{index}]"),
            "a rule that redirects has no backends",
            "remove the filter or the rule's `backendRefs`",
        );
    }
    let mut filters = Vec::new();
    for (index, one) in written.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let read = read(&at, one, matches, fault, notes);
        filters.extend(read);
        if let Some(mirror) = one.mirror.as_ref().filter(|_| one.filter == FilterType::RequestMirror) {
            filters.push(Filter::Mirror(Box::new(read_mirror(route, &at, index, mirror, notes))));
        }
    }
    filters
}

/// A backend's filters, and why its share is answered with 500, if it is.
pub(super) fn read_of_backend(
    at: &str,
    written: &[Written<'_>],
    matches: &[Match],
    notes: &mut Notes,
) -> (Vec<Filter>, Option<Fault>) {
    let at = format!("{at}.filters");
    check_together(&at, written, notes);
    let mut fault = None;
    let mut filters = Vec::new();
    for (index, one) in written.iter().enumerate() {
        let at = format!("{at}[{index}]");
        if matches!(one.filter, FilterType::RequestHeaderModifier | FilterType::ResponseHeaderModifier) {
            filters.extend(read(&at, one, matches, &mut None, notes));
            continue;
        }
        // What it would be refused for in a rule, it is refused for here.
        let mut looked_through = Notes::default();
        read(&at, one, matches, &mut None, &mut looked_through);
        if looked_through.refused() {
            read(&at, one, matches, &mut None, notes);
            continue;
        }
        let message = format!("the filter {} of a backend is not supported", one.filter.as_str());
        notes.error(
            at.as_str(),
            format!("{message}: its share of the requests gets 500 `backend_not_found`"),
            "backends may have RequestHeaderModifier and ResponseHeaderModifier",
        );
        fault = Some(Fault { effect: Effect::Refused, field: at, message });
    }
    (filters, fault)
}

/// What the Gateway API says of the list as a whole.
fn check_together(at: &str, written: &[Written<'_>], notes: &mut Notes) {
    at_most(MAX_LIST, written.len(), at, notes);
    let has = |wanted| written.iter().any(|one| one.filter == wanted);
    if has(FilterType::RequestRedirect) && has(FilterType::UrlRewrite) {
        notes.refuse(at, "RequestRedirect and URLRewrite exclude each other", "remove one of them");
    }
    for (index, one) in written.iter().enumerate() {
        let before = written[..index].iter().any(|known| known.filter == one.filter);
        if before && !one.filter.may_be_repeated() {
            notes.refuse(
                format!("{at}[{index}]"),
                format!("the filter {} is there twice", one.filter.as_str()),
                "make them one",
            );
        }
    }
}

/// None for what is refused or becomes a fault, both told.
fn read(
    at: &str,
    one: &Written<'_>,
    matches: &[Match],
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<Filter> {
    for other in one.fields.iter().filter(|field| **field != one.filter) {
        notes.refuse(
            format!("{at}.{}", other.field()),
            format!("does not go with `type: {}`", one.filter.as_str()),
            "each filter has its own entry in the list",
        );
    }
    let at = format!("{at}.{}", one.filter.field());
    if !one.fields.contains(&one.filter) {
        notes.refuse(at, format!("`type: {}` needs it", one.filter.as_str()), "");
        return None;
    }
    match one.filter {
        FilterType::RequestHeaderModifier => {
            one.request_headers.as_ref().map(|one| Filter::RequestHeaders(read_headers(&at, one, notes)))
        }
        FilterType::ResponseHeaderModifier => {
            one.response_headers.as_ref().map(|one| Filter::ResponseHeaders(read_headers(&at, one, notes)))
        }
        FilterType::RequestRedirect => {
            one.redirect.as_ref().and_then(|one| read_redirect(&at, one, matches, fault, notes))
        }
        FilterType::UrlRewrite => {
            let (hostname, path) = one.rewrite.as_ref()?;
            let hostname = read_hostname(&at, *hostname, notes);
            let path = match path {
                Some(path) => Some(read_path(&at, path, matches, fault, notes)?),
                None => None,
            };
            Some(Filter::Rewrite(Rewrite { hostname, path }))
        }
        FilterType::Cors => one.cors.as_ref().map(|one| Filter::Cors(cors::read(&at, one, notes))),
        // It needs to know whose route it is.
        FilterType::RequestMirror => None,
        FilterType::ExtensionRef | FilterType::ExternalAuth => {
            let message = format!("the filter {} is not supported", one.filter.as_str());
            Fault { effect: Effect::Refused, field: at, message }.tell(fault, "remove the filter", notes);
            None
        }
    }
}

/// `at` is the filter, `index` its place.
fn read_mirror(
    route: &NamespacedName,
    at: &str,
    index: usize,
    written: &WrittenMirror<'_>,
    notes: &mut Notes,
) -> Mirror {
    let at = format!("{at}.requestMirror");
    let backend = read_backend(route, &format!("{at}.backendRef"), index, &written.backend, &[], notes);
    let (numerator, denominator) = match (written.fraction, written.percent) {
        (Some(_), Some(_)) => {
            notes.refuse(format!("{at}.percent"), "does not go with `fraction`", "say one of them");
            (0, 1)
        }
        (Some((numerator, denominator)), None) => (numerator, denominator.unwrap_or(100)),
        (None, percent) => (percent.unwrap_or(100), 100),
    };
    if numerator < 0 || denominator < 1 || numerator > denominator {
        let field = if written.percent.is_some() { "percent" } else { "fraction" };
        notes.refuse(
            format!("{at}.{field}"),
            format!("{numerator} of {denominator} is no share"),
            "0 to 100 for `percent`; for `fraction`, a numerator of at most the denominator, which is 100 by default",
        );
    }
    Mirror { index, backend, numerator: numerator.unsigned_abs(), denominator: denominator.unsigned_abs() }
}

fn read_headers(at: &str, written: &WrittenHeaders<'_>, notes: &mut Notes) -> HeaderModifier {
    let mut remove: Vec<String> = Vec::new();
    for (index, name) in written.remove.iter().enumerate() {
        check_modified(format!("{at}.remove[{index}]"), name, notes);
        if !remove.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            remove.push(name.clone());
        }
    }
    at_most(MAX_LIST, written.remove.len(), format!("{at}.remove"), notes);
    HeaderModifier {
        set: read_pairs(&format!("{at}.set"), &written.set, notes),
        add: read_pairs(&format!("{at}.add"), &written.add, notes),
        remove,
    }
}

/// The name of a header that is to be changed.
fn check_modified(field: String, name: &str, notes: &mut Notes) {
    if check_name(field.clone(), name, notes) && tulle_api::is_protected_header(name) {
        let hint = if name.eq_ignore_ascii_case("host") {
            "`URLRewrite` changes the host with `hostname`"
        } else {
            "remove it: the proxies make it anew for each connection"
        };
        notes.error(field, format!("`{name}` is not for filters to change, and stays as it is"), hint);
    }
}

/// Of several with the same name, the first counts.
fn read_pairs(field: &str, written: &[(&str, &str)], notes: &mut Notes) -> Vec<(String, String)> {
    let mut read: Vec<(String, String)> = Vec::new();
    for (index, (name, value)) in written.iter().enumerate() {
        let at = format!("{field}[{index}]");
        check_modified(format!("{at}.name"), name, notes);
        check_header_value(format!("{at}.value"), value, notes);
        if read.iter().any(|(known, _)| known.eq_ignore_ascii_case(name)) {
            notes.warn(
                format!("{at}.name"),
                format!("`{name}` is there twice: only the first counts"),
                "remove one; values may be joined by commas",
            );
        } else {
            read.push(((*name).to_owned(), (*value).to_owned()));
        }
    }
    at_most(MAX_LIST, written.len(), field, notes);
    read
}

fn read_redirect(
    at: &str,
    written: &WrittenRedirect<'_>,
    matches: &[Match],
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<Filter> {
    let status = match written.status.unwrap_or(302) {
        301 => 301,
        302 => 302,
        303 => 303,
        307 => 307,
        308 => 308,
        other => {
            let field = format!("{at}.statusCode");
            notes.refuse(field, format!("{other} is no status of a redirect"), "301, 302, 303, 307 or 308");
            return None;
        }
    };
    let path = match &written.path {
        Some(path) => Some(read_path(at, path, matches, fault, notes)?),
        None => None,
    };
    Some(Filter::Redirect(Redirect {
        scheme: written.scheme,
        hostname: read_hostname(at, written.hostname, notes),
        path,
        port: written.port.map(|number| port(number, format!("{at}.port"), notes)),
        status,
    }))
}

fn read_hostname(at: &str, hostname: Option<&str>, notes: &mut Notes) -> Option<String> {
    let hostname = hostname?;
    if !is_hostname(hostname) {
        notes.refuse(
            format!("{at}.hostname"),
            format!("`{hostname}` is not a host name"),
            "lower case, no port, no wildcard and no IP address",
        );
    }
    Some(hostname.to_owned())
}

fn read_path(
    at: &str,
    written: &WrittenPath<'_>,
    matches: &[Match],
    fault: &mut Option<Fault>,
    notes: &mut Notes,
) -> Option<PathModifier> {
    let at = format!("{at}.path");
    let (own, other, text) = if written.is_full {
        ("replaceFullPath", ("replacePrefixMatch", written.prefix), written.full)
    } else {
        ("replacePrefixMatch", ("replaceFullPath", written.full), written.prefix)
    };
    if other.1.is_some() {
        let message = format!("does not go with a `type` that needs `{own}`");
        notes.refuse(format!("{at}.{}", other.0), message, "remove it, or correct `type`");
    }
    let field = format!("{at}.{own}");
    let Some(text) = text else {
        notes.refuse(field, "its `type` needs it", "");
        return None;
    };
    if text.chars().count() > MAX_PATH {
        notes.refuse(field, format!("longer than {MAX_PATH} characters"), "");
        return None;
    }
    let by_prefix = matches!(matches, [Match { path: Some(PathMatch::Prefix(_)), .. }]);
    if !written.is_full && !by_prefix {
        notes.refuse(
            field,
            "the rule must have exactly one match, and that by `PathPrefix`",
            "give each prefix its own rule, or use `ReplaceFullPath`",
        );
        return None;
    }
    // Of a prefix's substitute the slashes at both ends do not matter; whatever else is no path is nobody's wish.
    let is_path =
        no_path_character(text).is_none() && (text.starts_with('/') || !written.is_full && text.is_empty());
    if !is_path {
        let message = format!("`{text}` is not a path");
        let hint = "it begins with `/` and has no query; other characters are `%` and two hexadecimal digits";
        Fault { effect: Effect::Refused, field, message }.tell(fault, hint, notes);
        return None;
    }
    let text = text.to_owned();
    Some(if written.is_full { PathModifier::Full(text) } else { PathModifier::Prefix(text) })
}
