//! What was sent to a side that was paused is older than it says, until its peer has answered.

use std::time::Duration;

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{Header, Kind};

use super::protocol::{START, feed, open, pump};
use crate::lane::model::{config, own_frame};
use crate::lane::protocol::{ECHO, Lane, PROBE};

const PAUSE: Duration = Duration::from_millis(300);

#[test]
fn what_was_sent_before_the_echo_is_old_and_what_comes_behind_it_is_not() {
    let (mut here, mut there) = open();
    // Queued there before the echo, and not even written by then.
    there.forward(Header::new(Kind::Event), &[]).unwrap();
    here.paused(PAUSE);
    assert_eq!(here.lag_ns(), 300_000_000);
    let probe = Header::read(here.unsent()).unwrap();
    assert_eq!((probe.kind, probe.code, here.unsent().len()), (Kind::Heartbeat, PROBE, HEADER_BYTES));
    pump(&mut here, &mut there, START);
    let echo = Header::read(&there.unsent()[HEADER_BYTES..]).unwrap();
    assert_eq!((echo.kind, echo.code), (Kind::Heartbeat, ECHO));
    let (event, echo) = there.unsent().split_at(HEADER_BYTES);
    feed(&mut here, event, START);
    assert_eq!(here.lag_ns(), 300_000_000);
    feed(&mut here, echo, START);
    assert_eq!((here.lag_ns(), there.lag_ns()), (0, 0));
}

#[test]
fn a_pause_before_the_lane_is_open_is_asked_about_when_it_is() {
    let (mut here, mut there) = (Lane::dial(config("here"), START), Lane::accept(config("there"), START));
    there.paused(PAUSE);
    there.paused(PAUSE);
    pump(&mut here, &mut there, START);
    pump(&mut there, &mut here, START);
    pump(&mut here, &mut there, START);
    assert!(there.is_open());
    assert_eq!((there.lag_ns(), there.unsent().len()), (600_000_000, 2 * HEADER_BYTES));
    pump(&mut there, &mut here, START);
    pump(&mut here, &mut there, START);
    assert_eq!(there.lag_ns(), 0);
}

#[test]
fn a_probe_that_finds_no_room_is_sent_when_there_is() {
    let (mut here, _) = open();
    let mut unsent = 0;
    loop {
        here.paused(PAUSE);
        let before = std::mem::replace(&mut unsent, here.unsent().len());
        if before == unsent {
            break;
        }
    }
    here.sent(unsent, START);
    here.on_tick(START);
    assert_eq!(here.unsent().len(), HEADER_BYTES);
    assert_eq!(Header::read(here.unsent()).unwrap().code, PROBE);
}

#[test]
fn an_echo_that_nobody_asked_for_means_nothing() {
    let (mut here, _) = open();
    let mut echo = own_frame(Kind::Heartbeat, &[]);
    Header { code: ECHO, ..Header::EMPTY }.write(&mut echo);
    feed(&mut here, &echo, START);
    here.paused(PAUSE);
    assert_eq!(here.lag_ns(), 300_000_000);
}
