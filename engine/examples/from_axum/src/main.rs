//! An HTTP endpoint in front of the engine: axum on a tokio runtime, the service on the engine's shards.
//!
//! The state that axum hands to its handlers is a `Client`, which clones and goes to any thread. A call is awaited like
//! any other future; tokio's threads never run a handler of the engine, nor the other way round.
//!
//! ```text
//! cargo run --manifest-path engine/examples/from_axum/Cargo.toml     then: curl -X POST localhost:3000/stock/7/take/2
//! ```
//!
//! What a caller sees: 200 and the reply; 404 or 409 where the service itself says no, which is a typed answer like any
//! other; 503 and the reason where the call ended in any other way. The reason also says whether the request may have run.

use std::collections::HashMap;
use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State as Shared};
use axum::http::StatusCode;
use axum::routing::post;
use catga::prelude::*;

/// A request that has no reply after this long is of no use to the one who waits at the other end.
const PATIENCE: Duration = Duration::from_millis(500);
/// What the engine's calls have to end in once the last HTTP response is out.
const DRAIN: Duration = Duration::from_secs(1);

/// Takes pieces of an article out of stock. All requests for one article go to the shard that has it.
#[request(reply = Taken, error = NotTaken, key = article)]
struct Take {
    article: u64,
    pieces: u32,
}

#[message]
struct Taken {
    left: u32,
}

#[message]
enum NotTaken {
    NoSuchArticle,
    TooFew { left: u32 },
}

struct Store {
    pieces: HashMap<u64, u32>,
}

impl Store {
    /// Each shard starts with all articles, and is asked for those whose keys it owns.
    fn stocked() -> Self {
        Self { pieces: (1..=100).map(|article| (article, 10)).collect() }
    }

    fn take(&mut self, take: &Archived<Take>, _: &Context) -> Result<Taken, NotTaken> {
        let left = self.pieces.get_mut(&take.article.to_native()).ok_or(NotTaken::NoSuchArticle)?;
        *left = left.checked_sub(take.pieces.to_native()).ok_or(NotTaken::TooFew { left: *left })?;
        Ok(Taken { left: *left })
    }
}

fn engine() -> Result<Engine, StartError> {
    Engine::builder()
        .shards(2)
        .service(|_shard| Store::stocked(), |routes| routes.request(Store::take))
        .start()
}

fn app(client: Client) -> Router {
    Router::new().route("/stock/{article}/take/{pieces}", post(take)).with_state(client)
}

async fn take(
    Shared(client): Shared<Client>,
    Path((article, pieces)): Path<(u64, u32)>,
) -> Result<String, (StatusCode, String)> {
    match client.send(&Take { article, pieces }).within(PATIENCE).await {
        Ok(taken) => Ok(format!("{} left\n", taken.left)),
        Err(CallError::Rejected(NotTaken::NoSuchArticle)) => {
            Err((StatusCode::NOT_FOUND, "there is no such article\n".into()))
        }
        Err(CallError::Rejected(NotTaken::TooFew { left })) => {
            Err((StatusCode::CONFLICT, format!("only {left} left\n")))
        }
        Err(other) => Err((StatusCode::SERVICE_UNAVAILABLE, format!("{other}\n"))),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let engine = engine()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().build()?;
    let client = engine.client();
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
        println!("POST http://{}/stock/ARTICLE/take/PIECES; Ctrl-C ends it", listener.local_addr()?);
        // Ctrl-C: no new connections; those that are open get their responses.
        let stop = async {
            if let Err(problem) = tokio::signal::ctrl_c().await {
                eprintln!("cannot wait for Ctrl-C: {problem}");
            }
        };
        axum::serve(listener, app(client)).with_graceful_shutdown(stop).await
    })?;
    // Then the engine, which nobody calls any more.
    let report = engine.stop(DRAIN);
    println!("{} requests were handled", report.stats.sum(|shard| shard.handled));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpStream};

    use super::*;

    /// Posts without a body, and reads the status and the text of the response.
    fn post_to(server: SocketAddr, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(server).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {server}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        let (head, text) = response.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), text.trim_end().to_owned())
    }

    #[test]
    fn replies_rejections_and_errors_have_statuses_of_their_own() {
        let engine = engine().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let server = listener.local_addr().unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = runtime.spawn(
            axum::serve(listener, app(engine.client()))
                .with_graceful_shutdown(async { stopped.await.unwrap_or_default() })
                .into_future(),
        );
        assert_eq!(post_to(server, "/stock/7/take/4"), (200, "6 left".into()));
        assert_eq!(post_to(server, "/stock/7/take/7"), (409, "only 6 left".into()));
        assert_eq!(post_to(server, "/stock/1000/take/1"), (404, "there is no such article".into()));
        assert_eq!(post_to(server, "/stock/seven/take/1").0, 400);
        engine.stop(DRAIN);
        let (status, why) = post_to(server, "/stock/7/take/1");
        assert!(status == 503 && why.contains("stopping"), "{status}: {why}");
        stop.send(()).unwrap();
        runtime.block_on(served).unwrap().unwrap();
    }
}
