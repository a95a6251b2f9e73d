//! `Client`: calls from any thread.
//!
//! A foreign thread archives its request into a pooled frame and pushes it into the [`inbox`] of a shard, an MPMC queue. The
//! shard that handles it (or that forwards it) puts the answer into the same box and the box into the call's
//! [`completion`], then wakes the caller. Both directions are one pointer through a lock-free cell.
//!
//! Nothing can be lost on the way: the box travels inside a [`Promise`](completion::Promise), and a promise that is dropped
//! tells its caller so. Nothing waits for ever either: the watchdog's thread keeps the deadlines, whatever the shard does.

pub(crate) mod completion;
pub(crate) mod inbox;

use std::future::Future;
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::Duration;

use catga_codec::{CallId, Contract, EncodeError, Event, Flags, Header, Kind, Request};
use catga_discovery::sync::atomic::{AtomicUsize, Ordering};
use crossbeam_utils::CachePadded;

use crate::client::completion::{Completion, Completions, GivenUp, Parcel, Promise};
use crate::client::inbox::{Inbound, Inbox};
use crate::engine::EngineId;
use crate::error::{CallError, NotSent, PublishError, Unknown};
use crate::pool;
use crate::reply::{Reply, conclude};
use crate::route::{Placement, RouteTable};
use crate::time::{Clock, Time};

/// What all clones of a client share.
pub(crate) struct ClientShared {
    pub(crate) engine: EngineId,
    pub(crate) inboxes: Box<[Arc<Inbox>]>,
    pub(crate) routes: Arc<RouteTable>,
    pub(crate) deadline: Duration,
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
    ) -> Self {
        let (calls, clock, next) = (Completions::new(), Clock::default(), AtomicUsize::new(0));
        Self { engine, inboxes, routes, deadline, calls, clock, next }
    }

    /// The inbox for a request: of the shard that owns its key, else of those that handle it in turn.
    fn inbox_for(&self, type_index: u32, key: u64) -> Result<u16, NotSent> {
        let turn = || self.next.fetch_add(1, Ordering::Relaxed); // a ticket: partners with nothing
        let stuck = &self.routes.stuck;
        match self.routes.request(type_index).map(|route| route.place(key)) {
            Some(Placement::Owner(shard)) if stuck.contains(shard) => Err(NotSent::Stuck),
            Some(Placement::Owner(shard)) => Ok(shard),
            Some(Placement::AnyOf(shards)) => stuck.next_of(shards, turn()).ok_or(NotSent::Stuck),
            // No shard here serves it: any one may know a node that does.
            None => {
                let shards = self.inboxes.len();
                let first = turn();
                (0..shards)
                    .map(|step| (first.wrapping_add(step) % shards) as u16)
                    .find(|&shard| !stuck.contains(shard))
                    .ok_or(NotSent::Stuck)
            }
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
        ClientCall {
            client: self,
            request,
            within: self.shared.deadline,
            stage: Stage::Unsent,
            _reply: PhantomData,
        }
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
    /// The inbox is full. The promise waits with the caller.
    Waiting(InFlight, Promise),
    InFlight(InFlight),
    Ended,
}

/// A call that has a completion.
struct InFlight {
    completion: Arc<CachePadded<Completion>>,
    deadline: Time,
    shard: u16,
}

/// A call from a foreign thread: a future of the reply. Made by [`Client::send`].
#[must_use = "a call is sent when it is polled"]
pub struct ClientCall<'a, R: Request> {
    client: &'a Client,
    request: &'a R,
    within: Duration,
    stage: Stage,
    _reply: PhantomData<fn() -> R>,
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
    pub fn within(mut self, deadline: Duration) -> Self {
        self.within = deadline;
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

    fn start(&self) -> Result<(InFlight, Promise), NotSent> {
        let shared = &self.client.shared;
        if self.within.is_zero() {
            return Err(NotSent::Deadline);
        }
        let shard = shared.inbox_for(R::type_index().get(), self.request.key())?;
        if shared.inboxes[usize::from(shard)].is_closed() {
            return Err(NotSent::Stopping);
        }
        let mut frame = pool::take();
        // The time left is in the parcel: the clock is the shard's too.
        let header = request_header(self.request, CallId::default(), 0);
        frame.encode(header, self.request).map_err(not_encoded)?;
        let deadline = shared.clock.now() + self.within;
        let parcel = Parcel::new(frame, Contract::of_request::<R>, deadline);
        let (promise, completion) = shared.calls.open(parcel).ok_or(NotSent::TooManyCalls)?;
        Ok((InFlight { completion, deadline, shard }, promise))
    }

    /// Tries to push. While there is no room the waker stands in the inbox's list.
    fn push(&mut self, call: InFlight, promise: Promise, cx: &TaskContext<'_>) -> Result<(), NotSent> {
        let shared = &self.client.shared;
        let inbox = &shared.inboxes[usize::from(call.shard)];
        let mut pushed = inbox.push(Inbound::Call(promise));
        let mut waits = true;
        if let Err(full) = pushed {
            waits = inbox.wait(cx.waker());
            pushed = inbox.push(full);
        }
        shared.calls.watch(call.deadline);
        self.stage = match pushed {
            Ok(()) => Stage::InFlight(call),
            Err(Inbound::Call(promise)) if waits => Stage::Waiting(call, promise),
            Err(Inbound::Call(promise)) => {
                self.take_back(call, promise);
                return Err(NotSent::Full);
            }
            Err(_) => unreachable!("what is given back is what was pushed"),
        };
        Ok(())
    }

    /// Ends the call if the watchdog has found its deadline passed, and has not meant the call before.
    fn look_at_the_clock(&mut self) -> Poll<<Self as Future>::Output> {
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &self.stage else { return Poll::Pending };
        if !call.completion.is_expired() {
            return Poll::Pending;
        }
        // Cleared before the clock is read: who sets the bit from now on finds the clock further.
        call.completion.not_expired();
        if self.client.shared.clock.now() < call.deadline { Poll::Pending } else { self.expire() }
    }

    /// Ends a call that is out of time.
    fn expire(&mut self) -> Poll<<Self as Future>::Output> {
        let outcome = match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::InFlight(call) => match call.completion.give_up() {
                GivenUp::Answered(parcel) => return Poll::Ready(self.conclude(parcel, call.completion)),
                GivenUp::Unsent => CallError::NotSent(NotSent::Deadline),
                GivenUp::Taken => CallError::Unknown(Unknown::Deadline),
            },
            Stage::Waiting(call, promise) => {
                self.take_back(call, promise);
                CallError::NotSent(NotSent::Deadline)
            }
            Stage::Unsent | Stage::Ended => CallError::NotSent(NotSent::Deadline),
        };
        Poll::Ready(Err(outcome))
    }

    fn conclude(
        &self,
        mut parcel: Box<Parcel>,
        completion: Arc<CachePadded<Completion>>,
    ) -> <Self as Future>::Output {
        let outcome = conclude::<R>(parcel.ending, parcel.frame.take().unwrap_or_else(pool::take));
        self.client.shared.calls.close(parcel, completion);
        outcome
    }

    /// A call that was never pushed is over.
    fn take_back(&self, call: InFlight, promise: Promise) {
        drop(promise);
        if let GivenUp::Answered(parcel) = call.completion.give_up() {
            self.client.shared.calls.close(parcel, call.completion);
        }
    }
}

