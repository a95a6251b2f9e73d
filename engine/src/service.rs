//! Services: the state of one shard, and the handlers that work on it.
//!
//! A service instance lives on one shard and never leaves it, so handlers need no lock and the state need not be `Send`.
//! A [`Routes`] names the handlers. It is asked twice: once when the engine starts, to learn which messages are
//! handled where (and to refuse a start that makes no sense), and once on each shard, to bind the handlers to that
//! shard's instance.
//!
//! A handler is behind one virtual call. On this side of it the message is bytes; on the other side it is typed from
//! the archive to the answer, which is written straight to where it goes (a slot, a ring, a lane).

use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use catga_codec::{
    AccessError, ArchivedMessage, Contract, Event, ForeignFrame, Header, Kind, LocalFrame, Message,
    OwnedFrame, Request, TypeIndex,
};

use crate::call::table::Ending;
use crate::context::Context;
use crate::error::{Failure, Refusal};
use crate::instance::{Hooks, State};
use crate::shard::reply_to::ReplyTo;
use crate::tasks::{AsyncHandler, TaskInput};
use crate::time::Time;

/// A frame on its way into a handler, and whether its bytes need checking.
#[derive(Clone, Copy)]
pub(crate) enum Incoming<'a> {
    /// Archived by this process: read as it is.
    Local(LocalFrame<'a>),
    /// From another process: checked before it is read.
    Foreign(ForeignFrame<'a>),
}

impl<'a> Incoming<'a> {
    #[inline(always)] // what it returns is taken apart at once: a call would carry it through memory
    pub(crate) fn of(frame: &'a OwnedFrame) -> Option<Self> {
        match frame.local() {
            Some(local) => Some(Self::Local(local)),
            None => frame.foreign().map(Self::Foreign),
        }
    }

    #[inline]
    pub(crate) fn header(&self) -> Header {
        match self {
            Self::Local(frame) => frame.header(),
            Self::Foreign(frame) => frame.header(),
        }
    }

    #[inline(always)]
    pub(crate) fn access<M: Message>(self) -> Result<&'a M::Archived, Refusal> {
        match self {
            Self::Local(frame) => frame.access_or_check::<M>(),
            Self::Foreign(frame) => frame.access::<M>(),
        }
        .map_err(|error| unreadable(M::NAME, &error))
    }

    /// A copy that outlives the ring or the chunk.
    pub(crate) fn to_owned_in(self, mut frame: OwnedFrame) -> OwnedFrame {
        match self {
            Self::Local(local) => frame.copy_local(local),
            Self::Foreign(foreign) => frame.copy_foreign(foreign),
        }
        frame
    }
}

#[cold]
fn unreadable(message: &str, error: &AccessError) -> Refusal {
    tracing::debug!(name = message, %error, "refused a frame whose bytes are not what they say");
    match error {
        AccessError::OtherMessage { .. } => Refusal::NoHandler,
        _ => Refusal::Unreadable,
    }
}

/// A request handler, with the types behind it erased.
pub(crate) trait Serve {
    /// Runs the handler inside its caller and writes the answer into `answer`; `None` if it cannot run this instant,
    /// because it may wait or its state is borrowed. Then nothing has happened.
    fn serve_inline(&self, _frame: Incoming<'_>, _ctx: &Context, _answer: &mut OwnedFrame) -> Option<Ending> {
        None
    }
    /// Runs the handler, or starts it. It answers `to` exactly once, now or later.
    fn serve(&self, frame: Incoming<'_>, ctx: &Context, to: &mut ReplyTo);
    /// Whether it would take a request just now, or refuse it.
    fn takes_more(&self) -> bool;
    /// Polls a task of this handler that was woken.
    fn poll_task(&self, _slot: u32, _ctx: &Context) {}
    /// Ends the tasks that `gone` picks out by whom they answer and by when; each is answered as cut.
    fn end_tasks(&self, _ctx: &Context, _gone: &mut dyn FnMut(&ReplyTo, Time) -> bool) {}
    /// Tasks that have not ended.
    fn running(&self) -> usize {
        0
    }
}

/// An event handler, with the types behind it erased.
pub(crate) trait Listen {
    fn listen(&self, frame: Incoming<'_>, ctx: &Context) -> Result<(), NotHeard>;
}

/// Why a listener has not handled an event.
pub(crate) enum NotHeard {
    /// It did not take it: it is poisoned, or the bytes are no such event.
    Refused(Refusal),
    /// It panicked on it.
    Panicked,
}

/// What a handler is for, known without an instance.
#[derive(Clone, Debug)]
pub(crate) struct Declaration {
    pub(crate) contract: Contract,
    pub(crate) type_index: TypeIndex,
    pub(crate) keyed: bool,
    pub(crate) service: &'static str,
    pub(crate) is_request: bool,
}

/// A handler bound to its shard's instance.
pub(crate) enum Bound {
    Request(Box<dyn Serve>),
    Event(Box<dyn Listen>),
}

type Bind<S> = Box<dyn FnOnce(&Rc<State<S>>, BindContext) -> Bound>;

/// What a handler is told when it is bound.
#[derive(Clone)]
pub(crate) struct BindContext {
    pub(crate) tasks_max: usize,
    pub(crate) ready: std::sync::Arc<crate::tasks::Ready>,
}

/// The handlers of a service. Obtained in the second closure of [`Builder::service`](crate::Builder::service).
#[must_use = "return the routes from the closure"]
pub struct Routes<S> {
    pub(crate) entries: Vec<(Declaration, Bind<S>)>,
    pub(crate) hooks: Hooks<S>,
}

/// What can be known of a service without an instance.
pub(crate) struct Outline {
    pub(crate) handlers: Vec<Declaration>,
    /// The name of a hook about keys, if it has one.
    pub(crate) about_keys: Option<&'static str>,
    /// Whether it wants something done in no time again and again.
    pub(crate) empty_period: bool,
}

impl<S> std::fmt::Debug for Routes<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.entries.iter().map(|(declaration, _)| &declaration.contract.name))
            .finish()
    }
}

