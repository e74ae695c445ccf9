//! What is wrong with a trace: against the scenario, and against what holds for every trace.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::Value;
use similar::TextDiff;

use super::report::{Exchange, Hop, Trace};
use super::{Expect, Scenario};
use crate::lab::{LabInfo, LabNode};

/// How much `rtt_ns` may differ from the sender's own clock: the larger of this, ns (a node's own request to a service meets kube-proxy's
/// rules in OUTPUT between the two: up to 22 us were seen in the best of five),
const CLOCKS_DIFFER_NS: u64 = 40_000;
/// and one part in this many.
const CLOCKS_DIFFER_PART: u64 = 20;

/// The interfaces that a network namespace has, by name, with their indexes.
pub type Links = BTreeMap<String, u32>;

/// What each place of the lab really has: `ip link` was asked, not podpath.
#[derive(Debug, Clone, Default)]
pub struct Ground {
    /// By node name.
    pub nodes: BTreeMap<String, Links>,
    /// By `namespace/pod`: the node's name, and the links.
    pub pods: BTreeMap<String, (String, Links)>,
}

impl Ground {
    /// Takes in a node and its pods; `ask` runs `ip -json link` in a network namespace.
    ///
    /// # Errors
    /// `ask` fails, or what `ip` printed is no such JSON.
    pub fn add(&mut self, lab: &LabInfo, node: &LabNode, ask: impl Fn(&str) -> Result<String>) -> Result<()> {
        self.nodes.insert(node.name.clone(), links(&ask(&node.namespace)?)?);
        for pod in lab.pods.iter().filter(|pod| pod.node == node.host) {
            let place = (node.name.clone(), links(&ask(&pod.namespace)?)?);
            self.pods.insert(format!("{}/{}", pod.kubernetes_namespace, pod.name), place);
        }
        Ok(())
    }
}

/// The interfaces in what `ip -json link` printed.
fn links(json: &str) -> Result<Links> {
    let links: Vec<Value> = serde_json::from_str(json).context("reading what `ip -json link` printed")?;
    let link =
        |link: &Value| Some((link["ifname"].as_str()?.to_owned(), u32::try_from(link["ifindex"].as_u64()?).ok()?));
    Ok(links.iter().filter_map(link).collect())
}

/// Everything that is wrong; nothing, if all is well.
///
/// Upper bounds of times hold for a real machine; on one that is slower they are taken `slower` times.
pub fn problems(scenario: &Scenario, trace: &Trace, lab: &LabInfo, ground: &Ground, slower: u32) -> Vec<String> {
    let mut problems = as_expected(&scenario.expect, trace, lab);
    problems.extend(always(trace, ground));
    if let Some(median) = median(&trace.exchanges) {
        let bounds = scenario.expect.shares.iter();
        problems.extend(bounds.filter_map(|bound| Some(bound.check(&median.shares, lab, slower).err()?.to_string())));
    }
    if !scenario.trace.contains("--passive") {
        problems.extend(clocks_differ(&trace.exchanges, slower));
    }
    problems
}

/// Against the scenario.
fn as_expected(expect: &Expect, trace: &Trace, lab: &LabInfo) -> Vec<String> {
    // Exit code and text are the runner's to check, shares the caller's.
    let Expect {
        exit: _, text: _, text_with_reasons: _, text_without_reasons: _, without_reasons: _, shares: _, ..
    } = expect;
    let Expect { exchanges, outcome, failed, routers, request, reply, notes, warnings, .. } = expect;
    let mut problems = Vec::new();
    if trace.exchanges.len() != *exchanges {
        problems.push(format!("{} exchanges, expected {exchanges}", trace.exchanges.len()));
    }
    problems.extend(different("routers", routers, &trace.routers));
    problems.extend(different("warnings", warnings, &trace.warnings));
    let mut seen = Vec::new();
    for exchange in &trace.exchanges {
        let ended = |outcome: &str, failed: Option<&str>| match failed {
            Some(direction) => vec![format!("{outcome}, failed direction {direction}")],
            None => vec![outcome.to_owned()],
        };
        let line = |hop: &Hop| {
            let line = hop.line(lab);
            let listed = expect.instead.iter().find(|[instead, _]| *instead == line);
            listed.map_or(line, |[_, listed]| listed.clone())
        };
        let lines = |hops: &[Hop]| hops.iter().map(line).collect::<Vec<_>>();
        let found = [
            different(
                "outcome",
                &ended(outcome, failed.as_deref()),
                &ended(&exchange.outcome, exchange.failed_direction.as_deref()),
            ),
            different("request", request, &lines(&exchange.request.hops)),
            different("reply", reply, &lines(&exchange.reply.hops)),
            different("notes", notes, &exchange.notes),
        ];
        for problem in found.into_iter().flatten() {
            // The same in every exchange is told once.
            if !seen.contains(&problem) {
                problems.push(format!("exchange {}: {problem}", exchange.seq));
                seen.push(problem);
            }
        }
    }
    problems
}

