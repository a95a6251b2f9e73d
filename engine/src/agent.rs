//! The discovery agent: the thread that knows who is in the cluster, and tells the shards.
//!
//! Its work comes in rounds. In each it takes what the shards know by their lanes, and what the resolver found; lets
//! [`Members`] draw the conclusions; and puts a new view, if there is one, into each shard's mailbox and on the [`Board`].
//!
//! ```text
//!  shard ─ Contacts ─▶ ┐            ┌─ View ────▶ each shard, in its own time
//!  shard ─ Contacts ─▶ ├─▶ Members ─┼─ Targets ─▶ shard 0, which keeps a lane to each
//!     names ─ answer ─▶ ┘            └─ View ────▶ Board: `engine.nodes()`, `engine.watch()`
//! ```
//!
//! It carries no request and never wakes a shard: a view is taken in the shard's next turn. A shard wakes it, when it has
//! published. A round waits for nothing, so one test can run many agents with a clock of its own; in particular a name is
//! asked for on yet another thread, because the system's resolver may take many seconds, and just when it does nodes may
//! fail.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::{self, Thread};

use catga_discovery::{
    Contacts, Endpoint, KEEPER, Members, Node, Notice, Publisher, Subscriber, Target, View, mailbox,
};

use crate::limits::{LOOKUP_REST, LOOKUP_SOON};
use crate::nodes::Board;
use crate::rounds::{Rounds, STACK_BYTES};
use crate::time::Time;

/// Whom to keep a lane to: for the shard that does.
#[derive(Debug)]
pub(crate) struct Targets(pub(crate) Arc<[Target]>);

/// A shard's end of the membership.
#[derive(Debug)]
pub(crate) struct Membership {
    /// The first view lies there from the start.
    pub(crate) views: Subscriber<View>,
    /// Shard 0 only. Empty until there is an answer, if there is a name.
    pub(crate) targets: Option<Subscriber<Targets>>,
    /// All that the shard knows, whenever any of it has changed; and then wake the agent.
    pub(crate) contacts: Publisher<Contacts>,
    pub(crate) agent: AgentWaker,
}

/// Wakes the agent for a round. Does not wait and does not allocate; nothing happens if no thread runs the agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct AgentWaker(Arc<OnceLock<Thread>>);

impl AgentWaker {
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

/// Finds the addresses behind a name.
pub(crate) trait Resolver: Send {
    /// Begins to look for `name`, and wakes the agent when there is an answer. Does not wait for it.
    fn ask(&mut self, name: &str, agent: &AgentWaker);

    /// The answer to what was asked last, once.
    fn answer(&mut self) -> Option<io::Result<Vec<SocketAddr>>>;
}

/// The resolver of the system. Each lookup has a thread for itself, which nobody has to wait for when the engine stops.
#[derive(Debug, Default)]
pub(crate) struct SystemResolver {
    answers: Option<mpsc::Receiver<io::Result<Vec<SocketAddr>>>>,
}

impl Resolver for SystemResolver {
    fn ask(&mut self, name: &str, agent: &AgentWaker) {
        let (sender, answers) = mpsc::channel();
        self.answers = Some(answers);
        let (name, agent, answer) = (name.to_owned(), agent.clone(), sender.clone());
        let spawned =
            thread::Builder::new().name("catga-names".into()).stack_size(STACK_BYTES).spawn(move || {
                // If the agent has ended, nobody needs the answer.
                let _ = answer.send(name.to_socket_addrs().map(Iterator::collect));
                agent.wake();
            });
        if let Err(error) = spawned {
            let _ = sender.send(Err(error)); // the other end is right here
        }
    }

    fn answer(&mut self) -> Option<io::Result<Vec<SocketAddr>>> {
        match self.answers.as_ref()?.try_recv() {
            Ok(answer) => {
                self.answers = None;
                Some(answer)
            }
            Err(mpsc::TryRecvError::Empty) => None,
            Err(mpsc::TryRecvError::Disconnected) => {
                self.answers = None;
                Some(Err(io::Error::other("the lookup's thread ended by a panic, which the log has")))
            }
        }
    }
}

/// A name, as `host:port`, and who resolves it.
pub(crate) struct Dns {
    pub(crate) name: String,
    pub(crate) resolver: Box<dyn Resolver>,
}

/// The state of the lookups of one name. The last good answer stands, however many lookups fail after it.
struct Lookups {
    dns: Dns,
    asking: bool,
    answered: Option<Time>,
    /// Whether there ever was an answer that the members were told of.
    told: bool,
    /// Why the last one failed, if it did: so that the log has each cause once.
    failure: Option<String>,
}

impl Lookups {
    fn due(&self, lacks_someone: bool) -> Time {
        let pause = if lacks_someone || self.failure.is_some() { LOOKUP_SOON } else { LOOKUP_REST };
        match self.answered {
            _ if self.asking => Time::NEVER,
            Some(answered) => answered + pause,
            None => Time::ZERO,
        }
    }

