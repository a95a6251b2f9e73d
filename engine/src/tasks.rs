//! Async handlers: a pool of tasks of one type for each route, and the queue of those that were woken.
//!
//! The future of a handler is stored in a slot that was boxed once and is used again and again, so a call to an async
//! handler allocates nothing once the pool has grown to what the load needs. Each slot has one waker for its whole life:
//! waking a slot whose task is gone polls nothing. A task stands in the ready queue at most once, so the queue's
//! capacity (all tasks of the shard) can never be exceeded.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Wake, Waker};

use catga_codec::{OwnedFrame, Request};
use catga_discovery::sync::atomic::{AtomicBool, Ordering};
use crossbeam_queue::ArrayQueue;

use crate::call::table::Ending;
use crate::context::Context;
use crate::error::{Failure, Refusal};
use crate::instance::State;
use crate::pool;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::service::{BindContext, Incoming, Serve};
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;

/// A task of a shard: the type index of the message it handles, and its slot in that route's pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TaskId {
    pub(crate) route: u32,
    pub(crate) slot: u32,
}

thread_local! {
    /// The shard whose turn runs on this thread just now; 0 outside a turn.
    static TURN_OF: Cell<usize> = const { Cell::new(0) };
}

/// Whether a shard's turn runs on this thread just now.
pub(crate) fn on_a_shard() -> bool {
    TURN_OF.get() != 0
}

/// Woken tasks of one shard. Any thread may push; only the shard pops.
pub(crate) struct Ready {
    woken: ArrayQueue<TaskId>,
    doorbell: Arc<Doorbell<EventFd>>,
}

impl Ready {
    pub(crate) fn new(tasks_max: usize, doorbell: Arc<Doorbell<EventFd>>) -> Self {
        Self { woken: ArrayQueue::new(tasks_max.max(1)), doorbell }
    }

    pub(crate) fn pop(&self) -> Option<TaskId> {
        self.woken.pop()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.woken.is_empty()
    }

    /// Marks the shard as the one that runs on this thread, until the guard is dropped.
    pub(crate) fn enter(self: &Arc<Self>) -> impl Drop + use<> {
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                TURN_OF.set(0);
            }
        }
        TURN_OF.set(Arc::as_ptr(self) as usize);
        Leave
    }

    fn push(self: &Arc<Self>, task: TaskId) {
        // Cannot be full: a task stands here at most once. If it were, its next wake-up would try again.
        let pushed = self.woken.push(task);
        debug_assert!(pushed.is_ok(), "a task was queued twice");
        // Inside its own turn the shard is awake and will look.
        if TURN_OF.get() != Arc::as_ptr(self) as usize {
            self.doorbell.ring();
        }
    }
}

/// The waker of one slot.
struct TaskWaker {
    task: TaskId,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // AcqRel: what the waker's thread wrote before is seen by the poll, which clears the flag first
        // (the swap in `AsyncHandler::poll_task`).
        if !self.queued.swap(true, Ordering::AcqRel) {
            self.ready.push(self.task);
        }
    }
}

/// What an async handler's future is made of.
pub(crate) struct TaskInput<S> {
    pub(crate) state: Rc<State<S>>,
    pub(crate) frame: OwnedFrame,
    pub(crate) ctx: Context,
}

/// A handler's answer, or why it was never asked.
pub(crate) type TaskOutput<R> = Result<Result<<R as Request>::Reply, <R as Request>::Error>, Refusal>;

struct Slot<Fut> {
    future: Pin<Box<Option<Fut>>>,
    to: ReplyTo,
    deadline: Time,
    waker: Waker,
    flag: Arc<TaskWaker>,
}

/// An async request handler and its running tasks.
pub(crate) struct AsyncHandler<S, R, Make, Fut> {
    state: Rc<State<S>>,
    make: Make,
    slots: RefCell<Vec<Option<Slot<Fut>>>>,
    free: RefCell<Vec<u32>>,
    running: Cell<usize>,
    bind: BindContext,
    _request: PhantomData<fn(R)>,
}

