//! The proof of the cluster's key: who has it comes in, and nobody else, whatever they send, repeat or alter.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use catga_codec::limits::HEADER_BYTES;
use catga_codec::{Header, Kind, padded};
use catga_discovery::NodeId;

use super::protocol::{START, feed, open_with, pump};
use crate::lane::close::{CloseReason, Closed, Closer};
use crate::lane::config::LaneConfig;
use crate::lane::key::{ClusterKey, KEY_BYTES_MAX, KEY_BYTES_MIN};
use crate::lane::model::{config, own_frame};
use crate::lane::protocol::Lane;

fn keyed(name: &str, key: &str) -> LaneConfig {
    LaneConfig { key: ClusterKey::new(key.as_bytes()).unwrap(), ..config(name) }
}

fn keyless(name: &str) -> LaneConfig {
    LaneConfig { key: ClusterKey::none(), ..config(name) }
}

/// The same side on another connection: all but its nonce is the same.
fn again(name: &str, nonce: u8) -> LaneConfig {
    let mut config = config(name);
    config.greeting.nonce = [nonce; 16];
    config
}

/// What a side has to send, and has sent.
fn sends(lane: &mut Lane) -> Vec<u8> {
    let bytes = lane.unsent().to_vec();
    lane.sent(bytes.len(), START);
    bytes
}

/// The first frame's payload.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[HEADER_BYTES..Header::read(frame).unwrap().length as usize]
}

/// How a lane ends by these bytes, if it does.
fn reason(lane: &mut Lane, bytes: &[u8]) -> Option<CloseReason> {
    let (frames, closed) = feed(lane, bytes, START);
    assert!(frames.is_empty(), "a frame came through");
    assert!(!lane.is_open());
    closed.map(|closed| closed.reason)
}

/// What went over the wire of a lane that opened: Hello, Welcome, Proof.
fn recorded() -> [Vec<u8>; 3] {
    let (mut dialer, mut acceptor) =
        (Lane::dial(config("here"), START), Lane::accept(config("there"), START));
    let hello = sends(&mut dialer);
    feed(&mut acceptor, &hello, START);
    let welcome = sends(&mut acceptor);
    feed(&mut dialer, &welcome, START);
    let proof = sends(&mut dialer);
    feed(&mut acceptor, &proof, START);
    assert!(dialer.is_open() && acceptor.is_open());
    [hello, welcome, proof]
}

#[test]
fn the_dialer_is_open_after_one_round_trip_and_the_acceptor_by_the_proof() {
    let (mut dialer, mut acceptor) =
        (Lane::dial(config("here"), START), Lane::accept(config("there"), START));
    pump(&mut dialer, &mut acceptor, START);
    assert!(!dialer.is_open() && !acceptor.is_open() && acceptor.agreement().is_none());
    pump(&mut acceptor, &mut dialer, START);
    assert!(dialer.is_open() && !acceptor.is_open() && acceptor.agreement().is_none());
    // What it sends right behind comes in the same bytes.
    dialer.forward(Header::new(Kind::Event), &[7; 100]).unwrap();
    let (frames, closed) = pump(&mut dialer, &mut acceptor, START);
    assert!(acceptor.is_open() && closed.is_none() && frames.len() == 1);
    assert_eq!(acceptor.agreement().unwrap().endpoint, dialer.agreement().unwrap().endpoint);
}

#[test]
fn without_a_key_on_both_sides_the_same_exchange_opens_the_lane() {
    let (dialer, acceptor) = open_with(keyless("here"), keyless("there"));
    assert!(dialer.is_open() && acceptor.is_open());
}

#[test]
fn a_key_on_one_side_only_is_said_to_be_missing_to_both() {
    for (here, there) in [(config("here"), keyless("there")), (keyless("here"), config("there"))] {
        let (mut dialer, mut acceptor) = (Lane::dial(here, START), Lane::accept(there, START));
        let (_, closed) = pump(&mut dialer, &mut acceptor, START);
        assert_eq!(closed, Some(Closed { reason: CloseReason::KeyMissing, by: Closer::Here }));
        let (_, closed) = pump(&mut acceptor, &mut dialer, START);
        assert_eq!(closed, Some(Closed { reason: CloseReason::KeyMissing, by: Closer::Peer }));
    }
}