    /// Asks if it is time to, and hands on an answer if there is one.
    fn round(
        &mut self,
        now: Time,
        lacks_someone: bool,
        agent: &AgentWaker,
        board: &Board,
    ) -> Option<Vec<Endpoint>> {
        if self.due(lacks_someone) <= now {
            self.asking = true;
            board.count(|stats| stats.lookups += 1);
            self.dns.resolver.ask(&self.dns.name, agent);
        }
        let answer = self.dns.resolver.answer()?;
        (self.asking, self.answered) = (false, Some(now));
        let name = &self.dns.name;
        match answer {
            Ok(addresses) => {
                if self.failure.take().is_some() {
                    tracing::info!(name, "the name of the cluster's nodes can be resolved again");
                }
                self.told = true;
                Some(addresses.into_iter().map(Endpoint::Tcp).collect())
            }
            Err(error) => {
                board.count(|stats| stats.lookups_failed += 1);
                let failure = error.to_string();
                if self.failure.as_ref() != Some(&failure) {
                    tracing::error!(
                        name,
                        error = failure,
                        "cannot resolve the name of the cluster's nodes; the nodes found before stay, and it is tried again"
                    );
                    self.failure = Some(failure);
                }
                // Tried is tried: nobody has to wait for the first answer any longer.
                (!std::mem::replace(&mut self.told, true)).then(Vec::new)
            }
        }
    }
}

/// The agent, without a thread.
pub(crate) struct Agent {
    members: Members,
    lookups: Option<Lookups>,
    shards: Vec<ShardEnds>,
    targets: Publisher<Targets>,
    board: Arc<Board>,
    waker: AgentWaker,
}

/// What the agent has of each shard.
struct ShardEnds {
    contacts: Subscriber<Contacts>,
    views: Publisher<View>,
}

/// Makes an agent for a node, with the ends for each of its shards, in whose mailboxes the first view lies. The nodes of
/// the cluster are the `listed` ones and those behind the name, if there is one.
pub(crate) fn wire(
    own: Node,
    listed: Vec<Target>,
    dns: Option<Dns>,
    shards: u16,
) -> (Agent, Vec<Membership>) {
    let waker = AgentWaker::default();
    let (targets, for_keeper) = mailbox();
    let mut for_keeper = Some(for_keeper);
    let (ends, memberships) = (0..shards)
        .map(|shard| {
            let ((views, its_views), (its_contacts, contacts)) = (mailbox(), mailbox());
            let targets = if shard == KEEPER { for_keeper.take() } else { None };
            let membership =
                Membership { views: its_views, targets, contacts: its_contacts, agent: waker.clone() };
            (ShardEnds { contacts, views }, membership)
        })
        .unzip();
    let members = Members::new(own, listed, dns.is_some());
    let lookups = dns.map(|dns| Lookups { dns, asking: false, answered: None, told: false, failure: None });
    let mut agent = Agent { members, lookups, shards: ends, targets, board: Arc::default(), waker };
    agent.publish();
    (agent, memberships)
}

impl Agent {
    /// Where its views can be seen.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    /// Takes what is new and tells what follows from it. Returns when it has to be called again at the latest; before
    /// that, when it was woken.
    pub(crate) fn round(&mut self, now: Time) -> Time {
        for (shard, ends) in (0..).zip(&mut self.shards) {
            if let Some(contacts) = ends.contacts.take() {
                self.members.heard(shard, contacts);
            }
        }
        let lacks_someone = self.members.lacks_someone();
        let found = self
            .lookups
            .as_mut()
            .and_then(|lookups| lookups.round(now, lacks_someone, &self.waker, &self.board));
        if let Some(endpoints) = found {
            self.members.resolved(endpoints);
        }
        self.members.advance(now.since(Time::ZERO));
        self.publish();
        self.next()
    }

    fn next(&self) -> Time {
        let members = self.members.next_due().map_or(Time::NEVER, |due| Time::ZERO + due);
        match &self.lookups {
            Some(lookups) => members.min(lookups.due(self.members.lacks_someone())),
            None => members,
        }
    }

    fn publish(&mut self) {
        if let Some(targets) = self.members.take_targets() {
            self.targets.publish(Arc::new(Targets(targets)));
        }
        if let Some(view) = self.members.take_view() {
            for ends in &mut self.shards {
                ends.views.publish(view.clone());
            }
            self.board.put(view);
        }
        for notice in self.members.take_notices() {
            if notice.is_error() {
                tracing::error!("cluster: {notice}");
            } else {
                tracing::info!("cluster: {notice}");
            }
            self.board.count(|stats| match notice {
                Notice::Refused(..) => stats.targets_refused += 1,
                Notice::TwoLives(..) | Notice::Outlived(..) => stats.ids_shared += 1,
                Notice::TooMany(_) => stats.nodes_ignored += 1,
                _ => {}
            });
        }
    }
}

/// The thread of an agent. Dropping it ends the thread, which never waits for anything but to be woken.
pub(crate) struct AgentThread {
    _rounds: Rounds,
}

impl AgentThread {
    /// Must come before any shard is started: none of them wakes a thread that it does not know of.
    pub(crate) fn start(mut agent: Agent) -> io::Result<Self> {
        let waker = agent.waker.clone();
        let rounds = Rounds::start("catga-discovery", move || {
            // The resolver's threads may be faster than the one that starts this one.
            agent.waker.0.get_or_init(thread::current);
            let next = agent.round(Time::read());
            next.since(Time::read())
        })?;
        waker.0.get_or_init(|| rounds.waker().clone());
        Ok(Self { _rounds: rounds })
    }
}

#[cfg(test)]
mod tests;
