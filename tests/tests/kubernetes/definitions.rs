//! Our kinds, as the API server has them: what it takes, what it refuses, and in which words.

use std::collections::BTreeSet;

use serde_json::Value;
use tulle_tests::cluster::{ApiServer, Caller, Refused};

use crate::cases::{CASES, GOOD, SPECIMENS, bounds, changes, set, text};
use crate::{documents, ours};

fn specimen(kind: &str, spec: &str) -> Value {
    documents(&text(kind, spec)).remove(0)
}

/// The rules that refused an object, as `cases` names them: `<path>: <message>`.
fn broken<'a>(refused: &Refused, rules: &BTreeSet<&'a str>) -> BTreeSet<&'a str> {
    assert_eq!((refused.code, &*refused.reason), (422, "Invalid"), "{refused}");
    let one = |(field, message): &(String, String)| {
        // What is about the object as a whole has no field.
        let field = field.strip_prefix("<nil>").unwrap_or(field);
        // Whichever item it is.
        let mut path = String::new();
        for part in field.split_inclusive(['[', ']']) {
            path.push_str(if part.ends_with(']') { "]" } else { part });
        }
        let of = rules.iter().find(|rule| {
            let words = rule.strip_prefix(&*path).and_then(|rest| rest.strip_prefix(": "));
            words.is_some_and(|words| message.ends_with(words))
        });
        *of.unwrap_or_else(|| panic!("not by a rule of ours: {field}: {message}"))
    };
    refused.causes.iter().map(one).collect()
}

/// Every change of every good object, as the pure tests of the kinds make them.
async fn rules(caller: &Caller) {
    let all: BTreeSet<&str> = CASES.iter().flat_map(|(.., rules)| *rules).copied().collect();
    let mut wrong = Vec::new();
    for (kind, spec) in GOOD {
        let good = specimen(kind, spec);
        caller.try_out(&good).await.unwrap_or_else(|refused| panic!("{kind}: {refused}"));
        for (_, at, value, expected) in changes(kind) {
            let mut object = good.clone();
            set(&mut object, at, serde_json::from_str(value).unwrap());
            let said = match caller.try_out(&object).await {
                Ok(_) => BTreeSet::new(),
                Err(refused) => broken(&refused, &all),
            };
            let expected: BTreeSet<&str> = expected.iter().copied().collect();
            if said != expected {
                wrong.push(format!("{kind}{at} = {value}: {said:#?} and not {expected:#?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Numbers at their bounds are taken, and beyond them refused.
async fn numbers(caller: &Caller) {
    let mut tried = 0;
    for definition in ours() {
        let kind = definition["spec"]["names"]["kind"].as_str().unwrap();
        let mut all = Vec::new();
        bounds(&definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"], "", &mut all);
        for (_, spec) in SPECIMENS.iter().filter(|(of, _)| *of == kind) {
            let good = specimen(kind, spec);
            caller.try_out(&good).await.unwrap_or_else(|refused| panic!("{kind}: {refused}\n{good:#}"));
            for (path, least, most) in &all {
                let Some(number) = good.pointer(path) else { continue };
                for (bound, beyond) in [(least, -1.0), (most, 1.0)] {
                    let Some(bound) = *bound else { continue };
                    for (value, expected) in [(bound, true), (bound + beyond, false)] {
                        let value = if number.is_i64() && value.fract() == 0.0 {
                            Value::from(value as i64)
                        } else {
                            Value::from(value)
                        };
                        let mut object = good.clone();
                        *object.pointer_mut(path).unwrap() = value.clone();
                        let said = caller.try_out(&object).await;
                        assert_eq!(said.is_ok(), expected, "{kind}{path}: {value}: {said:?}");
                        tried += 1;
                    }
                }
            }
        }
    }
    assert!(tried > 100, "{tried}");
}

/// What stands nowhere in the schema is named; what is missing or misspelt too.
async fn misspelt(caller: &Caller) {
    let refused = |object: Value, words: &'static str| async move {
        let refused = caller.try_out(&object).await.expect_err(words);
        assert!(refused.message.contains(words), "{words}: {refused}");
    };
    let good = specimen("TrafficPolicy", "timeouts: {request: 1s}");
    let changed = |at: &str, value: Value| {
        let mut object = good.clone();
        set(&mut object, at, value);
        object
    };
    refused(changed("/spec/timeout", "1s".into()), "unknown field \"spec.timeout\"").await;
    refused(changed("/spec/timeouts/request", "1 s".into()), "spec.timeouts.request").await;
    refused(changed("/spec/timeouts/request", "1d".into()), "spec.timeouts.request").await;
    refused(changed("/spec/retry", serde_json::json!({"causes": ["Nothing"]})), "spec.retry.causes[0]").await;
    refused(changed("/spec/targetRefs", Value::Null), "spec.targetRefs").await;
    refused(changed("/spec", Value::Null), "spec").await;
    refused(specimen("Mesh", "mtls: lenient"), "spec.mtls").await;
}

/// What is left out has the default that the reference names, in the object that the server keeps.
async fn defaults(caller: &Caller) {
    let object = specimen("TrafficPolicy", "retry: {}");
    let kept = caller.create(&object).await.unwrap();
    assert!(kept["spec"]["retry"]["attempts"].is_i64(), "{kept:#}");
    assert_eq!(kept["spec"]["targetRefs"][0]["group"], "", "{kept:#}");
    // A status is another resource: who may write the one need not be able to write the other.
    let condition = serde_json::json!({
        "type": "Accepted", "status": "True", "reason": "Accepted", "message": "", "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let status = serde_json::json!({"ancestors": [{
        "ancestorRef": {"group": "", "kind": "Service", "namespace": "default", "name": "a"},
        "controllerName": "tulle.dev/control-plane",
        "conditions": [condition],
    }]});
    let kept = caller.set_status(&object, status.clone()).await.unwrap();
    assert_eq!(kept["status"], status, "{kept:#}");
    assert_eq!(kept["metadata"]["generation"], 1, "{kept:#}");
    let refused = caller.set_status(&object, serde_json::json!({"ancestors": [{}]})).await.unwrap_err();
    assert!(refused.message.contains("controllerName"), "{refused}");
    caller.delete(&object).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs kube-apiserver and etcd; `.ci/run kubernetes` builds and installs them"]
async fn the_api_server_takes_our_kinds_and_refuses_what_our_reading_refuses() {
    let server = ApiServer::start().await;
    server.define(&ours()).await;
    let caller = server.administrator();
    rules(caller).await;
    numbers(caller).await;
    misspelt(caller).await;
    defaults(caller).await;
}
