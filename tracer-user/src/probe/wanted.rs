//! Wanted flows as the programs compare them.

use std::net::IpAddr;

use tracer_common::{MAX_FLOWS, Rule, Wanted, address};

use super::Error;
use crate::{event, session::Flow};

/// The two directions of each flow, as the programs compare them.
pub(super) fn rules(flows: &[Flow]) -> Result<Wanted, Error> {
    let mut wanted = Wanted::default();
    if flows.len() > MAX_FLOWS {
        return Err(Error::TooManyFlows { asked: flows.len() });
    }
    for flow in flows {
        let [.., a, b, c, d] = event::to_bytes(flow.a);
        wanted.ends[wanted.flows as usize] = u32::from_ne_bytes([a, b, c, d]);
        wanted.rules[wanted.flows as usize] = both_ways(flow);
        wanted.flows += 1;
    }
    Ok(wanted)
}

fn both_ways(flow: &Flow) -> [Rule; 2] {
    let Flow { a, b, protocol, a_port, b_port, one_of } = *flow;
    let end = |end: Option<IpAddr>| match end {
        Some(end) => (address(event::to_bytes(end)), [u64::MAX; 2]),
        None => ([0; 2], [0; 2]),
    };
    let ((a, a_mask), (b, b_mask)) = (end(Some(a)), end(b));
    let (forward, backward, port_at) = if matches!(protocol, 1 | 58) {
        // An ICMP identifier is the same both ways.
        let id = l4_bytes(4, a_port);
        (id, id, [4, 4])
    } else {
        (either(l4_bytes(0, a_port), l4_bytes(2, b_port)), either(l4_bytes(0, b_port), l4_bytes(2, a_port)), [0, 2])
    };
    let rule = |src: (_, _), dst: (_, _), l4: (u64, u64), port_at| Rule {
        src: src.0,
        src_mask: src.1,
        dst: dst.0,
        dst_mask: dst.1,
        l4: l4.0,
        l4_mask: l4.1,
        protocol: u64::from(protocol),
        one_of,
        port_shift: shift(port_at),
    };
    let (a, b) = ((a, a_mask), (b, b_mask));
    [rule(a, b, forward, port_at[0]), rule(b, a, backward, port_at[1])]
}

/// How far the two bytes at this place are from the lowest of the number that the machine reads.
fn shift(at: u32) -> u32 {
    if cfg!(target_endian = "little") { 8 * at } else { 8 * (6 - at) }
}

/// A port at this place in the first 8 bytes of the L4 header, and the mask of that place.
fn l4_bytes(at: usize, port: Option<u16>) -> (u64, u64) {
    let (mut bytes, mut mask) = ([0; 8], [0; 8]);
    if let Some(port) = port {
        bytes[at..at + 2].copy_from_slice(&port.to_be_bytes());
        mask[at..at + 2].fill(0xff);
    }
    (u64::from_ne_bytes(bytes), u64::from_ne_bytes(mask))
}

fn either(a: (u64, u64), b: (u64, u64)) -> (u64, u64) {
    (a.0 | b.0, a.1 | b.1)
}

#[cfg(test)]
mod tests {
    use tracer_common::chosen;

    use super::*;

    const ALL: [u64; 2] = [u64::MAX; 2];

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn bytes(text: &str) -> [u64; 2] {
        address(event::to_bytes(ip(text)))
    }

