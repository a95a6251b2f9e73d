//! The nodes that a shard has lanes to, or wants lanes to, and the dialling of those lanes.
//!
//! A lane is dialled when a call wants to go where none leads, and then kept for as long as it lives. Calls wait for it with
//! the peer; when it opens, or when an attempt fails, they look again for their way. A failed attempt puts the peer out of
//! reach for a pause that doubles, with jitter, so that who asks meanwhile goes elsewhere at once.
//!
//! ```text
//!   wanted ──dial──▶ connecting ──greeting──▶ open ──ends──▶ (wanted again if somebody asks, or if it is kept)
//!              ▲         └──fails──▶ pause ──┘
//! ```
//!
//! The first shard of an engine keeps a lane to each *target* (the nodes of a list, or the addresses behind a name) whether
//! anyone asks or not: these lanes tell who is alive.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use catga_codec::OwnedFrame;
use catga_codec::hash::hash_u64;
use catga_discovery::{Node, NodeId, Refused, Target};

use crate::call::table::LaneKey;
use crate::call::waiting::Waiting;
use crate::lane::close::{CloseReason, Closed, Closer};
use crate::limits::{DIAL_PATIENCE, LANES_PER_PEER, REACH_AGAIN, REDIAL_MAX, REDIAL_MIN};
use crate::time::Time;

/// A node that this shard has to do with.
pub(super) struct Peer {
    pub(super) node: Arc<Node>,
    /// Its open lanes, each with the shard at its other end.
    pub(super) lanes: Vec<(u16, LaneKey)>,
    /// Whether the view has it.
    pub(super) in_view: bool,
    /// Whether it is up, by the view.
    pub(super) is_up: bool,
    /// Calls that wait for a lane, in order.
    pub(super) waiting: VecDeque<Waiting>,
    /// Events that wait for a lane, in order.
    pub(super) events: VecDeque<OwnedFrame>,
}

impl Peer {
    /// The shard to dial in order to reach this one: lanes to one peer are few.
    pub(super) fn door(&self, shard: u16) -> u16 {
        shard % self.node.shards.clamp(1, LANES_PER_PEER)
    }

    /// The lane for what any of its shards will do for, from this one of ours.
    pub(super) fn usual_lane(&self, own: u16) -> Option<LaneKey> {
        self.lane_to(self.door(own)).or_else(|| self.lanes.first().map(|(_, lane)| *lane))
    }

    /// The open lane to this shard of it.
    pub(super) fn lane_to(&self, shard: u16) -> Option<LaneKey> {
        self.lanes.iter().find(|(at, _)| *at == shard).map(|(_, lane)| *lane)
    }
}

/// What a shard holds for the sake of its lanes.
#[cfg(test)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Census {
    pub(crate) open: usize,
    /// Connections that are being made, or greeted.
    pub(crate) opening: usize,
    pub(crate) peers: usize,
    pub(crate) dials: usize,
    /// The longest of the queues in which calls wait.
    pub(crate) waiting_max: usize,
    /// Until then somebody is out of reach, because a dial has failed.
    pub(crate) paused_until: Option<Time>,
    /// Held for reading from connections that have ended.
    pub(crate) ended_bytes: usize,
}

/// Why there is no lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Missed {
    /// Nobody answers there just now.
    Unreached,
    /// One side turned the other away.
    Refused(Refused),
    /// The greeting was agreed on, so that the lane was open here, and then the peer did not keep it: another process has this
    /// node's id, or there are lanes enough.
    NotKept,
}

impl Missed {
    /// What came of a dial to `target` whose lane has ended: none if it was a lane, and has been lost.
    pub(super) fn by(closed: Closed, was_open: bool, target: &Target) -> Option<Self> {
        match closed.reason {
            CloseReason::Superseded | CloseReason::Surplus if closed.by == Closer::Peer => {
                Some(Self::NotKept)
            }
            _ if was_open => None,
            // Anybody can say so: only who is not named takes himself out by it.
            CloseReason::ConnectedToSelf if target.id.is_none() => Some(Self::Refused(Refused::ThisNode)),
            reason if reason.breaks_a_rule() => Some(Self::Refused(Refused::Because(closed.to_string()))),
            _ => Some(Self::Unreached),
        }
    }
}

