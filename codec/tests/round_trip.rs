//! Whatever value a message holds, its reader finds the same: on this shard, in another process, or copied
//! out.

extern crate catga_codec as catga;

use catga::rkyv::util::AlignedVec;
use catga::{
    EncodeError, ForeignFrame, Header, Kind, Message, OwnedFrame, Parsed, encode_frame, message, padded,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

#[message]
#[derive(Debug, Clone, PartialEq)]
struct Everything {
    numbers: (),
    signed: [i64; 3],
    wide: u128,
    wider: i128,
    ratio: f32,
    letter: char,
    text: String,
    rows: Vec<Vec<Option<u16>>>,
    parts: Vec<Part>,
    first: Option<Box<Part>>,
    names: [String; 2],
}

#[message]
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Nothing,
    One(bool),
    Many { names: Vec<String>, inner: Box<Inner> },
}

#[message]
#[derive(Debug, Clone, PartialEq)]
struct Inner(u8, Option<Option<i8>>);

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![
        Just(Part::Nothing),
        any::<bool>().prop_map(Part::One),
        (vec(".{0,20}", 0..4), any::<u8>(), option::of(option::of(any::<i8>())))
            .prop_map(|(names, a, b)| Part::Many { names, inner: Box::new(Inner(a, b)) }),
    ]
}

prop_compose! {
    fn everything()(
        signed in any::<[i64; 3]>(),
        (wide, wider) in any::<(u128, i128)>(),
        ratio in -1e30_f32..1e30,
        letter in any::<char>(),
        (text, names) in (".{0,64}", [".{0,9}", ".{0,30}"]),
        rows in vec(vec(option::of(any::<u16>()), 0..6), 0..30),
        parts in vec(part(), 0..8),
        first in option::of(part().prop_map(Box::new)),
    ) -> Everything {
        Everything { numbers: (), signed, wide, wider, ratio, letter, text, rows, parts, first, names }
    }
}

fn memory(bytes: usize) -> AlignedVec<16> {
    let mut memory = AlignedVec::new();
    memory.resize(bytes, 0);
    memory
}

proptest! {
    #[test]
    fn a_value_comes_back_trusted_and_checked(value in everything()) {
        let mut frame = OwnedFrame::new();
        frame.encode(Header::new(Kind::Request), &value).unwrap();
        prop_assert_eq!(&Everything::deserialize(frame.access::<Everything>().unwrap()), &value);

        let mut lane = memory(padded(frame.bytes().len()));
        frame.local().unwrap().export(1, &mut lane).unwrap();
        let Ok(Parsed::Frame(foreign, occupied)) = ForeignFrame::parse(&lane, lane.len()) else { panic!() };
        prop_assert_eq!(occupied, lane.len());
        prop_assert_eq!(&Everything::deserialize(foreign.access::<Everything>().unwrap()), &value);
    }

    #[test]
    fn the_same_value_is_the_same_bytes_whatever_the_memory_held(value in everything(), dirt in any::<u8>()) {
        let mut clean = memory(65_536);
        let mut dirty = memory(65_536);
        dirty.fill(dirt);
        let length = encode_frame(Header::new(Kind::Request), &value, &mut clean).unwrap();
        prop_assert_eq!(encode_frame(Header::new(Kind::Request), &value, &mut dirty), Ok(length));
        prop_assert_eq!(&clean[..length], &dirty[..length]);
    }

    #[test]
    fn memory_one_byte_too_small_is_full(value in everything()) {
        let mut exact = memory(65_536);
        let length = encode_frame(Header::new(Kind::Request), &value, &mut exact).unwrap();
        prop_assert_eq!(encode_frame(Header::new(Kind::Request), &value, &mut exact[..length]), Ok(length));
        let short = &mut exact[..length - 1];
        prop_assert_eq!(encode_frame(Header::new(Kind::Request), &value, short), Err(EncodeError::Full));
    }
}
