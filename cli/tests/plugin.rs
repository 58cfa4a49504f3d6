//! A command whose kubeconfig names a credential plugin that never ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_signal_ends_the_command_and_the_plugin_that_it_waits_for() {
    let folder = tempfile::tempdir().unwrap();
    for (number, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let begun = folder.path().join(format!("pid-{number}"));
        let place = begun.display();
        let script = format!("echo $$ > {place}.new; mv {place}.new {place}; exec sleep 600");
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "a",
            "clusters": [{"name": "a", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "a", "user": {"exec": {
                "apiVersion": "client.authentication.k8s.io/v1", "command": "/bin/sh", "args": ["-c", script],
                "interactiveMode": "Never",
            }}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
        });
        let file = folder.path().join("kubeconfig");
        fs::write(&file, config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_tulle"))
            .args(["check", "--kubeconfig"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while !begun.exists() {
            assert_eq!(command.try_wait().unwrap(), None, "it waits for the plugin");
            thread::sleep(Duration::from_millis(10));
        }
        kill_process(Pid::from_child(&command), signal).unwrap();
        assert_eq!(command.wait().unwrap().signal(), Some(signal.as_raw()));
        let plugin = fs::read_to_string(&begun).unwrap();
        assert!(!Path::new("/proc").join(plugin.trim()).exists(), "{plugin} is left behind");
    }
}
