//! An update in which fields were renamed, node by node, on real sockets: what old and new nodes say to each other means
//! the same to both, and what was changed beyond names is refused.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use catga::prelude::*;
use catga::{List, NotSent, Refusal, Route};
use catga_codec::Contract;
use common::eventually;
use pollster::block_on;

const LONG: Duration = Duration::from_secs(60);

/// What a desk does, whatever its fields are called: it books lines (article, pieces, price) up to a limit. An event tells
/// how much was booked, and is added up by whoever hears it.
macro_rules! desk {
    ($client:ident, $price:ident, $sum:ident, $over:ident) => {
        pub(crate) struct Desk(pub(crate) Arc<AtomicU64>);
        impl Desk {
            pub(crate) fn order(&mut self, order: &Archived<Order>, _: &Context) -> Result<Booked, Refused> {
                let booked = order.lines.iter();
                let $sum =
                    booked.map(|line| u64::from(line.pieces.to_native()) * line.$price.to_native()).sum();
                match order.limit.as_ref() {
                    _ if $sum == 0 => Err(Refused::Empty),
                    Some(limit) if $sum > limit.to_native() => Err(Refused::$over { $sum }),
                    _ => Ok(Booked { $client: order.$client.to_native(), $sum }),
                }
            }
            pub(crate) fn noted(&mut self, noted: &Archived<Noted>, _: &Context) {
                self.0.fetch_add(noted.$sum.to_native(), Ordering::Relaxed);
            }
        }
    };
}

mod before {
    use super::*;

    #[message]
    pub(crate) struct Line {
        pub(crate) sku: u32,
        pub(crate) pieces: u32,
        pub(crate) cents: u64,
    }
    #[request(reply = Booked, error = Refused, key = client)]
    pub(crate) struct Order {
        pub(crate) client: u64,
        pub(crate) lines: Vec<Line>,
        pub(crate) limit: Option<u64>,
    }
    #[message]
    pub(crate) struct Booked {
        pub(crate) client: u64,
        pub(crate) sum: u64,
    }
    #[message]
    #[derive(Debug)]
    pub(crate) enum Refused {
        Empty,
        OverLimit { sum: u64 },
    }
    #[event]
    pub(crate) struct Noted {
        pub(crate) sum: u64,
        pub(crate) tax: u64,
    }
    desk!(client, cents, sum, OverLimit);
}

/// The next version: the key, a field of the nested type, of the reply, of the error and of the event, and a variant have
/// other names.
mod after {
    use super::*;

    #[message]
    pub(crate) struct Line {
        pub(crate) sku: u32,
        pub(crate) pieces: u32,
        #[was("cents")]
        pub(crate) price: u64,
    }
    #[request(reply = Booked, error = Refused, key = customer)]
    pub(crate) struct Order {
        #[was("client")]
        pub(crate) customer: u64,
        pub(crate) lines: Vec<Line>,
        pub(crate) limit: Option<u64>,
    }
    #[message]
    pub(crate) struct Booked {
        #[was("client")]
        pub(crate) customer: u64,
        #[was("sum")]
        pub(crate) total: u64,
    }
    #[message]
    #[derive(Debug)]
    pub(crate) enum Refused {
        Empty,
        #[was("OverLimit")]
        TooMuch {
            #[was("sum")]
            total: u64,
        },
    }
    #[event]
    pub(crate) struct Noted {
        #[was("sum")]
        pub(crate) total: u64,
        pub(crate) tax: u64,
    }
    desk!(customer, price, total, TooMuch);
}

/// A later version: nobody is left that has the first one, so what is marked was renamed since the second. The event's fields
/// have changed places, and of the two one says that it was renamed.
mod later {
    use super::*;

