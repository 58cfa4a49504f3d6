//! Names, asked of the proxy by a resolver that is none of ours.

use std::net::{IpAddr, SocketAddr};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use tulle_tests::{Workload, World, eventually};

/// As in a folder: nobody hands out virtual IPs.
fn service(world: &World, name: &str) {
    world.yaml(
        &format!("service-{name}.yaml"),
        &format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{ports: [{{name: http, \
             port: 80}}]}}\n"
        ),
    );
}

async fn asker(world: &World, name: &str, servers: &str) -> Workload {
    let builder = world.workload(name).setting("--dns-listen", "127.0.0.1:0");
    builder.setting("--dns-servers", servers).start().await
}

fn resolver(address: SocketAddr) -> TokioResolver {
    let mut server = NameServerConfig::udp_and_tcp(address.ip());
    server.connections.iter_mut().for_each(|way| way.port = address.port());
    let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.options_mut().cache_size = 0;
    builder.build().unwrap()
}

async fn addresses(resolver: &TokioResolver, name: &str) -> Result<Vec<IpAddr>, String> {
    let found = resolver.lookup_ip(name).await.map_err(|error| error.to_string())?;
    let mut found: Vec<IpAddr> = found.iter().collect();
    found.sort_unstable();
    Ok(found)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_has_the_same_address_after_everything_was_started_again() {
    let mut world = World::strict().await;
    service(&world, "orders");
    let web = asker(&world, "web", "none").await;
    let resolver_of = |web: &Workload| resolver(web.dns());
    let resolver = resolver_of(&web);
    let given = eventually("orders is found", async || addresses(&resolver, "orders.").await).await;
    let shown: Vec<String> = given.iter().map(ToString::to_string).collect();
    let prefixes = [&["198.18.", "198.19."][..], &["fd74:756c:6c65:"]];
    assert_eq!(shown.len(), prefixes.len(), "{shown:?}");
    for (shown, prefixes) in shown.iter().zip(prefixes) {
        assert!(prefixes.iter().any(|prefix| shown.starts_with(prefix)), "{shown}");
    }
    for name in ["orders.default.", "orders.default.svc.", "orders.default.svc.cluster.local."] {
        assert_eq!(addresses(&resolver, name).await.as_ref(), Ok(&given), "{name}");
    }
    let port = resolver.srv_lookup("_http._tcp.orders.default.svc.cluster.local.").await.unwrap();
    let said =
        |found: &Lookup| found.answers().iter().map(|record| record.data.to_string()).collect::<Vec<_>>();
    assert_eq!(said(&port), ["0 100 80 orders.default.svc.cluster.local."]);
    for address in &given {
        let owner = resolver.reverse_lookup(*address).await.unwrap();
        assert_eq!(said(&owner), ["orders.default.svc.cluster.local."]);
    }

    world.kill_control_plane().await;
    assert_eq!(addresses(&resolver, "orders.").await.as_ref(), Ok(&given), "what is known stays known");
    world.restart_control_plane().await;
    drop(web);
    let again = asker(&world, "again", "none").await;
    let resolver = resolver_of(&again);
    let found = eventually("orders is found", async || addresses(&resolver, "orders.").await).await;
    assert_eq!(found, given);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_come_and_go_with_their_services_and_are_counted() {
    let world = World::strict().await;
    let web = asker(&world, "web", "none").await;
    let resolver = resolver(web.dns());
    let name = "orders.default.svc.cluster.local.";
    let absent = addresses(&resolver, name).await.unwrap_err();
    assert!(absent.contains("no records found"), "{absent}");
    service(&world, "orders");
    eventually("the new service is found", async || addresses(&resolver, name).await).await;
    world.remove_yaml("service-orders.yaml");
    eventually("the removed service is not found", async || match addresses(&resolver, name).await {
        Ok(found) => Err(format!("{found:?}")),
        Err(_) => Ok(()),
    })
    .await;
    // Nobody outside is there to ask.
    assert!(addresses(&resolver, "www.example.com.").await.is_err());
    let metrics = web.metrics().await;
    for result in ["mesh", "absent", "failed"] {
        assert!(metrics.sum("tulle_dns_queries_total", &[("result", result)]) > 0.0, "{result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_outside_go_from_one_proxy_to_the_next_name_server() {
    let world = World::strict().await;
    service(&world, "orders");
    // Another proxy plays the name server outside; its cluster's domain is another, so that the first asks it.
    let outside = world.workload("outside").setting("--dns-listen", "127.0.0.1:0");
    let outside =
        outside.setting("--dns-servers", "none").setting("--cluster-domain", "example.org").start().await;
    let web = asker(&world, "web", &outside.dns().to_string()).await;
    let resolver = resolver(web.dns());
    let name = "orders.default.svc.example.org.";
    let found = eventually("the name is found outside", async || addresses(&resolver, name).await).await;
    assert_eq!(found, addresses(&resolver, "orders.").await.unwrap());
    let metrics = web.metrics().await;
    assert!(metrics.sum("tulle_dns_queries_total", &[("result", "forwarded")]) > 0.0);
}
