//! `orders`, `lane/orders`: the order desk. Orders are requests keyed by customer, so each customer's account is with one shard,
//! and no two shards ever share one; the caller sits on the first of two shards and has both kinds of customers. In
//! `lane/orders` the other shard is a node of its own, in a second process.
//!
//! Orders are read from a file (`--orders`, columns `CustomerID` and `TotalPrice`), or made with the skew of real ones: in
//! a year of a retailer's sales the busiest of 4,338 customers ordered 209 times, and half of them once or twice.
//!
//! Every reply is checked. When the clock has stopped, every account is asked for, through the engine, and compared with
//! the sums that plain addition gives.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use catga::prelude::*;
use catga::{Archived, Builder, List};
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::engine::driver::How;
use crate::engine::exchange::Exchange;
use crate::engine::lane::stand_by;
use crate::engine::local::spin_on;
use crate::engine::{Driven, plan};
use crate::machine::Cores;
use crate::peer::Peer;
use crate::scenario::{self, Broken, Facts, Family, Pace, Round, RoundResult, Scenario};

const IN_FLIGHT: usize = 1_024;
/// Accounts that are asked for at once when the clock has stopped.
const AUDITED_AT_ONCE: usize = 512;

/// Customers of the generated orders, as in the real ones.
const CUSTOMERS: u32 = 4_338;
const BUSIEST_ORDERS: f64 = 209.0;
/// The customer of rank r has `BUSIEST_ORDERS / r ^ SKEW` orders, rounded down: half of them one or two.
const SKEW: f64 = 0.56;
const SEED: u64 = 0x0dd5_0000_ca76_a001;
const CENTS_MAX: u64 = 96_000;

/// An order.
#[request(reply = OrderBooked, key = customer)]
struct BookOrder {
    id: u64,
    customer: u64,
    cents: i64,
}

/// It is on the account now.
#[message]
struct OrderBooked {
    id: u64,
    cents: i64,
    orders: u64,
}

/// What is on an account?
#[request(reply = Account, key = customer)]
struct AskAccount {
    customer: u64,
}

/// The number of orders, and their sum.
#[message]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Account {
    orders: u64,
    cents: i64,
}

/// The accounts of one shard's customers.
#[derive(Default)]
struct Ledger {
    accounts: HashMap<u64, Account>,
}

impl Ledger {
    fn book(&mut self, order: &Archived<BookOrder>, _: &Context) -> Result<OrderBooked, Fault> {
        let account = self.accounts.entry(order.customer.to_native()).or_default();
        let cents = order.cents.to_native();
        account.orders += 1;
        account.cents += cents;
        Ok(OrderBooked { id: order.id.to_native(), cents, orders: account.orders })
    }

    fn account(&mut self, ask: &Archived<AskAccount>, _: &Context) -> Result<Account, Fault> {
        Ok(self.accounts.get(&ask.customer.to_native()).copied().unwrap_or_default())
    }
}

/// A line of the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Order {
    customer: u64,
    cents: i64,
}

/// All orders, again and again.
struct Desk {
    orders: Vec<Order>,
}

impl Desk {
    fn order(&self, number: u64) -> Order {
        self.orders[(number % self.orders.len() as u64) as usize]
    }

    /// What the accounts must hold after so many orders.
    fn accounts(&self, sent: u64) -> HashMap<u64, Account> {
        let (rounds, rest) = (sent / self.orders.len() as u64, sent % self.orders.len() as u64);
        let mut accounts: HashMap<u64, Account> = HashMap::new();
        for (order, index) in self.orders.iter().zip(0..) {
            let times = rounds + u64::from(index < rest);
            let account = accounts.entry(order.customer).or_default();
            account.orders += times;
            account.cents += order.cents * times as i64;
        }
        accounts
    }

    /// Asks for every account.
    async fn audit(&self, client: &Client, sent: u64) -> Result<(), Broken> {
        let expected: Vec<_> = self.accounts(sent).into_iter().collect();
        for some in expected.chunks(AUDITED_AT_ONCE) {
            let ask = |&(customer, expected): &(u64, Account)| async move {
                match client.send(&AskAccount { customer }).await {
                    Ok(account) if account.to_owned() == expected => Ok(()),
                    Ok(account) => Err(Broken::WrongReply(format!(
                        "the account of customer {customer} holds {:?} instead of {expected:?}",
                        account.to_owned()
                    ))),
                    Err(error) => Err(Broken::Engine(format!("the account of customer {customer}: {error}"))),
                }
            };
            let mut asked: FuturesUnordered<_> = some.iter().map(ask).collect();
            while let Some(outcome) = asked.next().await {
                outcome?;
            }
        }
        Ok(())
    }
}

