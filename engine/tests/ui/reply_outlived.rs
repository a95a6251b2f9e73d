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

async fn cents(client: &Client) -> Result<u64, CallError<Unknown>> {
    let price: &Archived<Price> = {
        let reply = client.send(&Quote { article: 7 }).await?;
        &*reply
    };
    Ok(price.cents.to_native())
}

fn main() {
    let _ = cents;
}
