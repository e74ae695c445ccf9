use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;
use proptest::{
    collection::{btree_set, vec},
    option,
    prelude::*,
    sample::select,
};

use bytes::BytesMut;

use super::*;
use crate::{
    doctor::State,
    event::{
        CtDirection, Encapsulation, Engine, Free, Hook, L4, Netfilter, Outer, Packet, Record, Rewrite, Side, Sighting,
        Translation, Tuple,
    },
    node::facts::{
        Condition, ConditionField, ConntrackDrops, ConntrackEntry, Link, LinkRef, Namespace, Neighbour, NodeFacts,
        Role, Route, RouteAnswer, RouteKind, RouteQuestion, Rule, RuleEngine, RuleHit, RuleVerdict, Setting,
        TunnelSettings,
    },
    path::{Answer, Unsent},
    session::{About, Flow, Ping, ProbeKind},
};

fn text() -> impl Strategy<Value = String> {
    ".{0,40}"
}

fn net() -> impl Strategy<Value = IpNet> {
    (any::<IpAddr>(), 0..=128u8).prop_map(|(address, prefix)| {
        let most = if address.is_ipv4() { 32 } else { 128 };
        IpNet::new(address, prefix.min(most)).unwrap()
    })
}

fn direction() -> impl Strategy<Value = CtDirection> {
    prop_oneof![Just(CtDirection::Original), Just(CtDirection::Reply)]
}

fn l4() -> impl Strategy<Value = L4> {
    prop_oneof![
        any::<(u8, u8, u16, u16, u64)>().prop_map(|(kind, code, id, seq, nonce)| L4::Icmp {
            kind,
            code,
            id,
            seq,
            nonce
        }),
        any::<(u16, u16, u32, u32, u8, u16)>().prop_map(|(src_port, dst_port, seq, ack, flags, payload)| L4::Tcp {
            src_port,
            dst_port,
            seq,
            ack,
            flags,
            payload
        }),
        any::<(u16, u16, u16, u64)>().prop_map(|(src_port, dst_port, checksum, nonce)| L4::Udp {
            src_port,
            dst_port,
            checksum,
            nonce
        }),
        any::<u8>().prop_map(|protocol| L4::Other { protocol }),
    ]
}

fn packet() -> impl Strategy<Value = Packet> {
    (any::<(IpAddr, IpAddr, u8, u16, u16)>(), l4()).prop_map(|((src, dst, ttl, ip_id, ip_len), l4)| Packet {
        src,
        dst,
        ttl,
        ip_id,
        ip_len,
        l4,
    })
}

fn outer() -> impl Strategy<Value = Outer> {
    let encapsulation = prop_oneof![
        Just(Encapsulation::Ipip),
        Just(Encapsulation::Vxlan),
        Just(Encapsulation::Gre),
        Just(Encapsulation::Geneve)
    ];
    (any::<(IpAddr, IpAddr, u8, u16, u16)>(), encapsulation).prop_map(
        |((src, dst, ttl, ip_id, ip_len), encapsulation)| Outer { src, dst, ttl, ip_id, ip_len, encapsulation },
    )
}

fn free() -> impl Strategy<Value = Free> {
    (any::<u64>(), option::of(text()), any::<Option<u32>>(), option::of(text()), option::of(netfilter())).prop_map(
        |(location, function, reason, reason_name, netfilter)| Free {
            location,
            function: function.map(Into::into),
            reason,
            reason_name: reason_name.map(Into::into),
            netfilter: netfilter.map(Box::new),
        },
    )
}

fn netfilter() -> impl Strategy<Value = Netfilter> {
    let engine = prop_oneof![
        Just(Engine::Unknown),
        Just(Engine::Iptables),
        any::<(u64, u64)>().prop_map(|(table, chain)| Engine::Nftables { table, chain })
    ];
    (any::<(u8, u8)>(), engine, option::of(text()), option::of(text()))
        .prop_map(|((hook, family), engine, table, chain)| Netfilter { hook, family, engine, table, chain })
}

fn rewrite() -> impl Strategy<Value = Rewrite> {
    let side = prop_oneof![Just(Side::Source), Just(Side::Destination)];
    (any::<(u64, u64, u32, u32)>(), side, packet()).prop_map(|((time_ns, skb, netns, ifindex), side, packet)| Rewrite {
        time_ns,
        skb,
        netns,
        ifindex,
        side,
        packet,
    })
}

