//! What both ends of this version say, as far as it can be made without chance: what the control plane makes of `mesh.yaml`, what
//! the two ends of ADS say to each other about it, and a report of each kind.

use std::path::{Path, PathBuf};

use prost::{Message, Name};
use tulle_api::discovery::{Locality, Node};
use tulle_api::v1::{self, ReportRequest, ReportResponse, report_request::Report, report_response::Response};
use tulle_api::{MESH, ResourceType};
use tulle_control_plane::ads;
use tulle_control_plane::index::{Change, Index, Registration, RegistrationId};
use tulle_control_plane::model::{Model, SessionKey, Settings};
use tulle_control_plane::object::{DefaultInbound, Identity, NamespacedName, Object, Pod};
use tulle_control_plane::source::Folder;
use tulle_proxy::control::session::{ResourceName, Session};

/// The workload whose proxy speaks.
pub(crate) const NODE: &str = "shop/vm-1";

/// A message and what is to be known to use it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Recorded {
    /// Its full name, such as `tulle.v1.Service`.
    pub(crate) message: String,
    /// Of a resource its name; else what it is.
    pub(crate) label: String,
    pub(crate) bytes: Vec<u8>,
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/wire")
}

fn recorded<M: Message + Name>(label: impl Into<String>, message: &M) -> Recorded {
    Recorded { message: M::full_name(), label: label.into(), bytes: message.encode_to_vec() }
}

/// What the control plane makes of `mesh.yaml`.
fn model() -> Model {
    let mut index = Index::of_cluster();
    let text = std::fs::read(fixtures().join("mesh.yaml")).expect("is there");
    let read = Folder::empty(Path::new("conf")).update([("conf/mesh.yaml".to_owned(), Ok(text))].into());
    let errors: Vec<String> =
        read.findings.iter().map(ToString::to_string).filter(|one| !is_meant(one)).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    index.change(read.changes);
    index.change(pods().map(|pod| Change::Apply(Box::new(Object::Pod(pod)), None)));
    let root = std::fs::read(fixtures().join("root.der")).expect("is there");
    index.set_bundle("cluster.local", vec![root.into()]);
    let (workload, id) = (NamespacedName::new("shop", "vm-1"), "spiffe://cluster.local/ns/shop/sa/orders");
    let said = Registration::read(workload, id, &registration()).expect("can be read");
    index.register(RegistrationId(1), said);
    let settings = Settings {
        trust_domain: Some("cluster.local".into()),
        session_key: Some(SessionKey::derive(b"a secret of nobody's")),
    };
    index.take_dirty();
    Model::build(&index, settings)
}

/// A rule that cannot be served says so to proxies; and who counts requests is told what is counted together.
fn is_meant(finding: &str) -> bool {
    finding.contains("the filter ExtensionRef is not supported")
        || finding.contains("sends for one identity only")
}

/// Pods with a proxy, of which nothing but the address is known beside the first one's Service; and what each says of who is let in.
fn pods() -> [Pod; 2] {
    let pod = Pod {
        name: NamespacedName::new("shop", "pod-1"),
        addresses: vec!["10.1.0.1".parse().expect("an address")],
        identity: Identity::ServiceAccount { namespace: "shop".to_owned(), name: "pod".to_owned() },
        meshed: true,
        asks: false,
        skipped: vec![9090..=9091],
        opaque: vec![3306..=3306],
        default_inbound: Some(DefaultInbound::ClusterUnauthenticated),
        labels: vec![("app".into(), "pod".into())],
        ports: Vec::new(),
        ending: false,
    };
    let audited = Pod {
        name: NamespacedName::new("shop", "pod-2"),
        addresses: vec!["10.1.0.2".parse().expect("an address")],
        default_inbound: Some(DefaultInbound::Audit),
        labels: Vec::new(),
        ..pod.clone()
    };
    [pod, audited]
}

fn registration() -> v1::Registration {
    let ports =
        [(80, 8080), (82, 8082)].map(|(service_port, port)| v1::RegisteredPort { service_port, port }).into();
    v1::Registration {
        address: "10.2.0.1".to_owned(),
        services: vec![v1::RegisteredService { name: "orders".to_owned(), ports }],
        locality: Some(v1::Locality { region: "r1".to_owned(), zone: "z1".to_owned() }),
        ready: true,
    }
}

