//! Which lane a request takes: the view as this shard uses it, the choice of a node, and the lanes that lead there.
//!
//! A view is taken over once, between two turns: for each of its nodes there is a [`Peer`](super::peers), and who serves a
//! message is worked out when it is first asked and kept until the next view. From then on a request costs a step in a
//! slice, and the look whether a lane is open.

use std::sync::Arc;

use catga_codec::hash::hash_u64;
use catga_codec::{CallId, Contract, Header, MessageId};
use catga_discovery::{NodeState, Target, View, owner};

use crate::call::journey::{Journey, Spot};
use crate::call::table::LaneKey;
use crate::call::waiting::{Waiting, enqueue};
use crate::choice::{Choice, Served, Standing};
use crate::error::NotSent;
use crate::lane::handshake::Verdict;
use crate::lane::lanes::Lanes;
use crate::limits::{REACH_AGAIN, RESOLVE_AGAIN};
use crate::route::part_of;
use crate::time::Time;

/// What is asked about a request in order to find its node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    /// The type index of its message.
    pub(crate) index: u32,
    pub(crate) id: MessageId,
    /// The hash of its key.
    pub(crate) key: u64,
    /// Never [`Choice::Usual`].
    pub(crate) choice: Choice,
}

/// The node that a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chosen {
    /// This one.
    Own,
    /// A peer; a certain shard of it, if it matters which.
    Peer {
        peer: u32,
        shard: Option<u16>,
    },
    /// It is too early to say: not every node has been tried for the first time, or the last one was lost just now.
    Later,
    Nobody(NotSent),
}

/// How to get to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Lane(LaneKey),
    /// A lane is being dialled.
    Opening,
    /// It could not be reached a moment ago.
    Away,
}

/// How the nodes of the view stand with this shard just now.
struct Here<'a> {
    lanes: &'a Lanes,
    own_serves: bool,
    journey: Option<&'a Journey>,
    now: Time,
}

impl Standing for Here<'_> {
    fn is_usable(&self, position: u32) -> bool {
        let tried = |hash| self.journey.is_some_and(|journey| journey.has_tried(hash));
        match self.lanes.positions.get(position as usize) {
            Some(Some(peer)) => self.lanes.peers.get(*peer).is_some_and(|peer| {
                !tried(peer.node.id.hash64())
                    && (!peer.lanes.is_empty() || self.lanes.peers.is_within_reach(&peer.node, self.now))
            }),
            Some(None) => self.own_serves,
            None => false,
        }
    }

    fn load(&self, position: u32) -> u32 {
        match self.lanes.positions.get(position as usize) {
            Some(Some(peer)) => self.lanes.unanswered(*peer),
            // What runs here runs at once, or is refused at once.
            _ => 0,
        }
    }
}

impl Lanes {
    // ---- the view ---------------------------------------------------------------------------------------------

    /// From now on this is the view. Everybody who waits looks again.
    pub(crate) fn set_view(&mut self, view: Arc<View>, now: Time) {
        for peer in self.peers.all_mut() {
            peer.in_view = false;
            self.again.extend(peer.waiting.drain(..));
        }
        self.positions.clear();
        let mut reborn = Vec::new();
        for (position, member) in (0u32..).zip(view.members()) {
            let own = view.own() == Some(position);
            // A life that is suspect says nothing against the one that there are lanes to.
            let known = self.peers.find(&member.node.id).filter(|peer| {
                let has_lanes = self.peers.get(*peer).is_some_and(|peer| !peer.lanes.is_empty());
                member.state == NodeState::Suspect && has_lanes
            });
            let peer = (!own).then(|| {
                known.unwrap_or_else(|| {
                    let (peer, is_reborn) = self.peers.meet(&member.node);
                    reborn.extend(is_reborn.then_some(peer));
                    peer
                })
            });
            if let Some(known) = peer.and_then(|peer| self.peers.get_mut(peer)) {
                known.in_view = true;
                let (was_up, is_up) = (known.is_up, member.state == NodeState::Up);
                known.is_up = is_up;
                if is_up && !was_up {
                    self.peers.is_back(&member.node.id, now);
                }
            }
            self.positions.push(peer);
        }
        self.end_former_lives();
        self.find_usual();
        self.view = view;
        self.view_at = now;
        self.served.clear();
        self.again.extend(self.unresolved.drain(..));
        self.retry_at = Time::NEVER;
        let (waiting, events) = self.peers.forget_strangers();
        self.again.extend(waiting);
        self.events.dropped(events);
        // The dials that events waited for may have gone with the life before.
        for peer in reborn {
            self.send_events(peer, now);
        }
    }

    /// From now on a lane is kept to each of these. What was refused of others is refused no more, and the agent is told: one of them
    /// that comes back is tried, and may be refused, anew.
    pub(crate) fn aim(&mut self, targets: &[Target]) {
        self.peers.aim(targets);
        self.contacts_changed = true;
    }

    /// A hash of the view: equal ones agree on who owns a key.
    #[inline]
    pub(crate) fn digest(&self) -> u64 {
        self.view.digest()
    }

