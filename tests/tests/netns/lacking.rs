//! `tulle-proxy intercept` where something is missing, or somebody else was first (R13).

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tulle_tests::netns::{in_a_node, shell};
use tulle_tests::{Folder, Process, Program, binary};

use crate::led::{answers, neighbour, who};
use crate::rules::{intercept, nft, refused, route, ruleset};

/// Runs `tulle-proxy intercept` on a kernel that seems to lack something.
fn without(what: &str, arguments: &[&str]) -> Output {
    // Itself, not what looks for it along the path.
    let python = shell("python3 -c 'import sys; print(sys.executable)'");
    let mut command = Command::new(python.trim());
    command
        .arg(without_script())
        .arg(what.trim_end_matches(", programs"))
        .arg(binary("tulle-proxy"))
        .arg("intercept")
        .args(arguments);
    command.env_clear().env("XTABLES_LOCKFILE", LOCK);
    let path = if what == NOTHING { Some("/nowhere".into()) } else { std::env::var_os("PATH") };
    command.envs(path.map(|path| ("PATH", path))).output().expect("Python starts")
}

/// In place of the machine's own, which is root's.
const LOCK: &str = "/dev/null";

/// Neither nf_tables nor programs for iptables.
const NOTHING: &str = "nf_tables, programs";

fn without_script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/kernel_without.py")
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn fails(output: &Output) -> String {
    assert!(!output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn r13_a_kernel_without_nf_tables_gets_the_same_rules_by_iptables() {
    in_a_node(async || {
        let without = |arguments: &[&str]| without("nf_tables", arguments);
        let other = neighbour();
        other.enter(|| answers("other", &[80, 81]));
        answers("own", &[80, 81]);
        answers("proxy", &[15001, 15006]);
        let seen = |port: u16| {
            let out = ["10.9.0.2", "[fd09::2]"].map(|ip| who(&format!("{ip}:{port}"), None));
            let into = ["10.9.0.1", "[fd09::1]"].map(|ip| other.enter(|| who(&format!("{ip}:{port}"), None)));
            [out, into].concat()
        };
        let of = |names: [&str; 4]| names.map(str::to_owned).to_vec();
        let (led, not) = (of(["proxy"; 4]), of(["other", "other", "own", "own"]));
        for _ in 0..2 {
            let said = succeeds(&without(&[
                "install",
                "--proxy-mark=7",
                "--skip-outbound-ports=81",
                "--only-inbound-ports=80",
            ]));
            assert!(said.contains("chains of iptables") && said.contains("no nf_tables"), "{said}");
            assert_eq!((seen(80), seen(81)), (led.clone(), not.clone()));
        }
        assert_eq!(ruleset(), "", "nothing by nf_tables");
        // Who has its rules by iptables hears it from `check`, also where the kernel has both.
        let said = succeeds(&without(&["remove"]));
        assert!(said.contains("chains of iptables"), "{said}");
        assert_eq!((seen(80), seen(81)), (not.clone(), not.clone()));
    });
}

#[test]
fn r13_the_check_sees_rules_of_iptables() {
    in_a_node(async || {
        route();
        succeeds(&without("nf_tables", &["install", "--proxy-mark=7"]));
        let said = succeeds(&without("nf_tables", &["check", "--proxy-mark=7"]));
        for line in [
            "IPv4: a connection leads",
            "IPv6: a connection leads",
            "inbound: 4 rules are in force in the table `nat` of ip6tables",
        ] {
            assert!(said.contains(line), "{said}");
        }
    });
}

#[test]
fn r13_without_nf_tables_and_iptables_it_says_what_to_do() {
    in_a_node(async || {
        let said = fails(&without(NOTHING, &["install"]));
        assert!(said.contains("no nf_tables") && said.contains("image with iptables"), "{said}");
    });
}

#[test]
fn r13_without_ipv6_there_is_ipv4() {
    in_a_node(async || {
        route();
        for line in ["true", "sysctl -q -w net.ipv6.conf.all.disable_ipv6=1"] {
            shell(line);
            succeeds(&without("ipv6", &["install", "--proxy-mark=7"]));
            let said = succeeds(&without("ipv6", &["check", "--proxy-mark=7"]));
            assert!(said.contains("IPv4: a connection leads to the proxy"), "{said}");
            assert!(said.contains("IPv6: not checked: Address family not supported"), "{said}");
        }
    });
}

#[test]
fn a_proxy_without_ipv6_listens_on_every_address_that_there_is() {
    in_a_node(async || {
        let (folder, program) = (Folder::new(), Program::new("proxy", "python3"));
        let addresses = program.addresses_file(&folder.run());
        let program = program.arg(without_script()).arg("ipv6").arg(binary("tulle-proxy"));
        let mut proxy = Process::start(program.flag("--addresses-file", addresses), &folder);
        let bound = proxy.addresses().await;
        for (listener, address) in
            [("outbound", "0.0.0.0:15001"), ("inbound", "0.0.0.0:15006"), ("metrics", "0.0.0.0:15020")]
        {
            assert_eq!(bound[listener].to_string(), address);
        }
    });
}

#[test]
fn r13_another_meshs_rules_are_named_and_nothing_is_written() {
    in_a_node(async || {
        let locked = format!("export XTABLES_LOCKFILE={LOCK}");
        let chain = |name: &str| {
            format!(
                "table ip nat {{ chain {name} {{ tcp dport 1 return; }}; chain OUTPUT {{ type nat hook output priority -100; jump {name}; }}; }}"
            )
        };
        for (name, words) in [
            ("ISTIO_OUTPUT", ["Istio", "`ISTIO_OUTPUT` in the table `ip nat`", "sidecar.istio.io/inject"]),
            ("PROXY_INIT_OUTPUT", ["Linkerd", "`PROXY_INIT_OUTPUT`", "linkerd.io/inject: disabled"]),
            ("DOCKER", ["host of containers", "`DOCKER`", "--force"]),
        ] {
            nft(&chain(name));
            let before = ruleset();
            let said = refused(&["install"]);
            assert!(words.iter().all(|word| said.contains(word)), "{said}");
            assert_eq!(before, ruleset());
            shell("nft flush ruleset");
            // The same by iptables of the old kind.
            shell(&format!(
                "{locked}; iptables-legacy -t nat -N {name}; iptables-legacy -t nat -A OUTPUT -p tcp -j {name}"
            ));
            let said = refused(&["install"]);
            assert!(said.contains(words[0]) && said.contains("`nat` of iptables"), "{said}");
            assert_eq!(ruleset(), "");
            shell(&format!("{locked}; iptables-legacy -t nat -F; iptables-legacy -t nat -X"));
        }
        nft(&chain("DOCKER"));
        intercept(&["install", "--force"]);
        route();
        let said = intercept(&["check", "--proxy-mark=7"]);
        assert!(said.contains("beside ours: ") && said.contains("`DOCKER`"), "{said}");
    });
}

#[test]
fn r13_the_check_sees_that_rules_for_the_way_in_are_gone() {
    in_a_node(async || {
        route();
        let mark = "--proxy-mark=7";
        intercept(&["install", mark]);
        assert!(
            intercept(&["check", mark]).contains("inbound: 4 rules are in force in the table `inet tulle`")
        );
        for line in ["nft flush chain inet tulle inbound", "nft delete chain inet tulle inbound"] {
            shell(line);
            let said = refused(&["check", mark]);
            assert!(said.contains("connections to the application are not intercepted"), "{said}");
        }
        assert!(intercept(&["check", mark, "--inbound-listen=none"]).contains("leads to the proxy"));
    });
}
