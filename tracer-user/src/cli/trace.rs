//! `podpath trace`.

use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::{
    NOT_ALL,
    args::{Format, TraceArgs},
    ends::{self, Resolved},
    error::Error,
    nodes::{self, Cluster},
    requests,
    terminal::{Line, Progress, Surroundings, write_stderr, write_stdout},
    traffic::Traffic,
    watch::Watch,
};
use crate::{
    path::{
        Joined, Names, join, join_first,
        model::{Action, Endpoint, Exchange, Hop, Outcome, Trace, TracedNode},
        pod_with,
    },
    render,
    session::{self, Connection, Counters, Driven, DrivenNode, Flow, Plan, Request},
};

/// After the last request that a passive trace waits for: its reply.
const LAST_REPLY: Duration = Duration::from_secs(1);

/// Payload that every link takes, bytes.
const SHORT: u16 = 56;

/// How often a path may lead over nodes that were not asked the time before.
pub(super) const MOST_ROUNDS: usize = 3;

/// Traces and prints; the exit code says how it went.
///
/// # Errors
/// It could not trace.
pub(super) async fn run(args: &TraceArgs) -> Result<u8, Error> {
    let (mut cluster, mut args) = nodes::find(args).await?;
    if ends::can_only_be_watched(&args, &cluster) {
        args.passive = true;
        write_stderr(&format!(
            "podpath: {} is no pod and no node here, and sends nothing for us: what it sends itself is waited for, as with \
             --passive (up to 5m, --for; Ctrl-C ends)\n",
            args.between.source
        ));
    }
    if let Some(choice) = &cluster.choice {
        // Not a warning of the trace: it is about the command line.
        write_stderr(&format!("podpath: {choice}\n"));
    }
    let traced = rounds(&args, &mut cluster).await;
    let left = cluster.clean_up().await;
    let (mut trace, cut_short) = traced?;
    trace.warnings.extend(left);

    if let Some(path) = &args.save {
        let written = std::fs::write(path, render::json(&trace));
        written.map_err(|source| Error::Save { path: path.clone(), source })?;
    }
    let bytes = match args.output {
        Format::Json => render::json(&trace),
        Format::Yaml => super::yaml(&render::json(&trace)).into_bytes(),
        Format::Text | Format::Wide => {
            let look = Surroundings::of_stdout().look();
            let style = render::Style {
                color: look.color,
                width: look.width,
                verbose: args.verbose || args.output == Format::Wide,
            };
            render::text(&trace, &style).into_bytes()
        }
    };
    write_stdout(&bytes).map_err(Error::Output)?;
    Ok(if cut_short { NOT_ALL } else { render::exit_code(&trace) })
}

