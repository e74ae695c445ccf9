//! What kprobes add: run with `--include-ignored` on kernels that have them.

use std::process::Command;

use tracer_user::{
    event::{Engine, Hook, Netfilter, Record, Rewrite, Side, Sighting},
    probe::{Probe, RING_SIZE, Setup, btf::KernelTypes, hooks},
    session::Flow,
};

use crate::{Pair, flow, kind, sh, sightings, start};

/// Detaches and drains; fails if a kprobe that these tests are about was not there.
fn records(probe: &mut Probe, needed: &[&str]) -> Vec<Record> {
    assert!(hooks::has_kprobes(), "this kernel has no kprobes");
    let lacking: Vec<_> = probe.without().iter().filter(|lack| needed.contains(&lack.hook.name)).collect();
    assert!(lacking.is_empty(), "{lacking:?}");
    probe.detach().unwrap();
    probe.drain().unwrap()
}

fn rewrites(records: &[Record]) -> Vec<Rewrite> {
    let rewrites = records.iter().filter_map(|record| match record {
        Record::Rewrite(rewrite) => Some(rewrite.clone()),
        Record::Sighting(_) | Record::Translation(_) => None,
    });
    let mut rewrites: Vec<_> = rewrites.collect();
    rewrites.sort_by_key(|rewrite| rewrite.time_ns);
    rewrites
}

fn at(seen: &[Sighting], hook: Hook, netns: u32, icmp: u8) -> &Sighting {
    seen.iter().find(|s| s.hook == hook && s.netns == netns && kind(s) == icmp).expect("a sighting")
}

/// A ping that is not answered.
fn unanswered(pair: &Pair, to: &str) {
    let ping =
        Command::new("ip").args(["netns", "exec", &pair.a, "ping", "-n", "-c", "1", "-W", "1", to]).output().unwrap();
    assert!(!ping.status.success());
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn the_moment_of_masquerading_lies_between_two_devices() {
    let (pair, beyond) = (Pair::new("moment"), Pair::new("moment2"));
    crate::masquerading(&pair, &beyond);
    let [_, b] = pair.scope();
    let outside = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[outside], &pair.scope(), RING_SIZE);
    pair.ping(&["-c", "1", "203.0.113.9"]);
    let records = records(&mut probe, &["nf_nat_manip_pkt"]);
    let rewrites = rewrites(&records);
    let seen = sightings(records);
    let [out, back] = &rewrites[..] else { panic!("{rewrites:#?}") };
    // The same number for the same packet, although the kprobe makes it of a number and the tracepoints of a pointer.
    let (came, went) = (at(&seen, Hook::Receive, b, 8), at(&seen, Hook::Queue, b, 8));
    assert_eq!((out.skb, out.skb, out.side), (came.skb, went.skb, Side::Source));
    assert!(came.time_ns < out.time_ns && out.time_ns < went.time_ns);
    assert_eq!((out.packet.src.to_string(), out.netns, out.ifindex), ("198.51.100.1".into(), b, came.ifindex));
    let (came, went) = (at(&seen, Hook::Receive, b, 0), at(&seen, Hook::Queue, b, 0));
    assert_eq!((back.skb, back.skb, back.side), (came.skb, went.skb, Side::Destination));
    assert!(came.time_ns < back.time_ns && back.time_ns < went.time_ns);
    assert_eq!(back.packet.dst.to_string(), "203.0.113.1");
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn what_a_node_sends_is_seen_translated_before_any_device() {
    let pair = Pair::new("own");
    crate::own_service(&pair);
    let [a, b] = pair.scope();
    let service = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[service], &[a, b], RING_SIZE);
    pair.ping(&["-c", "1", "203.0.113.9"]);
    let records = records(&mut probe, &["nf_nat_manip_pkt"]);
    let rewrites = rewrites(&records);
    let seen = sightings(records);
    let [out, back] = &rewrites[..] else { panic!("{rewrites:#?}") };
    let sent = at(&seen, Hook::Queue, a, 8);
    assert_eq!((out.skb, out.netns, out.ifindex, out.side), (sent.skb, a, 0, Side::Destination));
    assert_eq!(out.packet.dst.to_string(), "203.0.113.9");
    assert!(out.time_ns < sent.time_ns);
    assert_eq!((back.skb, back.side), (at(&seen, Hook::Receive, a, 0).skb, Side::Source));
}

