//! Calls that wait for room leave in the order in which they were made: to another shard, whose ring they fill, and to another
//! node, whose lane they fill. Requests of one key then arrive in that order, of whatever sizes they are.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

mod common;

use std::collections::HashMap;
use std::time::Duration;

use catga::List;
use catga::prelude::*;
use common::address;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pollster::block_on;

/// Makes so many calls of each of so many keys, all at once.
#[request(reply = Came)]
struct Ask {
    keys: u64,
    each: u32,
    /// Each seventh call has so many bytes with it.
    bytes: u32,
}
#[request(reply = Place, key = key)]
struct Take {
    key: u64,
    filler: Vec<u8>,
}
/// Which of its key's calls came first, second, ..., by the number in which they were made.
#[message]
struct Came {
    wrong: Vec<u32>,
}
#[message]
struct Place {
    place: u32,
}

const LONG: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Desk {
    taken: HashMap<u64, u32>,
}
impl Desk {
    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<Place, Fault> {
        let taken = self.taken.entry(take.key.to_native()).or_default();
        *taken += 1;
        Ok(Place { place: *taken - 1 })
    }
}

struct Asker;
impl Asker {
    async fn ask(_: &State<Self>, ask: &Archived<Ask>, ctx: &Context) -> Result<Came, Fault> {
        let (keys, each) = (ask.keys.to_native(), ask.each.to_native());
        let bytes = |number: u32| if number % 7 == 3 { ask.bytes.to_native() as usize } else { 10 };
        let one = |number: u32| (0..keys).map(move |key| (number, key));
        let takes: Vec<(u32, Take)> = (0..each)
            .flat_map(one)
            .map(|(number, key)| (number, Take { key, filler: vec![1; bytes(number)] }))
            .collect();
        let calls = takes.iter().map(|(number, take)| async move {
            let place = ctx.send(take).within(LONG).await.expect("it waits, and then goes").place.to_native();
            (place != *number).then_some(*number)
        });
        let calls: FuturesUnordered<_> = calls.collect();
        Ok(Came { wrong: calls.filter_map(std::future::ready).collect().await })
    }
}

fn wrong(node: &Engine, ask: &Ask) -> Vec<u32> {
    let came = block_on(node.client().send(ask).within(LONG)).unwrap();
    assert!(node.stats().sum(|shard| shard.waits) > 0, "there was not room for all of them at once");
    came.wrong.iter().map(|number| number.to_native()).collect()
}

#[test]
fn calls_that_wait_for_room_to_another_shard_arrive_in_the_order_in_which_they_were_made() {
    let node = Engine::builder()
        .shards(2)
        .service(|_| Asker, |routes| routes.request_async(Asker::ask))
        .service(|_| Desk::default(), |routes| routes.request(Desk::take))
        .start()
        .unwrap();
    // Some keys are the other shard's: more calls than it has credits for, and more bytes than its ring.
    assert_eq!(wrong(&node, &Ask { keys: 8, each: 450, bytes: 3000 }), [0u32; 0]);
}

#[test]
fn calls_that_wait_for_room_on_a_lane_arrive_in_the_order_in_which_they_were_made() {
    let builder = Engine::builder().shards(1);
    let list = List::of(Vec::<String>::new()).node("b", "127.0.0.1:0");
    let b = builder.cluster(list).service(|_| Desk::default(), |routes| routes.request(Desk::take));
    let b = b.start().unwrap();
    let list = List::of([format!("b={}", address(&b))]).node("a", "127.0.0.1:0");
    let a = Engine::builder().shards(1).cluster(list);
    let a = a.service(|_| Asker, |routes| routes.request_async(Asker::ask)).start().unwrap();
    block_on(a.client().send(&Take { key: 9, filler: Vec::new() }).within(LONG)).unwrap();
    assert_eq!(wrong(&a, &Ask { keys: 3, each: 400, bytes: 100_000 }), [0u32; 0]);
}
