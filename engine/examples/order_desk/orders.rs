//! Orders out of a CSV file, and the sums that the file itself gives.
//!
//! Two formats, told apart by their header; further columns are ignored, and so is the order of the columns:
//!
//! - one row for each order: `InvoiceNo,InvoiceDate,CustomerID,TotalPrice`
//! - one row for each line of an order: `InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country`
//!
//! Rows with the same invoice and customer are one order, wherever they stand. A row that cannot be booked (no customer, a
//! quantity that is no number, a negative price) is odd: it is reported by its line and left out, and the rest goes on.
//!
//! Amounts are read as the decimal text that they are, and each row's amount is rounded to whole cents once, half away from
//! zero. From there on all arithmetic is in whole cents: no sum depends on the order in which it is made.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt::Write;
use std::ops::AddAssign;

use csv::{ByteRecord, ReaderBuilder};

/// One order.
#[derive(Clone, Debug)]
pub(crate) struct Order {
    pub(crate) customer: u64,
    pub(crate) invoice: String,
    pub(crate) lines: Vec<Line>,
}

/// One line of an order.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) stock_code: String,
    pub(crate) description: String,
    pub(crate) quantity: i32,
    pub(crate) cents: i64,
}

/// Totals. An order whose sum is negative is a return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Books {
    pub(crate) orders: u64,
    pub(crate) returns: u64,
    pub(crate) cents: i64,
}

impl Books {
    /// Books an order of so many cents.
    pub(crate) fn add(&mut self, cents: i64) {
        *(if cents < 0 { &mut self.returns } else { &mut self.orders }) += 1;
        self.cents += cents;
    }

    /// Orders and returns.
    pub(crate) fn count(&self) -> u64 {
        self.orders + self.returns
    }
}

impl AddAssign for Books {
    fn add_assign(&mut self, other: Self) {
        self.orders += other.orders;
        self.returns += other.returns;
        self.cents += other.cents;
    }
}

/// What was in a file.
#[derive(Debug)]
pub(crate) struct Reading {
    /// In the order of their first rows.
    pub(crate) orders: Vec<Order>,
    /// The rows that were not taken, by line, with the reason.
    pub(crate) odd: Vec<(u64, String)>,
}

/// Puts the rows of a file together to orders.
pub(crate) fn read(csv: &[u8]) -> Result<Reading, Box<dyn std::error::Error>> {
    let mut reading = Reading { orders: Vec::new(), odd: Vec::new() };
    let mut places = HashMap::new();
    for_each_row(csv, |line_number, row| match row {
        Ok(Row { invoice, customer, line }) => {
            let place = *places.entry((invoice.clone(), customer)).or_insert_with(|| {
                reading.orders.push(Order { customer, invoice, lines: Vec::new() });
                reading.orders.len() - 1
            });
            reading.orders[place].lines.push(line);
        }
        Err(reason) => reading.odd.push((line_number, reason)),
    })?;
    Ok(reading)
}

/// What the file says, row by row and without an engine: the figures that the ledgers must come to.
pub(crate) fn add_up(csv: &[u8]) -> Result<Books, Box<dyn std::error::Error>> {
    let mut sums: HashMap<(String, u64), i64> = HashMap::new();
    for_each_row(csv, |_, row| {
        if let Ok(row) = row {
            *sums.entry((row.invoice, row.customer)).or_default() += row.line.cents;
        }
    })?;
    let mut books = Books::default();
    sums.into_values().for_each(|cents| books.add(cents));
    Ok(books)
}

// ---- rows ---------------------------------------------------------------------------------------------------------

/// One good row.
struct Row {
    invoice: String,
    customer: u64,
    line: Line,
}

/// What is said to someone whose file has another header.
const FORMATS: &str = "it needs InvoiceNo, CustomerID, and either TotalPrice or Quantity and UnitPrice";

/// Which column holds what.
struct Columns {
    count: usize,
    invoice: usize,
    customer: usize,
    amount: Amount,
    stock_code: Option<usize>,
    description: Option<usize>,
}

enum Amount {
    Total(usize),
    QuantityAndPrice(usize, usize),
}

/// Hands out each row with its line number in the file; a row that cannot be booked comes with the reason.
fn for_each_row(
    csv: &[u8],
    mut take: impl FnMut(u64, Result<Row, String>),
) -> Result<(), Box<dyn std::error::Error>> {
    // Flexible: a row that is too short is odd, and no reason to stop.
    let mut reader = ReaderBuilder::new().flexible(true).from_reader(csv);
    let columns = Columns::of(reader.byte_headers()?)?;
    let mut record = ByteRecord::new();
    while reader.read_byte_record(&mut record)? {
        let line_number = record.position().map_or(0, |position| position.line());
        take(line_number, columns.row(&record));
    }
    Ok(())
}

