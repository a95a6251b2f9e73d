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

#[derive(Default)]
struct Desk {
    last: Option<&'static Archived<Quote>>,
}

impl Desk {
    fn quote(&mut self, quote: &Archived<Quote>, _: &Context) -> Result<Price, Unknown> {
        self.last = Some(quote);
        Err(Unknown)
    }
}

fn main() {
    let _ = Engine::builder().service(|_| Desk::default(), |routes| routes.request(Desk::quote));
}
