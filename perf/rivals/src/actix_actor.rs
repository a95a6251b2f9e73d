//! An actor of actix, in a system of its own on another thread.

use std::sync::mpsc;

use actix::{Actor, Addr, Context, Handler, Message, MessageResult, System};
use catga_perf::rivals::{Ping, Pong, Rival};
use tokio::sync::oneshot;

use crate::server::{PLACES, Server};

struct Ask(Ping);

impl Message for Ask {
    type Result = Pong;
}

struct Echo;

impl Actor for Echo {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(PLACES);
    }
}

impl Handler<Ask> for Echo {
    type Result = MessageResult<Ask>;

    fn handle(&mut self, ask: Ask, _: &mut Self::Context) -> Self::Result {
        MessageResult(ask.0.answer())
    }
}

/// The rival.
pub struct ActixActor {
    echo: Addr<Echo>,
    // Dropped before the server, which ends by it.
    _stop: oneshot::Sender<()>,
    _server: Server,
}

impl Rival for ActixActor {
    fn start(core: usize) -> Result<Self, String> {
        let (stop, stopped) = oneshot::channel();
        let (started, address) = mpsc::channel();
        let server = Server::start(core, move || {
            System::new().block_on(async {
                // Nobody takes it only if the starter has gone; then `stopped` ends at once, too.
                let _ = started.send(Echo.start());
                let _ = stopped.await;
            });
        })?;
        let echo = address.recv().map_err(|_| "its system ended early".to_owned())?;
        Ok(Self { echo, _stop: stop, _server: server })
    }

    async fn call(&self, ping: Ping) -> Result<Pong, String> {
        self.echo.send(Ask(ping)).await.map_err(|why| why.to_string())
    }
}