/// The keeping up of one lane.
pub(super) struct Dial {
    pub(super) target: Target,
    /// The shard to ask for.
    pub(super) shard: u16,
    /// Dialled again and again, whether anyone asks or not.
    pub(super) kept: bool,
    /// Somebody asks.
    pub(super) wanted: bool,
    /// The connection, from when it is being made.
    pub(super) lane: Option<LaneKey>,
    /// The attempt has taken long: who waits for it has been told to look elsewhere.
    slow: bool,
    /// Not before then; of an attempt under way, when it began.
    pub(super) at: Time,
    pause: Duration,
    /// The last attempt has failed.
    pub(super) failed: Option<Missed>,
    /// An attempt has come to an end.
    pub(super) tried: bool,
}

impl Dial {
    fn new(target: Target, shard: u16, kept: bool) -> Self {
        let (at, pause) = (Time::ZERO, REDIAL_MIN);
        let wanted = !kept;
        Self { target, shard, kept, wanted, lane: None, slow: false, at, pause, failed: None, tried: false }
    }

    /// It has failed just now, or takes so long that it may fail.
    fn is_out_of_reach(&self, now: Time) -> bool {
        match self.lane {
            Some(_) => self.slow,
            None => self.failed.is_some() && now < self.at,
        }
    }

    fn is_due(&self, now: Time) -> bool {
        (self.kept || self.wanted) && self.lane.is_none() && now >= self.at
    }
}

/// All peers and dials of a shard.
#[derive(Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    by_id: HashMap<NodeId, u32>,
    dials: Vec<Option<Dial>>,
    /// It has been told of targets, if only of none.
    aimed: bool,
    /// When it last looked for those that should be there.
    hurried: Time,
    /// For jitter: a seed of its own for each shard.
    jitter: u64,
}

impl Peers {
    pub(super) fn new(jitter: u64) -> Self {
        Self { jitter, ..Self::default() }
    }

    #[inline]
    pub(super) fn get(&self, peer: u32) -> Option<&Peer> {
        self.slots.get(peer as usize)?.as_ref()
    }

