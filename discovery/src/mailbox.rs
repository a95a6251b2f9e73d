//! A mailbox with one place: how a new view reaches a shard.
//!
//! The publisher puts a value into the place and takes back one that lies there untaken: only the newest counts. The
//! subscriber takes it whenever it looks. Neither waits for the other, and looking into an empty mailbox, which a
//! shard does every turn, is one plain load of a word that nobody writes in the meantime.
//!
//! ```text
//! publisher ── swap(new) ──▶ [ place: null | *const T ] ── load; if not null: swap(null) ──▶ subscriber
//!                └── the untaken one comes back and is dropped
//! ```
//!
//! **Ownership.** A pointer in the place stands for one reference count of an `Arc<T>`. It enters and leaves by `swap`
//! only, so exactly one side gets each pointer out, and with it the count.
//!
//! **Ordering.** The publisher's `swap` is Release, the subscriber's is Acquire: who gets the pointer sees the value
//! behind it. The subscriber's first load decides only whether to swap, and may be stale: a value that it misses is
//! found by a later turn. Once it has seen a pointer the swap cannot find null, for no one else puts null there.
#![allow(unsafe_code)] // the place holds reference counts as bare pointers

use std::{marker::PhantomData, ptr};

use crate::sync::{
    Arc,
    atomic::{
        AtomicPtr,
        Ordering::{Acquire, Relaxed, Release},
    },
};

/// Makes a mailbox, empty.
///
/// What goes through it is dropped on either side, and both sides share it, hence it must be `Send` and `Sync` before
/// a side may leave its thread:
///
/// ```compile_fail,E0277
/// let (publisher, _) = catga_discovery::mailbox::<std::cell::Cell<u32>>();
/// std::thread::spawn(move || drop(publisher));
/// ```
#[must_use]
pub fn mailbox<T>() -> (Publisher<T>, Subscriber<T>) {
    let slot = Arc::new(Slot { place: AtomicPtr::new(ptr::null_mut()), owns: PhantomData });
    (Publisher { slot: slot.clone() }, Subscriber { slot })
}

/// The side that puts values in. Dropping it leaves an untaken value for the subscriber.
#[derive(Debug)]
pub struct Publisher<T> {
    slot: Arc<Slot<T>>,
}

/// The side that takes values out. Dropping it loses nothing but what was published for it.
#[derive(Debug)]
pub struct Subscriber<T> {
    slot: Arc<Slot<T>>,
}

#[derive(Debug)]
struct Slot<T> {
    /// Null, or from `Arc::into_raw`, standing for one reference count.
    place: AtomicPtr<T>,
    /// Makes the slot `Send` and `Sync` only if an `Arc<T>` is; the atomic pointer alone always would be.
    owns: PhantomData<Arc<T>>,
}

impl<T> Publisher<T> {
    /// Puts `value` in. An older one that was not yet taken is dropped here, unseen. Never waits.
    pub fn publish(&mut self, value: Arc<T>) {
        let new = Arc::into_raw(value).cast_mut();
        // Release: pairs with the Acquire in `Subscriber::take`. What comes back this side put there itself.
        let untaken = self.slot.place.swap(new, Release);
        // SAFETY: `untaken` came out of the place by a swap.
        drop(unsafe { from_place(untaken) });
    }
}

impl<T> Subscriber<T> {
    /// Takes the newest value, if one came since the last time. One load without ordering if none did.
    #[inline]
    pub fn take(&mut self) -> Option<Arc<T>> {
        // Relaxed: has no partner; decides only whether the swap below is worth its price.
        if self.slot.place.load(Relaxed).is_null() {
            return None;
        }
        self.take_published()
    }

    /// Apart from `take`, so that what is inlined into a shard's turn is the load alone.
    #[cold]
    fn take_published(&mut self) -> Option<Arc<T>> {
        // Acquire: pairs with the Release in `Publisher::publish`.
        let newest = self.slot.place.swap(ptr::null_mut(), Acquire);
        // SAFETY: `newest` came out of the place by a swap.
        unsafe { from_place(newest) }
    }
}

