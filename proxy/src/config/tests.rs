use super::*;
use crate::telemetry::access::{Share, Statuses};

fn try_load(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let arguments = std::iter::once("tulle-proxy").chain(arguments.iter().copied()).map(Into::into);
    let environment = environment.iter().map(|(name, value)| (name.into(), value.into()));
    load(clap::Command::new("tulle-proxy"), arguments, environment)
}

fn error(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    try_load(arguments, environment).unwrap_err().to_string()
}

#[test]
fn every_default_parses() {
    for variable in VARIABLES {
        if let Some(default) = variable.default {
            let mut config = Config::default();
            assert_eq!((variable.set)(&mut config, default), Ok(()), "{}", variable.name);
        }
    }
    let config = Config::default();
    assert_eq!(config.connect_timeout, Duration::from_secs(1));
    assert_eq!(config.idle_timeout, Duration::from_secs(3));
    assert_eq!(config.max_head_bytes, 128 * 1024);
    assert_eq!(config.metrics_latency_buckets.len(), 14);
    assert!(config.opaque_ports.contains(3306) && !config.opaque_ports.contains(8080));
    config.validate().unwrap();
}

#[test]
fn names_are_unique_and_made_of_capitals() {
    for (index, variable) in VARIABLES.iter().enumerate() {
        assert!(variable.name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{}", variable.name);
        assert!(VARIABLES[index + 1..].iter().all(|other| other.name != variable.name), "{}", variable.name);
    }
}

#[test]
fn a_flag_wins_over_its_variable() {
    let environment =
        [("TULLE_PROXY_CONNECT_TIMEOUT", "2s"), ("TULLE_PROXY_IDLE_TIMEOUT", "1m30s"), ("HOME", "/x")];
    let loaded = try_load(&["--connect-timeout", "300ms"], &environment).unwrap();
    assert_eq!(loaded.config.connect_timeout, Duration::from_millis(300));
    assert_eq!(loaded.config.idle_timeout, Duration::from_secs(90));
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn set_to_nothing_is_not_set() {
    let loaded = try_load(&[], &[("TULLE_PROXY_WORKERS", " ")]).unwrap();
    assert_eq!(loaded.config.workers, None);
}

#[test]
fn a_bad_value_names_the_setting_the_value_and_the_form() {
    let text = error(&[], &[("TULLE_PROXY_CONNECT_TIMEOUT", "5")]);
    assert!(
        text.contains("TULLE_PROXY_CONNECT_TIMEOUT") && text.contains("`5`") && text.contains("300ms"),
        "{text}"
    );
    let text = error(&["--workers", "0"], &[]);
    assert!(text.contains("--workers") && text.contains("less than 1"), "{text}");
}

#[test]
fn bad_values_of_every_kind_are_refused() {
    for (name, value) in [
        ("WORKLOAD", "web"),
        ("WORKLOAD", "Default/web"),
        ("WORKLOAD", "default/"),
        ("LOCALITY", "a/b/c"),
        ("CONTROL_PLANE_ADDRESS", "localhost"),
        ("CONTROL_PLANE_ADDRESS", "localhost:0"),
        ("CONTROL_PLANE_ADDRESS", "::1:15012"),
        ("CONTROL_PLANE_ADDRESS", "[zz]:15012"),
        ("CONTROL_PLANE_ADDRESS", "a b:15012"),
        ("OUTBOUND_LISTEN", "localhost:1"),
        ("OUTBOUND_SERVICES", "127.0.0.1:0"),
        ("OUTBOUND_SERVICES", "127.0.0.1:0=orders:8080"),
        ("OUTBOUND_SERVICES", "127.0.0.1:0=default/orders"),
        ("INBOUND_PORTS", "127.0.0.1:0=127.0.0.1:0"),
        ("INBOUND_PORTS", "127.0.0.1:0=127.0.0.1:8080/orders"),
        ("REGISTER_ADDRESS", "0.0.0.0"),
        ("OPAQUE_PORTS", "9-3"),
        ("OPAQUE_PORTS", "0"),
        ("INTERCEPT_PROXY_UID", "4294967295"),
        ("INTERCEPT_PROXY_MARK", "0"),
        ("INTERCEPT_PROXY_MARK", "0xg"),
        ("INTERCEPT_SKIP_INBOUND_PORTS", "80-"),
        ("INTERCEPT_SKIP_SUBNETS", "10.0.0.1/8"),
        ("INTERCEPT_SKIP_SUBNETS", "10.0.0.0/33"),
        ("INTERCEPT_SKIP_UIDS", "root"),
        ("INTERCEPT_DNS", "yes"),
        ("WORKERS", "1.5"),
        ("CPU_REQUEST", "0"),
        ("CPU_REQUEST", "-1"),
        ("CPU_REQUEST", "1.x"),
        ("CONNECT_TIMEOUT", "0s"),
        ("CONNECT_TIMEOUT", "s"),
        ("CONNECT_TIMEOUT", "1 s"),
        ("CONNECT_TIMEOUT", "1d"),
        ("CONNECT_TIMEOUT", "99999999999999s"),
        ("CONNECT_TIMEOUT", "25h"),
        ("MAX_HEAD_BYTES", "1KB"),
        ("MAX_HEAD_BYTES", "1KiB"),
        ("MAX_HEAD_BYTES", "18446744073709551615MiB"),
        ("MAX_CONNECTIONS", "0"),
        ("LISTEN_BACKLOG", "70000"),
        ("METRICS_LABELS", "peer,path"),
        ("METRICS_LATENCY_BUCKETS", "1s,500ms"),
        ("LOG_LEVEL", "info,=="),
        ("LOG_FORMAT", "xml"),
        ("ACCESS_LOG", "yes"),
        ("ACCESS_LOG", "{status} {user}"),
        ("ACCESS_LOG_STATUSES", "600"),
        ("ACCESS_LOG_STATUSES", "404;500"),
        ("ACCESS_LOG_MIN_DURATION", "250"),
        ("ACCESS_LOG_SAMPLE_PERCENT", "101"),
        ("ACCESS_LOG_SAMPLE_PERCENT", "1%"),
        ("ACCESS_LOG_ERRORS", "never"),
    ] {
        let variable = format!("{PREFIX}{name}");
        let text = error(&[], &[(&variable, value)]);
        assert!(text.contains(&variable), "{name}={value}: {text}");
    }
}

#[test]
fn an_unknown_variable_is_warned_about_with_the_nearest() {
    let loaded = try_load(&[], &[("TULLE_PROXY_WORKER", "2"), ("TULLE_PROXY_COMPLETELY_ELSE", "1")]).unwrap();
    assert_eq!(loaded.warnings.len(), 2);
    assert!(!loaded.warnings[0].contains("did you mean"), "{:?}", loaded.warnings);
    assert!(loaded.warnings[1].contains("did you mean TULLE_PROXY_WORKERS?"), "{:?}", loaded.warnings);
}

#[test]
fn listeners_without_interception_are_read() {
    let loaded = try_load(
        &[],
        &[
            ("TULLE_PROXY_OUTBOUND_LISTEN", "none"),
            (
                "TULLE_PROXY_OUTBOUND_SERVICES",
                "127.0.0.1:0=default/orders:8080, [::1]:9=default/payments:80,",
            ),
            (
                "TULLE_PROXY_INBOUND_PORTS",
                "127.0.0.1:0=127.0.0.1:8080/orders:8080/orders-v2:80,127.0.0.1:0=127.0.0.1:9090",
            ),
        ],
    )
    .unwrap();
    let config = loaded.config;
    assert!(config.outbound_listen.is_empty());
    assert_eq!(config.outbound_services.len(), 2);
    assert_eq!(config.outbound_services[1].service.to_string(), "default/payments");
    assert_eq!(
        config.inbound_ports[0].services[1],
        ServicePort { service: "orders-v2".to_owned(), port: 80 }
    );
    assert!(config.inbound_ports[1].services.is_empty());
    assert_eq!(config.advertised_ip(&config.inbound_ports[0]), Some("127.0.0.1".parse().unwrap()));
    assert_eq!(
        BoundAddresses::outbound_service(&config.outbound_services[0]),
        "outbound/default/orders:8080"
    );
    assert_eq!(BoundAddresses::inbound_port(&config.inbound_ports[0]), "inbound/127.0.0.1:8080");
}

#[test]
fn settings_that_do_not_go_together_are_refused() {
    for (settings, expected) in [
        (vec![("CONTROL_PLANE_ADDRESS", "localhost:15012")], "TULLE_PROXY_WORKLOAD"),
        (vec![("CONTROL_PLANE_ADDRESS", "localhost:15012"), ("WORKLOAD", "default/web")], "no identity"),
        (vec![("IDENTITY_CERT_FILE", "/c")], "TULLE_PROXY_IDENTITY_KEY_FILE"),
        (
            vec![("IDENTITY_CERT_FILE", "/c"), ("IDENTITY_KEY_FILE", "/k")],
            "TULLE_PROXY_IDENTITY_TRUST_BUNDLE_FILE",
        ),
        (
            vec![("IDENTITY_TOKEN_FILE", "/t"), ("IDENTITY_WORKLOAD_API", "unix:///agent.sock")],
            "two sources of one identity",
        ),
        (vec![("IDENTITY_CA_ADDRESS", "csr:443")], "needs TULLE_PROXY_IDENTITY_CA_ROOTS_FILE"),
        (
            vec![("IDENTITY_CA_ADDRESS", "csr:443"), ("IDENTITY_CA_ROOTS_FILE", "/r")],
            "needs TULLE_PROXY_IDENTITY_TOKEN_FILE",
        ),
        (
            vec![("IDENTITY_TOKEN_FILE", "/t"), ("IDENTITY_SPIFFE_ID", "spiffe://td/ns/a/sa/b")],
            "only beside TULLE_PROXY_IDENTITY_CA_ADDRESS or",
        ),
        (vec![("IDENTITY_SVID_HINT", "x")], "only beside TULLE_PROXY_IDENTITY_WORKLOAD_API"),
        (vec![("IDENTITY_WORKLOAD_API", "/agent.sock")], "unix:///"),
        (vec![("IDENTITY_SPIFFE_ID", "spiffe://td/web")], "/ns/<namespace>/sa/"),
        (vec![("ADMIN_ADDRESS", "0.0.0.0:15000")], "not a loopback address"),
        (vec![("INBOUND_PORTS", "0.0.0.0:0=127.0.0.1:80/web:80")], "TULLE_PROXY_REGISTER_ADDRESS"),
        (vec![("INBOUND_PORTS", "127.0.0.1:80=127.0.0.1:80")], "lead to itself"),
        (vec![("INTERCEPT_SKIP_INBOUND_PORTS", "22"), ("INTERCEPT_ONLY_INBOUND_PORTS", "80")], "in two ways"),
        (vec![("METRICS_ADDRESS", "127.0.0.1:15000")], "both listen on 127.0.0.1:15000"),
    ] {
        let environment: Vec<_> =
            settings.iter().map(|(name, value)| (format!("{PREFIX}{name}"), *value)).collect();
        let environment: Vec<_> = environment.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let text = error(&[], &environment);
        assert!(text.contains(expected), "{settings:?}: {text}");
    }
}

#[test]
fn the_endpoint_socket_of_spiffe_is_for_who_is_told_nothing_else() {
    let socket = ("SPIFFE_ENDPOINT_SOCKET", "unix:///run/spire/agent.sock");
    let address = |environment: &[(&str, &str)]| {
        try_load(&[], environment).unwrap().config.identity_from.workload_api.map(|one| one.to_string())
    };
    assert_eq!(address(&[socket]).as_deref(), Some("unix:///run/spire/agent.sock"));
    assert_eq!(address(&[socket, ("TULLE_PROXY_IDENTITY_TOKEN_FILE", "/t")]), None);
    let other = ("TULLE_PROXY_IDENTITY_WORKLOAD_API", "tcp://127.0.0.1:8081");
    assert_eq!(address(&[socket, other]).as_deref(), Some("tcp://127.0.0.1:8081"));
    assert_eq!(address(&[("SPIFFE_ENDPOINT_SOCKET", "")]), None);
    let text = error(&[], &[("SPIFFE_ENDPOINT_SOCKET", "agent.sock")]);
    assert!(text.contains("SPIFFE_ENDPOINT_SOCKET") && text.contains("unix:///"), "{text}");
}

#[test]
fn help_lists_every_setting() {
    let text = error(&["--help"], &[]);
    for variable in VARIABLES {
        assert!(
            text.contains(&variable.variable()) && text.contains(&format!("--{}", variable.flag())),
            "{}",
            variable.name
        );
    }
}

#[test]
fn cpu_requests_are_read_as_kubernetes_writes_them() {
    for (text, millis) in [("2", 2000), ("0.5", 500), ("500m", 500), ("1.25", 1250), ("0.0015", 1)] {
        assert_eq!(parse::millis_of_cpu(text), Ok(millis), "{text}");
    }
}

#[test]
fn the_connection_limit_follows_the_file_descriptors() {
    let config = Config::default();
    assert_eq!(config.connection_limit(1024), 448);
    assert_eq!(config.connection_limit(0), 16);
    assert_eq!(Config { max_connections: Some(7), ..config }.connection_limit(1024), 7);
}

#[test]
fn the_access_log_is_described_by_several_settings() {
    let loaded = try_load(
        &["--access-log", "{status} {path}", "--access-log-statuses", "404,5xx"],
        &[("TULLE_PROXY_ACCESS_LOG_MIN_DURATION", "250ms"), ("TULLE_PROXY_ACCESS_LOG_SAMPLE_PERCENT", "0.5")],
    )
    .unwrap();
    let said = loaded.config.access_log;
    assert_eq!(said.format, Some("{status} {path}".parse().unwrap()));
    assert_eq!(said.statuses, Some([404..=404, 500..=599].into_iter().collect()));
    assert_eq!(said.min_duration, Some(Duration::from_millis(250)));
    assert_eq!(said.sample, Share::percent(0.5));
    assert_eq!(said.errors, None);
    let statuses =
        |value| try_load(&["--access-log-statuses", value], &[]).unwrap().config.access_log.statuses;
    assert_eq!(statuses("none"), Some(Statuses::from_iter([])));
    assert_eq!(statuses("all"), Some(Statuses::ALL));
    let text = error(&["--access-log", "{statsu}"], &[]);
    assert!(text.contains("--access-log") && text.contains("did you mean `{status}`"), "{text}");
}

#[test]
fn the_reference_page_says_what_the_table_says() {
    crate::telemetry::docs::compare("proxy.md", &reference());
}
