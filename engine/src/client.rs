//! `Client`: calls from any thread.
//!
//! A foreign thread archives its request into a pooled frame and pushes it into the inbox of a shard, an MPMC queue. The
//! shard that handles it (or that forwards it) puts the answer into the same box and the box into the call's
//! [`Completion`], then wakes the caller. Both directions are one pointer through a lock-free cell.
//!
//! Nothing can be lost on the way: the box travels inside a [`Promise`], and a promise that is dropped tells its caller
//! so. A shard that stops closes its inbox before it empties it; whoever pushed too late finds it closed and empties it.

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use catga_codec::{CallId, Contract, EncodeError, Event, Flags, Header, Kind, OwnedFrame, Request};
use catga_discovery::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::atomic::AtomicCell;

use crate::broadcast::ClientBroadcast;
use crate::call::table::Ending;
use crate::engine::EngineId;
use crate::error::{CallError, NotSent, PublishError, Unknown};
use crate::lane::io::LaneIo;
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::route::{Placement, RouteTable};
use crate::shard::core::Manner;

/// What comes into a shard from outside its engine's shards.
pub(crate) enum Inbound {
    /// A call, with its request still in the promise's box.
    Call(Promise),
    /// An event.
    Event(OwnedFrame),
    /// A lane that another shard accepted and greeted for this one.
    Lane(Box<LaneIo>),
}

/// The MPMC way into a shard.
pub(crate) struct Inbox {
    queue: ArrayQueue<Inbound>,
    closed: AtomicBool,
    doorbell: Arc<Doorbell<EventFd>>,
}

impl Inbox {
    pub(crate) fn new(capacity: usize, doorbell: Arc<Doorbell<EventFd>>) -> Self {
        Self { queue: ArrayQueue::new(capacity), closed: AtomicBool::new(false), doorbell }
    }

    /// Pushes, and wakes the shard if it sleeps. Gives the thing back if the inbox is full.
    pub(crate) fn push(&self, inbound: Inbound) -> Result<(), Inbound> {
        self.queue.push(inbound)?;
        self.doorbell.ring();
        // SeqCst: pairs with the fence in `close`. Either the closing shard's last look sees what was pushed, or this
        // load sees that it is closed.
        fence(Ordering::SeqCst);
        if self.closed.load(Ordering::Relaxed) {
            self.empty();
        }
        Ok(())
    }

    pub(crate) fn pop(&self) -> Option<Inbound> {
        self.queue.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn is_closed(&self) -> bool {
        // Acquire: pairs with the Release in `close`.
        self.closed.load(Ordering::Acquire)
    }

    /// No more: what is in the queue, or comes too late, is told that the engine is stopping.
    pub(crate) fn close(&self) {
        // Release: pairs with the Acquire in `is_closed`; the fence pairs with the one in `push`.
        self.closed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        self.empty();
    }

    fn empty(&self) {
        // Dropping a promise tells its caller.
        while self.queue.pop().is_some() {}
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox").field("waiting", &self.queue.len()).finish_non_exhaustive()
    }
}

/// What travels: the request on the way there, the answer on the way back.
#[derive(Debug)]
struct Parcel {
    ending: Ending,
    frame: Option<OwnedFrame>,
    /// What the sender means by the message, to be compared with what a node means by it.
    contract: fn() -> Contract,
    /// Whether it ends at once where there is no room on the shard's way on.
    at_once: bool,
}

/// Where the answer to one foreign call is put.
#[derive(Default)]
pub(crate) struct Completion {
    answered: AtomicCell<Option<Box<Parcel>>>,
    waker: AtomicWaker,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

/// What a foreign thread asks of a shard.
pub(crate) struct Asked {
    pub(crate) frame: OwnedFrame,
    pub(crate) contract: fn() -> Contract,
    pub(crate) at_once: bool,
}

/// The duty to answer a foreign call. Dropping it is an answer too.
#[derive(Debug)]
pub(crate) struct Promise {
    parcel: Option<Box<Parcel>>,
    completion: Arc<Completion>,
}

impl Promise {
    /// Takes the request out. From here on a lost promise means that the handler may have run.
    pub(crate) fn take_request(&mut self) -> Option<Asked> {
        let parcel = self.parcel.as_mut()?;
        parcel.ending = Ending::Unknown(Unknown::Stopped);
        Some(Asked { frame: parcel.frame.take()?, contract: parcel.contract, at_once: parcel.at_once })
    }

