extern crate catga_codec as catga;

#[catga::message]
struct Shelf {
    stock: std::collections::HashMap<u32, u32>,
}

fn main() {}
