//! Network policies: Kubernetes' and Calico's, as far as it takes to tell which pods they select for which direction.

use sha2::{Digest, Sha256};

use super::{
    directory::{Directory, Pod},
    objects::{LabelSelectorObject, PolicyObject, PolicySpec},
    selector::{Label, Selector, decided_by},
};
use crate::path::{
    Selecting,
    model::{KUBERNETES, NamedPolicy, PoliciesRead, PolicyDirection},
};

/// The group where an object is that does not say: the one that kubectl shows, unless Calico has an API server.
const CALICO: &str = "crd.projectcalico.org";
/// Any of Calico's groups: `crd.projectcalico.org`, `projectcalico.org`.
const OF_CALICO: &str = "projectcalico.org";
/// The tier of Kubernetes' policies, and of Calico's that name none.
const DEFAULT_TIER: &str = "default";
/// The longest name of a chain that iptables takes is 28 bytes; Calico uses all (felix, `iptables.MaxChainNameLength`).
const LONGEST_CHAIN: usize = 28;

/// A network policy.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    name: NamedPolicy,
    tier: String,
    ingress: bool,
    egress: bool,
    /// By the labels of pods, of their namespaces and of their service accounts, which all must fit; None: not understood.
    by: [Option<Selector>; 3],
}

/// What an object says; None: it is of no kind that is known here, or only for hosts.
pub(super) fn policy(object: PolicyObject, global: bool) -> Option<Policy> {
    let PolicyObject { api_version, metadata, spec } = object;
    let group = match api_version.as_deref().map(|version| version.split_once('/').map_or("", |(group, _)| group)) {
        Some(group) => group.to_owned(),
        None if spec.pod_selector.is_some() && !global => KUBERNETES.to_owned(),
        None => CALICO.to_owned(),
    };
    let of_calico = group.ends_with(OF_CALICO);
    let only_for_hosts = spec.pre_dnat == Some(true) || spec.do_not_track == Some(true);
    if only_for_hosts || !of_calico && (group != KUBERNETES || global) {
        return None;
    }
    let (ingress, egress) = directions(&spec, of_calico);
    let calico = |selector: Option<&String>| selector.map_or(Some(Selector::all()), |text| Selector::parse(text));
    let by = match of_calico {
        true => [&spec.selector, &spec.namespace_selector, &spec.service_account_selector]
            .map(|selector| calico(selector.as_ref())),
        false => [
            spec.pod_selector.as_ref().map_or(Some(Selector::all()), kubernetes),
            Some(Selector::all()),
            Some(Selector::all()),
        ],
    };
    let name = NamedPolicy {
        kind: if global { "GlobalNetworkPolicy" } else { "NetworkPolicy" }.to_owned(),
        api_group: group,
        namespace: (!global).then(|| metadata.namespace.unwrap_or_else(|| "default".to_owned())),
        name: metadata.name,
    };
    let tier = spec.tier.filter(|tier| of_calico && !tier.is_empty()).unwrap_or_else(|| DEFAULT_TIER.to_owned());
    Some(Policy { name, tier, ingress, egress, by })
}

/// For ingress and egress. Where an object does not say: Kubernetes' is always for ingress, Calico's unless it has rules for egress
/// only; both are for egress if they have rules for it.
fn directions(spec: &PolicySpec, of_calico: bool) -> (bool, bool) {
    let types = if of_calico { &spec.types } else { &spec.policy_types };
    let any = |rules: &Option<Vec<_>>| rules.as_ref().is_some_and(|rules| !rules.is_empty());
    match types.as_deref() {
        Some(types @ [_, ..]) => {
            let says = |wanted: &str| types.iter().any(|word| word == wanted);
            (says("Ingress"), says("Egress"))
        }
        _ => {
            let egress = any(&spec.egress);
            (!of_calico || !egress || any(&spec.ingress), egress)
        }
    }
}

/// A label selector of Kubernetes; None: it has an operator that is not known.
fn kubernetes(selector: &LabelSelectorObject) -> Option<Selector> {
    let equal = selector.match_labels.iter().flatten();
    let mut parts: Vec<Selector> = equal.map(|(name, value)| Selector::Is(name.clone(), value.clone())).collect();
    for expression in selector.match_expressions.iter().flatten() {
        let (name, values) = (expression.key.clone(), expression.values.clone().unwrap_or_default());
        parts.push(match expression.operator.as_str() {
            "In" => Selector::In(name, values),
            "NotIn" => Selector::In(name, values).not(),
            "Exists" => Selector::Has(name),
            "DoesNotExist" => Selector::Has(name).not(),
            _ => return None,
        });
    }
    Some(Selector::And(parts))
}

