//! Greetings survive the wire, and nothing that a hostile peer writes does harm.

use catga_codec::{ContractKind, FieldPrint, MessageId};
use catga_discovery::{Incarnation, NodeId};
use proptest::prelude::*;

use crate::lane::close::CloseReason;
use crate::lane::greeting::{CALLS_MAX, Greeting, Offer};
use crate::lane::handshake::HandshakeError;
use crate::lane::model::{fuzz_handshake, greeting};

fn any_offer() -> impl Strategy<Value = Offer> {
    let field =
        ("[a-zA-Z_. ]{0,40}", any::<u64>()).prop_map(|(path, fingerprint)| FieldPrint { path, fingerprint });
    let fields = proptest::collection::vec(field, 0..6);
    (any::<u64>(), "[a-zà-ü_]{1,30}", any::<bool>(), any::<bool>(), any::<u64>(), fields).prop_map(
        |(id, name, event, serves, fingerprint, fields)| Offer {
            id: MessageId(id),
            name,
            kind: if event { ContractKind::Event } else { ContractKind::Request },
            serves,
            fingerprint,
            fields,
        },
    )
}

prop_compose! {
    fn any_greeting()(
        versions in (1u16..5, 0u16..5), cluster in "[a-zé-ü ]{1,30}", node in "[A-Za-z0-9._-]{1,64}",
        incarnation in any::<u64>(), shard in any::<u16>(), more in 1u16..9, wanted_shard in any::<u16>(),
        frame_bytes_max in 4144u32.., calls_max in 0..=CALLS_MAX, nonce in any::<[u8; 16]>(),
        keyed in any::<bool>(), endpoint in "[a-z0-9.:/ü]{1,80}",
        offers in proptest::collection::vec(any_offer(), 0..8),
    ) -> Greeting {
        let shards = shard.saturating_add(more);
        Greeting {
            version_min: versions.0,
            version_max: versions.0 + versions.1,
            cluster: cluster.into(),
            node: NodeId::new(node).unwrap(),
            incarnation: Incarnation(incarnation),
            shard: shard.min(shards - 1),
            shards,
            wanted_shard,
            frame_bytes_max,
            calls_max,
            nonce,
            keyed,
            endpoint: endpoint.into(),
            offers: offers.into(),
        }
    }
}

proptest! {
    #[test]
    fn a_greeting_survives_the_wire(greeting in any_greeting()) {
        prop_assert_eq!(Greeting::decode(&greeting.encode().unwrap()).unwrap(), greeting);
    }

    #[test]
    fn a_cut_greeting_is_refused(greeting in any_greeting(), cut in any::<prop::sample::Index>()) {
        let payload = greeting.encode().unwrap();
        let cut = cut.index(payload.len());
        let error = Greeting::decode(&payload[..cut]).unwrap_err();
        prop_assert_eq!(error.close_reason(), CloseReason::MalformedGreeting);
    }

    #[test]
    fn flipped_bits_do_no_harm(greeting in any_greeting(), flips in proptest::collection::vec(any::<(prop::sample::Index, u8)>(), 1..9)) {
        let mut payload = greeting.encode().unwrap();
        for (place, bit) in flips {
            let place = place.index(payload.len());
            payload[place] ^= 1 << (bit % 8);
        }
        fuzz_handshake(&payload);
    }

    #[test]
    fn noise_does_no_harm(mut noise in proptest::collection::vec(any::<u8>(), 0..300), magic in any::<bool>()) {
        if magic && noise.len() >= 8 {
            noise[..8].copy_from_slice(b"catga/ln");
        }
        fuzz_handshake(&noise);
    }
}

/// The payload of a greeting, with `bytes` written over it at `at`.
fn with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut payload = greeting("there").encode().unwrap();
    payload[at..at + bytes.len()].copy_from_slice(bytes);
    payload
}

fn out_of_range(payload: &[u8]) -> &'static str {
    match Greeting::decode(payload) {
        Err(HandshakeError::OutOfRange { what, .. }) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_number_has_its_range() {
    assert_eq!(out_of_range(&with(8, &[0, 0])), "oldest version");
    assert_eq!(out_of_range(&with(8, &[9, 0])), "oldest version");
    assert_eq!(out_of_range(&with(12, &[2, 0])), "shard");
    assert_eq!(out_of_range(&with(14, &[0, 0])), "number of shards");
    assert_eq!(out_of_range(&with(20, &[48, 0, 0, 0])), "frame limit");
    assert_eq!(out_of_range(&with(24, &[255; 4])), "number of calls");
    assert_eq!(out_of_range(&with(28, &[255; 4])), "number of contracts");
    assert_eq!(out_of_range(&with(56, &[255; 2])), "cluster name");
    assert_eq!(out_of_range(&with(56 + 2 + 4 + 2 + 5, &[1, 1])), "endpoint");
    assert_eq!(out_of_range(&vec![0; 2 << 20]), "size in bytes");
    for endpoint in ["", &"1".repeat(257)] {
        let silent = Greeting { endpoint: endpoint.into(), ..greeting("there") };
        assert!(matches!(silent.encode(), Err(HandshakeError::OutOfRange { .. })));
    }
}

#[test]
fn a_count_beyond_the_bytes_allocates_nothing_and_is_refused() {
    let error = Greeting::decode(&with(28, &4096u32.to_le_bytes())).unwrap_err();
    assert_eq!(error, HandshakeError::Truncated { what: "number of contracts" });
}

#[test]
fn extensions_are_skipped() {
    let ours = greeting("there");
    let mut payload = ours.encode().unwrap();
    let at = 56 + 2 + "test".len() + 2 + "there".len() + 2 + ours.endpoint.len();
    payload.splice(at..at + 4, [5, 0, 0, 0, 1, 2, 3, 4, 5]);
    assert_eq!(Greeting::decode(&payload).unwrap(), ours);
}

#[test]
fn flags_that_mean_nothing_yet_are_skipped() {
    assert_eq!(Greeting::decode(&with(18, &[1, 0])).unwrap(), greeting("there"));
    assert_eq!(Greeting::decode(&with(18, &[255; 2])).unwrap(), greeting("there"));
    assert!(!Greeting::decode(&with(18, &[254, 255])).unwrap().keyed);
}

#[test]
fn other_bytes_are_not_a_greeting() {
    assert_eq!(Greeting::decode(b"GET / HTTP/1.1\r\n"), Err(HandshakeError::NotAGreeting));
    let mut longer = greeting("there").encode().unwrap();
    longer.push(0);
    assert_eq!(Greeting::decode(&longer), Err(HandshakeError::NotAGreeting));
    let bad_id = with(56 + 2 + 4 + 2, b"no no");
    assert!(matches!(Greeting::decode(&bad_id), Err(HandshakeError::BadNodeId(_))));
    assert!(matches!(Greeting::decode(&with(58, &[0xFF])), Err(HandshakeError::NotText { .. })));
}

#[test]
fn one_message_is_listed_once() {
    let mut twice = greeting("there");
    twice.offers = [twice.offers[0].clone(), twice.offers[0].clone()].into();
    assert_eq!(twice.encode(), Err(HandshakeError::Duplicate(twice.offers[0].id)));
}
