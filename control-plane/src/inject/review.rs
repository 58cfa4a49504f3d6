//! `admission.k8s.io/v1`: a request of the API server's, and what it is answered. Pure.
//!
//! The answer lets a Pod through whatever is wrong with it, and tells that as warnings, unless the Pod itself asks for a proxy that it cannot have. What is no
//! review gets an error, as does a Pod of a namespace that is not known: what it says of injection nobody knows, and the webhook's failure policy decides. Fields that a newer API server adds are passed over.

mod kept;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Decision, Namespace, Reason, Settings, inject, patch};

/// What came of a review.
#[derive(Clone, Debug, PartialEq)]
pub struct Reviewed {
    /// The AdmissionReview that the API server is answered.
    pub answer: Value,
    /// `<namespace>/<name>`, as far as there is a name yet.
    pub pod: String,
    /// For metrics and the log.
    pub outcome: Outcome,
    /// Of what was left or refused.
    pub reason: Option<Reason>,
    /// The same, for people.
    pub message: String,
    /// What the API server tells its client.
    pub warnings: Vec<String>,
}

/// What became of a Pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It got a proxy.
    Injected,
    /// It was let through as it was.
    Left,
    /// It was not let through.
    Refused,
}

/// What is no review.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON.
    #[error("the body is not JSON: {0}")]
    Json(String),
    /// It would take too much memory.
    #[error(
        "the pod has more than {} values that matter to the injector; give it fewer containers, ports, probes, labels or annotations, or leave it to \
         `tulle inject`",
        kept::MOST
    )]
    TooLarge,
    /// Another version.
    #[error("the body is a `{0}`, not an AdmissionReview of admission.k8s.io/v1")]
    Kind(String),
    /// No request in it.
    #[error("the review has no request with a `uid`")]
    NoRequest,
}

/// What a new Pod's namespace says is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control plane does not know the namespace {0} (yet)")]
pub struct UnknownNamespace(pub String);

/// The most that is told: the API server cuts what is longer.
const MOST_WARNINGS: usize = 10;

// === impl Outcome ===

impl Outcome {
    /// The label of the metric.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Injected => "injected",
            Self::Left => "left",
            Self::Refused => "refused",
        }
    }
}

/// The namespace that a review in a body is about, without the rest; `None` if there is none.
pub fn namespace_of(body: &[u8]) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Review {
        request: Request,
    }
    #[derive(serde::Deserialize)]
    struct Request {
        namespace: String,
    }
    serde_json::from_slice::<Review>(body).ok().map(|review| review.request.namespace)
}

/// Reads a body: what of it matters here, without the rest.
///
/// # Errors
/// When it is no review, or one of too many values.
pub fn read(body: &[u8]) -> Result<Value, Malformed> {
    let review = kept::read(body, kept::MOST).map_err(|unread| match unread {
        kept::Unread::TooMany => Malformed::TooLarge,
        kept::Unread::Json(error) => Malformed::Json(error.to_string()),
    })?;
    let text = |key: &str| review.get(key).and_then(Value::as_str).unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if (version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        let said = format!("{version} {kind}").chars().take(100).collect::<String>();
        return Err(Malformed::Kind(said.trim().to_owned()));
    }
    let uid = review.pointer("/request/uid").and_then(Value::as_str).filter(|uid| !uid.is_empty());
    uid.ok_or(Malformed::NoRequest)?;
    Ok(review)
}