impl Policy {
    /// Whether it is for this pod's traffic of that direction; None: its selector is not understood, or asks for what is not known.
    fn selects(&self, pod: &Pod, direction: PolicyDirection) -> Option<bool> {
        let for_it = match direction {
            PolicyDirection::Ingress => self.ingress,
            PolicyDirection::Egress => self.egress,
        };
        let there = self.name.namespace.as_ref().is_none_or(|namespace| *namespace == pod.namespace);
        if !for_it || !there {
            return Some(false);
        }
        let own = |name: &str| of_pod(pod, name);
        // Of namespaces and service accounts only the names are known.
        let namespace =
            |name: &str| named(name, &["projectcalico.org/name", "kubernetes.io/metadata.name"], &pod.namespace);
        let account = |name: &str| named(name, &["projectcalico.org/name"], &pod.service_account);
        let [of_pods, of_namespaces, of_accounts] = &self.by;
        let parts = [
            of_pods.as_ref().and_then(|selector| selector.holds(&own)),
            of_namespaces.as_ref().and_then(|selector| selector.holds(&namespace)),
            of_accounts.as_ref().and_then(|selector| selector.holds(&account)),
        ];
        decided_by(false, parts.into_iter())
    }

    /// What Calico may call it where it programs it, by version: up to 3.30, and after. The part in the chain's name.
    fn ids(&self) -> Vec<String> {
        let NamedPolicy { api_group, namespace, name, .. } = &self.name;
        let tier = &self.tier;
        // Calico's API server leaves out what the resource has before its name.
        let in_tier = format!("{tier}.{}", name.strip_prefix(&format!("{tier}.")).unwrap_or(name));
        match namespace {
            Some(namespace) if api_group == KUBERNETES => {
                vec![format!("{namespace}/knp.default.{name}"), format!("knp/{namespace}/{name}")]
            }
            Some(namespace) => {
                vec![
                    format!("{namespace}/{in_tier}"),
                    format!("np/{namespace}/{name}"),
                    format!("np/{namespace}/{in_tier}"),
                ]
            }
            None => vec![in_tier.clone(), format!("gnp/{name}"), format!("gnp/{in_tier}")],
        }
    }

    /// The chain of that name is this policy's.
    fn owns(&self, chain: &str) -> bool {
        let (base, limited) = match chain.strip_prefix("filter-") {
            // nftables takes longer names.
            Some(base) => (base, false),
            None => (chain, true),
        };
        let prefixes = [("cali-pi-", self.ingress), ("cali-po-", self.egress)];
        let has = |prefix: &str| {
            self.ids().iter().any(|id| base == format!("{prefix}{id}") || limited && base == shortened(prefix, id))
        };
        prefixes.into_iter().any(|(prefix, is_for)| is_for && base.starts_with(prefix) && has(prefix))
    }
}

/// Of a pod, Calico knows a few labels more than its object has; those it takes over from namespace and service account are not known.
fn of_pod<'a>(pod: &'a Pod, name: &str) -> Label<'a> {
    match name {
        "projectcalico.org/namespace" => Label::Is(&pod.namespace),
        "projectcalico.org/orchestrator" => Label::Is("k8s"),
        "projectcalico.org/serviceaccount" => Label::Is(&pod.service_account),
        _ if name.starts_with("pcns.") || name.starts_with("pcsa.") => Label::Unknown,
        _ => pod.labels.get(name).map_or(Label::Absent, |value| Label::Is(value)),
    }
}

fn named<'a>(label: &str, names: &[&str], value: &'a str) -> Label<'a> {
    if names.contains(&label) { Label::Is(value) } else { Label::Unknown }
}

/// A chain's name where the whole id is too long for it: as much of its SHA-256, in the base64 of URLs, as there is room for
/// (felix, `hash.GetLengthLimitedID`).
fn shortened(prefix: &str, id: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let digest = Sha256::digest(id);
    let room = LONGEST_CHAIN.saturating_sub(prefix.len() + 1);
    let digit = |index: usize| {
        // Six bits from bit 6 * index on, which lie in two bytes.
        let (byte, bit) = (index * 6 / 8, index * 6 % 8);
        let pair =
            u16::from_be_bytes([digest.get(byte).copied().unwrap_or(0), digest.get(byte + 1).copied().unwrap_or(0)]);
        char::from(DIGITS[usize::from(pair >> (10 - bit)) & 63])
    };
    let hash: String = (0..room.min(42)).map(digit).collect();
    format!("{prefix}_{hash}")
}