fn sighting() -> impl Strategy<Value = Sighting> {
    let hook =
        prop_oneof![Just(Hook::Receive), Just(Hook::Queue), Just(Hook::Xmit), Just(Hook::Drop), Just(Hook::Consume)];
    let plain = any::<(u64, u64, u16, u32, u32, u32, bool, Option<u16>)>();
    (plain, hook, option::of(direction()), packet(), option::of(outer()), option::of(free())).prop_map(
        |((time_ns, skb, cpu, netns, ifindex, mark, tracked, vlan), hook, conntrack, packet, outer, free)| Sighting {
            vlan,
            time_ns,
            skb,
            hook,
            cpu,
            netns,
            ifindex,
            mark,
            tracked,
            conntrack,
            packet,
            outer,
            free,
        },
    )
}

fn tuple() -> impl Strategy<Value = Tuple> {
    any::<(IpAddr, IpAddr, u16, u16)>().prop_map(|(src, dst, l4_src, l4_dst)| Tuple { src, dst, l4_src, l4_dst })
}

fn translation() -> impl Strategy<Value = Translation> {
    (any::<(u64, u64, u32, u32, u8)>(), tuple(), tuple(), direction()).prop_map(
        |((time_ns, skb, netns, status, protocol), original, reply, direction)| Translation {
            time_ns,
            skb,
            netns,
            original,
            reply,
            status,
            protocol,
            direction,
        },
    )
}

fn record() -> impl Strategy<Value = Record> {
    prop_oneof![
        sighting().prop_map(Record::Sighting),
        translation().prop_map(Record::Translation),
        rewrite().prop_map(Record::Rewrite)
    ]
}

fn link() -> impl Strategy<Value = Link> {
    let peer = any::<(u32, u32)>().prop_map(|(netns, ifindex)| LinkRef { netns, ifindex });
    let plain = any::<(u32, u32, bool, bool, Option<u32>, Option<u16>, Option<u32>)>();
    let lower = option::of(peer.clone());
    let tunnel = any::<(Option<IpAddr>, Option<IpAddr>, Option<u32>, Option<u16>)>()
        .prop_map(|(local, remote, id, port)| TunnelSettings { local, remote, id, port });
    (plain, text(), option::of(text()), text(), option::of(peer), lower, vec(net(), 0..4), option::of(tunnel)).prop_map(
        |((ifindex, mtu, up, admin_up, master, vlan, xdp), name, kind, mac, peer, lower, addresses, tunnel)| Link {
            ifindex,
            name,
            kind,
            mtu,
            mac,
            up,
            admin_up,
            master,
            peer,
            lower,
            vlan,
            addresses,
            tunnel,
            xdp,
        },
    )
}

fn answer() -> impl Strategy<Value = RouteAnswer> {
    let kind = prop_oneof![
        Just(RouteKind::Unicast),
        Just(RouteKind::Local),
        Just(RouteKind::Broadcast),
        Just(RouteKind::Blackhole),
        Just(RouteKind::Unreachable),
        Just(RouteKind::Prohibit),
        Just(RouteKind::Other)
    ];
    let route = (kind, net(), any::<(Option<IpAddr>, Option<u32>, u32)>(), text()).prop_map(
        |(kind, destination, (gateway, out_ifindex, table), text)| Route {
            kind,
            destination,
            gateway,
            out_ifindex,
            table,
            text,
        },
    );
    (any::<(u32, IpAddr, IpAddr, Option<u32>, u32)>(), option::of(route), any::<Option<IpAddr>>()).prop_map(
        |((netns, src, dst, in_ifindex, mark), route, icmp_source)| RouteAnswer {
            question: RouteQuestion { netns, src, dst, in_ifindex, mark },
            route,
            icmp_source,
        },
    )
}

fn probe_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        Just(Answer::Reply),
        Just(Answer::SynAck),
        Just(Answer::Reset),
        any::<(IpAddr, u8, u8, u32)>().prop_map(|(from, kind, code, mtu)| Answer::IcmpError { from, kind, code, mtu })
    ]
}

