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

fn to_another_thread<T: Send>(_: T) {}

struct Desk;

impl Desk {
    fn quote(&mut self, _: &Archived<Quote>, ctx: &Context) -> Result<Price, Unknown> {
        let request = Quote { article: 7 };
        to_another_thread(ctx.send(&request));
        Err(Unknown)
    }
}

fn main() {
    let _ = Engine::builder().service(|_| Desk, |routes| routes.request(Desk::quote));
}
