//! Where a node listens: a TCP port, or a socket in the file system.
//!
//! A port is free again when its process ends. A socket's file is not: it stays behind whoever is killed, and the next
//! start has to tell such a file from one behind which a process listens. It does so by connecting: only a file that
//! refuses is stale, and is removed. Two starts at one path must not both find it stale, or the later would remove what
//! the earlier has just bound; so each holds a lock on the directory from the look until it listens. The lock is the
//! system's, on the open directory: it leaves nothing behind.
//!
//! The file may be used by its owner only, and is removed with the listener, if it is still the same file.

use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use catga_discovery::Endpoint;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, sockopt};

use super::{BACKLOG, socket};

/// Another start in the same directory is waited for so long; it takes a fraction of a millisecond.
const LOCK_WAIT: Duration = Duration::from_secs(1);
/// Nobody but the owner may connect.
const FILE_MODE: u32 = 0o600;

/// A socket that listens. Dropping it frees the endpoint.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: OwnedFd,
    endpoint: Endpoint,
    file: Option<SocketFile>,
}

/// Listens on an endpoint. Done before the shards start, so that an endpoint in use is a start error. May wait for a
/// second; the error names the endpoint and what to do.
pub(crate) fn listen(endpoint: &Endpoint) -> io::Result<Listener> {
    match endpoint {
        Endpoint::Tcp(address) => tcp(*address),
        Endpoint::Unix(path) => unix(path),
    }
    .map_err(|error| io::Error::new(error.kind(), format!("{endpoint}: {error}")))
}

/// Where a listener really listens: with the port that the system chose if it was asked for any.
pub(crate) fn local_endpoint(listener: &Listener) -> io::Result<Endpoint> {
    match listener.endpoint {
        Endpoint::Tcp(_) => {
            let address = SocketAddr::try_from(rustix::net::getsockname(&listener.socket)?);
            address.map(Endpoint::Tcp).map_err(|_| io::ErrorKind::Unsupported.into())
        }
        Endpoint::Unix(_) => Ok(listener.endpoint.clone()),
    }
}

impl Listener {
    /// What it was asked to listen on.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // While the socket still listens: so nobody can have found the file stale and put another in its place.
        if let Some(file) = self.file.take() {
            file.remove();
        }
    }
}

fn tcp(address: SocketAddr) -> io::Result<Listener> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket(family)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address).map_err(bind_error)?;
    rustix::net::listen(&socket, BACKLOG).map_err(bind_error)?;
    Ok(Listener { socket, endpoint: address.into(), file: None })
}

fn bind_error(error: Errno) -> io::Error {
    match error {
        Errno::ADDRINUSE => io::Error::new(
            io::ErrorKind::AddrInUse,
            "another process listens here; stop it, or choose another endpoint",
        ),
        Errno::ADDRNOTAVAIL => io::Error::new(
            io::ErrorKind::AddrNotAvailable,
            "not an address of this machine; listen on one that it has",
        ),
        error => error.into(),
    }
}

fn unix(path: &Path) -> io::Result<Listener> {
    let address = SocketAddrUnix::new(path)?;
    let _alone = lock_directory(path)?; // until it listens, or has failed
    remove_stale(path, &address)?;
    let socket = socket(AddressFamily::UNIX)?;
    rustix::net::bind(&socket, &address).map_err(bind_error)?;
    let file = SocketFile::at(path)?;
    let listener = Listener { socket, endpoint: Endpoint::Unix(path.into()), file: Some(file) };
    // After the bind, whatever the umask; nobody can connect before it listens.
    fs::set_permissions(path, Permissions::from_mode(FILE_MODE))?;
    rustix::net::listen(&listener.socket, BACKLOG)?;
    Ok(listener)
}

/// Holds off other starts in the directory for as long as the file is open.
fn lock_directory(path: &Path) -> io::Result<File> {
    let parent = path.parent().unwrap_or(path);
    let directory = File::open(parent).map_err(|error| {
        io::Error::new(error.kind(), format!("cannot open the directory {}: {error}", parent.display()))
    })?;
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(TryLockError::WouldBlock) => {
                let text = format!("another process holds a lock on the directory {}", parent.display());
                return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// Removes a socket's file behind which nobody listens. Anything else is left alone.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            "what is at this path is no socket, and was left alone; remove it, or choose another path",
        ));
    }
    match rustix::net::connect(&socket(AddressFamily::UNIX)?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path),
        Err(Errno::NOENT) => Ok(()),
        // A full backlog and a socket of another type are signs of life too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Err(bind_error(Errno::ADDRINUSE)),
        Err(error) => Err(error.into()),
    }
}

/// The file of a bound socket, known by more than its path.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl SocketFile {
    fn at(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self { path: path.into(), device: found.dev(), inode: found.ino() })
    }

    fn remove(self) {
        let same = match fs::symlink_metadata(&self.path) {
            Ok(found) => (found.dev(), found.ino()) == (self.device, self.inode),
            Err(_) => false, // somebody has removed it
        };
        if same && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "could not remove the file of a socket");
        }
    }
}

#[cfg(test)]
#[path = "listener_tests.rs"]
mod tests;
