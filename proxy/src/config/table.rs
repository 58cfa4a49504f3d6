//! The table of settings.

use std::time::Duration;

use super::{ClientCert, Config, LogFormat, OTEL_PREFIX, OTEL_VARIABLES, PREFIX, parse, probes};
use crate::telemetry::access::Errors;

/// One setting.
#[derive(Debug)]
pub struct Variable {
    /// Without the prefix: `CONNECT_TIMEOUT`. OpenTelemetry's own have none.
    pub name: &'static str,
    /// What it takes, for people and for error messages.
    pub form: &'static str,
    /// What holds when it is not set; `None`: nothing is.
    pub default: Option<&'static str>,
    /// One or two sentences.
    pub meaning: &'static str,
    /// Parses a value into the configuration; the error says what is wrong with it.
    pub(super) set: fn(&mut Config, &str) -> Result<(), String>,
}

macro_rules! variables {
    ($(#[$doc:meta])* $table:ident;
     $($name:literal, $form:literal, $default:expr, $meaning:literal, |$config:ident, $value:ident| $set:expr;)*) => {
        $(#[$doc])*
        pub const $table: &[Variable] = &[$(Variable {
            name: $name, form: $form, default: $default, meaning: $meaning,
            set: |$config, $value| { $set; Ok(()) },
        }),*];
    };
}
pub(super) use variables;

const BUCKETS: &str = "5ms,10ms,25ms,50ms,75ms,100ms,250ms,500ms,750ms,1s,2500ms,5s,7500ms,10s";
const OPAQUE_PORTS: &str = tulle_api::OPAQUE_PORTS;

variables! {
    /// Every setting, in the order of the reference page.
    VARIABLES;
    "WORKLOAD", "<namespace>/<name>", None,
        "Whose proxy this is. Needed with a control plane.",
        |config, value| config.workload = Some(parse::name(value)?);
    "LOCALITY", "<region>[/<zone>]", None,
        "Where the workload runs; told to the control plane with the registration.",
        |config, value| config.locality = parse::locality(value)?;
    "CONTROL_PLANE_ADDRESS", "<host>:<port>", None,
        "The control plane's gRPC port. Not set: the proxy gets no configuration.",
        |config, value| config.control_plane_address = Some(parse::host_port(value)?);
    "IDENTITY_TOKEN_FILE", "a path", None,
        "The join token of `tulle token create`: the token on the first line, the pin of the root on the second. Or the token that Kubernetes \
         projects into a pod, with the audience `tulle`; that needs the trust bundle. Read anew whenever it is needed.",
        |config, value| config.identity_token_file = Some(value.into());
    "IDENTITY_TRUST_BUNDLE_FILE", "a path", None,
        "PEM roots to know the control plane by, in place of the pin in the token file; read whenever it is dialled. Peers are judged \
         by the roots that it tells. With a certificate of a file, the roots to trust peers by, looked at every second. With another certificate service \
         whose answer has no root, the roots that its certificates end in.",
        |config, value| config.identity_trust_bundle_file = Some(value.into());
    "IDENTITY_TRUST_DOMAIN", "a trust domain", None,
        "The mesh's trust domain, which a token of Kubernetes does not say. Not set: the one that the roots in the trust bundle name, else `cluster.local`.",
        |config, value| config.identity_trust_domain = Some(parse::trust_domain(value)?);
    "IDENTITY_CERT_FILE", "a path", None,
        "A PEM certificate chain, in place of one from the control plane; looked at every second, as are its key and the roots. Needs both.",
        |config, value| config.identity_cert_file = Some(value.into());
    "IDENTITY_KEY_FILE", "a path", None,
        "The PEM private key of the certificate; readable by its owner only.",
        |config, value| config.identity_key_file = Some(value.into());
    "IDENTITY_WORKLOAD_API", "unix:///<path> or tcp://<ip>:<port>", None,
        "A SPIFFE Workload API, such as that of SPIRE's agent, that gives the certificate and the roots to trust peers by, and tells every change of them. \
         Not set, and no other source of an identity is: what the variable `SPIFFE_ENDPOINT_SOCKET` says ([sources](../identity-sources.md)).",
        |config, value| config.identity_from.workload_api = Some(parse::workload_api(value)?);
    "IDENTITY_CA_ADDRESS", "<host>:<port>", None,
        "Another server of `istio.v1.auth.IstioCertificateService` than the control plane, such as cert-manager's istio-csr, that issues the certificate \
         for the token in `IDENTITY_TOKEN_FILE`.",
        |config, value| config.identity_from.ca_address = Some(parse::host_port(value)?);
    "IDENTITY_CA_ROOTS_FILE", "a path", None,
        "PEM roots to know that server by. Read whenever it is asked.",
        |config, value| config.identity_from.ca_roots_file = Some(value.into());
    "IDENTITY_CA_SERVER_NAME", "a host name or an IP address", None,
        "What that server's certificate must be for. Not set: the host in its address.",
        |config, value| config.identity_from.ca_server_name = Some(parse::server_name(value)?);
    "IDENTITY_SPIFFE_ID", "spiffe://<trust domain>/ns/<namespace>/sa/<service account>", None,
        "Who this workload is: of several identities of a Workload API this one is taken, the certificate service is asked for it, and another is refused. \
         Not set: the first; the service account that the token names; whatever the certificate in the file says.",
        |config, value| config.identity_from.spiffe_id = Some(parse::spiffe_id(value)?);
    "IDENTITY_SVID_HINT", "a word", None,
        "Of several identities of a Workload API the one with this hint is taken.",
        |config, value| config.identity_from.svid_hint = Some(value.to_owned());
    "OUTBOUND_LISTEN", "<ip>:<port>[,…] or `none`", Some("[::]:15001"),
        "Where intercepted connections of the application arrive; their destination comes from the kernel.",
        |config, value| config.outbound_listen = parse::addresses(value)?;
    "OUTBOUND_SERVICES", "<ip>:<port>=<namespace>/<service>:<port>[,…] or `none`", None,
        "Listeners that each lead to one port of one service, for places without interception. Port 0 takes a free one.",
        |config, value| config.outbound_services = parse::list(value, parse::outbound_service)?;
    "INBOUND_LISTEN", "<ip>:<port>[,…] or `none`", Some("[::]:15006"),
        "Where intercepted connections to the application arrive.",
        |config, value| config.inbound_listen = parse::addresses(value)?;
    "INBOUND_PORTS", "<ip>:<port>=<ip>:<port>[/<service>:<port>…][,…] or `none`", None,
        "Listeners that each lead to one address of the application, for places without interception. What follows the \
         address are the services of the workload's namespace, and their ports, that the listener is registered for.",
        |config, value| config.inbound_ports = parse::list(value, parse::inbound_port)?;
    "INBOUND_CLIENT_CERT_HEADER", "`remove` or `set`", Some("remove"),
        "What becomes of `x-forwarded-client-cert` in requests to the application. What a client says there never arrives. Set: the application is told, in Envoy's form, \
         who a client of the mesh has proven to be ([HTTP](http.md#who-the-client-is)).",
        |config, value| config.inbound_client_cert_header = parse::choice(value, &[("remove", ClientCert::Remove), ("set", ClientCert::Set)])?;
    "REGISTER_ADDRESS", "an IP address", None,
        "The address that other workloads dial. Not set: that of the inbound listener.",
        |config, value| config.register_address = Some(parse::ip(value)?);
    "REGISTER_TOKEN_FILE", "a path", None,
        "A join token of `tulle token create` for what is registered, where the certificate is not the control plane's and so grants nothing. Both must be of the same \
         identity. Read anew for each stream of reports.",
        |config, value| config.register_token_file = Some(value.into());
    "OPAQUE_PORTS", "<port>[-<port>][,…] or `none`", Some(OPAQUE_PORTS),
        "Destination ports whose bytes are relayed without waiting for, or looking at, the first of them.",
        |config, value| config.opaque_ports = parse::ports(value)?;
    "INTERCEPT_PROXY_UID", "a user ID", Some("1337"),
        "The user that the proxy runs as, whose connections are not intercepted.",
        |config, value| config.intercept.proxy_uid = parse::id(value)?;
    "INTERCEPT_PROXY_MARK", "a mark (`4919`, `0x1337`)", None,
        "A mark that the proxy sets on its connections, which are not intercepted then, in place of its user ID where there is only \
         one. Needs CAP_NET_ADMIN also in the proxy.",
        |config, value| config.intercept.proxy_mark = Some(parse::mark(value)?);
    "INTERCEPT_SKIP_INBOUND_PORTS", "<port>[-<port>][,…] or `none`", None,
        "TCP ports of the application that are reached without the proxy.",
        |config, value| config.intercept.skip_inbound_ports = parse::ports(value)?;
    "INTERCEPT_SKIP_OUTBOUND_PORTS", "<port>[-<port>][,…] or `none`", None,
        "TCP ports elsewhere that the application reaches without the proxy.",
        |config, value| config.intercept.skip_outbound_ports = parse::ports(value)?;
    "INTERCEPT_ONLY_INBOUND_PORTS", "<port>[-<port>][,…] or `none`", None,
        "TCP ports of the application that lead through the proxy; not set: all that are not skipped.",
        |config, value| config.intercept.only_inbound_ports = parse::ports(value)?;
    "INTERCEPT_ONLY_OUTBOUND_PORTS", "<port>[-<port>][,…] or `none`", None,
        "TCP ports elsewhere that lead through the proxy; not set: all that are not skipped.",
        |config, value| config.intercept.only_outbound_ports = parse::ports(value)?;
    "INTERCEPT_SKIP_SUBNETS", "<address>/<bits>[,…] or `none`", None,
        "Destinations that the application reaches without the proxy.",
        |config, value| config.intercept.skip_subnets = parse::list(value, parse::subnet)?;
    "INTERCEPT_SKIP_UIDS", "<user ID>[,…] or `none`", None,
        "Users whose connections are not intercepted.",
        |config, value| config.intercept.skip_uids = parse::list(value, parse::id)?;
    "INTERCEPT_SKIP_GIDS", "<group ID>[,…] or `none`", None,
        "Groups whose connections are not intercepted.",
        |config, value| config.intercept.skip_gids = parse::list(value, parse::id)?;
    "INTERCEPT_DNS", "`true` or `false`", Some("false"),
        "Whether queries of names, UDP and TCP to port 53, lead to port 15053 of the proxy.",
        |config, value| config.intercept.dns = parse::yes_or_no(value)?;
    "INTERCEPT_DROP_QUIC", "`true` or `false`", Some("false"),
        "Whether UDP to port 443 is dropped, so that clients of HTTP/3 fall back to TCP, which is intercepted.",
        |config, value| config.intercept.drop_quic = parse::yes_or_no(value)?;
    "DNS_LISTEN", "<ip>:<port>[,…] or `none`", Some("none"),
        "Where questions about names are answered, over UDP and TCP, for places without cluster DNS: services of the mesh by their virtual IPs, \
         the rest by the name servers.",
        |config, value| config.dns_listen = parse::addresses(value)?;
    "DNS_SERVERS", "`system`, or <ip>:<port>[,…], or `none`", Some("system"),
        "Who is asked about names outside the mesh. System: the servers in `/etc/resolv.conf`, read again when it changes.",
        |config, value| config.dns_servers = parse::name_servers(value)?;
    "CLUSTER_DOMAIN", "a domain", Some("cluster.local"),
        "What the full names of services end in, after `svc`.",
        |config, value| config.cluster_domain = parse::domain(value)?;
    "NAMESPACE_SOCKET", "a path", None,
        "Where `tulle run` passes sockets of its program's network namespace out: `OUTBOUND_LISTEN` and `DNS_LISTEN` are bound there, and an \
         application on 0.0.0.0 (`INBOUND_PORTS`) is dialled there.",
        |config, value| config.namespace_socket = Some(value.into());
    "WORKERS", "a number from 1 to 1024, or `auto`", Some("auto"),
        "How many worker threads. Auto: the cgroup's CPU limit rounded up, else the CPU request rounded up, else 2, and never more than cores.",
        |config, value| config.workers = parse::auto(value, |value| parse::number(value, 1, 1024))?;
    "CPU_REQUEST", "cores (`2`, `0.5`) or thousandths (`500m`)", None,
        "The container's CPU request, from the downward API, for `WORKERS=auto`.",
        |config, value| config.cpu_request_millis = Some(parse::millis_of_cpu(value)?);
    "CONNECT_TIMEOUT", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("1s"),
        "How long it may take to connect to an endpoint, TLS handshake included.",
        |config, value| config.connect_timeout = parse::duration(value)?;
    "IDLE_TIMEOUT", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("3s"),
        "How long a pooled HTTP/1 connection may idle before it is closed. A server's shorter `Keep-Alive: timeout=n` is obeyed.",
        |config, value| config.idle_timeout = parse::duration(value)?;
    "DETECT_TIMEOUT", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("2s"),
        "How long to wait for the rest of what may be a request or a TLS handshake, once its first bytes are there, on a port that declares no protocol; then it is relayed as opaque. A proxy that drains waits as long for the first bytes of a connection, and then for the rest, on every port.",
        |config, value| config.detect_timeout = parse::duration(value)?;
    "HEADER_READ_TIMEOUT", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("30s"),
        "How long a request's head may take to arrive.",
        |config, value| config.header_read_timeout = parse::duration(value)?;
    "MAX_HEAD_BYTES", "a size (`65536`, `128KiB`, `1MiB`), from 8KiB to 16MiB", Some("128KiB"),
        "How large a request line with its headers may be.",
        |config, value| config.max_head_bytes = parse::size(value, 8 << 10, 16 << 20)?;
    "MAX_CONNECTIONS", "a number of at least 1, or `auto`", Some("auto"),
        "How many accepted connections the proxy holds, over all workers. Auto: half of what its file descriptors allow.",
        |config, value| config.max_connections = parse::auto(value, |value| parse::number(value, 1, usize::MAX))?;
    "LISTEN_BACKLOG", "a number from 1 to 65535", Some("4096"),
        "How many connections the kernel holds for each listener until they are accepted (bounded by `net.core.somaxconn`).",
        |config, value| config.listen_backlog = parse::number(value, 1, 65535)?.try_into().map_err(|_| "too large")?;
    "DRAIN_GRACE", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("30s"),
        "How long requests and connections may go on once the proxy is told to drain: by SIGTERM or `/drain`, whichever comes first.",
        |config, value| config.drain_grace = parse::any_duration(value)?;
    "DISCOVERY_TIMEOUT", "a duration (`300ms`, `10s`, `5m`, `1h`)", Some("1s"),
        "How long the first use of an address or service waits for the control plane's answer.",
        |config, value| config.discovery_timeout = parse::duration(value)?;
    "LOAD_REPORT_INTERVAL", "a duration from 1s to 30s, or `none`", Some("5s"),
        "How often the control plane is told what the proxy carries, for `tulle stat`, `edges` and `routes`.",
        |config, value| config.load_report_interval = parse::report_interval(value)?;
    "ADMIN_ADDRESS", "<ip>:<port> or `none`; a loopback address", Some("127.0.0.1:15000"),
        "Where `/config_dump`, `/connections`, `/certs`, `/authz`, `/log-level`, `/drain` and `/shutdown` are served.",
        |config, value| config.admin_address = parse::address_or_none(value)?;
    "ADMIN_SOCKET", "a path", None,
        "A unix socket that serves the same.",
        |config, value| config.admin_socket = Some(value.into());
    "METRICS_ADDRESS", "<ip>:<port> or `none`", Some("[::]:15020"),
        "Where `/metrics`, `/ready`, `/live` and `/probe/…` are served, GET and HEAD only.",
        |config, value| config.metrics_address = parse::address_or_none(value)?;
    "PROBES", "JSON, as the injector writes it", None,
        "The kubelet's probes of this pod: `made` are served as `/probe/<container>/<kind>` on `METRICS_ADDRESS`, and made by the proxy to the \
         application; `allowed` are let in without an identity, by exactly their port and path ([probes](../injection.md#probes)).",
        |config, value| config.probes = probes::probes(value)?;
    "PROBES_ADDRESS", "an IP address", Some("127.0.0.1"),
        "Where the application is for probes that the proxy makes: the pod's address, from the downward API.",
        |config, value| config.probes_address = parse::ip(value)?;
    "METRICS_MAX_SERIES", "a number from 1000 to 1000000", Some("2000"),
        "How many lines `/metrics` may have. What comes beyond is counted under `overflow=\"true\"`.",
        |config, value| config.metrics_max_series = parse::number(value, 1000, 1_000_000)?;
    "METRICS_LABELS", "some of `peer`, `service`, `route`, `backend`, or `none`", Some("peer,service,route,backend"),
        "Which of these labels the series of requests and connections have; what a label would tell apart is added up without it.",
        |config, value| config.metrics_labels = parse::series_labels(value)?;
    "METRICS_LATENCY_BUCKETS", "ascending durations, at most 32", Some(BUCKETS),
        "Upper bounds of the buckets of latency histograms.",
        |config, value| config.metrics_latency_buckets = parse::buckets(value)?;
    "ADDRESSES_FILE", "a path", None,
        "Where the addresses of all listeners are written once they are bound, as one JSON object.",
        |config, value| config.addresses_file = Some(value.into());
    "LOG_LEVEL", "`error`, `warn`, `info`, `debug`, or directives (`info,tulle_proxy::tls=debug`)", Some("info"),
        "What diagnostics are written to standard output; can be changed at run time by `/log-level`. `trace` is the same as `debug`: what is below is not built in.",
        |config, value| config.log_level = parse::log_level(value)?;
    "LOG_FORMAT", "`json` or `text`", Some("json"),
        "How diagnostics are written.",
        |config, value| config.log_format = parse::choice(value, &[("json", LogFormat::Json), ("text", LogFormat::Text)])?;
    "ACCESS_LOG", "`json`, `apache`, `ecs`, `none`, or a template (`{status} {path}`)", None,
        "How requests and connections are written to standard error, by [Access log](../observability.md#access-log). This setting and those \
         below win over what the mesh says of the access log; not set, and the mesh says nothing: `json`.",
        |config, value| config.access_log.format = Some(parse::access_log(value)?);
    "ACCESS_LOG_STATUSES", "<status>[-<status>][,…], of which `5xx` is one, `all` or `none`", None,
        "Only requests answered with one of these are written; what has no status is not. A call of gRPC counts as what its status \
         stands for in HTTP. `none`: nothing is, for its status; `all`: whatever its status is, and without one.",
        |config, value| config.access_log.statuses = Some(parse::statuses(value)?);
    "ACCESS_LOG_MIN_DURATION", "a duration (`0s`, `300ms`, `10s`, `5m`, `1h`)", None,
        "Only what took as long or longer is written.",
        |config, value| config.access_log.min_duration = Some(parse::any_duration(value)?);
    "ACCESS_LOG_SAMPLE_PERCENT", "a number from 0 to 100, such as `1` or `0.1`", None,
        "Only so many of a hundred are written, by chance; of those that the settings above describe. All proxies choose the same traces.",
        |config, value| config.access_log.sample = Some(parse::percent(value)?);
    "ACCESS_LOG_ERRORS", "`always` or `filtered`", None,
        "Whether what a proxy answered, refused or gave up by itself (`reason`) is written whatever the settings above say. Not set: `always`.",
        |config, value| config.access_log.errors = Some(parse::choice(value, &[("always", Errors::Always), ("filtered", Errors::Filtered)])?);
    "TRACING_CONNECTIONS", "`true` or `false`", None,
        "Whether connections that carry no HTTP are traced too, each as a trace of its own. Not set: as the Mesh says, else `false`.",
        |config, value| config.tracing.connections = Some(parse::yes_or_no(value)?);
}

// === impl Variable ===

impl Variable {
    /// `TULLE_PROXY_CONNECT_TIMEOUT`.
    pub fn variable(&self) -> String {
        if self.name.starts_with(OTEL_PREFIX) {
            self.name.to_owned()
        } else {
            format!("{PREFIX}{}", self.name)
        }
    }

    /// `connect-timeout`, without the dashes before it.
    pub fn flag(&self) -> String {
        self.name.to_ascii_lowercase().replace('_', "-")
    }

    /// The default, or `none`.
    pub fn default_text(&self) -> &'static str {
        self.default.unwrap_or("none")
    }
}

/// The text of `docs/reference/proxy.md`.
pub fn reference() -> String {
    let mut out = String::from(INTRODUCTION);
    rows(&mut out, VARIABLES);
    out.push_str(TRACING);
    rows(&mut out, OTEL_VARIABLES);
    out.push_str(ADMIN);
    out.push_str(ADDRESSES);
    out
}

fn rows(out: &mut String, variables: &[Variable]) {
    use std::fmt::Write as _;
    for variable in variables {
        let default = variable
            .default
            .map_or_else(|| "—".to_owned(), |default| format!("`{}`", default.replace(',', ", ")));
        let _ = writeln!(
            out,
            "| `{}` | {} | {default} | {} |",
            variable.variable(),
            variable.form.replace('|', "\\|").replace('<', "&lt;"),
            variable.meaning
        );
    }
}

const INTRODUCTION: &str = "# tulle-proxy: variables and flags

Each setting is a variable and a flag: `TULLE_PROXY_CONNECT_TIMEOUT=300ms` is `--connect-timeout 300ms`. The flag wins. A bad value
stops the start with a message that names the setting and the form that it takes. A variable that begins with
`TULLE_PROXY_` and is none of these is warned about. Set to nothing is the same as not set.

This page is made from the tables in `proxy/src/config/table.rs` and `proxy/src/config/otel.rs`.

| variable | takes | default | meaning |
| --- | --- | --- | --- |
";

const TRACING: &str = "
## Tracing

OpenTelemetry's own variables, as they are named there, without flags; [tracing](../tracing.md) says what becomes of them. They win over what the mesh says.
A bad value stops the start. Other variables of OpenTelemetry's are not looked at.

| variable | takes | default | meaning |
| --- | --- | --- | --- |
";

const ADMIN: &str = "
## The admin endpoints

On `TULLE_PROXY_ADMIN_ADDRESS` and `TULLE_PROXY_ADMIN_SOCKET`, for tools on the same host. On the address a request that a web page sends (`Origin`, `Sec-Fetch-Site`), or
whose `Host` is not this host's loopback, gets 403.

| path | methods | what |
| --- | --- | --- |
| `/config_dump` | GET, HEAD | All that the control plane has told, as JSON. Never a key. |
| `/connections` | GET, HEAD | The open connections that policy judges, as JSON: those to the application, from other workloads and from outside the mesh, and those that leave the mesh (`outside`). The application's own connections to Services are not there: `tulle_connections_active` with `direction=\"outbound\"` counts them. |
| `/certs` | GET, HEAD | The workload's certificate and the roots that it trusts, as JSON; `null` before the first certificate. |
| `/authz` | GET, HEAD | The policies for what comes in that are in force, and how often each rule has decided, as JSON; `null` before the first. With parameters (`port`, `identity`, `client`, `method`, `path`, `host`, `header`, `claims`), what they would make of such a request; without `method` and `path`, of bytes that are no HTTP. `tulle authz` asks it. |
| `/log-level` | GET, HEAD, PUT | What is logged; the body of PUT is a level, or directives as for `TULLE_PROXY_LOG_LEVEL`. |
| `/drain` | POST | Begins to [drain](../resilience.md#a-proxy-that-ends), and goes on for as long as the application is there. |
| `/shutdown` | POST | Begins to drain, and ends then. |
";

const ADDRESSES: &str = "
## The file of addresses

With `TULLE_PROXY_ADDRESSES_FILE`, once every listener is bound, one JSON object from listener to bound address is written beside the file
and moved into its place, so that a reader sees all of it or nothing:

```json
{
  \"admin\": \"127.0.0.1:40001\",
  \"inbound\": \"[::]:15006\",
  \"inbound/127.0.0.1:8080\": \"127.0.0.1:40002\",
  \"metrics\": \"127.0.0.1:40003\",
  \"outbound\": \"[::]:15001\",
  \"outbound/default/orders:8080\": \"127.0.0.1:40004\"
}
```

`inbound/…` names the application's address, `outbound/…` the service and its port. A second listener of the same name ends in `#2`.
";

/// A duration that bounds something: never zero, at most a day.
pub(super) const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);
