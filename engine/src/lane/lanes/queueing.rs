//! What is put into lanes: requests, answers, cancels; and the calls that wait for room.

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{CallId, EncodeError, Header, Kind, Message, OwnedFrame};

use super::{Lanes, no_room};

use crate::call::table::LaneKey;
use crate::call::waiting::{Ticket, Waiting};
use crate::lane::outcome::{Queued, SendError};
use crate::lane::protocol::Lane;
use crate::shard::mesh::NoRoom;
use crate::time::Time;

impl Lanes {
    /// Queues a request. Returns the offset in the lane's stream at which it begins. `ticket`: of a call that has waited; it goes
    /// if it has been told that there is room.
    #[inline]
    pub(crate) fn request<M: Message>(
        &mut self,
        key: LaneKey,
        header: Header,
        message: &M,
        ticket: Ticket,
    ) -> Result<u64, NoRoom> {
        self.queue(key, ticket, |machine| machine.send(header, message))
    }

    /// Queues a request that was archived elsewhere.
    pub(crate) fn forward(
        &mut self,
        key: LaneKey,
        header: Header,
        frame: &OwnedFrame,
        ticket: Ticket,
    ) -> Result<u64, NoRoom> {
        self.queue(key, ticket, |machine| machine.forward(header, &frame.bytes()[HEADER_BYTES..]))
    }

    #[inline]
    fn queue(
        &mut self,
        key: LaneKey,
        ticket: Ticket,
        send: impl FnOnce(&mut Lane) -> Result<Queued, SendError>,
    ) -> Result<u64, NoRoom> {
        self.with(key, |lane| {
            if !lane.line.admits(ticket) {
                return Err(NoRoom::Wait);
            }
            let Queued { offset } = send(&mut lane.machine).map_err(no_room)?;
            if ticket != Ticket::NONE {
                lane.line.gone(ticket, lane.machine.queued_since(offset));
            }
            Ok(offset)
        })
        .unwrap_or(Err(NoRoom::Wait))
    }

    /// Archives an answer into the lane. An answer to a lane that has ended is for nobody.
    #[inline]
    pub(crate) fn answer<M: Message>(
        &mut self,
        key: LaneKey,
        header: Header,
        message: &M,
    ) -> Result<(), EncodeError> {
        match self.with(key, |lane| lane.machine.send(header, message)) {
            Some(Err(SendError::TooLong { .. })) => Err(EncodeError::TooLarge),
            Some(Err(SendError::Encode(error))) => Err(error),
            _ => Ok(()),
        }
    }

    /// Answers with a code and no payload. A lane that has ended needs no answer.
    pub(crate) fn answer_empty(&mut self, key: LaneKey, header: Header) {
        let _ = self.with(key, |lane| lane.machine.forward(header, &[]));
    }

    /// Answers with a frame that came from elsewhere. Says whether it fits a frame of this lane.
    pub(crate) fn answer_with(&mut self, key: LaneKey, frame: &OwnedFrame) -> Result<(), EncodeError> {
        let Some(header) = frame.header() else { return Ok(()) };
        let outcome = self.with(key, |lane| lane.machine.forward(header, &frame.bytes()[HEADER_BYTES..]));
        if matches!(outcome, Some(Err(SendError::TooLong { .. }))) {
            Err(EncodeError::TooLarge)
        } else {
            Ok(())
        }
    }

    /// Tells the peer that an answer is not wanted. Says whether it will be told.
    pub(crate) fn cancel(&mut self, key: LaneKey, call: CallId) -> bool {
        let header = Header { call, ..Header::new(Kind::Cancel) };
        self.with(key, |lane| lane.machine.forward(header, &[]).is_ok()).unwrap_or(false)
    }

    /// Puts a call among those that wait for this lane. Gives it back if there is no such lane any more.
    pub(crate) fn wait(
        &mut self,
        key: LaneKey,
        ticket: Ticket,
        waiting: Waiting,
        live: impl Fn(CallId) -> bool,
    ) -> Result<(), Waiting> {
        let Some(lane) = self.get(key).filter(|lane| lane.machine.closed().is_none()) else {
            return Err(waiting);
        };
        if !lane.is_waited_for {
            self.waited.push(key);
        }
        let _ = self.with(key, |lane| {
            lane.is_waited_for = true;
            lane.line.wait(ticket, waiting, live);
        });
        Ok(())
    }

    /// A round of [`grant`](Self::grant) begins: room is kept no longer for those who do not come.
    pub(crate) fn begin_round(&mut self, now: Time, mut comes: impl FnMut(CallId) -> bool) {
        let mut place = 0;
        while let Some(&key) = self.waited.get(place) {
            let waited_for = self.with(key, |lane| {
                lane.line.begin_round(now, &mut comes);
                lane.is_waited_for = !lane.line.is_empty();
                lane.is_waited_for
            });
            if waited_for == Some(true) {
                place += 1;
            } else {
                self.waited.swap_remove(place);
            }
        }
    }

    /// The call that has waited longest for a lane that has room for it now, besides the room that is kept for those granted
    /// before. Called until there is none.
    pub(crate) fn grant(&mut self, now: Time, mut live: impl FnMut(CallId) -> bool) -> Option<Waiting> {
        for place in 0..self.waited.len() {
            let granted = self.with(self.waited[place], |lane| {
                let (calls, bytes) = lane.line.kept();
                if lane.machine.may_call_after(calls, bytes) { lane.line.grant(now, &mut live) } else { None }
            });
            if let Some(Some(waiting)) = granted {
                return Some(waiting);
            }
        }
        None
    }
}
