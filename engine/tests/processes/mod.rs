//! Nodes that are processes of their own, so that they can be killed, frozen and started again under load.
//!
//! Each process is this test binary, started again with the words of a command line in the environment: it then is the
//! example `cluster_desk`, as a user would start it. What it prints says when it listens and what it did; nothing here waits
//! for a time to pass. Processes end with whoever holds them: when they are dropped, and when the test's process dies.
//!
//! A suite that uses this has the modules `cluster_desk` and `common` beside it, and a test that calls [`be_the_example`].
//!
//! The caller is a node in the test's own process, on a thread that keeps an account of every call.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal};

use crate::cluster_desk;
use crate::cluster_desk::load::{Plan, Tally};
use crate::common::{Reserved, eventually};

/// Set in a process that is the example: the words of its command line, with spaces between them.
const WORDS: &str = "CATGA_TEST_PROCESS";
/// The test in which such a process starts.
const ENTRY: &str = "in_a_process_of_its_own_this_binary_is_the_example";
/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

/// In a process that is the example: does what it is told. In the test's own process: nothing.
pub(crate) fn be_the_example() {
    let Ok(words) = std::env::var(WORDS) else { return };
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    println!(); // ends what the test harness has begun to print
    cluster_desk::command(words.split(' ').map(str::to_owned)).unwrap();
}

/// A process of the example.
pub(crate) struct Process {
    child: Child,
    lines: mpsc::Receiver<String>,
}

impl Process {
    pub(crate) fn start(words: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", ENTRY, "--nocapture"])
            .env(WORDS, words)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Reads to the end, so that no process ever waits for its output to be read.
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok());
        });
        Self { child, lines }
    }

    /// Waits for a line that begins like this, and returns the rest of it.
    #[track_caller]
    pub(crate) fn says(&self, beginning: &str) -> String {
        let mut seen = Vec::new();
        loop {
            match self.lines.recv_timeout(LONG) {
                Ok(line) => match line.strip_prefix(beginning) {
                    Some(rest) => return rest.to_owned(),
                    None => seen.push(line),
                },
                Err(error) => panic!("`{beginning}` was never said ({error}), but: {seen:#?}"),
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it as it stands, and returns when it does.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
        let stat = format!("/proc/{}/stat", self.child.id());
        // The state follows the name, which is in parentheses.
        eventually("the process is frozen", || {
            std::fs::read_to_string(&stat).unwrap().rsplit_once(") ").unwrap().1.starts_with('T')
        });
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it without a word, and returns when it is gone.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has ended is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Desks by id, each a process.
pub(crate) struct Cluster {
    /// As a list of nodes has them: `id=address:port`.
    nodes: Vec<String>,
    _ports: Vec<Reserved>,
    processes: BTreeMap<&'static str, Process>,
}

impl Cluster {
    /// Starts so many desks on free ports, and waits until they listen.
    pub(crate) fn of<const N: usize>(ids: [&'static str; N]) -> Self {
        let ports: Vec<_> = ids.iter().map(|_| Reserved::new()).collect();
        let name = |(id, port): (&&str, &Reserved)| format!("{id}={}", port.endpoint);
        let nodes = ids.iter().zip(&ports).map(name).collect();
        let mut cluster = Self { nodes, _ports: ports, processes: BTreeMap::new() };
        ids.into_iter().for_each(|id| cluster.start(id));
        cluster
    }

    /// Starts a desk on the port that the list has for it, and waits until it listens.
    pub(crate) fn start(&mut self, id: &'static str) {
        let endpoint = self.nodes.iter().find_map(|node| node.strip_prefix(&format!("{id}="))).unwrap();
        let process =
            Process::start(&format!("node --id {id} --listen {endpoint} --nodes {}", self.nodes.join(",")));
        process.says(&format!("node {id} listens"));
        self.processes.insert(id, process);
    }

    pub(crate) fn node(&mut self, id: &str) -> &mut Process {
        self.processes.get_mut(id).unwrap()
    }

    /// Ends a desk in order, and returns how many orders it says that it took.
    #[track_caller]
    pub(crate) fn end(&mut self, id: &str) -> u64 {
        let mut process = self.processes.remove(id).unwrap();
        process.signal(Signal::TERM);
        let says = process.says(&format!("node {id} took "));
        assert!(process.child.wait().unwrap().success(), "node {id} {says}");
        says.split(' ').next().unwrap().parse().unwrap()
    }
}

/// A load on a cluster, from the test's own process, until it is ended. Each call may take `within`.
pub(crate) struct Load {
    tally: Arc<Mutex<Tally>>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<Tally>>,
}

impl Load {
    pub(crate) fn on(cluster: &Cluster, rate: u32, within: Duration) -> Self {
        let engine = cluster_desk::caller("load", &cluster.nodes).unwrap();
        let look = Duration::from_millis(20);
        let plan = Plan { name: "test".into(), rate, within, orders: u64::MAX, look };
        let (tally, ending) = <(Arc<Mutex<Tally>>, Arc<AtomicBool>)>::default();
        let (shared, end) = (tally.clone(), ending.clone());
        let thread = std::thread::spawn(move || {
            cluster_desk::load::run(&engine.client(), &plan, |since| {
                shared.lock().unwrap().add(since);
                !end.load(Ordering::Relaxed)
            })
        });
        Self { tally, ending, thread: Some(thread) }
    }

    /// What has happened so far.
    pub(crate) fn tally(&self) -> Tally {
        self.tally.lock().unwrap().clone()
    }

    /// Waits until something is true of what has happened so far.
    #[track_caller]
    pub(crate) fn until(&self, what: &str, mut condition: impl FnMut(&Tally) -> bool) {
        eventually(what, || condition(&self.tally()));
    }

    /// Waits until each of `desks` has given so many replies more than now.
    #[track_caller]
    pub(crate) fn until_replies_of(&self, desks: &[&str], more: u64) {
        let before = self.tally();
        self.until(&format!("{more} replies more of each of {desks:?}"), |tally| {
            desks.iter().all(|desk| tally.of_desk(desk) >= before.of_desk(desk) + more)
        });
    }

    /// Offers no more, waits for the last outcome, and returns the account.
    pub(crate) fn end(mut self) -> Tally {
        self.ending.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Of a test that has failed: its thread ends by itself, soon.
        self.ending.store(true, Ordering::Relaxed);
    }
}