fn condition() -> impl Strategy<Value = Condition> {
    use ConditionField as F;
    let field = prop_oneof![
        text().prop_map(F::InInterface),
        text().prop_map(F::OutInterface),
        net().prop_map(F::Source),
        net().prop_map(F::Destination),
        any::<u8>().prop_map(F::Protocol),
        any::<(u16, u16)>().prop_map(|(from, to)| F::SourcePort(from, to)),
        any::<(u16, u16)>().prop_map(|(from, to)| F::DestinationPort(from, to)),
        any::<(u32, u32)>().prop_map(|(value, mask)| F::Mark(value, mask)),
        vec(text(), 0..4).prop_map(F::ConntrackState),
        Just(F::ReversePathFails),
    ];
    (field, any::<bool>()).prop_map(|(field, not)| Condition { field, not })
}

fn rule_hit() -> impl Strategy<Value = RuleHit> {
    use RuleVerdict as V;
    let verdict = prop_oneof![
        Just(V::Accept),
        Just(V::Drop),
        text().prop_map(V::Reject),
        Just(V::Masquerade),
        text().prop_map(V::Snat),
        text().prop_map(V::Dnat),
        text().prop_map(V::Jump),
        Just(V::Other),
    ];
    let engine = prop_oneof![Just(RuleEngine::Iptables), Just(RuleEngine::IptablesNft), Just(RuleEngine::Nftables)];
    let rule = (any::<(u32, Option<u64>)>(), text(), option::of(text()))
        .prop_map(|((position, handle), text, comment)| Rule { position, handle, text, comment });
    (
        (engine, text(), text(), text(), vec(text(), 0..4)),
        (option::of(rule), verdict, vec(condition(), 0..4)),
        any::<(u32, Option<u8>, bool, bool, u64, u64)>(),
    )
        .prop_map(|((engine, family, table, chain, way), (rule, verdict, conditions), numbers)| {
            let (netns, hook, understood, counted, packets, traced) = numbers;
            RuleHit {
                netns,
                engine,
                family,
                table,
                chain,
                hook,
                way,
                rule,
                verdict,
                conditions,
                understood,
                counted,
                packets,
                traced,
            }
        })
}

fn node_facts() -> impl Strategy<Value = NodeFacts> {
    let role = prop_oneof![Just(Role::Node), Just(Role::Pod)];
    let setting = (text(), text()).prop_map(|(name, value)| Setting { name, value });
    let namespace = (any::<u32>(), role, vec(text(), 0..3), vec(link(), 0..4), vec(setting, 0..3))
        .prop_map(|(inode, role, names, links, settings)| Namespace { inode, role, names, links, settings });
    let neighbour = (any::<(u32, u32, IpAddr)>(), option::of(text()), text())
        .prop_map(|((netns, ifindex, address), mac, state)| Neighbour { netns, ifindex, address, mac, state });
    type Ends = (IpAddr, IpAddr, u16, u16);
    let entry =
        any::<(u32, u8, Ends, Ends, u32, u32)>().prop_map(|(netns, protocol, original, reply, status, timeout_s)| {
            ConntrackEntry { netns, protocol, original, reply, status, timeout_s }
        });
    let drops = any::<(u32, u64, u64)>().prop_map(|(netns, dropped, insert_failed)| ConntrackDrops {
        netns,
        dropped,
        insert_failed,
    });
    (
        vec(namespace, 0..4),
        vec(answer(), 0..4),
        vec(neighbour, 0..4),
        vec(entry, 0..4),
        (vec(rule_hit(), 0..4), vec(any::<u32>(), 0..4), vec(drops, 0..4)),
        any::<bool>(),
        btree_set(text(), 0..4),
    )
        .prop_map(|(namespaces, routes, neighbours, conntrack, rules, routes_changed, notes)| NodeFacts {
            namespaces,
            routes,
            neighbours,
            conntrack,
            rules: rules.0,
            rules_complete: rules.1,
            conntrack_drops: rules.2,
            routes_changed,
            notes: notes.into_iter().collect(),
        })
}

