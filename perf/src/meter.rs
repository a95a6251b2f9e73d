//! What a round spends besides time: CPU, allocations and system calls, of this process and of its peers.
//!
//! - **CPU** is the process's own clock (`CLOCK_PROCESS_CPUTIME_ID`, all threads, nanoseconds), the same account that
//!   `getrusage` reads.
//! - **Allocations** are counted by the global allocator (`alloc.rs`).
//! - **System calls** are counted by the kernel in the counting round (`tracepoint.rs`); where that is not allowed, the
//!   floor's loops count their own reads and writes, and rows of the engine have none.
//!
//! A [`Window`] is opened between warm-up and measuring, while the loops are quiet: asking a peer takes a pipe and a
//! thread switch, which would otherwise show in the latencies.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use crate::alloc::{ALLOCATIONS, CALLS};
use crate::peer::Peer;
use crate::scenario::{Broken, Round, Tried};
use crate::tracepoint::{Kernel, Reading};

/// Running totals of one process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU time of all threads.
    pub(crate) cpu_ns: u64,
    /// Allocations.
    pub(crate) allocations: u64,
    /// System calls that loops counted themselves.
    pub(crate) own_calls: u64,
}

impl Usage {
    /// Of this process, now.
    pub(crate) fn here() -> Self {
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu_ns = cpu.tv_sec as u64 * 1_000_000_000 + cpu.tv_nsec as u64;
        Self { cpu_ns, allocations: ALLOCATIONS.total(), own_calls: CALLS.total() }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            cpu_ns: self.cpu_ns + other.cpu_ns,
            allocations: self.allocations + other.allocations,
            own_calls: self.own_calls + other.own_calls,
        }
    }
}

/// What the measured part of a round cost, over all its processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Spent {
    /// CPU time.
    pub(crate) cpu: Duration,
    /// Allocations.
    pub(crate) allocations: u64,
    /// System calls that loops counted themselves; 0 where nobody counts.
    pub(crate) own_calls: u64,
    /// The kernel's count, in the counting round.
    pub(crate) kernel: Option<Reading>,
}

/// From the end of the warm-up to the last outcome.
pub(crate) struct Window<'a> {
    peers: &'a mut [Peer],
    kernel: Option<&'a Kernel>,
    before: Usage,
    kernel_before: Reading,
}

impl<'a> Window<'a> {
    /// Opens it; the loops must be quiet.
    pub(crate) fn open(round: &Round<'a>, peers: &'a mut [Peer]) -> Result<Self, Broken> {
        // This process last, and first when closing: asking the others is not part of the round.
        let others = total(peers)?;
        let before = others.plus(Usage::here());
        let kernel_before = read(round.kernel)?.unwrap_or_default();
        Ok(Self { peers, kernel: round.kernel, before, kernel_before })
    }

    /// Closes it; the loops must be quiet.
    pub(crate) fn close(self) -> Result<Spent, Broken> {
        let kernel = read(self.kernel)?.map(|now| Reading {
            calls: now.calls - self.kernel_before.calls,
            futexes: now.futexes - self.kernel_before.futexes,
        });
        let here = Usage::here();
        let after = here.plus(total(self.peers)?);
        Ok(Spent {
            cpu: Duration::from_nanos(after.cpu_ns - self.before.cpu_ns),
            allocations: after.allocations - self.before.allocations,
            own_calls: after.own_calls - self.before.own_calls,
            kernel,
        })
    }
}

fn read(kernel: Option<&Kernel>) -> Result<Option<Reading>, Broken> {
    kernel.map(Kernel::read).transpose().tried("cannot read the kernel's count of system calls")
}

/// Of all other processes.
fn total(peers: &mut [Peer]) -> Result<Usage, Broken> {
    peers.iter_mut().try_fold(Usage::default(), |sum, peer| Ok(sum.plus(peer.usage()?)))
}
