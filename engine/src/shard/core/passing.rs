//! Requests that are sent on behalf of someone else (a foreign thread, another node), and calls that look for their way
//! again: a lane has opened, there is room, a view has come, a node has sent them on.

use catga_codec::{CallId, Contract, EncodeError, Flags, Kind, OwnedFrame};

use super::destination::{Destination, Traveller};
use super::{Core, Try, to_another_node};
use crate::call::table::{Ending, LaneKey, Target};
use crate::call::waiting::Ticket;
use crate::choice::Choice;
use crate::client::not_encoded;
use crate::error::NotSent;
use crate::panics::guarded;
use crate::pool;
use crate::shard::mesh::{NoRoom, peer};
use crate::shard::reply_to::ReplyTo;
use crate::time::Time;

impl Core {
    /// Calls whose way has changed look for it again: a lane has opened or could not be, a view has come, a node has sent
    /// them on.
    pub(crate) fn resolve_again(&self) {
        let again = self.lanes.borrow_mut().take_again(self.now());
        for (call, frame) in again {
            self.granted(call, frame);
        }
    }

    /// There may be room now for a call that waited: a future is woken to try again, a forwarded frame goes at once.
    pub(crate) fn granted(&self, call: CallId, frame: Option<OwnedFrame>) {
        self.calls.borrow_mut().delist(call);
        let Some(frame) = frame else {
            return guarded(|| {
                let waker = self.calls.borrow_mut().room_for(call);
                if let Some(waker) = waker {
                    waker.wake();
                }
            });
        };
        let deadline = self.calls.borrow_mut().waiting(call);
        let terms = self.calls.borrow_mut().terms(call);
        let (Some(deadline), Some((contract, choice))) = (deadline, terms) else { return pool::give(frame) };
        if self.stopping.get() {
            pool::give(frame);
            return self.complete(call, Ending::NotSent(NotSent::Stopping), |_| ());
        }
        if let (Some(contract), Choice::Usual) = (contract, choice)
            && frame.header().is_some_and(|header| header.kind == Kind::Event)
            && !self.lanes.borrow().is_too_early()
        {
            return self.begin_now(call, frame, deadline, contract);
        }
        let destination = self.destination_of(&frame, contract, choice, Some(call));
        self.pass(destination, call, frame, deadline, Try::Granted);
    }

    fn destination_of(
        &self,
        frame: &OwnedFrame,
        contract: Option<fn() -> Contract>,
        choice: Choice,
        call: Option<CallId>,
    ) -> Destination {
        let Some(header) = frame.header() else { return Destination::Nowhere(NotSent::Unarchivable) };
        if header.kind == Kind::Event {
            // A part of a broadcast, on its way to the node or the other shard that it is for; or one that has not begun.
            return match choice {
                Choice::Node(node) => self.way_to_node(node, &header),
                Choice::Local => Destination::Shard(header.shard),
                _ => Destination::Later,
            };
        }
        // The context word of a frame from another node counts that process's types: only the id says what it is here.
        let index = match frame.local() {
            Some(_) if header.context != 0 => u32::try_from(header.context).ok(),
            _ => self.routes.index_of(header.message),
        };
        self.destination(&Traveller {
            index: index.unwrap_or(0),
            id: header.message,
            key: header.key,
            keyed: header.flags.contains(Flags::KEYED),
            choice,
            contract,
            call,
        })
    }

    /// Sends a request on behalf of someone else (a foreign thread, another node), who gets the answer as it is.
    /// Without a contract, to compare with what other nodes mean by the message, it stays in this engine.
    pub(crate) fn forward(
        &self,
        frame: OwnedFrame,
        mut to: ReplyTo,
        deadline: Time,
        terms: Option<(fn() -> Contract, Choice)>,
        go: Try,
    ) {
        if deadline <= self.now() {
            return self.end(&mut to, Ending::NotSent(NotSent::Deadline));
        }
        let contract = terms.map(|(contract, _)| contract);
        let choice = terms.map_or(Choice::Usual, |(_, choice)| choice);
        let destination = match self.destination_of(&frame, contract, choice, None) {
            Destination::Nowhere(reason) => return self.end(&mut to, Ending::NotSent(reason)),
            Destination::Here => return self.queue(frame, to, deadline),
            destination => destination,
        };
        let opened = self.calls.borrow_mut().open_forward(deadline, to, contract, choice);
        match opened {
            Ok(call) => self.pass(destination, call, frame, deadline, go),
            Err(mut to) => self.end(&mut to, Ending::NotSent(NotSent::TooManyCalls)),
        }
    }

    pub(super) fn pass(
        &self,
        destination: Destination,
        call: CallId,
        mut frame: OwnedFrame,
        deadline: Time,
        go: Try,
    ) {
        let ticket = match go {
            Try::Granted => self.calls.borrow_mut().ticket(call),
            Try::First | Try::Once => Ticket::NONE,
        };
        frame.set_call(call);
        frame.set_remaining_us(self.now().left_until(deadline));
        let passed = match destination {
            Destination::Shard(shard) => {
                peer(&mut self.mesh.borrow_mut(), shard).forward(frame, ticket).map(|()| Target::Shard(shard))
            }
            Destination::Lane(lane) => match self.pass_over(lane, call, &frame, ticket) {
                Ok(target) => {
                    self.calls.borrow_mut().sent(call, target);
                    return self.calls.borrow_mut().keep_request(call, frame);
                }
                Err(NoRoom::Wait) => Err(frame),
                Err(NoRoom::Never(error)) => {
                    pool::give(frame);
                    return self.complete(call, Ending::NotSent(not_encoded(error)), |_| ());
                }
            },
            Destination::Opening(_) | Destination::Later => Err(frame),
            Destination::Here => {
                self.calls.borrow_mut().sent(call, Target::Here);
                return self.queue(frame, ReplyTo::Here(call), deadline);
            }
            Destination::Nowhere(reason) => {
                pool::give(frame);
                return self.complete(call, Ending::NotSent(reason), |_| ());
            }
        };
        match passed {
            Ok(target) => self.calls.borrow_mut().sent(call, target),
            Err(frame) if go == Try::Once => {
                pool::give(frame);
                let reason = self.no_room_at_once(destination);
                self.complete(call, Ending::NotSent(reason), |_| ());
            }
            Err(frame) => self.wait_for_room(destination, call, Some(frame)),
        }
    }

    /// Queues a forwarded request on a lane.
    fn pass_over(
        &self,
        lane: LaneKey,
        call: CallId,
        frame: &OwnedFrame,
        ticket: Ticket,
    ) -> Result<Target, NoRoom> {
        let choice = self.calls.borrow_mut().terms(call).map_or(Choice::Usual, |(_, choice)| choice);
        let Some(header) = frame.header() else { return Err(NoRoom::Never(EncodeError::TooLarge)) };
        let mut lanes = self.lanes.borrow_mut();
        let travels = to_another_node(header, choice, lanes.digest());
        let offset = lanes.forward(lane, travels, frame, ticket)?;
        drop(lanes);
        self.budget.earn();
        self.travels(call, choice.of(header.flags.contains(Flags::KEYED)), header.flags);
        Ok(Target::Lane { lane, offset })
    }
}
