//! Seeded: whatever changes in whatever order, a kept model is a built one.

use std::collections::BTreeSet;

use super::*;

/// A xorshift, so that a failure can be replayed by its seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[usize::try_from(self.below(of.len() as u64)).unwrap()]
    }
}

const NAMESPACES: [&str; 2] = ["default", "shop"];
const SERVICES: [&str; 3] = ["a", "b", "c"];
/// A Pod in few enough places that it meets the slices' endpoints, and a proxy beside some.
fn random_pod(random: &mut Random) -> Object {
    let injected = random.pick(&["{}", "{}", ""]);
    let mut annotations = serde_json::Map::new();
    if !injected.is_empty() {
        annotations.insert("tulle.dev/status".to_owned(), injected.into());
        annotations.insert(
            "config.tulle.dev/skip-inbound-ports".to_owned(),
            random.pick(&["", "8080", "80-81"]).into(),
        );
    }
    let mut metadata = serde_json::json!({
        "namespace": random.pick(&NAMESPACES), "name": format!("pod-{}", random.pick(&SERVICES)),
        "labels": {"app": random.pick(&SERVICES), "tier": random.pick(&["x", "y"])}, "annotations": annotations,
    });
    if random.below(5) == 0 {
        metadata["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
    let form = serde_json::json!({
        "metadata": metadata,
        "spec": {
            "serviceAccountName": random.pick(&["a", "b"]), "hostNetwork": random.below(6) == 0,
            "initContainers": [{"name": "tulle-proxy"}],
            "containers": [{"ports": [{"name": "web", "containerPort": 80 + random.below(2)}]}],
        },
        "status": {"phase": random.pick(&["Running", "Running", "Failed"]), "podIP": random.pick(&IPS)},
    });
    Object::pod(&serde_json::from_value(form).unwrap(), &mut crate::finding::Notes::default()).unwrap()
}

const IPS: [&str; 3] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];

/// One object of any kind, in few enough places that they meet.
fn random_object(random: &mut Random) -> String {
    let (namespace, service, other) =
        (random.pick(&NAMESPACES), random.pick(&SERVICES), random.pick(&SERVICES));
    let (ip, port) = (random.pick(&IPS), random.pick(&["80", "81"]));
    let named = random.pick(&["http", "web", ""]);
    match random.below(10) {
        0 | 1 => {
            let written = if random.below(2) == 0 { format!("clusterIP: {ip}, ") } else { String::new() };
            let affinity = random.pick(&["", "sessionAffinity: ClientIP, "]);
            let selector = random.pick(&[
                "",
                "selector: {app: a}, ",
                "selector: {app: b, tier: x}, ",
                "selector: {tier: y}, ",
            ]);
            let target = random.pick(&["", ", targetPort: web", ", targetPort: 8080"]);
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: {service}, namespace: {namespace}}}\nspec: {{{written}{affinity}{selector}ports: [{{port: {port}, name: '{named}'{target}}}]}}\n"
            )
        }
        2 => format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: s-{other}, namespace: {namespace}, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{name: '{named}', port: 8080}}]\nendpoints: [{{addresses: [{ip}], targetRef: {{kind: Pod, name: pod-{other}}}}}]\n"
        ),
        3 => {
            let parent = random.pick(&NAMESPACES);
            let another = match random.pick(&["", "a", "b", "c"]) {
                "" => String::new(),
                name if name == service => String::new(),
                name => format!(", {{group: '', kind: Service, name: {name}, namespace: {parent}}}"),
            };
            let session = random.pick(&["", ", sessionPersistence: {sessionName: s}"]);
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: r-{other}, namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: {service}, namespace: {parent}}}{another}]\n  rules: [{{name: x, backendRefs: [{{name: {other}, namespace: {parent}, port: {port}}}]{session}}}]\n"
            )
        }
        4 => {
            let kind = random.pick(&["AuthorizationPolicy", "PeerAuthentication"]);
            let target = match random.below(6) {
                0 | 1 => format!("{{kind: Service, name: {service}}}"),
                2 => format!("{{kind: Service, name: {service}, sectionName: '{named}'}}"),
                3 => format!(
                    "{{group: policy.tulle.dev, kind: Workload, {}}}",
                    random.pick(&["name: w1", "name: pod-a", "selector: {matchLabels: {app: a}}"])
                ),
                4 if kind == "AuthorizationPolicy" => {
                    format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r-{service}}}")
                }
                _ => String::new(),
            };
            let says = match kind {
                "AuthorizationPolicy" => format!(
                    "action: {}, rules: [{{from: [{{identities: [x/{other}]}}], toPorts: [{port}]}}]",
                    random.pick(&["ALLOW", "DENY", "AUDIT"])
                ),
                _ => format!("mtls: '{}'", random.pick(&["strict", "permissive", "off"])),
            };
            format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p-{other}, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], {says}}}\n"
            )
        }
        5 => {
            let targets = if random.below(2) == 0 {
                String::new()
            } else {
                format!("{{kind: Service, name: {service}}}")
            };
            format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: EgressPolicy\nmetadata: {{name: e-{other}, namespace: {namespace}}}\nspec: {{targetRefs: [{targets}], action: {}, rules: [{{action: allow, ports: [{port}]}}]}}\n",
                random.pick(&["allow", "audit", "deny"])
            )
        }
        6..=8 => {
            let spec = match random.below(6) {
                0 => "TrafficPolicy,timeouts: {request: 3s}, retry: {attempts: 2}",
                1 => "TrafficPolicy,connections: {maximumAge: 1m}, limits: {maximumRequests: 3}",
                2 => {
                    "RateLimitPolicy,limits: [{rate: {requests: 3}, by: {identity: {}}, overrides: [{values: [x/y], rate: {requests: 1}}]}]"
                }
                3 => "RateLimitPolicy,direction: Outbound, limits: [{rate: {requests: 3}}]",
                4 => {
                    "TelemetryPolicy,accessLog: {format: ecs, samplePercent: 5}, tracing: {sampling: {percent: 5}}"
                }
                _ => "FaultPolicy,rules: [{delay: {duration: 1s}}]",
            };
            let (kind, says) = spec.split_once(',').unwrap();
            let of_services = says.contains("limits: {") || says.contains("identity");
            let target = if kind == "TelemetryPolicy" && random.below(2) == 0 {
                let workload = random.pick(&["w1", "w2", "pod-a", ""]);
                let named = format!("{{group: policy.tulle.dev, kind: Workload, name: {workload}}}");
                if workload.is_empty() { String::new() } else { named }
            } else if of_services || random.below(2) == 0 {
                format!("{{kind: Service, name: {service}, sectionName: '{named}'}}")
            } else {
                let rule = random.pick(&["", "x"]);
                format!(
                    "{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r-{service}, sectionName: '{rule}'}}"
                )
            };
            format!(
                "apiVersion: policy.tulle.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: p-{other}, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], {says}}}\n"
            )
        }
        _ if random.below(3) == 0 => format!(
            "apiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: mesh}}\nspec: {{mtls: {}, egress: {}, accessLog: {}}}\n",
            random.pick(&["strict", "permissive", "'off'"]),
            random.pick(&["allow", "deny"]),
            random.pick(&["{}", "{format: ecs}"])
        ),
        _ => format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: ReferenceGrant\nmetadata: {{name: g, namespace: {namespace}}}\nspec: {{from: [{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {}}}], to: [{{group: '', kind: Service}}]}}\n",
            random.pick(&NAMESPACES)
        ),
    }
}

