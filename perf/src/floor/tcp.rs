//! `floor/tcp/…`: frames over one loopback connection between two processes.
//!
//! Spinning: both sockets are nonblocking, each pass makes at most one write that carries all frames that are ready,
//! and one read. Blocking (`floor/tcp/block/1`, what a parked engine is compared to): one request in flight, both sides
//! sleep in `recv`. Requests can carry a payload, and the reply, always 64 bytes, proves that it came through.
//!
//! The caller runs in this process and the server in the second one, each pinned to its core.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use crate::alloc::CALLS;
use crate::frame::{self, FRAME_BYTES};
use crate::load::{self, Link};
use crate::machine::{Cores, on_core, pin};
use crate::options::PAYLOAD_MAX_BYTES;
use crate::peer::{self, Peer};
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario, Tried};

/// The word after `serve` that starts [`serve`].
pub(crate) const SERVE: &str = "floor-tcp";
/// Of each buffer on each side.
const BUFFER_BYTES: usize = 256 * 1_024;
const _: () = assert!(BUFFER_BYTES / 2 > PAYLOAD_MAX_BYTES + FRAME_BYTES);
/// A blocking read that takes longer than this means that the other side is lost.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// The scenario.
pub(crate) struct Tcp {
    name: &'static str,
    pace: Pace,
    idle: Idle,
    request_bytes: usize,
    payload_bytes: Option<usize>,
}

impl Tcp {
    /// Spinning, with requests of so many payload bytes or else of 64 bytes.
    pub(crate) fn spinning(name: &'static str, pace: Pace, payload_bytes: Option<usize>) -> Self {
        let request_bytes = frame::request_bytes(payload_bytes.unwrap_or(0));
        Self { name, pace, idle: Idle::Spin, request_bytes, payload_bytes }
    }

    /// Blocking, one in flight.
    pub(crate) fn blocking(name: &'static str, payload_bytes: Option<usize>) -> Self {
        Self { idle: Idle::Park, ..Self::spinning(name, Pace::Closed { in_flight: 1 }, payload_bytes) }
    }
}

impl Scenario for Tcp {
    fn facts(&self) -> Facts {
        let sweeps = matches!(self.pace, Pace::Open { .. });
        let (family, floor) = (Family::Floor, None);
        let Self { name, pace, idle, payload_bytes, .. } = *self;
        Facts { name, family, pace, idle, floor, sweeps, payload_bytes }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let cores = Cores::choose();
        let arguments = [self.idle.name().into(), cores.server.to_string(), self.request_bytes.to_string()];
        let mut peer = Peer::start(SERVE, &arguments)?;
        let mut result = on_core(cores.caller, "tcp-caller", || {
            let mut link = TcpLink::connect(peer.ready(), self.idle, self.request_bytes)?;
            load::drive(&mut link, round, std::slice::from_mut(&mut peer))
        })?;
        result.bytes = self.payload_bytes.map(|_| result.requests * self.request_bytes as u64);
        Ok(result)
    }
}

/// The second process: `serve floor-tcp spin|park CORE REQUEST_BYTES`. Returns when the caller has hung up.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Broken> {
    let [idle, core, request_bytes] = arguments else {
        return Err(Broken::Peer(format!("{SERVE} takes: spin|park CORE REQUEST_BYTES")));
    };
    let number = |text: &String| text.parse().map_err(|_| Broken::Peer(format!("'{text}' is not a number")));
    let (core, request_bytes) = (number(core)?, number(request_bytes)?);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).tried("cannot listen on loopback")?;
    let address = listener.local_addr().tried("cannot name the listening socket")?;
    peer::stand_by(&address.to_string()).tried("cannot answer the first process")?;
    let (stream, _) = listener.accept().tried("cannot accept the caller")?;
    pin(core)?;
    let mut socket = Socket::new(stream, idle != Idle::Park.name())?;
    loop {
        let Socket { input, output, .. } = &mut socket;
        while input.ready() >= request_bytes && output.space() >= FRAME_BYTES {
            output.append(&frame::reply(&input.bytes()[..request_bytes]));
            input.consume(request_bytes);
        }
        socket.write()?;
        if !socket.read()? {
            return Ok(());
        }
    }
}

struct TcpLink {
    socket: Socket,
    /// A whole request; each one is a copy of it with its number and value written over.
    template: Vec<u8>,
    /// Requests written and not yet answered, so that a blocking read waits only where a reply is due.
    unanswered: u64,
}

impl TcpLink {
    fn connect(address: &str, idle: Idle, request_bytes: usize) -> Result<Self, Broken> {
        let stream = TcpStream::connect(address).tried("cannot connect to the second process")?;
        let socket = Socket::new(stream, idle == Idle::Spin)?;
        let template = (0..request_bytes).map(|index| index as u8).collect();
        Ok(Self { socket, template, unanswered: 0 })
    }
}

impl Link for TcpLink {
    #[inline]
    fn send(&mut self, first: u64, wanted: u64) -> Result<u64, Broken> {
        let output = &mut self.socket.output;
        let count = wanted.min((output.space() / self.template.len()) as u64);
        for number in first..first + count {
            frame::write_request(number, output.append(&self.template));
        }
        self.unanswered += count;
        self.socket.write()?;
        Ok(count)
    }

