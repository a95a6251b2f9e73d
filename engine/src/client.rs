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

use crate::call::table::Ending;
use crate::engine::EngineId;
use crate::error::{CallError, NotSent, PublishError, Unknown};
use crate::lane::io::LaneIo;
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::route::{Placement, RouteTable};

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
    calls_turned_away: AtomicUsize,
    events_turned_away: AtomicUsize,
}

impl Inbox {
    pub(crate) fn new(capacity: usize, doorbell: Arc<Doorbell<EventFd>>) -> Self {
        let queue = ArrayQueue::new(capacity);
        let (calls_turned_away, events_turned_away) = Default::default();
        Self { queue, closed: AtomicBool::new(false), doorbell, calls_turned_away, events_turned_away }
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
        while let Some(inbound) = self.queue.pop() {
            let turned_away = match inbound {
                Inbound::Call(_) => &self.calls_turned_away,
                Inbound::Event(_) => &self.events_turned_away,
                Inbound::Lane(_) => continue, // its peer sees the connection end
            };
            turned_away.fetch_add(1, Ordering::Relaxed); // a count: partners with `turned_away`
        }
    }

    /// Calls and events that came in and were not taken, because the shard stopped.
    pub(crate) fn turned_away(&self) -> (u64, u64) {
        let read = |count: &AtomicUsize| count.load(Ordering::Relaxed) as u64; // partners with `empty`
        (read(&self.calls_turned_away), read(&self.events_turned_away))
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
}

/// Where the answer to one foreign call is put.
#[derive(Default)]
struct Completion {
    answered: AtomicCell<Option<Box<Parcel>>>,
    waker: AtomicWaker,
}

impl std::fmt::Debug for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Completion").finish_non_exhaustive()
    }
}

/// The duty to answer a foreign call. Dropping it is an answer too.
#[derive(Debug)]
pub(crate) struct Promise {
    parcel: Option<Box<Parcel>>,
    completion: Arc<Completion>,
}

impl Promise {
    /// Takes the request out. From here on a lost promise means that the handler may have run.
    pub(crate) fn take_request(&mut self) -> Option<(OwnedFrame, fn() -> Contract)> {
        let parcel = self.parcel.as_mut()?;
        parcel.ending = Ending::Unknown(Unknown::Stopped);
        Some((parcel.frame.take()?, parcel.contract))
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

    fn inbox_for(&self, type_index: u32, key: u64) -> &Inbox {
        let turn = || self.next.fetch_add(1, Ordering::Relaxed); // a ticket: partners with nothing
        let shard = match self.routes.request(type_index).map(|route| route.place(key)) {
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
            state: Stage::Unsent,
            _reply: PhantomData,
        }
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
pub(crate) fn request_header<R: Request>(request: &R, call: CallId, remaining_us: u32) -> Header {
    let mut header = Header::new(Kind::Request);
    header.call = call;
    header.remaining_us = remaining_us;
    if R::KEYED {
        header.flags = Flags::KEYED;
        header.key = request.key();
    }
    header
}

enum Stage {
    Unsent,
    InFlight(Arc<Completion>),
    Ended,
}

/// A call from a foreign thread: a future of the reply. Made by [`Client::send`].
#[must_use = "a call is sent when it is polled"]
pub struct ClientCall<'a, R: Request> {
    client: &'a Client,
    request: &'a R,
    deadline: Duration,
    state: Stage,
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

    fn start(&mut self) -> Result<Arc<Completion>, NotSent> {
        let shared = &self.client.shared;
        if self.deadline.is_zero() {
            return Err(NotSent::Deadline);
        }
        let inbox = shared.inbox_for(R::type_index().get(), self.request.key());
        if inbox.is_closed() {
            return Err(NotSent::Stopping);
        }
        let mut frame = pool::take();
        let remaining_us = u32::try_from(self.deadline.as_micros()).unwrap_or(u32::MAX);
        let header = request_header(self.request, CallId::default(), remaining_us);
        frame.encode(header, self.request).map_err(not_encoded)?;
        let sealed = Parcel {
            ending: Ending::NotSent(NotSent::Stopping),
            frame: Some(frame),
            contract: Contract::of_request::<R>,
        };
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
        if matches!(this.state, Stage::Unsent) {
            match this.start() {
                Ok(completion) => this.state = Stage::InFlight(completion),
                Err(reason) => {
                    this.state = Stage::Ended;
                    return Poll::Ready(Err(CallError::NotSent(reason)));
                }
            }
        }
        let Stage::InFlight(completion) = &this.state else {
            return Poll::Ready(Err(CallError::NotSent(NotSent::Stopping)));
        };
        let answered = completion.answered.take().or_else(|| {
            completion.waker.register(cx.waker());
            completion.answered.take()
        });
        let Some(mut parcel) = answered else { return Poll::Pending };
        let outcome = conclude::<R>(parcel.ending, parcel.frame.take().unwrap_or_else(pool::take));
        if let Stage::InFlight(completion) = std::mem::replace(&mut this.state, Stage::Ended) {
            // A full list of idle ones frees this one.
            let _ = this.client.shared.idle.push((parcel, completion));
        }
        Poll::Ready(outcome)
    }
}

impl<R: Request> Unpin for ClientCall<'_, R> {}