/// Answers a review ([`read`]). `namespace`: that of the request, if it is known.
///
/// # Errors
/// When it is not, and the review is of a new Pod.
pub fn review(
    review: &Value,
    namespace: Option<&Namespace>,
    settings: &Settings,
) -> Result<Reviewed, UnknownNamespace> {
    let request = review.get("request").unwrap_or(&Value::Null);
    let text = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let object = request.get("object").unwrap_or(&Value::Null);
    let generated = |key: &str| object.pointer(&format!("/metadata/{key}")).and_then(Value::as_str);
    let name = Some(text("/name")).filter(|name| !name.is_empty());
    let name = name.or_else(|| generated("name")).or_else(|| generated("generateName")).unwrap_or_default();
    let pod = format!("{}/{name}", text("/namespace"));
    let is_new_pod = text("/kind/kind") == "Pod"
        && text("/kind/group").is_empty()
        && text("/subResource").is_empty()
        && text("/operation") == "CREATE";
    let decision = match namespace {
        _ if !is_new_pod => Decision::Leave {
            reason: Reason::Malformed,
            message: "only new pods get a proxy".to_owned(),
            warnings: Vec::new(),
        },
        Some(namespace) => inject(object, namespace, settings),
        None => return Err(UnknownNamespace(text("/namespace").to_owned())),
    };
    let mut response = json!({"uid": text("/uid"), "allowed": true});
    let (outcome, reason, message, mut warnings) = match decision {
        Decision::Inject { pod, warnings } => {
            let operations = Value::Array(patch(object, &pod));
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(operations.to_string()));
            (Outcome::Injected, None, String::new(), warnings)
        }
        Decision::Leave { reason, message, mut warnings } => {
            if is_new_pod && reason.is_worth_telling() {
                warnings.insert(0, format!("no proxy ({reason}): {message}"));
            }
            (Outcome::Left, Some(reason), message, warnings)
        }
        Decision::Refuse { reason, message } => {
            response["allowed"] = json!(false);
            let told = format!("tulle cannot put a proxy into the pod ({reason}): {message}");
            response["status"] = json!({"code": 422, "reason": "Invalid", "message": told});
            (Outcome::Refused, Some(reason), message, Vec::new())
        }
    };
    if warnings.len() > MOST_WARNINGS {
        let more = warnings.len() - MOST_WARNINGS;
        warnings.truncate(MOST_WARNINGS);
        warnings.push(format!("and {more} more"));
    }
    if !warnings.is_empty() {
        let told: Vec<String> = warnings.iter().map(|warning| format!("tulle: {warning}")).collect();
        response["warnings"] = json!(told);
    }
    let answer =
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    Ok(Reviewed { answer, pod, outcome, reason, message, warnings })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{many, namespace, pod};
    use super::*;

    fn asked(object: &Value) -> Value {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "705ab4f5", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
                "namespace": "shop", "object": object, "dryRun": true, "new-field": {"x": 1},
            },
        })
    }

    fn answered(object: &Value) -> Reviewed {
        let body = serde_json::to_vec(&asked(object)).unwrap();
        review(&read(&body).unwrap(), Some(&namespace()), &Settings::default()).unwrap()
    }

    #[test]
    fn a_patch_makes_the_pod_that_the_function_makes() {
        let pod = pod();
        let Reviewed { answer, outcome, .. } = answered(&pod);
        assert_eq!((outcome, &answer["response"]["uid"]), (Outcome::Injected, &json!("705ab4f5")));
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let patch = STANDARD.decode(answer["response"]["patch"].as_str().unwrap()).unwrap();
        let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
        let mut patched = pod.clone();
        json_patch::patch(&mut patched, &patch).unwrap();
        let Decision::Inject { pod: expected, .. } = inject(&pod, &namespace(), &Settings::default()) else {
            panic!("not injected");
        };
        assert_eq!(patched, *expected);
        // Called once more, with what it has made itself.
        let again = answered(&patched);
        assert_eq!((again.outcome, again.reason), (Outcome::Left, Some(Reason::AlreadyInjected)));
        assert_eq!(again.answer["response"], json!({"uid": "705ab4f5", "allowed": true}));
    }

    #[test]
    fn what_cannot_have_a_proxy_is_let_through_and_told_unless_it_asks_by_itself() {
        let mut taken = pod();
        taken["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15001}]);
        let left = answered(&taken);
        assert_eq!((left.outcome, left.reason), (Outcome::Left, Some(Reason::PortConflict)));
        assert_eq!(left.answer["response"]["allowed"], true);
        let warning = left.answer["response"]["warnings"][0].as_str().unwrap();
        assert!(warning.contains("port_conflict") && warning.contains("15001"), "{warning}");
        taken["metadata"]["labels"]["tulle.dev/inject"] = json!("enabled");
        let refused = answered(&taken);
        assert_eq!(
            (refused.outcome, &refused.answer["response"]["allowed"]),
            (Outcome::Refused, &json!(false))
        );
        let told = refused.answer["response"]["status"]["message"].as_str().unwrap();
        assert!(told.contains("port_conflict") && told.contains("15001"), "{told}");
    }

    #[test]
    fn what_is_no_review_is_an_error() {
        for (body, says) in [
            ("", "JSON"),
            ("{", "JSON"),
            ("[]", "not an AdmissionReview"),
            (r#"{"apiVersion": "admission.k8s.io/v1beta1", "kind": "AdmissionReview"}"#, "v1beta1"),
            (r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}"#, "uid"),
            (
                r#"{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {"uid": ""}}"#,
                "uid",
            ),
        ] {
            let error = read(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{body}: {error}");
        }
    }

    #[test]
    fn whatever_a_pod_is_said_to_be_it_is_let_through() {
        let other = |change: &dyn Fn(&mut Value)| {
            let mut review = asked(&pod());
            change(&mut review);
            super::review(&review, Some(&namespace()), &Settings::default()).unwrap()
        };
        for (index, reviewed) in [
            other(&|review| review["request"]["operation"] = json!("UPDATE")),
            other(&|review| review["request"]["subResource"] = json!("ephemeralcontainers")),
            other(&|review| review["request"]["kind"]["kind"] = json!("Deployment")),
            other(&|review| review["request"]["kind"]["group"] = json!("example.dev")),
            other(&|review| review["request"]["object"] = json!(null)),
            other(&|review| review["request"]["object"] = json!({"metadata": 1, "spec": []})),
            other(&|review| {
                review["request"]["object"] = json!({"metadata": {}, "spec": {"containers": [1, null]}})
            }),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(reviewed.answer["response"]["allowed"], true, "{index}");
            assert_eq!(reviewed.answer["response"].get("patch"), None, "{index}");
        }
        let unknown = review(&asked(&pod()), None, &Settings::default());
        assert_eq!(unknown, Err(UnknownNamespace("shop".to_owned())), "the failure policy decides");
        let mut update = asked(&pod());
        update["request"]["operation"] = json!("UPDATE");
        assert_eq!(review(&update, None, &Settings::default()).unwrap().outcome, Outcome::Left);
    }

    #[test]
    fn what_is_passed_over_is_looked_at_by_nobody() {
        for (name, namespace, settings, pod) in many() {
            let kept = read(&serde_json::to_vec(&asked(&pod)).unwrap()).unwrap();
            let kept = &kept["request"]["object"];
            let told = |pod: &Value| match inject(pod, &namespace, &settings) {
                Decision::Inject { pod: with_proxy, warnings } => (patch(pod, &with_proxy), warnings, None),
                Decision::Leave { reason, message, warnings } => {
                    (Vec::new(), warnings, Some((reason, message)))
                }
                Decision::Refuse { reason, message } => (Vec::new(), Vec::new(), Some((reason, message))),
            };
            assert_eq!(told(kept), told(&pod), "{name}");
        }
    }

    #[test]
    fn of_a_large_review_little_is_kept() {
        let mut large = pod();
        let much: Vec<Value> = (0..100_000).map(|n| json!({"name": "X", "value": [n]})).collect();
        large["spec"]["containers"][0]["env"] = json!(much);
        large["metadata"]["managedFields"] = json!(much);
        large["status"] = json!(much);
        let mut review = asked(&large);
        review["request"]["oldObject"] = large.clone();
        let read = |review: &Value| read(&serde_json::to_vec(review).unwrap());
        let kept = read(&review).unwrap();
        assert_eq!(kept, read(&asked(&pod())).unwrap());
        assert!(kept.pointer("/request/dryRun").is_none());
        // What counts is not how long a text is.
        review["request"]["object"]["metadata"]["annotations"] = json!({"a": "x".repeat(1 << 20)});
        assert!(read(&review).is_ok());
        review["request"]["object"]["metadata"]["annotations"] = json!(much);
        assert_eq!(read(&review), Err(Malformed::TooLarge));
    }
}
