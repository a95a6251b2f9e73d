//! Who is there: makes views of what the shards know by their lanes.
//!
//! A list of addresses says whom to look for; lanes say who is alive. So a node is
//!
//! ```text
//!             a lane opens                      it says so
//! (unknown) ───────────────▶ up ──────────────────────────────▶ leaving
//!     ▲                      │ ▲                                   │
//!     │ silent for GONE_AFTER│ │ a lane opens                      │
//!     └───────────────── suspect ◀─────────────────────────────────┘
//!                              no shard has an open lane
//! ```
//!
//! A listed node is not forgotten but stays suspect. A higher incarnation replaces a lower one at once, and news about the
//! lower one is ignored: unless the higher has been silent for [`GONE_AFTER`], because then the lower one is the living
//! one and its clock was set back. Two that live under one id are reported, once: a shard keeps lanes to the higher one only, so
//! mostly the lower one is not seen by its lanes but by how it comes again and again, and is turned away ([`Superseded`]).
//!
//! The machine does no I/O and reads no clock. News is put in, [`advance`](Members::advance) draws the conclusions for a
//! moment, counted from any fixed start, and then what is new can be taken.
#![forbid(unsafe_code)]

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    fmt, mem,
    sync::Arc,
    time::Duration,
};

use crate::{
    contacts::{Contact, Contacts, KEEPER, Refused, Superseded, Target},
    endpoint::Endpoint,
    node::{Incarnation, Node, NodeId},
    view::{Member, NodeState, View},
};

/// A node with which no shard has had a lane for so long is forgotten.
pub const GONE_AFTER: Duration = Duration::from_secs(30);

/// Two nodes that both have lanes under one id, or ask for them, for so long are an error, and not a restart.
pub const RIVALS_AFTER: Duration = Duration::from_secs(3);

/// Nodes that are known at once, besides this one. One more is not taken, with a notice: one for each such node, and for as
/// many of them at most.
pub const NODES_MAX: usize = 4096;

/// The nodes that this one knows, and how it stands with each.
#[derive(Debug)]
pub struct Members {
    own: Arc<Member>,
    listed: Vec<Target>,
    /// The last answer about a name: `None` if there is a name, and no answer yet.
    resolved: Option<Vec<Endpoint>>,
    /// Where this node itself answered.
    this_node: Vec<Endpoint>,
    /// What each shard said last, by shard.
    contacts: Vec<Arc<Contacts>>,
    /// What all of them refuse, as it was last reported.
    refused: Vec<(Target, Refused)>,
    known: BTreeMap<NodeId, Known>,
    rivals: BTreeMap<(NodeId, Incarnation), Rival>,
    /// Nodes that were not taken, with a notice; at most [`NODES_MAX`].
    ignored: BTreeSet<NodeId>,
    formed: bool,
    epoch: u64,
    now: Duration,
    targets: Arc<[Target]>,
    targets_changed: bool,
    view_changed: bool,
    notices: Vec<Notice>,
}

#[derive(Debug)]
struct Known {
    member: Arc<Member>,
    /// Its state was told to the others: it is in a view.
    told: bool,
    /// Some shard has an open lane with it.
    open: bool,
    /// It said that it leaves: that cannot be taken back.
    left: bool,
    silent_since: Option<Duration>,
}

/// A node that has a lane, or asks for one, under the id of another one that lives. One that was told of is remembered until
/// nothing has been seen of it for [`GONE_AFTER`]: it may come seldom, and is no news each time.
#[derive(Debug)]
struct Rival {
    since: Duration,
    last: Duration,
    told: bool,
}

/// Something that people should read in the log. Its `Display` is a whole line.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A node was heard of, or its state has changed.
    Changed(Arc<Member>),
    /// A node was silent for [`GONE_AFTER`].
    Forgotten(Arc<Node>),
    /// A target cannot have a lane, with the reason.
    Refused(Target, String),
    /// A target turned out to be this node.
    ThisNode(Target),
    /// Two nodes live under one id: the one that is taken for it, and the one that is ignored.
    TwoLives(Arc<Node>, Arc<Node>),
    /// Another node lives under the id of this one, and began later: this one, and the first of the peers that say so.
    Outlived(Arc<Node>, Arc<Node>),
    /// There are [`NODES_MAX`] nodes already: this one is ignored. Said once for each, until it is taken after all.
    TooMany(Arc<Node>),
}