impl Columns {
    fn of(header: &ByteRecord) -> Result<Self, String> {
        let find = |name: &str| header.iter().position(|column| column.trim_ascii() == name.as_bytes());
        let need =
            |name: &str| find(name).ok_or_else(|| format!("the header has no column {name}; {FORMATS}"));
        let amount = match find("TotalPrice") {
            Some(total) => Amount::Total(total),
            None => Amount::QuantityAndPrice(need("Quantity")?, need("UnitPrice")?),
        };
        Ok(Self {
            count: header.len(),
            invoice: need("InvoiceNo")?,
            customer: need("CustomerID")?,
            amount,
            stock_code: find("StockCode"),
            description: find("Description"),
        })
    }

    fn row(&self, record: &ByteRecord) -> Result<Row, String> {
        if record.len() != self.count {
            return Err(format!("it has {} fields, not {}", record.len(), self.count));
        }
        // Text that is not UTF-8 is kept as far as it can be read; numbers are ASCII anyway.
        let field = |index: usize| String::from_utf8_lossy(record[index].trim_ascii());
        let text = |index: Option<usize>| index.map(field).map(Cow::into_owned).unwrap_or_default();
        let (invoice, customer) = (field(self.invoice), field(self.customer));
        if invoice.is_empty() {
            return Err("it has no invoice number".into());
        }
        if customer.is_empty() {
            return Err("it has no customer".into());
        }
        let customer = customer.parse().map_err(|_| format!("the customer `{customer}` is not a number"))?;
        let (quantity, cents) = match self.amount {
            Amount::Total(total) => (1, cents(&field(total), 1)?),
            Amount::QuantityAndPrice(quantity, price) => {
                let (quantity, price) = (field(quantity), field(price));
                let quantity = quantity
                    .parse()
                    .map_err(|_| format!("the quantity `{quantity}` is not a whole number"))?;
                if quantity == 0 {
                    return Err("its quantity is 0".into());
                }
                // Money comes back by a negative quantity; a negative price is some correction that is no order.
                if price.starts_with('-') {
                    return Err(format!("the price {price} is negative"));
                }
                (quantity, cents(&price, quantity)?)
            }
        };
        let line =
            Line { stock_code: text(self.stock_code), description: text(self.description), quantity, cents };
        Ok(Row { invoice: invoice.into_owned(), customer, line })
    }
}

/// `quantity` times a decimal amount, in cents, rounded once. Exact for up to 12 digits before the point and 18 behind it.
fn cents(amount: &str, quantity: i32) -> Result<i64, String> {
    let not_an_amount = || format!("`{amount}` is not an amount of money");
    let (sign, digits) = amount.strip_prefix('-').map_or((1, amount), |digits| (-1, digits));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || whole.len() > 12 || fraction.len() > 18 {
        return Err(not_an_amount());
    }
    let mut scaled: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        if !digit.is_ascii_digit() {
            return Err(not_an_amount());
        }
        scaled = scaled * 10 + i128::from(digit - b'0');
    }
    // Below 10^30, and a quantity is below 10^10: the product fits.
    let product = sign * scaled * i128::from(quantity);
    let unit = 10_i128.pow(fraction.len() as u32);
    let rounded = (product.abs() / unit * 100) + (product.abs() % unit * 200 + unit) / (2 * unit);
    i64::try_from(product.signum() * rounded)
        .ok()
        .filter(|cents| cents.abs() <= CENTS_MAX)
        .ok_or_else(|| format!("{quantity} times {amount} is more than this desk can book"))
}

/// The largest amount of one row, in cents: millions of such rows still add up without overflow.
const CENTS_MAX: i64 = 1_000_000_000_000;

/// Cents as people write money.
pub(crate) fn money(cents: i64) -> String {
    let sign = if cents < 0 { "-" } else { "" };
    format!("{sign}{}.{:02}", cents.unsigned_abs() / 100, cents.unsigned_abs() % 100)
}

// ---- generated orders ---------------------------------------------------------------------------------------------

const CUSTOMERS: u64 = 4_338;

/// A file of so many orders, the same for every run.
///
/// Customers are as unequal as those of a real shop: with the square of a uniform number for a rank, the busiest customer of
/// 4,338 has a good one in a hundred of all orders, and most have five or fewer.
pub(crate) fn generate(orders: u32) -> String {
    let mut random = Random(0x5EED_CA76_A000_0001);
    let mut csv =
        String::from("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n");
    for order in 0..orders {
        let uniform = random.below(1 << 32);
        let customer = 12_346 + ((((uniform * uniform) >> 32) * CUSTOMERS) >> 32);
        // One order in fifty is a return.
        let (prefix, sign) = if random.below(50) == 0 { ("C", -1) } else { ("", 1) };
        for _ in 0..=random.below(6) {
            let (stock, quantity) = (random.below(4_000), random.below(24) as i64 + 1);
            let (pounds, pence) = (random.below(12), random.below(100));
            let _ = writeln!(
                csv,
                "{prefix}{},{stock:05},\"ARTICLE {stock}, BOXED\",{},12/1/10 8:26,{pounds}.{pence:02},{customer},United Kingdom",
                536_365 + order,
                sign * quantity,
            );
        }
    }
    csv
}

/// splitmix64: small, and good enough to draw orders.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((u128::from(bits ^ (bits >> 31)) * u128::from(bound)) >> 64) as u64
    }
}
