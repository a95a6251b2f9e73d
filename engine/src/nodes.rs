//! The nodes of the cluster, for threads that are no shards: [`Engine::nodes`](crate::Engine::nodes) and
//! [`Engine::watch`](crate::Engine::watch).
//!
//! The discovery agent puts each view on the [`Board`], from which any thread takes it. Shards have mailboxes of their own
//! and never come here, so a lock is fine: it is held for as long as a reference count takes. Each [`Watch`] leaves at most
//! one waker, and takes it along when it is dropped.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use catga_discovery::{Member, View};

use crate::panics::guarded;
use crate::stats::DiscoveryStats;
use crate::time::Time;

/// The nodes of the cluster at one moment, this one among them, sorted by id. Never changes; cloning it is cheap.
///
/// Prints one line for each node, such as `node1 at 10.0.0.1:5001, 2 shards, 3 messages, up`.
#[derive(Clone, Debug)]
pub struct Nodes {
    view: Arc<View>,
}

impl Nodes {
    /// The view itself.
    #[cfg(test)]
    pub(crate) fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// Each node, with its state, sorted by id.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Member> + '_ {
        self.view.members().iter().map(|member| &**member)
    }

    /// How many there are. 0 without a cluster.
    #[must_use]
    pub fn len(&self) -> usize {
        self.view.members().len()
    }

    /// Whether there is none: the engine is not part of a cluster.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.view.members().is_empty()
    }

    /// Later views of one engine have higher epochs. Those of two engines cannot be compared. 0 without a cluster.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.view.epoch()
    }

    /// The node of this id. A binary search.
    #[must_use]
    pub fn find(&self, id: impl AsRef<str>) -> Option<&Member> {
        let members = self.view.members();
        let at = members.binary_search_by(|member| member.node.id.as_str().cmp(id.as_ref())).ok()?;
        members.get(at).map(|member| &**member)
    }

    /// This node itself.
    #[must_use]
    pub fn own(&self) -> Option<&Member> {
        let own = self.view.own()?;
        self.view.members().get(own as usize).map(|member| &**member)
    }

    /// Whether some node of the list, or behind the name, has not even been tried yet. Until then a call that nobody here
    /// serves waits, within its deadline.
    #[must_use]
    pub fn is_forming(&self) -> bool {
        self.view.forming()
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.iter().try_for_each(|member| writeln!(f, "{member}"))
    }
}

/// Follows the changes of the cluster. Made by [`Engine::watch`](crate::Engine::watch); may go to any thread, and outlive
/// the engine.
///
/// What it has not seen is replaced by what comes after it: a slow watcher misses views, but never the newest.
#[derive(Debug)]
pub struct Watch {
    board: Arc<Board>,
    seen: Nodes,
    key: WatchKey,
}

type WatchKey = u64;

impl Watch {
    /// What was seen last: at first, the nodes at the moment at which the watch was made.
    #[must_use]
    pub fn nodes(&self) -> &Nodes {
        &self.seen
    }

    /// Waits for nodes that are newer than those seen last. `None` once the engine has stopped and its last change was
    /// seen. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Nodes> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`next`](Self::next), for those who write a `Stream` of it. Only the last waker that was given is woken.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Nodes>> {
        let waker = context.waker().clone();
        let board = self.board.clone();
        let mut state = board.lock();
        let news = self.news(&state);
        let unused = if news.is_pending() { state.wakers.insert(self.key, waker) } else { Some(waker) };
        drop(state);
        drop(unused); // may end a task, and with it another watch, which takes the lock
        news
    }

    /// As [`next`](Self::next), for a thread without async: waits for at most `within`. `None` also if that was too short;
    /// [`is_ended`](Self::is_ended) tells the two apart.
    pub fn next_within(&mut self, within: Duration) -> Option<Nodes> {
        let until = Time::read() + within;
        let board = self.board.clone();
        let mut state = board.lock();
        loop {
            if let Poll::Ready(news) = self.news(&state) {
                return news;
            }
            let left = until.since(Time::read());
            if left.is_zero() {
                return None;
            }
            state = match board.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Whether the engine has stopped: nothing will change any more.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.board.lock().ended
    }

    fn news(&mut self, state: &State) -> Poll<Option<Nodes>> {
        if state.view.epoch() > self.seen.epoch() {
            self.seen = Nodes { view: state.view.clone() };
            return Poll::Ready(Some(self.seen.clone()));
        }
        if state.ended { Poll::Ready(None) } else { Poll::Pending }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let waker = self.board.lock().wakers.remove(&self.key);
        drop(waker); // as in `poll_next`
    }
}

/// Where the current view lies for all who are no shards.
#[derive(Debug, Default)]
pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    view: Arc<View>,
    ended: bool,
    stats: DiscoveryStats,
    /// Of watches that wait, by the watch.
    wakers: HashMap<WatchKey, Waker>,
    watches: WatchKey,
}

impl Board {
    /// The nodes as they are now.
    pub(crate) fn nodes(&self) -> Nodes {
        Nodes { view: self.lock().view.clone() }
    }

    /// Follows what comes after now.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let mut state = self.lock();
        state.watches += 1;
        Watch { board: self.clone(), seen: Nodes { view: state.view.clone() }, key: state.watches }
    }

    /// What has happened so far.
    pub(crate) fn stats(&self) -> DiscoveryStats {
        self.lock().stats.clone()
    }

    /// Counts what has happened.
    pub(crate) fn count(&self, count: impl FnOnce(&mut DiscoveryStats)) {
        count(&mut self.lock().stats);
    }

    /// Puts a newer view there, for all who watch.
    pub(crate) fn put(&self, view: Arc<View>) {
        self.change(|state| {
            state.view = view;
            state.stats.views += 1;
        });
    }

    /// Nothing will change any more.
    pub(crate) fn end(&self) {
        self.change(|state| state.ended = true);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.changed.notify_all();
        for waker in wakers.into_values() {
            guarded(|| waker.wake()); // on a thread that has more to do
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No foreign code runs under the lock, so what it guards is whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
