extern crate catga_codec as catga;

#[catga::event]
struct Length {
    bytes: Vec<usize>,
}

fn main() {}
