//! Control planes and proxies of neighbouring versions (R12), by recorded messages: this version reads what every recorded version says,
//! as that was read then, and passes over what it does not know yet, or rejects just the resource where passing over would be unsafe.
//!
//! `tests/fixtures/wire/<version>` holds what a version says, to a proxy and from one, a message a line; `mesh.yaml` is what it is
//! made of. `TULLE_RECORD_WIRE=1 cargo test -p tulle-tests --test wire` records this version; what was released is never recorded again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

mod made;
mod served;
mod tree;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use prost::Message;
use protox::prost_reflect::{DescriptorPool, Kind, MessageDescriptor};
use tulle_api::ca::{IstioCertificateRequest, IstioCertificateResponse};
use tulle_api::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use tulle_api::v1::{self, ReportResponse, report_response::Response};
use tulle_api::{ResourceType, VIEW};
use tulle_certs::issue::split_chain;
use tulle_certs::key::csr;
use tulle_certs::{PrivateKey, TrustDomain};
use tulle_proxy::control::decode::{self, Decoded};
use tulle_proxy::telemetry::tap::{Tap, Taps};

use self::made::{NODE, Recorded, fixtures, made};
use self::served::Served;
use self::tree::{Tree, descriptors};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What goes to a proxy, and how this version reads it.
const TO_PROXY: &str = "to-proxy.txt";
const READ: &str = "to-proxy.read.txt";
/// What goes to a control plane.
const FROM_PROXY: &str = "from-proxy.txt";

const CERTIFICATE_REQUEST: &str = "istio.v1.auth.IstioCertificateRequest";
const CERTIFICATE_RESPONSE: &str = "istio.v1.auth.IstioCertificateResponse";
const ADS_REQUEST: &str = "envoy.service.discovery.v3.DeltaDiscoveryRequest";
const ADS_RESPONSE: &str = "envoy.service.discovery.v3.DeltaDiscoveryResponse";
const REPORT_REQUEST: &str = "tulle.v1.ReportRequest";
const REPORT_RESPONSE: &str = "tulle.v1.ReportResponse";

/// Fields that neither end of this version says.
const UNSAID: [&str; 7] = [
    "envoy.service.discovery.v3.Node.metadata",
    "envoy.service.discovery.v3.Resource.aliases",
    "envoy.service.discovery.v3.DeltaDiscoveryResponse.system_version_info",
    "istio.v1.auth.IstioCertificateRequest.metadata",
    // A Service's routes hold for every host (GEP-1426).
    "tulle.v1.HttpRoute.hostnames",
    "tulle.v1.RouteScope.hostnames",
    // Everything was answered when it was asked.
    "tulle.v1.TypeView.in_flight",
];

/// Fields that came after this wire was first recorded: a version without them neither says nor reads them. Whoever adds a field adds it here.
const LATER: [&str; 6] = [
    "tulle.v1.InboundPolicy.authentications",
    "tulle.v1.InboundPolicy.default_audited",
    "tulle.v1.InboundPolicy.default_networks",
    "tulle.v1.InboundPolicy.external",
    "tulle.v1.InboundPolicy.policies",
    "tulle.v1.RateLimit.dry_run",
];

/// What becomes of a message with something in it that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It is passed over.
    Ignored,
    /// The rule of a route answers 500, the others hold.
    Rule,
    /// The resource is rejected, and the last good one holds.
    Resource,
    /// The tap is refused.
    Tap,
}

fn records(what: &str) -> bool {
    std::env::var_os("TULLE_RECORD_WIRE").is_some_and(|set| set == what)
}

/// All that was recorded: versions, and what each says, to a proxy and from one.
fn recorded() -> Vec<(String, Vec<Recorded>, Vec<Recorded>)> {
    let folders = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path());
    let mut versions: Vec<_> = folders
        .filter(|path| path.is_dir())
        .map(|path| {
            let version = path.file_name().unwrap().to_str().unwrap().to_owned();
            (version, read(&path.join(TO_PROXY)), read(&path.join(FROM_PROXY)))
        })
        .collect();
    versions.sort_by(|a, b| a.0.cmp(&b.0));
    versions
}