    /// Whether this node owns a key, as far as it knows.
    pub(crate) fn owns(&self, header: &Header) -> bool {
        let owner = || owner(&self.view, header.message, header.key);
        header.context == self.view.digest() || owner().is_none_or(|owner| Some(owner) == self.view.own())
    }

    pub(super) fn prepare(&mut self, index: u32, contract: fn() -> Contract) {
        let place = index as usize;
        if self.served.len() <= place {
            self.served.resize_with(place + 1, || None);
        }
        if self.served[place].is_none() {
            let contract = contract();
            let served = Served::among(&self.view, &contract, self.draws);
            if served.other_layout {
                self.explain(&contract);
            }
            self.served[place] = Some(served);
        }
    }

    /// Says where other nodes' layouts of a message differ, as far as a lane leads there.
    fn explain(&self, contract: &Contract) {
        for agreement in self.all().filter_map(|lane| lane.machine.agreement()) {
            if let Some(Verdict::Refused { difference }) = agreement.judge(contract) {
                tracing::warn!(name = contract.name, peer = %agreement.peer, difference, "layouts differ");
            }
        }
    }

    // ---- choosing ---------------------------------------------------------------------------------------------

    /// The node for a request. `own_serves`: whether this one can take it just now.
    pub(crate) fn choose(
        &mut self,
        ask: &Ask,
        contract: fn() -> Contract,
        own_serves: bool,
        journey: Option<&Journey>,
        now: Time,
    ) -> Chosen {
        // A node that has just started would take all keys for its own.
        if ask.choice == Choice::Owner && self.view.forming() {
            return Chosen::Later;
        }
        self.prepare(ask.index, contract);
        let Some(mut served) = self.served[ask.index as usize].take() else { return Chosen::Later };
        if matches!(ask.choice, Choice::Random | Choice::LeastLoaded) {
            self.draws = hash_u64(self.draws.wrapping_add(1));
        }
        let own = self.view.own();
        let (again, here) = (journey.is_some(), Here { lanes: self, own_serves, journey, now });
        let position = match ask.choice {
            Choice::RoundRobin => served.next(None, again, &here),
            Choice::Random => served.random(self.draws, &here),
            Choice::LeastLoaded => served.least_loaded(self.draws, &here),
            Choice::Owner | Choice::Usual => {
                owner(&self.view, ask.id, ask.key).filter(|owner| served.contains(*owner))
            }
            Choice::Node(hash) => self.named(hash).filter(|position| served.contains(*position)),
            Choice::LocalFirst | Choice::Local => served.next(own, again, &here),
        };
        let peer = position.and_then(|position| *self.positions.get(position as usize)?);
        let chosen = match peer {
            Some(peer) => Chosen::Peer { peer, shard: self.shard_of(peer, ask) },
            None if position.is_some() => Chosen::Own,
            None => self.nobody(ask, &served, now),
        };
        self.served[ask.index as usize] = Some(served);
        chosen
    }

    /// The lane of a request that any other node will do for: to the next one in turn, if a lane leads there. What most
    /// requests need, without what the others do.
    #[inline]
    pub(crate) fn next_lane(&mut self, index: u32) -> Option<LaneKey> {
        let served = self.served.get_mut(index as usize)?.as_mut()?;
        let usual = &self.usual;
        served.step(self.view.own(), |position| *usual.get(position as usize)?)
    }

    /// Lanes have come or gone, or the view has.
    pub(super) fn find_usual(&mut self) {
        let own = self.shard;
        let lane = |peer: &Option<u32>| self.peers.get((*peer)?)?.usual_lane(own);
        self.usual = self.positions.iter().map(lane).collect();
    }

    /// The shard of a peer that owns the key, if that is what counts.
    fn shard_of(&self, peer: u32, ask: &Ask) -> Option<u16> {
        let shards = self.peers.get(peer).map_or(1, |peer| peer.node.shards);
        (ask.choice == Choice::Owner).then(|| part_of(ask.key, usize::from(shards.max(1))) as u16)
    }

    /// The position of the node with this hash.
    fn named(&self, hash: u64) -> Option<u32> {
        let position = self.view.members().iter().position(|member| member.node.id.hash64() == hash);
        position.map(|position| position as u32)
    }

    fn nobody(&self, ask: &Ask, served: &Served, now: Time) -> Chosen {
        let reason = self.why_nobody(ask, served);
        // Those that were lost a moment ago may be back in another: a lane is dialled again at once.
        let may_return = match ask.choice {
            Choice::Node(_) => reason == NotSent::OutOfReach,
            _ => served.out_of_reach,
        };
        if self.view.forming() || (may_return && now.since(self.view_at) < REACH_AGAIN) {
            return Chosen::Later;
        }
        Chosen::Nobody(reason)
    }

