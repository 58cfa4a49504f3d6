//! What a cluster's Pods make of addresses, endpoints and policies.

use serde_json::{Value, json};

use super::*;
use crate::finding::Notes;
use crate::index::Change;

const ORDERS_ID: &str = "spiffe://cluster.local/ns/shop/sa/orders";

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: orders, namespace: shop}
spec:
  clusterIP: 10.96.0.7
  selector: {app: orders}
  ports:
  - {name: http, port: 80, targetPort: web}
  - {name: metrics, port: 81, targetPort: 9000, appProtocol: http}
";

const SLICE: &str = "
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orders-1, namespace: shop, labels: {kubernetes.io/service-name: orders}}
addressType: IPv4
ports: [{name: http, port: 8080}, {name: metrics, port: 9000}]
endpoints:
- {addresses: [10.0.0.1], zone: z1, targetRef: {kind: Pod, name: orders-0, namespace: shop}}
";

const POLICY: &str = "
---
apiVersion: policy.tulle.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: web-only, namespace: shop}
spec: {targetRefs: [{kind: Service, name: orders}], rules: [{from: [{identities: [shop/web]}]}]}
";

/// `shop/orders-0`, as its author changes it.
fn pod(change: impl FnOnce(&mut Value)) -> Object {
    let mut pod = json!({
        "metadata": {
            "namespace": "shop", "name": "orders-0", "labels": {"app": "orders", "pod-template-hash": "x"},
            "annotations": {"tulle.dev/status": "{}"},
        },
        "spec": {"serviceAccountName": "orders", "initContainers": [{"name": "tulle-proxy"}], "containers": [
            {"name": "app", "ports": [{"name": "web", "containerPort": 8080}]},
        ]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
    });
    change(&mut pod);
    Object::pod(&serde_json::from_value(pod).unwrap(), &mut Notes::default()).unwrap()
}

fn cluster(text: &str, pods: impl IntoIterator<Item = Object>) -> Index {
    let mut index = Index::of_cluster();
    index.change(read_text(text).changes);
    for pod in pods {
        index.apply(pod, None);
    }
    index
}

fn built(index: &Index) -> Model {
    Model::build(index, Settings::default())
}

/// Whom a client of `shop/orders` expects, by the port that it dials.
fn peers(model: &Model) -> Vec<(String, u32, Option<v1::Peer>)> {
    let endpoints: v1::Endpoints = get(model, "shop/orders").unwrap();
    let endpoints = endpoints.endpoints.into_iter();
    let ports = endpoints.flat_map(|one| {
        let address = one.address;
        one.ports.into_iter().map(move |port| (address.clone(), port.port, port.peer))
    });
    ports.collect()
}

fn host(model: &Model, ip: &str) -> Option<v1::Host> {
    match get::<v1::Address>(model, ip)?.target? {
        v1::address::Target::Host(host) => Some(host),
        v1::address::Target::Service(service) => panic!("{service:?}"),
    }
}

#[test]
fn an_endpoint_is_in_the_mesh_if_its_pod_has_a_proxy() {
    let at = |port, peer| ("10.0.0.1".to_owned(), port, peer);
    let meshed = built(&cluster(&format!("{SERVICE}{SLICE}"), [pod(|_| ())]));
    assert_eq!(peers(&meshed), [at(8080, spiffe(ORDERS_ID)), at(9000, spiffe(ORDERS_ID))]);
    let bare = built(&cluster(
        &format!("{SERVICE}{SLICE}"),
        [pod(|pod| pod["metadata"]["annotations"] = json!({}))],
    ));
    assert_eq!(peers(&bare), [at(8080, plaintext()), at(9000, plaintext())]);
    let on_host =
        built(&cluster(&format!("{SERVICE}{SLICE}"), [pod(|pod| pod["spec"]["hostNetwork"] = json!(true))]));
    assert_eq!(peers(&on_host), [at(8080, plaintext()), at(9000, plaintext())]);
    let skipping = built(&cluster(
        &format!("{SERVICE}{SLICE}"),
        [pod(|pod| {
            pod["metadata"]["annotations"]["config.tulle.dev/skip-inbound-ports"] = json!("9000");
        })],
    ));
    assert_eq!(peers(&skipping), [at(8080, spiffe(ORDERS_ID)), at(9000, plaintext())]);
    let off = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {mtls: 'off'}\n";
    let off = built(&cluster(&format!("{SERVICE}{SLICE}{off}"), [pod(|_| ())]));
    assert_eq!(peers(&off), [at(8080, plaintext()), at(9000, plaintext())]);
}

#[test]
fn an_endpoint_whose_pod_is_not_known_is_not_dialled_in_plaintext() {
    let mut index = cluster(&format!("{SERVICE}{SLICE}"), []);
    index.take_dirty();
    let model = built(&index);
    assert_eq!(peers(&model), [], "the slice may have come before the Pod");
    assert_eq!(host(&model, "10.0.0.1"), None);
    index.apply(pod(|_| ()), None);
    let dirty = index.take_dirty();
    let next = model.next(&index, &dirty);
    assert_eq!(peers(&next).len(), 2, "the Pod's coming touches the endpoints");
    // In a folder nobody tells Pods, and names of them mean nothing.
    let mut folder = Index::default();
    folder.change(read_text(&format!("{SERVICE}{SLICE}")).changes);
    assert_eq!(peers(&built(&folder)).len(), 2);
}

#[test]
fn the_address_tells_the_pod_where_a_slice_names_none_or_another() {
    for target in ["", ", targetRef: {kind: Pod, name: bare, namespace: shop}"] {
        let slice = SLICE.replace(", targetRef: {kind: Pod, name: orders-0, namespace: shop}", target);
        let bare = pod(|pod| {
            pod["metadata"]["name"] = json!("bare");
            pod["metadata"]["annotations"] = json!({});
            pod["status"] = json!({"podIP": "10.0.0.9"});
        });
        let model = built(&cluster(&format!("{SERVICE}{slice}"), [pod(|_| ()), bare]));
        assert_eq!(peers(&model)[0].2, spiffe(ORDERS_ID), "no slice makes plaintext of a meshed Pod");
    }
}

#[test]
fn an_address_that_two_pods_have_is_the_one_that_stays() {
    let old = pod(|pod| {
        pod["metadata"]["name"] = json!("a-old");
        pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        pod["spec"]["serviceAccountName"] = json!("old");
    });
    let model = built(&cluster(SERVICE, [old, pod(|_| ())]));
    let host = host(&model, "10.0.0.1").unwrap();
    assert_eq!(host.other.unwrap().workload, "shop/orders-0");
}

#[test]
fn a_pod_that_is_dialled_directly_has_its_identity_at_every_port() {
    let model = built(&cluster(
        SERVICE,
        [pod(|pod| {
            let annotations = &mut pod["metadata"]["annotations"];
            annotations["config.tulle.dev/skip-inbound-ports"] = json!("9000, 9100-9200");
            annotations["config.tulle.dev/opaque-ports"] = json!("3306,8080");
        })],
    ));
    for ip in ["10.0.0.1", "fd00::1"] {
        let host = host(&model, ip).unwrap();
        let ports: Vec<_> = host.ports.iter().map(|port| (port.port, &port.peer, port.protocol)).collect();
        let (http, tcp) = (v1::Protocol::Http.into(), v1::Protocol::Tcp.into());
        assert_eq!(ports, [(8080, &spiffe(ORDERS_ID), tcp), (9000, &plaintext(), http)]);
        let other = host.other.unwrap();
        assert_eq!((other.workload.as_str(), &other.peer), ("shop/orders-0", &spiffe(ORDERS_ID)));
        let ranges = |ranges: &[v1::PortRange]| {
            ranges.iter().map(|range| (range.first, range.last)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(&other.opaque), [(3306, 3306), (8080, 8080)]);
        assert_eq!(ranges(&other.skipped), [(9000, 9000), (9100, 9200), (15_000, 15_090)]);
    }
    let bare = built(&cluster("", [pod(|pod| pod["metadata"]["annotations"] = json!({}))]));
    assert_eq!(host(&bare, "10.0.0.1"), Some(v1::Host::default()), "known, and in plaintext");
}

#[test]
fn a_pods_policy_is_there_before_any_slice_lists_it() {
    let index = cluster(&format!("{SERVICE}{POLICY}"), [pod(|_| ())]);
    let model = built(&index);
    let policy: v1::InboundPolicy = get(&model, "shop/orders-0").unwrap();
    let ports: Vec<u32> = policy.ports.iter().map(|port| port.port).collect();
    assert_eq!(ports, [8080, 9000], "by the name of its own port, and by number");
    assert_eq!(policy.rules.len(), 1);
    assert_eq!(policy.rules[0].ports, [8080, 9000]);
    let workload: v1::Workload = get(&model, "shop/orders-0").unwrap();
    assert_eq!((workload.spiffe_id.as_str(), workload.addresses.len()), (ORDERS_ID, 2));
    assert_eq!(workload.locality, None);
    // The slice says the same once more, and the zone.
    let listed = built(&cluster(&format!("{SERVICE}{SLICE}{POLICY}"), [pod(|_| ())]));
    assert_eq!(get::<v1::InboundPolicy>(&listed, "shop/orders-0").unwrap(), policy);
    let workload: v1::Workload = get(&listed, "shop/orders-0").unwrap();
    assert_eq!(workload.locality.unwrap().zone, "z1");
    // A Pod of other labels, or elsewhere, is none of it.
    for change in [json!({"app": "web"}), json!({})] {
        let other = built(&cluster(
            &format!("{SERVICE}{POLICY}"),
            [pod(|pod| pod["metadata"]["labels"] = change.clone())],
        ));
        assert_eq!(get::<v1::InboundPolicy>(&other, "shop/orders-0").unwrap().rules, []);
    }
}

#[test]
fn a_pod_without_a_proxy_is_told_to_no_proxy() {
    let bare = pod(|pod| pod["metadata"]["annotations"] = json!({}));
    let model = built(&cluster(&format!("{SERVICE}{SLICE}{POLICY}"), [bare]));
    assert_eq!(get::<v1::Workload>(&model, "shop/orders-0"), None);
    assert!(!model.names(ResourceType::InboundPolicy).iter().any(|name| &**name == "shop/orders-0"));
}

#[test]
fn a_pods_default_policy_holds_where_no_rule_speaks() {
    let told = |default: &str, more: &str| {
        let annotated = pod(|pod| {
            pod["metadata"]["annotations"]["config.tulle.dev/default-inbound-policy"] = json!(default);
        });
        let model = built(&cluster(&format!("{SERVICE}{more}"), [annotated]));
        get::<v1::InboundPolicy>(&model, "shop/orders-0").unwrap()
    };
    let plain = told("all-unauthenticated", "");
    assert_eq!((plain.mode(), plain.rules.len()), (v1::MtlsMode::Permissive, 0));
    assert!(plain.default_networks.is_empty() && !plain.default_audited);
    let proven = told("all-authenticated", "");
    let mut ports = proven.ports.iter();
    assert!(proven.mode() == v1::MtlsMode::Strict && ports.all(|port| port.mode() == v1::MtlsMode::Strict));
    assert!(proven.default_networks.is_empty());
    let networks = ["10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];
    for (default, mode) in [
        ("cluster-unauthenticated", v1::MtlsMode::Permissive),
        ("cluster-authenticated", v1::MtlsMode::Strict),
    ] {
        let policy = told(default, "");
        assert_eq!((policy.mode(), &*policy.default_networks), (mode, &networks.map(str::to_owned)[..]));
    }
    let mesh = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: Mesh\nmetadata: {name: mesh}\nspec: {mtls: strict, networks: [192.0.2.0/24]}\n";
    let policy = told("cluster-unauthenticated", mesh);
    assert_eq!(policy.default_networks, ["192.0.2.0/24"]);
    assert_eq!(policy.mode(), v1::MtlsMode::Strict, "never looser than the Mesh");
    let deny = told("deny", POLICY);
    let rules = deny.rules.iter().map(|rule| (&*rule.name, rule.ports.len(), rule.identities.len()));
    let web = "shop/web-only/0";
    assert_eq!(
        rules.collect::<Vec<_>>(),
        [(web, 2, 1), ("shop/annotation:default-inbound-policy/deny", 0, 0)]
    );
    assert_eq!(told("nonsense", "").rules.len(), 1, "nobody is let in");
    assert!(told("audit", "").default_audited);
}

#[test]
fn a_pod_that_is_not_known_yet_or_no_more_lets_nobody_in() {
    let told = |model: &Model| get::<v1::InboundPolicy>(model, "shop/orders-0").unwrap();
    let closed = |policy: v1::InboundPolicy| {
        let rules = policy.rules.iter();
        rules.map(|rule| (rule.name.clone(), rule.ports.len(), rule.identities.len())).collect::<Vec<_>>()
    };
    let nobody = [("shop/control-plane:no-pod-with-a-proxy/nobody".to_owned(), 0, 0)];
    let mut index = cluster(SERVICE, []);
    index.take_dirty();
    let model = built(&index);
    assert_eq!(closed(told(&model)), nobody);
    let of_pod = pod(|_| ());
    let key = of_pod.key();
    index.apply(of_pod, None);
    let dirty = index.take_dirty();
    let model = model.next(&index, &dirty);
    assert_eq!(closed(told(&model)), []);
    index.delete(&key);
    let dirty = index.take_dirty();
    assert_eq!(closed(told(&model.next(&index, &dirty))), nobody);
    // A policy or a slice that names it changes nothing of that; nor is a Pod without a proxy one that may be called through one.
    let named = "---\napiVersion: policy.tulle.dev/v1alpha1\nkind: TelemetryPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  \
                 targetRefs: [{group: policy.tulle.dev, kind: Workload, name: orders-0}]\n  tracing: {sampling: {percent: 1}}\n";
    let bare = || pod(|pod| pod["metadata"]["annotations"] = json!({}));
    let policed = format!("{SLICE}{POLICY}");
    for (text, pods) in [
        (named, None),
        (SLICE, None),
        (&policed, None),
        ("", Some(bare())),
        (named, Some(bare())),
        (&policed, Some(bare())),
    ] {
        let model = built(&cluster(&format!("{SERVICE}{text}"), pods));
        assert_eq!(closed(told(&model)), nobody, "{text}");
    }
    // In a folder a workload that registers nothing is called by nobody that the mesh knows of.
    assert_eq!(closed(told(&Model::build(&Index::default(), Settings::default()))), []);
}

#[test]
fn a_policy_that_comes_later_reaches_the_pods_that_its_service_selects() {
    let mut index = cluster(SERVICE, [pod(|_| ())]);
    index.take_dirty();
    let model = built(&index);
    index.change(read_text(POLICY).changes);
    let dirty = index.take_dirty();
    let next = model.next(&index, &dirty);
    assert_eq!(get::<v1::InboundPolicy>(&next, "shop/orders-0").unwrap().rules.len(), 1);
}

#[test]
fn r9_what_only_a_pods_status_says_changes_nothing() {
    let mut index = cluster(&format!("{SERVICE}{SLICE}"), [pod(|_| ())]);
    index.take_dirty();
    let status = pod(|pod| {
        pod["metadata"]["resourceVersion"] = json!("99");
        pod["metadata"]["annotations"]["someone.else/seen"] = json!("now");
        pod["status"]["conditions"] =
            json!([{"type": "Ready", "status": "True", "lastProbeTime": "2026-01-01T00:00:00Z"}]);
        pod["status"]["containerStatuses"] = json!([{"name": "app", "restartCount": 3}]);
    });
    assert!(!index.apply(status, None));
    assert!(index.take_dirty().is_empty(), "nothing is even looked at");
}

#[test]
fn a_headless_services_pods_are_known_by_their_own_addresses() {
    let headless = SERVICE.replace("clusterIP: 10.96.0.7", "clusterIP: None");
    let model = built(&cluster(&format!("{headless}{SLICE}"), [pod(|_| ())]));
    assert_eq!(get::<v1::Service>(&model, "shop/orders").unwrap().addresses, [""; 0]);
    let host = host(&model, "10.0.0.1").unwrap();
    let named: Vec<_> = host.ports.iter().map(|port| (port.port, &port.peer)).collect();
    let peer = spiffe(ORDERS_ID);
    assert_eq!(named, [(8080, &peer), (9000, &peer)]);
}

#[test]
fn another_name_for_what_is_outside_has_no_address_and_takes_no_route() {
    let external = "apiVersion: v1\nkind: Service\nmetadata: {name: orders}\nspec: {type: ExternalName, externalName: db.example, selector: {app: orders}, ports: [{port: 80}]}\n";
    let (index, found) = index(&format!("{external}{}", route("default", "r", "", TO_ORDERS)));
    let model = Model::build(&index, Settings::default());
    assert_eq!(get::<v1::Service>(&model, "default/orders").unwrap().addresses, [""; 0]);
    let said: Vec<&str> = found.iter().map(|finding| finding.message.as_str()).collect();
    assert!(
        said.iter().any(|said| said.contains("Service default/orders is another name for `db.example`")),
        "{said:?}"
    );
}

#[test]
fn what_is_ordinary_in_a_cluster_is_found_no_fault_with() {
    let service = |name: &str, port: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{clusterIP: None, ports: [{port}]}}\n"
        )
    };
    let slice = |name: &str, port: &str, pod: &str| {
        format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {name}-1, namespace: shop, labels: {{kubernetes.io/service-name: {name}}}}}\naddressType: IPv4\nports: [{port}]\nendpoints: [{{addresses: [10.0.0.1], targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}]\n"
        )
    };
    let text = |pod: &str| {
        let udp = "{name: dns, port: 53, protocol: UDP}";
        let grpc = "{name: grpc, port: 15012}";
        let (dns, control_plane) = (service("dns", udp), service("control-plane", grpc));
        format!("{dns}{}{control_plane}{}", slice("dns", udp, pod), slice("control-plane", grpc, pod))
    };
    let bare = pod(|pod| {
        pod["metadata"]["name"] = json!("bare");
        pod["metadata"]["annotations"] = json!({});
    });
    let index = cluster(&text("bare"), [bare]);
    assert_eq!(findings(&index, &Settings::default()), [], "UDP, and the control plane's own port");
    let index = cluster(&text("orders-0"), [pod(|_| ())]);
    let found = findings(&index, &Settings::default());
    assert_eq!(found.len(), 1);
    assert!(found[0].message.contains("15012 is among the proxy's own ports"), "{}", found[0]);
}

#[test]
fn the_namespaces_that_have_a_pod_in_the_mesh_are_told() {
    let mut index = cluster(SERVICE, [pod(|_| ())]);
    let told = |index: &Index| index.meshed_namespaces().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(told(&index), ["shop"]);
    index.apply(pod(|pod| pod["metadata"]["annotations"] = json!(null)), None);
    assert_eq!(told(&index), [""; 0]);
}

#[test]
fn what_a_pod_runs_as_is_known_as_soon_as_it_is_told_and_for_as_long() {
    let account = |publisher: &Publisher| publisher.service_account_of(&name("shop/orders-0"));
    let publisher = Publisher::new(cluster(SERVICE, [pod(|_| ())]), Settings::default(), Vec::new());
    assert_eq!(account(&publisher).as_deref(), Some("orders"));
    let other = pod(|pod| pod["spec"]["serviceAccountName"] = json!("web"));
    let key = other.key();
    publisher.apply(vec![Change::Apply(Box::new(other), None)], Vec::new());
    assert_eq!(account(&publisher).as_deref(), Some("web"));
    publisher.apply(vec![Change::Delete(key)], Vec::new());
    assert_eq!(account(&publisher), None);
}
