//! Many nodes and pods that are made up when asked for, to show what a client does in a large cluster.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::selector::Selector;

/// Where the pods are.
pub(crate) const NAMESPACE: &str = "load";
const CREATED: &str = "2026-11-01T08:00:00Z";

/// How many nodes and pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Synthetic {
    pub(crate) nodes: u32,
    pub(crate) pods: u32,
}

impl Synthetic {
    /// The node or pod of that name.
    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let number = |prefix: &str, count: u32| {
            let number = name.strip_prefix(prefix)?.parse().ok().filter(|number| *number < count)?;
            (format!("{prefix}{number:06}") == name).then_some(number)
        };
        match plural {
            "nodes" => number("load-node-", self.nodes).map(|number| self.node(number)),
            "pods" => number("load-", self.pods).map(|number| self.pod(number)),
            _ => None,
        }
    }

    /// Those that are asked for, from a number on; each with its number.
    pub(crate) fn list<'a>(
        &'a self,
        plural: &str,
        selector: &'a Selector,
        from: u32,
    ) -> Box<dyn Iterator<Item = (u32, Value)> + 'a> {
        let only = |number: Option<u32>, count: u32| match number {
            Some(number) if number < count => number.max(from)..number + 1,
            Some(_) => 0..0,
            None => from..count,
        };
        let matching = |each: &(u32, Value)| selector.matches(&each.1);
        match plural {
            "nodes" => Box::new((from..self.nodes).map(|number| (number, self.node(number))).filter(matching)),
            "pods" => {
                // What is asked for most is not searched for.
                let wanted = selector.field("status.podIP").map(|address| {
                    let address = address.parse().ok().map(|address: Ipv4Addr| u32::from(address));
                    address.and_then(|address| address.checked_sub(POD_BASE)).unwrap_or(u32::MAX)
                });
                let numbers = only(wanted, self.pods);
                Box::new(numbers.map(|number| (number, self.pod(number))).filter(matching))
            }
            _ => Box::new(std::iter::empty()),
        }
    }

    fn node(&self, number: u32) -> Value {
        let address = Ipv4Addr::from(NODE_BASE + number);
        let name = node_name(number);
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": name, "uid": format!("00000000-0000-4000-8001-{number:012}"), "creationTimestamp": CREATED,
                "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux" }, "resourceVersion": "1",
            },
            "spec": {},
            "status": {
                "addresses": [ { "type": "InternalIP", "address": address }, { "type": "Hostname", "address": name } ],
                "conditions": [ { "type": "Ready", "status": "True", "lastTransitionTime": CREATED } ],
                "nodeInfo": { "operatingSystem": "linux" },
            },
        })
    }

    fn pod(&self, number: u32) -> Value {
        let (name, address) = (format!("load-{number:06}"), Ipv4Addr::from(POD_BASE + number));
        let node = number % self.nodes.max(1);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": NAMESPACE, "uid": format!("00000000-0000-4000-8000-{number:012}"),
                "creationTimestamp": CREATED, "labels": { "app": "load" }, "resourceVersion": "1",
            },
            "spec": { "nodeName": node_name(node), "containers": [ { "name": "load", "image": "busybox" } ] },
            "status": {
                "phase": "Running", "podIP": address, "podIPs": [ { "ip": address } ],
                "hostIP": Ipv4Addr::from(NODE_BASE + node), "startTime": CREATED,
                "conditions": [ { "type": "Ready", "status": "True", "lastTransitionTime": CREATED } ],
                "containerStatuses": [ { "name": "load", "image": "busybox", "ready": true, "restartCount": 0,
                    "state": { "running": { "startedAt": CREATED } } } ],
            },
        })
    }
}

/// 10.192.0.0
const NODE_BASE: u32 = 0x0AC0_0000;
/// 10.128.0.0
const POD_BASE: u32 = 0x0A80_0000;

fn node_name(number: u32) -> String {
    format!("load-node-{number:06}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_found_by_name_and_by_address() {
        let many = Synthetic { nodes: 5_000, pods: 150_000 };
        let pod = many.get("pods", "load-149999").unwrap();
        assert_eq!(pod["spec"]["nodeName"], "load-node-004999");
        let address = pod["status"]["podIP"].as_str().unwrap();
        let selector = Selector::parse("", &format!("status.podIP={address}")).unwrap();
        assert_eq!(many.list("pods", &selector, 0).map(|(number, _)| number).collect::<Vec<_>>(), [149_999]);
        assert_eq!(many.get("pods", "load-150000"), None);
        assert_eq!(many.get("pods", "load-1"), None);
        let selector = Selector::parse("", "status.podIP=10.0.0.1").unwrap();
        assert_eq!(many.list("pods", &selector, 0).count(), 0);
    }
}
