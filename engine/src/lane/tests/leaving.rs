//! The notice of a side that will leave: said once, heard, and nothing else changes.

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{Header, Kind};

use super::protocol::{START, feed, open, pump};
use crate::lane::model::{config, own_frame};
use crate::lane::protocol::{LEAVING, Lane};

#[test]
fn a_side_that_leaves_says_so_once_and_the_lane_works_on() {
    let (mut here, mut there) = open();
    assert!(!here.peer_is_leaving() && !there.peer_is_leaving());
    here.leave();
    assert_eq!(here.unsent().len(), HEADER_BYTES);
    let notice = Header::read(here.unsent()).unwrap();
    assert_eq!((notice.kind, notice.code), (Kind::Heartbeat, LEAVING));
    here.leave();
    assert_eq!(here.unsent().len(), HEADER_BYTES, "it is said once");
    assert_eq!(pump(&mut here, &mut there, START), (vec![], None));
    assert!(there.peer_is_leaving() && !here.peer_is_leaving());
    here.leave();
    assert!(here.unsent().is_empty());
    for lane in [&mut here, &mut there] {
        assert!(lane.is_open() && lane.forward(Header::new(Kind::Event), &[]).is_ok());
    }
    // It is a heartbeat like others, to whom it means nothing more.
    assert_eq!(here.traffic().heartbeats, 1);
}

#[test]
fn a_lane_that_opens_while_its_side_leaves_says_so_first() {
    let (mut here, mut there) = (Lane::dial(config("here"), START), Lane::accept(config("there"), START));
    here.leave();
    there.leave();
    pump(&mut here, &mut there, START);
    assert_eq!(pump(&mut there, &mut here, START), (vec![], None));
    pump(&mut here, &mut there, START);
    assert!(there.is_open() && there.peer_is_leaving());
    pump(&mut there, &mut here, START);
    assert!(here.is_open() && here.peer_is_leaving());
}

#[test]
fn heartbeats_of_a_later_version_are_signs_of_life_and_nothing_else() {
    let (_, mut there) = open();
    for code in [0, 4, u16::MAX] {
        let mut beat = own_frame(Kind::Heartbeat, &[]);
        Header { code, ..Header::EMPTY }.write(&mut beat);
        assert_eq!(feed(&mut there, &beat, START), (vec![], None));
        assert!(there.is_open() && !there.peer_is_leaving(), "code {code}");
    }
}

#[test]
fn an_ended_lane_says_nothing_more() {
    let (mut here, _) = open();
    here.disconnected();
    here.leave();
    assert!(here.unsent().is_empty());
}
