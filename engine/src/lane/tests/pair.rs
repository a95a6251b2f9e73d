//! Two lanes driven by random operations, and the fuzzer's corpus replayed; what must hold is in the model.

use std::path::Path;

use proptest::prelude::*;

use crate::lane::model::{fuzz_handshake, fuzz_lane};

/// Runs `entry` on each file of the fuzz target's committed corpus.
fn replay(target: &str, entry: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for file in std::fs::read_dir(corpus).unwrap() {
        entry(&std::fs::read(file.unwrap().path()).unwrap());
        files += 1;
    }
    assert!(files >= 3, "the corpus of {target} is missing");
}

#[test]
fn the_corpus_of_the_lane_holds() {
    replay("lane", fuzz_lane);
}

#[test]
fn the_corpus_of_the_handshake_holds() {
    replay("handshake", fuzz_handshake);
}

/// Operations that open the lane first, so that few are wasted on the greeting.
fn opened(operations: &[(u8, u8)]) -> Vec<u8> {
    let open = [(16, 255), (21, 255), (17, 255), (20, 255), (16, 255), (21, 255)];
    open.iter().chain(operations).flat_map(|(what, much)| [*what, *much]).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_operations_leave_a_pair_consistent(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz_lane(&data);
    }

    #[test]
    fn honest_operations_never_make_a_peer_faulty(
        operations in proptest::collection::vec((0u8..26, any::<u8>()), 0..600)
    ) {
        fuzz_lane(&opened(&operations));
    }
}
