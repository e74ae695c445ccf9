//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum, error::ErrorKind};

use super::{
    examples::{
        COMPLETION_EXAMPLES, CONVERT_EXAMPLES, DOCTOR_EXAMPLES, EXAMPLES, INSTALL_EXAMPLES, NODES_EXAMPLES,
        RECORD_EXAMPLES, REPORT_EXAMPLES, TRACE_EXAMPLES, WATCH_EXAMPLES,
    },
    traffic::{Traffic, with_port},
};
use crate::cluster::{Access, names};

/// Shows the path that a packet really took through Kubernetes nodes.
#[derive(Debug, Parser)]
#[command(name = "podpath", version, max_term_width = 100, after_help = EXAMPLES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show the path a ping, a TCP SYN or a datagram takes, hop by hop, there and back
    #[command(after_help = TRACE_EXAMPLES)]
    Trace(Box<TraceArgs>),
    /// Watch what others send, live: where the time goes, and what is lost
    #[command(after_help = WATCH_EXAMPLES)]
    Watch(Box<WatchArgs>),
    /// Record what others send, for `podpath report`
    #[command(after_help = RECORD_EXAMPLES)]
    Record(Box<RecordArgs>),
    /// Show where the time went in a recording: each segment of the path, its share, and what was lost
    #[command(after_help = REPORT_EXAMPLES)]
    Report(ReportArgs),
    /// Make another format of a recording: JSON lines, or pcapng for Wireshark
    #[command(after_help = CONVERT_EXAMPLES)]
    Convert(ConvertArgs),
    /// Show what this machine's kernel and user can do, what is missing, and what that costs
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(DoctorArgs),
    /// Show every node, its agent, and what can be traced there
    #[command(after_help = NODES_EXAMPLES)]
    Nodes(NodesArgs),
    /// Put an agent on every node of a cluster, and wait until they are ready
    #[command(after_help = INSTALL_EXAMPLES)]
    Install(Box<InstallArgs>),
    /// Remove from a cluster everything that `podpath install` put there
    Uninstall(Box<UninstallArgs>),
    /// Print a shell's completions of this program
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion(CompletionArgs),
}

/// Arguments of `podpath install`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct InstallArgs {
    /// The agents' image
    #[arg(long, value_name = "IMAGE", help = format!("The agents' image [default: {}]", names::IMAGE))]
    pub image: Option<String>,
    /// Agents refuse to send probes: only `podpath trace --passive` works
    #[arg(long)]
    pub no_inject: bool,
    /// Agents see the nodes' processes, to find pods whose network namespace is not in /run/netns (docker)
    #[arg(long)]
    pub hostpid: bool,
    /// Agents are privileged containers, where the kernel or a security module refuses them the capabilities listed one by one
    #[arg(long)]
    pub privileged: bool,
    /// Print what would be applied; nothing is asked of any cluster
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: how to print it [default: yaml]
    #[arg(short, long, value_name = "FORMAT", value_enum, requires = "dry_run")]
    pub output: Option<ObjectFormat>,
    /// How long to wait for the agents, such as 30s or 5m
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    pub timeout: Duration,
    /// The cluster.
    #[command(flatten)]
    pub access: Access,
}

/// Arguments of `podpath uninstall`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct UninstallArgs {
    /// How long to wait until all is gone, such as 30s or 5m
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "2m")]
    pub timeout: Duration,
    /// The cluster.
    #[command(flatten)]
    pub access: Access,
}

/// Arguments of `podpath completion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct CompletionArgs {
    /// Whose
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells that completions can be had for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

/// How objects of a cluster are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ObjectFormat {
    /// As kubectl apply takes it
    Yaml,
    /// The same
    Json,
}

/// Arguments of `podpath doctor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct DoctorArgs {
    /// For people or for programs
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

/// Arguments of `podpath nodes`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct NodesArgs {
    /// Only these nodes
    #[arg(value_name = "NODE")]
    pub nodes: Vec<String>,
    /// For people or for programs
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// How long a node may take to answer, seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, env = "PODPATH_READY_WITHIN")]
    pub ready_within: Duration,
    /// The nodes of this file
    #[arg(long, value_name = "FILE", conflicts_with = "lab")]
    pub inventory: Option<PathBuf>,
    /// The nodes of this running lab
    #[arg(long, value_name = "NAME")]
    pub lab: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub access: Access,
}