/// Traces, and once more where the path leads over a node that was not asked; whether exchanges were taken away that were asked
/// for.
async fn rounds(args: &TraceArgs, cluster: &mut Cluster) -> Result<(Trace, bool), Error> {
    let (mut rounds, mut source, mut translated) = (0, None, Vec::new());
    loop {
        let started = rfc3339(SystemTime::now());
        let mut resolved = ends::resolve(args, cluster).await?;
        if let Some(source) = source {
            resolved.send_from(source);
        }
        let driven = match drive(args, cluster, &mut resolved, &translated).await {
            // Its node knows better by which of its addresses the source sends there.
            Err(Error::Session(error)) if source.is_none() && error.other_source().is_some() => {
                source = error.other_source();
                continue;
            }
            driven => driven?,
        };
        rounds += 1;
        // Of live traffic more may have begun while the last reply was waited for.
        let first = usize::from(args.count);
        let mut joined = join_first(first, &driven.evidence, &resolved.ends, &cluster.directory);
        let more = cluster.meet(&joined).await;
        let new = if joined.exchanges.iter().any(has_gaps) {
            requests::translated(&driven.evidence.nodes)
        } else {
            Vec::new()
        };
        let more = more || new.iter().any(|flow| !translated.contains(flow));
        translated.extend(new);
        // The path leads over a node that was not asked, or not for what NAT made of the packets: once more, with that.
        if more && rounds < MOST_ROUNDS && !driven.interrupted && !args.passive {
            continue;
        }
        if cluster.kubernetes.is_some() {
            let Endpoint { name, address, .. } = &mut resolved.ends.destination;
            *name =
                name.take().or_else(|| cluster.directory.pod(*address)).or_else(|| cluster.directory.node(*address));
            joined = join_first(first, &driven.evidence, &resolved.ends, &cluster.directory);
        }
        let Endpoint { name, address, node } = &mut resolved.ends.destination;
        if name.is_none()
            && let Some((pod, on)) = pod_with(&driven.evidence, &cluster.directory, *address)
        {
            (*name, *node) = (Some(pod), Some(on));
        }
        if let Some(note) = black_hole(args, cluster, &mut resolved, &joined, &translated).await {
            joined.exchanges.iter_mut().for_each(|exchange| exchange.notes.push(note.clone()));
        }
        let unsent =
            if args.passive { 0 } else { usize::from(args.count).saturating_sub(driven.evidence.probes.len()) };
        // Who ends it early knows that; what ended it otherwise took exchanges away that were asked for.
        let cut_short = unsent > 0 && !driven.interrupted;
        return Ok((assemble(args, cluster, resolved, started, (driven, joined)), cut_short));
    }
}

/// Long probes were all lost without a word: would a short one have been? One more round tells; in words, if so.
async fn black_hole(
    args: &TraceArgs,
    cluster: &mut Cluster,
    resolved: &mut Resolved,
    joined: &Joined,
    translated: &[Flow],
) -> Option<String> {
    let lost = joined.exchanges.iter().all(|exchange| exchange.outcome == Outcome::Lost);
    if args.passive || args.size <= SHORT || !lost || joined.exchanges.is_empty() {
        return None;
    }
    let short = TraceArgs { size: SHORT, count: 1, ..args.clone() };
    // What is known already is not lost for that.
    let driven = drive(&short, cluster, resolved, translated).await.ok()?;
    let joined = join(&driven.evidence, &resolved.ends, &cluster.directory);
    let passes = joined.exchanges.iter().any(|exchange| exchange.outcome == Outcome::Delivered);
    let source = resolved.ends.source.address;
    let [short, long] = [SHORT, args.size].map(|size| resolved.traffic.length(source, size));
    let says = "what lies there takes less, and tells nobody (an MTU black hole)";
    passes.then(|| format!("a probe of {short} bytes came through, those of {long} did not: {says}"))
}

/// Not all that was to be seen of it was. Who rejected what left a node may be another node.
fn has_gaps(exchange: &Exchange) -> bool {
    let left = exchange.request.hops.last().is_some_and(|hop| hop.action == Action::Transmitted);
    // Out by an interface and in again: was there a node between that saw something else of it?
    let came_back = exchange.request.hops.windows(2).any(|pair| {
        let [out, into] = pair else { return false };
        let place = |hop: &'_ Hop| (hop.node.clone(), hop.pod.clone(), hop.interface.clone());
        (out.action, into.action) == (Action::Transmitted, Action::Received) && place(out) == place(into)
    });
    came_back
        || matches!(exchange.outcome, Outcome::Incomplete | Outcome::Lost)
        || exchange.request.incomplete
        || exchange.reply.incomplete
        || exchange.outcome == Outcome::Rejected && left
}