impl Notice {
    /// Whether somebody has to do something about it.
    #[must_use]
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Refused(..) | Self::TwoLives(..) | Self::Outlived(..) | Self::TooMany(_))
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed(member) => member.fmt(f),
            Self::Forgotten(node) => {
                write!(f, "{} is forgotten: no lane for {} s", node.id, GONE_AFTER.as_secs())
            }
            Self::Refused(target, reason) => write!(f, "no lane to {target}: {reason}"),
            Self::ThisNode(target) => write!(f, "{target} is this node; it is looked for no more"),
            Self::TwoLives(taken, ignored) => write!(
                f,
                "two nodes have the id {}: {taken}, and {ignored}, which is ignored; stop one of them, or give it another id",
                taken.id
            ),
            Self::Outlived(own, peer) => write!(
                f,
                "another node that began later has the id {} of this one: {peer} takes lanes with that one only, and none with \
                 this one, which is {own}; stop one of the two, or give it another id (the log there names both)",
                own.id
            ),
            Self::TooMany(node) => {
                write!(f, "{node} is ignored: {NODES_MAX} nodes are known, and there is no room for more")
            }
        }
    }
}

impl Members {
    /// Knows nobody but `own`, and looks for the `listed` ones, of which `own` may be one. With `has_name` there are more
    /// to be learned from the answers about a name.
    #[must_use]
    pub fn new(own: Node, listed: Vec<Target>, has_name: bool) -> Self {
        let mut members = Self {
            own: Arc::new(Member { node: Arc::new(own), state: NodeState::Up }),
            listed,
            resolved: (!has_name).then(Vec::new),
            this_node: Vec::new(),
            contacts: Vec::new(),
            refused: Vec::new(),
            known: BTreeMap::new(),
            rivals: BTreeMap::new(),
            ignored: BTreeSet::new(),
            formed: false,
            epoch: 0,
            now: Duration::ZERO,
            targets: Arc::new([]),
            targets_changed: !has_name,
            view_changed: true,
            notices: Vec::new(),
        };
        members.find_targets();
        members.form();
        members
    }

    /// What a shard says of its lanes. Replaces what it said before.
    pub fn heard(&mut self, shard: u16, contacts: Arc<Contacts>) {
        let shard = usize::from(shard);
        if self.contacts.len() <= shard {
            self.contacts.resize_with(shard + 1, Arc::default);
        }
        self.contacts[shard] = contacts;
    }

    /// The addresses behind the name. Replaces the last answer. If there is none, because the name cannot be resolved,
    /// then an empty answer says that it was tried.
    pub fn resolved(&mut self, mut endpoints: Vec<Endpoint>) {
        endpoints.sort_unstable();
        endpoints.dedup();
        // The first answer is news even if it is empty.
        self.targets_changed |= self.resolved.is_none();
        self.resolved = Some(endpoints);
    }

    /// Draws the conclusions of what was heard, for the moment `now`.
    pub fn advance(&mut self, now: Duration) {
        self.now = self.now.max(now);
        self.take_refusals();
        self.find_targets();
        self.form();
        self.forget();
        let contacts = mem::take(&mut self.contacts);
        let nodes = || contacts.iter().flat_map(|shard| &shard.nodes);
        self.learn(nodes());
        let others = self.judge(nodes());
        self.find_rivals(&others, contacts.iter().flat_map(|shard| &shard.superseded));
        drop(others);
        self.contacts = contacts;
    }

    /// The view, if it has changed since it was last taken.
    pub fn take_view(&mut self) -> Option<Arc<View>> {
        if !mem::take(&mut self.view_changed) {
            return None;
        }
        self.epoch += 1;
        let known = self.known.values().map(|known| known.member.clone());
        let members = known.chain([self.own.clone()]).collect();
        Some(Arc::new(View::new(self.epoch, Some(&self.own.node.id), members, !self.formed)))
    }

    /// Whom to keep a lane to, if that has changed since it was last taken. With a name, the first is after its first answer.
    pub fn take_targets(&mut self) -> Option<Arc<[Target]>> {
        mem::take(&mut self.targets_changed).then(|| self.targets.clone())
    }

    /// What should go into the log, in order.
    pub fn take_notices(&mut self) -> Vec<Notice> {
        mem::take(&mut self.notices)
    }

