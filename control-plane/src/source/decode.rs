//! Documents → objects.
//!
//! Decides which kinds are read, and how serde's complaints are told: with file, line and the path of the field.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tulle_api::v1;

use super::strict;
use super::yaml::{self, Broken, Chunk, Document};
use crate::finding::{Finding, Mark, Note, Notes, Origin, Severity, push_index, push_key};
use crate::kinds::{
    AccessTargetRef, AuthorizationPolicy, EgressPolicy, ExternalAuthorization, FaultPolicy, Mesh,
    PeerAuthentication, PolicyTargetRef, RateLimitPolicy, RequestAuthentication, TelemetryPolicy,
    TrafficPolicy,
};
use crate::object::{
    Access, AccessSays, Authentication, Authorization, DEFAULT_NAMESPACE, Egress, External, Kind,
    NamespacedName, Object, ObjectKey, PodForm, foreign, is_label, is_subdomain,
};

/// Lists within lists are not read.
const MAX_LIST_DEPTH: usize = 2;

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) entries: Vec<Entry>,
    /// Some document could not be read so far as to say what it is: what the file held before may be in it.
    pub(super) unreadable: bool,
    pub(super) findings: Vec<Finding>,
}

/// One object of a file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: ObjectKey,
    pub(super) origin: Origin,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    Good(Object),
    /// Told; the last good version holds, or else this.
    Refused {
        fallback: Option<Object>,
    },
    /// A version that is not read, of a kind that is; what was of that name in the file before stays.
    Unknown,
}

/// One object of an API server, which says of what kind it is by where it is.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) key: ObjectKey,
    pub(super) content: Content,
    pub(super) notes: Vec<Note>,
}

/// What is said of a field that no type names.
const UNKNOWN_FIELD: &str = "this field is not known and is ignored";
const UNKNOWN_HINT: &str = "look for a slip of the pen, or for a field of a newer version";

/// Reads an object of an API server.
///
/// # Errors
/// It is not even known what it is called.
pub(super) fn decode_object(kind: Kind, mut value: Value) -> Result<Decoded, Note> {
    let key = name(&value, kind).map_err(Unnamed::note)?;
    // Who wrote which field: mostly longer than all the rest.
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let (content, notes) = read(kind, &key, value);
    let mut notes = notes.into_inner();
    if matches!(kind, Kind::Service | Kind::EndpointSlice) {
        // No slip of a pen: the API server knows it, and is newer than this.
        notes.retain(|note| note.message != UNKNOWN_FIELD);
    }
    Ok(Decoded { key, content, notes })
}

/// Reads a Pod of an API server.
///
/// # Errors
/// It is not even known what it is called.
pub(super) fn decode_pod(form: &PodForm) -> Result<Decoded, Note> {
    let name = form.name();
    if !is_label(&name.namespace) || !is_subdomain(&name.name) {
        let field = if is_label(&name.namespace) { "metadata.name" } else { "metadata.namespace" };
        return Err(Unnamed {
            field,
            message: format!("`{name}` cannot be a Pod; it is left out"),
            hint: "",
        }
        .note());
    }
    let mut notes = Notes::default();
    let content = match Object::pod(form, &mut notes) {
        Some(object) => Content::Good(object),
        None => Content::Refused { fallback: None },
    };
    Ok(Decoded { key: ObjectKey { kind: Kind::Pod, name }, content, notes: notes.into_inner() })
}

/// Reads a file's text.
pub(super) fn decode(file: &str, text: &str) -> Contents {
    let mut decoder = Decoder { file: file.into(), contents: Contents::default() };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let is_json = file.ends_with(".json");
    let chunks = if is_json { vec![Chunk { first_line: 1, text }] } else { yaml::split(text) };
    for chunk in chunks {
        let parsed = if is_json { parse_json(chunk) } else { yaml::parse(chunk) };
        match parsed {
            Ok(Some(document)) => decoder.document(document),
            Ok(None) => {}
            Err(broken) => decoder.broken(broken),
        }
    }
    decoder.contents
}

