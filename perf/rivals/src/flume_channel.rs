//! A plain thread that blocks on a flume channel; each request carries a channel of one place for its answer.

use catga_perf::rivals::{Ping, Pong, Rival};

use crate::server::{PLACES, Server};

type Asked = (Ping, flume::Sender<Pong>);

/// The rival.
pub struct FlumeChannel {
    // Dropped before the server, which ends by it.
    asked: flume::Sender<Asked>,
    _server: Server,
}

impl Rival for FlumeChannel {
    fn start(core: usize) -> Result<Self, String> {
        let (asked, requests) = flume::bounded::<Asked>(PLACES);
        let server = Server::start(core, move || {
            for (ping, answer) in requests {
                // Nobody waits for it if the round was broken off.
                let _ = answer.send(ping.answer());
            }
        })?;
        Ok(Self { asked, _server: server })
    }

    async fn call(&self, ping: Ping) -> Result<Pong, String> {
        let (answer, answered) = flume::bounded(1);
        let sent = self.asked.send_async((ping, answer)).await;
        sent.map_err(|_| "its thread has ended".to_owned())?;
        answered.recv_async().await.map_err(|_| "its thread dropped the request".to_owned())
    }
}
