use super::encode::{remove, replace};
use super::iptables::Family;
use super::netlink::{self, Writer, flag};
use super::rules::{Action, Chain, Hook, Match, Rule, Transport};
use super::survey::Found;
use super::*;
use crate::config::{Config, PREFIX};

fn config(settings: &[(&str, &str)]) -> Config {
    let matches = config::with_intercept_flags(Command::new("install")).get_matches_from(["install"]);
    let environment =
        settings.iter().map(|(name, value)| (format!("{PREFIX}{name}").into(), (*value).into()));
    config::intercept_from_matches(&matches, environment).unwrap().config
}

fn golden(settings: &[(&str, &str)]) -> String {
    text::script(&rules(&config(settings)))
}

const EVERYTHING: &[(&str, &str)] = &[
    ("INTERCEPT_SKIP_UIDS", "5,6"),
    ("INTERCEPT_SKIP_GIDS", "7"),
    ("INTERCEPT_SKIP_SUBNETS", "10.0.0.0/9,1.2.3.4,fd00::/8,2001:db8::1"),
    ("INTERCEPT_SKIP_OUTBOUND_PORTS", "25,4222-4230"),
    ("INTERCEPT_ONLY_INBOUND_PORTS", "80,8080-8090"),
    ("INTERCEPT_DNS", "true"),
    ("INTERCEPT_DROP_QUIC", "true"),
];

#[test]
fn without_settings_everything_but_the_proxys_own_and_loopback_is_led_through() {
    let expected = r#"table inet tulle
delete table inet tulle
table inet tulle {
	chain outbound {
		type nat hook output priority -110; policy accept;
		meta skuid 1337 return comment "the proxy's own"
		ip daddr 127.0.0.0/8 return comment "loopback"
		ip6 daddr ::1 return comment "loopback"
		fib daddr type local return comment "the pod's own addresses"
		tcp dport 15000-15090 return comment "ports of proxies"
		meta l4proto tcp redirect to :15001 comment "to the proxy"
	}

	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		iifname "lo" return comment "loopback"
		fib daddr type != local return comment "not for this pod"
		tcp dport 15000-15090 return comment "ports of the proxy"
		meta l4proto tcp redirect to :15006 comment "to the proxy"
	}
}
"#;
    assert_eq!(golden(&[]), expected);
}

#[test]
fn every_setting_has_its_rule_in_its_place() {
    let expected = r#"table inet tulle
delete table inet tulle
table inet tulle {
	chain outbound {
		type nat hook output priority -110; policy accept;
		meta skuid 1337 return comment "the proxy's own"
		ip daddr 127.0.0.0/8 return comment "loopback"
		ip6 daddr ::1 return comment "loopback"
		fib daddr type local return comment "the pod's own addresses"
		meta skuid 5 return comment "skipped user"
		meta skuid 6 return comment "skipped user"
		meta skgid 7 return comment "skipped group"
		ip daddr 10.0.0.0/9 return comment "skipped subnet"
		ip daddr 1.2.3.4 return comment "skipped subnet"
		ip6 daddr fd00::/8 return comment "skipped subnet"
		ip6 daddr 2001:db8::1 return comment "skipped subnet"
		tcp dport 15000-15090 return comment "ports of proxies"
		tcp dport 25 return comment "skipped port"
		tcp dport 4222-4230 return comment "skipped port"
		udp dport 53 redirect to :15053 comment "queries of names"
		tcp dport 53 redirect to :15053 comment "queries of names"
		meta l4proto tcp redirect to :15001 comment "to the proxy"
	}

	chain inbound {
		type nat hook prerouting priority -110; policy accept;
		iifname "lo" return comment "loopback"
		fib daddr type != local return comment "not for this pod"
		tcp dport 15000-15090 return comment "ports of the proxy"
		tcp dport 80 redirect to :15006 comment "to the proxy"
		tcp dport 8080-8090 redirect to :15006 comment "to the proxy"
	}

	chain quic {
		type filter hook output priority -10; policy accept;
		meta skuid 1337 return comment "the proxy's own"
		ip daddr 127.0.0.0/8 return comment "loopback"
		ip6 daddr ::1 return comment "loopback"
		fib daddr type local return comment "the pod's own addresses"
		meta skuid 5 return comment "skipped user"
		meta skuid 6 return comment "skipped user"
		meta skgid 7 return comment "skipped group"
		ip daddr 10.0.0.0/9 return comment "skipped subnet"
		ip daddr 1.2.3.4 return comment "skipped subnet"
		ip6 daddr fd00::/8 return comment "skipped subnet"
		ip6 daddr 2001:db8::1 return comment "skipped subnet"
		udp dport 443 drop comment "QUIC: clients fall back to TCP"
	}
}
"#;
    assert_eq!(golden(EVERYTHING), expected);
}

