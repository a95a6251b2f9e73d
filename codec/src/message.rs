//! What a message is: a type with a stable name, a version, an archived layout, and an index in this process.
//!
//! Two numbers name a message. `MessageId` is a hash of name and version: the same on every node, it travels.
//! `TypeIndex` is handed out in this process when a type is first used: it never leaves, and it is what makes
//! reading bytes of this process safe without checking them. A frame that `encode_local::<T>` wrote carries
//! the index of `T`; so bytes with that index hold a valid archive of `T` and of nothing else.
//!
//! Hence `Message` is an `unsafe` trait: an index shared by two types would let one be read as the other. The
//! attribute macros keep the promise, nobody else needs to implement it. The test
//! `every_type_has_an_index_of_its_own` breaks if indices collide;
//! `a_local_frame_is_read_only_as_the_type_that_wrote_it` (frame::local) if a reader ignores them.
#![allow(unsafe_code)]

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use rkyv::api::low::{LowDeserializer, LowValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::{Failure, Panic};
use rkyv::{Archive, Deserialize, Portable, Serialize};

use crate::encode::Encoder;
use crate::hash::{combine, hash64};
use crate::shape::Shape;

/// Checks foreign bytes. Knows no shared pointers, so types that need them do not compile as messages; says
/// only yes or no, so refusing hostile bytes allocates nothing.
pub type Checker<'a> = LowValidator<'a, Failure>;

/// Makes owned values of archived ones. Flat shapes cannot fail: their lengths were checked against the bytes
/// they lie in.
pub type Deserializer = LowDeserializer<Panic>;

/// The name of a message on every node: a hash of its stable name and version.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct MessageId(pub u64);

impl MessageId {
    /// The id of the message with this stable name and version.
    #[must_use]
    pub const fn of(name: &str, version: u16) -> Self {
        Self(combine(hash64(name.as_bytes()), version as u64))
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MessageId({self})")
    }
}

/// The name of a message type inside this process: dense, from 1, in the order of first use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TypeIndex(u32);

impl TypeIndex {
    /// The index as a number, to be used for tables.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// The index as the context word of a header.
    #[must_use]
    #[inline]
    pub const fn context(self) -> u64 {
        self.0 as u64
    }
}

/// Holds the index of one type; the macros emit a static one for each.
#[derive(Debug)]
pub struct TypeCell(AtomicU32);

/// The next index to hand out; 0 stands for "none yet" and, in a header, for "no type".
static NEXT_INDEX: AtomicU32 = AtomicU32::new(1);

impl TypeCell {
    /// A cell without an index.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only ever a static")]
    pub const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// The index of the type, handed out at the first call: one load afterwards.
    #[inline]
    pub fn get(&self) -> TypeIndex {
        // Relaxed: the number itself is all that is communicated, no other memory hangs on it.
        match self.0.load(Ordering::Relaxed) {
            0 => self.assign(),
            index => TypeIndex(index),
        }
    }

    #[cold]
    fn assign(&self) -> TypeIndex {
        // Two threads may get here at once: both draw a number, the first to store it wins, the other number
        // stays unused. Relaxed for both: `fetch_add` alone makes numbers distinct, the compare-exchange
        // alone makes the cell final.
        let drawn = NEXT_INDEX.fetch_add(1, Ordering::Relaxed);
        assert!(drawn != 0, "more than four billion message types");
        match self.0.compare_exchange(0, drawn, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => TypeIndex(drawn),
            Err(earlier) => TypeIndex(earlier),
        }
    }
}

/// A type that travels as an archive: what `#[message]`, `#[event]` and `#[request]` make of a struct or
/// enum.
///
/// # Safety
///
/// `type_index` must return the index of a [`TypeCell`] that belongs to this type alone, and `check` only what
/// rkyv's checked access found. The macros see to it; do not implement this by hand.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a message",
    label = "this type has no stable name and archived layout",
    note = "if it is your struct or enum, put `#[message]` on it (`#[request(..)]` or `#[event]` if it is sent by itself)",
    note = "else, such as a number or a `Vec`, make it the field of a struct with `#[message]`; for no answer, leave `reply` out"
)]
pub unsafe trait Message: Archive + for<'a> Serialize<Encoder<'a>> + Shape + Sized + 'static {
    /// The stable name: what nodes know the message by.
    const NAME: &'static str;
    /// The version: two versions of a name are two messages.
    const VERSION: u16;
    /// Hash of name and version.
    const ID: MessageId = MessageId::of(Self::NAME, Self::VERSION);

    /// The index of this type in this process.
    fn type_index() -> TypeIndex;

    /// The archive that `payload` ends with, if its bytes are one: linear in the payload, allocates nothing.
    #[must_use]
    fn check(payload: &[u8]) -> Option<&Self::Archived>;

    /// An owned value out of an archived one. Allocates what the value needs.
    #[must_use]
    fn deserialize(archived: &Self::Archived) -> Self;
}

