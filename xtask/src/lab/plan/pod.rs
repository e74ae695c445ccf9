//! A pod: one address, and a way out.

use super::super::profile::{Cni, Node, Pod, Profile};
use super::node::pod_gateway;
use super::{Namespace, base, links, required};

/// The next hop Calico gives to every pod; no one has it, the node answers ARP for it.
pub(super) const CALICO_GATEWAY: &str = "169.254.1.1";
/// The same in IPv6: the link-local address that the node's end has by its MAC address.
const CALICO_GATEWAY6: &str = "fe80::ecee:eeff:feee:eeee";

pub(super) fn set_up(lab: &str, profile: &Profile, node: &Node, pod: &Pod) -> Namespace {
    let mut namespace = base(lab, &pod.name, false);
    // As container runtimes set it: any user may ping.
    namespace.sysctls.push(required("ipv4/ping_group_range", "0\t2147483647"));
    let Pod { address, address6, .. } = pod;
    let (gateway, length) = (pod_gateway(node), node.block().prefix_len());
    let gateway = gateway.addr();
    let up = "link set eth0 up".to_owned();
    match &profile.cni {
        Cni::Calico { .. } => namespace.ip.extend([
            format!("addr add {address}/32 dev eth0"),
            up,
            format!("route add {CALICO_GATEWAY} dev eth0 scope link"),
            format!("route add default via {CALICO_GATEWAY} dev eth0"),
        ]),
        // What the ptp plugin does: its own subnet leads to the gateway, too.
        Cni::Kindnet => namespace.ip.extend([
            format!("addr add {address}/{length} brd + dev eth0 noprefixroute"),
            up,
            format!("route add {gateway} dev eth0 scope link src {address}"),
            format!("route add {} via {gateway} dev eth0 src {address}", node.block()),
            format!("route add default via {gateway} dev eth0"),
        ]),
        Cni::Flannel { .. } => namespace.ip.extend([
            format!("addr add {address}/{length} brd + dev eth0"),
            up,
            format!("route add {} via {gateway} dev eth0", profile.pool),
            format!("route add default via {gateway} dev eth0"),
        ]),
    }
    if let Some(address) = address6 {
        namespace.with_ipv6(false, &["eth0"]);
        namespace.ip.push(format!("addr add {address}/128 dev eth0 nodad"));
        namespace.ip.push(format!("route add default via {CALICO_GATEWAY6} dev eth0"));
    }
    links::attached(&mut namespace, profile, pod);
    namespace
}
