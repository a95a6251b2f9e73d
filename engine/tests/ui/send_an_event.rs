use catga::prelude::*;

#[request(reply = Price, error = Unknown)]
struct Quote {
    article: u64,
}

#[message]
struct Price {
    cents: u64,
}

#[message]
#[derive(Debug)]
struct Unknown;

#[event]
struct Sold {
    article: u64,
}

async fn mixed_up(client: &Client) {
    let _ = client.send(&Sold { article: 7 }).await;
    let _ = client.publish(&Quote { article: 7 });
}

async fn mixed_up_in_a_handler(ctx: &Context) {
    let _ = ctx.send(&Sold { article: 7 }).await;
    ctx.publish(&Quote { article: 7 });
}

fn main() {
    let _ = (mixed_up, mixed_up_in_a_handler);
}
