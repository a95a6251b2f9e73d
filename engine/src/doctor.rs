//! The doctor: what of this machine helps or hinders an engine, each finding with its cure.
//!
//! A problem is what would keep an engine from running. A warning is what makes it slower or smaller than it could be:
//! an engine runs all the same, so nobody is told until someone asks. This is the place to ask, before the first load
//! does: [`doctor`], or `cargo run -p catga --example doctor`.
//!
//! Each check is a function of what was read, so that it is tested on machines that we do not have.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Resource, getrlimit};

use crate::limits::{LANES_MAX, SHARDS_MAX};
use crate::placement::{Machine, Placement, Wish};
use crate::runtime::sockets::BACKLOG;
use crate::time::Time;

/// Descriptors of a shard without lanes: its epoll and eventfd, and the rings and eventfd of its runtime.
const FILES_PER_SHARD: u64 = 6;
/// The least that a process has open for itself.
const FILES_OF_PROCESS: u64 = 4;
/// Locked memory that is enough for the rings of many shards.
const LOCKED_BYTES_MIN: u64 = 8 * 1024 * 1024;
/// A read of the clock that takes longer is a system call.
const CLOCK_READ_MAX: Duration = Duration::from_nanos(250);
/// The first kernel whose io_uring has all that the shards need.
const KERNEL_MIN: (u32, u32) = (5, 8);

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Status {
    /// As it should be.
    Ok,
    /// An engine runs, but slower or smaller than it could.
    Warning,
    /// An engine cannot run.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// What was looked at.
    pub name: &'static str,
    /// How it is.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it, in one sentence; `None` if there is nothing to do.
    pub cure: Option<String>,
}

impl Finding {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, status: Status::Ok, found: found.into(), cure: None }
    }

    fn warning(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Warning, found: found.into(), cure: Some(cure.into()) }
    }

    fn problem(name: &'static str, found: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { name, status: Status::Problem, found: found.into(), cure: Some(cure.into()) }
    }
}

/// All findings. Its `Display` is a list for a terminal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    findings: Vec<Finding>,
}

impl Report {
    /// Each thing that was looked at.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// The worst of all findings.
    #[must_use]
    pub fn status(&self) -> Status {
        self.findings.iter().map(|finding| finding.status).max().unwrap_or(Status::Ok)
    }

    /// Whether an engine can run here: there is no [`Status::Problem`].
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.status() < Status::Problem
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let status = match finding.status {
                Status::Ok => "ok",
                Status::Warning => "warning",
                Status::Problem => "PROBLEM",
            };
            writeln!(f, "{status:<8} {:<14} {}", finding.name, finding.found)?;
            if let Some(cure) = &finding.cure {
                writeln!(f, "{:<23} -> {cure}", "")?;
            }
        }
        f.write_str(if self.can_run() { "an engine can run here" } else { "an engine cannot run here" })
    }
}

/// Looks at this machine, as this process sees it. Takes some milliseconds and changes nothing.
#[must_use]
pub fn doctor() -> Report {
    let (root, machine) = (Path::new("/"), Machine::here());
    let shards = machine.cores.len().clamp(1, SHARDS_MAX) as u64;
    let sysctl = |path: &str| fs::read_to_string(root.join("proc/sys").join(path)).ok();
    let clock = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    let path = std::env::var_os("PATH").unwrap_or_default();
    let perf = std::env::split_paths(&path).any(|folder| folder.join("perf").is_file());
    let findings = vec![
        io_uring(crate::runtime::io_uring_usable()),
        kernel(sysctl("kernel/osrelease").as_deref()),
        cores(&machine),
        quota(&machine),
        locked_memory(getrlimit(Resource::Memlock).current),
        open_files(getrlimit(Resource::Nofile).current, shards),
        clock_source(fs::read_to_string(root.join(clock)).ok().as_deref(), clock_read()),
        backlog(sysctl("net/core/somaxconn").as_deref()),
        flame_graphs(sysctl("kernel/perf_event_paranoid").as_deref(), perf),
    ];
    Report { findings }
}

fn io_uring(usable: Result<(), String>) -> Finding {
    match usable {
        Ok(()) => Finding::ok("io_uring", "usable"),
        Err(reason) => {
            let (cause, cure) = reason.rsplit_once("; ").unwrap_or((&reason, "shards wait in epoll"));
            Finding::warning("io_uring", format!("not usable, shards run without glommio: {cause}"), cure)
        }
    }
}

