//! A bound on log lines whose number others decide: strangers who knock, say.
//!
//! Lines are written on the shard's own thread, and a full disk or a slow pipe behind them would hold it up. What is left out is
//! counted, and said with the next line that is not; counters of the engine count all of it anyway.

use std::time::Duration;

use crate::time::Time;

const WINDOW: Duration = Duration::from_secs(1);

/// So many lines in each second.
#[derive(Debug)]
pub(crate) struct LogLimit {
    lines_max: u32,
    begun: Time,
    lines: u32,
    left_out: u64,
}

impl LogLimit {
    pub(crate) const fn new(lines_max: u32) -> Self {
        Self { lines_max, begun: Time::ZERO, lines: 0, left_out: 0 }
    }

    /// Whether one more line may be written; then how many were left out before it.
    pub(crate) fn admits(&mut self, now: Time) -> Option<u64> {
        if now.since(self.begun) >= WINDOW {
            (self.begun, self.lines) = (now, 0);
        }
        if self.lines == self.lines_max {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_its_lines_and_the_next_says_what_was_left_out() {
        let mut limit = LogLimit::new(3);
        let first = Time::ZERO + WINDOW * 10;
        let said: Vec<_> = (0..8).map(|step| limit.admits(first + WINDOW / 10 * step)).collect();
        assert_eq!(said, [Some(0), Some(0), Some(0), None, None, None, None, None]);
        assert_eq!(limit.admits(first + WINDOW), Some(5));
        assert_eq!(limit.admits(first + WINDOW), Some(0));
    }
}
