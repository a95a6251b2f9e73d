//! Time: heartbeats both ways, silence noticed, pauses of this side excused.

use std::time::Duration;

use crate::lane::close::CloseReason;
use crate::lane::pulse::{Due, GREETING_TIMEOUT, HEARTBEAT, Pulse, SILENCE, STALL};
use crate::time::Time;

const MS: Duration = Duration::from_millis(1);

/// Ticks whenever the pulse asks for it, until something other than a heartbeat is due or `end` is reached.
fn run(
    pulse: &mut Pulse,
    waiting: bool,
    end: Time,
    mut on_beat: impl FnMut(&mut Pulse, Time),
) -> Option<(Time, CloseReason)> {
    loop {
        let now = pulse.next_open(waiting);
        if now > end {
            return None;
        }
        match pulse.tick_open(now, waiting) {
            Due::Nothing => {}
            Due::Heartbeat => on_beat(pulse, now),
            Due::End(reason) => return Some((now, reason)),
        }
    }
}

#[test]
fn a_quiet_lane_beats_four_times_a_second() {
    let mut pulse = Pulse::new(Time::ZERO);
    let mut beats = 0;
    let ended = run(&mut pulse, false, Time::ZERO + 10 * SILENCE, |pulse, now| {
        beats += 1;
        pulse.moved(now);
        pulse.heard(now);
    });
    assert_eq!((ended, beats), (None, 40));
}

#[test]
fn a_silent_peer_is_noticed_at_the_limit_and_not_before() {
    let mut pulse = Pulse::new(Time::ZERO);
    pulse.heard(Time::ZERO + 10 * MS);
    let ended = run(&mut pulse, false, Time::ZERO + 10 * SILENCE, |pulse, now| pulse.moved(now));
    assert_eq!(ended, Some((Time::ZERO + 10 * MS + SILENCE, CloseReason::Silent)));
}

#[test]
fn silence_is_noticed_even_while_this_side_sends_all_the_time() {
    let mut pulse = Pulse::new(Time::ZERO);
    let mut now = Time::ZERO;
    loop {
        now = now + MS;
        pulse.moved(now);
        if pulse.next_open(false) <= now && pulse.tick_open(now, false) == Due::End(CloseReason::Silent) {
            break;
        }
    }
    assert_eq!(now, Time::ZERO + SILENCE);
}

#[test]
fn a_peer_that_takes_nothing_is_a_slow_reader() {
    let mut pulse = Pulse::new(Time::ZERO);
    let ended = loop {
        let now = pulse.next_open(true);
        pulse.heard(now);
        if let Due::End(reason) = pulse.tick_open(now, true) {
            break (now, reason);
        }
    };
    assert_eq!(ended, (Time::ZERO + STALL, CloseReason::SlowReader));
}

#[test]
fn a_pause_of_this_side_is_no_silence_of_the_peer() {
    let mut pulse = Pulse::new(Time::ZERO);
    let woken = Time::ZERO + 30 * SILENCE;
    assert_eq!(pulse.tick_open(woken, true), Due::Nothing);
    let ended = run(&mut pulse, false, woken + 10 * SILENCE, |pulse, now| pulse.moved(now));
    let (when, reason) = ended.unwrap();
    assert_eq!(reason, CloseReason::Silent);
    assert_eq!(when, woken + (SILENCE - HEARTBEAT), "the peer gets what it had left");
}

#[test]
fn a_greeting_has_its_time() {
    let mut pulse = Pulse::new(Time::ZERO);
    loop {
        let now = pulse.next_greeting();
        if pulse.tick_greeting(now) == Due::End(CloseReason::GreetingTimeout) {
            assert_eq!(now, Time::ZERO + GREETING_TIMEOUT);
            break;
        }
        assert!(now < Time::ZERO + GREETING_TIMEOUT);
    }
}