impl<S: 'static> Routes<S> {
    pub(crate) fn new() -> Self {
        Self { entries: Vec::new(), hooks: Hooks::default() }
    }

    pub(crate) fn outline(self) -> Outline {
        Outline {
            about_keys: self.hooks.about_keys(),
            empty_period: self.hooks.has_empty_period(),
            handlers: self.entries.into_iter().map(|(declaration, _)| declaration).collect(),
        }
    }

    /// Handles a request with a function that runs to its end: `fn(&mut S, &Archived<R>, &Context) -> Result<Reply, Error>`.
    ///
    /// Cost from the same shard: no queue, no allocation, one virtual call.
    pub fn request<A, F>(mut self, handler: F) -> Self
    where
        A: ArchivedMessage + 'static,
        A::Message: Request,
        F: Fn(&mut S, &A, &Context) -> Result<<A::Message as Request>::Reply, <A::Message as Request>::Error>
            + 'static,
    {
        let bind: Bind<S> = Box::new(move |state, _| {
            let handler =
                SyncHandler::<S, A::Message, F> { state: state.clone(), handler, _message: PhantomData };
            Bound::Request(Box::new(handler))
        });
        self.entries.push((Self::declare_request::<A::Message>(), bind));
        self
    }

    /// Handles a request with an async function: `async fn(&State<S>, &Archived<R>, &Context) -> Result<Reply, Error>`.
    ///
    /// It is polled once at once; if it waits, it stays in a pool of tasks of its own type, so that a steady state
    /// allocates nothing. It is dropped at its deadline or when its caller gives up.
    pub fn request_async<A, F>(mut self, handler: F) -> Self
    where
        A: ArchivedMessage + 'static,
        A::Message: Request,
        F: for<'a> AsyncFn(
                &'a State<S>,
                &'a A,
                &'a Context,
            )
                -> Result<<A::Message as Request>::Reply, <A::Message as Request>::Error>
            + 'static,
    {
        let bind: Bind<S> = Box::new(move |state, bind| {
            let handler = Rc::new(handler);
            let make = move |input: TaskInput<S>| {
                let handler = handler.clone();
                async move {
                    let TaskInput { state, frame, ctx } = input;
                    let incoming = Incoming::of(&frame).ok_or(Refusal::Unreadable)?;
                    let archived = incoming.access::<A::Message>()?;
                    let answer = handler(&state, archived, &ctx).await;
                    crate::pool::give(frame);
                    Ok(answer)
                }
            };
            Bound::Request(Box::new(AsyncHandler::<S, A::Message, _, _>::new(state.clone(), make, bind)))
        });
        self.entries.push((Self::declare_request::<A::Message>(), bind));
        self
    }

    /// Handles an event: `fn(&mut S, &Archived<E>, &Context)`. Any number of services may handle the same event.
    pub fn event<A, F>(mut self, handler: F) -> Self
    where
        A: ArchivedMessage + 'static,
        A::Message: Event,
        F: Fn(&mut S, &A, &Context) + 'static,
    {
        let declaration = Declaration {
            contract: Contract::of_event::<A::Message>(),
            type_index: A::Message::type_index(),
            keyed: <A::Message as Event>::KEYED,
            service: std::any::type_name::<S>(),
            is_request: false,
        };
        let bind: Bind<S> = Box::new(move |state, _| {
            let listener =
                Listener::<S, A::Message, F> { state: state.clone(), handler, _message: PhantomData };
            Bound::Event(Box::new(listener))
        });
        self.entries.push((declaration, bind));
        self
    }

    fn declare_request<R: Request>() -> Declaration {
        Declaration {
            contract: Contract::of_request::<R>(),
            type_index: R::type_index(),
            keyed: R::KEYED,
            service: std::any::type_name::<S>(),
            is_request: true,
        }
    }
}