fn parse(text: &str) -> Object {
    let read = read_text(text);
    match read.changes.into_iter().next() {
        Some(crate::index::Change::Apply(object, _)) => *object,
        other => panic!("{other:?}: {text}\n{:#?}", read.findings),
    }
}

/// Everything that can be asked for, by type and name.
fn dump(model: &Model) -> BTreeMap<String, Arc<str>> {
    let mut all = BTreeMap::new();
    for kind in ResourceType::ALL {
        for name in model.names(kind) {
            let clients: &[&str] = if kind == ResourceType::Routes { &["default/", "shop/"] } else { &[""] };
            for client in clients {
                let name = format!("{client}{name}");
                all.insert(format!("{kind}/{name}"), model.get(kind, &name).unwrap().version.clone());
            }
        }
    }
    // These are there for everybody.
    for workload in ["default/w1", "default/w2", "default/pod-a", "shop/pod-a", "shop/new"] {
        for kind in [ResourceType::EgressPolicy, ResourceType::InboundPolicy] {
            all.insert(format!("{kind}/{workload}"), model.get(kind, workload).unwrap().version.clone());
        }
    }
    all
}

#[test]
fn a_model_kept_through_changes_equals_one_built_from_scratch() {
    for seed in 1..=90_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let empty = || if seed % 2 == 0 { Index::of_cluster() } else { Index::default() };
        let mut kept = empty();
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let mut registrations: BTreeMap<NamespacedName, Registration> = BTreeMap::new();
        let mut model = Model::build(&kept, Settings::default());
        for step in 0..30 {
            for _ in 0..=random.below(3) {
                change(&mut random, &mut kept, &mut objects, &mut registrations);
            }
            let dirty = kept.take_dirty();
            let next = model.next(&kept, &dirty);
            let before = std::mem::replace(&mut model, next);
            told_apart(&before, &model, &format!("seed {seed}, step {step}"));

            let mut fresh = empty();
            for registration in registrations.values() {
                register(&mut fresh, registration.clone());
            }
            fresh.reset(objects.values().map(|object| (object.clone(), None)));
            let scratch = Model::build(&fresh, Settings::default());
            assert_eq!(dump(&model), dump(&scratch), "seed {seed}, step {step}");
            assert!(model == scratch, "seed {seed}, step {step}");
        }
    }
}