#[test]
fn a_mark_takes_the_place_of_the_user() {
    let text = golden(&[("INTERCEPT_PROXY_MARK", "0x1337")]);
    assert!(text.contains("meta mark 0x00001337 return") && !text.contains("skuid"), "{text}");
}

#[test]
fn rules_follow_the_listeners() {
    let text = golden(&[("OUTBOUND_LISTEN", "[::]:4140"), ("INBOUND_LISTEN", "none")]);
    assert!(text.contains("redirect to :4140") && !text.contains("prerouting"), "{text}");
    let nothing = [("OUTBOUND_LISTEN", "none"), ("INBOUND_LISTEN", "none")];
    assert_eq!(rules(&config(&nothing)).chains, []);
    let dns = rules(&config(&[("OUTBOUND_LISTEN", "none"), ("INTERCEPT_DNS", "true")]));
    let led: Vec<_> = dns.chains[0].rules.iter().filter(|rule| rule.action != Action::Return).collect();
    assert!(led.iter().all(|rule| rule.action == Action::Redirect(15053)) && led.len() == 2, "{led:?}");
}

#[test]
fn comments_fit_into_what_the_kernel_and_nft_keep() {
    for rule in rules(&config(EVERYTHING)).chains.iter().flat_map(|chain| &chain.rules) {
        assert!(rule.comment.len() <= 120 && !rule.comment.contains('"'), "{}", rule.comment);
    }
}

// --- bytes ---------------------------------------------------------------------------------------------------------

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As on machines of little-endian order; elsewhere the first halves of words are swapped.
#[test]
#[cfg(target_endian = "little")]
fn messages_are_laid_out_as_the_kernel_reads_them() {
    let bytes = |write: &dyn Fn(&mut Writer)| {
        let mut writer = Writer::default();
        write(&mut writer);
        hex(&writer.into_bytes())
    };
    // struct nlattr: length, type, value, padding.
    assert_eq!(bytes(&|w| w.number(5, 1)), "0800050000000001");
    assert_eq!(bytes(&|w| w.text(1, "tulle")), "0a00010074756c6c65000000");
    assert_eq!(bytes(&|w| w.attribute(1, &[0x3a, 0x99])), "060001003a990000");
    assert_eq!(bytes(&|w| w.nested(4, |w| w.number(1, 3))), "0c0004800800010000000003");
    // The transaction that removes: begin (for subsystem 10), NEWTABLE|CREATE, DELTABLE|ACK, end.
    let expected = concat!(
        "140000001000010000000000000000000000000a",
        "20000000000a01040100000000000000010000000a00010074756c6c65000000",
        "20000000020a05000200000000000000010000000a00010074756c6c65000000",
        "140000001100010003000000000000000000000a",
    );
    assert_eq!(hex(&remove().bytes), expected);
}

fn attributes(bytes: &[u8]) -> Vec<(u16, &[u8])> {
    netlink::attributes(bytes).collect()
}

fn value<'a>(attributes: &[(u16, &'a [u8])], kind: u16) -> &'a [u8] {
    attributes.iter().find(|(found, _)| *found == kind).unwrap_or_else(|| panic!("no attribute {kind}")).1
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.strip_suffix(&[0]).unwrap().to_vec()).unwrap()
}

/// The names of a rule's expressions, in order.
fn expressions(message: &[u8]) -> Vec<String> {
    let rule = attributes(&message[4..]);
    attributes(value(&rule, 4)).iter().map(|(_, one)| text_of(value(&attributes(one), 1))).collect()
}