    fn why_nobody(&self, ask: &Ask, served: &Served) -> NotSent {
        let one = match ask.choice {
            Choice::Node(hash) => match self.named(hash) {
                Some(position) => Some(position),
                None => return NotSent::NoSuchNode,
            },
            Choice::Owner => owner(&self.view, ask.id, ask.key),
            _ => None,
        };
        match one {
            Some(one) => self.why_not(one, ask.id),
            None if served.is_empty() && served.other_layout => NotSent::Layout,
            None if served.out_of_reach || !served.is_empty() => NotSent::OutOfReach,
            None => NotSent::NoHandler,
        }
    }

    /// Why this node, the only one that may be asked, is not among those that can be.
    fn why_not(&self, position: u32, message: MessageId) -> NotSent {
        let node = &self.view.members()[position as usize].node;
        if self.view.candidates(message).contains(&position) {
            NotSent::Layout
        } else if node.serves(message) {
            NotSent::OutOfReach
        } else {
            NotSent::NoHandler
        }
    }

    /// Whether a peer serves this message.
    pub(crate) fn serves(&mut self, peer: u32, index: u32, contract: fn() -> Contract) -> bool {
        self.prepare(index, contract);
        let served = self.served.get(index as usize).and_then(Option::as_ref);
        let position = self.positions.iter().position(|at| *at == Some(peer));
        served.zip(position).is_some_and(|(served, position)| served.contains(position as u32))
    }

    /// The peer, if it still lives, that a call shall go to again.
    pub(crate) fn same(&self, spot: Spot) -> Option<u32> {
        let place = self.peers.find_hash(spot.node)?;
        let peer = self.peers.get(place)?;
        let lives = peer.in_view && peer.node.incarnation == spot.incarnation;
        lives.then_some(place)
    }

    /// How to get to a peer: to a certain shard of it, or to any. Dials if no lane leads there.
    #[inline]
    pub(crate) fn way(&mut self, peer: u32, shard: Option<u16>, now: Time) -> Way {
        let Some(known) = self.peers.get(peer) else { return Way::Away };
        let door = known.door(shard.unwrap_or(self.shard));
        let lane = match shard {
            Some(_) => known.lane_to(door),
            None => known.usual_lane(self.shard),
        };
        match lane {
            Some(lane) => Way::Lane(lane),
            None if self.peers.want(peer, door, now) => Way::Opening,
            None => self.way_round(peer),
        }
    }

    /// How to get to a peer whose door cannot be had just now: by any lane there is, and one more ring hop. What has a key may
    /// overtake, or be overtaken by, what goes through the door when that opens, or has gone through it before.
    #[cold]
    fn way_round(&self, peer: u32) -> Way {
        self.peers.get(peer).and_then(|peer| peer.usual_lane(self.shard)).map_or(Way::Away, Way::Lane)
    }

    /// How to get back to a shard of a peer that may be at work on a call: to that one, however many there are, since no other
    /// knows of it.
    #[cold]
    pub(crate) fn way_back(&mut self, peer: u32, shard: u16, now: Time) -> Way {
        match self.peers.get(peer).and_then(|peer| peer.lane_to(shard)) {
            Some(lane) => Way::Lane(lane),
            None if self.peers.want(peer, shard, now) => Way::Opening,
            None => Way::Away,
        }
    }

    fn unanswered(&self, peer: u32) -> u32 {
        let lanes = self.peers.get(peer).map_or(&[][..], |peer| &peer.lanes);
        lanes.iter().filter_map(|(_, key)| self.get(*key)).map(|lane| lane.machine.unanswered()).sum()
    }

    // ---- waiting ----------------------------------------------------------------------------------------------

    /// Puts a call among those that wait for a lane to a peer. Gives it back if there is no such peer any more.
    pub(crate) fn wait_for_lane(
        &mut self,
        peer: u32,
        waiting: Waiting,
        live: impl Fn(CallId) -> bool,
    ) -> Result<(), Waiting> {
        let Some(peer) = self.peers.get_mut(peer) else { return Err(waiting) };
        enqueue(&mut peer.waiting, waiting, live);
        Ok(())
    }

    /// Puts a call among those that look again with the next view, or in a moment.
    pub(crate) fn wait_for_view(&mut self, waiting: Waiting, now: Time, live: impl Fn(CallId) -> bool) {
        enqueue(&mut self.unresolved, waiting, live);
        self.retry_at = self.retry_at.min(now + RESOLVE_AGAIN);
    }

    /// Another node has a view that differs from this one: who is missing here is looked for at once.
    pub(crate) fn hurry(&mut self, now: Time) {
        self.peers.hurry(now);
    }

    /// This call looks again for its way.
    pub(crate) fn look_again(&mut self, waiting: Waiting) {
        self.again.push(waiting);
    }

    /// The calls that shall look again for their way.
    pub(crate) fn take_again(&mut self, now: Time) -> Vec<Waiting> {
        if now >= self.retry_at {
            self.retry_at = Time::NEVER;
            self.again.extend(self.unresolved.drain(..));
        }
        std::mem::take(&mut self.again)
    }

    /// Whether calls or events wait for a view.
    pub(crate) fn has_unresolved(&self) -> bool {
        !self.unresolved.is_empty() || self.events.are_early()
    }
}
