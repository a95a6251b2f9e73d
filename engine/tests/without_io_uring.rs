//! The engine where io_uring is forbidden, as in a default container: it says why, waits in epoll, and does all the same.
//!
//! The first test forbids the three io_uring calls to its own thread and starts this binary again: a filter is inherited
//! and cannot be taken back. In the child all other tests run, the suites of `calls` and `lanes` among them.

#![allow(clippy::duplicate_mod, reason = "the suites in here bring what they share, each for itself")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

#[path = "calls.rs"]
mod calls;
#[path = "lanes.rs"]
mod lanes;

use std::collections::BTreeMap;
use std::process::Command;

use catga::{Engine, Runtime, RuntimeKind, StartError};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

/// Set in the process that is not allowed to use io_uring.
const FORBIDDEN: &str = "CATGA_TEST_WITHOUT_IO_URING";
/// `io_uring_setup`, `io_uring_enter`, `io_uring_register`: the same numbers on every architecture.
const IO_URING: [i64; 3] = [425, 426, 427];

fn forbid_io_uring() {
    let filter = SeccompFilter::new(
        IO_URING.map(|call| (call, Vec::new())).into_iter().collect::<BTreeMap<_, _>>(),
        SeccompAction::Allow,
        SeccompAction::Errno(1), // EPERM, as container runtimes answer
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

fn is_forbidden() -> bool {
    std::env::var_os(FORBIDDEN).is_some()
}

#[test]
fn the_suite_passes_where_io_uring_is_forbidden() {
    if is_forbidden() {
        return;
    }
    forbid_io_uring(); // this thread, and the child
    let child = Command::new(std::env::current_exe().unwrap()).env(FORBIDDEN, "1").output().unwrap();
    let text = [child.stdout, child.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(child.status.success(), "{text}");
    assert!(text.contains("the_engine_says_why_it_waits_in_epoll ... ok"), "{text}");
}

#[test]
fn the_engine_says_why_it_waits_in_epoll() {
    if !is_forbidden() || cfg!(not(feature = "glommio")) {
        return;
    }
    let engine = Engine::builder().shards(1).start().unwrap();
    assert_eq!(engine.runtime(), RuntimeKind::Epoll);
    let reason = engine.fallback().unwrap();
    assert!(reason.contains("io_uring is forbidden here") && reason.contains("seccomp"), "{reason}");
    let insists = Engine::builder().shards(1).runtime(Runtime::Glommio).start();
    assert!(matches!(insists.unwrap_err(), StartError::Runtime(reason) if reason.contains("seccomp")));
    // Who asked for epoll has not fallen back to it.
    let chosen = Engine::builder().shards(1).runtime(Runtime::Epoll).start().unwrap();
    assert_eq!((chosen.runtime(), chosen.fallback()), (RuntimeKind::Epoll, None));
}