fn node() -> Node {
    Node {
        id: NODE.to_owned(),
        cluster: "shop".to_owned(),
        locality: Some(Locality {
            region: "r1".to_owned(),
            zone: "z1".to_owned(),
            sub_zone: "s1".to_owned(),
        }),
        user_agent_name: "tulle-proxy".to_owned(),
        user_agent_version: "0.0.0".to_owned(),
        ..Node::default()
    }
}

/// Every resource that there is, by the names that proxies ask for it.
fn names(model: &Model) -> Vec<(ResourceType, String)> {
    let mut names = Vec::new();
    for resource_type in ResourceType::ALL {
        for name in model.names(resource_type) {
            if resource_type == ResourceType::Routes {
                names.push((resource_type, format!("shop/{name}")));
                names.push((resource_type, format!("web/{name}")));
            } else {
                names.push((resource_type, name.to_string()));
            }
        }
    }
    names.push((ResourceType::EgressPolicy, NODE.to_owned()));
    assert!(names.contains(&(ResourceType::Mesh, MESH.to_owned())));
    names.sort();
    names.dedup();
    names
}

/// What goes to a proxy, and what comes from one, but for certificates, which chance has made.
pub(crate) fn made() -> (Vec<Recorded>, Vec<Recorded>) {
    let model = model();
    let (mut to_proxy, mut from_proxy) = (Vec::new(), Vec::new());
    for (resource_type, name) in names(&model) {
        let encoded = model.get(resource_type, &name).unwrap_or_else(|| panic!("{resource_type} {name}"));
        let message = resource_type.type_url().rsplit('/').next().unwrap_or_default().to_owned();
        to_proxy.push(Recorded { message, label: name, bytes: encoded.bytes.to_vec() });
    }
    discover(&model, &mut to_proxy, &mut from_proxy);
    for (label, response) in responses() {
        to_proxy.push(recorded(label, &ReportResponse { response: Some(response) }));
    }
    for (at, (label, report)) in reports().into_iter().enumerate() {
        let node = (at == 0).then(node);
        from_proxy.push(recorded(label, &ReportRequest { node, report: Some(report) }));
    }
    (to_proxy, from_proxy)
}

/// The two ends of ADS: subscriptions, answers, a rejection, a comparison, an end, and a stream that resumes.
fn discover(model: &Model, to_proxy: &mut Vec<Recorded>, from_proxy: &mut Vec<Recorded>) {
    let mut proxy = Session::new(node());
    let mut control_plane = ads::Session::new("shop");
    let resource = |resource_type: ResourceType, name: &str| ResourceName {
        type_url: resource_type.type_url().to_owned(),
        name: name.to_owned(),
    };
    let orders = resource(ResourceType::Service, "shop/orders");
    proxy.open();
    for wanted in
        [orders.clone(), resource(ResourceType::Service, "shop/nobody"), resource(ResourceType::Mesh, MESH)]
    {
        proxy.subscribe(wanted);
    }
    let mut exchange = |proxy: &mut Session, control_plane: &mut ads::Session, what: &str| {
        loop {
            for request in proxy.requests() {
                from_proxy.push(recorded(what, &request));
                control_plane.receive(request).expect("is taken");
            }
            let Some(response) = control_plane.poll(model) else { break };
            to_proxy.push(recorded(what, &response));
            let answer = if let Some(compared) = proxy.compare(&response) {
                proxy.answer_view(&response, &compared)
            } else {
                let mesh = response.type_url == ResourceType::Mesh.type_url();
                let rejection = v1::Rejection {
                    resource: MESH.to_owned(),
                    field: "networks[0]".to_owned(),
                    reason: "is no CIDR block".to_owned(),
                };
                let update = proxy.receive(response);
                Some(proxy.answer(&update, if mesh { std::slice::from_ref(&rejection) } else { &[] }))
            };
            if let Some(answer) = answer {
                from_proxy.push(recorded(what, &answer));
                control_plane.receive(answer).expect("is taken");
            }
        }
    };
    exchange(&mut proxy, &mut control_plane, "subscribe");
    proxy.ask_view();
    exchange(&mut proxy, &mut control_plane, "compare");
    proxy.unsubscribe(&resource(ResourceType::Service, "shop/nobody"));
    exchange(&mut proxy, &mut control_plane, "unsubscribe");
    proxy.open();
    exchange(&mut proxy, &mut ads::Session::new("shop"), "resume");
}

