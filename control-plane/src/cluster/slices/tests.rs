use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};
use tulle_api::v1;
use tulle_certs::SpiffeId;

use super::*;
use crate::ca::NotGranted;
use crate::cluster::testing::{ApiServer, Failure};
use crate::ending::{self, End};
use crate::index::{Change, Index, Registration, RegistrationId};
use crate::metrics::Metrics;
use crate::model::Settings;
use crate::object::{Identity, Kind, Object, ObjectKey, Pod};
use crate::registration::Part;
use crate::source::read_text;

const SERVICES: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{name: web, port: 80}]}\n---\n\
    apiVersion: v1\nkind: Service\nmetadata: {name: ledger, namespace: bank}\nspec: {ports: [{port: 80}]}\n";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/shop/endpointslices";

/// The endpoints of a Service that proxies are told, and whether each is ready.
type Told = Vec<(String, bool)>;

/// One replica.
struct Replica {
    registrations: Arc<Registrations>,
    publisher: Arc<Publisher>,
    held: watch::Sender<bool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    end: End,
}

impl Replica {
    async fn start(server: &Arc<ApiServer>, name: &str) -> Self {
        let mut index = Index::of_cluster();
        index.change(read_text(SERVICES).changes);
        let settings = Settings { trust_domain: Some("cluster.local".into()), session_key: None };
        let publisher = Publisher::new(index, settings, Vec::new());
        let (metrics, grace) = (Metrics::new().unwrap(), Duration::from_secs(30));
        let writes = metrics.registration_writes.clone();
        let open = Registrations::open(Arc::clone(&publisher), Box::new(permit), None, metrics, grace);
        let registrations = Arc::new(open.shared());
        let held = watch::Sender::new(false);
        let (end, ending) = ending::channel();
        let slices = Slices::new(
            server.client(),
            name.to_owned(),
            TrustDomain::default(),
            Arc::clone(&registrations),
            Arc::clone(&publisher),
            writes,
        );
        let mut read = slices.read();
        let (running, kept) = (Arc::clone(&publisher), Arc::clone(&registrations));
        let tasks = vec![
            tokio::spawn(async move { running.run().await }),
            tokio::spawn(async move { kept.keep().await }),
            tokio::spawn(slices.keep(Holder::of(held.subscribe()), ending)),
        ];
        read.wait_for(|read| *read).await.unwrap();
        Self { registrations, publisher, held, tasks, end }
    }

    async fn register(&self, said: &v1::Registration, replaces: Option<RegistrationId>) -> RegistrationId {
        self.registrations.register(&workload(), &id("orders"), said, replaces).await.unwrap().1.id
    }

    /// Whom it tells proxies of, of `shop/orders`: address, and whether it is ready.
    async fn endpoints(&self) -> Vec<(String, bool)> {
        self.publisher.settle().await;
        endpoints(&self.publisher, "shop/orders")
    }

    async fn comes_to(&self, expected: &[(&str, bool)]) {
        let expected: Vec<_> = expected.iter().map(|(at, ready)| ((*at).to_owned(), *ready)).collect();
        for _ in 0..20_000 {
            if self.endpoints().await == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}, and not {expected:?}", self.endpoints().await);
    }

    /// Everything that proxies are told from here on.
    fn watched(&self) -> Arc<Mutex<BTreeSet<Told>>> {
        let told = Arc::new(Mutex::new(BTreeSet::from([endpoints(&self.publisher, "shop/orders")])));
        let (mut models, publisher, telling) =
            (self.publisher.models(), Arc::clone(&self.publisher), Arc::clone(&told));
        tokio::spawn(async move {
            while models.changed().await.is_ok() {
                telling.lock().insert(endpoints(&publisher, "shop/orders"));
            }
        });
        told
    }

    /// As if it were killed.
    fn die(&mut self) {
        self.tasks.iter().for_each(|task| task.abort());
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.die();
    }
}

fn endpoints(publisher: &Publisher, service: &str) -> Vec<(String, bool)> {
    let encoded = publisher.model().get(tulle_api::ResourceType::Endpoints, service).unwrap();
    let endpoints: v1::Endpoints = prost::Message::decode(encoded.bytes.clone()).unwrap();
    endpoints.endpoints.into_iter().map(|one| (one.address, one.ready)).collect()
}

