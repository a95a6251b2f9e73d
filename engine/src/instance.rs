//! The life of a service instance: what it is told about its keys, what it does periodically, and what becomes of it
//! after a panic.
//!
//! ```text
//!   made ──▶ gained ──▶ requests, events, ticks ──▶ lost ──▶ dropped
//!     ▲                          │ panic
//!     └──────── Rebuild ─────────┤──▶ Poison: it refuses      Keep: it goes on      Abort: the process ends
//! ```
//!
//! All code of a service runs behind a `catch_unwind`: handlers, hooks, ticks, and the `Drop` of what they leave behind. The
//! call that panicked has failed and what it had published does not leave, whatever the policy; [`State::panicked`] is the
//! one place where the policy is followed.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use catga_codec::Key;

use crate::context::Context;
use crate::error::Refusal;
use crate::panics::{discard, text_of};
use crate::route::part_of;
use crate::service::{NotHeard, Routes};

/// What becomes of a service instance after one of its handlers, hooks or ticks panicked. See [`Routes::on_panic`].
///
/// In each case the call that panicked ends as [`Failure::Panicked`](crate::Failure::Panicked) and is counted in
/// [`ShardStats::failed`](crate::ShardStats), and what was published and has not left yet does not leave. An answer that
/// was written before the panic, in the `Drop` of the answer itself, stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnPanic {
    /// The instance refuses requests as [`Refusal::Poisoned`](crate::Refusal::Poisoned), drops events with a count, and skips
    /// its ticks. The default: nobody knows what the panic left half done, and a wrong answer is worse than a refusal.
    #[default]
    Poison,
    /// The service's constructor makes a fresh state, the old one is dropped, and the fresh one is told what it owns
    /// ([`Routes::gained`]). Async handlers that run go on, with the new state. If the constructor, the hook or the old
    /// state's `Drop` panics as well, the instance is poisoned.
    Rebuild,
    /// The instance goes on with the state as the panic left it: for services whose state cannot be half changed.
    Keep,
    /// The process aborts, after a line in the log: for services whose failure is to be seen by a supervisor.
    Abort,
}

/// The part of the keys that an instance owns: what [`Routes::gained`] and [`Routes::lost`] tell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    part: usize,
    of: usize,
}

impl Owned {
    /// The part with this number, from 0, of so many.
    pub(crate) fn new(part: usize, of: usize) -> Self {
        Self { part, of }
    }

    /// Whether messages with this key come here. The key as the field named by `key = ..` has it: integers of any width,
    /// text, bytes. Costs one hash.
    #[must_use]
    pub fn contains<K: Key + ?Sized>(&self, key: &K) -> bool {
        part_of(key.hash(), self.of) == self.part
    }

    /// Into how many parts the keys are divided; each is as large as the others.
    #[must_use]
    pub fn of(&self) -> usize {
        self.of
    }
}

impl fmt::Display for Owned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of {
            1 => f.write_str("all keys"),
            of => write!(f, "part {} of {of} of the keys", self.part + 1),
        }
    }
}

type Hook<S> = Box<dyn Fn(&mut S, &Owned, &Context)>;
type Periodic<S> = Box<dyn Fn(&mut S, &Context)>;

/// What a service does besides handling messages.
pub(crate) struct Hooks<S> {
    on_panic: OnPanic,
    gained: Option<Hook<S>>,
    lost: Option<Hook<S>>,
    every: Vec<(Duration, Periodic<S>)>,
}

impl<S> Default for Hooks<S> {
    fn default() -> Self {
        Self { on_panic: OnPanic::default(), gained: None, lost: None, every: Vec::new() }
    }
}

impl<S> Hooks<S> {
    /// The name of a hook about keys, if there is one.
    pub(crate) fn about_keys(&self) -> Option<&'static str> {
        self.gained.as_ref().map(|_| "gained").or(self.lost.as_ref().map(|_| "lost"))
    }

    pub(crate) fn has_empty_period(&self) -> bool {
        self.every.iter().any(|(period, _)| period.is_zero())
    }
}

