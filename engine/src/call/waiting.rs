//! Calls that wait for something: room in a ring or on a lane, a lane, a view.

use std::collections::VecDeque;

use catga_codec::{CallId, OwnedFrame};

/// A call that waits, and its frame if it was archived by somebody else.
pub(crate) type Waiting = (CallId, Option<OwnedFrame>);

/// Puts a waiting call behind the others. Those that have ended meanwhile, which `live` tells, go first when the list would
/// grow.
pub(crate) fn enqueue(list: &mut VecDeque<Waiting>, waiting: Waiting, live: impl Fn(CallId) -> bool) {
    if list.len() == list.capacity() {
        list.retain(|(call, _)| live(*call));
    }
    list.push_back(waiting);
}