/// JSON is nearly YAML, but for escapes: the value comes from a JSON parser, positions from the YAML one.
fn parse_json(chunk: Chunk<'_>) -> Result<Option<Document>, Broken> {
    if chunk.text.trim().is_empty() {
        return Ok(None);
    }
    let value = serde_json::from_str(chunk.text).map_err(|error| Broken {
        mark: Mark {
            line: u32::try_from(error.line()).unwrap_or(1),
            // At the end of a line it counts from that line, which has no column yet.
            column: u32::try_from(error.column().max(1)).unwrap_or(1),
        },
        message: error.to_string(),
    })?;
    // YAML does not pair surrogates; what the text says does not matter here, only where it stands.
    let text = chunk.text.replace("\\u", "uu");
    let positions = yaml::parse(Chunk { text: &text, ..chunk });
    let positions = positions.ok().flatten();
    Ok(Some(Document { value, positions: positions.map(|document| document.positions).unwrap_or_default() }))
}

struct Decoder {
    file: Arc<str>,
    contents: Contents,
}

// === impl Decoder ===

impl Decoder {
    fn broken(&mut self, broken: Broken) {
        self.contents.unreadable = true;
        self.contents.findings.push(Finding {
            file: Some(self.file.to_string()),
            line: Some(broken.mark.line),
            column: Some(broken.mark.column),
            severity: Severity::Error,
            object: None,
            field: None,
            message: format!(
                "this document cannot be read: {}; what was last read from it is served on",
                broken.message
            ),
            hint: None,
        });
    }

    fn document(&mut self, document: Document) {
        let origin =
            Origin { file: self.file.clone(), base: "".into(), positions: Arc::new(document.positions) };
        self.object(document.value, origin, 0);
    }

    fn object(&mut self, value: Value, origin: Origin, list_depth: usize) {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
        let (version, kind_text) = (text("apiVersion").to_owned(), text("kind").to_owned());
        if version.is_empty() || kind_text.is_empty() {
            let field = if version.is_empty() { "apiVersion" } else { "kind" };
            let message = if value.is_object() {
                format!("this is no object: `{field}` is missing; it is left out")
            } else {
                "this is no object but a bare value; it is left out".to_owned()
            };
            let hint = "every document begins with `apiVersion:` and `kind:`";
            self.unreadable(&origin, field, message, hint);
            return;
        }
        if kind_text.ends_with("List") && value.get("items").is_some_and(Value::is_array) {
            self.list(value, &origin, list_depth);
            return;
        }
        let kind = match find_kind(&version, &kind_text) {
            Ok(kind) => kind,
            Err(known) => {
                self.unknown(&value, &version, &kind_text, known, origin);
                return;
            }
        };
        let Some(key) = self.name(&value, kind, &origin) else {
            return;
        };
        let (content, notes) = read(kind, &key, value);
        self.tell(notes, &key, &origin);
        self.contents.entries.push(Entry { key, origin, content });
    }

    fn list(&mut self, mut value: Value, origin: &Origin, depth: usize) {
        if depth >= MAX_LIST_DEPTH {
            self.unreadable(origin, "items", "lists are nested too deeply".to_owned(), "");
            return;
        }
        let items = value.get_mut("items").map(Value::take);
        let Some(Value::Array(items)) = items else {
            return;
        };
        for (index, item) in items.into_iter().enumerate() {
            let mut base = origin.base.to_string();
            push_key(&mut base, "items");
            push_index(&mut base, index);
            let origin = Origin { base: base.into(), ..origin.clone() };
            self.object(item, origin, depth + 1);
        }
    }

    /// What the object is called; none, told, if it cannot be called that.
    fn name(&mut self, value: &Value, kind: Kind, origin: &Origin) -> Option<ObjectKey> {
        match name(value, kind) {
            Ok(key) => Some(key),
            Err(Unnamed { field, message, hint }) => {
                self.unreadable(origin, field, message, hint);
                None
            }
        }
    }