fn kernel(release: Option<&str>) -> Finding {
    const NAME: &str = "kernel";
    let version = release.and_then(|release| {
        let mut numbers = release.trim().split(|other: char| !other.is_ascii_digit());
        Some((numbers.next()?.parse::<u32>().ok()?, numbers.next()?.parse::<u32>().ok()?))
    });
    let release = release.map_or("unknown", str::trim);
    match version {
        Some(version) if version >= KERNEL_MIN => Finding::ok(NAME, format!("Linux {release}")),
        Some(_) => Finding::warning(
            NAME,
            format!("Linux {release}, too old for io_uring as it is used here"),
            "use Linux 5.8 or later; until then shards wait in epoll",
        ),
        None => Finding::warning(
            NAME,
            format!("the release is not to be read: {release:?}"),
            "mount /proc, and check with `uname -r` that it is 5.8 or later",
        ),
    }
}

fn cores(machine: &Machine) -> Finding {
    const NAME: &str = "cores";
    let distinct = |of: &dyn Fn(&crate::placement::topology::Core) -> Option<usize>| {
        let mut all: Vec<_> = machine.cores.iter().filter_map(of).collect();
        all.sort_unstable();
        all.dedup();
        all.len()
    };
    let (usable, physical) = (machine.cores.len(), distinct(&|core| Some(core.physical)));
    let caches = match distinct(&|core| core.l3) {
        0 => "the machine does not tell of level 3 caches".to_owned(),
        caches => format!("{caches} level 3 cache(s)"),
    };
    let found = format!("{usable} usable, {physical} physical, {caches}");
    if usable == 0 {
        let cure = "look at the affinity mask with `taskset -p $$`; it has to have a core";
        Finding::problem(NAME, "this process may run on no core", cure)
    } else if physical < usable {
        let cure = format!(
            "hyperthreads share a core: for even latency use `.shards({physical})`, which takes one of each core"
        );
        Finding { cure: Some(cure), ..Finding::ok(NAME, found) }
    } else {
        Finding::ok(NAME, found)
    }
}

fn quota(machine: &Machine) -> Finding {
    const NAME: &str = "CPU quota";
    let shards = Placement::choose(&Wish::default(), machine).map_or(0, |placement| placement.shards().len());
    match &machine.quota {
        None => Finding::ok(NAME, format!("none: {shards} shard(s) by default")),
        Some(quota) if quota.whole_cpus() >= machine.cores.len() && quota.cpus >= 1.0 => {
            Finding::ok(NAME, format!("{quota}, no less than the cores: {shards} shard(s) by default"))
        }
        Some(quota) => Finding::warning(
            NAME,
            format!("{quota}, less than the {} cores: {shards} shard(s) by default", machine.cores.len()),
            "give the container cores of its own instead of a share of time (`docker run --cpuset-cpus`, or the static \
             CPU manager of Kubernetes), and do not spin under a quota",
        ),
    }
}

fn locked_memory(limit: Option<u64>) -> Finding {
    const NAME: &str = "locked memory";
    match limit {
        None => Finding::ok(NAME, "no limit"),
        Some(bytes) if bytes >= LOCKED_BYTES_MIN => Finding::ok(NAME, format!("{} KiB", bytes / 1024)),
        Some(bytes) => Finding::warning(
            NAME,
            format!("{} KiB: too little for the rings of several shards", bytes / 1024),
            "raise it: `ulimit -l 8192`, LimitMEMLOCK=8M in a systemd unit, or `docker run --ulimit memlock=8388608`",
        ),
    }
}

fn open_files(limit: Option<u64>, shards: u64) -> Finding {
    const NAME: &str = "open files";
    let cure = "raise it: `ulimit -n 65536`, LimitNOFILE=65536 in a systemd unit, or `docker run --ulimit nofile=65536`";
    let least = FILES_OF_PROCESS + shards * FILES_PER_SHARD;
    match limit {
        None => Finding::ok(NAME, "no limit"),
        Some(files) if files < least => {
            Finding::problem(NAME, format!("{files}, but {shards} shard(s) need {least}"), cure)
        }
        Some(files) if files < least + LANES_MAX as u64 => {
            let lanes = files - least;
            Finding::warning(NAME, format!("{files}: room for {lanes} lanes to other nodes"), cure)
        }
        Some(files) => Finding::ok(NAME, files.to_string()),
    }
}

