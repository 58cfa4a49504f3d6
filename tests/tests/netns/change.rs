//! What changes under load, in pods behind the rules: both sides are restarted, and the control plane is cut off.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;
use tulle_tests::app::App;
use tulle_tests::load::{Load, Orders, Restarts, Seen, Speech, Tally};
use tulle_tests::netns::in_a_node;
use tulle_tests::pod::{Cluster, Pod, Port, VirtualIps};
use tulle_tests::{Program, binary, eventually, long, within};

use super::mesh::says_its_name;
use super::resilience::{answers, meshed};

/// Where each protocol is spoken, of the Service and of the pods behind it.
pub(crate) fn port(speech: Speech) -> Port {
    let number = match speech {
        Speech::Http1 => 8081,
        Speech::Http2 => 8082,
        Speech::Grpc => 8083,
    };
    Port { number, name: "main", app_protocol: speech.app_protocol() }
}

/// The server's pod: an application for each protocol, behind one proxy.
struct Server {
    pod: Pod,
    _apps: [App; 3],
}

/// The client's.
struct Client {
    pod: Pod,
    load: [Load; 3],
}

impl Server {
    async fn start(cluster: &Cluster, number: usize, seen: &Seen, form: Restarts) -> Self {
        let pod = meshed(cluster, &format!("orders-{number}"), &[("--drain-grace", form.grace)]).await;
        let listen = |speech| pod.listen(&format!("[::]:{}", port(speech).number));
        let apps = Speech::ALL.map(|speech| Orders::start_on(listen(speech), speech, seen));
        Self { pod, _apps: apps }
    }

    /// As an endpoint.
    fn endpoint(&self) -> [(&Pod, Option<&str>); 1] {
        [(&self.pod, Some(self.pod.name()))]
    }

    /// The application goes on until its proxy has ended.
    async fn stop(mut self, drained_first: bool) {
        if drained_first {
            self.pod.admin("POST /drain").await;
            self.pod.unready().await;
        }
        self.pod.proxy().signal(Signal::TERM);
        ends(self.pod).await;
    }
}

impl Client {
    async fn start(
        cluster: &Cluster,
        number: usize,
        services: &[SocketAddr; 3],
        tally: &Arc<Tally>,
        form: Restarts,
    ) -> Self {
        let name = format!("web-{number}");
        let pod = meshed(cluster, &name, &[("--drain-grace", form.grace)]).await;
        for (speech, to) in Speech::ALL.iter().zip(services) {
            answers(&pod, *to, *speech != Speech::Http1).await;
        }
        let mut services = services.iter().map(|to| pod.namespace().dial(*to));
        let load = Speech::ALL.map(|speech| {
            Load::start(tally, speech, services.next().expect("one for each"), &name, form.pace)
        });
        Self { pod, load }
    }

    /// The application is told together with its proxy, and has something left to do.
    async fn stop(mut self, drained_first: bool) {
        if drained_first {
            self.pod.admin("POST /drain").await;
        } else {
            self.pod.proxy().signal(Signal::TERM);
        }
        let [one, two, three] = self.load.map(|load| load.leave_after(5));
        tokio::join!(one, two, three);
        self.pod.proxy().signal(Signal::TERM);
        ends(self.pod).await;
    }
}

/// Waits for the end, which comes because there is nothing left.
async fn ends(mut pod: Pod) {
    let status = within("the end of a drain", pod.proxy().wait()).await;
    assert!(status.success(), "{status}");
    let said = pod.diagnostics();
    assert!(said.contains("drained") && !said.contains("the grace period is over"), "{said}");
}

#[test]
fn r06_rolling_restarts_of_both_pods_lose_nothing() {
    in_a_node(async || {
        let form = Restarts::of_this_run(1, "60s");
        let cluster = Cluster::strict().await;
        let (seen, tally) = (Seen::default(), Arc::<Tally>::default());
        let mut orders = Server::start(&cluster, 0, &seen, form).await;
        let ips: [VirtualIps; 3] =
            Speech::ALL.map(|speech| cluster.service_of(speech.service(), &port(speech), &orders.endpoint()));
        let mut services =
            Speech::ALL.iter().zip(ips).map(|(speech, ips)| SocketAddr::new(ips.v4, port(*speech).number));
        let services = ips.map(|_| services.next().expect("one for each"));
        let mut web = Client::start(&cluster, 0, &services, &tally, form).await;
        let begun = Instant::now();
        for number in 1..=form.number {
            let next = Server::start(&cluster, number, &seen, form).await;
            for (speech, ips) in Speech::ALL.into_iter().zip(ips) {
                cluster.change(speech.service(), &port(speech), ips, &next.endpoint());
            }
            std::mem::replace(&mut orders, next).stop(number % 2 == 0).await;
            let next = Client::start(&cluster, number, &services, &tally, form).await;
            std::mem::replace(&mut web, next).stop(number % 2 == 1).await;
        }
        web.stop(false).await;
        form.pace.assert_kept(&tally, Speech::ALL.len(), begun.elapsed());
        orders.stop(true).await;
        tally.assert_nothing_lost();
        assert_eq!(seen.twice(), <[String; 0]>::default());
        assert!(seen.count() > 100, "{}", seen.count());
    });
}

