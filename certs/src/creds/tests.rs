//! Every refusal through real handshakes, in memory.

use std::time::Duration;

use rcgen::{CertificateParams, IsCa, SanType};
use rustls::{ClientConnection, Connection, NamedGroup, ProtocolVersion, ServerConnection};

use super::*;
use crate::bootstrap;
use crate::bundle::Pin;
use crate::id::{TrustDomain, control_plane_id};
use crate::issue::{Authority, Issued, ROOT_LIFETIME};
use crate::key::csr;
use crate::refusal::{describe_io, refusal_of, refused_by_peer};
use crate::verify::peer_id;

const DAY: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug, Clone, Copy)]
struct Clock(SystemTime);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(self.0))))
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn domain() -> TrustDomain {
    TrustDomain::default()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

fn authority() -> Authority {
    Authority::generate(&domain(), ROOT_LIFETIME, now()).unwrap()
}

fn issue(authority: &Authority, id: &SpiffeId) -> (Issued, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let request = csr(&key, None).unwrap();
    (authority.issue(&request, id, DAY, now()).unwrap(), key)
}

fn creds_at(authority: &Authority, id: &SpiffeId, clock: SystemTime) -> Creds {
    let (issued, key) = issue(authority, id);
    let bundle = Arc::new(authority.bundle().clone());
    Creds::with_clock(issued.chain, key, bundle, now(), Arc::new(Clock(clock))).unwrap()
}

fn creds(authority: &Authority, account: &str) -> Creds {
    creds_at(authority, &id(account), now())
}

/// A client configuration that presents whatever it is told and trusts anyone of the authority.
fn client_presenting(
    own: &Creds,
    chain: Option<Vec<CertificateDer<'static>>>,
    key: &PrivateKey,
    to: &SpiffeId,
) -> Arc<ClientConfig> {
    let expected = Expected::Peer(own.bundle().clone(), to.clone());
    let verifier = Arc::new(ServerVerifier::new(expected, &own.provider));
    let certified = chain.map(|chain| Arc::new(CertifiedKey::new(chain, key.signer().unwrap())));
    Arc::new(
        tls::client(own.provider.clone(), own.clock.clone(), certified, verifier, &[alpn::HTTP1]).unwrap(),
    )
}

struct Ended {
    client: ClientConnection,
    server: ServerConnection,
    client_error: Option<rustls::Error>,
    server_error: Option<rustls::Error>,
}

/// Runs a handshake until nothing more is said.
fn handshake(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> Ended {
    let mut ended = Ended {
        client: ClientConnection::new(client, server_name()).unwrap(),
        server: ServerConnection::new(server).unwrap(),
        client_error: None,
        server_error: None,
    };
    for _ in 0..10 {
        let mut client = Connection::Client(ended.client);
        let mut server = Connection::Server(ended.server);
        pass(&mut client, &mut server, &mut ended.server_error);
        pass(&mut server, &mut client, &mut ended.client_error);
        let (Connection::Client(client), Connection::Server(server)) = (client, server) else {
            unreachable!()
        };
        (ended.client, ended.server) = (client, server);
    }
    ended
}

fn pass(from: &mut Connection, to: &mut Connection, error: &mut Option<rustls::Error>) {
    while from.wants_write() {
        let mut bytes = Vec::new();
        from.write_tls(&mut bytes).unwrap();
        let mut bytes = bytes.as_slice();
        while !bytes.is_empty() && error.is_none() {
            to.read_tls(&mut bytes).unwrap();
            if let Err(e) = to.process_new_packets() {
                *error = Some(e);
            }
        }
    }
}

/// The server refuses the client for `refusal`, and the client learns it as an alert.
#[track_caller]
fn server_refuses(client: Arc<ClientConfig>, server: &Creds, refusal: Refusal) {
    let ended = handshake(client, server.inbound());
    let error = ended.server_error.expect("the server refuses");
    assert_eq!(refusal_of(&error), Some(refusal), "{error}");
    let alert = ended.client_error.expect("the client is told");
    assert!(refused_by_peer(&alert), "{alert}");
    assert_eq!(refusal_of(&alert), None);
}

/// The client refuses the server for `refusal` before it is done with the handshake.
#[track_caller]
fn client_refuses(client: Arc<ClientConfig>, server: Arc<ServerConfig>, refusal: Refusal) -> rustls::Error {
    let ended = handshake(client, server);
    let error = ended.client_error.expect("the client refuses");
    assert_eq!(refusal_of(&error), Some(refusal), "{error}");
    assert!(ended.client.is_handshaking());
    assert!(ended.server.is_handshaking(), "nothing has been sent that the server could act on");
    error
}

/// A certificate signed by `authority`'s root with the given URIs, outside of what it would issue.
fn forge(
    authority: &Authority,
    uris: &[&str],
    change: impl FnOnce(&mut CertificateParams),
) -> (Vec<CertificateDer<'static>>, PrivateKey) {
    let key = PrivateKey::generate().unwrap();
    let mut params = CertificateParams::default();
    params.not_before = (now() - Duration::from_secs(300)).into();
    params.not_after = (now() + DAY).into();
    params.subject_alt_names = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
    change(&mut params);
    let issuer = rcgen::Issuer::from_ca_cert_der(authority.root(), authority.key().clone()).unwrap();
    (vec![params.signed_by(&key, &issuer).unwrap().der().clone()], key)
}

#[test]
fn proxies_meet_in_tls13_with_the_post_quantum_group() {
    let ca = authority();
    let (web, orders) = (creds(&ca, "web"), creds(&ca, "orders"));
    for alpn in [Alpn::H2, Alpn::Http1, Alpn::Streams, Alpn::Tcp] {
        let ended = handshake(web.client(&id("orders"), alpn), orders.inbound());
        assert!(ended.client_error.is_none() && ended.server_error.is_none());
        for connection in [Connection::Client(ended.client), Connection::Server(ended.server)] {
            assert!(!connection.is_handshaking());
            assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
            let group = connection.negotiated_key_exchange_group().unwrap().name();
            assert_eq!(group, NamedGroup::X25519MLKEM768);
            assert_eq!(connection.alpn_protocol().and_then(Alpn::of), Some(alpn));
            let peer = peer_id(connection.peer_certificates().unwrap()).unwrap();
            let other = match &connection {
                Connection::Client(_) => id("orders"),
                Connection::Server(connection) => {
                    assert_eq!(connection.server_name(), None, "no SNI is sent");
                    id("web")
                }
            };
            assert_eq!(peer, other);
        }
    }
}

#[test]
fn a_pin_of_any_former_root_finds_the_control_plane() {
    let (a, b, c) = (authority(), authority(), authority());
    let (to_b, to_c) = (a.bridge_to(&b, now()).unwrap(), b.bridge_to(&c, now()).unwrap());
    let (issued, key) = issue(&c, &control_plane_id(&domain()));
    let mut chain = issued.chain_with_root();
    chain.extend([to_c, b.root().clone(), to_b, a.root().clone()]);
    let bundle = Arc::new(c.bundle().clone());
    let server = Creds::with_clock(chain, key, bundle, now(), Arc::new(Clock(now()))).unwrap();
    for (root, known) in [(&a, true), (&b, true), (&c, true), (&authority(), false)] {
        let client = pinned(root.pin().unwrap(), &domain(), now());
        let ended = handshake(client, server.control_plane());
        assert_eq!(ended.client_error.is_none(), known, "{:?}", ended.client_error);
    }
}

#[test]
fn nothing_is_resumed() {
    let ca = authority();
    let (web, orders) = (creds(&ca, "web"), creds(&ca, "orders"));
    let config = web.client(&id("orders"), Alpn::H2);
    for _ in 0..2 {
        let ended = handshake(config.clone(), orders.inbound());
        assert_eq!(ended.client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(ended.client.tls13_tickets_received(), 0);
    }
}

#[test]
fn a_client_without_certificate_is_refused() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let key = PrivateKey::generate().unwrap();
    let client = client_presenting(&server, None, &key, server.id());
    server_refuses(client, &server, Refusal::NoCertificate);
}

#[test]
fn a_client_of_another_root_is_refused() {
    let (ca, other) = (authority(), authority());
    let server = creds(&ca, "orders");
    let (issued, key) = issue(&other, &id("web"));
    let client = client_presenting(&server, Some(issued.chain_with_root()), &key, server.id());
    server_refuses(client, &server, Refusal::UnknownRoot);
}

#[test]
fn another_root_of_the_same_name_is_refused_as_unknown() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let (_, leaf_key) = issue(&ca, &id("web"));
    let impostor = PrivateKey::generate().unwrap();
    let issuer = rcgen::Issuer::from_ca_cert_der(ca.root(), impostor).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(id("web").as_str().try_into().unwrap())];
    let chain = vec![params.signed_by(&leaf_key, &issuer).unwrap().der().clone()];
    let client = client_presenting(&server, Some(chain), &leaf_key, server.id());
    server_refuses(client, &server, Refusal::UnknownRoot);
}

