//! What the nodes of a simulated cluster serve, and how their callers call: any message over any route.

use std::cell::RefCell;
use std::time::Duration;

use catga_codec::Request;
use catga_discovery::NodeId;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::choice::Route;
use crate::prelude::*;
use crate::runtime::simulated::rng::Rng;
use crate::runtime::simulated::tests::ledger::{Ledger, May, Seen, Terms};
use crate::runtime::simulated::tests::services::{patiently, yields};
use crate::runtime::simulated::world::Shared;
use crate::time::Time;
use crate::{Builder, Message};

/// Answered at once.
#[request(reply = Ran)]
pub(super) struct Quick {
    id: u64,
    fate: u8,
    size: u32,
    filler: Vec<u8>,
}
/// Answered after a while, or never.
#[request(reply = Ran)]
pub(super) struct Long {
    id: u64,
    fate: u8,
    yields: u32,
}
/// As `Quick`, by the owner of a key.
#[request(reply = Ran, key = key)]
pub(super) struct Own {
    id: u64,
    key: u64,
    fate: u8,
}
/// As `Long`, by the owner of a key.
#[request(reply = Ran, key = key)]
pub(super) struct OwnLong {
    id: u64,
    key: u64,
    fate: u8,
    yields: u32,
}
/// Makes one more call, of any kind, before it answers.
#[request(reply = Ran)]
pub(super) struct Relay {
    id: u64,
    seed: u64,
    hops: u8,
}
/// The seed of a burst that is one call to the second node, polled as many times as there would be calls.
pub(super) const POLLS_OFTEN: u64 = u64::MAX;

/// Makes many calls.
#[request(reply = Ran)]
pub(super) struct Burst {
    pub(super) id: u64,
    pub(super) seed: u64,
    pub(super) calls: u32,
}
/// Makes calls in turn to all nodes, and says how many more the most called one got than the least called one.
#[request(reply = Ran)]
pub(super) struct Spin {
    pub(super) calls: u32,
    pub(super) nodes: u32,
}
#[message]
pub(super) struct Ran {
    pub(super) id: u64,
    /// The place of the node on which it ran.
    pub(super) node: u32,
    filler: Vec<u8>,
}

/// The order of the messages in this process must not depend on which test comes first.
pub(super) fn fix_type_order() {
    crate::runtime::simulated::tests::services::fix_type_order();
    let _ = (Quick::type_index(), Long::type_index(), Own::type_index(), OwnLong::type_index());
    let _ = (Relay::type_index(), Burst::type_index(), Spin::type_index(), Ran::type_index());
}

/// What nodes are called: `a` is in place 0.
pub(super) fn id_of(node: usize) -> String {
    char::from(b'a' + node as u8).to_string()
}

struct Desk {
    node: usize,
}

/// Every node passes on; some do work.
pub(super) fn desk(builder: Builder, node: usize, works: bool) -> Builder {
    let builder = builder.service(
        move |_| Desk { node },
        |routes| routes.request_async(Desk::relay).request_async(Desk::burst).request_async(Desk::spin),
    );
    if !works {
        return builder;
    }
    builder.service(
        move |_| Desk { node },
        |routes| {
            let routes = routes.request(Desk::quick).request_async(Desk::long);
            routes.request(Desk::own).request_async(Desk::own_long)
        },
    )
}

impl Desk {
    fn runs(&self, id: u64, ctx: &Context) {
        Ledger::runs_on(id, self.node, ctx.core().now());
    }

    fn answer(&self, id: u64, size: u32) -> Ran {
        Ran { id, node: self.node as u32, filler: vec![5; size as usize] }
    }

    fn fated(&self, id: u64, fate: u8, size: u32) -> Result<Ran, Fault> {
        if fate == 1 { Err(Fault::new("no")) } else { Ok(self.answer(id, if fate == 2 { size } else { 0 })) }
    }

    fn quick(&mut self, quick: &Archived<Quick>, ctx: &Context) -> Result<Ran, Fault> {
        self.runs(quick.id.to_native(), ctx);
        self.fated(quick.id.to_native(), quick.fate, quick.size.to_native())
    }