/// `<message> <bytes in hexadecimal> <label>`, a line each.
fn read(path: &Path) -> Vec<Recorded> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines = text.lines().map(|line| {
        let mut parts = line.splitn(3, ' ');
        let mut part = || parts.next().unwrap_or_else(|| panic!("{line}")).to_owned();
        let (message, hex, label) = (part(), part(), part());
        let bytes = (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap());
        Recorded { message, label, bytes: bytes.collect() }
    });
    lines.collect()
}

fn write(path: &Path, messages: &[Recorded]) {
    let mut text = String::new();
    for Recorded { message, label, bytes } in messages {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(text, "{message} {hex} {label}").unwrap();
    }
    std::fs::write(path, text).unwrap();
}

fn is_by_chance(recorded: &Recorded) -> bool {
    recorded.message.starts_with("istio.")
}

/// The resource type of a message, if it is one.
fn resource(message: &str) -> Option<&'static str> {
    ResourceType::ALL
        .map(ResourceType::type_url)
        .into_iter()
        .find(|url| url.ends_with(&format!("/{message}")))
}

fn tree(pool: &DescriptorPool, recorded: &Recorded) -> Tree {
    let descriptor = pool.get_message_by_name(&recorded.message);
    let descriptor = descriptor.unwrap_or_else(|| panic!("{} is gone from api/proto", recorded.message));
    Tree::read(&descriptor, &recorded.bytes)
}

/// How this version's proxy reads it, as text.
fn told(recorded: &Recorded, bytes: &[u8]) -> String {
    let Recorded { message, label, .. } = recorded;
    if let Some(url) = resource(message) {
        let decoded = decode::decode(url, label, bytes);
        if let Ok(Decoded::Routes(routes)) = &decoded {
            return format!("{routes:#?}\n{:#?}", decode::rejections(label, routes));
        }
        return format!("{decoded:#?}");
    }
    match message.as_str() {
        // What it carries is read where it stands by itself.
        ADS_RESPONSE => {
            let mut response = DeltaDiscoveryResponse::decode(bytes).unwrap();
            for resource in &mut response.resources {
                let body = resource.resource.as_mut().unwrap();
                if resource.name == VIEW {
                    let view = v1::View::decode(&*body.value).unwrap();
                    body.value = format!("{view:?}").into_bytes();
                } else {
                    decode::any(&response.type_url, &resource.name, body).unwrap();
                    body.value.clear();
                }
            }
            format!("{response:#?}")
        }
        REPORT_RESPONSE => format!("{:#?}", ReportResponse::decode(bytes).unwrap()),
        CERTIFICATE_RESPONSE => {
            let response = IstioCertificateResponse::decode(bytes).unwrap();
            let (chain, bundle) = split_chain(&response.cert_chain, &TrustDomain::default()).unwrap();
            format!("{} certificates, {} roots", chain.len(), bundle.roots().len())
        }
        other => panic!("{other} goes to no proxy"),
    }
}

