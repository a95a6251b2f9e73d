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
    fn quote(&mut self, _: &Archived<Quote>, _: &Context) -> Result<u64, Unknown> {
        Ok(7)
    }

    async fn quote_later(_: &State<Self>, _: &Archived<Quote>, _: &Context) -> Result<u64, Unknown> {
        Ok(7)
    }
}

fn main() {
    let builder = Engine::builder();
    let builder = builder.service(|_| Desk, |routes| routes.request(Desk::quote));
    let _ = builder.service(|_| Desk, |routes| routes.request_async(Desk::quote_later));
}
