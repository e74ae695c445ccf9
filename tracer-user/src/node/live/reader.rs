//! The node as a session reads it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::{AsFd, BorrowedFd},
    sync::atomic::{AtomicBool, Ordering},
};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::{
    conntrack,
    error::{Error, Failure},
    facts::{ConntrackEntry, Flow, Namespace, Neighbour, NodeFacts, RouteAnswer, RouteQuestion},
    neighbours,
    netlink::Netlink,
    netns::NetNs,
    routes::{self, Place, Switches},
    settings,
    survey::{Survey, survey},
};

/// This node: its own network namespace and those of its pods, held open.
///
/// Nothing on the node is changed by it, except that the kernel numbers the namespaces at the far ends of this
/// node's links when links are listed, as `ip link` makes it do too. No call moves the caller's thread into another
/// namespace; calls block for as long as the kernel takes to answer, mostly well under a millisecond.
pub struct Node {
    seen: Survey,
    /// A change was heard of: said once by the kernel, kept here.
    changed: AtomicBool,
}

/// The namespace that has an address.
#[derive(Clone, Copy, Debug)]
pub struct Holder<'a> {
    /// Inode of the namespace.
    pub netns: u32,
    /// The namespace, for `setns`.
    pub fd: BorrowedFd<'a>,
}

impl Node {
    /// Reads the node whose own network namespace is that of the **calling thread**.
    ///
    /// Candidates are the namespaces of all processes in `/proc` and all in `/run/netns`; `scope.rs` says which of
    /// them are pods. A namespace that vanishes meanwhile or cannot be read is left out; the latter is in
    /// [`Self::notes`].
    ///
    /// # Errors
    /// If this node's own namespace cannot be read, or namespaces cannot be listed or entered at all.
    pub fn survey() -> Result<Self, Error> {
        Ok(Self { seen: surveyed(&NetNs::own()?)?, changed: AtomicBool::new(false) })
    }

    /// Surveys again, and returns the inodes of the namespaces that came into scope.
    ///
    /// No route change is missed by it: the new subscriptions are made before the old ones are read a last time.
    ///
    /// # Errors
    /// As [`Self::survey`]; the node is then as it was.
    pub fn refresh(&mut self) -> Result<Vec<u32>, Error> {
        let seen = surveyed(&self.seen.members[0].netns)?;
        self.routes_changed();
        let before = self.scope();
        self.seen = seen;
        Ok(self.scope().into_iter().filter(|inode| !before.contains(inode)).collect())
    }

    /// What could not be read in the last survey: one entry per namespace left out for another reason than that it
    /// is no pod of this node.
    pub fn notes(&self) -> &[Error] {
        &self.seen.notes
    }

    /// The namespaces in scope, own first.
    pub fn namespaces(&self) -> &[Namespace] {
        &self.seen.namespaces
    }

    /// Inodes of the namespaces in scope, own first.
    pub fn scope(&self) -> Vec<u32> {
        self.namespaces().iter().map(|namespace| namespace.inode).collect()
    }