#[test]
fn a_client_of_another_trust_domain_is_refused_even_under_our_root() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let (chain, key) = forge(&ca, &["spiffe://elsewhere.example/ns/shop/sa/web"], |_| {});
    let client = client_presenting(&server, Some(chain), &key, server.id());
    server_refuses(client, &server, Refusal::OtherTrustDomain);
}

#[test]
fn an_expired_client_is_refused() {
    let ca = authority();
    let server = creds_at(&ca, &id("orders"), now());
    let (chain, key) = forge(&ca, &[id("web").as_str()], |params| {
        params.not_before = (now() - DAY * 2).into();
        params.not_after = (now() - Duration::from_secs(1)).into();
    });
    let client = client_presenting(&server, Some(chain), &key, server.id());
    server_refuses(client, &server, Refusal::Expired);
}

#[test]
fn a_client_from_the_future_is_refused() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let (chain, key) =
        forge(&ca, &[id("web").as_str()], |params| params.not_before = (now() + DAY / 2).into());
    let client = client_presenting(&server, Some(chain), &key, server.id());
    server_refuses(client, &server, Refusal::NotYetValid);
}

#[test]
fn the_passed_clock_decides_about_expiry() {
    let ca = authority();
    let tomorrow = now() + DAY + Duration::from_secs(1);
    let web = creds(&ca, "web");
    let late = creds_at(&ca, &id("orders"), tomorrow);
    let ended = handshake(web.client(&id("orders"), Alpn::H2), late.inbound());
    assert_eq!(refusal_of(&ended.server_error.unwrap()), Some(Refusal::Expired));
    let client = creds_at(&ca, &id("web"), tomorrow);
    let orders = creds(&ca, "orders");
    client_refuses(client.client(&id("orders"), Alpn::H2), orders.inbound(), Refusal::Expired);
    // To a clock that is an hour behind, what was issued now is still to come.
    let behind = now() - Duration::from_secs(3600);
    let early = creds_at(&ca, &id("orders"), behind);
    let ended = handshake(web.client(&id("orders"), Alpn::H2), early.inbound());
    assert_eq!(refusal_of(&ended.server_error.unwrap()), Some(Refusal::NotYetValid));
    let early = creds_at(&ca, &id("web"), behind);
    client_refuses(early.client(&id("orders"), Alpn::H2), orders.inbound(), Refusal::NotYetValid);
}

