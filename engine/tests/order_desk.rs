//! The order desk of the examples: whatever is in the file, ledgers, events and file come to the same sums.
//!
//! With `CATGA_ORDERS` naming a directory that holds `invoices.csv` and `invoice_lines.csv`, on these too.
#![allow(clippy::unwrap_used, reason = "a test says by panicking what went wrong")]

#[allow(dead_code, reason = "its `main` is for the command line")]
#[path = "../examples/order_desk.rs"]
mod order_desk;

use std::collections::HashSet;
use std::path::PathBuf;

use order_desk::Day;

fn day(csv: &str) -> Day {
    let day = order_desk::run(csv.as_bytes(), Some(2)).unwrap();
    assert!(day.is_balanced(), "{day:?}");
    assert_eq!(day.lost, [], "no order is lost");
    day
}

fn odd_lines(day: &Day) -> Vec<u64> {
    day.odd.iter().map(|(line, _)| *line).collect()
}

#[test]
fn odd_rows_are_named_by_line_and_the_rest_is_booked() {
    let day = day("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n\
        1,A,\"LAMP, RED\",2,12/1/10 8:26,2.55,17850,United Kingdom\n\
        1,B,\"FRAME 7\"\" \",3,12/1/10 8:26,0.10,17850,United Kingdom\n\
        2,C,NO CUSTOMER,1,12/1/10 8:26,1.00,,United Kingdom\n\
        3,D,NO NUMBER,many,12/1/10 8:26,1.00,12748,United Kingdom\n\
        3,E,BAD DEBT,1,12/1/10 8:26,-11062.06,12748,United Kingdom\n\
        3,F,TOO SHORT,1\n\
        3,G,NOTHING,0,12/1/10 8:26,1.00,12748,United Kingdom\n\
        C4,A,\"LAMP,\nRED\",-1,12/1/10 8:26,2.55,17850,United Kingdom\n\
        3,H,A GIFT,1,12/1/10 8:26,0,12748,United Kingdom\n\
        5,I,UNREADABLE,1,12/1/10 8:26,1e3,12748,United Kingdom\n");
    // Line 9 goes on in line 10.
    assert_eq!(odd_lines(&day), [4, 5, 6, 7, 8, 12]);
    assert_eq!(day.odd[0].1, "it has no customer");
    assert_eq!((day.ledgers.orders, day.ledgers.returns), (2, 1));
    assert_eq!(day.ledgers.cents, 510 + 30 - 255);
}

#[test]
fn rows_of_one_invoice_are_one_order_wherever_they_stand() {
    let day = day("InvoiceNo,InvoiceDate,CustomerID,TotalPrice\n\
        7,2010-12-01,1,10.00\n8,2010-12-01,2,1.00\n7,2010-12-01,1,5.00\n7,2010-12-01,3,0.50\n");
    assert_eq!((day.ledgers.orders, day.ledgers.cents), (3, 1650));
}

#[test]
fn amounts_are_rounded_to_cents_once_for_each_row() {
    let day = day("InvoiceNo,InvoiceDate,CustomerID,TotalPrice\n\
        1,2010-12-01,1,22.200000000000003\n2,2010-12-01,1,2042.761\n3,2010-12-01,1,0.005\n4,2010-12-01,1,-0.005\n\
        5,2010-12-01,1,0.0049999999999999\n6,2010-12-01,1,1000000000000.00\n7,2010-12-01,1,999999999.99\n");
    assert_eq!(odd_lines(&day), [7]);
    assert_eq!(day.ledgers.cents, 2220 + 204_276 + 1 - 1 + 99_999_999_999);
}

#[test]
fn an_order_of_more_lines_than_fit_a_ring_in_line_is_booked_whole() {
    let mut csv =
        String::from("InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n");
    for line in 0..1_000 {
        csv += &format!(
            "1,{line:05},A DESCRIPTION OF THE USUAL LENGTH,1,12/1/10 8:26,0.01,{},Portugal\n",
            line % 4
        );
    }
    assert_eq!((day(&csv).ledgers.orders, day(&csv).ledgers.cents), (4, 1_000));
}

#[test]
fn generated_orders_are_the_same_every_time_and_balance() {
    let csv = order_desk::orders::generate(2_000);
    assert_eq!(csv, order_desk::orders::generate(2_000));
    let day = day(&csv);
    assert_eq!(day.odd, []);
    assert_eq!(day.ledgers.count(), 2_000);
    assert!(day.ledgers.returns > 0);
}

#[test]
fn a_file_of_another_format_is_an_error_that_says_what_is_missing() {
    let error = order_desk::run(b"name,age\nAda,36\n", Some(1)).unwrap_err();
    assert!(error.to_string().contains("TotalPrice"), "{error}");
}

/// The sums of the files are made here once more, by string arithmetic of a few lines.
#[test]
fn real_orders_balance_if_they_are_there() {
    let Some(directory) = std::env::var_os("CATGA_ORDERS").map(PathBuf::from) else { return };
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap();
    let fraction_cents = |text: &str, quantity: i64| {
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let thousandths: i64 = format!("{fraction:0<3}")[..3].parse().unwrap();
        let sum = (whole.parse::<i64>().unwrap() * 1000 + thousandths) * quantity;
        (sum + 5 * sum.signum()) / 10
    };

    let invoices = read("invoices.csv");
    let expected: i64 = invoices
        .lines()
        .skip(1)
        .map(|row| {
            // Sums of cents that were made in floating point: `22.200000000000003`, `70.04999999999999`.
            let total: f64 = row.rsplit(',').next().unwrap().parse().unwrap();
            (total * 100.0).round() as i64
        })
        .sum();
    let booked = day(&invoices);
    assert_eq!(booked.ledgers.cents, expected);
    assert_eq!(booked.ledgers.count() as usize + booked.odd.len(), invoices.lines().count() - 1);

    let lines = read("invoice_lines.csv");
    let (mut expected, mut orders) = (0, HashSet::new());
    for row in csv::Reader::from_reader(lines.as_bytes()).records().map(Result::unwrap) {
        if !row[6].is_empty() {
            expected += fraction_cents(&row[5], row[3].parse().unwrap());
            orders.insert((row[0].to_owned(), row[6].to_owned()));
        }
    }
    let booked = day(&lines);
    assert_eq!(booked.ledgers.cents, expected);
    assert_eq!(booked.ledgers.count() as usize, orders.len());
}
