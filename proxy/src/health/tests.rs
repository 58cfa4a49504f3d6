use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::endpoint::EndpointSet;
use crate::state::{EndpointInfo, EndpointsInfo, HealthCheck, Question, ServiceInfo, ServiceState, Traffic};
use crate::wire::{h1, http2};

pub(super) fn dial() -> Dial {
    Dial {
        creds: Arc::default(),
        timeout: Duration::from_secs(10),
        mark: None,
        namespace: None,
        http1: h1::Limits::default(),
        http2: http2::Limits::default(),
        metrics: Metrics::new(1, 2000, &[]).unseen(),
    }
}

/// An application whose health can be told, and who counts how often it is asked.
struct App {
    address: SocketAddr,
    well: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl App {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (well, asked) = (Arc::new(AtomicBool::new(true)), Arc::<AtomicUsize>::default());
        let (is_well, count) = (Arc::clone(&well), Arc::clone(&asked));
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.read(&mut [0; 1024]).await;
                let status = if is_well.load(Ordering::Relaxed) { 200 } else { 503 };
                let answer = format!("HTTP/1.1 {status} x\r\ncontent-length: 0\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { address, well, asked }
    }
}

fn check() -> HealthCheck {
    HealthCheck {
        question: Question::Http { path: "/".parse().unwrap(), host: None },
        interval: Duration::from_millis(10),
        timeout: Duration::from_secs(10),
        healthy_threshold: 2,
        unhealthy_threshold: 2,
    }
}

fn info(health_check: Option<HealthCheck>) -> Option<Arc<ServiceInfo>> {
    let port = ServicePort {
        port: 80,
        name: String::new(),
        protocol: Protocol::Http,
        traffic: Arc::new(Traffic { health_check, ..Traffic::default() }),
    };
    let name = ObjectName::new("shop", "orders");
    Some(Arc::new(ServiceInfo { name, addresses: Vec::new(), ports: vec![port] }))
}

fn set(old: Option<&EndpointSet>, apps: &[&App]) -> EndpointSet {
    set_of(old, apps, &Peer::Plaintext)
}

fn set_of(old: Option<&EndpointSet>, apps: &[&App], peer: &Peer) -> EndpointSet {
    let endpoints = apps.iter().map(|app| EndpointInfo {
        service_port: 80,
        addr: app.address,
        peer: peer.clone(),
        workload: None,
        zone: None,
        ready: true,
        weight: 100,
    });
    let info = EndpointsInfo { name: ObjectName::new("shop", "orders"), endpoints: endpoints.collect() };
    EndpointSet::apply(old, &info, 1)
}

/// A prober of `shop/orders`, whose findings come by the channel.
struct Bench {
    store: Arc<Store>,
    service: Arc<ServiceState>,
    told: mpsc::UnboundedReceiver<(SocketAddr, bool)>,
    metrics: Metrics,
}

impl Bench {
    fn start(apps: &[&App], check: Option<HealthCheck>) -> Self {
        let (store, _questions) = Store::new(Duration::from_secs(1));
        let store = Arc::new(store);
        let name = ObjectName::new("shop", "orders");
        let service = Arc::new(ServiceState::new(name.clone()));
        service.set_info(info(check));
        service.set_endpoints(set(None, apps));
        store.update(|snapshot| drop(snapshot.services.insert(name, Arc::clone(&service))));
        let (tell, told) = mpsc::unbounded_channel();
        let metrics = Metrics::new(1, 2000, &[]);
        let known = Mutex::new(HashMap::new());
        let prober = Prober::new(
            Arc::clone(&store),
            dial(),
            |_| None,
            move |service, port, endpoint, healthy| {
                assert_eq!((service.to_string().as_str(), port), ("shop/orders", 80));
                // What is said again is no news.
                if known.lock().insert(endpoint.address, healthy).unwrap_or(true) != healthy {
                    let _ = tell.send((endpoint.address, healthy));
                }
            },
            metrics.clone(),
            Arc::default(),
        );
        tokio::spawn(prober.run());
        Self { store, service, told, metrics }
    }

    async fn hears(&mut self, app: &App, healthy: bool) {
        assert_eq!(self.told.recv().await, Some((app.address, healthy)));
    }

