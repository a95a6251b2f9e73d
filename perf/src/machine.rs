//! The machine on the record: a figure without its machine is a rumour.
//!
//! Also the two cores that the floor's loops are pinned to: the first this process may use, and the next one that is
//! not its hyperthread sibling, since siblings share what the floor measures.

use std::fs;
use std::process::Command;
use std::thread;

use core_affinity::CoreId;

use crate::json::Object;
use crate::scenario::{Broken, Tried};

/// What is said of the machine in every row.
pub(crate) struct Machine {
    cpu: String,
    cores: usize,
    kernel: String,
    commit: String,
    compiler: String,
    date: String,
    cores_used: Cores,
}

/// Where the floor's two loops run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cores {
    /// Of the loop that sends.
    pub(crate) caller: usize,
    /// Of the loop that answers; the same one on a machine with a single core.
    pub(crate) server: usize,
}

impl Machine {
    /// Reads it.
    pub(crate) fn here() -> Self {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            cpu: cpu_model(&info),
            cores: allowed_cores().len(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            commit: commit(),
            compiler: first_line("rustc", &["--version"]),
            date: first_line("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]),
            cores_used: Cores::choose(),
        }
    }

    /// What floors are on record for.
    pub(crate) fn model(&self) -> String {
        format!("{}, {} cores", self.cpu, self.cores)
    }

    /// When the run began, in UTC: `2026-03-01T12:00:00Z`.
    pub(crate) fn date(&self) -> &str {
        &self.date
    }

    /// For the top of a run.
    pub(crate) fn lines(&self) -> Vec<String> {
        let Cores { caller, server } = self.cores_used;
        let mut lines = vec![
            format!("machine  {}, Linux {}", self.model(), self.kernel),
            format!(
                "run      {}, commit {}, {}; floors on cores {caller} and {server}",
                self.date, self.commit, self.compiler
            ),
        ];
        if caller == server {
            lines.push(
                "warning  one core only: spinning loops take turns on it, and the figures prove nothing"
                    .into(),
            );
        }
        lines
    }

    /// For the rows.
    pub(crate) fn json(&self) -> Object {
        let mut object = Object::new();
        object.text("cpu", &self.cpu).number("cores", Some(self.cores as f64)).text("kernel", &self.kernel);
        object.text("placement", &format!("{},{}", self.cores_used.caller, self.cores_used.server));
        object.text("version", env!("CARGO_PKG_VERSION")).text("commit", &self.commit);
        object.text("compiler", &self.compiler).text("date", &self.date);
        object
    }
}

impl Cores {
    /// The two cores for the floor's loops.
    pub(crate) fn choose() -> Self {
        let cores = allowed_cores();
        let caller = cores.first().copied().unwrap_or(0);
        let siblings = siblings(caller);
        let others = || cores.iter().copied().filter(|core| *core != caller);
        let server =
            others().find(|core| !siblings.contains(core)).or_else(|| others().next()).unwrap_or(caller);
        Self { caller, server }
    }
}

/// Pins the calling thread.
pub(crate) fn pin(core: usize) -> Result<(), Broken> {
    if core_affinity::set_for_current(CoreId { id: core }) {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error()).tried("cannot pin a thread to its core")
    }
}

/// Runs one loop in a thread of its own on `core`; the caller's thread, from which other threads and processes inherit
/// their affinity, stays free.
pub(crate) fn on_core<T: Send>(
    core: usize,
    name: &str,
    work: impl FnOnce() -> Result<T, Broken> + Send,
) -> Result<T, Broken> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.into()).spawn_scoped(scope, || {
            pin(core)?;
            work()
        });
        match thread.map(thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(source) => Err(Broken::System { what: "cannot start a thread", source }),
        }
    })
}

fn allowed_cores() -> Vec<usize> {
    let mut cores: Vec<_> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cores.sort_unstable();
    cores
}

/// The hardware threads of this core, itself included.
fn siblings(core: usize) -> Vec<usize> {
    let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
    core_list(fs::read_to_string(path).unwrap_or_default().trim())
}

/// Reads the kernel's lists: `0-1,4`.
fn core_list(text: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    };
    text.split(',').filter_map(range).flatten().collect()
}

/// Model name, and family and model where virtual machines hide the name's details.
fn cpu_model(info: &str) -> String {
    let field = |name: &str| {
        let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    match (field("model name"), field("cpu family"), field("model")) {
        (Some(name), Some(family), Some(model)) => format!("{name} (family {family} model {model})"),
        (Some(name), ..) => name,
        _ => format!("unknown {} CPU", std::env::consts::ARCH),
    }
}

/// The commit that was measured, and whether the tree differed from it.
fn commit() -> String {
    let git =
        |arguments: &[&str]| first_line("git", &[&["-C", env!("CARGO_MANIFEST_DIR")], arguments].concat());
    let commit = git(&["rev-parse", "--short=12", "--verify", "HEAD"]);
    let changed = commit != UNKNOWN && git(&["status", "--porcelain", "--untracked-files=no"]) != UNKNOWN;
    if changed { format!("{commit}+changes") } else { commit }
}

const UNKNOWN: &str = "unknown";

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().ok().filter(|output| output.status.success());
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().map_or_else(|| UNKNOWN.to_owned(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_lists_of_cores_are_read() {
        assert_eq!(core_list("0-2,5"), [0, 1, 2, 5]);
        assert_eq!(core_list("3"), [3]);
        assert!(core_list("").is_empty());
    }

    #[test]
    fn a_cpu_is_named_with_what_there_is() {
        let info = "processor : 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\n";
        assert_eq!(cpu_model(info), "AMD EPYC (family 25 model 17)");
        assert!(cpu_model("").starts_with("unknown"));
    }
}
