//! The epoll runtime: a thread of its own for each shard, waiting in `epoll_wait`.
//!
//! It is chosen by itself where io_uring is refused (a default container, an old kernel, too little locked memory), and by
//! the user with [`Runtime::Epoll`](crate::Runtime::Epoll).

use std::future::Future;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rustix::event::epoll;

use crate::runtime::Wait;

/// Waits in `epoll_wait`, on the thread itself.
pub(crate) struct EpollWait(pub(crate) Arc<OwnedFd>);

impl Wait for EpollWait {
    async fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = rustix::event::Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
        // What is ready is read afterwards, by `Sockets::ready`: level-triggered, so nothing is lost.
        match epoll::wait(&self.0, &mut events[..], Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Runs a future that blocks inside instead of waiting: it is ready at its first poll.
pub(crate) fn run(future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    while Poll::Pending == future.as_mut().poll(&mut cx) {}
}
