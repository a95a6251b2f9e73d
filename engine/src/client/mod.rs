//! `Client`: calls from any thread.
//!
//! A foreign thread archives its request into a pooled frame and pushes it into the [`inbox`] of a shard, an MPMC queue. The
//! shard that handles it (or that forwards it) puts the answer into the same box and the box into the call's
//! [`completion`], then wakes the caller. Both directions are one pointer through a lock-free cell.
//!
//! Nothing can be lost on the way: the box travels inside a [`Promise`](completion::Promise), and a promise that is dropped
//! tells its caller so. Nothing waits for ever either: the watchdog's thread keeps the deadlines, whatever the shard does.

pub(crate) mod callers;
pub(crate) mod completion;
pub(crate) mod exchange;
pub(crate) mod inbox;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use catga_codec::hash::hash_u64;
use catga_codec::{CallId, Contract, EncodeError, Event, Flags, Header, Kind, Request};
use catga_discovery::NodeId;
use catga_discovery::sync::atomic::{AtomicUsize, Ordering};

use crate::broadcast::ClientBroadcast;
use crate::choice::{Choice, Route};
use crate::client::completion::Completions;
use crate::client::exchange::{Exchange, Letter};
use crate::client::inbox::{Inbound, Inbox};
use crate::engine::EngineId;
use crate::error::{CallError, NotSent, PublishError};
use crate::lane::events::Publication;
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::route::{Recipients, RouteTable};
use crate::shard::core::Manner;
use crate::time::Clock;

/// What all clones of a client share.
pub(crate) struct ClientShared {
    pub(crate) engine: EngineId,
    pub(crate) inboxes: Box<[Arc<Inbox>]>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) deadline: Duration,
    /// The id of the engine's node; none without a cluster.
    pub(crate) node: Option<NodeId>,
    pub(crate) calls: Arc<Completions>,
    pub(crate) clock: Clock,
    /// Round robin over shards that can take a call equally well.
    next: AtomicUsize,
}

impl ClientShared {
    pub(crate) fn new(
        engine: EngineId,
        inboxes: Box<[Arc<Inbox>]>,
        routes: Arc<RouteTable>,
        deadline: Duration,
        node: Option<NodeId>,
    ) -> Self {
        let (calls, clock, next) = (Completions::new(), Clock::default(), AtomicUsize::new(0));
        Self { engine, inboxes, routes, deadline, node, calls, clock, next }
    }

    /// The shard that tells other nodes of events with this hash: the same one for as long as it is not stuck.
    fn herald(&self, hash: u64) -> Option<u16> {
        self.routes.stuck.next_among(self.inboxes.len(), hash as usize, |place| place as u16)
    }

    fn push(&self, shard: u16, event: Inbound) -> Result<(), PublishError> {
        let inbox = &self.inboxes[usize::from(shard)];
        if inbox.is_closed() {
            return Err(PublishError::Stopping);
        }
        inbox.push(event).map_err(|_| PublishError::Full)
    }

    /// The shard for a message that is handled there: the owner of its key, else those that handle it in turn.
    pub(crate) fn shard_for(&self, recipients: Option<Recipients<'_>>) -> Result<u16, NotSent> {
        let turn = || self.next.fetch_add(1, Ordering::Relaxed); // a ticket: partners with nothing
        let stuck = &self.routes.stuck;
        match recipients {
            Some(Recipients::Owner(shard)) if stuck.contains(shard) => Err(NotSent::Stuck),
            Some(Recipients::Owner(shard)) => Ok(shard),
            Some(Recipients::AnyOf(shards)) => stuck.next_of(shards, turn()).ok_or(NotSent::Stuck),
            // No shard here serves it: any one may know a node that does.
            None => stuck.next_among(self.inboxes.len(), turn(), |place| place as u16).ok_or(NotSent::Stuck),
        }
    }
}

/// A handle to an engine for threads that are not its shards: clone it, send it, use it from any runtime.
///
/// Obtained from [`Engine::client`](crate::Engine::client). It does not keep the engine alive: when the engine has
/// stopped, calls end as [`NotSent::Stopping`].
#[derive(Clone)]
pub struct Client {
    shared: Arc<ClientShared>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("engine", &self.shared.engine).finish_non_exhaustive()
    }
}

impl Client {
    pub(crate) fn new(shared: Arc<ClientShared>) -> Self {
        Self { shared }
    }