#[test]
fn a_chain_that_was_verified_before_is_judged_by_time_key_and_role_as_at_first() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let (issued, key) = issue(&ca, &id("web"));
    let chain = issued.chain;
    let judge = |at| server.check_peer(&chain, at).map_err(|refused| refused.refusal);
    let (before, after) = (now() - DAY, now() + DAY + Duration::from_secs(1));
    assert_eq!(judge(before), Err(Refusal::NotYetValid));
    for _ in 0..2 {
        assert_eq!(judge(now()), Ok(id("web")));
        assert_eq!(judge(now() + DAY), Ok(id("web")), "its last second");
        assert_eq!(judge(after), Err(Refusal::Expired));
        assert_eq!(judge(before), Err(Refusal::NotYetValid));
    }
    // Whoever shows it without having its key.
    let thief = PrivateKey::generate().unwrap();
    let stolen = client_presenting(&server, Some(chain.clone()), &thief, server.id());
    server_refuses(stolen, &server, Refusal::BadSignature);
    let owner = handshake(client_presenting(&server, Some(chain), &key, server.id()), server.inbound());
    assert!(owner.server_error.is_none());
    // As good as a client, it is none as a server.
    let (chain, _) = forge(&ca, &[id("web").as_str()], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    });
    let algorithms = server.provider.signature_verification_algorithms;
    let at = UnixTime::since_unix_epoch(Duration::from_secs(x509::seconds(now())));
    for (role, expected) in
        [(Role::Client, None), (Role::Server, Some(Refusal::Malformed)), (Role::Client, None)]
    {
        let judged = verify_peer(&server.bundle, &chain[0], &chain[1..], role, &algorithms, at);
        assert_eq!(judged.err().map(|refused| refused.refusal), expected);
    }
    // Nor do other roots know of it.
    let other = creds(&authority(), "orders");
    assert_eq!(other.check_peer(&chain, now()).unwrap_err().refusal, Refusal::UnknownRoot);
}