/// One round: sessions on all nodes, probes from the source's.
async fn drive(
    args: &TraceArgs,
    cluster: &mut Cluster,
    resolved: &mut Resolved,
    translated: &[Flow],
) -> Result<Driven, Error> {
    let progress = Progress::start(format!("arming {}", plural(cluster.nodes.len(), "node")));
    let (connections, sender) = cluster.connect(resolved.sender).await?;
    // Nodes may have been left out.
    resolved.sender = sender;
    let requests = requests::requests(args, cluster, resolved, translated);
    let home = home(cluster, resolved);
    let plan = plan(args, cluster, home);
    let enough = Notify::new();
    let home = home.map(|index| cluster.nodes[index].name.clone());
    let mut report = Report::new(args, resolved, home);
    let driven = session::drive(
        connections.into_iter().zip(requests).collect(),
        plan,
        stopped(&enough, progress.line()),
        |step| {
            if let Some(text) = report.step(&step) {
                progress.now(text);
            }
            if report.enough() {
                enough.notify_one();
            }
        },
    )
    .await?;
    progress.now("putting the path together".to_owned());
    if driven.interrupted && driven.evidence.nodes.iter().all(|node| node.records.is_empty()) && !args.passive {
        return Err(Error::Interrupted);
    }
    Ok(driven)
}

/// Sessions that only watch, and pass on what they record.
pub(super) struct Watching {
    pub(super) resolved: Resolved,
    pub(super) sessions: Vec<(Connection, Request)>,
    pub(super) plan: Plan,
}

/// Reaches all nodes for a recording or a live view, and says what each is asked.
///
/// # Errors
/// An end means nothing, or a node cannot be reached.
pub(super) async fn watching(args: &TraceArgs, cluster: &mut Cluster) -> Result<Watching, Error> {
    let resolved = ends::resolve(args, cluster).await?;
    let (connections, _) = cluster.connect(resolved.sender).await?;
    let requests = requests::requests(args, cluster, &resolved, &[]);
    let requests = requests.into_iter().map(|request| Request { sparing: true, ..request });
    let plan = Plan { passes_on: true, ..plan(args, cluster, home(cluster, &resolved)) };
    Ok(Watching { resolved, sessions: connections.into_iter().zip(requests).collect(), plan })
}

/// Which node the source lives on.
fn home(cluster: &Cluster, resolved: &Resolved) -> Option<usize> {
    cluster.nodes.iter().position(|node| Some(&node.name) == resolved.ends.source.node.as_ref())
}

/// How the sessions run; `home`: the source's node.
fn plan(args: &TraceArgs, cluster: &Cluster, home: Option<usize>) -> Plan {
    Plan {
        armed_within: args.between.ready_within,
        record_for: args.passive.then_some(args.wait),
        armed_last: home.filter(|_| args.passive),
        all_needed: cluster.kubernetes.is_none(),
        passes_on: false,
    }
}

/// Ctrl-C or another request to end, or a passive trace has seen enough. A second one does not wait for anything: sessions
/// end with their input, and leave nothing behind.
pub(super) async fn stopped(enough: &Notify, line: Line) {
    tokio::select! {
        () = enough.notified() => tokio::time::sleep(LAST_REPLY).await,
        _code = asked_to_end() => {
            tokio::spawn(async move {
                let code = asked_to_end().await;
                line.clear();
                std::process::exit(code);
            });
        }
    }
}

/// Until a signal asks the process to end; returns the exit code that says which, as shells count them. Not SIGHUP: with the
/// terminal gone nobody reads what was seen, and nohup(1) is to be obeyed.
#[cfg(unix)]
pub(super) async fn asked_to_end() -> i32 {
    use tokio::signal::unix::{SignalKind, signal};

    let next = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signals) => signals.recv().await,
            // No handler, so the signal itself ends the process: nothing to wait for.
            Err(_) => std::future::pending().await,
        };
        128 + kind.as_raw_value()
    };
    tokio::select! {
        code = next(SignalKind::interrupt()) => code,
        code = next(SignalKind::terminate()) => code,
    }
}

#[cfg(not(unix))]
pub(super) async fn asked_to_end() -> i32 {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    130
}

/// What happened so far, for a person who waits.
struct Report {
    count: usize,
    passive: bool,
    traffic: Traffic,
    /// The node where the exchanges begin, if it is traced.
    home: Option<String>,
    watch: Watch,
    armed: usize,
    done: usize,
    answered: usize,
}