fn clock_source(current: Option<&str>, read: Duration) -> Finding {
    const NAME: &str = "clock";
    let found = format!("{}, a read takes {read:?}", current.map_or("unknown", str::trim));
    if read <= CLOCK_READ_MAX {
        return Finding::ok(NAME, found);
    }
    Finding::warning(
        NAME,
        format!("{found}: slow, and each turn of a shard reads it"),
        "use the tsc if it is among /sys/devices/system/clocksource/clocksource0/available_clocksource: write it into \
         current_clocksource beside it, or boot with clocksource=tsc",
    )
}

/// How long a read of the clock takes: the best of some rounds, for others want the core too.
fn clock_read() -> Duration {
    const READS: u32 = 1000;
    let round = |_| {
        let start = Time::read();
        (0..READS).for_each(|_| {
            std::hint::black_box(Time::read());
        });
        Time::read().since(start) / READS
    };
    (0..10).map(round).min().unwrap_or_default()
}

fn backlog(somaxconn: Option<&str>) -> Finding {
    const NAME: &str = "backlog";
    match somaxconn.and_then(|text| text.trim().parse::<i32>().ok()) {
        Some(most) if most >= BACKLOG => Finding::ok(NAME, format!("net.core.somaxconn is {most}")),
        Some(most) => Finding::warning(
            NAME,
            format!("net.core.somaxconn is {most}: a node that many dial at once turns some of them away"),
            format!("`sysctl -w net.core.somaxconn={BACKLOG}`, and the same in /etc/sysctl.d"),
        ),
        None => Finding::warning(
            NAME,
            "net.core.somaxconn is not to be read",
            format!("check on the host that it is at least {BACKLOG}"),
        ),
    }
}

