//! The ring against a queue too simple to be wrong, its refusals, and two real threads.
#![forbid(unsafe_code)]

use std::{
    collections::VecDeque,
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    thread,
};

use proptest::{collection::vec, prelude::*};

use super::*;

/// Lengths are reduced to what the ring under test takes, so that every step is legal.
#[derive(Debug, Clone)]
enum Step {
    Push { max: usize, bytes: usize, fill: u8 },
    PushFails { max: usize },
    PushPanics { max: usize },
    Publish,
    Refresh,
    Read,
    Release,
    Drain { limit: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let length = 0usize..1000;
    prop_oneof![
        8 => (length.clone(), length.clone(), any::<u8>())
            .prop_map(|(max, bytes, fill)| Step::Push { max, bytes, fill }),
        1 => length.clone().prop_map(|max| Step::PushFails { max }),
        1 => length.prop_map(|max| Step::PushPanics { max }),
        4 => Just(Step::Publish),
        3 => Just(Step::Refresh),
        6 => Just(Step::Read),
        3 => Just(Step::Release),
        1 => (0usize..5).prop_map(|limit| Step::Drain { limit }),
    ]
}

fn padded(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGN_BYTES)
}

/// A ring, and beside it what it should hold: all frames not yet released, and how far each side has come in them.
struct Pair {
    producer: Producer,
    consumer: Consumer,
    capacity: usize,
    frame_bytes_max: usize,
    frames: VecDeque<Vec<u8>>,
    published: usize,
    seen: usize,
    read: usize,
}

impl Pair {
    fn new(capacity: usize, frame_bytes_max: usize) -> Self {
        let (producer, consumer) = ring(capacity, frame_bytes_max);
        let frames = VecDeque::new();
        Self { producer, consumer, capacity, frame_bytes_max, frames, published: 0, seen: 0, read: 0 }
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::Push { max, bytes, fill } => self.push(max, bytes, fill),
            Step::PushFails { max } => {
                let result = self.producer.push(length(max, self.frame_bytes_max), |into| {
                    into.fill(0xEE); // what it wrote before it failed must not be found again
                    Err::<usize, _>("broken")
                });
                assert!(matches!(result, Err(PushError::Full | PushError::Writer("broken"))));
            }
            Step::PushPanics { max } => {
                let max = length(max, self.frame_bytes_max);
                let push = || {
                    self.producer.push(max, |_| -> Result<usize, Infallible> { resume_unwind(Box::new(())) })
                };
                assert!(matches!(catch_unwind(AssertUnwindSafe(push)), Err(_) | Ok(Err(PushError::Full))));
            }
            Step::Publish => {
                let news = self.published != self.frames.len();
                assert_eq!(self.producer.has_unpublished(), news);
                assert_eq!(self.producer.publish(), news);
                self.published = self.frames.len();
            }
            Step::Refresh => {
                self.seen = self.published;
                assert_eq!(self.consumer.refresh(), self.seen > self.read);
            }
            Step::Read => self.read(),
            Step::Release => {
                assert_eq!(self.consumer.release(), self.read > 0);
                self.released();
            }
            Step::Drain { limit } => self.drain(limit),
        }
    }

    fn push(&mut self, max: usize, bytes: usize, fill: u8) {
        let max = length(max, self.frame_bytes_max);
        let bytes = length(bytes, max);
        let result = self.producer.push(max, |into| {
            assert_eq!((into.len(), into.as_ptr().addr() % ALIGN_BYTES), (max, 0));
            Ok::<_, Infallible>(write_frame(into, bytes, fill))
        });
        if result == Ok(bytes) {
            let mut frame = vec![0; bytes];
            write_frame(&mut frame, bytes, fill);
            self.frames.push_back(frame);
        } else {
            assert_eq!(result, Err(PushError::Full));
            let taken: usize = self.frames.iter().map(|frame| padded(frame.len())).sum();
            assert!(taken > 0 && taken + padded(max) > self.capacity, "full with only {taken} bytes taken");
        }
    }

    fn read(&mut self) {
        let next = (self.read < self.seen).then(|| self.frames[self.read].as_slice());
        assert_eq!(self.consumer.peek(), next);
        if next.is_some() {
            self.consumer.advance();
            self.read += 1;
        }
    }

    fn released(&mut self) {
        self.frames.drain(..self.read);
        (self.published, self.seen, self.read) = (self.published - self.read, self.seen - self.read, 0);
    }

    fn drain(&mut self, limit: usize) {
        if self.read == self.seen {
            self.seen = self.published;
        }
        let expected: Vec<_> = self.frames.range(self.read..self.seen).take(limit).cloned().collect();
        let mut drained = Vec::new();
        assert_eq!(self.consumer.drain(limit, |frame| drained.push(frame.to_vec())), expected.len());
        assert_eq!(drained, expected);
        self.read += expected.len();
        self.released();
    }
}