/// What a model says to have changed is what has.
fn told_apart(before: &Model, after: &Model, at: &str) {
    let Some(changed) = after.changed_since(before.number()) else { return };
    let changed: BTreeSet<String> = changed.map(|(kind, name)| format!("{kind}/{name}")).collect();
    let (before, after) = (dump(before), dump(after));
    let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let different = names.into_iter().filter(|name| before.get(*name) != after.get(*name));
    // Routes are told by their service.
    let of_service = |name: &String| match name.strip_prefix("Routes/").and_then(|name| name.split_once('/'))
    {
        Some((_, service)) => format!("Routes/{service}"),
        None => name.clone(),
    };
    let services = different.map(of_service);
    let missing: Vec<String> = services.filter(|name| !changed.contains(name)).collect();
    assert!(missing.is_empty(), "{at}: {missing:?} are not among {changed:?}");
}

fn change(
    random: &mut Random,
    index: &mut Index,
    objects: &mut BTreeMap<ObjectKey, Object>,
    registrations: &mut BTreeMap<NamespacedName, Registration>,
) {
    match random.below(10) {
        0..=4 => {
            let object =
                if random.below(4) == 0 { random_pod(random) } else { parse(&random_object(random)) };
            objects.insert(object.key(), object.clone());
            index.apply(object, None);
        }
        5 | 6 => {
            let at = random.below(objects.len().max(1) as u64);
            let key = objects.keys().nth(usize::try_from(at).unwrap()).cloned();
            let key = key.unwrap_or_else(|| ObjectKey { kind: Kind::Service, name: name("x/y") });
            objects.remove(&key);
            index.delete(&key);
        }
        7 | 8 => {
            let workload = random.pick(&["w1", "w2"]);
            let port = u32::try_from(80 + random.below(2)).unwrap();
            let new = registration(workload, random.pick(&IPS), &[(random.pick(&SERVICES), port, 8080)]);
            registrations.insert(new.workload.clone(), new.clone());
            register(index, new);
        }
        _ => {
            let workload = NamespacedName::new("default", random.pick(&["w1", "w2"]));
            registrations.remove(&workload);
            index.unregister(sole(&workload));
        }
    }
}
