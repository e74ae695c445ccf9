//! Which network policies are behind a drop, by the place of its rule in Calico's chains and by what selects the pod.

use std::net::IpAddr;

use super::{DropCause, rules};
use crate::{
    node::facts::RuleHit,
    path::{
        Names, Selecting,
        model::{DropDetail, NamedPolicy, Policies, PoliciesRead, PolicyDirection, PolicyStage},
    },
};

/// How the comment of the rule begins that drops what no policy of a tier allowed; the tier's name follows.
const END_OF_TIER: &str = "End of tier ";
/// How it begins where there is one tier only, in older versions of Calico.
const NO_POLICY: &str = "Drop if no policies passed";
const NO_PROFILE: &str = "Drop if no profiles matched";
/// The tier of Kubernetes' policies.
const DEFAULT_TIER: &str = "default";

/// The policies behind a drop by one of `hits`; None: it was no policy's. `pod`: whose interface it is.
pub(super) fn behind(
    names: &dyn Names,
    drop: &DropDetail,
    (src, dst): (IpAddr, IpAddr),
    hits: &[&RuleHit],
    pod: impl Fn(&RuleHit, &str) -> Option<String>,
) -> Option<Policies> {
    let known = hits.first().filter(|_| drop.rule_known);
    if let Some(hit) = known
        && let Some(direction) = of_one(&hit.chain)
    {
        // Such a chain is entered for every pod that its policy selects: whose it was only the packet says.
        let address = if direction == PolicyDirection::Ingress { dst } else { src };
        let pod = names.pod(address).unwrap_or_else(|| address.to_string());
        let selecting: Vec<NamedPolicy> = names.policy_of_chain(&hit.chain).into_iter().collect();
        let read = names.policies(&pod, direction).map_or(PoliciesRead::None, |known| known.read);
        return Some(Policies { pod, direction, stage: PolicyStage::Denied, read, selecting, unclear: Vec::new() });
    }
    if drop.cause != DropCause::Policy {
        return None;
    }
    let hit = hits.first()?;
    let (interface, to) = rules::calico(hit)?;
    let direction = if to { PolicyDirection::Ingress } else { PolicyDirection::Egress };
    let pod = pod(hit, interface).unwrap_or_else(|| interface.to_owned());
    let comment = known.and_then(|hit| hit.rule.as_ref()?.comment.as_deref()).unwrap_or_default();
    let (stage, tier) = stage(comment);
    let selecting = names.policies(&pod, direction);
    let Selecting { read, policies, unclear } =
        selecting.unwrap_or(Selecting { read: PoliciesRead::None, policies: Vec::new(), unclear: Vec::new() });
    let of_tier = |all: Vec<(NamedPolicy, String)>| {
        all.into_iter().filter(|(_, own)| tier.is_none_or(|tier| own == tier)).map(|(policy, _)| policy).collect()
    };
    Some(Policies { pod, direction, stage, read, selecting: of_tier(policies), unclear: of_tier(unclear) })
}

/// The chain has the rules of one policy.
fn of_one(chain: &str) -> Option<PolicyDirection> {
    let name = chain.strip_prefix("filter-").unwrap_or(chain);
    if name.starts_with("cali-pi-") {
        return Some(PolicyDirection::Ingress);
    }
    name.starts_with("cali-po-").then_some(PolicyDirection::Egress)
}

/// What a rule's comment says of how it came to the drop, and of which tier.
fn stage(comment: &str) -> (PolicyStage, Option<&str>) {
    if let Some(rest) = comment.strip_prefix(END_OF_TIER) {
        return (PolicyStage::NoneAllowed, rest.split_once(". ").map(|(tier, _)| tier));
    }
    if comment.starts_with(NO_POLICY) {
        return (PolicyStage::NoneAllowed, Some(DEFAULT_TIER));
    }
    let stage = if comment.starts_with(NO_PROFILE) { PolicyStage::Profile } else { PolicyStage::Unknown };
    (stage, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comment_says_how_it_came_to_the_drop() {
        let all = [
            ("End of tier default. Drop if no policies passed packet", PolicyStage::NoneAllowed, Some("default")),
            ("End of tier platform. Reject if no policies passed packet", PolicyStage::NoneAllowed, Some("platform")),
            ("Drop if no policies passed packet", PolicyStage::NoneAllowed, Some("default")),
            ("Drop if no profiles matched", PolicyStage::Profile, None),
            ("", PolicyStage::Unknown, None),
        ];
        for (comment, expected, tier) in all {
            assert_eq!(stage(comment), (expected, tier), "{comment}");
        }
    }

    #[test]
    fn a_policys_own_chain_is_of_one_direction() {
        assert_eq!(of_one("cali-pi-_tTE-E7yY40ogArNVgKt"), Some(PolicyDirection::Ingress));
        assert_eq!(of_one("filter-cali-po-default.deny"), Some(PolicyDirection::Egress));
        assert_eq!(of_one("cali-pri-kns.default"), None, "a profile's");
        assert_eq!(of_one("cali-tw-cali98fd8882b62"), None);
    }
}