    fn unknown(&mut self, value: &Value, version: &str, kind: &str, known: Option<Kind>, origin: Origin) {
        let (field, hint) = match known {
            Some(known) => {
                let field = if known.as_str() == kind { "apiVersion" } else { "kind" };
                let versions = versions(known).join("` or `");
                (field, format!("`{known}` is read, as `{versions}`"))
            }
            None => {
                let read = Kind::ALL.into_iter().filter(|kind| !versions(*kind).is_empty());
                let read: Vec<&str> = read.map(Kind::as_str).collect();
                ("kind", format!("read are: {}", read.join(", ")))
            }
        };
        let note = Note {
            severity: Severity::Warning,
            field: field.to_owned(),
            message: format!("`{version}` `{kind}` means nothing to the mesh and is left out"),
            hint: Some(hint),
        };
        self.contents.findings.push(Finding::new(note, None, Some(&origin)));
        // A slip of the pen must not remove what is served: whatever was of that kind and name stays.
        let metadata = |field: &str| value.get("metadata")?.get(field)?.as_str();
        if let (Some(kind), Some(name)) = (known, metadata("name")) {
            let namespace = metadata("namespace").unwrap_or(DEFAULT_NAMESPACE);
            let namespace = if kind.is_namespaced() { namespace } else { "" };
            self.contents.entries.push(Entry {
                key: ObjectKey { kind, name: NamespacedName::new(namespace, name) },
                origin,
                content: Content::Unknown,
            });
        }
    }

    fn unreadable(&mut self, origin: &Origin, field: &str, message: String, hint: &str) {
        self.contents.unreadable = true;
        let mut notes = Notes::default();
        notes.error(field, message, hint);
        for note in notes.into_inner() {
            self.contents.findings.push(Finding::new(note, None, Some(origin)));
        }
    }

    fn tell(&mut self, notes: Notes, key: &ObjectKey, origin: &Origin) {
        for note in notes.into_inner() {
            self.contents.findings.push(Finding::new(note, Some(key), Some(origin)));
        }
    }
}

/// Why it is not known what an object is called.
struct Unnamed {
    field: &'static str,
    message: String,
    hint: &'static str,
}

// === impl Unnamed ===

impl Unnamed {
    fn note(self) -> Note {
        Note {
            severity: Severity::Error,
            field: self.field.to_owned(),
            message: self.message,
            hint: (!self.hint.is_empty()).then(|| self.hint.to_owned()),
        }
    }
}

/// What an object is called, if it can be called that.
fn name(value: &Value, kind: Kind) -> Result<ObjectKey, Unnamed> {
    let metadata = value.get("metadata");
    let text = |field: &str| match metadata.and_then(|metadata| metadata.get(field)) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) => Some(Some(text.as_str())),
        Some(_) => None,
    };
    let Some(Some(name)) = text("name").filter(|name| name.is_some_and(|n| !n.is_empty())) else {
        return Err(Unnamed {
            field: "metadata.name",
            message: format!("this {kind} has no name (it must be text); it is left out"),
            hint: "write `metadata: {name: …}`",
        });
    };
    let namespace = match text("namespace") {
        _ if !kind.is_namespaced() => Some(""),
        Some(namespace) => Some(namespace.unwrap_or(DEFAULT_NAMESPACE)).filter(|n| is_label(n)),
        None => None,
    };
    let Some(namespace) = namespace else {
        return Err(Unnamed {
            field: "metadata.namespace",
            message: format!("the namespace of {kind} `{name}` cannot be one; it is left out"),
            hint: "lower case letters, digits and `-`, at most 63",
        });
    };
    let valid = if kind == Kind::Service { is_label(name) } else { is_subdomain(name) };
    if !valid {
        return Err(Unnamed {
            field: "metadata.name",
            message: format!("`{name}` cannot be the name of a {kind}; it is left out"),
            hint: "lower case letters, digits and `-`",
        });
    }
    Ok(ObjectKey { kind, name: NamespacedName::new(namespace, name) })
}