#[test]
fn another_key_is_found_out_by_the_dialer_and_both_are_told() {
    let there = keyed("there", "another key of another cluster");
    let (mut dialer, mut acceptor) = (Lane::dial(config("here"), START), Lane::accept(there, START));
    pump(&mut dialer, &mut acceptor, START);
    let (_, closed) = pump(&mut acceptor, &mut dialer, START);
    assert_eq!(closed, Some(Closed { reason: CloseReason::WrongKey, by: Closer::Here }));
    let (_, closed) = pump(&mut dialer, &mut acceptor, START);
    assert_eq!(closed, Some(Closed { reason: CloseReason::WrongKey, by: Closer::Peer }));
    assert!(CloseReason::WrongKey.to_string().contains(".key(..)"));
}

#[test]
fn a_dialer_without_the_key_that_says_it_has_one_is_found_out_by_its_proof() {
    let [hello, welcome, _] = recorded();
    let mut acceptor = Lane::accept(config("there"), START);
    assert_eq!(reason(&mut acceptor, &hello), None);
    // It has seen all that went over the wire, and computes by the right rules with the key it guesses.
    let mut mac = Hmac::<Sha256>::new_from_slice(b"a guess of sixteen bytes").unwrap();
    mac.update(b"catga lane proof v1");
    for text in [payload(&hello), payload(&welcome)] {
        mac.update(&(text.len() as u64).to_le_bytes());
        mac.update(text);
    }
    let proof = own_frame(Kind::Proof, &mac.finalize().into_bytes());
    assert_eq!(reason(&mut acceptor, &proof), Some(CloseReason::WrongKey));
}

#[test]
fn a_recorded_handshake_opens_nothing_at_a_fresh_acceptor_or_dialer() {
    let [hello, welcome, proof] = recorded();
    let mut acceptor = Lane::accept(again("there", 77), START);
    assert_eq!(reason(&mut acceptor, &hello), None, "its greeting is as good as any");
    assert_ne!(payload(acceptor.unsent()), payload(&welcome));
    assert_eq!(reason(&mut acceptor, &proof), Some(CloseReason::WrongKey));
    let mut dialer = Lane::dial(again("here", 78), START);
    assert_eq!(reason(&mut dialer, &welcome), Some(CloseReason::WrongKey));
    // All of it at once, as a player of tapes would send it.
    let mut acceptor = Lane::accept(again("there", 79), START);
    assert_eq!(reason(&mut acceptor, &[hello, proof].concat()), Some(CloseReason::WrongKey));
}

#[test]
fn what_a_side_says_cannot_be_sent_back_to_it() {
    // A stranger is dialed, and dials back with what it was sent, to have its proofs made for it.
    let mut dialer = Lane::dial(config("here"), START);
    let hello = sends(&mut dialer);
    let mut acceptor = Lane::accept(again("here", 80), START);
    assert_eq!(reason(&mut acceptor, &hello), Some(CloseReason::ConnectedToSelf));
    assert_eq!(reason(&mut dialer, &hello), Some(CloseReason::WrongRole));
    // Under another name that is no longer what was said, and the Welcome it gets fits nothing that was.
    let mut dialer = Lane::dial(config("here"), START);
    sends(&mut dialer);
    let mut stranger = config("other");
    stranger.key = ClusterKey::new(b"what the stranger thinks up").unwrap();
    stranger.greeting.nonce = config("here").greeting.nonce;
    let mut acceptor = Lane::accept(again("here", 81), START);
    assert_eq!(reason(&mut acceptor, &sends(&mut Lane::dial(stranger, START))), None);
    let mut welcome = sends(&mut acceptor);
    assert_eq!(reason(&mut acceptor, &welcome), Some(CloseReason::WrongRole), "nor to who made it");
    // The engine that dials takes no Welcome from its own id; one that has another id of the cluster's key gets no further.
    assert_eq!(reason(&mut dialer, &welcome), Some(CloseReason::ConnectedToSelf));
    let mut third = Lane::dial(again("third", 82), START);
    sends(&mut third);
    assert_eq!(reason(&mut third, &welcome), Some(CloseReason::WrongKey));
    // A proof of the acceptor is none of the dialer.
    let mut acceptor = Lane::accept(config("there"), START);
    feed(&mut acceptor, &hello, START);
    welcome = sends(&mut acceptor);
    let proof = payload(&welcome).last_chunk::<32>().unwrap();
    assert_eq!(reason(&mut acceptor, &own_frame(Kind::Proof, proof)), Some(CloseReason::WrongKey));
}

