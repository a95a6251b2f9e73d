//! The window: the idempotent requests that came over this shard's lanes, and how they ended.
//!
//! A caller whose lane is lost after an idempotent request has left sends it again, over another lane of the same two
//! shards, under the same call id. Here it must find what became of the first: the handler that still runs, or the answer
//! that it gave. So each such request is entered under who asked (node, incarnation, shard) and the call:
//!
//! ```text
//!   first time ──▶ Running ──ends──▶ Done ──oldest out, or after WINDOW_TIME──▶ forgotten
//!                     ▲                ▲
//!       again: its answer goes   again: answered from here,
//!       over the newer lane      no handler runs
//! ```
//!
//! Whoever answers such a request (a handler, a task, a forward over a ring) answers to the entry, so the end of a lane ends
//! nothing of it. Each frame on a lane is owed one answer: when a request comes again while the lane that it came over before
//! still lives here, the frame on that lane is answered as lost at once. Its caller has said so by asking again.
//!
//! **Bounds.** Entries and answers hold [`WINDOW_BYTES`] at most; ended ones leave, the oldest first, for new ones. A request
//! that finds no room runs without an entry, and an answer larger than a quarter of the window is not kept: sent again, these
//! run again, which is what `idempotent` allows. What was refused has not run, and is not kept either.

use std::collections::{HashMap, VecDeque};

use catga_codec::{CallId, OwnedFrame};
use catga_discovery::Incarnation;

use crate::call::table::{Ending, LaneKey};
use crate::limits::WINDOW_TIME;
use crate::pool;
use crate::time::Time;

/// What an entry costs besides its answer, in round numbers: its place, its line in the index and in the queue.
pub(super) const ENTRY_BYTES: usize = 256;

/// One request of one caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    /// The hash of the node's id.
    pub(crate) node: u64,
    pub(crate) incarnation: Incarnation,
    pub(crate) shard: u16,
    pub(crate) call: CallId,
}

/// An entry whose request runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WindowId {
    place: u32,
    generation: u32,
}

/// What the window knows of a request that has arrived.
#[derive(Debug)]
pub(crate) enum Arrival<'a> {
    /// Nothing: it runs, and is answered to this entry.
    First(WindowId),
    /// Nothing, and there is no room to remember it.
    NoRoom,
    /// It runs; from now on its answer goes over the new lane instead of this one.
    Joined { before: LaneKey },
    /// It has ended like this.
    Ended(Ending, Option<&'a OwnedFrame>),
}

#[derive(Debug)]
enum State {
    /// It runs, and is answered over this lane.
    Running(LaneKey),
    Done(Ending, Option<OwnedFrame>),
}

#[derive(Debug)]
struct Entry {
    asked: Asked,
    state: State,
}

#[derive(Debug, Default)]
struct Place {
    generation: u32,
    entry: Option<Entry>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    places: Vec<Place>,
    free: Vec<u32>,
    index: HashMap<Asked, u32>,
    /// Places of those that have ended, the oldest first, and when each did.
    done: VecDeque<(Time, u32)>,
    bytes: usize,
    bytes_max: usize,
    evicted: u64,
}

