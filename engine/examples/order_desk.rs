//! An order desk: orders from a file go to the ledger that owns their customer, and the books are checked at the end.
//!
//! ```text
//! cargo run --release --example order_desk                  generated orders, the same ones every time
//! cargo run --release --example order_desk -- orders.csv    your own; the two formats are in `order_desk/orders.rs`
//! ```
//!
//! There is one ledger on each shard. A customer's orders all go to one of them, because the request is keyed by customer, so
//! a ledger needs no lock and sees them in the order sent. Each order placed is published; a board on shard 0 listens,
//! counts and sums. In the end every ledger is asked for its totals, and they must be equal to those added up straight
//! from the file, in whole cents. If they are not, the exit status is 1.
//!
//! Returns are orders too: a negative quantity is money back and is booked as a negative amount. An order whose sum is
//! negative is counted as a return.

#[path = "order_desk/desk.rs"]
mod desk;
#[path = "order_desk/orders.rs"]
pub(crate) mod orders;

use std::collections::HashSet;
use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use catga::CallError;
use catga::prelude::*;
use futures_util::StreamExt;
use futures_util::stream;

use desk::{AskLedger, BooksMessage, Ledger, OrderPlaced, OrderRejected, PlaceOrder};
use orders::{Books, Order};

/// Asks the board what it has heard.
#[request(reply = BooksMessage)]
struct AskBoard;

// ---- the services -------------------------------------------------------------------------------------------------

/// What has been published.
#[derive(Default)]
struct Board {
    books: Books,
}

impl Board {
    fn heard(&mut self, event: &Archived<OrderPlaced>, _: &Context) {
        self.books.add(event.cents.to_native());
    }

    fn totals(&mut self, _: &Archived<AskBoard>, _: &Context) -> Result<BooksMessage, Fault> {
        Ok(self.books.into())
    }
}

fn start(shards: Option<usize>) -> Result<Engine, StartError> {
    let builder = Engine::builder()
        .service(|_shard| Ledger::of("desk"), |routes| routes.request(Ledger::place).request(Ledger::totals))
        .service_on(
            [0],
            |_shard| Board::default(),
            |routes| routes.event(Board::heard).request(Board::totals),
        );
    match shards {
        Some(shards) => builder.shards(shards).start(),
        None => builder.start(),
    }
}

// ---- the day ------------------------------------------------------------------------------------------------------

/// Orders on their way at once.
const IN_FLIGHT: usize = 256;
/// How often an order is sent again, if nobody can say that it was placed.
const ATTEMPTS: usize = 3;

/// What a day at the desk came to.
#[derive(Debug)]
pub(crate) struct Day {
    /// Rows that were not taken, by line of the file, with the reason.
    pub(crate) odd: Vec<(u64, String)>,
    /// Orders that no ledger took, by invoice, with the reason.
    pub(crate) lost: Vec<(String, String)>,
    /// What all ledgers together say.
    pub(crate) ledgers: Books,
    /// What the file says.
    pub(crate) file: Books,
    /// What the board heard.
    pub(crate) board: Books,
    /// Events that were dropped at a full bound, as the engine counted them.
    pub(crate) events_dropped: u64,
}

impl Day {
    /// Whether the ledgers and the file agree, and every event was heard or counted as dropped.
    pub(crate) fn is_balanced(&self) -> bool {
        let told = self.board.count() + self.events_dropped;
        self.ledgers == self.file && told == self.ledgers.count()
    }
}

/// Sends all orders in `csv` through an engine, and closes the books.
pub(crate) fn run(csv: &[u8], shards: Option<usize>) -> Result<Day, Box<dyn std::error::Error>> {
    let reading = orders::read(csv)?;
    let engine = start(shards)?;
    let client = engine.client();
    let lost = pollster::block_on(
        stream::iter(reading.orders)
            .map(|order| place(&client, order))
            .buffer_unordered(IN_FLIGHT)
            .filter_map(|failed| async { failed })
            .collect(),
    );
    let ledgers = ask_ledgers(&client, engine.shards())?;
    let board = ask_board(&engine, &client, ledgers.count())?;
    let events_dropped = engine.stop(Duration::from_secs(1)).stats.sum(|shard| shard.events_dropped);
    Ok(Day { odd: reading.odd, lost, ledgers, file: orders::add_up(csv)?, board, events_dropped })
}