#[test]
fn a_transaction_reads_back_as_one_batch_with_one_acknowledgement() {
    let rules = rules(&config(EVERYTHING));
    let transaction = replace(&rules);
    let messages: Vec<_> = netlink::messages(&transaction.bytes).collect();
    assert_eq!(messages.len(), transaction.steps.len());
    assert_eq!((messages[0].kind, messages.last().unwrap().kind), (0x10, 0x11));
    for (index, message) in messages.iter().enumerate() {
        assert_eq!(usize::try_from(message.sequence).unwrap(), index);
        let acknowledged = message.flags & flag::ACK != 0;
        assert_eq!(acknowledged, index == messages.len() - 2, "message {index}");
    }
    let kinds: Vec<u16> = messages[1..5].iter().map(|message| message.kind & 0xff).collect();
    assert_eq!(kinds, [0, 2, 0, 3], "made, so that it can be deleted, deleted, made anew, a chain");
    for message in &messages[1..messages.len() - 1] {
        assert_eq!(message.kind >> 8, 10, "for nf_tables");
        assert_eq!(text_of(value(&attributes(&message.body[4..]), 1)), TABLE, "nobody else's table");
    }
    let count: usize = rules.chains.iter().map(|chain| 1 + chain.rules.len()).sum();
    assert_eq!(messages.len(), 2 + 3 + count);
}

#[test]
fn rules_become_the_expressions_that_nft_makes_of_them() {
    let one = |matches: Vec<Match>, action| {
        let rule = Rule { matches, action, comment: "why" };
        let chain = Chain { name: "outbound", kind: Kind::Nat, hook: Hook::Output, rules: vec![rule] };
        let transaction = replace(&Ruleset { chains: vec![chain] });
        let message = netlink::messages(&transaction.bytes).nth(5).unwrap();
        let rule = attributes(&message.body[4..]);
        assert_eq!(value(&rule, 7), b"\0\x04why\0", "the comment");
        expressions(message.body).join(" ")
    };
    let to = |net: &str| Match::To(net.parse().unwrap());
    for (condition, expected) in [
        (Match::Uid(1), "meta cmp"),
        (Match::FromLoopback, "meta cmp"),
        (to("10.0.0.0/8"), "meta cmp payload bitwise cmp"),
        (to("10.0.0.1/32"), "meta cmp payload cmp"),
        (to("::1/128"), "meta cmp payload cmp"),
        (Match::ToOwn(true), "fib cmp"),
        (Match::Protocol(Transport::Udp), "meta cmp"),
        (Match::Ports(Transport::Tcp, 80..=80), "meta cmp payload cmp"),
        (Match::Ports(Transport::Tcp, 80..=90), "meta cmp payload cmp cmp"),
    ] {
        assert_eq!(
            one(vec![condition.clone()], Action::Drop),
            format!("{expected} immediate"),
            "{condition}"
        );
    }
    assert_eq!(one(vec![], Action::Redirect(15001)), "immediate redir");
}

#[test]
fn what_is_cut_short_ends_the_messages() {
    let bytes = remove().bytes;
    for length in 0..bytes.len() {
        assert!(netlink::messages(&bytes[..length]).count() < 4);
    }
}

// --- iptables ------------------------------------------------------------------------------------------------------