    #[cfg(test)]
    pub(crate) fn calls(&self) -> &Completions {
        &self.shared.calls
    }

    /// Sends a request; the future ends in exactly one outcome.
    ///
    /// Nothing is sent before the future is polled. If the shard's inbox is full it waits for room, within its deadline.
    /// Dropping the future gives the call up: a handler that works on it is told to stop.
    ///
    /// Cost: one archive, one push into an MPMC queue, a wake-up of the shard if it sleeps, and one of the caller.
    ///
    /// # Errors
    /// The future's error says in which phase the call ended: see [`CallError`].
    pub fn send<'a, R: Request>(&'a self, request: &'a R) -> ClientCall<'a, R> {
        let (within, manner) = (self.shared.deadline, Manner::default());
        ClientCall { exchange: Exchange::new(&self.shared), request, within, manner }
    }

    /// As [`send`](Self::send), but never waits for room: where a bound on the way is full (the inbox, the ring behind
    /// it, a lane) the call ends at once as [`NotSent::Full`]. It still waits for the answer.
    ///
    /// # Errors
    /// As `send`.
    pub fn try_send<'a, R: Request>(&'a self, request: &'a R) -> ClientCall<'a, R> {
        let manner = Manner { at_once: true, ..Manner::default() };
        ClientCall { manner, ..self.send(request) }
    }

    /// Delivers an event to every listening service instance (a keyed one: to those of its key's shard on each node), on all
    /// shards and nodes in parallel; the future ends in a [`Report`](crate::Report) with a line for each node.
    ///
    /// Nothing is sent before the future is polled. The report comes
    /// [`REPORT_GRACE`](crate::limits::REPORT_GRACE) after the deadline at the latest, so that lines that have come to nothing
    /// by then leave the others their own. Cost: as [`send`](Self::send) to one of the listening shards, or to any if none here
    /// listens; that shard makes the broadcast: see [`Context::broadcast`](crate::Context::broadcast).
    pub fn broadcast<'a, E: Event>(&'a self, event: &'a E) -> ClientBroadcast<'a, E> {
        ClientBroadcast::new(&self.shared, event)
    }

    /// Sends a request and blocks this thread until its outcome.
    ///
    /// For options: `client.send(&request).within(..).block()`.
    ///
    /// # Errors
    /// As from [`send`](Self::send); on a shard's own thread, which must not block, [`NotSent::OnShard`].
    pub fn send_blocking<R: Request>(&self, request: &R) -> Result<Reply<R::Reply>, CallError<R::Error>> {
        self.send(request).block()
    }

    /// Publishes an event to every service that listens, here and on every other node that is up: see
    /// [`Context::publish`](crate::Context::publish). Does not wait for them.
    ///
    /// Cost: one archive, and for each listening shard of this node a copy and a push into its inbox. In a cluster one push
    /// more, and an allocation: one shard, for events of the same type and key always the same, tells the other nodes.
    ///
    /// # Errors
    /// [`PublishError`] says what the event has reached. What is dropped on the way to another node is no error here; it is
    /// counted.
    pub fn publish<E: Event>(&self, event: &E) -> Result<(), PublishError> {
        let listeners = self.shared.routes.listeners(E::type_index().get());
        let recipients = listeners.map(|listeners| listeners.place(event.key()));
        let shards = recipients.as_ref().map_or(&[][..], Recipients::shards);
        let clustered = self.shared.node.is_some();
        if shards.is_empty() && !clustered {
            return Ok(());
        }
        let mut frame = pool::take();
        frame.encode(event_header(event), event).map_err(|_| PublishError::TooLarge)?;
        let (last, others) = match shards.split_last() {
            Some((last, others)) if !clustered => (Some(last), others),
            _ => (None, shards),
        };
        for &shard in others {
            let mut copy = pool::take();
            if let Some(local) = frame.local() {
                copy.copy_local(local);
            }
            self.shared.push(shard, Inbound::Event(copy))?;
        }
        match last {
            Some(&shard) => self.shared.push(shard, Inbound::Event(frame)),
            None => {
                let contract = Contract::of_event::<E>;
                let shard = self.shared.herald(hash_u64(E::ID.0 ^ event.key())).ok_or(PublishError::Full)?;
                self.shared.push(shard, Inbound::Publication(Box::new(Publication { frame, contract })))
            }
        }
    }
}

