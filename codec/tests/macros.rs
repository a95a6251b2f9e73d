//! What the macros make of types, seen from a crate that forbids `unsafe`, as users' crates do.
#![forbid(unsafe_code)]
#![allow(missing_docs)]

extern crate catga_codec as catga;

use catga::{
    Archived, Contract, Event, FieldPrint, Flags, Header, Key, Kind, LayoutPrint, Message, MessageId,
    OwnedFrame, Request, Shape, event, first_difference, message, request,
};

/// A request with everything.
#[request(reply = OrderPlaced, error = OrderRejected, key = customer, name = "place_order", version = 2)]
#[derive(Clone, Debug, PartialEq)]
pub struct PlaceOrder {
    /// The key.
    pub customer: u64,
    /// The lines.
    pub lines: Vec<Line>,
}

/// Derives may stand above the attribute, too.
#[derive(Clone, Debug, PartialEq)]
#[message]
pub struct Line {
    /// Article.
    pub sku: u32,
    /// Pieces.
    pub quantity: u32,
    /// Price.
    pub cents: u64,
}

/// A reply.
#[message]
pub struct OrderPlaced {
    /// Its number.
    pub order: u64,
    /// Its price.
    pub cents: u64,
}

/// An error with variants of each form.
#[message]
#[derive(Debug, Clone, PartialEq)]
pub enum OrderRejected {
    Empty,
    OverLimit { cents: u64, r#type: Option<Box<Line>> },
    Named(String, [i16; 3]),
}

/// Options of rkyv that change no layout are the user's to give.
#[event(key = 0)]
#[rkyv(compare(PartialEq))]
pub struct OrderCreated(
    /// The order.
    pub String,
);

/// Explicit tags are part of the layout.
#[message]
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Side {
    /// Buy.
    Buy = 1,
    /// Sell.
    Sell = 7,
}

/// Nothing inside.
#[request]
pub struct Ping;

#[test]
fn names_versions_and_defaults() {
    assert_eq!(PlaceOrder::NAME, "place_order");
    assert_eq!(PlaceOrder::ID, MessageId::of("place_order", 2));
    assert_eq!((Line::NAME, Line::VERSION), ("Line", 1));
    fn answers<R: Request<Reply = (), Error = catga::Fault>>() {}
    answers::<Ping>();
}

#[test]
fn keys_are_hashes_of_the_named_field() {
    let order = PlaceOrder { customer: 7, lines: Vec::new() };
    assert_eq!(order.key(), Key::hash(&7_u64));
    assert_eq!((PlaceOrder::KEYED, Ping::KEYED), (true, false));
    assert_eq!((PlaceOrder::KEY, OrderCreated::KEY), (Some("customer"), Some("0")));
    assert_eq!(Ping.key(), 0);
    assert_eq!(OrderCreated("abc".into()).key(), Key::hash("abc"));
}

#[test]
fn every_form_of_type_comes_back_from_its_archive() {
    let values = [
        OrderRejected::Empty,
        OrderRejected::OverLimit { cents: 9, r#type: Some(Box::new(Line { sku: 1, quantity: 2, cents: 3 })) },
        OrderRejected::Named("a text that is too long to lie in line".into(), [-1, 0, 1]),
    ];
    let mut frame = OwnedFrame::new();
    for value in values {
        frame.encode(Header::new(Kind::Rejected), &value).unwrap();
        let archived: &Archived<OrderRejected> = frame.access::<OrderRejected>().unwrap();
        assert!(!format!("{archived:?}").is_empty());
        assert_eq!(OrderRejected::deserialize(archived), value);
    }
    frame.encode(Header::new(Kind::Reply), &Side::Sell).unwrap();
    assert_eq!(Side::deserialize(frame.access::<Side>().unwrap()), Side::Sell);
    frame.encode(Header::new(Kind::Request), &Ping).unwrap();
    assert!(frame.access::<Ping>().is_ok());
}

#[test]
fn flags_are_sets() {
    let flags = Flags::KEYED.with(Flags::IDEMPOTENT);
    assert!(flags.contains(Flags::KEYED) && !flags.contains(Flags::LARGE));
    assert_eq!(flags.without(Flags::KEYED), Flags::IDEMPOTENT);
}

/// Generated code passes the lints of a strict user.
pub mod documented {
    #![deny(missing_docs, unreachable_pub, dead_code, clippy::pedantic, non_camel_case_types)]

    /// A message.
    #[catga_codec::message]
    pub struct Documented {
        /// A field.
        pub field: u8,
    }

    /// A choice.
    #[catga_codec::event(name = "documented.choice")]
    pub enum Choice {
        /// The one.
        One,
        /// The other.
        Other(Option<String>),
    }
}

mod shapes {
    //! The same names and fields with one thing changed each.

    macro_rules! variation {
        ($module:ident, $($item:item)*) => {
            pub(crate) mod $module {
                $(
                    #[catga_codec::message]
                    #[allow(dead_code)]
                    $item
                )*
            }
        };
    }

    variation!(
        original,
        pub(crate) struct Line {
            pub(crate) sku: u32,
            pub(crate) cents: u32,
        }
    );
    variation!(
        same,
        pub(crate) struct Line {
            pub(crate) sku: u32,
            pub(crate) cents: u32,
        }
    );
    variation!(
        renamed,
        pub(crate) struct Line {
            pub(crate) sku: u32,
            pub(crate) price: u32,
        }
    );
    variation!(
        retyped,
        pub(crate) struct Line {
            pub(crate) sku: u32,
            pub(crate) cents: i32,
        }
    );
    variation!(
        swapped,
        pub(crate) struct Line {
            pub(crate) cents: u32,
            pub(crate) sku: u32,
        }
    );
    variation!(
        longer,
        pub(crate) struct Line {
            pub(crate) sku: u32,
            pub(crate) cents: u32,
            pub(crate) tax: u32,
        }
    );
    variation!(
        tags,
        pub(crate) enum Way {
            A = 1,
            B = 2,
        }
    );
    variation!(
        other_tags,
        pub(crate) enum Way {
            A = 1,
            B = 3,
        }
    );
}

#[test]
fn a_fingerprint_changes_with_names_types_order_and_tags() {
    use shapes::{longer, original, other_tags, renamed, retyped, same, swapped, tags};
    let line = original::Line::FINGERPRINT;
    assert_eq!(line, same::Line::FINGERPRINT);
    for other in [
        renamed::Line::FINGERPRINT,
        retyped::Line::FINGERPRINT,
        swapped::Line::FINGERPRINT,
        longer::Line::FINGERPRINT,
    ] {
        assert_ne!(line, other);
    }
    assert_ne!(tags::Way::FINGERPRINT, other_tags::Way::FINGERPRINT);
}

#[test]
fn a_contract_lists_fields_innermost_first_with_roles() {
    let contract = Contract::of_request::<PlaceOrder>();
    let paths: Vec<_> = contract.fields.iter().map(|field| field.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "key of place_order",
            "place_order.customer",
            "place_order.lines.sku",
            "place_order.lines.quantity",
            "place_order.lines.cents",
            "place_order.lines",
            "place_order",
            "reply OrderPlaced.order",
            "reply OrderPlaced.cents",
            "reply OrderPlaced",
            "error OrderRejected.Empty",
            "error OrderRejected.OverLimit.cents",
            "error OrderRejected.OverLimit.type.sku",
            "error OrderRejected.OverLimit.type.quantity",
            "error OrderRejected.OverLimit.type.cents",
            "error OrderRejected.OverLimit.type",
            "error OrderRejected.OverLimit",
            "error OrderRejected.Named.0",
            "error OrderRejected.Named.1",
            "error OrderRejected.Named",
            "error OrderRejected",
        ]
    );
}

#[test]
fn the_first_difference_names_the_innermost_field() {
    let ours = Contract::of_request::<PlaceOrder>().layouts();
    let difference = |theirs: &LayoutPrint| first_difference(&ours, std::slice::from_ref(theirs));
    assert_eq!(difference(&ours[0]), None);

    let mut theirs = ours[0].clone();
    // What a peer sees whose `Line.cents` has another type: that field and everything around it differ.
    for field in &mut theirs.fields {
        if ["place_order.lines.cents", "place_order.lines", "place_order"].contains(&field.path.as_str()) {
            field.fingerprint ^= 1;
        }
    }
    assert_eq!(difference(&theirs).unwrap(), "place_order.lines.cents differs in type or order");

    theirs.fields.retain(|field| field.path != "reply OrderPlaced.cents");
    assert_eq!(difference(&theirs).unwrap(), "reply OrderPlaced.cents is not known there");

    let mut theirs = ours[0].clone();
    theirs.fields.push(FieldPrint { path: "place_order.coupon".into(), fingerprint: 1 });
    assert_eq!(difference(&theirs).unwrap(), "place_order.coupon is not known here");
}

#[test]
fn a_contract_differs_by_key_reply_and_role() {
    let order = Contract::of_event::<OrderCreated>();
    let again = Contract::of_event::<OrderCreated>();
    assert_eq!(order, again);
    assert_ne!(order.fingerprint, Contract::of_request::<Ping>().fingerprint);
}