/// What a proxy itself shows of the endpoints that it uses, by service.
async fn in_use(pod: &Pod) -> BTreeMap<String, String> {
    let dump: Value = serde_json::from_str(&pod.admin("GET /config_dump").await).expect("JSON");
    let services = dump["services"].as_array().expect("an array").iter();
    services
        .map(|one| (one["name"].as_str().expect("a name").to_owned(), one["endpoints"].to_string()))
        .collect()
}

/// Whether `tulle diagnostics endpoints` finds no difference between the control plane and its proxies, and what it says.
fn equal(cluster: &Cluster) -> (bool, String) {
    let output = Program::new("diagnostics", binary("tulle"))
        .arg("diagnostics")
        .arg("endpoints")
        .flag("--control-plane", cluster.world().metrics_address().to_string())
        .output();
    (output.status.success(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn r07_a_pod_that_was_cut_off_from_the_control_plane_uses_what_there_is_soon_after() {
    const PORT: Port = Port { number: 8080, name: "main", app_protocol: "http" };
    in_a_node(async || {
        let cluster = Cluster::strict().await;
        let web = cluster.meshed("web").await;
        let pods = cluster.meshed_in(["stays", "goes", "comes"].map(|name| (name, ""))).await;
        let _apps = pods.each_ref().map(says_its_name);
        let [stays, goes, comes] = pods.each_ref().map(|pod| (pod, Some(pod.name())));
        let moved = cluster.service_of("moved", &PORT, &[stays, goes]);
        let gone = cluster.service_of("gone", &PORT, &[stays]);
        web.reaches(gone.v4, "stays").await;
        for name in ["stays", "goes"] {
            web.reaches(moved.v4, name).await;
        }
        let connected = async || web.metrics().await.sum("tulle_ads_connected", &[]) > 0.0;
        let proxies = async || cluster.world().metrics().await.sum("tulle_control_plane_proxies", &[]);
        let all = proxies().await;
        assert!(connected().await);

        // The cable is pulled: neither end is told so.
        let control_plane = cluster.world().grpc();
        web.namespace().shell(&format!(
            "nft -f - <<.\ntable inet cut {{\n\
             chain out {{ type filter hook output priority -300; ip daddr {ip} tcp dport {port} drop; }}\n\
             chain in {{ type filter hook input priority -300; ip saddr {ip} tcp sport {port} drop; }}\n}}\n.",
            ip = control_plane.ip(),
            port = control_plane.port(),
        ));
        cluster.change("moved", &PORT, moved, &[stays, comes]);
        cluster.world().remove_yaml("service-gone.yaml");
        eventually("both ends have noticed by their keep-alive", async || {
            let (connected, proxies) = (connected().await, proxies().await);
            if !connected && proxies < all { Ok(()) } else { Err(format!("{connected}, {proxies} of {all}")) }
        })
        .await;
        // It goes on with what it last knew.
        for _ in 0..10 {
            let said = web.curl(moved.v4).await;
            assert!(matches!(said.as_deref(), Ok("stays" | "goes")), "{said:?}");
        }
        let before = in_use(&web).await;
        assert!(before["default/moved"].contains(&pods[1].v4().to_string()), "{before:?}");

        web.namespace().shell("nft delete table inet cut");
        let mended = Instant::now();
        eventually("what it uses is what the control plane says", async || {
            let used = in_use(&web).await;
            let has = |pod: &Pod| {
                let addresses = [pod.v4().to_string(), pod.v6().to_string()];
                addresses.iter().any(|address| {
                    used["default/moved"].contains(&format!("{address}:"))
                        || used["default/moved"].contains(&format!("[{address}]"))
                })
            };
            let is_gone = used.get("default/gone").is_none_or(|endpoints| endpoints == "[]");
            let (equal, said) = equal(&cluster);
            if [has(&pods[0]), has(&pods[1]), has(&pods[2]), is_gone, equal]
                == [true, false, true, true, true]
            {
                Ok(())
            } else {
                Err(format!("{used:#?}\n{said}"))
            }
        })
        .await;
        let took = mended.elapsed();
        assert!(!long() || took <= Duration::from_secs(35), "{took:?}");
        web.reaches(moved.v4, "comes").await;
        for _ in 0..20 {
            let said = web.curl(moved.v4).await;
            assert!(matches!(said.as_deref(), Ok("stays" | "comes")), "{said:?}");
        }
    });
}
