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

    /// In parts that each go into a block of a recording; taken together again they are this.
    pub(super) fn parts(self) -> impl Iterator<Item = Self> {
        let Self { pods, nodes, ingress, egress, chains } = self;
        let (mut pods, mut nodes) = (chunks(pods), chunks(nodes));
        let (mut ingress, mut egress, mut chains) = (chunks(ingress), chunks(egress), chunks(chains));
        std::iter::from_fn(move || {
            let all = (pods.next(), nodes.next(), ingress.next(), egress.next(), chains.next());
            let (pods, nodes, ingress, egress, chains) = match all {
                (None, None, None, None, None) => return None,
                all => all,
            };
            Some(Self {
                pods: pods.unwrap_or_default(),
                nodes: nodes.unwrap_or_default(),
                ingress: ingress.unwrap_or_default(),
                egress: egress.unwrap_or_default(),
                chains: chains.unwrap_or_default(),
            })
        })
    }

    /// Takes in what a later part says.
    pub(super) fn extend(&mut self, part: Self) {
        let Self { pods, nodes, ingress, egress, chains } = part;
        self.pods.extend(pods);
        self.nodes.extend(nodes);
        self.ingress.extend(ingress);
        self.egress.extend(egress);
        self.chains.extend(chains);
    }
}

/// Of each kind so many names are in one part: at some hundred bytes each, and with policies of some hundred more, far less than a
/// block has.
const PART: usize = 500;

fn chunks<K: Ord, V>(map: BTreeMap<K, V>) -> impl Iterator<Item = BTreeMap<K, V>> {
    let mut rest = map.into_iter();
    std::iter::from_fn(move || {
        let part: BTreeMap<K, V> = rest.by_ref().take(PART).collect();
        (!part.is_empty()).then_some(part)
    })
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