/// Of the free of the one request: what evaluated rules last.
fn evaluated(records: Vec<Record>, netns: u32) -> Option<Netfilter> {
    let seen = sightings(records);
    let freed = at(&seen, Hook::Drop, netns, 8);
    freed.free.as_ref().expect("a free").netfilter.as_deref().cloned()
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn a_packet_dropped_by_nftables_says_in_which_chain() {
    let pair = Pair::new("nft");
    let nft = format!("ip netns exec {} nft", pair.b);
    sh(&format!(
        "{nft} add table inet early; {nft} add chain inet early before '{{ type filter hook prerouting priority 0; }}'
         {nft} add table inet verdicts
         {nft} add chain inet verdicts other
         {nft} add chain inet verdicts in '{{ type filter hook input priority 0; }}'
         {nft} add rule inet verdicts in icmp type echo-request drop"
    ));
    let listed = Command::new("sh").args(["-c", &format!("{nft} -a list table inet verdicts")]).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let handle = |of: &str| -> u64 {
        let line = listed.lines().find(|line| line.contains(of)).unwrap();
        line.rsplit_once("handle ").unwrap().1.trim().parse().unwrap()
    };
    let (table, chain) = (handle("table inet verdicts"), handle("chain in "));
    let mut probe = start(&[flow()], &pair.scope(), RING_SIZE);
    unanswered(&pair, "198.51.100.2");
    let found = evaluated(records(&mut probe, &["nft_do_chain", "nf_hook_slow"]), pair.scope()[1]).expect("rules");
    // Without BTF of its modules a kernel does not tell which chain it was.
    let known = std::path::Path::new("/sys/kernel/btf/nf_tables").exists();
    let (table, chain) = if known { (table, chain) } else { (0, 0) };
    assert_eq!((found.hook, found.engine), (1, Engine::Nftables { table, chain }), "{listed}");
    assert!([1, 2].contains(&found.family), "{found:?}");
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn who_spares_others_watches_the_evaluation_of_rules_from_the_first_drop() {
    let pair = Pair::new("spared");
    sh(&format!("ip netns exec {b} iptables-legacy -t mangle -A PREROUTING -p icmp -j DROP", b = pair.b));
    let setup = Setup { flows: &[flow()], scope: &pair.scope(), ring_size: RING_SIZE };
    let mut probe = Probe::load(&setup).unwrap();
    probe.attach_sparing().unwrap();
    let mut found = Vec::new();
    let mut seen = Vec::new();
    for _ in 0..2 {
        unanswered(&pair, "198.51.100.2");
        seen.extend(probe.drain().unwrap());
    }
    seen.extend(records(&mut probe, &["ipt_do_table", "nf_hook_slow"]));
    for sighting in sightings(seen) {
        if sighting.hook == Hook::Drop {
            found.push(sighting.free.expect("a free").netfilter.map(|rules| (rules.hook, rules.engine)));
        }
    }
    assert_eq!(found, [None, Some((0, Engine::Iptables))]);
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn a_packet_dropped_by_iptables_says_in_which_table() {
    let pair = Pair::new("ipt");
    sh(&format!("ip netns exec {b} iptables-legacy -t mangle -A PREROUTING -p icmp -j DROP", b = pair.b));
    let mut probe = start(&[flow()], &pair.scope(), RING_SIZE);
    unanswered(&pair, "198.51.100.2");
    let found = evaluated(records(&mut probe, &["ipt_do_table", "nf_hook_slow"]), pair.scope()[1]).expect("rules");
    // Some kernels have this structure's types although they have none of the module's.
    let types = KernelTypes::open().unwrap();
    let known = types.with_module("x_tables").as_ref().unwrap_or(&types).field("xt_table", "name").is_some();
    let table = known.then(|| "mangle".to_owned());
    let expected = Netfilter { hook: 0, family: 2, engine: Engine::Iptables, table, chain: None };
    assert_eq!(found, expected);
}

#[test]
#[ignore = "needs kprobes, which not every kernel has"]
fn rules_that_let_a_packet_pass_have_no_part_in_what_happens_to_it_at_the_next_device() {
    let pair = Pair::new("passed");
    // The second namespace neither owns the address nor forwards.
    sh(&format!(
        "ip netns exec {a} nft add table inet t
         ip netns exec {a} nft add chain inet t out '{{ type filter hook output priority 0; }}'
         ip -n {a} route add 203.0.113.9 via 198.51.100.2; ip netns exec {b} sysctl -qw net.ipv4.ip_forward=0",
        a = pair.a,
        b = pair.b
    ));
    let lost = Flow { b: Some("203.0.113.9".parse().unwrap()), ..flow() };
    let mut probe = start(&[lost], &pair.scope(), RING_SIZE);
    unanswered(&pair, "203.0.113.9");
    assert_eq!(evaluated(records(&mut probe, &["nft_do_chain", "nf_hook_slow"]), pair.scope()[1]), None);
}
