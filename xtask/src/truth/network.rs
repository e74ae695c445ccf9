//! A generated network: a lab, the faults planted in it, and what is traced.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};

use crate::lab::LabInfo;
use crate::lab::plant::Plant;
use crate::lab::profile::{CLIENT, INTERNET, Profile};

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
    /// Short name of a pod or node; [`INTERNET`]: a client out there, who is watched.
    pub(crate) from: String,
    pub(crate) to: Target,
    pub(crate) probe: Probe,
    /// Asked for, unless pinged.
    pub(crate) port: u16,
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

/// How long a client out there is watched, at most.
const WATCHED: &str = "5s";

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
            Probe::Tcp => format!(" --tcp {}", self.port),
            Probe::Udp => format!(" --udp {}", self.port),
        };
        if self.from == INTERNET {
            return Ok(format!("{CLIENT} {to}{probe} --passive -c 1 --for {WATCHED}"));
        }
        let size = self.size.map(|size| format!(" --size {size}")).unwrap_or_default();
        Ok(format!("{} {to}{probe}{size}", end(lab, &self.from)?))
    }
}

impl Ask {
    /// What is traced may be of a connection that stood before.
    pub(crate) fn is_of_unknown_age(&self) -> bool {
        self.from == INTERNET && self.probe == Probe::Udp
    }

    /// Of a client out there: what asks again and again, by `xtask traffic`.
    pub(crate) fn traffic(&self, lab: &LabInfo) -> Result<Option<Vec<String>>> {
        let protocol = match self.probe {
            _ if self.from != INTERNET => return Ok(None),
            Probe::Tcp => "tcp",
            Probe::Udp => "udp",
            Probe::Ping => bail!("nobody out there pings"),
        };
        let address = match &self.to {
            Target::Address(address) => address.to_string(),
            Target::Host(host) => lab.node(host)?.address.to_string(),
        };
        Ok(Some(["traffic", "get", protocol, &address, &self.port.to_string()].map(str::to_owned).to_vec()))
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