impl Window {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            index: HashMap::new(),
            done: VecDeque::new(),
            bytes: 0,
            bytes_max,
            evicted: 0,
        }
    }

    /// A request has come over a lane.
    pub(crate) fn arrives(&mut self, asked: Asked, lane: LaneKey, now: Time) -> Arrival<'_> {
        self.forget_old(now);
        let Some(&place) = self.index.get(&asked) else { return self.enter(asked, lane) };
        match self.places[place as usize].entry.as_mut().map(|entry| &mut entry.state) {
            Some(State::Running(at)) => Arrival::Joined { before: std::mem::replace(at, lane) },
            Some(State::Done(ending, frame)) => Arrival::Ended(*ending, frame.as_ref()),
            None => unreachable!("the index names entries"),
        }
    }

    fn enter(&mut self, asked: Asked, lane: LaneKey) -> Arrival<'_> {
        if !self.make_room(ENTRY_BYTES) {
            self.evicted += 1;
            return Arrival::NoRoom;
        }
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            self.places.len() as u32 - 1
        });
        let taken = &mut self.places[place as usize];
        taken.entry = Some(Entry { asked, state: State::Running(lane) });
        self.index.insert(asked, place);
        self.bytes += ENTRY_BYTES;
        Arrival::First(WindowId { place, generation: taken.generation })
    }

    /// Where the answer of a running request goes.
    pub(crate) fn asker(&self, id: WindowId) -> Option<(LaneKey, CallId)> {
        let place = self.places.get(id.place as usize).filter(|place| place.generation == id.generation)?;
        match place.entry.as_ref()? {
            Entry { asked, state: State::Running(lane) } => Some((*lane, asked.call)),
            _ => None,
        }
    }

    /// The entry of a request that runs, and is answered over this lane.
    pub(crate) fn running(&self, asked: &Asked, lane: LaneKey) -> Option<WindowId> {
        let place = *self.index.get(asked)?;
        let id = WindowId { place, generation: self.places[place as usize].generation };
        self.asker(id).filter(|(at, _)| *at == lane).map(|_| id)
    }

    /// A request has ended, and its answer is kept if it has run and there is room for it.
    pub(crate) fn ends(&mut self, id: WindowId, ending: Ending, frame: Option<OwnedFrame>, now: Time) {
        if self.asker(id).is_none() {
            return frame.map_or((), pool::give);
        }
        self.forget_old(now);
        let bytes = frame.as_ref().map_or(0, OwnedFrame::capacity);
        let has_run = !matches!(ending, Ending::Refused(_) | Ending::NotSent(_));
        if !has_run || bytes > self.bytes_max / 4 || !self.make_room(bytes) {
            self.evicted += u64::from(has_run);
            self.remove(id.place);
            return frame.map_or((), pool::give);
        }
        if let Some(entry) = &mut self.places[id.place as usize].entry {
            entry.state = State::Done(ending, frame);
        }
        self.bytes += bytes;
        self.done.push_back((now, id.place));
    }

    /// Requests that are no longer remembered although they could still be sent again, since the last look.
    pub(crate) fn take_evicted(&mut self) -> u64 {
        std::mem::take(&mut self.evicted)
    }

    /// Lets the oldest go until there is room for so many bytes more. Those that run stay.
    fn make_room(&mut self, bytes: usize) -> bool {
        while self.bytes + bytes > self.bytes_max {
            let Some((_, oldest)) = self.done.pop_front() else { return false };
            self.remove(oldest);
            self.evicted += 1;
        }
        true
    }

    fn forget_old(&mut self, now: Time) {
        while let Some(&(since, oldest)) = self.done.front()
            && now.since(since) >= WINDOW_TIME
        {
            self.done.pop_front();
            self.remove(oldest);
        }
    }

    fn remove(&mut self, index: u32) {
        let place = &mut self.places[index as usize];
        let Some(Entry { asked, state }) = place.entry.take() else { return };
        place.generation = place.generation.wrapping_add(1);
        self.free.push(index);
        self.index.remove(&asked);
        self.bytes -= ENTRY_BYTES;
        if let State::Done(_, Some(frame)) = state {
            self.bytes -= frame.capacity();
            pool::give(frame);
        }
    }
}

#[cfg(test)]
mod tests {
    use catga_codec::{Header, Kind};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::error::Refusal;
    use crate::limits::{POOLED_SMALL_BYTES, WINDOW_BYTES};

    /// Room for a few answers only.
    const SMALL: usize = 8 * (ENTRY_BYTES + POOLED_SMALL_BYTES);

    fn asked(number: u8) -> Asked {
        // Each part tells two callers apart.
        let [node, incarnation, shard, call] = [0, 2, 4, 6].map(|shift| u32::from(number) >> shift & 3);
        Asked {
            node: u64::from(node),
            incarnation: Incarnation(u64::from(incarnation)),
            shard: shard as u16,
            call: CallId::new(call, 1),
        }
    }

    fn lane(index: u32) -> LaneKey {
        LaneKey { index, generation: 0 }
    }

    fn answer(bytes: usize) -> Option<OwnedFrame> {
        let mut frame = OwnedFrame::with_capacity(bytes);
        frame.encode_empty(Header::new(Kind::Reply));
        Some(frame)
    }

    /// As the window, with nothing but a list: too simple to be wrong.
    #[derive(Default)]
    struct Model {
        /// In the order in which they ended; those that run are behind.
        all: Vec<(Asked, Option<Time>, usize, LaneKey)>,
    }

    impl Model {
        fn bytes(&self) -> usize {
            self.all.iter().map(|(_, _, bytes, _)| ENTRY_BYTES + bytes).sum()
        }

        fn forget_old(&mut self, now: Time) {
            self.all.retain(|(_, done, ..)| done.is_none_or(|done| now.since(done) < WINDOW_TIME));
        }

        fn make_room(&mut self, bytes: usize) -> bool {
            while self.bytes() + bytes > SMALL {
                let Some(oldest) = self.all.iter().position(|(_, done, ..)| done.is_some()) else {
                    return false;
                };
                self.all.remove(oldest);
            }
            true
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Arrives(u8, u32),
        /// Of those that run, this one.
        Ends(prop::sample::Index, bool, usize),
        Waits(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (any::<u8>().prop_map(|number| number & 0b0101_0101), 0..9u32)
                .prop_map(|(number, lane)| Step::Arrives(number, lane)),
            3 => (any::<prop::sample::Index>(), prop::bool::weighted(0.8), 0..SMALL / 3)
                .prop_map(|(which, ran, bytes)| Step::Ends(which, ran, bytes)),
            1 => (0..WINDOW_TIME.as_millis() as u64).prop_map(Step::Waits),
        ]
    }