impl Report {
    fn new(args: &TraceArgs, resolved: &Resolved, home: Option<String>) -> Self {
        let watch = Watch::new(resolved.ends.source.address);
        let traffic = resolved.traffic;
        Self { count: args.count.into(), passive: args.passive, traffic, home, watch, armed: 0, done: 0, answered: 0 }
    }

    /// A passive trace has seen the exchanges it was to wait for.
    fn enough(&self) -> bool {
        self.passive && self.done >= self.count
    }

    /// What to say now; None: the same as before.
    fn step(&mut self, step: &session::Progress<'_>) -> Option<String> {
        let Self { count, passive, traffic, home, watch, armed, done, answered } = self;
        match step {
            session::Progress::Armed { .. } => {
                *armed += 1;
                let waiting =
                    if *passive { format!(", waiting for {}; Ctrl-C ends", traffic.awaited()) } else { String::new() };
                Some(format!("{} armed{waiting}", plural(*armed, "node")))
            }
            session::Progress::Probe(probe) => {
                *done += 1;
                *answered += usize::from(probe.rtt_ns.is_some());
                let silent = *done - *answered;
                let unanswered = if silent > 0 { format!(", {silent} unanswered") } else { String::new() };
                Some(format!("{answered}/{count} answered{unanswered}"))
            }
            session::Progress::Records { node, new, .. }
                if *passive && home.as_deref().is_none_or(|home| home == *node) =>
            {
                *done = watch.add(new);
                Some(format!("{done}/{count} seen; Ctrl-C ends"))
            }
            session::Progress::AllRecord => {
                *done = watch.start();
                None
            }
            session::Progress::Draining => Some("reading back".to_owned()),
            session::Progress::Connecting { .. }
            | session::Progress::Heard { .. }
            | session::Progress::Lost { .. }
            | session::Progress::Hello { .. }
            | session::Progress::Records { .. }
            | session::Progress::Ended { .. } => None,
        }
    }
}