/// The versions in which a kind is read; they are alike in all that is read. None: it is not read from text.
pub(crate) fn versions(kind: Kind) -> &'static [&'static str] {
    match kind {
        Kind::Service => &["v1"],
        Kind::EndpointSlice => &["discovery.k8s.io/v1"],
        Kind::HttpRoute | Kind::ReferenceGrant => {
            &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1beta1"]
        }
        Kind::GrpcRoute => &["gateway.networking.k8s.io/v1"],
        Kind::TlsRoute => &[
            "gateway.networking.k8s.io/v1",
            "gateway.networking.k8s.io/v1alpha3",
            "gateway.networking.k8s.io/v1alpha2",
        ],
        Kind::TcpRoute => &["gateway.networking.k8s.io/v1", "gateway.networking.k8s.io/v1alpha2"],
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::ExternalAuthorization
        | Kind::RequestAuthentication
        | Kind::EgressPolicy
        | Kind::TrafficPolicy
        | Kind::RateLimitPolicy
        | Kind::FaultPolicy
        | Kind::TelemetryPolicy
        | Kind::Mesh => &["policy.tulle.dev/v1alpha1"],
        Kind::Pod | Kind::Workload | Kind::Namespace => &[],
    }
}

/// The kind, or the one that was probably meant, in another version.
fn find_kind(version: &str, kind: &str) -> Result<Kind, Option<Kind>> {
    let mut all = Kind::ALL.into_iter();
    let Some(named) = all.find(|known| known.as_str().eq_ignore_ascii_case(kind)) else {
        return Err(None);
    };
    if named.as_str() == kind && versions(named).contains(&version) {
        return Ok(named);
    }
    let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
    let same_group = versions(named).iter().any(|known| group(known) == group(version));
    Err(same_group.then_some(named))
}

fn read(kind: Kind, key: &ObjectKey, mut value: Value) -> (Content, Notes) {
    let mut notes = Notes::default();
    // What is copied from an API server has one; it says nothing to anybody here.
    if let Some(fields) = value.as_object_mut() {
        fields.remove("status");
    }
    let fallback = closed(key, &value);
    let meanwhile = meanwhile(key, fallback.as_ref(), &value);
    let object = match kind {
        Kind::Service => typed(value, &mut notes).and_then(|v| Object::service(&v, &mut notes)),
        Kind::EndpointSlice => typed(value, &mut notes).and_then(|v| Object::endpoint_slice(&v, &mut notes)),
        Kind::HttpRoute => typed(value, &mut notes).and_then(|v| Object::http_route(&v, &mut notes)),
        Kind::GrpcRoute => typed(value, &mut notes).and_then(|v| Object::grpc_route(&v, &mut notes)),
        Kind::TlsRoute => typed(value, &mut notes).and_then(|v| Object::tls_route(&v, &mut notes)),
        Kind::TcpRoute => typed(value, &mut notes).and_then(|v| Object::tcp_route(&v, &mut notes)),
        Kind::ReferenceGrant => {
            typed(value, &mut notes).and_then(|v| Object::reference_grant(&v, &mut notes))
        }
        Kind::AuthorizationPolicy => strictly::<AuthorizationPolicy>(value, &mut notes)
            .and_then(|v| Object::authorization_policy(&v, &mut notes)),
        Kind::PeerAuthentication => strictly::<PeerAuthentication>(value, &mut notes)
            .and_then(|v| Object::peer_authentication(&v, &mut notes)),
        Kind::ExternalAuthorization => strictly::<ExternalAuthorization>(value, &mut notes)
            .and_then(|v| Object::external_authorization(&v, &mut notes)),
        Kind::RequestAuthentication => strictly::<RequestAuthentication>(value, &mut notes)
            .and_then(|v| Object::request_authentication(&v, &mut notes)),
        Kind::EgressPolicy => {
            strictly::<EgressPolicy>(value, &mut notes).and_then(|v| Object::egress_policy(&v, &mut notes))
        }
        Kind::TrafficPolicy => {
            typed::<TrafficPolicy>(value, &mut notes).and_then(|v| Object::traffic_policy(&v, &mut notes))
        }
        Kind::RateLimitPolicy => typed::<RateLimitPolicy>(value, &mut notes)
            .and_then(|v| Object::rate_limit_policy(&v, &mut notes)),
        Kind::FaultPolicy => {
            typed::<FaultPolicy>(value, &mut notes).and_then(|v| Object::fault_policy(&v, &mut notes))
        }
        Kind::TelemetryPolicy => {
            typed::<TelemetryPolicy>(value, &mut notes).and_then(|v| Object::telemetry_policy(&v, &mut notes))
        }
        Kind::Mesh => typed::<Mesh>(value, &mut notes).and_then(|v| Object::mesh(&v, &mut notes)),
        // Nobody writes these.
        Kind::Pod | Kind::Workload | Kind::Namespace => None,
    };
    let content = match object {
        Some(object) => Content::Good(object),
        None => {
            if let Some((meanwhile, hint)) = meanwhile {
                let message =
                    format!("until it is mended its last good version holds; without one, {meanwhile}");
                notes.error("", message, hint);
            }
            Content::Refused { fallback }
        }
    };
    (content, notes)
}

