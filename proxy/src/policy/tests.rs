use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Barrier};

use parking_lot::RwLock;
use tulle_certs::SpiffeId;

use super::*;
use crate::state::{Mode, ObjectName, Protocol};
use crate::testing::{Rng, seeds};

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn id(account: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://cluster.local/ns/shop/sa/{account}")).unwrap()
}

fn allow(name: &str, ports: &[u16], accounts: &[&str]) -> Allow {
    Allow {
        name: name.into(),
        ports: ports.to_vec(),
        identities: accounts.iter().map(|account| id(account)).collect(),
    }
}

fn inbound(mode: Mode, ports: &[(u16, Mode)], rules: Vec<Allow>) -> Inbound {
    Inbound::new(
        InboundSpec {
            workload: ObjectName::new("shop", "orders"),
            mode,
            ports: ports
                .iter()
                .map(|(port, mode)| (*port, PortPolicy { protocol: Protocol::Http, mode: *mode }))
                .collect(),
            rules,
            policies: Vec::new(),
            trust_domain: None,
            unspoken: Default::default(),
            rate_limits: Vec::new(),
            connection_ages: Vec::new(),
            access_logs: Vec::new(),
            samplings: Vec::new(),
            access_log: Default::default(),
            sampling: Default::default(),
            external: Vec::new(),
            authentications: Vec::new(),
        },
        std::time::Instant::now(),
    )
}

/// `Ok(rule)` or `Err(reason)`.
fn judge(policy: &Inbound, port: u16, tls: TlsKind, account: Option<&str>) -> Result<String, &'static str> {
    let peer = account.map(id);
    match policy.evaluate(&Connection { port, peer: peer.as_ref(), tls, client: CLIENT }) {
        Verdict::Allow { rule } | Verdict::Audit { rule } => Ok(rule.to_string()),
        Verdict::Deny { reason, .. } => Err(reason.as_str()),
    }
}

#[test]
fn modes_decide_whether_plaintext_is_let_in() {
    use TlsKind::{ApplicationTls, Mesh, None as Plain};
    let policy = inbound(Mode::Strict, &[(80, Mode::Permissive), (81, Mode::Off)], vec![]);
    let default = || Ok("default".to_owned());
    for (port, tls, account, expected) in [
        (8080, Mesh, Some("web"), default()),
        (8080, Plain, None, Err("mtls_required")),
        (8080, ApplicationTls, None, Err("mtls_required")),
        (80, Mesh, Some("web"), default()),
        (80, Plain, None, default()),
        (80, ApplicationTls, None, default()),
        (81, Mesh, Some("web"), default()),
        (81, Plain, None, default()),
        (81, ApplicationTls, None, default()),
        // Mesh TLS that proved nobody is let in nowhere.
        (8080, Mesh, None, Err("mtls_required")),
        (80, Mesh, None, Err("mtls_required")),
        (81, Mesh, None, Err("mtls_required")),
        // An identity that no handshake proved counts for nothing.
        (8080, Plain, Some("web"), Err("mtls_required")),
    ] {
        assert_eq!(judge(&policy, port, tls, account), expected, "{port} {tls:?} {account:?}");
    }
}

#[test]
fn rules_let_in_whom_they_name_and_say_which_did() {
    let rules = vec![
        allow("shop/p/web", &[80], &["web"]),
        allow("shop/p/all", &[], &["admin", "web"]),
        allow("shop/p/nobody", &[82], &[]),
    ];
    let policy = inbound(Mode::Permissive, &[], rules);
    use TlsKind::{ApplicationTls, Mesh, None as Plain};
    for (port, tls, account, expected) in [
        (80, Mesh, Some("web"), Ok("shop/p/web")),
        (81, Mesh, Some("web"), Ok("shop/p/all")),
        (82, Mesh, Some("web"), Ok("shop/p/all")),
        (80, Mesh, Some("admin"), Ok("shop/p/all")),
        (80, Mesh, Some("payments"), Err("policy_denied")),
        (80, Plain, None, Err("policy_denied")),
        (80, Plain, Some("web"), Err("policy_denied")),
        (81, ApplicationTls, None, Err("policy_denied")),
    ] {
        assert_eq!(
            judge(&policy, port, tls, account),
            expected.map(str::to_owned),
            "{port} {tls:?} {account:?}"
        );
    }
    let policy = inbound(Mode::Permissive, &[], vec![allow("shop/p/nobody", &[82], &[])]);
    assert_eq!(judge(&policy, 82, Mesh, Some("web")), Err("policy_denied"));
    assert_eq!(judge(&policy, 83, Mesh, Some("web")), Ok("default".to_owned()));
    assert!(policy.has_rules(82) && !policy.has_rules(83));
}

