//! A task of a tokio runtime on another thread, asked through an mpsc channel; each request carries a oneshot for its
//! answer. A current-thread runtime, because one task on one pinned thread is all there is to do.

use catga_perf::rivals::{Ping, Pong, Rival};
use tokio::sync::{mpsc, oneshot};

use crate::server::{PLACES, Server};

type Asked = (Ping, oneshot::Sender<Pong>);

/// The rival.
pub struct TokioChannel {
    // Dropped before the server, which ends by it.
    asked: mpsc::Sender<Asked>,
    _server: Server,
}

impl Rival for TokioChannel {
    fn start(core: usize) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|why| format!("no runtime of tokio: {why}"))?;
        let (asked, requests) = mpsc::channel(PLACES);
        let server = Server::start(core, move || runtime.block_on(serve(requests)))?;
        Ok(Self { asked, _server: server })
    }

    async fn call(&self, ping: Ping) -> Result<Pong, String> {
        let (answer, answered) = oneshot::channel();
        let sent = self.asked.send((ping, answer)).await;
        sent.map_err(|_| "its task has ended".to_owned())?;
        answered.await.map_err(|_| "its task dropped the request".to_owned())
    }
}

async fn serve(mut requests: mpsc::Receiver<Asked>) {
    while let Some((ping, answer)) = requests.recv().await {
        // Nobody waits for it if the round was broken off.
        let _ = answer.send(ping.answer());
    }
}
