//! `tulle-proxy intercept` in a namespace of its own (R13).

use std::process::{Command, Output, Stdio};

use tulle_proxy::config;
use tulle_proxy::intercept::{Family, Kind, Ruleset, restore, rules};
use tulle_tests::binary;
use tulle_tests::netns::{Namespace, has_users, in_a_node, shell};

const SETTINGS: &[&str] = &[
    "--skip-uids=5,6",
    "--skip-gids=7",
    "--skip-subnets=10.0.0.0/9,192.168.3.0/25,1.2.3.4,fd00::/8,2001:db8::1",
    "--skip-outbound-ports=25,4222-4230",
    "--only-inbound-ports=80,8080-8090",
    "--dns=true",
    "--drop-quic=true",
    "--proxy-mark=0x1337",
];

/// What others have in the kernel.
const OTHERS: &str = "
    table inet others { chain output { type filter hook output priority 0; policy accept; tcp dport 25 drop; }; }
    table ip nat { chain OUTPUT { type nat hook output priority -100; policy accept; }; }
    table ip6 tulle { set kept { type ipv6_addr; elements = { ::1 }; }; }
";

fn try_intercept(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("tulle-proxy"));
    command.arg("intercept").args(arguments).env_clear().stdin(Stdio::null());
    command.envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command.output().expect("tulle-proxy starts")
}

pub(crate) fn intercept(arguments: &[&str]) -> String {
    let output = try_intercept(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}: {error}", output.status);
    String::from_utf8(output.stdout).expect("text")
}

