//! The end of a shard's core: whatever holds code of the user, or descriptors, goes with the shard.
//!
//! A service may keep its [`Context`](crate::Context), which holds the core, which holds the service: no count of references
//! would ever drop any of them. So the shard takes them out when it ends. What is left behind such a context is memory; what
//! is asked through it ends as `NotSent(Stopping)`.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::instance::{discard, text_of};
use crate::lane::lanes::Lanes;
use crate::shard::core::{Core, Handlers};

impl Core {
    /// Drops the lanes, the handlers with their services and tasks, and all wakers. Each panic of a `Drop` in there is logged
    /// and counted, and keeps nothing else from being dropped.
    pub(crate) fn close(&self) {
        self.stopping.set(true);
        // First the lanes: the peers see the end of their connections, however long the rest takes.
        drop(self.lanes.replace(Lanes::new(self.shard.0, None)));
        let Handlers { requests, events, instances } = self.handlers.take();
        requests.into_iter().flatten().for_each(|handler| self.dropped(handler));
        events.into_iter().flatten().for_each(|listener| self.dropped(listener));
        instances.into_iter().for_each(|instance| self.dropped(instance));
        // After the services: they may have left some behind.
        self.timers.take_all().into_iter().for_each(|due| self.dropped(due));
        let wakers = self.calls.borrow_mut().take_wakers();
        wakers.into_iter().for_each(|waker| self.dropped(waker));
        self.withdraw_published();
    }

    fn dropped<T>(&self, what: T) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(what))) {
            self.counters.failed.add(1);
            tracing::error!(
                shard = self.shard.0,
                dropping = std::any::type_name::<T>(),
                panic = text_of(&*panic),
                "the `Drop` of a service, or of what it left, panicked when its shard ended"
            );
            discard(panic);
        }
    }
}