impl Exchange for Desk {
    type Request = BookOrder;

    #[inline]
    fn request(&self, number: u64) -> BookOrder {
        let Order { customer, cents } = self.order(number);
        BookOrder { id: number, customer, cents }
    }

    #[inline]
    fn check(&self, number: u64, booked: &Archived<OrderBooked>) -> Result<(), String> {
        let (id, cents) = (booked.id.to_native(), booked.cents.to_native());
        if id == number && cents == self.order(number).cents && booked.orders.to_native() > 0 {
            return Ok(());
        }
        Err(format!("expected order {number} to be booked, but {cents} cents of order {id} were"))
    }
}

/// The word after `serve` that starts [`serve`].
pub(crate) const SERVE: &str = "desk";
/// The two nodes.
const CALLER: &str = "caller";
const SERVER: &str = "server";

/// The scenario.
pub(crate) struct Orders {
    file: Option<PathBuf>,
    across_nodes: bool,
}

impl Orders {
    /// With the orders of this file, or with generated ones; between two shards.
    pub(crate) fn new(file: Option<PathBuf>) -> Self {
        Self { file, across_nodes: false }
    }

    /// The same between two nodes.
    pub(crate) fn across_nodes(file: Option<PathBuf>) -> Self {
        Self { file, across_nodes: true }
    }

    fn run_on(
        &self,
        builder: Builder,
        desk: Desk,
        round: &Round<'_>,
        peers: &mut [Peer],
    ) -> Result<RoundResult, Broken> {
        let desk = Arc::new(desk);
        let driven = Driven::start(with_ledger(builder), desk.clone(), plan(round, How::Futures, true))?;
        let (measured, spent) = driven.measure(round, peers)?;
        // With an order that failed nobody can say what the accounts must hold; the row says so.
        if measured.errors == 0 {
            spin_on(desk.audit(&driven.engine.client(), measured.sent_in_all))?;
        }
        driven.finish(measured, spent)
    }
}

fn with_ledger(builder: Builder) -> Builder {
    builder
        .idle(Idle::Spin)
        .service(|_| Ledger::default(), |routes| routes.request(Ledger::book).request(Ledger::account))
}

/// The second process: `serve desk CORE`. Ends when its parent does.
pub(crate) fn serve(arguments: &[String]) -> Result<(), Broken> {
    let [core] = arguments else { return Err(Broken::Peer(format!("{SERVE} takes: CORE"))) };
    let core = core.parse().map_err(|_| Broken::Peer(format!("'{core}' is not a number")))?;
    let nobody = List::of(Vec::<String>::new()).node(SERVER, "127.0.0.1:0");
    stand_by(with_ledger(Engine::builder().cores([core]).cluster(nobody)))
}

impl Scenario for Orders {
    fn facts(&self) -> Facts {
        let (name, family, floor) = if self.across_nodes {
            ("lane/orders", Family::Lane, Some("floor/tcp/1024"))
        } else {
            ("orders", Family::Orders, Some("floor/ring/1024"))
        };
        let (pace, idle) = (Pace::Closed { in_flight: IN_FLIGHT }, scenario::Idle::Spin);
        Facts { name, family, pace, idle, floor, sweeps: false, payload_bytes: None }
    }

    fn run(&self, round: &Round<'_>) -> Result<RoundResult, Broken> {
        let orders = match &self.file {
            Some(file) => read(file).map_err(Broken::Orders)?,
            None => generated(),
        };
        let Cores { caller, server } = Cores::choose();
        let desk = Desk { orders };
        if !self.across_nodes {
            return self.run_on(Engine::builder().cores([caller, server]), desk, round, &mut []);
        }
        let mut peer = Peer::start(SERVE, &[server.to_string()])?;
        let list = List::of([format!("{SERVER}={}", peer.ready())]).node(CALLER, "127.0.0.1:0");
        self.run_on(
            Engine::builder().cores([caller]).cluster(list),
            desk,
            round,
            std::slice::from_mut(&mut peer),
        )
    }
}