impl Directory {
    /// Says that policies were asked for on behalf of this namespace's pods: all that can matter were read, or not all.
    #[must_use]
    pub fn with_policies_of(mut self, namespace: &str, all: bool) -> Directory {
        self.policies_asked.insert(namespace.to_owned(), all);
        self
    }

    pub(super) fn selecting(&self, pod: &str, direction: PolicyDirection) -> Option<Selecting> {
        let pod = self.pods.iter().find(|one| one.full_name() == pod)?;
        let read = match self.policies_asked.get(&pod.namespace) {
            Some(true) => PoliciesRead::All,
            Some(false) => PoliciesRead::Some,
            // A file that has none may have been made without asking for them.
            None if self.policies.is_empty() => PoliciesRead::None,
            None => PoliciesRead::Some,
        };
        let with = |wanted: Option<bool>| {
            let fit = self.policies.iter().filter(|policy| policy.selects(pod, direction) == wanted);
            let mut named: Vec<_> = fit.map(|policy| (policy.name.clone(), policy.tier.clone())).collect();
            named.sort_by_key(|(policy, _)| (policy.namespace.is_none(), policy.shown()));
            named
        };
        Some(Selecting { read, policies: with(Some(true)), unclear: with(None) })
    }

    pub(super) fn owner_of_chain(&self, chain: &str) -> Option<NamedPolicy> {
        self.policies.iter().find(|policy| policy.owns(chain)).map(|policy| policy.name.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Policies of two namespaces and of all, around pod default/web with `app=web`.
    const CLUSTER: &str = include_str!("testdata/policies.yaml");

    fn told(directory: &Directory, pod: &str, direction: PolicyDirection) -> String {
        let Some(Selecting { read, policies, unclear }) = directory.selecting(pod, direction) else {
            return format!("{pod}: not known");
        };
        let list = |all: Vec<(NamedPolicy, String)>| {
            let shown = |(policy, tier): (NamedPolicy, String)| match tier.as_str() {
                DEFAULT_TIER => policy.shown(),
                tier => format!("{} (tier {tier})", policy.shown()),
            };
            all.into_iter().map(shown).collect::<Vec<_>>().join(", ")
        };
        format!("{pod} {} ({read:?}): {} | {}", direction.word(), list(policies), list(unclear))
    }

    #[test]
    fn selects_by_labels_namespace_and_direction() {
        let directory = Directory::parse(CLUSTER, "policies.yaml").expect("it parses");
        let of = |pod| [PolicyDirection::Ingress, PolicyDirection::Egress].map(|way| told(&directory, pod, way));
        let all = [of("default/web"), of("shop/db"), of("default/nobody")].concat();
        insta::assert_snapshot!(all.join("\n"));
    }

    #[test]
    fn how_many_were_read_is_said() {
        let read = |directory: &Directory| directory.selecting("default/web", PolicyDirection::Ingress).map(|s| s.read);
        let file = Directory::parse(CLUSTER, "policies.yaml").expect("it parses");
        assert_eq!(read(&file), Some(PoliciesRead::Some));
        assert_eq!(read(&file.clone().with_policies_of("default", true)), Some(PoliciesRead::All));
        assert_eq!(read(&file.with_policies_of("default", false)), Some(PoliciesRead::Some));
        let none = "kind: Pod\nmetadata: {name: web, namespace: default}";
        let none = Directory::parse(none, "pods.yaml").expect("it parses");
        assert_eq!(read(&none), Some(PoliciesRead::None));
        assert_eq!(read(&none.with_policies_of("default", true)), Some(PoliciesRead::All));
    }

    /// The digits by `printf %s default/knp.default.deny-all | openssl dgst -sha256 -binary | basenc --base64url`.
    #[test]
    fn a_chain_is_named_after_its_policy() {
        assert_eq!(shortened("cali-pi-", "default/knp.default.deny-all"), "cali-pi-_-Wl5cZBkMaJW52alC41");
        let directory = Directory::parse(CLUSTER, "policies.yaml").expect("it parses");
        let owner = |chain: &str| directory.owner_of_chain(chain).map(|policy| policy.shown());
        assert_eq!(owner("cali-pi-_-Wl5cZBkMaJW52alC41").as_deref(), Some("default/deny-all"));
        assert_eq!(owner("cali-po-_-Wl5cZBkMaJW52alC41"), None, "it is for ingress only");
        assert_eq!(owner("filter-cali-pi-knp/default/deny-all").as_deref(), Some("default/deny-all"));
        assert_eq!(owner("cali-pi-default.base").as_deref(), Some("Calico's global default.base"));
        assert_eq!(owner("cali-pi-default.other"), None);
        assert_eq!(owner("filter-cali-tw-cali98fd8882b62"), None);
    }
}