/// What holds in place of a policy that cannot be read, as far as it says what it is attached to.
fn closed(key: &ObjectKey, value: &Value) -> Option<Object> {
    match key.kind {
        Kind::AuthorizationPolicy
        | Kind::PeerAuthentication
        | Kind::ExternalAuthorization
        | Kind::RequestAuthentication => {
            let says = unreadable(key, value)?;
            let refs = own_refs(key, value, |one: &AccessTargetRef| one.namespace.as_deref())?;
            // Nobody wrote what it is attached to where there is no spec.
            let written = &value.get("spec").filter(|spec| spec.is_object())?["targetRefs"];
            let is_written = !written.is_null() && written.as_array().is_none_or(|refs| !refs.is_empty());
            let closed = Access::closed(key.kind, key.name.clone(), &refs, is_written, says)?;
            Some(Object::Access(closed))
        }
        Kind::EgressPolicy => {
            let refs = own_refs(key, value, |one: &PolicyTargetRef| one.namespace.as_deref())?;
            Some(Object::EgressPolicy(Egress::closed(key.name.clone(), &refs)))
        }
        _ => None,
    }
}

/// What a policy says that cannot be read: what refuses most. None where it would have refused nothing.
fn unreadable(key: &ObjectKey, value: &Value) -> Option<AccessSays> {
    let spec = &value["spec"];
    let text = |field: &str, default: &'static str| match &spec[field] {
        Value::Null => Some(default),
        other => other.as_str(),
    };
    match key.kind {
        Kind::AuthorizationPolicy => {
            let closed = Authorization::closed(text("action", "ALLOW"), text("mode", "Enforce"))?;
            Some(AccessSays::Authorization(Box::new(closed)))
        }
        Kind::PeerAuthentication if text("mode", "Enforce") == Some("DryRun") => None,
        Kind::PeerAuthentication => Some(AccessSays::Mtls(v1::MtlsMode::Strict)),
        Kind::ExternalAuthorization => {
            let closed = External::closed(&key.name, text("mode", "Enforce"), text("failureMode", "Deny"))?;
            Some(AccessSays::External(Box::new(closed)))
        }
        // Of one that is surely in dry run nothing holds.
        Kind::RequestAuthentication if text("mode", "Enforce") == Some("DryRun") => None,
        Kind::RequestAuthentication => Some(AccessSays::Tokens(Authentication::closed())),
        _ => None,
    }
}

/// The `targetRefs` that can be read and are in the policy's own namespace. None, if all that it names are in others.
fn own_refs<T: DeserializeOwned>(
    key: &ObjectKey,
    value: &Value,
    namespace: impl Fn(&T) -> Option<&str>,
) -> Option<Vec<T>> {
    let written = || value.get("spec")?.get("targetRefs")?.as_array();
    let written = written().map(Vec::as_slice).unwrap_or_default();
    let refs = written.iter().filter_map(|one| strict::read(one.clone()).0.ok());
    let (abroad, own): (Vec<T>, Vec<T>) = refs.partition(|one| foreign(&key.name, namespace(one)).is_some());
    // Nobody can close what is in another namespace, and whoever named nothing else did not mean their own.
    (abroad.is_empty() || abroad.len() != written.len()).then_some(own)
}

