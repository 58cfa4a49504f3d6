//! Compiles the protobufs with protox, so that building needs no `protoc`.

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(
        [
            "envoy/service/auth/v3/external_auth.proto",
            "envoy/service/discovery/v3/discovery.proto",
            "istio/v1/auth/ca.proto",
            "tulle/v1/resources.proto",
            "tulle/v1/policy.proto",
            "tulle/v1/proxy.proto",
            "tulle/v1/view.proto",
            "spiffe/workload.proto",
        ],
        [root],
    )?;
    let mut prost = tonic_prost_build::Config::new();
    // Gives every message its full name and type URL.
    prost.enable_type_names();
    prost.type_name_domain(["."], "type.googleapis.com");
    prost.bytes(["."]);
    tonic_prost_build::configure().compile_fds_with_config(files, prost)?;
    Ok(())
}