/// Between whom, and by which nodes.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct Between {
    /// Who sends: a pod, a node or an address
    pub source: String,
    /// Who is asked: a pod, a service, a node, an address or a host name; HOST:PORT is HOST --tcp PORT, HOST:PORT/udp is HOST --udp PORT
    pub destination: String,
    /// TCP to this port, instead of pings
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "udp")]
    pub tcp: Option<u16>,
    /// UDP to this port, instead of pings
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub udp: Option<u16>,
    /// Between IPv4 addresses; the default where both ends have one
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// Between IPv6 addresses
    #[arg(short = '6', long)]
    pub ipv6: bool,
    /// How long the nodes may take to get ready, and half of it to end, seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds, env = "PODPATH_READY_WITHIN")]
    pub ready_within: Duration,
    /// Trace on this machine only, without any inventory
    #[arg(long, conflicts_with_all = ["inventory", "lab"])]
    pub local: bool,
    /// The nodes to trace on
    #[arg(long, value_name = "FILE", conflicts_with = "lab")]
    pub inventory: Option<PathBuf>,
    /// The running lab to trace in, if there are several
    #[arg(long, value_name = "NAME")]
    pub lab: Option<String>,
    /// Trace without installed agents: by a pod on each node concerned, for as long as the trace takes
    #[arg(long, conflicts_with_all = ["local", "inventory", "lab"])]
    pub ephemeral: bool,
    /// With --ephemeral: the agent's image
    #[arg(long, value_name = "IMAGE", requires = "ephemeral", default_value = crate::cluster::names::IMAGE)]
    pub image: String,
    /// Namespace of names given without one [default: the context's, or default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// The cluster.
    #[command(flatten)]
    pub access: Access,
}

/// Arguments of `podpath trace`.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct TraceArgs {
    /// How many exchanges
    #[arg(short = 'c', long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    pub count: u16,
    /// Time between two probes, seconds
    #[arg(short, long, value_name = "SECONDS", default_value = "0.2", value_parser = seconds)]
    pub interval: Duration,
    /// Payload of a ping or datagram, bytes (8 to 65507); a SYN has none
    #[arg(short, long, value_name = "BYTES", default_value_t = 56, conflicts_with = "tcp", value_parser = clap::value_parser!(u16).range(8..=65507))]
    pub size: u16,
    /// How long to wait for each reply, seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub timeout: Duration,
    /// Show every step
    #[arg(short, long)]
    pub verbose: bool,
    /// For people or for programs
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    pub output: Format,
    /// Also write the trace to this file, as JSON
    #[arg(long, value_name = "FILE")]
    pub save: Option<PathBuf>,
    /// Send nothing; wait until N exchanges were seen, --for has passed, or Ctrl-C
    #[arg(long, conflicts_with_all = ["interval", "size", "timeout"])]
    pub passive: bool,
    /// With --passive: how long to wait, such as 30s, 5m or 1h
    #[arg(long = "for", value_name = "DURATION", requires = "passive", value_parser = duration, default_value = "5m")]
    pub wait: Duration,
    /// Name the netfilter rules that packets meet: adds one nftables table to each node (`flags owner`) while the trace runs
    #[arg(long)]
    pub trace_rules: bool,
    /// Of so many connections one is recorded: `podpath record --sample`. A trace takes all.
    #[arg(skip = 1_u32)]
    pub one_of: u32,
    // Last: what follows the cluster's options is listed with them.
    /// Between whom: pings, or with --tcp SYNs that are reset when they are answered, or with --udp datagrams.
    #[command(flatten)]
    pub between: Between,
}

/// Arguments of `podpath watch`.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct WatchArgs {
    /// Which of them.
    #[command(flatten)]
    pub sampling: Sampling,
    // Last: what follows the cluster's options is listed with them.
    /// Between whom.
    #[command(flatten)]
    pub between: Between,
}

/// Which of many connections are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Args)]
pub struct Sampling {
    /// Of N connections take one, chosen by the client's port alike on all nodes: on busy nodes it costs so much less
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=MOST_SAMPLED))]
    pub sample: u32,
}

/// A port has 16 bits: of more connections one cannot be chosen by it.
const MOST_SAMPLED: i64 = 1 << 16;

impl From<WatchArgs> for TraceArgs {
    /// As a recording that the user ends.
    fn from(args: WatchArgs) -> Self {
        let WatchArgs { sampling, between } = args;
        Self::from(RecordArgs { wait: LONGEST, write: PathBuf::new(), sampling, between })
    }
}

/// Arguments of `podpath record`.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct RecordArgs {
    /// How long, such as 30s, 5m or 1h; Ctrl-C ends it earlier, and keeps what was recorded
    #[arg(long = "for", value_name = "DURATION", value_parser = duration, default_value = "60s")]
    pub wait: Duration,
    /// The file to write; there must be none of that name yet
    #[arg(short, long, value_name = "FILE")]
    pub write: PathBuf,
    /// Which connections.
    #[command(flatten)]
    pub sampling: Sampling,
    // Last: what follows the cluster's options is listed with them.
    /// Between whom.
    #[command(flatten)]
    pub between: Between,
}