/// What holds where a policy is refused and has no last good version, in words, and a hint; nothing for other kinds.
fn meanwhile(
    key: &ObjectKey,
    fallback: Option<&Object>,
    value: &Value,
) -> Option<(&'static str, &'static str)> {
    match (key.kind, fallback) {
        (Kind::RequestAuthentication, None) if unreadable(key, value).is_none() => {
            Some(("it tells of nothing, and it would have refused nothing", ""))
        }
        (Kind::RequestAuthentication, None) => {
            Some(("it verifies nothing", "its targetRefs name nothing of its namespace"))
        }
        (_, Some(Object::Access(policy))) => Some((
            match &policy.says {
                AccessSays::Authorization(says) if says.action == v1::AccessAction::Deny => {
                    "everything is denied at its targets"
                }
                AccessSays::Authorization(_) => "nobody is allowed to reach its targets",
                AccessSays::Mtls(_) | AccessSays::MtlsDryRun(_) => {
                    "its targets take mutual TLS alone, as by `strict`"
                }
                AccessSays::Tokens(_) => "nobody's token is taken at its targets, and each request needs one",
                AccessSays::External(_) => {
                    "every request to its targets is refused with 503 `authorizer_unavailable`"
                }
            },
            "",
        )),
        (Kind::ExternalAuthorization, _) if unreadable(key, value).is_none() => {
            Some(("nobody is asked, and every request goes on", ""))
        }
        (Kind::ExternalAuthorization, _) => {
            Some(("nobody is asked", "its targetRefs name nothing of its namespace"))
        }
        (Kind::AuthorizationPolicy, _) if unreadable(key, value).is_none() => {
            Some(("it tells of nothing, and it would have refused nothing", ""))
        }
        (Kind::AuthorizationPolicy, _) => {
            Some(("it protects nothing", "its targetRefs name nothing of its namespace"))
        }
        (Kind::PeerAuthentication, _) if unreadable(key, value).is_none() => {
            Some(("it tells of nothing, and it would have refused nothing", ""))
        }
        (Kind::PeerAuthentication, _) => {
            Some(("it changes nothing", "its targetRefs name nothing of its namespace"))
        }
        (_, Some(Object::EgressPolicy(policy))) if policy.targets.is_empty() => {
            Some(("no workload of its namespace reaches anything outside the mesh", ""))
        }
        (_, Some(Object::EgressPolicy(_))) => {
            Some(("the workloads of its targets reach nothing outside the mesh", ""))
        }
        (Kind::EgressPolicy, _) => {
            Some(("it denies nothing", "its targetRefs name no Service of its namespace"))
        }
        (Kind::TrafficPolicy, _) => Some(("its targets are treated as if it were not there", "")),
        (Kind::RateLimitPolicy, _) => Some(("it limits nothing", "")),
        (Kind::FaultPolicy, _) => Some(("nothing goes wrong by it", "")),
        (Kind::TelemetryPolicy, _) => Some(("it changes nothing that is told", "")),
        _ => None,
    }
}

/// Fields that every object has, and that its type does not name.
const ENVELOPE: [&str; 2] = ["apiVersion", "kind"];

/// Reads a value as a type: what does not fit is refused, what is not known is told.
fn typed<T: DeserializeOwned>(value: Value, notes: &mut Notes) -> Option<T> {
    with_unknown(value, notes, |field, notes| notes.warn(field, UNKNOWN_FIELD, UNKNOWN_HINT))
}

/// As [`typed`], of what decides who is let in or out: what is not known may be what narrows a rule that allows, and is refused with all the rest.
fn strictly<T: DeserializeOwned>(value: Value, notes: &mut Notes) -> Option<T> {
    with_unknown(value, notes, |field, notes| match field.starts_with("metadata.") {
        true => notes.warn(field, UNKNOWN_FIELD, UNKNOWN_HINT),
        false => notes.refuse(field, "this field is not known, and may be what narrows a rule", UNKNOWN_HINT),
    })
}

fn with_unknown<T: DeserializeOwned>(
    value: Value,
    notes: &mut Notes,
    tell: impl Fn(String, &mut Notes),
) -> Option<T> {
    let (read, unknown) = strict::read(value);
    for field in unknown.into_iter().filter(|field| !ENVELOPE.contains(&field.as_str())) {
        tell(field, notes);
    }
    read.map_err(|wrong| notes.refuse(wrong.field.unwrap_or_default(), wrong.message, wrong.hint)).ok()
}
