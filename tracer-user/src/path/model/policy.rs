//! Which network policies a drop may be of.

use serde::{Deserialize, Serialize};

/// What is known of the policies behind a drop.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policies {
    /// `namespace/pod` of the pod whose traffic they are about; its address or interface where nobody knows its name.
    pub pod: String,
    /// To the pod or from it.
    pub direction: PolicyDirection,
    /// What the rule that dropped the packet says of how it came to that.
    pub stage: PolicyStage,
    /// How many of the cluster's policies were looked at.
    pub read: PoliciesRead,
    /// Those that select the pod for this direction, in the tier of the rule if it names one; of stage `denied` only the one
    /// that the rule is of, if that is known.
    #[serde(rename = "names")]
    pub selecting: Vec<NamedPolicy>,
    /// Those that may select it: their selector is not understood.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unclear: Vec<NamedPolicy>,
}

/// Which of a pod's packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyDirection {
    /// To the pod.
    Ingress,
    /// From it.
    Egress,
}

impl PolicyDirection {
    /// As Kubernetes writes it, in small letters.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// How it came to a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolicyStage {
    /// A rule of one policy denies it.
    Denied,
    /// No policy that selects the pod allowed it.
    NoneAllowed,
    /// No policy decided, and no profile allowed it.
    Profile,
    /// The rule does not say, or it is not known which rule it was.
    Unknown,
}

/// How many of the policies that can matter were looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoliciesRead {
    /// None: nobody asked for them.
    None,
    /// Some: there may be others.
    Some,
    /// All of Kubernetes' and Calico's.
    All,
}

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPolicy {
    /// `NetworkPolicy` or `GlobalNetworkPolicy`.
    pub kind: String,
    /// `networking.k8s.io`, or one of Calico's.
    pub api_group: String,
    /// None: it is of no namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// The group of Kubernetes' own NetworkPolicy.
pub(crate) const KUBERNETES: &str = "networking.k8s.io";

impl NamedPolicy {
    /// `default/deny-all`; what is not Kubernetes' own is said to be Calico's.
    pub fn shown(&self) -> String {
        let Self { kind: _, api_group, namespace, name } = self;
        match namespace {
            Some(namespace) if api_group == KUBERNETES => format!("{namespace}/{name}"),
            Some(namespace) => format!("Calico's {namespace}/{name}"),
            None => format!("Calico's global {name}"),
        }
    }

    /// The command that shows it.
    pub fn describe(&self) -> String {
        let Self { kind, api_group, namespace, name } = self;
        let resource = match (kind.as_str(), api_group.as_str()) {
            ("NetworkPolicy", KUBERNETES) => "networkpolicy".to_owned(),
            ("NetworkPolicy", group) => format!("networkpolicies.{group}"),
            (_, group) => format!("globalnetworkpolicies.{group}"),
        };
        let namespace = namespace.as_ref().map_or(String::new(), |namespace| format!("-n {namespace} "));
        format!("kubectl {namespace}describe {resource} {name}")
    }
}