/// A legal length of a frame, at most `max`.
fn length(any: usize, max: usize) -> usize {
    LENGTH_BYTES + any % (max - LENGTH_BYTES + 1)
}

proptest! {
    #[test]
    fn it_is_a_queue(
        capacity_power in 4u32..11,
        frame_bytes_max in LENGTH_BYTES..300,
        steps in vec(step(), 0..400),
    ) {
        let mut pair = Pair::new(1 << capacity_power, frame_bytes_max);
        steps.iter().for_each(|step| pair.apply(step));
        // And nothing that was pushed is lost.
        pair.apply(&Step::Publish);
        pair.apply(&Step::Refresh);
        while !pair.frames.is_empty() {
            pair.apply(&Step::Drain { limit: usize::MAX });
        }
        prop_assert!(!pair.consumer.refresh());
    }
}

#[test]
fn an_empty_ring_takes_the_longest_frame_wherever_its_cursors_stand() {
    let mut pair = Pair::new(64, 200);
    for step in 0..64 {
        for bytes in [200, 4 + 16 * (step % 3)] {
            pair.push(bytes - LENGTH_BYTES, bytes - LENGTH_BYTES, 1);
            assert_eq!(pair.frames.len(), 1, "taken");
            [Step::Publish, Step::Drain { limit: 1 }].iter().for_each(|step| pair.apply(step));
        }
    }
}

#[test]
fn a_frame_that_lies_about_its_length_never_gets_in() {
    let (mut producer, mut consumer) = ring(256, 64);
    for (said, returned) in [(64u32, 48usize), (48, 64), (1 << 20, 1 << 20), (65, 65), (3, 3), (0, 0)] {
        let push = || {
            producer.push(64, |into| {
                into[..LENGTH_BYTES].copy_from_slice(&said.to_le_bytes());
                Ok::<_, Infallible>(returned)
            })
        };
        assert!(catch_unwind(AssertUnwindSafe(push)).is_err(), "says {said}, returns {returned}");
        assert!(!producer.publish());
    }
    assert!(!consumer.refresh() && consumer.peek().is_none());
}

#[test]
#[should_panic(expected = "no frame of the ring has this length")]
fn asking_for_more_than_the_longest_frame_is_a_mistake() {
    let _ = ring(256, 64).0.push(65, |_| Ok::<_, Infallible>(64));
}

#[test]
fn a_frame_at_which_the_visitor_panics_counts_as_read() {
    let (mut producer, mut consumer) = ring(256, 64);
    for fill in 0..2 {
        producer.push(64, |into| Ok::<_, Infallible>(write_frame(into, 20, fill))).unwrap();
    }
    producer.publish();
    let drain = || consumer.drain(2, |_| resume_unwind(Box::new(())));
    assert!(catch_unwind(AssertUnwindSafe(drain)).is_err());
    assert_eq!(consumer.drain(2, |frame| assert_eq!(frame[LENGTH_BYTES], 1)), 1);
}

#[test]
fn what_was_published_outlives_the_producer() {
    let (mut producer, mut consumer) = ring(64, 32);
    producer.push(32, |into| Ok::<_, Infallible>(write_frame(into, 20, 7))).unwrap();
    producer.publish();
    drop(producer);
    assert_eq!(consumer.drain(9, |frame| assert_eq!((frame.len(), frame[19]), (20, 7))), 1);
}

#[test]
fn two_threads_lose_mix_and_reorder_nothing() {
    const FRAMES: usize = 300_000;
    // Both sides compute the same lengths and contents from the number of the frame.
    let bytes_of = |number: usize| LENGTH_BYTES + (number.wrapping_mul(0x9E37_79B9) >> 7) % 150;
    let (mut producer, mut consumer) = ring(1024, 160);
    let sender = thread::spawn(move || {
        for number in 0..FRAMES {
            let bytes = bytes_of(number);
            while producer
                .push(bytes, |into| Ok::<_, Infallible>(write_frame(into, bytes, number as u8)))
                .is_err()
            {
                producer.publish();
                thread::yield_now();
            }
            if number % 7 == 0 {
                producer.publish();
            }
        }
        producer.publish();
    });
    let mut number = 0;
    while number < FRAMES {
        let taken = consumer.drain(5, |frame| {
            assert_eq!(frame.len(), bytes_of(number));
            assert!(frame[LENGTH_BYTES..].iter().all(|byte| *byte == number as u8), "frame {number}");
            number += 1;
        });
        if taken == 0 {
            thread::yield_now();
        }
    }
    sender.join().unwrap();
    assert!(!consumer.refresh());
}