    #[inline]
    fn receive(&mut self, expected: u64) -> Result<u64, Broken> {
        if self.unanswered == 0 && self.socket.blocks {
            return Ok(0);
        }
        if !self.socket.read()? {
            return Err(Broken::Peer("it closed the connection".into()));
        }
        let input = &mut self.socket.input;
        let replies = (input.ready() / FRAME_BYTES) as u64;
        for (number, reply) in (expected..).zip(input.bytes().chunks_exact(FRAME_BYTES)) {
            if !frame::is_reply_to(reply, number) {
                return Err(Broken::WrongReply(frame::describe(reply, number)));
            }
        }
        input.consume(replies as usize * FRAME_BYTES);
        self.unanswered = self.unanswered.saturating_sub(replies);
        Ok(replies)
    }
}

/// A stream with a buffer each way, and its system calls counted.
struct Socket {
    stream: TcpStream,
    blocks: bool,
    input: Buffer,
    output: Buffer,
}

impl Socket {
    fn new(stream: TcpStream, spins: bool) -> Result<Self, Broken> {
        stream.set_nodelay(true).tried("cannot set TCP_NODELAY")?;
        stream.set_nonblocking(spins).tried("cannot set a socket nonblocking")?;
        stream.set_read_timeout(Some(READ_TIMEOUT)).tried("cannot set a socket's timeout")?;
        Ok(Self { stream, blocks: !spins, input: Buffer::new(), output: Buffer::new() })
    }

    /// One write of all that is waiting, as far as the socket takes it. A socket that blocks takes all of it.
    #[inline]
    fn write(&mut self) -> Result<(), Broken> {
        while self.output.ready() > 0 {
            CALLS.add(1);
            match self.stream.write(self.output.bytes()) {
                Ok(bytes) => self.output.consume(bytes),
                Err(problem) if problem.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(problem) if problem.kind() == ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(Broken::System { what: "cannot write to the other process", source });
                }
            }
            if !self.blocks {
                return Ok(());
            }
        }
        Ok(())
    }

    /// One read of what is there. `false` when the other side has hung up.
    #[inline]
    fn read(&mut self) -> Result<bool, Broken> {
        let space = self.input.free();
        if space.is_empty() {
            return Ok(true);
        }
        CALLS.add(1);
        match self.stream.read(space) {
            Ok(0) => Ok(false),
            Ok(bytes) => {
                self.input.filled(bytes);
                Ok(true)
            }
            Err(problem) if problem.kind() == ErrorKind::WouldBlock && !self.blocks => Ok(true),
            Err(problem) if problem.kind() == ErrorKind::Interrupted => Ok(true),
            Err(problem) if problem.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(source) => Err(Broken::System { what: "no answer from the other process", source }),
        }
    }
}

/// Bytes between `start` and `end` are ready; they move to the front when the rest gets short.
struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Buffer {
    fn new() -> Self {
        Self { bytes: vec![0; BUFFER_BYTES], start: 0, end: 0 }
    }

    #[inline]
    fn ready(&self) -> usize {
        self.end - self.start
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    #[inline]
    fn consume(&mut self, bytes: usize) {
        self.start += bytes;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Room for so many more bytes.
    #[inline]
    fn space(&self) -> usize {
        BUFFER_BYTES - self.ready()
    }

    /// Room at the end, after moving what is ready to the front if less than half is left.
    #[inline]
    fn free(&mut self) -> &mut [u8] {
        if self.start > 0 && BUFFER_BYTES - self.end < BUFFER_BYTES / 2 {
            self.compact();
        }
        &mut self.bytes[self.end..]
    }

    #[inline]
    fn filled(&mut self, bytes: usize) {
        self.end += bytes;
    }

    /// Copies bytes to the end, where there must be [`space`](Self::space), and gives them back for writing over.
    #[inline]
    fn append(&mut self, bytes: &[u8]) -> &mut [u8] {
        if BUFFER_BYTES - self.end < bytes.len() {
            self.compact();
        }
        let place = &mut self.bytes[self.end..self.end + bytes.len()];
        place.copy_from_slice(bytes);
        self.end += bytes.len();
        place
    }

    fn compact(&mut self) {
        self.bytes.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_keeps_the_order_of_what_passes_through_it() {
        let mut buffer = Buffer::new();
        let (mut written, mut read) = (0_u64, 0_u64);
        for step in 0..200_000_u64 {
            while buffer.space() >= 8 && written < step * 3 {
                buffer.append(&written.to_le_bytes());
                written += 1;
            }
            let take = (step % 7).min(buffer.ready() as u64 / 8);
            for bytes in buffer.bytes()[..take as usize * 8].chunks_exact(8) {
                assert_eq!(bytes, read.to_le_bytes());
                read += 1;
            }
            buffer.consume(take as usize * 8);
        }
        assert!(read > 100_000 && buffer.ready() as u64 == (written - read) * 8);
    }
}