pub(crate) fn different(what: &str, expected: &[String], got: &[String]) -> Option<String> {
    if expected == got {
        return None;
    }
    let list = |lines: &[String]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    let (expected, got) = (list(expected), list(got));
    let diff = TextDiff::from_lines(&expected, &got);
    let text = diff.unified_diff().context_radius(1000).header("expected", "got").to_string();
    // Hunk positions say nothing about lists this short.
    let text: String = text.lines().filter(|line| !line.starts_with("@@")).map(|line| format!("  {line}\n")).collect();
    Some(format!("{what} differs\n{text}"))
}

/// What holds for every trace.
fn always(trace: &Trace, ground: &Ground) -> Vec<String> {
    let mut problems = Vec::new();
    if trace.schema != "podpath.trace/v1" {
        problems.push(format!("schema {}", trace.schema));
    }
    if trace.lost_events != 0 {
        problems.push(format!("{} events lost", trace.lost_events));
    }
    let incomplete = trace.nodes.iter().filter(|node| !node.complete);
    problems.extend(incomplete.map(|node| format!("session on {} did not end well", node.name)));
    for exchange in &trace.exchanges {
        let found = [shares_add_up(exchange), times_go_on(exchange)].into_iter().flatten();
        let hops = exchange.request.hops.iter().chain(&exchange.reply.hops);
        let found = found.chain(hops.filter_map(|hop| out_of_place(hop, ground)));
        problems.extend(found.map(|problem| format!("exchange {}: {problem}", exchange.seq)));
    }
    problems
}

fn shares_add_up(exchange: &Exchange) -> Option<String> {
    let sum: u64 = exchange.shares.iter().map(|share| share.ns).sum();
    match (exchange.outcome.as_str(), exchange.rtt_ns) {
        ("delivered", None) => Some("delivered, but no rtt".to_owned()),
        (_, Some(rtt)) if rtt != sum => Some(format!("shares add up to {sum} ns, rtt is {rtt} ns")),
        _ => None,
    }
}

fn times_go_on(exchange: &Exchange) -> Option<String> {
    let hops = exchange.request.hops.iter().chain(&exchange.reply.hops);
    let times: Vec<u64> = hops.filter_map(|hop| hop.at_ns).collect();
    (!times.is_sorted()).then(|| format!("hops go back in time: {times:?}"))
}

/// A hop names an interface that its node or pod does not have, or a pod of another node.
fn out_of_place(hop: &Hop, ground: &Ground) -> Option<String> {
    let place = hop.pod.as_ref().unwrap_or(&hop.node);
    let links = match &hop.pod {
        None => ground.nodes.get(&hop.node),
        Some(pod) => ground.pods.get(pod).filter(|(node, _)| *node == hop.node).map(|(_, links)| links),
    };
    let Some(links) = links else { return Some(format!("a hop of {} in {place}, which is not there", hop.node)) };
    let interface = hop.interface.as_ref()?;
    let index = links.get(interface).copied();
    (index.is_none() || index != hop.ifindex)
        .then(|| format!("a hop at {interface}({:?}) of {place}, which has {links:?}", hop.ifindex))
}