struct SyncHandler<S, R, F> {
    state: Rc<State<S>>,
    handler: F,
    _message: PhantomData<fn(R)>,
}

impl<S, R, F> Serve for SyncHandler<S, R, F>
where
    R: Request,
    F: Fn(&mut S, &R::Archived, &Context) -> Result<R::Reply, R::Error>,
{
    #[inline]
    fn serve_inline(&self, frame: Incoming<'_>, ctx: &Context, answer: &mut OwnedFrame) -> Option<Ending> {
        let outcome = self.run(frame, ctx, |outcome| match outcome {
            Ok(reply) => answer.encode(Header::new(Kind::Reply), reply).map(|()| Ending::Reply),
            Err(error) => answer.encode(Header::new(Kind::Rejected), error).map(|()| Ending::Rejected),
        });
        match outcome {
            Ok(Ok(ending)) => Some(ending),
            Ok(Err(_)) => {
                ctx.core().counters.failed.add(1);
                Some(Ending::Failed(Failure::ReplyTooLarge))
            }
            Err(NotRun::Busy) => None,
            Err(NotRun::Refused(refusal)) => {
                ctx.core().counters.refused.add(1);
                Some(Ending::Refused(refusal))
            }
            Err(NotRun::Panicked) => Some(Ending::Failed(Failure::Panicked)),
        }
    }

    fn takes_more(&self) -> bool {
        !self.state.is_poisoned()
    }

    fn serve(&self, frame: Incoming<'_>, ctx: &Context, to: &mut ReplyTo) {
        let core = ctx.core();
        match self.run(frame, ctx, |outcome| core.answer::<R>(to, outcome)) {
            Ok(()) => {}
            // Only reachable from inside `State::with`: the frame waits until the borrow is over.
            Err(NotRun::Busy) => core.queue_here(frame, to, ctx.deadline()),
            Err(NotRun::Refused(refusal)) => core.refuse(to, refusal),
            Err(NotRun::Panicked) => core.end(to, Ending::Failed(Failure::Panicked)), // counted already
        }
    }
}

/// Why a handler gave no answer.
enum NotRun {
    /// Its state is borrowed just now.
    Busy,
    /// It was not asked.
    Refused(Refusal),
    /// It panicked.
    Panicked,
}

impl<S, R, F> SyncHandler<S, R, F>
where
    R: Request,
    F: Fn(&mut S, &R::Archived, &Context) -> Result<R::Reply, R::Error>,
{
    /// Runs the handler and gives what it returned to `write`. Archiving and dropping that are user code as well: a panic
    /// in them is the handler's. An answer that was written before it stands.
    #[inline(always)] // what the handler returns is written where it is, in registers if it fits them
    fn run<T>(
        &self,
        frame: Incoming<'_>,
        ctx: &Context,
        write: impl FnOnce(&Result<R::Reply, R::Error>) -> T,
    ) -> Result<T, NotRun> {
        if self.state.is_poisoned() {
            return Err(NotRun::Refused(Refusal::Poisoned));
        }
        let mut state = self.state.inner.try_borrow_mut().map_err(|_| NotRun::Busy)?;
        let archived = frame.access::<R>().map_err(NotRun::Refused)?;
        let mut written = None;
        let ran = catch_unwind(AssertUnwindSafe(|| {
            let outcome = (self.handler)(&mut state, archived, ctx);
            drop(state); // whoever is woken by the answer finds it free; so does a policy after a panic
            written = Some(write(&outcome));
        }));
        if let Err(panic) = ran {
            self.state.panicked(ctx, R::NAME, panic);
        }
        written.ok_or(NotRun::Panicked)
    }
}

struct Listener<S, E, F> {
    state: Rc<State<S>>,
    handler: F,
    _message: PhantomData<fn(E)>,
}

impl<S, E, F> Listen for Listener<S, E, F>
where
    E: Event,
    F: Fn(&mut S, &E::Archived, &Context),
{
    fn listen(&self, frame: Incoming<'_>, ctx: &Context) -> Result<(), NotHeard> {
        let archived = frame.access::<E>().map_err(NotHeard::Refused)?;
        self.state.run(ctx, E::NAME, |state| (self.handler)(state, archived, ctx))
    }
}
