//! What only a real Kubernetes API server can say.
//!
//! Ignored by `cargo test`: they need kube-apiserver, which `.ci/run kubernetes` builds, and Debian's etcd. A program that is missing
//! fails its test. See docs/testing.md.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::large_futures, reason = "tests")]

#[path = "../../../control-plane/src/kinds/tests/cases.rs"]
mod cases;
mod chart;
mod check;
mod default_policy;
mod definitions;
mod demo;
mod disturbed;
mod gateway;
mod issuer;
mod mesh;
mod node;
mod outside;
mod release;
mod rotation;
mod services;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tulle_tests::cluster::documents;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Every object in a folder's files of YAML, by the files' names.
fn objects(folder: &Path) -> Vec<Value> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let objects: Vec<Value> =
        files.iter().flat_map(|file| documents(&fs::read_to_string(file).unwrap())).collect();
    // A kustomization lists the others.
    objects.into_iter().filter(|object| object["kind"].is_string()).collect()
}

/// The objects of a file of YAML.
fn manifest(file: &str) -> Vec<Value> {
    documents(&fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}")))
}

/// The custom resource definitions of the chart.
fn ours() -> Vec<Value> {
    objects(&root().join("helm/tulle/files/crds"))
}

/// Those of a channel of the Gateway API.
fn gateway_api(channel: &str) -> Vec<Value> {
    let folder = std::env::var_os("TULLE_TEST_GATEWAY_API");
    let folder = folder.expect(
        "TULLE_TEST_GATEWAY_API names the folder config/crd of the Gateway API's Go module; `.ci/run kubernetes` fetches it",
    );
    objects(&Path::new(&folder).join(channel))
}

/// cert-manager's own definition of a Certificate.
fn cert_manager() -> Vec<Value> {
    let folder = std::env::var_os("TULLE_TEST_CERT_MANAGER");
    let folder = folder.expect(
        "TULLE_TEST_CERT_MANAGER names the folder deploy/crds of cert-manager's Go module; `.ci/run kubernetes` fetches it",
    );
    let mut objects = objects(Path::new(&folder));
    objects.retain(|object| object["metadata"]["name"] == "certificates.cert-manager.io");
    objects
}

/// Every whole object that a page shows, with where it is.
fn shown() -> Vec<(String, Value)> {
    let mut found = Vec::new();
    for folder in ["docs", "docs/reference"] {
        let entries = fs::read_dir(root().join(folder)).unwrap();
        let mut pages: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
        pages.retain(|page| page.extension().is_some_and(|extension| extension == "md"));
        pages.sort();
        for page in pages {
            let text = fs::read_to_string(&page).unwrap();
            let blocks = text.split("```yaml\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0));
            for (number, block) in (1..).zip(blocks) {
                let place = format!("{folder}/{}, block {number}", page.file_name().unwrap().display());
                let objects = documents(block).into_iter().filter(|object| object["kind"].is_string());
                found.extend(objects.map(|object| (place.clone(), object)));
            }
        }
    }
    found
}