/// Places one order. If it could not be placed: its invoice, and why.
async fn place(client: &Client, order: Order) -> Option<(String, String)> {
    let request = PlaceOrder::from(order);
    let mut last = String::new();
    for _ in 0..ATTEMPTS {
        match client.send(&request).await {
            Ok(_) | Err(CallError::Rejected(OrderRejected::AlreadyPlaced)) => return None,
            // It did not run, or nobody can say whether it did. The ledger knows its invoices: sending again is safe.
            Err(error @ (CallError::NotSent(_) | CallError::Refused(_) | CallError::Unknown(_))) => {
                last = error.to_string();
            }
            Err(error) => return Some((request.invoice, error.to_string())),
        }
    }
    Some((request.invoice, last))
}

/// Asks each shard's ledger once. A request reaches a shard by its key, so keys are tried until all have answered.
fn ask_ledgers(client: &Client, shards: usize) -> Result<Books, Box<dyn std::error::Error>> {
    let mut answered = HashSet::new();
    let mut sum = Books::default();
    for key in 0.. {
        let totals = pollster::block_on(client.send(&AskLedger { key }))?;
        if answered.insert(totals.shard.to_native()) {
            sum += books(&totals.books);
        }
        if answered.len() == shards {
            break;
        }
    }
    Ok(sum)
}

/// Asks the board until it has heard of all orders: events leave after the answer, so the last ones may be on their way.
fn ask_board(engine: &Engine, client: &Client, orders: u64) -> Result<Books, Box<dyn std::error::Error>> {
    let until = Instant::now() + Duration::from_secs(5);
    loop {
        let reply = pollster::block_on(client.send(&AskBoard))?;
        let heard = books(&reply);
        let dropped = engine.stats().sum(|shard| shard.events_dropped);
        if heard.count() + dropped >= orders || Instant::now() > until {
            return Ok(heard);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn books(message: &Archived<BooksMessage>) -> Books {
    Books {
        orders: message.orders.to_native(),
        returns: message.returns.to_native(),
        cents: message.cents.to_native(),
    }
}

/// Writes the odd rows, then the columns side by side.
fn print(day: &Day, out: &mut impl Write) -> io::Result<()> {
    for (line, reason) in &day.odd {
        writeln!(out, "line {line} is not taken: {reason}")?;
    }
    for (invoice, reason) in &day.lost {
        writeln!(out, "invoice {invoice} was not placed: {reason}")?;
    }
    let columns = [day.ledgers, day.file, day.board];
    writeln!(out, "{:12}{:>16}{:>16}{:>16}", "", "ledgers", "file", "board (events)")?;
    let mut row = |name: &str, value: fn(&Books) -> String| {
        let [ledgers, file, board] = columns.map(|books| value(&books));
        writeln!(out, "{name:12}{ledgers:>16}{file:>16}{board:>16}")
    };
    row("orders", |books| books.orders.to_string())?;
    row("returns", |books| books.returns.to_string())?;
    row("total", |books| orders::money(books.cents))?;
    writeln!(out, "events dropped at a full bound: {}", day.events_dropped)?;
    writeln!(out, "{}", if day.is_balanced() { "the books balance" } else { "THE BOOKS DO NOT BALANCE" })
}

fn main() -> ExitCode {
    let csv = match std::env::args_os().nth(1) {
        Some(path) => std::fs::read(&path).map_err(|error| format!("{}: {error}", path.display()).into()),
        None => Ok(orders::generate(20_000).into_bytes()),
    };
    match csv.and_then(|csv| run(&csv, None)) {
        Ok(day) => {
            // A reader who closed the pipe early (`| head`) still gets the right exit status.
            let _ = print(&day, &mut io::stdout().lock());
            if day.is_balanced() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("order_desk: {error}");
            ExitCode::FAILURE
        }
    }
}
