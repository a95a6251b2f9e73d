//! The services of the two nodes: all the ways in which a handler can answer, and a caller can call.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{Either, select};
use futures_util::stream::{FuturesUnordered, StreamExt};

use super::ledger::{Ledger, Seen, Ticket};
use crate::prelude::*;
use crate::runtime::simulated::rng::Rng;
use crate::{Builder, Message};

/// Makes many calls.
#[request(reply = Done)]
pub(crate) struct Drive {
    pub(crate) id: u64,
    pub(crate) seed: u64,
    pub(crate) calls: u32,
}
/// Answered at once, on the other node.
#[request(reply = Done)]
pub(crate) struct Work {
    pub(crate) id: u64,
    pub(crate) size: u32,
    pub(crate) fate: u8,
}
/// Answered after a while, or never, on the other node; may call back.
#[request(reply = Done)]
pub(crate) struct Slow {
    pub(crate) id: u64,
    pub(crate) yields: u32,
    pub(crate) fate: u8,
}
/// Answered after a while by a shard of the caller's node.
#[request(reply = Done, key = id)]
pub(crate) struct Near {
    pub(crate) id: u64,
    pub(crate) yields: u32,
}
/// What the other node calls back.
#[request(reply = Done)]
pub(crate) struct Leaf {
    pub(crate) id: u64,
}
/// Many calls of that size at once, each with all the time that there is; answers with how they ended.
#[request(reply = Ends)]
pub(crate) struct Push {
    pub(crate) calls: u32,
    pub(crate) bytes: u32,
}
#[message]
pub(crate) struct Ends {
    pub(crate) replies: u32,
    pub(crate) not_sent: u32,
    pub(crate) unknown: u32,
    pub(crate) others: u32,
}
/// A request of any size, for the other node.
#[request(reply = Done)]
pub(crate) struct Load {
    pub(crate) filler: Vec<u8>,
}
#[message]
pub(crate) struct Done {
    pub(crate) id: u64,
    pub(crate) filler: Vec<u8>,
}

impl Done {
    fn new(id: u64, size: u32) -> Self {
        Self { id, filler: vec![7; size as usize] }
    }
}

/// The order of the messages in this process must not depend on which test comes first.
pub(crate) fn fix_type_order() {
    let _ =
        (Drive::type_index(), Work::type_index(), Slow::type_index(), Near::type_index(), Leaf::type_index());
    let _ = (Done::type_index(), Push::type_index(), Ends::type_index(), Load::type_index());
}

struct Caller;
struct Neighbour;
struct Worker;

pub(crate) fn caller(builder: Builder) -> Builder {
    builder
        .service(|_| Caller, |routes| routes.request_async(Caller::drive).request(Caller::leaf))
        .service_on([1], |_| Neighbour, |routes| routes.request_async(Neighbour::near))
}

/// As [`caller`], on one shard.
pub(crate) fn caller_alone(builder: Builder) -> Builder {
    builder.service(|_| Caller, |routes| routes.request_async(Caller::push))
}

pub(crate) fn worker(builder: Builder) -> Builder {
    builder.service(|_| Worker, |routes| routes.request(Worker::work).request(Worker::load)).service_on(
        [0],
        |_| Worker,
        |routes| routes.request_async(Worker::slow),
    )
}

