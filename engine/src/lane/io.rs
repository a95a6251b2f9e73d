//! One connection of a shard: its stream, its state machine, and when to read and write.
//!
//! The protocol is in [`protocol`](super::protocol); this file moves bytes between it and the stream. Which lanes there are,
//! and which of them need something, is in [`lanes`](super::lanes).
//!
//! **Cadence.** A system call costs as much as dispatching a dozen frames, so a busy lane is read and written at
//! intervals in which a few dozen frames gather, at most [`IO_GAP_MAX`]. A quiet one (one call in flight, say) is read in
//! every turn while its shard spins, and after [`HOT`] without traffic only when the world reports it ready.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use catga_discovery::Node;

use crate::call::table::LaneKey;
use crate::call::waiting::Line;
use crate::lane::buffer::ReceiveBuffer;
use crate::lane::protocol::Lane;
use crate::limits::CONNECT_TIMEOUT;
use crate::runtime::{Stream, Token, World};
use crate::time::Time;

/// The longest pause between two reads, or two writes, of a busy lane. It is what coalescing may add to a latency.
const IO_GAP_MAX: Duration = Duration::from_micros(20);
/// As many frames should gather for one system call.
const IO_BATCH_FRAMES: u64 = 64;
/// Below this many nanoseconds between two frames a lane is busy.
const BUSY_INTERVAL_NS: u64 = 2_000;
/// Unsent bytes that are written without waiting for the gap to end.
const WRITE_BYTES: usize = 32 * 1024;
/// Read at once from a lane that has ended, onto the stack.
const DISCARD_BYTES: usize = 32 * 1024;
/// A lane without traffic for so long is not polled any more.
const HOT: Duration = Duration::from_millis(1);

/// One connection of this shard.
pub(crate) struct LaneIo {
    pub(super) stream: Box<dyn Stream>,
    pub(super) machine: Lane,
    /// Out while its frames are handled, and while it has never been read.
    pub(super) receive: Option<ReceiveBuffer>,
    /// The dial that made it, if this side did.
    pub(super) dial: Option<u32>,
    /// Who is at the other end, once the greeting is agreed on.
    pub(super) node: Option<Arc<Node>>,
    pub(super) connected: bool,
    /// The connection attempt is given up then.
    pub(super) connect_by: Time,
    /// The world reported it readable.
    pub(super) ready: bool,
    /// Another shard has read the greeting, and perhaps more that nobody has looked at.
    pub(super) handed_over: bool,
    /// The peer has said that it leaves.
    leaving: bool,
    /// It stands in the list of those that may have something to read.
    pub(super) is_watched: bool,
    /// It stands in the list of those that have something to write.
    pub(super) is_unsent: bool,
    /// It stands in the list of those that calls wait for.
    pub(super) is_waited_for: bool,
    write_blocked: bool,
    pub(super) finished_writing: bool,
    /// What the socket said when the connection did not come to be, or broke.
    pub(super) broke: Option<io::Error>,
    /// It has been open, and counts among those that are.
    pub(super) is_open: bool,
    /// Its calls have been ended.
    pub(super) settled: bool,
    pub(super) refuses_some: bool,
    pub(super) cadence: Cadence,
    /// Calls that wait for room.
    pub(super) line: Line,
}

/// What came of a read.
pub(super) enum Read {
    /// So many bytes more are in the buffer.
    Some(ReceiveBuffer),
    /// Nothing was there, or the connection has ended: the machine knows.
    Nothing,
}

/// When to read and write next.
#[derive(Debug)]
pub(super) struct Cadence {
    last_traffic: Time,
    last_read: Time,
    last_write: Time,
    /// Nanoseconds between two frames, a moving average.
    interval_ns: u64,
}

impl Cadence {
    fn new(now: Time) -> Self {
        Self { last_traffic: now, last_read: now, last_write: now, interval_ns: u64::MAX / 2 }
    }

    fn gap(&self) -> Duration {
        if self.interval_ns >= BUSY_INTERVAL_NS {
            return Duration::ZERO;
        }
        IO_GAP_MAX.min(Duration::from_nanos(self.interval_ns * IO_BATCH_FRAMES))
    }

    pub(super) fn is_hot(&self, now: Time) -> bool {
        now.since(self.last_traffic) < HOT
    }

    pub(super) fn read_due(&self, now: Time) -> bool {
        // The longer nothing has come, the less often it is looked for: that costs an eighth of the wait at most.
        let pause = now.since(self.last_traffic) / 8;
        now.since(self.last_read) >= pause.max(self.gap())
    }

    fn write_due(&self, now: Time, unsent: usize) -> bool {
        unsent >= WRITE_BYTES || now.since(self.last_write) >= self.gap()
    }

