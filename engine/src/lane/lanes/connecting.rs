//! How lanes come to be: dialled, accepted, handed over by another shard, and made known to those who wait for them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use catga_discovery::Target;

use super::{Lanes, Opened};

use crate::call::table::LaneKey;
use crate::lane::buffer::ReceiveBuffer;
use crate::lane::close::CloseReason;
use crate::lane::config::{LaneConfig, SEND_BYTES_MAX};
use crate::lane::greeting::Greeting;
use crate::lane::handshake::Verdict;
use crate::lane::io::LaneIo;
use crate::lane::peers::Missed;
use crate::lane::protocol::Lane;
use crate::limits::{CONNECTIONS_MAX, GREETINGS_MAX, LANES_MAX, LANES_PER_SHARD_PAIR, PAUSE};
use crate::runtime::{Stream, Token, World};
use crate::time::Time;

impl Lanes {
    fn config(&self, wanted: u16, world: &mut dyn World) -> io::Result<LaneConfig> {
        let Some(setup) = &self.setup else { return Err(io::ErrorKind::Unsupported.into()) };
        let nonce = world.nonce()?;
        Ok(LaneConfig {
            greeting: Greeting { shard: self.shard, wanted_shard: wanted, nonce, ..setup.greeting.clone() },
            key: setup.key.clone(),
            expected_peer: None,
            send_bytes_max: SEND_BYTES_MAX,
        })
    }

    /// Dials what is due.
    pub(crate) fn dial_due(&mut self, world: &mut dyn World, now: Time) {
        if now < self.peers.next_due() {
            return;
        }
        for peer in self.peers.lose_patience(now, &mut self.again) {
            self.send_events(peer, now);
        }
        for index in self.peers.due(now) {
            let Some(dial) = self.peers.dial(index) else { continue };
            let (target, shard) = (dial.target.clone(), dial.shard);
            match self.dial(index, &target, shard, world, now) {
                Ok(key) => self.peers.began(index, key, now),
                Err(error) => {
                    tracing::info!(%target, %error, "could not dial");
                    self.missed(index, Some(Missed::Unreached), now);
                }
            }
        }
    }

    fn dial(
        &mut self,
        dial: u32,
        target: &Target,
        shard: u16,
        world: &mut dyn World,
        now: Time,
    ) -> io::Result<LaneKey> {
        if self.open >= LANES_MAX {
            return Err(io::Error::other("this shard has as many lanes as it may"));
        }
        if !self.make_room(world) {
            return Err(io::Error::other("this shard has as many connections as it may"));
        }
        let config = LaneConfig { expected_peer: target.id.clone(), ..self.config(shard, world)? };
        let stream = world.dial(&target.endpoint)?;
        self.install(LaneIo::new(stream, Lane::dial(config, now), Some(dial), now), world)
    }

    /// A dial has failed, or its lane has ended: who waits for it looks for another way.
    pub(super) fn missed(&mut self, dial: u32, why: Option<Missed>, now: Time) {
        let id = self.peers.dial(dial).and_then(|dial| dial.target.id.clone());
        self.peers.missed(dial, why, now);
        self.contacts_changed = true;
        let place = id.and_then(|id| self.peers.find(&id));
        if let Some(peer) = place.and_then(|peer| self.peers.get_mut(peer)) {
            self.again.extend(peer.waiting.drain(..));
        }
        if let Some(peer) = place {
            self.send_events(peer, now);
        }
    }

    /// Takes a connection that was made to this node. Says how many had to be closed for it: the oldest that have not
    /// proven anything give way, so that those who never will cannot keep others out.
    pub(crate) fn accept(&mut self, stream: Box<dyn Stream>, world: &mut dyn World, now: Time) -> u64 {
        let config = match self.config(0, world) {
            Ok(config) => config,
            Err(error) => {
                tracing::warn!(peer = stream.peer(), %error, "closed a connection: it cannot be greeted");
                return 1;
            }
        };
        let mut closed = 0;
        if !self.make_room(world) || self.greeting.len() >= GREETINGS_MAX {
            // Those that have opened meanwhile, or ended, do not count.
            let mut greeting = std::mem::take(&mut self.greeting);
            greeting.retain(|key| self.get(*key).is_some_and(LaneIo::greets));
            if (self.held >= CONNECTIONS_MAX || greeting.len() >= GREETINGS_MAX)
                && let Some(oldest) = greeting.pop_front()
            {
                closed += 1;
                self.drop_now(oldest, world);
            }
            self.greeting = greeting;
        }
        if self.held >= CONNECTIONS_MAX {
            tracing::warn!(CONNECTIONS_MAX, "closed a connection: this shard has as many as it may");
            return closed + 1;
        }
        let lane = LaneIo::new(stream, Lane::accept(config, now), None, now);
        match self.install(lane, world) {
            Ok(key) => self.greeting.push_back(key),
            Err(error) => {
                tracing::warn!(%error, "could not watch a connection; it is closed");
                closed += 1;
            }
        }
        closed
    }

    /// Whether there is room for one more connection. Of those that have ended, which are kept only so that their peers read why,
    /// the oldest gives way: its calls have ended with it, and its peer sees that too.
    fn make_room(&mut self, world: &mut dyn World) -> bool {
        if self.held >= CONNECTIONS_MAX
            && let Some(oldest) = self.closing.pop_front()
        {
            self.cut += 1;
            self.drop_now(oldest, world);
        }
        self.held < CONNECTIONS_MAX
    }

    pub(super) fn drop_now(&mut self, key: LaneKey, world: &mut dyn World) {
        if let Some(lane) = self.remove(key) {
            world.forget(&*lane.stream);
        }
    }