impl<S, R, Make, Fut> AsyncHandler<S, R, Make, Fut>
where
    R: Request,
    Make: Fn(TaskInput<S>) -> Fut,
    Fut: Future<Output = TaskOutput<R>>,
{
    pub(crate) fn new(state: Rc<State<S>>, make: Make, bind: BindContext) -> Self {
        Self {
            state,
            make,
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            running: Cell::new(0),
            bind,
            _request: PhantomData,
        }
    }

    /// Takes a slot out of the pool; a slot that is out is being polled.
    fn take_free(&self) -> Option<(u32, Slot<Fut>)> {
        if let Some(index) = self.free.borrow_mut().pop() {
            let slot = self.slots.borrow_mut()[index as usize].take()?;
            return Some((index, slot));
        }
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= self.bind.tasks_max {
            return None;
        }
        let index = slots.len() as u32;
        slots.push(None);
        let task = TaskId { route: R::type_index().get(), slot: index };
        let flag =
            Arc::new(TaskWaker { task, queued: AtomicBool::new(false), ready: self.bind.ready.clone() });
        let waker = Waker::from(flag.clone());
        Some((
            index,
            Slot { future: Box::pin(None), to: ReplyTo::Nobody, deadline: Time::NEVER, waker, flag },
        ))
    }

    /// Polls a slot's future once, and answers if it came to an end. The slot goes back to the pool either way.
    fn poll(&self, index: u32, mut slot: Slot<Fut>, ctx: &Context) {
        let waker = slot.waker.clone();
        let mut cx = std::task::Context::from_waker(&waker);
        let Some(future) = slot.future.as_mut().as_pin_mut() else {
            // Woken after it had ended.
            self.slots.borrow_mut()[index as usize] = Some(slot);
            return;
        };
        let core = ctx.core();
        let to = &mut slot.to;
        let mut answered = false;
        // What the handler returns is archived and dropped in here as well: that is user code too.
        let polled = catch_unwind(AssertUnwindSafe(|| {
            let Poll::Ready(output) = future.poll(&mut cx) else { return Poll::Pending };
            match &output {
                Ok(answer) => core.answer::<R>(to, answer),
                Err(refusal) => core.refuse(to, *refusal),
            }
            answered = true;
            Poll::Ready(())
        }));
        match polled {
            Ok(Poll::Pending) => {
                self.slots.borrow_mut()[index as usize] = Some(slot);
                return;
            }
            Ok(Poll::Ready(())) => {}
            Err(panic) => {
                self.state.panicked(ctx, R::NAME, panic);
                if !answered {
                    core.end(&mut slot.to, Ending::Failed(Failure::Panicked));
                }
            }
        }
        self.retire(index, slot, ctx);
    }

    /// Drops what is left of the future and frees the slot. Says whether that panicked.
    fn retire(&self, index: u32, mut slot: Slot<Fut>, ctx: &Context) -> bool {
        // The handler's locals are dropped here; their `Drop` is user code too.
        let dropped = catch_unwind(AssertUnwindSafe(|| slot.future.set(None)));
        let panicked = dropped.is_err();
        if let Err(panic) = dropped {
            self.state.panicked(ctx, R::NAME, panic);
            // A future that panicked while it was dropped is not dropped again.
            slot.future = Box::pin(None);
        }
        self.slots.borrow_mut()[index as usize] = Some(slot);
        self.free.borrow_mut().push(index);
        self.running.set(self.running.get() - 1);
        panicked
    }
}

impl<S, R, Make, Fut> Serve for AsyncHandler<S, R, Make, Fut>
where
    R: Request,
    Make: Fn(TaskInput<S>) -> Fut,
    Fut: Future<Output = TaskOutput<R>>,
{
    fn serve(&self, frame: Incoming<'_>, ctx: &Context, to: &mut ReplyTo) {
        let core = ctx.core();
        if self.state.is_poisoned() {
            return core.refuse(to, Refusal::Poisoned);
        }
        let Some((index, mut slot)) = self.take_free() else {
            return core.refuse(to, Refusal::Overloaded);
        };
        let input =
            TaskInput { state: self.state.clone(), frame: frame.to_owned_in(pool::take()), ctx: ctx.clone() };
        slot.future.set(Some((self.make)(input)));
        slot.to = std::mem::take(to);
        slot.deadline = ctx.deadline();
        self.running.set(self.running.get() + 1);
        self.poll(index, slot, ctx);
    }

    fn poll_task(&self, index: u32, ctx: &Context) {
        let slot = self.slots.borrow_mut().get_mut(index as usize).and_then(Option::take);
        let Some(slot) = slot else { return };
        // AcqRel: pairs with the swap in `TaskWaker::wake_by_ref`; a wake-up from now on queues the task again.
        slot.flag.queued.swap(false, Ordering::AcqRel);
        let ctx = ctx.with_deadline(slot.deadline);
        self.poll(index, slot, &ctx);
    }

    fn end_tasks(&self, ctx: &Context, gone: &mut dyn FnMut(&ReplyTo, Time) -> bool) {
        if self.running.get() == 0 {
            return;
        }
        let count = self.slots.borrow().len();
        for index in 0..count {
            let taken = {
                let mut slots = self.slots.borrow_mut();
                let ended = slots[index].as_ref().is_some_and(|slot| {
                    slot.future.as_ref().as_pin_ref().is_some() && gone(&slot.to, slot.deadline)
                });
                if ended { slots[index].take() } else { None }
            };
            if let Some(mut slot) = taken {
                let mut to = std::mem::take(&mut slot.to);
                let core = ctx.core();
                if self.retire(index as u32, slot, ctx) {
                    core.end(&mut to, Ending::Failed(Failure::Panicked));
                } else {
                    core.cut(&mut to);
                }
                // What its locals published when they were dropped.
                core.after_handler();
            }
        }
    }

    fn takes_more(&self) -> bool {
        !self.state.is_poisoned() && self.running() < self.bind.tasks_max
    }

    fn running(&self) -> usize {
        self.running.get()
    }
}
