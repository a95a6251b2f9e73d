//! What a rename changes, and what it must never hide. Each module is one release of the same messages: the
//! same names and versions between nodes, with other names of fields.
//!
//! "May pass" is what two nodes decide by: any fingerprint of the one is any of the other.
#![forbid(unsafe_code)]
#![allow(missing_docs, dead_code)]

extern crate catga_codec as catga;

use catga::{Contract, FieldPrint, LayoutPrint, Message, OwnedFrame, Shape, first_difference};

/// A module with these messages; derives stand above the attribute, as users may write it.
macro_rules! release {
    ($module:ident { $($(#[$attribute:meta])* $kind:ident $name:ident { $($body:tt)* })* }) => {
        pub(crate) mod $module {
            $(
                #[derive(Clone, Debug, PartialEq)]
                $(#[$attribute])*
                pub(crate) $kind $name { $($body)* }
            )*
        }
    };
}

release!(first {
    #[catga_codec::message]
    struct Line { pub(crate) sku: u32, pub(crate) cents: u64 }
    #[catga_codec::message]
    enum Side { Buy, Sell { pub_sale: bool } }
    #[catga_codec::request(reply = Line, error = Side, key = client)]
    struct Order {
        pub(crate) client: u64,
        pub(crate) lines: Vec<Option<Box<[Line; 2]>>>,
        pub(crate) side: Side,
    }
});
// In each type something is called otherwise, the key among it.
release!(second {
    #[catga_codec::message]
    struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: u64 }
    #[catga_codec::message]
    enum Side { #[was("Buy")] Bid, Sell { #[was("pub_sale")] r#pub: bool } }
    #[catga_codec::request(reply = Line, error = Side, key = customer)]
    struct Order {
        #[was("client")]
        pub(crate) customer: u64,
        pub(crate) lines: Vec<Option<Box<[Line; 2]>>>,
        pub(crate) side: Side,
    }
});
// All nodes have the second: its marks are gone, and a field is renamed again.
release!(third {
    #[catga_codec::message]
    struct Line { pub(crate) sku: u32, #[was("price")] pub(crate) amount: u64 }
    #[catga_codec::message]
    enum Side { Bid, Sell { r#pub: bool } }
    #[catga_codec::request(reply = Line, error = Side, key = customer)]
    struct Order {
        pub(crate) customer: u64,
        pub(crate) lines: Vec<Option<Box<[Line; 2]>>>,
        pub(crate) side: Side,
    }
});

fn may_pass(a: &Contract, b: &Contract) -> bool {
    a.accepts().any(|print| b.accepts().any(|other| other == print))
}

#[test]
fn a_rename_at_any_level_is_told_by_the_former_fingerprint() {
    assert_eq!(second::Line::FORMER, first::Line::FINGERPRINT);
    assert_eq!(second::Side::FORMER, first::Side::FINGERPRINT);
    assert_eq!(second::Order::FORMER, first::Order::FINGERPRINT);
    for (present, former) in [
        (second::Line::FINGERPRINT, second::Line::FORMER),
        (second::Side::FINGERPRINT, second::Side::FORMER),
        (second::Order::FINGERPRINT, second::Order::FORMER),
        // Through each container, though nothing is renamed in the container itself.
        (<Vec<second::Line>>::FINGERPRINT, <Vec<second::Line>>::FORMER),
        (<Option<second::Line>>::FINGERPRINT, <Option<second::Line>>::FORMER),
        (<Box<second::Line>>::FINGERPRINT, <Box<second::Line>>::FORMER),
        (<[second::Line; 2]>::FINGERPRINT, <[second::Line; 2]>::FORMER),
    ] {
        assert_ne!(present, former);
    }
    let (old, new) = (Contract::of_request::<first::Order>(), Contract::of_request::<second::Order>());
    assert_ne!(old.fingerprint, new.fingerprint);
    assert!(may_pass(&old, &new) && may_pass(&new, &old));
}

#[test]
fn what_was_not_renamed_has_one_fingerprint() {
    assert_eq!(first::Order::FORMER, first::Order::FINGERPRINT);
    let contract = Contract::of_request::<first::Order>();
    assert_eq!((contract.former.as_ref(), contract.accepts().count()), (None, 1));
    assert_eq!(<Vec<Option<String>>>::FORMER, <Vec<Option<String>>>::FINGERPRINT);
}

#[test]
fn in_a_chain_of_renames_neighbours_understand_each_other_and_nobody_else() {
    let releases = [
        Contract::of_request::<first::Order>(),
        Contract::of_request::<second::Order>(),
        Contract::of_request::<third::Order>(),
    ];
    for (i, a) in releases.iter().enumerate() {
        for (j, b) in releases.iter().enumerate() {
            assert_eq!(may_pass(a, b), i.abs_diff(j) < 2, "releases {i} and {j}");
        }
    }
}

#[test]
fn what_the_one_release_archives_the_other_reads_with_the_same_values() {
    let line = |sku, price| second::Line { sku, price };
    let order = second::Order {
        customer: 7,
        lines: vec![Some(Box::new([line(1, 100), line(2, 200)])), None],
        side: second::Side::Sell { r#pub: true },
    };
    let mut frame = OwnedFrame::new();
    frame.encode(catga::Header::new(catga::Kind::Request), &order).unwrap();
    let bytes = &frame.bytes()[catga::limits::HEADER_BYTES..];
    let mut aligned = catga::rkyv::util::AlignedVec::<16>::new();
    aligned.extend_from_slice(bytes);
    let read = first::Order::deserialize(first::Order::check(&aligned).unwrap());
    let line = |sku, cents| first::Line { sku, cents };
    let expected = first::Order {
        client: 7,
        lines: vec![Some(Box::new([line(1, 100), line(2, 200)])), None],
        side: first::Side::Sell { pub_sale: true },
    };
    assert_eq!(read, expected);
}

mod swaps {
    release!(before {
        #[catga_codec::event(key = from)]
        struct Moved { pub(crate) from: u32, pub(crate) to: u32 }
    });
    // The names were the wrong way round. The values stay where they are, and so does the key.
    release!(after {
        #[catga_codec::event(key = to)]
        struct Moved { #[was("from")] pub(crate) to: u32, #[was("to")] pub(crate) from: u32 }
    });
    // The fields changed places, and that is another layout.
    release!(reordered {
        #[catga_codec::event(key = from)]
        struct Moved { pub(crate) to: u32, pub(crate) from: u32 }
    });
    // One took the name of another, which took a third.
    release!(shifted {
        #[catga_codec::event(key = to)]
        struct Moved { #[was("from")] pub(crate) to: u32, #[was("to")] pub(crate) via: u32 }
    });
}

#[test]
fn a_swap_of_names_goes_by_position_and_one_of_fields_is_refused() {
    let before = Contract::of_event::<swaps::before::Moved>();
    assert!(may_pass(&before, &Contract::of_event::<swaps::after::Moved>()));
    assert!(may_pass(&before, &Contract::of_event::<swaps::shifted::Moved>()));
    assert!(!may_pass(&before, &Contract::of_event::<swaps::reordered::Moved>()));
    // Equal names and another key: each would send to its own owner.
    let after = Contract::of_event::<swaps::after::Moved>();
    let reordered = Contract::of_event::<swaps::reordered::Moved>();
    assert_eq!(swaps::after::Moved::FINGERPRINT, swaps::reordered::Moved::FINGERPRINT);
    assert!(!may_pass(&after, &reordered));
}

mod changes {
    //! One rename, and with it one thing that changes the bytes or what they mean.

    release!(before {
        #[catga_codec::message]
        struct Line { pub(crate) sku: u32, pub(crate) cents: u32 }
        #[catga_codec::message(name = "Pair")]
        struct Pair { pub(crate) a: u32, pub(crate) b: i32 }
        #[catga_codec::message]
        enum Side { Buy = 1, Sell = 2 }
        #[catga_codec::message]
        enum Way { On, Off }
        #[catga_codec::event(key = line)]
        struct Noted { pub(crate) line: u32 }
    });
    release!(retyped {
        #[catga_codec::message]
        struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: i32 }
        #[catga_codec::event(key = other)]
        struct Noted { pub(crate) line: u32, #[was("id")] pub(crate) other: u32 }
    });
    release!(wider {
        #[catga_codec::message]
        struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: u64 }
    });
    release!(longer {
        #[catga_codec::message]
        struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: u32, pub(crate) tax: u32 }
    });
    release!(reordered {
        #[catga_codec::message]
        struct Line { #[was("cents")] pub(crate) price: u32, pub(crate) sku: u32 }
        #[catga_codec::message]
        enum Side { #[was("Sell")] Ask = 1, Buy = 2 }
    });
    release!(retagged {
        #[catga_codec::message]
        enum Side { #[was("Buy")] Bid = 1, Sell = 3 }
    });
    release!(fuller {
        #[catga_codec::message]
        enum Way { #[was("On")] Up(u8), Off }
    });
    release!(raw {
        #[catga_codec::event(key = r#type)]
        struct Noted { #[was("line")] pub(crate) r#type: u32 }
    });
    release!(versioned {
        #[catga_codec::message(version = 2)]
        struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: u32 }
    });
    release!(elsewhere {
        #[catga_codec::message(name = "Row")]
        struct Line { pub(crate) sku: u32, #[was("cents")] pub(crate) price: u32 }
    });
}

#[test]
fn a_rename_hides_no_change_of_type_size_order_tag_or_name() {
    let line = changes::before::Line::FINGERPRINT;
    for (present, former) in [
        (changes::retyped::Line::FINGERPRINT, changes::retyped::Line::FORMER),
        (changes::wider::Line::FINGERPRINT, changes::wider::Line::FORMER),
        (changes::longer::Line::FINGERPRINT, changes::longer::Line::FORMER),
        (changes::reordered::Line::FINGERPRINT, changes::reordered::Line::FORMER),
        (changes::versioned::Line::FINGERPRINT, changes::versioned::Line::FORMER),
        (changes::elsewhere::Line::FINGERPRINT, changes::elsewhere::Line::FORMER),
    ] {
        assert!(present != line && former != line && present != former);
    }
    let side = changes::before::Side::FINGERPRINT;
    for (present, former) in [
        (changes::reordered::Side::FINGERPRINT, changes::reordered::Side::FORMER),
        (changes::retagged::Side::FINGERPRINT, changes::retagged::Side::FORMER),
    ] {
        assert!(present != side && former != side && present != former);
    }
    assert_ne!(changes::fuller::Way::FORMER, changes::before::Way::FINGERPRINT);
}

#[test]
fn another_field_as_the_key_is_refused_though_a_field_was_renamed() {
    let before = Contract::of_event::<changes::before::Noted>();
    assert!(!may_pass(&before, &Contract::of_event::<changes::retyped::Noted>()));
}

#[test]
fn names_that_are_words_of_the_language_are_names_like_others() {
    use catga::Event;
    assert_eq!(changes::raw::Noted::KEY, Some("type"));
    let renamed = Contract::of_event::<changes::raw::Noted>();
    assert!(may_pass(&Contract::of_event::<changes::before::Noted>(), &renamed));
}

#[test]
fn a_renamed_field_is_not_what_two_nodes_differ_in() {
    let (old, new) = (Contract::of_request::<first::Order>(), Contract::of_request::<second::Order>());
    // The peer has one type changed besides, in the list of each of its layouts.
    let retyped = |layouts: Vec<LayoutPrint>| -> Vec<LayoutPrint> {
        let mut layouts = layouts;
        for field in layouts.iter_mut().flat_map(|layout| &mut layout.fields) {
            let path = field.path.as_str();
            if path.ends_with("lines.sku") || path.ends_with("lines") || path == "Order" {
                *field = FieldPrint { path: path.to_owned(), fingerprint: field.fingerprint ^ 1 };
            }
        }
        layouts
    };
    let said = Some("Order.lines.sku differs in type or order (by former names)".to_owned());
    assert_eq!(first_difference(&new.layouts(), &retyped(old.layouts())), said);
    assert_eq!(first_difference(&old.layouts(), &retyped(new.layouts())), said);
    let said = Some("Order.lines.sku differs in type or order".to_owned());
    assert_eq!(first_difference(&new.layouts(), &retyped(new.layouts())), said);
    assert_eq!(first_difference(&new.layouts(), &old.layouts()), None);
}

mod sources {
    //! Types drawn at random, too simple to be wrong: what a fingerprint is to depend on, as a value.

    use catga_codec::{Archived, Field, Names, Shape, layout};
    use proptest::prelude::*;

    #[derive(Clone, Debug, PartialEq)]
    pub(crate) struct Source {
        /// The type of each field, its name, and its former name.
        pub(crate) fields: Vec<(u8, &'static str, &'static str)>,
    }

    pub(crate) fn any_source() -> impl Strategy<Value = Source> {
        let name = || prop_oneof![Just("a"), Just("b"), Just("c")];
        let field = (0u8..4, name(), name());
        prop::collection::vec(field, 1..4).prop_map(|fields| Source { fields })
    }

    impl Source {
        pub(crate) fn names(&self, names: Names) -> Vec<&'static str> {
            let pick = |&(_, name, was): &(u8, &'static str, &'static str)| match names {
                Names::Present => name,
                Names::Former => was,
            };
            self.fields.iter().map(pick).collect()
        }

        pub(crate) fn types(&self) -> Vec<u8> {
            self.fields.iter().map(|(ty, ..)| *ty).collect()
        }

        pub(crate) fn fingerprint(&self, names: Names) -> u64 {
            fn field<T: Shape>(name: &'static str, was: &'static str) -> Field {
                layout::field::<T>(name, was)
            }
            let fields: Vec<Field> = self
                .fields
                .iter()
                .map(|&(ty, name, was)| match ty {
                    0 => field::<u32>(name, was),
                    1 => field::<i32>(name, was),
                    2 => field::<Vec<super::second::Line>>(name, was),
                    _ => field::<Vec<super::first::Line>>(name, was),
                })
                .collect();
            layout::fingerprint::<Archived<u32>>("struct", "any", 1, &fields, &[], names)
        }
    }
}

proptest::proptest! {
    /// Type 3 is type 2 by its former names, so those two are one when it is asked by former names.
    #[test]
    fn fingerprints_are_equal_exactly_where_types_and_names_are(
        a in sources::any_source(), b in sources::any_source(),
    ) {
        use catga::Names::{Former, Present};
        let types = |source: &sources::Source, names| -> Vec<u8> {
            let seen = |ty| if names == Former && ty == 2 { 3 } else { ty };
            source.types().into_iter().map(seen).collect()
        };
        for (here, there) in [(Present, Present), (Present, Former), (Former, Present), (Former, Former)] {
            let same = types(&a, here) == types(&b, there) && a.names(here) == b.names(there);
            proptest::prop_assert_eq!(a.fingerprint(here) == b.fingerprint(there), same);
        }
    }
}