    fn own(&mut self, own: &Archived<Own>, ctx: &Context) -> Result<Ran, Fault> {
        self.runs(own.id.to_native(), ctx);
        self.fated(own.id.to_native(), own.fate, 300)
    }

    async fn long(this: &State<Self>, long: &Archived<Long>, ctx: &Context) -> Result<Ran, Fault> {
        Self::takes_long(this, long.id.to_native(), long.fate, long.yields.to_native(), ctx).await
    }

    async fn own_long(this: &State<Self>, own: &Archived<OwnLong>, ctx: &Context) -> Result<Ran, Fault> {
        Self::takes_long(this, own.id.to_native(), own.fate, own.yields.to_native(), ctx).await
    }

    async fn takes_long(
        this: &State<Self>,
        id: u64,
        fate: u8,
        count: u32,
        ctx: &Context,
    ) -> Result<Ran, Fault> {
        this.with(|desk| desk.runs(id, ctx));
        yields(count).await;
        match fate {
            2 => std::future::pending().await,
            3 => ctx.sleep(Duration::from_millis(u64::from(count))).await,
            _ => {}
        }
        this.with(|desk| desk.fated(id, fate, 0))
    }

    async fn relay(this: &State<Self>, relay: &Archived<Relay>, ctx: &Context) -> Result<Ran, Fault> {
        let (id, node) = (relay.id.to_native(), this.with(|desk| desk.node));
        this.with(|desk| desk.runs(id, ctx));
        any_call(&Caller::Inside(ctx), node, relay.seed.to_native(), relay.hops).await;
        this.with(|desk| desk.fated(id, 0, 0))
    }

    async fn burst(this: &State<Self>, burst: &Archived<Burst>, ctx: &Context) -> Result<Ran, Fault> {
        let (id, node) = (burst.id.to_native(), this.with(|desk| desk.node));
        this.with(|desk| desk.runs(id, ctx));
        let (mut rng, calls) = (Rng::new(burst.seed.to_native()), burst.calls.to_native());
        if burst.seed.to_native() == POLLS_OFTEN {
            let route = Some(Route::Node(NodeId::new(id_of(1)).unwrap()));
            let how = How { route, patience: calls, ..How::plain(ctx.remaining()) };
            let quick = |id| Quick { id, fate: 0, size: 0, filler: Vec::new() };
            Caller::Inside(ctx).accounted(node, &how, quick).await;
            return this.with(|desk| desk.fated(id, 0, 0));
        }
        if rng.chance(200) {
            batch(&mut rng, node, calls, ctx).await;
            return this.with(|desk| desk.fated(id, 0, 0));
        }
        let (at_once, caller) = (rng.between(1, 24) as usize, Caller::Inside(ctx));
        let mut flying = FuturesUnordered::new();
        for _ in 0..calls {
            flying.push(any_call(&caller, node, rng.next(), 2));
            if flying.len() >= at_once {
                flying.next().await;
            }
        }
        while flying.next().await.is_some() {}
        drop(flying);
        this.with(|desk| desk.fated(id, 0, 0))
    }

    async fn spin(_: &State<Self>, spin: &Archived<Spin>, ctx: &Context) -> Result<Ran, Fault> {
        let mut counts = vec![0u32; spin.nodes.to_native() as usize];
        // Lanes that are not there yet are dialled by the first of these.
        for _ in 0..spin.calls.to_native() {
            let quick = Quick { id: Ledger::NOBODYS, fate: 0, size: 0, filler: Vec::new() };
            let call = ctx.send(&quick).route(Route::RoundRobin).within(Duration::from_secs(3));
            match call.await {
                Ok(ran) => counts[ran.node.to_native() as usize] += 1,
                Err(error) => Ledger::wrong(format!("a call in a stable view ended as {error:?}")),
            }
        }
        let served = || counts.iter().filter(|count| **count > 0);
        let spread = served().max().unwrap_or(&0) - served().min().unwrap_or(&0);
        Ok(Ran { id: u64::from(spread), node: served().count() as u32, filler: Vec::new() })
    }
}

type Outcome = Result<Reply<Ran>, CallError<Fault>>;