#[test]
fn nobody_is_asked_for_an_identity_where_none_would_help() {
    let nobody = || vec![allow("shop/p/nobody", &[82], &[]), allow("shop/q/nobody", &[], &[])];
    for mode in [Mode::Strict, Mode::Permissive, Mode::Off] {
        let policy = inbound(mode, &[], nobody());
        let web = id("web");
        for (tls, peer) in
            [(TlsKind::None, None), (TlsKind::ApplicationTls, None), (TlsKind::Mesh, Some(&web))]
        {
            for (port, rule) in [(82, "shop/p/nobody"), (83, "shop/q/nobody")] {
                let verdict = policy.evaluate(&Connection { port, peer, tls, client: CLIENT });
                let expected = Verdict::Deny { reason: Denial::PolicyDenied, rule: Some(rule.into()) };
                assert_eq!(verdict, expected, "{mode:?} {port} {tls:?}");
            }
        }
    }
    // One that lets somebody in makes an identity worth asking for.
    let mut rules = nobody();
    rules.push(allow("shop/r/web", &[82], &["web"]));
    let policy = inbound(Mode::Strict, &[], rules);
    assert_eq!(judge(&policy, 82, TlsKind::None, None), Err("mtls_required"));
    assert_eq!(judge(&policy, 83, TlsKind::None, None), Err("policy_denied"));
}

#[test]
fn ports_without_rules_may_be_for_some_networks_alone_and_be_audited() {
    let spec = |networks: &[&str], audited| {
        let policy = inbound(Mode::Permissive, &[], vec![allow("shop/p/web", &[80], &["web"])]);
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        let spec = InboundSpec { unspoken: Unspoken { networks, audited }, ..policy.spec().clone() };
        Inbound::new(spec, std::time::Instant::now())
    };
    let from = |policy: &Inbound, port, client: &str| {
        let (peer, client) = (None, client.parse().unwrap());
        policy.evaluate(&Connection { port, peer, tls: TlsKind::None, client })
    };
    let denied = |reason| Verdict::Deny { reason, rule: None };
    let policy = spec(&["10.0.0.0/8", "fd00::/8"], false);
    for inside in ["10.1.2.3", "::ffff:10.1.2.3", "fd00::1"] {
        assert_eq!(from(&policy, 81, inside), Verdict::Allow { rule: "default".into() }, "{inside}");
    }
    for outside in ["192.0.2.1", "2001:db8::1"] {
        assert_eq!(from(&policy, 81, outside), denied(Denial::NetworkDenied), "{outside}");
    }
    // Where a rule speaks, it alone does.
    assert_eq!(from(&policy, 80, "10.1.2.3"), denied(Denial::PolicyDenied));
    let audited = spec(&[], true);
    assert_eq!(from(&audited, 81, "192.0.2.1"), Verdict::Audit { rule: "default".into() });
    assert_eq!(from(&audited, 80, "192.0.2.1"), denied(Denial::PolicyDenied));
}

#[test]
fn a_port_that_is_not_named_is_detected_in_the_policys_mode() {
    let policy = inbound(Mode::Strict, &[(80, Mode::Off)], vec![]);
    assert_eq!(policy.port(80), PortPolicy { protocol: Protocol::Http, mode: Mode::Off });
    assert_eq!(policy.port(81), PortPolicy { protocol: Protocol::Detect, mode: Mode::Strict });
}

