//! `floor/ring/N`: two rtrb rings of frames between two pinned threads, one each way.
//!
//! Frames are copied into and out of the rings in chunks of at most [`BATCH`], so that both threads work at the same
//! time instead of handing one large batch back and forth.

use rtrb::chunks::ChunkError;
use rtrb::{Consumer, Producer, RingBuffer};

use crate::frame::{self, Frame};
use crate::load::{self, Link};
use crate::machine::{Cores, on_core, pin};
use crate::scenario::{Broken, Facts, Family, Idle, Pace, Round, RoundResult, Scenario};

/// Places in each ring; no row has more in flight.
const PLACES: usize = 1_024;
const BATCH: usize = 64;

/// The scenario.
pub(crate) struct Ring {
    name: &'static str,
    in_flight: usize,
}

impl Ring {
    /// With so many requests in flight.
    pub(crate) fn new(name: &'static str, in_flight: usize) -> Self {
        debug_assert!(in_flight <= PLACES);
        Self { name, in_flight }
    }
}

impl Scenario for Ring {
    fn facts(&self) -> Facts {
        let pace = Pace::Closed { in_flight: self.in_flight };
        let (name, family, idle) = (self.name, Family::Floor, Idle::Spin);
        Facts { name, family, pace, idle, floor: None, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let cores = Cores::choose();
        let (to_server, requests) = RingBuffer::new(PLACES);
        let (to_caller, replies) = RingBuffer::new(PLACES);
        std::thread::scope(|scope| {
            let server = scope.spawn(move || {
                pin(cores.server)?;
                serve(requests, to_caller);
                Ok(())
            });
            // The link moves into the loop and ends with it, which is how the server learns that it may end.
            let mut link = RingLink { requests: to_server, replies };
            let result = on_core(cores.caller, "ring-caller", move || load::drive(&mut link, round, &mut []));
            match server.join() {
                Ok(ended) => ended.and(result),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }
}

/// Answers until the caller has dropped its end.
fn serve(mut requests: Consumer<Frame>, mut replies: Producer<Frame>) {
    loop {
        let waiting = requests.slots().min(BATCH);
        if waiting == 0 {
            if requests.is_abandoned() {
                return;
            }
            std::hint::spin_loop();
            continue;
        }
        let Ok(space) = replies.write_chunk_uninit(waiting) else { continue };
        let Ok(chunk) = requests.read_chunk(waiting) else { continue };
        let (first, second) = chunk.as_slices();
        space.fill_from_iter(first.iter().chain(second).map(|request| frame::reply(request)));
        chunk.commit_all();
    }
}

struct RingLink {
    requests: Producer<Frame>,
    replies: Consumer<Frame>,
}

impl Link for RingLink {
    #[inline]
    fn send(&mut self, first: u64, wanted: u64) -> Result<u64, Broken> {
        let mut sent = 0;
        while sent < wanted {
            let count = ((wanted - sent) as usize).min(BATCH);
            let space = match self.requests.write_chunk_uninit(count) {
                Err(ChunkError::TooFewSlots(there)) => self.requests.write_chunk_uninit(there),
                space => space,
            };
            // The places that the ring just said are there stay there: this is the only producer.
            match space.map_or(0, |space| space.fill_from_iter((first + sent..).map(frame::request))) {
                0 => break,
                filled => sent += filled as u64,
            }
        }
        Ok(sent)
    }

    #[inline]
    fn receive(&mut self, expected: u64) -> Result<u64, Broken> {
        let count = self.replies.slots().min(BATCH);
        let Ok(chunk) = self.replies.read_chunk(count) else { return Ok(0) };
        let (first, second) = chunk.as_slices();
        for (number, reply) in (expected..).zip(first.iter().chain(second)) {
            if !frame::is_reply_to(reply, number) {
                return Err(Broken::WrongReply(frame::describe(reply, number)));
            }
        }
        chunk.commit_all();
        Ok(count as u64)
    }
}