pub(super) fn plural(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// The trace as people and programs see it.
fn assemble(
    args: &TraceArgs,
    cluster: &Cluster,
    resolved: Resolved,
    started: String,
    (driven, joined): (Driven, Joined),
) -> Trace {
    let Driven { evidence, nodes, warnings, interrupted } = driven;
    let early = early_end(args, evidence.probes.len(), interrupted);
    let Joined { mut exchanges, routers, warnings: doubts, smallest_mtu, smallest_mtu_at } = joined;
    if let Some(behind) = &resolved.service {
        for exchange in &mut exchanges {
            exchange.notes.extend(behind.asked.stranger_in_words(exchange));
        }
    }
    let lost_events = nodes.iter().map(lost).sum();
    let skipped = skipped(&nodes, exchanges.iter().map(|exchange| exchange.outcome));
    let nodes = nodes.into_iter().map(|node| TracedNode {
        kernel: node.hello.map(|hello| hello.about.kernel),
        complete: evidence.nodes.iter().any(|seen| seen.name == node.name && seen.complete),
        address: ends::node_addresses(&cluster.directory, &node.name).first().copied(),
        name: node.name,
    });
    let Resolved { ends, sender: _, home: _, traffic, service, notes } = resolved;
    let first = exchanges.iter().find_map(|exchange| exchange.request.hops.first());
    let service = service.map(|behind| behind.came_in(first.map(|hop| &*hop.node)));
    let source = ends.source.address;
    let probe = if args.passive { traffic.watched(source, args.one_of) } else { traffic.sent(source, args.size) };
    Trace {
        schema: "podpath.trace/v1",
        source: ends.source,
        destination: ends.destination,
        service,
        exchanges,
        routers,
        lost_events,
        warnings: [cluster.notes(), notes, early, warnings, doubts, skipped].concat(),
        context: cluster.context.clone(),
        started,
        nodes: nodes.collect(),
        smallest_mtu,
        smallest_mtu_at,
        probe,
    }
}

/// Fewer probes than asked for have an end that is known.
fn early_end(args: &TraceArgs, probes: usize, interrupted: bool) -> Vec<String> {
    if args.passive || probes >= usize::from(args.count) {
        return Vec::new();
    }
    let why = if interrupted { "the trace was interrupted" } else { "the sending session ended early" };
    vec![format!("{probes} of {} probes came to their end: {why}", args.count)]
}

/// What the kernel did not show of frees and of netfilter can only matter to an exchange that came to a bad end: otherwise silence,
/// because on a busy node there is always some. (The moment of a translation, if it is that, shows by what it did all the same.)
fn skipped(nodes: &[DrivenNode], mut outcomes: impl Iterator<Item = Outcome>) -> Vec<String> {
    if outcomes.all(|outcome| outcome == Outcome::Delivered) {
        return Vec::new();
    }
    let mut told = Vec::new();
    for DrivenNode { name, counters, .. } in nodes {
        let Counters { skipped_frees, skipped_kprobes, .. } = counters.unwrap_or_default();
        if skipped_frees > 0 {
            told.push(format!(
                "{name}: the kernel did not show up to {skipped_frees} frees of packets, mostly of other flows; why a packet was \
                 dropped may be missing for that"
            ));
        }
        if skipped_kprobes > 0 {
            told.push(format!(
                "{name}: the kernel did not show up to {skipped_kprobes} steps of netfilter, mostly of other flows; which table \
                 and chain saw a dropped packet last may be missing or out of date for that"
            ));
        }
    }
    told
}

/// Everything that a node saw and we did not get or understand.
fn lost(node: &DrivenNode) -> u64 {
    let DrivenNode { name: _, hello: _, counters, discarded, unknown } = node;
    counters.map_or(0, |counters| counters.lost()) + discarded + unknown
}

/// UTC with seconds. Days to a date as in Hinnant's "chrono-compatible low-level date algorithms": years that begin in
/// March, in eras of 400 years.
pub(super) fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let (days, time) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day) = (days / 146_097, days % 146_097);
    let year_of_era = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day_of_month = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day_of_month:02}T{:02}:{:02}:{:02}Z", time / 3600, time / 60 % 60, time % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_skipped_is_told_where_an_exchange_came_to_a_bad_end() {
        let node = |name: &str, skipped_frees, skipped_kprobes| DrivenNode {
            name: name.to_owned(),
            counters: Some(Counters { skipped_frees, skipped_kprobes, ..Counters::default() }),
            ..DrivenNode::default()
        };
        let nodes = [node("node-1", 0, 0), node("node-2", 12, 3), DrivenNode::default()];
        let told = |outcomes: &[Outcome]| skipped(&nodes, outcomes.iter().copied());
        assert_eq!(told(&[]), [""; 0]);
        assert_eq!(told(&[Outcome::Delivered; 3]), [""; 0]);
        let told = told(&[Outcome::Delivered, Outcome::Lost]);
        insta::assert_snapshot!(told.join("\n"), @"
        node-2: the kernel did not show up to 12 frees of packets, mostly of other flows; why a packet was dropped may be missing for that
        node-2: the kernel did not show up to 3 steps of netfilter, mostly of other flows; which table and chain saw a dropped packet last may be missing or out of date for that
        ");
        assert_eq!(lost(&nodes[1]), 0, "most were nobody's");
    }

    #[test]
    fn dates_are_right_at_the_edges() {
        let at = |seconds| rfc3339(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(at(0), "1970-01-01T00:00:00Z");
        assert_eq!(at(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(at(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(at(951_868_800), "2000-03-01T00:00:00Z");
        assert_eq!(at(1_735_689_599), "2024-12-31T23:59:59Z");
        assert_eq!(at(4_107_542_400), "2100-03-01T00:00:00Z");
    }
}
