//! The two things that must hold for all bytes, called by the fuzz targets and by the tests that replay their
//! corpus.
//!
//! `frame`: whatever another process sends, parsing and reading it neither panics nor reads outside it; and
//! what does pass the check is a value that archives again to an equal one. `local_to_foreign`: what this
//! process encodes comes back equal, and damaged on its way it is refused or is a valid value, nothing
//! between.

use std::fmt::Debug;

use catga::rkyv::util::AlignedVec;
use catga::{ForeignFrame, Header, Kind, Message, OwnedFrame, Parsed, encode_local, limits, message};

/// Plain values of each width, and those with invalid bit patterns.
#[message]
#[derive(Debug, Clone, PartialEq)]
pub struct Plain {
    pub wide: u128,
    pub small: i8,
    pub flag: bool,
    pub letter: char,
    pub ratio: f64,
    pub pair: [u16; 2],
}

/// Everything that points somewhere.
#[message]
#[derive(Debug, Clone, PartialEq)]
pub struct Tree {
    pub name: String,
    pub branches: Vec<Branch>,
    pub rows: Vec<Vec<u32>>,
    pub note: Option<Box<Side>>,
}

/// An enum with variants of each form.
#[message]
#[derive(Debug, Clone, PartialEq)]
pub enum Branch {
    Empty,
    Leaf(Plain),
    Named { labels: Vec<String>, side: Option<Side> },
}

/// An enum whose tags have gaps.
#[message]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Side {
    Left = 1,
    Right = 9,
}

/// The largest frame that the targets accept.
const MAX_BYTES: usize = 64 * 1024;

/// Reads any bytes as a frame, then once more for each message type with the header repaired, so that the
/// bytes behind it are read as a payload.
pub fn frame(input: &[u8]) {
    let mut bytes = aligned(input);
    read_all(&bytes);
    if bytes.len() < limits::HEADER_BYTES {
        return;
    }
    let ids = [Plain::ID, Tree::ID, Branch::ID, Side::ID, catga::Fault::ID, <()>::ID];
    for message in ids {
        let header = Header { length: bytes.len() as u32, message, ..Header::new(Kind::Request) };
        header.write(&mut bytes);
        let mut padded = bytes.clone();
        padded.resize(catga::padded(bytes.len()), 0);
        read_all(&padded);
    }
}

/// Makes a value of the input, sends it, and damages it as the input says.
pub fn local_to_foreign(input: &[u8]) {
    let mut source = Source { input };
    let tree = source.tree();
    let mut frame = OwnedFrame::new();
    frame.encode(Header::new(Kind::Event), &tree).expect("the values made here are small");
    let archived = frame.access::<Tree>().expect("encoded as a tree");
    assert_equal(&Tree::deserialize(archived), &tree);

    let mut lane = aligned(&vec![0; catga::padded(frame.bytes().len())]);
    let local = frame.local().expect("encoded here");
    local.export(0x5eed, &mut lane).expect("as long as the frame");
    let Ok(Parsed::Frame(foreign, _)) = ForeignFrame::parse(&lane, MAX_BYTES) else {
        panic!("a frame of ours does not parse");
    };
    assert_eq!(foreign.header().context, 0x5eed);
    assert_equal(&Tree::deserialize(foreign.access::<Tree>().expect("undamaged")), &tree);

    while let [at, with, rest @ ..] = source.input {
        source.input = rest;
        let at = usize::from(*at) * lane.len() / 256;
        lane[at] ^= *with;
        read_all(&lane);
    }
}

/// Parses frame after frame and reads each as every type.
fn read_all(bytes: &AlignedVec<16>) {
    let mut rest = &bytes[..];
    while let Ok(Parsed::Frame(frame, occupied)) = ForeignFrame::parse(rest, MAX_BYTES) {
        assert!(frame.bytes().len() <= occupied && occupied <= rest.len());
        assert!(frame.extensions().all(|entry| entry.is_ok()), "parsing checks the extensions");
        read::<Plain>(frame);
        read::<Tree>(frame);
        read::<Branch>(frame);
        read::<Side>(frame);
        read::<catga::Fault>(frame);
        read::<()>(frame);
        relay(frame);
        rest = &rest[occupied..];
    }
}

