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
    use crate::node::facts::{Rule, RuleEngine, RuleVerdict};

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

    /// Knows one pod, and three policies.
    struct Known;

    fn named(name: &str) -> NamedPolicy {
        let (api_group, namespace) = ("networking.k8s.io".to_owned(), Some("default".to_owned()));
        NamedPolicy { kind: "NetworkPolicy".to_owned(), api_group, namespace, name: name.to_owned() }
    }

    impl Names for Known {
        fn pod(&self, address: IpAddr) -> Option<String> {
            (address == IpAddr::from([10, 0, 0, 1])).then(|| "default/bb1".to_owned())
        }

        fn node(&self, _: IpAddr) -> Option<String> {
            None
        }

        fn policies(&self, pod: &str, direction: PolicyDirection) -> Option<Selecting> {
            let of = |name: &str, tier: &str| (named(name), tier.to_owned());
            let policies = match direction {
                PolicyDirection::Ingress => vec![of("deny-all", "default"), of("first", "platform")],
                PolicyDirection::Egress => Vec::new(),
            };
            let unclear = vec![of("odd", "platform")];
            (pod == "default/bb1").then_some(Selecting { read: PoliciesRead::All, policies, unclear })
        }

        fn policy_of_chain(&self, chain: &str) -> Option<NamedPolicy> {
            (chain == "cali-pi-default.first").then(|| named("first"))
        }
    }

    fn hit(chain: &str, comment: &str) -> RuleHit {
        let (text, comment) = ("-j DROP".to_owned(), Some(comment.to_owned()));
        RuleHit {
            netns: 1,
            engine: RuleEngine::IptablesNft,
            family: "ip".to_owned(),
            table: "filter".to_owned(),
            chain: chain.to_owned(),
            hook: Some(2),
            way: vec!["FORWARD".to_owned(), chain.to_owned()],
            rule: Some(Rule { position: 4, handle: None, text, comment }),
            verdict: RuleVerdict::Drop,
            conditions: Vec::new(),
            understood: true,
            counted: true,
            packets: 1,
            traced: 0,
        }
    }

    fn told(cause: DropCause, hits: &[RuleHit]) -> Option<Policies> {
        let drop = DropDetail { cause, rule_known: hits.len() == 1, ..DropDetail::default() };
        let ends = ([10, 0, 0, 9].into(), [10, 0, 0, 1].into());
        let hits: Vec<&RuleHit> = hits.iter().collect();
        behind(&Known, &drop, ends, &hits, |_, interface| (interface == "cali1").then(|| "default/bb1".to_owned()))
    }

    fn names(policies: &[NamedPolicy]) -> Vec<&str> {
        policies.iter().map(|policy| policy.name.as_str()).collect()
    }

    #[test]
    fn the_policies_of_the_rules_tier_are_named() {
        let in_tier = |tier: &str| {
            let comment = format!("End of tier {tier}. Drop if no policies passed packet");
            told(DropCause::Policy, &[hit("cali-tw-cali1", &comment)]).expect("a policy's")
        };
        let default = in_tier("default");
        assert_eq!((default.pod.as_str(), default.direction), ("default/bb1", PolicyDirection::Ingress));
        assert_eq!((default.stage, default.read), (PolicyStage::NoneAllowed, PoliciesRead::All));
        assert_eq!((names(&default.selecting), names(&default.unclear)), (vec!["deny-all"], vec![]));
        let platform = in_tier("platform");
        assert_eq!((names(&platform.selecting), names(&platform.unclear)), (vec!["first"], vec!["odd"]));
        // Which of two rules it was is not known: then no tier is either.
        let both = ["cali-tw-cali1", "cali-tw-cali1"].map(|chain| hit(chain, "Drop if no policies passed packet"));
        let both = told(DropCause::Policy, &both).expect("a policy's");
        assert_eq!((both.stage, names(&both.selecting)), (PolicyStage::Unknown, vec!["deny-all", "first"]));
    }

    #[test]
    fn a_policys_own_rule_names_it() {
        let denied = told(DropCause::Netfilter, &[hit("cali-pi-default.first", "")]).expect("a policy's");
        assert_eq!((denied.stage, denied.pod.as_str()), (PolicyStage::Denied, "default/bb1"), "the destination");
        assert_eq!(names(&denied.selecting), ["first"]);
        let egress = told(DropCause::Netfilter, &[hit("cali-po-other", "")]).expect("a policy's");
        assert_eq!(
            (egress.pod.as_str(), egress.read),
            ("10.0.0.9", PoliciesRead::None),
            "the source, which has no name"
        );
        assert_eq!(names(&egress.selecting), [""; 0]);
    }

    #[test]
    fn other_rules_are_no_policys() {
        assert_eq!(told(DropCause::Netfilter, &[hit("FORWARD", "")]), None);
        assert_eq!(
            told(DropCause::Policy, &[hit("cali-fw-cali2", "")]).map(|told| told.read),
            Some(PoliciesRead::None)
        );
    }

    #[test]
    fn a_policys_own_chain_is_of_one_direction() {
        assert_eq!(of_one("cali-pi-_tTE-E7yY40ogArNVgKt"), Some(PolicyDirection::Ingress));
        assert_eq!(of_one("filter-cali-po-default.deny"), Some(PolicyDirection::Egress));
        assert_eq!(of_one("cali-pri-kns.default"), None, "a profile's");
        assert_eq!(of_one("cali-tw-cali98fd8882b62"), None);
    }
}
