//! What is put into lanes: requests, answers, cancels; and the calls that wait for room.

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{CallId, EncodeError, Header, Kind, Message, OwnedFrame};

use super::{Lanes, no_room};

use crate::call::table::LaneKey;
use crate::call::waiting::{Waiting, enqueue};
use crate::lane::outcome::SendError;
use crate::shard::mesh::NoRoom;

impl Lanes {
    /// Queues a request. Returns the offset in the lane's stream at which it begins.
    #[inline]
    pub(crate) fn request<M: Message>(
        &mut self,
        key: LaneKey,
        header: Header,
        message: &M,
        granted: bool,
    ) -> Result<u64, NoRoom> {
        self.with(key, |lane| {
            if !granted && !lane.waiting.is_empty() {
                return Err(NoRoom::Wait);
            }
            lane.machine.send(header, message).map(|queued| queued.offset).map_err(no_room)
        })
        .unwrap_or(Err(NoRoom::Wait))
    }

    /// Queues a request that was archived elsewhere.
    pub(crate) fn forward(
        &mut self,
        key: LaneKey,
        header: Header,
        frame: &OwnedFrame,
        granted: bool,
    ) -> Result<u64, NoRoom> {
        self.with(key, |lane| {
            if !granted && !lane.waiting.is_empty() {
                return Err(NoRoom::Wait);
            }
            let body = &frame.bytes()[HEADER_BYTES..];
            lane.machine.forward(header, body).map(|queued| queued.offset).map_err(no_room)
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
        waiting: Waiting,
        again: bool,
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
            if again { lane.waiting.push_front(waiting) } else { enqueue(&mut lane.waiting, waiting, live) }
        });
        Ok(())
    }

    /// The call that has waited longest for a lane that has room for it now. Called until there is none.
    pub(crate) fn grant(&mut self) -> Option<Waiting> {
        let mut place = 0;
        while let Some(&key) = self.waited.get(place) {
            let next = self.with(key, |lane| {
                if lane.waiting.is_empty() {
                    lane.is_waited_for = false;
                    return Err(());
                }
                Ok(if lane.machine.may_call() { lane.waiting.pop_front() } else { None })
            });
            match next {
                Some(Ok(Some(waiting))) => return Some(waiting),
                Some(Ok(None)) => place += 1,
                Some(Err(())) | None => {
                    self.waited.swap_remove(place);
                }
            }
        }
        None
    }
}
