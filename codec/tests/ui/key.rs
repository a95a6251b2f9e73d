extern crate catga_codec as catga;

#[catga::request(key = client)]
struct Missing {
    customer: u64,
    lines: Vec<u32>,
}

#[catga::event(key = price)]
struct Float {
    price: f64,
}

#[catga::event(key = id)]
enum Choice {
    One { id: u32 },
}

fn main() {}