/// Reads `InvoiceNo,InvoiceDate,CustomerID,TotalPrice`, by the names in the first line. No quotes: none of these has one.
pub(crate) fn read(file: &Path) -> Result<Vec<Order>, String> {
    let text =
        std::fs::read_to_string(file).map_err(|why| format!("cannot read {}: {why}", file.display()))?;
    parse(&text).map_err(|why| format!("{}: {why}", file.display()))
}

fn parse(text: &str) -> Result<Vec<Order>, String> {
    let mut lines = text.lines().zip(1..);
    let header = lines.next().map_or("", |(line, _)| line);
    let column = |name: &str| {
        let found = header.split(',').position(|word| word.trim() == name);
        found.ok_or_else(|| format!("the first line names no column {name}"))
    };
    let (customer, total) = (column("CustomerID")?, column("TotalPrice")?);
    let order = |(line, number): (&str, usize)| {
        let words: Vec<&str> = line.split(',').map(str::trim).collect();
        let customer = words.get(customer).and_then(|word| word.parse().ok());
        let total =
            words.get(total).and_then(|word| word.parse::<f64>().ok()).filter(|total| total.is_finite());
        match (customer, total) {
            (Some(customer), Some(total)) => Ok(Order { customer, cents: (total * 100.0).round() as i64 }),
            _ => Err(format!("line {number}: no customer's number or no total in '{line}'")),
        }
    };
    let orders: Vec<_> =
        lines.filter(|(line, _)| !line.trim().is_empty()).map(order).collect::<Result<_, _>>()?;
    if orders.is_empty() { Err("there are no orders".into()) } else { Ok(orders) }
}

/// The same orders every time.
fn generated() -> Vec<Order> {
    let mut random = SplitMix(SEED);
    let mut orders = Vec::new();
    for rank in 1..=CUSTOMERS {
        let count = (BUSIEST_ORDERS / f64::from(rank).powf(SKEW)) as usize;
        // Numbers as far apart as real ones, so that rank says nothing of the owner.
        let customer = 10_000 + u64::from(rank) * 7_919 % 10_000;
        orders.extend((0..count).map(|_| Order { customer, cents: 1 + (random.next() % CENTS_MAX) as i64 }));
    }
    // Fisher and Yates.
    for last in (1..orders.len()).rev() {
        orders.swap(last, (random.next() % (last as u64 + 1)) as usize);
    }
    orders
}

/// Sebastiano Vigna's splitmix64.
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_orders_have_the_skew_of_real_ones() {
        let orders = generated();
        let mut counts: HashMap<u64, usize> = HashMap::new();
        orders.iter().for_each(|order| *counts.entry(order.customer).or_default() += 1);
        let few = counts.values().filter(|count| **count <= 2).count();
        assert_eq!((counts.len(), counts.values().max()), (CUSTOMERS as usize, Some(&209)));
        assert!(few * 2 > counts.len() && (14_000..20_000).contains(&orders.len()), "{few} {}", orders.len());
        assert_eq!(orders, generated());
    }

    #[test]
    fn orders_are_read_by_the_names_of_their_columns() {
        let text = "InvoiceNo,InvoiceDate,CustomerID,TotalPrice\n536365,2010-12-01,17850,139.12\n\n\
                    536366,2010-12-01,17850,22.200000000000003\n";
        let read = parse(text).unwrap();
        let order = |cents| Order { customer: 17_850, cents };
        assert_eq!(read, [order(13_912), order(2_220)]);
        assert_eq!(parse("TotalPrice,CustomerID\n1,2\n").unwrap(), [Order { customer: 2, cents: 100 }]);
        for (bad, hint) in [
            ("", "CustomerID"),
            ("CustomerID\n1", "TotalPrice"),
            ("CustomerID,TotalPrice\n", "no orders"),
            ("CustomerID,TotalPrice\n1,2\n1", "line 3"),
            ("CustomerID,TotalPrice\nx,2", "line 2"),
            ("CustomerID,TotalPrice\n1,NaN", "line 2"),
        ] {
            assert!(parse(bad).unwrap_err().contains(hint), "{bad}");
        }
    }

    #[test]
    fn accounts_are_what_plain_addition_gives() {
        let desk = Desk { orders: generated() };
        let sent = desk.orders.len() as u64 * 2 + 5;
        let mut plain: HashMap<u64, Account> = HashMap::new();
        for number in 0..sent {
            let account = plain.entry(desk.order(number).customer).or_default();
            account.orders += 1;
            account.cents += desk.order(number).cents;
        }
        assert_eq!(desk.accounts(sent), plain);
    }
}
