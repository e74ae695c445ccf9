//! The model against the scenarios, whose hops were checked by hand: where it knows all that a scenario has, it must say the
//! same.

use super::*;
use crate::lab::profile::{Profile, TunnelKind};
use crate::scenario::{self, Scenario};

/// Their traces end before the kernel gives up; the model knows no time.
const TOO_SOON: [&str; 2] = ["a-gateway-silent", "a-unresolved-soon"];

/// Scenarios that it must know, at the least.
const KNOWN: usize = 60;

/// A scenario's trace as an ask; None: it asks for what networks from seeds have not.
fn ask(scenario: &Scenario, profile: &Profile) -> Option<Ask> {
    let mut words = scenario.trace.split(' ');
    let host = |word: &str| {
        let name = word.rsplit('/').next()?;
        let node = profile.nodes.iter().find(|node| node.name == name);
        let pods = profile.nodes.iter().flat_map(|node| &node.pods);
        node.map(|node| node.host.clone()).or(pods.into_iter().find(|pod| pod.name == name).map(|pod| pod.name.clone()))
    };
    let from = host(words.next()?)?;
    let to = words.next()?;
    let to = match to.parse() {
        Ok(address) if Ipv4Addr::is_loopback(&address) => return None,
        Ok(address) => Target::Address(address),
        Err(_) => Target::Host(host(to)?),
    };
    let mut ask = Ask { from, to, probe: Probe::Ping, port: 8081, size: None };
    while let Some(option) = words.next() {
        match option {
            "-c" | "-i" | "--timeout" => drop(words.next()),
            "--size" => ask.size = words.next()?.parse().ok(),
            // Of the scenarios' ports only this one is closed.
            "--tcp" if words.next() == Some("8081") => ask.probe = Probe::Tcp,
            "--udp" if words.next() == Some("8081") => ask.probe = Probe::Udp,
            "--trace-rules" => {}
            _ => return None,
        }
    }
    Some(ask)
}

#[test]
fn it_says_what_was_checked_by_hand() {
    let (mut known, mut wrong) = (Vec::new(), Vec::new());
    for (name, scenario) in scenario::load(&crate::workspace_root().join("scenarios")).unwrap() {
        let profile = Profile::named(&scenario.lab).unwrap();
        let wireguard = profile.tunnel.as_ref().is_some_and(|t| matches!(t.kind, TunnelKind::Wireguard { .. }));
        let Some(ask) = ask(&scenario, &profile).filter(|_| !wireguard && profile.ipv6.is_none()) else { continue };
        let network = Network { seed: 0, profile, plants: scenario.plants.clone(), asks: vec![ask.clone()] };
        if TOO_SOON.contains(&name.as_str()) {
            continue;
        }
        let Ok(expected) = expect(&network, &ask) else { continue };
        let [expected] = &expected[..] else { continue };
        let scenario::Expect { outcome, failed, routers, request, reply, .. } = scenario.expect;
        let routers = expected.routers.is_some().then_some(routers);
        let checked = Expected {
            outcome,
            failed,
            routers,
            request,
            reply,
            rule: expected.rule.clone(),
            instead: expected.instead.clone(),
        };
        if *expected != checked {
            wrong.push(format!("{name}: by hand {checked:#?}\nby the model {expected:#?}"));
        }
        known.push(name);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(known.len() >= KNOWN, "only {}: {known:?}", known.len());
}