/// Of those that were answered.
fn median(exchanges: &[Exchange]) -> Option<&Exchange> {
    let mut answered: Vec<&Exchange> = exchanges.iter().filter(|exchange| exchange.rtt_ns.is_some()).collect();
    answered.sort_by_key(|exchange| exchange.rtt_ns);
    answered.get(answered.len() / 2).copied()
}

/// The path's round trip is not that of the sender's own clock. Only sensible where podpath was the sender. Judged by the
/// exchange in which the two agree best: others may have been preempted between one clock and the other.
fn clocks_differ(exchanges: &[Exchange], slower: u32) -> Option<String> {
    // Measured elsewhere: then podpath did not send.
    let at_source = exchanges.iter().filter(|exchange| exchange.rtt_at.is_none());
    let timed = at_source.filter_map(|exchange| Some((exchange.rtt_ns?, exchange.injector_rtt_ns)));
    let timed: Vec<_> = timed.collect();
    // On a slow machine one alone is preempted as often as not.
    let part = if timed.len() == 1 && slower > 1 { 2 } else { CLOCKS_DIFFER_PART };
    let (rtt, injector) =
        timed.into_iter().min_by_key(|(rtt, injector)| injector.map_or(u64::MAX, |ns| ns.abs_diff(*rtt)))?;
    let Some(injector) = injector else { return Some("the sender measured no rtt".to_owned()) };
    let allowed = (CLOCKS_DIFFER_NS * u64::from(slower)).max(rtt / part);
    (rtt.abs_diff(injector) > allowed).then(|| {
        format!("the best exchange: rtt {rtt} ns, by the sender's clock {injector} ns: more than {allowed} apart")
    })
}

#[cfg(test)]
pub(super) mod tests {
    use serde_json::json;

    use super::*;
    use crate::lab::LabInfo;

    pub(in super::super) fn lab() -> LabInfo {
        let node = |name: &str, host: &str| json!({ "name": name, "host": host, "namespace": "", "address": "172.20.50.50", "nic": "ens5" });
        let lab = json!({
            "name": "x", "profile": "calico-bgp", "definition": "", "complete": true, "inventory": "", "identity": "",
            "nodes": [node("ip-172-20-50-50.ec2.internal", "node1"), node("ip-172-20-58-60.ec2.internal", "node2")],
            "pods": [], "wire": "", "gateway": "", "internet": "", "namespaces": [], "absent": [],
        });
        serde_json::from_value(lab).unwrap()
    }

    fn hop(pod: Option<&str>, interface: &str, action: &str, at_ns: u64, detail: Value) -> Value {
        json!({
            "node": "ip-172-20-50-50.ec2.internal", "pod": pod, "interface": interface, "ifindex": 4, "action": action,
            "ttl": 64, "at_ns": at_ns, "basis": "observed", "detail": detail,
        })
    }

    fn trace(hops: Value, ns: u64) -> Trace {
        let trace = json!({
            "schema": "podpath.trace/v1", "routers": ["172.20.50.50"], "lost_events": 0, "warnings": [],
            "nodes": [{ "name": "ip-172-20-50-50.ec2.internal", "complete": true }],
            "exchanges": [{
                "seq": 1, "outcome": "delivered", "failed_direction": null, "rtt_ns": 100, "injector_rtt_ns": 40_100,
                "request": { "hops": hops }, "reply": { "hops": [] },
                "shares": [{ "of": "unattributed", "ns": ns }], "notes": [],
            }],
        });
        serde_json::from_value(trace).unwrap()
    }

    fn scenario(request: &[&str]) -> Scenario {
        let request = request.iter().map(|line| format!("'{line}'")).collect::<Vec<_>>().join(",");
        let text = format!(
            "about = ''\nlab = ''\ntrace = ''\n[expect]\nexit = 0\nexchanges = 1\noutcome = 'delivered'\n\
             routers = ['172.20.50.50']\nrequest = [{request}]\nreply = []\ntext = []\n"
        );
        toml::from_str(&text).unwrap()
    }

