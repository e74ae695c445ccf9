//! What must come out of a trace, computed from the configuration alone: the lab's plan and the planted faults. Linux'
//! forwarding is modelled here a second time; nothing of podpath is used.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};

use super::network::{Ask, Network, Probe, Target};
use packet::{Packet, Protocol};
use walk::{End, Walk};
use world::{Role, World};

mod fib;
mod filter;
mod nat;
mod packet;
mod service;
mod walk;
mod world;

/// An exchange, as scenario files write one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) outcome: String,
    pub(crate) failed: Option<String>,
    /// None: a router's errors do not come back, so its name cannot be seen.
    pub(crate) routers: Option<Vec<String>>,
    pub(crate) request: Vec<String>,
    pub(crate) reply: Vec<String>,
    /// The rule that dropped it: `filter/FORWARD rule 1`.
    pub(crate) rule: Option<String>,
    /// Lines that may stand, one after another, in place of one of the above.
    pub(crate) instead: Vec<(Vec<String>, String)>,
}

/// Bytes of the headers in front of what a probe of each kind carries by default, and of that.
const ECHO: u32 = 84;
const SYN: u32 = 60;
const DATAGRAM: u32 = 84;

/// What one of the asks may show in a network, by the endpoint that a service leads to; nothing: its source cannot even send it.
pub(crate) fn expect(network: &Network, ask: &Ask) -> Result<Vec<Expected>> {
    let mut world = World::new(&network.profile, &network.plants)?;
    let mut all = Vec::new();
    for choice in 0..world.portals.choices() {
        world.portals.choice = choice;
        let mut walk = Walk::new(&world);
        let expected = walked(&world, &mut walk, ask)?;
        let expected = expected.map(|expected| Expected { instead: walk.instead, ..expected });
        let expected =
            expected.map(|expected| if ask.is_of_unknown_age() { of_unknown_age(expected) } else { expected });
        all.extend(expected.filter(|expected| !all.contains(expected)));
    }
    Ok(all)
}

/// Of a datagram that somebody else sends, nothing says that it is its connection's first.
fn of_unknown_age(mut expected: Expected) -> Expected {
    for line in
        expected.request.iter_mut().filter(|line| [" dnat ttl ", " snat ttl "].iter().any(|nat| line.contains(nat)))
    {
        line.push_str(", connection may be older than the trace: rule not known");
    }
    expected
}

