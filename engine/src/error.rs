//! How a call can end other than with a reply, told by phase.
//!
//! The phase is what a caller needs in order to act: after [`NotSent`] and [`Refused`](CallError::Refused) nothing ran and
//! the call may be made again; after [`Unknown`](CallError::Unknown) it may or may not have run; after
//! [`Rejected`](CallError::Rejected) and [`Failed`](CallError::Failed) it ran. Each reason has a code that is stable on
//! the wire and a sentence that says what happened and what to do.

use std::any::Any;
use std::fmt;

use catga_codec::Fault;

/// Why a call has no reply. `E` is the handler's own error type.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError<E> {
    /// The handler ran and said no, with its own typed error. Making the call again gives the same answer.
    Rejected(E),
    /// The request never left this shard: nothing ran. It is safe to call again.
    NotSent(NotSent),
    /// The request arrived and was turned away before any handler ran. It is safe to call again.
    Refused(Refusal),
    /// The request left, and no answer came: the handler may or may not have run.
    Unknown(Unknown),
    /// The handler ran and did not come to an answer.
    Failed(Failure),
}

/// The text of an error that is a [`Fault`]. Other types of errors need no text, so nothing can be said of them.
fn fault<E: 'static>(error: &E) -> Option<&Fault> {
    (error as &dyn Any).downcast_ref()
}

impl<E: 'static> fmt::Display for CallError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(error) => {
                f.write_str("rejected: the handler ran and answered with its own error")?;
                fault(error).map_or(Ok(()), |fault| write!(f, ": {fault}"))
            }
            Self::NotSent(reason) => write!(f, "not sent: {reason}"),
            Self::Refused(reason) => write!(f, "refused before it ran: {reason}"),
            Self::Unknown(reason) => write!(f, "outcome unknown, it may have run: {reason}"),
            Self::Failed(reason) => write!(f, "failed while it ran: {reason}"),
        }
    }
}

impl<E: fmt::Debug + 'static> std::error::Error for CallError<E> {}

impl<E: 'static> From<CallError<E>> for Fault {
    /// A handler whose own call failed passes the reason on as text: a fault as it is, however many handlers it goes
    /// through, and all else by the phase in which the call ended.
    fn from(error: CallError<E>) -> Self {
        match &error {
            CallError::Rejected(rejected) => fault(rejected).cloned(),
            _ => None,
        }
        .unwrap_or_else(|| Self::new(error.to_string()))
    }
}

/// Declares a reason enum: variants with a stable code, a sentence, and the way back from the code.
macro_rules! reasons {
    ($(#[$outer:meta])* $name:ident { $($(#[$inner:meta])* $variant:ident = $code:literal => $text:literal,)* }) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum $name { $($(#[$inner])* $variant = $code,)* }

        impl $name {
            /// Every reason, in the order of the codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The number that stands for this reason on the wire and in counters. It never changes.
            #[must_use]
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// The reason behind a code.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),* })
            }
        }

        impl std::error::Error for $name {}
    };
}

reasons! {
    /// Why a request did not leave this shard. Nothing ran anywhere.
    NotSent {
        /// The deadline came while the call waited for room.
        Deadline = 1 => "the deadline passed while it waited for room on the way; give it more time or send less at once",
        /// The shard's table of calls in flight is full.
        TooManyCalls = 2 => "this shard has as many calls in flight as it may; wait for some, or raise the bound with `calls_max`",
        /// The ring, inbox or lane is full and the caller did not want to wait.
        Full = 3 => "the way to the handler is full; try again after some answers have come back",
        /// No service here and no connected node handles the message; or not the one that the route names.
        NoHandler = 4 => "nothing reachable that may be asked handles this message; register a handler for it, or check that a node which has one is connected",
        /// The lane to the node was lost before the first byte was taken by the socket.
        LaneLost = 5 => "the connection to the node was lost before the request was written; it is safe to send it again",
        /// The message is larger than a frame may be.
        TooLarge = 6 => "the message is larger than the largest frame; send it in parts",
        /// The engine is stopping or has stopped.
        Stopping = 7 => "the engine is stopping; no further calls are taken",
        /// The layout of this message differs from ours: on the key's owner, on the node that the route names, or on all that handle it.
        Layout = 8 => "every connected node that handles this message and may be asked was built with another layout of it; the log names the field",
        /// The message could not be archived.
        Unarchivable = 9 => "the message could not be archived; its `Serialize` reported an error",
        /// The thread that wanted to block is a shard.
        OnShard = 10 => "this thread is a shard and must not block; use `ctx.send(..).await` in an async handler",
        /// The shards that handle the message are stuck.
        Stuck = 11 => "every shard that could handle it has been busy with one message for over a second; the log names that message",
        /// The route names a node that the view does not have.
        NoSuchNode = 12 => "the cluster has no node of the id that the route names, as far as this node knows; `engine.nodes()` lists those it has",
        /// The nodes that handle the message cannot be reached.
        OutOfReach = 13 => "no node that handles this message can be reached just now; `engine.nodes()` tells how they stand",
    }
}

