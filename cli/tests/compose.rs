//! `docs/examples/compose` cannot be run in every place where tests are; what can be said of it without Docker is
//! here: it is YAML, its flags are flags, its addresses fit together, and its configuration has no findings.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::collections::HashMap;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use saphyr::{LoadableYamlNode as _, Yaml};
use tulle_proxy::config;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/examples/compose")
}

/// Every container's program and arguments, and its address in the mesh's network.
fn containers() -> HashMap<String, (Vec<String>, Option<String>)> {
    let text = std::fs::read_to_string(folder().join("compose.yaml")).unwrap();
    let documents = Yaml::load_from_str(&text).unwrap();
    let services = documents[0].as_mapping_get("services").unwrap().as_mapping().unwrap();
    services
        .iter()
        .map(|(name, service)| {
            let command = service.as_mapping_get("command").unwrap().as_str().unwrap();
            let networks =
                service.as_mapping_get("networks").and_then(|networks| networks.as_mapping_get("mesh"));
            let address =
                networks.and_then(|mesh| mesh.as_mapping_get("ipv4_address")).and_then(Yaml::as_str);
            let command = command.split_whitespace().map(str::to_owned).collect();
            (name.as_str().unwrap().to_owned(), (command, address.map(str::to_owned)))
        })
        .collect()
}

fn flag<'a>(command: &'a [String], name: &str) -> Option<&'a str> {
    let at = command.iter().position(|argument| argument == name)?;
    command.get(at + 1).map(String::as_str)
}

#[test]
fn the_configuration_has_no_findings() {
    let findings = tulle_control_plane::source::check(&folder().join("config")).unwrap().findings;
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn proxies_take_their_flags_and_stand_beside_their_applications() {
    let containers = containers();
    let mut proxies = 0;
    for (name, (command, _)) in &containers {
        let Some(workload) = name.strip_suffix("-proxy") else { continue };
        proxies += 1;
        assert_eq!(command[0], "/bin/tulle-proxy", "{name}");
        let arguments = command.iter().map(OsString::from);
        let config = config::load(clap::Command::new("tulle-proxy"), arguments, []).unwrap().config;
        assert_eq!(config.workload.unwrap().to_string(), format!("demo/{workload}"));
        let (application, address) = &containers[workload];
        let inbound = &config.inbound_ports[0];
        assert_eq!(Some(inbound.listen.ip().to_string()), *address, "{name} is registered where it listens");
        let listen: SocketAddr = flag(application, "--listen").unwrap().parse().unwrap();
        assert_eq!(inbound.application.port(), listen.port(), "{name}");
        let control_plane = config.control_plane_address.unwrap();
        assert_eq!(Some(control_plane.host), containers["control-plane"].1, "{name}");
        let (token, _) = &containers[&format!("{workload}-token")];
        assert_eq!(flag(token, "--out"), flag(command, "--identity-token-file"), "{name}");
        for port in &inbound.services {
            assert!(token.contains(&port.service), "{name}: the token lets it register for {}", port.service);
        }
        let upstream = flag(application, "--upstream").map(|upstream| upstream.split_once('=').unwrap());
        let outbound = config.outbound_services.first();
        assert_eq!(
            upstream.map(|(_, address)| address.parse().unwrap()),
            outbound.map(|outbound| outbound.listen)
        );
    }
    assert_eq!(proxies, 4);
}

#[test]
fn the_control_plane_takes_its_flags_and_listens_where_proxies_look_for_it() {
    let containers = containers();
    let (command, _) = &containers["control-plane"];
    assert_eq!(command[0], "/bin/tulle-control-plane");
    let config = tulle_control_plane::config::Config::load(command.iter().map(OsString::from)).unwrap();
    for (command, _) in containers.values().filter(|(command, _)| command[0] == "/bin/tulle-proxy") {
        let address: SocketAddr = flag(command, "--control-plane-address").unwrap().parse().unwrap();
        assert_eq!(address.port(), config.grpc_address.port());
    }
}

#[test]
fn the_command_takes_its_arguments() {
    for (name, (command, _)) in containers().iter().filter(|(_, (command, _))| command[0] == "/bin/tulle") {
        // What cannot be parsed is 2; a token cannot be made here, and a service would not end.
        if name.ends_with("-token") {
            let output = Command::new(env!("CARGO_BIN_EXE_tulle")).args(&command[1..]).output().unwrap();
            assert_eq!(output.status.code(), Some(1), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
