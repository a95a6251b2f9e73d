//! What to do with a panic of somebody else's code: a waker's, a service's, its `Drop`'s. It is logged and goes no further.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// What a panic said, if it said something.
pub(crate) fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(a panic without text)")
}

/// Drops what was panicked with; its own `Drop` may panic too, and then it is left alone.
pub(crate) fn discard(panic: Box<dyn Any + Send>) {
    if let Err(again) = catch_unwind(AssertUnwindSafe(|| drop(panic))) {
        std::mem::forget(again);
    }
}

/// Wakes somebody. The waker may be somebody else's code, also inside a handler: a panic in it ends neither a shard nor the
/// watchdog. Costs nothing where none panics.
#[inline]
pub(crate) fn guarded(wake: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(wake)) {
        woke_in_vain(panic);
    }
}

#[cold]
fn woke_in_vain(panic: Box<dyn Any + Send>) {
    tracing::error!(panic = text_of(&*panic), "the waker of a caller panicked");
    discard(panic);
}

/// Drops what is a service's, or holds the last of it. If that panics it is logged, and goes no further: the shard's other
/// services are dropped as well, and their `Drop` may panic too. Says whether it did not panic.
#[cfg(not(catga_loom))]
pub(crate) fn drop_guarded<T>(last: T) -> bool {
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(last)));
    let Err(panic) = dropped else { return true };
    let dropping = std::any::type_name::<T>();
    tracing::error!(
        dropping,
        panic = text_of(&*panic),
        "a service, or what it left, panicked while it was dropped"
    );
    discard(panic);
    false
}