fn walked<'a>(world: &'a World, walk: &mut Walk<'a>, ask: &Ask) -> Result<Option<Expected>> {
    let from = world.host(&ask.from)?;
    let dst = address(world, &ask.to)?;
    let route = fib::lookup(&from.routes, dst).with_context(|| format!("{} has no route to {dst}", ask.from))?;
    let src = from.source(route).with_context(|| format!("{} has no address", ask.from))?;
    if route.kind != fib::Kind::Unicast {
        return Ok(None);
    }
    let (protocol, size) = match ask.probe {
        Probe::Ping => (Protocol::EchoRequest, ECHO),
        Probe::Tcp => (Protocol::Tcp, SYN),
        Probe::Udp => (Protocol::Udp, DATAGRAM),
    };
    let size = ask.size.map_or(size, |payload| payload + 28);
    let port = ask.port;
    let request = Packet {
        src,
        dst,
        port,
        id: 1,
        ttl: from.default_ttl()?,
        protocol,
        size,
        about: None,
        outer: None,
        marked: false,
    };
    let mut expected = Expected::default();
    let end = walk.send(&ask.from, request)?;
    let mut routers: Vec<String> = walk.routers.drain(..).map(|address| address.to_string()).collect();
    expected.routers = Some(routers.clone()).filter(|_| !walk.unnamed);
    expected.request = std::mem::take(&mut walk.lines);
    if ask.probe == Probe::Udp && matches!(end, End::Delivered(..)) {
        // Nobody takes it: that is a drop.
        expected.request.pop();
    }
    let fail = |expected: Expected, outcome: &str, failed: &str| Expected {
        outcome: outcome.to_owned(),
        failed: Some(failed.to_owned()),
        ..expected
    };
    let (there, arrived) = match end {
        End::Delivered(host, link, packet) if ask.probe == Probe::Udp => {
            let answered = walk.refuses(&host, &link, packet, &ask.from)?;
            expected.request.append(&mut walk.lines);
            if answered {
                routers.push(dst.to_string());
                expected.routers = Some(routers).filter(|_| !walk.unnamed);
            }
            return Ok(Some(fail(expected, if answered { "rejected" } else { "dropped" }, "request")));
        }
        End::Delivered(host, _, packet) => (host, packet),
        End::Dropped(dropped) => {
            expected.rule = dropped.rule;
            // An answer that did not come back is none, where the drop itself was seen.
            let fate = dropped.answer.map_or(Ok((false, false)), |answer| walk.fate(*answer, &ask.from))?;
            let answered = if dropped.traced { fate.0 } else { fate.1 };
            if answered && !dropped.traced {
                // Out there it was lost for a reason that is told.
                expected.request.retain(|line| !line.contains(" lost ttl "));
            }
            let outcome = match (answered, dropped.traced) {
                (true, _) => "rejected",
                (false, true) => "dropped",
                (false, false) => "lost",
            };
            return Ok(Some(fail(expected, outcome, "request")));
        }
        End::Lost | End::Beyond => return Ok(Some(fail(expected, "lost", "request"))),
    };
    let host = world.host(&there)?;
    let reply = Packet {
        src: arrived.dst,
        dst: arrived.src,
        port: 0,
        id: arrived.id,
        ttl: host.default_ttl()?,
        protocol: if ask.probe == Probe::Tcp { Protocol::Reset } else { Protocol::EchoReply },
        size: arrived.size,
        about: None,
        outer: None,
        marked: false,
    };
    let end = walk.send(&there, reply)?;
    expected.reply = walk.lines.drain(..).collect();
    let unseen = host.role == Role::Outside && expected.reply.iter().all(|line| line.contains(" lost ttl "));
    if unseen && !matches!(end, End::Delivered(..)) {
        // Nobody sees that somebody out there answered.
        expected.request.append(&mut expected.reply);
        return Ok(Some(fail(expected, "lost", "request")));
    }
    // A rule of its maker's refused it, or it waits for a neighbour.
    let of_maker = expected.reply.iter().all(|line| line.contains(" dropped: "));
    if host.role != Role::Outside && !matches!(end, End::Delivered(..)) && of_maker {
        let refused = std::mem::take(&mut expected.reply);
        let Some(delivered) = expected.request.pop() else { return Ok(None) };
        if ask.probe == Probe::Tcp {
            // What is seen is that the SYN was not taken.
            let why = format!(": nothing listens on port {}", arrived.port);
            expected.request.push(delivered.replace(" delivered ", " dropped ") + &why);
            return Ok(Some(fail(expected, "dropped", "request")));
        }
        // Nothing says that the request was taken.
        expected.request.push(delivered + " (inferred)");
        if let End::Dropped(dropped) = end
            && dropped.rule.is_some()
        {
            (expected.reply, expected.rule) = (refused, dropped.rule);
            return Ok(Some(fail(expected, "dropped", "reply")));
        }
        return Ok(Some(fail(expected, "lost", "reply")));
    }
    Ok(Some(match end {
        End::Delivered(host, ..) if host == ask.from => {
            routers.push(dst.to_string());
            expected.routers = Some(routers).filter(|_| !walk.unnamed);
            expected.outcome = if ask.probe == Probe::Tcp { "rejected" } else { "delivered" }.to_owned();
            expected
        }
        End::Delivered(..) | End::Lost | End::Beyond => fail(expected, "lost", "reply"),
        End::Dropped(dropped) => {
            expected.rule = dropped.rule;
            fail(expected, if dropped.traced { "dropped" } else { "lost" }, "reply")
        }
    }))
}

fn address(world: &World, target: &Target) -> Result<Ipv4Addr> {
    match target {
        Target::Address(address) => Ok(*address),
        Target::Host(name) => {
            let host = world.host(name)?;
            let link = host.link(host.nic())?;
            Ok(link.addresses.first().with_context(|| format!("{name} has no address"))?.addr())
        }
    }
}

#[cfg(test)]
mod tests;
