//! The reply in the caller's hand.
//!
//! A [`Reply`] owns the frame in which the answer travelled and derefs to the archive in it: nothing is deserialized
//! unless asked for. It keeps no slot, ring or lane busy; dropping it gives the frame back to the thread's pool.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;

use catga_codec::{Message, OwnedFrame, Request};

use crate::call::table::Ending;
use crate::error::{CallError, Unknown};
use crate::pool;

/// An answer that has arrived: derefs to `Archived<M>`.
pub struct Reply<M: Message> {
    /// Certified to be an archive of `M`; present until the drop.
    frame: Option<OwnedFrame>,
    _message: PhantomData<fn() -> M>,
}

impl<M: Message> Reply<M> {
    /// Takes a frame if its bytes are an archive of `M`; they are looked at once, here.
    #[inline]
    fn new(mut frame: OwnedFrame) -> Result<Self, OwnedFrame> {
        match frame.certify::<M>() {
            Ok(()) => Ok(Self { frame: Some(frame), _message: PhantomData }),
            Err(_) => Err(frame),
        }
    }

    /// The reply as an owned value. Costs a deserialization.
    #[must_use]
    pub fn to_owned(&self) -> M {
        M::deserialize(self)
    }
}

impl<M: Message> Deref for Reply<M> {
    type Target = M::Archived;

    #[inline]
    fn deref(&self) -> &M::Archived {
        match self.frame.as_ref().map(OwnedFrame::access::<M>) {
            Some(Ok(message)) => message,
            _ => unreachable!("a reply is certified, and has its frame until it is dropped"),
        }
    }
}

impl<M: Message> Drop for Reply<M> {
    fn drop(&mut self) {
        if let Some(frame) = self.frame.take() {
            pool::give(frame);
        }
    }
}

impl<M: Message> fmt::Debug for Reply<M>
where
    M::Archived: fmt::Debug,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// What an ending and its frame mean to a caller of `R`.
#[inline(always)] // a reply is taken apart where it is awaited
pub(crate) fn conclude<R: Request>(
    ending: Ending,
    frame: OwnedFrame,
) -> Result<Reply<R::Reply>, CallError<R::Error>> {
    if ending == Ending::Reply {
        return Reply::new(frame).or_else(unreadable);
    }
    conclude_without_reply::<R>(ending, frame).map(|never| match never {})
}

fn conclude_without_reply<R: Request>(
    ending: Ending,
    frame: OwnedFrame,
) -> Result<Infallible, CallError<R::Error>> {
    let error = match ending {
        Ending::Rejected => match frame.access::<R::Error>().map(R::Error::deserialize) {
            Ok(rejection) => CallError::Rejected(rejection),
            Err(_) => return unreadable(frame),
        },
        Ending::Refused(reason) => CallError::Refused(reason),
        Ending::Failed(reason) => CallError::Failed(reason),
        Ending::NotSent(reason) => CallError::NotSent(reason),
        Ending::Unknown(reason) => CallError::Unknown(reason),
        // Only a peer that breaks the protocol answers a request as if it had been an event.
        Ending::Handled(_) => return unreadable(frame),
        Ending::Reply => unreachable!("the caller looked"),
    };
    pool::give(frame);
    Err(error)
}

#[cold]
fn unreadable<T, E>(frame: OwnedFrame) -> Result<T, CallError<E>> {
    pool::give(frame);
    Err(CallError::Unknown(Unknown::Unreadable))
}