    /// Takes over a lane that another shard greeted for this one, which was `paused` for so long just before. Says whether it
    /// is kept.
    pub(crate) fn adopt(
        &mut self,
        mut lane: Box<LaneIo>,
        paused: Duration,
        world: &mut dyn World,
        now: Time,
    ) -> bool {
        if paused >= PAUSE {
            lane.machine.paused(paused);
        }
        if !self.make_room(world) {
            tracing::warn!(CONNECTIONS_MAX, "closed a lane: this shard has as many connections as it may");
            return false;
        }
        match self.install(*lane, world) {
            Ok(key) => {
                // Bytes read past the greeting are looked at even if no more come.
                self.mark_ready(key);
                self.register(key, now)
            }
            Err(error) => {
                tracing::warn!(%error, "could not watch a connection; it is closed");
                false
            }
        }
    }

    fn install(&mut self, lane: LaneIo, world: &mut dyn World) -> io::Result<LaneKey> {
        let write = !lane.connected;
        let key = self.insert(lane);
        let watched = self.with(key, |lane| world.watch(&*lane.stream, Token::Lane(key), write));
        if let Some(Err(error)) = watched {
            self.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// The greeting is agreed on.
    pub(crate) fn opened(
        &mut self,
        key: LaneKey,
        receive: &mut Option<ReceiveBuffer>,
        world: &mut dyn World,
        now: Time,
    ) -> Opened {
        let Some(lane) = self.get(key) else { return Opened::Closed };
        let Some(agreement) = lane.machine.agreement() else { return Opened::Closed };
        let (wanted, node, dial) = (agreement.shard, agreement.node(), lane.dial);
        let Some(node) = node else {
            self.turn_away(key, CloseReason::MalformedGreeting);
            return Opened::Closed;
        };
        let _ = self.with(key, |lane| lane.node = Some(Arc::new(node)));
        if dial.is_none() && wanted != self.shard {
            let Some(mut lane) = self.remove(key) else { return Opened::Closed };
            world.forget(&*lane.stream);
            lane.receive = receive.take();
            (lane.is_watched, lane.is_unsent, lane.handed_over) = (false, false, true);
            return Opened::For(wanted, lane);
        }
        if self.register(key, now) { Opened::Here } else { Opened::Closed }
    }

    /// Makes an open lane known to its peer, and those that wait for it. Says whether it is kept.
    fn register(&mut self, key: LaneKey, now: Time) -> bool {
        let Some(lane) = self.get(key) else { return false };
        let (Some(node), Some(agreement)) = (lane.node.clone(), lane.machine.agreement()) else {
            return false;
        };
        let (shard, dial) = (agreement.peer_shard, lane.dial);
        let (peer, _) = self.peers.meet(&node);
        let known = self.peers.get(peer).map_or(node.incarnation, |peer| peer.node.incarnation);
        let lives = self.peers.get(peer).is_some_and(|peer| !peer.lanes.is_empty());
        if node.incarnation < known && lives {
            return self.turn_away(key, CloseReason::Superseded);
        }
        // Without a lane to a later life there is none any more: the clock of that node was set back.
        self.peers.take_life(peer, &node);
        self.end_former_lives();
        let of_this_life = |key: &LaneKey| {
            let other = self.get(*key).and_then(|lane| lane.node.as_ref());
            other.is_some_and(|other| other.incarnation == node.incarnation)
        };
        let lanes = self.peers.get(peer).map_or(&[][..], |peer| &peer.lanes);
        let same = lanes.iter().filter(|(at, key)| *at == shard && of_this_life(key)).count();
        if same >= LANES_PER_SHARD_PAIR || self.open >= LANES_MAX {
            return self.turn_away(key, CloseReason::Surplus);
        }
        let refuses_some = self.tell_of(key);
        let _ = self.with(key, |lane| (lane.is_open, lane.refuses_some) = (true, refuses_some));
        self.open += 1;
        if let Some(dial) = dial {
            self.peers.reached(dial);
        }
        self.contacts_changed = true;
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.lanes.push((shard, key));
            self.again.extend(peer.waiting.drain(..));
        }
        self.find_usual();
        self.send_events(peer, now);
        self.watch(key);
        true
    }

    /// Logs a lane that is kept. Says whether the two nodes mean different things by some message.
    fn tell_of(&self, key: LaneKey) -> bool {
        let Some(agreement) = self.get(key).and_then(|lane| lane.machine.agreement()) else { return false };
        let mut refuses_some = false;
        for (id, verdict) in agreement.verdicts() {
            if let Verdict::Refused { difference } = verdict {
                refuses_some = true;
                tracing::warn!(peer = %agreement.peer, id = %id, difference, "layouts differ: refused by name");
            }
        }
        tracing::info!(
            peer = %agreement.peer, incarnation = %agreement.incarnation, endpoint = %agreement.endpoint,
            shard = agreement.peer_shard, "lane open"
        );
        refuses_some
    }

    /// Lanes to a life of a node that is over lead nowhere; their calls may or may not have run.
    pub(in crate::lane) fn end_former_lives(&mut self) {
        let mut former = Vec::new();
        for peer in self.peers.all() {
            let life = peer.node.incarnation;
            let is_former = |key: &LaneKey| {
                self.get(*key).and_then(|lane| lane.node.as_ref()).is_some_and(|node| node.incarnation < life)
            };
            former.extend(peer.lanes.iter().map(|(_, key)| *key).filter(is_former));
        }
        for key in former {
            self.turn_away(key, CloseReason::Superseded);
        }
    }

    fn turn_away(&mut self, key: LaneKey, reason: CloseReason) -> bool {
        let _ = self.with(key, |lane| lane.machine.close(reason));
        false
    }
}