    /// Answers.
    pub(crate) fn keep(mut self, ending: Ending, frame: Option<OwnedFrame>) {
        if let Some(parcel) = self.parcel.as_mut() {
            parcel.ending = ending;
            parcel.frame = frame;
        }
        self.deliver();
    }

    fn deliver(&mut self) {
        if let Some(parcel) = self.parcel.take() {
            self.completion.answered.store(Some(parcel));
            self.completion.waker.wake();
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.deliver();
    }
}

/// What all clones of a client share.
pub(crate) struct ClientShared {
    pub(crate) engine: EngineId,
    pub(crate) inboxes: Box<[Arc<Inbox>]>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) deadline: Duration,
    /// Round robin over shards that can take a call equally well.
    next: AtomicUsize,
    idle: ArrayQueue<(Box<Parcel>, Arc<Completion>)>,
}

impl ClientShared {
    pub(crate) fn new(
        engine: EngineId,
        inboxes: Box<[Arc<Inbox>]>,
        routes: Arc<RouteTable>,
        deadline: Duration,
    ) -> Self {
        let idle = ArrayQueue::new(1024);
        Self { engine, inboxes, routes, deadline, next: AtomicUsize::new(0), idle }
    }

    fn inbox_for(&self, placement: Option<Placement<'_>>) -> &Inbox {
        let turn = || self.next.fetch_add(1, Ordering::Relaxed); // a ticket: partners with nothing
        let shard = match placement {
            Some(Placement::Owner(shard)) => usize::from(shard),
            Some(Placement::AnyOf(shards)) => usize::from(shards[turn() % shards.len()]),
            // No shard here serves it: any one may know a node that does.
            None => turn() % self.inboxes.len(),
        };
        &self.inboxes[shard]
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

    /// Sends a request; the future ends in exactly one outcome.
    ///
    /// Nothing is sent before the future is polled. Dropping it gives the call up.
    ///
    /// Cost: one archive, one push into an MPMC queue, a wake-up of the shard if it sleeps, and one of the caller.
    ///
    /// # Errors
    /// The future's error says in which phase the call ended: see [`CallError`].
    pub fn send<'a, R: Request>(&'a self, request: &'a R) -> ClientCall<'a, R> {
        ClientCall {
            client: self,
            request,
            deadline: self.shared.deadline,
            manner: Manner::default(),
            sent: false,
            asked: None,
            _reply: PhantomData,
        }
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

    /// Delivers an event to every listening service instance (a keyed one: to those of its key's shard), on all shards
    /// in parallel; the future ends in a [`Report`](crate::Report) of how that went.
    ///
    /// Nothing is sent before the future is polled. Cost: as [`send`](Self::send) to one of the listening shards, which
    /// makes the broadcast: see [`Context::broadcast`](crate::Context::broadcast).
    pub fn broadcast<'a, E: Event>(&'a self, event: &'a E) -> ClientBroadcast<'a, E> {
        ClientBroadcast::new(self, event)
    }

    pub(crate) fn shared(&self) -> &ClientShared {
        &self.shared
    }

    /// Puts a frame that is to be answered into the inbox of one of the shards that `placement` names.
    pub(crate) fn ask(
        &self,
        placement: Option<Placement<'_>>,
        frame: OwnedFrame,
        contract: fn() -> Contract,
        at_once: bool,
    ) -> Result<Arc<Completion>, NotSent> {
        let shared = &self.shared;
        let inbox = shared.inbox_for(placement);
        if inbox.is_closed() {
            return Err(NotSent::Stopping);
        }
        let sealed =
            Parcel { ending: Ending::NotSent(NotSent::Stopping), frame: Some(frame), contract, at_once };
        let (parcel, completion) = match shared.idle.pop() {
            Some((mut parcel, completion)) => {
                *parcel = sealed;
                (parcel, completion)
            }
            None => (Box::new(sealed), Arc::default()),
        };
        let promise = Promise { parcel: Some(parcel), completion: completion.clone() };
        match inbox.push(Inbound::Call(promise)) {
            Ok(()) => Ok(completion),
            Err(refused) => {
                // The drop of the promise would tell nobody: the caller learns it here.
                drop(refused);
                Err(NotSent::Full)
            }
        }
    }

    /// Looks for the answer to what was asked; nothing is asked any more once it is there.
    pub(crate) fn poll_answer(
        &self,
        asked: &mut Option<Arc<Completion>>,
        cx: &TaskContext<'_>,
    ) -> Poll<(Ending, Option<OwnedFrame>)> {
        let Some(completion) = asked else {
            return Poll::Ready((Ending::NotSent(NotSent::Stopping), None));
        };
        let answered = completion.answered.take().or_else(|| {
            completion.waker.register(cx.waker());
            completion.answered.take()
        });
        let Some(mut parcel) = answered else { return Poll::Pending };
        let answer = (parcel.ending, parcel.frame.take());
        if let Some(completion) = asked.take() {
            // A full list of idle ones frees this one.
            let _ = self.shared.idle.push((parcel, completion));
        }
        Poll::Ready(answer)
    }

    /// Publishes an event to every service that listens. Does not wait for them.
    ///
    /// # Errors
    /// [`PublishError`] says what the event has reached.
    pub fn publish<E: Event>(&self, event: &E) -> Result<(), PublishError> {
        let listeners = self.shared.routes.listeners(E::type_index().get());
        let shards = match listeners.map(|listeners| listeners.place(event.key())) {
            None => return Ok(()),
            Some(Placement::Owner(shard)) => &[shard][..],
            Some(Placement::AnyOf(shards)) => shards,
        };
        for &shard in shards {
            let mut frame = pool::take();
            frame.encode(event_header(event), event).map_err(|_| PublishError::TooLarge)?;
            let inbox = &self.shared.inboxes[usize::from(shard)];
            if inbox.is_closed() {
                return Err(PublishError::Stopping);
            }
            inbox.push(Inbound::Event(frame)).map_err(|_| PublishError::Full)?;
        }
        Ok(())
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
    client: &'a Client,
    request: &'a R,
    deadline: Duration,
    manner: Manner,
    sent: bool,
    /// Nothing before it is sent, and once the answer has come.
    asked: Option<Arc<Completion>>,
    _reply: PhantomData<fn() -> R>,
}

impl<R: Request> std::fmt::Debug for ClientCall<'_, R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientCall")
            .field("message", &R::NAME)
            .field("within", &self.deadline)
            .finish_non_exhaustive()
    }
}

impl<R: Request> ClientCall<'_, R> {
    /// The time the call may take, from when it is first polled.
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Allows the request to run more than once: see [`Call::idempotent`](crate::Call::idempotent).
    pub fn idempotent(mut self) -> Self {
        self.manner.flags = self.manner.flags.with(Flags::IDEMPOTENT);
        self
    }

    fn start(&self) -> Result<Arc<Completion>, NotSent> {
        if self.deadline.is_zero() {
            return Err(NotSent::Deadline);
        }
        let mut frame = pool::take();
        let header =
            request_header(self.request, self.manner.flags, CallId::default(), micros(self.deadline));
        frame.encode(header, self.request).map_err(not_encoded)?;
        let routes = &self.client.shared.routes;
        let placement = routes.request(R::type_index().get()).map(|shards| shards.place(self.request.key()));
        self.client.ask(placement, frame, Contract::of_request::<R>, self.manner.at_once)
    }
}

/// A time in the unit of the header, at most as long as that can say.
pub(crate) fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
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
        let this = self.get_mut();
        if !std::mem::replace(&mut this.sent, true) {
            match this.start() {
                Ok(completion) => this.asked = Some(completion),
                Err(reason) => return Poll::Ready(Err(CallError::NotSent(reason))),
            }
        }
        this.client
            .poll_answer(&mut this.asked, cx)
            .map(|(ending, frame)| conclude::<R>(ending, frame.unwrap_or_else(pool::take)))
    }
}

impl<R: Request> Unpin for ClientCall<'_, R> {}
