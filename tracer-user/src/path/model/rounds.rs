//! Packets that go in circles.

use super::{Action, DropCause, Exchange, Hop};

impl Exchange {
    /// How each node of a routing loop routed the packet whose TTL that used up, when it came by there last; in the packet's order. None:
    /// it ended otherwise, or no interface got it twice.
    #[must_use]
    pub fn routing_loop(&self) -> Option<Vec<&Hop>> {
        let expired = |hop: &Hop| hop.detail.drop.as_ref().is_some_and(|drop| drop.cause == DropCause::TtlExpired);
        let (path, _) = self.ended_on().filter(|(_, hop)| expired(hop))?;
        let mut arrivals = path.hops.iter().enumerate().rev().filter(|(_, hop)| hop.action == Action::Received);
        let (end, last) = arrivals.next()?;
        let place = |hop: &Hop| (hop.node.clone(), hop.interface.clone());
        let (begin, _) = arrivals.find(|(_, hop)| place(hop) == place(last))?;
        let round = path.hops.get(begin..end)?;
        let routed: Vec<&Hop> = round.iter().filter(|hop| hop.action == Action::Routed).collect();
        (!routed.is_empty()).then_some(routed)
    }

    /// Notes which routes make the loop.
    pub(crate) fn note_loop(&mut self) {
        let told = |hop: &Hop| {
            let route = hop.detail.route.as_deref().unwrap_or("a route that was not read");
            format!("on {}, {route}", hop.node)
        };
        let routes: Option<Vec<String>> = self.routing_loop().map(|hops| hops.into_iter().map(told).collect());
        if let Some(routes) = routes {
            self.notes.insert(0, format!("these routes make the loop: {}", routes.join("; ")));
        }
    }
}
