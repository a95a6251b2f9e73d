//! Two nodes: one serves, the other calls. Here both are in one process; as two programs they would be the same.
//!
//! `cargo run --release --example two_nodes`

use catga::List;
use catga::prelude::*;

#[request(reply = Price, error = NoSuchArticle)]
struct AskPrice {
    article: String,
}

#[message]
struct Price {
    cents: u64,
}

#[message]
#[derive(Debug)]
struct NoSuchArticle;

struct Prices;

impl Prices {
    fn price(&mut self, ask: &Archived<AskPrice>, _: &Context) -> Result<Price, NoSuchArticle> {
        match ask.article.as_str() {
            "lantern" => Ok(Price { cents: 339 }),
            _ => Err(NoSuchArticle),
        }
    }
}

/// The same list for every node.
const NODES: [&str; 2] = ["prices=127.0.0.1:47101", "desk=127.0.0.1:47102"];

fn main() -> Result<(), StartError> {
    let _prices = Engine::builder()
        .shards(1)
        .service(|_shard| Prices, |routes| routes.request(Prices::price))
        .cluster(List::of(NODES).node("prices", "127.0.0.1:47101"))
        .start()?;

    // This node has no service of its own: what it sends goes to a node that has.
    let desk =
        Engine::builder().shards(1).cluster(List::of(NODES).node("desk", "127.0.0.1:47102")).start()?;
    let client = desk.client();
    for article in ["lantern", "unicorn"] {
        match pollster::block_on(client.send(&AskPrice { article: article.into() })) {
            Ok(price) => println!("{article}: {} cents", price.cents),
            Err(error) => println!("{article}: {error}"),
        }
    }
    Ok(())
}
