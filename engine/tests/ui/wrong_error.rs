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

struct Desk;

impl Desk {
    fn quote(&mut self, _: &Archived<Quote>, _: &Context) -> Result<Price, Fault> {
        Err(Fault::new("there is none"))
    }
}

fn main() {
    let _ = Engine::builder().service(|_| Desk, |routes| routes.request(Desk::quote));
}
