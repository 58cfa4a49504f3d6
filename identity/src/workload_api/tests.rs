//! Against a small server on a unix socket.

use std::path::Path;
use std::pin::Pin;
use std::sync::Mutex;

use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::Stream;
use tokio_stream::wrappers::{UnboundedReceiverStream, UnixListenerStream};
use tonic::Response;
use tulle_api::workload::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};

use super::*;
use crate::testing::{HOUR, Remembers, authority, creds, failed, id, pkcs8, taken};

type Responses = Pin<Box<dyn Stream<Item = Result<X509svidResponse, Status>> + Send>>;

/// What is told on each new stream, and to the streams that are open.
#[derive(Default)]
struct Told {
    now: Option<Result<X509svidResponse, Status>>,
    streams: Vec<mpsc::UnboundedSender<Result<X509svidResponse, Status>>>,
}

#[derive(Clone, Default)]
struct Agent(Arc<Mutex<Told>>);

#[tonic::async_trait]
impl SpiffeWorkloadApi for Agent {
    type FetchX509SVIDStream = Responses;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        if request.metadata().get(SECURITY_HEADER).is_none_or(|value| value != "true") {
            return Err(Status::invalid_argument("the security header is missing"));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut told = self.0.lock().unwrap();
        match &told.now {
            Some(Err(status)) => return Err(status.clone()),
            Some(Ok(response)) => sender.send(Ok(response.clone())).unwrap(),
            None => {}
        }
        told.streams.push(sender);
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(receiver))))
    }
}

impl Agent {
    /// On a socket, until the handle is aborted.
    fn serve(&self, path: &Path) -> AbortHandle {
        let _gone = std::fs::remove_file(path);
        let listener = UnixListenerStream::new(UnixListener::bind(path).unwrap());
        let service = SpiffeWorkloadApiServer::new(self.clone());
        let serving = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(serving.serve_with_incoming(listener)).abort_handle()
    }

    fn tell(&self, response: X509svidResponse) {
        let mut told = self.0.lock().unwrap();
        told.streams.retain(|stream| stream.send(Ok(response.clone())).is_ok());
        told.now = Some(Ok(response));
    }

    fn refuse(&self, status: Status) {
        let mut told = self.0.lock().unwrap();
        told.streams.clear();
        told.now = Some(Err(status));
    }
}

fn svid(creds: &Creds, hint: &str) -> X509svid {
    X509svid {
        spiffe_id: creds.id().to_string(),
        x509_svid: creds.chain().iter().flat_map(|der| der.to_vec()).collect::<Vec<u8>>().into(),
        x509_svid_key: pkcs8(creds).into(),
        bundle: creds.bundle().roots().iter().flat_map(|der| der.to_vec()).collect::<Vec<u8>>().into(),
        hint: hint.to_owned(),
    }
}

fn response(svids: Vec<X509svid>) -> X509svidResponse {
    X509svidResponse { svids, ..X509svidResponse::default() }
}

fn api(path: &Path) -> WorkloadApi {
    WorkloadApi { address: Address::Unix(path.to_owned()), wanted: None, hint: None }
}

#[tokio::test]
async fn what_changes_is_taken_as_it_comes_and_a_broken_stream_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let (authority, agent) = (authority(), Agent::default());
    let [first, second, third] = [(); 3].map(|()| creds(&authority, "web", HOUR));
    agent.tell(response(vec![svid(&first, "")]));
    let serving = agent.serve(&socket);
    let (mut follower, mut heard) = Remembers::new();
    let followed = api(&socket);
    let following = tokio::spawn(async move { followed.follow(&mut follower).await });
    assert_eq!(taken(&mut heard).await.chain(), first.chain());
    agent.tell(response(vec![svid(&first, "")]));
    agent.tell(response(vec![svid(&second, "")]));
    assert_eq!(taken(&mut heard).await.chain(), second.chain(), "what is the same is not taken again");

    // What cannot be used costs nothing but a word.
    agent.tell(response(Vec::new()));
    assert!(failed(&mut heard).await.contains("no identity for this process"));
    let broken = X509svid { x509_svid_key: pkcs8(&first).into(), ..svid(&third, "") };
    agent.tell(response(vec![broken]));
    assert!(failed(&mut heard).await.contains("not issued for this private key"));

    // The agent is restarted, with something new to tell.
    serving.abort();
    agent.refuse(Status::unavailable("ending"));
    assert!(failed(&mut heard).await.contains("agent.sock"));
    agent.tell(response(vec![svid(&third, "")]));
    let serving = agent.serve(&socket);
    let taken = loop {
        if let crate::testing::Heard::Creds(creds) = heard.recv().await.unwrap() {
            break creds;
        }
    };
    assert_eq!(taken.chain(), third.chain());
    following.abort();
    serving.abort();
}