fn responses() -> Vec<(&'static str, Response)> {
    let filter = v1::TapFilter {
        side: v1::TapSide::Outbound.into(),
        method: "GET".to_owned(),
        path_prefix: "/a".to_owned(),
        service: "shop/orders:80".to_owned(),
        route: "shop/orders".to_owned(),
        peers: vec!["spiffe://cluster.local/ns/shop/sa/web".to_owned()],
        statuses: vec![v1::StatusRange { first: 500, last: 599 }],
        reason: "*".to_owned(),
    };
    let tap = v1::Tap {
        id: 3,
        lifetime_milliseconds: 30_000,
        per_second: 100,
        filter: Some(filter),
        fields: vec!["*".to_owned()],
    };
    vec![
        ("registered", Response::Registered(v1::Registered { pending: vec!["later".to_owned()] })),
        (
            "endpoints",
            Response::Endpoints(v1::EndpointsQuestion { id: 1, service: "shop/orders".to_owned() }),
        ),
        ("tap", Response::Tap(tap)),
        ("tap over", Response::TapOver(3)),
    ]
}

fn reports() -> Vec<(&'static str, Report)> {
    let endpoint = v1::EndpointInUse {
        service_port: 80,
        address: "192.0.2.1:8080".to_owned(),
        identity: "spiffe://cluster.local/ns/shop/sa/orders".to_owned(),
        ready: true,
    };
    let services =
        vec![v1::ServiceEndpoints { service: "shop/orders".to_owned(), endpoints: vec![endpoint] }];
    let row = v1::LoadRow {
        inbound: true,
        tls: "mtls".to_owned(),
        peer: "spiffe://cluster.local/ns/shop/sa/web".to_owned(),
        service: "shop/orders:80".to_owned(),
        route: "shop/orders".to_owned(),
        backend: "shop/orders:80".to_owned(),
        requests: 9,
        failures: 1,
        latency_buckets: vec![3, 4],
        latency_counts: vec![8, 1],
        open_connections: 2,
        bytes_sent: 1000,
        bytes_received: 2000,
        rest: false,
    };
    let rest = v1::LoadRow { rest: true, requests: 1, ..v1::LoadRow::default() };
    let load = v1::Load {
        milliseconds: 5000,
        rows: vec![row, rest],
        untold: vec!["route".to_owned()],
        is_last: true,
    };
    vec![
        ("registration", Report::Registration(registration())),
        ("endpoints", Report::Endpoints(v1::EndpointsInUse { id: 1, services, is_cut: true })),
        ("load", Report::Load(load)),
        ("tapped", Report::Tapped(tapped())),
    ]
}

fn tapped() -> v1::Tapped {
    let text = |text: &str| text.to_owned();
    let field = |name: &str| vec![v1::TappedField { name: text(name), value: text("v") }];
    let request = v1::TappedRequest {
        timestamp: text("2026-01-01T00:00:00.000Z"),
        inbound: true,
        protocol: text("http/1.1"),
        method: text("GET"),
        path: text("/a"),
        authority: text("orders"),
        status: 503,
        grpc_status: Some(14),
        reason: text("connect_failed"),
        by: text("shop/vm-1/outbound"),
        detail: text("refused"),
        trace_id: text("4bf92f3577b34da6a3ce929d0e0e4736"),
        client: text("10.2.0.2:40000"),
        source: text("spiffe://cluster.local/ns/shop/sa/web"),
        destination: text("spiffe://cluster.local/ns/shop/sa/orders"),
        service: text("shop/orders:80"),
        route: text("shop/orders"),
        backend: text("shop/orders:80"),
        endpoint: text("192.0.2.1:8080"),
        rule: text("shop/orders/web"),
        tls: text("mtls"),
        bytes_in: 1,
        bytes_out: 2,
        duration_ns: 3,
        processing_ns: Some(4),
        attempts: 2,
        connection: 5,
        request_fields: field("a"),
        response_fields: field("b"),
    };
    v1::Tapped { id: 3, requests: vec![request], over_rate: 1, dropped: 2, refused: text("no") }
}