// What the macros write into `check` and `deserialize`. As methods with bodies these would need bounds on the archived
// type, and bounds on both sides of the projection between a message and its archive send the compiler round in circles.

#[doc(hidden)]
#[must_use]
pub fn check<T: Archive>(payload: &[u8]) -> Option<&T::Archived>
where
    T::Archived: for<'a> CheckBytes<Checker<'a>>,
{
    if payload.len() < size_of::<T::Archived>() {
        return None;
    }
    rkyv::api::low::access::<T::Archived, Failure>(payload).ok()
}

#[doc(hidden)]
#[must_use]
pub fn deserialize<T: Archive>(archived: &T::Archived) -> T
where
    T::Archived: Deserialize<T, Deserializer>,
{
    match rkyv::api::low::deserialize::<T, Panic>(archived) {
        Ok(message) => message,
        Err(never) => match never {},
    }
}

/// The way back from an archived type to its message; a handler's argument names the archived type, the route
/// needs both.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not the archived form of a message",
    label = "expected `Archived<T>` of a message `T`",
    note = "a handler takes `&Archived<T>` and no `&T`, where `T` has `#[request(..)]` or `#[event]`"
)]
pub trait ArchivedMessage: Portable + Sized {
    /// The message that this is the archive of.
    type Message: Message + Archive<Archived = Self>;
}

/// A message that asks for one answer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a request",
    label = "this message asks for no answer",
    note = "put `#[request(reply = .., error = ..)]` on the type; an event is published, and handled by `routes.event`"
)]
pub trait Request: Message {
    /// What the handler answers.
    type Reply: Message;
    /// What the handler answers instead if it will not do what it was asked.
    type Error: Message;
    /// The name of the field that is the key, if there is one.
    const KEY: Option<&'static str>;
    /// Whether the request has a key.
    const KEYED: bool = Self::KEY.is_some();

    /// The hash of the key; 0 without one.
    fn key(&self) -> u64;
}

/// A message that asks for no answer.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an event",
    label = "this message cannot be published",
    note = "put `#[event]` on the type; a request is sent, and handled by `routes.request`"
)]
pub trait Event: Message {
    /// The name of the field that is the key, if there is one.
    const KEY: Option<&'static str>;
    /// Whether the event has a key.
    const KEYED: bool = Self::KEY.is_some();

    /// The hash of the key; 0 without one.
    fn key(&self) -> u64;
}

// SAFETY: the cell is declared in the function and so belongs to `()` alone
// (`every_type_has_an_index_of_its_own` breaks otherwise).
unsafe impl Message for () {
    const NAME: &'static str = "unit";
    const VERSION: u16 = 1;

    #[inline]
    fn type_index() -> TypeIndex {
        static CELL: TypeCell = TypeCell::new();
        CELL.get()
    }

    fn check(payload: &[u8]) -> Option<&()> {
        check::<()>(payload)
    }

    fn deserialize((): &()) {}
}

impl ArchivedMessage for () {
    type Message = ();
}

/// The error of a handler that has no type of its own for it: a text.
#[catga::message(name = "fault")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What went wrong, for people.
    pub text: String,
}

impl Fault {
    /// A fault with this text.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_never_change() {
        assert_eq!(<()>::ID.to_string(), MessageId::of("unit", 1).to_string());
        assert_ne!(MessageId::of("place_order", 1), MessageId::of("place_order", 2));
        assert_ne!(MessageId::of("place_order", 1), MessageId::of("place_orders", 1));
    }

    #[test]
    fn every_type_has_an_index_of_its_own() {
        assert_ne!(<()>::type_index(), Fault::type_index());
        assert_eq!(Fault::type_index(), Fault::type_index());
        assert_ne!(Fault::type_index().get(), 0);
    }

    #[test]
    fn threads_that_race_for_an_index_agree_on_it() {
        for _ in 0..200 {
            let cell = TypeCell::new();
            let indices: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| cell.get())).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(indices.iter().all(|index| *index == indices[0]), "{indices:?}");
        }
    }
}
