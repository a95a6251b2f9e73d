//! A clock for bounds in real time, by which a machine that is busy or stops for a while has no part in what the engine needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const TICK: Duration = Duration::from_millis(5);

/// A thread that does nothing but wake every few milliseconds. Its time goes as fast as it wakes: where it has to wait for the
/// machine, so has everybody else, and that is no time of the engine's.
pub(crate) struct Bystander {
    passed_us: Arc<AtomicU64>,
}

impl Bystander {
    pub(crate) fn start() -> Self {
        let passed_us = Arc::new(AtomicU64::new(0));
        let counted = Arc::downgrade(&passed_us);
        thread::spawn(move || {
            let mut last = Instant::now();
            while let Some(counted) = counted.upgrade() {
                let now = Instant::now();
                let passed = (now - last).min(TICK * 2);
                last = now;
                counted.fetch_add(passed.as_micros() as u64, Ordering::Relaxed);
                drop(counted);
                thread::sleep(TICK);
            }
        });
        Self { passed_us }
    }

    /// How long the machine was there for those who wanted it, since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        Duration::from_micros(self.passed_us.load(Ordering::Relaxed))
    }
}