impl<R: Request> Drop for ClientCall<'_, R> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.stage, Stage::Ended) {
            Stage::Unsent | Stage::Ended => {}
            Stage::Waiting(call, promise) => self.take_back(call, promise),
            Stage::InFlight(call) => {
                let shared = &self.client.shared;
                match call.completion.give_up() {
                    GivenUp::Answered(parcel) => shared.calls.close(parcel, call.completion),
                    GivenUp::Unsent => {}
                    GivenUp::Taken => shared.inboxes[usize::from(call.shard)].give_up(),
                }
            }
        }
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
        let this = self.get_mut();
        if !matches!(this.stage, Stage::InFlight(_)) {
            let pushed = match std::mem::replace(&mut this.stage, Stage::Ended) {
                Stage::Unsent => this.start().and_then(|(call, promise)| this.push(call, promise, cx)),
                Stage::Waiting(call, promise) => this.push(call, promise, cx),
                Stage::InFlight(_) | Stage::Ended => Err(NotSent::Deadline),
            };
            if let Err(reason) = pushed {
                return Poll::Ready(Err(CallError::NotSent(reason)));
            }
        }
        let (Stage::InFlight(call) | Stage::Waiting(call, _)) = &this.stage else { return Poll::Pending };
        let mut answered = call.completion.take_answer();
        if answered.is_none() {
            call.completion.register(cx.waker());
            answered = call.completion.take_answer();
        }
        if let Some(parcel) = answered
            && let Stage::InFlight(call) = std::mem::replace(&mut this.stage, Stage::Ended)
        {
            return Poll::Ready(this.conclude(parcel, call.completion));
        }
        this.look_at_the_clock()
    }
}

impl<R: Request> Unpin for ClientCall<'_, R> {}