/// Who calls: a handler, or someone outside the engine.
pub(super) enum Caller<'a> {
    Inside(&'a Context),
    Outside(&'a Client, &'a Shared),
}

/// How something is called.
#[derive(Clone, Debug)]
pub(super) struct How {
    pub(super) route: Option<Route>,
    pub(super) idempotent: bool,
    pub(super) within: Duration,
    /// It is given up after so many polls.
    pub(super) patience: u32,
}

impl How {
    /// With time, and without a word about where to.
    pub(super) fn plain(within: Duration) -> Self {
        Self { route: None, idempotent: false, within, patience: u32::MAX }
    }

    fn draw(rng: &mut Rng) -> Self {
        let route = match rng.below(10) {
            0 => Some(Route::LocalFirst),
            1 => Some(Route::Owner),
            2 => Some(Route::RoundRobin),
            3 => Some(Route::LeastLoaded),
            4 => Some(Route::Random),
            5 => Some(Route::Local),
            // At times one that there is not.
            6 | 7 => Some(Route::Node(NodeId::new(id_of(rng.below(6) as usize)).unwrap())),
            _ => None,
        };
        let within = match rng.below(5) {
            0 => Duration::from_micros(rng.below(500)),
            1 => rng.time(Duration::ZERO, Duration::from_millis(5)),
            2 => rng.time(Duration::from_millis(100), Duration::from_millis(1500)),
            _ => rng.time(Duration::from_millis(5), Duration::from_millis(120)),
        };
        let patience = if rng.chance(150) { rng.between(1, 20) as u32 } else { u32::MAX };
        Self { route, idempotent: rng.chance(400), within, patience }
    }

    fn may<R: Request>(&self, request: &R) -> May {
        match &self.route {
            Some(Route::Local) => May::AtHome,
            Some(Route::Node(id)) => May::On(usize::from(id.as_str().as_bytes()[0] - b'a')),
            None | Some(Route::Owner) if R::KEYED => May::Owner(R::ID, request.key()),
            _ => May::Anywhere,
        }
    }
}

impl Caller<'_> {
    fn now(&self) -> Time {
        match self {
            Self::Inside(ctx) => ctx.core().now(),
            Self::Outside(_, network) => network.borrow().now,
        }
    }

    /// The time by which it has its outcome.
    fn due(&self, within: Duration) -> (Time, Duration) {
        match self {
            Self::Inside(ctx) => ((self.now() + within).min(ctx.deadline()), Ledger::slack()),
            // Its time begins when it is first polled, and it sees the outcome with the next poll.
            Self::Outside(..) => (self.now() + within, Ledger::slack() * 2),
        }
    }

    async fn send<R>(&self, request: &R, how: &How) -> Outcome
    where
        R: Request<Reply = Ran, Error = Fault>,
    {
        match self {
            Self::Inside(ctx) => {
                let mut call = ctx.send(request).within(how.within);
                if let Some(route) = &how.route {
                    call = call.route(route.clone());
                }
                (if how.idempotent { call.idempotent() } else { call }).await
            }
            Self::Outside(client, _) => {
                let mut call = client.send(request).within(how.within);
                if let Some(route) = &how.route {
                    call = call.route(route.clone());
                }
                (if how.idempotent { call.idempotent() } else { call }).await
            }
        }
    }

    /// One call under an account of it. `None`: it was given up.
    pub(super) async fn accounted<R>(
        &self,
        home: usize,
        how: &How,
        make: impl FnOnce(u64) -> R,
    ) -> Option<Seen>
    where
        R: Request<Reply = Ran, Error = Fault>,
    {
        let id = Ledger::next();
        let request = make(id);
        let (due, slack) = self.due(how.within);
        let terms = Terms { home, may: how.may(&request), idempotent: how.idempotent };
        let ticket = Ledger::begins_on(terms, due, slack);
        let outcome = patiently(self.send(&request, how), how.patience).await?;
        let seen = match outcome {
            Ok(ran) => {
                Ledger::answers(id, ran.id.to_native(), ran.node.to_native() as usize);
                Seen::Reply
            }
            Err(error) => Seen::of(error),
        };
        ticket.ends(seen, self.now());
        Some(seen)
    }
}

