//! A mesh with one service, and a name server outside that the test plays.

use std::str::FromStr;

use hickory_resolver::proto::op::Edns;
use hickory_resolver::proto::rr::RecordType;
use hickory_resolver::proto::rr::rdata::A;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::*;
use crate::endpoint::EndpointSet;
use crate::route::{Routes, Table};
use crate::state::{Protocol, ServicePort, ServiceState, Want};

/// Knows `shop/orders` and `shop/silent`, which the control plane never answers about; nothing else exists.
fn mesh() -> Arc<Store> {
    let (store, mut wants) = Store::new(Duration::from_secs(1));
    let store = Arc::new(store);
    let answering = Arc::clone(&store);
    tokio::spawn(async move {
        while let Some(want) = wants.recv().await {
            let Want::Service(name) = want else { continue };
            if &*name.name == "silent" {
                continue;
            }
            let state = Arc::new(ServiceState::new(name.clone()));
            if &*name.name == "orders" {
                state.set_info(Some(Arc::new(orders(name.clone()))));
                state.set_routes(Some(Arc::new(Table::new(routes(name.clone())))));
            } else {
                state.set_info(None);
                state.set_routes(None);
            }
            state.set_endpoints(EndpointSet::default());
            answering.update(|snapshot| drop(snapshot.services.insert(name, state)));
        }
    });
    store
}

fn routes(service: ObjectName) -> Routes {
    Routes { client_namespace: "shop".into(), service, routes: Vec::new(), streams: Vec::new() }
}

fn orders(name: ObjectName) -> ServiceInfo {
    let addresses = ["198.18.0.7", "fd74:756c:6c65::7"].map(|ip| ip.parse().unwrap()).to_vec();
    let port = ServicePort {
        port: 8080,
        name: "http".to_owned(),
        protocol: Protocol::Http,
        traffic: Arc::default(),
    };
    ServiceInfo { name, addresses, ports: vec![port] }
}

/// Says 192.0.2.1 to everything but `nothing.example.`; tells what it was asked.
async fn outside() -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let (asked, questions) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut space = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut space).await {
            let request = Message::from_vec(&space[..length]).unwrap();
            let query = request.queries[0].clone();
            let _ = asked.send(query.name().to_string());
            let none = query.name().to_string() == "nothing.example.";
            let code = if none { ResponseCode::NXDomain } else { ResponseCode::NoError };
            let mut response = answer::response(&request, code);
            if !none && query.query_type() == RecordType::A {
                let address = RData::A(A([192, 0, 2, 1].into()));
                response.add_answer(Record::from_rdata(query.name().clone(), 60, address));
            }
            socket.send_to(&response.to_vec().unwrap(), from).await.unwrap();
        }
    });
    (address, questions)
}

fn dns(servers: Servers) -> Dns {
    let metrics = Arc::new(ControlMetrics::default());
    Dns::new(mesh(), metrics, "shop".into(), "Cluster.Local.", servers, Vec::new(), Default::default())
        .unwrap()
}

fn question(name: &str, record_type: RecordType) -> Message {
    let mut request = Message::query();
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(Name::from_str(name).unwrap(), record_type));
    request
}

async fn ask(dns: &Dns, name: &str, record_type: RecordType) -> Message {
    let request = question(name, record_type);
    let (response, _) = dns.answer(&request.to_vec().unwrap()).await.unwrap();
    assert_eq!(response.metadata.id, request.metadata.id);
    assert_eq!(response.queries, request.queries);
    // Over the wire and back.
    Message::from_vec(&response.to_vec().unwrap()).unwrap()
}

