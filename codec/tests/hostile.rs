//! Bytes from outside: any, damaged, cut short, with lies in their headers. Never a panic, always the right
//! error.

extern crate catga_codec as catga;

#[allow(missing_docs, unreachable_pub, clippy::expect_used, dead_code)]
#[path = "../fuzz/src/entry.rs"]
mod entry;

use std::fs;
use std::path::Path;

use catga::rkyv::util::AlignedVec;
use catga::{
    AccessError, Extension, Fault, ForeignFrame, FrameError, Header, Kind, Message, MessageId, Parsed,
    encode_frame, limits, write_extensions,
};
use entry::{Branch, Plain, Side, Tree};
use proptest::prelude::*;

fn aligned(bytes: &[u8]) -> AlignedVec<16> {
    let mut memory = AlignedVec::new();
    memory.extend_from_slice(bytes);
    memory
}

fn parse_error(bytes: &[u8]) -> FrameError {
    match ForeignFrame::parse(&aligned(bytes), limits::FRAME_MAX_BYTES) {
        Err(error) => error,
        Ok(parsed) => panic!("these bytes parse: {parsed:?}"),
    }
}

fn tree() -> Tree {
    Tree {
        name: "a name that does not lie in line".into(),
        branches: vec![
            Branch::Empty,
            Branch::Leaf(Plain {
                wide: 1 << 99,
                small: -1,
                flag: true,
                letter: 'ß',
                ratio: 0.5,
                pair: [1, 2],
            }),
            Branch::Named { labels: vec!["left".into(), "and the other way".into()], side: Some(Side::Left) },
        ],
        rows: vec![vec![1, 2, 3], vec![], vec![4]],
        note: Some(Box::new(Side::Left)),
    }
}

#[test]
fn every_header_field_that_lies_has_an_error_of_its_own() {
    let good = entry::example_frame(&tree());
    let with = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let max = limits::FRAME_MAX_BYTES;
    assert_eq!(
        parse_error(&with(0, &u32::MAX.to_le_bytes())),
        FrameError::TooLarge { length: u32::MAX, max }
    );
    assert_eq!(parse_error(&with(0, &[0; 4])), FrameError::TooShort { length: 0 });
    assert_eq!(parse_error(&with(0, &[47, 0, 0, 0])), FrameError::TooShort { length: 47 });
    assert_eq!(parse_error(&with(4, &[0])), FrameError::UnknownKind(0));
    assert_eq!(parse_error(&with(4, &[14])), FrameError::UnknownKind(14));
    assert_eq!(parse_error(&with(5, &[8])), FrameError::UnknownFlags(8));
    assert_eq!(parse_error(&with(5, &[4])), FrameError::LocalOnly);
    assert_eq!(parse_error(&with(38, &[8, 0])), FrameError::ExtensionArea { bytes: 8 });
    assert_eq!(parse_error(&with(38, &[0x10, 4])), FrameError::ExtensionArea { bytes: 1040 });
    let mut overrun = with(38, &[16, 0]);
    overrun[48..52].copy_from_slice(&[9, 0, 255, 255]);
    assert_eq!(parse_error(&overrun), FrameError::Extension { tag: 9 });
    let empty = [&48_u32.to_le_bytes()[..], &[8], &[0; 33], &[16, 0], &[0; 8]].concat();
    assert_eq!(parse_error(&empty), FrameError::TooShort { length: 48 });
}

#[test]
fn a_length_over_the_limit_is_refused_before_the_rest_is_waited_for() {
    let bytes = aligned(&4097_u32.to_le_bytes());
    let refused = FrameError::TooLarge { length: 4097, max: 4096 };
    assert_eq!(ForeignFrame::parse(&bytes, 4096).map(|_| ()), Err(refused));
    // No reader can raise the limit of the format.
    let bytes = aligned(&u32::MAX.to_le_bytes());
    assert!(matches!(ForeignFrame::parse(&bytes, usize::MAX), Err(FrameError::TooLarge { .. })));
}

#[test]
fn a_misaligned_frame_is_refused() {
    let memory = aligned(&[&[0; 8][..], &entry::example_frame(&tree())].concat());
    assert_eq!(ForeignFrame::parse(&memory[8..], 4096).map(|_| ()), Err(FrameError::Misaligned));
}

#[test]
fn a_frame_cut_anywhere_is_incomplete_and_says_what_it_needs() {
    let good = aligned(&entry::example_frame(&tree()));
    for cut in 0..good.len() {
        let Ok(Parsed::Incomplete { needed }) = ForeignFrame::parse(&good[..cut], 4096) else {
            panic!("cut at {cut} it is not incomplete");
        };
        assert!(needed > cut, "cut at {cut} it says that {needed} bytes suffice");
        assert_eq!(needed, if cut < 4 { limits::HEADER_BYTES } else { good.len() });
    }
    assert!(
        matches!(ForeignFrame::parse(&good, 4096), Ok(Parsed::Frame(_, occupied)) if occupied == good.len())
    );
}