/// One call, of any kind, over any route, with a deadline of any length.
pub(super) async fn any_call(caller: &Caller<'_>, home: usize, seed: u64, hops: u8) {
    let mut rng = Rng::new(seed);
    let how = How::draw(&mut rng);
    let (fate, count, key) = (rng.below(6) as u8, rng.below(12) as u32, rng.below(40));
    match rng.below(if hops > 0 { 6 } else { 4 }) {
        0 => {
            let (size, filler) = (rng.below(9_000) as u32, vec![3; rng.below(3_000) as usize]);
            caller.accounted(home, &how, |id| Quick { id, fate, size, filler }).await;
        }
        1 => {
            caller.accounted(home, &how, |id| Long { id, fate, yields: count }).await;
        }
        2 => {
            caller.accounted(home, &how, |id| Own { id, key, fate }).await;
        }
        3 => {
            caller.accounted(home, &how, |id| OwnLong { id, key, fate, yields: count }).await;
        }
        _ => {
            let call = caller.accounted(home, &how, |id| Relay { id, seed: seed ^ 1, hops: hops - 1 });
            // It calls itself by way of the handler, so its future has a size only behind a pointer.
            Box::pin(call).await;
        }
    }
}

/// Many calls in one batch, perhaps given up half way.
async fn batch(rng: &mut Rng, home: usize, calls: u32, ctx: &Context) {
    let within = rng.time(Duration::from_micros(200), Duration::from_millis(60));
    let (in_flight, fate) = (rng.between(1, 40) as usize, rng.below(3) as u8);
    let tickets = RefCell::new(Vec::new());
    let requests = (0..calls).map(|_| {
        let terms = Terms { home, may: May::Anywhere, idempotent: false };
        let ticket =
            Ledger::begins_on(terms, (ctx.core().now() + within).min(ctx.deadline()), Ledger::slack());
        let id = ticket.id;
        tickets.borrow_mut().push(Some(ticket));
        Quick { id, fate, size: 500, filler: Vec::new() }
    });
    let whole = ctx.send_batch(requests).in_flight(in_flight).within(within).for_each(|place, outcome| {
        let ticket = tickets.borrow_mut()[place].take().expect("each place ends once");
        let seen = match outcome {
            Ok(ran) => {
                Ledger::answers(ticket.id, ran.id.to_native(), ran.node.to_native() as usize);
                Seen::Reply
            }
            Err(error) => Seen::of(error),
        };
        ticket.ends(seen, ctx.core().now());
    });
    let patience = if rng.chance(200) { rng.between(1, 40) as u32 } else { u32::MAX };
    patiently(whole, patience).await;
}

/// A call of each kind that a stable cluster must answer: `to` is a node that does work.
pub(super) async fn each_route(caller: &Caller<'_>, home: usize, workers: &[usize]) -> Vec<(String, Seen)> {
    let mut seen = Vec::new();
    let plain = How::plain(Duration::from_secs(3));
    let named = workers.iter().map(|&node| Some(Route::Node(NodeId::new(id_of(node)).unwrap())));
    let kinds = [Route::LocalFirst, Route::RoundRobin, Route::LeastLoaded, Route::Random].map(Some);
    for route in kinds.into_iter().chain(named).chain([None]) {
        let how = How { route, ..plain.clone() };
        let call = |id| Quick { id, fate: 0, size: 0, filler: Vec::new() };
        let outcome = caller.accounted(home, &how, call).await;
        seen.push((format!("{:?}", how.route), outcome.unwrap_or(Seen::GivenUp)));
    }
    for key in 0..4 {
        let outcome = caller.accounted(home, &plain, |id| Own { id, key, fate: 0 }).await;
        seen.push((format!("the owner of {key}"), outcome.unwrap_or(Seen::GivenUp)));
    }
    seen
}

/// One keyed call, as often as it takes for the moves of keys to be seen.
pub(super) async fn keyed(caller: &Caller<'_>, home: usize, key: u64, within: Duration) -> Seen {
    let how = How::plain(within);
    caller.accounted(home, &how, |id| Own { id, key, fate: 0 }).await.unwrap_or(Seen::GivenUp)
}