/// The header of an event, apart from what the encoder fills in.
pub(crate) fn event_header<E: Event>(event: &E) -> Header {
    let mut header = Header::new(Kind::Event);
    if E::KEYED {
        header.flags = Flags::KEYED;
        header.key = event.key();
    }
    header
}

/// The header of a request, apart from what the encoder fills in.
#[inline]
pub(crate) fn request_header<R: Request>(
    request: &R,
    flags: Flags,
    call: CallId,
    remaining_us: u32,
) -> Header {
    let mut header = Header::new(Kind::Request);
    header.flags = flags;
    header.call = call;
    header.remaining_us = remaining_us;
    if R::KEYED {
        header.flags = flags.with(Flags::KEYED);
        header.key = request.key();
    }
    header
}

/// A call from a foreign thread: a future of the reply. Made by [`Client::send`].
#[must_use = "a call is sent when it is polled"]
pub struct ClientCall<'a, R: Request> {
    exchange: Exchange<'a>,
    request: &'a R,
    within: Duration,
    manner: Manner,
}

impl<R: Request> std::fmt::Debug for ClientCall<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCall")
            .field("message", &R::NAME)
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

impl<R: Request> ClientCall<'_, R> {
    /// The time the call may take, from when it is first polled. It ends at most 10 ms later, even if its shard is stuck.
    /// A handler on another shard or node than the one that takes the call is given 24 days of it at most.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = deadline;
        self
    }

    /// Allows the request to run more than once: see [`Call::idempotent`](crate::Call::idempotent).
    pub fn idempotent(mut self) -> Self {
        self.manner.flags = self.manner.flags.with(Flags::IDEMPOTENT);
        self
    }

    /// Which node the call goes to: see [`Route`].
    pub fn route(mut self, route: Route) -> Self {
        self.manner.choice = Choice::from(&route);
        self
    }

    /// Blocks this thread until the outcome.
    ///
    /// # Errors
    /// As from the future; on a shard's own thread, which must not block, [`NotSent::OnShard`].
    pub fn block(mut self) -> Result<Reply<R::Reply>, CallError<R::Error>> {
        if crate::tasks::on_a_shard() {
            return Err(CallError::NotSent(NotSent::OnShard));
        }
        THREAD.with(|waker| {
            let mut cx = TaskContext::from_waker(waker);
            loop {
                if let Poll::Ready(outcome) = Pin::new(&mut self).poll(&mut cx) {
                    return outcome;
                }
                std::thread::park();
            }
        })
    }

    fn write(
        shared: &ClientShared,
        request: &R,
        within: Duration,
        manner: Manner,
    ) -> Result<Letter, NotSent> {
        // The shard first: its ticket is a locked instruction, which would wait for what was written before.
        let recipients =
            shared.routes.request(R::type_index().get()).map(|shards| shards.place(request.key()));
        let shard = shared.shard_for(recipients)?;
        let mut frame = pool::take();
        // The time left is in the letter: the clock is the shard's too.
        let header = request_header(request, manner.flags, CallId::default(), 0);
        frame.encode(header, request).map_err(not_encoded)?;
        let Manner { at_once, choice, .. } = manner;
        let (contract, grace) = (Contract::of_request::<R>, Duration::ZERO);
        Ok(Letter { shard, frame, contract, within, grace, at_once, choice })
    }
}

/// Wakes a thread that blocks.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

thread_local! {
    /// The waker of this thread.
    static THREAD: Waker = Waker::from(Arc::new(Unpark(std::thread::current())));
}

/// An archive that failed, as the reason a call was not sent.
pub(crate) fn not_encoded(error: EncodeError) -> NotSent {
    match error {
        EncodeError::Full | EncodeError::TooLarge => NotSent::TooLarge,
        _ => NotSent::Unarchivable,
    }
}

impl<R: Request> Future for ClientCall<'_, R> {
    type Output = Result<Reply<R::Reply>, CallError<R::Error>>;

    fn poll(self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let Self { exchange, request, within, manner } = self.get_mut();
        exchange
            .poll(cx, |shared| Self::write(shared, request, *within, *manner))
            .map(|(ending, frame)| conclude::<R>(ending, frame.unwrap_or_else(pool::take)))
    }
}

impl<R: Request> Unpin for ClientCall<'_, R> {}
