//! The binary as it is started: what its environment says.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::process::{Command, Output};

/// Of a control plane whose folder of YAML is missing, so that it ends by itself.
fn started(variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tulle-control-plane"))
        .envs(variables.iter().copied())
        .env("TULLE_CONTROL_PLANE_CONFIG_DIR", folder.path().join("none"))
        .env("TULLE_CONTROL_PLANE_STATE_DIR", folder.path().join("state"))
        .output()
        .unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn a_variable_that_is_no_setting_is_warned_about_and_one_set_to_nothing_is_not_set() {
    let (status, said) = started(&[
        ("TULLE_CONTROL_PLANE_LEAF_LIFETIM", "1h"),
        ("TULLE_CONTROL_PLANE_SERVICE_HOST", "10.0.0.1"),
        ("TULLE_CONTROL_PLANE_PORT_15012_TCP", "tcp://10.0.0.1:15012"),
        ("TULLE_CONTROL_PLANE_TRUST_DOMAIN", ""),
        ("TULLE_CONTROL_PLANE_ADDRESSES_FILE", ""),
    ]);
    assert_eq!(status, Some(1), "{said}");
    assert!(said.contains("configuration folder"), "it came so far: {said}");
    assert!(said.contains("TULLE_CONTROL_PLANE_LEAF_LIFETIM is no setting"), "{said}");
    assert_eq!(said.matches("is no setting").count(), 1, "{said}");

    let (status, said) = started(&[("TULLE_CONTROL_PLANE_TRUST_DOMAIN", "A B")]);
    assert_eq!(status, Some(2), "{said}");
    assert!(said.contains("TULLE_CONTROL_PLANE_TRUST_DOMAIN"), "{said}");
}

/// A home that is not set is not looked up either: where the program is linked statically, that look-up ends it.
#[test]
fn without_a_kubeconfig_a_home_or_a_pod_it_says_what_to_set() {
    let Output { status, stdout, stderr } = Command::new(env!("CARGO_BIN_EXE_tulle-control-plane"))
        .args(["--source", "kubernetes"])
        .env_remove("KUBECONFIG")
        .env_remove("HOME")
        .env_remove("KUBERNETES_SERVICE_HOST")
        .output()
        .unwrap();
    let said = String::from_utf8([stdout, stderr].concat()).unwrap();
    assert_eq!(status.code(), Some(1), "{status}: {said}");
    assert!(said.contains("cannot find a Kubernetes API server"), "{said}");
    for part in ["set KUBECONFIG", "or HOME", "no service account of a pod"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
