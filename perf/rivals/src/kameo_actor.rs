//! An actor of kameo, on a tokio runtime on another thread.

use std::convert::Infallible;
use std::sync::mpsc;

use catga_perf::rivals::{Ping, Pong, Rival};
use kameo::Actor;
use kameo::actor::ActorRef;
use kameo::mailbox;
use kameo::message::{Context, Message};
use tokio::sync::oneshot;

use crate::server::{PLACES, Server};

#[derive(Debug)]
struct Ask(Ping);

#[derive(Actor)]
struct Echo;

impl Message<Ask> for Echo {
    type Reply = Result<Pong, Infallible>;

    async fn handle(&mut self, ask: Ask, _: &mut Context<Self, Self::Reply>) -> Self::Reply {
        Ok(ask.0.answer())
    }
}

/// The rival.
pub struct KameoActor {
    echo: ActorRef<Echo>,
    // Dropped before the server, which ends by it.
    _stop: oneshot::Sender<()>,
    _server: Server,
}

impl Rival for KameoActor {
    fn start(core: usize) -> Result<Self, String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|why| format!("no runtime of tokio: {why}"))?;
        let (stop, stopped) = oneshot::channel();
        let (started, actor) = mpsc::channel();
        let server = Server::start(core, move || {
            runtime.block_on(async {
                // Nobody takes it only if the starter has gone; then `stopped` ends at once, too.
                let _ = started.send(Echo::spawn_with_mailbox(Echo, mailbox::bounded(PLACES)));
                let _ = stopped.await;
            });
        })?;
        let echo = actor.recv().map_err(|_| "its runtime ended early".to_owned())?;
        Ok(Self { echo, _stop: stop, _server: server })
    }

    async fn call(&self, ping: Ping) -> Result<Pong, String> {
        self.echo.ask(Ask(ping)).await.map_err(|why| format!("{why:?}"))
    }
}