#[test]
fn iptables_gets_the_same_rules_in_chains_of_ours() {
    let rules = rules(&config(&[("INTERCEPT_SKIP_SUBNETS", "fd00::/8"), ("INTERCEPT_DNS", "true")]));
    let expected = r#"*nat
:TULLE_OUTBOUND - [0:0]
-A TULLE_OUTBOUND -m owner --uid-owner 1337 -m comment --comment "the proxy's own" -j RETURN
-A TULLE_OUTBOUND -d ::1/128 -m comment --comment "loopback" -j RETURN
-A TULLE_OUTBOUND -m addrtype --dst-type LOCAL -m comment --comment "the pod's own addresses" -j RETURN
-A TULLE_OUTBOUND -d fd00::/8 -m comment --comment "skipped subnet" -j RETURN
-A TULLE_OUTBOUND -p tcp -m tcp --dport 15000:15090 -m comment --comment "ports of proxies" -j RETURN
-A TULLE_OUTBOUND -p udp -m udp --dport 53 -m comment --comment "queries of names" -j REDIRECT --to-ports 15053
-A TULLE_OUTBOUND -p tcp -m tcp --dport 53 -m comment --comment "queries of names" -j REDIRECT --to-ports 15053
-A TULLE_OUTBOUND -p tcp -m comment --comment "to the proxy" -j REDIRECT --to-ports 15001
-I OUTPUT 1 -j TULLE_OUTBOUND
:TULLE_INBOUND - [0:0]
-A TULLE_INBOUND -i lo -m comment --comment "loopback" -j RETURN
-A TULLE_INBOUND -m addrtype ! --dst-type LOCAL -m comment --comment "not for this pod" -j RETURN
-A TULLE_INBOUND -p tcp -m tcp --dport 15000:15090 -m comment --comment "ports of the proxy" -j RETURN
-A TULLE_INBOUND -p tcp -m comment --comment "to the proxy" -j REDIRECT --to-ports 15006
-I PREROUTING 1 -j TULLE_INBOUND
COMMIT
"#;
    assert_eq!(restore(&rules, Family::V6, Kind::Nat, ""), expected);
    assert_eq!(restore(&rules, Family::V6, Kind::Filter, ""), "", "QUIC is not dropped");
}

#[test]
fn chains_are_read_from_what_iptables_saves() {
    let found = iptables::parse(
        "iptables",
        "*filter\n:OUTPUT ACCEPT [0:0]\n:KEPT - [0:0]\nCOMMIT\n*nat\n:OUTPUT ACCEPT [0:0]\n:ISTIO_OUTPUT - [1:2]\n\
         -A OUTPUT -p tcp -j ISTIO_OUTPUT\n-A ISTIO_OUTPUT -j RETURN\n-A ISTIO_OUTPUT -p tcp -j RETURN\nCOMMIT\n",
    );
    let chain = |table: &str, name: &str, rules, asked| Found {
        place: format!("the table `{table}` of iptables"),
        name: name.to_owned(),
        rules,
        asked,
    };
    assert_eq!(found, [chain("filter", "KEPT", 0, false), chain("nat", "ISTIO_OUTPUT", 2, true)]);
    assert!(survey::stranger(&found).is_some());
}

#[test]
fn iptables_is_not_told_twice_to_jump_and_removal_takes_what_is_there() {
    let saved = "*nat\n:OUTPUT ACCEPT [0:0]\n:TULLE_OUTBOUND - [0:0]\n-A OUTPUT -j TULLE_OUTBOUND\n-A OUTPUT -j DOCKER\nCOMMIT\n";
    let again = restore(&rules(&config(&[])), Family::V4, Kind::Nat, saved);
    assert!(!again.contains("-I OUTPUT") && again.contains("-I PREROUTING 1 -j TULLE_INBOUND"), "{again}");
    let nothing = Ruleset { chains: Vec::new() };
    let removed = restore(&nothing, Family::V4, Kind::Nat, saved);
    assert_eq!(removed, "*nat\n-D OUTPUT -j TULLE_OUTBOUND\n-F TULLE_OUTBOUND\n-X TULLE_OUTBOUND\nCOMMIT\n");
    assert_eq!(restore(&nothing, Family::V4, Kind::Nat, "*nat\nCOMMIT\n"), "");
}

#[test]
fn nothing_leaves_an_enclosed_namespace_but_by_the_proxys_listeners() {
    let expected = r#"table inet tulle
delete table inet tulle
table inet tulle {
	chain outbound {
		type nat hook output priority -110; policy accept;
		ip daddr 127.0.0.0/8 return comment "loopback"
		ip6 daddr ::1 return comment "loopback"
		udp dport 53 redirect to :15053 comment "queries of names"
		tcp dport 53 redirect to :15053 comment "queries of names"
		meta l4proto tcp redirect to :15001 comment "to the proxy"
	}

	chain refused {
		type filter hook output priority -10; policy accept;
		ip daddr 127.0.0.0/8 return comment "loopback"
		ip6 daddr ::1 return comment "loopback"
		meta l4proto tcp return comment "led to the proxy"
		log group 15001 drop comment "leads nowhere"
	}
}
"#;
    assert_eq!(text::script(&rules::enclosed()), expected);
}
