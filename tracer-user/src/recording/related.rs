//! Which of the packets before and after a window may be of an exchange in it.

use std::net::IpAddr;

use foldhash::HashSet;

use crate::event::{L4, Packet, Record};

/// An end of a flow, with its port where it has one.
type End = (IpAddr, u16);

/// Flows, by their ends in either order, under all the addresses that NAT gives them.
#[derive(Debug, Default)]
pub(super) struct Flows(HashSet<(u8, End, End)>);

impl Flows {
    /// Notes the flow of a record.
    pub(super) fn add(&mut self, record: &Record) {
        self.0.extend(keys(record).into_iter().flatten());
    }

    /// Whether a record may be of one of these flows. What it says of their translations is noted.
    pub(super) fn may_have(&mut self, record: &Record) -> bool {
        let keys = keys(record);
        // What names no flow may be about any: ICMP errors, fragments.
        let known = keys == [None; 3] || keys.iter().flatten().any(|key| self.0.contains(key));
        if known && matches!(record, Record::Translation(_)) {
            self.add(record);
        }
        known
    }
}

/// All that packets of its flow show in turn: as it was sent, with its destination rewritten, and then its source.
fn keys(record: &Record) -> [Option<(u8, End, End)>; 3] {
    match record {
        Record::Sighting(sighting) => [of_packet(&sighting.packet), None, None],
        Record::Rewrite(rewrite) => [of_packet(&rewrite.packet), None, None],
        Record::Translation(t) => {
            let ports = |port| if matches!(t.protocol, 6 | 17) { port } else { 0 };
            let end = |(address, port)| (address, ports(port));
            let (o, r) = (t.original, t.reply);
            let [from, to] = [(o.src, o.l4_src), (o.dst, o.l4_dst)].map(end);
            let [turned, back] = [(r.src, r.l4_src), (r.dst, r.l4_dst)].map(end);
            let key = |a, b| Some(in_order(if t.protocol == 58 { 1 } else { t.protocol }, a, b));
            [key(from, to), key(from, turned), key(back, turned)]
        }
    }
}

fn of_packet(packet: &Packet) -> Option<(u8, End, End)> {
    let (protocol, from, to) = match packet.l4 {
        L4::Tcp { src_port, dst_port, .. } => (6, src_port, dst_port),
        L4::Udp { src_port, dst_port, .. } => (17, src_port, dst_port),
        // Echoes: NAT rewrites their identifiers.
        L4::Icmp { kind: 0 | 8 | 128 | 129, .. } => (1, 0, 0),
        L4::Icmp { .. } | L4::Other { .. } => return None,
    };
    Some(in_order(protocol, (packet.src, from), (packet.dst, to)))
}

fn in_order(protocol: u8, a: End, b: End) -> (u8, End, End) {
    if a <= b { (protocol, a, b) } else { (protocol, b, a) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{CtDirection, Hook, Sighting, Translation, Tuple};

    const CLIENT: ([u8; 4], u16) = ([10, 0, 0, 1], 40_000);
    const SERVICE: ([u8; 4], u16) = ([10, 96, 0, 10], 80);
    const BACKEND: ([u8; 4], u16) = ([10, 0, 1, 2], 8080);
    const NODE: ([u8; 4], u16) = ([172, 16, 0, 1], 61_000);

    fn seen(src: ([u8; 4], u16), dst: ([u8; 4], u16), l4: impl Fn(u16, u16) -> L4) -> Record {
        let packet =
            Packet { src: src.0.into(), dst: dst.0.into(), ttl: 64, ip_id: 0, ip_len: 60, l4: l4(src.1, dst.1) };
        Record::Sighting(Sighting {
            time_ns: 0,
            skb: 0,
            hook: Hook::Receive,
            cpu: 0,
            netns: 0,
            ifindex: 0,
            mark: 0,
            tracked: false,
            conntrack: None,
            vlan: None,
            packet,
            outer: None,
            free: None,
        })
    }

    fn tcp(src_port: u16, dst_port: u16) -> L4 {
        L4::Tcp { src_port, dst_port, seq: 0, ack: 0, flags: 2, payload: 0 }
    }

    fn icmp(kind: u8) -> impl Fn(u16, u16) -> L4 {
        move |id, _| L4::Icmp { kind, code: 0, id, seq: 1, nonce: 0 }
    }

    fn translation(protocol: u8) -> Record {
        let tuple = |src: ([u8; 4], u16), dst: ([u8; 4], u16)| Tuple {
            src: src.0.into(),
            dst: dst.0.into(),
            l4_src: src.1,
            l4_dst: dst.1,
        };
        Record::Translation(Translation {
            time_ns: 0,
            skb: 0,
            netns: 0,
            original: tuple(CLIENT, SERVICE),
            reply: tuple(BACKEND, NODE),
            status: 0,
            protocol,
            direction: CtDirection::Original,
        })
    }

    #[test]
    fn a_flow_is_known_by_all_its_addresses_and_no_other_is() {
        for (protocol, there, back) in [
            (6, Box::new(tcp) as Box<dyn Fn(_, _) -> _>, Box::new(tcp) as Box<dyn Fn(_, _) -> _>),
            (1, Box::new(icmp(8)), Box::new(icmp(0))),
        ] {
            let mut flows = Flows::default();
            assert!(!flows.may_have(&translation(protocol)), "a translation of a flow that was not seen");
            flows.add(&seen(CLIENT, SERVICE, &there));
            assert!(!flows.may_have(&seen(NODE, BACKEND, &there)), "that nobody has said yet");
            assert!(flows.may_have(&translation(protocol)));
            let mut way = vec![(CLIENT, SERVICE), (CLIENT, BACKEND), (NODE, BACKEND)];
            way.extend(way.clone().into_iter().map(|(src, dst)| (dst, src)));
            for (src, dst) in way {
                let l4 = if src == CLIENT || src == NODE { &there } else { &back };
                assert!(flows.may_have(&seen(src, dst, l4)), "{src:?} {dst:?}");
            }
            assert!(!flows.may_have(&seen(([10, 0, 0, 9], 40_000), SERVICE, &there)));
        }
        let mut flows = Flows::default();
        flows.add(&seen(CLIENT, SERVICE, tcp));
        assert!(!flows.may_have(&seen((CLIENT.0, 40_001), SERVICE, tcp)), "another connection between the same");
    }

    #[test]
    fn an_icmp_error_and_a_fragment_may_be_about_any_flow() {
        let mut flows = Flows::default();
        assert!(flows.may_have(&seen(NODE, CLIENT, icmp(11))));
        assert!(flows.may_have(&seen(NODE, CLIENT, |_, _| L4::Other { protocol: 17 })));
        assert!(!flows.may_have(&seen(NODE, CLIENT, icmp(8))));
    }
}