    /// `frames` came since the last time that some came.
    pub(super) fn took(&mut self, frames: u64, now: Time) {
        if frames == 0 {
            return;
        }
        let elapsed = now.since(self.last_traffic).as_nanos() as u64;
        let interval = (elapsed / frames).min(1_000_000);
        self.interval_ns =
            if self.interval_ns > 1_000_000 { interval } else { (self.interval_ns * 7 + interval) / 8 };
        self.last_traffic = now;
    }
}

impl LaneIo {
    pub(super) fn new(stream: Box<dyn Stream>, machine: Lane, dial: Option<u32>, now: Time) -> Self {
        Self {
            stream,
            machine,
            receive: None,
            dial,
            node: None,
            connected: dial.is_none(),
            connect_by: now + CONNECT_TIMEOUT,
            ready: false,
            handed_over: false,
            leaving: false,
            is_watched: false,
            is_unsent: false,
            is_waited_for: false,
            write_blocked: false,
            finished_writing: false,
            broke: None,
            is_open: false,
            settled: false,
            refuses_some: false,
            cadence: Cadence::new(now),
            line: Line::default(),
        }
    }

    /// The connection is of no use any more, for this reason.
    #[cold]
    pub(super) fn break_off(&mut self, error: io::Error) {
        self.machine.disconnected();
        self.broke.get_or_insert(error);
    }

    /// Whether it ended and nobody has taken note of that.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        !self.settled && self.machine.closed().is_some()
    }

    /// Whether it has neither opened nor ended.
    pub(super) fn greets(&self) -> bool {
        !self.is_open && !self.settled
    }

    /// Reads once. Gives the buffer out, so that its frames can be handled without borrowing the lane.
    pub(super) fn read(&mut self, key: LaneKey, world: &mut dyn World, now: Time) -> Read {
        self.ready = false;
        if !self.connected {
            match self.stream.connected() {
                Ok(true) => {
                    self.connected = true;
                    let _ = world.watch(&*self.stream, Token::Lane(key), false);
                }
                Ok(false) => return Read::Nothing,
                Err(error) => {
                    self.break_off(error);
                    return Read::Nothing;
                }
            }
        }
        self.cadence.last_read = now;
        if self.settled {
            self.discard();
            return Read::Nothing;
        }
        let mut receive = self.receive.take().unwrap_or_else(ReceiveBuffer::new);
        match self.stream.read(receive.space()) {
            Ok(0) => {
                self.machine.disconnected();
            }
            Ok(bytes) => {
                receive.filled(bytes);
                self.machine.received(now);
                return Read::Some(receive);
            }
            Err(error) if would_block(&error) => {}
            Err(error) => self.break_off(error),
        }
        self.receive = Some(receive);
        Read::Nothing
    }

    /// Reads what still comes after the end, and looks at none of it. It needs no memory of its own for that.
    #[cold]
    fn discard(&mut self) {
        match self.stream.read(&mut [0; DISCARD_BYTES]) {
            Ok(0) => {
                self.machine.disconnected();
            }
            Ok(_) => {}
            Err(error) if would_block(&error) => {}
            Err(_) => {
                self.machine.disconnected();
            }
        }
    }

    /// What another shard has read past the greeting.
    pub(super) fn take_unread(&mut self) -> Option<ReceiveBuffer> {
        if std::mem::take(&mut self.handed_over) { self.receive.take() } else { None }
    }

    /// Whether the peer has said since the last look that it leaves.
    pub(super) fn takes_leave(&mut self) -> bool {
        let leaving = self.machine.peer_is_leaving();
        leaving != std::mem::replace(&mut self.leaving, leaving)
    }

    /// Writes what is unsent if it is due, or if it has to be because the shard is about to sleep (`all`). Says whether it
    /// wrote.
    pub(super) fn write(&mut self, key: LaneKey, world: &mut dyn World, now: Time, all: bool) -> bool {
        let unsent = self.machine.unsent().len();
        if unsent == 0 || !self.connected {
            return false;
        }
        if !(all || self.write_blocked || self.cadence.write_due(now, unsent)) {
            return false;
        }
        self.cadence.last_write = now;
        let mut blocked = false;
        match self.stream.write(self.machine.unsent()) {
            Ok(bytes) => {
                self.machine.sent(bytes, now);
                blocked = bytes < unsent;
            }
            Err(error) if would_block(&error) => blocked = true,
            Err(error) => self.break_off(error),
        }
        self.set_write_blocked(blocked, key, world);
        true
    }

    fn set_write_blocked(&mut self, blocked: bool, key: LaneKey, world: &mut dyn World) {
        if self.write_blocked != blocked {
            self.write_blocked = blocked;
            let _ = world.watch(&*self.stream, Token::Lane(key), blocked);
        }
    }

    /// When it next wants to be told the time.
    pub(super) fn next_tick(&self) -> Time {
        let tick = self.machine.next_tick();
        if self.connected { tick } else { tick.min(self.connect_by) }
    }
}

fn would_block(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}