    /// The namespace in scope that has `address` as its own, this node's own before pods'.
    pub fn holder_of(&self, address: IpAddr) -> Option<Holder<'_>> {
        let has = |namespace: &Namespace| {
            namespace.links.iter().flat_map(|link| &link.addresses).any(|own| own.addr() == address)
        };
        let index = self.namespaces().iter().position(has)?;
        let netns = &self.seen.members[index].netns;
        Some(Holder { netns: netns.inode, fd: netns.as_fd() })
    }

    /// The address that the namespace of `address` would send to `dst` from; None: no such namespace, or no way there.
    pub fn source_towards(&self, address: IpAddr, dst: IpAddr) -> Option<IpAddr> {
        let netns = self.holder_of(address)?.netns;
        let (entered, _) = self.member(netns).ok()?;
        let asked = entered.within(|| {
            Netlink::open(NETLINK_ROUTE)
                .and_then(|mut netlink| routes::preferred_source(&mut netlink, dst))
                .map_err(|failure| failure.during("ask for a route", netns))
        });
        // Without a way there the probe itself will say so.
        asked.ok().flatten()
    }

    /// Did a route or rule of a namespace in scope change since [`Self::survey`]?
    pub fn routes_changed(&self) -> bool {
        // All of them: each call empties one queue.
        let heard = self.seen.members.iter().filter(|member| member.watch.heard()).count() > 0;
        self.changed.fetch_or(heard, Ordering::Relaxed) || heard
    }

    /// What the routes of the questions' namespaces say now, in the order of the questions.
    ///
    /// # Errors
    /// If a question names a namespace out of scope, or the kernel does not answer.
    pub fn answer(&self, questions: &[RouteQuestion]) -> Result<Vec<RouteAnswer>, Error> {
        let mut answers = vec![None; questions.len()];
        for (netns, group) in grouped(questions, |question| question.netns) {
            let told = self.answer_in(netns, &group)?;
            for ((index, _), answer) in group.into_iter().zip(told) {
                answers[index] = Some(answer);
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn answer_in(&self, netns: u32, questions: &[(usize, &RouteQuestion)]) -> Result<Vec<RouteAnswer>, Error> {
        let (entered, namespace) = self.member(netns)?;
        entered.within(|| {
            let fail = |failure: Failure| failure.during("look up a route", netns);
            let links = &namespace.links;
            let mut place = Place {
                netlink: Netlink::open(NETLINK_ROUTE).map_err(fail)?,
                links,
                names: links.iter().map(|link| (link.ifindex, link.name.clone())).collect(),
                switches: Switches::read(),
            };
            questions.iter().map(|(_, question)| place.answer(question).map_err(fail)).collect()
        })
    }

    /// The neighbour entries of the next hops of `answers`, each once; next hops without entry are left out.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn neighbours(&self, answers: &[RouteAnswer]) -> Result<Vec<Neighbour>, Error> {
        let mut found = Vec::new();
        for (netns, group) in grouped(answers, |answer| answer.question.netns) {
            let mut hops: Vec<_> = group.iter().filter_map(|(_, answer)| neighbours::next_hop(answer)).collect();
            hops.sort_unstable();
            hops.dedup();
            let fail = |failure: Failure| failure.during("look up a neighbour", netns);
            found.extend(self.member(netns)?.0.within(|| {
                let mut netlink = Netlink::open(NETLINK_ROUTE).map_err(fail)?;
                let entries = hops
                    .iter()
                    .map(|(ifindex, address)| neighbours::get(&mut netlink, netns, *ifindex, *address).map_err(fail));
                entries.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
            })?);
        }
        Ok(found)
    }

    /// The conntrack entries that `flows` belong to, each once. Each flow is looked up by itself; no table is listed.
    /// Zones other than 0 are not looked at. A kernel that has ctnetlink as a module loads it on the first question.
    ///
    /// # Errors
    /// As [`Self::answer`].
    pub fn conntrack(&self, flows: &[Flow]) -> Result<Vec<ConntrackEntry>, Error> {
        let mut found: Vec<ConntrackEntry> = Vec::new();
        for (netns, group) in grouped(flows, |flow| flow.netns) {
            let fail = |failure: Failure| failure.during("look up a conntrack entry", netns);
            let entries = self.member(netns)?.0.within(|| {
                let mut netlink = Netlink::open(NETLINK_NETFILTER).map_err(fail)?;
                let entries = group.iter().map(|(_, flow)| conntrack::get(&mut netlink, flow).map_err(fail));
                entries.filter_map(Result::transpose).collect::<Result<Vec<_>, _>>()
            })?;
            for entry in entries {
                let same = |other: &ConntrackEntry| {
                    (other.netns, other.protocol, other.original) == (entry.netns, entry.protocol, entry.original)
                };
                if !found.iter().any(same) {
                    found.push(entry);
                }
            }
        }
        Ok(found)
    }

    /// Everything a session tells about its node, and what could not be found out, namespace by namespace.
    pub fn facts(&self, questions: &[RouteQuestion], flows: &[Flow]) -> (NodeFacts, Vec<Error>) {
        let mut notes = Vec::new();
        let mut facts = NodeFacts { namespaces: self.namespaces().to_vec(), ..NodeFacts::default() };
        for (_, group) in grouped(questions, |question| question.netns) {
            let group: Vec<RouteQuestion> = group.into_iter().map(|(_, question)| question.clone()).collect();
            let answers = self.answer(&group).unwrap_or_else(|error| {
                notes.push(error);
                Vec::new()
            });
            match self.neighbours(&answers) {
                Ok(neighbours) => facts.neighbours.extend(neighbours),
                Err(error) => notes.push(error),
            }
            facts.routes.extend(answers);
        }
        for (_, group) in grouped(flows, |flow| flow.netns) {
            let group: Vec<Flow> = group.into_iter().map(|(_, flow)| flow.clone()).collect();
            match self.conntrack(&group) {
                Ok(entries) => facts.conntrack.extend(entries),
                Err(error) => {
                    let refusal = error.is_refusal();
                    notes.push(error);
                    // It would be the same of every pod.
                    if refusal {
                        break;
                    }
                }
            }
        }
        // Last, so that a change while the questions were answered counts.
        facts.routes_changed = self.routes_changed();
        (facts, notes)
    }

    /// Fills in the settings of those of the `namespaces` that packets met, for the links (namespace, interface index) that
    /// they met.
    pub fn read_settings(&self, namespaces: &mut [Namespace], met: &BTreeSet<(u32, u32)>) -> Vec<Error> {
        let mut notes = Vec::new();
        for namespace in namespaces {
            let Namespace { inode, links, settings, .. } = namespace;
            let mut names = links
                .iter()
                .filter(|link| met.contains(&(*inode, link.ifindex)))
                .map(|link| link.name.as_str())
                .peekable();
            if names.peek().is_none() {
                continue;
            }
            match self.member(*inode).and_then(|(entered, _)| entered.within(|| Ok(settings::read(names)))) {
                Ok(read) => *settings = read,
                Err(error) => notes.push(error),
            }
        }
        notes
    }

    pub(super) fn member(&self, netns: u32) -> Result<(&NetNs, &Namespace), Error> {
        let mut all = self.seen.members.iter().map(|member| &member.netns).zip(self.namespaces());
        all.find(|(_, namespace)| namespace.inode == netns).ok_or(Error::OutOfScope { netns })
    }
}

/// The survey enters other namespaces, so it has a thread of its own, which starts in `own`.
fn surveyed(own: &NetNs) -> Result<Survey, Error> {
    own.within(|| survey(NetNs::own()?))
}

/// Items with their places in the list, by namespace.
fn grouped<T>(items: &[T], netns: impl Fn(&T) -> u32) -> BTreeMap<u32, Vec<(usize, &T)>> {
    let mut groups = BTreeMap::<u32, Vec<(usize, &T)>>::new();
    for (index, item) in items.iter().enumerate() {
        groups.entry(netns(item)).or_default().push((index, item));
    }
    groups
}
