//! A service as the trace's destination.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Action, Exchange, Hop, Nat, OLD_ENTRY};

/// A service that was asked, by what the API said when the trace began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedService {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// How many endpoints it has,
    pub endpoints: usize,
    /// and how many of them are ready to be sent new connections.
    pub ready: usize,
    /// The addresses of all its endpoints.
    pub addresses: Vec<IpAddr>,
    /// Set where the service's `externalTrafficPolicy` is Local, and it is asked from outside, or a node by its node port.
    pub local: Option<LocalEndpoints>,
    /// `loadBalancerSourceRanges`, where the source is in none of them and came by the load balancer's address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_let_in: Vec<String>,
}

impl AskedService {
    /// The DNAT that sends the request to somebody who is none of the endpoints.
    #[must_use]
    pub fn stranger<'e>(&self, exchange: &'e Exchange) -> Option<(&'e Hop, &'e Nat)> {
        let dnat = exchange.request.hops.iter().rev().find(|hop| hop.action == Action::Dnat)?;
        let nat = dnat.detail.nat.as_ref()?;
        (!self.addresses.contains(&nat.after.dst)).then_some((dnat, nat))
    }

    /// Who chose that, in a sentence.
    #[must_use]
    pub fn stranger_in_words(&self, exchange: &Exchange) -> Option<String> {
        let (hop, nat) = self.stranger(exchange)?;
        let Self { namespace, name, addresses, .. } = self;
        let (to, node) = (nat.after.dst, &hop.node);
        let has = match addresses.as_slice() {
            [] => "none".to_owned(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        let who = match hop.detail.text.as_deref() {
            Some(OLD_ENTRY) => format!(
                "conntrack on {node} chose it, not the rules: an entry from before the endpoint moved, which lives as long as the \
                 client goes on sending from this port"
            ),
            Some(_) => format!(
                "the rules on {node} are behind, or an entry of conntrack there is older than the endpoint's move"
            ),
            None => format!("the rules on {node} are behind: does kube-proxy run there?"),
        };
        Some(format!("{to} is no endpoint of {namespace}/svc/{name} (it has {has}): {who}"))
    }
}

/// Endpoints on the node that was asked, which alone get what comes from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalEndpoints {
    /// The node.
    pub node: String,
    /// How many ready endpoints live there.
    pub ready: usize,
    /// Nodes where ready endpoints live.
    pub elsewhere: Vec<String>,
}
