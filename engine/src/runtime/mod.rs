//! The seam between a shard and the machine: what the turn asks of the world, and what waits between turns.
//!
//! A shard's turn does no system call itself. It asks its [`World`] for the time, for connections and for which of them
//! are ready; between turns it spins or sleeps ([`drive`]). There are three runtimes: [`glommio`], where each shard is the task
//! of an executor; plain threads, where io_uring is refused; and [`simulated`], which runs whole engines in one thread from
//! a seed. The first two share [`sockets`], the world of real sockets, and sleep in [`epoll`].

use std::io;

use catga_discovery::Endpoint;

use crate::time::Time;

pub(crate) mod drive;
pub(crate) mod epoll;
#[cfg(feature = "glommio")]
pub(crate) mod glommio;
#[cfg(test)]
pub(crate) mod simulated;
pub(crate) mod sockets;

/// What a shard has registered under a descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Token {
    /// Another thread rang.
    Doorbell,
    /// Someone connects.
    Listener,
    /// A lane, by its key.
    Lane(crate::call::table::LaneKey),
}

/// One end of a connection. Nothing on it ever blocks.
pub(crate) trait Stream: Send {
    /// Reads what is there; 0 is the end of the stream, [`io::ErrorKind::WouldBlock`] that nothing is there just now.
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize>;
    /// Writes as much as fits.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;
    /// Whether a connection that was being made has come to be; an error if it failed.
    fn connected(&mut self) -> io::Result<bool>;
    /// No more will be written.
    fn finish(&mut self);
    /// The socket behind it, if there is one.
    fn socket(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
    /// Who is at the other end, for logs: an address, or `unix:` and the path of the socket that was dialled.
    fn peer(&self) -> String;
}

/// What came of taking a connection that was made to this shard's listener.
pub(crate) enum Accepted {
    /// There was one.
    Stream(Box<dyn Stream>),
    /// There was one, and it was closed at once: there is no descriptor for it.
    TurnedAway,
    /// There was one, and it could not be taken. The cause is in the log.
    Failed,
    /// There is none, or none can be taken just now: the world reports the listener when there is something to take.
    Nobody,
}

/// What a shard asks of the world.
pub(crate) trait World {
    /// The time.
    fn now(&mut self) -> Time;
    /// Bytes that nobody can foretell, and that do not come again. An error if there are none just now.
    fn nonce(&mut self) -> io::Result<[u8; 16]>;
    /// Begins to connect. An error if it has failed at once; whoever dialled may try again.
    fn dial(&mut self, endpoint: &Endpoint) -> io::Result<Box<dyn Stream>>;
    /// Takes a connection that was made to this shard's listener, if it has one. Asked again and again it comes to an end.
    fn accept(&mut self) -> Accepted;
    /// From now on, report when the stream can be read, and if `write` when it can be written.
    fn watch(&mut self, stream: &dyn Stream, token: Token, write: bool) -> io::Result<()>;
    /// Stop reporting.
    fn forget(&mut self, stream: &dyn Stream);
    /// What has become ready, without waiting.
    fn ready(&mut self, tokens: &mut Vec<Token>) -> io::Result<()>;
}

/// Whether shards can run in glommio here; if not, the cause and the cure, parted by a semicolon.
pub(crate) fn io_uring_usable() -> Result<(), String> {
    #[cfg(feature = "glommio")]
    return glommio::probe();
    #[cfg(not(feature = "glommio"))]
    Err("this build has no io_uring; build with the feature `glommio`".into())
}