    #[message]
    pub(crate) struct Line {
        pub(crate) sku: u32,
        #[was("pieces")]
        pub(crate) quantity: u32,
        pub(crate) price: u64,
    }
    #[request(reply = Booked, error = Refused, key = customer)]
    pub(crate) struct Order {
        pub(crate) customer: u64,
        pub(crate) lines: Vec<Line>,
        pub(crate) limit: Option<u64>,
    }
    #[message]
    pub(crate) struct Booked {
        pub(crate) customer: u64,
        pub(crate) total: u64,
    }
    #[message]
    #[derive(Debug)]
    pub(crate) enum Refused {
        Empty,
        TooMuch { total: u64 },
    }
    #[event]
    pub(crate) struct Noted {
        pub(crate) tax: u64,
        #[was("total")]
        pub(crate) amount: u64,
    }
}

/// A node with the desk of one version, and what its desk has heard.
macro_rules! node {
    ($version:ident, $list:expr) => {{
        let heard = Arc::new(AtomicU64::new(0));
        let of_desk = heard.clone();
        let engine = Engine::builder()
            .shards(1)
            .service(
                move |_| $version::Desk(of_desk.clone()),
                |routes| routes.request($version::Desk::order).event($version::Desk::noted),
            )
            .cluster($list)
            .start()
            .unwrap();
        (engine, heard)
    }};
}

fn alone(id: &str) -> List {
    List::of(Vec::<String>::new()).node(id, "127.0.0.1:0")
}

fn beside(other: &str, engine: &Engine, id: &str) -> List {
    List::of([format!("{other}={}", engine.endpoint().unwrap())]).node(id, "127.0.0.1:0")
}

fn to(node: &str) -> Route {
    Route::Node(node.parse().unwrap())
}

/// An order of one piece for 9, by a node of the first version; what it came to.
fn by_old(old: &Engine, client: u64, route: Route) -> Result<u64, CallError<before::Refused>> {
    let lines = vec![before::Line { sku: 1, pieces: 1, cents: 9 }];
    let order = before::Order { client, lines, limit: None };
    block_on(old.client().send(&order).route(route).within(LONG)).map(|booked| booked.sum.to_native())
}

/// The same, by a node of the next version.
fn by_new(new: &Engine, customer: u64, route: Route) -> Result<u64, CallError<after::Refused>> {
    let lines = vec![after::Line { sku: 1, pieces: 1, price: 9 }];
    let order = after::Order { customer, lines, limit: None };
    block_on(new.client().send(&order).route(route).within(LONG)).map(|booked| booked.total.to_native())
}

/// Waits until the shards of both have a view of both.
fn know_each_other(old: &Engine, new: &Engine) {
    eventually("the old one calls the new one", || by_old(old, 0, to("new")).is_ok());
    eventually("the new one calls the old one", || by_new(new, 0, to("old")).is_ok());
}

#[test]
fn old_and_new_nodes_call_each_other_both_ways_while_fields_are_renamed() {
    let (old, heard_there) = node!(before, alone("old"));
    let (new, heard_here) = node!(after, beside("old", &old, "new"));
    know_each_other(&old, &new);
    for node in ["old", "new"] {
        for customer in 1..20u64 {
            // The old one speaks, to either node.
            let line = |sku, cents| before::Line { sku, pieces: 2, cents };
            let order =
                before::Order { client: customer, lines: vec![line(7, 100), line(8, customer)], limit: None };
            let booked = block_on(old.client().send(&order).route(to(node)).within(LONG)).unwrap();
            assert_eq!((booked.client.to_native(), booked.sum.to_native()), (customer, 200 + 2 * customer));
            let order = before::Order { limit: Some(customer), ..order };
            let refused =
                block_on(old.client().send(&order).route(to(node)).within(LONG)).map(drop).unwrap_err();
            let CallError::Rejected(refused) = refused else { panic!("{refused}") };
            assert!(matches!(refused, before::Refused::OverLimit { sum } if sum == 200 + 2 * customer));
            // The new one speaks, to either node.
            let line = |sku, price| after::Line { sku, pieces: 3, price };
            let order = after::Order { customer, lines: vec![line(7, 100), line(8, customer)], limit: None };
            let booked = block_on(new.client().send(&order).route(to(node)).within(LONG)).unwrap();
            assert_eq!(
                (booked.customer.to_native(), booked.total.to_native()),
                (customer, 300 + 3 * customer)
            );
            let order = after::Order { limit: Some(customer), ..order };
            let refused =
                block_on(new.client().send(&order).route(to(node)).within(LONG)).map(drop).unwrap_err();
            let CallError::Rejected(refused) = refused else { panic!("{refused}") };
            assert!(matches!(refused, after::Refused::TooMuch { total } if total == 300 + 3 * customer));
            let nothing = after::Order { customer, lines: Vec::new(), limit: None };
            let refused =
                block_on(new.client().send(&nothing).route(to(node)).within(LONG)).map(drop).unwrap_err();
            assert!(matches!(refused, CallError::Rejected(after::Refused::Empty)), "{refused}");
        }
    }
    // Events, in both directions.
    old.client().publish(&before::Noted { sum: 5, tax: 1000 }).unwrap();
    new.client().publish(&after::Noted { total: 30, tax: 1000 }).unwrap();
    for heard in [heard_there, heard_here] {
        eventually("both hear both", || heard.load(Ordering::Relaxed) == 35);
    }
    for node in [old, new] {
        assert_eq!(node.stop(LONG).stats.sum(|shard| shard.events_other_layout), 0);
    }
}

