//! What holds for every TLS configuration and for every type that has a secret in it, whoever uses them. `docs/security.md` names these tests.
#![allow(clippy::disallowed_methods, reason = "clients of others are built here, to be refused")]

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::version::TLS12;
use rustls::{AlertDescription, ClientConfig, ClientConnection, NamedGroup, ServerConfig, ServerConnection};
use zeroize::ZeroizeOnDrop;

use crate::bundle::Pin;
use crate::creds::server_name;
use crate::id::{SpiffeId, TrustDomain};
use crate::issue::Authority;
use crate::key::csr;
use crate::serving::ServingAuthority;
use crate::token::TokenFile;
use crate::{Alpn, Creds, PodToken, PrivateKey, alpn, bootstrap, outside, pem, tls};

const DAY: Duration = Duration::from_secs(86_400);

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&TrustDomain::default(), "shop", account).unwrap()
}

fn authority() -> Authority {
    Authority::generate(&TrustDomain::default(), DAY, SystemTime::now()).unwrap()
}

fn creds(authority: &Authority) -> Creds {
    let (key, now) = (PrivateKey::generate().unwrap(), SystemTime::now());
    let issued = authority.issue(&csr(&key, None).unwrap(), &id("web"), DAY / 2, now).unwrap();
    Creds::new(issued.chain, key, Arc::new(authority.bundle().clone()), now).unwrap()
}

fn webhook() -> Arc<ServerConfig> {
    let now = SystemTime::now();
    let authority = ServingAuthority::generate("x", DAY, now).unwrap();
    let serving = authority.issue(&["a.svc".to_owned()], DAY, now).unwrap();
    serving.server_config(&[b"http/1.1"]).unwrap()
}

/// Every client that we are.
fn clients(authority: &Authority, creds: &Creds) -> [(&'static str, Arc<ClientConfig>); 5] {
    let bundle = authority.bundle();
    let pinned = bootstrap::pinned(Pin::of(&bundle.roots()[0]).unwrap(), &TrustDomain::default());
    [
        ("to proxies", creds.client(&id("orders"), Alpn::H2)),
        ("to the control plane", creds.client(&id("orders"), Alpn::Grpc)),
        ("joining", pinned.unwrap()),
        ("joining with roots", bootstrap::with_bundle(Arc::new(bundle.clone())).unwrap()),
        ("to servers outside", outside::client(bundle.roots().to_vec(), &[b"h2"]).unwrap()),
    ]
}

/// What a client says first.
fn hello(config: Arc<ClientConfig>) -> Vec<u8> {
    let mut client = ClientConnection::new(config, server_name()).unwrap();
    let mut hello = Vec::new();
    while client.wants_write() {
        client.write_tls(&mut hello).unwrap();
    }
    hello
}

#[test]
fn every_client_offers_the_post_quantum_group_first_and_a_key_for_it() {
    assert_eq!(tls::provider().kx_groups[0].name(), NamedGroup::X25519MLKEM768);
    let authority = authority();
    for (whose, config) in clients(&authority, &creds(&authority)) {
        let hello = hello(config);
        // supported_groups (RFC 8446 §4.2.7): its number, two lengths, the first group.
        let group = u16::from(NamedGroup::X25519MLKEM768).to_be_bytes();
        let first = hello.windows(8).any(|at| at[..2] == [0, 10] && at[6..] == group);
        assert!(first, "{whose}");
        // ML-KEM-768's key alone has 1184 bytes (FIPS 203, table 3).
        assert!(hello.len() > 1184, "{whose}: {} bytes", hello.len());
    }
}

#[test]
fn clients_of_tls_1_2_are_refused_by_proxies_and_by_the_control_plane() {
    let creds = creds(&authority());
    for (server, protocol) in [(creds.inbound(), alpn::HTTP1), (creds.control_plane(), alpn::GRPC)] {
        let mut config = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS12])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = vec![protocol.to_vec()];
        let mut client = ClientConnection::new(Arc::new(config), server_name()).unwrap();
        let mut server = ServerConnection::new(server).unwrap();
        let mut said = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut said).unwrap();
        }
        server.read_tls(&mut said.as_slice()).unwrap();
        let refused = server.process_new_packets().unwrap_err();
        assert!(matches!(refused, rustls::Error::PeerIncompatible(_)), "{refused}");
        let mut answer = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut answer).unwrap();
        }
        client.read_tls(&mut answer.as_slice()).unwrap();
        let alert = client.process_new_packets().unwrap_err();
        assert_eq!(alert, rustls::Error::AlertReceived(AlertDescription::ProtocolVersion));
    }
}

#[test]
fn no_server_gives_a_ticket_or_takes_early_data_and_no_client_sends_any() {
    let authority = authority();
    let creds = creds(&authority);
    for (whose, server) in
        [("inbound", creds.inbound()), ("control plane", creds.control_plane()), ("webhook", webhook())]
    {
        assert_eq!((server.send_tls13_tickets, server.max_early_data_size), (0, 0), "{whose}");
        assert!(!server.session_storage.can_cache() && !server.ticketer.enabled(), "{whose}");
    }
    for (whose, client) in clients(&authority, &creds) {
        assert!(!client.enable_early_data, "{whose}");
    }
}

/// Compiles only if the value wipes itself.
fn wipes<T: ZeroizeOnDrop>(_: &T) {}

#[test]
fn what_holds_a_key_or_a_token_wipes_it() {
    let key = PrivateKey::generate().unwrap();
    let text = key.to_pem();
    wipes(&text);
    wipes(&pem::blocks(&text).unwrap()[0].der);
    let file = TokenFile::new("a.b.c".to_owned(), Pin::of_spki(b"root"));
    wipes(&file.token);
    wipes(&file.to_text());
    let claims = "eyJrdWJlcm5ldGVzLmlvIjp7Im5hbWVzcGFjZSI6InMiLCJzZXJ2aWNlYWNjb3VudCI6eyJuYW1lIjoidyJ9fX0";
    wipes(&PodToken::parse(&format!("e30.{claims}.c2ln")).unwrap().token);
}

#[test]
fn tokens_are_told_apart_by_all_of_their_bytes_and_of_their_pin() {
    let file = |token: &str, root: &[u8]| TokenFile::new(token.to_owned(), Pin::of_spki(root));
    assert_eq!(file("a.b.c", b"root"), file("a.b.c", b"root"));
    for other in
        [file("a.b.d", b"root"), file("b.b.c", b"root"), file("a.b.c", b"other"), file("a.b.", b"root")]
    {
        assert_ne!(file("a.b.c", b"root"), other);
    }
}
