//! What a lane queues for the engine, and what it refuses to.
//!
//! A frame is admitted by its class: requests need credit, requests and events wait behind `send_bytes_max` unsent bytes, and
//! answers and cancels have room beyond that (see [`config`](super::config)). What is refused leaves no trace but a counter.
//! Nothing here allocates while the buffer keeps its size.

use catga_codec::limits::{FRAME_INLINE_BYTES, HEADER_BYTES};
use catga_codec::{EncodeError, Flags, Header, Kind, Message, encode_frame};

use super::buffer::Unwritten;
use super::close::{CloseReason, Closer};
use super::config::ANSWER_BYTES;
use super::credit::Class;
use super::outcome::{Queued, SendError};
use super::protocol::{Lane, Phase};

impl Lane {
    /// Archives `message` into the send buffer, behind `header`, without extensions. Costs the archiving and a few
    /// compares.
    ///
    /// # Errors
    /// [`SendError`]: nothing was queued and no credit taken. An answer that no longer fits ends the lane.
    #[inline]
    pub(crate) fn send<T: Message>(&mut self, header: Header, message: &T) -> Result<Queued, SendError> {
        let class = self.admit(&header)?;
        let header = Header { flags: header.flags.without(Flags::LARGE), extension_bytes: 0, ..header };
        let most = self.most(class);
        let mut room = FRAME_INLINE_BYTES.min(most);
        let offset = loop {
            let mut given = 0;
            let outcome = self.out.frame(room, most, |into| {
                given = into.len();
                encode_frame(header, message, into)
            });
            match outcome {
                Ok(offset) => break offset,
                // What the message needs is only known once it is archived: try again with more than before.
                Err(Unwritten::Writer(EncodeError::Full)) if given < most => room = (2 * given).min(most),
                Err(error) => return Err(self.unwritten(error, most)),
            }
        };
        Ok(self.queued(class, offset))
    }

    /// Queues a frame that is archived already, or has no payload: `body` is what follows the header, extensions and
    /// payload. Of the header all is taken as it is, but for the length and local flags.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    #[inline]
    pub(crate) fn forward(&mut self, header: Header, body: &[u8]) -> Result<Queued, SendError> {
        debug_assert!(usize::from(header.extension_bytes) <= body.len(), "the body holds the extensions");
        let class = self.admit(&header)?;
        let most = self.most(class);
        if HEADER_BYTES + body.len() > most {
            return Err(self.unwritten(Unwritten::Writer(EncodeError::Full), most));
        }
        match self.append(header, body) {
            Ok(offset) => Ok(self.queued(class, offset)),
            Err(error) => Err(self.unwritten(error, most)),
        }
    }

    /// Whether a request would be queued after so many others, of so many bytes together.
    #[inline]
    #[must_use]
    pub(crate) fn may_call_after(&self, calls: u32, bytes: usize) -> bool {
        let unsent = self.out.unsent_bytes().saturating_add(bytes);
        self.is_open() && self.credits.may_ask_after(calls) && unsent < self.bounds.asks
    }

    /// The bytes that were queued from this offset on.
    #[must_use]
    pub(crate) fn queued_since(&self, offset: u64) -> usize {
        (self.out.queued_total() - offset) as usize
    }

    /// Whether so much waits for the socket that new requests of the peer should be refused as overload. Reading must
    /// go on all the same: two sides that stop reading would wait for each other.
    #[inline]
    #[must_use]
    pub(crate) fn is_congested(&self) -> bool {
        self.out.unsent_bytes() >= self.bounds.congested
    }

    /// The longest frame of this class that may be queued now.
    #[inline]
    fn most(&self, class: Class) -> usize {
        if class == Class::Answer && self.out.unsent_bytes() >= self.bounds.large {
            ANSWER_BYTES
        } else {
            self.frame_bytes_max
        }
    }

    #[inline]
    fn admit(&mut self, header: &Header) -> Result<Class, SendError> {
        let class = Class::of(header);
        let unsent = self.out.unsent_bytes();
        let admitted = self.is_open()
            && match class {
                Class::Ask => self.credits.may_ask() && unsent < self.bounds.asks,
                Class::Tell => unsent < self.bounds.asks,
                Class::Answer => self.credits.owed() > 0 && unsent < self.bounds.answers,
                // A full lane needs nothing more than less work; there is one cancel at most for a call.
                Class::Cancel => unsent < self.bounds.answers,
                Class::Own => false,
            };
        if admitted { Ok(class) } else { Err(self.refusal(class, header.kind)) }
    }

    #[cold]
    fn refusal(&mut self, class: Class, kind: Kind) -> SendError {
        match (&self.phase, class) {
            (_, Class::Own) => SendError::OwnKind(kind),
            (Phase::Closed(closed), _) => SendError::Closed(*closed),
            (Phase::Opening(_), _) => SendError::NotOpen,
            (Phase::Open, Class::Ask) if !self.credits.may_ask() => {
                self.traffic.no_credit += 1;
                SendError::NoCredit
            }
            (Phase::Open, Class::Answer) if self.credits.owed() == 0 => SendError::NotOwed,
            (Phase::Open, Class::Answer) => {
                SendError::Closed(self.end(CloseReason::SlowReader, Closer::Here))
            }
            (Phase::Open, _) => {
                self.traffic.full += 1;
                SendError::Full
            }
        }
    }

    /// Why a frame, which might have had `most` bytes, was not written.
    #[cold]
    fn unwritten(&mut self, error: Unwritten<EncodeError>, most: usize) -> SendError {
        match error {
            Unwritten::Writer(EncodeError::Full | EncodeError::TooLarge) => {
                self.traffic.too_long += 1;
                SendError::TooLong { bytes_max: most }
            }
            Unwritten::Writer(error) => SendError::Encode(error),
            // The buffer holds all that the bounds admit, so that this does not happen.
            Unwritten::NoRoom => SendError::Closed(self.end(CloseReason::SlowReader, Closer::Here)),
        }
    }

    #[inline]
    fn queued(&mut self, class: Class, offset: u64) -> Queued {
        self.credits.queued(class);
        Queued { offset }
    }
}