impl From<RecordArgs> for TraceArgs {
    /// As a passive trace without an end.
    fn from(args: RecordArgs) -> Self {
        Self {
            between: args.between,
            count: u16::MAX,
            interval: Duration::ZERO,
            size: 0,
            timeout: Duration::ZERO,
            verbose: false,
            output: Format::Text,
            save: None,
            passive: true,
            wait: args.wait,
            trace_rules: false,
            one_of: args.sampling.sample,
        }
    }
}

/// Arguments of `podpath convert`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ConvertArgs {
    /// A file that `podpath record` wrote
    pub recording: PathBuf,
    /// Into which format
    #[arg(long, value_name = "FORMAT", value_enum)]
    pub to: Conversion,
    /// The file to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
}

/// What a recording is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Conversion {
    /// JSON lines: an exchange each, as `podpath trace -o json` has them
    Jsonl,
    /// A capture of the headers, with the hops as packet comments
    Pcapng,
}

/// Arguments of `podpath report`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// A file that `podpath record` wrote
    pub recording: PathBuf,
    /// Show what changed since this other recording, beyond what chance and noise explain
    #[arg(long, value_name = "FILE", conflicts_with = "slowest")]
    pub against: Option<PathBuf>,
    /// Show the N slowest exchanges instead, as `podpath trace` shows one
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub slowest: Option<u16>,
    /// For people or for programs
    #[arg(short, long, value_name = "FORMAT", value_enum, default_value_t = Format::Text)]
    pub output: Format,
}

impl TraceArgs {
    /// Namespace of names given without one.
    pub(super) fn namespace(&self) -> &str {
        self.between.namespace.as_deref().unwrap_or("default")
    }

    /// The same, with a port that was typed as part of the destination in its own place.
    ///
    /// # Errors
    /// What is no port, or not the one of --tcp or --udp.
    pub(super) fn with_port_of_destination(mut self) -> Result<Self, clap::Error> {
        let wrong = |kind, text: String| Cli::command().error(kind, text);
        let split = with_port(&self.between.destination).map_err(|text| wrong(ErrorKind::ValueValidation, text))?;
        let Some((host, traffic)) = split else { return Ok(self) };
        if ![traffic, Traffic::Echo].contains(&self.traffic()) {
            let (typed, option) = (&self.between.destination, self.traffic().option().unwrap_or_default());
            return Err(wrong(
                ErrorKind::ArgumentConflict,
                format!("{typed} and {option} name two ports: leave one out"),
            ));
        }
        self.between.destination = host.to_owned();
        match traffic {
            Traffic::Tcp(port) => self.between.tcp = Some(port),
            Traffic::Udp(port) => self.between.udp = Some(port),
            Traffic::Echo => {}
        }
        Ok(self)
    }

    /// What is traced.
    pub(super) fn traffic(&self) -> Traffic {
        match (self.between.tcp, self.between.udp) {
            (Some(port), _) => Traffic::Tcp(port),
            (None, Some(port)) => Traffic::Udp(port),
            (None, None) => Traffic::Echo,
        }
    }
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people; changes with releases
    Text,
    /// The same, with more of it
    Wide,
    /// For programs; only grows
    Json,
    /// The same
    Yaml,
}

/// The longest time that any option takes.
const LONGEST: Duration = Duration::from_secs(3600);

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "not a number of seconds, such as 0.2".to_owned())?;
    let time = Duration::try_from_secs_f64(number).map_err(|_| "must be more than 0 and at most 3600".to_owned())?;
    if time.is_zero() || time > LONGEST {
        return Err("must be more than 0 and at most 3600".to_owned());
    }
    Ok(time)
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration such as 30s, 5m or 1h".to_owned();
    let unit_at = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let scale = match unit {
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    seconds(&(number * scale).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn two_ports_are_one_too_many() {
        let parsed = |line: &str| match Cli::parse_from(format!("podpath trace {line}").split(' ')).command {
            Command::Trace(args) => {
                args.with_port_of_destination().map(|args| (args.between.destination.clone(), args.traffic()))
            }
            _ => unreachable!("asked for trace"),
        };
        let node = |traffic| ("n1".to_owned(), traffic);
        assert_eq!(parsed("bb1 n1:80").expect("one"), node(Traffic::Tcp(80)));
        assert_eq!(parsed("bb1 n1:53/udp --udp 53").expect("the same"), node(Traffic::Udp(53)));
        let error = parsed("bb1 n1:80 --udp 80").expect_err("two").to_string();
        assert!(error.contains("n1:80 and --udp 80 name two ports: leave one out"), "{error}");
        assert_eq!(parsed("bb1 n1:http").expect_err("a name").exit_code(), 2);
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1h"), Ok(Duration::from_secs(3600)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "s", "5d", "-1s", "2h", "0s", "nan", "inf", "5 m"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn seconds_are_positive() {
        assert_eq!(seconds("0.05"), Ok(Duration::from_millis(50)));
        for wrong in ["0", "-1", "nan", "inf", "1e300", "x", "0.0000000001"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
