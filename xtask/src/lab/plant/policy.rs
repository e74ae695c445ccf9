//! A network policy: the rule that Calico makes of it, and the object in the identity file.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{END_OF_TIER, Planted, Undo, Way, identity, netns, run, words};
use crate::lab::identity::{CREATED, uid};
use crate::lab::{LabInfo, LabPod};

/// What the kernel takes as the name of a chain of iptables.
const LONGEST_CHAIN: usize = 28;

impl Planted {
    pub(super) fn policy_drop(&mut self, lab: &LabInfo, pod: &str, way: Way) -> Result<()> {
        let pod = lab.pod(pod)?;
        let chain = match way {
            Way::To => "cali-tw",
            Way::From => "cali-fw",
        };
        let node = &lab.node(&pod.node)?.namespace;
        if netns::inside(node, || run("nft", &["list", "tables"], ""))?.lines().any(|line| line == "table ip calico") {
            self.policy_drop_nft(node, &format!("filter-{chain}-{}", pod.host_interface))?;
        } else {
            // After established connections, invalid packets, and the reset of the mark; before the profiles.
            let mut rule = words(&format!("-I {chain}-{} 4 -m comment --comment", pod.host_interface));
            rule.push(END_OF_TIER.to_owned());
            rule.extend(words("-m mark --mark 0x0/0x20000 -j DROP"));
            self.rule(node, "iptables-nft", rule)?;
        }
        let object = object(pod, way);
        let uid = object["metadata"]["uid"].clone();
        identity::edit(&lab.identity, |items| items.push(object))?;
        self.undo.push(Undo::Object { path: lab.identity.clone(), uid });
        Ok(())
    }
}

impl Planted {
    pub(super) fn policy_deny(&mut self, lab: &LabInfo, pod: &str, way: Way) -> Result<()> {
        let pod = lab.pod(pod)?;
        let node = &lab.node(&pod.node)?.namespace;
        let (workload, prefix, word, policy_type) = match way {
            Way::To => ("cali-tw", "cali-pi", "ingress", "Ingress"),
            Way::From => ("cali-fw", "cali-po", "egress", "Egress"),
        };
        let name = format!("default.deny-{}", pod.name);
        // Longer ones have a hash in place of the name.
        let chain = format!("{prefix}-{name}");
        ensure!(chain.len() <= LONGEST_CHAIN, "{chain} is too long for a chain's name");
        self.iptables(node, "iptables-nft", &["-N", &chain])?;
        let comment = |rule: &str, text: String, end: &str| {
            words(rule)
                .into_iter()
                .chain(["-m", "comment", "--comment"].map(str::to_owned))
                .chain([text])
                .chain(words(end))
                .collect()
        };
        let denies = comment(&format!("-I {chain}"), format!("Policy {name} {word}"), "-j DROP");
        self.rule(node, "iptables-nft", denies)?;
        let workload = format!("{workload}-{}", pod.host_interface);
        // In the tier: this policy, then its end.
        let end = comment(&format!("-I {workload} 4"), END_OF_TIER.to_owned(), "-m mark --mark 0x0/0x20000 -j DROP");
        self.rule(node, "iptables-nft", end)?;
        self.rule(node, "iptables-nft", words(&format!("-I {workload} 4 -m mark --mark 0x0/0x20000 -j {chain}")))?;
        let uid = json!(uid(&format!("globalnetworkpolicy {name}")));
        let object = json!({
            "apiVersion": "crd.projectcalico.org/v1",
            "kind": "GlobalNetworkPolicy",
            "metadata": { "creationTimestamp": CREATED, "name": name, "uid": uid },
            "spec": {
                "tier": "default",
                "order": 100,
                "selector": format!("run == '{}'", pod.name),
                "types": [ policy_type ],
                word: [ { "action": "Deny" } ],
            },
        });
        identity::edit(&lab.identity, |items| items.push(object))?;
        self.undo.push(Undo::Object { path: lab.identity.clone(), uid });
        Ok(())
    }
}

/// It selects the pod by the label that `kubectl run` gives it, and has no rule: nothing is allowed.
fn object(pod: &LabPod, way: Way) -> Value {
    let (word, policy_type) = match way {
        Way::To => ("ingress", "Ingress"),
        Way::From => ("egress", "Egress"),
    };
    let LabPod { name: pod, kubernetes_namespace: namespace, .. } = pod;
    let name = format!("deny-{word}-{pod}");
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "creationTimestamp": CREATED,
            "name": name,
            "namespace": namespace,
            "uid": uid(&format!("networkpolicy {namespace}/{name}")),
        },
        "spec": { "podSelector": { "matchLabels": { "run": pod } }, "policyTypes": [ policy_type ] },
    })
}
