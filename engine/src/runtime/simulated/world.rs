//! The simulated world of one shard, and its streams: thin handles on the one [`Network`].

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard};

use catga_discovery::Endpoint;

use super::network::{End, Network};
use super::rng::Rng;
use crate::runtime::{Accepted, Stream, Token, World};
use crate::time::Time;

/// The network, as all worlds and streams hold it. One thread uses it; the lock is there because streams are `Send`.
#[derive(Clone, Debug)]
pub(crate) struct Shared(Arc<Mutex<Network>>);

impl Shared {
    pub(crate) fn new(network: Network) -> Self {
        Self(Arc::new(Mutex::new(network)))
    }

    pub(crate) fn borrow(&self) -> MutexGuard<'_, Network> {
        self.0.lock().unwrap()
    }
}

/// What one shard sees of the world.
pub(crate) struct SimulatedWorld {
    pub(crate) network: Shared,
    /// Its number in the network.
    pub(crate) id: usize,
    /// The node of the shard.
    pub(crate) node: usize,
    /// The first shard of a node listens.
    pub(crate) listens: Option<Endpoint>,
    /// Apart from the network's chance, so that a greeting more or less does not change the weather.
    pub(crate) nonces: Rng,
}

impl World for SimulatedWorld {
    fn now(&mut self) -> Time {
        self.network.borrow().now
    }

    fn nonce(&mut self) -> io::Result<[u8; 16]> {
        Ok((u128::from(self.nonces.next()) << 64 | u128::from(self.nonces.next())).to_le_bytes())
    }

    fn dial(&mut self, endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
        let end = self.network.borrow().dial(self.node, endpoint);
        Ok(Box::new(SimulatedStream { network: self.network.clone(), end }))
    }

    fn accept(&mut self) -> Accepted {
        let mut network = self.network.borrow();
        let Some(end) = self.listens.as_ref().and_then(|endpoint| network.accept(endpoint)) else {
            return Accepted::Nobody;
        };
        if network.turns_away() {
            network.close(end);
            return Accepted::TurnedAway;
        }
        Accepted::Stream(Box::new(SimulatedStream { network: self.network.clone(), end }))
    }

    fn watch(&mut self, stream: &dyn Stream, token: Token, write: bool) -> io::Result<()> {
        self.network.borrow().watch(self.id, end_of(stream), token, write);
        Ok(())
    }

    fn forget(&mut self, stream: &dyn Stream) {
        self.network.borrow().forget(self.id, end_of(stream));
    }

    fn ready(&mut self, tokens: &mut Vec<Token>) -> io::Result<()> {
        tokens.push(Token::Doorbell);
        self.network.borrow().ready(self.id, self.listens.as_ref(), tokens);
        Ok(())
    }
}

/// One end of a link.
struct SimulatedStream {
    network: Shared,
    end: End,
}

/// A stream without a socket is known by its name.
fn end_of(stream: &dyn Stream) -> End {
    let name = stream.peer();
    let (link, side) = name.split_once('/').expect("a simulated stream is called link/side");
    End { link: link.parse().unwrap(), side: side.parse().unwrap() }
}

impl Stream for SimulatedStream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.network.borrow().read(self.end, into)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.network.borrow().write(self.end, bytes)
    }

    fn connected(&mut self) -> io::Result<bool> {
        self.network.borrow().connected(self.end)
    }

    fn finish(&mut self) {
        self.network.borrow().finish(self.end);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn peer(&self) -> String {
        format!("{}/{}", self.end.link, self.end.side)
    }
}

impl Drop for SimulatedStream {
    fn drop(&mut self) {
        self.network.borrow().close(self.end);
    }
}