#[test]
fn certificates_that_are_no_svid_are_refused() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let web = id("web");
    let cases: Vec<(Vec<&str>, Refusal)> = vec![
        (vec![], Refusal::NoSpiffeId),
        (vec!["https://shop.example/web"], Refusal::NoSpiffeId),
        (vec!["spiffe://cluster.local/workload/web"], Refusal::NoSpiffeId),
        (vec![web.as_str(), "spiffe://cluster.local/ns/shop/sa/admin"], Refusal::SeveralUris),
        (vec![web.as_str(), web.as_str()], Refusal::SeveralUris),
    ];
    for (uris, refusal) in cases {
        let (chain, key) = forge(&ca, &uris, |_| {});
        assert_eq!(peer_id(&chain), Err(refusal));
        let client = client_presenting(&server, Some(chain), &key, server.id());
        server_refuses(client, &server, refusal);
    }
    let (chain, key) = forge(&ca, &[web.as_str()], |params| {
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    });
    server_refuses(client_presenting(&server, Some(chain), &key, server.id()), &server, Refusal::Malformed);
    let (chain, key) = forge(&ca, &[web.as_str()], |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    server_refuses(client_presenting(&server, Some(chain), &key, server.id()), &server, Refusal::Malformed);
    let garbage = vec![CertificateDer::from(vec![0x30, 3, 1, 1, 0])];
    assert_eq!(peer_id(&garbage), Err(Refusal::Malformed));
    assert_eq!(peer_id(&[]), Err(Refusal::NoCertificate));
    server_refuses(client_presenting(&server, Some(garbage), &key, server.id()), &server, Refusal::Malformed);
}

#[test]
fn a_client_without_the_certificates_key_is_refused() {
    let ca = authority();
    let server = creds(&ca, "orders");
    let (issued, _) = issue(&ca, &id("web"));
    let thief = PrivateKey::generate().unwrap();
    let client = client_presenting(&server, Some(issued.chain), &thief, server.id());
    server_refuses(client, &server, Refusal::BadSignature);
}

#[test]
fn a_server_of_the_wrong_identity_is_refused_before_the_handshake_ends() {
    let ca = authority();
    let (web, payments) = (creds(&ca, "web"), creds(&ca, "payments"));
    let error =
        client_refuses(web.client(&id("orders"), Alpn::H2), payments.inbound(), Refusal::WrongIdentity);
    let text = error.to_string();
    assert!(text.contains("sa/orders") && text.contains("sa/payments"), "{text}");
}

#[test]
fn a_server_of_another_root_or_domain_is_refused() {
    let (ca, other) = (authority(), authority());
    let web = creds(&ca, "web");
    let orders = creds(&other, "orders");
    client_refuses(web.client(&id("orders"), Alpn::Tcp), orders.inbound(), Refusal::UnknownRoot);
    let elsewhere = TrustDomain::new("elsewhere.example").unwrap();
    let foreign = Authority::generate(&elsewhere, ROOT_LIFETIME, now()).unwrap();
    let orders = creds_at(&foreign, &SpiffeId::new(&elsewhere, "shop", "orders").unwrap(), now());
    client_refuses(web.client(&id("orders"), Alpn::Tcp), orders.inbound(), Refusal::OtherTrustDomain);
}

#[test]
fn two_roots_at_once_bridge_a_rotation() {
    let (old, new) = (authority(), authority());
    let mut bundle = old.bundle().clone();
    bundle.merge(new.bundle()).unwrap();
    bundle.merge(new.bundle()).unwrap();
    assert_eq!(bundle.roots().len(), 2);
    let bundle = Arc::new(bundle);
    let web = creds(&old, "web").with_bundle(bundle.clone(), now()).unwrap();
    let orders = creds(&new, "orders").with_bundle(bundle, now()).unwrap();
    for (client, server) in [(&web, &orders), (&orders, &web)] {
        let ended = handshake(client.client(server.id(), Alpn::H2), server.inbound());
        assert!(ended.client_error.is_none() && ended.server_error.is_none());
    }
    let error = creds(&old, "web").with_bundle(Arc::new(new.bundle().clone()), now()).unwrap_err();
    assert!(error.to_string().contains("tls_unknown_root"), "{error}");
}