#[test]
fn an_altered_byte_of_a_greeting_or_proof_opens_no_acceptor_and_no_dialer_that_it_reached() {
    let [hello, welcome, proof] = recorded();
    for (which, original) in [&hello, &welcome, &proof].into_iter().enumerate() {
        for at in 0..payload(original).len() {
            let mut altered = original.clone();
            altered[HEADER_BYTES + at] ^= 1 << (at % 8);
            let (mut dialer, mut acceptor) =
                (Lane::dial(config("here"), START), Lane::accept(config("there"), START));
            sends(&mut dialer);
            feed(&mut acceptor, if which == 0 { &altered } else { &hello }, START);
            let mut answer = sends(&mut acceptor);
            if which == 1 {
                assert_eq!(answer, welcome);
                answer.clone_from(&altered);
            }
            feed(&mut dialer, &answer, START);
            assert_eq!(dialer.is_open(), which == 2, "byte {at} of frame {which}");
            let mut last = sends(&mut dialer);
            if which == 2 {
                assert_eq!(last, proof);
                last.clone_from(&altered);
            }
            feed(&mut acceptor, &last, START);
            assert!(!acceptor.is_open() && acceptor.closed().is_some(), "byte {at} of frame {which}");
        }
    }
}

#[test]
fn a_node_that_another_one_stands_in_for_is_not_believed() {
    // Both have the key, but the one dialed says that it is another.
    let mut wants = config("here");
    wants.expected_peer = Some(NodeId::new("third").unwrap());
    let (mut dialer, mut acceptor) = (Lane::dial(wants, START), Lane::accept(config("there"), START));
    pump(&mut dialer, &mut acceptor, START);
    assert_eq!(pump(&mut acceptor, &mut dialer, START).1.unwrap().reason, CloseReason::UnexpectedPeer);
    assert_eq!(pump(&mut dialer, &mut acceptor, START).1.unwrap().by, Closer::Peer);
}

#[test]
fn whoever_goes_between_welcome_and_proof_leaves_a_lane_that_never_opened() {
    let [hello, ..] = recorded();
    let mut acceptor = Lane::accept(config("there"), START);
    feed(&mut acceptor, &hello, START);
    assert_eq!(acceptor.disconnected().reason, CloseReason::Disconnected);
    assert!(acceptor.agreement().is_none() && acceptor.unsent().is_empty() && acceptor.is_finished(START));
    let mut acceptor = Lane::accept(config("there"), START);
    feed(&mut acceptor, &hello, START);
    let bye = own_frame(Kind::Close, &[]);
    assert_eq!(reason(&mut acceptor, &bye), Some(CloseReason::Unrecognized));
    assert!(acceptor.agreement().is_none());
}

#[test]
fn the_bytes_of_the_proofs_are_those_of_the_protocol() {
    let [hello, welcome, proof] = recorded();
    let (greeting, welcomed) = payload(&welcome).split_last_chunk::<32>().unwrap();
    let expected = |label: &str, texts: &[&[u8]]| -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new_from_slice(b"the key of the tests").unwrap();
        mac.update(label.as_bytes());
        for text in texts {
            mac.update(&(text.len() as u64).to_le_bytes());
            mac.update(text);
        }
        mac.finalize().into_bytes().into()
    };
    assert_eq!(*welcomed, expected("catga lane welcome v1", &[payload(&hello), greeting]));
    let all = [payload(&hello), greeting, welcomed.as_slice()];
    assert_eq!(payload(&proof), expected("catga lane proof v1", &all));
    assert_eq!(proof.len(), padded(HEADER_BYTES + 32));
}

#[test]
fn no_key_is_the_empty_key_of_hmac() {
    let empty = Hmac::<Sha256>::new_from_slice(b"").unwrap();
    let none = ClusterKey::none();
    assert_eq!(none.mac().finalize().into_bytes(), empty.finalize().into_bytes());
}

#[test]
fn a_key_has_its_length_and_is_never_shown() {
    for bytes in [0, 1, KEY_BYTES_MIN - 1, KEY_BYTES_MAX + 1, 1 << 20] {
        assert_eq!(ClusterKey::new(&vec![b'k'; bytes]).unwrap_err().bytes, bytes);
    }
    for bytes in [KEY_BYTES_MIN, 64, 65, KEY_BYTES_MAX] {
        assert!(ClusterKey::new(&vec![b'k'; bytes]).unwrap().is_set());
    }
    let lane = Lane::dial(keyed("here", "a secret that nobody may read"), START);
    let shown = format!("{lane:?} {:?}", config("here"));
    assert!(
        !shown.contains("secret")
            && shown.contains("Transcript(hidden)")
            && shown.contains("ClusterKey(hidden)")
    );
}