/// Ready after so many polls, of which each asks for the next; or never.
pub(crate) async fn yields(mut count: u32) {
    if count == u32::MAX {
        return std::future::pending().await;
    }
    std::future::poll_fn(|cx| {
        if count == 0 {
            return Poll::Ready(());
        }
        count -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What comes of a call, or of many; nothing if that takes more polls than there is patience for: then it is dropped.
pub(crate) async fn patiently<T>(call: impl Future<Output = T>, patience: u32) -> Option<T> {
    match select(pin!(call), pin!(yields(patience))).await {
        Either::Left((outcome, _)) => Some(outcome),
        Either::Right(_) => None,
    }
}

impl Worker {
    fn work(&mut self, work: &Archived<Work>, _: &Context) -> Result<Done, Fault> {
        Ledger::runs(work.id.to_native());
        match work.fate {
            1 => Err(Fault::new("no")),
            2 => Ok(Done::new(work.id.to_native(), work.size.to_native())),
            _ => Ok(Done::new(work.id.to_native(), 0)),
        }
    }

    fn load(&mut self, load: &Archived<Load>, _: &Context) -> Result<Done, Fault> {
        Ok(Done::new(load.filler.len() as u64, 0))
    }

    async fn slow(_: &State<Self>, slow: &Archived<Slow>, ctx: &Context) -> Result<Done, Fault> {
        Ledger::runs(slow.id.to_native());
        yields(slow.yields.to_native()).await;
        match slow.fate {
            1 => {
                let ticket = Ledger::begins(ctx.deadline(), Ledger::slack());
                let outcome = ctx.send(&Leaf { id: ticket.id }).await;
                finish(ticket, &outcome, ctx);
            }
            2 => std::future::pending().await,
            _ => {}
        }
        Ok(Done::new(slow.id.to_native(), 10))
    }
}

impl Neighbour {
    async fn near(_: &State<Self>, near: &Archived<Near>, _: &Context) -> Result<Done, Fault> {
        Ledger::runs(near.id.to_native());
        yields(near.yields.to_native()).await;
        Ok(Done::new(near.id.to_native(), near.yields.to_native()))
    }
}

type Outcome = Result<Reply<Done>, CallError<Fault>>;

/// Writes down how a call ended.
fn finish(ticket: Ticket, outcome: &Outcome, ctx: &Context) {
    let seen = match outcome {
        Ok(reply) => {
            assert_eq!(reply.id.to_native(), ticket.id, "the reply to another call");
            Seen::Reply
        }
        Err(error) => Seen::of(error.clone()),
    };
    ticket.ends(seen, ctx.core().now());
}

impl Caller {
    fn leaf(&mut self, leaf: &Archived<Leaf>, _: &Context) -> Result<Done, Fault> {
        Ledger::runs(leaf.id.to_native());
        Ok(Done::new(leaf.id.to_native(), 0))
    }

    async fn drive(_: &State<Self>, drive: &Archived<Drive>, ctx: &Context) -> Result<Done, Fault> {
        Ledger::runs(drive.id.to_native());
        let mut rng = Rng::new(drive.seed.to_native());
        let calls = drive.calls.to_native();
        match rng.below(3) {
            0 => batch(&mut rng, calls, ctx).await,
            _ => futures(&mut rng, calls, ctx).await,
        }
        Ok(Done::new(0, 0))
    }
}

impl Caller {
    async fn push(_: &State<Self>, push: &Archived<Push>, ctx: &Context) -> Result<Ends, Fault> {
        let load = Load { filler: vec![1; push.bytes.to_native() as usize] };
        let calls = (0..push.calls.to_native()).map(|_| ctx.send(&load).within(Duration::from_secs(60)));
        let mut ends = Ends { replies: 0, not_sent: 0, unknown: 0, others: 0 };
        let mut flying: FuturesUnordered<_> = calls.collect();
        while let Some(outcome) = flying.next().await {
            match outcome {
                Ok(_) => ends.replies += 1,
                Err(CallError::NotSent(_)) => ends.not_sent += 1,
                Err(CallError::Unknown(_)) => ends.unknown += 1,
                Err(_) => ends.others += 1,
            }
        }
        Ok(ends)
    }
}

/// Many calls at once, some of them given up.
async fn futures(rng: &mut Rng, calls: u32, ctx: &Context) {
    let at_once = rng.between(1, 40) as usize;
    let mut flying = FuturesUnordered::new();
    for _ in 0..calls {
        flying.push(one(rng.next(), ctx));
        if flying.len() >= at_once {
            flying.next().await;
        }
    }
    while flying.next().await.is_some() {}
}

/// One call, of any kind, with a deadline of any length.
async fn one(seed: u64, ctx: &Context) {
    let mut rng = Rng::new(seed);
    let within = match rng.below(4) {
        0 => Duration::from_micros(rng.below(500)),
        1 => rng.time(Duration::ZERO, Duration::from_millis(5)),
        _ => rng.time(Duration::from_millis(5), Duration::from_millis(80)),
    };
    let deadline = (ctx.core().now() + within).min(ctx.deadline());
    let ticket = Ledger::begins(deadline, Ledger::slack());
    let id = ticket.id;
    let patience = if rng.chance(250) { rng.between(1, 20) as u32 } else { u32::MAX };
    let (yields, fate) = (rng.below(12) as u32, rng.below(5) as u8);
    let size = rng.between(0, 9_000) as u32;
    match rng.below(3) {
        0 => {
            let work = Work { id, size, fate };
            account(ticket, ctx.send(&work).within(within), patience, ctx).await;
        }
        1 => {
            let slow = Slow { id, yields, fate };
            account(ticket, ctx.send(&slow).within(within), patience, ctx).await;
        }
        _ => {
            let near = Near { id, yields };
            account(ticket, ctx.send(&near).within(within), patience, ctx).await;
        }
    }
}

/// Waits for the outcome while there is patience.
async fn account(ticket: Ticket, call: impl Future<Output = Outcome>, patience: u32, ctx: &Context) {
    if let Some(outcome) = patiently(call, patience).await {
        finish(ticket, &outcome, ctx);
    }
}

/// One batch, perhaps given up half way.
async fn batch(rng: &mut Rng, calls: u32, ctx: &Context) {
    let within = rng.time(Duration::from_micros(200), Duration::from_millis(60));
    let (in_flight, size) = (rng.between(1, 50) as usize, rng.below(6_000) as u32);
    let fate = rng.below(3) as u8;
    let tickets = std::cell::RefCell::new(Vec::new());
    let requests = (0..calls).map(|_| {
        let deadline = (ctx.core().now() + within).min(ctx.deadline());
        let ticket = Ledger::begins(deadline, Ledger::slack());
        let id = ticket.id;
        tickets.borrow_mut().push(Some(ticket));
        Work { id, size, fate }
    });
    let whole = ctx.send_batch(requests).in_flight(in_flight).within(within).for_each(|place, outcome| {
        let ticket = tickets.borrow_mut()[place].take().expect("each place ends once");
        let seen = match outcome {
            Ok(reply) => {
                assert_eq!(reply.id.to_native(), ticket.id, "the reply to another call");
                Seen::Reply
            }
            Err(error) => Seen::of(error),
        };
        ticket.ends(seen, ctx.core().now());
    });
    let patience = if rng.chance(300) { rng.between(1, 40) as u32 } else { u32::MAX };
    patiently(whole, patience).await;
}
