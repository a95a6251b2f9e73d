//! Taking connections, also when there is nothing to take them with.
//!
//! A connection that cannot be taken stays in the queue, and the listener stays ready: a shard that only logged the error
//! would be woken by it without end. So a descriptor is kept **spare**. When the limit of open files is reached it is
//! closed, the connection is taken in its place and closed at once, and a new spare is opened: the queue drains, and the
//! other side is told to go elsewhere.
//!
//! ```text
//!   armed ──no descriptor──▶ close spare, take, close, open spare ──▶ armed
//!     │                                                 └─fails─┐
//!     ├──no memory, or an error that would come again───────────┴─▶ resting ──100 ms, and there is a spare──▶ armed
//!     └──this connection is broken──▶ armed: the next one may be whole
//! ```
//!
//! What **rests** is not watched; a timer among the watched descriptors ends the rest, so that a shard that sleeps need
//! not know of it. Only a shard with a spare is armed.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use catga_discovery::Endpoint;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::io::Errno;
use rustix::net::SocketFlags;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::{Connection, LISTENER, Listener, REST_OVER};
use crate::runtime::Accepted;
use crate::time::Time;

/// How long a listener is not watched when connections cannot be taken.
const REST: Duration = Duration::from_millis(100);
/// At most one line of log in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The listener of a shard.
pub(super) struct Acceptor {
    listener: Listener,
    spare: Option<OwnedFd>,
    /// Ends the rest.
    timer: OwnedFd,
    resting: bool,
    log: Log,
}

impl Acceptor {
    /// Watches the listener.
    pub(super) fn new(listener: Listener, epoll: &OwnedFd) -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        let rings = epoll::EventData::new_u64(REST_OVER);
        epoll::add(epoll, &timer, rings, epoll::EventFlags::IN)?;
        watch(&listener, epoll)?;
        let spare = Some(open_spare()?);
        Ok(Self { listener, spare, timer, resting: false, log: Log { next: Time::ZERO, untold: 0 } })
    }

    /// Takes a connection. However it ends, the next call has to do with another one, or finds nobody.
    pub(super) fn accept(&mut self, epoll: &OwnedFd) -> Accepted {
        if self.resting {
            return Accepted::Nobody;
        }
        match self.take() {
            Ok(connection) => Accepted::Stream(Box::new(connection)),
            Err(Errno::AGAIN | Errno::INTR) => Accepted::Nobody,
            Err(error @ (Errno::MFILE | Errno::NFILE)) => self.turn_away(error, epoll),
            Err(error) if is_of_one_connection(error) => {
                self.log.tell(error);
                Accepted::Failed
            }
            Err(error) => {
                self.log.tell(error);
                self.rest(epoll);
                Accepted::Failed
            }
        }
    }

    fn take(&self) -> Result<Connection, Errno> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match self.listener.endpoint() {
            Endpoint::Tcp(_) => {
                let (socket, peer) = rustix::net::acceptfrom_with(&self.listener, flags)?;
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
                let connection = Connection { socket, peer: peer.unwrap_or(unknown).into() };
                // Without it the connection is slower, and good all the same.
                let _ = connection.send_at_once();
                Ok(connection)
            }
            // Who dials such a socket has no name: it is known by where it came in.
            at @ Endpoint::Unix(_) => {
                let socket = rustix::net::accept_with(&self.listener, flags)?;
                Ok(Connection { socket, peer: at.clone() })
            }
        }
    }

    /// There is no descriptor: takes the connection in the place of the spare one, and closes it.
    #[cold]
    fn turn_away(&mut self, cause: Errno, epoll: &OwnedFd) -> Accepted {
        self.spare = None;
        let taken = self.take().map(drop);
        self.spare = open_spare().ok();
        if self.spare.is_none() {
            self.rest(epoll);
        }
        match taken {
            Ok(()) => {
                self.log.tell(cause);
                Accepted::TurnedAway
            }
            // The system looks for a descriptor first, and only then whether anybody waits.
            Err(Errno::AGAIN | Errno::INTR) => Accepted::Nobody,
            Err(error) => {
                self.log.tell(error);
                if !is_of_one_connection(error) {
                    self.rest(epoll); // somebody else was quicker to use the one that was freed
                }
                Accepted::Failed
            }
        }
    }

    /// Does not watch the listener for a while.
    #[cold]
    fn rest(&mut self, epoll: &OwnedFd) {
        if self.resting {
            return;
        }
        // Watched for nothing it would still report that it is broken, if it is.
        match self.set_timer().and_then(|()| epoll::delete(epoll, &self.listener)) {
            Ok(()) => self.resting = true,
            Err(error) => tracing::error!(%error, "a listener that cannot take connections stays watched"),
        }
    }

    /// The rest is over: watches the listener again, if there is a spare descriptor.
    #[cold]
    pub(super) fn rest_over(&mut self, epoll: &OwnedFd) {
        if let Err(error) = self.arm(epoll) {
            self.log.tell(error);
            if let Err(error) = self.set_timer() {
                tracing::error!(%error, "a listener is not watched any more");
            }
        }
    }

    fn arm(&mut self, epoll: &OwnedFd) -> rustix::io::Result<()> {
        if self.spare.is_none() {
            self.spare = Some(open_spare()?);
        }
        watch(&self.listener, epoll)?;
        self.resting = false;
        // Set to never, the timer also forgets that it has rung.
        self.ring_after(Timespec { tv_sec: 0, tv_nsec: 0 })
    }

    fn set_timer(&self) -> rustix::io::Result<()> {
        self.ring_after(Timespec { tv_sec: 0, tv_nsec: REST.as_nanos() as _ })
    }

    fn ring_after(&self, it_value: Timespec) -> rustix::io::Result<()> {
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).map(drop)
    }
}