#[test]
fn compiled_rules_judge_as_the_plain_ones_read() {
    const ACCOUNTS: &[&str] = &["a", "b", "c"];
    seeds(400, |_, mut rng| {
        let modes = [Mode::Permissive, Mode::Strict, Mode::Off];
        let rules: Vec<Allow> = (0..rng.below(4))
            .map(|i| {
                let ports: Vec<u16> = (0..rng.below(3)).map(|_| rng.below(3) as u16).collect();
                let accounts: Vec<&str> = (0..rng.below(3)).map(|_| *rng.choose(ACCOUNTS)).collect();
                allow(&i.to_string(), &ports, &accounts)
            })
            .collect();
        let policy = inbound(*rng.choose(&modes), &[(0, *rng.choose(&modes))], rules.clone());
        for port in 0..4 {
            let mut of_port =
                rules.iter().filter(|r| r.ports.is_empty() || r.ports.contains(&port)).peekable();
            let ruled = of_port.peek().is_some();
            let nobody = ruled && of_port.clone().all(|rule| rule.identities.is_empty());
            let strict = policy.port(port).mode == Mode::Strict;
            let account = *rng.choose(ACCOUNTS);
            let first = of_port.find(|rule| rule.identities.contains(&id(account)));
            let expected = match first {
                Some(rule) => Ok(rule.name.to_string()),
                None if ruled => Err("policy_denied"),
                None => Ok("default".to_owned()),
            };
            assert_eq!(judge(&policy, port, TlsKind::Mesh, Some(account)), expected);
            let expected = match () {
                () if nobody => Err("policy_denied"),
                () if strict => Err("mtls_required"),
                () if ruled => Err("policy_denied"),
                () => Ok("default".to_owned()),
            };
            assert_eq!(judge(&policy, port, TlsKind::None, None), expected);
            assert_eq!(judge(&policy, port, TlsKind::ApplicationTls, None), expected);
        }
    });
}

// === open connections ===

fn open(account: &str) -> Open {
    Open { port: 80, peer: Some(id(account)), tls: TlsKind::Mesh, client: CLIENT, outside: None }
}

fn only(accounts: &[&str]) -> Arc<Inbound> {
    Arc::new(inbound(Mode::Strict, &[], vec![allow("shop/p/r", &[], accounts)]))
}

#[test]
fn a_change_revokes_what_it_no_longer_allows_and_nothing_else() {
    let connections = Connections::new();
    let web = connections.register(open("web"));
    let admin = connections.register(open("admin"));
    assert!(web.judge(&only(&["web", "admin"])).is_allowed());
    assert_eq!(connections.rejudge(&only(&["web", "admin"])), 0);
    assert_eq!(connections.rejudge(&only(&["admin"])), 1);
    assert!(web.is_revoked() && !admin.is_revoked());
    assert!(matches!(web.revoked_by(), Some(Verdict::Deny { reason: Denial::PolicyDenied, .. })));
    // It is counted once. What is relayed stays revoked though a later policy would let it in; requests are judged anew.
    assert_eq!(connections.rejudge(&only(&["admin"])), 0);
    assert_eq!(connections.rejudge(&only(&["web", "admin"])), 0);
    assert!(web.is_revoked() && web.judge(&only(&["web"])).is_allowed());
}

#[test]
fn a_connection_is_told_of_as_audited_once() {
    let web = Connections::new().register(open("web"));
    assert!(web.is_first_audit() && !web.is_first_audit() && !web.is_first_audit());
}

#[test]
fn what_carries_no_http_is_told_of_when_a_change_has_it_audited() {
    let connections = Connections::new();
    let audited = |audited| {
        let spec = inbound(Mode::Strict, &[], vec![]).spec().clone();
        let unspoken = Unspoken { networks: Vec::new(), audited };
        Inbound::new(InboundSpec { unspoken, ..spec }, std::time::Instant::now())
    };
    let (before, after) = (audited(false), audited(true));
    // What carries requests is told of with the next of them.
    let _requests = connections.register(open("admin"));
    let bytes = connections.register(open("web"));
    bytes.relays();
    connections.rejudge(&before);
    assert!(connections.newly_audited().is_empty());
    connections.rejudge(&after);
    assert_eq!(connections.newly_audited(), [(open("web"), Arc::<str>::from("default"))]);
    // Neither by the next change, nor by whoever has judged it meanwhile.
    connections.rejudge(&after);
    assert!(connections.newly_audited().is_empty());
    assert!(!bytes.audits(&Arc::from("default")) && bytes.audits(&Arc::from("shop/p/other")));
}