fn flame_graphs(paranoid: Option<&str>, perf: bool) -> Finding {
    const NAME: &str = "flame graphs";
    if !perf {
        let cure = "install the `perf` of this kernel (package linux-perf, linux-tools or perf)";
        return Finding::warning(NAME, "there is no `perf` on the PATH", cure);
    }
    match paranoid.and_then(|text| text.trim().parse::<i32>().ok()) {
        Some(level) if level <= 1 => {
            Finding::ok(NAME, format!("perf, kernel.perf_event_paranoid is {level}"))
        }
        Some(2) => Finding::ok(NAME, "perf, without the kernel's part: kernel.perf_event_paranoid is 2"),
        Some(level) => Finding::warning(
            NAME,
            format!("kernel.perf_event_paranoid is {level}: perf is for root only"),
            "`sysctl -w kernel.perf_event_paranoid=1`",
        ),
        None => Finding::warning(
            NAME,
            "kernel.perf_event_paranoid is not to be read: this kernel may have no perf events",
            "record on a machine or in a container that has them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placement::quota::Quota;
    use crate::placement::topology::Core;

    fn machine(cores: usize, threads: usize, cpus: Option<f64>) -> Machine {
        let core = |id| Core { id, physical: id / threads * threads, l3: Some(0) };
        let quota = cpus.map(|cpus| Quota { cpus, file: "/sys/fs/cgroup/cpu.max".into() });
        Machine { cores: (0..cores).map(core).collect(), quota }
    }

    #[track_caller]
    fn assert_finds(finding: &Finding, status: Status, says: &str) {
        assert_eq!(finding.status, status, "{finding:?}");
        let text = format!("{} -> {}", finding.found, finding.cure.as_deref().unwrap_or(""));
        assert!(text.contains(says), "{says:?} in {text:?}");
        assert!(status == Status::Ok || finding.cure.is_some(), "a cure for {finding:?}");
    }

    #[test]
    fn without_io_uring_it_says_why_and_what_to_do_and_is_no_problem() {
        assert_finds(&io_uring(Ok(())), Status::Ok, "usable");
        let forbidden = io_uring(Err("Operation not permitted; allow io_uring_setup".into()));
        assert_finds(&forbidden, Status::Warning, "glommio: Operation not permitted -> allow io_uring_setup");
    }

    #[test]
    fn kernels_are_told_apart_by_number() {
        for good in ["6.18.44-fc\n", "5.8.0", "5.10", "10.0-rc1"] {
            assert_finds(&kernel(Some(good)), Status::Ok, good.trim());
        }
        for old in ["5.7.19", "4.18.0-553.el8"] {
            assert_finds(&kernel(Some(old)), Status::Warning, "5.8 or later");
        }
        for garbage in [None, Some(""), Some("garbage"), Some("7")] {
            assert_finds(&kernel(garbage), Status::Warning, "not to be read");
        }
    }

    #[test]
    fn no_core_is_a_problem_and_hyperthreads_are_named() {
        assert_finds(&cores(&machine(0, 1, None)), Status::Problem, "taskset");
        assert_finds(&cores(&machine(4, 1, None)), Status::Ok, "4 usable, 4 physical, 1 level 3");
        assert_finds(&cores(&machine(4, 2, None)), Status::Ok, "`.shards(2)`");
    }

    #[test]
    fn a_quota_below_the_cores_is_a_warning() {
        assert_finds(&quota(&machine(4, 1, None)), Status::Ok, "4 shard(s)");
        assert_finds(&quota(&machine(4, 1, Some(4.0))), Status::Ok, "4 shard(s)");
        assert_finds(&quota(&machine(4, 1, Some(1.5))), Status::Warning, "1 shard(s)");
        assert_finds(&quota(&machine(1, 1, Some(0.5))), Status::Warning, "do not spin");
    }

    #[test]
    fn limits_that_are_too_low_are_found() {
        assert_finds(&locked_memory(None), Status::Ok, "no limit");
        assert_finds(&locked_memory(Some(8 << 20)), Status::Ok, "8192 KiB");
        assert_finds(&locked_memory(Some(64 << 10)), Status::Warning, "ulimit -l");
        assert_finds(&open_files(None, 2), Status::Ok, "no limit");
        assert_finds(&open_files(Some(65_536), 2), Status::Ok, "65536");
        assert_finds(&open_files(Some(1024), 2), Status::Warning, "room for 1008 lanes");
        assert_finds(&open_files(Some(15), 2), Status::Problem, "need 16");
    }

    #[test]
    fn a_clock_that_takes_a_system_call_is_a_warning() {
        assert_finds(
            &clock_source(Some("tsc\n"), Duration::from_nanos(25)),
            Status::Ok,
            "tsc, a read takes 25ns",
        );
        assert_finds(
            &clock_source(Some("hpet\n"), Duration::from_micros(1)),
            Status::Warning,
            "clocksource=tsc",
        );
        assert_finds(&clock_source(None, Duration::from_nanos(30)), Status::Ok, "unknown");
    }

    #[test]
    fn a_short_backlog_and_missing_perf_are_warnings() {
        assert_finds(&backlog(Some("4096\n")), Status::Ok, "4096");
        assert_finds(&backlog(Some("128\n")), Status::Warning, "somaxconn=1024");
        assert_finds(&backlog(Some("many")), Status::Warning, "not to be read");
        assert_finds(&flame_graphs(Some("2\n"), false), Status::Warning, "install");
        assert_finds(&flame_graphs(Some("-1\n"), true), Status::Ok, "-1");
        assert_finds(&flame_graphs(Some("2\n"), true), Status::Ok, "without the kernel's part");
        assert_finds(&flame_graphs(Some("4\n"), true), Status::Warning, "paranoid=1");
        assert_finds(&flame_graphs(None, true), Status::Warning, "not to be read");
    }

    #[test]
    fn only_a_problem_says_that_an_engine_cannot_run() {
        let warned = Report { findings: vec![Finding::ok("a", "b"), Finding::warning("c", "d", "e")] };
        assert!(warned.can_run());
        assert_eq!(
            warned.to_string(),
            "ok       a              b\nwarning  c              d\n                        -> e\nan engine can run here"
        );
        let ill = Report { findings: vec![Finding::problem("a", "b", "c"), Finding::ok("d", "e")] };
        assert!(!ill.can_run() && ill.to_string().ends_with("an engine cannot run here"));
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let report = doctor();
        assert_eq!(report.findings().len(), 9);
        assert!(report.can_run(), "the tests run engines here, so: {report}");
    }
}
