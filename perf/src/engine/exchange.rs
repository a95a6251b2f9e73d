//! What is exchanged: the messages, the service that answers them, and how a driver asks and checks.
//!
//! A [`Ping`] and its [`Pong`] are frames of 64 bytes, header included, with the floor's own rule in them
//! (`frame.rs`): a request's value follows from its number, the reply's from the value. A [`Carry`] has a payload too, and
//! its reply proves that both ends of it came through.
//!
//! Rivals exchange the same pings and pongs as plain values: what a user of a channel would send through it.

use std::fmt::Display;
use std::ops::Deref;

use catga::prelude::*;
use catga::{Archived, Builder, Client, Request};

use crate::frame;

/// A request of 64 bytes.
#[request(reply = Pong)]
#[derive(Clone, Copy, Debug)]
pub struct Ping {
    id: u64,
    value: u64,
}

impl Ping {
    /// What is answered to it.
    #[must_use]
    pub fn answer(self) -> Pong {
        Pong { id: self.id, value: frame::answer(self.value, !self.value) }
    }
}

/// A request with a payload.
#[request(reply = Pong)]
pub(crate) struct Carry {
    id: u64,
    value: u64,
    payload: Vec<u8>,
}

/// The reply to both, of 64 bytes.
#[message]
#[derive(Clone, Copy, Debug)]
pub struct Pong {
    id: u64,
    value: u64,
}

impl Pong {
    /// As the checks read it.
    #[inline]
    pub(crate) fn archived(self) -> Archived<Self> {
        Archived::<Self> { id: self.id.into(), value: self.value.into() }
    }
}

/// Answers pings.
struct Echo;

impl Echo {
    fn ping(&mut self, ping: &Archived<Ping>, _: &Context) -> Result<Pong, Fault> {
        Ok(Ping { id: ping.id.to_native(), value: ping.value.to_native() }.answer())
    }

    fn carry(&mut self, carry: &Archived<Carry>, _: &Context) -> Result<Pong, Fault> {
        let trailer = carry.payload.last_chunk().copied().map_or(0, u64::from_le_bytes);
        Ok(Pong { id: carry.id.to_native(), value: frame::answer(carry.value.to_native(), trailer) })
    }
}

/// Adds the service that answers to one shard.
pub(crate) fn answering(builder: Builder, shard: u16) -> Builder {
    builder.service_on([shard], |_| Echo, |routes| routes.request(Echo::ping).request(Echo::carry))
}

/// What a driver sends, and what it expects back.
pub(crate) trait Exchange: Send + Sync + 'static {
    /// The request.
    type Request: Request;

    /// Request `number`.
    fn request(&self, number: u64) -> Self::Request;

    /// Makes an earlier request into request `number`, without an allocation.
    fn renumber(&self, request: &mut Self::Request, number: u64) {
        *request = self.request(number);
    }

    /// Whether this is the answer to request `number`; if not, what it says instead.
    fn check(&self, number: u64, reply: &Archived<<Self::Request as Request>::Reply>) -> Result<(), String>;
}

/// Frames of 64 bytes each way.
pub(crate) struct Frames;

impl Exchange for Frames {
    type Request = Ping;

    #[inline]
    fn request(&self, number: u64) -> Ping {
        Ping { id: number, value: frame::value_of(number) }
    }

    #[inline]
    fn check(&self, number: u64, pong: &Archived<Pong>) -> Result<(), String> {
        check_pong(number, pong)
    }
}

/// Requests with a payload of at least eight bytes.
pub(crate) struct Payload {
    /// Of the payload.
    pub(crate) bytes: usize,
}

impl Exchange for Payload {
    type Request = Carry;

    fn request(&self, number: u64) -> Carry {
        let payload = (0..self.bytes.max(size_of::<u64>())).map(|index| index as u8).collect();
        let mut carry = Carry { id: 0, value: 0, payload };
        self.renumber(&mut carry, number);
        carry
    }

    fn renumber(&self, carry: &mut Carry, number: u64) {
        (carry.id, carry.value) = (number, frame::value_of(number));
        if let Some(trailer) = carry.payload.last_chunk_mut() {
            *trailer = (!carry.value).to_le_bytes();
        }
    }

    #[inline]
    fn check(&self, number: u64, pong: &Archived<Pong>) -> Result<(), String> {
        check_pong(number, pong)
    }
}

#[inline]
fn check_pong(number: u64, pong: &Archived<Pong>) -> Result<(), String> {
    let value = frame::value_of(number);
    let (id, answer) = (pong.id.to_native(), pong.value.to_native());
    if (id ^ number) | (answer ^ frame::answer(value, !value)) == 0 {
        return Ok(());
    }
    Err(format!("expected the answer to request {number}, got number {id} with value {answer:#x}"))
}

/// Whoever can make a call: a handler, a thread outside, or a rival.
pub(crate) trait Caller<R: Request> {
    /// What holds the reply.
    type Reply: Deref<Target = Archived<R::Reply>>;
    /// What a call ends with instead.
    type Error: Display;

    /// One call.
    fn call<'a>(&'a self, request: &'a R) -> impl Future<Output = Result<Self::Reply, Self::Error>>;
}

impl<R: Request> Caller<R> for Context {
    type Reply = Reply<R::Reply>;
    type Error = CallError<R::Error>;

    #[inline]
    fn call<'a>(&'a self, request: &'a R) -> impl Future<Output = Result<Self::Reply, Self::Error>> {
        self.send(request)
    }
}

impl<R: Request> Caller<R> for Client {
    type Reply = Reply<R::Reply>;
    type Error = CallError<R::Error>;

    #[inline]
    fn call<'a>(&'a self, request: &'a R) -> impl Future<Output = Result<Self::Reply, Self::Error>> {
        self.send(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_has_its_size_and_a_trailer_of_its_own() {
        let exchange = Payload { bytes: 1_024 };
        let mut carry = exchange.request(7);
        assert_eq!(carry.payload.len(), 1_024);
        exchange.renumber(&mut carry, 8);
        assert_eq!((carry.id, carry.value), (8, frame::value_of(8)));
        assert_eq!(carry.payload[1_016..], (!frame::value_of(8)).to_le_bytes());
        assert_eq!(Payload { bytes: 1 }.request(0).payload.len(), 8);
    }
}