#[tokio::test]
async fn whoever_waits_on_a_revoked_connection_wakes() {
    let connections = Connections::new();
    let guard = Arc::new(connections.register(open("web")));
    let waits = tokio::spawn({
        let guard = Arc::clone(&guard);
        async move { guard.revoked().await }
    });
    tokio::task::yield_now().await;
    connections.rejudge(&only(&[]));
    waits.await.unwrap();
    guard.revoked().await;
}

#[test]
fn without_a_policy_nothing_stays_open() {
    let connections = Connections::new();
    let web = connections.register(open("web"));
    assert_eq!(connections.revoke_all(), 1);
    assert!(matches!(web.revoked_by(), Some(Verdict::Deny { reason: Denial::NoPolicy, .. })));
}

#[test]
fn a_closed_connection_is_forgotten() {
    let connections = Connections::new();
    let guards: Vec<_> = (0..100).map(|_| connections.register(open("web"))).collect();
    assert_eq!((connections.len(), connections.list().len()), (100, 100));
    drop(guards);
    assert!(connections.is_empty());
}

/// What a connection's side does, one step at a time.
enum Step {
    Register,
    Load,
    Judge,
    Done,
}

/// Every interleaving of the steps of connections and of policy changes: once all is done, whoever is still open and was
/// let in is allowed by the last policy.
#[test]
fn no_interleaving_of_steps_lets_a_change_slip_between() {
    seeds(2000, |_, mut rng: Rng| {
        let connections = Connections::new();
        let mut published = only(&["web"]);
        let mut pending: Option<Arc<Inbound>> = None;
        let mut changes = 1 + rng.below(4);
        let mut clients: Vec<_> = (0..1 + rng.below(4)).map(|_| (Step::Register, None, None, true)).collect();
        loop {
            let idle = clients.iter().all(|(step, ..)| matches!(step, Step::Done));
            if idle && changes == 0 && pending.is_none() {
                break;
            }
            if rng.one_in(3) {
                // A change is published, and only then are the open connections judged.
                if let Some(policy) = pending.take() {
                    connections.rejudge(&policy);
                } else if changes > 0 {
                    changes -= 1;
                    published = only(if rng.one_in(2) { &["web"] } else { &[] });
                    pending = Some(published.clone());
                }
                continue;
            }
            let at = rng.below(clients.len());
            let (step, guard, loaded, allowed) = &mut clients[at];
            match step {
                Step::Register => {
                    *guard = Some(connections.register(open("web")));
                    *step = Step::Load;
                }
                Step::Load => {
                    *loaded = Some(published.clone());
                    *step = Step::Judge;
                }
                Step::Judge => {
                    *allowed = guard.as_ref().unwrap().judge(loaded.as_ref().unwrap()).is_allowed();
                    *step = Step::Done;
                }
                Step::Done => {}
            }
        }
        for (_, guard, _, allowed) in &clients {
            let guard = guard.as_ref().unwrap();
            if *allowed && !guard.is_revoked() {
                assert!(published.evaluate(&guard.open().as_connection()).is_allowed());
            }
        }
    });
}

#[test]
fn no_change_slips_between_on_threads_either() {
    for round in 0..200_u32 {
        let connections = Connections::new();
        let published = RwLock::new(only(&["web"]));
        let barrier = Barrier::new(3);
        let client = || {
            barrier.wait();
            for _ in 0..round % 7 {
                std::hint::spin_loop();
            }
            let guard = connections.register(open("web"));
            let policy = published.read().clone();
            let allowed = guard.judge(&policy).is_allowed();
            (guard, allowed)
        };
        let clients = std::thread::scope(|scope| {
            let clients = [scope.spawn(client), scope.spawn(client)];
            barrier.wait();
            for _ in 0..round % 11 {
                std::hint::spin_loop();
            }
            let policy = only(&[]);
            *published.write() = policy.clone();
            connections.rejudge(&policy);
            clients.map(|client| client.join().unwrap())
        });
        for (guard, allowed) in clients {
            assert!(!allowed || guard.is_revoked());
        }
    }
}
