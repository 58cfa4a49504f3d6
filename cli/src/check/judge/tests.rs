//! Made-up clusters: one in which all is well, and what each check says once something of it is not.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tulle_certs::serving::ServingAuthority;
use tulle_control_plane::inject::{Decision, Settings, inject};
use tulle_control_plane::kinds;

use super::super::rights::{CONTROL_PLANE, ESCALATE, INSTALL};
use super::super::seen::{Lease, Stage, Trial, namespace};
use super::*;
use crate::demo::scrape::{self, Line};

const DAY: u64 = 86_400;
const OWN: &str = env!("CARGO_PKG_VERSION");

fn root(days: u64, now: SystemTime) -> String {
    ServingAuthority::generate("root", Duration::from_secs(days * DAY), now).unwrap().certificate_pem()
}

type Definitions = std::collections::BTreeMap<String, Option<Value>>;

fn definitions() -> Definitions {
    let ours = kinds::definitions();
    let ours = ours.iter().map(|definition| {
        let mut definition = serde_json::to_value(definition).unwrap();
        definition["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        (definition["metadata"]["name"].as_str().unwrap().to_owned(), Some(definition))
    });
    let theirs = ["grpcroutes", "httproutes", "referencegrants", "tcproutes", "tlsroutes"].map(|plural| {
        let definition = json!({
            "metadata": {"annotations": {"gateway.networking.k8s.io/bundle-version": "v1.6.0"}},
            "spec": {"versions": [{"name": "v1", "served": true}]},
        });
        (format!("{plural}.gateway.networking.k8s.io"), Some(definition))
    });
    ours.chain(theirs).collect()
}

fn asking(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"tulle.dev/inject": "enabled"}}})
}

fn bare(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"containers": [{"name": "app", "image": "app", "ports": [{"containerPort": 8080}]}]},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn injected(name: &str) -> Value {
    match inject(&bare(name), &namespace(&asking("shop")), &Settings::default()) {
        Decision::Inject { pod, .. } => *pod,
        other => panic!("{other:?}"),
    }
}

fn replica(name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "tulle-system"},
        "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn page(text: &str) -> Part<Vec<Line>> {
    Ok(scrape::parse(text))
}

