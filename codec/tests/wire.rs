//! The bytes on the wire, one by one. If one of these tests fails, nodes of this version and the last cannot
//! talk: that needs a new protocol version, not a new expectation.

extern crate catga_codec as catga;

use catga::{
    CallId, Contract, Fault, Flags, Header, Kind, MessageId, Shape, encode_empty, encode_frame, message,
    request,
};

#[message(name = "wire.line", version = 3)]
struct Line {
    sku: u32,
    cents: u64,
    way: Way,
}

#[message(name = "wire.way")]
enum Way {
    #[allow(dead_code)]
    Free,
    Paid {
        note: Option<String>,
    },
}

#[request(reply = Line, key = customer, name = "wire.order", version = 2)]
struct Order {
    customer: u64,
    lines: Vec<Line>,
}

#[repr(align(16))]
struct Memory([u8; 512]);

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(16)
        .map(|row| row.iter().map(|byte| format!("{byte:02x}")).collect())
        .collect::<Vec<String>>()
        .join(" ")
}

fn header() -> Header {
    Header {
        flags: Flags::KEYED.with(Flags::IDEMPOTENT),
        code: 0x0102,
        call: CallId::new(0x1112_1314, 0x2122_2324),
        key: 0x3132_3334_3536_3738,
        remaining_us: 0x4142_4344,
        shard: 0x5152,
        context: 0x6162_6364_6566_6768,
        ..Header::new(Kind::Request)
    }
}

#[test]
fn a_header() {
    let header = Header {
        length: 0x0102_0304,
        message: MessageId(0x7172_7374_7576_7778),
        extension_bytes: 0x20,
        ..header()
    };
    let mut bytes = [0; 48];
    header.write(&mut bytes);
    assert_eq!(
        hex(&bytes),
        "0403020101030201".to_owned()
            + "7877767574737271 1413121124232221"
            + "3837363534333231 4443424152512000"
            + "6867666564636261"
    );
    assert_eq!(Header::read(&bytes), Ok(header));
}

#[test]
fn a_frame_without_payload() {
    let mut memory = Memory([0xee; 512]);
    let length = encode_empty(Header { code: 3, ..Header::new(Kind::Close) }, &mut memory.0).unwrap();
    assert_eq!(
        hex(&memory.0[..length]),
        "300000000b0003000000000000000000 00000000000000000000000000000000 00000000000000000000000000000000"
    );
}

#[test]
fn each_kind_has_its_number() {
    use Kind::*;
    let kinds = [
        Request, Reply, Rejected, Refused, Failed, Event, Cancel, Heartbeat, Hello, Welcome, Close, Handled,
        Proof,
    ];
    for (index, kind) in kinds.into_iter().enumerate() {
        assert_eq!(kind as usize, index + 1, "{kind:?}");
    }
    assert_eq!(Kind::from_u8(kinds.len() as u8 + 1), None, "a new kind has its number here");
}

#[test]
fn a_frame_with_a_text() {
    let mut memory = Memory([0; 512]);
    let length = encode_frame(header(), &Fault::new("the shelf is empty"), &mut memory.0).unwrap();
    assert_eq!(
        hex(&memory.0[..length]),
        concat!(
            "4c000000010302018aa8db6fee93c370 14131211242322213837363534333231 44434241525100006867666564636261 ",
            // The text, padding to 4, then the root: its length, and where it lies relative to the root.
            "746865207368656c6620697320656d70 7479000092000000ecffffff",
        )
    );
}

#[test]
fn a_frame_with_everything() {
    let mut memory = Memory([0; 512]);
    let line = |cents| Line { sku: 1, cents, way: Way::Paid { note: Some("cash".into()) } };
    let order = Order { customer: 7, lines: vec![line(5), line(6)] };
    let length = encode_frame(Header::new(Kind::Request), &order, &mut memory.0).unwrap();
    assert_eq!(
        hex(&memory.0[..length]),
        concat!(
            "80000000010000003756b9d6aaa778df 00000000000000000000000000000000 00000000000000000000000000000000 ",
            // Two lines: sku, padding, cents; tag of the variant, tag of the option, a short text in line.
            "01000000000000000500000000000000 010000000100000063617368ffffffff ",
            "01000000000000000600000000000000 010000000100000063617368ffffffff ",
            // The root: customer, where the lines lie relative to here, how many.
            "0700000000000000b8ffffff02000000",
        )
    );
}

#[test]
fn ids_and_fingerprints() {
    let prints = [
        MessageId::of("place_order", 1).0,
        <()>::FINGERPRINT,
        Fault::FINGERPRINT,
        Order::FINGERPRINT,
        Contract::of_request::<Order>().fingerprint,
    ];
    assert_eq!(
        prints.map(|print| format!("{print:016x}")),
        ["a73ec3506bfb087d", "bdc117bc60eda128", "8568648541e83ee8", "77fb304590fab8e8", "d578ff0b92b5f97a",]
    );
}