fn permit(id: &SpiffeId, service: &str) -> Result<(), NotGranted> {
    if service == "orders" && id.service_account() == "orders" {
        return Ok(());
    }
    Err(NotGranted { id: id.clone(), service: service.to_owned() })
}

fn workload() -> NamespacedName {
    NamespacedName::new("shop", "vm-1")
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", account).unwrap()
}

fn said(address: &str, ready: bool) -> v1::Registration {
    v1::Registration {
        address: address.to_owned(),
        services: vec![v1::RegisteredService {
            name: "orders".to_owned(),
            ports: vec![v1::RegisteredPort { service_port: 80, port: 8080 }],
        }],
        locality: Some(v1::Locality { region: "r".to_owned(), zone: "z".to_owned() }),
        ready,
    }
}

fn part(workload: &NamespacedName, identity: &SpiffeId, address: &str) -> Arc<Part> {
    let registration = Registration::read(workload.clone(), identity.as_str(), &said(address, true)).unwrap();
    Part::of(&registration, identity).remove(0)
}

/// The only slice of `shop`, and where it is.
fn slice(server: &ApiServer) -> Option<(String, Value)> {
    let mut all = server.objects(SLICES);
    assert!(all.len() <= 1, "{all:?}");
    all.pop()
}

fn held_by(server: &ApiServer) -> Option<String> {
    let (_, slice) = slice(server)?;
    slice["metadata"]["annotations"]["tulle.dev/lease-holder"].as_str().map(str::to_owned)
}

const FIRST: &[(&str, bool)] = &[("10.0.0.1", true)];

#[tokio::test(start_paused = true)]
async fn what_is_registered_at_one_replica_all_know() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    a.register(&said("10.0.0.1", true), None).await;
    let (_, written) = slice(&server).expect("written before the workload is told that it is registered");
    let (labels, annotations) = (&written["metadata"]["labels"], &written["metadata"]["annotations"]);
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "tulle-control-plane");
    assert_eq!(labels["kubernetes.io/service-name"], "orders");
    assert_eq!(annotations["tulle.dev/identity"], "shop/orders");
    assert_eq!(annotations["tulle.dev/lease-duration"], "30s");
    assert_eq!(written["ports"], json!([{"name": "web", "port": 8080, "protocol": "TCP"}]));
    assert_eq!(written["metadata"]["ownerReferences"], Value::Null);
    b.comes_to(FIRST).await;
    // Byte for byte what the first one tells, and who the workload is too.
    for kind in [tulle_api::ResourceType::Workload, tulle_api::ResourceType::InboundPolicy] {
        let of = |replica: &Replica| replica.publisher.model().get(kind, "shop/vm-1").unwrap().bytes.clone();
        assert_eq!(of(&a), of(&b), "{kind}");
    }
    // One that starts later knows it from the beginning.
    let c = Replica::start(&server, "c").await;
    assert_eq!(c.endpoints().await, [("10.0.0.1".to_owned(), true)]);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_changes_or_ends_does_so_everywhere_at_once() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    let first = a.register(&said("10.0.0.1", false), None).await;
    b.comes_to(&[("10.0.0.1", false)]).await;
    let began = tokio::time::Instant::now();
    let second = a.register(&said("10.0.0.1", true), Some(first)).await;
    b.comes_to(FIRST).await;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    a.registrations.ended(second);
    let began = tokio::time::Instant::now();
    b.comes_to(&[]).await;
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(slice(&server).is_none());
}

