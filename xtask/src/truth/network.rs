//! A generated network: a lab, the faults planted in it, and what is traced.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use crate::lab::LabInfo;
use crate::lab::plant::Plant;
use crate::lab::profile::Profile;

/// All that a seed makes.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) seed: u64,
    pub(crate) profile: Profile,
    pub(crate) plants: Vec<Plant>,
    pub(crate) asks: Vec<Ask>,
}

/// A trace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Short name of a pod or node.
    pub(crate) from: String,
    pub(crate) to: Target,
    pub(crate) probe: Probe,
    /// Payload, bytes.
    pub(crate) size: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Short name of a pod or node.
    Host(String),
    Address(Ipv4Addr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probe {
    Ping,
    /// To a port that nobody listens on.
    Tcp,
    /// The same.
    Udp,
}

/// No pod of a lab listens there.
pub(crate) const CLOSED_PORT: u16 = 4999;

impl Ask {
    /// The arguments of `podpath trace`.
    pub(crate) fn arguments(&self, lab: &LabInfo) -> Result<String> {
        let to = match &self.to {
            Target::Address(address) => address.to_string(),
            Target::Host(host) => end(lab, host)?,
        };
        let probe = match self.probe {
            Probe::Ping => String::new(),
            Probe::Tcp => format!(" --tcp {CLOSED_PORT}"),
            Probe::Udp => format!(" --udp {CLOSED_PORT}"),
        };
        let size = self.size.map(|size| format!(" --size {size}")).unwrap_or_default();
        Ok(format!("{} {to}{probe}{size}", end(lab, &self.from)?))
    }
}

/// An end as kubectl names it.
fn end(lab: &LabInfo, host: &str) -> Result<String> {
    if let Ok(pod) = lab.pod(host) {
        return Ok(format!("{}/{}", pod.kubernetes_namespace, pod.name));
    }
    let node = lab.node(host).with_context(|| format!("{host} is no pod either"))?;
    Ok(format!("node/{}", node.name))
}
