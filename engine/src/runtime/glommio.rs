//! The glommio runtime: a shard is the one task of a glommio executor. This is the one file that names glommio.
//!
//! The executor pins the thread and owns the shard's io_uring. It is not on the path of a request: waking its tasks from
//! another thread costs up to milliseconds on default queues, its channels are slower than our rings. Nor does a shard wait
//! through it: a wake-up by its reactor takes a dozen system calls and as many allocations, 37 µs for a call from rest
//! where one `epoll_wait` takes 25. The executor has nobody else to run, so its task blocks in the shard's one epoll
//! descriptor, as the epoll runtime does.
//!
//! io_uring is refused by the default seccomp profiles of containers and needs locked memory; [`probe`] finds out before the
//! shards start and says what to do, and the engine goes on without glommio.

use std::time::Duration;

use glommio::{GlommioError, LocalExecutorBuilder, Placement};

/// Bytes of registered buffers for each ring. The shard's sockets do not use them, so it is glommio's minimum.
const IO_MEMORY_BYTES: usize = 64 * 1024;
/// Entries of each ring: the shard puts nothing into it.
const RING_DEPTH: usize = 32;

fn builder(cpu: Option<usize>, name: &str) -> LocalExecutorBuilder {
    LocalExecutorBuilder::new(cpu.map_or(Placement::Unbound, Placement::Fixed))
        .name(name)
        .io_memory(IO_MEMORY_BYTES)
        .ring_depth(RING_DEPTH)
        // There is nobody to yield to.
        .preempt_timer(Duration::from_millis(100))
}

/// Whether this process may use io_uring as glommio does; if not, why, and what to do about it.
pub(crate) fn probe() -> Result<(), String> {
    // On a thread of its own: an executor leaves traces in its thread.
    let outcome = std::thread::Builder::new()
        .name("catga-probe".into())
        .spawn(|| std::panic::catch_unwind(|| builder(None, "catga-probe").make().map(drop)))
        .map(std::thread::JoinHandle::join);
    match outcome {
        Ok(Ok(Ok(Ok(())))) => Ok(()),
        Ok(Ok(Ok(Err(error)))) => Err(format!("{error}; {}", remedy(&error))),
        Ok(_) => Err("the probe for io_uring panicked; use the epoll runtime".into()),
        Err(error) => Err(format!("no thread for the probe: {error}")),
    }
}

const LOCKED_MEMORY: &str = "too little locked memory: raise `ulimit -l` (8 MiB and up, or unlimited)";

fn remedy(error: &GlommioError<()>) -> &'static str {
    let code = match error {
        GlommioError::IoError(error) | GlommioError::EnhancedIoError { source: error, .. } => {
            error.raw_os_error()
        }
        _ => None,
    };
    let text = error.to_string();
    // glommio looks at the limit itself before it makes a ring.
    if text.contains("MemLockLimit") {
        return LOCKED_MEMORY;
    }
    // What fails inside the set-up of a ring comes as text, with the number in it.
    match code.or_else(|| os_error(&text)).map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {
            "io_uring is forbidden here: allow io_uring_setup, io_uring_enter and io_uring_register in the container's \
             seccomp profile, and check sysctl kernel.io_uring_disabled"
        }
        Some(rustix::io::Errno::NOSYS) => "this kernel has no io_uring: 5.8 or later is needed",
        Some(rustix::io::Errno::NOMEM) => LOCKED_MEMORY,
        _ => "io_uring is not usable here",
    }
}

/// The number in a text such as `... (os error 1) ...`.
fn os_error(text: &str) -> Option<i32> {
    let (_, rest) = text.split_once("(os error ")?;
    rest.split_once(')')?.0.parse().ok()
}

/// Runs a shard's loop in an executor on the calling thread.
pub(crate) fn run(cpu: usize, name: &str, shard: impl FnOnce()) -> Result<(), String> {
    let executor = builder(Some(cpu), name).make().map_err(|error| error.to_string())?;
    executor.run(async move { shard() });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn each_cause_has_its_remedy_however_it_is_told() {
        let causes = [(1, "seccomp"), (13, "seccomp"), (38, "5.8"), (12, "ulimit -l"), (5, "not usable")];
        for (code, remedy_says) in causes {
            let plain = io::Error::from_raw_os_error(code);
            let told = io::Error::other(format!("failed to create an io_uring: {plain}. See there"));
            for error in [plain, told] {
                let text = remedy(&GlommioError::IoError(error));
                assert!(text.contains(remedy_says), "{code}: {text}");
            }
        }
        let limit = io::Error::other("MemLockLimit(65536/524288)");
        assert!(remedy(&GlommioError::IoError(limit)).contains("ulimit -l"));
        assert_eq!(os_error("no number"), None);
    }
}