    fn ground() -> Ground {
        let links = |name: &str, index| Links::from([(name.to_owned(), index)]);
        let node = "ip-172-20-50-50.ec2.internal".to_owned();
        Ground {
            nodes: [(node.clone(), links("ens5", 4))].into(),
            pods: [
                ("default/bb1".to_owned(), (node, links("eth0", 4))),
                ("default/bb2".to_owned(), ("ip-172-20-58-60.ec2.internal".to_owned(), links("eth0", 4))),
            ]
            .into(),
        }
    }

    #[test]
    fn hops_are_lines() {
        let side = |src: &str, id| json!({ "src": src, "dst": "8.8.8.8", "src_port": id, "dst_port": null });
        let nat = json!({ "nat": { "before": side("10.0.0.1", 7), "after": side("10.0.0.2", 8) } });
        let drop = json!({ "drop": { "why": "no route" }, "route": "blackhole 10.0.0.0/8" });
        let hops = json!([
            hop(Some("default/bb1"), "eth0", "sent", 0, json!({ "queue_ns": 5 })),
            hop(None, "ens5", "snat", 1, nat),
            hop(None, "ens5", "routed", 2, json!({ "route": "default dev ens5" })),
            hop(None, "ens5", "dropped", 3, drop),
        ]);
        let trace = trace(hops, 100);
        let lines: Vec<_> = trace.exchanges[0].request.hops.iter().map(|hop| hop.line(&lab())).collect();
        let expected = [
            "node1 default/bb1 eth0 sent ttl 64",
            "node1 ens5 snat ttl 64: src 10.0.0.1 -> 10.0.0.2, id changed",
            "node1 ens5 routed ttl 64: default dev ens5 (observed)",
            "node1 ens5 dropped ttl 64: no route, blackhole 10.0.0.0/8",
        ];
        assert_eq!(lines, expected);
        assert_eq!(problems(&scenario(&expected), &trace, &lab(), &ground(), 1), [""; 0]);
    }

    #[test]
    fn a_slower_machine_gets_more_time() {
        let mut trace = trace(json!([]), 100);
        trace.exchanges[0].injector_rtt_ns = Some(800_100);
        let told = |slower| problems(&scenario(&[]), &trace, &lab(), &ground(), slower);
        assert_eq!(told(19).len(), 1, "{:?}", told(19));
        assert_eq!(told(20), [""; 0]);
    }

    #[test]
    fn a_difference_is_shown_as_one() {
        let trace = trace(json!([hop(Some("default/bb1"), "eth0", "sent", 0, json!({}))]), 100);
        let told = problems(&scenario(&["node1 default/bb1 eth0 sent ttl 63"]), &trace, &lab(), &ground(), 1);
        let expected = "exchange 1: request differs\n  --- expected\n  +++ got\n  \
                        -node1 default/bb1 eth0 sent ttl 63\n  +node1 default/bb1 eth0 sent ttl 64\n";
        assert_eq!(told, [expected]);
    }

    #[test]
    fn what_always_holds_is_checked_unasked() {
        let hops = json!([
            hop(Some("default/bb2"), "eth0", "sent", 9, json!({})),
            hop(None, "ens6", "received", 1, json!({})),
        ]);
        let mut trace = trace(hops, 99);
        trace.lost_events = 3;
        trace.nodes[0].complete = false;
        trace.exchanges[0].injector_rtt_ns = Some(40_101);
        let lines: Vec<_> = trace.exchanges[0].request.hops.iter().map(|hop| hop.line(&lab())).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let told = problems(&scenario(&lines), &trace, &lab(), &ground(), 1);
        let expected = [
            "3 events lost",
            "session on ip-172-20-50-50.ec2.internal did not end well",
            "exchange 1: shares add up to 99 ns, rtt is 100 ns",
            "exchange 1: hops go back in time: [9, 1]",
            "exchange 1: a hop of ip-172-20-50-50.ec2.internal in default/bb2, which is not there",
            "exchange 1: a hop at ens6(Some(4)) of ip-172-20-50-50.ec2.internal, which has {\"ens5\": 4}",
            "the best exchange: rtt 100 ns, by the sender's clock 40101 ns: more than 40000 apart",
        ];
        assert_eq!(told, expected);
    }
}
