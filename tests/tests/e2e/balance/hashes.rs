//! Whom a hash of a cookie or of the client's address leads to (R15): the same user to the same endpoint, by every proxy, and when one
//! endpoint goes nobody moves but who was there, or hardly.

use std::net::SocketAddr;

use tokio::net::TcpSocket;

use super::*;
use crate::changes::slices_of;
use crate::limits::traffic;
use tulle_tests::Wire;
use tulle_tests::app::App;
use tulle_tests::named::moved;

const ALGORITHMS: [&str; 2] = ["RingHash", "Maglev"];

impl Shop {
    /// Four endpoints, chosen by the hash of `on`.
    async fn hashed(algorithm: &str, on: &str) -> Self {
        let shop = Self::start(false, &["a", "b", "c", "d"]).await;
        let spec = format!("  loadBalancer: {{algorithm: {algorithm}, hashOn: [{on}]}}");
        shop.policy(&spec, &format!("algorithm: {algorithm}")).await;
        shop.endpoints("usable", 4).await;
        shop
    }

    /// Removes an endpoint: who was there moves, and hardly anybody else. Once it is back, all are where they were.
    async fn leaves_and_comes_back(
        &mut self,
        algorithm: &str,
        name: &str,
        before: &[String],
        places: impl AsyncFn(&Self) -> Vec<String>,
    ) {
        let address = self.servers[name].app.address();
        let slice =
            std::fs::read_to_string(self.world.config_folder().join(format!("slice-{name}.yaml"))).unwrap();
        self.world.remove_yaml(&format!("slice-{name}.yaml"));
        self.endpoints("usable", 3).await;
        let after = places(self).await;
        assert!(after.iter().all(|by| by != name), "{algorithm}: {address} is gone");
        let share = before.iter().filter(|by| *by == name).count() as f64 / before.len() as f64;
        let moved = moved(before, &after);
        // With a ring nobody else at all.
        let most = if algorithm == "RingHash" { share } else { share + 0.05 };
        assert!(moved >= share && moved <= most, "{algorithm}: {moved} moved, of which {share} had to");
        self.world.yaml(&format!("slice-{name}.yaml"), &slice);
        self.endpoints("usable", 4).await;
        assert_eq!(places(self).await, before, "{algorithm}: all are back");
    }
}

/// Who answers each of so many users, by a cookie among others.
async fn places_of_cookies(web: &Workload, users: usize) -> Vec<String> {
    let mut wire = web.connect("shop").await;
    let mut places = Vec::new();
    for user in 0..users {
        let cookies = format!("cookie: theme=dark; xuser=1; user={user}; lang=de\r\n");
        wire.send(format!("GET / HTTP/1.1\r\nhost: shop\r\n{cookies}\r\n")).await;
        let (head, body) = wire.response().await;
        assert_eq!((head.status(), head.get("set-cookie")), (200, None), "{head:?}");
        places.push(String::from_utf8(body).unwrap());
    }
    places
}