impl<T> Drop for Slot<T> {
    fn drop(&mut self) {
        // Relaxed: the last of the two sides is here, and dropping the `Arc` ordered the other one before it.
        let untaken = self.place.swap(ptr::null_mut(), Relaxed);
        // SAFETY: `untaken` came out of the place by a swap.
        drop(unsafe { from_place(untaken) });
    }
}

/// Gives the reference count that lay in a place back to an `Arc`.
///
/// # Safety
///
/// `pointer` came out of a `Slot<T>::place` by a swap, and only one `Arc` is made of it.
unsafe fn from_place<T>(pointer: *mut T) -> Option<Arc<T>> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: only `publish` puts pointers that are not null there, and they are from `Arc::into_raw`. The caller has
    // it from a swap, so nobody else got the same one. `no_value_leaks_and_none_is_dropped_twice` breaks otherwise.
    Some(unsafe { Arc::from_raw(pointer) })
}

#[cfg(test)]
#[cfg(not(catga_loom))]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_taken_once() {
        let (mut publisher, mut subscriber) = mailbox();
        assert!(subscriber.take().is_none());
        publisher.publish(Arc::new(1));
        publisher.publish(Arc::new(2));
        assert_eq!(subscriber.take().as_deref(), Some(&2));
        assert!(subscriber.take().is_none());
        publisher.publish(Arc::new(3));
        drop(publisher);
        assert_eq!(subscriber.take().as_deref(), Some(&3), "outlives its publisher");
    }

    #[test]
    fn no_value_leaks_and_none_is_dropped_twice() {
        let value = Arc::new(());
        let (mut publisher, mut subscriber) = mailbox();
        publisher.publish(value.clone());
        publisher.publish(value.clone());
        assert_eq!(Arc::strong_count(&value), 2, "the replaced one is gone");
        drop(subscriber.take());
        assert_eq!(Arc::strong_count(&value), 1);
        publisher.publish(value.clone());
        drop((publisher, subscriber));
        assert_eq!(Arc::strong_count(&value), 1, "the untaken one went with the mailbox");
    }
}

/// Every schedule of two threads. loom itself reports an `Arc` that leaks or is dropped twice.
#[cfg(test)]
#[cfg(catga_loom)]
mod model {
    use loom::{cell::UnsafeCell, model, thread};

    use super::*;

    /// A value whose content loom watches: reading it without an ordering after its creation is a race.
    struct Watched(UnsafeCell<u32>);

    // SAFETY: written only before it is shared, which is what the tests below check with loom's help.
    unsafe impl Sync for Watched {}

    fn watched(number: u32) -> Arc<Watched> {
        let value = Arc::new(Watched(UnsafeCell::new(0)));
        // SAFETY: not yet shared.
        value.0.with_mut(|content| unsafe { *content = number });
        value
    }

    fn number(value: &Watched) -> u32 {
        // SAFETY: nobody writes it any more; loom checks just that.
        value.0.with(|content| unsafe { *content })
    }

    #[test]
    fn the_newest_is_always_seen_and_never_an_older_one_after_it() {
        model(|| {
            let (mut publisher, mut subscriber) = mailbox();
            let thread = thread::spawn(move || {
                (1..=3).for_each(|n| publisher.publish(watched(n)));
            });
            let mut last = 0;
            for _ in 0..2 {
                if let Some(value) = subscriber.take() {
                    assert!(number(&value) > last);
                    last = number(&value);
                }
            }
            thread.join().unwrap();
            if let Some(value) = subscriber.take() {
                assert!(number(&value) > last);
                last = number(&value);
            }
            assert_eq!(last, 3);
        });
    }

    #[test]
    fn no_value_leaks_and_none_is_dropped_twice() {
        model(|| {
            let (mut publisher, mut subscriber) = mailbox();
            let thread = thread::spawn(move || {
                publisher.publish(watched(1));
                publisher.publish(watched(2));
            });
            let taken = subscriber.take();
            drop(subscriber); // either side may be the last
            thread.join().unwrap();
            assert!(taken.is_none_or(|value| (1..=2).contains(&number(&value))));
        });
    }
}