    /// Waits until `app` has been asked so many times more.
    async fn asks(&self, app: &App, times: usize) {
        let before = app.asked.load(Ordering::Relaxed);
        while app.asked.load(Ordering::Relaxed) < before + times {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until no check is under way any more, and shows that none is begun: another service's are, meanwhile.
    async fn asks_no_more(&self, app: &App, other: &App) {
        self.asks(other, 2).await;
        let before = app.asked.load(Ordering::Relaxed);
        self.asks(other, 5).await;
        assert_eq!(app.asked.load(Ordering::Relaxed), before);
    }
}

#[tokio::test]
async fn the_health_of_an_endpoint_follows_what_it_answers() {
    let (one, two) = (App::start().await, App::start().await);
    let mut bench = Bench::start(&[&one, &two], Some(check()));
    bench.asks(&one, 2).await;
    two.well.store(false, Ordering::Relaxed);
    bench.hears(&two, false).await;
    two.well.store(true, Ordering::Relaxed);
    bench.hears(&two, true).await;
    one.well.store(false, Ordering::Relaxed);
    bench.hears(&one, false).await;
    let text = bench.metrics.render();
    for outcome in ["passed", "refused"] {
        let series = format!("tulle_health_checks_total{{service=\"shop/orders:80\",outcome=\"{outcome}\"}}");
        assert!(text.contains(&series), "{text}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_this_proxy_makes_no_endpoint_unhealthy() {
    let app = App::start().await;
    let mut bench = Bench::start(&[&app], Some(HealthCheck { unhealthy_threshold: 1, ..check() }));
    bench.asks(&app, 2).await;
    // Of the mesh from now on; and the proxy has no certificate.
    let id = tulle_certs::SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/orders").unwrap();
    bench.service.set_endpoints(set_of(None, &[&app], &Peer::Mesh(id)));
    bench.store.announce();
    let not_asked = "tulle_health_checks_total{service=\"shop/orders:80\",outcome=\"not_asked\"}";
    while !bench.metrics.render().contains(not_asked) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bench.asks(&app, 5).await;
    assert!(bench.told.try_recv().is_err(), "nobody hears of it");
}

#[tokio::test]
async fn an_endpoint_that_stays_is_asked_on_over_updates_and_one_that_goes_is_not() {
    let (one, two, new) = (App::start().await, App::start().await, App::start().await);
    let mut bench = Bench::start(&[&one, &two], Some(check()));
    one.well.store(false, Ordering::Relaxed);
    bench.hears(&one, false).await;
    // Stays unhealthy: nothing is told of it until it is well.
    let endpoints = set(bench.service.endpoints().as_deref(), &[&one, &new]);
    bench.service.set_endpoints(endpoints);
    bench.store.announce();
    bench.asks_no_more(&two, &new).await;
    one.well.store(true, Ordering::Relaxed);
    bench.hears(&one, true).await;
}

#[tokio::test]
async fn without_its_policy_an_endpoint_is_healthy_and_not_asked() {
    let (one, other) = (App::start().await, App::start().await);
    let mut bench = Bench::start(&[&one], Some(check()));
    one.well.store(false, Ordering::Relaxed);
    bench.hears(&one, false).await;
    bench.service.set_info(info(None));
    bench.store.announce();
    bench.hears(&one, true).await;
    let asks = Bench::start(&[&other], Some(check()));
    asks.asks_no_more(&one, &other).await;
    // Back again, it begins as healthy.
    bench.service.set_info(info(Some(check())));
    bench.store.announce();
    bench.hears(&one, false).await;
    // The service is forgotten.
    bench.store.update(|snapshot| snapshot.services.clear());
    bench.hears(&one, true).await;
    asks.asks_no_more(&one, &other).await;
}

#[tokio::test]
async fn nothing_is_done_where_no_policy_has_a_check() {
    let (one, other) = (App::start().await, App::start().await);
    let bench = Bench::start(&[&one], None);
    let asks = Bench::start(&[&other], Some(check()));
    asks.asks_no_more(&one, &other).await;
    assert_eq!(one.asked.load(Ordering::Relaxed), 0);
    assert!(!bench.metrics.render().contains("tulle_health_checks_total{"));
}

#[tokio::test]
async fn another_check_holds_from_its_coming_on() {
    let app = App::start().await;
    let mut bench = Bench::start(&[&app], Some(HealthCheck { unhealthy_threshold: 1_000_000, ..check() }));
    app.well.store(false, Ordering::Relaxed);
    bench.asks(&app, 3).await;
    bench.service.set_info(info(Some(HealthCheck { interval: Duration::from_millis(20), ..check() })));
    bench.store.announce();
    bench.hears(&app, false).await;
}

#[tokio::test]
async fn what_is_this_workload_itself_is_asked_directly() {
    let (listener, app) = (App::start().await, App::start().await);
    let (store, _questions) = Store::new(Duration::from_secs(1));
    let (store, name) = (Arc::new(store), ObjectName::new("shop", "orders"));
    let service = Arc::new(ServiceState::new(name.clone()));
    service.set_info(info(Some(check())));
    service.set_endpoints(set(None, &[&listener]));
    store.update(|snapshot| drop(snapshot.services.insert(name, service)));
    let (own, application) = (listener.address, app.address);
    let own = move |endpoint: &Endpoint| (endpoint.address == own).then_some(application);
    let prober = Prober::new(store, dial(), own, |_, _, _, _| {}, Metrics::new(1, 2000, &[]), Arc::default());
    tokio::spawn(prober.run());
    while app.asked.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(listener.asked.load(Ordering::Relaxed), 0);
}
