#![allow(unsafe_code)] // One system call that no safe crate offers.

//! The kernel's own count of system calls: of every thread and process that the run starts, whatever code makes them
//! (io_uring and futex calls included), which a count inside the program cannot honestly give.
//!
//! Two counters on tracepoints, inherited by all that is started after them. They slow each system call by a little, so
//! they are open only in a *counting round* after the timed ones, and only where the kernel allows it: as root (or with
//! `kernel.perf_event_paranoid = -1`) and with tracefs mounted. Elsewhere the rows say `null`, or give the floor's own
//! count; `syscalls_counted_by` tells which.

use std::fs::{self, File};
use std::io::{Error, Read, Result};
use std::os::fd::{FromRawFd, RawFd};

const EVENTS: &str = "/sys/kernel/tracing/events";

/// Both counters, running.
pub(crate) struct Kernel {
    calls: File,
    futexes: File,
}

/// Readings of both at one time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// System calls of all kinds.
    pub(crate) calls: u64,
    /// Of these, futex calls.
    pub(crate) futexes: u64,
}

impl Kernel {
    /// Starts counting for the calling thread and for what it starts from now on.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            calls: open_counter("raw_syscalls/sys_enter")?,
            futexes: open_counter("syscalls/sys_enter_futex")?,
        })
    }

    /// The counts so far.
    pub(crate) fn read(&self) -> Result<Reading> {
        Ok(Reading { calls: read_counter(&self.calls)?, futexes: read_counter(&self.futexes)? })
    }
}

fn read_counter(mut counter: &File) -> Result<u64> {
    let mut bytes = [0; 8];
    counter.read_exact(&mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// The first version of `struct perf_event_attr`, which every kernel since 2009 accepts.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample_period: u64,
    sample_type: u64,
    read_format: u64,
    flags: u64,
    wakeup_events: u32,
    breakpoint: u32,
    config_1: u64,
}

const ATTRIBUTES_BYTES: u32 = 64;
const _: () = assert!(size_of::<Attributes>() == ATTRIBUTES_BYTES as usize);
const KIND_TRACEPOINT: u32 = 2;
const FLAG_INHERIT: u64 = 1 << 1;
const OPEN_CLOSE_ON_EXEC: libc::c_ulong = 8;

fn open_counter(event: &str) -> Result<File> {
    let id = fs::read_to_string(format!("{EVENTS}/{event}/id"))?;
    let config = id.trim().parse().map_err(Error::other)?;
    let (kind, size, flags) = (KIND_TRACEPOINT, ATTRIBUTES_BYTES, FLAG_INHERIT);
    let attributes = Attributes { kind, size, config, flags, ..Attributes::default() };
    let (this_thread, any_cpu, no_group) = (0, -1, -1);
    // SAFETY: the kernel reads `size` bytes at the pointer, which is a live struct of exactly that size (asserted
    // above), and keeps nothing of it. `what_this_thread_does_is_counted` goes through here.
    let descriptor = unsafe {
        let attributes = &raw const attributes;
        libc::syscall(
            libc::SYS_perf_event_open,
            attributes,
            this_thread,
            any_cpu,
            no_group,
            OPEN_CLOSE_ON_EXEC,
        )
    };
    if descriptor < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel just made this descriptor for us and nobody else knows of it.
    Ok(unsafe { File::from_raw_fd(descriptor as RawFd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_thread_does_is_counted() {
        // Not allowed everywhere, and then the rows say null.
        let Ok(kernel) = Kernel::open() else { return };
        let before = kernel.read().unwrap();
        for _ in 0..10 {
            std::thread::yield_now();
        }
        std::thread::spawn(std::thread::yield_now).join().unwrap();
        let after = kernel.read().unwrap();
        assert!(after.calls >= before.calls + 11);
        assert!(after.futexes <= after.calls);
    }
}
