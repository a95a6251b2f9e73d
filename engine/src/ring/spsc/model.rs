//! The ring under loom: every schedule and every stale value that the memory model allows, for rings so small that
//! each frame waits for another one's room.
#![forbid(unsafe_code)]

use std::convert::Infallible;

use catga_discovery::sync::thread;
use loom::model::Builder;

use super::*;

/// All schedules with at most three switches that no thread asked for: enough to split any step from the next.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(4);
    builder.check(model);
}

/// Moves frames of these lengths through a ring; `publish_each` and `release_each` are the sizes of the batches.
fn move_frames(capacity: usize, lengths: &'static [usize], publish_each: usize, release_each: usize) {
    explore(move || {
        let (mut producer, mut consumer) = ring(capacity, 32);
        let sender = thread::spawn(move || {
            for (number, bytes) in (0u8..).zip(lengths) {
                while producer
                    .push(*bytes, |into| Ok::<_, Infallible>(write_frame(into, *bytes, number)))
                    .is_err()
                {
                    producer.publish();
                    thread::yield_now();
                }
                if (usize::from(number) + 1).is_multiple_of(publish_each) {
                    producer.publish();
                }
            }
            producer.publish();
        });
        for (number, bytes) in (0u8..).zip(lengths) {
            while consumer.peek().is_none() && !consumer.refresh() {
                consumer.release();
                thread::yield_now();
            }
            let frame = consumer.peek().unwrap();
            assert_eq!(frame.len(), *bytes);
            assert!(frame[LENGTH_BYTES..].iter().all(|byte| *byte == number));
            consumer.advance();
            if (usize::from(number) + 1).is_multiple_of(release_each) {
                consumer.release();
            }
        }
        sender.join().unwrap();
        assert!(!consumer.refresh());
    });
}

#[test]
fn two_threads_move_frames_in_order() {
    // Two units: the second frame fills the lap, the others wait for room.
    move_frames(32, &[16, 10, 16, 16], 1, 1);
}

#[test]
fn a_frame_that_ends_in_the_slack_is_released_before_the_slack_is_written_again() {
    // The second and the fourth begin in the last unit of a lap and run on into the slack.
    move_frames(32, &[16, 32, 16, 32], 1, 1);
}

#[test]
fn a_frame_may_be_longer_than_the_ring() {
    move_frames(16, &[32, 20, 32], 1, 1);
}

#[test]
fn batches_move_frames_in_order() {
    move_frames(64, &[16, 32, 16, 20, 16], 2, 2);
}

#[test]
fn a_dropped_side_takes_nothing_with_it() {
    explore(|| {
        let (mut producer, mut consumer) = ring(32, 16);
        let sender = thread::spawn(move || {
            let pushed = producer.push(16, |into| Ok::<_, Infallible>(write_frame(into, 16, 1)));
            assert_eq!(pushed, Ok(16));
            producer.publish();
        });
        let early = consumer.drain(1, |frame| assert_eq!(frame[LENGTH_BYTES], 1));
        sender.join().unwrap();
        assert_eq!(early + consumer.drain(1, |frame| assert_eq!(frame[LENGTH_BYTES], 1)), 1);
    });
}
