//! Pods that should have a proxy and have none, and why: for events, the metric `tulle_unmeshed_pods` and `tulle check`. Pure.
//!
//! The injector may have been away when a Pod was made (its failure policy lets Pods start then), or the Pod cannot have a proxy as it is. Either is
//! found by asking of each Pod that runs what the webhook would do with it now.

use serde_json::Value;

use super::annotations::misspelt;
use super::{
    Decision, INIT, INJECT, Namespace, PROXY, Reason, Settings, conflicts, containers, inject, is_injected,
    name_of, status,
};

/// A Pod without the proxy that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unmeshed {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub pod: String,
    /// [`NOT_INJECTED`], or the word of a [`Reason`].
    pub reason: &'static str,
    /// The same for people, with the remedy.
    pub message: String,
}

/// The reason of a Pod that would get a proxy if it were made now.
pub const NOT_INJECTED: &str = "not_injected";

/// Every reason that [`unmeshed`] gives.
pub fn reasons() -> impl Iterator<Item = &'static str> {
    let told = Reason::ALL.iter().filter(|reason| reason.is_worth_telling());
    std::iter::once(NOT_INJECTED).chain(told.map(|reason| reason.as_str()))
}

/// What is to be said of a Pod in its namespace; `None`: it is as it should be, or has ended.
pub fn unmeshed(pod: &Value, namespace: &Namespace, settings: &Settings) -> Option<Unmeshed> {
    let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str);
    let is_over = matches!(text("/status/phase"), Some("Succeeded" | "Failed"));
    if is_over || text("/metadata/deletionTimestamp").is_some() || is_injected(pod) {
        return None;
    }
    let (reason, message) = match inject(pod, namespace, settings) {
        Decision::Inject { .. } => {
            let why = match status(pod).is_some() {
                true => "the pod says that it has a proxy, and its containers are missing; start it anew",
                false => {
                    "the pod was made before it was asked for a proxy, or while the injector was away; start it anew, by \
                     `kubectl rollout restart` say"
                }
            };
            (NOT_INJECTED, why.to_owned())
        }
        Decision::Leave { reason, message, .. } if reason.is_worth_telling() => (reason.as_str(), message),
        Decision::Leave { .. } => return None,
        Decision::Refuse { reason, message } => (reason.as_str(), message),
    };
    let name = text("/metadata/name").unwrap_or_default().to_owned();
    Some(Unmeshed { namespace: namespace.name.clone(), pod: name, reason, message })
}

/// What a namespace says of injection that says nothing: a label that is misspelt leaves all of its Pods outside the mesh, and so does an annotation in place of
/// a label.
pub fn misspelt_labels(namespace: &Namespace) -> Vec<String> {
    let whose = format!("the namespace {}", namespace.name);
    let mut annotations = namespace.annotations.clone();
    let annotated = annotations.remove(INJECT).map(|value| {
        format!("{whose} has the annotation {INJECT}: `{value}`, which says nothing: make it a label")
    });
    let mut wrong = misspelt(&whose, &namespace.labels, &annotations);
    wrong.extend(annotated);
    wrong
}

/// The ports of a Pod's own containers among 15000–15090, to which connections never come by the proxy; each with its container.
pub fn on_our_ports(pod: &Value) -> Vec<(String, u16)> {
    let own = containers(pod)
        .filter(|container| !name_of(container).is_some_and(|name| [INIT, PROXY].contains(&name)));
    let declared = own.flat_map(|container| {
        let name = name_of(container).unwrap_or_default();
        conflicts::ports(container).map(move |port| (name.to_owned(), port))
    });
    declared.filter(|(_, port)| conflicts::RESERVED.contains(port)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{injected, namespace, pod};
    use super::*;

    fn said(pod: &Value) -> Option<&'static str> {
        unmeshed(pod, &namespace(), &Settings::default()).map(|unmeshed| unmeshed.reason)
    }

    #[test]
    fn a_pod_that_should_have_a_proxy_and_has_none_is_told() {
        let bare = pod();
        assert_eq!(said(&bare), Some("not_injected"));
        assert_eq!(said(&injected(&bare)), None);
        let changed = |pointer: &str, value: Value| {
            let mut pod = bare.clone();
            let (parent, key) = pointer.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[key] = value;
            said(&pod)
        };
        assert_eq!(changed("/spec/hostNetwork", json!(true)), Some("host_network"));
        assert_eq!(changed("/metadata/annotations", json!({"tulle.dev/inject": "disabled"})), None);
        assert_eq!(changed("/metadata/annotations", json!({"tulle.dev/status": "{}"})), Some("not_injected"));
        assert_eq!(
            changed("/metadata/annotations", json!({"config.tulle.dev/metrics-port": "x"})),
            Some("bad_annotation")
        );
        assert_eq!(changed("/status", json!({"phase": "Succeeded"})), None);
        assert_eq!(changed("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z")), None);
        let nobody = Namespace { labels: Default::default(), ..namespace() };
        assert_eq!(unmeshed(&bare, &nobody, &Settings::default()), None);
        let excluded = Settings { excluded_namespaces: vec!["shop".to_owned()], ..Settings::default() };
        assert_eq!(unmeshed(&bare, &namespace(), &excluded), None);
        let all: Vec<_> = reasons().collect();
        assert!(
            all.contains(&"not_injected") && all.contains(&"host_network") && !all.contains(&"not_asked")
        );
    }

    #[test]
    fn an_application_on_a_port_of_ours_is_told_and_our_own_containers_are_not() {
        let mut bare = pod();
        bare["spec"]["containers"][0]["ports"] = json!([{"containerPort": 15020}, {"containerPort": 8080}]);
        let name = bare["spec"]["containers"][0]["name"].as_str().unwrap().to_owned();
        assert_eq!(on_our_ports(&bare), [(name, 15020)]);
        assert_eq!(on_our_ports(&injected(&pod())), []);
    }

    #[test]
    fn a_namespaces_misspelt_label_is_told() {
        let labelled = |key: &str, value: &str| {
            let labels = [(key.to_owned(), value.to_owned())].into_iter().collect();
            misspelt_labels(&Namespace { name: "shop".to_owned(), labels, ..Namespace::default() })
        };
        for (key, value, meant) in [
            ("tulle.dev/inject", "enable", "`enabled`"),
            ("tulle.dev/inject", "true", "`enabled`"),
            ("tulle.dev/inject", "off", "`disabled`"),
            ("tulle.dev/injection", "enabled", "tulle.dev/inject?"),
            ("tulle.dev/injekt", "enabled", "tulle.dev/inject?"),
            ("tulle-injection", "enabled", "tulle.dev/inject?"),
            ("inject.tulle.dev", "enabled", "tulle.dev/inject?"),
        ] {
            let told = labelled(key, value);
            assert!(
                told.len() == 1 && told[0].contains(meant) && told[0].contains("shop"),
                "{key}: {told:?}"
            );
        }
        let annotations = [(INJECT.to_owned(), "enabled".to_owned())].into_iter().collect();
        let annotated = Namespace { name: "shop".to_owned(), annotations, ..Namespace::default() };
        let told = misspelt_labels(&annotated);
        assert!(told.len() == 1 && told[0].contains("make it a label"), "{told:?}");
        assert_eq!(unmeshed(&pod(), &annotated, &Settings::default()), None);
        for (key, value) in [
            ("tulle.dev/inject", "enabled"),
            ("tulle.dev/inject", "disabled"),
            ("istio-injection", "enabled"),
        ] {
            assert!(labelled(key, value).is_empty(), "{key}");
        }
    }
}
