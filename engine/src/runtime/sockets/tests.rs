use std::path::PathBuf;

use super::*;

/// A directory of its own for a test, removed with it.
pub(super) struct Directory(PathBuf);

impl Directory {
    pub(super) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("catga-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn any_port() -> Endpoint {
    "127.0.0.1:0".parse().unwrap()
}

/// A world that listens, and where.
pub(super) fn listening(endpoint: &Endpoint) -> (Sockets, Endpoint) {
    let listener = listen(endpoint).unwrap();
    let at = local_endpoint(&listener).unwrap();
    (Sockets::new(&Doorbell::new(EventFd::new().unwrap()), Some(listener)).unwrap(), at)
}

pub(super) fn accepted(world: &mut Sockets) -> Option<Box<dyn Stream>> {
    match world.accept() {
        Accepted::Stream(stream) => Some(stream),
        _ => None,
    }
}

fn read(stream: &mut dyn Stream) -> Vec<u8> {
    let mut bytes = [0; 64];
    loop {
        match stream.read(&mut bytes) {
            Ok(length) => return bytes[..length].to_vec(),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
    }
}

#[test]
fn bytes_pass_both_ways_over_either_kind_of_endpoint_and_each_side_has_a_name_for_the_other() {
    let directory = Directory::new("bytes");
    for endpoint in [any_port(), Endpoint::Unix(directory.join("a.sock"))] {
        let (mut there, at) = listening(&endpoint);
        let mut here = Sockets::new(&Doorbell::new(EventFd::new().unwrap()), None).unwrap();
        assert!(matches!(here.accept(), Accepted::Nobody), "it has no listener");
        let mut near = here.dial(&at).unwrap();
        while !near.connected().unwrap() {}
        assert_eq!(near.peer(), at.to_string());
        let mut tokens = Vec::new();
        there.ready(&mut tokens).unwrap();
        assert_eq!(tokens, [Token::Listener]);
        let mut far = accepted(&mut there).unwrap();
        assert!(matches!(there.accept(), Accepted::Nobody));
        match &at {
            Endpoint::Tcp(_) => assert!(far.peer().starts_with("127.0.0.1:"), "{}", far.peer()),
            Endpoint::Unix(_) => assert_eq!(far.peer(), at.to_string()),
        }
        assert_eq!(near.write(b"ask").unwrap(), 3);
        assert_eq!(read(&mut *far), b"ask");
        assert_eq!(far.write(b"answer").unwrap(), 6);
        assert_eq!(read(&mut *near), b"answer");
        near.finish();
        assert_eq!(read(&mut *far), b"", "the end");
    }
}

#[test]
fn a_dial_in_the_file_system_never_waits_and_fails_at_once_where_nobody_takes_it() {
    let directory = Directory::new("dial");
    let mut world = Sockets::new(&Doorbell::new(EventFd::new().unwrap()), None).unwrap();
    let mut failure = |name: &str| {
        let dialled = world.dial(&Endpoint::Unix(directory.join(name)));
        dialled.err().map(|error| error.kind())
    };
    assert_eq!(failure("absent"), Some(io::ErrorKind::NotFound));
    drop(std::os::unix::net::UnixListener::bind(directory.join("stale")).unwrap());
    assert_eq!(failure("stale"), Some(io::ErrorKind::ConnectionRefused));
    let busy = socket(AddressFamily::UNIX).unwrap();
    rustix::net::bind(&busy, &SocketAddrUnix::new(directory.join("busy")).unwrap()).unwrap();
    rustix::net::listen(&busy, 0).unwrap();
    // Who has dialled and gone still waits in the queue.
    let failed = (0..10).find_map(|_| failure("busy"));
    assert_eq!(failed, Some(io::ErrorKind::WouldBlock));
}

#[test]
fn no_nonce_comes_twice() {
    let mut world = Sockets::new(&Doorbell::new(EventFd::new().unwrap()), None).unwrap();
    let nonces: std::collections::BTreeSet<_> = (0..100).map(|_| world.nonce().unwrap()).collect();
    assert_eq!(nonces.len(), 100);
}