fn said(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn a_service_is_answered_by_its_virtual_ips_and_nobody_outside_hears_of_it() {
    let (address, mut asked) = outside().await;
    let dns = dns(Servers::Fixed(vec![address]));
    for name in ["orders.", "orders.shop.", "orders.shop.svc.", "Orders.shop.svc.cluster.local."] {
        let response = ask(&dns, name, RecordType::A).await;
        assert_eq!(said(&response), ["198.18.0.7"], "{name}");
        assert!(response.metadata.authoritative);
        assert_eq!(said(&ask(&dns, name, RecordType::AAAA).await), ["fd74:756c:6c65::7"], "{name}");
        let none = ask(&dns, name, RecordType::TXT).await;
        assert_eq!(
            (none.metadata.response_code, none.answers.len(), none.authorities.len()),
            (ResponseCode::NoError, 0, 1)
        );
    }
    let response = ask(&dns, "_http._tcp.orders.shop.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(said(&response), ["0 100 8080 orders.shop.svc.cluster.local."]);
    for absent in
        ["_web._tcp.orders.shop.svc.cluster.local.", "gone.shop.svc.cluster.local.", "x.cluster.local."]
    {
        let response = ask(&dns, absent, RecordType::A).await;
        assert_eq!(response.metadata.response_code, ResponseCode::NXDomain, "{absent}");
        assert_eq!(response.authorities.len(), 1, "so that it can be kept");
    }
    assert_eq!(said(&ask(&dns, "localhost.", RecordType::A).await), ["127.0.0.1"]);
    assert!(asked.try_recv().is_err());
}

#[tokio::test]
async fn what_is_not_the_meshs_is_asked_outside_once_and_kept() {
    let (address, mut asked) = outside().await;
    let dns = dns(Servers::Fixed(vec![address]));
    for _ in 0..3 {
        let response = ask(&dns, "www.example.com.", RecordType::A).await;
        assert_eq!(said(&response), ["192.0.2.1"]);
        assert!(!response.metadata.authoritative);
    }
    // Names that a service could have.
    assert_eq!(said(&ask(&dns, "printer.", RecordType::A).await), ["192.0.2.1"]);
    let none = ask(&dns, "nothing.example.", RecordType::A).await;
    assert_eq!(none.metadata.response_code, ResponseCode::NXDomain);
    let mut names = Vec::new();
    while let Ok(name) = asked.try_recv() {
        names.push(name);
    }
    assert_eq!(names, ["www.example.com.", "printer.", "nothing.example."]);
}

#[tokio::test(start_paused = true)]
async fn without_a_word_from_the_control_plane_only_what_can_be_nothing_else_fails() {
    let dns = dns(Servers::Fixed(Vec::new()));
    let before = tokio::time::Instant::now();
    let response = ask(&dns, "silent.shop.svc.cluster.local.", RecordType::A).await;
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(before.elapsed(), Duration::from_secs(1));
    // It may be a name outside: it is not held up for long. Here nobody is there to ask.
    let response = ask(&dns, "silent.", RecordType::A).await;
    assert_eq!(response.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(before.elapsed(), Duration::from_secs(1) + PATIENCE);
}

#[tokio::test]
async fn a_cluster_that_is_there_is_asked_about_its_own_names() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resolv.conf");
    // Nobody is there; that it was asked shows.
    std::fs::write(&file, "nameserver 127.0.0.1\nsearch shop.svc.cluster.local svc.cluster.local\n").unwrap();
    let dns = dns(Servers::File(file.clone()));
    let name = "web-0.orders.shop.svc.cluster.local.";
    assert_eq!(ask(&dns, name, RecordType::A).await.metadata.response_code, ResponseCode::ServFail);
    let elsewhere = self::dns(Servers::Fixed(vec!["127.0.0.1:53".parse().unwrap()]));
    assert_eq!(ask(&elsewhere, name, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn what_is_no_question_of_ours_is_refused_as_it_should_be() {
    let dns = dns(Servers::Fixed(Vec::new()));
    let code =
        async |message: &[u8]| dns.answer(message).await.map(|(response, _)| response.metadata.response_code);
    let mut request = question("orders.", RecordType::A);
    let mut two = request.clone();
    two.add_query(request.queries[0].clone());
    assert_eq!(code(&two.to_vec().unwrap()).await, Some(ResponseCode::FormErr));
    let mut chaos = request.clone();
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()).await, Some(ResponseCode::Refused));
    let mut update = request.clone();
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(code(&update.to_vec().unwrap()).await, Some(ResponseCode::NotImp));
    let mut response = request.clone();
    response.metadata.message_type = MessageType::Response;
    assert_eq!(code(&response.to_vec().unwrap()).await, None, "two servers would answer each other for ever");
    // A header that promises a question that is not there.
    assert_eq!(code(&[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await, Some(ResponseCode::FormErr));
    assert_eq!(code(&[0xab, 0xcd, 0x81, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await, None);
    for length in 0..12 {
        assert_eq!(code(&vec![0xff; length]).await, None);
    }
    let mut edns = Edns::new();
    edns.set_version(1);
    request.set_edns(edns);
    assert_eq!(code(&request.to_vec().unwrap()).await, Some(ResponseCode::BADVERS));
}

#[tokio::test]
async fn questions_come_over_udp_and_tcp_and_what_is_too_large_is_cut() {
    let sockets = Sockets::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = sockets.address().unwrap();
    let error = Sockets::bind(address).await.unwrap_err();
    assert!(error.to_string().contains("TULLE_PROXY_DNS_LISTEN"), "{error}");
    let (outside, _asked) = outside().await;
    let serving = tokio::spawn(sockets.serve(Arc::new(dns(Servers::Fixed(vec![outside])))));
    let request = question("orders.", RecordType::A).to_vec().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&request, address).await.unwrap();
    let mut space = [0; 4096];
    let (length, _) = socket.recv_from(&mut space).await.unwrap();
    assert_eq!(said(&Message::from_vec(&space[..length]).unwrap()), ["198.18.0.7"]);

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        stream.write_all(&u16::try_from(request.len()).unwrap().to_be_bytes()).await.unwrap();
        stream.write_all(&request).await.unwrap();
        let length = stream.read_u16().await.unwrap();
        let mut response = vec![0; usize::from(length)];
        stream.read_exact(&mut response).await.unwrap();
        assert_eq!(said(&Message::from_vec(&response).unwrap()), ["198.18.0.7"]);
    }
    serving.abort();
}
