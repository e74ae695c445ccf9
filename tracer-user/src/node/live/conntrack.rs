//! Conntrack entries of single flows, by ctnetlink.
//!
//! Each flow is one lookup by its tuple (`net/netfilter/nf_conntrack_netlink.c`, ctnetlink_get_conntrack), which the
//! kernel answers from its hash table: a table of a million entries is never listed. Any of the four tuples of a
//! translated flow finds the entry whose original or reply direction it is.

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
    conntrack::{ConntrackAttribute, ConntrackMessage, IPTuple, ProtoTuple, Protocol, Tuple},
};

use super::{
    error::Failure,
    facts::{ConntrackEntry, Flow},
    netlink::Netlink,
};

/// `uapi/linux/netfilter/nfnetlink_conntrack.h`, enum ctattr_l4proto. For ICMPv6 the same three from 7 on.
const CTA_PROTO_ICMP_ID: u16 = 4;
const CTA_PROTO_ICMPV6_ID: u16 = 7;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;
/// Ports are part of these protocols' tuples (nf_conntrack_proto_*.c): TCP, UDP, DCCP, SCTP, UDP-Lite.
const WITH_PORTS: [u8; 5] = [6, 17, 33, 132, 136];

type Ends = (IpAddr, IpAddr, u16, u16);

/// The entry that `flow` belongs to, if conntrack has one. The socket must be of `NETLINK_NETFILTER`.
pub(super) fn get(netlink: &mut Netlink, flow: &Flow) -> Result<Option<ConntrackEntry>, Failure> {
    for kind in icmp_kinds(flow.protocol) {
        match netlink.get(request(flow, *kind)) {
            Ok(answer) => return Ok(entry(flow.netns, &answer)),
            Err(failure) if failure.errno() == Some(libc::ENOENT) => {}
            Err(failure) => return Err(failure),
        }
    }
    Ok(None)
}

/// ICMP types to try, because a flow may be given as its request or its reply says it: echo request, echo reply.
fn icmp_kinds(protocol: u8) -> &'static [u8] {
    match protocol {
        ICMP => &[8, 0],
        ICMPV6 => &[128, 129],
        _ => &[0],
    }
}

fn request(flow: &Flow, icmp_kind: u8) -> NetfilterMessage {
    let mut proto = vec![ProtoTuple::Protocol(Protocol::from(flow.protocol))];
    let icmp = |first: u16| {
        let nla = |offset: u16, value: &[u8]| ProtoTuple::Other(DefaultNla::new(first + offset, value.to_vec()));
        [nla(0, &flow.src_port.to_be_bytes()), nla(1, &[icmp_kind]), nla(2, &[0])]
    };
    match flow.protocol {
        ICMP => proto.extend(icmp(CTA_PROTO_ICMP_ID)),
        ICMPV6 => proto.extend(icmp(CTA_PROTO_ICMPV6_ID)),
        other if WITH_PORTS.contains(&other) => {
            proto.extend([ProtoTuple::SourcePort(flow.src_port), ProtoTuple::DestinationPort(flow.dst_port)]);
        }
        _ => {}
    }
    let tuple = vec![
        Tuple::Ip(vec![IPTuple::SourceAddress(flow.src), IPTuple::DestinationAddress(flow.dst)]),
        Tuple::Proto(proto),
    ];
    let family = if flow.src.is_ipv4() { NetfilterProtoFamily::IPv4 } else { NetfilterProtoFamily::IPv6 };
    let message = ConntrackMessage::Get(vec![ConntrackAttribute::CtaTupleOrig(tuple)]);
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

fn entry(netns: u32, message: &NetfilterMessage) -> Option<ConntrackEntry> {
    let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) = &message.inner else { return None };
    let (mut original, mut reply) = (None, None);
    let (mut protocol, mut status, mut timeout_s) = (0, 0, 0);
    for attribute in attributes {
        match attribute {
            ConntrackAttribute::CtaTupleOrig(tuples) => {
                original = ends(tuples);
                protocol = protocol_of(tuples)?;
            }
            ConntrackAttribute::CtaTupleReply(tuples) => reply = ends(tuples),
            ConntrackAttribute::CtaStatus(bits) => status = bits.bits(),
            ConntrackAttribute::CtaTimeout(seconds) => timeout_s = *seconds,
            _ => {}
        }
    }
    Some(ConntrackEntry { netns, protocol, original: original?, reply: reply?, status, timeout_s })
}

