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

struct Desk {
    articles: Vec<u64>,
}

impl Desk {
    async fn quote(desk: &State<Self>, _: &Archived<Quote>, ctx: &Context) -> Result<Price, Unknown> {
        let articles = desk.with(|desk| &mut desk.articles);
        let _ = ctx.send(&Quote { article: articles[0] }).await;
        articles.clear();
        Err(Unknown)
    }
}

fn main() {
    let _ = Engine::builder().service(|_| Desk { articles: vec![] }, |routes| routes.request_async(Desk::quote));
}