fn request() -> impl Strategy<Value = Request> {
    let flow = (any::<(IpAddr, Option<IpAddr>, u8, Option<u16>, Option<u16>)>(), 1..=u32::MAX)
        .prop_map(|((a, b, protocol, a_port, b_port), one_of)| Flow { a, b, protocol, a_port, b_port, one_of });
    let kind = any::<(u8, u16, u16)>().prop_map(|(kind, id, dst_port)| match kind % 3 {
        0 => ProbeKind::Echo { id },
        1 => ProbeKind::Tcp { dst_port },
        _ => ProbeKind::Udp { dst_port },
    });
    let ping = (any::<(IpAddr, IpAddr, u16, u64, u16, u64, u64, Option<IpAddr>, bool)>(), kind).prop_map(
        |((src, dst, count, interval, size, timeout, nonce_base, home, any_source), kind)| {
            let (interval, timeout) = (Duration::from_nanos(interval), Duration::from_nanos(timeout));
            Ping { src, home, any_source, dst, kind, count, interval, size, timeout, nonce_base }
        },
    );
    (vec(flow, 0..4), any::<u64>(), option::of(ping), any::<[bool; 2]>()).prop_map(
        |(flows, limit, ping, [trace_rules, sparing])| Request {
            trace_rules,
            sparing,
            flows,
            time_limit: Duration::from_nanos(limit),
            ping,
        },
    )
}

fn check() -> impl Strategy<Value = Check> {
    let state = prop_oneof![Just(State::Ok), Just(State::Unknown), Just(State::Missing), Just(State::Fatal)];
    (text(), state, text(), text()).prop_map(|(name, state, detail, cost)| Check { name, state, detail, cost })
}

fn message() -> impl Strategy<Value = Message> {
    let version = any::<(u32, u32)>().prop_map(|(major, minor)| Version { major, minor });
    let hello = (version.clone(), text(), (text(), text(), vec(text(), 0..4), any::<i64>())).prop_map(
        |(protocol, program, (node, kernel, capabilities, realtime_offset_ns))| {
            Message::Hello(Hello { protocol, program, about: About { node, kernel, capabilities, realtime_offset_ns } })
        },
    );
    let why = [Unsent::Filtered, Unsent::NoRoute, Unsent::Blackhole, Unsent::Unreachable, Unsent::Prohibit];
    let unsent = option::of(select(why.to_vec()));
    let probe = (any::<(u16, u8, u16, u16, u16, u64, Option<u64>)>(), option::of(probe_answer()), unsent).prop_map(
        |((seq, protocol, id, dst_port, ip_id, nonce, rtt_ns), answer, unsent)| {
            Message::Probe(Probe { seq, protocol, id, dst_port, ip_id, nonce, rtt_ns, answer, unsent })
        },
    );
    let counters = any::<([u64; 10], u64)>().prop_map(|(numbers, discarded)| {
        let [recorded, lost_receive, lost_queue, lost_xmit, lost_drop, lost_consume, lost_rewrite, others @ ..] =
            numbers;
        let [unread, skipped_frees, skipped_kprobes] = others;
        let counters = Counters {
            recorded,
            lost_receive,
            lost_queue,
            lost_xmit,
            lost_drop,
            lost_consume,
            lost_rewrite,
            unread,
            skipped_frees,
            skipped_kprobes,
        };
        Message::Counters(counters, discarded)
    });
    prop_oneof![
        hello,
        (version, request()).prop_map(|(version, request)| Message::Request(version, request)),
        any::<u64>().prop_map(Message::Armed),
        probe,
        vec(record(), 0..20).prop_map(|records| Message::Records(records, 0)),
        node_facts().prop_map(|node| Message::Facts(facts(&node))),
        counters,
        (text(), text(), text(), any::<Option<IpAddr>>()).prop_map(
            |(thing, cause, way_out, send_from)| Message::Error(Failure { thing, cause, way_out, send_from })
        ),
        Just(Message::Fire),
        Just(Message::Fired),
        Just(Message::Stop),
        any::<u64>().prop_map(Message::Drained),
        Just(Message::End),
        Just(Message::Keepalive),
        any::<(u32, u32)>().prop_map(|(major, minor)| Message::Examine(Version { major, minor })),
        vec(check(), 0..4).prop_map(Message::Checks),
    ]
}

