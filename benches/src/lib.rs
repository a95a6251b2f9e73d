//! The messages that the suites in `benches/` share.
//!
//! Each suite is one layer: `codec` is bytes and messages, `dispatch` is calls through an engine. They are for finding out
//! which layer a change has made slower; what the engine does as a whole, beside a floor, is measured by `scripts/bench.sh`.

use catga::{message, request};

/// 16 bytes of payload: with its header a frame of 64 bytes.
#[request(reply = Small)]
pub struct Small {
    /// Which call it is.
    pub id: u64,
    /// What is added to.
    pub value: u64,
}

/// 56 bytes of payload, all of them plain numbers.
#[request(reply = Small)]
pub struct Flat {
    /// Seven words.
    pub words: [u64; 7],
}

/// An order, with a vector: what a service of everyday life sends.
#[request(reply = Small)]
pub struct Order {
    /// Who orders.
    pub customer: u64,
    /// What.
    pub lines: Vec<Line>,
}

/// One line of an order.
#[message]
pub struct Line {
    /// The article.
    pub sku: u32,
    /// How many of it.
    pub quantity: u32,
    /// For how much, all together.
    pub cents: u64,
}

impl Order {
    /// An order of four lines.
    #[must_use]
    pub fn of_four_lines() -> Self {
        let line = |sku| Line { sku, quantity: 2, cents: 1_250 };
        Self { customer: 17_850, lines: (0..4).map(line).collect() }
    }
}