fn read_all(messages: &[Recorded]) -> String {
    let mut text = String::new();
    for recorded in messages {
        let Recorded { message, label, bytes } = recorded;
        writeln!(text, "=== {message} {label}\n{}", told(recorded, bytes)).unwrap();
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn r12_what_is_recorded_of_this_version_is_what_it_says() {
    let folder = fixtures().join(VERSION);
    let (to_proxy, from_proxy) = made();
    if records("1") {
        std::fs::create_dir_all(&folder).unwrap();
        let request = IstioCertificateRequest {
            csr: csr(&PrivateKey::generate().unwrap(), None).unwrap(),
            validity_duration: 3600,
            ..Default::default()
        };
        let by_chance = |message: &str, bytes: Vec<u8>| Recorded {
            message: message.to_owned(),
            label: "a certificate".to_owned(),
            bytes,
        };
        let response = Served::start().await.certify(request.encode_to_vec()).await.unwrap();
        let with = |mut messages: Vec<Recorded>, one: Recorded| {
            messages.push(one);
            messages
        };
        let to_proxy = with(to_proxy, by_chance(CERTIFICATE_RESPONSE, response.encode_to_vec()));
        write(&folder.join(TO_PROXY), &to_proxy);
        std::fs::write(folder.join(READ), read_all(&to_proxy)).unwrap();
        let from_proxy = with(from_proxy, by_chance(CERTIFICATE_REQUEST, request.encode_to_vec()));
        write(&folder.join(FROM_PROXY), &from_proxy);
        return;
    }
    for (file, made) in [(TO_PROXY, to_proxy), (FROM_PROXY, from_proxy)] {
        let known: Vec<Recorded> =
            read(&folder.join(file)).into_iter().filter(|one| !is_by_chance(one)).collect();
        for (made, known) in made.iter().zip(&known) {
            assert!(
                made == known,
                "{} {} is another than in {file} of {VERSION}. If proxies and control planes of that version can live with it, run \
                 `TULLE_RECORD_WIRE=1 cargo test -p tulle-tests --test wire`",
                made.message,
                made.label
            );
        }
        assert_eq!(
            made.len(),
            known.len(),
            "{file}: run `TULLE_RECORD_WIRE=1 cargo test -p tulle-tests --test wire`"
        );
    }
}

#[test]
fn r12_a_proxy_reads_what_every_recorded_version_says_as_it_was_read_then() {
    for (version, to_proxy, _) in recorded() {
        let path = fixtures().join(&version).join(READ);
        let now = read_all(&to_proxy);
        if records("read") {
            std::fs::write(path, now).unwrap();
            continue;
        }
        let then = std::fs::read_to_string(path).unwrap();
        for (now, then) in now.split("=== ").zip(then.split("=== ")) {
            assert_eq!(now, then, "of {version}");
        }
        assert_eq!(now.len(), then.len(), "of {version}");
    }
}

/// What is in no recorded message is held to nothing.
#[test]
fn r12_everything_that_can_be_said_is_said_in_what_is_recorded() {
    let pool = descriptors();
    let (_, to_proxy, from_proxy) = recorded().into_iter().find(|one| one.0 == VERSION).expect("is recorded");
    let mut said = BTreeSet::new();
    let mut wanted = BTreeSet::new();
    for recorded in to_proxy.iter().chain(&from_proxy) {
        tree(&pool, recorded).says(&mut said);
        reach(&pool.get_message_by_name(&recorded.message).unwrap(), &mut wanted);
    }
    // What others carry as bytes.
    for message in ["tulle.v1.View", "tulle.v1.Rejection"] {
        let descriptor = pool.get_message_by_name(message).unwrap();
        reach(&descriptor, &mut wanted);
        for recorded in to_proxy.iter().chain(&from_proxy) {
            for bytes in carried(recorded, message) {
                Tree::read(&descriptor, &bytes).says(&mut said);
            }
        }
    }
    let unsaid: Vec<_> = wanted.difference(&said).filter(|name| !UNSAID.contains(&name.as_str())).collect();
    assert!(
        unsaid.is_empty(),
        "say these in tests/fixtures/wire/mesh.yaml, or in tests/tests/wire/made.rs, and record: {unsaid:#?}"
    );
}

/// The full names of all fields of a message, however deep.
fn reach(message: &MessageDescriptor, reached: &mut BTreeSet<String>) {
    for field in message.fields() {
        if reached.insert(field.full_name().to_owned())
            && let Kind::Message(inner) = field.kind()
            && inner.full_name() != "google.protobuf.Struct"
        {
            reach(&inner, reached);
        }
    }
}

/// The messages of a type that one carries in an `Any`.
fn carried(recorded: &Recorded, message: &str) -> Vec<Vec<u8>> {
    let any = match recorded.message.as_str() {
        ADS_RESPONSE => {
            let response = DeltaDiscoveryResponse::decode(&*recorded.bytes).unwrap();
            response.resources.into_iter().filter_map(|resource| resource.resource).collect()
        }
        ADS_REQUEST => {
            let request = DeltaDiscoveryRequest::decode(&*recorded.bytes).unwrap();
            request.error_detail.map(|status| status.details).unwrap_or_default()
        }
        _ => Vec::new(),
    };
    let of_type = any.into_iter().filter(|any| any.type_url.ends_with(&format!("/{message}")));
    of_type.map(|any| any.value).collect()
}

#[test]
fn r12_a_proxy_passes_over_fields_that_it_does_not_know() {
    let pool = descriptors();
    for (version, to_proxy, _) in recorded() {
        for recorded in &to_proxy {
            let newer = tree(&pool, recorded).with_new_fields().bytes();
            assert!(newer.len() > recorded.bytes.len());
            assert_eq!(
                told(recorded, &newer),
                told(recorded, &recorded.bytes),
                "{} {} of {version}",
                recorded.message,
                recorded.label
            );
        }
    }
}

/// As a control plane says it that knows none of the fields that came later; and as a proxy reads it that knows none of them.
#[test]
fn r12_what_an_older_version_does_not_say_is_not_missed() {
    let pool = descriptors();
    let (_, to_proxy, from_proxy) = recorded().into_iter().find(|one| one.0 == VERSION).expect("is recorded");
    let mut said = BTreeSet::new();
    for recorded in to_proxy.iter().chain(&from_proxy) {
        tree(&pool, recorded).says(&mut said);
    }
    for field in LATER {
        assert!(said.contains(field), "{field} is in nothing that is recorded, or no more in api/proto");
    }
    for recorded in &to_proxy {
        let now = tree(&pool, recorded);
        let older = now.without(&LATER);
        if older == now {
            continue;
        }
        let (of, older) = (format!("{} {}", recorded.message, recorded.label), older.bytes());
        assert_ne!(told(recorded, &older), told(recorded, &recorded.bytes), "{of} says nothing by it");
        assert_eq!(fate(recorded, &older), fate(recorded, &recorded.bytes), "{of}");
    }
}

/// What becomes of what a newer control plane may say at each place where it chooses between several things.
#[test]
fn r12_a_proxy_lives_with_choices_that_it_does_not_know() {
    let pool = descriptors();
    let mut fates: BTreeMap<String, BTreeSet<Fate>> = BTreeMap::new();
    for (_, to_proxy, _) in recorded() {
        for recorded in &to_proxy {
            for newer in tree(&pool, recorded).newer() {
                let fate = fate(recorded, &newer.bytes);
                fates.entry(newer.place).or_default().insert(fate);
            }
        }
    }
    let mut table = String::from("| at | the proxy |\n| --- | --- |\n");
    for (place, fates) in &fates {
        let words: Vec<&str> = fates.iter().map(|fate| fate.words()).collect();
        writeln!(table, "| `{}` | {} |", place.trim_start_matches("tulle.v1."), words.join(", or ")).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/wire.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once("<!-- choices -->\n").unwrap();
    let (written, after) = rest.split_once("<!-- end of choices -->").unwrap();
    if std::env::var_os("TULLE_UPDATE_DOCS").is_some() {
        let page = format!("{before}<!-- choices -->\n\n{table}\n<!-- end of choices -->{after}");
        std::fs::write(&path, page).unwrap();
        return;
    }
    assert_eq!(
        written.trim(),
        table.trim(),
        "run `TULLE_UPDATE_DOCS=1 cargo test -p tulle-tests --test wire`"
    );
}

fn fate(recorded: &Recorded, bytes: &[u8]) -> Fate {
    let Some(url) = resource(&recorded.message) else {
        let response = ReportResponse::decode(bytes).unwrap_or_else(|error| panic!("{recorded:?}: {error}"));
        let Some(Response::Tap(tap)) = response.response else { return Fate::Ignored };
        let queue = tokio::sync::mpsc::channel(1).0;
        return Tap::new(&tap, &Taps::default(), queue).map_or(Fate::Tap, |_| Fate::Ignored);
    };
    let check = |rejection: &v1::Rejection| {
        assert_eq!(rejection.resource, recorded.label);
        assert!(!rejection.field.is_empty() && !rejection.reason.is_empty(), "{rejection:?}");
    };
    match decode::decode(url, &recorded.label, bytes) {
        Err(rejection) => {
            check(&rejection);
            Fate::Resource
        }
        Ok(Decoded::Routes(routes)) => {
            let rejections = decode::rejections(&recorded.label, &routes);
            rejections.iter().for_each(check);
            if rejections.is_empty() { Fate::Ignored } else { Fate::Rule }
        }
        Ok(_) => Fate::Ignored,
    }
}

impl Fate {
    fn words(self) -> &'static str {
        match self {
            Self::Ignored => "passes it over",
            Self::Rule => "rejects the rule, which answers 500; the others hold",
            Self::Resource => "rejects the resource; its last good version holds",
            Self::Tap => "refuses the tap",
        }
    }
}

/// A control plane takes the whole of what a proxy of each version says, as it is and with fields and choices that nobody knows yet.
#[tokio::test(flavor = "multi_thread")]
async fn r12_a_control_plane_takes_what_every_recorded_version_says() {
    let pool = descriptors();
    for (version, _, from_proxy) in recorded() {
        let with_new = |recorded: &Recorded| tree(&pool, recorded).with_new_fields().bytes();
        let as_it_is: Vec<Vec<u8>> = from_proxy.iter().map(|one| one.bytes.clone()).collect();
        takes(&version, &from_proxy, &as_it_is).await;
        let without = |recorded: &Recorded| tree(&pool, recorded).without(&LATER).bytes();
        let older: Vec<Vec<u8>> = from_proxy.iter().map(without).collect();
        if older != as_it_is {
            takes(&format!("{version}, without later fields"), &from_proxy, &older).await;
        }
        let newer: Vec<Vec<u8>> = from_proxy.iter().map(with_new).collect();
        takes(&format!("{version}, with new fields"), &from_proxy, &newer).await;
        let served = Served::start().await;
        let creds = served.join().await;
        for recorded in from_proxy.iter().filter(|one| one.message == REPORT_REQUEST) {
            for newer in tree(&pool, recorded).newer() {
                let mut reports = served.reports(&creds).await;
                if !recorded.label.starts_with("registration") {
                    // Who it is comes first.
                    reports.say(v1::ReportRequest { node: Some(node()), report: None }.encode_to_vec()).await;
                }
                reports.say(newer.bytes).await;
                registers(&mut reports, &newer.place).await;
            }
        }
    }
}

fn node() -> Node {
    Node { id: NODE.to_owned(), ..Node::default() }
}

async fn takes(what: &str, messages: &[Recorded], bytes: &[Vec<u8>]) {
    let served = Served::start().await;
    let creds = served.join().await;
    let (mut ads, mut reports) = (served.ads(&creds).await, served.reports(&creds).await);
    for (recorded, bytes) in messages.iter().zip(bytes) {
        match recorded.message.as_str() {
            ADS_REQUEST => {
                if recorded.label == "resume"
                    && DeltaDiscoveryRequest::decode(&**bytes).unwrap().node.is_some()
                {
                    heard(&mut ads, what).await;
                    ads = served.ads(&creds).await;
                }
                ads.say(bytes.clone()).await;
            }
            REPORT_REQUEST => reports.say(bytes.clone()).await,
            CERTIFICATE_REQUEST => {
                let answer = served.certify(bytes.clone()).await;
                let answer = answer.unwrap_or_else(|status| panic!("{what}: {status}"));
                split_chain(&answer.cert_chain, &TrustDomain::default()).unwrap();
            }
            other => panic!("{other} goes to no control plane"),
        }
    }
    heard(&mut ads, what).await;
    registers(&mut reports, what).await;
    let model = served.control_plane.publisher().model();
    let endpoints = model.get(ResourceType::Endpoints, "shop/orders").unwrap();
    let endpoints = v1::Endpoints::decode(endpoints.bytes.clone()).unwrap();
    let ours = endpoints.endpoints.iter().find(|one| one.workload == NODE).expect("is registered");
    assert_eq!((&*ours.address, ours.ports[0].port, ours.ready), ("10.2.0.1", 8080, true), "{what}");
}

/// The stream lives: it answers what is asked last.
async fn heard(ads: &mut served::Raw<DeltaDiscoveryResponse>, what: &str) {
    let request = DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: ResourceType::Address.type_url().to_owned(),
        resource_names_subscribe: vec!["203.0.113.7".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    ads.say(request.encode_to_vec()).await;
    loop {
        let response = ads.hear().await.unwrap_or_else(|status| panic!("{what}: {status}"));
        if response.removed_resources == ["203.0.113.7"] {
            return;
        }
    }
}

/// The stream lives: a registration is answered.
async fn registers(reports: &mut served::Raw<ReportResponse>, what: &str) {
    let ports = vec![v1::RegisteredPort { service_port: 80, port: 8080 }];
    let registration = v1::Registration {
        address: "10.2.0.1".to_owned(),
        services: vec![v1::RegisteredService { name: "orders".to_owned(), ports }],
        locality: None,
        ready: true,
    };
    let report = Some(v1::report_request::Report::Registration(registration));
    reports.say(v1::ReportRequest { node: Some(node()), report }.encode_to_vec()).await;
    loop {
        let response = reports.hear().await.unwrap_or_else(|status| panic!("{what}: {status}"));
        if matches!(response.response, Some(Response::Registered(_))) {
            return;
        }
    }
}