fn through(message: Message) -> Message {
    decode(encode(message).unwrap()).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_message_survives_the_wire(message in message()) {
        prop_assert_eq!(through(message.clone()), message);
    }

    /// Records are written and read by hand: as prost does it.
    #[test]
    fn records_stand_on_the_wire_as_the_protocol_says(record in record()) {
        let mut bytes = Vec::new();
        record::put(&record, &mut bytes);
        prop_assert_eq!(&bytes, &record::reference::Record::from(&record).encode_to_vec());
        prop_assert_eq!(record::get(&bytes).unwrap(), record);
    }

    #[test]
    fn no_bytes_make_the_reader_of_records_panic(record in record(), at in any::<prop::sample::Index>(), new in vec(any::<u8>(), 0..8)) {
        let mut bytes = Vec::new();
        record::put(&record, &mut bytes);
        let at = at.index(bytes.len());
        let end = (at + new.len()).min(bytes.len());
        bytes.splice(at..end, new.iter().copied());
        for bytes in [&bytes[..], &bytes[..at], &new] {
            let _good_or_not = record::get(bytes);
        }
    }

    #[test]
    fn facts_survive_being_split(node in node_facts()) {
        let mut collected = Collected::default();
        // Told early, as it was then, and again in the end.
        let mut early =
            NodeFacts { namespaces: node.namespaces.clone(), notes: node.notes.clone(), ..NodeFacts::default() };
        early.notes.pop();
        early.namespaces.iter_mut().for_each(|namespace| namespace.names.push("before".into()));
        for message in batches(facts(&early)).into_iter().chain(batches(facts(&node))) {
            let Message::Facts(facts) = through(message) else { panic!("facts") };
            facts.into_iter().for_each(|fact| collected.add(fact).unwrap());
        }
        prop_assert_eq!(collected.facts, node);
    }

    /// What a newer minor version adds, in a known message or as a message of its own, is passed over.
    #[test]
    fn unknown_fields_are_ignored(message in message(), extra in vec(any::<u8>(), 0..20)) {
        let mut frame = BytesMut::from(&encode(message.clone()).unwrap()[..]);
        prost::encoding::bytes::encode(100, &extra, &mut frame);
        prop_assert_eq!(decode(frame.freeze()).unwrap(), message);
        let mut frame = BytesMut::new();
        prost::encoding::bytes::encode(100, &extra, &mut frame);
        prop_assert_eq!(decode(frame.freeze()).unwrap(), Message::Unknown);
    }

    /// Not even nearly good input makes the decoder panic.
    #[test]
    fn no_bytes_make_the_decoder_panic(message in message(), at in any::<prop::sample::Index>(), bytes in vec(any::<u8>(), 0..8)) {
        let mut frame = encode(message).unwrap().to_vec();
        let at = at.index(frame.len().max(1)).min(frame.len());
        let end = (at + bytes.len()).min(frame.len());
        frame.splice(at..end, bytes.iter().copied());
        for frame in [&frame[..], &frame[..at], &bytes] {
            if let Ok(Message::Facts(facts)) = decode(frame.to_vec().into()) {
                let mut collected = Collected::default();
                let _order = facts.into_iter().try_for_each(|fact| collected.add(fact));
            }
        }
    }
}

fn some_record(name: &str) -> Record {
    let packet = Packet {
        src: [10, 0, 0, 1].into(),
        dst: [10, 0, 0, 2].into(),
        ttl: 64,
        ip_id: 1,
        ip_len: 84,
        l4: L4::Icmp { kind: 8, code: 0, id: 7, seq: 1, nonce: u64::MAX },
    };
    Record::Sighting(Sighting {
        time_ns: 1,
        skb: 0xffff_8880_0000_0000,
        hook: Hook::Drop,
        cpu: 0,
        netns: 4_026_531_840,
        ifindex: 2,
        mark: 0,
        tracked: false,
        conntrack: None,
        vlan: None,
        packet,
        outer: None,
        free: Some(Free { function: Some(name.into()), ..Free::default() }),
    })
}

#[test]
fn records_are_split_into_frames_that_fit() {
    let sent: Vec<Record> = (0..5000).map(|n| some_record(&n.to_string())).collect();
    let (mut queue, mut received, mut frames) = (VecDeque::from(sent.clone()), Vec::new(), 0);
    while !queue.is_empty() {
        let frame = Frames::default().next(&mut queue).unwrap();
        assert!(frame.len() <= MAX_FRAME);
        let Message::Records(records, 0) = decode(frame).unwrap() else { panic!("records") };
        received.extend(records);
        frames += 1;
    }
    assert!((2..100).contains(&frames), "{frames} frames");
    assert!(received == sent);
}

