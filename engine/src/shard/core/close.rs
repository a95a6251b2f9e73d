//! The end of a shard's core: whatever holds code of the user, or descriptors, goes with the shard.
//!
//! A service may keep its [`Context`](crate::Context), which holds the core, which holds the service: no count of references
//! would ever drop any of them. So the shard takes them out when it ends. What is left behind such a context is memory; what
//! is asked through it ends as `NotSent(Stopping)`.

use crate::lane::lanes::Lanes;
use crate::panics::drop_guarded;
use crate::shard::core::Core;

impl Core {
    /// Drops the lanes, the handlers with their services and tasks, and all wakers. Each panic of a `Drop` in there is logged
    /// and counted, and keeps nothing else from being dropped.
    pub(crate) fn close(&self) {
        self.stopping.set(true);
        // First the lanes: the peers see the end of their connections, however long the rest takes.
        drop(self.lanes.replace(Lanes::new(self.shard.0, None)));
        self.handlers.take().drop_each(|| self.counters.failed.add(1));
        // After the services: they may have left some behind.
        self.timers.take_all().into_iter().for_each(|due| self.dropped(due));
        let wakers = self.calls.borrow_mut().take_wakers();
        wakers.into_iter().for_each(|waker| self.dropped(waker));
        self.withdraw_published();
    }

    fn dropped<T>(&self, what: T) {
        self.counters.failed.add(u64::from(!drop_guarded(what)));
    }
}
