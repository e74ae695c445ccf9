//! `cargo xtask truth`: networks from seeds, each built as a lab and traced by the real binaries, and what must come out
//! computed by a model of Linux' forwarding ([`model`]) that knows the configuration and nothing of podpath.
//!
//! A disagreement is a bug in one of the two. Each is told with the seed that makes the network again.
//!
//! On Debian's kernels: `cargo xtask vm --kernel 5.10,6.12 --run 'xtask truth --count 10 --in-vm'`.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::lab::plant::translate_bridged;
use crate::lab::profile::{Cni, INTERNET};
use crate::lab::{self, LabInfo};
use crate::scenario::{check, report};
use crate::{build, interrupt, packages, proc};
use model::Expected;
use network::{Ask, Network};

mod generate;
mod model;
mod network;

/// The lab's name: one at a time.
const LAB: &str = "truth";
/// What it is called when it is to be kept: the next run's has the other name.
const KEPT: &str = "truth-kept";
const TRACE_LIMIT: Duration = Duration::from_secs(60);
/// How much longer all may take in a VM without a processor of its own.
const SLOWER: u32 = 10;

/// What is asked for.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// The first network's seed; the next ones have the next numbers
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many networks
    #[arg(long, default_value_t = 25)]
    count: u64,
    /// Leave the lab of a single network up, with its faults, and say what was expected
    #[arg(long)]
    keep: bool,
    /// Among the networks some with IPIP tunnels, which not every kernel can make; then a seed's network is another one
    #[arg(long)]
    ipip: bool,
    /// Inside of `cargo xtask vm --run`: podpath lies beside this program, all takes longer, and there is IPIP
    #[arg(long)]
    in_vm: bool,
}

/// Where the networks are.
#[derive(Debug, Clone)]
pub struct Place {
    /// podpath's program.
    pub podpath: PathBuf,
    /// This kernel can make IPIP tunnels.
    pub ipip: bool,
    /// All takes longer.
    pub slow: bool,
}

/// What came of one network.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Traces.
    pub traces: usize,
    /// Those in which podpath said that it does not know.
    pub unknown: usize,
    /// Those that say something else than the model.
    pub wrong: usize,
}