#[test]
fn another_message_is_named_in_the_error() {
    let bytes = aligned(&entry::example_frame(&tree()));
    let Ok(Parsed::Frame(frame, _)) = ForeignFrame::parse(&bytes, 4096) else { panic!() };
    let error = frame.access::<Fault>().unwrap_err();
    let (expected, found) = (MessageId::of("fault", 1), MessageId::of("Tree", 1));
    assert_eq!(error, AccessError::OtherMessage { name: "fault", expected, found });
}

#[test]
fn a_payload_too_small_or_wrong_for_its_message_is_invalid() {
    for length in 0..64 {
        let mut bytes = aligned(&[0xff; 48 + 64]);
        let header = Header { length: 48 + length, message: Tree::ID, ..Header::new(Kind::Request) };
        header.write(&mut bytes);
        let Ok(Parsed::Frame(frame, _)) = ForeignFrame::parse(&bytes, 4096) else { panic!() };
        assert_eq!(
            frame.access::<Tree>().map(|_| ()),
            Err(AccessError::Invalid { name: "Tree" }),
            "{length} bytes"
        );
    }
}

#[test]
fn extensions_travel_and_do_not_disturb_the_payload() {
    let mut memory = aligned(&[0; 4096]);
    let trace = [3; 32];
    let extension_bytes = write_extensions(&mut memory[48..], &[Extension { tag: 1, data: &trace }]).unwrap();
    let header = Header { extension_bytes, ..Header::new(Kind::Request) };
    encode_frame(header, &tree(), &mut memory).unwrap();
    let Ok(Parsed::Frame(frame, _)) = ForeignFrame::parse(&memory, 4096) else { panic!() };
    assert_eq!(frame.extensions().find(1), Some(&trace[..]));
    assert_eq!(Tree::deserialize(frame.access::<Tree>().unwrap()), tree());
}

#[test]
fn the_fuzz_corpus_replays() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    for (target, run) in [("frame", entry::frame as fn(&[u8])), ("local_to_foreign", entry::local_to_foreign)]
    {
        let mut files = 0;
        for file in fs::read_dir(corpus.join(target)).unwrap() {
            run(&fs::read(file.unwrap().path()).unwrap());
            files += 1;
        }
        assert!(files > 0, "the corpus of {target} is missing");
    }
}

/// Run with `cargo test -p catga-codec --test hostile -- --ignored` after the wire has changed.
#[test]
#[ignore = "writes the seeds of the fuzz corpus"]
fn write_the_seeds_of_the_corpus() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
    let plain = Plain { wide: 7, small: 1, flag: false, letter: 'a', ratio: f64::NAN, pair: [0, 9] };
    let named = Branch::Named { labels: vec!["x".into(); 3], side: Some(Side::Right) };
    let good = [
        ("tree", entry::example_frame(&tree())),
        ("plain", entry::example_frame(&plain)),
        ("branch", entry::example_frame(&named)),
        ("side", entry::example_frame(&Side::Right)),
        ("fault", entry::example_frame(&Fault::new("the shelf is empty"))),
        ("unit", entry::example_frame(&())),
    ];
    for (name, bytes) in &good {
        fs::write(corpus.join("frame").join(name), bytes).unwrap();
        let mut damaged = bytes.clone();
        let middle = 48 + (bytes.len() - 48) / 2;
        damaged.iter_mut().skip(middle).step_by(5).for_each(|byte| *byte ^= 0x55);
        fs::write(corpus.join("frame").join(format!("{name}_damaged")), damaged).unwrap();
    }
    let two = [&good[0].1[..], &good[4].1[..], &good[1].1[..40]].concat();
    fs::write(corpus.join("frame/two_and_a_cut_one"), two).unwrap();
    for seed in 0..6_u32 {
        let bytes: Vec<u8> = (0..160).map(|i| (((i + 1) * (seed * 37 + 11)) >> (seed % 3)) as u8).collect();
        fs::write(corpus.join(format!("local_to_foreign/seed_{seed}")), bytes).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        entry::frame(&bytes);
    }

    #[test]
    fn damaged_frames_are_refused_or_valid(flips in proptest::collection::vec((any::<proptest::sample::Index>(), 1..=255_u8), 1..12)) {
        let mut bytes = entry::example_frame(&tree());
        for (at, with) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= with;
        }
        entry::frame(&bytes);
    }

    #[test]
    fn values_cross_or_are_refused_when_damaged(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        entry::local_to_foreign(&bytes);
    }
}