#[tokio::test(start_paused = true)]
async fn when_a_replica_dies_the_one_that_the_workload_comes_back_to_takes_over_and_nobody_notices() {
    let server = ApiServer::start();
    let (mut a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    let c = Replica::start(&server, "c").await;
    c.held.send_replace(true);
    a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    c.comes_to(FIRST).await;
    let (path, _) = slice(&server).unwrap();
    let told = [b.watched(), c.watched()];
    a.die();
    tokio::time::sleep(Duration::from_secs(25)).await;
    b.register(&said("10.0.0.1", true), None).await;
    assert_eq!(held_by(&server).as_deref(), Some("b"));
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(slice(&server).unwrap().0, path, "the same one");
    for told in told {
        assert_eq!(*told.lock(), BTreeSet::from([vec![("10.0.0.1".to_owned(), true)]]));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_breaks_and_is_opened_at_another_replica_is_one_endpoint_all_the_while() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    let first = a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    let told = [a.watched(), b.watched()];
    a.registrations.broken(first);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let second = b.register(&said("10.0.0.1", true), None).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(held_by(&server).as_deref(), Some("b"));
    // And back, while the first replica has not missed it yet.
    let third = a.register(&said("10.0.0.1", true), None).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(held_by(&server).as_deref(), Some("a"));
    b.registrations.ended(second);
    tokio::time::sleep(Duration::from_secs(60)).await;
    for told in told {
        assert_eq!(*told.lock(), BTreeSet::from([vec![("10.0.0.1".to_owned(), true)]]));
    }
    a.registrations.broken(third);
    b.comes_to(&[]).await;
    assert!(slice(&server).is_none(), "nobody has come back");
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_has_run_out_counts_no_more_and_its_slice_goes() {
    let server = ApiServer::start();
    let (mut a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    a.die();
    let began = tokio::time::Instant::now();
    b.comes_to(&[]).await;
    let elapsed = began.elapsed();
    assert!(elapsed > Duration::from_secs(35) && elapsed < Duration::from_secs(60), "{elapsed:?}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(slice(&server).is_some(), "it is not the holder of the lease");
    b.held.send_replace(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(slice(&server).is_none());
}

#[tokio::test(start_paused = true)]
async fn with_the_api_server_away_no_lease_ends() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    b.held.send_replace(true);
    a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    let told = b.watched();
    for failure in [Failure::Silence, Failure::Status(500), Failure::Status(403), Failure::Garbage] {
        server.fail(move |_, _| Some(failure));
        tokio::time::sleep(Duration::from_secs(600)).await;
        server.mend();
        tokio::time::sleep(Duration::from_secs(120)).await;
    }
    assert_eq!(*told.lock(), BTreeSet::from([vec![("10.0.0.1".to_owned(), true)]]));
    // Also who registers meanwhile may serve.
    server.fail(|_, _| Some(Failure::Silence));
    let began = tokio::time::Instant::now();
    a.register(&said("10.0.0.2", true), None).await;
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    server.mend();
    b.comes_to(&[("10.0.0.1", true), ("10.0.0.2", true)]).await;
}

#[tokio::test(start_paused = true)]
async fn a_slice_is_written_once_in_a_third_of_its_lease_however_restless_its_workload_is() {
    let server = ApiServer::start();
    let a = Replica::start(&server, "a").await;
    let mut id = a.register(&said("10.0.0.1", true), None).await;
    let writes = || server.asked(&Method::PATCH, "endpointslices");
    let before = writes();
    tokio::time::sleep(Duration::from_secs(300)).await;
    let renewals = writes() - before;
    assert!((28..=31).contains(&renewals), "{renewals}");
    let before = writes();
    for round in 0..1200 {
        id = a.register(&said("10.0.0.1", round % 3 == 0), Some(id)).await;
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    let changes = writes() - before;
    assert!((20..=40).contains(&changes), "{changes}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_ends_in_order_leaves_its_slices_to_the_others() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    let first = a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    let told = b.watched();
    a.registrations.close();
    a.end.begin();
    a.registrations.ended(first);
    tokio::time::sleep(Duration::from_secs(20)).await;
    b.register(&said("10.0.0.1", true), None).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(*told.lock(), BTreeSet::from([vec![("10.0.0.1".to_owned(), true)]]));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_or_edits_is_put_right() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    let (path, written) = slice(&server).unwrap();
    server.delete(&path);
    tokio::time::sleep(Duration::from_secs(3)).await;
    b.comes_to(FIRST).await;
    let mut edited = written;
    edited["endpoints"][0]["conditions"]["ready"] = json!(false);
    server.put(&path, edited);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(slice(&server).unwrap().1["endpoints"][0]["conditions"]["ready"], true);
    b.comes_to(FIRST).await;
}

#[tokio::test(start_paused = true)]
async fn a_slice_that_somebody_else_writes_says_nothing_of_others() {
    let server = ApiServer::start();
    let (a, b) = (Replica::start(&server, "a").await, Replica::start(&server, "b").await);
    let first = a.register(&said("10.0.0.1", true), None).await;
    b.comes_to(FIRST).await;
    let (path, honest) = slice(&server).unwrap();
    a.registrations.ended(first);
    b.comes_to(&[]).await;
    let forge = |change: &dyn Fn(&mut Value)| {
        let mut forged = honest.clone();
        change(&mut forged);
        server.put(&path, forged);
    };
    type Forgery<'f> = (&'f str, &'f dyn Fn(&mut Value));
    let forgeries: [Forgery<'_>; 6] = [
        ("another address than its name says", &|slice| {
            slice["endpoints"][0]["addresses"] = json!(["10.0.0.66"]);
        }),
        ("another namespace's identity", &|slice| {
            slice["metadata"]["annotations"]["tulle.dev/identity"] = json!("bank/ledger");
        }),
        ("a whole SPIFFE ID", &|slice| {
            slice["metadata"]["annotations"]["tulle.dev/identity"] =
                json!("spiffe://elsewhere/ns/shop/sa/orders");
        }),
        ("another Service", &|slice| {
            slice["metadata"]["labels"]["kubernetes.io/service-name"] = json!("ledger");
        }),
        ("no ports", &|slice| {
            slice["metadata"]["annotations"]["tulle.dev/service-ports"] = json!("");
        }),
        ("nothing", &|slice| {
            slice["metadata"]["annotations"] = json!({});
        }),
    ];
    for (what, change) in forgeries {
        forge(change);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(b.endpoints().await, [], "{what}");
        assert_eq!(endpoints(&b.publisher, "bank/ledger"), [], "{what}");
    }
    // Well made, and in every point what the control plane would write: but of an identity that no token grants the Service.
    let other = part(&workload(), &id("web"), "10.0.0.9");
    let ungranted = text::write(&other, "nobody", Timestamp::UNIX_EPOCH, |_| None);
    server.put(&format!("{SLICES}/{}", other.key.name), serde_json::to_value(ungranted).unwrap());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(b.endpoints().await, []);
}

/// Whoever may write slices of a namespace may say where its Services are; but not who is at the address of another namespace's Pod,
/// nor who a Pod is.
#[tokio::test(start_paused = true)]
async fn a_slice_says_nothing_of_pods() {
    let server = ApiServer::start();
    let b = Replica::start(&server, "b").await;
    let put = |part: Arc<Part>| {
        let slice = text::write(&part, "nobody", Timestamp::UNIX_EPOCH, |_| None);
        server.put(&format!("{SLICES}/{}", part.key.name), serde_json::to_value(slice).unwrap());
    };
    let pod = |name: &str, address: &str| {
        let (namespace, name) = name.split_once('/').unwrap();
        Pod {
            name: NamespacedName::new(namespace, name),
            addresses: vec![address.parse().unwrap()],
            identity: Identity::ServiceAccount { namespace: namespace.to_owned(), name: "some".to_owned() },
            meshed: true,
            asks: false,
            skipped: Vec::new(),
            opaque: Vec::new(),
            default_inbound: None,
            labels: Vec::new(),
            ports: Vec::new(),
            ending: false,
        }
    };
    put(part(&workload(), &id("orders"), "10.0.0.1"));
    b.comes_to(FIRST).await;
    let pods = [pod("bank/ledger-0", "10.0.0.1"), pod("shop/web-0", "10.0.0.2")];
    let apply = |pod: Pod| Change::Apply(Box::new(Object::Pod(pod)), None);
    b.publisher.apply(pods.map(apply).to_vec(), Vec::new());
    b.comes_to(&[]).await;
    // Not by a Pod's name either, unless it is of the same account.
    put(part(&NamespacedName::new("shop", "web-0"), &id("orders"), "10.0.0.3"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(b.endpoints().await, []);
    // Once the Pod is gone, it is somebody's address again.
    let key = ObjectKey { kind: Kind::Pod, name: NamespacedName::new("bank", "ledger-0") };
    b.publisher.apply(vec![Change::Delete(key)], Vec::new());
    b.comes_to(FIRST).await;
}
