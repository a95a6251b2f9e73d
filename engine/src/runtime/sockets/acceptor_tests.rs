use std::io::Read;
use std::net::TcpStream;
use std::process::Command;
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::super::Sockets;
use super::super::tests::{accepted, any_port, listening};
use super::*;
use crate::runtime::epoll::wait;
use crate::runtime::{Token, World};

/// Set in a process that runs one test.
const ALONE: &str = "CATGA_TEST_ALONE";

/// Runs a test in a process of its own: limits are a process's, and the other tests need their descriptors.
fn alone(name: &str, test: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return test();
    }
    let (_, path) = module_path!().split_once("::").unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    let child = child.args(["--exact", &format!("{path}::{name}")]).env(ALONE, "1").output().unwrap();
    let text = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
}

/// Sets the limit of open files; returns the one before.
fn limit_files(most: u64) -> u64 {
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..before }).unwrap();
    before.current.unwrap()
}

fn dialled(at: &Endpoint) -> TcpStream {
    TcpStream::connect(at.address().unwrap()).unwrap()
}

fn reported(world: &mut Sockets) -> Vec<Token> {
    let mut tokens = Vec::new();
    world.ready(&mut tokens).unwrap();
    tokens
}

/// A while in which a listener rests several times.
struct While {
    begun: Instant,
}

impl While {
    fn begins() -> Self {
        Self { begun: Instant::now() }
    }

    /// Whether it goes on: for some rests, and until `woken` is twice at least. What stops a machine ends many rests at once.
    fn goes_on(&self, woken: usize) -> bool {
        let passed = self.begun.elapsed();
        passed < REST * 5 || (woken < 2 && passed < Duration::from_secs(30))
    }

    /// How many rests have passed.
    fn rests(&self) -> usize {
        self.begun.elapsed().as_millis() as usize / REST.as_millis() as usize
    }
}

/// Looks at the world for a while as a shard that sleeps does. Says how often it woke, in how many rests, and whether by the
/// listener.
fn look(world: &mut Sockets) -> (usize, usize, bool) {
    let (this, mut woken, mut listener) = (While::begins(), 0, false);
    while this.goes_on(woken) {
        wait(&world.epoll(), REST * 5).unwrap();
        woken += 1;
        listener |= reported(world).contains(&Token::Listener);
    }
    (woken, this.rests(), listener)
}

/// A listener that rested is reported again; then there is a connection.
fn taken_after_a_rest(world: &mut Sockets) -> bool {
    let end = Instant::now() + Duration::from_secs(30);
    while Instant::now() < end {
        wait(&world.epoll(), Duration::from_secs(1)).unwrap();
        if reported(world).contains(&Token::Listener) {
            return accepted(world).is_some();
        }
    }
    false
}

#[test]
fn without_descriptors_the_queue_drains_and_afterwards_connections_are_taken_again() {
    alone("without_descriptors_the_queue_drains_and_afterwards_connections_are_taken_again", || {
        let (mut world, at) = listening(&any_port());
        let mut waiting: Vec<_> = (0..5).map(|_| dialled(&at)).collect();
        let before = limit_files(64);
        let files: Vec<_> = std::iter::from_fn(|| open_spare().ok()).collect();
        assert_eq!(reported(&mut world), [Token::Listener]);
        for _ in 0..5 {
            assert!(matches!(world.accept(), Accepted::TurnedAway));
        }
        assert!(matches!(world.accept(), Accepted::Nobody));
        assert_eq!(reported(&mut world), [], "a drained queue wakes nobody");
        for stream in &mut waiting {
            assert!(!matches!(stream.read(&mut [0]), Ok(1)), "it is told that nobody is there");
        }
        limit_files(before);
        drop(files);
        let _waiting = dialled(&at);
        assert!(accepted(&mut world).is_some());
    });
}

#[test]
fn without_even_a_spare_descriptor_the_listener_rests_and_comes_back_when_there_is_one() {
    alone("without_even_a_spare_descriptor_the_listener_rests_and_comes_back_when_there_is_one", || {
        let (mut world, at) = listening(&any_port());
        let _waiting = dialled(&at);
        let before = limit_files(0);
        assert!(matches!(world.accept(), Accepted::Failed));
        assert!(matches!(world.accept(), Accepted::Nobody));
        let (woken, rests, listener) = look(&mut world);
        assert!((2..4 * rests).contains(&woken) && !listener, "woken {woken} times in {rests} rests");
        limit_files(before);
        assert!(taken_after_a_rest(&mut world), "the connection has waited");
        assert!(world.acceptor.unwrap().spare.is_some());
    });
}

#[test]
fn an_error_that_would_come_again_does_not_spin_the_shard() {
    let (mut world, _) = listening(&any_port());
    let acceptor = world.acceptor.as_ref().unwrap();
    rustix::net::shutdown(&acceptor.listener, rustix::net::Shutdown::Both).unwrap();
    let (this, mut failed, mut looks) = (While::begins(), 0, 0);
    while this.goes_on(failed) {
        wait(&world.epoll(), REST).unwrap();
        looks += 1;
        if reported(&mut world).contains(&Token::Listener) {
            for _ in 0..64 {
                failed += usize::from(matches!(world.accept(), Accepted::Failed));
            }
        }
    }
    let rests = this.rests();
    assert!(
        (2..2 * rests).contains(&failed) && looks < 8 * rests,
        "{failed} failures in {looks} looks, {rests} rests"
    );
}
