extern crate catga_codec as catga;

#[catga::message]
struct Ticks {
    ticks: Vec<()>,
}

fn main() {}
