//! TEMPORARY: stands in for parts that are built at the same time, so that the CLI compiles and its own part is tested.
//! Deleted at integration; every use of it is a `use super::stubs::...` line.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unused_async, reason = "temporary stand-ins")]

pub mod identity {
    use std::{io, net::IpAddr, path::Path};

    #[derive(Debug, thiserror::Error)]
    pub enum Error {
        #[error("cannot read the identity file {0}: {1}")]
        Read(String, io::Error),
        #[error("{0}: no such pod or node in a stub")]
        NotFound(String),
    }

    impl Error {
        pub fn is_not_found(&self) -> bool {
            matches!(self, Self::NotFound(_))
        }
    }

    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Target {
        pub name: Option<String>,
        pub address: IpAddr,
        pub node: Option<String>,
        pub host_network: bool,
    }

    #[derive(Debug, Default)]
    pub struct Directory(pub Vec<(&'static str, Target)>);

    impl Directory {
        pub fn load(path: &Path) -> Result<Self, Error> {
            std::fs::read(path).map_err(|source| Error::Read(path.display().to_string(), source))?;
            Ok(Self::default())
        }

        pub fn empty() -> Self {
            Self::default()
        }

        pub fn with_context(self, _context: &str) -> Self {
            self
        }

        pub fn resolve(&self, name: &str, _namespace: &str) -> Result<Target, Error> {
            if let Some((_, target)) = self.0.iter().find(|(known, _)| *known == name) {
                return Ok(target.clone());
            }
            match name.parse() {
                Ok(address) => Ok(Target { name: None, address, node: None, host_network: false }),
                Err(_) => Err(Error::NotFound(name.to_owned())),
            }
        }
    }

    impl crate::path::Names for Directory {
        fn pod(&self, _address: IpAddr) -> Option<String> {
            None
        }
        fn node(&self, _address: IpAddr) -> Option<String> {
            None
        }
    }
}

pub mod session {
    use std::{
        ffi::OsString,
        future::Future,
        io,
        path::{Path, PathBuf},
        time::Duration,
    };

    use crate::{
        event::Record,
        path::{Evidence, Probe},
        session::{Counters, Request},
    };

    #[derive(Debug, thiserror::Error)]
    #[error("inventory {path}: {cause}; the real message comes with the real part")]
    pub struct InventoryError {
        path: String,
        cause: String,
    }

    #[derive(Debug, thiserror::Error)]
    pub enum DriveError {
        #[error("node {node}: start `{command}`: {source}")]
        Start { node: String, command: String, source: io::Error },
        #[error("session: a stub; integrate the real one")]
        Stub,
    }

    #[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize)]
    pub struct InventoryNode {
        pub name: String,
        pub command: Vec<String>,
    }

    impl InventoryNode {
        pub fn words(&self) -> Vec<OsString> {
            self.command.iter().map(OsString::from).collect()
        }
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
    pub struct Inventory {
        pub context: Option<String>,
        pub identity: Option<PathBuf>,
        #[serde(rename = "node", default)]
        pub nodes: Vec<InventoryNode>,
    }

    impl Inventory {
        pub fn load(path: &Path) -> Result<Self, InventoryError> {
            let failed = |cause: String| InventoryError { path: path.display().to_string(), cause };
            let text = std::fs::read_to_string(path).map_err(|error| failed(error.to_string()))?;
            toml::from_str(&text).map_err(|error| failed(error.to_string()))
        }

        pub fn running_labs() -> Result<Vec<PathBuf>, InventoryError> {
            Ok(Vec::new())
        }
    }

    #[derive(Debug)]
    pub struct Connection;

    impl Connection {
        pub fn spawn(_name: impl Into<String>, _words: &[OsString]) -> io::Result<Self> {
            Ok(Self)
        }
    }

    /// The real one is `Connection::local(name, backend)`; the backend is the agent's.
    pub fn local_connection(_name: &str) -> Connection {
        Connection
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Plan {
        pub armed_within: Duration,
        pub record_for: Option<Duration>,
    }

    /// As in the real one, but that `Records` carries `new`, without which nobody can count a passive trace's exchanges.
    #[derive(Clone, Copy, Debug, PartialEq)]
    pub enum Progress<'a> {
        Connecting { node: &'a str },
        Hello { node: &'a str, hello: &'a Hello },
        Armed { node: &'a str, took: Duration },
        Probe(Probe),
        Records { node: &'a str, total: usize, new: &'a [Record] },
        Draining,
        Ended { node: &'a str },
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct Hello {
        pub about: About,
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct About {
        pub kernel: String,
    }

    #[derive(Clone, Debug, Default)]
    pub struct Driven {
        pub evidence: Evidence,
        pub nodes: Vec<DrivenNode>,
        pub warnings: Vec<String>,
        pub interrupted: bool,
    }

    #[derive(Clone, Debug, Default, PartialEq, Eq)]
    pub struct DrivenNode {
        pub name: String,
        pub hello: Option<Hello>,
        pub counters: Option<Counters>,
        pub discarded: u64,
        pub unknown: u64,
    }

    pub async fn drive(
        _nodes: Vec<(Connection, Request)>,
        _plan: Plan,
        _stop: impl Future<Output = ()>,
        _progress: impl FnMut(Progress<'_>),
    ) -> Result<Driven, DriveError> {
        Err(DriveError::Stub)
    }
}

pub mod path {
    use std::net::IpAddr;

    use crate::path::{
        Evidence, Names,
        model::{Endpoint, Exchange},
    };

    #[derive(Clone, Debug)]
    pub struct Ends {
        pub source: Endpoint,
        pub destination: Endpoint,
    }

    #[derive(Clone, Debug, Default)]
    pub struct Joined {
        pub exchanges: Vec<Exchange>,
        pub routers: Vec<IpAddr>,
        pub warnings: Vec<String>,
        pub smallest_mtu: Option<u32>,
    }

    pub fn join(_evidence: &Evidence, _ends: &Ends, _names: &dyn Names) -> Joined {
        Joined::default()
    }
}

pub mod render {
    use crate::path::model::Trace;

    pub struct Style {
        pub color: bool,
        pub width: usize,
        pub verbose: bool,
    }

    pub fn text(_trace: &Trace, style: &Style) -> String {
        let Style { color: _, width: _, verbose: _ } = style;
        String::new()
    }

    pub fn json(_trace: &Trace) -> Vec<u8> {
        Vec::new()
    }

    pub fn exit_code(_trace: &Trace) -> u8 {
        1
    }
}