#[test]
fn old_and_new_nodes_agree_on_who_owns_a_key_that_was_renamed() {
    let (old, _) = node!(before, alone("old"));
    let (new, _) = node!(after, beside("old", &old, "new"));
    know_each_other(&old, &new);
    let handled = || old.stats().sum(|shard| shard.handled);
    let mut spread = [0u64; 2];
    for key in 0..64 {
        let at_first = handled();
        assert_eq!(by_old(&old, key, Route::Owner).unwrap(), 9);
        let between = handled();
        assert_eq!(by_new(&new, key, Route::Owner).unwrap(), 9);
        assert_eq!(between - at_first, handled() - between, "key {key} has one owner, whoever asks");
        spread[usize::from(between > at_first)] += 1;
    }
    assert!(spread.iter().all(|keys| *keys > 0), "both own keys: {spread:?}");
}

#[test]
fn only_neighbours_in_a_chain_of_renames_understand_each_other() {
    let (first, _) = node!(before, alone("first"));
    let (second, _) = node!(after, alone("second"));
    for (engine, name, understood) in [(&first, "first", false), (&second, "second", true)] {
        let later = Engine::builder().shards(1).cluster(beside(name, engine, "later")).start().unwrap();
        let lines = vec![later::Line { sku: 1, quantity: 3, price: 11 }];
        let order = later::Order { customer: 1, lines, limit: None };
        let outcome = block_on(later.client().send(&order).within(LONG));
        match outcome {
            Ok(booked) => assert!(understood && booked.total.to_native() == 33),
            Err(CallError::NotSent(NotSent::Layout) | CallError::Refused(Refusal::Layout)) => {
                assert!(!understood, "{name} has the layout by its former names");
            }
            Err(other) => panic!("{name}: {other}"),
        }
    }
}

#[test]
fn fields_that_changed_places_are_refused_though_one_says_that_it_was_renamed() {
    let (second, heard) = node!(after, alone("second"));
    let later = Engine::builder().shards(1).cluster(beside("second", &second, "later")).start().unwrap();
    eventually("it is counted", || {
        later.client().publish(&later::Noted { tax: 1, amount: 2 }).unwrap();
        later.stats().sum(|shard| shard.events_other_layout) > 0
    });
    assert_eq!(heard.load(Ordering::Relaxed), 0);
    let accepts = |contract: Contract| contract.accepts().collect::<Vec<_>>();
    let (here, there) = (Contract::of_event::<later::Noted>(), Contract::of_event::<after::Noted>());
    assert_eq!(here.id, there.id);
    let (here, there) = (accepts(here), accepts(there));
    assert!(here.len() == 2 && there.len() == 2 && here.iter().all(|print| !there.contains(print)));
}
