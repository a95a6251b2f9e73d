extern crate catga_codec as catga;

type Stock = std::collections::BTreeMap<u32, u32>;

#[catga::message]
struct Shelf {
    stock: Stock,
}

fn main() {}