/// What passes the check can be printed, made an owned value, and archived again to an equal one.
fn read<T: Message<Archived: Debug> + Debug>(frame: ForeignFrame<'_>) {
    let Ok(archived) = frame.access::<T>() else { return };
    assert!(!format!("{archived:?}").is_empty());
    let value = T::deserialize(archived);
    let mut again = OwnedFrame::new();
    again.encode(Header::new(Kind::Reply), &value).expect("no larger than what it came from");
    assert_equal(&T::deserialize(again.access::<T>().expect("encoded as this type")), &value);
}

/// A foreign frame that is kept or passed on inside this process is never taken for one of its own.
fn relay(frame: ForeignFrame<'_>) {
    let mut owned = OwnedFrame::new();
    owned.copy_foreign(frame);
    assert!(owned.local().is_none());
    assert_eq!(owned.foreign().map(|copy| copy.bytes()), Some(frame.bytes()));
    assert_eq!(owned.access::<Tree>().is_ok(), frame.access::<Tree>().is_ok());
    let mut ring = aligned(frame.bytes());
    frame.import(&mut ring).expect("as long as the frame");
    assert_eq!(Header::read(&ring).map(|header| header.context), Ok(0));
}

/// Equal as printed, so that a NaN is equal to itself.
fn assert_equal<T: Debug>(left: &T, right: &T) {
    assert_eq!(format!("{left:?}"), format!("{right:?}"));
}

fn aligned(bytes: &[u8]) -> AlignedVec<16> {
    let mut aligned = AlignedVec::with_capacity(bytes.len());
    aligned.extend_from_slice(bytes);
    aligned
}

/// Makes values out of bytes: first come, first used; zeros when they run out.
struct Source<'a> {
    input: &'a [u8],
}

impl Source<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.input.split_first() else { return 0 };
        self.input = rest;
        *first
    }

    fn count(&mut self) -> usize {
        usize::from(self.byte() % 6)
    }

    fn many<T>(&mut self, mut one: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..self.count()).map(|_| one(self)).collect()
    }

    fn text(&mut self) -> String {
        let length = usize::from(self.byte() % 24);
        (0..length).map(|_| char::from(self.byte())).collect()
    }

    fn plain(&mut self) -> Plain {
        Plain {
            wide: u128::from(self.byte()) << 100,
            small: self.byte() as i8,
            flag: self.byte().is_multiple_of(2),
            letter: char::from(self.byte()),
            ratio: f64::from(self.byte()) / 3.0,
            pair: [self.byte().into(), 7],
        }
    }

    fn side(&mut self) -> Option<Side> {
        match self.byte() % 3 {
            0 => None,
            1 => Some(Side::Left),
            _ => Some(Side::Right),
        }
    }

    fn branch(&mut self) -> Branch {
        match self.byte() % 3 {
            0 => Branch::Empty,
            1 => Branch::Leaf(self.plain()),
            _ => Branch::Named { labels: self.many(Self::text), side: self.side() },
        }
    }

    fn tree(&mut self) -> Tree {
        Tree {
            name: self.text(),
            branches: self.many(Self::branch),
            rows: self.many(|source| source.many(|source| source.byte().into())),
            note: self.side().map(Box::new),
        }
    }
}

/// A frame that the corpus starts from.
pub fn example_frame<T: Message>(message: &T) -> Vec<u8> {
    let mut memory = aligned(&[0; 2048]);
    let length = encode_local(Header::new(Kind::Request), message, &mut memory).expect("examples are small");
    memory[..catga::padded(length)].to_vec()
}