    proptest! {
        #[test]
        fn the_window_remembers_what_a_simple_list_remembers(steps in vec(step(), 1..120)) {
            let (mut window, mut model) = (Window::new(SMALL), Model::default());
            let mut running: Vec<(WindowId, Asked)> = Vec::new();
            let mut now = Time::ZERO;
            for step in steps {
                match step {
                    Step::Arrives(number, over) => {
                        let (asked, over) = (asked(number), lane(over));
                        model.forget_old(now);
                        let known = model.all.iter().position(|(known, ..)| *known == asked);
                        match window.arrives(asked, over, now) {
                            Arrival::First(id) => {
                                prop_assert!(known.is_none() && model.make_room(ENTRY_BYTES));
                                model.all.push((asked, None, 0, over));
                                running.push((id, asked));
                            }
                            Arrival::NoRoom => prop_assert!(known.is_none() && !model.make_room(ENTRY_BYTES)),
                            Arrival::Joined { before } => {
                                let known = &mut model.all[known.unwrap()];
                                prop_assert_eq!((known.1, known.3), (None, before));
                                known.3 = over;
                            }
                            Arrival::Ended(ending, frame) => {
                                let known = &model.all[known.unwrap()];
                                prop_assert!(known.1.is_some() && ending == Ending::Reply);
                                prop_assert_eq!(frame.map_or(0, OwnedFrame::capacity), known.2);
                            }
                        }
                    }
                    Step::Ends(which, ran, bytes) if !running.is_empty() => {
                        let (id, asked) = running.swap_remove(which.index(running.len()));
                        let frame = answer(bytes);
                        let bytes = frame.as_ref().map_or(0, OwnedFrame::capacity);
                        let at = model.all.iter().position(|(known, ..)| *known == asked).unwrap();
                        prop_assert_eq!(window.asker(id), Some((model.all[at].3, asked.call)));
                        prop_assert_eq!(window.running(&asked, model.all[at].3), Some(id));
                        model.forget_old(now);
                        let kept = ran && bytes <= SMALL / 4 && model.make_room(bytes);
                        let at = model.all.iter().position(|(known, ..)| *known == asked).unwrap();
                        let (.., over) = model.all.remove(at);
                        if kept {
                            let behind = model.all.iter().filter(|(_, done, ..)| done.is_some()).count();
                            model.all.insert(behind, (asked, Some(now), bytes, over));
                        }
                        let ending = if ran { Ending::Reply } else { Ending::Refused(Refusal::Overloaded) };
                        window.ends(id, ending, frame, now);
                        prop_assert_eq!(window.asker(id), None, "an entry ends once");
                    }
                    Step::Ends(..) => {}
                    Step::Waits(millis) => now = now + std::time::Duration::from_millis(millis),
                }
                prop_assert_eq!(window.bytes, model.bytes());
                prop_assert!(window.bytes <= SMALL);
                prop_assert_eq!(window.index.len(), model.all.len());
            }
        }
    }

    #[test]
    fn what_was_refused_may_run_when_it_comes_again() {
        let mut window = Window::new(WINDOW_BYTES);
        for _ in 0..3 {
            let Arrival::First(id) = window.arrives(asked(1), lane(1), Time::ZERO) else { panic!("kept") };
            window.ends(id, Ending::Refused(Refusal::Stopping), None, Time::ZERO);
        }
        assert_eq!((window.bytes, window.take_evicted()), (0, 0));
    }

    #[test]
    fn the_oldest_leave_first_and_are_counted_and_time_is_not() {
        let mut window = Window::new(SMALL);
        for number in 0..12 {
            let Arrival::First(id) = window.arrives(asked(number), lane(1), Time::ZERO) else { panic!() };
            window.ends(id, Ending::Reply, answer(POOLED_SMALL_BYTES), Time::ZERO);
        }
        assert_eq!(window.take_evicted(), 4);
        assert!(matches!(
            window.arrives(asked(4), lane(1), Time::ZERO),
            Arrival::Ended(Ending::Reply, Some(_))
        ));
        let later = Time::ZERO + WINDOW_TIME;
        assert!(matches!(window.arrives(asked(4), lane(1), later), Arrival::First(_)));
        assert_eq!((window.bytes, window.take_evicted()), (ENTRY_BYTES, 0));
    }

    #[test]
    fn those_that_run_stay_and_one_more_than_there_is_room_for_is_not_remembered() {
        let mut window = Window::new(2 * ENTRY_BYTES);
        let Arrival::First(first) = window.arrives(asked(1), lane(1), Time::ZERO) else { panic!() };
        assert!(matches!(window.arrives(asked(2), lane(1), Time::ZERO), Arrival::First(_)));
        assert!(matches!(window.arrives(asked(3), lane(1), Time::ZERO), Arrival::NoRoom));
        assert_eq!(window.asker(first), Some((lane(1), asked(1).call)));
        assert_eq!(window.running(&asked(1), lane(2)), None, "it is answered over another lane");
        assert_eq!(window.take_evicted(), 1);
    }
}
