//! VLAN tags in a packet's bytes, as they come from a NIC that does not take them off.

use tracer_user::{event::Hook, probe::RING_SIZE};

use crate::{
    fragments::{BEYOND, ETHERNET, Forwarding, OUTSIDE, echo, finish, flow, forwarded, ipv4, of_request, steps},
    start,
};

/// An Ethernet header with a tag: priority 3, and the number.
fn tagged(vlan: u8) -> Vec<u8> {
    let (addresses, kind) = ETHERNET.split_at(12);
    [addresses, &[0x81, 0, 0x60, vlan], kind].concat()
}

#[test]
fn a_packet_is_read_behind_its_tag() {
    let mut net = Forwarding::new("tags");
    let mut probe = start(&[flow(1, "192.0.2.2", "198.51.100.2")], &net.pair.scope(), RING_SIZE);
    // The number 0 gives a priority alone: the packet goes on. Of 100 there is no device, and it is for somebody else.
    for (seq, vlan) in [(1, 0), (2, 100)] {
        // In one buffer: not in page fragments.
        net.send(&[&[tagged(vlan), ipv4(1, OUTSIDE, BEYOND, &echo(seq))].concat()]);
    }
    let (records, _) = finish(&mut probe);
    let seen = of_request(records, "198.51.100.2");
    let [a, _] = net.pair.scope();
    let mut expected = forwarded(net.pair.scope());
    expected.push((Hook::Receive, a));
    assert_eq!(steps(&seen), expected, "{seen:#?}");
    let came = seen.iter().filter(|s| s.hook == Hook::Receive && s.netns == a);
    assert_eq!(came.map(|s| s.vlan).collect::<Vec<_>>(), [Some(0), Some(100)], "{seen:#?}");
}