    fn word(bytes: [u8; 8]) -> u64 {
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn an_icmp_flow_has_one_identifier_both_ways() {
        let flow = Flow {
            a: ip("10.0.0.1"),
            b: Some(ip("10.0.0.2")),
            protocol: 1,
            a_port: Some(0x1234),
            b_port: Some(9),
            one_of: 1,
        };
        let wanted = rules(&[flow]).expect("fits");
        assert_eq!(wanted.flows, 1);
        assert_eq!(wanted.ends[0], u32::from_ne_bytes([10, 0, 0, 1]));
        let id = (word([0, 0, 0, 0, 0x12, 0x34, 0, 0]), word([0, 0, 0, 0, 0xff, 0xff, 0, 0]));
        let [there, back] = wanted.rules[0];
        assert_eq!((there.src, there.dst, there.protocol), (bytes("10.0.0.1"), bytes("10.0.0.2"), 1));
        assert_eq!((back.src, back.dst), (there.dst, there.src));
        assert_eq!([(there.l4, there.l4_mask), (back.l4, back.l4_mask)], [id, id]);
        assert_eq!([there.src_mask, there.dst_mask, back.src_mask, back.dst_mask], [ALL; 4]);
    }

    #[test]
    fn ports_change_places_on_the_way_back_and_wildcards_have_no_mask() {
        let flow = Flow { a: ip("fd00::1"), b: None, protocol: 6, a_port: None, b_port: Some(443), one_of: 1 };
        let wanted = rules(&[flow]).expect("fits");
        let [there, back] = wanted.rules[0];
        assert_eq!(
            (there.l4, there.l4_mask),
            (word([0, 0, 1, 0xbb, 0, 0, 0, 0]), word([0, 0, 0xff, 0xff, 0, 0, 0, 0]))
        );
        assert_eq!((back.l4, back.l4_mask), (word([1, 0xbb, 0, 0, 0, 0, 0, 0]), word([0xff, 0xff, 0, 0, 0, 0, 0, 0])));
        assert_eq!((there.dst_mask, back.src_mask), ([0; 2], [0; 2]));
    }

    #[test]
    fn sampling_looks_at_the_port_of_the_one_end_in_both_directions() {
        let flow = |protocol| Flow {
            a: ip("10.0.0.1"),
            b: Some(ip("10.0.0.2")),
            protocol,
            a_port: None,
            b_port: Some(80),
            one_of: 16,
        };
        let port = 0xbeef_u16;
        let [p, q] = port.to_be_bytes();
        for (protocol, there, back) in [
            (6, [p, q, 0, 80, 1, 2, 3, 4], [0, 80, p, q, 5, 6, 7, 8]),
            (1, [8, 0, 1, 2, p, q, 0, 1], [0, 0, 3, 4, p, q, 0, 1]),
        ] {
            let wanted = rules(&[flow(protocol)]).expect("fits");
            let seen = wanted.rules[0].iter().zip([there, back]);
            let seen = seen.map(|(rule, l4)| (word(l4) >> rule.port_shift & 0xffff, rule.one_of));
            let expected = (u64::from(u16::from_ne_bytes([p, q])), 16);
            assert_eq!(seen.collect::<Vec<_>>(), [expected, expected], "protocol {protocol}");
        }
    }

    /// Linux gives out ephemeral ports from 32768 to 60999, to `connect` the odd or the even ones of them.
    #[test]
    fn sampling_chooses_evenly_among_the_ports_that_clients_have() {
        for (step, one_of) in [(1, 2), (1, 10), (2, 3), (2, 16), (2, 100), (1, 1000)] {
            let ports: Vec<u16> = (32768..61000).step_by(step).collect();
            let chosen = ports.iter().filter(|port| {
                let seen = u16::from_ne_bytes(port.to_be_bytes());
                chosen(seen.into(), one_of) == 0
            });
            let (chosen, fair) = (chosen.count() as f64, ports.len() as f64 / f64::from(one_of));
            assert!((0.8..1.25).contains(&(chosen / fair)), "1 of {one_of}: {chosen} for {fair}");
        }
        assert_eq!([0, 1].map(|all| (0..=u16::MAX).all(|port| chosen(port.into(), all) == 0)), [true; 2]);
    }

    #[test]
    fn too_many_flows_are_refused() {
        let flow = Flow { a: ip("10.0.0.1"), b: None, protocol: 1, a_port: None, b_port: None, one_of: 1 };
        let most = MAX_FLOWS;
        assert_eq!(rules(&vec![flow.clone(); most]).expect("fits").flows as usize, most);
        let refused = rules(&vec![flow; most + 1]).map_err(|error| error.to_string());
        assert_eq!(refused, Err("5 flows asked for; a session can follow 4 at a time".to_owned()));
    }
}