#[tokio::test]
async fn who_is_not_registered_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let agent = Agent::default();
    agent.refuse(Status::permission_denied("no identity issued"));
    let serving = agent.serve(&socket);
    let (mut follower, mut heard) = Remembers::new();
    let (followed, missing) = (api(&socket), api(&folder.path().join("nowhere")));
    let following = tokio::spawn(async move { followed.follow(&mut follower).await });
    let error = failed(&mut heard).await;
    assert!(error.contains("no identity issued") && error.contains("register"), "{error}");
    following.abort();
    serving.abort();
    let (mut follower, mut heard) = Remembers::new();
    let following = tokio::spawn(async move { missing.follow(&mut follower).await });
    let error = failed(&mut heard).await;
    assert!(error.contains("nowhere") && error.contains("No such file"), "{error}");
    following.abort();
}

#[test]
fn of_several_the_one_that_is_asked_for_is_taken_else_the_first() {
    let authority = authority();
    let several = ["web", "orders", "billing"].map(|name| creds(&authority, name, HOUR));
    let svids: Vec<X509svid> =
        several.iter().zip(["", "shop", "books"]).map(|(creds, hint)| svid(creds, hint)).collect();
    let now = SystemTime::now();
    let read = |wanted: Option<&str>, hint: Option<&str>| {
        let api = WorkloadApi {
            wanted: wanted.map(id),
            hint: hint.map(str::to_owned),
            ..api(Path::new("/agent.sock"))
        };
        api.read(&response(svids.clone()), None, now).map(|creds| creds.unwrap().id().clone())
    };
    assert_eq!(read(None, None).unwrap(), id("web"));
    assert_eq!(read(Some("billing"), None).unwrap(), id("billing"));
    assert_eq!(read(None, Some("shop")).unwrap(), id("orders"));
    assert_eq!(read(Some("orders"), Some("shop")).unwrap(), id("orders"));
    for (wanted, hint) in [(Some("nobody"), None), (None, Some("none")), (Some("web"), Some("shop"))] {
        let error = read(wanted, hint).unwrap_err().to_string();
        assert!(error.contains("sa/web") && error.contains("register"), "{error}");
    }
}

#[test]
fn what_cannot_be_an_identity_of_ours_is_told() {
    let (authority, now) = (authority(), SystemTime::now());
    let good = svid(&creds(&authority, "web", HOUR), "");
    let other = svid(&creds(&authority, "orders", HOUR), "");
    let cases = [
        (X509svid { spiffe_id: "spiffe://cluster.local/web".into(), ..good.clone() }, "/ns/<namespace>/sa/"),
        (X509svid { spiffe_id: other.spiffe_id, ..good.clone() }, "sa/orders"),
        (X509svid { x509_svid: Vec::new().into(), ..good.clone() }, "there is no certificate"),
        (X509svid { x509_svid: vec![1, 2, 3].into(), ..good.clone() }, "certificate 1"),
        (X509svid { bundle: Vec::new().into(), ..good.clone() }, "the bundle"),
        (X509svid { x509_svid_key: vec![0; 40].into(), ..good.clone() }, "the key"),
    ];
    for (svid, word) in cases {
        let error = api(Path::new("/agent.sock")).read(&response(vec![svid]), None, now).unwrap_err();
        let error = error.to_string();
        assert!(error.contains(word) && error.contains("unix:///agent.sock"), "{word}: {error}");
    }
}

#[test]
fn bundles_of_other_trust_domains_are_told_once_and_not_used() {
    let (authority, api) = (authority(), api(Path::new("/agent.sock")));
    let own = creds(&authority, "web", HOUR);
    let federated = |domains: &[&str]| X509svidResponse {
        federated_bundles: domains.iter().map(|one| ((*one).to_owned(), vec![1, 2, 3].into())).collect(),
        ..response(vec![svid(&own, "")])
    };
    let mut known = BTreeSet::new();
    let both = ["spiffe://a.example", "spiffe://b.example"];
    for (domains, told) in [(&both[..0], false), (&both[..], true), (&both[..], false), (&both[..1], true)] {
        assert_eq!(api.pass_over(&federated(domains), &mut known), told, "{domains:?}");
    }
    assert!(!api.pass_over(&federated(&[]), &mut known) && known.is_empty());
    // Be they what they may.
    let read = api.read(&federated(&both), None, SystemTime::now()).unwrap().unwrap();
    assert_eq!(read.bundle(), own.bundle());
}

#[test]
fn addresses() {
    for (text, shown) in [
        ("unix:///run/spire/agent.sock", "unix:///run/spire/agent.sock"),
        ("unix:/run/agent.sock", "unix:///run/agent.sock"),
        ("tcp://127.0.0.1:8081", "tcp://127.0.0.1:8081"),
        ("tcp://[::1]:8081", "tcp://[::1]:8081"),
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), shown);
    }
    for bad in [
        "",
        "/run/agent.sock",
        "unix://run/agent.sock",
        "unix:agent.sock",
        "unix:///",
        "unix:///a?b",
        "tcp://localhost:8081",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:80/path",
        "http://127.0.0.1:80",
    ] {
        assert!(bad.parse::<Address>().is_err(), "{bad}");
    }
    assert!(!"tcp://[::ffff:127.0.0.1]:80".parse::<Address>().unwrap().is_of_another_host());
    assert!("tcp://10.0.0.1:80".parse::<Address>().unwrap().is_of_another_host());
}
