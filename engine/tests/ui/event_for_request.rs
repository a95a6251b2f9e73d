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

struct Desk;

impl Desk {
    fn quote(&mut self, _: &Archived<Quote>, _: &Context) {}

    fn sold(&mut self, _: &Archived<Sold>, _: &Context) -> Result<(), Fault> {
        Ok(())
    }
}

fn main() {
    let builder = Engine::builder();
    let builder = builder.service(|_| Desk, |routes| routes.event(Desk::quote));
    let _ = builder.service(|_| Desk, |routes| routes.request(Desk::sold));
}
