//! The simulated network: in-memory links with delay, loss of the connection, silence, and slowness.
//!
//! A link joins two ends. What an end writes becomes readable at the other after a delay, in order; at most a window of
//! bytes is under way. A link can be
//!
//! * **cut**: both ends see a reset, each after a delay, and what was under way is lost;
//! * **silenced**, in one direction or both: bytes are taken and never come, and nobody is told (a half-open
//!   connection: a pulled cable, a frozen peer). A silenced link stays so: the stream has a hole;
//! * **slowed**: reads and writes move a few bytes at a time.
//!
//! Two nodes can be **parted**: all links between them fall silent, and dials are never answered, until they are joined
//! again. Whoever dials is connected after a delay, refused, or never answered, as the [`Weather`] of the moment says. All chance
//! comes from the network's own seed, and everything that happens goes into the trace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::time::Duration;

use catga_codec::hash::combine;
use catga_discovery::Endpoint;

use super::rng::Rng;
use crate::runtime::Token;
use crate::time::Time;

/// Which end of which link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct End {
    pub(crate) link: usize,
    /// 0: who dialled. 1: who accepted.
    pub(crate) side: usize,
}

impl End {
    fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// How the network behaves at the moment.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
    /// Bytes under way in one direction of one link.
    pub(crate) window: usize,
    /// Bytes that one read or write moves at most.
    pub(crate) grain: usize,
    /// So many dials in a thousand are refused.
    pub(crate) refuses: u64,
    /// So many dials in a thousand are never answered.
    pub(crate) ignores: u64,
    /// So many connections in a thousand are closed as soon as they are taken: there is no descriptor for them.
    pub(crate) turns_away: u64,
}

impl Weather {
    /// Short delays, and everything arrives.
    pub(crate) fn fair() -> Self {
        Self {
            delay_min: Duration::from_micros(20),
            delay_max: Duration::from_micros(200),
            window: 256 * 1024,
            grain: usize::MAX,
            refuses: 0,
            ignores: 0,
            turns_away: 0,
        }
    }

    /// Bytes take at most so long, and at least as long as before, if that is not longer.
    pub(crate) fn delay_up_to(&mut self, longest: Duration) {
        (self.delay_min, self.delay_max) = (self.delay_min.min(longest), longest);
    }

    /// Drawn by chance, for storms; nobody is turned away. So many of a thousand of them move a few bytes at a time.
    pub(crate) fn drawn(rng: &mut Rng, grainy: u64) -> Self {
        let delay_min = rng.time(Duration::ZERO, Duration::from_micros(300));
        Self {
            delay_min,
            delay_max: delay_min + rng.time(Duration::ZERO, Duration::from_millis(3)),
            window: rng.between(512, 64 * 1024) as usize,
            grain: if rng.chance(grainy) { rng.between(1, 400) as usize } else { usize::MAX },
            refuses: if rng.chance(300) { 500 } else { 0 },
            ignores: if rng.chance(200) { 300 } else { 0 },
            turns_away: 0,
        }
    }
}

/// Bytes on their way to one end.
#[derive(Debug, Default)]
struct Way {
    chunks: VecDeque<(Time, VecDeque<u8>)>,
    bytes: usize,
    /// The end of the stream is noticed then.
    finished: Option<Time>,
    last_arrival: Time,
    silent: bool,
}

#[derive(Clone, Copy, Debug)]
enum Connect {
    At(Time),
    RefusedAt(Time),
    Never,
}

/// One connection.
#[derive(Debug)]
struct Link {
    connect: Connect,
    /// The node of each side.
    nodes: [Option<usize>; 2],
    /// By the side that reads.
    ways: [Way; 2],
    /// When each side notices that the connection was reset.
    reset: [Option<Time>; 2],
    closed: [bool; 2],
    /// The world of each side, while that watches it.
    worlds: [Option<usize>; 2],
    /// Bytes that one read or write moves at most.
    grain: usize,
}

#[derive(Debug)]
struct Listener {
    node: usize,
    /// Connections that wait to be accepted.
    backlog: VecDeque<(Time, End)>,
}