impl<S: 'static> Routes<S> {
    /// What becomes of an instance after a panic. Default: [`OnPanic::Poison`].
    pub fn on_panic(mut self, policy: OnPanic) -> Self {
        self.hooks.on_panic = policy;
        self
    }

    /// Calls `fn(&mut S, &Owned, &Context)` on each instance once it owns a part of the keys, before it handles anything:
    /// in its shard's first turn, and again on a state that was made anew after a panic. What it publishes leaves when it
    /// has returned; it has no time limit, but the shard does nothing else meanwhile.
    ///
    /// Ownership is affinity, not exclusion: messages with these keys are sent here, and nothing more. An instance on another
    /// shard or node may have worked with the same keys a moment ago, or still believe that it owns them. Where that
    /// matters, the state behind the keys must tell old writers from new ones itself.
    ///
    /// ```
    /// use catga::prelude::*;
    ///
    /// #[request(reply = Total, key = customer)]
    /// pub struct Pay { pub customer: u64, pub cents: u64 }
    /// #[message]
    /// pub struct Total { pub cents: u64 }
    ///
    /// #[derive(Default)]
    /// struct Accounts { cents: std::collections::HashMap<u64, u64> }
    ///
    /// impl Accounts {
    ///     fn gained(&mut self, owned: &Owned, _: &Context) {
    ///         let stored = [(1_u64, 100), (2, 250), (3, 0)]; // in a database, perhaps
    ///         self.cents.extend(stored.into_iter().filter(|(customer, _)| owned.contains(customer)));
    ///     }
    ///     fn pay(&mut self, pay: &Archived<Pay>, _: &Context) -> Result<Total, Fault> {
    ///         let cents = self.cents.entry(pay.customer.to_native()).or_default();
    ///         *cents += pay.cents.to_native();
    ///         Ok(Total { cents: *cents })
    ///     }
    /// }
    ///
    /// let engine = Engine::builder()
    ///     .shards(2)
    ///     .service(|_| Accounts::default(), |routes| routes.request(Accounts::pay).gained(Accounts::gained))
    ///     .start()?;
    /// let total = pollster::block_on(engine.client().send(&Pay { customer: 2, cents: 50 }));
    /// assert_eq!(total.map(|total| total.cents.to_native()), Ok(300));
    /// # Ok::<(), StartError>(())
    /// ```
    ///
    /// A second one replaces the first. On a service without a handler of keyed messages it is a start error, and also where
    /// the keys of its messages are divided among different shards.
    pub fn gained(mut self, hook: impl Fn(&mut S, &Owned, &Context) + 'static) -> Self {
        self.hooks.gained = Some(Box::new(hook));
        self
    }

    /// Calls `fn(&mut S, &Owned, &Context)` on each instance when it owns its part of the keys no more: when the engine
    /// stops, after the calls in flight have ended and before the services are dropped. Not on a poisoned instance.
    ///
    /// By then other shards may have stopped: what it publishes reaches whoever still listens. A crash calls nothing. See
    /// [`gained`](Self::gained) for what owning means, and for the start errors.
    pub fn lost(mut self, hook: impl Fn(&mut S, &Owned, &Context) + 'static) -> Self {
        self.hooks.lost = Some(Box::new(hook));
        self
    }

    /// Calls `fn(&mut S, &Context)` on each instance once in each period, in its shard's turn; the first time after one
    /// period. What it publishes leaves when it has returned. Any number of them.
    ///
    /// Ticks that were missed, because the shard was busy, are skipped and not made up. So are the ticks of a poisoned
    /// instance; nothing counts them. A period of zero is a start error.
    pub fn every(mut self, period: Duration, tick: impl Fn(&mut S, &Context) + 'static) -> Self {
        self.hooks.every.push((period, Box::new(tick)));
        self
    }
}

/// The state of one service instance, on the shard that owns it.
///
/// A sync handler gets it as `&mut S`. An async handler gets the `State` and borrows from it for the time of a closure,
/// never across an `await`: between two awaits other handlers may run.
pub struct State<S> {
    pub(crate) inner: RefCell<S>,
    poisoned: Cell<bool>,
    make: Box<dyn Fn() -> S>,
    hooks: Hooks<S>,
    owned: Option<Owned>,
}

impl<S: fmt::Debug> fmt::Debug for State<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("inner", &self.inner)
            .field("poisoned", &self.poisoned)
            .field("owned", &self.owned)
            .finish_non_exhaustive()
    }
}

impl<S> State<S> {
    /// An instance, fresh from its constructor. `owned`: its part of the keys, if its messages have keys.
    pub(crate) fn new(make: Box<dyn Fn() -> S>, hooks: Hooks<S>, owned: Option<Owned>) -> Self {
        Self { inner: RefCell::new(make()), poisoned: Cell::new(false), make, hooks, owned }
    }

