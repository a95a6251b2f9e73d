//! Greetings survive the wire, and nothing that a hostile peer writes does harm.

use std::collections::BTreeMap;

use catga_codec::{Contract, ContractKind, FieldPrint, LayoutPrint, MessageId};
use catga_discovery::{Incarnation, NodeId};
use proptest::prelude::*;

use crate::lane::close::CloseReason;
use crate::lane::greeting::{CALLS_MAX, Greeting, LAYOUTS_MAX, Offer};
use crate::lane::handshake::HandshakeError;
use crate::lane::model::{fuzz_handshake, greeting};

fn any_offer() -> impl Strategy<Value = Offer> {
    let field =
        ("[a-zA-Z_. ]{0,40}", any::<u64>()).prop_map(|(path, fingerprint)| FieldPrint { path, fingerprint });
    let fields = proptest::collection::vec(field, 0..6);
    let layouts = proptest::collection::btree_map(any::<u64>(), fields, 1..=LAYOUTS_MAX);
    (any::<u64>(), "[a-zà-ü_]{1,30}", any::<bool>(), any::<bool>(), layouts).prop_map(
        |(id, name, event, serves, layouts)| Offer {
            id: MessageId(id),
            name,
            kind: if event { ContractKind::Event } else { ContractKind::Request },
            serves,
            layouts: listed(layouts),
        },
    )
}

fn listed(layouts: BTreeMap<u64, Vec<FieldPrint>>) -> Vec<LayoutPrint> {
    layouts.into_iter().map(|(fingerprint, fields)| LayoutPrint { fingerprint, fields }).collect()
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

/// A greeting whose one message has these layouts, without fields, as bytes that nobody checked.
fn listing(fingerprints: &[u64]) -> Vec<u8> {
    let mut payload = Greeting { offers: [].into(), ..greeting("there") }.encode().unwrap();
    payload[28..32].copy_from_slice(&1u32.to_le_bytes());
    payload.extend_from_slice(&7u64.to_le_bytes());
    payload.extend_from_slice(&[0, 1, 1, 0, b'm']);
    payload.push(fingerprints.len() as u8);
    for print in fingerprints {
        payload.extend_from_slice(&print.to_le_bytes());
        payload.extend_from_slice(&0u16.to_le_bytes());
    }
    payload
}

#[test]
fn a_message_has_from_one_to_eight_layouts_and_each_of_them_once() {
    for count in 1..=8 {
        let prints: Vec<u64> = (0..count).collect();
        let read = Greeting::decode(&listing(&prints)).unwrap();
        assert_eq!(
            read.offers[0].layouts.iter().map(|layout| layout.fingerprint).collect::<Vec<_>>(),
            prints
        );
        assert_eq!(read.encode().unwrap(), listing(&prints));
    }
    // Bytes of another message follow, so that nothing is missing but the layouts.
    let mut none = listing(&[]);
    none[28..32].copy_from_slice(&2u32.to_le_bytes());
    none.extend_from_slice(&listing(&[1, 2, 3])[listing(&[]).len() - 14..]);
    assert_eq!(out_of_range(&none), "number of layouts of a message");
    assert_eq!(out_of_range(&listing(&[1, 2, 3, 4, 5, 6, 7, 8, 9])), "number of layouts");
    for twice in [&[4, 4][..], &[1, 2, 3, 1]] {
        let error = Greeting::decode(&listing(twice)).unwrap_err();
        assert_eq!(error, HandshakeError::Repeated(MessageId(7)));
        assert_eq!(error.close_reason(), CloseReason::MalformedGreeting);
    }
    let mut ours = greeting("there");
    let mut offers = ours.offers.to_vec();
    offers[0].layouts.clear();
    ours.offers = offers.into();
    assert!(matches!(ours.encode(), Err(HandshakeError::OutOfRange { .. })));
}

#[test]
fn a_count_of_layouts_or_fields_beyond_the_bytes_is_refused() {
    let whole = listing(&[1, 2]);
    let mut more = whole.clone();
    let count = whole.len() - 21;
    more[count] = 3;
    assert_eq!(Greeting::decode(&more), Err(HandshakeError::Truncated { what: "number of layouts" }));
    let mut fields = whole;
    let at = fields.len() - 2;
    fields[at..].copy_from_slice(&9u16.to_le_bytes());
    assert_eq!(Greeting::decode(&fields), Err(HandshakeError::Truncated { what: "number of fields" }));
}

#[test]
fn an_offer_lists_the_present_layout_and_then_the_former() {
    let layout = |fingerprint| LayoutPrint { fingerprint, fields: Vec::new() };
    let contract = Contract {
        id: MessageId(1),
        name: "place",
        version: 1,
        kind: ContractKind::Request,
        fingerprint: 9,
        fields: Vec::new(),
        former: Some(layout(3)),
    };
    assert_eq!(Offer::of(&contract, true).layouts, [layout(9), layout(3)]);
    let unchanged = Contract { former: None, ..contract };
    assert_eq!(Offer::of(&unchanged, true).layouts, [layout(9)]);
}
