//! The world of real sockets: nonblocking streams over TCP or in the file system, one epoll descriptor for each shard.
//!
//! Both real runtimes use it. The doorbell's eventfd, the listener and the lanes are all registered in the one epoll
//! descriptor, so that whoever waits need only wait for that. [`listener`] opens the endpoint of a node, and [`acceptor`]
//! takes what connects to it.
//!
//! To dial never waits. A TCP connection comes to be later; one in the file system is there at once or not at all: nobody
//! listens, or more wait there than may. Both are errors, after which the dial is tried again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use catga_discovery::Endpoint;
use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, sockopt};
use rustix::rand::{GetRandomFlags, getrandom};

use self::acceptor::Acceptor;
pub(crate) use self::listener::{Listener, listen, local_endpoint};

use crate::call::table::LaneKey;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::runtime::{Accepted, Stream, Token, World};
use crate::time::Time;

mod acceptor;
mod listener;

/// Readiness reports taken at a time.
const EVENTS: usize = 64;
/// Connections that may wait to be accepted.
pub(crate) const BACKLOG: i32 = 1024;

const DOORBELL: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;
/// The listener was not watched for a while: that is over.
const REST_OVER: u64 = u64::MAX - 2;

/// Real time, real sockets.
pub(crate) struct Sockets {
    epoll: Arc<OwnedFd>,
    acceptor: Option<Acceptor>,
}

fn socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None)
}

impl Sockets {
    /// Registers the doorbell, and the listener if the shard has it.
    pub(crate) fn new(doorbell: &Doorbell<EventFd>, listener: Option<Listener>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = epoll::EventData::new_u64(DOORBELL);
        epoll::add(&epoll, doorbell.signal(), data, epoll::EventFlags::IN)?;
        let acceptor = listener.map(|listener| Acceptor::new(listener, &epoll)).transpose()?;
        Ok(Self { epoll: Arc::new(epoll), acceptor })
    }

    /// What to wait on.
    pub(crate) fn epoll(&self) -> Arc<OwnedFd> {
        self.epoll.clone()
    }
}

impl World for Sockets {
    fn now(&mut self) -> Time {
        Time::read()
    }

    fn nonce(&mut self) -> io::Result<[u8; 16]> {
        let mut nonce = [0; 16];
        // So few bytes come whole. Just after the machine's start there may be none: no shard waits for that.
        match getrandom(&mut nonce, GetRandomFlags::NONBLOCK)? {
            16 => Ok(nonce),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn dial(&mut self, endpoint: &Endpoint) -> io::Result<Box<dyn Stream>> {
        let (socket, connect) = match endpoint {
            Endpoint::Tcp(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let socket = socket(family)?;
                let connect = rustix::net::connect(&socket, address);
                (socket, connect)
            }
            Endpoint::Unix(path) => {
                let socket = socket(AddressFamily::UNIX)?;
                let connect = rustix::net::connect(&socket, &SocketAddrUnix::new(path)?);
                (socket, connect)
            }
        };
        match connect {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {
                Ok(Box::new(Connection { socket, peer: endpoint.clone() }))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) -> Accepted {
        match &mut self.acceptor {
            Some(acceptor) => acceptor.accept(&self.epoll),
            None => Accepted::Nobody,
        }
    }

    fn watch(&mut self, stream: &dyn Stream, token: Token, write: bool) -> io::Result<()> {
        let Some(socket) = stream.socket() else { return Ok(()) };
        let mut flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        if write {
            flags |= epoll::EventFlags::OUT;
        }
        let data = epoll::EventData::new_u64(number(token));
        match epoll::add(&self.epoll, socket, data, flags) {
            Err(rustix::io::Errno::EXIST) => Ok(epoll::modify(&self.epoll, socket, data, flags)?),
            added => Ok(added?),
        }
    }

    fn forget(&mut self, stream: &dyn Stream) {
        if let Some(socket) = stream.socket() {
            // It may have been forgotten before: then there is nothing to do.
            let _ = epoll::delete(&self.epoll, socket);
        }
    }

    fn ready(&mut self, tokens: &mut Vec<Token>) -> io::Result<()> {
        let mut events = [const { std::mem::MaybeUninit::uninit() }; EVENTS];
        let none = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(&self.epoll, &mut events[..], Some(&none)) {
            Ok((events, _)) => {
                for event in events.iter() {
                    match (event.data.u64(), &mut self.acceptor) {
                        (REST_OVER, Some(acceptor)) => acceptor.rest_over(&self.epoll),
                        (number, _) => tokens.push(token(number)),
                    }
                }
                Ok(())
            }
            Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn number(token: Token) -> u64 {
    match token {
        Token::Doorbell => DOORBELL,
        Token::Listener => LISTENER,
        Token::Lane(key) => u64::from(key.index) | u64::from(key.generation) << 32,
    }
}

fn token(number: u64) -> Token {
    match number {
        DOORBELL => Token::Doorbell,
        LISTENER => Token::Listener,
        key => Token::Lane(LaneKey { index: key as u32, generation: (key >> 32) as u32 }),
    }
}

/// A connection, over TCP or in the file system.
struct Connection {
    socket: OwnedFd,
    /// In the file system: where the one side listens, for both.
    peer: Endpoint,
}

impl Connection {
    /// What is written leaves at once: lanes gather for themselves. In the file system it always does.
    fn send_at_once(&self) -> rustix::io::Result<()> {
        match self.peer {
            Endpoint::Tcp(_) => sockopt::set_tcp_nodelay(&self.socket, true),
            Endpoint::Unix(_) => Ok(()),
        }
    }
}

impl Stream for Connection {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::net::recv(&self.socket, into, rustix::net::RecvFlags::empty())?.0)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A peer that is gone is an error here, not a signal that ends the process.
        Ok(rustix::net::send(&self.socket, bytes, rustix::net::SendFlags::NOSIGNAL)?)
    }

    fn connected(&mut self) -> io::Result<bool> {
        sockopt::socket_error(&self.socket)??;
        if rustix::net::getpeername(&self.socket).is_err() {
            return Ok(false);
        }
        self.send_at_once()?;
        Ok(true)
    }

    fn finish(&mut self) {
        // The peer may be gone already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn peer(&self) -> String {
        self.peer.to_string()
    }
}

#[cfg(test)]
mod tests;