    /// Runs `f` with the state.
    ///
    /// # Panics
    /// If called from within another `with` of the same instance; the panic names the line of the inner one.
    #[track_caller]
    pub fn with<R>(&self, f: impl FnOnce(&mut S) -> R) -> R {
        f(&mut self.inner.borrow_mut())
    }

    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.poisoned.get()
    }

    /// Runs what answers nobody. `what` is its name in the log if it panics.
    pub(crate) fn run(&self, ctx: &Context, what: &str, f: impl FnOnce(&mut S)) -> Result<(), NotHeard> {
        if self.is_poisoned() { Err(NotHeard::Refused(Refusal::Poisoned)) } else { self.guard(ctx, what, f) }
    }

    fn guard(&self, ctx: &Context, what: &str, f: impl FnOnce(&mut S)) -> Result<(), NotHeard> {
        let mut inner = self.inner.try_borrow_mut().map_err(|_| NotHeard::Refused(Refusal::Overloaded))?;
        // The borrow goes into the closure: it is over when the policy is followed.
        catch_unwind(AssertUnwindSafe(move || f(&mut inner))).map_err(|panic| {
            self.panicked(ctx, what, panic);
            NotHeard::Panicked
        })
    }

    /// After a panic of this instance's code: counts and logs it, withdraws what was published, and follows the policy.
    #[cold]
    pub(crate) fn panicked(&self, ctx: &Context, what: &str, panic: Box<dyn Any + Send>) {
        let core = ctx.core();
        core.counters.failed.add(1);
        core.withdraw_published();
        let policy = match self.hooks.on_panic {
            OnPanic::Rebuild if self.is_poisoned() => OnPanic::Poison, // it could not be made anew, or is at its end
            policy => policy,
        };
        let next = match policy {
            OnPanic::Poison => "refuses from now on",
            OnPanic::Rebuild => "is made anew",
            OnPanic::Keep => "goes on with its state as it is",
            OnPanic::Abort => "takes the process with it, as it was told to",
        };
        let service = std::any::type_name::<S>();
        tracing::error!(
            shard = core.shard.0,
            service,
            handling = what,
            panic = text_of(&*panic),
            "a handler panicked; its service instance {next}"
        );
        discard(panic);
        match policy {
            OnPanic::Poison => self.poison(ctx),
            OnPanic::Rebuild => self.rebuild(ctx),
            OnPanic::Keep => {}
            OnPanic::Abort => std::process::abort(),
        }
    }

    fn poison(&self, ctx: &Context) {
        if !self.poisoned.replace(true) {
            ctx.core().counters.poisoned.add(1);
        }
    }

    fn rebuild(&self, ctx: &Context) {
        let rebuilt = catch_unwind(AssertUnwindSafe(|| {
            // A statement of its own: the old state is dropped before the hook borrows the new one.
            drop(self.inner.replace((self.make)()));
            if let (Some(hook), Some(owned)) = (&self.hooks.gained, &self.owned) {
                hook(&mut self.inner.borrow_mut(), owned, ctx);
            }
        }));
        let core = ctx.core();
        match rebuilt {
            Ok(()) => core.counters.rebuilt.add(1),
            Err(panic) => {
                core.withdraw_published();
                tracing::error!(
                    shard = core.shard.0,
                    service = std::any::type_name::<S>(),
                    panic = text_of(&*panic),
                    "the service instance could not be made anew: its constructor, its `gained` or the old state's `Drop` \
                     panicked; it refuses from now on"
                );
                discard(panic);
                self.poison(ctx);
            }
        }
    }
}

/// An instance, with its type erased: what its shard does with it besides giving it messages.
pub(crate) trait Instance {
    /// Tells it which keys it owns.
    fn gained(&self, ctx: &Context);
    /// Tells it that it owns them no more. Nothing comes after it.
    fn lost(&self, ctx: &Context);
    /// How often it wants each of its ticks.
    fn periods(&self) -> Vec<Duration>;
    /// Runs one of its ticks. Returns that tick's period.
    fn tick(&self, which: usize, ctx: &Context) -> Option<Duration>;
}

impl<S> Instance for State<S> {
    fn gained(&self, ctx: &Context) {
        if let (Some(hook), Some(owned)) = (&self.hooks.gained, &self.owned) {
            // A panic in it is logged and counted there; a poisoned instance is told nothing.
            let _ = self.run(ctx, "(gained)", |inner| hook(inner, owned, ctx));
        }
    }

    fn lost(&self, ctx: &Context) {
        if let (Some(hook), Some(owned)) = (&self.hooks.lost, &self.owned) {
            // From here on it is out of use, whatever the policy: a state made anew now would own nothing.
            if !self.poisoned.replace(true) {
                let _ = self.guard(ctx, "(lost)", |inner| hook(inner, owned, ctx)); // as in `gained`
            }
        }
    }

    fn periods(&self) -> Vec<Duration> {
        self.hooks.every.iter().map(|(period, _)| *period).collect()
    }

    fn tick(&self, which: usize, ctx: &Context) -> Option<Duration> {
        let (period, tick) = self.hooks.every.get(which)?;
        let _ = self.run(ctx, "(every)", |inner| tick(inner, ctx)); // as in `gained`
        Some(*period)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_in_one_part() {
        for of in 1..9 {
            let parts: Vec<_> = (0..of).map(|part| Owned::new(part, of)).collect();
            for key in 0..500_u64 {
                let owners = parts.iter().filter(|part| part.contains(&key)).count();
                assert_eq!(owners, 1, "key {key} of {of} parts");
            }
            assert!(parts.iter().all(|part| (0..500_u64).any(|key| part.contains(&key))));
        }
        assert_eq!(Owned::new(1, 4).to_string(), "part 2 of 4 of the keys");
        assert_eq!(Owned::new(0, 1).to_string(), "all keys");
        assert!(Owned::new(0, 1).contains("any text"));
    }
}