/// Each endpoint has some of them: by chance a quarter.
fn all_are_used(places: &[String]) {
    let mut counts = Counts::new();
    places.iter().for_each(|by| *counts.entry(by.clone()).or_default() += 1);
    assert_eq!(counts.len(), 4, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_the_same_cookie_goes_to_the_same_endpoint_by_every_proxy_and_nothing_is_given_to_the_client() {
    const USERS: usize = 200;
    for algorithm in ALGORITHMS {
        let mut shop = Shop::hashed(algorithm, "{cookie: user}, {queryParameter: user}").await;
        let before = places_of_cookies(&shop.web, USERS).await;
        all_are_used(&before);
        assert_eq!(places_of_cookies(&shop.web, USERS).await, before, "{algorithm}");
        // Whatever else it sends, and on whichever connection.
        let alone = shop.ask("/x?user=5", "cookie: user=7\r\n").await;
        assert_eq!(alone, (200, before[7].clone()), "{algorithm}");
        assert_eq!(
            shop.ask("/x?user=5", "cookie: xuser=7\r\n").await,
            (200, before[5].clone()),
            "{algorithm}"
        );
        // Who has none goes anywhere.
        eventually("all endpoints answer who has no cookie", async || {
            let by = shop.counts(40).await;
            if by.len() == 4 { Ok(()) } else { Err(format!("{by:?}")) }
        })
        .await;
        let other = shop.world.workload("other").calls("shop").setting("--workers", "1").start().await;
        eventually("another proxy knows the endpoints", async || {
            let mut wire = other.connect("shop").await;
            let (status, by) = ask(&mut wire, "/", "").await;
            let metrics = other.metrics().await;
            let usable = metrics.sum("tulle_balancer_endpoints", &[("state", "usable")]);
            if status == 200 && usable == 4.0 { Ok(()) } else { Err(format!("{status} {by}: {usable}")) }
        })
        .await;
        assert_eq!(places_of_cookies(&other, USERS).await, before, "{algorithm}: by another proxy");
        drop(other);
        shop.leaves_and_comes_back(algorithm, "b", &before, async |shop| {
            places_of_cookies(&shop.web, USERS).await
        })
        .await;
    }
}

/// Who answers each of these clients, 127.0.1.1 and so on, on two connections of its own.
async fn places_of_sources(to: SocketAddr, clients: u8) -> Vec<String> {
    let mut places = Vec::new();
    for client in 1..=clients {
        let mut by = Vec::new();
        for _ in 0..2 {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 1, client], 0))).unwrap();
            let mut wire = Wire::new(socket.connect(to).await.unwrap());
            // Whatever else it says of itself.
            let fields = format!("x-forwarded-for: 10.0.0.{client}\r\ncookie: user={}\r\n", by.len());
            for _ in 0..2 {
                let (status, name) = ask(&mut wire, "/", &fields).await;
                assert_eq!(status, 200, "{name}");
                by.push(name);
            }
        }
        assert!(by.iter().all(|name| *name == by[0]), "127.0.1.{client}: {by:?}");
        places.push(by.swap_remove(0));
    }
    places
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_the_same_client_address_goes_to_the_same_endpoint_whatever_its_port() {
    const CLIENTS: u8 = 60;
    for algorithm in ALGORITHMS {
        let mut shop = Shop::hashed(algorithm, "{header: x-user}, {source: {}}").await;
        let to = shop.web.outbound("shop");
        let before = places_of_sources(to, CLIENTS).await;
        all_are_used(&before);
        // The first part that a request has holds: there is a user.
        let by: std::collections::BTreeSet<String> = shop.places(40).await.into_iter().collect();
        assert!(by.len() > 1, "{algorithm}: {by:?}");
        shop.leaves_and_comes_back(algorithm, "c", &before, async |_| places_of_sources(to, CLIENTS).await)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn r15_a_clients_opaque_connections_go_to_the_same_endpoint() {
    for algorithm in ALGORITHMS {
        let world = World::strict().await;
        let mut apps = Vec::new();
        for name in ["a", "b", "c"] {
            apps.push(App::wire(move |mut wire: Wire| async move {
                let _ = wire.try_send(name).await;
                wire.to_end_or_reset().await;
            }));
        }
        let apps = futures_util::future::join_all(apps).await;
        let spec = format!(
            "loadBalancer: {{algorithm: {algorithm}, hashOn: [{{header: x-user}}, {{source: {{}}}}]}}"
        );
        world.yaml("policy.yaml", &traffic(&spec));
        world.yaml("slices.yaml", &slices_of("orders", &apps.iter().map(App::address).collect::<Vec<_>>()));
        world.service("orders", "tcp");
        let web = world.workload("web").calls("orders").start().await;
        let to = web.outbound("orders");
        let greeted = async |client: u8| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::from(([127, 0, 1, client], 0))).unwrap();
            Wire::new(socket.connect(to).await.unwrap()).try_exactly(1).await
        };
        // The Service may be known before its endpoints are.
        eventually("an endpoint answers", async || greeted(1).await.ok_or_else(String::new)).await;
        let mut used = Counts::new();
        for client in 1..=60 {
            let by = greeted(client).await.unwrap();
            for _ in 0..3 {
                assert_eq!(greeted(client).await.as_ref(), Some(&by), "{algorithm}: 127.0.1.{client}");
            }
            *used.entry(String::from_utf8(by).unwrap()).or_default() += 1;
        }
        assert!(used.len() == 3 && used.values().all(|count| *count >= 3), "{algorithm}: {used:?}");
    }
}
