//! That the benchmark measures whom it is given, tells who is missing, and leaves nobody behind. Never how fast anybody is.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tokio::net::TcpSocket;

/// Starts the benchmark's own bare halves as a pair from elsewhere.
const STARTER: &str = r#"#!/bin/sh
if [ "$1" = --version ]; then echo "pair 1.0"; exit; fi
half() { exec BENCH bare --side "$1" --listen "$2" --to "$3" --from-speaks "$BENCH_SPEAKS" --to-speaks "$BENCH_SPEAKS" --pki "$BENCH_PKI"; }
half outbound "$BENCH_FRONT" BETWEEN & outbound=$!
half inbound BETWEEN "$BENCH_BACKEND" & inbound=$!
echo "$outbound $inbound $$" > COPY
echo "$outbound $inbound" > "$BENCH_PIDS"
wait
"#;

fn executable(path: &Path, text: &str) {
    let written = path.with_extension("sh");
    std::fs::write(&written, text).unwrap();
    tulle_tests::copy_executable(&written, path);
}

/// What a quick benchmark of these peers saves and says.
fn bench(folder: &Path, arguments: &[&str]) -> (Value, String) {
    let output = folder.join("table.md");
    let binaries: PathBuf = tulle_tests::binary("tulle-proxy").parent().unwrap().into();
    let ran = Command::new(env!("CARGO_BIN_EXE_bench"))
        .args(["--scenarios", "tcp", "--quick", "--output"])
        .arg(&output)
        .arg("--bin-dir")
        .arg(binaries)
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert!(ran.status.success(), "{said}");
    (serde_json::from_slice(&std::fs::read(output.with_extension("json")).unwrap()).unwrap(), said)
}

#[test]
fn a_pair_that_is_given_is_measured_and_one_that_is_not_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (starter, copy) = (folder.path().join("starter"), folder.path().join("pids"));
    let text = STARTER.replace("BENCH bare", &format!("{} bare", env!("CARGO_BIN_EXE_bench")));
    // Nobody else gets the port while this is bound to it, and the pair may listen there.
    let kept = TcpSocket::new_v4().unwrap();
    kept.set_reuseaddr(true).unwrap();
    kept.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let between = kept.local_addr().unwrap();
    let text = text.replace("COPY", &copy.display().to_string()).replace("BETWEEN", &between.to_string());
    executable(&starter, &text);
    let given = ["--peers", "ztunnel,linkerd2-proxy", "--ztunnel", starter.to_str().unwrap()];
    let (report, said) = bench(folder.path(), &given);
    assert!(said.contains("missing: linkerd2-proxy: no --linkerd2-proxy was given"), "{said}");
    let found = report["found"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{report}");
    assert_eq!((&found[0]["peer"], &found[0]["scenario"]), (&"ztunnel".into(), &"tcp".into()));
    let sample = &found[0]["samples"][0];
    for figure in ["rps", "out", "in", "p50", "loaded"] {
        assert!(sample[figure].as_f64().unwrap() > 0.0, "{figure}: {sample}");
    }
    // Both halves and their shell.
    let pids = std::fs::read_to_string(copy).unwrap();
    assert_eq!(pids.split_whitespace().count(), 3, "{pids}");
    for pid in pids.split_whitespace() {
        // Who is killed is gone a moment later.
        let begun = std::time::Instant::now();
        while !ended(pid) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(30), "process {pid} runs still");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

#[test]
fn a_pair_that_does_not_start_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let starter = folder.path().join("starter");
    for (text, told) in [
        ("echo no control plane >&2; exit 3", "no control plane"),
        ("echo one two > \"$BENCH_PIDS\"; sleep 60", "BENCH_PIDS holds \"one two\""),
    ] {
        executable(
            &starter,
            &format!("#!/bin/sh\nif [ \"$1\" = --version ]; then echo 1; exit; fi\n{text}\n"),
        );
        let (report, said) =
            bench(folder.path(), &["--peers", "ztunnel", "--ztunnel", starter.to_str().unwrap()]);
        assert!(said.contains(told), "{said}");
        let measured =
            report["found"].as_array().unwrap().iter().any(|found| found["samples"] != Value::Array(vec![]));
        assert!(!measured, "{report}");
    }
}

fn ended(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Dead, its parent has only not asked yet.
    stat.is_empty() || stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'))
}