/// What a replica counts, with so many proxies connected.
fn counted(proxies: usize, days: u64, now: SystemTime) -> String {
    let until =
        (now + Duration::from_secs(days * DAY)).duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    format!(
        "tulle_control_plane_proxies {proxies}
tulle_control_plane_rejected_resources{{type=\"Routes\"}} 0
tulle_control_plane_watch_connected{{kind=\"Pod\"}} 1
tulle_control_plane_findings{{severity=\"error\"}} 0
tulle_control_plane_findings{{severity=\"warning\"}} 0
tulle_identity_cert_expiration_timestamp_seconds{{kind=\"issuer\"}} {until}
tulle_identity_root_rotation{{phase=\"idle\"}} 1
tulle_identity_root_rotation{{phase=\"published\"}} 0
tulle_build_info{{component=\"control-plane\",version=\"{OWN}\"}} 1
"
    )
}

/// Two replicas, two pods in the mesh, and nothing to complain of.
fn good(stage: Stage) -> Seen {
    let now = SystemTime::now();
    let mut seen = Seen::new(stage, now, "https://10.0.0.1:6443".to_owned(), "tulle-system".to_owned());
    let roots = root(3650, now);
    let bundle = |namespace: &str| json!({"metadata": {"namespace": namespace}, "data": {"ca.crt": roots}});
    let client =
        json!({"service": {"namespace": "tulle-system"}, "caBundle": STANDARD.encode(root(365, now))});
    seen.version = Ok("v1.31.2".to_owned());
    seen.definitions = Ok(definitions());
    seen.nodes = Ok(vec![node("one", "v1.31.2", "6.8.0-generic")]);
    seen.cilium = Ok(None);
    seen.webhooks = Ok(vec![json!({
        "metadata": {"name": "tulle-webhook"},
        "webhooks": [{"name": "namespace.inject.tulle.dev", "clientConfig": client}],
    })]);
    seen.namespaces = Ok(vec![asking("shop"), json!({"metadata": {"name": "tulle-system"}})]);
    if stage == Stage::Before {
        seen.deployment = Ok(None);
        seen.rights = Ok(INSTALL.iter().chain([&ESCALATE]).map(|right| (*right, true)).collect());
        return seen;
    }
    seen.deployment = Ok(Some(
        json!({"metadata": {"labels": {"app.kubernetes.io/version": OWN}}, "spec": {"replicas": 2}}),
    ));
    seen.rights = Ok(CONTROL_PLANE.iter().map(|right| (*right, true)).collect());
    seen.replicas = Ok(vec![replica("a"), replica("b")]);
    for name in ["a", "b"] {
        seen.pages.insert(name.to_owned(), page(&counted(1, 3650, now)));
        seen.hooks.insert(name.to_owned(), Ok(()));
    }
    seen.trial = Ok(Trial::Injected);
    seen.lease = Ok(Some(Lease {
        holder: "a_0000002a".to_owned(),
        renewed: Some(now),
        duration: Duration::from_secs(15),
        moves: false,
    }));
    seen.settings = Ok(Settings::default());
    seen.bundles = Ok(vec![bundle("tulle-system"), bundle("shop")]);
    seen.pods = Ok(vec![injected("web"), injected("orders")]);
    seen
}

fn node(name: &str, kubelet: &str, kernel: &str) -> Value {
    json!({
        "metadata": {"name": name},
        "status": {"nodeInfo": {"kubeletVersion": kubelet, "kernelVersion": kernel, "operatingSystem": "linux"}},
    })
}

/// What a check says of the good cluster once it is changed. Whatever it is, nothing else may fail with it but what `also` names.
fn after(name: &str, also: &[&str], change: impl FnOnce(&mut Seen)) -> Check {
    said(good(Stage::After), name, also, change)
}

fn before(name: &str, change: impl FnOnce(&mut Seen)) -> Check {
    said(good(Stage::Before), name, &[], change)
}

fn said(mut seen: Seen, name: &str, also: &[&str], change: impl FnOnce(&mut Seen)) -> Check {
    change(&mut seen);
    let checks = judge(&seen);
    for check in checks.iter().filter(|check| check.status != Level::Ok) {
        assert!(check.name == name || also.contains(&check.name), "{check:#?}");
        assert!(check.hint.is_some() && check.link.ends_with(check.name), "{check:#?}");
    }
    checks.into_iter().find(|check| check.name == name).unwrap_or_else(|| panic!("{name} says nothing"))
}

#[track_caller]
fn is(check: &Check, level: Level, message: &str) {
    let all = format!("{} {}", check.message, check.details.join("\n"));
    assert!(check.status == level && all.contains(message), "{check:#?}");
}

fn text(pages: &mut Seen, replica: &str, from: &str, to: &str) {
    let now = pages.now;
    let text = counted(1, 3650, now).replace(from, to);
    assert_ne!(text, counted(1, 3650, now), "{from}");
    pages.pages.insert(replica.to_owned(), page(&text));
}

#[test]
fn where_all_is_well_every_check_says_so() {
    for stage in [Stage::Before, Stage::After] {
        let checks = judge(&good(stage));
        for check in &checks {
            assert_eq!(check.status, Level::Ok, "{check:#?}");
            assert!(check.hint.is_none() && check.details.is_empty() && !check.message.is_empty());
        }
        let expected = CHECKS.iter().filter(|entry| entry.stage.is_none_or(|of| of == stage)).count();
        assert_eq!(checks.len(), expected, "{stage:?}");
    }
}

#[test]
fn without_an_answer_of_the_api_server_only_that_is_said() {
    let mut seen = Seen::new(Stage::After, SystemTime::now(), String::new(), "tulle-system".to_owned());
    seen.version = Err(Unread::Failed("https://10.0.0.1:6443: no answer within 15s".to_owned()));
    let checks = judge(&seen);
    assert_eq!(checks.len(), 1);
    is(&checks[0], Level::Error, "https://10.0.0.1:6443: no answer");
    assert_eq!(checks[0].name, "api-server");
}

#[test]
fn what_may_not_be_read_says_what_is_missing_and_the_rest_goes_on() {
    let forbidden = || Unread::Forbidden("list nodes".to_owned());
    let check = after("node-versions", &[], |seen| seen.nodes = Err(forbidden()));
    is(&check, Level::Warning, "you may not list nodes");
    assert!(check.hint.unwrap().contains("list nodes"));
    // What several need, each of them says; the others are made.
    let mut seen = good(Stage::After);
    seen.pods = Err(Unread::Forbidden("list pods".to_owned()));
    let checks = judge(&seen);
    let lacking: Vec<_> =
        checks.iter().filter(|check| check.status == Level::Warning).map(|check| check.name).collect();
    assert_eq!(lacking, ["proxies-connected", "version-skew", "pods-unmeshed", "port-conflicts"]);
    assert_eq!(checks.len(), judge(&good(Stage::After)).len());
    let check = after("node-versions", &[], |seen| seen.nodes = Err(Unread::Failed("garbage".to_owned())));
    is(&check, Level::Error, "garbage");
}

#[test]
fn versions_of_kubernetes_and_its_nodes() {
    let version = |said: &str| {
        let said = said.to_owned();
        before("kubernetes-version", |seen| seen.version = Ok(said))
    };
    is(&version("v1.28.15"), Level::Error, "1.29 is the oldest");
    is(&version("v1.29.0-eks-1"), Level::Ok, "v1.29.0-eks-1");
    is(&version("unknown"), Level::Warning, "no version");
    let nodes = |nodes: Vec<Value>| before("node-versions", |seen| seen.nodes = Ok(nodes));
    let two = vec![node("old", "v1.27.9", "6.1.0"), node("new", "v1.30.0", "6.1.0")];
    is(&nodes(two), Level::Error, "old: kubelet v1.27.9");
    is(&nodes(vec![node("rhel", "v1.30.0", "4.18.0-553.el8.x86_64")]), Level::Warning, "rhel: Linux 4.18");
    let mut windows = node("w", "v1.27.0", "10.0.20348");
    windows["status"]["nodeInfo"]["operatingSystem"] = "windows".into();
    is(&nodes(vec![windows]), Level::Ok, "1 node without Linux");
}

#[test]
fn definitions_of_the_gateway_api() {
    let routes = "httproutes.gateway.networking.k8s.io";
    let changed = |change: &dyn Fn(&mut Definitions)| {
        after("gateway-api-definitions", &[], |seen| change(seen.definitions.as_mut().unwrap()))
    };
    let none = changed(&|all| {
        all.iter_mut().filter(|(name, _)| name.contains("gateway")).for_each(|(_, one)| *one = None)
    });
    is(&none, Level::Warning, "none is there");
    let bundle = |version: &'static str| {
        changed(&move |all| {
            let one = all.get_mut(routes).unwrap().as_mut().unwrap();
            one["metadata"]["annotations"]["gateway.networking.k8s.io/bundle-version"] = version.into();
        })
    };
    is(&bundle("v1.0.0"), Level::Warning, "came with v1.1");
    is(&bundle("v1.2.1"), Level::Warning, "several bundles: v1.2.1, v1.6.0");
    let other = changed(&|all| {
        all.get_mut(routes).unwrap().as_mut().unwrap()["spec"]["versions"][0]["name"] = "v2".into()
    });
    is(&other, Level::Error, "httproutes.gateway.networking.k8s.io: serves v2");
    let standard = changed(&|all| *all.get_mut("tcproutes.gateway.networking.k8s.io").unwrap() = None);
    is(&standard, Level::Ok, "without tcproutes");
}

#[test]
fn definitions_of_our_kinds() {
    let name = "trafficpolicies.policy.tulle.dev";
    let with = |stage, change: &dyn Fn(&mut Option<Value>)| {
        said(good(stage), "tulle-definitions", &[], |seen| {
            change(seen.definitions.as_mut().unwrap().get_mut(name).unwrap())
        })
    };
    is(&with(Stage::After, &|one| *one = None), Level::Error, name);
    is(&with(Stage::Before, &|one| *one = None), Level::Ok, "9 from before");
    let fields = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
    let older = with(Stage::After, &|one| {
        let fields = one.as_mut().unwrap().pointer_mut(fields).unwrap().as_object_mut().unwrap();
        fields.remove("connections").unwrap();
    });
    is(&older, Level::Error, "older version, without spec.connections");
    let newer = with(Stage::After, &|one| {
        one.as_mut().unwrap().pointer_mut(fields).unwrap()["novel"] = json!({"type": "string"})
    });
    is(&newer, Level::Warning, "spec.novel");
    let unserved = with(Stage::After, &|one| one.as_mut().unwrap()["status"] = json!({}));
    is(&unserved, Level::Error, "does not serve it");
    let foreign = |one: &mut Option<Value>| {
        one.as_mut().unwrap()["metadata"]["annotations"] = json!({"meta.helm.sh/release-namespace": "mesh"});
    };
    is(&with(Stage::Before, &foreign), Level::Error, "namespace mesh");
}

#[test]
fn cilium_that_balances_at_the_socket_of_pods() {
    let with = |data: Value| before("cilium-socket-lb", |seen| seen.cilium = Ok(Some(json!({"data": data}))));
    is(&with(json!({"kube-proxy-replacement": "true"})), Level::Error, "in place of Services");
    is(
        &with(json!({"bpf-lb-sock": "true", "bpf-lb-sock-hostns-only": "false"})),
        Level::Error,
        "at the socket",
    );
    is(
        &with(json!({"kube-proxy-replacement": "strict", "bpf-lb-sock-hostns-only": "true"})),
        Level::Ok,
        "nodes only",
    );
    is(&with(json!({"kube-proxy-replacement": "false"})), Level::Ok, "does not balance");
}

#[test]
fn another_mesh_beside_ours() {
    let istio = json!({"metadata": {"name": "istio-sidecar-injector"}});
    let check = before("other-meshes", |seen| seen.webhooks.as_mut().unwrap().push(istio.clone()));
    is(&check, Level::Warning, "Istio");
    let check = after("other-meshes", &[], |seen| seen.webhooks.as_mut().unwrap().push(istio.clone()));
    is(&check, Level::Ok, "in other namespaces");
    let check = after("other-meshes", &[], |seen| {
        seen.webhooks.as_mut().unwrap().push(istio.clone());
        seen.namespaces.as_mut().unwrap()[0]["metadata"]["labels"]["istio-injection"] = "enabled".into();
    });
    is(&check, Level::Error, "shop: Istio's (istio-injection)");
}

#[test]
fn who_may_not_install_is_told_what_is_missing() {
    let check = before("rbac-install", |seen| {
        let rights = seen.rights.as_mut().unwrap();
        rights
            .iter_mut()
            .filter(|(right, _)| right.resource == "deployments")
            .for_each(|(_, may)| *may = false);
    });
    is(&check, Level::Error, "create deployments.apps in tulle-system");
    let check = before("rbac-install", |seen| seen.rights.as_mut().unwrap().last_mut().unwrap().1 = false);
    is(&check, Level::Warning, "more rights than you");
    let check = before("not-installed", |seen| {
        seen.deployment = Ok(Some(json!({"metadata": {"labels": {"app.kubernetes.io/version": "0.0.9"}}})));
    });
    is(&check, Level::Warning, "of version 0.0.9");
}

#[test]
fn a_control_plane_that_is_absent_is_said_once() {
    let mut seen = good(Stage::Before);
    seen.stage = Stage::After;
    seen.rights = Err(Unread::NotAsked);
    seen.webhooks = Ok(Vec::new());
    let checks = judge(&seen);
    let wrong: Vec<_> =
        checks.iter().filter(|check| check.status != Level::Ok).map(|check| check.name).collect();
    assert_eq!(wrong, ["control-plane-ready", "webhook-reachable"], "{checks:#?}");
}

#[test]
fn replicas_that_are_not_ready_say_why() {
    let crashing = json!({
        "metadata": {"name": "b"},
        "status": {
            "phase": "Running", "conditions": [{"type": "Ready", "status": "False", "message": "containers with unready status"}],
            "containerStatuses": [{
                "name": "control-plane", "restartCount": 7, "ready": false,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 5m0s"}},
            }],
        },
    });
    let check =
        after("control-plane-ready", &[], |seen| seen.replicas.as_mut().unwrap()[1] = crashing.clone());
    is(&check, Level::Warning, "b: control-plane: CrashLoopBackOff (7 restarts) back-off");
    let check = after("control-plane-ready", &[], |seen| seen.replicas = Ok(vec![crashing]));
    is(&check, Level::Error, "0 of 2 replicas ready");
    let pending = json!({
        "metadata": {"name": "b"},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]},
    });
    let check = after("control-plane-ready", &[], |seen| seen.replicas.as_mut().unwrap()[1] = pending);
    is(&check, Level::Warning, "0/3 nodes are available");
}

#[test]
fn a_control_plane_that_lost_rights_or_a_watch() {
    let check = after("rbac-control-plane", &[], |seen| seen.rights.as_mut().unwrap()[1].1 = false);
    is(&check, Level::Error, "watch pods");
    let check =
        after("control-plane-watches", &[], |seen| text(seen, "b", "{kind=\"Pod\"} 1", "{kind=\"Pod\"} 0"));
    is(&check, Level::Error, "b: Pod");
}

#[test]
fn a_lease_that_nobody_renews() {
    let with = |change: &dyn Fn(&mut Lease, SystemTime)| {
        after("control-plane-lease", &[], |seen| {
            let now = seen.now;
            change(seen.lease.as_mut().unwrap().as_mut().unwrap(), now);
        })
    };
    is(&with(&|_, _| {}), Level::Ok, "a holds it");
    is(&with(&|lease, _| lease.holder.clear()), Level::Error, "nobody holds it");
    let hour = Duration::from_secs(3600);
    is(&with(&|lease, now| lease.renewed = Some(now - hour)), Level::Error, "does not renew it");
    let moving = |lease: &mut Lease, now| (lease.renewed, lease.moves) = (Some(now + hour), true);
    is(&with(&moving), Level::Warning, "a clock that differs");
    is(&after("control-plane-lease", &[], |seen| seen.lease = Ok(None)), Level::Error, "no Lease");
}

#[test]
fn a_webhook_that_is_not_reached_or_not_believed() {
    let failed = || Unread::Failed("a:15017: 503: error trying to reach service: i/o timeout".to_owned());
    let check =
        after("webhook-reachable", &[], |seen| drop(seen.hooks.insert("a".to_owned(), Err(failed()))));
    is(&check, Level::Warning, "does not reach 1 of 2 replicas: a:15017: 503");
    let check = after("webhook-reachable", &["webhook-trusted"], |seen| {
        seen.hooks.values_mut().for_each(|hook| *hook = Err(failed()));
        seen.trial = Ok(Trial::Left);
    });
    is(&check, Level::Error, "does not reach 2 of 2 replicas");
    let check = after("webhook-reachable", &[], |seen| seen.webhooks = Ok(Vec::new()));
    is(&check, Level::Error, "no MutatingWebhookConfiguration tulle-webhook");
    // Without the right to ask replicas, a pod that was injected is proof.
    let forbidden = Unread::Forbidden("get pods/proxy in tulle-system".to_owned());
    let check = after("webhook-reachable", &[], |seen| {
        seen.hooks.values_mut().for_each(|hook| *hook = Err(forbidden.clone()))
    });
    is(&check, Level::Ok, "one that answers");

    let trial = |trial: Trial| after("webhook-trusted", &[], |seen| seen.trial = Ok(trial));
    is(&trial(Trial::Left), Level::Error, "without one");
    let failing = "failed calling webhook \"namespace.inject.tulle.dev\": x509: certificate signed by unknown authority";
    is(&trial(Trial::Refused(failing.to_owned())), Level::Error, "x509");
    let denied = "admission webhook \"pod.inject.tulle.dev\" denied the request: pod_security";
    is(&trial(Trial::Refused(denied.to_owned())), Level::Ok, "obeys");
    is(&trial(Trial::Refused("exceeded quota".to_owned())), Level::Warning, "exceeded quota");

    let bundle = |bundle: String| {
        after("webhook-trusted", &[], |seen| {
            seen.webhooks.as_mut().unwrap()[0]["webhooks"][0]["clientConfig"]["caBundle"] = bundle.into();
        })
    };
    let now = SystemTime::now();
    is(&bundle(String::new()), Level::Error, "is empty");
    is(&bundle(STANDARD.encode("x")), Level::Error, "cannot be read");
    is(&bundle(STANDARD.encode(root(20, now))), Level::Warning, "expires in");
    is(&bundle(STANDARD.encode(root(1, now - Duration::from_secs(2 * DAY)))), Level::Error, "has expired");
    is(&bundle(STANDARD.encode(root(1, now) + &root(365, now))), Level::Ok, "injected by it");
}

#[test]
fn certificates_that_end() {
    let roots = |roots: &dyn Fn(SystemTime) -> String| {
        after("certificates", &[], |seen| {
            let text = roots(seen.now);
            seen.bundles
                .as_mut()
                .unwrap()
                .iter_mut()
                .for_each(|bundle| bundle["data"]["ca.crt"] = text.clone().into());
        })
    };
    is(&roots(&|now| root(61, now)), Level::Ok, "the root is good for");
    is(&roots(&|now| root(50, now)), Level::Warning, "the root is good for");
    is(&roots(&|now| root(20, now)), Level::Warning, "change it this month");
    is(&roots(&|now| root(6, now)), Level::Error, "the root is good for");
    is(&roots(&|now| root(1, now - Duration::from_secs(2 * DAY))), Level::Error, "the root has expired");
    is(&roots(&|now| root(6, now) + &root(3650, now)), Level::Ok, "the root is good for");
    is(&roots(&|now| root(90, now + Duration::from_secs(3 * DAY))), Level::Error, "of the future");
    is(&roots(&|_| "x".to_owned()), Level::Error, "ca.crt");
    let check = after("certificates", &[], |seen| {
        let text = counted(1, 6, seen.now);
        seen.pages.insert("a".to_owned(), page(&text));
    });
    is(&check, Level::Error, "the issuer is good for");
    let check = after("certificates", &[], |seen| drop(seen.bundles.as_mut().unwrap().remove(0)));
    is(&check, Level::Error, "no ConfigMap tulle-trust-bundle");
}

#[test]
fn a_rotation_of_the_root_that_waits_for_somebody() {
    let rotation = |pages: [&str; 2]| {
        after("root-rotation", &[], |seen| {
            for (name, text) in ["a", "b"].into_iter().zip(pages) {
                let text =
                    counted(1, 3650, seen.now).replace("tulle_identity_root_rotation{", "before{") + text;
                seen.pages.insert(name.to_owned(), page(&text));
            }
        })
    };
    let idle = "tulle_identity_root_rotation{phase=\"idle\"} 1\n";
    is(&rotation([idle, idle]), Level::Ok, "no rotation");
    let published = "tulle_identity_root_rotation{phase=\"published\"} 1\n";
    is(&rotation([idle, published]), Level::Ok, "is published");
    let waits = format!(
        "{published}tulle_identity_root_rotation_waits{{for=\"replicas\"}} 1\ntulle_identity_root_rotation_waits{{for=\"proxies\"}} 7\n"
    );
    is(&rotation([published, &waits]), Level::Warning, "waits for 1 replica with 7 proxies");
    let draining = "tulle_identity_root_rotation{phase=\"draining\"} 1\n";
    is(&rotation([draining, published]), Level::Ok, "is draining");
}

#[test]
fn a_namespace_without_the_roots() {
    is(
        &after("trust-bundle", &[], |seen| drop(seen.bundles.as_mut().unwrap().pop())),
        Level::Error,
        "shop: has none",
    );
    let check = after("trust-bundle", &[], |seen| {
        seen.bundles.as_mut().unwrap()[1]["data"]["ca.crt"] = "other".into()
    });
    is(&check, Level::Error, "shop: has other roots");
    // A pod that asks by itself needs them as well.
    let check = after("trust-bundle", &[], |seen| {
        seen.namespaces.as_mut().unwrap().push(json!({"metadata": {"name": "bank"}}));
        seen.pods.as_mut().unwrap()[0]["metadata"]["namespace"] = "bank".into();
    });
    is(&check, Level::Error, "bank: has none");
}

#[test]
fn what_people_wrote_wrong() {
    let check = after("configuration", &[], |seen| {
        let errors =
            "{severity=\"error\"} 2\ntulle_control_plane_objects{kind=\"HTTPRoute\",status=\"error\"} 2";
        text(seen, "a", "{severity=\"error\"} 0", errors);
    });
    is(&check, Level::Error, "HTTPRoute: 2 with errors");
    let check = after("configuration", &[], |seen| {
        text(seen, "a", "{severity=\"warning\"} 0", "{severity=\"warning\"} 1")
    });
    is(&check, Level::Warning, "1 warning");
}

#[test]
fn proxies_that_are_not_connected_or_reject() {
    let lose =
        |seen: &mut Seen| text(seen, "a", "tulle_control_plane_proxies 1", "tulle_control_plane_proxies 0");
    let check = after("proxies-connected", &[], |seen| {
        lose(seen);
        assert_eq!(mesh::to_ask(seen), ["shop/web", "shop/orders"]);
        seen.proxies.insert("shop/web".to_owned(), page("tulle_ads_connected 0\n"));
        seen.proxies.insert("shop/orders".to_owned(), page("tulle_ads_connected 1\n"));
    });
    is(&check, Level::Warning, "1 of 2 pods are connected");
    assert_eq!(check.details, ["shop/web"]);
    assert_eq!(mesh::to_ask(&good(Stage::After)), ["shop/web", "shop/orders"], "the sum says nothing of who");
    // A workload outside the cluster is connected in its place.
    let check = after("proxies-connected", &[], |seen| {
        seen.proxies.insert("shop/web".to_owned(), page("tulle_ads_connected 0\n"));
    });
    is(&check, Level::Warning, "1 of 2 pods are connected");
    assert_eq!(check.details, ["shop/web"]);

    let check = after("proxies-connected", &[], |seen| {
        seen.pods.as_mut().unwrap()[0]["status"]["initContainerStatuses"] = json!([{
            "name": "tulle-proxy", "ready": false, "started": false, "restartCount": 3,
            "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}},
        }]);
    });
    is(&check, Level::Error, "shop/web: tulle-proxy: CrashLoopBackOff (3 restarts)");
    let check = after("proxies-connected", &["certificates"], |seen| {
        seen.pages.insert("a".to_owned(), Err(Unread::Failed("no answer".to_owned())));
    });
    is(&check, Level::Warning, "not every replica");

    let check = after("proxies-in-step", &[], |seen| {
        text(seen, "a", "{type=\"Routes\"} 0", "{type=\"Routes\"} 2");
        seen.proxies.insert("shop/web".to_owned(), page("tulle_ads_rejected_resources{type=\"Routes\"} 2\n"));
    });
    is(&check, Level::Error, "2 of Routes");
    assert_eq!(check.details, ["shop/web: 2 of Routes"]);
}

#[test]
fn versions_that_are_apart() {
    let of = |version: &str| {
        let mut pod = injected("web");
        let status = pod["metadata"]["annotations"]["tulle.dev/status"].as_str().unwrap().to_owned();
        let status = status.replace(&format!("\"version\":\"{OWN}\""), &format!("\"version\":\"{version}\""));
        pod["metadata"]["annotations"]["tulle.dev/status"] = status.into();
        pod
    };
    let proxy =
        |version: &str| after("version-skew", &[], |seen| seen.pods.as_mut().unwrap()[0] = of(version));
    is(&proxy("0.9.0"), Level::Error, "shop/web: 0.9.0");
    is(&proxy("0.0.7"), Level::Ok, "1 proxy of a version next to it");
    let check = after("version-skew", &[], |seen| {
        for replica in ["a", "b"] {
            text(seen, replica, &format!("version=\"{OWN}\""), "version=\"0.2.0\"");
        }
    });
    is(&check, Level::Warning, "the control plane is 0.2.0, and this command");
    let check = after("version-skew", &[], |seen| {
        text(seen, "b", &format!("version=\"{OWN}\""), "version=\"0.2.0\"")
    });
    is(&check, Level::Warning, "several versions");
}

#[test]
fn pods_without_the_proxy_that_is_asked_for() {
    let check = after("pods-unmeshed", &[], |seen| seen.pods.as_mut().unwrap().push(bare("late")));
    is(&check, Level::Warning, "shop/late: not_injected");
    let check = after("pods-unmeshed", &[], |seen| {
        let mut pod = bare("late");
        pod["spec"]["hostNetwork"] = true.into();
        seen.pods.as_mut().unwrap().push(pod);
    });
    is(&check, Level::Warning, "shop/late: host_network");
    let check = after("pods-unmeshed", &[], |seen| {
        let misspelt = json!({"metadata": {"name": "bank", "labels": {"tulle.dev/injection": "enabled"}}});
        seen.namespaces.as_mut().unwrap().push(misspelt);
    });
    is(&check, Level::Warning, "bank");
    // A long list ends.
    let check = after("pods-unmeshed", &[], |seen| {
        seen.pods.as_mut().unwrap().extend((0..30).map(|number| bare(&format!("late-{number}"))));
    });
    assert_eq!((check.details.len(), check.details[10].as_str()), (11, "and 20 more"));
}

#[test]
fn an_application_on_a_port_of_ours() {
    let check = after("port-conflicts", &[], |seen| {
        for name in ["jaeger-1", "jaeger-2"] {
            let mut pod = injected(name);
            pod["metadata"]["ownerReferences"] = json!([{"name": "jaeger"}]);
            pod["spec"]["containers"][0]["ports"][0]["containerPort"] = 15090.into();
            seen.pods.as_mut().unwrap().push(pod);
        }
        // Who stays out may listen where they like.
        let mut out = bare("out");
        out["metadata"]["annotations"] = json!({"tulle.dev/inject": "disabled"});
        out["spec"]["containers"][0]["ports"][0]["containerPort"] = 15001.into();
        seen.pods.as_mut().unwrap().push(out);
        // As many proxies more.
        text(seen, "a", "tulle_control_plane_proxies 1", "tulle_control_plane_proxies 3");
    });
    is(&check, Level::Warning, "1 port of applications");
    assert_eq!(check.details, ["shop/jaeger: the container app listens on 15090"]);
}
