//! Calls that wait for something: room in a ring or on a lane, a lane, a view.
//!
//! Those that wait for room on one way stand in a [`Line`], in the order in which they began to wait. Room is granted to the first
//! of them, and to no more than there is room for. A call that was archived by somebody else goes at once; a future is woken, and
//! goes when it is polled, in the next turn. Until then its room is kept, and so is its place:
//!
//! ```text
//!   it has ended, was given up, or went elsewhere ──▶ its room is granted to the next one
//!   it found no room after all                    ──▶ it waits again, where it was, and so do those behind it
//!   it was not polled for GRANT_PATIENCE          ──▶ its room is granted to the next one; it comes back to where it was
//! ```
//!
//! So nobody is woken for nothing, nobody overtakes, and who is in no hurry holds up nobody. A call that comes to a line goes to its
//! end, however much room there is.

use std::collections::VecDeque;

use catga_codec::limits::FRAME_INLINE_BYTES;
use catga_codec::{CallId, OwnedFrame};

use crate::limits::GRANT_PATIENCE;
use crate::pool;
use crate::time::Time;

/// A call that waits, and its frame if it was archived by somebody else.
pub(crate) type Waiting = (CallId, Option<OwnedFrame>);

/// Puts a waiting call behind the others. Those that have ended meanwhile, which `live` tells, go first when the list would
/// grow.
pub(crate) fn enqueue(list: &mut VecDeque<Waiting>, waiting: Waiting, live: impl Fn(CallId) -> bool) {
    if list.len() == list.capacity() {
        list.retain(|(call, _)| live(*call));
        make_room(list);
    }
    list.push_back(waiting);
}

/// A list from which those that have ended were taken: if few had, it grows, so that the next one does not look through it again.
fn make_room<T>(list: &mut VecDeque<T>) {
    if list.len() > list.capacity() / 2 {
        list.reserve(list.capacity() - list.len() + 1);
    }
}

/// When a call first waited, among all calls of its shard: the lower, the earlier. It keeps it for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ticket(pub(crate) u64);

impl Ticket {
    /// Of a call that has not waited: behind all others.
    pub(crate) const NONE: Self = Self(u64::MAX);
}

/// The calls that wait for room on one way.
#[derive(Debug)]
pub(crate) struct Line {
    /// By ticket.
    places: VecDeque<Place>,
    /// How many of them have been granted room.
    granted: u32,
    /// The first that has not, if there is one.
    next: usize,
    /// The room that one gets, in bytes, because only archiving tells what it takes: as much as the largest of the last few.
    bytes: usize,
}

#[derive(Debug)]
struct Place {
    ticket: Ticket,
    call: CallId,
    frame: Option<OwnedFrame>,
    /// When it was granted room, if it was.
    granted: Option<Time>,
}

impl Default for Line {
    fn default() -> Self {
        Self { places: VecDeque::new(), granted: 0, next: 0, bytes: FRAME_INLINE_BYTES }
    }
}

impl Line {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// What room is kept for: so many calls, of so many bytes together.
    pub(crate) fn kept(&self) -> (u32, usize) {
        (self.granted, self.granted as usize * self.bytes)
    }

    /// Whether a call may go: nobody waits, or the line lets it.
    #[inline(always)] // most find no line
    pub(crate) fn admits(&self, ticket: Ticket) -> bool {
        self.is_empty() || self.lets(ticket)
    }

    /// Whether a call may go although there is a line: it has been granted room, and nobody before it has come back; or it began
    /// to wait before all of them.
    #[cold]
    fn lets(&self, ticket: Ticket) -> bool {
        match self.find(ticket) {
            Ok(at) => at < self.next,
            Err(at) => at == 0,
        }
    }

    /// A call that had waited has gone, and took so many bytes.
    #[cold]
    pub(crate) fn gone(&mut self, ticket: Ticket, bytes: usize) {
        self.bytes = bytes.max(self.bytes - self.bytes / 8);
        if let Ok(at) = self.find(ticket) {
            self.remove(at);
        }
    }

    /// Takes a call up, where its ticket says. Those that have ended meanwhile, which `live` tells, go first when the line would
    /// grow.
    pub(crate) fn wait(&mut self, ticket: Ticket, (call, frame): Waiting, live: impl Fn(CallId) -> bool) {
        let at = match self.find(ticket) {
            Ok(at) => {
                self.remove(at);
                at
            }
            Err(_) if self.places.len() == self.places.capacity() => {
                self.places.retain_mut(|place| {
                    let lives = live(place.call);
                    if !lives && let Some(frame) = place.frame.take() {
                        pool::give(frame);
                    }
                    lives
                });
                make_room(&mut self.places);
                self.granted = self.places.iter().filter(|place| place.granted.is_some()).count() as u32;
                self.next = 0;
                self.advance();
                self.find(ticket).unwrap_or_else(|at| at)
            }
            Err(at) => at,
        };
        self.places.insert(at, Place { ticket, call, frame, granted: None });
        self.next = self.next.min(at);
    }

    /// A round of [`grant`](Self::grant) begins: room is kept no longer for those who do not come. `comes` tells who still lives,
    /// and stands in no other line.
    pub(crate) fn begin_round(&mut self, now: Time, mut comes: impl FnMut(CallId) -> bool) {
        let (mut at, mut granted) = (0, self.granted);
        while granted > 0
            && let Some(place) = self.places.get(at)
        {
            let Some(since) = place.granted else {
                at += 1;
                continue;
            };
            granted -= 1;
            if now.since(since) < GRANT_PATIENCE && comes(place.call) {
                at += 1;
            } else {
                self.remove(at);
            }
        }
    }

    /// Grants room to the first that has none, and keeps it. `live` tells who still waits.
    pub(crate) fn grant(&mut self, now: Time, mut live: impl FnMut(CallId) -> bool) -> Option<Waiting> {
        while let Some(place) = self.places.get_mut(self.next) {
            if live(place.call) {
                place.granted = Some(now);
                self.granted += 1;
                let waiting = (place.call, place.frame.take());
                self.advance();
                return Some(waiting);
            }
            self.remove(self.next);
            self.advance();
        }
        None
    }

    fn advance(&mut self) {
        while self.places.get(self.next).is_some_and(|place| place.granted.is_some()) {
            self.next += 1;
        }
    }

    /// Takes out all that have not been granted room. The others come of themselves, and look for another way.
    pub(crate) fn dissolve(&mut self) -> impl Iterator<Item = Waiting> + use<> {
        let places = std::mem::take(&mut self.places);
        (self.granted, self.next) = (0, 0);
        places.into_iter().filter(|place| place.granted.is_none()).map(|place| (place.call, place.frame))
    }

    fn find(&self, ticket: Ticket) -> Result<usize, usize> {
        // Who comes anew comes behind all others: most do.
        match self.places.back() {
            Some(last) if ticket <= last.ticket => {
                self.places.binary_search_by_key(&ticket, |place| place.ticket)
            }
            _ => Err(self.places.len()),
        }
    }

    fn remove(&mut self, at: usize) {
        let Some(place) = self.places.remove(at) else { return };
        self.granted -= u32::from(place.granted.is_some());
        self.next -= usize::from(at < self.next);
        if let Some(frame) = place.frame {
            pool::give(frame);
        }
    }
}

#[cfg(test)]
mod tests;