#[test]
fn a_link_of_thousands_of_addresses_fits() {
    let addresses = (0..20_000u32).map(|n| IpNet::new(IpAddr::from(n.to_be_bytes()), 32).unwrap()).collect();
    let links = vec![Link { addresses, ..Link::default() }];
    let node = NodeFacts {
        namespaces: vec![Namespace { inode: 1, role: Role::Node, names: vec![], links, settings: vec![] }],
        ..NodeFacts::default()
    };
    let mut collected = Collected::default();
    let messages = batches(facts(&node));
    assert!(messages.len() > 1);
    for message in messages {
        let Message::Facts(facts) = through(message) else { panic!("facts") };
        facts.into_iter().for_each(|fact| collected.add(fact).unwrap());
    }
    assert!(collected.facts == node);
}

#[test]
fn a_frame_begins_with_its_length_however_long_it_is() {
    for count in [0, 1, 2, 40, 400] {
        let sent: Vec<Record> = (0..count).map(|n| some_record(&n.to_string())).collect();
        assert_eq!(through(Message::Records(sent.clone(), 0)), Message::Records(sent, 0));
    }
    let too_many = (0..5000).map(|n| some_record(&n.to_string())).collect();
    assert!(matches!(encode(Message::Records(too_many, 0)), Err(Error::Oversized { message: "records", .. })));
}

#[test]
fn what_does_not_fit_is_an_error() {
    let mut queue = VecDeque::from([some_record(&"x".repeat(MAX_FRAME))]);
    assert!(matches!(Frames::default().next(&mut queue), Err(Error::Oversized { message: "records", .. })));
}

/// Protobuf by hand: a length-delimited field.
fn field(tag: u32, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::bytes::encode(tag, &content.to_vec(), &mut bytes);
    bytes
}

#[test]
fn values_that_do_not_decode_name_message_and_field() {
    let error = |frame: Vec<u8>| decode(frame.clone().into()).unwrap_err().to_string();
    // request { flows { a: 3 bytes } }
    insta::assert_snapshot!(error(field(2, &field(3, &field(1, &[10, 0, 0])))), @"message request.flow: a has 3 bytes, an address has 4 or 16");
    // request { flows { a: 4 bytes, protocol: 300 } }
    let flow = [field(1, &[10, 0, 0, 1]), vec![3 << 3, 0xac, 0x02]].concat();
    insta::assert_snapshot!(error(field(2, &field(3, &flow))), @"message request.flow: protocol 300 is out of range");
    // records { sighting { hook: 1 } }
    insta::assert_snapshot!(error(field(7, &field(1, &field(1, &[3 << 3, 1])))), @"message sighting: no packet");
    insta::assert_snapshot!(error(vec![0xff]), @"a frame does not decode: failed to decode Protobuf message: invalid varint");
    // facts { link } without a namespace
    let Message::Facts(facts) = decode(field(8, &field(1, &field(3, &[]))).into()).unwrap() else { panic!("facts") };
    let order = facts.into_iter().try_for_each(|fact| Collected::default().add(fact)).unwrap_err();
    insta::assert_snapshot!(order, @"message facts: link before its namespace");
}

#[test]
fn a_peer_that_counts_less_counts_none_of_the_rest() {
    // counters { recorded: 5, lost_queue: 2, discarded: 17 }
    let older = field(9, &[1 << 3, 5, 3 << 3, 2, 7 << 3, 17]);
    let counters = Counters { recorded: 5, lost_queue: 2, ..Counters::default() };
    assert_eq!(decode(older.clone().into()).unwrap(), Message::Counters(counters, 17));
}

#[test]
fn records_of_a_newer_peer_are_counted_and_the_others_kept() {
    let known = encode(Message::Records(vec![some_record("known")], 0)).unwrap();
    // A sighting with hook 99, and a record of kind 9.
    let newer = field(7, &[field(1, &field(1, &[3 << 3, 99])), field(1, &field(9, &[1]))].concat());
    // Protobuf merges two occurrences of a message in a oneof.
    let frame = [&known[..], &newer].concat();
    assert_eq!(decode(frame.clone().into()).unwrap(), Message::Records(vec![some_record("known")], 2));
}