fn watch(listener: &Listener, epoll: &OwnedFd) -> rustix::io::Result<()> {
    epoll::add(epoll, listener, epoll::EventData::new_u64(LISTENER), epoll::EventFlags::IN)
}

fn open_spare() -> rustix::io::Result<OwnedFd> {
    eventfd(0, EventfdFlags::CLOEXEC)
}

/// Whether an error tells of the one connection, which is out of the queue by then, and not of the listener.
fn is_of_one_connection(error: Errno) -> bool {
    [
        Errno::CONNABORTED,
        Errno::CONNRESET,
        Errno::PROTO,
        Errno::NOPROTOOPT,
        Errno::NETDOWN,
        Errno::NETUNREACH,
        Errno::HOSTDOWN,
        Errno::HOSTUNREACH,
        Errno::NONET,
        Errno::TIMEDOUT,
    ]
    .contains(&error)
}

/// Says why connections are not taken, and no oftener than is of use.
struct Log {
    next: Time,
    untold: u64,
}

impl Log {
    #[cold]
    fn tell(&mut self, error: Errno) {
        let now = Time::read();
        if now < self.next {
            self.untold += 1;
            return;
        }
        self.next = now + LOG_INTERVAL;
        let untold = std::mem::take(&mut self.untold);
        tracing::warn!(%error, untold, "could not take a connection; {}", remedy(error));
    }
}

fn remedy(error: Errno) -> &'static str {
    match error {
        Errno::MFILE => "raise the limit of open files (`ulimit -n`), or find who floods this node",
        Errno::NFILE => "raise sysctl fs.file-max, or find who has so many files open on this machine",
        Errno::NOMEM | Errno::NOBUFS => "the system has no memory for it; the next is taken in 100 ms",
        _ if is_of_one_connection(error) => "it broke before it was taken; the others go on",
        _ => "the next is taken in 100 ms",
    }
}

#[cfg(test)]
#[path = "acceptor_tests.rs"]
mod tests;
