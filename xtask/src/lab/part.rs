//! One node of a lab alone, on a machine of its own: its network card is a real one, and what lies beyond the wire is
//! another machine's.

use anyhow::{Context, Result, bail};

use super::plan::{Plan, namespace};
use super::profile::Profile;
use super::state::{self, State};
use super::{LabInfo, build_all, check_name, check_root, identity, tear_down};

/// Bring up node `number` (from 0) of `profile` with its pods, as the lab `name`. The device `card` becomes the node's network card;
/// it goes back to where it came from when the lab goes down.
///
/// # Errors
/// As [`super::up`]; and the profile has no such node, or there is no such device.
pub fn up_part(name: &str, profile: &str, number: usize, card: &str) -> Result<LabInfo> {
    check_name(name)?;
    check_root()?;
    let cluster = Profile::named(profile)?;
    let node = cluster.nodes.get(number).with_context(|| format!("profile {profile} has no node {number}"))?;
    let host = node.host.as_str();
    let pods = node.pods.iter().map(|pod| pod.name.as_str());
    let namespaces: Vec<String> = std::iter::once(host).chain(pods).map(|host| namespace(name, host)).collect();
    let mut plan = Plan::new(name, &cluster).only(&namespaces);
    let mac = node.mac.as_ref().map(|mac| format!(" address {mac}")).unwrap_or_default();
    let ports = cluster.ports(node);
    let [(nic, _)] = ports.as_slice() else { bail!("profile {profile}: a node has {} network cards", ports.len()) };
    let nic_lines = [
        format!("link set dev {card} down"),
        format!("link set dev {card} name {nic} mtu {}{mac}", cluster.nic_mtu),
        format!("link set dev {nic} netns {}", namespace(name, host)),
    ];
    plan.outside.extend(nic_lines);

    let identity = identity::yaml(&cluster)?;
    let state = State::lock()?;
    tear_down(&state, name)?;
    let mut info = LabInfo::describe(name, profile, &cluster, state::digest(&(&plan, &identity))?);
    info.namespaces = namespaces;
    build_all(&state, &plan, &identity, &mut info)
        .inspect_err(|_| {
            // The first failure is the one to report; what remains now, `down` reports.
            let _ = tear_down(&state, name);
        })
        .with_context(|| format!("bringing up node {host} of lab {name}"))?;
    Ok(info)
}

impl Plan {
    /// What concerns these network namespaces alone: links to others are left out.
    fn only(mut self, namespaces: &[String]) -> Plan {
        let ours = |name: &str| namespaces.iter().any(|namespace| namespace == name);
        self.outside.retain(|line| line.strip_prefix("netns add ").is_some_and(ours));
        self.links.retain(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words.windows(2).filter(|pair| pair[0] == "netns").all(|pair| ours(pair[1]))
        });
        self.namespaces.retain(|namespace| ours(&namespace.name));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_a_node_its_pods_and_the_links_between_them() {
        let whole = Plan::new("lab", &Profile::named("calico-bgp").unwrap());
        let part = whole.only(&["lab-node2".to_owned(), "lab-bb2".to_owned()]);
        assert_eq!(part.outside, ["netns add lab-node2", "netns add lab-bb2"]);
        let [link] = part.links.as_slice() else { panic!("{:?}", part.links) };
        assert!(link.contains("netns lab-bb2") && link.ends_with("netns lab-node2"), "{link}");
        let set_up: Vec<&str> = part.namespaces.iter().map(|namespace| namespace.name.as_str()).collect();
        assert_eq!(set_up, ["lab-node2", "lab-bb2"]);
    }
}