#[test]
fn the_control_plane_takes_clients_with_and_without_certificate() {
    let ca = authority();
    let cp_id = control_plane_id(&domain());
    let cp = creds_at(&ca, &cp_id, now());
    let web = creds(&ca, "web");
    let ended = handshake(web.client(&cp_id, Alpn::Grpc), cp.control_plane());
    assert_eq!(peer_id(ended.server.peer_certificates().unwrap()).unwrap(), id("web"));
    assert_eq!(ended.server.alpn_protocol(), Some(alpn::GRPC));
    let anonymous =
        bootstrap::config(Expected::Peer(cp.bundle().clone(), cp_id), Arc::new(Clock(now()))).unwrap();
    let ended = handshake(anonymous, cp.control_plane());
    assert!(ended.server_error.is_none() && !ended.server.is_handshaking());
    assert!(ended.server.peer_certificates().is_none());
    // A bad certificate is worse than none.
    let (issued, key) = issue(&authority(), &id("web"));
    let client = client_presenting(&web, Some(issued.chain), &key, cp.id());
    let mut client = (*client).clone();
    client.alpn_protocols = vec![alpn::GRPC.to_vec()];
    let ended = handshake(Arc::new(client), cp.control_plane());
    assert_eq!(refusal_of(&ended.server_error.unwrap()), Some(Refusal::UnknownRoot));
}

/// A control plane that presents its root, as the pin check needs.
fn control_plane(ca: &Authority, id: &SpiffeId) -> Creds {
    let (issued, key) = issue(ca, id);
    let bundle = Arc::new(ca.bundle().clone());
    Creds::with_clock(issued.chain_with_root(), key, bundle, now(), Arc::new(Clock(now()))).unwrap()
}

fn pinned(pin: Pin, domain: &TrustDomain, clock: SystemTime) -> Arc<ClientConfig> {
    bootstrap::config(Expected::Pinned(pin, domain.clone()), Arc::new(Clock(clock))).unwrap()
}

#[test]
fn bootstrap_trusts_the_pinned_control_plane_and_nobody_else() {
    let ca = authority();
    let cp = control_plane(&ca, &control_plane_id(&domain()));
    let pin = ca.pin().unwrap();
    let ended = handshake(pinned(pin, &domain(), now()), cp.control_plane());
    assert!(ended.client_error.is_none() && ended.server_error.is_none());
    assert_eq!(peer_id(ended.client.peer_certificates().unwrap()).unwrap(), control_plane_id(&domain()));

    let stranger = authority().pin().unwrap();
    let error = client_refuses(pinned(stranger, &domain(), now()), cp.control_plane(), Refusal::UnknownRoot);
    let told = describe_io(&std::io::Error::other(error));
    assert!(told.starts_with("tls_unknown_root: the pin of the token file is sha256:"), "{told}");
    for part in [&*stranger.to_string(), &*pin.to_string(), "tulle token create"] {
        assert!(told.contains(part), "{told}");
    }
    let elsewhere = TrustDomain::new("elsewhere.example").unwrap();
    client_refuses(pinned(pin, &elsewhere, now()), cp.control_plane(), Refusal::OtherTrustDomain);
    client_refuses(pinned(pin, &domain(), now() + DAY * 2), cp.control_plane(), Refusal::Expired);
    client_refuses(pinned(pin, &domain(), now() + ROOT_LIFETIME * 2), cp.control_plane(), Refusal::Expired);
    // Our clock is behind: by more than a new root is back-dated, and by less.
    for behind in [DAY, Duration::from_secs(1800)] {
        let early = pinned(pin, &domain(), now() - behind);
        let error = client_refuses(early, cp.control_plane(), Refusal::NotYetValid);
        let told = describe_io(&std::io::Error::other(error));
        assert!(told.starts_with("tls_not_yet_valid: ") && told.contains("clocks"), "{told}");
    }
    // Some workload of the mesh cannot pose as the control plane.
    let workload = control_plane(&ca, &id("web"));
    client_refuses(pinned(pin, &domain(), now()), workload.control_plane(), Refusal::WrongIdentity);
    // Without the root in the chain the pin cannot be checked.
    let bare = creds_at(&ca, &control_plane_id(&domain()), now());
    let error = client_refuses(pinned(pin, &domain(), now()), bare.control_plane(), Refusal::UnknownRoot);
    let told = describe_io(&std::io::Error::other(error));
    assert!(told.contains("shows no root") && told.contains(&pin.to_string()), "{told}");
}