    /// When to [`advance`](Self::advance) although nothing was heard.
    #[must_use]
    pub fn next_due(&self) -> Option<Duration> {
        let silent = self.known.values().filter(|known| !known.is_gone(self.now));
        let forget = silent.filter_map(|known| known.silent_since).map(|since| since + GONE_AFTER);
        let rivals = self.rivals.values().filter(|rival| !rival.told).map(|rival| rival.since + RIVALS_AFTER);
        forget.chain(rivals).min()
    }

    /// Whether nobody else is known, a node is not up, or a target has no node: then names are worth asking for again soon. Of
    /// nodes that start together the first to ask may find nobody but itself behind the name.
    #[must_use]
    pub fn lacks_someone(&self) -> bool {
        let up = |known: &Known| known.member.state == NodeState::Up;
        let has_node =
            |target: &Target| self.known.values().any(|known| up(known) && is_at(&known.member.node, target));
        self.known.is_empty() || !self.known.values().all(up) || !self.targets.iter().all(has_node)
    }

    fn take_refusals(&mut self) {
        let mut refused: Vec<(Target, Refused)> = Vec::new();
        for entry in self.contacts.iter().flat_map(|contacts| &contacts.refused) {
            if !refused.contains(entry) {
                refused.push(entry.clone());
            }
        }
        for (target, why) in refused.iter().filter(|entry| !self.refused.contains(entry)) {
            self.notices.push(match why {
                Refused::ThisNode => Notice::ThisNode(target.clone()),
                Refused::Because(reason) => Notice::Refused(target.clone(), reason.clone()),
            });
            if *why == Refused::ThisNode {
                self.this_node.push(target.endpoint.clone());
            }
        }
        self.refused = refused;
    }

    fn find_targets(&mut self) {
        let resolved =
            self.resolved.iter().flatten().map(|endpoint| Target { endpoint: endpoint.clone(), id: None });
        let wanted: Vec<Target> = self.listed.iter().cloned().chain(resolved).collect();
        // An address that is gone from the answers may be another node's when it comes back.
        self.this_node.retain(|own| wanted.iter().any(|target| target.endpoint == *own));
        let mut targets: Vec<Target> = Vec::new();
        for target in wanted {
            let known = self.this_node.contains(&target.endpoint)
                || is_at(&self.own.node, &target)
                || target.endpoint == self.own.node.endpoint
                || targets.iter().any(|other| other.endpoint == target.endpoint);
            if !known {
                targets.push(target);
            }
        }
        if self.resolved.is_some() && *self.targets != *targets {
            self.targets = targets.into();
            self.targets_changed = true;
        }
    }

    fn form(&mut self) {
        let tried = self.contacts.get(usize::from(KEEPER)).is_some_and(|contacts| contacts.settled);
        if !self.formed && self.resolved.is_some() && (self.targets.is_empty() || tried) {
            self.formed = true;
            self.view_changed = true;
        }
    }

    fn forget(&mut self) {
        let Self { known, listed, resolved, now, notices, .. } = self;
        let listed = |node: &Node| {
            listed.iter().any(|target| is_at(node, target))
                || resolved.iter().flatten().any(|at| *at == node.endpoint)
        };
        let before = known.len();
        known.retain(|_, known| {
            let keep = !known.is_gone(*now) || listed(&known.member.node);
            if !keep {
                notices.push(Notice::Forgotten(known.member.node.clone()));
            }
            keep
        });
        self.view_changed |= known.len() != before;
    }

