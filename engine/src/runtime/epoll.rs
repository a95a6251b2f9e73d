//! The wait of a shard that parks: one `epoll_wait` for its doorbell, its sockets or its next timer.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::epoll;

/// Waits until something is ready, or for as long as `timeout`.
pub(crate) fn wait(descriptor: &OwnedFd, timeout: Duration) -> io::Result<()> {
    let timeout = rustix::event::Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut events = [const { std::mem::MaybeUninit::uninit() }; 1];
    // What is ready is read afterwards, by `Sockets::ready`: level-triggered, so nothing is lost.
    match epoll::wait(descriptor, &mut events[..], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
