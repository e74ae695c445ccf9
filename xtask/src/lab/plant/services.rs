//! Services of the cluster: kube-proxy's rules on every node, and the objects in the identity file.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{Planted, Undo, bridge_netfilter, fault, identity, netns, run, words};
use crate::lab::LabInfo;
use crate::lab::plan;
use crate::lab::profile::{CLIENT, Cni, Profile};
use crate::lab::service::{self, Cluster, Mode, Restore, Service};

impl Planted {
    pub(super) fn services(
        &mut self,
        lab: &LabInfo,
        profile: &Profile,
        mode: Mode,
        services: &[Service],
    ) -> Result<()> {
        let cluster = Cluster::new(lab, profile, services)?;
        if let Cni::Flannel { .. } = profile.cni {
            translate_bridged(lab)?;
        }
        // A lab may be a part, which has only some of its nodes.
        for node in lab.nodes.iter().filter(|node| lab.namespaces.contains(&node.namespace)) {
            let namespace = &node.namespace;
            let before = netns::inside(namespace, || Ok(fault::chains(&run("nft", &["list", "chains"], "")?)))?;
            let stands = before.iter().any(|what| what == "ip kube-proxy" || what == "ip nat KUBE-SERVICES");
            ensure!(
                !stands,
                "services stand there already, and all are planted at once\nway out: cargo xtask lab down {}",
                lab.name
            );
            match mode {
                Mode::Iptables => self.iptables_services(namespace, &before, cluster.iptables(node))?,
                Mode::Nftables => {
                    netns::inside(namespace, || run("nft", &["-f", "-"], &cluster.nftables(node)))?;
                    self.undo_by(namespace, "nft", words("delete table ip kube-proxy"));
                }
            }
        }
        for ports in services.chunk_by(Service::is_of) {
            self.lead_in(lab, profile, &ports[0])?;
        }
        let path = &lab.identity;
        let text = identity::edit(path, |items| service::add(items, &cluster, lab))?;
        self.undo.push(Undo::File { path: path.clone(), text });
        Ok(())
    }

    /// The ways from outside to the service's addresses, as a load balancer announces them.
    fn lead_in(&mut self, lab: &LabInfo, profile: &Profile, service: &Service) -> Result<()> {
        let node = match &service.announced_by {
            Some(node) => lab.node(node)?,
            None => lab.nodes.first().context("a lab has nodes")?,
        };
        for front in service.fronts() {
            let ways = [
                (&lab.gateway, format!("route add {front} via {}", node.address)),
                (&lab.internet, plan::way_in(&front, &profile.outside.address.addr(), &CLIENT)),
            ];
            for (namespace, way) in ways.iter().filter(|(namespace, _)| lab.namespaces.contains(namespace)) {
                netns::inside(namespace, || run("ip", &way.split(' ').collect::<Vec<_>>(), ""))?;
                self.undo_by(namespace, "ip", words(&format!("route del {front}")));
            }
        }
        Ok(())
    }

    fn iptables_services(&mut self, namespace: &str, before: &[String], rules: Restore) -> Result<()> {
        let Restore { add, remove } = rules;
        let restore = |input: &str| run("iptables-nft-restore", &["--noflush"], input).map(drop);
        let after = netns::inside(namespace, || {
            restore(&add)?;
            Ok(fault::chains(&run("nft", &["list", "chains"], "")?))
        })?;
        // kube-proxy's own chains go with their rules.
        let made = after.into_iter().filter(|what| !before.contains(what) && !what.contains(" KUBE-"));
        self.undo.extend(made.map(|what| Undo::Made { namespace: namespace.to_owned(), what }));
        self.undo.push(Undo::Restore { namespace: namespace.to_owned(), text: remove });
        Ok(())
    }
}

/// Without br_netfilter, which k3s loads, a pod's answer to another one on the same bridge passes no rules, and comes
/// from an address that was not asked.
pub(crate) fn translate_bridged(lab: &LabInfo) -> Result<()> {
    if Path::new("/proc/sys/net/bridge").exists() {
        return Ok(());
    }
    run("modprobe", &["br_netfilter"], "").context("services of pods on a bridge need br_netfilter")?;
    // In every namespace it begins with yes, as a node has it; a wire runs no firewall.
    bridge_netfilter(&lab.wire, "0", true)
}