fn protocol_of(tuples: &[Tuple]) -> Option<u8> {
    protocol_parts(tuples).find_map(|part| match part {
        ProtoTuple::Protocol(protocol) => Some(u8::from(*protocol)),
        _ => None,
    })
}

fn protocol_parts(tuples: &[Tuple]) -> impl Iterator<Item = &ProtoTuple> {
    tuples.iter().flat_map(|tuple| match tuple {
        Tuple::Proto(parts) => parts.as_slice(),
        _ => &[],
    })
}

fn ends(tuples: &[Tuple]) -> Option<Ends> {
    let (mut src, mut dst) = (None, None);
    for tuple in tuples {
        let Tuple::Ip(parts) = tuple else { continue };
        for part in parts {
            match part {
                IPTuple::SourceAddress(address) => src = Some(*address),
                IPTuple::DestinationAddress(address) => dst = Some(*address),
                _ => {}
            }
        }
    }
    let (mut src_port, mut dst_port) = (0, 0);
    for part in protocol_parts(tuples) {
        match part {
            ProtoTuple::SourcePort(port) => src_port = *port,
            ProtoTuple::DestinationPort(port) => dst_port = *port,
            ProtoTuple::Other(nla) if matches!(nla.kind(), CTA_PROTO_ICMP_ID | CTA_PROTO_ICMPV6_ID) => {
                let mut id = [0; 2];
                if nla.value_len() == id.len() {
                    nla.emit_value(&mut id);
                    src_port = u16::from_be_bytes(id);
                }
            }
            _ => {}
        }
    }
    Some((src?, dst?, src_port, dst_port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(protocol: u8) -> Flow {
        Flow {
            netns: 7,
            protocol,
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            src_port: 0x1234,
            dst_port: if protocol == ICMP { 0 } else { 80 },
        }
    }

    /// The kernel answers with the attributes it is asked with: read our own request back as an answer.
    fn echoed(flow: &Flow) -> ConntrackEntry {
        let NetfilterMessageInner::Conntrack(ConntrackMessage::Get(asked)) = request(flow, 8).inner else { panic!() };
        let [ConntrackAttribute::CtaTupleOrig(tuple)] = asked.as_slice() else { panic!("{asked:?}") };
        let answer = vec![
            ConntrackAttribute::CtaTupleOrig(tuple.clone()),
            ConntrackAttribute::CtaTupleReply(tuple.clone()),
            ConntrackAttribute::CtaTimeout(29),
        ];
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        entry(flow.netns, &NetfilterMessage::new(header, ConntrackMessage::New(answer))).unwrap()
    }

    #[test]
    fn tuples_survive_the_way_there_and_back() {
        for protocol in [ICMP, 6, 17] {
            let flow = flow(protocol);
            let entry = echoed(&flow);
            assert_eq!(entry.protocol, protocol);
            assert_eq!(entry.original, (flow.src, flow.dst, flow.src_port, flow.dst_port));
            assert_eq!((entry.netns, entry.timeout_s), (7, 29));
        }
    }

    #[test]
    fn an_answer_without_tuples_is_no_entry() {
        let header = NetfilterHeader::new(NetfilterProtoFamily::IPv4, 0, 0);
        assert_eq!(entry(7, &NetfilterMessage::new(header, ConntrackMessage::New(vec![]))), None);
    }
}