#[test]
fn showing_the_pinned_root_beside_a_leaf_of_another_does_not_help() {
    let (ca, impostor) = (authority(), authority());
    let (issued, key) = issue(&impostor, &control_plane_id(&domain()));
    let mut chain = issued.chain_with_root();
    chain.push(ca.root().clone());
    let bundle = Arc::new(impostor.bundle().clone());
    let posing = Creds::with_clock(chain, key, bundle, now(), Arc::new(Clock(now()))).unwrap();
    let client = pinned(ca.pin().unwrap(), &domain(), now());
    client_refuses(client, posing.control_plane(), Refusal::UnknownRoot);
    // Nor does a leaf whose own key is the pinned one.
    let leaf = control_plane(&impostor, &control_plane_id(&domain()));
    let pin = Pin::of(&leaf.chain()[0]).unwrap();
    client_refuses(pinned(pin, &domain(), now()), leaf.control_plane(), Refusal::UnknownRoot);
}

#[test]
fn bootstrap_with_a_bundle() {
    let ca = authority();
    let cp = creds_at(&ca, &control_plane_id(&domain()), now());
    let config = |ca: &Authority| {
        let expected = Expected::Peer(Arc::new(ca.bundle().clone()), control_plane_id(&domain()));
        bootstrap::config(expected, Arc::new(Clock(now()))).unwrap()
    };
    assert!(handshake(config(&ca), cp.control_plane()).client_error.is_none());
    client_refuses(config(&authority()), cp.control_plane(), Refusal::UnknownRoot);
}

#[test]
fn an_alpn_of_others_is_refused() {
    let ca = authority();
    let (web, orders) = (creds(&ca, "web"), creds(&ca, "orders"));
    let ended = handshake(web.client(&id("orders"), Alpn::Grpc), orders.inbound());
    assert_eq!(ended.server_error, Some(rustls::Error::NoApplicationProtocol));
    assert!(refused_by_peer(&ended.client_error.unwrap()));
}

#[test]
fn configurations_are_built_once() {
    let ca = authority();
    let web = creds(&ca, "web");
    let one = web.client(&id("orders"), Alpn::H2);
    assert!(Arc::ptr_eq(&one, &web.client(&id("orders"), Alpn::H2)));
    assert!(!Arc::ptr_eq(&one, &web.client(&id("orders"), Alpn::Tcp)));
    assert!(!Arc::ptr_eq(&one, &web.client(&id("payments"), Alpn::H2)));
    assert!(Arc::ptr_eq(&web.inbound(), &web.inbound()));
}

#[test]
fn bad_credentials_are_refused_before_use() {
    let ca = authority();
    let bundle = Arc::new(ca.bundle().clone());
    let (issued, key) = issue(&ca, &id("web"));
    let new = |chain: Vec<CertificateDer<'static>>, key: &PrivateKey, at: SystemTime| {
        Creds::new(chain, key.clone(), bundle.clone(), at).map(|creds| creds.id().clone())
    };
    let chain = || issued.chain.clone();
    assert_eq!(new(chain(), &key, now()).unwrap(), id("web"));
    assert!(matches!(new(vec![], &key, now()), Err(CredsError::Empty)));
    let other = PrivateKey::generate().unwrap();
    assert!(matches!(new(chain(), &other, now()), Err(CredsError::OtherKey(_))));
    for (chain, at, refusal) in [
        (chain(), now() + DAY * 2, Refusal::Expired),
        (chain(), now() - DAY, Refusal::NotYetValid),
        (issue(&authority(), &id("web")).0.chain, now(), Refusal::UnknownRoot),
        (vec![ca.root().clone()], now(), Refusal::NoSpiffeId),
        (vec![vec![1, 2, 3].into()], now(), Refusal::Malformed),
    ] {
        match new(chain, &key, at) {
            Err(CredsError::Refused(refused)) => {
                assert_eq!(refused.refusal, refusal);
                let of_time = matches!(refusal, Refusal::Expired | Refusal::NotYetValid);
                assert_eq!(refused.detail.contains("clocks"), of_time, "{refused}");
            }
            other => panic!("{refusal}: {other:?}"),
        }
    }
}

#[test]
fn debug_shows_no_key() {
    let ca = authority();
    let web = creds(&ca, "web");
    web.client(&id("orders"), Alpn::H2);
    let shown = format!("{web:?}{web:#?}{:?}", web.key());
    for line in web.key().to_pem().lines().filter(|line| !line.starts_with('-')) {
        assert!(!shown.contains(line));
    }
    let secret = format!("{:?}", web.key().pkcs8());
    assert!(!shown.contains(&secret[1..secret.len() - 1]));
    assert!(shown.contains("sa/web") && shown.contains("not_after"), "{shown}");
}
