//! Rules of real netfilters: what they are called, and which of them counted.

use std::{
    fmt::Write as _,
    process::Command,
    time::{Duration, Instant},
};

use tracer_user::node::{
    RuleTraces, RulesMet,
    facts::{Condition, ConditionField, RuleEngine, RuleHit, RuleVerdict, TunnelSettings},
};

use crate::lab::Lab;

/// A node `n` between two pods, `a` 10.1.0.2 and `b` 10.2.0.2.
pub(crate) fn lab() -> Lab {
    let mut lab = Lab::empty();
    for name in ["n", "a", "b"] {
        lab.add(name);
    }
    for (pod, host, net) in [("a", "cali1", "10.1.0"), ("b", "cali2", "10.2.0")] {
        let inside = lab.name(pod);
        lab.ip("n", &format!("link add {host} type veth peer name eth0 netns {inside}"));
        lab.ip("n", &format!("address add {net}.1/24 dev {host}"));
        lab.ip("n", &format!("link set {host} up"));
        lab.ip(pod, &format!("address add {net}.2/24 dev eth0"));
        lab.ip(pod, "link set eth0 up");
        lab.ip(pod, &format!("route add default via {net}.1"));
    }
    lab.sysctl("n", "net.ipv4.ip_forward=1");
    lab
}

/// What is met while `a` pings `b`, whatever comes of it.
fn met(lab: &Lab) -> RulesMet {
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    assert!(before.notes().is_empty(), "{:?}", before.notes());
    let full = lab.name("a");
    let ping = Command::new("ip").args(["netns", "exec", &full, "ping", "-c1", "-W1", "10.2.0.2"]).output();
    ping.expect("ping runs");
    node.rules_met(&before, RuleTraces::default(), &node.scope())
}

/// Hits of one reading, a line each, for a person to compare.
fn lines(rules: &RulesMet) -> String {
    let mut text = String::new();
    for hit in &rules.hits {
        let RuleHit { engine, family, table, way, hook, verdict, understood, counted, packets, .. } = hit;
        let rule = hit.rule.as_ref();
        let (position, said) = rule.map_or((0, "policy"), |rule| (rule.position, rule.text.as_str()));
        let comment = rule.and_then(|rule| rule.comment.clone()).unwrap_or_default();
        let way = way.join(" > ");
        let known = if *understood { "understood" } else { "not understood" };
        let count = if *counted { packets.to_string() } else { "uncounted".into() };
        writeln!(text, "{engine:?} {family} {table}: {way} #{position} hook {hook:?}: {said}").unwrap();
        writeln!(text, "    {verdict:?}, {known}, packets {count}, comment {comment:?}").unwrap();
        for Condition { field, not } in &hit.conditions {
            writeln!(text, "    {}{field:?}", if *not { "not " } else { "" }).unwrap();
        }
    }
    text
}

/// Policy as Calico programs it for iptables.
const CALICO: &[&str] = &[
    "-N cali-FORWARD",
    "-N cali-to-wl-dispatch",
    "-N cali-tw-cali2",
    "-N cali-pi-deny",
    "-A FORWARD -m comment --comment cali:wUHhoiAYhphO9Mso -j cali-FORWARD",
    "-A cali-FORWARD -o cali+ -j cali-to-wl-dispatch",
    "-A cali-to-wl-dispatch -o cali2 -m comment --comment cali:goto -g cali-tw-cali2",
    "-A cali-tw-cali2 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A cali-tw-cali2 -m conntrack --ctstate INVALID -j DROP",
    "-A cali-tw-cali2 -j MARK --set-xmark 0x0/0x10000",
    "-A cali-tw-cali2 -m mark --mark 0x0/0x20000 -j cali-pi-deny",
    "-A cali-pi-deny -p tcp -m tcp --dport 80:90 ! --sport 7 -j MARK --set-xmark 0x10000/0x10000",
    "-A cali-tw-cali2 -m comment --comment return -m mark --mark 0x10000/0x10000 -j RETURN",
    "-A cali-tw-cali2 ! -s 192.168.0.0/16 -p icmp -m comment --comment ORDER -m mark --mark 0x0/0x20000 -j DROP",
];

fn iptables(lab: &Lab, program: &str, rules: &[&str]) {
    for rule in rules {
        lab.exec("n", &format!("{program} -w {rule}"));
    }
}

