//! The second process of a row: this same program, started as `catga-perf serve KIND ARGUMENTS…`.
//!
//! ```text
//! child  → parent   ready TEXT        once, when it can be connected to; TEXT is usually its address
//! parent → child    usage             any number of times
//! child  → parent   usage CPU_NS ALLOCATIONS OWN_CALLS
//! ```
//!
//! The child's life hangs on its standard input: when the parent closes it, on purpose or by dying in whatever way, a
//! small thread of the child reads the end and ends the process. It has a process group of its own, so that Ctrl-C
//! reaches the parent alone and the parent can finish in order.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::meter::Usage;
use crate::scenario::{Broken, Tried};

/// How long a child may take to end by itself before it is killed.
const ENDING_TIMEOUT: Duration = Duration::from_secs(1);

/// A running second process; dropping it ends it.
pub(crate) struct Peer {
    child: Child,
    /// `None` only while being dropped.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    ready: String,
}

impl Peer {
    /// Starts it and waits until it is ready.
    pub(crate) fn start(kind: &str, arguments: &[String]) -> Result<Self, Broken> {
        Self::start_in(&[], kind, arguments)
    }

    /// As [`start`](Self::start), with these variables in its environment.
    pub(crate) fn start_in(
        environment: &[(&str, &str)],
        kind: &str,
        arguments: &[String],
    ) -> Result<Self, Broken> {
        let program = std::env::current_exe().tried("cannot find this program's own file")?;
        let mut child = Command::new(program)
            .args(["serve", kind])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .process_group(0)
            .spawn()
            .tried("cannot start the scenario's second process")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Broken::Peer("it has no pipes".into()));
        };
        let mut peer =
            Self { child, input: Some(input), output: BufReader::new(output), ready: String::new() };
        peer.ready = peer.line("ready")?;
        Ok(peer)
    }

    /// What it said when it was ready.
    pub(crate) fn ready(&self) -> &str {
        &self.ready
    }

    /// Its running totals.
    pub(crate) fn usage(&mut self) -> Result<Usage, Broken> {
        if let Some(input) = &mut self.input {
            input.write_all(b"usage\n").tried("cannot ask the second process for its usage")?;
        }
        let line = self.line("usage")?;
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        match numbers[..] {
            [cpu_ns, allocations, own_calls] => Ok(Usage { cpu_ns, allocations, own_calls }),
            _ => Err(Broken::Peer(format!("it answered 'usage {line}'"))),
        }
    }

    /// The rest of the next line, which must begin with `word`.
    fn line(&mut self, word: &str) -> Result<String, Broken> {
        let mut line = String::new();
        self.output.read_line(&mut line).tried("cannot read from the second process")?;
        match line.trim_end().strip_prefix(word) {
            Some(rest) => Ok(rest.trim_start().to_owned()),
            None if line.is_empty() => Err(Broken::Peer("it ended early; its own message is above".into())),
            None => Err(Broken::Peer(format!("it said '{}'", line.trim_end()))),
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.input = None;
        let end = Instant::now() + ENDING_TIMEOUT;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > end {
                // An error means that it is gone by now.
                let _ = self.child.kill();
                let _ = self.child.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// In the child: says that it is ready, then answers the parent from a thread of its own until the parent goes.
pub(crate) fn stand_by(ready: &str) -> std::io::Result<()> {
    let mut output = std::io::stdout();
    writeln!(output, "ready {ready}")?;
    output.flush()?;
    std::thread::Builder::new().name("peer-control".into()).spawn(|| {
        let mut line = String::new();
        let mut input = std::io::stdin().lock();
        while matches!(input.read_line(&mut line), Ok(bytes) if bytes > 0) {
            let Usage { cpu_ns, allocations, own_calls } = Usage::here();
            let mut output = std::io::stdout();
            let told =
                writeln!(output, "usage {cpu_ns} {allocations} {own_calls}").and_then(|()| output.flush());
            if told.is_err() {
                break;
            }
            line.clear();
        }
        std::process::exit(0);
    })?;
    Ok(())
}