pub(crate) fn refused(arguments: &[&str]) -> String {
    let output = try_intercept(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeds");
    String::from_utf8(output.stderr).expect("text")
}

pub(crate) fn nft(script: &str) {
    let path =
        std::env::temp_dir().join(format!("tulle-test.{}.nft", rustix::thread::gettid().as_raw_nonzero()));
    std::fs::write(&path, script).expect("a file");
    shell(&format!("nft -f {}", path.display()));
    std::fs::remove_file(path).expect("a file");
}

pub(crate) fn ruleset() -> String {
    shell("nft -s list ruleset")
}

fn with<'a>(verb: &'a str, settings: &[&'a str]) -> Vec<&'a str> {
    [&[verb], settings].concat()
}

#[test]
fn r13_what_the_kernel_is_told_is_what_nft_makes_of_the_text() {
    in_a_node(async || {
        for settings in [&[] as &[&str], SETTINGS, &["--inbound-listen=none"], &["--outbound-listen=none"]] {
            intercept(&with("install", settings));
            let ours = ruleset();
            shell("nft flush ruleset");
            nft(&intercept(&with("install", &[settings, &["--dry-run"]].concat())));
            assert_eq!(ours, ruleset(), "{settings:?}");
            assert!(ours.contains("redirect to"), "{ours}");
        }
    });
}

#[test]
fn r13_installing_again_changes_nothing_and_other_settings_replace_the_rules() {
    in_a_node(async || {
        intercept(&with("install", SETTINGS));
        let once = ruleset();
        intercept(&with("install", SETTINGS));
        assert_eq!(once, ruleset());
        intercept(&["install"]);
        let plain = ruleset();
        assert!(!plain.contains("quic") && !plain.contains("skipped"), "{plain}");
    });
}

#[test]
fn r13_other_tables_are_untouched_and_removal_is_exact() {
    in_a_node(async || {
        nft(OTHERS);
        let before = ruleset();
        intercept(&with("install", SETTINGS));
        assert!(ruleset().starts_with(&before), "others come first, as they were");
        assert!(intercept(&["remove"]).contains("removed the table `inet tulle`"));
        assert_eq!(before, ruleset());
        let said = intercept(&["remove"]);
        assert_eq!(before, ruleset(), "removing what is not there is no error");
        assert_eq!(said, "there was nothing of ours to remove\n");
        assert!(intercept(&["remove", "--dry-run"]).contains("delete table inet tulle"));
    });
}

#[test]
fn r13_a_refused_installation_leaves_what_was_there() {
    in_a_node(async || {
        nft(OTHERS);
        intercept(&["install"]);
        let before = ruleset();
        // More than the kernel takes in one message.
        let subnets: Vec<_> = (0..4000).map(|n| format!("10.{}.{}.0/24", n / 256, n % 256)).collect();
        let said = refused(&["install", "--skip-subnets", &subnets.join(",")]);
        assert!(said.contains("more than the kernel takes"), "{said}");
        let said = refused(&["install", "--skip-inbound-ports=80", "--only-inbound-ports=80"]);
        assert!(said.contains("TULLE_PROXY_INTERCEPT_SKIP_INBOUND_PORTS"), "{said}");
        let said = refused(&["install", "--skip-outbound-ports=70000"]);
        assert!(said.contains("tulle-proxy: --skip-outbound-ports: `70000`"), "{said}");
        let said = refused(&["install", "--outbound-listen=none", "--inbound-listen=none"]);
        assert!(said.contains("nothing to intercept"), "{said}");
        assert_eq!(before, ruleset());
    });
}

#[test]
fn r13_killed_midway_there_are_all_rules_or_none() {
    in_a_node(async || {
        intercept(&with("install", SETTINGS));
        let whole = ruleset();
        let mut seen = [0, 0];
        for round in 0..60 {
            intercept(&["remove"]);
            let mut child = Command::new(binary("tulle-proxy"))
                .arg("intercept")
                .args(with("install", SETTINGS))
                .env_clear()
                .stdout(Stdio::null())
                .spawn()
                .expect("tulle-proxy starts");
            // Later each time, until the last ones have come to their end.
            let begun = std::time::Instant::now();
            while begun.elapsed() < std::time::Duration::from_micros(round * 400) {
                std::hint::spin_loop();
            }
            child.kill().expect("may be killed");
            child.wait().expect("a child");
            let after = ruleset();
            assert!(after.is_empty() || after == whole, "half of it after {round}:\n{after}");
            seen[usize::from(after == whole)] += 1;
        }
        assert!(seen[0] > 0, "none was killed before its end: {seen:?}");
    });
}

#[test]
fn r13_without_the_capability_it_says_which() {
    in_a_node(async || {
        let program = binary("tulle-proxy");
        for arguments in [&["intercept", "install"] as &[&str], &["--intercept-proxy-mark=7"]] {
            let mut command = Command::new("setpriv");
            command.args(["--inh-caps=-net_admin,-net_raw", "--bounding-set=-net_admin,-net_raw"]);
            let output = command.arg(&program).args(arguments).output().expect("setpriv starts");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains("CAP_NET_ADMIN"), "{arguments:?}: {said}");
        }
        assert_eq!(ruleset(), "");
    });
}

/// A way to everywhere, that nobody is at the end of.
pub(crate) fn route() {
    shell(
        "ip link add out type veth peer name away; ip link set out up; ip link set away up
         ip addr add 10.9.0.1/24 dev out; ip route add default via 10.9.0.2
         ip addr add fd09::1/64 dev out nodad; ip -6 route add default via fd09::2
         ip neigh add 10.9.0.2 lladdr 02:00:00:00:00:02 dev out
         ip neigh add fd09::2 lladdr 02:00:00:00:00:02 dev out",
    );
}

#[test]
fn r13_the_check_passes_behind_the_rules_and_fails_without_them() {
    in_a_node(async || {
        route();
        let settings: &[&str] = &["--dns=true", "--skip-subnets=192.0.2.0/24", "--skip-outbound-ports=80-90"];
        intercept(&with("install", settings));
        let said = intercept(&with("check", settings));
        for line in [
            "IPv4: a connection leads to the proxy",
            "IPv6: a connection leads to the proxy",
            "IPv4: DNS over UDP leads to the proxy",
            "IPv6: DNS over TCP leads to the proxy",
        ] {
            assert!(said.contains(line), "{said}");
        }
        // Rules for one family only are no rules.
        shell(
            "nft add rule inet tulle outbound ip6 daddr ::/0 return; nft insert rule inet tulle outbound meta nfproto ipv6 return",
        );
        let said = refused(&with("check", settings));
        assert!(said.contains("[2001:db8::1]") && said.contains("not intercepted"), "{said}");
        intercept(&["remove"]);
        let said = refused(&with("check", settings));
        assert!(said.contains("not intercepted") && said.contains("intercept install"), "{said}");
    });
}

#[test]
fn r13_the_check_says_what_it_could_not_check() {
    in_a_node(async || {
        intercept(&["install"]);
        let said = refused(&["check"]);
        assert!(said.contains("nothing could be checked") && said.contains("unreachable"), "{said}");
        route();
        shell("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1");
        assert!(intercept(&["check"]).contains("IPv6: not checked"));
        let taken = std::net::TcpListener::bind("0.0.0.0:15001").expect("a port");
        let said = refused(&["check"]);
        assert!(said.contains("15001") && said.contains("before the proxy"), "{said}");
        drop(taken);
        let own = if has_users() { "--proxy-uid=0" } else { return };
        let said = refused(&["check", own]);
        assert!(said.contains("as user 0"), "{said}");
    });
}

/// The rules by way of iptables, as on a kernel without nf_tables: put in twice, looked at, taken out.
#[test]
fn r13_iptables_takes_the_same_rules_and_gives_them_back() {
    in_a_node(async || {
        let command = config::with_intercept_flags(clap::Command::new("install"));
        // iptables knows only users that the namespace has.
        let known = |setting: &&&str| has_users() || !setting.contains("ids=");
        let settings: Vec<_> = SETTINGS.iter().filter(known).copied().collect();
        let matches = command.get_matches_from(with("install", &settings));
        let rules = rules(&config::intercept_from_matches(&matches, []).expect("settings").config);
        let nothing = Ruleset { chains: Vec::new() };
        // The lock of the machine's own is root's.
        let lock = std::env::temp_dir().join(format!("tulle-test.{}.lock", std::process::id()));
        let locked = format!("export XTABLES_LOCKFILE={}", lock.display());
        for (family, program) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
            for (table, name) in [(Kind::Nat, "nat"), (Kind::Filter, "filter")] {
                shell(&format!("{locked}; {program} -t {name} -A OUTPUT -p tcp --dport 9 -j ACCEPT"));
                let saved = || {
                    let text = shell(&format!("{locked}; {program}-save -t {name}"));
                    text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n") + "\n"
                };
                let apply = |rules: &Ruleset| {
                    let script = restore(rules, family, table, &saved());
                    shell(&format!("{locked}; {program}-restore --noflush <<'END'\n{script}END\n"));
                };
                let before = saved();
                apply(&rules);
                let once = saved();
                apply(&rules);
                assert_eq!(once, saved(), "{program} {name}");
                let wanted = if table == Kind::Nat { "--to-ports 15001" } else { "--dport 443" };
                assert!(once.contains(wanted) && once.contains("--dport 9 -j ACCEPT"), "{once}");
                apply(&nothing);
                assert_eq!(before, saved(), "{program} {name}");
            }
        }
        std::fs::remove_file(lock).expect("a lock file");
    });
}

#[test]
fn namespaces_do_not_see_each_others_rules() {
    in_a_node(async || {
        let other = Namespace::new();
        intercept(&["install"]);
        assert_eq!(other.enter(ruleset), "");
    });
}
