//! The world of real sockets: nonblocking TCP, one epoll descriptor for each shard.
//!
//! Both real runtimes use it. The doorbell's eventfd, the listener and the lanes are all registered in the one epoll
//! descriptor, so that whoever waits need only wait for that.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::epoll;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::call::table::LaneKey;
use crate::ring::doorbell::{Doorbell, EventFd};
use crate::runtime::{Stream, Token, World};
use crate::time::Time;

/// Readiness reports taken at a time.
const EVENTS: usize = 64;
/// Connections that may wait to be accepted.
pub(crate) const BACKLOG: i32 = 1024;

const DOORBELL: u64 = u64::MAX;
const LISTENER: u64 = u64::MAX - 1;

/// Real time, real sockets.
pub(crate) struct Sockets {
    epoll: Arc<OwnedFd>,
    listener: Option<OwnedFd>,
}

/// Listens on an endpoint. Done before the shards start, so that a port in use is a start error.
pub(crate) fn listen(endpoint: SocketAddr) -> io::Result<OwnedFd> {
    let socket = socket(endpoint)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &endpoint)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Where a listener really listens: the port that the system chose if it was asked for any.
pub(crate) fn local_endpoint(listener: &OwnedFd) -> io::Result<SocketAddr> {
    SocketAddr::try_from(rustix::net::getsockname(listener)?).map_err(|_| io::ErrorKind::Unsupported.into())
}

fn socket(endpoint: SocketAddr) -> io::Result<OwnedFd> {
    let family = if endpoint.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

impl Sockets {
    /// Registers the doorbell, and the listener if the shard has it.
    pub(crate) fn new(doorbell: &Doorbell<EventFd>, listener: Option<OwnedFd>) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let data = |number| epoll::EventData::new_u64(number);
        epoll::add(&epoll, doorbell.signal(), data(DOORBELL), epoll::EventFlags::IN)?;
        if let Some(listener) = &listener {
            epoll::add(&epoll, listener, data(LISTENER), epoll::EventFlags::IN)?;
        }
        Ok(Self { epoll: Arc::new(epoll), listener })
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

    fn dial(&mut self, endpoint: SocketAddr) -> io::Result<Box<dyn Stream>> {
        let socket = socket(endpoint)?;
        match rustix::net::connect(&socket, &endpoint) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(Box::new(Tcp { socket, peer: endpoint })),
            Err(error) => Err(error.into()),
        }
    }

    fn accept(&mut self) -> io::Result<Option<Box<dyn Stream>>> {
        let Some(listener) = &self.listener else { return Ok(None) };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::acceptfrom_with(listener, flags) {
            Ok((socket, peer)) => {
                let _ = sockopt::set_tcp_nodelay(&socket, true);
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
                Ok(Some(Box::new(Tcp { socket, peer: peer.unwrap_or(unknown) })))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {
                Ok(None)
            }
            Err(error) => Err(error.into()),
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
                tokens.extend(events.iter().map(|event| token(event.data.u64())));
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

/// A TCP connection.
struct Tcp {
    socket: OwnedFd,
    peer: SocketAddr,
}

impl Stream for Tcp {
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
        sockopt::set_tcp_nodelay(&self.socket, true)?;
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
