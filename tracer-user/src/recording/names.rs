//! Who is who, as it was known when the recording ended.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{
    node::facts::NodeFacts,
    path::{
        Names, Selecting,
        model::{NamedPolicy, PolicyDirection},
    },
};

/// The names of what was met.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownNames {
    pods: BTreeMap<IpAddr, String>,
    nodes: BTreeMap<IpAddr, String>,
    /// By pod.
    #[serde(default)]
    ingress: BTreeMap<String, Selecting>,
    /// By pod.
    #[serde(default)]
    egress: BTreeMap<String, Selecting>,
    /// By chain.
    #[serde(default)]
    chains: BTreeMap<String, NamedPolicy>,
}

impl KnownNames {
    /// What `names` says of these addresses, of their pods, and of the chains that packets met.
    pub fn of<'f>(
        names: &dyn Names,
        addresses: &BTreeSet<IpAddr>,
        facts: impl IntoIterator<Item = &'f NodeFacts>,
    ) -> Self {
        let mut known = Self::default();
        for &address in addresses {
            known.pods.extend(names.pod(address).map(|pod| (address, pod)));
            known.nodes.extend(names.node(address).map(|node| (address, node)));
        }
        for pod in known.pods.values().cloned().collect::<BTreeSet<_>>() {
            let of = |direction| names.policies(&pod, direction).map(|selecting| (pod.clone(), selecting));
            known.ingress.extend(of(PolicyDirection::Ingress));
            known.egress.extend(of(PolicyDirection::Egress));
        }
        for hit in facts.into_iter().flat_map(|facts| &facts.rules) {
            known.chains.extend(names.policy_of_chain(&hit.chain).map(|policy| (hit.chain.clone(), policy)));
        }
        known
    }
}

impl Names for KnownNames {
    fn pod(&self, address: IpAddr) -> Option<String> {
        self.pods.get(&address).cloned()
    }

    fn node(&self, address: IpAddr) -> Option<String> {
        self.nodes.get(&address).cloned()
    }

    fn policies(&self, pod: &str, direction: PolicyDirection) -> Option<Selecting> {
        match direction {
            PolicyDirection::Ingress => self.ingress.get(pod).cloned(),
            PolicyDirection::Egress => self.egress.get(pod).cloned(),
        }
    }

    fn policy_of_chain(&self, chain: &str) -> Option<NamedPolicy> {
        self.chains.get(chain).cloned()
    }
}