    /// Takes nodes that are new, and newer lives of known ones.
    fn learn<'a>(&mut self, contacts: impl Iterator<Item = &'a Contact>) {
        for Contact { node, .. } in contacts.filter(|contact| contact.node.id != self.own.node.id) {
            let room = self.known.len() < NODES_MAX;
            match self.known.entry(node.id.clone()) {
                Entry::Occupied(mut entry) => {
                    let known = entry.get();
                    if node.incarnation > known.member.node.incarnation || known.is_gone(self.now) {
                        entry.insert(Known::new(node.clone()));
                    }
                }
                Entry::Vacant(entry) if room => {
                    self.ignored.remove(&node.id);
                    entry.insert(Known::new(node.clone()));
                }
                // Once for each: its lanes are news again and again. When even this list is full, nobody needs more names.
                Entry::Vacant(_) => {
                    if self.ignored.len() < NODES_MAX && self.ignored.insert(node.id.clone()) {
                        self.notices.push(Notice::TooMany(node.clone()));
                    }
                }
            }
        }
    }

    /// Settles the state of each known node. Gives the nodes with lanes that are none of these.
    fn judge<'a>(&mut self, contacts: impl Iterator<Item = &'a Contact>) -> Vec<&'a Arc<Node>> {
        for known in self.known.values_mut() {
            known.open = false;
        }
        let mut others: Vec<&'a Arc<Node>> = Vec::new();
        for Contact { node, leaving } in contacts {
            match self.known.get_mut(&node.id) {
                Some(known) if known.member.node.incarnation == node.incarnation => {
                    known.open = true;
                    known.left |= leaving;
                }
                _ => others.push(node),
            }
        }
        for known in self.known.values_mut() {
            known.silent_since = if known.open { None } else { known.silent_since.or(Some(self.now)) };
            let state = known.state();
            if !known.told || state != known.member.state {
                known.told = true;
                known.member = Arc::new(Member { node: known.member.node.clone(), state });
                self.notices.push(Notice::Changed(known.member.clone()));
                self.view_changed = true;
            }
        }
        others
    }

    /// Finds nodes that share an id: those whose lower life still has lanes, and those whose lower life keeps being turned away.
    fn find_rivals<'a>(
        &mut self,
        others: &[&'a Arc<Node>],
        superseded: impl Iterator<Item = &'a Superseded>,
    ) {
        let mut before = mem::take(&mut self.rivals);
        for node in others {
            if let Some(living) = self.living(node) {
                self.is_rival(&mut before, node, false, Notice::TwoLives(living, (*node).clone()));
            }
        }
        for life in superseded {
            match life {
                Superseded::Theirs(node) => {
                    if let Some(living) = self.living(node) {
                        self.is_rival(&mut before, node, true, Notice::TwoLives(living, node.clone()));
                    }
                }
                Superseded::Own(peer) => {
                    let own = self.own.node.clone();
                    self.is_rival(&mut before, &own, true, Notice::Outlived(own.clone(), peer.clone()));
                }
            }
        }
        before.retain(|_, rival| rival.told && self.now.saturating_sub(rival.last) < GONE_AFTER);
        let room = NODES_MAX.saturating_sub(self.rivals.len());
        self.rivals.extend(before.into_iter().take(room));
    }

    /// The node that has the id of this one, if that is another one, and there.
    fn living(&self, node: &Node) -> Option<Arc<Node>> {
        let living = match self.known.get(&node.id) {
            Some(known) if known.open => &known.member.node,
            None if node.id == self.own.node.id => &self.own.node,
            _ => return None,
        };
        (living.incarnation != node.incarnation).then(|| living.clone())
    }

    /// `node` shares an id: a moment after a restart it may, if that is not `proven` to be more. `before`: the rivals as they
    /// were a round ago.
    fn is_rival(
        &mut self,
        before: &mut BTreeMap<(NodeId, Incarnation), Rival>,
        node: &Node,
        proven: bool,
        notice: Notice,
    ) {
        let name = (node.id.clone(), node.incarnation);
        let now = self.now;
        let known = self.rivals.remove(&name).or_else(|| before.remove(&name));
        let mut rival = known.unwrap_or(Rival { since: now, last: now, told: false });
        rival.last = now;
        if !rival.told && (proven || now.saturating_sub(rival.since) >= RIVALS_AFTER) {
            rival.told = true;
            self.notices.push(notice);
        }
        self.rivals.insert(name, rival);
    }
}

impl Known {
    fn new(node: Arc<Node>) -> Self {
        let member = Arc::new(Member { node, state: NodeState::Up });
        Self { member, told: false, open: true, left: false, silent_since: None }
    }

    fn state(&self) -> NodeState {
        match (self.open, self.left) {
            (true, false) => NodeState::Up,
            (true, true) => NodeState::Leaving,
            (false, _) => NodeState::Suspect,
        }
    }

    fn is_gone(&self, now: Duration) -> bool {
        self.silent_since.is_some_and(|since| now.saturating_sub(since) >= GONE_AFTER)
    }
}

/// Whether `target` means this node: by its id, or by its endpoint if it names none.
fn is_at(node: &Node, target: &Target) -> bool {
    match &target.id {
        Some(id) => *id == node.id,
        None => target.endpoint == node.endpoint,
    }
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests;