reasons! {
    /// Why a request that arrived was turned away before a handler ran.
    Refusal {
        /// A bound of the receiver is full.
        Overloaded = 1 => "the receiver is at a bound (tasks or queue); send less at once or raise the bound there",
        /// No service on the receiver handles the message.
        NoHandler = 2 => "the receiver has no handler for this message; it may run an older version",
        /// The receiver was built with another layout of the message.
        Layout = 3 => "the receiver was built with another layout of this message; its log names the field",
        /// The key belongs to another shard or node.
        WrongOwner = 4 => "the receiver does not own this key; the caller's view was older or newer",
        /// The receiver is stopping.
        Stopping = 5 => "the receiver is stopping",
        /// The service instance is out of use after a panic.
        Poisoned = 6 => "the service instance panicked earlier and is out of use; restart it, see the receiver's log",
        /// The time that was left had run out on arrival.
        Expired = 7 => "the time left had run out before it was looked at; give it more time",
        /// The bytes are not a valid archive of the message.
        Unreadable = 8 => "the bytes did not pass the check as an archive of this message",
        /// The caller gave the call up.
        Cancelled = 9 => "the caller gave the call up",
        /// The target shard does not exist on the receiver.
        NoShard = 10 => "the receiver has no such shard",
    }
}

reasons! {
    /// Why nobody can say whether the handler ran.
    Unknown {
        /// The request left, and the deadline came before an answer.
        Deadline = 1 => "the deadline passed before an answer came",
        /// The lane was lost after the request left.
        LaneLost = 2 => "the connection to the node was lost after the request had left",
        /// An answer came that is not a valid archive of the reply.
        Unreadable = 3 => "an answer came, but its bytes are not a valid reply",
        /// The receiver ended the handler at its deadline, part of the way through.
        Cut = 4 => "the receiver ended the handler part of the way through, at its deadline or because it was stopping",
        /// The engine stopped while the call was in flight.
        Stopped = 5 => "the engine stopped while the call was in flight",
    }
}

reasons! {
    /// Why a handler that ran came to no answer.
    Failure {
        /// It panicked.
        Panicked = 1 => "the handler panicked; the log of its node has the message",
        /// Its answer does not fit a frame, or what is left of the room for answers that wait until the caller's node reads them.
        ReplyTooLarge = 2 => "the handler's answer is larger than the largest frame, or than the room that unread answers have left; answer in parts",
    }
}

/// Why an event was not published.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// A shard that listens, or the one that tells the other nodes, has a full inbox; shards before it in order may have got
    /// the event. The other nodes are told last.
    #[error("a shard's inbox is full; publish fewer events at once")]
    Full,
    /// The event is larger than a frame may be. Nothing was published.
    #[error("the event is larger than the largest frame; nothing was published")]
    TooLarge,
    /// The engine is stopping or has stopped. Nothing was published.
    #[error("the engine is stopping; nothing was published")]
    Stopping,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_keeps_its_text_through_any_number_of_handlers() {
        let innermost = CallError::<Fault>::Refused(Refusal::Overloaded);
        let mut fault = Fault::from(innermost);
        let text = fault.text.clone();
        assert!(text.contains("at a bound"), "{text}");
        for _ in 0..3 {
            let error = CallError::Rejected(fault);
            assert!(error.to_string().ends_with(&text), "{error}");
            fault = error.into();
        }
        assert_eq!(fault.text, text);
        // A type of the user's own has a text only if it wants to: then the phase is all that is known.
        let own = CallError::Rejected(7_u32);
        assert!(own.to_string().ends_with("its own error"), "{own}");
        assert_eq!(Fault::from(own).text, CallError::Rejected(8_u32).to_string());
    }

    #[test]
    fn every_reason_comes_back_from_its_code_and_speaks() {
        for &reason in NotSent::ALL {
            assert_eq!(NotSent::from_code(reason.code()), Some(reason));
            assert!(reason.to_string().len() > 20);
        }
        for &reason in Refusal::ALL {
            assert_eq!(Refusal::from_code(reason.code()), Some(reason));
        }
        for &reason in Unknown::ALL {
            assert_eq!(Unknown::from_code(reason.code()), Some(reason));
        }
        assert_eq!(Failure::from_code(0), None);
        assert_eq!(Refusal::from_code(u16::MAX), None);
    }
}