/// Builds podpath, then networks; prints what disagrees, and the sum.
///
/// # Errors
/// Something could not be built or set up, or we were interrupted; nothing of a lab stays but with `--keep`.
pub fn run(options: &Options) -> Result<ExitCode> {
    packages::need_root("the networks", "cargo xtask truth")?;
    packages::ensure(packages::LAB)?;
    ensure!(!options.keep || options.count == 1, "--keep leaves one lab: say --count 1");
    let podpath = match options.in_vm {
        true => std::env::current_exe().context("finding the own program")?.with_file_name("podpath"),
        false => {
            build::kernel_object()?;
            build::podpath()?
        }
    };
    let place = Place { podpath, ipip: options.ipip || options.in_vm, slow: options.in_vm };

    let mut sum = Tally::default();
    let mut networks_wrong = 0;
    for seed in options.seed..options.seed + options.count {
        if interrupt::received().is_some() {
            bail!("interrupted");
        }
        let (tally, told) = match one(seed, &place, options.keep) {
            Ok(done) => done,
            Err(error) => (Tally { traces: 0, unknown: 0, wrong: 1 }, format!("\n{error:#}\n")),
        };
        print!("{told}");
        let done = seed - options.seed + 1;
        if done.is_multiple_of(25) && done < options.count {
            proc::say(&format!("truth: {done} of {} networks done", options.count));
        }
        sum = Tally {
            traces: sum.traces + tally.traces,
            unknown: sum.unknown + tally.unknown,
            wrong: sum.wrong + tally.wrong,
        };
        networks_wrong += usize::from(tally.wrong > 0);
    }
    println!(
        "{} networks, {} traces: {} disagree (in {networks_wrong} networks), {} unknown and said so",
        options.count, sum.traces, sum.wrong, sum.unknown
    );
    Ok(if sum.wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the network of a seed, traces in it with that podpath, and compares. The text tells what disagrees.
///
/// # Errors
/// The lab cannot be built, or the model does not know something in it. The lab is down again, unless it is to be kept.
pub fn one(seed: u64, place: &Place, keep: bool) -> Result<(Tally, String)> {
    let network = generate::network(seed, place.ipip);
    let name = if keep { KEPT } else { LAB };
    let _turn = lab::turn()?;
    let result = (|| {
        network.profile.check()?;
        let info = lab::up_as(name, &format!("of seed {seed}"), &network.profile)?;
        traced(&network, &info, place, keep)
    })();
    let down = if keep { Ok(()) } else { lab::down(name) };
    let result = result.with_context(|| format!("the network of seed {seed}"))?;
    down?;
    Ok(result)
}

fn traced(network: &Network, info: &LabInfo, place: &Place, keep: bool) -> Result<(Tally, String)> {
    if let Cni::Flannel { .. } = network.profile.cni {
        translate_bridged(info)?;
    }
    let planted = network.plants.iter().map(|plant| plant.plant_in(info, &network.profile));
    let planted = planted.collect::<Result<Vec<_>>>()?;
    let (mut tally, mut told) = (Tally::default(), String::new());
    for ask in &network.asks {
        let expected = match model::expect(network, ask) {
            Ok(expected) => expected,
            Err(error) => {
                tally.wrong += 1;
                let arguments = ask.arguments(info)?;
                let _ = writeln!(told, "\nseed {}: podpath trace {arguments}\nthe model: {error:#}", network.seed);
                continue;
            }
        };
        let Some(first) = expected.first() else { continue };
        let (arguments, trace) = trace(info, place, ask, first)?;
        tally.traces += 1;
        // Which endpoint of a service it was is by chance.
        let problems = expected.iter().map(|expected| compare(info, expected, &trace)).min_by_key(Vec::len);
        let problems = problems.unwrap_or_default();
        tally.unknown += usize::from(problems.is_empty() && trace.exchanges.iter().any(unknown));
        if !problems.is_empty() {
            tally.wrong += 1;
            let _ = writeln!(told, "\nseed {}: podpath trace {arguments}\n{}", network.seed, problems.join("\n"));
        } else if keep {
            println!("as expected: podpath trace {arguments}\n{expected:#?}");
        }
    }
    if tally.wrong > 0 {
        let _ = writeln!(told, "{}", describe(network));
    }
    if keep {
        println!("podpath trace ... --inventory {}", info.inventory.display());
        planted.into_iter().for_each(lab::plant::Planted::keep);
    } else {
        // What was planted last goes first. The lab itself goes next, so what cannot be taken out does not matter.
        planted.into_iter().rev().for_each(|planted| drop(planted.remove()));
    }
    Ok((tally, told))
}

/// What a person needs to see of it.
fn describe(network: &Network) -> String {
    let profile = &network.profile;
    let mut text = format!(
        "  seed {}: {:?}, {} nodes, nic {} mtu {}, pool {}",
        network.seed,
        profile.cni,
        profile.nodes.len(),
        profile.nic,
        profile.nic_mtu,
        profile.pool
    );
    if let Some(tunnel) = &profile.tunnel {
        let _ = write!(text, ", {} {:?}", tunnel.name, tunnel.reach);
    }
    for node in &profile.nodes {
        let _ = write!(text, "\n    {} {} {} block {}", node.host, node.name, node.address, node.block());
        for pod in &node.pods {
            let _ =
                write!(text, "\n      {}/{} {} {}", pod.namespace, pod.name, pod.address, profile.host_interface(pod));
        }
    }
    for plant in &network.plants {
        let _ = write!(text, "\n    planted {plant:?}");
    }
    text
}

fn trace(info: &LabInfo, place: &Place, ask: &Ask, expected: &Expected) -> Result<(String, report::Trace)> {
    let arguments = ask.arguments(info)?;
    let client = ask.traffic(info)?.map(|traffic| Client::start(info, place, &traffic)).transpose()?;
    // The kernel limits the rate of its ICMP errors, and waits three seconds for a neighbour.
    let pace = match expected.outcome.as_str() {
        // It is watched.
        _ if client.is_some() => "",
        "delivered" => " -c 2 -i 0.2",
        _ if expected.reply.last().or(expected.request.last()).is_some_and(|line| {
            ["no answer to ARP", "no carrier", "is administratively down"].iter().any(|why| line.contains(why))
        }) =>
        {
            " -c 1 --timeout 5"
        }
        _ if place.slow => " -c 1 --timeout 3",
        _ => " -c 1 --timeout 0.7",
    };
    let saved = info.inventory.with_file_name("trace.json");
    let mut command = Command::new(&place.podpath);
    command.arg("trace").args((arguments.clone() + pace).split(' '));
    command.arg("--inventory").arg(&info.inventory).arg("--save").arg(&saved);
    if place.slow {
        command.env("PODPATH_READY_WITHIN", "180");
    }
    let output = proc::collected(&mut command, TRACE_LIMIT * if place.slow { SLOWER } else { 1 })?;
    let json = fs::read_to_string(&saved).with_context(|| format!("podpath trace {arguments}\n{}", output.stderr))?;
    fs::remove_file(&saved).context("removing the saved trace")?;
    Ok((arguments, serde_json::from_str(&json).context("reading podpath's JSON")?))
}

/// A client out there; ends when dropped.
struct Client(Child);

impl Client {
    fn start(info: &LabInfo, place: &Place, traffic: &[String]) -> Result<Client> {
        lab::inside(info.host(INTERNET)?, || {
            let mut command = Command::new(place.podpath.with_file_name("xtask"));
            command.args(traffic).stdin(Stdio::null()).stdout(Stdio::null());
            command.spawn().map(Client).context("starting a client")
        })
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        // One that is gone by now is what is wanted.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What podpath says otherwise than the model, for each exchange once.
fn compare(info: &LabInfo, expected: &Expected, trace: &report::Trace) -> Vec<String> {
    let mut problems = Vec::new();
    if trace.lost_events > 0 {
        problems.push(format!("{} events lost", trace.lost_events));
    }
    if trace.exchanges.is_empty() {
        problems.push("no exchange".to_owned());
    }
    for exchange in &trace.exchanges {
        let end =
            |outcome: &str, failed: &Option<String>| vec![format!("{outcome} {}", failed.as_deref().unwrap_or("-"))];
        let last = exchange.reply.hops.last().or(exchange.request.hops.last());
        let drop = last.and_then(|hop| hop.detail.drop.as_ref());
        let named: Vec<String> = drop.iter().flat_map(|drop| &drop.rules).map(name_of).collect();
        let known = drop.is_some_and(|drop| drop.rule_known);
        // One of several, or perhaps that one: podpath says so, and it is among them.
        let open = !known && expected.rule.as_ref().is_some_and(|rule| named.contains(rule));
        let line = |hop: &report::Hop| {
            let line = hop.line(info);
            let mut all = expected.request.iter().chain(&expected.reply);
            let same = |expected: &&String| open && unnamed(expected) == line;
            all.find(same).cloned().unwrap_or(line)
        };
        let lines = |path: &report::Path| -> Vec<String> {
            let mut lines = path.hops.iter().map(line).collect();
            expected.instead.iter().for_each(|(seen, expected)| put_for(&mut lines, seen, expected));
            lines
        };
        let rule = if open { expected.rule.iter().cloned().collect() } else { named };
        let found = [
            check::different(
                "outcome",
                &end(&expected.outcome, &expected.failed),
                &end(&exchange.outcome, &exchange.failed_direction),
            ),
            check::different("request", &expected.request, &lines(&exchange.request)),
            check::different("reply", &expected.reply, &lines(&exchange.reply)),
            check::different("rule", expected.rule.as_slice(), &rule),
        ];
        problems.extend(found.into_iter().flatten());
    }
    let routers = expected.routers.iter();
    problems.extend(routers.filter_map(|routers| check::different("routers", routers, &trace.routers)));
    problems.dedup();
    problems
}

/// Puts one line in the place of these, wherever they follow one another.
fn put_for(lines: &mut Vec<String>, seen: &[String], one: &str) {
    while let Some(at) = lines.windows(seen.len()).position(|lines| lines == seen) {
        lines.splice(at..at + seen.len(), [one.to_owned()]);
    }
}

/// `filter/FORWARD rule 1`.
fn name_of(rule: &report::Rule) -> String {
    let place = rule.position.map_or("policy".to_owned(), |position| format!("rule {position}"));
    format!("{}/{} {place}", rule.table, rule.chain)
}

/// A hop that dropped, where it is not known which of several rules did.
fn unnamed(line: &str) -> String {
    match line.split_once(": ") {
        Some((drop, _)) if drop.contains(" dropped ttl ") => format!("{drop}: netfilter rule"),
        Some((drop, _)) if drop.ends_with(" dropped") => format!("{drop}: netfilter rule (inferred)"),
        _ => line.to_owned(),
    }
}

/// Whether podpath said that it does not know something about it.
fn unknown(exchange: &report::Exchange) -> bool {
    let hops = exchange.request.hops.iter().chain(&exchange.reply.hops);
    let open =
        |hop: &report::Hop| hop.detail.drop.as_ref().is_some_and(|drop| !drop.rules.is_empty() && !drop.rule_known);
    exchange.outcome == "incomplete" || hops.into_iter().any(open)
}

#[cfg(test)]
mod tests {
    use super::put_for;

    #[test]
    fn lines_that_follow_one_another_are_one() {
        let mut lines = ["a", "b", "a", "c", "b"].map(str::to_owned).to_vec();
        put_for(&mut lines, &["a".to_owned(), "c".to_owned()], "x");
        put_for(&mut lines, &["b".to_owned()], "y");
        assert_eq!(lines, ["a", "y", "x", "y"]);
    }
}
