//! What an order desk is asked and what it answers, and the ledger behind it: the same on one machine and on many.
//!
//! Requests are keyed by customer, so all orders of one customer go to one ledger, which needs no lock. A ledger knows the
//! invoices that it has placed: an order that is sent again is turned down with a typed error, and booked once.
//!
//! A reply says which desk took the order. On one machine nobody looks; in a cluster it shows where the order went.

use std::collections::HashSet;

use catga::prelude::*;

use super::orders::{Books, Order};

#[request(reply = Placed, error = OrderRejected, key = customer)]
pub(crate) struct PlaceOrder {
    pub(crate) customer: u64,
    pub(crate) invoice: String,
    pub(crate) lines: Vec<Line>,
}

#[message]
pub(crate) struct Line {
    pub(crate) stock_code: String,
    pub(crate) description: String,
    pub(crate) quantity: i32,
    /// Of the whole line, negative for a return.
    pub(crate) cents: i64,
}

#[message]
pub(crate) struct Placed {
    pub(crate) invoice: String,
    pub(crate) cents: i64,
    /// Who placed it.
    pub(crate) desk: String,
}

#[message]
#[derive(Debug)]
pub(crate) enum OrderRejected {
    /// The ledger has this customer's invoice already. To whoever sends an order again, this is good news.
    AlreadyPlaced,
}

#[event]
pub(crate) struct OrderPlaced {
    pub(crate) customer: u64,
    pub(crate) cents: i64,
}

/// Asks the ledger that owns `key` for its totals.
#[request(reply = LedgerTotals, key = key)]
pub(crate) struct AskLedger {
    pub(crate) key: u64,
}

#[message]
pub(crate) struct LedgerTotals {
    pub(crate) shard: u16,
    pub(crate) books: BooksMessage,
}

#[message]
pub(crate) struct BooksMessage {
    pub(crate) orders: u64,
    pub(crate) returns: u64,
    pub(crate) cents: i64,
}

impl From<Order> for PlaceOrder {
    fn from(order: Order) -> Self {
        let line = |line: super::orders::Line| Line {
            stock_code: line.stock_code,
            description: line.description,
            quantity: line.quantity,
            cents: line.cents,
        };
        let lines = order.lines.into_iter().map(line).collect();
        Self { customer: order.customer, invoice: order.invoice, lines }
    }
}

impl From<Books> for BooksMessage {
    fn from(books: Books) -> Self {
        Self { orders: books.orders, returns: books.returns, cents: books.cents }
    }
}

/// The orders of the customers that this shard owns.
pub(crate) struct Ledger {
    desk: String,
    books: Books,
    placed: HashSet<(u64, String)>,
}

impl Ledger {
    /// An empty one, of the desk with this name.
    pub(crate) fn of(desk: &str) -> Self {
        Self { desk: desk.to_owned(), books: Books::default(), placed: HashSet::new() }
    }

    pub(crate) fn place(
        &mut self,
        order: &Archived<PlaceOrder>,
        ctx: &Context,
    ) -> Result<Placed, OrderRejected> {
        let customer = order.customer.to_native();
        let invoice = order.invoice.to_string();
        if !self.placed.insert((customer, invoice.clone())) {
            return Err(OrderRejected::AlreadyPlaced);
        }
        let cents = order.lines.iter().map(|line| line.cents.to_native()).sum();
        self.books.add(cents);
        ctx.publish(&OrderPlaced { customer, cents }); // leaves when this handler has returned
        Ok(Placed { invoice, cents, desk: self.desk.clone() })
    }

    pub(crate) fn totals(&mut self, _: &Archived<AskLedger>, ctx: &Context) -> Result<LedgerTotals, Fault> {
        Ok(LedgerTotals { shard: ctx.shard().0, books: self.books.into() })
    }
}