/// All links.
#[derive(Debug)]
pub(crate) struct Network {
    pub(crate) now: Time,
    pub(crate) weather: Weather,
    pub(crate) trace: u64,
    rng: Rng,
    links: Vec<Link>,
    /// Who listens at an endpoint.
    listening: BTreeMap<Endpoint, Listener>,
    /// Nodes between which nothing comes through, the lower first.
    parted: BTreeSet<(usize, usize)>,
    /// By world: what it has asked to be told about.
    watches: Vec<BTreeMap<End, (Token, bool)>>,
    /// By world: whether when something is ready for it may have changed since it was last asked.
    changed: Vec<bool>,
    /// The window that counted then.
    window: usize,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Time::ZERO,
            weather: Weather::fair(),
            trace: seed,
            rng: Rng::new(seed),
            links: Vec::new(),
            listening: BTreeMap::new(),
            parted: BTreeSet::new(),
            watches: Vec::new(),
            changed: Vec::new(),
            window: 0,
        }
    }

    fn note(&mut self, what: u64, number: u64) {
        self.trace = combine(self.trace, combine(what, combine(number, self.now.as_nanos())));
    }

    fn delay(&mut self) -> Duration {
        self.rng.time(self.weather.delay_min, self.weather.delay_max)
    }

    // ---- worlds

    pub(crate) fn new_world(&mut self) -> usize {
        self.watches.push(BTreeMap::new());
        self.changed.push(true);
        self.watches.len() - 1
    }

    pub(crate) fn listen(&mut self, endpoint: Endpoint, node: usize) {
        self.listening.insert(endpoint, Listener { node, backlog: VecDeque::new() });
    }

    /// Nobody listens there any more; who had connected and was not accepted is reset.
    pub(crate) fn unlisten(&mut self, endpoint: &Endpoint) {
        let gone = self.listening.remove(endpoint);
        for (_, end) in gone.map(|gone| gone.backlog).unwrap_or_default() {
            self.cut(end.link);
            self.links[end.link].closed[end.side] = true;
        }
    }

    pub(crate) fn watch(&mut self, world: usize, end: End, token: Token, write: bool) {
        self.watches[world].insert(end, (token, write));
        self.links[end.link].worlds[end.side] = Some(world);
        self.changed[world] = true;
    }

    pub(crate) fn forget(&mut self, world: usize, end: End) {
        self.watches[world].remove(&end);
        self.changed[world] = true;
    }

    /// What is ready for a world: level-triggered, in a fixed order.
    pub(crate) fn ready(&self, world: usize, listens: Option<&Endpoint>, tokens: &mut Vec<Token>) {
        if listens.is_some_and(|endpoint| self.can_accept(endpoint)) {
            tokens.push(Token::Listener);
        }
        let ready = self.watches[world]
            .iter()
            .filter(|(end, (_, write))| self.readable(**end) || (*write && self.writable(**end)));
        tokens.extend(ready.map(|(_, (token, _))| *token));
    }

    /// Something has happened to a link: those who watch its ends have to ask again.
    fn touch(&mut self, link: usize) {
        for world in self.links[link].worlds.into_iter().flatten() {
            self.changed[world] = true;
        }
    }

    /// Whether [`next_ready`](Self::next_ready) may say something else for a world than it did when this was last asked.
    pub(crate) fn take_changed(&mut self, world: usize) -> bool {
        if self.window != self.weather.window {
            self.window = self.weather.window;
            self.changed.fill(true);
        }
        std::mem::take(&mut self.changed[world])
    }

    /// When something is ready for a world, if all stays as it is.
    pub(crate) fn next_ready(&self, world: usize, listens: Option<&Endpoint>) -> Time {
        let backlog = listens.and_then(|endpoint| self.listening.get(endpoint)?.backlog.front());
        let mut next = backlog.map_or(Time::NEVER, |(at, _)| *at);
        for (end, (_, write)) in &self.watches[world] {
            let link = &self.links[end.link];
            let way = &link.ways[end.side];
            let connected = match link.connect {
                Connect::At(at) if *write && link.ways[1 - end.side].bytes < self.weather.window => Some(at),
                Connect::RefusedAt(at) if *write => Some(at),
                _ => None,
            };
            let arrival = way.chunks.front().map(|(at, _)| *at);
            for at in [link.reset[end.side], arrival, way.finished, connected].into_iter().flatten() {
                next = next.min(at);
            }
        }
        next
    }

    fn readable(&self, end: End) -> bool {
        let link = &self.links[end.link];
        let way = &link.ways[end.side];
        let due = |at: Option<Time>| at.is_some_and(|at| at <= self.now);
        due(link.reset[end.side]) || due(way.chunks.front().map(|(at, _)| *at)) || due(way.finished)
    }

    fn writable(&self, end: End) -> bool {
        let link = &self.links[end.link];
        match link.connect {
            Connect::At(at) if at <= self.now => link.ways[1 - end.side].bytes < self.weather.window,
            Connect::RefusedAt(at) => at <= self.now,
            _ => false,
        }
    }

    // ---- connecting

    pub(crate) fn dial(&mut self, from: usize, endpoint: &Endpoint) -> End {
        let end = End { link: self.links.len(), side: 0 };
        let at = self.now + self.delay();
        let grain = self.weather.grain;
        let to = self.listening.get(endpoint).map(|listener| listener.node);
        let parted = to.is_some_and(|to| self.parted.contains(&(from.min(to), from.max(to))));
        let connect = if parted || self.rng.chance(self.weather.ignores) {
            Connect::Never
        } else if to.is_none() || self.rng.chance(self.weather.refuses) {
            Connect::RefusedAt(at)
        } else {
            Connect::At(at)
        };
        self.links.push(Link {
            connect,
            nodes: [Some(from), to],
            ways: Default::default(),
            reset: [None; 2],
            closed: [false; 2],
            worlds: [None; 2],
            grain,
        });
        if matches!(connect, Connect::At(_))
            && let Some(listener) = self.listening.get_mut(endpoint)
        {
            listener.backlog.push_back((at, end.other()));
            self.changed.fill(true);
        }
        self.note(1, end.link as u64);
        end
    }

    pub(crate) fn connected(&self, end: End) -> io::Result<bool> {
        let link = &self.links[end.link];
        if link.reset[end.side].is_some_and(|at| at <= self.now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        match link.connect {
            Connect::At(at) => Ok(at <= self.now),
            Connect::RefusedAt(at) if at <= self.now => Err(io::ErrorKind::ConnectionRefused.into()),
            Connect::RefusedAt(_) | Connect::Never => Ok(false),
        }
    }

    fn can_accept(&self, endpoint: &Endpoint) -> bool {
        self.listening.get(endpoint).and_then(|at| at.backlog.front()).is_some_and(|(at, _)| *at <= self.now)
    }

    pub(crate) fn accept(&mut self, endpoint: &Endpoint) -> Option<End> {
        if !self.can_accept(endpoint) {
            return None;
        }
        let (_, end) = self.listening.get_mut(endpoint)?.backlog.pop_front()?;
        self.note(2, end.link as u64);
        Some(end)
    }

    /// Whether who has just accepted has no descriptor for it.
    pub(crate) fn turns_away(&mut self) -> bool {
        self.rng.chance(self.weather.turns_away)
    }

    // ---- moving bytes

    pub(crate) fn read(&mut self, end: End, into: &mut [u8]) -> io::Result<usize> {
        let now = self.now;
        let link = &mut self.links[end.link];
        if link.reset[end.side].is_some_and(|at| at <= now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let limit = into.len().min(link.grain);
        let way = &mut link.ways[end.side];
        let mut read = 0;
        while read < limit {
            let Some((at, chunk)) = way.chunks.front_mut() else { break };
            if *at > now {
                break;
            }
            let part = chunk.len().min(limit - read);
            for (place, byte) in into[read..].iter_mut().zip(chunk.drain(..part)) {
                *place = byte;
            }
            read += part;
            if chunk.is_empty() {
                way.chunks.pop_front();
            }
        }
        way.bytes -= read;
        if read > 0 {
            self.touch(end.link);
            self.note(3, (end.link * 2 + end.side) as u64 + ((read as u64) << 32));
            return Ok(read);
        }
        match way.finished {
            Some(at) if at <= now && way.chunks.is_empty() => Ok(0),
            _ => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    pub(crate) fn write(&mut self, end: End, bytes: &[u8]) -> io::Result<usize> {
        let (now, delay, window) = (self.now, self.delay(), self.weather.window);
        let link = &mut self.links[end.link];
        if link.reset[end.side].is_some_and(|at| at <= now) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if link.closed[1 - end.side] && !link.ways[1 - end.side].silent {
            // It is told that nobody is there once this has travelled; until then bytes are taken as ever.
            link.reset[end.side].get_or_insert(now + delay);
        }
        let grain = link.grain;
        self.touch(end.link);
        let way = &mut self.links[end.link].ways[1 - end.side];
        let taken = bytes.len().min(grain).min(window.saturating_sub(way.bytes));
        if taken == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        way.bytes += taken;
        if !way.silent {
            let at = (now + delay).max(way.last_arrival);
            way.last_arrival = at;
            way.chunks.push_back((at, bytes[..taken].iter().copied().collect()));
        }
        self.note(4, (end.link * 2 + end.side) as u64 + ((taken as u64) << 32));
        Ok(taken)
    }

    /// No more will be written by this end.
    pub(crate) fn finish(&mut self, end: End) {
        let at = self.now + self.delay();
        let way = &mut self.links[end.link].ways[1 - end.side];
        if !way.silent && way.finished.is_none() {
            way.finished = Some(at.max(way.last_arrival));
        }
        self.touch(end.link);
    }

    /// The end is gone. As with TCP, one that leaves bytes unread resets the connection.
    pub(crate) fn close(&mut self, end: End) {
        let at = self.now + self.delay();
        let link = &mut self.links[end.link];
        link.closed[end.side] = true;
        if link.ways[end.side].bytes > 0 && !link.ways[1 - end.side].silent {
            link.reset[1 - end.side].get_or_insert(at);
        } else {
            self.finish(end);
        }
        self.touch(end.link);
        if let Some(world) = self.links[end.link].worlds[end.side].take() {
            self.watches[world].remove(&end);
        }
        self.note(5, (end.link * 2 + end.side) as u64);
    }

    // ---- trouble

    /// Links whose two ends are still held.
    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.links.len()).filter(|&link| !self.links[link].closed.contains(&true)).collect()
    }

    /// A living link, by chance.
    pub(crate) fn any(&mut self) -> Option<usize> {
        let alive = self.alive();
        let chosen = self.rng.below(alive.len() as u64) as usize;
        alive.get(chosen).copied()
    }

    /// Resets the connection; what is under way is lost.
    pub(crate) fn cut(&mut self, link: usize) {
        for side in 0..2 {
            let at = self.now + self.delay();
            self.links[link].reset[side].get_or_insert(at);
            let now = self.now;
            let way = &mut self.links[link].ways[side];
            way.chunks.retain(|(at, _)| *at <= now);
            way.bytes = way.chunks.iter().map(|(_, chunk)| chunk.len()).sum();
        }
        self.touch(link);
        self.note(6, link as u64);
    }

    /// From now on nothing that is written towards `side` comes, and nobody is told.
    pub(crate) fn silence(&mut self, link: usize, side: usize) {
        let now = self.now;
        let way = &mut self.links[link].ways[side];
        way.silent = true;
        way.chunks.retain(|(at, _)| *at <= now);
        self.touch(link);
        self.note(7, (link * 2 + side) as u64);
    }

    /// From now on nothing comes out of this node, nor reaches it, over the links that it has.
    pub(crate) fn silence_all_of(&mut self, node: usize) {
        for link in self.alive() {
            if self.links[link].nodes.contains(&Some(node)) {
                self.silence(link, 0);
                self.silence(link, 1);
            }
        }
    }

    /// From now on nothing comes through between these two nodes.
    pub(crate) fn part(&mut self, one: usize, other: usize) {
        self.parted.insert((one.min(other), one.max(other)));
        for link in self.alive() {
            let nodes = self.links[link].nodes;
            if nodes == [Some(one), Some(other)] || nodes == [Some(other), Some(one)] {
                self.silence(link, 0);
                self.silence(link, 1);
            }
        }
    }

    /// Fair weather from now on, and whoever was parted can be dialled again. Links that fell silent stay so.
    pub(crate) fn heal(&mut self) {
        self.weather = Weather::fair();
        self.parted.clear();
        self.links.iter_mut().for_each(|link| link.grain = usize::MAX);
    }

    /// Whether somebody holds an end of a link that has fallen silent, and will find out only in time.
    pub(crate) fn is_deceiving(&self) -> bool {
        let silent = |link: &Link| link.ways.iter().any(|way| way.silent);
        let made = |link: &Link| matches!(link.connect, Connect::At(_));
        self.links.iter().any(|link| link.closed.contains(&false) && made(link) && silent(link))
    }

    /// From now on reads and writes move at most so many bytes.
    pub(crate) fn slow(&mut self, link: usize, grain: usize) {
        self.links[link].grain = grain;
        self.note(8, link as u64);
    }
}