    #[inline]
    pub(super) fn get_mut(&mut self, peer: u32) -> Option<&mut Peer> {
        self.slots.get_mut(peer as usize)?.as_mut()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Peer> {
        self.slots.iter().flatten()
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.slots.iter_mut().flatten()
    }

    pub(super) fn find(&self, id: &NodeId) -> Option<u32> {
        self.by_id.get(id).copied()
    }

    /// The peer of this hash, by a walk over all: for routes that name a node, and for calls that go again to the same one.
    pub(super) fn find_hash(&self, hash: u64) -> Option<u32> {
        let found = |peer: &Option<Peer>| peer.as_ref().is_some_and(|peer| peer.node.id.hash64() == hash);
        self.slots.iter().position(found).map(|place| place as u32)
    }

    /// The peer that this node is; a new one, or the life of it that is newer. Says whether it is a new life of a known one: what
    /// waited for the one before must be sent on its way again.
    pub(super) fn meet(&mut self, node: &Arc<Node>) -> (u32, bool) {
        if let Some(place) = self.find(&node.id) {
            let newer = self.get(place).is_some_and(|peer| node.incarnation > peer.node.incarnation);
            if newer {
                self.take_life(place, node);
            }
            return (place, newer);
        }
        let peer = Peer {
            node: node.clone(),
            lanes: Vec::new(),
            in_view: false,
            is_up: false,
            waiting: VecDeque::new(),
            events: VecDeque::new(),
        };
        let place = put(&mut self.slots, peer);
        self.by_id.insert(node.id.clone(), place);
        (place, false)
    }

    /// This is the life of a node that there are lanes to.
    pub(super) fn take_life(&mut self, peer: u32, node: &Arc<Node>) {
        let moved = match self.get_mut(peer) {
            Some(peer)
                if peer.node.incarnation != node.incarnation || peer.node.endpoint != node.endpoint =>
            {
                peer.node = node.clone();
                true
            }
            _ => false,
        };
        if moved {
            self.forget_former_endpoints(node);
        }
    }

    /// Nobody listens any more where a node was before.
    fn forget_former_endpoints(&mut self, node: &Node) {
        for place in &mut self.dials {
            let former = |dial: &Dial| {
                !dial.kept
                    && dial.lane.is_none()
                    && dial.target.id.as_ref() == Some(&node.id)
                    && dial.target.endpoint != node.endpoint
            };
            if place.as_ref().is_some_and(former) {
                *place = None;
            }
        }
    }

    /// Forgets peers that the view does not have and no lane leads to. Gives what waited for them.
    pub(super) fn forget_strangers(&mut self) -> (Vec<Waiting>, u64) {
        let (mut waiting, mut events) = (Vec::new(), 0);
        for place in 0..self.slots.len() {
            let Some(peer) = self.slots[place].as_mut().filter(|peer| !peer.in_view && peer.lanes.is_empty())
            else {
                continue;
            };
            waiting.extend(peer.waiting.drain(..));
            events += peer.events.len() as u64;
            let id = peer.node.id.clone();
            self.by_id.remove(&id);
            self.slots[place] = None;
            for dial in &mut self.dials {
                if dial.as_ref().is_some_and(|dial| {
                    !dial.kept && dial.lane.is_none() && dial.target.id.as_ref() == Some(&id)
                }) {
                    *dial = None;
                }
            }
        }
        (waiting, events)
    }

    // ---- dials ------------------------------------------------------------------------------------------------

    /// The targets from now on. Lanes that are open to others stay.
    pub(super) fn aim(&mut self, targets: &[Target]) {
        self.aimed = true;
        for dial in self.dials.iter_mut() {
            let Some(known) = dial else { continue };
            known.kept = known.kept && targets.contains(&known.target);
            if !known.kept && !known.wanted && known.lane.is_none() {
                *dial = None;
            }
        }
        for target in targets {
            match self.dials.iter_mut().flatten().find(|dial| dial.shard == 0 && dial.target == *target) {
                Some(known) => known.kept = true,
                None => {
                    put(&mut self.dials, Dial::new(target.clone(), 0, true));
                }
            }
        }
    }

    /// Asks for a lane to this shard of a peer. Says whether one is being made; else the last attempt has failed just now.
    pub(super) fn want(&mut self, peer: u32, shard: u16, now: Time) -> bool {
        let Some(node) = self.get(peer).map(|peer| peer.node.clone()) else { return false };
        let leads = |dial: &Dial| {
            dial.shard == shard
                && dial.target.id.as_ref() == Some(&node.id)
                && dial.target.endpoint == node.endpoint
        };
        if let Some(dial) = self.dials.iter_mut().flatten().find(|dial| leads(dial)) {
            dial.wanted = true;
            return !dial.is_out_of_reach(now);
        }
        let target = Target { endpoint: node.endpoint.clone(), id: Some(node.id.clone()) };
        put(&mut self.dials, Dial::new(target, shard, false));
        true
    }

    pub(super) fn dial(&mut self, dial: u32) -> Option<&mut Dial> {
        self.dials.get_mut(dial as usize)?.as_mut()
    }

    /// The dials that are due.
    pub(super) fn due(&self, now: Time) -> impl Iterator<Item = u32> + use<> {
        let due =
            (0..).zip(&self.dials).filter(|(_, dial)| dial.as_ref().is_some_and(|dial| dial.is_due(now)));
        due.map(|(place, _)| place).collect::<Vec<u32>>().into_iter()
    }

    /// When the next dial is due, or an attempt has taken long.
    pub(super) fn next_due(&self) -> Time {
        let wants = |dial: &Dial| match dial.lane {
            None => (dial.kept || dial.wanted).then_some(dial.at),
            Some(_) => (!dial.slow).then(|| dial.at + DIAL_PATIENCE),
        };
        self.dials.iter().flatten().filter_map(wants).min().unwrap_or(Time::NEVER)
    }

    /// An attempt has begun.
    pub(super) fn began(&mut self, dial: u32, lane: LaneKey, now: Time) {
        if let Some(dial) = self.dial(dial) {
            (dial.lane, dial.at, dial.slow) = (Some(lane), now, false);
        }
    }

    /// Gives the calls that wait for attempts that take long, and the peers to which other lanes lead meanwhile.
    pub(super) fn lose_patience(&mut self, now: Time, again: &mut Vec<Waiting>) -> Vec<u32> {
        let mut reached_otherwise = Vec::new();
        for place in 0..self.dials.len() {
            let Some(dial) = &mut self.dials[place] else { continue };
            if dial.lane.is_none() || dial.slow || now < dial.at + DIAL_PATIENCE {
                continue;
            }
            dial.slow = true;
            let place = dial.target.id.as_ref().and_then(|id| self.by_id.get(id)).copied();
            let Some((place, peer)) = place.and_then(|place| Some((place, self.get_mut(place)?))) else {
                continue;
            };
            again.extend(peer.waiting.drain(..));
            if !peer.lanes.is_empty() {
                reached_otherwise.push(place);
            }
        }
        reached_otherwise
    }

    /// Somebody else knows of a node that this view does not have up: those that should be there are looked for at once.
    pub(super) fn hurry(&mut self, now: Time) {
        if now < self.hurried + REACH_AGAIN {
            return;
        }
        self.hurried = now;
        let missed = |peer: &&Peer| peer.in_view && !peer.is_up && peer.lanes.is_empty();
        let missing: Vec<NodeId> = self.all().filter(missed).map(|peer| peer.node.id.clone()).collect();
        for id in missing {
            self.is_back(&id, now);
            if let Some(peer) = self.find(&id) {
                self.want(peer, 0, now);
            }
        }
    }

    /// The view has it that this node is up again: who wants to reach it need not wait.
    pub(super) fn is_back(&mut self, id: &NodeId, now: Time) {
        for dial in self.dials.iter_mut().flatten().filter(|dial| dial.target.id.as_ref() == Some(id)) {
            // A peer that keeps no lane is up by the view each time that one opens.
            if dial.lane.is_none() && dial.failed != Some(Missed::NotKept) {
                (dial.at, dial.pause, dial.failed) = (dial.at.min(now), REDIAL_MIN, None);
            }
        }
    }

    /// An attempt has succeeded: the lane is open. Whether the peer keeps it is only known at its end.
    pub(super) fn reached(&mut self, dial: u32) {
        if let Some(dial) = self.dial(dial) {
            // An open lane is no attempt any more.
            (dial.failed, dial.tried, dial.wanted, dial.slow) = (None, true, false, true);
        }
    }

    /// An attempt has failed, or its lane was lost. The next attempt is soon after a loss, and after a failure later than
    /// the last was.
    pub(super) fn missed(&mut self, dial: u32, why: Option<Missed>, now: Time) {
        self.jitter = hash_u64(self.jitter.wrapping_add(1));
        let jitter = self.jitter;
        let Some(dial) = self.dial(dial) else { return };
        dial.lane = None;
        dial.tried = true;
        dial.wanted = false;
        if why.is_none() {
            dial.pause = REDIAL_MIN;
        }
        dial.failed = why;
        // Between half and all of the pause, so that many who lost the same node do not come back in step.
        let half = dial.pause / 2;
        dial.at = now + half + Duration::from_nanos(jitter % (half.as_nanos() as u64).max(1));
        dial.pause = (dial.pause * 2).min(REDIAL_MAX);
    }

    /// The target of a dial.
    pub(super) fn target(&self, dial: u32) -> Option<&Target> {
        self.dials.get(dial as usize)?.as_ref().map(|dial| &dial.target)
    }

    /// Whether each target has been tried to an end since it became one.
    pub(super) fn are_settled(&self) -> bool {
        self.aimed && self.dials.iter().flatten().all(|dial| !dial.kept || dial.tried)
    }

    /// Whether no dial of this node has failed just now, or takes long.
    pub(super) fn is_within_reach(&self, node: &Node, now: Time) -> bool {
        let away = |dial: &Dial| dial.is_out_of_reach(now) && dial.target.id.as_ref() == Some(&node.id);
        !self.dials.iter().flatten().any(away)
    }

    /// The targets that cannot have a lane as things are, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Target, Refused)> {
        let kept = self.dials.iter().flatten().filter(|dial| dial.kept);
        kept.filter_map(|dial| match &dial.failed {
            Some(Missed::Refused(why)) => Some((dial.target.clone(), why.clone())),
            _ => None,
        })
    }

    /// Counts peers and dials, and looks for the longest queue for a lane and the last end of a pause.
    #[cfg(test)]
    pub(super) fn census(&self) -> Census {
        let paused = |dial: &&Dial| dial.lane.is_none() && dial.failed.is_some();
        Census {
            open: 0,
            opening: 0,
            peers: self.all().count(),
            dials: self.dials.iter().flatten().count(),
            waiting_max: self.all().map(|peer| peer.waiting.len()).max().unwrap_or(0),
            paused_until: self.dials.iter().flatten().filter(paused).map(|dial| dial.at).max(),
            ended_bytes: 0,
        }
    }

    /// Nothing is dialled any more.
    pub(super) fn rest(&mut self) {
        self.dials.clear();
    }
}

/// Puts something into the first free place.
fn put<T>(slots: &mut Vec<Option<T>>, value: T) -> u32 {
    let place = slots.iter().position(Option::is_none).unwrap_or_else(|| {
        slots.push(None);
        slots.len() - 1
    });
    slots[place] = Some(value);
    place as u32
}