fn calico_drop(program: &str) -> (Lab, RulesMet) {
    let lab = lab();
    let rules: Vec<String> = CALICO
        .iter()
        .map(|rule| rule.replace("ORDER", "End-of-tier-default.-Drop-if-no-policies-passed-packet"))
        .collect();
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    iptables(&lab, program, &rules);
    let rules = met(&lab);
    assert_eq!(rules.notes, Vec::<String>::new());
    assert!(rules.complete.contains(&lab.inode("n")), "all rules have counters");
    (lab, rules)
}

#[test]
fn a_policy_drop_of_legacy_iptables_is_named() {
    let (_lab, rules) = calico_drop("iptables-legacy");
    insta::assert_snapshot!(lines(&rules), @r#"
    Iptables ip filter: FORWARD > cali-FORWARD > cali-to-wl-dispatch > cali-tw-cali2 #6 hook Some(2): ! -s 192.168.0.0/16 -p icmp -m comment --comment "End-of-tier-default.-Drop-if-no-policies-passed-packet" -m mark --mark 0x0/0x20000 -j DROP
        Drop, understood, packets 1, comment "End-of-tier-default.-Drop-if-no-policies-passed-packet"
        OutInterface("cali2")
        OutInterface("cali+")
        not Source(192.168.0.0/16)
        Protocol(1)
        Mark(0, 131072)
    "#);
}

#[test]
fn a_policy_drop_of_iptables_in_its_nft_variant_is_named() {
    let (_lab, rules) = calico_drop("iptables-nft");
    insta::assert_snapshot!(lines(&rules), @r#"
    IptablesNft ip filter: FORWARD > cali-FORWARD > cali-to-wl-dispatch > cali-tw-cali2 #6 hook Some(2): ! -s 192.168.0.0/16 -p icmp -m comment --comment "End-of-tier-default.-Drop-if-no-policies-passed-packet" -m mark --mark 0x0/0x20000 -j DROP
        Drop, understood, packets 1, comment "End-of-tier-default.-Drop-if-no-policies-passed-packet"
        OutInterface("cali2")
        OutInterface("cali+")
        Protocol(1)
        not Source(192.168.0.0/16)
        Mark(0, 131072)
    "#);
}

/// As its own tools print it: each rule's text as iptables-save has it.
#[test]
fn iptables_rules_are_worded_as_iptables_does() {
    let lab = lab();
    lab.exec("n", "ipset create pods hash:net");
    let rules = [
        "-A FORWARD ! -s 10.9.0.0/16 -d 10.2.0.0/24 -i cali1 ! -o ens+ -p icmp -m icmp --icmp-type 8 -j DROP",
        "-A FORWARD -m set --match-set pods src,dst -m set ! --match-set pods dst -j DROP",
        "-A FORWARD -p tcp -m tcp --sport 1:2 ! --dport 80 -m conntrack ! --ctstate NEW -j REJECT --reject-with tcp-reset",
        "-A FORWARD -m addrtype ! --src-type LOCAL --dst-type UNICAST --limit-iface-in -j REJECT --reject-with icmp-admin-prohibited",
        "-A FORWARD -p udp -m multiport --dports 53,100:200 -j DROP",
        "-A FORWARD -m statistic --mode random --probability 0.50000000000 -m comment --comment \"a b\" -j DROP",
        "-A FORWARD -p tcp -m tcp --tcp-flags FIN,SYN SYN -j DROP",
        "-A FORWARD -m mark ! --mark 0x1/0x3 -j DROP",
    ];
    let nat = [
        "-A POSTROUTING -s 10.1.0.0/24 -o cali2 -m comment --comment cali:masq -j MASQUERADE --random-fully",
        "-A POSTROUTING -p tcp -j SNAT --to-source 1.2.3.4-1.2.3.9:1000-2000 --random",
        "-A PREROUTING -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.2.0.2:8080",
        "-A PREROUTING -p udp -m udp --dport 53 -j REDIRECT --to-ports 5353",
    ];
    for program in ["iptables-legacy", "iptables-nft"] {
        let mut file = "*raw\n-A PREROUTING -m rpfilter --loose --invert -j DROP\nCOMMIT\n*filter\n".to_owned();
        rules.iter().for_each(|rule| writeln!(file, "{rule}").unwrap());
        file += "COMMIT\n*nat\n";
        nat.iter().for_each(|rule| writeln!(file, "{rule}").unwrap());
        file += "COMMIT\n";
        let node = lab.survey("n");
        let before = node.rule_counters(&[]);
        // As if all of them had been met: a rule that was not there before has counted what it counts.
        lab.feed("n", &format!("{program}-restore -c"), &counted(&file));
        let expected = lab.exec("n", &format!("{program}-save"));
        let expected: Vec<&str> = expected.lines().filter(|line| line.starts_with("-A ")).collect();
        assert_eq!(expected.len(), rules.len() + nat.len() + 1);
        assert!(
            node.rules_met(&before, RuleTraces::default(), &[]).hits.is_empty(),
            "a namespace without packets has no hits"
        );
        let hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
        let engine = if program == "iptables-nft" { RuleEngine::IptablesNft } else { RuleEngine::Iptables };
        let mut said: Vec<String> = hits
            .iter()
            .filter(|hit| hit.engine == engine)
            .map(|hit| format!("-A {} {}", hit.chain, hit.rule.as_ref().expect("rule").text))
            .collect();
        let mut expected: Vec<String> = expected.iter().map(|line| (*line).to_owned()).collect();
        said.sort();
        expected.sort();
        assert_eq!(said, expected, "{program}");
        lab.feed("n", &format!("{program}-restore"), "*raw\nCOMMIT\n*filter\nCOMMIT\n*nat\nCOMMIT\n");
    }
}

/// The same rules, each with a count.
fn counted(file: &str) -> String {
    file.lines()
        .map(|line| if line.starts_with("-A") { format!("[7:70] {line}\n") } else { format!("{line}\n") })
        .collect()
}

/// Policy and NAT as Calico and kube-proxy program them for nftables.
const NFT: &str = r#"
table ip calico {
    set masq-pools { type ipv4_addr; flags interval; elements = { 10.1.0.0/16 }; }
    map to-wl { type ifname : verdict; elements = { "cali1" : goto filter-cali-tw-cali1, "cali2" : goto filter-cali-tw-cali2 }; }
    chain filter-FORWARD { type filter hook forward priority 0; policy accept; jump filter-cali-FORWARD; }
    chain filter-cali-FORWARD { oifname "cali*" counter jump filter-cali-to-wl-dispatch; }
    chain filter-cali-to-wl-dispatch { oifname vmap @to-wl; counter drop comment "Unknown interface"; }
    chain filter-cali-tw-cali1 { ct state established,related counter accept; counter drop; }
    chain filter-cali-tw-cali2 {
        ct state established,related counter accept
        ct state invalid counter drop
        meta mark & 0x00020000 == 0x00000000 ip saddr != 192.168.0.0/16 counter drop comment "End of tier default. Drop if no policies passed packet"
    }
    chain lost { counter packets 5 bytes 1 drop; drop; }
}
table ip kube-proxy {
    map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; elements = { 10.96.0.1 . tcp . 443 : goto service-x, 10.96.0.9 . udp . 53 : drop }; }
    chain services { type nat hook prerouting priority -100; ip daddr . meta l4proto . th dport vmap @service-ips; }
    chain service-x { numgen random mod 2 vmap { 0 : goto endpoint-1, 1 : goto endpoint-2 }; }
    chain endpoint-1 { meta l4proto tcp dnat to 10.2.0.2:6443; }
    chain endpoint-2 { meta l4proto tcp dnat to 10.2.0.3:6443; }
    chain masquerading { type nat hook postrouting priority 100; meta mark & 0x4000 == 0x4000 masquerade fully-random; }
}
table inet guard {
    chain rpf { type filter hook prerouting priority -300; policy accept; iifname "cali*" fib saddr . iif oif missing drop; }
    chain in { type filter hook input priority 0; policy drop; ct state new accept; }
}
"#;

#[test]
fn a_policy_drop_of_nftables_is_named_among_what_does_not_count() {
    let lab = lab();
    lab.feed("n", "nft -f -", NFT);
    let rules = met(&lab);
    assert_eq!(rules.notes, Vec::<String>::new());
    assert!(rules.complete.contains(&lab.inode("n")), "few rules without counters");
    insta::assert_snapshot!(lines(&rules), @r#"
    Nftables ip calico: filter-FORWARD > filter-cali-FORWARD > filter-cali-to-wl-dispatch > filter-cali-tw-cali2 #3 hook Some(2): meta mark & 0x00020000 == 0x00000000 ip saddr != 192.168.0.0/16 drop
        Drop, understood, packets 1, comment "End of tier default. Drop if no policies passed packet"
        OutInterface("cali2")
        OutInterface("cali+")
        Mark(0, 131072)
        not Source(192.168.0.0/16)
    Nftables ip kube-proxy: services #1 hook Some(0): ip daddr . meta l4proto . th dport vmap @service-ips
        Drop, understood, packets uncounted, comment ""
        Destination(10.96.0.9/32)
        Protocol(17)
        DestinationPort(53, 53)
    Nftables inet guard: rpf #1 hook Some(0): iifname "cali*" fib saddr . iif oif missing drop
        Drop, understood, packets uncounted, comment ""
        InInterface("cali+")
        ReversePathFails
    Nftables inet guard: in #0 hook Some(1): policy
        Drop, understood, packets uncounted, comment ""
    Nftables ip kube-proxy: services > service-x > endpoint-1 #1 hook Some(0): meta l4proto tcp dnat to 10.2.0.2:6443
        Dnat("10.2.0.2:6443"), not understood, packets uncounted, comment ""
        Destination(10.96.0.1/32)
        Protocol(6)
        DestinationPort(443, 443)
    Nftables ip kube-proxy: services > service-x > endpoint-2 #1 hook Some(0): meta l4proto tcp dnat to 10.2.0.3:6443
        Dnat("10.2.0.3:6443"), not understood, packets uncounted, comment ""
        Destination(10.96.0.1/32)
        Protocol(6)
        DestinationPort(443, 443)
    Nftables ip kube-proxy: masquerading #1 hook Some(4): meta mark & 0x00004000 == 0x00004000 masquerade fully-random
        Masquerade, understood, packets uncounted, comment ""
        Mark(16384, 16384)
    "#);
}

/// As nft itself prints them.
#[test]
fn nft_rules_are_worded_as_nft_does() {
    let rules = [
        "ip saddr 10.0.0.0/8 ip daddr != 10.1.2.3 tcp dport 80",
        "iifname \"cali*\" oifname != \"ens5\" ip protocol icmp",
        "ct state established,related",
        "ct state != new",
        "ct state { established, new }",
        "meta mark & 0x0000ff00 == 0x00000100",
        "meta mark != 0x00000001",
        "tcp dport 80-90",
        "udp sport != 1000-2000",
        "ip6 daddr fd00::1 ip6 saddr != fe80::/10",
        "ip6 saddr fd00::/64 udp dport { 53, 5353 }",
        "meta l4proto tcp ip saddr . tcp dport { 1.2.3.4 . 80, 1.2.3.5 . 81 }",
        "fib saddr . iif oif missing",
        "ip saddr @pools",
        "ip saddr != @pools tcp sport != 1",
        "meta nfproto ipv4",
    ];
    let ends = ["drop", "reject", "reject with tcp reset", "reject with icmpx admin-prohibited"];
    let mut file = "table inet t {\n set pools { type ipv4_addr; flags interval; }\n chain c { type filter hook input priority 0;\n".to_owned();
    for (index, rule) in rules.iter().enumerate() {
        let end = if rule.contains("tcp dport 80-90") { ends[2] } else { ends[index % 2 * 3 / 2 % 4] };
        writeln!(file, "{rule} counter packets 7 bytes 70 {end}").unwrap();
    }
    file += "reject with icmpx admin-prohibited\n}\n}\n";
    let lab = lab();
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    lab.feed("n", "nft -f -", &file);
    let listed = lab.exec("n", "nft -s list chain inet t c");
    let expected = listed.lines().map(str::trim).filter(|line| line.ends_with("drop") || line.contains("reject"));
    let expected: Vec<String> = expected.map(|line| line.replace(" counter", "")).collect();
    assert_eq!(expected.len(), rules.len() + 1, "{listed}");
    let mut hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
    hits.sort_by_key(|hit| hit.rule.as_ref().map(|rule| rule.position));
    let said: Vec<String> = hits.iter().map(|hit| hit.rule.as_ref().expect("rule").text.clone()).collect();
    assert_eq!(said, expected);
}

#[test]
fn masquerade_is_worded_as_nft_does_with_its_ports() {
    let ends = ["masquerade to :40000-40001", "masquerade to :7 fully-random", "masquerade"];
    let rules: Vec<String> = (1..).zip(ends).map(|(port, end)| format!("tcp dport {port} {end}")).collect();
    let lab = lab();
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    let body = rules.join("\n");
    let file = format!("table ip t {{\n chain c {{ type nat hook postrouting priority 100;\n{body}\n}}\n}}\n");
    lab.feed("n", "nft -f -", &file);
    let listed = lab.exec("n", "nft list chain ip t c");
    for rule in &rules {
        assert!(listed.lines().any(|line| line.trim() == rule), "nft itself says otherwise: {listed}");
    }
    let mut hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
    hits.sort_by_key(|hit| hit.rule.as_ref().map(|rule| rule.position));
    let said: Vec<String> = hits.iter().map(|hit| hit.rule.as_ref().expect("rule").text.clone()).collect();
    assert_eq!(said, rules);
}

/// Two comparisons of two things that pass through one register are no range of one, as which nft 1.0.6 lists them
/// (`tcp dport 1024-1023`).
#[test]
fn comparisons_of_two_ports_are_no_range_of_one() {
    let lab = lab();
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    let rule = "tcp sport >= 1024 tcp dport <= 1023 counter packets 7 bytes 70 drop";
    lab.feed(
        "n",
        "nft -f -",
        &format!("table ip t {{\n chain c {{ type filter hook input priority 0; {rule}; }}\n}}\n"),
    );
    let hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
    let said: Vec<_> = hits.iter().filter_map(|hit| Some(hit.rule.as_ref()?.text.as_str())).collect();
    assert_eq!(said, ["tcp sport >= 1024 tcp dport <= 1023 drop"]);
    let ranges = |hit: &RuleHit| hit.conditions.iter().any(|c| matches!(c.field, ConditionField::DestinationPort(..)));
    assert!(!hits.iter().any(ranges), "{hits:#?}");
}

/// kube-proxy with 2,500 services: reading before the injection must not be felt, and the end must not drag.
#[test]
fn ten_thousand_rules_are_read_in_no_time() {
    const SERVICES: usize = 2500;
    let mut services = String::new();
    let mut chains = String::new();
    let mut jumps = String::new();
    for n in 0..SERVICES {
        let (high, low) = (n / 250, n % 250 + 1);
        writeln!(chains, ":KUBE-SVC-{n:016} - [0:0]\n:KUBE-SEP-{n:016} - [0:0]").unwrap();
        writeln!(jumps, "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"default/s{n} cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{n:016}").unwrap();
        writeln!(services, "-A KUBE-SVC-{n:016} -m comment --comment \"default/s{n} -> 10.1.{high}.{low}:80\" -m statistic --mode random --probability 0.5 -j KUBE-SEP-{n:016}").unwrap();
        writeln!(
            services,
            "-A KUBE-SEP-{n:016} -s 10.1.{high}.{low}/32 -m comment --comment default/s{n} -j KUBE-MARK-MASQ"
        )
        .unwrap();
        writeln!(services, "-A KUBE-SEP-{n:016} -p tcp -m comment --comment default/s{n} -m tcp -j DNAT --to-destination 10.1.{high}.{low}:80").unwrap();
    }
    let file = format!(
        "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n{chains}-A OUTPUT -j KUBE-SERVICES\n-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n{jumps}{services}COMMIT\n"
    );
    for program in ["iptables-legacy", "iptables-nft"] {
        let lab = lab();
        lab.feed("n", &format!("{program}-restore"), &file);
        let node = lab.survey("n");
        let started = Instant::now();
        let before = node.rule_counters(&[]);
        let counted = started.elapsed();
        let started = Instant::now();
        let rules = node.rules_met(&before, RuleTraces::default(), &node.scope());
        let understood = started.elapsed();
        println!("{program}: {} rules: counters in {counted:?}, rules in {understood:?}", 4 * SERVICES);
        assert_eq!((rules.hits.len(), rules.notes.len()), (0, 0), "{:?}", rules.notes);
        // A release build needs a tenth of what this one does, and both share their processors with other tests: these limits
        // only tell what grows with the square of the rules.
        assert!(counted < Duration::from_secs(5) && understood < Duration::from_secs(20), "{counted:?} {understood:?}");
    }
}

/// What rules and counters are worth if the rules are replaced meanwhile.
#[test]
fn replaced_rules_are_noticed() {
    let lab = lab();
    lab.exec("n", "iptables-nft -A FORWARD -s 10.7.0.0/16 -j DROP");
    lab.exec("n", "iptables-nft -A FORWARD -s 10.8.0.0/16 -j ACCEPT");
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    lab.exec("n", "iptables-nft -D FORWARD 1");
    let rules = node.rules_met(&before, RuleTraces::default(), &node.scope());
    assert!(!rules.complete.contains(&lab.inode("n")), "a rule took its counter with it");
    assert!(rules.notes.iter().any(|note| note.contains("changed during the trace")), "{:?}", rules.notes);
    let before = node.rule_counters(&[]);
    lab.exec("n", "iptables-nft -A FORWARD -s 10.9.0.0/16 -j DROP");
    let rules = node.rules_met(&before, RuleTraces::default(), &node.scope());
    assert!(rules.complete.contains(&lab.inode("n")), "an unmet new rule changes nothing");
}

/// Reading makes no legacy table where there is none.
#[test]
fn reading_changes_nothing() {
    let lab = lab();
    let node = lab.survey("n");
    let before = node.rule_counters(&[]);
    let rules = node.rules_met(&before, RuleTraces::default(), &node.scope());
    assert_eq!((rules.hits.len(), rules.notes.len(), rules.complete.len()), (0, 0, 3));
    for list in ["ip_tables_names", "ip6_tables_names"] {
        assert_eq!(lab.exec("n", &format!("cat /proc/net/{list}")), "", "{list}");
    }
    assert_eq!(lab.exec("n", "nft list ruleset"), "");
}

#[test]
fn ip6tables_are_read_alike() {
    for (program, engine) in [("ip6tables-legacy", RuleEngine::Iptables), ("ip6tables-nft", RuleEngine::IptablesNft)] {
        let lab = lab();
        lab.sysctl("n", "net.ipv6.conf.all.forwarding=1");
        for (name, address, link) in
            [("n", "fd00:1::1", "cali1"), ("n", "fd00:2::1", "cali2"), ("a", "fd00:1::2", "eth0")]
        {
            lab.ip(name, &format!("address add {address}/64 dev {link} nodad"));
        }
        lab.ip("a", "route add default via fd00:1::1");
        let rules = [
            "-A FORWARD -s fd00:1::/64 ! -d fd00:2::2 -i cali1 -p ipv6-icmp -m comment --comment six -j REJECT --reject-with icmp6-adm-prohibited",
            "-A FORWARD -p tcp -j DROP",
        ];
        iptables(&lab, program, &rules);
        let node = lab.survey("n");
        let before = node.rule_counters(&[]);
        let full = lab.name("a");
        let ping = Command::new("ip").args(["netns", "exec", &full, "ping", "-6", "-c1", "-W1", "fd00:2::9"]).output();
        assert!(!ping.expect("ping runs").status.success(), "refused");
        let hits = node.rules_met(&before, RuleTraces::default(), &node.scope()).hits;
        let [hit] = hits.as_slice() else { panic!("{hits:?}") };
        let saved = lab.exec("n", &format!("{program}-save"));
        let first = saved.lines().find_map(|line| line.strip_prefix("-A FORWARD ")).expect("a rule");
        assert_eq!(hit.rule.as_ref().unwrap().text, first, "{program}");
        assert_eq!((hit.engine, hit.family.as_str(), hit.packets, hit.understood), (engine, "ip6", 1, true));
        assert_eq!(hit.verdict, RuleVerdict::Reject("icmp6-adm-prohibited".into()));
    }
}

#[test]
fn settings_and_tunnels_are_told() {
    let lab = lab();
    lab.ip("n", "link add flannel.1 type vxlan id 1 local 10.1.0.1 dstport 8472 nolearning");
    lab.ip("n", "link set cali2 down");
    lab.sysctl("n", "net.ipv4.conf.cali1.rp_filter=1");
    let node = lab.survey("n");
    let (inode, cali1) = (lab.inode("n"), lab.ifindex("n", "cali1"));
    let links = &node.namespaces()[0].links;
    let named = |name: &str| links.iter().find(|link| link.name == name).expect("link");
    let tunnel =
        TunnelSettings { local: Some("10.1.0.1".parse().unwrap()), remote: None, id: Some(1), port: Some(8472) };
    assert_eq!(named("flannel.1").tunnel, Some(tunnel));
    assert_eq!((named("cali1").tunnel, named("cali1").admin_up, named("cali2").admin_up), (None, true, false));
    let mut namespaces = node.namespaces().to_vec();
    let notes = node.read_settings(&mut namespaces, &[(inode, cali1)].into());
    assert!(notes.is_empty(), "{notes:?}");
    let value = |name: &str| namespaces[0].settings.iter().find(|s| s.name == name).map(|s| s.value.as_str());
    assert_eq!(value("net.ipv4.ip_forward"), Some("1"));
    assert_eq!(value("net.ipv4.conf.cali1.rp_filter"), Some("1"));
    assert_eq!(value("net.ipv6.conf.all.disable_ipv6"), Some("0"));
    assert_eq!(value("net.ipv4.conf.cali2.rp_filter"), None, "no packet met it");
    assert!(namespaces[1..].iter().all(|namespace| namespace.settings.is_empty()));
}
